"""Servers that are busy, refuse the key, or end: which of them gets the next request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from tests.integration.api_keys.conftest import Keys
from tests.integration.conftest import PATIENCE_S, chat, slow_chat
from tests.integration.remote_engine.conftest import MakeEngine, Upstream

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.openai.engine import OpenaiEngine
from inferfleet.worker.ports import Completion, EngineDeadError, Generation, GenerationError


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


@asynccontextmanager
async def stopped_at_the_end(engine: OpenaiEngine) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await engine.stop()


@asynccontextmanager
async def started(engine: OpenaiEngine) -> AsyncGenerator[OpenaiEngine]:
    async with stopped_at_the_end(engine):
        await engine.start()
        yield engine


async def ask(engine: OpenaiEngine, body: dict[str, object]) -> Completion:
    generation = Generation(id=str(uuid4()), endpoint=Endpoint.CHAT, body=body, priority=4)
    async with asyncio.timeout(PATIENCE_S), aclosing(engine.generate(generation)) as events:
        async for event in events:
            if isinstance(event, Completion):
                return event
    raise AssertionError("the answer ended without a completion")


async def test_requests_that_a_server_answers_with_429_wait_and_are_answered(
    upstream: Upstream, engine_on: MakeEngine, keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(keys.create("busy", max_unfinished_jobs=2))
    server = await upstream(api_keys_file=keys.path)
    engine = engine_on(server, max_running=8, api_key_file=str(tmp_path / "key"))
    async with started(engine):
        asked = [ask(engine, slow_chat(f"{number}", tokens=5, step_s=0.02)) for number in range(12)]
        answers = await asyncio.gather(*asked)

        assert all(answer.usage.completion_tokens == 5 for answer in answers)
        (host,) = engine._hosts.all  # pyright: ignore[reportPrivateUsage]
        assert host.limit < 8, "the limit should have fallen"


async def test_a_server_that_stays_busy_fails_the_attempt(
    upstream: Upstream, engine_on: MakeEngine, keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(keys.create("busy", max_unfinished_jobs=1))
    server = await upstream(api_keys_file=keys.path)
    arguments = {"api_key_file": str(tmp_path / "key"), "busy_timeout_s": 0.1}
    async with started(engine_on(server, **arguments)) as engine:
        endless = asyncio.create_task(ask(engine, slow_chat(tokens=100_000, step_s=0.01)))
        while not server.worker.engine.stats().running:
            await asyncio.sleep(0.01)

        with pytest.raises(GenerationError, match="busy_timeout_s") as refused:
            await ask(engine, chat())

        endless.cancel()
    assert refused.value.code is FailureCode.ENGINE_ERROR


async def test_the_key_is_read_again_and_never_logged(
    upstream: Upstream,
    engine_on: MakeEngine,
    keys: Keys,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="inferfleet.worker")
    file, good = tmp_path / "key", keys.create("tenant")
    server = await upstream(api_keys_file=keys.path)
    file.write_text("sk-wrong")
    engine = engine_on(server, api_key_file=str(file))
    async with stopped_at_the_end(engine):
        with pytest.raises(ConfigurationError, match="api_key_file"):
            await engine.start()
    file.write_text(good + "\n")
    async with started(engine_on(server, api_key_file=str(file), headers={"X-Team": "hidden"})) as engine:
        await ask(engine, chat())
        file.write_text("sk-wrong")
        with pytest.raises(EngineDeadError, match="API key"):
            await ask(engine, chat())
    assert good not in caplog.text
    assert "sk-wrong" not in caplog.text
    assert "hidden" not in caplog.text


async def test_the_least_busy_server_is_asked_and_another_one_when_it_ends(
    upstream: Upstream, engine_on: MakeEngine
) -> None:
    one, other = await upstream(), await upstream()
    async with started(engine_on(one, other)) as engine:
        held = [asyncio.create_task(ask(engine, slow_chat(tokens=400, step_s=0.01))) for _ in range(2)]
        for server in (one, other):
            while not server.worker.engine.stats().running:
                await asyncio.sleep(0.01)

        await one.stop()
        answers = [await ask(engine, chat(f"{number}")) for number in range(6)]
        ended = await asyncio.gather(*held, return_exceptions=True)

    assert all(answer.response["choices"] for answer in answers)
    (lost,) = [each for each in ended if isinstance(each, GenerationError)]
    assert lost.code is FailureCode.ENGINE_ERROR
    assert sum(isinstance(each, Completion) for each in ended) == 1


async def test_several_models_and_none_named_is_an_error_that_lists_them(
    upstream: Upstream, engine_on: MakeEngine
) -> None:
    server = await upstream(model_pools={"another": "elsewhere"})

    engine = engine_on(server, model="")
    async with stopped_at_the_end(engine):
        with pytest.raises(ConfigurationError, match="another") as refused:
            await engine.start()
    assert "simulated" in str(refused.value)
