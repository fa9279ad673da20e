"""Rows that contain an item of the general suite: training on them would teach the exam.

In: data/general/*.jsonl and rows. Out: for each row the longest run of words it shares with an item, if it is long enough. The longest
match, and not the union of matches, is what predicts a gain on the item (Singh et al. 2024, arXiv 2411.03923); a paraphrase escapes.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stages.core.overlap import RunIndex, evaluation_items

MIN_EXACT_WORDS = 4  # an item shorter than a run counts when it is a whole message of a row; shorter ones are anyone's words
_FRAME = {"question", "answer"}  # what lm-eval's prompts put around a question


@dataclass(frozen=True)
class Contamination:
    """What a row shares with an item.

    Attributes:
        task: the item's task.
        item: its id there.
        words: the length of the longest shared run.
    """

    task: str
    item: str
    words: int


class EvaluationIndex:
    """The word runs of all items, their whole texts, and how many items each task has."""

    def __init__(self, folder: Path, ngram: int) -> None:
        """Reads every TASK.jsonl of `folder` in order of name; a run of `ngram` words counts, and the first item that has it is named."""
        self._names: list[tuple[str, str]] = []
        self._whole: dict[str, int] = {}
        self.items: dict[str, int] = {}
        sequences: list[list[str]] = []
        owners: list[int] = []
        for owner, (task, name, texts) in enumerate(evaluation_items(folder)):
            self._names.append((task, name))
            self.items[task] = self.items.get(task, 0) + 1
            sequences += texts
            owners += [owner] * len(texts)
            for whole in (one for text in texts for one in (text, _unframed(text))):
                if len(whole) >= MIN_EXACT_WORDS:
                    self._whole.setdefault(" ".join(whole), owner)
        self._runs = RunIndex(sequences, owners, ngram)

    def find(self, rows: list[list[list[str]]]) -> dict[int, Contamination]:
        """The longest run of each row's words that an item has too, or an item that is a whole text of it.

        Args:
            rows: the words of the texts of each row that may hold an item.

        Returns:
            The match of each row that has one, by its place in `rows`.
        """
        found: dict[int, Contamination] = {}
        long, numbers = [], []
        for number, texts in enumerate(rows):
            for sequence in texts:
                owner = self._whole.get(" ".join(sequence))
                if owner is not None:
                    _longer(found, number, Contamination(*self._names[owner], len(sequence)))
                elif len(sequence) >= self._runs.length:
                    long.append(sequence)
                    numbers.append(number)
        for place, (owner, length) in self._runs.longest(long).items():
            task, item = self._names[owner]
            _longer(found, numbers[place], Contamination(task, item, length))
        return found


@cache
def evaluation_index(folder: Path, ngram: int) -> EvaluationIndex:
    """The index of an absolute path, read once a process."""
    return EvaluationIndex(folder, ngram)


def _longer(found: dict[int, Contamination], number: int, match: Contamination) -> None:
    if number not in found or match.words > found[number].words:
        found[number] = match


def _unframed(sequence: list[str]) -> list[str]:
    """A context without the words that the task's prompt puts before and after it."""
    start = int(sequence[0] in _FRAME)
    end = len(sequence) - int(sequence[-1] in _FRAME)
    return sequence[start:end]
