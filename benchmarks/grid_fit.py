"""From the grid's measurements to the planner's constants. In: JSON lines of benchmarks.grid. Out: a table of errors, and the constants.

Factors stay near what first principles say (ridge), and a peak below the truth counts three times as much as one above it.
"""

import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.shapes import config_of
from stages.core import planner, planner_cards, planner_memory, planner_speed
from stages.core.planner_memory import Load, Method
from stages.core.planner_shape import Shape
from stages.core.planner_speed import Work

# name: first guess, lowest, highest, and how strongly the fit is held to the guess
MEMORY = {
    "kept": (1.0, 0.8, 1.5, 0.03),
    "working": (1.0, 0.3, 2.5, 0.02),
    "chunk": (1.0, 0.3, 2.5, 0.02),
    "unpacked": (1.0, 0.3, 2.5, 0.02),
    "head": (1.0, 0.3, 2.5, 0.02),
    "slack": (1.03, 1.0, 1.3, 0.02),
    "fixed_bytes": (1.0e8, 0.0, 1.5e9, 0.01),
}
SPEED = {
    "products": (0.7, 0.1, 1.0, 0.02),
    "attention": (0.4, 0.05, 1.0, 0.02),
    "deterministic_attention": (0.3, 0.05, 1.0, 0.02),
    "memory": (0.6, 0.02, 1.0, 0.02),
    "half_tokens": (150.0, 1.0, 4000.0, 0.01),
    "launch_seconds": (2.0e-3, 1.0e-5, 5.0e-2, 0.01),
    "again_seconds": (1.0e-3, 1.0e-5, 2.0e-2, 0.01),
    "unpack_seconds": (2.0e-4, 1.0e-6, 1.0e-2, 0.01),
    "piece_seconds": (5.0e-4, 1.0e-5, 2.0e-2, 0.01),
    "step_seconds": (2.0e-3, 1.0e-5, 5.0e-2, 0.01),
}
DOCS = Path(__file__).resolve().parent.parent / "docs/planner.md"
HEADING = "## Errors"
LAUNCHES = (6.0e-4, 3.0e-3, 9.0e-3)
HOST = (1.0, 0.2, 5.0, 0.001)  # a host whose launches were not timed, beside the one whose launches were
UNDER_WEIGHT = 3.0
MOST_UNDER = 0.02  # a peak is predicted at most so far below any that was measured: 1 % inside what the planner allows itself

Cell = Mapping[str, Any]
Factors = dict[str, float]


def read(files: Sequence[str], usual: float | None = None) -> list[dict[str, Any]]:
    """The measured cells; those that ran out of memory have no peak to learn from.

    Each gets `slowness`: how many times `usual` its host takes to launch; None where its launches were not timed.

    Args:
        files: of JSON lines.
        usual: seconds of a launch; None: those of the first cell whose launches were timed.

    Returns:
        The cells.
    """
    lines = [json.loads(line) for name in files for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip()]
    first = usual or next(line["launch_seconds"] for line in lines if line["launch_seconds"] is not None)
    for line in lines:
        line["slowness"] = None if line["launch_seconds"] is None else line["launch_seconds"] / first
    return [line for line in lines if not line.get("out_of_memory")]


@functools.cache
def _shape(name: str) -> Shape:
    return planner.shape_of(config_of(name))


@functools.cache
def _card(name: str, memory_bytes: int) -> planner_cards.Card:
    return planner_cards.named(name, memory_bytes)


def _inputs(cell: Cell) -> tuple[Any, Method, Load, Work]:
    shape = _shape(cell["shape"])
    method = Method(cell["engine"], cell["quantization"], cell["rank"], "all-linear", "adamw", cell["deterministic"])
    tokens = cell["tokens"] * cell["rows"]
    load = Load(tokens, cell["recomputed"], cell["offload"], cell["mlp_tokens"] or tokens, tokens)
    return shape, method, load, Work(1, tokens, tokens, tokens, cell["tokens"])


def predicted_peak(cell: Cell, factors: Mapping[str, float]) -> float:
    """Bytes that the planner says of a cell."""
    shape, method, load, _ = _inputs(cell)
    return sum(planner_memory.peak(shape, method, load, factors).values())


def predicted_speed(cell: Cell, factors: Mapping[str, float]) -> float:
    """Tokens a second that the planner says of a cell on its host."""
    return cell["tokens"] * cell["rows"] / predicted_seconds(cell, factors).whole


def predicted_seconds(cell: Cell, factors: Mapping[str, float]) -> planner_speed.Seconds:
    """A step's time on the cell's host, whose slowness is a factor too where it was not measured."""
    shape, method, load, work = _inputs(cell)
    card = _card(cell["card"], cell["card_bytes"])
    host = factors[_host(cell)] if cell["slowness"] is None else cell["slowness"]
    return planner_speed.step_seconds(shape, method, load, work, card, factors, host)


def _host(cell: Cell) -> str:
    """The name of the factor of a cell's host."""
    return f"host of {cell['commit'][:7]}"


def solve(guesses: Mapping[str, tuple[float, ...]], residuals: Callable[[Factors], list[float]]) -> Factors:
    """The factors of least squared residuals, each held to its guess."""
    names = list(guesses)
    guess, low, high, hold = (np.array(column) for column in zip(*guesses.values(), strict=True))

    def wanted(scaled: np.ndarray) -> np.ndarray:
        factors = dict(zip(names, (scaled * guess).tolist(), strict=True))
        return np.array([*residuals(factors), *(hold * np.log(np.maximum(scaled, 1e-6)))])

    found = least_squares(wanted, np.ones(len(names)), bounds=(low / guess, high / guess), loss="soft_l1", f_scale=0.1)
    return dict(zip(names, (found.x * guess).tolist(), strict=True))


def fit_memory(cells: Sequence[Cell]) -> Factors:
    """The memory factors of one engine."""

    def residuals(factors: Factors) -> list[float]:
        errors = [predicted_peak(cell, factors) / cell["peak_bytes"] - 1 for cell in cells]
        return [error * (UNDER_WEIGHT if error < 0 else 1) for error in errors]

    factors = solve(MEMORY, residuals)
    while min(predicted_peak(cell, factors) / cell["peak_bytes"] - 1 for cell in cells) < -MOST_UNDER:
        factors["slack"] += 0.002
    return factors


def fit_speed(cells: Sequence[Cell]) -> Factors:
    """The speed factors of one engine: the best from several guesses of the launches, which show only where the host is the slower."""

    def residuals(factors: Factors) -> list[float]:
        return [float(np.log(predicted_speed(cell, factors) / cell["tokens_per_second"])) for cell in cells]

    hosts = {_host(cell): HOST for cell in cells if cell["slowness"] is None}
    found = [solve({**SPEED, **hosts, "launch_seconds": (guess, *SPEED["launch_seconds"][1:])}, residuals) for guess in LAUNCHES]
    return min(found, key=lambda factors: sum(abs(error) for error in residuals(factors)))


def fit(files: Sequence[str], write: bool) -> None:
    """Prints the errors of fitted and of held-out cells; with `write` sets the constants and the last section of docs/planner.md."""
    said: list[str] = []
    everything = read(files)
    constants = dict(planner.constants())
    constants["launch_seconds"] = next(cell["launch_seconds"] for cell in everything if cell["slowness"] == 1.0)
    for engine in sorted({cell["engine"] for cell in everything}):
        cells = [cell for cell in everything if cell["engine"] == engine]
        memory, speed = fit_memory(cells), fit_speed(cells)
        constants[engine] = {"memory": _short(memory), "speed": _short({name: speed[name] for name in SPEED})}
        held_out: dict[int, tuple[float, float]] = {}
        shapes = sorted({cell["shape"] for cell in cells})
        for shape in shapes if len(shapes) > 1 else []:
            others = [cell for cell in cells if cell["shape"] != shape]
            factors = fit_memory(others), fit_speed(others)
            for number, cell in enumerate(cells):
                if cell["shape"] == shape:
                    held_out[number] = (predicted_peak(cell, factors[0]), predicted_speed(cell, factors[1]))
        said += _table(engine, cells, memory, speed, held_out)
        said += [f"- {name}: launches take {factor:.2f} times as long, by this fit" for name, factor in speed.items() if name not in SPEED]
    watts = [cell["watts"] / planner_cards.named(cell["card"], cell["card_bytes"]).watts for cell in everything if cell.get("watts")]
    if watts:
        constants["power_share"] = round(statistics.median(watts), 3)
        said.append(f"\nMedian power: {constants['power_share']:.0%} of the card's limit.")
    print("\n".join(said))
    if write:
        planner.CONSTANTS.write_text(json.dumps(constants, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _write_errors(files, everything, said)


def check(files: Sequence[str]) -> None:
    """Prints the errors of the planner as it is, on cells that its constants were not fitted to."""
    constants = planner.constants()
    cells = read(files, constants["launch_seconds"])
    for engine in sorted({cell["engine"] for cell in cells}):
        own = [cell for cell in cells if cell["engine"] == engine]
        print("\n".join(_table(engine, own, constants[engine]["memory"], constants[engine]["speed"], {})))


def _write_errors(files: Sequence[str], cells: Sequence[Cell], said: Sequence[str]) -> None:
    """The last section of docs/planner.md."""
    cell = cells[0]
    pinned = ", ".join(f"{name} {version}" for name, version in cell["versions"].items())
    commits = ", ".join(sorted({cell["commit"][:7] for cell in cells}))
    about = (
        f"Measured on {cell['card']} cards, one a commit ({commits}; {pinned}), by `python -m benchmarks.grid measure FILE`; fitted and "
        f"tabled by `python -m benchmarks.grid fit {' '.join(files)} --write`. An error is predicted / measured - 1. Held out: predicted "
        f"with factors fitted to the *other* shapes only. Every cell is a step of one micro-batch with the gradients already there, as in "
        f"the middle of an accumulation; peaks are `torch.cuda.max_memory_reserved`."
    )
    text = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(text[: text.index(HEADING)] + "\n".join([HEADING, "", about, *said]) + "\n", encoding="utf-8")


def _table(engine: str, cells: Sequence[Cell], memory: Factors, speed: Factors, held_out: Mapping[int, tuple[float, float]]) -> list[str]:
    """A Markdown table, a line a cell, and the sums."""
    columns = ["shape", "base", "rows x tokens", "recomputed", "commit", "peak GiB", "predicted", "error", "held out"]
    columns += ["tokens/s", "predicted", "error", "held out"]
    lines = [f"\n### {engine} engine, {len(cells)} cells\n", f"| {' | '.join(columns)} |", f"{'|---' * len(columns)}|"]
    errors: dict[str, list[float]] = defaultdict(list)
    for number, cell in enumerate(cells):
        peak, rate = predicted_peak(cell, memory), predicted_speed(cell, speed)
        bound = "host" if predicted_seconds(cell, speed).host_bound else "GPU"
        row = [_error(peak, cell["peak_bytes"]), None, _error(rate, cell["tokens_per_second"]), None]
        if number in held_out:
            row[1], row[3] = (_error(held_out[number][n], cell[key]) for n, key in enumerate(("peak_bytes", "tokens_per_second")))
        of_speed = f"tokens/s where the {bound} is waited for"
        for name, error in zip(("peak", "peak, held out", of_speed, f"{of_speed}, held out"), row, strict=True):
            if error is not None:
                errors[name].append(error)
        words = ["" if error is None else f"{error:+.1%}" for error in row]
        pieces = f"MLP {cell['mlp_tokens']}"
        marks = [("fixed order", cell["deterministic"]), ("offloaded", cell["offload"]), (pieces, cell["mlp_tokens"])]
        extra = "".join(f", {word}" for word, holds in marks if holds)
        which = f"{cell['recomputed']}{extra} | {cell['commit'][:7]}"
        what = f"{cell['shape']} | {cell['quantization']} | {cell['rows']} x {cell['tokens']} | {which}"
        gib = f"{cell['peak_bytes'] / 2**30:.2f} | {peak / 2**30:.2f} | {words[0]} | {words[1]}"
        lines.append(f"| {what} | {gib} | {cell['tokens_per_second']:,.0f} | {rate:,.0f} | {words[2]} | {words[3]} |")
    lines.append("")
    for name, found in sorted(errors.items()):
        size = statistics.median(abs(error) for error in found)
        near = sum(abs(error) <= 0.15 for error in found)
        words = f"median |error| {size:.1%}, from {min(found):+.1%} to {max(found):+.1%}; {near} within 15 %"
        lines.append(f"- {name}: {len(found)} cells, {words}")
    return lines


def _error(predicted: float, truth: float) -> float:
    return predicted / truth - 1


def _short(factors: Factors) -> Factors:
    return {name: float(f"{value:.4g}") for name, value in factors.items()}
