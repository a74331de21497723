"""What clients do in a simulated world. Small on purpose: two producers, at most three jobs, at most one key.

A *variant* is one way of doing it; numbers, so that a schedule names one in few characters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from inferfleet.local.chaos.workload import KIND, Kind
from inferfleet.local.simulation.determinism import EPOCH_S
from inferfleet.local.simulation.plan import Event
from inferfleet.local.simulation.plan import Kind as EventKind
from inferfleet.local.simulation.world import POOL, Call, Seen, World
from inferfleet.producer.journal_view import BEGINNING
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import (
    InferfleetError,
    JobNotFoundError,
    PublishUnconfirmedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.job import OnBusy

TOKENS = 3
STEP_S = 0.4
"""Longer than a flush of the journal, so that each token is a write of its own."""


SLOW_STEP_S = 20.0
"""So a worker that was stopped wakes up while another one runs its job."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """``scripts`` gives each producer what it does, for a variant; there are ``variants`` of them."""

    variants: int
    scripts: Callable[[World, int], dict[str, Coroutine[Any, Any, None]]]


def job(name: str, **fields: Any) -> Job:
    """A job whose answer is known."""
    kind = fields.pop("kind", Kind.PLAIN)
    extra = fields.pop("body", {})
    return Job(
        body={
            "messages": [{"role": "user", "content": f"say {name}"}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "simulated": {"tokens": TOKENS, "step_delay_s": STEP_S},
            **extra,
        },
        pool=POOL,
        metadata={KIND: kind, "name": name},
        **fields,
    )


async def submit(world: World, producer: str, work: Job) -> Call:
    """Submit, note what came of it, and follow what was accepted."""
    call = Call(actor=producer, job=work, began=world.loop.steps)
    world.history.calls.append(call)
    try:
        call.got = await world.fleets[producer].submit(work)
        world.run_in(producer, follow(world, producer, call.got))
    except InferfleetError as error:
        call.error = error
    except Exception as error:
        call.error = error
        world.history.problems.append(("raw_error", work.metadata["name"], repr(error)))
    call.ended = world.loop.steps
    return call


async def insist(world: World, producer: str, work: Job) -> Call:
    """Submit under a key, as often as it takes to know what came of it."""
    while True:
        call = await submit(world, producer, work)
        if not isinstance(call.error, (PublishUnconfirmedError, ServiceUnreachableError)):
            return call
        await asyncio.sleep(1.0)


async def follow(world: World, producer: str, work: Job) -> None:
    """Read a job's stream if it has one, and its result."""
    fleet, seen = world.fleets[producer], Seen(work.id)
    world.history.seen.append(seen)
    after = BEGINNING
    while True:
        try:
            if work.stream:
                async for line in fleet.stream(work, after=after):
                    seen.entries.append(line.entry)
                    after = line.id
            seen.result = await fleet.wait(work)
            return
        except ServiceUnreachableError:
            await asyncio.sleep(1.0)
        except Exception as error:
            seen.error = error
            return


async def cancel(world: World, producer: str, work: Job) -> None:
    """Cancel, and try again until there is an answer."""
    world.history.cancels.add(work.id)
    while True:
        try:
            if await world.fleets[producer].cancel(work) is JobState.CANCELLED:
                world.history.cancelled[work.id] = world.loop.now
            return
        except JobNotFoundError:
            return
        except ServiceUnreachableError:
            await asyncio.sleep(1.0)


def _plain(world: World, variant: int) -> dict[str, Coroutine[Any, Any, None]]:
    fails = {"fail": "engine_error", "fail_times": 1, "after_tokens": 1} if variant & 2 else {}
    whole = {"n": 2, "temperature": 1} if variant & 4 else {}
    extra = {"simulated": {"tokens": TOKENS, "step_delay_s": STEP_S, **fails}, **whole}
    streamed = job("a", stream=True, body=extra)
    doomed = {"simulated": {"tokens": TOKENS, "fail": "out_of_memory", "after_tokens": 1}}
    stopped = (
        job("b", kind=Kind.DOOMED, max_attempts=1, body=doomed)
        if variant & 8
        else job("b", kind=Kind.CANCELLED)
    )

    async def first() -> None:
        await submit(world, "p1", streamed)

    async def second() -> None:
        call = await submit(world, "p2", stopped)
        if call.got is not None and variant & 1 and not variant & 8:
            await asyncio.sleep(0.6)
            await cancel(world, "p2", stopped)

    return {"p1": first(), "p2": second()}


def _slow(world: World, variant: int) -> dict[str, Coroutine[Any, Any, None]]:
    whole = {"n": 2, "temperature": 1} if variant & 1 else {}
    simulated = {"tokens": 2, "step_delay_s": SLOW_STEP_S}

    async def first() -> None:
        await submit(world, "p1", job("a", stream=True, body={"simulated": simulated, **whole}))

    return {"p1": first()}


def _expires(world: World, variant: int) -> dict[str, Coroutine[Any, Any, None]]:
    expires_at = datetime.fromtimestamp(EPOCH_S + world.loop.now, UTC) + timedelta(
        seconds=(0.3, 1.0)[variant & 1]
    )
    late = job("a", kind=Kind.EXPIRING, expires_at=expires_at)
    other = job("b", kind=Kind.CANCELLED if variant & 4 else Kind.PLAIN)

    async def first() -> None:
        if not variant & 2:
            # Both places of both workers are taken.
            for name in "cdef":
                await submit(world, "p1", job(name))
        await submit(world, "p1", late)

    async def second() -> None:
        # Behind all of p1's.
        await asyncio.sleep(0.1)
        call = await submit(world, "p2", other)
        if call.got is not None and variant & 4:
            await cancel(world, "p2", other)

    return {"p1": first(), "p2": second()}


def _later(world: World, variant: int) -> dict[str, Coroutine[Any, Any, None]]:
    not_before = datetime.fromtimestamp(EPOCH_S + world.loop.now, UTC) + timedelta(
        seconds=(0.6, 3.3)[variant & 1]
    )
    kind = Kind.CANCELLED if variant & 4 else Kind.PLAIN

    def later() -> Job:
        return job("a", kind=kind, not_before=not_before, idempotency_key=world.key)

    async def first() -> None:
        call = await submit(world, "p1", later())
        if call.got is not None and variant & 4:
            await asyncio.sleep(0.5)
            await cancel(world, "p1", call.got)

    async def second() -> None:
        await submit(world, "p2", job("b"))
        if variant & 2:
            await insist(world, "p2", later())

    return {"p1": first(), "p2": second()}


def _after(world: World, variant: int) -> dict[str, Coroutine[Any, Any, None]]:
    async def first() -> None:
        call = await insist(world, "p1", job("a", idempotency_key=world.key))
        if call.got is None:
            return
        others = [call.got.id]
        if variant & 1:
            more = await submit(world, "p1", job("c"))
            others += [more.got.id] if more.got is not None else []
        await submit(world, "p1", job("b", stream=bool(variant & 2), after=tuple(others)))

    async def second() -> None:
        await submit(world, "p2", job("d"))

    return {"p1": first(), "p2": second()}


def _key(world: World, variant: int) -> dict[str, Coroutine[Any, Any, None]]:
    def mine() -> Job:
        return job("a", idempotency_key=world.key)

    async def first() -> None:
        if variant & 4:
            # Its submission is refused with certainty, perhaps after the other caller has joined it.
            world.apply(Event(0, EventKind.CUT, "p1-broker", seconds=1.0))
        await (insist if variant & 1 else submit)(world, "p1", mine())

    async def second() -> None:
        if variant & 2:
            await asyncio.sleep(0.01)
        await insist(world, "p2", mine())

    return {"p1": first(), "p2": second()}


_ON_BUSY = (OnBusy.ENQUEUE, OnBusy.REJECT, OnBusy.INTERRUPT, OnBusy.ROLLBACK)


_FORCED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    "tool_choice": "required",
}
"""Such an answer cannot be continued by another worker."""


def _session(world: World, variant: int) -> dict[str, Coroutine[Any, Any, None]]:
    on_busy = _ON_BUSY[variant & 3]
    forced = _FORCED if variant & 4 else {}

    def turn(name: str, on_busy: OnBusy = OnBusy.ENQUEUE, body: Any = None, **fields: Any) -> Job:
        # Whoever is behind may stop it.
        kind = Kind.CANCELLED if variant & 2 else Kind.PLAIN
        return job(name, kind=kind, session_id=world.session, on_busy=on_busy, body=body or {}, **fields)

    async def first() -> None:
        await submit(world, "p1", turn("t1", body=forced, stream=True))
        await submit(world, "p1", turn("t3"))

    async def second() -> None:
        await asyncio.sleep(0.5 * (variant >> 3 & 1))
        await submit(world, "p2", turn("t2", on_busy))

    return {"p1": first(), "p2": second()}


def _session_key(world: World, variant: int) -> dict[str, Coroutine[Any, Any, None]]:
    on_busy = _ON_BUSY[variant & 3]
    kind = Kind.CANCELLED if variant & 2 else Kind.PLAIN

    def shared() -> Job:
        return job("t2", kind=kind, session_id=world.session, on_busy=on_busy, idempotency_key=world.key)

    async def first() -> None:
        await submit(world, "p1", job("t1", kind=kind, session_id=world.session))
        await (insist if variant & 4 else submit)(world, "p1", shared())

    async def second() -> None:
        await insist(world, "p2", shared())
        await submit(world, "p2", job("t3", kind=kind, session_id=world.session))

    return {"p1": first(), "p2": second()}


SCENARIOS = {
    "plain": Scenario(16, _plain),
    "slow": Scenario(2, _slow),
    "expires": Scenario(8, _expires),
    "later": Scenario(8, _later),
    "after": Scenario(4, _after),
    "key": Scenario(8, _key),
    "session": Scenario(16, _session),
    "sessionkey": Scenario(8, _session_key),
}


async def probe(world: World, work: Job) -> Call:
    """Submit something afterwards, when all is well."""
    with suppress(TimeoutError):
        async with asyncio.timeout(200):
            call: Call = await world.run_in("p3", submit(world, "p3", work))
            return call
    return world.history.calls[-1]
