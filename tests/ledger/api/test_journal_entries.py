"""POST /v1/journal-entries (an accountant's own lines) and GET /v1/journal-entries/{id}."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.conftest import Api, Json, Lender, Loan, in_books_of, line, posted, refused, shown
from tests.ledger.api.conftest import with_value

Unmoved = Callable[[], AbstractContextManager[None]]
PATH = "/v1/journal-entries"
MAX_MINOR = 9_223_372_036_854_775_807


def entry_of(*lines: Json, **changes: Any) -> Json:
    return {"effective_at": "2026-01-05", "description": "Adjustment", "lines": list(lines)} | changes


def cash_to_equity(amount: int = 100, currency: str = "USD", **more: Any) -> list[Json]:
    return [line("1000", "DR", amount, currency, **more), line("3000", "CR", amount, currency, **more)]


# --- The answer ------------------------------------------------------------------------------------------------------


def test_the_lines_are_posted_as_given(api: Api, loan: Loan) -> None:
    about = {"loan_id": loan.loan_id}
    lines = [
        line("1100", "DR", 60, **about, borrower_id=loan.borrower_id, external_ref="legacy 1"),
        line("1200", "DR", 40, **about),
        line("3000", "CR", 100),
    ]
    made = posted(api.post(PATH, entry_of(*lines, description="Opening balances \U0001f4da")))
    assert made.keys() == {"journal_entry_id", "posted_at", "correlation_id"}
    entry = api.entry(made["journal_entry_id"])
    assert entry == {
        "journal_entry_id": made["journal_entry_id"],
        "posted_at": made["posted_at"],
        "correlation_id": made["correlation_id"],
        "event_type": "manual_adjustment",
        "effective_at": "2026-01-05",
        "description": "Opening balances \U0001f4da",
        "actor": f"client:{api.client.client_id}",
        "lines": [
            lines[0] | {"sequence": 1, "layer": "SETTLED"},
            lines[1] | {"sequence": 2, "layer": "SETTLED", "borrower_id": loan.borrower_id},
            lines[2] | {"sequence": 3, "layer": "SETTLED"},
        ],
    }
    assert api.owed(loan) == (60, 40, 0)


@pytest.mark.parametrize("layer", ["SETTLED", "PENDING", "ENCUMBRANCE"])
def test_every_layer_takes_lines(api: Api, loan: Loan, layer: str) -> None:
    about = {"layer": layer, "loan_id": loan.loan_id}
    api.adjust("2026-01-05", line("9000", "DR", 100, **about), line("9100", "CR", 100, layer=layer))
    assert api.normal_balance("9000", layer=layer) == 100
    assert sum(api.normal_balance("9000", layer=other) for other in ("SETTLED", "PENDING", "ENCUMBRANCE")) == 100


def test_an_entry_may_balance_in_several_currencies_and_layers(acme: Lender) -> None:
    lines = [*cash_to_equity(1), *cash_to_equity(2, "EUR"), *cash_to_equity(3, "JPY", layer="PENDING")]
    acme.api.adjust("2026-01-05", *lines)
    assert acme.api.normal_balance("1000", currency="JPY", layer="PENDING") == 3


def test_an_entry_without_a_loan_may_be_of_any_day_in_the_past(api: Api) -> None:
    for on in ("0001-01-01", "1999-12-31"):
        made = api.adjust(on, *cash_to_equity())
        assert api.entry(made["journal_entry_id"])["effective_at"] == on
    assert api.normal_balance("1000", as_of_date="0001-01-01") == 100


# --- Unbalanced and the like -----------------------------------------------------------------------------------------

USD, EUR = "USD", "EUR"
UNBALANCED = {
    "one minor unit": [line("1000", "DR", 100), line("3000", "CR", 99)],
    "two debits": [line("1000", "DR", 100), line("3000", "DR", 100)],
    "across currencies": [line("1000", "DR", 100, USD), line("3000", "CR", 100, EUR)],
    "across currencies, in sum": [*cash_to_equity(), line("1000", "DR", 1, USD), line("3000", "CR", 1, EUR)],
    "across layers": [line("1000", "DR", 100, layer="PENDING"), line("3000", "CR", 100)],
    "two wrongs": [
        line("1000", "DR", 100),
        line("3000", "CR", 99),
        line("1000", "DR", 99, layer="PENDING"),
        line("3000", "CR", 100, layer="PENDING"),
    ],
}


@pytest.mark.parametrize("lines", UNBALANCED.values(), ids=UNBALANCED.keys())
def test_an_unbalanced_entry_is_refused(api: Api, nothing_moves: Unmoved, lines: list[Json]) -> None:
    with nothing_moves():
        refused(api.post(PATH, entry_of(*lines)), 422, "unbalanced_entry")


def test_an_entry_has_2_to_500_lines(api: Api, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for lines in ([], [line("1000", "DR", 1)], cash_to_equity() * 251):
            refused(api.post(PATH, entry_of(*lines)), 400, "validation_failed", ["lines"])
    made = posted(api.post(PATH, entry_of(*cash_to_equity() * 250)))
    assert len(api.entry(made["journal_entry_id"])["lines"]) == 500


def test_wrong_members_of_lines_are_named_by_position(api: Api, nothing_moves: Unmoved) -> None:
    good = cash_to_equity()
    body = entry_of(good[0] | {"amount_minor": 5}, good[1], good[1] | {"direction": "dr", "surplus": 1}, {})
    missing = [f"lines.3.{name}" for name in ("account_code", "direction", "amount_minor", "currency")]
    with nothing_moves():
        wrong = ["lines.0.amount_minor", "lines.2.direction", "lines.2.surplus", *missing]
        refused(api.post(PATH, body), 400, "validation_failed", wrong)


@pytest.mark.parametrize("code", ["1100", "1200", "1300", "2000", "9000"])
def test_a_line_on_an_account_kept_per_loan_names_its_loan(api: Api, nothing_moves: Unmoved, code: str) -> None:
    lines = [line("1000", "DR", 5), line(code, "DR", 5), line("3000", "CR", 10)]
    with nothing_moves():
        refused(api.post(PATH, entry_of(*lines)), 400, "validation_failed", ["lines.1.loan_id"])


def test_all_nameless_lines_are_told(api: Api, nothing_moves: Unmoved) -> None:
    lines = [line("1100", "DR", 5), line("3000", "CR", 10), line("1200", "DR", 5)]
    with nothing_moves():
        refused(api.post(PATH, entry_of(*lines)), 400, "validation_failed", ["lines.0.loan_id", "lines.2.loan_id"])


# --- Refusals of the ledger ------------------------------------------------------------------------------------------


def test_unknown_accounts_loans_borrowers_and_currencies_are_refused(acme: Lender, nothing_moves: Unmoved) -> None:
    about = {"loan_id": acme.loan.loan_id}
    body = entry_of(line("1100", "DR", 5, **about), line("3000", "CR", 5))
    euros = entry_of(line("1100", "DR", 5, "EUR", **about), line("3000", "CR", 5, "EUR"))
    refusals = [
        (with_value(body, "lines.1.account_code", "0000"), "account_not_found"),
        (with_value(body, "lines.1.account_code", "9999"), "account_not_found"),
        (with_value(body, "lines.0.loan_id", str(uuid.uuid4())), "loan_not_found"),
        (with_value(body, "lines.0.borrower_id", acme.loans[1].borrower_id), "borrower_mismatch"),
        (euros, "currency_mismatch"),
    ]
    with nothing_moves():
        for changed, code in refusals:
            refused(acme.api.post(PATH, changed), 422, code)


def test_an_account_of_another_tenant_is_unknown(acme: Lender, zenith: Lender, nothing_moves: Unmoved) -> None:
    with in_books_of(zenith.tenant_id) as connection:
        connection.execute(
            """INSERT INTO gl_account (tenant_id, code, name, account_type, normal_side, per_loan)
               VALUES (%s, '7777', 'Own', 'asset', 'DR', false)""",
            (zenith.tenant_id,),
        )
    body = entry_of(line("7777", "DR", 5), line("3000", "CR", 5))
    posted(zenith.api.post(PATH, body))
    with nothing_moves():
        refused(acme.api.post(PATH, body), 422, "account_not_found")


def test_a_closed_account_takes_no_lines_and_keeps_its_balance(acme: Lender, nothing_moves: Unmoved) -> None:
    acme.api.adjust("2026-01-05", *cash_to_equity())
    with in_books_of(acme.tenant_id) as connection:
        connection.execute("UPDATE gl_account SET closed_at = now(), closure_reason = 'test' WHERE code = '3000'")
    with nothing_moves():
        refused(acme.api.post(PATH, entry_of(*cash_to_equity())), 422, "account_closed")
    assert acme.api.normal_balance("3000") == 100


def test_dates_out_of_bounds_are_refused(acme: Lender, nothing_moves: Unmoved, tomorrow: str) -> None:
    about = {"loan_id": acme.loan.loan_id}
    lines = [line("1100", "DR", 5, **about), line("3000", "CR", 5)]
    with nothing_moves():
        for on in (tomorrow, "9999-12-31"):
            answer = acme.api.post(PATH, entry_of(*cash_to_equity(), effective_at=on))
            refused(answer, 422, "effective_date_refused")
        answer = acme.api.post(PATH, entry_of(*lines, effective_at="2025-12-31"))
        refused(answer, 422, "effective_date_refused")


def test_no_balance_of_a_loan_falls_below_zero(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    about = {"loan_id": loan.loan_id}
    with nothing_moves():
        for code, direction, other in (
            ("1100", "CR", "DR"),
            ("1200", "CR", "DR"),
            ("1300", "CR", "DR"),
            ("2000", "DR", "CR"),
        ):
            body = entry_of(line(code, direction, 1, **about), line("3000", other, 1))
            refused(api.post(PATH, body), 422, "amount_exceeds_balance")


def test_no_balance_of_a_later_date_falls_below_zero(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.disburse(loan, 100, "2026-01-05")
    api.pay(loan, 90, "2026-02-01")
    about = {"loan_id": loan.loan_id}
    lines = [line("1100", "CR", 11, **about), line("3000", "DR", 11)]
    with nothing_moves():
        for on in ("2026-01-04", "2026-01-05", "2026-01-31", "2026-02-01", "2026-03-01"):
            refused(api.post(PATH, entry_of(*lines, effective_at=on)), 422, "amount_exceeds_balance")


def test_sums_above_the_range_are_refused(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        refused(api.post(PATH, entry_of(*cash_to_equity(MAX_MINOR) * 2)), 422, "amount_out_of_range")
        half = MAX_MINOR // 2 + 1
        refused(api.post(PATH, entry_of(*cash_to_equity(half) * 2)), 422, "amount_out_of_range")
    posted(api.post(PATH, entry_of(*cash_to_equity(MAX_MINOR))))


def test_accounts_may_hold_more_than_one_entry_can(api: Api) -> None:
    """A general ledger account has no bound: its sums are of any length."""
    for _ in range(3):
        api.adjust("2026-01-05", *cash_to_equity(MAX_MINOR))
    assert api.normal_balance("1000") == 3 * MAX_MINOR
    totals = shown(api.get("/v1/trial-balance", {"currency": "USD"}))
    assert totals["total_dr_minor"] == totals["total_cr_minor"] == str(3 * MAX_MINOR)


def test_text_is_kept_as_it_came(api: Api) -> None:
    """Not trimmed, not normalised; quotes and markup are text."""
    text = """ <b>"It's"</b> \\ / é e\u0301 \u202eRTL\u202c \u2028 =1+1 """
    made = posted(api.post(PATH, entry_of(*cash_to_equity(), description=text)))
    assert api.entry(made["journal_entry_id"])["description"] == text


# --- Reading one entry -----------------------------------------------------------------------------------------------


def test_an_entry_is_read_in_any_case_of_its_id(api: Api) -> None:
    made = api.adjust("2026-01-05", *cash_to_equity())
    lower = api.get(f"{PATH}/{made['journal_entry_id']}")
    upper = api.get(f"{PATH}/{made['journal_entry_id'].upper()}")
    assert shown(lower) == shown(upper)


def test_an_entry_of_another_tenant_is_unknown(acme: Lender, zenith: Lender) -> None:
    theirs = zenith.api.adjust("2026-01-05", *cash_to_equity())["journal_entry_id"]
    shown(zenith.api.get(f"{PATH}/{theirs}"))
    for name in (theirs, str(uuid.uuid4())):
        problem = refused(acme.api.get(f"{PATH}/{name}"), 404, "not_found")
        assert problem["detail"].replace(name, "x") == "There is no journal entry x."


def test_reading_an_entry_needs_its_own_scope(api: Api) -> None:
    made = api.adjust("2026-01-05", *cash_to_equity())["journal_entry_id"]
    shown(api.get(f"{PATH}/{made}", scopes=["hpts:ledger:read"]))
    refused(
        api.get(f"{PATH}/{made}", scopes=["hpts:admin:adjustments", "hpts:balances:read"]), 403, "insufficient_scope"
    )
    refused(api.get(f"{PATH}/{made}", scopes=None), 401, "invalid_token")


def test_an_entry_shows_the_same_bytes_in_its_loans_history(api: Api, loan: Loan) -> None:
    made = api.disburse(loan, 100, "2026-01-05")
    entry = api.get(f"{PATH}/{made['journal_entry_id']}").content
    history = api.get(f"/v1/loans/{loan.loan_id}/journal-entries").content
    assert history == b'{"items":[' + entry + b"]}"
