"""Tables for the state that rules read: balances before a day, and what may be taken from a day on."""

from __future__ import annotations

from datetime import date

import pytest

from ledger.events import PENDING, Line, ManualAdjustment
from tests.ledger.conftest import CHART, loan_state, state_of

# Lent 1000 on the 1st (not in `later`: it is not after the date asked for), 200 back on the 5th, 300 more on the 9th.
LENT = [("2025-03-05", "principal", -200), ("2025-03-09", "principal", 300)]


@pytest.mark.parametrize(
    ("day", "before", "available"),
    [
        ("2025-03-02", 1_000, 800),
        ("2025-03-04", 1_000, 800),
        ("2025-03-05", 1_000, 800),
        ("2025-03-06", 800, 800),
        ("2025-03-09", 800, 1_100),
        ("2025-03-10", 1_100, 1_100),
        ("2025-12-31", 1_100, 1_100),
    ],
)
def test_before_leaves_the_day_out_and_available_looks_at_all_that_follow(
    day: str, before: int, available: int
) -> None:
    loan = loan_state(principal=1_100, later=LENT)
    asked = date.fromisoformat(day)
    assert loan.before(CHART["principal"], asked) == before
    assert loan.available(CHART["principal"], asked) == available


def test_what_may_be_taken_is_never_below_zero() -> None:
    loan = loan_state(interest=40, later=[("2025-03-05", "interest", 90)])
    assert loan.available(CHART["interest"], date(2025, 3, 1)) == 0


def test_suspense_counts_on_its_own_side() -> None:
    loan = loan_state(suspense=50, later=[("2025-03-05", "suspense", 20), ("2025-03-07", "suspense", -10)])
    assert loan.available(CHART["suspense"], date(2025, 3, 4)) == 40
    assert loan.available(CHART["suspense"], date(2025, 3, 5)) == 50
    assert loan.before(CHART["suspense"], date(2025, 3, 5)) == 40


def test_layers_and_accounts_are_apart() -> None:
    loan = loan_state(principal=5, pending={"principal": 70}, later=LENT)
    assert loan.available(CHART["principal"], date(2025, 3, 1), PENDING) == 70
    assert loan.balance(CHART["interest"]) == 0


def test_what_is_posted_in_the_same_transaction_is_seen_by_the_next_event() -> None:
    state = state_of(loan_state(principal=1_000))
    about = ("USD", "SETTLED", "loan")
    lines = [Line("cash", "DR", 400, *about), Line("1100", "CR", 300, *about), Line("suspense", "CR", 100, *about)]
    state.apply(ManualAdjustment(effective_at=date(2025, 3, 5), lines=tuple(lines)), lines)
    loan = state.loans["loan"]
    assert (loan.balance(CHART["principal"]), loan.balance(CHART["suspense"])) == (700, 100)
    assert loan.before(CHART["principal"], date(2025, 3, 5)) == 1_000
    assert loan.available(CHART["principal"], date(2025, 3, 4)) == 700
    assert loan.available(CHART["suspense"], date(2025, 3, 4)) == 0
    assert loan.balances.keys() == {("1100", "SETTLED"), ("2000", "SETTLED")}
