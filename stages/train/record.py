"""Which rows each optimiser step was made from. In: a Training at its end. Out: data/trained/steps.parquet.

One line a row and pass, in the order of training: steps that were left out are not there, and micro-batches are as they were computed.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import torch

    from stages.core.batches import TokenRow
    from stages.train.sft import Training

SCHEMA = pa.schema([("id", pa.string()), ("epoch", pa.int32()), ("step", pa.int32()), ("micro_batch", pa.int32()), ("tokens", pa.int32())])


def used(training: "Training") -> dict[str, "torch.Tensor"]:
    """What was trained on, as numbers that go through a checkpoint.

    Args:
        training: at its end.

    Returns:
        `row` (its place among the training rows), `epoch`, `step` and `micro_batch` (counted from 1), `[rows and passes] int32` each.
    """
    import torch

    steps_of_an_epoch = math.ceil(len(training.rows) / training.settings.effective_batch)
    lines = [
        (row, (step.number - 1) // steps_of_an_epoch + 1, step.number, number)
        for step in training.plan[: training.state.step]
        if step.number not in training.state.left_out
        for number, micro_batch in enumerate(training.micro_batches(step, step.number), 1)
        for row in micro_batch
    ]
    columns = torch.tensor(lines, dtype=torch.int32).T
    return dict(zip(("row", "epoch", "step", "micro_batch"), columns, strict=True))


def write_record(path: Path, made: Mapping[str, "torch.Tensor"], rows: Sequence["TokenRow"]) -> None:
    """Writes the table: the row's id, epoch, step, micro-batch (on the packing path: pack) and the row's tokens.

    Args:
        path: from `files.outputs`.
        made: from `used`.
        rows: the training rows.
    """
    trained = [rows[place] for place in made["row"].tolist()]
    numbers = [made[name].numpy() for name in ("epoch", "step", "micro_batch")]
    columns = [[row.id for row in trained], *numbers, [len(row.input_ids) for row in trained]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    pq.write_table(pa.table(arrays, schema=SCHEMA), path, compression="zstd")
