"""Lossless scenes and side arrays: a PLY's columns, coded so that every bit comes back (SPEC.md, section 4).

PLY table -> header and trailing bytes -> PLYH
          -> columns -> stages.lossless -> COLD, COLS
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..bitstream.container import Chunk, ChunkEntry, Container, read_varint, write_varint
from ..errors import FormatError, SplatCodecError, TruncatedError
from ..files import PathLike, atomic_write
from ..formats import detect, ply
from ..formats import read as read_format
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ..stages.lossless import BLOCK_ROWS, block_counts, decode_columns, encode_columns, spatial_order
from ..stages.lossless_boxes import Boxes
from .decoder import check_counts, worker_count

__all__ = [
    "HashingFile",
    "column_chunks",
    "decode_extras",
    "decode_gaussians",
    "decode_table",
    "encode_extras",
    "encode_table",
    "extras_layout",
    "read_columns",
    "table_of_source",
    "write_ply",
]

Progress = Callable[[str, float], None]
Columns = Mapping[str, npt.NDArray[Any]]


def table_of_source(source: Gaussians | PathLike, extras: bool, limits: Limits) -> tuple[ply.PlyTable, int, list[str]]:
    """The PLY table to code, the bytes of the input, and what differs from it, for people.

    A PLY keeps its own header, columns and trailing bytes; anything else becomes the table that writing it as a PLY
    gives, which holds the same floats.
    """
    notes: list[str] = []
    if not isinstance(source, Gaussians):
        size_bytes = os.path.getsize(source)
        if not os.path.isdir(source) and detect(source).name == "ply":
            table = ply.read_table(source, limits)
            if table.header.format == "ascii":
                notes.append("ascii PLY: values come back exactly, their text may be spelled otherwise")
            return table, size_bytes, notes
        source = read_format(source, limits=limits)
        notes.append("not a PLY: its decoded values are kept exactly, as the columns of a PLY")
    else:
        size_bytes = source.array_bytes
    if source.extras and not extras:
        notes.append(f"side arrays dropped: {', '.join(source.extras)}")
        source = source.replaced(extras={})
    return ply.table_of(source), size_bytes, notes


def encode_table(
    table: ply.PlyTable, *, reorder: bool = False, threads: int | None = None, progress: Progress | None = None
) -> list[Chunk]:
    """The PLYH, COLD and COLS chunks of a table.

    Args:
        reorder: sort the rows along a Morton curve first; their order is not kept.
    """
    columns: Columns = table.columns
    if reorder and all(name in columns for name in "xyz"):
        order = spatial_order(*(np.asarray(columns[name]) for name in "xyz"))
        columns = {name: values[order] for name, values in columns.items()}
    if progress:
        progress("lossless", 0.0)
    header = table.header.header_bytes
    packed = zlib.compress(header + table.trailing, 9)
    head = write_varint(len(header)) + write_varint(len(table.trailing)) + packed
    chunks = [Chunk("PLYH", head), *column_chunks(columns, threads)]
    if progress:
        progress("lossless", 1.0)
    return chunks


def column_chunks(
    columns: Columns, threads: int | None, mixing: bool = False, boxes: Boxes | None = None, level: int = 0
) -> list[Chunk]:
    """The COLD and COLS chunks of columns, the table `level`; `mixing` and `boxes` as in `encode_columns`."""
    description, blocks = encode_columns(columns, threads=threads, mixing=mixing, boxes=boxes)
    rows = len(next(iter(columns.values()))) if columns else 0
    chunks = [Chunk("COLD", description, level=level)]
    for k, (block, count) in enumerate(zip(blocks, block_counts(rows))):
        # The container's bound on Gaussians a byte holds for these chunks too.
        chunks.append(
            Chunk("COLS", block + bytes(max(0, -(-count // 8) - len(block))), level=level, tile=k, count=count)
        )
    return chunks


def read_columns(
    container: Container, limits: Limits, threads: int | None, boxes: Boxes | None = None, level: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """The columns of a file's COLD and COLS chunks of the table `level`; `boxes` as the encoder had them.

    Raises:
        SplatCodecError: they are damaged.
    """
    return next(column_parts(container, limits, threads, boxes, level, most=None))


def column_parts(
    container: Container,
    limits: Limits,
    threads: int | None,
    boxes: Boxes | None = None,
    level: int = 0,
    *,
    most: int | None,
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """`read_columns` in parts, each of the rows of at most `most` blocks; None = all at once, once.

    `boxes` are for all at once.
    """
    described = [entry for entry in container.of_type("COLD") if entry.level == level]
    if len(described) != 1:
        raise FormatError(
            f"{len(described)} COLD chunks of level {level}, expected one", file=container.name, chunk="COLD"
        )
    cold = described[0]
    entries = [entry for entry in container.of_type("COLS") if entry.level == level]
    if level == 0:
        check_counts(container, entries, limits)
    else:
        limits.check_gaussians(sum(entry.count for entry in entries), file=container.name)
    description: bytes | None = None
    for first in range(0, max(len(entries), 1), most or max(len(entries), 1)):
        part = entries[first : first + most] if most else entries
        try:
            description = container.read(cold) if description is None else description
            blocks = [container.read(entry) for entry in part]
            names, counts = [entry.label for entry in part], [entry.count for entry in part]
            columns = decode_columns(description, blocks, counts, threads, limits, names, boxes)
        except SplatCodecError as error:
            if error.file is None:  # offsets inside a chunk become offsets in the file
                entry = next((entry for entry in part if entry.label == error.chunk), cold)
                error.offset = entry.offset + (error.offset or 0)
            raise error.locate(file=container.name, chunk=cold.label) from None
        yield columns


def _read_head(container: Container, limits: Limits) -> tuple[ply.PlyHeader, bytes]:
    entry = container.one("PLYH")
    try:
        return _parse_head(container, entry, limits)
    except SplatCodecError as error:
        if error.chunk is None:
            error.offset = entry.offset + (error.offset or 0)
        raise error.locate(file=container.name, chunk="PLYH") from None


def _parse_head(container: Container, entry: ChunkEntry, limits: Limits) -> tuple[ply.PlyHeader, bytes]:
    payload = container.read(entry)
    header_length, at = read_varint(payload, 0)
    trailing_length, at = read_varint(payload, at)
    total = header_length + trailing_length
    if header_length > limits.max_header_bytes or total > 1100 * len(payload) + 64:
        raise FormatError(f"a PLY header of {header_length} bytes and {trailing_length} more", offset=0)
    limits.check_bytes(total, "the PLY header")
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(payload[at:], total + 1)
    except zlib.error as error:
        raise FormatError(f"the PLY header is damaged: {error}", offset=at) from None
    if len(text) < total:
        raise TruncatedError("the PLY header is cut off", offset=at)
    if len(text) > total or not inflate.eof or inflate.unused_data:
        raise FormatError("the PLY header is longer than it says", offset=at)
    header = ply.parse_header(text[:header_length])
    if header.data_offset != header_length:
        raise FormatError("the PLY header ends early", offset=at)
    return header, text[header_length:]


def decode_table(container: Container, limits: Limits = DEFAULT_LIMITS, threads: int | None = None) -> ply.PlyTable:
    """The table of a lossless scene.

    Raises:
        SplatCodecError: the file is damaged.
    """
    header, trailing = _read_head(container, limits)
    columns = read_columns(container, limits, threads)
    return ply.PlyTable(header, _as_stated(container, header, columns), trailing)


def _as_stated(
    container: Container, header: ply.PlyHeader, columns: dict[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """The columns, of some of the rows or all, if they are those of the header; in this machine's byte order."""
    vertex = header.element("vertex")
    if vertex is None:
        raise FormatError("the PLY header has no vertices", file=container.name, chunk="PLYH")
    # The number of rows of all chunks is known to be that of the container.
    if tuple(columns) != vertex.names or container.num_gaussians != vertex.count:
        raise FormatError("the columns are not those of the PLY header", file=container.name, chunk="COLD")
    for prop in vertex.properties:
        if columns[prop.name].dtype.newbyteorder("=") != prop.dtype:
            raise FormatError(f"column {prop.name} has another type than its header says", file=container.name)
    return {name: values.astype(values.dtype.newbyteorder("="), copy=False) for name, values in columns.items()}


def decode_gaussians(
    container: Container,
    metadata: Mapping[str, Any],
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Gaussians:
    """The Gaussians of a lossless scene.

    Raises:
        SplatCodecError: damaged, or the columns are not those of Gaussians.
    """
    table = decode_table(container, limits, threads)
    try:
        gaussians = ply.gaussians_of(table, limits)
    except SplatCodecError as error:
        raise error.locate(file=container.name) from None
    if progress:
        progress("decode", 1.0)
    return replace(gaussians, metadata={**gaussians.metadata, **metadata})


def write_ply(
    container: Container,
    metadata: Mapping[str, Any],
    path: PathLike,
    overwrite: bool,
    limits: Limits,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write the PLY of a lossless scene and say whether it is the source's, byte for byte.

    Returns:
        `identical`: True, False, or None where the source's checksum is not in the file; `differs`: what does.
    """
    header, trailing = _read_head(container, limits)
    most = worker_count(threads)  # blocks in memory
    done = 0

    def parts() -> Iterator[dict[str, npt.NDArray[Any]]]:
        nonlocal done
        for columns in column_parts(container, limits, threads, most=most):
            yield _as_stated(container, header, columns)
            done += most * BLOCK_ROWS
            if progress:
                progress("decode", min(1.0, done / max(1, container.num_gaussians)))

    with atomic_write(path, overwrite) as file:
        hashed = HashingFile(file)
        ply.write_parts(header, parts(), trailing, hashed)  # type: ignore[arg-type]
    source = metadata.get("source")
    wanted = source.get("sha256") if isinstance(source, dict) else None
    identical = None if wanted is None else hashed.digest.hexdigest() == wanted
    differs = []
    if identical is False:
        text = header.format == "ascii"
        differs.append("the spelling of numbers in an ascii PLY" if text else "the bytes of the file")
    elif identical is None:
        differs.append("the source's checksum is not known (reordered, or not made from a PLY file)")
    return {"identical": identical, "differs": differs, "sha256": hashed.digest.hexdigest()}


class HashingFile:
    """A file that also hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        return self._file.write(block)

    def writelines(self, blocks: Any) -> None:
        for block in blocks:
            self.write(block)


def extras_layout(extras: Columns) -> dict[str, dict[str, Any]]:
    """How side arrays of several dimensions are laid out as columns, for the metadata: shape of a row and dtype."""
    return {name: {"shape": list(a.shape[1:]), "dtype": a.dtype.str} for name, a in extras.items()}


def encode_extras(extras: Columns, threads: int | None = None) -> list[Chunk]:
    """COLD and COLS chunks of side arrays; an array of several columns becomes name[0], name[1] ..."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, array in extras.items():
        flat = array.reshape(len(array), -1)
        if flat.dtype == np.float16:
            flat = flat.view(np.uint16)
        for k in range(flat.shape[1]):
            columns[f"{name}[{k}]"] = flat[:, k]
    return column_chunks(columns, threads)


def decode_extras(
    container: Container, metadata: Mapping[str, Any], limits: Limits, threads: int | None
) -> dict[str, npt.NDArray[Any]]:
    """Side arrays of a lossy scene, in the order of its Gaussians.

    Raises:
        FormatError: the layout in the metadata does not fit the columns.
    """
    columns = read_columns(container, limits, threads)
    layout = metadata.get("extras")
    extras: dict[str, npt.NDArray[Any]] = {}
    rows = len(next(iter(columns.values()))) if columns else 0
    used = 0
    try:
        for name, facts in dict(layout or {}).items():
            shape = [int(size) for size in facts["shape"]]
            dtype = np.dtype(facts["dtype"])
            width = int(np.prod(shape)) if shape else 1
            parts = [columns[f"{name}[{k}]"] for k in range(width)]
            used += width
            array = np.stack(parts, 1) if parts else np.zeros((rows, 0), dtype)
            if dtype == np.float16 and array.dtype == np.uint16:
                array = array.view(np.float16)
            if array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype}, not {dtype}")
            extras[name] = array.reshape(rows, *shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"the layout of the side arrays is damaged: {error}", file=container.name) from None
    if used != len(columns):
        raise FormatError("side arrays without a layout", file=container.name, chunk="COLD")
    return extras
