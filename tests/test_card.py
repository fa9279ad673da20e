"""The model card: no number that is in no report, metadata the hub can read, snippets that run, a provenance that holds."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from stages.card import __main__ as card
from stages.card.report import TEMPLATES
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details, sha256_file
from stages.core.params import load_params
from tests import pipeline, tiny
from tests.finished import change, lively, loss_only

UNITS = {"%": 100, "points": 100, "kB": 1e-3, "MB": 1e-6, "GB": 1e-9, "minutes": 1 / 60}
NUMBER = re.compile(
    r"(?P<digits>\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)(?: (?P<unit>%|points|kB|MB|GB|minutes)| to [−+]?[\d.]+(?: (?P<later>%))?)?"
)


def made() -> str:
    """Runs the stage and reads the card, its no-break spaces as spaces."""
    card.main(load_params())
    return paths.CARD.read_text(encoding="utf-8").replace("\u00a0", " ")


def leaves(value: Any) -> Iterator[Any]:
    """Every scalar of a nested structure."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from leaves(item) if isinstance(item, dict | list) else [item]


def unexplained(text: str) -> list[str]:
    """The numbers of a card that stand in no report, manifest, curve or parameter, in the rounding and unit they are written in."""
    parameters = load_params().model_dump(exclude={"runtime"})
    known: list[Any] = [
        parameters,
        *(json.loads(path.read_text()) for path in [paths.BASE, paths.PROVENANCE, *paths.REPORTS.glob("*.json")]),
    ]
    known += [[float(cell) for cell in paths.TRAIN_CURVE.read_text().replace("\n", ",").split(",") if cell and cell[0].isdigit()]]
    found = list(leaves(known))
    numbers = {float(leaf) for leaf in found if isinstance(leaf, int | float) and not isinstance(leaf, bool)}
    numbers.add(1 - parameters["compare"]["alpha"])
    names = {leaf for leaf in found if isinstance(leaf, str) and re.search(r"\d", leaf) and len(leaf) > 3 and not leaf.isdigit()}
    body = text.split("\n---\n", 1)[1].replace("\\|", "|").replace("&lt;", "<")
    for name in sorted(names, key=len, reverse=True):
        body = body.replace(json.dumps(name)[1:-1], " ").replace(name.replace("\n", " "), " ")
    body = re.sub("sha256|CO2|GGUF F16", "", body)
    wrong = []
    for match in NUMBER.finditer(body):
        digits = match["digits"].replace(",", "")
        mantissa, _, exponent = digits.partition("e")
        half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])) * (1 + 1e-9)
        line = body[body.rfind("\n", 0, match.start()) + 1 : match.end()]
        unit = match["unit"] or match["later"]
        # an interval's ends share the unit of the difference before them
        scales = [UNITS[unit]] if unit else [1, 100] if re.search(r" to |interval|points \|", line + match[0]) else [1]
        if not any(abs(abs(number) * scale - float(digits)) <= half for number in numbers for scale in scales):
            wrong.append(f"{match[0]} in {line!r}")
    return wrong


@pytest.mark.parametrize("edit", [lambda report: None, lively, loss_only], ids=["tiny run", "good run", "rows without labels"])
def test_every_number_of_the_card_stands_in_a_report(finished: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    change(paths.COMPARE_REPORT, edit)
    assert unexplained(made()) == []


def test_a_number_that_stands_in_no_report_is_noticed(finished: Path) -> None:
    text = made()
    for invented in (
        "It is right on 73.9 % of",
        "| train.rank | 91 |",
        "max_new_tokens=77",
        "in 481.7 minutes",
        "+12.3 to +45.7",
        "9.917e-05",
    ):
        assert len(unexplained(f"{text}\n{invented}\n")) >= 1, invented


def test_the_templates_hold_no_number_of_their_own() -> None:
    text = re.sub(r"\{[{%].*?[}%]\}", "", (TEMPLATES / "model_card.md.j2").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"\d[\d.]*", text.replace("sha256", "")) == []


@pytest.mark.parametrize(
    ("path", "keys", "value", "said"),
    [
        (paths.COMPARE_REPORT, ("domain", "tuned"), 0.4321, "43.2 %"),
        (paths.FETCH_DATA_REPORT, ("rejected", "over_max_rows"), 7654, "7,654 beyond the sample"),
        (paths.CLEAN_REPORT, ("rejected", "repetition"), 321, "321 repetition"),
        (paths.TRAIN_REPORT, ("train_loss",), 0.98761, "0.9876"),
        (paths.TRAIN_MACHINE, ("seconds",), 4321.0, "72.0 minutes"),
        (paths.EXPORT_REPORT, ("forms", 0, "answer", "kl_mean_nats"), 0.004321, "| 0.004321 |"),
        (paths.TOKENIZE_REPORT, ("sides", "train", "trained_tokens"), 98_765, "98,765"),
    ],
)
def test_a_report_s_number_is_the_card_s_number(finished: Path, path: Path, keys: tuple[str | int, ...], value: float, said: str) -> None:
    def edit(report: Any) -> None:
        for key in keys[:-1]:
            report = report[key]
        report[keys[-1]] = value

    change(path, edit)
    assert said in made()


def test_the_hub_reads_the_metadata(finished: Path) -> None:
    change(paths.COMPARE_REPORT, lively)
    data = ModelCard(made()).data
    params = load_params()
    assert (data.license, data.language, data.library_name) == (params.card.license, params.card.language, "peft")
    assert data.base_model == read_details_of_base()["name"]
    assert {"lora", "text-classification"} <= set(data.tags)
    results = {result.dataset_type: result for result in data.eval_results}
    assert set(results) == {"domain", "arc_easy", "hellaswag", "openbookqa", "lambada"}
    assert (results["domain"].metric_type, results["domain"].metric_value) == ("exact_match", 0.613)
    assert results["hellaswag"].dataset_split == "validation"


def read_details_of_base() -> dict[str, Any]:
    """models/base.json."""
    return dict(json.loads(paths.BASE.read_text()))


def test_what_the_card_says_of_loading_runs(finished: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", made(), flags=re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "generated_text" in done.stdout


def test_a_verdict_names_gain_loss_and_the_better_tool(finished: Path) -> None:
    change(paths.COMPARE_REPORT, lively)
    text = made()
    right = "It is right on 61.3 % of 24 held-out rows; the base, asked in the way that suits it best, is right on 22.0 %."
    assert f"**Better at its task.** {right}" in text
    assert "reaches 83.7 %: where only the label is wanted, it is the better and far cheaper tool" in text
    change(paths.COMPARE_REPORT, lambda report: report["others"][0].update(p_holm=0.4))
    assert "reaches 83.7 %, no difference beyond chance: where only the label is wanted, it does as well and is far cheaper" in made()
    change(paths.COMPARE_REPORT, lambda report: report.update(forgetting="over limit"))
    assert "but it forgot too much" in made()
    change(paths.COMPARE_REPORT, lambda report: report.update(verdict="worse", forgetting="none"))
    assert "**Worse at its task.**" in made()


def test_energy_is_told_with_its_co2_and_its_lack_is_told_too(finished: Path) -> None:
    assert "not measured on this machine" in made()
    tiny.edit_params(finished, card__watts=30.0)
    change(paths.TRAIN_MACHINE, lambda report: report.update(seconds=36_000.0))
    text = made()
    assert "| Energy | 0.3 kWh, not measured but reckoned from 30 W (card.watts) and the time |" in text
    assert "| CO2 | 105 g at 350 g/kWh |" in text
    assert "source: energy reckoned from 30.0 W at 350.0 g CO2/kWh" in text
    change(paths.TRAIN_MACHINE, lambda report: report.update(energy_joules=7.2e6))
    text = made()
    assert "| Energy | 2 kWh |" in text
    assert "| CO2 | 700 g at 350 g/kWh |" in text
    assert "| Cost of the energy | 0.6 EUR at 0.3 EUR/kWh |" in text
    assert unexplained(text) == []


def test_another_price_changes_the_card_and_no_stage_before_it(finished: Path) -> None:
    change(paths.TRAIN_MACHINE, lambda report: report.update(energy_joules=7.2e6))
    tiny.edit_params(finished, card__price_per_kwh=0.12, card__currency="USD")
    assert "| Cost of the energy | 0.24 USD at 0.12 USD/kWh |" in made()
    readers = [stage.name for stage in pipeline.stages() if {"card", "card.price_per_kwh", "card.currency"} & stage.params]
    assert readers == ["card"]


def test_heat_throttling_ceiling_left_out_steps_and_what_the_rules_said_are_told(finished: Path) -> None:
    text = made()
    assert "Hottest" not in text
    assert "What was noticed" not in text
    held = {"throttled": 75.0, "throttled_power": 61.0, "throttled_heat": 14.0, "throttled_hardware": 0.0}
    message = "the last 10 steps made 600 tokens a second, the run's median is 1,000; another process took 5.0 GiB | of it"

    def edit(report: dict[str, Any]) -> None:
        report.update(ceiling_share=0.4567, matmul_teraflops=785.2)
        report["sensors"] |= {"hottest_c": 83.0, "throttled_seconds": held}
        report["events"] = [{"step": 41, "rule": "throughput", "action": "warn", "message": message}]

    change(paths.TRAIN_MACHINE, edit)
    change(paths.TRAIN_REPORT, lambda report: report.update(left_out=[{"step": 7, "rows": ["a", "b"]}]))
    text = made()
    assert "| Share of the ceiling | 45.7 % of the 785.2 TFLOP/s that this GPU multiplies matrices with |" in text
    assert "| Hottest | 83 °C |" in text
    assert "| Clock held down | 75 seconds (61 seconds by the power limit, 14 seconds by heat) |" in text
    assert "| Step 41, throughput | the last 10 steps made 600 tokens a second" in text
    assert "The rows of step 7 were left out, since a rule said roll_back." in text
    assert unexplained(text) == []
    assert "What was noticed while it trained" in paths.HTML_REPORT.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "key"),
    [(paths.COMPARE_REPORT, "verdict"), (paths.TRAIN_MACHINE, "seconds"), (paths.LABEL_REPORT, "suspects"), (paths.EXPORT_REPORT, "ships")],
)
def test_a_missing_key_is_an_error_that_names_report_and_key(finished: Path, path: Path, key: str) -> None:
    before = paths.CARD.read_bytes()
    change(path, lambda report: report.pop(key))
    with pytest.raises(UserError, match=rf"{path} has no {key}, which the card tells; write it anew: dvc repro -f -s"):
        made()
    assert paths.CARD.read_bytes() == before


def test_a_missing_key_deep_in_a_report_is_told_with_its_place(finished: Path) -> None:
    change(paths.TOKENIZE_REPORT, lambda report: report["sides"]["train"].pop("tokens"))
    with pytest.raises(UserError, match=r"reports/tokenize\.json has no sides\.train\.tokens"):
        made()


def test_a_missing_or_mangled_report_is_told(finished: Path) -> None:
    paths.SPLIT_REPORT.unlink()
    with pytest.raises(UserError, match=r"reports/split\.json is missing; run the stage that writes it"):
        made()
    paths.SPLIT_REPORT.write_text("[1")
    with pytest.raises(UserError, match=r"reports/split\.json is not a report as the stages write it"):
        made()


def licensed(licence: str | None) -> None:
    """Lets fetch_data's report state the licence of its only file."""
    change(paths.FETCH_DATA_REPORT, lambda report: report["files"][0].update(license=licence))


def test_data_that_forbids_commercial_use_cannot_ship_under_a_free_licence(finished: Path) -> None:
    licensed("CC-BY-NC-4.0")
    said = r"card\.license is apache-2\.0, but the data data/sources/rows\.jsonl is under CC-BY-NC-4\.0, which forbids commercial use"
    with pytest.raises(UserError, match=said):
        made()
    tiny.edit_params(finished, card__license="cc-by-nc-4.0")
    text = made()
    assert "license: cc-by-nc-4.0" in text
    assert "- The data data/sources/rows.jsonl is under CC-BY-NC-4.0, which forbids commercial use." in text
    tiny.edit_params(finished, card__license="other")
    assert "The model is under terms of its own (other), which nobody has compared with these." in made()


def test_the_licence_of_a_hub_base_counts_too(finished: Path) -> None:
    manifest = read_details_of_base()
    paths.BASE.chmod(0o644)
    paths.BASE.write_text(json.dumps(manifest | {"license": "cc-by-nd-4.0"}))
    with pytest.raises(UserError, match=r"but the base tiny-base is under cc-by-nd-4\.0, which allows no derivative to be shared"):
        made()


def test_a_licence_that_is_unknown_or_not_stated_is_told(finished: Path) -> None:
    assert "The data data/sources/rows.jsonl states no licence: ask its owner before you share the model." in made()
    licensed("LicenseRef-ours")
    assert "is under LicenseRef-ours, which is no licence of SPDX: read it before you share the model." in made()


def test_the_metadata_survives_the_way_through_the_hub_s_model_index(finished: Path) -> None:
    change(paths.COMPARE_REPORT, lively)
    change(paths.TRAIN_MACHINE, lambda report: report.update(energy_joules=7.2e6))
    data = ModelCard(made()).data
    results = data.eval_results
    name, again = model_index_to_eval_results(eval_results_to_model_index(data.model_name, results))
    assert (name, again) == (load_params().card.name, results)
    assert ModelCardData(**data.to_dict(), ignore_metadata_errors=False).to_dict() == data.to_dict()
    assert data.to_dict()["co2_eq_emissions"]["emissions"] == 700
    assert next(result for result in results if result.dataset_type == "hellaswag").dataset_revision == load_params().general.version


def test_the_card_has_every_section_of_the_hub_s_template_that_is_not_optional(finished: Path) -> None:
    template = (Path(huggingface_hub.__file__).parent / "templates/modelcard_template.md").read_text(encoding="utf-8")
    wanted = {line.lstrip("# ") for line in template.splitlines() if re.match("##+ ", line) and "[optional]" not in line}
    found = {line.lstrip("# ") for line in made().splitlines() if re.match("##+ ", line)}
    assert wanted - found == set()


def test_the_first_screen_asks_and_answers_in_plain_words(finished: Path) -> None:
    text = made()
    first = text.partition("\n---\n")[2].partition("## Model Details")[0]
    asked = re.findall(r"^\*\*(.+?\?)\*\* \S", first, flags=re.M)
    assert asked[:3] == ["What is it?", "What is it for?", "How was it tested?"]
    assert {"What is it not for?", "May I use it?"} <= set(asked)
    for word in ("KL", "nats", "token", "LoRA", "NF4", "nf4"):
        assert word not in first


def test_the_weaknesses_are_those_of_the_reports(finished: Path) -> None:
    def edit(report: dict[str, Any]) -> None:
        lively(report)
        shares = {"Commercial": 0.0, "Copyleft": 0.4375, "Permissive": 0.9375}
        report["slices"] = [part for part in report["slices"] if part["by"] != "label"] + [
            {"by": "label", "slice": name, "items": 16, "base": 0.0, "tuned": share} for name, share in shares.items()
        ]
        general = next(entry for entry in report["tasks"] if entry["task"] != "domain")
        general |= {"difference": -0.0813, "p_holm": 0.01, "lost": 9}

    change(paths.COMPARE_REPORT, edit)
    text = made()
    assert "- It is right least often on the labels Copyleft (43.8 % of 16 rows), Permissive (93.8 % of 16 rows)." in text
    assert "- It was right on no test row of: Commercial (16)." in text
    assert re.search(r"- On \S+ it changed by −8\.1 points, beyond chance: 9 questions lost", text)
    assert "Where it is weak" in paths.HTML_REPORT.read_text(encoding="utf-8")


def test_without_a_merge_the_card_says_that_the_adapter_ships(finished: Path) -> None:
    def adapter_only(report: dict[str, Any]) -> None:
        kept = {key: report[key] for key in ("base", "adapter_files", "adapter_bytes")}
        report.clear()
        report |= {"ships": "adapter", "forms": [], "files": [], **kept}

    change(paths.EXPORT_REPORT, adapter_only)
    text = made()
    assert "The adapter ships alone (export.forms: [])." in text
    assert "models/export" not in text


def test_provenance_names_every_file_with_its_digest_and_the_commit_it_came_from(finished: Path) -> None:
    made()
    found = json.loads(paths.PROVENANCE.read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert found["code"] == {"commit": head, "dirty": False}  # the card just written is a result, not a change
    assert {path: sha256_file(Path(path)) for path in found["files"]} == found["files"]
    parents = {
        "models/adapter/adapter_model.safetensors",
        "models/export/merged/model.safetensors",
        "models/base.json",
        "data/raw/rows.parquet",
    }
    assert parents <= set(found["files"])
    (finished / "params.yaml").write_text((finished / "params.yaml").read_text() + "\n# a remark\n")
    made()
    again = json.loads(paths.PROVENANCE.read_text())
    assert again["code"]["dirty"] is True
    assert f"git checkout {head}  # and the changes that were not committed" in paths.CARD.read_text()
    assert again["params"] == found["params"]
    tiny.edit_params(finished, runtime__log_every=3)
    made()
    assert json.loads(paths.PROVENANCE.read_text())["params"] == found["params"]
    tiny.edit_params(finished, train__rank=2)
    made()
    assert json.loads(paths.PROVENANCE.read_text())["params"]["sha256"] != found["params"]["sha256"]


def test_a_cell_cannot_break_the_card_s_tables(finished: Path) -> None:
    tiny.edit_params(finished, prompt__system="Sort | <b>now</b>\nplease.")
    line = next(line for line in made().splitlines() if line.startswith("| prompt.system"))
    assert line == "| prompt.system | Sort \\| &lt;b>now&lt;/b> please. |"


def test_the_edits_of_these_tests_leave_every_other_number_alone(finished: Path) -> None:
    before = read_details(paths.COMPARE_REPORT)
    after = copy.deepcopy(before)
    lively(after)
    assert before.keys() == after.keys()
