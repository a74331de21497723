"""Batches in the form of OpenAI's Batch API: the lines of their files, and what a gateway keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.wire_model import WireModel


class BatchRequestLine(WireModel):
    """A line of the input: one request. ``custom_id`` is the caller's name for it, unique in its file."""

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"] = "POST"
    url: Endpoint
    body: dict[str, Any]


class BatchResponse(WireModel):
    """The response to a request. ``request_id`` is the id of its job."""

    status_code: int = 200
    request_id: str
    body: dict[str, Any]


class BatchLineError(WireModel):
    """Why a line has no response. ``line`` is its number in the input, counted from 1."""

    code: str
    message: str
    line: Annotated[int, Field(ge=1)]


class BatchOutputLine(WireModel):
    """A line of the output, which has a ``response``, or of the error file, which has an ``error``.

    ``custom_id`` is ``None`` if the line of the input is not a request.
    """

    id: str
    custom_id: str | None
    response: BatchResponse | None = None
    error: BatchLineError | None = None


class BatchState(StrEnum):
    """The ``status`` of a batch of the gateway. A terminal one never changes."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the batch has ended."""
        return self in {BatchState.FAILED, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED}


class BatchOrder(WireModel):
    """What a caller of the gateway has ordered. It never changes.

    ``key_id`` is the API key of the caller, if there are keys: its rights and limits apply to every job.
    ``options`` are those of every job. Times are Redis', in Unix milliseconds; ``output_ttl_s`` is how long
    the output is kept.
    """

    id: str
    tenant: str
    input_file_id: str
    endpoint: Endpoint
    completion_window: str
    created_ms: int
    deadline_ms: int
    options: dict[str, Any]
    key_id: str | None = None
    metadata: dict[str, str] | None = None
    output_ttl_s: int


class BatchProblem(WireModel):
    """Why the input of a batch is invalid, so that the batch has failed. ``line`` is counted from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchProgress(WireModel):
    """How many lines a batch has, and how many have an answer or an error; and the tokens of the answers."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class BatchRecord(WireModel):
    """A batch of the gateway: what was ordered, and what has become of it.

    ``since_ms`` says when it entered each of its states, and ``expiring`` that its deadline passed before all
    its lines had ended. ``pools`` maps each model to the pool of its latest job; the model of lines without
    one is the empty string.
    """

    order: BatchOrder
    state: BatchState = BatchState.VALIDATING
    since_ms: Mapping[BatchState, int] = Field(default_factory=dict[BatchState, int])
    progress: BatchProgress = BatchProgress()
    problems: tuple[BatchProblem, ...] = ()
    expiring: bool = False
    pools: Mapping[str, str] = Field(default_factory=dict[str, str])
    output_file_id: str | None = None
    error_file_id: str | None = None


class FileRecord(WireModel):
    """A file of the gateway. It never changes. Times are Redis', in Unix milliseconds."""

    id: str
    tenant: str
    filename: str
    purpose: Literal["batch", "batch_output"]
    bytes: Annotated[int, Field(ge=0)]
    created_ms: int
    expires_ms: int
