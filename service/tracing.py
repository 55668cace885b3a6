"""Spans that join a request, its doorbell, the worker that hears it and the stages of the job.

Off without an endpoint, and then free of OpenTelemetry: its SDK is the optional extra `otel`. A span is
handed on as W3C `traceparent` text, in the outbox, the job's row and the message. Attributes are ids and our
own words; never a path, a query, a header or a file's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import structlog

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

log = structlog.get_logger(__name__)

Kind = Literal["internal", "server", "producer", "consumer"]
Attributes = Mapping[str, str | int] | Mapping[str, str] | Mapping[str, int]

_current: ContextVar[str | None] = ContextVar("autoclave_traceparent", default=None)
_EXPORT_SECONDS = 5.0


def current_traceparent() -> str | None:
    """Of the span that surrounds the caller in this context; None outside of one."""
    return _current.get()


def add_trace_id(_logger: Any, _method: str, event: Any) -> Any:
    """A processor of structlog: lines of a traced request or job say which trace they belong to."""
    traceparent = _current.get()
    if traceparent is not None:
        event["trace_id"] = traceparent.split("-")[1]
    return event


class Span:
    """One that is under way; does nothing where traces are off."""

    def __init__(self, span: OtelSpan | None) -> None:
        self._span = span

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)

    def fail(self, why: str) -> None:
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, why)


class Tracer:
    """Without a provider every span is an empty one."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        parent: str | None = None,
        attributes: Attributes | None = None,
    ) -> Iterator[Span]:
        """`parent` is a `traceparent`; without one, the span that surrounds the caller, if any. An exception
        that leaves the block fails the span."""
        if self._provider is None:
            yield Span(None)
            return
        span = self._start(name, kind, parent or _current.get(), attributes)
        token = _current.set(_traceparent(span))
        wrapped = Span(span)
        try:
            yield wrapped
        except BaseException as error:
            # Its type alone: its text may hold what tenants sent.
            wrapped.fail(type(error).__name__)
            raise
        finally:
            _current.reset(token)
            span.end()

    def record(
        self,
        name: str,
        *,
        parent: str | None,
        began_at: float,
        ended_at: float,
        failed_because: str | None = None,
        attributes: Attributes | None = None,
    ) -> None:
        """A span that is over, between two times in seconds since the epoch."""
        if self._provider is None:
            return
        span = self._start(name, "internal", parent, attributes, start_time=round(began_at * 1e9))
        if failed_because is not None:
            Span(span).fail(failed_because)
        span.end(end_time=round(max(began_at, ended_at) * 1e9))

    def _start(
        self,
        name: str,
        kind: Kind,
        parent: str | None,
        attributes: Attributes | None,
        start_time: int | None = None,
    ) -> OtelSpan:
        from opentelemetry.trace import SpanKind

        assert self._provider is not None
        return self._provider.get_tracer("autoclave").start_span(
            name,
            context=_context_of(parent),
            kind=SpanKind[kind.upper()],
            attributes=attributes,
            start_time=start_time,
        )

    def close(self) -> None:
        """Send what is not sent yet."""
        if self._provider is not None:
            self._provider.shutdown()


def _context_of(traceparent: str | None) -> Context:
    """Empty for None and for text that is no traceparent: a new trace begins."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())


def _traceparent(span: OtelSpan) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def tracer_to(endpoint: str | None, *, service: str) -> Tracer:
    """Sends spans to an OTLP/HTTP collector at `endpoint` (its base URL), in the background; what cannot be
    sent is dropped. Sampling, headers and resource attributes come from the standard OTEL_ variables."""
    if endpoint is None:
        return Tracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        # No reason not to serve.
        log.warning("traces are off: install autoclave[otel]", error=str(error))
        return Tracer()
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracer(provider)
