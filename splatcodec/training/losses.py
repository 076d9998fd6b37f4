"""What a picture costs: L1 and D-SSIM, with their gradients, in one deterministic pass on the CPU.

SSIM is that of `metrics.ssim` (11 x 11 window, sigma 1.5, pictures continued in black), without clamping.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..errors import ParameterError
from ..render.kernel import default_num_threads, kernel, run_threaded

__all__ = ["photo_loss"]

_RADIUS = 5
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_ONE, _TWO = np.float32(1.0), np.float32(2.0)
_ROWS_PER_TASK = 32
_WEIGHTS = [math.exp(-0.5 * (k / 1.5) ** 2) for k in range(-_RADIUS, _RADIUS + 1)]
_WINDOW = (np.array(_WEIGHTS) / math.fsum(_WEIGHTS)).astype(np.float32)


@kernel
def _blur_across(columns, window, result):
    """Filter a row that has a margin of zeros at both ends into `result`."""
    width = len(result)
    for x in range(width):
        result[x] = np.float32(0.0)
    for k in range(2 * _RADIUS + 1):
        weight = window[k]
        part = columns[k : k + width]
        for x in range(width):
            result[x] += weight * part[x]


@kernel
def _ssim_rows(first, last, a, b, window, by_mean, by_square, by_product, sums):
    """SSIM of planes a, b (H, W) in rows first..last, and its derivatives by the filtered a, a^2 and a b."""
    height, width = a.shape
    columns = np.zeros((5, width + 2 * _RADIUS), np.float32)
    filtered = np.zeros((5, width), np.float32)
    for y in range(first, last):
        columns[:] = np.float32(0.0)
        for k in range(max(0, _RADIUS - y), min(2 * _RADIUS + 1, height + _RADIUS - y)):
            weight = window[k]
            p_row, q_row = a[y + k - _RADIUS], b[y + k - _RADIUS]
            c0, c1, c2 = columns[0, _RADIUS:], columns[1, _RADIUS:], columns[2, _RADIUS:]
            c3, c4 = columns[3, _RADIUS:], columns[4, _RADIUS:]
            for x in range(width):
                p, q = p_row[x], q_row[x]
                wp, wq = weight * p, weight * q
                c0[x] += wp
                c1[x] += wq
                c2[x] += wp * p
                c3[x] += wq * q
                c4[x] += wp * q
        for kind in range(5):
            _blur_across(columns[kind], window, filtered[kind])
        total = 0.0
        for x in range(width):
            p, q = filtered[0, x], filtered[1, x]
            pp, qq, pq = filtered[2, x], filtered[3, x], filtered[4, x]
            a1, a2 = _TWO * p * q + _C1, _TWO * (pq - p * q) + _C2
            b1, b2 = p * p + q * q + _C1, (pp - p * p) + (qq - q * q) + _C2
            scale = _ONE / (b1 * b2)
            s = a1 * a2 * scale
            total += s
            by_mean[y, x] = _TWO * (q * (a2 - a1) * scale - s * p / b1 + s * p / b2)
            by_square[y, x] = -s / b2
            by_product[y, x] = _TWO * a1 * scale
        sums[y] = total


@kernel
def _gradient_rows(first, last, a, b, window, by_mean, by_square, by_product, l1_scale, ssim_scale, gradient, sums):
    """Gradient of l1_scale sum |a - b| + ssim_scale sum SSIM by a, rows first..last; sums of |a - b| a row."""
    height, width = a.shape
    columns = np.zeros((3, width + 2 * _RADIUS), np.float32)
    filtered = np.zeros((3, width), np.float32)
    for y in range(first, last):
        columns[:] = np.float32(0.0)
        for k in range(max(0, _RADIUS - y), min(2 * _RADIUS + 1, height + _RADIUS - y)):
            weight = window[k]
            row = y + k - _RADIUS
            r0, r1, r2 = by_mean[row], by_square[row], by_product[row]
            c0, c1, c2 = columns[0, _RADIUS:], columns[1, _RADIUS:], columns[2, _RADIUS:]
            for x in range(width):
                c0[x] += weight * r0[x]
                c1[x] += weight * r1[x]
                c2[x] += weight * r2[x]
        for kind in range(3):
            _blur_across(columns[kind], window, filtered[kind])
        total = 0.0
        for x in range(width):
            difference = a[y, x] - b[y, x]
            total += abs(difference)
            slope = l1_scale if difference > 0 else (-l1_scale if difference < 0 else np.float32(0.0))
            by_ssim = filtered[0, x] + _TWO * a[y, x] * filtered[1, x] + b[y, x] * filtered[2, x]
            gradient[y, x] = slope + ssim_scale * by_ssim
        sums[y] = total


class _PhotoLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rgb: torch.Tensor, target: torch.Tensor, dssim_weight: float, num_threads: int) -> Any:
        planes = [np.ascontiguousarray(t.detach().numpy().transpose(2, 0, 1), np.float32) for t in (rgb, target)]
        a, b = planes
        channels, height = a.shape[:2]
        derivatives = np.empty((3, *a.shape), np.float32)
        gradient = np.empty_like(a)
        ssim_sums, l1_sums = np.empty((channels, height)), np.empty((channels, height))
        blocks = [
            (row, min(row + _ROWS_PER_TASK, height), a[c], b[c], _WINDOW, *derivatives[:, c], c)
            for c in range(channels)
            for row in range(0, height, _ROWS_PER_TASK)
        ]
        run_threaded(_ssim_rows, [(*block[:-1], ssim_sums[block[-1]]) for block in blocks], num_threads)
        l1_scale = np.float32((1.0 - dssim_weight) / a.size)
        ssim_scale = np.float32(-dssim_weight / a.size)
        tasks = [(*block[:-1], l1_scale, ssim_scale, gradient[block[-1]], l1_sums[block[-1]]) for block in blocks]
        run_threaded(_gradient_rows, tasks, num_threads)
        l1 = math.fsum(l1_sums.reshape(-1).tolist()) / a.size
        dssim = 1.0 - math.fsum(ssim_sums.reshape(-1).tolist()) / a.size
        ctx.gradient = torch.from_numpy(gradient.transpose(1, 2, 0))
        total = (1.0 - dssim_weight) * l1 + dssim_weight * dssim
        return tuple(torch.tensor(value, dtype=torch.float32) for value in (total, l1, dssim))

    @staticmethod
    def backward(ctx: Any, by_total: torch.Tensor, *_: Any) -> Any:
        return by_total * ctx.gradient, None, None, None


def _window(channels: int, like: torch.Tensor) -> torch.Tensor:
    line = torch.from_numpy(_WINDOW).to(like)
    return (line[:, None] * line[None, :]).expand(channels, 1, -1, -1)


def _photo_loss_torch(rgb: torch.Tensor, target: torch.Tensor, dssim_weight: float) -> tuple[torch.Tensor, ...]:
    """The same in plain torch: the definition, and what other devices use."""
    a, b = (t.permute(2, 0, 1)[None] for t in (rgb, target))
    window = _window(a.shape[1], a)

    def filtered(picture: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(picture, window, padding=_RADIUS, groups=picture.shape[1])

    p, q = filtered(a), filtered(b)
    variances = filtered(a * a) - p * p + filtered(b * b) - q * q
    covariance = filtered(a * b) - p * q
    c1, c2 = float(_C1), float(_C2)
    ssim = (2 * p * q + c1) * (2 * covariance + c2) / ((p * p + q * q + c1) * (variances + c2))
    l1, dssim = (rgb - target).abs().mean(), 1 - ssim.mean()
    return (1 - dssim_weight) * l1 + dssim_weight * dssim, l1, dssim


def photo_loss(
    rgb: torch.Tensor, target: torch.Tensor, dssim_weight: float = 0.2, *, num_threads: int | None = None
) -> dict[str, torch.Tensor]:
    """How far a picture is from the photograph.

    Args:
        rgb: (H, W, 3) float32, differentiable, not clamped.
        target: (H, W, 3) float32, 0..1, on the same device.
        dssim_weight: of 1 - SSIM; the rest of 1 is the weight of L1.
        num_threads: threads on the CPU; the numbers do not depend on it.

    Returns:
        `total`, differentiable, and its parts `l1` and `dssim`, to look at.

    Raises:
        ParameterError: the shapes differ.
    """
    if rgb.shape != target.shape or rgb.ndim != 3:
        raise ParameterError(f"pictures of shapes {tuple(rgb.shape)} and {tuple(target.shape)} cannot be compared")
    if rgb.is_cuda:
        total, l1, dssim = _photo_loss_torch(rgb, target, dssim_weight)
        return {"total": total, "l1": l1.detach(), "dssim": dssim.detach()}
    threads = default_num_threads() if num_threads is None else num_threads
    total, l1, dssim = _PhotoLoss.apply(rgb, target, dssim_weight, threads)  # type: ignore[no-untyped-call]
    return {"total": total, "l1": l1.detach(), "dssim": dssim.detach()}
