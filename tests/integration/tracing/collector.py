"""A collector of OpenTelemetry, as somebody else has it: it keeps the spans that processes export to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from tests.integration.conftest import eventually
from tests.integration.receiver import Receiver, receiving

from inferfleet.schemas.span_names import ATTEMPT, JOB_ID

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "20"}


@dataclass(frozen=True)
class Link:
    trace: str
    span: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class ExportedSpan:
    trace: str
    id: str
    parent: str
    name: str
    kind: int
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    links: list[Link]
    resource: dict[str, Any]
    schema_url: str


class Collector:
    """What came, span by span."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.endpoint = receiver.url.removesuffix("/hook")

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process that exports here at once."""
        return {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint}

    @property
    def spans(self) -> list[ExportedSpan]:
        return [span for received in self.receiver.received for span in _read(received.body)]

    def named(self, name: str) -> list[ExportedSpan]:
        """Those with this name, in the order in which they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    async def attempts(self, job_id: str, count: int) -> list[ExportedSpan]:
        """Wait for so many attempts of a job, and return their spans in order."""
        found: list[ExportedSpan] = []

        async def are_there() -> bool:
            found[:] = [
                span
                for span in self.spans
                if span.attributes.get(JOB_ID) == job_id and "gen_ai.operation.name" in span.attributes
            ]
            return len(found) >= count

        await eventually(are_there)
        return sorted(found, key=lambda span: int(span.attributes[ATTEMPT]))

    def check_tree(self, root: str) -> None:
        """Check that all spans are in one tree below this span, and that none came twice."""
        ids = [span.id for span in self.spans]
        assert len(ids) == len(set(ids))
        assert {span.parent for span in self.spans} <= {root, *ids}
        assert len({span.trace for span in self.spans}) == 1
        for span in self.spans:
            assert span.start <= span.end, span.name


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    async with receiving() as receiver:
        yield Collector(receiver)


def _read(body: bytes) -> list[ExportedSpan]:
    return [
        ExportedSpan(
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            name=span.name,
            kind=span.kind,
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
            failed=span.status.code == 2,
            attributes=_values(span.attributes),
            links=[
                Link(link.trace_id.hex(), link.span_id.hex(), _values(link.attributes)) for link in span.links
            ],
            resource=_values(of_resource.resource.attributes),
            schema_url=of_scope.schema_url,
        )
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair) for pair in pairs}


def _value(pair: KeyValue) -> Any:
    kind = pair.value.WhichOneof("value")
    value = getattr(pair.value, kind or "string_value")
    return [each.string_value for each in value.values] if kind == "array_value" else value
