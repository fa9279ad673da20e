"""What goes wrong outside params.yaml is one sentence too: exit code 1, no traceback, nothing half written, `--debug` for the traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROWS = 400


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny workspace in which the rows are fetched."""
    root = tiny.make_workspace(tmp_path_factory.mktemp("errors") / "workspace", Path("base"), rows=ROWS)
    assert stage(root, "fetch_data").returncode == 0
    return root


@pytest.fixture
def root(fetched: Path, tmp_path: Path) -> Path:
    """A copy of that workspace, to break."""
    return shutil.copytree(fetched, tmp_path / "workspace", symlinks=True)


def stage(root: Path, name: str, *arguments: str, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs a stage as dvc does, in a wrapper such as setpriv where one is given."""
    command = [*wrap, sys.executable, "-m", f"stages.{name}", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def told(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The run ended with exit code 1 and one sentence that holds the parts."""
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def works(*command: str) -> bool:
    """Whether a command of the system runs here."""
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_missing_input_names_the_file_and_the_remedy(root: Path) -> None:
    (root / "data/raw/rows.parquet").unlink()
    told(stage(root, "clean"), "clean: data/raw/rows.parquet is missing", "dvc repro")
    assert not (root / "data/clean").exists()


def test_a_table_that_is_none_is_told(root: Path) -> None:
    (root / "data/raw/rows.parquet").write_bytes(b"PAR1 not quite")
    told(stage(root, "clean"), "clean: data/raw/rows.parquet is no table of rows", "dvc repro")
    assert not (root / "data/clean").exists()


def test_a_file_without_permission_is_told(root: Path) -> None:
    (root / "data/raw/rows.parquet").chmod(0)
    drop = "-dac_override,-dac_read_search"
    as_user = ("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}") if os.geteuid() == 0 else ()
    if as_user and not works(*as_user, "true"):
        pytest.skip("root may read everything here")
    told(stage(root, "clean", wrap=as_user), "clean: ", "data/raw/rows.parquet", "ermission denied", "mend its permissions")


def test_a_full_disk_leaves_the_old_outs_and_nothing_half_written(root: Path) -> None:
    """`clean` writes into a file system of 8 KiB: room for the outs of before, not for the new ones."""
    wrap = ("unshare", "--map-root-user", "--mount")
    if not works(*wrap, "true"):
        pytest.skip("no namespace of one's own here")
    mount = "mkdir -p data/clean && mount -t tmpfs -o size=8k none data/clean && echo old > data/clean/rows.parquet"
    script = f"{mount} && {sys.executable} -m stages.clean; code=$?; ls -A data/clean; cat data/clean/rows.parquet; exit $code"
    done = subprocess.run([*wrap, "sh", "-c", script], cwd=root, capture_output=True, text=True, check=False)
    told(done, "clean: the disk is full", "data/clean/", "free some")
    assert done.stdout.splitlines() == ["rows.parquet", "old"]


def test_debug_shows_the_traceback(root: Path) -> None:
    (root / "data/raw/rows.parquet").unlink()
    done = stage(root, "clean", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_bad_row_and_a_missing_column_are_told_by_dvc_too_and_later_stages_are_untouched(root: Path) -> None:
    source = root / "data/sources/rows.jsonl"
    source.write_text(source.read_text(encoding="utf-8").replace('"label"', '"lable"'), encoding="utf-8")
    before = {path: path.read_bytes() for path in (root / "data/raw").iterdir()}
    done = subprocess.run(["dvc", "repro", "clean"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "fetch_data: data/sources/rows.jsonl" in done.stderr
    assert "label" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path for path in before if path.exists() and path.read_bytes() != before[path]} == set()
    assert not (root / "data/clean").exists()
    assert not (root / "dvc.lock").exists()


def test_a_gpu_that_is_asked_for_and_missing_is_told() -> None:
    import torch

    from stages.core.errors import UserError
    from stages.core.models import device_of

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=r"runtime\.device is cuda, .* no CUDA device; set runtime\.device: auto"):
        device_of("cuda")


def test_an_interrupted_stage_says_so_and_publishes_nothing(root: Path) -> None:
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and background jobs hand down an ignored one\n"
        "from stages.core.stage import run_stage\n"
        "run_stage('clean', lambda params: os.kill(os.getpid(), signal.SIGINT))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "clean: interrupted; nothing was published\n"
