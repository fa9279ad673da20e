"""The searches of label_check on planted errors: label errors in the real default data, shuffled answers, neighbours, Datalab's issues."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data_labels import PRECISION, RECALL, SEEDS, SHARE, measured
from stages.core import paths
from stages.core.packages import fetch_wheel
from stages.core.params import load_params
from stages.core.records import Row, write_rows
from stages.core.sampling import seeded_sample
from stages.fetch_data.licences import read_licences
from stages.label_check.classifier import deal, sample
from stages.label_check.neighbours import Projection, graph
from stages.label_check.pairs import MIN_ROWS
from stages.label_check.table import read_table
from tests.rows import chat, numbered
from tests.test_label_check import check, corpus, flipped, params
from tests.tiny import ROOT, WORDS

PARAMS = load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def notices() -> list[Row]:
    """The default rows, exact duplicates removed; near-duplicates share a cluster by their first words, a cheap stand-in for dedupe."""
    licences = PARAMS.data.licences
    rows = numbered(read_licences(fetch_wheel(licences.package, licences.version, licences.sha256), licences)[0])
    chosen = seeded_sample([row.id for row in rows], 3400, PARAMS.seed)
    distinct = {" ".join(row.text.casefold().split()): row for row in rows if row.id in chosen}
    return [replace(row, cluster=" ".join(text.split()[:6])) for text, row in sorted(distinct.items())]


def test_label_errors_planted_in_the_default_data_are_found(notices: list[Row]) -> None:
    recall, precision, _ = measured(notices, SHARE, 0, PARAMS.label_check)
    assert recall >= RECALL - 0.03
    assert precision >= PRECISION - 0.05


@pytest.mark.slow
def test_label_errors_planted_in_the_default_data_are_found_with_every_seed(notices: list[Row]) -> None:
    found = [measured(notices, SHARE, seed, PARAMS.label_check) for seed in SEEDS]
    assert np.mean([recall for recall, _, _ in found]) >= RECALL
    assert np.mean([precision for _, precision, _ in found]) >= PRECISION


@pytest.mark.slow
def test_the_known_wrong_label_is_among_the_suspects_of_all_rows() -> None:
    licences = PARAMS.data.licences
    rows = numbered(read_licences(fetch_wheel(licences.package, licences.version, licences.sha256), licences)[0])
    [wrong] = [row for row in rows if row.origin.endswith("/lgpl-2.0-plus_308.RULE")]
    _, _, suspects, _ = check([replace(row, cluster=row.id) for row in rows], [], PARAMS.label_check)
    [found] = [item for item in suspects if item["id"] == wrong.id and item["kind"] == "label"]
    assert (found["label"], found["suggested"]) == ("Copyleft Limited", "Copyleft")


# folds and samples


def test_folds_keep_a_component_together_and_give_every_fold_its_share_of_every_label() -> None:
    chance = random.Random(1)
    given = np.array([0] * 400 + [1] * 90 + [2] * 10)
    parts = [f"part{chance.randrange(300)}" if number < 400 else f"own{number}" for number in range(500)]
    fold = deal(parts, given, 5, "seed")
    assert len({(part, number) for part, number in zip(parts, fold.tolist(), strict=True)}) == len(set(parts))
    assert np.bincount(fold[given == 1]).tolist() == [18] * 5
    assert np.bincount(fold[given == 2]).tolist() == [2] * 5
    assert fold.tolist() != deal(parts, given, 5, "another").tolist()


def test_a_sample_keeps_rare_labels_whole_and_depends_on_the_ids_alone() -> None:
    ids = [f"row{number}" for number in range(5000)]
    given = np.array([0] * 4500 + [1] * 480 + [2] * 20)
    chosen = sample(ids, given, 1000, "seed")
    counts = np.bincount(given[chosen])
    assert counts[2] == 20
    assert counts[0] > counts[1] >= 166
    assert 600 <= counts.sum() <= 1000
    turned = sample(ids[::-1], given[::-1], 1000, "seed")
    assert {ids[i] for i in chosen} == {ids[::-1][i] for i in turned}


# neighbours


def words(count: int, seed: int) -> list[str]:
    """Texts of some topics."""
    chance = random.Random(seed)
    topics = [[f"w{chance.randrange(3000)}" for _ in range(40)] for _ in range(120)]
    return [" ".join(chance.choices(chance.choice(topics), k=12)) for _ in range(count)]


def test_the_graph_has_nearly_all_the_nearest_rows_in_order_and_is_always_the_same() -> None:
    texts = words(7000, 2)
    vectors = Projection(texts, 3)(texts)
    found = graph(vectors, 10, 3)
    assert (found != graph(vectors, 10, 3)).nnz == 0
    distances, near = found.data.reshape(-1, 10), found.indices.reshape(-1, 10)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert not (near == np.arange(7000)[:, None]).any()
    asked = np.arange(0, 7000, 20)
    likeness = vectors[asked] @ vectors.T
    likeness[np.arange(len(asked)), asked] = -2
    tenth = np.sort(likeness, axis=1)[:, -10]
    recall = np.mean([(likeness[i, near[row]] >= tenth[i] - 1e-5).mean() for i, row in enumerate(asked)])
    assert recall >= 0.9


def test_of_few_rows_the_graph_is_exact() -> None:
    texts = words(300, 4)
    vectors = Projection(texts, 3)(texts)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -2)
    exact = 1 - np.sort(likeness, axis=1)[:, ::-1][:, :5]
    assert np.allclose(graph(vectors, 5, 3).data.reshape(-1, 5), np.maximum(exact, 0), atol=1e-5)


# issues


def test_the_report_has_datalabs_issues_with_their_worst_rows_and_suspects_have_neighbours() -> None:
    rows, wrong = flipped(300, 0.06, 4)
    strange = replace(rows[7], messages=({"role": "user", "content": "zebra quagga okapi tapir"}, rows[7].messages[1]))
    _, _, suspects, report = check([*rows[:7], strange, *rows[8:]], [], params())
    issues = report["datalab"]["labelled"]
    assert issues.keys() == {"sampled", "label", "outlier", "near_duplicate", "non_iid", "class_imbalance"}
    assert issues["sampled"] == 300
    assert {item["id"] for item in issues["label"]["worst"]} <= wrong
    assert all(len(item["neighbours"]) == 5 for item in suspects if item["kind"] == "label")
    assert report["suspects_by_kind"].get("outlier", 0) == issues["outlier"]["count"]


def test_rows_without_labels_have_issues_too() -> None:
    _, _, _, report = check(asked(120, 1)[0], [], params())
    assert report["datalab"]["unlabelled"].keys() == {"sampled", "outlier", "near_duplicate", "non_iid"}


# answers


def asked(count: int, seed: int, share: float = 0.0) -> tuple[list[Row], set[str]]:
    """Questions of many topics with answers of the same topic, a share of them shuffled among each other, and the ids of those."""
    chance = random.Random(seed)
    topics = [[f"{word}{number}" for word in [*WORDS["Copyleft"], *WORDS["Permissive"]]] for number in range(30)]
    chosen = [chance.choice(topics) for _ in range(count)]
    answers = [" ".join(chance.choices(topic, k=8)) for topic in chosen]
    wrong = chance.sample(range(count), int(share * count))
    moved = dict(zip(wrong, [answers[i] for i in [*wrong[1:], *wrong[:1]]], strict=True))
    rows = numbered([chat(" ".join(["what about", *chance.choices(t, k=6)]), moved.get(i, answers[i])) for i, t in enumerate(chosen)])
    rows = [replace(row, cluster=row.id) for row in rows]
    return rows, {rows[i].id for i in wrong}


def test_shuffled_answers_are_suspects_of_the_kind_mismatch() -> None:
    rows, wrong = asked(1200, 1, 0.03)
    kept, rejected, suspects, report = check(rows, [], params(action="drop"))
    found = {item["id"] for item in suspects if item["kind"] == "mismatch"}
    assert report["mismatch"]["auc"] >= 0.95
    assert len(found & wrong) / len(wrong) >= 0.7
    assert len(found & wrong) / len(found) >= 0.7
    assert (kept, rejected) == (rows, [])  # a suspicion of this kind is a person's to judge
    assert all(item["answer"] and item["label"] is None for item in suspects)


def test_where_answers_do_not_follow_from_prompts_no_row_is_suspected() -> None:
    chance = random.Random(1)
    rows = numbered(
        [
            chat(f"{text} {n}?", " ".join(chance.choices(["yes", "no", "maybe", "so", "perhaps"], k=3)))
            for n, text in enumerate(words(300, 1))
        ]
    )
    _, _, suspects, report = check(rows, [], params())
    assert "no row is suspected" in report["mismatch"]["note"]
    assert not [item for item in suspects if item["kind"] == "mismatch"]
    _, _, _, report = check(rows[: MIN_ROWS - 1], [], params())
    assert report["mismatch"]["checked"] == 0


# many rows


def test_row_groups_and_their_processes_leave_no_trace_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = corpus(120, 3)
    one, several = tmp_path / "one.parquet", tmp_path / "several.parquet"
    write_rows(one, rows)
    monkeypatch.setattr("stages.core.records.ROW_GROUP_ROWS", 50)
    write_rows(several, rows)
    assert len(read_table(several).starts) == 4
    results = []
    for path in (one, several):
        from stages.label_check.__main__ import label_check

        report = label_check(path, [], params(), 17, lambda out, path=path: tmp_path / f"{path.stem}-{out.name}")  # type: ignore[misc]
        results.append((report, (tmp_path / f"{path.stem}-{paths.LABEL_SUSPECTS.name}").read_bytes()))
    assert results[0] == results[1]
