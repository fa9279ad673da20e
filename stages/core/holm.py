"""Several tests, one chance of a false finding. In: p values. Out: corrected ones."""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: at level alpha those at most alpha are rejected, with at most that chance of any false one.

    Holm, 1979, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6.

    Args:
        p_values: of the tests.

    Returns:
        The corrected values, in order, none below its own and none above 1.
    """
    order = sorted(range(len(p_values)), key=lambda number: p_values[number])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected
