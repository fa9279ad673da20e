"""First-fit packing. In: lengths, a limit. Out: which of them share a bin. No torch."""

from collections.abc import Sequence


def first_fit(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Puts each item into the first bin with room (Johnson 1973: sorted longest first, at most 22 % more bins than needed).

    Args:
        lengths: of the items, in the order in which they are put.
        limit: of a bin; an item above it gets one of its own.

    Returns:
        The places of the items in `lengths`, bin by bin.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for place, length in enumerate(lengths):
        chosen = next((number for number, free in enumerate(room) if free >= length), None)
        if chosen is None:
            chosen = len(bins)
            bins.append([])
            room.append(limit)
        bins[chosen].append(place)
        room[chosen] -= length
    return bins
