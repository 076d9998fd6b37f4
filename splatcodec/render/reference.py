"""The definition of a picture in plain torch: readable, differentiable, slow. Other renderers are tested against it.

Every Gaussian is evaluated at every pixel, so only small pictures of small scenes are practical. As in 3D Gaussian
Splatting (Kerbl et al., 2023); projection after Zwicker et al. ("EWA splatting", 2002); the anti-aliased variant after
Yu et al. ("Mip-Splatting", 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BackendUnavailableError
from ..gaussians import Gaussians
from .camera import Camera
from .constants import (
    ALPHA_MAX,
    ALPHA_MIN,
    COLOUR_MAX,
    FRUSTUM_MARGIN,
    LOG_SCALE_MAX,
    LOW_PASS_PX2,
    TRANSMITTANCE_MIN,
)
from .rendering import Rendering

if TYPE_CHECKING:
    import torch

__all__ = ["projected_factors", "render", "render_tensors", "rotation_matrices", "sh_basis"]


def rotation_matrices(quats: torch.Tensor) -> torch.Tensor:
    """Rotations (N, 3, 3) of quaternions (N, 4), w, x, y, z of any norm; zero gives the identity."""
    import torch

    largest = quats.abs().amax(dim=1, keepdim=True)
    zero = largest == 0
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=quats.dtype, device=quats.device)
    quats = torch.where(zero, identity, quats / torch.where(zero, torch.ones_like(largest), largest))
    w, x, y, z = (quats / quats.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=1),
    ]
    return torch.stack(rows, dim=1)


def sh_basis(sh_degree: int, directions: torch.Tensor) -> torch.Tensor:
    """Real spherical harmonics (N, K), K = (sh_degree + 1)**2, at unit directions (N, 3); signs as in 3DGS files.

    Order within a degree is m = -l..l, with the Condon-Shortley phase.
    """
    import torch

    x, y, z = directions.unbind(1)
    terms = [0.28209479177387814 * torch.ones_like(x)]
    if sh_degree >= 1:
        terms += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if sh_degree >= 2:
        terms += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * z * z - x * x - y * y),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ]
    if sh_degree >= 3:
        terms += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
            0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -0.4570457994644658 * x * (4 * z * z - x * x - y * y),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(terms, dim=1)


def projected_factors(
    local: torch.Tensor, rotation: torch.Tensor, quats: torch.Tensor, log_scales: torch.Tensor, camera: Camera
) -> torch.Tensor:
    """Factors M of the projected covariances M M^T in px^2, before the low-pass.

    Args:
        local: (N, 3) means in camera axes, in front of the camera.
        rotation: (3, 3) world to camera.
        quats: (N, 4) raw.
        log_scales: (N, 3).
        camera: for its intrinsics.

    Returns:
        (N, 2, 3): the three axes of each Gaussian, one standard deviation long, in pixels.
    """
    import torch

    (fx, fy), (cx, cy) = camera.focal_px, camera.principal_point_px
    x, y, z = local.unbind(1)
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * camera.width / fx, FRUSTUM_MARGIN * 0.5 * camera.height / fy
    # The projection is linearised at the mean, but not further out than a little beyond the picture's edges.
    x_z = (x / z).clamp(-max(cx, 0.0) / fx - margin_x, max(camera.width - cx, 0.0) / fx + margin_x)
    y_z = (y / z).clamp(-max(cy, 0.0) / fy - margin_y, max(camera.height - cy, 0.0) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [torch.stack([fx / z, zero, -fx * x_z / z], dim=1), torch.stack([zero, fy / z, -fy * y_z / z], dim=1)], dim=1
    )
    factor = rotation_matrices(quats) * log_scales.clamp(max=LOG_SCALE_MAX).exp()[:, None, :]
    return jacobian @ rotation @ factor


def render_tensors(
    means: torch.Tensor,
    quats: torch.Tensor,
    log_scales: torch.Tensor,
    opacity_logits: torch.Tensor,
    sh0: torch.Tensor,
    shN: torch.Tensor,
    camera: Camera,
    *,
    antialiased: bool = False,
    viewmat: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw raw attributes on black; differentiable in all of them. Use float64 for the definition.

    Args:
        means: (N, 3) world units.
        quats: (N, 4) w, x, y, z, any norm.
        log_scales: (N, 3).
        opacity_logits: (N,).
        sh0: (N, 1, 3).
        shN: (N, K - 1, 3).
        camera: from where.
        antialiased: whether opacities make up for the low-pass blur.
        viewmat: (4, 4) world to camera in place of the camera's own; differentiable.

    Returns:
        rgb (H, W, 3), not clamped; alpha (H, W); depth (H, W), the sum of w z; and which Gaussians were drawn on at
        least one pixel (N,) bool.
    """
    import torch

    dtype, device = means.dtype, means.device
    if viewmat is None:
        rotation = torch.tensor(camera.viewmat[:3, :3].tolist(), dtype=dtype, device=device)
        center = torch.tensor(camera.center.tolist(), dtype=dtype, device=device)
    else:
        rotation = viewmat[:3, :3]
        center = -rotation.T @ viewmat[:3, 3]
    (fx, fy), (cx, cy) = camera.focal_px, camera.principal_point_px

    # Front to back by the depth of the centres, in float32 as renderers sort; ties by index.
    offsets = means - center
    local = offsets @ rotation.T
    with torch.no_grad():
        visible = torch.nonzero(local[:, 2] > camera.near)[:, 0]
        order = visible[torch.argsort(local[visible, 2].float(), stable=True)]
    offsets, local = offsets[order], local[order]

    across, down = projected_factors(local, rotation, quats[order], log_scales[order], camera).unbind(1)
    a, b, c = (across * across).sum(1), (across * down).sum(1), (down * down).sum(1)
    det_sharp = torch.linalg.cross(across, down).square().sum(1)  # a c - b^2 without cancellation
    det = det_sharp + LOW_PASS_PX2 * (a + c) + LOW_PASS_PX2**2
    a, c = a + LOW_PASS_PX2, c + LOW_PASS_PX2
    opacity = torch.sigmoid(opacity_logits[order])
    if antialiased:
        opacity = opacity * (det_sharp / det).clamp(min=1e-30).sqrt()

    directions = offsets / offsets.norm(dim=1, keepdim=True)
    coefficients = torch.cat([sh0, shN], dim=1)[order]
    sh_degree = {1: 0, 4: 1, 9: 2, 16: 3}[coefficients.shape[1]]
    colours = torch.einsum("nk,nkc->nc", sh_basis(sh_degree, directions), coefficients) + 0.5
    colours = colours.clamp(min=0.0, max=COLOUR_MAX)

    pixel_x = torch.arange(camera.width, dtype=dtype, device=device) + 0.5
    pixel_y = torch.arange(camera.height, dtype=dtype, device=device) + 0.5
    dx = pixel_x[None, None, :] - (fx * local[:, 0] / local[:, 2] + cx)[:, None, None]
    dy = pixel_y[None, :, None] - (fy * local[:, 1] / local[:, 2] + cy)[:, None, None]
    a, b, c, det = (value[:, None, None] for value in (a, b, c, det))
    m = (c * dx * dx - 2 * b * dx * dy + a * dy * dy) / det
    alpha = (opacity[:, None, None] * torch.exp(-0.5 * m)).clamp(max=ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, torch.zeros_like(alpha))

    # A pixel stops before the Gaussian that would take its transmittance below the limit.
    after = torch.cumprod(1 - alpha, dim=0)
    alpha = torch.where(after >= TRANSMITTANCE_MIN, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weights = alpha * before
    rgb = torch.einsum("nhw,nc->hwc", weights, colours)
    depth = torch.einsum("nhw,n->hw", weights, local[:, 2])
    transmittance = after[-1] if len(after) else torch.ones((camera.height, camera.width), dtype=dtype, device=device)
    drawn = torch.zeros(len(means), dtype=torch.bool, device=device)
    drawn[order] = weights.detach().flatten(1).gt(0).any(1) if len(order) else False
    return rgb, 1 - transmittance, depth, drawn


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: Sequence[float] = (0.0, 0.0, 0.0),
    antialiased: bool | None = None,
) -> Rendering:
    """Draw a small scene in float64; arguments and result are those of `render.cpu.render`.

    Raises:
        BackendUnavailableError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise BackendUnavailableError(
            "the reference renderer needs torch", hint="pip install 'splatcodec[train]'"
        ) from None
    if antialiased is None:
        antialiased = bool(gaussians.metadata.get("antialiased", False))
    scene = gaussians.cleaned()[0]
    means, quats, scales, opacities, sh0, shN = (
        torch.from_numpy(array.astype(np.float64))
        for array in (scene.means, scene.quats, scene.scales, scene.opacities, scene.sh0, scene.shN)
    )
    with torch.no_grad():
        rgb, alpha, *_ = render_tensors(means, quats, scales, opacities, sh0, shN, camera, antialiased=antialiased)
        red, green, blue = (float(value) for value in background)
        rgb = rgb + (1 - alpha)[..., None] * torch.tensor([red, green, blue], dtype=rgb.dtype)
    return Rendering(rgb.numpy().astype(np.float32), alpha.numpy().astype(np.float32), (red, green, blue))
