"""3DGS PLY, the format trainers write: a text header, then one record of raw values a Gaussian.

Columns go by name, in any order: `x y z`, `f_dc_0..2`, `f_rest_*` (channel-major: all of red, then green, then blue),
`opacity` (logit), `scale_0..2` (natural log), `rot_0..3` (w, x, y, z). Every other column becomes an extra. Facts:
graphdeco-inria/gaussian-splatting, which defined it; the PLY text itself is Greg Turk's "The PLY Polygon File Format".

`read` and `write` are about scenes. `parse_header`, `read_table` and `write_table` are about the file, to the byte.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from ..errors import (
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from ..files import PathLike, atomic_write, open_for_reading
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ._losses import SCENE_FACTS, is_json, lost_metadata
from ._packing import MAX_SH_REST, row_blocks, warn_degree_4
from ._records import block_rows, file_size, read_blocks
from .base import BLOCK_ROWS, DEFAULT_OPTIONS, HEAD_BYTES, Blocks, Format, WriteOptions

__all__ = [
    "FORMAT",
    "PlyElement",
    "PlyHeader",
    "PlyProperty",
    "PlyTable",
    "comments_metadata",
    "is_compressed",
    "lost_in_comments",
    "metadata_comments",
    "parse_header",
    "read",
    "read_header",
    "read_table",
    "sh_rest_count",
    "sniff_header",
    "write",
    "write_parts",
    "write_table",
]

_DTYPES = {
    name: np.dtype(code)
    for names, code in [
        ("char int8", "i1"),
        ("uchar uint8", "u1"),
        ("short int16", "i2"),
        ("ushort uint16", "u2"),
        ("int int32", "i4"),
        ("uint uint32", "u4"),
        ("float float32", "f4"),
        ("double float64", "f8"),
    ]
    for name in names.split()
}
# The classic names: every reader knows them.
_TYPE_NAMES = {dtype: name for name, dtype in reversed(_DTYPES.items()) if not name[-1].isdigit()}
# Begins the comment that holds, as JSON, the metadata that other tools have no comment for.
_METADATA_COMMENT = "splatcodec.metadata "
_METADATA_NAMES = tuple(name for name in SCENE_FACTS if name not in ("comments", "antialiased"))
_MAX_METADATA_COMMENT = 1 << 16
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_FLOAT32 = np.dtype("f4")

_MEANS = ("x", "y", "z")
_NORMALS = ("nx", "ny", "nz")
_SH0 = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES = ("scale_0", "scale_1", "scale_2")
_QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
_SH_REST = re.compile(r"f_rest_(0|[1-9][0-9]{0,8})")
# f_rest columns by SH degree 0 to 4.
_SH_REST_COUNTS = (0, 9, 24, 45, 72)


@dataclass(frozen=True)
class PlyProperty:
    """One property line.

    Attributes:
        name: as in the file.
        dtype: of the value, or of the items of a list; in this machine's byte order.
        count_dtype: of the length in front of a list; None for a single value.
    """

    name: str
    dtype: np.dtype[Any]
    count_dtype: np.dtype[Any] | None = None


@dataclass(frozen=True)
class PlyElement:
    """One element line with its properties, in the file's order."""

    name: str
    count: int
    properties: tuple[PlyProperty, ...]

    @property
    def has_lists(self) -> bool:
        """Whether rows differ in length."""
        return any(prop.count_dtype is not None for prop in self.properties)

    @property
    def names(self) -> tuple[str, ...]:
        """Property names in the file's order."""
        return tuple(prop.name for prop in self.properties)

    def row_dtype(self, byte_order: str = "=") -> np.dtype[Any]:
        """The packed record of one row without lists; `byte_order` as numpy writes it."""
        return np.dtype([(prop.name, prop.dtype.newbyteorder(byte_order)) for prop in self.properties])  # type: ignore[arg-type]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row without lists, in a binary file."""
        return sum(prop.dtype.itemsize for prop in self.properties)


@dataclass(frozen=True)
class PlyHeader:
    """A parsed header.

    Attributes:
        format: "ascii", "binary_little_endian" or "binary_big_endian".
        elements: in the file's order.
        comments: text of the comment lines.
        header_bytes: the exact bytes up to and including the newline of `end_header`.
    """

    format: str
    elements: tuple[PlyElement, ...]
    comments: tuple[str, ...]
    header_bytes: bytes

    @property
    def data_offset(self) -> int:
        """Where the rows begin in the file."""
        return len(self.header_bytes)

    @property
    def byte_order(self) -> str:
        """As numpy writes it: "<" or ">", and "=" for ascii."""
        return _BYTE_ORDERS[self.format]

    def element(self, name: str) -> PlyElement | None:
        """The element of that name, if any."""
        return next((element for element in self.elements if element.name == name), None)


@dataclass(frozen=True)
class PlyTable:
    """The exact content of a PLY file whose first element is `vertex`.

    Attributes:
        header: the header, with its exact bytes.
        columns: a (N,) array for each vertex property, in the file's order and types, this machine's byte order.
        trailing: every byte after the vertices.
    """

    header: PlyHeader
    columns: Mapping[str, npt.NDArray[Any]]
    trailing: bytes


# ---------------------------------------------------------------------------------------------------------- header


def parse_header(buffer: bytes) -> PlyHeader:
    """Parse the header at the beginning of `buffer`, which may go on.

    Line ends may be LF, CRLF or CR; blanks may repeat or trail; empty lines are skipped.

    Raises:
        TruncatedError: `buffer` ends before the newline of `end_header`.
        FormatError: not a PLY file, or a line that is wrong; the offset is that line's.
        UnsupportedError: a format version other than 1.0.

    >>> header = parse_header(b"ply\\nformat ascii 1.0\\nelement vertex 2\\nproperty float x\\nend_header\\n1\\n2\\n")
    >>> header.elements[0].count, header.elements[0].names, header.data_offset
    (2, ('x',), 66)
    """
    if re.match(rb"ply[ \t]*[\r\n]", buffer) is None:
        if b"ply".startswith(buffer[:3].strip()):
            raise TruncatedError("the file ends inside the first line", chunk="header", offset=len(buffer))
        raise FormatError("not a PLY file: the first line is not 'ply'", chunk="header", offset=0)
    newline = b"\r" if re.match(rb"ply[ \t]*\r[^\n]", buffer) else b"\n"
    format_name = ""
    comments: list[str] = []
    elements: list[tuple[str, int, list[PlyProperty], set[str]]] = []
    element_names: set[str] = set()
    start = 0
    while True:
        end = buffer.find(newline, start)
        if end < 0:
            raise TruncatedError("the header does not end", chunk="header", offset=len(buffer))
        line = buffer[start:end].decode("utf-8", "replace").strip()
        words = line.split()
        try:
            match words:
                case []:
                    pass
                case ["ply"] if start == 0:
                    pass
                case ["comment", *_]:
                    comments.append(line.removeprefix("comment").strip())
                case ["obj_info", *_]:
                    pass
                case ["format", name, version] if not format_name:
                    if name not in _BYTE_ORDERS:
                        raise FormatError(f"unknown format {name!r}")
                    if version != "1.0":
                        raise UnsupportedError(f"PLY version {version!r}, only 1.0 is known")
                    format_name = name
                case ["element", name, count]:
                    if name in element_names:
                        raise FormatError(f"element {name!r} comes twice")
                    element_names.add(name)
                    elements.append((name, _row_count(count), [], set()))
                case ["property", *rest] if elements:
                    _, _, properties, names = elements[-1]
                    prop = _property(rest)
                    if prop.name in names:
                        raise FormatError(f"property {prop.name!r} comes twice")
                    names.add(prop.name)
                    properties.append(prop)
                case ["end_header"]:
                    break
                case _:
                    raise FormatError(f"header line {line[:80]!r} makes no sense here")
        except (FormatError, UnsupportedError) as error:
            error.locate(chunk="header", offset=start)
            raise
        start = end + 1
    if not format_name:
        raise FormatError("there is no format line", chunk="header", offset=start)
    return PlyHeader(
        format=format_name,
        elements=tuple(PlyElement(name, count, tuple(properties)) for name, count, properties, _ in elements),
        comments=tuple(comments),
        header_bytes=buffer[: end + 1],
    )


def _row_count(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise FormatError(f"element count {word[:40]!r} is not a whole number")
    if len(word) > 19:
        raise LimitExceededError(f"element count {word[:40]}... is too large")
    return int(word)


def _property(words: list[str]) -> PlyProperty:
    match words:
        case [dtype, name] if dtype in _DTYPES:
            return PlyProperty(name, _DTYPES[dtype])
        case ["list", count, dtype, name] if dtype in _DTYPES and count in _DTYPES:
            if _DTYPES[count].kind == "f":
                raise FormatError(f"list {name!r} has a length of type {count}")
            return PlyProperty(name, _DTYPES[dtype], _DTYPES[count])
    raise FormatError(f"property {' '.join(words)[:80]!r} is not a known type and a name")


def read_header(handle: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> PlyHeader:
    """The header of an open file, which is left standing at the first row.

    Raises:
        LimitExceededError: the header is longer than `limits` allows.
        FormatError, UnsupportedError: as `parse_header`.
    """
    handle.seek(0)
    buffer = handle.read(min(HEAD_BYTES, limits.max_header_bytes))
    try:
        header = parse_header(buffer)
    except TruncatedError:
        buffer += handle.read(limits.max_header_bytes - len(buffer))
        try:
            header = parse_header(buffer)
        except TruncatedError:
            if handle.read(1):
                raise LimitExceededError(
                    f"the header is longer than the limit of {limits.max_header_bytes} bytes", chunk="header"
                ) from None
            raise
    handle.seek(header.data_offset)
    return header


def sh_rest_count(names: Sequence[str]) -> int:
    """How many `f_rest_i` are among `names`: 0, 9, 24, 45 or 72.

    Raises:
        FormatError: another number, or a gap in it.
    """
    found = {int(match[1]) for match in map(_SH_REST.fullmatch, names) if match}
    count = len(found)
    if found and max(found) != count - 1:
        missing = next(i for i in itertools.count() if i not in found)
        raise FormatError(f"f_rest_{missing} is missing although f_rest_{max(found)} is there", chunk="vertex")
    if count not in _SH_REST_COUNTS:
        raise FormatError(f"{count} f_rest properties, expected 0, 9, 24, 45 or 72", chunk="vertex")
    return count


# ------------------------------------------------------------------------------------------------------------ rows


def _vertex_blocks(handle: BinaryIO, header: PlyHeader, vertex: PlyElement) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Blocks of vertices: (n, columns) float32 if every property is float, else (n,) records.

    When the last block is out, `handle` stands behind the vertices.
    """
    if header.format == "ascii":
        blocks = _ascii_blocks(handle, header, vertex)
    else:
        blocks = read_blocks(handle, vertex.row_dtype(header.byte_order), vertex.count, chunk=vertex.name)
    uniform = _is_uniform(vertex)
    for rows, block in blocks:
        if uniform:
            floats = block.view(header.byte_order + "f4").reshape(len(block), -1)
            yield rows, np.asarray(floats, np.float32)
        else:
            yield rows, block


def _is_uniform(element: PlyElement) -> bool:
    return all(prop.dtype == _FLOAT32 for prop in element.properties)


def _ascii_blocks(handle: BinaryIO, header: PlyHeader, element: PlyElement) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Records of an element of an ascii file, one line each."""
    if header.header_bytes.endswith(b"\r"):
        raise UnsupportedError("ascii rows that end in a lone CR are not supported", chunk="header")
    dtype = element.row_dtype()
    columns = len(element.properties)
    step = block_rows(dtype.itemsize)
    lines = _ascii_lines(handle, handle.tell(), element.name)
    for start in range(0, element.count, step):
        count = min(step, element.count - start)
        values: list[float] = []
        for offset, line in itertools.islice(lines, count):
            words = line.split()
            if len(words) != columns:
                raise FormatError(f"{len(words)} values, expected {columns}", chunk=element.name, offset=offset)
            try:
                values.extend(map(float, words))
            except ValueError:
                raise FormatError(
                    f"{line[:60].decode('ascii', 'replace')!r}... are not numbers", chunk=element.name, offset=offset
                ) from None
        if len(values) != count * columns:
            raise TruncatedError(
                f"{start + len(values) // columns} rows, expected {element.count}",
                chunk=element.name,
                offset=file_size(handle),
            )
        table = np.array(values, np.float64).reshape(count, columns)
        block = np.empty(count, dtype)
        for column, prop in enumerate(element.properties):
            exact = table[:, column]
            if prop.dtype.kind != "f":
                info = np.iinfo(prop.dtype)
                if not ((exact == np.rint(exact)) & (exact >= info.min) & (exact <= info.max)).all():
                    raise FormatError(
                        f"a value does not fit {_TYPE_NAMES[prop.dtype]}", chunk=element.name, field=prop.name
                    )
            with np.errstate(over="ignore"):
                block[prop.name] = exact
        yield slice(start, start + count), block


def _ascii_lines(handle: BinaryIO, offset: int, chunk: str) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line that is not blank; `handle` is never read beyond the last one given."""
    for line in iter(handle.readline, b""):
        if line.strip():
            if not line.endswith(b"\n"):
                raise TruncatedError(
                    "the last line has no newline, so its last number may be cut short", chunk=chunk, offset=offset
                )
            if b"_" in line:  # Python's float allows it inside numbers, PLY does not
                raise FormatError("a value is not a number", chunk=chunk, offset=offset)
            yield offset, line
        offset += len(line)


def _check_vertex(header: PlyHeader, limits: Limits) -> tuple[PlyElement, list[PlyElement]]:
    """The vertex element and the elements in front of it, which have no lists."""
    vertex = header.element("vertex")
    if vertex is None:
        raise FormatError("there is no element 'vertex'", chunk="header")
    if vertex.has_lists:
        raise UnsupportedError("list properties of vertices are not supported", chunk="vertex")
    if not vertex.properties:
        raise FormatError("the vertices have no properties", chunk="vertex")
    before = list(itertools.takewhile(lambda element: element is not vertex, header.elements))
    limits.check_gaussians(vertex.count, chunk="vertex")
    return vertex, before


def _check_size(header: PlyHeader, vertex: PlyElement, offset: int, size_bytes: int) -> None:
    """Raise TruncatedError if the file is too short for the vertices: before anything of that size is allocated."""
    # An ascii value takes a digit and a blank at least.
    row_bytes = 2 * len(vertex.properties) if header.format == "ascii" else vertex.row_bytes
    if vertex.count * row_bytes > size_bytes - offset:
        have_bytes = max(0, size_bytes - offset)
        raise TruncatedError(
            f"{vertex.count} vertices need {vertex.count * row_bytes} bytes, the file has {have_bytes}",
            chunk="vertex",
            offset=size_bytes,
        )


def _skip_elements(handle: BinaryIO, header: PlyHeader, elements: Sequence[PlyElement]) -> None:
    """Move `handle` over the rows of elements without lists that come before the vertices."""
    if any(element.has_lists for element in elements):
        raise UnsupportedError("elements with lists before the vertices are not supported", chunk="header")
    if header.format == "ascii":
        lines = _ascii_lines(handle, header.data_offset, "header")
        for element in elements:
            for _ in range(element.count if element.properties else 0):
                if next(lines, None) is None:
                    raise TruncatedError("the file ends early", chunk=element.name, offset=file_size(handle))
    else:
        handle.seek(header.data_offset + sum(element.count * element.row_bytes for element in elements))


def _trailing_bytes(header: PlyHeader, elements: Sequence[PlyElement], trailing: bytes, offset: int) -> int:
    """How many of the bytes after the vertices the declared elements take.

    Raises:
        TruncatedError: more than there are.
    """
    at = 0
    stream = io.BytesIO(trailing)
    for element in elements:
        if not element.properties or not element.count:
            continue
        if header.format == "ascii":
            lines = _ascii_lines(stream, offset + at, element.name)
            # A row takes two bytes at least, so the walk is no longer than the file.
            if element.count > len(trailing) or next(itertools.islice(lines, element.count - 1, None), None) is None:
                at = len(trailing) + 1
            else:
                at = stream.tell()
        elif not element.has_lists:
            at += element.count * element.row_bytes
        else:
            at = _list_rows_end(header, element, trailing, at, offset)
        if at > len(trailing):
            raise TruncatedError("the file ends early", chunk=element.name, offset=offset + len(trailing))
    return at


def _list_rows_end(header: PlyHeader, element: PlyElement, trailing: bytes, at: int, offset: int) -> int:
    """Where the rows of a binary element with lists end in `trailing`; beyond its end if they are cut short."""
    order: Literal["big", "little"] = "big" if header.byte_order == ">" else "little"
    row = 0
    # Every row has a length byte at least, so a lying count ends at the file's end.
    while row < element.count and at <= len(trailing):
        for prop in element.properties:
            if prop.count_dtype is None:
                at += prop.dtype.itemsize
                continue
            size_bytes = prop.count_dtype.itemsize
            if at + size_bytes > len(trailing):
                return len(trailing) + 1
            length = int.from_bytes(trailing[at : at + size_bytes], order, signed=prop.count_dtype.kind == "i")
            if length < 0:
                raise FormatError("a list of negative length", chunk=element.name, offset=offset + at)
            at += size_bytes + length * prop.dtype.itemsize
        row += 1
    return at


# ------------------------------------------------------------------------------------------------------- Gaussians


class _Columns:
    """Where each vertex column goes, for one block after another."""

    def __init__(self, vertex: PlyElement) -> None:
        self.count = vertex.count
        self.index = {name: i for i, name in enumerate(vertex.names)}
        self.names = vertex.names
        self.targets: list[tuple[npt.NDArray[Any], npt.NDArray[np.intp]]] = []
        self.normals: dict[str, npt.NDArray[Any]] = {}

    def send(self, names: Sequence[str], to: npt.NDArray[Any]) -> None:
        """Copy columns `names` into `to` (N, len(names))."""
        self.targets.append((to, np.array([self.index[name] for name in names], np.intp)))

    def put(self, rows: slice, block: npt.NDArray[Any]) -> None:
        for to, columns in self.targets:
            part = to[rows]
            if block.ndim == 2 and part.dtype == np.float32 and part.flags.c_contiguous:
                # One pass for any order of columns; "clip" writes straight into `out`.
                np.take(block, columns, axis=1, out=part, mode="clip")
            elif block.ndim == 2:
                part[:] = block[:, columns]
            else:
                with np.errstate(over="ignore", invalid="ignore"):  # doubles beyond float32 become infinite
                    for i, column in enumerate(columns):
                        part[:, i] = block[self.names[column]]
        for name in _NORMALS:
            if name in self.index:
                values = block[:, self.index[name]] if block.ndim == 2 else block[name]
                if name not in self.normals:
                    if not values.any():
                        continue
                    self.normals[name] = np.zeros(self.count, values.dtype.newbyteorder("="))
                self.normals[name][rows] = values


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a 3DGS PLY file; float values come back exactly.

    Normals that are all zero are dropped, other further columns become extras in their own dtype. Without `scale_2`
    (2DGS) the third log scale is -inf. Comments go to `metadata["comments"]`, and those that state anti-aliasing
    (`SplatRenderMode: mip`, `antialiased 1`) to `metadata["antialiased"]`; the last one counts. Elements beside the
    vertices, and SH of degree 4, are dropped with a SplatCodecWarning.

    Raises:
        FormatError: damaged, or not Gaussians; TruncatedError if it ends early.
        UnsupportedError: vertices with lists, or a compressed PLY.
        LimitExceededError: more than `limits` allows.
    """
    with open_for_reading(path) as handle:
        header, vertex = _read_head(handle, limits)
        target = _Target(vertex, limits)
        target.allocate()
        for rows, block in _vertex_blocks(handle, header, vertex):
            target.columns.put(rows, block)
        _check_rest(handle, header, vertex)
    _warn_dropped(header, vertex)
    return target.gaussians(header)


def _read_head(handle: BinaryIO, limits: Limits) -> tuple[PlyHeader, PlyElement]:
    """The header and the vertex element, all that can be checked by now checked; `handle` stands at the vertices."""
    size_bytes = file_size(handle)
    header = read_header(handle, limits)
    if is_compressed(header):
        raise UnsupportedError("this is a PlayCanvas compressed PLY", hint="its format is compressed-ply")
    vertex, before = _check_vertex(header, limits)
    _Target(vertex, limits)
    _skip_elements(handle, header, before)
    _check_size(header, vertex, handle.tell(), size_bytes)
    return header, vertex


def _warn_dropped(header: PlyHeader, vertex: PlyElement) -> None:
    dropped = [e for e in header.elements if e is not vertex and e.count]
    if dropped:
        listed = ", ".join(f"{element.name} ({element.count} rows)" for element in dropped[:5])
        warnings.warn(f"elements beside the vertices are dropped: {listed}", SplatCodecWarning, stacklevel=4)
    if sh_rest_count(vertex.names) // 3 > MAX_SH_REST:
        warn_degree_4(vertex.count)


@contextlib.contextmanager
def open_blocks(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Blocks]:
    """`read`, block by block.

    Raises:
        UnsupportedError: besides, normals that are not float32; whether they are kept only all rows together tell.
    """
    with open_for_reading(path) as handle:
        header, vertex = _read_head(handle, limits)
        if any(prop.name in _NORMALS and prop.dtype != _FLOAT32 for prop in vertex.properties):
            raise UnsupportedError("normals that are not float32 cannot be read in blocks", chunk="vertex")
        start = handle.tell()
        _warn_dropped(header, vertex)

        def rows() -> Iterator[Gaussians]:
            handle.seek(start)
            for part in row_blocks(vertex.count, BLOCK_ROWS):
                element = replace(vertex, count=part.stop - part.start)
                target = _Target(element, limits)
                target.allocate()
                for to, block in _vertex_blocks(handle, header, element):
                    target.columns.put(to, block)
                yield target.gaussians(None)
            _check_rest(handle, header, vertex)

        whole = _Target(vertex, limits)
        extras: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
        extras = {prop.name: (prop.dtype, ()) for prop in whole.extra_properties}
        degree = {0: 0, 3: 1, 8: 2, 15: 3}[whole.num_rest]
        yield Blocks(vertex.count, degree, rows, extras, comments_metadata(header))


class _Target:
    """The arrays of Gaussians that vertex columns are copied into."""

    def __init__(self, vertex: PlyElement, limits: Limits) -> None:
        self.count = vertex.count
        self.rest = sh_rest_count(vertex.names)
        self.flat = _check_names(vertex)
        self.num_rest = min(self.rest // 3, MAX_SH_REST)
        known = {*_MEANS, *_NORMALS, *_SH0, *_SCALES, *_QUATS, "opacity"} | {f"f_rest_{i}" for i in range(self.rest)}
        self.extra_properties = [prop for prop in vertex.properties if prop.name not in known]
        extra_bytes = sum(prop.dtype.itemsize for prop in self.extra_properties)
        limits.check_bytes(vertex.count * (4 * (14 + 3 * self.num_rest) + extra_bytes), "the scene")
        self.columns = _Columns(vertex)

    def allocate(self) -> None:
        """Make the arrays; the file's size is known to be right by now."""
        n, rest = self.count, self.rest
        self.means, self.quats = (np.empty((n, width), np.float32) for width in (3, 4))
        self.scales = np.full((n, 3), -np.inf, np.float32) if self.flat else np.empty((n, 3), np.float32)
        self.sh0 = np.empty((n, 1, 3), np.float32)
        self.shN = np.empty((n, self.num_rest, 3), np.float32)
        self.opacities = np.empty(n, np.float32)
        self.extras = {prop.name: np.empty(n, prop.dtype) for prop in self.extra_properties}
        send = self.columns.send
        send(_MEANS, self.means)
        send(_SH0, self.sh0[:, 0])
        send([f"f_rest_{c * (rest // 3) + k}" for k in range(self.num_rest) for c in range(3)], _flat(self.shN))
        send(["opacity"], self.opacities[:, None])
        send(_SCALES[:2] if self.flat else _SCALES, self.scales[:, :2] if self.flat else self.scales)
        send(_QUATS, self.quats)
        for name, array in self.extras.items():
            send([name], array[:, None])

    def gaussians(self, header: PlyHeader | None) -> Gaussians:
        """The scene, once all rows have been put, with the metadata of the header."""
        return Gaussians(
            means=self.means,
            quats=self.quats,
            scales=self.scales,
            opacities=self.opacities,
            sh0=self.sh0,
            shN=self.shN,
            extras={**self.columns.normals, **self.extras},
            metadata={} if header is None else comments_metadata(header),
        )


class _TableRows:
    """A table's columns, addressed like a block of records."""

    ndim = 1

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._columns[name]


def gaussians_of(table: PlyTable, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """The Gaussians of a table, as `read` would give them of its file; other elements are left out.

    Raises:
        FormatError: the table does not hold Gaussians.
    """
    vertex, _ = _check_vertex(table.header, limits)
    target = _Target(vertex, limits)
    target.allocate()
    target.columns.put(slice(0, vertex.count), _TableRows(table.columns))  # type: ignore[arg-type]
    if target.rest // 3 > MAX_SH_REST:
        warn_degree_4(vertex.count)
    return target.gaussians(table.header)


def _flat(shN: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return shN.reshape(len(shN), 3 * shN.shape[1])


def _check_names(vertex: PlyElement) -> bool:
    """Raise FormatError unless the columns of Gaussians are there; True for 2DGS, which has no `scale_2`."""
    missing = [n for n in (*_MEANS, *_SH0, "opacity", *_SCALES, *_QUATS) if n not in vertex.names]
    if missing == ["scale_2"]:
        return True
    if missing:
        splat_names = {*_SH0, "opacity", *_SCALES, *_QUATS}
        if splat_names.isdisjoint(vertex.names):
            raise FormatError(
                "a point cloud, not Gaussians: no scale, rotation, opacity or f_dc properties", chunk="vertex"
            )
        raise FormatError(f"properties of Gaussians are missing: {', '.join(missing)}", chunk="vertex")
    return False


def _check_rest(handle: BinaryIO, header: PlyHeader, vertex: PlyElement) -> None:
    """Raise FormatError if what follows the vertices is not exactly the declared elements."""
    offset = handle.tell()
    after = list(header.elements[header.elements.index(vertex) + 1 :])
    trailing = handle.read()
    at = _trailing_bytes(header, after, trailing, offset)
    undeclared = trailing[at:].strip() if header.format == "ascii" else trailing[at:]
    if undeclared:
        raise FormatError(f"{len(undeclared)} bytes after the last declared row", offset=offset + at)


def comments_metadata(header: PlyHeader) -> dict[str, Any]:
    """`Gaussians.metadata` as the comment lines state it: `antialiased`, our own line of JSON, the rest `comments`."""
    metadata: dict[str, Any] = {}
    comments = []
    for comment in header.comments:
        stated = _parse_metadata_comment(comment)
        if stated is None:
            comments.append(comment)
        else:
            metadata.update(stated)
    if comments:
        metadata["comments"] = comments
    antialiased = _stated_antialiased(header.comments)
    if antialiased is not None:
        metadata["antialiased"] = antialiased
    return metadata


def _parse_metadata_comment(comment: str) -> dict[str, Any] | None:
    """What `metadata_comments` wrote, or None if this is an ordinary comment."""
    if not comment.startswith(_METADATA_COMMENT):
        return None
    try:
        stated = json.loads(comment[len(_METADATA_COMMENT) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(stated, dict) or not stated.keys() <= set(_METADATA_NAMES):
        return None
    return stated


def metadata_comments(gaussians: Gaussians) -> list[str]:
    """The comment lines, without the word `comment`, that hold `comments` and the other metadata."""
    stated = gaussians.metadata.get("comments", ())
    comments = [" ".join(re.split("[\r\n]+", str(text))) for text in ([stated] if isinstance(stated, str) else stated)]
    antialiased = gaussians.metadata.get("antialiased")
    if antialiased is not None and _stated_antialiased(comments) != antialiased:
        comments.append(f"SplatRenderMode: {'mip' if antialiased else 'default'}")
    held = {name: gaussians.metadata.get(name) for name in _METADATA_NAMES}
    facts = {name: value for name, value in held.items() if value is not None and is_json(value)}
    if facts:
        text = _METADATA_COMMENT + json.dumps(facts, separators=(",", ":"))
        if len(text) <= _MAX_METADATA_COMMENT:
            comments.append(text)
    return comments


def lost_in_comments(gaussians: Gaussians) -> list[str]:
    """The loss that `metadata_comments` means."""
    held = {name for text in metadata_comments(gaussians) for name in _parse_metadata_comment(text) or ()}
    return lost_metadata(gaussians, held | {"comments", "antialiased"})


def _stated_antialiased(comments: Sequence[str]) -> bool | None:
    stated = None
    for comment in comments:
        if match := re.fullmatch(r"SplatRenderMode:\s*(default|mip|2dgs)", comment, re.IGNORECASE):
            stated = match[1].lower() == "mip"
        elif match := re.fullmatch(r"antialiased\s+([01])", comment, re.IGNORECASE):
            stated = match[1] == "1"
    return stated


def write(gaussians: Gaussians, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> None:
    """Write a 3DGS PLY, binary little endian, in the order trainers use.

    `x y z nx ny nz f_dc_* f_rest_* opacity scale_* rot_*`, all float, then the remaining extras in their own types (an
    extra of more columns becomes name_0, name_1, ...). Normals are zero unless extras has them. Metadata is kept in
    comments: `comments` and `antialiased` as other tools have them, the rest as JSON behind `splatcodec.metadata`.

    Raises:
        ParameterError: a name or type of an extra cannot be in a PLY file.
    """
    table = table_of(gaussians)
    vertex = table.header.element("vertex")
    assert vertex is not None
    _write_table(table, vertex, file)


def table_of(gaussians: Gaussians) -> PlyTable:
    """The table that `write` writes; its columns are views where they can be.

    Raises:
        ParameterError: a name or type of an extra cannot be in a PLY file.
    """
    columns = _output_columns(gaussians)
    return PlyTable(_output_header(columns, gaussians.num_gaussians, gaussians), dict(columns), b"")


def _output_header(columns: Sequence[tuple[str, npt.NDArray[Any]]], count: int, gaussians: Gaussians) -> PlyHeader:
    """The header of `count` rows of such columns; the metadata are those of `gaussians`."""
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {comment}" for comment in metadata_comments(gaussians)]
    lines.append(f"element vertex {count}")
    lines += [f"property {_TYPE_NAMES[values.dtype.newbyteorder('=')]} {name}" for name, values in columns]
    lines.append("end_header\n")
    return parse_header("\n".join(lines).encode("utf-8", "replace"))


def write_blocks(blocks: Blocks, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write`, from blocks.

    Raises:
        ParameterError: a name or type of an extra cannot be in a PLY file.
    """
    head = blocks.head()
    header = _output_header(_output_columns(head), blocks.num_gaussians, head)
    dtype = header.elements[0].row_dtype("<")
    file.write(header.header_bytes)
    for block in blocks.rows():
        _write_rows(file, dtype, _output_columns(block), len(block))
    return lost_in_comments(head)


def _output_columns(gaussians: Gaussians) -> list[tuple[str, npt.NDArray[Any]]]:
    """Name and (N,) values of each column to write; the values are views, so nothing large is copied."""
    extras = dict(gaussians.extras)
    zeros = np.broadcast_to(np.float32(0), (gaussians.num_gaussians,))
    rest = _flat(gaussians.shN)
    num_rest = gaussians.shN.shape[1]
    columns: list[tuple[str, npt.NDArray[Any]]] = []
    columns += [(name, gaussians.means[:, i]) for i, name in enumerate(_MEANS)]
    for name in _NORMALS:
        values = extras.pop(name, zeros)
        columns.append((name, values if values.ndim == 1 else zeros))
        if values.ndim != 1:
            raise ParameterError(f"extra {name!r} has shape {values.shape}, expected one value a Gaussian", field=name)
    columns += [(name, gaussians.sh0[:, 0, i]) for i, name in enumerate(_SH0)]
    columns += [(f"f_rest_{c * num_rest + k}", rest[:, 3 * k + c]) for c in range(3) for k in range(num_rest)]
    columns.append(("opacity", gaussians.opacities))
    columns += [(name, gaussians.scales[:, i]) for i, name in enumerate(_SCALES)]
    columns += [(name, gaussians.quats[:, i]) for i, name in enumerate(_QUATS)]
    for name, values in extras.items():
        if values.ndim == 1:
            columns.append((name, values))
        else:
            width = int(np.prod(values.shape[1:]))
            table = values.reshape(len(values), width)
            columns += [(f"{name}_{i}", table[:, i]) for i in range(width)]
    seen: set[str] = set()
    for name, _ in columns:
        # A stray f_rest would change what the others mean.
        if name in seen or (_SH_REST.fullmatch(name) and int(name[7:]) >= 3 * num_rest):
            raise ParameterError(f"extra {name!r} has the name of another column", field=name)
        if not re.fullmatch(r"[!-~]+", name):
            raise ParameterError(f"extra {name!r} cannot be a PLY property name", field=name)
        seen.add(name)
    return [(name, _as_ply_type(name, values)) for name, values in columns]


def _as_ply_type(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`values` in the nearest type that PLY has, without loss."""
    dtype = values.dtype.newbyteorder("=")
    if dtype in _TYPE_NAMES:
        return values
    if dtype == np.float16:
        return values.astype(np.float32)
    if dtype.kind in "iu":
        narrow = np.dtype(np.int32 if dtype.kind == "i" else np.uint32)
        info = np.iinfo(narrow)
        if not len(values) or (info.min <= values.min() and values.max() <= info.max):
            return values.astype(narrow)
    raise ParameterError(f"extra {name!r} has values of type {dtype} that PLY cannot hold", field=name)


def _write_rows(
    file: BinaryIO, dtype: np.dtype[Any], columns: Sequence[tuple[str, npt.NDArray[Any]]], count: int
) -> None:
    """Write (N,) columns as records of `dtype`, block by block."""
    uniform = all(dtype[name] == np.dtype("<f4") for name, _ in columns)
    buffer = np.empty(min(count, block_rows(dtype.itemsize)), dtype)
    for start in range(0, count, max(1, len(buffer))):
        rows = slice(start, min(start + len(buffer), count))
        block = buffer[: rows.stop - start]
        if uniform:
            floats = block.view("<f4").reshape(len(block), -1)
            for i, (_, values) in enumerate(columns):
                floats[:, i] = values[rows]
        else:
            for name, values in columns:
                block[name] = values[rows]
        file.write(block.view(np.uint8).data)


# ----------------------------------------------------------------------------------------------------------- table


def read_table(path: PathLike, limits: Limits = DEFAULT_LIMITS) -> PlyTable:
    """Read the exact content of a PLY file: `write_table` makes the same bytes of it (ascii: the same values).

    It need not hold Gaussians. Bytes after the vertices are kept, whatever they are.

    Raises:
        FormatError: damaged; TruncatedError if it ends early.
        UnsupportedError: lists in the vertices, or elements with rows before them.
        LimitExceededError: more than `limits` allows.
        ParameterError: the path is wrong.
    """
    with open_for_reading(path) as handle:
        try:
            size_bytes = file_size(handle)
            header = read_header(handle, limits)
            vertex, before = _check_vertex(header, limits)
            if any(element.count for element in before):
                raise UnsupportedError("elements before the vertices are not supported in a table", chunk="header")
            _check_size(header, vertex, header.data_offset, size_bytes)
            limits.check_bytes(vertex.count * vertex.row_bytes, "the table", chunk="vertex")
            columns = {prop.name: np.empty(vertex.count, prop.dtype) for prop in vertex.properties}
            for rows, block in _vertex_blocks(handle, header, vertex):
                for i, (name, values) in enumerate(columns.items()):
                    values[rows] = block[:, i] if block.ndim == 2 else block[name]
            offset = handle.tell()
            trailing = handle.read()
            _trailing_bytes(header, header.elements[len(before) + 1 :], trailing, offset)
        except (FormatError, UnsupportedError, LimitExceededError) as error:
            error.locate(file=str(path))
            raise
    return PlyTable(header, columns, trailing)


def write_table(table: PlyTable, path_or_file: PathLike | BinaryIO, *, overwrite: bool = False) -> None:
    """Write a table: header, vertices, trailing bytes. A binary file comes out as it was read, byte for byte.

    An ascii file gets the shortest text of each value.

    Raises:
        ParameterError: columns do not fit the header; or as `splatcodec.files.atomic_write` for a path.
    """
    vertex = table.header.element("vertex")
    if vertex is None or tuple(table.columns) != vertex.names:
        raise ParameterError("the columns are not those of the header")
    for prop in vertex.properties:
        values = table.columns[prop.name]
        if values.shape != (vertex.count,) or values.dtype.newbyteorder("=") != prop.dtype:
            raise ParameterError(
                f"column has shape {values.shape} and dtype {values.dtype}, expected ({vertex.count},) {prop.dtype}",
                field=prop.name,
            )
    if isinstance(path_or_file, str | os.PathLike):
        with atomic_write(path_or_file, overwrite) as handle:
            _write_table(table, vertex, handle)
    else:
        _write_table(table, vertex, path_or_file)


def _write_table(table: PlyTable, vertex: PlyElement, file: BinaryIO) -> None:
    write_parts(table.header, [table.columns], table.trailing, file)


def write_parts(
    header: PlyHeader, parts: Iterable[Mapping[str, npt.NDArray[Any]]], trailing: bytes, file: BinaryIO
) -> None:
    """Write a table whose rows come in parts: `columns` of a PlyTable each, together as many as the header says."""
    vertex = header.element("vertex")
    assert vertex is not None
    file.write(header.header_bytes)
    for part in parts:
        columns = list(part.items())
        count = len(columns[0][1]) if columns else 0
        if header.format == "ascii":
            step = block_rows(vertex.row_bytes)
            for start in range(0, count, step):
                words = [values[start : start + step].astype(str) for _, values in columns]
                file.writelines((" ".join(row) + "\n").encode() for row in zip(*words))
        else:
            _write_rows(file, vertex.row_dtype(header.byte_order), columns, count)
    file.write(trailing)


# ---------------------------------------------------------------------------------------------------------- format


def is_compressed(header: PlyHeader) -> bool:
    """Whether this is a PlayCanvas compressed PLY (see `compressed_ply`)."""
    vertex = header.element("vertex")
    return vertex is not None and header.element("chunk") is not None and "packed_position" in vertex.names


def sniff_header(head: bytes) -> str | None:
    """Say "compressed" or "plain" if `head` begins a PLY file, else None. Needs no whole header."""
    if re.match(rb"ply[ \t]*[\r\n]", head) is None:
        return None
    text = head.partition(b"end_header")[0]
    return "compressed" if b"packed_position" in text and re.search(rb"element\s+chunk\s", text) else "plain"


FORMAT = Format(
    name="ply",
    title="3DGS PLY",
    suffixes=(".ply",),
    read=read,
    write=write,
    sniff=lambda head, path: sniff_header(head) == "plain",
    losses=lambda gaussians, options: lost_in_comments(gaussians),
    open_blocks=open_blocks,
    write_blocks=write_blocks,
)
