"""The conditions of a list of jobs: what cannot hold is refused, and says why."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from inferfleet.producer import JobFilter
from inferfleet.schemas.errors import InvalidJobError


def test_a_state_may_be_its_name() -> None:
    conditions: Any = {"state": "queued"}
    JobFilter(**conditions).check()


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ({"state": "waiting"}, "state: 'waiting' is not one of queued, running"),
        ({"state": "failed"}, "state: jobs that are failed have ended"),
        ({"priority": "urgent"}, "priority: 'urgent' is not one of 0 to 9"),
        ({"tenant": 5}, "tenant: must be a string, not a number"),
        ({"session_id": b"x"}, "session_id: must be a string, not a bytes"),
        ({"since": datetime(2026, 1, 1)}, "since: must be a time with its time zone"),  # noqa: DTZ001
        ({"until": "yesterday"}, "until: must be a time with its time zone"),
        ({"older_than_s": math.nan}, "older_than_s: must be a number of seconds"),
        ({"older_than_s": math.inf}, "older_than_s: inf is not a number of seconds from 0"),
        ({"older_than_s": -1}, "older_than_s: -1 is not a number of seconds from 0"),
        ({"metadata": {"run": 5}}, "metadata: must be an object whose keys and values are strings"),
        ({"metadata": "run"}, "metadata: must be an object"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(condition: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidJobError, match=f"^{problem}"):
        JobFilter(**condition).check()


def test_conditions_that_can_hold_are_accepted() -> None:
    JobFilter(
        pool="default", priority=9, since=datetime.now(UTC), older_than_s=5, metadata={"run": "x"}
    ).check()
