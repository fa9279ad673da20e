"""A decoder layer of the Llama family (Llama, Mistral, Qwen2, Qwen3): forward, and a backward that recomputes what was not kept.

The layer's input is always kept. Between recomputation and backward a weight is unpacked once, the MLP's last product is never
recomputed, and nothing that an elementwise operation gives is kept at all.
"""

from dataclasses import dataclass
from typing import Any

import torch

from stages.train.fused import attention, ops
from stages.train.fused.attention import Rows
from stages.train.fused.linear import Group, Matrix
from stages.train.fused.parked import Parked
from stages.train.shards import Shards


@dataclass(slots=True)
class Attended:
    """What attention gave, and what its backward needs.

    Attributes:
        out: `[tokens, heads, head_dim]`.
        attended: the same as attention gave it; of slices, all tokens of this rank's heads, as are q, k and v.
        qkv: `[tokens, q + 2 kv]`; queries and keys are as projected where the model norms them, else as turned. Of slices q, where the
            model does not norm them.
        q: `[tokens, heads, head_dim]`, turned.
        k: `[tokens, kv_heads, head_dim]`, turned.
        v: `[tokens, kv_heads, head_dim]`.
        inverse: 1 / root mean square of queries and of keys, or nothing.
        rest: of FlashAttention.
    """

    out: torch.Tensor
    attended: torch.Tensor
    qkv: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    inverse: list[torch.Tensor]
    rest: list[torch.Tensor]


class Layer:
    """One decoder layer, read from transformers' module with PEFT's layers in it.

    Attributes:
        parameters: the adapter's, in the order in which the backward gives gradients.
    """

    parameters: list[torch.nn.Parameter]

    def __init__(self, module: Any, number: int, dtype: torch.dtype, shards: Shards | None = None) -> None:
        """Takes the layer's modules.

        Args:
            module: the decoder layer.
            number: its place in the model, from 0.
            dtype: of the activations.
            shards: that hold its weights in part, or None.
        """
        attend, mlp = module.self_attn, module.mlp
        self.number, self.shards = number, shards
        lent = shards is not None
        self.head_dim: int = attend.head_dim
        self.scale: float = attend.scaling
        self.qkv = Group([attend.q_proj, attend.k_proj, attend.v_proj], dtype, lent)
        self.output = Group([attend.o_proj], dtype, lent)
        self.gate_up = Group([mlp.gate_proj, mlp.up_proj], dtype, lent)
        self.down = Group([mlp.down_proj], dtype, lent)
        self.first_norm, self.second_norm = module.input_layernorm, module.post_attention_layernorm
        self.q_norm: Any = getattr(attend, "q_norm", None)  # Qwen3's
        self.k_norm: Any = getattr(attend, "k_norm", None)
        self.turned = self.qkv.rows[1].stop  # columns of qkv that are queries and keys
        self.parameters = [p for group in (self.qkv, self.output, self.gate_up, self.down) for p in group.parameters]

    def normed(self, norm: Any, x: torch.Tensor, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of x in a buffer of the group, and 1 / root mean square."""
        out = group.room(x, group.width)
        return out, ops.rms_norm(x, norm.weight, norm.variance_epsilon, out[:, : group.width])

    def attend(self, x: torch.Tensor, rows: Rows, matrix: Matrix) -> Attended:
        """Norm, projections, rotary embedding and attention.

        Args:
            x: `[tokens, hidden]`.
            rows: where the rows lie.
            matrix: of qkv.

        Returns:
            What came of it.
        """
        n, _ = self.normed(self.first_norm, x, self.qkv)
        qkv = self.qkv.forward(matrix, n, x.new_empty(len(x), self.qkv.height))
        del n
        turned: torch.Tensor = qkv
        inverse: list[torch.Tensor] = []
        if self.q_norm is not None:
            turned = qkv.new_empty(len(qkv), self.turned)
            for norm, part in ((self.q_norm, self.qkv.rows[0]), (self.k_norm, self.qkv.rows[1])):
                inverse.append(ops.rms_norm(qkv[:, part], norm.weight, norm.variance_epsilon, turned[:, part], self.count(part)))
        ops.rotate(turned, self.turned // self.head_dim, rows.cos, rows.sin)
        views = [source[:, part] for source, part in zip((turned, turned, qkv), self.qkv.rows, strict=True)]
        q, k, v = (view.unflatten(1, (-1, self.head_dim)) for view in views)
        slices = rows.slices
        if slices is not None:
            q, k, v = slices.to_heads(q, slices.repeated(k), slices.repeated(v))
            qkv = qkv if self.q_norm is not None else q  # which is then done with
        attended, rest = attention.forward(q, k, v, rows, self.scale)
        out = attended if slices is None else slices.to_tokens([attended])[0]
        return Attended(out, attended, qkv, q, k, v, inverse, rest)

    def attend_backward(self, grad: torch.Tensor, attended: Attended, rows: Rows) -> torch.Tensor:
        """The gradient of qkv in a buffer of its group.

        Args:
            grad: of the attention's result, `[tokens, heads * head_dim]`; of slices as attention gave it.
            attended: as `attend` gave it.
            rows: where the rows lie.

        Returns:
            `[tokens, height + ranks]` of qkv; the last columns are not filled.
        """
        a = attended
        q, k, v = attention.backward(grad.view_as(a.attended), a.q, a.k, a.v, a.attended, a.rest, rows, self.scale)
        if rows.slices is not None:
            gradients = [q, k, v]
            del q, k, v
            q, k, v = rows.slices.to_tokens(gradients)
            k, v = rows.slices.summed(k), rows.slices.summed(v)
        wide = self.qkv.room(q, self.qkv.height)
        ops.join(q, k, v, rows.cos, rows.sin, wide)
        for norm, part, inverse in zip((self.q_norm, self.k_norm), self.qkv.rows[:2], a.inverse, strict=False):
            ops.rms_norm_backward(wide[:, part], a.qkv[:, part], norm.weight, inverse, wide[:, part], self.count(part))
        return wide

    def count(self, part: slice) -> int:
        """Heads in some columns of qkv."""
        return (part.stop - part.start) // self.head_dim

    def middle(self, x: torch.Tensor, attended: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """x plus the output projection of the attention."""
        wide = self.output.room(x, self.output.width)
        wide[:, : self.output.width] = attended.flatten(1)
        return self.output.add(matrix, wide, x, torch.empty_like(x))

    def gates(self, mid: torch.Tensor, matrix: Matrix, out: torch.Tensor) -> None:
        """gate and up of some tokens, into out `[tokens, 2 intermediate]`."""
        n, _ = self.normed(self.second_norm, mid, self.gate_up)
        self.gate_up.forward(matrix, n, out)

    def mlp(self, mid: torch.Tensor, chunk: int, keep: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """mid plus the MLP, some tokens at a time.

        Args:
            mid: `[tokens, hidden]`.
            chunk: tokens at a time.
            keep: whether what the backward needs is returned.

        Returns:
            `[tokens, hidden]`; and gate and up, and down's thin product with A, or None.
        """
        out = torch.empty_like(mid)
        gate_up_matrix = self.gate_up.matrix()
        kept = mid.new_empty(len(mid), self.gate_up.height) if keep else None
        thin = mid.new_empty(len(mid), self.down.ranks) if keep else None
        down_matrix = self.down.matrix()
        for start in range(0, len(mid), chunk):
            part = slice(start, start + chunk)
            gate_up = mid.new_empty(len(mid[part]), self.gate_up.height) if kept is None else kept[part]
            self.gates(mid[part], gate_up_matrix, gate_up)
            product = self.down.room(gate_up, self.down.width)
            ops.swiglu(gate_up, product[:, : self.down.width])
            self.down.add(down_matrix, product, mid[part], out[part])
            if thin is not None:
                thin[part] = product[:, self.down.width :]
        return out, kept, thin

    def mlp_backward(
        self, grad: torch.Tensor, mid: torch.Tensor, gate_up: torch.Tensor | None, thin: torch.Tensor | None, chunk: int, out: torch.Tensor
    ) -> list[torch.Tensor]:
        """The backward of `mlp`.

        Args:
            grad: of its result, `[tokens, hidden]`.
            mid: its input.
            gate_up: as `mlp` returned them.
            thin: likewise.
            chunk: tokens at a time.
            out: `[tokens, hidden]`; the gradient of mid.

        Returns:
            The gradients of the parameters of gate_up and down.
        """
        gate_up_matrix, down_matrix = self.gate_up.matrix(), self.down.matrix()
        sums: list[torch.Tensor] = []
        for start in range(0, len(mid), chunk):
            part = slice(start, start + chunk)
            n, inverse = self.normed(self.second_norm, mid[part], self.gate_up)
            gates = self.gate_up.room(n, self.gate_up.height)
            inner = gates[:, : self.gate_up.height]
            if gate_up is None:
                self.gate_up.forward(gate_up_matrix, n, inner)
            else:
                self.gate_up.widen(gate_up_matrix, n)
            wide = self.down.room(n, self.down.height)
            wide[:, : self.down.height] = grad[part]
            product_grad = self.down.backward(down_matrix, wide)
            product = self.down.room(n, self.down.width)
            ops.swiglu_backward(product_grad, inner if gate_up is None else gate_up[part], inner, product[:, : self.down.width])
            del product_grad
            if thin is None:
                self.down.widen(down_matrix, product)
            else:
                product[:, self.down.width :] = thin[part]
            down = self.down.gradients(wide, product)
            del product, wide
            normed_grad = self.gate_up.backward(gate_up_matrix, gates)
            found = [*self.gate_up.gradients(gates, n), *down]
            sums = [total.add_(more) for total, more in zip(sums, found, strict=True)] if sums else found
            norm = self.second_norm
            ops.rms_norm_backward(normed_grad, mid[part], norm.weight, inverse, out[part], residual=grad[part])
        return sums


class DecoderLayer(torch.autograd.Function):
    """`Layer` for autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, rows: Rows, keep: bool, chunk: int, parked: Parked | None, *_: torch.nn.Parameter
    ) -> torch.Tensor:
        """The layer's output.

        Args:
            ctx: autograd's.
            x: `[tokens, hidden]`.
            layer: whose forward it is.
            rows: where the rows lie.
            keep: whether the activations are kept for the backward.
            chunk: tokens of the MLP at a time.
            parked: where x waits for the backward if not on the device, or None.

        Returns:
            `[tokens, hidden]`.
        """
        ctx.layer, ctx.rows, ctx.keep, ctx.chunk, ctx.parked = layer, rows, keep, chunk, parked
        if layer.shards is not None:
            layer.shards.need(layer.number, 1)
        attended = layer.attend(x, rows, layer.qkv.matrix())
        mid = layer.middle(x, attended.out, layer.output.matrix())
        if keep:
            out, gate_up, thin = layer.mlp(mid, chunk, True)
            a = attended
            ctx.save_for_backward(x, mid, gate_up, thin, a.out, a.attended, a.qkv, a.q, a.k, a.v, *a.inverse, *a.rest)
            return out
        del attended
        if parked is None:
            ctx.save_for_backward(x)
        else:
            parked.put(layer.number, x)
        return layer.mlp(mid, chunk, False)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """The gradients of x and of the adapter's parameters.

        Args:
            ctx: autograd's.
            *gradients: of the output, `[tokens, hidden]`.

        Returns:
            One for each argument of forward.
        """
        layer, rows = ctx.layer, ctx.rows
        (grad,) = gradients
        if layer.shards is not None:
            layer.shards.need(layer.number, -1)
        if ctx.keep:
            x, mid, gate_up, thin, out, before, qkv, q, k, v, *rest = ctx.saved_tensors
            norms = 0 if layer.q_norm is None else 2
            attended = Attended(out, before, qkv, q, k, v, rest[:norms], rest[norms:])
            del out, before, qkv, q, k, v, rest
        else:
            x = ctx.saved_tensors[0] if ctx.parked is None else ctx.parked.take(layer.number)
            attended = layer.attend(x, rows, layer.qkv.matrix())
            mid, gate_up, thin = layer.middle(x, attended.out, layer.output.matrix()), None, None
        hidden = x.shape[1]

        wide = layer.output.room(x, hidden)
        mid_grad = wide[:, :hidden]
        found = layer.mlp_backward(grad, mid, gate_up, thin, ctx.chunk, mid_grad)
        del mid, gate_up, thin
        matrix = layer.output.matrix()  # laid out anew: it takes less time than the MLP's backward has use for its memory
        attended_grad = layer.output.backward(matrix, wide)
        inputs = layer.output.room(x, layer.output.width)
        inputs[:, : layer.output.width] = attended.out.flatten(1)
        layer.output.widen(matrix, inputs)
        found = [*layer.output.gradients(wide, inputs), *found]
        del inputs
        attended.out = attended.attended  # of slices the memory of one of the two is free from here on, and of the gradient's
        if rows.slices is not None:
            (attended_grad,) = rows.slices.to_heads(attended_grad.unflatten(1, (-1, layer.head_dim)))
        qkv_grad = layer.attend_backward(attended_grad, attended, rows)
        del attended, attended_grad
        n, inverse = layer.normed(layer.first_norm, x, layer.qkv)
        matrix = layer.qkv.matrix()
        layer.qkv.widen(matrix, n)
        x_grad = None
        if ctx.needs_input_grad[0]:
            normed_grad = layer.qkv.backward(matrix, qkv_grad)
            x_grad = torch.empty_like(x)
            ops.rms_norm_backward(normed_grad, x, layer.first_norm.weight, inverse, x_grad, residual=mid_grad)
        else:
            layer.qkv.narrow(matrix, qkv_grad)
        return (x_grad, None, None, None, None, None, *layer.qkv.gradients(qkv_grad, n), *found)
