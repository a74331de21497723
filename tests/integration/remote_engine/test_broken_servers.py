"""Servers that fail: at the start, beside others that do not, or all requests at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from tests.integration.remote_engine.bad_server import (
    PIECES,
    BadServer,
    ask,
    engine_on,
    saying,
    started_on,
)
from tests.patience import PATIENCE_S

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.worker.engines.openai import served as openai_served
from inferfleet.worker.engines.openai.engine import OpenaiEngine
from inferfleet.worker.ports import GenerationError
from inferfleet.worker.probe import ProbeFailedError, probe

ALWAYS = 10**9


async def start(engine: OpenaiEngine) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await engine.start()


@pytest.mark.parametrize("chats", [True, False], ids=["with chats", "alone"])
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 524, 529])
async def test_an_endpoint_that_fails_at_the_start_is_waited_for(
    status: int, chats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_served, "TRY_AGAIN_S", 0.0)
    server = BadServer(chats=chats, offers={Endpoint.EMBEDDINGS})
    async with server.running(), engine_on(server) as engine:
        server.answer = saying(status, streamed=False, path="embeddings", times=2)
        await start(engine)
        assert Endpoint.EMBEDDINGS in engine.endpoints


@pytest.mark.parametrize("status", [403, 404, 405, 500])
async def test_an_endpoint_that_always_fails_is_not_waited_for_if_others_answer(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_served, "TRY_AGAIN_S", 0.0)
    async with BadServer(offers=PIECES).running() as server, engine_on(server) as engine:
        server.answer = saying(status, streamed=False, path="embeddings", times=ALWAYS)
        await start(engine)
        assert engine.endpoints == {Endpoint.CHAT, Endpoint.RERANK, Endpoint.SCORE}


async def test_many_endpoints_that_always_fail_do_not_keep_a_worker_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_served, "TRY_AGAIN_S", 0.0)
    async with BadServer().running() as server, engine_on(server) as engine:

        async def fail(path: str, body: dict[str, Any]) -> web.Response | None:
            return web.json_response({}, status=500) if path in PIECES else None

        server.answer = fail
        await start(engine)
        assert engine.endpoints == {Endpoint.CHAT}


async def test_a_server_whose_only_endpoint_fails_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_served, "TRY_AGAIN_S", 0.0)
    server = BadServer(chats=False, offers={Endpoint.EMBEDDINGS})
    async with server.running(), engine_on(server) as engine:
        server.answer = saying(500, streamed=False, path="embeddings", times=2 * openai_served.TRIES)
        await start(engine)
        assert engine.endpoints == {Endpoint.EMBEDDINGS}


async def test_an_endpoint_that_fails_does_not_keep_a_server_from_answering_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a failure the server is looked at again."""
    async with BadServer(offers=PIECES).running() as server, started_on(server) as engine:
        server.answer = saying(503, streamed=False, path="embeddings", times=ALWAYS)
        (host,) = engine._hosts.all  # pyright: ignore[reportPrivateUsage]
        host.verified_at = float("-inf")
        assert await ask(engine)


@pytest.mark.parametrize("status", [402, 403, 404, 408, 500, 502, 503])
async def test_beside_a_broken_server_another_one_answers_all_requests(status: int) -> None:
    broken, good = BadServer(), BadServer()
    async with broken.running(), good.running(), started_on(broken, good) as engine:
        refused = 0

        async def refuse(path: str, body: dict[str, Any]) -> web.Response:
            nonlocal refused
            refused += 1
            return web.json_response({}, status=status)

        broken.answer = refuse
        for _ in range(10):
            assert await ask(engine)
        # The broken one is the least busy, always.
        assert 1 <= refused < 8
    assert len(good.asked) == 10


async def test_a_request_that_every_server_fails_ends() -> None:
    one, other = BadServer(), BadServer()
    async with one.running(), other.running(), started_on(one, other) as engine:
        for server in (one, other):
            server.answer = saying(500, times=1)
        with pytest.raises(GenerationError, match="500") as failed:
            await ask(engine)
        assert failed.value.code is FailureCode.ENGINE_ERROR
        assert await ask(engine)


async def test_a_request_ends_if_its_server_fails_and_the_others_hang() -> None:
    broken, hanging = BadServer(), BadServer()
    async with broken.running(), hanging.running(), started_on(broken, hanging) as engine:
        engine._hosts.all[1].silent = True  # pyright: ignore[reportPrivateUsage]
        broken.events = ["malformed"]
        with pytest.raises(GenerationError) as failed:
            await ask(engine)
        assert failed.value.code is FailureCode.ENGINE_ERROR
    assert not hanging.asked


async def test_a_request_that_a_server_fails_waits_until_another_one_has_room() -> None:
    broken, full = BadServer(), BadServer()
    async with broken.running(), full.running(), started_on(broken, full) as engine:
        first, second = engine._hosts.all  # pyright: ignore[reportPrivateUsage]
        second.limit = 1.0
        runs, goes_on = asyncio.Event(), asyncio.Event()

        async def hold(path: str, body: dict[str, Any]) -> None:
            if body.get("stream"):
                runs.set()
                await goes_on.wait()

        async def fail(path: str, body: dict[str, Any]) -> web.Response:
            goes_on.set()
            return web.json_response({}, status=500)

        full.answer = hold
        first.silent = True
        held = asyncio.create_task(ask(engine))
        async with asyncio.timeout(PATIENCE_S):
            await runs.wait()
        first.silent = False
        broken.answer = fail
        assert await ask(engine)
        assert await held


async def test_all_requests_share_one_look_at_a_server() -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        (host,) = engine._hosts.all  # pyright: ignore[reportPrivateUsage]
        host.verified_at = float("-inf")
        server.probes = 0
        looked_at, goes_on = asyncio.Event(), asyncio.Event()

        async def hold(path: str, body: dict[str, Any]) -> None:
            if not body.get("stream"):
                looked_at.set()
                await goes_on.wait()

        server.answer = hold
        asked = [asyncio.create_task(ask(engine)) for _ in range(8)]
        async with asyncio.timeout(PATIENCE_S):
            await looked_at.wait()
            while host.running < len(asked):
                await asyncio.sleep(0)
        asked[0].cancel()
        await asyncio.wait(asked[:1])
        goes_on.set()
        assert all(await asyncio.gather(*asked[1:]))
    assert server.probes == 1
    assert asked[0].cancelled()


async def test_a_stopped_engine_leaves_no_look_behind() -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        (host,) = engine._hosts.all  # pyright: ignore[reportPrivateUsage]
        host.verified_at = float("-inf")
        server.answers.clear()
        asked = asyncio.create_task(ask(engine))
        async with asyncio.timeout(PATIENCE_S):
            while host.verifying is None:
                await asyncio.sleep(0)
            await engine.stop()
            await asyncio.wait([asked])
        assert not asked.cancelled()
        assert "stopped" in str(asked.exception())


async def test_a_pause_longer_than_a_request_may_wait_fails_the_attempt_at_once() -> None:
    async with BadServer().running() as server, started_on(server, busy_timeout_s=2 * PATIENCE_S) as engine:
        server.answer = saying(429, headers={"Retry-After": str(3 * PATIENCE_S)})
        with pytest.raises(GenerationError, match="busy_timeout_s"):
            await ask(engine)


async def test_a_server_that_only_chats_is_probed_with_chats() -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        asked = len(server.asked)
        assert (await probe(engine)).hash
        assert len(server.asked) == asked + 4
        server.said = "aaaaaaaa"
        with pytest.raises(ProbeFailedError, match="over and over"):
            await probe(engine)
        server.said = ""
        server.events = [{"choices": [{"index": 0, "finish_reason": "stop"}]}]
        with pytest.raises(ProbeFailedError, match="answers nothing"):
            await probe(engine)


async def test_a_chat_model_that_knows_only_the_new_limit_is_probed() -> None:
    async with BadServer().running() as server, started_on(server) as engine:

        async def strict(path: str, body: dict[str, Any]) -> web.Response | None:
            return web.json_response({}, status=400) if "max_tokens" in body else None

        server.answer = strict
        assert (await probe(engine)).hash


@pytest.mark.parametrize("endpoint", PIECES)
async def test_a_server_that_gives_the_same_numbers_for_all_texts_fails_the_probe(endpoint: Endpoint) -> None:
    rows = {Endpoint.EMBEDDINGS: {"embedding": [0.5]}, Endpoint.RERANK: {"relevance_score": 0.5}}
    row = rows.get(endpoint, {"score": 0.5})
    async with BadServer(chats=False, offers={endpoint}).running() as server, started_on(server) as engine:

        async def the_same(path: str, body: dict[str, Any]) -> web.Response:
            return web.json_response({"data": [row] * 4, "results": [row] * 4})

        server.answer = the_same
        with pytest.raises(ProbeFailedError, match="the same numbers"):
            await probe(engine)
