"""POST /v1/reversals: the exact mirror, once, and what is not reversible."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.conftest import Api, Json, Lender, Loan, in_books_of, line, payment_of, posted, refused

Unmoved = Callable[[], AbstractContextManager[None]]
PATH = "/v1/reversals"


def reversal_of(made: Json, **changes: Any) -> Json:
    return {"reverses_entry_id": made["journal_entry_id"], "reason_code": "error_correction"} | changes


# --- The mirror ------------------------------------------------------------------------------------------------------

MAKE: dict[str, Callable[[Api, Lender], Json]] = {
    "disbursement": lambda api, acme: api.disburse(acme.loan, 100_000, "2026-01-05"),
    "pending disbursement": lambda api, acme: api.disburse(acme.loan, 100_000, "2026-01-05", layer="PENDING"),
    "payment": lambda api, acme: api.pay(acme.loan, 777, "2026-01-05", external_ref="R"),
    "pending payment": lambda api, acme: api.pay(acme.loan, 777, "2026-01-05", layer="PENDING"),
    "accrual": lambda api, acme: api.accrue("2026-01-05", *((loan, 0, 7) for loan in acme.loans)),
    "manual adjustment": lambda api, acme: api.charge_fee(acme.loan, 500, "2026-01-05"),
    "manual adjustment without a loan": lambda api, acme: api.adjust(
        "2026-01-05", line("1000", "DR", 9, "EUR"), line("3000", "CR", 9, "EUR")
    ),
}


@pytest.mark.parametrize("kind", MAKE)
def test_a_reversal_mirrors_every_line(acme: Lender, kind: str) -> None:
    made = MAKE[kind](acme.api, acme)
    answer = acme.api.reverse(made["journal_entry_id"], effective_at="2026-02-01")
    assert answer.keys() == {"journal_entry_id", "reverses_entry_id", "posted_at", "correlation_id"}
    assert answer["reverses_entry_id"] == made["journal_entry_id"]
    original, mirror = acme.api.entry(made["journal_entry_id"]), acme.api.entry(answer["journal_entry_id"])
    assert mirror["event_type"] == "reversal"
    assert mirror["reverses_entry_id"] == made["journal_entry_id"]
    assert mirror["correlation_id"] == answer["correlation_id"]
    assert mirror["effective_at"] == "2026-02-01"
    sides = {"DR": "CR", "CR": "DR"}
    assert mirror["lines"] == [item | {"direction": sides[item["direction"]]} for item in original["lines"]]
    assert "reverses_entry_id" not in original


@pytest.mark.parametrize("kind", MAKE)
def test_a_reversal_restores_every_balance(acme: Lender, kind: str) -> None:
    acme.api.pay(acme.loan, 4_000, "2026-01-02")
    before = acme.balances()
    made = MAKE[kind](acme.api, acme)
    acme.api.reverse(made["journal_entry_id"], effective_at="2026-02-01")
    assert acme.balances() == before


def test_the_original_counts_until_the_reversals_date(api: Api, loan: Loan) -> None:
    made = api.disburse(loan, 100_000, "2026-01-05")
    api.reverse(made["journal_entry_id"], effective_at="2026-02-01")
    assert api.owed(loan, "2026-01-31") == (100_000, 0, 0)
    assert api.owed(loan, "2026-02-01") == (0, 0, 0)


def test_a_reversal_is_dated_today_unless_told(acme: Lender) -> None:
    made = acme.api.disburse(acme.loan, 100_000, "2026-01-05")
    before = acme.today.isoformat()
    answer = acme.api.reverse(made["journal_entry_id"])
    assert acme.api.entry(answer["journal_entry_id"])["effective_at"] in (before, acme.today.isoformat())


def test_the_reason_is_told(api: Api, loan: Loan) -> None:
    made = api.pay(loan, 5, "2026-01-05")
    answer = api.reverse(made["journal_entry_id"], reason_description="Sent twice \U0001f926", reason_code="duplicate")
    assert api.entry(answer["journal_entry_id"])["description"] == "Sent twice \U0001f926"


@pytest.mark.parametrize(
    "reason", ["error_correction", "duplicate", "fraud", "customer_dispute", "bank_return", "other"]
)
def test_every_reason_of_the_list_is_taken(api: Api, loan: Loan, reason: str) -> None:
    api.reverse(api.pay(loan, 5, "2026-01-05")["journal_entry_id"], reason_code=reason)


def test_the_trace_becomes_the_correlation(api: Api, loan: Loan) -> None:
    made = api.pay(loan, 5, "2026-01-05")
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    answer = posted(api.post(PATH, reversal_of(made), headers=headers))
    assert answer["correlation_id"] == "0af76519-16cd-43dd-8448-eb211c80319c"


def test_a_reversed_payment_owes_again(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    made = api.pay(loan, 400, "2026-02-01")
    api.reverse(made["journal_entry_id"], effective_at="2026-02-01")
    assert api.owed(loan) == (1_000, 0, 0)
    assert api.pay(loan, 1_000, "2026-02-01")["allocation"]["principal_minor"] == "1000"


# --- Once ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKE)
def test_an_entry_is_reversed_once(acme: Lender, nothing_moves: Unmoved, kind: str) -> None:
    made = MAKE[kind](acme.api, acme)
    acme.api.reverse(made["journal_entry_id"])
    with nothing_moves():
        for changes in ({}, {"reason_code": "fraud"}, {"effective_at": "2026-02-01"}):
            refused(acme.api.post(PATH, reversal_of(made, **changes)), 409, "already_reversed")


# --- What is not reversible ------------------------------------------------------------------------------------------


def test_a_reversal_is_not_reversed(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    mirror = api.reverse(api.pay(loan, 5, "2026-01-05")["journal_entry_id"])
    with nothing_moves():
        refused(api.post(PATH, reversal_of(mirror)), 422, "not_reversible")


@pytest.mark.parametrize("layer", ["SETTLED", "PENDING"])
def test_neither_a_settlement_nor_what_it_settled_is_reversed(
    api: Api, loan: Loan, nothing_moves: Unmoved, layer: str
) -> None:
    made = api.disburse(loan, 100, "2026-01-05", layer=layer)
    settled = api.settle(made, "2026-01-07")
    with nothing_moves():
        for entry in (made, settled):
            refused(api.post(PATH, reversal_of(entry)), 422, "not_reversible")


def test_an_unknown_entry_is_refused(api: Api, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for name in (str(uuid.uuid4()), "00000000-0000-0000-0000-000000000000"):
            answer = api.post(PATH, {"reverses_entry_id": name, "reason_code": "other"})
            refused(answer, 422, "entry_not_found")


def test_a_reversal_is_not_dated_before_its_original_nor_in_the_future(
    api: Api, loan: Loan, nothing_moves: Unmoved, tomorrow: str
) -> None:
    made = api.pay(loan, 5, "2026-01-05")
    with nothing_moves():
        for on in ("2026-01-04", "2025-12-31", "0001-01-01", tomorrow, "9999-12-31"):
            refused(api.post(PATH, reversal_of(made, effective_at=on)), 422, "effective_date_refused")
    api.reverse(made["journal_entry_id"], effective_at="2026-01-05")


# --- What others have taken since ------------------------------------------------------------------------------------


def test_principal_that_was_repaid_is_not_taken_back(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    made = api.disburse(loan, 1_000, "2026-01-05")
    api.pay(loan, 1, "2026-02-01")
    with nothing_moves():
        for changes in ({}, {"effective_at": "2026-01-05"}, {"effective_at": "2026-03-01"}):
            refused(api.post(PATH, reversal_of(made, **changes)), 422, "amount_exceeds_balance")


def test_no_later_balance_falls_below_zero(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    """A second draw covers today, not the days before it."""
    made = api.disburse(loan, 1_000, "2026-01-05")
    api.pay(loan, 600, "2026-02-01")
    api.disburse(loan, 1_000, "2026-03-01")
    with nothing_moves():
        answer = api.post(PATH, reversal_of(made, effective_at="2026-02-10"))
        refused(answer, 422, "amount_exceeds_balance")
    api.reverse(made["journal_entry_id"], effective_at="2026-03-01")
    assert api.owed(loan) == (400, 0, 0)


def test_suspense_that_was_used_is_not_taken_back(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    made = api.pay(loan, 500, "2026-01-05")
    about = {"loan_id": loan.loan_id}
    api.adjust("2026-01-06", line("2000", "DR", 1, **about), line("1000", "CR", 1))
    with nothing_moves():
        refused(api.post(PATH, reversal_of(made)), 422, "amount_exceeds_balance")


def test_an_accrual_is_reversed_as_a_whole_or_not_at_all(acme: Lender, nothing_moves: Unmoved) -> None:
    """Two of three loans have paid their interest: both are named, the third is not, and nothing moves."""
    made = acme.api.accrue("2026-01-06", *((loan, 0, 10) for loan in acme.loans))
    for loan in acme.loans[:2]:
        acme.api.pay(loan, 4, "2026-01-07")
    with nothing_moves():
        answer = acme.api.post(PATH, reversal_of(made))
        problem = refused(answer, 422, "amount_exceeds_balance")
        named = json.dumps(problem["errors"])
        assert [loan.loan_id in named for loan in acme.loans] == [True, True, False]


def test_other_principal_does_not_stop_the_reversal_of_an_accrual(acme: Lender) -> None:
    made = acme.api.accrue("2026-01-06", *((loan, 0, 10) for loan in acme.loans))
    acme.api.accrue("2026-01-07", *((loan, 0, 10) for loan in acme.loans))
    acme.api.pay(acme.loan, 10, "2026-01-08")
    acme.api.reverse(made["journal_entry_id"], effective_at="2026-01-08")
    assert acme.api.owed(acme.loan) == (0, 0, 0)
    assert acme.api.owed(acme.loans[1]) == (0, 10, 0)


def test_a_closed_account_takes_no_mirror(acme: Lender, nothing_moves: Unmoved) -> None:
    made = acme.api.pay(acme.loan, 5, "2026-01-05")
    with in_books_of(acme.tenant_id) as connection:
        connection.execute("UPDATE gl_account SET closed_at = now(), closure_reason = 'test' WHERE code = '1000'")
    with nothing_moves():
        refused(acme.api.post(PATH, reversal_of(made)), 422, "account_closed")


def test_wrong_fields_are_named(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    made = api.pay(loan, 5, "2026-01-05")
    body = reversal_of(made, reason_code="whim", reason_description="", effective_at="today", metadata=[])
    with nothing_moves():
        wrong = ["reason_code", "reason_description", "effective_at", "metadata"]
        refused(api.post(PATH, body), 400, "validation_failed", wrong)
        refused(
            api.post(PATH, reversal_of(made, reason_description="x" * 501)),
            400,
            "validation_failed",
            ["reason_description"],
        )
    posted(api.post(PATH, reversal_of(made, reason_description="x" * 500)))


def test_a_reversed_payment_is_not_paid_again_by_its_key(api: Api, loan: Loan) -> None:
    body, key = payment_of(loan, 5), "payment-to-reverse"
    first = api.post("/v1/payments", body, key=key)
    api.reverse(posted(first)["journal_entry_id"])
    again = api.post("/v1/payments", body, key=key)
    assert (again.status_code, again.content) == (200, first.content)
    assert api.normal_balance("2000") == 0
