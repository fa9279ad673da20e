"""Rows without labels: how their answers are scored, and what evaluate and compare make of them on the tiny base."""

import json
import math
import random
import re
import string
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from stages.card import result_facts
from stages.compare import __main__ as compare
from stages.compare import measures
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.models import load_tokenizer
from stages.core.params import Params, load_params
from stages.core.prompts import render_prompt
from stages.core.records import Row, write_rows, write_table
from stages.evaluate import __main__ as evaluate
from stages.evaluate.domain import free_tasks
from stages.export.__main__ import ANSWERS
from tests import tiny
from tests.rows import chat, numbered, preference
from tests.test_evaluate import write_adapter, write_inputs

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(alphabet=string.printable))
def test_words_of_ascii_text_are_those_of_rouge_score(text: str) -> None:
    assert measures.Words().tokenize(text) == DefaultTokenizer().tokenize(text)


def test_rouge_and_chrf_read_every_script() -> None:
    assert measures.Words().tokenize("Ärzte, 合同法 x_y") == ["ärzte", "合", "同", "法", "x", "y"]
    for target, near, far in [("合同法规定", "合同法", "买方权利"), ("Der Käufer widerruft", "Käufer widerruft", "Le client paie")]:
        for measure in (measures.rouge_l, measures.chrf):
            assert measure(target, target) == pytest.approx(1)
            assert 1 > measure(near, target) > measure(far, target)


@pytest.mark.parametrize(
    ("answer", "target", "exact", "normalised"),
    [
        (" Paris\n", "Paris", 1, 1),
        ("The Eiffel Tower.", "eiffel   tower", 0, 1),
        ("an apple", "apple pie", 0, 0),
        ("theatre", "atre", 0, 0),  # an article is a whole word
    ],
)
def test_matches_are_exact_or_without_case_marks_and_articles(answer: str, target: str, exact: float, normalised: float) -> None:
    assert (measures.exact_match(answer, target), measures.normalised_match(answer, target)) == (exact, normalised)


@given(JSON)
def test_json_of_the_same_value_is_equal_however_it_is_written(value: Any) -> None:
    one, other = json.dumps(value, indent=2, sort_keys=True), json.dumps(value, ensure_ascii=False)
    assert measures.json_equal(one, other) == measures.json_valid(one, "") == 1


@pytest.mark.parametrize("answer", ['{"a": true}', '{"a": 1, "b": 2}', '```json\n{"a": 1}\n```', '{"a": 1} as asked', "", '{"a": NaN}'])
def test_json_of_another_value_or_with_anything_around_it_is_not_equal(answer: str) -> None:
    assert measures.json_equal(answer, '{"a": 1}') == 0
    assert measures.json_valid(answer, "") == answer.endswith("}") * ("NaN" not in answer)


REFERENCES = {"r1": "free text", "r2": '{"a": 1}'}


@pytest.mark.parametrize(
    ("asked", "labelled", "written", "sentence"),
    [
        (["rouge_l"], True, True, "names rouge_l, but every test row has a label"),
        (["bits_per_byte", "chrf"], False, False, "names chrf, but no answer was written: evaluate.max_free_tokens is 0"),
        (["json_equal"], False, True, "names json_equal, but the reference answer of test row r1 is no JSON object or array: 'free text'"),
    ],
)
def test_a_measure_that_the_rows_cannot_have_is_refused_in_a_sentence(
    asked: list[str], labelled: bool, written: bool, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        measures.chosen(asked, labelled, REFERENCES, written)


def test_what_is_measured_by_itself_follows_from_the_rows() -> None:
    texts = ["bits_per_byte", "rouge_l", "chrf", "normalised_match", "exact_match"]
    assert measures.chosen("auto", True, {}, True) == ["exact_match"]
    assert measures.chosen("auto", False, REFERENCES, True) == texts
    assert measures.chosen("auto", False, {"r2": "[1]"}, True) == [*texts, "json_valid", "json_equal"]
    assert measures.chosen("auto", False, REFERENCES, False) == ["bits_per_byte"]


def free(count: int, start: int = 0) -> list[Row]:
    """Conversations without labels, each with a system message."""
    rng = random.Random(start)
    words = [word for group in tiny.WORDS.values() for word in group]
    return numbered(
        [
            chat(f"explain {' '.join(rng.sample(words, 4))} {n}", " ".join(rng.sample(words, 5)), system="explain")
            for n in range(start, start + count)
        ]
    )


def settings(**changes: Any) -> Params:
    """The workspace's parameters with others in `compare`."""
    params = load_params()
    return params.model_copy(update={"compare": params.compare.model_copy(update=changes)})


def test_free_answers_are_written_and_weighed_for_every_way_of_asking_and_compared_by_every_measure(
    workspace: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, train = free(12), free(20, start=100)
    write_inputs(tiny_base, test, train)
    evaluate.main("base", load_params())
    write_adapter(tiny_base, 0.5)
    evaluate.main("tuned", load_params())
    items = [{**item, "variant": v} for v, path in paths.EVALUATION.items() for item in pq.read_table(path).to_pylist()]
    asked = {(item["variant"], item["task"], item["prompt"]) for item in items if item["prompt"] != "raw"}
    assert asked == {
        *(("base", task, prompt) for task in ("domain", "reference") for prompt in ("plain", "few_shot", "retrieved")),
        *(("tuned", task, "plain") for task in ("domain", "reference")),
    }
    reports = {variant: read_details(path) for variant, path in paths.EVALUATE_REPORT.items()}
    written = next(entry for entry in reports["base"]["tasks"] if (entry["task"], entry["prompt"]) == ("domain", "plain"))
    assert written["truncated"] == 12  # a random model never ends its turn
    assert "12 of 12 answers to domain_plain were cut at their limit of new tokens" in capsys.readouterr().err
    weighed = next(entry for entry in reports["base"]["tasks"] if (entry["task"], entry["prompt"]) == ("reference", "plain"))
    rows = [item for item in items if (item["variant"], item["task"], item["prompt"]) == ("base", "reference", "plain")]
    nats = [row["score"] * math.log(2) * len(row["target"].encode()) for row in rows]
    assert weighed["perplexity"] == pytest.approx(math.exp(sum(nats) / sum(row["target_tokens"] for row in rows)), rel=1e-4)

    compare.main(settings())
    found = read_details(paths.COMPARE_REPORT)
    assert (found["domain"]["metric"], found["domain"]["classical"], found["confusion"]) == ("bits_per_byte", None, None)
    assert [entry["metric"] for entry in found["measures"]] == ["rouge_l", "chrf", "normalised_match", "exact_match"]
    assert all(entry["p_value"] <= entry["p_holm"] and entry["items"] == 12 for entry in found["measures"])
    assert all(sample["tuned"] is not None for sample in found["samples"])
    assert all(0 < entry["copied"] < 1 for entry in found["measures"][:2])  # chance words in common
    assert set(found["by_measure"]) == {entry["metric"] for entry in found["measures"]}
    first = paths.COMPARE_REPORT.read_bytes()
    compare.main(settings())
    assert paths.COMPARE_REPORT.read_bytes() == first

    compare.main(settings(metrics=["chrf", "nats_per_token"]))
    found = read_details(paths.COMPARE_REPORT)
    assert [found["domain"]["metric"], *(entry["metric"] for entry in found["measures"])] == ["chrf", "nats_per_token"]
    assert [(entry["prompt"], entry["items"]) for entry in found["others"]] == [("nearest", 12)]
    with pytest.raises(UserError, match="names json_valid, but the reference answer of test row"):
        compare.main(settings(metrics=["json_valid"]))


def write_evaluations(test: list[Row], bits: dict[str, float], answers: dict[str, str]) -> None:
    """A base that costs 1.5 bits a byte and writes nothing right, and a tuned model of the given costs and answers."""
    tasks = {f"{task}_plain": {"metric": "m", "higher_is_better": True, "sha256": "a"} for task in ("domain", "reference")}
    for variant, path in paths.EVALUATION.items():
        items: list[dict[str, Any]] = []
        for row in test:
            score, answer = (bits[row.id], answers[row.id]) if variant == "tuned" else (1.5, "?")
            same = {"prompt": "plain", "item_id": row.id, "target": row.answer, "probability": None, "target_probability": None}
            items.append({"task": "domain", "score": 0.0, "answer": answer, "target_tokens": None, **same})
            items.append({"task": "reference", "score": score, "answer": None, "target_tokens": 9, **same})
        table = pa.Table.from_pylist(items, schema=evaluate.SCHEMA)
        write_table(path, table.replace_schema_metadata({"settings": json.dumps({"tasks": tasks})}))


def test_a_model_that_writes_the_references_is_better_by_the_measures_of_what_is_written(workspace: Path) -> None:
    test = free(40)
    for path in (paths.SPLIT_TEST, paths.EVALUATION["base"]):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(paths.SPLIT_TEST, test)
    write_rows(paths.SPLIT_TRAIN, test)
    write_table(paths.SPLIT_OVERLAP, pa.table({"task": pa.array([], pa.string()), "item_id": pa.array([], pa.string())}))
    write_table(paths.FORMS, pa.Table.from_pylist([], schema=ANSWERS))
    write_evaluations(test, {row.id: 1.5 for row in test}, {row.id: row.answer for row in test})
    compare.main(settings())
    found = read_details(paths.COMPARE_REPORT)
    assert (found["verdict"], found["domain"]["difference"]) == ("no difference", 0)
    assert {entry["metric"]: (entry["tuned"], entry["verdict"]) for entry in found["measures"]} == {
        name: (pytest.approx(1), "improved") for name in ("rouge_l", "chrf", "normalised_match", "exact_match")
    }
    write_evaluations(test, {row.id: 1.2 + number / 1000 for number, row in enumerate(test)}, {row.id: "nothing" for row in test})
    compare.main(settings())
    found = read_details(paths.COMPARE_REPORT)
    assert found["verdict"] == "improved"
    assert found["domain"]["difference"] < 0
    assert (found["tasks"][0]["won"], found["tasks"][0]["lost"]) == (40, 0)
    said = result_facts.verdict(found).sentences
    assert said[0] == "It needs 1.220 bits per byte for 40 held-out answers, the base with its best prompt 1.500: less is better."
    assert "By the other measures: improved by chrF; no difference by ROUGE-L, match after normalisation, exact match." in said
    assert "Mind that copying the nearest training row's answer is as good or better by ROUGE-L, chrF." in said
    compare.main(settings(metrics=["chrf", "exact_match"]))
    said = result_facts.verdict(read_details(paths.COMPARE_REPORT)).sentences
    assert re.match(r"By chrF it scores 0\.0\d\d on 40 held-out answers, the base with its best prompt 0\.000: more is better\.", said[0])


def test_a_row_that_the_model_cannot_read_with_its_answer_is_not_asked_and_that_is_told(
    workspace: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    rows = [*free(3), *numbered([chat("explain " * 400, "much")])]
    (written, weighed), *_ = free_tasks("tuned", rows, [], load_params(), tokenizer, 512)
    assert (
        [document["id"] for document in written.documents] == [document["id"] for document in weighed.documents] == [r.id for r in rows[:3]]
    )
    assert "1 of 4 test rows have no answer, or with 8 tokens to write" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"more tokens than the model can read \(8\); lower evaluate.max_free_tokens"):
        free_tasks("tuned", rows, [], load_params(), tokenizer, 8)


def test_the_plain_question_is_the_conversation_as_trained_and_examples_come_after_its_first_system_message(
    workspace: Path, tiny_base: Path
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    turns = [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "one"),
        ("system", "be long"),
        ("user", "second"),
        ("assistant", "two"),
    ]
    (row,) = numbered([replace(chat("q", "a"), messages=tuple({"role": role, "content": text} for role, text in turns))])
    ways = free_tasks("base", [row], free(6, start=50), load_params(), tokenizer, 512)
    plain, few_shot = (way[0].documents[0]["prompt"] for way in ways[:2])
    assert plain == render_prompt(tokenizer, list(row.messages[:-1]))
    first = "<|im_start|>system\nbe brief<|im_end|>\n"
    assert plain.startswith(first)
    assert few_shot.startswith(first)
    assert few_shot.endswith(plain.removeprefix(first))


def test_of_a_preference_the_chosen_answer_is_the_reference(workspace: Path, tiny_base: Path) -> None:
    (row,) = numbered([preference("explain freely", "the better one", "the other")])
    ((written, weighed),) = free_tasks("tuned", [row], [], load_params(), load_tokenizer(tiny_base), 512)
    assert [task.documents[0]["target"] for task in (written, weighed)] == ["the better one"] * 2


def test_examples_before_a_free_question_bring_no_system_message_of_their_own_and_leave_room_for_the_answer(
    workspace: Path, tiny_base: Path
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    plain, few_shot, retrieved = free_tasks("base", free(4), free(8, start=50), load_params(), tokenizer, 512)
    for document in few_shot[0].documents:
        assert document["prompt"].count("<|im_start|>system") == 1
        assert document["prompt"].count("<|im_start|>assistant") == 2
    assert all(document["prompt"].count("<|im_start|>assistant") == 3 for document in retrieved[1].documents)
    longest = max(len(tokenizer(d["prompt"])["input_ids"]) + len(tokenizer(d["target"])["input_ids"]) for d in plain[1].documents)
    tight = free_tasks("base", free(4), free(8, start=50), load_params(), tokenizer, longest + 2)
    assert [d["prompt"] for d in tight[2][0].documents] == [d["prompt"] for d in plain[0].documents]
    assert all(d["prompt"] != p["prompt"] for d, p in zip(retrieved[0].documents, plain[0].documents, strict=True))


@pytest.mark.slow
def test_the_whole_pipeline_goes_from_conversations_to_a_card_that_shows_every_measure(workspace: Path) -> None:
    rows = [{"messages": list(row.messages)} for row in free(120)]
    tiny.write_jsonl(workspace / "data/sources/rows.jsonl", rows)
    tiny.edit_params(workspace, data__files__format="messages", compare__metrics=["rouge_l", "chrf", "bits_per_byte", "exact_match"])
    done = subprocess.run(["dvc", "repro"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found, text = read_details(paths.COMPARE_REPORT), paths.CARD.read_text(encoding="utf-8")
    assert (found["domain"]["metric"], found["domain"]["classical"]) == ("rouge_l", None)
    assert re.search(r"By ROUGE-L it scores \d\.\d{3} on 24 held-out answers", text)
    for name in ("chrF (more is better)", "bits per byte (less is better)", "exact match (more is better)"):
        assert f"| {name}; base, " in text
    assert re.search(r"\d+ of 24 answers had not ended after 8 tokens", text)
    assert "Before and after" in paths.HTML_REPORT.read_text(encoding="utf-8")
