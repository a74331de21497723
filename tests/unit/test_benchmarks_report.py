"""What the benchmarks say of the figures they measured."""

from __future__ import annotations

import pytest
from report import medians, ratio_to_ours
from statistic import spread


def test_a_ratio_above_one_means_that_ours_is_better_whatever_the_unit() -> None:
    assert ratio_to_ours("drain, jobs/s", 3000, 1000) == 3
    assert ratio_to_ours("round trip, 1 outstanding, p50 ms", 1, 3) == 3


def test_the_best_comes_first_and_a_figure_that_one_does_not_have_leaves_it_out() -> None:
    figures = {
        "inferfleet": [{"drain, jobs/s": 5.0, "first streamed token, p50 ms": 3.0}],
        "peer": [{"drain, jobs/s": 7.0}, {"drain, jobs/s": 9.0}, {"drain, jobs/s": 8.0}],
    }
    assert list(medians("drain, jobs/s", figures).items()) == [("peer", 8.0), ("inferfleet", 5.0)]
    assert list(medians("first streamed token, p50 ms", figures)) == ["inferfleet"]


def test_the_spread_is_the_largest_distance_from_the_median() -> None:
    assert spread([90, 100, 130]) == pytest.approx(0.3)
    assert spread([5.0]) == 0
