"""Servers that ignore what they do not know: their answers look good, and are not what was asked for."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from aiohttp import web
from tests.integration.conftest import PATIENCE_S, StartWorker
from tests.integration.remote_engine.bad_server import MODEL, Answer, BadServer, ask, engine_on, started_on

from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, FailureCode, JobState
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.openai.engine import OpenaiEngine
from inferfleet.worker.ports import GenerationError

CHAT: dict[str, Any] = {**ENDPOINTS[Endpoint.CHAT].example}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OF_F = {"type": "function", "function": {"name": "f"}}
JSON = {"type": "json_object"}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "array"}}}


def said(text: str = "", *, reason: str = "stop", logprobs: Any = None, **message: Any) -> dict[str, Any]:
    return {
        "choices": [
            {"index": 0, "delta": {"content": text, **message}, "logprobs": logprobs},
            {"index": 0, "delta": {}, "finish_reason": reason},
        ]
    }


def calling(name: str) -> dict[str, Any]:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return said(reason="tool_calls", tool_calls=[call])


def vectors(*found: Any) -> Answer:
    async def always(path: str, body: dict[str, Any]) -> web.Response:
        return web.json_response({"data": [{"index": n, "embedding": each} for n, each in enumerate(found)]})

    return always


@pytest.mark.parametrize(
    ("endpoint", "body", "ignored"),
    [
        (Endpoint.CHAT, CHAT | {"n": 2}, "1 of 2 choices, so it ignores 'n'"),
        (Endpoint.CHAT, CHAT | {"n": 2, "prompt_logprobs": 1}, "1 of 2 choices, so it ignores 'n'"),
        (Endpoint.COMPLETIONS, {"prompt": "one", "n": 2}, "1 of 2 choices, so it ignores 'n'"),
        (
            Endpoint.COMPLETIONS,
            {"prompt": ["one", "two"]},
            "1 of 2 choices, so it ignores some prompts or inputs",
        ),
        (Endpoint.EMBEDDINGS, {"input": ["one", "two"]}, "1 of 2 data, so it ignores some prompts or inputs"),
    ],
    ids=["choices", "choices in one piece", "choices of a completion", "prompts", "inputs"],
)
async def test_an_answer_to_a_part_of_the_request_fails_the_job_at_once(
    endpoint: Endpoint, body: dict[str, Any], ignored: str
) -> None:
    server = BadServer(completions=True, offers=[Endpoint.EMBEDDINGS])
    async with server.running(), started_on(server) as engine:
        with pytest.raises(GenerationError, match=ignored) as failed:
            await ask(engine, endpoint, body)
        assert failed.value.code is FailureCode.INVALID_REQUEST


async def test_a_job_with_several_choices_fails_with_its_first_attempt(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    async with BadServer().running() as server:
        engine = OpenaiEngine(urls=[server.url], model=MODEL, max_running=8, engine_args={})
        worker = await start_worker(engine)
        job = await fleet.submit(CHAT | {"n": 2}, pool=pool, max_attempts=3)
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
        await worker.stop()
    assert (result.state, result.attempts, len(server.asked)) == (JobState.FAILED, 1, 1)
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    assert "'n'" in result.error.message


@pytest.mark.parametrize(
    ("more", "event", "member"),
    [
        ({"logprobs": True}, said("hello"), "logprobs"),
        ({"stop": "END"}, said("hello END"), "stop"),
        ({"stop": ["no", "END"]}, said("hello END", reason="length"), "stop"),
        ({"tools": [TOOL], "tool_choice": "required"}, said("hello"), "tool_choice"),
        ({"tools": [TOOL], "tool_choice": OF_F}, said("hello"), "tool_choice"),
        ({"tools": [TOOL], "tool_choice": OF_F}, calling("g"), "tool_choice"),
        ({"response_format": JSON}, said("hello"), "response_format"),
        ({"response_format": JSON}, said("[1]"), "response_format"),
        ({"response_format": SCHEMA}, said("hello"), "response_format"),
        ({"prompt_logprobs": 1}, None, "prompt_logprobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_answer_that_shows_that_a_member_was_ignored_fails_the_job_unless_that_is_accepted(
    more: dict[str, Any], event: dict[str, Any] | None, member: str
) -> None:
    for accepted in (False, True):
        args = {"may_ignore": [member]} if accepted else {}
        async with BadServer().running() as server, started_on(server, **args) as engine:
            server.events = None if event is None else [event]
            if accepted:
                assert await ask(engine, body=CHAT | more)
                continue
            with pytest.raises(GenerationError, match=f"ignores '{member}'") as failed:
                await ask(engine, body=CHAT | more)
            assert failed.value.code is FailureCode.INVALID_REQUEST
            assert "END" not in str(failed.value), "no error quotes the caller's words"


@pytest.mark.parametrize(
    ("more", "event"),
    [
        ({"logprobs": False}, said("hello")),
        ({"logprobs": True}, said("hello", logprobs={"content": [{"token": "hello", "logprob": -1.0}]})),
        ({"logprobs": True}, said("")),
        ({"logprobs": True, "tools": [TOOL]}, calling("f")),
        ({"stop": "END", "min_tokens": 3}, said("hello END")),
        ({"stop": ["", "END"]}, said("hello")),
        ({"tools": [TOOL]}, said("hello")),
        ({"tools": [TOOL], "tool_choice": "auto"}, said("hello")),
        ({"tools": [TOOL], "tool_choice": "required"}, calling("f")),
        ({"tools": [TOOL], "tool_choice": OF_F}, calling("f")),
        ({"tools": [TOOL], "tool_choice": "required"}, said("half", reason="length")),
        ({"response_format": JSON}, said('{"a": 1}')),
        ({"response_format": JSON}, said('{"a', reason="length")),
        ({"response_format": JSON, "stop": "}"}, said('{"a": 1')),
        ({"response_format": JSON}, said("", refusal="I will not")),
        ({"response_format": JSON}, said("no", reason="content_filter")),
        ({"response_format": SCHEMA}, said("[1]")),
        ({"response_format": {"type": "text"}}, said("hello")),
    ],
    ids=lambda value: " ".join(value) if "choices" not in value else "",
)
async def test_an_answer_that_may_be_what_was_asked_for_is_accepted(
    more: dict[str, Any], event: dict[str, Any]
) -> None:
    async with BadServer().running() as server, started_on(server) as engine:
        server.events = [event]
        assert await ask(engine, body=CHAT | more)


@pytest.mark.parametrize("encoded", [False, True], ids=["numbers", "base64"])
@pytest.mark.parametrize("found", [1, 2, 3, 4, 5, 6, 256])
async def test_vectors_of_another_length_fail_the_job(found: int, encoded: bool) -> None:
    vector: Any = [0.5] * found
    if encoded:
        vector = base64.b64encode(struct.pack(f"<{found}f", *vector)).decode()
    server = BadServer(offers=[Endpoint.EMBEDDINGS])
    async with server.running(), started_on(server) as engine:
        server.answer = vectors(vector)
        assert await ask(engine, Endpoint.EMBEDDINGS, {"input": "one"})
        assert await ask(engine, Endpoint.EMBEDDINGS, {"input": "one", "dimensions": found})
        with pytest.raises(GenerationError, match=f"'dimensions': a vector has {found} of them, not 1000"):
            await ask(engine, Endpoint.EMBEDDINGS, {"input": "one", "dimensions": 1000})


async def test_a_member_that_nobody_knows_cannot_be_accepted() -> None:
    async with BadServer().running() as server:
        with pytest.raises(ConfigurationError, match="may_ignore"):
            async with engine_on(server, may_ignore=["seed"]):
                pass
