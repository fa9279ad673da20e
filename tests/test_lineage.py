"""From a row to the optimiser steps that learnt it: the record that a training leaves, and how `luthier lineage` tells it."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.train.record import used, write_record
from stages.train.sft import Training
from tests import trainable
from tests.test_cli import luthier


def recorded(training: Training, folder: Path) -> list[dict[str, Any]]:
    """What a finished training writes down, as it is read."""
    write_record(folder / "steps.parquet", used(training), training.rows)
    lines: list[dict[str, Any]] = pq.read_table(folder / "steps.parquet").to_pylist()
    return lines


def test_every_row_is_recorded_once_an_epoch_in_the_micro_batch_that_computed_it(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path, epochs=2)
    training.fit()
    lines = recorded(training, tmp_path)
    passes = Counter((line["epoch"], line["id"]) for line in lines)
    assert passes == {(epoch, row.id): 1 for epoch in (1, 2) for row in training.rows}
    lengths = {row.id: len(row.input_ids) for row in training.rows}
    assert all(line["tokens"] == lengths[line["id"]] for line in lines)
    planned = [
        (step.number, number, training.rows[row].id)
        for step in training.plan
        for number, micro_batch in enumerate(step.micro_batches, 1)
        for row in micro_batch
    ]
    assert [(line["step"], line["micro_batch"], line["id"]) for line in lines] == planned


def test_a_step_that_was_left_out_or_never_reached_is_not_recorded(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path, epochs=2)
    training.state.left_out, training.state.step = [2], 5  # of six
    assert sorted({line["step"] for line in recorded(training, tmp_path)}) == [1, 3, 4, 5]


def test_micro_batches_are_recorded_as_they_were_cut_when_memory_ran_out(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path, epochs=2)
    before = [line for line in recorded(_at_end(training), tmp_path) if line["step"] == 3]
    failed = max(training.plan[2].micro_batches, key=len)
    training.make_room("train", 3, failed)
    after = recorded(_at_end(training), tmp_path)
    cut = [line for line in after if line["step"] == 3]
    assert {line["id"] for line in cut} == {line["id"] for line in before}
    assert max(line["micro_batch"] for line in cut) > max(line["micro_batch"] for line in before)
    assert [line["micro_batch"] for line in after if line["step"] < 3] == [
        number for step in training.plan[:2] for number, micro_batch in enumerate(step.micro_batches, 1) for _ in micro_batch
    ]


def _at_end(training: Training) -> Training:
    """A training whose every step is done, without doing it."""
    training.state.step = len(training.plan)
    return training


def test_a_row_leads_to_the_steps_that_learnt_it_and_says_so_where_none_did(finished: Path) -> None:
    lines = pq.read_table(finished / "data/trained/steps.parquet").to_pylist()
    said = luthier(finished, "lineage", lines[0]["id"]).stdout
    assert re.search(
        rf"step {lines[0]['step']} \(epoch 1\), micro-batch {lines[0]['micro_batch']} beside \d+ other rows?; the step's loss \d", said
    )
    assert re.search(r"row_losses: loss \S+ before, \S+ after; without its prompt \S+ before, \S+ after", said)
    learnt = {line["id"] for line in lines}
    never = next(row for row in pq.read_table(finished / "data/split/train.parquet")["id"].to_pylist() if row not in learnt)
    assert "train: in no step: the training ended before its turn" in luthier(finished, "lineage", never).stdout
    held_out = pq.read_table(finished / "data/split/validation.parquet")["id"].to_pylist()[0]
    assert "train: learnt in no step; its loss is measured" in luthier(finished, "lineage", held_out).stdout
