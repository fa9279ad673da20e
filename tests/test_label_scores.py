"""Labelled rows answered by their likeliest label: the probabilities, the sign that ends an answer, and the engine that shares a prompt."""

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.core import paths
from stages.core.params import load_params
from stages.core.prompts import ask, render_prompt
from stages.evaluate import __main__ as evaluate
from stages.evaluate.domain import answer_end
from tests.rows import labelled as labelled_row
from tests.rows import numbered
from tests.test_evaluate import engine_and_plain, labelled, requests, tiny_model, words, write_inputs

__all__ = ["tiny_model"]
LABELS = ["Commercial", "Copyleft", "Permissive"]


def log_likelihood(model: Any, context: list[int], continuation: list[int]) -> float:
    """What transformers alone says, of one sequence without a cache."""
    import torch

    with torch.no_grad():
        logs = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    return float(logs.gather(1, torch.tensor(continuation)[:, None]).sum())


def test_label_scores_after_prompts_with_a_common_beginning_are_those_of_plain_lm_eval(tiny_model: tuple[Any, Any]) -> None:
    rng = random.Random(3)
    engine, plain = engine_and_plain(tiny_model, rendered=True)
    prompts = [f"<|im_start|>user\nclassify this: {words(rng, rng.randint(1, 40))}<|im_end|>\n<|im_start|>assistant\n" for _ in range(9)]
    asked = [((), *engine._encode_pair(prompt, f"{label}<|im_end|>")) for prompt in prompts for label in LABELS]
    mine, theirs = engine._loglikelihood_tokens(asked), plain._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]


def test_labels_scored_while_a_prompt_is_answered_change_neither_the_answer_nor_their_scores(tiny_model: tuple[Any, Any]) -> None:
    from stages.evaluate.engine import Engine

    rng = random.Random(4)
    choices = [f"{label}<|im_end|>" for label in LABELS] + ["<|im_end|>"]
    prompts = [f"<|im_start|>user\nsort {words(rng, rng.randint(1, 40))}<|im_end|>\n<|im_start|>assistant\n" for _ in range(11)]
    asked = requests("generate_until", [(prompt, {"until": ["\n"], "max_gen_toks": 6}) for prompt in prompts])
    both = Engine(*tiny_model, 4, "test", rendered=True, choices=choices)
    alone, _ = engine_and_plain(tiny_model, rendered=True)
    assert both.generate_until(asked) == alone.generate_until(asked)
    pairs = [((), *alone._encode_pair(prompt, choice)) for prompt in prompts for choice in choices]
    assert len(both.scored) == len(pairs)
    mine, theirs = both._loglikelihood_tokens(pairs), alone._loglikelihood_tokens(pairs)
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]


def test_one_prompt_alone_is_scored_as_among_others(tiny_model: tuple[Any, Any]) -> None:
    engine, _ = engine_and_plain(tiny_model, rendered=True)
    first, second = ([((), *engine._encode_pair(f"free {word}\n", label)) for label in LABELS] for word in ("copy", "fee"))
    together = [score for score, _ in engine._loglikelihood_tokens(first + second)]
    assert [score for score, _ in engine._loglikelihood_tokens(first)] == pytest.approx(together[: len(LABELS)], abs=1e-5)


def test_an_items_probabilities_are_its_labels_shares_and_the_answer_is_the_likeliest(
    workspace: Path, tiny_base: Path, tiny_model: tuple[Any, Any]
) -> None:
    rows, params = labelled(6), load_params()
    write_inputs(tiny_base, rows, labelled(30, start=100))
    evaluate.main("base", params)
    items = [item for item in pq.read_table(paths.EVALUATION["base"]).to_pylist() if item["task"] == "label_scores"]
    assert {prompt: sum(item["prompt"] == prompt for item in items) for prompt in ("plain", "label_list", "few_shot")} == {
        "plain": 6,
        "label_list": 6,
        "few_shot": 6,
    }
    model, tokenizer = tiny_model
    by_id = {item["item_id"]: item for item in items if item["prompt"] == "plain"}
    for row in rows:
        prompt = render_prompt(tokenizer, ask(row.text, params.prompt.system, params.prompt.template))
        context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ends = [tokenizer(f"{label}<|im_end|>", add_special_tokens=False)["input_ids"] for label in LABELS]
        shares = dict(zip(LABELS, evaluate.softmax([log_likelihood(model, context, end) for end in ends]), strict=True))
        item = by_id[row.id]
        assert item["answer"] == max(shares, key=lambda label: shares[label])
        assert item["probability"] == pytest.approx(shares[item["answer"]], rel=1e-3)
        assert item["target_probability"] == pytest.approx(shares[row.answer], rel=1e-3)
        assert item["score"] == (item["answer"] == row.answer)


def test_a_question_with_its_choices_in_the_text_is_answered_by_the_likeliest_letter(workspace: Path, tiny_base: Path) -> None:
    questions = [(f"Which is granted {n}?\nA. {words(random.Random(n), 2)}\nB. copy\nC. fee", "ABC"[n % 3]) for n in range(18)]
    rows = numbered([labelled_row(text, letter) for text, letter in questions])
    write_inputs(tiny_base, rows[:6], rows[6:])
    evaluate.main("base", load_params())
    items = [item for item in pq.read_table(paths.EVALUATION["base"]).to_pylist() if item["task"] == "label_scores"]
    assert {item["prompt"] for item in items} == {"plain", "label_list", "few_shot", "retrieved"}
    assert {item["answer"] for item in items} <= set("ABC")
    assert {item["item_id"]: item["target"] for item in items} == {row.id: row.answer for row in rows[:6]}


def test_items_of_other_tasks_have_no_probability(workspace: Path, tiny_base: Path) -> None:
    write_inputs(tiny_base, labelled(3), labelled(9, start=100))
    evaluate.main("base", load_params())
    others = [item for item in pq.read_table(paths.EVALUATION["base"]).to_pylist() if item["task"] != "label_scores"]
    assert {(item["probability"], item["target_probability"]) for item in others} == {(None, None)}


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m['content'] }} <|endoftext|><|im_end|>{% endfor %}", " <|endoftext|>"),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", "<|im_end|>"),
    ],
)
def test_an_answer_ends_with_the_first_special_token_that_the_template_writes_after_it(
    tiny_model: tuple[Any, Any], template: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model[1], "chat_template", template)
    assert answer_end(tiny_model[1]) == end
