"""Rows that contain an item of the general suite: training on them would teach the exam.

In: data/general/*.jsonl and rows. Out: for each row the longest run of words it shares with an item, if it is long enough. The longest
match, and not the union of matches, is what predicts a gain on the item (Singh et al. 2024, arXiv 2411.03923); a paraphrase escapes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.core.records import Row
from stages.dedupe.words import run_hashes, words

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
        self._ngram = ngram
        self._runs: dict[int, tuple[str, str]] = {}
        self._whole: dict[str, tuple[str, str]] = {}
        self.items: dict[str, int] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    item = json.loads(text)
                    task, number, texts = str(item["task"]), str(item["id"]), _texts(item)
                except (ValueError, KeyError, TypeError):
                    remedy = "make it again: dvc repro -f -s fetch_general"
                    raise UserError(
                        f"{path}, line {line} is no item with id, task, context and choices or continuation; {remedy}"
                    ) from None
                self.items[task] = self.items.get(task, 0) + 1
                for sequence in map(words, texts):
                    self._add(sequence, (task, number))

    def _add(self, sequence: list[str], name: tuple[str, str]) -> None:
        if len(sequence) >= self._ngram:
            for run in run_hashes(sequence, self._ngram):
                self._runs.setdefault(run, name)
        for whole in (sequence, _unframed(sequence)):
            if len(whole) >= MIN_EXACT_WORDS:
                self._whole.setdefault(" ".join(whole), name)

    def find(self, row: Row) -> Contamination | None:
        """The longest run of a row's words that an item has too, or an item that is a whole message of it.

        Args:
            row: any row.

        Returns:
            The match, or None.
        """
        texts = [message["content"] for message in (*row.messages, *(row.chosen or ()), *(row.rejected or ()))]
        # a label is no text: with the last words of a notice it could make a run by chance
        texts = [*texts, f"{row.text}\n{row.answer}"] if row.label is None else [row.text]
        best: Contamination | None = None
        for text in texts:
            sequence = words(text)
            match = self._longest(sequence)
            if match and (best is None or match.words > best.words):
                best = match
        return best

    def _longest(self, sequence: list[str]) -> Contamination | None:
        if name := self._whole.get(" ".join(sequence)):
            return Contamination(*name, len(sequence))
        if len(sequence) < self._ngram:
            return None
        best, start = None, None
        hashes = run_hashes(sequence, self._ngram)
        for place in range(len(hashes) + 1):
            inside = place < len(hashes) and hashes[place] in self._runs
            if inside and start is None:
                start = place
            elif not inside and start is not None:
                length = place - start + self._ngram - 1
                if best is None or length > best.words:
                    best = Contamination(*self._runs[hashes[start]], length)
                start = None
        return best


def _texts(item: dict[str, Any]) -> list[str]:
    """The texts of an item: its context alone, and with each choice or the continuation."""
    context = str(item["context"])
    return [context, *(f"{context} {ending}" for ending in (item["choices"] if "choices" in item else [item["continuation"]]))]


def _unframed(sequence: list[str]) -> list[str]:
    """A context without the words that the task's prompt puts before and after it."""
    start = int(sequence[0] in _FRAME)
    end = len(sequence) - int(sequence[-1] in _FRAME)
    return sequence[start:end]
