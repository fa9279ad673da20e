"""The stage as the parent of its ranks: how many there are, their start, and that none outlives another. In: params. Out: exit codes.

The parent holds the run and publishes; a rank trains. Ranks meet over a file and the loopback device, so no port is opened to others.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core import paths, planner_cards
from stages.core.batches import read_tokens
from stages.core.errors import UserError
from stages.core.files import remove
from stages.core.models import base_folder, read_manifest
from stages.core.parallel import cores
from stages.core.planner_links import installed_link
from stages.core.planner_parallel import choose_parallel
from stages.core.planner_shape import UnknownShape
from stages.train.ranks import LOOPBACK, STORE
from stages.train.stop import Stop

if TYPE_CHECKING:
    from stages.core.params import Params

ROOT, PARALLEL, PARENT = "LUTHIER_ROOT", "LUTHIER_PARALLEL", "LUTHIER_PARENT"  # what the parent has decided, and its process id
WATCH_SECONDS = 0.1
CONTEXT_BYTES = int(0.6 * 2**30)  # of a GPU: the driver's and CUDA's own
SENTENCE = "train: "
LAST_LINES = 3  # of what a rank has said, where it is no sentence
LAST_WORDS_SECONDS = 3.0  # for the first rank to say what ended it, before another's end is told


def processes(params: "Params", device: str) -> int:
    """How many processes train.

    Args:
        params: of the whole pipeline.
        device: cpu or cuda.

    Returns:
        At least one.

    Raises:
        UserError: more are asked for than there are GPUs.
    """
    asked, parallel = params.runtime.processes, params.train.parallel
    if parallel == "single":
        return 1
    if device == "cpu":
        return 1 if asked == "auto" else asked
    import torch

    gpus = torch.cuda.device_count()
    if asked != "auto" and asked > gpus:
        raise UserError(f"runtime.processes is {asked}, but PyTorch sees {gpus} CUDA device(s), and each process needs one; set it to auto")
    return gpus if asked == "auto" else asked


def decided(params: "Params", device: str, count: int) -> str:
    """How the processes train.

    Args:
        params: of the whole pipeline.
        device: cpu or cuda.
        count: of the processes.

    Returns:
        single (which takes one of them) | ddp | fsdp | sequence | zero3.

    Raises:
        UserError: zero2 is asked for.
    """
    parallel = params.train.parallel
    if parallel == "zero2":
        raise UserError(
            "train.parallel is zero2, which is not built: of a LoRA it could split the adapter's gradients and optimizer state alone; take "
            "ddp, or fsdp or zero3 for a base that does not fit one GPU"
        )
    if count == 1:
        return "single"
    if parallel != "auto":
        return parallel
    return "ddp" if device == "cpu" else _planned(params, count)


def _planned(params: "Params", count: int) -> str:
    """What the planner takes for the GPUs of this host, and says why; ddp where it cannot tell."""
    import pynvml

    card = planner_cards.installed()
    if card is None:
        return "ddp"
    train, cap = params.train, params.runtime.gpu_memory_gib
    job = {
        "config": json.loads((base_folder(read_manifest()) / "config.json").read_text(encoding="utf-8")),
        "quantization": params.numerics.quantization,
        "rank": train.rank,
        "target_modules": train.target_modules,
        "lengths": [len(row.input_ids) for row in read_tokens(paths.TOKENIZED_TRAIN)],
        "effective_batch": train.effective_batch,
        "optimizer": train.optimizer,
        "deterministic": train.deterministic,
        # not PyTorch's figure: this process trains nothing, and shall hold no memory of a GPU
        "available_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).free) - CONTEXT_BYTES,
        "cap_bytes": None if cap is None else round(cap * 2**30),
        "card": card,
        "engine": "plain" if train.kernels == "plain" else "fused",
        "batching": train.batching,
    }
    try:
        parallel, reason = choose_parallel(count, installed_link(count, card), job)
    except UnknownShape as error:
        parallel, reason = "ddp", str(error)
    sys.stderr.write(f"train: {parallel} of {count} GPUs: {reason}\n")
    return parallel


def start(count: int, parallel: str, root: Path, stop: Stop) -> None:
    """Starts the ranks and waits for them.

    Where the first ends with a code, having said why, this process ends with it too; a rank that dies without a word is a UserError.

    Args:
        count: of them.
        parallel: how they train: ddp | fsdp | sequence | zero3.
        root: the folder of checkpoints.
        stop: the signals caught; one is passed on to the first rank, which writes a checkpoint and ends.
    """
    meeting = root / "ranks"
    remove(meeting)
    meeting.mkdir(parents=True)
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))} if "OMP_NUM_THREADS" not in os.environ else {}
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), STORE: str((meeting / "store").absolute())}
            environment = {**LOOPBACK, **os.environ, **threads, **place, ROOT: str(root), PARALLEL: parallel, PARENT: str(os.getpid())}
            with open(meeting / f"rank-{rank}.txt", "wb") as words:
                ranks.append(
                    subprocess.Popen([sys.executable, "-m", "stages.train", *sys.argv[1:]], env=environment, stderr=words if rank else None)
                )
        _wait(ranks, meeting, stop)
        remove(meeting)  # where one failed, what all have said stays
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
        for process in ranks:
            process.wait()


def _wait(ranks: "list[subprocess.Popen[bytes]]", meeting: Path, stop: Stop) -> None:
    """Returns when all have ended well; else raises, and it is for the caller to end the others."""
    passed_on: int | None = None
    while any(process.poll() is None for process in ranks):
        if stop.number != passed_on and stop.number is not None and ranks[0].poll() is None:
            passed_on = stop.number
            ranks[0].send_signal(passed_on)
        if any(process.poll() for process in ranks):
            break
        time.sleep(WATCH_SECONDS)
    codes = [process.poll() for process in ranks]
    # one that was killed comes before those that miss it
    dead = next(
        (rank for rank, code in enumerate(codes) if code and code < 0), next((rank for rank, code in enumerate(codes) if code), None)
    )
    if dead is None:
        return
    code = ranks[dead].returncode
    if dead and code > 0:  # it ended by an error, which the first rank may have met as well and tells better
        end = time.monotonic() + LAST_WORDS_SECONDS
        while ranks[0].poll() is None and time.monotonic() < end:
            time.sleep(WATCH_SECONDS)
        dead, code = (0, ranks[0].returncode) if ranks[0].poll() else (dead, code)
    if dead == 0 and code > 0:  # it speaks where this process does
        for rank, process in enumerate(ranks):
            last = _last_words(meeting, rank) if rank and process.returncode else []
            if last and not last[-1].startswith(SENTENCE):  # no sentence that the first has said too
                sys.stderr.write(f"train: rank {rank} of {len(ranks)} ended with code {process.returncode}: {' | '.join(last)}\n")
        raise SystemExit(code)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = _last_words(meeting, dead)
    said = f": {' | '.join(last).removeprefix(SENTENCE)}" if last else " without a word"
    raise UserError(
        f"rank {dead} of {len(ranks)} (process {ranks[dead].pid}) {how}{said}; the other ranks were ended and nothing was published; "
        f"the same command goes on from the last checkpoint"
    )


def _last_words(meeting: Path, rank: int) -> list[str]:
    """The sentence with which a rank has ended, or the last lines of what else it has said."""
    words = (meeting / f"rank-{rank}.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return words[-1:] if words and words[-1].startswith(SENTENCE) else words[-LAST_LINES:]
