"""Day counts and exact interest against published figures, without a database."""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest

from ledger.interest import MINOR_UNIT, YEAR, Terms, interest_by_terms, interest_exact, rounded, year_fraction
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


# --- Terms that change -----------------------------------------------------------------------------------------------

OPENED = date(2023, 12, 31)


def some_movements(dice: Random) -> list[tuple[date, int]]:
    return [(OPENED + timedelta(days=dice.randint(0, 700)), dice.randint(-5_000, 90_000)) for _ in range(40)]


@pytest.mark.parametrize("convention", DAY_COUNTS)
def test_terms_that_change_nothing_give_the_interest_of_one_rate(convention: str) -> None:
    movements = some_movements(Random(7))
    through = OPENED + timedelta(days=800)
    same = [Terms(OPENED + timedelta(days=days), 1_199, convention) for days in (0, 31, 59, 400, 799, 800, 900)]
    whole = interest_exact(movements, 1_199, convention, OPENED, through)
    assert interest_by_terms(movements, same, OPENED, OPENED, through) == whole
    assert interest_by_terms(movements, same[:1], OPENED, OPENED, through) == whole


def test_interest_by_terms_is_the_sum_of_its_days() -> None:
    """Each day by itself: the principal at its beginning, at the rate and by the day count in force then."""
    movements = some_movements(Random(8))
    terms = [
        Terms(OPENED, 900, "ACT_365"),
        Terms(date(2024, 2, 10), 0, "ACT_365"),
        Terms(date(2024, 5, 31), 1_500, "30_360"),
        Terms(date(2025, 1, 1), 1_500, "ACT_ACT"),
    ]
    expected = 0
    for number in range(500):
        day = OPENED + timedelta(days=number)
        principal = sum(minor for moved_on, minor in movements if moved_on <= day)
        (*_, held) = (each for each in terms if each.since <= day)
        ends = (year_fraction(held.convention, OPENED, day + timedelta(days=more)) for more in (0, 1))
        expected += principal * held.annual_rate_bps * -(next(ends) - next(ends))
    assert interest_by_terms(movements, terms, OPENED, OPENED, OPENED + timedelta(days=500)) == expected


def test_interest_from_a_day_on_is_the_rest() -> None:
    movements = some_movements(Random(9))
    terms = [Terms(OPENED, 900, "30_360"), Terms(date(2024, 5, 31), 1_500, "30_360")]
    through = OPENED + timedelta(days=600)
    whole = interest_by_terms(movements, terms, OPENED, OPENED, through)
    for days in (0, 1, 151, 152, 400, 600):
        middle = OPENED + timedelta(days=days)
        before = interest_by_terms(movements, terms, OPENED, OPENED, middle)
        assert before + interest_by_terms(movements, terms, OPENED, middle, through) == whole


def test_before_its_terms_begin_and_after_its_end_nothing_is_earned() -> None:
    terms = [Terms(OPENED, 900, "ACT_365")]
    movements = [(OPENED, 1_000_000)]
    assert interest_by_terms(movements, terms, OPENED, OPENED, OPENED) == 0
    assert interest_by_terms(movements, terms, OPENED, OPENED + timedelta(days=9), OPENED + timedelta(days=5)) == 0
    assert interest_by_terms(movements, [], OPENED, OPENED, OPENED) == 0
