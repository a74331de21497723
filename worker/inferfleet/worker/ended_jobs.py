"""The jobs that ended last on this worker, for its heartbeat."""

from __future__ import annotations

from collections import deque
from operator import itemgetter
from typing import Any, Final

from typing_extensions import override

from inferfleet.schemas import JobState, Result
from inferfleet.schemas.heartbeat import EndedJob
from inferfleet.schemas.job import DEFAULT_TENANT, Priority
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun

KEPT: Final = 5
"""How many jobs that succeeded to keep, and how many that did not. Neither kind pushes out the other."""


class EndedJobs(Hooks):
    """Keeps the last few jobs that ended here, without their answers."""

    def __init__(self, *, pool: str, worker_id: str, clock: RedisClock) -> None:
        self._where = {"pool": pool, "worker_id": worker_id}
        self._clock = clock
        self._succeeded: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._others: deque[dict[str, Any]] = deque(maxlen=KEPT)

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        kept = self._succeeded if result.state is JobState.SUCCEEDED else self._others
        # Models are made only for a heartbeat: most jobs are pushed out before it.
        kept.append(
            {
                "id": result.job_id,
                "tenant": run.job.tenant if run else DEFAULT_TENANT,
                "priority": run.job.priority if run else Priority.NORMAL,
                "state": result.state,
                "code": result.error.code if result.error else None,
                "ended_at": self._clock.now(),
                "queue_wait_s": result.timings.queue_wait_s if result.timings else None,
                "total_s": result.timings.total_s if result.timings else None,
                "tokens": result.usage.completion_tokens,
            }
        )

    def latest(self) -> tuple[EndedJob, ...]:
        """Return the jobs that are kept, the newest first."""
        kept = sorted((*self._succeeded, *self._others), key=itemgetter("ended_at"), reverse=True)
        return tuple(EndedJob(**self._where, **job) for job in kept)
