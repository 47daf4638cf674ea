"""What is counted and measured, for Prometheus: the instruments, and the page that shows them. No label is a tenant's, but
those that the settings name.

Processes of one machine (or of containers that share a volume) count into files below PROMETHEUS_MULTIPROC_DIR, and the page
adds them up. What stands in the database is asked when the page is asked for (`HPTS_GAUGES` in the settings), and not more
often than is cheap.
"""

from __future__ import annotations

import hmac
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    values,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from hpts.problems import MethodNotAllowed, NotFound

if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    # Containers that share the directory have the same process ids.
    host = re.sub(r"[^a-zA-Z0-9-]", "-", socket.gethostname())
    values.ValueClass = values.MultiProcessValue(lambda: f"{host}-{os.getpid()}")  # type: ignore[no-untyped-call]

# The promises, 100 ms and 300 ms, are bounds of buckets, so that their shares are exact.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
TASK_SECONDS = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0)

REQUESTS = Counter("hpts_requests", "Requests by operation and status.", ["operation", "method", "status"])
REQUEST_SECONDS = Histogram(
    "hpts_request_seconds", "How long requests took, by operation.", ["operation", "method"], buckets=SECONDS
)
TENANT_REQUESTS = Counter(
    "hpts_tenant_requests", "Requests of the tenants that HPTS_METRICS_TENANTS names.", ["tenant"]
)
REPLAYS = Counter("hpts_idempotent_replays", "Answers that were those of the first time.", ["operation"])
REFUSALS = Counter("hpts_refusals", "Problems that were answered, by code.", ["code"])
RATE_LIMITED = Counter("hpts_rate_limited", "Requests refused because a quota is used up, by whose.", ["bucket"])
LIMITS_ALONE = Counter("hpts_limits_alone", "How often a process began to count requests without Redis.")
POSTINGS = Counter("hpts_postings", "Journal entries committed, by kind.", ["kind"])
TRANSACTION_RETRIES = Counter(
    "hpts_transaction_retries", "Transactions begun again after a lock timeout, deadlock or conflict.", ["sqlstate"]
)
ACCRUED_LOANS = Counter("hpts_accrued_loans", "Loans that the engine has accrued.")
ACCRUAL_SECONDS = Counter("hpts_accrual_seconds", "Seconds that workers spent on the engine's chunks.")
WEBHOOK_ATTEMPTS = Counter(
    "hpts_webhook_attempts", "Webhook attempts, by number and what became of the delivery.", ["attempt", "state"]
)
WEBHOOK_SECONDS = Histogram("hpts_webhook_attempt_seconds", "How long webhook attempts took.", buckets=SECONDS)
TASKS = Counter("hpts_tasks", "Celery tasks that ended, by state.", ["task", "state"])
TASK_DURATION = Histogram("hpts_task_seconds", "How long Celery tasks took.", ["task"], buckets=TASK_SECONDS)

# Gauges out of the database are asked for at most so often; and so that they cost at most a tenth of the time.
FRESH_SECONDS = 10.0
SHARE = 10.0


def count_request(request: HttpRequest, response: HttpResponse, seconds: float) -> None:
    """One request that has been answered."""
    operation, method = operation_of(request), _method(request)
    REQUESTS.labels(operation, method, str(response.status_code)).inc()
    REQUEST_SECONDS.labels(operation, method).observe(seconds)
    code = getattr(response, "problem_code", None)
    if code is not None:
        REFUSALS.labels(code).inc()
    elif "Idempotency-Replayed" in response:
        REPLAYS.labels(operation).inc()
    if settings.METRICS_TENANTS:
        tenant = getattr(request, "tenant_id", None)
        if tenant is not None:
            TENANT_REQUESTS.labels(tenant if tenant in settings.METRICS_TENANTS else "other").inc()


def operation_of(request: HttpRequest) -> str:
    """The operation's name in the API document, else the route's name; never what the client wrote."""
    named = getattr(request, "operation_id", None)
    if named is not None:
        return str(named)
    match = request.resolver_match
    if match is None:
        return "unmatched"
    declared = getattr(match.func, "operation", None)
    if declared is not None:
        return str(declared.operation_id)
    return "admin" if match.route.startswith("admin/") else str(match.route or "home")


def _method(request: HttpRequest) -> str:
    # Anybody can invent a method; a label is for ever.
    return request.method if request.method in ("GET", "HEAD", "POST", "DELETE") else "other"


# --- Out of the database ---------------------------------------------------------------------------------------------
class Reading(NamedTuple):
    """One value of a gauge, with its labels."""

    name: str
    text: str
    value: float
    labels: dict[str, str] = {}


class Gauges(Collector):
    """What the apps read out of the database. While it is away there is `hpts_gauges_up 0`, and what was counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: list[GaugeMetricFamily] = []
        self._until = float("-inf")

    def collect(self) -> Iterable[GaugeMetricFamily]:
        with self._lock:
            began = time.monotonic()
            if began >= self._until:
                self._families = list(_families(_readings()))
                ended = time.monotonic()
                self._until = ended + max(FRESH_SECONDS, (ended - began) * SHARE)
            return self._families

    def forget(self) -> None:
        self._until = float("-inf")


def _readings() -> Iterator[Reading]:
    up = 1.0
    for path in settings.HPTS_GAUGES:
        source: Callable[[], Iterable[Reading]] = import_string(path)
        try:
            yield from list(source())
        except Exception:  # What cannot be read must not hide what was counted.
            up = 0.0
    yield Reading("hpts_gauges_up", "Whether everything that stands in the database could be read.", up)


def _families(readings: Iterable[Reading]) -> Iterator[GaugeMetricFamily]:
    by_name: dict[str, list[Reading]] = {}
    for reading in readings:
        by_name.setdefault(reading.name, []).append(reading)
    for name, group in by_name.items():
        family = GaugeMetricFamily(name, group[0].text, labels=sorted(group[0].labels))
        for reading in group:
            family.add_metric([value for _, value in sorted(reading.labels.items())], reading.value)
        yield family


gauges = Gauges()


# --- The page --------------------------------------------------------------------------------------------------------
def page(request: HttpRequest) -> HttpResponse:
    """GET /metrics, for who knows HPTS_METRICS_TOKEN. To everybody else there is no such page."""
    expected = f"Bearer {settings.METRICS_TOKEN}"
    given = request.META.get("HTTP_AUTHORIZATION", "")
    if not settings.METRICS_TOKEN or not hmac.compare_digest(given.encode(), expected.encode()):
        raise NotFound
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(["GET", "HEAD"])
    registry = CollectorRegistry()
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(gauges)
        text = generate_latest(registry)
    else:
        registry.register(gauges)
        text = generate_latest(REGISTRY) + generate_latest(registry)
    return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)
