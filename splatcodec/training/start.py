"""Where a run starts: points with colours that the photographs give them where the data set does not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .datasets import Dataset
from .splats import Splats, splats_from_points

__all__ = ["colours_from_views", "start_splats"]

_COLOUR_VIEWS = 24
# A view more than this many times smaller says the same about the colour of a point.
_COLOUR_SHRINK = 4.0


def colours_from_views(dataset: Dataset, means: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """(M, 3) mean colour of the train pictures at each point, grey where none shows it; occlusion is not known yet."""
    sums, counts = np.zeros((len(means), 3)), np.zeros(len(means))
    step = max(1, len(dataset.train) // _COLOUR_VIEWS)
    for view in dataset.train[::step]:
        factor = max(1.0, min(_COLOUR_SHRINK, min(view.camera.width, view.camera.height) / 16))
        camera = view.resized(factor)
        picture = dataset.picture(view, factor)
        local = means.astype(np.float64) @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
        front = local[:, 2] > camera.near
        depth = np.where(front, local[:, 2], 1.0)
        x = np.floor(local[:, 0] / depth * camera.K[0, 0] + camera.K[0, 2])
        y = np.floor(local[:, 1] / depth * camera.K[1, 1] + camera.K[1, 2])
        shown = front & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
        sums[shown] += picture[y[shown].astype(int), x[shown].astype(int)] / 255.0
        counts += shown
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 0.5).astype(np.float32)


def start_splats(dataset: Dataset, sh_degree: int, device: torch.device, max_gaussians: int, seed: int) -> Splats:
    """The Gaussians of the first step: the data set's points, a random part of them where the budget is smaller."""
    points = dataset.points
    if len(points.means) > max_gaussians:
        rows = np.sort(np.random.default_rng([0x535452, seed]).permutation(len(points.means))[:max_gaussians])
        colours = None if points.colours is None else points.colours[rows]
        points = type(points)(points.means[rows], colours, points.source)
    colours = colours_from_views(dataset, points.means) if points.colours is None else points.colours
    return splats_from_points(points, colours, sh_degree, device)
