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
    from dvc_data.hashfile.obj import HashFile

NAMED = 3  # stages or files that a sentence names


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
    found: dict[str, tuple[dict[str, Any], HashFile | None]] = {}
    differing: dict[str, list[str]] = {}  # one sentence a path, whichever stages name it
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
                    found[path] = found.get(path) or _hash(repo, path)
                    if problem := _compare(repo, path, recorded[path], *found[path]):
                        differing.setdefault(problem, []).append(name)
                    else:
                        yield ""
        for dep in params:
            recorded = entry.get("params", {}).get(dep.def_path, {})
            values = dep.read_params()
            for key in sorted(set(dep.params) | set(recorded)):
                if key in values and key in recorded and values[key] == recorded[key]:
                    yield ""
                for problem in _unlike(f"{dep.def_path}: {key}", values.get(key), recorded.get(key)):
                    differing.setdefault(problem, []).append(name)
    for problem, names in differing.items():
        yield f"{problem} (named by {', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more stages' if len(names) > NAMED else ''})"


def _unlike(key: str, found: Any, recorded: Any) -> Iterator[str]:
    """The values of a parameter, or of a section of them, that are not the recorded ones."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        for part in sorted(found.keys() | recorded.keys()):
            yield from _unlike(f"{key}.{part}", found.get(part), recorded.get(part))
    elif found != recorded:
        yield f"{key} is {found}, dvc.lock has {recorded}"


def _hash(repo: "Repo", path: str) -> "tuple[dict[str, Any], HashFile | None]":
    """Digest, size and number of files as dvc.lock spells them, from the bytes, and DVC's object; {} and None where the path is missing."""
    if not Path(path).exists():
        return {}, None
    meta, found = rehash(repo, path)
    return {"md5": found.hash_info.value, **{key: value for key, value in meta.to_dict().items() if key in ("size", "nfiles")}}, found


def _compare(repo: "Repo", path: str, recorded: dict[str, Any], facts: dict[str, Any], found: "HashFile | None") -> str:
    """ "" if digest, size and number of files are the recorded ones, else what differs, of a folder by the names of its files."""
    if not facts:
        return f"{path} is missing"
    differing = [f"{key} {facts[key]}, dvc.lock has {recorded.get(key)}" for key in facts if facts[key] != recorded.get(key)]
    if not differing:
        return ""
    names = _differing_files(repo, recorded["md5"], found)
    inside = f"; in it {', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}" if names else ""
    return f"{path} has {'; '.join(differing)}{inside}"


def _differing_files(repo: "Repo", recorded: str, found: "HashFile | None") -> list[str]:
    """The files of a folder that are others than recorded, missing or added; none where the cache has no list of the recorded ones."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    if not isinstance(found, Tree):
        return []
    try:
        listed = Tree.load(repo.cache.local, HashInfo("md5", recorded))
    except (OSError, ObjectFormatError):
        return []
    before, after = ({"/".join(key): entry.value for key, (_, entry) in tree.iteritems()} for tree in (listed, found))
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


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
    try:
        provenance = json.loads(paths.PROVENANCE.read_text(encoding="utf-8"))
        files, row_sets = provenance["files"], provenance.get("row_sets", {})  # older cards have none
    except (ValueError, KeyError, TypeError, AttributeError):
        yield f"{paths.PROVENANCE} is no record as card writes it: it was damaged or changed"
        return
    changed = set()
    for path, digest in files.items():
        found = sha256_file(Path(path)) if Path(path).is_file() else "missing"
        changed |= {path} if found != digest else set()
        yield "" if found == digest else f"{path} is {found}, {paths.PROVENANCE} has {digest}"
    for path, stated in row_sets.items():
        if path not in changed:  # which may be no table any more, and is named above
            rows = row_set_facts(Path(path))
            yield "" if rows == stated else f"the rows of {path} are {rows}, {paths.PROVENANCE} has {stated}"
