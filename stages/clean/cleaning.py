"""Rows cleaned: repaired, searched for what must not be learnt, redacted, judged.

In: rows and the section `clean`. Out: the kept rows, the rejected ones with rule and evidence, and the tally of what happened.
"""

from collections import Counter
from collections.abc import Mapping

from stages.clean.rules import Judgement, judge
from stages.clean.tally import Batch, Tally, extremes
from stages.clean.unicode import repair
from stages.core.params import Clean
from stages.core.personal_data import find_personal_data
from stages.core.records import Rejected, Row
from stages.core.redaction import Detector, Finding, Redactor, separate
from stages.core.row_texts import contents, with_texts
from stages.core.secrets import find_secrets

DETECTORS: dict[str, Detector] = {"secrets": find_secrets, "personal_data": find_personal_data}
SAMPLES = 5  # of repairs in the report
WINDOW = (40, 80)  # characters shown before and after the first change of a repair


def clean_batch(rows: list[Row], params: Clean) -> Batch:
    """Cleans rows; the order stays, and cleaning what was kept changes nothing.

    Args:
        rows: as fetched.
        params: the section `clean`.

    Returns:
        Kept rows, rejected rows, and the tally of the batch.
    """
    tally = Tally(rows_in=len(rows))
    judged: list[tuple[Row, Judgement]] = []
    for raw in rows:
        repaired, steps = repair_row(raw)
        found = {name: [detector(text) for text in contents(repaired)] for name, detector in DETECTORS.items()}
        tally.repaired.update(steps)
        if steps and len(tally.repair_samples) < SAMPLES and not any(map(any, found.values())) and (shown := _sample(raw, steps)):
            tally.repair_samples.append(shown)
        for name, by_text in found.items():
            values = Counter(finding.kind for findings in by_text for finding in separate(findings))
            tally.values.setdefault(name, Counter()).update(values)
            tally.rows.setdefault(name, Counter()).update(values.keys())
        judged.append(clean_row(repaired, found, params))
    rejected = [Rejected(row, judgement.rule, judgement.evidence) for row, judgement in judged if judgement.rule is not None]
    tally.rejected.update(item.rule for item in rejected)
    tally.extremes = extremes(judged, lambda row: contents(redacted(row, _find_all)))
    return Batch([row for row, judgement in judged if judgement.rule is None], rejected, tally)


def repair_row(raw: Row) -> tuple[Row, list[str]]:
    """A row with its encoding mended, and the names of the repairs that it needed."""
    steps: Counter[str] = Counter()
    return with_texts(raw, lambda text: repair(text, steps)), sorted(steps)


def clean_row(row: Row, found: Mapping[str, list[list[Finding]]], params: Clean) -> tuple[Row, Judgement]:
    """One repaired row redacted where asked for and judged; a rejected row is redacted of whatever params do not keep.

    Args:
        row: repaired.
        found: what each detector found in each text of the row.
        params: the section `clean`.

    Returns:
        The changed row (id, label and the label's message as they were) and the judgement.
    """
    asked = actions(params)

    def action(name: str, finding: Finding) -> str:
        return asked[name].get(finding.kind, asked[name]["default"])

    def hidden(text: str) -> list[Finding]:
        return [finding for name, detector in DETECTORS.items() for finding in detector(text) if action(name, finding) != "keep"]

    if any(action(name, finding) != "keep" for name, by_text in found.items() for findings in by_text for finding in findings):
        row = redacted(row, hidden)
    for name, by_text in found.items():
        places = [
            {"text": number, "kind": finding.kind, "start": finding.start, "end": finding.end}
            for number, findings in enumerate(by_text)
            for finding in separate(finding for finding in findings if action(name, finding) == "drop")
        ]
        if places:
            return row, Judgement({name: len(places)}, name, {"found": places})
    return row, judge(row, params)


def actions(params: Clean) -> dict[str, dict[str, str]]:
    """What is asked for the findings of each detector, by kind and by default: drop, redact or keep."""
    return {"secrets": dict(params.secrets.items()), "personal_data": dict(params.personal_data.items())}


def redacted(row: Row, detect: Detector) -> Row:
    """The row with a placeholder for each value; repaired again, because a placeholder's edge can combine with what follows it."""
    if not any(map(detect, contents(row))):
        return row
    redactor = Redactor(detect, contents(row))
    while (changed := with_texts(with_texts(row, redactor), repair)) != row:
        row = changed
    return row


def _find_all(text: str) -> list[Finding]:
    return [finding for detector in DETECTORS.values() for finding in detector(text)]


def _sample(row: Row, steps: list[str]) -> dict[str, object] | None:
    """What a repair did, around its first change; None for line ends, which show nothing, and where the raw text has something to hide."""
    for before in contents(row):
        after = repair(before)
        if before != after and steps != ["line_ends"] and not _find_all(before):
            first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
            window = slice(max(0, first - WINDOW[0]), first + WINDOW[1])
            return {"id": row.id, "steps": steps, "before": before[window], "after": after[window]}
    return None
