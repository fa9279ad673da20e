"""Label check: finds rows whose label is probably wrong and applies people's decisions.

In: data/dedupe/rows.parquet, data/decisions.csv. Out: data/label_check/rows.parquet, the rejected rows, suspects.parquet (worst first) and
reports/label_check.json. Probabilities are out of fold and the folds keep a near-duplicate cluster together, or a wrong label would
vouch for its own copies (cleanlab's confident learning: Northcutt et al. 2021, arXiv 1911.00068). Rows without a label pass through.
"""

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stages.core import paths
from stages.core.components import components
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.params import LabelCheck, Params
from stages.core.records import Rejected, Row, count_rules, read_rows, write_rejected, write_rows, write_table
from stages.core.stage import run_stage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COLUMNS = ["id", "action", "who", "when", "why", "label"]
ACTIONS = ("keep", "drop", "relabel")
# a word, a character of a script without spaces, or a sign beyond ASCII (an emoji can be all there is to a text)
TOKEN = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s\x00-\u2000]"
SHOWN = 20  # suspects and conflicts in the report
EXCERPT_CHARACTERS = 160
SUSPECTS_SCHEMA = pa.schema(
    [
        ("rank", pa.int64()),
        ("id", pa.string()),
        ("label", pa.string()),
        ("suggested", pa.string()),
        ("confidence", pa.float64()),
        ("text", pa.string()),
    ]
)


@dataclass(frozen=True)
class Decision:
    """What a person decided about a row: keep it as it is, drop it, or give it another label."""

    id: str
    action: str
    who: str
    why: str
    label: str
    line: int


@dataclass(frozen=True)
class Suspect:
    """A row whose label is probably wrong.

    Attributes:
        row: the row.
        suggested: the label that the other rows speak for.
        confidence: the out-of-fold probability of its own label; the lower, the worse.
    """

    row: Row
    suggested: str
    confidence: float


def main(params: Params) -> None:
    """Runs the stage."""
    rows = read_rows(paths.DEDUPE_ROWS)
    decisions = read_decisions(paths.DECISIONS)
    with outputs() as place:
        kept, rejected, suspects, report = label_check(rows, decisions, params.label_check, params.seed)
        write_rows(place(paths.LABEL_ROWS), kept)
        write_rejected(place(paths.LABEL_REJECTED), rejected)
        records = [{"rank": rank, "text": s.row.text, **_shown(s)} for rank, s in enumerate(suspects, 1)]
        write_table(place(paths.LABEL_SUSPECTS), pa.Table.from_pylist(records, schema=SUSPECTS_SCHEMA))
        write_report(place(paths.LABEL_REPORT), {}, report)


def label_check(
    rows: list[Row], decisions: list[Decision], params: LabelCheck, seed: int
) -> tuple[list[Row], list[Rejected], list[Suspect], dict[str, Any]]:
    """Applies decisions, then looks for wrong labels among what is left; rows that a person kept or relabelled are not suspected.

    Args:
        rows: with their clusters.
        decisions: from `read_decisions`.
        params: the section `label_check`.
        seed: of the folds.

    Returns:
        The rows kept, the rows rejected, the suspects worst first, and the report's details.
    """
    by_id = {decision.id: decision for decision in decisions}
    known = {row.label for row in rows if row.label is not None}
    here = [decision for decision in decisions if decision.id in {row.id for row in rows}]
    decided = [_decided(row, by_id[row.id], known) if row.id in by_id else row for row in rows]
    dropped = {decision.id for decision in here if decision.action == "drop"}
    left = [row for row in decided if row.id not in dropped]

    suspects, checked = find_suspects([row for row in left if row.label is not None], params.folds, seed)
    reviewed = {decision.id for decision in here}
    suspects = [suspect for suspect in suspects if suspect.row.id not in reviewed]
    limit = int(params.max_drop_share * len(rows))
    to_drop = {s.row.id: s for s in suspects[:limit]} if params.action == "drop" else {}

    kept: list[Row] = []
    rejected: list[Rejected] = []
    for row in decided:
        if row.id in dropped:
            decision = by_id[row.id]
            rejected.append(Rejected(row, "decision", {"who": decision.who, "why": decision.why}))
        elif row.id in to_drop:
            suspect = to_drop[row.id]
            evidence = {"suggested": suspect.suggested, "confidence": suspect.confidence}
            rejected.append(Rejected(row, "suspect_label", evidence))
        else:
            kept.append(row)
    assert len(rows) == len(kept) + len(rejected), "label_check lost or made rows"
    conflicts = _conflicts(kept)
    report = {
        "rows_in": len(rows),
        "rows_out": len(kept),
        "rejected": count_rules(rejected),
        "labelled": sum(row.label is not None for row in left),
        "labels": dict(sorted(Counter(row.label for row in kept if row.label is not None).items())),
        "action": params.action,
        "suspects": len(suspects),
        "kept_by_cap": max(0, len(suspects) - limit) if params.action == "drop" else 0,
        "decisions": {action: sum(decision.action == action for decision in here) for action in ACTIONS},
        "decisions_without_a_row": sorted(set(by_id) - reviewed),
        "top_suspects": [{**_shown(suspect), "text": _short(suspect.row)} for suspect in suspects[:SHOWN]],
        "conflicts": len(conflicts),
        "top_conflicts": [
            [{"id": row.id, "label": row.label, "text": _short(row)} for row in sorted(group, key=lambda row: row.id)[:SHOWN]]
            for group in conflicts[:SHOWN]
        ],
        **checked,
    }
    return kept, rejected, suspects, report


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


def _decided(row: Row, decision: Decision, known: set[str]) -> Row:
    """The row with its decision's label, in the label and in the answer."""
    if decision.action != "relabel":
        return row
    where = f"{paths.DECISIONS}, line {decision.line}"
    if row.label is None:
        raise UserError(f"{where} relabels {row.id}, which has no label; drop the row, or correct its answer in data/sources")
    if decision.label not in known:
        raise UserError(f"{where} gives {row.id} the label '{decision.label}', which no row has; known: {', '.join(sorted(known))}")
    answer = {**row.messages[-1], "content": decision.label}
    return replace(row, label=decision.label, messages=(*row.messages[:-1], answer))


def find_suspects(rows: list[Row], folds: int, seed: int) -> tuple[list[Suspect], dict[str, Any]]:
    """Rows whose label the out-of-fold probabilities speak against, by confident learning.

    Args:
        rows: labelled rows.
        folds: of the cross-validation; a label with fewer independent rows (clusters, groups) is not checked.
        seed: of the folds.

    Returns:
        The suspects, the least confident first, and what was checked: `checked`, `unchecked_labels`, `accuracy`, `macro_f1`, `note`.
    """
    independent: dict[str, set[str]] = defaultdict(set)
    parts = components(rows)
    for row, part in zip(rows, parts, strict=True):
        independent[str(row.label)].add(part)
    labels = sorted(label for label, members in independent.items() if len(members) >= folds)
    counts = Counter(str(row.label) for row in rows)
    unchecked = {label: count for label, count in sorted(counts.items()) if label not in labels}
    result: dict[str, Any] = {"checked": 0, "unchecked_labels": unchecked, "accuracy": None, "macro_f1": None, "note": None}
    if not rows:
        return [], {**result, "note": "no row has a label: nothing to check"}
    if len(labels) < 2:
        note = f"fewer than two labels have {folds} independent rows: nothing to compare, so nothing was checked"
        return [], {**result, "note": note}
    if unchecked:
        result["note"] = f"labels with fewer than {folds} independent rows were not checked: {', '.join(unchecked)}"

    import numpy as np
    from cleanlab.filter import find_label_issues
    from sklearn.metrics import accuracy_score, f1_score

    chosen = [(row, part) for row, part in zip(rows, parts, strict=True) if row.label in labels]
    given = np.array([labels.index(str(row.label)) for row, _ in chosen])
    probabilities = out_of_fold([row.text for row, _ in chosen], given, [part for _, part in chosen], folds, seed)
    issues = find_label_issues(given, probabilities, n_jobs=1)
    predicted = probabilities.argmax(axis=1)
    suspects = [
        Suspect(chosen[i][0], labels[predicted[i]], round(float(probabilities[i, given[i]]), 6))
        for i in np.flatnonzero(issues)
        if predicted[i] != given[i]
    ]
    result["checked"] = len(chosen)
    result["accuracy"] = float(accuracy_score(given, predicted))
    result["macro_f1"] = float(f1_score(given, predicted, average="macro"))
    return sorted(suspects, key=lambda suspect: (suspect.confidence, suspect.row.id)), result


def out_of_fold(texts: list[str], given: "npt.NDArray[np.int64]", groups: list[str], folds: int, seed: int) -> "npt.NDArray[np.float64]":
    """Class probabilities of each text from a classifier that has seen neither the text nor its group.

    TF-IDF of words and word pairs, then one logistic regression a class: on the default data's short notices better than static sentence
    embeddings, and liblinear is several times faster on them than lbfgs.

    Args:
        texts: one a row.
        given: [rows] int64, class numbers 0 … classes - 1, each in at least `folds` groups.
        groups: one a row; rows of one group share a fold.
        folds: how many.
        seed: of the assignment to folds.

    Returns:
        [rows, classes] float64, rows sum to one.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.multiclass import OneVsRestClassifier
    from threadpoolctl import threadpool_limits

    probabilities = np.zeros((len(texts), int(given.max()) + 1))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    # one thread: the vectors are short, so that more only wait for each other (20 s against 2 s on two cores), and sums keep their order
    with threadpool_limits(1):
        for train, held_out in splitter.split(texts, given, groups):
            vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKEN, dtype=np.float64)
            model = OneVsRestClassifier(LogisticRegression(C=30.0, solver="liblinear"))
            model.fit(vectorizer.fit_transform([texts[i] for i in train]), given[train])
            probabilities[np.ix_(held_out, model.classes_)] = model.predict_proba(vectorizer.transform([texts[i] for i in held_out]))
    return probabilities


def _conflicts(rows: list[Row]) -> list[list[Row]]:
    """Clusters whose rows have different labels, the largest first."""
    clusters: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.label is not None and row.cluster is not None:
            clusters[row.cluster].append(row)
    found = [(name, group) for name, group in clusters.items() if len({row.label for row in group}) > 1]
    return [group for _, group in sorted(found, key=lambda item: (-len(item[1]), item[0]))]


def _shown(suspect: Suspect) -> dict[str, Any]:
    return {"id": suspect.row.id, "label": suspect.row.label, "suggested": suspect.suggested, "confidence": suspect.confidence}


def _short(row: Row) -> str:
    return row.text if len(row.text) <= EXCERPT_CHARACTERS else row.text[:EXCERPT_CHARACTERS] + "…"


if __name__ == "__main__":
    run_stage("label_check", main)
