"""The engine against lm-eval's own Hugging Face model, and the evaluate stage end to end on the tiny base."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.core import paths
from stages.core.models import load_tokenizer
from stages.core.params import load_params
from stages.core.records import Row, with_ids, write_rows
from stages.evaluate import __main__ as evaluate
from tests import tiny


@pytest.fixture(scope="module")
def tiny_model(tiny_base: Path) -> tuple[Any, Any]:
    """The tiny base and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_base).eval(), AutoTokenizer.from_pretrained(tiny_base)


def engine_and_plain(tiny_model: tuple[Any, Any], rendered: bool, batch_size: int = 5) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    from stages.evaluate.engine import Engine

    model, tokenizer = tiny_model
    return Engine(model, tokenizer, batch_size, "test", rendered), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, index, (kind, index, 1)) for index, argument in enumerate(arguments)]


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(["permission", "granted", "free", "copy", "terms", "fee", "x", "modify it"]) for _ in range(count))


def test_choices_that_share_a_context_score_as_in_plain_lm_eval(tiny_model: tuple[Any, Any]) -> None:
    rng = random.Random(1)
    pairs = []
    for question in range(13):
        context = words(rng, rng.randint(1, 30))
        # one choice is the beginning of another, one is a single token, and now and then there is one alone, as in LAMBADA
        choices = [" copy", " copy terms", " " + words(rng, rng.randint(1, 9)), " a"][: 1 if question % 4 == 0 else 4]
        pairs += [(context, choice) for choice in choices]
    engine, plain = engine_and_plain(tiny_model, rendered=False)
    asked = requests("loglikelihood", pairs)
    mine, theirs = engine.loglikelihood(asked), plain.loglikelihood(asked)
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    assert not any(score != score for score, _ in mine)


def test_greedy_answers_after_a_shared_prefix_are_those_of_plain_lm_eval(tiny_model: tuple[Any, Any]) -> None:
    rng = random.Random(2)
    settings = {"until": ["\n", "gr"], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}
    prompts = [f"<|im_start|>user\nclassify this: {words(rng, rng.randint(1, 40))}<|im_end|>\n<|im_start|>assistant\n" for _ in range(17)]
    engine, plain = engine_and_plain(tiny_model, rendered=True)
    asked = requests("generate_until", [(prompt, settings) for prompt in prompts])
    assert engine.generate_until(asked) == plain.generate_until(asked)


def test_one_prompt_alone_or_equal_prompts_can_be_answered(tiny_model: tuple[Any, Any]) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 3}
    engine, _ = engine_and_plain(tiny_model, rendered=True)
    alone = engine.generate_until(requests("generate_until", [("free copy", settings)]))
    assert engine.generate_until(requests("generate_until", [("free copy", settings)] * 3)) == alone * 3


def test_a_rendered_prompt_keeps_its_last_line_break_and_gets_no_second_bos(tiny_model: tuple[Any, Any]) -> None:
    engine, _ = engine_and_plain(tiny_model, rendered=True)
    prompt = "<|im_start|>user\nfree<|im_end|>\n<|im_start|>assistant\n"
    context, answer = engine._encode_pair(prompt, "copy")
    assert engine.tok_decode(context, skip_special_tokens=False) == prompt
    assert engine.tok_decode(answer) == "copy"
    assert context == tiny_model[1](prompt, add_special_tokens=False)["input_ids"]


def labelled(count: int, start: int = 0) -> list[Row]:
    texts = tiny.labelled_rows(start + count)[start:]
    rows = [
        Row(
            "",
            ({"role": "user", "content": t["text"]}, {"role": "assistant", "content": t["label"]}),
            None,
            None,
            t["label"],
            "s",
            "o",
            None,
        )
        for t in texts
    ]
    return list(with_ids(rows))


GENERAL = {
    "arc_easy": [
        {
            "id": f"arc_easy-{n}",
            "task": "arc_easy",
            "context": f"Question: free {n}?\nAnswer:",
            "choices": ["copy", "fee", "{{7}}"],
            "gold": n % 3,
        }
        for n in range(6)
    ],
    "lambada": [{"id": f"lambada-{n}", "task": "lambada", "context": f"the terms of {n}", "continuation": "permission"} for n in range(4)],
}


def write_inputs(base: Path, test: list[Row], train: list[Row]) -> None:
    """What evaluate@base reads, written by the functions that write it in the pipeline."""
    from stages import fetch_model

    fetch_model.main(load_params())
    for path in (paths.SPLIT_TEST, paths.GENERAL / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(paths.SPLIT_TEST, test)
    write_rows(paths.SPLIT_TRAIN, train)
    for name, items in GENERAL.items():
        tiny.write_jsonl(paths.GENERAL / f"{name}.jsonl", items)
    load_tokenizer(base).save_pretrained(paths.TOKENIZER)


def scores() -> dict[tuple[str, str], dict[str, float]]:
    """Every item's score by task and prompt."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in pq.read_table(paths.EVALUATION["base"]).to_pylist():
        found.setdefault((row["task"], row["prompt"]), {})[row["item_id"]] = row["score"]
    return found


def test_the_base_is_asked_in_three_ways_and_an_evaluation_that_was_killed_goes_on_to_the_same_bytes(
    workspace: Path, tiny_base: Path
) -> None:
    test = labelled(9)
    write_inputs(tiny_base, test, labelled(30, start=100))
    evaluate.main("base", load_params())
    found = scores()
    assert {key: len(items) for key, items in found.items()} == {
        ("domain", "plain"): 9,
        ("domain", "label_list"): 9,
        ("domain", "few_shot"): 9,
        ("arc_easy", "raw"): 6,
        ("lambada", "raw"): 4,
    }
    assert set(found["domain", "plain"]) == {row.id for row in test}
    outs = [paths.EVALUATION["base"], paths.EVALUATE_REPORT["base"]]
    first = [path.read_bytes() for path in outs]
    (done,) = Path(".work/evaluate@base").glob("*/done")
    kept = {path.name: path.stat().st_mtime_ns for path in done.iterdir() if path.name.startswith("domain")}
    for path in done.iterdir():  # as if killed after the domain
        if path.name not in kept:
            path.unlink()
    for path in outs:
        path.unlink()
    evaluate.main("base", load_params())
    assert [path.read_bytes() for path in outs] == first
    assert {path.name: path.stat().st_mtime_ns for path in done.iterdir() if path.name in kept} == kept
