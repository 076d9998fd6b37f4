"""LightGaussian: prune by global significance and recover, distil harmonics, a codebook for what shows least.

After Fan et al. ("LightGaussian", 2024), whose three steps follow a finished training; here they are the last part of a
run. With `strategy` "none", that is from a finished scene, they are all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ... import api
from ...gaussians import Gaussians
from ...preprocess.codebooks import entries_for, fit_codebooks, nearest
from ...preprocess.significance import global_significance
from ...render.camera import Camera
from ...stages.vector_quantize import MAX_ENTRIES, VectorQuantized
from ...static.learned import LearnedParts
from ...static.learned_encoder import encode_learned
from ..distillation import SceneTeacher, pseudo_view, truncate
from ..settings import TrainSettings
from ..splats import RAW, Splats
from .base import Method

__all__ = ["METHOD"]

# Where the steps begin: shares of a run that starts from a finished scene, and of one that makes it first, whose
# Gaussians have to have settled before they are judged.
_OF_FINISHED = (0.0, 0.5, 0.8)
_OF_NEW = (0.7, 0.82, 0.95)
_SH_DEGREE = 2
_PSEUDO_SIGMA = 0.02  # of the cameras' extent
# Of three pictures so many are the teacher's, where it is a finished scene, and where it is as new as its student: it
# would hold back what photographs still improve (0.13 dB on lego).
_PSEUDO_OF_FINISHED, _PSEUDO_OF_NEW = 2, 0
_CODEBOOK_SHARE = 0.6  # of the Gaussians, the least significant
_ROWS_AN_ENTRY = 16
# The codec spends few bits on what shows little. In smaller scenes entries cost more than they save (measured on 4,792
# Gaussians: 42.8 kB with, 38.5 kB without, the same PSNR).
_LEAST_CODEBOOK_ROWS = 50_000
_STEP = 1 / 128
_TEACHER = "teacher "
_MOST_VIEWS = 100  # that decide what is significant, and what lower harmonics take over
#: Covered PSNR that what is not in the codebook is coded to.
_CODED_PSNR_DB = 46.0


class LightGaussian(Method):
    """Pruned, distilled and, where it is large, partly quantized; then the file has the feature `vector-1`."""

    name = "lightgaussian"
    makes_file = True
    plain_until = 0.6  # and a little longer; where `rd` begins, too, so that benchmarks keep one state for both

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__(settings)
        self.done = 0  # of the three steps
        self.count = 0  # pseudo-views drawn
        self.teacher: SceneTeacher | None = None
        self._labels: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def _stage(self, progress: float) -> int:
        """How many of the three steps are due."""
        shares = _OF_FINISHED if self.settings.strategy == "none" else _OF_NEW
        return sum(progress >= at for at in shares)

    def _cameras(self) -> list[Camera]:
        assert self.dataset is not None
        return [view.camera for view in self.dataset.train[:: -(-len(self.dataset.train) // _MOST_VIEWS)]]

    def _significance(self, splats: Splats) -> npt.NDArray[np.float64]:
        scene = splats.raw_gaussians(antialiased=self.settings.antialiased)
        return global_significance(scene, self._cameras(), num_threads=self.num_threads)

    def rates(self, progress: float) -> dict[str, float]:
        """Of the codebook: as its attributes have them."""
        rates = {"codebook sh0": self.settings.sh0_rate, "codebook shN": self.settings.shN_rate}
        return {name: rate for name, rate in rates.items() if name in self.shared}

    def example(self, camera: Camera, target: torch.Tensor, progress: float) -> tuple[Camera, torch.Tensor]:
        """Once harmonics are distilled some pictures are the teacher's, of cameras near the photographs'."""
        if self.teacher is None or self.done < 2:
            return camera, target
        self.count += 1
        if self.count % 3 >= (_PSEUDO_OF_FINISHED if self.settings.strategy == "none" else _PSEUDO_OF_NEW):
            return camera, target
        assert self.dataset is not None
        random = np.random.default_rng([0x505356, self.settings.seed, self.count])
        moved = pseudo_view(camera, _PSEUDO_SIGMA * self.dataset.extent, random)
        return moved, self.teacher.picture(moved)

    def attributes(self, splats: Splats, progress: float) -> dict[str, torch.Tensor]:
        """Colours of the less significant are those of their entries, once there is a codebook."""
        found = super().attributes(splats, progress)
        if self.done < 3:
            return found
        labels = splats.stats["codebook label"].to(torch.int64)  # 0: none, else the entry's number and 1
        self._labels = labels.cpu().numpy()
        own = (labels == 0)[:, None, None]
        index = (labels - 1).clamp(min=0)
        for name in ("sh0", "shN"):
            # Drawn as the file holds them.
            entries = self.shared[f"codebook {name}"]
            entries = entries + (torch.round(entries / _STEP) * _STEP - entries).detach()
            found[name] = torch.where(own, found[name], entries[index])
        return found

    def after_step(self, splats: Splats, progress: float) -> None:
        """Prune, truncate, make the codebook, each in its time."""
        due = self._stage(progress)
        while self.done < due:
            self.done += 1
            (self._prune, self._distil, self._make_codebook)[self.done - 1](splats)

    def _prune(self, splats: Splats) -> None:
        significance = self._significance(splats)
        count = max(1, round((1.0 - self.settings.prune) * len(splats)))
        kept = np.sort(np.argsort(-significance, kind="stable")[:count])
        self.say(f"pruned by significance: {len(splats):,} to {count:,} Gaussians")
        if count < len(splats):
            splats.keep(torch.from_numpy(kept).to(splats.device))

    def _distil(self, splats: Splats) -> None:
        if splats.sh_degree <= _SH_DEGREE:
            return
        self.teacher = self._teacher({name: splats[name].detach().clone() for name in RAW})
        self.shared.constants.update({f"{_TEACHER}{name}": v for name, v in self.teacher.attributes.items()})
        truncate(splats, _SH_DEGREE, self._cameras())

    def _teacher(self, attributes: dict[str, torch.Tensor]) -> SceneTeacher:
        assert self.dataset is not None
        return SceneTeacher(attributes, self.dataset.background, self.settings.antialiased, self.num_threads)

    def _make_codebook(self, splats: Splats) -> None:
        significance = self._significance(splats)
        count = round(_CODEBOOK_SHARE * len(splats))
        count = count if count >= _LEAST_CODEBOOK_ROWS else 0
        rows = np.argsort(significance, kind="stable")[:count]
        labels = splats.add_stats("codebook label")
        labels.zero_()
        values = torch.cat([splats["sh0"], splats["shN"]], 1).detach().cpu().numpy().reshape(len(splats), -1)
        entries = values[:1]
        if count:
            most = entries_for(count, MAX_ENTRIES, _ROWS_AN_ENTRY)
            (entries,) = fit_codebooks(values[rows], 1, most, weights=significance[rows])
            labels[torch.from_numpy(rows)] = torch.from_numpy(nearest(values[rows], entries) + 1).to(labels)
        book = torch.from_numpy(entries.reshape(len(entries), -1, 3).copy()).to(splats.device)
        self.shared.add("codebook sh0", book[:, :1])
        self.shared.add("codebook shN", book[:, 1:])

    def compressed(
        self, scene: Gaussians, *, threads: int | None = None, progress: Callable[[str, float], None] | None = None
    ) -> bytes:
        """The codec's file, with the less significant colours as labels into the codebook, if there is one."""
        labels = self._labels
        if len(labels) != len(scene):
            labels = np.zeros(len(scene), np.int64)  # no codebook, or rows that could not be drawn were dropped
        rows = labels > 0
        vectors = []
        if rows.any():
            book = torch.cat([self.shared["codebook sh0"], self.shared["codebook shN"]], 1).detach().cpu().numpy()
            used, numbers = np.unique(labels[rows], return_inverse=True)
            integers = np.rint(book.reshape(len(book), -1).astype(np.float64) / _STEP).astype(np.int32)[used - 1]
            vectors = [VectorQuantized("colours", integers[None], _STEP, numbers.astype(np.int32)[:, None], rows)]
        if not vectors:
            return api.compress(scene, target_psnr=_CODED_PSNR_DB, threads=threads, progress=progress)
        parts = LearnedParts(vectors)
        return encode_learned(scene, parts, wanted_psnr_db=_CODED_PSNR_DB, threads=threads, progress=progress)

    def state(self) -> dict[str, Any]:
        """What is done."""
        return {"done": self.done, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.done, self.count = int(state["done"]), int(state["count"])
        kept = {n.removeprefix(_TEACHER): v for n, v in self.shared.constants.items() if n.startswith(_TEACHER)}
        if kept:
            self.teacher = self._teacher(kept)


METHOD = LightGaussian
