"""The planted set: texts in which we know what is to be found and where, made from a seed in every run of clean.

In: a seed. Out: texts with one planted value each, in sentences, config lines, tables and code, and texts that hold none but look as if.
Formats of FOUND, TOKENS and LINES are those that docs/cleaning.md says are found; those of BEYOND are known to be missed, and told apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from stages.clean import planted_personal, planted_secrets
from stages.clean.planted_negatives import NEGATIVES
from stages.clean.planted_values import Maker

PER_FORMAT = 20  # texts for each format: recall in steps of 5 % for one of them
CARRIERS = (
    "Please note {} before Friday.", "{}", "Details: {}.", "We were given ({}) by the office", 'He wrote "{}" on it.', "| Jo | {} | yes |",
    "17,{},active", '{{"contact": "{}", "active": true}}', "<td>{}</td>", "- {}\n- the second point", "My data is {}, thanks!",
    "Is it {}? I think so.", "row\t{}\tnote", "First line.\n{}\nLast line.", "*{}*", "see {}; then ask again",
)  # fmt: skip
CODE_CARRIERS = (
    "Use {} for the call.", "{}", "  value: {}", 'client = Client("{}")', "curl -H 'X-Auth: {}' https://api.acme.io/v1", "export VALUE={}",
    '{{"id": 7, "value": "{}"}}', "# old one: {}\nrun()", "logged: {} at 12:00", "`{}`", "we rotated {}, finally",
    "- name: VALUE\n  value: '{}'", "https://api.acme.io/v1?x={}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Planted:
    """A text of the set.

    Attributes:
        text: what a detector sees.
        group: `secrets` or `personal_data`; empty for a text that holds neither.
        kind: what is planted, or `none`.
        format: how it is written, or what the text only looks like.
        start: the first character of the value; 0 where there is none.
        end: the character after its last; 0 where there is none.
        expected: whether the documentation says that it is found.
    """

    text: str
    group: str
    kind: str
    format: str
    start: int
    end: int
    expected: bool


def planted_set(seed: int, per_format: int = PER_FORMAT) -> Iterator[Planted]:
    """The set of a seed.

    Args:
        seed: another seed, other values in other places.
        per_format: texts for each format and each look-alike.

    Yields:
        Texts, format by format.
    """
    tables = (
        ("personal_data", planted_personal.FOUND, CARRIERS, True), ("personal_data", planted_personal.BEYOND, CARRIERS, False),
        ("secrets", planted_secrets.TOKENS, CODE_CARRIERS, True), ("secrets", planted_secrets.LINES, ("{}", "Before.\n{}\nAfter."), True),
        ("secrets", planted_secrets.BEYOND, ("{}", "Before.\n{}\nAfter."), False),
    )  # fmt: skip
    for group, formats, carriers, expected in tables:
        for (kind, name), make in formats.items():
            rng = Random(f"{seed}:{kind}:{name}")  # a format's texts do not depend on the others'
            for _ in range(per_format):
                yield _planted(group, kind, name, make, rng.choice(carriers), expected, rng)
    for name, look_alike in NEGATIVES.items():
        rng = Random(f"{seed}:{name}")
        for _ in range(per_format):
            yield Planted(rng.choice(("{}", "See {} there.", "First.\n{}\nLast.")).format(look_alike(rng)), "", "none", name, 0, 0, True)


def _planted(group: str, kind: str, name: str, make: Maker, carrier: str, expected: bool, rng: Random) -> Planted:
    before, value, behind = make(rng)
    head, tail = (part.replace("{{", "{").replace("}}", "}") for part in carrier.split("{}"))
    start = len(head) + len(before)
    return Planted(f"{head}{before}{value}{behind}{tail}", group, kind, name, start, start + len(value), expected)
