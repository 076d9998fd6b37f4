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


@njit(cache=True, nogil=True)
def decompose_covariance(covariances, smallest, quats, scales):
    """Quaternions and log scales of covariances, by Jacobi rotations.

    Args:
        covariances: (n, 6) float64 xx, xy, xz, yy, yz, zz; need not be positive.
        smallest: float64 world units; standard deviations are held to at least this.
        quats: (n, 4) float32 out, w x y z, unit, w >= 0.
        scales: (n, 3) float32 out, natural log.
    """
    a = np.zeros((3, 3))
    v = np.zeros((3, 3))
    for i in range(covariances.shape[0]):
        a[0, 0] = covariances[i, 0]
        a[0, 1] = a[1, 0] = covariances[i, 1]
        a[0, 2] = a[2, 0] = covariances[i, 2]
        a[1, 1] = covariances[i, 3]
        a[1, 2] = a[2, 1] = covariances[i, 4]
        a[2, 2] = covariances[i, 5]
        v[:, :] = 0.0
        v[0, 0] = v[1, 1] = v[2, 2] = 1.0
        for _ in range(12):
            off = abs(a[0, 1]) + abs(a[0, 2]) + abs(a[1, 2])
            if off <= 1e-14 * (abs(a[0, 0]) + abs(a[1, 1]) + abs(a[2, 2])):
                break
            for k in range(3):
                p = 0 if k < 2 else 1
                q = 1 if k == 0 else 2
                apq = a[p, q]
                if apq == 0.0:
                    continue
                theta = (a[q, q] - a[p, p]) / (2.0 * apq)
                t = 1.0 / (abs(theta) + math.sqrt(theta * theta + 1.0))
                if theta < 0.0:
                    t = -t
                c = 1.0 / math.sqrt(t * t + 1.0)
                s = t * c
                r = 3 - p - q
                a[p, p] -= t * apq
                a[q, q] += t * apq
                a[p, q] = a[q, p] = 0.0
                arp, arq = a[r, p], a[r, q]
                a[r, p] = a[p, r] = c * arp - s * arq
                a[r, q] = a[q, r] = s * arp + c * arq
                for row in range(3):
                    vp, vq = v[row, p], v[row, q]
                    v[row, p] = c * vp - s * vq
                    v[row, q] = s * vp + c * vq
        det = (
            v[0, 0] * (v[1, 1] * v[2, 2] - v[1, 2] * v[2, 1])
            - v[0, 1] * (v[1, 0] * v[2, 2] - v[1, 2] * v[2, 0])
            + v[0, 2] * (v[1, 0] * v[2, 1] - v[1, 1] * v[2, 0])
        )
        if det < 0.0:
            for row in range(3):
                v[row, 2] = -v[row, 2]
        for k in range(3):
            scales[i, k] = math.log(max(math.sqrt(max(a[k, k], 0.0)), smallest))
        # Shepperd's method: divide by the largest component.
        tr = v[0, 0] + v[1, 1] + v[2, 2]
        if tr > 0.0:
            s = math.sqrt(tr + 1.0) * 2.0
            w, x, y, z = 0.25 * s, (v[2, 1] - v[1, 2]) / s, (v[0, 2] - v[2, 0]) / s, (v[1, 0] - v[0, 1]) / s
        elif v[0, 0] > v[1, 1] and v[0, 0] > v[2, 2]:
            s = math.sqrt(1.0 + v[0, 0] - v[1, 1] - v[2, 2]) * 2.0
            w, x, y, z = (v[2, 1] - v[1, 2]) / s, 0.25 * s, (v[0, 1] + v[1, 0]) / s, (v[0, 2] + v[2, 0]) / s
        elif v[1, 1] > v[2, 2]:
            s = math.sqrt(1.0 + v[1, 1] - v[0, 0] - v[2, 2]) * 2.0
            w, x, y, z = (v[0, 2] - v[2, 0]) / s, (v[0, 1] + v[1, 0]) / s, 0.25 * s, (v[1, 2] + v[2, 1]) / s
        else:
            s = math.sqrt(1.0 + v[2, 2] - v[0, 0] - v[1, 1]) * 2.0
            w, x, y, z = (v[1, 0] - v[0, 1]) / s, (v[0, 2] + v[2, 0]) / s, (v[1, 2] + v[2, 1]) / s, 0.25 * s
        sign = -1.0 if w < 0.0 else 1.0
        quats[i, 0] = sign * w
        quats[i, 1] = sign * x
        quats[i, 2] = sign * y
        quats[i, 3] = sign * z


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
