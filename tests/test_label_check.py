"""Label check finds planted wrong labels, obeys people's decisions, and leaves rows without labels alone."""

import random
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core import paths
from stages.core.errors import UserError
from stages.core.params import LabelCheck, load_params
from stages.core.records import Rejected, Row, read_rejected, read_rows, write_rows
from stages.label_check import __main__ as stage
from stages.label_check.decisions import Decision, read_decisions
from tests.rows import chat, labelled, numbered
from tests.tiny import ROOT, WORDS

HEADER = "id,action,who,when,why,label\n"
SHARED = ["the", "of", "under", "this", "software", "may", "be", "and", "to", "use", "any", "with"]


def params(**changes: object) -> LabelCheck:
    return LabelCheck.model_validate({**load_params(ROOT / "params.yaml").label_check.model_dump(), **changes})


def corpus(count: int, seed: int) -> list[Row]:
    """Texts of three classes: a few words of the class, as many of all classes, a few of another."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = sorted(WORDS)[number % 3]
        other = rng.choice(sorted(WORDS))
        chosen = [*rng.sample(WORDS[label], 4), *rng.sample(SHARED, 5), rng.choice(WORDS[other]), f"n{number}"]
        rows.append(labelled(" ".join(rng.sample(chosen, len(chosen))), label))
    return [replace(row, cluster=row.id) for row in numbered(rows)]


def relabelled(row: Row, label: str) -> Row:
    return replace(row, label=label, messages=(row.messages[0], {**row.messages[1], "content": label}))


def flipped(count: int, share: float, seed: int) -> tuple[list[Row], set[str]]:
    """The corpus with a share of its labels wrong, and the ids of those rows."""
    rng = random.Random(seed)
    rows = corpus(count, seed)
    wrong = set(rng.sample(range(count), int(share * count)))
    flip = {i: rng.choice([label for label in sorted(WORDS) if label != rows[i].label]) for i in sorted(wrong)}
    return [relabelled(row, flip[i]) if i in flip else row for i, row in enumerate(rows)], {rows[i].id for i in wrong}


Result = tuple[list[Row], list[Rejected], list[dict[str, Any]], dict[str, Any]]


def check(rows: list[Row], decisions: list[Decision], given: LabelCheck, seed: int = 17) -> Result:
    """The stage on rows of memory: kept, rejected, suspects, report."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "in.parquet"), rows)
        report = stage.label_check(Path(folder, "in.parquet"), decisions, given, seed, lambda path: Path(folder, path.name))
        suspects = pq.read_table(Path(folder, paths.LABEL_SUSPECTS.name)).to_pylist()
        return read_rows(Path(folder, paths.LABEL_ROWS.name)), read_rejected(Path(folder, paths.LABEL_REJECTED.name)), suspects, report


def decide(row: Row, action: str, label: str = "", line: int = 2) -> Decision:
    return Decision(row.id, action, "ann", "seen", label, line)


# suspects


@pytest.mark.parametrize("seed", range(2))
def test_planted_label_errors_are_found(seed: int) -> None:
    rows, wrong = flipped(600, 0.05, seed)
    kept, rejected, suspects, report = check(rows, [], params())
    found = {suspect["id"] for suspect in suspects}
    assert len(found & wrong) / len(wrong) >= 0.65
    assert len(found & wrong) / len(found) >= 0.9
    assert (kept, rejected) == (rows, [])
    assert report["suspects"] == len(suspects)
    assert [item["id"] for item in report["top_suspects"]] == [suspect["id"] for suspect in suspects[:20]]
    assert report["accuracy"] > 0.8


def test_suspects_stand_worst_first_with_the_label_the_others_speak_for() -> None:
    rows, wrong = flipped(300, 0.05, 4)
    truth = {row.id: row.label for row in corpus(300, 4)}
    _, _, suspects, _ = check(rows, [], params())
    assert [suspect["confidence"] for suspect in suspects] == sorted(suspect["confidence"] for suspect in suspects)
    assert {suspect["id"] for suspect in suspects[:5]} <= wrong
    assert all(suspect["suggested"] == truth[suspect["id"]] for suspect in suspects[:5])


def test_copies_of_a_wrong_label_cannot_vouch_for_each_other() -> None:
    rows = corpus(300, 5)
    copies = [
        replace(rows[0], id=f"copy{n}", messages=({**rows[0].messages[0], "content": f"{rows[0].text} {n}"}, rows[0].messages[1]))
        for n in range(4)
    ]
    wrong = [relabelled(replace(row, cluster="one"), "Permissive") for row in copies if row.label != "Permissive"]
    assert wrong
    _, _, apart, _ = check([*rows[1:], *wrong], [], params())
    assert {row.id for row in wrong} <= {suspect["id"] for suspect in apart}
    grouped = [replace(row, cluster=row.id, group="same customer") for row in wrong]
    _, _, apart, _ = check([*rows[1:], *grouped], [], params())
    assert {row.id for row in wrong} <= {suspect["id"] for suspect in apart}
    together = [replace(row, cluster=row.id) for row in wrong]
    _, _, vouched, _ = check([*rows[1:], *together], [], params())
    assert not {row.id for row in wrong} & {suspect["id"] for suspect in vouched}


def test_drop_takes_the_worst_up_to_the_share_and_tells_how_many_the_cap_kept() -> None:
    rows, _ = flipped(300, 0.1, 1)
    _, _, suspects, _ = check(rows, [], params())
    kept, rejected, _, report = check(rows, [], params(action="drop", max_drop_share=0.02))
    assert {item.row.id for item in rejected} == {suspect["id"] for suspect in suspects[:6]}
    assert {item.rule for item in rejected} == {"suspect_label"}
    assert all(item.evidence["suggested"] != item.row.label for item in rejected)
    assert report["kept_by_cap"] == len(suspects) - 6
    assert len(kept) == 294


def test_a_rare_label_is_reported_as_unchecked_and_its_rows_stay() -> None:
    rows = [*corpus(150, 2), *numbered([labelled(f"a rare thing {n}", "Rare") for n in range(3)])]
    kept, _, suspects, report = check(rows, [], params(action="drop"))
    assert report["unchecked_labels"] == {"Rare": 3}
    assert "fewer than 5 independent rows" in report["note"]
    assert report["checked"] == 150
    assert sum(row.label == "Rare" for row in kept) == 3
    assert not any(suspect["suggested"] == "Rare" for suspect in suspects)


@pytest.mark.parametrize("rows", [[], [labelled("only one", "A")], [labelled(f"text {n}", "A") for n in range(30)]])
def test_with_nothing_to_compare_the_report_says_so(rows: list[Row]) -> None:
    kept, rejected, suspects, report = check(numbered(rows), [], params())
    assert (len(kept), rejected, suspects, report["checked"]) == (len(rows), [], [], 0)
    assert "nothing" in report["note"]


def test_rows_without_a_label_pass_through_among_labelled_ones() -> None:
    chats = numbered([chat(f"Question {n}?", "Answer.") for n in range(20)])
    kept, _, suspects, report = check([*chats, *corpus(60, 3)], [], params())
    assert kept[:20] == chats
    assert report["labelled"] == 60
    assert not {suspect["id"] for suspect in suspects} & {row.id for row in chats}


def test_a_cluster_with_two_labels_is_reported_as_a_conflict() -> None:
    rows = corpus(30, 6)
    rows[1] = replace(rows[1], cluster=rows[0].id)
    _, _, suspects, report = check(rows, [], params())
    assert report["conflicts"] == 1
    assert {item["id"] for item in report["top_conflicts"][0]} == {rows[0].id, rows[1].id}
    shown = {item["id"]: item for item in suspects if item["kind"] == "conflict"}
    assert shown.keys() == {rows[0].id, rows[1].id}
    assert shown[rows[0].id]["suggested"] == rows[1].label
    assert shown[rows[0].id]["neighbours"] == [rows[1].id]


def test_answers_that_contradict_each_other_are_a_conflict_and_answers_that_agree_are_none() -> None:
    asked = [chat("What is the capital of France?", answer) for answer in ("It is Paris.", "It is Lyon, in the south.", "It is Paris. ")]
    other = chat("Where does the Rhine end?", "In the North Sea.")
    rows = [replace(row, cluster="one") for row in numbered([*asked, other])]
    _, _, suspects, report = check(rows, [], params())
    assert [item["id"] for item in suspects] == [rows[1].id, *sorted((rows[0].id, rows[2].id))]
    assert suspects[0]["evidence"] == "2 of 3 near-duplicates answer the same prompt differently"
    assert (suspects[0]["answer"], report["suspects"], report["suspects_by_kind"]) == (rows[1].answer, 0, {"conflict": 3})


def test_without_labels_the_stage_loads_no_learning_library() -> None:
    code = (
        "import sys; from tests.test_label_check import check, params; from tests.rows import chat, numbered;"
        "check(numbered([chat('q?', 'a')]), [], params());"
        "print([m for m in ('sklearn', 'cleanlab', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# decisions


def test_keep_shields_a_suspect_from_being_dropped_and_from_being_suspected_again() -> None:
    rows, _ = flipped(300, 0.05, 1)
    first = check(rows, [], params())[2][0]["id"]
    worst = next(row for row in rows if row.id == first)
    kept, rejected, suspects, report = check(rows, [decide(worst, "keep")], params(action="drop", max_drop_share=1.0))
    assert worst in kept
    assert worst.id not in {suspect["id"] for suspect in suspects}
    assert rejected
    assert report["decisions"] == {"keep": 1, "drop": 0, "relabel": 0}


def test_drop_rejects_with_the_name_and_the_reason_of_who_decided() -> None:
    rows = corpus(30, 1)
    kept, rejected, _, _ = check(rows, [decide(rows[3], "drop")], params())
    assert [(item.row, item.rule, item.evidence) for item in rejected] == [(rows[3], "decision", {"who": "ann", "why": "seen"})]
    assert rows[3] not in kept


def test_relabel_changes_the_label_and_the_answer_and_not_the_id() -> None:
    rows = corpus(30, 1)
    new = next(label for label in sorted(WORDS) if label != rows[3].label)
    kept, _, _, _ = check(rows, [decide(rows[3], "relabel", new)], params())
    assert (kept[3].id, kept[3].label, kept[3].answer, kept[3].text) == (rows[3].id, new, new, rows[3].text)


def test_a_decision_about_a_row_that_is_not_here_is_counted_and_listed() -> None:
    _, _, _, report = check(corpus(30, 1), [Decision("gone", "relabel", "ann", "", "Nowhere", 2)], params())
    assert report["decisions_without_a_row"] == ["gone"]
    assert report["decisions"] == {"keep": 0, "drop": 0, "relabel": 0}


@pytest.mark.parametrize(
    ("row", "label", "told"),
    [
        (labelled("some text", "A"), "B", "line 4 gives .* the label 'B', which no row has; known: A"),
        (chat("some question?", "An answer."), "A", "line 4 relabels .*, which has no label; drop the row"),
    ],
)
def test_a_relabelling_that_cannot_be_meant_is_told(row: Row, label: str, told: str) -> None:
    row = numbered([row])[0]
    with pytest.raises(UserError, match=f"data/decisions.csv, {told}"):
        check([row], [decide(row, "relabel", label, line=4)], params())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1 has the columns nothing, expected id,action,who,when,why,label"),
        ("id,what\n", "line 1 has the columns id,what, expected"),
        (HEADER + "1,keep,ann,,\n", "line 2 has 5 fields, expected 6"),
        (HEADER + "1,keep,ann,,because, that\n\n2,keep,ann,,x,,y\n", "line 2 has the label 'that' for the action keep"),
        (HEADER + "1,keep,ann,,,\n\n2,remove,ann,,,\n", "line 4 has the action 'remove', expected one of keep, drop, relabel"),
        (HEADER + ",keep,ann,,,\n", "line 2 has no id"),
        (HEADER + "1,keep,,,,\n", "line 2 has no who"),
        (HEADER + "1,relabel,ann,,,\n", "line 2 relabels to nothing"),
        (HEADER + "1,keep,ann,,,\n1,drop,ann,,,\n", "line 3 decides about 1 again, after line 2"),
        (HEADER + '1,keep,ann,,"open\n', "line 2 is not valid CSV"),
    ],
)
def test_a_malformed_decision_is_told_by_its_line(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(told)):
        read_decisions(path)


def test_decisions_are_read_from_other_encodings_of_utf8_and_told_from_none(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + '1,drop,ann,2026-11-23,"not, a notice",\r\n').encode())
    assert read_decisions(path) == [Decision("1", "drop", "ann", "not, a notice", "", 2)]
    path.write_bytes(HEADER.encode() + b"1,drop,J\xfcrgen,,,\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_decisions(path)


# invariants

POOL = [*corpus(24, 8), *numbered([chat(f"Question {n}?", "Answer.") for n in range(6)])]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(POOL), unique_by=lambda row: row.id), st.lists(st.sampled_from(POOL), unique_by=lambda row: row.id, max_size=5)
)
def test_rows_are_conserved_and_a_second_run_drops_nothing_that_was_decided(rows: list[Row], judged: list[Row]) -> None:
    decisions = [decide(row, ["keep", "drop"][number % 2]) for number, row in enumerate(judged)]
    kept, rejected, _, report = check(rows, decisions, params(folds=2))
    assert sorted(row.id for row in rows) == sorted(row.id for row in [*kept, *(item.row for item in rejected)])
    assert sum(report["rejected"].values()) == len(rejected)
    assert check(kept, decisions, params(folds=2))[0] == kept


def test_the_stage_writes_equal_bytes_and_suspects_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.DEDUPE_ROWS.parent.mkdir(parents=True)
    rows, wrong = flipped(150, 0.06, 3)
    write_rows(paths.DEDUPE_ROWS, rows)
    paths.DECISIONS.write_text(f"{HEADER}{rows[0].id},drop,ann,2026-11-23,looked at it,\n", encoding="utf-8")
    outs = []
    for _ in range(2):
        stage.main(load_params(ROOT / "params.yaml"))
        outs.append([path.read_bytes() for path in (paths.LABEL_ROWS, paths.LABEL_REJECTED, paths.LABEL_SUSPECTS, paths.LABEL_REPORT)])
    assert outs[0] == outs[1]
    assert [item.row.id for item in read_rejected(paths.LABEL_REJECTED)] == [rows[0].id]
    assert len(read_rows(paths.LABEL_ROWS)) == 149
    suspects = pq.read_table(paths.LABEL_SUSPECTS).to_pylist()
    assert [suspect["rank"] for suspect in suspects] == list(range(1, len(suspects) + 1))
    assert {suspect["id"] for suspect in suspects} & wrong
