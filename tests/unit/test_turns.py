"""What a worker decides about a turn, for each answer that the session's scripts can give."""

from __future__ import annotations

from typing import Any, cast

import pytest

from inferfleet.schemas import Endpoint, Failure, FailureCode, Job, JobState, Usage
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.session import Turn
from inferfleet.wire.redis.attempts import Fence
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.session_histories import AppendStatus, BeginResult, BeginStatus, SessionHistories
from inferfleet.wire.redis.session_records import SessionRecords
from inferfleet.worker.broker import Delivery, Subscription
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.outcomes import Defer, Finish, GiveUp, HandOver, Park
from inferfleet.worker.ports import Completion
from inferfleet.worker.turns import Prompt, Turns

CANCELLED = Finish(JobState.CANCELLED, failure=Failure(code=FailureCode.CANCELLED, message="stop"))
QUESTION = {"role": "user", "content": "hi"}


class ScriptedSessions:
    """Answers as it is told, and remembers what was added."""

    def __init__(self) -> None:
        self.clock = RedisClock()
        self.begin_with = BeginStatus.BEGUN
        self.append_with = [AppendStatus.OK]
        self.past: tuple[Turn, ...] = ()
        self.states: list[tuple[int, Any]] = [(0, None)]
        self.answer = b""
        self.added: Turn | None = None
        self.added_state: tuple[int, Any] | None = None

    async def begin(self, job: Job, *, fence: Fence, witness: Job | None = None) -> BeginResult:
        return BeginResult(self.begin_with, self.answer, len(self.past), 0, None)

    async def turns(self, session_id: str, *, max_tokens: int | None = None) -> tuple[Turn, ...]:
        return self.past

    async def state(self, session_id: str) -> tuple[int, Any]:
        return self.states.pop(0)

    async def append(
        self,
        job: Job,
        *,
        fence: Fence,
        turn: Turn,
        answer: bytes,
        state: tuple[int, Any] | None,
        warm: str = "",
    ) -> AppendStatus:
        outcome = self.append_with.pop(0)
        if outcome is AppendStatus.OK:
            self.added, self.answer, self.added_state = turn, answer, state
        return outcome


@pytest.fixture
def sessions() -> ScriptedSessions:
    return ScriptedSessions()


@pytest.fixture
def turns(sessions: ScriptedSessions) -> Turns:
    return Turns(cast("SessionHistories", sessions), cast("SessionRecords", sessions))


def run_of(**job: Any) -> JobRun:
    delivery = Delivery(cast("Subscription", None), 1, b"", None, "", {})
    return JobRun(job=Job(**{"session_id": "s", "body": {"messages": [QUESTION]}, **job}), delivery=delivery)


def completion(message: dict[str, Any], *, prompt: int = 7, answer: int = 5) -> Completion:
    return Completion(
        response={"model": "m", "choices": [{"message": {"role": "assistant", **message}}]},
        usage=Usage(prompt_tokens=prompt, completion_tokens=answer),
    )


def a_call(arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


async def test_a_job_without_a_session_passes_unchanged(turns: Turns) -> None:
    run = run_of(session_id=None)
    answer = completion({"content": "yes"})
    assert await turns.begin(run) == Prompt(run.job.body)
    assert await turns.complete(run, answer) == Finish(JobState.SUCCEEDED, answer)
    assert await turns.unless_answered(run, CANCELLED) is CANCELLED


async def test_the_history_comes_before_the_new_messages(turns: Turns, sessions: ScriptedSessions) -> None:
    said = {"role": "assistant", "content": "hello"}
    job = run_of().job
    sessions.past = (Turn(job_id=job.id, messages=(QUESTION, said), at=job.submitted_at, tokens=9),)
    run = run_of()
    assert await turns.begin(run) == Prompt({"messages": [QUESTION, said, QUESTION]})
    await turns.complete(run, completion({"content": "yes"}, prompt=14))
    assert sessions.added is not None
    assert sessions.added.tokens == 14 + 5 - 9


@pytest.mark.parametrize(
    ("status", "outcome"), [(BeginStatus.TAKEN, Park()), (BeginStatus.FENCED, HandOver(refund=True))]
)
async def test_a_turn_that_may_not_begin_goes_elsewhere(
    turns: Turns, sessions: ScriptedSessions, status: BeginStatus, outcome: Park | HandOver
) -> None:
    sessions.begin_with = status
    assert await turns.begin(run_of()) == outcome
    assert await turns.unless_answered(run_of(), CANCELLED) is CANCELLED


async def test_only_a_chat_is_a_turn(turns: Turns) -> None:
    outcome = await turns.begin(run_of(endpoint=Endpoint.EMBEDDINGS, body={"input": "x"}))
    assert isinstance(outcome, Finish)
    assert outcome.failure is not None
    assert outcome.failure.code is FailureCode.INVALID_REQUEST


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_turn_that_was_added_ends_as_it_would_have_whoever_commits_it(
    turns: Turns, sessions: ScriptedSessions, interrupted: bool
) -> None:
    run = run_of()
    first = (
        await turns.interrupt(run, CANCELLED)
        if interrupted
        else await turns.complete(run, completion({"content": "yes"}))
    )
    sessions.begin_with = BeginStatus.ANSWERED
    assert await turns.begin(run_of()) == first
    refusal = GiveUp(Failure(code=FailureCode.TOO_MANY_ATTEMPTS, message="died"))
    assert await turns.unless_answered(run_of(), refusal) == first
    assert isinstance(first, Finish)
    assert first.state is (JobState.CANCELLED if interrupted else JobState.SUCCEEDED)


@pytest.mark.parametrize(
    ("appended", "outcome"), [(AppendStatus.TAKEN, Park(refund=False)), (AppendStatus.FENCED, Defer())]
)
async def test_a_turn_that_cannot_be_added_is_not_lost(
    turns: Turns, sessions: ScriptedSessions, appended: AppendStatus, outcome: Park | Defer
) -> None:
    sessions.append_with = [appended]
    assert await turns.complete(run_of(), completion({"content": "yes"})) == outcome


async def test_a_state_patch_is_worked_out_again_when_the_state_has_changed(
    turns: Turns, sessions: ScriptedSessions
) -> None:
    sessions.append_with = [AppendStatus.STATE_CONFLICT, AppendStatus.OK]
    sessions.states = [(1, {"a": 1}), (2, {"a": 2})]
    await turns.complete(run_of(state_patch={"b": 3}), completion({"content": "yes"}))
    assert sessions.added_state == (2, {"a": 2, "b": 3})


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ({"content": "yes", "annotations": [], "refusal": None}, {"content": "yes"}),
        ({"content": ""}, {"content": ""}),
        ({"content": None, "tool_calls": [{"id": "c"}]}, {"tool_calls": [{"id": "c"}]}),
        ({"content": None, "refusal": "no"}, {"content": "", "refusal": "no"}),
        ({"content": "yes", "reasoning": "hm"}, {"content": "yes", "reasoning": "hm"}),
        ({"content": "yes", "reasoning_content": "hm"}, {"content": "yes", "reasoning_content": "hm"}),
        ({"content": None, "tool_calls": [a_call("{}"), a_call('{"a": ')]}, {"tool_calls": [a_call("{}")]}),
        ({"content": "so", "tool_calls": [a_call("")]}, {"content": "so", "tool_calls": [a_call("")]}),
        ({"content": None, "tool_calls": [a_call('{"a"')]}, {"content": ""}),
    ],
)
async def test_the_history_keeps_what_a_prompt_needs_of_an_answer(
    turns: Turns, sessions: ScriptedSessions, message: dict[str, Any], kept: dict[str, Any]
) -> None:
    await turns.complete(run_of(), completion(message))
    assert sessions.added is not None
    assert sessions.added.messages == (QUESTION, {"role": "assistant", **kept})


PREFILL: dict[str, Any] = {"role": "assistant", "content": "The sea"}


@pytest.mark.parametrize(
    ("prefill", "echo", "said"),
    [
        (PREFILL, False, " is"),
        (PREFILL, True, "The sea is"),
        (PREFILL, "true", "The sea is"),
        (PREFILL, "false", " is"),
        ({"role": "assistant", "content": [{"type": "text", "text": "The sea"}]}, False, " is"),
        (
            {
                "role": "assistant",
                "content": [{"type": "text", "text": ""}, {"type": "refusal", "refusal": "The sea"}],
            },
            True,
            "The sea is",
        ),
    ],
    ids=["text", "echoed", "echoed by a word", "not echoed by a word", "parts", "parts of other kinds"],
)
@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_prefill_and_what_goes_on_with_it_are_one_message(
    turns: Turns,
    sessions: ScriptedSessions,
    prefill: dict[str, Any],
    echo: bool | str,
    said: str,
    interrupted: bool,
) -> None:
    body = {"messages": [QUESTION, prefill], "continue_final_message": True, "add_generation_prompt": False}
    run = run_of(body=body | {"echo": echo})
    if interrupted:
        run.add(TokenChunk(token_ids=(1,), text=said))
        await turns.interrupt(run, CANCELLED)
    else:
        await turns.complete(run, completion({"content": said}))
    assert sessions.added is not None
    assert sessions.added.messages == (QUESTION, {"role": "assistant", "content": "The sea is"})


@pytest.mark.parametrize("flag", [None, False, 0, "false", "no"])
async def test_a_last_message_that_is_not_continued_stays_a_message(
    turns: Turns, sessions: ScriptedSessions, flag: Any
) -> None:
    body = {"messages": [QUESTION, PREFILL], "continue_final_message": flag}
    await turns.complete(run_of(body=body), completion({"content": "yes"}))
    assert sessions.added is not None
    assert sessions.added.messages == (QUESTION, PREFILL, {"role": "assistant", "content": "yes"})


async def test_a_call_that_ended_before_its_arguments_is_not_in_the_history(
    turns: Turns, sessions: ScriptedSessions
) -> None:
    cut = completion({"content": None, "tool_calls": [a_call("")]})
    cut.response["choices"][0]["finish_reason"] = "length"
    await turns.complete(run_of(), cut)
    assert sessions.added is not None
    assert sessions.added.messages[-1] == {"role": "assistant", "content": ""}


async def test_an_interrupted_turn_keeps_no_half_of_a_call(turns: Turns, sessions: ScriptedSessions) -> None:
    run = run_of()
    delta = {"tool_calls": [{"index": 0, **a_call('{"city": ')}]}
    run.add(TokenChunk(token_ids=(1, 2), text="let me", delta=delta))
    finish = await turns.interrupt(run, CANCELLED)
    assert sessions.added is not None
    assert sessions.added.messages[-1] == {"role": "assistant", "content": "let me"}
    assert isinstance(finish, Finish)
    assert finish.completion is not None
    message = finish.completion.response["choices"][0]["message"]
    assert message["tool_calls"] == [a_call('{"city": ')]


async def test_an_interrupted_turn_keeps_what_it_said_and_an_estimate_of_its_tokens(
    turns: Turns, sessions: ScriptedSessions
) -> None:
    run = run_of(state_patch={"not": "applied"})
    run.add(TokenChunk(token_ids=(1, 2, 3), text="so f"))
    run.add(TokenChunk(token_ids=(4,), text="ar"))
    await turns.interrupt(run, CANCELLED)
    assert sessions.added is not None
    assert sessions.added.messages[-1] == {"role": "assistant", "content": "so far"}
    assert sessions.added.interrupted
    assert 4 < sessions.added.tokens < 20
    assert sessions.added_state is None
