"""The memory and speed planner: the fastest way to train that fits. In: config.json, method, row lengths, memory. Out: a Choice. No torch.

`choose` tries micro-batch sizes; for each, as few layers are recomputed as memory forces. Past runs on the same card correct it.
"""

import functools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import planner_cards
from stages.core.errors import UserError
from stages.core.files import cache_root
from stages.core.packing import first_fit
from stages.core.planner_cards import Card
from stages.core.planner_memory import Load, Method, peak
from stages.core.planner_shape import Shape, shape_of
from stages.core.planner_speed import ALONE, Exchange, Work, step_seconds

GIB = 2**30
CONSTANTS = Path(__file__).with_name("planner_constants.json")
RUNS = "planner_runs.jsonl"
RECENT_RUNS = 20  # of a card and engine, that correct the prediction
BUDGET_SHARE = 0.97  # of the memory that is planned for: the prediction may be 3 % below the truth (docs/planner.md)
LIKE = 0.01  # plans whose speeds differ less are alike: of them the one that recomputes least, then the one that takes least memory
MOST_TOKENS = 2**18  # of a micro-batch: no card computes a larger one faster
MOST_DOUBLINGS = 16
MLP_TOKENS = (1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Choice:
    """How to train, and what that will take.

    Attributes:
        engine: fused | plain.
        micro_batch_tokens: tokens of one forward pass at most.
        recomputed: layers whose activations are computed again in the backward.
        layers: of the model.
        offload: whether the inputs of those wait in host memory.
        mlp_tokens: tokens of the MLP at a time.
        passes: micro-batches of an optimizer step, on the average.
        peak_bytes: predicted memory that PyTorch reserves at most.
        budget_bytes: what it was fitted into.
        tokens_per_second: predicted, of real tokens.
        parts: the peak by part.
        reasons: sentences that say why.
        speed_scale: by which past runs on this card corrected the speed.
        offset_bytes: by which they corrected the peak.
        launch_seconds: what the host was taken to need for launching a small product.
    """

    engine: str
    micro_batch_tokens: int
    recomputed: int
    layers: int
    offload: bool
    mlp_tokens: int
    passes: int
    peak_bytes: int
    budget_bytes: int
    tokens_per_second: float
    parts: dict[str, int]
    reasons: tuple[str, ...]
    speed_scale: float
    offset_bytes: int
    launch_seconds: float


@functools.cache
def constants() -> dict[str, Any]:
    """What measurements gave (docs/planner.md)."""
    read: dict[str, Any] = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    return read


def choose(
    config: Mapping[str, Any],
    quantization: str,
    rank: int,
    target_modules: str | Sequence[str],
    lengths: Sequence[int],
    effective_batch: int,
    optimizer: str,
    deterministic: bool,
    available_bytes: int,
    cap_bytes: int | None = None,
    card_name: str | None = None,
    engine: str = "fused",
    batching: str = "pack",
    micro_batch_tokens: int | None = None,
    recompute: int | None = None,
    card: Card | None = None,
    runs: Sequence[Mapping[str, Any]] | None = None,
    launch_seconds: float | None = None,
    exchange: Exchange = ALONE,
) -> Choice:
    """The fastest plan that fits.

    Args:
        config: the base's config.json.
        quantization: nf4 | none.
        rank: of the LoRA.
        target_modules: train.target_modules.
        lengths: tokens of each training row.
        effective_batch: rows of an optimizer step.
        optimizer: train.optimizer.
        deterministic: train.deterministic; sums in a fixed order cost attention's backward time.
        available_bytes: what PyTorch may reserve; the CUDA context is not in it.
        cap_bytes: a cap on the same, or None.
        card_name: as the driver names it; None takes a card of that memory.
        engine: fused | plain.
        batching: bucket | pack; the fused engine pads neither.
        micro_batch_tokens: fixed, or None.
        recompute: layers to recompute, fixed, or None.
        card: a card with figures of its own, in place of card_name's.
        runs: earlier runs to learn from; None takes `past_runs`.
        launch_seconds: what the host takes to launch a small product (machine.launch_seconds); None takes that of the last run on
            this card, or the measured host's.
        exchange: what several GPUs add to each; the rows and effective_batch are then one GPU's.

    Returns:
        The plan.

    Raises:
        UserError: nothing fits; the sentence has the smallest peak found and what would help.
    """
    shape = shape_of(config)
    method = Method(engine, quantization, rank, target_modules, optimizer, deterministic)
    card = card or (planner_cards.named(card_name, available_bytes) if card_name else planner_cards.of_size(available_bytes))
    budget = min(available_bytes, cap_bytes or available_bytes)
    runs = past_runs() if runs is None else runs
    scale, offset, seen = refinement(runs, card_name or card.name, engine)
    launch = launch_seconds or _last_launch(runs, card_name or card.name) or constants()["launch_seconds"]
    largest = sum(sorted(lengths)[-effective_batch:])  # tokens of the heaviest step that can be drawn
    found: list[Choice] = []
    smallest: tuple[int, int] | None = None
    for limit in [micro_batch_tokens] if micro_batch_tokens else _sizes(max(lengths), largest):
        work = _work(lengths, effective_batch, limit, padded=engine == "plain" and batching == "bucket").sliced(exchange.slices)
        tokens = math.ceil(_fullest(lengths, effective_batch, limit) / exchange.slices)
        for load in _loads(shape, engine, tokens, recompute):
            parts = peak(shape, method, load, constants()[engine]["memory"], exchange.head_bytes)
            if exchange is not ALONE:
                parts["exchange"] = exchange.held_bytes + tokens * exchange.token_bytes
            total = sum(parts.values()) + offset
            smallest = min(smallest or (total, limit), (total, limit))
            if total > budget * BUDGET_SHARE:
                continue
            seconds = step_seconds(shape, method, load, work, card, constants()[engine]["speed"], launch / constants()["launch_seconds"])
            speed = work.passes * work.real_tokens / exchange.seconds(seconds.whole / scale, work)
            plan = (engine, limit, load.recomputed, shape.layers, load.offload, load.mlp_tokens, work.passes, total, budget, speed, parts)
            found.append(Choice(*plan, _reasons(shape, load, total, budget, seen, seconds.host_bound), scale, offset, launch))
    if not found:
        assert smallest is not None
        raise UserError(_nothing_fits(shape, method, smallest, budget, max(lengths)))
    best = max(choice.tokens_per_second for choice in found)
    alike = [choice for choice in found if choice.tokens_per_second >= best * (1 - LIKE)]
    return min(alike, key=lambda choice: (choice.offload, choice.recomputed, choice.peak_bytes))


def recomputed_layers(recompute: str | int, layers: int) -> int | None:
    """What train.recompute says of a base with so many layers; None where it is left to the planner."""
    return {"auto": None, "none": 0, "all": layers}[recompute] if isinstance(recompute, str) else recompute


def _sizes(longest: int, largest: int) -> list[int]:
    """Micro-batch sizes to try: the longest row and multiples of it by powers of two and halves between, up to a whole step's tokens."""
    multiples = [longest * 2**power * part // 2 for power in range(MOST_DOUBLINGS) for part in (2, 3)]
    return sorted({longest, *(size for size in multiples if size < min(largest, MOST_TOKENS)), max(longest, min(largest, MOST_TOKENS))})


def _loads(shape: Shape, engine: str, tokens: int, recompute: int | None) -> Iterator[Load]:
    """Ways to carry so many tokens."""
    pieces = [tokens] if engine == "plain" else [*(size for size in MLP_TOKENS if size < tokens), tokens]
    for piece in pieces:
        for layers in range(shape.layers + 1) if recompute is None else [recompute]:
            yield Load(tokens, layers, False, piece, tokens)
        if engine == "fused" and recompute in (None, shape.layers):
            yield Load(tokens, shape.layers, True, piece, tokens)


def _work(lengths: Sequence[int], effective_batch: int, limit: int, padded: bool) -> Work:
    """The mean step: how many passes of how many tokens, found by filling one of evenly spread lengths."""
    ordered = sorted(lengths)
    rows = min(effective_batch, len(ordered))
    typical = [ordered[(2 * n + 1) * len(ordered) // (2 * rows)] for n in reversed(range(rows))]
    passes, carried = _padded(typical, limit) if padded else (len(first_fit(typical, limit)), sum(typical))
    mean = statistics.fmean(lengths)
    scale = mean * rows / sum(typical)
    attended = statistics.fmean(length * length for length in lengths) / mean
    return Work(passes, carried * scale / passes, mean * rows / passes, mean * rows / passes, attended)


def _padded(longest_first: Sequence[int], limit: int) -> tuple[int, int]:
    """Passes of rows padded to the longest of their pass, as many as fit, and the tokens of all with padding."""
    passes = total = rows = longest = 0
    for length in longest_first:
        if rows == 0 or (rows + 1) * longest > limit:
            passes, total, rows, longest = passes + 1, total + rows * longest, 0, length
        rows += 1
    return passes, total + rows * longest


def _fullest(lengths: Sequence[int], effective_batch: int, limit: int) -> int:
    """Tokens of the fullest micro-batch that the shuffles can bring."""
    ordered = sorted(lengths)
    shortest, longest = ordered[0], ordered[-1]
    if shortest == longest:
        return longest * max(1, min(limit // longest, effective_batch))
    return max(longest, min(limit, sum(ordered[-effective_batch:])))


def _reasons(shape: Shape, load: Load, total: int, budget: int, runs: int, host_bound: bool) -> tuple[str, ...]:
    said = [f"{total / GIB:.1f} of {budget / GIB:.1f} GiB"]
    if load.recomputed == 0:
        said.append("no layer is recomputed, since all activations fit")
    else:
        said.append(f"{load.recomputed} of {shape.layers} layers are recomputed, as few as fit")
    if load.offload:
        said.append("their inputs wait in host memory, without which it would not fit or be slower")
    if load.mlp_tokens < load.tokens:
        said.append(f"the MLP takes {load.mlp_tokens} tokens at a time, which leaves memory for activations")
    if host_bound:
        said.append("the GPU waits for the host, whose speed this prediction is no surer than")
    if runs:
        said.append(f"corrected by {runs} earlier runs on this card")
    return tuple(said)


def _nothing_fits(shape: Shape, method: Method, smallest: tuple[int, int], budget: int, longest: int) -> str:
    needs, limit = smallest
    remedies = []
    if method.quantization == "none":
        remedies.append("set numerics.quantization: nf4")
    if method.engine == "plain":
        remedies.append("set train.kernels: fused")
    if method.optimizer == "adamw":
        remedies.append("set train.optimizer: paged_adamw_8bit")
    if limit > longest:
        remedies.append("set train.micro_batch_tokens: auto")
    remedies.append(f"shorten the longest row ({longest} tokens, tokenize.max_tokens)")
    return (
        f"a base of {shape.parameters / 1e9:.1f}B parameters needs at least {needs / GIB:.1f} GiB to train ({limit} tokens a pass), but "
        f"{budget / GIB:.1f} GiB are there; {', or '.join([*remedies, 'take a smaller base or a larger card'])}"
    )


def remember(card_name: str, choice: Choice, peak_bytes: int, tokens_per_second: float) -> None:
    """Adds a finished run to the user-level list from which later plans are corrected; a full or read-only disk is no reason to fail.

    Args:
        card_name: as the driver names it.
        choice: what was predicted.
        peak_bytes: what PyTorch reserved at most.
        tokens_per_second: of real tokens.
    """
    line = run_record(card_name, choice, peak_bytes, tokens_per_second)
    try:
        cache_root().mkdir(parents=True, exist_ok=True)
        with (cache_root() / RUNS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
    except OSError:
        return


def run_record(card_name: str, choice: Choice, peak_bytes: int, tokens_per_second: float) -> dict[str, Any]:
    """A finished run beside what the uncorrected planner said of it."""
    predicted = {
        "predicted_bytes": choice.peak_bytes - choice.offset_bytes,
        "predicted_tokens_per_second": choice.tokens_per_second / choice.speed_scale,
    }
    measured = {"peak_bytes": peak_bytes, "tokens_per_second": tokens_per_second, "launch_seconds": choice.launch_seconds}
    return {"card": card_name, "engine": choice.engine, **measured, **predicted}


def past_runs() -> list[dict[str, Any]]:
    """The finished runs of this user on this machine, oldest first; a line cut off by a crash is passed over."""
    try:
        lines = (cache_root() / RUNS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    runs = []
    for line in lines:
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return runs


def _last_launch(runs: Sequence[Mapping[str, Any]], card_name: str) -> float | None:
    """What this machine's host took to launch a product when it last trained on a card."""
    return next((run["launch_seconds"] for run in reversed(runs) if run["card"] == card_name and "launch_seconds" in run), None)


def refinement(runs: Sequence[Mapping[str, Any]], card_name: str, engine: str) -> tuple[float, int, int]:
    """What past runs on a card say of the prediction.

    Args:
        runs: as `past_runs` gives them.
        card_name: whose runs count.
        engine: likewise.

    Returns:
        The median ratio of measured to predicted speed, the median excess of the measured peak in bytes (never below zero: a plan
        gets no bolder), and how many runs that is.
    """
    same = [run for run in runs if run["card"] == card_name and run["engine"] == engine][-RECENT_RUNS:]
    if not same:
        return 1.0, 0, 0
    speed = statistics.median(run["tokens_per_second"] / run["predicted_tokens_per_second"] for run in same)
    excess = statistics.median(run["peak_bytes"] - run["predicted_bytes"] for run in same)
    return speed, max(0, int(excess)), len(same)
