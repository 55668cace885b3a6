"""An OpenTelemetry collector's ear: spans out of what a receiver on this machine was sent."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.receiver import Receiver


@dataclass(frozen=True)
class SentSpan:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first of a trace."""
    attributes: dict[str, str]
    began_at: float
    ended_at: float
    error: str


def spans_sent_to(receiver: Receiver) -> list[SentSpan]:
    """In the order of their beginnings."""
    spans = []
    for message in receiver.received:
        assert message.path == "/v1/traces", message.path
        request = ExportTraceServiceRequest()
        request.ParseFromString(message.body)
        for resource in request.resource_spans:
            service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {
                        a.key: a.value.string_value or str(a.value.int_value) for a in span.attributes
                    }
                    sent = SentSpan(
                        service=service,
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        attributes=attributes,
                        began_at=span.start_time_unix_nano / 1e9,
                        ended_at=span.end_time_unix_nano / 1e9,
                        error=span.status.message,
                    )
                    spans.append(sent)
    return sorted(spans, key=lambda span: span.began_at)
