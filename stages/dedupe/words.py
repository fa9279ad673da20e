"""Texts as the sequences of words that dedupe compares: case, layout and punctuation gone, arithmetic kept.

In: a text. Out: its words, and 64-bit hashes of runs of them.
"""

import re
import unicodedata

from xxhash import xxh3_64_intdigest

# scripts without spaces (Thai, Lao, Burmese, Khmer, kana, Han): a character is a word
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
# C++, C# and GPL-2+ keep their signs, and an operator between two operands is a word, or 3 - 4 and 3 * 4 were one text; a hyphen or a
# slash counts between digits only
_WORD = re.compile(
    rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|(?<=\w)[+#]+|(?<=\w)[*=<>%^](?=\w)|(?<=\w )[+*=<>%^](?= \w)|(?<=\d)[-/](?=\d)|(?<=\d )[-/](?= \d)"
)


def words(text: str) -> list[str]:
    """The words of a text in NFKC and case-folded; the stripped text itself where it has none, so that `?` and `!` differ."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(text) or [text.strip()]


def normalised(text: str) -> str:
    """The words of a text joined by single spaces: equal for texts that differ in case, layout and punctuation only."""
    return " ".join(words(text))


def run_hashes(sequence: list[str], length: int) -> list[int]:
    """The hash of each run of `length` words, in order; of the whole sequence where it is shorter.

    Args:
        sequence: words.
        length: of a run, in words.

    Returns:
        max(1, len(sequence) - length + 1) integers below 2^64.
    """
    return [xxh3_64_intdigest(" ".join(sequence[start : start + length]).encode()) for start in range(max(1, len(sequence) - length + 1))]
