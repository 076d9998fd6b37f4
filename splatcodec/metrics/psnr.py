"""PSNR over the pixels that either picture covers, and over the whole picture.

Both pictures are put on black and again on white, clamped to 0..1 and not rounded; the worse of the two counts.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..render.rendering import Rendering

__all__ = ["COVERED_ALPHA", "MAX_PSNR_DB", "covered_mask", "covered_psnr_db", "full_psnr_db", "psnr_db", "psnr_pair_db"]

#: Pixels with more coverage than this in one of the two pictures count.
COVERED_ALPHA = 0.05
#: Better than this is reported as this.
MAX_PSNR_DB = 100.0
BACKGROUNDS = (0.0, 1.0)


def psnr_db(mean_squared_error: float) -> float:
    """Decibels of a mean squared error of values 0..1, at most 100.

    >>> psnr_db(0.01), psnr_db(0.0)
    (20.0, 100.0)
    """
    if mean_squared_error <= 10.0 ** (-MAX_PSNR_DB / 10.0):
        return MAX_PSNR_DB
    return -10.0 * math.log10(mean_squared_error)


def clamped_pairs(
    reference: Rendering, decoded: Rendering
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Both pictures on each background, (H, W, 3) float32 in 0..1.

    Raises:
        ParameterError: the pictures differ in size.
    """
    if reference.rgb.shape != decoded.rgb.shape:
        raise ParameterError(f"pictures of shapes {reference.rgb.shape} and {decoded.rgb.shape} cannot be compared")
    return [
        (np.clip(reference.over(background), 0.0, 1.0), np.clip(decoded.over(background), 0.0, 1.0))
        for background in BACKGROUNDS
    ]


def covered_mask(reference: Rendering, decoded: Rendering) -> npt.NDArray[np.bool_]:
    """(H, W) bool: where either picture's alpha is above 0.05, so that paint outside a silhouette costs."""
    return (reference.alpha > COVERED_ALPHA) | (decoded.alpha > COVERED_ALPHA)


def psnr_pair_db(reference: Rendering, decoded: Rendering) -> tuple[float, float]:
    """`covered_psnr_db` and `full_psnr_db` of the same pictures, for less than twice the work."""
    pairs = clamped_pairs(reference, decoded)
    mask = covered_mask(reference, decoded)
    covered, full = [], []
    for a, b in pairs:
        difference = a - b
        difference *= difference
        squared = difference[..., 0] + difference[..., 1] + difference[..., 2]
        covered.append(float(squared[mask].mean(dtype=np.float64)) / 3.0 if mask.any() else 0.0)
        full.append(float(squared.mean(dtype=np.float64)) / 3.0)
    return psnr_db(max(covered)), psnr_db(max(full))


def covered_psnr_db(reference: Rendering, decoded: Rendering) -> float:
    """PSNR over the covered pixels, in dB, at most 100; 100 where neither picture covers anything.

    Raises:
        ParameterError: the pictures differ in size.
    """
    return psnr_pair_db(reference, decoded)[0]


def full_psnr_db(reference: Rendering, decoded: Rendering) -> float:
    """PSNR over the whole picture, in dB, at most 100. Flatters objects on an empty background.

    Raises:
        ParameterError: the pictures differ in size.
    """
    return psnr_pair_db(reference, decoded)[1]
