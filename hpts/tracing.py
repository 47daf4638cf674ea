"""Traces (OpenTelemetry), where HPTS_OTLP_ENDPOINT says where to send them; without it nothing of this is loaded.

A request's span continues `traceparent`; where none came the trace has the request's correlation id, so that one id leads
through logs, entries, webhooks and traces. Spans hold what log lines hold: ids and outcomes, no bodies and no amounts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from opentelemetry import context as contexts
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hpts import metrics

_correlation: ContextVar[str] = ContextVar("correlation_id", default="")
_propagator = TraceContextTextMapPropagator()
_lock = threading.Lock()


class CorrelationIds(RandomIdGenerator):
    """A trace that begins here is named like the request that begins it."""

    def generate_trace_id(self) -> int:
        correlation_id = _correlation.get()
        return UUID(correlation_id).int if correlation_id else super().generate_trace_id()


@lru_cache(maxsize=1)
def provider() -> TracerProvider:
    """Made at the first span, which is after the server has forked: the exporter has a thread of its own."""
    made = TracerProvider(
        id_generator=CorrelationIds(),
        sampler=ParentBased(TraceIdRatioBased(settings.TRACE_SHARE)),
        resource=Resource.create({"service.name": "hpts", "service.version": settings.VERSION}),
    )
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.OTLP_ENDPOINT)))
    return made


def tracer() -> Tracer:
    with _lock:
        return provider().get_tracer("hpts")


class Spans:
    """A span around each request. It stands behind `RequestIdentity`, which has given the request its ids."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        correlation_id: str = request.correlation_id  # type: ignore[attr-defined]
        carrier = {"traceparent": request.META.get("HTTP_TRACEPARENT", "")}
        token = _correlation.set(correlation_id)
        try:
            with tracer().start_as_current_span(
                f"{request.method}", context=_propagator.extract(carrier), kind=SpanKind.SERVER
            ) as span:
                response = self.get_response(request)
                _describe(span, request, response)
                return response
        finally:
            _correlation.reset(token)


def _describe(span: Span, request: HttpRequest, response: HttpResponse) -> None:
    operation = metrics.operation_of(request)
    span.update_name(operation)
    attributes: dict[str, Any] = {
        "http.request.method": request.method or "",
        "http.response.status_code": response.status_code,
        "http.route": request.resolver_match.route if request.resolver_match else "",
        "hpts.operation": operation,
        "hpts.request_id": request.request_id,  # type: ignore[attr-defined]
        "hpts.tenant_id": getattr(request, "tenant_id", None),
        "hpts.problem": getattr(response, "problem_code", None),
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if response.status_code >= 500:
        span.set_status(Status(StatusCode.ERROR))


def begin_task(name: str, task_id: str) -> tuple[Span, object]:
    """The span of a Celery task; `end_task` takes what this gives."""
    span = tracer().start_span(name, context=contexts.Context(), kind=SpanKind.CONSUMER)
    span.set_attribute("hpts.task_id", task_id)
    return span, contexts.attach(contexts.set_value("hpts.task", task_id))


def end_task(began: tuple[Span, Any], state: str) -> None:
    span, token = began
    span.set_attribute("hpts.state", state)
    if state != "SUCCESS":
        span.set_status(Status(StatusCode.ERROR))
    span.end()
    contexts.detach(token)
