"""The audit log in the admin: what sign-ins, looks and refusals write into it, its pages, and its export."""

from __future__ import annotations

import csv
import io
import re
import uuid
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from hpts import audit
from hpts.audit import NO_TENANT, Caller
from hpts.tenancy import tenant_transaction
from tests.admin.conftest import EVERY_TENANT, PASSWORD, Rich, browser_of, make_person
from tests.conftest import Lender


def log(tenant_id: str, actor: str | None = None) -> list[tuple[Any, ...]]:
    with tenant_transaction(tenant_id) as cursor:
        found = audit.records(cursor, actor=actor, limit=1_000)
    return [(each["action"], each["object_id"], each["outcome"], each["detail"]) for each in reversed(found)]


def sign_in(username: str, password: str, **more: Any) -> tuple[Client, Any]:
    client = Client()
    return client, client.post("/admin/login/", {"username": username, "password": password}, **more)


# --- What is written -------------------------------------------------------------------------------------------------


def test_signing_in_and_out_is_recorded_with_its_place(acme: Lender) -> None:
    person = make_person("viewer", books=acme.tenant_id)
    client, answer = sign_in(person.username, PASSWORD, REMOTE_ADDR="192.0.2.9", HTTP_USER_AGENT="Firefox")
    assert answer.status_code == 302
    client.post("/admin/logout/")
    name = f"staff:{person.username}"
    assert log(acme.tenant_id, name) == [("signIn", None, "done", None), ("signOut", None, "done", None)]
    with tenant_transaction(acme.tenant_id) as cursor:
        first = audit.records(cursor, actor=name, limit=2)[1]
    assert (first["address"], first["user_agent"]) == ("192.0.2.9", "Firefox")
    assert first["correlation_id"] is not None


def test_failures_and_the_lock_after_them_are_recorded(acme: Lender, settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT = 2
    person = make_person("viewer", books=acme.tenant_id)
    address = f"198.51.100.{uuid.uuid4().int % 250 + 1}"
    for _ in range(3):
        sign_in(person.username, "a wrong password", REMOTE_ADDR=address)
    said = [row[3] for row in log(acme.tenant_id, f"staff:{person.username}")]
    assert said[0] == "wrong_credentials"
    assert "locked_out" in said
    assert {row[2] for row in log(acme.tenant_id, f"staff:{person.username}")} == {"refused"}


def test_what_is_no_name_is_not_written_down() -> None:
    """People type a password where the name belongs."""
    secret, agent = f"my password {uuid.uuid4()}", f"agent {uuid.uuid4()}"
    sign_in(secret, "x", HTTP_USER_AGENT=agent)
    with tenant_transaction(NO_TENANT) as cursor:
        cursor.execute("SELECT actor, action, outcome, a::text FROM audit_record a WHERE user_agent = %s", (agent,))
        ((*said, whole),) = cursor.fetchall()
    assert said == ["staff:?", "signIn", "refused"]
    assert secret not in whole


def test_a_look_at_a_loan_or_an_entry_is_recorded(rich: Rich) -> None:
    person = make_person("viewer", books=rich.lender.tenant_id)
    client = browser_of(person)
    for page in ("loan", "entry", "account"):
        assert client.get(rich.urls()[page]).status_code == 200
    loan, entry = rich.arguments["loan"]["loan_id"], rich.arguments["entry"]["entry_id"]
    seen = [row for row in log(rich.lender.tenant_id, f"staff:{person.username}") if row[0] != "signIn"]
    assert seen == [("viewLoan", loan, "done", None), ("viewEntry", entry, "done", None)]


def test_a_look_that_could_not_be_rendered_is_recorded_all_the_same(
    rich: Rich, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    person = make_person("viewer", books=rich.lender.tenant_id)
    client = browser_of(person)
    client.raise_request_exception = False
    monkeypatch.setattr("hpts.site.render", broken)
    assert client.get(rich.urls()["loan"]).status_code == 500
    loan = rich.arguments["loan"]["loan_id"]
    assert log(rich.lender.tenant_id, f"staff:{person.username}")[-1] == ("viewLoan", loan, "failed", "status 500")


def test_nothing_is_shown_that_could_not_be_recorded(rich: Rich, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the log is full")

    client = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    client.raise_request_exception = False
    monkeypatch.setattr("hpts.audit.record", broken)
    assert client.get(rich.urls()["loan"]).status_code == 500


def test_a_look_at_another_tenants_loan_is_recorded_where_the_person_belongs(rich: Rich, zenith: Lender) -> None:
    person = make_person("viewer", books=zenith.tenant_id)
    assert browser_of(person).get(rich.urls()["loan"]).status_code == 404
    loan = rich.arguments["loan"]["loan_id"]
    assert log(zenith.tenant_id, f"staff:{person.username}")[-1] == ("viewLoan", loan, "refused", "not_found")


def test_what_becomes_of_an_account_is_recorded(acme: Lender) -> None:
    client = browser_of(make_person("platform admin", books=EVERY_TENANT))
    client.post("/admin/tenants/", {"tenant_id": acme.tenant_id})
    name = f"new-{uuid.uuid4().hex[:8]}"
    made = client.post("/admin/people/new/", {"username": name, "books": acme.tenant_id, "is_active": "on"})
    assert made.status_code == 302
    words = f"{uuid.uuid4()} horse"
    client.post(made.headers["Location"], {"new_password1": words, "new_password2": words})
    found = [row for row in log(acme.tenant_id) if row[0] != "createClient"]
    assert found == [
        ("chooseTenant", acme.tenant_id, "done", None),
        ("createPerson", name, "done", "active; no group"),
        ("setPassword", name, "done", "active; no group"),
    ]


# --- What is read ----------------------------------------------------------------------------------------------------


@pytest.fixture
def approver(acme: Lender) -> Client:
    return browser_of(make_person("approver", books=acme.tenant_id))


def test_the_page_filters_by_person_action_object_outcome_and_day(acme: Lender, approver: Client) -> None:
    for who, action, what in (("anna", "redeliverWebhook", "d-1"), ("bert", "resolveBreak", "b-1")):
        audit.record(Caller(f"staff:{who}", acme.tenant_id, reason=f"by {who}"), action, about=("thing", what))
    today = acme.today.isoformat()
    for query in (
        "actor=anna",
        "actor=staff:anna",
        "action=redeliverWebhook",
        "object_id=d-1",
        "outcome=done&actor=anna",
    ):
        text = approver.get(f"/admin/audit/?{query}&since={today}&until={today}").content.decode()
        assert "by anna" in text and "by bert" not in text, query
    for query in ("outcome=failed", "until=2020-01-01", "since=2999-01-01", "actor=nobody"):
        assert "by anna" not in approver.get(f"/admin/audit/?{query}").content.decode(), query


def test_a_record_has_a_page_with_all_of_it(acme: Lender, approver: Client) -> None:
    audit.record(
        Caller("staff:anna", acme.tenant_id, "192.0.2.1", "Safari <b>", reason="Asked by phone"), "resolveBreak"
    )
    text = approver.get("/admin/audit/?actor=anna").content.decode()
    (url,) = set(re.findall(r'href="(/admin/audit/[0-9]+/)"', text))
    text = approver.get(url).content.decode()
    assert all(words in text for words in ("staff:anna", "Asked by phone", "192.0.2.1", "Safari &lt;b&gt;"))


def test_only_who_may_reads_the_log_and_of_one_tenant(rich: Rich, acme: Lender) -> None:
    viewer = browser_of(make_person("viewer", books=acme.tenant_id))
    for name in ("audit", "audit_export", "platform_audit"):
        assert viewer.get(reverse(f"admin:{name}")).status_code == 403
    audit.record(Caller("staff:zoe", rich.lender.tenant_id), "resolveBreak")
    approver = browser_of(make_person("approver", books=acme.tenant_id))
    assert "staff:zoe" not in approver.get("/admin/audit/").content.decode()
    assert b"staff:zoe" not in approver.get("/admin/audit/export/").getvalue()
    assert approver.get("/admin/platform-audit/").status_code == 403
    platform = browser_of(make_person("platform admin", books=EVERY_TENANT))
    assert platform.get("/admin/platform-audit/").status_code == 200


def exported(client: Client, query: str = "") -> list[dict[str, str]]:
    answer = client.get(f"/admin/audit/export/{query}")
    assert answer.status_code == 200
    assert answer["Content-Disposition"] == 'attachment; filename="audit.csv"'
    assert answer.streaming
    return list(csv.DictReader(io.StringIO(answer.getvalue().decode())))


def test_the_export_has_every_row_once_and_is_recorded(
    acme: Lender, approver: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpts.admin_audit.EXPORTED_AT_ONCE", 3)
    for number in range(8):
        audit.record(Caller("staff:anna", acme.tenant_id), "resolveBreak", about=("break", str(number)))
    found = exported(approver, "?actor=anna")
    assert [each["object_id"] for each in found] == [str(number) for number in range(7, -1, -1)]
    assert log(acme.tenant_id)[-1] == ("exportAudit", acme.tenant_id, "done", "actor anna")


@pytest.mark.parametrize("evil", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("x")'])
def test_no_cell_of_the_export_is_a_formula(acme: Lender, approver: Client, evil: str) -> None:
    audit.record(Caller("staff:anna", acme.tenant_id, user_agent=evil, reason=evil), "resolveBreak")
    (found,) = exported(approver, "?actor=anna")
    assert (found["reason"], found["user_agent"]) == (f"'{evil}", f"'{evil}")
