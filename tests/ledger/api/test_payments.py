"""POST /v1/payments: the answer, the waterfall, announced payments, references, dates, availability, and its refusals."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.conftest import (
    Api,
    Json,
    Lender,
    Loan,
    disbursement_of,
    in_books_of,
    payment_of,
    posted,
    refused,
    shown,
)

Unmoved = Callable[[], AbstractContextManager[None]]
PATH = "/v1/payments"
MAX_MINOR = 9_223_372_036_854_775_807


def allocated(answer: Json) -> tuple[int, int, int, int]:
    """Fees, interest, principal, suspense."""
    names = ("fees_minor", "interest_minor", "principal_minor", "suspense_minor")
    assert answer["allocation"].keys() == set(names)
    fees, interest, principal, suspense = (int(answer["allocation"][name]) for name in names)
    return fees, interest, principal, suspense


def owing(api: Api, loan: Loan, principal: int = 100_000, interest: int = 2_700, fees: int = 500) -> Loan:
    """The loan, lent on 5 January, with a day of interest and a fee on the sixth."""
    api.disburse(loan, principal, "2026-01-05")
    api.accrue("2026-01-06", (loan, principal, interest))
    api.charge_fee(loan, fees, "2026-01-06")
    return loan


# --- The answer ------------------------------------------------------------------------------------------------------


def test_a_payment_is_allocated_to_fees_interest_and_principal(api: Api, loan: Loan) -> None:
    owing(api, loan)
    made = api.pay(loan, 5_000, "2026-02-01")
    assert made.keys() == {"payment_event_id", "journal_entry_id", "allocation", "posted_at"}
    assert allocated(made) == (500, 2_700, 1_800, 0)
    assert api.owed(loan) == (98_200, 0, 0)


def test_the_entry_says_what_was_posted(api: Api, acme: Lender, loan: Loan) -> None:
    owing(api, loan)
    made = api.pay(loan, 5_000, "2026-02-01", external_ref="ACH 7")
    about = {"currency": "USD", "layer": "SETTLED", "loan_id": loan.loan_id, "borrower_id": loan.borrower_id}
    entry = api.entry(made["journal_entry_id"])
    uuid.UUID(entry.pop("correlation_id"))
    assert entry == {
        "journal_entry_id": made["journal_entry_id"],
        "event_type": "payment_received",
        "effective_at": "2026-02-01",
        "posted_at": made["posted_at"],
        "actor": f"client:{api.client.client_id}",
        "lines": [
            {"sequence": 1, "account_code": "1000", "direction": "DR", "amount_minor": "5000", "external_ref": "ACH 7"}
            | about,
            {"sequence": 2, "account_code": "1300", "direction": "CR", "amount_minor": "500"} | about,
            {"sequence": 3, "account_code": "1200", "direction": "CR", "amount_minor": "2700"} | about,
            {"sequence": 4, "account_code": "1100", "direction": "CR", "amount_minor": "1800"} | about,
        ],
    }


def test_the_trace_becomes_the_entrys_correlation(api: Api, loan: Loan) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Trace-Id": "ignored"}
    made = posted(api.post(PATH, payment_of(loan), headers=headers))
    assert api.entry(made["journal_entry_id"])["correlation_id"] == str(uuid.UUID(trace))


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "x",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"ff-{'a' * 32}-b7ad6b7169203331-01",
        f"00-{'A' * 32}-{'b' * 16}-01",
    ],
)
def test_a_bad_trace_is_never_an_error(api: Api, loan: Loan, traceparent: str) -> None:
    made = posted(api.post(PATH, payment_of(loan), headers={"traceparent": traceparent}))
    assert uuid.UUID(api.entry(made["journal_entry_id"])["correlation_id"]) not in (
        uuid.UUID(int=0),
        uuid.UUID("a" * 32),
    )


def test_posted_at_is_now_in_utc(api: Api, loan: Loan) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    made = api.pay(loan, 1, "2026-02-01")
    assert made["posted_at"].endswith("Z")
    assert before < datetime.fromisoformat(made["posted_at"]) < datetime.now(UTC) + timedelta(seconds=1)


def test_the_answer_has_the_loans_etag(api: Api, loan: Loan) -> None:
    answer = api.post(PATH, payment_of(loan))
    posted(answer)
    assert answer.headers["ETag"] == api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"]


def test_every_method_of_the_list_is_taken(api: Api, loan: Loan) -> None:
    for method in ("ach", "wire", "card", "check", "cash", "internal_transfer"):
        posted(api.post(PATH, payment_of(loan, source_method=method)))


def test_text_may_be_in_any_script(api: Api, loan: Loan) -> None:
    reference = "Zahlung Nr. 7 \U0001f4b8 مدفوعات =cmd|' /C calc'!A0"
    made = api.pay(loan, 1, "2026-02-01", external_ref=reference, metadata={"ключ": "значение \U0001f600", "": " "})
    assert api.entry(made["journal_entry_id"])["lines"][0]["external_ref"] == reference


# --- The waterfall ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "shares"),
    [
        (1, (1, 0, 0, 0)),
        (500, (500, 0, 0, 0)),
        (501, (500, 1, 0, 0)),
        (3_200, (500, 2_700, 0, 0)),
        (3_201, (500, 2_700, 1, 0)),
        (103_200, (500, 2_700, 100_000, 0)),
        (103_201, (500, 2_700, 100_000, 1)),
        (MAX_MINOR, (500, 2_700, 100_000, MAX_MINOR - 103_200)),
    ],
)
def test_the_waterfall_at_its_edges(api: Api, loan: Loan, amount: int, shares: tuple[int, int, int, int]) -> None:
    owing(api, loan)
    made = api.pay(loan, amount, "2026-02-01")
    assert allocated(made) == shares
    assert sum(allocated(made)) == amount
    assert api.owed(loan) == (100_000 - shares[2], 2_700 - shares[1], 500 - shares[0])


@pytest.mark.parametrize("order", list(itertools.permutations(("fees", "interest", "principal"))), ids="-".join)
def test_a_program_chooses_the_order(acme: Lender, order: tuple[str, ...]) -> None:
    loan = acme.open_loan(acme.open_program(waterfall=order))
    owing(acme.api, loan, principal=30, interest=20, fees=10)
    owed = {"fees": 10, "interest": 20, "principal": 30}
    first, second, _ = order
    amount = owed[first] + owed[second] // 2
    shares = allocated(acme.api.pay(loan, amount, "2026-02-01"))
    expected = {first: owed[first], second: owed[second] // 2}
    assert shares == (expected.get("fees", 0), expected.get("interest", 0), expected.get("principal", 0), 0)


def test_what_nobody_owes_waits_in_suspense(api: Api, loan: Loan) -> None:
    assert allocated(api.pay(loan, 700, "2026-02-01")) == (0, 0, 0, 700)
    assert api.normal_balance("2000") == 700
    assert api.owed(loan) == (0, 0, 0)


def test_suspense_is_not_netted_against_what_is_owed(api: Api, loan: Loan) -> None:
    api.pay(loan, 700, "2026-01-10")
    api.disburse(loan, 1_000, "2026-01-11")
    assert api.owed(loan) == (1_000, 0, 0)


def test_a_payment_on_a_paid_off_loan_goes_to_suspense(api: Api, loan: Loan) -> None:
    owing(api, loan)
    api.pay(loan, 103_200, "2026-02-01")
    assert shown(api.get(f"/v1/loans/{loan.loan_id}"))["state"] == "paid_off"
    assert allocated(api.pay(loan, 50, "2026-02-02")) == (0, 0, 0, 50)


def test_payments_one_after_the_other_share_what_is_owed(api: Api, loan: Loan) -> None:
    owing(api, loan, principal=1_000, interest=100, fees=10)
    shares = [allocated(api.pay(loan, 400, "2026-02-01")) for _ in range(4)]
    assert shares == [(10, 100, 290, 0), (0, 0, 400, 0), (0, 0, 310, 90), (0, 0, 0, 400)]


def test_a_loan_pays_for_itself_alone(acme: Lender) -> None:
    owing(acme.api, acme.loans[0])
    owing(acme.api, acme.loans[1])
    acme.api.pay(acme.loans[0], 103_200, "2026-02-01")
    assert acme.api.owed(acme.loans[1]) == (100_000, 2_700, 500)


# --- Announced payments ----------------------------------------------------------------------------------------------


def test_an_announced_payment_is_all_suspense_and_moves_nothing_that_is_settled(api: Api, loan: Loan) -> None:
    owing(api, loan)
    made = api.pay(loan, 5_000, "2026-02-01", layer="PENDING", external_ref="ACH 8")
    assert allocated(made) == (0, 0, 0, 5_000)
    assert api.owed(loan) == (100_000, 2_700, 500)
    assert api.normal_balance("2000") == 0
    assert api.normal_balance("1000") == 0
    assert api.normal_balance("2000", layer="PENDING") == 5_000
    assert api.normal_balance("1010", layer="PENDING") == 5_000
    lines = api.entry(made["journal_entry_id"])["lines"]
    assert [(item["account_code"], item["direction"], item["layer"]) for item in lines] == [
        ("1010", "DR", "PENDING"),
        ("2000", "CR", "PENDING"),
    ]
    assert lines[0]["external_ref"] == "ACH 8"


def test_an_announced_payment_gives_nothing_to_settled_ones(api: Api, loan: Loan) -> None:
    api.pay(loan, 5_000, "2026-02-01", layer="PENDING")
    api.disburse(loan, 1_000, "2026-02-02")
    assert allocated(api.pay(loan, 400, "2026-02-03")) == (0, 0, 400, 0)


@pytest.mark.parametrize("layer", ["ENCUMBRANCE", "pending", ""])
def test_a_payment_has_no_other_layer(api: Api, loan: Loan, nothing_moves: Unmoved, layer: str) -> None:
    with nothing_moves():
        refused(api.post(PATH, payment_of(loan, layer=layer)), 400, "validation_failed", ["layer"])


# --- References ------------------------------------------------------------------------------------------------------


def test_a_reference_is_used_once_per_method(acme: Lender, nothing_moves: Unmoved) -> None:
    acme.api.pay(acme.loans[0], 1, "2026-02-01", external_ref="R1")
    with nothing_moves():
        for loan, changes in ((acme.loans[0], {}), (acme.loans[1], {}), (acme.loans[0], {"layer": "PENDING"})):
            answer = acme.api.post(PATH, payment_of(loan, 2, external_ref="R1", **changes))
            refused(answer, 409, "duplicate_external_ref")
    acme.api.pay(acme.loans[0], 1, "2026-02-01", external_ref="R1", source_method="wire")
    acme.api.pay(acme.loans[0], 1, "2026-02-01", external_ref="r1")


def test_a_reference_stays_used_after_a_reversal(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    made = api.pay(loan, 1, "2026-02-01", external_ref="R1")
    api.reverse(made["journal_entry_id"])
    with nothing_moves():
        refused(api.post(PATH, payment_of(loan, 1, external_ref="R1")), 409, "duplicate_external_ref")


def test_a_reference_belongs_to_a_tenant(acme: Lender, zenith: Lender) -> None:
    for lender in (acme, zenith):
        lender.api.pay(lender.loan, 1, "2026-02-01", external_ref="R1")


def test_payments_without_a_reference_are_never_duplicates(api: Api, loan: Loan) -> None:
    api.pay(loan, 1, "2026-02-01")
    api.pay(loan, 1, "2026-02-01")


# --- Dates -----------------------------------------------------------------------------------------------------------


def test_a_payment_is_not_dated_in_the_future(api: Api, loan: Loan, nothing_moves: Unmoved, tomorrow: str) -> None:
    with nothing_moves():
        for on in (tomorrow, "2036-01-01", "9999-12-31"):
            refused(api.post(PATH, payment_of(loan, 1, on)), 422, "effective_date_refused")


def test_a_payment_is_not_dated_before_its_loan(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for on in ("2025-12-31", "0001-01-01"):
            refused(api.post(PATH, payment_of(loan, 1, on)), 422, "effective_date_refused")
    api.pay(loan, 1, "2026-01-01")


def test_today_is_the_tenants_own(make_lender: Any) -> None:
    """Kiritimati and Niue are never on the same date."""
    east, west = make_lender(timezone="Pacific/Kiritimati"), make_lender(timezone="Pacific/Niue")
    today = datetime.now(ZoneInfo("Pacific/Kiritimati")).date().isoformat()
    east.api.pay(east.loan, 1, today)
    refused(west.api.post(PATH, payment_of(west.loan, 1, today)), 422, "effective_date_refused")


# --- What later postings leave for an earlier date -------------------------------------------------------------------


def test_a_back_dated_payment_takes_only_what_no_later_payment_took(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    api.pay(loan, 900, "2026-03-01")
    assert allocated(api.pay(loan, 400, "2026-02-01")) == (0, 0, 100, 300)
    assert api.owed(loan, "2026-02-01") == (900, 0, 0)
    assert api.owed(loan, "2026-03-01") == (0, 0, 0)


def test_a_back_dated_payment_does_not_meet_later_debts(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-03-01")
    assert allocated(api.pay(loan, 400, "2026-02-01")) == (0, 0, 0, 400)
    assert api.owed(loan, "2026-02-01") == (0, 0, 0)
    assert api.owed(loan) == (1_000, 0, 0)


def test_a_back_dated_payment_meets_the_smallest_balance_from_its_date_on(api: Api, loan: Loan) -> None:
    """1,000 lent, 900 repaid, 500 lent again: between the two dates only 100 are owed."""
    api.disburse(loan, 1_000, "2026-01-05")
    api.pay(loan, 900, "2026-02-10")
    api.disburse(loan, 500, "2026-02-20")
    assert allocated(api.pay(loan, 400, "2026-02-01")) == (0, 0, 100, 300)
    for day in range(1, 29):
        principal, _, _ = api.owed(loan, f"2026-02-{day:02}")
        assert principal >= 0


def test_postings_of_one_day_count_together(api: Api, loan: Loan) -> None:
    """On the day itself only the balance at its end must hold."""
    api.pay(loan, 900, "2026-02-01")
    api.disburse(loan, 1_000, "2026-02-01")
    assert allocated(api.pay(loan, 400, "2026-02-01")) == (0, 0, 400, 0)


# --- Refusals of the ledger ------------------------------------------------------------------------------------------


def test_an_unknown_loan_is_refused(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for loan_id in (str(uuid.uuid4()), "00000000-0000-0000-0000-000000000000"):
            refused(api.post(PATH, payment_of(loan, loan_id=loan_id)), 422, "loan_not_found")


def test_another_borrower_is_refused(acme: Lender, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for borrower_id in (acme.loans[1].borrower_id, str(uuid.uuid4())):
            answer = acme.api.post(PATH, payment_of(acme.loan, borrower_id=borrower_id))
            refused(answer, 422, "borrower_mismatch")


def test_another_currency_is_refused(acme: Lender, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        refused(acme.api.post(PATH, payment_of(acme.loan, currency="EUR")), 422, "currency_mismatch")
    euros = acme.open_loan(acme.open_program(currency="EUR"))
    with nothing_moves():
        refused(acme.api.post(PATH, payment_of(euros, currency="USD")), 422, "currency_mismatch")
    acme.api.pay(euros, 1, "2026-02-01")


def test_a_sum_above_the_range_is_refused(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.pay(loan, MAX_MINOR, "2026-02-01")
    with nothing_moves():
        refused(api.post(PATH, payment_of(loan, 1)), 422, "amount_out_of_range")


def test_a_closed_account_takes_no_payment(acme: Lender, nothing_moves: Unmoved) -> None:
    with in_books_of(acme.tenant_id) as connection:
        connection.execute("UPDATE gl_account SET closed_at = now(), closure_reason = 'test' WHERE code = '1000'")
    with nothing_moves():
        refused(acme.api.post(PATH, payment_of(acme.loan)), 422, "account_closed")


def test_a_payment_needs_the_version_that_it_names(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    """If-Match: what the client has seen of the loan must still be true."""
    seen = api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"]
    first = api.post(PATH, payment_of(loan), headers={"If-Match": seen})
    posted(first)
    with nothing_moves():
        for stale in (seen, '"none"'):
            refused(api.post(PATH, payment_of(loan), headers={"If-Match": stale}), 412, "loan_changed")
    posted(api.post(PATH, payment_of(loan), headers={"If-Match": first.headers["ETag"]}))
    posted(api.post(PATH, payment_of(loan), headers={"If-Match": "*"}))


def test_a_replay_does_not_ask_for_the_version_again(api: Api, loan: Loan) -> None:
    seen = {"If-Match": api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"]}
    body, key = payment_of(loan), "replay-with-if-match"
    first = api.post(PATH, body, key=key, headers=seen)
    posted(first)
    again = api.post(PATH, body, key=key, headers=seen)
    assert (again.status_code, again.content) == (200, first.content)


def test_all_wrong_fields_are_named_at_once(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    body = {
        "loan_id": "x",
        "borrower_id": 5,
        "amount_minor": 5,
        "currency": "usd",
        "effective_at": "2026-02-30",
        "source_method": "barter",
        "external_ref": "",
        "layer": None,
        "metadata": {"a": 1},
        "surplus": True,
    }
    with nothing_moves():
        refused(api.post(PATH, body), 400, "validation_failed", list(body))


def test_the_body_is_checked_before_the_ledger(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    body = payment_of(loan, 0, "2036-01-01", loan_id=str(uuid.uuid4()))
    with nothing_moves():
        refused(api.post(PATH, body), 400, "validation_failed", ["amount_minor"])


def test_cash_equals_what_was_received_less_what_was_reversed(api: Api, loan: Loan) -> None:
    owing(api, loan)
    amounts = [1, 22, 333, 4_444, 55_555, 666_666]
    made = [api.pay(loan, amount, "2026-02-01") for amount in amounts]
    api.reverse(made[2]["journal_entry_id"])
    assert api.normal_balance("1000") == sum(amounts) - 333
    totals = shown(api.get("/v1/trial-balance", {"currency": "USD"}))
    assert totals["total_dr_minor"] == totals["total_cr_minor"]


def test_a_loan_of_the_future_takes_no_payment_yet(acme: Lender, nothing_moves: Unmoved) -> None:
    loan = acme.open_loan(opened_on=date(2036, 1, 1))
    with nothing_moves():
        refused(acme.api.post(PATH, payment_of(loan, 1, "2026-02-01")), 422, "effective_date_refused")
        answer = acme.api.post("/v1/disbursements", disbursement_of(loan, 1, "2026-02-01"))
        refused(answer, 422, "effective_date_refused")
