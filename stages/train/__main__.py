"""A LoRA adapter over the base. In: tokenised rows, tokenizer, base manifest.
Out: models/adapter, data/trained, reports/train*.json, reports/curves.

A keyed run: checkpoints in the work dir, on signals too; it goes on where it was cut off, and publishes only a finished result of the very
inputs it started from.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core import paths
from stages.core.batches import TokenRow, read_tokens
from stages.core.errors import UserError
from stages.core.files import remove
from stages.core.models import compute_dtype, device_of, load_base, load_tokenizer, new_token_ids, read_manifest
from stages.core.params import Params, Train, load_params
from stages.core.runs import die_with_parent, digest, held_run, stage_inputs
from stages.core.stage import run_stage
from stages.core.streaming import decoder_layers, stream_base
from stages.train import adapter, checkpoints, choice, launch, machine, ranks
from stages.train.batches import Step, computed_tokens, plan
from stages.train.dry_run import rehearse
from stages.train.gates import check_base, check_kernels, check_packing, probe_logits, settle_determinism
from stages.train.optimizer import make_optimizer
from stages.train.plain import PlainModel
from stages.train.publish import CONFIG, FACTS, STATE, USED, WEIGHTS, costs, publish
from stages.train.ranks import Ranks
from stages.train.record import used
from stages.train.room import Room
from stages.train.sft import Training
from stages.train.state import State
from stages.train.stop import Stop, Stopped, caught
from stages.train.tracking import Tracker

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from stages.train.shards import Shards
    from stages.train.zero import Zero

LOST_SECONDS = 5.0
ENDS = ("embed_tokens", "lm_head")  # with an adapter on them they stay whole on every rank
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: resumable


def main(params: Params) -> None:
    """Trains, or goes on training, and publishes; a finished run that was not published is published without training.

    The process that a user or DVC starts holds the run, starts the ranks where there are several, and publishes. Where a launcher such as
    torchrun started several already, the first of them does so.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts: cuBLAS gives equal bits run to run
    if not ranks.started():
        hold(Ranks())
        return
    if launch.PARENT in os.environ:
        die_with_parent(signal.SIGKILL, int(os.environ[launch.PARENT]))
    ranks.see_own_gpu()
    joined = ranks.join(device_of(params.runtime.device))
    if launch.ROOT in os.environ:
        take_part(Path(os.environ[launch.ROOT]), os.environ[launch.PARALLEL], joined)
    elif joined.first:
        hold(joined)
    else:
        root, parallel = joined.agreed(("", ""))
        if root:
            take_part(Path(root), parallel, joined)


def hold(joined: Ranks) -> None:
    """The run as the one process that holds it.

    Args:
        joined: this process alone, or the first of those that a launcher started.
    """
    with caught() as stop, held_run("train") as run:
        params = load_params()  # again, now that the key is taken: what is trained is what the key names
        device = device_of(params.runtime.device)
        dtype = compute_dtype(params.numerics, device)
        root = run.folder / f"{device}-{str(dtype).removeprefix('torch.')}"  # other numerics, other checkpoints
        finished = root / "finished"
        unfinished = checkpoints.fault(finished) is not None
        count = joined.count if joined.count > 1 else launch.processes(params, device)
        parallel = launch.decided(params, device, count)
        if parallel == "single":
            count, parallel = joined.count, "single" if joined.count == 1 else "ddp"  # whom a launcher has started trains
        joined.agreed((str(root) if unfinished else "", parallel))
        if unfinished and count > joined.count:
            launch.start(count, parallel, root, stop)
        elif unfinished:
            with told():
                train(params, device, dtype, root, finished, stop, joined, parallel)
        run.check_unmoved()
        publish(finished)
        state = State(**checkpoints.read(finished, STATE))
        if device == "cuda" and count == 1 and not state.ranks:
            choice.remember(root, state.shrunk, costs(state))
        for folder in root.glob("step-*"):
            remove(folder)


def take_part(root: Path, parallel: str, joined: Ranks) -> None:
    """The run as one of its ranks; the process that holds it publishes.

    Args:
        root: the folder of checkpoints.
        parallel: ddp | fsdp | sequence | zero3.
        joined: this process among them.

    Raises:
        UserError: an input changed since the run was taken.
    """
    params = load_params()
    if digest(stage_inputs("train")) != root.parent.name:
        raise UserError("an input of train changed while it started, so nothing was trained; run it again")
    device = device_of(params.runtime.device)
    dtype = compute_dtype(params.numerics, device)
    with contextlib.ExitStack() as stack:
        stop = Stop()
        stack.enter_context(told())
        if joined.first:
            stop = stack.enter_context(caught())
        else:  # the first is stopped, and they end with it; what it says is not said again
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        train(params, device, dtype, root, root / "finished", stop, joined, parallel)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Says that a signal stopped the training and ends the process with the code for it; that another rank is gone is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not ranks.is_lost(error):
            raise
        time.sleep(LOST_SECONDS)  # the process that started the ranks sees which one died, and ends this one before it speaks
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            f"another rank is gone, or did not answer, so nothing was published; the same command goes on from the last checkpoint ({why})"
        ) from error
    except Stopped as stopped:
        sys.stderr.write(f"train: stopped by {stopped}; nothing was published; the same command goes on from the last checkpoint\n")
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(STOPPED) from None


def train(params: Params, device: str, dtype: "torch.dtype", root: Path, finished: Path, stop: Stop, joined: Ranks, parallel: str) -> None:
    """Runs the plan to its end and writes what is to be published to the work dir.

    Args:
        params: of the whole pipeline.
        device: cpu or cuda.
        dtype: of the base's activations.
        root: the folder of checkpoints.
        finished: where the result goes.
        stop: the signals caught.
        joined: this process among those that train.
        parallel: single | ddp | fsdp | sequence | zero3.

    Raises:
        UserError: an input, the machine or the trained adapter is not fit.
    """
    settings = params.train
    manifest = read_manifest()
    rows, validation = read_tokens(paths.TOKENIZED_TRAIN), read_tokens(paths.TOKENIZED_VALIDATION)
    if not rows:
        raise UserError(f"{paths.TOKENIZED_TRAIN} has no rows to train on; add data, or see reports/tokenize.json for what was dropped")
    if settings.early_stop is not None and not validation:
        raise UserError(f"train.early_stop is set, but {paths.TOKENIZED_VALIDATION} has no rows to stop on; set it to null or add rows")
    tokenizer = load_tokenizer(paths.TOKENIZER)
    if device == "cuda":
        machine.cap_memory(params.runtime.gpu_memory_gib)
    matmul_rate = machine.matmul_rate(device)
    base, shards = load(manifest, params, device, len(tokenizer), joined, parallel)
    loaded = machine.peak_memory(device)
    check_base(base)
    slices = None
    if parallel == "sequence":
        from stages.train.slices import Slices

        slices = Slices(joined, base, dtype, max(len(row.input_ids) for row in (*rows, *validation)))
    probe = (validation or rows)[0]
    before = probe_logits(base, probe, device)
    model = adapter.attach(base, settings, new_token_ids(paths.TOKENIZER), params.seed)
    initial = adapter.peft_tensors(model) if settings.init in adapter.TAKEN_FROM_BASE else None
    parameters = adapter.trainable(model)
    weights = sum(parameter.numel() for parameter in parameters.values())
    # a checkpoint is the adapter and two moments, with early_stop the best adapter too; one more is written before the oldest goes
    copies = (checkpoints.KEPT + 1) * (3 + (settings.early_stop is not None)) + 2
    if joined.first:
        root.mkdir(parents=True, exist_ok=True)
        checkpoints.check_room(root, 4 * weights * copies)
    plain = PlainModel(model, settings.batching, dtype, tokenizer.pad_token_id or 0)
    chosen = choice.choose(params, model, plain.layers, [len(row.input_ids) for row in rows], manifest, root, joined, parallel)
    fused = choice.fused_model(chosen, model, shards)
    training = Training(
        model=model,
        plain=plain,
        fused=fused,
        optimizer=make_optimizer(parameters, settings, device),
        plan=make_plan(rows, settings, chosen.micro_batch_tokens, settings.batching if fused is None else "pack", device, params.seed),
        micro_batch_tokens=chosen.micro_batch_tokens,
        rows=rows,
        validation=validation,
        settings=settings,
        runtime=params.runtime,
        seed=params.seed,
        root=root,
        room=Room(root, plain.layers - chosen.recomputed, chosen.offload, chosen.mlp_tokens, joined.first),
        tracker=Tracker(root / "live" if joined.first else None),
        stop=stop,
        matmul_rate=matmul_rate,
        ranks=joined,
        shards=shards,
        slices=slices,
    )
    deterministic = settle_determinism(training)
    differences = check_kernels(training) if fused is not None else None
    if fused is None and settings.batching == "pack":
        check_packing(training)
    rehearse(training)
    reason = training.fit()
    tensors, config = adapter.published(model, initial, manifest["name"])
    gates = adapter.check_not_inert(tensors, before, probe_logits(model, probe, device))
    peaks = joined.gathered({"loaded": loaded, "trained": machine.peak_memory(device)})
    facts = {
        "training": {
            "method": "sft",
            "settings": {"seed": params.seed, "train": settings.model_dump(), "numerics": params.numerics.model_dump()},
            "parameters": {"trained": weights, "base": manifest["parameters"]},
            "stop_reason": reason,
            "stopped_early": reason == "early_stop",
            "published_step": training.state.best["step"] if training.best is not None and training.state.best else training.state.step,
            "gates": gates,
            "shrunk": training.state.shrunk,
            "left_out": [
                {"step": step, "rows": [rows[row].id for row in training.plan[step - 1].rows]} for step in training.state.left_out
            ],
            **counts(training),
        },
        "machine": {
            "device": device,
            "gpu": machine.gpu_name(device),
            "matmul_teraflops": None if matmul_rate is None else matmul_rate / 1e12,
            "dtype": str(dtype).removeprefix("torch."),
            "deterministic": deterministic,
            "plan": asdict(chosen),
            "kernels_differ_by": differences,
            "parallel": parallel,
            "ranks": peaks,
        },
    }
    if not joined.first:
        return
    checkpoints.write(finished, {WEIGHTS: tensors, USED: used(training)}, {CONFIG: config, STATE: asdict(training.state), FACTS: facts})


def load(
    manifest: dict[str, Any], params: Params, device: str, vocabulary: int, joined: Ranks, parallel: str
) -> "tuple[PreTrainedModel, Shards | Zero | None]":
    """The base, whole or with this rank's part of its layers.

    Args:
        manifest: of the base.
        params: of the whole pipeline.
        device: cpu or cuda.
        vocabulary: rows the embedding must have at least.
        joined: this process among those that train.
        parallel: single | ddp | fsdp | sequence | zero3.

    Returns:
        The base, and what holds its layers where they are split.
    """
    if parallel == "zero3":
        from stages.train.zero import Zero

        zero = Zero(device, compute_dtype(params.numerics, device), params.runtime.zero_offload)
        base = stream_base(manifest, params.numerics, device, vocabulary, zero.take)
        zero.watch(base, decoder_layers(base))
        return base, zero
    if parallel != "fsdp":
        return load_base(manifest, params.numerics, device, vocabulary), None
    from stages.train.shards import Shards

    shards = Shards(joined)
    named = [] if isinstance(params.train.target_modules, str) else params.train.target_modules
    adapted = new_token_ids(paths.TOKENIZER) or any(name.rsplit(".", 1)[-1] in ENDS for name in named)
    base = stream_base(manifest, params.numerics, device, vocabulary, shards.take, None if adapted else shards.take_ends)
    shards.watch(decoder_layers(base))
    return base, shards


def make_plan(rows: Sequence[TokenRow], settings: Train, tokens: int, batching: str, device: str, seed: int) -> list[Step]:
    """The plan of all steps, after checking that every row fits a micro-batch.

    Args:
        rows: training rows.
        settings: params.yaml's train.
        tokens: of one forward pass at most.
        batching: bucket | pack.
        device: cpu or cuda.
        seed: of the shuffles.

    Returns:
        The steps.

    Raises:
        UserError: a row is longer than a micro-batch.
    """
    longest = max(rows, key=lambda row: len(row.input_ids))
    if len(longest.input_ids) > tokens:
        raise UserError(
            f"row {longest.id} has {len(longest.input_ids)} tokens, more than train.micro_batch_tokens ({tokens}); "
            f"raise it, or lower tokenize.max_tokens"
        )
    lengths = [len(row.input_ids) for row in rows]
    return plan(lengths, settings.epochs, settings.max_steps, settings.effective_batch, tokens, batching, device, seed)


def counts(training: Training) -> dict[str, Any]:
    """Rows, tokens and steps of the plan and of the part that was run.

    Args:
        training: at its end.

    Returns:
        Counts by name; `padding_share` is the share of the tokens computed that was padding.
    """
    rows, done = training.rows, training.state.step
    made = [step for step in training.plan[:done] if step.number not in training.state.left_out]
    run = [micro_batch for step in made for micro_batch in training.micro_batches(step, step.number)]
    seen = [rows[row] for micro_batch in run for row in micro_batch]
    tokens = sum(len(row.input_ids) for row in seen)
    computed = sum(computed_tokens(micro_batch, training.lengths, training.batching) for micro_batch in run)
    return {
        "rows": {"train": len(rows), "validation": len(training.validation)},
        "tokens": {"train": sum(training.lengths), "trained": sum(row.targets for row in rows)},
        "seen": {"rows": len(seen), "tokens": tokens, "trained": sum(row.targets for row in seen), "epochs": len(seen) / len(rows)},
        "planned_steps": len(training.plan),
        "forward_passes": len(run),
        "padding_share": 1 - tokens / computed,
    }


if __name__ == "__main__":
    run_stage("train", main)
