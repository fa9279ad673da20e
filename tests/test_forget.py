"""`luthier forget`: a decision that holds, twins and near-duplicates named, and what is made anew, was released and remains."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.core import paths
from stages.core.records import Rejected, Row, read_rejected, read_rows, write_rejected
from stages.label_check.decisions import read_decisions
from tests.test_cli import git, luthier

HEADER = "id,action,who,when,why,label\n"
ABSENT = "00112233445566aa"
WHY = ("--why", "asked to, by mail")


@pytest.fixture(scope="module")
def copy(reproduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This module's copy of the reproduced workspace."""
    return shutil.copytree(reproduced, tmp_path_factory.mktemp("forget") / "workspace", symlinks=True)


@pytest.fixture
def root(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workspace as committed, the current folder while the test runs, and put back after it."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(copy)
    yield copy
    git(copy, "reset", "--quiet", "--hard")
    subprocess.run(["dvc", "checkout", "--quiet", "--force"], cwd=copy, check=True)


def learnt_row() -> Row:
    """A row of the train side that was learnt in a step."""
    learnt = set(pq.read_table(paths.TRAINED_STEPS)["id"].to_pylist())
    return next(row for row in read_rows(paths.SPLIT_TRAIN) if row.id in learnt)


def test_a_forgotten_row_is_dropped_by_label_check_and_everything_it_touches_is_named(root: Path) -> None:
    row = learnt_row()
    git(root, "tag", "--annotate", "--message", "a release", "adapter@v0.0.1")
    try:
        done = luthier(root, "forget", row.id[:9], *WHY)
    finally:
        git(root, "tag", "--delete", "adapter@v0.0.1")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert re.search(rf"{row.id}: train side, learnt in steps? \d", said)
    assert "now: label_check, card\n" in said
    assert re.search(r"then, .*: .*split, tokenize, train, ", said)
    assert "stays as it is: fetch_model, fetch_data, fetch_general, clean, local_models, dedupe\n" in said
    assert f"adapter@v0.0.1: learnt {row.id}" in said
    assert f"source: {row.source} {row.origin}; take it out" in said
    assert "dvc gc --workspace" in said
    assert "checkpoints" in said
    decision = read_decisions(paths.DECISIONS)[0]
    assert (decision.id, decision.action, decision.who, decision.why) == (row.id, "drop", "t", "asked to, by mail")
    subprocess.run(["python", "-m", "stages.label_check"], cwd=root, check=True, capture_output=True)
    assert [item.row.id for item in read_rejected(paths.LABEL_REJECTED) if item.rule == "decision"] == [row.id]
    assert "label_check: rejected by decision" in luthier(root, "lineage", row.id).stdout


def test_near_duplicates_are_named_and_taken_when_asked_for(root: Path) -> None:
    row = replace(learnt_row(), cluster=next(row.cluster for row in read_rows(paths.DEDUPE_ROWS) if row.id == learnt_row().id))
    write_rejected(paths.DEDUPE_REJECTED, [Rejected(replace(row, id=ABSENT), "near_duplicate", {"kept": row.id})])
    said = luthier(root, "forget", row.id, *WHY).stdout
    assert f"near-duplicates, which say much the same, stay: {ABSENT}; --cluster takes them too" in said
    assert f"{ABSENT}, which stays: rejected by dedupe (near_duplicate)" in said
    assert [decision.id for decision in read_decisions(paths.DECISIONS)] == [row.id]
    said = luthier(root, "forget", row.id, "--cluster", *WHY).stdout
    assert f"{row.id} was dropped before, by t" in said
    assert [decision.id for decision in read_decisions(paths.DECISIONS)] == [row.id, ABSENT]


def test_rows_of_equal_content_are_forgotten_together(root: Path) -> None:
    row = learnt_row()
    write_rejected(paths.RAW_REJECTED, [Rejected(replace(row, id=f"{row.id}-2"), "over_max_rows", {})])
    luthier(root, "forget", row.id, *WHY)
    assert [decision.id for decision in read_decisions(paths.DECISIONS)] == [row.id, f"{row.id}-2"]


def test_a_rejected_row_and_one_that_may_come_can_be_forgotten_and_change_no_adapter(root: Path) -> None:
    rejected = read_rejected(paths.SPLIT_REJECTED)[0].row
    said = luthier(root, "forget", rejected.id, *WHY).stdout
    assert f"{rejected.id}: rejected by split" in said
    assert "learnt in" not in said
    said = luthier(root, "forget", ABSENT, *WHY).stdout
    assert f"{ABSENT}: no stage has it; the decision holds if it comes" in said
    assert "its rows, and the adapter, stay as they are" in said


def test_a_mistaken_id_or_a_broken_file_writes_nothing(root: Path) -> None:
    done = luthier(root, "forget", learnt_row().id, "abcdef", *WHY)
    assert done.returncode == 1
    assert "no row has an id that begins with abcdef" in done.stderr
    assert paths.DECISIONS.read_text(encoding="utf-8") == HEADER
    paths.DECISIONS.write_text(f"{HEADER}x,shred,me,,,\n", encoding="utf-8")
    assert "has the action 'shred'" in luthier(root, "forget", learnt_row().id, *WHY).stderr
    assert paths.DECISIONS.read_text(encoding="utf-8") == f"{HEADER}x,shred,me,,,\n"
