"""Every mistake in params.yaml is one sentence that names the key, what was found, what was expected and what to do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.core.errors import UserError
from stages.core.params import Params, load_params
from tests import tiny
from tests.tiny import ROOT

COMMITTED = (ROOT / "params.yaml").read_text(encoding="utf-8")


def run_clean(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs the stage `clean` as dvc does."""
    return subprocess.run([sys.executable, "-m", "stages.clean"], cwd=root, capture_output=True, text=True, check=False)


def files(root: Path) -> dict[str, int]:
    """Every file of data, models and reports with its time of change."""
    return {str(p): p.stat().st_mtime_ns for name in ("data", "models", "reports") for p in (root / name).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny workspace in which the rows are fetched, so that only params.yaml can stop clean."""
    root = tiny.make_workspace(tmp_path_factory.mktemp("params") / "workspace", Path("base"))
    subprocess.run([sys.executable, "-m", "stages.fetch_data"], cwd=root, check=True, capture_output=True)
    return root


# what is wrong: the text to replace, its replacement, what the sentence must hold
MISTAKES = {
    "unknown key": ("  learning_rate:", "  learning_rat:", ["train.learning_rat is not a parameter", "did you mean train.learning_rate?"]),
    "unknown section": ("\ncompare:", "\ncompere:", ["compere is not a parameter", "did you mean compare?"]),
    "missing key": ("  rank: 16\n", "", ["train.rank is missing", "no defaults"]),
    "number as text": (
        "learning_rate: 1.0e-3",
        "learning_rate: '1e-4'",
        ["train.learning_rate is the text '1e-4'", "without quotes", "0.0001"],
    ),
    "whole number as text": ("rank: 16", "rank: 'sixteen'", ["train.rank is the text 'sixteen'", "expected", "write a number"]),
    "wrong type": ("rank: 16", "rank: [16]", ["train.rank is [16]", "integer"]),
    "truth value for a number": ("rank: 16", "rank: true", ["train.rank is True", "integer"]),
    "fraction for a whole number": ("rank: 16", "rank: 16.5", ["train.rank is 16.5", "integer"]),
    "nothing for a number": ("rank: 16", "rank:", ["train.rank is None", "integer"]),
    "out of range": ("  test: 0.15", "  test: 1.5", ["split.test is 1.5", "less than 1"]),
    "not a number": ("weight_decay: 0.0", "weight_decay: .nan", ["train.weight_decay is nan"]),
    "infinite": ("weight_decay: 0.0", "weight_decay: .inf", ["train.weight_decay is inf"]),
    "unknown choice": ("batching: bucket", "batching: bukcet", ["train.batching is 'bukcet'", "'bucket' or 'pack'"]),
    "a branch for a commit": ("    revision: null", "    revision: main", ["model.hub.revision is 'main'", "[0-9a-f]{40}"]),
    "contradiction in a section": ("max_characters: 20000", "max_characters: 3", ["clean.min_characters (12)", "above max_characters (3)"]),
    "contradiction of sections": ("micro_batch_tokens: 1024", "micro_batch_tokens: 100", ["micro_batch_tokens (100)", "max_tokens (256)"]),
    "no text in the template": ('template: "{text}', 'template: "{txt}', ["prompt.template has no {text}"]),
    "broken YAML": ("\nclean:\n", "\nclean: [\n", ["line ", "not valid YAML"]),
    "a key twice": ("  rank: 16\n", "  rank: 16\n  rank: 8\n", ["line ", "rank"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(mistake: str, tmp_path: Path) -> None:
    old, new, told = MISTAKES[mistake]
    assert old in COMMITTED
    path = tmp_path / "params.yaml"
    path.write_text(COMMITTED.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_params(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "params.yaml" in sentence
    for part in told:
        assert part in sentence


@pytest.mark.parametrize("mistake", ["unknown key", "number as text", "out of range", "contradiction of sections", "broken YAML"])
def test_a_mistake_anywhere_stops_a_stage_before_it_writes(mistake: str, fetched: Path) -> None:
    path = fetched / "params.yaml"
    good, before = path.read_text(encoding="utf-8"), files(fetched)
    old, new, told = MISTAKES[mistake]
    try:
        path.write_text(COMMITTED.replace(old, new, 1), encoding="utf-8")
        done = run_clean(fetched)
    finally:
        path.write_text(good, encoding="utf-8")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("clean: params.yaml")
    assert done.stderr.count("\n") == 1
    assert all(part in done.stderr for part in told)
    assert files(fetched) == before


def test_early_stopping_needs_validation_rows(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        COMMITTED.replace("early_stop: null", "early_stop: 2").replace("max_validation: 64", "max_validation: 0"), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"train\.early_stop is set, but .* no validation rows to stop on"):
        load_params(path)


@pytest.mark.parametrize(
    ("metrics", "tokens", "sentence"),
    [
        ("[rouge_l]", 0, "compare.metrics names rouge_l, but evaluate.max_free_tokens is 0: no answer is written"),
        ("[chrf, chrf]", 8, "compare.metrics names a metric twice"),
        ("[bleu]", 8, "compare.metrics"),
        ("[]", 8, "compare.metrics"),
    ],
)
def test_measures_that_no_row_could_have_are_refused_at_once(metrics: str, tokens: int, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    changed = COMMITTED.replace("metrics: auto", f"metrics: {metrics}").replace("max_free_tokens: 256", f"max_free_tokens: {tokens}")
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=sentence) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(COMMITTED.replace("rank: 16", "rank: 0").replace("dropout: 0.0", "dropout: 2.0"), encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.rank is 0.*; train\.dropout is 2\.0"):
        load_params(path)


def test_a_missing_file_and_one_that_is_no_utf8_are_told(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"is missing; run from the repository's root"):
        load_params(path)
    path.write_bytes(b"seed: 1\n# caf\xe9\n")
    with pytest.raises(UserError, match=r"line 2 holds the byte 0xe9, which is no UTF-8"):
        load_params(path)
    path.write_text("- a list\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected a mapping of sections"):
        load_params(path)


def test_an_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(COMMITTED.replace("learning_rate: 1.0e-3", "learning_rate: 1e-4"), encoding="utf-8")
    assert load_params(path).train.learning_rate == 1e-4


def test_the_committed_parameters_are_valid_and_none_has_a_default() -> None:
    load_params(ROOT / "params.yaml")

    def defaults(section: Any) -> list[str]:
        fields = section.model_fields.items()
        own = [f"{section.__name__}.{name}" for name, field in fields if not field.is_required()]
        return own + [found for _, field in fields if hasattr(field.annotation, "model_fields") for found in defaults(field.annotation)]

    assert defaults(Params) == []


def leaves(section: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in section.items():
        found += leaves(value, (*prefix, key)) if isinstance(value, dict) and value else [(*prefix, key)]
    return found


PARAMS = YAML(typ="safe", pure=True).load(COMMITTED)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JUNK = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)


@given(key=st.sampled_from(leaves(PARAMS)), value=JUNK)
def test_any_value_at_any_key_is_taken_or_told(tmp_path_factory: pytest.TempPathFactory, key: tuple[str, ...], value: Any) -> None:
    params = YAML(typ="safe", pure=True).load(COMMITTED)
    section = params
    for part in key[:-1]:
        section = section[part]
    section[key[-1]] = value
    path = tmp_path_factory.getbasetemp() / "any-params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")  # ruamel.yaml writes "?0" without quotes, and cannot read it again
    told = None
    try:
        load_params(path)
    except UserError as error:
        told = str(error)
    assert told is None or (key[0] in told and "\n" not in told)
