"""How an engine starts, what it refuses to start with, and how it ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from typing import Any

import pytest
import pytest_asyncio

from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.vllm.engine import VllmEngine
from inferfleet.worker.ports import EngineDeadError, EngineStats

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def thinker(make_engine):
    """An engine for a model that thinks aloud, with two slots. The last tests here stop it."""
    async with make_engine(max_running=2, reasoning_parser="deepseek_r1") as thinker:
        yield thinker


async def test_a_loaded_engine_is_warm_and_idle(thinker):
    assert thinker.model == "tiny"
    assert thinker.endpoints == {Endpoint.CHAT, Endpoint.COMPLETIONS}
    assert thinker.stats() == EngineStats()


async def test_max_running_is_how_many_run_at_once(thinker, asking):
    ask = asking(thinker)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, thinker.stats().running)
            await asyncio.sleep(0.002)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(ask({"prompt": "x", "max_tokens": 50, "ignore_eos": True}) for _ in range(5)))
    watcher.cancel()

    assert most == 2


def thinking(answer: Any) -> str:
    return "".join((chunk.delta or {}).get("reasoning", "") for chunk in answer.chunks)


async def test_reasoning_is_streamed_apart_from_the_text(thinker, asking):
    ask = asking(thinker)
    tokenizer = thinker._loaded.engine.get_tokenizer()
    body = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 30}
    thoughts = tuple(tokenizer.encode(" first look")), tuple(tokenizer.encode("</think> then"))

    thinks = await ask(body, resume_token_ids=thoughts[0])
    has_thought = await ask(body, resume_token_ids=thoughts[0] + thoughts[1])

    assert thinks.streamed == ""
    assert thinks.choice["message"]["reasoning"] == " first look" + thinking(thinks)
    assert thinking(has_thought) == ""
    assert has_thought.choice["message"]["reasoning"] == " first look"
    assert has_thought.text == " then" + has_thought.streamed


async def test_an_engine_that_has_not_started_answers_nobody(tiny_model, asking):
    engine = VllmEngine(model=tiny_model, max_running=2, engine_args={})

    assert engine.stats() == EngineStats()
    with pytest.raises(EngineDeadError):
        await asking(engine)({"prompt": "x"})
    await engine.stop()


@pytest.mark.parametrize(
    ("engine_args", "words"),
    [
        ({"max_modle_len": 1024}, "max_modle_len"),
        ({"tool_call_parser": "hermse"}, "tool_call_parser 'hermse'"),
        ({"reasoning_parser": "deep"}, "reasoning_parser 'deep'"),
        ({"dtype": "float7"}, "dtype"),
        ({"max_model_len": 1_000_000}, "max_model_len"),
        ({"chat_template": "no such file"}, "chat template"),
    ],
    ids=str,
)
async def test_a_wrong_argument_is_named(tiny_model, engine_args, words):
    engine = VllmEngine(model=tiny_model, max_running=2, engine_args=engine_args)

    with pytest.raises(ConfigurationError) as error:
        await engine.start()

    assert words in str(error.value)
    await engine.stop()


async def test_a_model_that_is_not_there_is_named():
    engine = VllmEngine(model="no/such-model", max_running=2, engine_args={})

    with pytest.raises(ConfigurationError, match="no/such-model"):
        await engine.start()


async def test_an_engine_can_be_stopped_while_it_loads(make_engine, engine):
    before = {child.pid for child in multiprocessing.active_children()}
    loading = VllmEngine(model=engine._loader._model, max_running=2, engine_args=engine._loader._engine_args)
    start = asyncio.create_task(loading.start())
    while {child.pid for child in multiprocessing.active_children()} == before and not start.done():
        await asyncio.sleep(0.05)

    await loading.stop()

    with pytest.raises(EngineDeadError):
        await start
    assert {child.pid for child in multiprocessing.active_children()} == before


async def test_stopping_ends_what_runs_and_frees_the_process(thinker, asking, a_generation):
    ask = asking(thinker)
    before = len(multiprocessing.active_children())
    body = {"prompt": "x", "max_tokens": 1000, "ignore_eos": True}
    running = thinker.generate(a_generation(body))
    await anext(running)
    waiting = [asyncio.create_task(ask(body)) for _ in range(3)]
    await asyncio.sleep(0)

    began = time.monotonic()
    await thinker.stop()
    took_s = time.monotonic() - began

    with pytest.raises(EngineDeadError):
        async for _ in running:
            pass
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, EngineDeadError)
    assert took_s < 4
    assert len(multiprocessing.active_children()) == before - 1
    with pytest.raises(EngineDeadError):
        await ask(body)


async def test_an_engine_that_is_stopped_again_leaves_alone_what_others_have_started_since(thinker):
    await thinker.stop()
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,))
    other.start()

    await thinker.stop()

    # Had it been killed, this would come too late.
    other.terminate()
    other.join()
    assert other.exitcode == -signal.SIGTERM
