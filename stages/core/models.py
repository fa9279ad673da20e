"""Loading the base, its tokenizer and an adapter at the numerics asked for; the only place that knows bitsandbytes.

The base's weights lie once, in a user-level cache that every workspace, queued experiment and CI job shares; the repository holds their
manifest, models/base.json. Heavy imports are inside the functions, so that a reader of the manifest pays for none.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import cache_root, sha256_file

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stages.core.params import Numerics


def read_manifest(path: Path = paths.BASE) -> dict[str, Any]:
    """The base's manifest as fetch_model wrote it.

    Args:
        path: models/base.json, or the copy beside an adapter.

    Returns:
        `source` (package | hub | folder), `name`, `revision`, `license`, `location` (relative to the cache, or the folder's path),
        `parameters`, `vocabulary` (rows of the embedding), `architecture`, and `files`: a list of `path`, `bytes`, `sha256`.
    """
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def base_folder(manifest: dict[str, Any]) -> Path:
    """The folder that holds the base's files, after checking that each is there with the size and the digest of the manifest.

    A digest is taken once per file and remembered in the cache by size and modification time in nanoseconds.

    Args:
        manifest: as `read_manifest` gives it.

    Returns:
        The folder.

    Raises:
        UserError: a file is missing or is not the one the manifest names.
    """
    location = Path(manifest["location"])
    folder = location if manifest["source"] == "folder" else cache_root() / location
    seen_path = cache_root() / "verified.json"
    try:
        seen: dict[str, str] = json.loads(seen_path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        seen = {}
    before = dict(seen)
    for file in manifest["files"]:
        path = folder / file["path"]
        if not path.is_file():
            raise UserError(f"{path} of the base model is missing from the cache; fetch it again: dvc repro -f -s fetch_model")
        stat = path.stat()
        stamp = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if stamp not in seen:
            seen[stamp] = sha256_file(path)
        if seen[stamp] != file["sha256"]:
            found = f"{path} has sha256 {seen[stamp]}, models/base.json names {file['sha256']}"
            raise UserError(f"{found}; remove the file and run: dvc repro -f -s fetch_model")
    if seen != before:
        seen_path.parent.mkdir(parents=True, exist_ok=True)
        part = seen_path.with_name(f"verified.{os.getpid()}.part")
        part.write_text(json.dumps(seen, indent=0, sort_keys=True), encoding="utf-8")
        os.replace(part, seen_path)
    return folder


def device_of(asked: str) -> str:
    """The device to run on.

    Args:
        asked: runtime.device.

    Returns:
        `cpu` or `cuda`.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        remedy = "set runtime.device: auto, or mend the driver (nvidia-smi)"
        raise UserError(f"runtime.device is cuda, but PyTorch sees no CUDA device; {remedy}")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def compute_dtype(numerics: "Numerics", device: str) -> "torch.dtype":
    """The floating-point type of activations, and of weights that are not quantised."""
    import torch

    if numerics.compute_dtype == "auto":
        return torch.bfloat16 if device == "cuda" else torch.float32
    return torch.bfloat16 if numerics.compute_dtype == "bfloat16" else torch.float32


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer saved in a folder: the base's own, or data/tokenized/tokenizer with the template and tokens of this run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_base(manifest: dict[str, Any], numerics: "Numerics", device: str, vocabulary: int | None = None) -> "PreTrainedModel":
    """The base model for causal language modelling, in evaluation mode, weights frozen.

    On a CPU the NF4 weights are unpacked once, into layers of compute_dtype: the very values that bitsandbytes would unpack at each
    forward pass, an order of magnitude faster. On processors with AVX512-BF16 it is also the only right way: there bitsandbytes 0.50.2
    computes in bfloat16 in evaluation mode whatever dtype is asked for, and a layer that was once evaluated passes no gradient on.

    Args:
        manifest: as `read_manifest` gives it.
        numerics: quantization and compute_dtype of params.yaml.
        device: cpu or cuda.
        vocabulary: rows the embedding must have at least (tokens were added), or None to leave it.

    Returns:
        The model.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _silence()
    dtype = compute_dtype(numerics, device)
    quantization = None
    if numerics.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(
        base_folder(manifest),
        dtype=dtype,
        quantization_config=quantization,
        device_map={"": device},
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
    )
    if quantization is not None and device == "cpu":
        model = model.dequantize(dtype)
        del model.is_loaded_in_4bit
    if vocabulary is not None and vocabulary > manifest["vocabulary"]:
        # the mean of the old rows, and not a random draw, so that every stage that loads the base resizes it alike
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        _mean_rows(model, vocabulary - int(manifest["vocabulary"]))
    model.eval().requires_grad_(False)
    return model


def _silence() -> None:
    """Keeps the libraries' loading bars and remarks on kernels off the terminal; errors still show."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _mean_rows(model: "PreTrainedModel", added: int) -> None:
    """Sets the last `added` rows of the input and output embeddings to the mean of the others."""
    import torch

    with torch.no_grad():
        for layer in {id(e): e for e in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            weight = cast(torch.Tensor, layer.weight)
            weight[-added:] = weight[:-added].float().mean(0).to(weight.dtype)


def load_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """The base with an adapter of PEFT's format on it, in evaluation mode; the base object itself is changed."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder, is_trainable=False).eval()
