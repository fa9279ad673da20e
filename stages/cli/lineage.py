"""`luthier lineage WHAT`: where a row, a model or a number comes from, and what became of it.

In: the outs of the data stages for a row; dvc.lock and git for a model, a file or a number of a report. Out: a tree of text.
"""

import argparse
import difflib
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.tree import Tree

from stages.cli import history
from stages.cli.trace import row_tree
from stages.core import paths
from stages.core.errors import UserError

ROW_ID = re.compile(r"[0-9a-f]{6,16}(-\d+)?")
PLAIN_WIDTH = 160  # columns where the output is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds WHAT."""
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="a row's id or its first 6 digits or more | an out such as models/adapter | a tag such as adapter@v1.0.0 | "
        "a number such as reports/compare.json:domain.tuned",
    )


def run(args: argparse.Namespace) -> None:
    """Prints the tree.

    Args:
        args: `what`.
    """
    path, _, key = args.what.partition(":")
    if ROW_ID.fullmatch(args.what) and not Path(args.what).exists():
        tree = row_tree(args.what)
    elif key:
        tree = _number_tree(path, key)
    elif "@" in path:
        tree = _release_tree(path)
    else:
        tree = _file_tree(path)
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print(tree)


def _release_tree(tag: str) -> Tree:
    """A registered version: the tag's commit and the artifact's path there."""
    commit = history.commit_of(tag)
    name = tag.partition("@")[0]
    artifacts = history.read_yaml(paths.PIPELINE, commit)["artifacts"]
    if name not in artifacts:
        raise UserError(f"dvc.yaml of {tag} has no artifact {name}; it has {', '.join(artifacts)}")
    tree = Tree(f"{tag}: {history.describe(commit)}")
    _grow(tree, history.read_lock(commit), artifacts[name]["path"], set())
    return tree


def _file_tree(path: str) -> Tree:
    """An out, a file in one, or a dep."""
    lock = history.read_lock(None)
    out = lock.maker(path)[1]
    tree = Tree(path if path == out else f"{path}, in {out}")
    _grow(tree, lock, out, set())
    return tree


def _number_tree(path: str, key: str) -> Tree:
    """A value of a report: what it is, the commit that set it, and the report's tree."""
    report = Path(path)
    value = _value(history.read_report(report, None), key, path)
    tree = Tree(f"{path}:{key} = {value}")
    setter = None
    for commit in history.commits_touching(report):
        try:
            if _value(history.read_report(report, commit), key, path) != value:
                break
        except UserError:
            break
        setter = commit
    tree.add(f"value set by {history.describe(setter)}" if setter else "value in no commit yet")
    _grow(tree, history.read_lock(None), path, set())
    return tree


def _value(report: Any, key: str, path: str) -> Any:
    """What stands at a dotted key of a report."""
    at = report
    for part in key.split("."):
        if not isinstance(at, dict) or part not in at:
            known = list(at) if isinstance(at, dict) else []
            near = difflib.get_close_matches(part, known, n=1, cutoff=0.4)
            remedy = f"did you mean {near[0]}?" if near else f"known there: {', '.join(known) or 'nothing'}"
            raise UserError(f"{path} has no {key}: {part} is not there; {remedy}")
        at = at[part]
    return at


def _grow(tree: Tree, lock: history.Lock, path: str, shown: set[str]) -> None:
    """Adds a path's digest, the stage that made it and, below, all of that stage's inputs; a path shown before is named only."""
    entry, maker = lock.entry(path)
    node = tree.add(f"{path}  {_digest(entry)}")
    if maker is None:
        node.add("a source: no stage makes it")
        return
    if path in shown:
        node.add("as above")
        return
    shown.add(path)
    commit = lock.commit_of_out(maker, path)
    stage = lock.stages[maker]
    made = node.add(f"made by {maker}: {stage['cmd']}; recorded by {history.describe(commit) if commit else 'no commit yet'}")
    for file, params in stage.get("params", {}).items():
        made.add(f"{file}: {', '.join(f'{key} {value}' for key, value in _flat(params))}")
    code = [dep for dep in stage.get("deps", []) if dep["path"].startswith("stages/")]
    made.add("code: " + ", ".join(f"{dep['path']} {dep['md5'][:8]}" for dep in code))
    for dep in stage.get("deps", []):
        if dep not in code:
            _grow(made, lock, dep["path"], shown)


def _digest(entry: dict[str, Any]) -> str:
    """A lock entry's digest and size in words."""
    files = f", {entry['nfiles']} files" if "nfiles" in entry else ""
    return f"md5 {entry['md5']}, {entry.get('size', 0)} bytes{files}"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested parameters as dotted keys."""
    found = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return found
