"""fetch_data: the embedded domain as counted, samples by content, equal bytes, and mistakes that leave nothing behind."""

import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details, sha256_file
from stages.core.packages import fetch_wheel
from stages.core.params import Licences, load_params
from stages.core.records import Row, read_rejected, read_rows
from stages.core.sampling import seeded_sample
from stages.fetch_data.__main__ import main
from stages.fetch_data.licences import MIN_TEXTS_OF_A_KEY, read_licences
from tests import tiny

RULES = 34_859  # of licensedcode-data 32.1.0, inactive ones aside


@pytest.fixture(scope="module")
def licences() -> Licences:
    """The committed section, with the longest notices its notes count."""
    return load_params(tiny.ROOT / "params.yaml").data.licences.model_copy(update={"max_words": 120})


@pytest.fixture(scope="module")
def wheel(licences: Licences) -> Path:
    """The real package, from the user-level cache."""
    return fetch_wheel(licences.package, licences.version, licences.sha256)


@pytest.fixture(scope="module")
def by_category(wheel: Path, licences: Licences) -> tuple[list[Row], dict[str, int]]:
    """All notices with their category."""
    return read_licences(wheel, licences)


@pytest.fixture
def own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with 120 labelled rows; fetch_data needs no base."""
    root = tiny.make_workspace(tmp_path / "own", tmp_path / "no-base")
    monkeypatch.chdir(root)
    return root


def run_stage() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stages.fetch_data"], capture_output=True, text=True, check=False)


def test_every_rule_of_the_package_is_a_row_or_is_counted_under_a_reason(by_category: tuple[list[Row], dict[str, int]]) -> None:
    rows, skipped = by_category
    assert len(rows) + sum(skipped.values()) == RULES
    assert skipped["no_licence"] == 1228
    assert len(rows) == 15_108
    assert len({row.label for row in rows}) == 11


def test_a_notice_is_one_labelled_conversation_in_english_without_the_editors_braces(by_category: tuple[list[Row], dict[str, int]]) -> None:
    for row in by_category[0]:
        assert [message["role"] for message in row.messages] == ["user", "assistant"]
        assert 5 <= len(row.text.split()) <= 120
        assert row.answer == row.label
        assert "{{" not in row.text
        assert "\r" not in row.text


def test_the_mislabelled_notice_that_label_check_should_find_is_among_them(by_category: tuple[list[Row], dict[str, int]]) -> None:
    [row] = [row for row in by_category[0] if row.origin == "licensedcode/data/rules/lgpl-2.0-plus_308.RULE"]
    assert (row.text, row.label) == ("licensed under terms of the GNU General Public License.", "Copyleft Limited")


def test_licence_keys_with_few_texts_are_left_out_and_counted(wheel: Path, licences: Licences, by_category) -> None:
    rows, skipped = read_licences(wheel, licences.model_copy(update={"target": "key"}))
    texts = Counter(label for label, _ in {(row.label, row.text) for row in rows})
    assert len(texts) == 39
    assert min(texts.values()) >= MIN_TEXTS_OF_A_KEY
    assert len(rows) + skipped["rare_key"] == len(by_category[0])


def test_a_package_without_rules_is_told(licences: Licences, tmp_path: Path) -> None:
    other = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other.py", "")
    with pytest.raises(UserError, match=r"other-1\.0.* holds no licence rules; set data\.licences"):
        read_licences(other, licences)


def test_the_embedded_domain_gives_equal_bytes_and_keeps_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    params = load_params(tiny.ROOT / "params.yaml")
    digests = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        main(params)
        digests.append([sha256_file(path) for path in (paths.RAW_ROWS, paths.RAW_REJECTED, paths.FETCH_DATA_REPORT)])
    assert digests[0] == digests[1]
    rows, rejected, report = read_rows(paths.RAW_ROWS), read_rejected(paths.RAW_REJECTED), read_details(paths.FETCH_DATA_REPORT)
    ids = [row.id for row in rows] + [item.row.id for item in rejected]
    assert len(ids) == len(set(ids)) == report["rows_read"]
    assert (report["rows_kept"], len(rows)) == (3600, 3600)
    assert report["rejected"] == {"over_max_rows": len(rejected)}
    assert report["rows_read"] + sum(report["skipped"].values()) == RULES
    assert sum(report["labels"].values()) == 3600
    assert report["license"] == "cc-by-4.0"
    assert "nexB" in report["attribution"]
    assert report["package"]["sha256"] == params.data.licences.sha256
    assert len(report["samples"]) == 3


def test_the_report_names_each_file_with_its_hash_and_rows(own_rows: Path) -> None:
    tiny.edit_params(own_rows, data__max_rows=100)
    assert run_stage().returncode == 0
    report = read_details(paths.FETCH_DATA_REPORT)
    digest = sha256_file(own_rows / "data/sources/rows.jsonl")
    file = {"path": "data/sources/rows.jsonl", "sha256": digest, "format": "labelled", "rows": 120, "rejected": 0}
    file |= {"unused_columns": [], "formula_cells": 0, "license": None}
    assert report["files"] == [file]
    assert (report["rows_read"], report["rows_kept"], report["rejected"]) == (120, 100, {"over_max_rows": 20})
    assert [item.evidence for item in read_rejected(paths.RAW_REJECTED)] == [{"max_rows": 100, "rows": 120}] * 20


def test_a_row_more_changes_the_sample_by_one_row_at_most(own_rows: Path) -> None:
    tiny.edit_params(own_rows, data__max_rows=60)
    assert run_stage().returncode == 0
    before = {row.id for row in read_rows(paths.RAW_ROWS)}
    tiny.write_jsonl(own_rows / "data/sources/a-new.jsonl", [{"text": "a new row", "label": "Permissive"}])
    assert run_stage().returncode == 0
    assert len(before - {row.id for row in read_rows(paths.RAW_ROWS)}) <= 1


def test_a_bad_row_is_one_sentence_and_the_outs_stay_as_they_were(own_rows: Path) -> None:
    assert run_stage().returncode == 0
    before = {path: path.read_bytes() for folder in ("data/raw", "reports") for path in Path(folder).iterdir() if path.is_file()}
    with (own_rows / "data/sources/rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "no label"}\n')
    result = run_stage()
    assert result.returncode == 1
    assert result.stderr == (
        "fetch_data: data/sources/rows.jsonl:121 has no label (its columns are text). Mend or remove these rows and run again\n"
    )
    after = {path: path.read_bytes() for folder in ("data/raw", "reports") for path in Path(folder).iterdir() if path.is_file()}
    assert after == before


def test_a_column_that_no_format_has_is_a_mistake_in_params(own_rows: Path) -> None:
    tiny.edit_params(own_rows, data__files__columns={"txt": "body"})
    result = run_stage()
    assert result.returncode == 1
    assert "data.files.columns.txt" in result.stderr
    assert "Traceback" not in result.stderr


def test_files_added_with_dvc_reach_an_experiment_in_another_folder_and_columns_are_mapped_there(own_rows: Path) -> None:
    tiny.write_jsonl(own_rows / "data/sources/more/nested.jsonl", [{"body": "nested", "label": "Copyleft"}])
    (own_rows / "data/sources/rows.jsonl").unlink()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["dvc", "add", "-q", "data/sources/more/nested.jsonl"], [*git, "commit", "-qm", "data"]):
        subprocess.run(command, cwd=own_rows, check=True)
    tracked = subprocess.run([*git, "ls-files", "data/sources"], capture_output=True, text=True, check=True).stdout.split()
    assert tracked == ["data/sources/README.md", "data/sources/more/nested.jsonl.dvc"]
    columns = ["-S", "+data.files.columns.text=body"]
    result = subprocess.run(["dvc", "exp", "run", "--temp", *columns, "fetch_data"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    [ref] = subprocess.run([*git, "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*"], capture_output=True, text=True).stdout.split()
    report = subprocess.run([*git, "show", f"{ref}:reports/fetch_data.json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(report)["details"][0]["rows_kept"] == 1


@given(ids=st.lists(st.text(max_size=6), unique=True, max_size=40), count=st.integers(0, 50), seed=st.integers(0, 9), extra=st.text())
def test_a_seeded_sample_has_its_size_and_hardly_moves(ids: list[str], count: int, seed: int, extra: str) -> None:
    taken = seeded_sample(ids, count, seed)
    assert len(taken) == min(count, len(ids))
    assert taken <= set(ids) == seeded_sample(ids, None, seed)
    assert taken == seeded_sample(reversed(ids), count, seed)
    assert taken <= seeded_sample(ids, count + 1, seed)
    assert len(taken - seeded_sample([*ids, extra], count, seed)) <= 1
