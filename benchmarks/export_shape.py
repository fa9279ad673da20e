"""Memory and time of export on a published shape with random weights: merge, GGUF, and the answers of each form.

Usage: python -m benchmarks.export_shape SHAPE [--steps 4] [--forms merged f16 q8_0 q4_k_m] [--params KEY=VALUE ...]
Makes the base once in the cache, trains an adapter with `python -m stages.train`, runs export in this process and prints one JSON line a
step of it. Random weights have no clear next token, so the limits on agreement are lifted; those on tensors stay.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.shapes import SHAPES
from benchmarks.train_shape import make_shape, train
from stages.core.files import read_details, write_report
from stages.core.params import load_params
from stages.core.records import Row, with_ids, write_rows
from stages.export import __main__ as export
from tests import tiny

STEPS = ("merge_into", "load_tuned", "load_merged", "predictions", "write_gguf", "tensor_error", "LlamaCpp", "agreement", "llama_answers")
EVERY = 0.02  # seconds between two readings of this process's memory
LIFTED = {"min_top1_agreement": 0.0, "max_kl_nats": 1e9, "min_stopped": 0.0, "min_same_answer": 0.0}


class Memory:
    """The largest memory of this process since `reset`, read by a thread.

    Attributes:
        own: bytes that are nowhere else (VmRSS without mapped files).
        mapped: bytes of mapped files, which the kernel may let go.
    """

    def __init__(self) -> None:
        """Starts the thread; it ends with the process."""
        self.reset()
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        """Forgets the past."""
        self.own = self.mapped = 0

    def read(self) -> None:
        """Takes one reading."""
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
        own, *mapped = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
        self.own, self.mapped = max(self.own, own), max(self.mapped, sum(mapped))

    def _watch(self) -> None:
        while True:
            self.read()
            time.sleep(EVERY)


def watched(name: str, function: Callable[..., Any], memory: Memory) -> Callable[..., Any]:
    """The function, which then prints how long it took and what it held."""

    def run(*inputs: Any) -> Any:
        import torch

        memory.reset()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        begin = time.monotonic()
        result = function(*inputs)
        memory.read()
        tell(
            step=name,
            seconds=round(time.monotonic() - begin, 1),
            host_bytes=memory.own,
            mapped_bytes=memory.mapped,
            gpu_bytes=torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
        )
        return result

    return run


def tell(**fields: Any) -> None:
    """Prints one line."""
    print(json.dumps(fields, sort_keys=True), flush=True)


def main() -> None:
    """Trains and exports one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=[*SHAPES, "tiny"])
    parser.add_argument("--steps", type=int, default=4, help="of the training")
    parser.add_argument("--forms", nargs="*", default=["merged", "f16", "q8_0", "q4_k_m"])
    parser.add_argument("--params", nargs="*", default=[], metavar="KEY=VALUE", help="changes to params.yaml, e.g. export.answer_prompts=8")
    args = parser.parse_args()
    begin = time.monotonic()
    base = make_shape(args.shape)
    tell(step="base", seconds=round(time.monotonic() - begin, 1))
    yaml = YAML(typ="safe", pure=True)
    changes = {key.replace(".", "__"): yaml.load(value) for key, value in (item.split("=", 1) for item in args.params)}
    limits = {f"export__limits__{form}__{name}": value for form in args.forms for name, value in LIFTED.items()}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train(root, base, 512, 2, args.steps, {"export__forms": args.forms, "export__check_prompts": 8, **limits, **changes})
        machine = read_details(root / "reports/train_machine.json")
        tell(step="train", seconds=machine["seconds"], gpu_bytes=machine["peak_memory_bytes"])
        (root / "data/split").mkdir()
        rows = [
            Row("", ({"role": "user", "content": row["text"]},), None, None, row["label"], "test", str(number), None)
            for number, row in enumerate(tiny.labelled_rows(24))
        ]
        write_rows(root / "data/split/test.parquet", with_ids(rows))
        write_report(root / "reports/fetch_data.json", {}, {"source": "files", "package": None, "files": []})
        os.chdir(root)
        os.environ["DVC_ROOT"] = str(root)
        memory = Memory()
        for name in STEPS:
            setattr(export, name, watched(name, getattr(export, name), memory))
        begin = time.monotonic()
        export.main(load_params())
        tell(step="export", seconds=round(time.monotonic() - begin, 1))
        for file in read_details(Path("reports/export.json"))["files"]:
            if file["path"].endswith((".gguf", ".safetensors")):
                tell(file=file["path"], bytes=file["bytes"])


if __name__ == "__main__":
    main()
