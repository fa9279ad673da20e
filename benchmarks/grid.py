"""The planner's measurements: speed and peak memory of a grid of shapes, lengths, batches, methods and recomputation; and their fit.

Usage: python -m benchmarks.grid measure FILE [--shapes 1b 8b 13b 32b] [--methods nf4 none] [--engines plain fused] [--seconds 360]
       python -m benchmarks.grid fit FILE ... [--write]
       python -m benchmarks.grid check FILE ...
`measure` needs a GPU and appends one JSON line a cell. `fit` needs none: it prints the table of errors of docs/planner.md, and with --write
sets stages/core/planner_constants.json. `check` prints the errors of the constants as they are, on cells that they were not fitted to.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shapes import build, config_of
from stages.core.batches import TokenRow
from stages.core.provenance import git_commit, versions
from stages.train import adapter, machine

RANK = 16
LEAST_SECONDS, LEAST_STEPS = 0.6, 3  # a cell is timed for both at least: a short step alone tells of the host's mood
ENOUGH_SECONDS = 4.0  # or for so long


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        engine: fused | plain.
        shape: of benchmarks.shapes.
        quantization: nf4 | none.
        tokens: of each row.
        rows: of the one micro-batch of a step.
        recompute: share of the layers that are recomputed.
        offload: whether their inputs wait in host memory.
        mlp_tokens: tokens of the MLP at a time, or None for all.
        deterministic: whether kernels sum in a fixed order, as train.deterministic asks.
    """

    engine: str
    shape: str
    quantization: str
    tokens: int
    rows: int
    recompute: float
    offload: bool = False
    mlp_tokens: int | None = None
    deterministic: bool = False


def cells(engine: str, shape: str, quantization: str) -> list[Cell]:
    """The cells of a model; each differs from another in one thing, so that the fit can tell what did it."""
    loads: list[tuple[Any, ...]] = [(2048, 2, 0.0), (2048, 2, 1.0), (512, 4, 0.0), (512, 16, 1.0), (2048, 2, 0.5)]
    if engine == "plain" and shape == "32b":
        return []  # minutes for what the smaller shapes tell too
    if engine == "fused":
        loads += [(8192, 1, 0.5), (8192, 1, 1.0), (2048, 8, 1.0, False, 2048), (2048, 8, 1.0, True, 4096)]
        loads += [(2048, 2, 0.0, False, None, True), (2048, 2, 1.0, False, None, True), (8192, 1, 1.0, False, None, True)]
    return [Cell(engine, shape, quantization, *load) for load in loads]


def measure(args: argparse.Namespace) -> None:
    """Measures cell after cell until the time is up."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as train sets it
    torch.utils.deterministic.fill_uninitialized_memory = False
    started = time.monotonic()
    about = {
        "card": torch.cuda.get_device_name(0),
        "card_bytes": torch.cuda.get_device_properties(0).total_memory,
        "card_id": str(torch.cuda.get_device_properties(0).uuid)[:8],
        "commit": git_commit()["commit"],
        "versions": versions(["bitsandbytes", "peft", "torch", "transformers"]),
    }
    with Path(args.file).open("a", encoding="utf-8") as file:
        for cell, found in _measured(args, started):
            line = json.dumps({**asdict(cell), "rank": RANK, **found, **about}, sort_keys=True)
            file.write(line + "\n")
            file.flush()
            print(json.dumps({**asdict(cell), **found}), file=sys.stderr)


def _measured(args: argparse.Namespace, started: float) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Every cell with its result; plain before fused, which lays unquantised weights into matrices of its own."""
    import torch

    for shape in args.shapes:
        for quantization in args.methods:
            model = None
            if time.monotonic() - started > args.seconds:
                print(f"grid: {args.seconds} s are over before {shape} {quantization}", file=sys.stderr)
                return
            begun = time.monotonic()
            try:
                model = build(shape, quantization, RANK, args.device)
                print(f"grid: {shape} {quantization} built in {time.monotonic() - begun:.0f} s", file=sys.stderr)
                for engine in sorted(set(args.engines), reverse=True):
                    runner = Runner(model, engine)
                    for cell in cells(engine, shape, quantization):
                        if time.monotonic() - started > args.seconds:
                            break
                        yield cell, _tried(runner, cell)
                    del runner
            except torch.OutOfMemoryError:
                print(f"grid: {shape} {quantization} does not fit at all", file=sys.stderr)
            del model
            gc.collect()
            torch.cuda.empty_cache()


def _tried(runner: "Runner", cell: Cell) -> dict[str, Any]:
    """A cell's result, or that it ran out of memory."""
    import torch

    try:
        return runner.run(cell)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    finally:
        runner.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


class Runner:
    """A model on one engine, with train's optimizer."""

    def __init__(self, model: Any, engine: str) -> None:
        """Puts the engine on the model.

        Args:
            model: as `build` made it.
            engine: fused | plain.
        """
        import torch

        self.model = model
        self.parameters = list(adapter.trainable(model).values())
        self.warm = False
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-4, weight_decay=0.0, fused=True)
        if engine == "fused":
            from stages.train.fused.model import FusedModel

            self.engine: Any = FusedModel(model, None, False, 1 << 30)
        else:
            from stages.train.plain import PlainModel

            self.engine = PlainModel(model, "bucket", model.dtype, 0)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Warms up, then times.

        Args:
            cell: what to run.

        Returns:
            recomputed, launch_seconds of the host as it was then, tokens_per_second, seconds of a step, peak_bytes (reserved), watts.
        """
        import torch

        layers = self.engine.layers
        recomputed = round(layers * cell.recompute)
        self.engine.kept = layers - recomputed
        if cell.engine == "fused":
            self.engine.offload = cell.offload
            self.engine.mlp_tokens = cell.mlp_tokens or cell.tokens * cell.rows
        generator = np.random.default_rng(0)
        vocabulary = config_of(cell.shape)["vocab_size"]
        everything = np.ones(cell.tokens, dtype=bool)
        rows = [TokenRow(str(n), generator.integers(3, vocabulary, cell.tokens), everything) for n in range(cell.rows)]
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        # to warn only leaves FlashAttention its own order, and keeps cuDNN out of rows of one length, which real rows seldom are
        torch.use_deterministic_algorithms(True, warn_only=not cell.deterministic)
        try:
            launch = machine.launch_seconds() if self.model.device.type == "cuda" else None
            for _ in range(1 if self.warm else 3):
                self._step(rows)
            self.warm = True
            before = machine.reading(self.model.device.type)
            while (len(times) < LEAST_STEPS or sum(times) < LEAST_SECONDS) and sum(times) < ENOUGH_SECONDS:
                start = time.monotonic()
                self._step(rows)
                times.append(time.monotonic() - start)
            after = machine.reading(self.model.device.type)
        finally:
            torch.use_deterministic_algorithms(False)
        seconds = statistics.median(times)
        joules = None if after.joules is None or before.joules is None else after.joules - before.joules
        return {
            "recomputed": recomputed,
            "launch_seconds": launch,
            "seconds": round(seconds, 5),
            "tokens_per_second": round(cell.tokens * cell.rows / seconds, 1),
            "peak_bytes": machine.peak_memory(self.model.device.type)["gpu_bytes"],
            "watts": None if joules is None else round(joules / (after.seconds - before.seconds)),
        }

    def _step(self, rows: list[TokenRow]) -> None:
        """One optimizer step, waited for; the gradients stay where they are, as they do between the micro-batches of a step."""
        import torch

        self.optimizer.zero_grad(set_to_none=False)
        (self.engine.summed_loss(rows) / sum(row.targets for row in rows)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("measure")
    command.add_argument("file")
    command.add_argument("--shapes", nargs="+", default=["1b", "8b", "13b", "32b"])
    command.add_argument("--methods", nargs="+", default=["nf4", "none"])
    command.add_argument("--engines", nargs="+", default=["plain", "fused"])
    command.add_argument("--seconds", type=float, default=360)
    command.add_argument("--device", default="cuda")
    command = commands.add_parser("fit")
    command.add_argument("files", nargs="+")
    command.add_argument("--write", action="store_true")
    command = commands.add_parser("check")
    command.add_argument("files", nargs="+")
    args = parser.parse_args()
    if args.command == "measure":
        measure(args)
        return
    from benchmarks.grid_fit import check, fit

    if args.command == "fit":
        fit(args.files, args.write)
    else:
        check(args.files)


if __name__ == "__main__":
    main()
