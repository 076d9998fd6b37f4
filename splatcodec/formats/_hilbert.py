"""Hilbert's curve through three dimensions: an order in which neighbours in the file are neighbours in space."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["hilbert_keys"]


def hilbert_keys(cells: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint64]:
    """Places (N,) on the curve of cells (N, 3), each 0 .. 2**bits - 1, bits at most 21.

    The transform of Skilling, "Programming the Hilbert curve", 2004.

    >>> import numpy as np
    >>> corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    >>> steps = np.abs(np.diff(corners[np.argsort(hilbert_keys(corners, 1))], axis=0)).sum(1)
    >>> steps.tolist()
    [1, 1, 1, 1, 1, 1, 1]
    """
    axes = [np.ascontiguousarray(cells[:, k], np.uint32) for k in range(3)]
    for bit in range(bits - 1, 0, -1):
        below = np.uint32((1 << bit) - 1)
        for k in range(3):
            high = axes[k] >> np.uint32(bit) & np.uint32(1)
            swap = np.where(high, np.uint32(0), (axes[0] ^ axes[k]) & below)
            axes[0] = axes[0] ^ np.where(high, below, swap)
            axes[k] = axes[k] ^ swap if k else axes[0]
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    turn = np.zeros(len(cells), np.uint32)
    for bit in range(bits - 1, 0, -1):
        turn ^= np.where(axes[2] >> np.uint32(bit) & np.uint32(1), np.uint32((1 << bit) - 1), np.uint32(0))
    keys = np.zeros(len(cells), np.uint64)
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            keys = keys << np.uint64(1) | ((axis ^ turn) >> np.uint32(bit) & np.uint32(1)).astype(np.uint64)
    return keys
