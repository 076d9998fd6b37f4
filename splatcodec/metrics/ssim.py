"""SSIM (Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004)."""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..render.kernel import default_num_threads, kernel, run_threaded
from ..render.rendering import Rendering
from .psnr import clamped_pairs

__all__ = ["image_ssim", "ssim"]

_RADIUS = 5
_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2
_ROWS_PER_TASK = 32


@kernel
def _ssim_rows(first, last, a, b, window, sums):
    """Write the sum of SSIM over each row first..last of planes a, b (H, W) into `sums`."""
    height, width = a.shape
    # Five products, filtered down the columns; the margins stay zero (pictures continue in black).
    columns = np.zeros((5, width + 2 * _RADIUS))
    for y in range(first, last):
        columns[:] = 0.0
        for k in range(2 * _RADIUS + 1):
            row = y + k - _RADIUS
            if row < 0 or row >= height:
                continue
            weight = window[k]
            for x in range(width):
                p, q = a[row, x], b[row, x]
                at = np.uint64(x + _RADIUS)
                columns[0, at] += weight * p
                columns[1, at] += weight * q
                columns[2, at] += weight * (p * p)
                columns[3, at] += weight * (q * q)
                columns[4, at] += weight * (p * q)
        total = 0.0
        for x in range(width):
            p = q = pp = qq = pq = 0.0
            for k in range(2 * _RADIUS + 1):
                at = np.uint64(x + k)
                weight = window[k]
                p += weight * columns[0, at]
                q += weight * columns[1, at]
                pp += weight * columns[2, at]
                qq += weight * columns[3, at]
                pq += weight * columns[4, at]
            above = (2.0 * (p * q) + _C1) * (2.0 * (pq - p * q) + _C2)
            below = (p * p + q * q + _C1) * ((pp - p * p) + (qq - q * q) + _C2)
            total += above / below
        sums[y] = total


def image_ssim(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating], *, num_threads: int | None = None) -> float:
    """Mean SSIM of two pictures with values 0..1.

    A Gaussian window of 11 x 11 pixels with sigma 1.5, K 0.01 and 0.03, each channel for itself; the mean over all
    pixels, with the pictures continued in black, as the papers of this field compute it.

    Args:
        a, b: (H, W, C) or (H, W) of the same shape.
        num_threads: threads to use; the result does not depend on it.

    Raises:
        ParameterError: the shapes differ, or there are no pixels.
    """
    a, b = (np.asarray(picture, np.float64) for picture in (a, b))
    if a.shape != b.shape or a.ndim not in (2, 3) or not a.size:
        raise ParameterError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared")
    offsets = range(-_RADIUS, _RADIUS + 1)
    weights = [math.exp(-0.5 * (offset / _SIGMA) ** 2) for offset in offsets]
    window = np.array(weights) / math.fsum(weights)
    planes = [np.ascontiguousarray(np.atleast_3d(picture).transpose(2, 0, 1)) for picture in (a, b)]
    channels, height, _ = planes[0].shape
    sums = np.empty((channels, height))
    tasks = [
        (row, min(row + _ROWS_PER_TASK, height), planes[0][c], planes[1][c], window, sums[c])
        for c in range(channels)
        for row in range(0, height, _ROWS_PER_TASK)
    ]
    run_threaded(_ssim_rows, tasks, default_num_threads() if num_threads is None else num_threads)
    return math.fsum(sums.reshape(-1).tolist()) / a.size


def ssim(reference: Rendering, decoded: Rendering, *, num_threads: int | None = None) -> float:
    """Mean SSIM of two renderings, clamped to 0..1, on black or on white, whichever is worse.

    Raises:
        ParameterError: the pictures differ in size.
    """
    return min(image_ssim(a, b, num_threads=num_threads) for a, b in clamped_pairs(reference, decoded))
