"""From which directions, and how strongly, each Gaussian's colour is seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from ..render.camera import Camera
from ..render.sh import sh_basis_at

__all__ = ["ViewWeights", "direction_grams"]

_OCTAVE = 8  # codes per factor of two of a weight
_ONE = 128  # code of weight 1


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
