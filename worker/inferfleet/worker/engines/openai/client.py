"""HTTP to the servers: one request, its stream of events, and the errors of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from typing import Any, Final, cast

import aiohttp
import orjson

from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.worker.engines.openai.arguments import OpenaiArguments
from inferfleet.worker.engines.openai.errors import (
    BusyError,
    HostLostError,
    MalformedError,
    SilentError,
    failure,
    failure_inside,
)
from inferfleet.worker.engines.openai.hosts import Host
from inferfleet.worker.ports import EngineDeadError

_DONE: Final = b"[DONE]"

_LONGEST_PAGE: Final = 64 * 1024
"""How much of an error that is not JSON is read. What is quoted of it is shorter."""

_SHORTEST_SECRET: Final = 6
"""Shorter values of headers may be in any error by chance."""

LOOK_S: Final = 10.0
"""How long a server may take to answer a question about itself."""

END_S: Final = 5.0
"""How long a server may take, after the last token of an answer, to say what it has counted and to end the
stream."""

LONGEST_LINE_BYTES: Final = 16 * 1024 * 1024
"""The longest line of a stream. vLLM's first one may have the token ids of a million tokens."""


class Client:
    """One session for all servers. It limits the time to connect and the silence, but not the total time."""

    def __init__(self, arguments: OpenaiArguments) -> None:
        self._arguments = arguments
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=arguments.connect_timeout_s, sock_read=arguments.silence_timeout_s
        )
        # No limit of connections: the hosts' own limits decide.
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        self._key = ""
        self._open: set[aiohttp.ClientResponse] = set()

    async def close(self) -> None:
        """Close all connections; requests that run on them end with ``HostLostError``."""
        for response in self._open:
            # Closing the session would leave their readers waiting.
            response.close()
        await self._session.close()

    async def get(self, host: Host, url: str) -> tuple[int, Any]:
        """Return the status and the JSON of an answer, which is ``None`` if it is not JSON."""
        try:
            async with asyncio.timeout(LOOK_S), self._response(host, "GET", url) as response:
                return response.status, _json(await response.read())
        except TimeoutError as error:
            raise SilentError(f"{host.name} did not answer GET {url} within {LOOK_S:g} s") from error

    async def post(
        self,
        host: Host,
        url: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] = {},
        *,
        counts: bool = True,
    ) -> dict[str, Any]:
        """Return the JSON of an answer. A failure ``counts`` for the circuit breaker of the server.

        Raises:
            GenerationError: The server refuses the request, or has failed.
            BusyError: It has too many requests.
            HostLostError: The connection failed, or the answer is not a JSON object.
            EngineDeadError: The server does not accept the API key.

        """
        async with self._accepted(host, url, body, headers, counts=counts) as response:
            return self._object(await response.read(), body, host)

    async def stream(
        self,
        host: Host,
        url: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] = {},
        *,
        on_done: Callable[[], object] = lambda: None,
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the events of a stream to its end. Closing the generator closes the connection.

        ``on_done`` is called if the server itself says that it is the end.
        """
        async with self._accepted(host, url, body, headers) as response:
            pending = bytearray()
            async for part in response.content.iter_any():
                if not pending and part.startswith(b"{"):
                    self._object(part + await response.read(), body, host)
                    raise MalformedError(f"{host.name} answered in one piece, but was asked for a stream")
                *lines, rest = part.split(b"\n")
                if lines:
                    lines[0], pending = bytes(pending) + lines[0], bytearray()
                pending += rest
                if len(pending) > LONGEST_LINE_BYTES:
                    raise MalformedError(
                        f"{host.name} sent a line of more than {LONGEST_LINE_BYTES // 1024**2} MiB"
                    )
                for line in lines:
                    # Other lines are empty, or comments that keep the connection alive.
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == _DONE:
                        on_done()
                        return
                    yield self._object(data, body, host)

    def _object(self, data: bytes, body: Mapping[str, Any], host: Host) -> dict[str, Any]:
        """Read an answer, or an event of one, and raise the error that it says."""
        answer = _json(data)
        if not isinstance(answer, dict):
            raise MalformedError(f"{host.name} answered something that is not a JSON object")
        found = cast("dict[str, Any]", answer)
        if found.get("error"):
            raise failure_inside(found["error"], body, host=host.name, secrets=self._secrets())
        return found

    @asynccontextmanager
    async def _accepted(
        self,
        host: Host,
        url: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        *,
        counts: bool = True,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        try:
            with host.breaker.guarded() if counts else nullcontext():
                async with self._response(host, "POST", url, body, headers) as response:
                    status = response.status
                    if status < HTTPStatus.BAD_REQUEST:
                        yield response
                        return
                    retry_after = response.headers.get("Retry-After")
                    if status == HTTPStatus.TOO_MANY_REQUESTS or (
                        status == HTTPStatus.SERVICE_UNAVAILABLE and retry_after is not None
                    ):
                        raise BusyError(_retry_after_s(retry_after))
                    if status == HTTPStatus.UNAUTHORIZED:
                        raise EngineDeadError(f"{host.name} does not accept the API key (401)")
                    raw = await response.read()
                    answer = _json(raw) or raw[:_LONGEST_PAGE].decode(errors="replace")
                    raise failure(status, answer, body, host=host.name, secrets=self._secrets())
        except ServiceUnreachableError as error:
            raise HostLostError(str(error)) from error

    @asynccontextmanager
    async def _response(
        self,
        host: Host,
        method: str,
        url: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] = {},
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Open a request; whatever goes wrong with its connection in the block is a ``HostLostError``."""
        data = None if body is None else orjson.dumps(body)
        try:
            async with self._session.request(
                method, url, data=data, headers=self._headers(headers)
            ) as response:
                self._open.add(response)
                try:
                    yield response
                finally:
                    self._open.discard(response)
        except TimeoutError as error:
            raise HostLostError(
                f"{host.name} was silent for {self._arguments.silence_timeout_s:g} s, "
                f"or did not connect within {self._arguments.connect_timeout_s:g} s"
            ) from error
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not self._session.closed:
                raise
            raise HostLostError(f"{host.name}: {str(error) or type(error).__name__}") from error

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        headers = {"Content-Type": "application/json", **more, **self._arguments.headers}
        if self._arguments.api_key_file is not None:
            # Read for each request, so that a rotated key needs no restart.
            try:
                key = self._arguments.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise EngineDeadError(
                    f"cannot read the API key from {self._arguments.api_key_file}: {type(error).__name__}"
                ) from None
            self._key = key
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _secrets(self) -> list[str]:
        """Return what no error may quote, the longest first."""
        values = [self._key]
        for value in self._arguments.headers.values():
            values += (value, value.partition(" ")[2])
        return sorted((each for each in values if len(each) >= _SHORTEST_SECRET), key=len, reverse=True)


async def until_its_end(
    events: AsyncGenerator[dict[str, Any]], whole: Callable[[], bool]
) -> AsyncGenerator[dict[str, Any]]:
    """Yield the events of a stream to its end.

    Once the answer is ``whole``, silence and a lost connection are its end, too: some servers, and proxies
    before them, do not close their streams.
    """
    ends_at: float | None = None
    while True:
        if not whole():
            ends_at = None
        elif ends_at is None:
            ends_at = asyncio.get_running_loop().time() + END_S
        try:
            async with asyncio.timeout_at(ends_at):
                event = await anext(events)
        except StopAsyncIteration:
            return
        except (TimeoutError, HostLostError):
            if ends_at is None:
                raise
            return
        yield event


def _json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _retry_after_s(value: str | None) -> float | None:
    """Read the seconds of a ``Retry-After``; a date, which depends on two clocks, counts as none."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if seconds >= 0 else None
