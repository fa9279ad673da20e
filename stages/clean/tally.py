"""What clean tells of its rows: counts, and for each rule the rows that a person must see to judge its threshold.

In: batches of judged rows. Out: sums that do not depend on how the rows were batched, and the report.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stages.clean.rules import ALL_RULES, Judgement, limit_of
from stages.core.params import Clean
from stages.core.records import Rejected, Row

EXAMPLES = 10  # rows of each kind that a rule shows
EXCERPT_CHARACTERS = 120
_BY_NAME = {rule.name: rule for rule in ALL_RULES}


@dataclass(frozen=True, slots=True, order=True)
class Example:
    """A row that a rule shows: how severe (larger is worse), which, its measure, and its text, redacted of everything and shortened."""

    order: float  # the severity with its sign turned, so that the worst sorts first
    id: str
    measure: float
    text: str


@dataclass
class Extremes:
    """The rows of a rule at its ends and at its threshold, at most EXAMPLES each."""

    worst: list[Example] = field(default_factory=list)
    rejected_nearest: list[Example] = field(default_factory=list)
    kept_nearest: list[Example] = field(default_factory=list)

    def add(self, other: "Extremes") -> None:
        """Joins another batch's."""
        self.worst = heapq.nsmallest(EXAMPLES, [*self.worst, *other.worst])
        self.rejected_nearest = heapq.nlargest(EXAMPLES, [*self.rejected_nearest, *other.rejected_nearest])
        self.kept_nearest = heapq.nsmallest(EXAMPLES, [*self.kept_nearest, *other.kept_nearest])


@dataclass
class Tally:
    """Counts by name, and each rule's extremes.

    Attributes:
        rows_in: rows seen.
        rejected: rows by rule.
        repaired: rows by repair.
        repair_samples: before and after, of the first few rows.
        rows: by detector, rows that hold a kind.
        values: by detector, how many of a kind there are.
        extremes: by rule.
    """

    rows_in: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    repair_samples: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, Counter[str]] = field(default_factory=dict)
    values: dict[str, Counter[str]] = field(default_factory=dict)
    extremes: dict[str, Extremes] = field(default_factory=dict)

    def add(self, other: "Tally", samples: int) -> None:
        """Adds the tally of the batch that follows."""
        self.rows_in += other.rows_in
        self.rejected.update(other.rejected)
        self.repaired.update(other.repaired)
        self.repair_samples = [*self.repair_samples, *other.repair_samples][:samples]
        for mine, theirs in ((self.rows, other.rows), (self.values, other.values)):
            for name, counts in theirs.items():
                mine.setdefault(name, Counter()).update(counts)
        for rule, rows in other.extremes.items():
            self.extremes.setdefault(rule, Extremes()).add(rows)


@dataclass
class Batch:
    """What became of some rows, in their order."""

    kept: list[Row]
    rejected: list[Rejected]
    tally: Tally


def extremes(judged: list[tuple[Row, Judgement]], texts_to_show: Callable[[Row], list[str]]) -> dict[str, Extremes]:
    """Each rule's rows to show.

    Args:
        judged: rows and what the rules say of them.
        texts_to_show: a row's texts without anything secret.

    Returns:
        By rule; a rule that measured nothing above 0 has none.
    """
    rejected: dict[str, list[tuple[float, str, int]]] = {}
    kept: dict[str, list[tuple[float, str, int]]] = {}
    for number, (row, judgement) in enumerate(judged):
        if judgement.rule is not None:
            rejected.setdefault(judgement.rule, []).append((_order(judgement.rule, judgement), row.id, number))
            continue
        for rule, measured in judgement.measures.items():
            if measured or _BY_NAME[rule].below:
                kept.setdefault(rule, []).append((_order(rule, judgement), row.id, number))

    def examples(rule: str, chosen: list[tuple[float, str, int]]) -> list[Example]:
        return [
            Example(order, id, abs(order), _shortened("\n".join(texts_to_show(judged[number][0])), rule)) for order, id, number in chosen
        ]

    found: dict[str, Extremes] = {}
    for rule in sorted(rejected.keys() | kept.keys()):
        bad = rejected.get(rule, [])
        worst, nearest = heapq.nsmallest(EXAMPLES, bad), heapq.nlargest(EXAMPLES, bad)
        found[rule] = Extremes(
            examples(rule, worst), examples(rule, nearest), examples(rule, heapq.nsmallest(EXAMPLES, kept.get(rule, [])))
        )
    return found


def _order(rule: str, judgement: Judgement) -> float:
    measured = judgement.measures.get(rule, 0.0)
    return measured if rule in _BY_NAME and _BY_NAME[rule].below else -measured


def _shortened(text: str, rule: str) -> str:
    if len(text) <= EXCERPT_CHARACTERS:
        return text
    if rule in _BY_NAME and _BY_NAME[rule].shows_end:
        return "…" + text[-EXCERPT_CHARACTERS:]
    return text[:EXCERPT_CHARACTERS] + "…"


def report_of(tally: Tally, params: Clean, actions: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The details of reports/clean.json.

    Args:
        tally: of all rows.
        params: the section `clean`.
        actions: by detector and kind.

    Returns:
        Counts; by detector the actions and what was found; by rule the limit, how many rows it rejected, and its rows to see.
    """
    rules: dict[str, Any] = {}
    for name in sorted({rule.name for rule in ALL_RULES} | tally.rejected.keys()):
        shown = tally.extremes.get(name, Extremes())
        worst = {example.id for example in shown.worst}
        lists = {
            "worst": shown.worst,
            "rejected_nearest": [example for example in shown.rejected_nearest if example.id not in worst],
            "kept_nearest": shown.kept_nearest,
        }
        rules[name] = {
            "rejected": tally.rejected[name],
            **({_BY_NAME[name].limit: limit_of(_BY_NAME[name], params)} if name in _BY_NAME else {}),
            **{key: [{"id": e.id, "measure": e.measure, "text": e.text} for e in examples] for key, examples in lists.items()},
        }
    return {
        "rows_in": tally.rows_in,
        "rows_out": tally.rows_in - tally.rejected.total(),
        "rejected": dict(sorted(tally.rejected.items())),
        "repaired": dict(tally.repaired),
        "repair_samples": tally.repair_samples,
        **{
            name: {
                "action": asked["default"],
                "actions": asked,
                "rows": dict(tally.rows.get(name, {})),
                "values": dict(tally.values.get(name, {})),
            }
            for name, asked in actions.items()
        },
        "rules": rules,
    }
