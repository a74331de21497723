"""A worker holds what its engine can run and a small look-ahead."""

from __future__ import annotations

import pytest

from inferfleet.worker.intake import wanted


@pytest.mark.parametrize(
    ("held", "waiting", "expected", "why"),
    [
        (0, 0, 72, "an idle engine may fill all its slots"),
        (72, 8, 72, "a full engine keeps its look-ahead"),
        (72, 62, 18, "memory for ten: ten and the look-ahead"),
        (18, 8, 18, "and it stays there while they run"),
        (18, 3, 23, "a little room is filled with a few"),
        (12, 0, 72, "an engine that waits for work gets all it can run"),
        (9, 9, 9, "at least one and the look-ahead"),
        (80, 4, 72, "never more than slots and look-ahead"),
    ],
)
def test_what_is_held_follows_what_the_engine_can_run(
    held: int, waiting: int, expected: int, why: str
) -> None:
    assert wanted(held=held, waiting=waiting, max_running=64, look_ahead=8) == expected, why
