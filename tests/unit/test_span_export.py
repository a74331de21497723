"""A worker samples traces and limits attributes as OpenTelemetry does, only cheaper."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context
from opentelemetry.util.types import AttributeValue
from typing_extensions import override

from inferfleet.wire.span_export import SpanExport, span_of_headers

HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
TRACES = [
    *(0, 1, (1 << 64) - 1, 1 << 64, (1 << 128) - 1),
    *(TraceIdRatioBased.get_bound_for_rate(0.01) + step for step in (-1, 0, 1)),
    *(random.Random(7).getrandbits(128) for _ in range(300)),
]


class Odd(Sampler):
    """Samples by something that only it knows."""

    @override
    def should_sample(self, parent_context: Any, trace_id: int, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE if trace_id % 2 else Decision.DROP)

    @override
    def get_description(self) -> str:
        return "Odd"


@pytest.fixture
def exports() -> Iterator[list[SpanExport]]:
    """What a test has made, to be shut down."""
    made: list[SpanExport] = []
    yield made
    for export in made:
        export.provider.shutdown()


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("always_on", ""),
        ("always_off", ""),
        ("parentbased_always_on", ""),
        ("parentbased_always_off", ""),
        *(
            (name, rate)
            for name in ("traceidratio", "parentbased_traceidratio")
            for rate in ("0", "0.01", "1")
        ),
    ],
)
def test_every_sampler_of_the_environment_decides_as_opentelemetry_does(
    exports: list[SpanExport], monkeypatch: pytest.MonkeyPatch, name: str, argument: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    export = SpanExport(TracerProvider(shutdown_on_exit=False), SpanLimits())
    exports.append(export)
    check(export)


def test_another_sampler_is_asked(exports: list[SpanExport]) -> None:
    export = SpanExport(TracerProvider(Odd(), shutdown_on_exit=False), SpanLimits())
    exports.append(export)
    check(export)


def check(export: SpanExport) -> None:
    parent = span_of_headers(HEADERS)
    assert parent is not None
    below = set_span_in_context(NonRecordingSpan(parent))
    for trace in map("{:032x}".format, TRACES):
        for headers, context in ({}, None), (HEADERS, below):
            asked = export.provider.sampler.should_sample(context, int(trace, 16), "queue").decision
            sampled = export.samples("queue", trace=trace, headers=headers)
            assert sampled == (asked is Decision.RECORD_AND_SAMPLE), (trace, headers)
        assert not export.samples(
            "queue", trace=trace, headers={"traceparent": HEADERS["traceparent"][:-1] + "0"}
        )


def test_what_is_too_long_or_too_much_is_cut(
    exports: list[SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ReadableSpan] = []

    def on_end(_: BatchSpanProcessor, span: ReadableSpan) -> None:
        told.append(span)

    monkeypatch.setattr(BatchSpanProcessor, "on_end", on_end)
    limits = SpanLimits(max_span_attributes=3, max_span_attribute_length=5)
    export = SpanExport(TracerProvider(shutdown_on_exit=False, span_limits=limits), limits)
    exports.append(export)
    span = SpanContext(1, 2, is_remote=False)
    given: list[dict[str, AttributeValue]] = [
        {"short": "12345", "list": ["12345"], "number": 7},
        {"long": "123456"},
        {"list": ["1", "123456"]},
        {"a": 1, "b": 2, "c": 3, "d": 4},
    ]
    for attributes in given:
        export.export("queue", span, None, started=1, ended=2, attributes=attributes)
    assert [dict(one.attributes or {}) for one in told] == [
        {"short": "12345", "list": ["12345"], "number": 7},
        {"long": "12345"},
        {"list": ("1", "12345")},
        {"b": 2, "c": 3, "d": 4},
    ]
