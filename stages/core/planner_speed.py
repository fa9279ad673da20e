"""How long a training takes: products, attention, memory traffic, launches. In: shape, method, load, card. Out: seconds. No torch.

The operations and bytes are counted; the shares of a card's published rates that they reach are measured (`planner_constants.json`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stages.core.planner_cards import Card
from stages.core.planner_memory import BF16, FLOAT32, NF4, Load, Method
from stages.core.planner_shape import Shape

OVERLAP = 4
ADAM_BYTES = 7 * FLOAT32  # read and written for each trained parameter of a step: value, gradient, two moments


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed, on the average.

    Attributes:
        passes: micro-batches of an optimizer step.
        tokens: of a micro-batch, padding included.
        real_tokens: of a micro-batch, without padding.
        targets: of a micro-batch.
        attended: tokens that a token attends to, twice the mean (the mean of squared row lengths over the mean length).
    """

    passes: int
    tokens: float
    real_tokens: float
    targets: float
    attended: float

    def sliced(self, slices: int) -> "Work":
        """That of one of so many slices, whose tokens attend to as many as before."""
        return Work(self.passes, self.tokens / slices, self.real_tokens / slices, self.targets / slices, self.attended)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What training on several GPUs adds to one of them (stages/core/planner_parallel.py).

    Attributes:
        held_bytes: that lie on the GPU beside what one alone holds; negative where a part of the base lies on the others.
        pass_seconds: of passing weights for each micro-batch, while it computes.
        exposed_seconds: of the same, that no computing hides.
        step_seconds: of passing gradients, once a step, after it computed.
        slices: GPUs that each have an equal slice of every micro-batch's tokens; 1 where each has micro-batches of its own.
        token_bytes: held for each token of a slice while it is exchanged.
        token_seconds: of passing, for each token of a slice and pass, that no computing hides.
        head_bytes: of an output layer that is whole on the GPU while the loss is computed, and split else.
    """

    held_bytes: int
    pass_seconds: float
    exposed_seconds: float
    step_seconds: float
    slices: int = 1
    token_bytes: int = 0
    token_seconds: float = 0.0
    head_bytes: int = 0

    def seconds(self, computing: float, work: Work) -> float:
        """A step's seconds, from those it computes and its micro-batches."""
        exposed = self.exposed_seconds + work.tokens * self.token_seconds
        return work.passes * (max(computing / work.passes, self.pass_seconds) + exposed) + self.step_seconds


ALONE = Exchange(0, 0.0, 0.0, 0.0)


def operations(shape: Shape, method: Method, load: Load, work: Work) -> dict[str, float]:
    """Floating-point operations of one pass: `attention_part` and `mlp_part` and `head` of products, and `attention` itself.

    Forward 2 for each weight and token, as many for the input's gradient (the weights are frozen), as many for what is recomputed, of which
    the fused engine leaves out down_proj. LoRA adds 2 forward and 4 backward for each of its parameters.
    """
    again = load.recomputed / shape.layers
    mlp = sum(rows * columns for name, (rows, columns) in shape.matrices.items() if name in ("gate_proj", "up_proj", "down_proj"))
    rest = shape.layer_weights - mlp
    down = shape.inner * shape.hidden if method.engine == "fused" else 0
    lora = shape.adapter_parameters(method.rank, method.target_modules) * (6 + 2 * again)
    causal = 2 * shape.q * work.attended  # scores and values, 2 * 2 * q * attended / 2
    return {
        "attention_part": work.tokens * (shape.layers * rest * (4 + 2 * again) + lora),
        "mlp_part": work.tokens * shape.layers * (4 * mlp + 2 * again * (mlp - down)),
        "head": work.targets * 4 * shape.hidden * shape.vocabulary,
        "attention": work.tokens * shape.layers * causal * (1 + 2.5 + again),
    }


def traffic_bytes(shape: Shape, method: Method, load: Load, work: Work) -> dict[str, float]:
    """Bytes read and written beside the products in one pass: `elementwise` operations, and `unpacking` of NF4 weights."""
    again = load.recomputed / shape.layers
    d, q, kv, f = shape.hidden, shape.q, shape.kv, shape.inner
    forward = (8 * d + 4 * q + 4 * kv + 3 * f) * BF16
    backward = (14 * d + 6 * q + 8 * kv + 7 * f) * BF16
    unpacked = shape.layer_weights * unpackings(shape, method, load) * (NF4 + BF16) if method.quantization == "nf4" else 0
    return {
        "elementwise": work.tokens * shape.layers * (forward * (1 + again) + backward) + work.targets * shape.vocabulary * 3 * BF16,
        "unpacking": unpacked,
    }


def unpackings(shape: Shape, method: Method, load: Load) -> int:
    """How often a layer's NF4 weights are unpacked in one pass, summed over the layers."""
    return 2 * shape.layers + (0 if method.engine == "fused" else load.recomputed)


@dataclass(frozen=True, slots=True)
class Seconds:
    """A step's time.

    Attributes:
        whole: of the step.
        host_bound: whether the device waits for the host, rather than the host for the device.
    """

    whole: float
    host_bound: bool


def step_seconds(
    shape: Shape, method: Method, load: Load, work: Work, card: Card, factors: Mapping[str, float], host: float = 1.0
) -> Seconds:
    """The predicted seconds of one optimizer step.

    Args:
        shape: the model's.
        method: of training.
        load: recomputed layers, offload and mlp_tokens are read.
        work: passes and their mean size.
        card: published rates.
        factors: of the engine: the shares `products`, `attention` and `deterministic_attention`, `memory` of the card's rates;
            `half_tokens` at which a product reaches half of its rate; the host's `launch_seconds` for each layer forward and back,
            `again_seconds` for each recomputed one, `unpack_seconds` for each unpacking of NF4 weights, `piece_seconds` for each further
            piece of an MLP; `step_seconds` beside the passes.
        host: how many times longer than the measured one this host takes to launch.

    Returns:
        The seconds, and what they are spent on.
    """
    rate = card.tflops * 1e12
    todo = operations(shape, method, load, work)

    def reached(rows: float) -> float:
        return factors["products"] * rate * rows / (rows + factors["half_tokens"])

    pieces = math.ceil(work.tokens / load.mlp_tokens)
    piece = work.tokens / pieces
    products = (todo["attention_part"] + todo["head"]) / reached(work.tokens) + todo["mlp_part"] / reached(piece)
    attends = "deterministic_attention" if method.deterministic else "attention"
    attention = todo["attention"] / (factors[attends] * rate)
    moved = sum(traffic_bytes(shape, method, load, work).values()) / (factors["memory"] * card.bandwidth * 1e9)
    device = products + attention + moved
    unpacked = unpackings(shape, method, load) if method.quantization == "nf4" else 0.0
    launches = factors["launch_seconds"] * shape.layers + factors["again_seconds"] * load.recomputed
    launches += factors["unpack_seconds"] * unpacked + factors["piece_seconds"] * (pieces - 1) * shape.layers
    waited = launches * host
    if load.offload:
        waited = max(waited, 2 * load.recomputed * work.tokens * shape.hidden * BF16 / (card.host_bandwidth * 1e9))
    trained = shape.adapter_parameters(method.rank, method.target_modules)
    update = trained * ADAM_BYTES / (factors["memory"] * card.bandwidth * 1e9)
    # the longer of the two, and a fifth more where they are alike, since they wait for one another by turns
    together = (device**OVERLAP + waited**OVERLAP) ** (1 / OVERLAP)
    return Seconds(work.passes * together + update + factors["step_seconds"] * host, waited > device)
