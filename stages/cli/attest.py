"""`luthier attest FOLDER`: a folder to hand on. In: a clean, verified checkout and this user's key. Out: every shipped file at its path,
and attestation.json, the signed statement of what they were made from.
"""

import argparse
import shutil
from pathlib import Path

from stages.cli import verify
from stages.cli.attested import ENVELOPE
from stages.cli.signing import PUBLIC_KEY, read_private_key, seal
from stages.cli.statement import shipped, statement
from stages.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds FOLDER."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that is not there yet, outside the repository")


def run(args: argparse.Namespace) -> None:
    """Verifies, signs and copies.

    Args:
        args: `folder`.

    Raises:
        UserError: the folder is there already, there is no key, or a hash does not hold.
    """
    if args.folder.exists():
        raise UserError(f"{args.folder} is there already; name a folder that is not")
    key = read_private_key()
    if key is None:
        raise UserError("there is no key to sign with; make one: luthier keygen")
    verify.run(argparse.Namespace(target=None, key=PUBLIC_KEY))
    envelope = seal(statement(), key)
    for path in shipped():
        (args.folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, args.folder / path)
    (args.folder / ENVELOPE).write_text(envelope, encoding="utf-8")
    print(f"signed {len(shipped())} files in {args.folder}; who has your public key checks them: luthier verify {args.folder} --key FILE")
