"""Each way in which a request body can be wrong, and the sentence that says so."""

from __future__ import annotations

from typing import Any

import pytest

from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.request import check_request

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


CONSTRAINTS = "json, regex, choice, grammar, json_object, structural_tag"


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
        ({"top_p": 0}, "body.top_p: 0 is too low; it must be above 0"),
        ({"top_p": 1.1}, "body.top_p: 1.1 is above the maximum 1"),
        ({"n": 0}, "body.n: 0 is below the minimum 1"),
        ({"n": 16_385}, "body.n: 16385 is above the maximum 16384"),
        ({"n": 2, "temperature": 0}, "body.n: 2 choices are the same at temperature 0; raise temperature"),
        ({"max_tokens": 0}, "body.max_tokens: 0 is below the minimum 1"),
        ({"max_tokens": 1.5}, "body.max_tokens: must be a whole number, not 1.5"),
        ({"max_completion_tokens": -5}, "body.max_completion_tokens: -5 is below the minimum 1"),
        ({"presence_penalty": -3}, "body.presence_penalty: -3 is below the minimum -2"),
        ({"frequency_penalty": 3}, "body.frequency_penalty: 3 is above the maximum 2"),
        ({"seed": 2**63}, f"body.seed: {2**63} is above the maximum {2**63 - 1}"),
        ({"stop": ""}, "body.stop: is empty; at least 1 character is needed"),
        ({"stop": [1]}, "body.stop[0]: must be a string, not a number"),
        ({"stop": list("12345")}, "body.stop: has 5 items; at most 4 are allowed"),
        ({"stop": 1}, "body.stop: must be a string or a list of strings, not a number"),
        ({"logprobs": 5}, "body.logprobs: must be true or false, not 5"),
        ({"logprobs": True, "top_logprobs": 21}, "body.top_logprobs: 21 is above the maximum 20"),
        ({"top_logprobs": 2}, "body.top_logprobs: 2 needs logprobs: true beside it"),
        ({"logprobs": False, "top_logprobs": 2}, "body.top_logprobs: 2 needs logprobs: true beside it"),
        ({"logit_bias": {"-1": 1}}, "body.logit_bias.-1: must be a token id, such as 50256"),
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
        ({"tools": [{}]}, "body.tools[0].function: is missing"),
        (
            {"tools": [{"type": "custom", "function": {"name": "f"}}]},
            "body.tools[0].type: 'custom' is not one of 'function'",
        ),
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
        ({"stream": "maybe"}, "body.stream: must be true or false, not a string"),
        ({"user": 7}, "body.user: must be a string, not a number"),
        ({"min_tokens": 5, "max_tokens": 4}, "body.min_tokens: 5 is above max_tokens, which is 4"),
        (
            {"max_tokens": 5, "max_completion_tokens": 0},
            "body.max_completion_tokens: 0 is below the minimum 1",
        ),
        ({"top_k": -2}, "body.top_k: -2 is below the minimum -1"),
        ({"min_p": 2}, "body.min_p: 2 is above the maximum 1"),
        ({"prompt_logprobs": "1"}, "body.prompt_logprobs: must be a whole number, not a string"),
        (
            {"use_beam_search": True},
            "body.use_beam_search: a job's tokens come in order, so beam search is not supported",
        ),
        ({"bad_words": None}, "body.bad_words: must be a list, not null"),
        ({"logprob_token_ids": [7]}, "body.logprob_token_ids: needs logprobs: true beside it"),
        (
            {"continue_final_message": True},
            "body.continue_final_message: needs add_generation_prompt: false beside it",
        ),
        (
            {"continue_final_message": "true", "add_generation_prompt": "false"},
            "body.continue_final_message: needs add_generation_prompt: false beside it",
        ),
        (
            {"continue_final_message": "false", "add_generation_prompt": "true"},
            "body.continue_final_message: needs add_generation_prompt: false beside it",
        ),
        (
            {"truncate_prompt_tokens": 0},
            "body.truncate_prompt_tokens: 0 leaves nothing of the prompt; omit the field",
        ),
        (
            {"repetition_detection": {"max_pattern_size": 1}},
            "body.repetition_detection.min_count: must be at least 2 beside max_pattern_size",
        ),
        (
            {"structured_outputs": {}},
            "body.structured_outputs: has no constraint; exactly one of " + CONSTRAINTS + " is needed",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "body.structured_outputs: has regex and choice; exactly one of " + CONSTRAINTS + " is needed",
        ),
        (
            {"structured_outputs": {"json_object": False}},
            "body.structured_outputs.json_object: must be true; leave structured_outputs out instead",
        ),
        (
            {"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}},
            "body.structured_outputs: asks for another format than response_format; keep one",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "body.response_format.json_schema.schema: is missing",
        ),
        (
            {"response_format": {"type": "structural_tag"}},
            "body.response_format: the type 'structural_tag' needs a format, or structures and triggers",
        ),
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
        ([{"role": 1, "content": "x"}], "body.messages[0].role: must be a string, not a number"),
        (["hello"], "body.messages[0]: must be an object, not a string"),
        (
            [{"role": "user", "content": None}],
            "body.messages[0].content: must be a string or a list of content parts, not null",
        ),
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
        (
            [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}],
                }
            ],
            "body.messages[0].tool_calls[0].function.arguments: is missing",
        ),
        (
            [{"role": "tool", "content": "x", "tool_call_id": 1}],
            "body.messages[0].tool_call_id: must be a string, not a number",
        ),
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


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "body.max_tokens: 0 is below the minimum 1"),
        ({"min_tokens": 17}, "body.min_tokens: 17 is above max_tokens, which is 16"),
        ({"logprobs": "1"}, "body.logprobs: must be a whole number, not a string"),
        ({"logprob_token_ids": [7]}, "body.logprob_token_ids: needs logprobs beside it"),
        (
            {"max_tokens": 0, "echo": True, "logprobs": 1, "logprob_token_ids": [7]},
            "body.logprob_token_ids: needs an answer, and max_tokens is 0",
        ),
        ({"prompt": ["a"] * 1025}, "body.prompt: has 1,025 items; at most 1,024 are allowed"),
        ({"prompt": None}, "body.prompt: is missing"),
    ],
    ids=str,
)
def test_limits_of_completions_are_told(fields: dict[str, Any], words: str) -> None:
    assert refusal({"prompt": "a", **fields}, Endpoint.COMPLETIONS) == words


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": "false", "top_logprobs": 2},
        {"logprobs": "0", "top_logprobs": 2},
        {"logprobs": "no", "logprob_token_ids": [7]},
    ],
    ids=str,
)
def test_what_vllm_compares_before_it_reads_it_agrees_as_it_is_spelt(fields: dict[str, Any]) -> None:
    check_request(Endpoint.CHAT, {"messages": HELLO, **fields}, max_body_bytes=1024)
    unset = fields | {"logprobs": 0}
    assert "needs logprobs: true beside it" in refusal({"messages": HELLO, **unset})


def test_a_score_of_named_tokens_is_refused_only_where_vllm_sees_the_zero() -> None:
    body = {"prompt": "a", "max_tokens": "0", "echo": True, "logprobs": 1, "logprob_token_ids": [7]}
    check_request(Endpoint.COMPLETIONS, body, max_body_bytes=1024)
    assert "needs an answer" in refusal(body | {"max_tokens": 0.0}, Endpoint.COMPLETIONS)


def test_a_prompt_is_scored_without_an_answer() -> None:
    body = {"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 1}
    check_request(Endpoint.COMPLETIONS, body, max_body_bytes=1024)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"input": "a", "encoding_format": "bytes"},
            "body.encoding_format: 'bytes' is not one of 'float' or 'base64'",
        ),
        ({"input": "a", "normalize": True}, "body.normalize: vLLM no longer has it; use use_activation"),
        ({"messages": []}, "body.messages: is empty; at least 1 item is needed"),
        ({"messages": [[]]}, "body.messages[0]: is empty; at least 1 item is needed"),
        ({"messages": [{"content": "x"}]}, "body.messages[0].role: is missing"),
        (
            {"input": [{"role": "user", "content": 5}]},
            "body.input[0].content: must be a string or a list of content parts, not a number",
        ),
        (
            {"messages": HELLO, "add_generation_prompt": True, "continue_final_message": True},
            "body.continue_final_message: needs add_generation_prompt: false beside it",
        ),
    ],
    ids=str,
)
def test_limits_of_embeddings_are_told(fields: dict[str, Any], words: str) -> None:
    assert refusal(fields, Endpoint.EMBEDDINGS) == words


@pytest.mark.parametrize(
    "body", [{"messages": HELLO}, {"messages": [HELLO, HELLO]}, {"input": HELLO}], ids=str
)
def test_a_conversation_can_be_embedded(body: dict[str, Any]) -> None:
    check_request(Endpoint.EMBEDDINGS, body, max_body_bytes=1024)


@pytest.mark.parametrize(
    ("endpoint", "body", "words"),
    [
        (Endpoint.RERANK, {}, "body.query: is missing\nbody.documents: is missing"),
        (
            Endpoint.RERANK,
            {"query": ["a"], "documents": "b"},
            "body.query: must be a string or an object with content parts, not a list",
        ),
        (
            Endpoint.RERANK,
            {"query": "a", "documents": []},
            "body.documents: is empty; at least 1 item is needed",
        ),
        (
            Endpoint.RERANK,
            {"query": "a", "documents": ["b", 5]},
            "body.documents[1]: must be a string or an object with content parts, not a number",
        ),
        (
            Endpoint.RERANK,
            {"query": "a", "documents": [{"content": [{"type": "input_audio"}]}]},
            "body.documents[0].content[0].type: 'input_audio' is not one of 'text', 'image_url', "
            "'image_embeds', 'video_url'",
        ),
        (
            Endpoint.RERANK,
            {"query": "a", "documents": "b", "top_n": -1},
            "body.top_n: -1 is below the minimum 0",
        ),
        (Endpoint.SCORE, {"text_2": "a"}, "body.text_1: is missing"),
        (Endpoint.SCORE, {"queries": "a"}, "body.documents: is missing"),
        (
            Endpoint.SCORE,
            {"data_1": ["a", "b"], "data_2": ["c", "d", "e"]},
            "body.data_2: has 3, and data_1 has 2; give as many of both, or only one in data_1",
        ),
        (
            Endpoint.SCORE,
            {"queries": ["a", "b"], "items": "c"},
            "body.items: has 1, and queries has 2; give as many of both, or only one in queries",
        ),
        (
            Endpoint.SCORE,
            {"queries": "a", "documents": "b", "max_tokens_per_doc": -1},
            "body.max_tokens_per_doc: -1 is below the minimum 0",
        ),
    ],
    ids=str,
)
def test_limits_of_scores_are_told(endpoint: Endpoint, body: dict[str, Any], words: str) -> None:
    assert refusal(body, endpoint) == words


@pytest.mark.parametrize("first", ["queries", "data_1", "text_1"])
def test_one_text_is_compared_with_many_and_many_with_as_many(first: str) -> None:
    second = {"queries": "items", "data_1": "data_2", "text_1": "text_2"}[first]
    picture = {"content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}
    for one, other in (("a", "b"), ("a", ["b", picture]), (["a"], ["b", "c"]), (["a", "b"], ["c", ""])):
        check_request(Endpoint.SCORE, {first: one, second: other}, max_body_bytes=1024)
