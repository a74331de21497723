"""The exporter's estimate of how much work waits, in a simulation."""

from __future__ import annotations

import random
from collections.abc import Sequence

from inferfleet.local.autoscaler.simulated_replica import SimulatedJob
from inferfleet.schemas.work import JobSize, Means, WorkDone, merged
from inferfleet.wire.redis.work_samples import SAMPLED


class SimulatedWork:
    """Compares unfinished jobs with those that have ended, as the exporter does with what workers say."""

    def __init__(self) -> None:
        self._means = Means()
        self._chance = random.Random(0)  # noqa: S311 - no secret

    def ended(self, job: SimulatedJob) -> None:
        """Count a job that has ended."""
        arrival = job.arrival
        size = JobSize(arrival.prompt_tokens, arrival.max_tokens)
        self._means.add_job(size, arrival.output_tokens, seconds=0.0)
        self._means.add_answer(arrival.max_tokens, arrival.output_tokens)

    def heaviness(self, unfinished: Sequence[SimulatedJob]) -> float:
        """Return how much work an unfinished job is, compared with those that have ended lately."""
        if (mean := self._means.job) is None or not unfinished:
            return 1.0
        done = WorkDone(mean.work, merged(self._means.answers))
        sampled = self._chance.sample(unfinished, min(SAMPLED, len(unfinished)))
        expected = (
            done.expected(JobSize(job.arrival.prompt_tokens, job.arrival.max_tokens), generated=job.generated)
            for job in sampled
        )
        return sum(expected) / len(sampled) / done.mean
