"""The simulated engine's prefix cache: what of a prompt need not be computed again."""

from __future__ import annotations

from typing import Any

import pytest

from inferfleet.schemas import Endpoint
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.engines.simulated.batch import Batch, Sequence
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters
from inferfleet.worker.engines.simulated.prefix_cache import BLOCK_TOKENS, PrefixCache, blocks_of
from inferfleet.worker.engines.simulated.prompt import chat_prompt, chat_tokens
from inferfleet.worker.ports import Completion, Generation

TOKENS = [str(number).encode() for number in range(100)]

LONG = "a few words " * 50


def blocks(count: int, *, start: int = 0) -> tuple[bytes, ...]:
    return blocks_of([b"first %d" % start, *TOKENS][:count], tenant="t")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("cached", "prompt", "found"),
    [
        (0, 64, 0),
        (15, 64, 0),
        (16, 64, 16),
        (63, 64, 48),
        (64, 65, 64),
        # The last token is always computed, and with it its block.
        (64, 64, 48),
        (64, 49, 48),
        (64, 48, 32),
    ],
)
def test_full_blocks_of_the_beginning_are_found(cached: int, prompt: int, found: int) -> None:
    cache = PrefixCache()
    cache.add(blocks(cached))
    assert cache.find(blocks(prompt), prompt_tokens=prompt) == found


def test_a_block_is_only_the_same_behind_the_same_tokens() -> None:
    cache = PrefixCache()
    cache.add(blocks(64))
    assert cache.find(blocks(64, start=1), prompt_tokens=64) == 0


def test_tenants_share_nothing() -> None:
    cache = PrefixCache()
    cache.add(blocks_of(TOKENS, tenant="one"))
    assert cache.find(blocks_of(TOKENS, tenant="two"), prompt_tokens=100) == 0


def test_what_was_not_used_for_longest_gives_way_and_of_a_prompt_its_end() -> None:
    cache = PrefixCache()
    old, new = blocks(64, start=1), blocks(64, start=2)
    cache.add(old)
    cache.add(new)
    cache.fit(6 * BLOCK_TOKENS)
    assert cache.find(old, prompt_tokens=65) == 2 * BLOCK_TOKENS
    assert cache.find(new, prompt_tokens=65) == 4 * BLOCK_TOKENS
    cache.fit(0)
    assert cache.find(new, prompt_tokens=65) == 0


@pytest.mark.parametrize(
    "messages",
    [
        [user("hello")],
        [user("")],
        [{"role": "system", "content": [{"type": "text", "text": "é" * 7}, "more"]}, user(LONG)],
        [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function"}]}],
    ],
)
@pytest.mark.parametrize("tools", [[], [{"type": "function", "function": {"name": "f"}}]])
def test_a_conversation_has_as_many_tokens_as_its_prompt(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> None:
    assert len(chat_tokens(messages, tools)) + 3 == chat_prompt(messages, tools, None).tokens


def test_a_cached_prompt_takes_no_time_and_gives_way_to_running_sequences() -> None:
    parameters = SimulatedParameters(kv_cache_tokens=200, max_model_len=200)
    batch = Batch(parameters=parameters, max_running=4)

    def prefilled(prompt_tokens: int, blocks: tuple[bytes, ...]) -> int:
        sequence = Sequence(prompt_tokens=prompt_tokens, target=2, blocks=blocks)
        batch.add(sequence)
        computed = 0
        while (step := batch.schedule()) is not None:
            computed += sum(tokens for _, tokens in step.prefills)
            batch.finish(step)
        return computed

    assert prefilled(70, blocks(70)) == 70
    assert prefilled(70, blocks(70)) == 70 - 64
    assert prefilled(190, ()) == 190
    assert prefilled(70, blocks(70)) == 70


async def usage_of(engine: SimulatedEngine, *messages: dict[str, Any], tenant: str = "t") -> tuple[int, int]:
    generation = Generation(
        id="job", endpoint=Endpoint.CHAT, body={"messages": [*messages]}, priority=4, tenant=tenant
    )
    completion = None
    async for event in engine.generate(generation):
        completion = event
    assert isinstance(completion, Completion)
    details = completion.response["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": completion.usage.cached_tokens}
    return completion.usage.cached_tokens, completion.usage.prompt_tokens


@pytest.mark.parametrize("on", [True, False])
async def test_the_next_turn_of_a_conversation_reads_the_history_from_the_cache(*, on: bool) -> None:
    engine = SimulatedEngine(model="m", max_running=4, engine_args={"speed": 0, "prefix_caching": on})
    await engine.start()
    try:
        assert (await usage_of(engine, user(LONG)))[0] == 0
        answer = {"role": "assistant", "content": "words " * 40}
        cached, prompt = await usage_of(engine, user(LONG), answer, user("more"))
        assert cached == (BLOCK_TOKENS * ((len(LONG) // 4 + 4) // BLOCK_TOKENS) if on else 0)
        again, _ = await usage_of(engine, user(LONG), answer, user("more"))
        assert again == (BLOCK_TOKENS * ((prompt - 3) // BLOCK_TOKENS) if on else 0)
        assert (await usage_of(engine, user(LONG), tenant="other"))[0] == 0
    finally:
        await engine.stop()
