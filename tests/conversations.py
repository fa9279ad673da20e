"""Conversations, the tiny base's tokenizer with a template, and what becomes of the ones in the other, for the tests of tokenize."""

import json
import os
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.params import Tokenize
from stages.core.params_model import Canaries
from stages.core.records import Message, Rejected, Row, with_ids
from stages.tokenize.__main__ import Outcome, stop_on_faults, tokenized
from stages.tokenize.audit import control_tokens, prepare
from stages.tokenize.encode import Chat, Encoded


def talk(*contents: str, system: str | None = None) -> list[Message]:
    """A conversation of user and assistant by turns."""
    turns = [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def rows_of(conversations: list[list[Message]]) -> list[Row]:
    return list(with_ids(Row("", tuple(c), None, None, None, "rows.jsonl", f"line {n}", None) for n, c in enumerate(conversations, 1)))


def chat_with(base: Path, folder: Path, template: str | None = None, new: list[str] | None = None, **manifest: Any) -> Chat:
    """The tiny base's tokenizer with a template; `folder` is made the current one, with the template in templates/."""
    os.chdir(folder)
    if template is not None:
        paths.TEMPLATES.mkdir(exist_ok=True)
        (paths.TEMPLATES / "t.jinja").write_text(template, encoding="utf-8")
    params = Tokenize(
        chat_template="templates/t.jinja" if template else None,
        max_tokens=128,
        too_long="drop",
        new_tokens=new or [],
        rehearsal=0.0,
        canaries=Canaries(count=0, repeats=1),
    )
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    return prepare(base, {"vocabulary": vocabulary, **manifest}, params)[0]


class Done:
    """What became of conversations, together."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.rows = [outcome.row for outcome in outcomes]
        self.kept = [pair for outcome in outcomes for pair in outcome.kept]
        self.rejected = [Rejected(outcome.row, *outcome.rejected) for outcome in outcomes if outcome.rejected]
        self.truncated = [outcome.row.id for outcome in outcomes if outcome.policy == "truncated"]


def run(chat: Chat, conversations: list[list[Message]], max_tokens: int = 10_000, too_long: str = "drop") -> Done:
    """What becomes of conversations; a fault is raised as the stage raises it."""
    said = zip(rows_of(conversations), conversations, strict=True)
    outcomes = list(tokenized(chat, control_tokens(chat), said, max_tokens, too_long))
    faults = [outcome.fault for outcome in outcomes if outcome.fault]
    stop_on_faults(faults, len(faults))
    return Done(outcomes)


def learnt(chat: Chat, row: Encoded) -> str:
    return str(chat.tokenizer.decode([token for token, trained in zip(row.input_ids, row.trained, strict=True) if trained]))
