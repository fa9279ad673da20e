"""Above ten million rows: clean and dedupe on the executors of datatrove (local, Slurm or Ray), with the kept rows of the two stages.

In: data/raw/rows.parquet and data/general. Out: FOLDER/kept/*.parquet and the rejected rows beside them.
Run: python -m stages.cli.many_rows FOLDER --tasks 16 [--executor slurm --options '{"partition": "cpu", "time": "10:00:00"}']

Each task cleans its row groups and writes the keys of their rows: the exact key and the MinHash buckets. Rows that hang together by
shared keys go to one task, which runs the dedupe stage's own function on them; what that decides of a row depends on no other rows.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.clean.cleaning import clean_batch
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import canonical_json, sha256_file, sha256_path
from stages.core.parallel import in_batches
from stages.core.params import Params, load_params
from stages.core.records import REJECTED_SCHEMA, SCHEMA, TableWriter, count_rows, rows_of
from stages.core.stage import guarded
from stages.core.tables import GroupWriter, count_groups, read_group, read_groups
from stages.dedupe.__main__ import dedupe
from stages.dedupe.facts import read_facts

BATCH_ROWS = 2_000
EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}


def clean_share(_: Any, rank: int, tasks: int, *, folder: Path, root: Path, params: Params) -> None:
    """Cleans every row group whose number is the task's, and writes the keys of the rows kept.

    Args:
        rank: the task.
        tasks: how many there are.
        folder: of the results.
        root: of the workspace.
        params: of params.yaml.
    """
    source, kept = root / paths.RAW_ROWS, folder / f"clean/{rank:05}.parquet"
    with TableWriter(kept, SCHEMA) as rows, TableWriter(folder / f"rejected/clean-{rank:05}.parquet", REJECTED_SCHEMA) as rejected:
        for group in range(rank, count_groups(source), tasks):
            for batch in in_batches(rows_of(read_group(source, group)), BATCH_ROWS):
                done = clean_batch(batch, params.clean)
                for row in done.kept:
                    rows.row(row)
                for item in done.rejected:
                    rejected.rejected(item.row, item.rule, item.evidence)
    facts = read_facts(kept, root / paths.GENERAL, params.dedupe, params.seed)
    keys: dict[str, npt.NDArray[Any]] = {
        "exact": facts.exact[:, None],
        "prompts": facts.prompts,
        "wholes": facts.prompts if facts.wholes is None else facts.wholes,
    }
    for name, array in keys.items():
        np.save(folder / f"keys/{name}-{rank:05}.npy", array)


def deal(_: Any, __: int, ___: int, *, folder: Path, tasks: int) -> None:
    """Gives each row the task that judges it, the same for rows that share a key, directly or through others.

    Args:
        folder: of the results.
        tasks: among which the rows are dealt.
    """
    parts = [
        [np.load(path, mmap_mode="r") for path in sorted((folder / "keys").glob(f"{name}-*.npy"))]
        for name in ("exact", "prompts", "wholes")
    ]
    sizes = [len(array) for array in parts[0]]
    together = np.arange(sum(sizes))
    for arrays in parts:
        for column in range(max(array.shape[1] for array in arrays)):  # one at a time, so that a column is all that is held
            together = joined(together, np.concatenate([array[:, column] for array in arrays if len(array)] or [np.zeros(0)]))
    # Fibonacci hashing, so that neighbours are spread
    task = (together.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % np.uint64(tasks)
    for number, mine in enumerate(np.split(task.astype(np.int64), np.cumsum(sizes)[:-1])):
        np.save(folder / f"keys/task-{number:05}.npy", mine)


def joined(together: npt.NDArray[np.int64], keys: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Joins the components of rows that share a key.

    Args:
        together: [rows] int64, each row's component.
        keys: [rows], of any type that sorts.

    Returns:
        [rows] int64, the components after that.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, first, same = np.unique(keys, return_index=True, return_inverse=True)
    edges = (together, together[first[same]])
    size = len(together)
    graph = coo_array((np.ones(size, dtype=np.int8), edges), shape=(size, size))
    return connected_components(graph, directed=False)[1].astype(np.int64)[together]


def dedupe_share(_: Any, rank: int, __: int, *, folder: Path, root: Path, params: Params) -> None:
    """Judges the rows that were dealt to the task.

    Args:
        rank: the task.
        folder: of the results.
        root: of the workspace.
        params: of params.yaml.
    """
    mine = folder / f"dealt/{rank:05}.parquet"
    with GroupWriter(mine) as file:
        for path in sorted((folder / "clean").iterdir()):
            task, start = np.load(folder / f"keys/task-{path.stem}.npy"), 0
            for group in read_groups(path):
                file.write(group.filter(pa.array(task[start : start + len(group)] == rank)))
                start += len(group)
    places = {paths.DEDUPE_ROWS: folder / f"kept/{rank:05}.parquet", paths.DEDUPE_REJECTED: folder / f"rejected/dedupe-{rank:05}.parquet"}
    dedupe(mine, root / paths.GENERAL, params.dedupe, params.seed, places.__getitem__)
    mine.unlink()


def run(root: Path, folder: Path, params: Params, tasks: int, executor: Callable[..., Any]) -> dict[str, int]:
    """Runs the three steps, those that are done already aside.

    Args:
        root: the workspace with the raw rows and the evaluation items.
        folder: of the results, which every task must reach.
        params: of params.yaml.
        tasks: of the first and the last step.
        executor: a class of datatrove, its options given.

    Returns:
        How many rows came in, were kept, and were rejected.

    Raises:
        UserError: `folder` holds the results of other rows or params, or a local model is asked for.
    """
    if params.local_models.entities is not None or params.local_models.embedding is not None:
        raise UserError("local_models are run by the local path alone (dvc repro); set both to null for many_rows")
    digests = [sha256_file(root / paths.RAW_ROWS), sha256_path(root / paths.GENERAL)]
    known = [*digests, params.clean.model_dump(), params.dedupe.model_dump(), params.seed, tasks]
    key = hashlib.sha256(canonical_json(known).encode()).hexdigest()
    for name in ("clean", "keys", "dealt", "kept", "rejected"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    stamp = folder / "key"
    if stamp.exists() and stamp.read_text(encoding="ascii") != key:
        raise UserError(f"{folder} holds results of other rows, params or tasks; remove it or name another folder")
    stamp.write_text(key, encoding="ascii")
    shared: dict[str, Any] = {"folder": folder, "root": root, "params": params}
    steps = [
        ("clean", partial(clean_share, **shared), tasks),
        ("deal", partial(deal, folder=folder, tasks=tasks), 1),
        ("dedupe", partial(dedupe_share, **shared), tasks),
    ]
    last = None
    for name, step, count in steps:
        last = executor(pipeline=[step], tasks=count, logging_dir=str(folder / f"logs/{name}"), depends=last)
    assert last is not None
    last.run()
    counts = {name: sum(map(count_rows, sorted((folder / name).iterdir()))) for name in ("kept", "rejected")}
    return {"rows": count_rows(root / paths.RAW_ROWS), **counts}


def executor_of(name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """One of datatrove's executors with its options.

    Args:
        name: a key of EXECUTORS.
        options: of the class, e.g. `workers` of the local one or `partition` and `time` of Slurm's.

    Returns:
        What makes an executor of a pipeline.

    Raises:
        UserError: datatrove is not installed.
    """
    try:
        import datatrove.executor
    except ImportError as error:
        raise UserError(f"datatrove is not installed ({error}); pip install -e '.[many]'") from None
    return partial(getattr(datatrove.executor, EXECUTORS[name]), **options)


def main(argv: Iterable[str] | None = None) -> None:
    """Runs the command line and ends the process."""
    parser = argparse.ArgumentParser(prog="python -m stages.cli.many_rows", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the results")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--executor", choices=EXECUTORS, default="local")
    parser.add_argument("--options", type=json.loads, default={}, help="of the executor's class, as a JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(None if argv is None else list(argv))

    def call() -> None:
        done = run(Path.cwd(), args.folder.resolve(), load_params(), args.tasks, executor_of(args.executor, args.options))
        print(", ".join(f"{count:,} {name}" for name, count in chain(done.items())))

    sys.exit(guarded("many_rows", call, args.debug))


if __name__ == "__main__":
    main()
