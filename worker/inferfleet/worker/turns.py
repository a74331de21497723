"""The worker's side of turns: reads the history, and adds the answer to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, assert_never

import orjson

from inferfleet.schemas import Failure, FailureCode, Job, JobState, Usage
from inferfleet.schemas.endpoints import session_problem
from inferfleet.schemas.errors import SessionError
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.merge_patch import merge_patch
from inferfleet.schemas.passages import with_passages
from inferfleet.schemas.session import (
    Turn,
    estimated_tokens,
    history,
    kept_answer,
    tool_problem,
    with_answer,
)
from inferfleet.wire.redis.session_histories import AppendStatus, BeginStatus, SessionHistories, turns_lost
from inferfleet.wire.redis.session_records import SessionRecords
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.log import about
from inferfleet.worker.outcomes import Defer, Finish, GiveUp, HandOver, Outcome, Park
from inferfleet.worker.ports import Completion

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The body that the engine gets: the job's, with the history of its session in front."""

    body: dict[str, Any]


class Turns:
    """The turns that run here. A job without a session passes through unchanged."""

    def __init__(
        self,
        histories: SessionHistories,
        session_records: SessionRecords,
        *,
        warm: Callable[[], str] = lambda: "",
    ) -> None:
        self._histories = histories
        self._session_records = session_records
        self._warm = warm
        """Returns the routing key by which the next turn gets here, or ``""`` if it should go anywhere."""

    async def begin(self, run: JobRun) -> Prompt | Outcome:
        """Begin an attempt. Return its prompt, or another outcome."""
        job = run.job
        body = with_passages(job.body, job.passages) if job.passages else job.body
        if job.session_id is None:
            return Prompt(body)
        if problem := session_problem(job.endpoint):
            return _invalid(problem)
        begun = await self._histories.begin(job, fence=run.fence, witness=run.delivery.witness)
        match begun.status:
            case BeginStatus.TAKEN:
                return Park()
            case BeginStatus.FENCED:
                # A later attempt has the turn. If Redis lost the record, the next attempt becomes that one.
                return HandOver(refund=True)
            case BeginStatus.ANSWERED:
                return _recalled(run, begun.answer)
            case BeginStatus.LOST:
                return _lost(
                    turns_lost(job.session_id, counted=begun.turns, present=int(begun.answer or b"0"))
                )
            case BeginStatus.BEGUN:
                pass
            case _:
                assert_never(begun.status)
        turns = await self._histories.turns(job.session_id, max_tokens=begun.max_history_tokens)
        run.previous_turn = turns[-1].job_id if turns else None
        messages: list[dict[str, Any]] = body["messages"]
        past = history(turns, max_tokens=begun.max_history_tokens, new_messages=messages)
        run.history_tokens = past.tokens
        if problem := tool_problem(past.messages, messages):
            return _invalid(problem)
        return Prompt({**body, "messages": [*_instructions(job), *past.messages, *messages]})

    async def unless_answered(self, run: JobRun, refusal: Finish | GiveUp) -> Outcome:
        """End a job that may not run again. It has succeeded nevertheless if its turn is in the history."""
        if run.job.session_id is None or session_problem(run.job.endpoint):
            return refusal
        begun = await self._histories.begin(run.job, fence=run.fence, witness=run.delivery.witness)
        return _recalled(run, begun.answer) if begun.status is BeginStatus.ANSWERED else refusal

    async def complete(self, run: JobRun, completion: Completion) -> Outcome:
        """Add an answered turn to its session."""
        finish = Finish(JobState.SUCCEEDED, completion)
        if run.job.session_id is None:
            return finish
        return await self._append(run, completion, finish, interrupted=False)

    async def interrupt(self, run: JobRun, finish: Finish) -> Outcome:
        """Add a stopped turn with its partial answer to its session."""
        partial = _partial(run)
        return await self._append(run, partial, replace(finish, completion=partial), interrupted=True)

    async def _append(
        self, run: JobRun, completion: Completion, finish: Finish, *, interrupted: bool
    ) -> Outcome:
        job = run.job
        if job.session_id is None:
            return finish
        # The engine reports the prompt's tokens only when it completes the answer.
        tokens = (
            estimated_tokens(job.body["messages"]) + completion.usage.completion_tokens
            if interrupted
            else completion.usage.total_tokens - run.history_tokens - _passing_tokens(job)
        )
        turn = Turn(
            job_id=job.id,
            messages=with_answer(job.body, kept_answer(completion.response)),
            at=self._histories.clock.now(),
            model=completion.response.get("model") or "",
            usage=completion.usage,
            tokens=max(0, tokens),
            interrupted=interrupted,
        )
        while True:
            state: tuple[int, Any] | None = None
            if job.state_patch is not None and not interrupted:
                try:
                    version, value = await self._session_records.state(job.session_id)
                except SessionError as error:
                    return _lost(str(error))
                state = version, merge_patch(value, job.state_patch)
            appended = await self._histories.append(
                job,
                fence=run.fence,
                turn=turn,
                answer=_encode(finish, run),
                state=state,
                warm=self._warm(),
            )
            match appended:
                case AppendStatus.OK:
                    return finish
                case AppendStatus.TAKEN:
                    # Redis lost the session, and another turn may own it now: restart after that turn.
                    # The attempt is charged, because the session may be lost at each attempt.
                    logger.warning(
                        "Redis lost the session; restarting its turn", extra=about(job, attempt=run.attempt)
                    )
                    return Park(refund=False)
                case AppendStatus.FENCED:
                    logger.warning("another attempt has the turn", extra=about(job, attempt=run.attempt))
                    return Defer()
                case AppendStatus.STATE_CONFLICT:
                    continue
                case _:
                    assert_never(appended)


def _instructions(job: Job) -> list[dict[str, Any]]:
    """Return the messages of a prompt that do not join the history."""
    return [{"role": "system", "content": job.instructions}] if job.instructions else []


def _passing_tokens(job: Job) -> int:
    """Estimate the tokens of a prompt that do not join the history: instructions, and passages."""
    passages = [passage.model_dump() for passage in job.passages or ()]
    return estimated_tokens([*_instructions(job), *passages])


def _invalid(message: str) -> Finish:
    return Finish(JobState.FAILED, failure=Failure(code=FailureCode.INVALID_REQUEST, message=message[:4096]))


def _lost(message: str) -> Finish:
    failure = Failure(code=FailureCode.SESSION_CONFLICT, message=message[:4096])
    return Finish(JobState.FAILED, failure=failure)


def _partial(run: JobRun) -> Completion:
    """Return the partial answer of an interrupted run, which may be empty."""
    return Completion(response=run.cut_response(), usage=run.answer.usage)


def _encode(finish: Finish, run: JobRun) -> bytes:
    """Encode what the next attempt needs to commit a turn if this worker dies before it has."""
    assert finish.completion is not None  # noqa: S101 - what is added to a history is an answer
    journaled, unwritten = run.answer.unwritten
    return orjson.dumps(
        {
            "state": finish.state,
            "failure": finish.failure.model_dump(mode="json") if finish.failure else None,
            "response": finish.completion.response,
            "usage": finish.completion.usage.model_dump(),
            "journaled": journaled,
            "unwritten": [chunk.model_dump(exclude_none=True) for chunk in unwritten],
        }
    )


def _recalled(run: JobRun, answer: bytes) -> Finish:
    """Return the end that an earlier attempt could not commit, with the tokens that only it had."""
    value: Mapping[str, Any] = orjson.loads(answer)
    chunks = tuple(TokenChunk.model_validate(chunk) for chunk in value.get("unwritten", ()))
    run.answer.recall(value.get("journaled", 0), chunks)
    return Finish(
        JobState(value["state"]),
        Completion(response=value["response"], usage=Usage.model_validate(value["usage"])),
        Failure.model_validate(value["failure"]) if value["failure"] else None,
    )
