"""The journal of a job: everything that happened to it, in order.

Each job has one stream, with one entry per line, and each entry is of one of the kinds below. Polling and
streaming both read from it.
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
    """Why an answer restarts from the prompt. A closed list, like the codes of failures."""

    NOT_RESUMABLE = "not_resumable"
    """An answer of this kind cannot be resumed from its tokens."""
    ANOTHER_MODEL = "another_model"
    """The next attempt's model has another identity, or the identity behind the tokens is unknown."""
    JOURNAL_INCOMPLETE = "journal_incomplete"
    """The journal does not hold exactly the tokens that the record counts."""
    JOURNAL_LOST = "journal_lost"
    """Redis lost the record and the journal. No journal says so: a reader that had seen more infers it."""


class TokenChunk(WireModel):
    """Tokens of one choice. ``text`` is what they add to the visible text; it may lag behind the ids.

    If the tokens are not plain text, ``delta`` is OpenAI's ``delta`` object with ``tool_calls`` or
    ``reasoning``.
    """

    index: Count = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    delta: dict[str, Any] | None = None


class AnswerHead(WireModel):
    """The head of an answer: the model's name, and the number of prompt tokens as the engine counted them."""

    endpoint: Endpoint
    model: str
    prompt_tokens: Count


class QueuedEntry(WireModel):
    """The job waits: it was accepted, will be retried, or was handed over by a draining worker.

    If ``republished``, its message was lost, and a worker has published it again. If ``preempted``, its
    worker has given its slot to a more urgent job, and resumes the same attempt later. If ``promoted``, it
    has waited so long that a worker lets it overtake more urgent jobs. It starts no earlier than
    ``not_before``.
    """

    kind: Literal["queued"] = "queued"
    at: AwareDatetime
    attempt: Count = 0
    reason: Literal["submitted", "retry", "handed_over"] = "submitted"
    failure: Failure | None = None
    republished: Literal[True] | None = None
    preempted: Literal[True] | None = None
    promoted: Literal[True] | None = None
    not_before: AwareDatetime | None = None


class RunningEntry(WireModel):
    """An attempt began, or goes on after a preemption, or after Redis had lost the record.

    ``resumed_from`` is the number of tokens after which it resumes the answer.

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
    """The answer restarts: earlier tokens no longer count, and the next ones start at offset 0."""

    kind: Literal["restarted"] = "restarted"
    at: AwareDatetime
    attempt: Count
    reason: RestartReason
    tokens_wasted: Count


class FinishedEntry(WireModel):
    """The job ended. This is the last line of every journal.

    ``tokens`` is the length of the answer, as the attempt that ended the job knew it; a journal with fewer
    tokens has lost some.
    """

    kind: Literal["finished"] = "finished"
    at: AwareDatetime
    attempt: Count
    state: JobState
    failure: Failure | None = None
    tokens: Count = 0


JournalEntry = Annotated[
    QueuedEntry | RunningEntry | TokensEntry | RestartedEntry | FinishedEntry,
    Field(discriminator="kind"),
]

journal_entry: TypeAdapter[JournalEntry] = TypeAdapter(JournalEntry)
"""Reads one journal line: ``journal_entry.validate_json(line)``."""
