"""The cast of the suite: tenants that a test makes for itself, their loans, and the clients that call for them.

Nothing is ever flushed and no transaction is wrapped around a test: what a test posts stays, in books that no other test
sees. Assertions that many files need stand here too; what only one file needs does not.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from types import SimpleNamespace
from typing import Any

import hypothesis
import psycopg
import pytest
from django.db import connections
from django.http import HttpResponse
from django.test import Client

from hpts import oauth
from hpts.tenancy import tenant_transaction
from ledger import masters, queries, seals

# A busy machine is not a failure. A failing example prints its seed, and comes first in the next run.
hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis.settings.load_profile("suite")

Json = dict[str, Any]

OPENED_ON = "2026-01-01"
NEW_KEY: Any = object()
# Answers 500 as a client would see it.
HTTP = Client(raise_request_exception=False)
ALL_SCOPES = tuple(oauth.SCOPES)


# --- Databases -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def django_db_setup() -> None:
    """tests/plugin.py has made and migrated the database; hpts_app may not make one."""


@pytest.fixture(scope="session", autouse=True)
def open_database(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Every test may use the database, as hpts_app and in transactions of the product's own."""
    with django_db_blocker.unblock():
        yield
        connections.close_all()


@contextmanager
def in_books_of(tenant_id: str, *, url: str = "DATABASE_URL") -> Iterator[psycopg.Connection[Any]]:
    """A connection of its own, in a transaction of one tenant: to look at rows, or to hold what a request will want."""
    with psycopg.connect(os.environ[url]) as connection:
        connection.execute("SELECT set_config('hpts.tenant_id', %s, true)", (tenant_id,))
        yield connection


# --- Answers ---------------------------------------------------------------------------------------------------------


def refused(answer: Any, status: int, code: str, fields: Iterable[str] | None = None) -> Json:
    """Assert that `answer` is this problem to the letter, with these wrong fields and no others; gives its body."""
    text = answer.content.decode()
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), text
    body: Json = json.loads(text)
    assert body["code"] == code, text
    members = {"type", "title", "status", "detail", "instance", "code"}
    assert body.keys() - {"errors"} == members, text
    assert (body["type"], body["status"]) == (f"/problems/{code}", status)
    assert body["instance"] == answer.headers["X-Request-Id"]
    assert all(isinstance(body[name], str) and body[name] for name in ("title", "detail"))
    if fields is not None:
        assert sorted(error["field"] for error in body.get("errors", [])) == sorted(fields), text
    for error in body.get("errors", []):
        assert error.keys() == {"field", "code", "message"}, text
        assert all(isinstance(value, str) for value in error.values()), text
    assert body.get("errors") != [], "errors is left out when there are none"
    if status in (429, 503) or code == "idempotency_in_progress":
        assert int(answer.headers["Retry-After"]) >= 1
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    if status == 405:
        assert answer.headers["Allow"]
    assert "Idempotency-Replayed" not in answer.headers
    return body


def posted(answer: Any) -> Json:
    """Assert that `answer` is 201 (or 202: accepted) for the first time; gives its body."""
    assert answer.status_code in (201, 202), answer.content.decode()
    assert "Idempotency-Replayed" not in answer.headers
    body: Json = json.loads(answer.content)
    return body


def shown(answer: Any) -> Json:
    """Assert that `answer` is 200; gives its body."""
    assert answer.status_code == 200, answer.content.decode()
    assert answer.headers["Content-Type"] == "application/json"
    body: Json = json.loads(answer.content)
    return body


# --- Sealed history --------------------------------------------------------------------------------------------------


def sealed(tenant_id: str, *, within: float = 30.0) -> int:
    """Seal until every entry of the tenant is in a block; gives the number of blocks made. Other tests' transactions may hold
    the horizon back for a moment."""
    deadline = time.monotonic() + within
    blocks = 0
    while _unsealed(tenant_id):
        assert time.monotonic() < deadline, "the entries are not sealed"
        blocks += seals.seal(tenant_id) > 0
    return blocks


def _unsealed(tenant_id: str) -> int:
    waiting = "SELECT (SELECT count(*) FROM outbox_message) - (SELECT coalesce(sum(entry_count), 0) FROM journal_seal)"
    with in_books_of(tenant_id) as connection:
        row = connection.execute(waiting).fetchone()
        assert row is not None
        return int(row[0])


# --- Callers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Api:
    """Calls of one tenant's client over HTTP. Every call has a fresh key and a token with all scopes, unless told."""

    client: Any
    http: Client = field(default=HTTP, repr=False)
    tokens: dict[tuple[str, ...], str] = field(default_factory=dict, repr=False)

    def in_a_thread(self) -> Api:
        """The same caller for a thread of a test's own; the test client is not for two at once."""
        return Api(self.client, Client(raise_request_exception=False), self.tokens)

    def token(self, scopes: Iterable[str] = ALL_SCOPES) -> str:
        """A token as the issuer makes it, with these scopes."""
        wanted = tuple(scopes)
        if wanted not in self.tokens:
            request: Any = SimpleNamespace(client=self.client, scopes=wanted, expires_in=3600, user=None, headers={})
            self.tokens[wanted] = oauth.access_token(request)
        return self.tokens[wanted]

    def call(
        self,
        method: str,
        path: str,
        body: Any = b"",
        *,
        key: str | None = None,
        scopes: Iterable[str] | None = ALL_SCOPES,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        **environ: Any,
    ) -> HttpResponse:
        """One request. `scopes=None` sends no token; `environ` goes into the WSGI environment as it is."""
        sent = {} if scopes is None else {"Authorization": f"Bearer {self.token(scopes)}"}
        if key is not None:
            sent["Idempotency-Key"] = key
        text = body if isinstance(body, bytes | str) else json.dumps(body)
        raw = text.encode() if isinstance(text, str) else text
        # Said again, because the test client leaves both out when the body is empty.
        environ = {"CONTENT_TYPE": content_type, "CONTENT_LENGTH": str(len(raw))} | environ
        return self.http.generic(method, path, raw, content_type, headers=sent | dict(headers or {}), **environ)  # type: ignore[return-value]

    def post(self, path: str, body: Any, *, key: str | None = NEW_KEY, **more: Any) -> HttpResponse:
        """POST a JSON value, or bytes as they are."""
        return self.call("POST", path, body, key=new_key() if key is NEW_KEY else key, **more)

    def get(self, path: str, query: Mapping[str, Any] | None = None, **more: Any) -> HttpResponse:
        return self.call("GET", path, QUERY_STRING=_query_string(query or {}), **more)

    # What happens in most stories, told in one line. Each asserts that it was accepted.

    def disburse(self, loan: Loan, amount: int, on: str, **changes: Any) -> Json:
        return posted(self.post("/v1/disbursements", disbursement_of(loan, amount, on) | changes))

    def settle(self, disbursement: Json, on: str) -> Json:
        path = f"/v1/disbursements/{disbursement['disbursement_event_id']}/settlement"
        return posted(self.post(path, {"effective_at": on}))

    def pay(self, loan: Loan, amount: int, on: str, **changes: Any) -> Json:
        return posted(self.post("/v1/payments", payment_of(loan, amount, on) | changes))

    def accrue(self, on: str, *items: tuple[Loan, int, int]) -> Json:
        """Each item: loan, outstanding principal, interest."""
        return posted(self.post("/v1/accruals/batch", accrual_of(on, *items)))

    def adjust(self, on: str, *lines: Json) -> Json:
        body = {"effective_at": on, "description": "Adjustment", "lines": list(lines)}
        return posted(self.post("/v1/journal-entries", body))

    def charge_fee(self, loan: Loan, amount: int, on: str) -> Json:
        about = {"loan_id": loan.loan_id}
        return self.adjust(on, line("1300", "DR", amount, **about), line("4100", "CR", amount, **about))

    def reverse(self, entry_id: str, **changes: Any) -> Json:
        body = {"reverses_entry_id": entry_id, "reason_code": "error_correction"} | changes
        return posted(self.post("/v1/reversals", body))

    def settle_payment(self, payment: Json, on: str) -> Json:
        path = f"/v1/payments/{payment['payment_event_id']}/settlement"
        return posted(self.post(path, {"effective_at": on}))

    def give_back(self, payment: Json, on: str, **more: Any) -> Json:
        """The return of a payment."""
        path = f"/v1/payments/{payment['payment_event_id']}/return"
        return posted(self.post(path, {"effective_at": on, "return_code": "R01"} | more))

    def serve(self, loan: Loan, operation: str, on: str, amount: int | None = None, **more: Any) -> Json:
        """POST /loans/{loan_id}/`operation`, with an amount of the loan's currency when one is given."""
        money = {} if amount is None else {"amount_minor": str(amount), "currency": loan.currency}
        return posted(self.post(f"/v1/loans/{loan.loan_id}/{operation}", {"effective_at": on} | money | more))

    def close_period(self, through: str) -> Json:
        return posted(self.post("/v1/periods/close", {"through_date": through}))

    def entry(self, entry_id: str) -> Json:
        return shown(self.get(f"/v1/journal-entries/{entry_id}"))

    def lines(self, entry_id: str) -> list[str]:
        """An entry's lines as an accountant writes them; the layer only when it is not SETTLED."""
        return [
            f"{line['direction']} {line['account_code']} {line['amount_minor']}"
            + ("" if line["layer"] == "SETTLED" else f" {line['layer']}")
            for line in self.entry(entry_id)["lines"]
        ]

    def state(self, loan: Loan) -> str:
        body: Json = shown(self.get(f"/v1/loans/{loan.loan_id}"))
        return str(body["state"])

    def history(self, loan: Loan, **query: Any) -> list[Json]:
        items: list[Json] = shown(self.get(f"/v1/loans/{loan.loan_id}/journal-entries", query))["items"]
        return items

    def owed(self, loan: Loan, as_of: str | None = None) -> tuple[int, int, int]:
        """Principal, interest and fees of a loan."""
        body = shown(self.get(f"/v1/loans/{loan.loan_id}/balance", {"as_of_date": as_of} if as_of else {}))
        names = ("principal_outstanding_minor", "interest_receivable_minor", "fees_receivable_minor")
        principal, interest, fees = (int(body[name]) for name in names)
        return principal, interest, fees

    def account(self, code: str, **query: Any) -> Json:
        return shown(self.get(f"/v1/accounts/{code}/balance", {"currency": "USD"} | query))

    def normal_balance(self, code: str, **query: Any) -> int:
        return int(self.account(code, **query)["normal_balance_minor"])


def new_key() -> str:
    return f"test-{uuid.uuid4()}"


def _query_string(query: Mapping[str, Any]) -> str:
    from urllib.parse import urlencode

    return urlencode(query, doseq=True)


# --- Bodies ----------------------------------------------------------------------------------------------------------


def payment_of(loan: Loan, amount: int = 5_000, on: str = "2026-02-01", **changes: Any) -> Json:
    return {
        "loan_id": loan.loan_id,
        "borrower_id": loan.borrower_id,
        "amount_minor": str(amount),
        "currency": loan.currency,
        "effective_at": on,
        "source_method": "ach",
    } | changes


def disbursement_of(loan: Loan, amount: int = 100_000, on: str = "2026-01-05", **changes: Any) -> Json:
    return {
        "loan_id": loan.loan_id,
        "borrower_id": loan.borrower_id,
        "amount_minor": str(amount),
        "currency": loan.currency,
        "effective_at": on,
        "method": "wire",
    } | changes


def accrual_of(on: str, *items: tuple[Loan, int, int]) -> Json:
    return {
        "program_id": items[0][0].program_id,
        "accrual_date": on,
        "day_count_convention": "ACT_365",
        "loans": [
            {
                "loan_id": loan.loan_id,
                "outstanding_principal_minor": str(principal),
                "interest_minor": str(interest),
            }
            for loan, principal, interest in items
        ],
    }


def line(code: str, direction: str, amount: int, currency: str = "USD", **more: Any) -> Json:
    """A line of a manual adjustment."""
    return {"account_code": code, "direction": direction, "amount_minor": str(amount), "currency": currency} | more


# --- The cast --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loan:
    loan_id: str
    borrower_id: str
    program_id: str
    currency: str


@dataclass(frozen=True)
class Lender:
    """A tenant with a program and three loans, and its client."""

    tenant_id: str
    program_id: str
    loans: list[Loan]
    api: Api

    @property
    def loan(self) -> Loan:
        return self.loans[0]

    @property
    def today(self) -> date:
        with tenant_transaction(self.tenant_id) as cursor:
            return queries.today(cursor)

    def open_program(self, **changes: Any) -> str:
        with tenant_transaction(self.tenant_id) as cursor:
            return _open_program(cursor, **changes)

    def accrue_by_engine(self, on: str, program_id: str | None = None) -> dict[str, Any]:
        """Ask for the run of a date, and do what workers would; gives the run as it is then."""
        from ledger import runs

        path = f"/v1/programs/{program_id or self.program_id}/accrual-runs"
        run_id = posted(self.api.post(path, {"accrual_date": on}))["accrual_run_id"]
        runs.work(self.tenant_id, run_id)
        return shown(self.api.get(f"/v1/accrual-runs/{run_id}"))

    def open_loan(self, program_id: str | None = None, **changes: Any) -> Loan:
        with tenant_transaction(self.tenant_id) as cursor:
            return _open_loan(cursor, program_id or self.program_id, **changes)

    def books(self) -> tuple[Any, ...]:
        """Everything that a posting could move: counts, balances, versions, terms, accounts."""
        with in_books_of(self.tenant_id) as connection:
            row: tuple[Any, ...] | None = connection.execute(_BOOKS).fetchone()
            assert row is not None
            return row

    def balances(self) -> dict[tuple[str, str, str], int]:
        """Loan balances that are not zero, by loan, account and layer."""
        with in_books_of(self.tenant_id) as connection:
            rows = connection.execute("SELECT loan_id::text, account_code, layer, balance_minor FROM loan_balance")
            return {(loan_id, code, layer): minor for loan_id, code, layer, minor in rows if minor}


_BOOKS = """SELECT
    (SELECT count(*) FROM journal_entry), (SELECT count(*) FROM journal_line), (SELECT count(*) FROM idempotency_key),
    (SELECT count(*) FROM outbox_message), (SELECT count(*) FROM loan_accrual), (SELECT count(*) FROM program),
    (SELECT count(*) FROM program_terms), (SELECT count(*) FROM loan_terms),
    (SELECT count(*) FROM period_close),
    (SELECT array_agg((code, name, closed_at, closure_reason) ORDER BY code)::text FROM gl_account),
    (SELECT array_agg((id, version, last_effective_at, last_posted_at, draws, ended_as) ORDER BY id)::text FROM loan),
    (SELECT array_agg((loan_id, account_code, layer, balance_minor) ORDER BY loan_id, account_code, layer)::text
     FROM loan_balance)"""


def _open_program(cursor: Any, **changes: Any) -> str:
    terms: Json = {
        "on": date(2026, 1, 1),
        "program_id": str(uuid.uuid4()),
        "name": "Instalments",
        "currency": "USD",
        "annual_rate_bps": 1_000,
        "day_count_convention": "ACT_365",
        "waterfall": ("fees", "interest", "principal"),
        "accrual_mode": "client",
    } | changes
    program_id: str = masters.create_program(cursor, **terms)["program_id"]
    return program_id


def _open_loan(cursor: Any, program_id: str, **changes: Any) -> Loan:
    terms: Json = {
        "on": date(2026, 1, 1),
        "loan_id": str(uuid.uuid4()),
        "borrower_id": str(uuid.uuid4()),
        "program_id": program_id,
        "opened_on": date.fromisoformat(OPENED_ON),
        "principal_limit_minor": None,
        "annual_rate_bps": None,
    } | changes
    made = masters.create_loan(cursor, **terms)
    return Loan(made["loan_id"], made["borrower_id"], made["program_id"], made["currency"])


def new_lender(name: str = "Acme", timezone: str = "UTC") -> Lender:
    tenant_id = str(uuid.uuid4())
    with tenant_transaction(tenant_id) as cursor:
        masters.create_tenant(cursor, name=name, currency="USD", timezone=timezone)
        program_id = _open_program(cursor)
        loans = [_open_loan(cursor, program_id) for _ in range(3)]
    client, _ = oauth.register_client(tenant_id=tenant_id, scopes=ALL_SCOPES, name=name)
    return Lender(tenant_id, program_id, loans, Api(client))


@pytest.fixture
def make_lender() -> Callable[..., Lender]:
    return new_lender


@pytest.fixture
def acme(make_lender: Callable[..., Lender]) -> Lender:
    return make_lender("Acme")


@pytest.fixture
def zenith(make_lender: Callable[..., Lender]) -> Lender:
    """The other tenant: what belongs to it must not be seen, touched or told apart from what does not exist."""
    return make_lender("Zenith")


@pytest.fixture
def api(acme: Lender) -> Api:
    return acme.api


@pytest.fixture
def loan(acme: Lender) -> Loan:
    return acme.loan


@pytest.fixture
def tomorrow(acme: Lender) -> str:
    """A date that lies in the future until long after the test."""
    return (acme.today + timedelta(days=2)).isoformat()


@pytest.fixture
def nothing_moves(acme: Lender) -> Callable[[], AbstractContextManager[None]]:
    """`with nothing_moves():` asserts that Acme's books are the same at the end."""

    @contextmanager
    def unchanged() -> Iterator[None]:
        before = acme.books()
        yield
        assert acme.books() == before, "a refused request has moved the books"

    return unchanged
