"""RabbitMQ and Redis from the binaries on this machine, in a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from inferfleet.local.services.choice import Services, ServicesChoice, ServicesOptions
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess, port_mapper_binary, server_binary
from inferfleet.local.services.reaper import Reaper, remove_folder
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.schemas.errors import ConfigurationError


def unavailable_reason() -> str | None:
    """Say what is missing for native services; ``None`` if nothing is."""
    binaries = {
        "rabbitmq-server": server_binary(),
        "epmd (from Erlang)": port_mapper_binary(),
        "redis-server": redis_binary(),
    }
    absent = [name for name, path in binaries.items() if path is None]
    return (
        f"not installed: {', '.join(absent)} (apt-get install rabbitmq-server redis-server)"
        if absent
        else None
    )


@contextmanager
def native_services(options: ServicesOptions) -> Generator[Services]:
    """Run both until the context ends. They start concurrently; RabbitMQ takes about 4 s.

    Raises:
        ConfigurationError: A binary is missing.
        ServiceUnreachableError: A server did not start; the message has the end of its log.

    """
    rabbitmq_server, port_mapper, redis_server = server_binary(), port_mapper_binary(), redis_binary()
    if rabbitmq_server is None or port_mapper is None or redis_server is None:
        raise ConfigurationError(f"native services cannot run: {unavailable_reason()}")
    with ExitStack() as stack:
        reaper = stack.enter_context(Reaper())
        folder = stack.enter_context(temporary_folder(reaper))
        broker = RabbitMQProcess(
            server=rabbitmq_server,
            port_mapper=port_mapper,
            folder=folder / "rabbitmq",
            reaper=reaper,
            management=options.management,
        )
        store = RedisProcess(server=redis_server, folder=folder / "redis", reaper=reaper, fsync=options.fsync)
        stack.callback(broker.close)
        stack.callback(store.close)
        broker.launch()
        store.launch()
        store.wait_until_ready()
        broker.wait_until_ready()
        yield Services(
            kind=ServicesChoice.NATIVE,
            amqp_url=broker.url,
            redis_url=store.url,
            description=f"native RabbitMQ {broker.version} and Redis {store.version} in a temporary folder",
            management_url=broker.management_url,
            broker=broker,
            store=store,
        )


@contextmanager
def temporary_folder(reaper: Reaper) -> Generator[Path]:
    """Make a folder that is deleted at the end of the block, or by the reaper."""
    folder = tempfile.mkdtemp(prefix="inferfleet-")
    reaper.add("folder", folder)
    try:
        yield Path(folder)
    finally:
        remove_folder(Path(folder))
        reaper.strike("folder", folder)
