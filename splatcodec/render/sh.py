"""Real spherical harmonics in the order and signs of 3DGS files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ..errors import ParameterError
from ..gaussians import MAX_SH_DEGREE, num_sh_coefficients

__all__ = ["sh_basis", "sh_basis_at"]


@njit(cache=True, nogil=True)
def sh_basis_at(x, y, z, out):
    """Real SH up to the degree that fills `out` (K,), 3DGS order and signs."""
    out[0] = 0.28209479177387814
    if len(out) > 1:
        out[1] = -0.4886025119029199 * y
        out[2] = 0.4886025119029199 * z
        out[3] = -0.4886025119029199 * x
    if len(out) > 4:
        out[4] = 1.0925484305920792 * x * y
        out[5] = -1.0925484305920792 * y * z
        out[6] = 0.31539156525252005 * (2.0 * z * z - x * x - y * y)
        out[7] = -1.0925484305920792 * x * z
        out[8] = 0.5462742152960396 * (x * x - y * y)
    if len(out) > 9:
        out[9] = -0.5900435899266435 * y * (3.0 * x * x - y * y)
        out[10] = 2.890611442640554 * x * y * z
        out[11] = -0.4570457994644658 * y * (4.0 * z * z - x * x - y * y)
        out[12] = 0.3731763325901154 * z * (2.0 * z * z - 3.0 * x * x - 3.0 * y * y)
        out[13] = -0.4570457994644658 * x * (4.0 * z * z - x * x - y * y)
        out[14] = 1.445305721320277 * z * (x * x - y * y)
        out[15] = -0.5900435899266435 * x * (x * x - 3.0 * y * y)


@njit(cache=True, nogil=True)
def _fill(directions, basis):
    row = np.empty(basis.shape[1], np.float64)
    for i in range(len(basis)):
        sh_basis_at(directions[i, 0], directions[i, 1], directions[i, 2], row)
        for k in range(len(row)):
            basis[i, k] = row[k]


def sh_basis(sh_degree: int, directions: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Real spherical harmonics (N, K) float32 at unit directions (N, 3), K = (sh_degree + 1)**2.

    Colours are 0.5 + sum over K of basis times coefficients, then at least 0. Order and signs are those of 3DGS files.

    Raises:
        ParameterError: `sh_degree` is not in 0..3.
    """
    if not 0 <= sh_degree <= MAX_SH_DEGREE:
        raise ParameterError(f"SH degree {sh_degree}, expected 0 to {MAX_SH_DEGREE}")
    basis = np.empty((len(directions), num_sh_coefficients(sh_degree)), np.float32)
    _fill(np.asarray(directions, np.float64).reshape(-1, 3), basis)
    return basis
