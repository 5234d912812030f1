"""The recorded traces as plain Python, read from the OTLP files and by no code of Skein: what the tests hold answers against."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Iterator

import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
KINDS = ["unspecified", "internal", "server", "client", "producer", "consumer"]
STATUS = ["unset", "ok", "error"]


@dataclass
class Span:
    """One span; times in nanoseconds."""

    trace: str
    id: str
    parent: str
    name: str
    service: str
    kind: str
    status: str
    start: int
    end: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    children: list["Span"] = field(default_factory=list)

    @property
    def duration(self) -> int:
        return self.end - self.start


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _requests(dataset: str) -> Iterator[ExportTraceServiceRequest]:
    """A zstd stream of requests, each after its length in four bytes, big-endian."""
    with pa.input_stream(str(DATA / f"{dataset}.otlp.zst"), compression="zstd") as stream:
        while length := stream.read(4):
            yield ExportTraceServiceRequest.FromString(stream.read(int.from_bytes(length, "big")))


@cache
def spans(dataset: str) -> list[Span]:
    """All spans of a dataset, with their children."""
    found = []
    for request in _requests(dataset):
        for of_resource in request.resource_spans:
            resource = _attributes(of_resource.resource.attributes)
            for scope in of_resource.scope_spans:
                for span in scope.spans:
                    found.append(
                        Span(
                            trace=span.trace_id.hex(),
                            id=span.span_id.hex(),
                            parent=span.parent_span_id.hex(),
                            name=span.name,
                            service=str(resource.get("service.name", "")),
                            kind=KINDS[span.kind],
                            status=STATUS[span.status.code],
                            start=span.start_time_unix_nano,
                            end=span.end_time_unix_nano,
                            attributes=_attributes(span.attributes),
                            resource=resource,
                            events=[(event.name, _attributes(event.attributes)) for event in span.events],
                        )
                    )
    by_id = {(span.trace, span.id): span for span in found}
    for span in found:
        if parent := by_id.get((span.trace, span.parent)):
            parent.children.append(span)
    return found


@cache
def traces(dataset: str) -> dict[str, list[Span]]:
    """The spans of each trace."""
    found: dict[str, list[Span]] = defaultdict(list)
    for span in spans(dataset):
        found[span.trace].append(span)
    return dict(found)
