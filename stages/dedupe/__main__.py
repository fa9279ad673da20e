"""Dedupe: rejects rows that contain an evaluation item, exact duplicates and near-duplicates, and gives every row its cluster.

In: data/clean/rows.parquet, data/general. Out: data/dedupe/rows.parquet with `cluster` filled, the rejected rows with rule and evidence,
reports/dedupe.json. The same prompt with another answer is a conflict: reported, never dropped.
"""

import json
from dataclasses import replace
from typing import Any

from stages.core import paths
from stages.core.components import Union
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.params import Dedupe, Params
from stages.core.progress import progress
from stages.core.records import Rejected, Row, count_rules, read_rows, write_rejected, write_rows
from stages.core.stage import run_stage
from stages.dedupe.clusters import answer_text, conflict_groups, find_clusters
from stages.dedupe.contamination import EvaluationIndex
from stages.dedupe.words import normalised

EXAMPLES = 5  # of a rule in the report
CONFLICTS = 20  # groups in the report
EXCERPT_CHARACTERS = 160


def main(params: Params) -> None:
    """Runs the stage."""
    rows = read_rows(paths.CLEAN_ROWS)
    index = EvaluationIndex(paths.GENERAL, params.dedupe.eval_ngram)
    with outputs() as place:
        kept, rejected, report = dedupe(rows, index, params.dedupe, params.seed)
        write_rows(place(paths.DEDUPE_ROWS), kept)
        write_rejected(place(paths.DEDUPE_REJECTED), rejected)
        write_report(place(paths.DEDUPE_REPORT), {}, report)


def dedupe(rows: list[Row], index: EvaluationIndex, params: Dedupe, seed: int) -> tuple[list[Row], list[Rejected], dict[str, Any]]:
    """Removes contaminated and repeated rows; the order stays, and doing it twice removes nothing more.

    Args:
        rows: clean rows.
        index: of the evaluation items.
        params: the section `dedupe`.
        seed: of MinHash.

    Returns:
        The rows kept with their clusters, the rows rejected, and the report's details.

    Raises:
        UserError: two rows have the same id.
    """
    if len({row.id for row in rows}) != len(rows):
        raise UserError(f"{paths.CLEAN_ROWS} has two rows with the same id; make it again: dvc repro -f fetch_data")
    rejections: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in progress(rows, "dedupe"):
        if match := index.find(row):
            rejections[row.id] = ("contamination", {"task": match.task, "item": match.item, "words": match.words})

    left = [row for row in rows if row.id not in rejections]
    first: dict[str, str] = {}
    for row in sorted(left, key=lambda row: row.id):
        original = first.setdefault(exact_key(row), row.id)
        if original != row.id:
            rejections[row.id] = ("exact_duplicate", {"kept": original})

    distinct = [row for row in left if row.id not in rejections]
    found = find_clusters(distinct, params.near_threshold, params.shingle_words, params.keep_near_duplicates, seed)
    for name, (rule, evidence) in rejections.items():
        if rule == "exact_duplicate" and evidence["kept"] in found.repeats:  # the original itself repeats another row
            rejections[name] = (rule, {"kept": found.repeats[evidence["kept"]][0], "equal_to": evidence["kept"]})
    for name, (kept_id, similarity) in found.repeats.items():
        rejections[name] = ("near_duplicate", {"kept": kept_id, "jaccard": round(similarity, 4)})

    union: Union[str] = Union()
    for name, cluster in found.cluster.items():
        union.join(name, cluster)
    for name, (_, evidence) in rejections.items():
        union.join(name, evidence.get("kept", name))
    clustered = [replace(row, cluster=union.find(row.id)) for row in rows]
    kept = [row for row in clustered if row.id not in rejections]
    rejected = [Rejected(row, *rejections[row.id]) for row in clustered if row.id in rejections]
    assert len(rows) == len(kept) + len(rejected), "dedupe lost or made rows"
    conflicts = [pair for pair in found.conflicts if pair[0] not in rejections and pair[1] not in rejections]
    return kept, rejected, _report(kept, rejected, index, conflicts, found.shared_prompts)


def exact_key(row: Row) -> str:
    """Equal for rows whose prompts and whose answers differ in case, layout and punctuation only."""
    prompt = [[message["role"], normalised(message["content"])] for message in row.messages]
    return json.dumps([prompt, normalised(answer_text(row)), row.label], ensure_ascii=False)


def _report(
    kept: list[Row], rejected: list[Rejected], index: EvaluationIndex, conflicts: list[tuple[str, str, float]], shared_prompts: int
) -> dict[str, Any]:
    """The report's details."""
    by_id = {row.id: row for row in [*kept, *(item.row for item in rejected)]}
    sizes: dict[str, int] = {}
    for row in kept:
        sizes[str(row.cluster)] = sizes.get(str(row.cluster), 0) + 1
    groups = conflict_groups(conflicts)
    examples: dict[str, list[dict[str, Any]]] = {}
    # the least alike first: those are the ones a threshold too low would drop wrongly
    for item in sorted(rejected, key=lambda item: (item.evidence.get("jaccard", 0.0), -item.evidence.get("words", 0), item.row.id)):
        shown = examples.setdefault(item.rule, [])
        if len(shown) < EXAMPLES:
            other = {"kept_text": _short(by_id[item.evidence["kept"]])} if "kept" in item.evidence else {}
            shown.append({"id": item.row.id, "text": _short(item.row), **item.evidence, **other})
    return {
        "rows_in": len(by_id),
        "rows_out": len(kept),
        "rejected": count_rules(rejected),
        "clusters": len(sizes),
        "largest_cluster": max(sizes.values(), default=0),
        "evaluation_items": index.items,
        "shared_prompts": shared_prompts,
        "conflicts": len(groups),
        "conflicting_rows": sum(len(group) for group in groups),
        "conflict_examples": [
            [
                {"id": name, "text": _short(by_id[name]), "answer": answer_text(by_id[name])[:EXCERPT_CHARACTERS]}
                for name in group[:EXAMPLES]
            ]
            for group in groups[:CONFLICTS]
        ],
        "examples": dict(sorted(examples.items())),
    }


def _short(row: Row) -> str:
    return row.text if len(row.text) <= EXCERPT_CHARACTERS else row.text[:EXCERPT_CHARACTERS] + "…"


if __name__ == "__main__":
    run_stage("dedupe", main)
