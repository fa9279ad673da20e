"""The rules by which clean rejects a row: each has a name, a measure and a limit in params.yaml; null measures and rejects nothing.

In: a repaired and redacted row and the parameters. Out: every rule's measure, and the first rule that rejects the row. The label of a
labelled row is never judged, nor is the answer of a preference row that is to be avoided.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.clean import quality
from stages.clean.language import foreign
from stages.core.params import Clean
from stages.core.records import Row
from stages.core.refusals import refusal
from stages.core.row_texts import contents


@dataclass(frozen=True, slots=True)
class Fields:
    """What the rules look at in a row.

    Attributes:
        texts: every text but a label.
        prompt: all before the last answer.
        answers: the free answers to be learnt: none of a labelled row, the chosen one of a preference row.
        turns: each answer with what was said since the answer before.
        asked: all that is not the assistant's.
    """

    texts: list[str]
    prompt: str
    answers: list[str]
    turns: list[tuple[str, str]]
    asked: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of one number.

    Attributes:
        name: of the rule, as rejected rows carry it.
        limit: the key of `clean` with the number that a row may reach.
        measure: of a row; None where the rule has nothing to judge.
        below: whether less than the limit is rejected, not more.
        shows_end: whether the end of a row is what a person must see.
    """

    name: str
    limit: str
    measure: Callable[[Fields], float | None]
    below: bool = False
    shows_end: bool = False


def _worst(measure: Callable[[str], float]) -> Callable[[Fields], float]:
    return lambda fields: max(map(measure, fields.answers), default=0.0)


def _ratios(fields: Fields) -> list[float]:
    return [quality.length_ratio(prompt, answer) for prompt, answer in fields.turns if prompt.strip()]


def _characters(fields: Fields) -> int:
    return sum(map(len, fields.texts))


SIZES = (Rule("too_short", "min_characters", _characters, below=True), Rule("too_long", "max_characters", _characters))
RULES = (
    Rule("repetition", "max_repetition", lambda fields: max(map(quality.repetition, fields.texts))),
    Rule("truncated", "max_truncation", _worst(quality.truncation), shows_end=True),
    Rule("refusal", "max_refusal", _worst(refusal)),
    Rule("boilerplate", "max_boilerplate", lambda fields: quality.boilerplate(fields.answers)),
    Rule("mojibake", "max_mojibake", lambda fields: max(map(quality.mojibake, fields.texts))),
    Rule("markup", "max_markup", lambda fields: max((quality.markup(fields.asked, answer) for answer in fields.answers), default=0.0)),
    Rule("unclosed_fence", "max_unclosed_fences", _worst(quality.unclosed_fences), shows_end=True),
    Rule("short_for_prompt", "min_length_ratio", lambda fields: min(_ratios(fields), default=None), below=True),
    Rule("long_for_prompt", "max_length_ratio", lambda fields: max(_ratios(fields), default=None)),
)
LANGUAGE = Rule("language", "max_foreign", lambda fields: None)  # measured with the model, in `judge`
ALL_RULES = (*SIZES, *RULES, LANGUAGE)


@dataclass(frozen=True)
class Judgement:
    """What the rules say of a row.

    Attributes:
        measures: by rule.
        rule: the one that rejects the row, or None.
        evidence: what was measured and what is allowed.
    """

    measures: dict[str, float]
    rule: str | None
    evidence: dict[str, Any]


def fields_of(row: Row) -> Fields:
    """What the rules look at in a row."""
    answers: list[str] = []
    turns: list[tuple[str, str]] = []
    asked: list[str] = []
    since = 0  # what was asked before this has its answer
    for message in (*row.messages, *(row.chosen or ())):
        if message["role"] != "assistant":
            asked.append(message["content"])
        elif row.label is None:
            answers.append(message["content"])
            turns.append(("\n".join(asked[since:]), message["content"]))
            since = len(asked)
    return Fields(contents(row), row.text, answers, turns, "\n".join(asked))


def judge(row: Row, params: Clean) -> Judgement:
    """Measures a row and finds the first rule that rejects it, in the order of ALL_RULES; an empty row and one of a wrong size is not
    measured further.

    Args:
        row: repaired, and redacted where that is asked for.
        params: the section `clean`.

    Returns:
        The judgement.
    """
    if not row.text.strip():
        return Judgement({}, "empty_prompt", {})
    if not row.answer.strip() or (row.rejected is not None and not any(message["content"].strip() for message in row.rejected)):
        return Judgement({}, "empty_answer", {})
    fields = fields_of(row)
    measures: dict[str, float] = {}
    for rule in SIZES:
        measures[rule.name] = _characters(fields)
        if beyond(rule, measures[rule.name], params) > 0:
            return Judgement(measures, rule.name, _evidence(rule, measures, params))
    for rule in RULES:
        if (measured := rule.measure(fields)) is not None:
            measures[rule.name] = round(measured, 4)
    found: dict[str, Any] = {}
    if params.languages:
        share, found = foreign(fields.prompt, fields.answers, tuple(params.languages), params.min_language_characters)
        measures[LANGUAGE.name] = round(share, 4)
    for rule in (*RULES, LANGUAGE):
        if rule.name in measures and beyond(rule, measures[rule.name], params) > 0:
            more = found if rule is LANGUAGE else {}
            return Judgement(measures, rule.name, {**_evidence(rule, measures, params), **more})
    return Judgement(measures, None, {})


def limit_of(rule: Rule, params: Clean) -> float | None:
    """The rule's limit in params.yaml, None where it rejects nothing."""
    limit: float | None = getattr(params, rule.limit)
    return limit


def beyond(rule: Rule, measured: float, params: Clean) -> float:
    """How far a measure lies beyond the limit, in the measure's unit: negative within it, and always for a limit of null."""
    limit = limit_of(rule, params)
    if limit is None:
        return -float("inf")
    return limit - measured if rule.below else measured - limit


def _evidence(rule: Rule, measures: dict[str, float], params: Clean) -> dict[str, Any]:
    return {"measure": measures[rule.name], rule.limit: limit_of(rule, params)}
