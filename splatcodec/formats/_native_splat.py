"""`.splat` files as columns: their records, field by field.

Writers put the Gaussians that show most first, so files are nearly in the order of volume times opacity. That much of
the order need not be stored: rows are sorted in space, and a column says where they come before rows that show more.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, SplatCodecError
from ..gaussians import Gaussians
from ..limits import Limits
from ..stages.inversions import inversions_of, places_of
from ._native import Column, NativeFormat, NativeScene
from ._native_columns import AXES, check_columns, sorted_in_space
from .splat import RECORD, display_order, read_stream

__all__ = ["NATIVE"]

_FIELDS = (
    *((name, "mean", k) for k, name in enumerate(AXES)),
    *((f"scale_{k}", "scale", k) for k in range(3)),
    *((f"f_dc_{k}", "rgba", k) for k in range(3)),
    ("opacity", "rgba", 3),
    *((f"rot_{k}", "quat", k) for k in range(4)),
)
_COLUMNS = [(name, RECORD[field].base) for name, field, _ in _FIELDS]
_ORDER = "inversions"
# Sorting in space saves 12 to 14 bits of position a Gaussian.
_MOST_ORDER_BITS = 8.0


def _unpack(path: Path) -> tuple[NativeScene, bytes]:
    content = path.read_bytes()
    rows = np.frombuffer(content, RECORD)
    scene = NativeScene(b"", _columns(rows))
    inversions = _inversions(scene)
    if np.log2(2.0 * inversions + 1).mean() > _MOST_ORDER_BITS:
        return scene, content
    ordered = NativeScene(b"", {**scene.columns, _ORDER: inversions})
    return sorted_in_space(ordered), content


def _columns(rows: npt.NDArray[np.void]) -> dict[str, Column]:
    return {name: np.ascontiguousarray(rows[field][:, k]) for name, field, k in _FIELDS}


def _display_order(columns: Mapping[str, Column]) -> npt.NDArray[np.intp]:
    return display_order(columns["scale_0"], columns["scale_1"], columns["scale_2"], columns["opacity"])


def _inversions(scene: NativeScene) -> npt.NDArray[np.uint32]:
    """Of each row of a scene in file order: how many that should come before it come after it.

    Equal rows are in the order that they have along the curve, as a decoder sees them.
    """
    along = sorted_in_space(NativeScene(b"", {**scene.columns, "row": np.arange(len(scene))}))
    rows = along.columns["row"][_display_order(along.columns)]
    inversions = np.empty(len(scene), np.uint32)
    inversions[rows] = inversions_of(rows)
    return inversions


def _records(scene: NativeScene) -> npt.NDArray[np.void]:
    has_order = _ORDER in scene.columns
    check_columns(scene.columns, [*_COLUMNS, *([(_ORDER, np.uint32)] if has_order else [])])
    if scene.head:
        raise FormatError(".splat files have no head", chunk="NATV")
    rows = np.empty(len(scene), RECORD)
    for name, field, k in _FIELDS:
        rows[field][:, k] = scene.columns[name]
    if not has_order:
        return rows
    order = _display_order(scene.columns)
    try:
        places = places_of(scene.columns[_ORDER][order])
    except SplatCodecError as error:
        error.field = _ORDER
        raise error.locate(chunk="COLS") from None
    out = np.empty_like(rows)
    out[places] = rows[order]
    return out


def _content(scene: NativeScene) -> bytes:
    return _records(scene).tobytes()


def _write(scene: NativeScene, file: BinaryIO, threads: int | None) -> None:
    file.write(_content(scene))


def _gaussians(scene: NativeScene, limits: Limits) -> Gaussians:
    return read_stream(io.BytesIO(_content(scene)), limits)


def _reordered(scene: NativeScene) -> NativeScene:
    return sorted_in_space(NativeScene(b"", _columns(_records(scene))))


NATIVE = NativeFormat(1, "splat", True, _unpack, _content, _write, _gaussians, _reordered)
