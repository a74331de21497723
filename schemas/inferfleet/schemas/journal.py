"""The journal of a job: everything that happened to it, in order.

One stream per job, one entry per line, each entry one of the kinds below. Polling and streaming are views
of it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.failures import Failure
from inferfleet.schemas.job import JobState
from inferfleet.schemas.result import Count
from inferfleet.schemas.wire_model import WireModel

ENTRY_FIELD = "entry"
"""The one field of a journal line in Redis; its value is the entry as JSON."""


class RestartReason(StrEnum):
    """Why what was generated does not count any more. Closed, like the codes of failures."""

    NOT_RESUMABLE = "not_resumable"
    """An answer of this kind cannot go on from its tokens."""
    ANOTHER_MODEL = "another_model"
    """The next attempt has a model of another identity, or nobody knows whose tokens they are."""
    JOURNAL_INCOMPLETE = "journal_incomplete"
    """The journal does not hold exactly the tokens that the record counts."""
    JOURNAL_LOST = "journal_lost"
    """Redis lost record and journal. No journal says so: a reader finds out who had seen more."""


class TokenChunk(WireModel):
    """Tokens of one choice. ``text`` is what they add to the visible text; it may lag behind the ids.

    ``delta`` is there when the tokens are not plain text: OpenAI's ``delta`` object with
    ``tool_calls`` or ``reasoning``.
    """

    index: Count = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    delta: dict[str, Any] | None = None


class AnswerHead(WireModel):
    """What an answer begins with: the model's name, and the prompt as the engine counted it."""

    endpoint: Endpoint
    model: str
    prompt_tokens: Count


class QueuedEntry(WireModel):
    """The job waits: newly accepted, to be retried, or handed over by a worker that leaves."""

    kind: Literal["queued"] = "queued"
    at: AwareDatetime
    attempt: Count = 0
    reason: Literal["submitted", "retry", "handed_over"] = "submitted"
    failure: Failure | None = None


class RunningEntry(WireModel):
    """An attempt began. ``resumed_from`` is the number of tokens it continues from.

    ``model_identity`` is the short hash of the model that generates from here on.
    """

    kind: Literal["running"] = "running"
    at: AwareDatetime
    attempt: Count
    worker_id: str
    resumed_from: Count = 0
    model_identity: str | None = None


class TokensEntry(WireModel):
    """Tokens were generated. ``offset`` counts the tokens of all choices before this entry.

    ``head`` is in the first entry of an attempt, unless the answer ends with it.
    """

    kind: Literal["tokens"] = "tokens"
    at: AwareDatetime
    attempt: Count
    offset: Count
    chunks: tuple[TokenChunk, ...]
    head: AnswerHead | None = None

    @property
    def count(self) -> int:
        """The number of tokens."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)


class RestartedEntry(WireModel):
    """What was generated so far does not count any more; the next tokens start at offset 0."""

    kind: Literal["restarted"] = "restarted"
    at: AwareDatetime
    attempt: Count
    reason: RestartReason
    tokens_wasted: Count


class FinishedEntry(WireModel):
    """The job ended. The last line of every journal.

    ``tokens`` is how many the attempt that ended it had of the answer; a journal with fewer has lost some.
    """

    kind: Literal["finished"] = "finished"
    at: AwareDatetime
    attempt: Count
    state: JobState
    failure: Failure | None = None
    tokens: Count = 0


JournalEntry = Annotated[
    QueuedEntry | RunningEntry | TokensEntry | RestartedEntry | FinishedEntry, Field(discriminator="kind")
]

journal_entry: TypeAdapter[JournalEntry] = TypeAdapter(JournalEntry)
"""Reads one journal line: ``journal_entry.validate_json(line)``."""
