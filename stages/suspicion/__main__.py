"""Suspicion: a score in [0, 1] for every row that shows signs of poisoning, caps by source, and the strings that look like triggers.

In: data/label_check/rows.parquet. Out: data/suspicion/rows.parquet, the rejected rows, suspects.parquet (worst first), triggers.json and
reports/suspicion.json. It is suspicion and not detection: a person judges, and `action: report` changes no row.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, write_json, write_report
from stages.core.params import Params, Suspicion
from stages.core.records import REJECTED_SCHEMA, write_table
from stages.core.stage import run_stage
from stages.core.tables import GroupWriter, read_groups, rejected_table
from stages.suspicion.matching import Matcher
from stages.suspicion.sources import over_caps, scaled, tier_of
from stages.suspicion.strings import Signal
from stages.suspicion.survey import Facts, excerpts, obeyed, read, sample, survey
from stages.suspicion.triggers import Trigger, find_triggers

SAMPLE_ROWS = 100_000  # that triggers are looked for in: one row of each cluster and response, so that time stays linear
SAMPLE_CHARACTERS = 64_000_000  # of them, which long rows reach first: memory stays below 3 GiB
MAX_TRIGGERS = 50
LISTED_SHARE = 0.01  # of the rows in suspects.parquet, the worst first …
LISTED_LEAST = 100  # … and at least so many, if that many have any sign
SKEW_SHARE = 0.9  # of a trigger's rows from one source, which has no more than …
SKEW_OF_ALL = 0.5  # … this share of all rows
SKEW = 0.3  # what that adds to a row's suspicion
SHOWN = 10  # rows of a signal in the report
SHOWN_ANSWER = 80  # characters of an answer in a row's evidence
PREDICTED = 400  # characters of it in triggers.json, with which a model's answer is compared
EXCERPT_CHARACTERS = 160
SUSPECTS_SCHEMA = pa.schema(
    [("rank", pa.int64()), ("id", pa.string()), ("score", pa.float64()), ("signal", pa.string()), ("evidence", pa.string())]
)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row with signs of poisoning.

    Attributes:
        number: the row's.
        id: the row's.
        score: in [0, 1].
        signals: the strongest first.
    """

    number: int
    id: str
    score: float
    signals: tuple[Signal, ...]

    @property
    def evidence(self) -> str:
        """Every signal in a sentence."""
        return "; ".join(f"{signal.name}: {signal.evidence}" for signal in self.signals)


def main(params: Params) -> None:
    """Runs the stage."""
    facts, over, triggers, suspects = suspicion(paths.LABEL_ROWS, params.suspicion, params.seed)
    total = len(facts.ids)
    marked = [suspect for suspect in suspects if suspect.score >= params.suspicion.min_score]
    limit = int(params.suspicion.max_drop_share * total) if params.suspicion.action == "drop" else 0
    rejections = {number: ("over_source_cap", over[name]) for number, name in enumerate(facts.ids) if name in over}
    rejections |= {s.number: ("suspicion", {"score": round(s.score, 6), "evidence": s.evidence}) for s in marked[:limit]}
    if total and len(rejections) == total:
        raise UserError("suspicion would reject every row; raise suspicion.sources' max_rows or lower suspicion.max_drop_share")
    listed = suspects[: max(LISTED_LEAST, int(LISTED_SHARE * total), limit)]
    records = [
        {"rank": rank, "id": s.id, "score": round(s.score, 6), "signal": s.signals[0].name, "evidence": s.evidence}
        for rank, s in enumerate(listed, 1)
    ]
    report = {
        "rows_in": total,
        "rows_out": total - len(rejections),
        "rejected": dict(sorted(Counter(rule for rule, _ in rejections.values()).items())),
        "action": params.suspicion.action,
        "min_score": params.suspicion.min_score,
        "suspects": len(marked),
        "kept_by_cap": len(marked[limit:]) if params.suspicion.action == "drop" else 0,
        "rows_with_a_signal": len(suspects),
        "sources": [
            {"source": name, "rows": rows, "trust": tier_of(name, params.suspicion.sources)}
            for name, rows in sorted(Counter(facts.sources).items())
        ],
        "triggers": triggers,
        **_shown(suspects, marked, params.suspicion.min_score),
    }
    with outputs() as place:
        _write(place(paths.SUSPICION_ROWS), place(paths.SUSPICION_REJECTED), rejections)
        write_table(place(paths.SUSPICION_SUSPECTS), pa.Table.from_pylist(records, schema=SUSPECTS_SCHEMA))
        write_json(place(paths.SUSPICION_TRIGGERS), triggers)
        write_report(place(paths.SUSPICION_REPORT), {"suspects": len(marked)}, report)


def suspicion(path: Path, params: Suspicion, seed: int) -> tuple[Facts, dict[str, dict[str, Any]], list[dict[str, Any]], list[Suspect]]:
    """Every row with a sign of poisoning.

    Args:
        path: the table of rows.
        params: the section `suspicion`.
        seed: of the sample and of the caps.

    Returns:
        The rows' facts; the evidence of those over a source's cap, by id; the triggers as triggers.json has them, the worst first; the
        suspects, the worst first, equal scores in order of id.
    """
    facts = survey(path, seed)
    over = over_caps(zip(facts.ids, facts.sources, strict=True), params.sources, seed)
    out = np.array([name in over for name in facts.ids], dtype=bool)
    rows = list(read(path, sample(facts, out, SAMPLE_ROWS, SAMPLE_CHARACTERS)))
    triggers, compact = find_triggers([row.text for row in rows], [row.answer for row in rows], [row.label for row in rows])
    triggers, compact = triggers[:MAX_TRIGGERS], compact[:MAX_TRIGGERS]
    del rows
    signals = {number: list(found) for number, found in facts.signals.items()}
    counts: Counter[int] = Counter()
    if triggers or compact:
        matches = obeyed(path, Matcher(triggers, compact))
        counts.update(number for found in matches.values() for number in found)
        skewed = _skewed(matches, facts.sources)
        for row, found in matches.items():
            signals.setdefault(row, []).extend(_of_triggers(found, triggers, compact, counts, skewed))
    suspects = [_suspect(number, facts, found, params) for number, found in signals.items() if not out[number]]
    listed = [
        {
            "trigger": one.text,
            "kind": one.kind,
            "rows": counts[number],
            "predicts": one.response.written[:PREDICTED],
            "score": one.score,
        }
        for number, one in enumerate(triggers)
    ]
    return facts, over, listed, sorted(suspects, key=lambda suspect: (-suspect.score, suspect.id))


def _of_triggers(
    found: Sequence[int], triggers: Sequence[Trigger], compact: Sequence[Trigger], counts: Mapping[int, int], skewed: Mapping[int, str]
) -> list[Signal]:
    """The signals of a row that obeys triggers: the strongest of them, the answer in common, and that all came from one source."""
    signals = []
    worst = max(found, key=lambda number: ((*triggers, *compact)[number].score, -number))
    one = (*triggers, *compact)[worst]
    answer = f"{one.response.kind} '{one.response.text[:SHOWN_ANSWER]}'"
    if worst < len(triggers):
        evidence = f"'{one.text}' ({one.kind}) → {answer}, {counts[worst]} rows, {one.purity:.0%} of those that have it"
        signals.append(Signal("trigger", one.score, evidence))
    else:
        signals.append(Signal("same_answer", one.score, f"{counts[worst]} rows of unlike prompts have the {answer}"))
    if worst in skewed:
        signals.append(Signal("source_skew", SKEW, f"{SKEW_SHARE:.0%} or more of these rows are from {skewed[worst]}"))
    return signals


def _skewed(matches: Mapping[int, Sequence[int]], sources: Sequence[str]) -> dict[int, str]:
    """The triggers whose rows come nearly all from one source that has few of all rows."""
    of_all = Counter(sources)
    by_trigger: dict[int, Counter[str]] = defaultdict(Counter)
    for row, found in matches.items():
        for number in found:
            by_trigger[number][sources[row]] += 1
    skewed = {}
    for number, counts in by_trigger.items():
        source, most = min(counts.items(), key=lambda item: (-item[1], item[0]))
        if most >= SKEW_SHARE * counts.total() and of_all[source] <= SKEW_OF_ALL * len(sources):
            skewed[number] = source
    return skewed


def _suspect(number: int, facts: Facts, signals: Sequence[Signal], params: Suspicion) -> Suspect:
    """The row with its signals as one score: they count as independent evidence, weighed by the source's tier."""
    innocent = 1.0
    for signal in signals:
        innocent *= 1 - signal.strength
    score = scaled(1 - innocent, tier_of(facts.sources[number], params.sources))
    return Suspect(number, facts.ids[number], score, tuple(sorted(signals, key=lambda signal: (-signal.strength, signal.name))))


def _write(kept: Path, rejected: Path, rejections: Mapping[int, tuple[str, dict[str, Any]]]) -> None:
    """Writes the rows kept and the rows rejected, by row number."""
    start = 0
    with GroupWriter(kept) as rows, GroupWriter(rejected, REJECTED_SCHEMA) as out:
        for table in read_groups(paths.LABEL_ROWS):
            mine = [number for number in range(start, start + len(table)) if number in rejections]
            stays = np.ones(len(table), dtype=bool)
            stays[np.array(mine, dtype=np.int64) - start] = False
            rows.write(table.filter(pa.array(stays)))
            if mine:
                gone = table.filter(pa.array(~stays))
                out.write(rejected_table(gone, [rejections[number][0] for number in mine], [rejections[number][1] for number in mine]))
            start += len(table)


def _shown(suspects: Sequence[Suspect], marked: Sequence[Suspect], min_score: float) -> dict[str, Any]:
    """The rows to show: the worst of all, and for each signal how many rows have it, how many of them are suspects, and its worst."""
    by_signal: dict[str, list[tuple[Suspect, Signal]]] = defaultdict(list)
    for suspect in suspects:
        for signal in suspect.signals:
            by_signal[signal.name].append((suspect, signal))
    shown = {suspect.number for pairs in by_signal.values() for suspect, _ in pairs[:SHOWN]} | {s.number for s in marked[:SHOWN]}
    text = excerpts(paths.LABEL_ROWS, sorted(shown), EXCERPT_CHARACTERS)
    return {
        "signals": [
            {
                "signal": name,
                "rows": len(pairs),
                "suspects": sum(suspect.score >= min_score for suspect, _ in pairs),
                "worst": [
                    {"id": s.id, "score": s.score, "evidence": signal.evidence, "text": text[s.number]} for s, signal in pairs[:SHOWN]
                ],
            }
            for name, pairs in sorted(by_signal.items())
        ],
        "top_suspects": [{"id": s.id, "score": s.score, "evidence": s.evidence, "text": text[s.number]} for s in marked[:SHOWN]],
    }


if __name__ == "__main__":
    run_stage("suspicion", main)
