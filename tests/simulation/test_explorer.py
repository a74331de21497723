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

from inferfleet.local.simulation.mutations import Mutation, MutationError
from inferfleet.local.simulation.plan import FAULTS, Plan, Undisturbed, draw
from inferfleet.local.simulation.scenarios import SCENARIOS

LIMIT_S = 900.0
"""On a busy machine. The longest takes a minute."""

pytestmark = pytest.mark.timeout(LIMIT_S)

RUN = "from inferfleet.local.scripts import explore; explore()"

APPLY = """
import os
from inferfleet.local.simulation.mutations import HARD_TO_FIND, MUTATIONS
for mutation in (MUTATIONS | HARD_TO_FIND).values():
    if not os.fork():
        mutation.apply()
        os._exit(0)
    assert os.wait()[1] == 0, mutation.where
"""

QUICK = 100
"""Faults that are found in so many schedules; ``inferfleet-explore --mutations`` looks for all."""

SOME = 50
"""Each of those faults is found in half as many. Each night ``make explore`` plays schedules for an hour."""

EVENTFUL = "session.2/120:cut=w1-redis,late,6/200:crash=p2/260:repeat=w2-redis/300:stall=w2,60"


def explore(*arguments: str, **environment: str) -> Any:
    """Run the command, and return what it found. Other tests run on the other cores."""
    run = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, "--at-once", "1", "--json"],
        stdout=subprocess.PIPE,
        env=os.environ | environment,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode in {0, 1}
    return orjson.loads(run.stdout)


def test_a_schedule_plays_the_same_in_every_process() -> None:
    one, other = (explore("--replay", EVENTFUL, PYTHONHASHSEED=seed) for seed in ("1", "2"))

    assert one == other


def test_another_schedule_plays_differently() -> None:
    one, other = (
        explore("--replay", plan)[0] for plan in (EVENTFUL, EVENTFUL.replace("200:crash", "150:crash"))
    )

    assert one["trace"] != other["trace"]


def test_schedules_in_a_row_play_the_same_again() -> None:
    row = f"{EVENTFUL}+plain.1/80:crash=w1+{EVENTFUL}"

    one, other = (explore("--replay", row), explore("--replay", row))

    assert one == other
    assert one[0]["trace"] != explore("--replay", EVENTFUL)[0]["trace"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_found_in_some_schedules_of_each_scenario(scenario: str) -> None:
    assert explore("--scenario", scenario, "--schedules", str(SOME), "--minutes", "4") == []


def test_a_delayed_message_that_a_full_queue_drops_is_left_to_the_sweep() -> None:
    assert explore("--replay", "later.3/1230:full=20")[0]["findings"] == []


def test_faults_that_are_put_in_are_found() -> None:
    after = explore("--mutations", "--schedules", str(QUICK))

    assert len(after) >= 15
    assert None not in after.values()


def test_what_each_mutation_changes_is_there() -> None:
    subprocess.run([sys.executable, "-c", APPLY], check=True)


def test_a_mutation_of_a_text_that_is_not_there_fails() -> None:
    with pytest.raises(MutationError):
        Mutation("lua:append", (("no such text", ""),), "plain", 1).apply()


def test_a_plan_is_one_line() -> None:
    trace = ("0.1 p1 1", "0.2 p1>redis.1 30 7", "0.3 redis>p1.1 5 8", "0.4 w1>broker.2 40 9")

    for number in range(100):
        plan = draw(str(number), scenario="plain", undisturbed={2: Undisturbed.of(trace)}, faults=FAULTS)

        assert Plan.parse(str(plan)) == plan
