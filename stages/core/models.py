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

NEW_TOKENS = "new_tokens.json"


def read_manifest(path: Path = paths.BASE) -> dict[str, Any]:
    """The base's manifest as fetch_model wrote it.

    Args:
        path: models/base.json, or the copy beside an adapter.

    Returns:
        `source` (package | hub | folder), `name`, `revision`, `license` (None where the base names none), `location` (see `located`),
        `parameters`, `vocabulary` (rows of the embedding), `architecture`, and `files`: a list of `path`, `bytes`, `sha256`.
    """
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def located(source: str, location: str) -> Path:
    """Where a base lies on this machine.

    Args:
        source: package, hub or folder.
        location: relative to the user-level cache (package) or to the Hugging Face cache (hub), so that a manifest names no path of one
            machine; of a folder the path as the user wrote it, relative to the repository, which queued experiments are not run in.

    Returns:
        The folder.
    """
    if source == "package":
        return cache_root() / location
    if source == "hub":
        return hub_cache() / location
    return Path(os.environ.get("DVC_ROOT", "."), Path(location).expanduser())


def hub_cache() -> Path:
    """The Hugging Face cache, shared with every other tool: $HF_HUB_CACHE, else $HF_HOME/hub, else huggingface/hub in the user's cache."""
    if root := os.environ.get("HF_HUB_CACHE"):
        return Path(root)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(home, "hub").expanduser()


def base_folder(manifest: dict[str, Any]) -> Path:
    """The folder that holds the base's files, after checking that each is there with the digest of the manifest.

    Args:
        manifest: as `read_manifest` gives it.

    Returns:
        The folder.

    Raises:
        UserError: a file is missing or is not the one the manifest names.
    """
    folder = located(manifest["source"], manifest["location"])
    for file in manifest["files"]:
        if not (folder / file["path"]).is_file():
            raise UserError(f"{folder / file['path']} of the base model is missing; fetch it again: dvc repro -f -s fetch_model")
    found = digests([folder / file["path"] for file in manifest["files"]])
    for file, digest in zip(manifest["files"], found, strict=True):
        if digest != file["sha256"]:
            raise UserError(
                f"{folder / file['path']} has sha256 {digest}, but models/base.json names {file['sha256']}: the base model has changed; "
                f"put the file back, or run dvc repro -f fetch_model to fetch it again (of a folder: to take it as it is now)"
            )
    return folder


def digests(files: list[Path]) -> list[str]:
    """The sha256 of each file, taken once and remembered in the user-level cache by path, size and modification time in nanoseconds."""
    memory = cache_root() / "verified.json"
    try:
        seen: dict[str, list[Any]] = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        seen = {}
    found: dict[str, list[Any]] = {}
    for path in map(Path.resolve, files):
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = seen.get(str(path), [])
        found[str(path)] = known if known[:2] == stamp else [*stamp, sha256_file(path)]
    if any(seen.get(path) != entry for path, entry in found.items()):
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_name(f"verified.{os.getpid()}.part")
        part.write_text(json.dumps({**seen, **found}, indent=0, sort_keys=True), encoding="utf-8")
        os.replace(part, memory)
    return [str(found[str(path)][2]) for path in map(Path.resolve, files)]


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


def new_token_ids(folder: Path) -> list[int]:
    """The ids of tokenize.new_tokens, whose embedding rows are to be trained, as tokenize wrote them beside the tokenizer.

    They are not the rows past the base's vocabulary: many a base has spare rows in its embedding, and new tokens take those first.
    """
    return sorted(json.loads((folder / NEW_TOKENS).read_text(encoding="utf-8")).values())


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

    silence()
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
    widened(model, manifest, vocabulary)
    model.eval().requires_grad_(False)
    return model


def widened(model: "PreTrainedModel", manifest: dict[str, Any], vocabulary: int | None) -> None:
    """Gives the embeddings of a base as it was fetched as many rows as there are tokens, where it has fewer.

    Args:
        model: changed in place.
        manifest: as `read_manifest` gives it.
        vocabulary: rows the embedding must have at least, or None to leave it.
    """
    if vocabulary is not None and vocabulary > manifest["vocabulary"]:
        # the mean of the old rows, and not a random draw, so that every stage that loads the base resizes it alike
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        _mean_rows(model, vocabulary - int(manifest["vocabulary"]))


def silence() -> None:
    """Keeps the libraries' loading bars and remarks on kernels off the terminal; errors still show."""
    import logging
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT 0.21 reads a property that transformers 5 has renamed
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def _mean_rows(model: "PreTrainedModel", added: int) -> None:
    """Sets the last `added` rows of the input and output embeddings to the mean of the others."""
    import torch

    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = cast(torch.Tensor, layer.weight)  # tied embeddings are one tensor, set twice to the same
            # in double precision on the CPU, so that the order of the sum, which differs between devices, leaves no trace
            weight[-added:] = weight[:-added].double().cpu().mean(0).to(weight)


def load_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """The base with an adapter of PEFT's format on it, in evaluation mode; the base object itself is changed."""
    from peft import PeftModel

    # PEFT would choose the fastest device it sees, also for a model that is on another
    return PeftModel.from_pretrained(model, folder, is_trainable=False, torch_device=str(model.device)).eval()


def manifest_of(variant: str) -> dict[str, Any]:
    """The manifest of the base that a variant, base or tuned, stands on: an adapter brings its own copy."""
    return read_manifest(paths.BASE if variant == "base" else paths.ADAPTER / "base.json")


def load_variant(
    variant: str, manifest: dict[str, Any], numerics: "Numerics", device: str, vocabulary: int
) -> "PreTrainedModel | PeftModel":
    """One of the two models that are judged, at the numerics of training.

    Args:
        variant: base or tuned.
        manifest: as `manifest_of` gives it.
        numerics: quantization and compute_dtype of params.yaml.
        device: cpu or cuda.
        vocabulary: of the run's tokenizer.

    Returns:
        The base, with this run's adapter on it where the variant is tuned.
    """
    model = load_base(manifest, numerics, device, vocabulary)
    return load_adapter(model, paths.ADAPTER) if variant == "tuned" else model
