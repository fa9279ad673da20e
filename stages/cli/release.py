"""`luthier release VERSION`: registers this commit's adapter.

In: a clean, fresh, verified checkout. Out: the annotated git tag adapter@VERSION, as GTO writes it, and, where this user has a key, a
signed statement of what the release was made from beside it (docs/provenance.md).
"""

import argparse
import re
import subprocess

from stages.cli import fresh, verdict, verify
from stages.cli.attested import NOTES, keep
from stages.cli.signing import PUBLIC_KEY, read_private_key, seal
from stages.cli.statement import statement
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.provenance import git_commit

ARTIFACT = "adapter"  # of dvc.yaml's artifacts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds VERSION."""
    parser.add_argument("version", metavar="VERSION", help="a semantic version with a v: v1.0.0")


def run(args: argparse.Namespace) -> None:
    """Verifies and tags.

    Args:
        args: `version`.

    Raises:
        UserError: the version is none, the tag exists, the tree is dirty, a stage is stale, or a hash does not hold.
    """
    from dvc.repo import Repo

    if not re.fullmatch(r"v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", args.version):
        raise UserError(f"'{args.version}' is no version; expected v and a semantic version: make release VERSION=v1.0.0")
    tag = f"{ARTIFACT}@{args.version}"
    if _git("tag", "--list", tag):
        raise UserError(f"{tag} exists already and a release is never moved; choose the next version")
    state = git_commit()
    if state["commit"] is None or state["dirty"]:
        raise UserError("the checkout differs from its commit, which could then not bring the release back; commit first, dvc.lock too")
    with Repo() as repo:
        stale = fresh.stale_stages(repo, allow_missing=False)
    if stale:
        raise UserError(f"{', '.join(stale)} would run, so this commit's adapter is not what its inputs make; run make repro and commit")
    verify.run(argparse.Namespace(target=None, key=PUBLIC_KEY))
    key = read_private_key()
    envelope = seal(statement(), key) if key is not None else None
    message = f"{tag}\n\n{verdict.line(read_details(paths.COMPARE_REPORT))}"
    done = subprocess.run(
        ["gto", "register", ARTIFACT, "--version", args.version, "--message", message], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"gto could not register {tag}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    print(f"registered {tag} at {state['commit'][:12]}")
    if envelope is None:
        print("not signed:  luthier keygen makes the key that the next release is signed with")
    else:
        keep(tag, envelope)
        print(f"signed:      luthier verify {tag}")
    print(f"share it:    git push origin {tag}{f' {NOTES}' if envelope else ''} && dvc push")
    print(f"fetch it:    dvc artifacts get REPOSITORY {ARTIFACT} --rev {args.version}")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
