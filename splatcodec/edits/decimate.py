"""Fewer Gaussians for the same scene: what hardly shows is left out, then neighbours are merged.

Leaving out is best while most Gaussians stay; below about half, holes open, and merging two neighbours into the one
Gaussian with their common mean and covariance loses less (measured: docs/design/edits.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import SH_C0, Gaussians
from ..sh_rotation import row_blocks
from ._checks import edited, whole
from ._moments import covariances, mean_areas, quats_and_scales

__all__ = ["decimate", "shown_area"]

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

# Above this share of the scene nothing is merged; below, merging begins from at least the second share.
_DROP_ONLY = 0.6
_LEAST_DROPPED_TO = 0.5
_DROP_EXPONENT = 0.6
# Merging: partners looked at, and the largest share of the Gaussians that one round merges.
_NEIGHBORS = 8
_ROUND_SHARE = 0.3
# A round that finds fewer pairs than this share (many Gaussians in one place) pairs them in order of position.
_LEAST_PAIRS = 1.0 / 64.0
# Squared colour difference (display units) that counts as much as one unit of information about shape.
_COLOUR = 8.0
_SH_COLOUR = 0.3
# Thickness below this share of the median Gaussian's length does not make shapes differ.
_THICKNESS = 0.2
_ALPHA_RANGE = (1e-4, 0.99)
# Rows whose costs are computed at once: nine pairs each, with all their colours.
_COST_ROWS = 1 << 12
# A Gaussian without importance still has a say in where a pair's middle is.
_LEAST_MASS = 1e-9


def shown_area(gaussians: Gaussians) -> Floats:
    """(N,) alpha times the area seen from all sides on average, square world units: importance without rendering."""
    areas = np.empty(len(gaussians))
    for rows in row_blocks(len(gaussians)):
        areas[rows] = mean_areas(_deviations(gaussians.scales[rows]))
    return np.nan_to_num(gaussians.alphas() * areas)


def _deviations(scales: Floats32) -> Floats:
    """(N, 3) float64 standard deviations of log scales, within what can be multiplied."""
    return np.exp(np.clip(scales.astype(np.float64), -40.0, 40.0))


def decimate(gaussians: Gaussians, count: int, *, importance: npt.ArrayLike | None = None) -> Gaussians:
    """Leave `count` Gaussians that look as much like the scene as they can.

    Args:
        gaussians: a scene of N Gaussians; rows that cannot be drawn (NaN) go first.
        count: how many to leave, 0 or more; a scene that has no more stays as it is.
        importance: (N,) how much each one shows, 0 or more. Best is what rendering tells: the square root of
            `sum_weight2 * removal_error` of `splatcodec.render.contribution`. With it, at 60 % of N and more the least
            important are left out; for fewer, some are left out and then neighbours merged. Without it `shown_area` is
            taken, and all is merging, because what is hidden, and what is small but many, cannot be told from outside.

    Returns:
        Exactly `count` Gaussians (or all), in the order of the scene. Those left alone keep every bit. A merged one has
        the pair's mean, covariance and colour, weighted by importance, the sum of what they cover, and the side arrays
        of the more important one.

    Raises:
        ParameterError: a negative count, or importances that are not N numbers of 0 or more.
    """
    n = gaussians.num_gaussians
    count = whole("count", count)
    measured = importance is not None
    scores = shown_area(gaussians) if importance is None else _scores(importance, n)
    if count >= n:
        return gaussians
    # What cannot be drawn is worth less than anything that can.
    drawable = np.isfinite(gaussians.means).all(1) & (gaussians.scales < np.inf).all(1)
    drawable &= np.isfinite(gaussians.quats).all(1) & ~np.isnan(gaussians.opacities)
    drawable &= np.isfinite(gaussians.sh0).all((1, 2)) & np.isfinite(gaussians.shN).all((1, 2))
    scores = np.where(drawable, scores, -1.0)
    share = count / n
    if measured and share >= _DROP_ONLY:
        first = count
    else:
        first = round(n * max(share**_DROP_EXPONENT, _LEAST_DROPPED_TO)) if measured else n
        first = max(count, min(first, int(drawable.sum())))
    rows = np.sort(np.argsort(-scores, kind="stable")[:first])
    if count == first or count == 0:
        return edited(gaussians.selected(rows[:count]))
    return edited(_merged(gaussians, rows, scores[rows], count))


def _scores(importance: npt.ArrayLike, count: int) -> Floats:
    try:
        scores = np.asarray(importance, np.float64)
    except (TypeError, ValueError):
        scores = np.zeros((0, 0))
    if scores.shape != (count,) or not (scores >= 0).all():
        raise ParameterError(f"importance must be {count} numbers of 0 or more", field="importance")
    return scores


class _Merging:
    """The Gaussians that are left, as moments.

    Attributes:
        means: (M, 3), relative to `middle`. shapes: (M, 6) covariances xx, xy, xz, yy, yz, zz.
        colours: (M, 3 K) float32. masses: (M,) importance. covers: (M,) alpha times mean area.
        source: (M,) the scene's row whose other values stand for it. merged: (M,) whether it stands for several.
    """

    def __init__(self, scene: Gaussians, rows: Rows, masses: Floats, covers: Floats) -> None:
        self.middle = scene.means[rows].mean(axis=0, dtype=np.float64)
        self.means = scene.means[rows] - self.middle
        self.shapes = np.empty((len(rows), 6))
        for block in row_blocks(len(rows)):
            part = rows[block]
            full = covariances(scene.quats[part], scene.scales[part])
            self.shapes[block] = full.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]
        self.floor = (_THICKNESS * float(np.median(_deviations(scene.scales[rows].max(axis=1))))) ** 2
        self.colours = np.empty((len(rows), 3 + 3 * scene.shN.shape[1]), np.float32)
        self.colours[:, :3] = scene.sh0[rows, 0]
        self.colours[:, 3:] = scene.shN.reshape(len(scene), -1)[rows]
        self.masses = masses + _LEAST_MASS * max(float(masses.max(initial=0.0)), 1e-30)
        self.covers = covers[rows]
        self.source = rows.copy()
        self.merged = np.zeros(len(rows), np.bool_)

    def __len__(self) -> int:
        return len(self.means)

    def partners(self) -> tuple[Rows, Floats]:
        """For each Gaussian the neighbour that it is cheapest to merge with, and the cost."""
        from scipy.spatial import cKDTree

        m = len(self)
        tree = cKDTree(self.means)
        k = min(_NEIGHBORS + 1, m)
        logs = _half_log_det(self.shapes, self.floor)
        partners, costs = np.empty(m, np.int64), np.empty(m)
        for rows in row_blocks(m):
            _, near = tree.query(self.means[rows], k=k, workers=-1)
            near = near.reshape(-1, k)
            for part in row_blocks(len(near), _COST_ROWS):
                here = np.arange(rows.start + part.start, rows.start + part.stop)
                cost = self._costs(np.repeat(here, k), near[part].ravel(), logs).reshape(-1, k)
                cost[near[part] == here[:, None]] = np.inf
                best = np.argmin(cost, axis=1)[:, None]
                partners[here] = np.take_along_axis(near[part], best, 1)[:, 0]
                costs[here] = np.take_along_axis(cost, best, 1)[:, 0]
        return partners, costs

    def _costs(self, a: Rows, b: Rows, logs: Floats) -> Floats:
        """Information lost by merging pairs (Runnalls' bound on the Kullback-Leibler divergence), and colour."""
        a, b = np.minimum(a, b), np.maximum(a, b)  # the same number from both ends
        share = self.masses[a] / (self.masses[a] + self.masses[b])
        product = share * (1.0 - share)
        with np.errstate(over="ignore", invalid="ignore"):
            shape = _half_log_det(self._joined_shapes(a, b, share), self.floor) - share * logs[a]
            shape -= (1.0 - share) * logs[b]
            apart = np.square(self.colours[a] - self.colours[b], dtype=np.float32)
            colour = apart[:, :3].sum(axis=1) + _SH_COLOUR**2 * apart[:, 3:].sum(axis=1)
            cost = (self.masses[a] + self.masses[b]) * (shape + _COLOUR * SH_C0**2 * product * colour)
        return np.nan_to_num(cost, nan=np.inf, posinf=np.inf)

    def _joined_shapes(self, a: Rows, b: Rows, share: Floats) -> Floats:
        x, y, z = (self.means[a] - self.means[b]).T
        spread = np.stack([x * x, x * y, x * z, y * y, y * z, z * z], axis=1) * (share * (1.0 - share))[:, None]
        return share[:, None] * self.shapes[a] + (1.0 - share)[:, None] * self.shapes[b] + spread

    def merge(self, a: Rows, b: Rows) -> None:
        """Merge disjoint pairs into the places of `a`."""
        heavier = self.masses[b] > self.masses[a]
        share = self.masses[a] / (self.masses[a] + self.masses[b])
        self.shapes[a] = self._joined_shapes(a, b, share)
        for values in (self.means, self.colours):
            values[a] = share[:, None] * values[a] + (1.0 - share)[:, None] * values[b]
        self.masses[a] += self.masses[b]
        self.covers[a] += self.covers[b]
        self.source[a] = np.where(heavier, self.source[b], self.source[a])
        self.merged[a] = True
        left = np.ones(len(self), np.bool_)
        left[b] = False
        for name in ("means", "shapes", "colours", "masses", "covers", "source", "merged"):
            setattr(self, name, getattr(self, name)[left])


def _half_log_det(shapes: Floats, floor: float) -> Floats:
    xx, xy, xz, yy, yz, zz = shapes.T
    xx, yy, zz = xx + floor, yy + floor, zz + floor
    det = xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
    # Rounding can take a needle's determinant below what the floor alone gives it.
    return 0.5 * np.log(np.maximum(det, np.maximum(floor**3, 1e-300)))


def _pairs(partners: Rows, costs: Floats, most: int) -> tuple[Rows, Rows]:
    """The cheapest disjoint pairs, each the cheapest that either of its two is in; at least one."""
    m = len(partners)
    order = np.argsort(costs, kind="stable")
    rank = np.empty(m, np.int64)
    rank[order] = np.arange(m)
    lowest = rank.copy()
    np.minimum.at(lowest, partners, rank)
    chosen = order[(lowest[order] == rank[order]) & (lowest[partners[order]] == rank[order])][:most]
    return np.minimum(chosen, partners[chosen]), np.maximum(chosen, partners[chosen])


def _merged(scene: Gaussians, rows: Rows, scores: Floats, count: int) -> Gaussians:
    left = _Merging(scene, rows, scores, shown_area(scene))
    while len(left) > count:
        most = min(len(left) - count, max(1, int(_ROUND_SHARE * len(left))))
        a, b = _pairs(*left.partners(), most)
        if len(a) < min(most, _LEAST_PAIRS * len(left)):
            order = np.lexsort(left.means.T)
            a, b = order[: len(order) // 2 * 2].reshape(-1, 2)[:most].T
        left.merge(a, b)
    means, quats, scales, opacities = (
        values[left.source] for values in (scene.means, scene.quats, scene.scales, scene.opacities)
    )
    merged = np.flatnonzero(left.merged)
    for block in row_blocks(len(merged)):
        part = merged[block]
        full = left.shapes[part][:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
        means[part] = left.means[part] + left.middle
        quats[part], scales[part] = quats_and_scales(full)
        alphas = np.clip(left.covers[part] / mean_areas(_deviations(scales[part])), *_ALPHA_RANGE)
        opacities[part] = np.log(alphas / (1.0 - alphas))
    return Gaussians(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        sh0=left.colours[:, None, :3],
        shN=left.colours[:, 3:].reshape(count, -1, 3),
        extras={name: values[left.source] for name, values in scene.extras.items()},
        metadata=scene.metadata,
    )
