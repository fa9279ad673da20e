"""The geometry of the report's charts, in per cent of the plotting area, so that the page scales them without scaling their text.

In: numbers. Out: positions, ticks and SVG point lists that templates/report.html.j2 draws.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

MOST_POINTS = 400  # a line of more is drawn as the means of equal runs of points


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in per cent of its length."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: as the legend says it.
        kind: the CSS class that colours it.
        points: an SVG point list in a box of 100 by 100, y downwards.
        first: the first value.
        last: the last value.
        lone: whether it is a single point, which a line cannot show.
    """

    name: str
    kind: str
    points: str
    first: float
    last: float
    lone: bool


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: what is drawn.
        unit: of the vertical axis.
        x_name: what the horizontal axis counts.
        lines: at least one.
        x_ticks: of the horizontal axis, from the left.
        y_ticks: of the vertical axis, from the bottom.
        grouped: how many steps one drawn point is the mean of.
    """

    title: str
    unit: str
    x_name: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    grouped: int


def line_chart(
    title: str,
    unit: str,
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    from_zero: bool = True,
    x_name: str = "optimiser step",
) -> Chart:
    """Lays out a line chart.

    Args:
        title: what is drawn.
        unit: of the vertical axis.
        series: name, kind and (x, y) points of each line, x ascending; lines without points are left out.
        from_zero: whether the vertical axis starts at zero.
        x_name: what the horizontal axis counts.

    Returns:
        The chart.

    Raises:
        ValueError: no series has a point.
    """
    filled = [(name, kind, list(points)) for name, kind, points in series if points]
    if not filled:
        raise ValueError(f"the chart '{title}' has no point")
    grouped = max(math.ceil(len(points) / MOST_POINTS) for _, _, points in filled)
    xs = [x for _, _, points in filled for x, _ in points]
    means = [(name, kind, _means(points, grouped if len(points) > MOST_POINTS else 1)) for name, kind, points in filled]
    ys = [y for _, _, points in means for _, y in points]
    y_values = nice_ticks(min(0.0, *ys) if from_zero else min(ys), max(ys))
    low, high = y_values[0], y_values[-1]
    left, right = min(xs), max(xs)

    # the quotient first: it is exactly 1 at the end of an axis, so that nothing lies a rounding error outside the box
    def place(x: float, y: float) -> str:
        across = 100 * ((x - left) / (right - left)) if right > left else 50.0
        return f"{across:.2f},{100 - 100 * ((y - low) / (high - low)):.2f}"

    lines = tuple(
        Line(name, kind, " ".join(place(x, y) for x, y in points), points[0][1], points[-1][1], len(points) == 1)
        for name, kind, points in means
    )
    x_values = [value for value in nice_ticks(left, right) if left <= value <= right and value == int(value)] if right > left else [left]
    x_ticks = tuple(Tick(100 * ((value - left) / (right - left)) if right > left else 50.0, tick_label(value)) for value in x_values)
    y_ticks = tuple(Tick(100 * ((value - low) / (high - low)), tick_label(value)) for value in y_values)
    return Chart(title, unit, x_name, lines, x_ticks, y_ticks, grouped)


def _means(points: list[tuple[float, float]], size: int) -> list[tuple[float, float]]:
    """The mean of each run of `size` points."""
    runs = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that span `low` to `high`, at least two.

    Args:
        low: the smallest value.
        high: the largest value.
        about: how many steps are wanted.

    Returns:
        The ticks, ascending; the first is not above `low`, the last not below `high`.
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = max((high - low) / about, sys.float_info.min)  # a quarter of the smallest float is zero
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{count * step:.12g}") for count in range(first, max(last, first + 1) + 1)]


def tick_label(value: float) -> str:
    """A tick's value as short as it goes: 20,000 or 0.25 or 5e-5."""
    return (f"{value:,.6g}" if abs(value) < 1e6 else f"{value / 1e6:,.6g} M").replace("e-0", "e-")


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A line of block characters, eight heights, the means of at most `width` equal runs of the values.

    Args:
        values: at least one.
        width: the most characters.

    Returns:
        The line.
    """
    blocks = "▁▂▃▄▅▆▇█"
    means = [y for _, y in _means([(0.0, value) for value in values], math.ceil(len(values) / width))]
    low, high = min(means), max(means)
    return "".join(blocks[round(7 * (value - low) / (high - low)) if high > low else 0] for value in means)
