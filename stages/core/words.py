"""Texts as the sequences of words that are compared for likeness: case, layout and punctuation gone, arithmetic kept.

In: texts. Out: their words, and 64-bit hashes of words and of runs of words, for many texts at once.
"""

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

Hashes = npt.NDArray[np.uint64]
Lengths = npt.NDArray[np.int64]

# scripts without spaces (Thai, Lao, Burmese, Khmer, kana, Han): a character is a word
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
# C++, C# and GPL-2+ keep their signs, and an operator between two operands is a word, or 3 - 4 and 3 * 4 were one text; a hyphen or a
# slash counts between digits only
_SIGNS = r"(?<=\w)[+#]+|(?<=\w)[*=<>%^](?=\w)|(?<=\w )[+*=<>%^](?= \w)|(?<=\d)[-/](?=\d)|(?<=\d )[-/](?= \d)"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|{_SIGNS}")
_ASCII_WORD = re.compile(rf"\w+|{_SIGNS}", re.ASCII)  # the same words of a text in ASCII, a third faster

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd (Knuth, The Art of Computer Programming, 6.4)
_SHIFT = np.uint64(29)
_MEMORY = 500_000  # hashes of words kept; a text's words are mostly words seen before


def found_words(text: str) -> list[str]:
    """The words of a text in NFKC and case-folded; none where it has only signs."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def words(text: str) -> list[str]:
    """The words of a text; the stripped text itself where it has none, so that `?` and `!` differ."""
    return found_words(text) or [unicodedata.normalize("NFKC", text).casefold().strip()]


def normalised(text: str) -> str:
    """The words of a text joined by single spaces: equal for texts that differ in case, layout and punctuation only."""
    return " ".join(words(text))


class _Memory(dict[str, int]):
    """The hash of a word, computed once."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MEMORY:
            self.clear()
        value = self[word] = xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return value


_hash_of = _Memory()


def word_hashes(sequences: Iterable[list[str]]) -> tuple[Hashes, Lengths]:
    """The hash of each word of many sequences.

    Args:
        sequences: words.

    Returns:
        [words] uint64, the sequences end to end, and [sequences] int64, how many words each has.
    """
    flat: list[int] = []
    lengths: list[int] = []
    for sequence in sequences:
        flat.extend(map(_hash_of.__getitem__, sequence))
        lengths.append(len(sequence))
    return np.array(flat, dtype=np.uint64), np.array(lengths, dtype=np.int64)


def run_hashes(flat: Hashes, lengths: Lengths, length: int) -> tuple[Hashes, Lengths]:
    """The hash of each run of `length` words, in order; of the whole sequence where it is shorter.

    Args:
        flat: [words] uint64, as `word_hashes` gives them.
        lengths: [sequences] int64, each at least 1.
        length: of a run, in words.

    Returns:
        [runs] uint64, and [sequences] int64, how many runs each sequence has: max(1, words - length + 1).
    """
    counts = np.maximum(lengths - length + 1, 1)
    ends = np.cumsum(lengths)
    first = spread(ends - lengths, counts)
    present = np.repeat(np.minimum(lengths, length), counts)  # words in a run
    mixed = np.zeros(len(first), dtype=np.uint64)
    shortest = int(present.min(initial=length))
    for place in range(length):
        if place < shortest:
            mixed = _mixed(mixed, flat[first + place])
        else:
            inside = np.flatnonzero(present > place)
            mixed[inside] = _mixed(mixed[inside], flat[first[inside] + place])
    return mixed, counts


def spread(starts: Lengths, counts: Lengths) -> Lengths:
    """The indices start, start + 1, … start + count - 1 of each start and count, end to end, as [counts.sum()] int64."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum(), dtype=np.int64)


def _mixed(state: Hashes, values: Hashes) -> Hashes:
    """One more value mixed into each hash; the order of the values counts."""
    state = (state ^ values) * _MULTIPLIER
    return state ^ (state >> _SHIFT)
