"""What one tenant may do with runs: those of other tenants do not exist for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from inferfleet.agents.runs import AgentRuns, Question
from inferfleet.schemas.errors import RunNotFoundError
from inferfleet.schemas.run import RunRecord, RunState, Step

READ_AT_ONCE: Final = 100
MOST_READ: Final = 2000
"""How many runs, of all tenants, are read for a page."""


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
        the time is on one page.
        """
        ids = [run_id for run_id in sorted(await self._runs.records.open(queue)) if run_id > (after or "")]
        found: list[RunRecord] = []
        last: str | None = None
        for begin in range(0, min(len(ids), MOST_READ), READ_AT_ONCE):
            some = ids[begin : begin + READ_AT_ONCE]
            records = await asyncio.gather(*map(self._runs.records.read, some))
            for run_id, record in zip(some, records, strict=True):
                if record is not None and self._wants(record, state):
                    if len(found) == limit:
                        return RunPage(found, last)
                    found.append(record)
                last = run_id
        return RunPage(found, last if len(ids) > MOST_READ else None)

    async def steps(self, run_id: str) -> list[Step]:
        """Read a run's steps, in order."""
        await self.get(run_id)
        return await self._runs.steps(run_id)

    async def questions(self, run_id: str) -> Sequence[Question]:
        """Return what a run asks a person now."""
        await self.get(run_id)
        return await self._runs.questions(run_id)

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

    def _wants(self, record: RunRecord, state: RunState | None) -> bool:
        own = record.order.tenant == self._tenant and not record.state.terminal
        return own and state in (None, record.state)
