"""Does this answer belong to this prompt? A classifier of true against shuffled pairs, asked about rows it has not seen.

In: rows without a label. Out: for each the odds that a random answer would look as this one does, and how well that can be told at all.
Needs no label and no language model: what prompt and answer share in words, and how their topics go together, learnt from the rows.
"""

import pickle
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.records import Row
from stages.label_check.classifier import TOKEN, deal, sample
from stages.label_check.neighbours import Projection
from stages.label_check.table import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEARNT_ROWS = 20_000  # the most pairs that are learnt from
MIN_ROWS = 200  # fewer cannot show what belongs together
SHUFFLES = 3  # wrong answers shown for each right one
RIDGE = 1.0  # of the map from prompts' topics to answers'
STRENGTH = 1.0  # inverse of the regularisation
WORDS = 50_000


@dataclass
class Fit:
    """How well answers fit their prompts.

    Attributes:
        odds: [rows] float64, how many times as probable a random answer is as a true one, at equal numbers of both; NaN where not asked.
        auc: share of held-out (true, shuffled) pairs that are told apart.
        learnt: how many rows were learnt from.
    """

    odds: "npt.NDArray[np.float64]"
    auc: float
    learnt: int


@dataclass
class PairModel:
    """What is learnt: the words both sides share, topics of prompts and of answers, and for each fold a map and a classifier.

    Attributes:
        vectorizer: a fitted TfidfVectorizer of both sides.
        prompts: the topics of prompts.
        answers: the topics of answers.
        folds: of each fold the map [topics, topics] float64, and the classifier of the other folds.
    """

    vectorizer: Any
    prompts: Projection
    answers: Projection
    folds: list[tuple[Any, Any]]


@dataclass
class Sides:
    """Prompts or answers as numbers: sparse TF-IDF, topics [rows, topics], words in each [rows]."""

    words: Any
    topics: "npt.NDArray[np.float32]"
    lengths: "npt.NDArray[np.float64]"

    def at(self, rows: Any) -> "Sides":
        """Some of them, in the order asked for."""
        return Sides(self.words[rows], self.topics[rows], self.lengths[rows])


def fit_of_answers(table: Table, numbers: "npt.NDArray[np.int64]", folds: int, seed: int, place: Path) -> Fit:
    """Judges every row by classifiers that have seen neither it nor its near-duplicates.

    Args:
        table: all rows.
        numbers: [chosen] int64, the rows without a label, ascending; at least MIN_ROWS.
        folds: of the cross-validation.
        seed: of shuffles, folds and sample.
        place: a folder for what other processes read.

    Returns:
        The odds for each row of the table.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    alike = np.zeros(len(numbers), dtype=np.int64)
    fold = np.full(len(table.ids), -1, dtype=np.int64)
    fold[numbers] = deal([table.parts[i] for i in numbers], alike, folds, f"{seed} pairs")
    learnt = numbers[sample([table.ids[i] for i in numbers], alike, LEARNT_ROWS, f"{seed} pairs learn")]
    chosen = np.zeros(len(table.ids), dtype=bool)
    chosen[learnt] = True
    texts = [pair for block in table.over(_pairs, [chosen]) for pair in block]
    chance = np.random.default_rng(seed)
    with threadpool_limits(1):
        model, true, shuffled = _learn(texts, fold[learnt], folds, chance)
    file = place / "pairs.pickle"
    with file.open("wb") as handle:
        pickle.dump(model, handle)
    odds = np.concatenate(list(table.over(partial(_judge_block, file), [fold])))
    auc = roc_auc_score(np.repeat([1, 0], len(true)), np.concatenate([true, shuffled]))
    return Fit(odds, float(auc), len(learnt))


def _pairs(rows: list[Row], chosen: "npt.NDArray[np.bool_]") -> list[tuple[str, str]]:
    return [(row.text, row.answer) for row, wanted in zip(rows, chosen, strict=True) if wanted]


def _learn(
    texts: list[tuple[str, str]], fold: "npt.NDArray[np.int64]", folds: int, chance: "np.random.Generator"
) -> "tuple[PairModel, npt.NDArray[np.float64], npt.NDArray[np.float64]]":
    """The model, and the held-out scores of the true pairs and of as many shuffled ones."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=TOKEN, dtype=np.float32, max_features=WORDS)
    vectorizer.fit(f"{prompt}\n{answer}" for prompt, answer in texts)
    seed = int(chance.integers(2**31))
    model = PairModel(vectorizer, Projection([p for p, _ in texts], seed), Projection([a for _, a in texts], seed), [])
    prompts, answers = _sides(model, texts)
    true, shuffled = np.zeros(len(texts)), np.zeros(len(texts))
    for number in range(folds):
        train, held_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        p, a = prompts.topics[train].astype(np.float64), answers.topics[train].astype(np.float64)
        mapped = np.linalg.solve(p.T @ p + RIDGE * np.eye(p.shape[1]), p.T @ a)
        wrong = np.concatenate([_others(len(train), chance) for _ in range(SHUFFLES)])
        asked, given = np.tile(train, SHUFFLES + 1), np.concatenate([train, train[wrong]])
        seen = _features(prompts.at(asked), answers.at(given), mapped)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000))
        classifier.fit(seen, np.arange(len(asked)) < len(train))
        model.folds.append((mapped, classifier))
        if len(held_out):
            other = held_out[_others(len(held_out), chance)]
            true[held_out] = classifier.decision_function(_features(prompts.at(held_out), answers.at(held_out), mapped))
            shuffled[held_out] = classifier.decision_function(_features(prompts.at(held_out), answers.at(other), mapped))
    return model, true, shuffled


def _others(count: int, chance: "np.random.Generator") -> "npt.NDArray[np.int64]":
    """For each of `count` places another place: along one random circle through all of them."""
    import numpy as np

    circle = chance.permutation(count)
    others = np.empty(count, dtype=np.int64)
    others[circle] = np.roll(circle, 1)
    return others


def _sides(model: PairModel, texts: list[tuple[str, str]]) -> tuple[Sides, Sides]:
    """Prompts and answers as numbers."""
    import numpy as np

    found = []
    for side, projection in ((0, model.prompts), (1, model.answers)):
        said = [pair[side] for pair in texts]
        lengths = np.array([len(text.split()) for text in said], dtype=np.float64)
        found.append(Sides(model.vectorizer.transform(said), projection(said), lengths))
    return found[0], found[1]


def _features(prompts: Sides, answers: Sides, mapped: Any) -> "npt.NDArray[np.float64]":
    """What a classifier sees of pairs: shared words, lengths, and the answer's topics beside those the prompt makes one expect."""
    import numpy as np

    shared = np.asarray(prompts.words.multiply(answers.words).sum(axis=1)).ravel()
    common = np.asarray(prompts.words.sign().multiply(answers.words.sign()).sum(axis=1)).ravel()
    ask, say = np.log1p(prompts.lengths), np.log1p(answers.lengths)
    expected = prompts.topics @ mapped
    fit = expected * answers.topics
    cosine = fit.sum(axis=1) / (np.linalg.norm(expected, axis=1) + 1e-9)
    alone = [shared, common / (answers.lengths + 1), common / (prompts.lengths + 1), np.log1p(common), ask, say, ask * say, say**2, cosine]
    return np.column_stack([*alone, fit])


@lru_cache(1)
def _model(file: Path) -> PairModel:
    """The model, read once a process."""
    with file.open("rb") as handle:
        found: PairModel = pickle.load(handle)  # our own, of a moment ago
    return found


def _judge_block(file: Path, rows: list[Row], fold: "npt.NDArray[np.int64]") -> "npt.NDArray[np.float64]":
    """The odds of each row of a block."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    odds = np.full(len(rows), np.nan)
    asked = np.flatnonzero(fold >= 0)
    if len(asked):
        model = _model(file)
        with threadpool_limits(1):
            prompts, answers = _sides(model, [(rows[i].text, rows[i].answer) for i in asked])
            for number, (mapped, classifier) in enumerate(model.folds):
                mine = np.flatnonzero(fold[asked] == number)
                if len(mine):
                    score = classifier.decision_function(_features(prompts.at(mine), answers.at(mine), mapped))
                    odds[asked[mine]] = np.exp(-np.clip(score, -50.0, 50.0))
    return odds
