"""How much each Gaussian shows over many views, with a small power of its volume: what pruning may take first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians
from ..render.camera import Camera
from ..render.contribution import contributions

__all__ = ["global_significance"]

_VOLUME_POWER = 0.1
_LARGE_SHARE = 0.9


def global_significance(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    *,
    volume_power: float = _VOLUME_POWER,
    num_threads: int | None = None,
) -> npt.NDArray[np.float64]:
    """(N,) the sum of each Gaussian's blending weights over all pixels of all views, times gamma; 0 where none sees it.

    After Fan et al. ("LightGaussian", 2024): gamma is the volume over that which 90 % of the Gaussians do not exceed,
    at most 1, to a small power. Theirs sums opacity times transmittance over the pixels that a Gaussian touches; here
    it is the weight that it is blended with, so that a wide faint rim does not count as much as a core.

    Args:
        gaussians: N of them.
        cameras: the views.
        volume_power: 0 = volumes do not count.
        num_threads: the result does not depend on it.
    """
    if not len(gaussians):
        return np.zeros(0)
    weight = contributions(gaussians, cameras, num_threads=num_threads).sum_weight
    log_volume = gaussians.scales.astype(np.float64).sum(1)
    gap = np.clip(log_volume - np.quantile(log_volume, _LARGE_SHARE), -700.0, 0.0)
    return np.asarray(weight * np.exp(volume_power * gap))
