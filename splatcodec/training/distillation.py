"""Fewer harmonics: a student of a lower SH degree learns from pictures that its teacher draws, of pseudo-views, too.

After Fan et al. ("LightGaussian", 2024). Usable alone: `SceneTeacher.picture` of the cameras of
`pseudo_view`, and `truncate` for the student.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..gaussians import num_sh_coefficients
from ..render.camera import Camera
from ..render.rasterize import rasterize
from .splats import RAW, Splats

__all__ = ["SceneTeacher", "pseudo_view", "truncate"]


def pseudo_view(camera: Camera, sigma: float, random: np.random.Generator) -> Camera:
    """The camera, moved by N(0, sigma^2) on each axis, world units; it looks the same way."""
    viewmat = np.array(camera.viewmat, np.float64)
    viewmat[:3, 3] -= viewmat[:3, :3] @ random.normal(0.0, sigma, 3)
    return replace(camera, viewmat=viewmat)


def truncate(splats: Splats, sh_degree: int) -> None:
    """Leave out the bands above a degree; what the optimizer knows of the others stays."""
    kept = num_sh_coefficients(min(sh_degree, splats.sh_degree)) - 1
    first, second = splats.moments["shN"]
    splats.params["shN"] = splats["shN"].detach()[:, :kept].clone().contiguous().requires_grad_()
    splats.moments["shN"] = first[:, :kept].clone().contiguous(), second[:, :kept].clone().contiguous()


@dataclass(frozen=True, eq=False)
class SceneTeacher:
    """A scene that draws the pictures others learn from.

    Attributes:
        attributes: raw ones, by name; no gradients.
        background: (3,) 0..1.
        antialiased, num_threads: as for `render.rasterize`.
    """

    attributes: dict[str, torch.Tensor]
    background: tuple[float, float, float]
    antialiased: bool = False
    num_threads: int | None = None

    def picture(self, camera: Camera) -> torch.Tensor:
        """(H, W, 3) what the teacher shows."""
        values = [self.attributes[name] for name in RAW]
        behind = torch.tensor(self.background, dtype=torch.float32, device=values[0].device)
        with torch.no_grad():
            drawn = rasterize(
                *values,  # type: ignore[arg-type]
                camera=camera, background=behind, antialiased=self.antialiased, num_threads=self.num_threads,
            )  # type: ignore[call-arg, misc] # fmt: skip
        return drawn.rgb.detach()
