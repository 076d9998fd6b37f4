"""What a way of training is to the loop: the hooks between parameters and picture, and around the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..splats import RAW, Splats

if TYPE_CHECKING:
    from ..settings import TrainSettings

__all__ = ["Method"]


class Method:
    """Plain training; others override what they change. A method keeps its per-Gaussian values in `Splats.params`.

    Attributes:
        name: as in `--method`.
    """

    name = ""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    def prepare(self, splats: Splats) -> Splats:
        """Add parameters before the first step."""
        return splats

    def rates(self, progress: float) -> dict[str, float]:
        """Learning rates of parameters beyond the raw attributes."""
        return {}

    def attributes(self, splats: Splats, progress: float) -> dict[str, torch.Tensor]:
        """The raw attributes that are drawn, differentiable in `splats.params`: masks, quantizers, codebooks."""
        return {name: splats.params[name] for name in RAW}

    def penalties(self, splats: Splats, attributes: Mapping[str, torch.Tensor], progress: float) -> dict[str, Any]:
        """Further terms of the loss, by name: estimated rate, sparsity."""
        return {}

    def after_step(self, splats: Splats, progress: float) -> None:
        """Called after every step of the optimizer; may change rows."""

    def fold(self, splats: Splats) -> None:
        """Fold what is kept beside the raw attributes into them, before rows are added or removed."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep beyond `splats`, JSON-able."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
