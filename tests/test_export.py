"""export: the merged folder is the model that was measured, or nothing is published."""

import json
import os
import shutil
import threading
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core import embedded, paths
from stages.core.errors import UserError
from stages.core.files import read_details, sha256_file, sha256_tree, write_report
from stages.core.params import load_params
from stages.core.records import Row, read_rows, with_ids, write_rows
from stages.export import __main__ as export
from stages.export.agreement import encode_rows
from stages.export.held import sampled
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
    file = {"path": "data/sources/rows.jsonl", "sha256": "1" * 64, "rows": 120, "license": "cc-by-4.0"}
    (workspace / paths.REPORTS).mkdir(exist_ok=True)
    write_report(workspace / paths.FETCH_DATA_REPORT, {}, {"source": "files", "package": None, "files": [file]})
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


def test_merged_and_gguf_say_in_their_heads_licence_base_data_and_adapter(ready: Path) -> None:
    tiny.edit_params(ready, card__developed_by="Ada", card__repository="https://example.org/model.git")
    export.main(load_params())
    wanted = {
        "general.name": "smollm2-135m-licence-classifier",
        "general.license": "apache-2.0",
        "general.author": "Ada",
        "general.repo_url": "https://example.org/model.git",
        "general.base_model.0.name": "tiny",
        "luthier.base_model.0.license": "unknown",
        "general.dataset.0.name": "data/sources/rows.jsonl",
        "luthier.dataset.0.license": "cc-by-4.0",
        embedded.ADAPTER: sha256_file(paths.ADAPTER / "adapter_model.safetensors"),
    }
    for path in ("models/export/merged/model.safetensors", "models/export/gguf/model-f16.gguf"):
        found = embedded.said_by(Path(path))
        assert {name: found.get(name) for name in wanted} == wanted
    fields = GGUFReader("models/export/gguf/model-f16.gguf").fields  # by llama.cpp's own library
    assert fields["general.license"].contents() == "apache-2.0"
    assert (fields["general.base_model.count"].contents(), fields["general.dataset.count"].contents()) == (1, 1)


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


def test_every_form_has_its_figures_in_the_report_and_a_column_on_the_card(ready: Path) -> None:
    from stages.card.forms import table
    from stages.card.reading import Report, read

    tiny.edit_params(ready, export__forms=["f16", "q8_0"], export__limits__q8_0__min_top1_agreement=0.8)
    export.main(load_params())
    report = read_details(paths.EXPORT_REPORT)
    assert [form["form"] for form in report["forms"]] == ["f16", "q8_0"]
    for form in report["forms"]:
        assert form["answer"]["positions"] == report["agreement"]["answer"]["positions"]
        assert 0 <= form["answer"]["kl_mean_nats"] < 0.01
        assert form["answers"] == 4
    assert {file["path"] for file in report["files"]} == {
        "models/export/gguf/Modelfile",
        "models/export/gguf/model-f16.gguf",
        "models/export/gguf/model-q8_0.gguf",
        "models/export/serve.md",
    }
    paired = {"items": 4, "adapter": 0.5, "score": 0.25, "difference": -0.25, "ci95": [-0.6, 0.2], "p_holm": 0.5, "detectable": 0.7}
    forms = [{"form": form, "verdict": "no difference", **paired} for form in ("f16", "q8_0")]
    compared = Report({"forms": forms, "confusion": {}}, paths.COMPARE_REPORT)
    made = table(read(paths.EXPORT_REPORT), compared)
    assert made is not None
    assert made.heads == ["", "Adapter, none", "GGUF F16", "GGUF Q8_0"]
    assert made.rows[0] == ["accuracy on 4 test rows", "50.0\u00a0%", "25.0\u00a0%", "25.0\u00a0%"]
    assert made.rows[1][2:] == ["−25.0 points"] * 2
    assert {len(row) for row in made.rows} == {4}


def test_a_gguf_with_another_chat_template_is_not_published(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.write_gguf

    def wrong(folder: Path, *inputs: Any) -> dict[str, int]:
        other = folder.with_name("other")
        shutil.copytree(folder, other)
        template = other / "chat_template.jinja"
        template.write_text(template.read_text().replace("<|im_end|>", ""))
        return real(other, *inputs)

    monkeypatch.setattr(export, "write_gguf", wrong)
    with pytest.raises(UserError, match=r"f16's chat template renders test row \w+ to other token ids than the adapter's: at token \d+"):
        export.main(load_params())
    assert not paths.EXPORT.exists()


def test_a_gguf_with_another_tensor_is_not_published(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.write_gguf

    def wrong(folder: Path, target: Path, *inputs: Any) -> dict[str, int]:
        from gguf import GGUFReader

        types = real(folder, target, *inputs)
        reader = GGUFReader(target, "r+")
        tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_gate.weight")
        tensor.data[:4] = 0
        reader.data.flush()
        return types

    monkeypatch.setattr(export, "write_gguf", wrong)
    with pytest.raises(UserError, match=r"f16: model\.layers\.0\.mlp\.gate_proj\.weight is off by 0\.\d+ .* export\.limits\.f16 asks for"):
        export.main(load_params())
    assert not paths.EXPORT.exists()


def test_a_form_that_never_stops_is_not_published(ready: Path) -> None:
    from stages.export.agreement import check

    limit = load_params().export.limits.f16
    found = {"answer": {"top1_agreement": 1.0, "kl_mean_nats": 0.0, "positions": 9}, "stopped": 0.5, "same_answer": 1.0, "answers": 9}
    with pytest.raises(UserError, match=r"f16 stops by itself in 0\.5000 of .* export\.limits\.f16\.min_stopped asks for 0\.98"):
        check("f16", found, limit)
    check("f16", found | {"stopped": None}, limit)


def test_a_form_that_answers_otherwise_is_not_published(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.llama_answers
    monkeypatch.setattr(export, "llama_answers", lambda *inputs: [[7, *ids] for ids in real(*inputs)])
    with pytest.raises(
        UserError, match=r"f16 gives the adapter's greedy answer to 0\.0000 of 4 test rows, .*f16\.min_same_answer asks for"
    ):
        export.main(load_params())
    assert not paths.EXPORT.exists()
    assert not paths.FORMS.exists()


def test_every_forms_answers_are_kept_by_row_for_compare(ready: Path) -> None:
    tiny.edit_params(ready, export__answer_prompts=None)
    export.main(load_params())
    found = pq.read_table(paths.FORMS).to_pylist()
    ids = sorted(row.id for row in read_rows(paths.SPLIT_TEST))
    for form in ("merged", "f16"):
        assert [row["item_id"] for row in found if row["form"] == form] == ids
    assert [row["answer"] for row in found if row["form"] == "merged"] == [row["answer"] for row in found if row["form"] == "f16"]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=60), st.integers(0, 9), st.randoms())
def test_every_beginning_of_the_sample_has_the_labels_in_their_shares(labels: list[str | None], seed: int, random: Random) -> None:
    rows = [Row(str(number), (), None, None, label, "s", "o", None) for number, label in enumerate(labels)]
    drawn = sampled(rows, seed)
    assert sorted(row.id for row in drawn) == sorted(row.id for row in rows)
    for count in range(1, len(rows) + 1):
        for label in set(labels):
            share = sum(row.label == label for row in drawn[:count]) - count * labels.count(label) / len(rows)
            assert abs(share) < len(set(labels))
    random.shuffle(rows)
    assert sampled(rows, seed) == drawn


def test_base_and_every_artefact_answer_in_the_prompt_of_training(ready: Path) -> None:
    from contextlib import ExitStack

    from stages.cli.speakers import is_labelled, open_speakers, question

    export.main(load_params())
    params, said = load_params(), {}
    assert is_labelled()
    asked = question("permission granted free", params, labelled=True)
    assert [message["role"] for message in asked] == ["system", "user"]
    for artefact in (paths.ADAPTER, paths.EXPORT / "merged", paths.EXPORT / "gguf/model-f16.gguf"):
        with ExitStack() as stack:
            speakers = open_speakers(artefact, params, 6, stack)
            said[artefact] = {name: "".join(speaker(asked)).strip() for name, speaker in speakers.items()}
    first = said[paths.ADAPTER]
    assert first["base"] != first["tuned"]
    with ExitStack() as stack:
        running, half = threading.active_count(), open_speakers(paths.ADAPTER, params, 6, stack)["tuned"](asked)
        next(half)
        half.close()  # as Ctrl-C does
        assert threading.active_count() == running
    assert all(answers["base"] == first["base"] for answers in said.values())
    assert said[paths.EXPORT / "merged"]["tuned"] == first["tuned"]
    with pytest.raises(UserError, match=r"params\.yaml is no artefact"), ExitStack() as stack:
        open_speakers(Path("params.yaml"), params, 6, stack)


def test_a_gguf_is_served_on_loopback_to_whoever_has_the_key(ready: Path) -> None:
    import re
    import signal
    import subprocess
    import sys
    import urllib.error
    import urllib.request

    export.main(load_params())
    file = paths.EXPORT / "gguf/model-f16.gguf"
    command = [sys.executable, "-m", "stages.cli.main", "serve", str(file), "--port", "0", "--context", "128", "--key", "secret"]
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nohup and background jobs hand down an ignored one

    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stdout is not None
        found = re.fullmatch(r"export OPENAI_BASE_URL=(http://127\.0\.0\.1:\d+/v1) OPENAI_API_KEY=secret\n", process.stdout.readline())
        assert found is not None
        body = json.dumps({"messages": [{"role": "user", "content": "merge"}], "max_tokens": 3}).encode()
        headers = {"Content-Type": "application/json"}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(f"{found[1]}/chat/completions", body, headers))
        allowed = urllib.request.Request(f"{found[1]}/chat/completions", body, {**headers, "Authorization": "Bearer secret"})
        with urllib.request.urlopen(allowed) as reply:
            assert json.load(reply)["usage"]["completion_tokens"] >= 1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


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
