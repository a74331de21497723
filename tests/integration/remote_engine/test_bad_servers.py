"""Servers that say absurd things, are busy at the start, or have another model all of a sudden."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.integration.remote_engine.bad_server import BadServer, ask, engine_on, saying, started_on
from tests.patience import PATIENCE_S

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.worker.engines.openai import client as openai_client
from inferfleet.worker.engines.openai import engine as openai_engine
from inferfleet.worker.ports import (
    EngineDeadError,
    GenerationError,
    NotContinuableError,
)
from inferfleet.worker.probe import ProbeFailedError, probe


@pytest.mark.parametrize("seconds", ["1e999", "99999999999", "nan", "-5"])
async def test_an_absurd_pause_does_not_silence_a_server_for_ever(seconds: str) -> None:
    async with BadServer().running() as server, started_on(server, busy_timeout_s=1.0) as engine:
        server.answer = saying(429, headers={"Retry-After": seconds})
        asked = [ask(engine) for _ in range(2)]
        await asyncio.gather(*asked, return_exceptions=True)

        assert (await ask(engine)).usage.prompt_tokens == 2


async def test_a_pause_of_zero_asks_for_no_storm() -> None:
    async with BadServer().running() as server, started_on(server, busy_timeout_s=1.0) as engine:
        refusals = 0

        async def answer(path: str, body: dict[str, Any]) -> web.StreamResponse:
            nonlocal refusals
            refusals += 1
            return web.json_response({}, status=429, headers={"Retry-After": "0"})

        server.answer = answer
        with pytest.raises(GenerationError, match="busy_timeout_s"):
            await ask(engine)
        assert refusals <= 12


async def test_the_long_pause_of_one_server_sends_the_request_to_another() -> None:
    async with (
        BadServer().running() as busy,
        BadServer().running() as other,
        started_on(busy, other) as engine,
    ):
        for server in (busy, other):
            server.answer = saying(429, headers={"Retry-After": "3600"})
            await ask(engine)
            server.answer = server.nothing
            for host in engine._hosts.all:  # pyright: ignore[reportPrivateUsage]
                host._paused_until = 0.0  # pyright: ignore[reportPrivateUsage]


async def test_first_tokens_that_are_late_together_halve_the_limit_once() -> None:
    async with BadServer().running() as server, started_on(server, max_first_token_s=0.05) as engine:

        async def late(path: str, body: dict[str, Any]) -> None:
            await asyncio.sleep(0.3)

        await ask(engine)
        server.answer = late
        await asyncio.gather(*[ask(engine) for _ in range(8)])
        assert engine._hosts.all[0].limit >= 4  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_is_busy_at_the_start_is_waited_for(status: int) -> None:
    async with BadServer().running() as server, engine_on(server) as engine:
        server.answer = saying(status, streamed=False, times=2)
        async with asyncio.timeout(PATIENCE_S):
            await engine.start()
        assert Endpoint.CHAT in engine.endpoints


@pytest.mark.parametrize("status", [402, 403, 404])
async def test_what_is_not_the_fault_of_the_job_is_retried(status: int) -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        server.answer = saying(status)
        with pytest.raises(GenerationError) as failed:
            await ask(engine)
        assert failed.value.code is FailureCode.ENGINE_ERROR
        assert await ask(engine)


async def test_an_error_that_quotes_the_key_or_a_header_does_not_reach_the_job(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-0123456789\n")
    secrets = {"api_key_file": str(tmp_path / "key"), "headers": {"X-Auth": "Basic aHVudGVyMg=="}}
    async with BadServer().running() as server, started_on(server, **secrets) as engine:
        server.answer = saying(403, words="sk-0123456789 or aHVudGVyMg== is wrong")
        with pytest.raises(GenerationError, match="is wrong") as failed:
            await ask(engine)
        assert "0123456789" not in str(failed.value)
        assert "aHVudGVyMg" not in str(failed.value)


async def test_an_error_that_passes_does_not_make_a_server_one_with_another_model() -> None:
    async with BadServer(vllm=True).running() as server, started_on(server) as engine:
        engine._hosts.all[0].verified_at = float("-inf")  # pyright: ignore[reportPrivateUsage]
        server.answer = saying(503, streamed=False, path="/tokenize")
        with pytest.raises(GenerationError, match="503"):
            await ask(engine)
        assert await ask(engine)


async def test_an_answer_is_not_resumed_on_a_server_that_was_restarted_with_another_model() -> None:
    async with BadServer(vllm=True).running() as server, started_on(server) as engine:
        server.fingerprint = "vllm-two"
        with pytest.raises(EngineDeadError, match="another model"):
            await ask(engine, resume_token_ids=(7,))
        assert len(server.asked) == 1 + 1, "only the start and the question for the prompt"


async def test_a_server_that_was_restarted_with_another_model_gives_one_answer_at_most() -> None:
    async with BadServer(vllm=True).running() as server, started_on(server) as engine:
        server.fingerprint = "vllm-two"
        assert await ask(engine)
        with pytest.raises(EngineDeadError, match="another model"):
            await ask(engine)


@pytest.mark.parametrize("status", [403, 404])
async def test_an_answer_restarts_if_a_proxy_hides_what_its_resumption_needs(status: int) -> None:
    async with BadServer(vllm=True).running() as server, engine_on(server) as engine:
        server.answer = saying(status, streamed=False, path="tokenize", times=9)
        await engine.start()
        with pytest.raises(NotContinuableError, match="decode"):
            await ask(engine, resume_token_ids=(7,))


async def test_the_probe_works_without_token_ids() -> None:
    async with BadServer(completions=True).running() as server, started_on(server) as engine:
        found = await probe(engine)
        assert found.hash
        server.said = "aaaaaaaa"
        with pytest.raises(ProbeFailedError, match="over and over"):
            await probe(engine)


async def test_a_server_of_any_kind_that_has_another_model_now_gets_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some servers answer with the model that they have, whichever a request names."""
    monkeypatch.setattr(openai_engine, "VERIFIED_FOR_S", 0.0)
    async with BadServer().running() as server, started_on(server) as engine:
        await ask(engine)
        asked = len(server.asked)
        server.model = "another-model"
        with pytest.raises(EngineDeadError, match="has no model 'some-model'; it has another-model"):
            await ask(engine)
    assert len(server.asked) == asked


async def test_a_server_that_lists_no_model_for_a_while_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway lists those whose workers have a heartbeat."""
    monkeypatch.setattr(openai_engine, "VERIFIED_FOR_S", 0.0)
    async with BadServer().running() as server, started_on(server) as engine:
        server.model = None
        assert (await ask(engine)).usage.prompt_tokens == 2


async def test_servers_that_hang_get_no_requests_until_they_answer_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_engine, "FIRST_BYTE_S", 0.1)
    monkeypatch.setattr(openai_engine, "REVIVE_S", 0.1)
    one, other, good = BadServer(), BadServer(), BadServer()
    async with (
        one.running(),
        other.running(),
        good.running(),
        started_on(one, other, good) as engine,
    ):
        await asyncio.gather(*(ask(engine) for _ in range(3)))
        assert all(server.asked for server in (one, other, good))
        hosts = engine._hosts.all  # pyright: ignore[reportPrivateUsage]
        hanging = {host for host in hosts if host.url != good.url}
        for server in (one, other):
            server.asked.clear()
            server.answers.clear()

        with monkeypatch.context() as patched:
            patched.setattr(openai_client, "LOOK_S", 1.0)
            await asyncio.gather(*(ask(engine) for _ in range(3)))
            assert {host for host in hosts if host.silent} == hanging
            patched.setattr(openai_engine, "FIRST_BYTE_S", 3600.0)
            # None of them is sent to a server that would let it wait.
            await asyncio.gather(*(ask(engine) for _ in range(20)))

        for server in (one, other):
            server.answers.set()
        while any(host.silent for host in hanging):
            await asyncio.sleep(0.01)
        await asyncio.gather(*(ask(engine) for _ in range(6)))
    assert one.asked
    assert other.asked


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_server_that_fails_to_list_its_models_keeps_the_requests_that_it_runs(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_engine, "FIRST_BYTE_S", 0.01)
    async with BadServer().running() as server, started_on(server) as engine:

        async def late(path: str, body: dict[str, Any]) -> None:
            server.listing, server.listed = status, asyncio.Semaphore(0)
            for _ in range(3):
                await server.listed.acquire()

        server.answer = late
        assert (await ask(engine)).usage.prompt_tokens == 2


async def test_requests_fail_if_one_server_hangs_and_the_other_has_another_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_engine, "FIRST_BYTE_S", 0.1)
    hanging, good = BadServer(vllm=True), BadServer(vllm=True)
    async with hanging.running(), good.running(), started_on(hanging, good) as engine:
        await asyncio.gather(*(ask(engine) for _ in range(2)))
        hanging.answers.clear()
        with monkeypatch.context() as patched:
            patched.setattr(openai_client, "LOOK_S", 1.0)
            await asyncio.gather(*(ask(engine) for _ in range(2)))
        assert [host.silent for host in engine._hosts.all] == [True, False]  # pyright: ignore[reportPrivateUsage]
        good.fingerprint = "vllm-two"
        assert await ask(engine)
        with pytest.raises(EngineDeadError, match="another model"):
            await ask(engine)
