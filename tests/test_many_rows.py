"""Clean and dedupe on datatrove's local executor keep the rows that the two stages keep."""

import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.clean.__main__ import main as clean
from stages.cli.many_rows import executor_of, joined, run
from stages.core import paths
from stages.core.errors import UserError
from stages.core.params import load_params
from stages.core.records import Row, count_rows, read_rows, write_rows
from stages.dedupe.__main__ import main as dedupe
from stages.local_models.__main__ import main as local_models
from tests import tiny
from tests.rows import chat, labelled, numbered


def sample(count: int, seed: int) -> list[Row]:
    """Rows of which some repeat others, exactly or nearly, some are too short and some contradict."""
    rng = random.Random(seed)
    words = [f"word{number}" for number in range(400)]
    rows: list[Row] = []
    for number in range(count):
        text = " ".join(rng.choices(words, k=rng.choice([1, 30, 40])))
        if rows and rng.random() < 0.4:
            old = rng.choice(rows[-60:]).text.split()
            old[rng.randrange(len(old))] = rng.choice([*words, old[0]])
            text = " ".join(old)
        rows.append(
            chat(text, rng.choice(["yes", "no"]) + text) if number % 5 == 0 else labelled(text, rng.choice("ab"), origin=str(number))
        )
    return numbered(rows)


def test_rows_that_share_a_key_are_together_through_others_too() -> None:
    first = joined(np.arange(6), np.array([5, 1, 5, 2, 3, 4]))
    both = joined(first, np.array([0, 9, 9, 7, 8, 7]))
    assert both[0] == both[1] == both[2] != both[3] == both[5]
    assert len(set(both.tolist())) == 3


@pytest.mark.parametrize("tasks", [2, 5])
def test_the_kept_rows_are_those_of_the_stages(tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove", reason="an optional extra, for more rows than one machine takes")
    monkeypatch.chdir(tmp_path)
    params = load_params(tiny.ROOT / "params.yaml")
    params = params.model_copy(update={"clean": params.clean.model_copy(update={"languages": []})})
    paths.RAW_ROWS.parent.mkdir(parents=True)
    paths.GENERAL.mkdir(parents=True)
    write_rows(paths.RAW_ROWS, sample(700, 3))
    pq.write_table(pq.read_table(paths.RAW_ROWS), paths.RAW_ROWS, row_group_size=40)
    clean(params)
    local_models(params)
    dedupe(params)
    done = run(tmp_path, tmp_path / "many", params, tasks, executor_of("local", {"workers": 2}))
    assert done == {"rows": 700, "kept": count_rows(paths.DEDUPE_ROWS), "rejected": 700 - count_rows(paths.DEDUPE_ROWS)}
    kept = [row for path in sorted((tmp_path / "many/kept").iterdir()) for row in read_rows(path)]
    assert 100 < len(kept) < 650
    assert sorted(kept, key=lambda row: row.id) == sorted(read_rows(paths.DEDUPE_ROWS), key=lambda row: row.id)
    assert run(tmp_path, tmp_path / "many", params, tasks, executor_of("local", {"workers": 2})) == done, "a second run finds all done"
    with pytest.raises(UserError, match="holds results of other rows, params or tasks"):
        run(tmp_path, tmp_path / "many", params, tasks + 1, executor_of("local", {"workers": 2}))
