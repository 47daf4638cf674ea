"""Tables for what becomes of a payment: it settles, waits and is allocated, or the bank takes it back."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from ledger.errors import (
    AlreadyReturned,
    AlreadyReversed,
    AlreadySettled,
    AmountExceedsBalance,
    EffectiveDateRefused,
    LoanStateRefuses,
    NotReversible,
    Problem,
)
from ledger.events import (
    CREDIT,
    DEBIT,
    PENDING,
    SETTLED,
    Event,
    Line,
    PaymentReturned,
    PaymentSettled,
    Reversal,
    SuspenseAllocated,
)
from ledger.rules import RULES
from ledger.rules.correction import reversal
from ledger.state import AllocationState, EntryState, LoanState, State
from tests.ledger.conftest import CHART, loan_state, said

DAY = date(2025, 3, 1)
BEFORE = date(2025, 2, 28)
LATER = date(2025, 4, 1)


def line(direction: str, code: str, amount: int, layer: str = SETTLED, ref: str | None = None) -> Line:
    return Line(code, direction, amount, "USD", layer, "loan", "borrower of loan", ref)


def announced(**changes: Any) -> EntryState:
    """A payment of 100 that was announced."""
    lines = (line(DEBIT, "1010", 100, PENDING, "ach 7"), line(CREDIT, "2000", 100, PENDING))
    return replace(EntryState("payment", "payment_received", DAY, lines), **changes)


def received(*shares: tuple[str, int], **changes: Any) -> EntryState:
    """A payment that was received at once, and what it met."""
    total = sum(amount for _, amount in shares)
    lines = (line(DEBIT, "1000", total, ref="ach 7"), *(line(CREDIT, code, amount) for code, amount in shares))
    return replace(EntryState("payment", "payment_received", DAY, lines), **changes)


def settlement(*shares: tuple[str, int], on: date = DAY, **changes: Any) -> EntryState:
    """What settled `announced()`."""
    mirror = tuple(each.mirrored() for each in announced().lines)
    lines = mirror + received(*shares).lines
    made = EntryState("settlement", "payment_allocated", on, lines, settles_entry_id="payment")
    return replace(made, **changes)


def allocation(entry_id: str, *shares: tuple[str, int], undone: int = 0) -> AllocationState:
    """An allocation from suspense that is in force."""
    total = sum(amount for _, amount in shares)
    lines = (line(DEBIT, "2000", total), *(line(CREDIT, code, amount) for code, amount in shares))
    return AllocationState(entry_id, lines, undone)


def books(loan: LoanState, *entries: EntryState) -> State:
    return State(date(2025, 12, 31), CHART, {loan.loan_id: loan}, {entry.entry_id: entry for entry in entries})


def lines_of(state: State, event: Event) -> list[str]:
    """What the rule of the event's kind answers, as an accountant writes it, with codes instead of roles."""
    lines = RULES[event.kind](state, event)
    assert {(each.loan_id, each.borrower_id, each.currency) for each in lines} == {("loan", "borrower of loan", "USD")}
    return said(replace(each, account=CHART[each.account].code) for each in lines)


def settles(on: date = DAY) -> PaymentSettled:
    return PaymentSettled(effective_at=on, payment_event_id="payment")


def returns(on: date = DAY) -> PaymentReturned:
    return PaymentReturned(effective_at=on, payment_event_id="payment", return_code="R01")


def from_suspense(amount: int) -> SuspenseAllocated:
    return SuspenseAllocated(loan_id="loan", amount_minor=amount, currency="USD", effective_at=DAY)


# --- Settlement ------------------------------------------------------------------------------------------------------

LEAVING = ["CR 1010 100 PENDING", "DR 2000 100 PENDING"]


@pytest.mark.parametrize(
    ("owed", "waterfall", "expected"),
    [
        ({"fees": 10, "interest": 20, "principal": 500}, "fees interest principal", ["1300 10", "1200 20", "1100 70"]),
        ({"fees": 10, "interest": 20, "principal": 500}, "principal interest fees", ["1100 100"]),
        ({"fees": 10, "interest": 20, "principal": 60}, "interest principal fees", ["1200 20", "1100 60", "1300 10"]),
        ({}, "fees interest principal", ["2000 100"]),
    ],
)
def test_a_settlement_mirrors_the_announcement_and_meets_what_is_owed_then(
    owed: dict[str, int], waterfall: str, expected: list[str]
) -> None:
    loan = loan_state(pending={"suspense": 100}, waterfall=waterfall, **owed)
    rest = 100 - sum(int(each.split()[1]) for each in expected)
    shares = [f"CR {each}" for each in [*expected, *([f"2000 {rest}"] if rest else [])]]
    assert lines_of(books(loan, announced()), settles()) == [*LEAVING, "DR 1000 100", *shares]


def test_a_settlement_keeps_the_payments_reference_on_cash_and_clearing() -> None:
    lines = RULES[settles().kind](books(loan_state(), announced()), settles())
    assert [each.external_ref for each in lines] == ["ach 7", None, "ach 7", None]


@pytest.mark.parametrize(("on", "expected"), [(DAY, "CR 1300 10"), (LATER, "CR 1100 100")])
def test_of_several_waterfalls_the_one_in_force_on_the_settlements_date_counts(on: date, expected: str) -> None:
    """A new order counts from its very day on."""
    loan = loan_state(fees=10, principal=500, pending={"suspense": 100})
    by_date = ((date.min, "fees interest principal"), (LATER, "principal interest fees"))
    loan.waterfalls = tuple((since, tuple(order.split())) for since, order in by_date)
    assert lines_of(books(loan, announced()), settles(on))[3] == expected


@pytest.mark.parametrize(
    ("entries", "on", "ended_as", "refusal"),
    [
        ([received(("1100", 100))], DAY, None, AlreadySettled),
        ([announced(settled_by=settlement(("1100", 100)))], DAY, None, AlreadySettled),
        ([announced(reversed_by="payment_returned")], DAY, None, AlreadyReturned),
        (
            [announced(settled_by=settlement(("1100", 100), reversed_by="payment_returned"))],
            DAY,
            None,
            AlreadyReturned,
        ),
        ([received(("1100", 100), reversed_by="payment_returned")], DAY, None, AlreadyReturned),
        ([announced(reversed_by="reversal")], DAY, None, AlreadyReversed),
        ([received(("1100", 100), reversed_by="reversal")], DAY, None, AlreadyReversed),
        ([announced()], BEFORE, None, EffectiveDateRefused),
        ([announced()], DAY, "charged_off", LoanStateRefuses),
    ],
)
def test_a_settlement_is_refused(
    entries: list[EntryState], on: date, ended_as: str | None, refusal: type[Problem]
) -> None:
    loan = replace(loan_state(principal=500, pending={"suspense": 100}), ended_as=ended_as)
    with pytest.raises(refusal):
        lines_of(books(loan, *entries), settles(on))


# --- From suspense ---------------------------------------------------------------------------------------------------


def test_money_in_suspense_meets_what_is_owed_by_the_waterfall() -> None:
    loan = loan_state(suspense=200, fees=10, interest=20, principal=500)
    assert lines_of(books(loan), from_suspense(90)) == ["DR 2000 90", "CR 1300 10", "CR 1200 20", "CR 1100 60"]


@pytest.mark.parametrize(
    ("owed", "amount"),
    [
        ({"interest": 20}, 21),
        ({}, 1),
        ({"fees": 10, "interest": 20, "principal": 50}, 81),
    ],
)
def test_more_than_the_receivables_take_is_refused(owed: dict[str, int], amount: int) -> None:
    with pytest.raises(AmountExceedsBalance):
        lines_of(books(loan_state(suspense=500, **owed)), from_suspense(amount))


def test_what_is_paid_later_is_not_allocated_to_on_an_earlier_date() -> None:
    loan = loan_state(suspense=500, interest=30, later=[("2025-06-01", "interest", -50)])
    state = books(loan)
    assert lines_of(state, from_suspense(30)) == ["DR 2000 30", "CR 1200 30"]
    with pytest.raises(AmountExceedsBalance):
        lines_of(state, from_suspense(31))


# --- Return ----------------------------------------------------------------------------------------------------------


def netted(lines: list[str]) -> dict[str, int]:
    """Account and layer -> what the lines come to, debits positive."""
    nets: dict[str, int] = {}
    for each in lines:
        side, code, amount, *layer = each.split()
        cell = " ".join([code, *layer])
        nets[cell] = nets.get(cell, 0) + (int(amount) if side == DEBIT else -int(amount))
    return {cell: minor for cell, minor in nets.items() if minor}


def test_the_return_of_an_announced_payment_is_its_mirror_on_pending() -> None:
    loan = loan_state(pending={"suspense": 100})
    assert netted(lines_of(books(loan, announced()), returns())) == {"1010 PENDING": -100, "2000 PENDING": 100}


@pytest.mark.parametrize("suspense", [70, 71])
def test_the_return_of_a_payment_is_its_mirror(suspense: int) -> None:
    paid = received(("1300", 10), ("1200", 20), ("2000", 70))
    lines = lines_of(books(loan_state(suspense=suspense), paid), returns())
    assert sorted(lines) == ["CR 1000 100", "DR 1200 20", "DR 1300 10", "DR 2000 70"]


def test_the_return_of_a_settled_payment_mirrors_the_settlement_alone() -> None:
    moved = settlement(("1200", 20), ("2000", 80))
    state = books(loan_state(suspense=80), announced(settled_by=moved))
    assert sorted(lines_of(state, returns())) == ["CR 1000 100", "DR 1200 20", "DR 2000 80"]


@pytest.mark.parametrize(
    ("suspense", "allocations", "expected"),
    [
        # 100 are needed in suspense.
        (40, [allocation("a", ("1100", 60))], {"1100": 60, "2000": 40}),
        (40, [allocation("a", ("1100", 90))], {"1100": 60, "2000": 40}),
        (0, [allocation("a", ("1300", 10), ("1200", 20), ("1100", 90))], {"1100": 90, "1200": 10}),
        (0, [allocation("a", ("1100", 10), ("1300", 150))], {"1300": 100}),
        # The newest comes first in the list, and goes first.
        (20, [allocation("b", ("1200", 50)), allocation("a", ("1100", 50))], {"1200": 50, "1100": 30, "2000": 20}),
        # What an earlier return has undone does not come back twice.
        (
            0,
            [allocation("a", ("1300", 30), ("1200", 40), ("1100", 50), undone=60)],
            {"1200": 30, "1300": 30, "1100": 40},
        ),
        (0, [allocation("b", ("1200", 70), undone=70), allocation("a", ("1300", 100))], {"1300": 100}),
        # What is still missing is principal.
        (0, [], {"1100": 100}),
        (30, [], {"1100": 70, "2000": 30}),
        (30, [allocation("a", ("1200", 20))], {"1200": 20, "1100": 50, "2000": 30}),
    ],
)
def test_suspense_that_is_short_takes_allocations_back_and_then_principal(
    suspense: int, allocations: list[AllocationState], expected: dict[str, int]
) -> None:
    loan = replace(loan_state(suspense=suspense), allocations=tuple(allocations))
    lines = lines_of(books(loan, received(("2000", 100))), returns())
    assert netted(lines) == {"1000": -100} | expected
    assert all(int(each.split()[2]) for each in lines), "zero lines are left out"


def test_what_is_available_on_the_returns_date_counts_not_what_came_before_or_after() -> None:
    loan = loan_state(suspense=100, later=[("2025-06-01", "suspense", 80)])
    assert netted(lines_of(books(loan, received(("2000", 100))), returns(LATER))) == {
        "1000": -100,
        "2000": 20,
        "1100": 80,
    }


@pytest.mark.parametrize(
    ("entry", "on", "refusal"),
    [
        (announced(reversed_by="payment_returned"), DAY, AlreadyReturned),
        (received(("1100", 100), reversed_by="payment_returned"), DAY, AlreadyReturned),
        (announced(settled_by=settlement(("1100", 100), reversed_by="payment_returned")), DAY, AlreadyReturned),
        (announced(reversed_by="reversal"), DAY, AlreadyReversed),
        (received(("1100", 100), reversed_by="reversal"), DAY, AlreadyReversed),
        (announced(), BEFORE, EffectiveDateRefused),
        (received(("1100", 100)), BEFORE, EffectiveDateRefused),
        (announced(settled_by=settlement(("1100", 100), on=LATER)), DAY, EffectiveDateRefused),
    ],
)
def test_a_return_is_refused(entry: EntryState, on: date, refusal: type[Problem]) -> None:
    with pytest.raises(refusal):
        lines_of(books(loan_state(suspense=100), entry), returns(on))


def test_principal_that_a_return_puts_back_was_not_lent() -> None:
    state = books(loan_state(), received(("2000", 100)))
    state.apply(returns(), RULES[returns().kind](state, returns()))
    assert state.owed(state.loans["loan"])["principal"] == 100
    repaid = from_suspense(100)
    state.apply(repaid, [line(DEBIT, "2000", 100), line(CREDIT, "1100", 100)])
    assert state.of(state.loans["loan"]) == "open", "a loan that was never lent is not paid off"


@pytest.mark.parametrize("how", ["charged_off", "refinanced"])
def test_an_ended_loans_payment_is_returned_too(how: str) -> None:
    loan = replace(loan_state(), ended_as=how)
    lines = lines_of(books(loan, received(("1200", 20), ("1100", 80))), returns())
    assert netted(lines) == {"1000": -100, "1200": 20, "1100": 80}


# --- Reversal --------------------------------------------------------------------------------------------------------

BACK = Reversal(effective_at=LATER, reverses_entry_id="entry", reason_code="other")


def entry_of(kind: str, *lines: Line, **changes: Any) -> EntryState:
    return replace(EntryState("entry", kind, DAY, lines), **changes)


ALLOCATED = entry_of("payment_allocated", line(DEBIT, "2000", 50), line(CREDIT, "1200", 20), line(CREDIT, "1100", 30))
CHARGED_OFF = entry_of("chargeoff", line(DEBIT, "5000", 50), line(CREDIT, "1100", 50))


@pytest.mark.parametrize("undone", [1, 50])
def test_an_allocation_that_a_return_has_undone_is_not_reversed(undone: int) -> None:
    loan = replace(loan_state(), allocations=(allocation("entry", ("1200", 20), ("1100", 30), undone=undone),))
    with pytest.raises(NotReversible):
        reversal(books(loan, ALLOCATED), BACK)


def test_an_allocation_that_stands_is_reversed_whatever_became_of_others() -> None:
    others = (allocation("other", ("1100", 30), undone=30), allocation("entry", ("1200", 20), ("1100", 30)))
    loan = replace(loan_state(), allocations=others)
    assert said(reversal(books(loan, ALLOCATED), BACK)) == ["CR 2000 50", "DR 1200 20", "DR 1100 30"]


def test_a_chargeoff_is_reversed_and_the_loan_is_open_again() -> None:
    state = books(replace(loan_state(), ended_as="charged_off", draws=1), CHARGED_OFF)
    lines = reversal(state, BACK)
    assert said(lines) == ["CR 5000 50", "DR 1100 50"]
    state.apply(BACK, lines)
    assert state.of(state.loans["loan"]) == "open"


def test_a_chargeoff_is_not_reversed_after_a_recovery() -> None:
    loan = replace(loan_state(), ended_as="charged_off", recovered=True)
    with pytest.raises(NotReversible):
        reversal(books(loan, CHARGED_OFF), BACK)


@pytest.mark.parametrize(
    "original",
    [
        entry_of("payment_allocated", *settlement(("1100", 100)).lines, settles_entry_id="payment"),
        entry_of("payment_received", *announced().lines, settled_by=settlement(("1100", 100))),
        entry_of("payment_received", *announced().lines, reversed_by="payment_returned"),
        entry_of("payment_returned", *announced().lines),
    ],
)
def test_what_was_settled_or_returned_is_not_reversed(original: EntryState) -> None:
    with pytest.raises(NotReversible):
        reversal(books(loan_state(), original), BACK)
