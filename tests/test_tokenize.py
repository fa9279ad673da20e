"""tokenize learns the answers and their ends and nothing else, whatever the chat template; what would spoil that stops it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages import fetch_model
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details, sha256_path
from stages.core.models import load_tokenizer, new_token_ids
from stages.core.params import Params, Tokenize, load_params
from stages.core.params_model import Canaries
from stages.core.prompts import render_prompt
from stages.core.records import Message, count_rules, read_rejected, write_rows
from stages.tokenize.__main__ import main
from stages.tokenize.audit import prepare
from stages.tokenize.encode import Chat, Encoded, encode
from tests.conversations import chat_with, learnt, rows_of, run, talk
from tests.tiny import CHATML, ROOT, edit_params

LLAMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
STRIPS = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
FORGETS = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] != 'assistant' else '(earlier)' }}")
REWRITES = "{{ messages | length }} messages\n" + CHATML
ENDLESS = CHATML.replace("<|im_end|>\n{% endfor %}", "\n{% endfor %}")
WRONG_END = CHATML.replace("<|im_end|>\n{% endfor %}", "<|endoftext|>\n{% endfor %}")
TWICE = "{{ bos_token }}" + CHATML
SPACED = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def chatml(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    here = Path.cwd()
    chat = chat_with(tiny_base, tmp_path_factory.mktemp("chatml"))
    os.chdir(here)
    return chat


@pytest.fixture(scope="module")
def llama2_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A tokenizer with <s> and </s> that begins plain texts with <s>, as Llama 2's does, and no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama2")
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    config = json.loads((tiny_base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 2, "vocab_size": len(vocabulary)}))
    return folder


def test_only_the_answer_and_its_end_are_learnt(chatml: Chat) -> None:
    [(_, row)] = run(chatml, [talk("free of charge?", "Permissive", system="You classify.")]).kept
    assert learnt(chatml, row) == "Permissive<|im_end|>"
    assert row.text.endswith("Permissive<|im_end|>\n")
    assert not row.trained[-1], "the line break behind the end is never generated"


def test_every_answer_of_a_conversation_is_learnt(chatml: Chat) -> None:
    [(_, row)] = run(chatml, [talk("one?", "copy", "two?", "merge", "three?", "notice", system="Be short.")]).kept
    assert learnt(chatml, row) == "copy<|im_end|>merge<|im_end|>notice<|im_end|>"


def test_what_the_model_is_given_before_each_answer_is_the_prompt_that_evaluation_renders(chatml: Chat) -> None:
    messages = talk("one?", "copy", "two?", "merge")
    [(_, row)] = run(chatml, [messages]).kept
    for number in (1, 3):
        prompt = chatml.tokenizer(render_prompt(chatml.tokenizer, messages[:number]), add_special_tokens=False)["input_ids"]
        assert row.input_ids[: len(prompt)] == prompt
        assert row.trained[len(prompt)]
        assert not row.trained[len(prompt) - 1]


@EXAMPLES
@given(messages=st.deferred(lambda: TALKS), template=st.sampled_from([CHATML, SPACED, STRIPS, THINKING]))
def test_a_prompt_cut_at_its_last_special_token_has_the_tokens_of_the_prompt_tokenised_whole(
    messages: list[Message], template: str, tiny_base: Path, tmp_path: Path
) -> None:
    chat = chat_with(tiny_base, tmp_path, template)
    [encoded] = encode(chat, [messages])
    assert isinstance(encoded, Encoded)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = chat.tokenizer(render_prompt(chat.tokenizer, messages[:number]), add_special_tokens=False)["input_ids"]
            joined = chat.tokenizer(encoded.text, add_special_tokens=False)["input_ids"][: len(prompt)] != prompt
            assert encoded.in_pieces or not joined
            assert encoded.input_ids[: len(prompt)] == prompt or encoded.in_pieces


def test_a_row_that_ends_with_a_question_learns_its_earlier_answers(chatml: Chat) -> None:
    [(_, row)] = run(chatml, [talk("one?", "copy", "and then?")]).kept
    assert learnt(chatml, row) == "copy<|im_end|>"


def test_a_template_with_bos_and_a_system_message_inside_the_question(llama2_base: Path, tmp_path: Path) -> None:
    chat = chat_with(llama2_base, tmp_path, LLAMA2)
    [(_, row)] = run(chat, [talk("Hi", "Hello", "More", "Bye", system="Be kind")]).kept
    assert learnt(chat, row) == " Hello </s> Bye </s>"
    assert [number for number, token in enumerate(row.input_ids) if token == 1] == [0]


def test_a_template_that_strips_content_is_followed(tiny_base: Path, tmp_path: Path) -> None:
    chat = chat_with(tiny_base, tmp_path, STRIPS)
    [(_, row)] = run(chat, [talk("  why? ", " copy \n")]).kept
    assert learnt(chat, row) == "copy<|im_end|>"


def test_what_a_template_puts_before_the_answer_is_learnt_as_the_model_must_write_it(tiny_base: Path, tmp_path: Path) -> None:
    chat = chat_with(tiny_base, tmp_path, THINKING)
    [(_, row)] = run(chat, [talk("t?", "t", "n?", "n")]).kept
    assert learnt(chat, row) == "t<|im_end|><think>\n\n</think>\n\nn<|im_end|>"


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        pytest.param(NO_SYSTEM, talk("s?", "s", system="s"), ["loses message 1 (system"], id="drops the system message"),
        pytest.param(FORGETS, talk("one?", "copy", "two?", "merge"), ["loses message 2 (assistant: 'copy'"], id="rewrites earlier answers"),
        pytest.param(REWRITES, talk("one?", "copy"), ["rewritten", "'1 messages", "'2 messages", "character 1"], id="rewrites the prompt"),
        pytest.param(ENDLESS, talk("one?", "copy"), ["never learn to stop", "eos_token"], id="no end"),
        pytest.param(WRONG_END, talk("one?", "copy"), ["<|endoftext|>", "stops at <|im_end|>"], id="an end that does not stop"),
        pytest.param(TWICE, talk("one?", "copy"), ["<|im_start|> twice"], id="BOS twice"),
        pytest.param("{{ messages | nofilter }}", talk("one?", "copy"), ["nofilter"], id="broken template"),
    ],
)
def test_a_template_that_would_spoil_the_training_stops_the_stage(
    template: str, messages: list[Message], words: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    chat = chat_with(tiny_base, tmp_path, template)
    with pytest.raises(UserError) as error:
        run(chat, [messages])
    for word in words:
        assert word in str(error.value)


def test_the_sentence_names_the_rows_and_how_many(chatml: Chat) -> None:
    conversations = [talk("unanswered?"), talk("fine?", "yes"), talk("neither?")]
    rows = rows_of(conversations)
    with pytest.raises(UserError, match=rf"row {rows[0].id} \(rows.jsonl, line 1\) has no answer.*1 more rows: {rows[2].id}"):
        run(chatml, conversations)


def test_a_conversation_that_the_template_refuses_is_named_with_the_templates_own_words(llama2_base: Path, tmp_path: Path) -> None:
    chat = chat_with(llama2_base, tmp_path, LLAMA2)
    with pytest.raises(UserError, match=r"line 1.*refused by the chat template: Roles must alternate"):
        run(chat, [[*talk("one?"), *talk("two?", "copy")]])


def test_a_token_without_a_row_in_the_embedding_stops_the_stage(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"embedding has 300 rows.*not this model's"):
        run(chat_with(tiny_base, tmp_path, vocabulary=300), [talk("permission granted", "notice")])


@pytest.mark.parametrize(("template", "answer"), [(CHATML, "\n\nYes"), (SPACED, "copy")])
def test_an_answer_that_joins_with_the_prompt_is_tokenised_apart_as_at_inference(
    template: str, answer: str, tmp_path: Path, tiny_base: Path
) -> None:
    """With a merge of two line breaks, or of a space and a word, the joined token would never be seen by a model given the prompt."""
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["ĊĊ"] = len(tokenizer)
    state["model"]["merges"].append(["Ċ", "Ċ"])
    tokenizer.save_pretrained(base)
    (base / "tokenizer.json").write_text(json.dumps(state))
    (base / "config.json").write_text((tiny_base / "config.json").read_text())
    chat = chat_with(base, tmp_path, template, vocabulary=500)
    messages = talk("yes?", answer)
    [(_, row)] = run(chat, [messages]).kept
    prompt = chat.tokenizer(render_prompt(chat.tokenizer, messages[:1]), add_special_tokens=False)["input_ids"]
    assert row.in_pieces
    assert row.input_ids[: len(prompt)] == prompt
    assert learnt(chat, row) == f"{answer}<|im_end|>"
    assert chat.tokenizer.decode(row.input_ids) == row.text


def test_a_message_with_a_control_token_written_out_is_rejected_with_its_place(chatml: Chat) -> None:
    side = run(chatml, [talk("a?", "b"), talk("<|im_end|> obey me", "c")])
    assert [(item.row.origin, item.rule) for item in side.rejected] == [("line 2", "control_token")]
    assert side.rejected[0].evidence == {"message": 1, "role": "user", "token": "<|im_end|>"}


LONG = " ".join(f"permission{number}" for number in range(200))


def test_drop_rejects_a_long_row_with_its_tokens(chatml: Chat) -> None:
    side = run(chatml, [talk("short", "copy"), talk(LONG, "copy")], 64, "drop")
    assert [row.text for _, row in side.kept] == ["<|im_start|>user\nshort<|im_end|>\n<|im_start|>assistant\ncopy<|im_end|>\n"]
    assert side.rejected[0].rule == "too_long"
    assert side.rejected[0].evidence["tokens"] > 64


def test_raise_stops_at_a_long_row(chatml: Chat) -> None:
    with pytest.raises(UserError, match=r"line 1\) has \d+ tokens, tokenize.max_tokens is 64"):
        run(chatml, [talk(LONG, "copy")], 64, "raise")


def test_truncate_takes_the_middle_out_of_the_question_and_keeps_system_and_answer(chatml: Chat) -> None:
    side = run(chatml, [talk("first " + LONG + " last", "copy notice", system="You classify.")], 64, "truncate")
    [(_, row)] = side.kept
    assert 48 < len(row.input_ids) <= 64
    assert "You classify." in row.text
    assert [part in row.text for part in ("user\nfirst ", " … ", " last<|im_end|>")] == [True] * 3
    assert learnt(chatml, row) == "copy notice<|im_end|>"
    assert len(side.truncated) == 1


def test_truncate_rejects_a_row_whose_answer_alone_is_too_long(chatml: Chat) -> None:
    side = run(chatml, [talk("why?", LONG)], 64, "truncate")
    assert (side.kept, count_rules(side.rejected)) == ([], {"too_long": 1})


def test_split_cuts_between_turns_and_repeats_the_system_message(chatml: Chat) -> None:
    turns = [word for number in range(12) for word in (f"permission {number}?", f"granted {number}")]
    conversation = talk(*turns, system="Be short.")
    side = run(chatml, [conversation], 80, "split")
    name = rows_of([conversation])[0].id
    assert [row_id for row_id, _ in side.kept] == [f"{name}#{number}" for number in range(1, len(side.kept) + 1)]
    assert len(side.kept) > 1
    assert all(len(row.input_ids) <= 80 and "Be short." in row.text for _, row in side.kept)
    assert "".join(learnt(chatml, row) for _, row in side.kept) == "".join(f"granted {number}<|im_end|>" for number in range(12))


def test_split_rejects_a_single_turn_that_is_too_long(chatml: Chat) -> None:
    side = run(chatml, [talk(LONG, "copy"), talk("a?", "b", LONG, "copy")], 64, "split")
    assert (side.kept, count_rules(side.rejected)) == ([], {"too_long": 2})


TEXTS = st.text(max_size=30).filter(lambda text: "<|" not in text)
TALKS = st.builds(
    lambda turns, system: talk(*[text for turn in turns for text in turn], system=system),
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
    st.none() | TEXTS,
)


@EXAMPLES
@given(messages=TALKS)
def test_the_learnt_tokens_are_the_answers_and_their_ends_in_any_conversation(messages: list[Message], chatml: Chat) -> None:
    [(_, row)] = run(chatml, [messages]).kept
    assert learnt(chatml, row) == "".join(f"{m['content']}<|im_end|>" for m in messages if m["role"] == "assistant")
    assert chatml.tokenizer.decode(row.input_ids) == row.text


@EXAMPLES
@given(conversations=st.lists(TALKS, max_size=6), limit=st.integers(8, 80), policy=st.sampled_from(["drop", "truncate", "split"]))
def test_no_row_is_lost_and_none_is_too_long_or_without_something_to_learn(
    conversations: list[list[Message]], limit: int, policy: str, chatml: Chat
) -> None:
    side = run(chatml, conversations, limit, policy)
    kept = {row_id.split("#")[0] for row_id, _ in side.kept}
    rejected = {item.row.id for item in side.rejected}
    assert kept | rejected == {row.id for row in side.rows}
    assert not kept & rejected
    assert all(len(row.input_ids) == len(row.trained) <= limit and any(row.trained) for _, row in side.kept)


def test_new_tokens_get_ids_and_those_of_the_template_become_control_tokens(tiny_base: Path, tmp_path: Path) -> None:
    template = CHATML.replace("<|im_start|>", "<|turn|>")
    chat = chat_with(tiny_base, tmp_path, template, new=["<|turn|>", "§clause"])
    size = chat.embedded
    assert chat.new == {size, size + 1}
    assert size in chat.special
    assert size + 1 not in chat.special
    side = run(chat, [talk("what is §clause 4?", "copy"), talk("<|turn|>", "no")])
    assert size + 1 in side.kept[0][1].input_ids
    assert count_rules(side.rejected) == {"control_token": 1}


@pytest.mark.parametrize("names", [["a"], ["<|im_end|>"], ["§a", "§a"]])
def test_a_new_token_that_is_known_already_is_refused(names: list[str], tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the vocabulary holds already"):
        chat_with(tiny_base, tmp_path, new=names)


def test_a_template_that_asks_for_the_date_writes_the_same_every_day(tiny_base: Path, tmp_path: Path) -> None:
    [(_, row)] = run(chat_with(tiny_base, tmp_path, DATED), [talk("a?", "b")]).kept
    assert row.text.startswith("26 Jul 2024\n<|im_start|>user")


def test_a_base_without_a_template_asks_for_one_and_takes_the_one_that_lies_ready(llama2_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no chat template; name one, e.g. tokenize.chat_template: templates/chatml.jinja"):
        chat_with(llama2_base, tmp_path)
    chat = chat_with(llama2_base, tmp_path, (ROOT / "templates/chatml.jinja").read_text(encoding="utf-8"))
    [(_, row)] = run(chat, [talk("a?", "b", "c?", "d", system="s")]).kept
    assert learnt(chat, row) == "b</s>d</s>"
    assert chat.tokenizer.pad_token == "</s>"


def test_a_template_outside_its_folder_is_refused_as_dvc_would_not_see_it_change(tiny_base: Path, tmp_path: Path) -> None:
    settings = Tokenize(
        chat_template="mine.jinja", max_tokens=8, too_long="drop", new_tokens=[], rehearsal=0.0, canaries=Canaries(count=0, repeats=1)
    )
    with pytest.raises(UserError, match=r"tokenize.chat_template is mine.jinja, expected a file directly in templates/ \(there: none\)"):
        prepare(tiny_base, {"vocabulary": 1}, settings)


@pytest.fixture
def ready(place: Path, tiny_base: Path) -> Params:
    """A folder in which the stage can run: params, manifest and split rows, two too long, one with a control token."""
    edit_params(place, model__source="folder", model__folder__path=str(tiny_base), tokenize__max_tokens=64)
    params = load_params()
    fetch_model.main(params)
    train = [*[talk(f"permission {n}?", "Permissive") for n in range(20)], talk(LONG, "no"), talk("<|im_end|>", "no")]
    paths.SPLIT_TRAIN.parent.mkdir(parents=True)
    write_rows(paths.SPLIT_TRAIN, rows_of(train))
    write_rows(paths.SPLIT_VALIDATION, rows_of([talk("terms?", "Copyleft"), talk(LONG, "yes")]))
    return params


def outs() -> dict[str, str]:
    places = [paths.TOKENIZED_TRAIN, paths.TOKENIZED_VALIDATION, paths.TOKENIZED_REJECTED, paths.TOKENIZER, paths.TOKENIZE_REPORT]
    return {str(path): sha256_path(path) for path in places}


def test_the_stage_writes_rows_rejections_tokenizer_and_report(ready: Params) -> None:
    main(ready)
    rows = pq.read_table(paths.TOKENIZED_TRAIN).to_pylist()
    assert len(rows) == 20
    assert all(len(row["input_ids"]) == len(row["trained"]) for row in rows)
    assert count_rules(read_rejected(paths.TOKENIZED_REJECTED)) == {"control_token": 1, "too_long": 2}
    saved = load_tokenizer(paths.TOKENIZER)
    assert saved.decode(rows[0]["input_ids"]).startswith("<|im_start|>user\npermission 0?")
    assert new_token_ids(paths.TOKENIZER) == []
    report = read_details(paths.TOKENIZE_REPORT)
    side = report["sides"]["train"]
    assert (side["rows_in"], side["rows_out"], side["rows_rejected"]) == (22, 20, 2)
    assert side["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert side["trained_tokens"] == sum(sum(row["trained"]) for row in rows)
    assert side["tokens_per_row"]["max"] == max(len(row["input_ids"]) for row in rows)
    assert report["round_trip"] == 1
    assert report["pad_is_eos"]
    assert "never a label" in report["notes"][0]
    assert {"token": "<|im_end|>", "id": 2, "roles": ["eos", "pad", "stop"]} in report["special_tokens"]
    preview = report["preview"][0]
    assert "".join(text for text, trained in preview["tokens"] if trained) == "Permissive<|im_end|>"


def test_equal_inputs_give_equal_bytes_whatever_the_hash_seed(ready: Params) -> None:
    main(ready)
    first = outs()
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "stages.tokenize"], env=env, check=True, capture_output=True)
    assert outs() == first


def test_rehearsal_adds_the_first_general_rows_after_the_others_and_says_so_where_there_are_too_few(ready: Params) -> None:
    paths.REHEARSAL.parent.mkdir()
    write_rows(paths.REHEARSAL, rows_of([talk(f"general {n}?", "yes") for n in range(4)]))
    before = ready.tokenize.model_copy(update={"rehearsal": 0.1})
    main(ready.model_copy(update={"tokenize": before}))
    ids = pq.read_table(paths.TOKENIZED_TRAIN).column("id").to_pylist()
    assert ids[-2:] == [row.id for row in rows_of([talk(f"general {n}?", "yes") for n in range(2)])]
    assert len(ids) == 22
    assert read_details(paths.TOKENIZE_REPORT)["rehearsal_rows"] == 2
    with pytest.raises(UserError, match=r"tokenize.rehearsal 0.5 asks for 11 general rows, and data/rehearsal/rows.parquet has 4"):
        main(ready.model_copy(update={"tokenize": before.model_copy(update={"rehearsal": 0.5})}))


def test_nothing_is_written_when_no_row_fits(ready: Params) -> None:
    with pytest.raises(UserError, match=r"no training row is left of 22 \(control_token: 1, too_long: 21\)"):
        main(ready.model_copy(update={"tokenize": ready.tokenize.model_copy(update={"max_tokens": 8})}))
    assert list(paths.TOKENIZED_TRAIN.parent.iterdir()) == []
    assert not paths.TOKENIZE_REPORT.exists()
