"""What a row's answer costs the model: the same as one plain forward pass a row, with its prompt and without, batched or not."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import row_losses
from stages.core import losses, paths
from stages.core.batches import TokenRow, read_tokens
from stages.core.models import load_tokenizer
from stages.core.params import load_params
from stages.core.records import write_rows
from tests import rows, tiny, trainable


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    """The tiny base, loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


@pytest.fixture
def measured(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with tokenised rows, their texts, and the stage's inputs."""
    root = trainable.prepare(tmp_path / "workspace", tiny_base, rows=24)
    monkeypatch.chdir(root)
    ids = [row.id for row in read_tokens(paths.TOKENIZED_TRAIN)]
    paths.SPLIT_TRAIN.parent.mkdir(parents=True)
    write_rows(paths.SPLIT_TRAIN, [replace(rows.labelled(f"text {id}", "label"), id=id) for id in ids])
    return root


def plain(model: Any, ids: list[int], trained: list[bool]) -> float:
    """The cross-entropy of the trained tokens of one row by one forward pass over that row alone."""
    import torch

    with torch.inference_mode():
        found = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    return -sum(float(found[place - 1, ids[place]]) for place in range(1, len(ids)) if trained[place])


def run(**changes: Any) -> list[dict[str, Any]]:
    """Runs row_losses@base and gives its table."""
    tiny.edit_params(Path(), **changes)
    row_losses.main("base", load_params())
    found: list[dict[str, Any]] = pq.read_table(paths.ROW_LOSSES["base"]).to_pylist()
    return found


@settings(max_examples=20)
@given(st.data())
def test_rows_of_any_length_in_any_order_cost_what_each_costs_in_a_pass_of_its_own(model: Any, data: st.DataObject) -> None:
    count, seed = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 99))
    some = trainable.in_memory(trainable.token_rows(count, 380, seed, answer=data.draw(st.integers(1, 9))))
    order = data.draw(st.permutations(range(count)))
    found = losses.summed_nats(model, [some[number] for number in order], "test")
    assert found == pytest.approx([plain(model, some[n].input_ids.tolist(), some[n].trained.tolist()) for n in order], rel=1e-4)


def test_the_stages_losses_are_those_of_plain_passes_with_the_prompt_and_of_the_answer_alone(measured: Path, model: Any) -> None:
    header = load_tokenizer(paths.TOKENIZER)("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    table = run()
    assert [record["id"] for record in table] == [row.id for row in read_tokens(paths.TOKENIZED_TRAIN)]
    for record, row in zip(table, read_tokens(paths.TOKENIZED_TRAIN), strict=True):
        answer = row.input_ids[row.trained].tolist()
        assert record["tokens"] == len(answer)
        assert record["loss"] * len(answer) == pytest.approx(plain(model, row.input_ids.tolist(), row.trained.tolist()), rel=1e-4)
        bare = plain(model, [*header, *answer], [False] * len(header) + [True] * len(answer))
        assert record["loss_alone"] * len(answer) == pytest.approx(bare, rel=1e-4)
    report = json.loads(paths.ROW_LOSSES_REPORT["base"].read_text())
    worst = report["details"][0]["worst"]
    assert report["rows"] == 24
    assert [row["id"] for row in worst] == [row["id"] for row in sorted(table, key=lambda row: (-row["loss"], row["id"]))][:20]
    assert worst[0]["text"] == f"text {worst[0]['id']}"


def test_a_sample_is_the_same_rows_at_every_run_and_gives_the_same_bytes(measured: Path) -> None:
    few = run(row_losses__max_rows=7)
    first = [path.read_bytes() for path in (paths.ROW_LOSSES["base"], paths.ROW_LOSSES_REPORT["base"])]
    assert len(few) == 7
    assert {row["id"] for row in few} == {row["id"] for row in run()}
    assert [path.read_bytes() for path in (paths.ROW_LOSSES["base"], paths.ROW_LOSSES_REPORT["base"])] == first
    assert len({row["id"] for row in run(seed=18)} & {row["id"] for row in few}) < 7


def test_base_and_tuned_measure_the_same_rows_and_training_made_their_answers_cheaper(finished: Path) -> None:
    base, tuned = (pq.read_table(paths.ROW_LOSSES[variant]).to_pydict() for variant in ("base", "tuned"))
    trained = set(pq.read_table(paths.TOKENIZED_TRAIN, columns=["id"]).column("id").to_pylist())
    assert base["id"] == tuned["id"]
    assert set(base["id"]) <= trained
    assert np.mean(tuned["loss"]) < np.mean(base["loss"])


@given(st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=2, max_size=40))
def test_the_answers_of_a_row_are_its_trained_tokens_in_order_but_for_the_first(pairs: list[tuple[int, bool]]) -> None:
    row = TokenRow("", np.array([token for token, _ in pairs]), np.array([trained for _, trained in pairs]))
    found = row_losses.answers(row)
    assert [token for answer in found for token in answer] == [token for token, trained in pairs[1:] if trained]
    assert sum(map(len, found)) == row.targets
    assert all(found)


def test_a_row_of_several_answers_costs_the_sum_of_each_after_the_header_alone(model: Any) -> None:
    rng = random.Random(1)
    ids = [rng.randrange(3, 380) for _ in range(12)]
    trained = [3 <= place < 5 or place >= 9 for place in range(12)]
    header = [1, 5]
    alone = row_losses.nats_alone(model, [TokenRow("", np.array(ids), np.array(trained))], header, "test")[0]
    pieces = [plain(model, [*header, *part], [False, False] + [True] * len(part)) for part in (ids[3:5], ids[9:])]
    assert alone == pytest.approx(sum(pieces), rel=1e-4)


@pytest.mark.parametrize(
    ("template", "header"),
    [
        (tiny.CHATML, "<|im_start|>assistant\n"),
        (
            "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "<|im_start|>A:",
        ),
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}", "<|im_start|>"),
    ],
)
def test_an_answer_alone_follows_the_header_of_its_template_or_the_beginning_of_text(tiny_base: Path, template: str, header: str) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = template
    assert tokenizer.decode(losses.answer_header(tokenizer)) == header


def test_a_row_whose_prompt_does_not_help_is_named_and_the_worst_comes_first() -> None:
    few = [{"id": id, "tokens": 2, "loss": loss, "loss_alone": 2.0} for id, loss in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 0.1))]
    headline, details = row_losses.report(few, {record["id"]: rows.labelled("text", "label") for record in few})
    assert headline == {"rows": 4, "loss": pytest.approx(1.525), "loss_alone": 2.0, "prompt_does_not_help": 0.5}
    assert [(row["id"], row["ifd"]) for row in details["unhelped"]] == [("c", 1.5), ("b", 1.0)]
