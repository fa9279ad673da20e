"""What the planner must know of a model: sizes and counts of its layers. In: config.json as a dict. Out: a Shape. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.errors import UserError

# families whose embedding is tied unless config.json says otherwise (transformers' defaults)
TIED = {"gemma", "gemma2", "gemma3", "gemma3_text", "gemma4"}
FUSED = ("llama", "mistral", "qwen2", "qwen3")  # whose decoder layers stages.train.fused computes
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a dense decoder.

    Attributes:
        layers: decoder layers.
        hidden: width of the residual stream.
        q: width of all queries, heads * head_dim.
        kv: width of all keys.
        heads: query heads.
        inner: width of the MLP.
        vocabulary: rows of the embedding.
        tied: whether the output embedding is the input's.
        gated: whether the MLP has a gate, so three matrices and not two.
    """

    layers: int
    hidden: int
    q: int
    kv: int
    heads: int
    inner: int
    vocabulary: int
    tied: bool
    gated: bool

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the matrices of one layer, `[out, in]`, by the names that train.target_modules gives them."""
        mlp = {"up_proj": (self.inner, self.hidden), "down_proj": (self.hidden, self.inner)}
        if self.gated:
            mlp = {"gate_proj": (self.inner, self.hidden), **mlp}
        attention = {"q_proj": (self.q, self.hidden), "k_proj": (self.kv, self.hidden), "v_proj": (self.kv, self.hidden)}
        return {**attention, "o_proj": (self.hidden, self.q), **mlp}

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one layer."""
        return sum(rows * columns for rows, columns in self.matrices.values())

    @property
    def embedding_weights(self) -> int:
        """Weights of the input and output embeddings, once where they are tied."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Parameters of the whole base; biases, which are under a thousandth, are left out."""
        return self.layers * (self.layer_weights + 2 * self.hidden) + self.hidden + self.embedding_weights

    def adapter_parameters(self, rank: int, target_modules: str | Sequence[str]) -> int:
        """Parameters of a LoRA: rank * (in + out) for each matrix it is on (arXiv 2106.09685)."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.adapted(target_modules).values())

    def adapted(self, target_modules: str | Sequence[str]) -> dict[str, tuple[int, int]]:
        """The matrices of one layer that get an adapter."""
        if isinstance(target_modules, str):
            return self.matrices
        asked = {name.rsplit(".", 1)[-1] for name in target_modules}
        if "qkv_proj" in asked:  # Phi's names for several matrices in one
            asked |= {"q_proj", "k_proj", "v_proj"}
        if "gate_up_proj" in asked:
            asked |= {"gate_proj", "up_proj"}
        return {name: size for name, size in self.matrices.items() if name in asked}


def window_of(config: Mapping[str, Any]) -> int | None:
    """To how many tokens before it a token of one of the families FUSED attends at most, or None."""
    used = config.get("use_sliding_window", config.get("model_type") == "mistral")
    window: int | None = config.get("sliding_window") if used else None
    return window


class UnknownShape(UserError):
    """The planner can't read a base's sizes."""


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Reads config.json.

    Args:
        config: its content; of a model with pictures or sound, the text model's part is taken.

    Returns:
        The shape.

    Raises:
        UnknownShape: a size is missing, or the model is a mixture of experts.
    """
    config = config.get("text_config", config)
    kind = str(config.get("model_type", "this model"))
    if any(config.get(key) for key in EXPERTS):
        raise UnknownShape(f"config.json: {kind} is a mixture of experts, and the planner knows dense decoders")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        return Shape(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            q=heads * head_dim,
            kv=int(config.get("num_key_value_heads") or heads) * head_dim,
            heads=heads,
            inner=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", kind in TIED)),
            gated=kind not in {"gpt_neox", "phi", "starcoder2"},
        )
    except KeyError as missing:
        raise UnknownShape(f"config.json of {kind} has no {missing.args[0]}, from which memory and time are planned") from None
