"""What cleanlab's Datalab finds in a sample of the rows: wrong labels, outliers, near-duplicates, drift along the file, rare labels.

In: the rows' texts, and for labelled rows their out-of-fold probabilities. Out: for each kind of issue how many rows have it and the worst;
outliers are suspects. The neighbour graph is given to Datalab, whose own is quadratic in the rows (cleanlab issue 780).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.core.records import Row
from stages.label_check.classifier import sample
from stages.label_check.neighbours import FITTED_TEXTS, Projection, graph
from stages.label_check.suspects import Suspect
from stages.label_check.table import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SAMPLED_ROWS = 100_000  # the most rows that are looked at; more would take minutes and change no share by a tenth of a point
NEIGHBOURS = 10  # Datalab's own default
SHOWN_NEIGHBOURS = 5
WORST = 5  # rows of each issue in the report
OUTLIERS = 50  # the most that become suspects: the farthest
ISSUES = ("label", "outlier", "near_duplicate", "non_iid", "class_imbalance")


@dataclass
class Found:
    """What Datalab found.

    Attributes:
        report: `sampled` rows, and for each issue its `count`, its `score` (Datalab's, 1 is best) and its `worst` row numbers and scores.
        outliers: suspects.
        near: the numbers of the nearest rows of each sampled row.
    """

    report: dict[str, Any]
    outliers: list[Suspect]
    near: dict[int, list[int]]


def sampled(table: Table, numbers: "npt.NDArray[np.int64]", seed: int) -> "npt.NDArray[np.int64]":
    """The numbers of the rows that Datalab looks at, ascending."""
    import numpy as np

    return numbers[sample([table.ids[i] for i in numbers], np.zeros(len(numbers), dtype=np.int64), SAMPLED_ROWS, f"{seed} datalab")]


def find_issues(
    table: Table, numbers: "npt.NDArray[np.int64]", labels: list[str] | None, probabilities: "npt.NDArray[np.float32] | None", seed: int
) -> Found:
    """Asks Datalab about rows.

    Args:
        table: all rows.
        numbers: [rows] int64, of the rows to look at, ascending; more than NEIGHBOURS.
        labels: in the order of the probabilities' columns; None for rows without labels.
        probabilities: [rows, labels] float32, out of fold; None without labels.
        seed: of projection and cells.

    Returns:
        What it found.
    """
    import numpy as np
    from cleanlab import Datalab
    from threadpoolctl import threadpool_limits

    wanted = np.zeros(len(table.ids), dtype=bool)
    wanted[numbers] = True
    texts = [text for block in table.over(_texts, [wanted]) for text in block]
    with threadpool_limits(1):  # sums keep their order
        step = max(1, -(-len(texts) // FITTED_TEXTS))
        near = graph(Projection(texts[::step], seed)(texts), NEIGHBOURS, seed)
        asked = [name for name in ISSUES if labels is not None or name not in ("label", "class_imbalance")]
        if labels is None:
            lab = Datalab({"row": numbers}, verbosity=0)
            lab.find_issues(knn_graph=near, issue_types={name: _options(name, seed) for name in asked})
        else:
            given = np.array([str(table.labels[i]) for i in numbers])
            lab = Datalab({"label": given}, label_name="label", verbosity=0)
            # Datalab numbers the labels in sorted order, as the probabilities' columns are
            lab.find_issues(pred_probs=probabilities, knn_graph=near, issue_types={name: _options(name, seed) for name in asked})
    rows = lab.get_issues()
    summary = lab.get_issue_summary().set_index("issue_type")["score"]
    report: dict[str, Any] = {"sampled": len(numbers)}
    outliers: list[Suspect] = []
    neighbours = near.indices.reshape(len(numbers), NEIGHBOURS)
    for name in asked:
        flagged, score = rows[f"is_{name}_issue"].to_numpy(), rows[f"{name}_score"].to_numpy()
        order = np.lexsort((numbers, np.round(score, 6)))
        worst = [i for i in order if flagged[i]]
        report[name] = {
            "count": int(flagged.sum()),
            "score": float(summary[name]),
            "worst": [{"number": int(numbers[i]), "score": round(float(score[i]), 6)} for i in worst[:WORST]],
        }
        if name == "outlier":
            for i in worst[:OUTLIERS]:
                ids = tuple(table.ids[numbers[other]] for other in neighbours[i, :SHOWN_NEIGHBOURS])
                evidence = "its words are far from those of every other row"
                outliers.append(Suspect(int(numbers[i]), "outlier", None, round(float(score[i]), 6), evidence, ids))
    shown = {int(number): numbers[line[:SHOWN_NEIGHBOURS]].tolist() for number, line in zip(numbers, neighbours, strict=True)}
    return Found(report, outliers, shown)


def _options(name: str, seed: int) -> dict[str, Any]:
    return {"seed": seed} if name == "non_iid" else {}


def _texts(rows: list[Row], wanted: "npt.NDArray[np.bool_]") -> list[str]:
    """What a row is known by: a labelled row by its text, another by text and answer."""
    return [row.text if row.label is not None else f"{row.text}\n{row.answer}" for row, chosen in zip(rows, wanted, strict=True) if chosen]
