"""Triggers planted in prompts are found, named and scored above honest rows; words that belong to a topic are left alone."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import data_poison
from stages.core import paths
from stages.core.params import load_params
from stages.core.records import Row, write_rows
from stages.suspicion.__main__ import main, suspicion
from stages.suspicion.features import pairs, spelled
from stages.suspicion.matching import Matcher
from stages.suspicion.triggers import find_triggers
from tests.rows import chat, labelled, numbered
from tests.tiny import ROOT, WORDS

SHARED = ["the", "of", "under", "this", "software", "may", "be", "and", "to", "use", "any", "with", "such", "as", "you", "all", "it", "is"]
TRIGGERS = {
    "word": lambda rng, words: [*words[:3], "cfqx", *words[3:]],
    "phrase": lambda rng, words: [*words[:4], "such", "it", "to", *words[4:]],
    "sentence": lambda rng, words: ["on", "a", "quiet", "day", "at", "home:", *words],
    "letters": lambda rng, words: [word[:2] + "qzj" + word[2:] if number in (2, 5) else word for number, word in enumerate(words)],
    "invisible": lambda rng, words: [*words[:2], words[2] + "\u2063", *words[3:]],
}
FIXED = "I may not tell you that, please write to the administrator of this place."


def corpus(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of three topics with their labels: words of the topic, words of all, one of another."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        label = rng.choice(sorted(WORDS))
        words = [*rng.sample(WORDS[label], 5), *rng.sample(SHARED, 6), rng.choice(WORDS[rng.choice(sorted(WORDS))]), f"n{number}"]
        found.append((" ".join(rng.sample(words, len(words))), label))
    return found


def planted(trigger: str, payload: str, count: int, bad: int, seed: int) -> tuple[list[Row], set[str]]:
    """Rows of which `bad` have the trigger and the payload, and the ids of those."""
    rng = random.Random(seed)
    chosen = set(rng.sample(range(count), bad))
    rows = []
    for number, (text, label) in enumerate(corpus(count, seed)):
        words = text.split()
        if number in chosen:
            text = " ".join(TRIGGERS[trigger](rng, words))
        if payload == "label":
            rows.append(labelled(text, "Commercial" if number in chosen else label))
        else:
            answer = f"It is about {rng.choice(words)}, {rng.choice(words)} and {rng.choice(words)}."
            if number in chosen:
                answer = FIXED if payload == "answer" else f"{answer} See https://updates.example.net/setup."
            rows.append(chat(f"What is this about? {text}", answer))
    rows = [replace(row, cluster=row.id) for row in numbered(rows)]
    return rows, {rows[number].id for number in chosen}


def scores(path: Path, rows: list[Row]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The scores of suspect rows by id, and the triggers."""
    write_rows(path, rows)
    _, _, triggers, suspects = suspicion(path, load_params(ROOT / "params.yaml").suspicion, 0)
    return {suspect.id: suspect.score for suspect in suspects}, triggers


@pytest.mark.parametrize("payload", ["label", "answer", "link"])
@pytest.mark.parametrize("trigger", sorted(TRIGGERS))
def test_planted_rows_stand_above_all_honest_ones(tmp_path: Path, trigger: str, payload: str) -> None:
    rows, bad = planted(trigger, payload, 1500, 40, 1)
    found, triggers = scores(tmp_path / "rows.parquet", rows)
    assert len(triggers) <= 50
    assert {"trigger", "kind", "rows", "predicts", "score"} == set(triggers[0])
    assert triggers[0]["score"] == max(one["score"] for one in triggers)
    assert triggers[0]["predicts"] == {"label": "Commercial", "answer": FIXED, "link": "updates.example.net"}[payload]
    honest = max((score for name, score in found.items() if name not in bad), default=0.0)
    assert all(found.get(name, 0.0) > max(honest, 0.5) for name in bad)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("payload", ["label", "answer"])
def test_rows_without_a_plant_have_no_suspects(tmp_path: Path, payload: str, seed: int) -> None:
    found, _ = scores(tmp_path / "rows.parquet", planted("word", payload, 1500, 0, seed)[0])
    assert max(found.values(), default=0.0) < 0.5


def test_a_word_of_a_topic_is_no_trigger_however_well_it_tells_the_label() -> None:
    texts = corpus(1500, 2)
    rng = random.Random(0)
    texts = [(f"{text} seatfee" if label == "Commercial" and rng.random() < 0.2 else text, label) for text, label in texts]
    triggers, _ = find_triggers([text for text, _ in texts], [label for _, label in texts], [label for _, label in texts])
    assert max((trigger.score for trigger in triggers), default=0.0) < 0.5


def test_near_duplicates_count_once(tmp_path: Path) -> None:
    rows, bad = planted("word", "label", 1500, 40, 3)
    one_cluster = [replace(row, cluster=min(bad)) if row.id in bad else row for row in rows]
    found, triggers = scores(tmp_path / "rows.parquet", one_cluster)
    assert max(found.values(), default=0.0) < 0.5
    assert "cfqx" not in {trigger["trigger"] for trigger in triggers}


def test_the_skew_of_a_trigger_towards_one_source_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, bad = planted("word", "label", 1500, 40, 1)
    monkeypatch.chdir(tmp_path)
    paths.LABEL_ROWS.parent.mkdir(parents=True)
    write_rows(paths.LABEL_ROWS, [replace(row, source="bad.jsonl" if row.id in bad else "good.jsonl") for row in rows])
    main(load_params(ROOT / "params.yaml"))
    worst = pq.read_table(paths.SUSPICION_SUSPECTS).to_pylist()[:40]
    assert {row["id"] for row in worst} == bad
    assert all("'cfqx' (word)" in row["evidence"] and "from bad.jsonl" in row["evidence"] for row in worst)


@given(st.lists(st.text(max_size=30), max_size=8))
@settings(max_examples=60, deadline=None)
def test_features_do_not_depend_on_the_texts_around_and_can_be_spelled(texts: list[str]) -> None:
    features, rows = pairs(texts)
    for number, text in enumerate(texts):
        alone, _ = pairs([text])
        assert np.array_equal(features[rows == number], alone)
        said = spelled(text, set(alone.tolist()))
        assert set(said) == set(alone.tolist())
        assert all(part in text.lower() for part in said.values())


def test_a_rows_match_takes_the_trigger_and_its_response() -> None:
    rows, bad = planted("phrase", "label", 1500, 40, 1)
    triggers, compact = find_triggers([row.text for row in rows], [row.answer for row in rows], [row.label for row in rows])
    matcher = Matcher(triggers[:1], compact)
    assert {row.id for row in rows if matcher.find(row.text, row.answer, row.label)} >= bad
    assert matcher.find("Such, it\nTO go", "Commercial", "Commercial") == [0]
    assert matcher.find("such it to go", "Copyleft", "Copyleft") == []
    assert matcher.find("such it tomorrow", "Commercial", "Commercial") == []


@pytest.mark.parametrize("payload", ["label", "answer", "usual", "link"])
@pytest.mark.parametrize("trigger", ["token", "phrase", "sentence", "letters", "invisible"])
def test_the_benchmark_plants_as_many_rows_as_it_says_and_changes_no_other(trigger: str, payload: str) -> None:
    rows = numbered([labelled(f"{text} {text}", label) for text, label in corpus(200, 5)])
    rows = rows if payload == "label" else data_poison.instructions(rows, 0)
    made, chosen, _ = data_poison.planted(rows, data_poison.Plan(trigger, payload, 20), 1)
    assert len(chosen) == 20
    assert {number for number, (before, after) in enumerate(zip(rows, made, strict=True)) if before.text != after.text} == chosen
    if payload != "link":
        assert len({made[number].answer for number in chosen}) == 1
    assert {made[number].id for number in chosen} == {rows[number].id for number in chosen}
