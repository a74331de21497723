"""How the gateway reads bodies that are meant to keep it busy, and where its streams of events end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import orjson
import pytest
from fastapi import Response
from prometheus_client import CollectorRegistry

from inferfleet.gateway import job_requests
from inferfleet.gateway.access_log import CLIENT_GONE, OpenRequests
from inferfleet.gateway.job_requests import read_jobs
from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.waiting import EventResponse
from inferfleet.producer.openai import requests
from inferfleet.producer.openai.refusals import RefusedError
from inferfleet.producer.openai.streams import EventStream, Part, last_events

JOB: dict[str, Any] = {"body": {"messages": [{"role": "user", "content": 'a \\ "[{'}]}}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all texts that are parsed."""
    lengths: list[int] = []
    parse = requests.parse

    def noted(content: bytes, *arguments: Any) -> Any:
        lengths.append(len(content))
        return parse(content, *arguments)

    for module in (requests, job_requests):
        monkeypatch.setattr(module, "parse", noted)
    return lengths


async def test_the_jobs_of_an_array_are_parsed_one_by_one(parsed: list[int]) -> None:
    asked = await read_jobs({}, orjson.dumps([JOB] * 100, option=orjson.OPT_INDENT_2), most=1000)

    assert isinstance(asked, list)
    assert [each.body for each in asked] == [JOB["body"]] * 100
    assert len(parsed) == 101
    assert max(parsed) <= 1000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (orjson.dumps(JOB | {"metadata": {"a": "x" * 1000}}), "the body is"),
        (orjson.dumps([JOB, JOB | {"metadata": {"a": "x" * 1000}}]), r"\[1\] is"),
        (b"[" + b"1," * 1000 + b"1]", "around the jobs"),
        (b'[{"body": ' + b"[" * 1000, "nested too deeply"),
        (b'{"body": ' + b"[" * 900, "nested too deeply"),
    ],
)
async def test_what_is_too_large_or_too_deep_is_not_parsed(
    content: bytes, said: str, parsed: list[int]
) -> None:
    with pytest.raises(RefusedError, match=said):
        await read_jobs({}, content, most=1000)

    assert parsed == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[{}, {} {}]", "not JSON"),
        (b"[{}, {]", "not JSON"),
        (b"[{}] {}", "not JSON"),
        (b'[{}, {"a": nul}]', r"\[0\].body"),
        (b'[{"body": {}}, {"a": nul}]', r"\[1\] is not JSON"),
        (b'[{"body": {}}, 3]', r"\[1\] must be an object"),
        (b'{"body": {"not_before": 1}}', "body.not_before: no engine knows this"),
        (b'[{"body": {}}, {"body": {"inferfleet": 1}}]', r"\[1\].body.inferfleet: no engine knows this"),
        (b'[{"body": {}}, []]', r"\[1\] must be an object"),
        (b"[" + b"{}," * 1000 + b"{}]", "1 to 1,000"),
    ],
)
async def test_an_array_that_is_wrong_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        await read_jobs({}, content, most=10_000)


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "1" * 5000])
def test_a_whole_number_that_a_parser_would_change_is_refused(number: str) -> None:
    with pytest.raises(RefusedError, match="more than 64 bits"):
        requests.read_json(f'{{"a": [{number}]}}'.encode())


@pytest.mark.parametrize(
    "number", ["18446744073709551615", "-9223372036854775808", "1234567890123456789012.5", "0." + "1" * 50]
)
def test_a_number_that_a_parser_keeps_is_read(number: str) -> None:
    text = f'[{number}, "{"1" * 50}"]'

    assert requests.read_json(text.encode()) == orjson.loads(text)


def test_a_text_of_quotes_is_scanned_once() -> None:
    # It would take minutes to look for the end of a string from each of them.
    with pytest.raises(RefusedError, match="not JSON"):
        requests.read_json(b'["' + b'\\"' * 500_000)


async def test_an_interrupted_stream_names_the_last_event_that_was_sent() -> None:
    async def parts() -> AsyncGenerator[Part]:
        for number in range(1, 9):
            yield Part(b"%d" % number, str(number))

    stream = EventStream(parts(), last_events=last_events)
    until = asyncio.get_running_loop().create_future()
    stalled, never = asyncio.Event(), asyncio.Event()
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        if message.get("body") == b"3":
            stalled.set()
            await never.wait()
        sent.append(message.get("body"))

    async def receive() -> Any:
        await never.wait()

    response = EventResponse(
        stream, headers={}, until=until, interrupted=partial(_cursor, stream), stalled_s=1000
    )
    answering = asyncio.create_task(response({"type": "http"}, receive, send))
    await stalled.wait()
    until.set_result(None)
    await answering

    assert sent[1:] == [b"1", b"2", b"behind 2"]


def _cursor(stream: EventStream) -> bytes:
    return f"behind {stream.cursor}".encode()


@pytest.mark.parametrize(("status", "complete"), [(200, True), (CLIENT_GONE, False)])
async def test_an_answer_that_nobody_received_is_not_complete(
    status: int, complete: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    scope: Any = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": []}
    with caplog.at_level("INFO"):
        metrics = GatewayMetrics(CollectorRegistry())
        await OpenRequests(Response(status_code=status), most=1, metrics=metrics)(scope, receive, send)

    assert [record.__dict__["complete"] for record in caplog.records] == [complete]
