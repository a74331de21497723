"""The transport of OpenAI's SDK that takes requests to the queue. Needs the extra ``openai``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from functools import partial
from http import HTTPMethod, HTTPStatus
from typing import Any, Final

import httpx2
from openai import AsyncOpenAI, OpenAI

from inferfleet.producer.blocking import BlockingCall
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.openai.api import OpenAIApi, Reply
from inferfleet.producer.openai.models import Models
from inferfleet.producer.openai.refusals import RefusedError, not_found, refusal_of
from inferfleet.producer.openai.streams import EventStream
from inferfleet.producer.sync import SyncFleet
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.errors import InferfleetError

BASE_URL: Final = "http://inferfleet/v1"
"""Where the SDK believes the server to be. Nobody connects to it."""

MODELS_PATH: Final = "/v1/models"


def async_openai(
    fleet: Fleet, *, pool: str, models: Mapping[str, str] | None, options: Mapping[str, Any]
) -> AsyncOpenAI:
    """Make an asynchronous client."""
    http = httpx2.AsyncClient(transport=QueueTransport(_api(fleet, pool, models)))
    return AsyncOpenAI(**_options(options), http_client=http)


def blocking_openai(
    fleet: SyncFleet, *, pool: str, models: Mapping[str, str] | None, options: Mapping[str, Any]
) -> OpenAI:
    """Make a blocking client."""
    original, call = fleet.original
    http = httpx2.Client(transport=BlockingQueueTransport(_api(original, pool, models), call))
    return OpenAI(**_options(options), http_client=http)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"base_url": BASE_URL, "api_key": "none", **given}


def _api(fleet: Fleet, pool: str, models: Mapping[str, str] | None) -> OpenAIApi:
    return OpenAIApi(fleet, models=Models(fleet.workers, pools=models, pool=pool))


class QueueTransport(httpx2.AsyncBaseTransport):
    """Answers requests from the queue."""

    def __init__(self, api: OpenAIApi) -> None:
        self._api = api

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        status, headers, content = await _answer(self._api, request, await request.aread())
        if isinstance(content, bytes):
            return httpx2.Response(status, headers=headers, content=content)
        return httpx2.Response(status, headers=headers, stream=_Events(content))

    async def aclose(self) -> None:
        """Wait until the jobs that nobody waits for are cancelled."""
        await self._api.aclose()


class BlockingQueueTransport(httpx2.BaseTransport):
    """Answers requests from the queue, for blocking code."""

    def __init__(self, api: OpenAIApi, call: BlockingCall) -> None:
        self._api = api
        self._call = call

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        status, headers, content = self._call(partial(_answer, self._api, request, request.read()))
        if isinstance(content, bytes):
            return httpx2.Response(status, headers=headers, content=content)
        return httpx2.Response(status, headers=headers, stream=_BlockingEvents(content, self._call))

    def close(self) -> None:
        """Wait until the jobs that nobody waits for are cancelled."""
        self._call(self._api.aclose)


class _Events(httpx2.AsyncByteStream):
    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        while events := await self._stream.read():
            yield events

    async def aclose(self) -> None:
        await self._stream.aclose()


class _BlockingEvents(httpx2.SyncByteStream):
    def __init__(self, stream: EventStream, call: BlockingCall) -> None:
        self._stream = stream
        self._call = call

    def __iter__(self) -> Generator[bytes]:
        while events := self._call(self._stream.read):
            yield events

    def close(self) -> None:
        self._call(self._stream.aclose)


async def _answer(
    api: OpenAIApi, request: httpx2.Request, content: bytes
) -> tuple[HTTPStatus, Mapping[str, str], bytes | EventStream]:
    """Answer a request. The SDK's ``timeout`` is how long it may take until the answer begins."""
    timeout_s: float | None = request.extensions.get("timeout", {}).get("read")
    try:
        async with asyncio.timeout(timeout_s):
            reply = await _reply(api, request, content)
    except (InferfleetError, RefusedError) as error:
        refusal = refusal_of(error)
        return refusal.status, refusal.headers(), refusal.body()
    except TimeoutError as error:
        raise httpx2.ReadTimeout(f"no answer within {timeout_s} s", request=request) from error
    return HTTPStatus.OK, reply.headers, reply.content


async def _reply(api: OpenAIApi, request: httpx2.Request, content: bytes) -> Reply:
    path = request.url.path
    if request.method == HTTPMethod.GET and path == MODELS_PATH:
        return await api.list_models()
    if request.method == HTTPMethod.GET and path.startswith(f"{MODELS_PATH}/"):
        return await api.get_model(path.removeprefix(f"{MODELS_PATH}/"))
    try:
        endpoint = Endpoint(path)
    except ValueError:
        raise not_found(f"{request.method} {path} is not answered by a queue") from None
    return await api.answer(endpoint, request.headers, content)
