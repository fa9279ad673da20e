"""A whole workstation in miniature: a random two-layer Llama with a ChatML tokenizer, a few hundred labelled rows, small params."""

import fcntl
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = {
    "Permissive": [
        "permission",
        "granted",
        "free",
        "charge",
        "person",
        "obtaining",
        "copy",
        "deal",
        "restriction",
        "merge",
        "publish",
        "sublicense",
        "notice",
    ],
    "Copyleft": [
        "general",
        "public",
        "foundation",
        "version",
        "later",
        "redistribute",
        "modify",
        "terms",
        "freedom",
        "program",
        "derivative",
        "source",
    ],
    "Commercial": [
        "agreement",
        "fee",
        "licensee",
        "proprietary",
        "confidential",
        "evaluation",
        "purchase",
        "seats",
        "support",
        "termination",
        "paid",
    ],
}


def make_base(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Writes a random Llama of 64 dimensions with a byte-level BPE tokenizer of about 400 tokens; equal seeds, equal bytes.

    Returns:
        The folder, fit for `model.source: folder`.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    corpus = [" ".join(words) for words in WORDS.values()] + [*WORDS, "system user assistant licence category"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(fast),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def labelled_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Distinct short texts of three classes, each made of its class's words."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = sorted(WORDS)[number % len(WORDS)]
        rows.append({"text": f"{' '.join(rng.sample(WORDS[label], 7))} {number}", "label": label})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def edit_params(root: Path, **changes: Any) -> None:
    """Sets keys of params.yaml; `train__rank=4` sets train.rank."""
    yaml = YAML()
    path = root / "params.yaml"
    params = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = params
        for part in sections:
            section = section[part]
        assert name in section, key
        section[name] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def make_workspace(root: Path, base: Path, rows: int = 120) -> Path:
    """A copy of this repository's tracked and untracked files (not its data, models or reports) with tiny params, git and DVC ready.

    Args:
        root: where to make it.
        base: a folder from `make_base`.
        rows: how many labelled rows to write to data/sources/rows.jsonl.

    Returns:
        `root`, with one git commit.
    """
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        source = ROOT / name
        made_by_dvc = name.startswith(("reports/", "dvc.lock")) or (name.endswith(".gitignore") and name.startswith(("data/", "models/")))
        if source.is_file() and not made_by_dvc:
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    write_jsonl(root / "data/sources/rows.jsonl", labelled_rows(rows))
    edit_params(
        root,
        model__source="folder",
        model__folder__path=str(base),
        data__source="files",
        data__files__format="labelled",
        data__max_rows=None,
        general__items={"arc_easy": 4, "hellaswag": 4, "openbookqa": 4, "lambada": 4},
        clean__languages=[],
        dedupe__near_threshold=0.95,
        split__validation=0.1,
        split__test=0.3,
        split__max_train=40,
        split__max_validation=8,
        split__max_test=24,
        tokenize__max_tokens=128,
        train__rank=4,
        train__alpha=8,
        train__max_steps=6,
        train__effective_batch=4,
        train__micro_batch_tokens=128,
        train__eval_every=3,
        numerics__quantization="none",
        evaluate__batch_size=8,
        evaluate__max_new_tokens=4,
        evaluate__max_free_tokens=8,
        evaluate__few_shot=1,
        evaluate__retrieved=2,
        export__forms=["merged", "f16"],
        export__check_prompts=4,
        export__answer_prompts=4,
        extraction__rows=12,
        extraction__prefix_tokens=4,
        extraction__continuation_tokens=6,
        extraction__alternatives=31,
        compare__resamples=1000,
        runtime__save_every=2,
        runtime__device="cpu",
    )
    who = (["git", "config", "user.name", "t"], ["git", "config", "user.email", "t@example.org"])
    for command in (["git", "init", "-q", "-b", "main"], *who, ["git", "add", "-A"], ["git", "commit", "-qm", "tiny"]):
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    return root


def made_once(factory: "pytest.TempPathFactory", name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all workers share, made by the first one that asks for it; read only."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with open(folder.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.with_suffix(".made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            folder.with_suffix(".made").touch()
    return folder
