"""Through the remote engine, vLLM's server says what it says itself, and resumes at every cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.engine.conftest import ON_CPU
from tests.engine.telling import (
    comparable_response,
    differences,
    streamed_by_fleet,
    streamed_by_server,
)
from tests.engine.vllm_server import RunningServer, running_server, stream_of_server

from inferfleet.schemas import FailureCode
from inferfleet.worker.engines.openai.engine import OpenaiEngine
from inferfleet.worker.ports import EngineDeadError, GenerationError, NotContinuableError

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

SERVER = ON_CPU | {
    "scheduling_policy": "priority",
    "generation_config": "vllm",
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 60}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tiny_model, tmp_path_factory) -> AsyncIterator[RunningServer]:
    log = tmp_path_factory.mktemp("vllm-server") / "log"
    async with running_server(tiny_model, SERVER, log=log) as running:
        yield running


@pytest.fixture
def server(running) -> httpx.AsyncClient:
    return running.client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(running) -> AsyncIterator[OpenaiEngine]:
    engine = OpenaiEngine(
        urls=[f"{running.address}/v1"], model="", max_running=64, engine_args={"start_timeout_s": 60}
    )
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def ask(engine, asking):
    return asking(engine)


def spoken(value: Any) -> Any:
    """Leave out members that say nothing: a stream has none of them."""
    if isinstance(value, list):
        return [spoken(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: spoken(each) for name, each in value.items() if each not in (None, [], {})}


@pytest.mark.parametrize(
    "body",
    [
        CHAT,
        CHAT | {"n": 2, "temperature": 1, "seed": 3},
        CHAT | {"logprobs": True, "top_logprobs": 2},
        CHAT | {"stop": ["e"], "include_stop_str_in_output": True},
        CHAT | {"return_token_ids": True},
        CHAT | {"echo": True, "messages": [*CHAT["messages"], {"role": "assistant", "content": "so"}]},
        CHAT | {"prompt_logprobs": 1},
        CHAT | {"response_format": {"type": "json_object"}},
        CHAT | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"prompt": "so be it", "max_tokens": 12, "temperature": 0},
        {"prompt": ["one", "two"], "n": 2, "max_tokens": 5, "logprobs": 1, "seed": 1},
        {"prompt": "so be it", "max_tokens": 4, "echo": True, "temperature": 0},
        {"prompt": [300, 301], "max_tokens": 4, "return_token_ids": True, "temperature": 0},
    ],
    ids=lambda body: " ".join(f"{name}" for name in body if name not in CHAT) or "chat",
)
async def test_the_response_is_the_one_that_the_server_itself_makes(ask, server, body):
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    theirs = (await server.post(path, json=body)).raise_for_status().json()

    ours = await ask(body)

    if body.get("echo"):
        # The stream of a chat has none.
        theirs.pop("prompt_logprobs", None)
    if body.get("tools"):
        # Of a call that was cut, the stream has the arguments so far, and the response has text.
        events = await stream_of_server(server, path, body)
        assert events is not None
        assert streamed_by_fleet(ours.chunks)[0].comparable() == streamed_by_server(events)[0].comparable()
        assert ours.choice["message"]["tool_calls"]
        return
    found = differences(
        spoken(comparable_response(ours.response)), spoken(comparable_response(theirs)), "response"
    )
    assert not found, "\n".join(found)
    assert ours.usage.completion_tokens == len(ours.token_ids) == theirs["usage"]["completion_tokens"]
    for index, choice in enumerate(theirs["choices"]):
        text = choice["message"].get("content") if "message" in choice else choice["text"]
        assert "".join(chunk.text for chunk in ours.chunks if chunk.index == index) == (text or "")


async def test_at_every_cut_the_answer_is_the_one_that_was_not_interrupted(ask):
    whole = await ask(CHAT)
    assert {"€", "🚀"} < set(whole.text), "the answer should have characters of several tokens"
    cuts = range(1, len(whole.chunks) + 1)

    resumed = await asyncio.gather(
        *(
            ask(
                CHAT,
                resume_token_ids=tuple(token for chunk in whole.chunks[:cut] for token in chunk.token_ids),
                resume_chunks=tuple(whole.chunks[:cut]),
            )
            for cut in cuts
        )
    )

    for cut, answer in zip(cuts, resumed, strict=True):
        begun = "".join(chunk.text for chunk in whole.chunks[:cut])
        assert begun + answer.streamed == answer.text == whole.text, cut
        assert answer.usage == whole.usage, cut
        assert answer.choice["finish_reason"] == "length"


async def test_without_a_limit_a_resumed_answer_ends_where_the_context_does(ask):
    body = {name: value for name, value in CHAT.items() if name != "max_tokens"} | {"ignore_eos": True}
    whole = await ask(body)

    before = tuple(whole.chunks[: len(whole.chunks) // 2])
    token_ids = tuple(token for chunk in before for token in chunk.token_ids)
    resumed = await ask(body, resume_token_ids=token_ids, resume_chunks=before)

    assert resumed.text == whole.text
    assert resumed.usage == whole.usage


@pytest.mark.parametrize(
    "more", [{"stop": "e"}, {"tools": [TOOL]}, {"n": 2}, {"presence_penalty": 1}, {"logprobs": True}]
)
async def test_an_answer_that_needs_more_than_its_tokens_is_not_resumed(engine, ask, a_generation, more):
    assert engine.resumable(a_generation(CHAT))
    assert not engine.resumable(a_generation(CHAT | more))

    with pytest.raises(NotContinuableError):
        await ask(CHAT | more, resume_token_ids=(300,))


async def test_an_answer_that_had_ended_or_was_streamed_otherwise_begins_again(ask):
    whole = await ask(CHAT)
    changed = whole.chunks[0].model_copy(update={"text": "something else"})

    with pytest.raises(NotContinuableError, match="do not make the text"):
        await ask(CHAT, resume_token_ids=changed.token_ids, resume_chunks=(changed,))
    with pytest.raises(NotContinuableError, match="may be its end"):
        await ask(CHAT | {"stop_token_ids": [300]}, resume_token_ids=(300,))


async def test_an_urgent_job_overtakes_in_the_server(tiny_model, tmp_path, asking):
    arguments = SERVER | {"max_num_seqs": 1}
    async with running_server(tiny_model, arguments, log=tmp_path / "log") as running:
        engine = OpenaiEngine(urls=[f"{running.address}/v1"], model="", max_running=4, engine_args={})
        await engine.start()
        ended: list[str] = []

        async def ask(name: str, priority: int, *, tokens: int = 300) -> None:
            body = CHAT | {"max_tokens": tokens, "ignore_eos": True}
            await asking(engine)(body, priority=priority)
            ended.append(name)

        first = asyncio.create_task(ask("first", 4, tokens=900))
        while not engine.stats().running:
            await asyncio.sleep(0)
        waiting = [asyncio.create_task(ask(name, at)) for name, at in [("usual", 4), ("urgent", 9)]]
        await asyncio.gather(first, *waiting)
        await engine.stop()

    assert ended.index("urgent") < ended.index("usual")


async def test_a_refusal_is_the_servers_without_the_prompt(ask):
    words = "a prompt that no log may have " * 200

    with pytest.raises(GenerationError) as refused:
        await ask({"prompt": words, "max_tokens": 5})
    assert refused.value.code is FailureCode.PROMPT_TOO_LONG
    with pytest.raises(GenerationError, match="temperature") as refused:
        await ask({"prompt": words[:30], "temperature": -1})
    assert refused.value.code is FailureCode.INVALID_REQUEST
    assert words[:29] not in str(refused.value)


async def test_a_server_that_comes_back_with_another_model_gets_no_request(tiny_model, tmp_path, asking):
    async with running_server(tiny_model, SERVER, log=tmp_path / "one") as one:
        engine = OpenaiEngine(urls=[f"{one.address}/v1"], model="tiny", max_running=4, engine_args={})
        await engine.start()
        await asking(engine)(CHAT)
        port = one.client.base_url.port
    other = tmp_path / "other-folder"
    other.symlink_to(tiny_model)
    async with running_server(str(other), SERVER, log=tmp_path / "two", port=port):
        with pytest.raises(EngineDeadError, match="no server is left"):
            await asking(engine)(CHAT)
    await engine.stop()
