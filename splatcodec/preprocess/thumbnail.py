"""Few merged Gaussians that stand for many: the level that a client shows before any other has come (techniques D).

Gaussians are clustered top down by position and colour, always splitting the cluster with the largest error in what is
seen; each cluster becomes the Gaussian with its first two moments, its mean colour and its total covered area.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ..gaussians import SH_C0, Gaussians, unit_quats
from ..stages.transform import decompose_covariance, logits, rotation_matrices

__all__ = ["cluster", "merged", "thumbnail_of"]

Floats = npt.NDArray[np.float64]
_COLOR_WEIGHT = 0.3  # of a colour difference of 1 against a distance of one scene radius
_LEAST_ALPHA, _MOST_ALPHA = 0.02, 0.95
_BLOCK = 65_536  # rows whose covariances are in memory at once


def thumbnail_of(gaussians: Gaussians, weights: Floats, count: int) -> Gaussians:
    """At most `count` merged Gaussians that look like the scene from afar.

    Args:
        gaussians: cleaned scene.
        weights: (N,) how much of the pictures each Gaussian makes up, >= 0; what has none is left out.
        count: >= 1.

    Returns:
        the merged Gaussians, SH coefficients included.
    """
    rows = np.flatnonzero(weights > 0)
    if not len(rows):
        rows, weights = np.arange(len(gaussians)), np.ones(len(gaussians))
    weights = weights[rows]
    colors = np.clip(SH_C0 * gaussians.sh0[rows, 0].astype(np.float64), -1.0, 1.0)
    features = np.concatenate([_contracted(gaussians.means[rows]), _COLOR_WEIGHT * colors], 1)
    return merged(gaussians, weights, cluster(features, weights, count), rows)


def _contracted(means: npt.NDArray[np.float32]) -> Floats:
    """Positions over the scene's radius; beyond it distances count by their logarithm, as backgrounds do to the eye."""
    x = means.astype(np.float64)
    x -= np.median(x, axis=0)
    distance = np.linalg.norm(x, axis=1)
    radius = 2.0 * float(np.median(distance)) or 1.0
    x /= radius
    distance /= radius
    far = distance > 1.0
    x[far] *= ((1.0 + np.log(distance[far])) / distance[far])[:, None]
    return x


def cluster(features: Floats, weights: Floats, count: int) -> npt.NDArray[np.int64]:
    """(N,) int64 cluster numbers 0, 1, ... below `count`, from (N, F) features and (N,) positive weights."""
    order = np.arange(len(features))
    labels = np.zeros(len(features), np.int64)
    _split(np.ascontiguousarray(features), weights, order, labels, max(1, min(count, len(features))))
    return labels


@njit(cache=True)
def _spread(features, weights, order, begin, end, center, direction):  # type: ignore[no-untyped-def]
    """Weighted squared distance of a cluster to its mean, which goes to `center`; its main axis to `direction`."""
    width = features.shape[1]
    total = 0.0
    center[:] = 0.0
    for k in range(begin, end):
        w = weights[order[k]]
        total += w
        for f in range(width):
            center[f] += w * features[order[k], f]
    for f in range(width):
        center[f] /= total
    moment = np.zeros((width, width))
    offset = np.zeros(width)
    for k in range(begin, end):
        w = weights[order[k]]
        for f in range(width):
            offset[f] = features[order[k], f] - center[f]
            for g in range(f + 1):
                moment[f, g] += w * offset[f] * offset[g]
    error = 0.0
    for f in range(width):
        error += moment[f, f]
        for g in range(f):
            moment[g, f] = moment[f, g]
    if error > 0.0:
        _main_axis(moment / error, direction)
    return error


@njit(cache=True)
def _main_axis(moment, direction):  # type: ignore[no-untyped-def]
    """About the eigenvector of the largest eigenvalue, by power iteration from the largest column."""
    width = len(moment)
    largest = 0
    for f in range(1, width):
        if moment[f, f] > moment[largest, largest]:
            largest = f
    direction[:] = moment[largest]
    step = np.zeros(width)
    for _ in range(8):
        size = 0.0
        for f in range(width):
            step[f] = 0.0
            for g in range(width):
                step[f] += moment[f, g] * direction[g]
            size = max(size, abs(step[f]))
        if not size > 0.0:
            return
        for f in range(width):
            direction[f] = step[f] / size


@njit(cache=True)
def _split(features, weights, order, labels, count):  # type: ignore[no-untyped-def]
    """Split until there are `count` clusters, or nothing is left to split; `order` is permuted, `labels` filled in."""
    width = features.shape[1]
    begin, end = np.zeros(count, np.int64), np.zeros(count, np.int64)
    error = np.zeros(count)
    centers, axes = np.zeros((count, width)), np.zeros((count, width))
    heap = np.zeros(count, np.int64)  # cluster numbers, largest error first
    begin[0], end[0] = 0, len(order)
    error[0] = _spread(features, weights, order, 0, len(order), centers[0], axes[0])
    made, size = 1, 1
    while made < count and size and error[heap[0]] > 0.0:
        c = heap[0]
        a, b = begin[c], end[c]
        i, j = a, b - 1
        while i <= j:
            side = 0.0
            for f in range(width):
                side += (features[order[i], f] - centers[c, f]) * axes[c, f]
            if side <= 0.0:
                i += 1
            else:
                order[i], order[j] = order[j], order[i]
                j -= 1
        if i in (a, b):  # rounding put all on one side
            error[c] = 0.0
        else:
            end[c] = i
            begin[made], end[made] = i, b
            error[c] = _spread(features, weights, order, a, i, centers[c], axes[c])
            error[made] = _spread(features, weights, order, i, b, centers[made], axes[made])
        # The root has a new, smaller error: let it sink.
        k = 0
        while True:
            child = 2 * k + 1
            if child >= size:
                break
            if child + 1 < size and error[heap[child + 1]] > error[heap[child]]:
                child += 1
            if error[heap[child]] <= error[heap[k]]:
                break
            heap[k], heap[child] = heap[child], heap[k]
            k = child
        if end[c] == i and i != b:
            heap[size] = made
            k = size
            while k and error[heap[(k - 1) // 2]] < error[heap[k]]:
                heap[k], heap[(k - 1) // 2] = heap[(k - 1) // 2], heap[k]
                k = (k - 1) // 2
            size += 1
            made += 1
    for c in range(made):
        for k in range(begin[c], end[c]):
            labels[order[k]] = c


def merged(
    gaussians: Gaussians, weights: Floats, labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64] | None = None
) -> Gaussians:
    """One Gaussian a cluster: weighted moments of its members, their mean colour, their total area.

    Args:
        weights: (n,) positive. labels: (n,) cluster numbers from 0, none empty.
        rows: (n,) int64, the Gaussians that these are of; None = all.
    """
    count = int(labels.max(initial=-1)) + 1
    total = np.bincount(labels, weights, count)
    some = slice(None) if rows is None else rows

    def mean(values: npt.NDArray[np.floating], some: npt.NDArray[np.int64] | slice = some) -> Floats:
        means: Floats = np.empty((count, *values.shape[1:]))
        for index in np.ndindex(*values.shape[1:]):  # one column is in memory at a time
            means[(slice(None), *index)] = np.bincount(labels, weights * values[(some, *index)], count) / total
        return means

    x = gaussians.means[some].astype(np.float64)
    quats, scales = gaussians.quats[some], gaussians.scales[some]
    centers = mean(gaussians.means)
    upper = np.triu_indices(3)
    moments: Floats = np.empty((len(x), 6))
    for begin in range(0, len(x), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        linear = np.exp(scales[block].astype(np.float64))
        half = rotation_matrices(unit_quats(quats[block])) * linear[:, None, :]
        sigma = half @ half.transpose(0, 2, 1)
        offset = x[block] - centers[labels[block]]
        sigma += offset[:, :, None] * offset[:, None, :]
        moments[block] = sigma[:, upper[0], upper[1]]
    covariances = mean(moments, slice(None))
    smallest = 1e-3 * float(np.sqrt(np.median(covariances[:, [0, 3, 5]]))) or 1e-30
    area = np.bincount(labels, _area(scales) * gaussians.alphas()[some], count)
    quats, scales = np.empty((count, 4), np.float32), np.empty((count, 3), np.float32)
    decompose_covariance(covariances, smallest, quats, scales)
    alphas = np.clip(area / np.maximum(_area(scales), 1e-300), _LEAST_ALPHA, _MOST_ALPHA)
    opacities = np.empty(count, np.float32)
    logits(alphas, opacities)
    sh0, shN = mean(gaussians.sh0), mean(gaussians.shN)
    return Gaussians(
        centers.astype(np.float32), quats, scales, opacities, sh0.astype(np.float32), shN.astype(np.float32),
        metadata=gaussians.metadata,
    )  # fmt: skip


def _area(scales: npt.NDArray[np.float32]) -> Floats:
    """Product of the two larger standard deviations."""
    ordered = np.sort(scales.astype(np.float64), 1)
    return np.asarray(np.exp(np.clip(ordered[:, 1] + ordered[:, 2], -600, 600)))
