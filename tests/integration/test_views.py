"""What was streamed, journaled and put into the result says the same, also when the answer was cut."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from tests.integration.conftest import PATIENCE_S, StartWorker, answer_to, chat, eventually, slow_chat

from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, FailureCode, Job, JobState, Result
from inferfleet.schemas.journal import RestartedEntry, TokenChunk, TokensEntry
from inferfleet.schemas.said import Said
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import Completion, Generation, NotContinuableError

TOOLS = [{"type": "function", "function": {"name": "look_up"}}]
SLOW_TOKENS = 400


async def streamed(fleet: Fleet, job: Job) -> list[TokenChunk]:
    """The chunks that a reader of the whole stream has when the job has ended."""
    chunks: list[TokenChunk] = []
    async for line in fleet.stream(job):
        match line.entry:
            case TokensEntry():
                chunks += line.entry.chunks
            case RestartedEntry():
                chunks.clear()
            case _:
                pass
    return chunks


async def require_one_view(fleet: Fleet, job: Job) -> Result:
    """The result, once it is found to say what the stream said."""
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    chunks = await streamed(fleet, job)
    assert result.response is not None
    for choice in result.response["choices"]:
        said = Said(chunk for chunk in chunks if chunk.index == choice["index"])
        if job.endpoint is Endpoint.CHAT:
            assert said.message() == choice["message"]
        else:
            assert said.text == choice["text"]
    assert {chunk.index for chunk in chunks} == {choice["index"] for choice in result.response["choices"]}
    tokens = sum(len(chunk.token_ids) for chunk in chunks)
    usage = result.response["usage"]
    assert tokens == usage["completion_tokens"] == result.usage.completion_tokens
    assert usage["prompt_tokens"] == result.usage.prompt_tokens > 0
    return result


def require_cut(result: Result, job: Job) -> None:
    """The result of an answer that was stopped from outside, after it had begun."""
    assert result.response is not None
    assert {choice["finish_reason"] for choice in result.response["choices"]} == {"abort"}
    assert result.response["model"] == "simulated"
    assert result.response["id"].endswith(job.id)
    if job.body.get("n") is None:
        assert result.text
        assert answer_to(job).startswith(result.text)


async def until_tokens(fleet: Fleet, job: Job, count: int = 5) -> None:
    async def has_tokens() -> bool:
        return (await fleet.get(job)).tokens >= count

    await eventually(has_tokens)


COMPLETION = {"prompt": "go on", "simulated": {"tokens": SLOW_TOKENS, "step_delay_s": 0.01}}


@pytest.mark.parametrize(
    "body",
    [
        slow_chat(tokens=SLOW_TOKENS, step_s=0.01),
        slow_chat(tokens=SLOW_TOKENS, step_s=0.01) | {"n": 2},
        slow_chat(tokens=SLOW_TOKENS, step_s=0.01) | {"stop": ["no such words in it"]},
        COMPLETION,
        COMPLETION | {"echo": True},
    ],
    ids=["a chat", "two choices", "a stop string", "a completion", "an echo"],
)
async def test_a_job_cancelled_while_it_runs_has_what_it_said(
    fleet: Fleet, start_worker: StartWorker, pool: str, body: Mapping[str, Any]
) -> None:
    await start_worker()
    endpoint = Endpoint.CHAT if "messages" in body else Endpoint.COMPLETIONS
    job = await fleet.submit(body, pool=pool, stream=True, endpoint=endpoint)
    await until_tokens(fleet, job)

    await fleet.cancel(job)

    result = await require_one_view(fleet, job)
    assert result.state is JobState.CANCELLED
    require_cut(result, job)


async def test_a_job_that_timed_out_has_what_it_said(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    body = chat(simulated={"tokens": SLOW_TOKENS, "after_tokens": 20, "hang": True})
    job = await fleet.submit(body, pool=pool, stream=True, timeout_s=2)

    result = await require_one_view(fleet, job)

    assert result.error is not None
    assert result.error.code is FailureCode.TIMEOUT
    require_cut(result, job)


@pytest.mark.parametrize("code", ["invalid_request", "engine_error"], ids=["failed", "given up"])
async def test_a_job_that_failed_in_mid_answer_has_what_it_said(
    fleet: Fleet, start_worker: StartWorker, pool: str, code: str
) -> None:
    await start_worker()
    body = chat(simulated={"tokens": 50, "after_tokens": 20, "fail": code})
    job = await fleet.submit(body, pool=pool, max_attempts=2)

    result = await require_one_view(fleet, job)

    assert result.state is JobState.FAILED
    assert result.usage.completion_tokens == 20
    require_cut(result, job)


async def test_a_job_that_was_handed_over_and_cancelled_before_it_ran_again_has_what_it_said(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    job = await fleet.submit(slow_chat(tokens=SLOW_TOKENS, step_s=0.01), pool=pool, stream=True)
    await until_tokens(fleet, job)
    await worker.stop()

    assert await fleet.cancel(job) is JobState.CANCELLED

    require_cut(await require_one_view(fleet, job), job)


async def test_a_job_that_never_began_has_no_response(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hello", pool=pool)

    await fleet.cancel(job)

    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.response is None
    assert result.usage.total_tokens == 0


@pytest.mark.parametrize("max_tokens", [None, 8, 7, 6, 3, 1])
@pytest.mark.parametrize(
    "tool_choice", ["required", {"type": "function", "function": {"name": "look_up"}}], ids=["any", "named"]
)
async def test_a_tool_call_is_the_same_in_stream_and_result_also_where_it_was_cut(
    fleet: Fleet, start_worker: StartWorker, pool: str, tool_choice: Any, max_tokens: int | None
) -> None:
    await start_worker()
    body = chat(tools=TOOLS, tool_choice=tool_choice, max_tokens=max_tokens)
    # Slow enough that the call comes in pieces.
    body["simulated"] = {"step_delay_s": 0.06}
    job = await fleet.submit(body, pool=pool, stream=True)

    result = await require_one_view(fleet, job)

    assert result.response is not None
    (choice,) = result.response["choices"]
    (call,) = choice["message"]["tool_calls"]
    whole = max_tokens in (None, 8)
    assert call["function"]["name"] == "look_up"
    assert (call["function"]["arguments"] == "{}") is whole
    assert choice["message"]["content"] is None
    ended = "tool_calls" if tool_choice == "required" else "stop"
    assert choice["finish_reason"] == (ended if whole else "length")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": "one word of", "max_tokens": 5}, ["one word of"]),
        ({"prompt": ["one", "two"], "n": 2, "max_tokens": 5}, ["one", "one", "two", "two"]),
        ({"prompt": "one word of", "stop": "e"}, ["one word of"]),
        ({"prompt": [1, 2, 999_999]}, [" able about"]),
        ({"prompt": ["one", "two"], "max_tokens": 0}, ["one", "two"]),
    ],
    ids=["text", "choices", "a stop string in the prompt", "token ids", "nothing else"],
)
async def test_an_echo_begins_with_the_prompt_in_stream_and_result(
    fleet: Fleet, start_worker: StartWorker, pool: str, fields: dict[str, Any], said: list[str]
) -> None:
    await start_worker()
    slow = {"simulated": {"step_delay_s": 0.06}}
    plain = await fleet.submit(
        fields | slow | {"max_tokens": fields.get("max_tokens", 16) or 1},
        pool=pool,
        endpoint=Endpoint.COMPLETIONS,
    )
    job = await fleet.submit(
        {"echo": "true", "max_tokens": 16} | fields | slow,
        pool=pool,
        endpoint=Endpoint.COMPLETIONS,
        stream=True,
    )

    result = await require_one_view(fleet, job)

    answers = (await fleet.wait(plain, timeout_s=PATIENCE_S)).response
    assert answers is not None
    assert result.response is not None
    behind = [choice["text"] if fields.get("max_tokens") != 0 else "" for choice in answers["choices"]]
    assert [choice["text"] for choice in result.response["choices"]] == [
        prompt + text for prompt, text in zip(said, behind, strict=True)
    ]
    assert result.response["usage"] == answers["usage"]


async def test_an_echo_that_was_cut_off_begins_again(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    body = {"prompt": "go on", "echo": True, "max_tokens": 60, "ignore_eos": True}
    slow = body | {"simulated": {"step_delay_s": 0.02}}
    job = await fleet.submit(slow, pool=pool, stream=True, endpoint=Endpoint.COMPLETIONS)
    await until_tokens(fleet, job)
    await worker.stop()

    await start_worker()

    result = await require_one_view(fleet, job)
    assert result.text == answer_to(job)
    assert result.text.startswith("go on")
    reasons = [
        line.entry.reason async for line in fleet.stream(job) if isinstance(line.entry, RestartedEntry)
    ]
    assert reasons == ["not_resumable"]


class ForgetfulEngine(SimulatedEngine):
    """Cannot go on with any answer, and only says so when it is asked to."""

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        if generation.resume_token_ids:
            raise NotContinuableError("it forgot")
        async for event in super().generate(generation):
            yield event


async def test_an_answer_that_turns_out_not_to_be_continuable_begins_again(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True, max_attempts=1)
    await until_tokens(fleet, job)
    await worker.stop()

    await start_worker(ForgetfulEngine(model="simulated", max_running=4, engine_args={"speed": 0}))

    result = await require_one_view(fleet, job)
    assert result.state is JobState.SUCCEEDED
    assert result.text == answer_to(job)
    restarts = [line.entry async for line in fleet.stream(job) if isinstance(line.entry, RestartedEntry)]
    assert len(restarts) == 1
    assert restarts[0].tokens_wasted > 0
