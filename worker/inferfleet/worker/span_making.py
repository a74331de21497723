"""Makes the spans of an attempt that has ended.

::

    send inferfleet.jobs.<pool>     the submitter's, or whatever span the job names
    ├── queue                       from the submission, or the last requeueing, to the start
    └── chat <model>                the attempt
        ├── hydrate                 reading the session's history and what earlier attempts have generated
        ├── prefill                 from the engine's start to the first token
        ├── decode                  to the last one
        └── commit                  writing the result

The id of an attempt's span follows from the job and the attempt's number (``schemas.trace``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from inferfleet.schemas import Failure, FailureCode, Job, Result, Usage
from inferfleet.schemas import span_names as names
from inferfleet.schemas.message import trace_headers
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.trace import span_of_attempt, trace_of_attempts
from inferfleet.wire.span_export import SAMPLED, SpanExport, below, same_trace, span_of_headers
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.past_attempts import Past, PastAttempt


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedAttempt:
    """What an attempt was. Times are in Redis' time, in nanoseconds since 1970; ``None`` if it never came."""

    job: Job
    attempt: int
    state: str
    failure: Failure | None
    response: Mapping[str, Any] | None
    usage: Usage
    resumed_from: int
    previous_turn: str | None
    first_token_s: float | None
    started: int
    prepared: int | None
    first_token: int | None
    generated: int | None
    ended: int

    @classmethod
    def of(cls, run: JobRun, state: str, failure: Failure | None, result: Result | None) -> EndedAttempt:
        """Note what an attempt was that ends now."""
        started = _ns(run.started_at)

        def at(seconds: float | None) -> int | None:
            return None if seconds is None else started + int(seconds * 1e9)

        return cls(
            job=run.job,
            attempt=run.attempt,
            state=state,
            failure=failure,
            response=result.response if result else None,
            usage=result.usage if result else run.answer.usage,
            resumed_from=run.answer.tokens - run.answer.tokens_generated,
            previous_turn=run.previous_turn,
            first_token_s=run.first_token_s,
            started=started,
            prepared=at(run.prepared_s),
            first_token=at(run.first_token_s),
            generated=at(run.generated_s),
            ended=started + int((time.monotonic() - run.started) * 1e9),
        )


class SpanMaker:
    """Makes and exports the spans of a worker."""

    def __init__(self, export: SpanExport, *, provider_name: str, worker_id: str) -> None:
        self._export = export
        self._provider_name = provider_name
        self._worker_id = worker_id
        self._random = RandomIdGenerator()

    def samples(self, job: Job) -> bool:
        """Return whether a job is traced."""
        trace = trace_of_attempts(job.id, job.traceparent)
        return self._export.samples(names.QUEUE, trace=trace, headers=trace_headers(job))

    def make(self, ended: EndedAttempt, past: Past, links: Sequence[Link] = ()) -> None:
        """Make the spans of an attempt, and of the one before it if that was lost."""
        job, parent = ended.job, span_of_headers(trace_headers(ended.job))
        if past.last is not None:
            if past.last.lost:
                self._make_lost(past.last, ended, parent)
            links = [*links, link_to(names.LINK_ATTEMPT, job.id, job.traceparent, past.last.running.attempt)]
        if past.queued_at is not None:
            self._make_queue(job, parent, ended.attempt, _ns(past.queued_at), ended.started)
        attributes, status = _result_attributes(ended), Status()
        if ended.failure is not None and ended.failure.code is not FailureCode.CANCELLED:
            attributes[names.ERROR_TYPE] = ended.failure.code
            # Without the message, because it may quote the prompt.
            status = Status(StatusCode.ERROR)
        context = self._make_attempt(
            job,
            ended.attempt,
            parent,
            started=ended.started,
            ended=ended.ended,
            worker_id=self._worker_id,
            attributes=attributes,
            links=links,
            status=status,
        )
        self._make_stages(ended, context)

    def _make_stages(self, ended: EndedAttempt, parent: SpanContext) -> None:
        prepared, first_token, generated = ended.prepared, ended.first_token, ended.generated
        if prepared is None:
            return
        if ended.job.session_id is not None or ended.attempt > 1:
            self._make_part(names.HYDRATE, parent, ended.started, prepared)
        if generated is None:
            return
        if first_token is None:
            self._make_part(names.PREFILL, parent, prepared, generated)
        else:
            self._make_part(names.PREFILL, parent, prepared, first_token)
            self._make_part(names.DECODE, parent, first_token, generated)
        self._make_part(names.COMMIT, parent, generated, ended.ended)

    def _make_lost(self, lost: PastAttempt, next_one: EndedAttempt, parent: SpanContext | None) -> None:
        """Make the spans of an attempt in the place of its worker.

        When it ended is unknown, so its span lasts until the next attempt started.
        """
        job, running = next_one.job, lost.running
        started = _ns(running.at)
        if lost.queued_at is not None:
            self._make_queue(job, parent, running.attempt, _ns(lost.queued_at), started)
        self._make_attempt(
            job,
            running.attempt,
            parent,
            started=started,
            ended=next_one.started,
            worker_id=running.worker_id,
            attributes={
                names.RESUMED_FROM: running.resumed_from,
                names.OUTPUT_TOKENS: max(0, next_one.resumed_from - running.resumed_from),
                names.ERROR_TYPE: names.WORKER_LOST,
            },
            status=Status(StatusCode.ERROR),
        )

    def _make_attempt(
        self,
        job: Job,
        attempt: int,
        parent: SpanContext | None,
        *,
        started: int,
        ended: int,
        worker_id: str,
        attributes: Mapping[str, Any],
        links: Sequence[Link] = (),
        status: Status,
    ) -> SpanContext:
        """Make the span of an attempt, and return its context."""
        operation, model = names.OPERATIONS[job.endpoint], job.body.get("model")
        context = self._context(job, parent, int(span_of_attempt(job.id, attempt), 16))
        self._export.export(
            f"{operation} {model}" if isinstance(model, str) else operation,
            context,
            parent,
            started=started,
            ended=ended,
            attributes={**self._request_attributes(job, attempt, worker_id), **attributes},
            kind=SpanKind.CONSUMER,
            links=links,
            status=status,
        )
        return context

    def _request_attributes(self, job: Job, attempt: int, worker_id: str) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            names.OPERATION_NAME: names.OPERATIONS[job.endpoint],
            names.PROVIDER_NAME: self._provider_name,
            names.REQUEST_STREAM: job.stream,
            names.MESSAGING_SYSTEM: "rabbitmq",
            names.MESSAGING_OPERATION_NAME: "process",
            names.MESSAGING_OPERATION_TYPE: "process",
            names.DESTINATION_NAME: job_queue(job.pool),
            names.MESSAGE_ID: job.id,
            names.JOB_ID: job.id,
            names.ATTEMPT: attempt,
            names.POOL: job.pool,
            names.PRIORITY: int(job.priority),
            names.TENANT: job.tenant,
            names.WORKER_ID: worker_id,
        }
        if isinstance(model := job.body.get("model"), str):
            attributes[names.REQUEST_MODEL] = model
        if job.session_id is not None:
            attributes[names.CONVERSATION_ID] = job.session_id
        for member, name in names.REQUEST_NUMBERS.items():
            number = job.body.get(member)
            if (
                isinstance(number, int | float)
                and abs(number) < 2**63  # OTLP has integers of 64 bits with a sign.
                and (member, number) != ("n", 1)
            ):
                attributes[name] = number
        return attributes

    def _make_queue(self, job: Job, parent: SpanContext | None, attempt: int, began: int, ended: int) -> None:
        self._export.export(
            names.QUEUE,
            self._context(job, parent, self._random.generate_span_id()),
            parent,
            # A submitter's clock may be ahead.
            started=min(began, ended),
            ended=ended,
            attributes={names.JOB_ID: job.id, names.ATTEMPT: attempt},
        )

    def _make_part(self, name: str, attempt: SpanContext, began: int, ended: int) -> None:
        """Make the span of a part of an attempt."""
        context = same_trace(attempt, self._random.generate_span_id())
        self._export.export(name, context, attempt, started=began, ended=ended, attributes={})

    def _context(self, job: Job, parent: SpanContext | None, span: int) -> SpanContext:
        return below(parent, span, trace=trace_of_attempts(job.id, None))


def _result_attributes(ended: EndedAttempt) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        names.JOB_STATE: ended.state,
        names.RESUMED_FROM: ended.resumed_from,
        names.INPUT_TOKENS: ended.usage.prompt_tokens,
        names.OUTPUT_TOKENS: max(0, ended.usage.completion_tokens - ended.resumed_from),
        names.CACHED_TOKENS: ended.usage.cached_tokens,
    }
    if ended.job.stream and ended.first_token_s is not None:
        attributes[names.TIME_TO_FIRST_CHUNK] = ended.first_token_s
    if (response := ended.response) is not None:
        choices = cast("Sequence[Mapping[str, Any]]", response.get("choices", ()))
        reasons = [str(choice["finish_reason"]) for choice in choices if choice.get("finish_reason")]
        if reasons:
            attributes[names.RESPONSE_FINISH_REASONS] = reasons
        for member, name in (("id", names.RESPONSE_ID), ("model", names.RESPONSE_MODEL)):
            if isinstance(value := response.get(member), str):
                attributes[name] = value
    return attributes


def link_to(what: str, job_id: str, traceparent: str | None, attempt: int) -> Link:
    """Make a link to an attempt of a job that is sampled."""
    context = SpanContext(
        int(trace_of_attempts(job_id, traceparent), 16),
        int(span_of_attempt(job_id, attempt), 16),
        is_remote=True,
        trace_flags=SAMPLED,
    )
    return Link(context, {names.LINK: what})


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6) * 1000
