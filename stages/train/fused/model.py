"""The fast path of training: a PEFT model's loss and the gradients of its LoRA layers. In: model, rows. Out: a loss to call backward on.

It reads the modules of transformers and PEFT and changes none of their code; evaluation, saving and the plain path use the same model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from stages.core.batches import TokenRow, collate, sent
from stages.core.planner_shape import FUSED, window_of
from stages.train.fused.attention import Rows, cudnn_takes
from stages.train.fused.head import Head
from stages.train.fused.layer import DecoderLayer, Layer
from stages.train.fused.parked import Parked
from stages.train.neftune import noise
from stages.train.shards import Shards
from stages.train.slices import Slices

if TYPE_CHECKING:
    from peft import PeftModel

    from stages.core.params import Train

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def why_not(model: "PeftModel", settings: "Train", longest: int) -> str | None:
    """Why a model can't be trained on the fast path.

    Args:
        model: the base with its adapter.
        settings: params.yaml's train.
        longest: tokens of the longest row.

    Returns:
        A clause, or None where it can.
    """
    base: Any = model.get_base_model()
    config = base.config
    if config.model_type not in FUSED:
        return f"the fused kernels know {', '.join(FUSED)}, not {config.model_type}"
    if settings.dora or settings.dropout:
        return f"the fused kernels have no {'DoRA' if settings.dora else 'dropout'}"
    heads = {name for name, p in model.named_parameters() if p.requires_grad and not _is_inside(name)}
    if heads:
        return f"the fused kernels train LoRA inside the decoder layers only, not {min(heads)}"
    if config.hidden_act != "silu" or getattr(config, "attention_dropout", 0.0):
        return f"the fused kernels compute silu without attention dropout, not {config.hidden_act}"
    window = window_of(config.to_dict())
    if window is not None and window < longest:
        return f"the fused kernels attend to all tokens before, and the base only to {window}, fewer than the longest row's {longest}"
    if base.dtype is not torch.bfloat16 and base.device.type == "cuda":
        return f"FlashAttention computes in bfloat16, not {base.dtype}"
    if base.device.type != "cuda" and any(hasattr(p, "quant_state") for p in base.model.layers[0].parameters()):
        return "the fused kernels unpack NF4 on CUDA only"
    if base.device.type == "cuda" and torch.cuda.get_device_capability()[0] < 8:
        return "FlashAttention needs a card of compute capability 8.0 (Ampere) or newer"
    return _why_not_layer(base.model.layers[0])


def _is_inside(name: str) -> bool:
    return ".layers." in name and any(f".{projection}.lora_" in name for projection in PROJECTIONS)


def _why_not_layer(layer: Any) -> str | None:
    """Why a layer's linear layers or heads are not such as the kernels read; every layer of a model is alike."""
    projections = [getattr(part, name) for part in (layer.self_attn, layer.mlp) for name in PROJECTIONS if hasattr(part, name)]
    for projection in projections:
        linear = getattr(projection, "base_layer", projection)
        state = getattr(linear.weight, "quant_state", None)
        if state is not None and not (
            state.quant_type == "nf4" and state.nested and state.blocksize == 64 and linear.in_features % 64 == 0
        ):
            return "the fused kernels unpack double-quantised NF4 with 64 weights a block"
        if state is None and not linear.weight.is_floating_point():
            return f"the fused kernels know NF4 and floating-point weights, not {type(linear).__name__}"
    plain = [layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    if any(getattr(linear, "base_layer", linear).bias is not None for linear in plain):
        return "the fused kernels know biases of queries, keys and values only"
    if layer.self_attn.head_dim % 8 or layer.self_attn.head_dim > 256:
        return f"FlashAttention has heads of up to 256 columns in steps of 8, not {layer.self_attn.head_dim}"
    return None


class FusedModel:
    """A PEFT model on the fast path.

    Attributes:
        decoder: its layers, as they are computed.
        layers: how many they are.
        kept: how many of them, the last ones, keep their activations; None keeps all. The others recompute them.
        offload: whether the inputs of recomputed layers wait in host memory.
        mlp_tokens: tokens that an MLP takes at a time.
        neftune: NEFTune's alpha (arXiv 2310.05914), or None.
    """

    decoder: list[Layer]
    layers: int
    kept: int
    offload: bool
    mlp_tokens: int
    neftune: float | None

    def __init__(self, model: "PeftModel", kept: int | None, offload: bool, mlp_tokens: int, shards: Shards | None = None) -> None:
        """Reads the model's modules; `why_not` says whether it can.

        Args:
            model: the base with its adapter.
            kept: as the attribute.
            offload: as the attribute.
            mlp_tokens: as the attribute.
            shards: that hold the layers' weights in part, or None.
        """
        base: Any = model.get_base_model()
        self._base, self._shards = base, shards
        self.decoder = [Layer(module, number, base.dtype, shards) for number, module in enumerate(base.model.layers)]
        self.layers = len(self.decoder)
        self.kept = self.layers if kept is None else kept
        self.offload = offload
        self.mlp_tokens = mlp_tokens
        self.neftune = None
        self._parked = Parked()

    def summed_loss(self, rows: Sequence[TokenRow], slices: Slices | None = None) -> torch.Tensor:
        """The cross-entropy summed over the targets of one micro-batch.

        Args:
            rows: the micro-batch; they are laid end to end.
            slices: where the ranks have one each, and the loss is of this one's targets; None computes all.

        Returns:
            A scalar in nats, float32 at least; without torch.no_grad its backward gives the gradients of the adapter.
        """
        device = self._base.device
        batch = collate(rows, "pack", 0)
        lengths = tuple(len(row.input_ids) for row in rows)
        part = batch
        if slices is not None:
            slices.lay(lengths, True)
            part = slices.part(batch)
        grad = torch.is_grad_enabled()
        split = self._shards is not None and self._shards.splits_ends
        with torch.no_grad():
            x = self._base.get_input_embeddings()(batch.input_ids if split else sent(batch.input_ids, device))[0]
        if grad and self.neftune is not None:
            pieces = zip(rows, x.split(lengths), strict=True)
            x = torch.cat([piece + noise(row, self.neftune, piece) for row, piece in pieces])
        if slices is not None:
            # the first layer's gradient is wanted too, so that every layer exchanges alike
            x = slices.own(x).requires_grad_(grad)
            lengths = slices.lengths or lengths
        assert part.position_ids is not None
        with torch.no_grad():
            cos, sin = self._base.model.rotary_emb(x[None], sent(part.position_ids, device))
        bounds = sent(torch.tensor([0, *lengths]).cumsum(0).int(), device)
        cudnn = cudnn_takes(lengths, cos.shape[-1], bounds.device)
        place = Rows(bounds, lengths, cos[0].contiguous(), sin[0].contiguous(), cudnn, slices)
        self._parked.forget()
        for layer in self.decoder:
            keep = grad and layer.number >= self.layers - self.kept
            parked = self._parked if grad and self.offload and not keep else None
            x = DecoderLayer.apply(x, layer, place, keep, self.mlp_tokens, parked, *layer.parameters)
        if len(part.columns) < len(x):
            x = x[sent(part.columns, device)]
        weight = self._shards.head() if self._shards is not None and split else self._base.get_output_embeddings().weight
        if not len(x):  # a slice without a target, of whose tokens others are predicted
            return x.sum(dtype=torch.promote_types(x.dtype, torch.float32))
        return Head.apply(x, self._base.model.norm, weight, sent(part.targets[0], device), grad)
