"""Fewer harmonics: a student of a lower SH degree learns from pictures that its teacher draws, of pseudo-views, too.

After Fan et al. ("LightGaussian", 2024). Usable alone: `SceneTeacher.picture` of the cameras of
`pseudo_view`, and `truncate` for the student.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..gaussians import num_sh_coefficients
from ..render.camera import Camera
from ..render.rasterize import rasterize
from ..render.reference import sh_basis
from .splats import RAW, Splats

__all__ = ["SceneTeacher", "pseudo_view", "truncate"]

_ALL_DIRECTIONS = 0.01  # what they count beside those of cameras
_ROWS_AT_ONCE = 1 << 12


def pseudo_view(camera: Camera, sigma: float, random: np.random.Generator) -> Camera:
    """The camera, moved by N(0, sigma^2) on each axis, world units; it looks the same way."""
    viewmat = np.array(camera.viewmat, np.float64)
    viewmat[:3, 3] -= viewmat[:3, :3] @ random.normal(0.0, sigma, 3)
    return replace(camera, viewmat=viewmat)


def truncate(splats: Splats, sh_degree: int, cameras: Sequence[Camera] = ()) -> None:
    """Leave out the bands above a degree; what the optimizer knows of the others stays.

    Args:
        splats: changed.
        sh_degree: the highest that is left.
        cameras: from where the splats are seen; the bands that stay, the base colour among them, take over what the
            others showed there, by least squares. None: nothing is taken over.
    """
    kept = num_sh_coefficients(min(sh_degree, splats.sh_degree)) - 1
    with torch.no_grad():
        if cameras and kept < splats["shN"].shape[1]:
            change = _taken_over(splats, kept + 1, cameras)
            splats["sh0"].add_(change[:, :1])
            splats["shN"][:, :kept].add_(change[:, 1:])
    first, second = splats.moments["shN"]
    splats.params["shN"] = splats["shN"].detach()[:, :kept].clone().contiguous().requires_grad_()
    splats.moments["shN"] = first[:, :kept].clone().contiguous(), second[:, :kept].clone().contiguous()


def _taken_over(splats: Splats, kept: int, cameras: Sequence[Camera]) -> torch.Tensor:
    """(N, kept, 3) what to add to the first coefficients, so that the others are missed least.

    A Gaussian counts the mean over the cameras whose picture it is in, and a little the mean over all directions, which
    decides where no camera looks.
    """
    device = splats.device
    viewmats = torch.tensor(np.stack([c.viewmat for c in cameras]), dtype=torch.float32, device=device)
    Ks = torch.tensor(np.stack([c.K for c in cameras]), dtype=torch.float32, device=device)
    sizes = torch.tensor([[c.width, c.height] for c in cameras], dtype=torch.float32, device=device)
    centres = -(viewmats[:, :3, :3].transpose(1, 2) @ viewmats[:, :3, 3:])[:, :, 0]
    ridge = _ALL_DIRECTIONS / (4.0 * math.pi) * torch.eye(kept, device=device)
    found = []
    for rows in torch.arange(len(splats), device=device).split(_ROWS_AT_ONCE):
        means = splats["means"][rows]
        local = torch.einsum("cij,nj->nci", viewmats[:, :3, :3], means) + viewmats[:, :3, 3]
        projected = torch.einsum("cij,ncj->nci", Ks, local)
        pixels = projected[..., :2] / projected[..., 2:].clamp(min=1e-6)
        seen = (local[..., 2] > 1e-6) & (pixels >= 0).all(-1) & (pixels < sizes).all(-1)
        weights = seen / seen.sum(1, keepdim=True).clamp(min=1)
        directions = torch.nn.functional.normalize(means[:, None] - centres, dim=-1)
        basis = sh_basis(splats.sh_degree, directions.reshape(-1, 3)).reshape(*seen.shape, -1)  # (n, C, K)
        low, high = basis[..., :kept], basis[..., kept:]
        missed = high @ splats["shN"][rows, kept - 1 :]
        weighted = (low * weights[..., None]).transpose(1, 2)
        found.append(torch.linalg.solve(weighted @ low + ridge, weighted @ missed))
    return torch.cat(found) if found else splats["shN"].new_zeros((0, kept, 3))


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
