"""Records to columns and back, shared by the formats that are taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..stages.lossless import spatial_order
from ..stages.lossless_boxes import Boxes
from ._native import Column, NativeScene

__all__ = ["AXES", "check_columns", "from_halves", "sorted_in_boxes", "sorted_in_space", "to_halves"]

AXES = "xyz"


def check_columns(columns: Mapping[str, Column], wanted: Sequence[tuple[str, npt.DTypeLike]]) -> None:
    """Raise FormatError unless these are the columns, in this order."""
    found = [(name, values.dtype.newbyteorder("=")) for name, values in columns.items()]
    if found != [(name, np.dtype(dtype)) for name, dtype in wanted]:
        raise FormatError("the columns are not those of the format", chunk="COLD")


def from_halves(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Half floats as float32."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float32)


def to_halves(values: Column) -> npt.NDArray[np.float16]:
    """Inverse of `from_halves`; what is no half float is rounded or overflows."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return values.astype("<f2")


def sorted_in_space(scene: NativeScene) -> NativeScene:
    """The Gaussians along a Morton curve."""
    return scene.permuted(spatial_order(*(scene.columns[axis] for axis in AXES)))


def sorted_in_boxes(scene: NativeScene, boxes: Boxes) -> NativeScene:
    """The Gaussians of each box along a Morton curve; boxes stay where they are."""
    order = spatial_order(*(boxes.position(axis, scene.columns[axis]) for axis in AXES))
    return scene.permuted(order[np.argsort(boxes.of_row[order], kind="stable")])
