"""``inferfleet autoscale`` on a real RabbitMQ: a burst takes worker processes from zero to many and back."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis

from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.local.services.native import obstacle
from inferfleet.producer import Fleet, JournalLine
from inferfleet.schemas import Job
from inferfleet.schemas.job import Priority
from inferfleet.schemas.journal import JournalEntry, QueuedEntry, TokensEntry
from inferfleet.schemas.names import journal_key
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.records import parse_line

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"native services: {obstacle()}")

PATIENCE_S = 150.0
SPEEDUP = 30
STEP_S = 0.05

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


@pytest.fixture(scope="module")
def managed() -> Iterator[Services]:
    """Services with RabbitMQ's HTTP API, which the other tests do not need and which takes time to start."""
    with running_services(ServicesChoice.NATIVE, management=True) as running:
        yield running


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
    store = aioredis.Redis.from_url(services.redis_url)
    try:
        lines: list[Any] = [await store.xrange(journal_key(job.id)) for job in jobs]
    finally:
        await store.aclose()
    return [[parse_line(fields) for _, fields in entries] for entries in lines]


def job_of(pool: str, *, tokens: int, priority: Priority = Priority.NORMAL, stream: bool = False) -> Job:
    """A job whose tokens take ``STEP_S`` real seconds each."""
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "simulated": {"tokens": tokens, "step_delay_s": STEP_S},
    }
    return Job(pool=pool, body=body, priority=priority, stream=stream)


def assert_no_token_was_generated_twice(journal: list[JournalEntry], tokens: int) -> None:
    """Its tokens follow each other, whoever generated them, and each attempt wrote down its last ones."""
    steps = [entry.kind for entry in journal if not isinstance(entry, TokensEntry)]
    assert steps == ["queued", "running"] * steps.count("running") + ["finished"]
    offset = 0
    for entry in journal:
        if isinstance(entry, TokensEntry):
            assert entry.offset == offset
            offset += sum(len(chunk.token_ids) for chunk in entry.chunks)
    assert offset == tokens


async def test_a_burst_goes_from_zero_to_the_maximum_and_back_without_losing_a_job_or_a_token(
    managed: Services, tmp_path: Path
) -> None:
    pool = "burst"
    manifest = tmp_path / "scaledobject.yaml"
    manifest.write_text(MANIFEST.format(pool=pool, protocol="http"))
    # Most take 2 s, and the last ones 15 s: those are in the workers when fewer are wanted.
    jobs = [job_of(pool, tokens=40) for _ in range(270)]
    jobs += [job_of(pool, tokens=300, priority=Priority.BATCH) for _ in range(30)]

    async with (
        autoscaler(
            managed,
            manifest,
            *("--json", "--until-idle", "--speedup", str(SPEEDUP)),
            management_url=managed.management_url,
            max_running="16",
            look_ahead="4",
            drain_timeout_s="0.5",
        ) as scaler,
        client(managed) as fleet,
    ):
        await scaler.says(f"pool {pool}, 0 to 3")
        await fleet.submit_many(jobs)
        results = await asyncio.wait_for(asyncio.gather(*(fleet.wait(job) for job in jobs)), PATIENCE_S)
        code, events = await scaler.ended()

    assert code == 0, scaler.errors
    assert [result.state for result in results] == ["succeeded"] * 300

    scales = [event for event in events if event["event"] == "scale"]
    assert [(scale["before"], scale["after"], scale["by"]) for scale in scales] == [
        (0, 1, "keda"),
        (1, 2, "hpa"),
        (2, 3, "hpa"),
        (3, 2, "hpa"),
        (2, 1, "hpa"),
        (1, 0, "keda"),
    ]
    at = [scale["at_s"] for scale in scales]
    # By the manifest's numbers: one more in 30 s, one less in 60 s; and zero a cooldown after the last work.
    assert at[2] - at[1] >= 30
    assert at[4] - at[3] >= 60
    assert at[5] - at[0] >= 240

    drains = [event for event in events if event["event"] == "drain"]
    assert max(drain["jobs"] for drain in drains) > 0, "some were drained while busy"
    assert [event["exit_code"] for event in events if event["event"] == "drained"] == [0, 0, 0]
    written = await journals(managed, jobs)
    for job, journal in zip(jobs, written, strict=True):
        assert_no_token_was_generated_twice(journal, job.body["simulated"]["tokens"])
    assert any(isinstance(entry, QueuedEntry) for journal in written for entry in journal[1:]), (
        "some moved on"
    )
    assert events[-1]["event"] == "end"
    assert events[-1]["most"] == 3


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


async def test_told_to_end_it_drains_its_workers(managed: Services, tmp_path: Path) -> None:
    manifest = tmp_path / "scaledobject.yaml"
    manifest.write_text(
        MANIFEST.format(pool="ended", protocol="amqp").replace("minReplicaCount: 0", "minReplicaCount: 1")
    )

    async with autoscaler(managed, manifest, drain_timeout_s="0") as scaler, client(managed) as fleet:
        await scaler.says("pool ended, 1 to 3")
        job = await fleet.submit(job_of("ended", tokens=4000, stream=True))
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
