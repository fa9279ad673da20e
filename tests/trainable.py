"""A workspace in which only train is left to run: manifest, tokenizer and tokenised rows are there, made without the stages before it."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.batches import TokenRow
from stages.core.models import NEW_TOKENS, digests
from stages.core.params import Runtime, Train, load_params
from stages.core.streaming import decoder_layers
from stages.train import adapter
from stages.train.__main__ import make_plan
from stages.train.choice import Choice, fused_model
from stages.train.optimizer import make_optimizer
from stages.train.plain import PlainModel
from stages.train.ranks import Ranks
from stages.train.room import Room
from stages.train.sft import Training
from stages.train.shards import Shards
from stages.train.slices import Slices
from stages.train.stop import Stop
from stages.train.tracking import Tracker
from tests import nursery, tiny

Tokens = tuple[str, list[int], list[bool]]


def token_rows(count: int, vocabulary: int, seed: int = 0, answer: int = 3) -> list[Tokens]:
    """Rows of 8 to 40 random tokens, of which the last few, which follow from the first, are trained."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        prompt = [rng.randrange(3, vocabulary) for _ in range(rng.randrange(5, 37))]
        ids = [*prompt, *[3 + prompt[0] % 7] * (answer - 1), 2]
        rows.append((f"row{number:03d}", ids, [False] * len(prompt) + [True] * answer))
    return rows


def write_tokens(path: Path, rows: Sequence[Tokens]) -> None:
    """Writes rows as tokenize does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.bool_()))])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema), path)


def prepare(root: Path, base: Path, rows: int = 24, validation: int = 6, **changes: Any) -> Path:
    """Copies the repository and gives train its inputs."""
    tiny.make_workspace(root, base)
    inputs(root, base, rows, validation)
    tiny.edit_params(root, train__target_modules="all-linear", **changes)
    return root


def inputs(root: Path, base: Path, rows: int, validation: int) -> None:
    """Writes what train reads into a workspace."""
    files = sorted(path for path in base.iterdir() if path.is_file())
    listed = [{"path": p.name, "bytes": p.stat().st_size, "sha256": d} for p, d in zip(files, digests(files), strict=True)]
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    manifest = {"source": "folder", "name": "tiny", "revision": None, "license": None, "location": str(base), "files": listed}
    manifest |= {"parameters": 100_000, "vocabulary": vocabulary, "architecture": "LlamaForCausalLM"}
    (root / "models").mkdir(exist_ok=True)
    (root / "models/base.json").write_text(json.dumps(manifest))
    write_tokens(root / "data/tokenized/train.parquet", token_rows(rows, vocabulary))
    write_tokens(root / "data/tokenized/validation.parquet", token_rows(validation, vocabulary, seed=1))
    folder = root / "data/tokenized/tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).is_file():
            shutil.copy(base / name, folder)
    (folder / NEW_TOKENS).write_text("{}")


def start(root: Path, code: str = "") -> subprocess.Popen[str]:
    """Starts `python -m stages.train`, after running some code in the same process."""
    program = f"{code}\nimport runpy; runpy.run_module('stages.train', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", program] if code else [sys.executable, "-m", "stages.train"]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(root: Path, code: str = "", stage: str = "train") -> tuple[int, str]:
    """Runs it, or another stage, to its end, quicker to start: exit code and what it said."""
    said = root.parent / f"{root.name}.said"
    said.unlink(missing_ok=True)
    process = nursery.start(root, stage, code, said)
    process.join(timeout=300)
    assert process.exitcode is not None
    return process.exitcode, said.read_text(encoding="utf-8")


def wait_for(found: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 600) -> None:
    """Waits until something is there, or the process has ended, or too long."""
    end = time.monotonic() + seconds
    while not found() and process.poll() is None:
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.002)


def training(
    base: Path,
    root: Path,
    rows: int = 12,
    validation: int = 4,
    runtime: dict[str, Any] | None = None,
    ranks: Ranks | None = None,
    **settings: Any,
) -> Training:
    """A training of the tiny base in this process, before its first step; the settings change params.yaml's train."""
    import torch
    from transformers import AutoModelForCausalLM

    params = load_params(tiny.ROOT / "params.yaml")
    plain = {"rank": 4, "alpha": 8, "effective_batch": 4, "micro_batch_tokens": 128, "eval_every": 100, "warmup_share": 0.0}
    train = Train.model_validate({**params.train.model_dump(), **plain, **settings})
    train_rows = in_memory(token_rows(rows, 380))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)
    shards = Shards(ranks) if ranks is not None and train.parallel == "fsdp" else None
    if shards is not None:
        for number, layer in enumerate(decoder_layers(model)):
            shards.take(number, layer)
        shards.take_ends(model)
        shards.watch(decoder_layers(model))
    slices = Slices(ranks, model, torch.float32, 64) if ranks is not None and train.parallel == "sequence" else None
    validation_rows = in_memory(token_rows(validation, 380, seed=1))
    return around(adapter.attach(model, train, [], seed=1), train, root, train_rows, validation_rows, runtime, ranks, shards, slices)


def in_memory(rows: Sequence[Tokens]) -> list[TokenRow]:
    """Rows as train reads them."""
    return [TokenRow(name, np.array(ids, dtype=np.int64), np.array(trained)) for name, ids, trained in rows]


def around(
    model: Any,
    train: Train,
    root: Path,
    rows: list[TokenRow],
    validation: list[TokenRow],
    runtime: dict[str, Any] | None = None,
    ranks: Ranks | None = None,
    shards: Shards | None = None,
    slices: Slices | None = None,
) -> Training:
    """A training of a model with its adapter, wherever it is; on the fused path where train.kernels asks for it."""
    device = model.device.type
    tokens = train.micro_batch_tokens
    assert isinstance(tokens, int)
    plain = PlainModel(model, train.batching, model.dtype, 2)
    recomputed = {"none": 0, "auto": 0, "all": plain.layers}.get(str(train.recompute), train.recompute)
    assert isinstance(recomputed, int)
    chosen = Choice("fused" if train.kernels == "fused" else "plain", None, tokens, recomputed, False, tokens, None)
    fused = fused_model(chosen, model, shards)
    root.mkdir(parents=True, exist_ok=True)
    return Training(
        model=model,
        plain=plain,
        fused=fused,
        optimizer=make_optimizer(adapter.trainable(model), train, device),
        plan=make_plan(rows, train, tokens, train.batching if fused is None else "pack", device, 1),
        micro_batch_tokens=tokens,
        rows=rows,
        validation=validation,
        settings=train,
        runtime=Runtime.model_validate({**load_params(tiny.ROOT / "params.yaml").runtime.model_dump(), **(runtime or {})}),
        seed=1,
        root=root,
        room=Room(root, plain.layers - recomputed, False, None if fused is None else tokens, ranks is None or ranks.first),
        tracker=Tracker(root / "live" if ranks is None else None),
        stop=Stop(),
        ranks=ranks or Ranks(),
        shards=shards,
        slices=slices,
    )
