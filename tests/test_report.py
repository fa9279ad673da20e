"""The HTML report: charts whose geometry is right, one page that asks nothing of the network, and no text that is read as HTML."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.card import __main__ as card
from stages.card.charts import MOST_POINTS, line_chart, nice_ticks, sparkline, tick_label
from stages.card.flow import BANDS, Flow, picture, read_flow
from stages.card.report import TEMPLATES
from stages.core import paths
from stages.core.files import read_details
from stages.core.params import load_params
from stages.core.wilson import wilson
from tests import tiny
from tests.finished import change, lively, loss_only

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
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
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


def page(edit: Callable[[dict[str, Any]], object] = lambda report: None) -> str:
    """Runs the stage and reads the report, its no-break spaces as spaces."""
    change(paths.COMPARE_REPORT, edit)
    card.main(load_params())
    return paths.HTML_REPORT.read_text(encoding="utf-8").replace("\u00a0", " ")


@pytest.mark.parametrize("edit", [lambda report: None, lively, loss_only], ids=["tiny run", "good run", "rows without labels"])
def test_the_page_is_whole_and_asks_nothing_of_the_network(finished: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    text = page(edit)
    read = Page(text)
    assert read.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    addresses = {
        name: value or "" for name, value in read.attributes if name in {"href", "src", "srcset", "action", "background", "poster"}
    }
    assert set(addresses) <= {"href"}
    assert [name for name, _ in read.attributes if name.startswith("on")] == []
    assert re.search(r"url\(|@import|expression\(", text) is None
    anchors = [value for name, value in read.attributes if name == "href" and value]
    assert anchors
    assert [anchor for anchor in anchors if anchor[0] != "#" or anchor[1:] not in read.ids] == []
    assert len(read.ids) == len(set(read.ids))
    assert read.labelled
    assert all(read.labelled)
    assert str(finished) not in text
    assert "default-src 'none'" in text


def test_equal_reports_give_an_equal_page(finished: Path) -> None:
    assert page() == page()


EVIL = "<script>alert('x')</script>"


def test_no_text_of_a_row_a_label_or_a_parameter_is_read_as_html(finished: Path) -> None:
    def poison(report: dict[str, Any]) -> None:
        lively(report)
        for sample in report["samples"]:
            sample |= {"text": EVIL, "target": EVIL, "base": EVIL, "tuned": EVIL}
        report["slices"][0]["slice"] = EVIL
        report["worst_slice"] = report["slices"][0]
        report["confusion"]["tuned"]["labels"][0] = EVIL

    change(paths.LABEL_REPORT, lambda report: report.update(suspects=1, top_suspects=[suspect(EVIL)]))
    change(paths.TOKENIZE_REPORT, lambda report: report["preview"][0].update(tokens=[[EVIL, True], ['" onload="', False]]))
    change(paths.CLEAN_REPORT, lambda report: report.update(rejected={EVIL: 3}))
    tiny.edit_params(finished, card__intended_use=EVIL, prompt__system=EVIL)
    text = page(poison)
    assert text.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 10
    assert "script" not in Page(text).tags
    assert "<script" not in text
    assert "onload" not in {name for name, _ in Page(text).attributes}


def suspect(text: str) -> dict[str, Any]:
    """A row of label_check's report."""
    return {"id": "00aa11bb22cc33dd", "label": text, "suggested": text, "confidence": 0.031, "text": text}


def test_the_page_shows_funnel_suspects_tokens_samples_and_scores(finished: Path) -> None:
    change(paths.LABEL_REPORT, lambda report: report.update(suspects=1, top_suspects=[suspect("a doubtful notice")]))
    text = page(lively)
    for shown in (
        "Better at its task",
        "61.3 %",
        "set aside for testing",
        "a doubtful notice",
        '<span class="learnt">',
        "Before and after",
        "Gradient norm",
        "HellaSwag",
        "Git commit",
    ):
        assert shown in text, shown
    before = read_details(paths.COMPARE_REPORT)["samples"][0]
    assert before["text"] in text


def test_without_suspects_or_labels_their_sections_are_left_out(finished: Path) -> None:
    change(paths.LABEL_REPORT, lambda report: report.update(suspects=0, top_suspects=[]))
    text = page(loss_only)
    assert "Labels that are probably wrong" not in text
    assert "By label" not in text
    assert "Before and after" not in text
    assert "1.244 bits per byte" in text
    assert "Whether it forgot anything was not measured" in text


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_of_a_share_holds_the_share_and_narrows_with_the_items(items: int, share: float) -> None:
    low, high = wilson(share, items, 0.05)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    further = wilson(share, 4 * items, 0.05)
    assert further[1] - further[0] < high - low


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert wilson(0.3, 10, 0.05) == pytest.approx((0.107789, 0.603222), abs=1e-5)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz"), st.integers(0, 5)), max_size=40))
def test_the_picture_of_the_funnel_keeps_every_row_and_stays_in_its_box(lost: list[tuple[str, str, int]]) -> None:
    read = Counter({source: 3 + sum(rows for name, _, rows in lost if name == source) for source in "abcdefgh"})
    stages: dict[str, dict[str, Counter[str]]] = {}
    for place, (source, rule, rows) in enumerate(lost):
        stages.setdefault(f"stage {place % 3}", {}).setdefault(rule, Counter())[source] += rows
    flow = Flow(read, stages)
    drawn = picture(flow)
    assert sum(width for _, width in drawn.first) == pytest.approx(100)
    for stage, left in flow.after().items():
        stretch = drawn.stretches[stage]
        assert sum(width for _, width in stretch.bar) == pytest.approx(100 * left.total() / read.total())
        corners = [pair.split(",") for band in stretch.bands for pair in band.points.split()]
        assert all(-0.01 <= float(x) <= 100.01 and y in {"0", "100"} for x, y in corners)
        assert bool(stretch.lost) == any(rule.total() for rule in stages[stage].values())
    assert [name for _, name, _, _ in drawn.legend][BANDS:] == ["all other sources"]
    assert sum(count for _, _, count, _ in drawn.legend) == read.total()


def test_the_tables_of_rows_tell_the_same_numbers_as_the_reports(finished: Path) -> None:
    flow = read_flow()
    assert flow.read.total() == read_details(paths.FETCH_DATA_REPORT)["rows_read"]
    left = {stage: rows.total() for stage, rows in flow.after().items()}
    for stage, report in (("clean", paths.CLEAN_REPORT), ("dedupe", paths.DEDUPE_REPORT), ("suspicion", paths.SUSPICION_REPORT)):
        assert left[stage] == read_details(report)["rows_out"]
    assert left["split"] == read_details(paths.SPLIT_REPORT)["rows"]["train"]
    side = read_details(paths.TOKENIZE_REPORT)["sides"]["train"]
    assert left["tokenize"] == side["rows_in"] - side["rows_rejected"]


def test_worst_rows_repairs_and_what_the_detectors_find_are_shown(finished: Path) -> None:
    def repair(report: dict[str, Any]) -> None:
        report["repair_samples"] = [{"id": "00aa", "steps": ["invisible"], "before": "one\u200btwo", "after": "onetwo"}]
        report["rules"]["repetition"] |= {"rejected": 4321, "worst": [{"id": "00bb", "measure": 0.987, "text": EVIL}]}

    change(paths.CLEAN_REPORT, repair)
    worst = {"id": "00cc", "score": 0.91, "evidence": "a zero-width space in the prompt", "text": "a doubtful row"}
    change(paths.SUSPICION_REPORT, lambda report: report.update(top_suspects=[worst]))
    text = page(lively)
    for shown in (
        "one⟨U+200B⟩two",
        "4,321 rows rejected; clean.max_repetition: ",
        "<code>00bb</code>",
        "0.987",
        "&lt;script&gt;",
        "a zero-width space in the prompt",
        "<b>Secrets</b>: recall ",
        "Costliest answers after training",
    ):
        assert shown in text, shown
    assert "<script" not in text
