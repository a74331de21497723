"""The kinds of services, and what a caller learns about running ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferfleet.local.services.rabbitmq_process import RabbitMQProcess
    from inferfleet.local.services.redis_process import RedisProcess


class ServicesChoice(StrEnum):
    """Where RabbitMQ and Redis come from. ``auto`` takes the first of the other kinds that works here."""

    AUTO = "auto"
    URLS = "urls"
    DOCKER = "docker"
    NATIVE = "native"
    EMBEDDED = "embedded"


class Fsync(StrEnum):
    """When Redis forces its append-only file to disk.

    With ``ALWAYS`` every write that Redis has answered survives. With ``EVERYSEC`` a busy disk can delay a
    write by up to 2 s, and killing the process loses it.
    """

    EVERYSEC = "everysec"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesOptions:
    """Options of the services. ``management`` enables RabbitMQ's HTTP API."""

    management: bool = False
    fsync: Fsync = Fsync.EVERYSEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Running services.

    ``kind`` is never ``auto``. ``description`` says in a few words what runs, for people. ``advice`` says
    how to get something better, if there is something. ``management_url`` is the base of RabbitMQ's HTTP
    API, credentials included, where it is served. ``broker`` and ``store`` are there for native services
    only: they can be killed and started again.
    """

    kind: ServicesChoice
    amqp_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    description: str
    advice: str | None = None
    management_url: str | None = field(default=None, repr=False)
    broker: RabbitMQProcess | None = None
    store: RedisProcess | None = None

    @property
    def announcement(self) -> str:
        """The line to print at the start, and a second line if there is advice."""
        lines = [f"services: {self.description}"]
        if self.advice is not None:
            lines.append(f"          {self.advice}")
        return "\n".join(lines)
