"""Fixed-size records from a file, a block at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import TruncatedError

__all__ = ["BLOCK_BYTES", "block_rows", "file_size", "read_blocks"]

# A block stays in the processor's cache while its columns are taken apart, so memory is passed over once, not once a
# column as with a memory map; and a file that shrinks meanwhile is an error, not a crash.
BLOCK_BYTES = 1 << 19


def file_size(handle: BinaryIO) -> int:
    """Size of an open file in bytes, also of one in memory."""
    try:
        return os.fstat(handle.fileno()).st_size
    except io.UnsupportedOperation:
        at = handle.tell()
        size_bytes = handle.seek(0, io.SEEK_END)
        handle.seek(at)
        return size_bytes


def block_rows(row_bytes: int) -> int:
    """Rows of a block, at least one."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def read_blocks(
    handle: BinaryIO, dtype: npt.DTypeLike, count: int, *, chunk: str | None = None
) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Read `count` records of `dtype` from where `handle` stands.

    Yields:
        (rows, block): which rows these are, and the records; the array is overwritten by the next block.

    Raises:
        TruncatedError: the file ends before.
    """
    dtype = np.dtype(dtype)
    buffer = np.empty(min(count, block_rows(dtype.itemsize)), dtype)
    view = buffer.view(np.uint8).data.cast("B") if buffer.nbytes else memoryview(b"")
    for start in range(0, count, max(1, len(buffer))):
        block = buffer[: min(len(buffer), count - start)]
        if handle.readinto(view[: block.nbytes]) != block.nbytes:  # type: ignore[attr-defined]
            raise TruncatedError("the file ends early", chunk=chunk, offset=file_size(handle))
        yield slice(start, start + len(block)), block
