"""`luthier origin FILE`: which repository, commit, data and licence made a bare model file, months later.

In: an adapter's folder, or a safetensors, GGUF or any other file, and this repository's git history; DVC's cache is not needed. Out: what
made it; or that it was altered, or is unknown here, and exit code 1. The join is the file's sha256, which every commit's
reports/card/provenance.json and reports/export.json keep; what a file says of itself is told, and believed of nothing.
"""

import argparse
import json
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.cli import history
from stages.cli.attested import kept
from stages.cli.signing import PUBLIC_KEY, read_public_key, unseal
from stages.cli.statement import subjects
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import sha256_file

RECORDS = [paths.PROVENANCE, paths.EXPORT_REPORT]
GGUF_MAGIC = b"GGUF"
MAX_HEADER_BYTES = 100_000_000  # as the safetensors format limits it (https://github.com/huggingface/safetensors)


@dataclass(frozen=True)
class Found:
    """A file that git remembers.

    Attributes:
        commit: the oldest commit that records its sha256.
        path: where it lay.
    """

    commit: str
    path: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds FILE and --key."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an adapter's folder, or a safetensors, GGUF or other file")
    parser.add_argument("--key", type=Path, default=PUBLIC_KEY, metavar="FILE", help=f"the public key of releases ({PUBLIC_KEY})")


def run(args: argparse.Namespace) -> None:
    """Tells where the file comes from.

    Args:
        args: `file`, `key`.

    Raises:
        UserError: there is no such file, it was altered, or it is unknown here.
    """
    if not args.file.exists():
        raise UserError(f"{args.file} is not there; name an adapter's folder or a model's file")
    files = sorted(path for path in args.file.rglob("*") if path.is_file()) if args.file.is_dir() else [args.file]
    if not files:
        raise UserError(f"{args.file} holds no file")
    digests = {path: sha256_file(path) for path in files}
    known = {path: found for path, digest in digests.items() if (found := recorded(digest)) is not None}
    strange = [path for path in files if path not in known]
    if not strange:
        weights = max(files, key=lambda path: path.stat().st_size)
        origin = known[weights]
        print(
            f"{args.file} is {origin.path}, sha256 {digests[weights]}" if len(files) == 1 else f"{args.file}: {len(files)} files, all known"
        )
        _tell(origin.commit, digests[weights], args.key)
        return
    for line in own_words(args.file, files):
        print(f"it says of itself: {line}")
    if known:
        commit = _newest({found.commit for found in known.values()})  # in older ones some of these files were others
        print("the other files of the folder are known:")
        _tell(commit, None, args.key)
        names = ", ".join(path.name for path in strange)
        raise UserError(f"{names} of {args.file} is in no commit of this repository: it was altered, or put there from elsewhere")
    parent = next((found for path in files if (digest := adapter_digest(path)) and (found := recorded(digest))), None)
    if parent is not None:
        print("the adapter that it names is known:")
        _tell(parent.commit, None, args.key)
        raise UserError(
            f"{args.file} itself is in no commit: it was altered after the export, or made by an export that was never committed"
        )
    raise UserError(f"{args.file} ({digests[files[0]]}) is unknown: {_searched()}")


def recorded(digest: str) -> Found | None:
    """The oldest commit, of all branches, tags and experiments, whose records hold a sha256; None where none does."""
    names = [record.as_posix() for record in RECORDS]
    for commit in reversed(_lines("log", "--all", "--format=%H", f"-S{digest}", "--", *names)):
        for record in RECORDS:
            done = subprocess.run(["git", "show", f"{commit}:./{record}"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and digest in done.stdout:
                return Found(commit, _path_of(json.loads(done.stdout), digest))
    return None


def _newest(commits: set[str]) -> str:
    return _lines("log", "--no-walk=sorted", "--format=%H", *sorted(commits))[0]


def _path_of(value: Any, digest: str) -> str:
    """The path that a record gives a digest: `path: digest`, or an object with `path` and `sha256`."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("sha256") == digest and "path" in item:
                return str(item["path"])
            for name, entry in item.items():
                if entry == digest:
                    return str(name)
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return "a file"


def _tell(commit: str, digest: str | None, key: Path) -> None:
    """Prints what made it: repository, commit, releases, base, data, licence."""
    for name, value in facts(commit, digest, key):
        print(f"  {name:<11}{value}")


def facts(commit: str, digest: str | None, key: Path) -> Iterator[tuple[str, str]]:
    """What a commit says of the model it recorded.

    Args:
        commit: 40 hex digits.
        digest: of the file, to find the releases that name it; None asks for none.
        key: the public key of releases.

    Yields:
        Name and value of each fact.
    """
    remote = _lines("remote", "get-url", "origin")
    yield "repository", remote[0] if remote else f"{_lines('rev-parse', '--show-toplevel')[0]} (no remote)"
    yield "commit", f"{history.describe(commit)} ({commit})"
    provenance = history.read_report(paths.PROVENANCE, commit)
    if provenance["code"]["commit"]:
        state = ", with changes that were not committed" if provenance["code"]["dirty"] else ""
        yield "made with", f"the code of {provenance['code']['commit']}{state}"
    yield from (("release", line) for line in _releases(digest, key))
    base = provenance["base"]
    yield "base", f"{base['name']}, {base['revision']}, licence {base['license'] or 'not stated'}"
    for line in _sources(history.read_report(paths.FETCH_DATA_REPORT, commit)):
        yield "data", line
    train = provenance.get("row_sets", {}).get(paths.SPLIT_TRAIN.as_posix())
    if train:
        yield "trained on", f"{train['rows']:,} rows, set {train['sha256']}"
    card = provenance["params"]["values"]["card"]
    yield "model", f"{card['name']}: {card['intended_use']}"
    yield "licence", str(card["license"])
    yield "again", f"git checkout {commit} && dvc pull, or make repro"


def _releases(digest: str | None, key: Path) -> Iterator[str]:
    """The signed releases that name a file."""
    for release in kept() if digest else []:
        try:
            stated, problem = unseal(release.envelope, read_public_key(key), "its statement")
        except UserError:
            stated, problem = None, f"signed, but {key} is missing to check by"
        if stated is None or problem:
            yield f"{release.tag}: {problem}"
        elif digest in subjects(stated).values():
            yield f"{release.tag}, whose signed statement names it"


def _sources(fetched: dict[str, Any]) -> Iterator[str]:
    """Where the rows came from, with their licences."""
    if (package := fetched["package"]) is not None:
        yield f"{package['name']} {package['version']}, {fetched['rows_read']:,} rows read, licence {fetched['license']}"
    for file in fetched["files"]:
        yield f"{file['path']}, {file['rows']:,} rows, licence {file.get('license') or 'not stated'}, sha256 {file['sha256']}"


def own_words(place: Path, files: list[Path]) -> Iterator[str]:
    """What an unknown file or folder says of its origin."""
    for path in files:
        for name, value in embedded(path).items():
            yield f"{name} {value}"
    manifest = place / "base.json"
    if manifest.is_file():
        try:
            base = json.loads(manifest.read_text(encoding="utf-8"))
            yield f"base {base['name']} {base['revision']}"
        except (ValueError, KeyError, TypeError):
            yield "base.json, which cannot be read"


def adapter_digest(path: Path) -> str | None:
    """The sha256 of the adapter that a GGUF file names as its parent."""
    return embedded(path).get("luthier.adapter_sha256")


def embedded(path: Path) -> dict[str, str]:
    """The key-values of a model's file that tell of its origin.

    Args:
        path: a safetensors or GGUF file; any other has none.

    Returns:
        `general.` and `luthier.` strings of a GGUF file, all metadata of a safetensors file; {} of a broken file.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] == GGUF_MAGIC:
            return _gguf(path)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if path.suffix != ".safetensors" or not 0 < length < MAX_HEADER_BYTES:
            return {}
        try:
            found = json.loads(file.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError):
            return {}
    return {str(name): str(value) for name, value in found.items() if name != "format"}


def _gguf(path: Path) -> dict[str, str]:
    from gguf import GGUFReader, GGUFValueType

    try:
        fields = GGUFReader(path).fields
    except (ValueError, IndexError, KeyError, OverflowError):  # a damaged file
        return {}
    wanted = {name: field for name, field in fields.items() if name.startswith(("general.", "luthier."))}
    return {name: str(field.contents()) for name, field in wanted.items() if field.types == [GGUFValueType.STRING]}


def _searched() -> str:
    """What was searched, for the sentence on a file that was not found."""
    if not _lines("rev-parse", "--show-toplevel"):
        return "this folder is in no git repository; run it in the one that may have made it"
    if _lines("rev-parse", "--is-shallow-repository") == ["true"]:
        return "this clone is shallow; get the whole history (git fetch --unshallow --tags) and run again"
    commits = _lines("rev-list", "--all", "--count")[0]
    return f"none of this repository's {commits} commits recorded it; it was altered, made elsewhere, or its run was never committed"


def _lines(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []
