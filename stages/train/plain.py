"""The plain path of training, and the reference: transformers and PEFT as they are. In: model, rows. Out: a loss to call backward on."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.core.batches import Batch, TokenRow, collate, sent
from stages.core.streaming import decoder_layers
from stages.train.neftune import noise

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from stages.train.slices import Slices


class PlainModel:
    """A PEFT model on the plain path.

    Attributes:
        model: the base with its adapter.
        batching: bucket | pack.
        device: cpu or cuda.
        dtype: of the base's activations.
        pad: the padding token.
        layers: how many decoder layers it has.
        neftune: NEFTune's alpha (arXiv 2310.05914), or None.
    """

    model: "PeftModel"
    batching: str
    device: str
    dtype: "torch.dtype"
    pad: int
    layers: int
    neftune: float | None

    def __init__(self, model: "PeftModel", batching: str, dtype: "torch.dtype", pad: int) -> None:
        """Finds the decoder layers and stands at the embedding, for NEFTune.

        Args:
            model: the base with its adapter.
            batching: bucket | pack.
            dtype: of the base's activations.
            pad: the padding token.
        """
        from torch.utils.checkpoint import checkpoint

        from stages.train.dropout import Pass, by_row

        self.model, self.batching, self.dtype, self.pad = model, batching, dtype, pad
        self.device = model.device.type
        self.neftune = None
        base: Any = model.get_base_model()
        self._decoder: list[Any] = decoder_layers(base)
        for layer in self._decoder:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        self.layers = self._kept = len(self._decoder)
        self._of_rows = False  # whether what is embedded are the rows of a loss
        base.get_input_embeddings().register_forward_hook(self._add_noise)
        self.now = Pass()  # which the layers computed again in the backward ask for too
        by_row(model, self.now)

    @property
    def kept(self) -> int:
        """How many layers, the last ones, keep their activations; the others compute them again."""
        return self._kept

    @kept.setter
    def kept(self, kept: int) -> None:
        self._kept = kept
        for number, layer in enumerate(self._decoder):
            layer.gradient_checkpointing = number < self.layers - kept

    def summed_loss(self, rows: Sequence[TokenRow], batching: str | None = None, slices: "Slices | None" = None) -> "torch.Tensor":
        """The cross-entropy summed over the targets of one micro-batch, in nats.

        Args:
            rows: the micro-batch.
            batching: bucket | pack; None takes the model's own.
            slices: where the ranks have one each, and the loss is of this one's targets; None computes all.

        Returns:
            A scalar in float32.
        """
        import torch

        batch = collate(rows, batching or self.batching, self.pad)
        packed = batch.position_ids is not None
        if slices is not None:
            slices.lay([len(row.input_ids) for row in rows], packed)
            batch = slices.part(batch)
        self.now.rows, self.now.packed, self.now.columns, self.now.slices = rows, packed, batch.columns, slices
        self._of_rows = True
        logits = self.logits(batch, slices)
        self._of_rows = False
        targets = sent(batch.targets, self.model.device)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    def logits(self, batch: Batch, slices: "Slices | None" = None) -> "torch.Tensor":
        """The logits in the batch's columns, `[rows, kept, vocabulary] float32`."""
        import torch

        # a mask of four dimensions is one that transformers passes on: none is made, and slices need none
        given: dict[str, Any] = {} if slices is None else {"slices": slices, "attention_mask": torch.empty(1, 1, 1, 1)}
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            out = self.model(
                input_ids=sent(batch.input_ids, self.model.device),
                position_ids=None if batch.position_ids is None else sent(batch.position_ids, self.model.device),
                logits_to_keep=sent(batch.columns, self.model.device),
                use_cache=False,
                **given,
            )
        return out.logits.float()

    def _add_noise(self, module: Any, inputs: Any, embedded: "torch.Tensor") -> "torch.Tensor | None":
        """The embeddings of a training's rows with NEFTune's noise on them; padding has none."""
        import torch

        if not self._of_rows:
            return None
        slices = self.now.slices
        if slices is not None:  # the first layer's gradient is wanted too, so that every layer exchanges alike
            embedded = embedded.requires_grad_(torch.is_grad_enabled())
        if self.neftune is None:
            return embedded
        places = self.now.places()
        added = embedded.new_zeros(len(embedded), max(start + length for _, start, length in places), embedded.shape[2])
        for row, (line, start, length) in zip(self.now.rows, places, strict=True):
            place = added[line, start : start + length]
            place.copy_(noise(row, self.neftune, place))
        return embedded + (added if slices is None else slices.own(added, 1))
