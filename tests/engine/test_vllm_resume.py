"""An answer that goes on where another attempt ended is the answer that one attempt would have given."""

from __future__ import annotations

import asyncio
import json

import pytest

from inferfleet.schemas import FailureCode
from inferfleet.worker.ports import GenerationError

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 60}


@pytest.fixture
def tokenizer(engine):
    return engine._loaded.engine.get_tokenizer()


@pytest.fixture
def tokens(tokenizer):
    return lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture
def shown(tokenizer):
    """What the reader of a stream has seen after these tokens: all but a character that is not complete."""
    return lambda token_ids: tokenizer.decode(token_ids).rstrip("\ufffd")


async def test_a_stream_shows_a_character_when_it_is_complete(ask, shown):
    answer = await ask(PROMPT)

    text, token_ids = "", ()
    for chunk in answer.chunks:
        text += chunk.text
        token_ids += chunk.token_ids
        assert text == shown(token_ids)
    assert text == answer.text


async def test_at_every_cut_text_stream_and_usage_are_those_of_an_uninterrupted_answer(ask, shown):
    whole = await ask(PROMPT)
    cuts = range(1, 60)

    resumed = await asyncio.gather(*(ask(PROMPT, resume_token_ids=whole.token_ids[:cut]) for cut in cuts))

    assert {"€", "🚀"} < set(whole.text), "the answer should have characters of several tokens"
    for cut, answer in zip(cuts, resumed, strict=True):
        assert answer.text == whole.text
        assert answer.token_ids == whole.token_ids[cut:]
        assert shown(whole.token_ids[:cut]) + answer.streamed == whole.text
        assert answer.usage.prompt_tokens == whole.usage.prompt_tokens
        assert answer.usage.completion_tokens == 60
        assert answer.choice["finish_reason"] == "length"


async def test_a_completion_resumes_like_a_chat(ask):
    body = {"prompt": "tell me about the sea", "temperature": 0, "max_tokens": 30}
    whole = await ask(body)

    resumed = await ask(body, resume_token_ids=whole.token_ids[:11])

    assert resumed.text == whole.text


async def test_a_stop_string_that_begins_before_the_cut_stops(ask, shown):
    whole = await ask(PROMPT)
    begun = whole.token_ids[:20]
    seam = len(shown(begun))
    stop = whole.text[seam - 4 : seam + 4]
    assert whole.text.index(stop) == seam - 4
    body = PROMPT | {"stop": stop}
    uninterrupted = await ask(body)

    resumed = await ask(body, resume_token_ids=begun)

    # A stream holds back what may turn out to be the beginning of the stop string.
    shown_before = shown(begun)[: 1 - len(stop)]
    assert resumed.text == uninterrupted.text == whole.text[: seam - 4]
    assert shown_before + resumed.streamed == uninterrupted.text
    assert resumed.choice["stop_reason"] == stop
    assert resumed.usage.completion_tokens == uninterrupted.usage.completion_tokens


async def test_a_stop_string_stops_long_after_the_cut_too(ask, shown):
    whole = await ask(PROMPT)
    stop = shown(whole.token_ids[:41])[-6:]
    body = PROMPT | {"stop": [stop], "include_stop_str_in_output": True}

    resumed = await ask(body, resume_token_ids=whole.token_ids[:5])

    assert resumed.text == (await ask(body)).text
    assert resumed.text.endswith(stop)


async def test_an_answer_that_a_stop_string_had_ended_is_complete(ask, shown):
    whole = await ask(PROMPT)
    stop = shown(whole.token_ids[:12])[-6:]

    resumed = await ask(PROMPT | {"stop": stop}, resume_token_ids=whole.token_ids[:12])

    assert resumed.chunks == []
    assert resumed.text == whole.text[: whole.text.index(stop)]
    assert resumed.choice["finish_reason"] == "stop"


async def test_an_answer_that_had_its_max_tokens_is_complete(ask):
    whole = await ask(PROMPT)

    resumed = await ask(PROMPT, resume_token_ids=whole.token_ids)

    assert resumed.chunks == []
    assert resumed.text == whole.text
    assert resumed.usage.completion_tokens == 60
    assert resumed.choice["finish_reason"] == "length"


async def test_an_answer_that_the_model_had_ended_is_complete(ask, tokens, tokenizer):
    ids = (*tokens(" that was all"), tokenizer.eos_token_id)

    resumed = await ask(PROMPT, resume_token_ids=ids)

    assert resumed.chunks == []
    assert resumed.text == " that was all"
    assert resumed.usage.completion_tokens == len(ids)
    assert resumed.choice["finish_reason"] == "stop"


async def test_an_answer_that_a_stop_token_had_ended_is_complete(ask, tokens):
    ids = tokens(" more water")

    resumed = await ask(PROMPT | {"stop_token_ids": [ids[-1]]}, resume_token_ids=ids)

    assert resumed.chunks == []
    assert resumed.choice["stop_reason"] == ids[-1]


async def test_ignore_eos_goes_on_behind_an_end(ask, tokenizer):
    end = tokenizer.eos_token_id

    resumed = await ask(PROMPT | {"ignore_eos": True}, resume_token_ids=(end,))

    assert len(resumed.token_ids) == 59


async def test_a_sampled_answer_keeps_what_it_had(ask, shown):
    body = PROMPT | {"temperature": 1, "seed": 3, "ignore_eos": True}
    first = await ask(body)

    resumed = await ask(body, resume_token_ids=first.token_ids[:10])

    assert resumed.text.startswith(shown(first.token_ids[:10]))
    assert resumed.usage.completion_tokens == 60


TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]


async def test_a_tool_call_of_the_attempt_before_is_in_the_response(ask, tokens, tokenizer):
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'

    resumed = await ask(
        PROMPT | {"tools": TOOLS, "max_tokens": 200},
        resume_token_ids=(*tokens(call), tokenizer.eos_token_id),
    )

    (parsed,) = resumed.choice["message"]["tool_calls"]
    assert parsed["function"]["name"] == "get_weather"
    assert json.loads(parsed["function"]["arguments"]) == {"city": "Paris"}
    assert resumed.choice["finish_reason"] == "tool_calls"


async def test_a_reader_of_a_tool_call_hears_only_what_is_new(ask, tokens):
    begun = tokens('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par')

    resumed = await ask(PROMPT | {"tools": TOOLS, "max_tokens": 200}, resume_token_ids=begun)

    parts = [call for chunk in resumed.chunks if chunk.delta for call in chunk.delta["tool_calls"]]
    assert parts, "the arguments go on"
    assert not any("name" in part["function"] for part in parts)


async def test_an_answer_that_cannot_be_continued_says_so(ask):
    with pytest.raises(GenerationError, match="cannot be continued") as error:
        await ask(PROMPT | {"n": 2}, resume_token_ids=(300,))

    assert error.value.code is FailureCode.INVALID_REQUEST
