"""Answers with the status 200 that are errors, malformed, incomplete, or do not end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from tests.integration.remote_engine.bad_server import PIECES, Answer, BadServer, ask, engine_on, started_on
from tests.patience import PATIENCE_S

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.worker.engines.openai import client as openai_client
from inferfleet.worker.engines.openai import served as openai_served
from inferfleet.worker.ports import GenerationError
from inferfleet.worker.probe import ProbeFailedError, probe

CHAT: dict[str, Any] = {**ENDPOINTS[Endpoint.CHAT].example}
IN_ONE_PIECE = CHAT | {"prompt_logprobs": 1}
NONE_SAID: dict[str, Any] = {"may_ignore": ["prompt_logprobs"]}

REQUESTS = [
    (Endpoint.CHAT, CHAT),
    (Endpoint.CHAT, IN_ONE_PIECE),
    *((endpoint, ENDPOINTS[endpoint].example) for endpoint in PIECES),
]
of_each_kind = pytest.mark.parametrize(
    ("endpoint", "body"), REQUESTS, ids=["stream", "one-piece", "embeddings", "rerank", "score"]
)


def with_200(answer: Any) -> Answer:
    async def always(path: str, body: dict[str, Any]) -> web.Response:
        return web.json_response(answer)

    return always


def event(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **choice}]}


HELLO = event(delta={"content": "hello"})
END = event(delta={}, finish_reason="stop")


@of_each_kind
async def test_an_error_with_the_status_200_fails_the_attempt(
    endpoint: Endpoint, body: dict[str, Any]
) -> None:
    async with BadServer(offers=PIECES).running() as server, started_on(server, **NONE_SAID) as engine:
        server.answer = with_200({"error": {"message": "the upstream has failed", "code": 502}})
        with pytest.raises(GenerationError, match="the upstream has failed") as failed:
            await ask(engine, endpoint, body)
        assert failed.value.code is FailureCode.ENGINE_ERROR
        server.answer = server.nothing
        assert (await ask(engine, endpoint, body)).usage.prompt_tokens == 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, FailureCode.INVALID_REQUEST),
        ("400", FailureCode.INVALID_REQUEST),
        (500, FailureCode.ENGINE_ERROR),
        (0, FailureCode.ENGINE_ERROR),
        (20041, FailureCode.ENGINE_ERROR),
        ("server_error", FailureCode.ENGINE_ERROR),
    ],
)
async def test_the_code_of_such_an_error_counts_if_it_is_a_status(code: Any, expected: FailureCode) -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        server.answer = with_200({"error": {"message": "no", "code": code}})
        with pytest.raises(GenerationError) as failed:
            await ask(engine)
        assert failed.value.code is expected


async def test_a_429_in_the_place_of_an_answer_is_waited_for() -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        busy = {"error": {"message": "slow down", "code": 429}}

        async def once(path: str, body: dict[str, Any]) -> web.Response:
            server.answer = server.nothing
            return web.json_response(busy)

        server.answer = once
        assert (await ask(engine)).usage.prompt_tokens == 2

        server.events = [HELLO, busy]
        with pytest.raises(GenerationError, match="broke the answer off") as failed:
            await ask(engine)
        assert failed.value.code is FailureCode.ENGINE_ERROR


@pytest.mark.parametrize("answer", [{}, {"choices": [], "data": [], "results": []}, {"data": 5}, [], "well"])
@of_each_kind
async def test_an_answer_without_what_was_asked_for_fails_the_attempt(
    endpoint: Endpoint, body: dict[str, Any], answer: Any
) -> None:
    async with BadServer(offers=PIECES).running() as server, started_on(server) as engine:
        server.answer = with_200(answer)
        with pytest.raises(GenerationError) as failed:
            await ask(engine, endpoint, body)
        assert failed.value.code is FailureCode.ENGINE_ERROR


@pytest.mark.parametrize("at_the_end", ["silence", "reset"])
async def test_a_stream_that_breaks_off_between_two_choices_is_retried(
    at_the_end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_client, "END_S", 0.1)
    async with BadServer().running() as server, started_on(server, silence_timeout_s=0.5) as engine:
        server.at_the_end = at_the_end
        with pytest.raises(GenerationError) as failed:
            await ask(engine, body=CHAT | {"n": 2})
        assert failed.value.code is FailureCode.ENGINE_ERROR


@pytest.mark.parametrize(
    "garbage",
    [
        [1],
        {"choices": [None]},
        {"choices": "x"},
        event(delta="text"),
        event(delta={"content": ["text"]}),
        event(delta={"reasoning": 5}),
        event(delta={"tool_calls": 5}),
        event(logprobs={"content": 5}),
        event(finish_reason=["stop"]),
        event(index="a", delta={"content": "x"}),
        event(index=99_999_999, delta={"content": "x"}),
        {"usage": [1]},
        {"usage": {"prompt_tokens": "many"}},
        {"usage": {"completion_tokens": 10**12}},
    ],
    ids=str,
)
async def test_a_malformed_event_is_an_error_of_the_server(garbage: Any) -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        server.events = [HELLO, garbage, END]
        with pytest.raises(GenerationError) as failed:
            await ask(engine)
        assert failed.value.code is FailureCode.ENGINE_ERROR
        server.events = [HELLO, END]
        assert (await ask(engine)).response["choices"][0]["message"]["content"] == "hello"


async def test_an_answer_that_ends_with_an_error_is_not_complete() -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        server.events = [HELLO, event(delta={}, finish_reason="error")]
        with pytest.raises(GenerationError, match="before the answer"):
            await ask(engine)
        server.answer = with_200({"choices": [{"index": 0, "finish_reason": "error"}]})
        with pytest.raises(GenerationError, match="not completed"):
            await ask(engine, body=IN_ONE_PIECE)


@pytest.mark.parametrize("body", [CHAT, IN_ONE_PIECE], ids=["stream", "one-piece"])
async def test_the_usage_of_a_response_has_numbers(body: dict[str, Any]) -> None:
    usage = {"prompt_tokens": "5", "completion_tokens": 2, "total_tokens": None, "more": "words"}
    async with BadServer().running() as server, started_on(server, **NONE_SAID) as engine:
        if body is CHAT:
            server.events = [HELLO, END, {"choices": [], "usage": usage}]
        else:
            server.answer = with_200({"choices": [{"index": 0, "message": {}}], "usage": usage})
        answer = await ask(engine, body=body)
        assert answer.usage.prompt_tokens == 5
        assert answer.response["usage"] == usage | {"prompt_tokens": 5, "total_tokens": 7}


@pytest.mark.parametrize("at_the_end", ["silence", "reset"])
async def test_a_complete_answer_counts_although_its_stream_does_not_end(
    at_the_end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_client, "END_S", 0.1)
    async with BadServer().running() as server, started_on(server) as engine:
        server.at_the_end = at_the_end
        server.events = [HELLO, END]
        answer = await ask(engine)
        assert answer.response["choices"][0]["message"]["content"] == "hello"
        assert answer.usage.completion_tokens == 1, "counted by its events"
        assert len(server.asked) == 1
        server.events = [HELLO]
        if at_the_end == "reset":
            with pytest.raises(GenerationError):
                await ask(engine)


@pytest.mark.parametrize("reason", ["", "stop"])
async def test_an_answer_whose_every_event_has_a_finish_reason_is_not_cut(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_client, "END_S", 0.1)
    hello = event(delta={"content": "hello"}, finish_reason=reason)
    async with BadServer().running() as server, started_on(server) as engine:
        server.events = [hello, hello, hello]
        server.at_the_end = "reset"
        with pytest.raises(GenerationError):
            await ask(engine)
        server.events = [hello, hello, event(delta={}, finish_reason="stop")]
        server.at_the_end = "done"
        answer = await ask(engine)
        assert answer.response["choices"][0]["message"]["content"] == "hellohello"


async def test_a_resumed_answer_counts_although_its_stream_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_client, "END_S", 0.1)
    server = BadServer(vllm=True, completions=True)

    async def decoded(path: str, body: dict[str, Any]) -> web.Response | None:
        if path != "/detokenize":
            return None
        return web.json_response({"prompt": "".join(chr(96 + token) for token in body["tokens"])})

    async with server.running(), started_on(server) as engine:
        server.answer = decoded
        server.at_the_end = "silence"
        answer = await ask(engine, resume_token_ids=(7,))
        assert answer.response["choices"][0]["message"]["content"] == "ghello there"


async def test_a_line_without_end_fails_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "LONGEST_LINE_BYTES", 1024**2)
    async with BadServer().running() as server, started_on(server) as engine:
        server.events = [HELLO, "x" * 2 * 1024**2]
        server.at_the_end = "silence"
        with pytest.raises(GenerationError, match="more than 1 MiB"):
            await ask(engine)


@pytest.mark.parametrize("answer", [{}, {"error": {"message": "no"}}, [], {"data": [], "results": []}])
async def test_an_endpoint_that_answers_nothing_with_the_status_200_is_not_there(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_served, "TRY_AGAIN_S", 0.0)

    async def catch_all(path: str, body: dict[str, Any]) -> web.Response | None:
        return None if path == Endpoint.CHAT else web.json_response(answer)

    async with BadServer().running() as server:
        server.answer = catch_all
        async with started_on(server) as engine:
            assert engine.endpoints >= {Endpoint.CHAT}
            assert not engine.endpoints & PIECES.keys()


@pytest.mark.parametrize("usage", [5, {"completion_tokens_details": {}}])
async def test_a_start_survives_a_malformed_answer(usage: Any) -> None:
    async with BadServer().running() as server, engine_on(server) as engine:

        async def once(path: str, body: dict[str, Any]) -> web.Response:
            server.answer = server.nothing
            return web.json_response({"choices": [{"index": 0, "message": {}}], "usage": usage})

        server.answer = once
        async with asyncio.timeout(PATIENCE_S):
            await engine.start()
        assert Endpoint.CHAT in engine.endpoints


@pytest.mark.parametrize("endpoint", PIECES)
async def test_a_malformed_answer_fails_the_probe(endpoint: Endpoint) -> None:
    async with BadServer(chats=False, offers={endpoint}).running() as server, started_on(server) as engine:
        server.answer = with_200({"data": [{}] * 4, "results": [{}] * 4})
        with pytest.raises(ProbeFailedError, match="malformed"):
            await probe(engine)
