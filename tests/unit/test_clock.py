"""Redis' time from its answers, without any Redis."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from inferfleet.wire.redis.clock import RedisClock

REDIS_S = 1_000_000_000.0
"""Redis' time when the tests begin: in 2001."""


def learn(clock: RedisClock, *, asked: float, answered: float, read: float, ahead_s: float = 0.0) -> None:
    """Redis read its clock at ``read``, on the clock of this process."""
    redis_s = REDIS_S + read + ahead_s
    clock.learn([int(redis_s), int(redis_s % 1 * 1e6)], asked=asked, answered=answered)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> RedisClock:
    """A clock in a process whose monotonic clock stands at 0."""
    clock = RedisClock()
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    return clock


def seconds(clock: RedisClock) -> float:
    return clock.now().timestamp() - REDIS_S


def test_until_redis_was_asked_it_is_the_time_of_the_machine() -> None:
    before = datetime.now(UTC)
    assert abs((RedisClock().now() - before).total_seconds()) < 60


def test_it_tells_the_time_of_redis_whatever_the_machine_says(clock: RedisClock) -> None:
    learn(clock, asked=0.0, answered=0.002, read=0.001)
    assert seconds(clock) == pytest.approx(0.0, abs=0.0011)
    assert clock.now_ms() == pytest.approx(REDIS_S * 1000, abs=2)


def test_a_slow_answer_does_not_spoil_what_a_quick_one_told(clock: RedisClock) -> None:
    learn(clock, asked=0.0, answered=0.002, read=0.001)
    learn(clock, asked=1.0, answered=9.0, read=1.001)
    assert seconds(clock) == pytest.approx(0.0, abs=0.0011)


def test_a_quick_answer_makes_a_slow_one_better(clock: RedisClock) -> None:
    learn(clock, asked=0.0, answered=8.0, read=0.001)
    assert abs(seconds(clock)) > 1
    learn(clock, asked=9.0, answered=9.002, read=9.001)
    assert seconds(clock) == pytest.approx(0.0, abs=0.0011)


@pytest.mark.parametrize("ahead_s", [10_800, -10_800, 0.5])
def test_when_another_redis_answers_it_is_believed(clock: RedisClock, ahead_s: float) -> None:
    learn(clock, asked=0.0, answered=0.002, read=0.001)
    learn(clock, asked=1.0, answered=1.002, read=1.001, ahead_s=ahead_s)
    assert seconds(clock) == pytest.approx(ahead_s, abs=0.0011)
