"""Every page of the admin: what it costs, what it changes (nothing), and whom it shows what."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from hpts.access import GROUPS
from hpts.site import READS, Look, site
from hpts.tenancy import tenant_transaction
from tests.admin.conftest import EVERY_TENANT, Rich, browser_of, make_person, people
from tests.conftest import Lender
from tests.webhooks.conftest import claim, eventually, register, settle
from webhooks.delivery import Outcome
from webhooks.queries import backlog
from webhooks.relay import relay

MOST_QUERIES = 12
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# What a style or a script in the page would look like; the policy allows neither.
INLINE = re.compile(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=|javascript:", re.IGNORECASE)


@contextmanager
def counted() -> Iterator[Callable[[], list[str]]]:
    """The statements of both connections while the block runs."""
    contexts = [CaptureQueriesContext(connections[alias]) for alias in ("default", READS)]
    for context in contexts:
        context.__enter__()
    try:
        yield lambda: [query["sql"] for context in contexts for query in context.captured_queries]
    finally:
        for context in contexts:
            context.__exit__(None, None, None)


def everything(rich: Rich) -> dict[str, str]:
    """Every address of the site: its pages, its doors and what else it has."""
    others = {name: reverse(f"admin:{name}") for name in ("index", "login", "logout", "find", "password_change")}
    known: dict[str, Any] = {"person_id": 1, "record_id": 1, "client_id": "nobody", "proposal_id": str(uuid.uuid4())}
    for arguments in rich.arguments.values():
        known |= arguments
    doors = {
        name: reverse(f"admin:{name}", kwargs={each: known[each] for each in re.findall(r"<\w+:(\w+)>", door.path)})
        for name, door in site.registered.doors.items()
    }
    return rich.urls() | others | doors | {"unknown": "/admin/nothing/", "find one": f"/admin/find/?q={rich.key}"}


def test_each_page_opens_with_few_statements_and_nothing_inline(rich: Rich) -> None:
    viewer = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    for name, url in {"index": "/admin/", "find": f"/admin/find/?q={rich.reference}", **rich.urls()}.items():
        viewer.get(url)  # The first time, Django looks up what it then remembers.
        with counted() as statements:
            answer = viewer.get(url)
        assert answer.status_code in (200, 302), f"{name}: {answer.status_code}"
        assert len(statements()) <= MOST_QUERIES, f"{name}: {len(statements())} statements\n" + "\n".join(statements())
        text = answer.content.decode()
        assert not INLINE.search(text), f"{name} has something inline: {INLINE.search(text)}"
        assert "script-src 'self'" in answer["Content-Security-Policy"]
        assert "unsafe" not in answer["Content-Security-Policy"]
        assert answer["Cache-Control"] == "no-store"


def test_a_list_of_many_rows_costs_no_statement_more(make_rich: Callable[[], Rich]) -> None:
    rich = make_rich()
    viewer = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    costs = []
    for _ in range(2):
        for url in ("/admin/entries/", "/admin/loans/"):
            viewer.get(url)
            with counted() as statements:
                viewer.get(url)
            costs.append(len(statements()))
        for _ in range(4):
            rich.lender.api.pay(rich.lender.loan, 100, "2026-02-02")
            rich.lender.open_loan()
    assert costs[:2] == costs[2:]


def test_pages_follow_one_another_by_key_and_show_each_row_once(rich: Rich, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    monkeypatch.setattr("hpts.listing.ROWS_SHOWN", 2)
    monkeypatch.setattr("hpts.listing.listing.__kwdefaults__", {"filters": (), "size": 2})
    for page in ("entries", "loans", "keys", "outbox", "accounts", "accrual_runs", "deliveries", "breaks", "runs"):
        url: str | None = reverse(f"admin:{page}")
        seen: list[str] = []
        with counted() as statements:
            while url is not None:
                text = viewer.get(url).content.decode()
                seen += (
                    re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)[0].split("</tr>")[:-1]
                    if "<tbody>" in text
                    else []
                )
                onward = re.search(r'rel="next" href="([^"]+)"', text)
                url = reverse(f"admin:{page}") + onward[1].replace("&amp;", "&") if onward else None
        assert len(seen) == len(set(seen)), f"{page} shows a row twice"
        assert not any("count(*) from" in sql.lower() and "journal_entry" in sql.lower() for sql in statements()), page
    assert len(seen) >= 1


@contextmanager
def no_row_changes() -> Iterator[None]:
    """Every table but sessions, the count of failed sign-ins, when somebody last signed in, and the log of all that: how many
    rows, and the last transaction that wrote one."""
    with psycopg.connect(os.environ["HPTS_SUPERUSER_DATABASE_URL"], autocommit=True) as connection:
        tables = [
            table
            for (table,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
            )
            if table not in ("django_session", "audit_record") and not table.startswith(("axes_", "auth_user"))
        ]

        def state() -> dict[str, Any]:
            found = {
                table: connection.execute(f"SELECT count(*), max(xmin::text::bigint) FROM {table}").fetchone()
                for table in tables
            }
            people = (
                "SELECT count(*), sum(hashtext(concat(username, password, is_superuser, is_active))) FROM auth_user"
            )
            return found | {"people": connection.execute(people).fetchone()}

        before = state()
        yield
        after = state()
        assert after == before, {
            table: (before[table], after[table]) for table in before if before[table] != after[table]
        }


@pytest.mark.parametrize(
    "kind", ["nobody", "without a group", "without a tenant", *GROUPS, "platform staff", "superuser"]
)
def test_no_address_changes_a_row_by_any_method(rich: Rich, kind: str) -> None:
    person = people(rich.lender.tenant_id)[kind]
    client = browser_of(person)
    client.raise_request_exception = False
    addresses = everything(rich)
    with no_row_changes():
        for name, url in addresses.items():
            if name == "logout":
                continue
            for method in METHODS:
                answer = client.generic(method, url)
                assert answer.status_code < 500, f"{method} {url} as {kind}: {answer.status_code}"
                if name in site.registered.pages and method not in ("GET", "HEAD"):
                    assert answer.status_code != 200, f"{method} {url} as {kind} was taken"


@pytest.mark.parametrize("kind", GROUPS)
def test_staff_of_one_tenant_sees_nothing_of_another(rich: Rich, zenith: Lender, kind: str) -> None:
    """What is shown of Acme's is compared with what the same page says of an id that nobody has."""
    acme = rich
    client = browser_of(make_person(kind, books=zenith.tenant_id))
    secrets = {value for arguments in acme.arguments.values() for value in arguments.values() if len(value) > 20}
    secrets |= {acme.reference, "receiver.example"}
    for name, url in acme.urls().items():
        if name == "account":  # Each chart has it.
            continue
        answer = client.get(url)
        text = answer.content.decode()
        if name in acme.arguments:
            assert answer.status_code == 404, f"{name}: {answer.status_code}"
        else:
            assert answer.status_code == 200
            assert not [secret for secret in secrets if secret in text], name
    for secret in sorted(secrets | {"123.45"}):
        found = client.get("/admin/find/", {"q": secret})
        assert found.status_code == 200
        assert "Nothing in the books" in found.content.decode(), secret


def test_the_tenant_of_a_session_moves_nobody_who_is_bound(rich: Rich, zenith: Lender) -> None:
    client = browser_of(make_person("platform admin", books=zenith.tenant_id))
    session = client.session
    session["tenant_id"] = rich.lender.tenant_id
    session.save()
    assert client.get(rich.urls()["loan"]).status_code == 404
    assert client.post("/admin/tenants/", {"tenant_id": rich.lender.tenant_id}).status_code == 403
    assert client.get("/admin/people/").status_code == 403


def test_pages_read_as_the_role_that_cannot_write(rich: Rich, rf: Any) -> None:
    seen = {}
    request = rf.get("/admin/")
    request.user = make_person("viewer", books=rich.lender.tenant_id)
    request.session = {}

    def show(look: Look) -> dict[str, str]:
        look.cursor.execute("SELECT current_user, current_setting('transaction_read_only'), count(*) FROM tenant")
        seen["role"], seen["read only"], seen["tenants"] = look.cursor.fetchone()
        return {"title": "Look"}

    from hpts.access import access_of

    site.looking(request, access_of(request), "books/refusal.html", show)
    assert seen == {"role": "hpts_readonly", "read only": "on", "tenants": 1}


def test_what_is_posted_and_what_waits_is_counted_up_to_a_bound(acme: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that today's page takes no longer on a day of millions."""
    for amount in (100_000, 200, 300):
        acme.api.disburse(acme.loan, amount, "2026-01-05")
    client = browser_of(make_person("viewer", books=acme.tenant_id))
    assert "and more" not in client.get("/admin/").content.decode()
    monkeypatch.setattr("ledger.queries.COUNTED", 2)
    monkeypatch.setattr("webhooks.queries.COUNTED", 2)
    page = client.get("/admin/").content.decode()
    assert "2 <small>and more</small>" in page and "Of the last 2." in page
    with tenant_transaction(acme.tenant_id) as cursor:
        assert backlog(cursor, limit=5)["waiting"] == 2


def test_a_deliverys_page_tells_what_each_failed_attempt_heard(acme: Lender) -> None:
    endpoint = register(acme.api, "https://93.184.215.14/hook")
    acme.api.disburse(acme.loan, 100_000, "2026-01-05")
    eventually(lambda: relay(acme.tenant_id) > 0)
    tried = next(each for each in claim(acme) if each.endpoint_id == endpoint.endpoint_id)
    settle(acme, [tried], Outcome(status=503, error="come back later"))
    client = browser_of(make_person("viewer", books=acme.tenant_id))
    page = client.get(f"/admin/deliveries/{tried.delivery_id}/").content.decode()
    assert "Attempts that failed" in page and "HTTP 503" in page and "come back later" in page


def test_platform_staff_turns_from_tenant_to_tenant(rich: Rich, zenith: Lender) -> None:
    client = browser_of(make_person("platform admin", books=EVERY_TENANT))
    assert client.get("/admin/").headers["Location"].startswith("/admin/tenants/")
    onward = {"tenant_id": rich.lender.tenant_id, "next": rich.urls()["loan"]}
    assert client.post("/admin/tenants/", onward).headers["Location"] == onward["next"]
    assert client.get(onward["next"]).status_code == 200
    client.post("/admin/tenants/", {"tenant_id": zenith.tenant_id, "next": "https://elsewhere.example/"})
    assert client.get(onward["next"]).status_code == 404
    for unknown in ("", "nonsense", "00000000-0000-4000-8000-000000000000"):
        assert client.post("/admin/tenants/", {"tenant_id": unknown}).status_code == 404


@pytest.mark.parametrize(
    ("what", "page"),
    [
        ("loan", "loan"),
        ("entry", "entry"),
        ("run", "run"),
        ("statement", "statement"),
        ("break", "break"),
        ("endpoint", "endpoint"),
        ("delivery", "delivery"),
        ("accrual_run", "accrual_run"),
        ("program", "program"),
    ],
)
def test_the_box_goes_to_what_has_the_id(rich: Rich, what: str, page: str) -> None:
    client = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    (uuid,) = rich.arguments[what].values()
    answer = client.get("/admin/find/", {"q": f" {uuid.upper()} "})
    assert answer.headers["Location"] == rich.urls()[page]


def test_the_box_goes_to_a_reference_a_key_a_borrower_and_an_amount(rich: Rich) -> None:
    client = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    entry, loan = rich.urls()["entry"], rich.urls()["loan"]
    assert client.get("/admin/find/", {"q": rich.reference}).headers["Location"] == entry
    assert client.get("/admin/find/", {"q": rich.key}).headers["Location"] == rich.urls()["key"]
    assert client.get("/admin/find/", {"q": rich.lender.loan.borrower_id}).headers["Location"] == loan
    listed = client.get("/admin/find/", {"q": "123.45"}).content.decode()
    assert entry in listed and reverse("admin:entry", args=[rich.reversal]) in listed
    assert client.get("/admin/find/", {"q": "1,000.00"}).status_code in (200, 302)
    for nothing in ("0.001", "12.345.6", "%", "'", "key-nobody", "é" * 300):
        assert "Nothing in the books" in client.get("/admin/find/", {"q": nothing}).content.decode()


def test_an_entry_shows_its_cause_its_reversal_and_its_deliveries(rich: Rich) -> None:
    client = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    text = client.get(rich.urls()["entry"]).content.decode()
    assert rich.urls()["key"] in text
    assert reverse("admin:entry", args=[rich.reversal]) in text
    assert f"client:{rich.lender.api.client.client_id}" in text or rich.lender.api.client.client_id in text
    assert "of the feed" in text
    assert text.count("123.45") >= 2


@pytest.mark.parametrize(
    "address",
    [
        "/admin/entries/?kind=nonsense",
        "/admin/entries/?since=yesterday",
        "/admin/entries/?after=x",
        "/admin/loans/?borrower=x",
        "/admin/accrual-runs/?after=x~y",
        "/admin/entries/?after=a~b",
        "/admin/trial-balance/?as_of=2026-13-01",
        "/admin/periods/never/",
        "/admin/outbox/?after=%27",
        "/admin/keys/x/y/z/",
        "/admin/accounts/9999/",
    ],
)
def test_an_address_that_names_nothing_is_not_found(rich: Rich, address: str) -> None:
    client = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    answer = client.get(address)
    assert answer.status_code == 404
    assert "text/html" in answer["Content-Type"]


def test_an_empty_book_says_what_to_do(acme: Lender) -> None:
    client = browser_of(make_person("viewer", books=acme.tenant_id))
    for name, page in site.registered.pages.items():
        if page.section and name not in ("accounts", "loans", "programs"):
            text = client.get(reverse(f"admin:{name}")).content.decode()
            assert 'class="card empty"' in text, name
    assert client.get("/admin/").content.decode().count('class="empty"') >= 5


def test_who_has_not_signed_in_sees_the_sign_in_alone(rich: Rich, client: Client) -> None:
    for name, url in everything(rich).items():
        if name not in ("login", "logout", "second_factor"):
            answer = client.get(url)
            assert answer.status_code == 302 and "/admin/login/" in answer.headers["Location"], name
