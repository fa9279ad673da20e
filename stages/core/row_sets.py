"""The digest of a set of rows: of what they say, whatever their order, their ids and the table's packing. In: a table. Out: a digest."""

import hashlib
import json
from pathlib import Path

from stages.core.records import iter_rows


def row_set(table: Path) -> tuple[int, str]:
    """How many rows a table holds and the digest of their set.

    Two tables have the same digest just if they hold the same rows equally often; a row is its messages, chosen and rejected answers and
    label. 32 bytes are held for each row.

    Args:
        table: a Parquet file of rows.

    Returns:
        The number of rows, and the sha256 of their sorted sha256s, in hexadecimal.
    """
    digests = []
    for row in iter_rows(table):
        content = json.dumps([row.messages, row.chosen, row.rejected, row.label], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digests.append(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest())
    return len(digests), hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def row_set_facts(table: Path) -> dict[str, int | str | None]:
    """Number and digest of a table's rows; a broken or missing table has none, which is a difference to every record."""
    try:
        rows, digest = row_set(table)
    except (OSError, ValueError):
        return {"rows": None, "sha256": "unreadable"}
    return {"rows": rows, "sha256": digest}
