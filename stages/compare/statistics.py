"""Paired statistics on per-item scores: interval, test, Holm's correction and the smallest difference that would have been seen.

In: two scores an item. Out: numbers. Pure functions of arrays and a seed; `python -m benchmarks.statistics` measures what they promise.
"""

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from scipy.stats import binom, t

from stages.core.holm import holm
from stages.core.mcnemar import mcnemar

POWER = 0.8  # of the minimum detectable difference, the field's custom
COVERED = 0.95  # of every interval
CHUNK = 2**22  # numbers drawn at once
Key = TypeVar("Key")


@dataclass(frozen=True)
class Paired:
    """Two models on the same items.

    Attributes:
        items: how many.
        first: the first model's mean score.
        second: the second's.
        difference: second minus first.
        low: lower end of the interval of the difference.
        high: its upper end.
        p_value: two-sided, of no difference.
        p_holm: the same, corrected for the family of tests it belongs to; equal where it stands alone.
        won: items on which the second scores higher.
        lost: items on which it scores lower.
        detectable: the smallest difference found with probability 0.8 at this number of items.
    """

    items: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    won: int
    lost: int
    detectable: float


def paired(first: np.ndarray, second: np.ndarray, resamples: int, alpha: float, seed: int) -> Paired:
    """Compares two models item by item.

    Scores of 0 and 1 get McNemar's exact test and the interval of `interval_of_shares`, others the larger p value of the sign-flip
    permutation test and Hall's test, and the bootstrap of the mean difference. The detectable difference is that of another pair of models
    which differ as noisily as these.

    Args:
        first: [items] float64, the first model's scores.
        second: [items] float64, the second's, in the same order.
        resamples: of bootstrap and permutation.
        alpha: the level of the test whose detectable difference is told; the interval is always of 95 %.
        seed: of the resamples.

    Returns:
        The comparison.

    Raises:
        ValueError: there are no items, or the arrays differ in length.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"scores of shape {first.shape} and {second.shape} cannot be paired")
    rng = np.random.default_rng(seed)
    differences = second - first
    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        low, high = interval_of_shares(won, lost, first.size, resamples, rng)
        p_value = mcnemar(won, lost)
        total = first.size + 2
        smallest = detectable_share((won + lost + 2) / total - ((won - lost) / total) ** 2, first.size, alpha)
    else:
        low, high = interval_of_means(differences, resamples, rng)
        p_value = max(sign_flip(differences, resamples, rng), hall_test(differences))
        smallest = detectable_mean(float(differences.var()), first.size, alpha)
    return Paired(
        items=first.size,
        first=float(first.mean()),
        second=float(second.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=p_value,
        p_holm=p_value,
        won=won,
        lost=lost,
        detectable=smallest,
    )


def interval_of_shares(won: int, lost: int, items: int, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """The paired bootstrap's percentile interval of the difference of two accuracies, with one item won and one lost added.

    Resampling items with a score of -1, 0 or 1 is drawing their counts from a multinomial distribution. Without the two added items the
    interval would be a point where the models never differ, and too narrow where they seldom do (Bonett and Price, 2012, Adjusted Wald
    confidence interval for a difference of binomial proportions based on paired data, J. Educ. Behav. Stat. 37).

    Args:
        won: items only the second model got right.
        lost: items only the first got right.
        items: all items.
        resamples: how many times to resample.
        rng: the source of randomness.

    Returns:
        Lower and upper end.
    """
    total = items + 2
    counts = rng.multinomial(total, [(won + 1) / total, (lost + 1) / total, (items - won - lost) / total], size=resamples)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / total, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(low), float(high)


def interval_of_means(differences: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """The paired bootstrap's expanded percentile interval of a mean difference.

    The plain percentile interval is too narrow at few items: the bootstrap's spread lacks the factor sqrt(n / (n - 1)), and its quantiles
    are a normal's where Student's are due. Both are made good by taking quantiles further out (Hesterberg, 2015, What teachers should know
    about the bootstrap, The American Statistician 69, section 4.3).

    Args:
        differences: [items] float64.
        resamples: how many times to resample.
        rng: the source of randomness.

    Returns:
        Lower and upper end.
    """
    size = differences.size
    step = max(1, CHUNK // size)
    means = [differences[rng.integers(size, size=(min(step, resamples - done), size))].mean(axis=1) for done in range(0, resamples, step)]
    outside = NormalDist().cdf(float(t.ppf((1 - COVERED) / 2, size - 1)) * np.sqrt(size / (size - 1))) if size > 1 else 0.0
    low, high = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return float(low), float(high)


def sign_flip(differences: np.ndarray, resamples: int, rng: np.random.Generator) -> float:
    """The two-sided permutation test of a mean difference of zero: each item's difference keeps its size and takes a random sign.

    Args:
        differences: [items] float64.
        resamples: how many sign patterns to draw; the p value is at least 1 / (resamples + 1).
        rng: the source of randomness.

    Returns:
        The p value.
    """
    size = differences.size
    step = max(1, CHUNK // size)
    seen = abs(differences.sum()) * (1 - 1e-12)  # a sum in another order may differ in its last digit
    extreme = 0
    for done in range(0, resamples, step):
        signs = rng.integers(0, 2, size=(min(step, resamples - done), size), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ differences) >= seen).sum())
    return (extreme + 1) / (resamples + 1)


def hall_test(differences: np.ndarray) -> float:
    """The two-sided t test of a mean difference of zero, its statistic freed of the differences' skewness.

    Where a few large gains stand against many small losses, the sign-flip and the t test both take chance for an effect too often: few
    items show the many and not yet the few. With T = sqrt(n) a and the skewness g, T + (a^2 g / 3 + a^3 g^2 / 27) sqrt(n) + g / (6 sqrt(n))
    grows with a throughout, which Johnson's earlier correction does not (Hall, 1992, On the removal of skewness by transformation, J. R.
    Statist. Soc. B 54). Alone it is too ready to claim where tails are heavy; hence the sign-flip test beside it.

    Args:
        differences: [items] float64.

    Returns:
        The p value; 1 of a single item, which shows no spread.
    """
    size, mean = differences.size, float(differences.mean())
    centred = differences - mean
    spread = float(np.sqrt((centred**2).mean()))
    if size < 2 or spread <= 1e-12 * abs(mean):  # equal but for rounding
        return float(size < 2 or mean == 0)
    shift = mean / spread * np.sqrt((size - 1) / size)  # the standard deviation of n - 1, as in T
    skewness = float(((centred / spread) ** 3).mean())
    statistic = np.sqrt(size) * (shift + shift**2 * skewness / 3 + shift**3 * skewness**2 / 27 + skewness / (6 * size))
    return float(2 * t.sf(abs(statistic), size - 1))


def corrected(family: dict[Key, Paired]) -> dict[Key, Paired]:
    """The comparisons of one family with their p values after Holm's correction."""
    adjusted = holm([result.p_value for result in family.values()])
    return {key: replace(result, p_holm=p) for (key, result), p in zip(family.items(), adjusted, strict=True)}


def detectable_share(variance: float, items: int, alpha: float) -> float:
    """The difference of two accuracies that McNemar's exact test finds with probability 0.8.

    With a true difference d the models differ on a share `variance + d * d` of the items, or on d where that is more.

    Args:
        variance: of one item's difference in score.
        items: how many.
        alpha: of the test.

    Returns:
        The difference, at most 1; 1 as well where so few items cannot show any.
    """
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (low, middle) if mcnemar_power(middle, max(variance + middle**2, middle), items, alpha) >= POWER else (middle, high)
    return high


def mcnemar_power(difference: float, differing: float, items: int, alpha: float) -> float:
    """How probably McNemar's exact test finds a true difference.

    Args:
        difference: of the accuracies, above 0.
        differing: share of the items on which the models differ, at least `difference`.
        items: how many.
        alpha: of the test.

    Returns:
        A probability.
    """
    differing = min(differing, 1.0)
    counts = np.arange(*binom.interval(1 - 1e-6, items, differing) + np.array([0, 1]))
    fewest = binom.ppf(alpha / 2, counts, 0.5)  # lost items: below this the test rejects, and at it where its tail still fits
    fewest -= binom.cdf(fewest, counts, 0.5) > alpha / 2
    chances = binom.pmf(counts, items, differing)
    return float((chances * binom.cdf(fewest, counts, (1 - difference / differing) / 2)).sum())


def detectable_mean(variance: float, items: int, alpha: float) -> float:
    """The mean difference that a two-sided test at `alpha` finds with probability 0.8, by the normal approximation.

    Args:
        variance: of one item's difference.
        items: how many.
        alpha: of the test.

    Returns:
        The difference, in the metric's unit.
    """
    normal = NormalDist()
    return float((normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * np.sqrt(variance / items))
