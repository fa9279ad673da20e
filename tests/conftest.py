"""Fixtures shared by all tests: the tiny base, made once, and a fresh tiny workspace."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests import tiny

settings.register_profile("luthier", deadline=None)  # a shared machine may pause for seconds
settings.load_profile("luthier")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer base in a folder."""
    return tiny.make_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture
def workspace(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh tiny workspace, the current folder while the test runs,."""
    root = tiny.make_workspace(tmp_path / "workspace", tiny_base)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root)
    return root
