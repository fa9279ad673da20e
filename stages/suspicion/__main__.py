"""Suspicion: a score in [0, 1] for every row that shows signs of poisoning, caps by source, and the strings that look like triggers.

In: data/label_check/rows.parquet. Out: data/suspicion/rows.parquet, the rejected rows, suspects.parquet (worst first), triggers.json and
reports/suspicion.json. It is suspicion and not detection: a person judges, and `action: report` changes no row.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, write_json, write_report
from stages.core.params import Params, Suspicion
from stages.core.progress import progress
from stages.core.records import REJECTED_SCHEMA, SCHEMA, Row, TableWriter, count_rows, iter_rows, write_table
from stages.core.stage import run_stage
from stages.suspicion import strings
from stages.suspicion.sources import over_caps, scaled, tier_of
from stages.suspicion.strings import Signal

LISTED_SHARE = 0.01  # of the rows in suspects.parquet, the worst first …
LISTED_LEAST = 100  # … and at least so many, if that many have any sign
SHOWN = 10  # rows of a signal in the report
EXCERPT_CHARACTERS = 160
SUSPECTS_SCHEMA = pa.schema(
    [("rank", pa.int64()), ("id", pa.string()), ("score", pa.float64()), ("signal", pa.string()), ("evidence", pa.string())]
)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row with signs of poisoning.

    Attributes:
        id: the row's.
        score: in [0, 1].
        signals: the strongest first.
        text: the beginning of its prompt and answer.
    """

    id: str
    score: float
    signals: tuple[Signal, ...]
    text: str

    @property
    def evidence(self) -> str:
        """Every signal in a sentence."""
        return "; ".join(f"{signal.name}: {signal.evidence}" for signal in self.signals)


def main(params: Params) -> None:
    """Runs the stage."""
    total = count_rows(paths.LABEL_ROWS)
    over, sources = _caps(params.suspicion, params.seed)
    suspects = find_suspects(progress(iter_rows(paths.LABEL_ROWS), "suspicion", total), params.suspicion, over)
    marked = [suspect for suspect in suspects if suspect.score >= params.suspicion.min_score]
    limit = int(params.suspicion.max_drop_share * total) if params.suspicion.action == "drop" else 0
    drop = {suspect.id: suspect for suspect in marked[:limit]}
    with outputs() as place:
        rejected = _write(place(paths.SUSPICION_ROWS), place(paths.SUSPICION_REJECTED), over, drop)
        listed = suspects[: max(LISTED_LEAST, int(LISTED_SHARE * total), len(drop))]
        records = [
            {"rank": rank, "id": s.id, "score": round(s.score, 6), "signal": s.signals[0].name, "evidence": s.evidence}
            for rank, s in enumerate(listed, 1)
        ]
        write_table(place(paths.SUSPICION_SUSPECTS), pa.Table.from_pylist(records, schema=SUSPECTS_SCHEMA))
        write_json(place(paths.SUSPICION_TRIGGERS), [])
        report = {
            "rows_in": total,
            "rows_out": total - sum(rejected.values()),
            "rejected": rejected,
            "action": params.suspicion.action,
            "min_score": params.suspicion.min_score,
            "suspects": len(marked),
            "kept_by_cap": len(marked) - len(drop) if params.suspicion.action == "drop" else 0,
            "rows_with_a_signal": len(suspects),
            "signals": _by_signal(suspects, params.suspicion.min_score),
            "sources": sources,
            "triggers": [],
            "top_suspects": [{"id": s.id, "score": s.score, "evidence": s.evidence, "text": s.text} for s in marked[:SHOWN]],
        }
        write_report(place(paths.SUSPICION_REPORT), {}, report)


def find_suspects(rows: Iterator[Row], params: Suspicion, over: Mapping[str, Any]) -> list[Suspect]:
    """Every row with a sign of poisoning.

    Args:
        rows: to look at.
        params: the section `suspicion`.
        over: ids that are rejected whatever they say.

    Returns:
        The suspects, the worst first, equal scores in order of id.
    """
    suspects = []
    for row in rows:
        if row.id in over:
            continue
        if signals := strings.find(row.text, row.answer):
            suspects.append(_suspect(row, signals, params))
    return sorted(suspects, key=lambda suspect: (-suspect.score, suspect.id))


def _suspect(row: Row, signals: list[Signal], params: Suspicion) -> Suspect:
    """The row with its signals as one score: they count as independent evidence, weighed by the source's tier."""
    innocent = 1.0
    for signal in signals:
        innocent *= 1 - signal.strength
    score = scaled(1 - innocent, tier_of(row.source, params.sources))
    ordered = sorted(signals, key=lambda signal: (-signal.strength, signal.name))
    text = f"{row.text} → {row.answer}"
    return Suspect(row.id, score, tuple(ordered), text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "…")


def _caps(params: Suspicion, seed: int) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The rows over a source's cap, and what the report says of each source."""
    table = pq.read_table(paths.LABEL_ROWS, columns=["id", "source"])
    names = table.column("source").to_pylist()
    over = over_caps(zip(table.column("id").to_pylist(), names, strict=True), params.sources, seed)
    counts = Counter(names)
    return over, [{"source": name, "rows": rows, "trust": tier_of(name, params.sources)} for name, rows in sorted(counts.items())]


def _write(kept: Path, rejected: Path, over: Mapping[str, dict[str, Any]], drop: Mapping[str, Suspect]) -> dict[str, int]:
    """Writes the rows kept and the rows rejected; returns how many each rule rejected."""
    counts: Counter[str] = Counter()
    with TableWriter(kept, SCHEMA) as rows, TableWriter(rejected, REJECTED_SCHEMA) as out:
        for row in iter_rows(paths.LABEL_ROWS):
            if row.id in over:
                counts["over_source_cap"] += 1
                out.rejected(row, "over_source_cap", over[row.id])
            elif row.id in drop:
                suspect = drop[row.id]
                counts["suspicion"] += 1
                out.rejected(row, "suspicion", {"score": round(suspect.score, 6), "evidence": suspect.evidence})
            else:
                rows.row(row)
    if counts.total() and counts.total() == count_rows(paths.LABEL_ROWS):
        raise UserError("suspicion would reject every row; raise suspicion.sources' max_rows or lower suspicion.max_drop_share")
    return dict(sorted(counts.items()))


def _by_signal(suspects: list[Suspect], min_score: float) -> list[dict[str, Any]]:
    """For each signal how many rows show it, how many of them are suspects, and the worst of them."""
    found: dict[str, list[tuple[Suspect, Signal]]] = defaultdict(list)
    for suspect in suspects:
        for signal in suspect.signals:
            found[signal.name].append((suspect, signal))
    return [
        {
            "signal": name,
            "rows": len(pairs),
            "suspects": sum(suspect.score >= min_score for suspect, _ in pairs),
            "worst": [{"id": s.id, "score": s.score, "evidence": signal.evidence, "text": s.text} for s, signal in pairs[:SHOWN]],
        }
        for name, pairs in sorted(found.items())
    ]


if __name__ == "__main__":
    run_stage("suspicion", main)
