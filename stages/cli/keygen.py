"""`luthier keygen`: makes the key that releases are signed with.

In: where the public key goes. Out: that file, and the private key's, of mode 600, in the user's configuration folder.
"""

import argparse
import getpass
from pathlib import Path

from stages.cli.signing import PUBLIC_KEY, make_key, private_key_path
from stages.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds PUBLIC and --passphrase."""
    parser.add_argument("public", nargs="?", type=Path, default=PUBLIC_KEY, metavar="PUBLIC", help=f"the public key's file ({PUBLIC_KEY})")
    parser.add_argument("--passphrase", action="store_true", help="ask for a passphrase that encrypts the private key")


def run(args: argparse.Namespace) -> None:
    """Makes the pair.

    Args:
        args: `public`, `passphrase`.

    Raises:
        UserError: a key is there already, or the two passphrases differ.
    """
    passphrase = None
    if args.passphrase:
        passphrase = getpass.getpass("passphrase: ")
        if not passphrase or passphrase != getpass.getpass("again: "):
            raise UserError("the passphrases are empty or differ; nothing was made, run again")
    identity = make_key(private_key_path(), args.public, passphrase)
    print(f"made the key {identity[:16]}")
    print(f"private: {private_key_path()} (keep a copy where only you can read it)")
    print(f"public:  {args.public} (commit it: git add {args.public})")
