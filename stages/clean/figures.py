"""How much of the planted set the detectors find, and how much of what they find is planted.

In: the planted set of a seed and the detectors. Out: recall and precision, by kind and in all, and the names of what was missed.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stages.clean.planted import Planted, planted_set
from stages.core.redaction import Detector, separate

MIN_RECALL = 0.98
MIN_PRECISION = 0.95


def measure(detectors: Mapping[str, Detector], seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Runs the detectors on a planted set.

    A value is found if one finding of its kind covers all of it. A finding is false if it touches no planted value, or is of another kind
    than the value of its group that it touches.

    Args:
        detectors: by group, `secrets` and `personal_data`.
        seed: of the planted set.

    Returns:
        The headline numbers, and the details: by group and kind how many were planted, found and falsely found; the formats that were not
        always found with their recall; what was taken for something by mistake; and the recall of formats that are not promised.
    """
    headline: dict[str, float] = {}
    details: dict[str, Any] = {}
    texts = list(planted_set(seed))
    for group, detector in detectors.items():
        planted, found, false = Counter[str](), Counter[str](), Counter[str]()
        formats: dict[bool, dict[str, list[bool]]] = {True: {}, False: {}}
        mistakes: Counter[str] = Counter()
        for item in texts:
            findings = separate(detector(item.text))
            if item.group == group:
                hit = any(f.kind == item.kind and f.start <= item.start and item.end <= f.end for f in findings)
                formats[item.expected].setdefault(f"{item.kind}: {item.format}", []).append(hit)
                if item.expected:
                    planted[item.kind] += 1
                    found[item.kind] += hit
            for finding in findings:
                if _is_false(item, group, finding.kind, finding.start, finding.end):
                    false[finding.kind] += 1
                    mistakes[f"{item.format} ({item.kind}) taken for {finding.kind}"] += 1
        recalls = {expected: {name: sum(hits) / len(hits) for name, hits in by.items()} for expected, by in formats.items()}
        prefix = "pii" if group == "personal_data" else group
        headline[f"{prefix}_recall"] = found.total() / planted.total()
        headline[f"{prefix}_precision"] = found.total() / max(1, found.total() + false.total())
        details[group] = {
            "kinds": {
                kind: {
                    "planted": planted[kind],
                    "recall": found[kind] / planted[kind] if planted[kind] else None,
                    "precision": found[kind] / (found[kind] + false[kind]) if found[kind] + false[kind] else None,
                }
                for kind in sorted(planted | false)
            },
            "not_always_found": {name: recall for name, recall in sorted(recalls[True].items()) if recall < 1},
            "mistakes": dict(sorted(mistakes.items())),
            "not_promised": dict(sorted(recalls[False].items())),
        }
    return headline, {"seed": seed, "texts": len(texts), **details}


def _is_false(item: Planted, group: str, kind: str, start: int, end: int) -> bool:
    if not item.group or not (start < item.end and item.start < end):
        return True
    return item.group == group and kind != item.kind and item.expected


def too_low(headline: Mapping[str, float]) -> list[str]:
    """Sentences for the figures below MIN_RECALL and MIN_PRECISION."""
    limits = {name: MIN_RECALL if name.endswith("recall") else MIN_PRECISION for name in headline}
    return [f"{name} is {value:.3f} on the planted set, below {limits[name]}" for name, value in headline.items() if value < limits[name]]
