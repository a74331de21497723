"""Requests to OpenAI's Responses API as chats."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from inferfleet.producer.openai.refusals import RefusedError
from inferfleet.producer.openai.response_items import items_of, messages_of, read_items
from inferfleet.producer.openai.response_requests import NOT_SUPPORTED, AskedResponse, read_response_request
from inferfleet.schemas.job import Priority

SCHEMA = {"type": "object"}


def read(**body: Any) -> AskedResponse:
    return read_response_request({}, orjson.dumps({"input": "hello", **body}))


def test_a_request_becomes_a_chat() -> None:
    function = {"name": "f", "parameters": {}, "strict": True}
    asked = read(
        model="tiny",
        max_output_tokens=7,
        parallel_tool_calls=False,
        reasoning={"effort": "low"},
        temperature=0.5,
        text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
        tools=[{"type": "function", **function}],
        tool_choice={"type": "function", "name": "f"},
        top_p=0.9,
        truncation="auto",
        user="me",
        top_k=3,
        metadata={"a": "b"},
        service_tier="fast",
    ).asked

    assert asked.body == {
        "model": "tiny",
        "max_completion_tokens": 7,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "temperature": 0.5,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
        },
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "top_p": 0.9,
        "truncate_prompt_tokens": -1,
        "user": "me",
        "top_k": 3,
    }
    assert (asked.options["metadata"], asked.options["priority"]) == ({"a": "b"}, Priority.HIGH)


def test_what_is_not_given_is_left_to_the_engine() -> None:
    asked = read(tool_choice="auto", text={"format": {"type": "text"}}, temperature=None, moderation=None)

    assert asked.asked.body == {}
    assert asked.stored
    assert asked.shown["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        *(({name: {}}, name) for name in NOT_SUPPORTED),
        ({"background": "yes"}, "background"),
        ({"conversation": "a", "previous_response_id": "b"}, "previous_response_id"),
        ({"conversation": 3}, "conversation"),
        ({"conversation": {}}, "conversation.id"),
        ({"conversation": "a", "store": False}, "store"),
        ({"include": ["message.output_text.logprobs"]}, "include[0]"),
        ({"include": "x"}, "include"),
        ({"inferfleet": {"tenant": "x"}}, "inferfleet.tenant"),
        ({"inferfleet": {"session_id": "x"}}, "conversation"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": None}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": ["user"], "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "x", "id": 3}]}, "input[0].id"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "x", "detail": []}]}
                ]
            },
            "input[0].content[0].detail",
        ),
        (
            {"input": [{"role": "assistant", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "content": [{}]}]}, "input[0].content[0].text"),
        ({"after": ["x"]}, "after"),
        ({"background": True, "inferfleet": {"not_before": "x"}}, "inferfleet.not_before"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"service_tier": "ultrafast"}, "service_tier"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "mcp", "name": "f"}}, "tool_choice.type"),
        ({"tools": [{"type": "mcp", "name": "f"}]}, "tools[0].type"),
        ({"truncation": "some"}, "truncation"),
    ],
    ids=lambda each: orjson.dumps(each).decode() if isinstance(each, dict) else "",
)
def test_a_refusal_names_the_member(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(**body)

    assert refused.value.refusal.param == param
    assert refused.value.refusal.status == 400


def test_items_become_messages_and_messages_items() -> None:
    given = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "x", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "d", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "three"},
        {"type": "function_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "four"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "five"},
                {"type": "input_image", "image_url": "data:x", "detail": "low"},
            ],
        },
    ]

    messages = messages_of(read_items(given, "input", prefix="x"))

    calls = [
        {"id": name, "type": "function", "function": {"name": function, "arguments": "{}"}}
        for name, function in (("c", "f"), ("d", "g"))
    ]
    assert messages == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "reasoning": "hm", "content": "two", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "three"},
        {"role": "tool", "tool_call_id": "d", "content": "four"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "five"},
                {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
            ],
        },
    ]
    assert messages_of(items_of(messages, prefix="y")) == messages


def test_items_with_the_same_id_get_others() -> None:
    item = {"role": "user", "content": "x", "id": "msg_a"}

    items = read_items([item, item, item], "input", prefix="x")

    assert [each["id"] for each in items] == ["msg_a", "msg_x_1", "msg_x_2"]


def test_reasoning_that_led_to_nothing_is_no_message() -> None:
    given = [{"type": "reasoning", "content": [{"text": "hm"}]}, {"role": "user", "content": "hello"}]

    assert messages_of(read_items(given, "input", prefix="x")) == [{"role": "user", "content": "hello"}]
