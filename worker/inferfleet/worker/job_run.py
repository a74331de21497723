"""One job while it runs here: its tokens, and the ways to stop it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from enum import StrEnum
from typing import Any

from inferfleet.schemas import Job, Usage
from inferfleet.schemas.journal import AnswerHead, TokenChunk
from inferfleet.schemas.said import cut_response
from inferfleet.wire.attempts import Fence
from inferfleet.wire.clock import RedisClock
from inferfleet.wire.journal_lines import Unflushed
from inferfleet.worker.broker import Delivery


class Interruption(StrEnum):
    """Why a run was stopped before its answer was complete."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    HAND_OVER = "hand_over"
    INTERRUPTED = "interrupted"
    SUPERSEDED = "superseded"


class JobRun:
    """An attempt of a job. The broker's delivery may change under it, when the connection was lost."""

    def __init__(self, *, job: Job, delivery: Delivery, now: Callable[[], datetime] | None = None) -> None:
        self.job = job
        self.delivery = delivery
        self.fence = Fence("", 0)
        self.charged = 0
        self.reply_to = delivery.reply_to
        self.model_identity: str | None = None
        """That of the model which generates, or generated, the answer."""
        self._now = now or RedisClock().now
        self.started_at = job.submitted_at
        """When the attempt was granted; until then, when the job was submitted."""
        self.started = time.monotonic()
        """When the attempt was granted; until then, when the job was delivered."""
        self.session_renewed = self.started
        """When the turn's session was last given the life of a busy one."""
        self.first_token_s: float | None = None
        self.tokens_refused = 0
        """Tokens that the journal did not take, because a later attempt has the job."""
        self.history_tokens = 0
        """Tokens of the session's earlier turns in the prompt."""
        self.interruption: Interruption | None = None
        self.head: AnswerHead | None = None
        """What the answer begins with, once the engine has read the prompt."""
        self._head_is_written = False
        self._journaled: list[TokenChunk] = []
        self._offset = 0
        self._resumed_tokens = 0
        self._fresh: list[TokenChunk] = []
        self._scope: asyncio.Timeout | None = None
        self._woken: asyncio.Event | None = None
        self._ordered = False
        """Whether somebody has asked for an end, and nothing was generated any more."""

    @property
    def attempt(self) -> int:
        """The number of this attempt; 0 before it was granted."""
        return self.fence.attempt

    def start(self, *, fence: Fence, charged: int, reply_to: str, model_identity: str | None = None) -> None:
        """Note what was granted: the fence, how many attempts count, and the client to tell of the end.

        ``model_identity`` is that of the answer so far.
        """
        self.fence = fence
        self.model_identity = model_identity
        self.charged = charged
        self.reply_to = reply_to
        self.started_at = self._now()
        self.started = time.monotonic()

    def restart(self, *, model_identity: str) -> None:
        """Begin the answer again, with another fence and perhaps another model."""
        self.fence = self.fence.restarted()
        self.model_identity = model_identity

    def resume(self, chunks: tuple[TokenChunk, ...], head: AnswerHead | None = None) -> None:
        """Go on behind what earlier attempts left in the journal."""
        self.head = head
        self._head_is_written = True
        self._journaled = list(chunks)
        self._offset = self._resumed_tokens = sum(len(chunk.token_ids) for chunk in chunks)

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far, all choices and attempts together."""
        return self._offset + sum(len(chunk.token_ids) for chunk in self._fresh)

    @property
    def tokens_generated(self) -> int:
        """Tokens this attempt generated itself."""
        return self.tokens - self._resumed_tokens

    @property
    def usage(self) -> Usage:
        """What the answer has used so far."""
        prompt_tokens = self.head.prompt_tokens if self.head is not None else 0
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=self.tokens)

    def cut_response(self) -> dict[str, Any]:
        """Make the response of what was said so far."""
        head = self.head or AnswerHead(
            endpoint=self.job.endpoint, model=str(self.job.body.get("model") or ""), prompt_tokens=0
        )
        return cut_response(
            self.job.id, head, (*self._journaled, *self._fresh), created=int(self.started_at.timestamp())
        )

    @property
    def resume_token_ids(self) -> tuple[int, ...]:
        """The tokens that earlier attempts left in the journal."""
        return tuple(token for chunk in self._journaled for token in chunk.token_ids)

    @property
    def journaled(self) -> tuple[TokenChunk, ...]:
        """All tokens that were given to the journal, in the portions they were given in."""
        return tuple(self._journaled)

    @property
    def has_fresh_tokens(self) -> bool:
        """Whether there are tokens that the journal was not given yet."""
        return bool(self._fresh)

    def add(self, chunk: TokenChunk) -> None:
        """Take a chunk from the engine."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started
        self._fresh.append(chunk)

    @property
    def unwritten(self) -> tuple[int, tuple[TokenChunk, ...]]:
        """How many tokens the journal was given, and those behind them that it was not."""
        return self._offset, _merge(self._fresh)

    def recall(self, offset: int, unwritten: tuple[TokenChunk, ...]) -> None:
        """Take what an earlier attempt could not write down, if the journal ends where that begins."""
        if self.tokens == offset:
            self._fresh = list(unwritten)
            self._resumed_tokens = self.tokens

    def read_prompt(self, *, model: str, tokens: int) -> None:
        """Hear from the engine what it answers, and as which model."""
        self.head = AnswerHead(endpoint=self.job.endpoint, model=model, prompt_tokens=tokens)
        self._head_is_written = False

    def take_unflushed(self, *, ended: bool = False) -> Unflushed:
        """Hand out what the journal does not have. The caller must write it.

        An answer that has ``ended`` needs no head any more: its response has it all.
        """
        head = None
        if self._fresh and not self._head_is_written and not ended:
            head, self._head_is_written = self.head, True
        unflushed = Unflushed(self._offset, _merge(self._fresh), head)
        self._fresh.clear()
        self._journaled.extend(unflushed.chunks)
        self._offset += unflushed.count
        return unflushed

    @asynccontextmanager
    async def interruptible(self) -> AsyncGenerator[None]:
        """Run the block so that ``interrupt`` and the job's own time limit can stop it.

        The block ends early without an exception; ``interruption`` then says why.
        """
        scope = asyncio.timeout(self.job.timeout_s)
        try:
            async with scope:
                self._scope = scope
                if self.interruption is not None:
                    scope.reschedule(0)
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            self.interruption = self.interruption or Interruption.TIMEOUT
        finally:
            self._scope = None

    def interrupt(self, reason: Interruption) -> None:
        """Stop the generation, keep it from starting, or end a pause. Too late, this does nothing."""
        if self.interruption is None:
            self.interruption = reason
            if self._scope is not None and not self._scope.expired():
                self._scope.reschedule(0)
        if self._scope is None and reason in {Interruption.CANCELLED, Interruption.INTERRUPTED}:
            self._ordered = True
        self.wake()

    @property
    def paused(self) -> bool:
        """Whether only its message waits here."""
        return self._woken is not None

    async def pause(self, delay_s: float) -> None:
        """Wait so long, or until somebody wakes the run. Behind an order to end it, there is no wait."""
        if self._ordered:
            return
        self._woken = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._woken.wait()

    def wake(self) -> None:
        """End a pause."""
        if self._woken is not None:
            self._woken.set()


def _merge(chunks: list[TokenChunk]) -> tuple[TokenChunk, ...]:
    """Join neighbouring chunks of the same choice, so that the journal holds few and large ones."""
    merged: list[TokenChunk] = []
    start = 0
    for end in range(1, len(chunks) + 1):
        first = chunks[start]
        if (
            end < len(chunks)
            and chunks[end].index == first.index
            and chunks[end].delta is None is first.delta
        ):
            continue
        group = chunks[start:end]
        if len(group) == 1:
            merged.append(first)
        else:
            token_ids = tuple(token for chunk in group for token in chunk.token_ids)
            merged.append(
                TokenChunk(
                    index=first.index, token_ids=token_ids, text="".join(chunk.text for chunk in group)
                )
            )
        start = end
    return tuple(merged)
