"""Numbers and times of the web page, where rounding meets the next unit."""

from __future__ import annotations

import pytest

from inferfleet.gateway.ui import words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0, "0 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (3599.6, "1 h"),
        (7500, "2 h 5 min"),
        (86_399.6, "1 d"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_time_has_the_unit_that_it_is_rounded_to(seconds: float | None, said: str) -> None:
    assert words.lasting(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"), [(None, "–"), (0, "0"), (9.94, "9.9"), (9.96, "10"), (1234.5, "1,234"), (3.0, "3")]
)
def test_a_count_has_a_decimal_below_ten(number: float | None, said: str) -> None:
    assert words.count(number) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(1023, "1,023 bytes"), (1024, "1.0 KiB"), (1024**2 - 1, "1.0 MiB"), (1024**3 - 1, "1.0 GiB")],
)
def test_a_size_has_the_unit_that_it_is_rounded_to(number: int, said: str) -> None:
    assert words.size(number) == said
