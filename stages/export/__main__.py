"""export: the merged model beside the adapter, and a gate that both say the same.

In: models/adapter (which names its base and holds its tokenizer), the test rows. Out: models/export with manifest.json and, if asked,
merged/; reports/export.json.
"""

import shutil
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, sha256_file, write_json, write_report
from stages.core.models import compute_dtype, device_of, read_manifest
from stages.core.params import Numerics, Params
from stages.core.records import read_rows
from stages.core.stage import run_stage
from stages.export.agreement import check, compare, encode_rows, predictions
from stages.export.merge import load_merged, load_tuned, merge_into

BYTES_OF_BFLOAT16 = 2
COPIES = 2  # models/export and DVC's cache
MERGED_ONTO = {"nf4": "the base's NF4 weights, unpacked", "none": "the base's weights as fetched"}


def main(params: Params) -> None:
    """Runs the stage."""
    manifest = read_manifest(paths.ADAPTER / "base.json")
    adapter_files = _files(paths.ADAPTER, paths.ADAPTER)
    details: dict[str, Any] = {
        "ships": "merged" if params.export.merge else "adapter",
        "base": {key: manifest[key] for key in ("name", "revision", "source")},
        "adapter_files": adapter_files,
        "adapter_bytes": _bytes(adapter_files),
    }
    with outputs() as place:
        folder = place(paths.EXPORT)
        folder.mkdir()
        if params.export.merge:
            details |= _merge(params, manifest, folder / "merged")
            details["files"] = _files(folder, paths.EXPORT)
            details["merged_bytes"] = _bytes(details["files"])
        write_json(folder / "manifest.json", {key: value for key, value in details.items() if key != "agreement"})
        write_report(place(paths.EXPORT_REPORT), {}, details)


def _merge(params: Params, manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Merges into `folder` and measures the folder as a user would load it; one model in memory at a time."""
    _check_disk(int(manifest["parameters"]) * BYTES_OF_BFLOAT16, folder.parent)
    device = device_of(params.runtime.device)
    rows = read_rows(paths.SPLIT_TEST)[: params.export.check_prompts]
    encoded = encode_rows(rows, paths.ADAPTER, params.prompt.system, params.prompt.template)
    adapter = predictions(load_tuned(manifest, params.numerics, device, paths.ADAPTER), encoded)
    merge_into(folder, manifest, params.numerics.quantization, paths.ADAPTER)
    if encode_rows(rows, folder, params.prompt.system, params.prompt.template) != encoded:
        raise UserError(
            f"{paths.EXPORT}/merged renders the test rows to other token ids than {paths.ADAPTER}: the tokenizer did not survive saving; "
            "set export.merge: false to ship the adapter"
        )
    agreement = compare(adapter, predictions(load_merged(folder, compute_dtype(params.numerics, device), device), encoded))
    check(agreement, params.export.min_top1_agreement)
    return {
        "agreement": {"prompts": len(rows), **agreement},
        "merged_onto": {"weights": MERGED_ONTO[params.numerics.quantization], "dtype": "bfloat16"},
        "compared": {"quantization": params.numerics.quantization, "compute_dtype": _dtype_name(params.numerics, device)},
    }


def _dtype_name(numerics: Numerics, device: str) -> str:
    return str(compute_dtype(numerics, device)).removeprefix("torch.")


def _check_disk(merged_bytes: int, folder: Path) -> None:
    """Stops before any work where the merged weights would not fit.

    Args:
        merged_bytes: size of the merged weights.
        folder: where they go.

    Raises:
        UserError: too little space is free.
    """
    free = shutil.disk_usage(folder).free
    if free < COPIES * merged_bytes:
        need = f"the merged model takes {merged_bytes / 1e9:.2f} GB, twice with DVC's cache, and {free / 1e9:.2f} GB are free"
        raise UserError(f"{paths.EXPORT}: {need}; free some space, or set export.merge: false to ship the adapter alone")


def _files(folder: Path, published: Path) -> list[dict[str, Any]]:
    """Each file of a folder with its size and digest, by the path it has when published."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {"path": (published / path.relative_to(folder)).as_posix(), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in found
    ]


def _bytes(files: list[dict[str, Any]]) -> int:
    return sum(file["bytes"] for file in files)


if __name__ == "__main__":
    run_stage("export", main)
