"""Running the tile kernels: over all tiles, on all threads, layer by layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compositing import PICTURE_STATE, add_partials, composite_tiles, init_tiles
from .kernel import run_threaded
from .projection import Projection, TileLists

__all__ = ["blank_states", "composite_layer", "sum_partials", "tile_ranges"]

_TILES_PER_TASK = 16


def blank_states(projection: Projection) -> npt.NDArray[np.float32]:
    """(tiles, 4 * 256) float32 of a picture on which nothing is drawn yet."""
    states = np.empty((projection.tiles_x * projection.tiles_y, PICTURE_STATE), np.float32)
    init_tiles(states, projection.camera.width, projection.camera.height, projection.tiles_x)
    return states


def tile_ranges(projection: Projection) -> list[tuple[int, int]]:
    """Ranges of tiles that threads take one after the other."""
    num_tiles = projection.tiles_x * projection.tiles_y
    return [(k, min(k + _TILES_PER_TASK, num_tiles)) for k in range(0, num_tiles, _TILES_PER_TASK)]


def composite_layer(
    projection: Projection,
    lists: TileLists,
    colours: npt.NDArray[np.float32],
    states: npt.NDArray[np.float32],
    finished: npt.NDArray[np.uint8],
    num_threads: int,
) -> None:
    """Blend the listed Gaussians, with colours (V, 3), into `states`; update `finished` (tiles,)."""
    shared = (projection.tiles_x, projection.records, colours, lists.starts, lists.entries, states, finished)
    run_threaded(composite_tiles, [(*tiles, *shared) for tiles in tile_ranges(projection)], num_threads)


def sum_partials(
    lists: TileLists,
    partials: npt.NDArray[np.float32],
    sums: npt.NDArray[np.float64],
    num_threads: int,
    *,
    maximum: int = -1,
) -> None:
    """Add partials (E, kinds) to the rows of `sums` (V, kinds) that they belong to, in the order of the tiles.

    Each thread has its own rows, so the order of every sum is the same for any number of threads.
    """
    edges = [len(sums) * k // num_threads for k in range(num_threads + 1)]
    tasks = [
        (edges[k], edges[k + 1], lists.entries, partials, maximum, sums)
        for k in range(num_threads)
        if edges[k] < edges[k + 1]
    ]
    run_threaded(add_partials, tasks, num_threads)
