"""From which directions, and how strongly, each Gaussian's colour is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from numba import njit

from ..render.camera import Camera
from ..render.contribution import Contributions
from ..render.sh import sh_basis_at

__all__ = ["ViewWeights", "balanced", "direction_grams"]

_OCTAVE = 8  # codes per factor of two of a weight
_ONE = 128  # code of weight 1
_WEIGHTS = np.where(np.arange(256) > 0, 2.0 ** ((np.arange(256) - _ONE) / _OCTAVE), 0.0)
_MOST_SHIFT = 5 * _OCTAVE  # of a view's weight


class ViewWeights:
    """Sum of squared blending weights of every Gaussian in every view, one byte each.

    Args:
        cameras: the V views. num_gaussians: N.

    Attributes:
        codes: (V, N) uint8; 0 = not seen, else the weight is 2**((code - 128) / 8), within 5 %.
        centers: (V, 3) float64 camera positions.
    """

    def __init__(self, cameras: Sequence[Camera], num_gaussians: int) -> None:
        self.codes = np.zeros((len(cameras), num_gaussians), np.uint8)
        self.centers = np.array([camera.center for camera in cameras], np.float64).reshape(-1, 3)

    def add(self, view: int, ids: npt.NDArray[np.int32], weights: npt.NDArray[np.float64]) -> None:
        """Record one view: `weights` (V,) of the Gaussians `ids`."""
        seen = weights > 0
        codes = np.rint(np.log2(weights[seen]) * _OCTAVE) + _ONE
        self.codes[view, ids[seen]] = np.clip(codes, 1, 255).astype(np.uint8)

    def sums(self, views: int) -> npt.NDArray[np.float64]:
        """(N,) float64: of each Gaussian the sum of its weights in the first views, within 5 %."""
        sums = np.zeros(self.codes.shape[1])
        for codes in self.codes[:views]:
            sums += _WEIGHTS[codes]
        return sums


def balanced(
    measured: Contributions, seen: ViewWeights, power: float, norm: float = 1.0
) -> tuple[Contributions, ViewWeights]:
    """Sums in which views count the more, the worse they are expected to look.

    With one slope for all Gaussians a view's error is proportional to the sum of s_iv / S_i over its Gaussians: what
    few views show is coarse, and views of much of it are bad. Counting view v by the `power` of that sum costs bytes at
    the same mean over views, and lifts the worst.

    Args:
        measured: sums over the views of `seen`, all alike.
        power: 0 leaves everything as it is.
        norm: of a Gaussian's sensitivities over the views; above 1, what is seen in few of them counts more.

    Returns:
        The weighted sums (`sum_weight`, `max_weight`, `hits` and `pixel_size` stay) and view weights.
    """
    if power == 0 or not len(seen.codes):
        return measured, seen
    errors = _view_errors(seen.codes, _WEIGHTS)
    mean = errors.mean()
    if not mean > 0:
        return measured, seen
    shifts = np.rint(_OCTAVE * power * np.log2(np.maximum(errors / mean, 1e-9)))
    shifts = np.clip(shifts, -_MOST_SHIFT, _MOST_SHIFT).astype(np.int64)
    factors = _weighted_share(seen.codes, _WEIGHTS, 2.0 ** (shifts / _OCTAVE), norm)
    factors /= np.mean(2.0 ** (shifts / _OCTAVE))
    if norm != 1.0:  # which makes all sums larger: keep what they predict of the error at a slope
        factors *= np.mean(1.0 / factors[measured.sum_weight2 > 0])
    other = ViewWeights((), 0)
    other.centers = seen.centers
    moved = np.clip(seen.codes.astype(np.int16) + shifts[:, None].astype(np.int16), 1, 255)
    other.codes = np.where(seen.codes > 0, moved, 0).astype(np.uint8)
    return replace(
        measured,
        sum_weight2=measured.sum_weight2 * factors,
        s_logalpha=measured.s_logalpha * factors,
        s_position=measured.s_position * factors,
        s_cov=measured.s_cov * factors,
    ), other


@njit(cache=True, nogil=True)
def _view_errors(codes, table):  # type: ignore[no-untyped-def]
    """(V,) float64: of each view the sum over Gaussians of their weight in it over their weight in all views."""
    errors = np.zeros(len(codes))
    for i in range(codes.shape[1]):
        total = 0.0
        for view in range(len(codes)):
            total += table[codes[view, i]]
        if total > 0.0:
            for view in range(len(codes)):
                errors[view] += table[codes[view, i]] / total
    return errors


@njit(cache=True, nogil=True)
def _weighted_share(codes, table, views, norm):  # type: ignore[no-untyped-def]
    """(N,) float64: what a Gaussian's weight becomes when views count by `views` (V,), as a share; 1 if unseen."""
    shares = np.ones(codes.shape[1])
    for i in range(codes.shape[1]):
        total = weighted = 0.0
        for view in range(len(codes)):
            weight = table[codes[view, i]]
            total += weight
            weight *= views[view]
            weighted += weight if norm == 1.0 else weight**norm
        if norm != 1.0:
            weighted = len(codes) * (weighted / len(codes)) ** (1.0 / norm)
        if total > 0.0:
            shares[i] = weighted / total
    return shares


@njit(cache=True, nogil=True)
def direction_grams(rows, means, codes, centers, band_basis, ridge, factors):  # type: ignore[no-untyped-def]
    """How errors of a Gaussian's SH coefficients add up in the pictures, factored for error feedback.

    For coefficient errors e (in the basis `band_basis` above degree 0) the error seen is e^T G e with
    G = sum over views of weight * Y Y^T. With G = F^T diag(d) F, F unit lower triangular, it is
    sum_k d_k (e_k + sum_{j<k} F_kj e_j)^2: what F says of earlier errors can be made good by later coefficients.

    Args:
        rows: (n,) int64 Gaussians. means: (N, 3) float32. codes: (V, N) uint8. centers: (V, 3) float64.
        band_basis: (K-1, K-1) float64, columns are the coded components.
        ridge: added to the diagonal, as a share of its mean: directions outside the views count a little.
        factors: (n, K (K-1) / 2) float32 out, F below its diagonal, row by row; zero where no view sees the Gaussian.
    """
    size = band_basis.shape[0] + 1
    y = np.zeros(size)
    gram = np.zeros((size, size))
    half = np.zeros((size, size))
    for i in range(len(rows)):
        row = rows[i]
        gram[:, :] = 0.0
        seen = False
        for view in range(len(centers)):
            code = codes[view, row]
            if code == 0:
                continue
            dx = means[row, 0] - centers[view, 0]
            dy = means[row, 1] - centers[view, 1]
            dz = means[row, 2] - centers[view, 2]
            norm = np.sqrt(dx * dx + dy * dy + dz * dz)
            if norm == 0.0:
                continue
            seen = True
            weight = 2.0 ** ((np.float64(code) - _ONE) / _OCTAVE)
            sh_basis_at(dx / norm, dy / norm, dz / norm, y)
            for a in range(size):
                w = weight * y[a]
                for b in range(a + 1):
                    gram[a, b] += w * y[b]
        factors[i] = 0.0
        if not seen:
            continue
        trace = 0.0
        for a in range(size):
            trace += gram[a, a]
            for b in range(a):
                gram[b, a] = gram[a, b]
        # Into the coded basis: rows, then columns; inner loops run along rows, so that they vectorise.
        half[:, :] = 0.0
        half[0, :] = gram[0, :]
        for b in range(1, size):
            for k in range(1, size):
                f = band_basis[b - 1, k - 1]
                for c in range(size):
                    half[k, c] += f * gram[b, c]
        gram[:, :] = 0.0
        for k in range(size):
            gram[k, 0] = half[k, 0]
            for b in range(1, size):
                f = half[k, b]
                for c in range(1, size):
                    gram[k, c] += f * band_basis[b - 1, c - 1]
        for k in range(size):
            gram[k, k] += ridge * trace / size
        # Eliminate from the last coefficient: what is left for earlier ones is the error that later ones cannot mend.
        for k in range(size - 1, -1, -1):
            pivot = gram[k, k]
            if not pivot > 0.0:
                continue
            for j in range(k):
                factors[i, (k * (k - 1)) // 2 + j] = gram[k, j] / pivot
            for a in range(k):
                f = gram[k, a]
                for b in range(k):
                    gram[a, b] -= f * gram[k, b] / pivot
