"""What card and report say of the rows: the way from raw to trained rows, suspect labels, tokens.

In: the reports of the data stages. Out: funnel, repairs, detectors, suspects and preview as the templates show them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stages.card.reading import Report
from stages.card.words import count, percent

RULES = {  # rule names of the stages that a reader would not guess
    "over_max_rows": "beyond the sample (data.max_rows)",
    "over_max_train": "training rows beyond the sample (split.max_train)",
    "over_max_validation": "validation rows beyond the sample (split.max_validation)",
    "over_max_test": "test rows beyond the sample (split.max_test)",
    "contains_test": "share a run of words with a test row (split.test_ngram)",
    "contamination": "contain an evaluation item",
    "exact_duplicate": "exact duplicates",
    "near_duplicate": "near-duplicates",
    "semantic_duplicate": "the same in other words",
    "paraphrase": "an evaluation item in other words",
    "entities": "hold an entity of a kind to drop (local_models.entities)",
    "control_token": "contain a control token of the chat template",
    "suspect_label": "label probably wrong",
    "decision": "dropped by a person's decision",
    "over_source_cap": "beyond the cap of their source (suspicion.sources)",
    "suspicion": "suspected of poisoning",
}
SHOWN_SUSPECTS = 10
SHOWN_ROWS = 3


@dataclass(frozen=True)
class Step:
    """What one stage let through.

    Attributes:
        stage: its name in dvc.yaml.
        name: what it does, for the reader.
        rows_in: rows it was given.
        rows_out: rows it passed on.
        rejected: rows by rule.
        note: one more fact, or None.
    """

    stage: str
    name: str
    rows_in: int
    rows_out: int
    rejected: tuple[tuple[str, int], ...]
    note: str | None = None


@dataclass(frozen=True)
class Suspect:
    """A row whose label is probably wrong; `trust` is the out-of-fold probability of the given label."""

    id: str
    text: str
    given: str
    suggested: str
    trust: float


@dataclass(frozen=True)
class Token:
    """A token's text, line breaks made visible, and whether it is learnt."""

    text: str
    learnt: bool


def funnel(reports: Mapping[str, Report]) -> list[Step]:
    """The way of the rows, stage by stage, from those read to those trained on."""
    fetched, cleaned, split = reports["fetch_data"], reports["clean"], reports["split"]
    sides = split["rows"]
    held_out = {"set aside for validation": sides["validation"], "set aside for testing": sides["test"]}
    tokens = reports["tokenize"]["sides"]["train"]
    mixed, planted = reports["tokenize"]["rehearsal_rows"], reports["tokenize"]["canary_rows"]
    lengths = f"{count(tokens['rows_truncated'])} shortened, {count(tokens['rows_split'])} split in parts"
    return [
        Step("fetch_data", "Taken", fetched["rows_read"], fetched["rows_kept"], _rules(fetched["rejected"])),
        _step("clean", "Cleaned", cleaned, _repairs(cleaned)),
        *_by_models(reports["local_models"]),
        _step("dedupe", "Duplicates removed", reports["dedupe"], None),
        _step("label_check", "Labels checked", reports["label_check"], None),
        _step("suspicion", "Checked for poisoning", reports["suspicion"], None),
        Step("split", "Split off for training", split["rows_in"], sides["train"], _rules({**held_out, **split["rejected"]})),
        Step(
            "tokenize",
            "Trained on",
            tokens["rows_in"],
            tokens["rows_in"] - tokens["rows_rejected"],
            (("do not fit tokenize.max_tokens or the template", tokens["rows_rejected"]),) if tokens["rows_rejected"] else (),
            "; ".join(
                [f"{count(mixed)} general rows mixed in (tokenize.rehearsal)"] * bool(mixed)
                + [f"{count(planted)} canary rows planted (tokenize.canaries)"] * bool(planted)
                + [lengths] * bool(tokens["rows_truncated"] or tokens["rows_split"])
            )
            or None,
        ),
    ]


def _step(stage: str, name: str, report: Report, note: str | None) -> Step:
    return Step(stage, name, report["rows_in"], report["rows_out"], _rules(report["rejected"]), note)


def _by_models(report: Report) -> list[Step]:
    """What the user's own models did with the rows; nothing where there is none."""
    if report["entities"] is None:
        return []
    found = [f"{count(its['rows'])} rows: {kind} {its['action']}" for kind, its in sorted(report["entities"]["kinds"].items())]
    return [_step("local_models", "Read by a local model", report, "; ".join(found))]


def _rules(rejected: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Rules in words, the most frequent first."""
    named = [(RULES.get(rule, rule.replace("_", " ")), rows) for rule, rows in rejected.items() if rows]
    return tuple(sorted(named, key=lambda item: (-item[1], item[0])))


def _repairs(report: Report) -> str | None:
    """What clean changed in rows it kept."""
    changed = [f"{count(rows)} rows: {name.replace('_', ' ')} repaired" for name, rows in sorted(report["repaired"].items())]
    for kind, what in (("secrets", "secrets"), ("personal_data", "personal data")):
        found = report[kind]
        changed += [
            f"{count(rows)} rows: {name} redacted ({what})"
            for name, rows in sorted(found["rows"].items())
            if found["actions"].get(name, found["action"]) == "redact"
        ]
    return "; ".join(changed) or None


def repairs(report: Report) -> list[tuple[str, str, str]]:
    """The steps, the text before and the text after of some repairs, what cannot be seen written as its code point."""
    return [
        (", ".join(row["steps"]).replace("_", " "), _printable(row["before"]), _printable(row["after"])) for row in report["repair_samples"]
    ]


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\n" else f"⟨U+{ord(char):04X}⟩" for char in text)


def detectors(report: Report) -> list[tuple[str, str, Report]]:
    """What is looked for, how much of what was planted was found, and recall and precision by kind."""
    found = []
    for group, prefix, name in (("personal_data", "pii", "Personal data"), ("secrets", "secrets", "Secrets")):
        said = f"recall {percent(report[f'{prefix}_recall'])}, precision {percent(report[f'{prefix}_precision'])}"
        found.append((name, said, report["planted"][group]["kinds"]))
    return found


def suspects(report: Report) -> list[Suspect]:
    """The least trusted labels, worst first."""
    found = report["top_suspects"][:SHOWN_SUSPECTS]
    return [Suspect(row["id"], row["text"], row["label"], row["suggested"], row["confidence"]) for row in found]


def suspects_note(report: Report) -> str:
    """How many labels are suspected of how many, and what was done with them."""
    done = {"report": "They are reported, not changed", "drop": f"{count(report['rejected'].get('suspect_label', 0))} were dropped"}
    return (
        "A classifier that had seen neither the row nor its near-duplicates disagrees with the label of "
        f"{count(report['suspects'])} of {count(report['checked'])} checked rows; the report shows the least trusted. "
        f"{done[report['action']]}; people decide in data/decisions.csv."
    )


def preview(report: Report) -> list[list[Token]]:
    """The first training rows as tokens."""
    return [[Token(_visible(text), learnt) for text, learnt in row["tokens"]] for row in report["preview"][:SHOWN_ROWS]]


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace("\t", "⇥")


def tokens_note(report: Report) -> str:
    """Tokens and learnt tokens of the training side, and the tokenizer's peculiarities."""
    side = report["sides"]["train"]
    totals = f"{count(side['rows_out'])} rows, {count(side['tokens'])} tokens, {count(side['trained_tokens'])} of them learnt"
    return " ".join([f"{totals} ({percent(side['trained_share'])}).", *report["notes"]])
