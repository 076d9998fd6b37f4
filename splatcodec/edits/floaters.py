"""Floaters: stray Gaussians that hang in empty space."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians
from ..sh_rotation import row_blocks
from ._checks import kept, number, whole

__all__ = ["floaters", "remove_floaters"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

_NEIGHBORS = 16
# Two Gaussians touch if their centres are within so many standard deviations of both together, longest axes counted.
# Needles of a wire, end to end, are one of both together apart.
_REACH = 1.2
# An opaque Gaussian has to be so many times further from others than a faint one: it was put there by more pictures.
_OPAQUE = 5.0


def remove_floaters(gaussians: Gaussians, *, isolation: float = 3.0, cluster: int = 8) -> Gaussians:
    """Leave out Gaussians that hang in empty space; see `floaters` for which.

    Raises:
        ParameterError: as `floaters`.
    """
    return kept(gaussians, ~floaters(gaussians, isolation=isolation, cluster=cluster))


def floaters(gaussians: Gaussians, *, isolation: float = 3.0, cluster: int = 8) -> Flags:
    """Which Gaussians are floaters: far from others for this scene, and touching nothing that is part of it.

    Far is a mean distance to the 16 nearest of more than `isolation` times the scene's median for a Gaussian that is
    hardly there, and of 5 times that for an opaque one. Distances count less in proportion further out than the median
    from the scene's middle, because backgrounds are coarse. Part of the scene is what hangs together, by touching
    among those 16, with at least `cluster` Gaussians: a wire or a twig stays, however thin, and so does a coarse
    background. Two touch if their centres are within 1.2 standard deviations of both together, longest axes counted.

    Args:
        gaussians: the scene; rows with non-finite positions or scales are not judged.
        isolation: 1 or more; smaller finds more.
        cluster: 1 or more; with 1 nothing is a floater.

    Returns:
        (N,) bool; depends on the values only, not on threads or chance.

    Raises:
        ParameterError: an argument out of range.
    """
    limit, smallest = number("isolation", isolation, least=1.0), whole("cluster", cluster)
    found = np.zeros(len(gaussians), np.bool_)
    judged = np.flatnonzero(np.isfinite(gaussians.means).all(1) & (gaussians.scales < np.inf).all(1))
    k = min(_NEIGHBORS, len(judged) - 1)
    if k < 1:
        return found
    means = gaussians.means[judged].astype(np.float64)
    sizes = np.exp(np.minimum(gaussians.scales[judged].max(axis=1).astype(np.float64), 40.0))
    spacing, parts = _spacing_and_parts(means, sizes, k, smallest)
    distances = np.linalg.norm(means - np.median(means, axis=0), axis=1)
    usual = float(np.median(distances))
    if usual > 0:
        spacing /= np.maximum(distances / usual, 1.0)
    limits = limit * np.median(spacing) * (1.0 + (_OPAQUE - 1.0) * gaussians.alphas()[judged])
    found[judged] = (spacing > limits) & ~parts
    return found


def _spacing_and_parts(means: Floats, sizes: Floats, k: int, cluster: int) -> tuple[Floats, Flags]:
    """(n,) mean distance to the `k` nearest, and (n,) whether at least `cluster` Gaussians hang together with each."""
    from scipy.spatial import cKDTree

    n = len(means)
    tree = cKDTree(means)
    spacing = np.empty(n)
    near, touching = np.empty((n, k), np.int32), np.empty((n, k), np.bool_)
    for rows in row_blocks(n):
        distances, index = tree.query(means[rows], k=k + 1, workers=-1)
        # Each finds itself, at distance 0; which of several in one place is left out makes no difference.
        spacing[rows] = distances[:, 1:].mean(axis=1)
        near[rows] = index[:, 1:]
        touching[rows] = distances[:, 1:] <= _REACH * (sizes[rows, None] + sizes[near[rows]])
    return spacing, _hanging_together(near, touching, cluster)


def _hanging_together(near: Indices, touching: Flags, cluster: int) -> Flags:
    """(n,) whether at least `cluster` hang together with each, itself included."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    # Who touches enough others needs no search: the graph is that of the few who do not, and of whom they touch.
    known = touching.sum(axis=1) >= cluster - 1
    starts: list[Indices] = []
    ends: list[Indices] = []
    for rows in row_blocks(len(near)):
        which, column = np.nonzero(touching[rows] & ~(known[rows, None] & known[near[rows]]))
        starts.append((which + rows.start).astype(np.int32))
        ends.append(near[rows][which, column])
    a, b = np.concatenate(starts), np.concatenate(ends)
    nodes = np.unique(np.concatenate([np.flatnonzero(~known), a, b]))
    places = np.searchsorted(nodes, a), np.searchsorted(nodes, b)
    graph = csr_matrix((np.ones(len(a), np.bool_), places), shape=(len(nodes), len(nodes)))
    _, labels = connected_components(graph, directed=False)
    parts = np.bincount(labels) >= cluster
    parts[labels[known[nodes]]] = True
    result = known.copy()
    result[nodes] = parts[labels]
    return result
