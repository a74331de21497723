"""A remote server that speaks OpenAI's API, behind the worker's engine port.

This module starts and stops the engine, chooses a server for each request, and decides what the failure of a
server means: for one request, or for all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, Self

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.schemas.endpoints import not_answered
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.tasks import cancel_and_wait
from inferfleet.worker.engines.openai.answer import answer
from inferfleet.worker.engines.openai.arguments import OpenaiArguments, base_urls
from inferfleet.worker.engines.openai.client import Client
from inferfleet.worker.engines.openai.continuation import resumable
from inferfleet.worker.engines.openai.errors import (
    AnotherModelError,
    BusyError,
    HostLostError,
    NoModelError,
    NotServingError,
    NotThereError,
    SilentError,
    refusal,
)
from inferfleet.worker.engines.openai.hosts import BUSY_PAUSE_S, SHORTEST_PAUSE_S, Host, Hosts
from inferfleet.worker.engines.openai.served import Served, identity_of, listed_model, look
from inferfleet.worker.ports import (
    Completion,
    EngineDeadError,
    EngineStats,
    Generation,
    GenerationError,
    ModelIdentity,
    NotContinuableError,
)

logger = logging.getLogger(__name__)

Event = TokenChunk | Completion

VERIFIED_FOR_S: Final = 2.0
"""How long a server is believed to have the model that it had: vLLM takes longer to load another one."""

FIRST_BYTE_S: Final = 10.0
"""After how long without a part of the answer a server is asked whether it still answers at all."""

REVIVE_S: Final = 1.0
"""How often a server that was silent is asked whether it answers again."""


class OpenaiEngine:
    """An ``Engine`` that asks one or several servers over HTTP, all with the same model.

    Answers can be resumed if the servers are vLLM, whose streams have token ids. When no server answers any
    more, or all have another model, the engine is dead: the worker gives its jobs back, exits, and waits for
    a server when it starts again.
    """

    def __init__(
        self, *, urls: Sequence[str], model: str, max_running: int, engine_args: Mapping[str, Any]
    ) -> None:
        self._arguments = OpenaiArguments.from_engine_args(engine_args)
        self._name = model
        self._hosts = Hosts(urls, max_running=max_running)
        self._client: Client | None = None
        self._served: Served | None = None
        self._reviving: set[asyncio.Task[None]] = set()

    @classmethod
    def from_settings(cls, settings: WorkerSettings) -> Self:
        """Make the engine that a worker runs.

        Raises:
            ConfigurationError: No address is given, or one is not an address, or an argument is unknown.

        """
        return cls(
            urls=base_urls(settings.base_url),
            model=settings.model,
            max_running=settings.max_running,
            engine_args=settings.engine_args,
        )

    @property
    def model(self) -> str:
        """The model's name on the servers; before the start, without a name, their address."""
        return self._served.identity.name if self._served else self._name or self._hosts.all[0].name

    @property
    def identity(self) -> ModelIdentity | None:
        """What the servers say of the model; known once ``start`` has returned."""
        return self._served.identity if self._served else None

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The endpoints that the first server answers; known once ``start`` has returned."""
        return self._served.endpoints if self._served else frozenset()

    async def start(self) -> None:
        """Wait until a server answers and has the model, and ask it for one token.

        Raises:
            ConfigurationError: A server refuses the API key, or has several models and none is named.
            EngineDeadError: No server had the model within ``start_timeout_s``, or ``stop`` was called.

        """
        self._client = client = Client(self._arguments)
        self._served = served = await self._until_served(client)
        logger.info(
            "the server answers; interrupted answers %s resumed",
            "are" if served.token_ids else "are not",
            extra={
                "model": self.model,
                "endpoints": sorted(served.endpoints),
                "vllm": served.is_vllm,
                "token_ids": served.token_ids,
                "priorities": served.priorities,
            },
        )

    def stats(self) -> EngineStats:
        """Count requests, those included that wait for a server with room."""
        return EngineStats(running=self._hosts.running, waiting=self._hosts.waiting)

    def resumable(self, generation: Generation) -> bool:
        """Return whether the servers return token ids, and the answer is one plain text."""
        return self._served is not None and resumable(generation, self._served)

    async def generate(self, generation: Generation) -> AsyncGenerator[Event]:
        """Answer one request; ``Engine.generate`` says what is guaranteed."""
        served = self._require_answered(generation)
        client = self._require_client()
        busy_since: float | None = None
        avoid: set[Host] = set()
        while True:
            async with self._hosts.one(avoid=avoid) as host:
                begun, asked = False, time.monotonic()
                try:
                    await self._verify(host)
                    may_ignore = self._arguments.may_ignore
                    asking = answer(client, host, generation, served, may_ignore=may_ignore)
                    async with aclosing(asking) as events:
                        async for event in self._attended(host, events):
                            if not begun:
                                self._judge_first_event(host, asked)
                                begun = True
                            yield event
                    host.succeeded()
                    if host.another_model:
                        self._has_another_model(host)
                    return
                except BusyError as error:
                    busy_since = busy_since or time.monotonic()
                    if begun:
                        raise GenerationError(
                            FailureCode.ENGINE_ERROR, f"{host.name} broke the answer off: {error}"
                        ) from error
                    waited_s = time.monotonic() - busy_since
                    host.overloaded(asked_at=asked, pause_s=self._pause_s(error))
                    wait_s = min(error.retry_after_s or 0.0, self._hosts.pause_s(but=host))
                    if waited_s + wait_s > self._arguments.busy_timeout_s:
                        raise GenerationError(
                            FailureCode.ENGINE_ERROR,
                            f"{host.name} refuses requests (429) for longer than "
                            f"{self._arguments.busy_timeout_s:g} s (busy_timeout_s)",
                        ) from error
                except HostLostError as error:
                    if isinstance(error, AnotherModelError):
                        self._has_another_model(host)
                    if isinstance(error, SilentError):
                        self._is_silent(host)
                    await self._lost(host, error)
                    host.failed()
                    avoid.add(host)
                    if begun or not self._hosts.usable(but=avoid):
                        raise GenerationError(FailureCode.ENGINE_ERROR, str(error)) from error
                except GenerationError as error:
                    if not error.code.retryable:
                        raise
                    if isinstance(error, NotThereError):
                        # It may have another model now.
                        host.verified_at = float("-inf")
                    host.failed()
                    avoid.add(host)
                    if begun or not self._hosts.usable(but=avoid):
                        raise
                except (EngineDeadError, ConfigurationError) as error:
                    # A ConfigurationError says that a server no longer accepts the key.
                    self._hosts.die(str(error))
                    raise EngineDeadError(str(error)) from error

    async def stop(self) -> None:
        """Abort all requests. Safe to call twice, and before ``start``."""
        self._hosts.die("the engine was stopped")
        verifying = [host.verifying for host in self._hosts.all if host.verifying is not None]
        await cancel_and_wait(*self._reviving, *verifying)
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _require_answered(self, generation: Generation) -> Served:
        self._hosts.require_alive()
        if self._served is None:
            raise EngineDeadError("the engine is not running")
        if generation.endpoint not in self.endpoints:
            raise refusal(not_answered(generation.endpoint, model=self.model, answers=self.endpoints))
        if generation.body.get("model") not in (None, "", self.model):
            raise refusal(f"model: this worker serves {self.model!r}, not {generation.body['model']!r}")
        if generation.resume_token_ids and not self.resumable(generation):
            raise NotContinuableError("this server cannot resume this request from its tokens alone")
        return self._served

    def _judge_first_event(self, host: Host, asked: float) -> None:
        limit = self._arguments.max_first_token_s
        if limit is not None and time.monotonic() - asked > limit:
            host.overloaded(asked_at=asked)

    def _pause_s(self, busy: BusyError) -> float:
        """Return how long a busy server gets no request: as long as it says, within what is sensible."""
        if busy.retry_after_s is None:
            return BUSY_PAUSE_S
        return max(SHORTEST_PAUSE_S, min(busy.retry_after_s, self._arguments.busy_timeout_s))

    async def _until_served(self, client: Client) -> Served:
        logged = False
        timeout_s = self._arguments.start_timeout_s
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type((HostLostError, BusyError)),
                wait=wait_random_exponential(multiplier=0.1, max=2.0),
                stop=stop_after_delay(timeout_s),
                reraise=True,
            ):
                with attempt:
                    self._hosts.require_alive()
                    try:
                        return await self._first_served(client)
                    except (HostLostError, BusyError) as error:
                        if not logged:
                            logger.info("waiting for a server: %s", error)
                        logged = True
                        raise
        except (HostLostError, BusyError) as error:
            raise EngineDeadError(f"no server had the model within {timeout_s:g} s: {error}") from error
        raise AssertionError("tenacity returns or raises")

    async def _first_served(self, client: Client) -> Served:
        """Look at the servers in turn, and return what the first one that answers has."""
        lost: HostLostError | BusyError | None = None
        for host in self._hosts.all:
            try:
                served = await look(client, host, self._name)
            except (HostLostError, BusyError) as error:
                lost = error
            else:
                host.verified_at = time.monotonic()
                return served
        assert lost is not None  # noqa: S101 - there is a host
        raise lost

    async def _verify(self, host: Host) -> None:
        """Make sure that the server has the model of this engine, unless it had it just now.

        All requests that need to know it at the same time share one look.

        Raises:
            HostLostError: The server does not answer, or has another model.

        """
        if time.monotonic() - host.verified_at < VERIFIED_FOR_S:
            return
        verifying = host.verifying
        if verifying is None:
            verifying = host.verifying = asyncio.create_task(self._look_again(host))
            verifying.add_done_callback(host.verified)
        # It goes on for the others if this request is cancelled.
        await asyncio.wait([verifying])
        if verifying.cancelled():
            raise EngineDeadError("the engine was stopped")
        verifying.result()

    async def _look_again(self, host: Host) -> None:
        served, client = self._served, self._require_client()
        assert served is not None  # noqa: S101 - required before
        if host.verified_at == float("-inf"):
            identity = await identity_of(client, host, self.model, served.first)
            same = identity == served.identity
        else:
            try:
                entry = await listed_model(client, host, self.model)
            except NoModelError:
                # As a gateway whose workers are late with their heartbeats. Its answer to the request counts.
                return
            same = str(entry.get("root") or "") == served.identity.revision
        if not same:
            raise AnotherModelError(host.name)
        host.verified_at = time.monotonic()

    def _has_another_model(self, host: Host) -> None:
        host.another_model = True
        logger.error("%s has another model now; it gets no more requests", host.name)
        if all(each.another_model or each.silent for each in self._hosts.all):
            self._hosts.die(f"no server is left that has the model: {AnotherModelError(host.name)}")

    async def _lost(self, host: Host, error: HostLostError) -> None:
        """Find out, after a connection has failed, whether any server is left.

        Raises:
            EngineDeadError: No server answers, all have another model, or one refuses our key.

        """
        host.verified_at = float("-inf")
        self._hosts.require_alive()
        left = [each for each in self._hosts.all if not each.another_model]
        asked = [asyncio.create_task(self._problem(each)) for each in left]
        try:
            # All at once: some may hang.
            for problem in asyncio.as_completed(asked):
                if await problem is None:
                    return
        finally:
            await cancel_and_wait(*asked)
        self._hosts.die(f"no server is left that has the model: {error}")
        self._hosts.require_alive()

    async def _problem(self, host: Host) -> HostLostError | None:
        """Return why a server cannot be used; ``None`` if it answers and has the model.

        Raises:
            EngineDeadError: It refuses our key.

        """
        try:
            await listed_model(self._require_client(), host, self.model)
        except (BusyError, NoModelError):
            return None
        except HostLostError as error:
            if isinstance(error, SilentError):
                self._is_silent(host)
            return error
        except ConfigurationError as refused:
            self._hosts.die(str(refused))
            raise EngineDeadError(str(refused)) from refused
        return None

    async def _attended(self, host: Host, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
        """Yield the events of an answer, and make sure that the server answers at all until the first one.

        A server that has much to do is late with its answers, but one that hangs answers no question either.
        """
        try:
            async with asyncio.timeout(None) as waiting:
                watch = asyncio.create_task(self._until_silent(host, waiting))
                try:
                    first = await anext(events)
                finally:
                    await cancel_and_wait(watch)
        except TimeoutError as error:
            raise HostLostError(f"{host.name} does not answer any more") from error
        yield first
        async for event in events:
            yield event

    async def _until_silent(self, host: Host, waiting: asyncio.Timeout) -> None:
        with suppress(EngineDeadError):
            while True:
                await asyncio.sleep(FIRST_BYTE_S)
                problem = await self._problem(host)
                # An error such as 503 is an answer, too.
                if problem is not None and not isinstance(problem, NotServingError):
                    break
        waiting.reschedule(0.0)

    def _is_silent(self, host: Host) -> None:
        """Send no request to a server until it answers again."""
        if host.silent:
            return
        host.silent = True
        logger.warning("%s does not answer; it gets no requests until it does", host.name)
        reviving = asyncio.create_task(self._revive(host))
        self._reviving.add(reviving)
        reviving.add_done_callback(self._reviving.discard)

    async def _revive(self, host: Host) -> None:
        client = self._require_client()
        while host.silent:
            await asyncio.sleep(REVIVE_S)
            with suppress(HostLostError, ConfigurationError):
                with suppress(BusyError):
                    await listed_model(client, host, self.model)
                host.silent = False
        logger.info("%s answers again", host.name)
        self._hosts.wake()

    def _require_client(self) -> Client:
        if self._client is None:
            raise EngineDeadError("the engine is not running")
        return self._client
