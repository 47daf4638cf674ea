"""The audit log is append-only, of one tenant at a time, and true about who and when; whoever asks, and however."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from hpts import audit
from hpts.audit import NO_TENANT, Caller, record
from hpts.tenancy import tenant_transaction

URLS = {
    "app": "DATABASE_URL",
    "readonly": "HPTS_READONLY_DATABASE_URL",
    "owner": "HPTS_OWNER_DATABASE_URL",
    "superuser": "HPTS_SUPERUSER_DATABASE_URL",
}
INSUFFICIENT_PRIVILEGE, APPEND_ONLY, CHECK_VIOLATION = "42501", "HP001", "23514"


@contextmanager
def session(role: str, tenant_id: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(os.environ[URLS[role]]) as connection:
        connection.read_only = False
        connection.execute("SELECT set_config('hpts.tenant_id', %s, true)", (tenant_id,))
        yield connection


def rows_of(tenant_id: str) -> list[tuple[Any, ...]]:
    with session("readonly", tenant_id) as connection:
        return connection.execute(
            """SELECT actor, action, object_type, object_id, outcome, reason, detail, host(address), user_agent,
                      correlation_id::text FROM audit_record ORDER BY id"""
        ).fetchall()


@pytest.fixture
def tenant_id() -> str:
    """No more than a name: the log needs no tenant's masters."""
    return str(uuid.uuid4())


def test_a_record_says_who_what_on_which_object_from_where_and_why(tenant_id: str) -> None:
    correlation_id = str(uuid.uuid4())
    caller = Caller("staff:anna", tenant_id, "2001:db8::1", "curl/8", correlation_id, "Not used any more")
    record(caller, "closeAccount", about=("account", "1000"))
    who_and_what = ("staff:anna", "closeAccount", "account", "1000", "done", "Not used any more", None)
    assert rows_of(tenant_id) == [(*who_and_what, "2001:db8::1", "curl/8", correlation_id)]


def test_a_record_comes_and_goes_with_the_transaction_of_the_deed(tenant_id: str) -> None:
    class Broken(Exception):
        pass

    with pytest.raises(Broken), tenant_transaction(tenant_id) as cursor:
        record(Caller("staff:anna"), "deleteWebhookEndpoint", cursor=cursor)
        raise Broken
    assert rows_of(tenant_id) == []


def test_a_record_inside_a_transaction_belongs_to_its_tenant(tenant_id: str) -> None:
    with tenant_transaction(tenant_id) as cursor:
        record(Caller("staff:anna", str(uuid.uuid4())), "createTenant", cursor=cursor)
    assert [row[:2] for row in rows_of(tenant_id)] == [("staff:anna", "createTenant")]


def test_what_belongs_to_no_tenant_is_seen_by_none(tenant_id: str) -> None:
    name = f"staff:{uuid.uuid4()}"
    record(Caller(name), "signIn")
    assert rows_of(tenant_id) == []
    assert name in [row[0] for row in rows_of(NO_TENANT)]


def test_another_tenant_sees_nothing_and_writes_nothing(tenant_id: str) -> None:
    record(Caller("staff:anna", tenant_id), "signIn")
    other = str(uuid.uuid4())
    assert rows_of(other) == []
    with (
        session("app", other) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        connection.execute(
            "INSERT INTO audit_record (tenant_id, actor, action, outcome) VALUES (%s, 'staff:eve', 'signIn', 'done')",
            (tenant_id,),
        )


@pytest.mark.parametrize("role", URLS)
@pytest.mark.parametrize(
    "attack",
    ["UPDATE audit_record SET actor = 'staff:eve'", "DELETE FROM audit_record", "TRUNCATE audit_record"],
)
def test_no_role_changes_or_removes_a_record(tenant_id: str, role: str, attack: str) -> None:
    record(Caller("staff:anna", tenant_id), "signIn")
    with session(role, tenant_id) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(attack)
    granted = role in ("owner", "superuser")
    assert caught.value.sqlstate == (APPEND_ONLY if granted else INSUFFICIENT_PRIVILEGE)
    assert [row[0] for row in rows_of(tenant_id)] == ["staff:anna"]


def test_the_wall_holds_in_a_session_that_replicates(tenant_id: str) -> None:
    record(Caller("staff:anna", tenant_id), "signIn")
    with session("superuser", tenant_id) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM audit_record")
    assert caught.value.sqlstate == APPEND_ONLY


@pytest.mark.parametrize("column", ["id", "occurred_at"])
def test_the_application_says_neither_the_order_nor_the_time(tenant_id: str, column: str) -> None:
    value = {"id": "1", "occurred_at": "'2020-01-01Z'"}[column]
    with session("app", tenant_id) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(
            f"INSERT INTO audit_record (tenant_id, actor, action, outcome, {column}) VALUES (%s, 'a', 'b', 'done', {value})",
            (tenant_id,),
        )


def test_the_time_is_the_databases(tenant_id: str) -> None:
    record(Caller("staff:anna", tenant_id), "signIn")
    with session("app", tenant_id) as connection:
        ((moment,),) = connection.execute("SELECT occurred_at FROM audit_record").fetchall()
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)


def test_a_refusal_says_why(tenant_id: str) -> None:
    with session("app", tenant_id) as connection, pytest.raises(psycopg.errors.CheckViolation) as caught:
        connection.execute(
            "INSERT INTO audit_record (tenant_id, actor, action, outcome) VALUES (%s, 'a', 'b', 'refused')",
            (tenant_id,),
        )
    assert caught.value.diag.constraint_name == "audit_record_refusal_says_why"


def test_what_a_stranger_sends_is_kept_as_a_short_line(tenant_id: str) -> None:
    caller = Caller("staff:anna", tenant_id, user_agent="evil\x00\x1b[2J\r\nagent \ud800" + "x" * 10_000)
    record(caller, "signIn")
    agent = rows_of(tenant_id)[0][8]
    assert agent.startswith("evil [2J agent  x")
    assert len(agent) == audit.LONGEST


def test_an_address_that_is_none_is_left_out(tenant_id: str, rf: Any) -> None:
    request = rf.get("/", REMOTE_ADDR="/run/hpts.sock", HTTP_USER_AGENT="curl/8")
    record(Caller.of(request, "staff:anna", tenant_id), "signIn")
    assert rows_of(tenant_id)[0][7:9] == (None, "curl/8")
