"""The rules by which clean rejects a row, each with a name, its evidence and how far the row went beyond it.

In: a repaired and redacted row and the parameters. Out: None, or the verdict of the first rule that rejects it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.core.errors import UserError
from stages.core.params import Clean
from stages.core.records import Row

REPEATED_WORDS = 5  # words of a sequence whose second occurrence is repetition (Rae et al. 2021, Gopher, table A1)
# A row is foreign when the classifier is sure of it. Its probabilities are tempered by length: of real foreign notices its three best
# have more than 0.9 together, of English ones made of names, markup and addresses less than 0.35, spread over all languages.
SURE_SHARE = 0.6
MAX_WANTED_SHARE = 0.1  # of the wanted languages together, in a foreign row
_CANNOT = r"i (?:can(?:'?t|not| not)|am (?:not able|unable)|won'?t|must decline|will not)|i'?m (?:not able|unable)"
_DO = "help|assist|comply|fulfil+|provide|answer|do that|continue|support|engage|create|generate|write|discuss|share"
_REFUSAL = re.compile(
    rf"^\W*(?:(?:i'?m|i am) (?:really |very |so )?sorry\b[^.!?\n]{{0,40}}?(?:but |, |; )?)?(?:"
    rf"(?:unfortunately,? )?(?:{_CANNOT})(?: to)?\s+(?:be able to )?(?:{_DO})"
    rf"|as an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?\n]{{0,60}}\b(?:{_CANNOT}|i (?:don'?t|do not) have)"
    rf"|(?:my apologies|i apologi[sz]e)\b[^.!?\n]{{0,20}}\b(?:{_CANNOT}))",
    re.IGNORECASE,
)
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|\b[a-z]+://\S+|</?\w[^<>]{0,200}>", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """Why a row is rejected.

    Attributes:
        rule: the rule's name.
        evidence: what was measured and what was allowed.
        extremity: larger for a worse row; orders the examples of a rule in the report.
    """

    rule: str
    evidence: dict[str, Any]
    extremity: float


def contents(row: Row) -> list[str]:
    """The texts of a row that a stage may change or judge: every message's, but not the label of a labelled row."""
    messages = row.messages[:-1] if row.label is not None and row.messages[-1]["role"] == "assistant" else row.messages
    return [message["content"] for message in (*messages, *(row.chosen or ()), *(row.rejected or ()))]


def judge(row: Row, params: Clean, language_of: Callable[[str], dict[str, float]] | None) -> Verdict | None:
    """The first rule that rejects a row, in the order of the function's lines.

    Args:
        row: repaired, and redacted where that is asked for.
        params: the section `clean`.
        language_of: from `language_model`, or None where every language is welcome.

    Returns:
        The verdict, or None for a row that stays.
    """
    texts = contents(row)
    characters = sum(len(text) for text in texts)
    if not row.text.strip():
        return Verdict("empty_prompt", {}, 0.0)
    if not row.answer.strip() or (row.rejected is not None and not any(message["content"].strip() for message in row.rejected)):
        return Verdict("empty_answer", {}, 0.0)
    if characters < params.min_characters:
        return Verdict("too_short", {"characters": characters, "min_characters": params.min_characters}, -characters)
    if characters > params.max_characters:
        return Verdict("too_long", {"characters": characters, "max_characters": params.max_characters}, characters)
    share = max(repetition(text) for text in texts)
    if share > params.max_repetition:
        return Verdict("repetition", {"share": round(share, 4), "max_repetition": params.max_repetition}, share)
    if params.refusals and row.label is None and (refusal := _REFUSAL.search(row.answer)):
        return Verdict("refusal", {"characters": list(refusal.span())}, -refusal.start())
    return None if language_of is None else _language(texts, params, language_of)


def _language(texts: list[str], params: Clean, language_of: Callable[[str], dict[str, float]]) -> Verdict | None:
    """Rejects a row whose prose (code, markup and addresses aside) is surely in none of the wanted languages."""
    prose = " ".join(_NOT_PROSE.sub(" ", "\n".join(texts)).split())
    if len(prose) < params.min_language_characters:
        return None
    shares = language_of(prose)
    wanted = sum(shares.get(language, 0.0) for language in params.languages)
    best = sorted(shares.items(), key=lambda item: (-item[1], item[0]))[:3]
    language, share = best[0]
    # zxx is the model's word for no language: code, tables, numbers
    if language in (*params.languages, "zxx") or wanted > MAX_WANTED_SHARE or sum(s for _, s in best) < SURE_SHARE:
        return None
    evidence = {"language": language, "share": round(share, 4), "wanted": params.languages, "wanted_share": round(wanted, 4)}
    return Verdict("language", evidence, share)


def repetition(text: str) -> float:
    """The share of a text's words that stand in a five-word sequence which the text has had before (Rae et al. 2021).

    Args:
        text: any text.

    Returns:
        0 for a text without repetition, and for one of fewer than six words; near 1 for one sentence again and again.
    """
    words = text.casefold().split()
    seen: set[tuple[str, ...]] = set()
    repeated = bytearray(len(words))
    for start in range(len(words) - REPEATED_WORDS + 1):
        gram = tuple(words[start : start + REPEATED_WORDS])
        if gram in seen:
            repeated[start : start + REPEATED_WORDS] = b"\x01" * REPEATED_WORDS
        seen.add(gram)
    return sum(repeated) / len(words) if words else 0.0


def language_model(languages: list[str]) -> Callable[[str], dict[str, float]]:
    """py3langid's classifier over all its languages, with probabilities that sum to one.

    Args:
        languages: the wanted ones, which it must know.

    Returns:
        A function from a text to the probability of each language.

    Raises:
        UserError: it does not know one of the languages.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if unknown := sorted(set(languages) - set(identifier.labels)):
        known = ", ".join(sorted(identifier.labels))
        raise UserError(
            f"params.yaml: clean.languages names {', '.join(unknown)}, which the language model does not know; it knows {known}"
        )
    return lambda text: {language: float(share) for language, share in identifier.rank(text)}
