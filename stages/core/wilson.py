"""How sure a share is. In: a share and how many were tried. Out: its interval."""

import math
from statistics import NormalDist


def wilson(share: float, items: int, alpha: float) -> tuple[float, float]:
    """The score interval of a share (Wilson, 1927, Probable inference, the law of succession, and statistical inference, JASA 22).

    Args:
        share: of successes.
        items: how many were tried, at least one.
        alpha: the interval covers 1 - alpha.

    Returns:
        Lower and upper end.
    """
    z = NormalDist().inv_cdf(1 - alpha / 2)
    middle = share + z * z / (2 * items)
    spread = z * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
