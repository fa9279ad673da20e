"""The plan of a training: every row once an epoch, full steps, no micro-batch above its tokens; and the tensors made of it."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.batches import IGNORED, TokenRow, bucket, collate, read_tokens
from stages.core.errors import UserError
from stages.train.batches import Step, pack, plan
from tests import trainable

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=80)
BATCHING = st.sampled_from(["bucket", "pack"])


def size(micro_batch: tuple[int, ...], lengths: list[int], batching: str) -> int:
    """Tokens that a forward pass over a micro-batch computes."""
    found = [lengths[row] for row in micro_batch]
    return sum(found) if batching == "pack" else len(found) * max(found)


@given(LENGTHS, st.integers(1, 3), st.integers(1, 20), st.integers(60, 300), BATCHING, st.integers(0, 9))
def test_every_row_comes_once_an_epoch_in_full_steps_within_the_tokens_of_a_micro_batch(
    lengths: list[int], epochs: int, effective_batch: int, tokens: int, batching: str, seed: int
) -> None:
    steps = plan(lengths, epochs, None, effective_batch, tokens, batching, "cpu", seed)
    an_epoch = math.ceil(len(lengths) / effective_batch)
    assert [step.number for step in steps] == list(range(1, epochs * an_epoch + 1))
    for epoch in range(epochs):
        own = steps[epoch * an_epoch : (epoch + 1) * an_epoch]
        assert sorted(row for step in own for row in step.rows) == list(range(len(lengths)))
        assert all(len(step.rows) == effective_batch for step in own[:-1])
    assert all(size(micro_batch, lengths, batching) <= tokens for step in steps for micro_batch in step.micro_batches)


@given(LENGTHS, st.integers(1, 20), st.integers(60, 300), BATCHING, st.integers(0, 9))
def test_how_rows_are_put_together_does_not_change_which_rows_a_step_sees(
    lengths: list[int], effective_batch: int, tokens: int, batching: str, seed: int
) -> None:
    one = plan(lengths, 1, None, effective_batch, tokens, batching, "cpu", seed)
    other = plan(lengths, 1, None, effective_batch, 10_000, "bucket", "cpu", seed)
    assert [sorted(step.rows) for step in one] == [sorted(step.rows) for step in other]


@given(LENGTHS, st.floats(0.1, 3), st.integers(1, 20), st.integers(1, 30))
def test_a_shorter_plan_is_the_beginning_of_a_longer_one(lengths: list[int], epochs: float, effective_batch: int, steps: int) -> None:
    full = plan(lengths, 4, None, effective_batch, 100, "pack", "cpu", 1)
    part = plan(lengths, epochs, None, effective_batch, 100, "pack", "cpu", 1)
    assert part == full[: len(part)]
    assert len(part) == math.ceil(round(epochs * math.ceil(len(lengths) / effective_batch), 6))
    assert plan(lengths, epochs, steps, effective_batch, 100, "pack", "cpu", 1) == part[:steps]


def test_epochs_and_seeds_shuffle_anew_and_equal_seeds_alike() -> None:
    lengths = [10] * 40
    steps = plan(lengths, 2, None, 40, 1000, "bucket", "cpu", 1)
    assert steps[0].rows != steps[1].rows
    assert steps != plan(lengths, 2, None, 40, 1000, "bucket", "cpu", 2)
    assert steps == plan(lengths, 2, None, 40, 1000, "bucket", "cpu", 1)


def test_buckets_hold_rows_of_like_length_and_packs_fill_the_gaps() -> None:
    lengths = [50, 10, 48, 12, 11, 9]
    assert bucket(range(6), lengths, 100, 64) == [(0, 2), (3, 4, 1, 5)]
    assert pack(range(6), lengths, 70) == [(0, 3), (2, 4, 1), (5,)]


def test_another_forward_pass_is_made_only_where_it_saves_more_padding_than_it_costs() -> None:
    assert bucket(range(4), [20, 19, 18, 17], 1000, 64) == [(0, 1, 2, 3)]
    assert bucket(range(4), [200, 20, 20, 20], 1000, 64) == [(0,), (1, 2, 3)]


@given(LENGTHS, st.integers(60, 300))
def test_buckets_compute_no_more_than_filling_one_pass_after_the_other(lengths: list[int], tokens: int) -> None:
    greedy: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not greedy or (len(greedy[-1]) + 1) * lengths[greedy[-1][0]] > tokens:
            greedy.append([])
        greedy[-1].append(row)

    def cost(passes: list[list[int]]) -> int:
        return sum(size(tuple(rows), lengths, "bucket") + 64 for rows in passes)

    assert cost([list(rows) for rows in bucket(range(len(lengths)), lengths, tokens, 64)]) <= cost(greedy)


def row(ids: list[int], trained: list[bool], name: str = "r") -> TokenRow:
    """A row from plain lists."""
    return TokenRow(name, np.array(ids, dtype=np.int64), np.array(trained))


@given(st.lists(st.tuples(st.integers(2, 12), st.integers(1, 11)), min_size=1, max_size=6), BATCHING)
def test_the_targets_of_a_batch_are_the_trained_tokens_of_its_rows_and_no_others(shapes: list[tuple[int, int]], batching: str) -> None:
    rows = []
    for number, (tokens, trained) in enumerate(shapes):
        ids = [100 * (number + 1) + place for place in range(tokens)]
        rows.append(row(ids, [place >= tokens - min(trained, tokens) for place in range(tokens)]))
    batch = collate(rows, batching, 0)
    expected = sorted(int(i) for r in rows for i, t in list(zip(r.input_ids, r.trained, strict=True))[1:] if t)
    assert sorted(batch.targets[batch.targets != IGNORED].tolist()) == expected
    # each target follows the very token that stands in its column
    for line, targets in zip(batch.input_ids, batch.targets, strict=True):
        for column, target in zip(batch.columns.tolist(), targets.tolist(), strict=True):
            assert target in (IGNORED, int(line[column]) + 1)
    if batching == "pack":
        assert batch.position_ids is not None
        assert batch.position_ids[0].tolist() == [place for r in rows for place in range(len(r.input_ids))]
    else:
        assert batch.position_ids is None


def test_a_row_without_a_token_to_learn_is_refused_by_its_id(tmp_path: Path) -> None:
    good, bad = ("good", [3, 4], [False, True]), ("bad", [3, 4, 5], [True, False, False])
    trainable.write_tokens(tmp_path / "train.parquet", [good, bad])
    with pytest.raises(UserError, match=r"train.parquet: row bad has no token to learn.*dvc repro"):
        read_tokens(tmp_path / "train.parquet")


def test_a_step_lists_its_rows_in_the_order_of_its_forward_passes() -> None:
    assert Step(1, ((3, 1), (2,))).rows == [3, 1, 2]
