"""export: the tuned model in the forms people run, each loaded again and held against the adapter that was evaluated.

In: models/adapter (which names its base and holds its tokenizer), the test rows. Out: models/export with manifest.json, the forms of
export.forms and how to serve them; what each form answered to test rows, for compare; reports/export.json.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from stages.core import embedded, paths
from stages.core.errors import UserError
from stages.core.files import outputs, read_details, remove, sha256_file, write_json, write_report
from stages.core.llama_cpp import Answer, LlamaCpp
from stages.core.models import compute_dtype, device_of, read_manifest
from stages.core.params import Numerics, Params
from stages.core.records import Row, read_rows, write_table
from stages.core.sources import data_sources
from stages.core.stage import run_stage
from stages.export.agreement import check, compare, encode_rows, predictions
from stages.export.gguf_file import stop_ids, write_gguf
from stages.export.held import Held, Reference, sampled, told
from stages.export.merge import load_merged, load_tuned, merge_into
from stages.export.serving import write_serving
from stages.export.shipped import agreement, check_template, llama_answers, tensor_error

BYTES_OF_WEIGHT = {"merged": 2.0, "f16": 2.0, "q8_0": 34 / 32, "q4_k_m": 0.8}  # the last with the fallbacks of odd shapes
COPIES = 2  # models/export and DVC's cache
ANSWERS = pa.schema(
    [
        pa.field("form", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),  # by a stop token, and not at evaluate.max_new_tokens
    ]
)
MERGED_ONTO = {"nf4": "the base's NF4 weights, unpacked", "none": "the base's weights as fetched"}


def main(params: Params) -> None:
    """Runs the stage."""
    manifest = read_manifest(paths.ADAPTER / "base.json")
    adapter_files = _files(paths.ADAPTER, paths.ADAPTER)
    details: dict[str, Any] = {
        "ships": "merged" if "merged" in params.export.forms else "adapter",
        "base": {key: manifest[key] for key in ("name", "revision", "source")},
        "adapter_files": adapter_files,
        "adapter_bytes": _bytes(adapter_files),
        "forms": [],
    }
    with outputs() as place:
        folder = place(paths.EXPORT)
        folder.mkdir()
        answers: list[dict[str, Any]] = []
        if params.export.forms:
            made, answers = _make(params, manifest, folder)
            details |= made
        write_table(place(paths.FORMS), pa.Table.from_pylist(answers, schema=ANSWERS))
        details["files"] = _files(folder, paths.EXPORT)
        details["merged_bytes"] = _bytes([file for file in details["files"] if file["path"].startswith(f"{paths.EXPORT}/merged/")])
        shipped = ("ships", "base", "adapter_files", "adapter_bytes", "files", "merged_bytes", "merged_onto")
        write_json(folder / "manifest.json", {key: details[key] for key in shipped if key in details})
        write_report(place(paths.EXPORT_REPORT), {}, details)


def _make(params: Params, manifest: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Makes the forms in `folder` and measures each as a user would load it; one model is in memory at a time.

    Args:
        params: all of them.
        manifest: of the base.
        folder: where the forms go.

    Returns:
        The report's details, and the rows of `ANSWERS`.

    Raises:
        UserError: a form differs from the adapter beyond its limits, or cannot be made.
    """
    export, device = params.export, device_of(params.runtime.device)
    bases: tuple[Literal["nf4", "none"], ...] = ("nf4", "none") if params.numerics.quantization == "nf4" else ("none",)
    _check_disk(export.forms, int(manifest["parameters"]), len(bases), folder.parent)
    rows = sampled(read_rows(paths.SPLIT_TEST), params.seed)
    asked = export.answer_prompts or len(rows)
    rows = rows[: max(export.check_prompts, asked)]
    encoded = encode_rows(rows, paths.ADAPTER, params.prompt.system, params.prompt.template)
    trials = {base: folder / f"merged-{base}" for base in bases}
    for base, trial in trials.items():
        merge_into(trial, manifest, base, paths.ADAPTER)
        if encode_rows(rows, trial, params.prompt.system, params.prompt.template) != encoded:
            raise UserError(
                f"{paths.EXPORT}/merged renders the test rows to other token ids than {paths.ADAPTER}: the tokenizer did not survive "
                "saving; set export.forms: [] to ship the adapter"
            )
    stops = stop_ids(trials[bases[0]])
    held = Held(rows, encoded, export.check_prompts, asked, _longest_answer(params, rows), stops, paths.ADAPTER)
    reference = held.reference(load_tuned(manifest, params.numerics, device, paths.ADAPTER))
    dtype = compute_dtype(params.numerics, device)
    merges = {
        base: compare(reference.predictions, predictions(load_merged(trial, dtype, device), held.checked)) for base, trial in trials.items()
    }
    best = min(merges, key=lambda base: _distance(merges[base]))
    merged = folder / "merged"
    trials.pop(best).rename(merged)
    for trial in trials.values():
        remove(trial)
    origin = _origin(params, manifest)
    for shard in sorted(merged.glob("*.safetensors")):
        embedded.embed(shard, origin)
    found, said = [], {}
    if "merged" in export.forms:
        said["merged"] = held.answers(load_merged(merged, dtype, device))
        found.append({"form": "merged", **merges[best], **told(held.asked_rows, said["merged"], reference.answers)})
        check("merged", found[0], export.limits.merged)
    for form in [form for form in export.forms if form != "merged"]:
        figures, said[form] = _gguf(params, form, folder, held, reference, origin)
        found.append({"form": form, **figures})
    write_serving(folder, export.forms, merged)
    if "merged" not in export.forms:
        remove(merged)
    details = {
        "agreement": {"prompts": len(held.checked), **{key: merges[best][key] for key in ("answer", "all")}},
        "merged_onto": {"weights": MERGED_ONTO[best], "dtype": "bfloat16"},
        "merges": [{"onto": MERGED_ONTO[base], **merges[base]["answer"]} for base in bases],
        "compared": {"quantization": params.numerics.quantization, "compute_dtype": _dtype_name(params.numerics, device)},
        "adapter": told(held.asked_rows, reference.answers, reference.answers),
        "forms": found,
    }
    return details, [
        {"form": form, "item_id": row.id, "answer": answer.text, "ended": answer.ended}
        for form, answers in said.items()
        for row, answer in sorted(zip(held.asked_rows, answers, strict=True), key=lambda pair: pair[0].id)
    ]


def _origin(params: Params, manifest: dict[str, Any]) -> dict[str, embedded.Value]:
    """What each form says of itself: name, licence, who answers for it, where its repository is, its base, its data, its adapter."""
    said: dict[str, embedded.Value | None] = {
        "general.type": "model",
        "general.name": params.card.name,
        "general.license": params.card.license,
        "general.author": params.card.developed_by,
        "general.repo_url": params.card.repository,
        embedded.ADAPTER: sha256_file(paths.ADAPTER / "adapter_model.safetensors"),
        **embedded.base_facts(manifest),
        **embedded.data_facts(data_sources(read_details(paths.FETCH_DATA_REPORT))),
    }
    return {name: value for name, value in said.items() if value is not None}


def _longest_answer(params: Params, rows: list[Row]) -> int:
    """As many tokens as evaluate lets an answer have; where it lets rows without labels write none, those of a label."""
    free = 0 if all(row.label is not None for row in rows) else params.evaluate.max_free_tokens
    return free or params.evaluate.max_new_tokens


def _distance(found: dict[str, Any]) -> float:
    """The mean KL divergence on the answers, where a NaN is the furthest."""
    nats = found["answer"]["kl_mean_nats"]
    return float(nats) if nats == nats else float("inf")


def _gguf(
    params: Params, form: str, folder: Path, held: Held, reference: Reference, origin: dict[str, embedded.Value]
) -> tuple[dict[str, Any], list[Answer]]:
    """Writes one GGUF form and measures it by transformers' reader and by llama.cpp; its figures and its answers."""
    file = folder / "gguf" / f"model-{form}.gguf"
    file.parent.mkdir(exist_ok=True)
    types = write_gguf(folder / "merged", file, form, origin)
    limit = getattr(params.export.limits, form)
    tensor, error = tensor_error(file, folder / "merged")
    if not error <= limit.max_tensor_error:
        raise UserError(
            f"{form}: {tensor} is off by {error:.3g} of its size after reading it back, export.limits.{form} asks for at most "
            f"{limit.max_tensor_error}; take {form} out of export.forms"
        )
    with LlamaCpp(file, held.longest) as llama:
        check_template(llama, held.rows, held.encoded, params.prompt.system, params.prompt.template, form)
        found: dict[str, Any] = {"answer": agreement(llama, held.checked, reference.predictions)}
        said = held.read(llama_answers(llama, held.asked, held.longest_answer, held.stops))
    found |= told(held.asked_rows, said, reference.answers)
    check(form, found, limit)
    return {**found, "tensor_error": error, "tensor": tensor, "types": types, "bytes": file.stat().st_size}, said


def _dtype_name(numerics: Numerics, device: str) -> str:
    return str(compute_dtype(numerics, device)).removeprefix("torch.")


def _check_disk(forms: Sequence[str], parameters: int, merges: int, folder: Path) -> None:
    """Stops before any work where the forms would not fit.

    Args:
        forms: export.forms.
        parameters: of the model.
        merges: merged folders that are held against each other.
        folder: where they go.

    Raises:
        UserError: too little space is free.
    """
    free = shutil.disk_usage(folder).free
    kept = parameters * sum(BYTES_OF_WEIGHT[form] for form in forms)
    need = COPIES * kept + parameters * BYTES_OF_WEIGHT["merged"] * (merges - ("merged" in forms))
    if free < need:
        raise UserError(
            f"{paths.EXPORT}: {', '.join(forms)} take {kept / 1e9:.2f} GB, twice with DVC's cache, and {need / 1e9:.2f} GB while they are "
            f"made; {free / 1e9:.2f} GB are free; free some, or shorten export.forms"
        )


def _files(folder: Path, published: Path) -> list[dict[str, Any]]:
    """Each file of a folder with its size and digest, by the path it has when published."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "path": (published / path.relative_to(folder)).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
            # of safetensors, so that weights under a changed head are known again
            **({"tensors_sha256": digest} if (digest := embedded.said_by(path).get(embedded.TENSORS)) else {}),
        }
        for path in found
    ]


def _bytes(files: list[dict[str, Any]]) -> int:
    return sum(file["bytes"] for file in files)


if __name__ == "__main__":
    run_stage("export", main)
