"""Fitting the thumbnail to pictures of the scene: gradient steps on all that its merged Gaussians are.

Moments say where Gaussians are that stand for many, not what looks most like them. Some hundreds of steps, each on one
small picture, find that (Kerbl et al., "3D Gaussian Splatting", 2023, without its densification; Adam: Kingma and Ba,
2015). The loss is the squared error on black and on white, so that coverage counts. A part of the steps draws level 1
above the thumbnail, as a prefix is shown, for the thumbnail is seen below it longer than alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians, unit_quats
from ..metrics.psnr import COVERED_ALPHA
from ..render.camera import Camera
from ..render.gradients import backward, draw
from ..render.rendering import Rendering
from .levels import UNDER_LOOK, scaled

__all__ = ["OVER_LOOK", "fitted"]

OVER_LOOK = (140, 1024)  # how level 1 looks over a thumbnail, about
_NAMES = ("means", "quats", "scales", "opacities", "sh0", "shN")
_RATES = (0.1, 0.02, 0.03, 0.05, 0.03, 0.004)  # a step at first; of means in standard deviations
_LAST_RATE = 0.05  # share of the rates that is left at the end
_BETA1, _BETA2 = 0.9, 0.99
_SEED = 1
_MOST_ALPHA = 4095.0 / 4096.0
Floats32 = npt.NDArray[np.float32]


def fitted(
    thumbnail: Gaussians,
    first: Gaussians,
    cameras: Sequence[Camera],
    originals: Sequence[Rendering],
    *,
    steps: int,
    share_under: float,
    num_threads: int = 1,
) -> Gaussians:
    """The thumbnail with means, axes, opacities and colours that look most like the scene.

    Args:
        thumbnail: merged Gaussians to begin with.
        first: about what level 1 will be.
        cameras, originals: views and what the whole scene looks like from them.
        share_under: of the steps that draw it below level 1, 0..1.
        num_threads: threads to use; the result does not depend on it.
    """
    n = len(thumbnail)
    if not n or not cameras:
        return thumbnail
    antialiased = bool(thumbnail.metadata.get("antialiased", False))
    values = [np.array(getattr(thumbnail, name), np.float32, order="C") for name in _NAMES]
    over = [np.ascontiguousarray(getattr(scaled(first, *OVER_LOOK), name), np.float32) for name in _NAMES]
    extent = np.exp(values[2]).mean(1, keepdims=True)
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in values]
    random = np.random.default_rng(_SEED)
    views: list[int] = []
    under = 0.0
    for step in range(steps):
        if not views:
            views = random.permutation(len(cameras)).tolist()
        view = views.pop()
        under += share_under
        if under >= 1.0:
            under -= 1.0
            below, by_logit = _below(values)
            shown = [np.concatenate(pair) for pair in zip(below, over)]
            gradients = [g[:n] for g in _gradients(shown, cameras[view], originals[view], antialiased, num_threads)]
            gradients[3] = gradients[3] * by_logit
        else:
            gradients = _gradients(values, cameras[view], originals[view], antialiased, num_threads)
        gradients[0] = gradients[0] * extent
        pace = _LAST_RATE + (1.0 - _LAST_RATE) * 0.5 * (1.0 + np.cos(np.pi * step / steps))
        for value, rate, gradient, (mean, square) in zip(values, _RATES, gradients, moments):
            mean += (1.0 - _BETA1) * (gradient - mean)
            square += (1.0 - _BETA2) * (gradient * gradient - square)
            size = np.sqrt(square / (1.0 - _BETA2 ** (step + 1))) + 1e-12
            change = (rate * pace / (1.0 - _BETA1 ** (step + 1))) * mean / size
            value -= (change * extent if value is values[0] else change).astype(np.float32)
        values[1] = unit_quats(values[1])
    return thumbnail.replaced(**dict(zip(_NAMES, values)))


def _gradients(
    values: list[Floats32], camera: Camera, original: Rendering, antialiased: bool, num_threads: int
) -> list[Floats32]:
    """Of half the squared errors on black and on white, over covered pixels."""
    drawing = draw(values, camera, antialiased=antialiased, num_threads=num_threads)
    on_black = drawing.rgb - original.rgb
    on_white = on_black - (drawing.alpha - original.alpha)[..., None]
    covered = (original.alpha > COVERED_ALPHA) | (drawing.alpha > COVERED_ALPHA)
    share = np.float32(1.0 / max(int(covered.sum()), 1))
    by_rgb, by_alpha = share * (on_black + on_white), -share * on_white.sum(2)
    return list(backward(drawing, values, by_rgb, by_alpha, num_threads=num_threads).attributes)


def _below(values: list[Floats32]) -> tuple[list[Floats32], Floats32]:
    """The values with the look that they have below level 1, and derivatives of those logits by the ones without."""
    grow, gain = UNDER_LOOK[0] / 1024.0 * np.log(2.0), UNDER_LOOK[1] / 1024.0
    alphas = 1.0 / (1.0 + np.exp(-values[3].astype(np.float64)))
    faint = np.clip(gain * alphas, 1e-6, _MOST_ALPHA)
    logits = np.log(faint / (1.0 - faint)).astype(np.float32)
    by_logit = gain * alphas * (1.0 - alphas) / (faint * (1.0 - faint))
    below = [values[0], values[1], values[2] + np.float32(grow), logits, *values[4:]]
    return below, by_logit.astype(np.float32)
