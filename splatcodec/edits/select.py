"""Steps that leave Gaussians, or SH bands, out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import MAX_SH_DEGREE, Gaussians
from ..sh_rotation import row_blocks
from ._checks import edited, kept, number, vector

__all__ = ["crop_box", "crop_sphere", "drop_sh_bands", "filter_opacity", "filter_size"]


def crop_box(gaussians: Gaussians, low: npt.ArrayLike, high: npt.ArrayLike, *, invert: bool = False) -> Gaussians:
    """Keep the Gaussians whose centres are in a box, its faces included; or all others.

    Args:
        low, high: (3,) opposite corners, world units; may be infinite.
        invert: keep what is outside. A centre that is NaN is outside, so a crop and its inverse share the scene.

    Raises:
        ParameterError: NaN, or `low` above `high`.
    """
    corners = vector("low", low, infinite=True), vector("high", high, infinite=True)
    if (corners[0] > corners[1]).any():
        raise ParameterError(f"the box ends before it begins: {corners[0].tolist()} to {corners[1].tolist()}")
    # float32 against float64: a corner between two float32 numbers stays between them.
    inside = np.asarray(((gaussians.means >= corners[0]) & (gaussians.means <= corners[1])).all(axis=1))
    return kept(gaussians, ~inside if invert else inside)


def crop_sphere(gaussians: Gaussians, center: npt.ArrayLike, radius: float, *, invert: bool = False) -> Gaussians:
    """Keep the Gaussians whose centres are in a sphere, its surface included; or all others.

    Args:
        center: (3,) world units. radius: world units, 0 or more, may be infinite.
        invert: keep what is outside. A centre that is NaN is outside.

    Raises:
        ParameterError: NaN, an infinite centre or a negative radius.
    """
    middle, reach = vector("center", center), number("radius", radius, least=0.0, infinite=True)
    inside = np.empty(len(gaussians), np.bool_)
    for rows in row_blocks(len(gaussians)):
        with np.errstate(invalid="ignore", over="ignore"):
            offsets = gaussians.means[rows].astype(np.float64) - middle
            inside[rows] = np.sqrt((offsets * offsets).sum(axis=1)) <= reach
    return kept(gaussians, ~inside if invert else inside)


def drop_sh_bands(gaussians: Gaussians, sh_degree: int) -> Gaussians:
    """Leave out the SH bands above `sh_degree`; a scene that has fewer stays as it is.

    Raises:
        ParameterError: `sh_degree` is not in 0..3.
    """
    if not 0 <= sh_degree <= MAX_SH_DEGREE:
        raise ParameterError(f"SH degree {sh_degree}, expected 0 to {MAX_SH_DEGREE}", field="sh_degree")
    return edited(gaussians.with_sh_degree(sh_degree)) if sh_degree < gaussians.sh_degree else gaussians


def filter_opacity(gaussians: Gaussians, min_alpha: float) -> Gaussians:
    """Keep the Gaussians that are at least so opaque.

    Args:
        min_alpha: 0..1, after the sigmoid; compared in float32. Opacities that are NaN go.

    Raises:
        ParameterError: out of range.
    """
    least = number("min_alpha", min_alpha, least=0.0, most=1.0)
    return kept(gaussians, gaussians.alphas() >= np.float32(least))


def filter_size(gaussians: Gaussians, *, min_size: float = 0.0, max_size: float = math.inf) -> Gaussians:
    """Keep the Gaussians that are neither too small nor too large.

    Args:
        min_size, max_size: standard deviation along the longest axis, world units, both included; compared in float32.
            Scales that are NaN go.

    Raises:
        ParameterError: NaN, negative, or `min_size` above `max_size`.
    """
    least = number("min_size", min_size, least=0.0)
    most = number("max_size", max_size, least=0.0, infinite=True)
    if least > most:
        raise ParameterError(f"sizes from {least:g} to {most:g}")
    with np.errstate(over="ignore"):
        sizes = np.exp(gaussians.scales.max(axis=1, initial=-np.inf).astype(np.float64)).astype(np.float32)
        return kept(gaussians, (sizes >= np.float32(least)) & (sizes <= np.float32(most)))
