"""What an answer has said so far, put together from its chunks."""

from __future__ import annotations

from typing import Any

from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.journal import AnswerHead, TokenChunk
from inferfleet.schemas.said import Said, cut_response

HEAD = AnswerHead(endpoint=Endpoint.CHAT, model="m", prompt_tokens=7)
JOB_ID = Job(body={}).id


def call(index: int, **fields: Any) -> TokenChunk:
    return TokenChunk(token_ids=(1,), delta={"tool_calls": [{"index": index, **fields}]})


CALLS = (
    call(0, id="a", type="function", function={"name": "f"}),
    call(0, function={"arguments": '{"x"'}),
    call(1, id="b", type="function", function={"name": "g", "arguments": ""}),
    call(1, function={"arguments": "{}"}),
)


def test_the_pieces_of_calls_are_put_together_by_their_index() -> None:
    assert Said(CALLS).tool_calls == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x"'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_a_message_has_only_what_was_said() -> None:
    assert Said().message() == {"role": "assistant", "content": ""}
    assert Said([TokenChunk(text="so "), TokenChunk(text="far")]).message() == {
        "role": "assistant",
        "content": "so far",
    }
    thought = TokenChunk(delta={"reasoning": "hm"})
    assert Said([thought]).message() == {"role": "assistant", "content": None, "reasoning": "hm"}
    assert Said(CALLS).message()["content"] is None


def test_two_answers_agree_whatever_the_ids_of_their_calls() -> None:
    others = (call(0, id="z", type="function", function={"name": "f", "arguments": '{"x"'}), *CALLS[2:])
    assert Said(CALLS).agrees_with(Said(others))
    assert not Said(CALLS).agrees_with(Said(CALLS[:3]))
    assert not Said(CALLS).agrees_with(Said([*CALLS, TokenChunk(text=" ")]))


def test_the_response_of_an_answer_that_was_cut_has_every_choice_that_had_begun() -> None:
    chunks = [
        TokenChunk(index=1, token_ids=(1, 2), text="one"),
        TokenChunk(token_ids=(3,), text="zero"),
        TokenChunk(index=1, token_ids=(4,), text=" more"),
    ]
    response = cut_response(JOB_ID, HEAD, chunks, created=5)
    assert [choice["message"]["content"] for choice in response["choices"]] == ["zero", "one more"]
    assert {choice["finish_reason"] for choice in response["choices"]} == {"abort"}
    assert response["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    assert response["id"] == f"chatcmpl-{JOB_ID}"
    assert (response["object"], response["model"], response["created"]) == ("chat.completion", "m", 5)


def test_a_completion_that_was_cut_is_a_text() -> None:
    head = HEAD.model_copy(update={"endpoint": Endpoint.COMPLETIONS})
    response = cut_response(JOB_ID, head, [TokenChunk(token_ids=(1,), text="so")], created=5)
    assert response["object"] == "text_completion"
    assert response["choices"][0]["text"] == "so"
