"""A long stage's work dir: its key is everything that decides the result, one process holds it, and it dies with its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.core.runs import digest, held_run, stage_inputs, work_root

PIPELINE = """
stages:
  slow:
    cmd: python -m stages.slow
    deps: [data/rows.txt, data/folder]
    params:
      - slow
      - seed
      - versions.yaml: [torch]
  many:
    foreach:
      a: {weights: data/rows.txt}
    do:
      cmd: python -m stages.many ${key}
      deps: ["${item.weights}"]
      params: [seed]
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipeline of one plain stage and one foreach."""
    (tmp_path / "data/folder").mkdir(parents=True)
    (tmp_path / "data/rows.txt").write_text("rows")
    (tmp_path / "data/folder/part").write_text("part")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text("seed: 1\nslow: {rate: 0.1, deep: {list: [1, 2]}}\nruntime: {device: cpu}\n")
    (tmp_path / "versions.yaml").write_text("torch: 2.0\n")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    """Replaces a piece of a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("data/rows.txt", "rows", "other rows"),
        ("data/folder/part", "part", "another part"),
        ("params.yaml", "rate: 0.1", "rate: 0.2"),
        ("params.yaml", "seed: 1", "seed: 2"),
        ("versions.yaml", "2.0", "2.1"),
        ("dvc.yaml", "-m stages.slow", "-m stages.slow --fast"),
    ],
)
def test_whatever_decides_the_result_changes_the_key(repository: Path, file: str, old: str, new: str) -> None:
    before = digest(stage_inputs("slow"))
    edit(repository / file, old, new)
    assert digest(stage_inputs("slow")) != before
    edit(repository / file, new, old)
    assert digest(stage_inputs("slow")) == before


def test_what_the_stage_does_not_name_leaves_the_key_alone(repository: Path) -> None:
    before = digest(stage_inputs("slow"))
    edit(repository / "params.yaml", "device: cpu", "device: cuda")
    (repository / "data/other.txt").write_text("new")
    os.utime(repository / "data/rows.txt")
    assert digest(stage_inputs("slow")) == before


def test_one_of_a_foreach_has_its_own_command_and_deps(repository: Path) -> None:
    inputs = stage_inputs("many@a")
    assert inputs["cmd"] == "python -m stages.many a"
    assert "dep:data/rows.txt" in inputs


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_the_key_does_not_depend_on_the_order_of_the_inputs(inputs: dict[str, object]) -> None:
    assert digest(inputs) == digest(dict(reversed(inputs.items())))


def test_a_missing_dep_names_the_command_that_makes_it(repository: Path) -> None:
    (repository / "data/rows.txt").unlink()
    with pytest.raises(UserError, match=r"data/rows.txt, which slow needs, is missing.*dvc repro slow"):
        stage_inputs("slow")


def test_a_missing_param_is_named(repository: Path) -> None:
    edit(repository / "params.yaml", "seed: 1", "sede: 1")
    with pytest.raises(UserError, match=r"params.yaml has no seed"):
        stage_inputs("slow")


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("params.yaml", "rate: 0.1", "rate: 0.2", "params.yaml: slow.rate changed"),
        ("params.yaml", "rate: 0.1", "rate: 0.1, extra: null", "params.yaml: slow.extra changed"),
        ("data/rows.txt", "rows", "other rows", "data/rows.txt changed"),
        ("dvc.yaml", "-m stages.slow", "-m stages.slow --fast", "dvc.yaml: cmd changed"),
    ],
)
def test_an_input_edited_while_the_stage_runs_is_named_and_nothing_may_be_published(
    repository: Path, file: str, old: str, new: str, named: str
) -> None:
    with held_run("slow") as run:
        run.check_unmoved()
        edit(repository / file, old, new)
        with pytest.raises(UserError, match=named):
            run.check_unmoved()
        edit(repository / file, new, old)
        run.check_unmoved()


def test_the_work_dir_lies_in_the_repository_the_user_stands_in_also_for_a_queued_experiment(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "outer"))
    assert work_root() == tmp_path / "outer/.work"


def test_a_second_process_with_the_same_inputs_is_refused_and_told_the_first_ones_pid(repository: Path) -> None:
    with held_run("slow") as run, pytest.raises(UserError, match=rf"another slow .*process {os.getpid()}"), held_run("slow"):
        pass
    with held_run("slow") as again:
        assert again.folder == run.folder


def test_a_stage_dies_with_its_parent_and_lets_its_work_dir_go(repository: Path) -> None:
    child = "import time; from stages.core.runs import held_run\nwith held_run('slow'): open('held', 'w'); time.sleep(60)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": str(root)})
    wait_until(lambda: (repository / "held").exists())
    with pytest.raises(UserError, match="another slow"), held_run("slow"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()

    def free() -> bool:
        try:
            with held_run("slow"):
                return True
        except UserError:
            return False

    wait_until(free)


def wait_until(true: Callable[[], bool]) -> None:
    """Waits for up to a minute."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
