"""What the steps share: checked arguments, and the choice of rows."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import Gaussians

__all__ = ["edited", "kept", "number", "vector", "whole"]


def vector(name: str, value: npt.ArrayLike, *, infinite: bool = False) -> npt.NDArray[np.float64]:
    """`value` as (3,) float64.

    Raises:
        ParameterError: not three numbers, NaN, or infinite where that is not allowed.
    """
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != (3,) or np.isnan(array).any():
        raise ParameterError(f"{name} must be 3 numbers, not {value!r}", field=name)
    if not infinite and np.isinf(array).any():
        raise ParameterError(f"{name} must be finite", field=name)
    return array


def number(name: str, value: Any, *, least: float = -math.inf, most: float = math.inf, infinite: bool = False) -> float:
    """`value` as a float within `least` to `most`.

    Raises:
        ParameterError: not a number, NaN, out of range, or infinite where that is not allowed.
    """
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(f"{name} must be a number, not {value!r}", field=name) from None
    if math.isnan(result) or not least <= result <= most or (math.isinf(result) and not infinite):
        bounds = f" from {least:g} to {most:g}" if math.isfinite(most) else f", {least:g} or more"
        raise ParameterError(f"{name} is {result:g}, expected a number{bounds}", field=name)
    return result


def whole(name: str, value: Any) -> int:
    """`value` as a whole number of 0 or more.

    Raises:
        ParameterError: it is none.
    """
    try:
        result = operator.index(value)
    except TypeError:
        result = -1
    if result < 0:
        raise ParameterError(f"{name} must be a whole number of 0 or more, not {value!r}", field=name)
    return result


def edited(gaussians: Gaussians) -> Gaussians:
    """Without the metadata entry `source`, which names a file that holds exactly these values."""
    facts = {name: value for name, value in gaussians.metadata.items() if name != "source"}
    return gaussians.replaced(metadata=facts) if len(facts) < len(gaussians.metadata) else gaussians


def kept(gaussians: Gaussians, rows: npt.NDArray[np.bool_]) -> Gaussians:
    """The rows that are true; the scene itself where all are."""
    return gaussians if rows.all() else edited(gaussians.selected(rows))
