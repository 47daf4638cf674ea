"""Interest as exact integers: day counts and simple interest. Pure; nothing here knows a loan, a posting or the clock.

A year fraction is a count of 1/1,603,080 of a year, interest a count of 1/(10,000 x 1,603,080) of a minor unit, so that every
day count and every rate in basis points is a whole number. Only `rounded` rounds, once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from ledger.money import round_half_even

YEAR = 1_603_080  # The least common multiple of 360, 365 and 366.
MINOR_UNIT = 10_000 * YEAR


def year_fraction(convention: str, start: date, end: date) -> int:
    """The time from `start` to `end` in 1/1,603,080 of a year. ISDA 2006 section 4.16: (d) ACT_365, (e) ACT_360,
    (b) ACT_ACT, (f) 30_360. ValueError when `end` is before `start` or the convention is unknown."""
    if end < start:
        raise ValueError(f"{end} is before {start}")
    days = (end - start).days
    if convention == "ACT_365":
        return days * (YEAR // 365)
    if convention == "ACT_360":
        return days * (YEAR // 360)
    if convention == "ACT_ACT":
        leap = _days_in_leap_years_before(end) - _days_in_leap_years_before(start)
        return leap * (YEAR // 366) + (days - leap) * (YEAR // 365)
    if convention == "30_360":
        return _days_30_360(start, end) * (YEAR // 360)
    raise ValueError(f"{convention} is not a day count")


def interest_exact(
    movements: Iterable[tuple[date, int]], annual_rate_bps: int, convention: str, opened_on: date, through: date
) -> int:
    """Simple interest since the opening on a principal that moved by (date, minor units), at one rate.

    A movement counts from its own date on. Each share of the year is a difference of two fractions since `opened_on`, so
    that a period split anywhere sums to the whole, under 30_360 too.
    """
    whole = year_fraction(convention, opened_on, through)
    return sum(
        minor * annual_rate_bps * (whole - year_fraction(convention, opened_on, moved_on))
        for moved_on, minor in movements
        if moved_on < through
    )


def rounded(exact: int) -> int:
    """Exact interest in whole minor units, a tie to the even one."""
    return round_half_even(exact, MINOR_UNIT)


def _days_in_leap_years_before(day: date) -> int:
    """How many days before `day`, since the year 1, lie in leap years."""
    years = day.year - 1
    leap_years = years // 4 - years // 100 + years // 400
    in_this_year = (day - date(day.year, 1, 1)).days if _is_leap(day.year) else 0
    return leap_years * 366 + in_this_year


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _days_30_360(start: date, end: date) -> int:
    first = min(start.day, 30)
    last = 30 if end.day == 31 and first == 30 else end.day
    return 360 * (end.year - start.year) + 30 * (end.month - start.month) + last - first
