"""How often a rollout is aborted without need, and how often it misses a canary that does worse.

Runs the product's own decisions (``inferfleet.producer.rollout_steps``) in virtual time, without services:
jobs come at random, the rule splits them, and each side ends them with the errors and times of the scenario.

    python benchmarks/rollout.py                    200 seeds of each scenario: about 10 minutes on one core
    python benchmarks/rollout.py --seeds 20 --json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles
from typing import Any, Final

from inferfleet.producer.rollout_steps import next_of
from inferfleet.schemas.ended_counts import EndedCounts, bucket_of
from inferfleet.schemas.rollout import Rollout, RolloutPhase

BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
JOBS_PER_S: Final = 10.0
LOOK_S: Final = 5.0
LONGEST_S: Final = 6 * 3600.0
SPREAD: Final = 0.5
"""The standard deviation of the logarithm of all times: the 95th percentile is 2.3 times the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What the two sides are like. The limits are those of ``inferfleet rollout start``."""

    name: str
    wrong: bool
    """Whether the canary should be aborted."""
    errors: tuple[float, float] = (0.001, 0.001)
    ttft_ratio: float = 1.0
    wait_ratio: float = 1.0


SCENARIOS: Final = (
    Scenario(name="the same", wrong=False),
    Scenario(name="both fail 2 %", wrong=False, errors=(0.02, 0.02)),
    Scenario(name="first token 1.1 x", wrong=False, ttft_ratio=1.1),
    Scenario(name="wait 1.5 x", wrong=False, wait_ratio=1.5),
    Scenario(name="errors at the limit, 1 %", wrong=False, errors=(0.001, 0.01)),
    Scenario(name="errors 2 %", wrong=True, errors=(0.001, 0.02)),
    Scenario(name="errors 3 %", wrong=True, errors=(0.001, 0.03)),
    Scenario(name="first token 1.5 x", wrong=True, ttft_ratio=1.5),
    Scenario(name="wait 3 x", wrong=True, wait_ratio=3.0),
)


@dataclass(slots=True)
class Side:
    """One pool, and what it has ended."""

    errors: float
    ttft_s: float
    wait_s: float
    draw: random.Random
    succeeded: int = 0
    failed: int = 0
    first_token: dict[int, int] = field(default_factory=dict[int, int])
    wait: dict[int, int] = field(default_factory=dict[int, int])

    def end(self, jobs: int) -> None:
        """End so many jobs."""
        for _ in range(jobs):
            if self.draw.random() < self.errors:
                self.failed += 1
            else:
                self.succeeded += 1
            for times, middle_s in ((self.first_token, self.ttft_s), (self.wait, self.wait_s)):
                bucket = bucket_of(middle_s * self.draw.lognormvariate(0, SPREAD))
                times[bucket] = times.get(bucket, 0) + 1

    def counts(self) -> EndedCounts:
        """Return what it has ended."""
        return EndedCounts.model_construct(
            succeeded=self.succeeded,
            failed=self.failed,
            first_token=dict(self.first_token),
            wait=dict(self.wait),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """How a rollout ended: ``None`` if it had not after six hours."""

    phase: RolloutPhase | None
    canary_jobs: int
    hours: float


def run(scenario: Scenario, seed: int, *, interval_s: float = 600.0) -> Run:
    """Run one rollout to its end."""
    draw = random.Random(f"{scenario.name} {seed}")
    stable = Side(scenario.errors[0], 0.4, 1.0, draw)
    canary = Side(scenario.errors[1], 0.4 * scenario.ttft_ratio, scenario.wait_ratio, draw)
    rollout = Rollout(
        pool="chat",
        to="chat-v2",
        steps=(5, 25, 50, 100),
        interval_s=interval_s,
        started_at=BEGIN,
        since=BEGIN,
    )
    elapsed_s = 0.0
    while elapsed_s < LONGEST_S:
        elapsed_s += LOOK_S
        for _ in range(int(JOBS_PER_S * LOOK_S)):
            (canary if draw.random() * 100 < rollout.weight else stable).end(1)
        after = next_of(
            rollout,
            stable=stable.counts(),
            canary=canary.counts(),
            now=BEGIN + timedelta(seconds=elapsed_s),
        )
        rollout = after or rollout
        if rollout.phase is not RolloutPhase.RUNNING:
            return Run(rollout.phase, canary.failed + canary.succeeded, elapsed_s / 3600)
    return Run(None, canary.failed + canary.succeeded, elapsed_s / 3600)


def measure(scenario: Scenario, seeds: int) -> dict[str, Any]:
    """Run a scenario with so many seeds."""
    runs = [run(scenario, seed) for seed in range(seeds)]
    ended = {str(phase): sum(it.phase is phase for it in runs) for phase in {it.phase for it in runs}}
    aborted = sorted(it.canary_jobs for it in runs if it.phase is RolloutPhase.ABORTING)
    return {
        "scenario": scenario.name,
        "should_abort": scenario.wrong,
        "runs": seeds,
        "aborted": ended.get("aborting", 0) / seeds,
        "promoted": ended.get("promoted", 0) / seeds,
        "undecided": ended.get("None", 0) / seeds,
        "canary_jobs_median": median(aborted) if aborted else None,
        "canary_jobs_p95": quantiles(aborted, n=20)[-1] if len(aborted) > 1 else None,
        "hours_median": round(median(it.hours for it in runs), 2),
    }


def main(arguments: Sequence[str]) -> None:
    """Print a row for each scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--scenario", choices=[each.name for each in SCENARIOS])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    for scenario in SCENARIOS:
        if options.scenario in {None, scenario.name}:
            measured = measure(scenario, options.seeds)
            if options.json:
                print(json.dumps(measured), flush=True)
            else:
                print(
                    f"{scenario.name:26} aborted {measured['aborted']:6.1%}  promoted "
                    f"{measured['promoted']:6.1%}  undecided {measured['undecided']:6.1%}  canary jobs until "
                    f"aborted: median {measured['canary_jobs_median']}, p95 {measured['canary_jobs_p95']}; "
                    f"{measured['hours_median']} h",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
