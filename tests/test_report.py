"""The HTML report: charts whose geometry is right, one page that asks nothing of the network, and no text that is read as HTML."""

import itertools
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.card.charts import MOST_POINTS, line_chart, nice_ticks, sparkline, tick_label
from stages.card.report import TEMPLATES

FINITE = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False).map(lambda value: float(f"{value:.6g}"))


@given(FINITE, FINITE)
def test_ticks_are_few_evenly_spaced_and_span_what_is_drawn(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    slack = 1e-6 * steps[0]
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert max(steps) - min(steps) <= slack


@given(st.lists(st.tuples(st.integers(0, 10_000), FINITE), min_size=1, max_size=60, unique_by=lambda point: point[0]))
def test_every_point_of_a_chart_lies_in_its_box(points: list[tuple[int, float]]) -> None:
    chart = line_chart("Loss", "nats", [("training", "first", sorted((float(x), y) for x, y in points))])
    drawn = [tuple(map(float, pair.split(","))) for pair in chart.lines[0].points.split()]
    assert len(drawn) == len(points)
    assert all(-0.01 <= coordinate <= 100.01 for pair in drawn for coordinate in pair)
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    assert all(0 <= tick.place <= 100 for tick in (*chart.x_ticks, *chart.y_ticks))


def test_a_falling_loss_is_drawn_falling_and_a_lone_point_is_drawn() -> None:
    chart = line_chart("Loss", "nats", [("training", "first", [(1, 4.0), (2, 2.0), (3, 1.0)]), ("validation", "second", [(2, 3.0)])])
    heights = [float(pair.split(",")[1]) for pair in chart.lines[0].points.split()]
    assert heights == sorted(heights)  # y grows downwards in SVG
    assert [line.lone for line in chart.lines] == [False, True]
    assert (chart.lines[0].first, chart.lines[0].last) == (4.0, 1.0)


def test_a_long_run_is_drawn_as_means_and_says_so() -> None:
    steps = 10 * MOST_POINTS + 3
    chart = line_chart("Loss", "nats", [("training", "first", [(float(x), 1.0 + x % 2) for x in range(steps)])])
    assert chart.grouped == math.ceil(steps / MOST_POINTS)
    assert len(chart.lines[0].points.split()) <= MOST_POINTS
    with pytest.raises(ValueError, match="has no point"):
        line_chart("Loss", "nats", [("training", "first", [])])


def test_tick_labels_and_sparklines_are_short() -> None:
    assert [tick_label(value) for value in (0.0, 0.0005, 5e-05, 20_000.0, 3e6)] == ["0", "0.0005", "5e-5", "20,000", "3 M"]
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert len(sparkline([float(x) for x in range(1000)])) <= 40


class Page(HTMLParser):
    """What a browser would make of the page: elements, addresses, texts by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.labelled: list[bool] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []
        if given.get("role") == "img":
            self.labelled.append(bool(given.get("aria-label")))
        if tag not in {"meta", "i", "polyline", "path", "line"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"i"}:
            return
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_of_text_can_be_read_on_its_ground_in_light_and_dark() -> None:
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{([^}]*--paper[^}]*)\}", style)
    assert len(blocks) == 3  # light, dark, print
    for block in blocks:
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", block))
        colour = {name: f"#{''.join(2 * digit for digit in value[1:])}" if len(value) == 4 else value for name, value in colour.items()}
        for ink in ("ink", "soft", "good", "bad", "even", "tuned", "base"):
            for ground in ("paper", "card"):
                assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
        assert contrast(colour["soft"], colour["faint"]) >= 4.5
        assert contrast(colour["learnt-ink"], colour["learnt"]) >= 4.5
