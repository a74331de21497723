"""How tenants share a pool, in simulated time: what each policy of priorities does to waits and shares.

    python benchmarks/shares.py

One pool of 16 slots; an answer takes as long as its tokens. RabbitMQ is a queue by priority, and every
twentieth start goes to the job that has waited longest. A policy says, when a job is submitted, on which of
three levels it waits: above, at, or below the priority that it asked for. Nothing here needs a service.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

SLOTS = 16
TOKENS_PER_S = 140.0
"""How fast a slot generates."""
PROMPT = 100
OLDEST_EVERY = 20
FLOOD = 100_000
LOW, ASKED, HIGH = -1, 0, 1
UNTIL_S = 600.0
WARM_S = 120.0
"""From when on waits and shares are measured."""


@dataclass(slots=True, eq=False)
class Job:
    """A job. ``work`` is what it turns out to be, and ``expected`` what is known at its submission."""

    tenant: str
    at: float
    tokens: int
    expected: float
    level: int = ASKED
    started: bool = False
    ended_at: float = math.inf

    @property
    def work(self) -> float:
        return PROMPT + 2.0 * self.tokens


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant that submits ``flood`` jobs at ``from_s``, and then ``per_s`` a second."""

    name: str
    per_s: float = 0.0
    flood: int = 0
    from_s: float = 0.0
    until_s: float = UNTIL_S
    mean_tokens: float = 50.0
    fixed: bool = True
    told: bool = True
    """Whether the lengths of its answers are expected; otherwise it counts as if its mean were 50."""
    weight: float = 1.0

    def jobs(self) -> Iterator[Job]:
        chance = random.Random(self.name)
        expected = PROMPT + 2 * (self.mean_tokens if self.told else 50.0)

        def job(at: float) -> Job:
            tokens = self.mean_tokens if self.fixed else chance.expovariate(1 / self.mean_tokens)
            return Job(self.name, at, max(1, round(tokens)), expected)

        for _ in range(self.flood):
            yield job(self.from_s)
        at = self.from_s
        while self.per_s:
            at += chance.expovariate(self.per_s)
            if at > self.until_s:
                return
            yield job(at)


class Policy:
    """Leaves every job where it is: what RabbitMQ does alone."""

    name = "none"

    def begin(self, tenants: list[Tenant]) -> None:
        self.weights = {tenant.name: tenant.weight for tenant in tenants}

    def level(self, job: Job, now: float) -> int:
        return ASKED

    def ended(self, job: Job, now: float) -> None: ...


class Guarantee(Policy):
    """Decision 34, with rates that divide what the pool serves among the tenants."""

    name = "guarantees"

    def begin(self, tenants: list[Tenant]) -> None:
        super().begin(tenants)
        weights = sum(self.weights.values())
        capacity = SLOTS * TOKENS_PER_S / 50 * (PROMPT + 2 * 50)
        self.per_s = {name: capacity * weight / weights for name, weight in self.weights.items()}
        self.used_until: defaultdict[str, float] = defaultdict(float)

    def level(self, job: Job, now: float) -> int:
        used = max(self.used_until[job.tenant], now)
        if used - now >= 2.0:
            return LOW
        self.used_until[job.tenant] = used + job.expected / self.per_s[job.tenant]
        return ASKED


class Attained(Policy):
    """Attained service: a tenant above the mean of the active ones gets less, one below it more.

    What counts is the work of ended jobs, decaying, and that of unfinished jobs, but those on the lowest
    level used, in proportion to weights.
    """

    half_life_s = 30.0

    def __init__(self, *, demotes: bool, raises: bool) -> None:
        self.demotes, self.raises = demotes, raises
        words = [word for word, does in (("demotes", demotes), ("raises", raises)) if does]
        self.name = f"attained, {' and '.join(words)}"

    def begin(self, tenants: list[Tenant]) -> None:
        super().begin(tenants)
        self.attained: defaultdict[str, float] = defaultdict(float)
        self.outstanding: defaultdict[str, float] = defaultdict(float)
        self.counted: set[Job] = set()
        self.decayed_at = 0.0

    def service(self, tenant: str) -> float:
        return (self.attained[tenant] + self.outstanding[tenant]) / self.weights[tenant]

    def level(self, job: Job, now: float) -> int:
        for tenant in self.attained:
            self.attained[tenant] *= 0.5 ** ((now - self.decayed_at) / self.half_life_s)
        self.decayed_at = now
        mine = self.service(job.tenant)
        active = {name for name in self.outstanding if self.service(name) > EACH} | {job.tenant}
        mean = sum(map(self.service, active)) / len(active)
        level = ASKED
        if len(active) > 1:
            if self.demotes and mine > mean:
                level = LOW
            elif self.raises and mine <= mean:
                level = HIGH
        if level > (LOW if self.demotes else ASKED):
            self.outstanding[job.tenant] += job.expected
            self.counted.add(job)
        else:
            self.outstanding[job.tenant] += 0.0
        return level

    def ended(self, job: Job, now: float) -> None:
        if job in self.counted:
            self.outstanding[job.tenant] -= job.expected
        self.attained[job.tenant] += job.work


EACH = 200.0


class Window(Policy):
    """A tenant's unfinished jobs may have so much work above the level that was asked for.

    By Little's law, equal windows on one level are equal throughput. With ``corrects``, the work of a tenant
    counts by what its ended jobs turned out to be, compared with what they were expected to be.
    """

    def __init__(self, window: float, *, corrects: bool = False, level: int = HIGH) -> None:
        self.window = window
        self.corrects = corrects
        self.above = level
        self.name = f"window of {window:g} slots" + (", corrected" if corrects else "")

    def begin(self, tenants: list[Tenant]) -> None:
        super().begin(tenants)
        self.outstanding: defaultdict[str, float] = defaultdict(float)
        self.ratio: defaultdict[str, float] = defaultdict(lambda: 1.0)
        self.counted: dict[Job, float] = {}
        self.mean = PROMPT + 2 * 50.0
        """The mean work of a job in a slot."""

    def level(self, job: Job, now: float) -> int:
        expected = job.expected * self.ratio[job.tenant]
        room = self.window * self.mean * self.weights[job.tenant]
        if self.outstanding[job.tenant] and self.outstanding[job.tenant] + expected > room:
            return self.above - 1
        self.outstanding[job.tenant] += expected
        self.counted[job] = expected
        return self.above

    def ended(self, job: Job, now: float) -> None:
        self.mean += (job.work - self.mean) / 100
        self.outstanding[job.tenant] -= self.counted.pop(job, 0.0)
        if self.corrects:
            mine = self.ratio[job.tenant]
            self.ratio[job.tenant] = mine + (job.work / job.expected - mine) / 100


def run(policy: Policy, tenants: list[Tenant]) -> dict[str, list[Job]]:
    """Return the jobs of each tenant that ended until ``UNTIL_S``."""
    policy.begin(tenants)
    arrivals = heapq.merge(*(tenant.jobs() for tenant in tenants), key=lambda job: job.at)
    queues: defaultdict[int, deque[Job]] = defaultdict(deque)
    running: list[tuple[float, int, Job]] = []
    waiting: deque[Job] = deque()
    done: dict[str, list[Job]] = {tenant.name: [] for tenant in tenants}
    starts, number, highest = 0, count(), LOW
    coming = next(arrivals, None)

    def take() -> Job | None:
        nonlocal starts, highest
        if starts % OLDEST_EVERY == OLDEST_EVERY - 1:
            oldest = [queue for level, queue in queues.items() if level < highest and queue]
            highest = LOW
            if oldest:
                return min(oldest, key=lambda queue: queue[0].at).popleft()
        for level in (HIGH, ASKED, LOW):
            if queues[level]:
                highest = max(highest, level)
                return queues[level].popleft()
        return None

    now = 0.0
    while coming is not None or running:
        ends = running[0][0] if running else math.inf
        if coming is not None and coming.at <= ends:
            now = coming.at
            coming.level = policy.level(coming, now)
            queues[coming.level].append(coming)
            coming = next(arrivals, None)
        else:
            now, _, job = heapq.heappop(running)
            job.ended_at = now
            policy.ended(job, now)
            done[job.tenant].append(job)
        if now > UNTIL_S:
            break
        while len(running) < SLOTS and (job := take()) is not None:
            starts += 1
            heapq.heappush(running, (now + job.tokens / TOKENS_PER_S, next(number), job))
    return done


def jain(shares: list[float]) -> float:
    """Return Jain's index: 1 if all are equal, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def served(done: dict[str, list[Job]], tenant: Tenant) -> float:
    """Return what a tenant got per second and weight after the warm-up."""
    work = sum(job.work for job in done[tenant.name] if job.ended_at > WARM_S)
    return work / (UNTIL_S - WARM_S) / tenant.weight


def p99_s(done: dict[str, list[Job]], tenant: Tenant) -> float:
    """Return the 99th percentile from submit to end of the jobs submitted after the warm-up."""
    ended = [job.ended_at - job.at for job in done[tenant.name] if job.at > WARM_S]
    # What has not ended has waited until now.
    sent = [job for job in tenant.jobs() if job.at > WARM_S and job.at < UNTIL_S - 1]
    lost = max(0, len(sent) - len(ended))
    taken = sorted(ended + [UNTIL_S] * lost)
    return taken[int(len(taken) * 0.99)]


FULL = SLOTS * TOKENS_PER_S / 50
"""Jobs of 50 tokens that the pool ends a second."""

LIGHT = Tenant("light", per_s=10)
POLICIES: list[Callable[[], Policy]] = [
    Policy,
    Guarantee,
    lambda: Attained(demotes=True, raises=False),
    lambda: Attained(demotes=False, raises=True),
    lambda: Attained(demotes=True, raises=True),
    lambda: Window(SLOTS / 4),
    lambda: Window(SLOTS / 2),
    lambda: Window(SLOTS),
    lambda: Window(SLOTS / 2, corrects=True),
]

BESIDE = {
    "100,000 before": [Tenant("heavy", flood=FLOOD)],
    "twice as much as fits": [Tenant("heavy", per_s=2 * FULL)],
    "long jobs": [Tenant("heavy", per_s=FULL, mean_tokens=500, fixed=False)],
    "nine that send too much": [Tenant(f"heavy-{n}", per_s=FULL / 5) for n in range(9)],
}

TEN = {
    "1.5 to 10 times its share": [Tenant(f"t{n}", per_s=FULL / 10 * (1.5 + n * 8.5 / 9)) for n in range(10)],
    "lengths 25 to 400, known": [
        Tenant(f"t{n}", per_s=FULL / 3, mean_tokens=25 * 2 ** (n % 5), fixed=False) for n in range(10)
    ],
    "lengths 25 to 400, unknown": [
        Tenant(f"t{n}", per_s=FULL / 3, mean_tokens=25 * 2 ** (n % 5), fixed=False, told=False)
        for n in range(10)
    ],
    "weights 1 to 4": [Tenant(f"t{n}", per_s=FULL, weight=1 + n % 4) for n in range(10)],
    "two, 1.2 and 10 times": [Tenant("a", per_s=FULL * 0.6), Tenant("b", per_s=FULL * 5)],
    "all at once, nothing later": [Tenant(f"t{n}", flood=20_000, from_s=n * 0.1) for n in range(10)],
    "one idle until 300 s": [
        Tenant("late", per_s=FULL, from_s=300.0),
        *(Tenant(f"t{n}", per_s=FULL / 3) for n in range(9)),
    ],
}


def main() -> None:
    alone = p99_s(run(Policy(), [LIGHT]), LIGHT)
    print(f"p99 of a tenant with {LIGHT.per_s:g} jobs a second beside others, / alone ({alone:.2f} s)")
    for make in POLICIES:
        line = []
        for name, others in BESIDE.items():
            done = run(make(), [LIGHT, *others])
            line.append(f"{name}: {p99_s(done, LIGHT) / alone:.2f}")
        print(f"  {make().name:32} " + ", ".join(line), flush=True)
    print("Jain's index and work per second / without a policy")
    base = {name: sum(served(run(Policy(), ts), t) * t.weight for t in ts) for name, ts in TEN.items()}
    for make in POLICIES:
        line = []
        for name, tenants in TEN.items():
            done = run(make(), tenants)
            got = [served(done, tenant) for tenant in tenants]
            all_ = sum(each * tenant.weight for each, tenant in zip(got, tenants))
            line.append(f"{name}: {jain(got):.3f} {all_ / base[name]:.2f}")
        print(f"  {make().name:32} " + ", ".join(line), flush=True)


if __name__ == "__main__":
    main()
