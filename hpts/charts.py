"""Charts as numbers that a template draws as SVG: geometry only. No style, no script and no library; each chart's figures
stand beside it as a table, which is what a screen reader reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 30, 8, 10, 24
# A balance over time has a page's whole width, and amounts of money beside it.
WIDE, LEFT_OF_MONEY = 960, 84
# Classes s1 to s5 of the stylesheet; what does not fit is the last one's.
SERIES = 5


@dataclass(frozen=True, slots=True)
class Chart:
    """`shapes` are rectangles (columns) or paths (lines); `ticks` the value axis; `labels` the other one."""

    title: str
    width: int
    height: int
    left: int
    base: int
    shapes: list[dict[str, Any]]
    ticks: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    legend: list[tuple[int, str]]
    header: list[str]
    table: list[list[str]]


def _steps(highest: int, count: int = 4) -> list[int]:
    """Round values from zero to the first one that is not below `highest`."""
    rough = max(highest, 1) / count
    magnitude = 10 ** (len(str(int(rough))) - 1) if rough >= 1 else 1
    step = next(size * magnitude for size in (1, 2, 5, 10) if size * magnitude >= rough)
    return [index * step for index in range(-(-max(highest, 1) // step) + 1)]


def _axis(steps: Sequence[int], height: int, write: Callable[[int], str]) -> list[dict[str, Any]]:
    room = height - TOP - BOTTOM
    return [{"y": round(height - BOTTOM - room * step / steps[-1], 1), "text": write(step)} for step in steps]


def columns(
    title: str,
    dates: Sequence[date],
    series: Mapping[str, Mapping[date, int]],
    *,
    height: int = 200,
    write: Callable[[int], str] = str,
) -> Chart:
    """A column per date, of one piece per series; the first four series have colours of their own."""
    names = list(series)
    shown = names[: SERIES - 1] if len(names) > SERIES else names
    rest = names[len(shown) :]
    stacks: dict[str, Mapping[date, int]] = {name: series[name] for name in shown}
    if rest:
        stacks["other"] = {day: sum(series[name].get(day, 0) for name in rest) for day in dates}
    highest = max((sum(values.get(day, 0) for values in stacks.values()) for day in dates), default=0)
    steps = _steps(highest)
    room, across = height - TOP - BOTTOM, (WIDTH - LEFT - RIGHT) / max(len(dates), 1)
    shapes, labels, table = [], [], []
    for place, day in enumerate(dates):
        top, x = float(height - BOTTOM), LEFT + place * across
        for number, (name, values) in enumerate(stacks.items(), start=1):
            count = values.get(day, 0)
            if count:
                tall = room * count / steps[-1]
                top -= tall
                shapes.append(
                    {
                        "series": number,
                        "x": round(x + across * 0.12, 1),
                        "y": round(top, 1),
                        "width": round(across * 0.76, 1),
                        "height": round(tall, 1),
                        "text": f"{day}: {write(count)} {name}",
                    }
                )
        if (len(dates) - 1 - place) % 7 == 0:
            labels.append({"x": round(x + across / 2, 1), "text": f"{day:%m-%d}"})
        counts = [values.get(day, 0) for values in stacks.values()]
        if any(counts):
            table.append([day.isoformat(), *(write(count) for count in counts)])
    legend = list(enumerate(stacks, start=1))
    header = ["date", *stacks]
    return Chart(
        title, WIDTH, height, LEFT, height - BOTTOM, shapes, _axis(steps, height, write), labels, legend, header, table
    )


def steps_over_time(
    title: str, points: Sequence[tuple[date, int]], *, until: date, height: int = 200, write: Callable[[int], str] = str
) -> Chart | None:
    """A balance over time: it stays where it is until the next point. None when there is nothing to draw."""
    if not points or points[0][0] >= until or not any(value > 0 for _, value in points):
        return None
    since = points[0][0]
    days = (until - since).days
    steps = _steps(max(max(value for _, value in points), 0))
    room, across = height - TOP - BOTTOM, WIDE - LEFT_OF_MONEY - RIGHT

    def x(day: date) -> float:
        return round(LEFT_OF_MONEY + across * (day - since).days / days, 1)

    def y(value: int) -> float:
        return round(height - BOTTOM - room * max(value, 0) / steps[-1], 1)

    path = f"M{x(since)} {y(points[0][1])}"
    for day, value in points[1:]:
        path += f"H{x(day)}V{y(value)}"
    path += f"H{x(until)}"
    area = f"{path}V{height - BOTTOM}H{LEFT_OF_MONEY}Z"
    labels = []
    for index in range(5):
        day = date.fromordinal(since.toordinal() + days * index // 4)
        labels.append(
            {"x": x(day), "text": day.isoformat(), "anchor": ("start", "middle", "middle", "middle", "end")[index]}
        )
    shapes = [{"kind": "area", "path": area}, {"kind": "line", "path": path}]
    table = [[day.isoformat(), write(value)] for day, value in points[-60:]]
    return Chart(
        title,
        WIDE,
        height,
        LEFT_OF_MONEY,
        height - BOTTOM,
        shapes,
        _axis(steps, height, write),
        labels,
        [],
        ["date", "balance"],
        table,
    )


def shares(rows: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Each label with its value and its length in thousandths of the longest."""
    longest = max((abs(value) for _, value in rows), default=0) or 1
    return [(label, value, round(1000 * abs(value) / longest)) for label, value in rows]
