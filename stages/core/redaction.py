"""What a detector found in a text, without the value: where, how long, and of which kind; and its typed placeholders.

In: texts and spans. Out: texts in which every span is `<KIND_n>`, the same n for the same value within one row.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]*)_(\d+)>")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A span of a text.

    Attributes:
        start: its first character.
        end: the character after its last.
        kind: what it is, such as `email` or `github_token`.
    """

    start: int
    end: int
    kind: str


Detector = Callable[[str], list[Finding]]


def separate(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in order of place, without those that overlap one that starts earlier or, at the same place, is longer."""
    chosen: list[Finding] = []
    for finding in sorted(findings, key=lambda f: (f.start, -f.end, f.kind)):
        if not chosen or finding.start >= chosen[-1].end:
            chosen.append(finding)
    return chosen


class Placeholders:
    """The placeholders of one row: numbered by kind in order of appearance, after the numbers that the row already holds."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Takes all texts of the row, whose own placeholders are counted on from."""
        self._names: dict[tuple[str, str], str] = {}
        self._last: dict[str, int] = {}
        for text in texts:
            for kind, number in PLACEHOLDER.findall(text):
                self._last[kind] = max(self._last.get(kind, 0), int(number))

    def put(self, text: str, findings: Iterable[Finding]) -> str:
        """The text with a placeholder for each finding, which lie apart and in order of place."""
        pieces, end = [], 0
        for finding in findings:
            pieces += [text[end : finding.start], self._placeholder(finding.kind.upper(), text[finding.start : finding.end])]
            end = finding.end
        return "".join([*pieces, text[end:]])

    def _placeholder(self, kind: str, value: str) -> str:
        if (kind, value) not in self._names:
            self._last[kind] = self._last.get(kind, 0) + 1
            self._names[kind, value] = f"<{kind}_{self._last[kind]}>"
        return self._names[kind, value]


class Redactor:
    """Redacts the texts of one row, by a detector."""

    def __init__(self, detect: Detector, texts: Iterable[str]) -> None:
        """Takes the detector and all texts of the row."""
        self._detect = detect
        self._placeholders = Placeholders(texts)

    def __call__(self, text: str) -> str:
        """The text with a placeholder for each value; what only shows after a replacement is replaced too."""
        while findings := separate(self._detect(text)):
            text = self._placeholders.put(text, findings)
        return text
