"""The check of request bodies on submit: what passes, and what is told about what does not."""

from __future__ import annotations

import copy
import traceback
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.openai_requests import AnyChat, AnyCompletion
from inferfleet.schemas.request import check_request

MIB = 1024 * 1024
HELLO = [{"role": "user", "content": "hello"}]
TAG = {"begin": "<a>", "schema": {}, "end": "</a>"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def check(body: object, endpoint: Endpoint = Endpoint.CHAT, limit: int = MIB) -> dict[str, Any]:
    return check_request(endpoint, body, max_body_bytes=limit)


def refusal(body: object, endpoint: Endpoint = Endpoint.CHAT, limit: int = MIB) -> str:
    with pytest.raises(InvalidJobError) as caught:
        check(body, endpoint, limit)
    return str(caught.value)


GOOD_CHATS: list[dict[str, Any]] = [
    {},
    {"model": None, "temperature": None, "stop": None, "tools": None},
    {"temperature": 0, "top_p": 1, "n": 1, "max_tokens": 1, "max_completion_tokens": 1},
    {"temperature": 0.1, "n": 16_384},
    {"max_tokens": 0, "max_completion_tokens": 1},
    {"temperature": 2.0, "top_p": 0.1, "presence_penalty": -2, "frequency_penalty": 2.0},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
    {"stop": "END"},
    {"stop": ["1", "2", "3", "4"]},
    {"logprobs": True, "top_logprobs": 20},
    {"top_logprobs": 0},
    {"logit_bias": {"50256": -101, "1": 0.5, " 7 ": "150"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}}},
    {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
    {"response_format": {"type": "structural_tag", "structures": [TAG], "triggers": ["<a>"]}},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}},
    {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": False},
    {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {"tools": [{"function": {"name": ""}}], "tool_choice": "required"},
    {"tool_choice": "none"},
    {"reasoning_effort": "low", "user": "u-1", "metadata": {"k": ["v"]}},
    {"temperature": "0.5", "n": 1.0, "max_tokens": "12", "seed": True, "stream": "yes", "logprobs": 1},
    {"structured_outputs": {"json_object": True}, "response_format": {"type": "json_object"}},
    {"continue_final_message": True, "add_generation_prompt": False},
    {"continue_final_message": "true", "add_generation_prompt": 0},
    {"continue_final_message": "false"},
    {"top_k": 5, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": None}, "guided": [None]},
]

GOOD_CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "system", "content": ""}, *HELLO],
    [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}], "name": "me"}, *HELLO],
    [*HELLO, {"role": "assistant", "content": "", "refusal": None}],
    [*HELLO, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    [*HELLO, {"role": "assistant", "content": None}],
    [*HELLO, {"role": "assistant"}],
    [*HELLO, {"role": "assistant", "reasoning": "hmm"}],
    [*HELLO, {"role": "tool", "content": "", "tool_call_id": "call_1"}],
    [*HELLO, {"role": "tool", "content": "no id"}],
    [{"role": "ipython", "content": "x = 1"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": []}],
    [{"role": "user"}],
    [*HELLO, {"role": "function", "name": "f", "content": None}],
    [
        {
            "role": "user",
            "content": [{"type": "text", "text": ""}, {"type": "video_url", "video_url": {"url": "x"}}],
        }
    ],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]}],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}],
]


@pytest.mark.parametrize("fields", GOOD_CHATS, ids=str)
def test_a_good_chat_passes_and_comes_back_as_it_was(fields: dict[str, Any]) -> None:
    body = {"messages": HELLO, **fields}
    before = copy.deepcopy(body)
    assert check(body) is body
    assert body == before


@pytest.mark.parametrize("messages", GOOD_CONVERSATIONS, ids=str)
def test_every_role_may_speak_in_its_own_shape(messages: list[dict[str, Any]]) -> None:
    check({"messages": messages})


@pytest.mark.parametrize("prompt", ["hi", ["hi", "ho"], [1, 2, 3], [[1], [2, 3]]], ids=str)
def test_a_prompt_is_text_or_tokens_one_or_many(prompt: object) -> None:
    check({"prompt": prompt, "echo": True, "logprobs": 20, "n": 2}, Endpoint.COMPLETIONS)
    check({"input": prompt, "encoding_format": "base64", "dimensions": 8}, Endpoint.EMBEDDINGS)


def test_all_problems_are_listed_one_a_line() -> None:
    words = refusal({"messages": [], "temperature": 9, "n": "two"})
    assert sorted(words.splitlines()) == [
        "body.messages: is empty; at least 1 item is needed",
        "body.n: must be a whole number, not a string",
        "body.temperature: 9 is above the maximum 2",
    ]


def test_of_very_many_problems_the_first_ten_are_listed() -> None:
    lines = refusal({"messages": [{"content": "x"}] * 1000}).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 990 more problems"


def test_a_body_beyond_the_limit_is_refused_with_its_size() -> None:
    words = refusal({"messages": [{"role": "user", "content": "x" * 1_300_000}]}, limit=1_048_576)
    assert words == "the request body is 1,300,043 bytes; the limit is 1,048,576 (INFERFLEET_MAX_BODY_BYTES)"


def test_the_size_counts_bytes_and_the_limit_itself_is_allowed() -> None:
    body = {"prompt": "é"}
    assert check(body, Endpoint.COMPLETIONS, limit=15) is body
    assert refusal(body, Endpoint.COMPLETIONS, limit=14).startswith("the request body is 15 bytes")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "body.extra[0].x: nan is not a JSON number"),
        (float("inf"), "body.extra[0].x: inf is not a JSON number"),
        ({"a"}, "body.extra[0].x: the type set has no form in JSON"),
        (b"a", "body.extra[0].x: the type bytes has no form in JSON"),
        (datetime(2026, 1, 1), "body.extra[0].x: the type datetime has no form in JSON"),  # noqa: DTZ001
        ({1: 2}, "body.extra[0].x: has a key that is not a string"),
        (
            2**64,
            "body.extra[0].x: has a whole number of more than 64 bits, which engines and other languages "
            "cannot read; send it as a string",
        ),
        (
            "\ud800",
            "body.extra[0].x: has half a surrogate pair ('\\ud800') at character 0, which no UTF-8 text can "
            "have; decode the text with the encoding that it came in",
        ),
    ],
    ids=repr,
)
def test_what_json_cannot_say_is_refused(value: object, words: str) -> None:
    assert refusal({"messages": HELLO, "extra": [{"x": value}]}) == words


def test_a_body_that_contains_itself_is_refused() -> None:
    body: dict[str, Any] = {"messages": HELLO}
    body["self"] = body
    assert refusal(body) == (
        "body.self: is nested too deeply: at most 198 levels of objects and lists are read"
    )


@pytest.mark.parametrize(("body", "kind"), [([], "a list"), (None, "null"), ("x", "a string")])
def test_a_body_is_an_object(body: object, kind: str) -> None:
    assert refusal(body) == f"body: must be an object, not {kind}"


SECRET = "the patient in room 12"
SECRETIVE: list[tuple[Endpoint, dict[str, Any]]] = [
    (Endpoint.CHAT, {"messages": SECRET}),
    (Endpoint.CHAT, {"messages": [SECRET]}),
    (Endpoint.CHAT, {"messages": [{"content": SECRET}]}),
    (Endpoint.CHAT, {"messages": [{"role": "user", "content": {"text": SECRET}}]}),
    (Endpoint.CHAT, {"messages": [{"role": "user", "content": [SECRET]}]}),
    (Endpoint.CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": [SECRET]}]}]}),
    (Endpoint.CHAT, {"messages": [{"role": "user", "content": SECRET}], "temperature": SECRET}),
    (Endpoint.CHAT, {"messages": [{"role": [SECRET], "content": SECRET}]}),
    (Endpoint.CHAT, {"messages": [{"role": "user", "content": SECRET}], "response_format": SECRET}),
    (Endpoint.COMPLETIONS, {"prompt": {"text": SECRET}}),
    (Endpoint.COMPLETIONS, {"prompt": [1, SECRET]}),
    (Endpoint.EMBEDDINGS, {"input": [[SECRET]]}),
    (Endpoint.EMBEDDINGS, {"input": SECRET, "dimensions": 0, "model": {1, 2}}),
    (Endpoint.RERANK, {"query": [SECRET], "documents": {SECRET: SECRET}}),
    (Endpoint.SCORE, {"text_1": [SECRET, SECRET], "text_2": [SECRET, {"content": [SECRET]}, SECRET]}),
    (Endpoint.SCORE, {"queries": [SECRET, SECRET], "items": [SECRET]}),
]


@pytest.mark.parametrize(("endpoint", "body"), SECRETIVE, ids=str)
def test_a_refusal_never_quotes_the_prompt_not_even_in_its_traceback(
    endpoint: Endpoint, body: dict[str, Any]
) -> None:
    with pytest.raises(InvalidJobError) as caught:
        check(body, endpoint)
    assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__cause__ is None or SECRET not in str(caught.value.__cause__)


FIELDS = st.sampled_from(
    [
        *AnyChat.__annotations__,
        *AnyCompletion.__annotations__,
        *("role", "content", "type", "text", "image_url", "tool_calls", "function", "name", "arguments", "7"),
    ]
)
WORDS = st.sampled_from(
    ["user", "assistant", "tool", "text", "image_url", "function", "auto", "json_schema", "", "x"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 150) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.dictionaries(FIELDS, JSON, max_size=3).map(lambda m: {"role": "user", **m}), max_size=3
)


@given(
    endpoint=st.sampled_from(Endpoint),
    body=st.dictionaries(FIELDS, JSON, max_size=6),
    messages=MESSAGES,
)
@settings(deadline=None, max_examples=300)
def test_whatever_the_body_it_passes_unchanged_or_is_refused_in_plain_words(
    endpoint: Endpoint, body: dict[str, Any], messages: list[Any]
) -> None:
    body = {"messages": messages, "prompt": "hi", "input": "hi", **body}
    before = repr(body)
    try:
        assert check(body, endpoint) is body
    except InvalidJobError as error:
        for line in str(error).splitlines():
            assert line.startswith(("body", "and "))
            assert "Input" not in line
    assert repr(body) == before
