"""The fused path on a CUDA device, in bfloat16 and over NF4, against the plain path and against both in float64. `make test-gpu` runs it.

A gradient in bfloat16 (8 bits) is one or two percent off the true one, on either path. So the truth is the same weights in float64 on
the CPU, and over all matrices the fused path may on the average be no more than a quarter further from it than the plain path. A single
matrix may be three times as far: where a gradient is a difference of large numbers (keys with a bias), rounding is luck. A wrong kernel
would be off by tens of percent.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from stages.train import adapter
from stages.train.batches import fill
from stages.train.fused import attention, ops
from stages.train.fused.model import FusedModel, why_not
from stages.train.plain import PlainModel
from tests import families, references, trainable
from tests.families import FUSED, differences, furthest, gradients, in_double, loss_alone, tuned

pytestmark = pytest.mark.gpu

LENGTHS = (23, 9, 117, 31, 2, 64)
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}


def base_on_gpu(family: str, quantization: str, folder: Path) -> tuple[Any, Any]:
    """A random base in bfloat16 or NF4 on the GPU, and one with the very same weights in float32 on the CPU."""
    truth = families.base(family).bfloat16()
    truth.save_pretrained(folder)
    quantized = BitsAndBytesConfig(**NF4) if quantization == "nf4" else None
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=quantized, device_map={"": 0}, attn_implementation="sdpa"
    )
    truth = truth.float()
    if quantized is not None:
        from bitsandbytes.functional import dequantize_4bit

        for name, module in model.named_modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                truth.get_submodule(name).weight.data = dequantize_4bit(module.weight.data, state).float().cpu()
    return model.eval().requires_grad_(False), truth


def pair(family: str, quantization: str, folder: Path, **changes: Any) -> tuple[Any, Any]:
    """The same adapter on a base on the GPU, and on its weights in float64 on the CPU."""
    model, truth = base_on_gpu(family, quantization, folder)
    train = families.settings(**changes)
    model, truth = tuned(model, train), tuned(truth, train)
    adapter.restore(model, adapter.copied(adapter.trainable(truth)))
    assert why_not(model, train, max(LENGTHS)) is None
    return model, in_double(truth)


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_fused_path_is_as_near_to_the_truth_as_the_plain_one(family: str, quantization: str, tmp_path: Path) -> None:
    model, truth = pair(family, quantization, tmp_path, rslora=family == "qwen3")
    rows = families.rows(LENGTHS)
    targets = sum(row.targets for row in rows)
    true_loss = loss_alone(truth, rows)
    true = gradients(truth, true_loss)
    plain = PlainModel(model, "bucket", torch.bfloat16, 0)
    plain_loss = plain.summed_loss(rows)
    off = abs(plain_loss.item() - true_loss.item()) / targets
    reference = differences(gradients(model, plain_loss), true)
    assert max(reference) < 0.2  # else it is no reference
    fused = FusedModel(model, None, False, 4096)
    for kept, offload, mlp_tokens in ((None, False, 4096), (0, False, 4096), (0, True, 100), (1, True, 7)):
        fused.kept, fused.offload, fused.mlp_tokens = fused.layers if kept is None else kept, offload, mlp_tokens
        loss = fused.summed_loss(rows)
        assert abs(loss.item() - true_loss.item()) / targets < 1.5 * off + 0.01
        found = differences(gradients(model, loss), true)
        assert sum(found) < 1.25 * sum(reference), (kept, offload, mlp_tokens)
        assert max(found) < 3 * max(reference), (kept, offload, mlp_tokens)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_recomputation_and_offload_change_only_the_order_of_sums(quantization: str, tmp_path: Path) -> None:
    model, _ = pair("llama", quantization, tmp_path)
    rows = families.rows(LENGTHS)
    fused = FusedModel(model, None, False, 4096)
    loss = fused.summed_loss(rows)
    kept = gradients(model, loss)
    for changes in ({"kept": 0}, {"kept": 1}, {"kept": 0, "offload": True}):
        for name, value in changes.items():
            setattr(fused, name, value)
        again = fused.summed_loss(rows)
        assert again.item() == loss.item(), changes  # the forward sums in one order
        assert furthest(gradients(model, again), kept) < 0.02, changes  # FlashAttention's backward does not


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_packed_rows_have_the_loss_and_the_gradients_of_each_alone_and_so_has_a_step_however_it_is_cut(
    quantization: str, tmp_path: Path
) -> None:
    model, _ = pair("qwen2", quantization, tmp_path)
    rows = families.rows(LENGTHS)
    fused = FusedModel(model, 0, False, 4096)
    together = fused.summed_loss(rows)
    expected = gradients(model, together)
    for limit in (130, 117):
        cut = fill(range(len(rows)), LENGTHS, limit, "pack", "cuda")
        losses = [fused.summed_loss([rows[row] for row in micro_batch]) for micro_batch in cut]
        total = torch.stack(losses).sum()
        assert total.item() == pytest.approx(together.item(), rel=2e-3)
        assert furthest(gradients(model, total), expected) < 0.04


@pytest.mark.parametrize("heads", [(4, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("lengths", [LENGTHS, (512, 512)], ids=str)
def test_attention_over_rows_end_to_end_is_masked_attention(lengths: tuple[int, ...], heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v = (torch.randn(tokens, count, 64, device="cuda", dtype=torch.bfloat16) for count in (heads[0], heads[1], heads[1]))
    grad = torch.randn_like(q)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32)
    cudnn = attention.cudnn_takes(lengths, 64, q.device)
    assert cudnn == (lengths is not LENGTHS and torch.cuda.get_device_capability()[0] == attention.HOPPER)
    place = attention.Rows(bounds, lengths, torch.empty(0), torch.empty(0), cudnn)
    out, rest = attention.forward(q, k, v, place, 0.2)
    found = [out, *attention.backward(grad, q, k, v, out, rest, place, 0.2)]
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (number[:, None] == number[None]) & torch.ones(tokens, tokens, dtype=torch.bool).tril()
    inputs = [tensor.cpu().double().transpose(0, 1).requires_grad_() for tensor in (q, k, v)]
    repeated = [inputs[0], *(tensor.repeat_interleave(heads[0] // heads[1], 0) for tensor in inputs[1:])]
    true = torch.nn.functional.scaled_dot_product_attention(*repeated, attn_mask=mask, scale=0.2)
    true.backward(grad.cpu().double().transpose(0, 1))
    for one, other in zip(found, [true, *(tensor.grad for tensor in inputs)], strict=True):
        assert other is not None
        other = other.transpose(0, 1).detach()
        assert float((one.cpu().double() - other).norm() / other.norm()) < 0.01  # bfloat16 rounds to 0.4 %


def test_the_kernels_compute_what_their_torch_references_do() -> None:
    torch.manual_seed(0)
    wide, weight = torch.randn(37, 96), torch.rand(48) + 0.5
    cos, sin = torch.randn(37, 8).repeat(1, 2), torch.randn(37, 8).repeat(1, 2)
    targets = torch.randint(0, 96, (37,))

    def results(device: str) -> list[torch.Tensor]:
        def fresh() -> torch.Tensor:
            return wide.to(device, torch.bfloat16)

        found = []
        scale = weight.to(device, torch.bfloat16)
        normed = torch.empty_like(fresh())
        inverse = ops.rms_norm(fresh(), scale, 1e-5, normed, 2)
        back = torch.empty_like(normed)
        ops.rms_norm_backward(fresh().flip(0), fresh(), scale, inverse, back, 2, residual=fresh())
        found += [normed, inverse, back]
        turned, joined = fresh(), fresh()
        angles = cos.to(device, torch.bfloat16), sin.to(device, torch.bfloat16)
        ops.rotate(turned, 4, *angles)
        q, k, v, _ = fresh().flip(0).unflatten(1, (6, 16)).split((3, 1, 1, 1), 1)
        ops.join(q, k, v, *angles, joined)
        found += [turned, joined]
        activated = torch.empty(37, 48, device=device, dtype=torch.bfloat16)
        ops.swiglu(fresh(), activated)
        again, pushed = torch.empty_like(activated), torch.empty_like(fresh())
        ops.swiglu_backward(activated.flip(0).contiguous(), fresh(), pushed, again)
        logits = fresh()
        losses = ops.cross_entropy(logits, targets.to(device), True)
        return [tensor.cpu().float() for tensor in (*found, activated, again, pushed, logits, losses)]

    for number, (one, other) in enumerate(zip(results("cuda"), results("cpu"), strict=True)):
        assert float((one - other).norm() / other.norm()) < 0.01, number


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_forty_steps_on_the_fused_path_go_as_on_the_plain_one(quantization: str, tmp_path: Path) -> None:
    courses = {}
    for kernels in ("plain", "fused"):
        train = families.settings(
            kernels=kernels, learning_rate=1e-2, effective_batch=4, micro_batch_tokens=256, epochs=20.0, max_steps=40, warmup_share=0.0
        )
        model, _ = base_on_gpu("llama", quantization, tmp_path / f"{kernels}-base")
        model = adapter.attach(model, train, [], seed=1)
        training = families.training(model, train, tmp_path / kernels, families.rows([*LENGTHS, 40, 50, 60, 70]))
        assert (training.fused is not None) == (kernels == "fused")
        training.fit()
        courses[kernels] = torch.tensor([point["loss"] for point in training.state.train])
    assert courses["plain"][-5:].mean() < courses["plain"][:5].mean() - 0.3
    difference = courses["fused"] - courses["plain"]
    assert difference.abs().mean() < 0.03  # nats a token: a logit near 4 is rounded by 0.016
    assert difference.mean().abs() < 0.01  # and no path learns less


def test_the_fused_path_in_bfloat16_trains_as_float32_on_a_cpu_was_written_down(tiny_base: Path, tmp_path: Path) -> None:
    written = references.read("course")
    train = trainable.training(tiny_base, tmp_path / "cpu", epochs=20.0, max_steps=20, learning_rate=1e-2, eval_every=10, kernels="fused")
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16, device_map={"": 0}).requires_grad_(False)
    model = adapter.attach(model, train.settings, [], seed=1)
    adapter.restore(model, adapter.copied(train.parameters))
    training = trainable.around(model, train.settings, tmp_path / "gpu", train.rows, train.validation)
    training.fit()
    found = [point["loss"] for point in training.state.train]
    assert found == pytest.approx(written["values"]["loss"], abs=0.05)
    assert training.state.validation[-1]["loss"] == pytest.approx(written["values"]["validation_loss"][-1], abs=0.03)
