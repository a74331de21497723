"""The statistical tests that decide whether a rollout goes on or is aborted. Pure: counts in, findings out.

Each test is Wald's sequential probability ratio test of a proportion. With ``k`` of ``n`` samples that are
bad, its evidence is the logarithm of the likelihood ratio

    k * ln(p1 / p0) + (n - k) * ln((1 - p1) / (1 - p0))

of a canary that does worse (``p1``) to one that just keeps the limit (``p0``). The canary is found to be
*wrong* as soon as the evidence reaches ``ln(1 / alpha)``, and *right* while it is at most ``ln(beta)``; in
between more samples are needed. However often it is looked at, the ratio of a canary that keeps the limit
reaches ``1 / alpha`` with a probability of at most ``alpha`` (Ville's inequality), so the controller may look
every second. At any one look, the ratio of a canary that is as bad as ``p1`` is at most ``beta`` with a
probability of at most ``beta``. A finding takes about ``ln(1 / alpha) / E[evidence of one sample]`` samples.

    error rate           bad: a failed attempt. p0: the limit, or an upper bound of the rate of the pool
                         itself if that is greater; p1: twice that
    first token, wait    bad: a time above the limit's multiple of a quantile of the pool itself, so p0 is
                         0.5 for the median and 0.05 for the 95th percentile; p1: 0.6 and 0.1. This is the
                         sign test, which assumes nothing about how the times are distributed

``ALPHA`` is for a whole rollout: each test of each step gets its share (Bonferroni). The samples have to be
independent, and the quantiles of the pool known; both hold only approximately, and benchmarks/rollout.py
shows the rates of false findings that result.

Sources: A. Wald, "Sequential Tests of Statistical Hypotheses", Annals of Mathematical Statistics 16 (1945),
117-186, and J. Ville, "Étude critique de la notion de collectif" (1939), whose inequality is theorem 1 in
S. R. Howard et al., "Time-uniform Chernoff bounds via nonnegative supermartingales", Probability Surveys 17
(2020), 257-317.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from inferfleet.schemas.ended_counts import EndedCounts, Histogram, number_above, quantile
from inferfleet.schemas.rollout import Rollout

ALPHA: Final = 0.01
"""The highest probability with which a canary that keeps the limits is aborted."""

BETA: Final = 0.05
"""The highest probability with which a canary that is as bad as ``p1`` passes a step."""

TESTS: Final = 4

STABLE_SAMPLES: Final = 200
"""How many samples of the pool itself a comparison with its quantiles, or its rate of errors, needs."""

LEAST_TTFT_S: Final = 0.01
LEAST_WAIT_S: Final = 0.25
"""Quantiles of the pool itself count as at least this long: a multiple of almost nothing says nothing."""


class Verdict(Enum):
    """What a test has found."""

    RIGHT = auto()
    UNDECIDED = auto()
    WRONG = auto()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one test has found about the canary: its evidence after so many samples."""

    verdict: Verdict
    evidence: float
    samples: int
    what: str
    """What was found, for a person."""


def findings(rollout: Rollout, *, stable: EndedCounts, canary: EndedCounts) -> list[Finding]:
    """Return what the tests find about this step, by what both pools have ended since it began.

    At a weight of 100 there is nothing to compare times with, so only errors are tested.
    """
    alpha = ALPHA / (TESTS * len(rollout.steps))
    found = [_errors(rollout, stable, canary, alpha)]
    if rollout.weight < 100:
        found += _times(rollout, stable, canary, alpha)
    return found


def expected_samples(p: float, *, p0: float, p1: float, alpha: float) -> float:
    """Return about how many samples it takes to find a canary wrong that has the share ``p`` of bad ones."""
    return math.log(1 / alpha) / (p * math.log(p1 / p0) + (1 - p) * math.log((1 - p1) / (1 - p0)))


def base_error_rate(counts: EndedCounts) -> float:
    """Return an upper bound of a pool's share of failures, at a confidence of 95 % (normal approximation).

    With the rate itself, a canary that fails as often would be found wrong whenever the pool was lucky.
    """
    rate = counts.error_rate
    return rate + 1.645 * math.sqrt(rate * (1 - rate) / counts.total) if counts.total else 0.0


def _errors(rollout: Rollout, stable: EndedCounts, canary: EndedCounts, alpha: float) -> Finding:
    known = stable.total >= STABLE_SAMPLES
    base = base_error_rate(stable) if known else rollout.base_error_rate
    p0 = min(0.45, max(rollout.max_error_rate, base))
    return _finding(
        canary.failed,
        canary.total,
        p0=p0,
        p1=2 * p0,
        alpha=alpha,
        what=f"{canary.failed} of {canary.total} attempts failed, a rate of {canary.error_rate:.2%}; "
        f"the limit is {p0:.2%}",
    )


def _times(rollout: Rollout, stable: EndedCounts, canary: EndedCounts, alpha: float) -> Iterator[Finding]:
    ttft = (stable.first_token, canary.first_token, rollout.max_ttft_ratio, LEAST_TTFT_S, alpha)
    wait = (stable.wait, canary.wait, rollout.max_wait_ratio, LEAST_WAIT_S, alpha)
    yield _slower("time to first token", *ttft, share=0.5, p1=0.6)
    yield _slower("time to first token", *ttft, share=0.95, p1=0.1)
    yield _slower("wait", *wait, share=0.5, p1=0.6)


def _slower(
    name: str,
    stable: Histogram,
    canary: Histogram,
    ratio: float,
    least_s: float,
    alpha: float,
    *,
    share: float,
    p1: float,
) -> Finding:
    samples = sum(canary.values())
    p0 = 1 - share
    if sum(stable.values()) < STABLE_SAMPLES:
        return Finding(
            Verdict.UNDECIDED, 0.0, samples, f"too few jobs in the pool itself to compare the {name}"
        )
    own_s = max(least_s, quantile(stable, share))
    limit_s = ratio * own_s
    above = number_above(canary, limit_s)
    rate = above / samples if samples else 0.0
    return _finding(
        above,
        samples,
        p0=p0,
        p1=p1,
        alpha=alpha,
        what=f"the {name} of {rate:.0%} of {samples} jobs is above {limit_s:.3g} s, which is {ratio:g} times "
        f"the one that {p0:.0%} of the pool's own jobs exceed",
    )


def _finding(bad: float, samples: int, *, p0: float, p1: float, alpha: float, what: str) -> Finding:
    evidence = bad * math.log(p1 / p0) + (samples - bad) * math.log((1 - p1) / (1 - p0))
    if evidence >= math.log(1 / alpha):
        verdict = Verdict.WRONG
    elif evidence <= math.log(BETA):
        verdict = Verdict.RIGHT
    else:
        verdict = Verdict.UNDECIDED
    return Finding(verdict, evidence, samples, what)
