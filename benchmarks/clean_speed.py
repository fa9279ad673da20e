"""Clean's detectors: recall and precision on the planted set that every run measures, and rows a second in one process.

Run: python -m benchmarks.clean_speed [data/raw/rows.parquet]. In: a table of rows, or made ones. Out: tables (exit code 1: a target is
missed).
"""

import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

from benchmarks.data_rows import made_rows
from stages.clean.cleaning import DETECTORS
from stages.clean.figures import measure, too_low
from stages.core.records import iter_rows
from stages.core.row_texts import contents

ROWS = 20_000
SEEDS = range(3)
ROWS_PER_SECOND = 3_000


def rows_per_second(rows: list[list[str]]) -> dict[str, float]:
    """Rows a second of this process's own time, by detector and for both, with the median number of words.

    Args:
        rows: the texts of each row.

    Returns:
        The figures.
    """
    figures = {"median_words": float(sorted(sum(len(text.split()) for text in row) for row in rows)[len(rows) // 2])}
    for name, detectors in {**{name: [detector] for name, detector in DETECTORS.items()}, "both": list(DETECTORS.values())}.items():
        start = time.process_time()
        for row in rows:
            for text in row:
                for detector in detectors:
                    detector(text)
        figures[name] = round(len(rows) / (time.process_time() - start))
    return figures


def main() -> None:
    """Prints both tables."""
    print("| seed | texts | secrets: recall | precision | personal data: recall | precision |\n|---|---|---|---|---|---|")
    missed: list[str] = []
    for seed in SEEDS:
        headline, details = measure(DETECTORS, seed)
        told = [f"{headline[name]:.4f}" for name in ("secrets_recall", "secrets_precision", "pii_recall", "pii_precision")]
        print(f"| {seed} | {details['texts']} | {' | '.join(told)} |")
        missed += too_low(headline)
    if len(sys.argv) > 1:
        texts = [contents(row) for row in islice(iter_rows(Path(sys.argv[1])), ROWS)]
    else:
        texts = [[str(record["text"])] for record in made_rows(ROWS, 17, Counter())]
    speed = rows_per_second(texts)
    print(f"\n{len(texts):,} rows, median {speed['median_words']:.0f} words, one process by its own clock:\n")
    print("| detectors | rows/s |\n|---|---|")
    for name in (*DETECTORS, "both"):
        print(f"| {name.replace('_', ' ')} | {speed[name]:,.0f} |")
    print(f"\ntargets: recall >= 0.98, precision >= 0.95, {ROWS_PER_SECOND:,} rows/s for both")
    sys.exit(bool(missed) or speed["both"] < ROWS_PER_SECOND)


if __name__ == "__main__":
    main()
