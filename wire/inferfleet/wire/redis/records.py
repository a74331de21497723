"""The record and journal of jobs in Redis: every change to them, and every way to read them.

A job's record is changed by the Lua scripts beside this file and by nothing else. Each change by a
worker carries the attempt it belongs to; a change from an older attempt is refused (``fenced``), so
that a worker that lost its job, and does not know it yet, can do no harm.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic_core import to_json

from inferfleet.schemas.errors import InferfleetError, JobDataLostError, JobNotFoundError
from inferfleet.schemas.failures import Failure
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.journal import (
    AnswerHead,
    FinishedEntry,
    JournalEntry,
    QueuedEntry,
    RestartedEntry,
    RestartReason,
    RunningEntry,
    TokenChunk,
    TokensEntry,
)
from inferfleet.schemas.names import job_key, journal_key, result_key
from inferfleet.schemas.result import JobRecord, Result, Usage
from inferfleet.schemas.said import cut_response
from inferfleet.wire.redis import job_scripts
from inferfleet.wire.redis.attempts import (
    DEATHS_PER_ATTEMPT,
    SUSPECT_AFTER,
    VERDICTS,
    WRITTEN,
    Failed,
    Fence,
    Started,
    Verdict,
    Written,
)
from inferfleet.wire.redis.journal_lines import Unflushed, generated, head_of, parse_line, whole_answer
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.replies import Replies

READ_BATCH = 500
"""Records read in one round trip."""

MIN_BUSY_S = 1.0
"""How long to leave a job alone, at least, that cannot be ended now because somebody else has it."""


_UNREADABLE = (LookupError, ValueError)
"""What a record or result leads to that is not as this version writes it."""

_STATES = {state.encode(): state for state in JobState}

logger = logging.getLogger(__name__)


class Closed(StrEnum):
    """What came of a refused submission's wish to take its job back."""

    CLOSED = "closed"
    """Nobody else has submitted it."""

    SHARED = "shared"
    """Somebody else is submitting it, or has."""

    BEGUN = "begun"
    """A worker has it, or it has ended."""

    MISSING = "missing"
    """Somebody else has taken it back."""


class Standing(StrEnum):
    """How a job stands: its state, that it has no record, or that nobody can be seen to have it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    MISSING = "missing"

    STALLED = "stalled"
    """An attempt has begun it, and for longer than its lease nobody has held it.

    Its message may wait in the queue. Or it was acked, and Redis has lost the end of the job since: then it
    has to be published again, which does no harm in any case.
    """

    @property
    def over(self) -> bool:
        """Whether it has ended, or there is nothing of it."""
        return self not in {Standing.QUEUED, Standing.RUNNING, Standing.STALLED}


class Recorded(NamedTuple):
    """The record of a job that is submitted. ``attempt`` is how often it was started.

    While it is ``closed``, a refused submission takes it back. ``holder`` is what its idempotency key said
    just after. ``stalled`` is as in ``Standing``, unless it has been published again since its last attempt.
    """

    created: bool
    state: JobState
    attempt: int
    closed: bool
    holder: str = ""
    stalled: bool = False

    @property
    def may_lack_message(self) -> bool:
        """Whether it may have no message: its producer died before, or Redis lost the end of the job."""
        return self.stalled or (self.state is JobState.QUEUED and self.attempt == 0)


class Held(NamedTuple):
    """Who has a job, by its record: ``fence`` is that of the last attempt, ``""`` if there is none.

    ``state`` is ``None`` without a record. While it is ``closed``, a refused submission takes it back.
    """

    state: JobState | None
    closed: bool
    fence: str

    @property
    def waits(self) -> bool:
        """Whether it is to be started, and nobody takes it back."""
        return self.state is JobState.QUEUED and not self.closed


class JobRecords:
    """The records of all jobs. What many tasks do at once goes through one pipeline."""

    def __init__(
        self,
        *,
        pipeline: CommandPipeline,
        result_ttl_s: int,
        queued_ttl_s: int,
    ) -> None:
        self._pipeline = pipeline
        self.clock = pipeline.clock
        """Redis' time."""
        self._replies = Replies(pipeline)
        self._result_ttl_s = result_ttl_s
        self._queued_ttl_s = queued_ttl_s
        # How long a message may be in the queue at least, which must not run a job that has ended.
        self._tombstone_ttl_s = max(queued_ttl_s, result_ttl_s)

    # A producer's side

    async def create(
        self, job: Job, *, reply_to: str, call: str, key: str = "", keep: bool = False
    ) -> Recorded:
        """Record a job, or join those who submit it too. ``call`` is unique to this submission.

        ``key`` is the idempotency key that it was found under. ``keep`` makes a job stay whose other
        submissions were refused, and which is taken back.
        """
        recorded = self._pipeline.enqueue(
            *job_scripts.create(
                job_key(job.id),
                journal_key(job.id),
                now_ms=_milliseconds(job.submitted_at),
                ttl_s=self._queued_ttl_s,
                queued_entry=_json(QueuedEntry(at=job.submitted_at)),
                pool=job.pool,
                priority=int(job.priority),
                reply_to=reply_to,
                call=call,
                keep=int(keep),
                session=job.session_id or "",
            )
        )
        # In this order: whoever takes a job back frees its key before the record goes.
        holder = self._pipeline.enqueue("GET", key) if key else None
        created, state, attempt, closed, stalled = await recorded
        held = (holder and await holder) or b""
        return Recorded(created == 1, _STATES[state], attempt, closed == 1, held.decode(), stalled == 1)

    async def standing(self, job_id: str) -> Standing:
        """Learn how a job stands, by Redis' clock."""
        return Standing((await self._pipeline.enqueue(*job_scripts.standing(job_key(job_id)))).decode())

    async def held(self, job_id: str) -> Held:
        """Learn who has a job."""
        state, attempt, closed, fence = await self._pipeline.execute(
            "HMGET", job_key(job_id), "state", "attempt", "closed", "fence"
        )
        return Held(
            _STATES.get(state), closed is not None and int(attempt or 0) == 0, (fence or b"").decode()
        )

    async def close(self, job_id: str, *, call: str) -> Closed:
        """Ask whether a job whose submission ``call`` was refused may be taken back; then nobody joins it."""
        return Closed((await self._pipeline.enqueue(*job_scripts.close(job_key(job_id), call=call))).decode())

    async def discard(self, job_id: str) -> bool:
        """Forget a job that was closed. False if it has got on all the same."""
        return bool(await self._pipeline.enqueue(*job_scripts.discard(job_key(job_id), journal_key(job_id))))

    async def cancel(
        self,
        job_id: str,
        result: Result,
        *,
        attempt: int = 0,
        keep: bool = False,
        said: bool = False,
        tokens: int | None = None,
    ) -> JobState | None:
        """End a job that waits or is stalled, last tried by ``attempt``, with ``result``; mark a running one.

        Returns the state it is in now. With ``tokens``, the result is made of so many tokens and that
        attempt: ``None`` says that they are others by now, and that nothing was done.

        With ``keep`` the worker that ends it adds what was generated to its session. A job that has ``said``
        its answer there already is marked, too.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        now = self.clock.now()
        end = FinishedEntry(
            at=now,
            attempt=attempt,
            state=result.state,
            failure=result.error,
            tokens=result.usage.completion_tokens,
        )
        verdict, _, reply_to = await self._pipeline.enqueue(
            *job_scripts.cancel(
                job_key(job_id),
                journal_key(job_id),
                result_key(job_id),
                now_ms=_milliseconds(now),
                ttl_s=self._result_ttl_s,
                finished_entry=_json(end),
                result=_json(result),
                mode="interrupt" if keep else "cancel",
                end_state=result.state.value,
                of_attempt=attempt,
                of_tokens="" if tokens is None else tokens,
                tombstone_ttl_s=self._tombstone_ttl_s,
                said=int(said),
            )
        )
        match verdict.decode():
            case "missing":
                raise JobNotFoundError(job_id)
            case "requested":
                return JobState.RUNNING
            case "changed":
                return None
            case state:
                if reply_to:
                    await self._replies.tell(reply_to.decode(), job_id, JobState(state))
                return JobState(state)

    async def copied(self, job_id: str) -> None:
        """Note that a job may be queued twice: its record stays for as long as one of the messages may."""
        await self._pipeline.enqueue(*job_scripts.copied(job_key(job_id), ttl_s=self._tombstone_ttl_s))

    # A worker's side

    async def start(
        self,
        job: Job,
        *,
        token: str,
        worker_id: str,
        lease_s: float,
        resumable: bool,
        alone: bool,
        reply_to: str,
        model_identity: str = "",
    ) -> Started:
        """Begin an attempt. ``token`` is unique to this call, so that a repeated one starts only once.

        ``alone`` says that no other suspect runs beside it (see ``SUSPECT_AFTER``). ``model_identity`` is the
        caller's; whoever only ends the job has none.
        """
        now = self.clock.now()
        verdict, attempt, tokens, restart, charged, waiting, identity = await self._pipeline.enqueue(
            *job_scripts.start(
                job_key(job.id),
                journal_key(job.id),
                started_ms=_milliseconds(now),
                lease_ms=int(lease_s * 1000),
                ttl_s=self._queued_ttl_s,
                worker=worker_id,
                at=now.isoformat(),
                max_attempts=job.max_attempts,
                expires_ms=_milliseconds(job.expires_at) if job.expires_at else "",
                resumable=int(resumable),
                pool=job.pool,
                priority=int(job.priority),
                message_reply_to=reply_to,
                submitted_ms=_milliseconds(job.submitted_at),
                fence=token,
                alone=int(alone),
                suspect_after=SUSPECT_AFTER,
                max_deaths=job.max_attempts * DEATHS_PER_ATTEMPT,
                model_identity=model_identity,
                session=job.session_id or "",
            )
        )
        if verdict == b"busy":
            return Started(Verdict.BUSY, Fence(token, 0), 0, charged, waiting.decode(), busy_s=attempt / 1000)
        return Started(
            VERDICTS[verdict],
            Fence(token, attempt),
            tokens,
            charged,
            waiting.decode(),
            restart=RestartReason(restart.decode()) if restart else None,
            model_identity=identity.decode() or None,
        )

    async def cut_answer(
        self, job_id: str, *, tokens: int, began_at: datetime
    ) -> tuple[dict[str, Any] | None, Usage]:
        """Make the response and the usage of a job that will not go on behind these many tokens.

        There is no response if the journal does not say what was generated.
        """
        entries: list[JournalEntry] = []
        with suppress(*_UNREADABLE):
            entries = await self.journal(job_id) if tokens else []
        if (head := head_of(entries)) is None:
            return None, Usage(completion_tokens=tokens)
        response = cut_response(job_id, head, generated(entries), created=int(began_at.timestamp()))
        return response, Usage(prompt_tokens=head.prompt_tokens, completion_tokens=tokens)

    async def fail(
        self, job: Job, failure: Failure, *, worker_id: str, lease_s: float, reply_to: str
    ) -> Failed:
        """End a job that no worker can run, unless it runs, or has ended.

        It takes the fence as an attempt does, so that one of two ends counts.
        """
        started = await self.start(
            job,
            token=f"{worker_id}:{os.urandom(8).hex()}",
            worker_id=worker_id,
            lease_s=lease_s,
            resumable=True,
            alone=True,
            reply_to=reply_to,
        )
        match started.verdict:
            case Verdict.DONE:
                return Failed(None, 0.0)
            case Verdict.BUSY | Verdict.SUSPECT:
                return Failed(None, max(started.busy_s, MIN_BUSY_S))
            case _:
                pass
        response, usage = await self.cut_answer(job.id, tokens=started.tokens, began_at=self.clock.now())
        result = Result(
            job_id=job.id,
            state=JobState.FAILED,
            response=response,
            error=failure,
            usage=usage,
            model_identity=started.model_identity,
            worker_id=worker_id,
            attempts=started.charged,
        )
        fence, client = started.fence, started.reply_to
        written = await self.finish(result, fence=fence, unflushed=Unflushed(started.tokens), reply_to=client)
        if written is Written.MISSING and await self.restore(
            job,
            fence=fence,
            charged=started.charged,
            worker_id=worker_id,
            lease_s=lease_s,
            started_at=self.clock.now(),
            chunks=(),
            reply_to=client,
        ):
            # Redis lost the journal or the record. What was generated is gone with it.
            nothing = result.model_copy(update={"response": None, "usage": Usage(), "model_identity": None})
            written = await self.finish(nothing, fence=fence, unflushed=Unflushed(0), reply_to=client)
        return Failed(result, 0.0) if written is Written.OK else Failed(None, MIN_BUSY_S)

    async def restart(
        self,
        job_id: str,
        *,
        fence: Fence,
        worker_id: str,
        model_identity: str,
        reason: RestartReason,
        tokens_wasted: int,
    ) -> Written:
        """Begin the answer of a running attempt again. From then on the attempt has ``fence.restarted()``."""
        now = self.clock.now()
        restarted = RestartedEntry(at=now, attempt=fence.attempt, reason=reason, tokens_wasted=tokens_wasted)
        running = RunningEntry(
            at=now, attempt=fence.attempt, worker_id=worker_id, model_identity=model_identity or None
        )
        written = await self._pipeline.enqueue(
            *job_scripts.restart(
                job_key(job_id),
                journal_key(job_id),
                fence=fence.token,
                new_fence=fence.restarted().token,
                model_identity=model_identity,
                restarted_entry=_json(restarted),
                running_entry=_json(running),
            )
        )
        return WRITTEN[written]

    async def append(self, job_id: str, *, fence: Fence, lease_s: float, unflushed: Unflushed) -> Written:
        """Add tokens to the journal and renew the lease; without tokens, only renew."""
        now = self.clock.now()
        offset, count, tokens = _tokens(unflushed, fence.attempt, now)
        return WRITTEN[
            await self._pipeline.enqueue(
                *job_scripts.append(
                    job_key(job_id),
                    journal_key(job_id),
                    fence=fence.token,
                    lease_ms=int(lease_s * 1000),
                    offset=offset,
                    count=count,
                    tokens_entry=tokens,
                    ttl_s=self._queued_ttl_s,
                )
            )
        ]

    async def finish(self, result: Result, *, fence: Fence, unflushed: Unflushed, reply_to: str) -> Written:
        """Commit the terminal result and tell the waiting client. Exactly one commit of a job succeeds."""
        now = self.clock.now()
        job_id = result.job_id
        offset, count, tokens = _tokens(unflushed, fence.attempt, now)
        committed = self._pipeline.enqueue(
            *job_scripts.finish(
                job_key(job_id),
                journal_key(job_id),
                result_key(job_id),
                fence=fence.token,
                now_ms=_milliseconds(now),
                ttl_s=self._result_ttl_s,
                end_state=result.state.value,
                offset=offset,
                count=count,
                tokens_entry=tokens,
                finished_entry=_json(
                    FinishedEntry(
                        at=now,
                        attempt=fence.attempt,
                        state=result.state,
                        failure=result.error,
                        tokens=offset + count,
                    )
                ),
                result=_json(result),
                tombstone_ttl_s=self._tombstone_ttl_s,
            )
        )
        if reply_to:
            # Behind the commit. Should that be refused, the client only looks at the record for nothing.
            self._replies.add(reply_to, job_id, result.state)
        return WRITTEN[await committed]

    async def release(
        self,
        job_id: str,
        *,
        fence: Fence,
        unflushed: Unflushed,
        entry: QueuedEntry,
        refund: bool,
        pause_s: float = 0.0,
    ) -> Written:
        """Give the job back to the queue: nobody may start it for ``pause_s`` seconds.

        With ``refund`` the attempt does not count against the limit.
        """
        now = self.clock.now()
        offset, count, tokens = _tokens(unflushed, fence.attempt, now)
        return WRITTEN[
            await self._pipeline.enqueue(
                *job_scripts.release(
                    job_key(job_id),
                    journal_key(job_id),
                    fence=fence.token,
                    ttl_s=self._queued_ttl_s,
                    offset=offset,
                    count=count,
                    tokens_entry=tokens,
                    queued_entry=_json(entry),
                    refund=int(refund),
                    pause_ms=int(pause_s * 1000),
                )
            )
        ]

    async def restore(
        self,
        job: Job,
        *,
        fence: Fence,
        charged: int,
        worker_id: str,
        lease_s: float,
        started_at: datetime,
        chunks: tuple[TokenChunk, ...],
        reply_to: str,
        model_identity: str = "",
        head: AnswerHead | None = None,
    ) -> bool:
        """Write record and journal of a running job back after Redis lost one of them.

        False if somebody else has the job.
        """
        now = self.clock.now()
        everything = Unflushed(0, chunks, head)
        # ``resumed_from`` tells readers that the tokens that follow are the ones they have seen.
        running = RunningEntry(
            at=started_at,
            attempt=fence.attempt,
            worker_id=worker_id,
            resumed_from=everything.count,
            model_identity=model_identity or None,
        )
        answer = await self._pipeline.enqueue(
            *job_scripts.restore(
                job_key(job.id),
                journal_key(job.id),
                fence=fence.token,
                attempt=fence.attempt,
                lease_ms=int(lease_s * 1000),
                ttl_s=self._queued_ttl_s,
                worker=worker_id,
                charged=charged,
                tokens=everything.count,
                running_entry=_json(running),
                tokens_entry=_tokens(everything, fence.attempt, now)[2],
                pool=job.pool,
                priority=int(job.priority),
                reply_to=reply_to,
                submitted_ms=_milliseconds(job.submitted_at),
                started_ms=_milliseconds(started_at),
                model_identity=model_identity,
                session=job.session_id or "",
            )
        )
        return bool(answer)

    # Everyone's side

    async def get(self, job_id: str) -> JobRecord:
        """Read one job.

        Raises:
            JobNotFoundError: There is no record of the job.
            JobDataLostError: It has ended, and its result is gone.

        """
        fields, result = await asyncio.gather(
            self._pipeline.enqueue("HGETALL", job_key(job_id)),
            self._pipeline.enqueue("GET", result_key(job_id)),
        )
        if not fields:
            raise JobNotFoundError(job_id)
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

    async def glance(self, job_id: str) -> tuple[str, bytes | None]:
        """Read only who is told of a job's end, and its result, as JSON, once it has one.

        Raises:
            JobNotFoundError: There is no record of the job.
            JobDataLostError: It has ended, and its result is gone.

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

    async def states(self, job_ids: Iterable[str]) -> dict[str, JobState | None]:
        """Read the states of many jobs. A job without a record is ``None``."""
        states: dict[str, JobState | None] = {}
        for some in _portions(job_ids):
            found = await asyncio.gather(
                *(self._pipeline.enqueue("HGET", job_key(job_id), "state") for job_id in some)
            )
            # One that no version of ours has written is nobody's end, and must not keep others from theirs.
            states |= {job_id: _STATES.get(state) for job_id, state in zip(some, found, strict=True)}
        return states

    async def state(self, job_id: str) -> JobState:
        """Read the state of a job.

        Raises:
            JobNotFoundError: There is no readable record of it.

        """
        state = (await self.states([job_id]))[job_id]
        if state is None:
            raise JobNotFoundError(job_id)
        return state

    async def pool(self, job_id: str) -> str | None:
        """Read which pool a job is of; ``None`` without a record."""
        pool = await self._pipeline.execute("HGET", job_key(job_id), "pool")
        return None if pool is None else pool.decode()

    async def belonging(self, job_id: str) -> tuple[str, str] | None:
        """Read who is told of a job's end and which session it is a turn of; ``None`` without a record."""
        reply_to, session = await self._pipeline.execute("HMGET", job_key(job_id), "reply_to", "session")
        return None if reply_to is None else (reply_to.decode(), (session or b"").decode())

    async def get_many(self, job_ids: Iterable[str]) -> dict[str, JobRecord | None]:
        """Read many jobs, some hundred in one round trip. A job without a readable record is ``None``.

        A record that is terminal and has no ``result`` has lost it.
        """
        records: dict[str, JobRecord | None] = {}
        for some in _portions(job_ids):
            fields = [self._pipeline.enqueue("HGETALL", job_key(job_id)) for job_id in some]
            results = [self._pipeline.enqueue("GET", result_key(job_id)) for job_id in some]
            answers: list[Any] = await asyncio.gather(*fields, *results)
            for job_id, found, result in zip(some, answers, answers[len(some) :], strict=False):
                try:
                    records[job_id] = _record(job_id, found, result) if found else None
                except _UNREADABLE as error:
                    # It must not keep the others from their reader.
                    logger.warning("cannot read the record of job %s (%s)", job_id, type(error).__name__)
                    records[job_id] = None
        return records

    async def results(self, job_ids: Iterable[str]) -> dict[str, bytes]:
        """Read the results, as JSON, of those jobs that have one."""
        results: dict[str, bytes] = {}
        for some in _portions(job_ids):
            texts = await asyncio.gather(*(self._pipeline.enqueue("GET", result_key(id_)) for id_ in some))
            results |= {job_id: text for job_id, text in zip(some, texts, strict=True) if text is not None}
        return results

    async def lines(self, job_id: str, *, after: bytes = b"0-0") -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Read the lines of a job's journal that are behind the line ``after``, each with its id."""
        lines: Any = await self._pipeline.execute("XRANGE", journal_key(job_id), b"(" + after, "+")
        return lines or []

    async def journal(self, job_id: str) -> list[JournalEntry]:
        """Read a job's whole journal."""
        return [parse_line(fields) for _, fields in await self.lines(job_id)]

    async def whole_answer(self, job_id: str, *, tokens: int) -> tuple[TokenChunk, ...] | None:
        """Read the tokens to continue from; ``None`` if the journal does not hold exactly these many."""
        return whole_answer((fields for _, fields in await self.lines(job_id)), tokens=tokens)

    async def last_line(self, job_id: str) -> tuple[bytes, JournalEntry] | None:
        """Read the last line of a job's journal, with its id."""
        lines: Any = await self._pipeline.execute("XREVRANGE", journal_key(job_id), "+", "-", "COUNT", 1)
        return (lines[0][0], parse_line(lines[0][1])) if lines else None


def _portions(job_ids: Iterable[str]) -> Iterator[list[str]]:
    """Cut them into portions that do not hold up the commands of others, each id once."""
    ids = list(dict.fromkeys(job_ids))
    for first in range(0, len(ids), READ_BATCH):
        yield ids[first : first + READ_BATCH]


def _tokens(unflushed: Unflushed, attempt: int, now: datetime) -> tuple[int, int, bytes]:
    """The three arguments ``offset, count, entry`` of every script that may add tokens."""
    if not unflushed.chunks:
        return unflushed.offset, 0, b""
    entry = TokensEntry(
        at=now, attempt=attempt, offset=unflushed.offset, chunks=unflushed.chunks, head=unflushed.head
    )
    return unflushed.offset, unflushed.count, _json(entry)


def _record(job_id: str, fields: dict[bytes, bytes], result: bytes | None) -> JobRecord:
    def moment(name: bytes) -> datetime | None:
        value = fields.get(name)
        try:
            return datetime.fromtimestamp(int(value) / 1000, UTC) if value else None
        except (ValueError, OverflowError):
            # An older producer let such times pass.
            return None

    return JobRecord(
        id=job_id,
        state=JobState(fields[b"state"].decode()),
        pool=fields[b"pool"].decode(),
        priority=int(fields[b"priority"]),
        attempt=int(fields[b"attempt"]),
        attempts=int(fields[b"charged"]),
        worker_id=fields[b"worker"].decode() if b"worker" in fields else None,
        model_identity=fields.get(b"model_identity", b"").decode() or None,
        tokens=int(fields[b"tokens"]),
        cancel_requested=b"cancel" in fields,
        reply_to=fields[b"reply_to"].decode() or None,
        session_id=fields[b"session"].decode() if b"session" in fields else None,
        submitted_at=moment(b"submitted_at"),
        started_at=moment(b"started_at"),
        finished_at=moment(b"finished_at"),
        result=Result.model_validate_json(result) if result else None,
    )


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _json(
    model: QueuedEntry | RunningEntry | RestartedEntry | TokensEntry | FinishedEntry | Result,
) -> bytes:
    # Bytes at once: a text would only be encoded again for Redis.
    return to_json(model, exclude_none=True, inf_nan_mode="null")
