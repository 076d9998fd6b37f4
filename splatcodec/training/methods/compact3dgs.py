"""Compact 3D Gaussians: learned mask, residual vector quantization of scale and rotation, colours from a field.

After Lee et al. ("Compact 3D Gaussian Representation for Radiance Field", 2024). Three parts, each usable alone
(`masking`, `residual_vq`, `colour_field`), are put together here; positions and opacities go through the codec.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import FormatError
from ...gaussians import Gaussians
from ...preprocess.codebooks import entries_for
from ...preprocess.self_organizing_grid import nearest_covariances
from ...stages.neural_color import GridShape
from ...stages.vector_quantize import VectorQuantized
from ...static.learned import LearnedParts
from ...static.learned_encoder import encode_learned
from ..colour_field import TrainedField, grid_for, width_for
from ..residual_vq import ResidualQuantizer
from ..settings import TrainSettings
from ..splats import RAW, Splats
from .masked import Masked

__all__ = ["METHOD"]

_INSIDE = 0.9  # of the points the run starts from, in the ball that half of the grid is for
# In a run of few steps a field that learns from pictures alone stays behind colours of one's own: it takes over from
# them, once no Gaussian is new any more, when it has learned them.
_FIELD_FROM = 0.6  # of a run that makes the scene first
_FIELD_RATE = 0.001  # down to a twentieth along a cosine; the paper has 0.01 and 0.001 for runs of 30,000 steps
_FIELD_ROUND_FROM = 0.7  # of the run: the field is drawn as the file will hold it
# The paper's last 1,000 of 30,000 steps are too few in a short run: the earlier, once no Gaussian is new, the better.
_VQ_FROM = 0.62
_VQ_RATE = 1e-3
_STAGES, _MOST_ENTRIES = 6, 64
_STEP = 1 / 256
#: Covered PSNR that positions and opacities are coded to; far above what any scene reaches against photographs.
_CODED_PSNR_DB = 47.0


class Compact3dgs(Masked):
    """Mask, vector quantization and colour field; the file has the features `vector-1` and `neural-1`."""

    name = "compact3dgs"
    makes_file = True
    plain_until = _FIELD_FROM

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__(settings)
        self.field: TrainedField | None = None
        self.distilled = False
        self._vq_loss: torch.Tensor | None = None
        self._labels: dict[str, npt.NDArray[np.int32]] = {}

    def prepare(self, splats: Splats) -> Splats:
        """A mask for every Gaussian, and a field as large as their budget asks for."""
        means = splats["means"].detach().cpu().numpy().astype(np.float64)
        centre = np.median(means, axis=0)
        radius = float(np.quantile(np.linalg.norm(means - centre, axis=1), _INSIDE)) or 1.0
        count = max(1, self.max_gaussians)
        shape = grid_for(count, centre, radius)
        start = TrainedField.start(shape, splats.sh_degree, width=width_for(count), seed=self.settings.seed)
        for name, value in start.items():
            self.shared.add(name, value.to(splats.device))
        self._field(shape)
        return super().prepare(splats)

    def _field(self, shape: GridShape) -> None:
        self.field = TrainedField(shape, self.shared.params, num_threads=self.num_threads)

    def rates(self, progress: float) -> dict[str, float]:
        """Of mask, field and codebooks."""
        fall = max(0.0, progress - self._field_from()) / (1.0 - self._field_from())
        rate = _FIELD_RATE * (0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * fall)))
        found = super().rates(progress) | dict.fromkeys(self.shared.params, rate)
        return found | {name: _VQ_RATE for name in self.shared.params if name.startswith("codebooks")}

    def _field_from(self) -> float:
        return 0.0 if self.settings.strategy == "none" else _FIELD_FROM

    def attributes(self, splats: Splats, progress: float) -> dict[str, torch.Tensor]:
        """Once it has learned them colours of the field; then quantized scales and rotations, too; all of it masked."""
        assert self.field is not None
        if progress < self._field_from():
            return {name: splats[name] for name in RAW}
        if not self.distilled:
            self._distil(splats)
        found = super().attributes(splats, progress)
        rounded = progress >= _FIELD_ROUND_FROM
        sh0, found["shN"] = self.field.colours(splats["means"], rounded=rounded)
        found["sh0"] = sh0 + found["sh0"] if self.settings.own_colours else sh0
        self._vq_loss = None
        if progress < _VQ_FROM:
            return found
        quantizers = self._quantizers(splats)
        for name, raw in (("scales", "log_scales"), ("quats", "quats")):
            mask = found[raw] - splats[raw]  # 0 but for its gradient
            values = torch.nn.functional.normalize(splats[raw], dim=1) if name == "quats" else splats[raw]
            drawn, self._labels[name], loss = quantizers[name](values)
            found[raw] = drawn + mask
            self._vq_loss = loss if self._vq_loss is None else self._vq_loss + loss
        return found

    def _distil(self, splats: Splats) -> None:
        """Teach the field the harmonics there are, and without base colours of the Gaussians' own those, too."""
        assert self.field is not None
        base = None if self.settings.own_colours else splats["sh0"].detach()
        # What shows counts: opacity times size.
        areas = splats["log_scales"].detach().sort(1).values[:, 1:].sum(1)
        weights = splats.alphas() * torch.exp(0.5 * (areas - areas.max()))
        self.field.learn(splats["means"], base, splats["shN"].detach(), weights)
        for name in self.field.params:
            self.shared.add(name, self.shared[name])
        self.distilled = True

    def _quantizers(self, splats: Splats) -> dict[str, ResidualQuantizer]:
        """Codebooks; on the first call by k-means, after every ellipsoid took the description nearest to no turn."""
        if "codebooks scales" not in self.shared:
            count = len(splats)
            scene = splats.raw_gaussians()
            still = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
            scene = nearest_covariances(scene, still, scene.scales, scale_weight=0.0, num_threads=self.num_threads)
            entries = entries_for(count, _MOST_ENTRIES)
            with torch.no_grad():
                for name, raw, array in (("scales", "log_scales", scene.scales), ("quats", "quats", scene.quats)):
                    splats[raw].copy_(torch.from_numpy(array.copy()))
                    for moment in splats.moments[raw]:
                        moment.zero_()
                    made = ResidualQuantizer.fitted(splats[raw], stages=_STAGES, entries=entries, step=_STEP)
                    self.shared.add(f"codebooks {name}", made.codebooks)
        return {name: ResidualQuantizer(self.shared[f"codebooks {name}"], _STEP) for name in ("scales", "quats")}

    def penalties(self, splats: Splats, attributes: Mapping[str, torch.Tensor], progress: float) -> dict[str, Any]:
        """Those of mask and codebooks, once there are any."""
        if progress < self._field_from():
            return {}
        found = super().penalties(splats, attributes, progress)
        return found if self._vq_loss is None else found | {"codebooks": self._vq_loss}

    def compressed(
        self, scene: Gaussians, *, threads: int | None = None, progress: Callable[[str, float], None] | None = None
    ) -> bytes:
        """Positions and opacities through the codec; codebooks, labels and field beside them."""
        assert self.field is not None
        vectors = []
        for name in ("scales", "quats") if len(scene) else ():
            quantizer = ResidualQuantizer(self.shared[f"codebooks {name}"], _STEP)
            labels = self._labels[name]
            if len(labels) != len(scene):  # rows that could not be drawn were dropped
                labels = quantizer.labels(torch.from_numpy(getattr(scene, name)))
            vectors.append(VectorQuantized(name, quantizer.integers(), quantizer.step, labels))
        parts = LearnedParts(vectors, self.field.quantized(scene.means))
        return encode_learned(scene, parts, wanted_psnr_db=_CODED_PSNR_DB, threads=threads, progress=progress)

    def state(self) -> dict[str, Any]:
        """Of the mask; the grid, and whether it has learned the scene."""
        assert self.field is not None
        return super().state() | {"grid": asdict(self.field.shape), "distilled": self.distilled}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        self.distilled = bool(state["distilled"])
        try:
            self._field(GridShape(**{**state["grid"], "centre": tuple(state["grid"]["centre"])}))
        except TypeError:
            raise FormatError("the checkpoint's grid is damaged") from None


METHOD = Compact3dgs
