"""`luthier verify [REV or PATH]`: derives every hash again, from the commit up.

In: a commit, its dvc.lock, its outs and the statements of its releases; or a released folder; or a bare file. Out: a line for each thing
that does not hold, and exit code 1 if there is one. Nothing remembered is trusted, neither DVC's table of hashes nor the cache's list of
checked weights: every byte is read again.
"""

import argparse
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.cli import history
from stages.cli.attested import ENVELOPE, artefact_checks, folder_checks, release_checks
from stages.cli.rehash import rehash
from stages.cli.signing import PUBLIC_KEY
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import sha256_file
from stages.core.row_sets import row_set_facts

if TYPE_CHECKING:
    from dvc.repo import Repo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds TARGET and --key."""
    told = "a commit or tag, checked in a folder of its own; a released folder; a file or folder that shipped; without it, this checkout"
    parser.add_argument("target", nargs="?", metavar="REV_OR_PATH", help=told)
    parser.add_argument("--key", type=Path, default=PUBLIC_KEY, metavar="FILE", help=f"the maker's public key ({PUBLIC_KEY})")


def run(args: argparse.Namespace) -> None:
    """Prints each thing that does not hold.

    Args:
        args: `target`, `key`.

    Raises:
        UserError: something does not hold.
    """
    path = Path(args.target) if args.target is not None else None
    if path is not None and path.exists():
        what = str(path)
        checks = list((folder_checks if (path / ENVELOPE).is_file() else artefact_checks)(path, args.key))
        problems, held = [check for check in checks if check], checks.count("")
    else:
        key = args.key.absolute()
        with checkout(args.target) as what:
            problems, held = problems_of(complete=args.target is None, key=key)
    for problem in problems:
        print(f"does not hold: {problem}")
    if problems:
        raise UserError(f"{len(problems)} of {held + len(problems)} checks on {what} do not hold; what they name is not what was made")
    print(f"verified {what}: {held} checks hold")


@contextlib.contextmanager
def checkout(rev: str | None) -> Iterator[str]:
    """Enters the tree to verify: this checkout, or a temporary worktree of `rev` with its outs from this repository's cache.

    Args:
        rev: a commit or tag, or None for this checkout.

    Yields:
        The commit, 40 hex digits.

    Raises:
        UserError: the commit's outs are not in the cache.
    """
    commit = history.commit_of(rev or "HEAD")
    if rev is None:
        yield commit
        return
    cache = subprocess.run(["dvc", "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            (tree / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")
            restored = subprocess.run(["dvc", "checkout"], cwd=tree, capture_output=True, text=True, check=False)
            if restored.returncode:
                missing = ", ".join(restored.stderr.partition("following targets:")[2].partition("Is your cache")[0].split())
                raise UserError(f"{missing or 'an out'} of {rev} is not in the cache; get it: dvc fetch --all-commits")
            with contextlib.chdir(tree):
                yield commit
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=True)


def problems_of(complete: bool, key: Path = PUBLIC_KEY) -> tuple[list[str], int]:
    """Checks the current folder.

    Args:
        complete: whether inputs that git does not keep, such as data/sources, must be here too.
        key: whose signature is believed.

    Returns:
        What does not hold, a sentence each, and how many checks did.
    """
    from dvc.repo import Repo

    if not history.LOCK.is_file():
        return [f"{history.LOCK} is missing: nothing was made yet, run: make repro"], 0
    with Repo() as repo:
        checks = [*_git_checks(), *_pipeline_checks(repo, complete), *_base_checks(), *_package_checks(), *_provenance_checks()]
        checks += release_checks(history.commit_of("HEAD"), key)
    return [check for check in checks if check], checks.count("")


def _git_checks() -> Iterator[str]:
    """The tree is the commit's: a problem for each file that differs."""
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.splitlines()
    yield from (f"{line[3:]} differs from the commit or is not in it" for line in status)
    if not status:
        yield ""


def _pipeline_checks(repo: "Repo", complete: bool) -> Iterator[str]:
    """dvc.yaml, params and bytes on disk are those that dvc.lock names; a problem or "" for each."""
    from dvc.dependency.param import ParamsDependency

    locked = history.read_lock(None).stages
    stages = {stage.addressing: stage for stage in repo.index.stages if stage.addressing in locked or not stage.is_data_source}
    hashes: dict[str, dict[str, Any]] = {}
    yield from (f"{name} stands in dvc.lock and not in dvc.yaml" for name in locked.keys() - stages.keys())
    for name, stage in stages.items():
        entry = locked.get(name)
        if entry is None:
            yield f"{name} stands in dvc.yaml and not in dvc.lock"
            continue
        yield "" if entry["cmd"] == stage.cmd else f"{name}: dvc.yaml runs `{stage.cmd}`, dvc.lock `{entry['cmd']}`"
        params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
        named = {"deps": [dep for dep in stage.deps if dep not in params], "outs": stage.outs}
        for kind, items in named.items():
            recorded = {item["path"]: item for item in entry.get(kind, [])}
            declared = {item.def_path: item for item in items}
            yield from (f"{name}: {path} is one of the {kind} in dvc.lock only" for path in recorded.keys() - declared.keys())
            for path in declared:
                if path not in recorded:
                    yield f"{name}: {path} is one of the {kind} in dvc.yaml only"
                elif complete or Path(path).exists():
                    hashes[path] = hashes.get(path) or _hash(repo, path)
                    yield _compare(f"{name}: {path}", recorded[path], hashes[path])
        for dep in params:
            recorded = entry.get("params", {}).get(dep.def_path, {})
            values = dep.read_params()
            for key in sorted(set(dep.params) | set(recorded)):
                same = key in values and key in recorded and values[key] == recorded[key]
                yield "" if same else f"{name}: {key} of {dep.def_path} is {values.get(key)}, dvc.lock has {recorded.get(key)}"


def _hash(repo: "Repo", path: str) -> dict[str, Any]:
    """A file's or folder's digest, size and number of files as dvc.lock spells them, from the bytes; {} where it is missing."""
    if not Path(path).exists():
        return {}
    meta, found = rehash(repo, path)
    return {"md5": found.hash_info.value, **{key: value for key, value in meta.to_dict().items() if key in ("size", "nfiles")}}


def _compare(what: str, recorded: dict[str, Any], found: dict[str, Any]) -> str:
    """ "" if digest, size and number of files are the recorded ones, else what differs."""
    if not found:
        return f"{what} is missing"
    differing = [f"{key} {found[key]}, dvc.lock has {recorded.get(key)}" for key in found if found[key] != recorded.get(key)]
    return f"{what} has {'; '.join(differing)}" if differing else ""


def _base_checks() -> Iterator[str]:
    """The base's weights, which no DVC cache holds, are those of the manifest."""
    from stages.core.models import located, read_manifest

    if not paths.BASE.is_file():
        return
    manifest = read_manifest()
    for file in manifest["files"]:
        path = located(manifest["source"], manifest["location"]) / file["path"]
        found = sha256_file(path) if path.is_file() else "missing"
        yield "" if found == file["sha256"] else f"{file['path']} of the base is {found}, {paths.BASE} has {file['sha256']}"


def _package_checks() -> Iterator[str]:
    """The installed packages are the pinned ones."""
    from stages.cli.doctor import package_differences

    differences = package_differences()
    yield from differences
    if not differences:
        yield ""


def _provenance_checks() -> Iterator[str]:
    """What the card's provenance says of digests is what lies here."""
    if not paths.PROVENANCE.is_file():
        return
    provenance = json.loads(paths.PROVENANCE.read_text(encoding="utf-8"))
    for path, digest in provenance["files"].items():
        found = sha256_file(Path(path)) if Path(path).is_file() else "missing"
        yield "" if found == digest else f"{path} is {found}, {paths.PROVENANCE} has {digest}"
    for path, stated in provenance.get("row_sets", {}).items():  # older cards have none
        rows = row_set_facts(Path(path))
        yield "" if rows == stated else f"the rows of {path} are {rows}, {paths.PROVENANCE} has {stated}"
