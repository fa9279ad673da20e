"""A LoRA adapter over the base. In: tokenised rows, tokenizer, base manifest. Out: models/adapter, reports/train*.json, reports/curves.

A keyed run: checkpoints in the work dir, on signals too; it goes on where it was cut off, and publishes only a finished result of the very
inputs it started from.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import remove
from stages.core.models import compute_dtype, device_of, load_base, load_tokenizer, new_token_ids, read_manifest
from stages.core.params import Params, load_params
from stages.core.runs import held_run
from stages.core.stage import run_stage
from stages.train import adapter, checkpoints, machine
from stages.train.batches import Step, TokenRow, collate, plan, read_tokens
from stages.train.publish import CONFIG, FACTS, STATE, WEIGHTS, publish
from stages.train.sft import Training, make_optimizer
from stages.train.stop import Stop, Stopped, caught
from stages.train.tracking import Tracker

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: resumable
PACKING_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # nats a target


def main(params: Params) -> None:
    """Trains, or goes on training, and publishes; a finished run that was not published is published without training."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts: cuBLAS gives equal bits run to run
    with caught() as stop, held_run("train") as run:
        params = load_params()  # again, now that the key is taken: what is trained is what the key names
        device = device_of(params.runtime.device)
        dtype = compute_dtype(params.numerics, device)
        root = run.folder / f"{device}-{str(dtype).removeprefix('torch.')}"  # other numerics, other checkpoints
        finished = root / "finished"
        if checkpoints.fault(finished) is not None:
            try:
                train(params, device, dtype, root, finished, stop)
            except Stopped as stopped:
                sys.stderr.write(f"train: stopped by {stopped}; nothing was published; the same command goes on from the last checkpoint\n")
                if stopped.number == signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise SystemExit(STOPPED) from None
        run.check_unmoved()
        publish(finished)
        for folder in root.glob("step-*"):
            remove(folder)


def train(params: Params, device: str, dtype: "torch.dtype", root: Path, finished: Path, stop: Stop) -> None:
    """Runs the plan to its end and writes what is to be published to the work dir.

    Args:
        params: of the whole pipeline.
        device: cpu or cuda.
        dtype: of the base's activations.
        root: the folder of checkpoints.
        finished: where the result goes.
        stop: the signals caught.

    Raises:
        UserError: an input, the machine or the trained adapter is not fit.
    """
    settings = params.train
    manifest = read_manifest()
    rows, validation = read_tokens(paths.TOKENIZED_TRAIN), read_tokens(paths.TOKENIZED_VALIDATION)
    steps = make_plan(rows, settings, device, params.seed)
    if settings.early_stop is not None and not validation:
        raise UserError(f"train.early_stop is set, but {paths.TOKENIZED_VALIDATION} has no rows to stop on; set it to null or add rows")
    tokenizer = load_tokenizer(paths.TOKENIZER)
    base = load_base(manifest, params.numerics, device, len(tokenizer))
    check_base(base)
    probe = (validation or rows)[0]
    before = probe_logits(base, probe, device)
    model = adapter.attach(base, settings, new_token_ids(paths.TOKENIZER), params.seed)
    initial = adapter.peft_tensors(model) if settings.init in adapter.TAKEN_FROM_BASE else None
    parameters = adapter.trainable(model)
    weights = sum(parameter.numel() for parameter in parameters.values())
    # a checkpoint is the adapter and two moments, with early_stop the best adapter too; one more is written before the oldest goes
    copies = (checkpoints.KEPT + 1) * (3 + (settings.early_stop is not None)) + 2
    root.mkdir(parents=True, exist_ok=True)
    checkpoints.check_room(root, 4 * weights * copies)
    training = Training(
        model=model,
        optimizer=make_optimizer(list(parameters.values()), settings, device),
        plan=steps,
        rows=rows,
        validation=validation,
        settings=settings,
        runtime=params.runtime,
        seed=params.seed,
        device=device,
        dtype=dtype,
        pad=tokenizer.pad_token_id or 0,
        root=root,
        tracker=Tracker(root / "live"),
        stop=stop,
    )
    deterministic = settle_determinism(training)
    if settings.batching == "pack":
        check_packing(training)
    reason = training.fit()
    tensors, config = adapter.published(model, initial, manifest["name"])
    gates = adapter.check_not_inert(tensors, before, probe_logits(model, probe, device))
    facts = {
        "training": {
            "method": "sft",
            "settings": {"seed": params.seed, "train": settings.model_dump(), "numerics": params.numerics.model_dump()},
            "parameters": {"trained": weights, "base": manifest["parameters"]},
            "stop_reason": reason,
            "stopped_early": reason == "early_stop",
            "published_step": training.state.best["step"] if training.best is not None and training.state.best else training.state.step,
            "gates": gates,
            **counts(rows, validation, steps, training.state.step, settings.batching),
        },
        "machine": {
            "device": device,
            "gpu": machine.gpu_name(device),
            "dtype": str(dtype).removeprefix("torch."),
            "deterministic": deterministic,
        },
    }
    checkpoints.write(finished, {WEIGHTS: tensors}, {CONFIG: config, STATE: asdict(training.state), FACTS: facts})


def make_plan(rows: Sequence[TokenRow], settings: Any, device: str, seed: int) -> list[Step]:
    """The plan of all steps, after checking that every row fits a micro-batch.

    Args:
        rows: training rows.
        settings: params.yaml's train.
        device: cpu or cuda.
        seed: of the shuffles.

    Returns:
        The steps.

    Raises:
        UserError: there is no row, or one is longer than a micro-batch.
    """
    if not rows:
        raise UserError(f"{paths.TOKENIZED_TRAIN} has no rows to train on; add data, or see reports/tokenize.json for what was dropped")
    longest = max(rows, key=lambda row: len(row.input_ids))
    if len(longest.input_ids) > settings.micro_batch_tokens:
        raise UserError(
            f"row {longest.id} has {len(longest.input_ids)} tokens, more than train.micro_batch_tokens ({settings.micro_batch_tokens}); "
            f"raise it, or lower tokenize.max_tokens"
        )
    return plan(
        [len(row.input_ids) for row in rows],
        settings.epochs,
        settings.max_steps,
        settings.effective_batch,
        settings.micro_batch_tokens,
        settings.batching,
        device,
        seed,
    )


def check_base(base: "PreTrainedModel") -> None:
    """Stops for an architecture that cannot leave out the logits nobody learns from."""
    import inspect

    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        raise UserError(f"{type(base).__name__} of the base is no causal language model that train knows; choose another base")


def probe_logits(model: Any, row: TokenRow, device: str) -> "torch.Tensor":
    """The logits at a row's targets, `[targets, vocabulary] float32` on the CPU."""
    import torch

    batch = collate([row], "bucket", 0)
    model.eval()
    with torch.no_grad():
        out = model(input_ids=batch.input_ids.to(device), logits_to_keep=batch.columns.to(device), use_cache=False)
    return out.logits[0].float().cpu()


def settle_determinism(training: Training) -> bool:
    """Holds PyTorch to kernels that give equal bits run to run, unless the base has an operation without one.

    Packed rows on a GPU are left out: there the deterministic backward of masked attention makes training four times slower.

    Args:
        training: before its first step.

    Returns:
        Whether all is deterministic.

    Raises:
        RuntimeError: the trial step failed for another reason than a kernel without a deterministic form.
    """
    import torch

    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # or every empty tensor is filled
    if training.device == "cuda" and training.settings.batching == "pack":
        return False
    torch.use_deterministic_algorithms(True)
    try:
        training.summed_loss(training.rows[:2]).backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        sys.stderr.write(f"train: runs of equal inputs may differ in the last bits: {str(error).splitlines()[0]}\n")
        torch.use_deterministic_algorithms(True, warn_only=True)
        return False
    finally:
        training.optimizer.zero_grad(set_to_none=True)
    return True


def check_packing(training: Training) -> None:
    """Stops where the base lets packed rows see each other: the loss of two rows end to end must be that of each alone.

    Args:
        training: before its first step, or where it goes on.

    Raises:
        UserError: the losses differ.
    """
    import torch

    pair = list(training.rows[:2])
    training.model.eval()
    with torch.no_grad():
        packed = training.summed_loss(pair, "pack").item()
        alone = sum(training.summed_loss([row], "bucket").item() for row in pair)
    difference = abs(packed - alone) / sum(row.targets for row in pair)
    if difference > PACKING_TOLERANCE[str(training.dtype).removeprefix("torch.")]:
        raise UserError(
            f"train.batching is pack, but the base does not keep packed rows apart (their loss is {difference:.2g} nats a token off); "
            f"set train.batching: bucket"
        )


def counts(rows: Sequence[TokenRow], validation: Sequence[TokenRow], steps: Sequence[Step], done: int, batching: str) -> dict[str, Any]:
    """Rows, tokens and steps of the plan and of the part that was run.

    Args:
        rows: training rows.
        validation: validation rows.
        steps: the plan.
        done: steps that were run.
        batching: bucket | pack.

    Returns:
        Counts by name; `padding_share` is the share of the tokens computed that was padding.
    """
    run = [micro_batch for step in steps[:done] for micro_batch in step.micro_batches]
    seen = [rows[row] for micro_batch in run for row in micro_batch]
    tokens = sum(len(row.input_ids) for row in seen)
    computed = tokens
    if batching == "bucket":
        computed = sum(len(micro_batch) * max(len(rows[row].input_ids) for row in micro_batch) for micro_batch in run)
    return {
        "rows": {"train": len(rows), "validation": len(validation)},
        "tokens": {"train": sum(len(row.input_ids) for row in rows), "trained": sum(row.targets for row in rows)},
        "seen": {"rows": len(seen), "tokens": tokens, "trained": sum(row.targets for row in seen), "epochs": len(seen) / len(rows)},
        "planned_steps": len(steps),
        "forward_passes": len(run),
        "padding_share": 1 - tokens / computed,
    }


if __name__ == "__main__":
    run_stage("train", main)
