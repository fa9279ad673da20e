"""Two models on the same items. In: how many each alone got right. Out: a p value."""

from scipy.stats import binomtest


def mcnemar(won: int, lost: int) -> float:
    """McNemar's exact two-sided test: the items on which the models differ are a fair coin's tosses if the models are equal."""
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
