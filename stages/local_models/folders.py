"""A model of the user's: its files held to the digest of params.yaml, and loaded. In: a folder. Out: model, tokenizer, windows of texts."""

from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError
from stages.core.models import located
from stages.core.weights import digest_of, listing, missing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_TOKENS = 512  # of a window: longer ones cost more, and models of this kind gain little by them
BATCH_TOKENS = 8_192  # of a forward pass, padding included


def checked(key: str, folder: str, sha256: str | None) -> dict[str, Any]:
    """Holds a folder to its pinned digest.

    Args:
        key: of params.yaml, for the sentences.
        folder: as the user wrote it, relative to the repository.
        sha256: of its files, or None where the user has not pinned it yet.

    Returns:
        The manifest: `name` of the folder, `sha256`, and `files`, each with path, bytes and sha256.

    Raises:
        UserError: it is no model, it is not pinned, or it is another one; the sentence tells the digest to set.
    """
    place = located("folder", folder)
    if lacking := missing(place):
        raise UserError(f"{key}.folder {folder} {lacking}; it needs config.json, *.safetensors and the tokenizer's files")
    files = listing(place)
    found = digest_of(files)
    if sha256 is None:
        raise UserError(
            f"{key}.sha256 is null, so nothing tells which weights a result is of; to pin the folder as it is, set it to {found}"
        )
    if found != sha256:
        remedy = f"put the files back, or set {key}.sha256: {found} to take them as they are"
        raise UserError(f"{folder} has the digest {found}, but {key}.sha256 is {sha256}: weights or tokenizer have changed; {remedy}")
    return {"name": place.resolve().name, "sha256": found, "files": files}


def loaded(key: str, folder: str, kind: str, device: str) -> "tuple[PreTrainedModel, Any]":
    """Loads a folder.

    Args:
        key: of params.yaml, for the sentences.
        folder: as the user wrote it.
        kind: the class of transformers that loads it, e.g. AutoModel.
        device: cpu or cuda.

    Returns:
        The model in float32 and evaluation mode, and its tokenizer.

    Raises:
        UserError: transformers cannot load it as such a model, or its tokenizer is of the kind that tells no places.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place = located("folder", folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        model, report = getattr(transformers, kind).from_pretrained(
            place, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype="float32", output_loading_info=True
        )
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{key}.folder {folder} cannot be loaded as {kind}: {str(error).splitlines()[0]}; choose another model") from error
    if kind != "AutoModel" and report["missing_keys"]:  # an embedding needs no head, and may leave out its pooler
        lacking = sorted(report["missing_keys"])[0]
        raise UserError(f"{key}.folder {folder} has no weights for {lacking}, which would be random; choose a model trained for this task")
    if not tokenizer.is_fast:
        raise UserError(f"{key}.folder {folder} has no tokenizer.json, without which a token has no place in its text; save a fast one")
    return model.to(device).eval().requires_grad_(False), tokenizer


def window_tokens(model: "PreTrainedModel", tokenizer: Any) -> int:
    """The most tokens of a forward pass, special ones included: what model and tokenizer allow, and at most MAX_TOKENS."""
    import torch

    allowed = int(getattr(model.config, "max_position_embeddings", MAX_TOKENS))
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            allowed -= module.padding_idx + 1  # RoBERTa and its kin count positions from there
    return min(allowed, int(tokenizer.model_max_length), MAX_TOKENS)


def windows(tokenizer: Any, texts: list[str], tokens: int, overlap: int) -> list[list[Any]]:
    """The texts as windows of tokens.

    Args:
        tokenizer: of the model.
        texts: as they are.
        tokens: of a window at most, special tokens included.
        overlap: tokens that a window shares with the one before.

    Returns:
        Of each text its windows in order, `tokenizers.Encoding` each.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(tokens, stride=overlap)
    return [[encoding, *encoding.overflowing] for encoding in backend.encode_batch(texts)]


def batches(sizes: list[int]) -> list[list[int]]:
    """The numbers of windows, the longest first, in lists of like length of at most BATCH_TOKENS."""
    found: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        if not found or (len(found[-1]) + 1) * sizes[found[-1][0]] > BATCH_TOKENS:
            found.append([])
        found[-1].append(number)
    return found


def inputs(encodings: list[Any], pad: int, device: str) -> dict[str, Any]:
    """A batch padded on the right: input_ids and attention_mask, [windows, tokens] int64."""
    import torch

    longest = max(len(encoding.ids) for encoding in encodings)

    def padded(name: str, value: int) -> Any:
        lists = [getattr(encoding, name) for encoding in encodings]
        return torch.tensor([[*one, *([value] * (longest - len(one)))] for one in lists], device=device)

    return {"input_ids": padded("ids", pad), "attention_mask": padded("attention_mask", 0)}


def pad_of(tokenizer: Any) -> int:
    """The id to pad with; masked, so that any will do where the tokenizer has none."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
