"""Ends jobs. Every end, for whatever reason, goes through ``JobEndings._end``, and in Redis through
``lua/parts/end_job.lua``, where everything happens that belongs to an end.

    finish    ends a job by an attempt that holds the fence: an answer, a failure, a cancellation, an expiry
    cancel    ends a job without an attempt: one that waits or that nobody has held for long, or a lost turn
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any

from inferfleet.schemas.errors import JobNotFoundError
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.journal import (
    FinishedEntry,
)
from inferfleet.schemas.names import job_key, journal_key, request_key, response_key, result_key
from inferfleet.schemas.result import Result
from inferfleet.wire.redis import job_scripts
from inferfleet.wire.redis.attempts import (
    WRITE_STATUSES,
    Fence,
    WriteStatus,
)
from inferfleet.wire.redis.clock import milliseconds
from inferfleet.wire.redis.job_reading import JobReading
from inferfleet.wire.redis.journal_lines import PendingTokens, encoded, to_append
from inferfleet.wire.redis.open_jobs import OpenJobs
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.replicas import Replicas
from inferfleet.wire.redis.replies import Replies
from inferfleet.wire.redis.script import Command


class JobEndings(JobReading):
    """Ends jobs, each once: a terminal state never changes."""

    def __init__(
        self,
        pipeline: CommandPipeline,
        *,
        result_ttl_s: int,
        queued_ttl_s: int,
        replicas: Replicas | None = None,
    ) -> None:
        super().__init__(pipeline)
        self.replicas = replicas if replicas is not None and replicas.demanded else None
        """Where the settings demand that the end of a job is."""
        self._replies = Replies(pipeline)
        self.open_jobs = OpenJobs(pipeline)
        """The index of unfinished jobs."""
        self.followed: set[str] = set()
        """The jobs that this process has ended and that others follow, until those have been let go on."""
        self._result_ttl_s = result_ttl_s
        # The shortest time for which a message may be in the queue; it must not run a job that has ended.
        self._tombstone_ttl_s = max(queued_ttl_s, result_ttl_s)

    async def finish(
        self, job: Job, result: Result, *, fence: Fence, pending: PendingTokens, reply_to: str
    ) -> WriteStatus:
        """Commit the terminal result and tell the waiting client. Exactly one commit of a job succeeds."""
        now = self.clock.now()
        offset, count, tokens = to_append(pending, fence.attempt, now)
        committed = self._end(
            result,
            at=now,
            attempt=fence.attempt,
            tokens=offset + count,
            spell=partial(
                job_scripts.finish, fence=fence.token, offset=offset, count=count, tokens_entry=tokens
            ),
        )
        at_once = self.replicas is None and self._pipeline.ordered
        if reply_to and at_once:
            # Sent behind the commit. If Redis refuses that, the client only reads the record in vain.
            self._replies.add(reply_to, result.job_id, result.state)
        answer = await committed
        if answer == b"followed":
            self.followed.add(job.id)
            answer = b"ok"
        written = WRITE_STATUSES[answer]
        if reply_to and not at_once:
            self._replies.add(reply_to, result.job_id, result.state)
        if written is WriteStatus.OK:
            self.open_jobs.leave(job.id, pool=job.pool, priority=job.priority)
        return written

    async def cancel(
        self,
        job_id: str,
        result: Result,
        *,
        attempt: int = 0,
        keep: bool = False,
        said: bool = False,
        tokens: int | None = None,
        only_unready: bool = False,
    ) -> JobState | None:
        """End a waiting or stalled job, last tried by ``attempt``, with ``result``; mark a running job.

        Returns the job's state. With ``tokens``, the result was made from so many tokens of that attempt; if
        the job has others by now, this does nothing and returns ``None``. With ``only_unready`` it does
        nothing either unless the job waits for other jobs.

        With ``keep`` the worker that ends the job adds the partial answer to its session. A job that has
        ``said`` its answer there already is only marked, too.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        verdict, _, reply_to, pool, priority = await self._end(
            result,
            at=self.clock.now(),
            attempt=attempt,
            tokens=result.usage.completion_tokens,
            spell=partial(
                job_scripts.cancel,
                mode="fail" if only_unready else "interrupt" if keep else "cancel",
                of_attempt=attempt,
                of_tokens="" if tokens is None else tokens,
                said=int(said),
            ),
        )
        match verdict.decode():
            case "missing":
                raise JobNotFoundError(job_id)
            case "requested":
                return JobState.RUNNING
            case "changed":
                return None
            case state:
                if pool and priority:
                    self.open_jobs.leave(job_id, pool=pool.decode(), priority=int(priority))
                if reply_to:
                    await self._replies.tell(reply_to.decode(), job_id, JobState(state))
                return JobState(state)

    def _end(
        self, result: Result, *, at: datetime, attempt: int, tokens: int, spell: Callable[..., Command]
    ) -> Awaitable[Any]:
        """End a job by the script that ``spell`` calls. Only the script knows whether the job ends now.

        If the settings demand it, the end is on replicas when this is done.
        """
        job_id = result.job_id
        last_line = FinishedEntry(
            at=at, attempt=attempt, state=result.state, failure=result.error, tokens=tokens
        )
        command = spell(
            job_key(job_id),
            journal_key(job_id),
            result_key(job_id),
            request_key(job_id),
            response_key(job_id),
            ended_ms=milliseconds(at),
            end_state=result.state.value,
            finished_entry=encoded(last_line),
            result=encoded(result),
            result_ttl_s=self._result_ttl_s,
            tombstone_ttl_s=self._tombstone_ttl_s,
        )
        end = partial(self._pipeline.enqueue, *command)
        return end() if self.replicas is None else self.replicas.hold(end)
