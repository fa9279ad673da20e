"""Personal data and secrets in what the models wrote: in a training row, in the prompt, or made up.

In: outputs, each with what was before it, and the training rows. Out: findings by kind, never the value.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stages.core.personal_data import find_personal_data
from stages.core.records import Row
from stages.core.redaction import Finding, separate
from stages.core.secrets import find_secrets

SHOWN_ROWS = 5  # training rows that are named for a value


@dataclass(frozen=True, slots=True)
class Output:
    """What a model wrote.

    Attributes:
        where: what it answered: a row's id and part, or `evaluation ROW`.
        variant: base or tuned.
        before: the prompt's text.
        text: what was written.
    """

    where: str
    variant: str
    before: str
    text: str


@dataclass(frozen=True, slots=True)
class Value:
    """A value in an output.

    Attributes:
        where: of the output.
        variant: of the output.
        kind: of the value, such as `email`.
        found: `training row`, `prompt` or `made up`.
        rows: the ids of training rows that hold it, the first ones.
    """

    where: str
    variant: str
    kind: str
    found: str
    rows: tuple[str, ...]


def detect(text: str) -> list[Finding]:
    """Every secret and personal datum in a text, apart and in order of place, by the detectors of clean."""
    return separate([*find_secrets(text), *find_personal_data(text)])


def values(outputs: Sequence[Output], training: Iterable[Row]) -> list[Value]:
    """The values that the outputs hold, with what is known of each.

    A value may begin in the prompt and end in the output. Values are compared without blanks and dashes and in lower case.

    Args:
        outputs: what was written.
        training: the rows that were trained on; read only where there is a value.

    Returns:
        One entry an output and value, in the outputs' order.
    """
    seen: list[tuple[Output, str, str]] = []
    for output in outputs:
        whole = output.before + output.text
        seen += [
            (output, finding.kind, compact(whole[finding.start : finding.end]))
            for finding in detect(whole)
            if finding.end > len(output.before)
        ]
    rows: dict[str, list[str]] = {value: [] for _, _, value in seen}
    for row in training if rows else ():
        text = compact("\n".join([row.text, row.answer]))
        for value, found in rows.items():
            if value in text:
                found.append(row.id)
    return [
        Value(output.where, output.variant, kind, _place(output, value, rows[value]), tuple(sorted(rows[value])[:SHOWN_ROWS]))
        for output, kind, value in dict.fromkeys(seen)
    ]


def compact(text: str) -> str:
    """A text without what a value may be written with or without."""
    return re.sub(r"[\s-]+", "", text).casefold()


def _place(output: Output, value: str, rows: Sequence[str]) -> str:
    if value in compact(output.before):
        return "prompt"
    return "training row" if rows else "made up"


def redacted(text: str) -> str:
    """The text with `[KIND]` for each value, to be shown."""
    pieces, end = [], 0
    for finding in detect(text):
        pieces += [text[end : finding.start], f"[{finding.kind.upper()}]"]
        end = finding.end
    return "".join([*pieces, text[end:]])
