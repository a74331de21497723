"""What an answer looks like, and that it is vLLM's own."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from openai.types import Completion as OpenAICompletion
from openai.types.chat import ChatCompletion

# An engine lives as long as the event loop that started it.
pytestmark = pytest.mark.asyncio(loop_scope="session")


def a_chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24} | fields


async def test_the_openai_sdk_accepts_a_chat_answer(ask):
    answer = await ask(a_chat("hello", model="tiny"))

    completion = ChatCompletion.model_validate(answer.response)
    assert completion.model == "tiny"
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].message.content == answer.streamed
    assert completion.choices[0].finish_reason == "length"


async def test_the_openai_sdk_accepts_a_completion(ask):
    answer = await ask({"prompt": "hello", "temperature": 0, "max_tokens": 24})

    completion = OpenAICompletion.model_validate(answer.response)
    assert completion.choices[0].text == answer.streamed


async def test_the_answer_names_its_job(ask):
    answer = await ask(a_chat("hello"), id="019a0000-0000-7000-8000-000000000001")

    assert "019a0000-0000-7000-8000-000000000001" in answer.response["id"]


async def test_usage_counts_the_prompt_and_every_token(ask):
    answer = await ask({"prompt": [300, 301, 302], "temperature": 0, "max_tokens": 10})

    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == len(answer.token_ids) == 10


async def test_a_repeated_prompt_is_cached_for_its_tenant_and_for_no_other(ask):
    prompt = {"prompt": [310] * 200, "temperature": 0, "max_tokens": 1}

    await ask(prompt, tenant="first")
    again = await ask(prompt, tenant="first")
    other = await ask(prompt, tenant="second")

    assert again.usage.cached_tokens >= 160
    assert other.usage.cached_tokens == 0


async def test_the_default_tenant_shares_no_cache_either(ask):
    prompt = {"prompt": [311] * 200, "temperature": 0, "max_tokens": 1}

    await ask(prompt)
    other = await ask(prompt, tenant="somebody")

    assert other.usage.cached_tokens == 0


async def test_a_stop_string_ends_the_text_before_itself(ask):
    whole = await ask(a_chat("tell me", max_tokens=40))
    stop = whole.text[30:38]

    stopped = await ask(a_chat("tell me", max_tokens=40, stop=[stop]))

    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.streamed == stopped.text
    assert stopped.choice["finish_reason"] == "stop"
    assert stopped.choice["stop_reason"] == stop


async def test_the_same_seed_gives_the_same_sample(ask):
    first = await ask(a_chat("hello", temperature=1, seed=7))
    second = await ask(a_chat("hello", temperature=1, seed=7))
    third = await ask(a_chat("hello", temperature=1, seed=8))

    assert first.text == second.text != third.text


async def test_n_choices_are_streamed_each_under_its_index(ask):
    answer = await ask(a_chat("hello", temperature=1, seed=1, n=2))

    first, second = answer.response["choices"]
    assert [first["index"], second["index"]] == [0, 1]
    assert first["message"]["content"] != second["message"]["content"]
    for choice in (first, second):
        streamed = "".join(chunk.text for chunk in answer.chunks if chunk.index == choice["index"])
        assert streamed == choice["message"]["content"]
    assert answer.usage.completion_tokens == len(answer.token_ids)


async def test_several_prompts_get_a_choice_each_in_their_order(ask):
    prompts = ["hello", "about the sea", "go"]
    alone = [await ask({"prompt": prompt, "temperature": 0, "max_tokens": 12}) for prompt in prompts]

    together = await ask({"prompt": prompts, "temperature": 0, "max_tokens": 12})

    assert [choice["text"] for choice in together.response["choices"]] == [each.text for each in alone]
    for index, each in enumerate(alone):
        assert "".join(chunk.text for chunk in together.chunks if chunk.index == index) == each.text


async def test_chat_logprobs_have_openais_shape(ask):
    answer = await ask(a_chat("hello", max_tokens=4, logprobs=True, top_logprobs=3))

    logprobs = ChatCompletion.model_validate(answer.response).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == answer.text
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs) <= 0
        assert bytes(entry.bytes or []).decode() == entry.token


async def test_completion_logprobs_have_openais_shape(ask):
    answer = await ask({"prompt": "hello", "temperature": 0, "max_tokens": 4, "logprobs": 2})

    logprobs = OpenAICompletion.model_validate(answer.response).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.text
    assert len(logprobs.token_logprobs or []) == len(logprobs.top_logprobs or []) == 4


async def test_without_max_tokens_a_chat_fills_the_context(ask, engine):
    body = a_chat("hello", ignore_eos=True)
    del body["max_tokens"]

    answer = await ask(body)

    assert answer.usage.total_tokens == 1024


async def test_the_chat_template_hears_the_requests_own_settings(ask):
    plain = await ask(a_chat("hello"))
    greeted = await ask(a_chat("hello", chat_template_kwargs={"greeting": "hi"}))

    assert greeted.usage.prompt_tokens > plain.usage.prompt_tokens
    assert greeted.text != plain.text


async def test_a_body_is_left_as_it_was(ask):
    body = a_chat("hello", stream=True, stream_options={"include_usage": True})
    body["messages"].insert(0, {"role": "assistant", "content": "hi", "reasoning_content": "hm"})
    before = json.dumps(body)

    await ask(body)

    assert json.dumps(body) == before


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}


async def test_a_json_schema_is_kept_to(ask):
    response_format = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}

    answer = await ask(a_chat("weather?", max_tokens=100, response_format=response_format))

    jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert answer.choice["finish_reason"] == "stop"


async def test_vllms_own_structured_outputs_are_kept_to(ask):
    answer = await ask({"prompt": "x", "temperature": 0, "structured_outputs": {"choice": ["yes", "no"]}})

    assert answer.text in {"yes", "no"}


TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "strict": True, "parameters": SCHEMA},
    }
]
THE_TOOL = {"type": "function", "function": {"name": "get_weather"}}


async def test_a_forced_tool_is_called_with_arguments_that_fit(ask):
    answer = await ask(a_chat("weather?", max_tokens=300, tools=TOOLS, tool_choice=THE_TOOL))

    (call,) = ChatCompletion.model_validate(answer.response).choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


async def test_a_tool_call_is_streamed_as_openais_deltas(ask):
    answer = await ask(a_chat("weather?", max_tokens=300, tools=TOOLS, tool_choice="required"))

    parts = [call for chunk in answer.chunks if chunk.delta for call in chunk.delta["tool_calls"]]
    names = [part["function"]["name"] for part in parts if "name" in part["function"]]
    arguments = "".join(part["function"].get("arguments") or "" for part in parts)
    (call,) = answer.choice["message"]["tool_calls"]
    assert names == ["get_weather"]
    assert json.loads(arguments) == json.loads(call["function"]["arguments"])
    assert answer.streamed == ""
    assert answer.choice["finish_reason"] == "tool_calls"


async def test_with_a_free_choice_of_tools_plain_text_is_plain_text(ask):
    answer = await ask(a_chat("hello", tools=[{"type": "function", "function": {"name": "f"}}]))

    assert answer.text == answer.streamed != ""
    assert not answer.choice["message"].get("tool_calls")
