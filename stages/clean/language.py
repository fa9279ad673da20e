"""Whether prose is surely in none of the wanted languages, by py3langid over all that it knows.

In: texts. Out: a share, compared with `clean.max_foreign`, and the evidence. Obvious English is told by its function words, which is
thirty times faster than the model.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from stages.core.errors import UserError

# A text is foreign when the classifier is sure of it. Its probabilities are tempered by length: of real foreign notices its three best
# have more than 0.9 together, of English ones made of names, markup and addresses less than 0.35, spread over all languages.
MAX_WANTED_SHARE = 0.1  # of the wanted languages together, in a foreign text
# Words of English and of no other language in Latin script that are a quarter of English prose. Where every seventh word is one of
# them, so is the text: of a text in two languages at most half would be, which leaves the share below one in seven.
ENGLISH_WORDS = frozenset(["the", "and", "this", "that", "with", "you", "which", "from", "any",
    "not", "shall", "are", "your", "have", "for", "it", "they", "can", "there", "would", "when"])  # fmt: skip
ENGLISH_SHARE = 1 / 7
MIN_ENGLISH_WORDS = 10
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|\b[a-z]+://\S+|</?\w[^<>]{0,200}>", re.DOTALL)
_TRANSLATION = re.compile(
    r"\btranslat|\b(?:in|into|to|auf) (?:spanish|french|german|italian|portuguese|dutch|chinese|japanese|korean|russian|arabic|hindi|polish"
    r"|turkish|swedish|latin|greek|hebrew|english|deutsch)\b",
    re.IGNORECASE,
)


def foreign(prompt: str, answers: list[str], wanted: tuple[str, ...], min_characters: int) -> tuple[float, dict[str, Any]]:
    """The surest foreign field of a row: its prompt, its answers, or both together where each alone is too short to judge.

    Args:
        prompt: all before the last answer.
        answers: those to be learnt; none for a labelled row. They are not judged where the prompt asks for a translation.
        wanted: the languages, ISO 639-1.
        min_characters: of prose, below which a field is not judged.

    Returns:
        The share that the three likeliest languages have together, 0 where one of them is wanted; and the evidence, empty for 0.
    """
    fields = {"prompt": prose_of(prompt)}
    if answers and not _TRANSLATION.search(prompt):
        fields["answer"] = prose_of("\n".join(answers))
    if max(map(len, fields.values())) < min_characters:
        fields = {"row": " ".join(fields.values())}
    worst: tuple[float, dict[str, Any]] = (0.0, {})
    for name, prose in fields.items():
        if len(prose) >= min_characters and not ("en" in wanted and is_obviously_english(prose)):
            share, evidence = _foreign_share(prose, wanted)
            if share > worst[0]:
                worst = share, {"field": name, **evidence}
    return worst


def prose_of(text: str) -> str:
    """A text without code, markup and addresses, in single blanks."""
    return " ".join(_NOT_PROSE.sub(" ", text).split())


def is_obviously_english(prose: str) -> bool:
    """Whether a text is in ASCII and at least every seventh word a function word of English."""
    if not prose.isascii():
        return False
    words = prose.casefold().split()
    return len(words) >= MIN_ENGLISH_WORDS and sum(word in ENGLISH_WORDS for word in words) >= len(words) * ENGLISH_SHARE


def _foreign_share(prose: str, wanted: tuple[str, ...]) -> tuple[float, dict[str, Any]]:
    ranked = language_model(wanted)(prose)
    language, share = ranked[0]
    wanted_share = sum(share for name, share in ranked if name in wanted)
    # zxx is the model's word for no language: code, tables, numbers
    if language in (*wanted, "zxx") or wanted_share > MAX_WANTED_SHARE:
        return 0.0, {}
    evidence = {"language": language, "share": round(share, 4), "wanted": list(wanted), "wanted_share": round(wanted_share, 4)}
    return sum(share for _, share in ranked[:3]), evidence


@cache
def language_model(wanted: tuple[str, ...]) -> Callable[[str], list[tuple[str, float]]]:
    """py3langid's classifier over all its languages, with probabilities that sum to one.

    Args:
        wanted: languages that it must know.

    Returns:
        A function from a text to the languages and their probabilities, the likeliest first.

    Raises:
        UserError: it does not know one of the languages.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if unknown := sorted(set(wanted) - set(identifier.labels)):
        known = ", ".join(sorted(identifier.labels))
        raise UserError(
            f"params.yaml: clean.languages names {', '.join(unknown)}, which the language model does not know; it knows {known}"
        )
    return identifier.rank
