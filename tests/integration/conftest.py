"""What the integration tests share: a pool of their own, clients, workers, a raw AMQP client.

Everything runs on the session's one set of services (``--services`` chooses the kind). A pool name is never
used twice, so tests cannot see each other.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, Protocol
from uuid import uuid4

import aiormq
import aiormq.abc
import aiormq.exceptions
import pytest
import redis.asyncio as aioredis
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.forked import ForkedProcess
from tests.integration.raw_publisher import RawPublisher
from tests.matrix import Cell
from tests.patience import PATIENCE_S as PATIENCE_S
from tests.redis_container import running_redis_8
from tests.stores import plain_redis, running_pipeline

from inferfleet.gateway.server import serving
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.local.services import Services, ServicesChoice
from inferfleet.producer import Fleet, JournalLine, tracing
from inferfleet.schemas import Endpoint, Job, JobRecord, Priority
from inferfleet.schemas.journal import FinishedEntry, JournalEntry, RunningEntry, TokensEntry
from inferfleet.schemas.names import dead_queue, job_queue, journal_key, open_key, run_queue
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.wire.redis.journal_lines import parse_line
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.topology import topology_of
from inferfleet.worker.engines.simulated import SimulatedEngine, expected_text
from inferfleet.worker.ports import Engine
from inferfleet.worker.worker import Worker

INSTANT: Mapping[str, Any] = {"speed": 0}
"""Arguments of a simulated engine in which no time passes."""


def chat(content: str = "hello", **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"messages": [{"role": "user", "content": content}], **more}


def slow_chat(content: str = "slow", *, tokens: int, step_s: float, **hooks: Any) -> dict[str, Any]:
    """A chat whose answer has so many tokens, each of which takes ``step_s`` real seconds."""
    return chat(content, simulated={"tokens": tokens, "step_delay_s": step_s, **hooks})


class EveryJob:
    """A policy that admits everything."""

    usual_priority = 4
    weight = 1.0

    def check(self, jobs: Sequence[Job]) -> None:
        pass

    @asynccontextmanager
    async def admitted(self, jobs: Sequence[Job]) -> AsyncGenerator[set[str]]:
        yield set()

    async def placed(self, jobs: Sequence[Job]) -> list[Job]:
        return [*jobs]


def answer_to(job: Job) -> str:
    """What the simulated engine says to a chat or completion, whoever runs it and however often."""
    assert job.endpoint is not Endpoint.EMBEDDINGS
    return expected_text(job.endpoint, job.body)


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float = PATIENCE_S) -> None:
    """Wait for something that nothing announces."""
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def environment(services: Services, pool: str, cell: Cell | None) -> dict[str, str]:
    """The environment of a child process: this one's, without settings, and with the test's services."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}
    if cell is not None:
        inherited["INFERFLEET_QUEUE_TYPE"] = cell.queue_type
    return inherited | {"INFERFLEET_AMQP_URL": services.amqp_url, "INFERFLEET_REDIS_URL": services.redis_url}


@pytest.fixture(scope="session")
def redis_8(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Redis that has vector sets: the one of this machine may be too old."""
    with running_redis_8(request.config) as url:
        yield url


# A raw client, as another program would be


class ForeignClient:
    """Speaks AMQP without any code of ours."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, pool: str) -> None:
        self.channel = channel
        self.pool = pool

    async def publish(self, body: bytes, *, exchange: str = "inferfleet.jobs", **properties: Any) -> None:
        await self.channel.basic_publish(
            body,
            exchange=exchange,
            routing_key=self.pool,
            mandatory=True,
            properties=aiormq.spec.Basic.Properties(**properties),
        )

    async def waiting(self, queue: str | None = None) -> int:
        """Count the messages that wait in a queue, by default the pool's."""
        answer = await self.channel.queue_declare(queue or job_queue(self.pool), passive=True)
        return answer.message_count or 0

    async def letters(self) -> list[aiormq.abc.DeliveredMessage]:
        """Take all dead letters that are there now; none if they have no queue."""
        letters: list[aiormq.abc.DeliveredMessage] = []
        while True:
            try:
                letter = await self.channel.basic_get(dead_queue(self.pool), no_ack=True)
            except aiormq.exceptions.ChannelNotFoundEntity:
                await self.reopen()
                return letters
            if letter.delivery_tag is None:
                return letters
            letters.append(letter)

    async def reopen(self) -> None:
        """Go on with a new channel after the broker has closed this one."""
        self.channel = await self.channel.connection.channel()

    async def dead_letter(self) -> aiormq.abc.DeliveredMessage:
        """Take the next dead letter of the pool as soon as there is one."""
        arrived: asyncio.Queue[aiormq.abc.DeliveredMessage] = asyncio.Queue()
        consumer = await self.channel.basic_consume(dead_queue(self.pool), arrived.put, no_ack=True)
        try:
            return await asyncio.wait_for(arrived.get(), PATIENCE_S)
        finally:
            assert consumer.consumer_tag is not None
            await self.channel.basic_cancel(consumer.consumer_tag)


@pytest.fixture
async def pool(services: Services) -> AsyncIterator[str]:
    """A pool that no other test uses. Its queues are deleted afterwards."""
    name = f"test-{uuid4().hex[:12]}"
    yield name
    async with aiormq_channel(services.amqp_url) as channel:
        await channel.queue_delete(job_queue(name))
        await channel.queue_delete(dead_queue(name))
        await channel.queue_delete(run_queue(name))


@pytest.fixture
async def foreign(services: Services, pool: str) -> AsyncIterator[ForeignClient]:
    async with aiormq_channel(services.amqp_url) as channel:
        yield ForeignClient(channel, pool)


@asynccontextmanager
async def aiormq_channel(url: str) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


@pytest.fixture
def raw(services: Services, pool: str) -> RawPublisher:
    return RawPublisher(services.amqp_url, pool)


@pytest.fixture
async def store(services: Services) -> AsyncIterator[aioredis.Redis]:
    """A plain Redis client. Its timeouts would run out while a test makes ten thousand jobs."""
    client = plain_redis(services.redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def real_redis(services: Services) -> None:
    """For tests that ask Redis about its users or connections, of which the embedded one knows nothing."""
    if services.kind is ServicesChoice.EMBEDDED:
        pytest.skip("the embedded Redis has no users and lists no connections")


@pytest.fixture
def one_redis(services: Services) -> None:
    """For tests that put something in front of Redis, or look at one server."""
    if topology_of(services.redis_url) is not None:
        pytest.skip(f"this needs a single Redis, and there are: {services.description}")


# Clients


class Connect(Protocol):
    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[Fleet]: ...


@pytest.fixture
def producer_settings(services: Services) -> Callable[..., ProducerSettings]:
    def settings(**changes: Any) -> ProducerSettings:
        return ProducerSettings(
            **{"amqp_url": services.amqp_url, "redis_url": services.redis_url, "result_ttl_s": 600, **changes}
        )

    return settings


@pytest.fixture
def connect(producer_settings: Callable[..., ProducerSettings]) -> Connect:
    """Connect one more client, with other settings if need be."""

    def open_fleet(**settings: Any) -> AbstractAsyncContextManager[Fleet]:
        return Fleet.connect(producer_settings(**settings))

    return open_fleet


@pytest.fixture
async def fleet(connect: Connect, pool: str) -> AsyncIterator[Fleet]:
    """A client; the pool is declared."""
    async with connect() as fleet:
        await fleet.declare_pool(pool)
        yield fleet


# Workers in this process


@dataclass(frozen=True)
class RunningWorker:
    worker: Worker
    engine: Engine
    running: asyncio.Task[None]

    async def stop(self) -> None:
        """Drain it and wait until it has ended."""
        self.worker.stop()
        await asyncio.wait_for(asyncio.shield(self.running), PATIENCE_S)


class StartWorker(Protocol):
    def __call__(
        self, engine: Engine | None = None, *, engine_args: Mapping[str, Any] = INSTANT, **settings: Any
    ) -> Awaitable[RunningWorker]: ...


@pytest.fixture
async def start_worker(services: Services, pool: str) -> AsyncIterator[StartWorker]:
    """Start workers in this process, by default with an engine that takes no time. All end with the test."""
    started: list[RunningWorker] = []

    async def start(
        engine: Engine | None = None, *, engine_args: Mapping[str, Any] = INSTANT, **changes: Any
    ) -> RunningWorker:
        settings = WorkerSettings(
            **{
                "amqp_url": services.amqp_url,
                "redis_url": services.redis_url,
                "pool": pool,
                "engine": "simulated",
                "worker_id": f"worker-{uuid4().hex[:8]}",
                "http_host": "127.0.0.1",
                "http_port": 0,
                "drain_timeout_s": 0,
                "retry_base_s": 0.05,
                "result_ttl_s": 600,
                **changes,
            }
        )
        engine = engine or SimulatedEngine(
            model="simulated", max_running=settings.max_running, engine_args=engine_args
        )
        worker = Worker(settings=settings, engine=engine)
        running = RunningWorker(worker, engine, asyncio.create_task(worker.run()))
        started.append(running)
        return running

    yield start
    for running in started:
        if not running.running.done():
            await running.stop()


# Processes


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


class RunCommand(Protocol):
    def __call__(
        self, *arguments: str, stdin: str = "", environment: Mapping[str, str] = {}
    ) -> Awaitable[Ended]: ...


@pytest.fixture
def inferfleet(environment: dict[str, str]) -> RunCommand:
    """Run ``inferfleet`` as a process of its own."""
    own = environment

    async def run(*arguments: str, stdin: str = "", environment: Mapping[str, str] = {}) -> Ended:
        with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            process = ForkedProcess(
                arguments, env={**own, **environment}, stdin=given, stdout=out, stderr=err
            )
            try:
                code = await asyncio.wait_for(process.wait(), PATIENCE_S)
            except BaseException:
                process.kill()
                await process.wait()
                raise
            texts: list[str] = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
            return Ended(code, *texts)

    return run


class WorkerProcess:
    """A worker as a process of its own. Its log is JSON lines."""

    def __init__(
        self, process: asyncio.subprocess.Process | ForkedProcess, log: asyncio.StreamReader
    ) -> None:
        self._process = process
        self._log = log
        self._lines: list[str] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything it has written so far."""
        return "".join(self._lines)

    async def logged(self, message: str) -> dict[str, Any]:
        """Wait for the first log line with this message."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            while (line := self._find(message)) is None:
                assert not self._reading.done(), f"the worker ended without {message!r}:\n{self.log}"
                await self._news.wait()
        return line

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; returns the exit code."""
        code = await asyncio.wait_for(self._process.wait(), PATIENCE_S)
        await self._reading
        return code

    async def stop(self) -> int:
        """Ask it to end as Kubernetes does; returns the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def close(self) -> None:
        if self._process.returncode is None:
            self.signal(signal.SIGKILL)
        await self.ended()

    def _find(self, message: str) -> dict[str, Any] | None:
        for line in self._lines:
            fields: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if fields.get("message", "").startswith(message):
                return fields
        return None

    async def _read(self) -> None:
        async for line in self._log:
            async with self._news:
                self._lines.append(line.decode())
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()


async def reader_of(pipe: int) -> asyncio.StreamReader:
    """Read this end of a pipe, and close it with the other end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb")
    )
    return reader


class StartWorkerProcess(Protocol):
    def __call__(self, *options: str, preamble: str = "", **environment: str) -> Awaitable[WorkerProcess]: ...


@pytest.fixture
async def start_worker_process(environment: dict[str, str], pool: str) -> AsyncIterator[StartWorkerProcess]:
    """Start ``inferfleet worker``; variables are given without ``INFERFLEET_`` and in lower case.

    ``preamble`` is Python that the process runs first.
    """
    async with AsyncExitStack() as stack:

        async def start(*options: str, preamble: str = "", **variables: str) -> WorkerProcess:
            arguments = ["worker", "--pool", pool, "--engine", "simulated", "--http-port", "0", *options]
            env = environment | {f"INFERFLEET_{name.upper()}": value for name, value in variables.items()}
            readable, writable = os.pipe()
            process: asyncio.subprocess.Process | ForkedProcess
            with os.fdopen(writable, "wb") as stderr:
                # What Python itself reads counts when it starts.
                if preamble or "PYTHONPATH" in env:
                    program = f"{preamble}\nfrom inferfleet.cli import main\nmain()"
                    process = await asyncio.create_subprocess_exec(
                        *[sys.executable, "-c", program, *arguments], env=env, stderr=stderr
                    )
                else:
                    process = ForkedProcess(arguments, env=env, stdout=stderr, stderr=stderr)
            worker = WorkerProcess(process, await reader_of(readable))
            stack.push_async_callback(worker.close)
            return worker

        yield start


# Reading


async def journal_of(store: aioredis.Redis, job: Job | str) -> list[JournalEntry]:
    """Read a job's whole journal, straight from Redis."""
    lines: Any = await store.xrange(journal_key(job.id if isinstance(job, Job) else job))
    return [parse_line(fields) for _, fields in lines]


def text_of(entries: list[JournalEntry]) -> str:
    """Join the text of the first choice."""
    chunks = [chunk for entry in entries if isinstance(entry, TokensEntry) for chunk in entry.chunks]
    return "".join(chunk.text for chunk in chunks if chunk.index == 0)


def kinds_of(entries: list[JournalEntry]) -> list[str]:
    """The kinds of entries, in order, neighbouring portions of tokens as one."""
    kinds: list[str] = []
    for entry in entries:
        if not (entry.kind == "tokens" and kinds[-1:] == ["tokens"]):
            kinds.append(entry.kind)
    return kinds


def assert_whole(entries: list[JournalEntry]) -> None:
    """The tokens follow each other without a gap or a repeat, and one line ends it all."""
    offset = 0
    for entry in entries:
        if isinstance(entry, RunningEntry):
            assert entry.resumed_from == offset
        if isinstance(entry, TokensEntry):
            assert entry.offset == offset
            offset += sum(len(chunk.token_ids) for chunk in entry.chunks)
    assert [isinstance(entry, FinishedEntry) for entry in entries].count(True) == 1
    assert isinstance(entries[-1], FinishedEntry)


async def read_all(lines: AsyncIterator[JournalLine]) -> list[JournalEntry]:
    """Read a stream to its end."""
    async with asyncio.timeout(PATIENCE_S):
        return [line.entry async for line in lines]


async def until_running(fleet: Fleet, job: Job | str) -> None:
    """Wait until a worker has started the job."""
    async with asyncio.timeout(PATIENCE_S):
        async for line in fleet.stream(job):
            if isinstance(line.entry, RunningEntry):
                return


async def until_tokens(fleet: Fleet, job: Job | str, count: int = 1) -> None:
    """Wait until the journal has so many tokens."""
    async with asyncio.timeout(PATIENCE_S):
        async for line in fleet.stream(job):
            if isinstance(line.entry, TokensEntry):
                count -= sum(len(chunk.token_ids) for chunk in line.entry.chunks)
                if count <= 0:
                    return


async def unfinished(store: aioredis.Redis, pool: str, priority: int = Priority.NORMAL) -> list[str]:
    """The ids of the pool's unfinished jobs of a priority, as soon as there is one."""
    found: list[str] = []

    async def some() -> bool:
        members: Any = await store.zrange(open_key(pool, priority), 0, -1)
        found[:] = [name.decode() for name in members]
        return bool(found)

    await eventually(some)
    return found


def record_of(records: dict[str, JobRecord | None], job: Job) -> JobRecord:
    """One of the records that ``get_many`` found."""
    record = records[job.id]
    assert record is not None
    return record


@pytest.fixture
async def pipeline(services: Services) -> AsyncIterator[CommandPipeline]:
    async with running_pipeline(services.redis_url, patience_s=None) as pipeline:
        yield pipeline


@pytest.fixture
def records(pipeline: CommandPipeline) -> JobRecords:
    return JobRecords(pipeline=pipeline, result_ttl_s=600, queued_ttl_s=600)


# Spans of this process


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """The provider of this program."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    tracing._tracer.cache_clear()
    yield provider
    tracing._tracer.cache_clear()


@pytest.fixture
def spans(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


# Gateways in this process


@dataclass(frozen=True)
class RunningGateway:
    url: str
    running: asyncio.Task[None]
    stopping: asyncio.Event

    async def stop(self) -> None:
        """Drain it, and wait until it has ended."""
        self.stopping.set()
        await asyncio.wait_for(asyncio.shield(self.running), PATIENCE_S)


class StartGateway(Protocol):
    def __call__(self, **settings: Any) -> Awaitable[RunningGateway]: ...


@pytest.fixture
async def start_gateway(services: Services, pool: str) -> AsyncIterator[StartGateway]:
    """Start gateways in this process, with the test's pool as theirs. All end with the test."""
    started: list[RunningGateway] = []

    async def start(**changes: Any) -> RunningGateway:
        settings = GatewaySettings(
            **{
                "amqp_url": services.amqp_url,
                "redis_url": services.redis_url,
                "result_ttl_s": 600,
                "http_port": 0,
                "pool": pool,
                "drain_timeout_s": 0,
                **changes,
            }
        )
        listens: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stopping = asyncio.Event()

        async def run() -> None:
            async with serving(settings) as port:
                listens.set_result(port)
                await stopping.wait()

        running = asyncio.create_task(run())
        waited: set[asyncio.Future[Any]] = {running, listens}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        gateway = RunningGateway(f"http://127.0.0.1:{listens.result()}", running, stopping)
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        if not gateway.running.done():
            await gateway.stop()
