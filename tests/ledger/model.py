"""The naive model of the books: a list of what was posted and what moved on each day, added up for every question.

Written from the posting rules' description, not from ledger/rules: no balance is kept, no availability is worked out
backwards, nothing is locked. It says for an event which refusals apply (all of them, in no order) or which amounts move.
What the product does is held against it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date

from ledger.events import Accrual, Disbursement, DisbursementSettled, Event, ManualAdjustment, PaymentReceived, Reversal

LARGEST = 2**63 - 1

# Debits of these accounts make them larger; of the others, smaller.
DEBIT_ACCOUNTS = {"1000", "1010", "1100", "1200", "1300", "5000", "5100", "9000"}
CREDIT_ACCOUNTS = {"1050", "2000", "3000", "4000", "4100", "4200", "9100"}
OF_A_LOAN = {"1100", "1200", "1300", "2000", "9000"}
NEVER_BELOW_ZERO = {"1100", "1200", "1300", "2000"}
OWED = {"fees": "1300", "interest": "1200", "principal": "1100"}


@dataclass(frozen=True, order=True)
class Move:
    """An amount on an account, debits positive."""

    code: str
    layer: str
    currency: str
    loan_id: str | None
    debit_minor: int


Moves = tuple[Move, ...]


@dataclass(frozen=True)
class Posted:
    """An event that the books took in."""

    entry_id: str
    event: Event
    day: date
    moves: Moves


@dataclass(frozen=True)
class Terms:
    """What the model must know of a loan."""

    borrower_id: str
    opened_on: date
    currency: str = "USD"
    limit_minor: int | None = None


@dataclass
class Model:
    today: date
    loans: dict[str, Terms]
    waterfall: tuple[str, ...] = ("fees", "interest", "principal")
    posted: list[Posted] = field(default_factory=list)
    # (loan, code, layer) -> day -> what moved, debits positive.
    moved: defaultdict[tuple[str | None, str, str], Counter[date]] = field(default_factory=lambda: defaultdict(Counter))

    # Questions

    def decide(self, event: Event) -> tuple[set[str], Moves]:
        """The codes of all refusals that apply, and what moves when none does."""
        refusals, moves = self._rule(event)
        refusals = set(refusals)
        if event.effective_at > self.today:
            refusals.add("effective_date_refused")
        for loan_id in self._touched(event, moves):
            if event.effective_at < self.loans[loan_id].opened_on:
                refusals.add("effective_date_refused")
        for (layer, currency), net in self._nets(moves, "layer", "currency").items():
            if net != 0:
                refusals.add("unbalanced_entry")
            if sum(abs(m.debit_minor) for m in moves if (m.layer, m.currency) == (layer, currency)) > 2 * LARGEST:
                refusals.add("amount_out_of_range")
        for (code, layer, loan_id), net in self._nets(moves, "code", "layer", "loan_id").items():
            if loan_id is None or code not in OF_A_LOAN:
                continue
            change = net if code in DEBIT_ACCOUNTS else -net
            if any(abs(held + change) > LARGEST for held in self._held(loan_id, code, layer, event.effective_at)):
                refusals.add("amount_out_of_range")
            if (
                code in NEVER_BELOW_ZERO
                and change < 0
                and -change > self.free(loan_id, code, layer, event.effective_at)
            ):
                refusals.add("amount_exceeds_balance")
        return refusals, moves

    def take(self, entry_id: str, event: Event, moves: Moves) -> None:
        self.posted.append(Posted(entry_id, event, event.effective_at, moves))
        for move in moves:
            self.moved[move.loan_id, move.code, move.layer][event.effective_at] += move.debit_minor

    def balance(self, loan_id: str, code: str, layer: str = "SETTLED", through: date = date.max) -> int:
        """On the account's own side, of entries effective on or before a day."""
        debits = sum(minor for day, minor in self.moved[loan_id, code, layer].items() if day <= through)
        return debits if code in DEBIT_ACCOUNTS else -debits

    def _held(self, loan_id: str, code: str, layer: str, since: date) -> list[int]:
        """The balances at the ends of all days from `since` on at which something moved."""
        days = {since, *(day for day in self.moved[loan_id, code, layer] if day > since)}
        return [self.balance(loan_id, code, layer, day) for day in days]

    def lowest(self, loan_id: str, code: str, layer: str, since: date) -> int:
        """The smallest balance at the end of any day from `since` on."""
        return min(self._held(loan_id, code, layer, since))

    def free(self, loan_id: str, code: str, layer: str, since: date) -> int:
        """What may be taken on a day without any later day falling below zero."""
        return max(0, self.lowest(loan_id, code, layer, since))

    def totals(self) -> Counter[tuple[str, str, str, str | None]]:
        """Every account, layer, currency and loan with what it holds, debits positive; zeros are not there."""
        return totals(move for posted in self.posted for move in posted.moves)

    def by_id(self, entry_id: str) -> Posted:
        return next(posted for posted in self.posted if posted.entry_id == entry_id)

    def reversed(self, entry_id: str) -> bool:
        return any(isinstance(p.event, Reversal) and p.event.reverses_entry_id == entry_id for p in self.posted)

    def settled(self, entry_id: str) -> bool:
        return any(
            isinstance(p.event, DisbursementSettled) and p.event.disbursement_event_id == entry_id for p in self.posted
        )

    # Rules

    def _rule(self, event: Event) -> tuple[Iterable[str], Moves]:
        if isinstance(event, Disbursement):
            return self._disbursement(event)
        if isinstance(event, DisbursementSettled):
            return self._settlement(event)
        if isinstance(event, PaymentReceived):
            return self._payment(event)
        if isinstance(event, Accrual):
            return self._accrual(event)
        if isinstance(event, Reversal):
            return self._reversal(event)
        assert isinstance(event, ManualAdjustment)
        return self._adjustment(event)

    def _disbursement(self, event: Disbursement) -> tuple[Iterable[str], Moves]:
        terms = self.loans[event.loan_id]
        refusals = []
        if event.currency != terms.currency:
            refusals.append("currency_mismatch")
        lent = self.balance(event.loan_id, "1100", "SETTLED") + self.balance(event.loan_id, "1100", "PENDING")
        if terms.limit_minor is not None and lent + event.amount_minor > terms.limit_minor:
            refusals.append("amount_exceeds_limit")
        return refusals, self._pair("1100", "1050", event.amount_minor, event.layer, event.loan_id)

    def _settlement(self, event: DisbursementSettled) -> tuple[Iterable[str], Moves]:
        of = self.by_id(event.disbursement_event_id)
        refusals = []
        if self.settled(of.entry_id):
            refusals.append("already_settled")
        if self.reversed(of.entry_id):
            refusals.append("already_reversed")
        if event.effective_at < of.day:
            refusals.append("effective_date_refused")
        lent = next(move for move in of.moves if move.code == "1100")
        if lent.layer == "SETTLED":
            return refusals, self._pair("1050", "1000", lent.debit_minor, "SETTLED", lent.loan_id)
        leaving = tuple(_turned(move) for move in of.moves)
        return refusals, leaving + self._pair("1100", "1000", lent.debit_minor, "SETTLED", lent.loan_id)

    def _payment(self, event: PaymentReceived) -> tuple[Iterable[str], Moves]:
        refusals = [] if event.currency == self.loans[event.loan_id].currency else ["currency_mismatch"]
        if event.layer == "PENDING":
            return refusals, self._pair("1010", "2000", event.amount_minor, "PENDING", event.loan_id)
        moves = [Move("1000", "SETTLED", event.currency, event.loan_id, event.amount_minor)]
        left = event.amount_minor
        for name in self.waterfall:
            part = min(left, self.free(event.loan_id, OWED[name], "SETTLED", event.effective_at))
            moves.append(Move(OWED[name], "SETTLED", event.currency, event.loan_id, -part))
            left -= part
        moves.append(Move("2000", "SETTLED", event.currency, event.loan_id, -left))
        return refusals, tuple(move for move in moves if move.debit_minor != 0)

    def _accrual(self, event: Accrual) -> tuple[Iterable[str], Moves]:
        refusals = []
        moves: Moves = ()
        for item in event.loans:
            day_before = date.fromordinal(event.effective_at.toordinal() - 1)
            if item.outstanding_principal_minor != self.balance(item.loan_id, "1100", "SETTLED", day_before):
                refusals.append("validation_failed")
            if self._has_accrued(item.loan_id, event.effective_at):
                refusals.append("accrual_already_posted")
            if item.interest_minor:
                moves += self._pair("1200", "4000", item.interest_minor, "SETTLED", item.loan_id)
        if not moves or len({item.loan_id for item in event.loans}) < len(event.loans):
            refusals.append("validation_failed")
        return refusals, moves

    def _has_accrued(self, loan_id: str, day: date) -> bool:
        return any(
            isinstance(p.event, Accrual)
            and p.day == day
            and loan_id in p.event.loan_ids
            and not self.reversed(p.entry_id)
            for p in self.posted
        )

    def _reversal(self, event: Reversal) -> tuple[Iterable[str], Moves]:
        of = self.by_id(event.reverses_entry_id)
        refusals = []
        if self.reversed(of.entry_id):
            refusals.append("already_reversed")
        if isinstance(of.event, Reversal | DisbursementSettled) or self.settled(of.entry_id):
            refusals.append("not_reversible")
        if event.effective_at < of.day:
            refusals.append("effective_date_refused")
        return refusals, tuple(_turned(move) for move in of.moves)

    def _adjustment(self, event: ManualAdjustment) -> tuple[Iterable[str], Moves]:
        refusals = []
        moves = []
        for line in event.lines:
            if line.account not in DEBIT_ACCOUNTS | CREDIT_ACCOUNTS:
                refusals.append("account_not_found")
            if line.account in OF_A_LOAN and line.loan_id is None:
                refusals.append("validation_failed")
            if line.loan_id is not None and line.currency != self.loans[line.loan_id].currency:
                refusals.append("currency_mismatch")
            debit = line.amount_minor if line.direction == "DR" else -line.amount_minor
            moves.append(Move(line.account, line.layer, line.currency, line.loan_id, debit))
        return refusals, tuple(moves)

    # Small change

    def _pair(self, debit: str, credit: str, minor: int, layer: str, loan_id: str | None) -> Moves:
        currency = self.loans[loan_id].currency if loan_id else "USD"
        return Move(debit, layer, currency, loan_id, minor), Move(credit, layer, currency, loan_id, -minor)

    def _touched(self, event: Event, moves: Moves) -> set[str]:
        return {*event.loan_ids, *(move.loan_id for move in moves if move.loan_id is not None)}

    @staticmethod
    def _nets(moves: Moves, *names: str) -> Counter[tuple[str, ...]]:
        nets: Counter[tuple[str, ...]] = Counter()
        for move in moves:
            nets[tuple(getattr(move, name) for name in names)] += move.debit_minor
        return nets


def totals(moves: Iterable[Move]) -> Counter[tuple[str, str, str, str | None]]:
    found: Counter[tuple[str, str, str, str | None]] = Counter()
    for move in moves:
        found[move.code, move.layer, move.currency, move.loan_id] += move.debit_minor
    return Counter({cell: minor for cell, minor in found.items() if minor != 0})


def _turned(move: Move) -> Move:
    return Move(move.code, move.layer, move.currency, move.loan_id, -move.debit_minor)
