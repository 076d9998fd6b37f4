"""Boxes: integer columns that count steps from the corner of their row's box (bitstreams/SPEC.md, section 4.6).

Formats that store positions as fractions of a chunk or offsets in a bucket have such columns. Near rows predict each
other across boxes if the predictions see offset + step * integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

__all__ = ["Boxes", "normalized"]

_LIMIT = 1e15
Reals = npt.NDArray[np.float64]


def normalized(offset: Reals, step: Reals) -> tuple[Reals, Reals, int]:
    """(offset, step, exponent): both in units of 2**exponent, which is about a usual step; finite, steps above 0."""
    with np.errstate(invalid="ignore"):
        good = np.isfinite(step) & (np.abs(step) > 1e-30) & (np.abs(step) < _LIMIT)
    step = np.where(good, np.abs(step), 0.0)
    known = np.sort(step[good])
    exponent = int(np.frexp(known[(len(known) - 1) // 2])[1]) - 1 if len(known) else 0
    unit = 2.0**exponent
    with np.errstate(invalid="ignore"):
        near = np.abs(offset) <= _LIMIT * unit
    return np.where(near, offset, 0.0) / unit, np.clip(np.where(good, step / unit, 1.0), 2.0**-20, 2.0**20), exponent


@dataclass(frozen=True)
class Boxes:
    """Boxes of some columns.

    Attributes:
        of_row: (n,) which box each row is in.
        columns: by name, `normalized` (offset, step, exponent) of each box: (B,) float64 twice, int.
    """

    of_row: npt.NDArray[np.int64]
    columns: Mapping[str, tuple[Reals, Reals, int]] = field(default_factory=dict)

    def rows(self, start: int, stop: int) -> Boxes:
        """The boxes of some rows."""
        return Boxes(self.of_row[start:stop], self.columns)

    def check(self, count: int) -> None:
        """Raise FormatError unless there is a box for each of `count` rows."""
        if len(self.of_row) != count:
            raise FormatError(f"boxes for {len(self.of_row)} of {count} rows")

    def has(self, name: str) -> bool:
        """Whether a column has boxes."""
        return name in self.columns

    def frame(self, name: str) -> tuple[Reals, Reals]:
        """(n,) offset and step of each row, in units of 2**exponent of the column."""
        offset, step, _ = self.columns[name]
        return offset[self.of_row], step[self.of_row]

    def placed(self, name: str, values: npt.NDArray) -> Reals:
        """(n,) what predictions see of a column: offset + step * integer."""
        offset, step = self.frame(name)
        return offset + step * values.astype(np.float64)

    def position(self, name: str, values: npt.NDArray) -> Reals:
        """(n,) coordinates, with all axes in the same unit."""
        return self.placed(name, values) * 2.0 ** self.columns[name][2] if self.has(name) else values
