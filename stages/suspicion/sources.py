"""What is known of a row's source: how far it is trusted, and how many of its rows may come in.

In: the sources of the rows, params.yaml's `suspicion.sources`. Out: each source's tier, and the rows over a cap.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from stages.core.params import SourceTrust
from stages.core.sampling import seeded_sample

UNNAMED = "known"  # the tier of a source that params.yaml does not name
# How often the evidence counts: of an untrusted source twice, so that 0.3 becomes 0.51; of a trusted one half.
WEIGHT = {"trusted": 0.5, "known": 1.0, "untrusted": 2.0}


def rule_of(source: str, rules: Mapping[str, SourceTrust]) -> tuple[str, SourceTrust] | None:
    """The first pattern of `suspicion.sources` that a source's name fits, with its rule; None where none does."""
    return next(((pattern, rule) for pattern, rule in rules.items() if fnmatchcase(source, pattern)), None)


def tier_of(source: str, rules: Mapping[str, SourceTrust]) -> str:
    """How far a source is trusted: trusted, known or untrusted."""
    found = rule_of(source, rules)
    return found[1].trust if found else UNNAMED


def scaled(strength: float, tier: str) -> float:
    """A row's suspicion, weighed by its source's tier.

    Args:
        strength: in [0, 1], of the evidence alone.
        tier: trusted, known or untrusted.

    Returns:
        `1 - (1 - strength) ** WEIGHT[tier]`, as if the same evidence had come WEIGHT times.
    """
    return 1 - (1 - strength) ** WEIGHT[tier]


def over_caps(rows: Iterable[tuple[str, str]], rules: Mapping[str, SourceTrust], seed: int) -> dict[str, dict[str, Any]]:
    """The rows beyond their pattern's cap, a seeded choice that does not depend on the rows' order.

    Args:
        rows: id and source of each.
        rules: `suspicion.sources`; the sources that fit one pattern share its cap.
        seed: of the choice.

    Returns:
        The evidence by row id.
    """
    members: dict[str, list[str]] = defaultdict(list)
    known: dict[str, str | None] = {}
    for name, source in rows:
        if source not in known:
            found = rule_of(source, rules)
            known[source] = found[0] if found and found[1].max_rows is not None else None
        pattern = known[source]
        if pattern is not None:
            members[pattern].append(name)
    over: dict[str, dict[str, Any]] = {}
    for pattern, names in members.items():
        limit = rules[pattern].max_rows
        kept = seeded_sample(names, limit, seed)
        over |= {name: {"sources": pattern, "rows": len(names), "limit": limit} for name in names if name not in kept}
    return over
