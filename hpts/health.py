"""Health: is this process alive, and can it do its work. No token needed, nothing about tenants told."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import msgspec
import redis
from django.conf import settings
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse

from hpts.metrics import Reading
from hpts.openapi import operation
from hpts.rendering import answer
from hpts.views import only_get


class Liveness(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    status: Literal["ok"]
    version: str
    git_sha: str


class Readiness(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


@operation("getLiveness", "health", returns="The process answers", answer=Liveness)
def live(request: HttpRequest) -> HttpResponse:
    """Whether the process answers."""
    only_get(request)
    return answer({"status": "ok", "version": settings.VERSION, "git_sha": settings.GIT_SHA})


@operation(
    "getReadiness",
    "health",
    returns="Every check passes",
    answer=Readiness,
    also={503: "A check fails; `checks` says which"},
)
def ready(request: HttpRequest) -> HttpResponse:
    """Whether the process can do its work."""
    only_get(request)
    checks = {name: _outcome(check) for name, check in CHECKS.items()}
    healthy = all(outcome == "ok" for outcome in checks.values())
    return answer({"status": "ok" if healthy else "unavailable", "checks": checks}, 200 if healthy else 503)


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:  # A check may fail in any way; the name of the way is all that leaves the house.
        return f"failed: {type(error).__name__}"
    return "ok"


def _database() -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")


def _broker() -> None:
    with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1) as client:
        client.ping()


@cache
def _migrations() -> None:
    """Asked until it passes once: a process does not outlive its migrations."""
    executor = MigrationExecutor(connections["default"])
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise RuntimeError("Migrations are missing.")


def _outbox() -> None:
    """What follows the outbox reads behind the oldest transaction that writes: one that hangs stops all announcements."""
    with connections["default"].cursor() as cursor:
        cursor.execute(
            """SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND backend_xid IS NOT NULL
                 AND xact_start < clock_timestamp() - interval '60 seconds'"""
        )
        if cursor.fetchone()[0]:
            raise RuntimeError("A writing transaction is older than a minute.")


def gauges() -> list[Reading]:
    """The application's own connections: what they do, who waits for a lock, since when the oldest transaction runs."""
    with connections["default"].cursor() as cursor:
        cursor.execute(
            """SELECT coalesce(state, 'unknown'), count(*), count(*) FILTER (WHERE wait_event_type = 'Lock'),
                      coalesce(extract(epoch FROM clock_timestamp() - min(xact_start)), 0)::float8
               FROM pg_stat_activity
               WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
               GROUP BY 1"""
        )
        rows = cursor.fetchall()
    return [
        *(
            Reading("hpts_database_connections", "Connections by state.", count, {"state": state})
            for state, count, _, _ in rows
        ),
        Reading("hpts_database_lock_waiters", "Connections that wait for a lock.", sum(row[2] for row in rows)),
        Reading(
            "hpts_database_oldest_transaction_seconds",
            "Since when the oldest open transaction runs.",
            max((row[3] for row in rows), default=0.0),
        ),
    ]


CHECKS: dict[str, Callable[[], None]] = {
    "database": _database,
    "broker": _broker,
    "migrations": _migrations,
    "outbox": _outbox,
}
