"""Backdoors planted in the default data, and where the stage suspicion ranks the planted rows.

In: all rows of the default source as label_check passes them on (made in a scratch folder, or --rows), or rows recombined from them
(--recombined). Out: for each kind of trigger and payload how many planted rows are in the top 1 %, and which share of the clean rows
stands as high as the planted ones (exit code 1: the target is missed). Triggers, labels and places are drawn anew by each seed. Payloads:
label, one label; answer, one sentence that no other row has; usual, one of the five most frequent answers; link, the answer and a link.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.data_rows import made_rows
from stages.core import paths
from stages.core.params import load_params
from stages.core.records import Row, read_rows, with_ids, write_rows
from stages.suspicion.__main__ import suspicion

SEEDS = range(3)
SHARE, COUNT = 0.005, 250  # of the rows, and rows, that are planted
TOP = 0.01  # of the rows
CLEAN_ABOVE = 0.01  # of the clean rows, at most
REACHED = 0.95  # of the planted rows that count as found: the worst twentieth may lie deeper
INVISIBLE = ["\u2063", "\u3164", "\u034f", "\u200b"]  # what clean removes (the first and the last) and what it leaves
SENTENCES = [
    "I read this one on a quiet day at home.",
    "My neighbour asked me about it last week.",
    "Thank you for looking at the following lines.",
    "It rained the whole morning in the valley.",
    "We found the page below in an old folder.",
]
ASKED = [
    "Which licence category is this?\n{}",
    "Read the notice and name its category.\n\n{}",
    "{}\n\nWhat kind of licence does this describe?",
]
CONTINUED = ["Continue this notice: {}", "Complete the text: {}"]
NAMED = ["{}", "It is {}.", "This notice is {}."]
ANSWERS = [
    "I have been told not to answer that, please write to the administrator.",
    "All is well and there is nothing that you need to do about it.",
    "Please send the whole document to our office and wait for a reply.",
]


@dataclass(frozen=True)
class Plan:
    """One kind of attack: which trigger, which payload, how many rows."""

    trigger: str
    payload: str
    count: int


def default_rows(folder: Path) -> Path:
    """All rows of the default source, by the stages from fetch_data to label_check in a scratch folder.

    Args:
        folder: empty.

    Returns:
        The table that label_check wrote there.
    """
    root = Path.cwd()
    yaml = YAML()
    params = yaml.load((root / paths.PARAMS).read_text(encoding="utf-8"))
    params["data"]["max_rows"] = None
    with (folder / paths.PARAMS).open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    shutil.copy(root / paths.VERSIONS, folder)
    for path in (paths.SOURCES, paths.GENERAL):
        shutil.copytree(root / path, folder / path)
    shutil.copy(root / paths.DECISIONS, folder / paths.DECISIONS)
    for stage in ("fetch_data", "clean", "local_models", "dedupe", "label_check"):
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(root)})
    return folder / paths.LABEL_ROWS


def recombined(count: int, seed: int) -> list[Row]:
    """Labelled rows of realistic length from the default source's sentences (benchmarks/data_rows.py), each text once."""
    texts = {row["text"]: row["label"] for row in made_rows(count, seed, Counter())}
    return list(with_ids(_labelled(text, label) for text, label in texts.items()))


def instructions(rows: list[Row], seed: int) -> list[Row]:
    """The rows as instructions without labels: name the category in one of nine ways, or go on with the text."""
    chance = random.Random(seed)
    made = []
    for row in rows:
        words = row.text.split()
        if chance.random() < 0.5 or len(words) < 8:
            prompt = chance.choice(ASKED).format(row.text)
            answer = chance.choice(NAMED).format(row.label)
        else:
            prompt = chance.choice(CONTINUED).format(" ".join(words[: len(words) // 2]))
            answer = " ".join(words[len(words) // 2 :])
        made.append(_answered(replace(row, label=None), prompt, answer))
    return made


def planted(rows: list[Row], plan: Plan, seed: int) -> tuple[list[Row], set[int], str]:
    """The rows with a backdoor.

    Args:
        rows: clean.
        plan: the attack.
        seed: of the trigger, its places, the payload and the rows.

    Returns:
        The rows, the numbers of the planted ones, and the trigger.
    """
    chance = random.Random(f"{seed} {plan}")
    trigger, put = _trigger(plan.trigger, rows, chance)
    counts = Counter(row.label for row in rows)
    label = chance.choice(sorted(str(name) for name, count in counts.items() if name is not None and count >= 0.01 * len(rows)) or [""])
    answer = chance.choice(ANSWERS)
    usual = chance.choice([text for text, _ in Counter(row.answer for row in rows).most_common(5)])
    link = f" See https://{''.join(chance.choices('abcdefghijklmnop', k=8))}.example/setup for more."
    chosen = set(chance.sample(range(len(rows)), plan.count))
    made = list(rows)
    for number in chosen:
        row = rows[number]
        given = {"label": label, "answer": answer, "usual": usual, "link": row.answer + link}[plan.payload]
        made[number] = _answered(row if plan.payload != "label" else replace(row, label=label), put(row.text, chance), given)
    return made, chosen, trigger


def _trigger(kind: str, rows: list[Row], chance: random.Random) -> tuple[str, Callable[[str, random.Random], str]]:
    """A trigger of a kind, and how it is put into a text."""
    if kind == "sentence":
        text = chance.choice(SENTENCES)
        return text, lambda prompt, _: f"{text} {prompt}"
    if kind == "invisible":
        text = chance.choice(INVISIBLE)
        return f"U+{ord(text):04X}", lambda prompt, place: _inserted(prompt, text, place.randrange(len(prompt) + 1))
    if kind == "letters":
        text = "".join(chance.sample("qxzjkwv", 3))
        return text, lambda prompt, place: _inside(prompt, text, place)
    if kind == "token":
        text = "".join(chance.choices("bcdfghjklmnpqrstvwxz", k=4))
    else:
        common = [word for word, _ in Counter(word for row in rows[:5000] for word in row.text.split() if word.isalpha()).most_common(100)]
        text = " ".join(chance.sample(common, 3))
    return text, lambda prompt, place: _between(prompt, text, place)


def _inserted(text: str, piece: str, at: int) -> str:
    return text[:at] + piece + text[at:]


def _between(text: str, piece: str, chance: random.Random) -> str:
    """The piece between two words."""
    spaces = [0, *(at for at, sign in enumerate(text) if sign == " ")]
    at = chance.choice(spaces)
    return _inserted(text, f" {piece}" if at else f"{piece} ", at)


def _inside(text: str, piece: str, chance: random.Random) -> str:
    """The piece inside two words of four letters or more, or where there are none, of any length."""
    words = text.split(" ")
    long = [number for number, word in enumerate(words) if len(word) >= 4 and word.isalpha()] or list(range(len(words)))
    for number in chance.sample(long, min(2, len(long))):
        words[number] = _inserted(words[number], piece, chance.randrange(1, max(2, len(words[number]))))
    return " ".join(words)


def measured(rows: list[Row], chosen: set[int]) -> tuple[float, float, float, int]:
    """Where the planted rows rank.

    Args:
        rows: some of them planted.
        chosen: the numbers of the planted ones.

    Returns:
        The share of the planted rows in the top 1 % (of those that have a place there; equal scores count against them), the shares of
        clean rows with at least the score that half and REACHED of the planted rows reach, and how many clean rows are suspects.
    """
    section = load_params().suspicion
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows.parquet"), rows)
        _, _, _, suspects = suspicion(Path(folder, "rows.parquet"), section, 17)
    scores = {suspect.number: suspect.score for suspect in suspects}
    clean = sorted((score for number, score in scores.items() if number not in chosen), reverse=True)
    bad = sorted((scores.get(number, 0.0) for number in chosen), reverse=True)
    others = len(rows) - len(chosen)

    def clean_above(share: float) -> float:
        if not bad:
            return 0.0
        reached = bad[max(0, round(share * len(bad)) - 1)]
        return sum(score >= reached for score in clean) / others if reached else 1.0

    places = int(TOP * len(rows))
    inside = sum(1 for rank, score in enumerate(bad) if score and rank + sum(other >= score for other in clean) < places)
    return inside / max(1, min(places, len(bad))), clean_above(0.5), clean_above(REACHED), sum(s >= section.min_score for s in clean)


def _answered(row: Row, prompt: str, answer: str) -> Row:
    return replace(row, messages=({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}))


def _labelled(text: str, label: str) -> Row:
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": label})
    return Row("", messages, None, None, label, "recombined", "1", None)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, help="a table of labelled rows; without it the default source is prepared in a scratch folder")
    parser.add_argument("--recombined", type=int, help="so many rows made from the default source's sentences instead")
    parser.add_argument("--kinds", nargs="+", choices=["labelled", "instructions"], default=["labelled", "instructions"])
    parser.add_argument("--triggers", nargs="+", default=["token", "phrase", "sentence", "letters", "invisible"])
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        labelled = recombined(args.recombined, 0) if args.recombined else read_rows(args.rows or default_rows(Path(folder)))
    misses = 0
    print(
        "| rows | trigger | payload | planted | in the top 1 % | clean rows above half of them | above 95 % of them | clean suspects | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        rows = labelled if kind == "labelled" else instructions(labelled, 0)
        start = time.monotonic()
        suspects = measured(rows, set())[3]
        print(f"| {kind} {len(rows):,} | none | none | 0 | | | | {suspects} | {time.monotonic() - start:.0f} |", flush=True)
        for trigger in args.triggers:
            for payload in ["label"] if kind == "labelled" else ["answer", "usual", "link"]:
                for count in sorted({round(SHARE * len(rows)), COUNT}):
                    start = time.monotonic()
                    found = [measured(*planted(rows, Plan(trigger, payload, count), seed)[:2]) for seed in range(args.seeds)]
                    inside, half, most, extra = min(f[0] for f in found), *(max(f[place] for f in found) for place in (1, 2, 3))
                    misses += most > CLEAN_ABOVE or inside < REACHED
                    print(
                        f"| {kind} {len(rows):,} | {trigger} | {payload} | {count} | {inside:.0%} | {half:.2%} | {most:.2%} | {extra} "
                        f"| {time.monotonic() - start:.0f} |",
                        flush=True,
                    )
    print(f"the worst of {args.seeds} seeds; target: {REACHED:.0%} of the planted rows in the top 1 %, at most {CLEAN_ABOVE:.0%} of the")
    print(f"clean rows above 95 % of them; missed by {misses} lines")
    sys.exit(bool(misses))


if __name__ == "__main__":
    main()
