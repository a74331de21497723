"""Measures how much work the jobs were that ended here, and how long their answers were."""

from __future__ import annotations

from typing_extensions import override

from inferfleet.schemas import JobState, Result
from inferfleet.schemas.work import AnswerMeans, JobSize, work_of
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun


class WorkCounting(Hooks):
    """Counts for the heartbeat. ``total`` is the work of all jobs that have ended here."""

    def __init__(self) -> None:
        self.total = 0
        self.answers = AnswerMeans()

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        if run is None:
            return
        # Prompts are estimated as those of waiting jobs are, since the two are compared.
        size = JobSize.of(run.job.endpoint, run.job.body, request_bytes=len(run.delivery.body))
        tokens = result.usage.completion_tokens
        self.total += int(work_of(size.prompt_tokens, tokens))
        if result.state is JobState.SUCCEEDED:
            self.answers.add(size.most_tokens, tokens)
