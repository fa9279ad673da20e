"""Training on several GPUs: memory of each, speed of all, and which way to take. In: the planner's job, GPUs, link. Out: ways, a choice.

Computed from the one-GPU planner and the link; docs/planner-parallel.md says what of it was compared with measurements. No torch.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.core import planner, planner_cards
from stages.core.errors import UserError
from stages.core.planner import GIB, Choice
from stages.core.planner_cards import Card
from stages.core.planner_links import Link
from stages.core.planner_memory import BF16, FLOAT32, Method, held_bytes
from stages.core.planner_shape import FUSED, Shape, shape_of, window_of
from stages.core.planner_speed import Exchange

GATHERED_LAYERS = 2  # of a sharded base: the one that computes, and the next on its way
GATHERS = 2  # of each layer and micro-batch: forward and backward, where recomputing uses what the backward gathered
TIMES_EXCHANGED = 6  # a layer's heads for tokens and back: forward, computed again, and the gradients
# GB/s that one drive reads: a PCIe 4.0 NVMe drive's data sheet has 7; all GPUs of the host share it
NVME_BANDWIDTH = 7.0
WAYS = ("single", "ddp", "fsdp", "sequence", "zero2", "zero3", "zero3, base in host memory", "zero3, base on NVMe")
WHY_NO_ZERO2 = "not built: of a LoRA it could split the adapter's gradients and optimizer state alone; take ddp"
WHY_NO_ZERO3 = "DeepSpeed does not split a 4-bit base: each GPU would load the whole model; take fsdp, or numerics.quantization: none"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train on several GPUs.

    Attributes:
        name: of WAYS.
        choice: the plan of each GPU, or None where it does not fit or is refused.
        tokens_per_second: of all GPUs together.
        exchange_share: of the step's time that the GPUs wait for one another's bytes.
        host_bytes: of the base in host memory, over all GPUs.
        why_not: where there is no plan.
    """

    name: str
    choice: Choice | None
    tokens_per_second: float
    exchange_share: float
    host_bytes: int
    why_not: str | None


def compared(gpus: int, link: Link, job: dict[str, Any]) -> list[Way]:
    """Every way to train a job on so many GPUs.

    A 4-bit base has no way with DeepSpeed, and zero3 is told of once.

    Args:
        gpus: of one host, alike.
        link: between any two of them.
        job: the arguments of `planner.choose` for a single GPU: effective_batch is all GPUs', available_bytes one's.

    Returns:
        The ways in the order of WAYS; with one GPU, `single` alone.
    """
    names = WAYS[:1] if gpus == 1 else [name for name in WAYS if job["quantization"] == "none" or "," not in name]
    return [_way(name, gpus, link, job) for name in names]


def _way(name: str, gpus: int, link: Link, job: dict[str, Any]) -> Way:
    kind = name.split(",")[0]
    refused = {"zero2": WHY_NO_ZERO2, "zero3": WHY_NO_ZERO3 if job["quantization"] == "nf4" else None}.get(kind)
    if kind == "sequence":
        refused = why_not_sliced(job["config"], gpus, max(job["lengths"]))
    if refused is not None:
        return Way(name, None, 0.0, 0.0, 0, refused)
    rows = min(job["effective_batch"], len(job["lengths"]))
    if kind not in ("single", "sequence") and rows < gpus:
        return Way(name, None, 0.0, 0.0, 0, f"a step has {rows} rows, fewer than {gpus} GPUs; raise train.effective_batch")
    shape = shape_of(job["config"])
    engine = "plain" if kind == "zero3" else job.get("engine", "fused")  # DeepSpeed knows transformers' layers alone
    method = Method(engine, job["quantization"], job["rank"], job["target_modules"], job["optimizer"], job["deterministic"])
    card = job.get("card") or planner_cards.named(job["card_name"], job["available_bytes"])
    own: dict[str, Any] = {}
    share: float = rows  # of a step's, that one GPU computes
    if kind != "single":
        own["exchange"] = exchange(name, gpus, link, shape, method, card)
        share = rows / gpus
    if kind not in ("single", "sequence"):
        own["effective_batch"] = share = math.ceil(share)
    try:
        choice = planner.choose(**{**job, "engine": engine, **own})
    except UserError as error:
        return Way(name, None, 0.0, 0.0, 0, str(error))
    mean = statistics.fmean(job["lengths"])
    slowest = mean * share / choice.tokens_per_second  # seconds of a step
    waited = 0.0
    if own:
        # of the chosen plan, the same without what is passed
        fixed = {"micro_batch_tokens": choice.micro_batch_tokens, "recompute": choice.recomputed}
        instant = replace(own["exchange"], pass_seconds=0.0, exposed_seconds=0.0, step_seconds=0.0, token_seconds=0.0)
        alone = {**job, **own, **fixed, "engine": engine, "exchange": instant}
        waited = max(0.0, 1 - choice.tokens_per_second / planner.choose(**alone).tokens_per_second)
    tables = gpus * shape.vocabulary * shape.hidden * BF16 if kind == "fsdp" else 0  # a copy of the input's embeddings for each
    base = held_bytes(shape, method)["base"] if "host memory" in name else tables
    return Way(name, choice, mean * rows / slowest, waited, base, None)


def exchange(name: str, gpus: int, link: Link, shape: Shape, method: Method, card: Card) -> Exchange:
    """What a way adds to each GPU.

    A ring passes (n - 1) / n of the bytes to gather, and twice that to sum (arXiv 1802.05799, section 3). The adapter is whole on each
    GPU, and its float32 gradients are summed once a step. fsdp and zero3 gather each layer's frozen weights, as they are
    packed, forward and backward; while one layer computes the next is on its way, but for the first of both directions. sequence exchanges
    queries, keys and values of each token for the attention's result, of which (n - 1) / n leave the GPU (arXiv 2309.14509, section 3.2).

    Args:
        name: of WAYS, without `single`.
        gpus: how many.
        link: between them.
        shape: the model's.
        method: of training.
        card: whose way to host memory counts where the base waits there.

    Returns:
        Bytes and seconds.
    """
    held = held_bytes(shape, method)
    trained = shape.adapter_parameters(method.rank, method.target_modules)
    passed = (gpus - 1) / gpus
    kind = name.split(",")[0]
    more = 0  # beside one GPU's: the gradients lie in the buffer that is summed
    pass_seconds = exposed = 0.0
    step = link.seconds(2 * passed * trained * FLOAT32)
    layer = held["base"] / shape.layers
    if kind in ("fsdp", "zero3"):
        parted = 0.0 if "," in name else held["base"] / gpus
        more += int(parted + GATHERED_LAYERS * layer - held["base"])
        pass_seconds = GATHERS * link.seconds(passed * held["base"], shape.layers)
        exposed = GATHERS * link.seconds(passed * layer)
        if kind == "fsdp":
            head = shape.vocabulary * shape.hidden * BF16
            more += int(head / gpus - held["embeddings"])  # the input's table waits in host memory
            exposed += link.seconds(passed * head)
            return Exchange(more, pass_seconds, exposed, step, head_bytes=head)
        if "," in name:
            rate = card.host_bandwidth * gpus if "host memory" in name else NVME_BANDWIDTH
            pass_seconds = max(pass_seconds, GATHERS * held["base"] / (rate * 1e9))
    if kind == "sequence":
        copies = max(1, gpus * shape.q // (shape.heads * shape.kv))  # of keys and values, where they have fewer heads than there are GPUs
        token = (2 * shape.q + 2 * copies * shape.kv) * BF16
        exposed = link.seconds(0, TIMES_EXCHANGED * shape.layers)
        return Exchange(more, 0.0, exposed, step, gpus, token, TIMES_EXCHANGED / 2 * shape.layers * link.seconds(passed * token, 0))
    return Exchange(more, pass_seconds, exposed, step)


def why_not_sliced(config: Mapping[str, Any], gpus: int, longest: int) -> str | None:
    """Why a model's sequences can't be split over so many GPUs (DeepSpeed-Ulysses, arXiv 2309.14509).

    Args:
        config: the base's config.json.
        gpus: how many.
        longest: tokens of the longest row.

    Returns:
        A clause, or None where they can.
    """
    if config.get("model_type") not in FUSED:
        return f"the attention that can be split is that of {', '.join(FUSED)}, not {config.get('model_type')}"
    shape = shape_of(config)
    kv_heads = shape.kv * shape.heads // shape.q
    if shape.heads % gpus or (kv_heads % gpus and gpus % kv_heads):
        return f"{shape.heads} heads of queries and {kv_heads} of keys cannot be dealt evenly to {gpus} processes (runtime.processes)"
    window = window_of(config)
    if window is not None and window < longest:
        return f"the base attends to the last {window} tokens alone, fewer than the longest row's {longest}"
    return None


def choose_parallel(gpus: int, link: Link, job: dict[str, Any]) -> tuple[str, str]:
    """What `train.parallel: auto` takes: ddp where the job fits one card, else fsdp, else sequence.

    Args:
        gpus: as of `compared`.
        link: likewise.
        job: likewise.

    Returns:
        single | ddp | fsdp | sequence, and the reason in words; a job that fits none of them is a UserError.
    """
    return preferred(gpus, link, compared(gpus, link, job))


def preferred(gpus: int, link: Link, ways: Sequence[Way]) -> tuple[str, str]:
    """As `choose_parallel`, of ways that were compared.

    Args:
        gpus: as of `compared`.
        link: likewise.
        ways: what `compared` gave.

    Returns:
        single | ddp | fsdp | sequence, and the reason in words.

    Raises:
        UserError: the job fits none of them; it names the way that would do, if there is one.
    """
    found = {way.name: way for way in ways if way.choice is not None}
    cards = f"{gpus} GPUs" if gpus > 1 else "one GPU"
    if gpus == 1 and "single" in found:
        return "single", "there is one GPU"
    single, ddp = found.get("single"), found.get("ddp")
    if ddp is not None and (single is None or ddp.tokens_per_second > single.tokens_per_second):
        times = "" if single is None else f", and {cards} are {ddp.tokens_per_second / single.tokens_per_second:.2f} times as fast as one"
        return "ddp", f"the job fits one card ({_peak(ddp)}){times}"
    if single is not None:
        refused = next((way.why_not for way in ways if way.name == "ddp" and way.why_not), None)
        return "single", f"the job fits one card, and {refused or f'passing gradients over {link.told} costs more than {cards} gain'}"
    if "fsdp" in found:
        return "fsdp", f"the whole base does not fit one card, and its {gpus} parts do ({_peak(found['fsdp'])})"
    if "sequence" in found:
        return "sequence", f"a row does not fit one card, and its {gpus} slices do ({_peak(found['sequence'])})"
    reason = next(way.why_not for way in ways if way.name == ("fsdp" if gpus > 1 else "single"))
    others = [name for name in found if name.startswith("zero")]
    would = f"; {others[0]} would fit: set train.parallel to zero3, which needs DeepSpeed, an extra" if others else ""
    raise UserError(f"this job fits no way on {cards}: {reason}{would}")


def _peak(way: Way) -> str:
    assert way.choice is not None
    return f"{way.choice.peak_bytes / GIB:.1f} of {way.choice.budget_bytes / GIB:.1f} GiB each"
