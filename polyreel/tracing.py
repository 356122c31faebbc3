"""Traces by OpenTelemetry: one from a client's request through the queue to each stage of its job.

Off unless the standard variables name a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`); then the SDK, the extra `tracing`,
is imported, and not before. No prompt, key, signature, path of a file or text of an error is an attribute of any span.

A job carries the request's `traceparent` (W3C Trace Context) in its record, so whoever works on it later, in whatever
process, adds to the same trace; in between, what has happened is told afterwards, with the times at which it did.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

#: Names in `polyreel.job.VideoJob.trace`.
PARENT, REQUEST_ID = "traceparent", "request_id"

_NANOSECONDS = 1e9

_provider: TracerProvider | None = None


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Return whether OpenTelemetry's own variables ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if (environment.get("OTEL_TRACES_EXPORTER") or "otlp").strip().lower() == "none":
        return False
    return bool(environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"))


def configure_tracing(process: str) -> None:
    """Send this process's spans where the environment says, if it does.

    Args:
        process: its service is "polyreel-{process}" unless `OTEL_SERVICE_NAME` says otherwise.
    """
    if not is_asked_for(os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        import structlog

        structlog.get_logger().warning(
            "no traces",
            reason="OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry's SDK is not installed: "
            "pip install 'polyreel[tracing]'",
        )
        return
    use(new_provider(process, BatchSpanProcessor(OTLPSpanExporter())))


def new_provider(process: str, *processors: Any) -> TracerProvider:
    """Return a provider of spans that lets no query of a URL through. Any: SpanProcessors, whose types need the SDK."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    class WithoutQueries(SpanProcessor):
        """Links are signed in their query, and some clients send their key there."""

        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            """Blank it out."""
            if "url.query" in (span.attributes or {}):
                span.set_attribute("url.query", "***")

    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if is_named else {"service.name": f"polyreel-{process}"}))
    for processor in (WithoutQueries(), *processors):
        provider.add_span_processor(processor)
    return provider


def use(provider: TracerProvider | None) -> None:
    """Make spans with this provider from now on; None makes none."""
    global _provider
    _provider = provider


def provider() -> TracerProvider | None:
    """Return what makes this process's spans, None where there is no tracing."""
    return _provider


def trace_id() -> str:
    """Return the id of the trace that the present code belongs to, "" for none."""
    return parent_trace_id(current_parent())


def current_parent() -> str:
    """Return the present span as a `traceparent`, "" for none."""
    if _provider is None:
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def parent_trace_id(parent: str) -> str:
    """Return the id of a `traceparent`'s trace, "" for none."""
    return parent.split("-")[1] if parent.count("-") == 3 else ""


def log_fields(trace: Mapping[str, str]) -> dict[str, str]:
    """Return what log lines about a job are to say of the request that submitted it.

    Args:
        trace: of its record.
    """
    found = {"request_id": trace.get(REQUEST_ID, ""), "trace_id": parent_trace_id(trace.get(PARENT, ""))}
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Something that took time.

    Args:
        name: of its span.
        began, ended: seconds since the epoch.
    """

    name: str
    began: float
    ended: float


def tell(
    whole: Stretch,
    parts: list[Stretch],
    about: Mapping[str, str | int | float],
    *,
    parent: str,
    before: Stretch | None = None,
) -> None:
    """Add what has happened to the trace of a job; nothing happens without tracing, or without its `traceparent`.

    Args:
        parts: of `whole`, its children.
        about: attributes of `whole`, "polyreel." before their names. One called "error" makes it a failure: a code,
            never a text.
        parent: `traceparent` of both.
        before: what came before it.
    """
    if _provider is None or not parent:
        return
    from opentelemetry import trace
    from opentelemetry.trace import StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = _provider.get_tracer("polyreel")
    above = TraceContextTextMapPropagator().extract({PARENT: parent})

    def span(stretch: Stretch, context: Context) -> Span:
        return tracer.start_span(stretch.name, context, start_time=int(stretch.began * _NANOSECONDS))

    if before:
        span(before, above).end(int(before.ended * _NANOSECONDS))
    made = span(whole, above)
    for name, value in about.items():
        made.set_attribute(f"polyreel.{name}", value)
    if about.get("error"):
        made.set_status(StatusCode.ERROR)
    for part in parts:
        span(part, trace.set_span_in_context(made, above)).end(int(part.ended * _NANOSECONDS))
    made.end(int(whole.ended * _NANOSECONDS))
