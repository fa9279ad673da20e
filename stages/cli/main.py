"""The command line `luthier`: what is not a stage. In: arguments. Out: text, and exit code 0, 1 (the user can mend it) or 130 (Ctrl-C).

Only the module of the chosen command is imported, so that `luthier --help` is instant.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "verdict": "the result in one line: accuracy against the base, forgetting, where card and report lie",
    "fresh": "whether every result stands for the data, code and parameters as they are now (exit code 1 if not)",
    "show": "rows as the model sees them: tokens, and which of them are learnt",
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

    module = importlib.import_module(_module(args.command))
    sys.exit(guarded(f"luthier {args.command}", lambda: module.run(args), args.debug))


def _module(command: str) -> str:
    return f"stages.cli.{command.replace('-', '_')}"


if __name__ == "__main__":
    main()
