"""The response bodies of the simulated engine, and the requests it refuses."""

from __future__ import annotations

import base64
import math
import struct
from operator import itemgetter
from typing import Any

import pytest

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.scoring_requests import SPELLINGS
from inferfleet.worker.engines.simulated import (
    SimulatedParameters,
    expected_response,
    expected_text,
)
from inferfleet.worker.ports import GenerationError

SECRET = "the prompt nobody may see"
LOOK_UP = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
MULTIPLY = {"type": "function", "function": {"name": "multiply"}}


def respond(endpoint: Endpoint, body: dict[str, Any], **parameters: object) -> dict[str, Any]:
    return expected_response(
        endpoint,
        body,
        job_id="0190",
        model="served",
        created=1_700_000_000,
        parameters=SimulatedParameters.model_validate(parameters),
    )


def chat(**more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": SECRET}], **more}


def test_a_chat_response_has_openais_shape() -> None:
    body = chat(max_tokens=3)

    assert respond(Endpoint.CHAT, body) == {
        "id": "chatcmpl-0190",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "served",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": expected_text(Endpoint.CHAT, body)},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 14,
            "completion_tokens": 3,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_a_completions_response_has_openais_shape() -> None:
    body = {"prompt": "Once", "max_tokens": 3}

    response = respond(Endpoint.COMPLETIONS, body)

    assert (response["id"], response["object"]) == ("cmpl-0190", "text_completion")
    assert response["choices"] == [
        {
            "index": 0,
            "text": expected_text(Endpoint.COMPLETIONS, body),
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert response["usage"]["prompt_tokens"] == 1


def test_prompt_tokens_are_a_quarter_of_the_bytes_and_the_frame_of_the_chat() -> None:
    def count(*messages: dict[str, Any]) -> int:
        return respond(Endpoint.CHAT, {"messages": list(messages)})["usage"]["prompt_tokens"]

    assert count({"role": "user", "content": "12345"}) == 3 + (4 + 2)
    assert count({"role": "user", "content": "世世"}) == 3 + (4 + 2)
    assert count({"role": "user", "content": "1234"}, {"role": "assistant", "content": None}) == 3 + 5 + 4
    assert count({"role": "user", "content": [{"type": "text", "text": "12345"}]}) == 3 + (4 + 2)
    assert count({"role": "assistant", "content": [{"type": "refusal", "refusal": "12345"}]}) == 3 + (4 + 2)
    assert count({"role": "critic", "content": ["123", {"type": "input_text", "text": "45"}]}) == 3 + (4 + 2)
    assert count({"role": "critic", "content": [{"type": "text", "text": None}]}) == 3 + 4


def test_each_of_n_choices_is_another_and_the_prompt_counts_once() -> None:
    one, three = respond(Endpoint.CHAT, chat(max_tokens=8)), respond(Endpoint.CHAT, chat(max_tokens=8, n=3))

    texts = [choice["message"]["content"] for choice in three["choices"]]
    assert len(set(texts)) == 3
    assert texts[0] == one["choices"][0]["message"]["content"]
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["completion_tokens"] == 24
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]


def test_several_prompts_get_the_answers_that_each_would_get_alone() -> None:
    response = respond(Endpoint.COMPLETIONS, {"prompt": ["Once", "Twice"], "n": 2, "max_tokens": 8})

    alone = [respond(Endpoint.COMPLETIONS, {"prompt": p, "n": 2, "max_tokens": 8}) for p in ("Once", "Twice")]
    assert [c["text"] for c in response["choices"]] == [c["text"] for a in alone for c in a["choices"]]
    assert [c["index"] for c in response["choices"]] == [0, 1, 2, 3]


def test_a_prompt_may_be_given_as_token_ids() -> None:
    response = respond(Endpoint.COMPLETIONS, {"prompt": [5, 6, 7]})

    assert response["usage"]["prompt_tokens"] == 3
    assert len(respond(Endpoint.COMPLETIONS, {"prompt": [[5, 6, 7], [8]]})["choices"]) == 2


def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone() -> None:
    response = respond(Endpoint.EMBEDDINGS, {"input": ["one", "two", "one"]}, embedding_dimensions=100)

    one, two, again = (item["embedding"] for item in response["data"])
    assert one == again != two
    assert len(one) == 100
    assert math.hypot(*one) == pytest.approx(1, abs=1e-6)
    assert [item["index"] for item in response["data"]] == [0, 1, 2]
    assert response["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert (response["object"], response["model"]) == ("list", "served")


def test_embeddings_come_in_base64_and_fewer_dimensions_when_asked_for() -> None:
    body = {"input": "one", "dimensions": 8}
    (plain,) = respond(Endpoint.EMBEDDINGS, body)["data"]
    (encoded,) = respond(Endpoint.EMBEDDINGS, {**body, "encoding_format": "base64"})["data"]

    assert list(struct.unpack("<8f", base64.b64decode(encoded["embedding"]))) == plain["embedding"]


@pytest.mark.parametrize(
    ("tool_choice", "name", "finish_reason"),
    [
        ("required", "look_up", "tool_calls"),
        ({"type": "function", "function": {"name": "multiply"}}, "multiply", "stop"),
    ],
)
def test_a_forced_tool_is_called_without_arguments(
    tool_choice: object, name: str, finish_reason: str
) -> None:
    (choice,) = respond(Endpoint.CHAT, chat(tools=[LOOK_UP, MULTIPLY], tool_choice=tool_choice))["choices"]

    assert choice["finish_reason"] == finish_reason
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": name, "arguments": "{}"}
    assert call["type"] == "function"
    assert call["id"].startswith("call_")


@pytest.mark.parametrize("tool_choice", [None, "auto", "none"])
def test_a_tool_that_may_be_called_is_not(tool_choice: str | None) -> None:
    (choice,) = respond(Endpoint.CHAT, chat(tools=[LOOK_UP], tool_choice=tool_choice))["choices"]

    assert choice["message"]["content"]
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize(
    ("endpoint", "body", "named"),
    [
        (Endpoint.CHAT, {}, "messages"),
        (Endpoint.CHAT, {"messages": []}, "messages"),
        (Endpoint.CHAT, {"messages": SECRET}, "messages"),
        (Endpoint.CHAT, {"messages": [{"content": SECRET}]}, "messages.0.role"),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        (Endpoint.CHAT, chat(max_tokens=0), "max_tokens"),
        (Endpoint.CHAT, chat(max_tokens="many"), "max_tokens"),
        (Endpoint.CHAT, chat(n=0), "n: "),
        (Endpoint.CHAT, chat(seed=2**80), "JSON"),
        (Endpoint.CHAT, chat(stop=[""]), "stop"),
        (Endpoint.CHAT, chat(logprobs=True), "logprobs"),
        (Endpoint.CHAT, chat(response_format={"type": "json_object"}), "json_object"),
        (Endpoint.CHAT, chat(structured_outputs={"choice": ["a", "b"]}), "structured_outputs"),
        (Endpoint.CHAT, chat(tool_choice="required"), "tool_choice"),
        (Endpoint.CHAT, chat(tools=[LOOK_UP], tool_choice={"function": {"name": "other"}}), "other"),
        (Endpoint.CHAT, chat(simulated={"fial": "timeout"}), "simulated.fial"),
        (Endpoint.CHAT, chat(simulated={"fail": "bad_weather"}), "simulated.fail"),
        (Endpoint.COMPLETIONS, {"prompt": ""}, "empty"),
        (Endpoint.COMPLETIONS, {"prompt": [SECRET, ""]}, "empty"),
        (Endpoint.COMPLETIONS, {"prompt": SECRET, "logprobs": 0}, "logprobs"),
        (Endpoint.COMPLETIONS, {"prompt": SECRET, "logprobs": False}, "logprobs"),
        (Endpoint.CHAT, chat(echo=True), "echo"),
        (Endpoint.EMBEDDINGS, {"input": []}, "empty"),
        (Endpoint.EMBEDDINGS, {"input": SECRET, "dimensions": 5000}, "dimensions"),
        (Endpoint.EMBEDDINGS, {"input": SECRET, "encoding_format": "hex"}, "encoding_format"),
        (Endpoint.RERANK, {"query": SECRET, "documents": [{"content": [SECRET]}]}, "documents"),
        (Endpoint.RERANK, {"documents": [SECRET]}, "query"),
        (Endpoint.RERANK, {"query": SECRET, "documents": []}, "documents"),
        (Endpoint.SCORE, {"text_1": [SECRET, SECRET], "text_2": [SECRET]}, "2 texts"),
        (Endpoint.SCORE, {"queries": "", "documents": ""}, "empty"),
    ],
)
def test_what_it_cannot_answer_is_refused_by_name_and_without_the_prompt(
    endpoint: Endpoint, body: dict[str, Any], named: str
) -> None:
    with pytest.raises(GenerationError) as refused:
        respond(endpoint, body)

    assert refused.value.code is FailureCode.INVALID_REQUEST
    assert named in str(refused.value)
    assert SECRET not in str(refused.value)


def test_documents_are_ranked_by_scores_that_depend_on_both_texts_alone() -> None:
    documents = ["one", "two", "one", "four"]
    response = respond(Endpoint.RERANK, {"query": "a", "documents": documents})

    scores = {result["index"]: result["relevance_score"] for result in response["results"]}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores[0] == scores[2] != scores[1]
    assert [result["document"]["text"] for result in response["results"]] == [documents[at] for at in scores]
    # The query is read with each document.
    assert response["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    assert respond(Endpoint.RERANK, {"query": "b", "documents": documents})["results"] != response["results"]

    best = respond(Endpoint.RERANK, {"query": "a", "documents": documents, "top_n": 2})
    assert best == response | {"results": response["results"][:2]}


@pytest.mark.parametrize("sides", SPELLINGS)
def test_a_score_is_that_of_the_ranking_in_each_spelling(sides: tuple[str, str]) -> None:
    documents = ["one", "two"]
    ranking = respond(Endpoint.RERANK, {"query": "a", "documents": documents})["results"]
    response = respond(Endpoint.SCORE, dict(zip(sides, ("a", documents), strict=True)))

    assert response["data"] == [
        {"index": result["index"], "object": "score", "score": result["relevance_score"]}
        for result in sorted(ranking, key=itemgetter("index"))
    ]
    assert response["object"] == "list"
    one_each = respond(Endpoint.SCORE, dict(zip(sides, (["a", "a"], documents), strict=True)))
    assert one_each == response


@pytest.mark.parametrize(
    "harmless",
    [
        {"logprobs": False},
        {"logprobs": 0, "echo": "false"},
        {"model": ""},
        {"response_format": {"type": "text"}},
        {"stop": None, "n": None},
        {"top_p": 0.5},
    ],
)
def test_fields_that_ask_for_nothing_special_are_fine(harmless: dict[str, Any]) -> None:
    assert respond(Endpoint.CHAT, chat(**harmless)) == respond(Endpoint.CHAT, chat())


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_prompt_that_fills_the_context_is_too_long_and_the_message_has_both_numbers(
    endpoint: Endpoint,
) -> None:
    text = "x" * 400
    ask = ENDPOINTS[endpoint].ask
    short = (
        {"query": "", "documents": text} if endpoint is Endpoint.RERANK else {"text_1": text, "text_2": ""}
    )
    body = short if ask is None else ask(text)

    with pytest.raises(GenerationError, match=r"has 10[07] tokens.* takes 100 ") as refused:
        respond(endpoint, body, max_model_len=100)

    assert refused.value.code is FailureCode.PROMPT_TOO_LONG


@pytest.mark.parametrize(
    ("engine_args", "named"),
    [
        ({"sped": 1}, "no argument 'sped'"),
        ({"speed": "fast"}, "'speed'"),
        ({"speed": -1}, "'speed'"),
        ({"load_s": float("inf")}, "'load_s'"),
        ({"prefill_tokens_per_s": 0}, "'prefill_tokens_per_s'"),
        ({"kv_cache_tokens": 1000}, "kv_cache_tokens=1000"),
    ],
)
def test_a_wrong_engine_argument_is_named(engine_args: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        SimulatedParameters.from_engine_args(engine_args)
