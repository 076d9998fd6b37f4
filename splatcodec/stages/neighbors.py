"""Nearest already decoded Gaussians, the source of predictions and contexts (bitstreams/SPEC.md, section 3.4).

Gaussians of a tile are in depth-first (Morton) order, so near ones are usually among the last few. Distances are
integers between leaf centres; ties go to the later Gaussian.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .octree import MAX_DEPTH

__all__ = ["NUM_NEIGHBORS", "WINDOW", "find_neighbors", "leaf_centers"]

NUM_NEIGHBORS = 4
WINDOW = 16


@njit(cache=True, nogil=True)
def leaf_centers(leaf_xyz, leaf_depths, leaf_counts, centers, depths):
    """Spread leaves over their Gaussians.

    Args:
        leaf_xyz: (L, 3) int32 cell coordinates at the leaf's depth.
        leaf_depths, leaf_counts: (L,) int32.
        centers: (n, 3) int32 out, leaf centre in half cells of MAX_DEPTH.
        depths: (n,) int32 out.
    """
    at = 0
    for leaf in range(len(leaf_depths)):
        shift = MAX_DEPTH - leaf_depths[leaf]
        for _ in range(leaf_counts[leaf]):
            for axis in range(3):
                centers[at, axis] = ((leaf_xyz[leaf, axis] << 1) | 1) << shift
            depths[at] = leaf_depths[leaf]
            at += 1


_LANES = 32  # Gaussians whose neighbours are looked for together
# Where the lanes of each number are: the four nearest, the way to the one looked at.
_ONE, _TWO, _THREE, _FOUR, _X, _Y, _Z = (k * _LANES for k in range(7))


@njit(cache=True, nogil=True)
def find_neighbors(centers, neighbors):
    """The NUM_NEIGHBORS nearest of the WINDOW Gaussians before each one.

    Args:
        centers: (n, 3) int32 from `leaf_centers`.
        neighbors: (n, NUM_NEIGHBORS) int32 out, nearest first; where there are fewer the nearest is repeated, and
            Gaussian 0 has -1.
    """
    # A near one is 16 times its squared distance plus how far back it is, less 1: below 2**52, so that float64 is
    # exact, and a minimum decides ties too. What is not there is infinitely far. One array and no branch, so that the
    # loop over lanes vectorises.
    w, room = np.zeros(7 * _LANES), _LANES + WINDOW
    x, y, z = np.full(room, np.inf), np.full(room, np.inf), np.full(room, np.inf)
    for first in range(0, len(centers), _LANES):
        count = min(_LANES, len(centers) - first)
        for k in range(max(WINDOW - first, 0), count + WINDOW):
            row = centers[first + k - WINDOW]
            x[k], y[k], z[k] = row[0], row[1], row[2]
        w[: 4 * _LANES] = np.inf
        for back in range(1, WINDOW + 1):
            for k in range(_LANES):
                w[_X + k] = x[WINDOW + k] - x[WINDOW - back + k]
                w[_Y + k] = y[WINDOW + k] - y[WINDOW - back + k]
                w[_Z + k] = z[WINDOW + k] - z[WINDOW - back + k]
            for k in range(_LANES):
                dx, dy, dz = w[_X + k], w[_Y + k], w[_Z + k]
                d = (dx * dx + dy * dy + dz * dz) * float(WINDOW) + float(back - 1)
                one, two, three, four = w[_ONE + k], w[_TWO + k], w[_THREE + k], w[_FOUR + k]
                w[_ONE + k] = min(one, d)
                d = max(one, d)
                w[_TWO + k] = min(two, d)
                d = max(two, d)
                w[_THREE + k] = min(three, d)
                w[_FOUR + k] = min(four, max(three, d))
        for k in range(count):
            i = first + k
            for rank in range(NUM_NEIGHBORS):
                d = w[rank * _LANES + k]
                if d < np.inf:
                    neighbors[i, rank] = i - 1 - (np.int64(d) & (WINDOW - 1))
                else:
                    neighbors[i, rank] = neighbors[i, 0] if rank else -1
