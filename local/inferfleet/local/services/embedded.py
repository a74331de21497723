"""The embedded broker and fakeredis as services, for machines that have nothing else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from inferfleet.local.embedded import EmbeddedBroker, EmbeddedRedis
from inferfleet.local.services.choice import Services, ServicesChoice, ServicesOptions
from inferfleet.schemas.errors import ConfigurationError

ADVICE = "for the real ones: apt-get install rabbitmq-server redis-server, or start Docker"


def unavailable_reason() -> str | None:
    """Return ``None``: embedded services can always run."""
    return None


@contextmanager
def embedded_services(options: ServicesOptions) -> Generator[Services]:
    """Run both in threads of this process until the context ends, without writing to disk.

    Raises:
        ConfigurationError: The caller wants the management API.

    """
    if options.management:
        raise ConfigurationError(
            "embedded services have no RabbitMQ management API; use Docker, or install rabbitmq-server"
        )
    with EmbeddedBroker() as broker, EmbeddedRedis() as store:
        yield Services(
            kind=ServicesChoice.EMBEDDED,
            amqp_url=broker.url,
            redis_url=store.url,
            description="embedded broker and store in this process, in memory only",
            advice=ADVICE,
        )
