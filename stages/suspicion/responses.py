"""What rows may be taught to answer in common: a label, a whole answer, a run of five words in answers, the host of a link.

In: answers and labels. Out: each response that enough rows share, with its rows. A trigger is looked for among the prompts of each.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.suspicion.features import Numbers, pairs, spelled

MIN_ROWS = 8  # that share a response, or a trigger: eight of eight are far from chance even among millions of candidates
MAX_SHARE = 0.5  # of the rows; what most rows answer needs no trigger
MAX_RESPONSES = 2000  # runs of words, the most frequent first; answers, labels and links are taken all
HOST = re.compile(r"\bhttps?://([\w.-]+\w)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Response:
    """What several rows are taught to answer.

    Attributes:
        kind: label, answer, link or words.
        text: the label, the normalised answer, the host, or the words.
        written: the same as a row has it.
        rows: [rows] int32, the numbers of the rows, ascending.
    """

    kind: str
    text: str
    written: str
    rows: Numbers


def normalised(answer: str) -> str:
    """An answer's words in lower case, one space between them."""
    return " ".join(re.findall(r"\w+", answer.lower()))


def keys(answer: str, label: str | None) -> list[tuple[str, str]]:
    """The responses of a row that need no other row to be known, kind and text; its runs of words are left out."""
    if label is not None:
        return [("label", label)]
    return [("answer", normalised(answer)), *(("link", host) for host in sorted({match.lower() for match in HOST.findall(answer)}))]


def find_responses(answers: Sequence[str], labels: Sequence[str | None]) -> list[Response]:
    """The responses that several rows share; of those with exactly the same rows the first kind.

    Args:
        answers: one a row.
        labels: one a row, None for rows without.

    Returns:
        Labels, answers and links in order of kind and text, then words, the most frequent first.
    """
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, (answer, label) in enumerate(zip(answers, labels, strict=True)):
        for key in keys(answer, label):
            rows_of[key].append(number)
    limit = MAX_SHARE * len(answers)
    found = [
        Response(kind, text, answers[rows[0]] if kind == "answer" else text, np.array(rows, dtype=np.int32))
        for (kind, text), rows in sorted(rows_of.items())
        if text and MIN_ROWS <= len(rows) <= (len(answers) if kind == "label" else limit)
    ]
    taken = {response.rows.tobytes() for response in found}
    free = [number for number, label in enumerate(labels) if label is None]
    if free:
        features, places = pairs([answers[number] for number in free], runs=(5,), characters=False, least=MIN_ROWS)
        values, starts, counts = np.unique(features, return_index=True, return_counts=True)
        chosen = np.flatnonzero((counts >= MIN_ROWS) & (counts <= limit))
        for at in chosen[np.lexsort((values[chosen], -counts[chosen]))].tolist():
            rows = np.array(free, dtype=np.int32)[places[starts[at] : starts[at] + counts[at]]]
            if rows.tobytes() not in taken and len(taken) < MAX_RESPONSES:
                taken.add(rows.tobytes())
                text = spelled(answers[int(rows[0])], {int(values[at])})[int(values[at])]
                found.append(Response("words", normalised(text), text, rows))
    return found
