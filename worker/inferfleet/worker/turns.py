"""The turns of sessions, as a worker sees them: bring the history, add the answer, let the next one run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, assert_never

import orjson

from inferfleet.schemas import Failure, FailureCode, JobState, Usage
from inferfleet.schemas.merge_patch import merge_patch
from inferfleet.schemas.session import Turn, history, unanswered_tool_calls
from inferfleet.wire.sessions import Appended, Begin, Sessions
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.outcomes import Drop, Finish, Outcome, Park
from inferfleet.worker.ports import Completion

logger = logging.getLogger(__name__)

KEPT_FIELDS = ("role", "content", "tool_calls", "refusal", "reasoning_content", "name", "audio")
"""What a history keeps of an assistant's message."""


class Turns:
    """Turns that run here. Without a session a job passes through unchanged."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def begin(self, run: JobRun) -> dict[str, Any] | Outcome:
        """Begin an attempt: the body with the history before its new messages, or what to do instead."""
        job = run.job
        if job.session_id is None:
            return job.body
        begun = await self._sessions.begin(job, token=run.fence.token)
        match begun.begin:
            case Begin.TAKEN:
                return Park()
            case Begin.ANSWERED:
                return Finish(JobState.SUCCEEDED, _decode(begun.answer))
            case Begin.BEGUN:
                pass
            case _:
                assert_never(begun.begin)
        turns = await self._sessions.turns(job.session_id, max_tokens=begun.max_history_tokens)
        past = history(turns, max_tokens=begun.max_history_tokens)
        run.history_tokens = sum(turn.tokens for turn in turns)
        messages: list[dict[str, Any]] = job.body["messages"]
        if problem := _tool_problem(past, messages):
            return Finish(JobState.FAILED, failure=Failure(code=FailureCode.INVALID_REQUEST, message=problem))
        return {**job.body, "messages": [*past, *messages]}

    async def complete(self, run: JobRun, completion: Completion) -> Outcome:
        """Add an answered turn to its session."""
        return await self._append(run, completion, Finish(JobState.SUCCEEDED, completion), interrupted=False)

    async def interrupt(self, run: JobRun, finish: Finish) -> Outcome:
        """Add a turn that was stopped, with what it had said, to its session."""
        partial = _partial(run)
        return await self._append(run, partial, replace(finish, completion=partial), interrupted=True)

    async def _append(
        self, run: JobRun, completion: Completion, finish: Finish, *, interrupted: bool
    ) -> Outcome:
        job = run.job
        if job.session_id is None:
            return finish
        answer: dict[str, Any] = completion.response["choices"][0]["message"]
        turn = Turn(
            job_id=job.id,
            messages=(*job.body["messages"], {key: answer[key] for key in KEPT_FIELDS if answer.get(key)}),
            at=datetime.now(UTC),
            model=completion.response.get("model") or "",
            usage=completion.usage,
            tokens=max(0, completion.usage.total_tokens - run.history_tokens),
            interrupted=interrupted,
        )
        while True:
            state: tuple[int, Any] | None = None
            if job.state_patch is not None and not interrupted:
                version, value = await self._sessions.state(job.session_id)
                state = version, merge_patch(value, job.state_patch)
            appended = await self._sessions.append(
                job, token=run.fence.token, turn=turn, answer=_encode(completion), state=state
            )
            match appended:
                case Appended.OK:
                    return finish
                case Appended.FENCED:
                    logger.warning("another attempt has the turn", extra={"job_id": job.id})
                    return Drop()
                case Appended.STATE_CONFLICT:
                    continue
                case _:
                    assert_never(appended)


def _tool_problem(past: tuple[dict[str, Any], ...], messages: list[dict[str, Any]]) -> str | None:
    """What is wrong with the tool messages a turn begins with."""
    expected = unanswered_tool_calls(past)
    for message in messages:
        if message.get("role") != "tool":
            break
        call = message.get("tool_call_id")
        if call not in expected:
            wanted = ", ".join(sorted(expected)) or "none"
            return (
                f"body.messages: a tool result for call {call!r}, which the session does not wait for "
                f"(unanswered calls: {wanted})"
            )
    return None


def _partial(run: JobRun) -> Completion:
    """A chat response of what an interrupted run has said so far."""
    message = {"role": "assistant", "content": run.text}
    choice = {"index": 0, "message": message, "finish_reason": "interrupted"}
    usage = Usage(completion_tokens=run.tokens)
    return Completion(
        response={
            "id": f"chatcmpl-{run.job.id}",
            "object": "chat.completion",
            "created": int(run.started_at.timestamp()),
            "choices": [choice],
            "usage": {"prompt_tokens": 0, "completion_tokens": run.tokens, "total_tokens": run.tokens},
        },
        usage=usage,
    )


def _encode(completion: Completion) -> bytes:
    return orjson.dumps({"response": completion.response, "usage": completion.usage.model_dump()})


def _decode(answer: bytes) -> Completion:
    value: Mapping[str, Any] = orjson.loads(answer)
    return Completion(response=value["response"], usage=Usage.model_validate(value["usage"]))
