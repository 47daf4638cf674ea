"""Traces: one id leads through them and the logs; without the setting nothing of them is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hpts import tracing
from hpts.middleware import RequestIdentity
from hpts.problems import Unavailable, response

ROOT = Path(__file__).parent.parent.parent
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(id_generator=tracing.CorrelationIds())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "provider", lambda: provider)
    yield exporter
    provider.shutdown()


def answered(spans: InMemorySpanExporter, answer: HttpResponse, **headers: str) -> tuple[HttpResponse, ReadableSpan]:
    middleware = RequestIdentity(tracing.Spans(lambda request: answer))
    given = middleware(RequestFactory().get("/v1/health/live", headers=headers, SERVER_NAME="localhost"))
    (span,) = spans.get_finished_spans()
    return given, span


def test_a_span_continues_the_callers_trace(spans: InMemorySpanExporter) -> None:
    _, span = answered(spans, HttpResponse(), traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200


def test_a_trace_that_begins_here_has_the_correlation_id(spans: InMemorySpanExporter) -> None:
    seen: list[str] = []

    def view(request: object) -> HttpResponse:
        seen.append(request.correlation_id.replace("-", ""))  # type: ignore[attr-defined]
        return HttpResponse()

    RequestIdentity(tracing.Spans(view))(RequestFactory().get("/", SERVER_NAME="localhost"))
    (span,) = spans.get_finished_spans()
    assert [f"{span.context.trace_id:032x}"] == seen


def test_a_mistake_of_ours_marks_the_span_and_a_refusal_is_named(spans: InMemorySpanExporter) -> None:
    _, span = answered(spans, response(Unavailable(), "id"))
    assert span.status.status_code.name == "ERROR"
    assert span.attributes is not None
    assert span.attributes["hpts.problem"] == "unavailable"


def test_a_task_has_a_span_of_its_own(spans: InMemorySpanExporter) -> None:
    tracing.end_task(tracing.begin_task("ledger.accrue", "task-1"), "FAILURE")
    (span,) = spans.get_finished_spans()
    assert (span.name, span.status.status_code.name) == ("ledger.accrue", "ERROR")


def test_spans_are_sent_where_the_setting_says() -> None:
    got: list[str] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    code = (
        "import django; django.setup()\n"
        "from django.test import Client; from hpts import tracing\n"
        "assert Client(SERVER_NAME='localhost').get('/v1/health/live').status_code == 200\n"
        "tracing.provider().shutdown()\n"
    )
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_address[1]}/v1/traces"
        environment = {"HPTS_OTLP_ENDPOINT": endpoint, "DJANGO_SETTINGS_MODULE": "hpts.settings"}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, check=True)
        collector.shutdown()
    assert got == ["/v1/traces"]


def test_without_the_setting_nothing_is_loaded() -> None:
    """Of ours: redis-py imports OpenTelemetry's API by itself wherever it is installed."""
    code = (
        "import sys, django; django.setup()\n"
        "import hpts.urls, hpts.celery, hpts.middleware\n"
        "from django.test import Client; Client(SERVER_NAME='localhost').get('/v1/health/live')\n"
        "sys.exit('hpts.tracing' in sys.modules)\n"
    )
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "hpts.settings"}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False).returncode == 0
