"""Chooses the services, and runs them while a ``with`` block lasts.

``auto`` prefers the given URLs, then Docker, then the server binaries of this machine, then the embedded
pair, which always works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import NamedTuple

from inferfleet.local.services.choice import Fsync, Services, ServicesChoice, ServicesOptions
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError

logger = logging.getLogger(__name__)


def running_services(
    choice: ServicesChoice = ServicesChoice.AUTO,
    *,
    amqp_url: str | None = None,
    redis_url: str | None = None,
    management: bool = False,
    fsync: Fsync = Fsync.EVERYSEC,
) -> RunningServices:
    """Run services in a ``with`` or ``async with`` block, which yields ``Services``.

    ``amqp_url`` and ``redis_url`` are the user's URLs, if any; kinds other than ``auto`` and ``urls`` ignore
    them. After the end of the block, and even if this process is killed, no process, container or folder
    stays behind.

    Raises:
        ConfigurationError: The chosen kind cannot run here; the message says what is missing.
        ServiceUnreachableError: A service should run here, but did not start.

    """
    return RunningServices(
        choice,
        amqp_url=amqp_url,
        redis_url=redis_url,
        options=ServicesOptions(management=management, fsync=fsync),
    )


class RunningServices:
    """The context manager that ``running_services`` returns. Enter it only once."""

    def __init__(
        self,
        choice: ServicesChoice,
        *,
        amqp_url: str | None,
        redis_url: str | None,
        options: ServicesOptions,
    ) -> None:
        self._choice = choice
        self._amqp_url = amqp_url
        self._redis_url = redis_url
        self._options = options
        self._stack = ExitStack()

    def __enter__(self) -> Services:
        with ExitStack() as stack:
            services = self._open(stack)
            self._stack = stack.pop_all()
        return services

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def __aenter__(self) -> Services:
        starting = asyncio.ensure_future(asyncio.to_thread(self.__enter__))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread cannot be interrupted. Let it finish, so that its services can be closed.
            await asyncio.wait([starting])
            if starting.exception() is None:
                await asyncio.to_thread(self._stack.close)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._stack.close)

    def _open(self, stack: ExitStack) -> Services:
        match self._choice:
            case ServicesChoice.AUTO:
                if self._amqp_url is not None or self._redis_url is not None:
                    return self._given()
                return self._first_that_works(stack)
            case ServicesChoice.URLS:
                return self._given()
            case ServicesChoice.DOCKER | ServicesChoice.NATIVE | ServicesChoice.EMBEDDED as kind:
                source = source_of(kind)
                if (reason := source.unavailable_reason()) is not None:
                    raise ConfigurationError(f"{kind} services cannot run here: {reason}")
                return stack.enter_context(source.run(self._options))

    def _given(self) -> Services:
        from inferfleet.wire.address import redacted

        if self._amqp_url is None or self._redis_url is None:
            raise ConfigurationError(
                "to use running services give both URLs, INFERFLEET_AMQP_URL and INFERFLEET_REDIS_URL; "
                f"missing: {'INFERFLEET_AMQP_URL' if self._amqp_url is None else 'INFERFLEET_REDIS_URL'}"
            )
        return Services(
            kind=ServicesChoice.URLS,
            amqp_url=self._amqp_url,
            redis_url=self._redis_url,
            description=f"given, {redacted(self._amqp_url)} and {redacted(self._redis_url)}",
        )

    def _first_that_works(self, stack: ExitStack) -> Services:
        reasons: list[str] = []
        for kind in (ServicesChoice.DOCKER, ServicesChoice.NATIVE, ServicesChoice.EMBEDDED):
            source = source_of(kind)
            reason = source.unavailable_reason()
            if reason is None:
                try:
                    return stack.enter_context(source.run(self._options))
                except ServiceUnreachableError as error:
                    # The user expects this kind here, so report that it failed.
                    logger.warning("%s services failed to start; trying the next kind: %s", kind, error)
                    reason = "did not start"
            reasons.append(f"{kind}: {reason}")
        raise ConfigurationError("no services can run here; " + "; ".join(reasons))


class Source(NamedTuple):
    """One kind of services: why it cannot run here, and how to run it."""

    unavailable_reason: Callable[[], str | None]
    run: Callable[[ServicesOptions], AbstractContextManager[Services]]


def source_of(kind: ServicesChoice) -> Source:
    """Import only the module that runs this kind."""
    try:
        match kind:
            case ServicesChoice.DOCKER:
                from inferfleet.local.services import containers

                return Source(containers.unavailable_reason, containers.container_services)
            case ServicesChoice.NATIVE:
                from inferfleet.local.services import native

                return Source(native.unavailable_reason, native.native_services)
            case ServicesChoice.EMBEDDED:
                from inferfleet.local.services import embedded

                return Source(embedded.unavailable_reason, embedded.embedded_services)
            case ServicesChoice.AUTO | ServicesChoice.URLS:
                raise ValueError(f"{kind} is not something to run")
    except ModuleNotFoundError as error:
        return _not_installed(error.name)


def _not_installed(package: str | None) -> Source:
    reason = f"the Python package {package} is not installed (pip install 'inferfleet[local]')"

    def run(_: ServicesOptions) -> AbstractContextManager[Services]:
        raise ConfigurationError(reason)

    return Source(lambda: reason, run)
