"""What the local commands share: the option for services, and the end by SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.services.launcher import RunningServices
from inferfleet.schemas.settings import ServiceSettings, read_settings

ServicesOption = Annotated[
    ServicesChoice,
    typer.Option(
        help="Where RabbitMQ and Redis come from. auto: INFERFLEET_AMQP_URL and INFERFLEET_REDIS_URL if "
        "set, else the first of docker, native, embedded that works here."
    ),
]


def chosen_services(choice: ServicesChoice) -> RunningServices:
    """Prepare the services; use the URLs in the environment, if they are set."""
    settings = read_settings(ServiceSettings)
    given = settings.model_fields_set
    return running_services(
        choice,
        amqp_url=settings.amqp_url if "amqp_url" in given else None,
        redis_url=settings.redis_url if "redis_url" in given else None,
    )


@contextmanager
def sigterm_as_interrupt() -> Generator[None]:
    """Make SIGTERM end the block as Ctrl-C does, with ``KeyboardInterrupt``, so that the block cleans up."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C would do now: an event loop then cancels its main task, not whichever task runs."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    # A command that a shell has started in the background ignores Ctrl-C.
    (on_interrupt if callable(on_interrupt) else signal.default_int_handler)(number, frame)
