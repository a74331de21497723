"""How tenants share a pool, in simulated time: what each policy of priorities does to waits and shares.

    python benchmarks/shares.py

A pool of 16 slots, in which an answer takes as long as its tokens. RabbitMQ is a queue by priority, and every
twentieth start goes to the job that has waited longest (decision 32). When a job is submitted, a policy says
whether it waits at the priority that was asked for, above it or below it. Decision 38 has the results.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from inferfleet.schemas.shares import COMPETES, HALF_LIFE_S, PREFERRED_PER_SLOT

SLOTS = 16
TOKENS_PER_S = 140.0
"""How fast a slot generates."""
PROMPT = 100
OLDEST_EVERY = 20
BELOW, ASKED, ABOVE = -1, 0, 1
UNTIL_S = 400.0
WARM_S = 100.0
"""From when on waits and shares are measured."""
FLOOD = 100_000


@dataclass(slots=True, eq=False)
class Job:
    """A job. ``expected`` is its service as known when it is submitted."""

    tenant: str
    at: float
    tokens: int
    expected: float
    ended_at: float = math.inf

    @property
    def service(self) -> float:
        """Return what it turns out to be: tokens of the prompt, and twice those of the answer."""
        return PROMPT + 2.0 * self.tokens


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant that submits ``flood`` jobs at ``from_s``, and then ``per_s`` a second.

    The lengths of the answers of a tenant that has not ``told`` them are expected to be 50.
    """

    name: str
    per_s: float = 0.0
    flood: int = 0
    from_s: float = 0.0
    mean_tokens: float = 50.0
    varies: bool = False
    told: bool = True
    weight: float = 1.0

    def jobs(self) -> Iterator[Job]:
        """Yield its jobs, in the order of their submission."""
        chance = random.Random(self.name)

        def job(at: float) -> Job:
            tokens = chance.expovariate(1 / self.mean_tokens) if self.varies else self.mean_tokens
            expected = PROMPT + 2 * (self.mean_tokens if self.told else 50.0)
            return Job(self.name, at, max(1, round(tokens)), expected)

        for _ in range(self.flood):
            yield job(self.from_s)
        at = self.from_s
        while self.per_s and (at := at + chance.expovariate(self.per_s)) <= UNTIL_S:
            yield job(at)


class Policy:
    """Leaves every job where it is: what RabbitMQ does alone."""

    name = "none"

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self.weights = {tenant.name: tenant.weight for tenant in tenants}

    def level(self, job: Job, now: float) -> int:
        """Say where a job waits that is submitted now."""
        return ASKED

    def ended(self, job: Job, now: float) -> None:
        """Note the end of a job."""


class Guarantees(Policy):
    """Decision 34, with rates that divide all that the pool serves among the tenants."""

    name = "guarantees"

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        super().__init__(tenants)
        served_per_s = FULL * (PROMPT + 2 * 50)
        of_all = sum(self.weights.values())
        self.per_s = {name: served_per_s * weight / of_all for name, weight in self.weights.items()}
        self.used_until: defaultdict[str, float] = defaultdict(float)

    def level(self, job: Job, now: float) -> int:
        used = max(self.used_until[job.tenant], now)
        if used - now >= 2.0:
            return BELOW
        self.used_until[job.tenant] = used + job.expected / self.per_s[job.tenant]
        return ASKED


class Window(Policy):
    """So many unfinished jobs of a tenant are preferred, whatever it has been served."""

    most = SLOTS
    name = "a window of a job for each slot"

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        super().__init__(tenants)
        self.preferred: set[Job] = set()
        self.counts: defaultdict[str, int] = defaultdict(int)

    def prefers(self, job: Job, now: float) -> bool:
        """Return whether a job is preferred."""
        return self.counts[job.tenant] < self.most * self.weights[job.tenant]

    def level(self, job: Job, now: float) -> int:
        if not self.prefers(job, now):
            return ASKED
        self.preferred.add(job)
        self.counts[job.tenant] += 1
        return ABOVE

    def ended(self, job: Job, now: float) -> None:
        if job in self.preferred:
            self.preferred.remove(job)
            self.counts[job.tenant] -= 1


class Attained(Window):
    """A tenant that was served no more than the mean of those that compete is preferred, without a window."""

    most = FLOOD
    name = "attained service: preferred"
    competes = 0.0

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        super().__init__(tenants)
        self.work: defaultdict[str, float] = defaultdict(float)
        self.jobs: defaultdict[str, float] = defaultdict(float)
        self.decayed_at = 0.0

    def prefers(self, job: Job, now: float) -> bool:
        self._decay(now)
        all_jobs = sum(self.jobs.values())
        of_all = sum(self.work.values()) / all_jobs if all_jobs >= 0.01 else 1.0
        service = {
            name: (work + self.counts[name] * (work / jobs if (jobs := self.jobs[name]) >= 0.01 else of_all))
            / self.weights[name]
            for name, work in [*self.work.items(), *([] if job.tenant in self.work else [(job.tenant, 0.0)])]
        }
        least = self.competes * max(service.values())
        those = [each for name, each in service.items() if (each and each >= least) or name == job.tenant]
        fair = sum(those) / len(those)
        return service[job.tenant] <= fair * (1 + 1e-6) and super().prefers(job, now)

    def ended(self, job: Job, now: float) -> None:
        super().ended(job, now)
        self._decay(now)
        self.work[job.tenant] += job.service
        self.jobs[job.tenant] += 1

    def _decay(self, now: float) -> None:
        left = 0.5 ** ((now - self.decayed_at) / HALF_LIFE_S)
        self.decayed_at = now
        for name in self.work:
            self.work[name] *= left
            self.jobs[name] *= left


class Demoting(Attained):
    """The same, but others wait at the level below, unless they are alone."""

    name = "attained service: demoted"

    def level(self, job: Job, now: float) -> int:
        level = super().level(job, now)
        alone = all(name == job.tenant for name, work in self.work.items() if work > 1)
        return ASKED if level == ABOVE or alone else BELOW


class FairShares(Attained):
    """What ``INFERFLEET_FAIR_SHARES`` does."""

    most = PREFERRED_PER_SLOT * SLOTS
    competes = COMPETES
    name = "fair shares"


POLICIES: Final = (Policy, Guarantees, Demoting, Attained, Window, FairShares)


def run(policy: Policy, tenants: Iterable[Tenant]) -> dict[str, list[Job]]:
    """Return the jobs of each tenant that ended until ``UNTIL_S``."""
    arrivals = heapq.merge(*(tenant.jobs() for tenant in tenants), key=lambda job: job.at)
    queues: dict[int, deque[Job]] = {level: deque() for level in (ABOVE, ASKED, BELOW)}
    running: list[tuple[float, int, Job]] = []
    done: defaultdict[str, list[Job]] = defaultdict(list)
    number = count()
    starts, highest, now = 0, BELOW, 0.0
    coming = next(arrivals, None)
    while (coming is not None or running) and now <= UNTIL_S:
        if coming is not None and (not running or coming.at <= running[0][0]):
            now = coming.at
            queues[policy.level(coming, now)].append(coming)
            coming = next(arrivals, None)
        else:
            now, _, job = heapq.heappop(running)
            job.ended_at = now
            policy.ended(job, now)
            done[job.tenant].append(job)
        while len(running) < SLOTS and (waiting := [level for level in queues if queues[level]]):
            starts += 1
            level = waiting[0]
            highest = max(highest, level)
            if starts % OLDEST_EVERY == 0:
                lower = [each for each in waiting if each < highest]
                level = min(lower, key=lambda each: queues[each][0].at, default=level)
                highest = BELOW
            job = queues[level].popleft()
            heapq.heappush(running, (now + job.tokens / TOKENS_PER_S, next(number), job))
    return done


def jain(shares: list[float]) -> float:
    """Return Jain's index: 1 if all are equal, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def service_per_s(done: Mapping[str, list[Job]], tenant: Tenant) -> float:
    """Return what a tenant got a second after the warm-up."""
    return sum(job.service for job in done[tenant.name] if job.ended_at > WARM_S) / (UNTIL_S - WARM_S)


def p99_s(done: Mapping[str, list[Job]], tenant: Tenant) -> float:
    """Return the 99th percentile from submit to end; what has not ended has waited for ever."""
    submitted = sum(WARM_S < job.at < UNTIL_S - 1 for job in tenant.jobs())
    taken = sorted(job.ended_at - job.at for job in done[tenant.name] if WARM_S < job.at < UNTIL_S - 1)
    taken += [math.inf] * (submitted - len(taken))
    return taken[int(len(taken) * 0.99)]


FULL = SLOTS * TOKENS_PER_S / 50
"""Jobs of 50 tokens that the pool ends a second: about 45."""

BESIDE: dict[str, tuple[float, list[Tenant]]] = {
    "10/s beside 100,000 jobs that wait": (10, [Tenant("heavy", flood=FLOOD)]),
    "10/s beside twice as much as fits": (10, [Tenant("heavy", per_s=2 * FULL)]),
    "20/s beside twice as much as fits": (20, [Tenant("heavy", per_s=2 * FULL)]),
    "3/s beside nine with twice their shares": (
        3,
        [Tenant(f"heavy-{n}", per_s=FULL / 5) for n in range(9)],
    ),
    "3/s beside one, and 100,000 of another later": (
        3,
        [Tenant("heavy", per_s=2 * FULL), Tenant("late", flood=FLOOD, from_s=200.0)],
    ),
    "3/s beside five heavy and twenty small ones": (
        3,
        [
            *(Tenant(f"heavy-{n}", per_s=FULL / 5 * (1.5 + 2 * n)) for n in range(5)),
            *(Tenant(f"small-{n}", per_s=0.2) for n in range(20)),
        ],
    ),
    "10/s beside answers of 500 tokens": (10, [Tenant("heavy", per_s=FULL, mean_tokens=500, varies=True)]),
}

TOGETHER: dict[str, list[Tenant]] = {
    "ten, 1.5 to 10 times their shares": [
        Tenant(f"t{n}", per_s=FULL / 10 * (1.5 + n * 8.5 / 9)) for n in range(10)
    ],
    "two, 1.2 and 10 times": [Tenant("a", per_s=FULL * 0.6), Tenant("b", per_s=FULL * 5)],
    "ten, answers of 25 to 400, known": [
        Tenant(f"t{n}", per_s=FULL / 3, mean_tokens=25 * 2 ** (n % 5), varies=True) for n in range(10)
    ],
    "ten, answers of 25 to 400, unknown": [
        Tenant(f"t{n}", per_s=FULL / 3, mean_tokens=25 * 2 ** (n % 5), varies=True, told=False)
        for n in range(10)
    ],
    "ten, weights of 1 to 4": [Tenant(f"t{n}", per_s=FULL, weight=1 + n % 4) for n in range(10)],
    "ten, one of them from 200 s on": [
        Tenant("late", per_s=FULL, from_s=200.0),
        *(Tenant(f"t{n}", per_s=FULL / 3) for n in range(9)),
    ],
    "ten, 20,000 jobs each, one after the other": [
        Tenant(f"t{n}", flood=20_000, from_s=n * 0.1) for n in range(10)
    ],
}


def table(title: str, cells: Mapping[str, Callable[[type[Policy]], str]]) -> None:
    """Print a row for each situation, and a column for each policy."""
    print(f"| {title} | " + " | ".join(policy.name for policy in POLICIES) + " |")
    print("|---" * (len(POLICIES) + 1) + "|")
    for name, cell in cells.items():
        print(f"| {name} | " + " | ".join(cell(policy) for policy in POLICIES) + " |", flush=True)


def main() -> None:
    """Print both tables."""

    def wait(per_s: float, others: list[Tenant]) -> Callable[[type[Policy]], str]:
        light = Tenant("light", per_s=per_s)
        alone = p99_s(run(Policy([light]), [light]), light)

        def measure(policy: type[Policy]) -> str:
            tenants = [light, *others]
            times = p99_s(run(policy(tenants), tenants), light) / alone
            return "starves" if math.isinf(times) else f"{times:.1f}"

        return measure

    def share(tenants: list[Tenant]) -> Callable[[type[Policy]], str]:
        everything = run(Policy(tenants), tenants)
        before = sum(service_per_s(everything, tenant) for tenant in tenants)

        def measure(policy: type[Policy]) -> str:
            done = run(policy(tenants), tenants)
            served = [service_per_s(done, tenant) for tenant in tenants]
            index = jain([each / tenant.weight for each, tenant in zip(served, tenants, strict=True)])
            return f"{index:.2f}, {sum(served) / before:.2f}"

        return measure

    table("p99 ÷ alone", {name: wait(*of) for name, of in BESIDE.items()})
    print()
    table("Jain's index, and service ÷ none", {name: share(of) for name, of in TOGETHER.items()})


if __name__ == "__main__":
    main()
