"""What a quality means in other people's formats: which Gaussians are worth their bytes, how coarse values may be.

The measure is the one of `compress`: the scene is drawn from the encoder's views, and what each Gaussian adds to the
pictures says how much an error in it shows. At a slope K every value gets the step K / sqrt(its sensitivity), which is
the least total error for the bits, and Gaussians whose absence costs less than their bits are left out. The slope is
then tried until the pictures are as good as the quality asks: a covered PSNR of 25 + 0.3 quality dB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..gaussians import SH_C0, Gaussians
from ._losses import drawable
from .base import WriteOptions

if TYPE_CHECKING:
    from ..render.contribution import Contributions

__all__ = ["Judge", "Steps", "reduced"]

Floats = npt.NDArray[np.float64]

_MEASURE_VIEWS, _MEASURE_PX = 32, 192
_CHECK_VIEWS, _CHECK_PX = 12, 224
# Half as many views do for scenes of more Gaussians than this.
_LARGE_SCENE = 300_000
_MEASURE_SEED, _CHECK_SEED = 0, 1
# Slopes tried, and what to expect of one: from banana, donut and leica, where a doubling costs 2.5 to 8 dB.
_SLOPES = (1e-3, 2.0)
_USUAL_SLOPE, _USUAL_DB, _DB_PER_OCTAVE = 0.03, 43.0, 5.5
_MAX_TRIALS = 5
_NEAR_DB = 0.2
# How much coarser than by sensitivity alone each kind of value is best: the sensitivities leave out that errors of
# neighbours cancel or add up, and that a general-purpose compressor makes little of some savings. Found by doubling and
# halving each step on banana, donut and leica.
_SHIFTS = {"position": 0.75, "scale": 0.6, "quat": 1.25, "alpha": 1.4, "colour": 1.3, "sh": 1.2}
# A Gaussian moved by more than this share of its size is somewhere else, whether or not a view saw it.
_MAX_MOVE = 0.5
# A Gaussian is left out if that costs less than this share of what its bits are worth at the slope. Small, because the
# cost of leaving out many at once is more than the sum.
_PRUNE, _BITS = 0.05, 190.0
# Beside the aim, so that leaving out bands does not spend the whole error.
_BAND_MARGIN_DB = 3.0
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Steps:
    """(N,) largest steps that values may be rounded to: what differs by less does not show at the slope.

    Attributes:
        position: world units. scale: natural log. quat: of a component of the unit quaternion. alpha: 0..1.
        colour: of sh0. sh: of an SH coefficient.
    """

    position: Floats
    scale: Floats
    quat: Floats
    alpha: Floats
    colour: Floats
    sh: Floats

    def selected(self, rows: npt.NDArray[np.bool_]) -> Steps:
        """Those of some rows."""
        return Steps(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class Judge:
    """A scene, what each of its Gaussians shows, and pictures to compare copies with.

    Args:
        scene: finite values, at least one Gaussian.
        options: with a quality.

    Attributes:
        wanted_db: covered PSNR that the quality asks for.
    """

    def __init__(self, scene: Gaussians, options: WriteOptions) -> None:
        from ..render.camera import encoder_cameras
        from ..render.contribution import contributions
        from ..render.cpu import render

        assert options.quality is not None
        self.scene = scene
        self.wanted_db = 25.0 + 0.3 * options.quality
        self._threads = options.threads
        self._progress = options.progress
        share = 2 if len(scene) > _LARGE_SCENE else 1
        cameras = encoder_cameras(scene, num_views=_MEASURE_VIEWS // share, size_px=_MEASURE_PX, seed=_MEASURE_SEED)
        shown = contributions(
            scene,
            cameras,
            equalize=True,
            num_threads=options.threads,
            progress=lambda done, total: self._report("measure", done / total),
        )
        self._removal = shown.removal_error
        self._unseen = shown.hits == 0
        self._unit = _unit_steps(scene, shown)
        mixed = encoder_cameras(scene, num_views=_CHECK_VIEWS // share, size_px=_CHECK_PX, seed=_CHECK_SEED)
        # Every other near view, so that the mix is that of the evaluation views.
        self._cameras = [camera for k, camera in enumerate(mixed) if k % 4 != 3]
        self._pictures = [render(scene, camera, num_threads=options.threads) for camera in self._cameras]

    def _report(self, stage: str, share: float) -> None:
        if self._progress is not None:
            self._progress(stage, share)

    def psnr_db(self, copy: Gaussians) -> float:
        """Mean covered PSNR of a copy of the scene over the check views, dB."""
        from ..metrics.psnr import covered_psnr_db
        from ..render.cpu import render

        copy = copy.replaced(metadata=self.scene.metadata)  # which says how to draw it
        values = [
            covered_psnr_db(picture, render(copy, camera, num_threads=self._threads))
            for picture, camera in zip(self._pictures, self._cameras)
        ]
        return float(np.mean(values))

    def kept(self, slope: float) -> npt.NDArray[np.bool_]:
        """(N,) whether each Gaussian is worth its bits; those that no view saw are kept."""
        price = 2 * math.log(2) / 12 * slope * slope
        kept = (self._removal > _PRUNE * price * _BITS) | self._unseen
        if not kept.any():
            kept[np.argmax(self._removal)] = True
        return kept

    def steps(self, slope: float) -> Steps:
        """The steps at a slope, of all Gaussians."""
        limits = {"position": _MAX_MOVE * self._sizes()}
        values = {}
        for name, shift in _SHIFTS.items():
            values[name] = np.minimum(slope * shift * getattr(self._unit, name), limits.get(name, np.inf))
        return Steps(**values)

    def _sizes(self) -> Floats:
        scales = np.sort(self.scene.scales.astype(np.float64), axis=1)[:, 1]
        return np.exp(np.clip(scales, -80, 80))

    def slope(self, copy: Callable[[float], Gaussians], wanted_db: float | None = None) -> tuple[float, float]:
        """The coarsest slope at which `copy(slope)` is as good as asked for.

        Returns:
            (slope, dB): the slope, and the PSNR there; it may miss the aim where the format cannot do better.
        """
        wanted_db = self.wanted_db if wanted_db is None else wanted_db
        low, high = (math.log2(end) for end in _SLOPES)
        octave = math.log2(_USUAL_SLOPE) + (_USUAL_DB - wanted_db) / _DB_PER_OCTAVE
        octave = min(max(octave, low), high)
        tried: list[tuple[float, float]] = []
        for trial in range(_MAX_TRIALS):
            psnr = self.psnr_db(copy(2.0**octave))
            tried.append((octave, psnr))
            self._report("trials", (trial + 1) / _MAX_TRIALS)
            if abs(psnr - wanted_db) < _NEAR_DB:
                break
            following = _next_octave(tried, wanted_db)
            following = min(max(following, low), high)
            if any(abs(following - before) < 0.05 for before, _ in tried):
                break
            octave = following
        # The coarsest that is good enough, or as good as the format gets.
        enough = min(wanted_db, max(psnr for _, psnr in tried)) - _NEAR_DB
        octave, psnr = max(point for point in tried if point[1] >= enough)
        return 2.0**octave, psnr


def _next_octave(tried: list[tuple[float, float]], wanted_db: float) -> float:
    """Where the line through the nearest two trials meets the aim."""
    near = sorted(tried, key=lambda point: abs(point[1] - wanted_db))
    octave, psnr = near[0]
    fall = _DB_PER_OCTAVE
    if len(near) > 1 and near[1][0] != octave:
        fall = -(near[1][1] - psnr) / (near[1][0] - octave)
    fall = min(max(fall, 1.5), 12.0)
    return octave + (psnr - wanted_db) / fall


def _unit_steps(scene: Gaussians, shown: Contributions) -> Steps:
    """Steps at slope 1: one over the square root of the squared error per squared error of each value."""
    pixel_size = shown.pixel_size
    seen = np.isfinite(pixel_size)
    # Half a pixel of blur hides what is thinner.
    blur = 0.5 * np.where(seen, pixel_size, np.median(pixel_size[seen]) if seen.any() else 0.0)
    sizes = np.exp(np.clip(np.sort(scene.scales.astype(np.float64), axis=1), -80, 80))
    sizes = np.sqrt(sizes * sizes + blur[:, None] ** 2)
    # Turning an ellipse changes its covariance by the more the longer it is; thin axes are rarely seen from the side.
    long, flat = sizes[:, 2] / sizes[:, 1], np.minimum(sizes[:, 1] / sizes[:, 0], 3.0)
    unround = np.sqrt((long - 1 / long) ** 2 + (flat - 1 / flat) ** 2) + 0.05
    alphas = np.maximum(scene.alphas().astype(np.float64), 1 / 255)
    shape = 2.0 * np.sqrt(shown.s_cov)

    def inverse(sensitivity: Floats) -> Floats:
        return 1.0 / np.maximum(sensitivity, _TINY)

    colour = inverse(np.sqrt(shown.s_colour) * SH_C0)
    return Steps(
        position=sizes[:, 1] * inverse(np.sqrt(shown.s_position)),
        scale=inverse(shape),
        quat=inverse(2.0 * shape * unround),
        alpha=alphas * inverse(np.sqrt(shown.s_logalpha)),
        colour=colour,
        sh=colour,
    )


def reduced(
    gaussians: Gaussians,
    options: WriteOptions,
    max_sh_degree: int = 3,
    copy: Callable[[Gaussians], Gaussians] | None = None,
) -> tuple[Gaussians, list[str]]:
    """For formats of fixed precision: fewer harmonics and Gaussians, as far as the quality lets them go.

    Args:
        gaussians: any scene.
        options: without a quality only what cannot be drawn goes.
        max_sh_degree: what the format holds; the rest is not counted as an error.
        copy: what a reader makes of a scene that was written as it is, in any order; None if that is nearly the same.

    Returns:
        (scene, losses): what to write, and what was left out, for people.
    """
    scene = drawable(gaussians, options)
    scene = scene.with_sh_degree(min(scene.sh_degree, max_sh_degree))
    if options.quality is None or not len(scene):
        return scene, []
    judge = Judge(scene, options)
    wanted_db = judge.wanted_db
    if copy is not None:
        # Rounding has its share of the error, whatever is left out; at least an eighth is for that.
        error = 10 ** (-wanted_db / 10)
        error = max(error - 10 ** (-judge.psnr_db(copy(scene)) / 10), error / 8)
        wanted_db = -10 * math.log10(error)
    losses = []
    held = scene
    for degree in range(scene.sh_degree):
        fewer = scene.with_sh_degree(degree)
        if judge.psnr_db(fewer) >= wanted_db + _BAND_MARGIN_DB:
            held = fewer
            losses.append(f"harmonics above degree {degree} left out, as quality {options.quality:g} allows")
            break
    slope, _ = judge.slope(lambda slope: held.selected(judge.kept(slope)), wanted_db)
    kept = judge.kept(slope)
    if not kept.all():
        count = int((~kept).sum())
        losses.append(f"{count} Gaussians that hardly show left out, as quality {options.quality:g} allows")
    return held.selected(kept), losses
