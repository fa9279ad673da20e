"""People's decisions about rows, in data/decisions.csv. In: the file. Out: one decision a row id, or a sentence that names the line."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from stages.core import paths
from stages.core.errors import UserError
from stages.core.records import Row

COLUMNS = ["id", "action", "who", "when", "why", "label"]
ACTIONS = ("keep", "drop", "relabel")


@dataclass(frozen=True)
class Decision:
    """What a person decided about a row: keep it as it is, drop it, or give it another label."""

    id: str
    action: str
    who: str
    why: str
    label: str
    line: int


def read_decisions(path: Path) -> list[Decision]:
    """Reads data/decisions.csv, strictly: a decision that is misread is worse than none.

    Args:
        path: a CSV file with the columns id, action, who, when, why, label.

    Returns:
        The decisions, one a row id.

    Raises:
        UserError: a column, an action or a value is missing, unknown or doubled; the sentence names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    decisions: dict[str, Decision] = {}
    try:
        header = next(reader, [])
        if header != COLUMNS:
            raise UserError(
                f"{path}, line 1 has the columns {','.join(header) or 'nothing'}, expected {','.join(COLUMNS)}; write that line"
            )
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            decision = _decision(fields, f"{path}, line {reader.line_num}", reader.line_num)
            if decision.id in decisions:
                where = f"{path}, line {reader.line_num}"
                raise UserError(f"{where} decides about {decision.id} again, after line {decisions[decision.id].line}; remove one of them")
            decisions[decision.id] = decision
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num} is not valid CSV ({error}); quote a field with commas, double a quote in it"
        ) from None
    return list(decisions.values())


def _decision(fields: list[str], where: str, line: int) -> Decision:
    """One line of decisions.csv."""
    if len(fields) != len(COLUMNS):
        raise UserError(
            f"{where} has {len(fields)} fields, expected {len(COLUMNS)} ({','.join(COLUMNS)}); quote a field that holds a comma"
        )
    values = dict(zip(COLUMNS, (field.strip() for field in fields), strict=True))
    if values["action"] not in ACTIONS:
        raise UserError(f"{where} has the action '{values['action']}', expected one of {', '.join(ACTIONS)}; correct it")
    for name in ("id", "who"):
        if not values[name]:
            raise UserError(f"{where} has no {name}; write {'the row’s id, as suspects.parquet has it' if name == 'id' else 'who decided'}")
    if (values["action"] == "relabel") != bool(values["label"]):
        found = (
            "relabels to nothing"
            if values["action"] == "relabel"
            else f"has the label '{values['label']}' for the action {values['action']}"
        )
        raise UserError(f"{where} {found}; a relabel needs the new label in the last column, other actions leave it empty")
    return Decision(values["id"], values["action"], values["who"], values["why"], values["label"], line)


def decided(row: Row, decision: Decision, known: set[str]) -> Row:
    """The row as a decision leaves it: a relabelled row has the new label in its label and in its answer.

    Args:
        row: the row that the decision is about.
        decision: keep and drop change nothing here.
        known: the labels that rows have.

    Returns:
        The row, its id unchanged.

    Raises:
        UserError: a relabelling that cannot be meant.
    """
    if decision.action != "relabel":
        return row
    where = f"{paths.DECISIONS}, line {decision.line}"
    if row.label is None:
        raise UserError(f"{where} relabels {row.id}, which has no label; drop the row, or correct its answer in data/sources")
    if decision.label not in known:
        raise UserError(f"{where} gives {row.id} the label '{decision.label}', which no row has; known: {', '.join(sorted(known))}")
    answer = {**row.messages[-1], "content": decision.label}
    return replace(row, label=decision.label, messages=(*row.messages[:-1], answer))
