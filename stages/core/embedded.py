"""What a safetensors or GGUF file says of its origin in its own head, so that a bare file found years later can be led back.

In: facts by the names of the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), or a file. Out: the file
with them, or what it says. Nothing here depends on time, machine or commit: equal weights and facts give equal bytes.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

Value = str | int | list[str]
TENSORS = "luthier.tensors_sha256"  # of the bytes behind a safetensors file's head
TOKENS = "luthier.tokens_sha256"  # of data/tokenized/train.parquet
ADAPTER = "luthier.adapter_sha256"  # of the adapter's file that a merged form was made from
SHOWN = ("general.", "luthier.")
GGUF_MAGIC = b"GGUF"
GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # struct's letter by type
GGUF_STRING, GGUF_ARRAY = 8, 9
MAX_HEAD_BYTES = 100_000_000  # as the safetensors format limits it (https://github.com/huggingface/safetensors)
COPIED_BYTES = 1 << 24


def base_facts(manifest: Mapping[str, Any]) -> dict[str, Value]:
    """The base, as models/base.json has it: name, revision, licence."""
    found: dict[str, Value] = {
        "general.base_model.count": 1,
        "general.base_model.0.name": manifest["name"],
        "general.base_model.0.version": manifest["revision"],
    }
    if manifest["source"] == "hub":
        found["general.base_model.0.repo_url"] = f"https://huggingface.co/{manifest['name']}"
    if manifest["license"] is not None:
        found["luthier.base_model.0.license"] = manifest["license"]
    return found


def data_facts(sources: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """The sources of the rows, as `sources.data_sources` gives them: name, version, licence, digest."""
    found: dict[str, Value] = {"general.dataset.count": len(sources)}
    for place, source in enumerate(sources):
        told = {"general": ("name", "version"), "luthier": ("license", "sha256")}
        found |= {f"{space}.dataset.{place}.{key}": source[key] for space, keys in told.items() for key in keys if source[key] is not None}
    return found


def embed(path: Path, facts: Mapping[str, Value]) -> None:
    """Writes facts into a safetensors file's head, with the digest of its tensors; the tensors stay as they are.

    Args:
        path: the file; replaced in one step.
        facts: by name; lists and numbers are written as text, as the format asks.
    """
    part = path.with_name(f"{path.name}.part")
    with path.open("rb") as file, part.open("wb") as target:
        tensors = {name: entry for name, entry in _safetensors_head(file).items() if name != "__metadata__"}
        begin = file.tell()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        said = {"format": "pt", TENSORS: digest, **{name: _text(value) for name, value in facts.items()}}
        # by hand: the library writes metadata in the random order of a hash map, and equal results must have equal bytes
        head = json.dumps({"__metadata__": dict(sorted(said.items())), **tensors}, separators=(",", ":"), ensure_ascii=False).encode()
        head += b" " * (-len(head) % 8)  # tensors begin at a multiple of 8 bytes
        target.write(struct.pack("<Q", len(head)) + head)
        file.seek(begin)
        shutil.copyfileobj(file, target, COPIED_BYTES)
    os.replace(part, path)


def said_by(path: Path) -> dict[str, str]:
    """What a file says of its origin; any file can say anything.

    Args:
        path: a safetensors or GGUF file; any other says nothing.

    Returns:
        The `general.` and `luthier.` texts, numbers and lists of texts of a GGUF file, all metadata of a safetensors file but `format`; of
        a damaged file what could be read.
    """
    with path.open("rb") as file:
        if file.read(4) == GGUF_MAGIC:
            return _gguf(file)
        file.seek(0)
        try:
            found = _safetensors_head(file).get("__metadata__", {})
        except (ValueError, AttributeError):
            return {}
        return {str(name): str(value) for name, value in found.items() if name != "format"} if isinstance(found, dict) else {}


def tensors_digest(path: Path) -> str | None:
    """The sha256 of the bytes behind a safetensors file's head; None of any other file."""
    with path.open("rb") as file:
        try:
            _safetensors_head(file)
        except ValueError:
            return None
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(value: Value) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _safetensors_head(file: BinaryIO) -> dict[str, Any]:
    """The head, after which the file stands at the first tensor; ValueError where there is none."""
    length = struct.unpack("<Q", size)[0] if len(size := file.read(8)) == 8 else 0
    if not 1 < length <= MAX_HEAD_BYTES:
        raise ValueError("no head of a safetensors file")
    found = json.loads(file.read(length))
    if not isinstance(found, dict):
        raise ValueError("no head of a safetensors file")
    return found


def _gguf(file: BinaryIO) -> dict[str, str]:
    """The key-values after the magic, until the file ends or says what the format does not."""
    found: dict[str, str] = {}
    try:
        _, _, count = struct.unpack("<IQQ", file.read(20))
        for _ in range(count):
            name = _gguf_text(file)
            value = _gguf_value(file, struct.unpack("<I", file.read(4))[0])
            if name.startswith(SHOWN) and value is not None:
                found[name] = _text(value)
    except (struct.error, ValueError, RecursionError):
        pass
    return found


def _gguf_text(file: BinaryIO) -> str:
    length = struct.unpack("<Q", file.read(8))[0]
    if length > MAX_HEAD_BYTES:
        raise ValueError("a text longer than any")
    return file.read(length).decode("utf-8")


def _gguf_value(file: BinaryIO, kind: int) -> Value | None:
    """A text, whole number or list of texts; None of all else, which is passed over."""
    if kind == GGUF_STRING:
        return _gguf_text(file)
    if kind == GGUF_ARRAY:
        of, length = struct.unpack("<IQ", file.read(12))
        if of in GGUF_NUMBERS:
            file.seek(length * struct.calcsize(f"<{GGUF_NUMBERS[of]}"), os.SEEK_CUR)
            return None
        items = [_gguf_value(file, of) for _ in range(length)]
        return [item for item in items if isinstance(item, str)]
    if kind not in GGUF_NUMBERS:
        raise ValueError("no type of GGUF's")
    form = f"<{GGUF_NUMBERS[kind]}"
    value = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None
