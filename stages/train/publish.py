"""What a finished training leaves: the adapter, its reports and curves. In: the finished folder of the work dir. Out: all outs of train."""

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core import files, paths
from stages.core.batches import read_tokens
from stages.core.embedded import TOKENS, base_facts, embed
from stages.core.files import sha256_file, write_json, write_report
from stages.core.provenance import git_commit, machine, versions
from stages.train import checkpoints, telemetry
from stages.train.record import write_record
from stages.train.state import State

FACTS = "facts.json"
STATE = "state.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
USED = "used.safetensors"
PACKAGES = ["bitsandbytes", "dvclive", "peft", "safetensors", "torch", "transformers"]
CURVES = {
    paths.TRAIN_CURVE: ("train", ["step", "loss", "grad_norm", "learning_rate"]),
    paths.VALIDATION_CURVE: ("validation", ["step", "loss"]),
    paths.SPEED_CURVE: ("speed", ["step", "tokens_per_second", "ceiling_share", "memory_bytes", "allocated_bytes"]),
}


def publish(finished: Path) -> None:
    """Writes every out of the stage, all or none.

    Args:
        finished: the folder with the published adapter, the state and the facts of a run that reached its end.
    """
    from safetensors.torch import load_file

    state = State(**checkpoints.read(finished, STATE))
    facts: dict[str, Any] = checkpoints.read(finished, FACTS)
    losses = [point["loss"] for point in state.train]
    published = facts["training"]["published_step"]
    validation = next((point["loss"] for point in state.validation if point["step"] == published), None)
    headline = {"train_loss": tail_mean(losses), "validation_loss": validation, "steps": state.step}
    with files.outputs() as place:
        write_adapter(place(paths.ADAPTER), finished, state, facts)
        write_record(place(paths.TRAINED_STEPS), load_file(finished / USED), read_tokens(paths.TOKENIZED_TRAIN))
        write_report(place(paths.TRAIN_REPORT), headline, {**facts["training"], "losses": summary(state)})
        write_report(place(paths.TRAIN_MACHINE), {}, {**facts["machine"], **costs(state), **origin()})
        for path, (name, columns) in CURVES.items():
            write_curve(place(path), columns, getattr(state, name))


def write_adapter(folder: Path, finished: Path, state: State, facts: dict[str, Any]) -> None:
    """The adapter's folder: weights, configuration, the base's manifest, the tokenizer and the course of the training."""
    shutil.copytree(paths.TOKENIZER, folder)
    shutil.copyfile(paths.BASE, folder / "base.json")
    shutil.copyfile(finished / WEIGHTS, folder / WEIGHTS)
    base = json.loads(paths.BASE.read_text(encoding="utf-8"))
    embed(folder / WEIGHTS, {"general.type": "adapter", **base_facts(base), TOKENS: sha256_file(paths.TOKENIZED_TRAIN)})
    config = json.dumps(checkpoints.read(finished, CONFIG), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(f"{config}\n", encoding="utf-8")
    course = {"steps": state.step, "stop_reason": facts["training"]["stop_reason"], "published_step": facts["training"]["published_step"]}
    left_out = {"left_out": state.left_out}
    write_json(folder / "train_state.json", {**course, **left_out, "train": state.train, "validation": state.validation})


def write_curve(path: Path, columns: Sequence[str], points: Sequence[Mapping[str, float | None]]) -> None:
    """A CSV with one line a point, six significant digits; what was not measured is an empty cell."""
    cells = [["" if point[column] is None else f"{files.rounded(point[column])}" for column in columns] for point in points]
    lines = [",".join(columns), *(",".join(line) for line in cells)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tail_mean(losses: Sequence[float]) -> float:
    """The mean of the last tenth of the steps' losses, one step at least: a single step's loss is mostly noise."""
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def summary(state: State) -> dict[str, Any]:
    """First and last loss on both sides, and the best validation loss with its step; None where nothing was validated."""
    ends = {"train_first": state.train[0]["loss"], "train_last": state.train[-1]["loss"]}
    if not state.validation:
        return {**ends, "validation_initial": None, "validation_last": None, "validation_best": None, "best_step": None}
    best = state.best
    return {
        **ends,
        "validation_initial": state.validation[0]["loss"],
        "validation_last": state.validation[-1]["loss"],
        "validation_best": best["loss"] if best else None,
        "best_step": best["step"] if best else None,
    }


def costs(state: State) -> dict[str, Any]:
    """Time, speed, memory and energy of the run, over all its processes up to their last checkpoints."""
    speeds = [speed for point in state.speed if (speed := point["tokens_per_second"])]
    shares = [share for point in state.speed if (share := point["ceiling_share"])]
    return {
        "seconds": state.seconds,
        "tokens_per_second": len(speeds) / sum(1 / speed for speed in speeds),
        "ceiling_share": statistics.median(shares) if shares else None,
        "peak_memory_bytes": state.peak_host_bytes if state.peak_gpu_bytes is None else state.peak_gpu_bytes,
        "peak_host_bytes": state.peak_host_bytes,
        "peak_gpu_bytes": state.peak_gpu_bytes,
        "dry_run_peak_bytes": state.dry_run_peak_bytes,
        "shrunk": state.shrunk,
        "energy_joules": state.joules,
        "why_no_energy": state.why_no_joules,
        "resumed_from": state.resumed_from,
        "sensors": telemetry.told(state.sensors),
        "events": state.events,
    }


def origin() -> dict[str, Any]:
    """The machine without its name, the commit and the installed packages."""
    return {"machine": machine(), "git": git_commit(), "versions": versions(PACKAGES)}
