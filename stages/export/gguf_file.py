"""A merged folder as a GGUF file, written tensor by tensor.

In: a folder in Hugging Face's format. Out: one .gguf with weights, tokenizer, chat template and stop tokens.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.embedded import Value
from stages.core.errors import UserError
from stages.core.models import load_tokenizer
from stages.export.gguf_vocabulary import add_vocabulary
from stages.export.quantize import FILE_TYPES, quantized, type_of

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}  # model_type: gguf.MODEL_ARCH
PERMUTED = {"llama", "mistral"}  # llama.cpp turns their queries and keys in pairs of neighbours, transformers in halves


class Weights:
    """The tensors of a merged folder by GGUF's names, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Maps the names; reads no tensor.

        Args:
            folder: with config.json and safetensors, in one file or in shards.

        Raises:
            UserError: the architecture, or a tensor of it, has no place in GGUF that is known here.
        """
        import gguf
        from transformers import AutoConfig

        self.config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = self.config.model_type
        if kind not in ARCHITECTURES:
            raise UserError(
                f"the base is a {kind}, and GGUF is written of {', '.join(ARCHITECTURES)}; take the GGUF forms out of export.forms and "
                "ship the merged folder"
            )
        self.architecture = gguf.MODEL_ARCH[ARCHITECTURES[kind]]
        self.layers = int(self.config.num_hidden_layers)
        self.heads = int(self.config.num_attention_heads)
        self.kv_heads = int(getattr(self.config, "num_key_value_heads", None) or self.heads)
        self.head_dim = int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads)
        self.places: dict[str, tuple[Path, str]] = {}
        names = gguf.get_tensor_name_map(self.architecture, self.layers)
        for file in sorted(folder.glob("*.safetensors")):
            for name in _names(file):
                place = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if place is None:
                    raise UserError(
                        f"{folder} has a tensor {name}, which GGUF's {kind} has no place for; take the GGUF forms out of export.forms"
                    )
                self.places[place] = (file, name)
        # a copy of a tied output matrix, which some versions save, would double the largest tensor
        if self.tied:
            self.places.pop("output.weight", None)

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output matrix too."""
        return bool(self.config.tie_word_embeddings) or "output.weight" not in self.places

    def read(self) -> Iterator[tuple[str, "np.ndarray[Any, np.dtype[np.float32]]"]]:
        """Every tensor in float32, as llama.cpp wants it, in the order of the names; one is in memory at a time."""
        from safetensors import safe_open

        with ExitStack() as stack:
            files = {file: stack.enter_context(safe_open(file, "pt")) for file in {file for file, _ in self.places.values()}}
            for place in sorted(self.places):
                file, name = self.places[place]
                yield place, self._turned(place, files[file].get_tensor(name).float().contiguous().numpy())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, in the order of the names."""
        from safetensors import safe_open

        found = {}
        for place in sorted(self.places):
            file, name = self.places[place]
            with safe_open(file, "pt") as opened:
                found[place] = tuple(opened.get_slice(name).get_shape())
        return found

    def _turned(self, place: str, tensor: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Rows of query and key in the order of llama.cpp's rotation: the two halves of a head interleaved."""
        import numpy as np

        if self.config.model_type not in PERMUTED or not (".attn_q." in place or ".attn_k." in place):
            return tensor
        heads = self.heads if ".attn_q." in place else self.kv_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return sorted(opened.keys())


def stop_ids(folder: Path) -> list[int]:
    """The ids that end an answer: the tokenizer's end of sequence, then those of generation_config.json."""
    tokenizer = load_tokenizer(folder)
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    path = folder / "generation_config.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    found += [number for number in (named if isinstance(named, list) else [named]) if isinstance(number, int)]
    if not found:
        raise UserError(
            "the tokenizer names no end-of-sequence token, so no runtime could stop an answer; take the GGUF forms out of export.forms"
        )
    return list(dict.fromkeys(found))


def write_gguf(folder: Path, target: Path, form: str, facts: Mapping[str, Value]) -> dict[str, int]:
    """Writes a merged folder as GGUF; equal folders give equal bytes. One tensor is held in float32 at a time.

    Args:
        folder: the merged model with its tokenizer.
        target: the file.
        form: f16, q8_0 or q4_k_m.
        facts: further fields by name: texts, numbers, lists of texts.

    Returns:
        How many tensors there are of each GGML type.

    Raises:
        UserError: the model has no place in GGUF, or no room in the form.
    """
    import gguf

    weights = Weights(folder)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[weights.architecture])
    _add_shape(writer, weights)
    writer.add_file_type(FILE_TYPES[form])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in sorted(facts.items()):
        if isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    shapes = weights.shapes()
    add_vocabulary(writer, folder, shapes["token_embd.weight"][0], stop_ids(folder))
    factors = _rope_factors(weights)
    kinds = {name: type_of(name, shape, form, weights.layers, weights.tied) for name, shape in shapes.items()}
    counts: dict[str, int] = {}
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for name, kind in kinds.items():
        size = gguf.quant_shape_to_byte_shape(shapes[name], kind)
        plain = {gguf.GGMLQuantizationType.F32: "float32", gguf.GGMLQuantizationType.F16: "float16"}.get(kind)
        _announce(writer, name, shapes[name] if plain else size, plain, kind, math.prod(size))
        counts[kind.name] = counts.get(kind.name, 0) + 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for name, tensor in weights.read():
        try:
            writer.write_tensor_data(quantized(tensor, kinds[name]))
        except OverflowError:
            raise UserError(
                f"{name} holds a weight beyond float16's 65504, which form {form} cannot hold; take it out of export.forms"
            ) from None
    writer.close()
    return dict(sorted(counts.items()))


def _announce(writer: "GGUFWriter", name: str, shape: tuple[int, ...], plain: str | None, kind: Any, size: int) -> None:
    import numpy as np

    if plain:
        count = math.prod(shape) * np.dtype(plain).itemsize
        writer.add_tensor_info(name, shape, np.dtype(plain), count)
    else:
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw_dtype=kind)


def _add_shape(writer: "GGUFWriter", weights: Weights) -> None:
    """The fields that tell llama.cpp the model's shape and its rotation."""
    config = weights.config
    if getattr(config, "hidden_act", "silu") != "silu":
        raise UserError(
            f"the base's activation is {config.hidden_act}, llama.cpp computes silu for it; take the GGUF forms out of export.forms"
        )
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    # up to the window full attention and sliding attention are the same; llama.cpp has only the first for these families
    writer.add_context_length(min(config.max_position_embeddings, window or config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(weights.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(weights.heads)
    writer.add_head_count_kv(weights.kv_heads)
    writer.add_key_length(weights.head_dim)
    writer.add_value_length(weights.head_dim)
    writer.add_rope_dimension_count(weights.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(_scaling("LINEAR"))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(_scaling("YARN"))
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _scaling(name: str) -> Any:
    import gguf

    return gguf.RopeScalingType[name]


def _rope(config: "PreTrainedConfig") -> dict[str, Any]:
    rope: dict[str, Any] = config.rope_parameters
    if rope["rope_type"] not in ("default", "linear", "yarn", "llama3"):
        raise UserError(
            f"the base's rotary embedding is {rope['rope_type']}, which export knows no GGUF for; take the GGUF forms out of export.forms"
        )
    return rope


def _rope_factors(weights: Weights) -> "np.ndarray[Any, np.dtype[np.float32]] | None":
    """Llama 3's slowing of the low frequencies, a divisor a pair [head_dim / 2]: transformers' own frequencies over the plain ones."""
    import numpy as np

    rope = _rope(weights.config)
    if rope["rope_type"] != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](weights.config, "cpu")
    plain = rope["rope_theta"] ** (-np.arange(0, weights.head_dim, 2, dtype=np.float64) / weights.head_dim)
    return (plain / scaled.double().numpy()).astype(np.float32)
