"""Tiles of a lossy scene coded by the processes of a Dask cluster, to the same bytes as by threads.

What belongs to a tile is cut out of the scene here and sent; its rows count from 0 there. Which Gaussians, how
precisely and with which tables is decided here, from all tiles.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendUnavailableError
from ..gaussians import Gaussians
from ..preprocess.plan import Steps
from ..stages.parameters import SceneParameters, StreamModel
from ..stages.tile import emit_layer, emit_tile
from ..version import __version__
from .quantization import (
    ColorBases,
    Feedback,
    PackedTile,
    Sources,
    Tile,
    make_tile,
    quantize_tile,
    tile_geometry,
    tile_histograms,
    tile_targets,
)

__all__ = ["Cluster", "EmittedTile", "current_cluster", "emitted", "on_cluster"]

Rows = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]
# Chunk, layers, bits by stream, bits by layer.
EmittedTile = tuple[bytes, list[bytes], npt.NDArray[np.float64], list[float]]
_CONNECT_S = 15
_current: contextvars.ContextVar[Cluster | None] = contextvars.ContextVar("cluster", default=None)


def current_cluster() -> Cluster | None:
    """The cluster of the `on_cluster` around, if there is one."""
    return _current.get()


@contextlib.contextmanager
def on_cluster(address: str) -> Iterator[Cluster]:
    """Within the context, lossy scenes have their tiles coded by the workers of a Dask scheduler.

    Args:
        address: of the scheduler, such as "tcp://10.0.0.5:8786".

    Raises:
        BackendUnavailableError: `distributed` is not installed, nothing answers, there is no worker, or workers have
            another version of splatcodec.
    """
    try:
        from distributed import Client
    except ImportError:
        raise BackendUnavailableError("a scheduler needs Dask", hint="pip install 'splatcodec[dask]'") from None
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise BackendUnavailableError(f"no Dask scheduler answers at {address}: {error}") from None
    try:
        versions = set(client.run(_version).values())
        if versions != {__version__}:
            found = ", ".join(sorted(map(str, versions))) or "no workers"
            raise BackendUnavailableError(f"the cluster at {address} has {found}, expected splatcodec {__version__}")
        token = _current.set(Cluster(client))
        try:
            yield _current.get()  # type: ignore[misc]
        finally:
            _current.reset(token)
    finally:
        client.close()


def _version() -> str:
    """Of the package on a worker."""
    return __version__


class Cluster:
    """A connected Dask client.

    Attributes:
        client: `distributed.Client`.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def _map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], shared: Any) -> Iterator[Any]:
        """`function(shared, *argument)` for each argument, in order; a few a worker are on their way at a time."""
        everywhere = self.client.scatter([shared], broadcast=True, hash=False)[0]
        most = 2 * max(1, sum(self.client.nthreads().values()))
        waiting: deque[Any] = deque()
        source = iter(arguments)
        for argument in itertools.islice(source, most):
            waiting.append(self.client.submit(function, everywhere, *argument, pure=False))
        while waiting:
            yield waiting.popleft().result()
            for argument in itertools.islice(source, 1):
                waiting.append(self.client.submit(function, everywhere, *argument, pure=False))

    def make(self, sources: Sources, steps: Steps, jobs: Iterable[tuple[int, int, Rows]]) -> list[Tile]:
        """`make_tile` of every (level, number, rows)."""
        jobs = list(jobs)
        parts = ((*_cut(sources, level, rows), level, number) for level, number, rows in jobs)
        made = self._map(_make, parts, steps)
        return [replace(tile, rows=rows[tile.rows]) for tile, (_, _, rows) in zip(made, jobs)]

    def quantize(
        self,
        sources: Sources,
        tiles: Sequence[Tile],
        models: Sequence[StreamModel],
        steps: Steps,
        bases: ColorBases,
        trellis: tuple[int, int],
        feedback: Feedback | None,
        histograms: bool,
    ) -> Iterator[tuple[PackedTile, list[npt.NDArray[np.int64]]]]:
        """`quantize_tile` of every tile, packed, and its `tile_histograms` if wanted."""
        parts = (
            (*_cut(sources, tile.level, tile.rows), _alone(tile), _feedback_of(feedback, tile), histograms)
            for tile in tiles
        )
        return self._map(_quantize, parts, (models, steps, bases, trellis))

    def emit(
        self, sources: Sources, tiles: Sequence[Tile], packed: dict[int, PackedTile], parameters: SceneParameters,
        mixing: bool,
    ) -> Iterator[EmittedTile]:  # fmt: skip
        """`emitted` of every tile; what is sent is taken out of `packed`."""
        parts = (
            (_part(sources.of(tile.level)[0], tile.rows, sh=False), _alone(tile), packed.pop(k), mixing)
            for k, tile in enumerate(tiles)
        )
        return self._map(_emit, parts, parameters)


def _cut(sources: Sources, level: int, rows: Rows) -> tuple[Gaussians, Ints]:
    """Some rows of a level, and their classes."""
    scene, classes = sources.of(level)
    return _part(scene, rows), classes[rows]


def _part(scene: Gaussians, rows: Rows, sh: bool = True) -> Gaussians:
    """Some rows, without what only the whole scene needs."""
    shN = scene.shN[rows] if sh else scene.shN[rows, :0]
    return Gaussians(
        scene.means[rows], scene.quats[rows], scene.scales[rows], scene.opacities[rows], scene.sh0[rows], shN
    )


def _alone(tile: Tile) -> Tile:
    """The tile of a scene that has no other rows."""
    return replace(tile, rows=np.arange(len(tile.rows)))


def _feedback_of(feedback: Feedback | None, tile: Tile) -> Feedback | None:
    """The part of the views' weights that is the tile's; thumbnails have none."""
    if feedback is None or not tile.level:
        return None
    weights = object.__new__(type(feedback.weights))
    weights.codes = np.ascontiguousarray(feedback.weights.codes[:, tile.rows])
    weights.centers = feedback.weights.centers
    return Feedback(feedback.means[tile.rows], weights, feedback.ridge)


def _make(steps: Steps, scene: Gaussians, classes: Ints, level: int, number: int) -> Tile:
    return make_tile(scene, np.arange(len(scene)), classes, steps, level, number)


def _quantize(
    shared: tuple[Sequence[StreamModel], Steps, ColorBases, tuple[int, int]],
    scene: Gaussians,
    classes: Ints,
    tile: Tile,
    feedback: Feedback | None,
    histograms: bool,
) -> tuple[PackedTile, list[npt.NDArray[np.int64]]]:
    models, steps, bases, trellis = shared
    q = quantize_tile(tile, tile_targets(scene, tile, classes, steps, bases), models, steps, bases, trellis, feedback)
    return PackedTile.of(q), tile_histograms(tile, q, models, trellis) if histograms else []


def _emit(parameters: SceneParameters, scene: Gaussians, tile: Tile, packed: PackedTile, mixing: bool) -> EmittedTile:
    return emitted(parameters, scene, tile, packed, mixing)


def emitted(parameters: SceneParameters, scene: Gaussians, tile: Tile, packed: PackedTile, mixing: bool) -> EmittedTile:
    """The TILE and SHC chunks of a quantized tile, and their bits."""
    q = packed.unpacked()
    fractions, shape = tile_geometry(scene, tile)
    payload, bits = emit_tile(
        parameters, tile.grid, tile.tree, q.values, q.magnitudes, q.residuals, fractions, shape, mixing
    )
    layers = [
        emit_layer(parameters, tile.tree, layer, q.values, q.magnitudes, q.residuals, mixing)
        for layer in parameters.layers()
    ]
    return payload, [layer for layer, _ in layers], bits, [spent for _, spent in layers]
