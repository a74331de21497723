"""The trace of a job: how it is spelled, where it comes from, and that its message names it."""

from __future__ import annotations

from typing import Any, Unpack

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, use_span

from inferfleet.producer.job_making import JobOptions, make_job
from inferfleet.schemas import Job
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.message import message_body, read_job, trace_of
from inferfleet.schemas.trace import trace_id, valid_trace
from inferfleet.wire.rabbitmq.messages import job_message

ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{ID}-b7ad6b7169203331-01"
OTHER = f"00-{'ab' * 16}-b7ad6b7169203331-00"
LIKE = "is not a W3C traceparent, such as 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def made(work: Any = "hello", **options: Unpack[JobOptions]) -> Job:
    return make_job(work, options, max_body_bytes=10_000)


def span(**state: str) -> NonRecordingSpan:
    context = SpanContext(
        trace_id=int(ID, 16),
        span_id=0xB7AD6B7169203331,
        is_remote=False,
        trace_flags=TraceFlags(1),
        trace_state=TraceState(list(state.items())),
    )
    return NonRecordingSpan(context)


@pytest.mark.parametrize(
    "spelled",
    [
        "",
        "0af7651916cd43dd8448eb211c80319c",
        PARENT.upper(),
        f"ff{PARENT[2:]}",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{ID}-{'0' * 16}-01",
        f"{PARENT}\n",
    ],
)
def test_a_traceparent_that_is_none_is_refused_and_in_a_header_counts_as_none(spelled: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        made(traceparent=spelled)
    assert str(refused.value) == f"traceparent: {spelled!r} {LIKE}"
    assert valid_trace({"traceparent": spelled, "tracestate": "a=1"}) == {}


@pytest.mark.parametrize(
    ("spelled", "why"),
    [
        ("nonsense", "tracestate: 'nonsense' is not a W3C tracestate"),
        ("a=1,b=", "tracestate: 'a=1,b=' is not a W3C tracestate"),
        (",".join(f"k{n}=1" for n in range(33)), "tracestate: must be a W3C tracestate: at most 32 pairs"),
        ("a=" + "1" * 511, "tracestate: has 513 characters; at most 512 are allowed"),
    ],
)
def test_a_tracestate_that_is_none_is_refused_and_in_a_header_left_out(spelled: str, why: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        made(traceparent=PARENT, tracestate=spelled)
    assert str(refused.value).startswith(why)
    assert valid_trace({"traceparent": PARENT, "tracestate": spelled}) == {"traceparent": PARENT}


def test_a_tracestate_needs_a_traceparent() -> None:
    with pytest.raises(InvalidJobError, match="belongs to a traceparent"):
        made(tracestate="a=1")


def test_a_job_belongs_to_the_current_span() -> None:
    with use_span(span(vendor="x")):
        job = made()
        assert (job.traceparent, job.tracestate) == (PARENT, "vendor=x")
        # What the caller says counts more.
        assert made(traceparent=None).traceparent is None
        job = made(traceparent=OTHER)
        assert (job.traceparent, job.tracestate) == (OTHER, None)
        again = made(Job(body=job.body, traceparent=OTHER, tracestate="a=1"))
        assert (again.traceparent, again.tracestate) == (OTHER, "a=1")
    assert made().traceparent is None


def test_a_tracestate_that_is_too_long_does_not_keep_a_job_from_its_trace() -> None:
    with use_span(span(**{f"k{n}": "x" * 250 for n in range(4)})):
        job = made()
    assert (job.traceparent, job.tracestate) == (PARENT, None)


def test_the_message_names_the_trace_in_its_body_and_its_headers() -> None:
    job = made(traceparent=PARENT, tracestate="a=1")
    message = job_message(job, reply_to="me")
    assert (
        message.properties.headers == {"traceparent": PARENT, "tracestate": "a=1"} == trace_of(message.body)
    )
    assert read_job(message.body) == job
    plain = job_message(made(), reply_to="me")
    assert plain.properties.headers is None
    assert b"trace" not in plain.body
    assert trace_of(b"no JSON") == trace_of(b"[]") == {}


def test_the_headers_count_where_the_job_names_no_trace() -> None:
    """Tracing libraries for AMQP set only the headers."""
    job = made()
    body = message_body(job)
    read = read_job(body, headers={"traceparent": PARENT, "tracestate": "a=1", "other": 1})
    assert read == job.model_copy(update={"traceparent": PARENT, "tracestate": "a=1"})
    assert trace_of(message_body(read)) == {"traceparent": PARENT, "tracestate": "a=1"}
    body = message_body(made(traceparent=OTHER))
    assert read_job(body, headers={"traceparent": PARENT}).traceparent == OTHER


def test_the_id_of_the_trace_is_a_part_of_it() -> None:
    assert trace_id(PARENT) == ID
