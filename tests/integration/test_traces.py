"""The trace of a batch, from reader to verifier, over the headers of Kafka; spans go to a collector over OTLP."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors.composition import verifying
from pipeline import tracing
from pipeline.custody.sealing import Kek
from pipeline.local.server import LOOPBACK
from pipeline.settings import Settings
from pipeline.stream import Stream
from tests.pipeline_run import running, stock

pytestmark = pytest.mark.integration

ROWS = 300
SENDER = re.compile("0x[0-9a-f]{40}")
STAGES = ["read", "sign", "publish", "verify"]


@pytest.fixture
def settings(deployed: Settings) -> Settings:
    Kek.create(deployed.kek_path)
    return deployed


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.send_to(SimpleSpanProcessor(exporter))
    yield exporter
    tracing.send_to(None)


async def signed_and_verified(settings: Settings) -> None:
    stock(settings, ROWS, invalid=0.1)
    async with running(settings, Kek.load(settings.kek_path)) as run:
        await run.until(ROWS)
    async with verifying.verifier(settings) as verifier:
        await verifier.catch_up()
        assert await verifier.reconcile() == []


async def test_each_batch_has_one_trace_through_all_stages(settings: Settings, spans: InMemorySpanExporter) -> None:
    await signed_and_verified(settings)
    traces: dict[int, list[ReadableSpan]] = defaultdict(list)
    for span in spans.get_finished_spans():
        assert span.context is not None
        traces[span.context.trace_id].append(span)
    assert len(traces) >= 8
    for trace in traces.values():
        ordered = sorted(trace, key=lambda span: span.start_time or 0)
        assert [span.name for span in ordered] == STAGES
        assert len({(span.attributes or {})["oncesign.stream"] for span in trace}) == 1
        assert len({(span.attributes or {})["oncesign.seq"] for span in trace}) == 1
        read, sign, publish, verify = ordered
        assert read.context is not None
        assert publish.context is not None
        assert [span.parent and span.parent.span_id for span in ordered] == [
            None, read.context.span_id, read.context.span_id, publish.context.span_id,
        ]  # fmt: skip
        assert not any(SENDER.search(str(dict(span.attributes or {}))) for span in (read, sign, publish, verify))


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """What OTLP over HTTP brings."""
    came: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{LOOPBACK}:{server.server_port}", came
    server.shutdown()
    server.server_close()


def test_spans_go_where_opentelemetrys_variables_say(
    collector: tuple[str, list[ExportTraceServiceRequest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, came = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    tracing.start()
    with tracing.span("read", Stream("payouts", 3), 7) as traceparent:
        assert len(traceparent.split("-")) == 4
    tracing.send_to(None)  # which also sends what waits
    [request] = came
    [resource] = request.resource_spans
    assert {"service.name": "oncesign"}.items() <= {
        each.key: each.value.string_value for each in resource.resource.attributes
    }.items()
    [span] = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("read", traceparent.split("-")[1])


def test_without_a_collector_there_is_none() -> None:
    tracing.start()
    with tracing.span("read", Stream("payouts", 3), 7) as traceparent:
        assert traceparent == ""
