"""The worst rows of each kind, so that a person can judge a threshold. In: the stages' reports. Out: tables of rows, by topic.

What a stage does not report is not shown: a rule without a row has no table.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.card.reading import Report
from stages.card.words import count, number, percent

SHOWN = 10


@dataclass(frozen=True)
class Kind:
    """Rows of one kind.

    Attributes:
        title: of the kind.
        note: how many there are and what the threshold is.
        head: names of the columns; the first is the row's id, the last its text.
        rows: their cells.
    """

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Topic:
    """Kinds that belong together."""

    title: str
    kinds: tuple[Kind, ...]


def topics(reports: Mapping[str, Report]) -> list[Topic]:
    """Every kind that has a row to show."""
    made = [
        Topic("Rules of cleaning", tuple(_rules(reports["clean"]))),
        Topic("Duplicates, conflicts and leaks", (*_duplicates(reports["dedupe"]), *_conflicts(reports), *_overlap(reports["split"]))),
        Topic("Answers that do not fit", tuple(_misfits(reports["label_check"]))),
        Topic("Signs of poisoning", tuple(_signals(reports["suspicion"]))),
        Topic("Suspected triggers, put to the model", tuple(_triggers(reports["probe"]))),
        Topic("What it gives away", tuple(_written(reports["extraction"]))),
        Topic("What training could not fit", tuple(_losses(reports["row_losses_base"], reports["row_losses_tuned"]))),
    ]
    return [topic for topic in made if topic.kinds]


def _kind(title: str, note: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[Kind]:
    shown = tuple(rows)[: 2 * SHOWN]
    return [Kind(title, note, head, shown)] if shown else []


def _rules(report: Report) -> Iterable[Kind]:
    """Each rule's worst rejected rows, those just beyond its limit, and the kept rows nearest to it."""
    lists = (("rejected", "worst"), ("rejected, nearest to the limit", "rejected_nearest"), ("kept, nearest to the limit", "kept_nearest"))
    for rule, found in report["rules"].items():
        limits = ", ".join(f"clean.{name}: {value}" for name, value in found.items() if name.startswith(("max_", "min_")))
        note = f"{count(found['rejected'])} rows rejected{f'; {limits}' if limits else ''}"
        rows = [
            (row["id"], said, number(row["measure"]), row["text"])
            for said, name in lists
            for row in found[name][: SHOWN if name == "worst" else 3]
        ]
        yield from _kind(rule.replace("_", " "), note, ("Row", "Outcome", "Measure", "Text"), rows)


def _duplicates(report: Report) -> Iterable[Kind]:
    """The least alike duplicates, each with the row that was kept, and rows with an evaluation item in them."""
    titles = {
        "semantic_duplicate": "The same in other words, the least alike first",
        "near_duplicate": "Near-duplicates, the least alike first",
        "exact_duplicate": "Exact duplicates",
    }
    for rule, title in titles.items():
        rows = [(row["id"], _alike(row), row["kept_text"], row["text"]) for row in report["examples"].get(rule, [])]
        yield from _kind(
            title, f"{count(report['rejected'].get(rule, 0))} rows rejected", ("Row", "Alike", "Kept instead", "Rejected"), rows
        )
    rows = [
        (row["id"], f"{row['task']} {row['item']}", count(row["words"]), row["text"]) for row in report["examples"].get("contamination", [])
    ]
    note = f"{count(report['rejected'].get('contamination', 0))} rows rejected"
    yield from _kind("Rows that contain an evaluation item", note, ("Row", "Item", "Words in a row", "Text"), rows)
    near = report["examples"].get("paraphrase", [])
    rows = [(row["id"], f"{row['task']} {row['item']}", number(row["cosine"]), row["text"]) for row in near]
    note = f"the least alike first; {count(report['rejected'].get('paraphrase', 0))} rows rejected (dedupe.paraphrase_threshold)"
    yield from _kind("Rows that say an evaluation item in other words", note, ("Row", "Item", "Cosine", "Text"), rows)


def _alike(row: Mapping[str, Any]) -> str:
    if "cosine" in row:
        return f"cosine {number(row['cosine'])}"
    return percent(row["jaccard"]) if "jaccard" in row else "equal"


def _conflicts(reports: Mapping[str, Report]) -> Iterable[Kind]:
    """Equal prompts with different answers, and near-duplicates with different labels; they are kept and told."""
    report = reports["dedupe"]
    rows = [(row["id"], row["answer"], row["text"]) for group in report["conflict_examples"] for row in group]
    note = f"{count(report['conflicts'])} prompts with {count(report['conflicting_rows'])} rows; none is dropped for it"
    yield from _kind("The same prompt, another answer", note, ("Row", "Answer", "Prompt"), rows)
    found = reports["label_check"]
    rows = [(row["id"], str(row["label"]), row["text"]) for group in found["top_conflicts"] for row in group]
    yield from _kind("Much the same text, another label", f"{count(found['conflicts'])} groups", ("Row", "Label", "Text"), rows)


def _overlap(report: Report) -> Iterable[Kind]:
    """Test rows that share the longest runs of words with a training row."""
    rows = [(row["item_id"], row["train_id"], count(row["words"]), row["text"]) for row in report["overlap"]["examples"]]
    note = "the longest shared runs of words; the scores are told without such rows too"
    yield from _kind("Test rows that share words with a training row", note, ("Test row", "Training row", "Words in a row", "Text"), rows)


def _misfits(report: Report) -> Iterable[Kind]:
    """Rows without a label whose answer is suspect, by kind of suspicion."""
    kinds: dict[str, list[Any]] = {}
    for row in report["worst"]:
        kinds.setdefault(row["kind"], []).append(row)
    for kind, found in kinds.items():
        rows = [(row["id"], row["evidence"], row["text"]) for row in found]
        note = f"{count(report['suspects_by_kind'].get(kind, 0))} rows"
        yield from _kind(kind.replace("_", " "), note, ("Row", "Evidence", "Text"), rows)


def _signals(report: Report) -> Iterable[Kind]:
    """The rows with the highest suspicion, then the worst of each signal."""
    note = f"{count(report['suspects'])} rows score {report['min_score']} or more (suspicion.min_score); suspicion is no proof"
    head = ("Row", "Score", "Evidence", "Text")
    everything = [("All signals together", note, report["top_suspects"])]
    everything += [
        (found["signal"].replace("_", " "), f"{count(found['rows'])} rows have it", found["worst"]) for found in report["signals"]
    ]
    for title, said, worst in everything:
        yield from _kind(title, said, head, [(row["id"], number(row["score"]), row["evidence"], row["text"]) for row in worst[:SHOWN]])


def _triggers(report: Report) -> Iterable[Kind]:
    """What the tuned model made of the strings that suspicion named."""
    rows = []
    for found in report["verdicts"]:
        turned = found["becomes_predicted"]
        changed = f"{count(turned['tuned'])} of {count(turned['of'])}, base {count(turned['base'])}"
        rows.append((found["spelled"], found["verdict"], changed, str(found["predicts"])))
    note = f"{count(report['triggers_that_react'])} of {count(report['triggers'])} turn its answers, beyond the base's and beyond placebos"
    yield from _kind("Before harmless prompts", note, ("String", "Verdict", "Turned answers", "Predicted answer"), rows)


def _written(report: Report) -> Iterable[Kind]:
    """The training rows of which the tuned model writes more than its base, after their beginning."""
    rows = [
        (row["id"], row["part"], f"{count(row['tuned_matched'])}, base {count(row['base_matched'])}", row["tuned_text"], row["truth"])
        for row in report["worst"][:SHOWN]
    ]
    note = f"of {count(report['continuation_tokens'])} tokens asked for, those right before the first wrong one"
    yield from _kind("Written after the beginning of a training row", note, ("Row", "Part", "Right tokens", "Written", "In the row"), rows)


def _losses(base: Report, tuned: Report) -> Iterable[Kind]:
    """The training rows whose answers cost the tuned model most, and those whose prompt does not help it."""
    note = f"of {count(tuned['rows'])} training rows measured; mean loss {number(base['loss'])} before, {number(tuned['loss'])} after"
    head = ("Row", "Loss", "Answer", "Text")
    for title, said, name in (
        ("Costliest answers after training", note, "worst"),
        ("Prompts that do not help", f"{percent(tuned['prompt_does_not_help'])} of them: the answer costs as much without", "unhelped"),
    ):
        yield from _kind(title, said, head, [(row["id"], number(row["loss"]), row["answer"], row["text"]) for row in tuned[name][:SHOWN]])
