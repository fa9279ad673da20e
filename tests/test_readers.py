"""The user's own files: every format becomes rows, no row gets lost, and every mistake is told with its place."""

import csv
import json
import random
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.core.params import Column, Files
from stages.core.records import Row, read_rows, with_ids, write_rows
from stages.fetch_data.formats import NEEDED, OPTIONAL
from stages.fetch_data.user_files import read_user_files
from tests.tiny import ROOT, write_jsonl

EXAMPLES = ROOT / "docs/examples"


def read(folder: Path, format: str = "auto", **columns: str) -> list[Row]:
    return list(with_ids(row for row in read_user_files(folder, files(format, **columns), []) if isinstance(row, Row)))


def files(format: str = "auto", bad_rows: str = "stop", **columns: str) -> Files:
    return Files.model_validate({"format": format, "columns": columns, "bad_rows": bad_rows, "licenses": {}})


def one(folder: Path, record: dict[str, Any], format: str = "auto") -> Row:
    write_jsonl(folder / "one.jsonl", [record])
    [row] = read(folder, format)
    return row


def said(row: Row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("messages.jsonl", "messages"),
        ("sharegpt.jsonl", "sharegpt"),
        ("alpaca.jsonl", "alpaca"),
        ("prompt_completion.csv", "prompt_completion"),
        ("labelled.csv", "labelled"),
        ("preference.jsonl", "preference"),
    ],
)
def test_the_example_of_a_format_in_docs_is_read_as_that_format(name: str, format: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
    report: list[dict[str, Any]] = []
    rows = [row for row in read_user_files(tmp_path, files(), report) if isinstance(row, Row)]
    [about] = report
    assert (about["format"], about["rows"], about["unused_columns"]) == (format, 10, [])
    assert len({row.id for row in with_ids(rows)}) == 10
    assert read(tmp_path, format) == list(with_ids(rows))
    assert all(row.text and row.answer for row in rows)


def test_every_example_in_docs_is_of_a_format_and_named_by_the_docs() -> None:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert {path.stem for path in EXAMPLES.iterdir()} == set(NEEDED)
    assert all(f"(examples/{path.name})" in text for path in EXAMPLES.iterdir())


def test_the_columns_params_may_map_are_those_of_the_formats() -> None:
    assert set(get_args(Column)) == {name for names in (*NEEDED.values(), *OPTIONAL.values()) for name in names}


def test_a_folder_of_files_is_read_in_the_order_of_their_names_and_notes_are_passed_over(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b/late.jsonl", [{"text": "three", "label": "x"}])
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one", "label": "x"}, {"text": "two", "label": 2}]), encoding="utf-8")
    for name in ("README.md", ".gitignore", "a.json.dvc", ".hidden/rows.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no rows", encoding="utf-8")
    rows = read(tmp_path)
    assert [(row.text, row.label, row.origin) for row in rows] == [("one", "x", "row 1"), ("two", "2", "row 2"), ("three", "x", "line 1")]
    assert rows[2].source.endswith("b/late.jsonl")


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "rows.jsonl", [{"body": "late again", "category": " complaint ", "customer": 7, "text": "not this", "day": "Mon"}]
    )
    report: list[dict[str, Any]] = []
    columns = files(text="body", label="category", group="customer")
    rows = [row for row in read_user_files(tmp_path, columns, report) if isinstance(row, Row)]
    [about] = report
    assert [(row.text, row.label, row.group) for row in rows] == [("late again", "complaint", "7")]
    assert about["unused_columns"] == ["day"]


def test_parquet_csv_json_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    records = [{"text": f'line one\n"line", {number}', "label": "ä" if number % 2 else "b", "group": str(number)} for number in range(25)]
    write_jsonl(tmp_path / "jsonl/x.jsonl", records)
    for kind in ("parquet", "csv", "json"):
        (tmp_path / kind).mkdir()
    (tmp_path / "json/x.json").write_text(json.dumps(records), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "parquet/x.parquet")
    with (tmp_path / "csv/x.csv").open("w", encoding="utf-8-sig", newline="") as file:  # as Excel writes it
        writer = csv.DictWriter(file, ["text", "label", "group"])
        writer.writeheader()
        writer.writerows(records)
    ids = [row.id for row in read(tmp_path / "jsonl")]
    for kind in ("parquet", "csv", "json"):
        assert [row.id for row in read(tmp_path / kind)] == ids, kind


def test_parquet_holds_conversations_and_its_whole_floats_are_labels(tmp_path: Path) -> None:
    turns = chat(("system", "short"), ("user", "a?"), ("assistant", "a"), ("user", "b?"), ("assistant", "b"))
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"], "label": [3.0]}), tmp_path / "b.parquet")
    conversation, labelled = read(tmp_path)
    assert list(conversation.messages) == turns
    assert labelled.label == "3"


def test_many_turns_system_and_tool_messages_survive(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "u"), ("assistant", "call"), ("tool", "result"), ("assistant", "done")]
    assert said(one(tmp_path, {"messages": chat(*turns)})) == turns
    names = ["system", "human", "function_call", "observation", "gpt"]
    pairs = [{"from": name, "value": content} for name, (_, content) in zip(names, turns, strict=True)]
    assert said(one(tmp_path, {"conversations": pairs})) == turns
    assert said(one(tmp_path, {"system": "s", "conversations": pairs[1:]})) == turns
    parts = [{"role": "developer", "content": [{"type": "text", "text": "s"}]}, *chat(*turns[1:])]
    assert said(one(tmp_path, {"messages": parts})) == turns


def test_an_alpaca_input_follows_its_instruction(tmp_path: Path) -> None:
    record = {"instruction": "Sum.", "input": "1 2", "output": "3", "system": "maths"}
    assert said(one(tmp_path, record)) == [("system", "maths"), ("user", "Sum.\n\n1 2"), ("assistant", "3")]
    assert said(one(tmp_path, {**record, "input": None, "system": ""})) == [("user", "Sum."), ("assistant", "3")]


def test_preferences_come_as_texts_or_messages_with_or_without_the_prompt_in_front(tmp_path: Path) -> None:
    plain = one(tmp_path, {"prompt": "q", "chosen": "good", "rejected": "bad"})
    answers = {"chosen": chat(("assistant", "good")), "rejected": chat(("assistant", "bad"))}
    asked = chat(("user", "q"))
    ultra = {"prompt": "q", **{name: asked + answer for name, answer in answers.items()}}
    for record in ({"prompt": "q", **answers}, {"prompt": asked, **answers}, ultra):
        assert one(tmp_path, record).id == plain.id
    assert (plain.text, plain.answer, plain.rejected) == ("q", "good", tuple(answers["rejected"]))
    system = one(tmp_path, {**ultra, "system": "be kind"})
    assert said(system) == [("system", "be kind"), ("user", "q")]
    assert list(system.chosen or ()) == answers["chosen"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FILLED = TEXT.filter(lambda text: text.strip() != "")
TURNS = st.lists(st.tuples(st.sampled_from(["user", "tool", "assistant"]), TEXT), max_size=4)
RECORD = st.one_of(
    st.builds(lambda t, a: {"messages": chat(*t, ("assistant", a))}, TURNS, TEXT),
    st.builds(lambda t, label: {"text": t, "label": label}, TEXT, FILLED | st.integers(-(2**63) + 1, 2**63 - 1)),
    st.builds(lambda p, c, r: {"prompt": p, "chosen": c, "rejected": r}, TEXT, TEXT, TEXT),
    st.builds(lambda i, o: {"instruction": i, "output": o}, TEXT, TEXT),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORD, min_size=1, max_size=8), seed=st.integers(0, 99))
def test_no_row_is_lost_ids_are_unique_and_depend_on_content_alone(tmp_path: Path, records: list[dict[str, Any]], seed: int) -> None:
    def rows_of(order: list[dict[str, Any]]) -> list[Row]:
        for path in tmp_path.glob("*.jsonl"):
            path.unlink()
        for number, record in enumerate(order):  # a file each, as each file has one format
            write_jsonl(tmp_path / f"{number:03}.jsonl", [record])
        return read(tmp_path)

    rows = rows_of(records)
    assert len(rows) == len(records) == len({row.id for row in rows})
    write_rows(tmp_path / "rows.parquet", rows)
    assert read_rows(tmp_path / "rows.parquet") == rows
    (tmp_path / "rows.parquet").unlink()
    shuffled = random.Random(seed).sample(records, len(records))
    assert {(row.id, row.text, row.answer) for row in rows_of(shuffled)} == {(row.id, row.text, row.answer) for row in rows}


GOOD = '{"text": "t", "label": "l"}'
MISTAKES = [
    ("a.jsonl", f"{GOOD}\n{{oops}}\n", "auto", [":2 is not JSON (", "at character 2", "expected one object on the line"]),
    ("a.jsonl", f"{GOOD}\n[1]\n", "auto", [":2 is a list, expected an object"]),
    (
        "a.jsonl",
        b'{"text": "t", "label": "l"}\n{"text": "caf\xe9", "label": "l"}\n',
        "auto",
        [":2 is not UTF-8 (byte 0xe9", "save the file as"],
    ),
    ("a.jsonl", '{"text": "\\ud83d", "label": "l"}\n', "auto", [":1 has half a surrogate pair (U+D83D) in text"]),
    (
        "a.jsonl",
        '{"Text": "t", "Labels": "l"}\n',
        "labelled",
        ["no column text, label", "{text: Text, label: Labels}", "data.files.columns"],
    ),
    ("a.jsonl", '{"q": 1}\n', "alpaca", ["no column instruction, output (its columns are q)", "{instruction: YOUR_COLUMN}"]),
    ("a.jsonl", '{"promt": "q", "completion": "a"}\n', "auto", ["fits no format", "instruction, output | ", "{prompt: promt"]),
    ("a.jsonl", f'{GOOD}\n{{"text": "t"}}\n', "auto", [":2 has no label (its columns are text)"]),
    ("a.jsonl", f'{GOOD}\n{{"text": "t", "label": null}}\n', "auto", [":2 has an empty label"]),
    ("a.jsonl", f'{GOOD}\n{{"text": "t", "label": ["l"]}}\n', "auto", [":2 has a list in label, expected a text or a number"]),
    ("a.jsonl", f'{GOOD}\n{{"text": "t", "label": true}}\n', "auto", [":2 has bool True in label"]),
    ("a.jsonl", f'{GOOD}\n{{"text": "t", "label": NaN}}\n', "auto", [":2 has float nan in label"]),
    ("a.jsonl", f'{GOOD}\n{{"text": 5, "label": "l"}}\n', "auto", [":2 has int 5 in text, expected a text"]),
    ("a.jsonl", '{"messages": []}\n', "auto", [":1 has an empty list in messages"]),
    ("a.jsonl", '{"messages": "hi"}\n', "auto", [":1 has a str in messages, expected a list of messages"]),
    (
        "a.jsonl",
        '{"messages": [{"role": "bot", "content": "x"}]}\n',
        "auto",
        [":1 has the role 'bot' in message 1 of messages", "one of system"],
    ),
    (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": "x"}]}\n',
        "auto",
        ["ends with a message of role user, expected assistant last"],
    ),
    (
        "a.jsonl",
        '{"messages": [{"role": "assistant", "tool_calls": [{}]}]}\n',
        "auto",
        ["tool_calls in message 1", "write the call into content"],
    ),
    ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}\n', "auto", ["weight 0 in message 1 of messages"]),
    (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}\n',
        "auto",
        ["a part of type image_url in message 1"],
    ),
    ("a.jsonl", '{"conversations": [{"from": "gpt"}]}\n', "auto", [":1 has null in message 1 of conversations, expected a text"]),
    (
        "a.jsonl",
        '{"prompt": "q", "chosen": [{"role": "user", "content": "q2"}], "rejected": "b"}\n',
        "auto",
        ["in chosen messages of the roles user"],
    ),
    ("a.jsonl", "\n\n", "auto", ["has no rows; fill it or remove it"]),
    ("a.json", '{"text": "t"}', "auto", ["holds an object, expected a list of objects"]),
    ("a.json", f"{GOOD}\n{GOOD}", "auto", ["holds an object", "rename the file to .jsonl"]),
    ("a.json", f"[{GOOD}, 3]", "auto", [" row 2 is a number, expected an object"]),
    ("a.csv", 'text,label\n"two\nlines",l\na,b,c\n', "auto", [":4 has 3 values where the header has 2", "in double quotes"]),
    ("a.csv", 'text,label\na,b\n"open,c\n', "auto", ["a.csv:3 is not CSV (unexpected end of data)"]),
    ("a.csv", "text,text\na,b\n", "auto", ["a.csv:1 names the column 'text' twice"]),
    ("a.csv", "text;label\na;b\n", "auto", ["its columns are text;label"]),
    ("a.csv", "text,label\n", "auto", ["has no rows"]),
    ("a.parquet", "PAR1 and no more", "auto", ["a.parquet is not readable as Parquet (", "write it again"]),
    (
        "a.txt",
        "hello",
        "auto",
        ["a.txt is a file of type .txt, expected .csv, .json, .jsonl, .parquet, the first three also with .gz, .xz, .zst"],
    ),
    (".hidden", "", "auto", ["has no data file", "dvc add", "data.source: licences"]),
]


@pytest.mark.parametrize(("name", "content", "format", "words"), MISTAKES, ids=[f"{m[0]}-{m[3][0]}" for m in MISTAKES])
def test_a_mistake_is_told_with_place_finding_expectation(name: str, content: str | bytes, format: str, words: list[str], tmp_path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read(tmp_path, format)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    for word in words:
        assert word in message


def test_the_first_five_bad_rows_of_all_files_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    lines = [GOOD if number % 2 else "{" for number in range(8)]
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    message = str(error.value)
    assert [place for place in ("a.jsonl:1 ", "a.jsonl:3 ", "a.jsonl:5 ", "a.jsonl:7 ", "b.jsonl:1 ") if place not in message] == []
    assert "b.jsonl:3" not in message
    assert message.endswith("; and 3 more. Mend or remove these rows and run again")


def test_a_link_whose_target_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"rows\.csv is a link to a file that is not there; get it with dvc checkout"):
        read(tmp_path)
