"""Dedupe: rejects rows that hold an evaluation item, exact, near and semantic duplicates, and gives every row its cluster.

In: data/local_models/rows.parquet and vectors, data/general. Out: data/dedupe/rows.parquet with `cluster` filled, the rejected rows with
rule and evidence, reports/dedupe.json. The same prompt with another answer is a conflict: reported, never dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.params import Dedupe, Params
from stages.core.records import REJECTED_SCHEMA, Row, count_rows, rows_of
from stages.core.row_texts import answer_text
from stages.core.stage import run_stage
from stages.core.tables import GroupWriter, read_groups, rejected_table, with_column
from stages.dedupe.clusters import Buckets, Clusters, Pool, conflict_groups, find_clusters, shared_prompts
from stages.dedupe.contamination import Contamination, evaluation_index
from stages.dedupe.facts import read_facts, read_sets
from stages.dedupe.semantic import Paraphrase, Vectors, find_semantic, paraphrases, read_vectors

EXAMPLES = 5  # of a rule in the report
CONFLICTS = 20  # groups in the report
EXCERPT_CHARACTERS = 160
KEPT, CONTAMINATED, PARAPHRASE, EXACT, NEAR, SEMANTIC = range(6)
RULES = {
    CONTAMINATED: "contamination",
    PARAPHRASE: "paraphrase",
    EXACT: "exact_duplicate",
    NEAR: "near_duplicate",
    SEMANTIC: "semantic_duplicate",
}


@dataclass
class Verdicts:
    """What becomes of the rows, which are told by their place in the order of ids.

    Attributes:
        ids: [rows], ascending.
        rank: [rows] int64, the place of each row of the file.
        rule: [rows] int8, KEPT or the rule that rejects it.
        kept: [rows] int64, of a duplicate the row that is kept for it.
        met: [rows] int64, of a duplicate the row that it is equal or like to, which may repeat another row itself.
        similarity: [rows] float64, of a near-duplicate Jaccard's, of a semantic one the cosine.
        cluster: [rows] int64, the cluster's smallest row.
        contaminated: the evaluation item that a row contains.
        paraphrased: the evaluation item that a row says in other words.
        conflicts: groups of kept rows with like prompts and unlike answers.
        shared_prompts: prompts that too many rows have to tell of likeness.
        compared: pairs whose similarity was computed.
    """

    ids: pa.Array
    rank: npt.NDArray[np.int64]
    rule: npt.NDArray[np.int8]
    kept: npt.NDArray[np.int64]
    met: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]
    cluster: npt.NDArray[np.int64]
    contaminated: dict[int, Contamination]
    paraphrased: dict[int, Paraphrase]
    conflicts: list[list[int]]
    shared_prompts: int
    compared: int

    def id(self, row: int) -> str:
        """A row's id."""
        name: str = self.ids[int(row)].as_py()
        return name

    def evidence(self, row: int) -> dict[str, Any]:
        """What a rejected row is rejected for."""
        if self.rule[row] == CONTAMINATED:
            match = self.contaminated[row]
            return {"task": match.task, "item": match.item, "words": match.words}
        if self.rule[row] == PARAPHRASE:
            near = self.paraphrased[row]
            return {"task": near.task, "item": near.item, "cosine": near.cosine}
        told: dict[str, Any] = {"kept": self.id(self.kept[row])}
        if self.rule[row] != EXACT:
            told["jaccard" if self.rule[row] == NEAR else "cosine"] = round(float(self.similarity[row]), 4)
        if self.kept[row] != self.met[row]:  # the original itself repeats another row
            told["equal_to" if self.rule[row] == EXACT else "near_to"] = self.id(self.met[row])
        return told


def main(params: Params) -> None:
    """Runs the stage."""
    with outputs() as place:
        vectors = read_vectors(paths.LOCAL_VECTORS, count_rows(paths.LOCAL_ROWS))
        report = dedupe(paths.LOCAL_ROWS, paths.GENERAL, params.dedupe, params.seed, place, vectors)
        write_report(place(paths.DEDUPE_REPORT), {}, report)


def dedupe(
    source: Path, general: Path, params: Dedupe, seed: int, place: Callable[[Path], Path], vectors: Vectors | None = None
) -> dict[str, Any]:
    """Removes contaminated and repeated rows; the order stays, and doing it twice removes nothing more.

    Args:
        source: clean rows.
        general: the folder of the evaluation items.
        params: the section `dedupe`.
        seed: of MinHash.
        place: from `files.outputs`; DEDUPE_ROWS and DEDUPE_REJECTED are written there.
        vectors: of the rows, where an embedding model gave some.

    Returns:
        The report's details.
    """
    found = judged(source, general, params, seed, vectors)
    shown, examples = _examples(found)
    texts: dict[int, Row] = {}
    start = 0
    with GroupWriter(place(paths.DEDUPE_ROWS)) as kept, GroupWriter(place(paths.DEDUPE_REJECTED), REJECTED_SCHEMA) as rejected:
        for group in read_groups(source):
            ranks = found.rank[start : start + len(group)]
            start += len(group)
            group = with_column(group, "cluster", found.ids.take(pa.array(found.cluster[ranks])))
            rules = found.rule[ranks]
            kept.write(group.filter(pa.array(rules == KEPT)))
            gone = ranks[rules != KEPT].tolist()
            rejected.write(
                rejected_table(
                    group.filter(pa.array(rules != KEPT)), [RULES[found.rule[row]] for row in gone], list(map(found.evidence, gone))
                )
            )
            wanted = np.flatnonzero(np.isin(ranks, shown))
            texts.update(zip(ranks[wanted].tolist(), rows_of(group.take(wanted)), strict=True))
    return _report(found, texts, examples, evaluation_index(general.resolve(), params.eval_ngram).items)


def judged(source: Path, general: Path, params: Dedupe, seed: int, vectors: Vectors | None) -> Verdicts:
    """Decides what becomes of each row.

    Args:
        source: clean rows.
        general: the folder of the evaluation items.
        params: the section `dedupe`.
        seed: of MinHash.
        vectors: of the rows, where an embedding model gave some.

    Returns:
        The verdicts.

    Raises:
        UserError: two rows have the same id.
    """
    evaluation_index(general.resolve(), params.eval_ngram)  # tells a broken file before the work begins
    facts = read_facts(source, general, params, seed)
    ids = pa.array(facts.ids, pa.string())
    facts.ids.clear()
    order = pc.sort_indices(ids).to_numpy().astype(np.int64)
    ids = ids.take(pa.array(order))
    if pc.any(pc.equal(ids[1:], ids[:-1])).as_py():
        raise UserError(f"{source} has two rows with the same id; make it again: dvc repro -f fetch_data")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))

    rule = np.full(len(order), KEPT, dtype=np.int8)
    kept = np.arange(len(order))
    contaminated = {int(rank[number]): match for number, match in facts.contaminated.items()}
    rule[list(contaminated)] = CONTAMINATED
    paraphrased: dict[int, Paraphrase] = {}
    if vectors is not None and params.paraphrase_threshold is not None:
        near = paraphrases(vectors, params.paraphrase_threshold)
        paraphrased = {int(rank[number]): its for number, its in near.items() if rule[rank[number]] == KEPT}
        rule[list(paraphrased)] = PARAPHRASE
    left = np.flatnonzero(rule == KEPT)
    _, first, same = np.unique(facts.exact[order][left], return_index=True, return_inverse=True)
    kept[left] = left[first[same]]
    rule[left[kept[left] != left]] = EXACT
    equal = kept.copy()

    rows = np.flatnonzero(rule == KEPT)  # the near-duplicates are told by their place in these
    chosen = order[rows]
    common, prompts = shared_prompts(facts.prompt[chosen])
    views = [(facts.prompts[chosen], ~common)]
    if facts.wholes is not None:
        views.append((facts.wholes[chosen], np.ones(len(rows), dtype=np.bool_)))
    buckets = Buckets(views)
    met = buckets.rows()
    pool = _pool(source, chosen[met], facts.label[chosen][met], common[met], params)
    found = find_clusters(buckets, met, pool, params.keep_near_duplicates)

    similarity = np.zeros(len(order))
    for row, (its, likeness) in found.repeats.items():
        rule[rows[row]], kept[rows[row]], similarity[rows[row]] = NEAR, rows[its], likeness
    if vectors is not None and params.semantic_threshold is not None:
        stay = np.array([row for row in range(len(rows)) if row not in found.repeats], dtype=np.int64)
        label = facts.label[chosen[stay]]
        threshold, keep = params.semantic_threshold, params.keep_near_duplicates
        semantic = find_semantic(vectors, chosen[stay], label, common[stay], threshold, seed, keep)
        for one, other in semantic.joined:
            found.union.join(int(stay[one]), int(stay[other]))
        for row, (its, likeness) in semantic.repeats.items():
            gone = rows[stay[row]]
            rule[gone], kept[gone], similarity[gone] = SEMANTIC, rows[stay[its]], likeness
        found.conflicts = [pair for pair in found.conflicts if not {rule[rows[pair[0]]], rule[rows[pair[1]]]} & {SEMANTIC}]
    direct = kept
    kept = kept[kept]  # an exact duplicate of a near-duplicate is of the row that is kept for that,
    kept = kept[kept]  # and one of a near-duplicate of a semantic duplicate of the row that is kept for the last
    cluster = np.arange(len(order))
    cluster[rows] = rows[[found.union.find(row) for row in range(len(rows))]]
    cluster = cluster[equal]
    conflicts = _conflicts(found, rows)
    return Verdicts(ids, rank, rule, kept, direct, similarity, cluster, contaminated, paraphrased, conflicts, prompts, found.compared)


def _pool(source: Path, numbers: npt.NDArray[np.int64], label: Any, common: npt.NDArray[np.bool_], params: Dedupe) -> Pool:
    """The shingle sets of the rows of a file that are compared; `numbers` need not ascend, and the pool is in their order."""
    ascending = np.argsort(numbers)
    back = np.empty(len(numbers), dtype=np.int64)
    back[ascending] = np.arange(len(numbers))
    prompts, wholes, answers = read_sets(source, numbers[ascending], params.shingle_words)
    mine = prompts.taken(back)
    return Pool(mine, mine if wholes is prompts else wholes.taken(back), answers.taken(back), label, common, params.near_threshold)


def _conflicts(found: Clusters, rows: npt.NDArray[np.int64]) -> list[list[int]]:
    """The groups of rows that contradict one another and are both kept."""
    both = [pair for pair in found.conflicts if pair[0] not in found.repeats and pair[1] not in found.repeats]
    return [rows[group].tolist() for group in conflict_groups(both)]


def _examples(found: Verdicts) -> tuple[list[int], dict[int, list[int]]]:
    """The rows whose text the report shows, and those of each rule.

    The least alike come first: those are the ones a threshold too low would drop wrongly.
    """
    examples: dict[int, list[int]] = {}
    for rule in RULES:
        gone = np.flatnonzero(found.rule == rule)
        if rule == CONTAMINATED:
            gone = np.array(sorted(gone.tolist(), key=lambda row: (-found.contaminated[row].words, row)), dtype=np.int64)
        elif rule == PARAPHRASE:
            gone = np.array(sorted(gone.tolist(), key=lambda row: (found.paraphrased[row].cosine, row)), dtype=np.int64)
        elif rule in (NEAR, SEMANTIC):
            gone = gone[np.argsort(found.similarity[gone], kind="stable")]
        if len(gone):
            examples[rule] = gone[:EXAMPLES].tolist()
    shown = {row for rows in examples.values() for row in rows}
    shown |= {int(found.kept[row]) for row in shown}
    shown |= {row for group in found.conflicts[:CONFLICTS] for row in group[:EXAMPLES]}
    return sorted(shown), examples


def _report(found: Verdicts, texts: dict[int, Row], examples: dict[int, list[int]], items: dict[str, int]) -> dict[str, Any]:
    """The report's details."""
    sizes = np.bincount(found.cluster[found.rule == KEPT], minlength=1)
    counts = {name: int((found.rule == rule).sum()) for rule, name in RULES.items()}
    told: dict[str, list[dict[str, Any]]] = {}
    for rule, rows in examples.items():
        told[RULES[rule]] = [
            {"id": found.id(row), "text": _short(texts[row]), **found.evidence(row)}
            | ({} if rule in (CONTAMINATED, PARAPHRASE) else {"kept_text": _short(texts[int(found.kept[row])])})
            for row in rows
        ]
    return {
        "rows_in": len(found.rule),
        "rows_out": int((found.rule == KEPT).sum()),
        "rejected": dict(sorted((name, count) for name, count in counts.items() if count)),
        "clusters": int((sizes > 0).sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "evaluation_items": items,
        "pairs_compared": found.compared,
        "shared_prompts": found.shared_prompts,
        "conflicts": len(found.conflicts),
        "conflicting_rows": sum(map(len, found.conflicts)),
        "conflict_examples": [
            [
                {"id": found.id(row), "text": _short(texts[row]), "answer": answer_text(texts[row])[:EXCERPT_CHARACTERS]}
                for row in group[:EXAMPLES]
            ]
            for group in found.conflicts[:CONFLICTS]
        ],
        "examples": dict(sorted(told.items())),
    }


def _short(row: Row) -> str:
    return row.text if len(row.text) <= EXCERPT_CHARACTERS else row.text[:EXCERPT_CHARACTERS] + "…"


if __name__ == "__main__":
    run_stage("dedupe", main)
