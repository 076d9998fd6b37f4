"""The picture as a linear function of the colours, for fixed geometry: forward and adjoint.

A picture is sum over Gaussians of w colour, with blending weights w = alpha T that do not depend on colours. Least
squares over colours therefore needs no differentiation: conjugate gradients with `splat` and `gather`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import Gaussians
from .camera import Camera
from .compositing import gather_tiles, tile_picture, untile
from .kernel import default_num_threads, run_threaded
from .layers import blank_states, composite_layer, sum_partials, tile_ranges
from .projection import TileLists, project

__all__ = ["ColorOperator", "view_directions"]

_MAX_ENTRIES = 1 << 22


class ColorOperator:
    """The linear map from colours to one view of a scene, and its transpose. Sorts once, when it is made.

    Args:
        gaussians: the scene; only geometry and opacities are used.
        camera: the view.
        antialiased: as for `render.cpu.render`.
        num_threads: threads to use; no result depends on it.

    Attributes:
        camera: the view.
        num_gaussians: N.
        visible: (V,) int32, the Gaussians that the view draws, front to back.
        alpha: (H, W) float32, coverage; the picture on a background adds (1 - alpha) times its colour.

    Holds 28 bytes for each visible Gaussian and 4 for each tile that it touches.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        camera: Camera,
        *,
        antialiased: bool | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.camera = camera
        self.num_gaussians = len(gaussians)
        self._threads = default_num_threads() if num_threads is None else num_threads
        if antialiased is None:
            antialiased = bool(gaussians.metadata.get("antialiased", False))
        plain = gaussians.with_sh_degree(0)
        self._projection = project(plain, camera, antialiased=antialiased, num_threads=self._threads)
        self.visible = self._projection.ids
        self._blank = blank_states(self._projection)
        states = self._blank.copy()
        finished = np.zeros(len(states), np.uint8)
        self._layers: list[TileLists] = []
        for start, stop in self._projection.layers(_MAX_ENTRIES):
            lists = self._projection.tile_lists(start, stop, finished, self._threads)
            composite_layer(self._projection, lists, self._projection.colours, states, finished, self._threads)
            self._layers.append(lists)
        self.alpha = self._picture(states)[1]

    def _picture(self, states: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        rgb = np.empty((self.camera.height, self.camera.width, 3), np.float32)
        alpha = np.empty((self.camera.height, self.camera.width), np.float32)
        untile(states, self._projection.tiles_x, np.zeros(3, np.float32), rgb, alpha)
        return rgb, alpha

    def splat(self, colors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """The picture (H, W, 3) float32 on black for colours (N, 3), any sign, not clamped.

        Raises:
            ParameterError: `colors` has another shape.
        """
        if colors.shape != (self.num_gaussians, 3):
            raise ParameterError(f"colors have shape {colors.shape}, expected ({self.num_gaussians}, 3)")
        seen = np.ascontiguousarray(colors[self.visible], np.float32)
        states = self._blank.copy()
        finished = np.zeros(len(states), np.uint8)
        for lists in self._layers:
            composite_layer(self._projection, lists, seen, states, finished, self._threads)
        return self._picture(states)[0]

    def gather(self, picture: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """The transpose of `splat`: for every Gaussian the sum over pixels of w times the picture, (N, 3) float32.

        Args:
            picture: (H, W, 3), any values.

        Raises:
            ParameterError: `picture` has another shape.
        """
        if picture.shape != (self.camera.height, self.camera.width, 3):
            raise ParameterError(f"a picture of shape {picture.shape} does not fit the camera")
        projection = self._projection
        states = self._blank.copy()
        tile_picture(np.ascontiguousarray(picture, np.float32), projection.tiles_x, states)
        finished = np.zeros(len(states), np.uint8)
        sums = np.zeros((len(self.visible), 3))
        for lists in self._layers:
            partials = np.empty((len(lists.entries), 3), np.float32)
            shared = (projection.tiles_x, projection.records, lists.starts, lists.entries, states, finished, partials)
            run_threaded(gather_tiles, [(*tiles, *shared) for tiles in tile_ranges(projection)], self._threads)
            sum_partials(lists, partials, sums, self._threads)
        result = np.zeros((self.num_gaussians, 3), np.float32)
        result[self.visible] = sums
        return result


def view_directions(means: npt.NDArray[np.float32], camera: Camera) -> npt.NDArray[np.float32]:
    """Unit directions (N, 3) float32 from the camera to means (N, 3); zero where they coincide."""
    offsets = means.astype(np.float64) - camera.center
    norm = np.sqrt(offsets[:, 0] ** 2 + offsets[:, 1] ** 2 + offsets[:, 2] ** 2)
    return (offsets / np.where(norm > 0, norm, 1.0)[:, None]).astype(np.float32)
