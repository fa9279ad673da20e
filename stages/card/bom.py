"""The bill of materials of the model: what it is made of, with digests and licences, as a CycloneDX ML-BOM (ECMA-424) in JSON.

In: facts, provenance, reports, versions.yaml and requirements.lock. Out: text of version 1.6, checked against its schema. It has no time
and no random number: the serial number is derived from the content.
"""

import hashlib
import importlib.metadata
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from stages.card.facts import Facts, Sources
from stages.card.reading import Report
from stages.card.result_facts import COVERAGE
from stages.core.files import rounded

if TYPE_CHECKING:
    from cyclonedx.model.component import Component, ComponentType

LICENCE_CHARACTERS = 60  # longer ones in a package's metadata are the licence's text, not its name
GRAMS_PER_TONNE = 1e6


def bom(facts: Facts, sources: Sources, pinned: Mapping[str, str], lock: str) -> str:
    """The bill of materials.

    Args:
        facts: what the card says.
        sources: what it was made from.
        pinned: versions.yaml.
        lock: requirements.lock.

    Returns:
        JSON with sorted keys.

    Raises:
        ValueError: it does not fit the schema, which is an error of this program.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    model, base, data = _model(facts, sources), _base(sources.base), list(_data(facts, sources))
    libraries = list(_libraries(pinned, lock))
    found = Bom(components=[base, *data, *libraries, _lock(sources)], serial_number=uuid.UUID(int=0))
    found.metadata.component = model
    found.register_dependency(model, [base, *data, *libraries])
    written = json.loads(make_outputter(found, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    del written["serialNumber"]
    # the library has no classes for a model card and for data: https://github.com/CycloneDX/cyclonedx-python-lib, model/component.py
    written["metadata"].pop("timestamp", None)
    written["metadata"]["component"]["modelCard"] = _model_card(facts, sources, [str(item.bom_ref.value) for item in data])
    for entry in written["components"]:
        if entry["type"] == "data":
            entry["data"] = [{"type": "dataset", "name": entry["name"], "description": entry.get("description", entry["name"])}]
    written = rounded(written)
    written["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, _sha256(_text(written)))}"
    text = _text(written)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise ValueError(f"the bill of materials does not fit CycloneDX 1.6: {problem}")
    return text


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _model(facts: Facts, sources: Sources) -> "Component":
    """The tuned model, with each shipped file."""
    from cyclonedx.model.component import ComponentType

    export = sources.reports["export"]
    shipped = [*export["adapter_files"], *export.get("files", [])]
    weights = next(file["sha256"] for file in shipped if file["path"].endswith("adapter_model.safetensors"))
    found = _component(
        ComponentType.MACHINE_LEARNING_MODEL,
        facts.name,
        reference="model",
        version=weights[:12],
        sha256=weights,
        licence=sources.sections["card"]["license"],
        description=facts.intended_use,
    )
    for file in shipped:
        found.components.add(_component(ComponentType.FILE, file["path"], reference=f"file {file['path']}", sha256=file["sha256"]))
    return found


def _base(base: Report) -> "Component":
    """The base, with each of its files."""
    from cyclonedx.model.component import ComponentType
    from packageurl import PackageURL

    purl = None
    if base["source"] == "package":
        purl = PackageURL("pypi", name=base["revision"].split("==")[0], version=base["revision"].split("==")[1])
    elif base["source"] == "hub":
        purl = PackageURL.from_string(f"pkg:huggingface/{base['name']}@{base['revision']}")
    kind = ComponentType.MACHINE_LEARNING_MODEL
    found = _component(kind, base["name"], reference="base", version=base["revision"], licence=base["license"], purl=purl)
    for file in base["files"]:
        found.components.add(_component(ComponentType.FILE, file["path"], reference=f"base {file['path']}", sha256=file["sha256"]))
    return found


def _data(facts: Facts, sources: Sources) -> Iterator["Component"]:
    """The sources of the rows, and the sets of rows that were trained, chosen and judged on."""
    from cyclonedx.model.component import ComponentType
    from packageurl import PackageURL

    package = sources.reports["fetch_data"]["package"]
    for source in facts.sources:
        purl = PackageURL("pypi", name=source["name"], version=source["version"]) if package is not None else None
        yield _component(
            ComponentType.DATA,
            source["name"],
            reference=f"source {source['name']}",
            version=source["version"],
            sha256=source["sha256"],
            licence=source["license"],
            purl=purl,
            description=f"{source['rows']} rows as they were read",
        )
    for path, found in sorted(sources.provenance["row_sets"].items()):
        yield _component(
            ComponentType.DATA,
            path,
            reference=f"rows {path}",
            sha256=sources.provenance["files"][path],
            description=f"{found['rows']} rows",
            properties={"luthier:row_set_sha256": found["sha256"]},
        )


def _libraries(pinned: Mapping[str, str], lock: str) -> Iterator["Component"]:
    """Every pinned package; its hashes, one for each wheel of each platform, stand in the lock, whose entry's digest is given."""
    from cyclonedx.model.component import ComponentType
    from packageurl import PackageURL

    entries = {entry.split("==")[0]: entry for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.M)[1:]}
    for name, version in sorted(pinned.items()):
        properties = {"luthier:lock_entry_sha256": _sha256(entries[name])} if name in entries else {}
        purl = PackageURL("pypi", name=name, version=version)
        yield _component(
            ComponentType.LIBRARY,
            name,
            reference=purl.to_string(),
            version=version,
            licence=package_licence(name),
            purl=purl,
            properties=properties,
        )


@cache
def package_licence(name: str) -> str | None:
    """The licence that an installed package states in its metadata, None where it states none or is not installed here."""
    try:
        found = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    for stated in (found[key] for key in ("License-Expression", "License") if key in found):
        if len(stated) <= LICENCE_CHARACTERS and stated.upper() != "UNKNOWN":
            return " ".join(stated.split())
    classifiers = [line.rsplit(" :: ", 1)[1] for line in found.get_all("Classifier", []) if line.startswith("License :: OSI Approved ::")]
    return classifiers[0] if classifiers else None


def _lock(sources: Sources) -> "Component":
    """The lock, which has the hashes of all packages."""
    from cyclonedx.model.component import ComponentType

    digest = sources.provenance["environment"]["requirements_lock_sha256"]
    return _component(ComponentType.FILE, "requirements.lock", reference="requirements.lock", sha256=digest)


def _component(
    kind: "ComponentType",
    name: str,
    *,
    reference: str,
    version: str | None = None,
    sha256: str | None = None,
    licence: str | None = None,
    purl: Any = None,
    description: str | None = None,
    properties: Mapping[str, str] | None = None,
) -> "Component":
    """A component; a licence that is no SPDX expression is given by its name."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component

    return Component(
        type=kind,
        name=name,
        bom_ref=reference,
        version=version,
        purl=purl,
        description=description,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
        licenses=[LicenseFactory().make_from_string(_spdx(licence))] if licence else [],
        properties=[Property(name=key, value=value) for key, value in (properties or {}).items()],
    )


def _spdx(licence: str) -> str:
    """A licence as SPDX writes it, where it is one of SPDX's: the hub writes them in small letters."""
    from stages.core.licences import parsed

    return str(parsed(licence))


def _model_card(facts: Facts, sources: Sources, data: list[str]) -> dict[str, Any]:
    """CycloneDX's model card: parameters, scores with their intervals, uses, limits, energy."""
    compare = sources.reports["compare"]
    scores = [{"type": compare["domain"]["metric"], "value": str(compare["domain"]["tuned"]), "slice": "domain"}]
    scores += [{"type": entry["metric"], "value": str(entry["tuned"]), "slice": "domain"} for entry in compare["measures"]]
    for entry in compare["tasks"]:
        low, high = entry["ci95"]
        slice_name = entry["task"] if entry["task"] != "domain" else f"domain, base asked with {entry['prompt']}"
        interval = {"lowerBound": str(low), "upperBound": str(high)}
        difference = {"type": "difference to the base", "value": str(entry["difference"]), "slice": slice_name}
        scores.append(difference | {"confidenceInterval": interval})  # of 95 %, as result_facts.COVERAGE says
    card: dict[str, Any] = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-classification" if facts.labels else "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": sources.base["architecture"],
            "datasets": [{"ref": reference} for reference in data],
            "inputs": [{"format": "string"}],
            "outputs": [{"format": "string"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": scores},
        "considerations": {"useCases": [facts.intended_use], "technicalLimitations": facts.limits},
        "properties": [{"name": "luthier:confidence", "value": str(COVERAGE)}, *_parameters(sources.provenance)],
    }
    if (energy := sources.provenance["energy"]) is not None:
        card["considerations"]["environmentalConsiderations"] = {"energyConsumptions": [_energy(energy)]}
    return card


def _parameters(provenance: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": "luthier:params_sha256", "value": provenance["params"]["sha256"]}]


def _energy(energy: Mapping[str, Any]) -> dict[str, Any]:
    """The training's energy as CycloneDX has it; the provider is the grid of card.grid_co2_grams_per_kwh."""
    used = {"value": energy["kilowatt_hours"], "unit": "kWh"}
    how = "measured" if energy["watts"] is None else f"reckoned from {energy['watts']} W, not measured"
    grid = {"organization": {"name": "electricity grid"}, "energySource": "unknown", "energyProvided": used}
    grid["description"] = f"{energy['grid_grams_per_kilowatt_hour']} g CO2/kWh; the energy is {how}"
    emitted = {"value": energy["co2_grams"] / GRAMS_PER_TONNE, "unit": "tCO2eq"}
    return {"activity": "fine-tuning", "energyProviders": [grid], "activityEnergyCost": used, "co2CostEquivalent": emitted}
