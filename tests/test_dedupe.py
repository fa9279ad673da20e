"""Dedupe drops what repeats and what would teach the exam, keeps what contradicts, and does nothing more the second time."""

import json
import random
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import data_dedupe
from stages.core import paths, records
from stages.core.errors import UserError
from stages.core.params import Dedupe, load_params
from stages.core.records import Rejected, Row, read_rejected, read_rows, write_rows
from stages.core.words import found_words, normalised, words
from stages.dedupe import facts
from stages.dedupe.clusters import jaccard, jaccard_of_few
from stages.dedupe.contamination import EvaluationIndex
from stages.dedupe.facts import Sets, shingled
from stages.dedupe.signatures import rows_per_band
from tests.rows import chat, labelled, numbered, preference
from tests.tiny import write_jsonl

stage = import_module("stages.dedupe.__main__")
LEXICON = [f"w{number}" for number in range(3000)]
COMMITTED = load_params(Path(__file__).parent.parent / "params.yaml").dedupe.model_dump()
QUESTION = "Which tool would a scientist best use to measure the mass of a small rock found near the river?"


def params(**changes: object) -> Dedupe:
    return Dedupe.model_validate({**COMMITTED, **changes})


@pytest.fixture
def index(tmp_path: Path) -> Path:
    write_jsonl(
        tmp_path / "arc_easy.jsonl",
        [
            {"id": "a-1", "task": "arc_easy", "context": f"Question: {QUESTION}\nAnswer:", "choices": ["a balance", "a ruler"], "gold": 0},
            {"id": "a-2", "task": "arc_easy", "context": "Question: What do bees make?\nAnswer:", "choices": ["honey", "milk"], "gold": 0},
        ],
    )
    passage = " ".join(LEXICON[2000:2030])
    write_jsonl(tmp_path / "lambada.jsonl", [{"id": "l-1", "task": "lambada", "context": passage, "continuation": "w2030"}])
    return tmp_path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path / "none"


def dedupe(rows: list[Row], general: Path, **changes: object) -> tuple[list[Row], list[Rejected], dict]:
    """Kept and rejected rows and the report, by way of the stage's own files in a folder of their own."""
    with TemporaryDirectory() as folder:
        write_rows(Path(folder) / "clean.parquet", rows)
        places = {path: Path(folder) / path.name for path in (paths.DEDUPE_ROWS, paths.DEDUPE_REJECTED)}
        report = stage.dedupe(Path(folder) / "clean.parquet", general, params(**changes), 17, places.__getitem__)
        return read_rows(places[paths.DEDUPE_ROWS]), read_rejected(places[paths.DEDUPE_REJECTED]), report


def similarity(one: str, other: str) -> float:
    """The Jaccard similarity of the 3-word shingles of two texts."""
    first, second = (set(shingled([words(text)], 3)[0].tolist()) for text in (one, other))
    return len(first & second) / len(first | second)


def rules(rejected: list[Rejected]) -> list[str]:
    return sorted(item.rule for item in rejected)


def sentence(rng: random.Random, length: int) -> list[str]:
    return rng.choices(LEXICON[:1900], k=length)


# exact


def test_rows_that_differ_in_case_layout_and_punctuation_are_exact_duplicates_and_the_smallest_id_stays(empty: Path) -> None:
    rows = numbered([labelled(text, "A") for text in ("Released under MIT.", "* released under\n  (MIT)", "released UNDER mit!")])
    kept, rejected, _ = dedupe(rows, empty)
    assert [row.id for row in kept] == [min(row.id for row in rows)]
    assert rules(rejected) == ["exact_duplicate"] * 2
    assert {item.evidence["kept"] for item in rejected} == {kept[0].id}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpl 2", "gpl 2+"),
        ("use C", "use C++"),
        ("3 - 4", "3 + 4"),
        ("3-4", "3/4"),
        ("1.5", "15"),
        ("?", "!"),
        ("a = b", "a < b"),
        ("", "?"),
    ],
)
def test_signs_that_carry_meaning_are_words(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def test_a_script_without_spaces_is_compared_by_its_characters() -> None:
    assert words("自由软件") == ["自", "由", "软", "件"]
    assert similarity("这个程序是自由软件你可以修改它", "这个程序是自由软件你可以修改他") > 0.8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat("What is two and two?", "Four."), chat("What is two and two?", "Twenty-two.")),
        (labelled("licensed under the same terms as Perl itself", "A"), labelled("licensed under the same terms as Perl itself", "B")),
        (preference("Say hello to them.", "Hello!", "No."), preference("Say hello to them.", "Good day to you!", "No.")),
    ],
)
def test_the_same_prompt_with_another_answer_is_a_conflict_in_one_cluster_and_never_dropped(one: Row, other: Row, empty: Path) -> None:
    rows = numbered([one, other])
    kept, rejected, report = dedupe(rows, empty)
    assert kept == [row.__class__(**{**{n: getattr(row, n) for n in row.__slots__}, "cluster": min(r.id for r in rows)}) for row in rows]
    assert rejected == []
    assert (report["conflicts"], report["conflicting_rows"]) == (1, 2)
    assert {item["id"] for item in report["conflict_examples"][0]} == {row.id for row in rows}


def test_a_near_duplicate_with_another_label_is_a_conflict_and_with_the_same_label_it_is_dropped(empty: Path) -> None:
    text = " ".join(LEXICON[:30])
    kept, rejected, report = dedupe(numbered([labelled(text, "A"), labelled(f"{text} more", "B"), labelled(f"the {text}", "A")]), empty)
    assert rules(rejected) == ["near_duplicate"]
    assert len({row.cluster for row in kept}) == 1
    assert {row.label for row in kept} == {"A", "B"}
    assert report["conflicts"] == 1


def test_a_long_system_message_does_not_make_all_rows_alike(empty: Path) -> None:
    system = " ".join(LEXICON[:300])
    rows = numbered([chat(f"What is {word}?", f"It is {number}.", system=system) for number, word in enumerate(LEXICON[500:520])])
    kept, _, _ = dedupe(rows, empty)
    assert len(kept) == 20


def test_a_prompt_that_many_rows_share_is_an_instruction_and_makes_no_cluster(empty: Path) -> None:
    rng = random.Random(5)
    rows = numbered([chat("Write a short poem about anything you like.", " ".join(sentence(rng, 12))) for _ in range(30)])
    kept, _, report = dedupe(rows, empty)
    assert len({row.cluster for row in kept}) == len(kept) == 30
    assert (report["shared_prompts"], report["conflicts"]) == (1, 0)


# near


def planted(count: int, seed: int) -> tuple[list[Row], list[tuple[str, str]]]:
    """Pairs of texts with a shingle similarity of at least 0.8 among as many that resemble nothing."""
    rng = random.Random(seed)
    rows, pairs = [], []
    while len(pairs) < count:
        original = sentence(rng, rng.randint(20, 60))
        changed = list(original)
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(len(changed) + 1)
            changed[place : place + rng.randint(0, 1)] = rng.choices(LEXICON[1900:2000], k=rng.randint(0, 1))
        if original != changed and similarity(" ".join(original), " ".join(changed)) >= 0.8:
            pairs.append((" ".join(original), " ".join(changed)))
            rows += [labelled(text, "A") for text in pairs[-1]]
    rows += [labelled(" ".join(sentence(rng, 40)), "A") for _ in range(count)]
    return numbered(rows), pairs


@pytest.mark.parametrize("seed", range(2))
def test_near_duplicates_of_prompts_and_of_whole_rows_are_found_and_no_conflict_is_dropped(seed: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(sentence(rng, rng.randint(15, 60))) for _ in range(1500)]
    rows, pairs = data_dedupe.planted(texts, seed, 3)
    found = data_dedupe.figures(rows, pairs, params(), 17)
    assert found.recall.keys() == set(data_dedupe.KINDS)
    assert min(found.recall.values()) >= 0.97
    assert found.precision >= 0.99
    assert found.lost == 0
    assert found.dropped >= 0.95 * sum(pair.kind not in data_dedupe.CONFLICTS for pair in pairs)


@pytest.mark.parametrize("seed", range(3))
def test_planted_near_duplicates_are_found_and_nothing_else(seed: int, empty: Path) -> None:
    rows, pairs = planted(300, seed)
    kept, rejected, _ = dedupe(rows, empty)
    gone = {item.row.text for item in rejected}
    found = sum(bool({one, other} & gone) for one, other in pairs)
    assert found / len(pairs) >= 0.97
    assert gone <= {text for pair in pairs for text in pair}
    by_text = {text: number for number, pair in enumerate(pairs) for text in pair}
    by_id = {row.id: row for row in kept}
    assert all(by_text[item.row.text] == by_text[by_id[item.evidence["kept"]].text] for item in rejected)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_banding_finds_a_pair_at_the_threshold_with_a_probability_of_0_99(threshold: float) -> None:
    depth = rows_per_band(threshold)
    assert 1 - (1 - threshold**depth) ** (128 // depth) >= 0.99


def test_near_duplicates_can_be_kept_in_one_cluster(empty: Path) -> None:
    rows, pairs = planted(50, 9)
    kept, rejected, _ = dedupe(rows, empty, keep_near_duplicates=True)
    assert rejected == []
    cluster = {row.text: row.cluster for row in kept}
    assert sum(cluster[one] == cluster[other] for one, other in pairs) >= 49
    assert len(set(cluster.values())) <= len(rows) - 49


def test_a_text_shorter_than_a_shingle_is_compared_whole(empty: Path) -> None:
    kept, _, _ = dedupe(numbered([chat(prompt, "Yes.") for prompt in ("mit", "MIT!", "bsd", "zlib", "mit bsd")]), empty)
    assert len(kept) == 4


def test_time_grows_with_the_rows_and_not_with_their_square(empty: Path) -> None:
    base = LEXICON[:40]
    rng = random.Random(1)
    # all of one template, three of forty words changed: every row is near the threshold to every other
    texts = [
        [*base[:5], rng.choice(LEXICON), *base[6:20], rng.choice(LEXICON), *base[21:35], rng.choice(LEXICON), *base[36:]]
        for _ in range(4000)
    ]
    rows = numbered([labelled(" ".join(text), "AB"[number % 2]) for number, text in enumerate(texts)])
    start = time.process_time()
    dedupe(rows, empty, near_threshold=0.6, keep_near_duplicates=True)
    assert time.process_time() - start < 15


def test_the_similarity_of_arrays_is_that_of_sets() -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(LEXICON[:40], k=rng.randint(1, 60))) for _ in range(200)]
    shingles, counts = shingled(map(words, texts), 3)
    sets = Sets(shingles, np.cumsum(counts) - counts, counts)
    one, other = np.full(200, 7), np.arange(200)
    expected = [data_dedupe.near(texts[7], text, 3) for text in texts]
    assert jaccard(sets, one, other).tolist() == pytest.approx(expected)
    assert jaccard_of_few(sets, one, other).tolist() == pytest.approx(expected)


@given(st.text(st.characters(max_codepoint=127)))
def test_a_text_in_ascii_has_the_words_that_any_text_would_have(text: str) -> None:
    beside = words(f"{text}\n\u00e9")  # a letter beyond ASCII takes the way of all other texts
    assert [*(found_words(text)), "\u00e9"] == beside


def test_the_number_of_processes_and_of_row_groups_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROW_GROUP_ROWS", 150)  # the files have 20,000
    rows = [*planted(150, 3)[0], *numbered([chat(f"What is {word}?", f"It is {word}.") for word in LEXICON[:50]])]
    write_rows(tmp_path / "source.parquet", rows)
    outs = []
    for processes in (1, 2):
        monkeypatch.setattr(facts, "cores", lambda processes=processes: processes)
        stage.dedupe(tmp_path / "source.parquet", tmp_path / "none", params(), 17, lambda path: tmp_path / path.name)
        outs.append([(tmp_path / path.name).read_bytes() for path in (paths.DEDUPE_ROWS, paths.DEDUPE_REJECTED)])
    assert outs[0] == outs[1]
    kept = dedupe(rows, tmp_path / "none")[0]
    assert read_rows(tmp_path / paths.DEDUPE_ROWS.name) == kept


# contamination


@pytest.mark.parametrize(
    ("row", "task", "item", "length"),
    [
        (chat(f"Help me: {QUESTION.upper()}", "A balance."), "arc_easy", "a-1", 19),
        (chat("Tell me something.", f"They asked: {QUESTION.lower()} a balance"), "arc_easy", "a-1", 19),
        (chat("What do bees make?", "Honey."), "arc_easy", "a-2", 4),
        (labelled(" ".join(["before", *LEXICON[2010:2031], "after"]), "A"), "lambada", "l-1", 21),
        (preference("Go on.", " ".join(LEXICON[2000:2013]), "No."), "lambada", "l-1", 13),
    ],
)
def test_a_row_with_an_evaluation_item_is_rejected_with_task_item_and_length(
    row: Row, task: str, item: str, length: int, index: Path
) -> None:
    _, rejected, report = dedupe(numbered([row]), index)
    assert [(r.rule, r.evidence) for r in rejected] == [("contamination", {"task": task, "item": item, "words": length})]
    assert report["evaluation_items"] == {"arc_easy": 2, "lambada": 1}


@pytest.mark.parametrize(
    "text",
    [
        " ".join(QUESTION.split()[:12]),  # a word short, and no label makes up for it
        "What do bees make in the hive in spring?",  # holds a short item, but is not one
        "The answer is honey",
        " ".join([*LEXICON[2000:2012], "other", *LEXICON[2012:2024]]),
    ],
)
def test_less_than_an_item_is_no_contamination(text: str, index: Path) -> None:
    assert dedupe(numbered([labelled(text, "A")]), index)[1] == []


def test_a_broken_evaluation_file_is_told_by_file_and_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "piqa.jsonl", [{"id": "1", "task": "piqa", "context": "c", "continuation": "d"}, {"id": "2", "task": "piqa"}])
    with pytest.raises(UserError, match=r"piqa.jsonl, line 2 is no item .* dvc repro -f -s fetch_general"):
        EvaluationIndex(tmp_path, 13)


def test_two_rows_with_one_id_are_an_error(empty: Path) -> None:
    row = numbered([labelled("some text of a row", "A")])[0]
    with pytest.raises(UserError, match="two rows with the same id"):
        dedupe([row, row], empty)


# invariants

PIECES = [*LEXICON[:6], "W1,", "\n", "你好", "c++", "3 - 4", *(" ".join(LEXICON[i : i + 12]) for i in range(0, 36, 6))]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join)
ROWS = st.lists(
    st.builds(chat, TEXTS, TEXTS) | st.builds(labelled, TEXTS, st.sampled_from(["A", "B"])) | st.builds(preference, TEXTS, TEXTS, TEXTS),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([0.5, 0.8, 1.0]), st.booleans(), st.randoms())
def test_rows_are_conserved_twice_drops_nothing_more_and_order_does_not_matter(
    rows: list[Row], threshold: float, keep: bool, rng: random.Random
) -> None:
    index = Path("no-such-folder")
    rows = numbered(rows)
    kept, rejected, report = dedupe(rows, index, near_threshold=threshold, keep_near_duplicates=keep)
    assert sorted(row.id for row in rows) == sorted(row.id for row in [*kept, *(item.row for item in rejected)])
    assert sum(report["rejected"].values()) == len(rejected)
    kept_ids = {row.id for row in kept}
    assert all(item.evidence["kept"] in kept_ids for item in rejected), "a duplicate of a row that is gone"
    assert {row.cluster for row in kept} <= kept_ids, "a cluster's representative is gone"
    assert [row.id for row in kept] == [row.id for row in rows if row.id in kept_ids]
    assert dedupe(kept, index, near_threshold=threshold, keep_near_duplicates=keep)[1] == []
    shuffled = rng.sample(rows, len(rows))
    assert {(row.id, row.cluster) for row in dedupe(shuffled, index, near_threshold=threshold, keep_near_duplicates=keep)[0]} == {
        (row.id, row.cluster) for row in kept
    }


def test_the_stage_writes_equal_bytes_and_every_row_has_its_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows, _ = planted(30, 3)
    paths.LOCAL_VECTORS.mkdir(parents=True)
    write_rows(paths.LOCAL_ROWS, rows)
    (paths.LOCAL_VECTORS / "models.json").write_text('{"embedding": null}')
    write_jsonl(paths.GENERAL / "lambada.jsonl", [{"id": "1", "task": "lambada", "context": rows[-1].text, "continuation": "end"}])
    outs = []
    for _ in range(2):
        stage.main(load_params(Path(__file__).parent.parent / "params.yaml"))
        outs.append([path.read_bytes() for path in (paths.DEDUPE_ROWS, paths.DEDUPE_REJECTED, paths.DEDUPE_REPORT)])
    assert outs[0] == outs[1]
    assert all(row.cluster for row in read_rows(paths.DEDUPE_ROWS))
    assert json.loads(outs[0][2])["details"][0]["rejected"]["contamination"] == 1
