"""The explorer: a schedule plays the same each time, and what it must find is found.

Each run is a process of its own, because a simulated fleet replaces the clock of its process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import orjson
import pytest

from inferfleet.local.simulation.mutations import MUTATIONS
from inferfleet.local.simulation.plan import FAULTS, Plan, draw
from inferfleet.local.simulation.scenarios import SCENARIOS

RUN = "from inferfleet.local.simulation.cli import main; main()"

EVENTFUL = "session.2/120:cut=w1-redis,late,6/200:crash=p2/260:repeat=w2-redis/300:stall=w2,60"


def explore(*arguments: str, **environment: str) -> list[dict[str, Any]]:
    """Run the command, and return what it found."""
    run = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, "--json"],
        stdout=subprocess.PIPE,
        env=os.environ | environment,
        timeout=280,
        check=False,
    )
    assert run.returncode in {0, 1}
    found: list[dict[str, Any]] = orjson.loads(run.stdout)
    return found


def test_a_schedule_plays_the_same_in_every_process() -> None:
    one, other = (explore("--replay", EVENTFUL, PYTHONHASHSEED=seed)[0] for seed in ("1", "2"))

    assert one == other


def test_another_schedule_plays_differently() -> None:
    one, other = (explore("--replay", plan)[0] for plan in (EVENTFUL, EVENTFUL.replace("300", "301")))

    assert one["trace"] != other["trace"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_found_in_some_schedules_of_each_scenario(scenario: str) -> None:
    assert explore("--scenario", scenario, "--minutes", "0.2") == []


@pytest.mark.parametrize("mutation", [name for name, each in MUTATIONS.items() if each.within <= 60])
def test_a_fault_that_was_put_in_is_found(mutation: str) -> None:
    each = MUTATIONS[mutation]

    found = explore(
        *(
            "--mutation",
            mutation,
            "--scenario",
            each.scenario,
            "--schedules",
            str(each.within),
            "--stop-after",
            "1",
        ),
        *("--minutes", "4"),
    )

    assert found


def test_a_plan_is_one_line() -> None:
    sources = [("p1", "p1>redis.1", "redis>p1.1", "w1>broker.2")] * 3

    for number in range(100):
        plan = draw(str(number), scenario="plain", sources=sources, faults=FAULTS)

        assert Plan.parse(str(plan)) == plan
