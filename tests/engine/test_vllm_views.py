"""One answer, three views: what the journal has, what was streamed, and the response say the same.

So they do after a resume, wherever the answer was cut, and then they say what an undisturbed run says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from inferfleet.schemas import FailureCode
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.said import Said
from inferfleet.worker.engines.vllm.answer import answer
from inferfleet.worker.ports import GenerationError, NotContinuableError

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKENS = 12
SEA = [{"role": "user", "content": "say a word of the sea"}]
PREFILLED = [*SEA, {"role": "assistant", "content": "The sea is"}]
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
SCHEMA = {
    "type": "object",
    "properties": {"zone": {"enum": ["a", "b"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get_time", "parameters": SCHEMA, "strict": True}}]
FREE_TOOLS = [{"type": "function", "function": {"name": "get_time", "parameters": SCHEMA}}]
NAMED = {"type": "function", "function": {"name": "get_time"}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": SEA, "temperature": 0, "max_tokens": TOKENS} | fields


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "one word of", "temperature": 0, "max_tokens": TOKENS} | fields


SHAPES = {
    "a chat": chat(),
    "a seed": chat(seed=7),
    "the seed 0": chat(seed=0),
    "a system message": chat(messages=[{"role": "system", "content": "be short"}, *SEA]),
    "a stop string that comes": chat(messages=[{"role": "user", "content": "x"}], stop=[" of", " a"]),
    "a stop string in the output": chat(stop=[" the", " we"], include_stop_str_in_output=True),
    "a stop string that never comes": chat(stop="no such words in it"),
    "min_tokens": chat(min_tokens=5, stop=[" the"]),
    "ignore_eos": chat(ignore_eos=True),
    "a repetition penalty": chat(repetition_penalty=1.3),
    "penalties of 0": chat(presence_penalty=0, frequency_penalty=0.0),
    "a bias": chat(logit_bias={"300": 40, "301": 40}),
    "max_completion_tokens": {"messages": SEA, "temperature": 0, "max_completion_tokens": 7},
    "token ids returned": chat(return_token_ids=True),
    "tools that are free to be called": chat(tools=FREE_TOOLS),
    "tools that must not be called": chat(tools=FREE_TOOLS, tool_choice="none"),
    "a prefill": chat(messages=PREFILLED, **CONTINUE),
    "a prefill that is echoed": chat(messages=PREFILLED, echo=True, **CONTINUE),
    "a completion": text(),
    "a completion of token ids": text(prompt=[300, 301, 302]),
    "a completion that stops": text(stop=[" the", " up"]),
    "a completion with an echo": text(echo=True),
    "an echo of token ids": text(prompt=[300, 301], echo=True),
    "an echo without an answer": text(echo=True, max_tokens=0, logprobs=1),
    "logprobs": chat(logprobs=True, top_logprobs=2),
    "logprobs 0": chat(logprobs=True, top_logprobs=0),
    "logprobs of a completion": text(logprobs=0),
    "logprobs false of a completion": text(logprobs=False),
    "prompt_logprobs": chat(prompt_logprobs=1),
    "prompt_logprobs 0": chat(prompt_logprobs=0),
    "prompt_logprobs 0 of a completion": text(prompt_logprobs=0),
    "a penalty": chat(frequency_penalty=0.5),
    "two choices": chat(n=2, temperature=1, seed=3),
    "two prompts": text(prompt=["one", "two words"]),
    "two prompts, two choices and an echo": text(
        prompt=["one", "two"], n=2, temperature=1, seed=3, echo=True
    ),
    "a JSON schema": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    ),
    "a choice": text(structured_outputs={"choice": [" yes", " no"]}),
    "a required call": chat(tools=TOOLS, tool_choice="required", max_tokens=100),
    "a required call that is cut": chat(tools=TOOLS, tool_choice="required", max_tokens=40),
    "a named call": chat(tools=TOOLS, tool_choice=NAMED, max_tokens=100),
    "a named call that is cut": chat(tools=TOOLS, tool_choice=NAMED, max_tokens=4),
    "a required call that is cut before it begins": chat(tools=TOOLS, tool_choice="required", max_tokens=3),
}
"""Each is cut at every token. Those that cannot be resumed begin again."""


def essence(response: dict[str, Any], *, ids: bool = False) -> dict[str, Any]:
    """All that two attempts of one request must agree on."""
    choices = json.loads(json.dumps(response["choices"]))
    for choice in choices:
        for call in choice.get("message", {}).get("tool_calls") or ():
            call["id"] = call["id"] if ids else bool(call["id"])
    usage = {name: response["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
    return {"choices": choices, "usage": usage, "prompt_logprobs": response.get("prompt_logprobs")}


def require_equal_views(chunks: list[TokenChunk], response: dict[str, Any]) -> None:
    """The chunks of the stream add up to the response, the ids of tool calls included."""
    for choice in response["choices"]:
        said = Said(chunk for chunk in chunks if chunk.index == choice["index"])
        if "text" in choice:
            assert said.text == choice["text"]
            continue
        message = choice["message"]
        assert said.text == (message["content"] or "")
        assert said.reasoning == (message.get("reasoning") or "")
        assert said.tool_calls == (message.get("tool_calls") or [])


def cuts(chunks: list[TokenChunk]) -> list[list[TokenChunk]]:
    """What the journal may hold when a worker dies."""
    return [chunks[:count] for count in range(1, len(chunks) + 1)]


def resumed_from(chunks: list[TokenChunk]) -> dict[str, Any]:
    return {
        "resume_token_ids": tuple(token for chunk in chunks for token in chunk.token_ids),
        "resume_chunks": tuple(chunks),
    }


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES.keys())
async def test_every_view_of_an_answer_is_the_same_wherever_it_was_cut(ask, engine, a_generation, body):
    whole = await ask(body)
    require_equal_views(whole.chunks, whole.response)
    assert whole.usage.completion_tokens == len(whole.token_ids)

    if engine.resumable(a_generation(body)):
        journals = cuts(whole.chunks)
        attempts = await asyncio.gather(*(ask(body, **resumed_from(journal)) for journal in journals))
    else:
        journals = [[]]
        attempts = [await ask(body)]

    for journal, attempt in zip(journals, attempts, strict=True):
        require_equal_views([*journal, *attempt.chunks], attempt.response)
        assert essence(attempt.response) == essence(whole.response)


class ScriptedEngine:
    """vLLM's engine, but for what the model says: that is the script."""

    def __init__(self, engine: Any, script: list[int], *, at_once: int = 1) -> None:
        self._engine = engine
        self._script = script
        self._at_once = at_once
        self._prompt: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self, engine_input: Any, sampling_params: Any, request_id: str, **_: Any
    ) -> AsyncGenerator[Any]:
        prompt = engine_input["prompt_token_ids"]
        # A continuation has the script's beginning at the end of its prompt.
        self._prompt = self._prompt or len(prompt)
        position = len(prompt) - self._prompt
        end = min(len(self._script), position + sampling_params.max_tokens)
        detokenizer = IncrementalDetokenizer.from_new_request(
            self._engine.get_tokenizer() if sampling_params.detokenize else None,
            SimpleNamespace(
                request_id=request_id,
                sampling_params=sampling_params,
                prompt_token_ids=prompt,
                prompt_embeds=None,
            ),
        )
        while position < end:
            tokens = self._script[position : min(position + self._at_once, end)]
            position += len(tokens)
            ended = tokens[-1] == self._engine.get_tokenizer().eos_token_id
            finish_reason = "stop" if ended else "length" if position == end else None
            detokenizer.update(tokens, ended)
            yield RequestOutput(
                request_id=request_id,
                prompt=None,
                prompt_token_ids=prompt,
                prompt_logprobs=None,
                outputs=[
                    CompletionOutput(
                        index=0,
                        text=detokenizer.get_next_output_text(finish_reason is not None, delta=True),
                        token_ids=tokens,
                        cumulative_logprob=None,
                        logprobs=None,
                        finish_reason=finish_reason,
                    )
                ],
                finished=finish_reason is not None,
            )


CALL = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "a"}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "get_time", "arguments": {"zone":"b", "when": "é€🚀"}}\n</tool_call>'

SCRIPTS = {
    "a text": "so it is <b>",
    "a call": CALL,
    "a call in other spelling": OTHER_CALL,
    "a text and a call": "let me see\n" + CALL,
    "two calls": CALL + "\n" + OTHER_CALL,
    "a text behind a call": CALL + " is what I said",
    "a call without an end": CALL[:-14],
    "a call without arguments": '<tool_call>\n{"name": "get_time"}\n</tool_call>',
    "a call cut in its arguments": CALL[:48],
    "a call cut in its name": CALL[:24],
    "a call cut before its name": CALL[:12],
    "markup that is no call": "<tool_call>\nnothing\n</tool_call>",
}


def scripted(loaded: Any, generation: Any, script: list[int], **options: Any) -> Any:
    """Answer from a script; returns the chunks and the completion."""
    chunks: list[TokenChunk] = []

    async def run() -> tuple[list[TokenChunk], dict[str, Any]]:
        engine = ScriptedEngine(loaded.engine, script, **options)
        if generation.resume_token_ids:
            # The length of the prompt alone, which a continuation does not tell.
            engine._prompt = prompt_lengths[generation.id]
        told: list[int] = []
        listening = replace(generation, on_prompt=lambda *, model, tokens: told.append(tokens))
        completion = await answer(replace(loaded, engine=engine), listening, chunks.append)
        prompt_lengths[generation.id] = told[-1]
        return chunks, completion.response

    return run()


prompt_lengths: dict[str, int] = {}


async def require_equal_at_every_cut(loaded: Any, generation: Any, script: list[int], at_once: int) -> Any:
    chunks, response = await scripted(loaded, generation, script, at_once=at_once)
    require_equal_views(chunks, response)
    for journal in cuts(chunks):
        resumed = replace(generation, **resumed_from(journal))
        fresh, again = await scripted(loaded, resumed, script, at_once=at_once)
        require_equal_views([*journal, *fresh], again)
        assert essence(again) == essence(response)
    return response["choices"][0]


@pytest.mark.parametrize("at_once", [1, 3], ids=["token by token", "three tokens at once"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize("said", SCRIPTS.values(), ids=SCRIPTS.keys())
async def test_a_call_keeps_its_id_and_spelling_wherever_it_was_cut(
    engine, a_generation, said, ended, at_once
):
    loaded = engine._loaded
    tokenizer = loaded.engine.get_tokenizer()
    script = tokenizer.encode(said) + ([tokenizer.eos_token_id] if ended else [])
    body = chat(tools=FREE_TOOLS, max_tokens=len(script))

    choice = await require_equal_at_every_cut(loaded, a_generation(body), script, at_once)

    calls = choice["message"].get("tool_calls")
    assert choice["finish_reason"] == ("length" if not ended else "tool_calls" if calls else "stop")
    assert "<tool_call>" not in (choice["message"]["content"] or "")


@pytest.mark.parametrize("said", SCRIPTS.values(), ids=SCRIPTS.keys())
async def test_a_call_is_the_same_however_many_tokens_came_at_once(engine, a_generation, said):
    loaded = engine._loaded
    script = loaded.engine.get_tokenizer().encode(said)
    body = chat(tools=FREE_TOOLS, max_tokens=len(script))

    answers = [await scripted(loaded, a_generation(body), script, at_once=number) for number in (1, 2, 5, 99)]

    first, *others = [essence(response) for _, response in answers]
    assert others == [first] * 3


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def thinker(make_engine):
    async with make_engine(
        max_running=8, tool_call_parser="hermes", reasoning_parser="deepseek_r1"
    ) as engine:
        yield engine


THOUGHTS = {
    "a thought": "so it is",
    "a thought and a text": "so it is</think>then look",
    "a thought and a call": "so it is</think>" + CALL,
    "a thought, a text and two calls": "so it is</think>then " + CALL + "\n" + OTHER_CALL,
    "no thought": "</think>then look",
}


@pytest.mark.parametrize("include_reasoning", [True, False], ids=["told", "hidden"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize("said", THOUGHTS.values(), ids=THOUGHTS.keys())
async def test_a_thought_is_told_from_the_text_wherever_it_was_cut(
    thinker, a_generation, said, ended, include_reasoning
):
    loaded = thinker._loaded
    tokenizer = loaded.engine.get_tokenizer()
    script = tokenizer.encode(said) + ([tokenizer.eos_token_id] if ended else [])
    body = chat(tools=FREE_TOOLS, max_tokens=len(script), include_reasoning=include_reasoning)

    choice = await require_equal_at_every_cut(loaded, a_generation(body), script, 1)

    thought = said.partition("</think>")[0] if include_reasoning else ""
    assert (choice["message"]["reasoning"] or "") == thought


async def test_with_one_call_at_a_time_stream_and_response_have_the_first(engine, a_generation):
    loaded = engine._loaded
    script = loaded.engine.get_tokenizer().encode(CALL + OTHER_CALL)
    body = chat(tools=FREE_TOOLS, max_tokens=len(script), parallel_tool_calls=False)

    chunks, response = await scripted(loaded, a_generation(body), script)

    require_equal_views(chunks, response)
    (call,) = response["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"zone": "a"}


async def test_tokens_that_do_not_make_the_streamed_text_are_not_continued(ask):
    whole = await ask(chat())
    wrong = [replace_text(whole.chunks[0], " something else"), *whole.chunks[1:4]]

    with pytest.raises(NotContinuableError, match="do not make the text"):
        await ask(chat(), **resumed_from(wrong))


def replace_text(chunk: TokenChunk, said: str) -> TokenChunk:
    return chunk.model_copy(update={"text": said})


async def test_the_prompt_is_counted_before_the_first_token(engine, a_generation):
    told: list[tuple[str, int]] = []
    generation = a_generation(
        text(prompt=[[300], [301, 302]]), on_prompt=lambda *, model, tokens: told.append((model, tokens))
    )

    events = engine.generate(generation)
    await anext(events)
    seen = list(told)
    await events.aclose()

    assert seen[-1] == ("tiny", 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"grammar": 'root ::= "a"\nroot ::= "b"'}},
        {"structured_outputs": {"grammar": 'root ::= "a"\nroot ::= "b"'}, "n": 2, "temperature": 1},
    ],
    ids=["one choice", "two choices"],
)
async def test_a_grammar_that_cannot_be_compiled_is_an_invalid_request(ask, fields):
    # The first grammar chooses the compiler of the engine's life.
    await ask(text(structured_outputs={"choice": ["a"]}))

    with pytest.raises(GenerationError, match='Rule "root" is defined multiple times') as error:
        await ask(chat(**fields))

    assert error.value.code is FailureCode.INVALID_REQUEST
