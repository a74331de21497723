"""Which answers another attempt may continue. No engine is needed to say so."""

from __future__ import annotations

import pytest

from inferfleet.schemas import Endpoint
from inferfleet.worker.engines.vllm.resumable import resumable

TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 1},
        {"temperature": 1, "seed": 1},
        {"logprobs": False},
        {"presence_penalty": 0},
        {"frequency_penalty": 0.0},
        {"seed": 0, "temperature": 0, "min_tokens": 0},
        {"echo": False, "bad_words": [], "prompt_logprobs": None},
        {"repetition_penalty": 1.1},
        {"response_format": {"type": "text"}},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "none", "parallel_tool_calls": False},
        {"stop": ["\n"], "tools": 3},
    ],
    ids=str,
)
def test_one_text_can_be_continued(fields):
    assert resumable(Endpoint.CHAT, {"messages": []} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"logprobs": 0},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"bad_words": ["no"]},
        {"prompt_logprobs": 1},
        {"prompt_logprobs": 0},
        {"thinking_token_budget": 0},
        {"echo": True},
        {"structured_outputs": {"regex": "a"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"tools": TOOLS, "parallel_tool_calls": False},
        {"tools": [*TOOLS, {"type": "function", "function": {"name": "f", "strict": True}}]},
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2]]},
    ],
    ids=str,
)
def test_what_a_grammar_or_a_penalty_shapes_cannot(fields):
    assert not resumable(Endpoint.CHAT, {"messages": []} | fields)


@pytest.mark.parametrize("logprobs", [False, True, 0, 1])
def test_a_completion_with_logprobs_cannot_whatever_their_number(logprobs):
    assert not resumable(Endpoint.COMPLETIONS, {"prompt": "x", "logprobs": logprobs})


def test_an_embedding_cannot_be_continued():
    assert not resumable(Endpoint.EMBEDDINGS, {"input": "x"})


def test_one_prompt_of_token_ids_is_one_prompt():
    assert resumable(Endpoint.COMPLETIONS, {"prompt": [300, 301]})
