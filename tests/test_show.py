"""`luthier show` shows the rows as the model sees them, in colour and without."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from stages.core import paths
from stages.core.records import write_table
from tests.tiny import ROOT

PROMPT, ANSWER = "<|im_start|>user\ncafé?<|im_end|>\n<|im_start|>assistant\n", "Permissive<|im_end|>"


@pytest.fixture
def tokenised(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tokenised rows and the tiny tokenizer."""
    from tokenizers import Tokenizer

    monkeypatch.chdir(tmp_path)
    paths.TOKENIZER.mkdir(parents=True)
    (paths.TOKENIZER / "tokenizer.json").write_bytes((tiny_base / "tokenizer.json").read_bytes())
    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    given, learnt, rest = (tokenizer.encode(text).ids for text in (PROMPT, ANSWER, "\n"))
    trained = [False] * len(given) + [True] * len(learnt) + [False] * len(rest)
    columns = {"id": ["aa11", "bb22"], "input_ids": [given + learnt + rest] * 2, "trained": [trained] * 2}
    write_table(paths.TOKENIZED_TRAIN, pa.table(columns))
    return tmp_path


def show(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "stages.cli.main", "show", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_without_colour_what_is_learnt_stands_in_brackets(tokenised: Path) -> None:
    done = show("--rows", "1")
    assert done.returncode == 0
    assert f"{PROMPT}[{ANSWER}]\n" in done.stdout
    assert done.stdout.startswith("aa11: ")
    assert "bb22" not in done.stdout
    assert "\x1b" not in done.stdout


def test_in_colour_what_is_learnt_is_on_green_and_no_character_is_lost(tokenised: Path) -> None:
    coloured = show("--id", "bb", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[30;4" in coloured
    assert "[Permissive" not in coloured
    plain = "".join(part.split("m", 1)[1] if number else part for number, part in enumerate(coloured.split("\x1b[")))
    assert "café?<|im_end|>⏎" in plain
    assert "Permissive<|im_end|>⏎" in plain


def test_no_color_is_honoured_on_a_terminal(tokenised: Path) -> None:
    assert f"[{ANSWER}]" in show(FORCE_COLOR="1", NO_COLOR="1").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--id", "zz"], "no tokenised train row has the id zz; luthier lineage zz tells what became of it"),
        (["--side", "validation"], "data/tokenized/validation.parquet is missing; make it: dvc repro tokenize"),
        (["--rows", "0"], "--rows is 0, expected 1 or more"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments: list[str], sentence: str, tokenised: Path) -> None:
    done = show(*arguments)
    assert (done.returncode, done.stderr) == (1, f"luthier show: {sentence}\n")
