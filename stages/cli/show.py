"""`luthier show`: tokenised rows as the model sees them, what is learnt and special tokens visible. In: data/tokenized. Out: text.

Without colour (a pipe, NO_COLOR) what is learnt stands in brackets: [Permissive<|im_end|>]. No model library but `tokenizers` is loaded.
"""

import argparse
from itertools import groupby
from typing import TYPE_CHECKING, Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.tokens import token_texts

if TYPE_CHECKING:
    from rich.text import Text

SIDES = {"train": paths.TOKENIZED_TRAIN, "validation": paths.TOKENIZED_VALIDATION}
GIVEN = ("dim", "dim underline")  # two looks by turns, so that one sees where tokens end
LEARNT = ("black on green", "black on bright_green")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --rows, --id and --side."""
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="how many rows (3)")
    parser.add_argument("--id", metavar="ROW", help="the row of this id, or of an id that begins so")
    parser.add_argument("--side", choices=sorted(SIDES), default="train", help="which rows (train)")


def run(args: argparse.Namespace) -> None:
    """Prints the rows asked for, with counts and a legend."""
    from rich.console import Console
    from rich.text import Text
    from tokenizers import Tokenizer

    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}, expected 1 or more")
    rows = _rows(args.side, args.id, args.rows)
    tokenizer = Tokenizer.from_file(str(paths.TOKENIZER / "tokenizer.json"))
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    console = Console(highlight=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    for row in rows:
        learnt = sum(row["trained"])
        console.print(Text(f"{row['id']}: {len(row['input_ids'])} tokens, {learnt} learnt", style="bold"))
        console.print(painted(token_texts(tokenizer, row["input_ids"]), row, special) if coloured else Text(bracketed(tokenizer, row)))
        console.print()
    if coloured:
        console.print(Text.assemble(("given", GIVEN[0]), "  ", ("learnt", LEARNT[0]), "  ", ("special token", "magenta")))
    else:
        console.print(Text("[learnt]"))


def _rows(side: str, row_id: str | None, count: int) -> list[dict[str, Any]]:
    """The rows to show; raises UserError where there are none."""
    import pyarrow.parquet as pq

    if not SIDES[side].is_file():
        raise UserError(f"{SIDES[side]} is missing; make it: dvc repro tokenize")
    rows: list[dict[str, Any]] = pq.read_table(SIDES[side]).to_pylist()
    if row_id is None:
        return rows[:count]
    found = [row for row in rows if row["id"].startswith(row_id)]
    if not found:
        raise UserError(f"no tokenised {side} row has the id {row_id}; luthier lineage {row_id} tells what became of it")
    return found[:count]


def painted(texts: list[str], row: dict[str, Any], special: set[int]) -> "Text":
    """A row in colour: learnt tokens on green, special tokens in magenta, neighbouring tokens told apart."""
    from rich.text import Text

    text = Text()
    for number, (piece, token, learnt) in enumerate(zip(texts, row["input_ids"], row["trained"], strict=True)):
        look = (LEARNT if learnt else GIVEN)[number % 2]
        if token in special:
            look = "bold black on magenta" if learnt else "magenta"
        # a line break is shown as a sign as well, as it would be lost on a background
        text.append(piece.replace("\n", "⏎\n"), style=look)
    return text


def bracketed(tokenizer: Any, row: dict[str, Any]) -> str:
    """A row without colour, each learnt span in brackets."""
    texts = token_texts(tokenizer, row["input_ids"])
    spans = groupby(zip(texts, row["trained"], strict=True), key=lambda pair: pair[1])
    return "".join(f"[{text}]" if learnt else text for learnt, pairs in spans for text in ["".join(piece for piece, _ in pairs)])
