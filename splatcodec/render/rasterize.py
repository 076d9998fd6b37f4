"""The differentiable rasterizer: one function over all backends. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import ParameterError
from .camera import Camera
from .gradients import backward, draw
from .kernel import default_num_threads

__all__ = ["BACKENDS", "Rasterized", "rasterize"]

BACKENDS = ("auto", "cpu", "cuda", "reference")

Attributes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Rasterized:
    """A picture with its gradients attached.

    Attributes:
        rgb: (H, W, 3) float32 over the background, not clamped.
        alpha: (H, W) float32, coverage 0..1.
        depth: (H, W) float32, sum of w z (not divided by alpha), world units; None unless asked for.
        visible: (N,) bool, whether a Gaussian touches a tile of the picture.
    """

    rgb: torch.Tensor
    alpha: torch.Tensor
    depth: torch.Tensor | None
    visible: torch.Tensor


class _CpuRasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, background: torch.Tensor, *attributes: torch.Tensor) -> Any:
        arrays = [_array(tensor) for tensor in attributes]
        drawing = draw(
            arrays,
            settings.camera,
            background=_array(background),
            antialiased=settings.antialiased,
            with_depth=settings.with_depth,
            num_threads=settings.num_threads,
        )
        ctx.settings, ctx.drawing, ctx.arrays = settings, drawing, arrays
        ctx.set_materialize_grads(False)
        visible = torch.zeros(len(arrays[0]), dtype=torch.bool)
        visible[torch.from_numpy(drawing.projection.ids).long()] = True
        ctx.mark_non_differentiable(visible)
        depth = torch.from_numpy(drawing.depth) if drawing.depth is not None else None
        return torch.from_numpy(drawing.rgb), torch.from_numpy(drawing.alpha), depth, visible

    @staticmethod
    def backward(ctx: Any, *by_outputs: torch.Tensor | None) -> Any:
        by_rgb, by_alpha, by_depth, _ = by_outputs
        settings = ctx.settings
        if by_rgb is None and by_alpha is None and by_depth is None:
            return (None,) * 8
        height, width = settings.camera.height, settings.camera.width
        gradients = backward(
            ctx.drawing,
            ctx.arrays,
            np.zeros((height, width, 3), np.float32) if by_rgb is None else _array(by_rgb),
            None if by_alpha is None else _array(by_alpha),
            None if by_depth is None else _array(by_depth),
            num_threads=settings.num_threads,
        )
        for sums, values in (
            (settings.screen_gradients, gradients.screen_absolute),
            (settings.screen_gradients_signed, gradients.screen),
        ):
            if sums is not None:
                sums += torch.from_numpy(values)
        tensors = [torch.from_numpy(array) for array in gradients.attributes]
        return None, torch.from_numpy(gradients.background), *tensors


@dataclass
class _Settings:
    camera: Camera
    antialiased: bool
    with_depth: bool
    num_threads: int
    screen_gradients: torch.Tensor | None
    screen_gradients_signed: torch.Tensor | None


def _array(tensor: torch.Tensor) -> Any:
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)


def _checked(attributes: Attributes) -> None:
    means, quats, log_scales, opacity_logits, sh0, shN = attributes
    n = len(means)
    expected = ((means, (n, 3)), (quats, (n, 4)), (log_scales, (n, 3)), (opacity_logits, (n,)), (sh0, (n, 1, 3)))
    if any(tuple(tensor.shape) != shape for tensor, shape in expected) or (
        shN.ndim != 3 or len(shN) != n or shN.shape[1] not in (0, 3, 8, 15) or shN.shape[2] != 3
    ):
        raise ParameterError(f"attribute shapes do not fit: {[tuple(tensor.shape) for tensor in attributes]}")


def rasterize(
    means: torch.Tensor,
    quats: torch.Tensor,
    log_scales: torch.Tensor,
    opacity_logits: torch.Tensor,
    sh0: torch.Tensor,
    shN: torch.Tensor,
    camera: Camera,
    *,
    background: torch.Tensor | None = None,
    antialiased: bool = False,
    with_depth: bool = False,
    backend: str = "auto",
    screen_gradients: torch.Tensor | None = None,
    screen_gradients_signed: torch.Tensor | None = None,
    viewmat: torch.Tensor | None = None,
    num_threads: int | None = None,
) -> Rasterized:
    """Draw raw attributes, differentiably; `render.reference.render_tensors` is the definition.

    Args:
        means: (N, 3) world units.
        quats: (N, 4) w, x, y, z, any norm.
        log_scales: (N, 3).
        opacity_logits: (N,).
        sh0: (N, 1, 3).
        shN: (N, K - 1, 3).
        camera: from where.
        background: (3,) colour behind the scene, differentiable; black if None.
        antialiased: whether opacities make up for the low-pass blur (Yu et al., "Mip-Splatting", 2024).
        with_depth: whether to blend depths too.
        backend: "cpu" (numba), "cuda" (the extension in cuda_ext), "reference" (plain torch, float64, small scenes),
            or "auto": by the device of `means`.
        screen_gradients: (N, 2) float32; the backward pass adds the sums over pixels of the absolute loss gradient by
            the mean on the picture, per pixel (the criterion of AbsGS, Ye et al., 2024). Not by "reference".
        screen_gradients_signed: (N, 2) float32; the same without absolute values (the criterion of 3DGS).
        viewmat: (4, 4) world to camera in place of the camera's own, differentiable; "cuda" and "reference" only.
        num_threads: threads of "cpu" (all cores if None); no result depends on it.

    Rows that cannot be drawn (NaN, infinite) are left out and have zero gradients, except by "reference".

    Raises:
        ParameterError: shapes do not fit, or the backend does not do what was asked of it.
        BackendUnavailableError: "cuda" without the extension or without a device.
    """
    attributes = (means, quats, log_scales, opacity_logits, sh0, shN)
    _checked(attributes)
    if backend not in BACKENDS:
        raise ParameterError(f"backend {backend!r}, expected one of {', '.join(BACKENDS)}", field="backend")
    if backend == "auto":
        backend = "cuda" if means.is_cuda else "cpu"
    if background is None:
        background = torch.zeros(3, dtype=torch.float32, device=means.device)
    if backend == "cuda":
        from .cuda import rasterize_cuda

        return rasterize_cuda(
            *attributes,
            camera,
            background=background,
            antialiased=antialiased,
            with_depth=with_depth,
            screen_gradients=screen_gradients,
            screen_gradients_signed=screen_gradients_signed,
            viewmat=viewmat,
        )
    if backend == "reference":
        if screen_gradients is not None or screen_gradients_signed is not None:
            raise ParameterError("the reference does not accumulate screen gradients", field="backend")
        return _reference(attributes, camera, background, antialiased, with_depth, viewmat)
    if viewmat is not None:
        raise ParameterError("the CPU rasterizer has no pose gradients", field="viewmat")
    threads = default_num_threads() if num_threads is None else num_threads
    settings = _Settings(camera, antialiased, with_depth, threads, screen_gradients, screen_gradients_signed)
    rgb, alpha, depth, visible = _CpuRasterize.apply(settings, background, *attributes)  # type: ignore[no-untyped-call]
    return Rasterized(rgb, alpha, depth, visible)


def _reference(
    attributes: Attributes,
    camera: Camera,
    background: torch.Tensor,
    antialiased: bool,
    with_depth: bool,
    viewmat: torch.Tensor | None,
) -> Rasterized:
    from .reference import render_tensors

    means, quats, log_scales, opacity_logits, sh0, shN = (tensor.double() for tensor in attributes)
    pose = None if viewmat is None else viewmat.double()
    rgb, alpha, depth, visible = render_tensors(
        means, quats, log_scales, opacity_logits, sh0, shN, camera, antialiased=antialiased, viewmat=pose
    )
    rgb = rgb + (1 - alpha)[..., None] * background.double()
    return Rasterized(rgb.float(), alpha.float(), depth.float() if with_depth else None, visible)
