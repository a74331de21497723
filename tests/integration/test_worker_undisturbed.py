"""What must not disturb a worker: nobody reads its log, its health port is flooded, a service is away."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorkerProcess,
    answer_to,
    chat,
    eventually,
    slow_chat,
    until_running,
)
from tests.integration.test_health import base_url, samples

from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.producer import Fleet
from inferfleet.schemas import JobState

PIPE_BYTES = 4096


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


# A log that nobody reads


@dataclass(frozen=True)
class Unread:
    """A process whose stderr is a small pipe, at whose other end nobody reads until a test does."""

    process: asyncio.subprocess.Process
    stderr: int
    base: str

    async def read_to_the_end(self) -> str:
        return (await asyncio.to_thread(_read_all, self.stderr)).decode()

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)


def _read_all(fd: int) -> bytes:
    content = b""
    while data := os.read(fd, 65_536):
        content += data
    return content


class StartUnread(Protocol):
    def __call__(
        self, command: str, *options: str, preamble: str = "", log_format: str = "json"
    ) -> Awaitable[Unread]: ...


@pytest.fixture
async def start_unread(environment: dict[str, str]) -> AsyncIterator[StartUnread]:
    async with AsyncExitStack() as stack:

        async def start(command: str, *options: str, preamble: str = "", log_format: str = "json") -> Unread:
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            port = free_port()
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-c", f"{preamble}\nfrom inferfleet.cli import main\nmain()"],
                *[command, "--http-port", str(port), *options],
                env=environment | {"INFERFLEET_LOG_FORMAT": log_format, "INFERFLEET_RETRY_BASE_S": "0.01"},
                stderr=writing,
            )
            os.close(writing)
            stack.push_async_callback(process.wait)
            stack.callback(lambda: process.returncode is None and process.kill())
            return Unread(process, reading, f"http://127.0.0.1:{port}")

        yield start


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_jobs_run_while_nobody_reads_the_log_and_what_is_dropped_is_counted(
    fleet: Fleet,
    start_unread: StartUnread,
    http: aiohttp.ClientSession,
    pool: str,
    log_format: str,
) -> None:
    # Given a worker with room for few lines, which nobody reads
    worker = await start_unread(
        *("worker", "--pool", pool, "--engine", "simulated", "--engine-args", '{"speed": 0}'),
        preamble="import inferfleet.worker.log as log; log.LINES_WAITING = 50",
        log_format=log_format,
    )
    # When it has far more to say than fits into the pipe
    jobs = await fleet.submit_many([chat(str(number), max_tokens=1) for number in range(400)], pool=pool)
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    # Then all jobs ran, and it says how much of its log was lost
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    dropped = int((await samples(http, worker.base))["inferfleet_log_lines_dropped_total"])
    assert dropped > 0
    # in the log, too, as soon as somebody reads it.
    worker.process.send_signal(signal.SIGTERM)
    log = await worker.read_to_the_end()
    told = [int(number) for number in re.findall(r"(\d+) log lines were dropped", log)]
    assert sum(told) >= dropped
    assert log.count("job succeeded") + sum(told) >= 400
    assert await worker.ended() == 0


@pytest.mark.parametrize("how", ["drained", "dead"])
async def test_a_worker_ends_while_nobody_reads_its_log(
    fleet: Fleet, start_unread: StartUnread, pool: str, how: str
) -> None:
    worker = await start_unread("worker", "--pool", pool, "--engine", "simulated")
    jobs = await fleet.submit_many([chat(str(number), max_tokens=1) for number in range(100)], pool=pool)
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    if how == "drained":
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0
    else:
        await fleet.submit(slow_chat(tokens=1, step_s=0, kill_engine=True), pool=pool)
        assert await worker.ended() == 1


async def test_the_exporter_answers_while_nobody_reads_its_log(
    start_unread: StartUnread, http: aiohttp.ClientSession
) -> None:
    noise = """
import logging, threading
import inferfleet.exporter.sampler as sampler
sample = sampler.Sampler.sample
async def noisy(self):
    for _ in range(1000):
        logging.getLogger("test").warning("a long line about nothing in particular, %s", "x" * 100)
    return await sample(self)
sampler.Sampler.sample = noisy
"""
    exporter = await start_unread("exporter", preamble=noise)

    async def answers() -> bool:
        try:
            async with http.get(f"{exporter.base}/metrics") as answer:
                return 'service="redis"} 1.0' in await answer.text()
        except aiohttp.ClientConnectorError:
            return False

    await eventually(answers)
    exporter.process.send_signal(signal.SIGTERM)
    assert await exporter.ended() == 0


# A health port that is flooded


FEW_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"


async def test_idle_connections_to_the_health_port_take_nothing_from_the_worker(
    fleet: Fleet,
    start_worker_process: StartWorkerProcess,
    http: aiohttp.ClientSession,
    pool: str,
) -> None:
    # Given a worker that may open few files
    worker = await start_worker_process(preamble=FEW_FILES, heartbeat_interval_s="0.05")
    await worker.logged("ready")
    base = await base_url(worker)
    port = int(base.rpartition(":")[2])
    async with AsyncExitStack() as stack:
        # When somebody opens hundreds of connections, and says nothing
        for _ in range(300):
            stack.enter_context(
                await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port), PATIENCE_S)
            )
        # Then it runs jobs, answers probes, and beats
        job = await fleet.submit("hello", pool=pool)
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
        async with http.get(f"{base}/health/ready") as answer:
            assert answer.status == 200
        (before,) = [entry for entry in await fleet.workers() if entry.pool == pool]

        async def beats() -> bool:
            (now,) = [entry for entry in await fleet.workers() if entry.pool == pool]
            return now.seen_at > before.seen_at

        await eventually(beats)
        assert "Too many open files" not in worker.log
    assert await worker.stop() == 0


async def test_a_heartbeat_that_fails_is_told_once_and_does_not_end_the_worker(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    failing = """
import inferfleet.worker.heartbeat as heartbeat
write, failures = heartbeat.write_heartbeat, 5
async def write_heartbeat(*arguments, **options):
    global failures
    if failures:
        failures -= 1
        raise OSError(24, "Too many open files")
    await write(*arguments, **options)
heartbeat.write_heartbeat = write_heartbeat
"""
    worker = await start_worker_process(preamble=failing, heartbeat_interval_s="0.05")
    await worker.logged("writing the heartbeat works again")
    assert worker.log.count("cannot write the heartbeat") == 1
    job = await fleet.submit("hello", pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


# Services that are away


class Gate(Proxy):
    """A way to a service that can be shut: then connections are accepted, and broken off at once."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_shut = False
        self.turned_away = 0

    def _accept(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_shut:
            self.turned_away += 1
            writer.transport.abort()
        else:
            super()._accept(port, reader, writer)

    def shut(self) -> None:
        self.is_shut = True
        assert self.reset()


@pytest.mark.parametrize("service", ["redis", "rabbitmq"])
async def test_an_outage_is_two_lines_and_a_metric_however_often_the_worker_tried(
    fleet: Fleet,
    services: Services,
    start_worker_process: StartWorkerProcess,
    http: aiohttp.ClientSession,
    pool: str,
    service: str,
) -> None:
    # Given a worker that runs a job
    async with Gate(services.redis_url if service == "redis" else services.amqp_url) as gate:
        url = {"redis_url" if service == "redis" else "amqp_url": gate.url}
        worker = await start_worker_process(**url)
        job = await fleet.submit(slow_chat(tokens=300, step_s=0.02), pool=pool)
        await until_running(fleet, job)
        base = await base_url(worker)
        lines_before = worker.log.count("\n")
        # When a service is away for several attempts
        gate.shut()

        async def tried_often() -> bool:
            return gate.turned_away >= 6

        await eventually(tried_often)
        during = await samples(http, base)
        assert (during["inferfleet_outages_total"], during["inferfleet_outage_seconds_total"] > 0) == (
            1,
            True,
        )
        gate.is_shut = False
        back = await worker.logged("Redis answers again" if service == "redis" else "reconnected to RabbitMQ")
        # Then its log says when that began, and how long it lasted.
        assert re.search(r"after \d+\.\d s", back["message"])
        lines = worker.log.splitlines()[lines_before:]
        told = [line for line in lines if '"level":"INFO"' not in line.replace(" ", "")]
        assert len(told) == 2, told
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
        after = await samples(http, base)
        assert after["inferfleet_outages_total"] == 1
        assert await worker.stop() == 0
