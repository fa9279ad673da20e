"""The commands of `luthier`: the verdict, where things come from, what does not hold, releases, and the disk given back."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.cli import verdict, verify
from stages.cli.main import COMMANDS
from tests.commands import git, luthier
from tests.tiny import ROOT


@pytest.fixture(scope="module")
def root(reproduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This module's copy of the reproduced workspace."""
    return shutil.copytree(reproduced, tmp_path_factory.mktemp("cli") / "workspace", symlinks=True)


@pytest.fixture
def intact(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workspace as committed, the current folder while the test runs, and put back after it."""
    monkeypatch.chdir(root)
    yield root
    git(root, "reset", "--quiet", "--hard")
    subprocess.run(["dvc", "checkout", "--quiet", "--force"], cwd=root, check=True)


def test_help_names_every_command_and_loads_no_library() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "stages.cli.main", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = done.stdout
    assert not re.search(r"\| +(torch|pydantic|dvc|numpy|rich)$", done.stderr, re.M)
    assert all(re.search(rf"^ +{name}\b", said, re.M) for name in COMMANDS)


def test_a_mistaken_command_is_an_error() -> None:
    assert luthier(ROOT, "verdickt").returncode == 2


REPORT = {
    "verdict": "improved",
    "base_prompt": "few_shot",
    "forgetting": "none",
    "domain": {
        "metric": "accuracy",
        "base": 0.31,
        "tuned": 0.64,
        "difference": 0.33,
        "ci95": [0.27, 0.39],
        "p_value": 0.0,
        "items": 300,
    },
}


def test_the_verdict_is_one_line_against_the_bases_best_prompt() -> None:
    line = (
        "improved: accuracy 0.64 against the base's best 0.31, with examples "
        "(+0.33, 95 % interval 0.27 to 0.39, p < 0.001, 300 items); forgetting: none"
    )
    assert verdict.line(REPORT) == line


def test_without_results_the_verdict_says_what_to_run(tmp_path: Path) -> None:
    done = luthier(tmp_path, "verdict")
    assert done.returncode == 1
    assert done.stderr == "luthier verdict: reports/compare.json is missing; run the pipeline first: make repro\n"


def test_the_verdict_names_card_and_report(root: Path) -> None:
    said = luthier(root, "verdict").stdout.splitlines()
    assert "against the base's best" in said[0]
    assert [line.split() for line in said[1:]] == [["card:", "reports/card/README.md"], ["report:", "reports/report.html"]]


def rows(root: Path, name: str) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    found: list[dict[str, object]] = pq.read_table(root / name).to_pylist()
    return found


def test_a_row_leads_from_its_line_to_its_tokens(root: Path) -> None:
    row = rows(root, "data/split/train.parquet")[0]
    said = luthier(root, "lineage", str(row["id"])[:10]).stdout
    assert f"{row['source']} {row['origin']}" in said.splitlines()[0]
    assert re.search(r"split: train side", said)
    assert re.search(r"tokenize: train, \d+ tokens, \d+ of them trained", said)


def test_a_test_row_leads_to_both_models_answers(root: Path) -> None:
    said = luthier(root, "lineage", str(rows(root, "data/split/test.parquet")[0]["id"])).stdout
    assert "evaluate@base: domain" in said
    assert "evaluate@tuned: domain" in said


def test_a_rejected_row_leads_to_the_rule_and_its_evidence(root: Path) -> None:
    row = rows(root, "data/split/rejected.parquet")[0]
    said = luthier(root, "lineage", str(row["id"])).stdout
    assert f"split: rejected by {row['rule']}" in said
    assert all(str(value) in said for value in json.loads(str(row["evidence"])).values())
    assert "tokenize" not in said


def test_a_prefix_of_several_rows_and_of_none_is_told(root: Path) -> None:
    assert "no row has an id that begins with" in luthier(root, "lineage", "abcdef0123456789").stderr


def test_a_number_leads_to_the_commit_that_set_it_and_down_to_the_rows(root: Path) -> None:
    commit = git(root, "log", "-1", "--format=%h", "--", "dvc.lock")
    said = luthier(root, "lineage", "reports/compare.json:domain.tuned").stdout
    value = json.loads((root / "reports/compare.json").read_text(encoding="utf-8"))["domain"]["tuned"]
    assert said.splitlines()[0] == f"reports/compare.json:domain.tuned = {value}"
    assert f"value set by {commit}" in said
    for step in ("made by compare", "made by evaluate@tuned", "made by train", "made by tokenize", "made by fetch_data", "data/sources "):
        assert step in said
    assert "train.learning_rate 0.001" in said


def test_a_mistyped_number_names_the_nearest(root: Path) -> None:
    done = luthier(root, "lineage", "reports/compare.json:domain.tunde")
    assert done.returncode == 1
    assert "did you mean tuned?" in done.stderr


def test_a_file_of_the_adapter_leads_to_its_base(root: Path) -> None:
    said = luthier(root, "lineage", "models/adapter/adapter_model.safetensors").stdout
    assert said.splitlines()[0] == "models/adapter/adapter_model.safetensors, in models/adapter"
    assert "made by fetch_model" in said


def test_everything_holds_right_after_a_commit(root: Path) -> None:
    done = luthier(root, "verify")
    assert done.returncode == 0, done.stdout
    assert "checks hold" in done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "models/adapter/adapter_model.safetensors",
        "models/adapter/adapter_config.json",
        "data/tokenized/train.parquet",
        "data/sources/rows.jsonl",
        "reports/compare.json",
        "reports/card/README.md",
    ],
)
def test_one_changed_byte_does_not_hold(intact: Path, name: str) -> None:
    path = intact / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    stat = path.stat()
    path.unlink()  # the cache may share the file
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a careful hand would
    try:
        problems, _ = verify.problems_of(complete=True)
    finally:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    folder = str(Path(name).parent)  # an out or dep that is a folder has one digest
    assert any((f"{name} has" in problem or f"{folder} has" in problem) and "md5" in problem for problem in problems), problems


def test_a_changed_digest_parameter_or_command_does_not_hold(intact: Path) -> None:
    for name, old, new, told in [
        ("dvc.lock", "md5: ", "md5: 0", "md5"),
        ("dvc.lock", "size: ", "size: 1", "size"),
        ("dvc.lock", "rank: 4", "rank: 8", "params.yaml: train.rank is 4, dvc.lock has 8 (named by "),
        ("params.yaml", "rank: 4", "rank: 8", "params.yaml: train.rank is 8, dvc.lock has 4 (named by "),
        ("dvc.yaml", "cmd: python -m stages.clean", "cmd: python -O -m stages.clean", "clean: dvc.yaml runs"),
        ("versions.yaml", "\nftfy: ", "\nftfy: 9", "versions.yaml"),
    ]:
        path = intact / name
        good = path.read_text(encoding="utf-8")
        assert old in good
        path.write_text(good.replace(old, new, 1).replace('9"6', '"96'), encoding="utf-8")
        problems, _ = verify.problems_of(complete=True)
        path.write_text(good, encoding="utf-8")
        assert any(told in problem for problem in problems), (name, problems)
        assert any(problem.startswith(name) for problem in problems)  # git sees it too


def test_changed_weights_of_the_base_do_not_hold_though_dvc_has_no_copy(intact: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")  # the tests share the tiny base
    manifest = intact / "models/base.json"
    moved = {**json.loads(manifest.read_text(encoding="utf-8")), "location": str(base)}
    manifest.unlink()  # the cache may share the file
    manifest.write_text(json.dumps(moved), encoding="utf-8")

    def found() -> list[str]:
        return [problem for problem in verify.problems_of(complete=True)[0] if "model.safetensors of the base" in problem]

    assert found() == []
    path = base / "model.safetensors"
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(found()) == 1


def test_verify_prints_each_finding_and_fails(intact: Path) -> None:
    (intact / "reports/compare.json").write_text("{}", encoding="utf-8")
    done = luthier(intact, "verify")
    assert done.returncode == 1
    assert len([line for line in done.stdout.splitlines() if line.startswith("does not hold: ")]) >= 2
    assert re.match(r"luthier verify: \d+ of \d+ checks on [0-9a-f]{40} do not hold", done.stderr)


def test_an_older_commit_is_verified_in_a_folder_of_its_own(intact: Path) -> None:
    (intact / "params.yaml").write_text("broken", encoding="utf-8")
    done = luthier(intact, "verify", "HEAD")
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(intact, "worktree", "list").count("\n") == 0


def test_a_release_is_a_tag_that_brings_the_adapter_back(intact: Path, tmp_path: Path) -> None:
    done = luthier(intact, "release", "v1.0.0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(intact, "cat-file", "-t", "adapter@v1.0.0") == "tag"
    assert "against the base's best" in git(intact, "tag", "-n9", "--list", "adapter@v1.0.0")
    subprocess.run(
        ["dvc", "artifacts", "get", str(intact), "adapter", "--rev", "v1.0.0", "--out", "fetched"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    made = {path.name: path.read_bytes() for path in (intact / "models/adapter").iterdir() if path.is_file()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "fetched").iterdir() if path.is_file()} == made
    assert "made by train" in luthier(intact, "lineage", "adapter@v1.0.0").stdout
    assert "exists already" in luthier(intact, "release", "v1.0.0").stderr


def test_a_release_is_refused_without_a_version_from_a_dirty_tree_and_from_stale_results(intact: Path) -> None:
    assert "expected v and a semantic version" in luthier(intact, "release", "1.0").stderr
    params = intact / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("rank: 4", "rank: 2"), encoding="utf-8")
    assert "commit first" in luthier(intact, "release", "v2.0.0").stderr
    git(intact, "commit", "--quiet", "--all", "--message", "stale")
    try:
        done = luthier(intact, "release", "v2.0.0")
        assert done.returncode == 1
        assert "train" in done.stderr
        assert "would run" in done.stderr
        assert git(intact, "tag", "--list", "adapter@v2*") == ""
    finally:
        git(intact, "reset", "--quiet", "--hard", "HEAD~")


def test_finished_and_idle_work_is_removed_and_held_and_fresh_work_stays(intact: Path) -> None:
    def make(key: str, days: float) -> Path:
        folder = intact / ".work/train" / key
        folder.mkdir(parents=True)
        for name in ("lock", "checkpoint"):
            (folder / name).write_text("x", encoding="utf-8")
            os.utime(folder / name, (time.time() - days * 86_400,) * 2)
        return folder

    finished = list((intact / ".work/train").iterdir())
    idle, lately, held = make("0" * 16, 9), make("1" * 16, 1), make("2" * 16, 9)
    with open(held / "lock", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = luthier(intact, "clean-work")
    assert done.returncode == 0, done.stderr
    assert "idle for 9 days" in done.stdout
    assert [path for path in finished if path.exists()] == []
    assert (idle.exists(), lately.exists(), held.exists()) == (False, True, True)


def test_the_doctor_finds_a_made_up_workspace_fit(intact: Path) -> None:
    done = luthier(intact, "doctor")
    lines = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    assert done.returncode == 0, done.stdout
    assert lines >= {("ok", "python"), ("ok", "packages"), ("ok", "params"), ("ok", "dvc"), ("ok", "data")}


def test_the_doctor_names_what_is_wrong_and_fails(intact: Path) -> None:
    versions = intact / "versions.yaml"
    versions.write_text(re.sub(r"(?m)^ftfy: .*$", 'ftfy: "1.0.0"', versions.read_text(encoding="utf-8")), encoding="utf-8")
    (intact / "data/sources/new.jsonl").write_text("{}", encoding="utf-8")
    try:
        done = luthier(intact, "doctor")
    finally:
        (intact / "data/sources/new.jsonl").unlink()
    assert done.returncode == 1
    assert re.search(r"error +packages +ftfy is 6\S+, versions\.yaml pins 1\.0\.0; .*make setup", done.stdout)
    assert re.search(r"warn +data +data/sources/new\.jsonl is in no commit.*dvc add", done.stdout)
    assert re.search(r"warn +dvc +stale: .*clean", done.stdout)


def test_a_command_whose_reader_has_had_enough_ends_without_a_traceback() -> None:
    command = f"{sys.executable} -m stages.cli.main verdict | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() == "141"
