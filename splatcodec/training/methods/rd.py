"""Rate-distortion training: the loss counts the bits that our own encoder will write.

Until densification ends, training is plain. Then, as one `lmbda` says:

- Every Gaussian gets the classes that the encoder will give it: steps of equal slope, K^2 ln 2 / 6 = 4 lmbda, from
  how much its errors show in the training views.
- Gaussians go whose removal costs less than their bits, in rounds; what is left is fitted on.
- Drawn is what a decoder would get: colours, harmonics and opacities quantized in the coder's closed loop (straight
  through), geometry with noise of its steps. `RateModel` adds lmbda times the bits to the loss.
- A learned mask for each Gaussian and one for its harmonics pay for the bits that they let through.
- Faint Gaussians go whatever they cost: what is left fits views better that nobody has seen.

The file is written with the very plan that training ended with. After ideas of HAC++ (mask-aware rate), RDO-Gaussian
(masks of SH) and EAGLES (straight-through rounding), for plain Gaussians and this coder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import ParameterError, SplatCodecError
from ...gaussians import Gaussians
from ...preprocess.plan import LossyOptions, Plan, Tuning, make_plan
from ...preprocess.view_weights import ViewWeights
from ...render.camera import Camera
from ...render.contribution import Contributions, contributions
from ...static.encoder import LevelPlan, encode_tiles
from ..masking import FAINT_OPACITY, kept_rows, masked
from ..rate import RateEstimate, RateModel, geometry_noise
from ..schedules import rounds
from ..settings import DEFAULT_ITERATIONS
from ..splats import RAW, Splats
from .base import Method

__all__ = ["METHOD"]

_FROM = 0.6  # of the run; densification has ended
_EVERY = 0.04
# Share of the price at which a Gaussian goes, by round: what others can stand in for only shows when they have. Only
# faint ones go at first: what a Gaussian is worth has to be learned, too.
_PRUNE = (0.0, 0.0, 0.25, 0.5, 1.0, 1.0, 1.5, 2.0)
# Steps are chosen as if a bit cost so many times lmbda: training makes up for much of what rounding alone would cost.
_STEPS_DEARER = 4.0
_FIRST_BITS = 90.0  # of a Gaussian, before there is an estimate
# Change of the loss over change of the mean squared error, about, near 30 dB.
_LOSS_PER_MSE = 7.5
_VIEWS, _VIEW_PX = 48, 400
_MASK_RATE, _LONG_RUN, _MOST_FASTER = 0.01, 30_000, 10.0
_SNAPSHOT = "rate_"


@dataclass(frozen=True)
class _Coder:
    """The encoder as of the last fit.

    Attributes:
        plan, model: see there. steps: (N,) geometry steps in log units.
    """

    plan: Plan
    model: RateModel
    steps: torch.Tensor


class RateDistortion(Method):
    """See the module; `settings.lmbda` is the one knob."""

    name = "rd"
    makes_file = True
    plain_until = densify_until = _FROM

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.tuning = Tuning()
        self.fits = 0
        self.noises = 0
        self.coder: _Coder | None = None
        self.found: RateEstimate | None = None

    def prepare(self, splats: Splats) -> Splats:
        """A mask for each Gaussian, and one for its harmonics."""
        if "mask" in splats.params:
            return splats
        zeros = torch.zeros((len(splats), 1), device=splats.device)
        return Splats({**splats.params, "mask": zeros, "sh_mask": zeros.clone()})

    def rates(self, progress: float) -> dict[str, float]:
        """Of the masks: they have as far to go in a short run as in a long one."""
        iterations = self.settings.max_iterations or DEFAULT_ITERATIONS
        rate = _MASK_RATE * min(_MOST_FASTER, max(1.0, _LONG_RUN / iterations))
        return {"mask": rate, "sh_mask": rate}

    # --- what is drawn, and what it costs ---

    def attributes(self, splats: Splats, progress: float) -> dict[str, torch.Tensor]:
        """As a decoder would get them, with the gradients of what they come from; at the end of the run unquantized."""
        raw = super().attributes(splats, progress)
        coder = self._coder(splats)
        if coder is None:
            return raw
        exact = self._masked(splats, raw)
        if progress >= 1.0:
            return exact
        self.found = found = coder.model.estimate({name: value.cpu() for name, value in exact.items()})
        drawn = dict(exact)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.noises)
        drawn |= geometry_noise(exact, coder.steps.to(splats.device), coder.plan.steps.blur, generator)
        for name, value in (("sh0", found.sh0), ("shN", found.shN), ("opacity_logits", found.opacity_logits)):
            drawn[name] = exact[name] + (value.to(splats.device) - exact[name]).detach()
        gone = ~kept_rows(splats["mask"])
        drawn["opacity_logits"] = torch.where(gone, exact["opacity_logits"], drawn["opacity_logits"])
        return drawn

    def penalties(self, splats: Splats, attributes: Mapping[str, torch.Tensor], progress: float) -> dict[str, Any]:
        """Estimated bits times lmbda; the masks learn what they let through."""
        if self.coder is None or self.found is None:
            return {}
        bits = self.found.rate_est_bits.to(splats.device)
        own, sh = (part.to(splats.device) for part in (self.found.gaussian_bits, self.found.sh_bits))
        paid = torch.sigmoid(splats["mask"][:, 0] + 1.0) @ (own + sh)
        paid = paid + torch.sigmoid(splats["sh_mask"][:, 0] + 1.0) @ sh
        bits = bits + paid - paid.detach()
        return {"rate": self.settings.lmbda / self._pixels() * bits}

    def _masked(self, splats: Splats, raw: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw attributes without the Gaussians and harmonics that the masks leave out."""
        soft = torch.sigmoid(splats["sh_mask"] + 1.0)
        through = kept_rows(splats["sh_mask"])[:, None] + soft - soft.detach()
        raw = {**raw, "shN": raw["shN"] * through[:, :, None]}
        return masked(raw, splats["mask"])

    def _pixels(self) -> float:
        assert self.dataset is not None
        return float(np.median([view.camera.width * view.camera.height for view in self.dataset.train]))

    # --- when the encoder is fitted anew ---

    def after_step(self, splats: Splats, progress: float) -> None:
        """Now and then Gaussians go, and the encoder is fitted to what is left.

        Raises:
            SplatCodecError: none would be left.
        """
        self.noises += 1
        if self.settings.strategy == "none":  # a finished scene: nothing has to grow first
            progress = _FROM + (1.0 - _FROM) * progress
        due = rounds(progress, _FROM, _EVERY)
        if due > self.fits:
            self.fits = due
            self._fit(splats)

    def _fit(self, splats: Splats) -> None:
        scene = self._scene(splats)
        measured, _ = self._measure(scene)
        kept = kept_rows(splats["mask"]).cpu().numpy()
        if self.fits <= len(_PRUNE):
            kept = kept & (scene.alphas() > FAINT_OPACITY)
            bits = np.full(len(scene), _FIRST_BITS)
            if self.found is not None and len(self.found.gaussian_bits) == len(scene):
                bits = (self.found.gaussian_bits + self.found.sh_bits).numpy().astype(np.float64)
            kept = kept & (measured.removal_error > _PRUNE[self.fits - 1] * self._price() * bits)
        if not kept.any():
            raise SplatCodecError("no Gaussian is worth its bits; the run cannot go on", hint="a smaller --lmbda")
        if not kept.all():
            splats.keep(torch.from_numpy(kept).to(splats.device))
            scene = scene.selected(kept)
        for name in RAW:
            value = getattr(scene, {"log_scales": "scales", "opacity_logits": "opacities"}.get(name, name))
            splats.stats[_SNAPSHOT + name] = torch.from_numpy(value.copy()).to(splats.device)
        self.coder = self.found = None
        self._coder(splats)

    def _scene(self, splats: Splats) -> Gaussians:
        assert self.dataset is not None
        with torch.no_grad():
            exact = self._masked(splats, {name: splats.params[name] for name in RAW})
        return splats.raw_gaussians(exact, **self._metadata())

    def _coder(self, splats: Splats) -> _Coder | None:
        """The encoder of the last fit; made again from the values of that time where a run was resumed."""
        if self.fits == 0 or self.coder is not None:
            return self.coder
        values = {name: splats.stats[_SNAPSHOT + name] for name in RAW}
        scene = splats.raw_gaussians(values, **self._metadata())
        measured, seen_from = self._measure(scene)
        slope = float(np.sqrt(6.0 * _STEPS_DEARER * self._price() / np.log(2.0)))
        plan = make_plan(scene, measured, slope, LossyOptions(prune=False), self.tuning, seen_from)
        finest = plan.steps.size * np.log(2.0) / 1024.0  # of class 0, which scenes may want finer than usual
        steps = finest * np.exp2(plan.classes[:, 0].astype(np.float32))
        with ThreadPoolExecutor(self.num_threads) as pool:
            model = RateModel.fit(scene, plan, pool)
        self.coder = _Coder(plan, model, torch.from_numpy(steps.astype(np.float32)))
        return self.coder

    def _metadata(self) -> dict[str, Any]:
        assert self.dataset is not None
        return self.dataset.scene_metadata(self.settings.antialiased)

    def _cameras(self) -> list[Camera]:
        """Some of the training views, not too large."""
        assert self.dataset is not None
        views = self.dataset.train
        picks = np.unique(np.linspace(0, len(views) - 1, min(_VIEWS, len(views))).round().astype(int))
        cameras = []
        for view in (views[k] for k in picks):
            larger = max(view.camera.width, view.camera.height)
            cameras.append(view.resized(max(1.0, larger / _VIEW_PX)))
        return cameras

    def _measure(self, scene: Gaussians) -> tuple[Contributions, ViewWeights | None]:
        cameras = self._cameras()
        seen_from = ViewWeights(cameras, len(scene)) if scene.sh_degree else None
        measured = contributions(
            scene, cameras, equalize=True, num_threads=self.num_threads, on_view=seen_from.add if seen_from else None
        )
        return measured, seen_from

    def _price(self) -> float:
        """Squared error of the measured views that a bit is worth."""
        cameras = self._cameras()
        channels = 3.0 * sum(camera.width * camera.height for camera in cameras)
        return channels * self.settings.lmbda / self._pixels() / _LOSS_PER_MSE

    # --- the file, and checkpoints ---

    def compressed(
        self, scene: Gaussians, *, threads: int | None = None, progress: Callable[[str, float], None] | None = None
    ) -> bytes | None:
        """The file, as the rate was estimated."""
        from ... import api

        if self.coder is None:
            raise ParameterError("the run ended before the encoder took part in it", hint="more iterations")
        if len(scene) != self.coder.model.num_gaussians:
            return None
        with ThreadPoolExecutor(threads or self.num_threads) as pool:
            like = self.coder.model.parameters
            encoded = encode_tiles(scene, self.coder.plan, _one_level(scene), pool, like=like)
        return api.pack_tiles(encoded, scene.metadata)

    def state(self) -> dict[str, Any]:
        """How often the encoder was fitted; to what is in the statistics."""
        return {"fits": self.fits, "noises": self.noises}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.fits, self.noises = int(state["fits"]), int(state["noises"])


def _one_level(scene: Gaussians) -> LevelPlan:
    return LevelPlan(np.arange(len(scene)), levels=False)


METHOD = RateDistortion
