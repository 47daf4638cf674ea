"""The naive model of interest: one day after the other, in whole numbers, from what was agreed and lent.

Written from the words of the day counts and of the engine's rules; it shares no arithmetic with ledger/interest.py or with
PostgreSQL's functions. What the engine posts is held against it.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from fractions import Fraction
from math import lcm

DAY = timedelta(days=1)
YEAR = lcm(360, 365, 366)
# Of a minor unit, at a rate in hundredths of a per cent.
PARTS = 10_000 * YEAR


@dataclass(frozen=True)
class ProgramTerms:
    """What holds for a program from a date on."""

    since: date
    annual_rate_bps: int
    by_engine: bool = True


@dataclass(frozen=True)
class OwnTerms:
    """What holds for a loan from a date on; None leaves it to older terms, or to the program."""

    since: date
    annual_rate_bps: int | None = None
    convention: str | None = None


@dataclass(frozen=True)
class Pause:
    first: date
    last: date | None = None

    def covers(self, day: date) -> bool:
        return self.first <= day and (self.last is None or day <= self.last)


@dataclass
class ModelProgram:
    convention: str
    # In the order in which they were written: of two for one date the later one holds.
    terms: list[ProgramTerms] = field(default_factory=list)

    def on(self, day: date) -> ProgramTerms:
        return _in_force(self.terms, day)


@dataclass
class ModelLoan:
    """A loan since its opening. `forget` after every change: what was counted from a day on does not hold any more."""

    program: ModelProgram
    opened_on: date
    # Principal by the day from which it counts.
    moved: dict[date, int] = field(default_factory=dict)
    # By the entry that brought them: its reversal takes them back.
    own_terms: dict[str, OwnTerms] = field(default_factory=dict)
    pauses: list[Pause] = field(default_factory=list)
    # Accruals that were reversed: their date, and the day behind which their days begin.
    given_back: dict[date, date] = field(default_factory=dict)
    _counted: list[int] = field(default_factory=lambda: [0])

    def move(self, day: date, minor: int) -> None:
        self.moved[day] = self.moved.get(day, 0) + minor
        self.forget(day)

    def forget(self, since: date) -> None:
        """Count again from a date on."""
        del self._counted[max((since - self.opened_on).days, 1) :]

    def exact(self, through: date) -> int:
        """Interest since the opening, in 1/`PARTS` minor units."""
        days = (through - self.opened_on).days
        while len(self._counted) <= days:
            day = self.opened_on + len(self._counted) * DAY
            self._counted.append(self._counted[-1] + self._of_a_day(day))
        return self._counted[days]

    def whole(self, through: date) -> int:
        """The same in minor units, a tie to the even one."""
        return round(Fraction(self.exact(through), PARTS))

    def _of_a_day(self, day: date) -> int:
        """The interest of an accrual date: for the day that ends with it, at what held when that day began."""
        began = day - DAY
        if not self.program.on(day).by_engine or any(pause.covers(day) for pause in self._pauses_in_force()):
            return 0
        principal = sum(minor for moved_on, minor in self.moved.items() if moved_on <= began)
        rates = [terms for terms in self.own_terms.values() if terms.annual_rate_bps is not None]
        conventions = [terms for terms in self.own_terms.values() if terms.convention is not None]
        rate = self.program.on(began).annual_rate_bps
        if any(terms.since <= began for terms in rates):
            rate = _in_force(rates, began).annual_rate_bps or 0
        convention = self.program.convention
        if any(terms.since <= began for terms in conventions):
            convention = _in_force(conventions, began).convention or ""
        return principal * rate * _share_of_a_year(convention, self.opened_on, day)

    def _pauses_in_force(self) -> Iterator[Pause]:
        yield from {pause.first: pause for pause in self.pauses}.values()
        for day, since in self.given_back.items():
            yield Pause(since + DAY, day)


def _in_force(terms: list, day: date):  # type: ignore[type-arg, no-untyped-def]
    """The last one written of those with the latest date."""
    started = [each for each in terms if each.since <= day]
    latest = max(each.since for each in started)
    return next(each for each in reversed(started) if each.since == latest)


def _share_of_a_year(convention: str, opened_on: date, day: date) -> int:
    """Of the day that ends at the beginning of `day`, in 1/`YEAR`."""
    began = day - DAY
    if convention == "ACT_360":
        return YEAR // 360
    if convention == "ACT_ACT":
        return YEAR // (366 if calendar.isleap(began.year) else 365)
    if convention == "30_360":
        return (_days_of_30(opened_on, day) - _days_of_30(opened_on, began)) * YEAR // 360
    assert convention == "ACT_365"
    return YEAR // 365


def _days_of_30(start: date, end: date) -> int:
    """ISDA 2006 section 4.16(f): months of 30 days. The 31st is a 30th at the start; at the end, only after such a start."""
    first = 30 if start.day == 31 else start.day
    last = 30 if end.day == 31 and first == 30 else end.day
    return (end.year * 12 + end.month - start.year * 12 - start.month) * 30 + last - first
