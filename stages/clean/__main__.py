"""Clean: repairs Unicode, then rejects or redacts rows by named, counted rules; measures its own recall and precision in every run.

In: data/raw/rows.parquet. Out: data/clean/rows.parquet, the rejected rows with rule and evidence, and reports/clean.json. Neither the
evidence nor the report ever holds a secret or a personal datum, and a rejected row is kept with placeholders in its place.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import partial

from stages.clean.cleaning import DETECTORS, SAMPLES, actions, clean_batch
from stages.clean.figures import measure, too_low
from stages.clean.tally import Batch, Tally, report_of
from stages.core import paths
from stages.core.files import outputs, write_report
from stages.core.language import language_model
from stages.core.parallel import cores, in_batches, in_order
from stages.core.params import Clean, Params
from stages.core.progress import progress
from stages.core.records import REJECTED_SCHEMA, SCHEMA, Row, TableWriter, count_rows, iter_rows
from stages.core.stage import run_stage

BATCH_ROWS = 2_000  # of one process at a time
PLANTED_SEED = 0  # not params.seed: another seed must not clean a million rows again
ROWS_FOR_PROCESSES = 20_000  # fewer are done before other processes have started


def main(params: Params) -> None:
    """Runs the stage."""
    rows = count_rows(paths.RAW_ROWS)
    workers = cores() if rows >= ROWS_FOR_PROCESSES else 1
    tally = Tally()
    with outputs() as place:
        with TableWriter(place(paths.CLEAN_ROWS), SCHEMA) as kept, TableWriter(place(paths.CLEAN_REJECTED), REJECTED_SCHEMA) as rejected:
            batches = clean_rows(iter_rows(paths.RAW_ROWS), params.clean, workers)
            for batch in progress(batches, "clean", rows, size=lambda batch: batch.tally.rows_in):
                for row in batch.kept:
                    kept.row(row)
                for item in batch.rejected:
                    rejected.rejected(item.row, item.rule, item.evidence)
                tally.add(batch.tally, SAMPLES)
        assert rows == tally.rows_in, "clean lost or made rows"
        headline, planted = measure(DETECTORS, PLANTED_SEED)
        details = {**report_of(tally, params.clean, actions(params.clean)), "planted": planted}
        write_report(place(paths.CLEAN_REPORT), headline, details)
    for sentence in too_low(headline):
        sys.stderr.write(f"clean: WARNING: {sentence}; secrets or personal data may pass into the weights\n")


def clean_rows(rows: Iterable[Row], params: Clean, workers: int) -> Iterator[Batch]:
    """Cleans rows in order, a batch at a time.

    Args:
        rows: as fetched, read as they are needed.
        params: the section `clean`.
        workers: processes; they change nothing but the time.

    Returns:
        Batches, in the order of the rows. A language that the model does not know is told before the first.
    """
    if params.languages:
        language_model(tuple(params.languages))
    return in_order(partial(clean_batch, params=params), in_batches(rows, BATCH_ROWS), workers)


if __name__ == "__main__":
    run_stage("clean", main)
