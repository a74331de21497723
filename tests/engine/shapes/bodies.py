"""Request bodies of many shapes, each to be answered, or refused, as vLLM's own server does it.

A body that is refused is here because one of the two might take it. Bodies whose answers are compared are
greedy or seeded, and short.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from inferfleet.schemas import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One request body, with a name that says what is special about it.

    ``model`` is the kind of model that it is for: one that generates, one that embeds, or one that ranks.
    """

    name: str
    endpoint: Endpoint
    body: dict[str, Any]
    model: str


SAY: Final = "say a word of the sea"
HELLO: Final[list[dict[str, Any]]] = [{"role": "user", "content": SAY}]
GO: Final = {"role": "user", "content": "go"}

ZONES: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["a", "b"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TIME: Final[dict[str, Any]] = {
    "type": "function",
    "function": {"name": "get_time", "description": "d", "parameters": ZONES, "strict": True},
}
WORD: Final[dict[str, Any]] = {"type": "function", "function": {"name": "get_word"}}
THE_TIME: Final = {"type": "function", "function": {"name": "get_time"}}
CALL: Final[dict[str, Any]] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_time", "arguments": '{"zone": "a"}'},
}
TAG: Final = {
    "type": "structural_tag",
    "structures": [{"begin": "<a>", "schema": ZONES, "end": "</a>"}],
    "triggers": ["<a>"],
}


def _schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "zones", "schema": ZONES, **fields}}


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


GENERATING: Final[dict[str, dict[str, Any]]] = {
    "nothing more": {},
    # Sampling parameters, at their limits and past them.
    "temperature 1 seeded": {"temperature": 1, "seed": 5},
    "temperature 2 seeded": {"temperature": 2, "seed": 5},
    "temperature 2.01": {"temperature": 2.01},
    "temperature -0.1": {"temperature": -0.1},
    "temperature tiny seeded": {"temperature": 1e-6, "seed": 5},
    "temperature string": {"temperature": "0"},
    "temperature word": {"temperature": "hot"},
    "temperature true": {"temperature": True, "seed": 5},
    "temperature null seeded": {"temperature": None, "seed": 5},
    "temperature list": {"temperature": [0]},
    "top_p 0": {"top_p": 0},
    "top_p 1": {"top_p": 1},
    "top_p small seeded": {"top_p": 0.001, "temperature": 1, "seed": 5},
    "top_p 1.1": {"top_p": 1.1},
    "top_p string": {"top_p": "0.5"},
    "top_k 1 seeded": {"top_k": 1, "temperature": 1, "seed": 5},
    "top_k 0": {"top_k": 0},
    "top_k -1": {"top_k": -1},
    "top_k -2": {"top_k": -2},
    "top_k float": {"top_k": 3.0},
    "top_k half": {"top_k": 3.5},
    "top_k past 64 bits": {"top_k": 2**70},
    "top_k null": {"top_k": None},
    "min_p 1 seeded": {"min_p": 1, "temperature": 1, "seed": 5},
    "min_p 1.5": {"min_p": 1.5},
    "min_p -1": {"min_p": -1},
    "presence_penalty 2": {"presence_penalty": 2},
    "presence_penalty 2.1": {"presence_penalty": 2.1},
    "presence_penalty string": {"presence_penalty": "1"},
    "frequency_penalty -2": {"frequency_penalty": -2},
    "frequency_penalty -2.5": {"frequency_penalty": -2.5},
    "repetition_penalty 1.5": {"repetition_penalty": 1.5},
    "repetition_penalty 0": {"repetition_penalty": 0},
    "repetition_penalty -1": {"repetition_penalty": -1},
    "length_penalty 2": {"length_penalty": 2},
    "length_penalty null": {"length_penalty": None},
    "seed 0 sampled": {"temperature": 1, "seed": 0},
    "seed -1": {"seed": -1},
    "seed float": {"seed": 1.0},
    "seed half": {"seed": 1.5},
    "seed string": {"seed": "1", "temperature": 1},
    "seed least": {"seed": -(2**63), "temperature": 1},
    "seed greatest": {"seed": 2**63 - 1, "temperature": 1},
    "seed past the greatest": {"seed": 2**63},
    # How long.
    "max_tokens 1": {"max_tokens": 1},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens -1": {"max_tokens": -1},
    "max_tokens float": {"max_tokens": 12.0},
    "max_tokens half": {"max_tokens": 12.5},
    "max_tokens string": {"max_tokens": "12"},
    "max_tokens word": {"max_tokens": "many"},
    "max_tokens true": {"max_tokens": True},
    "max_tokens beyond the context": {"max_tokens": 100_000},
    "max_tokens huge": {"max_tokens": 2**62},
    "min_tokens 5": {"min_tokens": 5},
    "min_tokens above max_tokens": {"min_tokens": 50},
    "min_tokens -1": {"min_tokens": -1},
    "min_tokens null": {"min_tokens": None},
    "ignore_eos": {"ignore_eos": True},
    "ignore_eos word": {"ignore_eos": "yes"},
    "ignore_eos null": {"ignore_eos": None},
    # How many.
    "n 2 seeded": {"n": 2, "temperature": 1, "seed": 5},
    "n 3 seeded": {"n": 3, "temperature": 1, "seed": 6, "max_tokens": 4},
    "n 2 greedy": {"n": 2},
    "n 0": {"n": 0},
    "n -1": {"n": -1},
    "n string": {"n": "1"},
    "n float": {"n": 1.0},
    "n true": {"n": True},
    "n null": {"n": None},
    "n 130": {"n": 130, "temperature": 1, "seed": 5, "max_tokens": 1},
    "n 16385": {"n": 16_385, "temperature": 1, "max_tokens": 1},
    # Where to stop.
    "stop a string": {"stop": " the"},
    "stop a list": {"stop": ["xyz", " the"]},
    "stop four": {"stop": ["q1", "q2", "q3", "q4"]},
    "stop five": {"stop": ["q1", "q2", "q3", "q4", "q5"]},
    "stop empty list": {"stop": []},
    "stop empty string": {"stop": ""},
    "stop list with empty string": {"stop": ["a", ""]},
    "stop null": {"stop": None},
    "stop number": {"stop": 3},
    "stop list of numbers": {"stop": [3]},
    "stop in the output": {"stop": [" the", " of"], "include_stop_str_in_output": True},
    "stop of one letter": {"stop": "e"},
    "stop_token_ids": {"stop_token_ids": [300, 301, 302, 303]},
    "stop_token_ids empty": {"stop_token_ids": []},
    "stop_token_ids null": {"stop_token_ids": None},
    "stop_token_ids out of the vocabulary": {"stop_token_ids": [99_999]},
    "stop_token_ids negative": {"stop_token_ids": [-1]},
    "stop_token_ids strings": {"stop_token_ids": ["300"]},
    "stop_token_ids words": {"stop_token_ids": ["the"]},
    # Which tokens.
    "logit_bias": {"logit_bias": {"300": 50, "301": -100}},
    "logit_bias 150": {"logit_bias": {"300": 150}},
    "logit_bias -101": {"logit_bias": {"300": -101}},
    "logit_bias empty": {"logit_bias": {}},
    "logit_bias word": {"logit_bias": {"the": 1}},
    "logit_bias spaced key": {"logit_bias": {" 300 ": 1}},
    "logit_bias negative key": {"logit_bias": {"-1": 1}},
    "logit_bias out of the vocabulary": {"logit_bias": {"99999": 1}},
    "logit_bias string value": {"logit_bias": {"300": "5"}},
    "logit_bias list": {"logit_bias": [1]},
    "allowed_token_ids": {"allowed_token_ids": [300, 301, 302]},
    "allowed_token_ids empty": {"allowed_token_ids": []},
    "allowed_token_ids out of the vocabulary": {"allowed_token_ids": [99_999]},
    "bad_words": {"bad_words": ["the", "of"]},
    "bad_words empty": {"bad_words": []},
    "bad_words empty word": {"bad_words": [""]},
    "bad_words null": {"bad_words": None},
    "bad_words a string": {"bad_words": "the"},
    # How it is spelt.
    "special tokens shown": {"skip_special_tokens": False},
    "special tokens without spaces": {"spaces_between_special_tokens": False},
    "skip_special_tokens word": {"skip_special_tokens": "maybe"},
    "return_token_ids": {"return_token_ids": True},
    "return_token_ids false": {"return_token_ids": False},
    "tokens as token ids without logprobs": {"return_tokens_as_token_ids": True},
    # Logprobs of the prompt.
    "prompt_logprobs 0": {"prompt_logprobs": 0},
    "prompt_logprobs 2": {"prompt_logprobs": 2},
    "prompt_logprobs -1": {"prompt_logprobs": -1},
    "prompt_logprobs -2": {"prompt_logprobs": -2},
    "prompt_logprobs 21": {"prompt_logprobs": 21},
    "prompt_logprobs string": {"prompt_logprobs": "1"},
    "prompt_logprobs float": {"prompt_logprobs": 1.0},
    "prompt_logprobs true": {"prompt_logprobs": True},
    "prompt_logprobs null": {"prompt_logprobs": None},
    # Formats.
    "response_format text": {"response_format": {"type": "text"}},
    "response_format null": {"response_format": None},
    "response_format json_object": {"response_format": {"type": "json_object"}, "max_tokens": 30},
    "response_format json_schema": {"response_format": _schema(), "max_tokens": 60},
    "response_format json_schema strict": {"response_format": _schema(strict=True), "max_tokens": 60},
    "response_format json_schema strict null": {"response_format": _schema(strict=None), "max_tokens": 60},
    "response_format json_schema without a name": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": ZONES}}
    },
    "response_format json_schema empty name": {"response_format": _schema(name=""), "max_tokens": 60},
    "response_format json_schema without a schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}
    },
    "response_format json_schema missing": {"response_format": {"type": "json_schema"}},
    "response_format unknown": {"response_format": {"type": "xml"}},
    "response_format without a type": {"response_format": {}},
    "response_format a string": {"response_format": "json"},
    "response_format schema that is no schema": {"response_format": _schema(schema={"type": "nonsense"})},
    "response_format empty schema": {"response_format": _schema(schema={}), "max_tokens": 30},
    "response_format structural_tag": {"response_format": TAG},
    "response_format structural_tag new": {
        "response_format": {
            "type": "structural_tag",
            "format": {"type": "const_string", "value": "the sea"},
        }
    },
    "response_format structural_tag empty": {"response_format": {"type": "structural_tag"}},
    "response_format structural_tag without structures": {
        "response_format": {"type": "structural_tag", "structures": [], "triggers": []}
    },
    "structured_outputs choice": {"structured_outputs": {"choice": ["the sea", "a ship"]}},
    "structured_outputs choice empty": {"structured_outputs": {"choice": []}},
    "structured_outputs regex": {"structured_outputs": {"regex": "[ab]{3}"}},
    "structured_outputs regex broken": {"structured_outputs": {"regex": "(("}},
    "structured_outputs json": {"structured_outputs": {"json": ZONES}, "max_tokens": 60},
    "structured_outputs json as text": {"structured_outputs": {"json": '{"type": "boolean"}'}},
    "structured_outputs json_object": {"structured_outputs": {"json_object": True}, "max_tokens": 30},
    "structured_outputs grammar": {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
    "structured_outputs grammar twice the root": {
        "structured_outputs": {"grammar": 'root ::= "a"\nroot ::= "b"'}
    },
    "structured_outputs grammar broken": {"structured_outputs": {"grammar": "root ::= ("}},
    "structured_outputs two kinds": {"structured_outputs": {"regex": "a", "choice": ["a"]}},
    "structured_outputs empty": {"structured_outputs": {}},
    "structured_outputs null": {"structured_outputs": None},
    "structured_outputs a string": {"structured_outputs": "json"},
    "structured_outputs beside response_format": {
        "structured_outputs": {"choice": ["a", "b"]},
        "response_format": {"type": "text"},
    },
    "structured_outputs against response_format": {
        "structured_outputs": {"choice": ["a", "b"]},
        "response_format": {"type": "json_object"},
    },
    "guided_choice of long ago": {"guided_choice": ["a", "b"]},
    # Streams.
    "stream false": {"stream": False},
    "stream null": {"stream": None},
    "stream word": {"stream": "maybe"},
    "stream_options": {"stream": True, "stream_options": {"include_usage": True}},
    "stream_options continuous": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "stream_options unknown": {"stream": True, "stream_options": {"include_obfuscation": False}},
    "stream_options empty": {"stream": True, "stream_options": {}},
    "stream_options word": {"stream": True, "stream_options": {"include_usage": "maybe"}},
    "stream_options without stream": {"stream_options": {"include_usage": True}},
    "stream_interval 5": {"stream_interval": 5},
    "stream_interval 0": {"stream_interval": 0},
    # Whose it is, and what no engine looks at.
    "model": {"model": "tiny"},
    "model empty": {"model": ""},
    "model null": {"model": None},
    "model of somebody else": {"model": "gpt-4o"},
    "model a number": {"model": 4},
    "user": {"user": "me"},
    "user a number": {"user": 7},
    "metadata": {"metadata": {"k": "v"}},
    "metadata of twenty": {"metadata": {f"k{number}": "v" for number in range(20)}},
    "metadata of numbers": {"metadata": {"k": 1}},
    "metadata a list": {"metadata": [1]},
    "store": {"store": True},
    "service_tier": {"service_tier": "auto"},
    "service_tier unknown": {"service_tier": "gold"},
    "safety_identifier": {"safety_identifier": "s", "prompt_cache_key": "p", "verbosity": "low"},
    "unknown field": {"temprature": 1, "x": {"y": [None]}},
    "priority": {"priority": 3},
    "priority string": {"priority": "3"},
    "priority word": {"priority": "high"},
    "priority null": {"priority": None},
    "request_id": {"request_id": "mine"},
    "request_id a number": {"request_id": 1},
    "session_id": {"session_id": "s"},
    "cache_salt": {"cache_salt": "salt"},
    "cache_salt empty": {"cache_salt": ""},
    "cache_salt with a slash": {"cache_salt": "a/b"},
    "cache_salt long": {"cache_salt": "s" * 129},
    "cache_salt a number": {"cache_salt": 1},
    "vllm_xargs": {"vllm_xargs": {"a": 1, "b": "x", "c": [1, "y"]}},
    "vllm_xargs nested": {"vllm_xargs": {"a": {"b": 1}}},
    "kv_transfer_params": {"kv_transfer_params": {}},
    "use_beam_search": {"use_beam_search": True, "n": 2},
    "use_beam_search false": {"use_beam_search": False},
    "use_beam_search null": {"use_beam_search": None},
    "best_of 1": {"best_of": 1},
    "best_of below n": {"best_of": 1, "n": 2, "temperature": 1, "seed": 5},
    "best_of 0": {"best_of": 0},
    "best_of word": {"best_of": "x"},
    # The rest of vLLM's own.
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 3},
    "truncate_prompt_tokens -1": {"truncate_prompt_tokens": -1},
    "truncate_prompt_tokens -2": {"truncate_prompt_tokens": -2},
    "truncate_prompt_tokens 0": {"truncate_prompt_tokens": 0},
    "truncate_prompt_tokens beyond the context": {"truncate_prompt_tokens": 100_000},
    "truncation_side left": {"truncate_prompt_tokens": 3, "truncation_side": "left"},
    "truncation_side middle": {"truncate_prompt_tokens": 3, "truncation_side": "middle"},
    "add_special_tokens": {"add_special_tokens": True},
    "repetition_detection": {"repetition_detection": {"max_pattern_size": 3, "min_count": 2}},
    "repetition_detection bad": {"repetition_detection": {"max_pattern_size": -3}},
    "thinking_token_budget -1": {"thinking_token_budget": -1},
    "thinking_token_budget -2": {"thinking_token_budget": -2},
    "thinking_token_budget float": {"thinking_token_budget": 3.0},
    "thinking_token_budget 3": {"thinking_token_budget": 3},
    "routed_experts_prompt_start -1": {"routed_experts_prompt_start": -1},
    "routed_experts_prompt_start 1": {"routed_experts_prompt_start": 1},
    "mm_payload none": {"mm_payload": "none"},
    "mm_payload all": {"mm_payload": "all"},
    "watermarking": {"watermarking": True},
    "watermarking false": {"watermarking": False},
    "return_token_offsets": {"return_token_offsets": True},
    "prompt_embeds": {"prompt_embeds": "AAAA"},
}
"""Fields that chats and completions share; each is tried with both."""

CHATS: Final[dict[str, dict[str, Any]]] = {
    "no max_tokens": {"max_tokens": None, "stop_token_ids": list(range(259, 400))},
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 5},
    "max_completion_tokens beats max_tokens": {"max_completion_tokens": 5},
    "max_completion_tokens 0": {"max_completion_tokens": 0},
    "max_completion_tokens 0 beside max_tokens": {"max_tokens": 5, "max_completion_tokens": 0},
    "max_completion_tokens -1": {"max_completion_tokens": -1},
    "max_completion_tokens float": {"max_completion_tokens": 5.0},
    "max_tokens 0 beside max_completion_tokens": {"max_tokens": 0, "max_completion_tokens": 5},
    # Logprobs.
    "logprobs": {"logprobs": True},
    "logprobs with top 3": {"logprobs": True, "top_logprobs": 3},
    "logprobs with top 0": {"logprobs": True, "top_logprobs": 0},
    "logprobs with top null": {"logprobs": True, "top_logprobs": None},
    "logprobs with top 20": {"logprobs": True, "top_logprobs": 20, "max_tokens": 2},
    "logprobs with top 21": {"logprobs": True, "top_logprobs": 21},
    "logprobs with top -1": {"logprobs": True, "top_logprobs": -1},
    "logprobs with top -2": {"logprobs": True, "top_logprobs": -2},
    "logprobs with top string": {"logprobs": True, "top_logprobs": "3"},
    "logprobs with top float": {"logprobs": True, "top_logprobs": 3.0},
    "logprobs with top true": {"logprobs": True, "top_logprobs": True},
    "logprobs string": {"logprobs": "true"},
    "logprobs one": {"logprobs": 1},
    "logprobs zero": {"logprobs": 0},
    "logprobs five": {"logprobs": 5},
    "logprobs null": {"logprobs": None},
    "logprobs as token ids": {"logprobs": True, "return_tokens_as_token_ids": True},
    "top_logprobs without logprobs": {"top_logprobs": 2},
    "top_logprobs 0 without logprobs": {"top_logprobs": 0},
    "top_logprobs with logprobs false": {"logprobs": False, "top_logprobs": 2},
    "top_logprobs with logprobs false in a word": {"logprobs": "false", "top_logprobs": 2},
    "top_logprobs with logprobs 0 in a string": {"logprobs": "0", "top_logprobs": 2},
    "top_logprobs with logprobs empty": {"logprobs": "", "top_logprobs": 2},
    "top_logprobs 21 that nobody asks for": {"logprobs": "false", "top_logprobs": 21},
    "logprob_token_ids": {"logprobs": True, "logprob_token_ids": [300, 301]},
    "logprob_token_ids with logprobs false in a word": {"logprobs": "no", "logprob_token_ids": [300, 301]},
    "logprob_token_ids in place of top 21": {
        "logprobs": True,
        "top_logprobs": 21,
        "logprob_token_ids": [300, 301],
    },
    "logprob_token_ids without logprobs": {"logprob_token_ids": [300, 301]},
    "logprob_token_ids out of the vocabulary": {"logprobs": True, "logprob_token_ids": [99_999]},
    "logprob_token_ids of 129": {"logprobs": True, "logprob_token_ids": list(range(129))},
    "logprobs of two choices": {"logprobs": True, "top_logprobs": 1, "n": 2, "temperature": 1, "seed": 5},
    # Tools.
    "tools": {"tools": [TIME]},
    "tools two": {"tools": [TIME, WORD]},
    "tools empty": {"tools": []},
    "tools null": {"tools": None},
    "tools an object": {"tools": TIME},
    "tools without a type": {"tools": [{"function": {"name": "get_word"}}]},
    "tools type null": {"tools": [{"type": None, "function": {"name": "get_word"}}]},
    "tools without a function": {"tools": [{"type": "function"}]},
    "tools of another type": {"tools": [{"type": "custom", "custom": {"name": "shell"}}]},
    "tools of another type with a function": {"tools": [{"type": "custom", "function": {"name": "shell"}}]},
    "tools without a name": {"tools": [{"type": "function", "function": {"description": "d"}}]},
    "tools empty name": {"tools": [{"type": "function", "function": {"name": ""}}]},
    "tools odd name": {"tools": [{"type": "function", "function": {"name": "get word!"}}]},
    "tools name a number": {"tools": [{"type": "function", "function": {"name": 3}}]},
    "tools parameters null": {"tools": [{"type": "function", "function": {"name": "f", "parameters": None}}]},
    "tools parameters empty": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "tools parameters a list": {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
    "tools strict word": {"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]},
    "tools deferred": {"tools": [WORD | {"defer_loading": True}]},
    "tools twice the same": {"tools": [WORD, WORD]},
    "tool_choice auto": {"tools": [WORD], "tool_choice": "auto"},
    "tool_choice none": {"tools": [TIME], "tool_choice": "none"},
    "tool_choice null": {"tools": [WORD], "tool_choice": None},
    "tool_choice required": {"tools": [TIME], "tool_choice": "required", "max_tokens": 100},
    "tool_choice required of two": {"tools": [WORD, TIME], "tool_choice": "required", "max_tokens": 100},
    "tool_choice required cut": {"tools": [TIME], "tool_choice": "required", "max_tokens": 40},
    "tool_choice required cut early": {"tools": [TIME], "tool_choice": "required", "max_tokens": 3},
    "tool_choice named": {"tools": [TIME], "tool_choice": THE_TIME, "max_tokens": 100},
    "tool_choice named cut": {"tools": [TIME], "tool_choice": THE_TIME, "max_tokens": 8},
    "tool_choice named without a type": {
        "tools": [TIME],
        "tool_choice": {"function": {"name": "get_time"}},
        "max_tokens": 100,
    },
    "tool_choice named that is not there": {
        "tools": [TIME],
        "tool_choice": {"type": "function", "function": {"name": "get_news"}},
    },
    "tool_choice named without a name": {
        "tools": [TIME],
        "tool_choice": {"type": "function", "function": {}},
    },
    "tool_choice named empty": {
        "tools": [TIME],
        "tool_choice": {"type": "function", "function": {"name": ""}},
    },
    "tool_choice empty object": {"tools": [TIME], "tool_choice": {}},
    "tool_choice custom": {
        "tools": [TIME],
        "tool_choice": {"type": "custom", "custom": {"name": "get_time"}},
    },
    "tool_choice custom with a function": {
        "tools": [TIME],
        "tool_choice": {"type": "custom", "function": {"name": "get_time"}},
    },
    "tool_choice allowed_tools": {
        "tools": [TIME],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [THE_TIME]}},
    },
    "tool_choice unknown word": {"tools": [TIME], "tool_choice": "any"},
    "tool_choice a number": {"tools": [TIME], "tool_choice": 1},
    "tool_choice auto without tools": {"tool_choice": "auto"},
    "tool_choice required without tools": {"tool_choice": "required"},
    "tool_choice required with null tools": {"tool_choice": "required", "tools": None},
    "tool_choice none without tools": {"tool_choice": "none"},
    "tool_choice null without tools": {"tool_choice": None},
    "tool_choice none with bad tools": {"tools": [{"type": "function"}], "tool_choice": "none"},
    "parallel_tool_calls false": {
        "tools": [TIME],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 100,
    },
    "parallel_tool_calls false without tools": {"parallel_tool_calls": False},
    "parallel_tool_calls null": {"tools": [WORD], "parallel_tool_calls": None},
    "parallel_tool_calls word": {"parallel_tool_calls": "maybe"},
    "tools beside a response_format": {"tools": [WORD], "response_format": _schema(), "max_tokens": 60},
    "tools beside structured_outputs": {
        "tools": [TIME],
        "tool_choice": THE_TIME,
        "structured_outputs": {"choice": ["a"]},
    },
    "tools of two choices": {
        "tools": [TIME],
        "tool_choice": "required",
        "max_tokens": 100,
        "n": 2,
        "temperature": 1,
        "seed": 5,
    },
    "functions of long ago": {"functions": [{"name": "f"}], "function_call": "auto"},
    # The template.
    "chat_template_kwargs": {"chat_template_kwargs": {"greeting": "hi"}},
    "chat_template_kwargs unknown": {"chat_template_kwargs": {"enable_thinking": False}},
    "chat_template_kwargs a list": {"chat_template_kwargs": [1]},
    "chat_template_kwargs null": {"chat_template_kwargs": None},
    "chat_template of its own": {"chat_template": "{{ messages[0].content }}"},
    "chat_template empty": {"chat_template": ""},
    "documents": {"documents": [{"title": "t", "text": "x"}]},
    "documents of numbers": {"documents": [{"title": 1}]},
    "no generation prompt": {"add_generation_prompt": False},
    "add_generation_prompt word": {"add_generation_prompt": "maybe"},
    "add_generation_prompt null": {"add_generation_prompt": None},
    "prefill": {
        "messages": [*HELLO, {"role": "assistant", "content": "the sea is"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "prefill with a generation prompt": {
        "messages": [*HELLO, {"role": "assistant", "content": "the sea is"}],
        "add_generation_prompt": True,
        "continue_final_message": True,
    },
    "prefill with the default generation prompt": {
        "messages": [*HELLO, {"role": "assistant", "content": "the sea is"}],
        "continue_final_message": True,
    },
    "prefill of a user": {"add_generation_prompt": False, "continue_final_message": True},
    "prefill word": {"continue_final_message": "maybe"},
    "prefill with echo": {
        "messages": [*HELLO, {"role": "assistant", "content": "the sea is"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "echo": True,
    },
    "prefill of parts with echo": {
        "messages": [
            *HELLO,
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "the sea"},
                    {"type": "text", "text": ""},
                    {"type": "refusal", "refusal": "is"},
                    {"type": "thinking", "thinking": "hm"},
                ],
            },
        ],
        "add_generation_prompt": 0,
        "continue_final_message": "true",
        "echo": "yes",
    },
    "prefill without a generation prompt in words": {
        "messages": [*HELLO, {"role": "assistant", "content": "the sea is"}],
        "add_generation_prompt": "false",
        "continue_final_message": "true",
    },
    "no prefill with a generation prompt in words": {
        "messages": [*HELLO, {"role": "assistant", "content": "the sea is"}],
        "add_generation_prompt": "true",
        "continue_final_message": "false",
    },
    "no prefill in a word": {
        "messages": [*HELLO, {"role": "assistant", "content": "the sea is"}],
        "continue_final_message": "false",
        "echo": "false",
    },
    "echo": {"echo": True},
    "echo null": {"echo": None},
    "echo of an assistant": {
        "messages": [*HELLO, {"role": "assistant", "content": "the sea is"}],
        "echo": True,
    },
    "return_prompt_text": {"return_prompt_text": True},
    "reasoning_effort low": {"reasoning_effort": "low"},
    "reasoning_effort max": {"reasoning_effort": "max"},
    "reasoning_effort none": {"reasoning_effort": "none"},
    "reasoning_effort unknown": {"reasoning_effort": "lots"},
    "reasoning_effort null": {"reasoning_effort": None},
    "include_reasoning false": {"include_reasoning": False},
    "include_reasoning null": {"include_reasoning": None},
    "mm_processor_kwargs": {"mm_processor_kwargs": {"a": 1}},
    "mm_processor_kwargs empty": {"mm_processor_kwargs": {}},
    "media_io_kwargs": {"media_io_kwargs": {"image": {"a": 1}}},
    "modalities": {"modalities": ["text"]},
    "prediction": {"prediction": {"type": "content", "content": "x"}},
    "web_search_options": {"web_search_options": {}},
}
"""Fields of a chat; its messages are one of a user unless a shape has others."""

CONVERSATIONS: Final[dict[str, Any]] = {
    "empty": [],
    "a string": SAY,
    "an object": HELLO[0],
    "null": None,
    "of strings": [SAY],
    "system and user": [{"role": "system", "content": "be brief"}, *HELLO],
    "developer and user": [{"role": "developer", "content": "be brief"}, *HELLO],
    "developer with tools": [{"role": "developer", "content": "be brief", "tools": [WORD]}, *HELLO],
    "system only": [{"role": "system", "content": "be brief"}],
    "system empty": [{"role": "system", "content": ""}, *HELLO],
    "system of parts": [{"role": "system", "content": [{"type": "text", "text": "be brief"}]}, *HELLO],
    "system without content": [{"role": "system"}, *HELLO],
    "system null": [{"role": "system", "content": None}, *HELLO],
    "custom role": [{"role": "ipython", "content": "x = 1"}, *HELLO],
    "custom role without content": [{"role": "ipython"}, *HELLO],
    "empty role": [{"role": "", "content": "x"}],
    "no role": [{"content": "x"}],
    "role null": [{"role": None, "content": "x"}],
    "role a number": [{"role": 1, "content": "x"}],
    "user empty": [{"role": "user", "content": ""}],
    "user space": [{"role": "user", "content": " "}],
    "user without parts": [{"role": "user", "content": []}],
    "user null": [{"role": "user", "content": None}],
    "user without content": [{"role": "user"}],
    "user a number": [{"role": "user", "content": 5}],
    "user an object": [{"role": "user", "content": {"type": "text", "text": "x"}}],
    "user empty object": [{"role": "user", "content": {}}],
    "user twice": [*HELLO, GO],
    "user named": [{"role": "user", "content": "x", "name": "me"}],
    "user name null": [{"role": "user", "content": "x", "name": None}],
    "user name a number": [{"role": "user", "content": "x", "name": 1}],
    "user with unknown fields": [{"role": "user", "content": "x", "id": 7, "extra": {"y": 1}}],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "word"}]}
    ],
    "parts empty text": [{"role": "user", "content": [{"type": "text", "text": ""}]}],
    "parts without text": [{"role": "user", "content": [{"type": "text"}]}],
    "parts text null": [{"role": "user", "content": [{"type": "text", "text": None}]}],
    "parts text a number": [{"role": "user", "content": [{"type": "text", "text": 5}]}],
    "parts without type": [{"role": "user", "content": [{"text": "x"}]}],
    "parts strings": [{"role": "user", "content": ["one", "word"]}],
    "parts null": [{"role": "user", "content": [None]}],
    "parts a number": [{"role": "user", "content": [1]}],
    "parts of lists": [{"role": "user", "content": [["x"]]}],
    "parts unknown type": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}],
    "parts type a number": [{"role": "user", "content": [{"type": 1, "text": "x"}]}],
    "parts input_text": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}],
    "parts output_text": [{"role": "assistant", "content": [{"type": "output_text", "text": "x"}]}, GO],
    "parts refusal": [*HELLO, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, GO],
    "parts thinking": [
        *HELLO,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "closed": True}]},
        GO,
    ],
    "parts image": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.invalid/b.png"}}]}
    ],
    "parts image without url": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
    "parts image as a string": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
    "parts image only": [{"role": "user", "content": [{"image_url": "https://a.invalid/b.png"}]}],
    "parts audio": [
        {
            "role": "user",
            "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}],
        }
    ],
    "parts audio ogg": [
        {
            "role": "user",
            "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "ogg"}}],
        }
    ],
    "parts video": [
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "https://a.invalid/b"}}]}
    ],
    "parts file": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}],
    "parts tool_reference": [{"role": "user", "content": [{"type": "tool_reference", "name": "get_word"}]}],
    "assistant last": [*HELLO, {"role": "assistant", "content": "the sea"}],
    "assistant first": [{"role": "assistant", "content": "the sea"}, GO],
    "assistant empty": [*HELLO, {"role": "assistant", "content": ""}, GO],
    "assistant null": [*HELLO, {"role": "assistant", "content": None}, GO],
    "assistant nothing": [*HELLO, {"role": "assistant"}, GO],
    "assistant tool_calls empty": [*HELLO, {"role": "assistant", "content": None, "tool_calls": []}, GO],
    "assistant tool_calls null, content null": [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": None},
        GO,
    ],
    "assistant null with reasoning": [*HELLO, {"role": "assistant", "content": None, "reasoning": "h"}, GO],
    "user with a bad tool_call_id": [{"role": "user", "content": "x", "tool_call_id": 1}],
    "custom role with a bad reasoning": [{"role": "ipython", "content": "x", "reasoning": 1}, GO],
    "assistant tool_calls null": [*HELLO, {"role": "assistant", "content": "x", "tool_calls": None}, GO],
    "assistant reasoning": [*HELLO, {"role": "assistant", "content": "x", "reasoning": "hm"}, GO],
    "assistant reasoning_content": [
        *HELLO,
        {"role": "assistant", "content": "x", "reasoning_content": "h"},
        GO,
    ],
    "assistant reasoning only": [*HELLO, {"role": "assistant", "reasoning": "hm"}, GO],
    "assistant reasoning a number": [*HELLO, {"role": "assistant", "content": "x", "reasoning": 1}, GO],
    "assistant refusal": [*HELLO, {"role": "assistant", "content": None, "refusal": "no"}, GO],
    "assistant refusal null": [*HELLO, {"role": "assistant", "content": "x", "refusal": None}, GO],
    "assistant audio": [*HELLO, {"role": "assistant", "audio": {"id": "a"}}, GO],
    "assistant function_call": [
        *HELLO,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        GO,
    ],
    "assistant function_call without arguments": [
        *HELLO,
        {"role": "assistant", "content": "x", "function_call": {"name": "f"}},
        GO,
    ],
    "assistant of an answer": [
        *HELLO,
        {"role": "assistant", "content": "x", "refusal": None, "annotations": None, "audio": None}
        | {"function_call": None, "reasoning": None},
        GO,
    ],
    "tool history": [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ],
    "tool history of parts": [
        *HELLO,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "noon"}]},
    ],
    "tool history arguments an object": [
        *HELLO,
        {
            "role": "assistant",
            "tool_calls": [CALL | {"function": {"name": "get_time", "arguments": {"zone": "a"}}}],
        },
        GO,
    ],
    "tool history arguments no JSON": [
        *HELLO,
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "get_time", "arguments": "x"}}]},
        GO,
    ],
    "tool history arguments empty": [
        *HELLO,
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "get_time", "arguments": ""}}]},
        GO,
    ],
    "tool history arguments null": [
        *HELLO,
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "get_time", "arguments": None}}]},
        GO,
    ],
    "tool history arguments a JSON list": [
        *HELLO,
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "get_time", "arguments": "[1]"}}]},
        GO,
    ],
    "tool history without arguments": [
        *HELLO,
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "get_time"}}]},
        GO,
    ],
    "tool history without a name": [
        *HELLO,
        {"role": "assistant", "tool_calls": [CALL | {"function": {"arguments": "{}"}}]},
        GO,
    ],
    "tool history empty name": [
        *HELLO,
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "", "arguments": "{}"}}]},
        GO,
    ],
    "tool history without an id": [*HELLO, {"role": "assistant", "tool_calls": [_without(CALL, "id")]}, GO],
    "tool history empty id": [*HELLO, {"role": "assistant", "tool_calls": [CALL | {"id": ""}]}, GO],
    "tool history id null": [*HELLO, {"role": "assistant", "tool_calls": [CALL | {"id": None}]}, GO],
    "tool history without a type": [
        *HELLO,
        {"role": "assistant", "tool_calls": [_without(CALL, "type")]},
        GO,
    ],
    "tool history custom": [
        *HELLO,
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "x", "input": "y"}}],
        },
        GO,
    ],
    "tool history with an index": [*HELLO, {"role": "assistant", "tool_calls": [CALL | {"index": 0}]}, GO],
    "tool history an object": [*HELLO, {"role": "assistant", "tool_calls": CALL}, GO],
    "tool history of strings": [*HELLO, {"role": "assistant", "tool_calls": ["x"]}, GO],
    "tool calls of a user": [{"role": "user", "content": "x", "tool_calls": [CALL]}, GO],
    "tool without an id": [*HELLO, {"role": "tool", "content": "noon"}],
    "tool empty id": [*HELLO, {"role": "tool", "content": "noon", "tool_call_id": ""}],
    "tool id null": [*HELLO, {"role": "tool", "content": "noon", "tool_call_id": None}],
    "tool id a number": [*HELLO, {"role": "tool", "content": "noon", "tool_call_id": 1}],
    "tool without content": [*HELLO, {"role": "tool", "tool_call_id": "call_1"}],
    "tool null": [*HELLO, {"role": "tool", "tool_call_id": "call_1", "content": None}],
    "tool empty": [*HELLO, {"role": "tool", "tool_call_id": "call_1", "content": ""}],
    "tool an object": [*HELLO, {"role": "tool", "tool_call_id": "call_1", "content": {"a": 1}}],
    "function": [*HELLO, {"role": "function", "name": "f", "content": "x"}],
    "function null": [*HELLO, {"role": "function", "name": "f", "content": None}],
    "function without a name": [*HELLO, {"role": "function", "content": "x"}],
    "task": [{"role": "user", "content": "x", "task": "query"}],
    "harmony": [{"author": {"role": "user"}, "content": [{"type": "text", "text": "x"}]}],
    "longer than the context": [{"role": "user", "content": " the" * 1200}],
}
"""The field ``messages`` of a chat."""

COMPLETIONS: Final[dict[str, dict[str, Any]]] = {
    "no max_tokens": {"max_tokens": None},
    "prompt ids": {"prompt": [300, 301, 302]},
    "prompt ids of one": {"prompt": [300]},
    "prompt ids zero": {"prompt": [0]},
    "prompt ids negative": {"prompt": [-1]},
    "prompt ids out of the vocabulary": {"prompt": [99_999]},
    "prompt ids floats": {"prompt": [300.0, 301.0]},
    "prompt ids halves": {"prompt": [300.5]},
    "prompt ids strings": {"prompt": ["300", "301"]},
    "prompt ids true": {"prompt": [True]},
    "prompt lists of ids": {"prompt": [[300, 301], [302]]},
    "prompt list of one list": {"prompt": [[300, 301]]},
    "prompt lists with an empty one": {"prompt": [[300], []]},
    "prompt texts": {"prompt": ["one word", "the sea"]},
    "prompt text in a list": {"prompt": ["one word"]},
    "prompt texts with an empty one": {"prompt": ["one word", ""]},
    "prompt mixed": {"prompt": ["one word", [300]]},
    "prompt mixed ids and text": {"prompt": [300, "one"]},
    "prompt mixed text and ids": {"prompt": ["one", 300]},
    "prompt mixed lists": {"prompt": [[300], "one"]},
    "prompt lists of texts": {"prompt": [["one"]]},
    "prompt empty": {"prompt": ""},
    "prompt space": {"prompt": " "},
    "prompt empty list": {"prompt": []},
    "prompt list of an empty list": {"prompt": [[]]},
    "prompt null": {"prompt": None},
    "prompt null in a list": {"prompt": [None]},
    "prompt a number": {"prompt": 5},
    "prompt an object": {"prompt": {"text": "x"}},
    "prompt of 1025 texts": {"prompt": ["a"] * 1025, "max_tokens": 1},
    "prompt texts, two each": {"prompt": ["one", "two"], "n": 2, "temperature": 1, "seed": 5},
    "prompt that fills the context": {"prompt": [300] * 1024},
    "prompt longer than the context": {"prompt": [300] * 2000},
    "echo": {"echo": True},
    "echo ids": {"echo": True, "prompt": [300, 301]},
    "echo texts": {"echo": True, "prompt": ["one", "two"]},
    "echo two choices": {"echo": True, "n": 2, "temperature": 1, "seed": 5},
    "echo null": {"echo": None},
    "echo word": {"echo": "maybe"},
    "echo logprobs": {"echo": True, "logprobs": 1},
    "echo logprobs 0": {"echo": True, "logprobs": 0},
    "echo stop": {"echo": True, "stop": " the"},
    "echo token ids": {"echo": True, "return_token_ids": True},
    "score a prompt": {"echo": True, "max_tokens": 0, "logprobs": 1},
    "score a prompt without logprobs": {"echo": True, "max_tokens": 0},
    "score prompts": {"echo": True, "max_tokens": 0, "logprobs": 2, "prompt": ["one word", "the sea"]},
    "score ids": {"echo": True, "max_tokens": 0, "logprobs": 1, "prompt": [300, 301, 302]},
    "score with prompt_logprobs": {"echo": True, "max_tokens": 0, "prompt_logprobs": 1},
    "score in a string": {"echo": True, "max_tokens": "0", "logprobs": 1},
    "score in a string with logprob_token_ids": {
        "echo": True,
        "max_tokens": "0",
        "logprobs": 1,
        "logprob_token_ids": [300, 301],
    },
    "max_tokens 0 with logprobs": {"max_tokens": 0, "logprobs": 1},
    "logprobs 0": {"logprobs": 0},
    "logprobs 1": {"logprobs": 1},
    "logprobs 5": {"logprobs": 5},
    "logprobs 20": {"logprobs": 20, "max_tokens": 2},
    "logprobs 21": {"logprobs": 21},
    "logprobs -1": {"logprobs": -1},
    "logprob_token_ids in place of -1": {"logprobs": -1, "logprob_token_ids": [300, 301]},
    "logprob_token_ids in place of 21": {"logprobs": 21, "logprob_token_ids": [300, 301]},
    "logprobs -2": {"logprobs": -2},
    "logprobs true": {"logprobs": True},
    "logprobs false": {"logprobs": False},
    "logprobs string": {"logprobs": "1"},
    "logprobs float": {"logprobs": 1.0},
    "logprobs half": {"logprobs": 1.5},
    "logprobs null": {"logprobs": None},
    "logprobs of two choices": {"logprobs": 1, "n": 2, "temperature": 1, "seed": 5},
    "logprobs as token ids": {"logprobs": 1, "return_tokens_as_token_ids": True},
    "logprob_token_ids": {"logprobs": 2, "logprob_token_ids": [300, 301]},
    "logprob_token_ids without logprobs": {"logprob_token_ids": [300, 301]},
    "logprob_token_ids to score": {
        "logprobs": 2,
        "logprob_token_ids": [300, 301],
        "echo": True,
        "max_tokens": 0,
    },
    "suffix": {"suffix": " the end"},
    "suffix empty": {"suffix": ""},
    "suffix null": {"suffix": None},
    "suffix a number": {"suffix": 5},
    "best_of 21": {"best_of": 21},
    "best_of null": {"best_of": None},
    "messages beside": {"messages": HELLO},
    "add_special_tokens false": {"add_special_tokens": False},
}
"""Fields of a completion; its prompt is a short text unless a shape has another."""

EMBEDDINGS: Final[dict[str, dict[str, Any]]] = {
    "a text": {},
    "texts": {"input": ["one word", "the sea"]},
    "ids": {"input": [300, 301]},
    "lists of ids": {"input": [[300, 301], [302]]},
    "ids floats": {"input": [300.0]},
    "ids negative": {"input": [-1]},
    "ids out of the vocabulary": {"input": [99_999]},
    "empty": {"input": ""},
    "texts with an empty one": {"input": ["one", ""]},
    "empty list": {"input": []},
    "list of an empty list": {"input": [[]]},
    "null": {"input": None},
    "a number": {"input": 5},
    "mixed": {"input": ["one", 300]},
    "longer than the context": {"input": [300] * 2000},
    "of 2049 texts": {"input": ["a"] * 2049},
    "messages in the input": {"input": [{"role": "user", "content": "one word"}]},
    "messages in the input, of several": {"input": [HELLO, [GO]]},
    "messages beside input": {"messages": HELLO},
    "encoding_format float": {"encoding_format": "float"},
    "encoding_format base64": {"encoding_format": "base64"},
    "encoding_format bytes": {"encoding_format": "bytes"},
    "encoding_format bytes_only": {"encoding_format": "bytes_only"},
    "encoding_format unknown": {"encoding_format": "hex"},
    "encoding_format null": {"encoding_format": None},
    "embed_dtype float16": {"encoding_format": "base64", "embed_dtype": "float16"},
    "embed_dtype unknown": {"embed_dtype": "int8"},
    "endianness big": {"encoding_format": "base64", "endianness": "big"},
    "endianness unknown": {"endianness": "middle"},
    "dimensions 64": {"dimensions": 64},
    "dimensions 0": {"dimensions": 0},
    "dimensions null": {"dimensions": None},
    "dimensions word": {"dimensions": "many"},
    "use_activation false": {"use_activation": False},
    "use_activation null": {"use_activation": None},
    "normalize": {"normalize": True},
    "task": {"task": "embed"},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 1},
    "truncate_prompt_tokens -1": {"truncate_prompt_tokens": -1},
    "truncate_prompt_tokens -2": {"truncate_prompt_tokens": -2},
    "truncation_side": {"truncate_prompt_tokens": 1, "truncation_side": "left"},
    "padding": {"padding": "do_not_pad"},
    "add_special_tokens false": {"add_special_tokens": False},
    "model": {"model": "tiny"},
    "model empty": {"model": ""},
    "model of somebody else": {"model": "text-embedding-3-small"},
    "user": {"user": "me"},
    "user a number": {"user": 1},
    "priority": {"priority": 3},
    "priority word": {"priority": "high"},
    "request_id": {"request_id": "mine"},
    "cache_salt empty": {"cache_salt": ""},
    "unknown field": {"x": 1},
    "stream": {"stream": True},
}
"""Fields of an embeddings request; its input is a short text unless a shape has another."""

CHAT_EMBEDDINGS: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "messages": {"messages": [{"role": "user", "content": "one word"}]},
    "messages of several": {"messages": [HELLO, [GO]]},
    "messages empty": {"messages": []},
    "messages null": {"messages": None},
    "messages a string": {"messages": SAY},
    "messages without content": {"messages": [{"role": "user"}]},
    "messages with a custom role": {"messages": [{"role": "query", "content": "x"}]},
    "messages with a generation prompt": {"messages": HELLO, "add_generation_prompt": True},
    "messages with a template": {
        "messages": HELLO,
        "add_generation_prompt": True,
        "chat_template_kwargs": {"greeting": "hi"},
    },
    "messages to continue and to answer": {
        "messages": HELLO,
        "add_generation_prompt": True,
        "continue_final_message": True,
    },
}
"""Bodies of embeddings requests that have messages instead of an input."""


SCORING: Final[dict[str, dict[str, Any]]] = {
    "nothing more": {},
    "documents a text": {"documents": "oil"},
    "documents of one": {"documents": ["oil"]},
    "documents with an empty one": {"documents": ["", "oil"]},
    "documents empty list": {"documents": []},
    "documents null": {"documents": None},
    "documents a number": {"documents": 5},
    "documents with a number": {"documents": ["oil", 5]},
    "documents with a null": {"documents": ["oil", None]},
    "documents with a list": {"documents": ["oil", ["oil"]]},
    "documents an object": {"documents": {"text": "oil"}},
    "documents with an object": {"documents": [{"text": "oil"}]},
    "documents of parts": {"documents": {"content": [{"type": "text", "text": "oil"}]}},
    "documents with parts": {"documents": ["oil", {"content": [{"type": "text", "text": "oil"}]}]},
    "documents with an image": {
        "documents": [{"content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}]
    },
    "documents with an embedded image": {
        "documents": [{"content": [{"type": "image_embeds", "image_embeds": "AAAA"}]}]
    },
    "documents with a film": {
        "documents": [{"content": [{"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}]}]
    },
    "documents with sound": {
        "documents": [{"content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}]
    },
    "documents with no parts": {"documents": [{"content": []}]},
    "documents with parts in a text": {"documents": [{"content": "oil"}]},
    "documents with a part of no type": {"documents": [{"content": [{"text": "oil"}]}]},
    "documents with a part of no text": {"documents": [{"content": [{"type": "text"}]}]},
    "documents longer than the context": {"documents": ["oil", " the" * 1200]},
    "max_tokens_per_query": {"max_tokens_per_query": 1},
    "max_tokens_per_query 0": {"max_tokens_per_query": 0},
    "max_tokens_per_query -1": {"max_tokens_per_query": -1},
    "max_tokens_per_query null": {"max_tokens_per_query": None},
    "max_tokens_per_query beyond the context": {"max_tokens_per_query": 1024},
    "max_tokens_per_doc": {"max_tokens_per_doc": 3},
    "max_tokens_per_doc string": {"max_tokens_per_doc": "3"},
    "max_tokens_per_doc half": {"max_tokens_per_doc": 3.5},
    "max_tokens_per_doc -1": {"max_tokens_per_doc": -1},
    "max_tokens_per_doc beyond the context": {"max_tokens_per_doc": 5000},
    "instruction": {"instruction": "find what is wet"},
    "instruction null": {"instruction": None},
    "instruction a number": {"instruction": 1},
    "chat_template_kwargs": {"chat_template_kwargs": {"greeting": "hi", "tools": 1}},
    "chat_template_kwargs a list": {"chat_template_kwargs": [1]},
    "use_activation false": {"use_activation": False},
    "use_activation null": {"use_activation": None},
    "use_activation word": {"use_activation": "maybe"},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 6},
    "truncate_prompt_tokens 0": {"truncate_prompt_tokens": 0},
    "truncate_prompt_tokens -1": {"truncate_prompt_tokens": -1},
    "truncate_prompt_tokens -2": {"truncate_prompt_tokens": -2},
    "truncate_prompt_tokens beyond the context": {"truncate_prompt_tokens": 100_000},
    "truncation_side left": {"truncate_prompt_tokens": 3, "truncation_side": "left"},
    "truncation_side middle": {"truncation_side": "middle"},
    "padding max_length": {"padding": "max_length"},
    "padding unknown": {"padding": "longest"},
    "mm_processor_kwargs": {"mm_processor_kwargs": {"a": 1}},
    "model": {"model": "tiny"},
    "model empty": {"model": ""},
    "model of somebody else": {"model": "rerank-v3.5"},
    "user": {"user": "me"},
    "priority": {"priority": 3},
    "priority word": {"priority": "high"},
    "request_id": {"request_id": "mine"},
    "cache_salt": {"cache_salt": "salt"},
    "cache_salt empty": {"cache_salt": ""},
    "normalize": {"normalize": True},
    "task": {"task": "score"},
    "return_documents": {"return_documents": False},
    "stream": {"stream": True},
    "add_special_tokens": {"add_special_tokens": False},
}
"""Fields that rerank and score share. Each document is another one, so that no two scores are the same."""

RERANKS: Final[dict[str, dict[str, Any]]] = {
    "query empty": {"query": ""},
    "query and documents empty": {"query": "", "documents": ["oil", ""]},
    "query null": {"query": None},
    "query a number": {"query": 5},
    "query a list": {"query": ["the water"]},
    "query an object": {"query": {"text": "the water"}},
    "query of parts": {"query": {"content": [{"type": "text", "text": "the water"}]}},
    "top_n 1": {"top_n": 1},
    "top_n 2": {"top_n": 2},
    "top_n 0": {"top_n": 0},
    "top_n -1": {"top_n": -1},
    "top_n more than there are": {"top_n": 30},
    "top_n string": {"top_n": "1"},
    "top_n half": {"top_n": 1.5},
    "top_n true": {"top_n": True},
    "top_n null": {"top_n": None},
}
"""Fields of a rerank request; it has a short query and three documents unless a shape has others."""

SCORES: Final[dict[str, dict[str, Any]]] = {
    "queries of one": {"queries": ["the water"]},
    "queries, one each": {"queries": ["the water", "the people", "oil"]},
    "queries, fewer": {"queries": ["the water", "the people"]},
    "queries, more": {"queries": ["the water", "the people", "oil", "go"]},
    "queries for one document": {"queries": ["the water", "the people"], "documents": "oil"},
    "queries empty": {"queries": ""},
    "queries and documents empty": {"queries": "", "documents": ""},
    "queries empty list": {"queries": []},
    "queries null": {"queries": None},
    "queries of parts": {"queries": {"content": [{"type": "text", "text": "the water"}]}},
    "two spellings": {"text_1": "go", "text_2": ["oil", "number"]},
    "two spellings, half of one": {"text_1": "go"},
    "two second sides": {"items": ["go", "see"]},
    "top_n": {"top_n": 1},
}
"""Fields of a score request; it has a short query and three documents unless a shape has others."""

SPELT: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "items": {"queries": "the water", "items": ["oil", "go"]},
    "items, fewer": {"queries": ["the water", "go", "see"], "items": ["oil", "go"]},
    "data": {"data_1": "the water", "data_2": ["oil", "go"]},
    "data, one each": {"data_1": ["the water", "see"], "data_2": ["oil", "go"]},
    "data, more": {"data_1": ["the water", "see"], "data_2": "oil"},
    "texts": {"text_1": "the water", "text_2": "oil"},
    "texts a number": {"text_1": "the water", "text_2": 5},
    "half a spelling": {"text_1": "the water"},
    "halves of two": {"queries": "the water", "text_2": "oil"},
    "another endpoint's": {"query": "the water", "documents": "oil"},
}
"""Bodies of score requests, whole."""

BY_EMBEDDINGS: Final = (
    "nothing more",
    "documents a text",
    "documents with an empty one",
    "documents with parts",
    "documents longer than the context",
    "max_tokens_per_doc",
    "max_tokens_per_query",
    "truncate_prompt_tokens",
    "padding max_length",
    "use_activation false",
    "cache_salt",
    "top_n 2",
    "query empty",
    "queries empty",
    "queries, one each",
    "queries, fewer",
)
"""Those of these shapes that an embedding model is asked, too."""


def all_shapes() -> list[Shape]:
    """Make every body of the tables above, each with its endpoint and a name of its own."""
    chats = {
        **GENERATING,
        **CHATS,
        **{f"messages {name}": {"messages": messages} for name, messages in CONVERSATIONS.items()},
    }
    completions = GENERATING | COMPLETIONS
    reranks, scores = SCORING | RERANKS, SCORING | SCORES
    return [
        *(_shape("chat", Endpoint.CHAT, name, CHAT | fields) for name, fields in chats.items()),
        *(
            _shape("completion", Endpoint.COMPLETIONS, name, COMPLETION | fields)
            for name, fields in completions.items()
        ),
        *(
            _shape("embedding", Endpoint.EMBEDDINGS, name, EMBEDDING | fields)
            for name, fields in EMBEDDINGS.items()
        ),
        *(_shape("embedding", Endpoint.EMBEDDINGS, name, fields) for name, fields in CHAT_EMBEDDINGS.items()),
        *(_shape("rerank", Endpoint.RERANK, name, RERANK | fields) for name, fields in reranks.items()),
        *(_shape("score", Endpoint.SCORE, name, SCORE | fields) for name, fields in scores.items()),
        *(_shape("score", Endpoint.SCORE, f"spelt {name}", body) for name, body in SPELT.items()),
        *(
            _shape(f"{kind} by embeddings", endpoint, name, body | fields[name], model="embeds")
            for kind, endpoint, body, fields in (
                ("rerank", Endpoint.RERANK, RERANK, reranks),
                ("score", Endpoint.SCORE, SCORE, scores),
            )
            for name in BY_EMBEDDINGS
            if name in fields
        ),
    ]


CHAT: Final[dict[str, Any]] = {"messages": HELLO, "max_tokens": 12, "temperature": 0}
COMPLETION: Final[dict[str, Any]] = {"prompt": "one word of", "max_tokens": 12, "temperature": 0}
EMBEDDING: Final[dict[str, Any]] = {"input": "one word"}
DOCUMENTS: Final = ["one word of the sea", "call the people", "oil"]
RERANK: Final[dict[str, Any]] = {"query": "the water", "documents": DOCUMENTS}
SCORE: Final[dict[str, Any]] = {"queries": "the water", "documents": DOCUMENTS}

MODELS: Final = {
    Endpoint.CHAT: "generates",
    Endpoint.COMPLETIONS: "generates",
    Endpoint.EMBEDDINGS: "embeds",
    Endpoint.RERANK: "ranks",
    Endpoint.SCORE: "ranks",
}
"""What a model does that answers an endpoint, if a shape does not say otherwise."""


LISTS: Final[list[Any]] = [[], [1], ["x"], [None], ["1"], [1.0], [-1], [True], [[1]], [{}]]
OBJECTS: Final[list[Any]] = [{}, {"x": 1}, {"1": 1}, {"x": "y"}, {"1": "x"}, {"x": {}}, {"x": None}]
VALUES: Final[dict[str, Any]] = {
    **{repr(value): value for value in (None, True, False, 0, 1, -1, -2, 2, 21, 1.0, 0.5, 2**63)},
    **{repr(value): value for value in ("1", "0", "-1", "1.0", "0.5", "x", "", "true", "no", "nan", " 1 ")},
    **{repr(value): value for value in LISTS},
    **{repr(value): value for value in OBJECTS},
}


def sweep(fields: Mapping[Endpoint, Collection[str]], *, but: Collection[str]) -> list[Shape]:
    """Make a body for each value in each field of each endpoint, for the shortest answer there is."""
    bodies = {
        Endpoint.CHAT: CHAT | {"max_tokens": 1},
        Endpoint.COMPLETIONS: COMPLETION | {"max_tokens": 1},
        Endpoint.EMBEDDINGS: EMBEDDING,
        Endpoint.RERANK: RERANK,
        Endpoint.SCORE: SCORE,
    }
    return [
        _shape(f"{endpoint} {field}", endpoint, name, bodies[endpoint] | {field: value})
        for endpoint, names in fields.items()
        for field in sorted(set(names) - set(but))
        for name, value in VALUES.items()
    ]


def _shape(
    kind: str, endpoint: Endpoint, name: str, body: dict[str, Any], *, model: str | None = None
) -> Shape:
    return Shape(name=f"{kind}: {name}", endpoint=endpoint, body=body, model=model or MODELS[endpoint])
