"""Traces: one for each batch, from reader to verifier, over the Kafka header `traceparent` (W3C Trace Context).

Off unless OpenTelemetry's own variables name where spans go (OTEL_EXPORTER_OTLP_ENDPOINT, or …_TRACES_ENDPOINT) and
the extra `tracing` is installed; then a batch has the spans read, sign, publish and verify. No attribute is an address
or a transaction.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from pipeline.errors import UsageError
from pipeline.stream import Stream

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Tracer

HEADER: Final = "traceparent"
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE: Final = "oncesign"

_tracers: Final[list[Tracer]] = []  # none = tracing is off
_providers: Final[list[TracerProvider]] = []


def start() -> None:
    """Send spans to where OpenTelemetry's variables say, if they do. Raises UsageError without the extra."""
    if _tracers or not any(map(os.environ.get, ENDPOINTS)):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - as above
    except ImportError as error:
        raise UsageError(
            f"{' or '.join(ENDPOINTS)} is set, and {error.name} is not installed.",
            hint="Install oncesign with its extra `tracing`, or unset the variable.",
        ) from error
    send_to(BatchSpanProcessor(OTLPSpanExporter()))


def send_to(processor: SpanProcessor | None) -> None:
    """Give spans to this processor from now on, and what waits to the one before; None: there are none."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - only where tracing is on
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above

    _tracers.clear()
    while _providers:
        _providers.pop().shutdown()
    if processor is not None:
        provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        provider.add_span_processor(processor)
        _providers.append(provider)
        _tracers.append(provider.get_tracer(SERVICE))


def span(what: str, stream: Stream, seq: int, parent: str = "") -> AbstractContextManager[str]:
    """What is done to a batch, as a part of the trace that `parent` names; its own `traceparent`, empty when off."""
    return _span(_tracers[0], what, stream, seq, parent) if _tracers else nullcontext("")


@contextmanager
def _span(tracer: Tracer, what: str, stream: Stream, seq: int, parent: str) -> Iterator[str]:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - as above
        TraceContextTextMapPropagator,
    )

    propagator = TraceContextTextMapPropagator()
    attributes: dict[str, str | int] = {"oncesign.stream": str(stream), "oncesign.seq": seq}
    with tracer.start_as_current_span(what, propagator.extract({HEADER: parent}), attributes=attributes):
        carrier: dict[str, str] = {}
        propagator.inject(carrier)
        yield carrier[HEADER]
