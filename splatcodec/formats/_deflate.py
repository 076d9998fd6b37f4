"""gzip and zstd by several threads, with bytes that do not depend on how many."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = ["num_threads", "quick_size", "write_gzip", "zstd_frames"]

_PIECE_BYTES = 1 << 20
_WINDOW_BYTES = 1 << 15
# Deflate gets slow at high levels where many short matches exist, as among harmonics: so the level falls with size.
_LEVELS = ((4 << 20, 9), (32 << 20, 8))
_LAST_LEVEL = 7
_JOB_BYTES = 2 << 20
# Streams up to this are compressed by zstd's slow levels, too.
_THOROUGH_BYTES = 1 << 20
# Longer ones are searched for matches half as long.
_LARGE_BYTES = 8 << 20


def num_threads(threads: int | None) -> int:
    """`threads`, or one a core that this process may use."""
    if threads is not None:
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_gzip(file: BinaryIO, parts: Sequence[bytes], threads: int | None = None) -> None:
    """Write one gzip stream that holds `parts` one after another.

    It is made of pieces, each compressed with the 32 KiB before it as its dictionary and by whichever of two ways is
    smaller: matches, or Huffman codes alone, which suit noise.
    """
    raw = b"".join(parts)
    view = memoryview(raw)
    jobs = []
    at = 0
    for part in parts:
        level = next((level for limit, level in _LEVELS if len(part) <= limit), _LAST_LEVEL)
        jobs += [
            (start, min(start + _PIECE_BYTES, at + len(part)), level)
            for start in range(at, at + len(part), _PIECE_BYTES)
        ]
        at += len(part)

    jobs = jobs or [(0, 0, _LAST_LEVEL)]  # even nothing ends with a last block

    def compress(job: tuple[int, int, int]) -> bytes:
        start, stop, level = job
        before = bytes(view[max(0, start - _WINDOW_BYTES) : start])
        ways = []
        for strategy, memory in ((zlib.Z_DEFAULT_STRATEGY, 8), (zlib.Z_HUFFMAN_ONLY, 6)):
            deflater = zlib.compressobj(level, zlib.DEFLATED, -15, memory, strategy, before)
            packed = deflater.compress(view[start:stop])
            ways.append(packed + deflater.flush(zlib.Z_FINISH if stop == len(raw) else zlib.Z_SYNC_FLUSH))
        return min(ways, key=len)

    # No name, no time, "unknown" system: the same scene gives the same bytes.
    file.write(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff")
    with ThreadPoolExecutor(num_threads(threads)) as pool:
        for packed in pool.map(compress, jobs):
            file.write(packed)
    file.write(struct.pack("<II", zlib.crc32(raw), len(raw) & 0xFFFFFFFF))


def quick_size(data: npt.NDArray[Any]) -> int:
    """About how many bytes these will take, compressed."""
    import zstandard

    return len(zstandard.ZstdCompressor(level=3).compress(np.ascontiguousarray(data).data))


def zstd_frames(streams: Sequence[bytes], threads: int | None = None) -> list[bytes]:
    """Each of `streams` as one zstd frame that states its size."""
    import zstandard

    count = num_threads(threads)

    def compress(stream: bytes) -> bytes:
        # Matches of five bytes and few tries suit harmonics, on which level 19 takes five times as long for 5 % less;
        # short streams can afford both. The frame is cut into jobs by its size alone, never by the number of threads.
        way = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_BTULTRA,
            window_log=20,
            chain_log=20,
            hash_log=20,
            search_log=4 if len(stream) <= _LARGE_BYTES else 3,
            min_match=5,
            target_length=48,
            threads=count if len(stream) > _JOB_BYTES else 0,
            job_size=_JOB_BYTES,
        )
        ways = [way]
        if len(stream) <= _THOROUGH_BYTES:
            ways.append(zstandard.ZstdCompressionParameters.from_level(19, source_size=len(stream)))
        return min((zstandard.ZstdCompressor(compression_params=way).compress(stream) for way in ways), key=len)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(compress, streams))
