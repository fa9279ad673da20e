"""A seeded sample that depends on what each item is and not on its neighbours."""

import hashlib
import heapq
from collections.abc import Iterable


def seeded_sample(ids: Iterable[str], count: int | None, seed: int) -> set[str]:
    """The ids of a sample without replacement: those with the smallest sha256 of seed and id.

    Only the sample is held. An item that is added or removed changes the sample by at most one other item, and neither order nor
    duplicates matter.

    Args:
        ids: of the items to choose from.
        count: how many to take, all where there are no more; None takes all.
        seed: another seed, another sample.

    Returns:
        The ids taken.
    """
    if count is None:
        return set(ids)
    smallest: list[tuple[int, str]] = []  # a heap of the ids taken so far, the one with the largest sha256 first
    taken: set[str] = set()
    for id in ids:
        key = -int.from_bytes(hashlib.sha256(f"{seed}:{id}".encode()).digest())
        if id in taken or (len(smallest) == count and (not count or key < smallest[0][0])):
            continue
        taken.add(id)
        if len(smallest) < count:
            heapq.heappush(smallest, (key, id))
        else:
            taken.discard(heapq.heapreplace(smallest, (key, id))[1])
    return taken
