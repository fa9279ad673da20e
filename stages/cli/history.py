"""What dvc.lock and git remember: which stage made a file, from what, and in which commit.

In: a checkout or a commit. Out: their records.
"""

import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core.errors import UserError

LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Lock:
    """The dvc.lock of a commit or of the checkout.

    Attributes:
        rev: the commit, None for the checkout.
        stages: stage name to its record: `cmd`, `deps`, `params`, `outs`.
    """

    rev: str | None
    stages: dict[str, dict[str, Any]]

    def maker(self, path: str) -> tuple[str | None, str]:
        """The stage that makes a path and the recorded path that is it or holds it.

        Args:
            path: an out, a file in one, or a dep.

        Returns:
            The stage's name, None for a source, and the path as dvc.lock records it.

        Raises:
            UserError: no stage records it.
        """
        wanted = Path(path)
        recorded = {item["path"]: name for kind in ("deps", "outs") for name, stage in self.stages.items() for item in stage.get(kind, [])}
        for candidate in (wanted, *wanted.parents):
            if candidate.as_posix() in recorded:
                known = candidate.as_posix()
                is_out = any(item["path"] == known for item in self.stages[recorded[known]].get("outs", []))
                return (recorded[known] if is_out else None), known
        raise UserError(f"no stage in dvc.lock makes or reads {path}; `dvc dag --outs` draws what there is")

    def entry(self, path: str) -> tuple[dict[str, Any], str | None]:
        """A recorded path's digest and size, and the stage that makes it, None for a source."""
        maker, known = self.maker(path)
        kinds = [("outs", maker)] if maker else [("deps", name) for name in self.stages]
        for kind, name in kinds:
            for item in self.stages[str(name)].get(kind, []):
                if item["path"] == known:
                    return item, maker
        raise AssertionError(path)

    def commit_of_out(self, stage: str, path: str) -> str | None:
        """The newest commit that put the out's present digest into dvc.lock, or None if none did yet."""
        digest = _out(self.stages, stage, path)
        for commit in _lines("log", "--format=%H", f"-S{digest}", self.rev or "HEAD", "--", str(LOCK)):
            before = _lines("rev-list", "--parents", "-1", commit)[0].split()[1:]
            earlier = _out(_stages(before[0]), stage, path) if before else None
            if _out(_stages(commit), stage, path) == digest != earlier:
                return commit
        return None


@cache
def _stages(commit: str) -> dict[str, Any]:
    """The stages of a commit's dvc.lock, {} where it has none."""
    done = subprocess.run(["git", "show", f"{commit}:./{LOCK}"], capture_output=True, text=True, check=False)
    return YAML(typ="safe", pure=True).load(done.stdout)["stages"] if done.returncode == 0 else {}


def _out(stages: dict[str, Any], stage: str, path: str) -> str | None:
    """The digest that a lock's stage records for an out."""
    return next((item["md5"] for item in stages.get(stage, {}).get("outs", []) if item["path"] == path), None)


def read_lock(rev: str | None) -> Lock:
    """The dvc.lock of a commit, or with None the one on disk."""
    return Lock(rev, read_yaml(LOCK, rev)["stages"])


def _lines(*arguments: str) -> list[str]:
    """What a git command prints; nothing where it fails, as it does before the first commit."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def read_text(path: Path, rev: str | None) -> str:
    """A file's text, from disk or from a commit.

    Args:
        path: relative to the current folder.
        rev: the commit, or None for the file on disk.

    Returns:
        The text.

    Raises:
        UserError: it is not there.
    """
    if rev is None:
        if not path.is_file():
            raise UserError(f"{path} is missing; run the pipeline first: make repro")
        return path.read_text(encoding="utf-8")
    done = subprocess.run(["git", "show", f"{rev}:./{path}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{rev} has no {path}; give a commit in which the pipeline had run")
    return done.stdout


def read_yaml(path: Path, rev: str | None) -> Any:
    """A YAML 1.2 file from disk (`rev` None) or from a commit."""
    return YAML(typ="safe", pure=True).load(read_text(path, rev))


def read_report(path: Path, rev: str | None) -> dict[str, Any]:
    """A JSON file from disk (`rev` None) or from a commit; of a report headline and details in one dict."""
    report: dict[str, Any] = json.loads(read_text(path, rev))
    return {**report.pop("details", [{}])[0], **report}


def commits_touching(path: Path) -> list[str]:
    """The commits that changed a file, the newest first."""
    return _lines("log", "--format=%H", "--", str(path))


def commit_of(rev: str) -> str:
    """The 40 hex digits of a commit or tag.

    Args:
        rev: any name git knows.

    Returns:
        The commit.

    Raises:
        UserError: there is none of that name.
    """
    found = _lines("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}")
    if not found:
        raise UserError(f"{rev} is no commit or tag of this repository; `git log` and `git tag` list them")
    return found[0]


def describe(commit: str) -> str:
    """A commit in words: abbreviated digits, date, subject."""
    return _lines("log", "-1", "--format=%h (%cs) %s", commit)[0]
