"""What a training does when memory runs out: less at once, the same result within rounding. In: what failed. Out: the next smaller way.

First the micro-batch that failed is cut in two, then fewer layers keep their activations, then the fused path parks what it recomputes from
in host memory and takes its MLPs in parts. What was done, and from which step on, lies beside the checkpoints, so that a resumed run
does the same at the same steps.
"""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stages.core.errors import UserError

FILE = "shrunk.json"
SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")  # without a class
LEAST_MLP_TOKENS = 256


class OutOfRoom(Exception):
    """A forward or backward pass found no memory; `rows` are the row numbers of its micro-batch."""

    def __init__(self, rows: Sequence[int]) -> None:
        """Keeps the row numbers."""
        super().__init__(f"{len(rows)} rows")
        self.rows = rows


@contextlib.contextmanager
def watched(rows: Sequence[int]) -> Iterator[None]:
    """Turns exhausted memory in the block into OutOfRoom of these rows."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfRoom(rows) from error
        raise


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that there is no memory left on the device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


@dataclass(frozen=True)
class Level:
    """How much is computed and kept at once.

    Attributes:
        work: train | validation.
        step: holds from this step on; of validation, after it.
        micro_batch_tokens: larger micro-batches of the plan are cut; None: none.
        kept: layers that keep their activations.
        offload: whether the inputs of the others wait in host memory.
        mlp_tokens: tokens an MLP takes at a time; None on the plain path, which takes all.
    """

    work: str
    step: int
    micro_batch_tokens: int | None
    kept: int
    offload: bool
    mlp_tokens: int | None


class Room:
    """The levels of a run so far, the first as chosen before it."""

    def __init__(self, root: Path, kept: int, offload: bool, mlp_tokens: int | None, writes: bool = True) -> None:
        """Reads what an earlier process of the same run had to do.

        Args:
            root: the folder of checkpoints.
            kept: layers that keep their activations.
            offload: whether the inputs of the others wait in host memory.
            mlp_tokens: tokens an MLP takes at a time; None on the plain path.
            writes: whether this process writes down what is done; of several that do the same, one.
        """
        self._path = root / FILE
        self._writes = writes
        self._first = Level("train", 0, None, kept, offload, mlp_tokens)
        self._shrunk: list[Level] = []
        if self._path.is_file():
            self._shrunk = [Level(**entry) for entry in json.loads(self._path.read_text(encoding="utf-8"))]

    @property
    def shrunk(self) -> list[dict[str, object]]:
        """What was done, oldest first, for the reports."""
        return [asdict(level) for level in self._shrunk]

    def level(self, work: str, step: int) -> Level:
        """What holds for a step's training, or for the validation after it."""
        held = [level for level in self._shrunk if level.work == work and level.step <= step]
        return held[-1] if held else replace(self._first, work=work)

    def shrink(self, work: str, step: int, rows: int, tokens: int, longest: int) -> Level:
        """Takes the next smaller way and writes it down.

        Args:
            work: train | validation.
            step: of the training, or after which it validates.
            rows: of the micro-batch that failed.
            tokens: that it computed.
            longest: tokens of its longest row.

        Returns:
            The new level; where there is none left, that is a UserError.
        """
        smaller = replace(self._smaller(self.level(work, step), rows, tokens, longest), work=work, step=step)
        self._shrunk = sorted([*self._shrunk, smaller], key=lambda level: level.step)
        if not self._writes:
            return smaller
        part = self._path.with_suffix(".part")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(self.shrunk, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(part, self._path)
        return smaller

    def _smaller(self, now: Level, rows: int, tokens: int, longest: int) -> Level:
        if rows > 1:
            return replace(now, micro_batch_tokens=tokens // 2)
        if now.work == "train" and now.kept:
            return replace(now, kept=now.kept // 2)
        if now.work == "train" and now.mlp_tokens is not None and not now.offload:
            return replace(now, offload=True)
        if now.mlp_tokens is not None and (half := min(now.mlp_tokens, longest) // 2) >= LEAST_MLP_TOKENS:
            return replace(now, mlp_tokens=half)
        work = "the training" if now.work == "train" else "the validation"
        raise UserError(
            f"the memory is exhausted by {work} even of one row of {longest} tokens at a time with every saving; lower tokenize.max_tokens "
            f"or train.rank, set numerics.quantization: nf4, take a smaller base, or close other programs on the GPU"
        )


def told(level: Level) -> str:
    """A level in words."""
    words = [f"micro-batches of at most {level.micro_batch_tokens} tokens"] if level.micro_batch_tokens else []
    if level.work == "train":
        words.append(f"activations of {level.kept} layers kept")
        words += ["the others' inputs in host memory"] if level.offload else []
    words += [f"MLPs on {level.mlp_tokens} tokens at a time"] if level.mlp_tokens else []
    return ", ".join(words)


def free_cache(device: str) -> None:
    """Gives back what the failed pass held."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
