"""The licences of the base and of every source of rows: what they ask of the model, in plain words, and what they forbid.

In: the base's manifest, fetch_data's report, card.license. Out: sentences for the card; an error where they contradict card.license.
"""

from collections.abc import Sequence

from stages.card.reading import Report
from stages.core.errors import UserError
from stages.core.licences import OWN_TERMS, conditions, contradiction, is_known
from stages.core.sources import Source

ASKED = {
    "non-commercial": "forbids commercial use",
    "no-derivatives": "allows no derivative to be shared",
    "share-alike": "asks that what is made from it is under the same licence",
}
Part = tuple[str, str | None]


def parts(base: Report, sources: Sequence[Source]) -> list[Part]:
    """What the model was made from, and the licence of each, None where none is stated."""
    return [(f"the base {base['name']}", base["license"]), *((f"the data {source['name']}", source["license"]) for source in sources)]


def check(licence: str, made_from: Sequence[Part]) -> None:
    """Refuses a card whose licence gives away what a part of the model forbids.

    Args:
        licence: card.license.
        made_from: what `parts` gives.

    Raises:
        UserError: the licences contradict each other.
    """
    if (problem := contradiction(made_from, licence)) is not None:
        raise UserError(problem)


def words(licence: str, made_from: Sequence[Part]) -> list[str]:
    """What a reader should know of the licences, a sentence each: every part's, what it asks, and what nobody has judged."""
    said = []
    for name, part in made_from:
        what = f"{name[0].upper()}{name[1:]}"
        if part is None:
            said.append(f"{what} states no licence: ask its owner before you share the model.")
        elif not is_known(part):
            said.append(f"{what} is under {part}, which is no licence of SPDX: read it before you share the model.")
        else:
            asked = " and ".join(ASKED[condition] for condition in conditions(part))
            said.append(f"{what} is under {part}, which {asked}." if asked else f"{what} is under {part}.")
    if OWN_TERMS.search(licence):
        said.append(f"The model is under terms of its own ({licence}), which nobody has compared with these.")
    else:
        unsure = not all(part is not None and is_known(part) for _, part in made_from)
        rest = "; what states no licence of SPDX could not be compared." if unsure else "."
        said.append(f"The model is under {licence}. No licence of what it was made from contradicts that{rest}")
    return said
