"""The frame around every stage: all of params.yaml is checked, the stage runs, and what goes wrong is told in one sentence.

Exit codes: 0 done, 1 the user can mend it, 75 stopped by a signal and resumable, 130 Ctrl-C. Unforeseen errors keep their traceback.
"""

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from stages.core.errors import UserError
from stages.core.params import Params, load_params


def run_stage(name: str, main: Callable[[Params], None], argv: list[str] | None = None) -> None:
    """Runs a stage's `main` with the checked parameters and ends the process.

    Args:
        name: the stage's name in dvc.yaml.
        main: the stage; writes its outs and raises UserError for what the user can mend.
        argv: the command line's arguments; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name.split('@')[0]}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    debug = parser.parse_args(sys.argv[1:] if argv is None else argv).debug
    sys.exit(guarded(name, lambda: main(load_params()), debug))


def guarded(name: str, call: Callable[[], object], debug: bool) -> int:
    """Calls and turns errors a person can act on into one sentence on stderr.

    Args:
        name: who speaks, in front of the sentence.
        call: what to run.
        debug: raise instead of printing.

    Returns:
        The exit code.

    Raises:
        Exception: what no sentence can tell, or anything with `debug`.
    """
    try:
        call()
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing was published", file=sys.stderr)
        return 130
    except Exception as error:
        message = sentence(error)
        if debug or message is None:
            raise
        print(f"{name}: {message}", file=sys.stderr)
        return 1
    return 0


def sentence(error: BaseException) -> str | None:
    """What to tell the user about an error, or None where only a traceback helps."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next(path for path in Path(error.filename or os.getcwd()).absolute().parents if path.is_dir())
        free = shutil.disk_usage(folder).free / 2**20
        return (
            f"the disk is full: {error.filename or 'an output'} could not be written ({free:.0f} MiB free there); free some and run again"
        )
    if isinstance(error, FileNotFoundError):
        return f"{error.filename or error} is missing; if a stage makes it, run: dvc repro, else put it there"
    if isinstance(error, PermissionError):
        what = f"{error.filename} cannot be read or written: permission denied" if error.filename else str(error)
        return f"{what}; mend its permissions and run again"
    if isinstance(error, MemoryError):
        return "the machine's memory is exhausted; lower data.max_rows or close other programs and run again"
    if type(error).__name__ == "OutOfMemoryError":
        remedy = "lower train.micro_batch_tokens or evaluate.batch_size, or set train.recompute: all"
        return f"the GPU's memory is exhausted; {remedy}"
    return None
