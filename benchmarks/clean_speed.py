"""Clean's detectors alone, in one process: rows a second for secrets, for personal data, and for both.

Run: python -m benchmarks.clean_speed data/raw/rows.parquet. In: a table of rows. Out: figures on standard output.
"""

import sys
import time
from itertools import islice
from pathlib import Path

from stages.clean.cleaning import DETECTORS
from stages.core.records import Row, iter_rows
from stages.core.row_texts import contents

ROWS = 20_000


def rows_per_second(rows: list[Row]) -> dict[str, float]:
    """Rows a second of this process's own time, by detector and for both, with the median number of words.

    Args:
        rows: any.

    Returns:
        The figures.
    """
    texts = [contents(row) for row in rows]
    figures = {"median_words": float(sorted(sum(len(text.split()) for text in row) for row in texts)[len(texts) // 2])}
    for name, detectors in {**{name: [detector] for name, detector in DETECTORS.items()}, "both": list(DETECTORS.values())}.items():
        start = time.process_time()
        for row in texts:
            for text in row:
                for detector in detectors:
                    detector(text)
        figures[name] = round(len(rows) / (time.process_time() - start))
    return figures


if __name__ == "__main__":
    print(rows_per_second(list(islice(iter_rows(Path(sys.argv[1])), ROWS))))
