"""Small pieces that several packed formats share: alpha bytes, smallest-three quaternions, SH of degree 4, rounding."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SplatCodecWarning
from ..gaussians import MAX_SH_DEGREE, num_sh_coefficients, unit_quats
from ._records import BLOCK_BYTES

__all__ = [
    "MAX_SH_REST",
    "alpha_bytes",
    "logits_of_alpha_bytes",
    "lookup",
    "quats_of_smallest_three",
    "rounded",
    "row_blocks",
    "smallest_three",
    "warn_degree_4",
]

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


def row_blocks(count: int, rows: int = 1 << 15) -> Iterator[slice]:
    """Slices of at most `rows` rows that cover `count`: what is computed between them stays in the cache."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def rounded(
    values: npt.NDArray[np.float32], scale: float, offset: float, low: float, high: float, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """`values * scale + offset` rounded to the nearest integer in `low`..`high` (same shape, `dtype`)."""
    out = np.empty(values.shape, dtype)
    for rows in row_blocks(len(values)):
        block = values[rows].astype(np.float64)  # float32 has too few digits for positions of 24 bits
        block *= scale
        block += offset
        np.rint(block, out=block)
        np.clip(block, low, high, out=block)
        out[rows] = block
    return out


def alpha_bytes(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Opacities as bytes, 0..255 for alpha 0..1, from logits (same shape)."""
    out = np.empty(logits.shape, np.uint8)
    for rows in row_blocks(len(logits)):
        with np.errstate(over="ignore"):
            out[rows] = np.rint(255 / (1 + np.exp(-logits[rows].astype(np.float64))))
    return out


def smallest_three(
    quats: npt.NDArray[np.float32], columns: tuple[int, int, int, int] = (0, 1, 2, 3)
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The inverse of `quats_of_smallest_three`.

    Args:
        quats: (N, 4) of any length; zero ones count as the identity.
        columns: the column of `quats` for each component in the file's order.

    Returns:
        (largest, kept): (N,) uint8 index of the component left out, in the file's order; (N, 3) float32, the others,
        with the sign that makes the largest positive. They are at most sqrt(1/2) from zero.
    """
    largest = np.empty(len(quats), np.uint8)
    kept = np.empty((len(quats), 3), np.float32)
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    for rows in row_blocks(len(quats)):
        block = unit_quats(quats[rows])[:, columns]
        top = np.abs(block).argmax(axis=1)
        negative = np.take_along_axis(block, top[:, None], axis=1) < 0
        largest[rows] = top
        kept[rows] = np.take_along_axis(block, others[top], axis=1) * np.where(negative, np.float32(-1), np.float32(1))
    return largest, kept


def warn_degree_4(num_gaussians: int) -> None:
    """Say that SH of degree 4 is left out."""
    warnings.warn(
        f"SH degree 4 is not supported: its 27 values are dropped for each of {num_gaussians} Gaussians, degree 3 kept",
        SplatCodecWarning,
        stacklevel=3,
    )
