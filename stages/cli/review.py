"""`luthier review`: a local page to judge the worst rows, one at a time, by keyboard. In: suspects.parquet. Out: data/decisions.csv.

The page is served on this machine's loopback address alone, under a path that nobody else can guess.
"""

import argparse
import subprocess
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.records import Row

ROWS = 200
NEIGHBOURS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --rows, --kind, --port and --who."""
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"the N worst of each kind ({ROWS})")
    parser.add_argument("--kind", help="only suspects of this kind, e.g. label")
    parser.add_argument("--port", type=int, default=0, help="of the page (any free one)")
    parser.add_argument("--who", help="who decides (git's user.name); can be changed in the page")


def run(args: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    from stages.cli.review_decisions import DecisionFile
    from stages.cli.review_server import ReviewServer

    items = suspects(args.rows, args.kind)
    if not items:
        print(f"Nothing to review: {paths.LABEL_SUSPECTS} has no such rows.")
        return
    state = {"items": items, "labels": known_labels(), "who": args.who if args.who is not None else git_name()}
    server = ReviewServer(DecisionFile(paths.DECISIONS), state, args.port)
    server.serve_until_stopped(
        f"{len(items)} rows to review: {server.address}", f"Ctrl-C ends; decisions are in {paths.DECISIONS}, `dvc repro` applies them."
    )


def suspects(count: int, kind: str | None) -> list[dict[str, Any]]:
    """The worst rows of each kind, with their neighbours.

    Args:
        count: of each kind.
        kind: only this one; None for all.

    Returns:
        Records as suspects.parquet has them; `neighbours` are `id`, `label`, `text` and `answer` of rows.

    Raises:
        UserError: there is no such file or kind.
    """
    import pyarrow.parquet as pq

    if count < 1:
        raise UserError(f"--rows is {count}, expected 1 or more")
    if not paths.LABEL_SUSPECTS.is_file():
        raise UserError(f"{paths.LABEL_SUSPECTS} is missing; make it: dvc repro label_check")
    table = pq.read_table(paths.LABEL_SUSPECTS)
    if "kind" not in table.column_names:
        raise UserError(f"{paths.LABEL_SUSPECTS} is of an older version; make it again: dvc repro label_check")
    found: list[dict[str, Any]] = table.to_pylist()
    kinds = sorted({item["kind"] for item in found})
    if kind is not None and kind not in kinds:
        raise UserError(f"no suspect is of the kind '{kind}'; there are: {', '.join(kinds) or 'none'}")
    items = [item for item in found if item["rank"] <= count and kind in (None, item["kind"])]
    near = _rows({name for item in items for name in item["neighbours"][:NEIGHBOURS]})
    for item in items:
        item["neighbours"] = [near[name] for name in item["neighbours"][:NEIGHBOURS] if name in near]
    return items


def known_labels() -> list[str]:
    """The labels that rows have, sorted."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    labels = pc.unique(pq.read_table(paths.DEDUPE_ROWS, columns=["label"])["label"]).to_pylist()
    return sorted(label for label in labels if label is not None)


def git_name() -> str:
    """Git's user.name here, or nothing."""
    try:
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _rows(ids: set[str]) -> dict[str, dict[str, Any]]:
    """What is shown of rows, by id."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not ids:
        return {}
    found = pq.read_table(paths.DEDUPE_ROWS, filters=pc.field("id").isin(sorted(ids))).to_pylist()
    rows = [Row(**{**record, "messages": tuple(record["messages"])}) for record in found]
    return {
        row.id: {"id": row.id, "label": row.label, "text": row.text, "answer": None if row.label is not None else row.answer}
        for row in rows
    }
