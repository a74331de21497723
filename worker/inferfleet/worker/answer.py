"""The answer of one job, as this worker knows it: its tokens, and which of them the journal has."""

from __future__ import annotations

from typing import Any

from inferfleet.schemas import Job, Usage
from inferfleet.schemas.journal import AnswerHead, TokenChunk
from inferfleet.schemas.said import cut_response
from inferfleet.wire.redis.journal_lines import PendingTokens


class Answer:
    """Tokens of all choices, those of earlier attempts included."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.head: AnswerHead | None = None
        """The head of the answer, once the engine has read the prompt."""
        self._head_is_written = False
        self._journaled: list[TokenChunk] = []
        self._offset = 0
        """How many tokens were given to the journal."""
        self._resumed_tokens = 0
        self._fresh: list[TokenChunk] = []
        self._fresh_tokens = 0

    @property
    def tokens(self) -> int:
        """The number of tokens so far, all choices and attempts together."""
        return self._offset + self._fresh_tokens

    @property
    def tokens_generated(self) -> int:
        """The number of tokens that this attempt generated itself."""
        return self.tokens - self._resumed_tokens

    @property
    def prompt_tokens(self) -> int:
        """The number of prompt tokens; 0 until the engine has read the prompt."""
        return self.head.prompt_tokens if self.head is not None else 0

    @property
    def usage(self) -> Usage:
        """What the answer has used so far."""
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.tokens)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that were given to the journal."""
        return tuple(token for chunk in self._journaled for token in chunk.token_ids)

    @property
    def journaled(self) -> tuple[TokenChunk, ...]:
        """The chunks that were given to the journal."""
        return tuple(self._journaled)

    @property
    def has_fresh_tokens(self) -> bool:
        """Whether there are tokens that were not given to the journal yet."""
        return bool(self._fresh)

    @property
    def unwritten(self) -> tuple[int, tuple[TokenChunk, ...]]:
        """How many tokens were given to the journal, and the later tokens that were not."""
        return self._offset, _merge(self._fresh)

    def resume(self, chunks: tuple[TokenChunk, ...], head: AnswerHead | None = None) -> None:
        """Resume after the tokens that earlier attempts left in the journal."""
        self.head = head
        self._head_is_written = True
        self._journaled = list(chunks)
        self._offset = self._resumed_tokens = sum(len(chunk.token_ids) for chunk in chunks)

    def recall(self, offset: int, unwritten: tuple[TokenChunk, ...]) -> None:
        """Take tokens that an earlier attempt could not write, if they begin where the journal ends."""
        if self.tokens == offset:
            self._fresh = list(unwritten)
            self._fresh_tokens = sum(len(chunk.token_ids) for chunk in unwritten)
            self._resumed_tokens = self.tokens

    def read_prompt(self, *, model: str, tokens: int) -> None:
        """Take the model's name and the number of prompt tokens from the engine."""
        self.head = AnswerHead(endpoint=self._job.endpoint, model=model, prompt_tokens=tokens)
        self._head_is_written = False

    def add(self, chunk: TokenChunk) -> None:
        """Take a chunk from the engine."""
        self._fresh.append(chunk)
        self._fresh_tokens += len(chunk.token_ids)

    def take_pending(self, *, ended: bool = False) -> PendingTokens:
        """Return what was not given to the journal yet. The caller must write it.

        If the answer has ``ended``, this omits the head, because the response has the same data.
        """
        head = None
        if self._fresh and not self._head_is_written and not ended:
            head, self._head_is_written = self.head, True
        pending = PendingTokens(self._offset, _merge(self._fresh), head)
        self._journaled.extend(pending.chunks)
        self._offset += self._fresh_tokens
        self._fresh, self._fresh_tokens = [], 0
        return pending

    def cut_response(self, *, created: int) -> dict[str, Any]:
        """Make the response of the partial answer. ``created`` is in Unix seconds."""
        head = self.head or AnswerHead(
            endpoint=self._job.endpoint, model=str(self._job.body.get("model") or ""), prompt_tokens=0
        )
        return cut_response(self._job.id, head, (*self._journaled, *self._fresh), created=created)


def _merge(chunks: list[TokenChunk]) -> tuple[TokenChunk, ...]:
    """Join neighbouring chunks of the same choice, so that the journal has few large ones."""
    if len(chunks) < 2:
        return tuple(chunks)
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
