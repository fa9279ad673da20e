"""Writes the stored references again, from the plain path."""

import tempfile
from pathlib import Path

import torch

from tests import references, tiny

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        base = tiny.make_base(Path(temporary) / "base")
        references.write("course", references.course(base, Path(temporary) / "run", "plain"))
