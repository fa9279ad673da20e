"""Which language a text is in, by py3langid over all that it knows.

In: texts. Out: languages and their probabilities. Obvious English is told by its function words, thirty times faster than by the model.
"""

import re
from collections.abc import Callable
from functools import cache

from stages.core.errors import UserError

# Words of English and of no other language in Latin script that are a quarter of English prose. Where every seventh word is one of
# them, so is the text: of a text in two languages at most half would be, which leaves the share below one in seven.
ENGLISH_WORDS = frozenset(["the", "and", "this", "that", "with", "you", "which", "from", "any",
    "not", "shall", "are", "your", "have", "for", "it", "they", "can", "there", "would", "when"])  # fmt: skip
ENGLISH_SHARE = 1 / 7
MIN_ENGLISH_WORDS = 10
# A text's language is told where the model gives it more than all others together: so were 88 of the default's 300 test rows that are not
# obviously English, all of them English; of the others, names such as "GNU General Public License, V 1.0", 38 of 94 were called Latin,
# Italian or Danish.
MIN_SHARE = 0.5
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|\b[a-z]+://\S+|</?\w[^<>]{0,200}>", re.DOTALL)


def prose_of(text: str) -> str:
    """A text without code, markup and addresses, in single blanks."""
    return " ".join(_NOT_PROSE.sub(" ", text).split())


def is_obviously_english(prose: str) -> bool:
    """Whether a text is in ASCII and at least every seventh word a function word of English."""
    if not prose.isascii():
        return False
    words = prose.casefold().split()
    return len(words) >= MIN_ENGLISH_WORDS and sum(word in ENGLISH_WORDS for word in words) >= len(words) * ENGLISH_SHARE


def language_of(text: str) -> str | None:
    """The language of a text's prose, as ISO 639-1 writes it.

    Args:
        text: anything.

    Returns:
        The language, or None where the model is not sure, as of code, names and a few words.
    """
    prose = prose_of(text)
    if is_obviously_english(prose):
        return "en"
    language, share = language_model(())(prose)[0]
    return language if share >= MIN_SHARE and language != "zxx" else None  # zxx is the model's word for no language


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
