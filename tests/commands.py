"""Commands as the user gives them, for the tests of `luthier`."""

import contextlib
import io
import subprocess
from pathlib import Path

from stages.cli.main import main


def luthier(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as the user does, in this process, which has DVC loaded."""
    said, told, code = io.StringIO(), io.StringIO(), None
    with contextlib.chdir(root), contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), told.getvalue())


def git(root: Path, *arguments: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
