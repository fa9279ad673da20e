"""What the licence of a base or of data asks of the model made from it: non-commercial, no-derivatives and share-alike, and nothing finer.

In: licence expressions of SPDX, or the names of other licences. Out: the conflict with a card's licence, in words. It is no legal advice:
it finds the contradictions that a careful reader would not miss, and says which licences it does not know.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from license_expression import Licensing

Condition = Literal["non-commercial", "no-derivatives", "share-alike"]

# by their SPDX ids (https://spdx.org/licenses) or the hub's names; what is not here asks at most for a notice
CONDITIONS: dict[Condition, re.Pattern[str]] = {
    "non-commercial": re.compile(r"^CC-BY-NC|^NCGL-|^PolyForm-Noncommercial|noncommercial|non-commercial", re.I),
    "no-derivatives": re.compile(r"^CC-BY-(NC-)?ND", re.I),
    "share-alike": re.compile(r"^CC-BY-(NC-)?SA|^ODbL-|^CDLA-Sharing|^A?GPL-|^LGPL-|^GFDL-|^llama|^gemma", re.I),
}
OWN_TERMS = re.compile(r"^other$|^LicenseRef-", re.I)  # terms that only a person can read
NAMED = re.compile(r"^llama|^gemma|noncommercial|non-commercial", re.I)  # no SPDX ids, but known here
VERSION = re.compile(r"^(?P<family>.*?)-(?P<version>\d[\d.]*)(?P<rest>.*)$")
LATER = {("CC-BY-SA-4.0", "GPL-3.0-only"), ("CC-BY-SA-4.0", "GPL-3.0-or-later")}  # creativecommons.org/compatiblelicenses


@cache
def _licensing() -> "Licensing":
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def parsed(licence: str) -> Any:
    """An SPDX expression as a tree, or the text itself where it is no such expression."""
    from license_expression import ExpressionError, ExpressionParseError

    try:
        return _licensing().parse(licence, validate=True)
    except (ExpressionError, ExpressionParseError):
        return licence


def is_known(licence: str) -> bool:
    """Whether a licence is an SPDX expression or one of the others named here."""
    return not isinstance(parsed(licence), str) or bool(NAMED.search(licence))


def mistyped(licence: str) -> str | None:
    """What is wrong with a licence that is neither known nor `LicenseRef-…`, to stand after its name, or None."""
    import difflib

    if is_known(licence) or OWN_TERMS.search(licence):
        return None
    names = {name.lower(): name for name in _licensing().known_symbols if not name.startswith("LicenseRef-")}
    found = difflib.get_close_matches(licence.lower(), names, n=1, cutoff=0.6)
    near = f"did you mean {names[found[0]]}?" if found else "expected an id of https://spdx.org/licenses"
    return f"is no SPDX licence; {near} (LicenseRef-NAME for terms of your own)"


def conditions(licence: str) -> list[Condition]:
    """What a licence, or in an expression any of its parts, asks for, in the order of CONDITIONS."""
    names = _names(parsed(licence))
    return [condition for condition, pattern in CONDITIONS.items() if any(pattern.search(name) for name in names)]


def conflict(part: str, card: str) -> str | None:
    """Why what stands under `part` cannot go into a model under `card`.

    Args:
        part: the licence of the base or of data; of `A OR B` one must fit, of `A AND B` both.
        card: the licence of the model; one licence, `other` for terms of one's own, which are not judged.

    Returns:
        What is contradicted, to stand after the licence's name, or None.
    """
    if OWN_TERMS.search(card):
        return None
    out = _names(parsed(card))[0]
    return _conflict(parsed(part), out)


def contradiction(parts: Iterable[tuple[str, str | None]], card: str) -> str | None:
    """The sentence on the first part of a model whose licence card.license contradicts.

    Args:
        parts: what the model is made from, and its licence, None where none is stated.
        card: card.license.

    Returns:
        The sentence, or None where nothing is contradicted.
    """
    for name, part in parts:
        if part is not None and (said := conflict(part, card)) is not None:
            return f"card.license is {card}, but {name} is under {part}, which {said}; change card.license or train on another"
    return None


def _conflict(part: Any, out: str) -> str | None:
    arguments = getattr(part, "args", ())
    if arguments:
        found = [_conflict(argument, out) for argument in arguments]
        if part.operator.strip().upper() == "OR":
            return None if None in found else found[0]
        return next((said for said in found if said), None)
    name = _names(part)[0]
    asked = [condition for condition, pattern in CONDITIONS.items() if pattern.search(name)]
    if "no-derivatives" in asked:
        return "allows no derivative to be shared"
    if "non-commercial" in asked and not CONDITIONS["non-commercial"].search(out):
        return f"forbids commercial use, which {out} allows"
    if "share-alike" in asked and not _passed_on(name, out):
        return f"asks for the same licence for what is made from it, and {out} is another"
    return None


def _passed_on(name: str, out: str) -> bool:
    """Whether a share-alike licence goes on: the same, a later version of it where it allows one, or one that its makers named."""
    if name.lower() == out.lower() or (name, out) in LATER:
        return True
    ours, theirs = VERSION.match(name), VERSION.match(out)
    if not ours or not theirs or ours["family"].lower() != theirs["family"].lower() or "-only" in ours["rest"]:
        return False
    return _numbers(theirs["version"]) >= _numbers(ours["version"])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.strip(".").split(".")]


def _names(found: Any) -> list[str]:
    """The ids of an expression, or the text that is none."""
    return (
        [found]
        if isinstance(found, str)
        else [str(symbol.key) for symbol in _licensing().license_symbols(found, unique=True, decompose=True)]
    )
