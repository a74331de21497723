"""Three RabbitMQ nodes and three Redis servers with Sentinels, as processes of this machine.

The Redis servers and Sentinels reach each server through a link of its own, so that a server can be cut off
from the others while clients still reach it. Clients have links of their own, as ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from yarl import URL

from inferfleet.local.chaos.limits import Clock, small_disk
from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services import Services, ServicesChoice
from inferfleet.local.services.choice import Fsync
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.native import temporary_folder, unavailable_reason
from inferfleet.local.services.rabbitmq_cluster import RabbitMQCluster
from inferfleet.local.services.rabbitmq_process import port_mapper_binary, server_binary
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.local.services.redis_sentinels import RedisSentinels
from inferfleet.schemas.errors import ConfigurationError

SIZE: Final = 3

DOWN_AFTER_MS: Final = 2_000
"""How long a Redis master may be silent before the Sentinels replace it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The services of a soak on replicas. ``inside`` has the link to each Redis server from the others."""

    broker: RabbitMQCluster
    store: RedisSentinels
    inside: Mapping[RedisProcess, Proxy]
    services: Services
    clocks: Mapping[RedisProcess, Clock]
    """The clocks of the Redis servers, if they can be changed."""
    named_servers: Mapping[int, int]
    """The ports of the Redis servers that the Sentinels name to clients, with the servers' own."""


@asynccontextmanager
async def running_cluster(*, disks: bool = False, clocks: bool = False) -> AsyncGenerator[Cluster]:
    """Run a cluster until the block ends. It takes about a quarter of a minute to start on two cores.

    With ``disks`` each server has a small disk of its own, with ``clocks`` each Redis server a clock; see
    ``limits`` for what that needs.

    Raises:
        ConfigurationError: A binary is missing.
        ServiceUnreachableError: A server did not start; the message has the end of its log.

    """
    rabbitmq_server, port_mapper, redis_server = server_binary(), port_mapper_binary(), redis_binary()
    if rabbitmq_server is None or port_mapper is None or redis_server is None:
        raise ConfigurationError(f"a cluster cannot run here: {unavailable_reason()}")
    async with AsyncExitStack() as stack:
        reaper = stack.enter_context(Reaper())
        folder = stack.enter_context(temporary_folder(reaper))
        ports = [free_port() for _ in range(SIZE)]
        broker_folder, store_folder = folder / "rabbitmq", folder / "redis"
        if disks:
            for number in range(SIZE):
                for server in (broker_folder / f"node-{number}", store_folder / f"server-{number}"):
                    stack.enter_context(small_disk(server / "data", reaper=reaper))
        times = [Clock(folder / f"clock-{number}") for number in range(SIZE)] if clocks else []
        inside = [await stack.enter_async_context(Proxy(f"redis://127.0.0.1:{port}")) for port in ports]
        store = RedisSentinels(
            server=redis_server,
            folder=store_folder,
            reaper=reaper,
            ports=ports,
            announced_ports=[URL(link.url).port or 0 for link in inside],
            size=SIZE,
            environments=[clock.environment for clock in times] or None,
            # Each server must keep every write that it has answered; otherwise the history cannot be checked.
            fsync=Fsync.ALWAYS,
            down_after_ms=DOWN_AFTER_MS,
        )
        broker = RabbitMQCluster(
            server=rabbitmq_server,
            port_mapper=port_mapper,
            folder=broker_folder,
            reaper=reaper,
            size=SIZE,
        )
        stack.push_async_callback(asyncio.to_thread, broker.close)
        stack.push_async_callback(asyncio.to_thread, store.close)
        await asyncio.gather(asyncio.to_thread(broker.start), asyncio.to_thread(store.start))
        # Whoever observes is never cut off.
        own = await stack.enter_async_context(Proxy(store.url, named=store.named_servers))
        yield Cluster(
            broker=broker,
            store=store,
            inside=dict(zip(store.servers, inside, strict=True)),
            clocks=dict(zip(store.servers, times, strict=True)) if clocks else {},
            named_servers={own.named[name]: port for name, port in store.named_servers.items()},
            services=Services(
                kind=ServicesChoice.NATIVE,
                amqp_url=broker.url,
                redis_url=own.url,
                description=f"{SIZE} nodes of RabbitMQ {broker.nodes[0].version}, and {SIZE} servers of "
                f"Redis {store.version} with Sentinels, in a temporary folder",
            ),
        )
