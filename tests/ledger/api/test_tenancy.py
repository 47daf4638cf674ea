"""Another tenant's rows, read by read: every GET route that names a row has a probe here, or the first test fails.

What writes do with foreign ids is in test_writes.py.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.urls import get_resolver

from tests.conftest import Lender, in_books_of, payment_of, posted, refused, sealed, shown

Probe = Callable[[Lender], tuple[str, str]]


def _own_account(lender: Lender) -> tuple[str, str]:
    with in_books_of(lender.tenant_id) as connection:
        connection.execute(
            """INSERT INTO gl_account (tenant_id, code, name, account_type, normal_side, per_loan)
               VALUES (%s, '7777', 'Own', 'asset', 'DR', false)""",
            (lender.tenant_id,),
        )
    return "7777", "7778"


def _entry(lender: Lender) -> tuple[str, str]:
    return lender.api.pay(lender.loan, 5, "2026-01-05")["journal_entry_id"], str(uuid.uuid4())


def _loan(lender: Lender) -> tuple[str, str]:
    lender.api.pay(lender.loan, 5, "2026-01-05")
    return lender.loan.loan_id, str(uuid.uuid4())


def _program(lender: Lender) -> tuple[str, str]:
    return lender.program_id, str(uuid.uuid4())


def _run(lender: Lender) -> tuple[str, str]:
    return lender.accrue_by_engine("2026-01-20", lender.open_program(accrual_mode="engine"))["accrual_run_id"], str(
        uuid.uuid4()
    )


# Path, and how to name a row that exists in a lender's books, and one that exists nowhere.
def _sealed_entry(lender: Lender) -> tuple[str, str]:
    entry_ids = _entry(lender)
    sealed(lender.tenant_id)
    return entry_ids


PROBES: dict[str, Probe] = {
    "/v1/journal-entries/{}": _entry,
    "/v1/journal-entries/{}/proof": _sealed_entry,
    "/v1/programs/{}": _program,
    "/v1/accrual-runs/{}": _run,
    "/v1/loans/{}": _loan,
    "/v1/loans/{}/journal-entries": _loan,
    "/v1/loans/{}/balance": _loan,
    "/v1/loans/{}/payoff": _loan,
    "/v1/loans/{}/allocation-preview?amount_minor=5": _loan,
    "/v1/loans/{}/statement": _loan,
    "/v1/loans/{}/balance-changes?from_known_at=2026-01-01T00:00:00Z&to_known_at=2026-01-01T00:00:00Z": _loan,
    "/v1/accounts/{}/balance?currency=USD": _own_account,
}
LISTS = [
    "/v1/programs",
    "/v1/loans",
    "/v1/accounts",
    "/v1/trial-balance?currency=USD",
    "/v1/periods",
    "/v1/accrual-runs",
    "/v1/seals",
    "/v1/seal-keys",
]


def test_every_read_has_a_probe() -> None:
    routes: list[Any] = get_resolver("hpts.urls").url_patterns
    below_v1 = [
        route
        for part in routes
        if str(part.pattern) == "v1/"
        for route in part.url_patterns
        if route.callback.cls.__module__ == "ledger.views"
    ]
    reads = {f"/v1/{route.pattern}" for route in below_v1 if "get" in route.callback.actions}
    probed = {path.partition("?")[0] for path in [*PROBES, *LISTS]}
    missing = {read for read in reads if _template(read) not in probed}
    assert not missing, f"say here how {missing} is asked for another tenant's rows"


def _template(route: str) -> str:
    return "/".join("{}" if part.startswith("<") else part for part in route.split("/"))


@pytest.mark.parametrize("path", PROBES)
def test_a_row_of_another_tenant_answers_exactly_like_none(acme: Lender, zenith: Lender, path: str) -> None:
    foreign, unknown = PROBES[path](zenith)
    bare, _, query = path.partition("?")
    assert zenith.api.call("GET", bare.format(foreign), QUERY_STRING=query).status_code == 200
    answers = []
    for name in (foreign, unknown):
        answer = acme.api.call("GET", bare.format(name), QUERY_STRING=query)
        problem = refused(answer, 404, "not_found") | {"instance": ""}
        answers.append((json.dumps(problem).replace(name, "x"), sorted(answer.headers)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("path", LISTS)
def test_a_list_holds_no_row_of_another_tenant(acme: Lender, zenith: Lender, path: str) -> None:
    for lender in (acme, zenith):
        lender.api.pay(lender.loan, 5, "2026-01-05")
        lender.api.close_period("2026-01-01")
        _run(lender)
    _own_account(zenith)
    bare, _, query = path.partition("?")
    before = shown(acme.api.call("GET", bare, QUERY_STRING=query))
    zenith.api.pay(zenith.loan, 7, "2026-01-05")
    zenith.api.close_period("2026-01-02")
    zenith.open_loan()
    zenith.open_program()
    assert shown(acme.api.call("GET", bare, QUERY_STRING=query)) == before
    text = json.dumps(before)
    for name in (zenith.tenant_id, zenith.program_id, *(loan.loan_id for loan in zenith.loans), "7777"):
        assert name not in text


def test_two_tenants_take_turns_on_one_connection(acme: Lender, zenith: Lender) -> None:
    """The tenant is a matter of each transaction: nothing of the last one stays with the connection."""
    for n in range(1, 26):
        for lender, amount in ((acme, 1), (zenith, 100)):
            lender.api.pay(lender.loan, amount, "2026-01-05")
            assert lender.api.normal_balance("2000") == n * amount
            assert len(lender.api.history(lender.loan, page_size=500)) == n


def test_nothing_of_the_tenant_stays_with_the_connection(acme: Lender) -> None:
    shown(acme.api.get("/v1/loans"))
    posted(acme.api.post("/v1/payments", payment_of(acme.loan)))
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM loan")
        assert cursor.fetchone() == (0,)
