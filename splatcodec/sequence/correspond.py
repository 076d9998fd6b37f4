"""Which Gaussian of a frame is which of the frame before: by given numbers, by row, or by what is nearest and alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import Gaussians

__all__ = ["Tracker"]

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_LOOKED_AT = 20_000  # rows that decide whether frames are in the same order
_SAME_ORDER = 0.35  # share of the difference between random rows that rows in the same order have at most
_CANDIDATES = 4
_WORST_COST = 9.0
_LEAST_MATCHED = 0.5
_MAX_CUTS = 3


def _looks(frame: Gaussians) -> Floats:
    """(n, 7) what a Gaussian looks like apart from its place: sizes, opacity, colour, each about 1 over a scene."""
    colour = np.clip(frame.sh0[:, 0].astype(np.float64), -4.0, 4.0)
    scales = np.clip(frame.scales.astype(np.float64), -40.0, 20.0)
    return np.concatenate([scales, frame.alphas().astype(np.float64)[:, None] * 4.0, colour * 2.0], axis=1)


class Tracker:
    """Gives every Gaussian of every frame a number; the same number in two frames is the same Gaussian.

    Side arrays called `id` (integers, none twice in a frame) decide where frames have them. Frames of equal counts
    whose rows look alike are in the same order. Otherwise each Gaussian is matched with the nearest ones of the frame
    before, where its motion so far would have taken them, by distance in units of its size, size, opacity and colour;
    both must be each other's best. Who finds no match vanishes, or appears.

    Attributes:
        notes: for people.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._last: Gaussians | None = None
        self._looks: Floats = np.zeros((0, 7))
        self._ids: Ids = np.zeros(0, np.int64)
        self._velocity: Floats = np.zeros((0, 3))
        self._next = 0
        self._cuts = 0
        self._given: bool | None = None

    def follow(self, frame: Gaussians, name: str = "") -> tuple[Ids, bool]:
        """The numbers of a frame's rows, and whether the frame begins a new scene.

        Args:
            frame: finite values only. name: of the frame, for messages.

        Raises:
            ParameterError: numbers are given twice, or frame after frame has nothing to do with the one before.
        """
        given = frame.extras.get("id")
        if given is not None and given.ndim == 1 and given.dtype.kind in "iu":
            ids = given.astype(np.int64)
            if len(np.unique(ids)) != len(ids):
                raise ParameterError("the side array 'id' names a Gaussian twice", file=name or None)
            cut = self._last is not None and len(ids) > 0 and np.isin(ids, self._ids).mean() < _LEAST_MATCHED
            self._keep(frame, ids, _looks(frame))
            return ids, bool(cut)
        looks = _looks(frame)
        if self._last is None:
            ids, cut = self._fresh(len(frame)), False
        elif len(frame) == len(self._last) and self._same_order(frame, looks):
            ids, cut = self._ids, False
            self._cuts = 0
        else:
            ids, cut = self._matched(frame, looks, name)
        self._keep(frame, ids, looks)
        return ids, cut

    def _keep(self, frame: Gaussians, ids: Ids, looks: Floats) -> None:
        velocity = np.zeros((len(frame), 3))
        if self._last is not None and len(ids):
            if np.array_equal(ids, self._ids):
                velocity = frame.means.astype(np.float64) - self._last.means
            elif len(self._ids):
                order = np.argsort(self._ids)
                at = np.minimum(np.searchsorted(self._ids, ids, sorter=order), len(order) - 1)
                known = self._ids[order[at]] == ids
                velocity[known] = frame.means[known].astype(np.float64) - self._last.means[order[at[known]]]
        self._last, self._ids, self._looks, self._velocity = frame, ids, looks, velocity
        self._next = max(self._next, int(ids.max(initial=-1)) + 1)

    def _fresh(self, count: int) -> Ids:
        ids = np.arange(self._next, self._next + count)
        self._next += count
        return ids

    def _same_order(self, frame: Gaussians, looks: Floats) -> bool:
        """Whether rows look and lie more like the same rows of the frame before than like any others."""
        count = len(frame)
        if count < 2:
            return True
        assert self._last is not None
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(count, min(count, _LOOKED_AT), replace=False))
        other = rng.permutation(rows)
        for now, before in ((looks, self._looks), (frame.means, self._last.means.astype(np.float64))):
            same = np.median(np.abs(now[rows] - before[rows]).sum(1))
            random = np.median(np.abs(now[rows] - before[other]).sum(1))
            if random > 0 and same < _SAME_ORDER * random:
                return True
            if random == 0 and same == 0:
                continue
        return bool((looks == self._looks).all() and (frame.means == self._last.means).all())

    def _matched(self, frame: Gaussians, looks: Floats, name: str) -> tuple[Ids, bool]:
        assert self._last is not None
        before = self._last
        ids = np.full(len(frame), -1, np.int64)
        if len(frame) and len(before):
            from scipy.spatial import cKDTree

            size = np.exp(np.minimum(before.scales.astype(np.float64).mean(1), 40.0))
            size = np.maximum(size, np.median(size) * 0.2)
            places = before.means.astype(np.float64) + self._velocity
            now = frame.means.astype(np.float64)
            _, near = cKDTree(places).query(now, k=min(_CANDIDATES, len(before)))
            near = near.reshape(len(now), -1)
            away = ((now[:, None] - places[near]) ** 2).sum(2) / (size[near] ** 2)
            cost = np.minimum(away, 100.0) + ((looks[:, None] - self._looks[near]) ** 2).sum(2)
            best = cost.argmin(1)
            rows = np.arange(len(now))
            partner, price = near[rows, best], cost[rows, best]
            order = np.argsort(price, kind="stable")
            order = order[price[order] < _WORST_COST]
            _, first = np.unique(partner[order], return_index=True)  # the cheapest of those who want the same
            chosen = order[first]
            ids[chosen] = self._ids[partner[chosen]]
        matched = float((ids >= 0).sum()) / max(min(len(frame), len(before)), 1)
        if matched < _LEAST_MATCHED and len(frame) and len(before):
            self._cuts += 1
            if self._cuts >= _MAX_CUTS:
                raise ParameterError(
                    f"frames do not correspond: {100 * matched:.0f} % of the Gaussians were found again, "
                    f"{self._cuts} times in a row",
                    file=name or None,
                    hint="number the Gaussians in a side array 'id', or code frames one by one with a group of 1",
                )
            return self._fresh(len(frame)), True
        self._cuts = 0
        new = ids < 0
        ids[new] = self._fresh(int(new.sum()))
        return ids, False
