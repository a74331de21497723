"""Reads jobs: their records, results and journals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from itertools import zip_longest
from typing import Any, NamedTuple

from inferfleet.schemas.errors import InferfleetError, InvalidJobError, JobDataLostError, JobNotFoundError
from inferfleet.schemas.job import DEFAULT_TENANT, JobState
from inferfleet.schemas.journal import (
    JournalEntry,
    TokenChunk,
)
from inferfleet.schemas.message import read_job
from inferfleet.schemas.names import job_key, journal_key, request_key, result_key
from inferfleet.schemas.result import JobRecord, Result, Usage
from inferfleet.schemas.said import cut_response
from inferfleet.wire.redis import job_scripts
from inferfleet.wire.redis.clock import moment_of
from inferfleet.wire.redis.journal_lines import generated, head_of, parse_line, whole_answer
from inferfleet.wire.redis.pipeline import CommandPipeline

READ_BATCH = 500
"""How many records to read in one round trip."""


_UNREADABLE = (LookupError, ValueError)
"""The errors at a record or result that this version cannot parse."""


STATES = {state.encode(): state for state in JobState}


logger = logging.getLogger(__name__)


class Standing(StrEnum):
    """The standing of a job: its state, or that it has no record, or that no process seems to have it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    MISSING = "missing"

    STALLED = "stalled"
    """An attempt has begun, but no worker has held the job for longer than its lease.

    Its message may wait in the queue. Or the message was acked, and Redis has lost the end of the job since.
    Then somebody has to publish the job again, which does no harm in either case.
    """

    @property
    def over(self) -> bool:
        """Whether the job has ended, or does not exist."""
        return self not in {Standing.QUEUED, Standing.RUNNING, Standing.STALLED}


class Held(NamedTuple):
    """Who has a job, by its record: ``fence`` is that of the last attempt, ``""`` if there is none.

    ``state`` is ``None`` without a record. While the record is ``closed``, a refused submission is taking the
    job back.
    """

    state: JobState | None
    closed: bool
    fence: str

    @property
    def waits(self) -> bool:
        """Whether the job waits for its start, and nobody is taking it back."""
        return self.state is JobState.QUEUED and not self.closed


class Accepted(NamedTuple):
    """What a job's record says that the next submission of the job may say otherwise."""

    pool: str
    priority: int
    not_before: datetime | None


class JobReading:
    """Reads what is known of jobs. Concurrent reads of many tasks go through one pipeline."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline
        self.clock = pipeline.clock
        """Redis' time."""

    async def get(self, job_id: str) -> JobRecord:
        """Read one job.

        Raises:
            JobNotFoundError: There is no record of the job.
            JobDataLostError: The job has ended, but Redis no longer has its result.

        """
        fields, result = await asyncio.gather(
            self._pipeline.enqueue("HGETALL", job_key(job_id)),
            self._pipeline.enqueue("GET", result_key(job_id)),
        )
        if not fields:
            raise JobNotFoundError(job_id)
        await self._add_tenant(job_id, fields)
        try:
            record = _record(job_id, fields, result)
        except _UNREADABLE as error:
            raise InferfleetError(
                f"the record of job {job_id} cannot be read ({type(error).__name__}): another version of "
                "inferfleet, or another program, wrote it"
            ) from error
        if record.state.terminal and record.result is None:
            raise JobDataLostError(job_id, missing="result")
        return record

    async def peek(self, job_id: str) -> tuple[str, bytes | None]:
        """Read only the client that is told of a job's end, and the result as JSON, if there is one.

        Raises:
            JobNotFoundError: There is no record of the job.
            JobDataLostError: The job has ended, but Redis no longer has its result.

        """
        (state, reply_to), result = await asyncio.gather(
            self._pipeline.enqueue("HMGET", job_key(job_id), "state", "reply_to"),
            self._pipeline.enqueue("GET", result_key(job_id)),
        )
        if result is not None:
            return "", result
        if state is None:
            raise JobNotFoundError(job_id)
        if JobState(state.decode()).terminal:
            raise JobDataLostError(job_id, missing="result")
        return (reply_to or b"").decode(), None

    async def standing(self, job_id: str) -> Standing:
        """Read the standing of a job, by Redis' clock."""
        return Standing((await self._pipeline.enqueue(*job_scripts.standing(job_key(job_id)))).decode())

    async def held(self, job_id: str) -> Held:
        """Read who has a job."""
        state, attempt, closed, fence = await self._pipeline.execute(
            "HMGET", job_key(job_id), "state", "attempt", "closed", "fence"
        )
        return Held(STATES.get(state), closed is not None and int(attempt or 0) == 0, (fence or b"").decode())

    async def states(self, job_ids: Iterable[str]) -> dict[str, JobState | None]:
        """Read the states of many jobs. A job without a record is ``None``."""
        states: dict[str, JobState | None] = {}
        for some in _batches(job_ids):
            found = await asyncio.gather(
                *(self._pipeline.enqueue("HGET", job_key(job_id), "state") for job_id in some)
            )
            # A state that no version has written is not an end, and must not fail the reads of other jobs.
            states |= {job_id: STATES.get(state) for job_id, state in zip(some, found, strict=True)}
        return states

    async def state(self, job_id: str) -> JobState:
        """Read the state of a job.

        Raises:
            JobNotFoundError: There is no readable record of the job.

        """
        state = (await self.states([job_id]))[job_id]
        if state is None:
            raise JobNotFoundError(job_id)
        return state

    async def tenant(self, job_id: str) -> str | None:
        """Read the tenant to which a job belongs; ``None`` without a record."""
        state, tenant = await self._pipeline.execute("HMGET", job_key(job_id), "state", "tenant")
        if state is None:
            return None
        return await self._tenant_of_request(job_id) if tenant is None else tenant.decode()

    async def _add_tenant(self, job_id: str, fields: dict[bytes, bytes]) -> None:
        if fields and b"tenant" not in fields:
            fields[b"tenant"] = (await self._tenant_of_request(job_id)).encode()

    async def _tenant_of_request(self, job_id: str) -> str:
        """Read the tenant of a job that a client of version 0.2 has recorded."""
        request = await self.request(job_id)
        try:
            return DEFAULT_TENANT if request is None else read_job(request).tenant
        except InvalidJobError:
            return DEFAULT_TENANT

    async def traced(self, job_id: str) -> tuple[str, int] | None:
        """Read a job's trace and the number of its last attempt; ``None`` if the trace is not sampled."""
        traceparent, attempt = await self._pipeline.execute(
            "HMGET", job_key(job_id), "traceparent", "attempt"
        )
        return None if traceparent is None else (traceparent.decode(), int(attempt))

    async def pool(self, job_id: str) -> str | None:
        """Read a job's pool; ``None`` without a record."""
        pool = await self._pipeline.execute("HGET", job_key(job_id), "pool")
        return None if pool is None else pool.decode()

    async def accepted(self, job_id: str) -> Accepted | None:
        """Read how a job was accepted; ``None`` without a record."""
        pool, priority, not_before = await self._pipeline.execute(
            "HMGET", job_key(job_id), "pool", "priority", "not_before"
        )
        if pool is None:
            return None
        return Accepted(pool.decode(), int(priority), moment_of(int(not_before)) if not_before else None)

    async def request(self, job_id: str) -> bytes | None:
        """Read the body of an unfinished job's message; ``None`` if Redis does not have it."""
        body: bytes | None = await self._pipeline.execute("GET", request_key(job_id))
        return body

    async def has_request(self, job_id: str) -> bool:
        """Return whether Redis has an unfinished job's request."""
        return bool(await self._pipeline.execute("EXISTS", request_key(job_id)))

    async def belonging(self, job_id: str) -> tuple[str, str] | None:
        """Read the client that is told of a job's end, and the job's session; ``None`` without a record."""
        reply_to, session = await self._pipeline.execute("HMGET", job_key(job_id), "reply_to", "session")
        return None if reply_to is None else (reply_to.decode(), (session or b"").decode())

    async def get_many(self, job_ids: Iterable[str], *, results: bool = True) -> dict[str, JobRecord | None]:
        """Read many jobs, hundreds in one round trip. A job without a readable record is ``None``.

        If a terminal record has no ``result``, Redis has lost that, or ``results`` were not to be read.
        """
        records: dict[str, JobRecord | None] = {}
        for some in _batches(job_ids):
            fields = [self._pipeline.enqueue("HGETALL", job_key(job_id)) for job_id in some]
            texts = [self._pipeline.enqueue("GET", result_key(job_id)) for job_id in some if results]
            answers: list[Any] = await asyncio.gather(*fields, *texts)
            for job_id, found, result in zip_longest(some, answers[: len(some)], answers[len(some) :]):
                await self._add_tenant(job_id, found)
                try:
                    records[job_id] = _record(job_id, found, result) if found else None
                except _UNREADABLE as error:
                    # An unreadable record must not fail the read of the others.
                    logger.warning("cannot read the record of job %s (%s)", job_id, type(error).__name__)
                    records[job_id] = None
        return records

    async def results(self, job_ids: Iterable[str]) -> dict[str, bytes]:
        """Read the results of those jobs that have one, as JSON."""
        results: dict[str, bytes] = {}
        for some in _batches(job_ids):
            texts = await asyncio.gather(*(self._pipeline.enqueue("GET", result_key(id_)) for id_ in some))
            results |= {job_id: text for job_id, text in zip(some, texts, strict=True) if text is not None}
        return results

    async def lines(
        self, job_id: str, *, after: bytes = b"0-0", limit: int | None = None
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Read the lines of a job's journal behind the line ``after``, each with its id; the first ones."""
        count = () if limit is None else ("COUNT", limit)
        lines: Any = await self._pipeline.execute("XRANGE", journal_key(job_id), b"(" + after, "+", *count)
        return lines or []

    async def entries(self, job_id: str) -> AsyncGenerator[JournalEntry]:
        """Read a job's journal, a page of it in memory at a time."""
        after = b"0-0"
        while lines := await self.lines(job_id, after=after, limit=READ_BATCH):
            for _, fields in lines:
                yield parse_line(fields)
            after = lines[-1][0]

    async def journal(self, job_id: str) -> list[JournalEntry]:
        """Read a job's whole journal."""
        return [parse_line(fields) for _, fields in await self.lines(job_id)]

    async def whole_answer(self, job_id: str, *, tokens: int) -> tuple[TokenChunk, ...] | None:
        """Read the tokens to resume from; ``None`` if the journal does not hold exactly so many."""
        return whole_answer((fields for _, fields in await self.lines(job_id)), tokens=tokens)

    async def last_line(self, job_id: str) -> tuple[bytes, JournalEntry] | None:
        """Read the last line of a job's journal, with its id."""
        lines: Any = await self._pipeline.execute("XREVRANGE", journal_key(job_id), "+", "-", "COUNT", 1)
        return (lines[0][0], parse_line(lines[0][1])) if lines else None

    async def cut_answer(
        self, job_id: str, *, tokens: int, began_at: datetime
    ) -> tuple[dict[str, Any] | None, Usage]:
        """Make the response and the usage of a job that ends after so many tokens.

        There is no response if the journal does not have the tokens.
        """
        entries: list[JournalEntry] = []
        with suppress(*_UNREADABLE):
            entries = await self.journal(job_id) if tokens else []
        if (head := head_of(entries)) is None:
            return None, Usage(completion_tokens=tokens)
        response = cut_response(job_id, head, generated(entries), created=int(began_at.timestamp()))
        return response, Usage(prompt_tokens=head.prompt_tokens, completion_tokens=tokens)


def _batches(job_ids: Iterable[str]) -> Iterator[list[str]]:
    """Split ids into batches that do not delay other commands, with each id once."""
    ids = list(dict.fromkeys(job_ids))
    for first in range(0, len(ids), READ_BATCH):
        yield ids[first : first + READ_BATCH]


def _record(job_id: str, fields: dict[bytes, bytes], result: bytes | None) -> JobRecord:
    def moment(name: bytes) -> datetime | None:
        value = fields.get(name)
        try:
            return datetime.fromtimestamp(int(value) / 1000, UTC) if value else None
        except (ValueError, OverflowError):
            # Older producers accepted such times.
            return None

    return JobRecord(
        id=job_id,
        state=JobState(fields[b"state"].decode()),
        pool=fields[b"pool"].decode(),
        submitted_to=fields[b"submitted_to"].decode() if b"submitted_to" in fields else None,
        priority=int(fields[b"priority"]),
        attempt=int(fields[b"attempt"]),
        attempts=int(fields[b"charged"]),
        worker_id=fields[b"worker"].decode() if b"worker" in fields else None,
        model_identity=fields.get(b"model_identity", b"").decode() or None,
        tokens=int(fields[b"tokens"]),
        cancel_requested=b"cancel" in fields,
        reply_to=fields[b"reply_to"].decode() or None,
        session_id=fields[b"session"].decode() if b"session" in fields else None,
        tenant=fields[b"tenant"].decode(),
        submitted_at=moment(b"submitted_at"),
        not_before=moment(b"not_before"),
        after=tuple(fields[b"after"].decode().split()) if b"after" in fields else None,
        started_at=moment(b"started_at"),
        finished_at=moment(b"finished_at"),
        result=Result.model_validate_json(result) if result else None,
    )
