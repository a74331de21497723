"""What one tenant may do with runs: those of other tenants do not exist for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from inferfleet.agents.runs import AgentRuns, Question
from inferfleet.schemas.errors import InvalidJobError, RunNotFoundError
from inferfleet.schemas.job import JOB_ID
from inferfleet.schemas.run import RunRecord, RunState, RunSummary, Step

_ID: Final = re.compile(JOB_ID)

READ_AT_ONCE: Final = 100
MOST_LOOKED_AT: Final = 2000
"""At how many runs, of all tenants, a page looks."""

INPUT_LISTED: Final = 200
"""How many characters of its input a run has on a page."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some runs. ``next`` is what to pass as ``after`` for more; ``None`` if there are none."""

    runs: Sequence[RunRecord]
    next: str | None


class TenantRuns:
    """Runs as one tenant sees them. Methods raise what those of ``AgentRuns`` raise.

    The run of another tenant gives the same error as one that was never started, after the same reads.
    """

    def __init__(self, runs: AgentRuns, tenant: str) -> None:
        self._runs = runs
        self._tenant = tenant

    async def start(self, agent: str, input: str, *, queue: str, **options: Any) -> str:  # noqa: A002
        """Start a run of the tenant, as ``AgentRuns.start``, if a runner has declared the queue.

        Raises:
            UnknownPoolError: There is no such queue: tenants may not add any.

        """
        await self._runs.require_queue(queue)
        return await self._runs.start(agent, input, queue=queue, tenant=self._tenant, **options)

    async def get(self, run_id: str) -> RunRecord:
        """Read a run's record."""
        record = await self._runs.get(run_id)
        if record.order.tenant != self._tenant:
            raise RunNotFoundError(run_id)
        return record

    async def page(
        self, queue: str, *, state: RunState | None = None, after: str | None = None, limit: int
    ) -> RunPage:
        """Read a page of a queue's unfinished runs, in the order of their ids.

        It may have fewer runs than ``limit``, even none, while there are more. A run that is unfinished all
        the time is on one page, with the first ``INPUT_LISTED`` characters of its input.

        Raises:
            InvalidJobError: ``after`` is not the ``next`` of a page, or runs in this ``state`` have ended.

        """
        if state is not None and state.terminal:
            raise InvalidJobError(
                f"state: runs that are {state} have ended, and only unfinished runs can be listed: queued, "
                "running or waiting"
            )
        if after is not None and not _ID.fullmatch(after):
            raise InvalidJobError(f"after: {after[:64]!r} is not the `next` of a page of this list")
        ids = [run_id for run_id in sorted(await self._runs.records.open(queue)) if run_id > (after or "")]
        own: list[str] = []
        following: str | None = None
        if len(ids) > MOST_LOOKED_AT:
            following = _between(ids[MOST_LOOKED_AT - 1], ids[MOST_LOOKED_AT])
        for some in _batches(ids[:MOST_LOOKED_AT]):
            known = await asyncio.gather(*map(self._runs.records.summary, some))
            own += [run_id for run_id, each in zip(some, known, strict=True) if self._wants(each, state)]
            if len(own) > limit:
                own, following = own[:limit], own[limit - 1]
                break
        found: list[RunRecord] = []
        for some in _batches(own):
            found += [each for each in await asyncio.gather(*map(self._listed, some)) if each is not None]
        return RunPage(found, following)

    async def show(self, run_id: str) -> tuple[RunRecord, Sequence[Step], Sequence[Question]]:
        """Read a run's record, its steps, and what it asks a person now."""
        record = await self.get(run_id)
        return (record, *await self._runs.steps_and_questions(record))

    async def replay(self, run_id: str, **options: Any) -> str:
        """Start a run with the order of another one, as ``AgentRuns.replay``, if its queue is still there.

        Raises:
            UnknownPoolError: There is no such queue any more.

        """
        await self._runs.require_queue((await self.get(run_id)).order.queue)
        return await self._runs.replay(run_id, **options)

    async def cancel(self, run_id: str) -> RunState:
        """Ask for a run to be cancelled, as ``AgentRuns.cancel``."""
        await self.get(run_id)
        return await self._runs.cancel(run_id)

    async def approve(self, run_id: str, question: str, *, result: str | None = None) -> None:
        """Let a run make a tool call, as ``AgentRuns.approve``."""
        await self.get(run_id)
        await self._runs.approve(run_id, question, result=result)

    async def deny(self, run_id: str, question: str, *, reason: str = "") -> None:
        """Let a run not make a tool call, as ``AgentRuns.deny``."""
        await self.get(run_id)
        await self._runs.deny(run_id, question, reason=reason)

    def _wants(self, known: RunSummary | None, wanted: RunState | None) -> bool:
        if known is None or known.tenant != self._tenant:
            return False
        return not known.state.terminal and wanted in (None, known.state)

    async def _listed(self, run_id: str) -> RunRecord | None:
        record = await self._runs.records.read(run_id)
        if record is None or record.state.terminal:
            return None
        cut = record.order.model_copy(update={"input": record.order.input[:INPUT_LISTED]})
        return record.model_copy(update={"order": cut})


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[begin : begin + READ_AT_ONCE] for begin in range(0, len(ids), READ_AT_ONCE))


def _between(before: str, behind: str) -> str:
    """Return what sorts between two ids. They may be another tenant's, and that is not told."""
    return str(UUID(int=(UUID(before).int + UUID(behind).int) // 2))
