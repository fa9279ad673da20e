"""Whether prose is surely in none of the wanted languages.

In: texts. Out: a share, compared with `clean.max_foreign`, and the evidence.
"""

import re
from typing import Any

from stages.core.language import is_obviously_english, language_model, prose_of

# A text is foreign when the classifier is sure of it. Its probabilities are tempered by length: of real foreign notices its three best
# have more than 0.9 together, of English ones made of names, markup and addresses less than 0.35, spread over all languages.
MAX_WANTED_SHARE = 0.1  # of the wanted languages together, in a foreign text
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


def _foreign_share(prose: str, wanted: tuple[str, ...]) -> tuple[float, dict[str, Any]]:
    ranked = language_model(wanted)(prose)
    language, share = ranked[0]
    wanted_share = sum(share for name, share in ranked if name in wanted)
    # zxx is the model's word for no language: code, tables, numbers
    if language in (*wanted, "zxx") or wanted_share > MAX_WANTED_SHARE:
        return 0.0, {}
    evidence = {"language": language, "share": round(share, 4), "wanted": list(wanted), "wanted_share": round(wanted_share, 4)}
    return sum(share for _, share in ranked[:3]), evidence
