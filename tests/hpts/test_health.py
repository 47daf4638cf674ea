"""GET /v1/health/live and /v1/health/ready: no token, nothing about tenants, and the truth about what is missing."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from hpts import health
from tests.conftest import HTTP, refused, shown

LIVE, READY = "/v1/health/live", "/v1/health/ready"


@pytest.fixture(autouse=True)
def entries_are_relayed(monkeypatch: Any) -> None:
    """No worker runs beside the suite; what this check looks at is tested in tests/webhooks/test_relay.py."""
    monkeypatch.setitem(health.CHECKS, "webhooks", lambda: None)


def test_live_says_which_code_runs() -> None:
    assert shown(HTTP.get(LIVE)) == {"status": "ok", "version": settings.VERSION, "git_sha": settings.GIT_SHA}


def test_ready_names_its_checks() -> None:
    body = shown(HTTP.get(READY))
    assert body.keys() == {"status", "checks"}
    assert body["status"] == "ok"
    assert {"database", "broker", "migrations"} <= body["checks"].keys()
    assert set(body["checks"].values()) == {"ok"}


def test_ready_looks_at_the_age_of_the_outbox() -> None:
    assert any("outbox" in name for name in shown(HTTP.get(READY))["checks"])


@pytest.mark.parametrize("path", [LIVE, READY])
def test_no_token_is_needed_and_a_bad_one_does_not_matter(path: str) -> None:
    shown(HTTP.get(path, headers={"Authorization": "Bearer nonsense"}))


@pytest.mark.parametrize("path", [LIVE, READY])
def test_head_is_answered(path: str) -> None:
    answer = HTTP.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", [LIVE, READY])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_else_is(path: str, method: str) -> None:
    refused(HTTP.generic(method, path), 405, "method_not_allowed")


def test_without_a_database_it_lives_and_is_not_ready(monkeypatch: Any) -> None:
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
    monkeypatch.setitem(connection.settings_dict, "PORT", "1")
    shown(HTTP.get(LIVE))
    answer = HTTP.get(READY)
    connection.close()
    assert answer.status_code == 503
    body = answer.json()
    assert body["status"] != "ok"
    assert body["checks"]["database"] != "ok"
    assert body["checks"]["broker"] == "ok"


def test_without_a_broker_it_is_not_ready(settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    answer = HTTP.get(READY)
    assert answer.status_code == 503
    assert answer.json()["checks"]["broker"] != "ok"
    assert answer.json()["checks"]["database"] == "ok"


def test_a_failing_check_tells_its_name_and_no_more(monkeypatch: Any) -> None:
    def fail() -> None:
        raise RuntimeError("postgres://hpts_app:secret@db.internal/hpts")

    monkeypatch.setitem(health.CHECKS, "database", fail)
    answer = HTTP.get(READY)
    assert answer.status_code == 503
    assert "secret" not in answer.content.decode()
    assert "internal" not in answer.content.decode()


def test_missing_migrations_are_noticed(monkeypatch: Any) -> None:
    from django.db.migrations.executor import MigrationExecutor

    clear = getattr(health._migrations, "cache_clear", lambda: None)
    clear()
    monkeypatch.setattr(MigrationExecutor, "migration_plan", lambda self, targets: [("ledger.9999_later", False)])
    answer = HTTP.get(READY)
    clear()
    assert answer.status_code == 503
    assert answer.json()["checks"]["migrations"] != "ok"
