"""Has a pool of the fleet embed texts: one job for many texts."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any, Final, Protocol, Unpack

from inferfleet.producer.job_making import JobOptions
from inferfleet.producer.window import Window
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.errors import (
    EmbeddingTimeoutError,
    InferfleetError,
    JobDataLostError,
    JobNotFoundError,
    QueueFullError,
    RetrievalError,
    WaitTimeoutError,
)
from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import Job, JobState, Priority
from inferfleet.schemas.result import Result
from inferfleet.schemas.retrieval import Embedding
from inferfleet.wire.redis.clock import RedisClock

_FLOAT_BYTES: Final = 4


class Jobs(Protocol):
    """What this needs of a client: methods of ``Fleet`` or ``TenantFleet``."""

    def make(self, work: Mapping[str, Any], **options: Unpack[JobOptions]) -> Job:
        """Make a job."""
        ...

    def submit(self, work: Job) -> Awaitable[Job]:
        """Submit a job."""
        ...

    def wait(self, job: Job, *, timeout_s: float | None = None) -> Awaitable[Result]:
        """Wait for its result."""
        ...

    def cancel(self, job: Job) -> Awaitable[JobState]:
        """Cancel it."""
        ...


class Embedder:
    """Embeds texts in one pool, for one tenant."""

    def __init__(self, jobs: Jobs, *, pool: str, tenant: str, clock: RedisClock) -> None:
        self._jobs = jobs
        self._tenant = tenant
        self._pool = pool
        self._clock = clock

    async def embed(
        self, texts: Sequence[str], *, key: str, wanted: Embedding | None, window: Window
    ) -> tuple[Embedding, list[bytes]]:
        """Embed chunks, as one job for each ``key``, however often this is called. Rides out a full queue.

        Earlier jobs that another model than the ``wanted`` one has embedded do not count.

        Raises:
            JobFailedError: The pool cannot embed them.
            RetrievalError: A text is too long for its model, or its answer has no vectors.
            InferfleetError: What ``Fleet.submit`` raises.

        """
        for number in count():
            asked = self._make(texts, priority=Priority.BATCH, idempotency_key=f"{key}:{number}")
            job = await self._submit(asked, window)
            try:
                result = await self._jobs.wait(job)
            except (JobDataLostError, JobNotFoundError):
                if job.id == asked.id:
                    raise
                # It ended long ago, and its result or its record has expired.
                continue
            finally:
                window.leave()
            if result.state is not JobState.SUCCEEDED and job.id != asked.id:
                # It failed in an earlier call, and may succeed now.
                continue
            self._check_length(result)
            embedding, vectors = _vectors(result.raise_for_state(), self._pool, len(texts))
            if wanted is not None and embedding != wanted and job.id != asked.id:
                continue
            return embedding, vectors
        raise AssertionError

    async def embed_question(self, text: str, *, priority: int, timeout_s: float) -> tuple[Embedding, bytes]:
        """Embed a question.

        Raises:
            EmbeddingTimeoutError: The pool has not embedded it within ``timeout_s``.
            RetrievalError: It is too long, or there is no vector in the answer.
            JobFailedError: The pool cannot embed it.
            InferfleetError: What ``Fleet.submit`` raises.

        """
        expires_at = self._clock.now() + timedelta(seconds=timeout_s)
        job = await self._jobs.submit(self._make([text], priority=priority, expires_at=expires_at))
        try:
            result = await self._jobs.wait(job, timeout_s=timeout_s)
        except WaitTimeoutError:
            with suppress(InferfleetError):
                await self._jobs.cancel(job)
            result = None
        if result is None or result.state is JobState.EXPIRED:
            raise EmbeddingTimeoutError(self._pool, timeout_s=timeout_s)
        self._check_length(result)
        embedding, (vector,) = _vectors(result.raise_for_state(), self._pool, 1)
        return embedding, vector

    def _make(self, texts: Sequence[str], **options: Unpack[JobOptions]) -> Job:
        options |= {"endpoint": Endpoint.EMBEDDINGS, "pool": self._pool, "tenant": self._tenant}
        return self._jobs.make({"input": list(texts), "encoding_format": "base64"}, **options)

    def _check_length(self, result: Result) -> None:
        if result.error is not None and result.error.code is FailureCode.PROMPT_TOO_LONG:
            raise RetrievalError(
                f"a text is too long for the model of pool {self._pool!r} ({result.error.message}): ask "
                "a shorter question, or create an index with fewer chunk_chars"
            )

    async def _submit(self, job: Job, window: Window) -> Job:
        """Submit a job when the window has a place for it. The caller gives the place back."""
        refused = False
        while True:
            entered = await window.enter(again=refused)
            try:
                accepted = await self._jobs.submit(job)
            except QueueFullError:
                window.refused(entered, full=True)
                refused = True
            except BaseException:
                window.leave()
                raise
            else:
                window.accepted()
                return accepted


def _vectors(result: Result, pool: str, wanted: int) -> tuple[Embedding, list[bytes]]:
    """Read the vectors of an answer, as little-endian 32-bit floats."""
    response = result.response or {}
    try:
        data = sorted(response["data"], key=lambda each: each["index"])
        vectors = [_packed(each["embedding"]) for each in data]
        (length,) = {len(vector) for vector in vectors}
        if len(vectors) != wanted or not length:
            raise ValueError(f"{len(vectors)} vectors")
    except (KeyError, TypeError, ValueError, binascii.Error, struct.error) as error:
        raise RetrievalError(
            f"pool {pool!r} has answered {wanted} texts with something else than as many vectors of one "
            f"length ({error}): does it serve an embedding model?"
        ) from error
    return (
        Embedding(
            model=str(response.get("model", "")),
            identity=result.model_identity or "",
            dimensions=length // _FLOAT_BYTES,
        ),
        vectors,
    )


def _packed(vector: str | Sequence[float]) -> bytes:
    """Return the bytes of a vector; engines may answer with numbers although base64 was asked for."""
    if isinstance(vector, str):
        return base64.b64decode(vector, validate=True)
    return struct.pack(f"<{len(vector)}f", *vector)
