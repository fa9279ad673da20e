"""What card and report say of the result: the verdict in words, scores, tasks, labels, samples.

In: the reports of compare and fetch_general. Out: what the templates show.
"""

from dataclasses import dataclass
from typing import Any

from stages.card.charts import nice_ticks
from stages.card.reading import Report
from stages.card.words import ACCURACY, LOSSES, METRICS, NO_BREAK, OTHERS, OWN, PROMPTS, Metric, chance, count, number, task_name
from stages.core.wilson import wilson

VERDICTS = ("improved", "no difference", "worse")
SHOWN_MISTAKES = 6
COVERAGE = 0.95  # of every interval: compare's are of 95 % whatever compare.alpha its tests take
LEVEL = f"{100 * COVERAGE:g}{NO_BREAK}%"


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
class Comparison:
    """The tuned model against another on the same items, in words.

    Attributes:
        name: the other model, or the task.
        other: its score.
        tuned: the tuned model's score.
        gap: tuned minus other.
        limits: the interval of the gap.
        p_value: of no difference.
        won: items won by the tuned model.
        lost: items lost.
        items: how many.
        cost: of an answer of the other, in tokens, or None where none was counted.
        scores: both as places on an axis, the other first.
        source: what fetch_general says of the task, or None for the domain.
    """

    name: str
    other: str
    tuned: str
    gap: str
    limits: str
    p_value: str
    won: str
    lost: str
    items: str
    cost: str | None
    scores: tuple[Score, ...]
    source: Report | None


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


def metric_of(compare: Report) -> Metric:
    """The domain's metric: accuracy where rows have labels."""
    return ACCURACY if compare["confusion"] is not None else measure_of(compare["domain"]["metric"])


def measure_of(name: str) -> Metric:
    """A metric of rows without labels."""
    return Metric(METRICS[name], name not in LOSSES and name not in ("rouge_l", "chrf"), name in LOSSES)


def _score(name: str, kind: str, metric: Metric, value: float, items: int, top: float) -> Score:
    ends = wilson(value, items, 1 - COVERAGE) if metric.is_share else None
    low, high = (100 * end / top for end in ends) if ends else (None, None)
    interval = f"{metric.value(ends[0])} to {metric.value(ends[1])}" if ends else None
    return Score(name, kind, metric.value(value), interval, 100 * value / top, low, high)


def _against(
    entry: Report, name: str, kind: str, metric: Metric, top: float, source: Report | None = None, cost: str | None = None
) -> Comparison:
    """One line of compare's `tasks`."""
    other = _score(name if source is None else "Base", kind, metric, entry["base"], entry["items"], top)
    tuned = _score("Tuned", "tuned", metric, entry["tuned"], entry["items"], top)
    return Comparison(
        name=name,
        other=other.text,
        tuned=tuned.text,
        gap=metric.gap(entry["difference"]),
        limits=metric.limits(*entry["ci95"]),
        p_value=chance(entry["p_holm"]),
        won=count(entry["won"]),
        lost=count(entry["lost"]),
        items=count(entry["items"]),
        cost=cost,
        scores=(other, tuned),
        source=source,
    )


def domain(compare: Report, base: Report, tuned: Report) -> list[Comparison]:
    """The tuned model against each way of asking the base, and against what needs no language model.

    Args:
        compare: the report of compare.
        base: that of evaluate on the base, which counted an answer's tokens.
        tuned: that of evaluate on the tuned model.

    Returns:
        The comparisons.
    """
    metric, top, costs = metric_of(compare), _top(compare), {**_costs(tuned, "tuned_scored"), **_costs(base, "{}_scored")}
    found = [
        _against(entry, f"Base, {PROMPTS[entry['prompt']]}", "base", metric, top, cost=costs.get(entry["prompt"]))
        for entry in compare["tasks"]
        if entry["task"] == "domain"
    ]
    return found + [_against(entry, *OTHERS[entry["prompt"]], metric, top, cost=costs.get(entry["prompt"])) for entry in compare["others"]]


def measures(compare: Report) -> list[tuple[Comparison, str | None]]:
    """The tuned model against the base by every other measure, the base asked in its best way; and what copying an answer reaches."""
    return [
        (
            _against(entry, f"{metric.name} ({metric.better}); base, {PROMPTS[entry['prompt']]}", "base", metric, 1.0),
            metric.value(entry["copied"]) if entry["copied"] is not None else None,
        )
        for entry in compare["measures"]
        for metric in [measure_of(entry["metric"])]
    ]


def _costs(evaluated: Report, scored: str) -> dict[str, str]:
    """What an answer costs, the tokens read and written, by way of asking as compare names it; `scored` names a prompt's label scores."""
    return {
        scored.format(entry["prompt"]) if entry["task"] == "label_scores" else entry["prompt"]: _tokens(entry)
        for entry in evaluated["tasks"]
        if entry["task"] in ("domain", "label_scores")
    }


def tuned_cost(evaluated: Report) -> str:
    """What an answer of the tuned model costs, in one sentence."""
    return (
        f"An answer of the tuned model: {_tokens(next(entry for entry in evaluated['tasks'] if entry['task'] in ('domain', 'reference')))}."
    )


def _tokens(entry: Report) -> str:
    return f"{entry['prompt_tokens']:,.0f} tokens read, {entry['new_tokens']:.1f} written"


def _top(compare: Report) -> float:
    """Where the domain's axis ends: above the largest score for losses, else at 1."""
    if not metric_of(compare).is_loss:
        return 1.0
    largest = max(max(entry["base"], entry["tuned"]) for entry in compare["tasks"] if entry["task"] == "domain")
    return nice_ticks(0.0, largest)[-1]


def axis(compare: Report) -> list[str]:
    """The labels of the domain's axis at its quarters."""
    top, metric = _top(compare), metric_of(compare)
    return [f"{25 * quarter}{NO_BREAK}%" if metric.is_share else number(top * quarter / 4) for quarter in range(5)]


def scores(comparisons: list[Comparison]) -> list[Score]:
    """One score a model: the base's, the tuned model's, the classical baseline's."""
    base = [comparison.scores[0] for comparison in comparisons if comparison.scores[0].kind == "base"]
    others = [comparison.scores[0] for comparison in comparisons if comparison.scores[0].kind != "base"]
    return [*base, comparisons[0].scores[1], *others]


def tasks(compare: Report, fetched: Report) -> list[Comparison]:
    """The general suite, task by task."""
    return [
        _against(
            entry,
            task_name(entry["task"]),
            "base",
            ACCURACY,
            1.0,
            fetched["tasks"].get(entry["task"], {**OWN, "available": entry["items"]}),
        )
        for entry in compare["tasks"]
        if entry["task"] != "domain"
    ]


def difference(compare: Report) -> str:
    """The paired difference on the domain in one sentence."""
    metric = metric_of(compare)
    best = next(entry for entry in compare["tasks"] if entry["task"] == "domain" and entry["prompt"] == compare["base_prompt"])
    interval = f"{LEVEL} interval {metric.limits(*best['ci95'])}, p = {chance(best['p_holm'])}"
    said = (
        f"The tuned model against the base with its best prompt, row by row: {metric.gap(best['difference'])} ({interval}); "
        f"{count(best['won'])} rows won, {count(best['lost'])} lost. {_unseen(best['items'], best['detectable'], metric)}"
    )
    if (clean := best["clean"]) is None or clean["items"] == best["items"]:
        return said
    scores = f"{metric.value(clean['tuned'])} against {metric.value(clean['base'])}, {metric.gap(clean['difference'])}"
    return f"{said} On the {count(clean['items'])} rows that share no 8 words in a row with a training row: {scores}."


def _unseen(items: int, detectable: float, metric: Metric) -> str:
    """What so few items could not have shown."""
    least = f"{100 * detectable:.1f} points" if metric.is_share else f"{detectable:.3f}"
    return f"With {count(items)} items you cannot count on seeing less than {least}."


def forgetting(compare: Report) -> str:
    """The difference on the general suite, and what these items could not have shown."""
    general, loss = compare["general"], compare["general_loss"]
    if general["difference"] is None:
        return "Forgetting was not measured: no general question was asked."
    change = f"{ACCURACY.gap(general['difference'])} ({LEVEL} interval {ACCURACY.limits(*general['ci95'])})"
    clean = sum(entry["clean"]["items"] for entry in compare["tasks"] if entry["task"] != "domain" and entry["clean"])
    said = f"All {count(general['items'])} general questions together: {change}. Forgetting: {compare['forgetting']}."
    said = f"{said} {_unseen(general['items'], loss['detectable'], ACCURACY)}"
    if lost := [task_name(entry["task"]) for entry in loss["by_task"] if entry["forgetting"] != "none"]:
        said = f"{said} Lost beyond chance, corrected for the number of tasks: {', '.join(lost)}."
    said = f"{said} {count(clean)} of them share no 8 words in a row with a training row."
    limit, up_to = (f"{100 * value:.1f} points" for value in (loss["limit"], loss["up_to"]))
    if loss["limit_excluded"]:
        return f"{said} A loss of more than {up_to} is unlikely; {limit} would be tolerated."
    return (
        f"{said} A loss of up to {up_to} cannot be excluded, and {limit} would be tolerated: ask more questions to be sure (general.items)."
    )


def verdict(compare: Report) -> Verdict:
    """The result in plain words."""
    domain, metric = compare["domain"], metric_of(compare)
    tone, mark, title = {
        "improved": ("good", "✓", "Better at its task"),
        "no difference": ("even", "≈", "No measurable difference"),
        "worse": ("bad", "✗", "Worse at its task"),
    }[compare["verdict"]]
    tuned, base, items = metric.value(domain["tuned"]), metric.value(domain["base"]), count(domain["items"])
    if metric is ACCURACY:
        first = f"It is right on {tuned} of {items} held-out rows; the base, asked in the way that suits it best, is right on {base}."
    elif metric.is_loss:
        first = f"It needs {tuned} {metric.name} for {items} held-out answers, the base with its best prompt {base}: less is better."
    else:
        first = f"By {metric.name} it scores {tuned} on {items} held-out answers, the base with its best prompt {base}: {metric.better}."
    sentences = [first, *_by_measure(compare), _forgotten(compare)]
    if domain["classical"] is not None:
        sentences.append(_classical(compare, metric))
    if compare["clean_note"] is not None:
        sentences.append(compare["clean_note"])
    if compare["forgetting"] == "over limit":
        tone, mark, title = "bad", "✗", f"{title}, but it forgot too much"
    return Verdict(tone, mark, title, tuple(sentences))


def _by_measure(compare: Report) -> list[str]:
    """What the other measures say, in one sentence; none where there is no other."""
    found = {word: [METRICS[entry["metric"]] for entry in compare["measures"] if entry["verdict"] == word] for word in VERDICTS}
    said = [f"{word} by {', '.join(names)}" for word, names in found.items() if names]
    alike = [METRICS[entry["metric"]] for entry in compare["measures"] if entry["copied"] and entry["copied"] >= entry["tuned"]]
    copied = {entry["prompt"]: entry["base"] for entry in compare["others"]}.get("nearest")
    if copied and copied >= compare["domain"]["tuned"]:
        alike.insert(0, METRICS[compare["domain"]["metric"]])
    mind = [f"Mind that copying the nearest training row's answer is as good or better by {', '.join(alike)}."] if alike else []
    return [f"By the other measures: {'; '.join(said)}.", *mind] if said else mind


def _forgotten(compare: Report) -> str:
    forgotten, general = compare["forgetting"], compare["general"]
    if forgotten == "not measured":
        return "Whether it forgot anything was not measured."
    change = ACCURACY.gap(general["difference"])
    return {
        "none": f"On general questions no loss beyond chance was found ({change}).",
        "within limit": f"On general questions it lost accuracy ({change}), within the limit set.",
        "over limit": f"On general questions it lost accuracy ({change}), more than the limit set.",
    }[forgotten]


def _classical(compare: Report, metric: Metric) -> str:
    """What a reader who needs only the label should know."""
    against = next(entry for entry in compare["others"] if entry["prompt"] == "tf-idf")
    score = metric.value(against["base"])
    measured = f"a classical text classifier (TF-IDF and logistic regression) trained on the same rows reaches {score}"
    if against["p_holm"] >= compare["alpha"]:
        return f"Mind that {measured}, no difference beyond chance: where only the label is wanted, it does as well and is far cheaper."
    if against["difference"] < 0:
        return f"Mind that {measured}: where only the label is wanted, it is the better and far cheaper tool."
    return f"For comparison, {measured}."


def labels(compare: Report) -> list[Report]:
    """The share right by label, base and tuned, the most frequent label first."""
    found = [part for part in compare["slices"] if part["by"] == "label"]
    return sorted(found, key=lambda part: (-part["items"], part["slice"]))


def mistakes(compare: Report) -> list[tuple[str, str, int]]:
    """The tuned model's most frequent mistakes: the right label, the answer, how often."""
    if compare["confusion"] is None:
        return []
    table = compare["confusion"]["tuned"]
    found = [
        (label, answer, times)
        for label, row in zip(table["labels"], table["counts"], strict=True)
        for answer, times in zip(table["columns"], row, strict=True)
        if answer != label and times
    ]
    return sorted(found, key=lambda item: (-item[2], item[:2]))[:SHOWN_MISTAKES]


def samples(compare: Report) -> list[dict[str, Any]]:
    """Rows with both answers and how each scored; none where answers are weighed and not generated."""
    metric = metric_of(compare)

    def scored(score: float) -> str:
        return ("✓ right" if score == 1 else "✗ wrong") if metric.is_share else f"{metric.value(score)} {metric.name}"

    return [
        {
            **sample,
            "answers": [
                (name, sample[key], scored(sample[f"{key}_score"]), None if not metric.is_share else sample[f"{key}_score"] == 1)
                for name, key in (("Base", "base"), ("Tuned", "tuned"))
            ],
        }
        for sample in compare["samples"]
        if sample["tuned"] is not None
    ]


def eval_results(compare: Report) -> list[dict[str, Any]]:
    """The tuned model's scores as a model card's metadata has them: task, metric, value, and the split they were measured on."""
    domain = compare["domain"]
    general = [entry for entry in compare["tasks"] if entry["task"] != "domain"]
    return [
        {"task": "domain", "metric": domain["metric"], "value": domain["tuned"]},
        *({"task": "domain", "metric": entry["metric"], "value": entry["tuned"]} for entry in compare["measures"]),
        *({"task": entry["task"], "metric": entry["metric"], "value": entry["tuned"]} for entry in general),
    ]
