"""In which order Gaussians are written: free in most formats, and worth up to a tenth of the file behind zstd or gzip.

The order of n things holds log2(n!) bits, about 14 a Gaussian, that a file need not. A general-purpose compressor gets
them back where sorting makes equal bytes neighbours. It does that best with whole bytes: so Gaussians are sorted by
cubes (the upper bytes of positions then repeat), and inside a cube by opacity and colour. The size of the cubes is
tried out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._packing import row_blocks

__all__ = ["compact_chunks", "morton_codes", "packing_order"]

_AXIS_BITS = 21
# Cube edges tried first, in steps of the positions, as powers of two; then the neighbours of the best.
_EDGES = (6, 8, 10, 12)
# Where to cut more runs of rows than this is judged by a sample.
_EXACT_RUNS = 64


def morton_codes(cells: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """(N,) bits of x, y and z interleaved, from (N, 3) cell coordinates 0..2**21 - 1."""
    codes = np.empty(len(cells), np.uint64)
    for rows in row_blocks(len(cells)):
        block = np.zeros(rows.stop - rows.start, np.uint64)
        for axis in range(3):
            bits = cells[rows, axis].astype(np.uint64)
            for shift, mask in (
                (32, 0x001F00000000FFFF),
                (16, 0x001F0000FF0000FF),
                (8, 0x100F00F00F00F00F),
                (4, 0x10C30C30C30C30C3),
                (2, 0x1249249249249249),
            ):
                bits = (bits | bits << np.uint64(shift)) & np.uint64(mask)
            block |= bits << np.uint64(axis)
        codes[rows] = block
    return codes


def packing_order(
    positions: npt.NDArray[np.int32],
    keys: Sequence[npt.NDArray[np.uint8]],
    cost: Callable[[npt.NDArray[np.intp]], int],
) -> npt.NDArray[np.intp]:
    """The order of Gaussians that a general-purpose compressor likes best.

    Args:
        positions: (N, 3) integers as the file holds them.
        keys: (N,) bytes to sort by inside a cube, the most important first.
        cost: size of the compressed file in this order, or of a part that tells.

    Returns:
        (N,) rows in the order to write.
    """
    if len(positions) < 3:
        return np.arange(len(positions))
    tried: dict[int, tuple[int, npt.NDArray[np.intp]]] = {}

    def attempt(edge: int) -> int:
        if edge not in tried:
            order = _order(positions, keys, edge)
            tried[edge] = (cost(order), order)
        return tried[edge][0]

    best = min(_EDGES, key=attempt)
    best = min((best, best - 1, best + 1), key=attempt)
    return tried[best][1]


def _order(positions: npt.NDArray[np.int32], keys: Sequence[npt.NDArray[np.uint8]], edge: int) -> npt.NDArray[np.intp]:
    # Cubes are aligned to the bytes of the positions, so the corner is not subtracted before the shift.
    cells = positions.astype(np.int64) >> edge
    cells -= cells.min(axis=0)
    bits = int(cells.max()).bit_length()
    if bits > _AXIS_BITS:
        cells >>= bits - _AXIS_BITS
        bits = _AXIS_BITS
    codes = morton_codes(cells)
    for key in keys[: (64 - 3 * bits) // 8]:
        codes <<= np.uint64(8)
        codes |= key
    return np.argsort(codes, kind="stable")


def compact_chunks(
    means: npt.NDArray[np.float32],
    importance: npt.NDArray[np.floating[Any]],
    chunk: int,
    axis_weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> npt.NDArray[np.intp]:
    """An order whose runs of `chunk` rows lie in small boxes, so that values rounded to a share of the box are exact.

    Rows are cut in two, again and again, across the axis and at the place (a multiple of `chunk`) that make the sum of
    importance times squared box sides least.

    Args:
        means: (N, 3) finite.
        importance: (N,) of a squared error of each row's position.
        chunk: rows of a run; only the last may be shorter.
        axis_weights: how much a side of the box counts.

    Returns:
        (N,) rows; inside a run in no particular order.
    """
    order = np.arange(len(means))
    scaled = means.astype(np.float64) * axis_weights
    pending = [(0, len(means))]
    while pending:
        start, stop = pending.pop()
        if stop - start <= chunk:
            continue
        rows, cut = _cut(scaled, importance, order[start:stop], chunk)
        order[start:stop] = rows
        pending += [(start, start + cut), (start + cut, stop)]
    return order


def _cut(
    points: npt.NDArray[np.float64], importance: npt.NDArray[Any], rows: npt.NDArray[np.intp], chunk: int
) -> tuple[npt.NDArray[np.intp], int]:
    """The `rows` so that those on one side of the best cut come first, and how many those are."""
    if len(rows) <= _EXACT_RUNS * chunk:
        axis, runs = _best_cut(points, importance, rows, chunk)
        return rows[np.argsort(points[rows, axis], kind="stable")], runs * chunk
    # Of many rows a sample tells where to cut.
    sample = rows[:: max(1, len(rows) // (_EXACT_RUNS * 64))]
    axis, runs = _best_cut(points, importance, sample, 64)
    cut = min(max(1, round(runs * 64 / len(sample) * len(rows) / chunk)), (len(rows) - 1) // chunk) * chunk
    return rows[np.argpartition(points[rows, axis], cut - 1)], cut


def _best_cut(
    points: npt.NDArray[np.float64], importance: npt.NDArray[Any], rows: npt.NDArray[np.intp], chunk: int
) -> tuple[int, int]:
    """The axis across which, and the number of runs of `chunk` rows after which, to cut."""
    best_cost, best = np.inf, (0, max(1, len(rows) // chunk // 2))
    here, worth = points[rows], importance[rows]
    starts = np.arange(0, len(rows), chunk)
    for axis in range(3):
        along = np.argsort(here[:, axis], kind="stable")
        weight = np.cumsum(np.add.reduceat(worth[along], starts))
        sorted_points = here[along]
        low = np.minimum.reduceat(sorted_points, starts, axis=0)
        high = np.maximum.reduceat(sorted_points, starts, axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            cost = weight[:-1] * _squared_sides(low, high)[:-1]
            cost += (weight[-1] - weight[:-1]) * _squared_sides(low[::-1], high[::-1])[-2::-1]
        at = int(np.argmin(cost))
        if cost[at] < best_cost:
            best_cost, best = float(cost[at]), (axis, at + 1)
    return best


def _squared_sides(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum of squared sides of the box around the first 1, 2, ... boxes."""
    sides = np.maximum.accumulate(high, axis=0) - np.minimum.accumulate(low, axis=0)
    return np.asarray((sides * sides).sum(axis=1))
