"""Plays one schedule: the scenario with its faults, then a world that heals, then the judgement."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass, field

from inferfleet.local.simulation import judge
from inferfleet.local.simulation.loop import StuckError
from inferfleet.local.simulation.plan import Plan
from inferfleet.local.simulation.scenarios import KEY, SCENARIOS, SESSION, insist, job, probe
from inferfleet.local.simulation.world import Call, World
from inferfleet.schemas.errors import SessionBusyError
from inferfleet.schemas.job import OnBusy, new_job_id
from inferfleet.schemas.names import result_key

FAULTS_S = 90.0
"""How long things go wrong, at most."""

HEALED_S = 300.0
"""How long everything may take afterwards: longer than every time limit and pause in the product."""

REST_S = 60.0
"""How long a message may be left behind by what has ended: the second one of a job waits for a lease."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a schedule. ``steps`` are those in which the plan could act, ``all_steps`` all."""

    plan: Plan
    findings: tuple[str, ...]
    steps: int
    all_steps: int
    trace: str
    """A hash of every step: equal for equal runs."""
    sources: tuple[str, ...] = field(default=(), repr=False)
    """Whose turn each step was, while the plan could act."""


def play(world: World, plan: Plan, *, trace: bool = False) -> Played:
    """Play a schedule in a world that was built, and is of no use afterwards."""
    # A fork has seeded it anew.
    random.seed(0)
    world.loop.trace = []
    first = world.loop.steps
    steps = 0

    async def whole() -> None:
        nonlocal steps
        calls = await _go_wrong(world, plan, first)
        steps = world.loop.steps - first
        await _heal(world, calls)

    try:
        world.loop.run_until_complete(whole())
    except StuckError as error:
        world.history.problems.append(("no_end", "world", str(error)))
    if trace:
        print("\n".join(world.loop.trace))  # noqa: T201
    return Played(
        plan=plan,
        findings=tuple(judge.findings(world, plan)),
        steps=steps,
        all_steps=world.loop.steps - first,
        sources=tuple(line.split()[1] for line in world.loop.trace[:steps]),
        trace=hashlib.sha256("\n".join(world.loop.trace).encode()).hexdigest()[:16],
    )


async def _go_wrong(world: World, plan: Plan, first: int) -> dict[str, asyncio.Task[None]]:
    scripts = SCENARIOS[plan.scenario].scripts(world, plan.variant)
    world.follow(plan, first=first)
    tasks = {name: world.run_in(name, script) for name, script in scripts.items()}
    await world.in_time(lambda: _over(world, tasks), FAULTS_S)
    # What was accepted is under way; let the plan go on until it has ended, or the time is over.
    await world.in_time(lambda: _ended(world), max(0.0, FAULTS_S - world.loop.now))
    return tasks


async def _heal(world: World, tasks: dict[str, asyncio.Task[None]]) -> None:
    world.heal()
    problems = world.history.problems
    if not await world.in_time(lambda: _over(world, tasks), HEALED_S):
        problems += [
            ("never_returns", name, "a call has no end") for name, task in tasks.items() if not task.done()
        ]
    for name, task in tasks.items():
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            problems.append(("raw_error", name, repr(error)))
    # Without anybody's help; but after a loss somebody may have to touch what was lost.
    if not await world.in_time(lambda: _ended(world), HEALED_S) and not world.history.lost:
        problems += [
            ("stuck", job_id, "it was accepted, and does not end by itself")
            for job_id in accepted(world)
            if not _has_ended(world, job_id)
        ]
    await _probe(world)
    if not await world.in_time(lambda: not world.waiting(), REST_S):
        problems.append(("leftover_message", "queue", f"{world.waiting()} messages are left"))


async def _probe(world: World) -> None:
    """What the others have left must work for somebody new."""
    works = [job("probe")]
    jobs = [call.job for call in world.history.calls]
    if any(each.idempotency_key for each in jobs):
        keyed = next(each for each in jobs if each.idempotency_key == KEY)
        works.append(keyed.model_copy(update={"id": new_job_id()}))
    if any(each.session_id for each in jobs):
        works.append(job("probe-turn", session_id=SESSION))
    for work in works:
        call = await probe(world, work)
        # Somebody's turn may run still, of whom nobody knows what he was told. The last probe waits for it.
        busy = work.on_busy is OnBusy.REJECT and isinstance(call.error, SessionBusyError)
        if call.got is None and not busy:
            world.history.problems.append(
                ("probe_refused", work.metadata["name"], repr(call.error or "no answer"))
            )
    await world.in_time(lambda: _ended(world), HEALED_S)


def _over(world: World, tasks: dict[str, asyncio.Task[None]]) -> bool:
    return all(task.done() or not world.actors[name].alive for name, task in tasks.items())


def _ended(world: World) -> bool:
    return all(_has_ended(world, job_id) for job_id in accepted(world))


def _has_ended(world: World, job_id: str) -> bool:
    return bool(world.redis.store.run([b"EXISTS", result_key(job_id).encode()]))


def accepted(world: World) -> dict[str, Call]:
    """The jobs that somebody was told are accepted, and the first such call of each."""
    calls: dict[str, Call] = {}
    for call in world.history.calls:
        if call.got is not None:
            calls.setdefault(call.got.id, call)
    return calls


__all__ = ["Played", "accepted", "insist", "play"]
