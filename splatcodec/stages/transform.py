"""From integers to attributes and back: covariance, opacity, positions in leaves, colour (SPEC.md, section 5).

Decoding uses integer tables and + - * / sqrt on float64 in a fixed order, so that decoders agree to the bit up to the
covariance; turning a covariance into quaternion and scales is outside that promise (relative error below 1e-5).

Covariance is coded as the factors of Sigma + blur^2 I = L D L^T (L unit lower triangular, D diagonal): log-spaced
sqrt(D) and off-diagonals in whitened units L_ij sqrt(D_j / D_i). No axis order, no sign, no rotation ambiguity, the
same relative precision at any anisotropy; `blur` keeps precision from being spent below what a pixel can show.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = [
    "EXP2_STEPS",
    "covariance_factors",
    "decode_alpha",
    "decode_covariance",
    "decompose_covariance",
    "exp2_fixed",
    "logits",
    "position_bits",
    "rotation_matrices",
]

EXP2_STEPS = 1024
_MAX_EXPONENT = 500
Floats = npt.NDArray[np.float64]


def _exp2_table() -> Floats:
    """2**(i / 1024) for i in 0..1023, from square roots and products alone (SPEC.md gives the order)."""
    roots = []
    root = 2.0
    for _ in range(10):
        root = math.sqrt(root)
        roots.append(root)  # 2**(1/2), 2**(1/4), ...
    table = np.ones(EXP2_STEPS, np.float64)
    for i in range(EXP2_STEPS):
        value = 1.0
        for bit in range(10):
            if i & (512 >> bit):
                value = value * roots[bit]
        table[i] = value
    return table


EXP2_TABLE = _exp2_table()


@njit(cache=True)
def exp2_fixed(t):
    """2**(t / 1024) for an integer t; the exponent is held to +-500."""
    e = t >> 10
    if e > _MAX_EXPONENT:
        return 2.0**_MAX_EXPONENT
    if e < -_MAX_EXPONENT:
        return 2.0**-_MAX_EXPONENT
    return math.ldexp(EXP2_TABLE[t & 1023], e)


def rotation_matrices(quats: npt.NDArray[np.float32]) -> Floats:
    """(n, 3, 3) float64 rotations of (n, 4) unit quaternions, w x y z."""
    w, x, y, z = quats.astype(np.float64).T
    rotation: Floats = np.empty((len(quats), 3, 3))
    rotation[:, 0] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], 1)
    rotation[:, 1] = np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], 1)
    rotation[:, 2] = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1)
    return rotation


def covariance_factors(
    quats: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], blur: npt.NDArray[np.float64] | float
) -> tuple[Floats, Floats]:
    """LDL^T factors of R diag(exp(scales))^2 R^T + blur^2 I.

    Args:
        quats: (n, 4) unit quaternions, w x y z.
        scales: (n, 3) natural log scales.
        blur: world units, a number or (n,).

    Returns:
        (n, 3) float64 sqrt(D), and (n, 3) float64 L21, L31, L32.
    """
    rotation = rotation_matrices(quats)
    # Axes much thinner than the longest one cannot be told apart in double precision; keep the ratio below 1e5.
    s = scales.astype(np.float64)
    s = np.exp(np.maximum(s, s.max(1, keepdims=True) - 11.5))
    half = rotation * s[:, None, :]
    a, b, c = half[:, 0], half[:, 1], half[:, 2]
    extra = np.broadcast_to(np.asarray(blur, np.float64) ** 2, (len(quats),))
    d1 = (a * a).sum(1) + extra
    l21 = (a * b).sum(1) / d1
    l31 = (a * c).sum(1) / d1
    d2 = (b * b).sum(1) + extra - l21 * l21 * d1
    floor = 1e-12
    d2 = np.maximum(d2, floor * ((b * b).sum(1) + extra))
    l32 = ((b * c).sum(1) - l31 * l21 * d1) / d2
    full3 = (c * c).sum(1) + extra
    d3 = np.maximum(full3 - l31 * l31 * d1 - l32 * l32 * d2, floor * full3)
    return np.sqrt(np.stack([d1, d2, d3], 1)), np.stack([l21, l31, l32], 1)


@njit(cache=True, nogil=True)
def decode_covariance(values, first, size_step, shape_step, blur, covariances):
    """Covariances of a tile.

    Args:
        values: (n, S) int32; columns `first`..`first + 5` are log2 sqrt(D) and L21, L31, L32 in whitened units.
        size_step: 1/1024 octaves of sqrt(D) a base unit.
        shape_step: float64 whitened units a base unit.
        blur: float64 world units, taken out again.
        covariances: (n, 6) float64 out: xx, xy, xz, yy, yz, zz.
    """
    square = blur * blur
    for i in range(covariances.shape[0]):
        r1 = exp2_fixed(np.int64(values[i, first]) * size_step)
        r2 = exp2_fixed(np.int64(values[i, first + 1]) * size_step)
        r3 = exp2_fixed(np.int64(values[i, first + 2]) * size_step)
        # Columns of L sqrt(D): entries below the diagonal are w * r_i by the definition of whitened units.
        b = (values[i, first + 3] * shape_step) * r2
        c = (values[i, first + 4] * shape_step) * r3
        f = (values[i, first + 5] * shape_step) * r3
        covariances[i, 0] = r1 * r1 - square
        covariances[i, 1] = r1 * b
        covariances[i, 2] = r1 * c
        covariances[i, 3] = (b * b + r2 * r2) - square
        covariances[i, 4] = b * c + r2 * f
        covariances[i, 5] = ((c * c + f * f) + r3 * r3) - square


_LANES = 32  # Gaussians whose covariances are decomposed together
# Where the lanes of each number are: six of the matrix, nine of its axes, whether it is not diagonal yet.
_XX, _XY, _XZ, _YY, _YZ, _ZZ = (k * _LANES for k in range(6))
_V00, _V01, _V02, _V10, _V11, _V12, _V20, _V21, _V22 = (k * _LANES for k in range(6, 15))
_ACTIVE = 15 * _LANES


# Divisions as numpy does them: what raises an error cannot vectorise.
@njit(cache=True, inline="always", error_model="numpy")
def _jacobi(w, pp, qq, pq, pr, qr, p0, q0, p1, q1, p2, q2):
    """Rotate all lanes so that their entry `pq` vanishes. One loop without a branch, so that it vectorises."""
    for k in range(_LANES):
        apq, app, aqq = w[pq + k], w[pp + k], w[qq + k]
        turned = (w[_ACTIVE + k] != 0.0) & (apq != 0.0)
        theta = (aqq - app) / (2.0 * (apq if turned else 1.0))
        t = 1.0 / (abs(theta) + math.sqrt(theta * theta + 1.0))
        t = -t if theta < 0.0 else t
        c = 1.0 / math.sqrt(t * t + 1.0)
        s = t * c
        # Lanes at rest turn by nothing, which changes no bit of them.
        t, c, s = (t if turned else 0.0), (c if turned else 1.0), (s if turned else 0.0)
        step = t * apq
        apr, aqr = w[pr + k], w[qr + k]
        w[pp + k] = app - step
        w[qq + k] = aqq + step
        w[pq + k] = 0.0 if turned else apq
        w[pr + k] = c * apr - s * aqr
        w[qr + k] = s * apr + c * aqr
        a0, b0, a1, b1, a2, b2 = w[p0 + k], w[q0 + k], w[p1 + k], w[q1 + k], w[p2 + k], w[q2 + k]
        w[p0 + k] = c * a0 - s * b0
        w[q0 + k] = s * a0 + c * b0
        w[p1 + k] = c * a1 - s * b1
        w[q1 + k] = s * a1 + c * b1
        w[p2 + k] = c * a2 - s * b2
        w[q2 + k] = s * a2 + c * b2


@njit(cache=True, nogil=True, error_model="numpy")
def decompose_covariance(covariances, smallest, quats, scales):
    """Quaternions and log scales of covariances, by Jacobi rotations.

    Args:
        covariances: (n, 6) float64 xx, xy, xz, yy, yz, zz; need not be positive.
        smallest: float64 world units; standard deviations are held to at least this.
        quats: (n, 4) float32 out, w x y z, unit, w >= 0.
        scales: (n, 3) float32 out, natural log.
    """
    n = covariances.shape[0]
    w = np.zeros(16 * _LANES)
    for first in range(0, n, _LANES):
        count = min(_LANES, n - first)
        w[:] = 0.0
        for k in range(count):
            for entry in range(6):
                w[entry * _LANES + k] = covariances[first + k, entry]
        for k in range(_LANES):
            w[_V00 + k] = w[_V11 + k] = w[_V22 + k] = 1.0
        for _ in range(12):
            left = 0.0
            for k in range(_LANES):
                off = abs(w[_XY + k]) + abs(w[_XZ + k]) + abs(w[_YZ + k])
                whole = abs(w[_XX + k]) + abs(w[_YY + k]) + abs(w[_ZZ + k])
                # Not `off > ...`: what is no number goes on, as it ever did.
                active = 0.0 if off <= 1e-14 * whole else 1.0
                w[_ACTIVE + k] = active
                left = max(left, active)
            if left == 0.0:
                break
            _jacobi(w, _XX, _YY, _XY, _XZ, _YZ, _V00, _V01, _V10, _V11, _V20, _V21)
            _jacobi(w, _XX, _ZZ, _XZ, _XY, _YZ, _V00, _V02, _V10, _V12, _V20, _V22)
            _jacobi(w, _YY, _ZZ, _YZ, _XY, _XZ, _V01, _V02, _V11, _V12, _V21, _V22)
        for k in range(count):
            _store_axes(w, k, smallest, quats[first + k], scales[first + k])


@njit(cache=True, inline="always")
def _store_axes(w, k, smallest, quat, scale):
    """Quaternion and log scales of lane k."""
    v00, v01, v02 = w[_V00 + k], w[_V01 + k], w[_V02 + k]
    v10, v11, v12 = w[_V10 + k], w[_V11 + k], w[_V12 + k]
    v20, v21, v22 = w[_V20 + k], w[_V21 + k], w[_V22 + k]
    det = v00 * (v11 * v22 - v12 * v21) - v01 * (v10 * v22 - v12 * v20) + v02 * (v10 * v21 - v11 * v20)
    if det < 0.0:
        v02, v12, v22 = -v02, -v12, -v22
    scale[0] = math.log(max(math.sqrt(max(w[_XX + k], 0.0)), smallest))
    scale[1] = math.log(max(math.sqrt(max(w[_YY + k], 0.0)), smallest))
    scale[2] = math.log(max(math.sqrt(max(w[_ZZ + k], 0.0)), smallest))
    # Shepperd's method: divide by the largest component.
    tr = v00 + v11 + v22
    if tr > 0.0:
        s = math.sqrt(tr + 1.0) * 2.0
        w, x, y, z = 0.25 * s, (v21 - v12) / s, (v02 - v20) / s, (v10 - v01) / s
    elif v00 > v11 and v00 > v22:
        s = math.sqrt(1.0 + v00 - v11 - v22) * 2.0
        w, x, y, z = (v21 - v12) / s, 0.25 * s, (v01 + v10) / s, (v02 + v20) / s
    elif v11 > v22:
        s = math.sqrt(1.0 + v11 - v00 - v22) * 2.0
        w, x, y, z = (v02 - v20) / s, (v01 + v10) / s, 0.25 * s, (v12 + v21) / s
    else:
        s = math.sqrt(1.0 + v22 - v00 - v11) * 2.0
        w, x, y, z = (v10 - v01) / s, (v02 + v20) / s, (v12 + v21) / s, 0.25 * s
    sign = -1.0 if w < 0.0 else 1.0
    quat[0] = sign * w
    quat[1] = sign * x
    quat[2] = sign * y
    quat[3] = sign * z


@njit(cache=True)
def position_bits(edge_exponent, depth, size_value, size_step, precision, cls):
    """Plain bits of a position along one axis inside its leaf, 0..30.

    The leaf's edge is 2**(edge_exponent - depth); the step wanted is
    2**(precision / 1024 + cls) * sqrt(D) with sqrt(D) = 2**(size_value * size_step / 1024).
    """
    want = ((edge_exponent - depth - cls) << 10) - size_value * size_step - precision
    return min(max(-((-want) >> 10), 0), 30)


@njit(cache=True, nogil=True)
def decode_alpha(values, column, opacity_step, alphas):
    """(n,) float64 opacities from a column of `values`: -log2(alpha) in units of `opacity_step` / 1024 octaves."""
    for i in range(len(alphas)):
        alpha = exp2_fixed(-np.int64(max(values[i, column], 0)) * opacity_step)
        alphas[i] = min(max(alpha, 1.0 / 4096.0), 4095.0 / 4096.0)


@njit(cache=True, nogil=True)
def logits(alphas, opacities):
    """(n,) float32 logits of opacities strictly between 0 and 1."""
    for i in range(len(opacities)):
        opacities[i] = math.log(alphas[i] / (1.0 - alphas[i]))
