"""Decoding a still scene: the whole flow on one page.

container -> PARM -> SceneParameters
          -> TILE -> rANS -> octree, classes, sizes, shapes, opacity, colour, SH -> Gaussians
          -> COLD, COLS -> side arrays
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..bitstream.container import ChunkEntry, Container
from ..errors import FormatError, SplatCodecError
from ..gaussians import Gaussians, num_sh_coefficients
from ..limits import DEFAULT_LIMITS, Limits
from ..stages.parameters import SceneParameters
from ..stages.tile import MAX_TILE, DecodedTile, decode_tile
from ..stages.transform import decompose_covariance

__all__ = ["decode_lossy"]

Progress = Callable[[str, float], None]


def worker_count(threads: int | None) -> int:
    """Number of threads to use: given, or one a core."""
    return max(1, threads if threads else os.cpu_count() or 1)


def check_counts(container: Container, entries: Sequence[ChunkEntry], limits: Limits) -> int:
    """Number of Gaussians of TILE or COLS chunks, checked against the header and the limits before allocating."""
    total = 0
    for entry in entries:
        if not 1 <= entry.count <= MAX_TILE or entry.count > 8 * entry.length:
            raise FormatError(
                f"{entry.count} Gaussians in {entry.length} bytes",
                file=container.name,
                chunk=entry.label,
                offset=entry.offset,
            )
        total += entry.count
    if total != container.num_gaussians:
        raise FormatError(
            f"chunks hold {total} Gaussians, the header says {container.num_gaussians}", file=container.name, offset=24
        )
    limits.check_gaussians(total, file=container.name)
    return total


def read_parameters(container: Container) -> SceneParameters:
    """The PARM chunk."""
    entry = container.one("PARM")
    try:
        return SceneParameters.from_bytes(container.read(entry))
    except SplatCodecError as error:
        raise _locate(error, container, entry) from None


def decode_lossy(
    container: Container,
    *,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Gaussians:
    """All Gaussians of a lossy scene, without side arrays and metadata.

    Args:
        threads: tiles decoded at once; the result does not depend on it.
        progress: called with (stage, share done 0..1).

    Raises:
        SplatCodecError: the file is damaged or breaks the limits; names file, chunk and byte.
    """
    parameters = read_parameters(container)
    entries = container.of_type("TILE")
    total = check_counts(container, entries, limits)
    rest = num_sh_coefficients(parameters.sh_degree) - 1
    limits.check_bytes(total * 4 * (14 + 3 * rest), "the scene", file=container.name)
    scene = BlankScene([entry.count for entry in entries], parameters.sh_degree)
    payloads: dict[int, bytes] = {}

    def work(k: int) -> None:
        entry = entries[k]
        try:
            scene.put(k, decode_tile(parameters, payloads.pop(k), entry.count))
        except SplatCodecError as error:
            raise _locate(error, container, entry) from None

    workers = worker_count(threads)
    with ThreadPoolExecutor(workers) as pool:
        done = 0
        for first in range(0, len(entries), 2 * workers):
            batch = range(first, min(first + 2 * workers, len(entries)))
            payloads.update({k: container.read(entries[k]) for k in batch})
            for _ in pool.map(work, batch):
                done += 1
                if progress:
                    progress("decode", done / len(entries))
    return scene.gaussians()


class BlankScene:
    """Arrays of a scene that tiles are decoded into, so that no tile is copied twice.

    Args:
        counts: Gaussians of each tile. sh_degree: 0..3.
    """

    def __init__(self, counts: Sequence[int], sh_degree: int) -> None:
        self._starts = np.cumsum([0, *counts])
        total = int(self._starts[-1])
        self._means, self._quats, self._scales = (np.empty((total, width), np.float32) for width in (3, 4, 3))
        self._opacities, self._sh0 = np.empty(total, np.float32), np.empty((total, 1, 3), np.float32)
        self._shN = np.empty((total, num_sh_coefficients(sh_degree) - 1, 3), np.float32)

    def put(self, k: int, tile: DecodedTile) -> None:
        """Fill in tile k; tiles may be put by several threads."""
        rows = slice(int(self._starts[k]), int(self._starts[k + 1]))
        decompose_covariance(tile.covariances, tile.smallest, self._quats[rows], self._scales[rows])
        self._means[rows], self._opacities[rows] = tile.means, tile.opacities
        self._sh0[rows], self._shN[rows] = tile.sh0, tile.shN

    def gaussians(self) -> Gaussians:
        """The scene, once every tile has been put."""
        return Gaussians(self._means, self._quats, self._scales, self._opacities, self._sh0, self._shN)


def _locate(error: SplatCodecError, container: Container, entry: ChunkEntry) -> SplatCodecError:
    """Offsets inside a chunk become offsets in the file."""
    if error.chunk is None:
        error.offset = entry.offset + (error.offset or 0)
    return error.locate(file=container.name, chunk=entry.label)
