"""A journal as the chunks of OpenAI's streams."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from inferfleet.producer.openai.chunks import AnswerChunks
from inferfleet.schemas import Endpoint, JobState, Result, Usage
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import AnswerHead, TokenChunk, TokensEntry

AT = datetime(2026, 11, 26, 12, tzinfo=UTC)
CREATED = int(AT.timestamp())
JOB_ID = new_job_id()
CALL = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], **fields}


def entry(*chunks: TokenChunk, endpoint: Endpoint = Endpoint.CHAT, with_head: bool = True) -> TokensEntry:
    head = AnswerHead(endpoint=endpoint, model="tiny", prompt_tokens=5) if with_head else None
    return TokensEntry(at=AT, attempt=1, offset=0, chunks=chunks, head=head)


def result(*choices: dict[str, Any], **fields: Any) -> Result:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": None}
    response = {"model": "tiny", "created": CREATED + 9, "choices": list(choices), "usage": usage, **fields}
    return Result(job_id=JOB_ID, state=JobState.SUCCEEDED, response=response, usage=Usage(prompt_tokens=5))


def ended(index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "finish_reason": "stop", "logprobs": None, **fields}


def stream(
    body: dict[str, Any], *entries: TokensEntry, ends: Result, endpoint: Endpoint = Endpoint.CHAT
) -> list[dict[str, Any]]:
    chunks = AnswerChunks(JOB_ID, endpoint, body)
    return [chunk for each in entries for chunk in chunks.add(each)] + chunks.end(ends)


def choices(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for chunk in chunks for choice in chunk["choices"]]


def test_a_chat_begins_with_its_role_and_ends_with_its_reason() -> None:
    made = stream(
        chat(), entry(TokenChunk(token_ids=(1,), text="Hi"), TokenChunk(token_ids=(2,))), ends=result(ended())
    )

    common = {
        "id": f"chatcmpl-{JOB_ID}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": "tiny",
    }
    assert made == [
        common | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in (
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Hi"}, None),
            ({}, "stop"),
        )
    ]


def test_a_completion_has_its_text_and_no_role() -> None:
    made = stream(
        {"prompt": "one"},
        entry(TokenChunk(token_ids=(1,), text=" two"), endpoint=Endpoint.COMPLETIONS),
        ends=result(ended()),
        endpoint=Endpoint.COMPLETIONS,
    )

    assert [choice["text"] for choice in choices(made)] == [" two", ""]
    assert {chunk["object"] for chunk in made} == {"text_completion"}
    assert {chunk["id"] for chunk in made} == {f"cmpl-{JOB_ID}"}


def test_reasoning_and_tool_calls_are_deltas_beside_the_text() -> None:
    made = stream(
        chat(),
        entry(
            TokenChunk(token_ids=(1,), delta={"reasoning": "well"}),
            TokenChunk(token_ids=(2,), text="so", delta={"tool_calls": [CALL]}),
        ),
        ends=result(ended(finish_reason="tool_calls")),
    )

    deltas = [choice["delta"] for choice in choices(made)]
    assert deltas[1:3] == [{"reasoning": "well"}, {"content": "so", "tool_calls": [CALL]}]


@pytest.mark.parametrize("n", [2, "2", 2.0])
def test_each_choice_of_several_begins_and_ends(n: object) -> None:
    made = stream(
        chat(n=n),
        entry(TokenChunk(index=1, token_ids=(1,), text="b"), TokenChunk(index=0, token_ids=(2,), text="a")),
        ends=result(ended(0), ended(1, finish_reason="length")),
    )

    said = [
        (choice["index"], choice["delta"].get("content"), choice["finish_reason"]) for choice in choices(made)
    ]
    assert said == [
        (0, "", None),
        (1, "", None),
        (1, "b", None),
        (0, "a", None),
        (0, None, "stop"),
        (1, None, "length"),
    ]


def test_the_usage_comes_last_and_without_what_is_unknown() -> None:
    made = stream(
        chat(stream_options={"include_usage": True}),
        entry(TokenChunk(token_ids=(1,), text="Hi")),
        ends=result(ended()),
    )

    assert made[-1]["choices"] == []
    assert made[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert all("usage" not in chunk for chunk in made[:-1])


def test_the_usage_is_in_every_chunk_if_that_is_asked_for() -> None:
    made = stream(
        chat(stream_options={"include_usage": True, "continuous_usage_stats": True}),
        entry(TokenChunk(token_ids=(1, 2), text="Hi"), TokenChunk(token_ids=(3,), text="!")),
        ends=result(ended()),
    )

    assert [chunk["usage"]["completion_tokens"] for chunk in made[:-1]] == [0, 2, 3, 3]


def test_an_answer_that_ends_with_its_first_tokens_has_its_head_in_the_response() -> None:
    chunks = AnswerChunks(JOB_ID, Endpoint.CHAT, chat())

    assert chunks.add(entry(TokenChunk(token_ids=(1,), text="Hi"), with_head=False)) == []
    made = chunks.end(result(ended()))

    assert [choice["delta"].get("content") for choice in choices(made)] == ["", "Hi", None]
    assert {(chunk["model"], chunk["created"]) for chunk in made} == {("tiny", CREATED)}


def test_an_answer_without_tokens_begins_and_ends() -> None:
    made = stream(chat(), ends=result(ended()))

    assert [choice["finish_reason"] for choice in choices(made)] == [None, "stop"]


def test_an_answer_may_restart_until_a_chunk_was_made() -> None:
    chunks = AnswerChunks(JOB_ID, Endpoint.CHAT, chat())
    chunks.add(entry(TokenChunk(token_ids=(1,), text="lost"), with_head=False))
    assert not chunks.begun

    chunks.restart()
    made = chunks.add(entry(TokenChunk(token_ids=(1,), text="Hi")))

    assert chunks.begun
    assert [choice["delta"]["content"] for choice in choices(made)] == ["", "Hi"]


def test_token_ids_come_with_their_tokens_and_those_of_the_prompt_at_the_end() -> None:
    made = stream(
        chat(return_token_ids=True),
        entry(TokenChunk(token_ids=(1,)), TokenChunk(token_ids=(2,), text="Hi")),
        ends=result(ended(stop_reason=7), prompt_token_ids=[8, 9]),
    )

    assert [choice.get("token_ids") for choice in choices(made)] == [None, [1], [2], None]
    assert made[-1]["prompt_token_ids"] == [8, 9]
    assert made[-1]["choices"][0]["stop_reason"] == 7


def test_logprobs_come_with_the_last_chunk() -> None:
    logprobs = {"content": [{"token": "Hi", "logprob": -1.0, "top_logprobs": []}]}
    made = stream(
        chat(logprobs=True),
        entry(TokenChunk(token_ids=(1,), text="Hi")),
        ends=result(ended(logprobs=logprobs)),
    )

    assert [choice["logprobs"] for choice in choices(made)] == [None, None, logprobs]


def test_the_role_is_that_of_the_message_that_is_continued() -> None:
    body = {
        "messages": [{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}],
        "add_generation_prompt": "false",
        "continue_final_message": True,
    }

    made = stream(body, entry(TokenChunk(token_ids=(1,), text="c")), ends=result(ended()))

    assert made[0]["choices"][0]["delta"]["role"] == "critic"


@pytest.mark.parametrize("with_usage", [False, True])
def test_the_fingerprint_is_in_the_last_chunks(with_usage: bool) -> None:
    made = stream(
        chat(n=2, stream_options={"include_usage": with_usage}),
        entry(TokenChunk(token_ids=(1,), text="Hi")),
        ends=result(ended(0), ended(1), system_fingerprint="vllm-1"),
    )

    stamped = [chunk.get("system_fingerprint") for chunk in made]
    last = 1 if with_usage else 2
    assert stamped == [None] * (len(made) - last) + ["vllm-1"] * last


def test_the_text_of_the_prompt_is_there_if_the_response_has_it() -> None:
    made = stream(chat(return_prompt_text=True), ends=result(ended(), prompt_text="user: hello"))

    assert [chunk.get("prompt_text") for chunk in made] == [None, "user: hello"]
