"""Learned masks: training decides which Gaussians it can do without.

After Lee et al. ("Compact 3D Gaussian Representation for Radiance Field", 2024): a number m for each Gaussian is turned
into 0 or 1 by a threshold on its sigmoid, multiplies scale and opacity, and learns through the threshold as if it were
the sigmoid itself; a loss pulls all of them down, the picture pulls up those it needs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["FAINT_OPACITY", "MASK_THRESHOLD", "kept_rows", "mask_loss", "masked"]

#: A Gaussian whose sigmoid is not above this is masked.
MASK_THRESHOLD = 0.01
#: Gaussians no more opaque than this go once densification has ended: fewer learn better what nobody has seen.
FAINT_OPACITY = 0.05
# Parameters are told from here, so that new ones may begin at 0.
_START = 1.0
_GONE_LOGIT = -20.0


def _soft(mask: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(mask + _START)


def kept_rows(mask: torch.Tensor) -> torch.Tensor:
    """(N,) bool: which Gaussians the mask (N, 1) keeps."""
    return _soft(mask.detach())[:, 0] > MASK_THRESHOLD


def mask_loss(mask: torch.Tensor) -> torch.Tensor:
    """Mean of the sigmoid: the share of Gaussians that would be drawn, made differentiable."""
    return _soft(mask).mean() if len(mask) else mask.sum()


def masked(attributes: Mapping[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Raw attributes with the mask (N, 1) on scales and opacities; the gradient passes the threshold unchanged.

    With M in {0, 1} the activated scale and opacity are s M and o M. Where M is 1 nothing changes but the gradient:
    d log(s M) = dM and d logit(o M) = dM / (1 - o); where it is 0 the Gaussian is not drawn.
    """
    soft = _soft(mask)
    kept = kept_rows(mask)
    change = soft - soft.detach()  # 0, with the gradient of the sigmoid
    opacity = torch.sigmoid(attributes["opacity_logits"].detach())
    shown = attributes["opacity_logits"] + change[:, 0] / (1.0 - opacity).clamp(min=1e-3)
    return {
        **attributes,
        "log_scales": attributes["log_scales"] + change,
        "opacity_logits": torch.where(kept, shown, torch.full_like(shown, _GONE_LOGIT)),
    }
