"""Small pieces that several packed formats share: alpha bytes, smallest-three quaternions, SH of degree 4."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SplatCodecWarning
from ..gaussians import MAX_SH_DEGREE, num_sh_coefficients
from ._records import BLOCK_BYTES

__all__ = ["MAX_SH_REST", "logits_of_alpha_bytes", "lookup", "quats_of_smallest_three", "warn_degree_4"]

# SH coefficients a channel, without degree 0, that `Gaussians` holds.
MAX_SH_REST = num_sh_coefficients(MAX_SH_DEGREE) - 1
# 0 and 255 are clamped to this distance from 0 and 1: their logits would be infinite.
_ALPHA_MARGIN = 1e-6


@functools.cache
def _logit_table() -> npt.NDArray[np.float32]:
    alphas = np.clip(np.arange(256) / 255, _ALPHA_MARGIN, 1 - _ALPHA_MARGIN)
    return (np.log(alphas) - np.log1p(-alphas)).astype(np.float32)


def logits_of_alpha_bytes(alphas: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Opacity logits (same shape, float32) of alphas stored as bytes, 0..255 for 0..1."""
    return lookup(alphas, _logit_table())


def lookup(codes: npt.NDArray[Any], table: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """`table[codes]` as float32; the codes must be valid."""
    table = table.astype(np.float32, copy=False)
    out = np.empty(codes.shape, np.float32)
    rows = max(1, len(codes) * BLOCK_BYTES // max(1, out.nbytes))
    for start in range(0, len(codes), rows):  # in blocks, as numpy turns indices into 8-byte ones first
        np.take(table, codes[start : start + rows], out=out[start : start + rows], mode="clip")
    return out


def quats_of_smallest_three(
    largest: npt.NDArray[Any],
    kept: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    columns: tuple[int, int, int, int] = (0, 1, 2, 3),
) -> None:
    """Rebuild unit quaternions whose largest component, positive, was left out.

    Args:
        largest: (N,) index 0..3 of the component left out, in the file's order.
        kept: (N, 3) float32, the other components in the file's order.
        out: (N, 4) float32, written.
        columns: the column of `out` for each component in the file's order.
    """
    a, b, c = kept[:, 0], kept[:, 1], kept[:, 2]
    missing = np.sqrt(np.maximum(1 - (a * a + b * b + c * c), 0, dtype=np.float32))
    out[:, columns[0]] = np.where(largest == 0, missing, a)
    out[:, columns[1]] = np.where(largest == 0, a, np.where(largest == 1, missing, b))
    out[:, columns[2]] = np.where(largest <= 1, b, np.where(largest == 2, missing, c))
    out[:, columns[3]] = np.where(largest == 3, missing, c)


def warn_degree_4(num_gaussians: int) -> None:
    """Say that SH of degree 4 is left out."""
    warnings.warn(
        f"SH degree 4 is not supported: its 27 values are dropped for each of {num_gaussians} Gaussians, degree 3 kept",
        SplatCodecWarning,
        stacklevel=3,
    )
