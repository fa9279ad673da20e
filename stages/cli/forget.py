"""`luthier forget ROW...`: a person's decision that rows are not learnt. In: ids. Out: data/decisions.csv, and what follows from it.

The decision is written first; then it is told where each row is now, what `dvc repro` will make anew, which released adapters learnt it,
and where its text remains until somebody erases it.
"""

import argparse
import re
from collections.abc import Iterable, Sequence

from stages.cli.review import git_name
from stages.cli.review_decisions import DecisionFile
from stages.cli.tables import among, beginning, with_id
from stages.cli.trace import only_row
from stages.core import paths
from stages.core.errors import UserError

WHOLE_ID = re.compile(r"[0-9a-f]{16}(-\d+)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ROW, --why, --who, --cluster."""
    parser.add_argument("rows", metavar="ROW", nargs="+", help="a row's id, or enough of its first digits to be the only one")
    parser.add_argument("--why", required=True, help="the reason, kept with the decision")
    parser.add_argument("--who", help="who decided (default: git's user.name)")
    parser.add_argument("--cluster", action="store_true", help="the near-duplicates of each row too")


def run(args: argparse.Namespace) -> None:
    """Writes the decisions and tells what follows.

    Args:
        args: `rows`, `why`, `who`, `cluster`.

    Raises:
        UserError: nobody decides.
    """
    from stages.cli.aftermath import tell

    who = args.who or git_name()
    if not who:
        raise UserError("a decision needs a name: give --who, or set one with git config user.name")
    asked = _with_twins(_id(prefix) for prefix in args.rows)
    alike = _near_duplicates(asked)
    chosen, left = ([*asked, *alike], []) if args.cluster else (asked, alike)
    file = DecisionFile(paths.DECISIONS)
    earlier = file.all()
    new = [name for name in chosen if name not in earlier or earlier[name].action != "drop"]
    for name in new:
        file.decide(name, "drop", "", who, args.why)
    for name in chosen:
        before = earlier.get(name)
        if name not in new:
            print(f"{paths.DECISIONS}: {name} was dropped before, by {earlier[name].who}")
        else:
            print(f"{paths.DECISIONS}: drop {name}{f', in place of {before.action} by {before.who}' if before else ''}")
    if left:
        print(f"near-duplicates, which say much the same, stay: {', '.join(left)}; --cluster takes them too")
    tell(chosen, left)


def _id(prefix: str) -> str:
    """A row's id; a whole one needs no row here, as its row may come with other data."""
    if WHOLE_ID.fullmatch(prefix) and not any(with_id(path, prefix) for path in (paths.RAW_ROWS, paths.RAW_REJECTED)):
        return prefix
    return str(only_row(prefix)["id"])


def _with_twins(ids: Iterable[str]) -> list[str]:
    """The ids, each followed by those of the other rows with the very same content (`-2`, `-3` …)."""
    found: list[str] = []
    for name in ids:
        content = name.partition("-")[0]
        twins = [row["id"] for path in (paths.RAW_ROWS, paths.RAW_REJECTED) for row in beginning(path, content)]
        found += [name, *sorted(twins)]
    return list(dict.fromkeys(found))


def _near_duplicates(ids: Sequence[str]) -> list[str]:
    """The other rows of the near-duplicate clusters of some rows, kept and rejected."""
    tables = (paths.DEDUPE_ROWS, paths.DEDUPE_REJECTED)
    clusters = {row["cluster"] for path in tables for row in with_id(path, *ids) if row["cluster"] is not None}
    return sorted({row["id"] for path in tables for row in among(path, "cluster", clusters)} - set(ids))
