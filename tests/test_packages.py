"""A wheel of the package index comes into the cache once, whole and verified, or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.core.files import sha256_file
from stages.core.packages import fetch_wheel

NAME, VERSION = "iniconfig", "2.3.1"
FETCH = "import sys; from stages.core.packages import fetch_wheel; print(fetch_wheel(*sys.argv[1:]))"


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small real wheel, from the index."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), f"{NAME}=={VERSION}"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def sha256(wheelhouse: Path) -> str:
    """The small wheel's."""
    return sha256_file(next(wheelhouse.iterdir()))


@pytest.fixture
def cache(tmp_path: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip set to the wheelhouse alone."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    return tmp_path / "cache"


def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets pip to an index that refuses every connection."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_wheel_in_the_cache_is_used_without_an_index(cache: Path, sha256: str, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    first = fetch_wheel(NAME, VERSION, sha256)
    assert "fetching iniconfig 2.3.1" in capfd.readouterr().err
    no_index(monkeypatch)
    assert fetch_wheel(NAME, VERSION, sha256) == first == cache / "packages" / sha256 / first.name
    assert capfd.readouterr().err == ""


def test_a_wrong_hash_names_both_hashes_and_leaves_nothing(cache: Path, sha256: str) -> None:
    wrong = "0" * 64
    with pytest.raises(UserError) as error:
        fetch_wheel(NAME, VERSION, wrong)
    for word in (wrong, sha256, "iniconfig-2.3.1-py3-none-any.whl", "params.yaml", "nothing was kept"):
        assert word in str(error.value)
    assert files_of(cache) == []


def test_an_index_that_cannot_be_reached_is_told_in_one_sentence(cache: Path, sha256: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_index(monkeypatch)
    with pytest.raises(UserError, match=r"iniconfig 2.3.1 could not be fetched .* the index could not be reached; pip says: ") as error:
        fetch_wheel(NAME, VERSION, sha256)
    assert "\n" not in str(error.value)
    assert files_of(cache) == []


def test_a_version_that_is_not_there_is_told_with_pips_last_line(cache: Path, sha256: str) -> None:
    with pytest.raises(UserError, match=r"pip says: ERROR: No matching distribution found for iniconfig==9\.9\.9; check") as error:
        fetch_wheel(NAME, "9.9.9", sha256)
    assert "could not be reached" not in str(error.value)


def test_a_damaged_wheel_in_the_cache_is_fetched_again(cache: Path, sha256: str) -> None:
    wheel = fetch_wheel(NAME, VERSION, sha256)
    wheel.write_bytes(wheel.read_bytes()[:-1])
    assert sha256_file(fetch_wheel(NAME, VERSION, sha256)) == sha256


def test_a_killed_fetch_leaves_nothing_that_the_next_one_trips_over(cache: Path, sha256: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", FETCH, NAME, VERSION, sha256], start_new_session=True, stderr=subprocess.DEVNULL)
    while not list(cache.glob("packages/*.part")):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(cache.glob("packages/*.part"))) == 1
    fetch_wheel(NAME, VERSION, sha256)
    assert files_of(cache) == ["iniconfig-2.3.1-py3-none-any.whl"]
    assert list(cache.glob("packages/*.part")) == []


def test_two_processes_fetch_a_wheel_once(cache: Path, sha256: str) -> None:
    command = [sys.executable, "-c", FETCH, NAME, VERSION, sha256]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sum(err.count("fetching iniconfig") for _, err in said) == 1
