"""Covariances of Gaussians, and Gaussians of covariances."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..gaussians import unit_quats

__all__ = ["covariances", "mean_areas", "quats_and_scales"]

Floats = npt.NDArray[np.float64]
# Knud Thomsen's exponent: the formula is within 1.1 % of the true surface of an ellipsoid.
_P = 1.6075
# exp(40) is beyond any scene; larger scales would overflow when squared in sums.
_LOG_SCALE_RANGE = 40.0


def covariances(quats: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]) -> Floats:
    """(N, 3, 3) float64 covariances of Gaussians with `quats` (N, 4) and log `scales` (N, 3)."""
    w, x, y, z = unit_quats(quats).astype(np.float64).T
    axes = np.empty((len(quats), 3, 3))
    axes[:, 0, 0], axes[:, 0, 1], axes[:, 0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    axes[:, 1, 0], axes[:, 1, 1], axes[:, 1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    axes[:, 2, 0], axes[:, 2, 1], axes[:, 2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    axes *= np.exp(np.clip(scales.astype(np.float64), -_LOG_SCALE_RANGE, _LOG_SCALE_RANGE))[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def mean_areas(deviations: Floats) -> Floats:
    """(N,) area of an ellipsoid with half axes `deviations` (N, 3), seen from all sides on average, over pi.

    That average is a quarter of the surface (Cauchy); a disc of radius r has 1/2 r^2, a ball r^2.
    """
    a, b, c = (deviations**_P).T
    return ((a * b + a * c + b * c) / 3.0) ** (1.0 / _P)


def quats_and_scales(matrices: Floats) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(N, 4) unit quaternions and (N, 3) log scales, float32, of covariances (N, 3, 3); longest axis first."""
    values, axes = np.linalg.eigh(matrices)
    values, axes = values[:, ::-1], axes[:, :, ::-1].copy()
    axes[:, :, 2] *= np.sign(np.linalg.det(axes))[:, None]  # a rotation, not a mirroring
    largest = np.maximum(values[:, :1], 1e-300)
    scales = 0.5 * np.log(np.maximum(values, largest * 1e-16))
    return _quats_of(axes), scales.astype(np.float32)


def _quats_of(m: Floats) -> npt.NDArray[np.float32]:
    trace = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    outer = np.empty((len(m), 4, 4))
    outer[:, 0, 0] = 1 + trace
    for axis in range(3):
        j, k = (axis + 1) % 3, (axis + 2) % 3
        outer[:, axis + 1, axis + 1] = 1 + 2 * m[:, axis, axis] - trace
        outer[:, 0, axis + 1] = outer[:, axis + 1, 0] = m[:, k, j] - m[:, j, k]
        outer[:, j + 1, k + 1] = outer[:, k + 1, j + 1] = m[:, j, k] + m[:, k, j]
    best = np.argmax(np.diagonal(outer, axis1=1, axis2=2), axis=1)
    quats = outer[np.arange(len(m)), best]
    return (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)
