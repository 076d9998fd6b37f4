"""PlayCanvas compressed PLY: 16 bytes a Gaussian plus SH bytes, in chunks of 256 that state their ranges.

Elements `chunk` (18 floats, 12 in old files), `vertex` (four packed uints) and optionally `sh` (bytes). Facts:
playcanvas/splat-transform `compressed-chunk.ts` and `decompress-ply.ts`, playcanvas/engine
`gsplat-compressed-data.js`.
"""

from __future__ import annotations

import contextlib
import io
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
from ._losses import Tally, drawable, lost_extras, lost_gaussians, out_of_range
from ._order import compact_chunks
from ._packing import (
    MAX_SH_REST,
    alpha_bytes,
    logits_of_alpha_bytes,
    quats_of_smallest_three,
    rounded,
    row_blocks,
    smallest_three,
    warn_degree_4,
)
from ._quality import reduced
from ._records import file_size, read_blocks
from .base import BLOCK_ROWS, DEFAULT_OPTIONS, Blocks, ErrorBounds, Format, WriteOptions
from .ply import (
    PlyElement,
    PlyHeader,
    comments_metadata,
    is_compressed,
    lost_in_comments,
    metadata_comments,
    read_header,
    sh_rest_count,
    sniff_header,
)

__all__ = ["CHUNK_GAUSSIANS", "FORMAT", "read", "read_stream", "write"]

CHUNK_GAUSSIANS = 256
_AXES = "xyz"
# Each (minimum names, maximum names) of a chunk: positions, log scales, colours.
_RANGES = [
    ([f"min_{a}" for a in _AXES], [f"max_{a}" for a in _AXES]),
    ([f"min_scale_{a}" for a in _AXES], [f"max_scale_{a}" for a in _AXES]),
    ([f"min_{c}" for c in "rgb"], [f"max_{c}" for c in "rgb"]),
]
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
# (shift, bits) of x, y, z in a packed position or scale, and of r, g, b in a packed colour.
_XYZ_FIELDS = ((21, 11), (11, 10), (0, 11))
_RGB_FIELDS = ((24, 8), (16, 8), (8, 8))
_FIELDS = {"mean": _XYZ_FIELDS, "scale": _XYZ_FIELDS, "colour": _RGB_FIELDS}
# The encoder clamps log scales to this before it takes their range.
_SCALE_CLAMP = 20.0


def _unorm(words: npt.NDArray[np.uint32], fields: tuple[tuple[int, int], ...]) -> npt.NDArray[np.float32]:
    """(N, 3) values 0..1 of three bit fields."""
    out = np.empty((len(words), len(fields)), np.float32)
    for i, (shift, bits) in enumerate(fields):
        full = (1 << bits) - 1
        np.multiply((words >> np.uint32(shift)) & np.uint32(full), np.float32(1 / full), out=out[:, i])
    return out


def _sh_table() -> npt.NDArray[np.float32]:
    """Value of each SH byte: bucket centres over -4..4, except that 0 and 255 are the ends."""
    unit = (np.arange(256) + 0.5) / 256
    unit[0], unit[255] = 0, 1
    return ((unit - 0.5) * 8).astype(np.float32)


def _check_elements(header: PlyHeader, limits: Limits, size_bytes: int) -> tuple[PlyElement, PlyElement, int]:
    """The chunk and vertex elements and the number of SH columns, when all counts agree with the file's size."""
    if header.format == "ascii":
        raise UnsupportedError("ascii compressed PLY is not supported", chunk="header")
    if not is_compressed(header):
        raise FormatError("not a compressed PLY: element 'chunk' or property 'packed_position' is missing", offset=0)
    names = [element.name for element in header.elements]
    if names not in (["chunk", "vertex"], ["chunk", "vertex", "sh"]):
        raise UnsupportedError(f"elements {', '.join(names)}, expected chunk, vertex and perhaps sh", chunk="header")
    chunk, vertex = header.elements[:2]
    colour_names = [name for ends in _RANGES[2] for name in ends]
    needed = [name for group in _RANGES[:2] for ends in group for name in ends]
    if not set(colour_names).isdisjoint(chunk.names):
        needed += colour_names
    for element, wanted, kind in ((chunk, needed, "f"), (vertex, list(_PACKED), "u")):
        for name in wanted:
            prop = next((prop for prop in element.properties if prop.name == name), None)
            if prop is None:
                raise FormatError(f"property {name} is missing", chunk=element.name)
            if prop.dtype != np.dtype(f"{kind}4") or prop.count_dtype is not None:
                raise FormatError(f"property {name} has the wrong type", chunk=element.name)
    if any(element.has_lists for element in header.elements):
        raise UnsupportedError("list properties are not supported in a compressed PLY", chunk="header")
    limits.check_gaussians(vertex.count, chunk="vertex")
    if chunk.count != -(-vertex.count // CHUNK_GAUSSIANS):
        raise FormatError(f"{chunk.count} chunks of 256 for {vertex.count} vertices", chunk="chunk")
    num_sh = 0
    if len(header.elements) == 3:
        sh = header.elements[2]
        num_sh = sh_rest_count(sh.names)
        if sh.count != vertex.count or num_sh != len(sh.names):
            raise FormatError(f"{sh.count} rows of {len(sh.names)} SH bytes do not fit the vertices", chunk="sh")
        if any(prop.dtype != np.dtype("u1") for prop in sh.properties):
            raise FormatError("SH values are not uchar", chunk="sh")
    need_bytes = header.data_offset + sum(element.count * element.row_bytes for element in header.elements)
    if size_bytes < need_bytes:
        raise TruncatedError(f"the header promises {need_bytes} bytes, the file has {size_bytes}", offset=size_bytes)
    if size_bytes > need_bytes:
        raise FormatError(f"{size_bytes - need_bytes} bytes after the last declared row", offset=need_bytes)
    limits.check_bytes(vertex.count * (4 * (14 + min(num_sh, 3 * MAX_SH_REST)) + vertex.row_bytes), "the scene")
    return chunk, vertex, num_sh


def _chunk_ranges(table: npt.NDArray[Any]) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """(minimum, extent), each (C, 3), of positions, log scales and colours."""
    ranges = []
    for group, (low_names, high_names) in enumerate(_RANGES):
        if low_names[0] in (table.dtype.names or ()):
            low, high = (np.stack([table[n] for n in ns], 1).astype(np.float32) for ns in (low_names, high_names))
        else:  # old files have no colour range
            low, high = (np.full((len(table), 3), value, np.float32) for value in (0, 1))
        if group == 1:
            low, high = (np.clip(ends, -_SCALE_CLAMP, _SCALE_CLAMP) for ends in (low, high))
        with np.errstate(over="ignore", invalid="ignore"):
            ranges.append((low, high - low))
    return ranges


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a PlayCanvas compressed PLY.

    Each value is off by up to half a step of its chunk's range: 1/2047 (x, z) or 1/1023 (y) of the box for positions
    and log scales, 1/255 for colours and alpha, 1/1023 of sqrt(2) for quaternion components, 1/32 for SH.

    Raises:
        FormatError: damaged, or its counts do not agree; TruncatedError if it ends early.
        UnsupportedError: ascii, or elements of other names.
        LimitExceededError: more than `limits` allows.
    """
    with open_for_reading(path) as handle:
        return read_stream(handle, limits)


def read_stream(handle: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """`read` for an open file, also one in memory."""
    file = _open(handle, limits)
    scene = _read_rows(file, slice(0, file.vertex.count))
    return scene.replaced(metadata=comments_metadata(file.header))


@contextlib.contextmanager
def open_blocks(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Blocks]:
    """`read`, block by block; only the ranges of the chunks are held."""
    with open_for_reading(path) as handle:
        file = _open(handle, limits)

        def rows() -> Iterator[Gaussians]:
            for part in row_blocks(file.vertex.count, BLOCK_ROWS):
                yield _read_rows(file, part)

        extras: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
        extras = {prop.name: (prop.dtype, ()) for prop in file.vertex.properties if prop.name not in _PACKED}
        degree = {0: 0, 3: 1, 8: 2, 15: 3}[min(file.num_sh // 3, MAX_SH_REST)]
        yield Blocks(file.vertex.count, degree, rows, extras, comments_metadata(file.header))


@dataclass(frozen=True)
class _File:
    """An open file: its header, the ranges of its chunks, and where the rows of its other elements begin."""

    handle: BinaryIO
    header: PlyHeader
    vertex: PlyElement
    num_sh: int
    ranges: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    vertex_offset: int
    sh_offset: int


def _open(handle: BinaryIO, limits: Limits) -> _File:
    header = read_header(handle, limits)
    chunk, vertex, num_sh = _check_elements(header, limits, file_size(handle))
    order = header.byte_order
    chunk_rows = [np.array(block) for _, block in read_blocks(handle, chunk.row_dtype(order), chunk.count)]
    table = np.concatenate(chunk_rows) if chunk_rows else np.empty(0, chunk.row_dtype(order))
    start = handle.tell()
    if num_sh // 3 > MAX_SH_REST:
        warn_degree_4(vertex.count)
    return _File(handle, header, vertex, num_sh, _chunk_ranges(table), start, start + vertex.count * vertex.row_bytes)


def _read_rows(file: _File, part: slice) -> Gaussians:
    """Some of the rows, which begin with a chunk."""
    count, handle, vertex, ranges = part.stop - part.start, file.handle, file.vertex, file.ranges
    means, scales = (np.empty((count, 3), np.float32) for _ in range(2))
    quats = np.empty((count, 4), np.float32)
    sh0 = np.empty((count, 1, 3), np.float32)
    opacities = np.empty(count, np.float32)
    extras = {prop.name: np.empty(count, prop.dtype) for prop in vertex.properties if prop.name not in _PACKED}
    handle.seek(file.vertex_offset + part.start * vertex.row_bytes)
    for rows, block in read_blocks(handle, vertex.row_dtype(file.header.byte_order), count, chunk="vertex"):
        position, rotation, scale, colour = (block[name].astype(np.uint32) for name in _PACKED)
        of_chunk = np.arange(part.start + rows.start, part.start + rows.stop) // CHUNK_GAUSSIANS
        with np.errstate(over="ignore", invalid="ignore"):
            for out, words, fields, (low, extent) in (
                (means[rows], position, _XYZ_FIELDS, ranges[0]),
                (scales[rows], scale, _XYZ_FIELDS, ranges[1]),
                (sh0[rows, 0], colour, _RGB_FIELDS, ranges[2]),
            ):
                np.multiply(_unorm(words, fields), extent[of_chunk], out=out)
                out += low[of_chunk]
            sh0[rows] = (sh0[rows] - np.float32(0.5)) / np.float32(SH_C0)
        kept = _unorm(rotation, ((20, 10), (10, 10), (0, 10)))
        kept -= np.float32(0.5)
        kept *= np.float32(np.sqrt(2))
        quats_of_smallest_three(rotation >> np.uint32(30), kept, quats[rows])
        for name, values in extras.items():
            values[rows] = block[name]
        opacities[rows] = logits_of_alpha_bytes((colour & np.uint32(255)).astype(np.uint8))

    shN = None
    if file.num_sh:
        per_channel = file.num_sh // 3
        num_rest = min(per_channel, MAX_SH_REST)
        names = file.header.elements[2].names
        columns = [names.index(f"f_rest_{c * per_channel + k}") for k in range(num_rest) for c in range(3)]
        shN = np.empty((count, num_rest, 3), np.float32)
        flat = shN.reshape(count, 3 * num_rest)
        sh_table = _sh_table()
        handle.seek(file.sh_offset + part.start * file.num_sh)
        for rows, block in read_blocks(handle, np.dtype(("u1", (file.num_sh,))), count, chunk="sh"):
            flat[rows] = sh_table[block[:, columns]]
    return Gaussians(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        sh0=sh0,
        shN=shN,  # type: ignore[arg-type]
        extras=extras,
    )


# --------------------------------------------------------------------------------------------------------- writing

# Steps of x and z are half as long as those of y in a box of equal sides.
_AXIS_WEIGHTS = (1.0, 2.0, 1.0)
# SH bytes decode to the centres of 256 buckets.
_SH_LIMIT = 4.0


def _chunked(scene: Gaussians) -> Gaussians:
    """What is written, in chunks; bands that are zero throughout are left out, as zero itself has no code."""
    degree = scene.sh_degree
    while len(scene) and degree and not scene.shN[:, num_sh_coefficients(degree - 1) - 1 :].any():
        degree -= 1
    scene = scene.with_sh_degree(degree)
    return scene.selected(compact_chunks(scene.means, _importance(scene), CHUNK_GAUSSIANS, _AXIS_WEIGHTS))


def _importance(scene: Gaussians) -> npt.NDArray[np.float64]:
    """(N,) of an error of a position, which shows the more the smaller the Gaussian."""
    sizes = np.clip(scene.scales.mean(axis=1, dtype=np.float64), -_SCALE_CLAMP, _SCALE_CLAMP)
    return np.asarray(np.exp(sizes * -2))


def _pack(
    values: npt.NDArray[np.float32], fields: tuple[tuple[int, int], ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32]]:
    """Pack (N, 3) values in the range of their chunk.

    Returns:
        (ends, words): (C, 2, 3) minimum and maximum of each chunk; (N,) the three fields.
    """
    starts = np.arange(0, len(values), CHUNK_GAUSSIANS)
    ends = np.empty((len(starts), 2, 3), np.float32)
    words = np.empty(len(values), np.uint32)
    if len(starts):
        np.minimum.reduceat(values, starts, axis=0, out=ends[:, 0])
        np.maximum.reduceat(values, starts, axis=0, out=ends[:, 1])
    with np.errstate(over="ignore"):
        if not np.isfinite(ends[:, 1] - ends[:, 0]).all():
            raise ParameterError("256 Gaussians lie further apart than float32 can say")
    for rows in row_blocks(len(values)):  # which hold whole chunks
        of_chunk = np.arange(rows.start, rows.stop) // CHUNK_GAUSSIANS
        low, high = ends[of_chunk].astype(np.float64).transpose(1, 0, 2)
        extent = high - low
        unit = (values[rows] - low) / np.where(extent > 0, extent, 1)
        word = np.zeros(len(unit), np.uint32)
        for i, (shift, bits) in enumerate(fields):
            word |= np.rint(unit[:, i] * ((1 << bits) - 1)).astype(np.uint32) << np.uint32(shift)
        words[rows] = word
    return ends, words


def write(gaussians: Gaussians, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """Write a PlayCanvas compressed PLY.

    Its chunks of 256 Gaussians get boxes as small as can be, which is what positions are rounded in.

    Returns:
        What the quality leaves out.

    Raises:
        ParameterError: a chunk is wider than float32 can say.
    """
    scene, lost = reduced(gaussians, options, copy=_copy)
    _write(scene, file)
    return lost


def _copy(scene: Gaussians) -> Gaussians:
    """What a reader makes of `scene`."""
    file = io.BytesIO()
    _write(scene, file)
    file.seek(0)
    return read_stream(file)


def _write(scene: Gaussians, file: BinaryIO) -> None:
    scene = _chunked(scene)
    packed = np.empty(len(scene), _HELD)
    sh = np.empty((len(scene), 3 * scene.shN.shape[1]), np.uint8)
    for rows in row_blocks(len(scene)):
        packed[rows], sh[rows] = _held(scene.selected(rows))
    _write_packed(packed, sh, scene, file)


# What of a Gaussian does not depend on its chunk is packed; the rest is float32 until its chunk is known.
_HELD = np.dtype([("mean", "f4", 3), ("scale", "f4", 3), ("colour", "f4", 3), ("rotation", "u4"), ("alpha", "u1")])


def _held(scene: Gaussians) -> tuple[npt.NDArray[np.void], npt.NDArray[np.uint8]]:
    """(N,) rows of `_HELD`, and (N, 3 K) codes of harmonics, channel by channel."""
    held = np.empty(len(scene), _HELD)
    held["mean"] = scene.means
    held["scale"] = np.clip(scene.scales, -_SCALE_CLAMP, _SCALE_CLAMP)
    held["colour"] = np.float32(0.5) + np.float32(SH_C0) * scene.sh0[:, 0]
    largest, kept = smallest_three(scene.quats)
    rotation = largest.astype(np.uint32) << np.uint32(30)
    for i, code in enumerate(rounded(kept, 1023 / np.sqrt(2), 1023 / 2, 0, 1023, np.uint32).T):
        rotation |= code << np.uint32(20 - 10 * i)
    held["rotation"], held["alpha"] = rotation, alpha_bytes(scene.opacities)
    # The centre of bucket b is (b + 1/2) / 32 - 4.
    sh = scene.shN.transpose(0, 2, 1).reshape(len(scene), 3 * scene.shN.shape[1])
    return held, rounded(sh, 32, 127.5, 0, 255, np.uint8)


def _write_packed(held: npt.NDArray[np.void], sh: npt.NDArray[np.uint8], head: Gaussians, file: BinaryIO) -> None:
    """Write rows in the order of the file; the metadata are those of `head`."""
    ranges, words = zip(*(_pack(held[name], fields) for name, fields in _FIELDS.items()))
    chunks = np.concatenate([ends.reshape(-1, 6) for ends in ranges], axis=1)
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {comment}" for comment in metadata_comments(head)]
    lines += [f"element chunk {len(chunks)}"]
    lines += [f"property float {name}" for group in _RANGES for names in group for name in names]
    lines += [f"element vertex {len(held)}", *(f"property uint {name}" for name in _PACKED)]
    if sh.shape[1]:
        lines += [f"element sh {len(sh)}", *(f"property uchar f_rest_{i}" for i in range(sh.shape[1]))]
    file.write("\n".join([*lines, "end_header\n"]).encode("utf-8", "replace"))
    file.write(chunks.astype("<f4").data)
    for rows in row_blocks(len(held)):
        colours = words[2][rows] | held["alpha"][rows].astype(np.uint32)
        packed = np.stack([words[0][rows], held["rotation"][rows], words[1][rows], colours], axis=1)
        file.write(packed.astype("<u4").tobytes())
    for rows in row_blocks(len(sh)):
        file.write(sh[rows].tobytes())


def write_blocks(blocks: Blocks, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write` without a quality, from blocks: 41 bytes a Gaussian and its codes of harmonics are held for the chunks.

    Raises:
        ParameterError: a chunk is wider than float32 can say.
    """
    head = blocks.head()
    tally = Tally(lambda scene: _losses(scene, options))
    held = np.empty(blocks.num_gaussians, _HELD)
    sh = np.empty((blocks.num_gaussians, 3 * head.shN.shape[1]), np.uint8)
    importance = np.empty(blocks.num_gaussians)
    count = degree = 0
    for block in blocks.rows():
        scene = tally.drawable(block)
        rows = slice(count, count + len(scene))
        held[rows], sh[rows] = _held(scene)
        importance[rows] = _importance(scene)
        while degree < scene.sh_degree and scene.shN[:, num_sh_coefficients(degree) - 1 :].any():
            degree += 1
        count = rows.stop
    # Bands that are zero throughout are left out, as zero itself has no code.
    per_channel, kept = head.shN.shape[1], num_sh_coefficients(degree) - 1
    if kept < per_channel and count:
        sh = np.ascontiguousarray(sh.reshape(-1, 3, per_channel)[:, :, :kept]).reshape(-1, 3 * kept)
    order = compact_chunks(held["mean"][:count], importance[:count], CHUNK_GAUSSIANS, _AXIS_WEIGHTS)
    del importance
    _write_packed(held[order], sh[order], head, file)
    return [*tally.sentences(), *lost_in_comments(head)]


def _losses(gaussians: Gaussians, options: WriteOptions) -> list[str]:
    scene = drawable(gaussians, options)
    return [
        *lost_extras(gaussians),
        *lost_in_comments(gaussians),
        *lost_gaussians(gaussians, options),
        *out_of_range("log scales", scene.scales, -_SCALE_CLAMP, _SCALE_CLAMP),
        *out_of_range("spherical harmonics", scene.shN, -_SH_LIMIT - 1 / 64, _SH_LIMIT + 1 / 64),
        "values rounded: positions, scales and colours to 8 to 11 bits of their range in a chunk, opacities to 8 bits"
        + (", harmonics to 1/32" if scene.sh_degree else "")
        + "; order changed",
    ]


def _error_bounds(gaussians: Gaussians, options: WriteOptions) -> ErrorBounds:
    scene = _chunked(drawable(gaussians, options))

    def half_step(values: npt.NDArray[np.float32], fields: tuple[tuple[int, int], ...]) -> float:
        ends, _ = _pack(values, fields)
        extents = (ends[:, 1] - ends[:, 0]).max(axis=0, initial=0)
        return max(0.5 * float(extent) / ((1 << bits) - 1) for extent, (_, bits) in zip(extents, fields))

    return ErrorBounds(
        means=half_step(scene.means, _XYZ_FIELDS),
        scales=half_step(np.clip(scene.scales, -_SCALE_CLAMP, _SCALE_CLAMP), _XYZ_FIELDS),
        alphas=0.5 / 255,
        colours=half_step(SH_C0 * scene.sh0[:, 0], _RGB_FIELDS),
        quats=3 * np.sqrt(2) / 1023 / 2 + 1e-5,
        shN=1 / 64,
    )


FORMAT = Format(
    name="compressed-ply",
    title="PlayCanvas compressed PLY",
    suffixes=(".compressed.ply",),
    read=read,
    write=write,
    sniff=lambda head, path: sniff_header(head) == "compressed",
    losses=_losses,
    error_bounds=_error_bounds,
    takes_quality=True,
    open_blocks=open_blocks,
    write_blocks=write_blocks,
)
