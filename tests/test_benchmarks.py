"""The benchmarks' own code: published shapes that are built where they are trained, the grid's measurements, and the fit of them."""

import random
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks import grid, grid_fit, shapes
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
