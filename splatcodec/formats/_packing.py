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
    "least_turned",
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


@functools.cache
def _cube_turns() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """The rotations of a cube: (24, 4) unit quaternions, and (24, 3) which old axis each new one is."""
    components = np.stack(np.meshgrid(*[[-1, 0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    squared = (components**2).sum(axis=1)
    # One of each pair q, -q: the first component that is not zero is positive.
    first = components[np.arange(len(components)), (components != 0).argmax(axis=1)]
    chosen = np.isin(squared, (1, 2, 4)) & (first > 0)
    quats = components[chosen] / np.sqrt(squared[chosen])[:, None]
    w, x, y, z = quats.T
    columns = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
            [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
            [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return quats, np.abs(columns).argmax(axis=1).T


def least_turned(
    quats: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The same ellipsoids with their axes named so that each is turned as little as can be.

    An ellipsoid has 24 descriptions, as its axes may be exchanged and reversed. The least turned has w of at least
    0.85, so that w is told well by the other three, and those take fewer bits.

    Args:
        quats: (N, 4) of any length. scales: (N, 3).

    Returns:
        (quats, scales): unit quaternions with positive w, and scales in the order of the axes' new names.
    """
    turns, axes = _cube_turns()
    # w of the product with each turn is a scalar product.
    w_of = (turns * [1, -1, -1, -1]).T
    new_quats, new_scales = np.empty_like(quats), np.empty_like(scales)
    for rows in row_blocks(len(quats)):
        unit = unit_quats(quats[rows]).astype(np.float64)
        best = np.abs(unit @ w_of).argmax(axis=1)
        w, x, y, z = unit.T
        a, b, c, d = turns[best].T
        product = np.stack(
            [
                w * a - x * b - y * c - z * d,
                w * b + x * a + y * d - z * c,
                w * c - x * d + y * a + z * b,
                w * d + x * c - y * b + z * a,
            ],
            axis=1,
        )
        new_quats[rows] = product * np.where(product[:, :1] < 0, -1, 1)
        new_scales[rows] = np.take_along_axis(scales[rows], axes[best], axis=1)
    return new_quats, new_scales


def warn_degree_4(num_gaussians: int) -> None:
    """Say that SH of degree 4 is left out."""
    warnings.warn(
        f"SH degree 4 is not supported: its 27 values are dropped for each of {num_gaussians} Gaussians, degree 3 kept",
        SplatCodecWarning,
        stacklevel=3,
    )
