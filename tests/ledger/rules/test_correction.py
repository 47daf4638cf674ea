"""Tables for putting right: the mirror of an entry and when there is none, and an accountant's own lines."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from ledger.errors import (
    AccountNotFound,
    AlreadyReversed,
    BorrowerMismatch,
    CurrencyMismatch,
    EffectiveDateRefused,
    NotReversible,
    Problem,
    ValidationFailed,
)
from ledger.events import EventKind, Line, ManualAdjustment, Reversal
from ledger.rules.correction import manual_adjustment, reversal
from ledger.state import EntryState
from tests.ledger.conftest import loan_state, said, state_of

DAY = date(2025, 3, 1)
LINES = (
    Line("1000", "DR", 100, "USD", "SETTLED", "loan", "borrower of loan", "ach 7"),
    Line("1300", "CR", 30, "USD", "SETTLED", "loan", "borrower of loan"),
    Line("1100", "CR", 70, "USD", "SETTLED", "loan", "borrower of loan"),
)


def entry(kind: str = "payment_received", **changes: Any) -> EntryState:
    return EntryState("entry", kind, DAY, LINES, **changes)


def turned_back(day: date = DAY) -> Reversal:
    return Reversal(effective_at=day, reverses_entry_id="entry", reason_code="other")


def test_a_reversal_is_the_mirror_of_every_line_in_its_order() -> None:
    lines = reversal(state_of(loan_state(), entry=entry()), turned_back())
    assert said(lines) == ["CR 1000 100", "DR 1300 30", "DR 1100 70"]
    kept = [(line.loan_id, line.borrower_id, line.external_ref, line.layer, line.currency) for line in lines]
    assert kept == [(line.loan_id, line.borrower_id, line.external_ref, line.layer, line.currency) for line in LINES]
    assert [line.mirrored() for line in lines] == list(LINES)


@pytest.mark.parametrize("layer", ["SETTLED", "PENDING", "ENCUMBRANCE"])
def test_a_reversal_stays_on_the_layer_of_its_entry(layer: str) -> None:
    about = (5, "USD", layer)
    original = EntryState("entry", "manual_adjustment", DAY, (Line("1000", "DR", *about), Line("4000", "CR", *about)))
    assert {line.layer for line in reversal(state_of(entry=original), turned_back())} == {layer}


@pytest.mark.parametrize(
    ("original", "day", "refusal"),
    [
        (entry(reversed_by="reversal"), DAY, AlreadyReversed),
        (entry(reversed_by="payment_returned"), DAY, NotReversible),
        (
            entry("disbursement", settled_by=EntryState("settlement", "disbursement_settled", DAY, ())),
            DAY,
            NotReversible,
        ),
        (entry("reversal"), DAY, NotReversible),
        (entry("payment_returned"), DAY, NotReversible),
        (entry("disbursement_settled", settles_entry_id="drawn"), DAY, NotReversible),
        (entry("payment_allocated", settles_entry_id="announced"), DAY, NotReversible),
        (entry(), date(2025, 2, 28), EffectiveDateRefused),
    ],
)
def test_a_reversal_is_refused(original: EntryState, day: date, refusal: type[Problem]) -> None:
    with pytest.raises(refusal):
        reversal(state_of(loan_state(), entry=original), turned_back(day))


NEVER = {EventKind.REVERSAL, EventKind.PAYMENT_RETURNED, EventKind.DISBURSEMENT_SETTLED}


@pytest.mark.parametrize("kind", [kind for kind in EventKind if kind not in NEVER])
def test_every_other_kind_is_reversible_later_too(kind: EventKind) -> None:
    assert len(reversal(state_of(loan_state(), entry=entry(kind.value)), turned_back(date(2025, 9, 1)))) == 3


def by_hand(*lines: Line) -> ManualAdjustment:
    return ManualAdjustment(effective_at=DAY, description="By hand", lines=lines)


def test_an_adjustment_posts_its_lines_as_given_and_adds_the_borrower() -> None:
    given = by_hand(
        Line("1300", "DR", 5, "USD", loan_id="loan", external_ref="memo"),
        Line("4100", "CR", 5, "USD"),
        Line("9000", "DR", 9, "USD", "ENCUMBRANCE", "loan", "borrower of loan"),
        Line("9100", "CR", 9, "USD", "ENCUMBRANCE"),
    )
    lines = manual_adjustment(state_of(loan_state()), given)
    assert said(lines) == ["DR 1300 5", "CR 4100 5", "DR 9000 9 ENCUMBRANCE", "CR 9100 9 ENCUMBRANCE"]
    assert [line.borrower_id for line in lines] == ["borrower of loan", None, "borrower of loan", None]
    assert [line.external_ref for line in lines] == ["memo", None, None, None]


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (Line("7777", "DR", 5, "USD"), AccountNotFound),
        (Line("1100", "DR", 5, "EUR", loan_id="loan"), CurrencyMismatch),
        (Line("1000", "DR", 5, "EUR", loan_id="loan"), CurrencyMismatch),
        (Line("1100", "DR", 5, "USD", loan_id="loan", borrower_id="somebody else"), BorrowerMismatch),
    ],
)
def test_an_adjustment_is_refused(line: Line, refusal: type[Problem]) -> None:
    with pytest.raises(refusal):
        manual_adjustment(state_of(loan_state()), by_hand(line, Line("4000", "CR", 5, line.currency)))


def test_every_line_on_an_account_kept_per_loan_names_its_loan() -> None:
    nameless = [Line(code, "DR", 5, "USD") for code in ("1100", "1000", "1200", "1300", "2000", "9000")]
    with pytest.raises(ValidationFailed) as caught:
        manual_adjustment(state_of(loan_state()), by_hand(*nameless))
    assert [(e.field, e.code) for e in caught.value.errors] == [
        (f"lines.{position}.loan_id", "required") for position in (0, 2, 3, 4, 5)
    ]
