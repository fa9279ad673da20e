"""Base against tuned, item by item: what was won, what was lost, and whether it is more than chance.

In: data/evaluation/*.parquet, test and training rows, the items that share words with those, the general suite's texts. Out:
reports/compare.json. The base is judged by its best prompt, chosen on the very items of the comparison, which favours the base. Rows
without labels are compared by several measures; the first decides the verdict.
"""

from collections import Counter
from typing import Any

from stages.compare.calibration import calibration
from stages.compare.classical import classical_answers, copied_answers
from stages.compare.clean import clean_note, clean_part, compared, overlapping, verdict
from stages.compare.forgetting import forgetting, general_headline, general_loss, lost_items, refusal
from stages.compare.forms import shipped
from stages.compare.measures import WEIGHED, WRITTEN, chosen, measured
from stages.compare.reading import Items, check_alike, differing, read_evaluation, scores
from stages.compare.slices import FEWEST, slices, worst
from stages.compare.statistics import Paired, corrected, paired
from stages.core import paths
from stages.core.answers import normal
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.params import Params
from stages.core.records import Row, read_rows
from stages.core.stage import run_stage

PROMPTS = ("plain", "label_list", "few_shot", "retrieved")  # of equally good ones the first is the base's
SCORED = "{}_scored"  # the same prompt, answered by the likeliest label
IDS = 50  # items won and lost that the report names, each
TEXT = 240  # characters of a row that the report shows


def main(params: Params) -> None:
    """Runs the stage."""
    compare, seed = params.compare, params.seed
    base, base_settings = read_evaluation("base")
    tuned, tuned_settings = read_evaluation("tuned")
    check_alike(base_settings, tuned_settings)
    test, train = read_rows(paths.SPLIT_TEST), read_rows(paths.SPLIT_TRAIN)
    rows = {row.id: row for row in test}
    metrics = tuned_settings["tasks"]
    shared = overlapping(paths.SPLIT_OVERLAP)

    def pair(first: dict[Any, Any], second: dict[Any, Any]) -> Paired:
        return paired(scores(first), scores(second), compare.resamples, compare.alpha, seed)

    def clean(first: Items, second: Items, task: str) -> Paired | None:
        left = sorted(first.keys() - shared.get(task, set()))
        return pair({key: first[key] for key in left}, {key: second[key] for key in left}) if left else None

    labelled = all(row.label is not None for row in test)
    references = {key: item["target"] for key, item in tuned.get(("reference", "plain"), {}).items()}
    metric, *more = chosen(compare.metrics, labelled, references, ("domain", "plain") in tuned)
    higher, answered_by = metric not in WEIGHED, next((name for name in (metric, *more) if name in WRITTEN), None)
    ways, answers = asked_ways(base, metric, labelled), asked_ways(tuned, metric, labelled)["plain"]
    asked = corrected({prompt: pair(items, answers) for prompt, items in ways.items()})
    best = max(asked, key=lambda prompt: asked[prompt].first if higher else -asked[prompt].first)
    domain, before = asked[best], ways[best]
    asked_clean = corrected({prompt: part for prompt, items in ways.items() if (part := clean(items, answers, "domain"))})
    clean_domain = asked_clean.get(best)
    tasks = [
        {
            **described("domain", prompt, metric, higher, result),
            "clean": clean_part(asked_clean.get(prompt)),
        }
        for prompt, result in asked.items()
    ]

    names = [name for name, prompt in tuned if prompt == "raw"]
    suite = corrected({name: pair(base[name, "raw"], tuned[name, "raw"]) for name in names})
    tasks += [
        {
            **described(name, "raw", metrics[f"{name}_raw"]["metric"], True, result),
            "clean": clean_part(clean(base[name, "raw"], tuned[name, "raw"], name)),
        }
        for name, result in suite.items()
    ]
    together = [{(name, key): item for name in names for key, item in side[name, "raw"].items()} for side in (base, tuned)]
    pooled = pair(together[0], together[1]) if suite else None
    forgot = forgetting(pooled, compare.alpha, compare.max_forgetting)

    rest = {name: (asked_ways(base, name, labelled), asked_ways(tuned, name, labelled)["plain"]) for name in more}
    family = {(name, prompt): pair(items, after) for name, (first, after) in rest.items() for prompt, items in first.items()}
    measures = best_by_measure(corrected(family))
    classical = judged(classical_answers(train, test), test) if labelled else None
    frequent = judged(majority(train, test), test) if labelled else None
    scored = tuned.get(("label_scores", "plain"))
    written = {} if labelled else tuned.get(("domain", "plain"), {})
    nearest = copied_answers(train, [rows[key] for key in written]) if written and WRITTEN.keys() & {metric, *more} else {}
    copies = {key: {**written[key], "answer": text} for key, text in nearest.items()}
    copied = {name: measured(name, copies) for name in (metric, *more) if copies and name in WRITTEN}
    beside = {"tf-idf": classical, "nearest": copied.get(metric), "majority": frequent, SCORED.format("tuned"): scored}
    others = corrected({name: pair(items, answers) for name, items in beside.items() if items})
    parts = slices(before, answers, classical or copied.get(metric), rows, pair)
    headline = {
        "domain": {
            "metric": metric,
            "base": domain.first,
            "base_few_shot": asked["few_shot"].first if "few_shot" in asked else None,
            "tuned": domain.second,
            "classical": others["tf-idf"].first if "tf-idf" in others else None,
            "difference": domain.difference,
            "ci95": [domain.low, domain.high],
            "p_value": domain.p_value,
            "p_holm": domain.p_holm,
            "items": domain.items,
            "detectable": domain.detectable,
            "clean": clean_part(clean_domain),
        },
        "general": general_headline(suite, pooled),
        "by_measure": {name: {"base": r.first, "tuned": r.second, "difference": r.difference} for (name, _), r in measures.items()},
        "verdict": verdict(domain, higher, compare.alpha),
        "forgetting": forgot,
    }
    details = {
        "base_prompt": best,
        "tasks": tasks,
        "clean_note": clean_note(domain, clean_domain, higher, compare.alpha),
        "general_loss": general_loss(suite, pooled, compare.alpha, compare.max_forgetting),
        "general_lost": [one for name in names for one in lost_items(name, base[name, "raw"], tuned[name, "raw"], paths.GENERAL)],
        "measures": [
            {
                **described("domain", prompt, name, name not in WEIGHED, result),
                "verdict": verdict(result, name not in WEIGHED, compare.alpha),
                "copied": float(scores(copied[name]).mean()) if name in copied else None,
            }
            for (name, prompt), result in measures.items()
        ],
        "forms": shipped(paths.FORMS, asked_ways(tuned, answered_by, labelled)["plain"], answered_by, labelled, pair, compare.alpha)
        if answered_by
        else [],
        "others": [described("domain", name, metric, higher, result) for name, result in others.items()],
        "alpha": compare.alpha,
        "resamples": compare.resamples,
        "won": differing(before, answers, higher)[0][:IDS],
        "lost": differing(before, answers, higher)[1][:IDS],
        "samples": samples(before, answers, base.get(("domain", best), before), tuned.get(("domain", "plain"), answers), rows, higher),
        "slices": parts,
        "fewest_items": FEWEST,
        "worst_slice": worst(parts, higher),
        "confusion": {"base": confusion(before), "tuned": confusion(answers)} if labelled else None,
        "calibration": {
            name: calibration(side["label_scores", prompt])
            for name, side, prompt in (("base", base, best.removesuffix(SCORED.format(""))), ("tuned", tuned, "plain"))
            if ("label_scores", prompt) in side
        },
    }
    with outputs() as place:
        write_report(place(paths.COMPARE_REPORT), headline, details)
    if pooled and forgot == "over limit" and compare.gate == "stop":
        raise UserError(refusal(pooled, compare.max_forgetting))


def asked_ways(side: dict[tuple[str, str], Items], metric: str, labelled: bool) -> dict[str, Items]:
    """A model's items by the way it was asked, scored by a metric; of labelled rows by the likeliest label too."""
    task = "reference" if metric in WEIGHED else "domain"
    asked = {prompt: side[task, prompt] for prompt in PROMPTS if (task, prompt) in side}
    if labelled:
        return asked | {SCORED.format(prompt): side["label_scores", prompt] for prompt in PROMPTS if ("label_scores", prompt) in side}
    return {prompt: measured(metric, items) for prompt, items in asked.items()}


def best_by_measure(found: dict[tuple[str, str], Paired]) -> dict[tuple[str, str], Paired]:
    """Of each measure the base's best way of being asked, the first of equals."""
    best: dict[str, tuple[str, str]] = {}
    for (name, prompt), result in found.items():
        better = name not in best or (
            result.first > found[best[name]].first if name not in WEIGHED else result.first < found[best[name]].first
        )
        if better:
            best[name] = (name, prompt)
    return {key: found[key] for key in best.values()}


def judged(answers: dict[str, str] | None, test: list[Row]) -> Items | None:
    """A baseline's answers as items, right where they are the row's own."""
    return {row.id: {"score": float(answers[row.id] == row.answer)} for row in test} if answers else None


def described(task: str, prompt: str, metric: str, higher: bool, result: Paired) -> dict[str, Any]:
    """One comparison as the report's table holds it; won and lost are the tuned model's, whichever way the metric points."""
    won, lost = (result.won, result.lost) if higher else (result.lost, result.won)
    return {
        "task": task,
        "prompt": prompt,
        "metric": metric,
        **compared(result),
        "won": won,
        "lost": lost,
        "detectable": result.detectable,
    }


def majority(train: list[Row], test: list[Row]) -> dict[str, str]:
    """The training rows' most frequent label as the answer to each test row."""
    counts = Counter(row.answer for row in train)
    label = min(counts, key=lambda label: (-counts[label], label))
    return {row.id: label for row in test}


def samples(before: Items, after: Items, first: Items, second: Items, rows: dict[str, Row], higher: bool) -> list[dict[str, Any]]:
    """Six rows and what was written before and after: three won, one lost, two alike, as far as there are such."""
    won, lost = differing(before, after, higher)
    alike = [key for key in sorted(after) if key not in {*won, *lost}]
    chosen = list(dict.fromkeys([*won[:3], *lost[:1], *alike[:2], *won, *alike, *lost]))[:6]
    return [
        {
            "item_id": key,
            "text": rows[key].text[:TEXT],
            "target": after[key]["target"][:TEXT],
            "base": shortened(first[key]["answer"]),
            "tuned": shortened(second[key]["answer"]),
            "base_score": before[key]["score"],
            "tuned_score": after[key]["score"],
        }
        for key in chosen
    ]


def shortened(answer: str | None) -> str | None:
    """An answer as far as the report shows it."""
    return answer and answer[:TEXT]


def confusion(items: Items) -> dict[str, Any]:
    """How often each label (row) was answered with each label (column); the last column holds answers that are no label."""
    labels = sorted({item["target"] for item in items.values()})
    column = {normal(label): number for number, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for item in items.values():
        counts[labels.index(item["target"])][column.get(normal(item["answer"]), len(labels))] += 1
    return {"labels": labels, "columns": [*labels, "(no label)"], "counts": counts}


if __name__ == "__main__":
    run_stage("compare", main)
