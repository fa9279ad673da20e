"""Digests as dvc.lock has them, taken from the bytes on disk without DVC's table of remembered ones. In: paths. Out: DVC's objects."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.meta import Meta
    from dvc_data.hashfile.obj import HashFile


def rehash(repo: "Repo", path: str) -> tuple["Meta", "HashFile"]:
    """Reads a file or folder as DVC would the first time.

    Args:
        repo: the DVC repository, for its .dvcignore.
        path: what to read.

    Returns:
        Size and number of files, and the object with its digest; of a folder a `Tree`.
    """
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import get_odb
    from dvc_objects.fs.local import LocalFileSystem

    files = LocalFileSystem()
    # an object store of its own, to which nothing is written, has no table of remembered digests
    store = get_odb(files, str(Path(tempfile.gettempdir()) / "unused"))
    _, meta, found = build(store, str(Path(path).resolve()), files, "md5", dry_run=True, ignore=repo.dvcignore)
    return meta, found
