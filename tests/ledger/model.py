"""The naive model of the books: a list of what was posted, read again from its beginning for every question.

Written from the words of the posting rules, not from ledger/rules: no balance is kept, no availability is worked out
backwards, no state is stored, nothing is locked. It says for an event which refusals apply (all of them, in no order) or
which amounts move. What the product does is held against it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date

from ledger.events import (
    Accrual,
    ChargeOff,
    Disbursement,
    DisbursementSettled,
    Event,
    FeeAssessed,
    FeeWaived,
    ManualAdjustment,
    MoneyEvent,
    PaymentReceived,
    PaymentReturned,
    PaymentSettled,
    PaymentUnallocated,
    Recovery,
    Refinance,
    Restructure,
    Reversal,
    SuspenseAllocated,
)

LARGEST = 2**63 - 1

# Debits of these accounts make them larger; of the others, smaller.
DEBIT_ACCOUNTS = {"1000", "1010", "1100", "1200", "1300", "5000", "5100", "9000"}
CREDIT_ACCOUNTS = {"1050", "2000", "3000", "4000", "4100", "4200", "9100"}
OF_A_LOAN = {"1100", "1200", "1300", "2000", "9000"}
NEVER_BELOW_ZERO = {"1100", "1200", "1300", "2000"}
OWED = {"fees": "1300", "interest": "1200", "principal": "1100"}
SUSPENSE = "2000"


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
class Decision:
    """What the model says to an event: the codes of all refusals that apply, and what moves when there is none.

    `undone`: of which suspense allocations (entry id) a return takes how much back.
    """

    refusals: frozenset[str]
    moves: Moves
    undone: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Posted:
    """An event that the books took in."""

    entry_id: str
    event: Event
    moves: Moves
    undone: tuple[tuple[str, int], ...] = ()

    @property
    def day(self) -> date:
        return self.event.effective_at


@dataclass(frozen=True)
class Terms:
    """What the model must know of a loan."""

    borrower_id: str
    program_id: str
    opened_on: date
    currency: str = "USD"
    limit_minor: int | None = None


@dataclass
class Model:
    today: date
    loans: dict[str, Terms]
    # (program, from which day, order), in the order in which they were written.
    waterfalls: list[tuple[str, date, tuple[str, ...]]] = field(default_factory=list)
    posted: list[Posted] = field(default_factory=list)
    closed_through: date = date.min
    # The moves of `posted`, sorted into pigeonholes: (loan, code, layer) -> day -> what moved, debits positive.
    moved: defaultdict[tuple[str | None, str, str], Counter[date]] = field(default_factory=lambda: defaultdict(Counter))

    # The life

    def decide(self, event: Event) -> Decision:
        refusals, moves, undone = self._rule(event)
        return Decision(frozenset({*refusals, *self._common(event, moves)}), moves, undone)

    def take(self, entry_id: str, event: Event, decision: Decision) -> None:
        self.posted.append(Posted(entry_id, event, decision.moves, decision.undone))
        for move in decision.moves:
            self.moved[move.loan_id, move.code, move.layer][event.effective_at] += move.debit_minor

    def forget(self, last: int) -> None:
        """As if the last events had never been taken: nothing is left of them."""
        for gone in self.posted[len(self.posted) - last :]:
            for move in gone.moves:
                self.moved[move.loan_id, move.code, move.layer][gone.day] -= move.debit_minor
        del self.posted[len(self.posted) - last :]

    def rename(self, names: dict[str, str]) -> None:
        """Entries taken under names for the moment get the ids that they have been given."""
        self.posted = [
            replace(
                p,
                entry_id=names.get(p.entry_id, p.entry_id),
                undone=tuple((names.get(entry_id, entry_id), minor) for entry_id, minor in p.undone),
            )
            for p in self.posted
        ]

    def close(self, through: date) -> set[str]:
        """Close a period. Answers the refusals."""
        refusals = set()
        if through > self.today:
            refusals.add("effective_date_refused")
        if through <= self.closed_through:
            refusals.add("period_closed")
        if not refusals:
            self.closed_through = through
        return refusals

    # Questions

    def balance(self, loan_id: str, code: str, layer: str = "SETTLED", through: date = date.max) -> int:
        """On the account's own side, of entries effective on or before a day."""
        debits = sum(minor for day, minor in self.moved[loan_id, code, layer].items() if day <= through)
        return debits if code in DEBIT_ACCOUNTS else -debits

    def lowest(self, loan_id: str, code: str, layer: str, since: date) -> int:
        """The smallest balance at the end of any day from `since` on."""
        return min(self._held(loan_id, code, layer, since))

    def free(self, loan_id: str, code: str, layer: str, since: date) -> int:
        """What may be taken on a day without any later day falling below zero."""
        return max(0, self.lowest(loan_id, code, layer, since))

    def state(self, loan_id: str) -> str:
        if any(isinstance(p.event, ChargeOff) and p.event.loan_id == loan_id for p in self._standing()):
            return "charged_off"
        if any(isinstance(p.event, Refinance) and p.event.loan_id == loan_id for p in self._standing()):
            return "refinanced"
        lent = any(
            (move.loan_id, move.code, move.layer) == (loan_id, "1100", "SETTLED") and move.debit_minor > 0
            for p in self._standing()
            if not isinstance(p.event, PaymentReturned | PaymentUnallocated)
            for move in p.moves
        )
        return "paid_off" if lent and not any(self._owed(loan_id).values()) else "open"

    def totals(self) -> Counter[tuple[str, str, str, str | None]]:
        """Every account, layer, currency and loan with what it holds, debits positive; zeros are not there."""
        return totals(move for posted in self.posted for move in posted.moves)

    def by_id(self, entry_id: str) -> Posted:
        return next(posted for posted in self.posted if posted.entry_id == entry_id)

    def reversed(self, entry_id: str) -> bool:
        return any(isinstance(p.event, Reversal) and p.event.reverses_entry_id == entry_id for p in self.posted)

    def returned(self, entry_id: str) -> bool:
        return any(isinstance(p.event, PaymentReturned) and p.event.payment_event_id == entry_id for p in self.posted)

    def settlement(self, entry_id: str) -> Posted | None:
        """Of a payment or a disbursement."""
        for p in self.posted:
            if isinstance(p.event, DisbursementSettled) and p.event.disbursement_event_id == entry_id:
                return p
            if isinstance(p.event, PaymentSettled) and p.event.payment_event_id == entry_id:
                return p
        return None

    def put_back(self, entry_id: str) -> bool:
        """Whether a replan has put back into suspense what a payment met."""
        return any(
            isinstance(p.event, PaymentUnallocated) and p.event.payment_event_id == entry_id for p in self.posted
        )

    def touched(self, loan_id: str) -> list[Posted]:
        """The entries with a line of the loan."""
        return [p for p in self.posted if any(move.loan_id == loan_id for move in p.moves)]

    def _standing(self) -> Iterator[Posted]:
        """What was posted and not reversed, without the reversals."""
        undone = {p.event.reverses_entry_id for p in self.posted if isinstance(p.event, Reversal)}
        return (p for p in self.posted if p.entry_id not in undone and not isinstance(p.event, Reversal))

    def _held(self, loan_id: str, code: str, layer: str, since: date) -> list[int]:
        """The balances at the ends of `since` and of all later days at which something moved."""
        by_day = self.moved[loan_id, code, layer]
        side = 1 if code in DEBIT_ACCOUNTS else -1
        debits = sum(minor for day, minor in by_day.items() if day <= since)
        held = [side * debits]
        for day in sorted(day for day in by_day if day > since):
            debits += by_day[day]
            held.append(side * debits)
        return held

    def _owed(self, loan_id: str) -> dict[str, int]:
        return {name: self.balance(loan_id, code) for name, code in OWED.items()}

    # What every kind refuses

    def _common(self, event: Event, moves: Moves) -> Iterator[str]:
        if event.effective_at > self.today:
            yield "effective_date_refused"
        if event.effective_at <= self.closed_through:
            yield "period_closed"
        for loan_id in {*event.loan_ids, *(move.loan_id for move in moves if move.loan_id is not None)}:
            if event.effective_at < self.loans[loan_id].opened_on:
                yield "effective_date_refused"
        if isinstance(event, MoneyEvent):
            if event.currency != self.loans[event.loan_id].currency:
                yield "currency_mismatch"
            if event.borrower_id not in (None, self.loans[event.loan_id].borrower_id):
                yield "borrower_mismatch"
        for cell, net in _nets(moves, "layer", "currency").items():
            if net != 0:
                yield "unbalanced_entry"
            if sum(abs(move.debit_minor) for move in moves if (move.layer, move.currency) == cell) > 2 * LARGEST:
                yield "amount_out_of_range"
        for (code, layer, loan_id), net in _nets(moves, "code", "layer", "loan_id").items():
            if loan_id is None or code not in OF_A_LOAN:
                continue
            change = net if code in DEBIT_ACCOUNTS else -net
            held = self._held(loan_id, code, layer, event.effective_at)
            if any(abs(balance + change) > LARGEST for balance in held):
                yield "amount_out_of_range"
            if code in NEVER_BELOW_ZERO and change < 0 and -change > max(0, min(held)):
                yield "amount_exceeds_balance"

    # Rules: refusals, moves, and what a return undoes

    def _rule(self, event: Event) -> tuple[Iterable[str], Moves, tuple[tuple[str, int], ...]]:
        if isinstance(event, PaymentReturned):
            return self._return(event)
        rules = {
            Disbursement: self._disbursement,
            DisbursementSettled: self._disbursement_settled,
            Accrual: self._accrual,
            PaymentReceived: self._payment,
            PaymentSettled: self._payment_settled,
            SuspenseAllocated: self._suspense_allocated,
            PaymentUnallocated: self._unallocated,
            FeeAssessed: self._fee,
            FeeWaived: self._waiver,
            ChargeOff: self._chargeoff,
            Recovery: self._recovery,
            Refinance: self._refinance,
            Restructure: self._restructure,
            Reversal: self._reversal,
            ManualAdjustment: self._adjustment,
        }
        refusals, moves = rules[type(event)](event)  # type: ignore[operator]
        return refusals, tuple(move for move in moves if move.debit_minor != 0), ()

    def _disbursement(self, event: Disbursement) -> tuple[Iterable[str], Moves]:
        refusals = self._ended(event.loan_id) | self._above_limit(event.loan_id, event.amount_minor)
        return refusals, self._pair("1100", "1050", event.amount_minor, event.layer, event.loan_id)

    def _disbursement_settled(self, event: DisbursementSettled) -> tuple[Iterable[str], Moves]:
        of = self.by_id(event.disbursement_event_id)
        refusals = set()
        if self.settlement(of.entry_id):
            refusals.add("already_settled")
        if self.reversed(of.entry_id):
            refusals.add("already_reversed")
        if event.effective_at < of.day:
            refusals.add("effective_date_refused")
        lent = next(move for move in of.moves if move.code == "1100")
        if lent.layer == "SETTLED":
            return refusals, self._pair("1050", "1000", lent.debit_minor, "SETTLED", lent.loan_id)
        return refusals, _turned(of.moves) + self._pair("1100", "1000", lent.debit_minor, "SETTLED", lent.loan_id)

    def _payment(self, event: PaymentReceived) -> tuple[Iterable[str], Moves]:
        refusals = {"loan_state_refuses"} if self.state(event.loan_id) == "charged_off" else set()
        if event.layer == "PENDING":
            return refusals, self._pair("1010", "2000", event.amount_minor, "PENDING", event.loan_id)
        return refusals, self._money_in(event.loan_id, event.amount_minor, event.effective_at)

    def _payment_settled(self, event: PaymentSettled) -> tuple[Iterable[str], Moves]:
        of = self.by_id(event.payment_event_id)
        assert isinstance(of.event, PaymentReceived)
        refusals = set()
        if of.event.layer == "SETTLED" or self.settlement(of.entry_id):
            refusals.add("already_settled")
        if self.returned(of.entry_id):
            refusals.add("already_returned")
        if self.reversed(of.entry_id):
            refusals.add("already_reversed")
        if event.effective_at < of.day:
            refusals.add("effective_date_refused")
        if self.state(of.event.loan_id) == "charged_off":
            refusals.add("loan_state_refuses")
        arriving = self._money_in(of.event.loan_id, of.event.amount_minor, event.effective_at)
        return refusals, _turned(of.moves) + arriving

    def _suspense_allocated(self, event: SuspenseAllocated) -> tuple[Iterable[str], Moves]:
        parts, left = self._waterfall(event.loan_id, event.amount_minor, event.effective_at)
        taken = self._move(SUSPENSE, event.amount_minor, event.loan_id)
        return {"amount_exceeds_balance"} if left else set(), (taken, *parts)

    def _unallocated(self, event: PaymentUnallocated) -> tuple[Iterable[str], Moves]:
        """Only a replan asks for it, of payments that stand."""
        of = self.by_id(event.payment_event_id)
        met = [move for move in (self.settlement(of.entry_id) or of).moves if move.code in OWED.values()]
        back = -sum(move.debit_minor for move in met)
        return set(), (*_turned(tuple(met)), self._move(SUSPENSE, -back, of.event.loan_ids[0]))

    def _return(self, event: PaymentReturned) -> tuple[Iterable[str], Moves, tuple[tuple[str, int], ...]]:
        of = self.by_id(event.payment_event_id)
        moving = self.settlement(of.entry_id) or of
        refusals = set()
        if self.returned(of.entry_id):
            refusals.add("already_returned")
        if self.reversed(of.entry_id):
            refusals.add("already_reversed")
        if event.effective_at < moving.day:
            refusals.add("effective_date_refused")
        # Of a settlement its own moves, without those that take the announcement back.
        (loan_id,) = of.event.loan_ids
        mirror = _turned(tuple(move for move in moving.moves if moving is of or move.layer == "SETTLED"))
        if self.put_back(of.entry_id):
            given = -sum(move.debit_minor for move in mirror if move.code == "1000")
            mirror = (self._move("1000", -given, loan_id), self._move(SUSPENSE, given, loan_id))
        layer = mirror[0].layer
        needed = sum(move.debit_minor for move in mirror if move.code == SUSPENSE)
        missing = max(0, needed - self.free(loan_id, SUSPENSE, layer, event.effective_at))
        undone: list[tuple[str, int]] = []
        moves = [move for move in mirror if move.code != SUSPENSE]
        for allocation, standing in self._allocations(loan_id, of.entry_id) if layer == "SETTLED" else ():
            part = min(missing, standing)
            if part:
                undone.append((allocation.entry_id, part))
                moves += _last_of(allocation, standing, part)
                missing -= part
        moves.append(self._move(SUSPENSE, needed - missing, loan_id, layer))
        moves.append(self._move("1100", missing, loan_id, layer))
        moves = [move for move in moves if move.debit_minor != 0]
        return refusals, tuple(moves), tuple(undone)

    def _fee(self, event: FeeAssessed) -> tuple[Iterable[str], Moves]:
        return self._ended(event.loan_id), self._pair("1300", "4100", event.amount_minor, "SETTLED", event.loan_id)

    def _waiver(self, event: FeeWaived) -> tuple[Iterable[str], Moves]:
        return set(), self._pair("5100", "1300", event.amount_minor, "SETTLED", event.loan_id)

    def _chargeoff(self, event: ChargeOff) -> tuple[Iterable[str], Moves]:
        owed = self._owed(event.loan_id)
        refusals = self._ended(event.loan_id)
        if not any(owed.values()):
            refusals.add("loan_state_refuses")
        return refusals, (self._move("5000", sum(owed.values()), event.loan_id), *self._paid_off(event.loan_id))

    def _recovery(self, event: Recovery) -> tuple[Iterable[str], Moves]:
        refusals = set() if self.state(event.loan_id) == "charged_off" else {"loan_state_refuses"}
        return refusals, self._pair("1000", "4200", event.amount_minor, "SETTLED", event.loan_id)

    def _refinance(self, event: Refinance) -> tuple[Iterable[str], Moves]:
        old, new = self.loans[event.loan_id], self.loans[event.new_loan_id]
        lent = sum(self._owed(event.loan_id).values()) + event.cash_out_minor
        refusals = self._ended(event.loan_id) | self._above_limit(event.new_loan_id, lent)
        if not any(self._owed(event.loan_id).values()):
            refusals.add("loan_state_refuses")
        if old.currency != new.currency:
            refusals.add("currency_mismatch")
        if old.borrower_id != new.borrower_id:
            refusals.add("borrower_mismatch")
        cash_out = self._move("1050", -event.cash_out_minor, event.new_loan_id)
        return refusals, (self._move("1100", lent, event.new_loan_id), *self._paid_off(event.loan_id), cash_out)

    def _restructure(self, event: Restructure) -> tuple[Iterable[str], Moves]:
        refusals = set() if self.state(event.loan_id) == "open" else {"loan_state_refuses"}
        owed = self._owed(event.loan_id)
        interest = owed["interest"] if event.capitalise_interest else 0
        fees = owed["fees"] if event.capitalise_fees else 0
        return refusals, (
            self._move("1100", interest + fees, event.loan_id),
            self._move("1200", -interest, event.loan_id),
            self._move("1300", -fees, event.loan_id),
        )

    def _accrual(self, event: Accrual) -> tuple[Iterable[str], Moves]:
        refusals = set()
        moves: Moves = ()
        for item in event.loans:
            day_before = date.fromordinal(event.effective_at.toordinal() - 1)
            if item.outstanding_principal_minor != self.balance(item.loan_id, "1100", "SETTLED", day_before):
                refusals.add("validation_failed")
            if self.loans[item.loan_id].program_id != event.program_id:
                refusals.add("validation_failed")
            if self._has_accrued(item.loan_id, event.effective_at):
                refusals.add("accrual_already_posted")
            if item.interest_minor:
                moves += self._pair("1200", "4000", item.interest_minor, "SETTLED", item.loan_id)
        if not moves or len({item.loan_id for item in event.loans}) < len(event.loans):
            refusals.add("validation_failed")
        return refusals, moves

    def _has_accrued(self, loan_id: str, day: date) -> bool:
        return any(
            isinstance(p.event, Accrual) and p.day == day and loan_id in p.event.loan_ids for p in self._standing()
        )

    def _reversal(self, event: Reversal) -> tuple[Iterable[str], Moves]:
        of = self.by_id(event.reverses_entry_id)
        refusals = set()
        if self.reversed(of.entry_id):
            refusals.add("already_reversed")
        if self._is_final(of):
            refusals.add("not_reversible")
        if event.effective_at < of.day:
            refusals.add("effective_date_refused")
        return refusals, _turned(of.moves)

    def _is_final(self, of: Posted) -> bool:
        if isinstance(of.event, Reversal | PaymentReturned | DisbursementSettled | PaymentSettled | PaymentUnallocated):
            return True
        if isinstance(of.event, ChargeOff):
            loan_id = of.event.loan_id
            return any(isinstance(p.event, Recovery) and p.event.loan_id == loan_id for p in self._standing())
        if isinstance(of.event, Refinance):
            return len(self.touched(of.event.new_loan_id)) > 1
        if isinstance(of.event, SuspenseAllocated):
            return any(entry_id == of.entry_id for p in self.posted for entry_id, _ in p.undone)
        return bool(self.settlement(of.entry_id)) or self.returned(of.entry_id) or self.put_back(of.entry_id)

    def _adjustment(self, event: ManualAdjustment) -> tuple[Iterable[str], Moves]:
        refusals = set()
        moves = []
        for line in event.lines:
            if line.account not in DEBIT_ACCOUNTS | CREDIT_ACCOUNTS:
                refusals.add("account_not_found")
            if line.account in OF_A_LOAN and line.loan_id is None:
                refusals.add("validation_failed")
            if line.loan_id is not None and line.currency != self.loans[line.loan_id].currency:
                refusals.add("currency_mismatch")
            debit = line.amount_minor if line.direction == "DR" else -line.amount_minor
            moves.append(Move(line.account, line.layer, line.currency, line.loan_id, debit))
        return refusals, tuple(moves)

    # What rules share

    def _ended(self, loan_id: str) -> set[str]:
        return {"loan_state_refuses"} if self.state(loan_id) in ("charged_off", "refinanced") else set()

    def _above_limit(self, loan_id: str, more: int) -> set[str]:
        limit = self.loans[loan_id].limit_minor
        lent = self.balance(loan_id, "1100", "SETTLED") + self.balance(loan_id, "1100", "PENDING")
        return {"amount_exceeds_limit"} if limit is not None and lent + more > limit else set()

    def _order(self, loan_id: str, day: date) -> tuple[str, ...]:
        """The waterfall in force on a day: of the latest terms that had begun, the last that was written."""
        program_id = self.loans[loan_id].program_id
        begun = [(since, order) for of, since, order in self.waterfalls if of == program_id and since <= day]
        latest = max((since for since, _ in begun), default=None)
        return next((order for since, order in reversed(begun) if since == latest), ("fees", "interest", "principal"))

    def _waterfall(self, loan_id: str, minor: int, day: date) -> tuple[list[Move], int]:
        """The parts of an amount that meet receivables, and what is left of it."""
        parts = []
        for name in self._order(loan_id, day):
            part = min(minor, self.free(loan_id, OWED[name], "SETTLED", day))
            parts.append(self._move(OWED[name], -part, loan_id))
            minor -= part
        return [part for part in parts if part.debit_minor], minor

    def _money_in(self, loan_id: str, minor: int, day: date) -> Moves:
        """Cash comes; it meets what is owed, except that a refinanced loan takes nothing; the rest waits in suspense."""
        parts, left = self._waterfall(loan_id, minor, day)
        if self.state(loan_id) == "refinanced":
            parts, left = [], minor
        waiting = [self._move(SUSPENSE, -left, loan_id)] if left else []
        return (self._move("1000", minor, loan_id), *parts, *waiting)

    def _paid_off(self, loan_id: str) -> Moves:
        owed = self._owed(loan_id)
        return tuple(self._move(OWED[name], -owed[name], loan_id) for name in ("fees", "interest", "principal"))

    def _allocations(self, loan_id: str, payment: str) -> Iterator[tuple[Posted, int]]:
        """The loan's allocations from suspense that stand, the newest first, each with how much of it stands. Those by which
        a replan allocated this payment anew are its own money, and come before all others."""
        taken_back: Counter[str] = Counter()
        for p in self.posted:
            for entry_id, minor in p.undone:
                taken_back[entry_id] += minor
        standing = [
            (p, p.event)
            for p in self._standing()
            if isinstance(p.event, SuspenseAllocated) and p.event.loan_id == loan_id
        ]
        for own in (True, False):
            for p, event in reversed(standing):
                if (event.payment_event_id == payment) is own:
                    yield p, event.amount_minor - taken_back[p.entry_id]

    def _move(self, code: str, debit_minor: int, loan_id: str | None, layer: str = "SETTLED") -> Move:
        return Move(code, layer, self.loans[loan_id].currency if loan_id else "USD", loan_id, debit_minor)

    def _pair(self, debit: str, credit: str, minor: int, layer: str, loan_id: str | None) -> Moves:
        return self._move(debit, minor, loan_id, layer), self._move(credit, -minor, loan_id, layer)


def totals(moves: Iterable[Move]) -> Counter[tuple[str, str, str, str | None]]:
    found: Counter[tuple[str, str, str, str | None]] = Counter()
    for move in moves:
        found[move.code, move.layer, move.currency, move.loan_id] += move.debit_minor
    return Counter({cell: minor for cell, minor in found.items() if minor != 0})


def _nets(moves: Moves, *names: str) -> Counter[tuple[str, ...]]:
    nets: Counter[tuple[str, ...]] = Counter()
    for move in moves:
        nets[tuple(getattr(move, name) for name in names)] += move.debit_minor
    return nets


def _turned(moves: Moves) -> Moves:
    return tuple(Move(move.code, move.layer, move.currency, move.loan_id, -move.debit_minor) for move in moves)


def _last_of(allocation: Posted, standing: int, part: int) -> list[Move]:
    """The moves that take back the last `part` of what stands of an allocation: what came last goes first."""
    given = [move for move in allocation.moves if move.code != SUSPENSE]
    gone = sum(-move.debit_minor for move in given) - standing
    moves = []
    for move in reversed(given):
        spared = min(gone, -move.debit_minor)
        gone -= spared
        back = min(part, -move.debit_minor - spared)
        part -= back
        if back:
            moves.append(Move(move.code, move.layer, move.currency, move.loan_id, back))
            moves.append(Move(SUSPENSE, move.layer, move.currency, move.loan_id, -back))
    return moves
