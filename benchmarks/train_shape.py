"""Speed and peak memory of the train stage itself on a published shape with random weights: they do not depend on the weights' values.

Usage: python -m benchmarks.train_shape SHAPE [--tokens 2048] [--rows-per-pass 2] [--steps 8] [--params KEY=VALUE ...]
Makes the base once in the cache, a workspace in a temporary folder, runs `python -m stages.train` there and prints one JSON line.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from benchmarks.shapes import SHAPES, config_of
from stages.core.files import cache_root
from stages.core.models import NEW_TOKENS, load_tokenizer
from tests import tiny


def make_shape(name: str) -> Path:
    """A folder with random bf16 weights of the shape and the tests' tokenizer; made once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = cache_root() / "benchmarks" / name
    if (folder / "model.safetensors.index.json").exists() or (folder / "model.safetensors").exists():
        return folder
    tiny.make_base(folder)
    (folder / "model.safetensors").unlink()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        fields = {**config_of(name), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    return folder


def main() -> None:
    """Runs one cell and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of each row")
    parser.add_argument("--rows-per-pass", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--params", nargs="*", default=[], metavar="KEY=VALUE", help="changes to params.yaml, e.g. train.recompute=all")
    args = parser.parse_args()
    base = make_shape(args.shape)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        yaml = YAML(typ="safe", pure=True)
        changes = {key.replace(".", "__"): yaml.load(value) for key, value in (item.split("=", 1) for item in args.params)}
        train(root, base, args.tokens, args.rows_per_pass, args.steps, changes)
        machine = json.loads((root / "reports/train_machine.json").read_text(encoding="utf-8"))["details"][0]
        print(
            json.dumps(
                {"shape": args.shape, "tokens": args.tokens, "rows": args.rows_per_pass, "params": args.params, **machine}, sort_keys=True
            )
        )


def train(root: Path, base: Path, tokens: int, rows_per_pass: int, steps: int, changes: dict[str, Any]) -> None:
    """Trains on random rows in a workspace made in an empty folder.

    Args:
        root: the folder.
        base: of `make_shape`.
        tokens: of each row.
        rows_per_pass: rows of a step.
        steps: how many.
        changes: to params.yaml, as `tests.tiny.edit_params` takes them.
    """
    for name in ("dvc.yaml", "params.yaml", "versions.yaml", "stages"):
        source = tiny.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, root / name)
    tiny.edit_params(
        root,
        model__source="folder",
        model__folder__path=str(base),
        tokenize__max_tokens=tokens,
        train__max_steps=steps,
        train__effective_batch=rows_per_pass,
        train__micro_batch_tokens=rows_per_pass * tokens,
        train__eval_every=10_000,
        runtime__save_every=10_000,
        **changes,
    )
    write_rows(root, base, rows_per_pass * steps, tokens)
    environment = {**os.environ, "DVC_ROOT": str(root)}
    for stage in ("stages.fetch_model", "stages.train"):
        subprocess.run([sys.executable, "-m", stage], cwd=root, env=environment, check=True)


def write_rows(root: Path, base: Path, rows: int, tokens: int) -> None:
    """Random rows of exactly `tokens` tokens, all trained, where tokenize would have put them."""
    rng = random.Random(0)
    folder = root / "data/tokenized"
    folder.mkdir(parents=True)
    load_tokenizer(base).save_pretrained(folder / "tokenizer")
    (folder / "tokenizer" / NEW_TOKENS).write_text("{}", encoding="utf-8")
    for side, count in (("train", rows), ("validation", 2)):
        ids = [[rng.randrange(3, 390) for _ in range(tokens)] for _ in range(count)]
        table = {"id": [f"{side}{n}" for n in range(count)], "input_ids": ids, "trained": [[True] * tokens] * count}
        pq.write_table(pa.table(table), folder / f"{side}.parquet")


if __name__ == "__main__":
    main()
