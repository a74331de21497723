"""One replica in a simulation: a worker's intake around the simulated engine's batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from inferfleet.local.autoscaler.profile import EngineProfile
from inferfleet.local.autoscaler.trace import Arrival
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.worker.engines.simulated.batch import Batch, Phase, Sequence, Step


@dataclass(slots=True, eq=False, kw_only=True)
class SimulatedJob:
    """A simulated job. ``generated`` counts the tokens in its journal; times are seconds of the trace."""

    arrival: Arrival
    number: int
    generated: int = 0
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        """The job's place in the queue. A requeued job gets its old place."""
        return -self.arrival.priority, self.number


@dataclass(slots=True, eq=False, kw_only=True)
class SimulatedReplica:
    """A worker. It costs a GPU from ``started_at`` to ``ended_at``.

    It calls ``finished`` with each job, at the end of the step that finishes it.
    """

    profile: EngineProfile
    started_at: float
    finished: Callable[[SimulatedJob], None]
    phase: WorkerPhase = WorkerPhase.LOADING
    ended_at: float | None = None
    step: Step | None = None
    """The step being computed."""
    _batch: Batch = field(init=False)
    _jobs: dict[Sequence, SimulatedJob] = field(init=False, default_factory=dict["Sequence", "SimulatedJob"])

    def __post_init__(self) -> None:
        self._batch = Batch(parameters=self.profile, max_running=self.profile.max_running)

    @property
    def held(self) -> int:
        """The number of unfinished jobs that it has taken, which are unacked in RabbitMQ."""
        return len(self._jobs)

    @property
    def jobs(self) -> list[SimulatedJob]:
        """The unfinished jobs that it has taken."""
        return list(self._jobs.values())

    @property
    def has_room(self) -> bool:
        """Whether it can take one more job."""
        return (
            self.phase is WorkerPhase.READY and self.held < self.profile.max_running + self.profile.look_ahead
        )

    @property
    def deletion_cost(self) -> tuple[bool, int]:
        """Its place in the order of deletion: loading replicas first, then by tokens in flight."""
        tokens = sum(1 + sequence.prompt_tokens + sequence.generated for sequence in self._jobs)
        return self.phase is WorkerPhase.READY, tokens

    def take(self, job: SimulatedJob) -> None:
        """Put a job into the engine, which resumes it where its journal ends."""
        sequence = Sequence(
            prompt_tokens=job.arrival.prompt_tokens,
            target=job.arrival.output_tokens,
            generated=job.generated,
            priority=job.arrival.priority,
        )
        self._jobs[sequence] = job
        self._batch.add(sequence)

    def begin_step(self, now: float) -> float | None:
        """Start the next step. Return how long it takes, or ``None`` if there is nothing to do."""
        self.step = self._batch.schedule()
        if self.step is None:
            return None
        for sequence, _ in self.step.prefills:
            job = self._jobs[sequence]
            if job.started_at is None:
                job.started_at = now
        return self.step.duration_s

    def end_step(self) -> None:
        """Give the tokens of the step to their jobs."""
        step, self.step = self.step, None
        if step is None:
            return
        self._batch.finish(step)
        for sequence in [*(it for it, _ in step.prefills), *step.decodes]:
            if sequence.phase is Phase.ENDED and sequence in self._jobs:
                self.finished(self._jobs.pop(sequence))

    def give_back(self, *, running: bool) -> list[SimulatedJob]:
        """Take the waiting jobs, or all jobs, out of the engine, each with its tokens so far."""
        leaving = [it for it in self._jobs if running or it.phase is not Phase.RUNNING]
        for sequence in leaving:
            self._batch.remove(sequence)
        jobs = [self._jobs.pop(sequence) for sequence in leaving]
        for sequence, job in zip(leaving, jobs, strict=True):
            job.generated = sequence.generated
        return jobs
