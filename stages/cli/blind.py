"""`luthier blind`: a local page with the base's and the tuned model's answers side by side, unnamed, the sides drawn by lot.

In: held-out rows, an artefact. Out: votes in data/votes.csv and a sign test on them, shown when the person has ended.
"""

import argparse
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stages.cli.page_server import PageServer
from stages.cli.review import git_name
from stages.cli.votes import add_vote, outcome, read_votes, sentence
from stages.core import paths
from stages.core.errors import UserError
from stages.core.records import Row, read_rows

ROWS = 30
LONGEST = 256
VOTES = Path("data/votes.csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the artefact, --rows, --max-tokens, --seed, --votes, --port and --who."""
    parser.add_argument(
        "artefact", type=Path, nargs="?", default=paths.ADAPTER, help="adapter, merged folder or GGUF file (models/adapter)"
    )
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"a seeded sample of the test rows ({ROWS})")
    parser.add_argument("--max-tokens", type=int, default=LONGEST, metavar="N", help=f"of an answer ({LONGEST})")
    parser.add_argument("--seed", type=int, help="of the sample and the sides (seed of params.yaml)")
    parser.add_argument("--votes", type=Path, default=VOTES, help=f"where votes are kept ({VOTES})")
    parser.add_argument("--port", type=int, default=0, help="of the page (any free one)")
    parser.add_argument("--who", help="who votes (git's user.name); can be changed in the page")


def run(args: argparse.Namespace) -> None:
    """Asks both models, then serves the page until Ctrl-C."""
    from stages.core.params import load_params

    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}, expected 1 or more")
    params = load_params()
    seed = params.seed if args.seed is None else args.seed
    rows = read_rows(paths.SPLIT_TEST)
    chosen = random.Random(f"blind {seed}").sample(rows, min(args.rows, len(rows)))
    # the port first: a wrong one is told before minutes of answers
    server = BlindServer([], args.votes, args.artefact.as_posix(), args.who if args.who is not None else git_name(), args.port)
    items = asked(chosen, args.artefact, params, args.max_tokens, seed)
    server.items = {item["id"]: item for item in items}
    server.serve_until_stopped(f"{len(items)} pairs of answers: {server.address}", f"Ctrl-C ends; votes are in {args.votes}.")
    print(sentence(outcome(read_votes(args.votes, args.artefact.as_posix()))))


def asked(rows: list[Row], artefact: Path, params: Any, longest: int, seed: int) -> list[dict[str, Any]]:
    """Both models' answers to rows.

    Args:
        rows: whose last answer is asked for.
        artefact: the tuned model.
        params: of the pipeline.
        longest: tokens of an answer.
        seed: of the sides.

    Returns:
        `id`, `text`, `left` and `right` in words, and `side`, whose the left one is.
    """
    from stages.cli.speakers import open_speakers
    from stages.core.progress import progress
    from stages.core.prompts import conversation

    items = []
    with ExitStack() as stack:
        speakers = open_speakers(artefact, params, longest, stack)
        for row in progress(rows, "blind"):
            messages = conversation(row, params.prompt.system, params.prompt.template)[:-1]
            said = {name: "".join(speaker(messages)).strip() for name, speaker in speakers.items()}
            left, right = random.Random(f"side {seed} {row.id}").sample(["base", "tuned"], 2)
            items.append({"id": row.id, "text": row.text, "left": said[left], "right": said[right], "side": left})
    return items


class BlindServer(PageServer):
    """Serves pairs of answers, without saying whose they are before the end."""

    page = "blind"
    command = "luthier blind"

    def __init__(self, items: list[dict[str, Any]], votes: Path, artefact: str, who: str, port: int) -> None:
        """Binds the port.

        Args:
            items: as `asked` gives them.
            votes: the file.
            artefact: the tuned model.
            who: votes, as the page first says.
            port: 0 for any free one.
        """
        super().__init__(port)
        self.items = {item["id"]: item for item in items}
        self.votes, self.artefact, self.who = votes, artefact, who
        self.ended = False

    def state(self) -> dict[str, Any]:
        """The pairs, without the sides."""
        return {"who": self.who, "items": [{key: item[key] for key in ("id", "text", "left", "right")} for item in self.items.values()]}

    def told(self, name: str, asked: dict[str, str]) -> dict[str, Any] | None:
        """A vote, or the wish to know the outcome, after which no vote is taken."""
        with self.lock:
            if name == "end":
                self.ended = True
                found = outcome([vote for vote in read_votes(self.votes, self.artefact) if vote.id in self.items])
                return {"sentence": sentence(found), "sides": {key: item["side"] for key, item in self.items.items()}}
            if name != "vote":
                return None
            item = self.items.get(asked.get("id", ""))
            if item is None:
                raise UserError("no such row is asked about")
            if self.ended:
                raise UserError("the outcome is known, so no vote would be blind; start luthier blind again, with another --seed")
            add_vote(self.votes, item["id"], item["side"], asked.get("choice", ""), asked.get("who", ""), self.artefact)
            return {"id": item["id"]}
