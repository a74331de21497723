"""The deletion cost follows the tokens in flight, and small changes are not worth a request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.journal import TokenChunk
from inferfleet.wire.redis.attempts import Fence, Started, StartStatus
from inferfleet.worker.deletion_cost import HIGHEST_COST, deletion_cost, worth_writing
from inferfleet.worker.job_run import JobRun


class Undelivered:
    """Stands for a delivery; nothing here settles it."""

    reply_to = ""


def run_with(tokens: int) -> JobRun:
    job = Job(endpoint=Endpoint.CHAT, body={"messages": [{"role": "user", "content": "hello"}]})
    run = JobRun(job=job, delivery=cast("Any", Undelivered()))
    run.start(Started(StartStatus.STARTED, Fence("a start", 1), tokens=0, charged=1, reply_to=""))
    if tokens:
        run.add(TokenChunk(token_ids=(1,) * tokens, text="x" * tokens))
    return run


def test_an_idle_worker_costs_nothing() -> None:
    assert deletion_cost([]) == 0


def test_a_job_counts_before_its_first_token_and_then_with_its_tokens() -> None:
    assert deletion_cost([run_with(0)]) == 1
    assert deletion_cost([run_with(0), run_with(300)]) == 302


def test_a_job_that_has_not_started_costs_nothing() -> None:
    job = Job(endpoint=Endpoint.CHAT, body={"messages": [{"role": "user", "content": "hello"}]})
    assert deletion_cost([JobRun(job=job, delivery=cast("Any", Undelivered()))]) == 0


def test_tokens_of_earlier_attempts_count_too() -> None:
    run = run_with(0)
    run.answer.resume((TokenChunk(token_ids=(1, 2, 3), text="abc"),))
    assert deletion_cost([run]) == 4


def test_the_cost_fits_in_what_kubernetes_can_read() -> None:
    class Endless:
        answer = SimpleNamespace(tokens=2**40)
        attempt = 1
        paused = False

    assert deletion_cost([cast("Any", Endless())]) == HIGHEST_COST == 2**31 - 1


@pytest.mark.parametrize(
    ("written", "cost", "expected", "why"),
    [
        (None, 0, True, "the pod may have one from before a restart"),
        (0, 0, False, "idle as before"),
        (0, 1, True, "no longer idle"),
        (1, 0, True, "idle now"),
        (1000, 1100, False, "10 % more"),
        (1000, 1101, True, "more than 10 % more"),
        (1000, 900, False, "10 % less"),
        (1000, 899, True, "more than 10 % less"),
    ],
)
def test_a_cost_is_written_when_it_changed_by_more_than_a_tenth(
    written: int | None, cost: int, expected: bool, why: str
) -> None:
    assert worth_writing(written=written, cost=cost) is expected, why
