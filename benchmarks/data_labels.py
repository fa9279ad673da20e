"""Label errors planted in the default data, and how many of them label_check finds.

In: data/dedupe/rows.parquet of this checkout, or --rows. Out: recall and precision for each seed, as a table (exit code 1: missed).
Flips are uniform over the other labels. Seeds 100 to 202 chose `min_odds` and the classifier; those measured here had no part in it.
"""

import argparse
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from stages.core import paths
from stages.core.params import LabelCheck, load_params
from stages.core.records import Row, read_rows, write_rows
from stages.label_check.searches import wrong_labels
from stages.label_check.table import read_table

SHARE = 0.05
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


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=paths.DEDUPE_ROWS)
    parser.add_argument("--share", type=float, default=SHARE, help="of the labels that are flipped (0.05)")
    args = parser.parse_args()
    params = load_params().label_check
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
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
