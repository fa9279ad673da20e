"""What must hold before a training starts: the base fits, runs are repeatable, packing and kernels change nothing. In: a Training."""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stages.core.batches import TokenRow, collate
from stages.core.errors import UserError
from stages.train import adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from stages.train.sft import Training

PACKING_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # nats a target, or of the loss where that is more: bfloat16 rounds large logits
GRADIENT_TOLERANCE = {"float32": 1e-2, "bfloat16": 3e-1}  # of each LoRA matrix: norm of the difference over the norm
PROBE_TOKENS = 256  # of a row are enough to compare two ways to compute
PROBE_B = 0.02  # standard deviation of LoRA's B in the comparison: at its initial zero LoRA's A would have no gradient


def check_base(base: "PreTrainedModel") -> None:
    """Stops for an architecture that cannot leave out the logits nobody learns from."""
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        raise UserError(f"{type(base).__name__} of the base is no causal language model that train knows; choose another base")


def probe_logits(model: Any, row: TokenRow, device: str) -> "torch.Tensor":
    """The logits at a row's targets, `[targets, vocabulary] float32` on the CPU."""
    import torch

    batch = collate([row], "bucket", 0)
    model.eval()
    with torch.no_grad():
        out = model(input_ids=batch.input_ids.to(device), logits_to_keep=batch.columns.to(device), use_cache=False)
    return out.logits[0].float().cpu()


def probes(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The two shortest rows, cut to what lies before and around their last target."""
    found = []
    for row in sorted(rows, key=lambda row: len(row.input_ids))[:2]:
        end = int(row.trained.nonzero()[0][-1]) + 1
        start = max(0, end - PROBE_TOKENS)
        found.append(TokenRow(row.id, row.input_ids[start:end], row.trained[start:end]))
    return found


def settle_determinism(training: "Training") -> bool:
    """Holds PyTorch to kernels that give equal bits run to run, unless the base has an operation without one.

    On a GPU train.deterministic can forgo it, and rows packed on the plain path are left out: there the deterministic backward of masked
    attention makes training four times slower.

    Args:
        training: before its first step.

    Returns:
        Whether all is deterministic.

    Raises:
        RuntimeError: the trial step failed for another reason than a kernel without a deterministic form.
    """
    import torch

    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # or every empty tensor is filled
    packed_plain = training.fused is None and training.batching == "pack"
    if training.device == "cuda" and (packed_plain or not training.settings.deterministic):
        return False
    torch.use_deterministic_algorithms(True)
    training.ready("train", training.state.step + 1)
    try:
        training.engine.summed_loss(probes(training.rows)).backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        sys.stderr.write(f"train: runs of equal inputs may differ in the last bits: {str(error).splitlines()[0]}\n")
        torch.use_deterministic_algorithms(True, warn_only=True)
        return False
    finally:
        training.optimizer.zero_grad(set_to_none=True)
    return True


def check_packing(training: "Training") -> None:
    """Stops where the base lets packed rows see each other: the loss of two rows end to end must be that of each alone.

    Args:
        training: on the plain path, before its first step, or where it goes on.

    Raises:
        UserError: the losses differ.
    """
    import torch

    pair = probes(training.rows)
    training.model.eval()
    with torch.no_grad():
        packed = training.plain.summed_loss(pair, "pack").item()
        alone = sum(training.plain.summed_loss([row], "bucket").item() for row in pair)
    difference = abs(packed - alone) / max(alone, sum(row.targets for row in pair))
    if difference > PACKING_TOLERANCE[_name(training.plain.dtype)]:
        raise UserError(
            f"train.batching is pack, but the base does not keep packed rows apart (their loss is off by {difference:.2g} of itself); "
            f"set train.batching: bucket"
        )


def check_kernels(training: "Training") -> dict[str, float]:
    """Stops where the fused kernels compute something else than the plain path, on two short rows laid end to end and each alone.

    Args:
        training: on the fused path, before its first step, or where it goes on.

    Returns:
        `loss`: the difference of the losses in nats a target, or over the loss where that is above a nat a target; `gradient`: the
        largest of the differences of a LoRA matrix's gradient over its norm.

    Raises:
        UserError: they do.
    """
    assert training.fused is not None
    pair = probes(training.rows)
    training.ready("train", training.state.step + 1)
    training.plain.kept = 0
    training.fused.neftune = None
    with _awake(training):
        fused, one = _loss_and_gradients(training, training.fused.summed_loss(pair))
        loss, two = _loss_and_gradients(training, sum(training.plain.summed_loss([row], "bucket") for row in pair))
    norms = {name: float(tensor.norm()) for name, tensor in two.items()}
    # rounding comes from the large gradients, so it is all that a matrix with next to none has
    least = 5e-2 * max(norms.values())
    found = {
        "loss": abs(fused - loss) / max(loss, sum(row.targets for row in pair)),
        "gradient": max(float((one[name] - tensor).norm()) / max(norms[name], least) for name, tensor in two.items()),
    }
    dtype = _name(training.plain.dtype)
    # written so that a NaN is a difference
    if not (found["loss"] <= PACKING_TOLERANCE[dtype] and found["gradient"] <= GRADIENT_TOLERANCE[dtype]):
        raise UserError(
            f"the fused kernels and the plain path differ on this base (by {found['loss']:.2g} of the loss, and a LoRA gradient by "
            f"{found['gradient']:.2g} of its size); set train.kernels: plain"
        )
    return found


@contextlib.contextmanager
def _awake(training: "Training") -> Iterator[None]:
    """Gives LoRA's B random values until the block ends, from a seed of its own."""
    import torch

    saved = adapter.copied(training.parameters)
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for name, parameter in training.parameters.items():
                if ".lora_B." in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * PROBE_B)
        yield
    finally:
        training.optimizer.zero_grad(set_to_none=True)
        adapter.restore(training.model, saved)


def _loss_and_gradients(training: "Training", loss: Any) -> tuple[float, adapter.Tensors]:
    """A loss as a number, and its gradient by the parameter's name on the CPU."""
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: parameter.grad.float().cpu() for name, parameter in training.parameters.items() if parameter.grad is not None}
    return loss.item(), found


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
