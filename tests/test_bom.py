"""The bill of materials: valid, the same each time, and true of the files that lie here."""

import json
import re
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from ruamel.yaml import YAML

from stages.card import __main__ as card
from stages.card.bom import package_licence
from stages.core import paths
from stages.core.files import sha256_file
from stages.core.params import load_params
from stages.core.row_sets import row_set
from tests import tiny
from tests.finished import change


def made() -> dict[str, Any]:
    """Runs the stage and reads the bill."""
    card.main(load_params())
    found: dict[str, Any] = json.loads(paths.BOM.read_text(encoding="utf-8"))
    return found


def hashes(entry: dict[str, Any]) -> str:
    return str(entry["hashes"][0]["content"])


def test_the_bill_is_valid_and_the_same_each_time(finished: Path) -> None:
    made()
    first = paths.BOM.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(first) is None
    made()
    assert paths.BOM.read_text(encoding="utf-8") == first
    assert "timestamp" not in first
    assert str(finished) not in first


def test_another_content_has_another_serial_number(finished: Path) -> None:
    first = made()["serialNumber"]
    tiny.edit_params(finished, card__intended_use="Something else.")
    assert made()["serialNumber"] != first


def test_every_file_and_table_of_the_bill_has_the_digest_of_what_lies_here(finished: Path) -> None:
    found = made()
    model = found["metadata"]["component"]
    shipped = {entry["name"]: hashes(entry) for entry in model["components"]}
    assert shipped == {name: sha256_file(Path(name)) for name in shipped}
    assert {"models/adapter/adapter_model.safetensors", "models/export/merged/model.safetensors"} <= set(shipped)
    rows = {entry["name"]: entry for entry in found["components"] if entry["bom-ref"].startswith("rows ")}
    assert set(rows) == {path.as_posix() for path in (paths.RAW_ROWS, paths.SPLIT_TRAIN, paths.SPLIT_VALIDATION, paths.SPLIT_TEST)}
    for name, entry in rows.items():
        assert hashes(entry) == sha256_file(Path(name))
        assert entry["properties"] == [{"name": "luthier:row_set_sha256", "value": row_set(Path(name))[1]}]
    references = {entry["ref"] for entry in model["modelCard"]["modelParameters"]["datasets"]}
    assert references == {entry["bom-ref"] for entry in found["components"] if entry["type"] == "data"}


def test_every_pinned_package_stands_in_the_bill_with_its_licence(finished: Path) -> None:
    libraries = {entry["name"]: entry for entry in made()["components"] if entry["type"] == "library"}
    pinned = YAML(typ="safe").load(paths.VERSIONS.read_text())
    assert {name: entry["version"] for name, entry in libraries.items()} == pinned
    assert libraries["pyarrow"]["purl"] == f"pkg:pypi/pyarrow@{pinned['pyarrow']}"
    assert libraries["cryptography"]["licenses"] == [{"expression": "Apache-2.0 OR BSD-3-Clause"}]
    assert package_licence("no-such-package") is None


def test_energy_and_licences_are_told_as_cyclonedx_tells_them(finished: Path) -> None:
    change(paths.TRAIN_MACHINE, lambda report: report.update(energy_joules=7.2e6))
    change(paths.FETCH_DATA_REPORT, lambda report: report["files"][0].update(license="mit"))
    found = made()
    spent = found["metadata"]["component"]["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"][0]
    assert (spent["activity"], spent["activityEnergyCost"]) == ("fine-tuning", {"value": 2.0, "unit": "kWh"})
    assert spent["co2CostEquivalent"] == {"value": 0.0007, "unit": "tCO2eq"}
    source = next(entry for entry in found["components"] if entry["bom-ref"] == "source data/sources/rows.jsonl")
    assert source["licenses"] == [{"license": {"id": "MIT"}}]
    assert re.fullmatch(r"[0-9a-f]{64}", hashes(source))
