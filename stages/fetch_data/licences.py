"""The embedded domain: short licence notices as ScanCode's authors found and sorted them, one label each.

In: the licensedcode-data wheel. Out: labelled rows, and how many of its rule files were passed over, by reason.
"""

import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from stages.core.errors import UserError
from stages.core.params import Licences
from stages.core.progress import progress
from stages.core.records import Row

LICENSE = "cc-by-4.0"
ATTRIBUTION = (  # as the wheel's NOTICE asks for it
    "Copyright (c) nexB Inc. and others. All rights reserved. ScanCode is a trademark of nexB Inc. SPDX-License-Identifier: CC-BY-4.0. "
    "See https://creativecommons.org/licenses/by/4.0/legalcode for the license text. "
    "See https://github.com/nexB/scancode-toolkit for support or download. "
    "See https://aboutcode.org for more information about nexB OSS projects."
)
RULES = re.compile(r"licensedcode/data/rules/[^/]+\.RULE")
LICENSES = re.compile(r"licensedcode/data/licenses/[^/]+\.LICENSE")
FRONT_MATTER = re.compile(r"\A---[ ]*\n(.*?)^---[ ]*(?:\n|\Z)(.*)\Z", re.DOTALL | re.MULTILINE)
# ScanCode's editors put the words that a match must contain in double braces; the notice itself had none
REQUIRED_PHRASE = re.compile(r"\{\{|\}\}")
# a key with fewer distinct texts has fewer than eight of them in a test side of 15 %
MIN_TEXTS_OF_A_KEY = 50


def read_licences(wheel: Path, params: Licences) -> tuple[list[Row], dict[str, int]]:
    """Reads the rules that name exactly one licence, in English and of the asked length.

    Args:
        wheel: licensedcode-data.
        params: the section `data.licences`.

    Returns:
        The rows, in the order of their member names and still without ids, and how many rules each reason passed over; together
        they are all rules of the wheel.

    Raises:
        UserError: the wheel has no rules or no licences.
    """
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    source = f"{params.package} {params.version}"
    with zipfile.ZipFile(wheel) as archive:
        members = sorted(archive.namelist())
        rules = [name for name in members if RULES.fullmatch(name)]
        licenses = [_front_matter(archive, name)[0] for name in members if LICENSES.fullmatch(name)]
        if not rules or not licenses:
            raise UserError(f"{wheel.name} holds no licence rules; set data.licences in params.yaml to a version of licensedcode-data")
        categories = {str(meta["key"]): str(meta["category"]) for meta in licenses}
        for name in progress(rules, "fetch_data", unit="rule"):
            meta, body = _front_matter(archive, name)
            text = REQUIRED_PHRASE.sub("", body).strip()
            reason = _reason(meta, text, categories, params)
            if reason:
                skipped[reason] += 1
                continue
            key = str(meta["license_expression"])
            rows.append(_row(text, key if params.target == "key" else categories[key], source, name))
    if params.target == "key":
        texts = Counter(label for label, _ in {(row.label, row.text) for row in rows})
        frequent = [row for row in rows if texts[row.label] >= MIN_TEXTS_OF_A_KEY]
        skipped["rare_key"] = len(rows) - len(frequent)
        rows = frequent
    return rows, dict(sorted(skipped.items()))


def _front_matter(archive: zipfile.ZipFile, name: str) -> tuple[dict[str, Any], str]:
    """A member's YAML head and the text after it."""
    content = archive.read(name).decode("utf-8").replace("\r\n", "\n")
    match = FRONT_MATTER.match(content)
    if match is None:
        raise UserError(f"{name} of the licence package has no YAML head between two lines of ---; is its version one of params.yaml?")
    # libyaml's parser: a quarter of the time of the one in Python
    return yaml.load(match[1], yaml.CSafeLoader), match[2]


def _reason(meta: dict[str, Any], text: str, categories: dict[str, str], params: Licences) -> str | None:
    """Why a rule is no row, or None."""
    if "license_expression" not in meta:
        return "no_licence"  # texts that look like a licence and are none
    if meta.get("is_deprecated", False):
        return "deprecated"
    if str(meta["license_expression"]) not in categories:
        return "several_licences"  # an expression with AND, OR or WITH
    if meta.get("language", "en") != "en":
        return "not_english"
    words = len(text.split())
    if words < params.min_words:
        return "too_short"
    return "too_long" if words > params.max_words else None


def _row(text: str, label: str, source: str, origin: str) -> Row:
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": label})
    return Row(id="", messages=messages, chosen=None, rejected=None, label=label, source=source, origin=origin, group=None)
