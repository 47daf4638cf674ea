"""Tables for refinance: a loan paid off from a new one, with or without cash on top, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from ledger.errors import (
    AmountExceedsLimit,
    BorrowerMismatch,
    CurrencyMismatch,
    LoanStateRefuses,
    NotReversible,
    Problem,
)
from ledger.events import Line, Refinance, Reversal
from ledger.rules.correction import reversal
from ledger.rules.ending import refinance
from ledger.state import EntryState, LoanState, State
from tests.ledger.conftest import CHART, loan_state, said

DAY = date(2025, 3, 1)


def old(**owed: int) -> LoanState:
    loan = loan_state("old", **owed)
    loan.draws, loan.borrower_id = 1, "the borrower"
    return loan


def new(limit: int | None = None, **changes: Any) -> LoanState:
    loan = replace(loan_state("new", limit=limit), borrower_id="the borrower")
    return replace(loan, **changes)


def books(*loans: LoanState) -> State:
    return State(date(2025, 12, 31), CHART, {loan.loan_id: loan for loan in loans})


def into_new(cash_out: int = 0) -> Refinance:
    return Refinance(loan_id="old", new_loan_id="new", effective_at=DAY, cash_out_minor=cash_out)


@pytest.mark.parametrize(
    ("owed", "cash_out", "expected"),
    [
        (
            {"principal": 900, "interest": 60, "fees": 40},
            500,
            [
                ("DR principal 1500", "new"),
                ("CR fees 40", "old"),
                ("CR interest 60", "old"),
                ("CR principal 900", "old"),
                ("CR disbursement_clearing 500", "new"),
            ],
        ),
        ({"principal": 900}, 0, [("DR principal 900", "new"), ("CR principal 900", "old")]),
        ({"fees": 3, "suspense": 70}, 0, [("DR principal 3", "new"), ("CR fees 3", "old")]),  # suspense stays
    ],
)
def test_a_refinance_lends_on_the_new_loan_what_the_old_one_owes_and_the_cash_on_top(
    owed: dict[str, int], cash_out: int, expected: list[tuple[str, str]]
) -> None:
    lines = refinance(books(old(**owed), new()), into_new(cash_out))
    assert list(zip(said(lines), [line.loan_id for line in lines], strict=True)) == expected
    assert {(line.borrower_id, line.currency) for line in lines} == {("the borrower", "USD")}


@pytest.mark.parametrize(("limit", "allowed"), [(1_500, True), (1_499, False), (None, True)])
def test_the_new_loans_limit_holds_what_is_paid_off_and_the_cash_on_top(limit: int | None, allowed: bool) -> None:
    state = books(old(principal=900, interest=60, fees=40), new(limit))
    if allowed:
        assert said(refinance(state, into_new(500)))[0] == "DR principal 1500"
    else:
        with pytest.raises(AmountExceedsLimit):
            refinance(state, into_new(500))


def test_the_old_loans_limit_does_not_matter() -> None:
    state = books(replace(old(principal=900), principal_limit_minor=100), new())
    assert len(refinance(state, into_new())) == 2


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        (books(old(principal=900), new(currency="EUR")), CurrencyMismatch),
        (books(old(principal=900), new(borrower_id="another")), BorrowerMismatch),
        (books(old(), new()), LoanStateRefuses),
        (books(old(suspense=900), new()), LoanStateRefuses),
        (books(replace(old(principal=900), ended_as="charged_off"), new()), LoanStateRefuses),
        (books(replace(old(principal=900), ended_as="refinanced"), new()), LoanStateRefuses),
    ],
)
def test_a_refinance_is_refused(state: State, refusal: type[Problem]) -> None:
    with pytest.raises(refusal):
        refinance(state, into_new(5))


# --- Taking it back --------------------------------------------------------------------------------------------------


def about(loan: str) -> tuple[int, str, str, str, str]:
    return (900, "USD", "SETTLED", loan, "the borrower")


ENTRY = EntryState(
    "refinanced", "refinance", DAY, (Line("1100", "DR", *about("new")), Line("1100", "CR", *about("old")))
)
BACK = Reversal(effective_at=DAY, reverses_entry_id="refinanced", reason_code="other")


def after_refinance(entries_of_new: int = 1) -> State:
    made = books(replace(old(), ended_as="refinanced"), replace(new(), version=entries_of_new))
    made.loans["old"].version = 7
    made.entries = {"refinanced": ENTRY}
    return made


def test_a_refinance_is_reversed_while_the_new_loan_has_no_other_entries() -> None:
    state = after_refinance()
    assert said(reversal(state, BACK)) == ["CR 1100 900", "DR 1100 900"]


def test_a_refinance_is_not_reversed_once_the_new_loan_has_other_entries() -> None:
    with pytest.raises(NotReversible):
        reversal(after_refinance(entries_of_new=2), BACK)


def test_the_old_loan_is_open_again_after_the_reversal_and_the_new_one_was_never_lent() -> None:
    state = after_refinance()
    state.loans["new"].draws = 1
    state.apply(BACK, reversal(state, BACK))
    assert (state.of(state.loans["old"]), state.of(state.loans["new"])) == ("open", "open")
    assert (state.loans["old"].ended_as, state.loans["new"].draws) == (None, 0)
