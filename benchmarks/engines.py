"""One training engine in one process: times optimizer steps of some cells. In: cells as JSON lines. Out: a JSON line each.

Usage: python -m benchmarks.engines ENGINE SHAPE QUANTIZATION < CELLS
Every engine takes the same rows, the same loss (the mean over all next tokens), the same LoRA and AdamW. Unsloth patches transformers
when it is imported, so that nothing here imports transformers before it.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.files import cache_root

RANK = 16
WARM = 3  # steps before the clock starts: they compile and tune kernels
STEPS = 8
PACKAGES = {
    "plain": ("torch", "transformers", "peft", "bitsandbytes"),
    "liger": ("torch", "transformers", "peft", "bitsandbytes", "liger-kernel"),
    "unsloth": ("torch", "transformers", "peft", "bitsandbytes", "unsloth", "unsloth_zoo"),
    "luthier": ("torch", "transformers", "peft", "bitsandbytes"),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Rows = list[list[int]]
LossOf = Callable[[Rows, int], "Any"]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        work: the row of the table it belongs to.
        passes: token counts of the rows of each micro-batch of one optimizer step; under a plan, of all rows in one list.
        recompute: all | none: which layers' activations are computed again.
        pack: whether the rows of a micro-batch are laid end to end; else they are padded to the longest.
        cap_gib: cap on what PyTorch may reserve, or None.
        planned: whether Luthier's planner chooses micro-batches, recomputed layers and offload (luthier only).
        offload: whether the inputs of recomputed layers wait in host memory (luthier only).
        mlp_tokens: tokens of the MLP at a time (luthier only); None takes all.
        optimizer: adamw | paged_adamw_8bit.
        longest_from: in place of a timing, the longest row that fits is searched from here up (luthier only).
        warm: steps before the clock starts.
        steps: timed steps.
    """

    work: str
    passes: Rows
    recompute: str = "all"
    pack: bool = False
    cap_gib: float | None = None
    planned: bool = False
    offload: bool = False
    mlp_tokens: int | None = None
    optimizer: str = "adamw"
    longest_from: int | None = None
    warm: int = WARM
    steps: int = STEPS


def drawn(lengths: Sequence[int], generator: np.random.Generator) -> Rows:
    """Random tokens for rows of some lengths; which tokens they are changes neither speed nor memory."""
    return [generator.integers(4, 1000, length).tolist() for length in lengths]


class Padded:
    """A causal LM of transformers' interface, under transformers, Liger or Unsloth."""

    def __init__(self, model: Any, recompute: str, pack: bool) -> None:
        """Sets what is recomputed.

        Args:
            model: with its adapter; Unsloth's brings its own recomputation.
            recompute: all | none | own.
            pack: whether rows are laid end to end, with Unsloth's name for their lengths.
        """
        self.model, self.pack = model, pack
        if recompute == "all":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        elif recompute == "none":
            model.gradient_checkpointing_disable()

    def loss(self, rows: Rows, targets: int) -> Any:
        """The share of a micro-batch in the mean loss of a step."""
        import torch

        lengths = [len(row) for row in rows]
        if self.pack:
            ids = torch.tensor([[token for row in rows for token in row]])
            labels = ids.clone()
            labels[0, np.cumsum([0, *lengths[:-1]])] = -100  # the first token of a row follows from nothing
            inputs = {"position_ids": torch.cat([torch.arange(length) for length in lengths])[None].cuda()}
            inputs["packed_seq_lengths"] = torch.tensor(lengths, dtype=torch.int32).cuda()
        else:
            ids, labels = (torch.full((len(rows), max(lengths)), pad) for pad in (0, -100))
            for number, row in enumerate(rows):
                ids[number, : len(row)] = labels[number, : len(row)] = torch.tensor(row)
            inputs = {"attention_mask": (labels != -100).long().cuda()}
        with torch.autocast("cuda", torch.bfloat16):
            mean = self.model(input_ids=ids.cuda(), labels=labels.cuda(), use_cache=False, **inputs).loss
        return mean * ((sum(lengths) - len(rows)) / targets)


class Fused:
    """Luthier's fast path."""

    def __init__(self, model: Any, kept: int | None, offload: bool, mlp_tokens: int) -> None:
        """Takes the model; arguments as of FusedModel."""
        from stages.train.fused.model import FusedModel

        self.fused = FusedModel(model, kept, offload, mlp_tokens)

    def loss(self, rows: Rows, targets: int) -> Any:
        """The share of a micro-batch in the mean loss of a step."""
        from stages.core.batches import TokenRow

        made = [TokenRow("", np.array(row, dtype=np.int64), np.ones(len(row), dtype=bool)) for row in rows]
        return self.fused.summed_loss(made) / targets


def load(engine: str, shape: str, quantization: str, recompute: str) -> Any:
    """The model of a shape with its adapter, as an engine has it."""
    if engine == "unsloth":
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            str(checkpoint(shape, quantization)), max_seq_length=8192, load_in_4bit=quantization == "nf4", local_files_only=True
        )
        return FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=RANK,
            lora_dropout=0,
            bias="none",
            target_modules=PROJECTIONS,
            use_gradient_checkpointing="unsloth" if recompute == "all" else False,
        )
    if engine == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    from benchmarks.shapes import build

    return build(shape, quantization, RANK)


def checkpoint(shape: str, quantization: str) -> Path:
    """The folder that Unsloth loads a base from: weights as `make` wrote them, already in 4 bits."""
    return cache_root() / "benchmarks" / f"{shape}-{quantization}"


def make(shape: str, quantization: str, device: str = "cuda") -> None:
    """Writes a base of a shape with a tokenizer of a thousand words to `checkpoint`, once on a machine.

    Args:
        shape: as of benchmarks.shapes.
        quantization: nf4 | none.
        device: cuda | cpu.
    """
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerFast

    from benchmarks.shapes import build

    folder = checkpoint(shape, quantization)
    if (folder / "config.json").exists():
        return
    base = build(shape, quantization, RANK, device).unload()
    if quantization == "nf4":
        base.config.quantization_config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
        )
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, 1000))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    base.config.pad_token_id, base.config.bos_token_id, base.config.eos_token_id = range(3)
    tied = {"lm_head.weight"} if base.config.tie_word_embeddings else set()
    tensors = {name: tensor.contiguous() for name, tensor in base.state_dict().items() if name not in tied}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    base.config.architectures = [type(base).__name__]
    base.config.save_pretrained(folder)  # the last file: a folder without it is not whole


def run(cell: Cell, engine: str, shape: str, quantization: str, model: Any) -> dict[str, Any]:
    """Times a cell.

    Args:
        cell: what.
        engine: plain | liger | unsloth | luthier.
        shape: of the model.
        quantization: of its base.
        model: as `load` gives it.

    Returns:
        tokens_per_second (of real tokens), step_seconds, peaks in bytes, and under a plan what was planned; or `failed` with a sentence.
    """
    import torch

    from stages.train import machine

    machine.cap_memory(cell.cap_gib)
    try:
        if cell.longest_from is not None:
            return longest(cell, model)
        if engine != "luthier":
            return timed(cell, model, cell.passes, Padded(model, "own" if engine == "unsloth" else cell.recompute, cell.pack).loss)
        if cell.planned:
            passes, step, planned = by_plan(cell, shape, quantization, model)
            return {**timed(cell, model, passes, step), **planned}
        kept = 0 if cell.recompute == "all" else None
        fused = Fused(model, kept, cell.offload, cell.mlp_tokens or max(sum(rows) for rows in cell.passes))
        return timed(cell, model, cell.passes, fused.loss)
    except torch.OutOfMemoryError as error:
        return {"failed": str(error).split(". ")[0]}
    finally:
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


def by_plan(cell: Cell, shape: str, quantization: str, model: Any) -> tuple[Rows, LossOf, dict[str, Any]]:
    """Micro-batches and fused path as the planner chooses them for this card under the cell's cap."""
    import torch

    from benchmarks.shapes import config_of
    from stages.core import planner
    from stages.train.batches import pack

    lengths = cell.passes[0]
    choice = planner.choose(
        config=config_of(shape),
        quantization=quantization,
        rank=RANK,
        target_modules="all-linear",
        lengths=lengths,
        effective_batch=len(lengths),
        optimizer=cell.optimizer,
        deterministic=False,
        available_bytes=torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(),
        cap_bytes=None if cell.cap_gib is None else round(cell.cap_gib * 2**30),
        card_name=torch.cuda.get_device_name(0),
    )
    fused = Fused(model, choice.layers - choice.recomputed, choice.offload, choice.mlp_tokens)
    passes = [[lengths[row] for row in rows] for rows in pack(range(len(lengths)), lengths, choice.micro_batch_tokens)]
    return passes, fused.loss, {"plan": asdict(choice)}


def timed(cell: Cell, model: Any, passes: Rows, step: LossOf) -> dict[str, Any]:
    """Warms up, then times optimizer steps; the peak counts the warm-up too."""
    import torch

    generator = np.random.default_rng(0)
    optimizer = adamw(model, cell.optimizer)
    targets = sum(length - 1 for rows in passes for length in rows)
    torch.cuda.reset_peak_memory_stats()
    start, loss = 0.0, torch.zeros(())
    for number in range(cell.warm + cell.steps):
        if number == cell.warm:
            torch.cuda.synchronize()
            start = time.perf_counter()
        shares = []
        for rows in passes:
            share = step(drawn(rows, generator), targets)
            share.backward()
            shares.append(share.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(shares).sum()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / cell.steps
    return {"tokens_per_second": sum(map(sum, passes)) / seconds, "step_seconds": seconds, "loss": float(loss), **peaks()}


def longest(cell: Cell, model: Any) -> dict[str, Any]:
    """Searches the longest row of which one step fits, in steps of 8,192 tokens: up by halves, then between to an eighth."""
    import torch

    assert cell.longest_from is not None
    unit = 8192
    fits: dict[str, Any] = {"failed": f"no row of {cell.longest_from} tokens fits"}
    low, high, tried = 0, None, cell.longest_from // unit
    optimizer = adamw(model, cell.optimizer)
    while high is None or high - low > max(1, low // 8):
        engine = Fused(model, 0, True, cell.mlp_tokens or unit)
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            tokens = drawn([tried * unit], np.random.default_rng(0))
            engine.loss(tokens, tried * unit - 1).backward()
            optimizer.step()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            low, fits = (
                tried,
                {"longest_tokens": tried * unit, "tokens_per_second": tried * unit / seconds, "step_seconds": seconds, **peaks()},
            )
        except torch.OutOfMemoryError:
            high = tried
        optimizer.zero_grad(set_to_none=True)
        del engine
        gc.collect()
        torch.cuda.empty_cache()
        tried = tried * 3 // 2 if high is None else (low + high) // 2
        if tried == 0:
            break
    return fits


def adamw(model: Any, name: str) -> Any:
    """The optimizer over what a model trains."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    import bitsandbytes

    return bitsandbytes.optim.PagedAdamW8bit(parameters, lr=1e-4)


def peaks() -> dict[str, int]:
    """The largest memory since the last reset."""
    import torch

    return {"peak_allocated_bytes": torch.cuda.max_memory_allocated(), "peak_reserved_bytes": torch.cuda.max_memory_reserved()}


def main() -> None:
    """Runs the cells of standard input, which share engine, model and (for Unsloth) recomputation."""
    engine, shape, quantization = sys.argv[1:]
    cells = [Cell(**json.loads(line)) for line in sys.stdin]
    start = time.perf_counter()
    model = load(engine, shape, quantization, cells[0].recompute)
    model.train()
    seconds = time.perf_counter() - start
    import torch

    card = torch.cuda.get_device_properties(0)
    facts = {
        "engine": engine,
        "shape": shape,
        "quantization": quantization,
        "card": card.name,
        "card_id": str(card.uuid)[:8],  # tells one card of a kind from another
        "load_seconds": round(seconds, 1),
        "versions": {name: version(name) for name in PACKAGES[engine]},
    }
    for cell in cells:
        result = {**facts, "cell": asdict(cell), **run(cell, engine, shape, quantization, model)}
        print("RESULT " + json.dumps(result, sort_keys=True), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(*sys.argv[2:])
    else:
        main()
