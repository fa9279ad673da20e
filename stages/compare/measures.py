"""How an answer to a row without a label is scored against the reference: by what was written, or by what the reference costs.

In: items of evaluate, whose answers are scored here and not there, so that another measure asks no model again. Out: items with a score.
"""

import json
import math
import re
import string
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from stages.compare.reading import Items
from stages.core.errors import UserError

# Writing systems without blanks between words (Thai to Burmese, kana, Chinese characters): each of their characters counts as a word
_ALONE = r"\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORDS = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Words:
    """The words that ROUGE-L counts: runs of letters and digits of any script, in small letters; of ASCII text rouge-score's own."""

    def tokenize(self, text: str) -> list[str]:
        """The words in order."""
        return _WORDS.findall(text.lower())


def exact_match(answer: str, target: str) -> float:
    """1 where both are the same text but for spaces around it."""
    return float(answer.strip() == target.strip())


def normalised_match(answer: str, target: str) -> float:
    """1 where both are the same without case, punctuation, English articles and extra spaces.

    The normalisation of SQuAD's evaluation script (Rajpurkar et al., 2016, SQuAD: 100,000+ questions for machine comprehension of text,
    EMNLP), which lm-eval's question-answering tasks use as well.

    Args:
        answer: what was written.
        target: the reference.

    Returns:
        1 or 0.
    """

    def normal(text: str) -> str:
        return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())

    return float(normal(answer) == normal(target))


def rouge_l(answer: str, target: str) -> float:
    """ROUGE-L's F1 by rouge-score without stemming, over `Words` (Lin, 2004, ROUGE: a package for automatic evaluation of summaries)."""
    return float(_rouge().score(target, answer)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())


def chrf(answer: str, target: str) -> float:
    """chrF from 0 to 1 by sacrebleu's defaults: character sequences up to six, recall twice as heavy as precision.

    Popović, 2015, chrF: character n-gram F-score for automatic MT evaluation, WMT.

    Args:
        answer: what was written.
        target: the reference.

    Returns:
        The score of this one answer; the mean over answers is not chrF over a corpus, which could not be paired.
    """
    return float(_chrf().sentence_score(answer, [target]).score) / 100


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def json_valid(answer: str, target: str) -> float:
    """1 where the whole answer is JSON (RFC 8259), with no fence around it; the target is not looked at."""
    return float(parsed(answer) is not INVALID)


def json_equal(answer: str, target: str) -> float:
    """1 where the answer is JSON with the target's value, in whichever order of keys, spacing and way of writing a number."""
    return float(canonical(parsed(answer)) == canonical(parsed(target)))


INVALID = object()


def parsed(text: str) -> Any:
    """The value of a JSON text; INVALID where it is none. NaN and Infinity, which Python reads, are none."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return INVALID


def canonical(value: Any) -> Any:
    """A JSON value such that equal ones are equal in Python as well, to which true is 1."""
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return (type(value).__name__, value) if isinstance(value, bool) else value


WRITTEN: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "normalised_match": normalised_match,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "json_valid": json_valid,
    "json_equal": json_equal,
}
WEIGHED = ("bits_per_byte", "nats_per_token")  # of both less is better


def is_structured(text: str) -> bool:
    """Whether a reference is a JSON object or array, which alone is worth comparing as JSON."""
    return isinstance(parsed(text), dict | list)


def chosen(asked: Sequence[str], labelled: bool, references: dict[str, str], written: bool) -> list[str]:
    """The measures that rows without labels, or with them, are compared by; the first decides the verdict.

    Args:
        asked: compare.metrics.
        labelled: whether every test row has a label.
        references: the reference answers by row id.
        written: whether the models wrote answers.

    Returns:
        At least one name.

    Raises:
        UserError: the rows cannot have one that is asked for.
    """
    if labelled:
        if asked != "auto" and asked != ["exact_match"]:
            other = next(name for name in asked if name != "exact_match")
            raise UserError(
                f"compare.metrics names {other}, but every test row has a label, which an answer is or is not; set auto or [exact_match]"
            )
        return ["exact_match"]
    plain = next((key for key, text in sorted(references.items()) if not is_structured(text)), None)
    if asked == "auto":
        texts = ["rouge_l", "chrf", "normalised_match", "exact_match", *(["json_valid", "json_equal"] if plain is None else [])]
        return ["bits_per_byte", *(texts if written else [])]
    for name in asked:
        if name in WRITTEN and not written:
            raise UserError(f"compare.metrics names {name}, but no answer was written: evaluate.max_free_tokens is 0; raise it")
        if name.startswith("json") and plain is not None:
            raise UserError(
                f"compare.metrics names {name}, but the reference answer of test row {plain} is no JSON object or array: "
                f"{references[plain][:60]!r}; take {name} out"
            )
    return list(asked)


def measured(name: str, items: Items) -> Items:
    """The items with one measure's score.

    Args:
        name: of WRITTEN or WEIGHED.
        items: of evaluate's task domain, or of reference.

    Returns:
        As many.
    """
    if name == "bits_per_byte":
        return items
    if name == "nats_per_token":
        sizes = {key: len(item["target"].encode()) * math.log(2) / item["target_tokens"] for key, item in items.items()}
        return {key: {**item, "score": item["score"] * sizes[key]} for key, item in items.items()}
    return {key: {**item, "score": WRITTEN[name](item["answer"], item["target"])} for key, item in items.items()}
