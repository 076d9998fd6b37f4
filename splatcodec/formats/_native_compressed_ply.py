"""Compressed PLYs as columns: the fields of the packed words; the ranges of the chunks are the head."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ..stages.lossless_boxes import Boxes, normalized
from ._native import NativeFormat, NativeScene
from ._native_columns import AXES, check_columns, sorted_in_boxes
from .compressed_ply import _PACKED, _RANGES, _RGB_FIELDS, _XYZ_FIELDS, CHUNK_GAUSSIANS, _check_elements, read_stream
from .ply import PlyHeader, parse_header

__all__ = ["NATIVE"]

# (column, dtype, word of _PACKED, shift, bits), in the order of the columns.
_FIELDS = (
    *((axis, "u2", 0, *field) for axis, field in zip(AXES, _XYZ_FIELDS)),
    ("opacity", "u1", 3, 0, 8),
    *((f"f_dc_{k}", "u1", 3, *field) for k, field in enumerate(_RGB_FIELDS)),
    *((f"scale_{k}", "u2", 2, *field) for k, field in enumerate(_XYZ_FIELDS)),
    ("rot_index", "u1", 1, 30, 2),
    *((f"rot_{k}", "u2", 1, 20 - 10 * k, 10) for k in range(3)),
)
# Which columns the ranges of _RANGES are of, and the bits of each.
_RANGED = (
    [(axis, bits) for axis, (_, bits) in zip(AXES, _XYZ_FIELDS)],
    [(f"scale_{k}", bits) for k, (_, bits) in enumerate(_XYZ_FIELDS)],
    [(f"f_dc_{k}", bits) for k, (_, bits) in enumerate(_RGB_FIELDS)],
)


def _parse(data: bytes) -> tuple[PlyHeader, int, int]:
    """Header, where its chunks end, and the number of SH columns."""
    header = parse_header(data)
    if header.format != "binary_little_endian":
        raise FormatError("it is not little-endian", chunk="header")
    size = sum(element.count * element.row_bytes for element in header.elements)
    chunk, vertex, num_sh = _check_elements(header, DEFAULT_LIMITS, header.data_offset + size)
    if vertex.names != _PACKED:
        raise FormatError("its vertices have further properties", chunk="header")
    return header, header.data_offset + chunk.count * chunk.row_bytes, num_sh


def _layout(num_sh: int) -> list[tuple[str, npt.DTypeLike]]:
    return [*((name, dtype) for name, dtype, *_ in _FIELDS), *((f"f_rest_{k}", "u1") for k in range(num_sh))]


def _sh_names(header: PlyHeader) -> list[str]:
    return list(header.elements[2].names) if len(header.elements) > 2 else []


def _planes(table: bytes, row_bytes: int) -> bytes:
    """The bytes of a table byte position by byte position, which zlib packs better."""
    return np.frombuffer(table, np.uint8).reshape(-1, row_bytes).T.tobytes() if row_bytes else b""


def _unpack(path: Path) -> tuple[NativeScene, bytes]:
    data = path.read_bytes()
    header, start, num_sh = _parse(data)
    chunk, vertex = header.elements[:2]
    words = np.frombuffer(data, "<u4", vertex.count * 4, start).reshape(-1, 4)
    columns: dict[str, npt.NDArray[Any]] = {
        name: (words[:, word] >> np.uint32(shift) & np.uint32((1 << bits) - 1)).astype(dtype)
        for name, dtype, word, shift, bits in _FIELDS
    }
    sh = np.frombuffer(data, np.uint8, vertex.count * num_sh, start + 16 * vertex.count).reshape(vertex.count, num_sh)
    names = _sh_names(header)
    columns |= {f"f_rest_{k}": np.ascontiguousarray(sh[:, names.index(f"f_rest_{k}")]) for k in range(num_sh)}
    text, table = data[: header.data_offset], data[header.data_offset : start]
    return NativeScene(text + _planes(table, chunk.row_bytes), columns), data


def _parts(head: bytes) -> tuple[PlyHeader, bytes, int]:
    """Header, the table of chunks, and the number of SH columns."""
    header, end, num_sh = _parse(head)
    if end != len(head):
        raise FormatError("the head does not end with the chunks", chunk="NATV")
    chunk = header.elements[0]
    planes = np.frombuffer(head, np.uint8, end - header.data_offset, header.data_offset)
    return header, planes.reshape(chunk.row_bytes, chunk.count).T.tobytes(), num_sh


def _content(scene: NativeScene) -> bytes:
    header, table, num_sh = _parts(scene.head)
    count = header.elements[1].count
    check_columns(scene.columns, _layout(num_sh))
    if count != len(scene):
        raise FormatError("the head is not that of the columns", chunk="NATV")
    words = np.zeros((count, 4), "<u4")
    for name, _, word, shift, bits in _FIELDS:
        words[:, word] |= (scene.columns[name].astype(np.uint32) & np.uint32((1 << bits) - 1)) << np.uint32(shift)
    sh = np.empty((count, num_sh), np.uint8)
    for k, name in enumerate(_sh_names(header)):
        sh[:, k] = scene.columns[name]
    return b"".join([scene.head[: header.data_offset], table, words.tobytes(), sh.tobytes()])


def _write(scene: NativeScene, file: BinaryIO, threads: int | None) -> None:
    file.write(_content(scene))


def _gaussians(scene: NativeScene, limits: Limits) -> Gaussians:
    return read_stream(io.BytesIO(_content(scene)), limits)


def _boxes(head: bytes, count: int) -> Boxes:
    header, table, _ = _parts(head)
    chunk = header.elements[0]
    if chunk.count != -(-count // CHUNK_GAUSSIANS):
        raise FormatError("the head is not that of the columns", chunk="NATV")
    chunks = np.frombuffer(table, chunk.row_dtype("<"))
    columns = {}
    for (low_names, high_names), ranged in zip(_RANGES, _RANGED):
        for low_name, high_name, (name, bits) in zip(low_names, high_names, ranged):
            if low_name in chunk.names:
                low, high = (chunks[end].astype(np.float64) for end in (low_name, high_name))
                with np.errstate(invalid="ignore"):
                    columns[name] = normalized(low, (high - low) / ((1 << bits) - 1))
    return Boxes(np.arange(count) // CHUNK_GAUSSIANS, columns)


def _reordered(scene: NativeScene) -> NativeScene:
    return sorted_in_boxes(scene, _boxes(scene.head, len(scene)))


NATIVE = NativeFormat(3, "compressed-ply", True, _unpack, _content, _write, _gaussians, _reordered, _boxes)
