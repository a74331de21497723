"""The records of agents' runs: their orders and steps, what they are told, and which runner has each.

A run has one runner at a time. It holds the run while it renews its lease; another runner may claim the run
once the lease has run out. Every write carries the fence of the claim, so a runner that has lost its run
changes nothing. Everybody else only tells a run something, in its inbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from inferfleet.schemas.names import AGENT_QUEUES_KEY, open_runs_key, run_inbox_key, run_key, run_steps_key
from inferfleet.schemas.prices import plain
from inferfleet.schemas.run import (
    STEP,
    RunOrder,
    RunRecord,
    RunResult,
    RunState,
    RunSummary,
    RunWait,
    Step,
)
from inferfleet.wire.redis import process_scripts, run_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import LISTED_S

LOOKED_AT_ONCE: Final = 100
"""How many runs a sweep takes at a time."""

UNSEEN_MS: Final = 300_000
"""How long nobody looks at an unfinished run. What it waits for may be there: whoever told it died before
publishing it.
"""

_SUMMARY: Final = ("agent", "tenant", "state", "created_ms", "waits_for", "cost")


class RunLostError(Exception):
    """Another runner has the run, or it has ended."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The run is this runner's. ``claims`` counts its claims since it last moved on, with this one."""

    claims: int


@dataclass(frozen=True, slots=True)
class Held:
    """Another runner has the run, for so long at least."""

    left_s: float


class NothingToDo:
    """The run waits, has ended, or is gone."""


class Runs:
    """Reads and writes the records of runs.

    Redis keeps an unfinished run for ``queued_ttl_s`` after its last change, and an ended one for
    ``result_ttl_s``.
    """

    def __init__(self, pipeline: CommandPipeline, *, queued_ttl_s: int, result_ttl_s: int) -> None:
        self._pipeline = pipeline
        self._queued_ttl_s = queued_ttl_s
        self._result_ttl_s = result_ttl_s

    def now_ms(self) -> int:
        """Return Redis' time."""
        return self._pipeline.clock.now_ms()

    async def create(self, order: RunOrder, *, look_ms: int, steps: Sequence[Step] = ()) -> RunOrder | None:
        """Record a run, in the list of unfinished ones from ``look_ms`` on. Return the one that there is.

        A run that replays another one begins with these ``steps``.
        """
        command = run_scripts.run_create(
            run_key(order.id),
            run_steps_key(order.id),
            *(step.model_dump_json() for step in steps),
            order=order.model_dump_json(),
            agent=order.agent,
            tenant=order.tenant,
            created_ms=order.created_ms,
            ttl_s=self._queued_ttl_s,
        )
        # First, so that no run is recorded if Redis refuses it: the check at the start does not try it.
        await self._pipeline.execute(
            *process_scripts.seen(AGENT_QUEUES_KEY, member=order.queue, listed_s=LISTED_S)
        )
        known: bytes = await self._pipeline.execute(*command)
        # Also if it was known: whoever recorded it may have died. A sweep removes one that has ended.
        await self._pipeline.execute("ZADD", open_runs_key(order.queue), "NX", look_ms, order.id)
        return RunOrder.model_validate_json(known) if known else None

    async def read(self, run_id: str) -> RunRecord | None:
        """Read a record; ``None`` if there is none."""
        fields: dict[bytes, bytes] = await self._pipeline.execute("HGETALL", run_key(run_id))
        if b"order" not in fields:
            return None
        state, result = RunState(fields[b"state"].decode()), fields.get(b"result")
        return RunRecord(
            order=RunOrder.model_validate_json(fields[b"order"]),
            state=state,
            runner=fields[b"runner"].decode() if b"runner" in fields else None,
            wake_ms=int(fields.get(b"wake_ms", 0)) or None,
            waits_for=_wait(state, fields.get(b"waits_for")),
            lease_left_ms=max(0, int(fields.get(b"lease_until", 0)) - self.now_ms()),
            announced=fields.get(b"announced", b"").decode(),
            cost=_amount(fields.get(b"cost")),
            result=None if result is None else RunResult.model_validate_json(result),
        )

    async def state(self, run_id: str) -> RunState | None:
        """Read the state alone; ``None`` if there is no record."""
        state: bytes | None = await self._pipeline.execute("HGET", run_key(run_id), "state")
        return None if state is None else RunState(state.decode())

    async def summary(self, run_id: str) -> RunSummary | None:
        """Read what a list shows, without what was ordered; ``None`` if there is no record."""
        return await read_summary(self._pipeline, run_id)

    async def steps(self, run_id: str) -> list[Step]:
        """Read the steps of a run, in order."""
        lines: list[bytes] = await self._pipeline.execute("LRANGE", run_steps_key(run_id), 0, -1)
        return [STEP.validate_json(line) for line in lines]

    async def inbox(self, run_id: str) -> dict[str, bytes]:
        """Read what a run was told, by name."""
        fields: dict[bytes, bytes] = await self._pipeline.execute("HGETALL", run_inbox_key(run_id))
        return {name.decode(): message for name, message in fields.items()}

    async def claim(
        self, run_id: str, *, fence: str, runner: str, lease_s: float
    ) -> Claimed | Held | NothingToDo:
        """Claim a run, if it can go on and no other runner has it."""
        command = run_scripts.run_claim(
            run_key(run_id), fence=fence, runner=runner, lease_ms=int(lease_s * 1000)
        )
        answer: list[Any] = await self._pipeline.execute(*command)
        match answer[0]:
            case b"claimed":
                return Claimed(int(answer[1]))
            case b"held":
                return Held(int(answer[1]) / 1000)
            case _:
                return NothingToDo()

    async def append(
        self,
        run_id: str,
        steps: Sequence[Step],
        *,
        fence: str,
        lease_s: float,
        position: int,
        moved_on: bool,
        cost: Decimal | None = None,
    ) -> int:
        """Append steps behind the first ``position``, and renew the lease. Return how much it was told.

        ``cost`` is what the run has cost with these steps.

        Raises:
            RunLostError: Another runner has the run.

        """
        command = run_scripts.run_append(
            *_keys(run_id),
            *(step.model_dump_json() for step in steps),
            fence=fence,
            lease_ms=int(lease_s * 1000),
            ttl_s=self._queued_ttl_s,
            position=position,
            moved_on=int(moved_on),
            cost="" if cost is None else plain(cost),
        )
        told = int(await self._pipeline.execute(*command))
        if told < 0:
            raise RunLostError(run_id)
        return told

    async def settle(
        self,
        run_id: str,
        state: RunState,
        *,
        fence: str,
        told: int,
        wake_ms: int = 0,
        waits_for: RunWait | None = None,
        result: RunResult | None = None,
        announced: str = "",
    ) -> RunState:
        """Let a run wait, go on elsewhere, or end. Return its state afterwards.

        It still runs if it was told something, and must not wait. If an earlier call has let it go, that
        counts.

        Raises:
            RunLostError: Another runner has the run.

        """
        command = run_scripts.run_settle(
            *_keys(run_id),
            fence=fence,
            new_state=state,
            told=told,
            wake_ms=wake_ms,
            waits_for=waits_for or "",
            result="" if result is None else result.model_dump_json(),
            announced=announced,
            ttl_s=self._result_ttl_s if state.terminal else self._queued_ttl_s,
        )
        answer: bytes = await self._pipeline.execute(*command)
        if not answer:
            raise RunLostError(run_id)
        return RunState(answer.decode())

    async def tell(self, run_id: str, name: str, message: str) -> tuple[RunState, bool] | None:
        """Tell a run something. Return its state, and whether this is news; ``None`` if it is gone."""
        command = run_scripts.run_tell(
            run_key(run_id), run_inbox_key(run_id), name=name, message=message, ttl_s=self._queued_ttl_s
        )
        state, news = await self._pipeline.execute(*command)
        return (RunState(state.decode()), bool(news)) if state else None

    async def open(self, queue: str) -> list[str]:
        """Return the ids of a queue's unfinished runs."""
        ids: list[bytes] = await self._pipeline.execute("ZRANGE", open_runs_key(queue), 0, -1)
        return [run_id.decode() for run_id in ids]

    async def look(self, queue: str, *, again_ms: int) -> list[str]:
        """Take some runs at which it is time to look; it is time again after ``again_ms``."""
        now_ms = self.now_ms()
        command = run_scripts.run_look(
            open_runs_key(queue), now_ms=now_ms, next_ms=now_ms + again_ms, most=LOOKED_AT_ONCE
        )
        ids: list[bytes] = await self._pipeline.execute(*command)
        return [run_id.decode() for run_id in ids]

    async def look_at(self, queue: str, run_id: str, *, at_ms: int) -> None:
        """Set when to look at an unfinished run: then, or after ``UNSEEN_MS`` if that is sooner."""
        at_ms = min(at_ms, self.now_ms() + UNSEEN_MS)
        await self._pipeline.execute("ZADD", open_runs_key(queue), "XX", at_ms, run_id)

    async def close(self, queue: str, run_id: str) -> None:
        """Remove a run that has ended, or is gone, from the list of unfinished ones."""
        await self._pipeline.execute("ZREM", open_runs_key(queue), run_id)


async def read_summary(pipeline: CommandPipeline, run_id: str) -> RunSummary | None:
    """Read what a list shows of a run; ``None`` if there is no record."""
    known: list[bytes | None] = await pipeline.execute("HMGET", run_key(run_id), *_SUMMARY)
    agent, tenant, state, created_ms, waits_for, cost = known
    if agent is None or tenant is None or state is None or created_ms is None:
        return None
    return RunSummary(
        id=run_id,
        agent=agent.decode(),
        tenant=tenant.decode(),
        state=RunState(state.decode()),
        created_ms=int(created_ms),
        waits_for=_wait(RunState(state.decode()), waits_for),
        cost=_amount(cost),
    )


def _wait(state: RunState, waited_for: bytes | None) -> RunWait | None:
    """Return what a run waits for. The record says what it has waited for last."""
    return RunWait(waited_for.decode()) if waited_for and state is RunState.WAITING else None


def _amount(known: bytes | None) -> Decimal | None:
    return Decimal(known.decode()) if known else None


def _keys(run_id: str) -> tuple[str, str, str]:
    return run_key(run_id), run_steps_key(run_id), run_inbox_key(run_id)
