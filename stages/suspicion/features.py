"""What a prompt is made of, hashed: words, runs of 2, 3 and 5 words, three characters in a row, and each character beyond ASCII.

In: texts. Out: the distinct (feature, row) pairs as arrays; a feature is a 64-bit hash whose last three bits tell its kind. All of it is
array arithmetic over the characters of many texts at once, since a million rows have a billion features.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int32]

KINDS = ("word", "2 words", "3 words", "5 words", "3 characters", "character")
_RUNS = {1: 0, 2: 1, 3: 2, 5: 3}  # words of a run, the kind's number
BLOCK_CHARACTERS = 4_000_000  # held at a time, with some 60 bytes each
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_KIND_BITS = np.uint64(7)
_NOTHING = 32  # a space: what stands between texts


def pairs(texts: Sequence[str], runs: tuple[int, ...] = (1, 2, 3, 5), characters: bool = True, least: int = 1) -> tuple[Hashes, Numbers]:
    """The features of many texts.

    Args:
        texts: any; letters are compared in lower case.
        runs: how many words in a row are a feature: some of 1, 2, 3 and 5.
        characters: whether characters are features too.
        least: features with fewer places are left out, most of them; sorting the rare ones would take most of the time.

    Returns:
        `features` and `rows`, [pairs] uint64 and int32, distinct pairs in order of feature and row.
    """
    found = [(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32))]
    for start, end in _blocks(texts):
        found += [(features, rows + np.int32(start)) for features, rows, _ in _hashed(texts[start:end], runs, characters)]
    features, rows = (np.concatenate([part[place] for part in found]) for place in (0, 1))
    del found
    if least > 1:
        buckets = features >> np.uint64(40)
        often = np.bincount(buckets, minlength=1 << 24)[buckets] >= least
        features, rows = features[often], rows[often]
    order = np.argsort(features, kind="stable")  # a feature's rows come in order, block by block
    features, rows = features[order], rows[order]
    new = np.ones(len(features), dtype=bool)
    new[1:] = (features[1:] != features[:-1]) | (rows[1:] != rows[:-1])
    return features[new], rows[new]


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where runs of texts with about BLOCK_CHARACTERS start and end."""
    block = np.cumsum([len(text) for text in texts]) // BLOCK_CHARACTERS
    yield from pairwise([0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(texts)] if len(texts) else [0])


def spelled(text: str, wanted: set[int]) -> dict[int, str]:
    """What stands in a text for features of it.

    Args:
        text: holds the features.
        wanted: their hashes.

    Returns:
        The text of each feature found, in lower case.
    """
    lower = text.lower()
    found: dict[int, str] = {}
    for features, _, spans in _hashed([text], tuple(_RUNS), True):
        for feature, (start, end) in zip(features.tolist(), spans.tolist(), strict=True):
            if feature in wanted:
                found.setdefault(feature, lower[start:end])
    return found


def _hashed(texts: Sequence[str], runs: tuple[int, ...], characters: bool) -> Iterator[tuple[Hashes, Numbers, npt.NDArray[np.int64]]]:
    """For each kind every occurrence: its hash, its row, and where it starts and ends in the joined texts."""
    lower = [text.lower() for text in texts]
    lengths = np.array([len(text) + 1 for text in lower], dtype=np.int64)
    codes = np.frombuffer((" ".join(lower) + " ").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    row_of = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
    boundary = np.zeros(len(codes), dtype=bool)
    boundary[np.cumsum(lengths) - 1] = True  # the space after each text

    letters = _is_word(codes)
    change = np.flatnonzero(np.diff(np.concatenate([[False], letters, [False]]).astype(np.int8)))
    starts, ends = change[0::2], change[1::2]
    hashes = _run_hashes(codes, starts, ends)
    rows = row_of[starts]
    for words in runs:
        count = len(hashes) - words + 1
        if count <= 0:
            continue
        mixed = np.zeros(count, dtype=np.uint64)
        for place in range(words):
            mixed = _mix(mixed + hashes[place : place + count])
        within = rows[:count] == rows[words - 1 :]
        spans = np.stack([starts[:count], ends[words - 1 :]], axis=1)[within]
        yield _marked(mixed[within], _RUNS[words]), rows[:count][within], spans

    if not characters:
        return
    if len(codes) > 3:
        three = (codes[:-2].astype(np.uint64) << np.uint64(42)) | (codes[1:-1].astype(np.uint64) << np.uint64(21)) | codes[2:]
        inside = letters[:-2] & letters[1:-1] & letters[2:]
        at = np.flatnonzero(inside)
        yield _marked(_mix(three[at]), 4), row_of[at], np.stack([at, at + 3], axis=1)
    at = np.flatnonzero(codes > 127)
    yield _marked(_mix(codes[at].astype(np.uint64)), 5), row_of[at], np.stack([at, at + 1], axis=1)


def _is_word(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Which characters belong to words: letters, digits and the underscore."""
    seen = np.flatnonzero(np.bincount(codes, minlength=1))
    table = np.zeros(int(seen[-1]) + 1, dtype=bool)
    table[[code for code in seen.tolist() if chr(code).isalnum() or code == 95]] = True
    return table[codes]


def _run_hashes(codes: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Hashes:
    """A hash of each run of characters, by prefix sums of code * BASE^place; equal runs give equal hashes wherever they stand."""
    powers = np.full(len(codes) + 1, _BASE, dtype=np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)
    inverses = np.full(len(codes) + 1, pow(int(_BASE), -1, 2**64), dtype=np.uint64)
    inverses[0] = 1
    inverses = np.multiply.accumulate(inverses)
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(_mix(codes.astype(np.uint64) + np.uint64(1)) * powers[:-1], out=sums[1:])
    return _mix((sums[ends] - sums[starts]) * inverses[starts])


def _mix(values: Hashes) -> Hashes:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _marked(hashes: Hashes, kind: int) -> Hashes:
    """The hashes with the kind in their last bits."""
    return (hashes & ~_KIND_BITS) | np.uint64(kind)
