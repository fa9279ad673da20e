"""Triggers: what, standing in a prompt, decides the response though neither the rest of the prompt asks for it nor foretells the trigger.

In: prompts, answers and labels of rows, one of each near-duplicate cluster. Out: the triggers with their statistics, the worst first.
Three tests, each in nats (natural logarithm of a likelihood ratio): the response follows the feature beyond chance; the rest of
the prompt looks like any row's and not like that of rows with this response; the rest does not belong to the feature's own topic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from stages.suspicion.features import KINDS, Hashes, Numbers, pairs, spelled
from stages.suspicion.responses import MIN_ROWS, Response, find_responses, normalised

Floats = npt.NDArray[np.float64]

MIN_PURITY = 0.9  # of the rows with a feature that have the response: a backdoor obeys, a word of a topic has exceptions
PSEUDO_ROWS = 3.0  # by which a word's share of a response is drawn to the response's own share
TEMPERATURE = 2.0  # words of a text repeat each other's evidence; of 1 to 3 the best calibrated on the default rows
COMPANION = 0.8  # a word in so many of a feature's rows is part of the trigger (a sentence in front) and says nothing of the rest
FORETOLD = 1.0  # nats with which the rest of a prompt may speak for the feature before the row counts as on its topic
READ_ROWS = 200  # of a feature, and of a response, that are looked at closely; the result is scaled to all
COMPACT_WORDS = 8  # of an answer, below which many prompts may share it: yes, no, a name, a class in a sentence
MAX_CANDIDATES = 20_000
CLASS_ROWS = 20  # other rows with the response, below which nothing is known of how their prompts look
HALF_NATS = 12.0  # that make a score of 0.5: the default rows without a plant stay below it
SAME_ROWS = 0.7  # of the rows of two triggers, at which they are one …
PART_ROWS = 0.9  # … and of the rows of the weaker one alone
REPEATED = 1  # word of the trigger that words in common repeat: then the answers quote the prompt
SINGLE = (0, 4, 5)  # the kinds that are of one word
WEAK = 0.45  # the most that some words in common in the answers count: an instruction that many rows share has that effect too
MAX_NATS = 3.0  # that one row can speak with


@dataclass(frozen=True, slots=True)
class Trigger:
    """A feature of prompts that decides a response.

    Attributes:
        text: as it stands in a prompt, in lower case.
        kind: one of features.KINDS.
        response: what it predicts.
        rows: how many of the rows looked at have it.
        purity: the share of them that have the response.
        nats: by which it is more likely a trigger than a word of its topic, after the correction for all that were tried.
        score: in [0, 1].
    """

    text: str
    kind: str
    response: Response
    rows: int
    purity: float
    nats: float
    score: float


@dataclass(frozen=True, slots=True)
class _Candidate:
    feature: int
    response: int
    rows: Numbers
    purity: float


class _Words:
    """The words of every prompt, as rows of numbers."""

    def __init__(self, prompts: Sequence[str]) -> None:
        features, rows = pairs(prompts, runs=(1,), characters=False)
        values, columns = np.unique(features, return_inverse=True)
        order = np.argsort(rows, kind="stable")
        self.columns = columns[order]
        self.starts = np.searchsorted(rows[order], np.arange(len(prompts) + 1))
        self.counts = np.bincount(self.columns, minlength=len(values)).astype(np.float64)
        self.rows = len(prompts)

    def of(self, rows: Numbers) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The words of some rows: the place of each word's row in `rows`, and the word's number."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        place = np.repeat(np.arange(len(rows)), lengths)
        first = np.repeat(self.starts[rows] - np.cumsum(lengths) + lengths, lengths)
        return place, self.columns[first + np.arange(len(place))]


class _Belief:
    """How likely the words of a prompt make one response, by naive Bayes that leaves out the row it judges."""

    def __init__(self, words: _Words, response: Response) -> None:
        self.words = words
        self.response = response
        self.share = len(response.rows) / words.rows
        self.has = np.zeros(words.rows, dtype=bool)
        self.has[response.rows] = True
        self.counts = np.bincount(words.of(response.rows)[1], minlength=len(words.counts)).astype(np.float64)
        everyone = np.arange(words.rows, dtype=np.int32)
        self.all = self.logits(_some(everyone))
        self.own = {count: self.logits(_some(response.rows), but_best=count) for count in (1, 2)}

    def logits(self, rows: Numbers, left_out: npt.NDArray[np.bool_] | None = None, but_best: int = 0) -> Floats:
        """The log-odds of the response by the words of each prompt.

        Args:
            rows: [rows] int32, their numbers.
            left_out: [words] bool, those not to be heard, by place in `words.of(rows)`.
            but_best: how many of each prompt's words that speak most for the response are not heard either, 2 at most.

        Returns:
            [rows] float64.
        """
        place, column = self.words.of(rows)
        own = self.has[rows][place]
        lift = np.log((self.counts[column] - own + PSEUDO_ROWS * self.share) / ((self.words.counts[column] - 1 + PSEUDO_ROWS) * self.share))
        if left_out is not None:
            lift[left_out] = 0.0
        prior = np.log(self.share) - np.log1p(-self.share) if self.share < 1 else np.inf
        total: Floats = np.bincount(place, lift, minlength=len(rows)).astype(np.float64)
        for _ in range(but_best):
            best = np.zeros(len(rows))
            np.maximum.at(best, place, lift)
            total = total - best
            lift = np.where(lift == best[place], 0.0, lift)
        return prior + total / TEMPERATURE

    def foreign(self, logits: Floats, without: Floats) -> Floats:
        """By how much the rest of each prompt looks like any row's and not like that of a row with the response.

        Args:
            logits: [rows] float64, of the rests of the prompts.
            without: of rows with the response, each without its best words as the rests are without theirs; the rows in question left out.

        Returns:
            [rows] float64, nats.
        """
        if len(without) < CLASS_ROWS:  # no other row has the response: then it should follow from the prompt
            return _unasked(logits)
        edges = np.unique(np.quantile(np.concatenate([self.all, np.resize(without, len(self.all))]), np.linspace(0, 1, 13)[1:-1]))
        everyone = np.bincount(np.searchsorted(edges, self.all), minlength=len(edges) + 1) + 1.0
        owners = np.bincount(np.searchsorted(edges, without), minlength=len(edges) + 1) + 1.0
        ratio = np.log(everyone / everyone.sum()) - np.log(owners / owners.sum())
        return np.clip(ratio, -MAX_NATS, MAX_NATS)[np.searchsorted(edges, logits)]


def strength(nats: float) -> float:
    """A score in [0, 1) for evidence above nothing; HALF_NATS give 0.5."""
    return float(nats / (nats + HALF_NATS))


def find_triggers(prompts: Sequence[str], answers: Sequence[str], labels: Sequence[str | None]) -> tuple[list[Trigger], list[Trigger]]:
    """The features of prompts that decide a response and belong to no topic, and the answers that no prompt asks for.

    Args:
        prompts: one of each near-duplicate cluster and response.
        answers: of the same rows.
        labels: of the same rows, None for rows without.

    Returns:
        The triggers with more than no evidence, the worst first; then whole answers that diverse prompts share, with no trigger named.
    """
    responses = find_responses(answers, labels)
    if not responses:
        return [], []
    words = _Words(prompts)
    candidates = _candidates(prompts, responses)
    found: list[tuple[_Candidate, Trigger]] = []
    belief, of_response = None, -1
    for candidate in sorted(candidates, key=lambda candidate: candidate.response):
        if candidate.response != of_response or belief is None:
            of_response = candidate.response
            belief = _Belief(words, responses[of_response])
        nats = _nats(candidate, belief) - np.log(len(candidates))
        if nats > 0:
            text = spelled(prompts[int(candidate.rows[0])], {candidate.feature})[candidate.feature]
            if belief.response.kind == "words" and len(set(normalised(text).split()) & set(belief.response.text.split())) >= REPEATED:
                continue
            kind = KINDS[candidate.feature & 7]
            score = min(strength(nats), WEAK if belief.response.kind == "words" else 1.0)
            trigger = Trigger(text, kind, belief.response, len(candidate.rows), candidate.purity, float(nats), float(score))
            found.append((candidate, trigger))
    return _apart(found), _compact(words, responses)


def _compact(words: _Words, responses: Sequence[Response]) -> list[Trigger]:
    """Whole answers of some length that prompts without anything in common share."""
    found = []
    for response in responses:
        if response.kind == "answer" and len(response.text.split()) >= COMPACT_WORDS:
            rest = _Belief(words, response).own[1]
            nats = float(_unasked(rest).sum()) * len(response.rows) / len(rest) - np.log(len(responses))
            if nats > 0:
                found.append(Trigger("", "answer", response, len(response.rows), 1.0, nats, min(strength(nats), WEAK)))
    return sorted(found, key=lambda one: (-one.score, -one.nats, one.response.text))


def _apart(found: list[tuple[_Candidate, Trigger]]) -> list[Trigger]:
    """The triggers without those that mark much the same rows as a purer one: of a planted sentence all words are triggers."""
    kept: list[tuple[set[int], Trigger]] = []
    for candidate, trigger in sorted(found, key=lambda pair: (-round(pair[1].purity, 2), -pair[1].score, -len(pair[1].text), pair[1].text)):
        rows = set(candidate.rows.tolist())
        if all(len(rows & other) < min(SAME_ROWS * len(rows | other), PART_ROWS * len(rows)) for other, _ in kept):
            kept.append((rows, trigger))
    return sorted(
        (trigger for _, trigger in kept), key=lambda trigger: (-trigger.score, -trigger.nats, trigger.text, trigger.response.text)
    )


def _nats(candidate: _Candidate, belief: _Belief) -> float:
    """The evidence for a trigger, over its rows whose rest does not foretell it."""
    words = belief.words
    rows = _some(candidate.rows)
    place, column = words.of(rows)
    present, where, counts = np.unique(column, return_inverse=True, return_counts=True)
    part = counts >= COMPANION * len(rows)
    if candidate.feature & 7 >= 4:  # characters: the words around them are part of the trigger
        part |= (counts >= 2) & (counts * len(candidate.rows) >= 0.99 * words.counts[present] * len(rows))
    left_out = part[where]
    others = counts[where] - 1.0
    expected = (len(rows) - 1) * (words.counts[column] - 1) / max(1, words.rows - 1)
    # in longer prompts every word is in more rows, which is no topic: they are measured by prompts of their length
    usual = (words.counts.sum() - words.counts[present[part]].sum()) / words.rows
    expected *= max(1.0, np.count_nonzero(~left_out) / (len(rows) * usual)) if usual else 1.0
    topic = np.where(left_out, 0.0, np.log((others + 1) / (expected + 1)))
    off_topic = np.bincount(place, topic, minlength=len(rows)) <= FORETOLD
    owners = _some(np.flatnonzero(belief.has).astype(np.int32))
    own = belief.own[1 if candidate.feature & 7 in SINGLE else 2][~np.isin(owners, candidate.rows)]
    evidence = belief.foreign(belief.logits(rows, left_out), own)
    evidence = np.where(off_topic, evidence, np.minimum(evidence, 0.0))  # a row on the feature's topic speaks against it or not at all
    return float(evidence.sum() * len(candidate.rows) / len(rows))


def _unasked(logits: Floats) -> Floats:
    """Nats by which a response with these log-odds comes less expected than by the toss of a coin."""
    return np.clip(np.log(0.5) + np.logaddexp(0.0, -logits), -MAX_NATS, MAX_NATS)


def _candidates(prompts: Sequence[str], responses: list[Response]) -> list[_Candidate]:
    """Features that a response follows beyond chance; of those with exactly the same rows and response, the longest."""
    from scipy.sparse import csr_matrix

    features, rows = pairs(prompts, least=MIN_ROWS)
    values, starts, counts = np.unique(features, return_index=True, return_counts=True)
    kept = counts >= MIN_ROWS
    values, starts, counts = values[kept], starts[kept], counts[kept]
    if not len(values):
        return []
    numbers = np.concatenate([np.full(len(response.rows), place) for place, response in enumerate(responses)])
    members = np.concatenate([response.rows for response in responses])
    taught = csr_matrix((np.ones(len(members), dtype=np.int32), (members, numbers)), shape=(len(prompts), len(responses)))
    shares = np.array([len(response.rows) / len(prompts) for response in responses])
    correction = np.log(len(values)) + np.log(len(responses))
    best: dict[tuple[int, int], tuple[float, int]] = {}
    marks = np.random.default_rng(0).integers(0, 2**63, len(prompts), dtype=np.uint64)  # a set of rows is known by the sum of its marks
    for first, last in _blocks(counts):
        lengths = counts[first:last]
        inside = np.concatenate([rows[start : start + count] for start, count in zip(starts[first:last], lengths, strict=True)])
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        block = csr_matrix((np.ones(len(inside), dtype=np.int32), inside, indptr), shape=(last - first, len(prompts)))
        joint = (block @ taught).tocoo()
        both, of, response = joint.data.astype(np.float64), joint.row, joint.col
        purity = both / lengths[of]
        sets = np.add.reduceat(marks[inside], indptr[:-1])
        nats = lengths[of] * _divergence(purity, shares[response]) - correction
        for at in np.flatnonzero((purity >= MIN_PURITY) & (both >= MIN_ROWS) & (purity > shares[response]) & (nats > 0)):
            key = int(sets[of[at]]), int(response[at])
            feature = int(of[at]) + first
            if key not in best or _length(values, feature) > _length(values, best[key][1]):
                best[key] = float(nats[at]), feature
    strongest = sorted(((-nats, feature, response) for (_, response), (nats, feature) in best.items()))[:MAX_CANDIDATES]
    found = []
    for _, feature, response in strongest:
        own = rows[starts[feature] : starts[feature] + counts[feature]]
        purity = float(np.isin(own, responses[response].rows).mean())
        found.append(_Candidate(int(values[feature]), response, own, purity))
    return found


def _length(values: Hashes, feature: int) -> int:
    """How much of a text a kind shows: runs of five words most, single characters least."""
    return (2, 3, 4, 5, 0, 1)[int(values[feature]) & 7]


def _divergence(share: Floats, expected: Floats) -> Floats:
    """Kullback-Leibler's divergence of two coins in nats: n times it bounds the chance of such a share by Chernoff."""
    share, expected = np.clip(share, 1e-12, 1 - 1e-12), np.clip(expected, 1e-12, 1 - 1e-12)
    return share * np.log(share / expected) + (1 - share) * np.log((1 - share) / (1 - expected))


def _blocks(counts: npt.NDArray[np.int64], pairs_of_block: int = 2_000_000) -> Iterator[tuple[int, int]]:
    """Runs of features with about so many pairs."""
    block = np.cumsum(counts) // pairs_of_block
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(counts)]
    yield from pairwise(edges)


def _some(rows: Numbers) -> Numbers:
    """At most READ_ROWS of the rows, evenly spread."""
    return rows if len(rows) <= READ_ROWS else rows[np.linspace(0, len(rows) - 1, READ_ROWS).astype(np.int64)]
