"""SPZ, versions 1 to 4: packed fixed-point arrays behind gzip (1 to 3) or zstd (4).

The header gives the count and SH degree; whole arrays follow: positions, alphas, colours, scales, rotations, SH.
Quaternions are x, y, z, w in the file and turned to w, x, y, z here. The format defines its frame as RUB, but most
writers store the frame of their input unchanged, so values are never flipped and the frame is known only from an
extension record. Facts: nianticlabs/spz `load-spz.cc`, `splat-types.h` and its extensions page.
"""

from __future__ import annotations

import contextlib
import re
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import (
    ChecksumError,
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from ..files import open_for_reading
from ..gaussians import SH_C0, Gaussians, num_sh_coefficients, unit_quats
from ..limits import DEFAULT_LIMITS, Limits
from ._deflate import num_threads, quick_size, write_gzip, zstd_frames
from ._losses import Tally, drawable, lost_extras, lost_gaussians, lost_metadata, out_of_range
from ._order import packing_order
from ._packing import (
    MAX_SH_REST,
    least_turned,
    logits_of_alpha_bytes,
    lookup,
    quats_of_smallest_three,
    row_blocks,
    smallest_three,
    warn_degree_4,
)
from ._quality import Judge, Steps
from ._records import BLOCK_BYTES, file_size
from .base import BLOCK_ROWS, DEFAULT_OPTIONS, Blocks, ErrorBounds, Format, WriteOptions

__all__ = ["FORMAT", "read", "read_stream", "stated_count", "write"]

_MAGIC = b"NGSP"
_MAGIC_4 = b"NGSP\x04\0\0\0"
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER = struct.Struct("<4sIIBBBB")
# Version 4 goes on where the earlier header has its reserved byte, which becomes the number of streams.
_HEADER_4 = struct.Struct("<4sIIBBBBI12x")
_TOC_ENTRY = struct.Struct("<QQ")
_FLAG_ANTIALIASED = 0x1
_FLAG_EXTENSIONS = 0x2
_MAX_FRACTIONAL_BITS = 24
_STREAM_NAMES = ("positions", "alphas", "colors", "scales", "rotations", "sh")
# Deflate expands at most 1032 times, so a longer array cannot be in the file.
_MAX_DEFLATE_RATIO = 1032
# The reference reader refuses more Gaussians than this bound on its smallest array allows.
_MAX_ZSTD_RATIO = 1024
# Extension records known today are 28 bytes or less.
_MAX_EXTENSION_BYTES = 1 << 20
# Threads that unpack, and blocks that may wait for them.
_MAX_THREADS = 4
_MAX_WAITING = 16
_EXTENSION_SH_BITS = 0xADBE0001
_EXTENSION_SAFE_ORBIT = 0xADBE0002
_EXTENSION_FRAME = 0xADBE0003
_SAFE_ORBIT = ("safe_orbit_elevation_min", "safe_orbit_elevation_max", "safe_orbit_radius_min")
# Code 0 is "unspecified". Letters name where x, y and z point: left/right, up/down, front/back.
_FRAMES = (
    None,
    *("LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF"),
    *("LBD", "RBD", "LBU", "RBU", "LFD", "RFD", "LFU", "RFU"),
)


@dataclass(frozen=True)
class _Header:
    version: int
    count: int
    sh_degree: int
    fractional_bits: int
    flags: int
    num_streams: int = 0
    toc_offset: int = 0

    def stream_bytes(self) -> dict[str, int]:
        """Size of each array, in the file's order; empty arrays are left out."""
        sizes = (
            self.count * (6 if self.version == 1 else 9),
            self.count,
            self.count * 3,
            self.count * 3,
            self.count * (4 if self.version >= 3 else 3),
            self.count * 3 * (num_sh_coefficients(self.sh_degree) - 1),
        )
        return {name: size_bytes for name, size_bytes in zip(_STREAM_NAMES, sizes) if size_bytes}


def _parse_header(head: bytes, limits: Limits) -> _Header:
    """The header at the beginning of `head`, checked against `limits`."""
    if len(head) < _HEADER.size:
        raise TruncatedError("the file ends inside the header", chunk="header", offset=len(head))
    magic, version, count, degree, bits, flags, streams = _HEADER.unpack_from(head)
    toc_offset = 0
    if magic != _MAGIC:
        raise FormatError(f"bad magic {magic.hex(' ')}", chunk="header", offset=0)
    if not 1 <= version <= 4:
        raise UnsupportedError(f"SPZ version {version}, only 1 to 4 are known", chunk="header", offset=4)
    if version == 4:
        if len(head) < _HEADER_4.size:
            raise TruncatedError("the file ends inside the header", chunk="header", offset=len(head))
        *_, streams, toc_offset = _HEADER_4.unpack_from(head)
    limits.check_gaussians(count, chunk="header")
    if degree > 4:
        raise FormatError(f"SH degree {degree}, expected 0 to 4", chunk="header", offset=12)
    if bits > _MAX_FRACTIONAL_BITS:
        raise FormatError(f"{bits} fractional bits, expected 0 to {_MAX_FRACTIONAL_BITS}", chunk="header", offset=13)
    header = _Header(version, count, degree, bits, flags, streams, toc_offset)
    num_rest = min(num_sh_coefficients(degree) - 1, MAX_SH_REST)
    limits.check_bytes(count * 4 * (14 + 3 * num_rest) + sum(header.stream_bytes().values()), "the scene")
    return header


# ------------------------------------------------------------------------------------------------------ containers


class _Plain:
    """The uncompressed bytes of a version 1 to 3 file as they are."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle

    def read(self, limit_bytes: int) -> bytes:
        return self._handle.read(limit_bytes)


class _Gunzip:
    """The uncompressed bytes of a gzip file, never more than asked for."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._inflater = zlib.decompressobj(wbits=31)
        self._input = b""

    def read(self, limit_bytes: int) -> bytes:
        """1 to `limit_bytes` bytes; none at the end of the stream, whose checksum has been compared then."""
        while not self._inflater.eof:
            compressed = self._input or self._handle.read(BLOCK_BYTES)
            try:
                output = self._inflater.decompress(compressed, limit_bytes)
            except zlib.error as error:
                kind = ChecksumError if re.search("(data|length) check", str(error)) else FormatError
                raise kind(f"gzip: {error}", offset=self._handle.tell() - len(compressed)) from None
            self._input = self._inflater.unconsumed_tail
            if output:
                return output
            if not compressed and not self._inflater.eof:
                raise TruncatedError("the gzip stream is cut short", offset=file_size(self._handle))
        if self._inflater.unused_data or self._input or self._handle.read(1):
            offset = self._handle.tell() - max(1, len(self._inflater.unused_data))
            raise FormatError("there are bytes after the gzip stream", offset=offset)
        return b""


class _Sink(Protocol):
    """What takes the bytes of arrays, from any thread."""

    def put(self, name: str, rows: slice, packed: npt.NDArray[np.uint8]) -> None: ...


S = TypeVar("S", bound=_Sink)


def _read_arrays(
    handle: BinaryIO, limits: Limits, pool: ThreadPoolExecutor, sink: Callable[[_Header], S]
) -> tuple[_Header, S, bytes]:
    """Header, what took the arrays, and extension records of a version 1 to 3 file, gzipped or plain."""
    packed = handle.read(2) == _GZIP_MAGIC
    handle.seek(0)
    size_bytes = file_size(handle)
    source = _Gunzip(handle) if packed else _Plain(handle)
    head = b""
    while len(head) < _HEADER.size and (more := source.read(_HEADER.size - len(head))):
        head += more
    if head[:8] == _MAGIC_4:
        raise FormatError("version 4 inside gzip", chunk="header", offset=0)
    header = _parse_header(head, limits)
    sizes = header.stream_bytes()
    total = sum(sizes.values())
    if total > size_bytes * (_MAX_DEFLATE_RATIO if packed else 1):
        raise TruncatedError(
            f"{header.count} Gaussians need {total} bytes, which cannot be in a file of {size_bytes}",
            chunk="header",
            offset=8,
        )
    arrays = sink(header)
    # Rows are unpacked by other threads while the next ones are inflated; a few blocks of them wait at most.
    waiting: deque[Future[None]] = deque()
    done = 0
    for name, stream_bytes in sizes.items():
        row_bytes = stream_bytes // header.count
        for rows in row_blocks(header.count):
            block = np.empty((rows.stop - rows.start) * row_bytes, np.uint8)
            filled = 0
            while filled < len(block):
                more = source.read(min(len(block) - filled, BLOCK_BYTES))
                if not more:
                    raise TruncatedError(
                        f"{done + filled} bytes of arrays, expected {total}", chunk=name, offset=size_bytes
                    )
                block[filled : filled + len(more)] = np.frombuffer(more, np.uint8)
                filled += len(more)
            done += filled
            waiting.append(pool.submit(arrays.put, name, rows, block))
            if len(waiting) > _MAX_WAITING:
                waiting.popleft().result()
    for future in waiting:
        future.result()
    extensions = b""
    while more := source.read(_MAX_EXTENSION_BYTES + 1 - len(extensions)):
        if not header.flags & _FLAG_EXTENSIONS:
            raise FormatError("there are bytes after the last array")
        extensions += more
        if len(extensions) > _MAX_EXTENSION_BYTES:
            raise LimitExceededError(f"more than {_MAX_EXTENSION_BYTES} bytes of extensions", chunk="extensions")
    return header, arrays, extensions


def _read_streams(
    handle: BinaryIO, limits: Limits, pool: ThreadPoolExecutor, sink: Callable[[_Header], S]
) -> tuple[_Header, S, bytes]:
    """Header, what took the arrays, and extension records of a version 4 file."""
    size_bytes = file_size(handle)
    header = _parse_header(handle.read(_HEADER_4.size), limits)
    sizes = header.stream_bytes()
    if not header.count or header.count * 9 > size_bytes * _MAX_ZSTD_RATIO:
        raise FormatError(f"{header.count} Gaussians in a file of {size_bytes} bytes", chunk="header", offset=8)
    if header.num_streams != len(sizes):
        raise FormatError(f"{header.num_streams} streams, expected {len(sizes)}", chunk="header", offset=15)
    has_extensions = bool(header.flags & _FLAG_EXTENSIONS)
    extension_bytes = header.toc_offset - _HEADER_4.size
    if extension_bytes < 0 or (extension_bytes and not has_extensions):
        raise FormatError(f"the table of contents is said to be at byte {header.toc_offset}", chunk="header", offset=16)
    if header.toc_offset + header.num_streams * _TOC_ENTRY.size > size_bytes:
        raise TruncatedError("the file ends before its table of contents does", chunk="toc", offset=size_bytes)
    if extension_bytes > _MAX_EXTENSION_BYTES:
        raise LimitExceededError(f"more than {_MAX_EXTENSION_BYTES} bytes of extensions", chunk="extensions")
    extensions = handle.read(extension_bytes)
    toc = handle.read(header.num_streams * _TOC_ENTRY.size)
    places: dict[str, tuple[int, int, int]] = {}
    start = header.toc_offset + len(toc)
    for i, (name, expected) in enumerate(sizes.items()):
        compressed, raw = _TOC_ENTRY.unpack_from(toc, i * _TOC_ENTRY.size)
        if raw != expected:
            raise FormatError(
                f"{raw} bytes, expected {expected}", chunk=name, offset=header.toc_offset + i * _TOC_ENTRY.size + 8
            )
        places[name] = (start, compressed, raw)
        start += compressed
    if start > size_bytes:
        raise TruncatedError(f"the streams end at byte {start}, the file before", offset=size_bytes)
    if start < size_bytes:
        raise FormatError("there are bytes after the last stream", offset=start)

    arrays = sink(header)

    def unpack(name: str, frame: bytes) -> None:
        start, _, raw = places[name]
        try:
            content = _unzstd(frame, raw)
        except SplatCodecError as error:
            error.locate(chunk=name, offset=start)
            raise
        row_bytes = raw // header.count
        for rows in row_blocks(header.count):
            arrays.put(name, rows, content[rows.start * row_bytes : rows.stop * row_bytes])

    # The largest first, so that no thread begins it when the others are done.
    tasks = {}
    for name in sorted(places, key=lambda name: -places[name][2]):
        handle.seek(places[name][0])
        tasks[name] = pool.submit(unpack, name, handle.read(places[name][1]))
    for name in places:
        tasks[name].result()
    return header, arrays, extensions


def _unzstd(frame: bytes, raw_bytes: int) -> npt.NDArray[np.uint8]:
    """The content of one zstd frame, which must have exactly `raw_bytes` bytes; no more than those are allocated."""
    import zstandard

    try:
        # The decompressor allocates what the frame states, so that is compared first; -1 is "not stated".
        if zstandard.frame_content_size(frame) not in (-1, raw_bytes):
            raise FormatError(f"the zstd frame does not hold {raw_bytes} bytes")
        content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        kind = ChecksumError if "checksum" in str(error).lower() else FormatError
        raise kind(f"zstd: {error}") from None
    if len(content) != raw_bytes:
        raise FormatError(f"the zstd frame holds {len(content)} bytes, expected {raw_bytes}")
    return np.frombuffer(content, np.uint8)


def _parse_extensions(records: bytes) -> dict[str, Any]:
    """Metadata from extension records: `frame` and `camera`.

    Raises:
        TruncatedError: a record is longer than what is left.
        FormatError: a known record has the wrong length or an unknown frame.
    """
    metadata: dict[str, Any] = {}
    at = 0
    while at < len(records):
        if len(records) - at < 8:
            raise TruncatedError("the last extension record is cut short", chunk="extensions")
        kind, length = struct.unpack_from("<II", records, at)
        payload = records[at + 8 : at + 8 + length]
        if len(payload) < length:
            raise TruncatedError(f"extension {kind:#010x} is cut short", chunk="extensions")
        at += 8 + length
        if kind == _EXTENSION_FRAME:
            code = int.from_bytes(payload, "little")
            if length != 4 or code >= len(_FRAMES):
                raise FormatError(f"unknown coordinate system {payload[:8].hex(' ')}", chunk="extensions")
            if _FRAMES[code] is not None:
                metadata["frame"] = _FRAMES[code]
        elif kind == _EXTENSION_SAFE_ORBIT:
            if length != 12:
                raise FormatError(f"a safe orbit of {length} bytes, expected 12", chunk="extensions")
            orbit = np.frombuffer(payload, "<f4")
            if np.isfinite(orbit).all():
                metadata["camera"] = dict(zip(_SAFE_ORBIT, orbit.tolist()))
            else:
                warnings.warn("a safe orbit that is not finite is dropped", SplatCodecWarning, stacklevel=4)
        elif kind != _EXTENSION_SH_BITS:  # which only says how coarsely SH was rounded
            warnings.warn(
                f"unknown SPZ extension {kind:#010x} ignored; it may change the meaning of the data",
                SplatCodecWarning,
                stacklevel=4,
            )
    return metadata


# ---------------------------------------------------------------------------------------------------------- values


class _Arrays:
    """The values of a scene, filled in by rows, from any thread."""

    def __init__(self, header: _Header) -> None:
        count = header.count
        self._header = header
        self.means = np.empty((count, 3), np.float32)
        self.opacities = np.empty(count, np.float32)
        self.sh0 = np.empty((count, 1, 3), np.float32)
        self.scales = np.empty((count, 3), np.float32)
        self.quats = np.empty((count, 4), np.float32)
        self._per_channel = num_sh_coefficients(header.sh_degree) - 1
        self.shN = np.empty((count, min(self._per_channel, MAX_SH_REST), 3), np.float32)
        codes = np.arange(256)
        self._colours = ((codes / 255 - 0.5) / 0.15).astype(np.float32)
        if header.version < 3:
            self._quat_codes = (codes / 127.5 - 1).astype(np.float32)
        else:
            magnitudes = np.arange(512) * (np.sqrt(0.5) / 511)
            self._quat_codes = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)

    def gaussians(self, metadata: Mapping[str, Any]) -> Gaussians:
        """The scene, once all rows have been put."""
        return Gaussians(self.means, self.quats, self.scales, self.opacities, self.sh0, self.shN, metadata=metadata)

    def put(self, name: str, rows: slice, packed: npt.NDArray[np.uint8]) -> None:
        """Unpack what the file has of stream `name` for these rows."""
        count = rows.stop - rows.start
        if name == "positions":
            self._put_positions(self.means[rows], packed)
        elif name == "alphas":
            self.opacities[rows] = logits_of_alpha_bytes(packed)
        elif name == "colors":
            self.sh0[rows, 0] = lookup(packed.reshape(count, 3), self._colours)
        elif name == "scales":
            _scaled(packed.reshape(count, 3), 1 / 16, 10, self.scales[rows])
        elif name == "rotations":
            self._put_quats(self.quats[rows], packed)
        else:
            # The file has coefficients in the order of `Gaussians` already.
            packed = packed.reshape(count, self._per_channel, 3)[:, : self.shN.shape[1]]
            _scaled(packed, 1 / 128, 1, self.shN[rows])

    def _put_positions(self, out: npt.NDArray[np.float32], packed: npt.NDArray[np.uint8]) -> None:
        """24-bit little-endian fixed point, or float16 in version 1."""
        if self._header.version == 1:
            out[...] = packed.view("<f2").reshape(-1, 3)
            return
        # The three bytes become the upper ones of a word, so that its sign is theirs and the value is 256 times theirs.
        words = np.zeros((3 * len(out), 4), np.uint8)
        words[:, 1:] = packed.reshape(-1, 3)
        scale = np.float32(2.0 ** -(self._header.fractional_bits + 8))
        np.multiply(words.view("<i4").reshape(-1, 3), scale, out=out, dtype=np.float32, casting="unsafe")

    def _put_quats(self, out: npt.NDArray[np.float32], packed: npt.NDArray[np.uint8]) -> None:
        if self._header.version < 3:
            # x, y, z as bytes, w what is left of the unit length.
            xyz = lookup(packed.reshape(-1, 3), self._quat_codes)
            out[:, 1:] = xyz
            np.sqrt(np.maximum(1 - (xyz * xyz).sum(axis=1), 0), out=out[:, 0])
            return
        # Bits 31..30 are the index of the largest of x, y, z, w; the others follow, 10 bits each: sign, magnitude.
        words = packed.view("<u4")
        fields = np.stack([(words >> np.uint32(shift)) & np.uint32(1023) for shift in (20, 10, 0)], axis=1)
        kept = lookup(fields, self._quat_codes)
        quats_of_smallest_three(words >> np.uint32(30), kept, out, (1, 2, 3, 0))


class _Packed:
    """The arrays as the file has them, whole: 20 to 65 bytes a Gaussian."""

    def __init__(self, header: _Header) -> None:
        self._header = header
        self._raw = {name: np.empty(size_bytes, np.uint8) for name, size_bytes in header.stream_bytes().items()}

    def put(self, name: str, rows: slice, packed: npt.NDArray[np.uint8]) -> None:
        """Keep what the file has of stream `name` for these rows."""
        row_bytes = len(self._raw[name]) // self._header.count
        self._raw[name][rows.start * row_bytes : rows.stop * row_bytes] = packed

    def unpacked(self, part: slice) -> Gaussians:
        """Some of the rows."""
        count = part.stop - part.start
        arrays = _Arrays(replace(self._header, count=count))
        for name, raw in self._raw.items():
            row_bytes = len(raw) // self._header.count
            for rows in row_blocks(count):
                first = (part.start + rows.start) * row_bytes
                arrays.put(name, rows, raw[first : first + (rows.stop - rows.start) * row_bytes])
        return arrays.gaussians({})


def _scaled(codes: npt.NDArray[np.uint8], scale: float, offset: float, out: npt.NDArray[np.float32]) -> None:
    """`codes * scale - offset`; exact where the scale is a power of two."""
    np.multiply(codes, np.float32(scale), out=out, dtype=np.float32, casting="unsafe")
    np.subtract(out, np.float32(offset), out=out)


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read an SPZ file of version 1 to 4; uncompressed ones of version 1 to 3 too.

    Values are off by up to half a step: 2**-fractional_bits for positions, 1/16 for log scales, 1/255 for alpha,
    1/38 for sh0, 1/361 (versions 1 and 2: 1/128) for quaternion components, 1/128 for SH beside the writer's own
    coarser buckets. `metadata` gets `antialiased`, `spz` (version, fractional_bits, antialiased), and `frame` and
    `camera` where a record states them. SH degree 4 and unknown extensions are dropped with a SplatCodecWarning.

    Raises:
        FormatError: damaged; TruncatedError if it ends early, ChecksumError if a checksum differs.
        UnsupportedError: a later version.
        LimitExceededError: more than `limits` allows.
    """
    with open_for_reading(path) as handle:
        return read_stream(handle, limits)


def read_stream(handle: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """`read` for an open file, also one in memory."""
    header, arrays, extensions = _unpack(handle, limits, _Arrays)
    return arrays.gaussians(_metadata(header, extensions))


@contextlib.contextmanager
def open_blocks(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Blocks]:
    """`read`, block by block: the packed arrays, which lie one behind the other in the file, are held."""
    with open_for_reading(path) as handle:
        header, arrays, extensions = _unpack(handle, limits, _Packed)

    def rows() -> Iterator[Gaussians]:
        for part in row_blocks(header.count, BLOCK_ROWS):
            yield arrays.unpacked(part)

    yield Blocks(header.count, min(header.sh_degree, 3), rows, metadata=_metadata(header, extensions))


def _unpack(handle: BinaryIO, limits: Limits, sink: Callable[[_Header], S]) -> tuple[_Header, S, bytes]:
    head = handle.read(8)
    handle.seek(0)
    with ThreadPoolExecutor(min(_MAX_THREADS, num_threads(None))) as pool:
        return (_read_streams if head == _MAGIC_4 else _read_arrays)(handle, limits, pool, sink)


def _metadata(header: _Header, extensions: bytes) -> dict[str, Any]:
    """What a file says beside its arrays; what is not understood is warned of."""
    stated = _parse_extensions(extensions)
    if header.sh_degree == 4:
        warn_degree_4(header.count)
    unknown_flags = header.flags & ~(_FLAG_ANTIALIASED | _FLAG_EXTENSIONS)
    if unknown_flags:
        warnings.warn(
            f"unknown SPZ flags {unknown_flags:#04x} ignored; they may change the meaning of the data",
            SplatCodecWarning,
            stacklevel=4,
        )
    antialiased = bool(header.flags & _FLAG_ANTIALIASED)
    return {
        "antialiased": antialiased,
        "spz": {
            "version": header.version,
            "fractional_bits": header.fractional_bits,
            "antialiased": antialiased,
        },
        **stated,
    }


# --------------------------------------------------------------------------------------------------------- writing

_VERSIONS = (3, 2, 4)  # version 3 first: readers of it are everywhere by now, those of 4 are not
_USUAL_FRACTIONAL_BITS = 12
_MAX_FIXED = (1 << 23) - 1
_MAX_WRITTEN_FRACTIONAL_BITS = 20
# What bytes of scales, colours and harmonics reach, half a step further than the outermost value.
_SCALE_RANGE = (-10 - 1 / 32, 255 / 16 - 10 + 1 / 32)
_COLOUR_RANGE = (-0.5 / 0.15 - 0.014, 0.5 / 0.15 + 0.014)
# The bucket of 255 is clamped, so harmonics end 1/128 below 1.
_SH_RANGE = (-1 - 1 / 256, 1 + 1 / 16)
# Bits of a coefficient of degree 1, and of higher ones, that the reference writer keeps.
_USUAL_SH_BITS = (5, 4)


@dataclass(frozen=True, eq=False)
class _Precision:
    """How a scene is rounded.

    Attributes:
        fractional_bits: of positions.
        powers: of each stream, (N,) int: codes are multiples of 2**power. Empty: the usual buckets of harmonics only.
    """

    fractional_bits: int
    powers: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)


# Powers of two that codes may be multiples of: further, nothing is gained.
_MAX_POWERS = {"positions": 16, "alphas": 5, "colors": 5, "scales": 4, "rotations": 6, "sh": 8}


def _fractional_bits(gaussians: Gaussians, wanted: int = _USUAL_FRACTIONAL_BITS) -> int:
    """Bits behind the point of positions: 12 as everybody writes, fewer where the scene is too large for that."""
    return _fractional_bits_of(float(np.abs(gaussians.means).max(initial=0.0)), wanted)


def _fractional_bits_of(reach: float, wanted: int = _USUAL_FRACTIONAL_BITS) -> int:
    bits = wanted
    while bits > 0 and reach * 2.0**bits > _MAX_FIXED:
        bits -= 1
    return bits


def _precision_of(scene: Gaussians, steps: Steps, version: int) -> _Precision:
    """The coarsest codes whose steps are no larger than `steps`."""
    # One Gaussian in a hundred may be rounded coarser than asked for, so that a few do not cost bits for all.
    finest = float(np.quantile(steps.position, 0.01)) if len(scene) else 1.0
    bits = int(np.clip(np.ceil(-np.log2(max(finest, 1e-9))), 0, _MAX_WRITTEN_FRACTIONAL_BITS))
    bits = _fractional_bits(scene, bits)
    units = {
        "positions": (steps.position, 2.0**-bits),
        "alphas": (steps.alpha, 1 / 255),
        "colors": (steps.colour, 1 / 255 / 0.15),
        "scales": (steps.scale, 1 / 16),
        "rotations": (steps.quat, np.sqrt(0.5) / 511 if version > 2 else 1 / 127.5),
        "sh": (steps.sh, 1 / 128),
    }
    powers = {}
    for name, (step, unit) in units.items():
        wanted = np.floor(np.log2(np.maximum(step, 1e-30) / unit) + 0.5)
        powers[name] = np.clip(wanted, 0, _MAX_POWERS[name]).astype(np.int64)
    return _Precision(bits, powers)


def _coarse(
    codes: npt.NDArray[np.float64], powers: npt.NDArray[np.int64] | None, center: float, low: float, high: float
) -> npt.NDArray[np.float64]:
    """Codes (n, ...) rounded to `center` plus multiples of 2**powers (n,), then clamped to `low`..`high`."""
    if powers is None:
        np.floor(codes + 0.5, out=codes)  # halves go up, as in the reference
    else:
        unit = np.exp2(powers).reshape(-1, *(1,) * (codes.ndim - 1))
        codes -= center
        codes /= unit
        np.rint(codes, out=codes)
        codes *= unit
        codes += center
    return np.clip(codes, low, high, out=codes)


def _blank(version: int, count: int, num_rest: int) -> dict[str, npt.NDArray[Any]]:
    return {
        "positions": np.empty((count, 3), np.int32),
        "alphas": np.empty(count, np.uint8),
        "colors": np.empty((count, 3), np.uint8),
        "scales": np.empty((count, 3), np.uint8),
        "rotations": np.empty(count, "<u4") if version > 2 else np.empty((count, 3), np.uint8),
        "sh": np.empty((count, num_rest, 3), np.uint8),
    }


def _pack(scene: Gaussians, version: int, precision: _Precision) -> dict[str, npt.NDArray[Any]]:
    """The integers of the file, N rows of each stream; positions as (N, 3) int32 yet."""
    count = len(scene)
    packed = _blank(version, count, scene.shN.shape[1])
    scale = 2.0**precision.fractional_bits
    usual_sh = np.array([1 << (8 - bits) for bits in (_USUAL_SH_BITS[:1] * 3 + _USUAL_SH_BITS[1:] * 12)], np.float64)
    for rows in row_blocks(count):
        powers = {name: values[rows] for name, values in precision.powers.items()}

        def coarse(name: str, codes: npt.NDArray[Any], center: float, low: float, high: float) -> npt.NDArray[Any]:
            return _coarse(codes, powers.get(name), center, low, high)  # noqa: B023

        means = scene.means[rows].astype(np.float64) * scale
        packed["positions"][rows] = coarse("positions", means, 0, -_MAX_FIXED - 1, _MAX_FIXED)
        with np.errstate(over="ignore"):
            alphas = 255 / (1 + np.exp(-scene.opacities[rows].astype(np.float64)))
        # What shows at all is not rounded to nothing.
        low = np.minimum(np.rint(alphas), 1)
        packed["alphas"][rows] = np.maximum(coarse("alphas", alphas, 0, 0, 255), low)
        colours = scene.sh0[rows, 0].astype(np.float64) * (255 * 0.15) + 127.5
        packed["colors"][rows] = coarse("colors", colours, 128, 0, 255)
        scales = scene.scales[rows].astype(np.float64) * 16 + 160
        packed["scales"][rows] = coarse("scales", scales, 0, 0, 255)
        packed["rotations"][rows] = _pack_quats(scene.quats[rows], version, powers.get("rotations"))
        sh = scene.shN[rows].astype(np.float64) * 128
        if "sh" in powers:
            packed["sh"][rows] = coarse("sh", sh + 128, 128, 0, 255)
        else:
            # Buckets are centred on multiples of their size; the last one would begin behind 255.
            bucket = usual_sh[: sh.shape[1], None]
            packed["sh"][rows] = np.clip(np.rint(sh / bucket) * bucket + 128, 0, 255)
    return packed


def _pack_quats(quats: npt.NDArray[np.float32], version: int, powers: npt.NDArray[np.int64] | None) -> npt.NDArray[Any]:
    """(N,) words of 32 bits, or (N, 3) bytes in version 2."""
    if version < 3:
        unit = unit_quats(quats).astype(np.float64)
        unit *= np.where(unit[:, :1] < 0, -1, 1)
        return _coarse(unit[:, 1:] * 127.5 + 127.5, powers, 127.5, 0, 255)
    largest, kept = smallest_three(quats, (1, 2, 3, 0))
    magnitudes = _coarse(np.abs(kept).astype(np.float64) * (511 * np.sqrt(2)), powers, 0, 0, 511).astype(np.uint32)
    fields = magnitudes | ((kept < 0) & (magnitudes > 0)).astype(np.uint32) << np.uint32(9)
    words = largest.astype(np.uint32)
    for k in range(3):
        words = words << np.uint32(10) | fields[:, k]
    return words


def _triples(positions: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """(N, 9) bytes of (N, 3) integers."""
    return positions.astype("<i4").view(np.uint8).reshape(-1, 3, 4)[:, :, :3].reshape(-1, 9)


def _unpacked(packed: Mapping[str, npt.NDArray[Any]], version: int, precision: _Precision, sh_degree: int) -> Gaussians:
    """What a reader makes of `_pack`'s integers."""
    count = len(packed["alphas"])
    arrays = _Arrays(_Header(version, count, sh_degree, precision.fractional_bits, 0))
    for name, values in packed.items():
        raw = (
            np.ascontiguousarray(_triples(values) if name == "positions" else values).view(np.uint8).reshape(count, -1)
        )
        for rows in row_blocks(count):
            if raw.shape[1]:
                arrays.put(name, rows, raw[rows].reshape(-1))
    return arrays.gaussians({})


def _chosen(scene: Gaussians, version: int, options: WriteOptions) -> tuple[Gaussians, _Precision, list[str]]:
    """What to write of the scene and how precisely, and what that loses."""
    if options.quality is None or not len(scene):
        return scene, _Precision(_fractional_bits(scene)), []
    judge = Judge(scene, options)

    def choice(slope: float) -> tuple[Gaussians, _Precision]:
        kept = judge.kept(slope)
        part = scene.selected(kept)
        return part, _precision_of(part, judge.steps(slope).selected(kept), version)

    def copy(slope: float) -> Gaussians:
        part, precision = choice(slope)
        return _unpacked(_pack(part, version, precision), version, precision, part.sh_degree)

    slope, psnr = judge.slope(copy)
    part, precision = choice(slope)
    lost = [f"values rounded as coarsely as quality {options.quality:g} allows"]
    if psnr < judge.wanted_db - 1:
        lost.append(f"quality {options.quality:g} asks for {judge.wanted_db:.1f} dB, SPZ gives about {psnr:.1f} dB")
    if len(part) < len(scene):
        left = len(scene) - len(part)
        lost.append(f"{left} Gaussians that hardly show left out, as quality {options.quality:g} allows")
    return part, precision, lost


def _pack_extensions(metadata: Mapping[str, Any]) -> bytes:
    """Extension records of `frame` and of a safe orbit in `camera`."""
    records = b""
    if (frame := metadata.get("frame")) is not None and frame in _FRAMES:
        records += struct.pack("<III", _EXTENSION_FRAME, 4, _FRAMES.index(frame))
    if orbit := _safe_orbit(metadata):
        records += struct.pack("<II3f", _EXTENSION_SAFE_ORBIT, 12, *orbit)
    return records


def _safe_orbit(metadata: Mapping[str, Any]) -> list[float] | None:
    camera = metadata.get("camera")
    if not isinstance(camera, Mapping) or camera.keys() != set(_SAFE_ORBIT):
        return None
    return [float(camera[name]) for name in _SAFE_ORBIT]


def write(gaussians: Gaussians, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """Write an SPZ file of version 3 (or 2 or 4).

    Gaussians are sorted so that the file gets small. The frame is never changed; version 4 states it, where the
    metadata does. Errors are those that `read` lists, with buckets of 1/16 (degree 1) and 1/8 for harmonics. With a
    quality, every value is rounded as coarsely as that allows, and positions have as many fractional bits as that
    needs. In version 2 or with a quality, the axes of each ellipsoid are named anew (`least_turned`).

    Returns:
        What the quality leaves out.

    Raises:
        ParameterError: version 4 cannot hold an empty scene.
    """
    version = options.version or _VERSIONS[0]
    scene = drawable(gaussians, options)
    _check_count(version, len(scene))
    if version == 2 or options.quality is not None:
        quats, scales = least_turned(scene.quats, scene.scales)
        scene = scene.replaced(quats=quats, scales=scales)
    scene, precision, lost = _chosen(scene, version, options)
    _write_packed(_pack(scene, version, precision), precision, scene, file, options)
    return lost


def write_blocks(blocks: Blocks, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write` without a quality, from blocks, which are read twice: the packed arrays are held, to be sorted.

    Raises:
        ParameterError: version 4 cannot hold an empty scene.
    """
    version = options.version or _VERSIONS[0]
    head = blocks.head().replaced(extras={})
    reach, count = 0.0, 0
    for block in blocks.rows():
        scene = drawable(block, options)
        reach, count = max(reach, float(np.abs(scene.means).max(initial=0.0))), count + len(scene)
    _check_count(version, count)
    bits = _fractional_bits_of(reach)
    tally = Tally(lambda scene: _losses_at(bits, scene.replaced(metadata=head.metadata), options))
    packed = _blank(version, count, head.shN.shape[1])
    at = 0
    for block in blocks.rows():
        scene = tally.drawable(block)
        if version == 2:
            quats, scales = least_turned(scene.quats, scene.scales)
            scene = scene.replaced(quats=quats, scales=scales)
        for name, values in _pack(scene, version, _Precision(bits)).items():
            packed[name][at : at + len(scene)] = values
        at += len(scene)
    _write_packed(packed, _Precision(bits), head, file, options)
    return tally.sentences()


def _check_count(version: int, count: int) -> None:
    if version == 4 and not count:
        raise ParameterError("SPZ version 4 cannot hold an empty scene", hint="version 3 can")


def _write_packed(
    packed: dict[str, npt.NDArray[Any]], precision: _Precision, head: Gaussians, file: BinaryIO, options: WriteOptions
) -> None:
    """Sort and write the integers of a scene; SH degree and metadata are those of `head`."""
    version, count = options.version or _VERSIONS[0], len(packed["alphas"])
    order = _order(packed, precision)
    packed["positions"] = _triples(packed["positions"])
    streams = [packed.pop(name)[order].tobytes() for name, values in list(packed.items()) if values.size]
    # Only version 4 says where they are; behind gzipped arrays they keep readers, such as three.js, from opening files.
    extensions = _pack_extensions(head.metadata) if version == 4 else b""
    flags = _FLAG_ANTIALIASED * bool(head.metadata.get("antialiased")) | _FLAG_EXTENSIONS * bool(extensions)
    fields = (_MAGIC, version, count, head.sh_degree, precision.fractional_bits, flags)
    if version < 4:
        write_gzip(file, [_HEADER.pack(*fields, 0), *streams], options.threads)
        return
    frames = zstd_frames(streams, options.threads)
    file.write(_HEADER_4.pack(*fields, len(streams), _HEADER_4.size + len(extensions)))
    file.write(extensions)
    for stream, frame in zip(streams, frames):
        file.write(_TOC_ENTRY.pack(len(frame), len(stream)))
    for frame in frames:
        file.write(frame)


def _order(packed: Mapping[str, npt.NDArray[Any]], precision: _Precision) -> npt.NDArray[np.intp]:
    """Rows in the order to write them."""
    columns = (_triples(packed["positions"]), packed["alphas"], packed["colors"])

    def cost(order: npt.NDArray[np.intp]) -> int:
        return sum(quick_size(column[order]) for column in columns)

    keys = [packed["alphas"], packed["colors"][:, 0], packed["colors"][:, 1]]
    order = packing_order(packed["positions"], keys, cost)
    powers = precision.powers.get("sh")
    if powers is not None and packed["sh"].size:
        # Harmonics of like precision together: each block of the compressor has Huffman codes of its own.
        order = order[np.argsort(powers[order], kind="stable")]
    return order


def _losses(gaussians: Gaussians, options: WriteOptions) -> list[str]:
    return _losses_at(_fractional_bits(drawable(gaussians, options)), gaussians, options)


def _losses_at(bits: int, gaussians: Gaussians, options: WriteOptions) -> list[str]:
    """`_losses` for positions of so many fractional bits."""
    scene = drawable(gaussians, options)
    kept = {"antialiased"}
    if options.version == 4 and scene.metadata.get("frame") in _FRAMES:
        kept.add("frame")
    if options.version == 4 and _safe_orbit(scene.metadata):
        kept.add("camera")
    reach = (_MAX_FIXED + 0.5) / 2**bits
    usual = f"values rounded: positions to {2.0**-bits:.3g}, scales to 6 %, the rest to 8 bits or less; order changed"
    return [
        *lost_extras(gaussians),
        *lost_metadata(gaussians, kept),
        *lost_gaussians(gaussians, options),
        *out_of_range("positions", scene.means, -reach, reach),
        *out_of_range("log scales", scene.scales, *_SCALE_RANGE),
        *out_of_range("colours", scene.sh0, *_COLOUR_RANGE),
        *out_of_range("spherical harmonics", scene.shN, *_SH_RANGE),
        *([usual] if options.quality is None else ()),
    ]


def stated_count(content: bytes) -> int:
    """Number of Gaussians that a whole gzipped file says it has."""
    head = zlib.decompressobj(wbits=31).decompress(content, _HEADER.size)
    return int(_HEADER.unpack(head)[2])


def _sniff(head: bytes, path: Path) -> bool:
    if head[:2] != _GZIP_MAGIC:
        return head[:4] == _MAGIC
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 4) == _MAGIC
    except zlib.error:
        return False


def _error_bounds(gaussians: Gaussians, options: WriteOptions) -> ErrorBounds:
    # Version 2 keeps no w, but it is 0.85 or more: half a step in each of x, y, z, and what that means for w.
    quats = 0.008 if options.version == 2 else 3 * np.sqrt(0.5) / 511 / 2 + 1e-5
    return ErrorBounds(
        means=0.5 * 2.0 ** -_fractional_bits(gaussians),
        scales=0.5 / 16,
        alphas=0.5 / 255,
        colours=SH_C0 * 0.5 / 255 / 0.15,
        quats=quats,
        shN=1 / 16,
    )


FORMAT = Format(
    name="spz",
    title="SPZ",
    suffixes=(".spz",),
    read=read,
    write=write,
    sniff=_sniff,
    losses=_losses,
    error_bounds=_error_bounds,
    versions=_VERSIONS,
    takes_quality=True,
    open_blocks=open_blocks,
    write_blocks=write_blocks,
)
