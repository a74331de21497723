"""Fetches the passages for a job before it is recorded, so that they are the same whoever runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from inferfleet.producer.retrieval.index import Index
from inferfleet.schemas.errors import (
    InvalidJobError,
    JobDataLostError,
    JobFailedError,
    JobNotFoundError,
    PublishUnconfirmedError,
    QueueFullError,
    RetrievalError,
    UnknownPoolError,
)
from inferfleet.schemas.job import Job, Priority
from inferfleet.schemas.message import message_body, read_job
from inferfleet.schemas.passages import MAX_QUESTION_CHARS, Passage, question_in
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.idempotency import find_job
from inferfleet.wire.redis.job_reading import Standing
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords

_OF_THE_EMBEDDING: Final = (
    InvalidJobError,
    JobDataLostError,
    JobFailedError,
    JobNotFoundError,
    PublishUnconfirmedError,
    QueueFullError,
    UnknownPoolError,
)
"""What callers would take for an error of their own job, which is not submitted yet."""

IndexOf = Callable[[str, str], Index]
"""Returns the index of a name and a tenant."""


class Fetching:
    """Fetches the passages of the jobs of one client."""

    def __init__(
        self, index: IndexOf, *, pipeline: CommandPipeline, records: JobRecords, settings: ProducerSettings
    ) -> None:
        self._index = index
        self._pipeline = pipeline
        self._records = records
        self._settings = settings

    async def fetch(self, job: Job) -> Job:
        """Return the job with its passages. A job that was submitted before keeps those that it has.

        Raises:
            UnknownIndexError: The tenant has no such index.
            RetrievalError: The search failed, or has found more than a job may hold.
            InferfleetError: What ``Index.search`` raises.

        """
        if (asked := job.retrieve) is None or job.passages is not None:
            return job
        if not self._settings.keep_requests:
            raise RetrievalError(
                "retrieve: needs INFERFLEET_KEEP_REQUESTS, because Redis keeps the passages of a job with "
                "its request"
            )
        if (known := await self._known(job)) is not None:
            return job.model_copy(update={"passages": known})
        text = asked.query or (question_in(job.body) or "")[-MAX_QUESTION_CHARS:]
        try:
            hits = await self._index(asked.index, job.tenant).search(
                text,
                k=asked.k,
                where=asked.where,
                min_score=asked.min_score,
                timeout_s=asked.timeout_s,
                priority=min(Priority.HIGH, job.priority),
            )
        except _OF_THE_EMBEDDING as error:
            raise RetrievalError(f"retrieve: the question cannot be embedded: {error}") from error
        passages = tuple(
            Passage(document=hit.document, chunk=hit.id, score=hit.score, text=hit.text) for hit in hits
        )
        job = job.model_copy(update={"passages": passages})
        if (size := len(message_body(job))) > (most := self._settings.max_body_bytes):
            raise RetrievalError(
                f"retrieve: with its {len(hits)} passages the job has {size:,} bytes, and at most {most:,} "
                "are allowed (INFERFLEET_MAX_BODY_BYTES): ask for a smaller k"
            )
        return job

    async def _known(self, job: Job) -> tuple[Passage, ...] | None:
        """Return the passages of the same job, if it was submitted before; none if it has ended."""
        job_id = job.id
        if job.idempotency_key is not None:
            job_id = await find_job(self._pipeline, job.tenant, job.idempotency_key) or job_id
        if (request := await self._records.request(job_id)) is not None:
            return read_job(request).passages
        standing = await self._records.standing(job_id)
        return () if standing.over and standing is not Standing.MISSING else None
