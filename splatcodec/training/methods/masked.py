"""Training with a learned mask: as many Gaussians as the pictures need, not as many as there is room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import SplatCodecError
from ..masking import kept_rows, mask_loss, masked
from ..settings import DEFAULT_ITERATIONS, TrainSettings
from ..splats import Splats
from .base import Method

__all__ = ["METHOD"]

_LONG_RUN = 30_000
_RATE = 0.01  # of a run of so many steps
_MOST_FASTER = 10.0
_REMOVE_EVERY = 0.04  # of the run
_REMOVE_FROM = 0.1


class Masked(Method):
    """Plain training with the mask of Compact-3DGS; `settings.mask_weight` says how hard it presses."""

    name = "masked"

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__(settings)
        self.removals = 0

    def prepare(self, splats: Splats) -> Splats:
        """A parameter a Gaussian."""
        if "mask" in splats.params:
            return splats
        return Splats({**splats.params, "mask": torch.zeros((len(splats), 1), device=splats.device)})

    def rates(self, progress: float) -> dict[str, float]:
        """Of the mask: it has as far to go in a short run as in a long one."""
        iterations = self.settings.max_iterations or DEFAULT_ITERATIONS
        return {"mask": _RATE * min(_MOST_FASTER, max(1.0, _LONG_RUN / iterations))}

    def attributes(self, splats: Splats, progress: float) -> dict[str, torch.Tensor]:
        """The raw attributes, masked."""
        return masked(super().attributes(splats, progress), splats["mask"])

    def penalties(self, splats: Splats, attributes: Mapping[str, torch.Tensor], progress: float) -> dict[str, Any]:
        """The mask's own loss."""
        return {"mask": self.settings.mask_weight * mask_loss(splats["mask"])}

    def after_step(self, splats: Splats, progress: float) -> None:
        """Now and then the masked Gaussians go for good.

        Raises:
            SplatCodecError: none is left; looked at after every step, as the run may end before the next removal.
        """
        kept = kept_rows(splats["mask"])
        if not bool(kept.any()):
            raise SplatCodecError(
                "the mask removed every Gaussian; the run cannot go on", hint="a smaller --mask-weight"
            )
        due = int((progress - _REMOVE_FROM) / _REMOVE_EVERY) + 1 if progress >= _REMOVE_FROM else 0
        if due <= self.removals:
            return
        self.removals = due
        if not bool(kept.all()):
            splats.keep(kept)

    def state(self) -> dict[str, Any]:
        """How often Gaussians were removed."""
        return {"removals": self.removals}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.removals = int(state["removals"])


METHOD = Masked
