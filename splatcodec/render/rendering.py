"""Rendering: one picture with its coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Rendering"]


@dataclass(frozen=True, eq=False)
class Rendering:
    """What a renderer returns.

    Attributes:
        rgb: (H, W, 3) float32, display values (sRGB as trained, 1 = white), over `background`, not clamped.
        alpha: (H, W) float32, coverage 0..1 (one minus the transmittance left behind the last Gaussian).
        background: the colour that `rgb` was drawn on.
    """

    rgb: npt.NDArray[np.float32]
    alpha: npt.NDArray[np.float32]
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def over(self, background: tuple[float, float, float] | float) -> npt.NDArray[np.float32]:
        """(H, W, 3) float32: the same picture on another background, without drawing it again."""
        change = np.broadcast_to(np.asarray(background, np.float32), 3) - np.asarray(self.background, np.float32)
        if not change.any():
            return self.rgb
        return self.rgb + (np.float32(1.0) - self.alpha)[..., None] * change
