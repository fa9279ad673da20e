"""`luthier data-diff`: distances that are what they say, and a comparison of two runs' rows that misses nothing and holds without them."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from stages.cli.data_diff import _said
from stages.cli.drift import chance_divergence, divergence, greatest_gap, total_variation, turned
from tests.test_cli import git, luthier
from tests.tiny import ROOT, edit_params, write_jsonl

COUNTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(1, 1000), min_size=1)


@given(COUNTS, COUNTS)
def test_distances_of_shares_are_symmetric_lie_between_0_and_1_and_are_0_for_equal_shares(
    one: dict[str, int], other: dict[str, int]
) -> None:
    for distance in (total_variation, divergence):
        assert 0 <= distance(one, other) <= 1 + 1e-9
        assert distance(one, other) == pytest.approx(distance(other, one))
        assert distance(one, {name: 3 * count for name, count in one.items()}) == pytest.approx(0, abs=1e-9)
    apart = {f"{name}!": count for name, count in one.items()}
    assert total_variation(one, apart) == pytest.approx(1)
    assert divergence(one, apart) == pytest.approx(1)


def test_the_divergence_that_chance_alone_makes_is_the_one_that_samples_show() -> None:
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(300, 5.0))
    found, expected = [], []
    for _ in range(40):
        one, other = (
            Counter({str(place): int(n) for place, n in enumerate(rng.multinomial(size, share)) if n}) for size in (20_000, 8_000)
        )
        found.append(divergence(one, other))
        expected.append(chance_divergence(one, other))
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.05)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_the_greatest_gap_is_the_statistic_of_kolmogorov_and_smirnov(one: list[int], other: list[int]) -> None:
    assert greatest_gap(one, other) == pytest.approx(ks_2samp(one, other, method="asymp").statistic)


def test_words_that_grew_and_shrank_are_named() -> None:
    assert turned(Counter("aaab"), Counter("abbc"), 2) == (["b", "c"], ["a"])


def test_a_row_s_text_is_shown_as_it_is_and_never_as_markdown() -> None:
    row = {"id": "1", "source": "s", "origin": "o", "label": None, "messages": [{"content": "**a** `b`\n# c"}]}
    assert _said(row) == "`1` (s o): `**a** 'b' # c`"


@pytest.fixture(scope="module")
def root(reproduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of two runs of the data stages: the second has other rows and a training side half as long."""
    root = shutil.copytree(reproduced, tmp_path_factory.mktemp("data-diff") / "workspace", symlinks=True)
    git(root, "tag", "before")
    source = root / "data/sources/rows.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()][8:]
    rows[0]["text"] += " edited"
    rows += [{"text": f"a brand new agreement between us, number {number}", "label": "Commercial"} for number in range(5)]
    source.unlink()  # the cache may share the file
    write_jsonl(source, rows)
    edit_params(root, split__max_train=20)
    for command in (["dvc", "add", "--quiet", str(source)], ["dvc", "repro", "--quiet", "split"], ["git", "add", "-A"]):
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    git(root, "commit", "--quiet", "--message", "other rows")
    return root


def test_rows_are_compared_by_source_stage_and_label_and_the_verdict_names_what_drifted(root: Path) -> None:
    done = luthier(root, "data-diff", "before")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].startswith("**Notable drift in rows")
    assert "40 → 20 training rows" in lines[2]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    # 8 rows went and 5 came; one was edited, and stands in the first line, where another one stood
    assert ["data/sources/rows.jsonl", "120", "117", "6", "9", "1"] in cells
    assert ["rows read", "120", "117", "−3"] in cells
    assert ["train rows", "40", "20", "−20"] in cells
    assert any(row[:2] == ["split", "over_max_train"] for row in cells)
    assert any(row[:2] == ["train", "rejected by split: over_max_train"] for row in cells)
    assert any(line.startswith("### Training rows that went: ") for line in lines)
    assert luthier(root, "data-diff", "before", "HEAD").stdout.splitlines()[2:] == [
        line.replace("the checkout", git(root, "rev-parse", "HEAD")[:7]) for line in lines[2:]
    ]


def test_the_same_rows_are_no_drift_and_a_revision_that_is_none_is_told(root: Path) -> None:
    assert "**No drift: the training rows are the same.**" in luthier(root, "data-diff", "HEAD").stdout
    done = luthier(root, "data-diff", "nowhere")
    assert done.returncode == 1
    assert "nowhere is no commit or tag" in done.stderr


def test_without_the_rows_of_a_run_its_reports_are_compared_and_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(root), str(bare)], check=True)
    # a process of its own: DVC remembers in this one where the workspace keeps its cache
    command = [sys.executable, "-m", "stages.cli.main", "data-diff", "before", "HEAD"]
    said = subprocess.run(
        command, cwd=bare, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    ).stdout
    assert "**Not compared row by row. Training rows: 40 → 20;" in said
    assert "data/split/train.parquet" in said
    assert "dvc fetch" in said
    assert "| over_max_train |" in said
    assert "Rows that moved" not in said
