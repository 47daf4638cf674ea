"""POST /v1/disbursements and /v1/disbursements/{id}/settlement."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.conftest import Api, Json, Lender, Loan, disbursement_of, payment_of, posted, refused, shown

Unmoved = Callable[[], AbstractContextManager[None]]
PATH = "/v1/disbursements"
MAX_MINOR = 9_223_372_036_854_775_807


def settlement_of(made: Json) -> str:
    return f"{PATH}/{made['disbursement_event_id']}/settlement"


def lines_of(api: Api, made: Json) -> list[tuple[str, str, str, str]]:
    lines = api.entry(made["journal_entry_id"])["lines"]
    return [(item["account_code"], item["direction"], item["amount_minor"], item["layer"]) for item in lines]


# --- Disbursing ------------------------------------------------------------------------------------------------------


def test_a_disbursement_debits_principal_and_credits_clearing(api: Api, loan: Loan) -> None:
    made = api.disburse(loan, 100_000, "2026-01-05")
    assert made.keys() == {"disbursement_event_id", "journal_entry_id", "posted_at"}
    assert lines_of(api, made) == [("1100", "DR", "100000", "SETTLED"), ("1050", "CR", "100000", "SETTLED")]
    entry = api.entry(made["journal_entry_id"])
    assert (entry["event_type"], entry["effective_at"]) == ("disbursement", "2026-01-05")
    assert all((item["loan_id"], item["borrower_id"]) == (loan.loan_id, loan.borrower_id) for item in entry["lines"])
    assert api.owed(loan) == (100_000, 0, 0)


def test_a_pending_disbursement_owes_nothing_yet(api: Api, loan: Loan) -> None:
    made = api.disburse(loan, 100_000, "2026-01-05", layer="PENDING")
    assert lines_of(api, made) == [("1100", "DR", "100000", "PENDING"), ("1050", "CR", "100000", "PENDING")]
    assert api.owed(loan) == (0, 0, 0)
    assert shown(api.get(f"/v1/loans/{loan.loan_id}"))["state"] == "open"
    assert api.normal_balance("1100", layer="PENDING") == 100_000


def test_every_method_of_the_list_is_taken(api: Api, loan: Loan) -> None:
    for method in ("ach", "wire", "check", "card", "cash", "internal_transfer"):
        posted(api.post(PATH, disbursement_of(loan, method=method)))


def test_the_answer_has_the_loans_etag(api: Api, loan: Loan) -> None:
    answer = api.post(PATH, disbursement_of(loan))
    posted(answer)
    assert answer.headers["ETag"] == api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"]


def test_a_disbursement_needs_the_version_that_it_names(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    seen = {"If-Match": api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"]}
    posted(api.post(PATH, disbursement_of(loan), headers=seen))
    with nothing_moves():
        refused(api.post(PATH, disbursement_of(loan), headers=seen), 412, "loan_changed")


# --- The limit -------------------------------------------------------------------------------------------------------


def test_a_limit_counts_settled_and_pending_principal(acme: Lender, nothing_moves: Unmoved) -> None:
    loan = acme.open_loan(principal_limit_minor=1_000)
    acme.api.disburse(loan, 600, "2026-01-05")
    acme.api.disburse(loan, 300, "2026-01-05", layer="PENDING")
    with nothing_moves():
        for layer in ("SETTLED", "PENDING"):
            refused(acme.api.post(PATH, disbursement_of(loan, 101, layer=layer)), 422, "amount_exceeds_limit")
    acme.api.disburse(loan, 100, "2026-01-05")


def test_what_is_repaid_can_be_drawn_again(acme: Lender, nothing_moves: Unmoved) -> None:
    loan = acme.open_loan(principal_limit_minor=1_000)
    acme.api.disburse(loan, 1_000, "2026-01-05")
    with nothing_moves():
        refused(acme.api.post(PATH, disbursement_of(loan, 1, "2026-03-01")), 422, "amount_exceeds_limit")
    acme.api.pay(loan, 400, "2026-02-01")
    acme.api.disburse(loan, 400, "2026-03-01")


def test_settling_a_pending_disbursement_does_not_count_twice(acme: Lender) -> None:
    loan = acme.open_loan(principal_limit_minor=1_000)
    made = acme.api.disburse(loan, 1_000, "2026-01-05", layer="PENDING")
    acme.api.settle(made, "2026-01-07")
    assert acme.api.owed(loan) == (1_000, 0, 0)


def test_a_sum_above_the_range_is_refused(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.disburse(loan, MAX_MINOR, "2026-01-05")
    with nothing_moves():
        refused(api.post(PATH, disbursement_of(loan, 1)), 422, "amount_out_of_range")


def test_no_balance_of_any_date_leaves_the_range(api: Api, loan: Loan) -> None:
    """Lent and repaid in full; a second draw dated before the repayment would double the principal of those days."""
    api.disburse(loan, MAX_MINOR, "2026-01-05")
    api.pay(loan, MAX_MINOR, "2026-02-01")
    answer = api.post(PATH, disbursement_of(loan, MAX_MINOR, "2026-01-06"))
    refused(answer, 422, "amount_out_of_range")
    assert api.owed(loan, "2026-01-10") == (MAX_MINOR, 0, 0)


# --- Settling --------------------------------------------------------------------------------------------------------


def test_settling_moves_clearing_to_cash(api: Api, loan: Loan) -> None:
    made = api.disburse(loan, 100_000, "2026-01-05")
    settled = api.settle(made, "2026-01-07")
    assert settled.keys() == {"disbursement_event_id", "journal_entry_id", "posted_at"}
    assert settled["disbursement_event_id"] == made["disbursement_event_id"]
    assert settled["journal_entry_id"] != made["journal_entry_id"]
    assert lines_of(api, settled) == [("1050", "DR", "100000", "SETTLED"), ("1000", "CR", "100000", "SETTLED")]
    assert api.entry(settled["journal_entry_id"])["event_type"] == "disbursement_settled"
    assert api.owed(loan) == (100_000, 0, 0)
    assert api.normal_balance("1050") == 0
    assert api.normal_balance("1000") == -100_000


def test_settling_a_pending_one_leaves_the_pending_layer(api: Api, loan: Loan) -> None:
    made = api.disburse(loan, 100_000, "2026-01-05", layer="PENDING")
    settled = api.settle(made, "2026-01-07")
    assert sorted(lines_of(api, settled)) == sorted(
        [
            ("1100", "CR", "100000", "PENDING"),
            ("1050", "DR", "100000", "PENDING"),
            ("1100", "DR", "100000", "SETTLED"),
            ("1000", "CR", "100000", "SETTLED"),
        ]
    )
    assert api.owed(loan, "2026-01-06") == (0, 0, 0)
    assert api.owed(loan, "2026-01-07") == (100_000, 0, 0)
    for code in ("1100", "1050"):
        assert api.normal_balance(code, layer="PENDING") == 0


def test_a_disbursement_is_settled_once(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    for layer in ("SETTLED", "PENDING"):
        made = api.disburse(loan, 100, "2026-01-05", layer=layer)
        api.settle(made, "2026-01-07")
        with nothing_moves():
            refused(api.post(settlement_of(made), {"effective_at": "2026-01-08"}), 409, "already_settled")


def test_a_reversed_disbursement_is_not_settled(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    made = api.disburse(loan, 100, "2026-01-05")
    api.reverse(made["journal_entry_id"])
    with nothing_moves():
        refused(api.post(settlement_of(made), {"effective_at": "2026-01-08"}), 409, "already_reversed")


def test_a_settlement_is_not_dated_before_its_disbursement(
    api: Api, loan: Loan, nothing_moves: Unmoved, tomorrow: str
) -> None:
    made = api.disburse(loan, 100, "2026-01-05")
    with nothing_moves():
        for on in ("2026-01-04", "2025-12-31", tomorrow):
            refused(api.post(settlement_of(made), {"effective_at": on}), 422, "effective_date_refused")
    api.settle(made, "2026-01-05")


def test_only_disbursements_are_settled(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    made = api.disburse(loan, 100, "2026-01-05")
    settled = api.settle(made, "2026-01-07")
    paid = api.pay(loan, 10, "2026-02-01")
    names = [settled["journal_entry_id"], paid["journal_entry_id"], str(uuid.uuid4())]
    with nothing_moves():
        for name in names:
            refused(api.post(f"{PATH}/{name}/settlement", {"effective_at": "2026-02-01"}), 404, "not_found")


@pytest.mark.parametrize(
    "name",
    ["x", "00000000000000000000000000000000", "{00000000-0000-0000-0000-000000000000}", "0000", "..", "\u0661", "%0A"],
)
def test_a_malformed_id_in_the_path_is_an_unknown_path(api: Api, name: str) -> None:
    refused(api.post(f"{PATH}/{name}/settlement", {"effective_at": "2026-02-01"}), 404, "not_found")


# --- Refusals of the ledger ------------------------------------------------------------------------------------------


def test_what_the_ledger_refuses(acme: Lender, nothing_moves: Unmoved, tomorrow: str) -> None:
    refusals: list[tuple[Json, str]] = [
        ({"loan_id": str(uuid.uuid4())}, "loan_not_found"),
        ({"borrower_id": acme.loans[1].borrower_id}, "borrower_mismatch"),
        ({"currency": "EUR"}, "currency_mismatch"),
        ({"effective_at": tomorrow}, "effective_date_refused"),
        ({"effective_at": "2025-12-31"}, "effective_date_refused"),
    ]
    with nothing_moves():
        for changes, code in refusals:
            refused(acme.api.post(PATH, disbursement_of(acme.loan, **changes)), 422, code)


def test_what_was_drawn_can_be_repaid_the_same_day(api: Api, loan: Loan) -> None:
    api.disburse(loan, 100, "2026-01-05")
    answer = posted(api.post("/v1/payments", payment_of(loan, 100, "2026-01-05")))
    assert answer["allocation"]["principal_minor"] == "100"
    assert shown(api.get(f"/v1/loans/{loan.loan_id}"))["state"] == "paid_off"
