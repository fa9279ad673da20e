"""`luthier origin FILE`: which repository, commit, data and licence made a bare model file, months later.

In: an adapter's folder, or a safetensors, GGUF or any other file, and this repository's git history; DVC's cache is not needed. Out: what
made it; or that it was altered, or is unknown here, and exit code 1. The join is the file's sha256, which every commit's
reports/card/provenance.json and reports/export.json keep; what a file says of itself is told, and believed of nothing.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.cli import history
from stages.cli.attested import ENVELOPE, NOTES, around, kept
from stages.cli.signing import PUBLIC_KEY, read_public_key, unseal
from stages.cli.statement import commit_of, subjects, told
from stages.core import embedded, paths
from stages.core.errors import UserError
from stages.core.files import sha256_file
from stages.core.sources import data_sources

NAMED = 3  # strange files of a folder that are named
RECORDS = [paths.PROVENANCE, paths.EXPORT_REPORT]
LEADS = {  # digests in a file's own head, the closest first
    embedded.TENSORS: "what it says it is",
    embedded.ADAPTER: "the adapter that it names",
    embedded.TOKENS: "the data that it names",
}


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
        # a release was verified as a whole; the oldest commit may have recorded a run of changes that were never committed
        released = [commit for _, commit in releases_of(digests[weights], args.key) if commit is not None]
        _tell((released or [origin.commit])[-1], digests[weights], args.key)
        if released and released[-1] != origin.commit:
            print(f"  {'first seen':<11}{history.describe(origin.commit)}")
        return
    if not known and _vouched(args.file, digests, args.key):
        return
    for line in own_words(args.file, strange):
        print(f"it says of itself: {line}")
    if known:
        commit = _newest({found.commit for found in known.values()})  # in older ones some of these files were others
        print("the other files of the folder are known:")
        _tell(commit, None, args.key)
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        names = ", ".join(path.relative_to(args.file).as_posix() for path in strange[:NAMED]) + more
        raise UserError(f"{names} of {args.file} is in no commit of this repository: it was altered, or put there from elsewhere")
    for path in strange:
        if (led := led_back(path)) is not None:
            found, why = led
            print(f"{why[0].upper()}{why[1:]} is known:")
            _tell(found.commit, None, args.key)
            raise UserError(f"{path} is no file that a commit recorded; {_altered(path, found)}")
    raise UserError(f"{args.file} ({digests[files[0]]}) is unknown: {_searched(files)}")


def _vouched(place: Path, digests: dict[Path, str], key: Path) -> bool:
    """Tells what the signed statement beside a released file says, where its signature holds and it names every file; tells why not."""
    for name, envelope in around(place):
        if not key.is_file():
            print(f"{name} may say more: name the maker's public key, --key FILE")
            continue
        stated, problem = unseal(envelope, read_public_key(key), name)
        named = set(subjects(stated).values()) if stated is not None and not problem else set()
        strange = [path for path, digest in digests.items() if digest not in named and path.name != ENVELOPE]
        if stated is not None and not strange:
            print(f"{place} is named by {name}, whose signature holds:")
            for fact, value in told(stated):
                print(f"  {fact:<11}{value}")
            return True
        print(problem or f"{strange[0]} is not in {name}, whose signature holds")
    return False


def led_back(path: Path) -> tuple[Found, str] | None:
    """What a file's own words lead to in this repository, and which of them did; None where nothing does."""
    said = embedded.said_by(path)
    for lead, name in LEADS.items():
        if lead in said and (found := recorded(said[lead])) is not None:
            return found, name
    return None


def _altered(path: Path, found: Found) -> str:
    """What is known of an altered file that its own words led back."""
    said = embedded.said_by(path).get(embedded.TENSORS)
    if said is None:  # a GGUF file names its adapter
        return "it was altered after the export, or made by an export that was never committed"
    if said == embedded.tensors_digest(path):
        return f"its weights are those it was written with, so its head was altered, or commit {found.commit[:12]} is not what made it"
    return f"its weights were changed since commit {found.commit[:12]}, or it took the head of another file"


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
            if "path" in item and digest in (item.get("sha256"), item.get("tensors_sha256")):
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
    yield from (("release", said) for said, _ in (releases_of(digest, key) if digest else []))
    base = provenance["base"]
    yield "base", f"{base['name']}, {base['revision']}, licence {base['license'] or 'not stated'}"
    for source in data_sources(history.read_report(paths.FETCH_DATA_REPORT, commit)):
        name, licence = f"{source['name']} {source['version'] or ''}".strip(), source["license"] or "not stated"
        yield "data", f"{name}, {source['rows']:,} rows, licence {licence}, sha256 {source['sha256']}"
    train = provenance.get("row_sets", {}).get(paths.SPLIT_TRAIN.as_posix())
    if train:
        yield "trained on", f"{train['rows']:,} rows, set {train['sha256']}"
    card = provenance["params"]["values"]["card"]
    yield "model", f"{card['name']}: {card['intended_use']}"
    yield "licence", str(card["license"])
    yield "again", f"git checkout {commit} && dvc pull, or make repro"


def releases_of(digest: str, key: Path) -> list[tuple[str, str | None]]:
    """The signed releases that name a file, the newest first.

    Args:
        digest: the file's sha256.
        key: the public key of releases.

    Returns:
        What is to be said of each, and its commit where the signature holds; of one whose signature does not hold, that.
    """
    found: list[tuple[str, str | None]] = []
    for release in kept():
        try:
            stated, problem = unseal(release.envelope, read_public_key(key), "its statement")
        except UserError:
            stated, problem = None, f"signed, but {key} is missing to check by"
        if stated is None or problem:
            found.append((f"{release.tag}: {problem}", None))
        elif digest in subjects(stated).values():
            found.append((f"{release.tag}, whose signed statement names it", commit_of(stated)))
    if not found and _lines("tag", "--list", "adapter@*"):
        found.append((f"none whose signed statement is here; get them: git fetch origin {NOTES}:{NOTES}", None))
    return found


def own_words(place: Path, files: list[Path]) -> Iterator[str]:
    """What an unknown file or folder says of its origin."""
    for path in files:
        for name, value in sorted(embedded.said_by(path).items()):
            yield f"{name} {value}"
    manifest = place / "base.json"
    if manifest.is_file():
        try:
            base = json.loads(manifest.read_text(encoding="utf-8"))
            yield f"base {base['name']} {base['revision']}"
        except (ValueError, KeyError, TypeError):
            yield "base.json, which cannot be read"


def _searched(files: list[Path]) -> str:
    """What was searched, for the sentence on a file that was not found."""
    if not _lines("rev-parse", "--show-toplevel"):
        named = next((url for path in files if (url := embedded.said_by(path).get("general.repo_url"))), None)
        return f"this folder is in no git repository; run it in {f'a clone of {named}' if named else 'the one that may have made it'}"
    if _lines("rev-parse", "--is-shallow-repository") == ["true"]:
        return "this clone is shallow; get the whole history (git fetch --unshallow --tags) and run again"
    commits = _lines("rev-list", "--all", "--count")[0]
    return f"none of this repository's {commits} commits recorded it; it was altered, made elsewhere, or its run was never committed"


def _lines(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []
