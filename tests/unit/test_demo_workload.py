"""The demo's load: the same for the same seed, and mixed as it says."""

from __future__ import annotations

from collections import Counter

import pytest

from inferfleet.local.demo.workload import POOL, SHARES, TASKS, mixed_jobs, urgent_job
from inferfleet.schemas.job import Job, Priority
from inferfleet.schemas.request import check_request

ENGINES = ("simulated", "vllm")


def essentials(jobs: list[Job]) -> list[tuple[int, object]]:
    return [(job.priority, job.body) for job in jobs]


def test_the_same_seed_makes_the_same_jobs() -> None:
    first, again = (mixed_jobs(50, seed=7, engine="simulated") for _ in range(2))

    assert essentials(first) == essentials(again)


def test_another_seed_makes_other_jobs() -> None:
    first, other = (mixed_jobs(50, seed=seed, engine="simulated") for seed in (7, 8))

    assert essentials(first) != essentials(other)


def test_every_job_has_an_id_of_its_own() -> None:
    assert len({job.id for job in mixed_jobs(50, seed=1, engine="simulated")}) == 50


def test_priorities_come_in_their_shares() -> None:
    counts = Counter(job.priority for job in mixed_jobs(2000, seed=1, engine="simulated"))

    assert {priority: count / 2000 for priority, count in counts.items()} == {
        priority: pytest.approx(share, abs=0.04) for priority, share in SHARES.items()
    }


def test_lengths_are_mixed() -> None:
    lengths = [job.body["max_tokens"] for job in mixed_jobs(300, seed=1, engine="simulated")]

    for task in TASKS:
        assert any(task.shortest <= length <= task.longest for length in lengths)


def test_a_real_engine_gets_shorter_answers() -> None:
    simulated, real = (mixed_jobs(50, seed=1, engine=engine) for engine in ENGINES)

    assert max(job.body["max_tokens"] for job in real) <= 256
    assert [job.priority for job in simulated] == [job.priority for job in real]


def test_the_urgent_job_is_streamed_and_goes_first() -> None:
    job = urgent_job(engine="simulated")

    assert job.stream
    assert job.priority == Priority.URGENT > max(SHARES)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_job_keeps_the_contract_and_goes_to_the_demos_pool(engine: str) -> None:
    for job in [*mixed_jobs(50, seed=1, engine=engine), urgent_job(engine=engine)]:
        check_request(job.endpoint, job.body, max_body_bytes=10_000)
        assert job.pool == POOL
