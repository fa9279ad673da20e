"""The last norm, the output layer and the cross-entropy, some targets at a time. The logits of all targets never exist at once.

Its gradient is known as soon as the logits are, so it is computed in the forward and the logits are not computed twice.
"""

from typing import Any

import torch

from stages.train.fused import ops

CHUNK = 1024  # targets at a time: with 128,256 tokens of vocabulary 250 MiB of logits in bfloat16


class Head(torch.autograd.Function):
    """The summed cross-entropy of hidden states."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, norm: Any, weight: torch.Tensor, targets: torch.Tensor, grad: bool) -> torch.Tensor:
        """The loss.

        Args:
            ctx: autograd's.
            hidden: `[targets, hidden]`, of the last layer.
            norm: the model's last norm.
            weight: `[vocabulary, hidden]`, of the output layer.
            targets: `[targets] int64`.
            grad: whether a backward will follow.

        Returns:
            A scalar, float32 at least, in nats.
        """
        normed = torch.empty_like(hidden)
        inverse = ops.rms_norm(hidden, norm.weight, norm.variance_epsilon, normed)
        losses = []
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = normed[part] @ weight.t()
            losses.append(ops.cross_entropy(logits, targets[part], grad))
            if grad:
                torch.mm(logits, weight, out=normed[part])
        ctx.norm = norm
        ctx.save_for_backward(hidden, inverse, normed)
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """The gradient of hidden.

        Args:
            ctx: autograd's.
            *gradients: of the loss.

        Returns:
            One for each argument of forward.
        """
        hidden, inverse, normed_grad = ctx.saved_tensors
        out = torch.empty_like(hidden)
        ops.rms_norm_backward(normed_grad * gradients[0].to(normed_grad.dtype), hidden, ctx.norm.weight, inverse, out)
        return out, None, None, None, None
