"""Retrieved examples: near rows that share words, never the row's own cluster, in an order that nothing but their words decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import paths
from stages.core.files import read_details
from stages.core.params import load_params
from stages.core.records import Row
from stages.core.retrieval import nearest_rows
from stages.evaluate import __main__ as evaluate
from stages.evaluate.domain import after_examples
from tests.test_evaluate import labelled, tiny_model, write_inputs

__all__ = ["tiny_model"]


def row_of(key: str, text: str, label: str = "a", cluster: str | None = None) -> Row:
    return Row(
        key, ({"role": "user", "content": text}, {"role": "assistant", "content": label}), None, None, label, "s", "o", None, cluster
    )


def test_the_nearest_rows_share_the_most_telling_words_and_equally_near_ones_come_by_id() -> None:
    train = [
        row_of("d", "a seat fee is paid"),
        row_of("c", "free copy"),
        row_of("b", "free copy"),
        row_of("a", "free copy of the work with much else besides"),
    ]
    (near,) = nearest_rows([row_of("q", "free copy")], train, 3).values()
    assert [row.id for row in near] == ["b", "c", "a"]
    assert nearest_rows([row_of("q", "free copy")], train[::-1], 3) == {"q": near}
    assert nearest_rows([row_of("q", "free copy")], train, 0) == {"q": []}


def test_a_row_is_no_example_for_itself_its_cluster_or_a_text_without_a_common_word() -> None:
    train = [row_of("q", "free copy"), row_of("b", "free copy now", cluster="k"), row_of("c", "free copy too"), row_of("d", "seats")]
    asked = row_of("q", "free copy", cluster="k")
    assert [row.id for row in nearest_rows([asked], train, 4)["q"]] == ["c"]


@given(st.lists(st.text(alphabet="ab .c", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=6), st.integers(0, 4), st.data())
def test_examples_are_at_most_as_many_as_asked_and_never_of_the_own_cluster(texts: list[str], count: int, data: st.DataObject) -> None:
    clusters = [data.draw(st.sampled_from([None, "x", "y"])) for _ in texts]
    train = [row_of(str(n), text, cluster=cluster) for n, (text, cluster) in enumerate(zip(texts, clusters, strict=True))]
    for row in train:
        near = nearest_rows([row], train, count)[row.id]
        assert len(near) <= count
        assert len({other.id for other in near} | {row.id}) == len(near) + 1
        assert row.cluster is None or row.cluster not in {other.cluster for other in near}


def test_examples_are_turns_before_the_question_the_nearest_last_and_the_farthest_goes_first_without_room(
    tiny_model: tuple[Any, Any],
) -> None:
    tokenizer = tiny_model[1]
    near = [row_of("a", "free copy", "A"), row_of("b", "fee " * 30, "B")]
    messages = after_examples(row_of("q", "copy"), near, "sort", "{text}?", tokenizer, 500)
    assert [message["content"] for message in messages] == ["sort", "fee " * 30 + "?", "B", "free copy?", "A", "copy?"]
    short = after_examples(row_of("q", "copy"), near, "sort", "{text}?", tokenizer, 60)
    assert [message["content"] for message in short] == ["sort", "free copy?", "A", "copy?"]
    assert len(after_examples(row_of("q", "copy"), near, "sort", "{text}?", tokenizer, 1)) == 2


def test_the_report_tells_what_an_answer_costs_and_what_was_retrieved_costs_more_than_the_question_alone(
    workspace: Path, tiny_base: Path, tiny_model: tuple[Any, Any]
) -> None:
    test = [replace(row, cluster="own") for row in labelled(4)]
    write_inputs(tiny_base, test, [*labelled(12, start=100), replace(labelled(1, start=0)[0], id="twin", cluster="own")])
    evaluate.main("base", load_params())
    found = read_details(paths.EVALUATE_REPORT["base"])
    costs = {(task["task"], task["prompt"]): (task["prompt_tokens"], task["new_tokens"]) for task in found["tasks"]}
    tokenizer = tiny_model[1]
    from stages.core.prompts import ask, render_prompt

    settings = load_params().prompt
    prompts = [render_prompt(tokenizer, ask(row.text, settings.system, settings.template)) for row in test]
    lengths = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
    assert costs["domain", "plain"][0] == pytest.approx(sum(lengths) / 4)
    assert costs["label_scores", "plain"][0] == costs["domain", "plain"][0]
    assert costs["domain", "retrieved"][0] > 2 * costs["domain", "plain"][0]
    assert 1 <= costs["domain", "plain"][1] <= load_params().evaluate.max_new_tokens
    labels = [f"{label}<|im_end|>" for label in ("Commercial", "Copyleft", "Permissive")]
    assert costs["label_scores", "plain"][1] == sum(len(tokenizer(label)["input_ids"]) for label in labels)
    machine = read_details(paths.EVALUATE_MACHINE["base"])
    assert {(name, way["prompt"]) for way in machine["ways"] for name in way["tasks"]} == costs.keys()
    rows = pq.read_table(paths.EVALUATION["base"]).to_pylist()
    assert sum((row["task"], row["prompt"]) == ("label_scores", "retrieved") for row in rows) == 4
