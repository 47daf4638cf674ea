"""The waterfall: in which order a payment meets what the loan owes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from ledger.chart import RECEIVABLES
from ledger.events import CREDIT, Line
from ledger.state import REFINANCED, LoanState, State


def allocate(state: State, loan: LoanState, amount_minor: int, on: date) -> list[tuple[str, int]]:
    """(role, amount) pairs that sum to `amount_minor`, in the program's order; the rest is suspense. Zeros are left out.

    A receivable gives at most what is available effective on `on`, so that no later as-of balance falls below zero.
    """
    shares = []
    rest = amount_minor
    for role in loan.waterfall_on(on):
        share = min(rest, loan.available(state.chart[role], on))
        if share:
            shares.append((role, share))
            rest -= share
    if rest:
        shares.append(("suspense", rest))
    return shares


def allocate_payment(state: State, loan: LoanState, amount_minor: int, on: date) -> list[tuple[str, int]]:
    """As `allocate()`; but money on a refinanced loan waits in suspense, whatever has fallen back on the loan since."""
    if loan.ended_as == REFINANCED:
        return [("suspense", amount_minor)]
    return allocate(state, loan, amount_minor, on)


def allocation(state: State, lines: Iterable[Line]) -> dict[str, int]:
    """How much of a payment's lines went to fees, interest, principal and suspense: all four, in minor units."""
    roles = {state.chart[role].code: role for role in (*RECEIVABLES, "suspense")}
    totals = dict.fromkeys((*RECEIVABLES, "suspense"), 0)
    for line in lines:
        role = roles.get(state.chart[line.account].code)
        if role is not None and line.direction == CREDIT:
            totals[role] += line.amount_minor
    return totals
