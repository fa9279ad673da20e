"""What a commit's shipped files are and what they were made from, as an in-toto statement with SLSA's provenance predicate.

In: a checkout whose outs lie here. Out: one dict that depends on nothing but the commit and the bytes, so that anyone can derive it again.
Formats: https://github.com/in-toto/attestation (Statement v1), https://slsa.dev/spec/v1.0/provenance.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.cli import history
from stages.core import paths
from stages.core.files import sha256_file
from stages.core.provenance import git_commit
from stages.core.row_sets import row_set_facts
from stages.core.sources import data_sources

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "urn:luthier:dvc-repro:v1"
BUILDER = "urn:luthier:workstation"
SHIPPED = [paths.ADAPTER, paths.EXPORT, paths.CARD.parent, paths.HTML_REPORT]
DEFINITION = [history.LOCK, paths.PIPELINE, paths.PARAMS, paths.VERSIONS, paths.LOCK]
ROWS = [paths.RAW_ROWS, paths.SPLIT_TRAIN, paths.SPLIT_VALIDATION, paths.SPLIT_TEST]
TABLES = [paths.TOKENIZED_TRAIN, paths.TOKENIZED_VALIDATION]


def statement() -> dict[str, Any]:
    """The statement of the current folder, a clean checkout with its outs.

    Returns:
        Statement v1: `subject` is every shipped file, `resolvedDependencies` the commit, dvc.lock, parameters and pinned packages, the data
        by file and by set of rows, the sources as DVC digests them, and the base by revision and by file.
    """
    provenance = json.loads(paths.PROVENANCE.read_text(encoding="utf-8"))
    machine = provenance["training"]
    return {
        "_type": STATEMENT,
        "subject": [{"name": path.as_posix(), "digest": {"sha256": sha256_file(path)}} for path in shipped()],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": provenance["params"]["values"],
                "internalParameters": {"machine": machine["machine"], "gpu": machine["gpu"]},
                "resolvedDependencies": list(_dependencies()),
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    }


def shipped() -> list[Path]:
    """Every file that leaves with a release, sorted."""
    return sorted({file for path in SHIPPED for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()})


def _dependencies() -> Iterator[dict[str, Any]]:
    yield {"name": "commit", "digest": {"gitCommit": git_commit()["commit"]}}
    yield from (_file(path.as_posix(), path) for path in DEFINITION)
    for path in ROWS:
        yield _file(path.as_posix(), path) | {"annotations": {"row_set": row_set_facts(path)}}
    yield from (_file(path.as_posix(), path) for path in TABLES)
    fetched = history.read_lock(None).stages["fetch_data"]["deps"]
    yield from ({"name": dep["path"], "digest": {"md5": dep["md5"]}} for dep in fetched if dep["path"] == paths.SOURCES.as_posix())
    fetched_report = history.read_report(paths.FETCH_DATA_REPORT, None)
    for source in data_sources(fetched_report):
        entry = {"name": f"source {source['name']}", "digest": {"sha256": source["sha256"]}, "annotations": {"license": source["license"]}}
        packaged = {"uri": f"pkg:pypi/{source['name']}@{source['version']}"} if fetched_report["package"] is not None else {}
        yield entry | packaged
    base = json.loads(paths.BASE.read_text(encoding="utf-8"))
    yield _file("base", paths.BASE) | {"uri": base_uri(base), "annotations": {"license": base["license"]}}
    yield from ({"name": f"base/{file['path']}", "digest": {"sha256": file["sha256"]}} for file in base["files"])


def _file(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256_file(path)}}


def base_uri(base: dict[str, Any]) -> str:
    """The base as a package URL (https://github.com/package-url/purl-spec), or, of a local folder, its manifest's path.

    Args:
        base: models/base.json.

    Returns:
        pkg:pypi/NAME@VERSION, pkg:huggingface/OWNER/NAME@COMMIT or models/base.json.
    """
    if base["source"] == "package":
        return "pkg:pypi/{}@{}".format(*base["revision"].split("=="))
    if base["source"] == "hub":
        return f"pkg:huggingface/{base['name']}@{base['revision']}"
    return paths.BASE.as_posix()


def subjects(found: dict[str, Any]) -> dict[str, str]:
    """The sha256 of each subject by its path."""
    return {entry["name"]: entry["digest"]["sha256"] for entry in found["subject"]}


def commit_of(found: dict[str, Any]) -> str:
    """The commit that a statement names, 40 hex digits."""
    return str(dependencies(found)["commit"]["digest"]["gitCommit"])


def dependencies(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The resolved dependencies by name."""
    return {entry["name"]: entry for entry in found["predicate"]["buildDefinition"]["resolvedDependencies"]}


def told(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a statement says of the model's origin, in words: name and value of each fact."""
    named, card = dependencies(found), found["predicate"]["buildDefinition"]["externalParameters"]["card"]
    if card.get("repository") is not None:
        yield "repository", card["repository"]
    yield "commit", commit_of(found)
    yield "base", f"{named['base']['uri']}, licence {named['base']['annotations']['license'] or 'not stated'}"
    for name, entry in named.items():
        if name.startswith("source "):
            what = entry.get("uri", name.removeprefix("source "))
            yield "data", f"{what}, licence {entry['annotations']['license'] or 'not stated'}, sha256 {entry['digest']['sha256']}"
    train = named[paths.SPLIT_TRAIN.as_posix()]["annotations"]["row_set"]
    yield "trained on", f"{train['rows']:,} rows, set {train['sha256']}"
    yield "model", f"{card['name']}: {card['intended_use']}"
    yield "licence", card["license"]


def differences(stated: dict[str, Any], derived: dict[str, Any]) -> Iterator[str]:
    """Each value of a statement against the one derived again, and each shipped file that it does not name.

    Other values that are derived and not stated are passed over, so that releases outlive a statement that learns to say more.

    Args:
        stated: what was signed.
        derived: the same from what lies here.

    Yields:
        "" where they are the same, else what differs.
    """
    one, other = (dict(_leaves(_by_name(found))) for found in (stated, derived))
    unnamed = subjects(derived).keys() - subjects(stated).keys()
    for name in sorted(one.keys() | unnamed):
        ours, theirs = one.get(name, "nothing"), other.get(name, "nothing")
        yield "" if ours == theirs else f"the statement says {ours} of {name}, and it is {theirs}"


def _by_name(found: dict[str, Any]) -> dict[str, Any]:
    """A statement whose lists are keyed by the names of their entries."""
    predicate = found["predicate"]
    definition = {**predicate["buildDefinition"], "resolvedDependencies": dependencies(found)}
    return {**found, "subject": subjects(found), "predicate": {**predicate, "buildDefinition": definition}}


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{place} {key}" if place else key)
    else:
        yield re.sub(r"^(subject|predicate buildDefinition (resolvedDependencies )?)", "", place).strip(), value
