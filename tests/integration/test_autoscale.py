"""``inferfleet autoscale`` on a real RabbitMQ: a burst takes worker processes from zero to many and back."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from aiohttp import web

from inferfleet.local.autoscaler.measure import open_measurer
from inferfleet.local.autoscaler.scaled_object import read_scaled_object
from inferfleet.local.autoscaler.triggers import Mode, PrometheusTrigger, Protocol, RabbitMQTrigger
from inferfleet.local.services import Services
from inferfleet.producer import Fleet, JournalLine
from inferfleet.schemas import Job
from inferfleet.schemas.job import Priority
from inferfleet.schemas.journal import JournalEntry, QueuedEntry, TokensEntry
from inferfleet.schemas.names import job_queue, journal_key
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.http_port import listening
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.redis.journal_lines import parse_line

PATIENCE_S = 600.0
"""For a busy machine: workers are processes that start one after the other."""
SPEEDUP = 30
BASE_MANIFEST = Path(__file__).parents[2] / "deploy/keda/base/pool/scaledobject.yaml"

MANIFEST = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {{name: worker}}
spec:
  scaleTargetRef: {{name: worker}}
  pollingInterval: 15
  cooldownPeriod: 240
  minReplicaCount: 0
  maxReplicaCount: 3
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleUp:
          policies: [{{type: Pods, value: 1, periodSeconds: 30}}]
        scaleDown:
          stabilizationWindowSeconds: 30
          policies: [{{type: Pods, value: 1, periodSeconds: 60}}]
  triggers:
    - type: rabbitmq
      metadata: {{queueName: inferfleet.jobs.{pool}, protocol: {protocol}, mode: QueueLength, value: "60"}}
"""


class Autoscaler:
    """The command as a process; its decisions are lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.errors: list[str] = []

    async def says(self, text: str) -> None:
        """Wait for a line on stderr."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while not self.errors or text not in self.errors[-1]:
                line = await self._process.stderr.readline()
                assert line, f"it ended without {text!r}:\n{''.join(self.errors)}"
                self.errors.append(line.decode())

    async def ended(self) -> tuple[int, list[dict[str, Any]]]:
        """Wait for its end; returns the exit code and all events."""
        out, err = await asyncio.wait_for(self._process.communicate(), PATIENCE_S)
        self.errors.append(err.decode())
        assert self._process.returncode is not None
        return self._process.returncode, [json.loads(line) for line in out.splitlines()]

    async def interrupt(self) -> None:
        self._process.terminate()

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


@asynccontextmanager
async def autoscaler(
    services: Services, manifest: Path, *options: str, management_url: str | None = None, **variables: str
) -> AsyncIterator[Autoscaler]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}
    settings = {
        "amqp_url": services.amqp_url,
        "redis_url": services.redis_url,
        "engine": "simulated",
    } | variables
    if management_url is not None:
        settings["management_url"] = management_url
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "inferfleet.cli", "autoscale", "--scaledobject", str(manifest), *options],
        env=inherited | {f"INFERFLEET_{name.upper()}": value for name, value in settings.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Autoscaler(process)
    try:
        yield running
    finally:
        await running.close()


@asynccontextmanager
async def client(services: Services) -> AsyncIterator[Fleet]:
    settings = ProducerSettings(amqp_url=services.amqp_url, redis_url=services.redis_url, result_ttl_s=600)
    async with Fleet.connect(settings) as fleet:
        yield fleet


async def journals(services: Services, jobs: list[Job]) -> list[list[JournalEntry]]:
    store = aioredis.Redis.from_url(services.redis_url, socket_timeout=None, socket_connect_timeout=None)
    try:
        lines: list[Any] = [await store.xrange(journal_key(job.id)) for job in jobs]
    finally:
        await store.aclose()
    return [[parse_line(fields) for _, fields in entries] for entries in lines]


def job_of(
    pool: str, *, tokens: int, step_s: float, priority: Priority = Priority.NORMAL, stream: bool = False
) -> Job:
    """A job whose tokens take ``step_s`` real seconds each."""
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "simulated": {"tokens": tokens, "step_delay_s": step_s},
    }
    return Job(pool=pool, body=body, priority=priority, stream=stream)


def assert_no_token_was_generated_twice(journal: list[JournalEntry], tokens: int) -> None:
    """Its tokens follow each other, whoever generated them, and each attempt wrote down its last ones."""
    # A worker that was starved for long may have reported too late that it held the job's message.
    steps = [
        entry.kind
        for entry in journal
        if not isinstance(entry, TokensEntry)
        and not (isinstance(entry, QueuedEntry) and (entry.republished or entry.promoted))
    ]
    assert steps == ["queued", "running"] * steps.count("running") + ["finished"]
    offset = 0
    for entry in journal:
        if isinstance(entry, TokensEntry):
            assert entry.offset == offset
            offset += sum(len(chunk.token_ids) for chunk in entry.chunks)
    assert offset == tokens


@pytest.mark.timeout(3 * PATIENCE_S)
async def test_a_burst_of_3000_jobs_goes_from_zero_to_the_maximum_and_back_by_the_manifest_of_the_base(
    managed: Services,
) -> None:
    """No job is lost, no token is generated twice, and workers are drained in the middle of answers."""
    wanted = read_scaled_object(BASE_MANIFEST)
    # Most take 3 s. The last ones are few enough that fewer workers are wanted, and they take 30 s: the first
    # worker goes after 10 s of that, and one more every 2 s.
    jobs = [job_of(wanted.pool, tokens=15, step_s=0.2) for _ in range(2850)]
    jobs += [job_of(wanted.pool, tokens=150, step_s=0.2, priority=Priority.BATCH) for _ in range(150)]

    async with (
        autoscaler(
            managed,
            BASE_MANIFEST,
            *("--json", "--until-idle", "--speedup", str(SPEEDUP)),
            management_url=managed.management_url,
            drain_timeout_s="0.5",
        ) as scaler,
        client(managed) as fleet,
    ):
        await scaler.says(f"pool {wanted.pool}, 0 to 8")
        await fleet.submit_many(jobs)
        results = await asyncio.wait_for(asyncio.gather(*(fleet.wait(job) for job in jobs)), PATIENCE_S)
        code, events = await scaler.ended()

    assert code == 0, scaler.errors
    assert [result.state for result in results] == ["succeeded"] * 3000

    first, *between, last = [event for event in events if event["event"] == "scale"]
    assert (first["before"], first["after"], first["by"]) == (0, 1, "keda")
    assert (last["after"], last["by"]) == (0, "keda")
    assert {scale["by"] for scale in between} == {"hpa"}
    assert max(scale["after"] for scale in between) == wanted.max_replicas
    # The base's policies: up by 4 or to the double in a minute, down by one.
    up = [scale for scale in between if scale["after"] > scale["before"]]
    down = [scale for scale in between if scale["after"] < scale["before"]]
    assert all(scale["after"] <= max(scale["before"] + 4, scale["before"] * 2) for scale in up)
    assert all(scale["after"] == scale["before"] - 1 for scale in down)
    for changes in (up, down):
        assert all(later["at_s"] - sooner["at_s"] >= 60 for sooner, later in pairwise(changes))
    # Five minutes at the highest need before the first one goes, and a cooldown after the last work.
    assert down[0]["at_s"] - up[-1]["at_s"] >= 300
    assert last["at_s"] - first["at_s"] >= 300 + wanted.cooldown_period_s

    drains = [event for event in events if event["event"] == "drain"]
    assert max(drain["jobs"] for drain in drains) > 0, "some were drained while busy"
    assert [event["exit_code"] for event in events if event["event"] == "drained"] == [
        0
    ] * wanted.max_replicas
    written = await journals(managed, jobs)
    for job, journal in zip(jobs, written, strict=True):
        assert_no_token_was_generated_twice(journal, job.body["simulated"]["tokens"])
    assert any(isinstance(entry, QueuedEntry) for journal in written for entry in journal[1:]), (
        "some moved on"
    )
    assert events[-1]["event"] == "end"
    assert events[-1]["most"] == wanted.max_replicas


async def until_queued(fleet: Fleet, job: Job, *, after: str) -> AsyncIterator[JournalLine]:
    async for line in fleet.stream(job, after=after):
        yield line
        if isinstance(line.entry, QueuedEntry):
            return


async def test_over_amqp_it_needs_no_management_api(managed: Services, tmp_path: Path) -> None:
    manifest = tmp_path / "scaledobject.yaml"
    manifest.write_text(MANIFEST.format(pool="plain", protocol="amqp"))

    async with (
        autoscaler(managed, manifest, "--json", "--until-idle", "--speedup", "100") as scaler,
        client(managed) as fleet,
    ):
        await scaler.says("pool plain, 0 to 3")
        job = await fleet.submit(Job(pool="plain", body={"messages": [{"role": "user", "content": "hello"}]}))
        result = await asyncio.wait_for(fleet.wait(job), PATIENCE_S)
        code, events = await scaler.ended()

    assert result.state == "succeeded"
    assert code == 0
    assert [event["after"] for event in events if event["event"] == "scale"] == [1, 0]


async def test_the_consumption_time_is_that_of_rabbitmqs_own_rates(managed: Services) -> None:
    """Without deliveries KEDA takes the activation value, here 9999 s."""
    pool = "rates"
    trigger = RabbitMQTrigger(
        name="wait",
        queue=job_queue(pool),
        protocol=Protocol.HTTP,
        mode=Mode.CONSUMPTION_TIME,
        target=30,
        activation=9999,
    )
    async with (
        client(managed) as fleet,
        open_amqp(managed.amqp_url, timeout_s=PATIENCE_S, name="test") as connection,
        open_measurer(
            [trigger],
            amqp_url=managed.amqp_url,
            management_url=managed.management_url,
            prometheus_url=None,
        ) as measurer,
    ):
        await fleet.declare_pool(pool)
        await fleet.submit(job_of(pool, tokens=1, step_s=0))
        (reading,) = await measurer.measure([trigger])
        assert reading.value == 9999

        channel = await connection.channel()
        queue = await channel.get_queue(trigger.queue)
        async with asyncio.timeout(PATIENCE_S):
            # Rates are those between two samples of RabbitMQ's, so something is delivered all the time.
            while (await measurer.measure([trigger]))[0].value in {None, 9999}:
                await (await queue.get()).nack(requeue=True)


async def test_another_server_in_the_place_of_one_that_it_reads_is_a_failed_reading() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"items": [], "hello": 1})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with listening(app, host="127.0.0.1", port=0) as port:
        url = f"http://127.0.0.1:{port}"
        triggers = (
            RabbitMQTrigger(name="jobs", queue=job_queue("chat"), protocol=Protocol.HTTP, target=1),
            PrometheusTrigger(name="age", server=url, query="up", target=1),
        )
        async with open_measurer(
            triggers, amqp_url="amqp://localhost/", management_url=url, prometheus_url=url
        ) as measurer:
            over_http, of_prometheus = await measurer.measure(triggers)

    assert (over_http.value, of_prometheus.value) == (None, None)
    assert "is not RabbitMQ's API (name: is missing)" in over_http.error
    assert "not one of Prometheus' API" in of_prometheus.error


async def test_told_to_end_it_drains_its_workers(managed: Services, tmp_path: Path) -> None:
    manifest = tmp_path / "scaledobject.yaml"
    manifest.write_text(
        MANIFEST.format(pool="ended", protocol="amqp").replace("minReplicaCount: 0", "minReplicaCount: 1")
    )

    async with autoscaler(managed, manifest, drain_timeout_s="0") as scaler, client(managed) as fleet:
        await scaler.says("pool ended, 1 to 3")
        job = await fleet.submit(job_of("ended", tokens=4000, step_s=0.05, stream=True))
        async for line in fleet.stream(job):
            if isinstance(line.entry, TokensEntry):
                break
        await scaler.interrupt()
        last = [later.entry async for later in until_queued(fleet, job, after=line.id)][-1]

    assert isinstance(last, QueuedEntry), "the job went back to the queue"


async def test_counting_over_http_without_an_address_says_what_to_do(
    managed: Services, tmp_path: Path
) -> None:
    manifest = tmp_path / "scaledobject.yaml"
    manifest.write_text(MANIFEST.format(pool="lost", protocol="http"))

    async with autoscaler(managed, manifest) as scaler:
        code, _ = await scaler.ended()

    assert code == 2
    assert "--management-url" in scaler.errors[-1]
    assert "Traceback" not in scaler.errors[-1]


async def test_a_wrong_setting_of_the_workers_ends_it_with_the_workers_own_words(
    managed: Services, tmp_path: Path
) -> None:
    manifest = tmp_path / "scaledobject.yaml"
    manifest.write_text(
        MANIFEST.format(pool="wrong", protocol="amqp").replace("minReplicaCount: 0", "minReplicaCount: 1")
    )

    async with autoscaler(managed, manifest, "--json", engine_args='{"nonsense": 1}') as scaler:
        code, _ = await scaler.ended()

    assert code == 2
    assert "the simulated engine has no argument 'nonsense'" in scaler.errors[-1]
    assert "Traceback" not in scaler.errors[-1]
