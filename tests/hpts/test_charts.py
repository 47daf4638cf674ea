"""The geometry of charts."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise

import pytest

from hpts import charts

DAYS = [date(2026, 1, 1) + timedelta(days=index) for index in range(30)]


@pytest.mark.parametrize("highest", [0, 1, 3, 4, 5, 9, 10, 11, 99, 101, 12_345, 10**15])
def test_the_axis_begins_at_zero_and_ends_above_the_highest_value(highest: int) -> None:
    steps = charts._steps(highest)
    assert steps[0] == 0 and steps[-1] >= highest and 2 <= len(steps) <= 6
    assert len({after - before for before, after in pairwise(steps)}) == 1


def test_columns_stack_and_what_has_no_colour_of_its_own_is_other() -> None:
    series = {f"kind {number}": {DAYS[0]: number} for number in range(1, 8)}
    chart = charts.columns("Kinds", DAYS, series)
    assert [name for _, name in chart.legend] == ["kind 1", "kind 2", "kind 3", "kind 4", "other"]
    stacked = sum(shape["height"] for shape in chart.shapes)
    assert stacked == pytest.approx((chart.height - charts.TOP - charts.BOTTOM) * 28 / charts._steps(28)[-1], abs=1)
    assert chart.table == [["2026-01-01", "1", "2", "3", "4", "18"]]


def test_a_balance_stays_until_it_changes() -> None:
    chart = charts.steps_over_time("Owed", [(DAYS[0], 0), (DAYS[10], 100)], until=DAYS[20])
    assert chart is not None
    line = next(shape["path"] for shape in chart.shapes if shape["kind"] == "line")
    assert line.startswith(f"M84.0 {chart.base}.0H") and line.endswith("H952.0")
    assert charts.steps_over_time("Owed", [], until=DAYS[0]) is None
    assert charts.steps_over_time("Owed", [(DAYS[0], 5)], until=DAYS[0]) is None


def test_shares_are_of_the_longest() -> None:
    assert charts.shares([("a", 50), ("b", -100), ("c", 0)]) == [("a", 50, 500), ("b", -100, 1000), ("c", 0, 0)]
