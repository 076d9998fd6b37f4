"""Closed-form refit of colours after geometry is quantized (techniques A3).

For fixed geometry a picture is linear in the SH coefficients (up to the clamp at black), so the colours that bring the
decoded scene's pictures nearest to the original's are a least-squares problem: conjugate gradients with the forward
operator "splat" and its transpose "gather", preconditioned by each colour's own sum of squared weights. Nothing in the
decoder changes. A few iterations from the original colours regularise it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians
from ..render.camera import Camera
from ..render.color_operator import ColorOperator, view_directions
from ..render.cpu import render
from ..render.sh import sh_basis

__all__ = ["RefitViews", "refit_colors"]

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RefitViews:
    """The original's pictures that the refit aims at.

    Attributes:
        cameras: the views.
        pictures: (H, W, 3) float32 each, the original on black, not clamped.
    """

    cameras: list[Camera]
    pictures: list[Floats32]

    @classmethod
    def of(cls, gaussians: Gaussians, cameras: Sequence[Camera]) -> RefitViews:
        """Render the original."""
        return cls(list(cameras), [render(gaussians, camera).rgb for camera in cameras])


class _View:
    """One view's linear map from coefficients (N, K, 3) to a picture."""

    def __init__(self, gaussians: Gaussians, camera: Camera, sh_degree: int) -> None:
        self.operator = ColorOperator(gaussians, camera)
        rows = self.operator.visible
        directions = view_directions(gaussians.means[rows], camera)
        self.basis = sh_basis(gaussians.sh_degree, directions)
        self.columns = (sh_degree + 1) ** 2
        self.rows = rows
        colors = 0.5 + np.einsum("nk,nkc->nc", self.basis, _coefficients(gaussians, rows))
        self.clamped = np.maximum(colors, 0.0).astype(np.float32)
        # A colour clamped to black does not answer to its coefficients.
        self.active = colors > 0

    def picture(self) -> Floats32:
        colors = np.zeros((self.operator.num_gaussians, 3), np.float32)
        colors[self.rows] = self.clamped
        return self.operator.splat(colors)

    def forward(self, delta: Floats32) -> Floats32:
        colors = np.zeros((self.operator.num_gaussians, 3), np.float32)
        colors[self.rows] = np.einsum("nk,nkc->nc", self.basis[:, : self.columns], delta[self.rows]) * self.active
        return self.operator.splat(colors)

    def adjoint(self, picture: Floats32, out: npt.NDArray[np.float64]) -> None:
        gathered = self.operator.gather(picture)[self.rows] * self.active
        out[self.rows] += self.basis[:, : self.columns, None] * gathered[:, None, :]


def _coefficients(gaussians: Gaussians, rows: npt.NDArray[np.integer]) -> Floats32:
    return np.concatenate([gaussians.sh0[rows], gaussians.shN[rows]], 1)


def refit_colors(
    decoded: Gaussians,
    views: RefitViews,
    weights: npt.NDArray[np.float64],
    *,
    sh_degree: int | None = None,
    iterations: int = 6,
    ridge: float = 0.02,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Floats32, Floats32]:
    """Colours that bring the pictures of `decoded` nearest to the views, by least squares.

    Args:
        decoded: decoded geometry and opacities, with the colours to start from.
        views: the original's pictures.
        weights: (N,) sum of squared blending weights a view, for the preconditioner.
        sh_degree: highest band that may change; None = all.
        iterations: conjugate-gradient steps.
        ridge: cost of changing a colour, as a share of the median weight.

    Returns:
        (N, 1, 3) sh0 and (N, K-1, 3) shN, float32.
    """
    degree = decoded.sh_degree if sh_degree is None else sh_degree
    columns = (degree + 1) ** 2
    n = decoded.num_gaussians
    if n == 0 or not views.cameras:
        return decoded.sh0, decoded.shN
    maps = [_View(decoded, camera, degree) for camera in views.cameras]
    scale = 0.0796 * weights * len(maps)  # mean square of an SH basis function
    damping = ridge * float(np.median(scale[scale > 0])) if (scale > 0).any() else 1.0
    inverse = (1.0 / (scale + damping))[:, None, None]
    right = np.zeros((n, columns, 3))
    for view, wanted in zip(maps, views.pictures):
        view.adjoint(wanted - view.picture(), right)

    def normal(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result = damping * x
        single = x.astype(np.float32)
        for view in maps:
            view.adjoint(view.forward(single), result)
        return result

    x = np.zeros_like(right)
    residual = right
    z = inverse * residual
    direction = z.copy()
    rho = float(np.vdot(residual, z))
    for k in range(iterations):
        if rho <= 0:
            break
        image = normal(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= 0:
            break
        step = rho / curvature
        x += step * direction
        residual = residual - step * image
        z = inverse * residual
        before, rho = rho, float(np.vdot(residual, z))
        direction = z + (rho / before) * direction
        if progress:
            progress(k + 1, iterations)
    sh0 = (decoded.sh0 + x[:, :1]).astype(np.float32)
    shN = decoded.shN.copy()
    shN[:, : columns - 1] += x[:, 1:].astype(np.float32)
    return sh0, shN
