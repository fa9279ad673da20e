"""The reports and manifests that card and HTML report are made of, read so that a missing key is an error that names it.

In: files of reports/ and models/. Out: nested dicts and lists that raise UserError instead of giving a blank.
"""

import csv
import json
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details


class Report(dict[str, Any]):
    """A JSON object that knows its file and place, so that a missing key can be told."""

    def __init__(self, values: dict[str, Any], file: Path, place: str = "") -> None:
        """Wraps nested objects too.

        Args:
            values: the object.
            file: where it was read.
            place: the keys that led here, each followed by a dot.
        """
        super().__init__({key: _wrapped(value, file, f"{place}{key}") for key, value in values.items()})
        self.file = file
        self.place = place

    def __missing__(self, key: str) -> Any:
        """Tells the missing key and how to get it."""
        stage = (
            "fetch_model"
            if self.file == paths.BASE
            else self.file.stem.removesuffix("_machine").replace("evaluate_", "evaluate@").replace("row_losses_", "row_losses@")
        )
        raise UserError(f"{self.file} has no {self.place}{key}, which the card tells; write it anew: dvc repro -f -s {stage}")


def _wrapped(value: Any, file: Path, place: str) -> Any:
    if isinstance(value, dict):
        return Report(value, file, f"{place}.")
    if isinstance(value, list):
        return [_wrapped(item, file, f"{place}[{index}]") for index, item in enumerate(value)]
    return value


def read(path: Path) -> Report:
    """A stage's report.

    Args:
        path: reports/NAME.json.

    Returns:
        Headline and details in one.

    Raises:
        UserError: the file is missing or is no report.
    """
    try:
        return Report(read_details(path), path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the stage that writes it: dvc repro") from None
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, ValueError):
        raise UserError(f"{path} is not a report as the stages write it (a JSON object with details); write it anew: dvc repro") from None


def read_manifest(path: Path) -> Report:
    """The base's manifest.

    Args:
        path: models/base.json.

    Returns:
        The manifest.

    Raises:
        UserError: the file is missing.
    """
    try:
        return Report(json.loads(path.read_text(encoding="utf-8")), path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the stage that writes it: dvc repro fetch_model") from None


def read_curve(path: Path) -> list[dict[str, float]]:
    """A curve's points.

    Args:
        path: a CSV file with a header.

    Returns:
        One dict a line, in the file's order; empty cells are left out.

    Raises:
        UserError: the file is missing or a cell is no number.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{key: float(value) for key, value in line.items() if value} for line in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the stage that writes it: dvc repro train") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds a cell that is no number ({error}); write it anew: dvc repro -f -s train") from None
