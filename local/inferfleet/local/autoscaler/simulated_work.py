"""The exporter's estimate of how much work waits, in a simulation."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from inferfleet.local.autoscaler.simulated_metrics import WINDOW_S
from inferfleet.local.autoscaler.simulated_replica import SimulatedJob
from inferfleet.schemas.work import AnswerMeans, JobSize, WorkDone, merged, work_of
from inferfleet.wire.redis.work_samples import SAMPLED


class SimulatedWork:
    """Compares unfinished jobs with those that have ended, as the exporter does with what workers say."""

    def __init__(self) -> None:
        self._answers = AnswerMeans()
        self._work = 0.0
        self._jobs = 0
        self._past = deque([(0.0, 0.0, 0)])
        self._done: WorkDone | None = None
        self._chance = random.Random(0)  # noqa: S311 - no secret

    def ended(self, job: SimulatedJob) -> None:
        """Count a job that has ended."""
        arrival = job.arrival
        self._answers.add(arrival.max_tokens, arrival.output_tokens)
        self._work += work_of(arrival.prompt_tokens, arrival.output_tokens)
        self._jobs += 1

    def heaviness(self, unfinished: Sequence[SimulatedJob], *, now: float) -> float:
        """Return how much work an unfinished job is, compared with those of the last minute that had ends."""
        self._past.append((now, self._work, self._jobs))
        while now - self._past[0][0] > WINDOW_S:
            self._past.popleft()
        _, work, jobs = self._past[0]
        if self._jobs > jobs:
            mean = (self._work - work) / (self._jobs - jobs)
            self._done = WorkDone(mean, merged(self._answers.groups()))
        if self._done is None or not unfinished:
            return 1.0
        sampled = self._chance.sample(unfinished, min(SAMPLED, len(unfinished)))
        expected = (
            self._done.expected(
                JobSize(job.arrival.prompt_tokens, job.arrival.max_tokens), generated=job.generated
            )
            for job in sampled
        )
        return sum(expected) / len(sampled) / self._done.mean
