"""The files of a model in a folder: which belong to it, what it lacks, and their digests. In: a folder. Out: names and sha256s."""

import hashlib
import json
from pathlib import Path
from typing import Any

from stages.core.models import digests

# what a model is made of, at the top of its folder; pickles (*.bin, *.pt) can run code when they are loaded and are never fetched
WANTED = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERTED = "converted.json"  # the digests of a converted base, beside it


def missing(folder: Path) -> str | None:
    """What keeps a folder from being a base that can be loaded: what it lacks, in words that follow its name, or None."""
    if not folder.is_dir():
        return "is not a folder"
    if not (folder / "config.json").is_file():
        return "has no config.json"
    named = weights(folder)
    if absent := [name for name in named if not (folder / name).is_file()]:
        return f"lacks {len(absent)} of the {len(named)} weight files that {INDEX} names, the first {absent[0]}"
    if not named:
        if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
            return f"has its weights only as pickles ({pickles[0]}), which can run code when they are loaded, and only safetensors are"
        return "has no model.safetensors"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return f"has no tokenizer (none of {', '.join(TOKENIZERS)})"
    return None


def weights(folder: Path) -> list[str]:
    """The names of the files that transformers would load: model.safetensors, or else the shards of the index, or none."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if (folder / INDEX).is_file():
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    return []


def listing(folder: Path) -> list[dict[str, Any]]:
    """The files of a base, each with path, bytes and sha256, sorted by path; what does not belong to it is passed over."""
    found = sorted({path for pattern in WANTED for path in folder.glob(pattern)} - {folder / "README.md", folder / CONVERTED})
    loaded = weights(folder)
    found = [path for path in found if path.suffix != ".safetensors" or path.name in loaded]
    return [{"path": path.name, "bytes": path.stat().st_size, "sha256": digest} for path, digest in zip(found, digests(found), strict=True)]


def digest_of(listed: list[dict[str, Any]]) -> str:
    """One sha256 for all files of a listing."""
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
