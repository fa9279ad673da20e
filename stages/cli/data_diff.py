"""`luthier data-diff A [B]`: what changed between two runs' data, as Markdown for a pull request. In: two commits, or one and the checkout.

Out: the verdict, rows by stage, rule, source and label, lengths, words, and the longest rows that came and went.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from stages.cli.cache import cached
from stages.cli.drift import ABSENT, Run, chance_divergence, divergence, greatest_gap, shares, total_variation, turned
from stages.cli.tables import with_id
from stages.core import paths

# above which a change is called notable: a tenth of the rows, a twentieth of the labels, a tenth of the lengths, a twentieth of a bit
NOTABLE = {"rows": 0.1, "labels": 0.05, "lengths": 0.1, "words": 0.05}
SHOWN = 10
EXCERPT_CHARACTERS = 120
COUNTS = [  # what the reader watches: stage, key of its report, in words
    ("fetch_data", "rows_read", "rows read"),
    ("fetch_data", "rows_kept", "rows taken"),
    ("clean", "rows_out", "after clean"),
    ("dedupe", "rows_out", "after dedupe"),
    ("label_check", "rows_out", "after label_check"),
    ("suspicion", "rows_out", "after suspicion"),
    ("split", "rows_out", "after split"),
    ("dedupe", "conflicts", "prompts with conflicting answers"),
    ("dedupe", "largest_cluster", "largest near-duplicate cluster"),
    ("label_check", "suspects", "suspect labels"),
    ("suspicion", "suspects", "suspects of poisoning"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds A and B."""
    parser.add_argument("before", metavar="A", help="a commit or tag whose dvc.lock names the data to compare with")
    parser.add_argument("after", metavar="B", nargs="?", help="another (default: the checkout)")


def run(args: argparse.Namespace) -> None:
    """Prints the Markdown.

    Args:
        args: `before`, `after`.
    """
    print("\n".join(markdown(Run(args.before), Run(args.after))))


def markdown(before: Run, after: Run) -> list[str]:
    """The comparison, line by line.

    Args:
        before: a run.
        after: another.

    Returns:
        Markdown.
    """
    lines = [f"## Data: {before.name} → {after.name}", ""]
    absent = [f"{run.name} lacks {', '.join(run.missing)}" for run in (before, after) if run.missing]
    whole = not absent
    lines += [f"**{verdict(before, after, whole)}**", ""]
    if absent:
        lines += [f"Compared by the reports alone: {'; '.join(absent)} on this machine (`dvc fetch --all-commits` brings them).", ""]
    lines += _counts(before, after) + _rules(before, after)
    if whole:
        lines += _sources(before, after) + _moves(before, after)
    lines += _labels(before, after)
    lines += (_lengths(before, after) + _words(before, after) + _rows(before, after)) if whole else []
    return lines


def verdict(before: Run, after: Run, whole: bool) -> str:
    """One sentence: whether the training rows are the same, nearly, or others.

    Args:
        before: a run.
        after: another.
        whole: whether the rows of both are on this machine.

    Returns:
        The sentence.
    """
    labels = total_variation(before.labels, after.labels)
    if not whole:
        one, other = (run.reports["split"].get("rows", {}).get("train", 0) for run in (before, after))
        return f"Not compared row by row. Training rows: {one:,} → {other:,}; {100 * labels:.1f} % of the labels shifted."
    one, other = before.learnt, after.learnt
    if one.content == other.content:
        return "No drift: the training rows are the same."
    replaced = 1 - len(one.words.keys() & other.words.keys()) / max(len(one.words), len(other.words))
    chance = chance_divergence(one.vocabulary, other.vocabulary)
    measured = {
        "rows": (replaced, f"{100 * replaced:.1f} % of the training rows are others"),
        "labels": (labels, f"{100 * labels:.1f} % of the labels shifted"),
        "lengths": (
            gap := greatest_gap([*one.words.values()], [*other.words.values()]),
            f"lengths differ by up to {100 * gap:.1f} % of rows",
        ),
        "words": (bits := divergence(one.vocabulary, other.vocabulary), f"words diverge by {bits:.3f} bits (chance alone: {chance:.3f})"),
    }
    notable = [name for name, (value, _) in measured.items() if value > NOTABLE[name] + (chance if name == "words" else 0)]
    said = f"{len(one.words):,} → {len(other.words):,} training rows; {'; '.join(text for _, text in measured.values())}."
    return f"Notable drift in {', '.join(notable)}: {said}" if notable else f"Small drift: {said}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> list[str]:
    """A Markdown table, numbers on the right; nothing where it has no row."""
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if not body:
        return []
    return ["| " + " | ".join(head) + " |", "|" + "---|" * text_columns + "--:|" * (len(head) - text_columns), *body, ""]


def _change(one: int | None, other: int | None) -> list[str]:
    """Two counts and their difference as cells; a dash for one that a run has not."""
    gap = "" if one is None or other is None or one == other else f"{other - one:+,}"
    return [*("–" if value is None else f"{value:,}" for value in (one, other)), gap.replace("-", "−")]


def _counts(before: Run, after: Run) -> list[str]:
    rows = [[said, *_change(*(run.reports[stage].get(key) for run in (before, after)))] for stage, key, said in COUNTS]
    sides = [
        [f"{side} rows", *_change(*(run.reports["split"].get("rows", {}).get(side) for run in (before, after)))]
        for side in ("train", "validation", "test")
    ]
    tokens = [
        [run.reports["tokenize"].get("sides", {}).get("train", {}).get(key) for run in (before, after)]
        for key in ("tokens", "trained_tokens")
    ]
    rows += [*sides, ["training tokens", *_change(*tokens[0])], ["learnt tokens", *_change(*tokens[1])]]
    return _table(["", before.name, after.name, "change"], rows)


def _rules(before: Run, after: Run) -> list[str]:
    rows = []
    for stage, report in before.reports.items():
        one, other = (run.get("rejected", {}) for run in (report, after.reports[stage]))
        rows += [[stage, rule, *_change(one.get(rule, 0), other.get(rule, 0))] for rule in sorted(one.keys() | other.keys())]
    return ["### Rejected, by stage and rule", "", *_table(["stage", "rule", before.name, after.name, "change"], rows, 2)] if rows else []


def _sources(before: Run, after: Run) -> list[str]:
    one, other = before.fates, after.fates
    counts = [Counter(source for source, _, _ in fates.values()) for fates in (one, other)]
    gone = Counter(source for name, (source, _, _) in one.items() if name not in other)
    new = Counter(source for name, (source, _, _) in other.items() if name not in one)
    places = [
        {(source, origin) for name, (source, _, origin) in here.items() if name not in there}
        for here, there in ((one, other), (other, one))
    ]
    edited = Counter(source for source, _ in places[0] & places[1])
    rows = [
        [
            name,
            f"{counts[0][name]:,}",
            f"{counts[1][name]:,}",
            *(f"{count[name] or '':,}" if count[name] else "" for count in (new, gone, edited)),
        ]
        for name in sorted(counts[0].keys() | counts[1].keys())
    ]
    head = ["source", before.name, after.name, "added", "removed", "of these in the same place"]
    return ["### Rows, by source", "", *_table(head, rows)]


def _moves(before: Run, after: Run) -> list[str]:
    moves: Counter[tuple[str, str]] = Counter()
    for name in before.fates.keys() | after.fates.keys():
        one, other = (run.fates.get(name, ("", ABSENT, ""))[1] for run in (before, after))
        if one != other:
            moves[one, other] += 1
    same = before.learnt.content.keys() & after.learnt.content.keys()
    changed = sum(before.learnt.content[name] != after.learnt.content[name] for name in same)
    rows = [[one, other, f"{count:,}"] for (one, other), count in sorted(moves.items(), key=lambda item: (-item[1], item[0]))]
    more = [f"and {len(rows) - 2 * SHOWN} rarer moves.", ""] if len(rows) > 2 * SHOWN else []
    said = f"{len(same):,} training rows are in both, {changed:,} of them with another text (cleaned or relabelled otherwise)."
    return ["### Rows that moved", "", said, "", *_table([before.name, after.name, "rows"], rows[: 2 * SHOWN], 2), *more]


def _labels(before: Run, after: Run) -> list[str]:
    one, other = shares(before.labels), shares(after.labels)
    names = sorted(one.keys() | other.keys(), key=lambda name: (-abs(other.get(name, 0) - one.get(name, 0)), name))
    rows = [
        [
            name,
            f"{100 * one.get(name, 0):.1f} %",
            f"{100 * other.get(name, 0):.1f} %",
            f"{100 * (other.get(name, 0) - one.get(name, 0)):+.1f}".replace("-", "−"),
        ]
        for name in names[: 2 * SHOWN]
    ]
    more = [f"and {len(names) - 2 * SHOWN} labels that changed less.", ""] if len(names) > 2 * SHOWN else []
    return ["### Labels of the training rows", "", *_table(["label", before.name, after.name, "points"], rows), *more]


def _lengths(before: Run, after: Run) -> list[str]:
    import numpy as np

    words = [[*run.learnt.words.values()] or [0] for run in (before, after)]
    rows = [
        [f"{percent} %", *_change(*(int(np.percentile(found, percent, method="lower")) for found in words))]
        for percent in (1, 10, 50, 90, 99)
    ]
    return ["### Words of a training row", "", *_table(["rows no longer", before.name, after.name, "change"], rows)]


def _words(before: Run, after: Run) -> list[str]:
    one, other = before.learnt.vocabulary, after.learnt.vocabulary
    unseen = sum(count for word, count in other.items() if word not in one) / max(1, other.total())
    more, less = turned(one, other, SHOWN)
    said = (
        f"{divergence(one, other):.4f} bits of Jensen-Shannon divergence, where two samples of one distribution, so large, show about "
        f"{chance_divergence(one, other):.4f}; {100 * unseen:.2f} % of the words now were in no training row before."
    )
    lines = [
        f"{name}: {', '.join(f'`{word}`' for word in words)}." for name, words in (("More often", more), ("Less often", less)) if words
    ]
    return ["### Vocabulary of the training rows", "", " ".join([said, *lines]), ""]


def _rows(before: Run, after: Run) -> list[str]:
    lines: list[str] = []
    for title, here, there, told in (("came", after, before, "before"), ("went", before, after, "now")):
        alone = sorted(here.learnt.words.keys() - there.learnt.words.keys(), key=lambda name: (-here.learnt.words[name], name))
        table = cached(here.lock, paths.SPLIT_TRAIN)
        if not alone or table is None:
            continue
        found = {row["id"]: row for row in with_id(table, *alone[:SHOWN])}
        lines += [f"### Training rows that {title}: {len(alone):,}, the longest {len(found)}", ""]
        lines += [f"- {_said(found[name])}; {told}: {there.fates.get(name, ('', ABSENT, ''))[1]}" for name in alone[:SHOWN]]
        lines.append("")
    return lines


def _said(row: dict[str, Any]) -> str:
    """A row in one line of Markdown that renders none of its text."""
    text = " ".join(" ".join(message["content"] for message in row["messages"]).split()).replace("`", "'")
    shown = text if len(text) <= EXCERPT_CHARACTERS else f"{text[:EXCERPT_CHARACTERS]}…"
    label = f", label {row['label']}" if row["label"] is not None else ""
    return f"`{row['id']}` ({row['source']} {row['origin']}{label}): `{shown}`"
