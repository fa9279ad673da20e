"""Broken files for the readers of fetch_data: real samples of each format, mutated by structure and by byte, packed and broken again.

In: docs/examples. Out: how many inputs were read, and each one that ended in another exception than UserError, lost a row, or took too
much time or memory. Run: python -m benchmarks.fuzz_readers --seconds 600, or with --atheris (pip install atheris) guided by coverage.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import lzma
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError
from stages.core.params import Files
from stages.core.records import Row
from stages.fetch_data.streams import chunks
from stages.fetch_data.user_files import read_user_files

EXAMPLES = Path(__file__).resolve().parent.parent / "docs/examples"
SECONDS_PER_INPUT = 20
INPUTS_PER_PROCESS = 5_000  # pyarrow's writers and failed unpackers leave some kilobytes each, which is no row's fault
MEMORY_BYTES = 4 << 30  # of address space, of which the libraries map one
PIECES: list[bytes] = [
    *(b"\x00", b"\xff", b"\xc3", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(
        b"\\ud800",
        b"\\u0000",
        b'"a":1,"a":2,',
        b"9" * 5000,
        b"1e999",
        b"NaN",
        b"[" * 3000,
        b'{"a":' * 1500,
        b"=cmd|' /C calc'!A0",
        b"x" * 100_000,
    ),
]
VALUES: list[Any] = [
    *(None, True, 0, -1, 2**63, 10**40, 1.5, float("nan"), float("inf"), "", " ", "\x00", "=1+1", "\ud800", "ü" * 50, [], {}, [[]], [None]),
    *([{"role": "user", "content": "q"}], [{"from": "gpt", "value": 1}], [{"type": "text", "text": "t"}], {"role": []}, "x" * 10_000),
]
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".xz": lzma.compress,
    ".zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
}
COLUMNS: list[Callable[[int], pa.Array]] = [
    lambda n: pa.array([b"\xff"] * n),
    lambda n: pa.array([datetime(2020, 1, 1)] * n, pa.timestamp("ns")),
    lambda n: pa.array([Decimal("1.5")] * n),
    lambda n: pa.array(["a"] * n).dictionary_encode(),
    lambda n: pa.array([[("k", "v")]] * n, pa.map_(pa.string(), pa.string())),
    lambda n: pa.array([b"caf\xe9"] * n).view(pa.string()),
    lambda n: pa.nulls(n),
    lambda n: pa.array([[{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]] * n),
    lambda n: pa.array([[1, 2]] * n, pa.list_(pa.int8(), 2)),
]


def samples() -> list[list[dict[str, Any]]]:
    """The records of each example in docs."""
    found = []
    for path in sorted(EXAMPLES.iterdir()):
        text = path.read_text(encoding="utf-8")
        found.append(list(csv.DictReader(io.StringIO(text))) if path.suffix == ".csv" else [json.loads(line) for line in text.splitlines()])
    return found


def made(rng: random.Random, records: list[dict[str, Any]]) -> tuple[str, bytes]:
    """One file's name and content."""
    records = [dict(record) for record in records]
    for _ in range(rng.choice([0, 0, 1, 3])):
        record = rng.choice(records)
        key = rng.choice([*record, "label", "messages", "group", "\x00"])
        match rng.randrange(3):
            case 0:
                record[key] = rng.choice(VALUES)
            case 1:
                record.pop(key, None)
            case _:
                record[rng.choice(["text", "role", "more", ""])] = record.pop(key, 1)
    suffix = rng.choice([".jsonl", ".json", ".csv", ".parquet"])
    content = _written(rng, suffix, records)
    if rng.random() < 0.7:
        content = mutated(rng, content)
    packing = rng.choice(["", "", ".gz", ".xz", ".zst"]) if suffix != ".parquet" else ""
    if packing:
        content = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}[packing](
            content
        )
        if rng.random() < 0.5:
            content = mutated(rng, content)
    return f"a{suffix}{packing}", content


def _written(rng: random.Random, suffix: str, records: list[dict[str, Any]]) -> bytes:
    if suffix == ".jsonl":
        return "".join(json.dumps(record, ensure_ascii=rng.random() < 0.5) + "\n" for record in records).encode("utf-8", "surrogatepass")
    if suffix == ".json":
        return json.dumps(records, indent=rng.choice([None, 1])).encode()
    if suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]) or ["text"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().encode("utf-8", "surrogatepass")
    try:
        table = pa.Table.from_pylist(records)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
        table = pa.table({"text": ["t"] * 5, "label": ["l"] * 5})
    if rng.random() < 0.4 and table.num_columns:
        table = table.set_column(
            rng.randrange(table.num_columns), rng.choice([*table.column_names, "when"]), rng.choice(COLUMNS)(table.num_rows)
        )
    out = io.BytesIO()
    with contextlib.suppress(pa.ArrowException):
        pq.write_table(table, out, row_group_size=rng.choice([1, 3, 100]), compression=rng.choice(["none", "snappy", "zstd", "gzip"]))
    return out.getvalue()


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Bytes changed, cut, doubled, put in or taken out."""
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(content) + 1)
        to = min(len(content), at + rng.choice([1, 1, 4, 100]))
        match rng.randrange(6):
            case 0:
                content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
            case 1:
                content = content[:at] + rng.choice(PIECES) + content[at:]
            case 2:
                content = content[:at] + content[to:]
            case 3:
                content = content[:to] + content[at:]
            case 4:
                content = content[:at] + (rng.randrange(1 << 32)).to_bytes(4, "little") + content[at + 4 :]
            case _:
                content = content[:at] if rng.random() < 0.2 else content
    return content


def check(folder: Path, name: str, content: bytes) -> str:
    """Reads one file both ways; gives `rows`, `rejected` or `refused`, and raises for what must not be."""
    path = folder / name
    path.write_bytes(content)
    try:
        kept = rejected = 0
        about: list[dict[str, Any]] = []
        try:
            for item in read_user_files(folder, Files(format="auto", columns={}, bad_rows="reject", licenses={}), about):
                kept, rejected = (kept + 1, rejected) if isinstance(item, Row) else (kept, rejected + 1)
        except UserError as error:
            sentence = str(error)
        else:
            sentence = ""
        assert "\n" not in sentence, "a sentence has one line"
        assert len(sentence) < 5000, "a sentence is short"
        if sentence:
            return "refused"
        assert (about[0]["rows"], about[0]["rejected"]) == (kept + rejected, rejected), "the report says otherwise"
        if name.startswith("a.jsonl"):
            lines = b"".join(chunks(path)).removeprefix(b"\xef\xbb\xbf").split(b"\n")
            assert kept + rejected == sum(bool(line.decode("utf-8", "replace").strip()) for line in lines), "a line was lost"
        return "rejected" if rejected else "rows"
    finally:
        path.unlink()


def _work(seed: int, first: int, until: float, results: Any) -> None:
    """Input after input from the `first` on, each told before and after, until the time or the process's share is over."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    known = samples()
    with tempfile.TemporaryDirectory() as folder:
        number = first
        while time.monotonic() < until and number < first + INPUTS_PER_PROCESS:
            name, content = made(rng := random.Random(f"{seed}:{number}"), rng.choice(known))
            results.send(("begin", number, name))
            try:
                outcome = check(Path(folder), name, content)
            except BaseException:
                outcome = traceback.format_exc()
            results.send(("end", outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
            number += 1
    results.send(("over", 0, 0))


def fuzz(seconds: float, seed: int) -> tuple[Counter[str], dict[int, str], int]:
    """Reads mutated files in a process of its own, which is started again when an input kills it or takes too long.

    Args:
        seconds: how long.
        seed: of the inputs; input N of a seed is always the same.

    Returns:
        How many inputs ended in which way by type, what went wrong by input number, and the largest resident set in bytes.
    """
    counts: Counter[str] = Counter()
    failures: dict[int, str] = {}
    until, first, peak = time.monotonic() + seconds, 0, 0
    spawn = multiprocessing.get_context("spawn")
    while time.monotonic() < until:
        ours, theirs = spawn.Pipe(duplex=False)
        worker = spawn.Process(target=_work, args=(seed, first, until, theirs))
        worker.start()
        theirs.close()
        number, name = first, ""
        try:
            while ours.poll(SECONDS_PER_INPUT + (60 if not name else 0)):
                kind, one, two = ours.recv()
                if kind == "over":
                    break
                if kind == "begin":
                    number, name = one, two
                    continue
                first = number + 1
                counts[f"{name.split('.', 1)[1]} {one if len(one) < 20 else 'failed'}"] += 1
                peak = max(peak, two * 1024)
                if len(one) >= 20:
                    failures[number] = one
            else:
                failures[number] = f"{name} took more than {SECONDS_PER_INPUT} seconds"
                first = number + 1
        except EOFError:
            failures[number] = f"{name} ended the process"
            first = number + 1
        if worker.is_alive():
            with contextlib.suppress(ProcessLookupError):
                worker.join(2)
                os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
    return counts, failures, peak


def guided(seconds: int) -> None:
    """The same check on inputs that atheris (libFuzzer) finds by coverage; ends the process."""
    import atheris

    names = ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.xz", "a.json.zst"]
    folder, corpus = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    rng = random.Random(0)
    for number in range(400):
        name, content = made(rng, rng.choice(samples()))
        if name in names:
            (corpus / str(number)).write_bytes(bytes([names.index(name)]) + content)
    sys.stderr.flush()
    for module in ("readers", "streams", "formats", "user_files", "parquet"):
        source = sys.modules[f"stages.fetch_data.{module}"]
        for key, value in vars(source).items():
            if callable(value) and getattr(value, "__module__", "") == source.__name__ and not isinstance(value, type):
                setattr(source, key, atheris.instrument_func(value))

    def one(data: bytes) -> None:
        if data:
            with contextlib.redirect_stderr(io.StringIO()):
                check(folder, names[data[0] % len(names)], data[1:])

    limits = [f"-max_total_time={seconds}", f"-timeout={SECONDS_PER_INPUT}", "-rss_limit_mb=3000", "-max_len=20000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *limits], one)
    atheris.Fuzz()


def main() -> None:
    """Runs and prints the counts; exit code 1 where something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_readers", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="inputs guided by coverage")
    args = parser.parse_args()
    if args.atheris:
        guided(args.seconds)
    counts, failures, peak = fuzz(args.seconds, args.seed)
    for kind, count in sorted(counts.items()):
        print(f"{count:>9,} {kind}")
    print(
        f"{counts.total():>9,} inputs of seed {args.seed} in {args.seconds} s, {len(failures)} failures, at most {peak >> 20} MiB resident"
    )
    for number, what in list(failures.items())[:10]:
        print(f"input {number}: {what}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
