"""The script of a test: rules in a folder, which the test writes and its workers read.

Workers are separate processes, and may be killed. So the rules are a file that is replaced as a whole: a read
sees either all rules or all earlier ones. Each use of a rule is a file that its worker creates: if two
workers compete for the last use, only one gets it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from inferfleet.schemas import FailureCode


class ScriptedCall(BaseModel):
    """A tool call that the model makes. ``arguments`` are JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: str = "{}"


class Rule(BaseModel):
    """What to do with a request whose last message contains ``prompt``, for at most ``times`` attempts.

    The attempt answers ``text``, and then makes ``tool_calls``; or it fails with ``failure``. With
    ``hang_after_tokens`` the first attempt of each job generates that many tokens and then hangs, until it is
    cancelled or its worker dies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Annotated[int, Field(ge=1)]
    prompt: str = ""
    text: str = ""
    tool_calls: tuple[ScriptedCall, ...] = ()
    failure: FailureCode | None = None
    times: Annotated[int, Field(ge=1)] | None = None
    hang_after_tokens: Annotated[int, Field(ge=0)] | None = None


_rules: TypeAdapter[list[Rule]] = TypeAdapter(list[Rule])


class Script:
    """The rules in a folder. If several rules match a request, the newest one counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "rules.json"

    def add(
        self,
        *,
        prompt: str,
        text: str = "",
        tool_calls: Sequence[ScriptedCall] = (),
        failure: FailureCode | None = None,
        times: int | None = None,
        hang_after_tokens: int | None = None,
    ) -> None:
        """Add a rule. It applies to every attempt that begins after this returns."""
        rules = self.rules()
        rules.append(
            Rule(
                number=len(rules) + 1,
                prompt=prompt,
                text=text,
                tool_calls=tuple(tool_calls),
                failure=failure,
                times=times,
                hang_after_tokens=hang_after_tokens,
            )
        )
        written = self._file.with_suffix(".new")
        written.write_bytes(_rules.dump_json(rules))
        written.replace(self._file)

    def rules(self) -> list[Rule]:
        """Read all rules, oldest first."""
        try:
            return _rules.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return []

    def take(self, prompt: str) -> Rule | None:
        """Find the rule for a new attempt, and use it once."""
        for rule in reversed(self.rules()):
            if rule.prompt in prompt and (rule.times is None or self._claim_one(rule, rule.times)):
                return rule
        return None

    def hang(self, rule: Rule, job_id: str) -> bool:
        """Note that an attempt of a job hangs. Return false if an earlier attempt of the job did."""
        return self._claim(f"{rule.number}-hung-{quote(job_id, safe='')}")

    def hung(self) -> Iterator[tuple[str, int]]:
        """Return the jobs with a hanging attempt, each with the number of tokens after which it hangs."""
        for rule in self.rules():
            prefix = f"{rule.number}-hung-"
            for claimed in self.folder.glob(f"{prefix}*"):
                yield unquote(claimed.name.removeprefix(prefix)), rule.hang_after_tokens or 0

    def _claim_one(self, rule: Rule, times: int) -> bool:
        return any(self._claim(f"{rule.number}-use-{use}") for use in range(times))

    def _claim(self, what: str) -> bool:
        """Return whether this is the first call with this name in all workers."""
        try:
            os.close(os.open(self.folder / what, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True
