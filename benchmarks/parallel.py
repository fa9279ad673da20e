"""Several GPUs of one host: scaling of ddp, shapes and rows that fit one card only in parts. In: cells. Out: results/parallel.json.

Usage: python -m benchmarks.parallel [--cells NAME ...] [--out FILE]
Bases of published shapes with random NF4 weights, made layer by layer where they are trained; every row is trained on whole. A cell is
a set of processes of its own, one a GPU. `accelerate` is transformers, PEFT and accelerate's DDP as their documentation has them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Padded, drawn

RANK = 16
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
CELL_SECONDS = 240
# of a search for the longest row: layers computed, which with parked inputs have the peak of all; tokens between two tries
SEARCHED_LAYERS, SEARCH_STEP = 4, 16384
RESULTS = Path(__file__).parent / "results/parallel.json"


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        shape: of benchmarks.shapes.
        engine: luthier | accelerate.
        parallel: single | ddp | fsdp | sequence | zero3.
        ranks: processes, one a GPU.
        rows: of each forward pass.
        tokens: of each row.
        passes: of each rank in an optimizer step.
        kept: layers that keep their activations (luthier); the others, and all of accelerate's, are recomputed.
        cap_gib: of each GPU's memory, or None.
        optimizer: train.optimizer (luthier).
        warm: steps before the clock starts.
        steps: timed.
        quantization: nf4 | none.
        plain: whether transformers' and PEFT's own layers are taken (luthier); zero3 knows no others.
        waits: where zero3's base waits, as runtime.zero_offload.
        mlp_tokens: of an MLP at a time (luthier), with the inputs of recomputed layers in host memory; None takes all, on the GPU.
        longest: the longest row that fits is searched from `tokens` on, of all layers SEARCHED_LAYERS computed, and trained on once.
    """

    shape: str
    engine: str
    parallel: str
    ranks: int
    rows: int
    tokens: int
    passes: int
    kept: int = 0
    cap_gib: float | None = None
    optimizer: str = "adamw"
    warm: int = 2
    steps: int = 5
    quantization: str = "nf4"
    plain: bool = False
    waits: str = "gpu"
    mlp_tokens: int | None = None
    longest: bool = False


LONG, WHOLE = {"cap_gib": 24.0, "mlp_tokens": 8192, "longest": True}, {"quantization": "none", "plain": True, "warm": 1, "steps": 3}
CELLS = {
    "8b-single": Cell("8b", "luthier", "single", 1, 4, 2048, 2),
    "8b-ddp2": Cell("8b", "luthier", "ddp", 2, 4, 2048, 2),
    "8b-fsdp2": Cell("8b", "luthier", "fsdp", 2, 4, 2048, 2),
    "8b-accelerate1": Cell("8b", "accelerate", "single", 1, 4, 2048, 2),
    "8b-accelerate2": Cell("8b", "accelerate", "ddp", 2, 4, 2048, 2),
    "32b-fsdp2-24gib": Cell("32b", "luthier", "fsdp", 2, 1, 2048, 4, cap_gib=24.0),
    "32b-fsdp2": Cell("32b", "luthier", "fsdp", 2, 4, 2048, 2, cap_gib=48.0, steps=3),
    "70b-fsdp2": Cell("70b", "luthier", "fsdp", 2, 2, 2048, 2, cap_gib=48.0, warm=1, steps=3),
    "8b-sequence2": Cell("8b", "luthier", "sequence", 2, 4, 2048, 2),
    "8b-long1": Cell("8b", "luthier", "single", 1, 1, 163840, 1, **LONG),
    "8b-long2": Cell("8b", "luthier", "sequence", 2, 1, 327680, 1, **LONG),
    "8b-bf16-ddp2": Cell("8b", "luthier", "ddp", 2, 4, 2048, 1, **WHOLE),
    "8b-bf16-zero3": Cell("8b", "luthier", "zero3", 2, 4, 2048, 1, **WHOLE),
    "8b-bf16-zero3-host": Cell("8b", "luthier", "zero3", 2, 4, 2048, 1, waits="host", **WHOLE),
    "8b-bf16-zero3-drive": Cell("8b", "luthier", "zero3", 2, 4, 2048, 1, waits="/tmp/zero3", **WHOLE),
    "70b-fsdp2-24gib": Cell(
        "70b", "luthier", "fsdp", 2, 1, 2048, 2, cap_gib=24.0, mlp_tokens=1024, optimizer="adamw_8bit", warm=1, steps=3
    ),
}


class Luthier:
    """The train stage's own parts: engine, shards or slices, gradients, micro-batches, optimizer."""

    def __init__(self, cell: Cell, ranks: Any) -> None:
        """Builds the base and its adapter."""
        import torch

        from benchmarks.shapes import adapted, made
        from stages.core.params import load_params
        from stages.core.streaming import decoder_layers
        from stages.train import adapter
        from stages.train.fused.model import FusedModel
        from stages.train.optimizer import make_optimizer
        from stages.train.plain import PlainModel
        from stages.train.ranks import Gradients
        from stages.train.shards import Shards
        from stages.train.slices import Slices
        from stages.train.zero import Zero
        from tests.tiny import ROOT

        self.ranks, self.cell = ranks, cell
        self.shards: Any = None
        if cell.parallel == "fsdp":
            self.shards = Shards(ranks)
        elif cell.parallel == "zero3":
            self.shards = Zero("cuda", torch.bfloat16, cell.waits)
        take = None if self.shards is None else self.shards.take
        base = made(cell.shape, cell.quantization, take=take, ends=self.shards.take_ends if cell.parallel == "fsdp" else None)
        if cell.parallel == "zero3":
            self.shards.watch(base, decoder_layers(base))
        self.slices = Slices(ranks, base, torch.bfloat16, cell.tokens) if cell.parallel == "sequence" else None
        model = adapted(base, RANK)
        if cell.plain:
            self.engine: Any = PlainModel(model, "bucket", torch.bfloat16, 0)
            self.engine.kept = cell.kept
        else:
            shards = self.shards if cell.parallel == "fsdp" else None
            tokens = cell.mlp_tokens or cell.rows * cell.tokens
            self.engine = FusedModel(model, cell.kept, cell.mlp_tokens is not None, tokens, shards)
        parameters = adapter.trainable(model)
        self.parameters = list(parameters.values())
        self.gradients = Gradients(ranks, parameters, cell.passes * ranks.count)
        train = load_params(ROOT / "params.yaml").train
        self.optimizer = make_optimizer(parameters, train.model_copy(update={"optimizer": cell.optimizer, "learning_rate": 1e-4}), "cuda")

    def step(self, passes: list[list[list[int]]], targets: int) -> float:
        """One optimizer step of this rank and the others; the loss of all."""
        import torch

        from stages.core.batches import TokenRow

        self.gradients.clear()
        losses = []
        for rows in passes:
            made = [TokenRow("", np.array(row, dtype=np.int64), np.ones(len(row), dtype=bool)) for row in rows]
            if self.shards is not None:
                self.shards.begin()
            loss = self.engine.summed_loss(made, slices=self.slices) / targets
            loss.backward()
            losses.append(loss.detach())
        place, shares = (self.ranks.rank, self.ranks.count) if self.slices is None else (0, 1)
        total, _ = self.gradients.exchange(losses, place * len(passes), len(passes) * shares, None)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return sum(total)

    def fits(self, tokens: int) -> bool:
        """Whether a pass over one row fits every rank; of its layers SEARCHED_LAYERS are computed."""
        import gc

        import torch

        from stages.core.batches import TokenRow

        row = TokenRow("", np.array(drawn([tokens], np.random.default_rng(0))[0], dtype=np.int64), np.ones(tokens, dtype=bool))
        whole, fits = self.engine.decoder, True
        self.gradients.clear()
        self.engine.decoder = whole[:SEARCHED_LAYERS]
        try:
            self.engine.summed_loss([row], slices=self.slices).backward()
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            fits = False
        gc.collect()
        torch.cuda.empty_cache()
        if self.slices is not None:
            whole_pass, self.slices.layers = self.slices.layers, SEARCHED_LAYERS
            self.slices.finish(0, True)
            self.slices.layers = whole_pass
        self.engine.decoder = whole
        return all(self.ranks.gathered(fits))

    def longest(self) -> int:
        """Tokens of the longest row that fits, in steps of SEARCH_STEP from the cell's on, up or down."""
        self.step([drawn([1024], np.random.default_rng(0))], 1023)  # the optimizer's moments stay from here on
        tokens = self.cell.tokens
        if self.fits(tokens):
            while self.fits(tokens + SEARCH_STEP):
                tokens += SEARCH_STEP
            return tokens
        while tokens > SEARCH_STEP:
            tokens -= SEARCH_STEP
            if self.fits(tokens):
                break
        return tokens


class Accelerate:
    """transformers and PEFT under accelerate, which wraps them in DDP where there are several processes."""

    def __init__(self, cell: Cell, ranks: Any) -> None:
        """Builds the base and its adapter."""
        import torch
        from accelerate import Accelerator

        from benchmarks.shapes import build

        self.accelerator = Accelerator()
        model = build(cell.shape, "nf4", RANK)
        padded = Padded(model, "all", False)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        padded.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.padded, self.ranks = padded, ranks

    def step(self, passes: list[list[list[int]]], targets: int) -> float:
        """One optimizer step of this rank and the others; the loss of this one's rows times the ranks, whose gradients DDP averages."""
        import contextlib

        import torch

        losses = []
        for number, rows in enumerate(passes):
            last = number == len(passes) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.padded.model):
                loss = self.padded.loss(rows, targets) * self.ranks.count
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(torch.stack(losses).sum())


def measure(cell: Cell) -> None:
    """A rank's part; the first prints the result."""
    from stages.train import machine
    from stages.train.ranks import Ranks, join, started

    ranks = join("cuda") if started() else Ranks()
    import torch

    card = torch.cuda.get_device_properties(0)
    machine.cap_memory(cell.cap_gib)
    begin = time.perf_counter()
    try:
        if cell.engine == "accelerate":
            found = timed(cell, Accelerate(cell, ranks), ranks, begin)
        else:
            engine = Luthier(cell, ranks)
            if cell.longest:
                cell = replace(cell, tokens=engine.longest(), warm=0, steps=1)
            found = timed(cell, engine, ranks, begin)
    except torch.OutOfMemoryError as error:
        found = {"failed": str(error).split(". ")[0]}
        print("RESULT " + json.dumps({"cell": asdict(cell), **found}, sort_keys=True), flush=True)
        os._exit(1)
    facts = {"card": card.name, "versions": {name: version(name) for name in PACKAGES}}
    if ranks.first:
        print("RESULT " + json.dumps({"cell": asdict(cell), **facts, **found}, sort_keys=True), flush=True)


def timed(cell: Cell, engine: Any, ranks: Any, begin: float) -> dict[str, Any]:
    """Warms up, then times optimizer steps.

    Args:
        cell: what.
        engine: with a step.
        ranks: that take part.
        begin: when the base began to be made.

    Returns:
        tokens_per_second of all ranks, step_seconds, and of the rank with the most: peaks in bytes, of the load too.
    """
    import torch

    from stages.train import machine

    torch.cuda.synchronize()
    load_seconds, load = time.perf_counter() - begin, machine.peak_memory("cuda")
    torch.cuda.reset_peak_memory_stats()
    shares = 1 if cell.parallel == "sequence" else ranks.count  # of a step's rows; a slice is one of the same rows
    generator = np.random.default_rng(ranks.rank % shares)
    lengths = [cell.tokens] * cell.rows
    targets = (cell.tokens - 1) * cell.rows * cell.passes * shares
    start = 0.0
    losses = []
    for number in range(cell.warm + cell.steps):
        if number == cell.warm:
            torch.cuda.synchronize()
            ranks.gathered(None)
            start = time.perf_counter()
        losses.append(engine.step([drawn(lengths, generator) for _ in range(cell.passes)], targets))
    torch.cuda.synchronize()
    seconds = max(ranks.gathered(time.perf_counter() - start)) / cell.steps
    peaks = ranks.gathered(
        {
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "load_gpu_bytes": load["gpu_bytes"],
            "load_host_bytes": load["host_bytes"],
        }
    )
    most = {name: max(peak[name] for peak in peaks) for name in peaks[0]}
    tokens = cell.tokens * cell.rows * cell.passes * shares
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "step_seconds": round(seconds, 4),
        "loss": losses[-1],
        "losses": losses,
        "load_seconds": round(load_seconds, 1),
        **most,
    }


def run(name: str, cell: Cell) -> dict[str, Any]:
    """The result of a cell, from processes of its own; `failed` where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(cell.ranks):
            place: dict[str, str] = {}
            if cell.ranks > 1:
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(cell.ranks), "LUTHIER_STORE": f"{folder}/store"}
            place["CUDA_VISIBLE_DEVICES"] = str(rank) if cell.engine == "luthier" else ",".join(map(str, range(cell.ranks)))
            command = [sys.executable, "-m", "benchmarks.parallel", "--rank", json.dumps(asdict(cell))]
            with open(f"{folder}/{rank}.txt", "wb") as out:
                processes.append(subprocess.Popen(command, env={**os.environ, **place}, stdout=out))
        end = time.monotonic() + CELL_SECONDS
        while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        said = "".join(Path(f"{folder}/{rank}.txt").read_text(encoding="utf-8") for rank in range(cell.ranks))
    lines = [line for line in said.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT ")) if lines else {"cell": asdict(cell), "failed": "no result"}
    return {"name": name, **found}


def main() -> None:
    """Runs cells one after the other and adds them to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=list(CELLS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        measure(Cell(**json.loads(args.rank)))
        return
    had = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else []
    for name in args.cells:
        found = run(name, CELLS[name])
        print(json.dumps({key: value for key, value in found.items() if key not in ("cell", "versions")}), flush=True)
        had = sorted([one for one in had if one["name"] != name] + [found], key=lambda one: list(CELLS).index(one["name"]))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(had, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
