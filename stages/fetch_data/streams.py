"""The bytes and lines of a file that may be packed, a mebibyte at a time, however large it or one of its lines is.

In: a path. Out: chunks, or lines with their length; a file that unpacks to far more than a text can is refused.
"""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from stages.core.errors import UserError
from stages.fetch_data.bad_row import RAW_CHARACTERS
from stages.fetch_data.sources import kind

CHUNK_BYTES = 1 << 20
MAX_ROW_BYTES = 8 << 20  # 400 times what clean.max_characters lets through
# Texts pack to a tenth or a twentieth; rows of one word again and again to a hundredth. DEFLATE's bound is 1032, xz and zstd have none.
MAX_RATIO = 200
SMALL_BYTES = 64 << 20  # whatever its ratio, a file that unpacks to this is no danger
XZ_MEMORY_BYTES = 128 << 20  # xz -9 asks for 65 MiB to unpack


def chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, unpacked.

    Args:
        path: the file; its name says how it is packed.

    Yields:
        At most CHUNK_BYTES at a time.

    Raises:
        UserError: it cannot be unpacked, or unpacks to more than MAX_RATIO times its size.
    """
    packing = kind(path)[1]
    limit = max(SMALL_BYTES, MAX_RATIO * path.stat().st_size)
    total = 0
    with _told(path), open(path, "rb") as file:
        for chunk in _UNPACK[packing](file):
            total += len(chunk)
            if packing and total > limit:
                raise UserError(
                    f"{path} unpacks to more than {limit >> 20} MiB from {path.stat().st_size:,} bytes, which no text of use does; "
                    f"unpack it yourself if you trust it"
                )
            yield chunk


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what unpacking raises into a sentence, and leaves errors of the disk alone."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be unpacked ({reason}); pack it again, or fetch it again if the copy was cut off") from None


def lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """A file's lines without their line feeds.

    Args:
        path: the file.

    Yields:
        The line and its length in bytes; of a line longer than MAX_ROW_BYTES the beginning alone.
    """
    held, length = bytearray(), 0
    for chunk in chunks(path):
        *ended, last = chunk.split(b"\n")
        for part in ended:
            if length:
                _hold(held, length, part)
                yield bytes(held), length + len(part)
                held, length = bytearray(), 0
            else:
                yield part, len(part)
        _hold(held, length, last)
        length += len(last)
    if length:
        yield bytes(held), length


def _hold(held: bytearray, length: int, part: bytes) -> None:
    """Adds a part to a line, or gives up all but its beginning where it becomes too long."""
    if length + len(part) <= MAX_ROW_BYTES:
        held += part
    else:
        del held[RAW_CHARACTERS:]
        held += part[: RAW_CHARACTERS - len(held)]


def _plain(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as unpacked:
        while chunk := unpacked.read(CHUNK_BYTES):
            yield chunk


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as unpacked:
        while chunk := unpacked.read(CHUNK_BYTES):
            yield chunk


def _xz(file: BinaryIO) -> Iterator[bytes]:
    """As lzma.LZMAFile, which cannot bound the memory that a header asks for."""
    data = file.read(CHUNK_BYTES)
    if not data:
        raise EOFError("it is empty")
    while data:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
        while not unpacker.eof:
            if chunk := unpacker.decompress(data, CHUNK_BYTES):
                yield chunk
            data = b""
            if unpacker.needs_input and not unpacker.eof:
                data = file.read(CHUNK_BYTES)
                if not data:
                    raise EOFError("it ends in the middle")
        data = unpacker.unused_data.lstrip(b"\0")
        while not data and (more := file.read(CHUNK_BYTES)):  # streams may be padded with zeros
            data = more.lstrip(b"\0")


_UNPACK: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {"": _plain, ".gz": _gzip, ".xz": _xz, ".zst": _zstd}
