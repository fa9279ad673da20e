"""Label check: finds rows whose label or answer is probably wrong and applies people's decisions.

In: data/dedupe/rows.parquet, data/decisions.csv. Out: data/label_check/rows.parquet, the rejected rows, suspects.parquet (worst first) and
reports/label_check.json. Probabilities are out of fold and the folds keep a near-duplicate cluster together, or a wrong label would
vouch for its own copies (confident learning: Northcutt et al. 2021, arXiv 1911.00068).
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core import paths
from stages.core.files import outputs, write_report
from stages.core.params import LabelCheck, Params
from stages.core.progress import progress
from stages.core.records import REJECTED_SCHEMA, SCHEMA, Row, TableWriter, write_table
from stages.core.stage import run_stage
from stages.label_check.decisions import ACTIONS, Decision, decided, read_decisions
from stages.label_check.searches import datalab, worst_of, wrong_answers, wrong_labels
from stages.label_check.suspects import SUSPECTS_SCHEMA, Suspect, conflicts, ranked, records
from stages.label_check.table import Table, chosen_rows, read_table

SHOWN = 20  # suspects of a kind, and conflicts, in the report
EXCERPT_CHARACTERS = 160


def main(params: Params) -> None:
    """Runs the stage."""
    with outputs() as place:
        report = label_check(paths.DEDUPE_ROWS, read_decisions(paths.DECISIONS), params.label_check, params.seed, place)
        write_report(place(paths.LABEL_REPORT), {}, report)


@dataclass
class Review:
    """What people decided about the rows of a table.

    Attributes:
        by_id: the decisions about rows that are here.
        dropped: numbers of the rows to drop.
        reviewed: numbers of the rows that somebody decided about.
        absent: ids that no row has.
    """

    by_id: dict[str, Decision]
    dropped: set[int]
    reviewed: set[int]
    absent: list[str]


def label_check(path: Path, decisions: list[Decision], params: LabelCheck, seed: int, place: Callable[[Path], Path]) -> dict[str, Any]:
    """Applies decisions, then looks for wrong rows among what is left; rows that a person decided about are not suspected.

    Args:
        path: rows with their clusters.
        decisions: from `read_decisions`.
        params: the section `label_check`.
        seed: of folds and samples.
        place: where each out is to be written.

    Returns:
        The report's details.
    """
    table = read_table(path)
    known = {label for label in table.labels if label is not None}
    review = _review(table, decisions)
    # a relabelled row speaks for its new label
    for number in review.reviewed:
        decision = review.by_id[table.ids[number]]
        if decision.action == "relabel" and table.labels[number] is not None and decision.label in known:
            table.labels[number] = decision.label
    left = [number for number in range(len(table.ids)) if number not in review.dropped]
    with tempfile.TemporaryDirectory() as folder:
        found, checked, asked = wrong_labels(table, [n for n in left if table.labels[n] is not None], params, seed, Path(folder))
        unlike, pairs = wrong_answers(table, [n for n in left if table.labels[n] is None], params, seed, Path(folder))
    members, groups = conflicts(_shared(table, review))
    issues, far, near = datalab(table, left, asked, seed)
    found = [replace(item, neighbours=item.neighbours or near.get(item.number, ())) for item in [*found, *unlike, *members, *far]]
    suspects = ranked((item for item in found if item.number not in review.reviewed), table)
    by_label = [item for item in suspects if item.kind == "label"]
    limit = int(params.max_drop_share * len(table.ids))
    to_drop = {item.number: item for item in by_label[:limit]} if params.action == "drop" else {}
    wanted = {item.number for item in suspects} | {line["number"] for found_by in issues.values() for line in worst_of(found_by)}
    rows, rejected, labels = _write(table, review, known, wanted, to_drop, place)
    shown = records(suspects, rows)
    for line in (line for found_by in issues.values() for line in worst_of(found_by)):
        row = rows[line.pop("number")]
        line |= {"id": row.id, "label": row.label, "text": _short(row.text)}
    write_table(place(paths.LABEL_SUSPECTS), pa.Table.from_pylist(shown, schema=SUSPECTS_SCHEMA))
    return {
        "rows_in": len(table.ids),
        "rows_out": len(table.ids) - sum(rejected.values()),
        "rejected": dict(sorted(rejected.items())),
        "labelled": sum(table.labels[number] is not None for number in left),
        "labels": dict(sorted(labels.items())),
        "action": params.action,
        "min_odds": params.min_odds,
        "suspects": len(by_label),
        "suspects_by_kind": dict(sorted(Counter(item.kind for item in suspects).items())),
        "kept_by_cap": max(0, len(by_label) - limit) if params.action == "drop" else 0,
        "decisions": {action: sum(decision.action == action for decision in review.by_id.values()) for action in ACTIONS},
        "decisions_without_a_row": review.absent,
        "top_suspects": [_shown(item) for item in shown if item["kind"] == "label" and item["rank"] <= SHOWN],
        "worst": [_shown(item) for item in shown if item["kind"] != "label" and item["rank"] <= SHOWN],
        "conflicts": len(groups),
        "top_conflicts": [
            [{"id": row.id, "label": row.label, "text": _short(row.text)} for row in group[:SHOWN]] for group in groups[:SHOWN]
        ],
        "datalab": issues,
        "mismatch": pairs,
        **checked,
    }


def _review(table: Table, decisions: list[Decision]) -> Review:
    """Finds the rows that people decided about."""
    by_id = {decision.id: decision for decision in decisions}
    reviewed = {number for number, name in enumerate(table.ids) if name in by_id} if by_id else set()
    here = {table.ids[number]: by_id[table.ids[number]] for number in reviewed}
    dropped = {number for number in reviewed if here[table.ids[number]].action == "drop"}
    return Review(here, dropped, reviewed, sorted(by_id.keys() - here.keys()))


def _shared(table: Table, review: Review) -> dict[str, list[tuple[int, Row]]]:
    """The rows of each cluster that more than one row is left of, as decided."""
    sizes = Counter(cluster for number, cluster in enumerate(table.clusters) if number not in review.dropped)
    members: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    if len(sizes) == len(table.ids):
        return members
    wanted = [number not in review.dropped and sizes[cluster] > 1 for number, cluster in enumerate(table.clusters)]
    known = {label for label in table.labels if label is not None}
    number = 0
    for block in table.over(chosen_rows, [wanted]):
        for row in block:
            number = wanted.index(True, number)
            decision = review.by_id.get(row.id)
            members[table.clusters[number]].append((number, decided(row, decision, known) if decision else row))
            number += 1
    return members


def _write(
    table: Table, review: Review, known: set[str], wanted: set[int], to_drop: dict[int, Suspect], place: Callable[[Path], Path]
) -> tuple[dict[int, Row], Counter[str], Counter[str]]:
    """Writes the rows kept and rejected; gives the wanted rows by number, the rules' counts and the kept rows' labels."""
    rows: dict[int, Row] = {}
    rejected: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    number = 0
    with (
        TableWriter(place(paths.LABEL_ROWS), SCHEMA) as kept_file,
        TableWriter(place(paths.LABEL_REJECTED), REJECTED_SCHEMA) as rejected_file,
    ):
        for block in progress(table.blocks(), "label_check", total=len(table.starts) - 1):
            for row in block:
                decision = review.by_id.get(row.id)
                if decision is not None:
                    row = decided(row, decision, known)
                if number in wanted:
                    rows[number] = row
                if decision is not None and decision.action == "drop":
                    rejected["decision"] += 1
                    rejected_file.rejected(row, "decision", {"who": decision.who, "why": decision.why})
                elif number in to_drop:
                    rejected["suspect_label"] += 1
                    item = to_drop[number]
                    rejected_file.rejected(row, "suspect_label", {"suggested": item.suggested, "confidence": item.confidence})
                else:
                    kept_file.row(row)
                    labels.update([row.label] if row.label is not None else [])
                number += 1
    assert number == len(table.ids), "label_check lost or made rows"
    return rows, rejected, labels


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """A suspect as the report shows it."""
    answer = {} if record["answer"] is None else {"answer": _short(record["answer"])}
    return {name: record[name] for name in ("id", "kind", "label", "suggested", "confidence", "evidence")} | {
        "text": _short(record["text"]),
        **answer,
    }


def _short(text: str) -> str:
    return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "…"


if __name__ == "__main__":
    run_stage("label_check", main)
