"""MinHash: what of a set of shingles tells how alike it is to another, and the buckets in which like sets meet.

In: the shingles of many rows, 32-bit hashes end to end. Out: signatures (Broder, On the resemblance and containment of documents, 1997),
and a hash of each band of them.
"""

import numpy as np
import numpy.typing as npt

from stages.core.words import Lengths

Shingles = npt.NDArray[np.uint32]
Bands = npt.NDArray[np.uint32]

PERMUTATIONS = 128  # the standard error of a similarity estimated from them is 0.035 at 0.8; the exact one decides
RECALL = 0.99  # of banding alone, for a pair exactly at the threshold (Leskovec et al., Mining of Massive Datasets, 3.4)
CHUNK_ROWS = 2_000  # whose shingles stay in a core's cache while all permutations pass over them


def rows_per_band(threshold: float) -> int:
    """The most MinHash rows a band may have for a pair at the threshold to share a band with probability RECALL."""
    return max(
        [1, *(r for r in range(1, PERMUTATIONS + 1) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL)],
    )


def signatures(shingles: Shingles, counts: Lengths, seed: int) -> npt.NDArray[np.uint32]:
    """The MinHash signature of each row.

    Args:
        shingles: [shingles] uint32, rows end to end; one that comes twice in a row counts once.
        counts: [rows] int64, how many each row has, at least 1.
        seed: of the permutations, which are multiplications by an odd number, an addition and a shift, modulo 2^32.

    Returns:
        [rows, PERMUTATIONS] uint32.
    """
    rng = np.random.default_rng(seed)
    factors = rng.integers(0, 2**31, size=PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    terms = rng.integers(0, 2**32, size=PERMUTATIONS, dtype=np.uint32)
    found = np.empty((len(counts), PERMUTATIONS), dtype=np.uint32)
    ends = np.cumsum(counts)
    for start in range(0, len(counts), CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, len(counts))
        first = ends[start] - counts[start]
        chunk, offsets = shingles[first : ends[stop - 1]], ends[start:stop] - counts[start:stop] - first
        for number in range(PERMUTATIONS):
            found[start:stop, number] = np.minimum.reduceat(chunk * factors[number] + terms[number], offsets)
    return found


def band_hashes(signature: npt.NDArray[np.uint32], depth: int) -> Bands:
    """One hash of every `depth` columns of a signature; a collision costs one comparison.

    Args:
        signature: [rows, PERMUTATIONS] uint32.
        depth: columns of a band.

    Returns:
        [rows, PERMUTATIONS // depth] uint32.
    """
    bands = signature.shape[1] // depth
    columns = signature[:, : bands * depth].reshape(len(signature), bands, depth)
    mixed = np.zeros((len(signature), bands), dtype=np.uint32)
    for place in range(depth):
        mixed = (mixed ^ columns[:, :, place]) * np.uint32(0x9E3779B1)  # 2^32 over the golden ratio, prime
        mixed ^= mixed >> np.uint32(15)
    return mixed
