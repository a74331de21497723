"""Each way in which a request body can be wrong, and the sentence that says so."""

from __future__ import annotations

from typing import Any

import pytest

from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.request import check_request

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def refusal(body: object, endpoint: Endpoint = Endpoint.CHAT) -> str:
    with pytest.raises(InvalidJobError) as caught:
        check_request(endpoint, body, max_body_bytes=1024 * 1024)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -1}, "body.temperature: -1 is below the minimum 0"),
        ({"temperature": 2.5}, "body.temperature: 2.5 is above the maximum 2"),
        ({"temperature": "hot"}, "body.temperature: must be a number, not a string"),
        ({"temperature": "0.5"}, "body.temperature: must be a number, not a string"),
        ({"temperature": True}, "body.temperature: must be a number, not true"),
        ({"top_p": 0}, "body.top_p: 0 is too low; it must be above 0"),
        ({"top_p": 1.1}, "body.top_p: 1.1 is above the maximum 1"),
        ({"n": 0}, "body.n: 0 is below the minimum 1"),
        ({"n": 129}, "body.n: 129 is above the maximum 128"),
        ({"n": True}, "body.n: must be a whole number, not true"),
        ({"max_tokens": 0}, "body.max_tokens: 0 is below the minimum 1"),
        ({"max_tokens": 1.5}, "body.max_tokens: must be a whole number, not 1.5"),
        ({"max_completion_tokens": -5}, "body.max_completion_tokens: -5 is below the minimum 1"),
        ({"presence_penalty": -3}, "body.presence_penalty: -3 is below the minimum -2"),
        ({"frequency_penalty": 3}, "body.frequency_penalty: 3 is above the maximum 2"),
        ({"seed": 2**63}, f"body.seed: {2**63} is above the maximum {2**63 - 1}"),
        ({"stop": ""}, "body.stop: is empty; at least 1 character is needed"),
        ({"stop": [1]}, "body.stop[0]: must be a string, not a number"),
        ({"stop": 1}, "body.stop: must be a string or a list of strings, not a number"),
        ({"logprobs": 5}, "body.logprobs: must be true or false, not 5"),
        ({"logprobs": True, "top_logprobs": 21}, "body.top_logprobs: 21 is above the maximum 20"),
        ({"top_logprobs": 2}, "body.top_logprobs: 2 needs logprobs: true beside it"),
        ({"logprobs": False, "top_logprobs": 2}, "body.top_logprobs: 2 needs logprobs: true beside it"),
        ({"logit_bias": {"7": 101}}, "body.logit_bias.7: 101 is above the maximum 100"),
        ({"logit_bias": {"the": 1}}, "body.logit_bias.the: must be a token id, such as 50256"),
        (
            {"response_format": {"type": "xml"}},
            "body.response_format.type: 'xml' is not one of 'text', 'json_object', 'json_schema' or "
            "'structural_tag'",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "body.response_format: the type 'json_schema' needs the field json_schema",
        ),
        ({"response_format": "json"}, "body.response_format: must be an object, not a string"),
        ({"tools": []}, "body.tools: is empty; at least 1 item is needed"),
        ({"tools": [{"type": "function"}]}, "body.tools[0].function: is missing"),
        ({"tools": [{}]}, "body.tools[0].type: is missing"),
        ({"tool_choice": "auto"}, "body.tool_choice: needs tools beside it"),
        (
            {"tools": [WEATHER], "tool_choice": "any"},
            "body.tool_choice: 'any' is not one of 'none', 'auto' or 'required'",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "news"}}},
            "body.tool_choice: names a function that is not among the tools",
        ),
        (
            {"tools": [WEATHER], "tool_choice": 1},
            "body.tool_choice: must be 'none', 'auto', 'required' or an object that names a function, "
            "not a number",
        ),
        ({"stream": "yes"}, "body.stream: must be true or false, not a string"),
        ({"user": 7}, "body.user: must be a string, not a number"),
    ],
    ids=str,
)
def test_a_bad_field_is_named_with_its_value_and_what_is_allowed(fields: dict[str, Any], words: str) -> None:
    assert refusal({"messages": HELLO, **fields}) == words


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "body.messages: is empty; at least 1 item is needed"),
        ("hello", "body.messages: must be a list, not a string"),
        (tuple(HELLO), "body.messages: must be a list, not a tuple"),
        ([{"content": "x"}], "body.messages[0].role: is missing"),
        (
            [{"role": "wizard", "content": "x"}],
            "body.messages[0].role: 'wizard' is not one of 'system', 'developer', 'user', 'assistant', "
            "'tool', 'function'",
        ),
        (["hello"], "body.messages[0]: must be an object, not a string"),
        (
            [{"role": "user", "content": ""}],
            "body.messages[0].content: is empty; at least 1 character is needed",
        ),
        ([{"role": "user", "content": []}], "body.messages[0].content: is empty; at least 1 item is needed"),
        (
            [*HELLO, {"role": "user", "content": [{"type": "text", "text": ""}]}],
            "body.messages[1].content: is empty; all its parts are empty text",
        ),
        ([{"role": "user"}], "body.messages[0].content: is missing"),
        (
            [{"role": "user", "content": 5}],
            "body.messages[0].content: must be a string or a list of content parts, not a number",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "body.messages[0].content[0].text: is missing"),
        ([{"role": "user", "content": [{"text": "x"}]}], "body.messages[0].content[0].type: is missing"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "body.messages[0].content[0].image_url.url: is missing",
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": "A", "format": "ogg"}}],
                }
            ],
            "body.messages[0].content[0].input_audio.format: 'ogg' is not one of 'wav' or 'mp3'",
        ),
        ([{"role": "assistant"}], "body.messages[0]: an assistant message needs content or tool_calls"),
        (
            [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}],
                }
            ],
            "body.messages[0].tool_calls[0].function.arguments: is missing",
        ),
        ([{"role": "tool", "content": "x"}], "body.messages[0].tool_call_id: is missing"),
    ],
    ids=str,
)
def test_a_bad_message_is_pointed_at(messages: object, words: str) -> None:
    assert refusal({"messages": messages}) == words


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "is empty; at least 1 character is needed"),
        ([], "is empty; at least 1 item is needed"),
        ([[]], "[0]: is empty; at least 1 item is needed"),
        (["a", ""], "[1]: is empty; at least 1 character is needed"),
        ([1, "a"], "[1]: must be a whole number, not a string"),
        ([1, -2], "[1]: -2 is below the minimum 0"),
        (
            5,
            "must be a string, a list of strings, a list of token ids or a list of such lists, not a number",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("endpoint", "field"), [(Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")]
)
def test_an_empty_or_mixed_prompt_is_refused(
    endpoint: Endpoint, field: str, prompt: object, words: str
) -> None:
    path = f"body.{field}" if words.startswith("[") else f"body.{field}: "
    assert refusal({field: prompt}, endpoint) == path + words


def test_the_fields_that_a_body_cannot_go_without_are_missed() -> None:
    assert refusal({}) == "body.messages: is missing"
    assert refusal({}, Endpoint.COMPLETIONS) == "body.prompt: is missing"
    assert refusal({}, Endpoint.EMBEDDINGS) == "body.input: is missing"


def test_limits_of_the_other_endpoints_are_told() -> None:
    assert (
        refusal({"prompt": "a", "n": 3, "best_of": 2}, Endpoint.COMPLETIONS)
        == "body.best_of: 2 is below n, which is 3"
    )
    assert refusal({"input": ["a"] * 2049}, Endpoint.EMBEDDINGS) == (
        "body.input: has 2,049 items; at most 2,048 are allowed"
    )
