"""The command line `luthier`: what is not a stage. In: arguments. Out: text, and exit code 0, 1 (the user can mend it), 130 (Ctrl-C) or 141
(nobody reads).

Only the module of the chosen command is imported, so that `luthier --help` is instant.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "verdict": "the result in one line: accuracy against the base, forgetting, where card and report lie",
    "fresh": "whether every result stands for the data, code and parameters as they are now (exit code 1 if not)",
    "review": "a page to judge the worst rows by keyboard: keep, drop or relabel, into data/decisions.csv",
    "chat": "base and tuned model side by side in the terminal",
    "blind": "a page that shows both answers without saying whose is which, and counts votes",
    "serve": "OpenAI's interface to a GGUF file, on this machine alone",
    "show": "rows as the model sees them: tokens, and which of them are learnt",
    "lineage": "where a row, a model or a number comes from, and what became of it",
    "forget": "drops rows by a decision, and tells what is made anew, what was released and what remains",
    "data-diff": "what changed between two runs' data, as Markdown for a pull request",
    "verify": "derives every hash again, of this checkout, a commit, a released folder or a file (exit code 1 if one does not hold)",
    "seeds": "runs that differ in nothing but the seed, taken together: the spread over seeds beside the interval over items",
    "keygen": "makes the key that releases are signed with: the private half for you alone, the public half for the repository",
    "release": "registers the adapter of this commit as a version, by an annotated git tag and a signed statement",
    "origin": "which repository, commit, data and licence made a bare adapter, GGUF or other file (exit code 1 if unknown or altered)",
    "attest": "a folder with all that ships and the signed statement of what it was made from",
    "plan": "memory, speed, time, energy and disk of a training, before it starts (exit code 1 if it should not be done here)",
    "doctor": "whether this machine and this checkout are fit to run",
    "clean-work": "removes the work dirs of finished and long abandoned runs",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process.

    Args:
        argv: the arguments; None takes the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="luthier", description="A local fine-tuning workstation on DVC.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name in arguments[:1]:
            importlib.import_module(_module(name)).add_arguments(command)
    args = parser.parse_args(arguments)

    from stages.core.stage import guarded

    try:
        code = guarded(f"luthier {args.command}", lambda: _run(args), args.debug)
        sys.stdout.flush()
    except BrokenPipeError:  # `luthier … | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        code = 141  # as the shell tells of a process that SIGPIPE ended
    sys.exit(code)


def _run(args: argparse.Namespace) -> None:
    """Runs the chosen command; what DVC says is wrong is for the user to mend too."""
    from stages.core.errors import UserError

    try:
        importlib.import_module(_module(args.command)).run(args)
    except Exception as error:
        if type(error).__module__.split(".")[0] == "dvc":
            raise UserError(str(error)) from error
        raise


def _module(command: str) -> str:
    return f"stages.cli.{command.replace('-', '_')}"


if __name__ == "__main__":
    main()
