"""New Gaussians where pictures are wrong, as many as a curve allows at each time.

The number follows the budget curve of Lu et al. ("Turbo-GS", 2024). 70 % of the new ones are halves of Gaussians whose
absolute screen gradients are largest (Ye et al., "AbsGS", 2024); the rest are put at pixels with large errors, at the
depth that the picture has there, with the photograph's colour (the idea of Yang et al., "Localized Points Management",
2025, without matching views). Faint and huge Gaussians go; opacities are reset twice, so that what no picture needs
makes room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ...gaussians import SH_C0
from ..schedules import growth
from ..splats import Splats
from .base import PixelErrors, Strategy, children_along_axis, logit, reset_opacities, screen_norm, time_to_reset

__all__ = ["STRATEGY"]

_FAINT = 0.005
_HUGE_SHARE = 0.5
_POWER = 0.5
_PIXEL_SHARE = 0.3
_PIXEL_VIEWS = 4
_COVERED = 0.3
_NEW_OPACITY = 0.3
_RESET_OPACITY = 0.01
_RESET_SHARE = 0.2
# Its new Gaussians are faint: with fewer steps between two resets a run loses more than it gains (fox, 470 steps).
_RESET_STEPS = 140


class ErrorDriven(Strategy):
    """Budgeted growth led by gradients and by pixel errors."""

    name = "errors"
    wants_absolute = True
    start, stop, interval = 0.02, 0.6, 0.015

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
        """Prune, then fill up to what the curve allows."""
        keep = splats.alphas() > _FAINT
        keep &= splats["log_scales"].detach().amax(dim=1) < math.log(_HUGE_SHARE * self.context.extent)
        pruned = int((~keep).sum())
        if pruned and keep.any():
            splats.keep(keep)
        share = (progress - self.start) / (self.stop - self.start)
        allowed = growth(self.context.start_count, self.context.max_gaussians, share, _POWER)
        room = max(0, min(allowed, self.context.max_gaussians) - len(splats))
        at_pixels = self._at_pixels(splats, round(_PIXEL_SHARE * room)) if room else None
        moves = splats.add_stats("moves") / splats.add_stats("seen").clamp(min=1)
        added = len(at_pixels["means"]) if at_pixels else 0
        count = min(room - added, int((moves > 0).sum()))
        rows = torch.argsort(moves, descending=True, stable=True)[:count]
        first, second = children_along_axis(splats, rows)
        splats.set_rows(rows, first)
        splats.append(second)
        if at_pixels:
            splats.append(at_pixels)
        splats.clear_stats()
        if time_to_reset(self, progress, _RESET_SHARE, _RESET_STEPS):
            reset_opacities(splats, _RESET_OPACITY)
        return {"split": count, "added": added, "pruned": pruned}

    def _at_pixels(self, splats: Splats, count: int) -> dict[str, torch.Tensor] | None:
        """Gaussians at pixels drawn by their squared errors, where something already gives a depth."""
        pictures = self.context.look(_PIXEL_VIEWS)
        parts = [self._on_picture(picture, math.ceil(count / len(pictures))) for picture in pictures]
        # Every picture was asked for at least one: together they may have more than there is room for.
        means, sizes, colours = (np.concatenate([part[k] for part in parts])[:count] for k in range(3))
        n = len(means)
        if not n:
            return None
        values = {
            "means": means,
            "quats": np.tile([1.0, 0.0, 0.0, 0.0], (n, 1)),
            "log_scales": np.log(sizes)[:, None].repeat(3, axis=1),
            "opacity_logits": np.full(n, float(logit(_NEW_OPACITY))),
            "sh0": ((colours - 0.5) / SH_C0)[:, None, :],
        }
        params = {name: torch.from_numpy(value.astype(np.float32)).to(splats.device) for name, value in values.items()}
        for name, value in splats.params.items():
            if name not in params:
                params[name] = value.new_zeros((n, *value.shape[1:])).detach()
        return params

    def _on_picture(self, picture: PixelErrors, count: int) -> Sequence[np.ndarray]:
        """Places, sizes and colours of `count` new Gaussians, or fewer."""
        camera = picture.camera
        weights = np.where(picture.alpha > _COVERED, picture.errors.astype(np.float64) ** 2, 0.0).reshape(-1)
        usable = int(np.count_nonzero(weights))
        count = min(count, usable // 4)
        if count < 1:
            return np.zeros((0, 3)), np.zeros(0), np.zeros((0, 3))
        pixels = self.context.random.choice(len(weights), count, replace=False, p=weights / weights.sum())
        y, x = np.divmod(pixels, camera.width)
        depth = (picture.depth / np.maximum(picture.alpha, 1e-6)).reshape(-1)[pixels].astype(np.float64)
        (fx, fy), (cx, cy) = camera.focal_px, camera.principal_point_px
        local = np.stack([(x + 0.5 - cx) / fx * depth, (y + 0.5 - cy) / fy * depth, depth], axis=1)
        means = (local - camera.viewmat[:3, 3]) @ camera.viewmat[:3, :3]
        return means, depth / math.sqrt(fx * fy), picture.target.reshape(-1, 3)[pixels]


STRATEGY = ErrorDriven
