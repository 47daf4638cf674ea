"""Tables for lending: what a disbursement and its settlement post, on which layer, and what they refuse."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from ledger.errors import (
    AlreadyReversed,
    AlreadySettled,
    AmountExceedsLimit,
    EffectiveDateRefused,
    EntryNotFound,
    Problem,
)
from ledger.events import PENDING, SETTLED, Disbursement, DisbursementSettled, Line
from ledger.rules.disbursement import disbursement, disbursement_settled
from ledger.state import EntryState
from tests.ledger.conftest import loan_state, said, state_of

DAY = date(2025, 3, 1)


def drawn(amount: int, layer: str = SETTLED) -> Disbursement:
    return Disbursement(loan_id="loan", amount_minor=amount, currency="USD", effective_at=DAY, layer=layer)


@pytest.mark.parametrize("layer", [SETTLED, PENDING])
def test_a_disbursement_debits_principal_and_credits_disbursement_clearing_on_its_layer(layer: str) -> None:
    suffix = "" if layer == SETTLED else " PENDING"
    lines = disbursement(state_of(loan_state()), drawn(5_000, layer))
    assert said(lines) == [f"DR principal 5000{suffix}", f"CR disbursement_clearing 5000{suffix}"]
    assert {(line.loan_id, line.borrower_id, line.currency) for line in lines} == {("loan", "borrower of loan", "USD")}


@pytest.mark.parametrize(
    ("settled", "pending", "amount", "allowed"),
    [
        (0, 0, 1_000, True),
        (0, 0, 1_001, False),
        (999, 0, 1, True),
        (999, 0, 2, False),
        (0, 1_000, 1, False),  # announced principal counts
        (400, 500, 100, True),
        (400, 500, 101, False),
        (1_200, 0, 1, False),  # capitalisation may have lifted it above
    ],
)
@pytest.mark.parametrize("layer", [SETTLED, PENDING])
def test_the_limit_holds_settled_and_pending_principal_together(
    settled: int, pending: int, amount: int, allowed: bool, layer: str
) -> None:
    state = state_of(loan_state(principal=settled, pending={"principal": pending}, limit=1_000))
    if allowed:
        assert len(disbursement(state, drawn(amount, layer))) == 2
    else:
        with pytest.raises(AmountExceedsLimit):
            disbursement(state, drawn(amount, layer))


def test_interest_and_fees_do_not_count_towards_the_limit() -> None:
    state = state_of(loan_state(principal=900, interest=500, fees=500, limit=1_000))
    assert len(disbursement(state, drawn(100))) == 2


def entry_of(layer: str = SETTLED, **changes: Any) -> EntryState:
    about = (700, "USD", layer, "loan", "borrower of loan")
    lines = (Line("1100", "DR", *about), Line("1050", "CR", *about))
    return EntryState("drawn", "disbursement", DAY, lines, **changes)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (SETTLED, ["DR disbursement_clearing 700", "CR cash 700"]),
        (PENDING, ["CR 1100 700 PENDING", "DR 1050 700 PENDING", "DR principal 700", "CR cash 700"]),
    ],
)
def test_a_settlement_pays_out_of_clearing_or_moves_pending_principal_over(layer: str, expected: list[str]) -> None:
    settlement = DisbursementSettled(effective_at=DAY, disbursement_event_id="drawn")
    lines = disbursement_settled(state_of(loan_state(), entry=entry_of(layer)), settlement)
    assert said(lines) == expected
    assert {line.loan_id for line in lines} == {"loan"}


@pytest.mark.parametrize(
    ("entry", "day", "refusal"),
    [
        (entry_of(settled_by=EntryState("another", "disbursement_settled", DAY, ())), DAY, AlreadySettled),
        (entry_of(reversed_by="reversal"), DAY, AlreadyReversed),
        (entry_of(), date(2025, 2, 28), EffectiveDateRefused),
    ],
)
def test_a_settlement_is_refused(entry: EntryState, day: date, refusal: type[Problem]) -> None:
    settlement = DisbursementSettled(effective_at=day, disbursement_event_id="drawn")
    with pytest.raises(refusal):
        disbursement_settled(state_of(loan_state(), entry=entry), settlement)


def test_only_a_disbursement_is_settled() -> None:
    another = EntryState("drawn", "payment_received", DAY, entry_of().lines)
    settlement = DisbursementSettled(effective_at=DAY, disbursement_event_id="drawn")
    with pytest.raises(EntryNotFound):
        disbursement_settled(state_of(loan_state(), entry=another), settlement)
    with pytest.raises(EntryNotFound):
        disbursement_settled(state_of(loan_state()), settlement)
