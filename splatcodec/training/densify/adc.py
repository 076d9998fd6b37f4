"""Adaptive density control: what moves much on the picture is cloned if small and split if large; what is faint goes.

After Kerbl et al. ("3D Gaussian Splatting", 2023), with the sums of absolute gradients of Ye et al. ("AbsGS", 2024),
which do not cancel in blurred areas. Within the budget, those that move most come first.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ...render.reference import rotation_matrices
from ..splats import Splats
from .base import Strategy, reset_opacities, screen_norm, time_to_reset

__all__ = ["STRATEGY"]

_THRESHOLD = 8e-4
_SMALL_SHARE = 0.01
_FAINT = 0.005
_RESET_OPACITY = 0.01
_RESET_SHARE = 0.1
_HUGE_SHARE = 0.5
_SPLIT_SHRINK = 1.6


class AdaptiveDensityControl(Strategy):
    """3DGS's own way, with absolute gradients and a budget."""

    name = "adc"
    wants_absolute = True
    start, stop, interval = 0.02, 0.5, 0.01

    def observe(
        self,
        splats: Splats,
        visible: torch.Tensor,
        absolute: torch.Tensor | None,
        signed: torch.Tensor | None,
        size_px: tuple[int, int],
    ) -> None:
        """Add up lengths of screen gradients and how often each Gaussian was seen."""
        assert absolute is not None
        splats.add_stats("moves").add_(screen_norm(absolute, size_px))
        splats.add_stats("seen").add_(visible)

    def refine(self, splats: Splats, progress: float) -> dict[str, int]:
        """Clone, split, prune; opacities are reset a few times."""
        moves = splats.add_stats("moves") / splats.add_stats("seen").clamp(min=1)
        room = self.context.max_gaussians - len(splats)
        chosen = torch.nonzero(moves >= _THRESHOLD)[:, 0]
        if len(chosen) > max(room, 0):
            chosen = chosen[torch.argsort(moves[chosen], descending=True, stable=True)[: max(room, 0)]]
        sizes = splats["log_scales"].detach().amax(dim=1)
        large = sizes[chosen] > math.log(_SMALL_SHARE * self.context.extent)
        clones, parents = chosen[~large], chosen[large]
        new = [{name: value.detach()[clones] for name, value in splats.params.items()}]
        new += [self._samples(splats, parents) for _ in range(2)]
        splats.append({name: torch.cat([part[name] for part in new]) for name in splats.params})
        keep = torch.ones(len(splats), dtype=torch.bool, device=splats.device)
        keep[parents] = False
        keep &= splats.alphas() > _FAINT
        keep &= splats["log_scales"].detach().amax(dim=1) < math.log(_HUGE_SHARE * self.context.extent)
        if keep.any():
            splats.keep(keep)
        splats.clear_stats()
        if time_to_reset(self, progress, _RESET_SHARE):
            reset_opacities(splats, _RESET_OPACITY)
        return {"cloned": len(clones), "split": len(parents), "pruned": int((~keep).sum()) - len(parents)}

    def _samples(self, splats: Splats, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """A Gaussian drawn from each parent, smaller than it."""
        params = {name: value.detach()[rows] for name, value in splats.params.items()}
        noise = self.context.random.standard_normal((len(rows), 3)).astype(np.float32)
        local = torch.from_numpy(noise).to(splats.device) * params["log_scales"].exp()
        offset = (rotation_matrices(params["quats"]) @ local[:, :, None])[:, :, 0]
        smaller = params["log_scales"] - math.log(_SPLIT_SHRINK)
        return params | {"means": params["means"] + offset, "log_scales": smaller}


STRATEGY = AdaptiveDensityControl
