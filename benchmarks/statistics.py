"""What compare's statistics promise, held against simulated models whose true difference is known.

Run: python -m benchmarks.statistics [--trials 2000] [--resamples 1000]. Out: the table of docs/evaluation.md on standard output: claimed
effects where there is none, and where there is one how often it is found and how often the 95 % interval holds it. No GPU.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.compare.statistics import Paired, detectable_mean, detectable_share, paired
from stages.core.holm import holm
from stages.core.mcnemar import mcnemar

ALPHA = 0.05
ITEMS = (50, 200, 1000)
ACCURACIES = (0.3, 0.7, 0.95)  # of the base
AGREEMENTS = (0.7, 0.9, 0.98)  # share of the items on which two equally good models agree
SUITE = (100, 60, 100, 100)  # items of the general tasks by default
Draw = Callable[[np.random.Generator, float], tuple[np.ndarray, np.ndarray]]  # both models' scores at a true difference


@dataclass(frozen=True)
class Cell:
    """One kind of pair of models.

    Attributes:
        name: in words.
        items: how many.
        draw: scores of both models.
        effect: the detectable difference, which the models have where there is an effect.
    """

    name: str
    items: int
    draw: Draw
    effect: float


@dataclass(frozen=True)
class Figures:
    """What was seen in a cell, as shares of its trials; stated is the mean `detectable` of the trials with an effect."""

    false_claims: float
    coverage: float
    power: float
    stated: float


def binary(items: int, accuracy: float, agreement: float) -> Cell | None:
    """Models that are right or wrong; None where they cannot agree so seldom, or where no difference can be seen or fits."""
    variance = 1 - agreement
    effect = detectable_share(variance, items, ALPHA)

    def draw(rng: np.random.Generator, difference: float) -> tuple[np.ndarray, np.ndarray]:
        differing = max(variance + difference**2, difference)
        lost = (differing - difference) / 2
        chances = [accuracy - lost, lost + difference, lost, 1 - accuracy - lost - difference]
        kinds = rng.multinomial(items, chances)  # both right, won, lost, both wrong
        return np.repeat([1.0, 0.0, 1.0, 0.0], kinds), np.repeat([1.0, 1.0, 0.0, 0.0], kinds)

    lost = (max(variance + effect**2, effect) - effect) / 2
    fits = accuracy >= max(lost, variance / 2) and 1 - accuracy >= max(lost + effect, variance / 2)
    return Cell(f"right or wrong, base {accuracy:.0%}, {agreement:.0%} agree", items, draw, effect) if fits else None


def continuous(items: int, name: str, noise: Callable[[np.random.Generator, int], np.ndarray], variance: float) -> Cell:
    """Models with a score as bits per byte is one; `noise` is drawn around 0."""

    def draw(rng: np.random.Generator, difference: float) -> tuple[np.ndarray, np.ndarray]:
        first = rng.lognormal(size=items)
        return first, first + difference + noise(rng, items)

    return Cell(f"a number, {name}", items, draw, detectable_mean(variance, items, ALPHA))


def cells() -> Iterator[Cell]:
    """All kinds of pairs, fewest items first."""
    for items in ITEMS:
        for accuracy in ACCURACIES:
            yield from (cell for agreement in AGREEMENTS if (cell := binary(items, accuracy, agreement)))
        yield continuous(items, "skewed differences (exponential)", lambda rng, size: rng.exponential(size=size) - 1, 1.0)
        if items < 1000:  # the skewed ones are the hardest, and a minute of a core each at 1,000 items
            yield continuous(items, "normal differences", lambda rng, size: rng.normal(size=size), 1.0)
            yield continuous(items, "heavy tails (Student's t, 5 degrees)", lambda rng, size: rng.standard_t(5, size=size), 5 / 3)


def figures(cell: Cell, trials: int, resamples: int, seed: int) -> Figures:
    """Runs a cell with and without an effect.

    Args:
        cell: which.
        trials: of each.
        resamples: of each trial's bootstrap and permutation.
        seed: of everything.

    Returns:
        The figures.
    """
    rng = np.random.default_rng(seed)
    known: dict[tuple[int, int], Paired] = {}

    def compared(difference: float) -> Paired:
        first, second = cell.draw(rng, difference)
        if first.max() > 1:
            return paired(first, second, resamples, ALPHA, int(rng.integers(2**31)))
        key = int((second > first).sum()), int((second < first).sum())  # all that the statistics of right and wrong know
        if key not in known:
            known[key] = paired(first, second, resamples, ALPHA, int(rng.integers(2**31)))
        return known[key]

    null = [compared(0.0) for _ in range(trials)]
    real = [compared(cell.effect) for _ in range(trials)]
    return Figures(
        false_claims=sum(one.p_value < ALPHA for one in null) / trials,
        coverage=sum(one.low <= cell.effect <= one.high for one in real) / trials,
        power=sum(one.p_value < ALPHA and one.difference > 0 for one in real) / trials,
        stated=sum(one.detectable for one in real) / trials,
    )


def family(trials: int, seed: int, sizes: tuple[int, ...] = SUITE, agreement: float = 0.85) -> tuple[float, float]:
    """The share of trials in which any of several tasks without an effect is claimed to have one, without and with Holm's correction."""
    rng = np.random.default_rng(seed)
    plain = corrected = 0
    for _ in range(trials):
        counts = [rng.multinomial(size, [(1 - agreement) / 2, (1 - agreement) / 2, agreement])[:2] for size in sizes]
        p_values = [mcnemar(int(won), int(lost)) for won, lost in counts]
        plain += min(p_values) < ALPHA
        corrected += min(holm(p_values)) < ALPHA
    return plain / trials, corrected / trials


def best_of(trials: int, seed: int, items: int = 1000, prompts: int = 4, accuracy: float = 0.7, shared: float = 0.5) -> tuple[float, float]:
    """The share of trials in which a tuned model, as good as the base with each of its prompts, differs from the best of them.

    The best is chosen on the items of the comparison, so that luck favours the base.

    Args:
        trials: how many.
        seed: of everything.
        items: of a trial.
        prompts: ways of asking the base.
        accuracy: of every one of them.
        shared: share of the items whose outcome is the item's own, the same for all; the others fall anew for each.

    Returns:
        The share without and with Holm's correction over the prompts.
    """
    rng = np.random.default_rng(seed)
    plain = corrected = 0
    for _ in range(trials):
        common, own = rng.random(items) < accuracy, rng.random((prompts + 1, items)) < accuracy
        right = np.where(rng.random(items) < shared, common, own)
        tuned, asked = right[0], right[1:]
        p_values = [mcnemar(int((tuned & ~base).sum()), int((base & ~tuned).sum())) for base in asked]
        best = int(asked.sum(axis=1).argmax())
        plain += p_values[best] < ALPHA
        corrected += holm(p_values)[best] < ALPHA
    return plain / trials, corrected / trials


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="simulates compare's statistics")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    print("| scores | items | effect claimed where none is | interval holds the true difference | difference | found | stated on average |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for number, cell in enumerate(cells()):
        seen = figures(cell, args.trials, args.resamples, number)
        shares = f"{seen.false_claims:.1%} | {seen.coverage:.1%} | {cell.effect:.3f} | {seen.power:.1%} | {seen.stated:.3f}"
        print(f"| {cell.name} | {cell.items} | {shares} |", flush=True)
    print("\n| family without an effect | any claimed, each test alone | with Holm |\n|---|--:|--:|")
    print("| {} | {:.1%} | {:.1%} |".format("the general suite, 100, 60, 100 and 100 items", *family(args.trials, 1)))
    print("| {} | {:.1%} | {:.1%} |".format("the base's best of four prompts, 1000 items", *best_of(args.trials, 1)))


if __name__ == "__main__":
    main()
