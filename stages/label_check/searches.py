"""The searches for suspects: wrong labels, answers that do not belong to their prompts, and what Datalab says of a sample.

In: the table and the numbers of the rows to look at. Out: suspects, and what the report says of each search.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.params import LabelCheck
from stages.label_check.classifier import judge
from stages.label_check.issues import find_issues, sampled
from stages.label_check.pairs import MIN_ROWS, fit_of_answers
from stages.label_check.suspects import Suspect
from stages.label_check.table import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MIN_DATALAB_ROWS = 50  # fewer rows have no neighbourhood to stand out from
MIN_AUC = 0.85  # of telling true from shuffled pairs, below which the answers of this data do not follow from their prompts' words


@dataclass(frozen=True)
class Asked:
    """Labelled rows that Datalab can be asked about.

    Attributes:
        numbers: [rows] int64, ascending.
        labels: in the order of the columns of `probabilities`.
        probabilities: [rows, labels] float32, out of fold.
    """

    numbers: "npt.NDArray[np.int64]"
    labels: list[str]
    probabilities: "npt.NDArray[np.float32]"


def wrong_labels(
    table: Table, numbers: list[int], params: LabelCheck, seed: int, place: Path
) -> tuple[list[Suspect], dict[str, Any], Asked | None]:
    """Rows to whose classifiers another label is many times as probable as their own.

    Args:
        table: all rows.
        numbers: of the labelled rows to check.
        params: the folds (a label with fewer independent rows is not checked), and the odds that make a suspect.
        seed: of the folds and the sample.
        place: a folder for what processes share.

    Returns:
        The suspects, what was checked (`checked`, `learnt_rows`, `unchecked_labels`, `accuracy`, `macro_f1`, `note`), and what Datalab can
        be asked about, None where nothing was checked.
    """
    independent: dict[str, set[str]] = defaultdict(set)
    for number in numbers:
        independent[str(table.labels[number])].add(table.parts[number])
    labels = sorted(label for label, members in independent.items() if len(members) >= params.folds)
    counts = Counter(str(table.labels[number]) for number in numbers)
    unchecked = {label: count for label, count in sorted(counts.items()) if label not in labels}
    result: dict[str, Any] = {
        "checked": 0,
        "learnt_rows": 0,
        "unchecked_labels": unchecked,
        "accuracy": None,
        "macro_f1": None,
        "note": None,
    }
    if not numbers:
        return [], {**result, "note": "no row has a label: nothing to check"}, None
    if len(labels) < 2:
        note = f"fewer than two labels have {params.folds} independent rows: nothing to compare, so nothing was checked"
        return [], {**result, "note": note}, None
    if unchecked:
        result["note"] = f"labels with fewer than {params.folds} independent rows were not checked: {', '.join(unchecked)}"

    import numpy as np
    from sklearn.metrics import f1_score

    chosen = np.array([number for number in numbers if str(table.labels[number]) not in unchecked], dtype=np.int64)
    some = sampled(table, chosen, seed)
    judged = judge(table, chosen, labels, params.folds, seed, place, some)
    chosen = chosen[~np.isnan(judged.own[chosen])]
    suspects = [
        Suspect(
            int(number),
            "label",
            labels[judged.suggested[number]],
            round(float(judged.own[number]), 6),
            f"another label is {min(judged.odds[number], 1e6):,.0f} times as probable as its own",
        )
        for number in chosen[judged.odds[chosen] >= params.min_odds]
    ]
    names = np.array(labels)
    given = np.array([str(table.labels[number]) for number in chosen])
    predicted = np.where(judged.own[chosen] >= judged.other[chosen], given, names[judged.suggested[chosen]])
    result |= {"checked": len(chosen), "learnt_rows": judged.learnt, "repeats": judged.repeats}
    result["accuracy"] = float((given == predicted).mean())
    result["macro_f1"] = float(f1_score(given, predicted, average="macro"))
    return suspects, result, Asked(some, labels, judged.probabilities)


def wrong_answers(table: Table, numbers: list[int], params: LabelCheck, seed: int, place: Path) -> tuple[list[Suspect], dict[str, Any]]:
    """Rows without a label whose answer looks as a random one would.

    Args:
        table: all rows.
        numbers: of the rows to check.
        params: the folds, and the odds that make a suspect.
        seed: of shuffles, folds and sample.
        place: a folder for what processes share.

    Returns:
        The suspects, and what was checked: `checked`, `learnt_rows`, `auc`, `note`.
    """
    result: dict[str, Any] = {"checked": 0, "learnt_rows": 0, "auc": None, "note": None}
    if len(numbers) < MIN_ROWS:
        return [], {**result, "note": f"fewer than {MIN_ROWS} rows without a label: too few to learn which answer belongs to which prompt"}

    import numpy as np

    chosen = np.array(numbers, dtype=np.int64)
    fit = fit_of_answers(table, chosen, params.folds, seed, place)
    result |= {"checked": len(chosen), "learnt_rows": fit.learnt, "auc": fit.auc}
    if fit.auc < MIN_AUC:
        note = f"true and shuffled pairs are told apart with an AUC of {fit.auc:.2f}, below {MIN_AUC}: no row is suspected"
        return [], {**result, "note": note}
    suspects = [
        Suspect(
            int(number),
            "mismatch",
            None,
            round(float(1.0 / (1.0 + fit.odds[number])), 6),
            f"to this prompt, a random answer of the data would look {min(fit.odds[number], 1e6):,.0f} times as likely as this one",
        )
        for number in chosen[fit.odds[chosen] >= params.min_odds]
    ]
    return suspects, result


def datalab(
    table: Table, left: list[int], asked: Asked | None, seed: int
) -> tuple[dict[str, Any], list[Suspect], dict[int, tuple[str, ...]]]:
    """Datalab's issues among labelled rows that were checked and among rows without a label.

    Args:
        table: all rows.
        left: the numbers of the rows that nobody dropped.
        asked: of the labelled rows, None for none.
        seed: of sample, projection and cells.

    Returns:
        The issues of `labelled` and `unlabelled` rows, outliers, and the ids of the nearest rows by row number.
    """
    import numpy as np

    plain = np.array([number for number in left if table.labels[number] is None], dtype=np.int64)
    report: dict[str, Any] = {}
    outliers: list[Suspect] = []
    near: dict[int, tuple[str, ...]] = {}
    for name, numbers in (("labelled", asked.numbers if asked else plain[:0]), ("unlabelled", sampled(table, plain, seed))):
        if len(numbers) < MIN_DATALAB_ROWS:
            continue
        of = asked if name == "labelled" else None
        found = find_issues(table, numbers, of.labels if of else None, of.probabilities if of else None, seed)
        report[name] = found.report
        outliers += found.outliers
        near |= {number: tuple(table.ids[other] for other in others) for number, others in found.near.items()}
    return report, outliers, near


def worst_of(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The worst rows of every issue of one of Datalab's reports."""
    for issue in report.values():
        if isinstance(issue, dict):
            yield from issue["worst"]
