"""Looks at what came of a schedule. What the chaos suite checks, and what only a small world can know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, permutations
from typing import Any

import orjson

from inferfleet.local.chaos import checker
from inferfleet.local.chaos.history import History as ChaosHistory
from inferfleet.local.chaos.history import JobHistory
from inferfleet.local.chaos.workload import KIND, Kind
from inferfleet.local.simulation.determinism import EPOCH_S
from inferfleet.local.simulation.plan import Kind as PlanKind
from inferfleet.local.simulation.plan import Plan
from inferfleet.local.simulation.world import Call, World
from inferfleet.schemas import Job, JobState, Result
from inferfleet.schemas.errors import (
    JobDataLostError,
    JobNotFoundError,
    PublishUnconfirmedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.names import job_key, journal_key, result_key, turns_key
from inferfleet.schemas.session import Turn
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.journal_lines import parse_line

LEASE_S = WorkerSettings.model_fields["lease_s"].default


def findings(world: World, plan: Plan) -> Iterator[str]:
    """Say all that must not be: kind, subject, detail."""
    names = {job.id: str(job.metadata["name"]) for job in _jobs(world)}
    found = [
        *world.history.problems,
        *_checked(world, plan),
        *_refused(world),
        *_cancelled(world),
        *_turns(world),
        *_clients(world),
        *_runs(world, plan),
        *_early(world, plan),
        *_buried(world),
    ]
    for kind, subject, detail in found:
        for job_id, name in names.items():
            detail = detail.replace(job_id, name)
        yield f"{kind} {names.get(subject, subject)}: {detail}"


def _stored(world: World, job_id: str) -> Result | None:
    stored: Any = world.redis.store.run([b"GET", result_key(job_id).encode()])
    return Result.model_validate_json(stored) if stored else None


def _jobs(world: World) -> list[Job]:
    return [call.got or call.job for call in world.history.calls]


def _accepted(world: World) -> dict[str, Job]:
    return {call.got.id: call.got for call in world.history.calls if call.got is not None}


def _checked(world: World, plan: Plan) -> Iterator[tuple[str, str, str]]:
    """What the checker of the chaos suite says."""
    history, store = world.history, world.redis.store
    past = dict(_past(world))
    jobs: list[JobHistory] = []
    for job_id, job in _accepted(world).items():
        seen = [each for each in history.seen if each.job_id == job_id]
        read = tuple(
            tuple(each.entries) for each in seen if each.result is not None or each.error is not None
        )
        lines: Any = store.run([b"XRANGE", journal_key(job_id).encode(), b"-", b"+"])
        jobs.append(
            JobHistory(
                job=job.model_copy(
                    update={
                        "body": {**job.body, "messages": [*past.get(job_id, ()), *job.body["messages"]]},
                        # A reader that died with its process has seen no end.
                        "stream": job.stream and bool(read),
                    }
                ),
                journal=tuple(
                    parse_line(dict(zip(fields[::2], fields[1::2], strict=True))) for _, fields in lines
                ),
                stored=_stored(world, job_id),
                seen=tuple(each.result for each in seen if each.result is not None),
                streams=read if job.stream else (),
                cancel_asked=job_id in history.cancels or job.metadata[KIND] == Kind.CANCELLED,
                lost_result=job_id in history.finished_before_loss,
            )
        )
    verdict = checker.check(
        ChaosHistory(jobs=tuple(jobs), dead_letters=tuple(world.dead_letters()), keys_lost=history.lost)
    )
    for finding in verdict.findings:
        gone = finding.violation is checker.Violation.NO_TERMINAL_RESULT and _gone(
            world, plan, finding.subject
        )
        if not history.lost or not (gone or finding.violation in _EXCUSED_BY_A_LOSS):
            yield finding.violation.value, finding.subject, finding.detail


def _gone(world: World, plan: Plan, job_id: str) -> bool:
    """Whether a job that Redis has lost was nowhere else.

    That is a turn that waited in its lane, a job that waited for others, or one whose message was lost, too.
    """
    waited = any(job.id == job_id and (job.session_id or job.after) for job in _jobs(world))
    purged = any(event.kind in {PlanKind.PURGE, PlanKind.DELETE} for event in plan.events)
    return (waited or purged) and not world.redis.store.run([b"EXISTS", job_key(job_id).encode()])


_EXCUSED_BY_A_LOSS = {
    checker.Violation.TWO_TERMINAL_RESULTS,
    checker.Violation.WRITE_AFTER_FENCE,
    checker.Violation.WRONG_TEXT,
    checker.Violation.STREAM_WITHOUT_END,
}


def _refused(world: World) -> Iterator[tuple[str, str, str]]:
    """A job that was refused never runs, and nobody has been told the contrary."""
    ran = {run.job_id for run in world.history.runs}
    for call in world.history.calls:
        if call.error is None or isinstance(call.error, PublishUnconfirmedError):
            continue
        others = [
            other
            for other in world.history.calls
            if other is not call and (other.job.id == call.job.id or _same_key(other.job, call.job))
        ]
        if not others and call.job.id in ran:
            yield "refused_job_ran", call.job.id, repr(call.error)
        # Its caller may submit it again, and others join that. Without Redis nobody knows whose key it is.
        again = any(other.job.id == call.job.id and other.began > call.ended for other in others)
        if not again and "Redis" not in str(call.error):
            # A later call may get this id from a copy of a claim that arrived late: then the job is its own.
            told = [
                other
                for other in others
                if other.got and call.job.id == other.got.id != other.job.id and other.began < call.ended
            ]
            if told and not world.history.lost:
                yield "refused_though_accepted", call.job.id, repr(call.error)
        before = [other for other in others if other.got and other.ended < call.began]
        if before and not isinstance(call.error, ServiceUnreachableError) and not world.history.lost:
            yield "refused_though_accepted", call.job.id, repr(call.error)
        if all(_is_refusal(other) and other.ended < call.ended for other in others) and call.job.id in ran:
            yield "refused_job_ran", call.job.id, repr(call.error)


def _cancelled(world: World) -> Iterator[tuple[str, str, str]]:
    """What has ended does not run any more."""
    for run in world.history.runs:
        told_s = world.history.cancelled.get(run.job_id)
        if told_s is not None and run.began_s > told_s and not world.history.lost:
            yield "cancelled_job_ran", run.job_id, f"cancelled at {told_s:.1f} s, ran at {run.began_s:.1f} s"


def _same_key(one: Job, other: Job) -> bool:
    return one.idempotency_key is not None and one.idempotency_key == other.idempotency_key


def _is_refusal(call: Call) -> bool:
    return call.error is not None and not isinstance(call.error, PublishUnconfirmedError)


def turns(world: World) -> list[Turn]:
    """The session's history as it is stored."""
    lines: Any = world.redis.store.run([b"LRANGE", turns_key(world.session).encode(), b"0", b"-1"])
    return [Turn.model_validate(orjson.loads(line)) for line in lines]


def _past(world: World) -> Iterator[tuple[str, list[Any]]]:
    """What each turn of the history has had before it."""
    before: list[Any] = []
    for turn in turns(world):
        yield turn.job_id, list(before)
        before += turn.messages


def _turns(world: World) -> Iterator[tuple[str, str, str]]:
    """Each turn that succeeded is in the history, once, in the order in which they were accepted."""
    if world.history.lost:
        return
    history = turns(world)
    for job_id, times in Counter(turn.job_id for turn in history).items():
        if times > 1:
            yield "turn_twice", job_id, f"it is {times} times in the history"
    place = {turn.job_id: number for number, turn in enumerate(history)}
    for job_id, job in _accepted(world).items():
        result = _stored(world, job_id)
        if job.session_id is None or result is None:
            continue
        if result.state is JobState.SUCCEEDED and job_id not in place:
            yield "turn_lost", job_id, "it succeeded and is not in the history"
        elif job_id in place:
            said = history[place[job_id]].messages[-1].get("content")
            if said != (result.text or ""):
                yield "turn_differs", job_id, f"history {said!r}, result {result.text!r}"
    # Several may submit the same turn: the first of them counts.
    began: dict[str, int] = {}
    ended: dict[str, int] = {}
    for call in world.history.calls:
        if call.got is not None:
            began.setdefault(call.got.id, call.began)
            ended.setdefault(call.got.id, call.ended)
    for one, other in permutations(place, 2):
        if one in ended and other in began and ended[one] < began[other] and place[one] > place[other]:
            yield "turn_order", other, f"it is before {one}, accepted earlier"
    refused = {call.job.id for call in world.history.calls if _is_refusal(call)} - set(_accepted(world))
    for job_id in refused & set(place):
        if all(call.job.idempotency_key is None for call in world.history.calls if call.job.id == job_id):
            yield "refused_turn_in_history", job_id, "its call was refused"


def _clients(world: World) -> Iterator[tuple[str, str, str]]:
    """Whoever follows an accepted job is told how it ended."""
    for seen in world.history.seen:
        if (seen.error is not None and not world.history.lost) or (
            seen.error is not None and not isinstance(seen.error, (JobDataLostError, JobNotFoundError))
        ):
            yield "reader_failed", seen.job_id, repr(seen.error)


def _runs(world: World, plan: Plan) -> Iterator[tuple[str, str, str]]:
    """While nothing lasts as long as a lease, no two workers run a job, and no start is counted twice."""
    if world.history.lost or any(event.seconds >= LEASE_S - 1 for event in plan.events):
        return
    runs = world.history.runs
    for one, other in combinations(runs, 2):
        if one.job_id == other.job_id and one.began_s <= other.began_s < one.ended_s:
            yield "two_at_once", one.job_id, f"{one.worker} and {other.worker} at {other.began_s:.1f} s"
    if any(event.kind in _MAY_DIE for event in plan.events):
        return
    for job_id, times in Counter(run.job_id for run in runs).items():
        lines: Any = world.redis.store.run([b"XRANGE", journal_key(job_id).encode(), b"-", b"+"])
        entries = [orjson.loads(fields[1]) for _, fields in lines]
        if (begun := sum(entry["kind"] == "running" for entry in entries)) > times:
            yield "counted_twice", job_id, f"{begun} attempts, and {times} runs"


def _early(world: World, plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Nobody starts a job before its time, unless Redis' clock jumps."""
    if any(event.kind is PlanKind.JUMP for event in plan.events):
        return
    for job in _jobs(world):
        if job.not_before is None:
            continue
        due_s = job.not_before.timestamp() - EPOCH_S
        for run in world.history.runs:
            if run.job_id == job.id and run.began_s < due_s - 0.001:
                yield "started_early", job.id, f"{run.worker} at {run.began_s:.3f} s, not {due_s:.3f} s"


_MAY_DIE = {PlanKind.CRASH, PlanKind.DRAIN, PlanKind.JUMP, PlanKind.STALL}


def _buried(world: World) -> Iterator[tuple[str, str, str]]:
    """What was given up is among the dead letters."""
    letters = world.dead_letters()
    for job_id, job in _accepted(world).items():
        if job.metadata[KIND] == Kind.DOOMED and _stored(world, job_id) and job_id not in letters:
            yield "no_dead_letter", job_id, "it was given up, and its message is nowhere"
