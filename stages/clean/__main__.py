"""Clean: repairs Unicode, then rejects or redacts rows by named, counted rules.

In: data/raw/rows.parquet. Out: data/clean/rows.parquet, the rejected rows with rule and evidence, and reports/clean.json. Neither the
evidence nor the report ever holds a secret or a personal datum, and a rejected row is kept with placeholders in its place.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stages.clean.findings import Detector, Redactor, separate
from stages.clean.personal_data import find_personal_data
from stages.clean.rules import Verdict, contents, judge, language_model
from stages.clean.secrets import find_secrets
from stages.clean.unicode import repair
from stages.core import paths
from stages.core.files import outputs, write_report
from stages.core.params import Clean, Params
from stages.core.progress import progress
from stages.core.records import Rejected, Row, count_rules, read_rows, write_rejected, write_rows
from stages.core.stage import run_stage

EXAMPLES = 5  # of a rule in the report
EXCERPT_CHARACTERS = 160
DETECTORS: dict[str, Detector] = {"secrets": find_secrets, "personal_data": find_personal_data}


def main(params: Params) -> None:
    """Runs the stage."""
    rows = read_rows(paths.RAW_ROWS)
    with outputs() as place:
        kept, rejected, report = clean(rows, params.clean)
        write_rows(place(paths.CLEAN_ROWS), kept)
        write_rejected(place(paths.CLEAN_REJECTED), rejected)
        write_report(place(paths.CLEAN_REPORT), {}, report)


def clean(rows: list[Row], params: Clean) -> tuple[list[Row], list[Rejected], dict[str, Any]]:
    """Cleans rows; the order stays, and cleaning what was kept changes nothing.

    Args:
        rows: as fetched.
        params: the section `clean`.

    Returns:
        The rows kept, the rows rejected, and the report's details.
    """
    language_of = language_model(params.languages) if params.languages else None
    kept: list[Row] = []
    rejected: list[Rejected] = []
    extremity: dict[str, float] = {}
    repairs: Counter[str] = Counter()
    samples: list[dict[str, Any]] = []
    found: dict[str, dict[str, Counter[str]]] = {name: {"rows": Counter(), "values": Counter()} for name in DETECTORS}

    for raw in progress(rows, "clean"):
        row, verdict = clean_row(raw, params, language_of)
        steps = _count_repairs(raw, repairs)
        if steps and len(samples) < EXAMPLES and (sample := _sample(raw, steps)):
            samples.append(sample)
        for name, detector in DETECTORS.items():
            values = Counter(f.kind for text in contents(_with_texts(raw, repair)) for f in separate(detector(text)))
            found[name]["values"].update(values)
            found[name]["rows"].update(values.keys())
        if verdict is None:
            kept.append(row)
        else:
            rejected.append(Rejected(row, verdict.rule, verdict.evidence))
            extremity[row.id] = verdict.extremity

    assert len(rows) == len(kept) + len(rejected), "clean lost or made rows"
    report = {
        "rows_in": len(rows),
        "rows_out": len(kept),
        "rejected": count_rules(rejected),
        "repaired": dict(repairs),
        "repair_samples": samples,
        **{name: {"action": actions(params)[name], **{unit: dict(n) for unit, n in counts.items()}} for name, counts in found.items()},
        "examples": _examples(rejected, extremity),
    }
    return kept, rejected, report


def actions(params: Clean) -> dict[str, str]:
    """What is asked for the findings of each detector: drop, redact or keep."""
    return {"secrets": params.secrets, "personal_data": params.personal_data}


def clean_row(row: Row, params: Clean, language_of: Callable[[str], dict[str, float]] | None) -> tuple[Row, Verdict | None]:
    """One row repaired, redacted where asked for, and judged; a rejected row is redacted of whatever params do not keep.

    Args:
        row: as fetched.
        params: the section `clean`.
        language_of: from `rules.language_model`, or None.

    Returns:
        The changed row (id, label and the label's message as they were), and the verdict or None.
    """
    row = _with_texts(row, repair)
    asked = actions(params)
    hidden = [detector for name, detector in DETECTORS.items() if asked[name] != "keep"]
    for name, detector in DETECTORS.items():
        if asked[name] != "drop":
            continue
        places = [
            {"text": number, "kind": finding.kind, "start": finding.start, "end": finding.end}
            for number, text in enumerate(contents(row))
            for finding in separate(detector(text))
        ]
        if places:
            return _redacted(row, hidden), Verdict(name, {"found": places}, len(places))
    row = _redacted(row, hidden)
    return row, judge(row, params, language_of)


def _redacted(row: Row, detectors: list[Detector]) -> Row:
    """The row with a placeholder for each value; repaired again, because a placeholder's edge can combine with what follows it."""
    if not any(detector(text) for text in contents(row) for detector in detectors):
        return row
    redactor = Redactor(lambda text: [finding for detector in detectors for finding in detector(text)], contents(row))
    while (changed := _with_texts(_with_texts(row, redactor), repair)) != row:
        row = changed
    return row


def _with_texts(row: Row, change: Callable[[str], str]) -> Row:
    """The row with every text changed but its label's."""
    changed = row.mapped(change)
    if row.label is None or row.messages[-1]["role"] != "assistant":
        return changed
    return replace(changed, messages=(*changed.messages[:-1], row.messages[-1]))


def _count_repairs(row: Row, repairs: Counter[str]) -> list[str]:
    """Adds one for each repair that a row needed, however many of its messages did, and names them."""
    counts: Counter[str] = Counter()
    for text in contents(row):
        repair(text, counts)
    repairs.update(counts.keys())
    return sorted(counts)


def _sample(row: Row, steps: list[str]) -> dict[str, Any] | None:
    """What a repair did, around its first change; None for a row with anything to hide, and for line ends, which show nothing."""
    for before in contents(row):
        after = repair(before)
        if (
            before != after
            and steps != ["line_ends"]
            and not any(detector(text) for text in (before, after) for detector in DETECTORS.values())
        ):
            first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
            window = slice(max(0, first - 40), first + 80)
            return {"id": row.id, "steps": steps, "before": before[window], "after": after[window]}
    return None


def _examples(rejected: list[Rejected], extremity: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
    """The most extreme rows of each rule, their text redacted of everything, whatever params keep, and shortened."""
    by_rule: dict[str, list[Rejected]] = defaultdict(list)
    for item in sorted(rejected, key=lambda item: (-extremity[item.row.id], item.row.id)):
        by_rule[item.rule].append(item)
    examples: dict[str, list[dict[str, Any]]] = {}
    for rule, items in sorted(by_rule.items()):
        examples[rule] = []
        for item in items[:EXAMPLES]:
            text = "\n".join(contents(_redacted(item.row, list(DETECTORS.values()))))
            short = text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "…"
            evidence = {name: value[:EXAMPLES] if isinstance(value, list) else value for name, value in item.evidence.items()}
            examples[rule].append({"id": item.row.id, "text": short, **evidence})
    return examples


if __name__ == "__main__":
    run_stage("clean", main)
