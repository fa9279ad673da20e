"""Names, addresses and other entities by a token-classification model of the user's. In: texts. Out: spans with kind and score.

A text longer than the model's window is read in windows that overlap, and of each token the window that sees more around it decides. The
pieces of a word decide together, by their mean probabilities; words of one entity follow one another and do not begin anew (B-, S-, U-).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stages.core.errors import UserError
from stages.core.redaction import PLACEHOLDER, Finding
from stages.local_models.folders import batches, inputs, loaded, pad_of, window_tokens, windows

if TYPE_CHECKING:
    from stages.core.params import Entities

KEY = "local_models.entities"
OVERLAP_SHARE = 4  # of a window, one in so many tokens is of the window before too
_TAG = re.compile(r"^([BIESLU])-(.+)$")  # IOB2, BIOES, BILOU


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """An entity of a text.

    Attributes:
        finding: its place and kind.
        score: the mean probability of its words, rounded to four digits.
    """

    finding: Finding
    score: float


@dataclass(frozen=True)
class Labels:
    """The labels of a model.

    Attributes:
        types: the distinct labels without the mark of their place.
        type_of: [labels] int64, the type of each label.
        begins: [labels] bool, whether a label begins a new entity.
        kinds: [types], the user's kind of each, or None.
    """

    types: tuple[str, ...]
    type_of: npt.NDArray[np.int64]
    begins: npt.NDArray[np.bool_]
    kinds: tuple[str | None, ...]


def read_labels(id2label: Mapping[int, str], kinds: Mapping[str, str]) -> Labels:
    """Takes a model's labels apart.

    Args:
        id2label: of its config.
        kinds: the user's, by type.

    Returns:
        The labels.

    Raises:
        UserError: the user names a type that the model does not have.
    """
    tags = [_TAG.match(id2label[number]) for number in range(len(id2label))]
    names = [tag[2] if tag else id2label[number] for number, tag in enumerate(tags)]
    types = tuple(sorted(set(names)))
    if unknown := sorted(set(kinds) - set(types)):
        raise UserError(f"{KEY}.labels names {unknown[0]}, which the model does not have; it has {', '.join(types)}")
    return Labels(
        types,
        np.array([types.index(name) for name in names], dtype=np.int64),
        np.array([tag is not None and tag[1] in "BSU" for tag in tags]),
        tuple(kinds.get(name) for name in types),
    )


class EntityModel:
    """A model that finds entities."""

    def __init__(self, params: "Entities", device: str) -> None:
        """Loads it.

        Args:
            params: the section `local_models.entities`.
            device: cpu or cuda.
        """
        self._model, self._tokenizer = loaded(KEY, params.folder, "AutoModelForTokenClassification", device)
        self._labels = read_labels({int(number): name for number, name in (self._model.config.id2label or {}).items()}, params.labels)
        self._tokens = window_tokens(self._model, self._tokenizer)
        self._overlap = self._tokens // OVERLAP_SHARE
        self._least = params.min_score
        self._device = device

    def find(self, texts: list[str]) -> list[list[Span]]:
        """The entities of each text, apart from one another and in order of place; a placeholder is none."""
        cut = windows(self._tokenizer, texts, self._tokens, self._overlap)
        flat = [window for its in cut for window in its]
        seen = iter(self._probabilities(flat))
        found = []
        for text, its in zip(texts, cut, strict=True):
            words = words_of(its, [next(seen) for _ in its], self._overlap)
            found.append(spans_of(text, words, self._labels, self._least))
        return found

    def _probabilities(self, encodings: list[Any]) -> list[npt.NDArray[np.float32]]:
        """Of each window [tokens, labels] float32."""
        import torch

        found: list[Any] = [np.zeros((0, len(self._labels.type_of)), dtype=np.float32)] * len(encodings)
        sizes = [len(encoding.ids) for encoding in encodings]
        for batch in batches(sizes):
            if sizes[batch[0]] == 0:
                continue
            given = inputs([encodings[number] for number in batch], pad_of(self._tokenizer), self._device)
            with torch.inference_mode():
                probabilities = self._model(**given).logits.float().softmax(-1).cpu().numpy()
            for place, number in enumerate(batch):
                found[number] = probabilities[place, : sizes[number]]
        return found


@dataclass(frozen=True, slots=True)
class Word:
    """A word: its place, the mean probabilities of its pieces, and those of its first piece, which alone tells whether it begins anew."""

    start: int
    end: int
    probabilities: npt.NDArray[np.float64]
    first: npt.NDArray[np.float32]


def spans_of(text: str, words: Iterable[Word], labels: Labels, least: float) -> list[Span]:
    """The entities that the words of a text make up.

    Args:
        text: the text.
        words: its words in order.
        labels: of the model.
        least: score of an entity at least.

    Returns:
        The entities of a kind that the user named; a word that touches a placeholder belongs to none.
    """
    hidden = [match.span() for match in PLACEHOLDER.finditer(text)]
    found: list[tuple[int, int, int, list[float]]] = []  # type, start, end, scores
    for word in words:
        if any(word.start < stop and word.end > first for first, stop in hidden):
            found.append((-1, word.start, word.end, [0.0]))
            continue
        by_type = np.bincount(labels.type_of, word.probabilities, minlength=len(labels.types))
        best = int(by_type.argmax())
        mine = np.flatnonzero(labels.type_of == best)
        score = float(by_type[best])
        if found and found[-1][0] == best and not labels.begins[mine[word.first[mine].argmax()]]:
            found[-1] = (best, found[-1][1], word.end, [*found[-1][3], score])
        else:
            found.append((best, word.start, word.end, [score]))
    spans = []
    for best, start, end, scores in found:
        kind, score = labels.kinds[best] if best >= 0 else None, round(float(np.mean(scores)), 4)
        if kind is not None and score >= least:
            said = text[start:end]  # some tokenizers count the space before a word to it
            spans.append(Span(Finding(start + len(said) - len(said.lstrip()), start + len(said.rstrip()), kind), score))
    return spans


def words_of(encodings: list[Any], seen: list[npt.NDArray[np.float32]], overlap: int) -> Iterator[Word]:
    """The words of a text from its windows; of tokens that two windows have, the first half is the earlier's, the rest the later's."""
    pieces: dict[Any, list[tuple[int, int, npt.NDArray[np.float32]]]] = {}
    for number, (encoding, probabilities) in enumerate(zip(encodings, seen, strict=True)):
        content = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        first = overlap // 2 if number else 0
        stop = len(content) - (overlap - overlap // 2) if number + 1 < len(encodings) else len(content)
        for place in content[first:stop]:
            start, end = encoding.offsets[place]
            word = encoding.word_ids[place]
            pieces.setdefault((start, end) if word is None else word, []).append((start, end, probabilities[place]))
    for parts in pieces.values():
        filled = [part for part in parts if part[0] < part[1]]
        if filled:
            yield Word(filled[0][0], filled[-1][1], np.mean([part[2] for part in parts], axis=0, dtype=np.float64), parts[0][2])
