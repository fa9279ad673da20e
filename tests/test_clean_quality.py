"""The quality rules reject what they name and no short good answer, show the rows at their thresholds, and do not depend on workers."""

from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.clean import quality
from stages.clean.cleaning import clean_batch
from stages.clean.language import foreign
from stages.clean.rules import ALL_RULES
from stages.clean.tally import EXAMPLES, Tally
from stages.core import paths
from stages.core.errors import UserError
from stages.core.language import is_obviously_english, language_of
from stages.core.params import load_params
from stages.core.records import Row, write_rows
from tests.rows import chat, labelled, numbered, preference
from tests.test_clean import PROSE, clean, one, params, rule_of

stage = import_module("stages.clean.__main__")
FRENCH = "Ce programme est un logiciel libre, vous pouvez le redistribuer selon les termes de la licence publique."
QUESTION = "How does a licence of software protect the people who use it?"


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (chat(QUESTION, f"{PROSE} It also says that nobody may take that right away from the"), "truncated"),
        (chat(QUESTION, f"{PROSE} The reasons are these:"), "truncated"),
        (chat(QUESTION, f"{PROSE} Nobody may take that right away from any of you later"), None),  # surely cut, but below the limit
        (chat(QUESTION, "Use the index, not the"), None),  # too short to judge
        (chat("Write the loop.", "```python\nfor x in y:\n    print(x)\n"), "unclosed_fence"),
        (chat("Write the loop.", "```python\nfor x in y:\n    print(x)\n```\nThat is all."), None),
        (chat("Write the loop.", "````md\n```\nnot closed inside\n````\nDone."), None),
        (chat("Write the loop.", "Type ```x``` and press enter."), None),
        (chat(QUESTION, "<p>It gives</p> <b>rights</b>&nbsp;<br/> to <span>you</span>"), "markup"),
        (chat("Make an HTML paragraph.", "<p>It gives</p> <b>rights</b>&nbsp;<br/> to <span>you</span>"), None),
        (chat("What does <b>x</b> do?", "<p>It</p> <b>is</b>&nbsp;<br/> bold"), None),
        (chat(QUESTION, "Write it so:\n```html\n<p>a</p><p>b</p><p>c</p>\n```\nand then save the file."), None),
        (chat(QUESTION, "See [[Licence|the licence]] '''now''' {{cite web}} == More =="), "markup"),
        (chat(QUESTION, "I hope this helps! Let me know if you have questions. Is there anything else I can do?"), "boilerplate"),
        (chat(QUESTION, f"Sure, here it is. {PROSE} I hope this helps!"), None),
        (chat(QUESTION, "It gives \ufffd\ufffd rights."), "mojibake"),
        (chat("Go", "word after word and no end of it in sight " * 260), "repetition"),
        (chat("Q?", " ".join(f"word{number}" for number in range(400))), "long_for_prompt"),
        (chat(f"{QUESTION} {PROSE}", FRENCH), "language"),
        (chat(f"Translate into French: {PROSE}", FRENCH), None),
        (chat(FRENCH, f"{PROSE} {PROSE.upper()}"), "language"),
        (preference(QUESTION, PROSE, f"{PROSE} They may use it as they wish, because of the"), None),
    ],
)  # fmt: skip
def test_each_quality_rule_rejects_what_it_names(row: Row, rule: str | None) -> None:
    assert rule_of(row, languages=["en"]) == rule


@pytest.mark.parametrize(
    "answer",
    ["Paris.", "42", "Yes", "No, never.", "x = 1", "déjà vu", "O(n log n)", "`rm -r`", "7 < 9", "2024-01-15", "😀", "The cat sat."],
)
def test_a_short_answer_can_be_perfect(answer: str) -> None:
    assert rule_of(chat("Answer this question with as few words as you can, please: what is it?", answer), languages=["en"]) is None


def test_a_label_is_judged_by_no_rule() -> None:
    label = "<p>I cannot help with that.</p> \ufffd\ufffd\ufffd and the"
    assert rule_of(labelled(PROSE, label), max_refusal=0.1, languages=["en"]) is None


def test_a_limit_of_null_rejects_nothing_and_shows_the_rows() -> None:
    row = chat("Please do this for me.", "I'm sorry, but I can't help with that.")
    kept, _, report = one(row, max_refusal=None)
    assert len(kept) == 1
    assert report["rules"]["refusal"]["max_refusal"] is None
    assert [example["measure"] for example in report["rules"]["refusal"]["kept_nearest"]] == [1.0]


def test_a_rule_shows_its_worst_its_nearest_rejected_and_its_nearest_kept_rows() -> None:
    answers = [" ".join(["again and again and again"] * repeats + [f"word{n}" for n in range(100)]) for repeats in range(60)]
    kept, rejected, report = clean(numbered([chat("Say it.", answer) for answer in answers]), params())
    shown = report["rules"]["repetition"]
    measures = {name: [example["measure"] for example in shown[name]] for name in ("worst", "rejected_nearest", "kept_nearest")}
    assert shown["rejected"] == len(rejected)
    assert len(kept) > EXAMPLES < len(rejected)
    assert all(len(values) == EXAMPLES for values in measures.values())
    everything = sorted(quality.repetition(answer) for answer in answers)
    assert measures["worst"] == [round(value, 4) for value in everything[: -EXAMPLES - 1 : -1]]
    beyond = [round(value, 4) for value in everything if value > 0.5]
    assert measures["rejected_nearest"] == beyond[:EXAMPLES]
    within = [round(value, 4) for value in everything if 0 < value <= 0.5]
    assert measures["kept_nearest"] == within[: -EXAMPLES - 1 : -1]


def test_a_rows_end_is_shown_where_the_end_is_judged_and_nothing_secret_is_shown() -> None:
    mail = "ann.berg@corp-mail.org"
    _, _, report = one(chat(QUESTION, f"{PROSE} Ask {mail} about it, and then about the"), personal_data="keep")
    text = report["rules"]["truncated"]["worst"][0]["text"]
    assert text.endswith("and then about the")
    assert "<EMAIL_1>" in text
    assert mail not in str(report)


def test_every_kind_has_its_own_action() -> None:
    asked = {"default": "redact", "ip": "keep", "iban": "drop"}
    row = chat(QUESTION, "Ask ann@corp.org at 93.184.216.34.")
    kept, _, report = one(row, personal_data=asked)
    assert kept[0].answer == "Ask <EMAIL_1> at 93.184.216.34."
    assert report["personal_data"]["actions"] == asked
    assert report["personal_data"]["rows"] == {"email": 1, "ip": 1}
    _, rejected, _ = one(chat(QUESTION, "Pay DE89 3704 0044 0532 0130 00 for ann@corp.org at 93.184.216.34."), personal_data=asked)
    assert rejected[0].rule == "personal_data"
    assert [place["kind"] for place in rejected[0].evidence["found"]] == ["iban"]
    assert rejected[0].row.answer == "Pay <IBAN_1> for <EMAIL_1> at 93.184.216.34."


def test_an_unknown_kind_is_told_with_the_known_ones(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("personal_data: {default: redact}", "personal_data: {default: redact, mail: keep}"), encoding="utf-8")
    with pytest.raises(UserError, match=r"clean\.personal_data\.mail is 'mail', expected .*'email'"):
        load_params(path)
    path.write_text(text.replace("personal_data: {default: redact}", "personal_data: {ip: keep}"), encoding="utf-8")
    with pytest.raises(UserError, match=r"clean\.personal_data has no default"):
        load_params(path)


def test_obvious_english_is_never_what_the_model_surely_takes_for_another_language() -> None:
    english = "This software is provided as is and any person who has a copy may use it for the purposes that are named in this license."
    for other in (FRENCH, "Deze software wordt geleverd zoals hij is, zonder enige garantie, en mag vrij worden verspreid en gewijzigd."):
        for words in range(0, 24, 2):
            text = " ".join([*english.split()[:words], *other.split()]).encode("ascii", "ignore").decode()
            share, _ = foreign(text, [], ("en",), 1)
            assert not (is_obviously_english(text) and share)
    assert is_obviously_english(english)


ROWS = st.lists(
    st.builds(chat, st.sampled_from([QUESTION, PROSE, FRENCH, "x", "ann@corp.org"]),
              st.sampled_from([PROSE, FRENCH, "```\nx", "I can't help with that.", "so " * 30, "Paris.", "<b>a</b>", "\ufffd",
                               f"{PROSE} and the"])),
    max_size=12,
)  # fmt: skip


@given(ROWS, st.integers(1, 5))
def test_the_tally_does_not_depend_on_the_batches(rows: list[Row], size: int) -> None:
    rows, chosen = numbered(rows), params()
    whole, parts = Tally(), Tally()
    whole.add(clean_batch(rows, chosen).tally, 5)
    for start in range(0, len(rows), size):
        parts.add(clean_batch(rows[start : start + size], chosen).tally, 5)
    assert parts == whole


def test_outs_have_the_same_bytes_with_one_process_and_with_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.RAW_ROWS.parent.mkdir(parents=True)
    rows = numbered([labelled(f"{PROSE} {n} ann{n}@corp.org", "A") for n in range(60)] + [chat(QUESTION, "```\nx")] * 20)
    write_rows(paths.RAW_ROWS, rows)
    monkeypatch.setattr(stage, "BATCH_ROWS", 7)
    monkeypatch.setattr(stage, "cores", lambda: 2)
    bytes_of = []
    for enough in (1, 10**9):
        monkeypatch.setattr(stage, "ROWS_FOR_PROCESSES", enough)
        stage.main(load_params(Path(__file__).parent.parent / "params.yaml"))
        bytes_of.append([path.read_bytes() for path in (paths.CLEAN_ROWS, paths.CLEAN_REJECTED, paths.CLEAN_REPORT)])
    assert bytes_of[0] == bytes_of[1]


def test_every_rules_limit_is_a_key_of_the_parameters() -> None:
    assert {rule.limit for rule in ALL_RULES} <= set(type(params()).model_fields)


def test_in_a_conversation_each_answer_is_measured_against_what_was_asked_since_the_last_one() -> None:
    long = " ".join(f"word{number}" for number in range(300))
    asked = {"role": "user", "content": f"{QUESTION} {PROSE}"}
    answers = [{"role": "assistant", "content": text} for text in ("First.", long)]
    row = Row("", (asked, *answers), None, None, None, "test", "1", None)
    assert rule_of(row) is None  # the second answer follows no question, and no ratio is its
    html = "<p>It gives</p> <b>rights</b> to <span>you</span>"
    assert rule_of(chat("Make an HTML paragraph.", html, "Now make it longer.", f"{html} {html}")) is None
    assert rule_of(chat("Tell me.", "It gives rights.", "Now make it longer.", f"{html} {html}")) == "markup"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Der Käufer hat das Recht, den Vertrag innerhalb von vierzehn Tagen zu widerrufen.", "de"),
        ("Le client peut résilier le contrat à tout moment sans frais supplémentaires.", "fr"),
        ("¿Cuál es la capital de España y cuántos habitantes tiene?", "es"),
        ("根据合同法,买方有权在十四天内解除合同。", "zh"),
        ("What does this function return when the list is empty, and which of the two callers can rely on it?", "en"),
        ("GNU General Public License, V 1.0", None),
        ("```python\nreturn x\n```", None),
        ("", None),
    ],
)
def test_a_texts_language_is_told_where_it_is_sure(text: str, language: str | None) -> None:
    assert language_of(text) == language
