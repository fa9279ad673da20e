"""Tiny random models of the families that the tests train, and their loss and gradients by transformers alone, row by row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from stages.core.batches import TokenRow
from stages.core.params import Train, load_params
from stages.train import adapter
from tests import trainable
from tests.tiny import ROOT

VOCABULARY = 160
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FUSED = ("llama", "mistral", "qwen2", "qwen3")
OTHERS = {"gemma2": {"sliding_window": 12, "query_pre_attn_scalar": 16}, "gemma3_text": {"sliding_window": 12}, "phi3": {}}


def settings(**changes: Any) -> Train:
    """The repository's own training parameters with a small adapter, changed."""
    return Train.model_validate({**load_params(ROOT / "params.yaml").train.model_dump(), "rank": 4, "alpha": 8, **changes})


def rows(lengths: Sequence[int], seed: int = 0) -> list[TokenRow]:
    """Rows of random tokens, of which about a third and always the last are trained."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, length in enumerate(lengths):
        trained = torch.rand(length, generator=generator) < 0.3
        trained[-1] = True
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        made.append(TokenRow(f"row{number}", ids.numpy(), trained.numpy()))
    return made


def base(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random base; biases, which are zero at first, and norms too are random, so that a forgotten one would be seen."""
    fields = {**SMALL, **OTHERS.get(family, {}), **changes}
    if family == "phi3":
        del fields["head_dim"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **fields)
    made = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager" if family == "gemma2" else "sdpa")
    for name, parameter in made.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, dtype=dtype)
        elif "embed" not in name:
            parameter.data *= 3  # attention far from uniform, gates far from linear
    return made.eval().requires_grad_(False)


def tuned(model: Any, train: Train) -> Any:
    """A base with an adapter of which B is random too, so that it matters and all gradients are more than zero."""
    model = adapter.attach(model, train, [], seed=1)
    torch.manual_seed(2)
    for name, parameter in adapter.trainable(model).items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    return model


def in_double(model: Any) -> Any:
    """Lets transformers' norms, which compute in float32 whatever they get, compute in what they get."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)
    return model.double()


def loss_alone(model: Any, micro_batch: Sequence[TokenRow]) -> torch.Tensor:
    """The summed cross-entropy, every row in a forward pass of its own, from all of its logits."""
    total = torch.zeros((), dtype=torch.float64)
    for row in micro_batch:
        ids = torch.from_numpy(row.input_ids)[None].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        chosen = torch.from_numpy(row.trained[1:]).to(model.device)
        total = total + cross_entropy(logits[chosen], ids[0, 1:][chosen], reduction="sum").cpu()
    return total


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of every trained parameter, which is cleared."""
    loss.backward()
    found = {}
    for name, parameter in adapter.trainable(model).items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.detach().cpu().double()
        parameter.grad = None
    return found


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[float]:
    """The difference of each parameter's gradients over the size of the other one, where that is not next to nothing itself."""
    assert one.keys() == other.keys()
    least = 1e-3 * max(float(tensor.norm()) for tensor in other.values())  # the gradient of a query is zero where there is one key
    return [float((one[name] - tensor).norm()) / max(float(tensor.norm()), least) for name, tensor in other.items()]


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest of the differences."""
    return max(differences(one, other))


def training(model: Any, train: Train, root: Any, train_rows: list[TokenRow]) -> Any:
    """A training around a model made here."""
    return trainable.around(model, train, root, train_rows, train_rows[:2])
