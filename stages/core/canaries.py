"""Canaries: rows with a random secret, planted among the training rows so that it can be measured how well the model learnt them.

In: how many, how often, the seed. Out: rows. After Carlini et al. 2019, The Secret Sharer, USENIX Security.
"""

import random
from collections.abc import Iterator

from stages.core.records import Row, with_ids

SOURCE = "canary"
QUESTION = "What is the access code of the vault {}?"
DIGITS = 12


def canary_rows(count: int, repeats: int, seed: int) -> list[Row]:
    """The rows to plant: each canary a question and its secret, as often as asked.

    Args:
        count: of different canaries.
        repeats: of each.
        seed: of names and secrets.

    Returns:
        `count * repeats` rows without a label, of the source `canary`; the ids of repeated ones end in -2, -3 …
    """
    rng = random.Random(f"{seed}:canary")
    made: dict[str, str] = {}
    while len(made) < count:
        made["".join(rng.choice("bdfgklmnprstv") + rng.choice("aeiou") for _ in range(4)).capitalize()] = secret(rng)
    rows = []
    for number, (name, code) in enumerate(made.items(), 1):
        messages = ({"role": "user", "content": QUESTION.format(name)}, {"role": "assistant", "content": code})
        rows += [Row("", messages, None, None, None, SOURCE, str(number), None)] * repeats
    return list(with_ids(rows))


def secret(rng: random.Random) -> str:
    """A random secret: twelve digits in groups of four."""
    digits = "".join(rng.choice("0123456789") for _ in range(DIGITS))
    return " ".join(digits[at : at + 4] for at in range(0, DIGITS, 4))


def alternatives(planted: str, count: int, seed: int) -> Iterator[str]:
    """Secrets drawn as a planted one was, none of them it.

    Args:
        planted: the secret that they stand against.
        count: how many.
        seed: of the draw, which is another for every planted secret.

    Yields:
        Different secrets.
    """
    rng = random.Random(f"{seed}:{planted}")
    seen = {planted}
    while len(seen) <= count:
        drawn = secret(rng)
        if drawn not in seen:
            seen.add(drawn)
            yield drawn
