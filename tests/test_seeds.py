"""Runs that differ in nothing but the seed are taken together; others are left out."""

import json
import subprocess
from pathlib import Path

import pytest

from stages.cli.main import main
from stages.core import paths
from tests import tiny


def commit(root: Path, seed: int, difference: float, **changes: object) -> str:
    """A commit with a seed and the difference that it led to."""
    tiny.edit_params(root, seed=seed, **changes)
    paths.COMPARE_REPORT.parent.mkdir(exist_ok=True)
    domain = {"tuned": 0.5 + difference, "difference": difference, "ci95": [difference - 0.05, difference + 0.05]}
    general = {"difference": None, "ci95": None}
    report = {"domain": domain, "general": general, "verdict": "improved", "forgetting": "not measured"}
    paths.COMPARE_REPORT.write_text(json.dumps(report), encoding="utf-8")
    for command in (["git", "add", "-A"], ["git", "commit", "-qm", f"seed {seed}"]):
        subprocess.run(command, cwd=root, check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_seeds_are_taken_together_and_other_parameters_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((tiny.ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for command in (["git", "init", "-q"], ["git", "config", "user.name", "t"], ["git", "config", "user.email", "t@example.org"]):
        subprocess.run(command, check=True)
    other = commit(tmp_path, 9, 0.9, train__rank=4)
    experiment = commit(tmp_path, 1, 0.2, train__rank=16)
    subprocess.run(["git", "update-ref", "refs/exps/ab/one", experiment], check=True)
    subprocess.run(["git", "update-ref", "refs/exps/ab/other", other], check=True)
    commit(tmp_path, 2, 0.3, runtime__log_every=7)
    with pytest.raises(SystemExit, match="0"):
        main(["seeds"])
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[1:3]] == ["1", "2"]
    assert "against the base: mean 0.250, standard deviation 0.071 over 2 seeds; 95 % interval over the items" in said
    assert "+0.200 to +0.300" in said
    assert "not measured" in said
    with pytest.raises(SystemExit, match="1"):
        main(["seeds", other])
    assert "one seed was run with these parameters (9); run others: dvc exp run --queue -S seed=1,2,3" in capsys.readouterr().err
