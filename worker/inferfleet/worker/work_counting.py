"""Measures how long the jobs took that ended here, how much work they were, and how long their answers."""

from __future__ import annotations

from typing_extensions import override

from inferfleet.schemas import JobState, Result
from inferfleet.schemas.work import JobSize, Means
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun


class WorkCounting(Hooks):
    """Keeps means for the heartbeat."""

    def __init__(self) -> None:
        self.means = Means()

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        if run is None or not run.engine_s:
            # The engine did not have it: it expired, or was refused.
            return
        # Prompts are estimated as those of waiting jobs are, since the two are compared.
        size = JobSize.of(run.job.endpoint, run.job.body, request_bytes=len(run.delivery.body))
        tokens = result.usage.completion_tokens
        self.means.add_job(size, tokens, seconds=run.engine_s)
        if result.state is JobState.SUCCEEDED:
            self.means.add_answer(size.most_tokens, tokens)
