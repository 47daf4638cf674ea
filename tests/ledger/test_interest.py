"""Day counts and exact interest against published figures, without a database."""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest

from ledger.interest import MINOR_UNIT, YEAR, interest_exact, rounded, year_fraction
from ledger.models import DAY_COUNTS

# The 30/360 rows are the Bond Basis examples of ISDA's day count workbook; those of ACT_ACT are ISDA's memo of 1998.
FRACTIONS = [
    ("ACT_365", "2026-01-01", "2027-01-01", Fraction(365, 365)),
    ("ACT_365", "2024-01-01", "2025-01-01", Fraction(366, 365)),
    ("ACT_360", "2026-01-01", "2027-01-01", Fraction(365, 360)),
    ("ACT_360", "2026-02-28", "2026-03-01", Fraction(1, 360)),
    ("ACT_ACT", "2024-01-01", "2025-01-01", Fraction(1)),
    ("ACT_ACT", "2003-11-01", "2004-05-01", Fraction(61, 365) + Fraction(121, 366)),
    ("ACT_ACT", "1999-02-01", "1999-07-01", Fraction(150, 365)),
    ("ACT_ACT", "1999-07-30", "2000-01-30", Fraction(155, 365) + Fraction(29, 366)),
    ("ACT_ACT", "2023-12-31", "2024-01-01", Fraction(1, 365)),
    ("ACT_ACT", "2024-12-31", "2025-01-01", Fraction(1, 366)),
    ("ACT_ACT", "1899-06-01", "1901-06-01", Fraction(2)),
    ("30_360", "2007-01-15", "2007-01-30", Fraction(15, 360)),
    ("30_360", "2007-01-15", "2007-02-15", Fraction(30, 360)),
    ("30_360", "2007-09-30", "2008-03-31", Fraction(180, 360)),
    ("30_360", "2007-09-30", "2007-10-31", Fraction(30, 360)),
    ("30_360", "2007-01-15", "2007-01-31", Fraction(16, 360)),
    ("30_360", "2007-01-31", "2007-02-28", Fraction(28, 360)),
    ("30_360", "2007-02-28", "2007-03-31", Fraction(33, 360)),
    ("30_360", "2007-08-31", "2008-02-28", Fraction(178, 360)),
    ("30_360", "2008-02-29", "2009-02-28", Fraction(359, 360)),
]


@pytest.mark.parametrize(("convention", "start", "end", "expected"), FRACTIONS)
def test_a_year_fraction_is_the_published_one(convention: str, start: str, end: str, expected: Fraction) -> None:
    assert Fraction(year_fraction(convention, date.fromisoformat(start), date.fromisoformat(end)), YEAR) == expected


@pytest.mark.parametrize("convention", DAY_COUNTS)
def test_no_time_is_no_year(convention: str) -> None:
    assert year_fraction(convention, date(2024, 2, 29), date(2024, 2, 29)) == 0


def test_a_period_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="2026-01-01 is before 2026-01-02"):
        year_fraction("ACT_365", date(2026, 1, 2), date(2026, 1, 1))


def test_an_unknown_day_count_is_refused() -> None:
    with pytest.raises(ValueError, match="ACT_364 is not a day count"):
        year_fraction("ACT_364", date(2026, 1, 1), date(2026, 1, 2))


@pytest.mark.parametrize("convention", DAY_COUNTS)
def test_a_day_by_day_accrual_sums_to_the_whole_and_is_rounded_once(convention: str) -> None:
    seed = 20_260_101
    dice = Random(seed)
    opened_on = date(2023, 12, 31)
    movements = [(opened_on + timedelta(days=dice.randint(0, 700)), dice.randint(-5_000, 90_000)) for _ in range(40)]
    through = opened_on + timedelta(days=800)

    def exact(day: date) -> int:
        return interest_exact(movements, 1_199, convention, opened_on, day)

    days = [opened_on + timedelta(days=number) for number in range(801)]
    posted = [rounded(exact(day)) - rounded(exact(before)) for before, day in pairwise(days)]
    assert sum(posted) == rounded(exact(through)), f"seed {seed}"


def test_a_principal_earns_from_its_own_date_on() -> None:
    day = date(2026, 3, 10)
    movement = [(day, 365_000)]
    assert interest_exact(movement, 1_000, "ACT_365", date(2026, 1, 1), day) == 0
    assert interest_exact(movement, 1_000, "ACT_365", date(2026, 1, 1), day + timedelta(days=1)) == 100 * MINOR_UNIT


def test_half_a_cent_goes_to_the_even_one() -> None:
    assert [rounded(half * MINOR_UNIT // 2) for half in (1, 3, 5, -1, -3)] == [0, 2, 2, 0, -2]
