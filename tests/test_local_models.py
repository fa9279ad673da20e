"""The user's own models over the rows: entities by context, semantic duplicates, paraphrases of evaluation items; off, nothing is done."""

import random
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.params import Embedding, Entities, load_params
from stages.core.records import Row, read_rejected, read_rows, write_rows
from stages.core.redaction import Finding
from stages.dedupe.semantic import Vectors, find_semantic, near_pairs, read_vectors, unit
from stages.local_models.embedding import EmbeddingModel
from stages.local_models.entities import EntityModel, Span, Word, read_labels, spans_of, words_of
from stages.local_models.folders import checked, windows
from tests import small_models
from tests.rows import chat, labelled, numbered
from tests.tiny import ROOT, edit_params, write_jsonl

stage = import_module("stages.local_models.__main__")
dedupe = import_module("stages.dedupe.__main__")
KINDS = {"PER": "name", "LOC": "address"}


@pytest.fixture(scope="session")
def entity_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.entity_model(tmp_path_factory.mktemp("entities"))


@pytest.fixture(scope="session")
def embedding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.embedding_model(tmp_path_factory.mktemp("embedding"))


@pytest.fixture
def finder(entity_folder: Path) -> EntityModel:
    return EntityModel(entities(entity_folder), "cpu")


def entities(folder: Path, **changes: Any) -> Entities:
    values = {"folder": str(folder), "sha256": None, "labels": KINDS, "actions": {"default": "redact"}, "min_score": 0.5}
    return Entities.model_validate(values | changes)


def wanted(words: list[str], labels: list[str]) -> set[Finding]:
    """The spans of a made sentence, its words joined by spaces."""
    found: list[Finding] = []
    start = 0
    for word, label in zip(words, labels, strict=True):
        if label != "O":
            kind = KINDS[label[2:]]
            found.append(
                Finding(start, start + len(word), kind) if label[0] == "B" else Finding(found.pop().start, start + len(word), kind)
            )
        start += len(word) + 1
    return set(found)


def run(place: Path, rows: list[Row], items: list[dict[str, Any]], **models: Any) -> dict[str, Any]:
    """The stage over rows, by its own files, and its report; folders are pinned as they are."""
    write_rows(_made(paths.CLEAN_ROWS), rows)
    write_jsonl(paths.GENERAL / "task.jsonl", items)
    pinned = {name: {**model, "sha256": _digest(model["folder"])} for name, model in models.items()}
    edit_params(place, **{f"local_models__{name}": model for name, model in pinned.items()}, runtime__device="cpu")
    stage.main(load_params())
    return read_details(paths.LOCAL_REPORT)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _digest(folder: str) -> str:
    with pytest.raises(UserError, match="sha256 is null") as error:
        checked("x", folder, None)
    return str(error.value).split()[-1]


def test_names_are_found_that_the_model_never_saw_and_other_unknown_words_are_not(finder: EntityModel) -> None:
    rng = random.Random(99)
    made = [small_models.sentence(rng) for _ in range(200)]
    found = finder.find([" ".join(words) for words, _ in made])
    right = asked = told = 0
    for (words, labels), spans in zip(made, found, strict=True):
        want, got = wanted(words, labels), {span.finding for span in spans}
        right, asked, told = right + len(want & got), asked + len(want), told + len(got)
    assert right / asked > 0.85
    assert right / told > 0.8


@pytest.mark.parametrize("before", range(12))
def test_a_name_is_found_whole_wherever_it_lies_in_a_text_longer_than_a_window(finder: EntityModel, before: int) -> None:
    sentences = ["the order was sent on monday and paid by card ."] * 12
    text = " ".join([*sentences[:before], "my name is belarino and i need help .", *sentences[before:]])
    start = text.index("belarino")
    assert {span.finding for span in finder.find([text])[0]} == {Finding(start, start + len("belarino"), "name")}


@given(st.lists(st.sampled_from(["order", "belarino", "?", "x-1", "kolimupazeta"]), min_size=1, max_size=300), st.integers(8, 40))
def test_the_windows_of_a_text_give_each_of_its_words_once_and_in_order(said: list[str], tokens: int) -> None:
    tokenizer = small_models.word_pieces(["order"])
    text = " ".join(said)
    overlap = tokens // 4
    [cut] = windows(tokenizer, [text], tokens, overlap)
    found = list(words_of(cut, [np.full((len(window.ids), 1), number, np.float32) for number, window in enumerate(cut)], overlap))
    assert " ".join(text[word.start : word.end] for word in found) == " ".join(re.findall(r"\w+|[^\w\s]", text))


def test_what_a_text_holds_does_not_depend_on_the_texts_beside_it(finder: EntityModel) -> None:
    rng = random.Random(5)
    texts = [" ".join(small_models.sentence(rng)[0] * rng.choice([1, 5])) for _ in range(40)]
    together = finder.find(texts)
    alone = [finder.find([text])[0] for text in texts]
    assert [[span.finding for span in spans] for spans in together] == [[span.finding for span in spans] for spans in alone]
    assert finder.find(["", "   "]) == [[], []]


def word(start: int, end: int, **labels: float) -> Word:
    values = np.array([labels.get(name.replace("-", "_"), 0.0) for name in ("O", "B-PER", "I-PER", "E-PER")])
    return Word(start, end, values, values.astype(np.float32))


def test_words_of_one_entity_are_one_span_and_a_new_beginning_is_another() -> None:
    labels = read_labels({0: "O", 1: "B-PER", 2: "I-PER", 3: "E-PER"}, {"PER": "name"})
    text = "Ada King Lovelace and Bob Ray"
    words = [
        word(0, 3, B_PER=0.9, O=0.1),
        word(3, 8, I_PER=0.5, E_PER=0.3, O=0.2),  # with the space before it, as some tokenizers count
        word(9, 17, B_PER=0.3, E_PER=0.5, O=0.2),
        word(18, 21, O=0.9, I_PER=0.1),
        word(22, 25, B_PER=0.4, I_PER=0.2, O=0.4),
        word(26, 29, B_PER=0.8, O=0.2),
    ]
    assert spans_of(text, words, labels, 0.0) == [
        Span(Finding(0, 17, "name"), 0.8333),
        Span(Finding(22, 25, "name"), 0.6),
        Span(Finding(26, 29, "name"), 0.8),
    ]
    assert [span.finding.start for span in spans_of(text, words, labels, 0.7)] == [0, 26]
    assert spans_of("<NAME_1> King Lovelace", words[:1], labels, 0.0) == []


def test_a_label_that_the_model_does_not_have_is_told_with_those_it_has() -> None:
    with pytest.raises(UserError, match="names PERSON, which the model does not have; it has LOC, O, PER"):
        read_labels({0: "O", 1: "B-PER", 2: "B-LOC"}, {"PERSON": "name"})


def test_entities_are_redacted_dropped_or_kept_by_kind_and_no_value_is_written_but_in_kept_rows(place: Path, entity_folder: Path) -> None:
    rows = numbered(
        [
            chat("my name is belarino and i need help . please ask <NAME_1> about the invoice . <EMAIL_1>", "dear belarino , thank you"),
            chat("send it to kolimupa street 7 by monday", "the order was sent"),
            labelled("please ask zavoneti about the invoice", "zavoneti"),
            chat("install the package zumikola and read the manual", "the order was sent on monday"),
        ]
    )
    settings = {"folder": str(entity_folder), "labels": KINDS, "actions": {"default": "redact", "address": "drop"}, "min_score": 0.5}
    report = run(place, rows, [], entities=settings)
    kept = {row.id: row for row in read_rows(paths.LOCAL_ROWS)}
    first = kept[rows[0].id]
    asked = first.text
    assert asked == "my name is <NAME_2> and i need help . please ask <NAME_1> about the invoice . <EMAIL_1>"
    assert first.answer == "dear <NAME_2> , thank you", "one placeholder for one value of a row"
    assert kept[rows[2].id].text == "please ask <NAME_1> about the invoice"
    assert kept[rows[2].id].answer == "zavoneti", "a label is never changed"
    assert kept[rows[3].id] == rows[3]
    gone = read_rejected(paths.LOCAL_REJECTED)
    assert [(item.row.id, item.rule) for item in gone] == [(rows[1].id, "entities")]
    assert len(kept) + len(gone) == report["rows_in"] == 4
    spans = pq.read_table(paths.LOCAL_SPANS).to_pylist()
    values = {rows_text(rows, span)[span["start"] : span["end"]] for span in spans}
    assert {"belarino", "zavoneti"} < values
    assert {span["action"] for span in spans if span["kind"] == "address"} == {"drop"}
    written = paths.LOCAL_REPORT.read_text() + str(spans) + str([(item.evidence, item.row.messages) for item in gone])
    assert not any(value in written for value in ("belarino", "kolimupa"))
    assert report["entities"]["kinds"]["name"]["rows"] == 2


def rows_text(rows: list[Row], span: dict[str, Any]) -> str:
    row = next(row for row in rows if row.id == span["id"])
    return row.messages[span["text"]]["content"]


def test_without_models_the_rows_are_the_same_file_and_no_model_library_is_loaded(place: Path) -> None:
    write_rows(_made(paths.CLEAN_ROWS), numbered([chat("a", "b")]))
    code = "import sys; from stages.local_models.__main__ import main; from stages.core.params import load_params; main(load_params())"
    check = f"{code}; print([name for name in ('torch', 'transformers', 'sklearn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout.strip() == "[]"
    assert paths.LOCAL_ROWS.samefile(paths.CLEAN_ROWS)
    assert read_rejected(paths.LOCAL_REJECTED) == []
    assert read_vectors(paths.LOCAL_VECTORS, 1) is None


def test_weights_are_pinned_and_others_are_refused_with_the_digest_to_set(place: Path, entity_folder: Path) -> None:
    found = _digest(str(entity_folder))
    assert checked("x", str(entity_folder), found)["sha256"] == found
    with pytest.raises(UserError, match=rf"has the digest {found}, but x.sha256 is {'0' * 64}.*or set x.sha256: {found}"):
        checked("x", str(entity_folder), "0" * 64)
    with pytest.raises(UserError, match=r"x.folder nowhere is not a folder; it needs config.json"):
        checked("x", "nowhere", None)
    edit_params(
        place, local_models__entities={"folder": str(entity_folder), "sha256": found, "labels": {}, "actions": {}, "min_score": 0.5}
    )
    with pytest.raises(UserError, match="labels is empty; map the model's labels"):
        load_params()


def test_an_embedding_model_has_no_labels_and_is_refused_as_one_of_entities(embedding_folder: Path) -> None:
    with pytest.raises(UserError, match=r"has no weights for classifier\.bias, which would be random"):
        EntityModel(entities(embedding_folder), "cpu")


def test_a_text_has_one_vector_whatever_stands_beside_it_and_however_long_it_is(embedding_folder: Path) -> None:
    model = EmbeddingModel(Embedding(folder=str(embedding_folder), sha256=None, pooling="mean"), "cpu")
    rng = random.Random(1)
    texts = [small_models.meaning(rng, rng.sample(range(24), 7)) for _ in range(30)]
    texts += [" ".join(texts), ""]
    together = model.vectors(texts).astype(np.float32)
    alone = np.concatenate([model.vectors([text]) for text in texts]).astype(np.float32)
    assert np.abs(together - alone).max() < 2e-3
    assert np.linalg.norm(together[:-1], axis=1) == pytest.approx(1, abs=2e-3)
    assert not together[-1].any()
    assert model.cut == 2
    cls = EmbeddingModel(Embedding(folder=str(embedding_folder), sha256=None, pooling="cls"), "cpu")
    assert np.abs(cls.vectors(texts[:1]).astype(np.float32) - together[0]).max() > 0.01


def test_rows_in_other_words_are_duplicates_and_of_an_item_paraphrases(place: Path, embedding_folder: Path) -> None:
    rng = random.Random(3)

    def said(concepts: list[int]) -> str:
        return small_models.meaning(rng, concepts)

    first, second, third, fourth, item = (list(range(start, start + 6)) for start in (0, 4, 9, 13, 18))
    rows = numbered(
        [
            chat(said(first), said(second)),
            chat(said(first), said(second)),
            chat(said(first), said(third)),
            labelled(said(third), "x"),
            labelled(said(third), "x"),
            labelled(said(third), "y"),
            chat(said(item), said(fourth)),
            chat(said(fourth), said(item)),
        ]
    )
    model = {"folder": str(embedding_folder), "pooling": "mean"}
    report = run(place, rows, [{"id": "7", "task": "arc", "context": said(item), "choices": ["yes", "no"]}], embedding=model)
    assert report["embedding"]["dimensions"] == 64
    edit_params(place, dedupe__semantic_threshold=0.85, dedupe__paraphrase_threshold=0.85)
    dedupe.main(load_params())
    kept, gone = read_rows(paths.DEDUPE_ROWS), read_rejected(paths.DEDUPE_REJECTED)
    assert {row.id for row in kept} | {item.row.id for item in gone} == {row.id for row in rows}
    rules = {item.row.id: item.rule for item in gone}
    assert sorted(rules.values()) == ["paraphrase"] * 2 + ["semantic_duplicate"] * 2
    assert {rules[row.id] for row in rows[6:]} == {"paraphrase"}
    assert len({rows[0].id, rows[1].id} & set(rules)) == 1
    assert len({rows[3].id, rows[4].id} & set(rules)) == 1
    assert all(item.evidence["kept"] not in rules for item in gone if item.rule == "semantic_duplicate")
    assert all(item.evidence["task"] == "arc" and item.evidence["cosine"] >= 0.85 for item in gone if item.rule == "paraphrase")
    clusters = {row.id: row.cluster for row in kept}
    assert len({clusters[row.id] for row in rows[:3] if row.id in clusters}) == 1, "another answer stays, on the same side of the split"
    assert len({clusters[row.id] for row in rows[3:6] if row.id in clusters}) == 1
    shown = read_details(paths.DEDUPE_REPORT)["examples"]
    assert {"semantic_duplicate", "paraphrase"} <= set(shown)


def test_vectors_of_other_rows_are_refused(place: Path, embedding_folder: Path) -> None:
    run(place, numbered([chat("buy a car", "yes")]), [], embedding={"folder": str(embedding_folder), "pooling": "mean"})
    with pytest.raises(UserError, match="has vectors of 1 rows, but there are 2; make them again: dvc repro -f local_models"):
        read_vectors(paths.LOCAL_VECTORS, 2)


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.floats(0.5, 1.0), st.booleans())
def test_every_semantic_repeat_names_a_kept_row_that_is_as_near(seed: int, threshold: float, keep: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = 40
    views = [
        unit(rng.normal(size=(8, 4))[rng.integers(0, 8, rows)] + 0.2 * rng.normal(size=(rows, 4))).astype(np.float16) for _ in range(3)
    ]
    vectors = Vectors(views[0], views[1], views[2], np.zeros((0, 4), np.float16), [])
    label = rng.integers(0, 3, rows).astype(np.uint64)
    common = rng.random(rows) < 0.3
    found = find_semantic(vectors, np.arange(rows), label, common, threshold, 0, keep)
    assert not (keep and found.repeats)
    for row, (its, cosine) in found.repeats.items():
        assert its < row
        assert its not in found.repeats
        assert label[row] == label[its]
        assert cosine >= round(threshold, 4) - 1e-4
        assert (row, its) in found.joined
    if not keep:  # nothing that could still be dropped stays
        stay = np.array([row for row in range(rows) if row not in found.repeats])
        assert find_semantic(vectors, stay, label[stay], common[stay], threshold, 0, False).repeats == {}


def test_cells_find_nearly_every_near_pair_among_more_rows_than_are_compared_one_by_one() -> None:
    # centres in every direction alike are the worst case for cells: texts lie in clusters
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(6_000, 32)))
    vectors = unit(np.concatenate([centres, centres[:600] + 0.05 * rng.normal(size=(600, 32))]))
    pairs = np.concatenate(list(near_pairs(vectors, np.arange(len(vectors)), 0.9, 0)))
    found = {(int(one), int(other)) for one, other in pairs}
    planted = [number for number in range(600) if vectors[number] @ vectors[6_000 + number] >= 0.9]
    assert len(planted) > 500
    assert sum((6_000 + number, number) in found for number in planted) / len(planted) > 0.9
