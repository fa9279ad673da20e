"""Linear layers in oneDNN's own layout, laid out once: on a CPU in float32 about a sixth of an evaluation's work less.

In: a loaded model. Out: the same model with the same weights; a sum is taken in another order than in PyTorch's own layers, which are
MKL's, so results differ by rounding. The gain is greatest where a pass has few tokens or a layer many outputs.
"""

import torch

TOKENS = 1024  # of a pass: what oneDNN chooses the layout for


class Prepacked(torch.nn.Module):
    """A linear layer that passes no gradient on, its weight in oneDNN's layout."""

    def __init__(self, layer: torch.nn.Linear, keep: bool) -> None:
        """Packs a layer.

        Args:
            layer: in float32 on a CPU.
            keep: whether it holds its plain weight as well.
        """
        super().__init__()
        self.bias = layer.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), TOKENS)  # as torch.compile does it
        if keep:
            self.weight = layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result


def prepack(model: torch.nn.Module) -> None:
    """Packs every linear layer of a model that is on a CPU in float32, but an adapter's own, which are small; else does nothing.

    The plain weights are let go, so that no memory is taken twice, but for the output layer's, which the embedding often shares, and all
    those that DoRA's adapters ask for their norm.

    Args:
        model: a model of transformers, or PEFT's around it; changed in place.
    """
    if not torch.backends.mkldnn.is_available():
        return
    head = model.get_output_embeddings()  # type: ignore[operator]
    dora = any("lora_magnitude_vector." in path for path, _ in model.named_modules())
    for path, parent in list(model.named_modules()):
        for name, layer in list(parent.named_children()):
            plain = type(layer) is torch.nn.Linear and "lora_" not in path
            if plain and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
                setattr(parent, name, Prepacked(layer, keep=dora or layer is head))
