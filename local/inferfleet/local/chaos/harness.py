"""Services that can be killed, workers behind links, and observations from outside.

Both the window tests and the soak use this. Nothing here injects a fault by itself.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import uuid4

import redis.asyncio as aioredis
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services import Services
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess
from inferfleet.local.services.redis_process import RedisProcess
from inferfleet.local.worker_processes import WorkerProcess, WorkerProcesses, wait_until_ready
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.job import JobState
from inferfleet.schemas.journal import JournalEntry
from inferfleet.schemas.names import PRIORITY_LEVELS, job_key, job_queue, journal_key, open_key
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.redis.connection import redis_client
from inferfleet.wire.redis.journal_lines import parse_line

AMQP_HEARTBEAT_S = 2
"""The heartbeat interval. After two missed heartbeats a connection counts as broken."""

LEASE_S = 2.0
PATIENCE_S = 60.0
POLL_INTERVAL_S = 0.02

DECODE_STEP_S = 0.02
"""The time in which the workers' engines generate one token of each running job."""

Server = TypeVar("Server")

ENGINE_ARGS: dict[str, Any] = {"decode_step_base_s": DECODE_STEP_S, "decode_step_per_sequence_s": 0.0}


@dataclass(frozen=True, slots=True)
class Link:
    """The two links of one client: to RabbitMQ and to Redis."""

    broker: Proxy
    store: Proxy

    def heal(self) -> None:
        """Let everything pass again."""
        self.broker.heal()
        self.store.heal()

    def reset(self) -> None:
        """Break all connections and drop what was held."""
        self.broker.reset()
        self.store.reset()


@dataclass(frozen=True, slots=True)
class Member:
    """One worker process and its links."""

    process: WorkerProcess
    link: Link

    @property
    def id(self) -> str:
        """Worker id."""
        return self.process.id

    async def crash(self) -> None:
        """End the worker like a power cut: kill it with SIGKILL, and drop everything that it has in flight.

        Raises:
            RuntimeError: The worker had ended before.

        """
        if await self.process.kill() != -signal.SIGKILL:
            raise RuntimeError(f"there was nothing to kill: {self.process.describe_end()}")
        self.link.reset()
        self.link.heal()

    async def exit_code(self) -> int:
        """Wait until the worker has ended by itself, and return its exit code."""
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)


@dataclass(kw_only=True)
class Harness:
    """A fleet under test. All its parts are children of this process and end with it."""

    services: Services
    pool: str
    processes: WorkerProcesses
    redis: aioredis.Redis
    stack: AsyncExitStack
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    named_servers: Mapping[int, int] = field(default_factory=dict[int, int])
    """The ports of the Redis servers that answers name, if there are any, each with the server's own."""

    @classmethod
    @asynccontextmanager
    async def around(
        cls,
        services: Services,
        *,
        log_folder: Path | None = None,
        named_servers: Mapping[int, int] | None = None,
        **defaults: Any,
    ) -> AsyncGenerator[Harness]:
        """Make a harness on these services, with a new pool; ``defaults`` are settings of all its workers."""
        async with (
            AsyncExitStack() as stack,
            WorkerProcesses(log_folder=log_folder) as processes,
            _patient_client(services.redis_url) as redis,
        ):
            yield cls(
                services=services,
                pool=f"chaos-{uuid4().hex[:8]}",
                processes=processes,
                redis=redis,
                stack=stack,
                defaults=defaults,
                named_servers=named_servers or {},
            )

    @property
    def broker(self) -> RabbitMQProcess:
        """RabbitMQ. Raises ``ConfigurationError`` if it is of a kind that cannot be killed."""
        return self._killable(self.services.broker)

    @property
    def store(self) -> RedisProcess:
        """Redis. Raises as ``broker`` does."""
        return self._killable(self.services.store)

    def _killable(self, server: Server | None) -> Server:
        if server is None:
            raise ConfigurationError(
                f"faults need services that can be killed; {self.services.description} cannot: "
                "install the binaries (apt-get install rabbitmq-server redis-server)"
            )
        return server

    async def link(self, *, heartbeat_s: int = AMQP_HEARTBEAT_S) -> Link:
        """Open links for one more client. After two heartbeats without an answer it leaves its connection."""
        broker = Proxy(f"{self.services.amqp_url}?heartbeat={heartbeat_s}")
        store = Proxy(self.services.redis_url, named=self.named_servers)
        return Link(
            broker=await self.stack.enter_async_context(broker),
            store=await self.stack.enter_async_context(store),
        )

    async def worker(self, **settings: Any) -> Member:
        """Start a worker behind its own links, and wait until it takes jobs."""
        member = self.launch(await self.link(), **settings)
        await wait_until_ready([member.process], timeout_s=PATIENCE_S)
        return member

    async def workers(self, count: int, **settings: Any) -> list[Member]:
        """Start several workers concurrently."""
        return await asyncio.gather(*(self.worker(**settings) for _ in range(count)))

    def launch(self, link: Link, *, output: IO[bytes] | None = None, **settings: Any) -> Member:
        """Start a worker without waiting for it. It logs to ``output``, if that is given."""
        values: dict[str, Any] = {
            "amqp_url": link.broker.url,
            "redis_url": link.store.url,
            "worker_id": f"{self.pool}-{uuid4().hex[:8]}",
            "pool": self.pool,
            "engine": "simulated",
            "engine_args": ENGINE_ARGS,
            "lease_s": LEASE_S,
            "heartbeat_interval_s": 0.5,
            "retry_base_s": 0.25,
            "retry_cap_s": 1.0,
            "drain_timeout_s": 1.0,
            **self.defaults,
            **settings,
        }
        return Member(self.processes.start(WorkerSettings(**values), output=output), link)

    async def restart_broker(self) -> None:
        """Kill RabbitMQ and start it again with its data on disk."""
        await asyncio.to_thread(self.broker.kill)
        await asyncio.to_thread(self.broker.start)

    async def restart_store(self) -> None:
        """Kill Redis and start it again with its data."""
        await asyncio.to_thread(self.store.kill)
        await asyncio.to_thread(self.store.start)

    async def empty_store(self) -> frozenset[str]:
        """Empty Redis in one instant, then kill it and start it again.

        Returns the ids of the jobs that had a result at that instant, which nobody can restore.
        """
        script = "local k = redis.call('KEYS', 'inferfleet:job:*:result'); redis.call('FLUSHALL'); return k"
        keys: Any = await self.redis.eval(script, 0)  # pyright: ignore[reportGeneralTypeIssues]
        await self.restart_store()
        return frozenset(key.decode().partition("{")[2].partition("}")[0] for key in keys)

    async def waiting(self) -> int:
        """Count the messages that wait in the pool's queue, and that no worker holds."""
        queue = job_queue(self.pool)
        return (await self.depths(queue))[queue]

    async def consumers(self) -> int:
        """Count the workers that are connected to the broker, according to the broker."""
        async with open_amqp(self.services.amqp_url, timeout_s=PATIENCE_S, name="chaos") as connection:
            channel = await connection.channel()
            declared = await channel.declare_queue(job_queue(self.pool), passive=True)
            return declared.declaration_result.consumer_count or 0

    async def depths(self, *queues: str) -> dict[str, int]:
        """Count the messages that wait in each of these queues. A missing queue has none."""
        depths = dict.fromkeys(queues, 0)
        async with open_amqp(self.services.amqp_url, timeout_s=PATIENCE_S, name="chaos") as connection:
            for queue in queues:
                channel = await connection.channel()
                with suppress(ChannelNotFoundEntity):
                    declared = await channel.declare_queue(queue, passive=True)
                    depths[queue] = declared.declaration_result.message_count or 0
        return depths

    async def index(self) -> dict[str, JobState | None]:
        """Return the pool's index of unfinished jobs, with the states in their records."""
        index: dict[str, JobState | None] = {}
        for priority in range(PRIORITY_LEVELS):
            entries: Any = await self.redis.zrange(open_key(self.pool, priority), 0, -1)
            for job_id in map(bytes.decode, entries):
                state: Any = await self.redis.hget(job_key(job_id), "state")  # pyright: ignore[reportGeneralTypeIssues]
                index[job_id] = JobState(state.decode()) if state else None
        return index

    async def journal(self, job_id: str) -> list[JournalEntry]:
        """Read a job's journal."""
        lines: Any = await self.redis.xrange(journal_key(job_id))
        return [parse_line(fields) for _, fields in lines]

    async def until(
        self, condition: Callable[[], Awaitable[bool]], *, what: str, patience_s: float = PATIENCE_S
    ) -> None:
        """Wait until a condition can be observed from outside. An unreachable service shows nothing."""
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    try:
                        if await condition():
                            return
                    except (RedisError, AMQPError, ServiceUnreachableError, OSError):
                        pass
                    await asyncio.sleep(POLL_INTERVAL_S)
        except TimeoutError as error:
            raise TimeoutError(f"waited {patience_s:g} s waiting until {what}") from error

    async def until_empty(self) -> None:
        """Wait until no message waits in the pool's queue."""

        async def empty() -> bool:
            return not await self.waiting()

        await self.until(empty, what="the queue is empty")

    async def until_tokens(self, job_ids: Iterable[str], *, at_least: int = 1) -> None:
        """Wait until the journal of each of these jobs has so many tokens."""
        for job_id in job_ids:

            async def has_tokens(job_id: str = job_id) -> bool:
                tokens = await self.redis.hget(job_key(job_id), "tokens")  # pyright: ignore[reportGeneralTypeIssues]
                return int(tokens or 0) >= at_least

            await self.until(has_tokens, what=f"job {job_id} has {at_least} tokens")


def _patient_client(url: str) -> aioredis.Redis:
    """Make a client that survives a restart: it only reads, so its commands may be sent again."""
    client = redis_client(url)
    assert isinstance(client, aioredis.Redis)  # noqa: S101 - a Redis Cluster is not among the topologies
    client.set_retry(Retry(ExponentialBackoff(cap=0.5, base=0.05), 40))
    return client
