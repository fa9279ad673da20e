"""Tokenisation by the stage beside the tokenizers library alone, on the same rows, with all cores.

In: made rows (benchmarks/data_rows.py) and the base of params.yaml. Out: seconds of both and their ratio, the best of alternate runs.
"""

import time
from collections.abc import Callable
from contextlib import chdir
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.data_rows import ROOT
from stages.core import paths
from stages.core.models import base_folder, read_manifest
from stages.core.params import load_params
from stages.core.prompts import conversation
from stages.core.records import iter_rows
from stages.tokenize import audit
from stages.tokenize.__main__ import BATCH_ROWS
from stages.tokenize.encode import encode_batches

RUNS = 3
LIBRARY_ROWS = 10_000  # given to the library at once: the more, the less its threads wait


def beside_the_library(folder: Path, rows: int) -> dict[str, Any]:
    """Measures.

    Args:
        folder: a workspace with the fetched rows and the base's manifest.
        rows: how many of its rows.

    Returns:
        `rows`, `tokens`, the best `seconds` and `processor_seconds` of both, and the `ratio` of the seconds.
    """
    params = load_params(ROOT / "params.yaml")
    with chdir(folder):
        manifest = read_manifest()
        chat, _ = audit.prepare(base_folder(manifest), manifest, params.tokenize)
        read = islice(iter_rows(paths.RAW_ROWS), rows)
        said = [conversation(row, params.prompt.system, params.prompt.template) for row in read]
    texts = chat.render(said, False)
    backend = chat.tokenizer.backend_tokenizer
    tokens = 0

    def library() -> None:
        nonlocal tokens
        tokens = 0
        for start in range(0, len(texts), LIBRARY_ROWS):
            encodings = backend.encode_batch(texts[start : start + LIBRARY_ROWS], add_special_tokens=False)
            tokens += sum(len(encoding.ids) for encoding in encodings)

    def stage() -> None:
        for _ in encode_batches(chat, (said[start : start + BATCH_ROWS] for start in range(0, len(said), BATCH_ROWS))):
            pass

    runs = [(_timed(library), _timed(stage)) for _ in range(RUNS)]
    best = {name: [min(run[number][part] for run in runs) for part in (0, 1)] for number, name in enumerate(("library", "stage"))}
    return {
        "rows": len(said),
        "tokens": tokens,
        "seconds": {name: round(seconds, 2) for name, (seconds, _) in best.items()},
        "processor_seconds": {name: round(seconds, 2) for name, (_, seconds) in best.items()},
        "ratio": round(best["stage"][0] / best["library"][0], 3),
    }


def _timed(call: Callable[[], None]) -> tuple[float, float]:
    start, busy = time.monotonic(), time.process_time()
    call()
    return time.monotonic() - start, time.process_time() - busy
