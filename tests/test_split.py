"""Split keeps what belongs together on one side, keeps labels in proportion, and places the same rows alike every time."""

import random
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core import paths
from stages.core.components import Union, components
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.params import Split, load_params
from stages.core.records import Rejected, Row, read_rejected, read_rows, write_rows
from tests.rows import chat, labelled, numbered
from tests.tiny import ROOT, write_jsonl

stage = import_module("stages.split.__main__")
COMMITTED = load_params(ROOT / "params.yaml").split.model_dump()
OPEN = {"max_train": None, "max_validation": None, "max_test": None}


def params(**changes: object) -> Split:
    return Split.model_validate({**COMMITTED, **OPEN, **changes})


def split(
    rows: list[Row], params: Split, seed: int, general: Path = Path("no-such-folder")
) -> tuple[dict[str, list[Row]], list[Rejected], dict[str, Any]]:
    """The rows of each side, those rejected and the report, by way of the stage's own files in a folder of their own."""
    with TemporaryDirectory() as folder:
        write_rows(Path(folder) / "source.parquet", rows)

        def place(path: Path) -> Path:
            return Path(folder) / path.name

        report = stage.split(Path(folder) / "source.parquet", general, params, seed, place)
        sides = {side: read_rows(place(path)) for side, path in stage.OUTS.items()}
        report["shared"] = pq.read_table(place(paths.SPLIT_OVERLAP)).to_pylist()
        return sides, read_rejected(place(paths.SPLIT_REJECTED)), report


def rows_of(counts: dict[str, int]) -> list[Row]:
    made = numbered([labelled(f"{label} text number {n}", label) for label, count in counts.items() for n in range(count)])
    return [replace(row, cluster=row.id) for row in made]


def side_of(sides: dict[str, list[Row]]) -> dict[str, str]:
    return {row.id: side for side, rows in sides.items() for row in rows}


@pytest.mark.parametrize("counts", [{"A": 1000}, {"A": 700, "B": 250, "C": 40}, {f"L{n}": 10 + n for n in range(39)}])
def test_each_label_is_within_two_rows_of_its_share_on_each_side_and_the_sides_within_one_percent(counts: dict[str, int]) -> None:
    rows = rows_of(counts)
    sides, rejected, report = split(rows, params(), 17)
    assert rejected == []
    for side, share in (("train", 0.8), ("test", 0.15), ("validation", 0.05)):
        assert abs(len(sides[side]) - share * len(rows)) <= 0.01 * len(rows)
        labels = Counter(row.label for row in sides[side])
        assert all(abs(labels[label] - share * count) <= 2 for label, count in counts.items())
        assert report["labels"][side] == dict(sorted(labels.items()))
        assert report["rows"][side] == len(sides[side])


def test_a_label_with_one_row_is_taught_and_not_tested() -> None:
    sides, _, _ = split(rows_of({"A": 200, "Rare": 1, "Two": 2}), params(), 17)
    taught = {row.label for row in sides["train"]}
    assert taught == {"A", "Rare", "Two"}


def test_a_cluster_and_a_group_stay_on_one_side_also_through_one_another() -> None:
    rows = rows_of({"A": 300, "B": 300})
    rng = random.Random(2)
    rows = [replace(row, cluster=f"c{rng.randrange(150)}", group=rng.choice([None, None, None, f"g{rng.randrange(80)}"])) for row in rows]
    sides, _, _ = split(rows, params(), 17)
    side = side_of(sides)
    for kind in ("cluster", "group"):
        names = {getattr(row, kind) for row in rows} - {None}
        assert all(len({side[row.id] for row in rows if getattr(row, kind) == name}) == 1 for name in names)


def test_another_seed_is_another_split_and_the_order_of_the_rows_is_none() -> None:
    rows = rows_of({"A": 100, "B": 100})
    first = side_of(split(rows, params(), 17)[0])
    assert side_of(split(rows[::-1], params(), 17)[0]) == first
    assert side_of(split(rows, params(), 18)[0]) != first


def test_caps_take_a_sample_in_proportion_and_the_rest_is_rejected_by_name() -> None:
    rows = rows_of({"A": 700, "B": 280, "C": 20})
    whole, _, _ = split(rows, params(), 17)
    sides, rejected, report = split(rows, params(max_train=100, max_validation=10, max_test=50), 17)
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
    small, _, _ = split(rows, params(max_train=50), 17)
    large, _, _ = split(rows, params(max_train=120), 17)
    assert {row.id for row in small["train"]} <= {row.id for row in large["train"]}
    assert small["test"] == large["test"]


def test_a_rare_label_survives_the_cap_of_training() -> None:
    sides, _, _ = split(rows_of({"A": 900, "Rare": 3}), params(max_train=50), 17)
    assert "Rare" in {row.label for row in sides["train"]}


def test_rows_without_labels_are_split_too() -> None:
    rows = numbered([chat(f"Question {n}?", f"Answer {n}.") for n in range(100)])
    sides, _, report = split(rows, params(), 17)
    assert [len(sides[side]) for side in ("train", "validation", "test")] == [80, 5, 15]
    assert report["labels"]["test"] == {"(none)": 15}


def test_no_validation_is_made_where_none_is_asked_for() -> None:
    sides, _, _ = split(rows_of({"A": 100}), params(validation=0.0), 17)
    assert [len(sides[side]) for side in ("train", "validation", "test")] == [85, 0, 15]
    sides, _, _ = split(rows_of({"A": 4}), params(max_validation=0), 17)
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
        split(rows, params(), 17)


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
        sides, rejected, report = split(rows, chosen, seed)
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
    assert side_of(split(rows[::-1], chosen, seed)[0]) == side_of(sides)


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


# evaluation items that share words with training rows


def notices(count: int, rng: random.Random, shared: list[str]) -> list[Row]:
    """Rows of 30 words of their own, every third with one of the shared sentences inside."""
    rows = []
    for number in range(count):
        own = [f"w{rng.randrange(10**6)}" for _ in range(30)]
        middle = rng.choice(shared).split() if number % 3 == 0 else []
        rows.append(labelled(" ".join([*own[:15], *middle, *own[15:]]), "A"))
    return numbered(rows)


SHARED = [" ".join(f"{kind}{n}" for n in range(length)) for kind, length in (("seven", 7), ("eight", 8), ("twelve", 12), ("twenty", 20))]


def longest_run(one: str, other: str) -> int:
    """The longest run of words of two texts, found without hashes."""
    first, second = one.split(), f" {other} "
    return max((e - s for s in range(len(first)) for e in range(s + 1, len(first) + 1) if f" {' '.join(first[s:e])} " in second), default=0)


def test_a_test_row_that_shares_eight_words_with_a_training_row_is_reported_with_the_row_and_the_run() -> None:
    sides, _, report = split(notices(120, random.Random(1), SHARED), params(), 17)
    train = {row.id: row.text for row in sides["train"]}
    found = {one["item_id"]: one for one in report["shared"]}
    assert {one["task"] for one in report["shared"]} == {"domain"}
    for row in sides["test"]:
        longest = max(longest_run(row.text, text) for text in train.values())
        assert (row.id in found) == (longest >= 8)
        if row.id in found:
            assert found[row.id]["words"] == longest == longest_run(row.text, train[found[row.id]["train_id"]])
            assert found[row.id]["rule"] == ("run_13" if longest >= 13 else "run_8")
    assert 0 < len(found) < len(sides["test"])
    assert report["overlap"]["by_task"] == [
        {"task": "domain", "items": len(sides["test"]), "run_8": len(found), "run_13": sum(one["words"] >= 13 for one in found.values())}
    ]


def test_items_of_the_general_suite_are_looked_for_in_the_rows_that_are_trained_on_and_in_no_others(tmp_path: Path) -> None:
    rows = rows_of({"A": 60})
    sides, rejected, _ = split(rows, params(max_train=20), 17)
    long = [replace(row, messages=labelled(f"{row.text} {SHARED[3]} {row.text}", "A").messages) for row in (sides["train"][0],)]
    capped = next(item.row for item in rejected if item.rule == "over_max_train")
    long.append(replace(capped, messages=labelled(f"{SHARED[2]} {capped.text}", "A").messages))
    changed = [next((other for other in long if other.id == row.id), row) for row in rows]
    for name, text in (("trained", SHARED[3]), ("capped", SHARED[2]), ("new", "words that no row has at all, nowhere and never")):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"id": "1", "task": name, "context": text, "choices": ["yes", "no"]}])
    shared = split(changed, params(max_train=20), 17, tmp_path)[2]["shared"]
    assert shared == [{"task": "trained", "item_id": "1", "words": 20, "train_id": long[0].id, "rule": "run_13"}]


def test_a_training_row_with_the_words_of_a_test_row_can_be_rejected_and_another_takes_its_place() -> None:
    rows = notices(240, random.Random(1), SHARED)
    sides, rejected, report = split(rows, params(max_train=60, test_ngram=13), 17)
    texts = {row.id: row.text for row in sides["test"]}
    gone = {item.row.text: item.evidence for item in rejected if item.rule == "contains_test"}
    assert len(gone) == report["rejected"]["contains_test"] > 0
    assert all(longest_run(text, texts[evidence["test"]]) == evidence["words"] == 20 for text, evidence in gone.items())
    assert len(sides["train"]) == 60
    assert all(longest_run(row.text, text) < 13 for row in sides["train"] for text in texts.values())
    assert report["rows_in"] == report["rows_out"] + sum(report["rejected"].values())


def test_a_run_so_short_that_no_training_row_is_left_is_told() -> None:
    rows = numbered([labelled(f"one two three four five six seven eight {n}", "A") for n in range(40)])
    with pytest.raises(UserError, match=r"every training row shares split.test_ngram \(8\) words with a test row; raise it"):
        split(rows, params(test_ngram=8), 17)
