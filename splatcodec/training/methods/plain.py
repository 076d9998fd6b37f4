"""Plain training: what is optimised is what is drawn, with a generalised-exponential shape if it is asked for.

The shape is that of Hamdi et al. ("GES", 2024): every Gaussian's size is multiplied by 2 sigmoid(0.1 b), with b learned
at its own pace. The factor folds into the scales, so the finished scene is an ordinary one.
"""

from __future__ import annotations

import torch

from ..splats import Splats
from .base import Method

__all__ = ["METHOD", "log_shape_factor"]

_SHARPNESS = 0.1
_RATE = 0.02
_MIN_LOG_FACTOR = -5.298  # log 0.005: a Gaussian that shrinks so far is not needed


def log_shape_factor(shape: torch.Tensor) -> torch.Tensor:
    """Natural log of 2 sigmoid(0.1 b), of any shape; 0 at b = 0."""
    return torch.nn.functional.logsigmoid(_SHARPNESS * shape) + 0.6931471805599453


class Plain(Method):
    """The attributes themselves."""

    name = "plain"

    def prepare(self, splats: Splats) -> Splats:
        """With `settings.shape`, a parameter b a Gaussian."""
        if not self.settings.shape or "shape" in splats.params:
            return splats
        zeros = torch.zeros((len(splats), 1), device=splats.device)
        return Splats({**splats.params, "shape": zeros})

    def rates(self, progress: float) -> dict[str, float]:
        """Of the shape."""
        return {"shape": _RATE} if self.settings.shape else {}

    def attributes(self, splats: Splats, progress: float) -> dict[str, torch.Tensor]:
        """As they are, scales times the shape's factor."""
        attributes = super().attributes(splats, progress)
        if "shape" in splats.params:
            attributes["log_scales"] = attributes["log_scales"] + log_shape_factor(splats["shape"])
        return attributes

    def fold(self, splats: Splats) -> None:
        """The factor goes into the scales, and b starts anew: the picture stays. Vanishing Gaussians turn faint."""
        if "shape" not in splats.params:
            return
        with torch.no_grad():
            factor = log_shape_factor(splats["shape"])
            splats["log_scales"].add_(factor)
            splats["opacity_logits"][factor[:, 0] < _MIN_LOG_FACTOR] = -20.0
            splats["shape"].zero_()
        for moment in splats.moments["shape"]:
            moment.zero_()


METHOD = Plain
