"""Turning spherical harmonics: a rotation, or a mirroring, mixes the coefficients of each band among themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .errors import ParameterError

__all__ = ["orthogonal", "row_blocks", "sh_band_matrices", "turned_sh"]

Floats = npt.NDArray[np.float64]

# Rows of a scene that are worked on at once in float64, so that a large scene is never held in double precision.
_BLOCK_ROWS = 1 << 15
# What is this near to 0, 1/2 or 1 is that: frames that only flip axes then change signs and not a single bit else.
_SNAP = 1e-13


def row_blocks(count: int, block_rows: int = _BLOCK_ROWS) -> Iterator[slice]:
    """Slices of at most `block_rows` rows (32,768) that cover `count` rows."""
    for start in range(0, count, block_rows):
        yield slice(start, min(start + block_rows, count))


def _band(degree: int, directions: Floats) -> Floats:
    """(n, 2 degree + 1): the real harmonics of one band, in the order and signs of 3DGS files, up to one factor."""
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    r3, r6, r10, r15 = np.sqrt((3.0, 6.0, 10.0, 15.0))
    if degree == 1:
        values = [-y, z, -x]
    elif degree == 2:
        values = [
            r3 * x * y,
            -r3 * y * z,
            zz - 0.5 * (xx + yy),
            -r3 * x * z,
            0.5 * r3 * (xx - yy),
        ]
    else:
        values = [
            -r10 / 4 * y * (3 * xx - yy),
            r15 * x * y * z,
            -r6 / 4 * y * (4 * zz - xx - yy),
            0.5 * z * (2 * zz - 3 * xx - 3 * yy),
            -r6 / 4 * x * (4 * zz - xx - yy),
            r15 / 2 * z * (xx - yy),
            -r10 / 4 * x * (xx - 3 * yy),
        ]
    return np.stack(values, axis=1)


def _sample_directions() -> Floats:
    """(64, 3) unit vectors spread over the sphere along a golden spiral: more than any band has coefficients."""
    k = np.arange(64) + 0.5
    z = 1.0 - 2.0 * k / 64
    across, turn = np.sqrt(1.0 - z * z), k * np.pi * (3.0 - np.sqrt(5.0))
    return np.stack([across * np.cos(turn), across * np.sin(turn), z], axis=1)


def sh_band_matrices(turn: npt.ArrayLike, sh_degree: int) -> list[Floats]:
    """Matrices M, of sizes 3, 5 and 7, with (coefficients after) = M (coefficients before) for bands 1 to `sh_degree`.

    The colour that a turned Gaussian shows in direction d is the one that it showed in direction turn^T d. A band is
    closed under that, so values at more directions than it has coefficients fix M, to float64 precision.

    Args:
        turn: (3, 3) orthogonal; a reflection is allowed.
        sh_degree: 0 to 3.

    Raises:
        ParameterError: `turn` is not orthogonal.

    >>> sh_band_matrices(np.diag([1.0, -1.0, -1.0]), 1)[0].diagonal().tolist()
    [-1.0, -1.0, 1.0]
    """
    matrix = orthogonal(turn)
    directions = _sample_directions()
    bands = []
    for degree in range(1, sh_degree + 1):
        after, _, _, _ = np.linalg.lstsq(_band(degree, directions), _band(degree, directions @ matrix), rcond=None)
        doubled = np.rint(2.0 * after)
        bands.append(np.where(np.abs(2.0 * after - doubled) < _SNAP, 0.5 * doubled, after) + 0.0)
    return bands


def orthogonal(turn: npt.ArrayLike) -> Floats:
    """`turn` as a (3, 3) float64 matrix.

    Raises:
        ParameterError: it is none, or not orthogonal within 1e-6.
    """
    try:
        matrix = np.asarray(turn, np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or np.abs(matrix @ matrix.T - np.eye(3)).max() > 1e-6:
        raise ParameterError("expected an orthogonal matrix of 3 x 3 finite numbers")
    return matrix


def turned_sh(shN: npt.NDArray[np.float32], turn: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """SH coefficients of Gaussians that are turned together with their scene.

    Args:
        shN: (N, K - 1, 3) float32, bands 1 to 3, RGB innermost.
        turn: (3, 3) orthogonal, old to new coordinates.

    Returns:
        (N, K - 1, 3) float32, rounded once from float64. Flipped axes only change signs, so they are exact.

    Raises:
        ParameterError: `turn` is not orthogonal, or the coefficients are not those of whole bands.
    """
    degrees = {0: 0, 3: 1, 8: 2, 15: 3}
    if shN.ndim != 3 or shN.shape[2] != 3 or shN.shape[1] not in degrees:
        raise ParameterError(f"shN has shape {shN.shape}, expected (N, 0, 3, 8 or 15, 3)", field="shN")
    # Red, green and blue stay apart: one matrix product a band on rows as they lie in memory.
    bands = [np.kron(band, np.eye(3)).T for band in sh_band_matrices(turn, degrees[shN.shape[1]])]
    flat = shN.reshape(len(shN), 3 * shN.shape[1])
    result = np.empty_like(flat)
    with np.errstate(invalid="ignore", over="ignore"):  # a row with inf or NaN cannot be drawn before or after
        for rows in row_blocks(len(flat)):
            at = 0
            for band in bands:
                columns = slice(at, at + len(band))
                result[rows, columns] = flat[rows, columns].astype(np.float64) @ band
                at += len(band)
    return result.reshape(shN.shape)
