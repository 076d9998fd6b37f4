"""`.ksplat` files as columns: their records, field by field; headers and buckets are the head."""

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
from . import ksplat
from ._native import NativeFormat, NativeScene
from ._native_columns import AXES, check_columns, from_halves, sorted_in_boxes, to_halves

__all__ = ["NATIVE"]

_SECTION_START = ksplat._HEADER_BYTES + ksplat._SECTION_BYTES


def _parse(data: bytes) -> tuple[Any, Any]:
    """Main header and the only section of a file, or of a head."""
    header = ksplat._parse_header(data[: ksplat._HEADER_BYTES])
    if header.num_sections != 1 or header.max_sections != 1 or len(data) < _SECTION_START:
        raise FormatError("it has several sections", chunk="header")
    section = ksplat._parse_section(data[ksplat._HEADER_BYTES : _SECTION_START], 0, _SECTION_START, header.level)
    if section.max_count != section.count or section.count != header.count:
        raise FormatError("it has room for more Gaussians than it holds", chunk="header")
    return header, section


def _fields(level: int, sh_degree: int) -> list[tuple[str, str, int]]:
    """(column, field of the record, component) in the order of the columns."""
    fields = [
        *((axis, "mean", k) for k, axis in enumerate(AXES)),
        *((f"scale_{k}", "scale", k) for k in range(3)),
        *((f"f_dc_{k}", "rgba", k) for k in range(3)),
        ("opacity", "rgba", 3),
        *((f"rot_{k}", "quat", k) for k in range(4)),
    ]
    columns = ksplat._sh_columns(sh_degree)  # of (K - 1, 3) values
    rest = len(columns) // 3
    fields += [(f"f_rest_{c * rest + k}", "sh", columns[3 * k + c]) for c in range(3) for k in range(rest)]
    return fields


def _dtype(record: np.dtype[Any], field: str) -> np.dtype[Any]:
    """Of a column: half floats become float32."""
    base = record[field].base
    return np.dtype(np.float32) if base == np.float16 else base


def _unpack(path: Path) -> tuple[NativeScene, bytes]:
    data = path.read_bytes()
    header, section = _parse(data)
    start = section.records_start()
    record = ksplat._record(header.level, section.sh_degree)
    rows = np.frombuffer(data, record, section.count, start)
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, field, k in _fields(header.level, section.sh_degree):
        values = np.ascontiguousarray(rows[field][:, k])
        columns[name] = from_halves(values) if values.dtype == np.float16 else values
    return NativeScene(data[:start], columns), data


def _content(scene: NativeScene) -> bytes:
    header, section = _parse(scene.head)
    record = ksplat._record(header.level, section.sh_degree)
    fields = _fields(header.level, section.sh_degree)
    check_columns(scene.columns, [(name, _dtype(record, field)) for name, field, _ in fields])
    if section.count != len(scene) or section.records_start() != len(scene.head):
        raise FormatError("the head is not that of the columns", chunk="NATV")
    rows = np.empty(len(scene), record)
    for name, field, k in fields:
        values = scene.columns[name]
        rows[field][:, k] = to_halves(values) if record[field].base == np.float16 else values
    return scene.head + rows.tobytes()


def _write(scene: NativeScene, file: BinaryIO, threads: int | None) -> None:
    file.write(_content(scene))


def _gaussians(scene: NativeScene, limits: Limits) -> Gaussians:
    return ksplat.read_stream(io.BytesIO(_content(scene)), limits)


def _boxes(head: bytes, count: int) -> Boxes:
    header, section = _parse(head)
    if section.count != count or section.records_start() != len(head):
        raise FormatError("the head is not that of the columns", chunk="NATV")
    if not header.level:
        return Boxes(np.zeros(count, np.int64))
    DEFAULT_LIMITS.check_gaussians(count)
    of_row, centers = ksplat._buckets(io.BytesIO(head), section, "NATV")
    step = section.block_size / 2 / section.offset_range
    steps = np.full(len(centers), step)
    corners = centers.astype(np.float64) - section.offset_range * step
    return Boxes(of_row, {axis: normalized(corners[:, k], steps) for k, axis in enumerate(AXES)})


def _reordered(scene: NativeScene) -> NativeScene:
    return sorted_in_boxes(scene, _boxes(scene.head, len(scene)))


NATIVE = NativeFormat(4, "ksplat", True, _unpack, _content, _write, _gaussians, _reordered, _boxes)
