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
from importlib.metadata import version
from typing import Any, cast

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from typing_extensions import override

from inferfleet.schemas import Failure, FailureCode, Job, Result, Usage
from inferfleet.schemas import span_names as names
from inferfleet.schemas.message import trace_headers
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.trace import span_of_attempt, trace_of_attempts
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.past_attempts import Past, PastAttempt

_WITHOUT_PARENT = Context()


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
    """Makes spans with a provider that it alone uses."""

    def __init__(self, provider: TracerProvider, *, provider_name: str, worker_id: str) -> None:
        self._ids = provider.id_generator = _Ids()
        self._sampler = provider.sampler
        self._tracer = provider.get_tracer(names.SCOPE, version("inferfleet"), schema_url=names.SCHEMA_URL)
        self._provider_name = provider_name
        self._worker_id = worker_id

    def samples(self, trace_id: str) -> bool:
        """Return whether a trace without a submitter's span is sampled: the same in every worker."""
        decision = self._sampler.should_sample(None, int(trace_id, 16), names.QUEUE).decision
        return decision is Decision.RECORD_AND_SAMPLE

    def make(self, ended: EndedAttempt, past: Past, links: Sequence[Link] = ()) -> None:
        """Make the spans of an attempt, and of the one before it if that was lost."""
        job = ended.job
        parent = _WITHOUT_PARENT
        if job.traceparent is not None:
            parent = TraceContextTextMapPropagator().extract(trace_headers(job))
        if past.last is not None:
            if past.last.lost:
                self._make_lost(past.last, ended, parent)
            links = [*links, link_to(names.LINK_ATTEMPT, job.id, job.traceparent, past.last.running.attempt)]
        if past.queued_at is not None:
            self._make_queue(job, parent, ended.attempt, _ns(past.queued_at), ended.started)
        span = self._start(job, ended.attempt, parent, ended.started, links, self._worker_id)
        span.set_attributes(_result_attributes(ended))
        if ended.failure is not None and ended.failure.code is not FailureCode.CANCELLED:
            span.set_attribute(names.ERROR_TYPE, ended.failure.code)
            # Without the message, because it may quote the prompt.
            span.set_status(StatusCode.ERROR)
        self._make_stages(ended, set_span_in_context(span))
        span.end(ended.ended)

    def _make_stages(self, ended: EndedAttempt, parent: Context) -> None:
        prepared, first_token, generated = ended.prepared, ended.first_token, ended.generated
        if prepared is None:
            return
        if ended.job.session_id is not None or ended.attempt > 1:
            self._make(names.HYDRATE, parent, ended.started, prepared)
        if generated is None:
            return
        if first_token is None:
            self._make(names.PREFILL, parent, prepared, generated)
        else:
            self._make(names.PREFILL, parent, prepared, first_token)
            self._make(names.DECODE, parent, first_token, generated)
        self._make(names.COMMIT, parent, generated, ended.ended)

    def _make_lost(self, lost: PastAttempt, next_one: EndedAttempt, parent: Context) -> None:
        """Make the spans of an attempt in the place of its worker.

        When it ended is unknown, so its span lasts until the next attempt started.
        """
        job, running = next_one.job, lost.running
        started = _ns(running.at)
        if lost.queued_at is not None:
            self._make_queue(job, parent, running.attempt, _ns(lost.queued_at), started)
        span = self._start(job, running.attempt, parent, started, (), running.worker_id)
        span.set_attributes(
            {
                names.RESUMED_FROM: running.resumed_from,
                names.OUTPUT_TOKENS: max(0, next_one.resumed_from - running.resumed_from),
                names.ERROR_TYPE: names.WORKER_LOST,
            }
        )
        span.set_status(StatusCode.ERROR)
        span.end(next_one.started)

    def _start(
        self, job: Job, attempt: int, parent: Context, started: int, links: Sequence[Link], worker_id: str
    ) -> Span:
        """Start the span of an attempt."""
        self._ids.next_span = int(span_of_attempt(job.id, attempt), 16)
        operation, model = names.OPERATIONS[job.endpoint], job.body.get("model")
        attributes: dict[str, Any] = {
            names.OPERATION_NAME: operation,
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
        if isinstance(model, str):
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
        self._ids.trace = _trace(job)
        return self._tracer.start_span(
            f"{operation} {model}" if isinstance(model, str) else operation,
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
            start_time=started,
        )

    def _make_queue(self, job: Job, parent: Context, attempt: int, began: int, ended: int) -> None:
        self._ids.trace = _trace(job)
        # A submitter's clock may be ahead.
        began = min(began, ended)
        self._make(names.QUEUE, parent, began, ended, {names.JOB_ID: job.id, names.ATTEMPT: attempt})

    def _make(
        self,
        name: str,
        parent: Context,
        began: int,
        ended: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self._tracer.start_span(name, context=parent, attributes=attributes, start_time=began).end(ended)


class _Ids(RandomIdGenerator):
    """Gives the next span an id that is known beforehand, and a span without a parent the job's trace."""

    def __init__(self) -> None:
        self.next_span = 0
        self.trace = 0

    @override
    def generate_span_id(self) -> int:
        span, self.next_span = self.next_span, 0
        return span or super().generate_span_id()

    @override
    def generate_trace_id(self) -> int:
        return self.trace


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


def _trace(job: Job) -> int:
    return int(trace_of_attempts(job.id, job.traceparent), 16)


def link_to(what: str, job_id: str, traceparent: str | None, attempt: int) -> Link:
    """Make a link to an attempt of a job that is sampled."""
    context = SpanContext(
        int(trace_of_attempts(job_id, traceparent), 16),
        int(span_of_attempt(job_id, attempt), 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    return Link(context, {names.LINK: what})


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6) * 1000
