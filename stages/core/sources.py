"""Where rows came from. In: the report of fetch_data. Out: each source with version, digest, rows and licence."""

from collections.abc import Mapping
from typing import Any, TypedDict


class Source(TypedDict):
    """A file of the user's, or the embedded package; what is not stated is None."""

    name: str
    version: str | None
    sha256: str
    rows: int
    license: str | None


def data_sources(report: Mapping[str, Any]) -> list[Source]:
    """The sources; `rows` of the embedded package are those read of it."""
    package = report["package"]
    if package is None:
        # reports of old commits know no licence of a file
        files = report["files"]
        return [Source(name=f["path"], version=None, sha256=f["sha256"], rows=f["rows"], license=f.get("license")) for f in files]
    rows, licence = report["rows_read"], report["license"]
    return [Source(name=package["name"], version=package["version"], sha256=package["sha256"], rows=rows, license=licence)]
