"""Rate differences between rate-distortion curves.

Bjontegaard's delta rate ("Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001) with log rate
interpolated over PSNR by piecewise cubics that keep monotone data monotone (PCHIP; Fritsch and Butland, 1984), as in
the reference software of current video standards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError

__all__ = ["bd_rate", "rate_at_psnr"]

Values = npt.NDArray[np.float64]


def _slopes(x: Values, y: Values) -> Values:
    """(n,) derivative at each of n >= 2 points for the PCHIP interpolant."""
    h = np.diff(x)
    delta = np.diff(y) / h
    if len(x) == 2:
        return np.array([delta[0], delta[0]])
    slopes = np.zeros(len(x))
    for k in range(1, len(x) - 1):
        if delta[k - 1] * delta[k] > 0:  # otherwise a local extremum: flat
            w1, w2 = 2 * h[k] + h[k - 1], h[k] + 2 * h[k - 1]
            slopes[k] = (w1 + w2) / (w1 / delta[k - 1] + w2 / delta[k])
    for end, h0, h1, d0, d1 in ((0, h[0], h[1], delta[0], delta[1]), (-1, h[-1], h[-2], delta[-1], delta[-2])):
        # Three-point estimate, held back where it would break the shape.
        slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
        if slope * d0 <= 0:
            slope = 0.0
        elif d0 * d1 <= 0 and abs(slope) > 3 * abs(d0):
            slope = 3 * d0
        slopes[end] = slope
    return slopes


def _interpolate(x: Values, y: Values, at: Values) -> Values:
    slopes = _slopes(x, y)
    k = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    h = x[k + 1] - x[k]
    t = (at - x[k]) / h
    return np.asarray(
        (1 + 2 * t) * (1 - t) ** 2 * y[k]
        + t * (1 - t) ** 2 * h * slopes[k]
        + t**2 * (3 - 2 * t) * y[k + 1]
        + t**2 * (t - 1) * h * slopes[k + 1]
    )


def _curve(rates: Sequence[float], psnrs_db: Sequence[float]) -> tuple[Values, Values]:
    """Points sorted by PSNR: PSNR and natural log of the rate."""
    rate, psnr = np.asarray(rates, np.float64), np.asarray(psnrs_db, np.float64)
    if rate.ndim != 1 or rate.shape != psnr.shape or len(rate) < 2:
        raise ParameterError("a curve needs two or more rates and as many PSNR values")
    if not (np.isfinite(rate).all() and np.isfinite(psnr).all() and (rate > 0).all()):
        raise ParameterError("rates must be positive, and all values finite")
    order = np.argsort(psnr, kind="stable")
    if not (np.diff(psnr[order]) > 0).all():
        raise ParameterError("two points of a curve have the same PSNR")
    return psnr[order], np.log(rate[order])


def rate_at_psnr(rates: Sequence[float], psnrs_db: Sequence[float], target_db: float) -> float:
    """Rate that a curve needs for `target_db`, in the unit of `rates`; log rate is interpolated over PSNR.

    Args:
        rates: two or more sizes or bit rates, any order.
        psnrs_db: PSNR of each, dB.
        target_db: between the lowest and the highest of `psnrs_db`: nothing is extrapolated.

    Raises:
        ParameterError: not a curve, or `target_db` lies outside of it.

    >>> round(rate_at_psnr([100, 400], [30, 40], 35), 6)
    200.0
    """
    psnr, log_rate = _curve(rates, psnrs_db)
    if not psnr[0] <= target_db <= psnr[-1]:
        raise ParameterError(f"{target_db} dB is outside of the curve, {psnr[0]:g} to {psnr[-1]:g} dB")
    return math.exp(float(_interpolate(psnr, log_rate, np.array([target_db]))[0]))


def bd_rate(
    anchor_rates: Sequence[float],
    anchor_psnrs_db: Sequence[float],
    test_rates: Sequence[float],
    test_psnrs_db: Sequence[float],
) -> float:
    """Average rate difference of the test curve against the anchor at equal PSNR, in per cent; negative is smaller.

    The average of the log ratio over the PSNR range that both curves have.

    Raises:
        ParameterError: not two curves, or no common range.

    >>> round(bd_rate([100, 200, 400], [30, 35, 40], [50, 100, 200], [30, 35, 40]), 6)
    -50.0
    """
    anchor, test = _curve(anchor_rates, anchor_psnrs_db), _curve(test_rates, test_psnrs_db)
    low, high = max(anchor[0][0], test[0][0]), min(anchor[0][-1], test[0][-1])
    if not low < high:
        raise ParameterError("the two curves have no PSNR range in common")
    # Between neighbouring knots both curves are cubics: two Gauss points integrate them exactly.
    knots = np.unique(np.clip(np.concatenate([anchor[0], test[0]]), low, high))
    middle, half = 0.5 * (knots[1:] + knots[:-1]), 0.5 * np.diff(knots)
    total = 0.0
    for node in (-1 / math.sqrt(3), 1 / math.sqrt(3)):
        at = middle + half * node
        total += float(np.sum(half * (_interpolate(*test, at) - _interpolate(*anchor, at))))
    return 100.0 * math.expm1(total / (high - low))
