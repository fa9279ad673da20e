"""Signed statements: where they lie, and what of them does not hold.

In: envelopes beside the tags of a release (git notes) or in a released folder, a public key, files. Out: a sentence for each thing that
does not hold, "" for each that does.
"""

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.cli.signing import read_public_key, unseal
from stages.cli.statement import DEFINITION, commit_of, dependencies, differences, statement, subjects
from stages.core.errors import UserError
from stages.core.files import sha256_file

NOTES = "refs/notes/attestations"
ENVELOPE = "attestation.json"  # of a released folder


@dataclass(frozen=True)
class Kept:
    """A release's envelope.

    Attributes:
        tag: the release.
        commit: what the tag stands on.
        envelope: the signed statement as text.
    """

    tag: str
    commit: str
    envelope: str


def keep(tag: str, envelope: str) -> None:
    """Puts an envelope beside a tag, as a git note on the tag itself: in no commit, so that it can name the commit."""
    blob = subprocess.run(
        ["git", "hash-object", "-w", "--stdin"], input=envelope, capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(["git", "notes", f"--ref={NOTES}", "add", "-f", "-C", blob, f"refs/tags/{tag}"], capture_output=True, check=True)


def kept() -> list[Kept]:
    """Every release's envelope in this repository, the newest tag first; none outside a repository."""
    listed = _lines("notes", f"--ref={NOTES}", "list")
    notes = {target: note for note, target in (line.split() for line in listed)}
    form = "--format=%(objectname) %(refname:short) %(*objectname)"
    tags = [line.split() for line in _lines("for-each-ref", "--sort=-creatordate", form, "refs/tags")]
    return [
        Kept(parts[1], parts[2], subprocess.run(["git", "cat-file", "blob", notes[parts[0]]], capture_output=True, text=True).stdout)
        for parts in tags
        if parts[0] in notes
    ]


def _lines(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def release_checks(commit: str, key: Path) -> Iterator[str]:
    """The statements beside the tags of the commit that is checked out here: signature, and every value derived again."""
    for found in kept():
        if found.commit != commit:
            continue
        try:
            stated, problem = unseal(found.envelope, read_public_key(key), f"the statement of {found.tag}")
        except UserError as error:
            yield str(error)
            continue
        yield problem
        if stated is not None:
            try:
                derived = statement()
            except (OSError, ValueError, KeyError, UserError) as error:
                yield f"{found.tag}: the statement could not be derived again ({error})"
                continue
            yield from (f"{found.tag}: {line}" if line else "" for line in differences(stated, derived))


def folder_checks(folder: Path, key: Path) -> Iterator[str]:
    """A released folder: signature, every file in it, and, where the commit is in this repository, what git has of its definition."""
    envelope = folder / ENVELOPE
    stated, problem = unseal(envelope.read_text(encoding="utf-8", errors="replace"), read_public_key(key), str(envelope))
    yield problem
    if stated is None:
        return
    try:
        named, _ = subjects(stated), commit_of(stated)
    except (KeyError, TypeError):
        yield f"{envelope} holds no statement of a release"
        return
    for name, digest in named.items():
        path = folder / name
        found = sha256_file(path) if path.is_file() else "missing"
        yield "" if found == digest else f"{path} is {found}, the statement has {digest}"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {ENVELOPE}
    yield from (f"{folder / name} is in no statement" for name in sorted(there - named.keys()))
    yield from _definition_checks(stated)


def _definition_checks(stated: dict[str, Any]) -> Iterator[str]:
    """dvc.lock, params.yaml and the like as git has them in the commit that the statement names; nothing where git has no such commit."""
    commit = commit_of(stated)
    if not _lines("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
        return
    for path in DEFINITION:
        done = subprocess.run(["git", "show", f"{commit}:./{path.as_posix()}"], capture_output=True, check=False)
        found = hashlib.sha256(done.stdout).hexdigest() if done.returncode == 0 else "missing"
        digest = dependencies(stated)[path.as_posix()]["digest"]["sha256"]
        yield "" if found == digest else f"{path} of commit {commit[:12]} is {found}, the statement has {digest}"


def around(path: Path) -> list[tuple[str, str]]:
    """Name and text of the envelope in the nearest folder that has one, the path itself or one above it; none where none has."""
    place = path.resolve()
    found = [folder / ENVELOPE for folder in (place, *place.parents) if (folder / ENVELOPE).is_file()][:1]
    return [(str(file), file.read_text(encoding="utf-8", errors="replace")) for file in found]


def artefact_checks(path: Path, key: Path) -> Iterator[str]:
    """A bare file or folder: each of its files must be a subject of one statement whose signature holds.

    Args:
        path: the file or folder.
        key: the public key's file.

    Yields:
        "" for each file that is named, else what is wrong.

    Raises:
        UserError: no signed statement is at hand.
    """
    envelopes = [*around(path), *((f"the statement of {found.tag}", found.envelope) for found in kept())]
    if not envelopes:
        raise UserError(
            f"no signed statement is at hand for {path}: run this in the repository that released it (and git fetch origin {NOTES}:{NOTES})"
        )
    public = read_public_key(key)
    opened = [(name, *unseal(envelope, public, name)) for name, envelope in envelopes]
    believed = [(name, set(subjects(stated).values())) for name, stated, problem in opened if stated is not None and not problem]
    if not believed:
        yield from (problem for _, _, problem in opened)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digests = {file: sha256_file(file) for file in files}
    name, best = max(believed, key=lambda entry: len(entry[1] & set(digests.values())))
    if not best & set(digests.values()):
        name = f"any of {len(believed)} signed statements"
    for file, digest in digests.items():
        yield "" if digest in best else f"{file} ({digest}) is not in {name}"
