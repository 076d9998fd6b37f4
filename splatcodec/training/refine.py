"""Smaller files of finished scenes, without photographs: the original's own pictures are what the file is fitted to.

Two things in turn, the first only if asked for (docs/design/refinement.md):

1. Compaction: Gaussians go by removal error, in rounds, and those that stay, if they have no harmonics, are fitted to
   the original's pictures with the quantizer in the loop: noise of the steps that the encoder will use keeps neighbours
   from relying on each other's exact values.
2. Once geometry is coded, opacities and colours are fitted to what it decoded to, and coded. Where there are harmonics
   they are drawn as they will decode, and their bits count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import api
from ..errors import ParameterError
from ..files import PathLike
from ..gaussians import SH_C0, Gaussians
from ..preprocess.plan import Plan, Tuning
from ..render.camera import encoder_cameras
from ..static.encoder import LevelPlan
from .fine_tune import Coder, FineTuneOptions, Teacher, fine_tune
from .rate import RateModel

__all__ = ["RefineOptions", "Refiner", "compress_refined"]

Progress = Callable[[str, float], None]
Rows = npt.NDArray[np.int64]

_COLOURS = ("opacities", "sh0", "shN")
_TEACHER_SEED = 4  # views that neither importance nor quality checks nor levels use
# Pruning in rounds: powers of the threshold asked for, and their shares of the iterations.
_ROUNDS = ((0.0, 0.2), (0.5, 0.2), (1.0, 0.6))
# What `compact` is if only asked for. Beyond, single views get worse (leica at 1.5: by 3.6 dB).
_COMPACT_FLAT, _COMPACT_SH = 2.0, 1.25
_COLOUR_SHARE = 0.25  # of the iterations of a compaction, each time geometry is coded
_GAIN_DB = 1.5
# Bits count so many times what a step is worth at the plan's slope: colours that are free to move save more than that.
_BIT_WEIGHT = 3.0


@dataclass(frozen=True)
class RefineOptions:
    """How a scene is refined.

    Attributes:
        iterations: steps of fitting, one view each: of opacities and colours each time geometry is coded (once to three
            times), or of all attributes where the number of Gaussians is reduced.
        compact: also reduce the number of Gaussians: leaving one out may show so many times more than without; True (or
            1) for what pays on most scenes, 2 without harmonics and 1.25 with them; 0 = do not.
        views: how many views the original is rendered from.
        size_px: size of the pictures.

    Raises:
        ParameterError: a value out of range.
    """

    iterations: int = 400
    compact: float | bool = 0.0
    views: int = 64
    size_px: int = 384

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ParameterError(f"{self.iterations} iterations of refinement, expected 1 or more", field="refine")
        if not (self.compact == 0 or 1 <= self.compact <= 1000):
            raise ParameterError(f"compaction by {self.compact}, expected 1 to 1000, or 0 for none", field="compact")
        if self.views < 1 or not 16 <= self.size_px <= 4096:
            raise ParameterError(f"{self.views} views of {self.size_px} pixels", field="views")


@dataclass
class Refiner:
    """The `static.encoder.Refinement` that fits by gradients.

    Attributes:
        options: how long and on what.
        progress: called with (stage, share done).
    """

    options: RefineOptions
    progress: Progress | None = None
    tuning: Tuning = field(default_factory=Tuning)
    _teacher: Teacher | None = None

    @property
    def gain_db(self) -> float:
        """What the scene may lose at first; see `static.encoder.Refinement`."""
        return 0.0 if self.options.compact else _GAIN_DB

    @property
    def reduces(self) -> bool:
        """See `static.encoder.Refinement`."""
        return self.options.compact > 0

    def before(self, gaussians: Gaussians, plan: Callable[[Gaussians, float], Plan]) -> tuple[Gaussians, Rows]:
        """Prune in rounds and fit what stays, with noise; see `static.encoder.Refinement`."""
        cameras = encoder_cameras(
            gaussians, num_views=self.options.views, size_px=self.options.size_px, seed=_TEACHER_SEED
        )
        self._teacher = Teacher.of(gaussians, cameras, self._tell("original's pictures"))
        scene, rows = gaussians, np.arange(gaussians.num_gaussians)
        if not self.options.compact:
            return scene, rows
        strength = self.options.compact
        if strength == 1:
            strength = _COMPACT_SH if gaussians.sh_degree else _COMPACT_FLAT
        for k, (power, share) in enumerate(_ROUNDS):
            chosen = plan(scene, strength**power)
            scene, rows = scene.selected(chosen.kept), rows[chosen.kept]
            if not scene.sh_degree:  # harmonics are what files with them consist of: fits of the rest do not pay
                iterations = math.ceil(share * (1 - _COLOUR_SHARE) * self.options.iterations)
                options = FineTuneOptions(iterations, noise=1.0, seed=k)
                tell = self._tell(f"fitting, round {k + 1} of {len(_ROUNDS)}")
                scene = fine_tune(scene, self._teacher, self._steps(chosen)[chosen.kept], options, progress=tell)
        return scene, rows

    def after(
        self, scene: Gaussians, plan: Plan, levels: LevelPlan, rows: Rows, decoded: Gaussians, pool: ThreadPoolExecutor
    ) -> Gaussians:
        """Fit opacities and colours to the decoded geometry, as they will decode; see `static.encoder.Refinement`."""
        assert self._teacher is not None
        tell = self._tell("fitting colours")
        share = _COLOUR_SHARE if self.options.compact and not scene.sh_degree else 1.0
        iterations = math.ceil(share * self.options.iterations)
        names = [name for name in _COLOURS if getattr(scene, name).size]
        fitted = fine_tune(
            decoded.replaced(**{name: getattr(scene, name)[rows] for name in names}),
            self._teacher,
            self._steps(plan)[rows],
            FineTuneOptions(iterations, attributes=_COLOURS),
            coder=self._coder(scene, plan, levels, rows, pool),
            progress=tell,
        )
        changed = {name: getattr(scene, name).copy() for name in names}
        for name in names:
            changed[name][rows] = getattr(fitted, name)
        return scene.replaced(**changed)

    def _coder(
        self, scene: Gaussians, plan: Plan, levels: LevelPlan, rows: Rows, pool: ThreadPoolExecutor
    ) -> Coder | None:
        """What the encoder does to opacities and colours; None where it does not pay (docs/design/refinement.md)."""
        if not scene.sh_degree:
            return None
        model = RateModel.fit(scene, plan, pool, levels)
        return _colour_coder(model, scene, rows, _BIT_WEIGHT * plan.bit_price)

    def _steps(self, plan: Plan) -> npt.NDArray[np.float64]:
        """(N, 2) geometry steps in log units and colour steps in display units, of all rows of the planned scene."""
        octaves = 2.0 ** plan.classes.astype(np.float64)
        return np.stack([self.tuning.size_base * octaves[:, 0], SH_C0 * plan.steps.color * octaves[:, 1]], 1)

    def _tell(self, stage: str) -> Callable[..., None]:
        def tell(done: int, count: int, psnr_db: float = 0.0) -> None:
            if self.progress:
                self.progress(stage, done / count)

        return tell


def _colour_coder(model: RateModel, scene: Gaussians, rows: Rows, price: float) -> Coder:
    """Opacities and colours of `rows` as they decode, with their bits at `price`, loss a bit."""
    fields = {"quats": "quats", "log_scales": "scales", "opacity_logits": "opacities", "sh0": "sh0", "shN": "shN"}
    whole = {name: torch.from_numpy(getattr(scene, attribute)) for name, attribute in fields.items()}
    at = torch.from_numpy(rows)

    def code(attributes: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        changed = {
            name: whole[name].index_copy(0, at, attributes[fields[name]]) for name in ("opacity_logits", "sh0", "shN")
        }
        found = model.estimate({**whole, **changed})
        seen = dict(attributes)
        for name, value in (("opacities", found.opacity_logits), ("sh0", found.sh0), ("shN", found.shN)):
            seen[name] = attributes[name] + (value[at] - attributes[name]).detach()
        return seen, price * found.rate_est_bits

    return code


def compress_refined(
    source: Gaussians | PathLike,
    options: RefineOptions | None = None,
    *,
    progress: Progress | None = None,
    **arguments: Any,
) -> bytes:
    """Compress a scene to the bytes of a `.splc` file, fitted to the original's own pictures: smaller, much slower.

    Args:
        source: as for `splatcodec.compress`.
        options: how it is refined.
        progress: called with (stage, share done 0..1).
        arguments: all others of `splatcodec.compress`, except `lossless`.

    Raises:
        ParameterError: options contradict each other.
        SplatCodecError: the source cannot be read.
    """
    if arguments.get("lossless"):
        raise ParameterError("refinement changes values: it cannot be lossless")
    refiner = Refiner(options or RefineOptions(), progress)
    return api.compress(source, progress=progress, refinement=refiner, **arguments)
