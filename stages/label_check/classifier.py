"""How probable each row's label is to a classifier that has seen neither the row nor its near-duplicates.

In: rows with labels and the component of each. Out: for each row the probability of its own label, the best other one and its label.
It learns from a seeded sample that keeps rare labels, and judges all rows, block by block.
"""

import pickle
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

from stages.core.records import Row
from stages.label_check.table import Table, codes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# a word, a character of a script without spaces, or a sign beyond ASCII (an emoji can be all there is to a text)
TOKEN = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s\x00-\u2000]"
LEARNT_ROWS = 20_000  # the most rows a classifier learns from; more change the default domain's accuracy by less than a point
REPEATS = 3  # times that rows are dealt to folds anew, probabilities averaged: what hangs on one deal is no suspicion
STRENGTH = 10.0  # inverse of the regularisation; chosen on planted errors (docs/labels.md)
WEIGHTS = 40_000_000  # the most numbers all classifiers of one deal may hold, 160 MB
FLOOR = 1e-6  # a probability that a finite sample cannot tell from none
TEMPERATURES = [1.05**step for step in range(-40, 41)]  # 0.14 to 7


@dataclass
class Judged:
    """What the classifiers think of the rows they were asked about.

    Attributes:
        own: [rows] float64, the probability of the row's own label; NaN where it was not judged.
        other: [rows] float64, the highest probability of another label.
        suggested: [rows] int64, that label's number.
        probabilities: [sampled, labels] float32, all labels' probabilities of the rows for which they were asked.
        learnt: how many rows the classifiers learnt from.
        repeats: how many deals were averaged.
    """

    own: "npt.NDArray[np.float64]"
    other: "npt.NDArray[np.float64]"
    suggested: "npt.NDArray[np.int64]"
    probabilities: "npt.NDArray[np.float32]"
    learnt: int
    repeats: int

    @property
    def odds(self) -> "npt.NDArray[np.float64]":
        """How many times as probable as its own label the best other label is; NaN where a row was not judged."""
        return (self.other + FLOOR) / (self.own + FLOOR)


@dataclass
class Classifiers:
    """One vocabulary, and for each deal and fold the weights learnt from the other folds.

    Attributes:
        vectorizer: a fitted TfidfVectorizer.
        weights: [repeats][folds] of ([words, labels] float32, [labels] float32, [labels] bool: the label was among what was learnt from).
        temperature: what log probabilities are divided by (Guo et al. 2017, arXiv 1706.04599), or odds would mean something else for
            every size of data and strength of regularisation.
    """

    vectorizer: Any
    weights: "list[list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]]]"
    temperature: float = 1.0


def deal(parts: list[str], given: "npt.NDArray[np.int64]", folds: int, seed: str) -> "npt.NDArray[np.int64]":
    """Deals components to folds like cards, each label's in turn, so that every fold has its share of every label.

    Args:
        parts: [rows], the component of each row.
        given: [rows] int64, the labels' numbers.
        folds: how many.
        seed: of the order.

    Returns:
        [rows] int64, the fold of each row; rows of one component share it.
    """
    import numpy as np

    part = codes(parts)
    rarity = np.argsort(np.argsort(np.bincount(given), kind="stable"), kind="stable")
    rarest = np.full(int(part.max()) + 1, len(rarity), dtype=np.int64)
    np.minimum.at(rarest, part, rarity[given])  # a component of several labels goes with its rarest
    names = dict(zip(part.tolist(), parts, strict=True))
    order = np.array([_order(seed, names[number]) for number in range(len(rarest))], dtype=np.uint64)
    fold = np.empty(len(rarest), dtype=np.int64)
    fold[np.lexsort((order, rarest))] = np.arange(len(rarest)) % folds
    return fold[part]


def sample(ids: list[str], given: "npt.NDArray[np.int64]", limit: int, seed: str) -> "npt.NDArray[np.int64]":
    """The numbers of at most about `limit` rows in order, each label in proportion but rare ones whole.

    Args:
        ids: one a row.
        given: [rows] int64, the labels' numbers.
        limit: rows wanted; exceeded by no more than rare labels need.
        seed: of the choice.

    Returns:
        [chosen] int64, ascending.
    """
    import numpy as np

    if len(ids) <= limit:
        return np.arange(len(ids))
    order = np.argsort(np.array([_order(seed, name) for name in ids], dtype=np.uint64), kind="stable")
    counts = np.bincount(given)
    fair = limit // (2 * len(counts))  # half of the sample is shared out equally, as far as there are rows
    quota = np.minimum(counts, fair + (counts * (limit / 2 / len(ids))).astype(np.int64))
    ranked = order[np.argsort(given[order], kind="stable")]
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    place = np.arange(len(ids)) - first[given[ranked]]
    return np.sort(ranked[place < quota[given[ranked]]])


def _order(seed: str, name: str) -> int:
    """A pseudo-random place that depends on the seed and the name alone."""
    return xxh3_64_intdigest(f"{seed} {name}".encode())


def judge(
    table: Table,
    numbers: "npt.NDArray[np.int64]",
    labels: list[str],
    folds: int,
    seed: int,
    place: Path,
    sampled: "npt.NDArray[np.int64]",
) -> Judged:
    """Judges rows by out-of-fold probabilities: TF-IDF of words and word pairs, one logistic regression a label.

    Args:
        table: all rows.
        numbers: [chosen] int64, the rows to judge, ascending; each has one of the labels.
        labels: in the order of their numbers, each in at least `folds` components.
        folds: of the cross-validation.
        seed: of deals and sample.
        place: a folder for the classifiers, which other processes read.
        sampled: [some] int64, those of the numbers whose every label's probability is wanted, ascending.

    Returns:
        What was found, one value for each row of the table.
    """
    import numpy as np

    number_of = {label: number for number, label in enumerate(labels)}
    given = np.full(len(table.ids), -1, dtype=np.int64)
    given[numbers] = [number_of[str(table.labels[i])] for i in numbers]
    repeats = REPEATS if len(numbers) <= LEARNT_ROWS else 1
    parts = [table.parts[i] for i in numbers]
    fold = np.zeros((len(table.ids), repeats), dtype=np.int64)
    for repeat in range(repeats):
        fold[numbers, repeat] = deal(parts, given[numbers], folds, f"{seed} deal {repeat}")
    learnt = numbers[sample([table.ids[i] for i in numbers], given[numbers], LEARNT_ROWS, f"{seed} learn")]
    chosen = np.zeros(len(table.ids), dtype=bool)
    chosen[learnt] = True
    texts = [text for block in table.over(_texts, [chosen]) for text in block]
    file = place / "classifiers.pickle"
    classifiers = _learn(texts, given[learnt], fold[learnt], folds, len(labels))
    classifiers.temperature = _temperature(probabilities(classifiers, texts, fold[learnt]), given[learnt])
    with file.open("wb") as handle:
        pickle.dump(classifiers, handle)
    wanted = np.zeros(len(table.ids), dtype=bool)
    wanted[sampled] = True
    blocks = list(table.over(partial(_judge_block, file), [given, fold, wanted]))
    own, other, suggested, every = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return Judged(own, other, suggested, every, len(learnt), repeats)


def _texts(rows: list[Row], chosen: "npt.NDArray[np.bool_]") -> list[str]:
    return [row.text for row, wanted in zip(rows, chosen, strict=True) if wanted]


def _learn(texts: list[str], given: "npt.NDArray[np.int64]", fold: "npt.NDArray[np.int64]", folds: int, labels: int) -> Classifiers:
    """Fits the vocabulary to all texts, which tells nothing of their labels, and a classifier to each deal's other folds."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKEN, dtype=np.float32, max_features=max(1000, WEIGHTS // (folds * labels))
    )
    weights: list[list[Any]] = []
    # one thread: the vectors are short, so that more only wait for each other (20 s against 2 s on two cores), and sums keep their order
    with threadpool_limits(1):
        vectors = vectorizer.fit_transform(texts)
        for deal_of in fold.T:
            weights.append([])
            for number in range(folds):
                train = np.flatnonzero(deal_of != number)
                known = np.isin(np.arange(labels), given[train])
                matrix = np.zeros((vectors.shape[1], labels), dtype=np.float32)
                bias = np.full(labels, -np.inf, dtype=np.float32)
                for label in np.flatnonzero(known):
                    # liblinear is several times faster on short texts than lbfgs
                    model = LogisticRegression(C=STRENGTH, solver="liblinear").fit(vectors[train], given[train] == label)
                    matrix[:, label], bias[label] = model.coef_[0], model.intercept_[0]
                weights[-1].append((matrix, bias, known))
    return Classifiers(vectorizer, weights)


def _temperature(found: "npt.NDArray[np.float64]", given: "npt.NDArray[np.int64]") -> float:
    """The temperature at which out-of-fold probabilities fit the given labels best."""
    import numpy as np

    def surprise(temperature: float) -> float:
        return float(-np.log(np.nan_to_num(_tempered(found, temperature)[np.arange(len(given)), given]) + FLOOR).mean())

    return min(TEMPERATURES, key=surprise)


def _tempered(found: "npt.NDArray[np.float64]", temperature: float) -> "npt.NDArray[np.float64]":
    """Probabilities at a temperature; what is NaN counts as none."""
    import numpy as np

    powers = np.nan_to_num(found) ** (1.0 / temperature)
    tempered: npt.NDArray[np.float64] = np.where(np.isnan(found), np.nan, powers / powers.sum(axis=1, keepdims=True))
    return tempered


@lru_cache(1)
def _classifiers(file: Path) -> Classifiers:
    """The classifiers, read once a process."""
    with file.open("rb") as handle:
        found: Classifiers = pickle.load(handle)  # our own, of a moment ago
    return found


def _judge_block(
    file: Path, rows: list[Row], given: "npt.NDArray[np.int64]", fold: "npt.NDArray[np.int64]", wanted: "npt.NDArray[np.bool_]"
) -> "tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float32]]":
    """Own probability, best other probability and its label of each row of a block, and every probability of those wanted."""
    import numpy as np

    own, other, suggested = np.full(len(rows), np.nan), np.full(len(rows), np.nan), np.zeros(len(rows), dtype=np.int64)
    asked = np.flatnonzero(given >= 0)
    every = np.zeros((0, _classifiers(file).weights[0][0][0].shape[1]), dtype=np.float32)
    if len(asked):
        found = probabilities(_classifiers(file), [rows[i].text for i in asked], fold[asked])
        every = np.nan_to_num(found[wanted[asked]]).astype(np.float32)
        mine = np.arange(len(asked)), given[asked]
        own[asked] = found[mine]
        found = np.nan_to_num(found)
        found[mine] = -1.0
        suggested[asked] = found.argmax(axis=1)
        other[asked] = found.max(axis=1)
    return own, other, suggested, every


def probabilities(classifiers: Classifiers, texts: list[str], fold: "npt.NDArray[np.int64]") -> "npt.NDArray[np.float64]":
    """Each text's label probabilities, averaged over the deals.

    Args:
        classifiers: as learnt.
        texts: one a row.
        fold: [rows, repeats] int64, the fold that each row is in.

    Returns:
        [rows, labels] float64, rows sum to one; NaN for a label that no classifier of the row's fold learnt.
    """
    import numpy as np

    vectors = classifiers.vectorizer.transform(texts)
    total: Any = 0.0
    for repeat, models in enumerate(classifiers.weights):
        found = np.zeros((len(texts), models[0][0].shape[1]))
        for number, (matrix, bias, known) in enumerate(models):
            mine = np.flatnonzero(fold[:, repeat] == number)
            likely = 1.0 / (1.0 + np.exp(-(vectors[mine] @ matrix + bias).astype(np.float64)))
            found[mine] = np.where(known, likely / likely.sum(axis=1, keepdims=True), np.nan)
        total = total + found
    return _tempered(total / len(classifiers.weights), classifiers.temperature)
