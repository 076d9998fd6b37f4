"""`.ksplat` files of GaussianSplats3D, format 0.1: records of floats (level 0), halves (1), or halves and bytes (2).

A main header of 4096 bytes, section headers of 1024, then the sections: lengths of the partly filled buckets, centres
of all buckets, records. From level 1 on positions are 16-bit offsets from the centre of their bucket of 256 Gaussians.
Quaternions are w, x, y, z, scales linear, harmonics end at degree 2 and lie band by band, in a band channel by channel.
Facts: mkkellogg/GaussianSplats3D `SplatBuffer.js`.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, ParameterError, TruncatedError, UnsupportedError
from ..files import open_for_reading
from ..gaussians import SH_C0, Gaussians, num_sh_coefficients
from ..limits import DEFAULT_LIMITS, Limits
from ._losses import Tally, drawable, lost_bands, lost_extras, lost_gaussians, lost_metadata, out_of_range
from ._order import compact_chunks
from ._packing import alpha_bytes, logits_of_alpha_bytes, lookup, rounded, row_blocks
from ._quality import reduced
from ._records import file_size, read_blocks
from .base import BLOCK_ROWS, DEFAULT_OPTIONS, Blocks, ErrorBounds, Format, WriteOptions

__all__ = ["FORMAT", "read", "read_stream", "write"]

_HEADER_BYTES = 4096
_SECTION_BYTES = 1024
_HEADER = struct.Struct("<BBHIIIIHH5f")
_SECTION = struct.Struct("<IIIIfHHIIIIH")
_MAX_SECTIONS = 1 << 16
_MAX_SH_DEGREE = 2
# Where the header has none: the values that a byte of level 2 spans.
_USUAL_SH_RANGE = 1.5
_OFFSET_RANGE = 32767
_BUCKET_GAUSSIANS = 256
_FLOAT_TYPES = ("<f4", "<f2", "<f2")
_LEVELS = (1, 0, 2)  # level 1 first: it is what that project's own converter makes


@dataclass(frozen=True)
class _Header:
    num_sections: int
    max_sections: int
    count: int
    level: int
    sh_range: tuple[float, float]


@dataclass(frozen=True)
class _Section:
    """One section; `start` is where its bytes begin."""

    count: int
    max_count: int
    bucket_gaussians: int
    num_buckets: int
    block_size: float
    bucket_bytes: int
    offset_range: int
    full_buckets: int
    partial_buckets: int
    sh_degree: int
    start: int

    def records_start(self) -> int:
        return self.start + 4 * self.partial_buckets + self.bucket_bytes * self.num_buckets

    def end(self, level: int) -> int:
        return self.records_start() + self.max_count * _record(level, self.sh_degree).itemsize


def _record(level: int, sh_degree: int) -> np.dtype[Any]:
    real = _FLOAT_TYPES[level]
    fields: list[Any] = [
        ("mean", "<u2" if level else "<f4", 3),
        ("scale", real, 3),
        ("quat", real, 4),
        ("rgba", "u1", 4),
    ]
    if sh_degree:
        fields.append(("sh", "u1" if level == 2 else real, 3 * (num_sh_coefficients(sh_degree) - 1)))
    return np.dtype(fields)


def _sh_columns(sh_degree: int) -> list[int]:
    """Where the file has each value of a (K - 1, 3) block of harmonics."""
    columns = []
    for degree in range(1, sh_degree + 1):
        first, width = 3 * (num_sh_coefficients(degree - 1) - 1), 2 * degree + 1
        columns += [first + channel * width + m for m in range(width) for channel in range(3)]
    return columns


# --------------------------------------------------------------------------------------------------------- reading


def _parse_header(head: bytes) -> _Header:
    if len(head) < _HEADER_BYTES:
        raise TruncatedError("the file ends inside the main header", chunk="header", offset=len(head))
    major, minor, _, max_sections, num_sections, max_count, count, level, _, *_, low, high = _HEADER.unpack_from(head)
    if major != 0 or minor < 1:
        raise UnsupportedError(f"version {major}.{minor}, only 0.1 is known", chunk="header", offset=0)
    if level >= len(_FLOAT_TYPES):
        raise UnsupportedError(f"compression level {level}, only 0 to 2 are known", chunk="header", offset=20)
    if not num_sections <= max_sections <= _MAX_SECTIONS:
        raise FormatError(f"{num_sections} of {max_sections} sections", chunk="header", offset=4)
    if count > max_count:
        raise FormatError(f"{count} of {max_count} Gaussians", chunk="header", offset=12)
    sh_range = (low or -_USUAL_SH_RANGE, high or _USUAL_SH_RANGE)
    if not np.isfinite(sh_range).all():
        raise FormatError(f"harmonics from {low} to {high}", chunk="header", offset=36)
    return _Header(num_sections, max_sections, count, level, sh_range)


def _parse_section(head: bytes, index: int, start: int, level: int) -> _Section:
    at = _HEADER_BYTES + index * _SECTION_BYTES
    place: dict[str, Any] = {"chunk": f"section {index}", "offset": at}
    fields = _SECTION.unpack_from(head)
    count, max_count, size, buckets, block, bucket_bytes, _, offset_range, _, full, partial, degree = fields
    if count > max_count:
        raise FormatError(f"{count} of {max_count} Gaussians", **place)
    if degree > _MAX_SH_DEGREE:
        raise FormatError(f"SH degree {degree}, expected 0 to {_MAX_SH_DEGREE}", **place)
    if level:
        if not (np.isfinite(block) and block > 0):
            raise FormatError(f"buckets of size {block}", **place)
        if buckets and bucket_bytes != 12:
            raise FormatError(f"bucket centres of {bucket_bytes} bytes, expected 12", **place)
        if full + partial > buckets:
            raise FormatError(f"{full} full and {partial} other buckets of {buckets}", **place)
        if not 0 < size <= 1 << 20:
            raise FormatError(f"buckets of {size} Gaussians", **place)
    return _Section(
        count,
        max_count,
        size,
        buckets,
        block,
        bucket_bytes,
        offset_range or _OFFSET_RANGE,
        full,
        partial,
        degree,
        start,
    )


def _read_sections(handle: BinaryIO, limits: Limits) -> tuple[_Header, list[_Section]]:
    """Both kinds of headers, checked against each other, the file's size and `limits`."""
    size_bytes = file_size(handle)
    header = _parse_header(handle.read(_HEADER_BYTES))
    limits.check_gaussians(header.count, chunk="header")
    start = _HEADER_BYTES + header.max_sections * _SECTION_BYTES
    if size_bytes < start:
        raise TruncatedError("the file ends inside the section headers", chunk="header", offset=size_bytes)
    sections = []
    for index in range(header.num_sections):
        section = _parse_section(handle.read(_SECTION_BYTES), index, start, header.level)
        sections.append(section)
        start = section.end(header.level)
        if size_bytes < start:
            raise TruncatedError(
                f"the section ends at byte {start}, the file before", chunk=f"section {index}", offset=size_bytes
            )
    if size_bytes > start:
        raise FormatError(f"{size_bytes - start} bytes after the last section", offset=start)
    total = sum(section.count for section in sections)
    if total != header.count:
        raise FormatError(f"{total} Gaussians in the sections, {header.count} in the header", chunk="header", offset=16)
    degree = max((section.sh_degree for section in sections), default=0)
    limits.check_bytes(header.count * 4 * (14 + 3 * (num_sh_coefficients(degree) - 1)), "the scene")
    return header, sections


def _bucket_ends(
    handle: BinaryIO, section: _Section, name: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(buckets,) the first row after each bucket, and (buckets, 3) their centres."""
    handle.seek(section.start)
    lengths = np.frombuffer(handle.read(4 * section.partial_buckets), "<u4").astype(np.int64)
    centers = np.frombuffer(handle.read(12 * section.num_buckets), "<f4").reshape(-1, 3)
    full = section.full_buckets * section.bucket_gaussians
    if full + int(lengths.sum()) < section.count:
        raise FormatError(
            f"buckets for {full + int(lengths.sum())} of {section.count} Gaussians", chunk=name, offset=section.start
        )
    # Those full come first. Of the last bucket only what the section has counts.
    return np.concatenate(
        [np.full(section.full_buckets, section.bucket_gaussians, np.int64), lengths]
    ).cumsum(), centers


def _buckets(handle: BinaryIO, section: _Section, name: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """(count,) the bucket of each Gaussian, and (buckets, 3) their centres."""
    ends, centers = _bucket_ends(handle, section, name)
    return np.searchsorted(ends, np.arange(section.count), side="right"), centers


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a `.ksplat` file.

    A scale of zero becomes -inf, as in `.splat` files. `metadata` gets `ksplat` (level).

    Raises:
        FormatError: damaged, or its counts do not agree; TruncatedError if it ends early.
        UnsupportedError: another version or level.
        LimitExceededError: more than `limits` allows.
    """
    with open_for_reading(path) as handle:
        return read_stream(handle, limits)


def read_stream(handle: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """`read` for an open file, also one in memory."""
    header, sections = _read_sections(handle, limits)
    degree = _degree(sections)
    scene = _nothing(header.count, degree)
    first = 0
    for index, section in enumerate(sections):
        decoder = _Decoder(handle, header, section, f"section {index}")
        decoder.read(slice(0, section.count), scene, first)
        first += section.count
    return scene.replaced(metadata=_metadata(header))


def _degree(sections: list[_Section]) -> int:
    return max((section.sh_degree for section in sections), default=0)


def _metadata(header: _Header) -> dict[str, Any]:
    return {"ksplat": {"level": header.level}}


def _nothing(count: int, degree: int) -> Gaussians:
    """Rows to be filled; harmonics that a section has not are zero."""
    return Gaussians(
        means=np.empty((count, 3), np.float32),
        quats=np.empty((count, 4), np.float32),
        scales=np.empty((count, 3), np.float32),
        opacities=np.empty(count, np.float32),
        sh0=np.empty((count, 1, 3), np.float32),
        shN=np.zeros((count, num_sh_coefficients(degree) - 1, 3), np.float32),
    )


class _Decoder:
    """Reads rows of a section."""

    def __init__(self, handle: BinaryIO, header: _Header, section: _Section, name: str) -> None:
        self._handle, self._section, self._name = handle, section, name
        self._level = header.level
        self._dtype = _record(header.level, section.sh_degree)
        self._columns = _sh_columns(section.sh_degree)
        self._buckets = _bucket_ends(handle, section, name) if header.level else None
        self._sh0_table = (np.arange(256) / 255 - 0.5) / SH_C0
        low, high = header.sh_range
        with np.errstate(over="ignore"):
            self._sh_table = (low + np.arange(256) / 255 * (high - low)).astype(np.float32)

    def read(self, rows: slice, scene: Gaussians, first: int) -> None:
        """Read `rows` of the section into those of `scene` from `first` on."""
        section = self._section
        self._handle.seek(section.records_start() + rows.start * self._dtype.itemsize)
        for part, block in read_blocks(self._handle, self._dtype, rows.stop - rows.start, chunk=self._name):
            out = slice(first + part.start, first + part.stop)
            if self._buckets is None:
                scene.means[out] = block["mean"]
            else:
                ends, centers = self._buckets
                numbers = np.arange(rows.start + part.start, rows.start + part.stop)
                centers = centers[np.searchsorted(ends, numbers, side="right")]
                step = np.float32(section.block_size / 2 / section.offset_range)
                with np.errstate(over="ignore", invalid="ignore"):
                    offsets = block["mean"].astype(np.float32) - np.float32(section.offset_range)
                    scene.means[out] = offsets * step + centers
            # A scale of zero is a flat Gaussian (-inf); a negative one is nonsense and becomes NaN for `cleaned`.
            with np.errstate(divide="ignore", invalid="ignore"):
                scene.scales[out] = np.log(block["scale"].astype(np.float32))
            scene.quats[out] = block["quat"]
            scene.sh0[out, 0] = lookup(block["rgba"][:, :3], self._sh0_table)
            scene.opacities[out] = logits_of_alpha_bytes(block["rgba"][:, 3])
            if self._columns:
                values = block["sh"][:, self._columns].reshape(len(block), -1, 3)
                scene.shN[out, : values.shape[1]] = lookup(values, self._sh_table) if self._level == 2 else values


@contextlib.contextmanager
def open_blocks(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Blocks]:
    """`read`, block by block; the centres of buckets are held."""
    with open_for_reading(path) as handle:
        header, sections = _read_sections(handle, limits)
        degree = _degree(sections)
        decoders = [_Decoder(handle, header, section, f"section {k}") for k, section in enumerate(sections)]
        firsts = np.concatenate([[0], np.cumsum([section.count for section in sections], dtype=np.int64)])

        def rows() -> Iterator[Gaussians]:
            for part in row_blocks(header.count, BLOCK_ROWS):
                scene = _nothing(part.stop - part.start, degree)
                for decoder, first, end in zip(decoders, firsts[:-1].tolist(), firsts[1:].tolist()):
                    start, stop = max(part.start, first), min(part.stop, end)
                    if start < stop:
                        decoder.read(slice(start - first, stop - first), scene, start - part.start)
                yield scene

        yield Blocks(header.count, degree, rows, metadata=_metadata(header))


# --------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Buckets:
    """Gaussians by bucket, full buckets first.

    Attributes:
        order: (N,) rows in the order of the file. lengths: (B,) Gaussians of each bucket. centers: (B, 3) float32.
        block_size: no offset is more than half of it.
    """

    order: npt.NDArray[np.intp]
    lengths: npt.NDArray[np.int64]
    centers: npt.NDArray[np.float32]
    block_size: float


def _importance(scene: Gaussians) -> npt.NDArray[np.float64]:
    """(N,) how much a squared error of position counts."""
    return np.asarray(np.exp(np.clip(scene.scales.mean(axis=1, dtype=np.float64), -20, 20) * -2))


def _bucketed(means: npt.NDArray[np.float32], importance: npt.NDArray[np.float64]) -> _Buckets:
    """Sort Gaussians into small buckets, so that 16 bits of offset are fine: the few widest ones are split further.

    Raises:
        ParameterError: positions are further apart than float32 can say.
    """
    with np.errstate(over="ignore"):
        if len(means) and not np.isfinite(means.max(axis=0) - means.min(axis=0)).all():
            raise ParameterError("Gaussians lie further apart than float32 can say")
    order = compact_chunks(means, importance, _BUCKET_GAUSSIANS)
    chunks = [order[start : start + _BUCKET_GAUSSIANS] for start in range(0, len(order), _BUCKET_GAUSSIANS)]

    def side(rows: npt.NDArray[np.intp]) -> float:
        points = means[rows].astype(np.float64)
        return float((points.max(axis=0) - points.min(axis=0)).max())

    sides = [side(rows) for rows in chunks]
    # A file of one bucket, or of a single point, still needs some size.
    widest = max(float(np.quantile(sides, 0.99)) if sides else 0.0, 1e-6)
    buckets = []
    pending = list(zip(chunks, sides))
    while pending:
        rows, width = pending.pop()
        if width <= widest:
            buckets.append(rows)
            continue
        points = means[rows].astype(np.float64)
        axis = int(np.argmax(points.max(axis=0) - points.min(axis=0)))
        upper = points[:, axis] > (points[:, axis].min() + points[:, axis].max()) / 2
        pending += [(part, side(part)) for part in (rows[~upper], rows[upper])]
    buckets.sort(key=len, reverse=True)  # which puts the full ones first
    ends = np.array([[means[rows].min(axis=0), means[rows].max(axis=0)] for rows in buckets], np.float64)
    centers = ends.reshape(-1, 2, 3).mean(axis=1).astype(np.float32)
    # The centre is rounded to float32; the offsets have to reach as far.
    slack = float(np.abs(centers).max(initial=0.0)) * 2.0**-22
    rows = np.concatenate(buckets) if buckets else np.empty(0, np.intp)
    lengths = np.array([len(bucket) for bucket in buckets], np.int64)
    return _Buckets(rows, lengths, centers, float(np.float32((widest + slack) * (1 + 1e-6))))


def _sh_reach(scene: Gaussians) -> float:
    """Largest harmonic, which bytes of level 2 span; never zero, which would mean something else."""
    return _sh_range(float(np.abs(scene.shN).max(initial=0.0)))


def _sh_range(largest: float) -> float:
    return float(np.float32(largest)) if largest > 1e-6 else _USUAL_SH_RANGE


def _held(gaussians: Gaussians, options: WriteOptions) -> Gaussians:
    scene = drawable(gaussians, options)
    return scene.with_sh_degree(min(scene.sh_degree, _MAX_SH_DEGREE))


def _level(options: WriteOptions) -> int:
    return _LEVELS[0] if options.version is None else options.version


def write(gaussians: Gaussians, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """Write a `.ksplat` file of level 1; `options.version` names another.

    Returns:
        What the quality leaves out.

    Raises:
        ParameterError: positions are further apart than float32 can say.
    """
    level = _level(options)
    scene, lost = reduced(gaussians, options, _MAX_SH_DEGREE, lambda scene: _copy(scene, level))
    _write(scene, file, level)
    return lost


def _copy(scene: Gaussians, level: int) -> Gaussians:
    """What a reader makes of `scene`."""
    file = io.BytesIO()
    _write(scene, file, level)
    file.seek(0)
    return read_stream(file)


def _write(scene: Gaussians, file: BinaryIO, level: int) -> None:
    box = (scene.means.min(axis=0), scene.means.max(axis=0)) if len(scene) else None
    buckets = _bucketed(scene.means, _importance(scene)) if level else None
    layout = _Layout(len(scene), level, scene.sh_degree, box, _sh_reach(scene), buckets)
    layout.write_heads(file)
    if buckets is not None:
        scene = scene.selected(buckets.order)
    for rows in row_blocks(len(scene)):
        file.write(layout.records(scene.selected(rows), np.arange(rows.start, rows.stop)).view(np.uint8).data)


class _Layout:
    """What records depend on.

    Args:
        box: corners of all positions, None without any. reach: of harmonics. buckets: from level 1 on.
    """

    def __init__(
        self,
        count: int,
        level: int,
        sh_degree: int,
        box: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
        reach: float,
        buckets: _Buckets | None,
    ) -> None:
        self.count, self.level, self.sh_degree, self.reach, self.buckets = count, level, sh_degree, reach, buckets
        self.middle = [0.0] * 3 if box is None else (box[0] / 2 + box[1] / 2).tolist()
        self.dtype = _record(level, sh_degree)
        self.columns = np.argsort(_sh_columns(sh_degree))
        self.ends = None if buckets is None else np.cumsum(buckets.lengths)

    def write_heads(self, file: BinaryIO) -> None:
        """All that is before the records."""
        lengths, centers, block_size, offset_range = np.empty(0, np.int64), np.empty((0, 3), np.float32), 5.0, 1
        if self.buckets is not None:
            lengths, centers, block_size = self.buckets.lengths, self.buckets.centers, self.buckets.block_size
            offset_range = _OFFSET_RANGE
        full, count, level = int((lengths == _BUCKET_GAUSSIANS).sum()), self.count, self.level
        header = _HEADER.pack(0, 1, 0, 1, 1, count, count, level, 0, *self.middle, -self.reach, self.reach)
        section = _SECTION.pack(
            *(count, count, _BUCKET_GAUSSIANS if level else 0, len(lengths), block_size, 12 if level else 0, 0),
            *(offset_range, 0, full, len(lengths) - full, self.sh_degree),
        )
        file.write(header.ljust(_HEADER_BYTES, b"\0"))
        file.write(section.ljust(_SECTION_BYTES, b"\0"))
        file.write(lengths[full:].astype("<u4").tobytes())
        file.write(centers.astype("<f4").tobytes())

    def records(self, scene: Gaussians, places: npt.NDArray[np.intp]) -> npt.NDArray[np.void]:
        """Rows as they are in the file, where they are at `places`."""
        block = np.empty(len(scene), self.dtype)
        largest = float(np.finfo(_FLOAT_TYPES[self.level]).max)
        if self.buckets is not None:
            assert self.ends is not None
            centers = self.buckets.centers[np.searchsorted(self.ends, places, side="right")]
            offsets = scene.means.astype(np.float64) - centers
            codes = np.rint(offsets * (2 * _OFFSET_RANGE / self.buckets.block_size)) + _OFFSET_RANGE
            block["mean"] = np.clip(codes, 0, 2 * _OFFSET_RANGE + 1)
        else:
            block["mean"] = scene.means
        with np.errstate(over="ignore"):
            block["scale"] = np.minimum(np.exp(scene.scales.astype(np.float64)), largest)
        block["quat"] = scene.normalized_quats()
        block["rgba"][:, :3] = rounded(scene.sh0[:, 0], 255 * SH_C0, 127.5, 0, 255, np.uint8)
        block["rgba"][:, 3] = alpha_bytes(scene.opacities)
        if len(self.columns):
            values = scene.shN.reshape(len(block), -1)[:, self.columns]
            if self.level == 2:
                block["sh"] = rounded(values, 127.5 / self.reach, 127.5, 0, 255, np.uint8)
            else:
                block["sh"] = np.clip(values, -largest, largest)
        return block


def write_blocks(blocks: Blocks, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write` without a quality, from blocks, which are read twice: ranges and order first, then records.

    From level 1 on the records are held, 24 to 72 bytes a Gaussian, as they are written in another order.

    Raises:
        ParameterError: positions are further apart than float32 can say.
    """
    level = _level(options)
    degree = min(blocks.sh_degree, _MAX_SH_DEGREE)
    tally = Tally(lambda scene: _losses(scene.replaced(metadata=blocks.metadata), options))
    means = np.empty((blocks.num_gaussians if level else 0, 3), np.float32)
    importance = np.empty(len(means))
    low, high = np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32)
    reach, count = 0.0, 0
    for block in blocks.rows():
        scene = tally.drawable(block).with_sh_degree(degree)
        if not len(scene):
            continue
        low, high = np.minimum(low, scene.means.min(axis=0)), np.maximum(high, scene.means.max(axis=0))
        reach = max(reach, float(np.abs(scene.shN).max(initial=0.0)))
        if level:
            rows = slice(count, count + len(scene))
            means[rows], importance[rows] = scene.means, _importance(scene)
        count += len(scene)
    buckets = _bucketed(means[:count], importance[:count]) if level else None
    del means, importance
    layout = _Layout(count, level, degree, (low, high) if count else None, _sh_range(reach), buckets)
    layout.write_heads(file)
    if buckets is None:
        first = 0
        for block in blocks.rows():
            scene = block.cleaned()[0].with_sh_degree(degree)
            file.write(layout.records(scene, np.arange(first, first + len(scene))).view(np.uint8).data)
            first += len(scene)
        return tally.sentences()
    places = np.empty(count, np.intp)
    places[buckets.order] = np.arange(count)
    records = np.empty(count, layout.dtype)
    first = 0
    for block in blocks.rows():
        scene = block.cleaned()[0].with_sh_degree(degree)
        here = places[first : first + len(scene)]
        records[here] = layout.records(scene, here)
        first += len(scene)
    for part in row_blocks(count):
        file.write(records[part].view(np.uint8).data)
    return tally.sentences()


def _losses(gaussians: Gaussians, options: WriteOptions) -> list[str]:
    level = _level(options)
    scene = _held(gaussians, options)
    real = np.finfo(_FLOAT_TYPES[level])
    largest, smallest = float(real.max), float(real.tiny)
    bytes_ = "colours, opacities and harmonics" if level == 2 and scene.sh_degree else "colours and opacities"
    halves = "positions to 16 bits in their bucket, the rest to half floats, "
    precision = f"values rounded: {halves if level else ''}{bytes_} to 8 bits{'; order changed' if level else ''}"
    return [
        *lost_bands(gaussians, _MAX_SH_DEGREE),
        *lost_extras(gaussians),
        *lost_metadata(gaussians, ()),
        *lost_gaussians(gaussians, options),
        *out_of_range("log scales", scene.scales, float(np.log(smallest)), float(np.log(largest))),
        *out_of_range("colours", 0.5 + SH_C0 * scene.sh0, -0.5 / 255, 1 + 0.5 / 255),
        *(out_of_range("spherical harmonics", scene.shN, -largest, largest) if level < 2 else ()),
        precision,
    ]


def _error_bounds(gaussians: Gaussians, options: WriteOptions) -> ErrorBounds:
    level = _level(options)
    scene = _held(gaussians, options)
    half = 2.0**-11  # a half float's largest relative error
    return ErrorBounds(
        means=_bucketed(scene.means, _importance(scene)).block_size / 4 / _OFFSET_RANGE if level else 0.0,
        scales=half if level else 2e-6,
        alphas=0.5 / 255,
        colours=0.5 / 255,
        quats=half if level else 0.0,
        shN=(0.0, half * float(np.abs(scene.shN).max(initial=0.0)), _sh_reach(scene) / 255)[level],
        max_sh_degree=_MAX_SH_DEGREE,
    )


def _sniff(head: bytes, path: Path) -> bool:
    # There is no magic: version 0.1, two unused bytes, and counts that agree have to do.
    if len(head) < _HEADER_BYTES or head[:4] != b"\0\x01\0\0":
        return False
    _, _, _, max_sections, num_sections, max_count, count, level, *_ = _HEADER.unpack_from(head)
    return bool(num_sections <= max_sections <= _MAX_SECTIONS and count <= max_count and level <= 2)


FORMAT = Format(
    name="ksplat",
    title=".ksplat (GaussianSplats3D)",
    suffixes=(".ksplat",),
    read=read,
    write=write,
    sniff=_sniff,
    losses=_losses,
    error_bounds=_error_bounds,
    versions=_LEVELS,
    takes_quality=True,
    open_blocks=open_blocks,
    write_blocks=write_blocks,
)
