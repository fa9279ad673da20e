"""The benchmarks' own code: published shapes that are built where they are trained, the grid's measurements and fit, the made rows."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data, data_rows, grid, grid_fit, shapes
from stages.core import planner


@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_a_cell_of_the_grid_is_a_few_steps_of_the_engine(engine: str) -> None:
    runner = grid.Runner(shapes.build("tiny", "none", 4, "cpu"), engine)
    for share, recomputed in ((0.0, 0), (0.5, 1), (1.0, 2)):
        found = runner.run(grid.Cell(engine, "tiny", "none", tokens=16, rows=2, recompute=share, mlp_tokens=8))
        assert found["recomputed"] == recomputed
        assert found["tokens_per_second"] == pytest.approx(32 / found["seconds"], rel=0.01)


def test_a_built_shape_is_frozen_but_for_its_adapter() -> None:
    import torch

    model = shapes.build("tiny", "none", 4, "cpu")
    assert model.training
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name and parameter.dtype is torch.float32 for name, parameter in trained.items())
    tiny = planner.shape_of(shapes.config_of("tiny"))
    assert sum(parameter.numel() for parameter in trained.values()) == tiny.adapter_parameters(4, "all-linear")
    frozen = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in trained)
    assert frozen == tiny.parameters


def test_the_fit_finds_the_factors_that_made_the_cells() -> None:
    """With two in a hundred of noise on the cells; a shape that the fit has never seen is told as well."""
    invented = {"kept": 1.04, "working": 1.3, "chunk": 1.1, "unpacked": 1.2, "head": 1.2, "slack": 1.04, "fixed_bytes": 3.0e8}
    rng = random.Random(0)
    cells: list[dict[str, Any]] = []
    for shape in ("1b", "8b", "13b"):
        for cell in grid.cells("fused", shape, "nf4"):
            layers = planner.shape_of(shapes.config_of(shape)).layers
            known = {**asdict(cell), "rank": 16, "recomputed": round(layers * cell.recompute)}
            cells.append({**known, "peak_bytes": grid_fit.predicted_peak(known, invented) * rng.uniform(0.98, 1.02)})
    fitted = grid_fit.fit_memory([cell for cell in cells if cell["shape"] != "8b"])
    for cell in cells:
        error = grid_fit.predicted_peak(cell, fitted) / cell["peak_bytes"] - 1
        assert -0.03 < error < 0.06, cell


def test_made_rows_are_the_same_for_a_seed_and_hold_what_is_planted(tmp_path: Path) -> None:
    counts = [data_rows.write_files(tmp_path / name, 3000, seed) for name, seed in (("a", 1), ("again", 1), ("b", 2))]
    contents = [[path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("a", "again", "b")]
    assert contents[0] == contents[1] != contents[2]
    assert counts[0] == counts[1]
    records = [json.loads(line) for content in contents[0] for line in content.splitlines()]
    assert len(records) == 3000
    words = sorted(len((record.get("text") or f"{record['prompt']} {record['completion']}").split()) for record in records)
    assert 50 <= words[1500] <= 70
    for kind, share in data_rows.SHARES.items():
        assert 0.5 * share * 3000 < counts[0][kind] < 1.6 * share * 3000, kind


def test_the_tables_in_docs_are_those_of_the_results() -> None:
    text = data.DOCS.read_text(encoding="utf-8")
    assert f"{data.MARKS[0]}\n{data.table(json.loads(data.RESULTS.read_text(encoding='utf-8')))}{data.MARKS[1]}" in text


def test_a_stages_memory_is_that_of_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/forks.py").write_text(
        "import os, time\nshared = b'x' * (100 << 20)\nif os.fork() == 0:\n    own = b'y' * (100 << 20)\ntime.sleep(1.5)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(data, "ROOT", tmp_path)
    found = data.run("forks", tmp_path)
    assert 200 << 20 < found["peak_bytes"] < 280 << 20
