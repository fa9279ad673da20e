"""Votes of people who did not know whose answer was whose, and the paired test on them.

In: one vote at a time. Out: lines of a CSV file, and the tuned model's share of the decided rows with interval and p-value.
"""

import csv
import os
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from scipy.stats import binomtest

from stages.cli.review_decisions import cell
from stages.core.errors import UserError

COVERAGE = 0.95


@dataclass(frozen=True)
class Vote:
    """One line of the file.

    Attributes:
        id: of the row that was asked about.
        left: whose answer stood on the left, base or tuned.
        better: whose answer is the better, base, tuned or neither.
        who: voted.
        when: in UTC.
        artefact: the tuned model that answered.
    """

    id: str
    left: str
    better: str
    who: str
    when: str
    artefact: str


def add_vote(path: Path, row_id: str, left: str, choice: str, who: str, artefact: str) -> Vote:
    """Appends a vote; it is on disk when this returns.

    Args:
        path: of the file.
        row_id: that was asked about.
        left: whose answer stood on the left.
        choice: left, right or same.
        who: voted.
        artefact: the tuned model.

    Returns:
        The vote.

    Raises:
        UserError: nobody votes, or for nothing.
    """
    who = cell(who)
    if not who:
        raise UserError("nobody votes; write your name")
    right = "base" if left == "tuned" else "tuned"
    if choice not in ("left", "right", "same"):
        raise UserError(f"the vote is '{choice}', expected left, right or same")
    better = {"left": left, "right": right, "same": "neither"}[choice]
    vote = Vote(row_id, left, better, who, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), artefact)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, [field.name for field in fields(Vote)], lineterminator="\n")
        if new:
            lines.writeheader()
        lines.writerow(asdict(vote))
        file.flush()
        os.fsync(file.fileno())
    return vote


def read_votes(path: Path, artefact: str) -> list[Vote]:
    """The votes about an artefact; of one person's votes on one row the last counts.

    Args:
        path: of the file, which need not be there.
        artefact: the tuned model.

    Returns:
        The votes.

    Raises:
        UserError: the file is no list of votes.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        if lines.fieldnames != [field.name for field in fields(Vote)]:
            raise UserError(f"{path} is no list of votes (its first line should be {','.join(field.name for field in fields(Vote))})")
        votes = [Vote(**line) for line in lines]
    return list({(vote.id, vote.who): vote for vote in votes if vote.artefact == artefact}.values())


@dataclass(frozen=True)
class Outcome:
    """What the votes say.

    Attributes:
        tuned: rows on which the tuned model's answer is the better.
        base: rows on which the base's is.
        neither: undecided ones, which the test leaves out (Dixon and Mood, 1946, The statistical sign test).
        share: the tuned model's share of the decided rows, or None.
        low: lower end of its exact interval (Clopper and Pearson, 1934), or None.
        high: its upper end, or None.
        p_value: two-sided, of a share of one half; 1 where nothing is decided.
    """

    tuned: int
    base: int
    neither: int
    share: float | None
    low: float | None
    high: float | None
    p_value: float


def outcome(votes: list[Vote]) -> Outcome:
    """The sign test on rows: one that several people judged counts once, for the answer that more of them preferred.

    Args:
        votes: as `read_votes` gives them.

    Returns:
        The outcome.
    """
    balance: dict[str, int] = {}
    for vote in votes:
        balance[vote.id] = balance.get(vote.id, 0) + (vote.better == "tuned") - (vote.better == "base")
    tuned, base = sum(value > 0 for value in balance.values()), sum(value < 0 for value in balance.values())
    neither = len(balance) - tuned - base
    if not tuned + base:
        return Outcome(tuned, base, neither, None, None, None, 1.0)
    test = binomtest(tuned, tuned + base)
    interval = test.proportion_ci(COVERAGE)
    return Outcome(tuned, base, neither, tuned / (tuned + base), float(interval.low), float(interval.high), float(test.pvalue))


def sentence(found: Outcome) -> str:
    """The outcome in words."""
    if found.share is None:
        return f"Nobody preferred either model ({found.neither} undecided)."
    decided = found.tuned + found.base
    clear = found.p_value < 1 - COVERAGE
    verdict = (
        "no difference beyond chance" if not clear else "the tuned model is preferred" if found.share > 0.5 else "the base is preferred"
    )
    return (
        f"The tuned model is better on {found.tuned} of {decided} decided rows, {found.share:.0%} (95 % interval {found.low:.0%} to "
        f"{found.high:.0%}, sign test p = {found.p_value:.2g}), {found.neither} undecided: {verdict}."
    )
