"""A seeded sample that depends on what each item is and not on its neighbours."""

import hashlib
from collections.abc import Iterable


def seeded_sample(ids: Iterable[str], count: int | None, seed: int) -> set[str]:
    """The ids of a sample without replacement: those with the smallest sha256 of seed and id.

    An item that is added or removed changes the sample by at most one other item, and neither order nor duplicates matter.

    Args:
        ids: of the items to choose from.
        count: how many to take, all where there are no more; None takes all.
        seed: another seed, another sample.

    Returns:
        The ids taken.
    """
    distinct = set(ids)
    if count is None or len(distinct) <= count:
        return distinct
    return set(sorted(distinct, key=lambda id: hashlib.sha256(f"{seed}:{id}".encode()).digest())[:count])
