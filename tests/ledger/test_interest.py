"""Day counts and exact interest against published figures, in Python and in PostgreSQL, which must agree on every date."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.interest import MINOR_UNIT, YEAR, interest_exact, rounded, year_fraction
from ledger.models import DAY_COUNTS
from tests.ledger.conftest import onlooker

Count = Callable[[str, str, str], int]

# ISDA, "EMU and Market Conventions: Recent Developments" (November 1998) and "The Actual/Actual Day Count Fraction" (1999): the
# worked examples of Actual/Actual (ISDA), to ten decimals as QuantLib's test-suite/daycounters.cpp repeats them. The period
# to 2004-01-15 is QuantLib's: the memo of 1998 has a slip there.
ISDA_1999 = [
    ("2003-11-01", "2004-05-01", "0.4977243806"),
    ("1999-02-01", "1999-07-01", "0.4109589041"),
    ("1999-07-01", "2000-07-01", "1.0013773486"),
    ("2002-08-15", "2003-07-15", "0.9150684932"),
    ("2003-07-15", "2004-01-15", "0.5040047908"),
    ("1999-07-30", "2000-01-30", "0.5038925069"),
    ("2000-01-30", "2000-06-30", "0.4153005464"),
]

# OpenGamma Strata, DayCountTest.java (data_yearFraction), for ACT/ACT ISDA, ACT/360 and ACT/365F: days outside of leap years,
# days in them, whole years of the first.
STRATA_DATES = [
    ("2011-12-28", "2012-02-28", 4, 58, 0),
    ("2011-12-28", "2012-02-29", 4, 59, 0),
    ("2011-12-28", "2012-03-01", 4, 60, 0),
    ("2011-12-28", "2016-02-28", 4, 58, 4),
    ("2011-12-28", "2016-02-29", 4, 59, 4),
    ("2011-12-28", "2016-03-01", 4, 60, 4),
    ("2012-02-29", "2012-03-29", 0, 29, 0),
    ("2012-02-29", "2012-03-28", 0, 28, 0),
    ("2012-03-01", "2012-03-28", 0, 27, 0),
]
STRATA_ACTUAL_DAYS = [62, 63, 64, 1523, 1524, 1525, 29, 28, 27]

# ISDA, "30/360 Day Count Conventions" (2008, isda.org/2008/12/22/30-360-day-count-conventions): the workbook's examples 1 to 3 of
# 30/360 (Bond Basis, 2006 Definitions 4.16(f)), in days, as QuantLib's test-suite/daycounters.cpp repeats them.
ISDA_30_360 = [
    ("2006-08-20", "2007-02-20", 180),
    ("2007-02-20", "2007-08-20", 180),
    ("2007-08-20", "2008-02-20", 180),
    ("2008-02-20", "2008-08-20", 180),
    ("2008-08-20", "2009-02-20", 180),
    ("2009-02-20", "2009-08-20", 180),
    ("2006-08-31", "2007-02-28", 178),
    ("2007-02-28", "2007-08-31", 183),
    ("2007-08-31", "2008-02-29", 179),
    ("2008-02-29", "2008-08-31", 182),
    ("2008-08-31", "2009-02-28", 178),
    ("2009-02-28", "2009-08-31", 183),
    ("2006-01-31", "2006-02-28", 28),
    ("2006-01-30", "2006-02-28", 28),
    ("2006-02-28", "2006-03-03", 5),
    ("2006-02-14", "2006-02-28", 14),
    ("2006-09-30", "2006-10-31", 30),
    ("2006-10-31", "2006-11-28", 28),
    ("2007-08-31", "2008-02-28", 178),
    ("2008-02-28", "2008-08-28", 180),
    ("2008-02-28", "2008-08-30", 182),
    ("2008-02-28", "2008-08-31", 183),
    ("2007-02-26", "2008-02-28", 362),
    ("2007-02-26", "2008-02-29", 363),
    ("2008-02-29", "2009-02-28", 359),
    ("2008-02-28", "2008-03-30", 32),
    ("2008-02-28", "2008-03-31", 33),
]
# OpenGamma Strata, DayCountTest.java, THIRTY_360_ISDA: the ends of a month of 31 days.
STRATA_30_360 = [
    ("2012-05-30", "2013-08-29", 449),
    ("2012-05-29", "2013-08-30", 451),
    ("2012-05-30", "2013-08-30", 450),
    ("2012-05-29", "2013-08-31", 452),
    ("2012-05-30", "2013-08-31", 450),
    ("2012-05-31", "2013-08-30", 450),
    ("2012-05-31", "2013-08-31", 450),
]
# QuantLib's dates for counts of actual days (daycounters.cpp, testAct366), each with the days since the one before: its
# published fractions of 366 days, times 366.
QUANTLIB_DAYS = [
    ("2002-02-01", "2002-02-04", "0.00819672131147541"),
    ("2002-02-04", "2003-05-16", "1.27322404371585"),
    ("2003-05-16", "2003-12-17", "0.587431693989071"),
    ("2003-12-17", "2004-12-17", "1.0000000000000"),
    ("2004-12-17", "2005-12-19", "1.00273224043716"),
    ("2006-07-26", "2007-06-28", "0.920765027322404"),
    ("2007-06-28", "2009-09-16", "2.21584699453552"),
    ("2009-09-16", "2016-07-26", "6.84426229508197"),
]

EXACT: list[tuple[str, str, str, Fraction]] = [
    *(
        ("ACT_ACT", start, end, Fraction(other, 365) + Fraction(leap, 366) + years)
        for start, end, other, leap, years in STRATA_DATES
    ),
    *(
        (convention, start, end, Fraction(days, of))
        for (start, end, *_), days in zip(STRATA_DATES, STRATA_ACTUAL_DAYS, strict=True)
        for convention, of in (("ACT_360", 360), ("ACT_365", 365))
    ),
    *(
        (convention, start, end, Fraction(round(Fraction(of_366) * 366), of))
        for start, end, of_366 in QUANTLIB_DAYS
        for convention, of in (("ACT_360", 360), ("ACT_365", 365))
    ),
    *(("30_360", start, end, Fraction(days, 360)) for start, end, days in ISDA_30_360 + STRATA_30_360),
    # The edges of a leap year, and of a century that has none: by the words of ISDA 2006 section 4.16(b).
    ("ACT_ACT", "2023-12-31", "2024-01-01", Fraction(1, 365)),
    ("ACT_ACT", "2024-12-31", "2025-01-01", Fraction(1, 366)),
    ("ACT_ACT", "2024-01-01", "2025-01-01", Fraction(1)),
    ("ACT_ACT", "1899-06-01", "1901-06-01", Fraction(2)),
]


def in_sql(convention: str, start: str, end: str) -> int:
    """What PostgreSQL makes of it."""
    row = onlooker().execute("SELECT year_fraction(%s, %s, %s)", (convention, start, end)).fetchone()
    assert row is not None
    return int(row[0])


def in_python(convention: str, start: str, end: str) -> int:
    return year_fraction(convention, date.fromisoformat(start), date.fromisoformat(end))


BOTH = pytest.mark.parametrize("counted", [in_python, in_sql])


@BOTH
@pytest.mark.parametrize(("convention", "start", "end", "expected"), EXACT)
def test_a_year_fraction_is_the_published_one(
    counted: Count, convention: str, start: str, end: str, expected: Fraction
) -> None:
    assert Fraction(counted(convention, start, end), YEAR) == expected


@BOTH
@pytest.mark.parametrize(("start", "end", "expected"), ISDA_1999)
def test_isdas_examples_of_actual_actual_come_out_to_the_last_decimal(
    counted: Count, start: str, end: str, expected: str
) -> None:
    assert f"{counted('ACT_ACT', start, end) / YEAR:.10f}" == expected


def test_python_and_postgresql_count_every_pair_of_dates_alike() -> None:
    """10,000 pairs from 1900 to 2200, half of them a few days around the ends of months."""
    seed = 19_002_200
    dice = Random(seed)
    first, last = date(1900, 1, 1).toordinal(), date(2200, 12, 31).toordinal()
    pairs = []
    for number in range(10_000):
        start = date.fromordinal(dice.randint(first, last))
        end = date.fromordinal(dice.randint(first, last))
        if number % 2:
            start = start.replace(day=1) + timedelta(days=dice.randint(-3, 1))
            end = end.replace(day=1) + timedelta(days=dice.randint(-3, 1))
        pairs.append((min(start, end), max(start, end)))
    for convention in DAY_COUNTS:
        rows = onlooker().execute(
            """SELECT year_fraction(%s, p.start, p.stop)
               FROM unnest(%s::date[], %s::date[]) WITH ORDINALITY AS p (start, stop, number) ORDER BY number""",
            (convention, [start for start, _ in pairs], [end for _, end in pairs]),
        )
        expected = [year_fraction(convention, start, end) for start, end in pairs]
        assert [counted for (counted,) in rows.fetchall()] == expected, f"{convention}, seed {seed}"


# Around the ties, around the bound of 64 bits at which PostgreSQL takes another way, and far beyond.
UNITS = st.one_of(
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.builds(
        lambda halves, more: halves * MINOR_UNIT // 2 + more,
        st.integers(-(10**12), 10**12),
        st.sampled_from([-1, 0, 1]),
    ),
    st.builds(lambda sign, more: sign * 9 * 10**18 + more, st.sampled_from([-1, 1]), st.integers(-(10**11), 10**11)),
    st.builds(lambda sign, more: sign * 2**63 + more, st.sampled_from([-1, 1]), st.integers(-(10**11), 10**11)),
)


@settings(max_examples=60)
@given(st.lists(UNITS, min_size=60, max_size=60))
def test_postgresql_rounds_as_python_does_whatever_the_size(exact: list[int]) -> None:
    ties = [each // (MINOR_UNIT // 2) * (MINOR_UNIT // 2) for each in exact]
    rows = onlooker().execute(
        "SELECT minor_units(e.exact) FROM unnest(%s::numeric[]) WITH ORDINALITY AS e (exact, number) ORDER BY number",
        ([str(each) for each in exact + ties],),
    )
    assert [int(whole) for (whole,) in rows.fetchall()] == [rounded(each) for each in exact + ties]


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
