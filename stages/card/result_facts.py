"""What card and report say of the result: the verdict in words, scores with intervals, tasks, labels.

In: the reports of evaluate and compare. Out: what the templates show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.card.charts import nice_ticks
from stages.card.reading import Report
from stages.card.words import ACCURACY, TASKS, Metric, count, number

PROMPTS = {"plain": "training prompt", "label_list": "list of labels", "few_shot": "with examples"}


@dataclass(frozen=True)
class Score:
    """A model's score as text and as a place on an axis in per cent.

    Attributes:
        name: model and prompt.
        kind: base, tuned or classical: the colour.
        text: the score in words.
        interval: its interval in words, or None.
        place: of the score.
        low: of the interval's lower end, or None.
        high: of its upper end, or None.
    """

    name: str
    kind: str
    text: str
    interval: str | None
    place: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TaskResult:
    """One task of the general suite, base and tuned."""

    name: str
    base: str
    tuned: str
    gap: str
    items: int
    available: int
    split: str
    license: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Verdict:
    """The result in plain words.

    Attributes:
        tone: good, even or bad: the banner's colour.
        mark: the sign beside the title.
        title: a few words.
        sentences: what they rest on.
    """

    tone: str
    mark: str
    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    """A label's test rows and the share each model got right."""

    name: str
    items: int
    shares: tuple[float, ...]


def metric_of(compare: Report) -> Metric:
    """The domain's metric."""
    name = compare["domain"]["metric"]
    return Metric(name.replace("_", " "), name != "bits_per_byte")


def _score(name: str, kind: str, metric: Metric, value: float, ci: list[float] | None, top: float) -> Score:
    low, high = (100 * end / top for end in ci) if ci else (None, None)
    interval = f"{metric.value(ci[0])} to {metric.value(ci[1])}" if ci else None
    return Score(name, kind, metric.value(value), interval, 100 * value / top, low, high)


def domain_scores(compare: Report) -> list[Score]:
    """The base's ways of being asked, the tuned model, the classical baseline; what was not measured is left out."""
    domain, metric = compare["domain"], metric_of(compare)
    shown = [(f"Base, {PROMPTS[way['prompt']]}", "base", way["score"], way["ci95"]) for way in compare["base_prompts"]]
    shown.append(("Tuned", "tuned", domain["tuned"], compare["tuned_ci95"]))
    if domain["classical"] is not None:
        shown.append(("Classical", "classical", domain["classical"], compare["classical_ci95"]))
    top = 1.0 if metric.is_share else nice_ticks(0.0, max(_measured(compare)))[-1]
    return [_score(name, kind, metric, value, ci, top) for name, kind, value, ci in shown]


def _measured(compare: Report) -> list[float]:
    """Every score on the domain."""
    domain = compare["domain"]
    scores = [*(way["score"] for way in compare["base_prompts"]), domain["tuned"], domain["classical"]]
    return [score for score in scores if score is not None]


def axis(compare: Report) -> list[str]:
    """The labels of the domain's axis at its quarters."""
    metric = metric_of(compare)
    if metric.is_share:
        return [f"{place} %" for place in (0, 25, 50, 75, 100)]
    top = nice_ticks(0.0, max(_measured(compare)))[-1]
    return [number(top * quarter / 4) for quarter in range(5)]


def tasks(compare: Report, fetched: Report) -> list[TaskResult]:
    """The general suite, task by task."""
    found = []
    for task in compare["general_tasks"]:
        base = _score("Base", "base", ACCURACY, task["base"], task["base_ci95"], 1.0)
        tuned = _score("Tuned", "tuned", ACCURACY, task["tuned"], task["tuned_ci95"], 1.0)
        gap = f"{ACCURACY.gap(task['difference'])} (95 % interval {ACCURACY.limits(*task['ci95'])})"
        source = fetched["tasks"][task["task"]]
        facts = (task["items"], source["available"], source["split"], source["license"])
        found.append(TaskResult(TASKS.get(task["task"], task["task"]), base.text, tuned.text, gap, *facts, (base, tuned)))
    return found


def difference(compare: Report) -> str:
    """The paired difference on the domain in one sentence."""
    domain, metric = compare["domain"], metric_of(compare)
    interval = f"95 % interval {metric.limits(*domain['ci95'])}, p = {number(domain['p_value'])}"
    return (
        f"The tuned model against the base's best prompt, row by row: {metric.gap(domain['difference'])} ({interval}); "
        f"{count(domain['won'])} rows won, {count(domain['lost'])} lost."
    )


def forgetting(compare: Report, limit: float) -> str:
    """The difference on the general suite in one sentence."""
    general = compare["general"]
    change = f"{ACCURACY.gap(general['difference'])} (95 % interval {ACCURACY.limits(*general['ci95'])})"
    return f"All tasks together: {change}. Forgetting: {compare['forgetting']}; the limit is {number(100 * limit)} points."


def verdict(compare: Report) -> Verdict:
    """The result in plain words."""
    domain, metric = compare["domain"], metric_of(compare)
    best = (max if metric.is_share else min)(way["score"] for way in compare["base_prompts"])
    tone, mark, title = {
        "improved": ("good", "✓", "Better at its task"),
        "no difference": ("even", "≈", "No measurable difference"),
        "worse": ("bad", "✗", "Worse at its task"),
    }[compare["verdict"]]
    tuned, base, items = metric.value(domain["tuned"]), metric.value(best), count(domain["items"])
    if metric.is_share:
        first = f"It is right on {tuned} of {items} held-out rows; the base with its best prompt is right on {base}."
    else:
        first = f"It needs {tuned} {metric.name} for {items} held-out answers, the base {base}: less is better."
    sentences = [first, _forgotten(compare)]
    if domain["classical"] is not None:
        sentences.append(_classical(domain["classical"], domain["tuned"], metric))
    if compare["forgetting"] == "over limit":
        tone, mark, title = "bad", "✗", f"{title}, but it forgot too much"
    return Verdict(tone, mark, title, tuple(sentences))


def _forgotten(compare: Report) -> str:
    change = ACCURACY.gap(compare["general"]["difference"])
    return {
        "none": f"No loss was found on the general questions ({change}).",
        "within limit": f"On the general questions it changed by {change}, within the limit set.",
        "over limit": f"On the general questions it changed by {change}, more than the limit set.",
    }[compare["forgetting"]]


def _classical(classical: float, tuned: float, metric: Metric) -> str:
    """What a reader who needs only the label should know."""
    measured = f"a classical text classifier (TF-IDF and logistic regression) trained on the same rows reaches {metric.value(classical)}"
    if classical >= tuned:
        return f"Mind that {measured}: where only the label is wanted, it is the better and far cheaper tool."
    return f"For comparison, {measured}."


def labels(reports: Mapping[str, Report], prompt: str) -> tuple[list[str], list[Label]]:
    """The share right by label, base and tuned, the most frequent label first; empty where answers are not labels."""
    tuned, base = (reports[name]["accuracy_by_label"] for name in ("evaluate_tuned", "evaluate_base"))
    if "plain" not in tuned:
        return [], []
    found = [Label(name, entry["items"], (base[prompt][name]["accuracy"], entry["accuracy"])) for name, entry in tuned["plain"].items()]
    return [f"Base, {PROMPTS[prompt]}", "Tuned"], sorted(found, key=lambda label: (-label.items, label.name))


def best_prompt(compare: Report) -> str:
    """The base's best way of being asked."""
    return str(compare["domain"]["base_prompt"])


def eval_results(compare: Report) -> list[dict[str, Any]]:
    """The scores as the metadata of a model card has them: task, dataset, metric, value."""
    domain = compare["domain"]
    return [
        {"dataset": "domain", "metric": domain["metric"], "value": domain["tuned"]},
        *({"dataset": task["task"], "metric": "accuracy", "value": task["tuned"]} for task in compare["general_tasks"]),
    ]
