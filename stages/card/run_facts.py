"""What card and report say of the training: curves, settings, machine, and where everything comes from.

In: the reports of train and export, the curves, the provenance. Out: charts and (name, value) pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.card.charts import Chart, line_chart
from stages.card.reading import Report
from stages.card.words import count, duration, number, percent, size

Curve = Sequence[Mapping[str, float]]
UNMEASURED = "not measured on this machine; with card.watts they are reckoned from the time"
THROTTLES = {"throttled_power": "the power limit", "throttled_heat": "heat", "throttled_hardware": "the hardware"}


def points(curve: Curve, column: str) -> list[tuple[float, float]]:
    """A column of a curve over its steps; steps without a value are left out."""
    return [(line["step"], line[column]) for line in curve if column in line]


def charts(train: Curve, validation: Curve, speed: Curve) -> list[Chart]:
    """Loss, learning rate, gradient norm, speed and memory over the optimiser steps."""
    losses = [("training", "first", points(train, "loss")), ("validation", "second", points(validation, "loss"))]
    drawn = [line_chart("Loss", "nats per learnt token", losses)]
    for title, unit, curve, column, scale in (
        ("Learning rate", "", train, "learning_rate", 1.0),
        ("Gradient norm", "before clipping", train, "grad_norm", 1.0),
        ("Speed", "tokens a second", speed, "tokens_per_second", 1.0),
        ("Share of the ceiling", "% of the GPU's rate of matrix products", speed, "ceiling_share", 100.0),
        ("Memory", "GB", speed, "memory_bytes", 1e-9),
    ):
        values = [(step, value * scale) for step, value in points(curve, column)]
        if values:
            drawn.append(line_chart(title, unit, [(title.lower(), "first", values)]))
    return drawn


def settings(sections: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parameters that shape the adapter, by their names in params.yaml."""
    chosen = {name: sections[name] for name in ("seed", "train", "numerics", "tokenize", "prompt")}
    return [(name, _said(value)) for name, value in _flat(chosen)]


def _flat(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with the keys that lead to it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return number(value) if isinstance(value, float) else str(value)


def disk(report: Report) -> list[tuple[str, str]]:
    """Sizes of adapter and merged model."""
    said = [("Adapter on disk", size(report["adapter_bytes"]))]
    return [*said, ("Merged model on disk", size(report["merged_bytes"]))] if report["ships"] == "merged" else said


def training_note(reports: Mapping[str, Report]) -> str:
    """Steps, rows and time in one sentence."""
    train, machine = reports["train"], reports["train_machine"]
    ended = " It stopped early, on the validation loss." if train["stopped_early"] else ""
    left = f" {words}" if (words := left_out(reports)) else ""
    validation = f", {number(train['validation_loss'])} on the validation rows" if train["validation_loss"] is not None else ""
    return (
        f"{count(train['steps'])} optimiser steps in {duration(machine['seconds'])}. "
        f"The loss per learnt token ended at {number(train['train_loss'])}{validation}.{ended}{left}"
    )


def machine(reports: Mapping[str, Report]) -> list[tuple[str, str]]:
    """Processor, memory and time of the training, and what the result takes on disk."""
    found = reports["train_machine"]
    host = found["machine"]
    said = [("Processor", host["processor"]), ("Cores", count(host["cores"])), ("Memory", size(host["memory_bytes"]))]
    if found["gpu"] is not None:
        said.append(("GPU", found["gpu"]))
    said += [
        ("Training time", duration(found["seconds"])),
        ("Training speed", f"{number(found['tokens_per_second'])} tokens a second"),
        *_ceiling(found),
        ("Peak memory", size(found["peak_memory_bytes"])),
        *_heat(found["sensors"]),
    ]
    if found["resumed_from"]:
        said.append(("Resumed from step", ", ".join(map(str, found["resumed_from"]))))
    return said + disk(reports["export"])


def hardware(reports: Mapping[str, Report]) -> str:
    """What trained it: the GPU, or the processor where there was none."""
    found = reports["train_machine"]
    return str(found["gpu"] or found["machine"]["processor"])


def energy(energy: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The training's energy, what the grid emitted for it, and what it cost."""
    if energy is None:
        return [("Energy and CO2", UNMEASURED)]
    grid = f"at {number(energy['grid_grams_per_kilowatt_hour'])} g/kWh"
    reckoned = "" if energy["watts"] is None else f", not measured but reckoned from {number(energy['watts'])} W (card.watts) and the time"
    cost = f"{number(energy['cost'])} {energy['currency']} at {number(energy['price_per_kilowatt_hour'])} {energy['currency']}/kWh"
    return [
        ("Energy", f"{number(energy['kilowatt_hours'])} kWh{reckoned}"),
        ("CO2", f"{number(energy['co2_grams'])} g {grid}"),
        ("Cost of the energy", cost),
    ]


def _ceiling(found: Report) -> list[tuple[str, str]]:
    """How much of the GPU's rate of matrix products the training used; nothing where it was not measured."""
    if found["ceiling_share"] is None:
        return []
    rate = f"{number(found['matmul_teraflops'])} TFLOP/s that this GPU multiplies matrices with"
    return [("Share of the ceiling", f"{percent(found['ceiling_share'])} of the {rate}")]


def _heat(sensors: Report) -> list[tuple[str, str]]:
    """The hottest moment, and how long the clock was held down and by what."""
    said = []
    if sensors["hottest_c"] is not None:
        said.append(("Hottest", f"{number(sensors['hottest_c'])} °C"))
    held = sensors["throttled_seconds"]
    if held is not None:
        kinds = [f"{duration(held[name])} by {reason}" for name, reason in THROTTLES.items() if held[name]]
        said.append(("Clock held down", f"{duration(held['throttled'])} ({', '.join(kinds)})" if kinds else "never"))
    return said


def watched(reports: Mapping[str, Report]) -> list[tuple[str, str]]:
    """What the rules that watched the training said: when and what."""
    return [(f"Step {count(event['step'])}, {event['rule']}", event["message"]) for event in reports["train_machine"]["events"]]


def left_out(reports: Mapping[str, Report]) -> str | None:
    """The steps that were left out, in a sentence; None where all were taken."""
    steps = [count(found["step"]) for found in reports["train"]["left_out"]]
    return f"The rows of step {', '.join(steps)} were left out, since a rule said roll_back." if steps else None


def origin(provenance: Mapping[str, Any], reports: Mapping[str, Report]) -> list[tuple[str, str]]:
    """Commit, base, parameters, packages and the adapter's digest."""
    code, base = provenance["code"], provenance["base"]
    state = " with changes that are not committed" if code["dirty"] else ""
    weights = [file for file in reports["export"]["adapter_files"] if file["path"].endswith(".safetensors")]
    packages = [f"{name} {version}" for name, version in provenance["environment"]["packages"].items() if version is not None]
    return [
        ("Git commit", f"{code['commit']}{state}" if code["commit"] else "not in a git repository"),
        ("Base", f"{base['name']}, {base['revision']}"),
        ("Base manifest, sha256", base["manifest_sha256"]),
        ("Parameters, sha256", provenance["params"]["sha256"]),
        ("Pinned packages, sha256", provenance["environment"]["requirements_lock_sha256"]),
        *((f"{file['path'].rsplit('/', 1)[-1]}, sha256", file["sha256"]) for file in weights),
        ("Packages", ", ".join(packages)),
    ]
