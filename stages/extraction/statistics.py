"""Shares, ranks and their intervals. In: counts and losses. Out: numbers. Pure functions; all intervals are of 95 %."""

import math
from collections.abc import Sequence
from statistics import NormalDist

from scipy.stats import combine_pvalues, fisher_exact, mannwhitneyu

from stages.core.wilson import wilson

ALPHA = 0.05  # an interval covers 1 - ALPHA
Z = NormalDist().inv_cdf(1 - ALPHA / 2)
Interval = tuple[float, float]


def gap_of_shares(first: int, first_total: int, second: int, second_total: int) -> Interval:
    """The interval of the difference of two independent shares, first minus second.

    Newcombe, 1998, Interval estimation for the difference between independent proportions, Statist. Med. 17, method 10.

    Args:
        first: hits of the first sample.
        first_total: its size.
        second: hits of the second.
        second_total: its size.

    Returns:
        Lower and upper end.
    """
    one, other = first / first_total, second / second_total
    (low, high), (other_low, other_high) = wilson(one, first_total, ALPHA), wilson(other, second_total, ALPHA)
    return one - other - math.hypot(one - low, other_high - other), one - other + math.hypot(high - one, other - other_low)


def gap_of_pairs(won: int, lost: int, total: int) -> Interval:
    """The interval of the difference of two shares on the same items.

    Bonett and Price, 2012, Adjusted Wald confidence interval for a difference of binomial proportions based on paired data, J. Educ.
    Behav. Stat. 37.

    Args:
        won: items that only the second hits.
        lost: items that only the first hits.
        total: all items.

    Returns:
        Lower and upper end of second minus first.
    """
    up, down, size = (won + 1) / (total + 2), (lost + 1) / (total + 2), total + 2
    spread = Z * math.sqrt((up + down - (up - down) ** 2) / size)
    return max(-1.0, up - down - spread), min(1.0, up - down + spread)


def more_often(first: int, first_total: int, second: int, second_total: int) -> float:
    """Fisher's exact p value, one-sided, that the first share is no larger than the second."""
    table = [[first, first_total - first], [second, second_total - second]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def auc(members: Sequence[float], others: Sequence[float]) -> tuple[float, Interval, float]:
    """How well a score tells members from others: the chance that a member's is the larger, ties counting half.

    The interval is Newcombe's (2006, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, Statist. Med. 25,
    method 5), which has a width at 0 and 1 too.

    Args:
        members: scores of rows that were trained on.
        others: scores of rows that were not.

    Returns:
        The area under the ROC curve, its interval, and the one-sided p value of Mann and Whitney's test that it is at most a half.
    """
    found = mannwhitneyu(members, others, alternative="greater")
    area = float(found.statistic) / (len(members) * len(others))
    low = _lower(area, len(members), len(others))
    return area, (low, 1 - _lower(1 - area, len(members), len(others))), float(found.pvalue)


def _lower(area: float, members: int, others: int) -> float:
    """The smallest true area that the seen one is not too far above of, by bisection."""
    size = (members + others) / 2 - 1
    low, high = 0.0, area
    for _ in range(60):
        middle = (low + high) / 2
        spread = middle * (1 - middle) * (1 + size * ((1 - middle) / (2 - middle) + middle / (1 + middle))) / (members * others)
        low, high = (middle, high) if area - middle > Z * math.sqrt(spread) else (low, middle)
    return low


def exposure(rank: int, alternatives: int) -> float:
    """Bits by which a planted secret is likelier than one drawn at random: log2 of the number of secrets less log2 of its rank.

    Carlini et al. 2019, The Secret Sharer, USENIX Security, section 4.2, the rank taken in a sample. A secret that was not learnt has any
    rank, and 1.44 bits on average.

    Args:
        rank: from 1, the likeliest.
        alternatives: the secrets that it is ranked among, without itself.

    Returns:
        From 0 to log2(alternatives + 1).
    """
    return math.log2(alternatives + 1) - math.log2(rank)


def ranks_by_chance(ranks: Sequence[int], alternatives: int) -> float:
    """The p value that secrets of which none was learnt have ranks as good as these: each rank's own by exchangeability, after Fisher."""
    return float(combine_pvalues([rank / (alternatives + 1) for rank in ranks], method="fisher").pvalue)
