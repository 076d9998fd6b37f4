"""The CPU renderer: tiles of 16 x 16 pixels on all cores, the same picture for any number of threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians
from .camera import Camera
from .compositing import untile
from .kernel import default_num_threads
from .layers import blank_states, composite_layer
from .projection import Projection, project
from .rendering import Rendering

__all__ = ["render"]

# Most (tile, Gaussian) pairs listed at once; a scene with more is drawn in several layers, front to back.
_MAX_ENTRIES = 1 << 24


def composite(projection: Projection, num_threads: int, *, max_entries: int = _MAX_ENTRIES) -> npt.NDArray[np.float32]:
    """Blend everything; returns the tile states (tiles, 4 * 256) float32."""
    states = blank_states(projection)
    finished = np.zeros(len(states), np.uint8)
    for start, stop in projection.layers(max_entries):
        lists = projection.tile_lists(start, stop, finished, num_threads)
        composite_layer(projection, lists, projection.colours, states, finished, num_threads)
    return states


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: Sequence[float] = (0.0, 0.0, 0.0),
    antialiased: bool | None = None,
    num_threads: int | None = None,
) -> Rendering:
    """Draw a scene as 3D Gaussian Splatting does (Kerbl et al., 2023); `render.reference` is the definition.

    Colours are spherical harmonics up to degree 3, at least 0; covariances are projected by EWA splatting with a
    low-pass of 0.3 px^2; alpha = min(0.99, opacity * exp(-m / 2)), left out below 1/255; Gaussians are blended front to
    back by the depth of their centres until the transmittance would fall below 1e-4.

    Args:
        gaussians: any scene; rows that cannot be drawn (NaN, infinite) are left out.
        camera: from where.
        background: (3,) colour behind the scene, 0..1.
        antialiased: whether opacities make up for the low-pass blur; None takes the scene's `metadata["antialiased"]`.
        num_threads: threads to use (all cores if None); the picture does not depend on it.

    Returns:
        A Rendering of rgb (H, W, 3) and alpha (H, W), float32.

    Raises:
        ParameterError: the picture is more than 65,536 pixels wide or high.
    """
    threads = default_num_threads() if num_threads is None else num_threads
    projection = project(gaussians, camera, antialiased=antialiased, num_threads=threads)
    states = composite(projection, threads)
    rgb = np.empty((camera.height, camera.width, 3), np.float32)
    alpha = np.empty((camera.height, camera.width), np.float32)
    red, green, blue = (float(value) for value in background)
    untile(states, projection.tiles_x, np.array([red, green, blue], np.float32), rgb, alpha)
    return Rendering(rgb, alpha, (red, green, blue))
