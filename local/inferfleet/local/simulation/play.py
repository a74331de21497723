"""Plays a schedule: the scenario with its faults, then a world that heals, then the judgement."""

from __future__ import annotations

import asyncio
import hashlib
import marshal
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from inferfleet.local.simulation import judge
from inferfleet.local.simulation.loop import StuckError
from inferfleet.local.simulation.plan import Plan
from inferfleet.local.simulation.scenarios import SCENARIOS, job, probe
from inferfleet.local.simulation.world import SWEEP_INTERVAL_S, Call, World
from inferfleet.schemas import Job
from inferfleet.schemas.errors import SessionBusyError
from inferfleet.schemas.job import OnBusy, new_job_id
from inferfleet.schemas.names import job_key, result_key

FAULTS_S = 90.0
"""How long things go wrong, at most."""

HEALED_S = 300.0
"""How long everything may take afterwards: longer than every time limit and pause in the product."""

REST_S = 60.0
"""How long a message may be left behind by what has ended: the second one of a job waits for a lease."""


SOON_S = 5.0
"""How long a job may take in a world that is whole, before its workers sweep as often as by default."""

LEAP_S = 4.0
"""How far apart the moments are at which anybody runs while all wait for a sweep: less than a time limit of
Redis, and than a lease. Meanwhile idle processes would look at their clocks all the time."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a schedule. ``steps`` are those in which the plan could act, ``all_steps`` all."""

    plan: Plan
    before: tuple[Plan, ...]
    """What was played before it in the same world."""
    findings: tuple[str, ...]
    steps: int
    all_steps: int
    trace: str
    """A hash of every step: equal for equal runs."""

    @property
    def schedule(self) -> str:
        """All that plays it again."""
        return "+".join(map(str, (*self.before, self.plan)))


def play_in_a_row(world: World, plans: Iterable[Plan]) -> Iterator[Played]:
    """Play schedules in a world that was built. One that breaks a promise is the last."""
    before: tuple[Plan, ...] = ()
    for plan in plans:
        played = play(world, plan, before=before)
        yield played
        if played.findings:
            return
        before = (*before, plan)


def play(world: World, plan: Plan, *, before: tuple[Plan, ...] = ()) -> Played:
    """Play a schedule in a world that was built, or in which others were played ``before``."""
    # A fork has seeded it anew.
    random.seed(0)
    steps = first = 0

    async def whole() -> None:
        nonlocal steps, first
        await world.begin()
        world.loop.trace = []
        first = world.loop.steps
        calls = await _go_wrong(world, plan, first)
        steps = world.loop.steps - first
        await _heal(world, calls, sweep_s=3 * SWEEP_INTERVAL_S if plan.loses else 0.0)

    try:
        world.loop.run_until_complete(whole())
    except StuckError as error:
        world.history.problems.append(("no_end", "world", str(error)))
    trace = world.loop.trace or []
    return Played(
        plan=plan,
        before=before,
        findings=tuple(judge.findings(world, plan)),
        steps=steps,
        all_steps=world.loop.steps - first,
        # The second version of the format does not depend on which objects are shared.
        trace=hashlib.sha256(marshal.dumps(trace, 2)).hexdigest()[:16],
    )


async def _go_wrong(world: World, plan: Plan, first: int) -> dict[str, asyncio.Task[None]]:
    until = world.loop.now + FAULTS_S
    scripts = SCENARIOS[plan.scenario].scripts(world, plan.variant)
    world.follow(plan, first=first)
    tasks = {name: world.run_in(name, script) for name, script in scripts.items()}
    await world.in_time(lambda: _over(world, tasks), FAULTS_S)
    # What was accepted is under way; let the plan go on until it has ended, or the time is over. What a
    # service has lost does not end by itself once the world is whole.
    await world.in_time(
        lambda: _ended(world) or (plan.loses and world.is_whole()), max(0.0, until - world.loop.now)
    )
    return tasks


async def _heal(world: World, tasks: dict[str, asyncio.Task[None]], *, sweep_s: float) -> None:
    """Let everything end; something may wait for a sweep, which takes up to ``sweep_s``."""
    within_s = HEALED_S + sweep_s
    world.heal()
    problems = world.history.problems
    if not await world.in_time(world.has_queue, HEALED_S):
        problems.append(("no_queue", "world", "nobody declares the deleted queue again"))
    if not await world.in_time(lambda: _over(world, tasks), within_s):
        problems += [
            ("never_returns", name, "a call has no end") for name, task in tasks.items() if not task.done()
        ]
    for name, task in tasks.items():
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            problems.append(("raw_error", name, repr(error)))
    waits = sweep_s and not await world.in_time(lambda: _ended(world), SOON_S)
    if waits:
        world.hurry_sweeps(True)
        if not await world.in_time(lambda: _ended(world), REST_S):
            world.loop.leap_s = LEAP_S
    # Without anybody's help, unless Redis has lost the job itself.
    if not await world.in_time(lambda: _ended(world), within_s):
        problems += [
            ("stuck", job_id, "it was accepted, and does not end by itself")
            for job_id in accepted(world)
            if not _has_ended(world, job_id) and not (world.history.lost and _is_unknown(world, job_id))
        ]
    world.loop.leap_s = 0.0
    if waits:
        world.hurry_sweeps(False)
    if problems:
        # Whoever waits for what never comes does so for many steps.
        return
    await _probe(world)
    if not await world.in_time(lambda: not world.waiting(), REST_S):
        problems.append(("leftover_message", "queue", f"{world.waiting()} messages are left"))
    if not await world.settled():
        problems.append(("not_ready", "world", "a process is not connected again"))


async def _probe(world: World) -> None:
    """What the others have left must work for somebody new."""
    works: list[Job] = []
    jobs = [call.job for call in world.history.calls]
    if any(each.idempotency_key for each in jobs):
        keyed = next(each for each in jobs if each.idempotency_key == world.key)
        works.append(keyed.model_copy(update={"id": new_job_id()}))
    if any(each.session_id for each in jobs):
        works.append(job("probe-turn", session_id=world.session, body=_AT_ONCE))
    for work in works or [job("probe", body=_AT_ONCE)]:
        call = await probe(world, work)
        # Somebody's turn may run still, of whom nobody knows what he was told. The last probe waits for it.
        refusal = call.error and (call.error.__cause__ or call.error)
        busy = work.on_busy is OnBusy.REJECT and isinstance(refusal, SessionBusyError)
        if call.got is None and not busy:
            world.history.problems.append(
                ("probe_refused", work.metadata["name"], repr(call.error or "no answer"))
            )
    await world.in_time(lambda: _ended(world), HEALED_S)


_AT_ONCE: dict[str, Any] = {"max_tokens": 1, "simulated": {"tokens": 1}}


def _over(world: World, tasks: dict[str, asyncio.Task[None]]) -> bool:
    return all(task.done() or not world.actors[name].alive for name, task in tasks.items())


def _ended(world: World) -> bool:
    return all(_has_ended(world, job_id) for job_id in accepted(world))


def _has_ended(world: World, job_id: str) -> bool:
    return bool(world.redis.store.run([b"EXISTS", result_key(job_id).encode()]))


def _is_unknown(world: World, job_id: str) -> bool:
    return not world.redis.store.run([b"EXISTS", job_key(job_id).encode()])


def accepted(world: World) -> dict[str, Call]:
    """The jobs that somebody was told are accepted, and the first such call of each."""
    calls: dict[str, Call] = {}
    for call in world.history.calls:
        if call.got is not None:
            calls.setdefault(call.got.id, call)
    return calls


__all__ = ["Played", "accepted", "play", "play_in_a_row"]
