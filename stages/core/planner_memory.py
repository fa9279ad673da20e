"""How much of the GPU a training takes, from what each engine keeps. In: shape, method, load. Out: bytes by part.

First principles give every term its size; `planner_constants.json` has the factors, near one, that measurements gave (docs/planner.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.core.planner_shape import Shape

BF16, FLOAT32 = 2, 4
# 4 bits a weight, one byte of scale for 64 of them, and for 256 scales one float32 (arXiv 2305.14314, section 3)
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
HEAD_TOKENS = 1024  # targets of one piece of the fused engine's loss
# bytes of optimizer state for each trained parameter: two float32, or two bytes with a float32 for 256 of each
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 0.0}


@dataclass(frozen=True, slots=True)
class Method:
    """What is trained, and by which engine.

    Attributes:
        engine: fused | plain.
        quantization: nf4 | none.
        rank: of the LoRA.
        target_modules: train.target_modules.
        optimizer: train.optimizer.
        deterministic: train.deterministic.
    """

    engine: str
    quantization: str
    rank: int
    target_modules: str | Sequence[str]
    optimizer: str
    deterministic: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What one pass through the model carries at most.

    Attributes:
        tokens: of the micro-batch, padding included.
        recomputed: layers whose activations are computed again in the backward.
        offload: whether the inputs of those wait in host memory.
        mlp_tokens: tokens of the MLP at a time (fused engine).
        targets: tokens of the micro-batch that have logits.
    """

    tokens: int
    recomputed: int
    offload: bool
    mlp_tokens: int
    targets: int


def held_bytes(shape: Shape, method: Method) -> dict[str, int]:
    """What lies on the GPU from the first step to the last: weights, adapter, its gradients, optimizer state."""
    weights = shape.layers * shape.layer_weights * (NF4 if method.quantization == "nf4" else BF16)
    norms = (2 * shape.layers + 1) * shape.hidden * BF16
    trained = shape.adapter_parameters(method.rank, method.target_modules)
    return {
        "base": int(weights + norms),
        "embeddings": shape.embedding_weights * BF16,
        "adapter": trained * 2 * FLOAT32,
        "optimizer": int(trained * OPTIMIZER_BYTES[method.optimizer]),
    }


def pass_bytes(shape: Shape, method: Method, load: Load) -> dict[str, float]:
    """The largest sets of a forward and backward pass, before calibration.

    Args:
        shape: the model's.
        method: of training.
        load: of the largest micro-batch.

    Returns:
        `inputs` (of recomputed layers), `kept` (activations of the others), `working` (of one layer's backward), `chunk` (of its MLP),
        `unpacked` (weights of one layer in bfloat16), `head` (final hidden states and logits). `head` and the three before it are
        never there at once.
    """
    tokens, d, q, kv, f = load.tokens, shape.hidden, shape.q, shape.kv, shape.inner
    kept_layers = shape.layers - load.recomputed
    # three inputs are on the device while they travel
    inputs = (min(3, load.recomputed) if load.offload else load.recomputed) * tokens * d * BF16
    nf4 = method.quantization == "nf4"
    if method.engine == "fused":
        kept = tokens * ((2 * d + 2 * q + 2 * kv + 2 * f) * BF16 + shape.heads * FLOAT32)
        working = tokens * (5 * d + 3 * q + 4 * kv) * BF16
        chunk = min(tokens, load.mlp_tokens) * (4 * f + 3 * d) * BF16
        unpacked = shape.layer_weights * BF16 if nf4 else 0
        head = 3 * tokens * d * BF16 + min(load.targets, HEAD_TOKENS) * shape.vocabulary * BF16
    else:
        kept = tokens * plain_kept_bytes(shape, nf4)
        # a layer computed again is whole for a moment; beside it are the gradients of its widest part, once in float32 for LoRA
        working = (kept if load.recomputed else 0) + tokens * (4 * f + 2 * d) * BF16
        chunk = 0
        unpacked = max(rows * columns for rows, columns in shape.matrices.values()) * BF16 if nf4 else 0
        head = 3 * tokens * d * BF16 + load.targets * shape.vocabulary * (2 * BF16 + 3 * FLOAT32)
    return {"inputs": inputs, "kept": kept_layers * kept, "working": working, "chunk": chunk, "unpacked": unpacked, "head": head}


def plain_kept_bytes(shape: Shape, nf4: bool) -> int:
    """Bytes that transformers and PEFT keep of one layer for each token.

    Of each norm its input in float32 and its result, which the adapters share; queries, keys, values and the attention's result; of the MLP
    gate, its activation, up and their product. Over an unquantised base the measured peaks of three shapes ask for one more of the MLP's
    width and three more of the keys', to a hundredth.
    """
    d, q, f = shape.hidden, shape.q, shape.inner
    norms = 2 * d * (FLOAT32 + BF16)
    attention = (2 * q + 2 * shape.kv) * BF16 + shape.heads * FLOAT32
    return norms + attention + (4 * f + (0 if nf4 else f + 3 * shape.kv)) * BF16


def peak(shape: Shape, method: Method, load: Load, factors: Mapping[str, float], head_bytes: int = 0) -> dict[str, int]:
    """The predicted peak of `torch.cuda.max_memory_reserved`, by part.

    Args:
        shape: the model's.
        method: of training.
        load: of the largest micro-batch.
        factors: of the engine: `kept`, `working`, `chunk`, `unpacked`, `head`, `slack`, all near one, and `fixed_bytes`.
        head_bytes: of an output layer that is on the GPU while the loss is computed alone.

    Returns:
        Bytes by part; their sum is the peak.
    """
    held = held_bytes(shape, method)
    parts = pass_bytes(shape, method, load)
    stored = {"inputs": factors["kept"] * parts["inputs"], "kept": factors["kept"] * parts["kept"]}
    layer = sum(factors[name] * parts[name] for name in ("working", "chunk", "unpacked"))
    moment = {"backward_or_loss": max(layer, factors["head"] * parts["head"] + head_bytes)}
    slack = (factors["slack"] - 1) * (sum(stored.values()) + sum(moment.values()))
    passing = {name: int(size) for name, size in {**stored, **moment}.items()}
    return {**held, **passing, "allocator": int(slack + factors["fixed_bytes"])}
