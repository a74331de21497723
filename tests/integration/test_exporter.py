"""``inferfleet exporter``: what it knows is right, and what it does not know is missing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from tests.patience import PATIENCE_S
from tests.stores import plain_redis
from yarl import URL

from inferfleet.exporter import management
from inferfleet.exporter.management import ManagementQueues
from inferfleet.exporter.server import serving
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.local.autoscaler.measure import open_measurer
from inferfleet.local.autoscaler.triggers import Trigger, parse_trigger
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, Priority
from inferfleet.schemas.names import job_queue, job_queues, warm_queue
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.wire.http_port import listening
from inferfleet.wire.rabbitmq.management import ManagementApi
from inferfleet.wire.rabbitmq.management_answers import QueuesAnswer
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.worker import Worker


@pytest.fixture
def pool() -> str:
    return f"pool-{uuid4().hex[:8]}"


LABELS = ("pool", "phase", "priority", "service")


class Metrics:
    """Asks the exporter as Prometheus would."""

    def __init__(self, http: aiohttp.ClientSession, port: int) -> None:
        self._http = http
        self._url = f"http://127.0.0.1:{port}"

    async def scrape(self) -> dict[tuple[str, ...], float]:
        """Every value, by its name and the values of its labels."""
        async with self._http.get(f"{self._url}/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain")
            text = await answer.text()
        return {
            (
                sample.name.removeprefix("inferfleet_"),
                *(sample.labels[label] for label in LABELS if label in sample.labels),
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def alive(self) -> bool:
        async with self._http.get(f"{self._url}/health/live") as answer:
            return answer.status == 200

    async def until(
        self, condition: Callable[[Mapping[tuple[str, ...], float]], bool]
    ) -> dict[tuple[str, ...], float]:
        """Scrape until it is so."""
        seen: dict[tuple[str, ...], float] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition(seen := await self.scrape()):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"it never was so; last seen: {seen}") from None
        return seen


@asynccontextmanager
async def exporter(services: Services, *, management: bool = True, **settings: Any) -> AsyncIterator[Metrics]:
    options = {
        "amqp_url": services.amqp_url,
        "redis_url": services.redis_url,
        "management_url": services.management_url if management else None,
        "http_host": "127.0.0.1",
        "http_port": 0,
        "sample_interval_s": 0.2,
        **settings,
    }
    async with serving(ExporterSettings(**options)) as port, aiohttp.ClientSession() as http:
        yield Metrics(http, port)


@asynccontextmanager
async def client(services: Services, pool: str) -> AsyncIterator[Fleet]:
    settings = ProducerSettings(amqp_url=services.amqp_url, redis_url=services.redis_url, result_ttl_s=600)
    async with Fleet.connect(settings) as fleet:
        await fleet.declare_pool(pool)
        yield fleet


@asynccontextmanager
async def worker(services: Services, pool: str, **settings: Any) -> AsyncIterator[Worker]:
    options = {
        "amqp_url": services.amqp_url,
        "redis_url": services.redis_url,
        "pool": pool,
        "engine": "simulated",
        "worker_id": f"worker-{uuid4().hex[:8]}",
        "http_host": "127.0.0.1",
        "http_port": 0,
        "drain_timeout_s": 0,
        "heartbeat_interval_s": 0.2,
        "max_running": 4,
        "look_ahead": 0,
        **settings,
    }
    running = Worker(
        settings=WorkerSettings(**options),
        engine=SimulatedEngine(model="simulated", max_running=options["max_running"], engine_args={}),
    )
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        running.stop()
        await asyncio.wait_for(task, PATIENCE_S)


def jobs_of(pool: str, count: int, *, tokens: int = 20) -> list[Job]:
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "simulated": {"tokens": tokens, "step_delay_s": 0.05},
    }
    return [Job(pool=pool, body=body) for _ in range(count)]


async def test_without_workers_it_shows_what_waits_and_for_how_long(managed: Services, pool: str) -> None:
    async with exporter(managed) as metrics, client(managed, pool) as fleet:
        await metrics.until(lambda seen: seen.get(("queue_ready", pool)) == 0)
        await fleet.submit_many(jobs_of(pool, 5))
        await fleet.pause_pool(pool)

        seen = await metrics.until(lambda seen: seen.get(("queue_oldest_age_seconds", pool), 0) > 3)

    assert seen["queue_ready", pool] == 5
    assert seen["queue_unacked", pool] == 0
    assert seen["dead_letters_ready", pool] == 0
    assert {priority: seen["unfinished_jobs", pool, str(priority)] for priority in range(10)} == {
        priority: 5 if priority == Priority.NORMAL else 0 for priority in range(10)
    }
    assert seen["pool_paused", pool] == 1
    assert [seen["workers", pool, phase] for phase in ("loading", "ready", "draining")] == [0, 0, 0]
    assert ("queue_backlog_seconds", pool) not in seen, "nothing has ended yet, so there is no throughput"


async def test_with_workers_it_predicts_how_long_the_work_will_last(managed: Services, pool: str) -> None:
    async with exporter(managed) as metrics, client(managed, pool) as fleet, worker(managed, pool):
        # 4 at a time, a second each: 4 jobs/s.
        jobs = await fleet.submit_many(jobs_of(pool, 80))

        busy = await metrics.until(
            lambda seen: ("queue_backlog_seconds", pool) in seen and seen.get(("queue_unacked", pool)) == 4
        )
        await asyncio.gather(*(fleet.wait(job) for job in jobs))
        done = await metrics.until(lambda seen: seen.get(("queue_backlog_seconds", pool)) == 0)

    work = busy["queue_ready", pool] + 4
    assert work / 8 < busy["queue_backlog_seconds", pool] < work
    assert busy["workers", pool, "ready"] == 1
    assert done["queue_ready", pool] == done["queue_unacked", pool] == 0
    assert done["queue_oldest_age_seconds", pool] == 0


async def test_turns_in_the_queues_of_workers_count_for_the_exporter_and_for_keda(
    managed: Services, pool: str
) -> None:
    endless = {"simulated": {"tokens": 100_000, "step_delay_s": 0.05}}

    def trigger(queue: str, *, regex: bool) -> Trigger:
        values = {"protocol": "http", "mode": "QueueLength", "value": "1", "useRegex": str(regex).lower()}
        return parse_trigger({"type": "rabbitmq", "metadata": {"queueName": queue, **values}}, number=0)

    triggers = [trigger(job_queues(pool), regex=True), trigger(job_queue(pool), regex=False)]
    async with (
        exporter(managed) as metrics,
        client(managed, pool) as fleet,
        worker(managed, pool, warm_wait_s=60),
        open_measurer(
            triggers, amqp_url=managed.amqp_url, management_url=managed.management_url, prometheus_url=None
        ) as measurer,
    ):
        session = fleet.session(f"s-{pool}")
        await fleet.wait(await session.send("one", pool=pool))
        turn = await session.send("two", pool=pool, body=endless)
        await metrics.until(lambda seen: seen.get(("queue_unacked", pool)) == 1)
        async with asyncio.timeout(PATIENCE_S):
            # RabbitMQ's numbers are up to 5 s old.
            while [each.value for each in await measurer.measure(triggers)] != [1, 0]:
                await asyncio.sleep(0.1)
        await fleet.cancel(turn)
        await metrics.until(lambda seen: seen.get(("queue_unacked", pool)) == 0)


async def test_jobs_that_a_worker_has_ended_count_when_its_queue_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the counter would fall, and the exporter would no longer know how fast the pool is."""

    def queue(name: str, acked: int, unacked: int = 0) -> dict[str, Any]:
        stats = {"publish": acked, "ack": acked}
        return {
            "name": name,
            "messages_ready": 0,
            "messages_unacknowledged": unacked,
            "message_stats": stats,
        }

    monkeypatch.setattr(management, "GONE", 1)
    answers = [
        [queue(job_queue("a"), 10, 1), queue(warm_queue("a", "w"), 5, 2), queue(job_queue("a.b"), 1)],
        [queue(job_queue("a"), 12)],
        [queue(job_queue("a"), 12), queue(warm_queue("a", "v"), 3)],
        [queue(job_queue("a"), 12), queue(warm_queue("a", "u"), 2)],
        [queue(job_queue("a"), 12), queue(warm_queue("a", "v"), 4), queue(warm_queue("a", "u"), 2)],
    ]

    async def answer(*_: object) -> QueuesAnswer:
        return QueuesAnswer.model_validate({"page_count": 1, "items": answers.pop(0)})

    monkeypatch.setattr(ManagementApi, "queues", answer)
    queues = ManagementQueues("http://host:15672", amqp_url="amqp://host/")
    seen = [await queues.counts(()) for _ in range(5)]
    counted = [(counts["a"].acked, counts["a"].unacked) for counts in seen]
    assert counted == [(15, 3), (17, 0), (20, 0), (22, 0), (23, 0)]
    assert seen[0]["a.b"].acked == 1


async def test_longer_jobs_are_a_longer_backlog(managed: Services, pool: str) -> None:
    def body(tokens: int) -> dict[str, Any]:
        said = [{"role": "user", "content": "hello"}]
        return {"messages": said, "max_tokens": tokens, "simulated": {"tokens": tokens}}

    async with exporter(managed) as metrics, client(managed, pool) as fleet:
        async with worker(managed, pool):
            ended = await fleet.submit_many(Job(pool=pool, body=body(tokens)) for tokens in (4, 2000) * 20)
            await fleet.wait_many(ended)
            # The exporter has heard what has ended, and remembers it.
            await metrics.until(lambda seen: seen.get(("queue_backlog_seconds", pool)) == 0)
        await fleet.submit_many(Job(pool=pool, body=body(4)) for _ in range(20))
        short = await metrics.until(lambda seen: seen.get(("queue_ready", pool)) == 20)
        await fleet.submit_many(Job(pool=pool, body=body(2000)) for _ in range(20))
        both = await metrics.until(lambda seen: seen.get(("queue_ready", pool)) == 40)

    assert both["queue_backlog_seconds", pool] > 5 * short["queue_backlog_seconds", pool] > 0


async def test_without_the_management_api_it_shows_less_and_says_nothing_false(
    managed: Services, pool: str
) -> None:
    async with exporter(managed, management=False, pools=(pool,)) as metrics, client(managed, pool) as fleet:
        await fleet.submit_many(jobs_of(pool, 3))
        waiting = await metrics.until(lambda seen: seen.get(("queue_ready", pool)) == 3)
        async with worker(managed, pool, max_running=1):
            running = await metrics.until(lambda seen: seen.get(("queue_unacked", pool)) == 1)

    assert waiting["queue_unacked", pool] == 0
    assert waiting["dead_letters_ready", pool] == 0
    assert running["workers", pool, "ready"] == 1
    for seen in (waiting, running):
        assert ("queue_oldest_age_seconds", pool) not in seen
        assert ("queue_backlog_seconds", pool) not in seen


async def test_without_the_right_to_read_pools_only_their_metrics_are_missing(
    managed: Services, pool: str
) -> None:
    admin = plain_redis(managed.redis_url)
    rights = ("~inferfleet:worker*", "+select", "+time", "+hgetall", "+zrange")
    await admin.execute_command("ACL", "SETUSER", "exporter", "on", ">secret", *rights)
    url = URL(managed.redis_url).with_user("exporter").with_password("secret")
    async with exporter(managed, redis_url=str(url)) as metrics, client(managed, pool):
        seen = await metrics.until(
            lambda seen: ("workers", pool, "ready") in seen and seen.get(("queue_ready", pool)) == 0
        )
    await admin.execute_command("ACL", "DELUSER", "exporter")
    await admin.aclose()

    assert seen["exporter_up", "redis"] == 1
    assert ("pool_paused", pool) not in seen


async def test_a_pool_without_a_queue_has_no_numbers(managed: Services, pool: str) -> None:
    async with exporter(managed, management=False, pools=(pool,)) as metrics:
        seen = await metrics.until(lambda seen: seen.get(("exporter_up", "rabbitmq")) == 1)

    assert ("queue_ready", pool) not in seen


async def test_while_a_service_is_away_its_metrics_are_missing_and_come_back(
    managed: Services, pool: str
) -> None:
    assert managed.store is not None
    assert managed.broker is not None
    async with (
        exporter(managed, pools=(pool,)) as over_http,
        exporter(managed, management=False, pools=(pool,)) as over_amqp,
        client(managed, pool),
    ):
        exporters = (over_http, over_amqp)

        async def until(
            condition: Callable[[Mapping[tuple[str, ...], float]], bool],
        ) -> list[dict[tuple[str, ...], float]]:
            return [await metrics.until(condition) for metrics in exporters]

        await until(lambda seen: ("queue_ready", pool) in seen and ("workers", pool, "ready") in seen)
        managed.store.kill()
        without_redis = await until(lambda seen: seen["exporter_up", "redis"] == 0)
        await asyncio.to_thread(managed.store.start)
        await until(lambda seen: ("workers", pool, "ready") in seen)
        await asyncio.to_thread(managed.broker.kill)
        without_rabbitmq = await until(lambda seen: seen["exporter_up", "rabbitmq"] == 0)
        assert [await metrics.alive() for metrics in exporters] == [True, True]
        await asyncio.to_thread(managed.broker.start)
        await until(lambda seen: ("queue_ready", pool) in seen)

    for seen in without_redis:
        assert ("workers", pool, "ready") not in seen
        assert seen["queue_ready", pool] == 0
    for seen in without_rabbitmq:
        assert ("queue_ready", pool) not in seen
        assert ("queue_oldest_age_seconds", pool) not in seen
        assert seen["workers", pool, "ready"] == 0


async def command(*options: str, **variables: str) -> asyncio.subprocess.Process:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}
    return await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "inferfleet.cli", "exporter", *options],
        env=inherited | {f"INFERFLEET_{name.upper()}": value for name, value in variables.items()},
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_command_serves_without_any_service_and_ends_on_sigterm() -> None:
    nowhere = {"amqp_url": "amqp://guest:secret@127.0.0.1:1/", "redis_url": "redis://127.0.0.1:1/0"}
    process = await command("--http-port", "0", "--pools", "chat", **nowhere)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            lines: list[str] = []
            while not lines or "serving metrics on port" not in lines[-1]:
                lines.append((await process.stderr.readline()).decode())
        told = [json.loads(line) for line in lines]
        assert all(line["time"] and line["logger"] for line in told)
        port = int(told[-1]["message"].partition("on port ")[2].partition(" ")[0])
        async with aiohttp.ClientSession() as http:
            metrics = Metrics(http, port)
            seen = await metrics.until(lambda seen: ("exporter_up", "redis") in seen)
            assert await metrics.alive()
        process.send_signal(signal.SIGTERM)
        rest = (await asyncio.wait_for(process.communicate(), PATIENCE_S))[1].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert seen == {("exporter_up", "rabbitmq"): 0, ("exporter_up", "redis"): 0, ("exporter_info",): 1}
    assert process.returncode == 0
    assert "secret" not in "".join(lines) + rest
    assert "Traceback" not in rest
    assert "WARNING" in {json.loads(line)["level"] for line in rest.splitlines()}


async def test_a_port_that_is_taken_is_wrong_use() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await command("--http-port", str(port))
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)

    assert process.returncode == 2
    assert f"cannot listen on 0.0.0.0:{port}" in err.decode()


async def test_another_server_in_the_place_of_rabbitmqs_api_is_said(
    managed: Services, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = iter(
        [
            '{"items": [], "hello": 1}',
            "[]",
            "null",
            "<html>",
            '{"items": [{}], "page_count": 1}',
            '{"items": [{"name": "inferfleet.jobs.a", "messages_ready": "many"}], "page_count": 1}',
            '{"items": [{"name": "inferfleet.jobs.a", "message_stats": 1}], "page_count": 1}',
        ]
    )
    answered: list[str] = []

    async def answer(_: web.Request) -> web.Response:
        answered.append(next(bodies, '{"items": [], "page_count": "some"}'))
        return web.Response(text=answered[-1], content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with listening(app, host="127.0.0.1", port=0) as port:
        url = f"http://127.0.0.1:{port}"
        async with exporter(managed, management_url=url, sample_interval_s=0.05, pools=(pool,)) as metrics:
            await metrics.until(lambda _: len(answered) > 10)
            seen = await metrics.scrape()
            assert await metrics.alive()

    assert seen["exporter_up", "rabbitmq"] == 0
    assert ("queue_ready", pool) not in seen
    assert "is not RabbitMQ's API (page_count: is missing); check INFERFLEET_MANAGEMENT_URL" in caplog.text
