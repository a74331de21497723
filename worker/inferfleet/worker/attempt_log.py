"""Logs one line for each event of an attempt."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from inferfleet.schemas import Failure, Result
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.worker.broker import Delivery
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.log import about

logger = logging.getLogger(__name__)


class AttemptLog(Hooks):
    """Logs the events of attempts, with prompts only if ``prompts`` is set."""

    def __init__(self, *, prompts: bool) -> None:
        self._prompts = prompts

    @override
    def on_start(self, run: JobRun, body: Mapping[str, Any]) -> None:
        if self._prompts:
            logger.info("starting job", extra={**about(run.job, attempt=run.attempt), "body": body})

    @override
    def on_preempt(self, run: JobRun) -> None:
        logger.info(
            "preempting a job",
            extra={**about(run.job, attempt=run.attempt), "tokens": run.answer.tokens},
        )

    @override
    def on_waste(self, run: JobRun, tokens: int, reason: str) -> None:
        logger.warning(
            "another attempt has the job" if reason == "fenced" else "restarting the answer",
            extra={**about(run.job, attempt=run.attempt), "reason": reason, "tokens": tokens},
        )

    @override
    def on_requeue(self, run: JobRun, entry: QueuedEntry) -> None:
        code = entry.failure.code if entry.failure else None
        logger.info(
            "requeueing a job",
            extra={**about(run.job, attempt=run.attempt), "reason": entry.reason, "code": code},
        )

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        logger.info(
            "job %s",
            result.state.value,
            extra={
                **(about(run.job, attempt=run.attempt) if run else {"job_id": result.job_id, "attempt": 0}),
                "tokens": result.usage.completion_tokens,
                "code": result.error.code if result.error else None,
            },
        )

    @override
    def on_dead_letter(self, run: JobRun | None, delivery: Delivery, failure: Failure) -> None:
        # The reason is only in the letter's headers, because it may quote the message.
        logger.warning(
            "message dead-lettered",
            extra={
                **(about(run.job, attempt=run.attempt) if run else {}),
                "message_id": delivery.message_id,
                "code": failure.code,
                "attempts": run.charged if run else 0,
            },
        )
