"""One job in this worker, from its delivery until that is settled."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

from inferfleet.schemas import Failure, Job
from inferfleet.schemas.journal import TokenChunk
from inferfleet.wire.redis.attempts import Fence, Started
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.worker.answer import Answer
from inferfleet.worker.broker import Delivery
from inferfleet.worker.ports import ModelIdentity
from inferfleet.worker.stop_switch import Interruption, StopSwitch


class JobRun:
    """An attempt of a job. Its delivery changes when the broker delivers the message again."""

    def __init__(self, *, job: Job, delivery: Delivery, clock: RedisClock | None = None) -> None:
        self.job = job
        self.delivery = delivery
        self.answer = Answer(job)
        self.stop_switch = StopSwitch()
        self.fence = Fence("", 0)
        self.charged = 0
        """The job's charged attempts, including this one."""
        self.reply_to = delivery.reply_to
        """The client whose reply stream gets a line at the end."""
        self.problem: Failure | None = None
        """Why the engine cannot answer the request."""
        self.identity: ModelIdentity | None = None
        """The identity of the model on this worker that would generate the answer."""
        self.model_identity: str | None = None
        """The identity of the model that generates the answer, or generated it."""
        self._clock = clock or RedisClock()
        self.started = time.monotonic()
        """When the attempt was granted; until then, the time of the delivery."""
        self.session_renewed = self.started
        """When the expiry of the turn's session was last extended."""
        self.prepared_s: float | None = None
        """The time from ``started`` until the engine got the job."""
        self.first_token_s: float | None = None
        """The time from ``started`` to the first token."""
        self.generated_s: float | None = None
        """The time from ``started`` until the engine had nothing more to say."""
        self.tokens_refused = 0
        """Tokens that Redis refused for the journal, because a later attempt has the job."""
        self.previous_turn: str | None = None
        """The job of the session's last turn in the prompt."""
        self.history_tokens = 0
        """Tokens of the session's earlier turns in the prompt."""
        self.traced: bool | None = None
        """Whether the job is traced; ``None`` until that is decided, or if this worker traces nothing."""
        self.resumable = False
        """Whether the engine can resume the answer from its tokens."""
        self.preemptions = 0
        """How often the job has lost its slot to a more urgent one."""
        self.engine_began: float | None = None
        """Since when the engine has had the job; ``None`` while it does not have it."""
        self.engine_s = 0.0
        """How long the engine had the job before ``engine_began``."""
        self.runs_alone = False
        """Whether this is the one suspect that may run here (see ``SUSPECT_AFTER``)."""
        self._woken: asyncio.Event | None = None
        self._end_is_ordered = False
        """Whether somebody has ordered the job's end while the engine was not generating."""

    @property
    def attempt(self) -> int:
        """The number of this attempt; 0 before it was granted."""
        return self.fence.attempt

    @property
    def started_at(self) -> datetime:
        """``started`` in Redis' time."""
        return self._clock.at(self.started)

    @property
    def rank(self) -> int:
        """Which job gets a slot first: the higher one. It is the job's priority, unless it was promoted."""
        message_priority: int = self.delivery.properties.get("priority", 0)
        return max(self.job.priority, message_priority)

    @property
    def promoted(self) -> bool:
        """Whether the job's message has overtaken those of more urgent jobs."""
        return self.rank > self.job.priority

    def start(self, started: Started) -> None:
        """Record the granted start."""
        self.fence = started.fence
        self.model_identity = started.model_identity
        self.charged = started.charged
        self.reply_to = started.reply_to
        self.started = time.monotonic()

    def restart(self, *, model_identity: str) -> None:
        """Restart the answer, with another fence and perhaps another model."""
        self.fence = self.fence.restarted()
        self.model_identity = model_identity

    def add(self, chunk: TokenChunk) -> None:
        """Take a chunk from the engine."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started
        self.answer.add(chunk)

    def leave_engine(self) -> float:
        """Note that the engine does not have the job any more. Return for how long it had it."""
        assert self.engine_began is not None  # noqa: S101 - the engine has it
        lasted_s = time.monotonic() - self.engine_began
        self.engine_began = None
        self.engine_s += lasted_s
        return lasted_s

    @property
    def time_left_s(self) -> float | None:
        """How much of the job's ``timeout_s`` is left; ``None`` without a limit."""
        return None if self.job.timeout_s is None else self.job.timeout_s - self.engine_s

    def cut_response(self) -> dict[str, Any]:
        """Make the response of the partial answer."""
        return self.answer.cut_response(created=int(self.started_at.timestamp()))

    def interrupt(self, reason: Interruption) -> None:
        """Stop the generation, prevent its start, or end a pause."""
        self.stop_switch.stop(reason)
        if not self.stop_switch.is_guarding and reason in {Interruption.CANCELLED, Interruption.INTERRUPTED}:
            self._end_is_ordered = True
        self.wake()

    @property
    def paused(self) -> bool:
        """Whether the job only waits here, for its retry for example."""
        return self._woken is not None

    async def pause(self, delay_s: float) -> None:
        """Wait for ``delay_s``, or until ``wake``. Return at once if somebody has ordered the job's end."""
        if self._end_is_ordered:
            return
        self._woken = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._woken.wait()

    def wake(self) -> None:
        """End a pause."""
        if self._woken is not None:
            self._woken.set()
