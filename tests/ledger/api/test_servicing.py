"""What is done to one loan: fees, waivers, allocations from suspense, charge-off, recoveries, restructures, and their
reversal. Refinances are in test_refinance.py, returns in test_returns.py."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.conftest import (
    Api,
    Json,
    Lender,
    Loan,
    disbursement_of,
    in_books_of,
    line,
    payment_of,
    posted,
    refused,
    shown,
)

pytestmark = pytest.mark.usefixtures("sound_books")

Unmoved = Callable[[], AbstractContextManager[None]]
MAX_MINOR = 9_223_372_036_854_775_807


def money(amount: int, on: str = "2026-02-01", **more: Any) -> Json:
    return {"amount_minor": str(amount), "currency": "USD", "effective_at": on} | more


def path(loan: Loan, operation: str) -> str:
    return f"/v1/loans/{loan.loan_id}/{operation}"


def charge_off(api: Api, loan: Loan, on: str = "2026-02-10") -> Json:
    return api.serve(loan, "chargeoff", on, reason="Gone")


def refinance(api: Api, loan: Loan, on: str = "2026-02-10") -> Json:
    new_loan = {"borrower_id": loan.borrower_id, "program_id": loan.program_id, "opened_on": "2026-01-01"}
    return api.serve(loan, "refinance", on, new_loan=new_loan)


@pytest.fixture
def owing(api: Api, loan: Loan) -> Loan:
    """100,000 lent on 5 January, with 2,700 of interest and a fee of 500 on the sixth."""
    api.disburse(loan, 100_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 100_000, 2_700))
    api.serve(loan, "fees", "2026-01-06", 500)
    return loan


@pytest.fixture
def charged_off(api: Api, owing: Loan) -> Loan:
    charge_off(api, owing)
    return owing


@pytest.fixture
def refinanced(api: Api, owing: Loan) -> Loan:
    refinance(api, owing)
    return owing


@pytest.fixture
def paid_off(api: Api, owing: Loan) -> Loan:
    api.pay(owing, 103_200, "2026-02-10")
    return owing


def facts_of(lender: Lender, entry_id: str) -> Json | None:
    """What the entry keeps of its event and does not show."""
    with in_books_of(lender.tenant_id) as connection:
        ((facts,),) = connection.execute("SELECT facts FROM journal_entry WHERE id = %s", (entry_id,)).fetchall()
    return facts  # type: ignore[no-any-return]


# --- Fees ------------------------------------------------------------------------------------------------------------


def test_a_fee_debits_fees_receivable_and_credits_fee_income(api: Api, acme: Lender, loan: Loan) -> None:
    made = api.serve(loan, "fees", "2026-02-01", 2_500, fee_type="late", description="Late in January \U0001f4c5")
    assert made.keys() == {"journal_entry_id", "posted_at", "correlation_id"}
    about = {"amount_minor": "2500", "currency": "USD", "layer": "SETTLED"}
    about |= {"loan_id": loan.loan_id, "borrower_id": loan.borrower_id}
    assert api.entry(made["journal_entry_id"]) == {
        "journal_entry_id": made["journal_entry_id"],
        "event_type": "fee_assessed",
        "effective_at": "2026-02-01",
        "posted_at": made["posted_at"],
        "correlation_id": made["correlation_id"],
        "actor": f"client:{api.client.client_id}",
        "description": "Late in January \U0001f4c5",
        "lines": [
            {"sequence": 1, "account_code": "1300", "direction": "DR"} | about,
            {"sequence": 2, "account_code": "4100", "direction": "CR"} | about,
        ],
    }
    assert facts_of(acme, made["journal_entry_id"]) == {"fee_type": "late"}
    assert api.owed(loan) == (0, 0, 2_500)
    assert api.state(loan) == "open"


def test_every_type_of_fee_is_taken(api: Api, loan: Loan) -> None:
    for fee_type in ("late", "nsf", "origination", "other"):
        api.serve(loan, "fees", "2026-02-01", 1, fee_type=fee_type)
    assert api.owed(loan) == (0, 0, 4)


def test_the_trace_becomes_the_correlation(api: Api, loan: Loan) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    made = posted(api.post(path(loan, "fees"), money(5), headers=headers))
    assert made["correlation_id"] == "0af76519-16cd-43dd-8448-eb211c80319c"
    assert api.entry(made["journal_entry_id"])["correlation_id"] == made["correlation_id"]


def test_a_fee_reopens_a_paid_off_loan(api: Api, paid_off: Loan) -> None:
    assert api.state(paid_off) == "paid_off"
    api.serve(paid_off, "fees", "2026-02-11", 1)
    assert api.state(paid_off) == "open"
    api.pay(paid_off, 1, "2026-02-12")
    assert api.state(paid_off) == "paid_off"


def test_a_fee_does_not_touch_suspense(api: Api, loan: Loan) -> None:
    api.pay(loan, 700, "2026-01-05")
    api.serve(loan, "fees", "2026-02-01", 500)
    assert api.owed(loan) == (0, 0, 500)
    assert api.normal_balance("2000") == 700


def test_a_back_dated_fee_counts_from_its_date(api: Api, loan: Loan) -> None:
    api.pay(loan, 1, "2026-03-01")
    api.serve(loan, "fees", "2026-02-01", 500)
    assert [api.owed(loan, on)[2] for on in ("2026-01-31", "2026-02-01", "2026-03-01")] == [0, 500, 500]


def test_a_fee_beyond_the_range_is_refused(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.serve(loan, "fees", "2026-02-01", MAX_MINOR)
    with nothing_moves():
        refused(api.post(path(loan, "fees"), money(1)), 422, "amount_out_of_range")


# --- Waivers ---------------------------------------------------------------------------------------------------------


def test_a_waiver_debits_fee_waivers_and_credits_fees_receivable(api: Api, owing: Loan) -> None:
    made = api.serve(owing, "fee-waivers", "2026-02-01", 400, reason="Goodwill")
    assert made.keys() == {"journal_entry_id", "posted_at", "correlation_id"}
    assert api.lines(made["journal_entry_id"]) == ["DR 5100 400", "CR 1300 400"]
    entry = api.entry(made["journal_entry_id"])
    assert (entry["event_type"], entry["description"]) == ("fee_waived", "Goodwill")
    assert all((item["loan_id"], item["borrower_id"]) == (owing.loan_id, owing.borrower_id) for item in entry["lines"])
    assert api.owed(owing) == (100_000, 2_700, 100)


def test_no_more_is_waived_than_is_outstanding(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for amount in (501, MAX_MINOR):
            answer = api.post(path(owing, "fee-waivers"), money(amount, reason="Too much"))
            refused(answer, 422, "amount_exceeds_balance", [f"loans.{owing.loan_id}"])
    api.serve(owing, "fee-waivers", "2026-02-01", 500, reason="All")
    with nothing_moves():
        answer = api.post(path(owing, "fee-waivers"), money(1, reason="More"))
        refused(answer, 422, "amount_exceeds_balance")


def test_a_waiver_takes_what_is_free_on_every_later_date(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    """500 on 1 February, of which 400 were paid on 1 March; 1,000 more on 1 April."""
    api.serve(loan, "fees", "2026-02-01", 500)
    api.pay(loan, 400, "2026-03-01")
    api.serve(loan, "fees", "2026-04-01", 1_000)
    with nothing_moves():
        for on, amount in (("2026-01-31", 1), ("2026-02-01", 101), ("2026-03-01", 101), ("2026-04-01", 1_101)):
            answer = api.post(path(loan, "fee-waivers"), money(amount, on, reason="Too early"))
            refused(answer, 422, "amount_exceeds_balance")
    api.serve(loan, "fee-waivers", "2026-02-01", 100, reason="In time")
    assert [api.owed(loan, on)[2] for on in ("2026-02-01", "2026-03-01", "2026-04-01")] == [400, 0, 1_000]


def test_the_waiver_of_all_that_is_owed_pays_a_loan_off(api: Api, paid_off: Loan) -> None:
    api.serve(paid_off, "fees", "2026-02-11", 30)
    api.serve(paid_off, "fee-waivers", "2026-02-11", 30, reason="Goodwill")
    assert api.state(paid_off) == "paid_off"


# --- Suspense --------------------------------------------------------------------------------------------------------


def allocation(fees: int = 0, interest: int = 0, principal: int = 0, suspense: int = 0) -> Json:
    return {
        "fees_minor": str(fees),
        "interest_minor": str(interest),
        "principal_minor": str(principal),
        "suspense_minor": str(suspense),
    }


def test_suspense_meets_what_is_owed_by_the_waterfall(api: Api, loan: Loan) -> None:
    api.pay(loan, 5_000, "2026-01-04")
    api.disburse(loan, 100_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 100_000, 2_700))
    api.serve(loan, "fees", "2026-01-06", 500)
    made = api.serve(loan, "suspense-allocations", "2026-02-01", 4_000)
    assert made == {
        "journal_entry_id": made["journal_entry_id"],
        "posted_at": made["posted_at"],
        "allocation": allocation(fees=500, interest=2_700, principal=800),
    }
    assert api.lines(made["journal_entry_id"]) == ["DR 2000 4000", "CR 1300 500", "CR 1200 2700", "CR 1100 800"]
    entry = api.entry(made["journal_entry_id"])
    assert entry["event_type"] == "payment_allocated"
    assert {(item["loan_id"], item["borrower_id"]) for item in entry["lines"]} == {(loan.loan_id, loan.borrower_id)}
    assert "reverses_entry_id" not in entry
    assert api.owed(loan) == (99_200, 0, 0)
    assert (api.normal_balance("2000"), api.normal_balance("1000")) == (1_000, 5_000)


def test_suspense_is_allocated_in_the_programs_order(acme: Lender) -> None:
    loan = acme.open_loan(acme.open_program(waterfall=("principal", "fees", "interest")))
    acme.api.pay(loan, 50, "2026-01-04")
    acme.api.disburse(loan, 40, "2026-01-05")
    acme.api.serve(loan, "fees", "2026-01-05", 30)
    made = acme.api.serve(loan, "suspense-allocations", "2026-02-01", 50)
    assert made["allocation"] == allocation(principal=40, fees=10)


def test_no_more_is_allocated_than_suspense_holds(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    allocate = path(owing, "suspense-allocations")
    with nothing_moves():
        refused(api.post(allocate, money(1)), 422, "amount_exceeds_balance")
    api.pay(owing, 103_700, "2026-02-01")
    api.serve(owing, "fees", "2026-02-02", 1_000)
    with nothing_moves():
        refused(api.post(allocate, money(501, "2026-02-02")), 422, "amount_exceeds_balance")
        refused(api.post(allocate, money(1, "2026-01-31")), 422, "amount_exceeds_balance")
    api.serve(owing, "suspense-allocations", "2026-02-02", 500)
    assert api.owed(owing) == (0, 0, 500)


def test_announced_money_is_not_allocated(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    api.pay(owing, 5_000, "2026-02-01", layer="PENDING")
    with nothing_moves():
        refused(api.post(path(owing, "suspense-allocations"), money(1)), 422, "amount_exceeds_balance")


def test_no_more_is_allocated_than_the_receivables_hold(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.pay(loan, 5_000, "2026-01-05")
    allocate = path(loan, "suspense-allocations")
    with nothing_moves():
        refused(api.post(allocate, money(1)), 422, "amount_exceeds_balance")
    api.serve(loan, "fees", "2026-02-01", 300)
    with nothing_moves():
        refused(api.post(allocate, money(301)), 422, "amount_exceeds_balance")
        refused(api.post(allocate, money(1, "2026-01-31")), 422, "amount_exceeds_balance")
    api.serve(loan, "suspense-allocations", "2026-02-01", 300)


def test_suspense_that_a_later_entry_took_is_not_allocated_before_it(
    api: Api, loan: Loan, nothing_moves: Unmoved
) -> None:
    """500 on 5 January, refunded on 1 March; 700 more on 1 April."""
    api.disburse(loan, 10_000, "2026-02-01")
    api.pay(loan, 500, "2026-01-05")
    about = {"loan_id": loan.loan_id}
    api.adjust("2026-03-01", line("2000", "DR", 500, **about), line("1000", "CR", 500, **about))
    with nothing_moves():
        refused(api.post(path(loan, "suspense-allocations"), money(1)), 422, "amount_exceeds_balance")


def test_a_charged_off_loan_takes_nothing_from_suspense(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    api.pay(owing, 200_000, "2026-02-01")
    api.serve(owing, "fees", "2026-02-02", 40)
    charge_off(api, owing)
    with nothing_moves():
        answer = api.post(path(owing, "suspense-allocations"), money(1, "2026-02-11"))
        refused(answer, 422, "amount_exceeds_balance")


# --- Charge-off ------------------------------------------------------------------------------------------------------


def test_a_charge_off_takes_all_that_is_owed_to_expense(api: Api, owing: Loan) -> None:
    made = api.serve(owing, "chargeoff", "2026-02-10", reason="Bankrupt")
    assert made == {
        "journal_entry_id": made["journal_entry_id"],
        "posted_at": made["posted_at"],
        "correlation_id": made["correlation_id"],
        "charged_off": {"fees_minor": "500", "interest_minor": "2700", "principal_minor": "100000"},
    }
    lines = ["DR 5000 103200", "CR 1100 100000", "CR 1200 2700", "CR 1300 500"]
    assert api.lines(made["journal_entry_id"]) == lines
    entry = api.entry(made["journal_entry_id"])
    assert (entry["event_type"], entry["description"]) == ("chargeoff", "Bankrupt")
    assert {(item["loan_id"], item["borrower_id"]) for item in entry["lines"]} == {(owing.loan_id, owing.borrower_id)}
    assert api.owed(owing) == (0, 0, 0)
    assert api.owed(owing, "2026-02-09") == (100_000, 2_700, 500)
    assert api.state(owing) == "charged_off"
    listed = shown(api.get("/v1/loans", {"state": "charged_off"}))["items"]
    assert [item["loan_id"] for item in listed] == [owing.loan_id]


def test_what_is_not_owed_has_no_line(api: Api, loan: Loan) -> None:
    api.serve(loan, "fees", "2026-02-01", 5)
    made = charge_off(api, loan)
    assert made["charged_off"] == {"fees_minor": "5", "interest_minor": "0", "principal_minor": "0"}
    assert api.lines(made["journal_entry_id"]) == ["DR 5000 5", "CR 1300 5"]


def test_suspense_stays_through_a_charge_off(api: Api, loan: Loan) -> None:
    api.pay(loan, 700, "2026-01-05")
    api.disburse(loan, 1_000, "2026-01-06")
    charge_off(api, loan)
    assert api.normal_balance("2000") == 700


def test_nothing_is_not_charged_off(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    body = {"effective_at": "2026-02-10", "reason": "Gone"}
    with nothing_moves():
        refused(api.post(path(loan, "chargeoff"), body), 422, "loan_state_refuses")
    api.disburse(loan, 100, "2026-01-05", layer="PENDING")
    with nothing_moves():
        refused(api.post(path(loan, "chargeoff"), body), 422, "loan_state_refuses")


def test_a_paid_off_loan_is_not_charged_off(api: Api, paid_off: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        answer = api.post(path(paid_off, "chargeoff"), {"effective_at": "2026-02-11", "reason": "Gone"})
        refused(answer, 422, "loan_state_refuses")


def test_a_charge_off_of_a_date_before_a_debt_is_refused(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    """All of it goes, and all of it must have been there since."""
    api.serve(owing, "fees", "2026-02-05", 1)
    with nothing_moves():
        answer = api.post(path(owing, "chargeoff"), {"effective_at": "2026-02-04", "reason": "Gone"})
        refused(answer, 422, "amount_exceeds_balance", [f"loans.{owing.loan_id}"])
    assert api.state(owing) == "open"
    charge_off(api, owing, "2026-02-05")


def test_a_charge_off_that_would_be_below_a_later_balance_is_refused(
    api: Api, owing: Loan, nothing_moves: Unmoved
) -> None:
    api.pay(owing, 50_000, "2026-03-01")
    api.disburse(owing, 50_000, "2026-04-01")
    with nothing_moves():
        answer = api.post(path(owing, "chargeoff"), {"effective_at": "2026-02-10", "reason": "Gone"})
        refused(answer, 422, "amount_exceeds_balance")
    charge_off(api, owing, "2026-04-01")


# What an ended loan does not take: where it goes, with which body.
Attempt = Callable[[Loan], tuple[str, Json]]
ON = "2026-02-20"
REFUSED_WHEN_ENDED: dict[str, Attempt] = {
    "disbursement": lambda loan: ("/v1/disbursements", disbursement_of(loan, 1, ON)),
    "pending disbursement": lambda loan: ("/v1/disbursements", disbursement_of(loan, 1, ON, layer="PENDING")),
    "fee": lambda loan: (path(loan, "fees"), money(1, ON)),
    "charge-off": lambda loan: (path(loan, "chargeoff"), {"effective_at": ON, "reason": "Again"}),
    "refinance": lambda loan: (
        path(loan, "refinance"),
        {
            "effective_at": ON,
            "new_loan": {"borrower_id": loan.borrower_id, "program_id": loan.program_id, "opened_on": "2026-01-01"},
        },
    ),
    "restructure": lambda loan: (path(loan, "restructure"), {"effective_at": ON, "annual_rate_bps": 1}),
}
REFUSED_WHEN_CHARGED_OFF: dict[str, Attempt] = {
    "payment": lambda loan: ("/v1/payments", payment_of(loan, 1, ON)),
    "pending payment": lambda loan: ("/v1/payments", payment_of(loan, 1, ON, layer="PENDING")),
}


@pytest.mark.parametrize("what", [*REFUSED_WHEN_ENDED, *REFUSED_WHEN_CHARGED_OFF])
def test_what_a_charged_off_loan_refuses(api: Api, charged_off: Loan, nothing_moves: Unmoved, what: str) -> None:
    attempt = (REFUSED_WHEN_ENDED | REFUSED_WHEN_CHARGED_OFF)[what](charged_off)
    with nothing_moves():
        refused(api.post(*attempt), 422, "loan_state_refuses")
    assert api.state(charged_off) == "charged_off"


@pytest.mark.parametrize("what", REFUSED_WHEN_ENDED)
def test_what_a_refinanced_loan_refuses(api: Api, refinanced: Loan, nothing_moves: Unmoved, what: str) -> None:
    with nothing_moves():
        refused(api.post(*REFUSED_WHEN_ENDED[what](refinanced)), 422, "loan_state_refuses")
    assert api.state(refinanced) == "refinanced"


@pytest.mark.parametrize("what", [*REFUSED_WHEN_ENDED, *REFUSED_WHEN_CHARGED_OFF])
def test_the_state_refuses_whatever_the_date(api: Api, charged_off: Loan, nothing_moves: Unmoved, what: str) -> None:
    """A loan is ended when its end has been posted, also for what is dated before that."""
    where, body = (REFUSED_WHEN_ENDED | REFUSED_WHEN_CHARGED_OFF)[what](charged_off)
    with nothing_moves():
        refused(api.post(where, body | {"effective_at": "2026-01-20"}), 422, "loan_state_refuses")


@pytest.mark.parametrize("what", REFUSED_WHEN_ENDED)
@pytest.mark.parametrize("end", [charge_off, refinance])
def test_an_ended_loan_that_owes_again_is_ended_all_the_same(
    api: Api, owing: Loan, nothing_moves: Unmoved, end: Callable[[Api, Loan], Json], what: str
) -> None:
    """A payment of before came back: the loan owes, and takes no more than it did."""
    paid = api.pay(owing, 600, "2026-02-01")
    end(api, owing)
    state = api.state(owing)
    api.give_back(paid, "2026-02-15")
    assert api.owed(owing) == (0, 100, 500)
    with nothing_moves():
        refused(api.post(*REFUSED_WHEN_ENDED[what](owing)), 422, "loan_state_refuses")
    assert api.state(owing) == state


def test_announced_money_does_not_settle_on_a_charged_off_loan(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    announced = api.pay(owing, 700, "2026-02-01", layer="PENDING")
    charge_off(api, owing)
    with nothing_moves():
        where = f"/v1/payments/{announced['payment_event_id']}/settlement"
        refused(api.post(where, {"effective_at": ON}), 422, "loan_state_refuses")
    api.give_back(announced, ON)
    assert api.normal_balance("2000", layer="PENDING") == 0


def test_what_a_charged_off_loan_takes(api: Api, acme: Lender, owing: Loan) -> None:
    """A return, an accountant's lines, a client's accruals: none of them asks for the state, none of them changes it."""
    paid = api.pay(owing, 700, "2026-02-01")
    charge_off(api, owing)
    api.give_back(paid, ON)
    api.accrue("2026-02-11", (owing, 0, 3))
    about = {"loan_id": owing.loan_id}
    api.adjust(ON, line("1100", "DR", 9, **about), line("3000", "CR", 9, **about))
    assert api.owed(owing) == (9, 203, 500)
    assert api.state(owing) == "charged_off"
    api.serve(owing, "fee-waivers", ON, 500, reason="It was returned")


# --- Recovery --------------------------------------------------------------------------------------------------------


def test_a_recovery_debits_cash_and_credits_recovery_income(api: Api, charged_off: Loan) -> None:
    made = api.serve(charged_off, "recoveries", "2026-03-01", 900, external_ref="agency 7")
    assert made.keys() == {"journal_entry_id", "posted_at", "correlation_id"}
    about = {"amount_minor": "900", "currency": "USD", "layer": "SETTLED"}
    about |= {"loan_id": charged_off.loan_id, "borrower_id": charged_off.borrower_id}
    entry = api.entry(made["journal_entry_id"])
    assert entry["event_type"] == "recovery"
    assert entry["lines"] == [
        {"sequence": 1, "account_code": "1000", "direction": "DR", "external_ref": "agency 7"} | about,
        {"sequence": 2, "account_code": "4200", "direction": "CR"} | about,
    ]
    assert api.owed(charged_off) == (0, 0, 0)
    assert api.state(charged_off) == "charged_off"


def test_recoveries_may_be_many_and_more_than_was_lost(api: Api, charged_off: Loan) -> None:
    for amount in (1, 103_200, 7):
        api.serve(charged_off, "recoveries", "2026-03-01", amount, external_ref="the same")
    assert api.normal_balance("4200") == 103_208


@pytest.mark.parametrize("state", ["open", "lent", "paid_off", "refinanced"])
def test_only_a_charged_off_loan_takes_recoveries(
    api: Api, request: pytest.FixtureRequest, nothing_moves: Unmoved, state: str
) -> None:
    names = {"open": "loan", "lent": "owing"}
    loan = request.getfixturevalue(names.get(state, state))
    with nothing_moves():
        refused(api.post(path(loan, "recoveries"), money(1, ON)), 422, "loan_state_refuses")


# --- Restructure -----------------------------------------------------------------------------------------------------


def terms_of(api: Api, loan: Loan) -> tuple[int, str]:
    body = shown(api.get(f"/v1/loans/{loan.loan_id}"))
    return body["annual_rate_bps"], body["day_count_convention"]


def terms_rows(lender: Lender) -> list[Any]:
    with in_books_of(lender.tenant_id) as connection:
        rows = connection.execute(
            """SELECT loan_id::text, effective_at::text, annual_rate_bps, day_count_convention, entry_id::text
               FROM loan_terms ORDER BY id"""
        )
        return rows.fetchall()


def test_a_restructure_capitalises_and_gives_new_terms(api: Api, acme: Lender, owing: Loan) -> None:
    made = api.serve(
        owing,
        "restructure",
        "2026-02-10",
        annual_rate_bps=300,
        day_count_convention="30_360",
        capitalise_interest=True,
        capitalise_fees=True,
    )
    assert made == {
        "journal_entry_id": made["journal_entry_id"],
        "posted_at": made["posted_at"],
        "correlation_id": made["correlation_id"],
        "capitalised_minor": "3200",
    }
    assert api.lines(made["journal_entry_id"]) == ["DR 1100 3200", "CR 1200 2700", "CR 1300 500"]
    assert api.entry(made["journal_entry_id"])["event_type"] == "restructure"
    assert api.owed(owing) == (103_200, 0, 0)
    assert api.owed(owing, "2026-02-09") == (100_000, 2_700, 500)
    assert terms_of(api, owing) == (300, "30_360")
    assert terms_rows(acme) == [(owing.loan_id, "2026-02-10", 300, "30_360", made["journal_entry_id"])]
    assert api.state(owing) == "open"


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ({"capitalise_interest": True}, ["DR 1100 2700", "CR 1200 2700"]),
        ({"capitalise_fees": True, "capitalise_interest": False}, ["DR 1100 500", "CR 1300 500"]),
    ],
)
def test_what_is_capitalised_is_chosen(api: Api, acme: Lender, owing: Loan, flags: Json, lines: list[str]) -> None:
    made = api.serve(owing, "restructure", "2026-02-10", **flags)
    assert api.lines(made["journal_entry_id"]) == lines
    assert made["capitalised_minor"] == lines[0].rpartition(" ")[2]
    assert terms_of(api, owing) == (1_000, "ACT_365")
    assert terms_rows(acme) == []


@pytest.mark.parametrize("flags", [{}, {"capitalise_interest": False}, {"capitalise_fees": True}])
def test_a_rate_alone_is_recorded_without_an_entry(api: Api, acme: Lender, loan: Loan, flags: Json) -> None:
    api.disburse(loan, 100, "2026-01-05")
    before = api.history(loan)
    made = api.serve(loan, "restructure", "2026-02-10", annual_rate_bps=0, **flags)
    assert made == {"correlation_id": made["correlation_id"], "capitalised_minor": "0"}
    uuid.UUID(made["correlation_id"])
    assert api.history(loan) == before
    assert terms_of(api, loan) == (0, "ACT_365")
    assert terms_rows(acme) == [(loan.loan_id, "2026-02-10", 0, None, None)]


def test_each_member_of_the_terms_goes_its_own_way(api: Api, loan: Loan) -> None:
    """A change of the day count leaves the rate of the loan's own, and the other way round; the latest date wins."""
    api.serve(loan, "restructure", "2026-02-10", annual_rate_bps=300)
    api.serve(loan, "restructure", "2026-03-10", day_count_convention="ACT_360")
    assert terms_of(api, loan) == (300, "ACT_360")
    api.serve(loan, "restructure", "2026-01-20", annual_rate_bps=200, day_count_convention="30_360")
    assert terms_of(api, loan) == (300, "ACT_360")
    api.serve(loan, "restructure", "2026-02-10", annual_rate_bps=400)
    assert terms_of(api, loan) == (400, "ACT_360"), "of two on one date the later one holds"


def test_nothing_to_capitalise_is_nothing_to_post(api: Api, acme: Lender, loan: Loan, nothing_moves: Unmoved) -> None:
    before = acme.books()
    made = api.serve(loan, "restructure", "2026-02-10", capitalise_interest=True, capitalise_fees=True)
    assert made == {"correlation_id": made["correlation_id"], "capitalised_minor": "0"}
    after = acme.books()
    assert [name for name, (was, now) in enumerate(zip(before, after, strict=True)) if was != now] == [2], "the key"


@pytest.mark.parametrize("flags", [{}, {"capitalise_interest": False}, {"capitalise_fees": False}])
def test_a_restructure_that_changes_nothing_is_refused(
    api: Api, owing: Loan, nothing_moves: Unmoved, flags: Json
) -> None:
    with nothing_moves():
        answer = api.post(path(owing, "restructure"), {"effective_at": "2026-02-10"} | flags)
        problem = refused(answer, 400, "validation_failed")
    assert [error["code"] for error in problem["errors"]] == ["nothing_to_change"]


@pytest.mark.parametrize(
    "body", [{"annual_rate_bps": 1}, {"capitalise_interest": True}, {"annual_rate_bps": 1, "capitalise_fees": True}]
)
def test_only_an_open_loan_is_restructured(api: Api, paid_off: Loan, nothing_moves: Unmoved, body: Json) -> None:
    with nothing_moves():
        answer = api.post(path(paid_off, "restructure"), {"effective_at": "2026-02-11"} | body)
        refused(answer, 422, "loan_state_refuses")
    assert terms_of(api, paid_off) == (1_000, "ACT_365")


def test_a_restructure_of_a_date_before_the_debt_leaves_no_terms(
    api: Api, acme: Lender, owing: Loan, nothing_moves: Unmoved
) -> None:
    body = {"effective_at": "2026-01-05", "annual_rate_bps": 1, "capitalise_interest": True}
    with nothing_moves():
        refused(api.post(path(owing, "restructure"), body), 422, "amount_exceeds_balance")
    assert terms_rows(acme) == []


def test_capitalisation_is_not_held_against_the_limit_and_counts_in_it(acme: Lender, nothing_moves: Unmoved) -> None:
    api, loan = acme.api, acme.open_loan(principal_limit_minor=1_000)
    api.disburse(loan, 1_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 1_000, 50))
    api.serve(loan, "restructure", "2026-02-10", capitalise_interest=True)
    assert api.owed(loan) == (1_050, 0, 0)
    api.pay(loan, 50, "2026-02-11")
    with nothing_moves():
        refused(api.post("/v1/disbursements", disbursement_of(loan, 1, "2026-02-12")), 422, "amount_exceeds_limit")


# --- Reversals -------------------------------------------------------------------------------------------------------


def _from_suspense(api: Api, loan: Loan) -> Json:
    return api.serve(loan, "suspense-allocations", "2026-02-10", 650)


# On a loan that owes principal, interest and fees, and has 900 in suspense.
REVERSED: dict[str, Callable[[Api, Loan], Json]] = {
    "fee": lambda api, loan: api.serve(loan, "fees", "2026-02-10", 5),
    "fee waiver": lambda api, loan: api.serve(loan, "fee-waivers", "2026-02-10", 5, reason="Goodwill"),
    "charge-off": lambda api, loan: charge_off(api, loan),
    "refinance": lambda api, loan: refinance(api, loan),
    "restructure": lambda api, loan: api.serve(
        loan, "restructure", "2026-02-10", annual_rate_bps=1, capitalise_interest=True, capitalise_fees=True
    ),
    "suspense allocation": _from_suspense,
}


@pytest.mark.parametrize("kind", REVERSED)
def test_a_reversal_restores_everything(acme: Lender, loan: Loan, nothing_moves: Unmoved, kind: str) -> None:
    api = acme.api
    api.pay(loan, 900, "2026-01-04")
    api.disburse(loan, 100_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 100_000, 2_700))
    api.serve(loan, "fees", "2026-01-06", 500)
    before = acme.balances(), api.state(loan), terms_of(api, loan)
    made = REVERSED[kind](api, loan)
    assert acme.balances() != before[0]
    answer = api.reverse(made["journal_entry_id"], effective_at="2026-03-01")
    original, mirror = api.entry(made["journal_entry_id"]), api.entry(answer["journal_entry_id"])
    sides = {"DR": "CR", "CR": "DR"}
    assert mirror["lines"] == [item | {"direction": sides[item["direction"]]} for item in original["lines"]]
    assert (acme.balances(), api.state(loan), terms_of(api, loan)) == before
    with nothing_moves():
        body = {"reverses_entry_id": made["journal_entry_id"], "reason_code": "duplicate"}
        refused(api.post("/v1/reversals", body), 409, "already_reversed")
    # The loan goes on as if nothing had been.
    api.pay(loan, 103_200, "2026-03-02")
    assert api.state(loan) == "paid_off"


def test_a_recovery_is_reversed(api: Api, charged_off: Loan) -> None:
    made = api.serve(charged_off, "recoveries", "2026-03-01", 900)
    api.reverse(made["journal_entry_id"], effective_at="2026-03-02")
    assert api.normal_balance("4200") == 0
    assert api.state(charged_off) == "charged_off"


def test_a_charge_off_is_not_reversed_after_a_recovery(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    made = charge_off(api, owing)
    recovered = [api.serve(owing, "recoveries", "2026-03-01", 900)["journal_entry_id"] for _ in range(2)]
    body = {"reverses_entry_id": made["journal_entry_id"], "reason_code": "other"}
    for entry_id in recovered:
        with nothing_moves():
            refused(api.post("/v1/reversals", body), 422, "not_reversible")
        api.reverse(entry_id)
    posted(api.post("/v1/reversals", body))
    assert api.state(owing) == "open"
    assert api.owed(owing) == (100_000, 2_700, 500)


def test_a_loan_is_charged_off_again_after_a_reversal(api: Api, owing: Loan) -> None:
    first = charge_off(api, owing)
    api.reverse(first["journal_entry_id"], effective_at="2026-02-20")
    api.pay(owing, 3_200, "2026-02-21")
    again = charge_off(api, owing, "2026-03-01")
    assert again["charged_off"] == {"fees_minor": "0", "interest_minor": "0", "principal_minor": "100000"}
    assert api.state(owing) == "charged_off"
    assert api.normal_balance("5000") == 100_000


def test_a_fee_that_was_paid_is_not_taken_back(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    made = api.serve(loan, "fees", "2026-02-01", 500)
    api.pay(loan, 1, "2026-02-02")
    with nothing_moves():
        body = {"reverses_entry_id": made["journal_entry_id"], "reason_code": "other"}
        refused(api.post("/v1/reversals", body), 422, "amount_exceeds_balance")


def test_capitalised_principal_that_was_repaid_is_not_taken_back(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    made = api.serve(owing, "restructure", "2026-02-10", annual_rate_bps=1, capitalise_interest=True)
    api.pay(owing, 103_200, "2026-02-11")
    with nothing_moves():
        body = {"reverses_entry_id": made["journal_entry_id"], "reason_code": "other"}
        refused(api.post("/v1/reversals", body), 422, "amount_exceeds_balance")
    assert terms_of(api, owing) == (1, "ACT_365")


def test_of_two_restructures_each_takes_its_own_terms_away(api: Api, owing: Loan) -> None:
    first = api.serve(owing, "restructure", "2026-02-10", annual_rate_bps=300, capitalise_fees=True)
    second = api.serve(owing, "restructure", "2026-02-20", annual_rate_bps=200, capitalise_interest=True)
    api.reverse(first["journal_entry_id"], effective_at="2026-02-25")
    assert terms_of(api, owing) == (200, "ACT_365")
    api.reverse(second["journal_entry_id"], effective_at="2026-02-25")
    assert terms_of(api, owing) == (1_000, "ACT_365")
    assert api.owed(owing) == (100_000, 2_700, 500)


def test_terms_fall_back_to_those_of_the_loans_own(acme: Lender) -> None:
    api, loan = acme.api, acme.open_loan(annual_rate_bps=700)
    api.serve(loan, "fees", "2026-02-01", 5)
    made = api.serve(loan, "restructure", "2026-02-10", annual_rate_bps=300, capitalise_fees=True)
    assert terms_of(api, loan) == (300, "ACT_365")
    api.reverse(made["journal_entry_id"])
    assert terms_of(api, loan) == (700, "ACT_365")


def test_a_loan_that_was_never_really_lent_is_open_again(api: Api, loan: Loan) -> None:
    """The draw is reversed, so that nothing was lent: an open loan, and not one that is paid off."""
    made = api.disburse(loan, 100, "2026-01-05")
    assert api.state(loan) == "open"
    api.reverse(made["journal_entry_id"])
    assert api.state(loan) == "open"
    api.disburse(loan, 100, "2026-01-05")
    api.pay(loan, 100, "2026-01-06")
    assert api.state(loan) == "paid_off"


def test_money_that_a_return_made_principal_does_not_count_as_lent(api: Api, loan: Loan) -> None:
    """Refunded, then taken back by the bank: the borrower owes it, and has never been lent anything."""
    paid = api.pay(loan, 100, "2026-01-05")
    about = {"loan_id": loan.loan_id}
    api.adjust("2026-01-06", line("2000", "DR", 100, **about), line("1000", "CR", 100, **about))
    api.give_back(paid, "2026-01-07")
    assert api.owed(loan) == (100, 0, 0)
    api.pay(loan, 100, "2026-01-08")
    assert api.state(loan) == "open"


# --- What every operation on a loan refuses --------------------------------------------------------------------------

BODIES: dict[str, Json] = {
    "fees": money(5),
    "fee-waivers": money(5, reason="Goodwill"),
    "suspense-allocations": money(5),
    "chargeoff": {"effective_at": "2026-02-01", "reason": "Gone"},
    "recoveries": money(5),
    "restructure": {"effective_at": "2026-02-01", "annual_rate_bps": 1},
}


@pytest.mark.parametrize("operation", BODIES)
def test_an_unknown_loan_in_the_path_is_not_found(api: Api, nothing_moves: Unmoved, operation: str) -> None:
    with nothing_moves():
        for name in (str(uuid.uuid4()), "00000000-0000-0000-0000-000000000000", "x", "1"):
            refused(api.post(f"/v1/loans/{name}/{operation}", BODIES[operation]), 404, "not_found")


@pytest.mark.parametrize("operation", BODIES)
def test_dates_have_their_bounds(
    api: Api, acme: Lender, owing: Loan, nothing_moves: Unmoved, tomorrow: str, operation: str
) -> None:
    with nothing_moves():
        for on in (tomorrow, "9999-12-31", "2025-12-31", "0001-01-01"):
            answer = api.post(path(owing, operation), BODIES[operation] | {"effective_at": on})
            refused(answer, 422, "effective_date_refused")
    assert terms_rows(acme) == []


@pytest.mark.parametrize("operation", [name for name, body in BODIES.items() if "currency" in body])
def test_another_currency_is_refused(api: Api, owing: Loan, nothing_moves: Unmoved, operation: str) -> None:
    with nothing_moves():
        answer = api.post(path(owing, operation), BODIES[operation] | {"currency": "EUR"})
        refused(answer, 422, "currency_mismatch")


@pytest.mark.parametrize("operation", BODIES)
def test_the_borrower_is_the_paths(api: Api, owing: Loan, nothing_moves: Unmoved, operation: str) -> None:
    """The loan stands in the path, so that neither it nor its borrower is a member."""
    with nothing_moves():
        for name in ("loan_id", "borrower_id"):
            answer = api.post(path(owing, operation), BODIES[operation] | {name: getattr(owing, name)})
            refused(answer, 400, "validation_failed", [name])


@pytest.mark.parametrize("operation", BODIES)
def test_the_path_takes_post_alone(api: Api, owing: Loan, operation: str) -> None:
    answer = api.get(path(owing, operation))
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


def test_a_closed_account_takes_no_line(api: Api, acme: Lender, owing: Loan, nothing_moves: Unmoved) -> None:
    with in_books_of(acme.tenant_id) as connection:
        connection.execute("UPDATE gl_account SET closed_at = now(), closure_reason = 'test' WHERE code = '5000'")
    with nothing_moves():
        refused(api.post(path(owing, "chargeoff"), BODIES["chargeoff"]), 422, "account_closed")
    assert api.state(owing) == "open"


def test_a_client_sees_why_the_state_refused(api: Api, charged_off: Loan) -> None:
    problem = refused(api.post(path(charged_off, "fees"), money(1, ON)), 422, "loan_state_refuses")
    assert "charged off" in problem["detail"]
    assert "errors" not in problem
