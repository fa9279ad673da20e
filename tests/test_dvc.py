"""DVC as its users use it, for real, on the tiny workspace: what reruns and what does not, experiments, the run cache, equal bytes.

The tests use one copy of the reproduced workspace, each puts back what it changed. Where running adds nothing to knowing what would run,
they ask `stale_stages`, which asks DVC.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.cli.fresh import stale_stages
from tests import pipeline, tiny

EVERY = [stage.name for stage in pipeline.stages()]
AFTER_TRAINING = ["train", "row_losses@tuned", "probe", "export", "evaluate@tuned", "extraction", "compare", "card"]


class Lab:
    """A workspace and the commands its user types."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str) -> str:
        """Runs a command that must succeed and gives what it prints, errors too."""
        done = subprocess.run(command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def stale(self) -> set[str]:
        """The stages whose inputs or outs differ from dvc.lock."""
        from dvc.repo import Repo

        with contextlib.chdir(self.root), Repo() as repo:  # DVC names stages relative to where one stands
            return set(stale_stages(repo, allow_missing=False))

    def edit(self, name: str, old: str, new: str) -> None:
        """Replaces a text in a file, which must hold it."""
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        assert old in text, name
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def lock(self) -> dict[str, str]:
        """Every out's digest in dvc.lock."""
        stages = YAML(typ="safe", pure=True).load((self.root / "dvc.lock").read_text(encoding="utf-8"))["stages"].values()
        return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def ran(log: str) -> list[str]:
    """The stages that a log of `dvc repro` says were run."""
    return re.findall(r"^Running stage '([\w@]+)'", log, re.M)


def restored(log: str) -> list[str]:
    """The stages that a log says were restored from the run cache."""
    return re.findall(r"^Stage '([\w@]+)' is cached - skipping run", log, re.M)


@pytest.fixture(scope="module")
def kept(reproduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """This module's copy of the reproduced workspace."""
    return Lab(shutil.copytree(reproduced, tmp_path_factory.mktemp("dvc") / "workspace", symlinks=True))


@pytest.fixture
def lab(kept: Lab) -> Iterator[Lab]:
    """The workspace as it was committed, before and after each test."""
    yield kept
    kept.run("git", "reset", "--quiet", "--hard")
    kept.run("dvc", "checkout", "--quiet", "--force")


def test_repro_runs_every_stage_once_and_leaves_nothing_open(reproduced: Path, lab: Lab) -> None:
    assert sorted(ran((reproduced.parent / "repro.log").read_text(encoding="utf-8"))) == sorted(EVERY)
    assert lab.run("git", "status", "--porcelain") == ""
    assert "up to date" in lab.run("dvc", "status")


def test_with_nothing_to_do_repro_says_so(lab: Lab) -> None:
    said = lab.run(sys.executable, "-m", "stages.cli.main", "fresh")
    said += lab.run(sys.executable, "-m", "stages.cli.main", "verdict")
    assert f"nothing to do: all {len(EVERY)} stages are up to date" in said
    assert "reports/card/README.md" in said
    assert ran(lab.run("dvc", "repro")) == []


def test_a_card_parameter_reruns_the_card_only(lab: Lab) -> None:
    tiny.edit_params(lab.root, card__intended_use="Another use.")
    assert lab.stale() == {"card"}


def test_a_runtime_parameter_reruns_nothing(lab: Lab) -> None:
    tiny.edit_params(lab.root, runtime__log_every=5, runtime__save_every=3)
    assert lab.stale() == set()


@pytest.mark.parametrize("package", ["peft", "cleanlab", "pyarrow", "transformers"])
def test_a_bumped_package_reruns_the_stages_that_use_it_and_no_other(lab: Lab, package: str) -> None:
    users = {stage.name for stage in pipeline.stages() if package in stage.versions}
    versions = YAML(typ="safe", pure=True).load((lab.root / "versions.yaml").read_text(encoding="utf-8"))
    lab.edit("versions.yaml", f'\n{package}: "{versions[package]}"\n', f'\n{package}: "999.0"\n')
    assert lab.stale() == users
    assert ("train" in users) == (package in {"peft", "pyarrow", "transformers"})
    assert ("clean" in users) == (package == "pyarrow")


def test_a_comment_in_a_stages_file_reruns_that_stage_and_stops_there(lab: Lab) -> None:
    with (lab.root / "stages/split/__main__.py").open("a", encoding="utf-8") as file:
        file.write("# a comment\n")
    assert lab.stale() == {"split"}
    assert ran(lab.run("dvc", "repro")) == ["split"]
    assert lab.stale() == set()


def test_a_changed_raw_row_reruns_the_data_stages_and_whatever_read_the_row(lab: Lab) -> None:
    import pyarrow.parquet as pq

    learnt = pq.read_table(lab.root / "data/split/train.parquet").to_pylist()[0]["messages"][0]["content"]
    lab.edit("data/sources/rows.jsonl", learnt, learnt.replace(" ", " also ", 1))
    assert lab.stale() == {"fetch_data", "data/sources/rows.jsonl.dvc"}
    assert ran(lab.run("dvc", "repro", "tokenize")) == [
        "fetch_data",
        "clean",
        "local_models",
        "dedupe",
        "label_check",
        "suspicion",
        "split",
        "tokenize",
    ]
    assert lab.stale() >= {"train", "evaluate@base"}
    lab.run("git", "reset", "--quiet", "--hard")
    lab.run("dvc", "checkout", "--quiet", "--force")
    assert lab.stale() == set()


def test_an_experiment_with_another_learning_rate_reruns_training_and_what_follows(lab: Lab) -> None:
    said = lab.run("dvc", "exp", "run", "--name", "warmer", "-S", "train.learning_rate=5.0e-2")
    assert ran(said) == [name for name in ran(said) if name in AFTER_TRAINING]
    assert sorted(ran(said)) == sorted(AFTER_TRAINING)

    metrics = lab.run("dvc", "metrics", "diff", "--md")
    assert "train_loss" in metrics
    assert len(metrics.splitlines()) < 40  # short enough for a pull request
    params = lab.run("dvc", "params", "diff", "--md")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in params.splitlines()]
    assert [row for row in rows if row and row[0] == "params.yaml"] == [["params.yaml", "train.learning_rate", "0.001", "0.05"]]
    lab.run("dvc", "plots", "diff", "HEAD", "--out", "plots")
    page = (lab.root / "plots/index.html").read_text(encoding="utf-8")
    assert "Training loss" in page
    assert '"rev": "HEAD"' in page
    assert '"rev": "workspace"' in page
    shutil.rmtree(lab.root / "plots")

    shown = lab.run("dvc", "exp", "show", "--only-changed", "--md")
    assert "warmer" in shown
    assert "learning_rate" in shown
    everything = json.loads(lab.run("dvc", "exp", "show", "--json"))
    assert {row["rev"][:4] for row in everything} == {"work", lab.run("git", "rev-parse", "HEAD")[:4]}

    # back to the parameters of before: nothing is trained again
    lab.edit("params.yaml", "learning_rate: 0.05", "learning_rate: 1.0e-3")
    said = lab.run("dvc", "repro")
    assert ran(said) == ["card"]  # its outs are in git and name the commit: nothing to restore, two seconds to write
    assert sorted(restored(said)) == sorted(name for name in AFTER_TRAINING if name != "card")
    assert lab.run("git", "status", "--porcelain", "reports/compare.json", "reports/train.json", "models", "data") == ""


def test_an_experiment_in_a_temporary_copy_leaves_the_workspace_alone(lab: Lab) -> None:
    said = lab.run("dvc", "exp", "run", "--temp", "--name", "aside", "-S", "card.intended_use=Trying")
    assert ran(said) == ["card"]
    assert lab.run("git", "status", "--porcelain") == ""
    assert "aside" in lab.run("dvc", "exp", "list", "--name-only")
    lab.run("dvc", "exp", "apply", "aside")
    assert "Trying" in (lab.root / "reports/card/README.md").read_text(encoding="utf-8")


def test_a_queue_runs_what_was_queued(lab: Lab) -> None:
    lab.run("dvc", "exp", "run", "--queue", "--name", "narrow", "-S", "train.rank=2")
    assert "Queued" in lab.run("dvc", "queue", "status")
    lab.run("dvc", "queue", "start")
    deadline = time.monotonic() + 300
    while re.search(r"Queued|Running", lab.run("dvc", "queue", "status").partition("Worker status")[0]):
        assert time.monotonic() < deadline, lab.run("dvc", "queue", "status")
        time.sleep(3)
    assert "Success" in lab.run("dvc", "queue", "status"), lab.run("dvc", "queue", "logs", "narrow")
    again = set(ran(lab.run("dvc", "queue", "logs", "narrow")))
    assert set(AFTER_TRAINING) - {"compare"} <= again <= set(AFTER_TRAINING)  # so small a change may change no answer
    assert lab.run("git", "status", "--porcelain") == ""
    lab.run("dvc", "exp", "apply", "narrow")
    assert json.loads((lab.root / "models/adapter/adapter_config.json").read_text(encoding="utf-8"))["r"] == 2


def test_the_ci_check_passes_in_a_clone_without_data_and_fails_on_a_stale_one(lab: Lab, tmp_path: Path) -> None:
    clone = Lab(tmp_path / "clone")
    lab.run("git", "clone", "--quiet", str(lab.root), str(clone.root))
    check = [sys.executable, "-m", "stages.cli.main", "fresh", "--allow-missing"]
    assert "nothing to do" in clone.run(*check)
    assert not (clone.root / "models/adapter").exists()
    for name, old, new, stale in [
        ("params.yaml", "rank: 4", "rank: 3", "train"),
        ("stages/split/__main__.py", '"""', '""" ', "split"),
        ("versions.yaml", "\nftfy: ", "\nftfy: 9", "clean"),
        ("data/sources/rows.jsonl.dvc", "md5: ", "md5: 0", "fetch_data"),
        ("data/decisions.csv", "\n", "\n\n", "label_check"),
        ("reports/compare.json", "{", "{ ", "compare"),
    ]:
        clone.edit(name, old, new)
        done = subprocess.run(check, cwd=clone.root, capture_output=True, text=True, check=False)
        assert done.returncode == 1, name
        assert stale in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
        clone.run("git", "checkout", "--quiet", ".")


def test_the_pull_request_comment_names_what_changed(lab: Lab) -> None:
    lab.run("git", "checkout", "--quiet", "-b", "branch")
    tiny.edit_params(lab.root, card__intended_use="A branch's use.")
    lab.run("dvc", "repro", "--quiet")
    lab.run("git", "commit", "-qam", "branch")
    said = lab.run("sh", "scripts/diff.sh", "main")
    lab.run("git", "checkout", "--quiet", "main")
    assert "| params.yaml | card.intended_use |" in said
    assert "A branch's use." in said
    assert "## Data: " in said
    assert "No drift: the training rows are the same." in said
