"""export: the merged folder is the model that was measured, or nothing is published."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details, sha256_file, sha256_tree
from stages.core.params import load_params
from stages.core.records import Row, with_ids, write_rows
from stages.export import __main__ as export
from stages.export.agreement import encode_rows
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """An adapter as train publishes it, with weights that change what the tiny base says, and 24 test rows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(root / "adapter")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(root / "adapter")
    files = [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(tiny_base.iterdir())
        if path.is_file()
    ]
    manifest = {
        "source": "folder",
        "name": "tiny",
        "revision": "0" * 64,
        "license": "unknown",
        "location": str(tiny_base),
        "parameters": sum(parameter.numel() for parameter in base.parameters()),
        "vocabulary": base.config.vocab_size,
        "architecture": "LlamaForCausalLM",
        "files": files,
    }
    (root / "adapter/base.json").write_text(json.dumps(manifest), encoding="utf-8")
    rows = [
        Row("", ({"role": "user", "content": row["text"]},), None, None, row["label"], "test", str(number), None)
        for number, row in enumerate(tiny.labelled_rows(24))
    ]
    write_rows(root / "test.parquet", with_ids(rows))
    return root


@pytest.fixture
def ready(workspace: Path, trained: Path) -> Path:
    """A workspace in which train and split have run."""
    shutil.copytree(trained / "adapter", workspace / paths.ADAPTER)
    (workspace / paths.SPLIT_TEST).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(trained / "test.parquet", workspace / paths.SPLIT_TEST)
    return workspace


def test_the_merged_folder_loads_with_plain_transformers_and_says_what_the_adapter_says(ready: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export.main(load_params())
    agreement = read_details(paths.EXPORT_REPORT)["agreement"]
    assert agreement["prompts"] == 4
    assert agreement["answer"]["top1_agreement"] == 1.0
    assert 0 < agreement["all"]["kl_mean_nats"] < 1e-3
    merged = AutoModelForCausalLM.from_pretrained("models/export/merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained("models/export/merged")
    manifest = json.loads((ready / "models/adapter/base.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(manifest["location"], dtype=torch.float32)
    prompt = tokenizer("permission granted free of charge", return_tensors="pt")
    with torch.inference_mode():
        bare = base(**prompt).logits
        tuned = PeftModel.from_pretrained(base, "models/adapter")(**prompt).logits
        found = merged(**prompt).logits
    assert (found - tuned).abs().max() < 0.1 < (bare - tuned).abs().max()


def test_equal_adapters_give_equal_bytes_and_no_path_of_this_machine(ready: Path, tiny_base: Path) -> None:
    export.main(load_params())
    first = sha256_tree(paths.EXPORT), paths.EXPORT_REPORT.read_bytes()
    export.main(load_params())
    assert (sha256_tree(paths.EXPORT), paths.EXPORT_REPORT.read_bytes()) == first
    places = (str(ready).encode(), str(tiny_base).encode(), str(Path.home()).encode(), b".part")
    for path in [*paths.EXPORT.rglob("*"), paths.EXPORT_REPORT]:
        if path.is_file():
            assert not [place for place in places if place in path.read_bytes()], path


def test_the_report_names_every_file_with_its_digest(ready: Path) -> None:
    export.main(load_params())
    details = read_details(paths.EXPORT_REPORT)
    for folder, key in ((paths.EXPORT, "files"), (paths.ADAPTER, "adapter_files")):
        listed = {file["path"]: file["sha256"] for file in details[key]}
        found = {path.as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
        found.pop("models/export/manifest.json", None)
        assert listed == found
    assert "models/export/merged/model.safetensors" in {file["path"] for file in details["files"]}


def test_an_nf4_run_is_merged_onto_the_values_it_was_trained_on_and_loads_without_bitsandbytes(ready: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from stages.core.models import load_base, read_manifest
    from stages.core.params import Numerics

    # a random base has near-ties that rounding to bfloat16 turns; the divergence below is what counts here
    tiny.edit_params(ready, numerics__quantization="nf4", export__forms=["merged"], export__limits__merged__min_top1_agreement=0.8)
    export.main(load_params())
    base = load_base(read_manifest(paths.ADAPTER / "base.json"), Numerics(quantization="nf4", compute_dtype="bfloat16"), "cpu")
    adapter = load_file("models/adapter/adapter_model.safetensors")
    merged = load_file("models/export/merged/model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    low_rank = [adapter[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "BA"]
    trained_on = base.get_submodule(name).weight.float()
    assert torch.equal(merged[f"{name}.weight"], (trained_on + 2.0 * low_rank[0] @ low_rank[1]).bfloat16())
    details = read_details(paths.EXPORT_REPORT)
    assert details["compared"]["quantization"] == "nf4"
    assert details["agreement"]["answer"]["kl_mean_nats"] < 1e-3
    onto = {entry["onto"]: entry["kl_mean_nats"] for entry in details["merges"]}
    assert min(onto, key=lambda name: onto[name]) == details["merged_onto"]["weights"] == "the base's NF4 weights, unpacked"
    assert len(onto) == 2
    assert sorted(path.name for path in paths.EXPORT.iterdir()) == ["manifest.json", "merged", "serve.md"]
    assert "quantization_config" not in json.loads(Path("models/export/merged/config.json").read_text())


def test_a_merge_that_says_something_else_is_not_published(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.merge_into

    def wrong(folder: Path, *inputs: Any) -> None:
        from safetensors.torch import load_file, save_file

        real(folder, *inputs)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] = -weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(export, "merge_into", wrong)
    with pytest.raises(UserError, match=r"merged picks .* at 0\.\d+ of \d+ answer positions, .* export.limits.merged asks for 0.95"):
        export.main(load_params())
    assert not paths.EXPORT.exists()
    assert not paths.EXPORT_REPORT.exists()
    assert not list(paths.EXPORT.parent.glob(".*.part"))


def test_a_tokenizer_that_renders_otherwise_after_saving_is_not_published(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.merge_into

    def wrong(folder: Path, *inputs: Any) -> None:
        real(folder, *inputs)
        template = folder / "chat_template.jinja"
        template.write_text(template.read_text().replace("<|im_end|>", " "))

    monkeypatch.setattr(export, "merge_into", wrong)
    with pytest.raises(UserError, match="renders the test rows to other token ids"):
        export.main(load_params())
    assert not paths.EXPORT.exists()


def test_without_forms_the_adapter_ships_and_nothing_is_loaded(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.edit_params(ready, export__forms=[])
    monkeypatch.setattr(export, "load_tuned", None)
    export.main(load_params())
    assert [path.name for path in paths.EXPORT.iterdir()] == ["manifest.json"]
    assert json.loads((paths.EXPORT / "manifest.json").read_text())["ships"] == "adapter"


def test_a_full_disk_is_told_in_numbers_before_any_work(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 100_000))  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=r"merged, f16 take 0\.00 GB, twice with DVC's cache, and 0\.00 GB while they are made; 0\.00 GB are free"
    ):
        export.main(load_params())


def test_the_positions_compared_end_with_the_end_of_the_turn(ready: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("models/adapter")
    row = Row("", ({"role": "user", "content": "merge"},), None, None, "Permissive", "test", "1", None)
    (encoded,) = encode_rows([row], paths.ADAPTER, "You sort.", "{text}?")
    assert tokenizer.decode(encoded.ids[encoded.answer_start :]) == "Permissive<|im_end|>"
