"""What the tuned model gives away of its training rows, in plain words first. In: the report of extraction. Out: sentences."""

from dataclasses import dataclass

from stages.card.reading import Report
from stages.card.words import ACCURACY, count, number, percent

TITLES = {
    "nothing seen": "Nothing was found that it gives away",
    "seen, within limits": "It gives away something of its training rows, within the limits that were set",
    "over limit": "It gives away more of its training rows than the limits allow",
}
MEANINGS = {
    "nothing seen": "As far as was tried, who knows the beginning of a row, has a row or asks for a secret learns no more from it than "
    "from its base.",
    "seen, within limits": "Who has it can learn something of its training rows that its base does not tell; whether it may leave the "
    "house is for those who answer for the rows.",
    "over limit": "Who has it can learn more of its training rows than was allowed: keep it in the house, or train it again without the "
    "rows named.",
}
NAMES = {
    "memorised": "Rows written verbatim, beyond held-out ones",
    "membership": "Training rows told from others by their loss",
    "exposure": "Exposure of planted canaries, bits",
    "leaked values": "Personal data and secrets of training rows in outputs",
}


@dataclass(frozen=True)
class GivesAway:
    """What the templates show.

    Attributes:
        title: the verdict.
        meaning: what that means, in plain words.
        sentences: what was tried and what came of it.
        measures: by measure its name, value, limit, corrected p value and verdict.
    """

    title: str
    meaning: str
    sentences: list[str]
    measures: list[tuple[str, str, str, str, str]]


def gives_away(report: Report) -> GivesAway:
    """Puts it together."""
    return GivesAway(
        title=TITLES[report["verdict"]],
        meaning=MEANINGS[report["verdict"]],
        sentences=[
            reproduction(report),
            membership(report["membership"]),
            canaries(report),
            values(report["values"]),
            refusals(report["refusals"]),
        ],
        measures=[
            (
                NAMES[entry["measure"]],
                number(entry["value"]),
                number(entry["limit"]),
                "–" if entry["p_holm"] is None else number(entry["p_holm"]),
                entry["verdict"],
            )
            for entry in report["judgements"]
        ],
    )


def reproduction(report: Report) -> str:
    """Verbatim extraction by prefix."""
    found = report["reproduction"]
    if found is None:
        return (
            f"No training row has {count(report['prefix_tokens'])} tokens to be given and {count(report['continuation_tokens'])} more, "
            "or an answer so long, so whether it writes rows verbatim was not measured."
        )
    own, others = found["training"], found["held_out"]
    return (
        f"Shown the beginning of {count(own['rows'])} training rows, it wrote the next {count(report['continuation_tokens'])} tokens "
        f"verbatim for {count(own['tuned'])} (nearly so for {count(own['tuned_near'])}), its base for {count(own['base'])}. Of "
        f"{count(others['rows'])} rows that it never saw, it did so for {count(others['tuned'])} (nearly so for "
        f"{count(others['tuned_near'])}), its base for {count(others['base'])}. The share of rows that it writes and its base does not is "
        f"{ACCURACY.gap(found['excess'])} larger among those it learnt, interval {ACCURACY.limits(*found['excess_ci95'])}."
    )


def membership(found: Report) -> str:
    """Membership inference."""
    gain = found["gain"]
    low, high = gain["ci95"]
    return (
        f"By how much cheaper an answer became, a training row is told from one held out with an area under the ROC curve of "
        f"{number(gain['auc'])} (interval {number(low)} to {number(high)}; a coin reaches a half); by the base alone, which saw neither, "
        f"{number(found['control']['auc'])}."
    )


def canaries(report: Report) -> str:
    """Exposure of planted secrets."""
    found = report["exposure"]
    if found is None:
        return "No canary was planted (tokenize.canaries), so how fast it learns a secret by heart was not measured."
    said = sum(one["tuned_said"] for one in found["canaries"])
    return (
        f"Of {count(len(found['canaries']))} secrets that were planted among its rows to see whether it learns such, it says "
        f"{count(said)} when asked; their mean exposure is {number(found['mean_bits']['tuned'])} bits of at most "
        f"{number(found['most_bits'])}, in its base {number(found['mean_bits']['base'])}."
    )


def values(found: Report) -> str:
    """Personal data and secrets in outputs."""
    tuned, base = found["counts"]["tuned"], found["counts"]["base"]
    return (
        f"In {count(found['outputs'])} outputs the detectors of personal data and secrets found {count(tuned['training_row'])} values that "
        f"stand in a training row and not in the prompt ({count(len(found['leaks']))} of them not said by its base), and "
        f"{count(tuned['made_up'])} that it made up; in the base's {count(base['training_row'])} and {count(base['made_up'])}."
    )


def refusals(found: Report) -> str:
    """What is refused."""
    harmful, harmless = found["harmful"], found["harmless"]
    return (
        f"Of {count(harmful['prompts'])} harmful requests it refuses {count(harmful['tuned'])}, its base {count(harmful['base'])}; of "
        f"{count(harmless['prompts'])} harmless ones that sound like them {count(harmless['tuned'])}, its base {count(harmless['base'])}."
    )


def weaknesses(report: Report) -> list[str]:
    """What stands among the known weaknesses: each measure that found something, and a refusal that was lost."""
    said = [
        f"{NAMES[entry['measure']]}: {number(entry['value'])}, limit {number(entry['limit'])}, {entry['verdict']}."
        for entry in report["judgements"]
        if entry["verdict"] != "nothing seen"
    ]
    found = report["reproduction"]
    if not said and found is not None:
        said.append(
            f"It was not seen to give rows away, but up to {percent(found['ci95'][1])} of rows like those asked could come back verbatim "
            "and not have been seen to, and other attacks were not tried."
        )
    harmful = report["refusals"]["harmful"]
    if harmful["tuned"] < harmful["base"]:
        said.append(
            f"It refuses {count(harmful['tuned'])} of {count(harmful['prompts'])} harmful requests, of which its base refuses "
            f"{count(harmful['base'])}."
        )
    return said
