"""Self-Organizing Gaussian Grids: Gaussians are kept sorted in a grid, and trained to be like their neighbours in it.

After Morgenstern et al. (ECCV 2024, arXiv:2312.13299). Once densification has ended, faint Gaussians go, the others
are sorted into the grid of `preprocess.self_organizing_grid`, and from then on a loss pulls quaternions, which have
little say in the picture where a Gaussian is nearly round, to what lies around them. The grid is sorted again now and
then. Each time every ellipsoid is described by those of its 48 pairs of quaternion and scales that fit its neighbours
best.

What is other than in the paper: the sort begins when densification ends (there: from the beginning), and later ones
start from the grid before; Gaussians fainter than 0.05 go (there: 0.1, in longer runs); nothing is dropped to fill a
square; opacities are not smoothed (there: a tenth of the weight of quaternions), as that lifts faint Gaussians that
should go: 7 % more of them, and 0.17 dB less on lego; and runs shorter than the paper's are pulled less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...errors import SplatCodecError
from ...preprocess.self_organizing_grid import grid_features, grid_width, smooth_covariances, sort_into_grid
from ..masking import FAINT_OPACITY
from ..schedules import rounds
from ..settings import DEFAULT_ITERATIONS
from ..smoothness import neighbor_loss
from ..splats import Splats
from .base import Method

__all__ = ["METHOD"]

_FROM, _EVERY = 0.6, 0.1  # of the run
# Steps that the full weight is for. The pull is the same in every step, the pictures' is noise that needs steps to
# average out: at the full weight 1,000 steps lost 1 dB.
_LONG_RUN = 30_000
_RESORT_RADIUS = 12


class SelfOrganizing(Method):
    """See the module; `settings.smoothness` is how much the neighbours count."""

    name = "selforg"
    plain_until = _FROM

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.sorts = 0
        self.sorted_count = -1

    def penalties(self, splats: Splats, attributes: Mapping[str, torch.Tensor], progress: float) -> dict[str, Any]:
        """The neighbour loss, while the rows are a grid."""
        if len(splats) != self.sorted_count or not self.settings.smoothness:
            return {}
        steps = self.settings.max_iterations or DEFAULT_ITERATIONS
        weight = self.settings.smoothness * min(1.0, steps / _LONG_RUN)
        return {"neighbours": weight * neighbor_loss(splats["quats"], grid_width(len(splats)))}

    def after_step(self, splats: Splats, progress: float) -> None:
        """Now and then rows are sorted.

        Raises:
            SplatCodecError: no Gaussian is more than faint.
        """
        if self.settings.strategy == "none":  # a finished scene: nothing has to grow first
            progress = _FROM + (1.0 - _FROM) * progress
        due = rounds(progress, _FROM, _EVERY)
        if due <= self.sorts:
            return
        first = not self.sorts
        self.sorts = due
        kept = splats.alphas() > FAINT_OPACITY
        if not bool(kept.any()):
            raise SplatCodecError("every Gaussian is faint: nothing is left to sort; the run cannot go on")
        if not bool(kept.all()):
            splats.keep(kept)
        self._sort(splats, first)

    def _sort(self, splats: Splats, first: bool) -> None:
        scene = splats.raw_gaussians()
        finite = all(np.isfinite(value).all() for value in (scene.means, scene.sh0, scene.scales))
        if not finite:
            self.say("values that are not finite: the grid was not sorted")
            self.sorted_count = -1
            return
        start = {} if first else {"start": np.arange(len(scene)), "start_radius": _RESORT_RADIUS}
        device = splats.device.type if splats.device.type == "cuda" else None
        grid = sort_into_grid(
            grid_features(scene),
            seed=self.settings.seed,
            num_threads=self.num_threads,
            device=device,
            **start,  # type: ignore[arg-type]
        )
        smooth = smooth_covariances(scene, grid, num_threads=self.num_threads)
        with torch.no_grad():
            for name, value in (("quats", smooth.quats), ("log_scales", smooth.scales)):
                # Other axes: what the optimizer knew of them is of no use.
                changed = (splats[name].cpu() - torch.from_numpy(value)).abs().amax(dim=1) > 1e-4
                splats[name].copy_(torch.from_numpy(value))
                for moment in splats.moments[name]:
                    moment[changed.to(splats.device)] = 0
        splats.keep(torch.from_numpy(grid.order).to(splats.device))
        self.sorted_count = len(splats)

    def state(self) -> dict[str, Any]:
        """How often rows were sorted, and how many there were."""
        return {"sorts": self.sorts, "sorted_count": self.sorted_count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.sorts, self.sorted_count = int(state["sorts"]), int(state["sorted_count"])


METHOD = SelfOrganizing
