"""After the fetch stages nothing reaches for the network, and another folder, without a cache, makes the same bytes.

One clone is reproduced from its rows with the network cut off: by the kernel where it lends a namespace, and by an audit hook in every
Python process, DVC's too, that notes each attempt and refuses it.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests import tiny

HOOK = """
import os, socket, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if event in ("socket.connect", "socket.sendto") and arguments[0].family == socket.AF_UNIX:
            return
        with open(os.environ["ATTEMPTS"], "a") as log:
            log.write(f"{sys.argv} {event} {arguments[1:]}\\n")
        raise OSError("the network is off")

sys.addaudithook(refuse)
"""
# what tells how the machine did: time, tokens a second, memory, and what quotes them
MEASURED = {
    "reports/train_machine.json",
    "reports/evaluate_base_machine.json",
    "reports/evaluate_tuned_machine.json",
    "reports/curves/speed.csv",
    "reports/card/README.md",
    "reports/card/provenance.json",
    "reports/report.html",
}


def digests(root: Path) -> dict[str, str]:
    """Every out's digest in dvc.lock."""
    stages = YAML(typ="safe", pure=True).load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


@pytest.fixture(scope="module")
def offline(reproduced: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clone of the reproduced workspace, reproduced again without network or cache, and the log of attempts."""

    def make(folder: Path) -> None:
        root, attempts = folder / "elsewhere", folder / "attempts"
        folder.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(reproduced), str(root)], check=True)
        shutil.copy2(reproduced / "data/sources/rows.jsonl", root / "data/sources")
        (folder / "hook").mkdir()
        (folder / "hook/sitecustomize.py").write_text(HOOK, encoding="utf-8")
        attempts.touch()
        wrap = ["unshare", "--map-root-user", "--net"]
        if shutil.which("unshare") is None or subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode:
            wrap = []
        environment = {**os.environ, "PYTHONPATH": str(folder / "hook"), "ATTEMPTS": str(attempts)}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run([*wrap, "dvc", "repro", "--force"], cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    folder = tiny.made_once(tmp_path_factory, "offline", make)
    return folder / "elsewhere", folder / "attempts"


def test_no_process_of_the_pipeline_reaches_for_the_network(offline: tuple[Path, Path]) -> None:
    assert offline[1].read_text(encoding="utf-8") == ""


def test_the_same_inputs_make_the_same_bytes_in_another_folder(offline: tuple[Path, Path], reproduced: Path) -> None:
    here, there = digests(offline[0]), digests(reproduced)
    assert here.keys() == there.keys()
    assert {path for path in here if here[path] != there[path]} - MEASURED == set()


def test_no_out_names_the_folder_it_was_made_in(offline: tuple[Path, Path]) -> None:
    root = offline[0]
    named = [path for path in digests(root) for file in files(root / path) if str(root.parent).encode() in file.read_bytes()]
    assert named == []


def files(path: Path) -> list[Path]:
    """A file, or a folder's files."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
