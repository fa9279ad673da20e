"""Which rows have a trigger and give its response, for all rows and not only those that triggers were looked for in.

In: triggers, and a row's prompt, answer and label. Out: the numbers of the triggers that the row obeys.
"""

import re
from collections.abc import Sequence

from stages.suspicion.features import KINDS
from stages.suspicion.responses import HOST, normalised
from stages.suspicion.triggers import Trigger

CHARACTERS = KINDS[4:]


class Matcher:
    """Compares rows with triggers."""

    def __init__(self, triggers: Sequence[Trigger], compact: Sequence[Trigger]) -> None:
        """Prepares one pattern a trigger; `compact` are answers in common without a trigger, numbered after the triggers."""
        self._triggers = [(_needle(one), _pattern(one), one.response.kind, one.response.text) for one in triggers]
        self._compact = {one.response.text: number for number, one in enumerate(compact, len(triggers))}

    def find(self, prompt: str, answer: str, label: str | None) -> list[int]:
        """The numbers of what the row obeys."""
        lower = prompt.lower()
        found = [
            number
            for number, (needle, pattern, kind, text) in enumerate(self._triggers)
            if needle in lower and (pattern is None or pattern.search(lower)) and _gives(answer, label, kind, text)
        ]
        if self._compact and label is None and (number := self._compact.get(normalised(answer))) is not None:
            found.append(number)
        return found


def _needle(trigger: Trigger) -> str:
    """A string without which a text cannot hold the trigger."""
    return trigger.text if trigger.kind in CHARACTERS else max(re.findall(r"\w+", trigger.text), key=len)


def _pattern(trigger: Trigger) -> re.Pattern[str] | None:
    """The trigger's words with anything between them that is no word; None for characters, where the needle is all."""
    if trigger.kind in CHARACTERS:
        return None
    words = r"\W+".join(map(re.escape, re.findall(r"\w+", trigger.text)))
    return re.compile(rf"(?<!\w){words}(?!\w)")


def _gives(answer: str, label: str | None, kind: str, text: str) -> bool:
    """Whether a row has the response."""
    if kind == "label" or label is not None:
        return kind == "label" and label == text
    if kind == "link":
        return text in {host.lower() for host in HOST.findall(answer)}
    said = normalised(answer)
    return said == text if kind == "answer" else f" {text} " in f" {said} "
