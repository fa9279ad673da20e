"""The verdicts of compare on evaluations whose truth is known."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.compare import __main__ as compare
from stages.compare.calibration import calibration
from stages.compare.slices import cuts
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.params import Params, load_params
from stages.core.records import Row, with_ids, write_rows, write_table
from stages.export.__main__ import ANSWERS
from tests import tiny
from tests.rows import chat, numbered

SETTINGS: dict[str, Any] = {
    "seed": 1,
    "device": "cpu",
    "versions": {"torch": "2"},
    "tasks": {
        "domain_plain": {"metric": "exact_match", "higher_is_better": True, "sha256": "a"},
        "arc_easy_raw": {"metric": "acc_norm", "higher_is_better": True, "sha256": "b"},
        "lambada_raw": {"metric": "acc", "higher_is_better": True, "sha256": "c"},
    },
}
LABELS = sorted(tiny.WORDS)


def labelled(count: int, start: int = 0) -> list[Row]:
    rows = []
    for text in tiny.labelled_rows(start + count)[start:]:
        messages = ({"role": "user", "content": text["text"]}, {"role": "assistant", "content": text["label"]})
        rows.append(Row("", messages, None, None, text["label"], "s", "o", None))
    return list(with_ids(rows))


TEST, TRAIN = labelled(120), labelled(60, start=200)


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The committed parameters, in an empty folder that holds test and training rows."""
    params = load_params(tiny.ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    for path in (paths.SPLIT_TEST, paths.EVALUATION["base"]):
        path.parent.mkdir(parents=True)
    write_rows(paths.SPLIT_TEST, TEST)
    write_rows(paths.SPLIT_TRAIN, TRAIN)
    share({})
    ship({})
    paths.GENERAL.mkdir()
    for task in ("arc_easy", "lambada"):
        lines = [json.dumps({"id": str(number), "context": f"question {number}"}) for number in range(400)]
        (paths.GENERAL / f"{task}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return params


def share(items: dict[str, list[str]]) -> None:
    """Says which items share words with a training row, by task."""
    columns = {"task": pa.array([task for task, ids in items.items() for _ in ids], pa.string())}
    write_table(
        paths.SPLIT_OVERLAP, pa.table({**columns, "item_id": pa.array([name for ids in items.values() for name in ids], pa.string())})
    )


def ship(right: dict[str, set[int]], count: int = len(TEST)) -> None:
    """Says which of the first test rows each form answers right."""
    rows = [
        {"form": form, "item_id": row.id, "answer": row.answer.upper() if number in numbers else "none", "ended": True}
        for form, numbers in right.items()
        for number, row in enumerate(TEST[:count])
    ]
    write_table(paths.FORMS, pa.Table.from_pylist(rows, schema=ANSWERS))


def domain(right: set[int], prompt: str = "plain") -> list[dict[str, Any]]:
    """The test rows, of which some are answered right, some with another label and some with no label."""
    items = []
    for number, row in enumerate(TEST):
        answer = f" {row.answer}." if number in right else [LABELS[LABELS.index(row.answer) - 1], "I think so"][number % 2]
        items.append(
            {"task": "domain", "prompt": prompt, "item_id": row.id, "score": float(number in right), "answer": answer, "target": row.answer}
        )
    return items


def general(right: set[int], count: int = 400) -> list[dict[str, Any]]:
    names = ["arc_easy", "lambada"]
    return [
        {"task": names[n % 2], "prompt": "raw", "item_id": f"{n}", "score": float(n in right), "answer": None, "target": "x"}
        for n in range(count)
    ]


def write(variant: str, items: list[dict[str, Any]], settings: dict[str, Any] = SETTINGS) -> None:
    keys = [*SETTINGS["tasks"], "domain_few_shot"]
    asked = {f"{item['task']}_{item['prompt']}" for item in items}
    tasks = {key: settings["tasks"].get(key, settings["tasks"]["domain_plain"]) for key in keys if key in asked}
    write_table(
        paths.EVALUATION[variant],
        pa.Table.from_pylist(items).replace_schema_metadata({"settings": json.dumps({**settings, "tasks": tasks})}),
    )


def report(params: Params) -> dict[str, Any]:
    compare.main(params)
    return read_details(paths.COMPARE_REPORT)


def test_a_shipped_form_is_held_against_the_adapters_own_answers_to_the_rows_it_answered(params: Params) -> None:
    write("base", [*domain(set()), *general(set(range(250)))])
    write("tuned", [*domain(set(range(90))), *general(set(range(250)))])
    ship({"merged": set(range(90)), "q4_k_m": set(range(20, 60))}, 100)
    merged, small = report(params)["forms"]
    assert (merged["form"], merged["items"], merged["adapter"], merged["score"]) == ("merged", 100, 0.9, 0.9)
    assert (merged["difference"], merged["p_value"], merged["verdict"]) == (0, 1, "no difference")
    assert (small["score"], small["won"], small["lost"], small["verdict"]) == (0.4, 0, 50, "worse")
    assert small["ci95"][0] < small["difference"] == -0.5 < small["ci95"][1] < 0
    assert small["p_holm"] == pytest.approx(2 * small["p_value"], rel=1e-5, abs=0)


def test_a_model_compared_with_itself_shows_no_difference_and_forgets_nothing(params: Params) -> None:
    items = [*domain(set(range(40))), *general(set(range(250)))]
    write("base", items)
    write("tuned", items)
    found = report(params)
    assert (found["verdict"], found["forgetting"]) == ("no difference", "none")
    assert (found["domain"]["difference"], found["domain"]["p_value"], found["general"]["difference"]) == (0, 1, 0)
    assert (found["won"], found["lost"]) == ([], [])


def test_a_better_model_is_called_improved_against_the_bases_best_prompt(params: Params) -> None:
    write("base", [*domain(set(range(10))), *domain(set(range(50)), "few_shot"), *general(set(range(250)))])
    write("tuned", [*domain(set(range(5, 110))), *general(set(range(250)))])
    found = report(params)
    assert found["verdict"] == "improved"
    assert found["base_prompt"] == "few_shot"
    assert found["domain"]["base"] == found["domain"]["base_few_shot"] == pytest.approx(50 / 120)
    assert found["domain"]["tuned"] == pytest.approx(105 / 120)
    assert found["domain"]["ci95"][0] < found["domain"]["difference"] < found["domain"]["ci95"][1]
    (row,) = [task for task in found["tasks"] if (task["task"], task["prompt"]) == ("domain", "few_shot")]
    assert (row["won"], row["lost"]) == (60, 5)
    assert sorted(found["lost"]) == sorted(row.id for row in TEST[:5])
    assert len(found["samples"]) == 6
    assert found["samples"][0]["text"] in {row.text for row in TEST}


@pytest.mark.parametrize(("lost", "word"), [(0, "none"), (3, "none"), (12, "within limit"), (60, "over limit")])
def test_forgetting_is_judged_by_the_pooled_general_items(params: Params, lost: int, word: str) -> None:
    write("base", [*domain(set(range(40))), *general(set(range(300)))])
    write("tuned", [*domain(set(range(40))), *general(set(range(lost, 300)))])
    found = report(params)
    assert found["forgetting"] == word
    assert found["general"]["difference"] == pytest.approx(-lost / 400)
    assert found["general"]["items"] == 400
    assert {item["item_id"] for item in found["general_lost"]} <= {str(number) for number in range(lost)}
    assert len(found["general_lost"]) == min(lost, 24)
    assert found["general_loss"]["up_to"] > lost / 400
    assert found["general_loss"]["limit_excluded"] == (found["general_loss"]["up_to"] <= params.compare.max_forgetting)


def test_a_loss_over_the_limit_stops_the_pipeline_where_asked_and_the_report_names_the_items(params: Params) -> None:
    write("base", [*domain(set(range(40))), *general(set(range(300)))])
    write("tuned", [*domain(set(range(40))), *general(set(range(60, 300)))])
    gate = params.model_copy(update={"compare": params.compare.model_copy(update={"gate": "stop"})})
    with pytest.raises(UserError, match=r"lost 15.0 points on 400 general items, and compare.max_forgetting tolerates 5"):
        compare.main(gate)
    lost = read_details(paths.COMPARE_REPORT)["general_lost"]
    assert lost[0] == {"task": "arc_easy", "item_id": "0", "text": "question 0", "target": "x", "base": None, "tuned": None}
    write("tuned", [*domain(set(range(40))), *general(set(range(3, 300)))])
    compare.main(gate)


def test_a_task_is_forgotten_only_beyond_the_chance_that_several_tasks_give(params: Params) -> None:
    write("base", [*domain(set(range(40))), *general(set(range(400)))])
    write("tuned", [*domain(set(range(40))), *general(set(range(400)) - set(range(0, 12, 2)))])  # six of arc_easy: p = 0.031
    found = report(params)
    arc = next(task for task in found["tasks"] if task["task"] == "arc_easy")
    assert arc["p_value"] < params.compare.alpha < arc["p_holm"]
    assert found["general_loss"]["by_task"][0] == {"task": "arc_easy", "forgetting": "none"}


def test_the_worst_slice_has_enough_items_and_is_named_with_what_the_base_does_there(params: Params) -> None:
    write("base", [*domain(set(range(120)))])
    write("tuned", [*domain({number for number in range(120) if TEST[number].answer != LABELS[0]})])
    found = report(params)
    assert (found["worst_slice"]["by"], found["worst_slice"]["slice"], found["worst_slice"]["tuned"]) == ("label", LABELS[0], 0)
    assert found["worst_slice"]["base"] == 1
    assert found["worst_slice"]["p_holm"] >= found["worst_slice"]["p_value"]
    assert found["worst_slice"]["classical"] > 0.9


def test_slices_by_language_hold_the_rows_whose_language_is_sure() -> None:
    german = [
        chat(f"Wie widerruft der Käufer den Vertrag Nummer {n}, wenn die Ware fehlt?", "Innerhalb von vierzehn Tagen.") for n in range(3)
    ]
    english = [
        chat(f"How does the buyer cancel order {n}, when it has not arrived and they want it?", "Within fourteen days.") for n in range(4)
    ]
    rows = {row.id: row for row in numbered([*german, *english, chat("x = 1", "y = 2")])}
    found = cuts(sorted(rows), rows)["language"]
    assert {name: len(keys) for name, keys in found.items()} == {"de": 3, "en": 4}


def test_the_bases_best_way_of_asking_is_corrected_for_the_number_of_ways(params: Params) -> None:
    scored = [{**item, "task": "label_scores", "probability": 0.5} for item in domain(set(range(60)))]
    settings = {**SETTINGS, "tasks": {**SETTINGS["tasks"], "label_scores_plain": {**SETTINGS["tasks"]["domain_plain"], "metric": "acc"}}}
    write("base", [*({**item, "probability": None} for item in domain(set(range(48, 102)))), *scored], settings)
    write("tuned", [*domain(set(range(54)))], settings)
    found = report(params)
    assert found["base_prompt"] == "plain_scored"
    assert found["domain"]["p_value"] == pytest.approx(2 / 2**6)
    assert found["domain"]["p_holm"] == pytest.approx(4 / 2**6)
    assert found["verdict"] == "no difference"
    assert found["calibration"]["base"]["brier"] == pytest.approx(0.25)


def test_evaluations_that_were_not_made_alike_are_refused_with_what_differs(params: Params) -> None:
    items = [*domain({1}), *general({1})]
    write("base", items)
    other = {**SETTINGS, "device": "cuda", "versions": {"torch": "3"}}
    write("tuned", items, {**other, "tasks": {**SETTINGS["tasks"], "lambada_raw": {**SETTINGS["tasks"]["lambada_raw"], "sha256": "z"}}})
    with pytest.raises(UserError, match=r"device \(cpu and cuda\), tasks.lambada_raw.sha256 \(c and z\), versions.torch \(2 and 3\)"):
        compare.main(params)
    assert not paths.COMPARE_REPORT.exists()


def test_the_classical_baseline_learns_from_the_training_rows_and_stands_beside_the_verdict(params: Params) -> None:
    write("base", [*domain(set()), *general(set())])
    write("tuned", [*domain(set(range(120))), *general(set())])
    found = report(params)
    assert found["domain"]["classical"] > 0.9  # the labels have words of their own
    assert [(entry["prompt"], entry["base"]) for entry in found["others"]] == [
        ("tf-idf", found["domain"]["classical"]),
        ("majority", pytest.approx(1 / 3)),
    ]
    assert sum(map(sum, found["confusion"]["base"]["counts"])) == 120
    assert found["confusion"]["tuned"]["counts"] == [[40 * (i == j) for j in range(4)] for i in range(3)]
    labels = [part for part in found["slices"] if part["by"] == "label"]
    assert [(part["slice"], part["items"], part["base"], part["tuned"]) for part in labels] == [(label, 40, 0, 1) for label in LABELS]
    assert {part["by"] for part in found["slices"]} == {"label"}  # one source, no group, every text of eight words


def test_every_task_is_reported_on_all_items_and_on_those_that_share_no_words_with_a_training_row(params: Params) -> None:
    write("base", [*domain(set(range(30))), *general(set(range(150)))])
    write("tuned", [*domain(set(range(10, 90))), *general(set(range(140)))])
    share({"domain": [row.id for row in TEST[:20]], "lambada": ["1", "3"]})
    found = report(params)
    assert {(task["task"], task["items"], task["clean"]["items"]) for task in found["tasks"]} == {
        ("domain", 120, 100),
        ("arc_easy", 200, 200),
        ("lambada", 200, 198),
    }
    clean = found["domain"]["clean"]
    assert (clean["base"], clean["tuned"]) == (pytest.approx(10 / 100), pytest.approx(70 / 100))
    assert clean["ci95"][0] < clean["difference"] < clean["ci95"][1]
    assert found["domain"]["tuned"] == pytest.approx(80 / 120)


def test_a_gain_that_only_items_with_words_of_the_training_rows_show_is_told_beside_the_verdict(params: Params) -> None:
    write("base", [*domain(set(range(60, 90))), *general(set())])
    write("tuned", [*domain(set(range(90))), *general(set())])
    assert report(params)["clean_note"] is None
    share({"domain": [row.id for row in TEST[:60]]})
    found = report(params)
    assert found["verdict"] == "improved"
    told = "On the 60 of 120 items that share no 8 words in a row with a training row the verdict is: no difference (+0.000"
    assert found["clean_note"].startswith(told)
    share({"domain": [row.id for row in TEST]})
    assert report(params)["clean_note"].startswith("All 120 items share at least 8 words in a row with a training row")


def test_probabilities_that_come_true_are_calibrated_and_overconfidence_is_not() -> None:
    rng = random.Random(0)
    sure = {f"{number:04}": rng.random() for number in range(4000)}
    items = {key: {"item_id": key, "probability": p, "score": float(rng.random() < p)} for key, p in sure.items()}
    found = calibration(items)
    assert found["ece"] < 0.03
    assert found["brier"] == pytest.approx(1 / 6, abs=0.02)  # the mean of p (1 - p) over [0, 1]
    assert [part["items"] for part in found["bins"]] == [400] * 10
    boasting = calibration({key: {**item, "probability": 1.0} for key, item in items.items()})
    assert boasting["ece"] == pytest.approx(1 - boasting["accuracy"])


def test_the_report_has_the_same_bytes_twice(params: Params) -> None:
    write("base", [*domain(set(range(30))), *general(set(range(150)))])
    write("tuned", [*domain(set(range(20, 90))), *general(set(range(140)))])
    compare.main(params)
    first = paths.COMPARE_REPORT.read_bytes()
    compare.main(params)
    assert paths.COMPARE_REPORT.read_bytes() == first
