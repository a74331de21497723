"""The transport of OpenAI's SDK that takes requests to the queue. Needs the extra ``openai``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from functools import partial
from http import HTTPMethod, HTTPStatus
from typing import Any, Final, NamedTuple, TypedDict, TypeVar

import httpx2
from openai import AsyncOpenAI, OpenAI

from inferfleet.producer.blocking import BlockingCall
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.openai.api import OpenAIApi, Reply
from inferfleet.producer.openai.conversations import ConversationsApi
from inferfleet.producer.openai.models import Models
from inferfleet.producer.openai.refusals import RefusedError, bad_request, not_found, refusal_of
from inferfleet.producer.openai.responses import ResponsesApi
from inferfleet.producer.openai.streams import EventStream
from inferfleet.producer.sync import SyncFleet
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.errors import InferfleetError
from inferfleet.wire.redis.rollouts import read_rules

BASE_URL: Final = "http://inferfleet/v1"
"""Where the SDK believes the server to be. Nobody connects to it."""

N = TypeVar("N", int, None)


def async_openai(
    fleet: Fleet, *, pool: str, models: Mapping[str, str] | None, options: Mapping[str, Any]
) -> AsyncOpenAI:
    """Make an asynchronous client."""
    http = httpx2.AsyncClient(transport=QueueTransport(_apis(fleet, pool, models)))
    return AsyncOpenAI(**_options(options), http_client=http)


def blocking_openai(
    fleet: SyncFleet, *, pool: str, models: Mapping[str, str] | None, options: Mapping[str, Any]
) -> OpenAI:
    """Make a blocking client."""
    original, call = fleet.original
    http = httpx2.Client(transport=BlockingQueueTransport(_apis(original, pool, models), call))
    return OpenAI(**_options(options), http_client=http)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"base_url": BASE_URL, "api_key": "none", **given}


class Apis(NamedTuple):
    """What answers the requests of a client."""

    jobs: OpenAIApi
    responses: ResponsesApi
    conversations: ConversationsApi


def _apis(fleet: Fleet, pool: str, models: Mapping[str, str] | None) -> Apis:
    rules = partial(read_rules, fleet.pipeline)
    jobs = OpenAIApi(fleet, models=Models(fleet.workers, rules=rules, pools=models, pool=pool))
    return Apis(jobs, ResponsesApi(fleet, jobs), ConversationsApi(fleet))


class QueueTransport(httpx2.AsyncBaseTransport):
    """Answers requests from the queue."""

    def __init__(self, apis: Apis) -> None:
        self._apis = apis

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        status, headers, content = await _answer(self._apis, request, await request.aread())
        if isinstance(content, bytes):
            return httpx2.Response(status, headers=headers, content=content)
        return httpx2.Response(status, headers=headers, stream=_Events(content))

    async def aclose(self) -> None:
        """Wait until the jobs that nobody waits for are cancelled."""
        await self._apis.jobs.aclose()


class BlockingQueueTransport(httpx2.BaseTransport):
    """Answers requests from the queue, for blocking code."""

    def __init__(self, apis: Apis, call: BlockingCall) -> None:
        self._apis = apis
        self._call = call

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        status, headers, content = self._call(partial(_answer, self._apis, request, request.read()))
        if isinstance(content, bytes):
            return httpx2.Response(status, headers=headers, content=content)
        return httpx2.Response(status, headers=headers, stream=_BlockingEvents(content, self._call))

    def close(self) -> None:
        """Wait until the jobs that nobody waits for are cancelled."""
        self._call(self._apis.jobs.aclose)


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
    apis: Apis, request: httpx2.Request, content: bytes
) -> tuple[HTTPStatus, Mapping[str, str], bytes | EventStream]:
    """Answer a request. The SDK's ``timeout`` is how long it may take until the answer begins."""
    timeout_s: float | None = request.extensions.get("timeout", {}).get("read")
    try:
        async with asyncio.timeout(timeout_s):
            reply = await _reply(apis, request, content)
    except (InferfleetError, RefusedError) as error:
        refusal = refusal_of(error)
        return refusal.status, refusal.headers(), refusal.body()
    except TimeoutError as error:
        raise httpx2.ReadTimeout(f"no answer within {timeout_s} s", request=request) from error
    return HTTPStatus.OK, reply.headers, reply.content


async def _reply(apis: Apis, request: httpx2.Request, content: bytes) -> Reply:
    method, path = request.method, request.url.path
    match method, path.split("/", 3)[2:]:
        case HTTPMethod.GET, ["models"]:
            return await apis.jobs.list_models()
        case HTTPMethod.GET, ["models", name]:
            return await apis.jobs.get_model(name)
        case _, ["responses", *rest]:
            reply = await _of_responses(apis.responses, request, content, "".join(rest))
        case _, ["conversations", *rest]:
            reply = await _of_conversations(apis.conversations, request, content, "".join(rest))
        case _:
            reply = None
    if reply is not None:
        return reply
    try:
        endpoint = Endpoint(path)
    except ValueError:
        raise not_found(f"{method} {path} is not answered by a queue") from None
    return await apis.jobs.answer(endpoint, request.headers, content)


async def _of_responses(
    api: ResponsesApi, request: httpx2.Request, content: bytes, path: str
) -> Reply | None:
    query = request.url.params
    match request.method, path.split("/") if path else []:
        case HTTPMethod.POST, []:
            return await api.create(request.headers, content)
        case HTTPMethod.GET, [name] if query.get("stream") == "true":
            after = _number(query, "starting_after", None)
            return await api.events(name, starting_after=after)
        case HTTPMethod.GET, [name]:
            return await api.get(name)
        case HTTPMethod.DELETE, [name]:
            return await api.delete(name)
        case HTTPMethod.POST, [name, "cancel"]:
            return await api.cancel(name)
        case HTTPMethod.GET, [name, "input_items"]:
            return await api.input_items(name, **_page(query))
        case _:
            return None


async def _of_conversations(
    api: ConversationsApi, request: httpx2.Request, content: bytes, path: str
) -> Reply | None:
    match request.method, path.split("/") if path else []:
        case HTTPMethod.POST, []:
            return await api.create(content)
        case HTTPMethod.GET, [name]:
            return await api.get(name)
        case HTTPMethod.POST, [name]:
            return await api.update(name, content)
        case HTTPMethod.DELETE, [name]:
            return await api.delete(name)
        case HTTPMethod.GET, [name, "items"]:
            return await api.items(name, **_page(request.url.params))
        case _:
            return None


class _Page(TypedDict):
    after: str | None
    limit: int
    ascending: bool


def _page(query: httpx2.QueryParams) -> _Page:
    limit = _number(query, "limit", 20)
    return {"after": query.get("after"), "limit": limit, "ascending": query.get("order") == "asc"}


def _number(query: httpx2.QueryParams, name: str, default: N) -> int | N:
    if name not in query:
        return default
    try:
        return int(query[name])
    except ValueError:
        raise bad_request(f"{name}: must be a whole number", param=name) from None
