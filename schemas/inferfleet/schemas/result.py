"""The one terminal result of a job, and the record that leads to it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, Field

from inferfleet.schemas.endpoints import text_of_response
from inferfleet.schemas.errors import JobFailedError
from inferfleet.schemas.failures import Failure
from inferfleet.schemas.job import DEFAULT_TENANT, JobId, JobState, PoolName
from inferfleet.schemas.passages import Citation
from inferfleet.schemas.wire_model import WireModel

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Usage(WireModel):
    """Tokens of the request and its answer, as OpenAI counts them."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cached_tokens: Count = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Timings(WireModel):
    """How long each part took, in seconds, as measured by the worker that ended the job.

    ``queue_wait_s`` runs from submission to the start of the last attempt, ``time_to_first_token_s``
    and ``generation_s`` from the start of that attempt, ``total_s`` from submission to the result. A job with
    ``not_before`` counts as submitted then.
    """

    queue_wait_s: Seconds
    time_to_first_token_s: Seconds | None = None
    generation_s: Seconds
    total_s: Seconds


class Result(WireModel):
    """The result of a job: how it ended.

    ``response`` is the endpoint's response body if the job succeeded. If the job was cut short (cancelled,
    timed out, failed, given up), it is the partial answer that was streamed, each choice with the
    ``finish_reason`` ``abort``; it is ``None`` if there was no token. ``model_identity`` is the short hash of
    the model that generated the whole answer. ``citations`` are the passages of documents that were in the
    prompt, in their order.
    """

    job_id: JobId
    state: JobState
    response: dict[str, Any] | None = None
    error: Failure | None = None
    usage: Usage = Usage()
    timings: Timings | None = None
    worker_id: str | None = None
    model_identity: str | None = None
    attempts: Count = 0
    citations: tuple[Citation, ...] = ()

    @property
    def text(self) -> str:
        """The text of the first choice; empty if there is none."""
        return text_of_response(self.response or {})

    def raise_for_state(self) -> Result:
        """Return the result if the job succeeded.

        Raises:
            JobFailedError: The job ended in any other state.

        """
        if self.state is not JobState.SUCCEEDED:
            raise JobFailedError(
                job_id=self.job_id,
                state=self.state,
                code=self.error.code if self.error else None,
                message=self.error.message if self.error else "no reason was recorded",
            )
        return self


class JobRecord(WireModel):
    """What is known of a job now. Once ``state`` is terminal, it has a ``result``, unless Redis lost that.

    ``attempt`` numbers all attempts; ``attempts`` counts the charged ones, which ``max_attempts`` limits.
    ``model_identity`` is the short hash of the model that has generated the answer so far. ``submitted_to``
    is the pool that the submitter asked for, if a rollout has put the job into ``pool`` instead. The job
    starts no earlier than ``not_before``, and runs ``after`` other jobs.
    """

    id: JobId
    state: JobState
    pool: PoolName
    submitted_to: PoolName | None = None
    priority: int
    attempt: Count = 0
    attempts: Count = 0
    worker_id: str | None = None
    model_identity: str | None = None
    tokens: Count = 0
    cancel_requested: bool = False
    reply_to: str | None = None
    session_id: str | None = None
    tenant: str = DEFAULT_TENANT
    submitted_at: AwareDatetime | None = None
    not_before: AwareDatetime | None = None
    after: tuple[JobId, ...] | None = None
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    result: Result | None = None
