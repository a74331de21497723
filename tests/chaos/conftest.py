"""A fleet for each test, in a pool of its own, on services that the test may kill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import pytest
from tests.forked import ForkedProcess
from tests.stores import plain_redis
from yarl import URL

from inferfleet.local import worker_processes
from inferfleet.local.chaos import harness as harnesses
from inferfleet.local.chaos.harness import AMQP_HEARTBEAT_S, Harness, Link
from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services import Services
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job, JournalEntry, Result
from inferfleet.schemas.journal import FinishedEntry, RestartedEntry, RunningEntry
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.topology import topology_of
from inferfleet.worker.engines.simulated import expected_text

WAIT_S = 100.0
"""How long a test waits for an end: workers that die start again, which takes a busy machine its time."""


@pytest.fixture(autouse=True)
def quick_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start at once: what happens to them then is what these tests are about."""

    def launch(environment: Mapping[str, str], output: IO[bytes]) -> ForkedProcess:
        return ForkedProcess(
            ["worker"], env=environment, stdout=output, stderr=output, start_new_session=True
        )

    monkeypatch.setattr(worker_processes, "launch", launch)


class NoLink:
    """Several servers of Redis, without a link before them: they name their own addresses to clients."""

    def __init__(self, url: str) -> None:
        self.url = url

    def heal(self) -> None:
        """Nothing is held."""

    def reset(self) -> None:
        """A worker that is killed has sent what it has written."""


async def link_to_the_broker(harness: Harness) -> Link:
    broker_url = str(URL(harness.services.amqp_url).update_query(heartbeat=AMQP_HEARTBEAT_S))
    return Link(
        broker=await harness.stack.enter_async_context(Proxy(broker_url)),
        store=cast("Proxy", NoLink(harness.services.redis_url)),
    )


@pytest.fixture
async def harness(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Harness]:
    if services.broker is None or services.store is None:
        pytest.skip(f"these services cannot be killed: {services.description}")
    if topology_of(services.redis_url) is not None:
        monkeypatch.setattr(harnesses, "_patient_client", plain_redis)
        monkeypatch.setattr(Harness, "link", link_to_the_broker)
    async with Harness.around(services, log_folder=tmp_path) as harness:
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
