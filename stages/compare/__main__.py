"""Base against tuned, item by item: what was won, what was lost, and whether it is more than chance.

In: data/evaluation/{base,tuned}.parquet, test and training rows, the items that share words with those. Out: reports/compare.json. The
base is judged by its best prompt, chosen on the very items of the comparison, which favours the base.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.compare.classical import classical_answers
from stages.compare.clean import clean_note, clean_part, compared, overlapping, verdict
from stages.compare.statistics import Paired, paired
from stages.core import paths
from stages.core.answers import normal
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.params import Params
from stages.core.records import Row, read_rows
from stages.core.stage import run_stage

PROMPTS = ("plain", "label_list", "few_shot")  # of equally good ones the first is the base's
IDS = 50  # items won and lost that the report names, each
TEXT = 240  # characters of a row that the report shows

Items = dict[str, dict[str, Any]]  # by id: score, answer, target


def main(params: Params) -> None:
    """Runs the stage."""
    compare, seed = params.compare, params.seed
    base, base_settings = read_evaluation("base")
    tuned, tuned_settings = read_evaluation("tuned")
    check_alike(base_settings, tuned_settings)
    test, train = read_rows(paths.SPLIT_TEST), read_rows(paths.SPLIT_TRAIN)
    metrics = tuned_settings["tasks"]
    shared = overlapping(paths.SPLIT_OVERLAP)

    def pair(first: dict[Any, Any], second: dict[Any, Any]) -> Paired:
        return paired(scores(first), scores(second), compare.resamples, compare.alpha, seed)

    metric, higher = metrics["domain_plain"]["metric"], metrics["domain_plain"]["higher_is_better"]
    answers = tuned["domain", "plain"]
    asked = {prompt: pair(base["domain", prompt], answers) for prompt in PROMPTS if ("domain", prompt) in base}
    best = max(asked, key=lambda prompt: asked[prompt].first if higher else -asked[prompt].first)
    domain, before = asked[best], base["domain", best]

    def clean(first: Items, second: Items, task: str) -> Paired | None:
        left = sorted(first.keys() - shared.get(task, set()))
        return pair({key: first[key] for key in left}, {key: second[key] for key in left}) if left else None

    clean_domain = clean(before, answers, "domain")
    tasks = [
        {**described("domain", prompt, metric, higher, result), "clean": clean_part(clean(base["domain", prompt], answers, "domain"))}
        for prompt, result in asked.items()
    ]

    names = [name for name, prompt in tuned if prompt == "raw"]
    suite = {name: pair(base[name, "raw"], tuned[name, "raw"]) for name in names}
    tasks += [
        {
            **described(name, "raw", metrics[f"{name}_raw"]["metric"], True, result),
            "clean": clean_part(clean(base[name, "raw"], tuned[name, "raw"], name)),
        }
        for name, result in suite.items()
    ]
    together = [{(name, key): item for name in names for key, item in side[name, "raw"].items()} for side in (base, tuned)]
    pooled = pair(together[0], together[1]) if suite else None

    labelled = metric == "exact_match"
    predicted = classical_answers(train, test) if labelled else None
    classical = {row.id: {"score": float(predicted[row.id] == row.answer)} for row in test} if predicted else None
    classical_pair = pair(classical, answers) if classical else None
    headline = {
        "domain": {
            "metric": metric,
            "base": domain.first,
            "base_few_shot": asked["few_shot"].first if "few_shot" in asked else None,
            "tuned": domain.second,
            "classical": classical_pair.first if classical_pair else None,
            "difference": domain.difference,
            "ci95": [domain.low, domain.high],
            "p_value": domain.p_value,
            "items": domain.items,
            "clean": clean_part(clean_domain),
        },
        "general": general_headline(suite, pooled),
        "verdict": verdict(domain, higher, compare.alpha),
        "forgetting": forgetting(pooled, compare.alpha, compare.max_forgetting),
    }
    loss_up_to = max(0.0, -pooled.low) if pooled else None
    details = {
        "base_prompt": best,
        "tasks": tasks,
        "clean_note": clean_note(domain, clean_domain, higher, compare.alpha),
        "general_loss": {
            "limit": compare.max_forgetting,
            "up_to": loss_up_to,  # the interval's end: a larger loss is unlikely
            "limit_excluded": loss_up_to is not None and loss_up_to <= compare.max_forgetting,
            "detectable": pooled.detectable if pooled else None,
            "by_task": [
                {"task": name, "forgetting": forgetting(result, compare.alpha, compare.max_forgetting)} for name, result in suite.items()
            ],
        },
        "classical": described("domain", "tf-idf", metric, higher, classical_pair) if classical_pair else None,
        "majority": majority(train, test) if labelled else None,
        "alpha": compare.alpha,
        "resamples": compare.resamples,
        "won": differing(before, answers, higher)[0][:IDS],
        "lost": differing(before, answers, higher)[1][:IDS],
        "samples": samples(before, answers, {row.id: row for row in test}, higher),
        "accuracy_by_label": by_label(before, answers) if labelled else [],
        "confusion": {"base": confusion(before), "tuned": confusion(answers)} if labelled else None,
    }
    with outputs() as place:
        write_report(place(paths.COMPARE_REPORT), headline, details)


def read_evaluation(variant: str) -> tuple[dict[tuple[str, str], Items], dict[str, Any]]:
    """A model's items by task and prompt, in order of their ids, and the settings it was asked with."""
    table = pq.read_table(paths.EVALUATION[variant])
    found: dict[tuple[str, str], Items] = {}
    for row in table.to_pylist():
        found.setdefault((row["task"], row["prompt"]), {})[row["item_id"]] = row
    return found, json.loads(table.schema.metadata[b"settings"])


def check_alike(base: dict[str, Any], tuned: dict[str, Any]) -> None:
    """Refuses two evaluations that were not made alike.

    Args:
        base: the base's settings; it may have been asked more than the tuned model.
        tuned: the tuned model's.

    Raises:
        UserError: names what differs.
    """
    shared = {**base, "tasks": {key: base["tasks"].get(key) for key in tuned["tasks"]}}
    first, second = flat(shared), flat(tuned)
    unlike = [
        f"{key} ({first.get(key, 'none')} and {second.get(key, 'none')})"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]
    if unlike:
        raise UserError(
            f"the base and the tuned model were not evaluated alike: {', '.join(unlike)}; "
            "evaluate both on this machine: dvc repro -f -s evaluate@base evaluate@tuned, then dvc repro"
        )


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict of dotted keys."""
    pairs: dict[str, Any] = {}
    for key, value in settings.items():
        pairs.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return pairs


def scores(items: dict[Any, dict[str, Any]]) -> np.ndarray:
    """[items] float64 in order of the ids."""
    return np.array([items[key]["score"] for key in sorted(items)])


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


def general_headline(suite: dict[str, Paired], pooled: Paired | None) -> dict[str, Any]:
    """The general suite in a few numbers: each task's in a list, which DVC's tables pass over, and all items together."""
    if pooled is None:
        return {"tasks": [], "base": None, "tuned": None, "difference": None, "ci95": None, "p_value": None, "items": 0}
    return {
        "tasks": [{"task": name, "base": r.first, "tuned": r.second, "difference": r.difference} for name, r in suite.items()],
        "base": pooled.first,
        "tuned": pooled.second,
        "difference": pooled.difference,
        "ci95": [pooled.low, pooled.high],
        "p_value": pooled.p_value,
        "items": pooled.items,
    }


def forgetting(result: Paired | None, alpha: float, limit: float) -> str:
    """none, within limit or over limit: a significant loss of accuracy counts, by its size against the limit."""
    if result is None:
        return "not measured"
    if result.p_value >= alpha or result.difference >= 0:
        return "none"
    return "within limit" if -result.difference <= limit else "over limit"


def majority(train: list[Row], test: list[Row]) -> float:
    """The accuracy of always answering the training rows' most frequent label."""
    counts = Counter(row.answer for row in train)
    label = min(counts, key=lambda label: (-counts[label], label))
    return sum(row.answer == label for row in test) / len(test)


def differing(before: Items, after: Items, higher: bool) -> tuple[list[str], list[str]]:
    """The ids of the items won and lost by the tuned model, sorted."""
    sign = 1 if higher else -1
    gains = {key: sign * (after[key]["score"] - before[key]["score"]) for key in sorted(after)}
    return [key for key, gain in gains.items() if gain > 0], [key for key, gain in gains.items() if gain < 0]


def samples(before: Items, after: Items, rows: dict[str, Row], higher: bool) -> list[dict[str, Any]]:
    """Six rows before and after: three won, one lost, two alike, as far as there are such."""
    won, lost = differing(before, after, higher)
    alike = [key for key in sorted(after) if key not in {*won, *lost}]
    chosen = list(dict.fromkeys([*won[:3], *lost[:1], *alike[:2], *won, *alike, *lost]))[:6]
    return [
        {
            "item_id": key,
            "text": rows[key].text[:TEXT],
            "target": after[key]["target"][:TEXT],
            "base": before[key]["answer"],
            "tuned": after[key]["answer"],
            "base_score": before[key]["score"],
            "tuned_score": after[key]["score"],
        }
        for key in chosen
    ]


def by_label(before: Items, after: Items) -> list[dict[str, Any]]:
    """Each label's accuracy before and after."""
    table = []
    for label in sorted({item["target"] for item in after.values()}):
        keys = [key for key, item in after.items() if item["target"] == label]
        accuracies = {name: sum(items[key]["score"] for key in keys) / len(keys) for name, items in (("base", before), ("tuned", after))}
        table.append({"label": label, "items": len(keys), **accuracies})
    return table


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
