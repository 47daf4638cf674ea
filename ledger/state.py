"""State: the frozen view of the loans that an event touches, as rules read it.

It is what the database said under the loans' locks (`open_posting`), plus what has been posted in this very transaction.
No database access here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date

from ledger.chart import RECEIVABLES, Account, Chart
from ledger.errors import EntryNotFound
from ledger.events import CREDIT, DEBIT, SETTLED, ChargeOff, Event, EventKind, Line, Refinance, Reversal

BalanceKey = tuple[str, str]  # account code, layer
Waterfalls = tuple[tuple[date, tuple[str, ...]], ...]  # in order of date: from when on, in which order

# What becomes of a loan. The last two are ended by an entry, and open again when that entry is reversed.
OPEN, PAID_OFF, CHARGED_OFF, REFINANCED = "open", "paid_off", "charged_off", "refinanced"
LOAN_STATES = (OPEN, PAID_OFF, CHARGED_OFF, REFINANCED)


@dataclass(slots=True)
class LoanState:
    """One loan: identity, terms, balances.

    `balances` are on each account's normal side; `later` are movements (date, code, layer, net with debits positive)
    effective after the date that the state was asked for.
    """

    loan_id: str
    borrower_id: str
    program_id: str
    currency: str
    opened_on: date
    version: int = 0
    principal_limit_minor: int | None = None
    day_count_convention: str = "ACT_365"
    waterfall: tuple[str, ...] = ("fees", "interest", "principal")
    accrual_mode: str = "client"
    # The program's waterfalls by date, asked for when one transaction has events of several dates.
    waterfalls: Waterfalls = ()
    balances: dict[BalanceKey, int] = field(default_factory=dict)
    later: list[tuple[date, str, str, int]] = field(default_factory=list)
    # The last revision accrued for the date that was asked for, and whether its entry has been reversed.
    accrual: tuple[int, bool] | None = None
    # How many entries in force have lent principal, and what ended the loan: charged_off, refinanced or nothing.
    draws: int = 0
    ended_as: str | None = None
    # Asked for when a return or a reversal needs them: suspense allocations in force, newest first; recoveries in force.
    allocations: tuple[AllocationState, ...] = ()
    recovered: bool = False
    # Asked for when the loan is to end: interest that the engine has counted and not posted; below zero when it posted too much.
    unposted_minor: int = 0

    def waterfall_on(self, day: date) -> tuple[str, ...]:
        """The order in which a payment of that day meets what is owed."""
        in_force = [order for since, order in self.waterfalls if since <= day]
        return in_force[-1] if in_force else self.waterfall

    def balance(self, account: Account, layer: str = SETTLED) -> int:
        """The balance after everything posted so far, whatever its date."""
        return self.balances.get((account.code, layer), 0)

    def before(self, account: Account, day: date, layer: str = SETTLED) -> int:
        """The balance of entries effective before `day`."""
        return self.balance(account, layer) - sum(
            movement for effective_at, movement in self._movements(account, layer) if effective_at >= day
        )

    def extremes(self, account: Account, on: date, layer: str = SETTLED) -> tuple[int, int]:
        """The smallest and the largest balance on any date from `on` on, with all entries posted so far."""
        balance = lowest = highest = self.balance(account, layer)
        by_date: dict[date, int] = {}
        for effective_at, movement in self._movements(account, layer):
            if effective_at > on:
                by_date[effective_at] = by_date.get(effective_at, 0) + movement
        for effective_at in sorted(by_date, reverse=True):
            balance -= by_date[effective_at]
            lowest, highest = min(lowest, balance), max(highest, balance)
        return lowest, highest

    def available(self, account: Account, on: date, layer: str = SETTLED) -> int:
        """What may be taken effective on `on`: the smallest balance on any date from then on, never below zero."""
        return max(self.extremes(account, on, layer)[0], 0)

    def _movements(self, account: Account, layer: str) -> Iterator[tuple[date, int]]:
        for effective_at, code, on_layer, net in self.later:
            if code == account.code and on_layer == layer:
                yield effective_at, _on_normal_side(account, net)


@dataclass(slots=True)
class EntryState:
    """A journal entry that an event is about, and what has become of it."""

    entry_id: str
    event_type: str
    effective_at: date
    lines: tuple[Line, ...]
    settles_entry_id: str | None = None
    reversed_by: str | None = None  # The kind of the entry that reversed it: reversal or payment_returned.
    settled_by: EntryState | None = None


@dataclass(frozen=True, slots=True)
class AllocationState:
    """An allocation from suspense that is in force, and how much of it returns of payments have undone."""

    entry_id: str
    lines: tuple[Line, ...]
    undone_minor: int = 0
    payment_event_id: str | None = None  # The payment that a replan allocated anew by it.

    @property
    def standing_minor(self) -> int:
        return sum(line.amount_minor for line in self.lines if line.direction == DEBIT) - self.undone_minor


@dataclass(slots=True)
class State:
    """Everything that rules may know: today in the tenant's zone, the chart, the loans, the entries in question, and the
    last day of the closed periods."""

    today: date
    chart: Chart
    loans: dict[str, LoanState]
    entries: dict[str, EntryState] = field(default_factory=dict)
    closed_through: date | None = None

    def entry(self, entry_id: str, kind: EventKind) -> EntryState:
        """The entry in question. Raises EntryNotFound when there is none, or one of another kind."""
        entry = self.entries.get(entry_id)
        if entry is None or entry.event_type != kind:
            raise EntryNotFound(f"There is no {kind} {entry_id}.")
        return entry

    def owed(self, loan: LoanState) -> dict[str, int]:
        """What the loan owes after everything posted so far: fees, interest, principal."""
        return {role: loan.balance(self.chart[role]) for role in RECEIVABLES}

    def of(self, loan: LoanState) -> str:
        """The loan's state: what ended it, else paid off when it was lent and owes nothing, else open."""
        if loan.ended_as is not None:
            return loan.ended_as
        return PAID_OFF if loan.draws and not any(self.owed(loan).values()) else OPEN

    def apply(self, event: Event, lines: Iterable[Line]) -> None:
        """Take a decided event in, so that the next event of the same transaction sees it."""
        lines = tuple(lines)
        for line in lines:
            account = self.chart[line.account]
            if line.loan_id is None or not account.per_loan:
                continue
            loan = self.loans[line.loan_id]
            key = (account.code, line.layer)
            net = line.amount_minor if line.direction == DEBIT else -line.amount_minor
            loan.balances[key] = loan.balances.get(key, 0) + _on_normal_side(account, net)
            loan.later.append((event.effective_at, account.code, line.layer, net))
        for loan_id, change in self._draws(event, lines).items():
            self.loans[loan_id].draws += change
        self._end(event)

    def _draws(self, event: Event, lines: Iterable[Line]) -> Mapping[str, int]:
        """Per loan 1 when the entry lends principal, -1 when it takes such an entry back. Putting payments back lends none."""
        if event.kind in (EventKind.PAYMENT_RETURNED, EventKind.PAYMENT_ALLOCATED):
            return {}
        side, change = (CREDIT, -1) if isinstance(event, Reversal) else (DEBIT, 1)
        principal = self.chart["principal"].code
        return {
            line.loan_id: change
            for line in lines
            if line.loan_id is not None
            and line.direction == side
            and line.layer == SETTLED
            and self.chart[line.account].code == principal
        }

    def _end(self, event: Event) -> None:
        if isinstance(event, ChargeOff):
            self.loans[event.loan_id].ended_as = CHARGED_OFF
        elif isinstance(event, Refinance):
            self.loans[event.loan_id].ended_as = REFINANCED
        elif isinstance(event, Reversal):
            original = self.entries[event.reverses_entry_id]
            for loan in self.loans_ended_by(original):
                loan.ended_as = None

    def loans_ended_by(self, entry: EntryState) -> list[LoanState]:
        """The loan that a charge-off or a refinance ended: the one whose receivables it credited."""
        if entry.event_type not in (EventKind.CHARGEOFF, EventKind.REFINANCE):
            return []
        codes = {self.chart[role].code for role in RECEIVABLES}
        ended = {
            line.loan_id
            for line in entry.lines
            if line.direction == CREDIT and self.chart[line.account].code in codes and line.loan_id is not None
        }
        return [self.loans[loan_id] for loan_id in ended]


def _on_normal_side(account: Account, net_minor: int) -> int:
    return net_minor if account.normal_side == DEBIT else -net_minor
