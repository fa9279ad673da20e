"""Split keeps what belongs together on one side, keeps labels in proportion, and places the same rows alike every time."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import split as stage
from stages.core import paths
from stages.core.components import Union, components
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.params import Split, load_params
from stages.core.records import Row, read_rejected, read_rows, write_rows
from tests.rows import chat, labelled, numbered
from tests.tiny import ROOT

OPEN = {"max_train": None, "max_validation": None, "max_test": None}


def params(**changes: object) -> Split:
    return Split.model_validate({**load_params(ROOT / "params.yaml").split.model_dump(), **OPEN, **changes})


def rows_of(counts: dict[str, int]) -> list[Row]:
    made = numbered([labelled(f"{label} text number {n}", label) for label, count in counts.items() for n in range(count)])
    return [replace(row, cluster=row.id) for row in made]


def side_of(sides: dict[str, list[Row]]) -> dict[str, str]:
    return {row.id: side for side, rows in sides.items() for row in rows}


@pytest.mark.parametrize("counts", [{"A": 1000}, {"A": 700, "B": 250, "C": 40}, {f"L{n}": 10 + n for n in range(39)}])
def test_each_label_is_within_two_rows_of_its_share_on_each_side_and_the_sides_within_one_percent(counts: dict[str, int]) -> None:
    rows = rows_of(counts)
    sides, rejected, report = stage.split(rows, params(), 17)
    assert rejected == []
    for side, share in (("train", 0.8), ("test", 0.15), ("validation", 0.05)):
        assert abs(len(sides[side]) - share * len(rows)) <= 0.01 * len(rows)
        labels = Counter(row.label for row in sides[side])
        assert all(abs(labels[label] - share * count) <= 2 for label, count in counts.items())
        assert report["labels"][side] == dict(sorted(labels.items()))
        assert report["rows"][side] == len(sides[side])


def test_a_label_with_one_row_is_taught_and_not_tested() -> None:
    sides, _, _ = stage.split(rows_of({"A": 200, "Rare": 1, "Two": 2}), params(), 17)
    taught = {row.label for row in sides["train"]}
    assert taught == {"A", "Rare", "Two"}


def test_a_cluster_and_a_group_stay_on_one_side_also_through_one_another() -> None:
    rows = rows_of({"A": 300, "B": 300})
    rng = random.Random(2)
    rows = [replace(row, cluster=f"c{rng.randrange(150)}", group=rng.choice([None, None, None, f"g{rng.randrange(80)}"])) for row in rows]
    sides, _, _ = stage.split(rows, params(), 17)
    side = side_of(sides)
    for kind in ("cluster", "group"):
        names = {getattr(row, kind) for row in rows} - {None}
        assert all(len({side[row.id] for row in rows if getattr(row, kind) == name}) == 1 for name in names)


def test_another_seed_is_another_split_and_the_order_of_the_rows_is_none() -> None:
    rows = rows_of({"A": 100, "B": 100})
    first = side_of(stage.split(rows, params(), 17)[0])
    assert side_of(stage.split(rows[::-1], params(), 17)[0]) == first
    assert side_of(stage.split(rows, params(), 18)[0]) != first


def test_caps_take_a_sample_in_proportion_and_the_rest_is_rejected_by_name() -> None:
    rows = rows_of({"A": 700, "B": 280, "C": 20})
    whole, _, _ = stage.split(rows, params(), 17)
    sides, rejected, report = stage.split(rows, params(max_train=100, max_validation=10, max_test=50), 17)
    assert {side: len(members) for side, members in sides.items()} == {"train": 100, "test": 50, "validation": 10}
    assert all({row.id for row in sides[side]} <= {row.id for row in whole[side]} for side in sides)
    assert Counter(row.label for row in sides["test"]) == {"A": 35, "B": 14, "C": 1}
    assert Counter(row.label for row in sides["train"]) == {"A": 70, "B": 28, "C": 2}
    assert report["rejected"] == {"over_max_test": 100, "over_max_train": 700, "over_max_validation": 40}
    assert {(item.rule, item.evidence["limit"]) for item in rejected} == {
        ("over_max_train", 100),
        ("over_max_validation", 10),
        ("over_max_test", 50),
    }


def test_a_larger_cap_keeps_the_rows_of_a_smaller_one_where_there_is_one_label() -> None:
    rows = rows_of({"A": 400})
    small, _, _ = stage.split(rows, params(max_train=50), 17)
    large, _, _ = stage.split(rows, params(max_train=120), 17)
    assert {row.id for row in small["train"]} <= {row.id for row in large["train"]}
    assert small["test"] == large["test"]


def test_a_rare_label_survives_the_cap_of_training() -> None:
    sides, _, _ = stage.split(rows_of({"A": 900, "Rare": 3}), params(max_train=50), 17)
    assert "Rare" in {row.label for row in sides["train"]}


def test_rows_without_labels_are_split_too() -> None:
    rows = numbered([chat(f"Question {n}?", f"Answer {n}.") for n in range(100)])
    sides, _, report = stage.split(rows, params(), 17)
    assert [len(sides[side]) for side in ("train", "validation", "test")] == [80, 5, 15]
    assert report["labels"]["test"] == {"(none)": 15}


def test_no_validation_is_made_where_none_is_asked_for() -> None:
    sides, _, _ = stage.split(rows_of({"A": 100}), params(validation=0.0), 17)
    assert [len(sides[side]) for side in ("train", "validation", "test")] == [85, 0, 15]
    sides, _, _ = stage.split(rows_of({"A": 4}), params(max_validation=0), 17)
    assert sides["validation"] == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "holds no rows to split"),
        (
            rows_of({"A": 1}),
            "would leave test empty: 1 rows in 1 independent clusters or groups, of which it may have 15%; add data, raise split.test",
        ),
        (rows_of({"A": 2}), "would leave validation empty: .* or set split.validation: 0"),
        ([replace(row, group="one") for row in rows_of({"A": 50})], "would leave test empty: 50 rows in 1 independent"),
    ],
)
def test_a_side_that_would_be_empty_is_told(rows: list[Row], told: str) -> None:
    with pytest.raises(UserError, match=told):
        stage.split(rows, params(), 17)


def test_union_names_a_set_by_its_smallest_member() -> None:
    union: Union[str] = Union()
    for one, other in (("d", "c"), ("b", "d"), ("x", "y"), ("y", "y")):
        union.join(one, other)
    assert [union.find(name) for name in "abcdxyz"] == ["a", "b", "b", "b", "x", "x", "z"]


def test_components_join_clusters_and_groups() -> None:
    rows = rows_of({"A": 5})
    marks = [("c1", "g1"), ("c2", "g1"), ("c2", None), ("c3", "g2"), ("c4", None)]
    names = components([replace(row, cluster=cluster, group=group) for row, (cluster, group) in zip(rows, marks, strict=True)])
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 3


MARKS = st.tuples(st.sampled_from(["A", "B", "C", None]), st.integers(0, 12), st.none() | st.integers(0, 8))


@settings(max_examples=100, deadline=None)
@given(st.lists(MARKS, max_size=60), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.3]), st.none() | st.integers(1, 20))
def test_rows_are_conserved_apart_and_placed_alike(
    marks: list[tuple[str | None, int, int | None]], seed: int, validation: float, limit: int | None
) -> None:
    made = [labelled(f"text {n}", label) if label else chat(f"text {n}", "Yes.") for n, (label, _, _) in enumerate(marks)]
    rows = [
        replace(row, cluster=f"c{cluster}", group=None if group is None else f"g{group}")
        for row, (_, cluster, group) in zip(numbered(made), marks, strict=True)
    ]
    chosen = params(validation=validation, test=0.3, max_train=limit, max_test=limit, max_validation=limit)
    try:
        sides, rejected, report = stage.split(rows, chosen, seed)
    except UserError:
        return
    placed = [*(row for members in sides.values() for row in members), *(item.row for item in rejected)]
    assert sorted(row.id for row in placed) == sorted(row.id for row in rows)
    assert report["rows_in"] == report["rows_out"] + sum(report["rejected"].values())
    side = side_of(sides) | {item.row.id: item.evidence["side"] for item in rejected}
    name = dict(zip((row.id for row in rows), components(rows), strict=True))
    assert len({(name[row], side[row]) for row in name}) == len(set(name.values())), "a component is on two sides"
    assert {row.label for row in rows} == {row.label for row in rows if side[row.id] == "train"}, "a label is never taught"
    assert limit is None or all(len(members) <= limit for members in sides.values())
    assert side_of(stage.split(rows[::-1], chosen, seed)[0]) == side_of(sides)


def test_the_stage_writes_equal_bytes_and_its_headline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.SUSPICION_ROWS.parent.mkdir(parents=True)
    write_rows(paths.SUSPICION_ROWS, rows_of({"A": 2000, "B": 400}))
    outs = []
    params = load_params(ROOT / "params.yaml")
    for _ in range(2):
        stage.main(params)
        outs.append(
            [
                p.read_bytes()
                for p in (paths.SPLIT_TRAIN, paths.SPLIT_VALIDATION, paths.SPLIT_TEST, paths.SPLIT_REJECTED, paths.SPLIT_REPORT)
            ]
        )
    assert outs[0] == outs[1]
    assert read_details(paths.SPLIT_REPORT)["train_rows"] == len(read_rows(paths.SPLIT_TRAIN)) == params.split.max_train
    assert {item.rule for item in read_rejected(paths.SPLIT_REJECTED)} == {"over_max_train", "over_max_validation", "over_max_test"}
