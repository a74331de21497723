"""A fleet for each test, in a pool of its own, on services that the test may kill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest
from tests.forked import ForkedProcess
from tests.patience import PATIENCE_S
from tests.stores import plain_redis

from inferfleet.local import worker_processes
from inferfleet.local.chaos import harness as harnesses
from inferfleet.local.chaos.harness import Harness
from inferfleet.local.services import Services
from inferfleet.local.services.choice import Fsync
from inferfleet.local.services.redis_cluster import RedisCluster
from inferfleet.local.services.redis_process import RedisProcess
from inferfleet.local.services.redis_sentinels import RedisSentinels
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job, JournalEntry, Result
from inferfleet.schemas.journal import FinishedEntry, RestartedEntry, RunningEntry
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker.engines.simulated import expected_text

WAIT_S = PATIENCE_S
"""How long a test waits for an end: workers that die start again, which takes a busy machine its time."""


@pytest.fixture(autouse=True)
def quick_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start at once: what happens to them then is what these tests are about."""

    def launch(environment: Mapping[str, str], output: IO[bytes]) -> ForkedProcess:
        return ForkedProcess(
            ["worker"], env=environment, stdout=output, stderr=output, start_new_session=True
        )

    monkeypatch.setattr(worker_processes, "launch", launch)


@pytest.fixture
async def harness(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Harness]:
    if services.broker is None or services.store is None:
        pytest.skip(f"these services cannot be killed: {services.description}")
    named_servers: Mapping[int, int] = {}
    if isinstance(services.store, RedisCluster | RedisSentinels):
        monkeypatch.setattr(harnesses, "_patient_client", plain_redis)
        named_servers = services.store.named_servers
    async with Harness.around(services, log_folder=tmp_path, named_servers=named_servers) as harness:
        if isinstance(services.store, RedisProcess):
            # With everysec, a kill while the disk is slow may lose up to 2 s of what Redis has answered.
            await harness.redis.config_set("appendfsync", Fsync.ALWAYS)
        yield harness


@pytest.fixture
async def fleet(harness: Harness) -> AsyncIterator[Fleet]:
    settings = ProducerSettings(
        amqp_url=harness.services.amqp_url,
        redis_url=harness.services.redis_url,
        patience_s=WAIT_S,
        state_check_interval_s=1.0,
    )
    async with Fleet.connect(settings) as fleet:
        await fleet.declare_pool(harness.pool)
        yield fleet


def prompt(text: str, *, tokens: int, **hooks: Any) -> dict[str, Any]:
    """A request whose answer has so many tokens; each takes ``DECODE_STEP_S``."""
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "simulated": {"tokens": tokens, **hooks},
    }


def attempts(journal: list[JournalEntry]) -> list[RunningEntry]:
    return [entry for entry in journal if isinstance(entry, RunningEntry)]


def restarts(journal: list[JournalEntry]) -> list[RestartedEntry]:
    return [entry for entry in journal if isinstance(entry, RestartedEntry)]


def ends(journal: list[JournalEntry]) -> list[FinishedEntry]:
    return [entry for entry in journal if isinstance(entry, FinishedEntry)]


async def require_whole(harness: Harness, job: Job, result: Result) -> list[JournalEntry]:
    """The job succeeded once, with the text of an uninterrupted run, and nothing started again."""
    assert result.raise_for_state().text == expected_text(job.endpoint, job.body)
    journal = await harness.journal(job.id)
    assert len(ends(journal)) == 1
    assert not restarts(journal)
    return journal
