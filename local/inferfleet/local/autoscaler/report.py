"""Reports what the autoscaler does, as text lines or as lines of JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import orjson

from inferfleet.cli.terminal import out
from inferfleet.local.autoscaler.replicas import Drained


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The number of replicas changes. ``at_s`` is in the manifest's seconds since the start."""

    at_s: float
    before: int
    after: int
    by: str
    reason: str
    values: Sequence[float | None]


class Reporter:
    """Prints changes and drains on stdout, and passes everything else to ``say``, for stderr for example."""

    def __init__(self, *, as_json: bool, say: Callable[[str], None]) -> None:
        self._as_json = as_json
        self._say = say
        self._failing: dict[str, str] = {}

    def changed(self, change: Change) -> None:
        """Print a change."""
        if self._as_json:
            self._print_json("scale", asdict(change) | {"at_s": round(change.at_s, 1)})
            return
        values = ", ".join("?" if value is None else f"{value:g}" for value in change.values)
        self._print(
            f"{change.at_s:8.0f} s  {change.before:>3} -> {change.after:<3} {change.by:5} {change.reason}"
            + (f"  [{values}]" if values else "")
        )

    def drained(self, drained: Drained) -> None:
        """Print the start or the end of a drain."""
        if self._as_json:
            self._print_json("drain" if drained.exit_code is None else "drained", asdict(drained))
        elif drained.exit_code is None:
            self._print(f"{'':12}{drained.worker} drains with {drained.jobs} jobs in its engine")
        elif drained.exit_code != 0:
            self.say(f"{drained.worker} ended with code {drained.exit_code} while it drained")

    def failing(self, trigger: str, error: str | None) -> None:
        """Report when a trigger begins to fail, and when it works again."""
        before = self._failing.pop(trigger, None)
        if error is not None:
            self._failing[trigger] = error
        if error is not None and before is None:
            self.say(f"cannot read {trigger}: {error}")
        elif error is None and before is not None:
            self.say(f"reading {trigger} works again")

    def ended(self, *, most: int, changes: int, worker_s: float) -> None:
        """Print the totals of the run."""
        if self._as_json:
            self._print_json("end", {"most": most, "changes": changes, "worker_s": round(worker_s, 1)})
        else:
            self._print(f"at most {most} workers, {changes} changes, {worker_s:.0f} worker seconds")

    def summed_up(self, summary: Mapping[str, object]) -> None:
        """Print the summary of a simulation: one line of JSON, or a list for a person."""
        if self._as_json:
            self._print_json("summary", summary)
            return
        for name, value in summary.items():
            parts = cast("Mapping[str, object]", value).items() if isinstance(value, Mapping) else ()
            text = ", ".join(f"{part} {number}" for part, number in parts) if parts else f"{value}"
            self._print(f"{name:>24}  {text}")

    def say(self, text: str) -> None:
        """Print a remark."""
        self._say(text)

    def _print_json(self, event: str, fields: Mapping[str, object]) -> None:
        self._print(orjson.dumps({"event": event, **fields}).decode())

    def _print(self, line: str) -> None:
        out(f"{line}\n")
        sys.stdout.flush()
