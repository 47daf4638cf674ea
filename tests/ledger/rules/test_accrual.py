"""Tables for a day's interest of many loans: lines, and everything that a batch is refused for."""

from __future__ import annotations

from datetime import date

import pytest

from ledger.errors import AccrualAlreadyPosted, AccrualModeRefuses, ValidationFailed
from ledger.events import Accrual, AccruedLoan
from ledger.rules.accrual import accrual
from ledger.state import LoanState
from tests.ledger.conftest import loan_state, said, state_of

DAY = date(2025, 3, 1)


def batch(*items: tuple[str, int, int]) -> Accrual:
    """Each item: loan, outstanding principal, interest."""
    return Accrual(
        effective_at=DAY,
        program_id="program",
        day_count_convention="ACT_365",
        loans=tuple(
            AccruedLoan(loan_id=loan_id, outstanding_principal_minor=principal, interest_minor=interest)
            for loan_id, principal, interest in items
        ),
    )


def test_each_loan_debits_its_interest_receivable_and_credits_income() -> None:
    state = state_of(loan_state("a", principal=1_000), loan_state("b", principal=2_000))
    lines = accrual(state, batch(("b", 2_000, 5), ("a", 1_000, 3)))
    assert said(lines) == ["DR interest 5", "CR interest_income 5", "DR interest 3", "CR interest_income 3"]
    assert [(line.loan_id, line.borrower_id) for line in lines] == [
        ("b", "borrower of b"),
        ("b", "borrower of b"),
        ("a", "borrower of a"),
        ("a", "borrower of a"),
    ]


def test_a_loan_without_interest_has_no_line() -> None:
    state = state_of(loan_state("a", principal=1_000), loan_state("b"))
    assert said(accrual(state, batch(("a", 1_000, 3), ("b", 0, 0)))) == ["DR interest 3", "CR interest_income 3"]


@pytest.mark.parametrize(
    ("loan", "outstanding"),
    [
        (loan_state("a", principal=1_000), 1_000),
        # What is effective on the day itself does not count: the day covers the time before it.
        (loan_state("a", principal=1_000, later=[("2025-03-01", "principal", 400)]), 600),
        (loan_state("a", principal=1_000, later=[("2025-03-02", "principal", 400)]), 600),
        (loan_state("a", principal=600, later=[("2025-03-01", "principal", -400)]), 1_000),
        (loan_state("a", principal=1_000, pending={"principal": 300}), 1_000),
    ],
)
def test_the_clients_principal_is_the_books_principal_before_the_day(loan: LoanState, outstanding: int) -> None:
    assert len(accrual(state_of(loan), batch(("a", outstanding, 1)))) == 2
    for other in (outstanding - 1, outstanding + 1):
        with pytest.raises(ValidationFailed) as caught:
            accrual(state_of(loan), batch(("a", other, 1)))
        assert [(e.field, e.code) for e in caught.value.errors] == [
            ("loans.0.outstanding_principal_minor", "principal_differs")
        ]


def test_all_wrong_items_are_named_at_once() -> None:
    elsewhere = loan_state("elsewhere", principal=10)
    elsewhere.program_id = "another program"
    state = state_of(loan_state("a", principal=10), loan_state("b", principal=10), elsewhere)
    with pytest.raises(ValidationFailed) as caught:
        accrual(state, batch(("a", 10, 1), ("b", 11, 1), ("a", 10, 1), ("nowhere", 0, 1), ("elsewhere", 10, 1)))
    assert [(e.field, e.code) for e in caught.value.errors] == [
        ("loans.1.outstanding_principal_minor", "principal_differs"),
        ("loans.2.loan_id", "duplicate"),
        ("loans.3.loan_id", "unknown_loan"),
        ("loans.4.loan_id", "unknown_loan"),
    ]


def test_a_batch_in_which_no_loan_has_interest_is_refused() -> None:
    with pytest.raises(ValidationFailed) as caught:
        accrual(state_of(loan_state("a", principal=10)), batch(("a", 10, 0)))
    assert [(e.field, e.code) for e in caught.value.errors] == [("loans", "nothing_to_post")]


def test_a_date_is_accrued_once_until_its_entry_is_reversed() -> None:
    loans = [loan_state("a", principal=10), loan_state("b", principal=10, accrual=(0, False))]
    with pytest.raises(AccrualAlreadyPosted, match="Loan b "):
        accrual(state_of(*loans), batch(("a", 10, 1), ("b", 10, 1)))
    loans[1].accrual = (0, True)
    assert len(accrual(state_of(*loans), batch(("a", 10, 1), ("b", 10, 1)))) == 4


def test_the_engines_programs_take_no_batches() -> None:
    with pytest.raises(AccrualModeRefuses):
        accrual(state_of(loan_state("a", principal=10, accrual_mode="engine")), batch(("a", 10, 1)))
