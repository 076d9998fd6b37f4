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


@njit(cache=True, nogil=True)
def find_neighbors(centers, neighbors):
    """The NUM_NEIGHBORS nearest of the WINDOW Gaussians before each one.

    Args:
        centers: (n, 3) int32 from `leaf_centers`.
        neighbors: (n, NUM_NEIGHBORS) int32 out, nearest first; where there are fewer the nearest is repeated, and
            Gaussian 0 has -1.
    """
    best = np.zeros(NUM_NEIGHBORS, np.int64)
    for i in range(len(centers)):
        found = 0
        x, y, z = np.int64(centers[i, 0]), np.int64(centers[i, 1]), np.int64(centers[i, 2])
        for back in range(1, min(i, WINDOW) + 1):
            j = i - back
            dx, dy, dz = x - centers[j, 0], y - centers[j, 1], z - centers[j, 2]
            d = dx * dx + dy * dy + dz * dz
            if found == NUM_NEIGHBORS and d >= best[found - 1]:
                continue
            k = found if found < NUM_NEIGHBORS else NUM_NEIGHBORS - 1
            while k > 0 and best[k - 1] > d:
                best[k] = best[k - 1]
                neighbors[i, k] = neighbors[i, k - 1]
                k -= 1
            best[k] = d
            neighbors[i, k] = j
            found = min(found + 1, NUM_NEIGHBORS)
        for k in range(found, NUM_NEIGHBORS):
            neighbors[i, k] = neighbors[i, 0] if found else -1
