"""State: the frozen view of the loans that an event touches, as rules read it.

It is what the database said under the loans' locks (`open_posting`), plus what has been posted in this very transaction.
No database access here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date

from ledger.chart import Account, Chart
from ledger.events import DEBIT, SETTLED, Line

BalanceKey = tuple[str, str]  # account code, layer


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
    balances: dict[BalanceKey, int] = field(default_factory=dict)
    later: list[tuple[date, str, str, int]] = field(default_factory=list)
    # The last revision accrued for the date that was asked for, and whether its entry has been reversed.
    accrual: tuple[int, bool] | None = None

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


@dataclass(frozen=True, slots=True)
class EntryState:
    """A journal entry that an event is about, and what has become of it."""

    entry_id: str
    event_type: str
    effective_at: date
    lines: tuple[Line, ...]
    settles_entry_id: str | None = None
    reversed_by: str | None = None  # The kind of the entry that reversed it: reversal or payment_returned.
    settled_by: str | None = None


@dataclass(slots=True)
class State:
    """Everything that rules may know: today in the tenant's zone, the chart, the loans, the entry in question."""

    today: date
    chart: Chart
    loans: dict[str, LoanState]
    entry: EntryState | None = None

    def apply(self, lines: Iterable[Line], effective_at: date) -> None:
        """Take posted lines in, so that the next event of the same transaction sees them."""
        for line in lines:
            account = self.chart[line.account]
            if line.loan_id is None or not account.per_loan:
                continue
            loan = self.loans[line.loan_id]
            key = (account.code, line.layer)
            net = line.amount_minor if line.direction == DEBIT else -line.amount_minor
            loan.balances[key] = loan.balances.get(key, 0) + _on_normal_side(account, net)
            loan.later.append((effective_at, account.code, line.layer, net))


def _on_normal_side(account: Account, net_minor: int) -> int:
    return net_minor if account.normal_side == DEBIT else -net_minor
