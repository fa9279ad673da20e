"""Where the model is weak, as far as its reports know: labels, mistakes, tasks forgotten. In: the report of compare. Out: sentences."""

from stages.card import result_facts
from stages.card.evidence import worst
from stages.card.reading import Report
from stages.card.words import ACCURACY, count, percent, task_name

SHOWN = 3
ENOUGH = 10  # test rows of a label, below which its share says little


def weaknesses(compare: Report) -> list[str]:
    """The worst slice and labels, the labels it never got right, the most frequent mistake, and the general tasks on which it lost."""
    found = result_facts.labels(compare)
    never = [f"{entry['slice']} ({count(entry['items'])})" for entry in found if entry["tuned"] == 0]
    weakest = sorted((entry for entry in found if entry["tuned"] and entry["items"] >= ENOUGH), key=lambda entry: float(entry["tuned"]))
    said = [sentence] if (sentence := worst(compare)) else []
    if weakest:
        named = [f"{entry['slice']} ({percent(entry['tuned'])} of {count(entry['items'])} rows)" for entry in weakest[:SHOWN]]
        said.append(f"It is right least often on the labels {', '.join(named)}.")
    if never:
        said.append(f"It was right on no test row of: {', '.join(never)}.")
    if mistakes := result_facts.mistakes(compare):
        expected, given, times = mistakes[0]
        said.append(f"Its most frequent mistake is to take {expected} for {given or 'nothing'} ({count(times)} rows).")
    for entry in compare["tasks"]:
        if entry["task"] != "domain" and entry["difference"] < 0:
            sure = "beyond chance" if entry["p_holm"] < compare["alpha"] else "which may be chance"
            task = task_name(entry["task"])
            items = f"{count(entry['lost'])} questions lost, {count(entry['won'])} won"
            said.append(f"On {task} it changed by {ACCURACY.gap(entry['difference'])}, {sure}: {items}.")
    return said
