#!/usr/bin/env python3
"""The grid sort measured: seconds and mean neighbour distance, beside Morton order and a plain float64 reference.

    python tools/grid_bench.py scene.ply --counts 65536 262144
    python tools/grid_bench.py scene.ply --counts 65536 --reference      # minutes: numpy, one core

A scene with fewer Gaussians than asked for is repeated with a little noise, one with more is sampled. Features are
those of `grid_features` at their default weights. Distances are comparable at one count of one scene only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import permutations

import numpy as np
import numpy.typing as npt

import splatcodec
from splatcodec.preprocess.self_organizing_grid import (
    Grid,
    curve_grid,
    grid_features,
    grid_width,
    neighbor_distance,
    sort_into_grid,
)

_ORDERS = np.array(list(permutations(range(4))))


def reference_sort(features: npt.ArrayLike, *, improvement_break: float = 1e-4, seed: int = 0) -> Grid:
    """The sort of arXiv:2312.13299 read literally, for a square of features (side * side, D): float64, plain numpy.

    Blurs are Gaussians as wide as their window, mirrored at the border; every pass has a random permutation of its own.
    """
    values = np.asarray(features, np.float64)
    side = int(np.sqrt(len(values)))
    if side * side != len(values):
        raise ValueError(f"{len(values)} is not a square")
    random = np.random.default_rng(seed)
    index = random.permutation(len(values)).reshape(side, side)
    grid = values[index]
    radius = side / 2 - 1
    while radius >= 1:
        window = min(side - 1, 2 * int(radius) + 1)
        target = _gaussian_blur(grid, window)
        block = min(max(min(window + 1, side) // 2 * 2, 16), side)
        shifts = 0
        while True:
            shift = tuple(random.integers(0, block, 2))
            rolled = [np.roll(a, shift, (0, 1)) for a in (grid, target, index[..., None])]
            blocks = [_blocks(a, block) for a in rolled]
            improved = False
            error = np.square(blocks[0] - blocks[1]).sum()
            while True:
                _exchange(*blocks, random.permutation(block * block))
                now = np.square(blocks[0] - blocks[1]).sum()
                if error - now < improvement_break * error:
                    break
                error, improved = now, True
            back = tuple(-s for s in shift)
            area = side // block * block
            for a, b in zip(rolled, blocks):
                a[:area, :area] = (
                    b.reshape(side // block, side // block, block, block, -1).swapaxes(1, 2).reshape(area, area, -1)
                )
            grid, target, index = np.roll(rolled[0], back, (0, 1)), target, np.roll(rolled[2], back, (0, 1))[..., 0]
            shifts += 1
            if not improved and shifts >= 4:
                break
        radius *= 0.95
    return Grid(index.reshape(-1), side)


def _gaussian_blur(grid: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    taps = np.exp(-0.5 * np.square((np.arange(window) - window // 2) / window))
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (window // 2, window - 1 - window // 2)
        wide = np.pad(grid, pad, mode="reflect")
        size = grid.shape[axis] + window - 1
        spectrum = np.fft.rfft(wide, axis=axis) * np.fft.rfft(taps[::-1], size).reshape(
            [-1 if k == axis else 1 for k in range(3)]
        )
        grid = np.take(np.fft.irfft(spectrum, size, axis=axis), np.arange(window - 1, size), axis=axis)
    return grid


def _blocks(a: npt.NDArray, block: int) -> npt.NDArray:
    number = len(a) // block
    area = a[: number * block, : number * block]
    return (
        area.reshape(number, block, number, block, -1).swapaxes(1, 2).reshape(number * number, block * block, -1).copy()
    )


def _exchange(grid: npt.NDArray, target: npt.NDArray, index: npt.NDArray, shuffled: npt.NDArray) -> None:
    """Groups of four cells of every block take the order of what they hold that is nearest to the target."""
    groups = shuffled[: len(shuffled) // 4 * 4].reshape(-1, 4)
    items, wanted = grid[:, groups], target[:, groups]
    costs = np.square(items[:, :, :, None] - wanted[:, :, None]).sum(-1)
    totals = sum(costs[:, :, _ORDERS[:, j], j] for j in range(4))
    best = _ORDERS[totals.argmin(-1)]
    grid[:, groups] = np.take_along_axis(items, best[..., None], 2)
    index[:, groups] = np.take_along_axis(index[:, groups], best[..., None], 2)


def features_of(path: str, count: int) -> npt.NDArray[np.float32]:
    """(count, 9) features of a scene, sampled or repeated."""
    features = grid_features(splatcodec.read(path).cleaned()[0])
    random = np.random.default_rng(0)
    if count <= len(features):
        return features[np.sort(random.permutation(len(features))[:count])]
    features = np.concatenate([features] * (count // len(features) + 1))[:count]
    return features + random.normal(0, 0.02, features.shape).astype(np.float32)


def _timed(sort: Callable[[], Grid]) -> tuple[Grid, float, float]:
    """What it gives, seconds, and seconds of processor time over all threads."""
    start, cpu = time.perf_counter(), time.process_time()
    grid = sort()
    return grid, time.perf_counter() - start, time.process_time() - cpu


def measure(path: str, count: int, *, reference: bool, device: str | None) -> dict[str, float]:
    """One row of the table."""
    features = features_of(path, count)
    sort_into_grid(features[:1024], device=device)  # compiled before it is timed
    grid, seconds, cpu_s = _timed(lambda: sort_into_grid(features, device=device))
    along = curve_grid(features[:, :3])
    morton = Grid(curve_grid(features[:, :3], width=count).order, grid_width(count))
    row = {
        "count": count,
        "sort_s": round(seconds, 2),
        "sort_cpu_s": round(cpu_s, 2),
        "distance": round(neighbor_distance(features, grid), 4),
        "curve_distance": round(neighbor_distance(features, along), 4),
        "morton_rows_distance": round(neighbor_distance(features, morton), 4),
        "shuffled_distance": round(
            neighbor_distance(features, Grid(np.random.default_rng(1).permutation(count), grid_width(count))), 4
        ),
    }
    if reference:
        plain, seconds, _ = _timed(lambda: reference_sort(features))
        row["reference_s"] = round(seconds, 1)
        row["reference_distance"] = round(neighbor_distance(features, plain), 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("--counts", type=int, nargs="+", default=[65536])
    parser.add_argument("--reference", action="store_true", help="also the float64 reference (counts must be squares)")
    parser.add_argument("--device", help="a torch device to sort on")
    arguments = parser.parse_args()
    for count in arguments.counts:
        print(json.dumps(measure(arguments.scene, count, reference=arguments.reference, device=arguments.device)))


if __name__ == "__main__":
    main()
