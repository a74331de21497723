"""The demo's load: the same for the same seed, and mixed as it says."""

from __future__ import annotations

from collections import Counter

import pytest

from inferfleet.local.demo.workload import POOL, QUESTIONS, SHARES, SIMULATED, Workload, workload_for
from inferfleet.schemas.job import Job, Priority
from inferfleet.schemas.request import check_request


def essentials(jobs: list[Job]) -> list[tuple[int, object]]:
    return [(job.priority, job.body) for job in jobs]


def test_the_same_seed_makes_the_same_jobs() -> None:
    first, again = (SIMULATED.mixed_jobs(50, seed=7) for _ in range(2))

    assert essentials(first) == essentials(again)


def test_another_seed_makes_other_jobs() -> None:
    first, other = (SIMULATED.mixed_jobs(50, seed=seed) for seed in (7, 8))

    assert essentials(first) != essentials(other)


def test_every_job_has_an_id_of_its_own() -> None:
    assert len({job.id for job in SIMULATED.mixed_jobs(50, seed=1)}) == 50


def test_priorities_come_in_their_shares() -> None:
    counts = Counter(job.priority for job in SIMULATED.mixed_jobs(2000, seed=1))

    assert {priority: count / 2000 for priority, count in counts.items()} == {
        priority: pytest.approx(share, abs=0.04) for priority, share in SHARES.items()
    }


@pytest.mark.parametrize("workload", [SIMULATED, QUESTIONS])
def test_lengths_are_mixed(workload: Workload) -> None:
    lengths = [job.body["max_tokens"] for job in workload.mixed_jobs(300, seed=1)]

    for task in workload.tasks:
        assert any(task.shortest <= length <= task.longest for length in lengths)


def test_only_the_simulated_engine_gets_work_without_a_question() -> None:
    assert workload_for("simulated") is SIMULATED
    assert workload_for("vllm") is QUESTIONS


@pytest.mark.parametrize("workload", [SIMULATED, QUESTIONS])
def test_the_worker_dies_in_the_middle_of_the_urgent_answer(workload: Workload) -> None:
    assert 0 < workload.kill_after_tokens <= workload.urgent_tokens / 2


def test_an_answer_to_a_question_is_the_same_wherever_it_is_generated() -> None:
    assert all(
        job.body["temperature"] == 0 for job in [*QUESTIONS.mixed_jobs(50, seed=1), QUESTIONS.urgent_job()]
    )


@pytest.mark.parametrize("workload", [SIMULATED, QUESTIONS])
def test_the_urgent_job_is_streamed_and_goes_first(workload: Workload) -> None:
    job = workload.urgent_job()

    assert job.stream
    assert job.priority == Priority.URGENT > max(SHARES)


@pytest.mark.parametrize("workload", [SIMULATED, QUESTIONS])
def test_every_job_keeps_the_contract_and_goes_to_the_demos_pool(workload: Workload) -> None:
    for job in [*workload.mixed_jobs(50, seed=1), workload.urgent_job()]:
        check_request(job.endpoint, job.body, max_body_bytes=10_000)
        assert job.pool == POOL
