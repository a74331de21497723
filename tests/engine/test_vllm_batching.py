"""Many requests at once: one batch, who goes first, and what an abort sets free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from tests.patience import PATIENCE_S
from vllm.sampling_params import RequestOutputKind, SamplingParams

from inferfleet.schemas.journal import TokenChunk

# An engine lives as long as the event loop that started it.
pytestmark = pytest.mark.asyncio(loop_scope="session")

SLOTS = 64


def a_long_completion(number: int) -> dict[str, Any]:
    return {"prompt": [300 + number] * 4, "temperature": 0, "max_tokens": 1000, "ignore_eos": True}


@pytest.fixture
def fill(engine, a_generation) -> Callable[[], Any]:
    """Every slot taken: a list of generations that have begun and run for seconds."""

    @asynccontextmanager
    async def fill() -> AsyncIterator[list[Any]]:
        async with AsyncExitStack() as stack:
            running = [engine.generate(a_generation(a_long_completion(number))) for number in range(SLOTS)]
            for events in running:
                await stack.enter_async_context(aclosing(events))
            await asyncio.gather(*(anext(events) for events in running))
            yield running

    return fill


async def until(condition: Callable[[], bool], *, timeout_s: float = 5) -> None:
    """Wait for something that has no event to wait for."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_64_requests_are_one_batch_and_answer_as_vllm_does_when_called_directly(engine, ask):
    async_llm = engine._loaded.engine
    texts = [f"tell me about number {number}" for number in range(64)]
    most_running = 0

    async def watch() -> None:
        nonlocal most_running
        while True:
            most_running = max(most_running, engine.stats().running)
            await asyncio.sleep(0.005)

    async def ask_directly(text: str) -> str:
        (prompt,) = await async_llm.renderer.render_cmpl_async([{"prompt": text}])
        params = SamplingParams(temperature=0, max_tokens=100, output_kind=RequestOutputKind.FINAL_ONLY)
        async for output in async_llm.generate(prompt, params, f"direct: {text}"):
            final = output
        return final.outputs[0].text

    watcher = asyncio.create_task(watch())
    answers = await asyncio.gather(
        *(ask({"prompt": text, "temperature": 0, "max_tokens": 100}) for text in texts)
    )
    watcher.cancel()
    directly = await asyncio.gather(*map(ask_directly, texts))

    assert most_running > 32
    assert [answer.text for answer in answers] == directly
    assert [answer.streamed for answer in answers] == directly
    assert len(set(directly)) == len(directly)


async def test_tokens_come_while_the_answer_is_still_being_made(engine, a_generation):
    async with aclosing(engine.generate(a_generation(a_long_completion(0)))) as events:
        first = await anext(events)

        assert isinstance(first, TokenChunk)
        assert first.token_ids
        assert engine.stats().running == 1


async def test_an_idle_engine_reports_no_load(engine, ask):
    await ask({"prompt": "x", "max_tokens": 3})

    assert engine.stats().running == engine.stats().waiting == engine.stats().kv_cache_usage == 0


async def test_a_full_engine_reports_what_waits_and_how_full_its_memory_is(engine, fill, a_generation):
    async with fill():
        waiting = asyncio.create_task(anext(engine.generate(a_generation(a_long_completion(100)))))
        await until(lambda: engine.stats().waiting == 1)

        assert engine.stats().running == SLOTS
        assert 0 < engine.stats().kv_cache_usage < 1
        waiting.cancel()


async def test_a_request_for_which_there_is_room_does_not_count_as_waiting(engine, ask, a_generation):
    """Not even before the engine's next step. The worker gives an engine in which some wait fewer jobs."""
    waiting: set[int] = set()
    async with aclosing(engine.generate(a_generation(a_long_completion(0)))) as events:
        await anext(events)
        for _ in range(10):
            request = asyncio.create_task(ask({"prompt": "x", "max_tokens": 1}))
            while not request.done():
                waiting.add(engine.stats().waiting)
                await asyncio.sleep(0)

    assert waiting == {0}


async def test_of_those_that_wait_the_most_urgent_goes_first(engine, fill, ask):
    order: list[int] = []

    async def wait_in_line(priority: int) -> None:
        await ask({"prompt": "x", "max_tokens": 1}, priority=priority)
        order.append(priority)

    def is_waiting(place: int) -> bool:
        return engine.stats().waiting == place

    async with fill() as running:
        line = []
        for place, priority in enumerate((1, 9, 4), start=1):
            line.append(asyncio.create_task(wait_in_line(priority)))
            await until(partial(is_waiting, place))
        await running[0].aclose()
        await asyncio.gather(*line)

    assert order == [9, 4, 1]


@pytest.mark.parametrize("how", ["the iterator is closed", "the task that reads is cancelled"])
async def test_an_abort_frees_the_slot_within_a_second(engine, fill, ask, how):
    async with fill() as running:
        waiting = asyncio.create_task(ask({"prompt": "x", "max_tokens": 1}))
        await until(lambda: engine.stats().waiting == 1)
        assert not waiting.done()

        match how:
            case "the iterator is closed":
                await running[0].aclose()
            case "the task that reads is cancelled":
                reader = asyncio.create_task(_read(running[0]))
                await asyncio.sleep(0)
                reader.cancel()

        async with asyncio.timeout(PATIENCE_S):
            await waiting


async def _read(events: Any) -> None:
    async for _ in events:
        pass


async def test_a_closed_generation_leaves_nothing_running(engine, a_generation):
    events = engine.generate(a_generation(a_long_completion(0)))
    await anext(events)
    await events.aclose()

    assert engine.stats().running == engine.stats().waiting == 0
