"""`luthier chat`: the base and the tuned model side by side in the terminal, as they write. In: lines from a person. Out: two answers.

Rows with labels are asked one by one, in the prompt of params.yaml; other rows are conversations, which go on until an empty line.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core import paths
from stages.core.records import Message

if TYPE_CHECKING:
    from rich.console import Console

    from stages.cli.speakers import Speaker

LONGEST = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the artefact, --alone and --max-tokens."""
    parser.add_argument(
        "artefact", type=Path, nargs="?", default=paths.ADAPTER, help="adapter, merged folder or GGUF file (models/adapter)"
    )
    parser.add_argument("--alone", action="store_true", help="the tuned model without the base")
    parser.add_argument("--max-tokens", type=int, default=LONGEST, metavar="N", help=f"of an answer ({LONGEST})")


def run(args: argparse.Namespace) -> None:
    """Answers line by line until the input ends."""
    from rich.console import Console

    from stages.cli.speakers import is_labelled, open_speakers, question
    from stages.core.params import load_params

    params, labelled, console = load_params(), is_labelled(), Console(highlight=False)
    with ExitStack() as stack:
        speakers = open_speakers(args.artefact, params, args.max_tokens, stack, base=not args.alone)
        histories: dict[str, list[Message]] = {name: [] for name in speakers}
        for line in _lines(console):
            if not line:
                histories = {name: [] for name in speakers}
                continue
            asked = {name: ([] if labelled else histories[name]) + question(line, params, labelled) for name in speakers}
            for name, said in answered(console, speakers, asked).items():
                histories[name] = [*asked[name], {"role": "assistant", "content": said}]


def answered(console: "Console", speakers: "dict[str, Speaker]", asked: dict[str, list[Message]]) -> dict[str, str]:
    """Shows the answers as they are written, side by side on a terminal, one after the other elsewhere.

    Args:
        console: to show them on.
        speakers: by name.
        asked: the conversation of each.

    Returns:
        The answers by name.
    """
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    said = dict.fromkeys(speakers, "")
    if not console.is_terminal:
        for name, speaker in speakers.items():
            said[name] = "".join(speaker(asked[name])).strip()
            console.print(Text(f"{name}: {said[name]}"), soft_wrap=True)
        return said

    def table() -> Table:
        shown = Table(expand=True)
        for name in speakers:
            shown.add_column(name, ratio=1)
        shown.add_row(*(Text(said[name]) for name in speakers))
        return shown

    with Live(table(), console=console, refresh_per_second=10) as live:
        for name, speaker in speakers.items():
            for piece in speaker(asked[name]):
                said[name] += piece
                live.update(table())
    return {name: text.strip() for name, text in said.items()}


def _lines(console: "Console") -> Iterator[str]:
    """What a person types, a line each; nothing is asked for where nobody sits at a terminal."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    console.print("An empty line begins anew, Ctrl-D ends.")
    while True:
        try:
            yield console.input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
