"""Clean repairs what was decoded wrongly, rejects by named rules, and never shows what it hides."""

import json
import random
import string
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.clean.cleaning import SAMPLES, actions
from stages.clean.quality import repetition
from stages.clean.tally import Tally, report_of
from stages.clean.unicode import repair
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import canonical_json
from stages.core.params import Clean, load_params
from stages.core.personal_data import find_personal_data, is_card, is_iban
from stages.core.records import Rejected, Row, read_rejected, read_rows, write_rows
from stages.core.redaction import Redactor, separate
from stages.core.secrets import find_secrets
from tests.rows import chat, labelled, numbered, preference

stage = import_module("stages.clean.__main__")
PROSE = "The library may be copied, changed and passed on by anyone who keeps this notice in every copy of the source."


def params(**changes: object) -> Clean:
    values = {**load_params(Path(__file__).parent.parent / "params.yaml").clean.model_dump(), "languages": [], **changes}
    for name in ("secrets", "personal_data"):
        values[name] = {"default": values[name]} if isinstance(values[name], str) else values[name]
    return Clean.model_validate(values)


def clean(rows: list[Row], params: Clean, workers: int = 1) -> tuple[list[Row], list[Rejected], dict]:
    tally, kept, rejected = Tally(), [], []
    for batch in stage.clean_rows(rows, params, workers):
        kept += batch.kept
        rejected += batch.rejected
        tally.add(batch.tally, SAMPLES)
    return kept, rejected, report_of(tally, params, actions(params))


def one(row: Row, **changes: object) -> tuple[list[Row], list, dict]:
    return clean(numbered([row]), params(**changes))


def rule_of(row: Row, **changes: object) -> str | None:
    _, rejected, _ = one(row, **changes)
    return rejected[0].rule if rejected else None


# Unicode


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Copyright Â© 2007 Red Hat", "Copyright © 2007 Red Hat"),
        ("provided â€œas isâ€\x9d here", "provided “as is” here"),
        ("schÃ¶n", "schön"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth and \u202ebidi\u202c and\ufeff mark", "zerowidth and bidi and mark"),
        ("tags\U000e0041\U000e0042 hidden", "tags hidden"),
        ("red \x1b[31mtext\x1b[0m and bell\x07", "red text and bell"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a\u200db", "ab"),
    ],
)
def test_what_was_decoded_wrongly_or_cannot_be_seen_is_repaired(before: str, after: str) -> None:
    assert repair(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "“curly” ‘quotes’, an ﬁ ligature, ＡＢＣ, x &amp; y, 10³ µm, a\u00a0b",
        "family 👨‍👩‍👧 and England 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "می‌خواهم क्‍ष",
        "tab\there\nnew line\x0cform feed",
    ],
)
def test_what_an_author_may_have_meant_is_left_alone(text: str) -> None:
    assert repair(text) == text


def test_fenced_code_keeps_its_mojibake_and_loses_only_what_cannot_be_seen() -> None:
    code = "```python\nassert fix('Ã©') == 'é'  # “x” ﬁ cafe\u0301\n```"
    assert repair(f"schÃ¶n\n{code}\nschÃ¶n") == f"schön\n{code}\nschön"
    assert repair("```\nif admin\u202e:\n```") == "```\nif admin:\n```"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_repairing_twice_changes_nothing_more(text: str) -> None:
    assert repair(repair(text)) == repair(text)


@given(st.text(st.characters(min_codepoint=0xA0, max_codepoint=0x24F)), st.sampled_from(["latin-1", "cp1252"]))
def test_repairing_mojibake_reaches_a_fixed_point(text: str, wrong: str) -> None:
    broken = text.encode().decode(wrong, errors="ignore")
    assert repair(repair(broken)) == repair(broken)


def test_repairs_are_counted_and_shown_before_and_after() -> None:
    kept, _, report = clean(numbered([chat(f"{PROSE} Â© Red Hat", "An answer.\u200b"), chat("Plain prompt", "Plain answer")]), params())
    assert report["repaired"] == {"mojibake": 1, "invisible": 1}
    assert kept[0].answer == "An answer."
    assert "Â©" in report["repair_samples"][0]["before"]
    assert "Â©" not in report["repair_samples"][0]["after"]


# rules


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (chat("", "An answer without a question."), "empty_prompt"),
        (chat("A question without an answer?", " \n"), "empty_answer"),
        (chat("A question with an invisible answer?", "\u200b\ufeff"), "empty_answer"),
        (preference("A question with one answer?", "This one.", ""), "empty_answer"),
        (chat("Hi", "Ho"), "too_short"),
        (chat("Why?", "word " * 5000), "too_long"),
        (chat("Say something.", "I will say the same again. " * 12), "repetition"),
        (chat("What is the capital of France?", "Paris."), None),
        (chat("Fix it: " + PROSE, PROSE), None),
        (labelled("licensed under MIT", "Permissive"), None),
    ],
)
def test_each_rule_rejects_what_it_names(row: Row, rule: str | None) -> None:
    assert rule_of(row) == rule


def test_a_short_answer_does_not_repeat_itself() -> None:
    assert repetition("yes yes yes") == 0.0
    assert repetition("the cat sat on the mat " * 10) > 0.8


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("As an AI language model, I cannot write that story.", True),
        ("Unfortunately, I am unable to assist.", True),
        ("I'm sorry for your loss. Grief takes time, and you can talk to friends.", False),
        ("I can help you with that: first, open the file.", False),
        ("You can't divide by zero.", False),
    ],
)
def test_refusals_are_rejected_where_that_is_asked_for(answer: str, refused: bool) -> None:
    assert (rule_of(chat("Please do this for me.", answer), max_refusal=0.5) == "refusal") == refused
    assert rule_of(chat("Please do this for me.", answer), max_refusal=None) is None


@pytest.mark.parametrize(
    ("text", "rejected"),
    [
        ("Ce programme est un logiciel libre, vous pouvez le redistribuer selon les termes de la licence publique.", True),
        ("Deze software wordt geleverd zoals hij is, zonder enige garantie, en mag vrij worden verspreid en gewijzigd.", True),
        ("这个程序是自由软件，你可以在自由软件基金会发布的通用公共许可证的条款下重新分发和修改它，" * 3, True),
        ("Ce programme est libre.", False),  # too short to judge
        (PROSE, False),
        ("<license>\n<name> Apache License 2.0 </name>\n<url>(http://www.apache.org/licenses/LICENSE-2.0.txt)</url></license>", False),
        ("THIS SOFTWARE IS THE CONFIDENTIAL AND PROPRIETARY INFORMATION OF YOU SHALL NOT DISCLOSE SUCH INFORMATION", False),
        ("Sort it:\n```python\n" + "for eintrag in liste: sortiere(eintrag, schluessel=laenge)\n" * 3 + "```", False),
    ],
)
def test_foreign_prose_is_rejected_and_names_markup_and_code_are_not(text: str, rejected: bool) -> None:
    assert (rule_of(labelled(text, "Permissive"), languages=["en"], max_repetition=1.0) == "language") == rejected


def test_an_unknown_language_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"clean.languages names xx, which the language model does not know; it knows .*\ben\b"):
        clean([], params(languages=["en", "xx"]))


# secrets and personal data


def _random(alphabet: str, length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


ALNUM = string.ascii_letters + string.digits
BASE32 = string.ascii_uppercase + "234567"
# put together here, so that no scanner takes this file for a leak
SECRETS: dict[str, Callable[[int], str]] = {
    "aws_access_key": lambda n: "AK" + "IA" + _random(BASE32, 16, n),
    "github_token": lambda n: "gh" + "p_" + _random(ALNUM, 36, n),
    "gitlab_token": lambda n: "gl" + "pat-" + _random(ALNUM, 20, n),
    "slack_token": lambda n: "xo" + "xb-" + _random(string.digits, 12, n) + "-" + _random(ALNUM, 24, n),
    "stripe_key": lambda n: "sk" + "_live_" + _random(ALNUM, 24, n),
    "google_key": lambda n: "AI" + "za" + _random(ALNUM, 35, n),
    "openai_key": lambda n: "sk" + "-proj-" + _random(ALNUM, 48, n) + "7a",
    "anthropic_key": lambda n: "sk" + "-ant-api03-" + _random(ALNUM, 40, n),
    "hugging_face_token": lambda n: "h" + "f_" + _random(ALNUM, 34, n),
    "jwt": lambda n: "ey" + "J" + _random(ALNUM, 20, n) + ".eyJ" + _random(ALNUM, 30, n) + "." + _random(ALNUM, 43, n),
    "private_key": lambda n: "-----BEGIN RSA PRIVATE" + " KEY-----\n" + _random(ALNUM, 64, n) + "\n-----END RSA PRIVATE" + " KEY-----",
}
ASSIGNED = [
    "DATABASE_PASSWORD = '{}'", 'api_key: "{}"', "aws_secret_access_key={}", '"client_secret": "{}"', "export AUTH_TOKEN={}"
]  # fmt: skip
PERSONAL = {
    "email": ["jane.doe@corp-mail.co.uk", "Leo.G+x@seznam.cz"],
    "phone": ["+1(415)492-9861", "(630) 252-4318", "+44 1223 334714", "1-800-548-4725", "617-542-5942", "+41-44-5150410"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"],
    "card": ["4242 4242 4242 4242", "378282246310005", "5555-5555-5555-4444"],
    "us_ssn": ["536-90-4399"],
    "ip": ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"],
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("number", range(5))
def test_a_planted_secret_is_found_with_its_kind_and_place(kind: str, number: int) -> None:
    secret = SECRETS[kind](number)
    text = f"Use this one: {secret} and tell nobody."
    assert [(f.kind, text[f.start : f.end]) for f in separate(find_secrets(text))] == [(kind, secret)]


@pytest.mark.parametrize("line", ASSIGNED)
def test_an_assigned_random_value_is_a_secret(line: str) -> None:
    values = [_random(ALNUM, 24, number) + "x9" for number in range(20)]
    assert all([f.kind for f in find_secrets(line.format(value))] == ["assigned_secret"] for value in values)


@pytest.mark.parametrize(
    "text",
    [
        "password: see the documentation", "password = your_password1", "token = os.environ['GITHUB_TOKEN1']",
        "the secret key is kept safe",
        "AK" + "IAIOSFODNN7EXAMPLE", "postgres://user:password@localhost/db", "https://user:${TOKEN1}@host/x",
        "-----BEGIN PRIVATE" + " KEY-----",
        "commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904", "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "import sk-learn-contrib-tools-for-a-long-name", "max_tokens: 4096, tokenizer = AutoTokenizer1",
        "License key: GPL-2.0-or-later",
        "token: 'identifier', password=None, api_key = config.api_key2",
    ],
)  # fmt: skip
def test_documentation_about_secrets_holds_none(text: str) -> None:
    assert find_secrets(text) == []


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in PERSONAL.items() for value in values])
def test_personal_data_is_found_with_its_kind_and_place(kind: str, value: str) -> None:
    text = f"Write to {value}, please."
    assert [(f.kind, text[f.start : f.end]) for f in separate(find_personal_data(text))] == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "Copyright (c) 1989, 1991-2007, 2010 Free Software Foundation", "version 10.20.30.40, libfoo 3.0.12.1, v12.34.56.78",
        "Version 2.0, January 2004; 2004-01-15; 15.01.2004; 2024-01-15 12:30:45", "51 Franklin St, Boston, MA 02110-1301 USA",
        "ISBN 978-0-13-110362-7, RFC 2606, ISO/IEC 9899:1999, DFARS 252.227-7013 (Oct 1988)",
        "0x1234567890abcdef deadbeef-1234-5678-9abc-def012345678",
        "git@github.com:owner/repo.git, icon@2x.png, user@example.com, @mention",
        "localhost 127.0.0.1, 192.168.10.20, 10.11.12.13, ::1, std::deque::at",
        "00:1A:2B:3C:4D:5E at 12:34:56", "DE12 3456 7890 1234 5678 90", "4242 4242 4242 4241", "000-12-3456 and 900-12-3456",
        "1234567890 1234567890123456",
        "GPL-2.0+ 3.141592653589793 1,234,567,890",
    ],
)  # fmt: skip
def test_years_versions_dates_and_addresses_of_no_person_are_not_personal_data(text: str) -> None:
    assert find_personal_data(text) == []


def test_check_digits_are_those_of_the_standards() -> None:
    assert is_iban("FR1420041010050500013M02606")
    assert not is_iban("FR1420041010050500013M02607")
    assert is_card("4012888888881881")
    assert not is_card("4012888888881882")


def test_one_value_has_one_placeholder_in_all_messages_of_a_row_and_other_placeholders_are_counted_on_from() -> None:
    row = chat("Ask ann@corp.org or bob@corp.org about <EMAIL_1>.", "Done: ann@corp.org knows.", "And bob@corp.org?", "He too.")
    kept, _, _ = one(row, personal_data="redact")
    assert [m["content"] for m in kept[0].messages] == [
        "Ask <EMAIL_2> or <EMAIL_3> about <EMAIL_1>.",
        "Done: <EMAIL_2> knows.",
        "And <EMAIL_3>?",
        "He too.",
    ]


def test_a_label_is_never_repaired_redacted_or_judged() -> None:
    kept, _, _ = one(labelled(f"{PROSE} x@y.org Â©", "cafe\u0301 ann@corp.org"))
    assert kept[0].label == kept[0].answer == "cafe\u0301 ann@corp.org"
    assert kept[0].text == f"{PROSE} <EMAIL_1> ©"


@pytest.mark.parametrize("what", ["secrets", "personal_data"])
def test_drop_redact_and_keep_do_what_they_say(what: str) -> None:
    value = SECRETS["github_token"](1) if what == "secrets" else "ann@corp.org"
    row = chat(f"{PROSE} {value}", "An answer.")
    assert rule_of(row, **{what: "drop"}) == what
    assert value not in one(row, **{what: "redact"})[0][0].text
    assert value in one(row, **{what: "keep"})[0][0].text


@pytest.mark.parametrize("action", ["drop", "redact", "keep"])
def test_no_secret_and_no_personal_datum_is_in_the_report_or_the_evidence(action: str) -> None:
    values = [make(7) for make in SECRETS.values()] + [value for group in PERSONAL.values() for value in group]
    rows = [chat(f"{value} Â© x {PROSE}", "An answer.") for value in values] + [chat(f"again {value} " * 12, "No.") for value in values]
    kept, rejected, report = clean(numbered(rows), params(secrets=action, personal_data=action, max_repetition=0.3))
    told = canonical_json(report) + "".join(json.dumps(item.evidence) for item in rejected)
    assert [value for value in values if value in told or value.replace("\n", "\\n") in told] == []
    assert sum(report["secrets"]["values"].values()) + sum(report["personal_data"]["values"].values()) >= 2 * len(values)
    if action != "keep":
        stored = "".join(m["content"] for row in [*kept, *(item.row for item in rejected)] for m in row.messages)
        assert [value for value in values if value in stored] == []


# invariants

PIECES = st.sampled_from(
    [
        *(make(3) for make in SECRETS.values()), *(value for group in PERSONAL.values() for value in group), PROSE, "Â©",
        "cafe\u0301", "\u200b", "\u0338",
        "```\ncode Ã©\n```", "<EMAIL_1>", "password=a1b2c3d4e5f6", "\r\n", " ", "@", "1", "-", "again and again and again ", "",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=7).map("".join)
ROWS = st.lists(
    st.builds(chat, TEXTS, TEXTS) | st.builds(preference, TEXTS, TEXTS, TEXTS) | st.builds(labelled, TEXTS, st.sampled_from(["A",
    "B"])), max_size=5
)  # fmt: skip
ACTIONS = st.sampled_from(["drop", "redact", "keep"])
OF_SECRETS = ACTIONS | st.sampled_from(
    [{"default": "keep", "jwt": "redact", "github_token": "drop"}, {"default": "redact", "private_key": "keep"}]
)
OF_PERSONAL_DATA = ACTIONS | st.sampled_from([{"default": "redact", "ip": "keep", "iban": "drop"}, {"default": "keep", "email": "redact"}])


@settings(max_examples=150, deadline=None)
@given(ROWS, OF_SECRETS, OF_PERSONAL_DATA)
def test_rows_are_conserved_and_cleaning_twice_changes_nothing_more(rows: list[Row], secrets: object, personal_data: object) -> None:
    chosen = params(secrets=secrets, personal_data=personal_data, max_refusal=0.5)
    rows = numbered(rows)
    kept, rejected, report = clean(rows, chosen)
    assert sorted(row.id for row in rows) == sorted(row.id for row in [*kept, *(item.row for item in rejected)])
    assert sum(report["rejected"].values()) == len(rejected) == report["rows_in"] - report["rows_out"]
    again, rejected_again, _ = clean(kept, chosen)
    assert again == kept
    assert rejected_again == []


@given(TEXTS)
def test_redacting_leaves_nothing_to_find(text: str) -> None:
    assert find_personal_data(Redactor(find_personal_data, [text])(text)) == []


def test_the_stage_writes_equal_bytes_and_a_rejected_row_can_be_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.RAW_ROWS.parent.mkdir(parents=True)
    rows = numbered([labelled(f"{PROSE} {number} ann@corp.org", "A") for number in range(20)] + [chat("Hi", "Ho")])
    write_rows(paths.RAW_ROWS, rows)
    bytes_of = []
    for _ in range(2):
        stage.main(load_params(Path(__file__).parent.parent / "params.yaml"))
        bytes_of.append([path.read_bytes() for path in (paths.CLEAN_ROWS, paths.CLEAN_REJECTED, paths.CLEAN_REPORT)])
    assert bytes_of[0] == bytes_of[1]
    assert len(read_rows(paths.CLEAN_ROWS)) == 20
    assert {item.row.id: item.rule for item in read_rejected(paths.CLEAN_REJECTED)} == {rows[-1].id: "too_short"}
