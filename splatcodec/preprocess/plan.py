"""Which Gaussians are coded, and how precisely each: importance becomes classes (techniques A2, A6).

A uniform quantizer of step s on an attribute with sensitivity S adds S s^2 / 12 of squared error to the pictures. With
s = K / sqrt(S) every attribute adds the same error and gives the same error a bit (equal slope), so K alone is the
quality. A Gaussian is dropped when keeping it costs more than what its removal does at that slope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import SH_C0, Gaussians
from ..render.constants import ALPHA_MIN
from ..render.contribution import Contributions
from ..stages.parameters import TRELLISES
from .view_weights import ViewWeights

__all__ = ["LossyOptions", "Plan", "Steps", "Tuning", "make_plan"]

Floats = npt.NDArray[np.float64]
MAX_CLASS = 15
# Base units of the streams, in steps: points of a quantizer are two units apart, and a trellis of 8 states gives them
# the error that steps 0.89 times as large have alone.
_UNIT = 0.56
_THUMBNAIL_FINER = 2  # classes by which colours of merged Gaussians are below the coarsest; their geometry is at it


@dataclass(frozen=True)
class LossyOptions:
    """What a user asks of the lossy encoder.

    Attributes:
        quality: 0..100; aims at a covered PSNR of 25 + 0.3 quality dB.
        target_psnr: covered PSNR in dB instead of `quality`.
        target_size: bytes the file must not exceed, instead of `quality`.
        effort: 1 (fastest) to 9 (smallest); docs/cli.md tables what each turns on.
        prune: leave out Gaussians that cost more than they show.
        drop_unseen: leave out Gaussians that no encoder view saw; otherwise they are kept, as coarse as any, unless
            too faint for any renderer.
        levels: write levels of detail and a thumbnail; without them the file is a little smaller, and all or nothing.

    Raises:
        ParameterError: a value out of range, or more than one target.
    """

    quality: float = 60.0
    target_psnr: float | None = None
    target_size: int | None = None
    effort: int = 5
    prune: bool = True
    drop_unseen: bool = False
    levels: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 100:
            raise ParameterError(f"quality {self.quality}, expected 0 to 100", field="quality")
        if self.target_psnr is not None and not 10 <= self.target_psnr <= 80:
            raise ParameterError(f"target PSNR {self.target_psnr} dB, expected 10 to 80", field="target_psnr")
        if self.target_size is not None and self.target_size < 1:
            raise ParameterError(f"target size {self.target_size} bytes", field="target_size")
        if self.target_psnr is not None and self.target_size is not None:
            raise ParameterError("a target PSNR and a target size contradict each other")
        if not 1 <= self.effort <= 9 or int(self.effort) != self.effort:
            raise ParameterError(f"effort {self.effort}, expected 1 to 9", field="effort")

    @property
    def wanted_psnr_db(self) -> float:
        """The covered PSNR aimed at, unless a size is."""
        return 25.0 + 0.3 * self.quality if self.target_psnr is None else self.target_psnr


@dataclass(frozen=True)
class Steps:
    """Steps of all attributes at class 0; a Gaussian of class c uses 2**c of them.

    Attributes:
        size: 1/1024 octaves of sqrt(D).
        shape: whitened units of the off-diagonals.
        opacity: 1/1024 octaves of alpha.
        precision: position step relative to sqrt(D), in 1/1024 octaves.
        color, sh: SH coefficient units.
        blur: world units added to covariances before they are factored.
    """

    size: int = 16
    shape: float = 0.0153
    opacity: int = 16
    precision: int = -5000
    color: float = 0.01
    sh: float = 0.01
    blur: float = 0.0

    @property
    def units(self) -> Steps:
        """The same in base units of the streams: by dependent quantization, two of them make a step's error."""
        unit = _UNIT
        return replace(
            self,
            size=max(1, round(self.size * unit)),
            shape=float(np.float32(self.shape * unit)),
            opacity=max(1, round(self.opacity * unit)),
            color=float(np.float32(self.color * unit)),
            sh=float(np.float32(self.sh * unit)),
        )


# Geometry steps of class 0 are halved, so many times at most, until no larger share of the Gaussians wants finer ones.
_FINEST_SHARE, _FINER_OCTAVES = 0.001, 3


@dataclass(frozen=True)
class Tuning:
    """The encoder's constants, fitted on donut, banana and leica (docs/design/lossy.md).

    Attributes:
        size_base: natural log units of sqrt(D) at class 0, unless much of a scene wants finer ones.
        shape, opacity, position: step of the attribute over that of the size, in units of each one's own.
        geometry_top, color_top: largest geometry step (log-scale units) and colour step (SH units).
        geometry, color, sh: multiples of K for the attribute groups.
        prune: removal error at which a Gaussian is dropped, over the error its bits would buy elsewhere; below 1
            because removal errors of neighbours do not simply add.
        prune_checked: the same where it is found out which of those left out are missed, ...
        restore: ... that is when drawing it alone again would mend more than this over the error its bits would buy.
        prune_weight: share of all blending weight at whose removal `prune` is halved: the more is gone around a
            Gaussian, the more its own removal costs.
        bits_kept, bits_sh: bits a kept Gaussian costs, for pruning: without SH, and for each SH coefficient.
        blur_px: blur in pixels of the finest view.
        direction_ridge: how much directions that no view saw count in SH error feedback, as a share of a seen one's.
        weight_exponent: how class follows sensitivity (1/2 is equal slope).
    """

    size_base: float = 0.0125
    shape: float = 1.6
    opacity: float = 0.75
    position: float = 1.0
    geometry_top: float = 0.3
    color_top: float = 1.5
    geometry: float = 1.4
    color: float = 1.0
    sh: float = 1.2
    prune: float = 0.1
    prune_checked: float = 0.3
    restore: float = 1.0
    prune_weight: float = 0.1
    bits_kept: float = 60.0
    bits_sh: float = 0.67
    blur_px: float = 0.5
    weight_exponent: float = 0.5
    direction_ridge: float = 0.7

    def pruning(self, times: float) -> Tuning:
        """The same, except that leaving Gaussians out may cost so many times more."""
        return replace(
            self, prune=self.prune * times, prune_checked=self.prune_checked * times, restore=self.restore * times
        )


@dataclass(frozen=True)
class Plan:
    """What is coded and how precisely.

    Attributes:
        kept: (M,) int64 rows of the scene.
        classes: (N, 2) int32 geometry and colour class of every Gaussian, kept or not.
        steps: base steps.
        color_weights: (N,) float64, for the colour bases.
        view_weights: from where each Gaussian is seen, for SH error feedback; None = no feedback.
        direction_ridge: see `Tuning`.
        mixing: code by context mixing instead of tables.
        trellis: feedback and taps of the quantizers' state machine.
        thumbnail_classes: geometry and colour class of merged Gaussians.
        bit_price: mean squared error of the covered pixels, over views and channels, that a bit is worth at this slope.
    """

    kept: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int32]
    steps: Steps
    color_weights: Floats
    view_weights: ViewWeights | None = None
    direction_ridge: float = 0.7
    mixing: bool = False
    bit_price: float = 0.0
    thumbnail_classes: tuple[int, int] = (0, 0)
    trellis: tuple[int, int] = TRELLISES[8]


def make_plan(
    gaussians: Gaussians,
    contributions: Contributions,
    slope: float,
    options: LossyOptions,
    tuning: Tuning,
    view_weights: ViewWeights | None = None,
    mended: Floats | None = None,
) -> Plan:
    """Turn a slope K into classes, steps and a choice of Gaussians.

    Args:
        gaussians: cleaned scene of N Gaussians.
        contributions: its blending statistics over the encoder's views.
        slope: K: every attribute's step times the square root of its sensitivity.
        view_weights: from where each Gaussian is seen; None leaves SH error feedback off.
        mended: (N,) what drawing each Gaussian would mend in pictures without those left out earlier
            (`render.contribution.restoration`), as over the views of `contributions`; zeros where nothing is known yet,
            None = it will not be found out.
    """
    n = gaussians.num_gaussians
    c = contributions
    tiny = 1e-30
    # Relative change of the covariance: two in log units of sqrt(D).
    geometry = c.s_cov * 4.0
    color = c.s_colour * SH_C0**2
    removal = c.removal_error
    prune = tuning.prune if mended is None else tuning.prune_checked
    if mended is not None:
        removal = np.maximum(removal, mended * (prune / tuning.restore))
    seen = c.hits > 0
    # A class 0 step must not be finer than anything needs, nor so coarse that much of the scene is cut off at it.
    wanted_geometry = tuning.geometry * slope / np.maximum(geometry, tiny) ** tuning.weight_exponent
    wanted_color = tuning.color * slope / np.maximum(color, tiny) ** tuning.weight_exponent
    size_base = tuning.size_base
    if seen.any():
        finest = float(np.quantile(wanted_geometry[seen], _FINEST_SHARE))
        size_base *= 2.0 ** -float(np.clip(np.ceil(np.log2(size_base / max(finest, tiny))), 0, _FINER_OCTAVES))
    top = _top_class(tuning.geometry_top, size_base)
    geometry_class = np.clip(np.rint(np.log2(wanted_geometry / size_base)), 0, top)
    color_base = float(np.float32(np.clip(np.quantile(wanted_color[seen], 0.02) if seen.any() else 0.05, 1e-4, 0.25)))
    color_class = np.clip(np.rint(np.log2(wanted_color / color_base)), 0, _top_class(tuning.color_top, color_base))
    geometry_class[~seen] = top
    color_class[~seen] = _top_class(tuning.color_top, color_base)
    kept = np.ones(n, bool)
    if options.prune:
        price = 2 * np.log(2) / 12 * slope**2
        bits = tuning.bits_kept + tuning.bits_sh * gaussians.shN[0].size if n else 0.0
        kept[_removable(removal, c.sum_weight, prune * price * bits, tuning.prune_weight)] = False
        if not options.drop_unseen:
            # What is fainter than a renderer's threshold shows from nowhere.
            kept |= ~seen & (gaussians.alphas() >= ALPHA_MIN)
        if not kept.any() and n:
            kept[np.argmax(removal)] = True
    steps = Steps(
        size=max(1, round(size_base / np.log(2) * 1024)),
        shape=float(np.float32(size_base * tuning.shape)),
        opacity=max(1, round(size_base * tuning.opacity / np.log(2) * 1024)),
        precision=round(np.log2(size_base * tuning.position) * 1024),
        color=color_base,
        sh=float(np.float32(color_base * tuning.sh)),
    )
    rows = np.flatnonzero(kept)
    pixel = c.pixel_size[rows]
    pixel = pixel[np.isfinite(pixel) & (pixel > 0)]
    if len(pixel):
        steps = replace(steps, blur=float(np.float32(tuning.blur_px * np.quantile(pixel, 0.05))))
    classes = np.stack([geometry_class, color_class], 1).astype(np.int32)
    coarse = top, max(_top_class(tuning.color_top, color_base) - _THUMBNAIL_FINER, 0)
    bit_price = slope**2 * float(np.log(2) / 18 / max(c.sum_weight.sum(), 1.0))
    return Plan(
        rows, classes, steps, color, view_weights, tuning.direction_ridge, bit_price=bit_price, thumbnail_classes=coarse
    )


def _removable(removal: Floats, weight: Floats, limit: float, half_at: float) -> npt.NDArray[np.int64]:
    """Rows whose removal error is below `limit`, which falls with the blending weight that is gone by then."""
    order = np.argsort(removal, kind="stable")
    gone = np.cumsum(weight[order]) / max(float(weight.sum()), 1e-30)
    # Errors rise and the limit falls along the order, so the rows below it come first.
    return order[: np.count_nonzero(removal[order] <= limit / (1.0 + (gone / half_at) ** 2))]


def _top_class(largest: float, base: float) -> int:
    return int(np.clip(np.floor(np.log2(max(largest / base, 1.0)) + 0.5), 0, MAX_CLASS))
