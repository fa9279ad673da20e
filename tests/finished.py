"""Edits of a finished workspace's reports: numbers of a good run, and of rows without labels, in place of a random two-layer model's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.core.files import read_details


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits a report; `edit` gets headline and details in one."""
    merged = read_details(path)
    edit(merged)
    path.chmod(0o644)
    path.write_text(json.dumps({"details": [merged]}), encoding="utf-8")


def lively(report: dict[str, Any]) -> None:
    """Numbers as a good run gives them, in place of those of a random two-layer model."""
    domain = [entry for entry in report["tasks"] if entry["task"] == "domain"]
    general = [entry for entry in report["tasks"] if entry["task"] != "domain"]
    scores = [(0.013, 0.613), (0.18, 0.613), (0.22, 0.613), *[(0.2, 0.613)] * len(domain[3:]), (0.52, 0.51), (0.38, 0.4)]
    for entry, (base, tuned) in zip([*domain, *general], scores, strict=False):
        gap = tuned - base
        entry |= {"base": base, "tuned": tuned, "difference": gap, "ci95": [gap - 0.0613, gap + 0.0547], "p_holm": 0.00012345, "won": 127}
    report["base_prompt"] = "few_shot"
    report["domain"] |= {"base": 0.22, "tuned": 0.613, "classical": 0.8371, "difference": 0.393, "ci95": [0.33, 0.456]}
    report["general"] |= {"difference": -0.0061, "ci95": [-0.0313, 0.0189]}
    report["others"][0] |= {"prompt": "tf-idf", "base": 0.8371, "difference": -0.2241, "p_holm": 0.0003}
    report |= {"verdict": "improved", "forgetting": "none"}


def loss_only(report: dict[str, Any]) -> None:
    """The comparison of rows that have no labels: bits per byte, no classical baseline, no general question."""
    report["tasks"] = [
        report["tasks"][0] | {"metric": "bits_per_byte", "base": 1.731, "tuned": 1.244, "difference": -0.487, "ci95": [-0.6, -0.4]}
    ]
    report["domain"] |= {"metric": "bits_per_byte", "base": 1.731, "tuned": 1.244, "base_few_shot": None, "classical": None}
    report["general"] |= dict.fromkeys(("base", "tuned", "difference", "ci95", "p_value")) | {"tasks": [], "items": 0}
    report["general_loss"] |= {"up_to": None, "limit_excluded": False, "detectable": None, "by_task": []}
    report |= {"verdict": "improved", "forgetting": "not measured", "others": []}
    report |= {
        "base_prompt": "plain",
        "measures": [],
        "slices": [],
        "worst_slice": None,
        "confusion": None,
        "calibration": {},
        "general_lost": [],
    }
    for sample in report["samples"]:
        sample |= {"base": None, "tuned": None}
