"""What the exporter makes of RabbitMQ's counters."""

from __future__ import annotations

import pytest

from inferfleet.exporter.estimates import OldestAge, Throughput
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import read_settings


def ages(*samples: tuple[float, int, int]) -> list[float]:
    """The age after each sample of (time, published so far, ready)."""
    oldest = OldestAge()
    return [oldest.observe(now=now, published=published, ready=ready) for now, published, ready in samples]


def rates(*samples: tuple[float, int, int, int]) -> list[float | None]:
    """The throughput after each sample of (time, acked so far, work, ready workers)."""
    throughput = Throughput()
    return [
        throughput.observe(now=now, acked=acked, work=work, ready_workers=ready_workers)
        for now, acked, work, ready_workers in samples
    ]


def test_with_nothing_ready_nobody_waits() -> None:
    assert ages((0, 7, 0), (5, 9, 0)) == [0, 0]


def test_a_job_ages_from_the_last_look_before_it_came() -> None:
    assert ages((0, 7, 0), (5, 7, 0), (10, 8, 1), (30, 8, 1)) == [0, 0, 5, 25]


def test_when_the_oldest_leaves_the_next_one_counts() -> None:
    #    two come by 10 s, three more by 20 s; then two leave
    assert ages((5, 0, 0), (10, 2, 2), (15, 2, 2), (20, 5, 5), (25, 5, 3)) == [0, 5, 10, 15, 10]


def test_what_waited_before_the_first_look_is_at_least_as_old_as_that() -> None:
    assert ages((100, 50, 20), (160, 50, 20)) == [0, 60]


def test_a_job_that_was_given_back_is_as_old_as_it_is() -> None:
    assert ages((0, 0, 0), (5, 1, 0), (60, 1, 1)) == [0, 0, 60]


def test_counters_that_begin_again_are_not_compared_with_the_old_ones() -> None:
    assert ages((0, 1000, 0), (5, 1001, 1), (10, 1, 1), (20, 1, 1)) == [0, 5, 0, 10]


def test_throughput_is_unknown_before_the_first_job_has_ended() -> None:
    assert rates((0, 0, 0, 0), (5, 0, 9, 1), (10, 0, 9, 1)) == [None, None, None]


def test_throughput_is_the_mean_of_the_last_minute() -> None:
    assert rates((0, 0, 90, 1), (30, 60, 90, 1), (60, 90, 90, 1), (90, 120, 90, 1)) == [None, 2, 1.5, 1]


def test_counters_that_are_read_often_count_from_their_first_change() -> None:
    """They change every five seconds: nobody knows how long the first change took."""
    samples = [(0, 0, 90, 1), (0.2, 20, 70, 1), (5, 20, 70, 1), (5.2, 40, 50, 1), (10.2, 60, 30, 1)]

    assert rates(*samples) == [None, None, None, pytest.approx(4), pytest.approx(60 / 10.2)]


def test_idle_time_is_no_slow_work() -> None:
    assert rates((0, 0, 0, 1), (1000, 0, 0, 1), (1010, 20, 5, 1)) == [None, None, 2]


def test_while_nothing_ends_the_last_rate_of_one_worker_predicts() -> None:
    samples = [(0, 0, 50, 4), (10, 80, 50, 4), (20, 80, 0, 0), (500, 80, 30, 0), (505, 80, 30, 2)]

    assert rates(*samples) == [None, 8, 2, 2, 4]


def test_counters_of_a_restarted_broker_make_no_negative_rate() -> None:
    assert rates((0, 100, 9, 1), (10, 120, 9, 1), (20, 3, 9, 1), (30, 33, 9, 1)) == [None, 2, 2, 3]


def test_pools_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLEET_POOLS", "chat, embed,")

    assert read_settings(ExporterSettings).pools == ("chat", "embed")


def test_an_address_that_is_not_http_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLEET_MANAGEMENT_URL", "amqp://keda:secret@rabbitmq:15672")

    with pytest.raises(
        ConfigurationError, match="INFERFLEET_MANAGEMENT_URL: it must start with http"
    ) as caught:
        read_settings(ExporterSettings)
    assert "secret" not in str(caught.value)
