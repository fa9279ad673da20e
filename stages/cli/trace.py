"""What each stage did to one row, as a tree. In: the data stages' outs, kept and rejected, that lie on disk. Out: a tree of text."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.tree import Tree

from stages.cli.tables import beginning, with_id
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details

SHOWN_CHARACTERS = 240
# stage, where the rows it kept lie by name, where the rejected ones lie
STEPS: list[tuple[str, dict[str, Path], Path]] = [
    ("fetch_data", {"kept": paths.RAW_ROWS}, paths.RAW_REJECTED),
    ("clean", {"kept": paths.CLEAN_ROWS}, paths.CLEAN_REJECTED),
    ("local_models", {"kept": paths.LOCAL_ROWS}, paths.LOCAL_REJECTED),
    ("dedupe", {"kept": paths.DEDUPE_ROWS}, paths.DEDUPE_REJECTED),
    ("label_check", {"kept": paths.LABEL_ROWS}, paths.LABEL_REJECTED),
    ("suspicion", {"kept": paths.SUSPICION_ROWS}, paths.SUSPICION_REJECTED),
    (
        "split",
        {"train side": paths.SPLIT_TRAIN, "validation side": paths.SPLIT_VALIDATION, "test side": paths.SPLIT_TEST},
        paths.SPLIT_REJECTED,
    ),
    ("tokenize", {"train": paths.TOKENIZED_TRAIN, "validation": paths.TOKENIZED_VALIDATION}, paths.TOKENIZED_REJECTED),
]


MIXED_IN = (paths.REHEARSAL, paths.CANARIES)  # rows that tokenize adds to those of split


def row_tree(prefix: str) -> Tree:
    """The row's source and what each stage made of it.

    Args:
        prefix: the row's id, or enough of its first digits to be the only one.

    Returns:
        The tree.
    """
    row = only_row(prefix)
    facts = "".join(f", {name} {row[name]}" for name in ("label", "group") if row[name] is not None)
    tree = Tree(f"{row['id']}: {row['source']} {row['origin']}{facts}")
    tree.add(_said(row))
    if with_id(paths.CANARIES, row["id"]):
        tree.add("planted by tokenize.canaries: no row of yours, and in no evaluation")
    _decisions(tree, row["id"])
    before = row
    mixed_in = any(with_id(path, row["id"]) for path in MIXED_IN)
    for stage, kept, rejected in STEPS[-1:] if mixed_in else STEPS:
        after = _step(tree, stage, kept, rejected, before)
        if after is None:
            return tree
        before = after if stage != "tokenize" else before
        if stage == "label_check":
            _suspect(tree, stage, paths.LABEL_SUSPECTS, row["id"])
        if stage == "suspicion":
            _suspect(tree, stage, paths.SUSPICION_SUSPECTS, row["id"])
        if stage == "split" and with_id(paths.SPLIT_TEST, row["id"]):
            _scores(tree, row["id"])
            _extraction(tree, row["id"])
            return tree
    if with_id(paths.SPLIT_VALIDATION, row["id"]):
        tree.add("train: learnt in no step; its loss is measured with those of the other validation rows")
    else:
        _passes(tree, row["id"])
        _losses(tree, row["id"])
        _extraction(tree, row["id"])
    return tree


def only_row(prefix: str) -> dict[str, Any]:
    """The row as fetched, or as fetch_data rejected it; a general row that rehearsal may mix in; a planted canary.

    Args:
        prefix: the row's id, or enough of its first digits to be the only one.

    Returns:
        Its record.

    Raises:
        UserError: no row or several have that id.
    """
    found = [row for path in (paths.RAW_ROWS, paths.RAW_REJECTED, *MIXED_IN) for row in beginning(path, prefix)]
    found = [row for row in found if row["id"] == prefix] or found
    if not found:
        missing = "" if paths.RAW_ROWS.is_file() else f"; {paths.RAW_ROWS} is missing, bring it back: dvc checkout or make repro"
        raise UserError(f"no row has an id that begins with {prefix}{missing}")
    if len(found) > 1:
        several = ", ".join(sorted(row["id"] for row in found)[:10])
        raise UserError(f"{len(found)} rows have ids that begin with {prefix}: {several}; give more digits")
    return found[0]


def _step(tree: Tree, stage: str, kept: dict[str, Path], rejected: Path, before: dict[str, Any]) -> dict[str, Any] | None:
    """Adds what a stage did to the row; gives the row as it left the stage, or None where its way ends."""
    for name, path in kept.items():
        parts = beginning(path, f"{before['id']}#")  # tokenize may split a long row
        if parts:
            tree.add(f"{stage}: {name}, split into {len(parts)}: {'; '.join(part['id'] + _extras(stage, part) for part in parts)}")
            return before
        for after in with_id(path, before["id"]):
            changed = "messages" in after and _texts(after) != _texts(before)
            node = tree.add(f"{stage}: {name}{', text changed' if changed else ''}{_extras(stage, after)}")
            if changed:
                node.add(_said(after))
            return after
    for record in with_id(rejected, before["id"]):
        tree.add(f"{stage}: rejected by {record['rule']}, {json.loads(record['evidence'])}")
        return None
    here = all(path.is_file() for path in kept.values())
    tree.add(f"{stage}: {'not among its rows' if here else 'not run yet, or its outs are not on disk (dvc checkout)'}")
    return None


def _extras(stage: str, row: dict[str, Any]) -> str:
    """What a stage added to a row: its cluster and the cluster's size, or its numbers of tokens."""
    if stage == "dedupe":
        clusters = pq.read_table(paths.DEDUPE_ROWS, columns=["cluster"]).column("cluster")
        size = pc.sum(pc.equal(clusters, row["cluster"])).as_py()
        return f", cluster {row['cluster']} of {size} row{'s' * (size != 1)}"
    if stage == "tokenize":
        return f", {len(row['input_ids'])} tokens, {sum(row['trained'])} of them trained"
    return ""


def _suspect(tree: Tree, stage: str, suspects: Path, row_id: str) -> None:
    """Adds what a stage suspects the row of."""
    for suspect in with_id(suspects, row_id):
        facts = {key: value for key, value in suspect.items() if key not in {"id", "text"} and value is not None}
        tree.add(f"{stage}: suspect, {facts}")


def _decisions(tree: Tree, row_id: str) -> None:
    """Adds people's decision, where there is one."""
    if paths.DECISIONS.is_file():
        with paths.DECISIONS.open(encoding="utf-8", newline="") as file:
            for decision in csv.DictReader(file):
                if decision["id"] == row_id:
                    tree.add(f"{paths.DECISIONS}: {decision['action']} by {decision['who']}, because {decision['why']}")


def _scores(tree: Tree, row_id: str) -> None:
    """Adds how base and tuned answered a test row."""
    for variant, path in paths.EVALUATION.items():
        if path.is_file():
            for item in pq.read_table(path, filters=pc.field("item_id") == row_id).to_pylist():
                said = f", answered {item['answer']!r}" if item["answer"] is not None else ""
                tree.add(f"evaluate@{variant}: {item['task']} {item['prompt']}, score {item['score']:g}{said}, target {item['target']!r}")


def _passes(tree: Tree, row_id: str) -> None:
    """Adds each optimiser step that was made from a training row."""
    if not paths.TRAINED_STEPS.is_file():
        tree.add("train: not run yet, or its outs are not on disk (dvc checkout)")
        return
    steps = pq.read_table(paths.TRAINED_STEPS)
    whole_or_part = pc.or_(pc.equal(steps["id"], row_id), pc.starts_with(steps["id"], f"{row_id}#"))
    state = json.loads((paths.ADAPTER / "train_state.json").read_text(encoding="utf-8"))
    losses = {point["step"]: point["loss"] for point in state["train"]}
    passes = steps.filter(whole_or_part).to_pylist()
    node = tree.add(f"train: in {len(passes)} of the micro-batches of {state['steps']} steps" if passes else _in_no_step(row_id))
    for line in passes:
        together = pc.and_(pc.equal(steps["step"], line["step"]), pc.equal(steps["micro_batch"], line["micro_batch"]))
        beside = pc.sum(together).as_py() - 1
        part = f"{line['id']} " if line["id"] != row_id else ""
        late = "" if line["step"] <= state["published_step"] else f"; not in the adapter, which is that of step {state['published_step']}"
        node.add(
            f"{part}step {line['step']} (epoch {line['epoch']}), micro-batch {line['micro_batch']} beside {beside} other "
            f"row{'s' * (beside != 1)}; the step's loss {losses[line['step']]:.4g}{late}"
        )


def _losses(tree: Tree, row_id: str) -> None:
    """Adds what the row's answer costs the model before and after, with its prompt and without."""
    if not all(path.is_file() for path in paths.ROW_LOSSES.values()):
        tree.add("row_losses: not run yet, or its outs are not on disk (dvc checkout)")
        return
    before, after = (
        {line["id"]: line for line in [*with_id(path, row_id), *beginning(path, f"{row_id}#")]} for path in paths.ROW_LOSSES.values()
    )
    for name, line in before.items():
        with_prompt, alone = ([found[key] for found in (line, after[name])] for key in ("loss", "loss_alone"))
        tree.add(
            f"row_losses: {f'{name}, ' if name != row_id else ''}loss {with_prompt[0]:.4g} before, {with_prompt[1]:.4g} after; without its "
            f"prompt {alone[0]:.4g} before, {alone[1]:.4g} after (nats a token, {line['tokens']} tokens)"
        )
    if not before:
        tree.add("row_losses: not in the sample whose losses are measured (row_losses.max_rows)")


def _extraction(tree: Tree, row_id: str) -> None:
    """Adds how much of the row each model wrote after its beginning."""
    for span in with_id(paths.EXTRACTION_SPANS, row_id):
        tree.add(
            f"extraction: after the beginning of its {span['part']} the tuned model wrote {span['tuned_matched']} right tokens before the "
            f"first wrong one, the base {span['base_matched']}"
        )


def _in_no_step(row_id: str) -> str:
    """Why no step was made from a training row."""
    for left_out in read_details(paths.TRAIN_REPORT)["left_out"]:
        if row_id in {name.partition("#")[0] for name in left_out["rows"]}:
            return f"train: in no step: step {left_out['step']}, which had it, was left out (docs/watching.md)"
    return "train: in no step: the training ended before its turn (train.epochs, train.max_steps, train.early_stop)"


def _texts(row: dict[str, Any]) -> list[str]:
    return [message["content"] for key in ("messages", "chosen", "rejected") for message in row[key] or []]


def _said(row: dict[str, Any]) -> str:
    """The beginning of what a row says, on one line."""
    text = " | ".join(" ".join(content.split()) for content in _texts(row))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
