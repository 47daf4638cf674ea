"""POST /v1/loans/{id}/replans: what late payments change, planned to the line, and committed as planned or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date, timedelta
from typing import Any

import pytest

from tests.conftest import Api, Json, Lender, Loan, posted, refused

Unmoved = Callable[[], AbstractContextManager[None]]


def replan(api: Api, loan: Loan, from_date: str, **more: Any) -> Any:
    return api.post(f"/v1/loans/{loan.loan_id}/replans", {"from_date": from_date} | more)


def commit(api: Api, loan: Loan, from_date: str) -> Json:
    plan = posted(replan(api, loan, from_date))
    return posted(replan(api, loan, from_date, plan_hash=plan["plan_hash"]))


def said(entry: Json) -> list[str]:
    return [f"{line['direction']} {line['account_code']} {line['amount_minor']}" for line in entry["lines"]]


def late(api: Api, loan: Loan) -> None:
    """Lent in January; the payment of 1 March is known before that of 1 February, which was to meet January's interest."""
    api.disburse(loan, 100_000, "2026-01-05")
    api.accrue("2026-02-01", (loan, 100_000, 1_000))
    api.accrue("2026-03-01", (loan, 100_000, 500))
    api.pay(loan, 1_200, "2026-03-01")  # interest 1,200
    api.pay(loan, 900, "2026-02-01")  # only 300 of interest is left for it


def test_a_plan_says_the_exact_entries_and_posts_nothing(acme: Lender, api: Api, loan: Loan) -> None:
    late(api, loan)
    assert api.owed(loan) == (99_400, 0, 0)
    before = acme.balances()
    plan = posted(replan(api, loan, "2026-02-01"))
    assert plan.keys() == {"plan_hash", "entries"}
    assert [(entry["event_type"], entry["effective_at"], said(entry)) for entry in plan["entries"]] == [
        ("payment_allocated", "2026-02-01", ["DR 1200 300", "DR 1100 600", "CR 2000 900"]),
        ("payment_allocated", "2026-03-01", ["DR 1200 1200", "CR 2000 1200"]),
        ("payment_allocated", "2026-02-01", ["DR 2000 900", "CR 1200 900"]),
        ("payment_allocated", "2026-03-01", ["DR 2000 1200", "CR 1200 600", "CR 1100 600"]),
    ]
    assert acme.balances() == before
    assert len(api.history(loan)) == 5


def test_a_committed_plan_brings_the_loan_to_where_it_would_be(api: Api, loan: Loan) -> None:
    late(api, loan)
    done = commit(api, loan, "2026-02-01")
    assert done.keys() == {"journal_entry_ids", "posted_at"}
    assert [entry["journal_entry_id"] for entry in api.history(loan)[5:]] == done["journal_entry_ids"]
    assert api.owed(loan, "2026-02-01") == (100_000, 100, 0)
    assert api.owed(loan) == (99_400, 0, 0)
    assert posted(replan(api, loan, "2026-02-01"))["entries"] == []


def test_a_plan_is_outdated_when_the_loan_has_moved(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    late(api, loan)
    plan = posted(replan(api, loan, "2026-02-01"))
    api.charge_fee(loan, 5, "2026-03-02")
    with nothing_moves():
        refused(replan(api, loan, "2026-02-01", plan_hash=plan["plan_hash"]), 409, "plan_outdated")
        refused(replan(api, loan, "2026-02-01", plan_hash="0" * 64), 409, "plan_outdated")


def test_a_plan_for_another_date_is_another_plan(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    late(api, loan)
    plan = posted(replan(api, loan, "2026-02-01"))
    with nothing_moves():
        refused(replan(api, loan, "2026-01-31", plan_hash=plan["plan_hash"]), 409, "plan_outdated")


def test_payments_before_the_date_stay_as_they_are(api: Api, loan: Loan) -> None:
    late(api, loan)
    plan = posted(replan(api, loan, "2026-02-02"))
    assert plan["entries"] == []


def test_a_replanned_payment_can_still_be_returned(api: Api, loan: Loan) -> None:
    late(api, loan)
    commit(api, loan, "2026-02-01")
    payment = api.history(loan, event_type="payment_received")[1]["journal_entry_id"]
    made = posted(api.post(f"/v1/payments/{payment}/return", {"effective_at": "2026-03-05", "return_code": "R01"}))
    # What the plan allocated of this very payment is undone, not the newer allocation of the March payment.
    entry = api.entry(made["journal_entry_id"])
    assert said(entry) == ["DR 1200 900", "CR 2000 900", "CR 1000 900", "DR 2000 900"]
    assert api.owed(loan) == (99_400, 900, 0)
    refused(
        api.post(f"/v1/payments/{payment}/return", {"effective_at": "2026-03-05", "return_code": "R01"}),
        409,
        "already_returned",
    )


def test_a_settled_payment_is_replanned_by_the_date_of_its_settlement(api: Api, loan: Loan) -> None:
    api.disburse(loan, 100_000, "2026-01-05")
    api.accrue("2026-02-01", (loan, 100_000, 1_000))
    payment = api.pay(loan, 700, "2026-01-31", layer="PENDING")["payment_event_id"]
    api.pay(loan, 900, "2026-03-01")
    posted(api.post(f"/v1/payments/{payment}/settlement", {"effective_at": "2026-02-03"}))
    assert api.owed(loan, "2026-02-10") == (99_400, 900, 0)
    commit(api, loan, "2026-02-01")
    assert api.owed(loan, "2026-02-10") == (100_000, 300, 0)
    assert api.owed(loan) == (99_400, 0, 0)


def test_a_second_late_payment_is_planned_upon_the_first_plan(api: Api, loan: Loan) -> None:
    late(api, loan)
    commit(api, loan, "2026-02-01")
    api.charge_fee(loan, 50, "2026-01-20")
    commit(api, loan, "2026-01-20")
    assert api.owed(loan, "2026-02-01") == (100_000, 150, 0)
    assert api.owed(loan) == (99_450, 0, 0)


def test_allocations_of_one_date_keep_their_order_from_plan_to_plan(api: Api, loan: Loan) -> None:
    """The first one meets the late fee and is posted again; the second one stays, and is still the second one."""
    api.pay(loan, 100, "2026-01-06")
    api.disburse(loan, 1_000, "2026-01-08")
    for amount in ("20", "30"):
        allocation = {"amount_minor": amount, "currency": "USD", "effective_at": "2026-01-10"}
        posted(api.post(f"/v1/loans/{loan.loan_id}/suspense-allocations", allocation))
    api.charge_fee(loan, 10, "2026-01-09")
    assert len(commit(api, loan, "2026-01-10")["journal_entry_ids"]) == 2
    assert posted(replan(api, loan, "2026-01-10"))["entries"] == []


def test_the_waterfall_of_each_date_is_the_one_in_force_then(acme: Lender, api: Api, loan: Loan) -> None:
    late(api, loan)
    terms = {"effective_at": "2026-03-01", "waterfall": ["principal", "interest", "fees"]}
    posted(api.post(f"/v1/programs/{acme.program_id}/terms", terms))
    commit(api, loan, "2026-02-01")
    assert api.owed(loan, "2026-02-01") == (100_000, 100, 0)
    assert api.owed(loan) == (98_800, 600, 0)


def test_payments_before_a_refinance_stay_where_they_are(api: Api, acme: Lender, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    api.pay(loan, 100, "2026-01-06")
    new = {"borrower_id": loan.borrower_id, "program_id": acme.program_id, "opened_on": "2026-01-02"}
    posted(api.post(f"/v1/loans/{loan.loan_id}/refinance", {"new_loan": new, "effective_at": "2026-02-01"}))
    assert posted(replan(api, loan, "2026-01-05"))["entries"] == []


def test_a_closed_period_and_an_unknown_loan_are_refused(
    api: Api, loan: Loan, acme: Lender, nothing_moves: Unmoved
) -> None:
    late(api, loan)
    posted(api.post("/v1/periods/close", {"through_date": "2026-02-15"}))
    with nothing_moves():
        refused(replan(api, loan, "2026-02-15"), 422, "period_closed")
        refused(replan(api, loan, (acme.today + timedelta(days=2)).isoformat()), 422, "effective_date_refused")
        unknown = Loan("11111111-1111-1111-1111-111111111111", loan.borrower_id, loan.program_id, "USD")
        refused(replan(api, unknown, "2026-02-16"), 404, "not_found")


@pytest.mark.parametrize("seed", range(8))
def test_a_replanned_loan_is_the_twin_of_one_that_was_never_late(acme: Lender, seed: int) -> None:
    """The same disbursements, accruals, fees and payments, once in order of date and once shuffled and replanned."""
    dice = random.Random(seed)
    in_order, shuffled = acme.loans[:2]
    day = date(2026, 1, 6)
    owed_changes: list[tuple[str, str, int]] = []
    payments: list[tuple[str, int]] = []
    for _ in range(6):
        day += timedelta(days=dice.randint(1, 12))
        owed_changes.append((dice.choice(["fee", "fee", "adjust"]), day.isoformat(), dice.randint(1, 900)))
        day += timedelta(days=dice.randint(0, 3))
        payments.append((day.isoformat(), dice.randint(1, 2_500)))
    api = acme.api

    def owe(loan: Loan, kind: str, on: str, amount: int) -> None:
        if kind == "fee":
            posted(
                api.post(
                    f"/v1/loans/{loan.loan_id}/fees",
                    {"amount_minor": str(amount), "currency": "USD", "effective_at": on},
                )
            )
        else:
            api.disburse(loan, amount, on)

    for loan in (in_order, shuffled):
        api.disburse(loan, 1_500, "2026-01-06")
    for (kind, on, amount), (paid_on, paid) in zip(owed_changes, payments, strict=True):
        owe(in_order, kind, on, amount)
        api.pay(in_order, paid, paid_on)
    steps: list[Callable[[], object]] = [
        *(lambda kind=kind, on=on, amount=amount: owe(shuffled, kind, on, amount) for kind, on, amount in owed_changes),
        *(lambda on=on, paid=paid: api.pay(shuffled, paid, on) for on, paid in payments),
    ]
    dice.shuffle(steps)
    for step in steps:
        step()
    commit(api, shuffled, "2026-01-06")

    assert posted(replan(api, in_order, "2026-01-06"))["entries"] == []
    for on in sorted({on for _, on, _ in owed_changes} | {on for on, _ in payments}):
        assert api.owed(shuffled, on) == api.owed(in_order, on), on
    assert posted(replan(api, shuffled, "2026-01-06"))["entries"] == []
