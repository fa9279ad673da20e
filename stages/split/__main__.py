"""Split: train, validation and test, no near-duplicate cluster and no group on two sides, labels in proportion.

In: data/suspicion/rows.parquet, data/general. Out: data/split/{train,validation,test}.parquet, the rows beyond the caps, the evaluation
items that share words with training rows, reports/split.json.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.params import Params, Split
from stages.core.records import REJECTED_SCHEMA, Row, count_rows, rows_of, write_table
from stages.core.stage import run_stage
from stages.core.tables import GroupWriter, read_groups, rejected_table
from stages.split.overlap import DOMAIN, LENGTHS, NOBODY, first_rows, item_texts, items_of, overlaps, rows_with_test
from stages.split.places import SIDES, Marks, Numbers, Parts, assert_apart, assign, gather, marks_of, sample

OUTS = {"train": paths.SPLIT_TRAIN, "test": paths.SPLIT_TEST, "validation": paths.SPLIT_VALIDATION}
EXAMPLES = 10  # of items that share words with training rows


def main(params: Params) -> None:
    """Runs the stage."""
    with outputs() as place:
        report = split(paths.SUSPICION_ROWS, paths.GENERAL, params.split, params.seed, place)
        write_report(place(paths.SPLIT_REPORT), {"train_rows": report["rows"]["train"]}, report)


def split(source: Path, general: Path, params: Split, seed: int, place: Callable[[Path], Path]) -> dict[str, Any]:
    """Splits rows, samples each side down to its cap, and looks for evaluation items in what is left of the training side.

    Args:
        source: rows with their clusters.
        general: the folder of the general suite.
        params: the section `split`.
        seed: of the order in which components are placed and rows sampled.
        place: from `files.outputs`; the sides keep the order of the file.

    Returns:
        The report's details.

    Raises:
        UserError: `split.test_ngram` leaves nothing to train on.
    """
    marks, parts, side = _placed(source, params, seed)
    members = {name: np.flatnonzero(side == number) for number, name in enumerate(SIDES)}
    limits = {"train": params.max_train, "test": params.max_test, "validation": params.max_validation}
    kept = {name: sample(members[name], limits[name], marks, seed, name) for name in ("test", "validation")}
    test = _read(source, marks, kept["test"])
    free, containing = members["train"], dict[int, tuple[str, int]]()
    if params.test_ngram is not None:
        containing = rows_with_test(source, _ranks(marks, free), test, params.test_ngram)
        free = np.setdiff1d(free, np.fromiter(containing, dtype=np.int64, count=len(containing)))
        if not len(free):
            raise UserError(
                f"every training row shares split.test_ngram ({params.test_ngram}) words with a test row; raise it or set it to null"
            )
    kept["train"] = sample(free, limits["train"], marks, seed, "train")

    rejected = {f"over_max_{name}": len(members[name]) - len(kept[name]) for name in SIDES}
    rejected["over_max_train"] -= len(containing)
    evidence = {name: {"side": name, "rows": len(members[name]), "limit": limits[name]} for name in SIDES}

    def rejection(row: int) -> tuple[str, dict[str, Any]]:
        if row in containing:
            return "contains_test", {"test": containing[row][0], "words": containing[row][1]}
        return f"over_max_{SIDES[side[row]]}", evidence[SIDES[side[row]]]

    out = np.full(len(side), -1, dtype=np.int8)
    for number, name in enumerate(SIDES):
        out[kept[name]] = number
    assert_apart(out, marks)
    _write(source, marks, out, rejection, place)

    names, owners, words = item_texts(test, general)
    kinds = [items_of(names, owners, words, length) for length in LENGTHS]
    shared = overlaps(kinds, first_rows(source, _ranks(marks, kept["train"]), kinds), marks.ids)
    write_table(place(paths.SPLIT_OVERLAP), shared)
    return {
        "rows_in": len(side),
        "rows_out": sum(map(len, kept.values())),
        "rejected": dict(sorted((rule, rows) for rule, rows in {**rejected, "contains_test": len(containing)}.items() if rows)),
        "rows": {name: len(kept[name]) for name in SIDES},
        "rows_before_caps": {name: len(members[name]) for name in SIDES},
        "labels": {name: _labels(marks, kept[name]) for name in SIDES},
        "components": len(parts.first),
        "largest_component": int(parts.size.max()),
        "groups": int(marks.group.max()) + 1,
        "overlap": _overlap(names, shared, test),
    }


def _placed(source: Path, params: Split, seed: int) -> tuple[Marks, Parts, npt.NDArray[np.int8]]:
    """The rows' marks, their components and each row's side."""
    if not count_rows(source):
        raise UserError(f"{source} holds no rows to split; see reports/clean.json and reports/dedupe.json for what rejected them")
    marks = marks_of(pa.concat_tables(read_groups(source, ["id", "label", "cluster", "group"])))
    parts = gather(marks)
    shares = {"train": 1 - params.validation - params.test, "test": params.test, "validation": params.validation}
    side = assign(parts, marks, shares, seed)
    rows = len(side)
    for number, name in enumerate(SIDES):
        if (side == number).any() or shares[name] == 0 or (name == "validation" and params.max_validation == 0):
            continue
        told = f"{rows} rows in {len(parts.first)} independent clusters or groups, of which it may have {shares[name]:.0%}"
        remedy = f"raise split.{name}" if name != "train" else "lower split.test and split.validation"
        alternative = ", or set split.validation: 0" if name == "validation" else ""
        raise UserError(f"split would leave {name} empty: {told}; add data, {remedy}{alternative}")
    return marks, parts, side


def _ranks(marks: Marks, rows: Numbers) -> Numbers:
    """For each row of the file its place in the order of ids, or NOBODY where it is not among `rows`."""
    ranks = np.full(len(marks.ids), NOBODY, dtype=np.int64)
    ranks[marks.order[rows]] = rows
    return ranks


def _read(source: Path, marks: Marks, rows: Numbers) -> list[Row]:
    """Some rows of a file, in its order."""
    wanted = np.zeros(len(marks.ids), dtype=np.bool_)
    wanted[marks.order[rows]] = True
    found: list[Row] = []
    start = 0
    for group in read_groups(source):
        found += rows_of(group.filter(pa.array(wanted[start : start + len(group)])))
        start += len(group)
    return found


def _write(
    source: Path,
    marks: Marks,
    out: npt.NDArray[np.int8],
    rejection: Callable[[int], tuple[str, dict[str, Any]]],
    place: Callable[[Path], Path],
) -> None:
    """Writes the sides and the rejected rows in the order of the file."""
    rank = np.empty(len(out), dtype=np.int64)
    rank[marks.order] = np.arange(len(out))
    files = [GroupWriter(place(OUTS[name])) for name in SIDES]
    start = 0
    with files[0], files[1], files[2], GroupWriter(place(paths.SPLIT_REJECTED), REJECTED_SCHEMA) as rejected:
        for group in read_groups(source):
            mine = rank[start : start + len(group)]
            start += len(group)
            for number, file in enumerate(files):
                file.write(group.filter(pa.array(out[mine] == number)))
            told = list(map(rejection, mine[out[mine] < 0].tolist()))
            gone = group.filter(pa.array(out[mine] < 0))
            rejected.write(rejected_table(gone, [rule for rule, _ in told], [evidence for _, evidence in told]))


def _labels(marks: Marks, rows: Numbers) -> dict[str, int]:
    counts = np.bincount(marks.label[rows], minlength=len(marks.labels)).tolist()
    return {label: count for label, count in zip(marks.labels, counts, strict=True) if count}


def _overlap(names: list[tuple[str, str]], shared: pa.Table, test: list[Row]) -> dict[str, Any]:
    """The report's part on items that share words with training rows, and the domain's that share the most."""
    found = shared.to_pylist()
    texts = {row.id: row.text[:240] for row in test}
    longest = sorted((one for one in found if one["task"] == DOMAIN), key=lambda one: (-one["words"], one["item_id"]))
    return {
        "by_task": [
            {
                "task": task,
                "items": sum(name == task for name, _ in names),
                **{f"run_{length}": sum(one["task"] == task and one["words"] >= length for one in found) for length in LENGTHS},
            }
            for task in dict.fromkeys(task for task, _ in names)
        ],
        "examples": [{**one, "text": texts[one["item_id"]]} for one in longest[:EXAMPLES]],
    }


if __name__ == "__main__":
    run_stage("split", main)
