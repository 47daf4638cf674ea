"""Plan and commit: what a loan's history says about its payments, for the rule that allocates them anew.

The plan is made by posting it for real and taking it back, so that what is answered is what the books would take.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from typing import Any

import msgspec

from ledger.chart import Chart
from ledger.events import DEBIT, PENDING, SETTLED, Event, EventKind, Line, PaymentUnallocated, Reversal
from ledger.posting import Posted, Posting, lines_of, shown_lines
from ledger.queries import PaymentEntry, payment_entries, suspense_allocations
from ledger.rules.replan import Allocated, Shares, replan
from ledger.rules.waterfall import allocation
from ledger.state import EntryState


def post_plan(posting: Posting, loan_id: str, from_date: date) -> list[Posted]:
    """Post every reversal and re-allocation that the loan needs from a date on. Raises what postings raise."""
    return [posting.post(event) for event in replan(posting.state, loan_id, _allocated(posting, loan_id, from_date))]


def plan_hash(loan_id: str, version: int, from_date: date, entries: list[dict[str, Any]]) -> str:
    """What a plan is known by: the loan as it was, the date, and every line."""
    canonical = msgspec.json.encode(["v1", loan_id, version, from_date, entries], order="sorted")
    return hashlib.sha256(canonical).hexdigest()


def planned(posted: Posted, chart: Chart) -> dict[str, Any]:
    """An entry of a plan: as the API shows entries, without what only a recorded one has."""
    shown: dict[str, Any] = {
        "event_type": posted.event_type,
        "effective_at": posted.effective_at.isoformat(),
        "lines": shown_lines(posted.lines, chart),
    }
    if posted.reverses_entry_id is not None:
        shown["reverses_entry_id"] = posted.reverses_entry_id
    return shown


def _allocated(posting: Posting, loan_id: str, from_date: date) -> list[Allocated]:
    """The loan's payments and allocations in force that count from a date on. What a return has undone in part is left."""
    entries = payment_entries(posting.cursor, loan_id=loan_id)
    undone = {entry_id for entry_id, _, amount, _ in suspense_allocations(posting.cursor, loan_id=loan_id) if amount}
    states = {entry.entry_id: _state_of(entry) for entry in entries}
    by_settled = {entry.settles_entry_id: entry for entry in entries if entry.settles_entry_id is not None}
    again = defaultdict(list)
    for entry in entries:
        if _is_from_suspense(entry) and entry.payment_event_id is not None:
            again[entry.payment_event_id].append(entry)
    for entry in entries:
        if entry.settles_entry_id in states:
            states[entry.settles_entry_id].settled_by = states[entry.entry_id]
    posting.state.entries.update(states)

    found = []
    for entry in entries:
        if _is_from_suspense(entry):
            if entry.payment_event_id is None and entry.entry_id not in undone:
                found.append(_allocation(posting, entry, states[entry.entry_id]))
        elif entry.event_type == EventKind.PAYMENT_RECEIVED:
            base = by_settled.get(entry.entry_id) if states[entry.entry_id].lines[0].layer == PENDING else entry
            moved = again[entry.entry_id]
            if base is not None and not any(each.entry_id in undone for each in moved):
                found.append(_payment(posting, entry, base, moved, states, put_back=base.entry_id in by_settled))
    return [each for each in found if each.effective_at >= from_date]


def _is_from_suspense(entry: PaymentEntry) -> bool:
    return entry.event_type == EventKind.PAYMENT_ALLOCATED and entry.settles_entry_id is None


def _allocation(posting: Posting, entry: PaymentEntry, state: EntryState) -> Allocated:
    return Allocated(
        effective_at=entry.effective_at,
        order=entry.order,
        amount_minor=sum(line.amount_minor for line in state.lines if line.direction == DEBIT),
        shares=_shares(posting, state.lines),
        putting_back=[_reversal(entry)],
    )


def _payment(
    posting: Posting,
    payment: PaymentEntry,
    base: PaymentEntry,
    again: list[PaymentEntry],
    states: dict[str, EntryState],
    *,
    put_back: bool,
) -> Allocated:
    """A payment: its own shares unless a replan has put them back, and those of the allocations that a replan made."""
    lines = [line for line in states[base.entry_id].lines if line.layer == SETTLED]
    shares = {} if put_back else _shares(posting, lines)
    putting_back: list[Event] = [_reversal(entry) for entry in reversed(again)]
    if shares:
        putting_back.append(PaymentUnallocated(effective_at=base.effective_at, payment_event_id=payment.entry_id))
    for entry in again:
        for role, share in _shares(posting, states[entry.entry_id].lines).items():
            shares[role] = shares.get(role, 0) + share
    return Allocated(
        effective_at=base.effective_at,
        order=base.order,
        amount_minor=sum(line.amount_minor for line in lines if line.direction == DEBIT),
        shares=shares,
        putting_back=putting_back,
        payment_event_id=payment.entry_id,
    )


def _reversal(entry: PaymentEntry) -> Reversal:
    return Reversal(
        effective_at=entry.effective_at,
        reverses_entry_id=entry.entry_id,
        reason_code="error_correction",
        facts={"reason_code": "error_correction"},
    )


def _shares(posting: Posting, lines: Iterable[Line]) -> Shares:
    """What lines gave to receivables."""
    met = allocation(posting.state, (line for line in lines if line.layer == SETTLED))
    return {role: share for role, share in met.items() if share and role != "suspense"}


def _state_of(entry: PaymentEntry) -> EntryState:
    return EntryState(
        entry_id=entry.entry_id,
        event_type=entry.event_type,
        effective_at=entry.effective_at,
        lines=lines_of(entry.document),
        settles_entry_id=entry.settles_entry_id,
    )
