"""Where to look for the vectors near a vector, in time nearly linear in their number. In: unit vectors. Out: groups and candidates.

Vectors are clustered in cells, and one is compared with those of its own and the nearest cells alone (an inverted file; Jégou et al. 2011).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

EXACT_ROWS = 5_000  # up to so many, every row is compared with every other
CELL_ROWS = 500
PROBES = 8  # cells that are searched for a row, its own among them


def cells(vectors: "npt.NDArray[np.float32]", neighbours: int, seed: int) -> "list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]":
    """Groups of rows, and for each the rows among which their neighbours are looked for.

    Args:
        vectors: [rows, dimensions] float32, of length one.
        neighbours: how many others each row must find at least, fewer than there are rows.
        seed: of the cells.

    Returns:
        Of each group its rows and their candidates, themselves among them, both [rows] int64 and ascending; a row is in one group.
    """
    import numpy as np
    from sklearn.cluster import MiniBatchKMeans

    everything = np.arange(len(vectors))
    if len(vectors) <= EXACT_ROWS:
        return [(everything[start : start + CELL_ROWS], everything) for start in range(0, len(vectors), CELL_ROWS)]
    means = MiniBatchKMeans(
        len(vectors) // CELL_ROWS, random_state=seed, n_init=1, batch_size=4096, max_iter=20, init="random", reassignment_ratio=0.0
    ).fit(vectors)
    cell = means.predict(vectors)
    centres = means.cluster_centers_
    apart = (centres**2).sum(axis=1)[None, :] - 2.0 * centres @ centres.T
    members = [everything[cell == number] for number in range(len(centres))]
    found = []
    for number, mine in enumerate(members):
        near = np.argsort(apart[number], kind="stable")
        taken = list(near[:PROBES])
        for other in near[PROBES:]:  # cells may be small: there must be enough rows to choose from
            if sum(len(members[place]) for place in taken) > neighbours:
                break
            taken.append(other)
        candidates = np.sort(np.concatenate([members[place] for place in taken]))
        # a large cell is worked off in pieces, so that its table of likenesses stays small
        found += [(mine[start : start + CELL_ROWS], candidates) for start in range(0, len(mine), CELL_ROWS)]
    return found
