"""Stages in processes of their own, forked from one that has loaded PyTorch, which is most of the time that a tiny training takes.

In: a workspace, and code to run before the stage. Out: the process, as real and as mortal as any, and a file of what it says.
"""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

LOADED = ["stages", "torch", "peft", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"]


def start(root: Path, stage: str, code: str, said: Path) -> ForkServerProcess:
    """Starts `python -m stages.STAGE` in a workspace, after some code, on one thread; what it says is added to `said`."""
    nursery = multiprocessing.get_context("forkserver")
    nursery.set_forkserver_preload(LOADED)  # no effect once it runs
    process = nursery.Process(target=_run, args=(root, stage, code, said, dict(os.environ)))
    process.start()
    return process


def _run(root: Path, stage: str, code: str, said: Path, environment: dict[str, str]) -> None:
    """The new process: the test's environment, the workspace's own code, the stage."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.chdir(root)
    sys.path.insert(0, str(root))
    for name in [name for name in sys.modules if name.split(".")[0] == "stages"]:
        del sys.modules[name]
    with open(said, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"stages.{stage}"]
    exec(code, {})
    runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
