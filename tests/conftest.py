"""Fixtures shared by all tests: the tiny base and the reproduced workspace, each made once a run, and a fresh tiny workspace.

`make test` runs on a worker (a process of pytest-xdist) a core; what is expensive is made by the first worker that asks, the others wait.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests import tiny

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # dvc runs `python -m stages.NAME`
CORES = len(os.sched_getaffinity(0))
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # each has its share of the cores, and so have the processes it starts
    os.environ["OMP_NUM_THREADS"] = str(max(1, CORES // workers))
settings.register_profile("luthier", deadline=None)  # a shared machine may pause for seconds
settings.load_profile("luthier")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a worker a core that this process may use; more than eight would wait for the same few long tests."""
    return min(CORES, 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that use the reproduced workspace first, so that one worker makes it while the others run the rest."""
    using = {item.path for item in items if "reproduced" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in using)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer base in a folder."""
    return tiny.made_once(tmp_path_factory, "tiny-base", tiny.make_base)


@pytest.fixture
def workspace(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh tiny workspace, the current folder while the test runs,."""
    root = tiny.make_workspace(tmp_path / "workspace", tiny_base)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A tiny workspace after `dvc repro`, rows tracked, results committed; what dvc said is in ../repro.log. Copy it to change it."""

    def make(folder: Path) -> None:
        root = tiny.make_workspace(folder / "workspace", tiny_base)
        for command in (["dvc", "add", "--quiet", "data/sources/rows.jsonl"], ["git", "commit", "-qm", "rows"]):
            subprocess.run(command, cwd=root, check=True)
        done = subprocess.run(["dvc", "repro"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        (folder / "repro.log").write_text(done.stdout, encoding="utf-8")
        assert done.returncode == 0, done.stdout
        for command in (["git", "add", "-A"], ["git", "commit", "-qm", "results"]):
            subprocess.run(command, cwd=root, check=True)

    return tiny.made_once(tmp_path_factory, "reproduced", make) / "workspace"


@pytest.fixture
def finished(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the reproduced workspace, without DVC's cache, the current folder while the test runs."""
    root = tmp_path / "workspace"
    shutil.copytree(reproduced, root, ignore=shutil.ignore_patterns("cache", ".work", "tmp"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the committed params.yaml and user-level caches of its own, the current one while the test runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "params.yaml").write_text((tiny.ROOT / "params.yaml").read_text())
    return tmp_path
