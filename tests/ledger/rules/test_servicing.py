"""Tables for servicing: fees and waivers, charge-off and recovery, restructure; and what an ended loan refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from ledger.errors import AmountExceedsLimit, LoanStateRefuses
from ledger.events import (
    PENDING,
    SETTLED,
    ChargeOff,
    Disbursement,
    Event,
    FeeAssessed,
    FeeWaived,
    PaymentReceived,
    Recovery,
    Restructure,
    SuspenseAllocated,
)
from ledger.rules import RULES
from ledger.state import LoanState, State
from tests.ledger.conftest import CHART, loan_state, said

DAY = date(2025, 3, 1)


def books(*loans: LoanState) -> State:
    return State(date(2025, 12, 31), CHART, {loan.loan_id: loan for loan in loans})


def ended(how: str | None, **owed: int) -> LoanState:
    """A lent loan, and what ended it."""
    loan = loan_state(**owed)
    loan.draws, loan.ended_as = 1, how
    return loan


def lines_of(loan: LoanState, event: Event) -> list[str]:
    """What the rule of the event's kind answers, as an accountant writes it."""
    lines = RULES[event.kind](books(loan), event)
    assert {(line.loan_id, line.borrower_id, line.currency) for line in lines} <= {("loan", "borrower of loan", "USD")}
    return said(lines)


def fee(amount: int = 40) -> FeeAssessed:
    return FeeAssessed(loan_id="loan", amount_minor=amount, currency="USD", effective_at=DAY)


def waiver(amount: int = 40) -> FeeWaived:
    return FeeWaived(loan_id="loan", amount_minor=amount, currency="USD", effective_at=DAY)


def chargeoff() -> ChargeOff:
    return ChargeOff(loan_id="loan", effective_at=DAY)


def recovery(amount: int = 70, ref: str | None = None) -> Recovery:
    return Recovery(loan_id="loan", amount_minor=amount, currency="USD", effective_at=DAY, external_ref=ref)


def restructure(*, interest: bool = False, fees: bool = False) -> Restructure:
    return Restructure(loan_id="loan", effective_at=DAY, capitalise_interest=interest, capitalise_fees=fees)


def draw(layer: str = SETTLED) -> Disbursement:
    return Disbursement(loan_id="loan", amount_minor=500, currency="USD", effective_at=DAY, layer=layer)


def payment(layer: str = SETTLED) -> PaymentReceived:
    return PaymentReceived(
        loan_id="loan", amount_minor=90, currency="USD", effective_at=DAY, source_method="ach", layer=layer
    )


def from_suspense(amount: int) -> SuspenseAllocated:
    return SuspenseAllocated(loan_id="loan", amount_minor=amount, currency="USD", effective_at=DAY)


# --- Fees ------------------------------------------------------------------------------------------------------------


def test_a_fee_debits_fees_receivable_and_credits_fee_income() -> None:
    assert lines_of(loan_state(), fee(40)) == ["DR fees 40", "CR fee_income 40"]


def test_a_waiver_debits_fee_waivers_and_credits_fees_receivable() -> None:
    assert lines_of(loan_state(fees=100), waiver(40)) == ["DR fee_waivers 40", "CR fees 40"]


# --- Charge-off and recovery -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owed", "expected"),
    [
        (
            {"principal": 900, "interest": 60, "fees": 40},
            ["DR chargeoff_expense 1000", "CR principal 900", "CR interest 60", "CR fees 40"],
        ),
        ({"principal": 900}, ["DR chargeoff_expense 900", "CR principal 900"]),
        ({"interest": 60, "fees": 40}, ["DR chargeoff_expense 100", "CR interest 60", "CR fees 40"]),
        ({"principal": 900, "suspense": 50}, ["DR chargeoff_expense 900", "CR principal 900"]),  # suspense stays
    ],
)
def test_a_chargeoff_takes_all_that_is_owed_to_expense_and_leaves_zero_lines_out(
    owed: dict[str, int], expected: list[str]
) -> None:
    assert lines_of(loan_state(**owed), chargeoff()) == expected


def test_a_chargeoff_leaves_announced_principal_alone() -> None:
    loan = loan_state(principal=10, pending={"principal": 700})
    assert lines_of(loan, chargeoff()) == ["DR chargeoff_expense 10", "CR principal 10"]


@pytest.mark.parametrize("loan", [loan_state(), loan_state(suspense=80), loan_state(pending={"principal": 80})])
def test_a_chargeoff_of_nothing_outstanding_is_refused(loan: LoanState) -> None:
    with pytest.raises(LoanStateRefuses):
        lines_of(loan, chargeoff())


def test_a_recovery_debits_cash_with_its_reference_and_credits_recovery_income() -> None:
    state = books(ended("charged_off"))
    lines = RULES[recovery().kind](state, recovery(70, "agency 4"))
    assert said(lines) == ["DR cash 70", "CR recovery_income 70"]
    assert [line.external_ref for line in lines] == ["agency 4", None]


@pytest.mark.parametrize("loan", [loan_state(principal=900), ended(None), ended("refinanced")])
def test_a_recovery_on_a_loan_that_was_not_charged_off_is_refused(loan: LoanState) -> None:
    with pytest.raises(LoanStateRefuses):
        lines_of(loan, recovery())


# --- Restructure -----------------------------------------------------------------------------------------------------

OWED = {"principal": 900, "interest": 60, "fees": 40}


@pytest.mark.parametrize(
    ("owed", "event", "expected"),
    [
        (OWED, restructure(interest=True, fees=True), ["DR principal 100", "CR interest 60", "CR fees 40"]),
        (OWED, restructure(interest=True), ["DR principal 60", "CR interest 60"]),
        (OWED, restructure(fees=True), ["DR principal 40", "CR fees 40"]),
        (OWED, restructure(), []),
        ({"principal": 900, "fees": 40}, restructure(interest=True), []),
        ({"principal": 900, "fees": 40}, restructure(interest=True, fees=True), ["DR principal 40", "CR fees 40"]),
    ],
)
def test_a_restructure_makes_principal_of_what_it_capitalises(
    owed: dict[str, int], event: Restructure, expected: list[str]
) -> None:
    assert lines_of(loan_state(**owed), event) == expected


def test_capitalisation_is_not_held_against_the_limit_and_counts_for_the_next_draw() -> None:
    loan = loan_state(limit=900, **OWED)
    state = books(loan)
    event = restructure(interest=True)
    lines = RULES[event.kind](state, event)
    assert said(lines) == ["DR principal 60", "CR interest 60"]
    state.apply(event, lines)
    with pytest.raises(AmountExceedsLimit):
        RULES[draw().kind](state, draw())


@pytest.mark.parametrize("loan", [ended("charged_off", **OWED), ended("refinanced", **OWED), ended(None)])
def test_only_an_open_loan_is_restructured(loan: LoanState) -> None:
    with pytest.raises(LoanStateRefuses):
        lines_of(loan, restructure())


# --- What a loan's state refuses --------------------------------------------------------------------------------------

REFUSED_ON_ENDED = [draw, lambda: draw(PENDING), fee, chargeoff, restructure]
REFUSED_ON_CHARGED_OFF = [*REFUSED_ON_ENDED, payment, lambda: payment(PENDING)]


@pytest.mark.parametrize("make", REFUSED_ON_CHARGED_OFF)
def test_a_charged_off_loan_takes_no_draw_fee_payment_or_new_end(make: Callable[[], Event]) -> None:
    with pytest.raises(LoanStateRefuses):
        lines_of(ended("charged_off", **OWED), make())


@pytest.mark.parametrize("make", REFUSED_ON_ENDED)
def test_a_refinanced_loan_takes_no_draw_fee_or_new_end(make: Callable[[], Event]) -> None:
    with pytest.raises(LoanStateRefuses):
        lines_of(ended("refinanced", **OWED), make())


@pytest.mark.parametrize("how", [None, "refinanced"])
def test_a_payment_on_a_loan_that_owes_nothing_waits_in_suspense(how: str | None) -> None:
    assert lines_of(ended(how), payment()) == ["DR cash 90", "CR suspense 90"]


def test_a_payment_on_a_refinanced_loan_waits_in_suspense_whatever_it_owes_since() -> None:
    assert lines_of(ended("refinanced", interest=30), payment()) == ["DR cash 90", "CR suspense 90"]


@pytest.mark.parametrize("how", ["charged_off", "refinanced"])
def test_money_in_suspense_meets_what_an_ended_loan_owes_since(how: str) -> None:
    loan = ended(how, suspense=50, interest=30)
    assert lines_of(loan, from_suspense(30)) == ["DR suspense 30", "CR interest 30"]


def test_a_waiver_asks_for_no_state() -> None:
    assert lines_of(ended("charged_off", fees=40), waiver(40)) == ["DR fee_waivers 40", "CR fees 40"]


@pytest.mark.parametrize("make", [fee, draw, lambda: draw(PENDING), payment])
def test_a_paid_off_loan_takes_a_fee_a_draw_and_a_payment(make: Callable[[], Event]) -> None:
    assert len(lines_of(ended(None), make())) == 2
