"""provenance.json: what the adapter was made from and the digest of every file, independent of dvc.lock.

In: reports, the base's manifest, the data files. Out: one dict.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.card.reading import Report
from stages.core import paths
from stages.core.files import canonical_json, sha256_file
from stages.core.params import Card
from stages.core.provenance import git_commit, versions
from stages.core.row_sets import row_set

RESULTS = ["dvc.lock", "reports"]  # they differ from the commit whenever something was made anew
ROWS = [paths.RAW_ROWS, paths.SPLIT_TRAIN, paths.SPLIT_VALIDATION, paths.SPLIT_TEST]
JOULES_PER_KILOWATT_HOUR = 3.6e6
PACKAGES = ["accelerate", "bitsandbytes", "cleanlab", "datasets", "dvc", "lm-eval", "peft", "scikit-learn", "torch", "transformers", "trl"]


def record(
    base: Report, reports: Mapping[str, Report], sections: Mapping[str, Any], files: list[Path], energy: dict[str, Any] | None
) -> dict[str, Any]:
    """Gathers the record.

    Args:
        base: models/base.json.
        reports: the stages' reports by name.
        sections: the parameters that shape the result, by section.
        files: the files and folders the card reads, which are digested here.
        energy: what `energy_of` gives.

    Returns:
        The record; `files` holds the sha256 of each file by its path, `row_sets` number and digest of the rows of each table.
    """
    digests = {path.as_posix(): sha256_file(path) for path in sorted(_flat(files))}
    export = reports["export"]
    shipped = [*export["adapter_files"], *export["files"]]
    digests |= {file["path"]: file["sha256"] for file in shipped}
    return {
        "code": git_commit(aside=RESULTS),
        "base": {key: base[key] for key in ("source", "name", "revision", "license")} | {"manifest_sha256": sha256_file(paths.BASE)},
        "params": {"sha256": hashlib.sha256(canonical_json(sections).encode()).hexdigest(), "values": sections},
        "environment": {"requirements_lock_sha256": sha256_file(paths.LOCK), "packages": versions(PACKAGES)},
        "training": reports["train_machine"],
        "energy": energy,
        "files": dict(sorted(digests.items())),
        "row_sets": {path.as_posix(): dict(zip(("rows", "sha256"), row_set(path), strict=True)) for path in ROWS},
    }


def _flat(files: list[Path]) -> set[Path]:
    """The files themselves and those in the folders."""
    return {found for path in files for found in (path.rglob("*") if path.is_dir() else [path]) if found.is_file()}


def energy_of(machine: Report, card: Card) -> dict[str, Any] | None:
    """The training's energy, what the grid emitted for it and what it cost.

    Args:
        machine: reports/train_machine.json.
        card: grid_co2_grams_per_kwh, watts, price_per_kwh, currency.

    Returns:
        `kilowatt_hours`, the `watts` they were reckoned from (None where they were measured), `grid_grams_per_kilowatt_hour`, `co2_grams`,
        `price_per_kilowatt_hour`, `cost` and `currency`; or None where the machine measured no energy and card.watts is null.
    """
    joules, watts = machine["energy_joules"], None
    if joules is None:
        if card.watts is None:
            return None
        watts = card.watts
        joules = watts * machine["seconds"]
    kilowatt_hours = joules / JOULES_PER_KILOWATT_HOUR
    return {
        "kilowatt_hours": kilowatt_hours,
        "watts": watts,
        "grid_grams_per_kilowatt_hour": card.grid_co2_grams_per_kwh,
        "co2_grams": kilowatt_hours * card.grid_co2_grams_per_kwh,
        "price_per_kilowatt_hour": card.price_per_kwh,
        "cost": kilowatt_hours * card.price_per_kwh,
        "currency": card.currency,
    }
