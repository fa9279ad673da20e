"""Which path trains and how much it holds at once, chosen once a run. In: params, model, row lengths, free memory. Out: choice.json.

A resumed run reads it again: another card, or another program on the same one, does not change what a run computes.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core import planner, planner_cards
from stages.core.errors import UserError
from stages.core.models import base_folder
from stages.core.planner_links import installed_link
from stages.core.planner_memory import Method
from stages.core.planner_parallel import exchange
from stages.core.planner_shape import UnknownShape, shape_of
from stages.core.planner_speed import ALONE
from stages.train import machine
from stages.train.ranks import Ranks

if TYPE_CHECKING:
    from peft import PeftModel

    from stages.core.params import Params
    from stages.train.fused.model import FusedModel
    from stages.train.shards import Shards
    from stages.train.zero import Zero

FILE = "choice.json"
CPU_TOKENS = 1024  # a processor gains nothing from more at once


@dataclass(frozen=True)
class Choice:
    """What a run is held to.

    Attributes:
        path: fused | plain.
        why_plain: why a CUDA run is not on the fused path, where it might have been.
        micro_batch_tokens: tokens of one forward pass at most.
        recomputed: layers whose activations are computed again.
        offload: whether the inputs of those wait in host memory.
        mlp_tokens: tokens an MLP takes at a time; None on the plain path.
        predicted: what the planner said of it, or None where nothing was left to it.
    """

    path: str
    why_plain: str | None
    micro_batch_tokens: int
    recomputed: int
    offload: bool
    mlp_tokens: int | None
    predicted: dict[str, Any] | None


def choose(
    params: "Params",
    model: "PeftModel",
    layers: int,
    lengths: Sequence[int],
    manifest: dict[str, Any],
    root: Path,
    ranks: Ranks,
    parallel: str,
) -> Choice:
    """The run's choice: of an earlier process of the run, else made now by the first rank, said and written down.

    Args:
        params: of the whole pipeline.
        model: the base with its adapter, on the device.
        layers: its decoder layers.
        lengths: tokens of each training row.
        manifest: of the base.
        root: the folder of checkpoints.
        ranks: that train.
        parallel: single | ddp | fsdp | sequence | zero3.

    Returns:
        The choice; what cannot be done, or does not fit the memory, is a UserError.
    """
    chosen = _chosen(params, model, layers, lengths, manifest, root / FILE, (parallel, ranks.count)) if ranks.first else None
    agreed = ranks.agreed(chosen)
    assert agreed is not None
    return agreed


def _chosen(
    params: "Params", model: "PeftModel", layers: int, lengths: Sequence[int], manifest: dict[str, Any], path: Path, way: tuple[str, int]
) -> Choice:
    if path.is_file():
        return Choice(**json.loads(path.read_text(encoding="utf-8")))
    made = _made(params, model, layers, lengths, manifest, way)
    if model.device.type == "cuda":
        sys.stderr.write(f"train: {told(made, layers)}\n")
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(made), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, path)
    return made


def _made(
    params: "Params", model: "PeftModel", layers: int, lengths: Sequence[int], manifest: dict[str, Any], way: tuple[str, int]
) -> Choice:
    settings, device = params.train, model.device.type
    why = None
    if settings.kernels == "fused" or (settings.kernels == "auto" and device == "cuda"):
        from stages.train.fused.model import why_not

        why = "zero3 knows transformers' layers alone" if settings.parallel == "zero3" else why_not(model, settings, max(lengths))
        if why is not None and settings.kernels == "fused":
            raise UserError(f"train.kernels is fused, but {why}; set train.kernels: auto or plain")
    fused = settings.kernels == "fused" or (settings.kernels == "auto" and device == "cuda" and why is None)
    if settings.recompute == "all" and not layers:
        raise UserError(
            f"train.recompute is all, but {type(model.get_base_model()).__name__} has no layers that transformers can recompute"
        )
    recomputed = planner.recomputed_layers(settings.recompute, layers)
    if recomputed is not None and recomputed > layers:
        raise UserError(f"train.recompute is {recomputed}, but the base has {layers} layers; set train.recompute: all")
    tokens = None if settings.micro_batch_tokens == "auto" else settings.micro_batch_tokens
    path = "fused" if fused else "plain"
    if device == "cuda" and (tokens is None or recomputed is None):
        try:
            predicted = _predicted(params, path, tokens, recomputed, lengths, manifest, way)
        except UnknownShape as error:
            tokens, recomputed = tokens or max(lengths), layers if recomputed is None else recomputed
            sys.stderr.write(
                f"train: {error}; so nothing is planned: passes of at most {tokens:,} tokens, {recomputed} of {layers} layers recomputed\n"
            )
        else:
            part, record = (predicted.mlp_tokens if fused else None), json.loads(json.dumps(asdict(predicted)))
            return Choice(path, why, predicted.micro_batch_tokens, predicted.recomputed, predicted.offload, part, record)
    tokens = tokens or max(CPU_TOKENS, *lengths)
    return Choice(path, why, tokens, recomputed or 0, False, tokens if fused else None, None)


def _predicted(
    params: "Params",
    path: str,
    tokens: int | None,
    recomputed: int | None,
    lengths: Sequence[int],
    manifest: dict[str, Any],
    way: tuple[str, int],
) -> planner.Choice:
    """What the planner advises for this card, as it is now, and a way to train on so many of them."""
    import torch

    settings, cap = params.train, params.runtime.gpu_memory_gib
    parallel, ranks = way
    config = json.loads((base_folder(manifest) / "config.json").read_text(encoding="utf-8"))
    exchanged = ALONE
    if ranks > 1:
        card = planner_cards.named(torch.cuda.get_device_name(0), torch.cuda.mem_get_info()[1])
        method = Method(
            path, params.numerics.quantization, settings.rank, settings.target_modules, settings.optimizer, settings.deterministic
        )
        exchanged = exchange(parallel, ranks, installed_link(ranks, card), shape_of(config), method, card)
    return planner.choose(
        config=config,
        quantization=params.numerics.quantization,
        rank=settings.rank,
        target_modules=settings.target_modules,
        lengths=lengths,
        effective_batch=settings.effective_batch if parallel == "sequence" else -(-settings.effective_batch // ranks),
        optimizer=settings.optimizer,
        deterministic=settings.deterministic,
        available_bytes=torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(),
        cap_bytes=None if cap is None else round(cap * 2**30),
        card_name=torch.cuda.get_device_name(0),
        engine=path,
        batching=settings.batching,
        micro_batch_tokens=tokens,
        recompute=recomputed,
        launch_seconds=machine.launch_seconds(),
        exchange=exchanged,
    )


def told(choice: Choice, layers: int) -> str:
    """A choice in one line."""
    words = [f"the {choice.path} path"]
    if choice.why_plain is not None:
        words[0] += f" ({choice.why_plain})"
    words += [f"micro-batches of at most {choice.micro_batch_tokens:,} tokens", f"{choice.recomputed} of {layers} layers recomputed"]
    words += ["their inputs in host memory"] if choice.offload else []
    if choice.predicted is not None:
        peak, speed = choice.predicted["peak_bytes"], choice.predicted["tokens_per_second"]
        words.append(f"planned to peak at {peak / 2**30:.1f} GiB and to train {speed:,.0f} tokens a second")
    return ", ".join(words)


def fused_model(choice: Choice, model: "PeftModel", shards: "Shards | Zero | None" = None) -> "FusedModel | None":
    """The fused path over a model, whole or in shards; None where the plain one is chosen."""
    if choice.path == "plain":
        return None
    from stages.train.fused.model import FusedModel
    from stages.train.shards import Shards

    assert choice.mlp_tokens is not None
    made = FusedModel(model, None, choice.offload, choice.mlp_tokens, shards if isinstance(shards, Shards) else None)
    made.kept = made.layers - choice.recomputed
    return made


def remember(root: Path, shrunk: Sequence[Any], costs: Mapping[str, Any]) -> None:
    """Tells the planner what its advice came to, so that its next is better; not where the run had to leave it.

    Args:
        root: the folder with choice.json.
        shrunk: State.shrunk.
        costs: peak_gpu_bytes and tokens_per_second.
    """
    choice = Choice(**json.loads((root / FILE).read_text(encoding="utf-8")))
    if choice.predicted is None or shrunk or costs["peak_gpu_bytes"] is None:
        return
    import torch

    predicted = planner.Choice(**choice.predicted)
    planner.remember(torch.cuda.get_device_name(0), predicted, costs["peak_gpu_bytes"], costs["tokens_per_second"])
