"""The engine against lm-eval's own Hugging Face model, and the evaluate stage end to end on the tiny base."""

import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.compare import __main__ as compare
from stages.core import paths
from stages.core.answers import normal
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.models import load_base, load_tokenizer, read_manifest
from stages.core.params import Numerics, load_params
from stages.core.records import Row, with_ids, write_rows, write_table
from stages.evaluate import __main__ as evaluate
from stages.evaluate.domain import check_labels, few_shot_examples
from stages.export.__main__ import ANSWERS
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


@pytest.mark.parametrize("until", [["\n", "gr"], []])
def test_greedy_answers_after_a_shared_prefix_are_those_of_plain_lm_eval(tiny_model: tuple[Any, Any], until: list[str]) -> None:
    rng = random.Random(2)
    settings = {"until": until, "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}
    prompts = [f"<|im_start|>user\nclassify this: {words(rng, rng.randint(1, 40))}<|im_end|>\n<|im_start|>assistant\n" for _ in range(17)]
    engine, plain = engine_and_plain(tiny_model, rendered=True)
    asked = requests("generate_until", [(prompt, settings) for prompt in prompts])
    assert engine.generate_until(asked) == plain.generate_until(asked)


def test_attention_one_row_at_a_time_gives_what_attention_over_the_whole_pass_gives(tiny_model: tuple[Any, Any]) -> None:
    rng = random.Random(5)
    asked = requests("loglikelihood", [(words(rng, 3 + n), choice) for n in range(9) for choice in (" copy", " copy terms", " a fee")])
    opened = requests(
        "generate_until", [(f"sort {words(rng, rng.randint(1, 40))}", {"until": ["\n"], "max_gen_toks": 6}) for _ in range(11)]
    )
    engine, _ = engine_and_plain(tiny_model, rendered=True)
    scored, written = engine.loglikelihood(asked), engine.generate_until(opened)
    assert engine.by_row
    engine.by_row = False  # as on a GPU
    assert [score for score, _ in engine.loglikelihood(asked)] == pytest.approx([score for score, _ in scored], abs=1e-5)
    assert engine.generate_until(opened) == written


@pytest.mark.parametrize("dora", [False, True])
def test_layers_in_another_layout_hold_the_same_weights_and_give_the_same_but_for_rounding(tiny_base: Path, dora: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from stages.evaluate.linear import Prepacked, prepack

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, use_dora=dora)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config).eval()
    ids = torch.arange(1, 41).reshape(2, 20)
    with torch.inference_mode():
        before = model(ids).logits
        held = {name: layer.weight for name, layer in model.named_modules() if type(layer) is torch.nn.Linear}
        prepack(model)
        packed = {name: layer for name, layer in model.named_modules() if isinstance(layer, Prepacked)}
        assert packed
        assert set(held) - set(packed) == {name for name in held if "lora_" in name}
        assert all(torch.equal(layer.packed.to_dense(), held[name]) for name, layer in packed.items())
        assert sum(hasattr(layer, "weight") for layer in packed.values()) == (len(packed) if dora else 1)
        assert torch.allclose(model(ids).logits, before, atol=1e-4)


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
    for path in (paths.SPLIT_TEST, paths.GENERAL / "x", paths.FORMS):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(paths.SPLIT_TEST, test)
    write_rows(paths.SPLIT_TRAIN, train)
    write_table(paths.SPLIT_OVERLAP, pa.table({"task": pa.array([], pa.string()), "item_id": pa.array([], pa.string())}))
    write_table(paths.FORMS, pa.Table.from_pylist([], schema=ANSWERS))
    for name, items in GENERAL.items():
        tiny.write_jsonl(paths.GENERAL / f"{name}.jsonl", items)
    load_tokenizer(base).save_pretrained(paths.TOKENIZER)


def scores(variant: str = "base") -> dict[tuple[str, str], dict[str, float]]:
    """Every item's score by task and prompt."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in pq.read_table(paths.EVALUATION[variant]).to_pylist():
        found.setdefault((row["task"], row["prompt"]), {})[row["item_id"]] = row["score"]
    return found


def test_the_base_is_asked_in_four_ways_and_an_evaluation_that_was_killed_goes_on_to_the_same_bytes(
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
        ("label_scores", "plain"): 9,
        ("label_scores", "label_list"): 9,
        ("label_scores", "few_shot"): 9,
        ("domain", "retrieved"): 9,
        ("label_scores", "retrieved"): 9,
        ("arc_easy", "raw"): 6,
        ("lambada", "raw"): 4,
    }
    assert set(found["domain", "plain"]) == {row.id for row in test}
    outs = [paths.EVALUATION["base"], paths.EVALUATE_REPORT["base"]]
    first = [path.read_bytes() for path in outs]
    (done,) = Path(".work/evaluate@base").glob("*/done")
    kept = {path.name: path.stat().st_mtime_ns for path in done.iterdir() if path.name.startswith(("domain", "label"))}
    for path in done.iterdir():  # as if killed after the domain
        if path.name not in kept:
            path.unlink()
    for path in outs:
        path.unlink()
    evaluate.main("base", load_params())
    assert [path.read_bytes() for path in outs] == first
    assert {path.name: path.stat().st_mtime_ns for path in done.iterdir() if path.name in kept} == kept


def write_adapter(base: Path, scale: float) -> None:
    """An adapter of random weights as train publishes it; of scale 0 it changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale) if scale else torch.nn.init.zeros_(weight)
    model.save_pretrained(paths.ADAPTER)
    load_tokenizer(base).save_pretrained(paths.ADAPTER)
    shutil.copy(paths.BASE, paths.ADAPTER / "base.json")


def test_a_tuned_model_is_asked_the_bases_plain_prompt_and_one_that_learnt_nothing_shows_no_difference(
    workspace: Path, tiny_base: Path
) -> None:
    write_inputs(tiny_base, labelled(9), labelled(30, start=100))
    evaluate.main("base", load_params())
    write_adapter(tiny_base, 0.0)
    evaluate.main("tuned", load_params())
    before, after = scores(), scores("tuned")
    assert after == {key: before[key] for key in [("domain", "plain"), ("label_scores", "plain"), ("arc_easy", "raw"), ("lambada", "raw")]}
    compare.main(load_params())
    found = read_details(paths.COMPARE_REPORT)
    assert (found["verdict"], found["forgetting"], found["general"]["difference"]) == ("no difference", "none", 0)
    report = {variant: read_details(path) for variant, path in paths.EVALUATE_REPORT.items()}
    assert report["base"]["settings"]["tasks"]["domain_plain"] == report["tuned"]["settings"]["tasks"]["domain_plain"]


def test_an_adapter_is_part_of_the_model_that_is_asked(workspace: Path, tiny_base: Path) -> None:
    write_inputs(tiny_base, conversations(6), conversations(3))
    evaluate.main("base", load_params())
    write_adapter(tiny_base, 0.5)
    evaluate.main("tuned", load_params())
    before, after = scores()["reference", "plain"], scores("tuned")["reference", "plain"]
    assert all(abs(before[key] - after[key]) > 1e-3 for key in before)


def conversations(count: int) -> list[Row]:
    turns = [
        (
            {"role": "user", "content": f"which terms {n}?"},
            {"role": "assistant", "content": "general"},
            {"role": "user", "content": "and then?"},
            {"role": "assistant", "content": f"public version {n} é"},
        )
        for n in range(count)
    ]
    return list(with_ids(Row("", messages, None, None, None, "s", "o", None) for messages in turns))


def test_rows_without_labels_are_scored_by_the_bits_that_their_last_answer_costs(
    workspace: Path, tiny_base: Path, tiny_model: tuple[Any, Any]
) -> None:
    import torch

    rows = conversations(5)
    write_inputs(tiny_base, rows, rows)
    evaluate.main("base", load_params())
    model, tokenizer = tiny_model
    for row in rows:
        start = tokenizer.apply_chat_template(list(row.messages[:-1]), tokenize=False, add_generation_prompt=True)
        context, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start, row.answer))
        with torch.no_grad():
            logs = model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        bits = -float(logs.gather(1, torch.tensor(answer)[:, None]).sum()) / math.log(2) / len(row.answer.encode())
        assert scores()["reference", "plain"][row.id] == pytest.approx(bits, rel=1e-4)


def test_the_prompt_a_model_is_asked_has_the_tokens_it_was_trained_on(tiny_model: tuple[Any, Any]) -> None:
    from stages.core.prompts import ask, conversation, render_prompt
    from stages.tokenize.encode import Chat, Encoded, encode

    (row,) = labelled(1)
    engine, _ = engine_and_plain(tiny_model, rendered=True)
    chat = Chat(tiny_model[1], frozenset(engine.ends), frozenset(engine.ends), 400, frozenset())
    (trained,) = encode(chat, [conversation(row, "sort", "{text} is:")])
    assert isinstance(trained, Encoded)
    prompt = engine.tok_encode(render_prompt(tiny_model[1], ask(row.text, "sort", "{text} is:")))
    assert trained.input_ids[: len(prompt)] == prompt
    assert trained.trained.index(True) == len(prompt)


def test_an_answer_ends_at_whatever_special_token_the_template_ends_turns_with(tiny_model: tuple[Any, Any]) -> None:
    engine, _ = engine_and_plain(tiny_model, rendered=True)
    assert engine.ends == set(tiny_model[1].convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))


def test_examples_take_the_labels_in_turn_from_short_rows_and_the_seed_fixes_them() -> None:
    rows = labelled(30)
    chosen = few_shot_examples(rows, 4, 17)
    assert sorted(row.answer for row in chosen) == ["Commercial", "Commercial", "Copyleft", "Permissive"]
    assert chosen == few_shot_examples(list(reversed(rows)), 4, 17)
    assert few_shot_examples(rows, 4, 18) != chosen
    assert few_shot_examples(rows, 0, 17) == []
    assert len(few_shot_examples(rows[:2], 9, 17)) == 2


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["free", "'Free'."], "differ only in case"),
        (["permission granted to copy and modify it all"], "evaluate.max_new_tokens is 8; raise it to"),
    ],
)
def test_labels_that_no_answer_could_match_are_refused(tiny_model: tuple[Any, Any], labels: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_labels(labels, 8, tiny_model[1])


def test_answers_are_read_without_quotes_case_a_full_stop_and_later_lines() -> None:
    assert {
        normal(text) for text in ["Copyleft Limited", ' "copyleft limited". ', "**Copyleft limited**\nbecause", "`COPYLEFT LIMITED`,"]
    } == {"copyleft limited"}


def test_nf4_on_a_cpu_has_the_values_that_bitsandbytes_unpacks_and_passes_gradients_on_after_an_evaluation(
    workspace: Path, tiny_base: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from stages import fetch_model

    fetch_model.main(load_params())
    held = load_base(read_manifest(), Numerics(quantization="nf4", compute_dtype="float32"), "cpu")
    packed = AutoModelForCausalLM.from_pretrained(
        tiny_base,
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
        ),
    ).train()  # in evaluation mode bitsandbytes rounds to bfloat16 where the processor has AVX512-BF16
    ids = torch.arange(1, 41).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(held(ids).logits, packed(ids).logits)
    embedded = held.get_input_embeddings()(ids).detach().requires_grad_(True)
    held(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0
