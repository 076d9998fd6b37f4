"""Records to columns and back, shared by the formats that are taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ._native import Column

__all__ = ["AXES", "check_columns", "from_halves", "to_halves"]

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
