"""A rollout goes on if the canary keeps the limits, and is aborted if it does not. Without services."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from inferfleet.producer.rollout_steps import next_of
from inferfleet.producer.rollout_tests import ALPHA, TESTS, Verdict, expected_samples, findings
from inferfleet.schemas.ended_counts import EndedCounts, bucket_of, number_above, quantile
from inferfleet.schemas.rollout import Rollout, RolloutPhase

PAGE = Path(__file__).parents[2] / "docs/how-to/roll-out-a-model.md"

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
LATER = BEGIN + timedelta(minutes=10)
ROLLOUT = Rollout(
    pool="chat", to="chat-v2", steps=(5, 50, 100), interval_s=600, started_at=BEGIN, since=BEGIN
)


def ended(jobs: int, *, failed: int = 0, ttft_s: float = 0.4, wait_s: float = 1.0) -> EndedCounts:
    """So many jobs, all with the same times."""
    return EndedCounts(
        succeeded=jobs - failed,
        failed=failed,
        first_token={bucket_of(ttft_s): jobs},
        wait={bucket_of(wait_s): jobs},
    )


def after(
    canary: EndedCounts, *, stable: EndedCounts | None = None, rollout: Rollout = ROLLOUT
) -> Rollout | None:
    return next_of(rollout, stable=stable or ended(10_000), canary=canary, now=LATER)


def test_a_healthy_canary_goes_on_once_the_interval_is_over_and_there_are_enough_samples() -> None:
    assert after(ended(200)) is None, "too few samples to exclude a rate of 2 %"
    assert next_of(ROLLOUT, stable=ended(10_000), canary=ended(400), now=LATER - timedelta(seconds=1)) is None
    gone_on = after(ended(400))
    assert gone_on is not None
    assert (gone_on.phase, gone_on.weight, gone_on.since) == (RolloutPhase.RUNNING, 50, LATER)
    # The next step begins from nothing.
    assert next_of(gone_on, stable=ended(10_000), canary=ended(400), now=LATER + timedelta(hours=1)) is None


def test_after_the_last_step_it_is_promoted_though_there_is_nothing_to_compare_times_with() -> None:
    last = ROLLOUT.model_copy(update={"step": 2, "stable_before": ended(10_000)})
    promoted = after(ended(400), rollout=last)
    assert promoted is not None
    assert (promoted.phase, promoted.weight) == (RolloutPhase.PROMOTED, 100)


@pytest.mark.parametrize(
    ("canary", "why"),
    [
        (ended(600, failed=30), "30 of 600 attempts failed"),
        (ended(300, ttft_s=0.6), "time to first token"),
        (ended(300, wait_s=2.5), "wait"),
    ],
)
def test_a_canary_that_does_worse_is_aborted_at_once_also_while_paused(canary: EndedCounts, why: str) -> None:
    for phase in (RolloutPhase.RUNNING, RolloutPhase.PAUSED):
        rollout = ROLLOUT.model_copy(update={"phase": phase})
        found = next_of(rollout, stable=ended(10_000), canary=canary, now=BEGIN)
        assert found is not None
        assert (found.phase, found.weight) == (RolloutPhase.ABORTING, 0)
        assert why in (found.reason or "")


@pytest.mark.parametrize(
    ("canary", "stable"),
    [
        (ended(1000, failed=20), ended(10_000, failed=200)),
        (ended(1000, ttft_s=0.44), ended(10_000)),
        (ended(1000, wait_s=0.2), ended(10_000, wait_s=0.001)),
    ],
    ids=["as many errors as the pool itself", "a little later", "a wait too short to matter"],
)
def test_what_is_no_worse_than_the_pool_itself_is_not_wrong(canary: EndedCounts, stable: EndedCounts) -> None:
    found = findings(ROLLOUT, stable=stable, canary=canary)
    assert Verdict.WRONG not in {each.verdict for each in found}


def test_a_paused_rollout_stays_and_so_does_one_without_jobs() -> None:
    assert after(ended(4000), rollout=ROLLOUT.model_copy(update={"phase": RolloutPhase.PAUSED})) is None
    assert next_of(ROLLOUT, stable=EndedCounts(), canary=EndedCounts(), now=LATER + timedelta(days=9)) is None


def test_the_number_of_samples_is_the_one_that_the_page_states() -> None:
    alpha = ALPHA / (TESTS * 4)
    expected = expected_samples(0.03, p0=0.01, p1=0.02, alpha=alpha)
    assert f"gives {expected:.0f} attempts on average for errors of 3 %" in PAGE.read_text()


def test_buckets_keep_a_quantile_to_a_few_per_cent() -> None:
    times = [0.05 * math.exp(n / 1000) for n in range(4000)]
    histogram: dict[int, int] = {}
    for time_s in times:
        histogram[bucket_of(time_s)] = histogram.get(bucket_of(time_s), 0) + 1
    for share in (0.05, 0.5, 0.95):
        assert quantile(histogram, share) == pytest.approx(times[int(share * 4000)], rel=0.05)
        assert number_above(histogram, times[int(share * 4000)]) == pytest.approx(
            4000 * (1 - share), rel=0.05
        )


def test_counts_that_began_anew_count_as_they_are() -> None:
    assert ended(10).since(ended(4)) == ended(6)
    assert ended(3).since(ended(4)) == ended(3)


def test_a_canary_that_cannot_serve_the_jobs_for_long_is_aborted_also_while_paused() -> None:
    for phase in (RolloutPhase.RUNNING, RolloutPhase.PAUSED):
        rollout = ROLLOUT.model_copy(update={"phase": phase, "worker_timeout_s": 60.0})
        noted = without_workers(rollout, at=LATER)
        assert noted is not None
        assert (noted.phase, noted.unserved_since, noted.since) == (phase, LATER, BEGIN)
        # A controller that takes over reads since when, and does not count anew.
        assert without_workers(noted, at=LATER + timedelta(seconds=59)) is None
        aborting = without_workers(noted, at=LATER + timedelta(seconds=60))
        assert aborting is not None
        assert (aborting.phase, aborting.weight) == (RolloutPhase.ABORTING, 0)
        assert aborting.reason == "at 5 %: no worker, for 60 s"


def test_a_canary_that_serves_again_in_time_goes_on_with_the_next_step() -> None:
    noted = ROLLOUT.model_copy(update={"unserved_since": BEGIN})
    served = after(ended(400), rollout=noted)
    assert served is not None
    assert (served.unserved_since, served.step) == (None, 0)
    gone_on = after(ended(400), rollout=served)
    assert gone_on is not None
    assert gone_on.step == 1


def test_no_step_begins_while_the_canary_cannot_serve_the_jobs() -> None:
    noted = ROLLOUT.model_copy(update={"unserved_since": LATER})
    assert without_workers(noted, at=LATER + timedelta(seconds=1), canary=ended(400)) is None


def without_workers(rollout: Rollout, *, at: datetime, canary: EndedCounts | None = None) -> Rollout | None:
    return next_of(
        rollout, stable=ended(10_000), canary=canary or EndedCounts(), now=at, unserved="no worker"
    )


STALLED = ROLLOUT.model_copy(update={"stall_timeout_s": 60.0, "stalled_since": BEGIN, "work_done": 7})


def test_a_canary_that_does_nothing_while_jobs_wait_is_aborted_also_while_paused() -> None:
    for phase in (RolloutPhase.RUNNING, RolloutPhase.PAUSED):
        rollout = STALLED.model_copy(update={"phase": phase, "stalled_since": None})
        noted = looked_at(rollout, BEGIN, work_done=7)
        assert noted is not None
        assert (noted.stalled_since, noted.work_done) == (BEGIN, 7)
        assert looked_at(noted, BEGIN + timedelta(seconds=59), work_done=7) is None
        aborting = looked_at(noted, BEGIN + timedelta(seconds=60), work_done=7)
        assert aborting is not None
        assert (aborting.phase, aborting.weight) == (RolloutPhase.ABORTING, 0)
        assert "ended no attempt and generated no token for 60 s" in (aborting.reason or "")


@pytest.mark.parametrize(
    ("found", "since"),
    [
        ({"work_done": 8}, LATER),
        ({"work_done": None}, None),
        ({"work_done": 7, "unserved": "no worker"}, None),
        ({"work_done": 7, "on_hold": True}, None),
    ],
    ids=["a token", "no job waits", "no worker", "on hold"],
)
def test_for_how_long_it_does_nothing_is_counted_anew(found: dict[str, Any], since: datetime | None) -> None:
    after = looked_at(STALLED, LATER, **found)
    assert after is not None
    assert (after.phase, after.stalled_since) == (RolloutPhase.RUNNING, since)


def test_a_busy_canary_in_which_jobs_always_wait_goes_on() -> None:
    gone_on = looked_at(STALLED, LATER, work_done=8, canary=ended(400))
    assert gone_on is not None
    assert gone_on.step == 1


def test_a_canary_that_is_on_hold_is_aborted_by_no_timeout_and_begins_no_step() -> None:
    unserved = ROLLOUT.model_copy(update={"unserved_since": BEGIN})
    held = looked_at(unserved, LATER, unserved="no worker", on_hold=True)
    assert held is not None
    assert (held.phase, held.unserved_since) == (RolloutPhase.RUNNING, None)
    assert looked_at(held, LATER, on_hold=True, canary=ended(400)) is None
    wrong = looked_at(held, LATER, on_hold=True, canary=ended(600, failed=30))
    assert wrong is not None
    assert wrong.phase is RolloutPhase.ABORTING


def looked_at(
    rollout: Rollout, at: datetime, *, canary: EndedCounts | None = None, **found: Any
) -> Rollout | None:
    return next_of(rollout, stable=ended(10_000), canary=canary or EndedCounts(), now=at, **found)
