"""What a way of training is to the loop: the hooks between parameters and picture, and around the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..shared import SharedParameters
from ..splats import RAW, Splats

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...gaussians import Gaussians
    from ...render.camera import Camera
    from ..datasets import Dataset
    from ..settings import TrainSettings

__all__ = ["Method"]


class Method:
    """Plain training; others override what they change.

    A method keeps its per-Gaussian values in `Splats.params`, and what all Gaussians share in `shared`; the trainer
    moves both by the rates of `rates`, sums their gradients over processes, and keeps them in checkpoints.

    Attributes:
        name: as in `--method`.
        makes_file: whether `compressed` makes the `.splc` file, so that `--quality` means nothing.
        plain_until: share of the run up to which training is that of `plain`.
        densify_until: share of the run after which no Gaussians are added, whatever the strategy says.
        dataset: what is learned from; set by `attach` before `prepare` and `restore`.
        num_threads: of the CPU.
        max_gaussians: the budget.
        shared: parameters that no Gaussian owns.
    """

    name = ""
    makes_file = False
    plain_until = 0.0
    densify_until = 1.0

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.dataset: Dataset | None = None
        self.num_threads = 1
        self.max_gaussians = 0
        self.shared = SharedParameters()
        self.say: Callable[[str], None] = lambda text: None

    def attach(
        self, dataset: Dataset, num_threads: int, *, max_gaussians: int = 0, say: Callable[[str], None] | None = None
    ) -> None:
        """Say what is learned from, with how many threads and Gaussians, and who is told of what is worth knowing."""
        self.dataset, self.num_threads, self.max_gaussians = dataset, num_threads, max_gaussians
        self.say = say or self.say

    def prepare(self, splats: Splats) -> Splats:
        """Add parameters before the first step."""
        return splats

    def rates(self, progress: float) -> dict[str, float]:
        """Learning rates of parameters beyond the raw attributes, shared ones too."""
        return {}

    def example(self, camera: Camera, target: torch.Tensor, progress: float) -> tuple[Camera, torch.Tensor]:
        """What this step learns from: a camera, and the picture (H, W, 3) that it should see; a photograph, if left."""
        return camera, target

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

    def compressed(
        self, scene: Gaussians, *, threads: int | None = None, progress: Callable[[str, float], None] | None = None
    ) -> bytes | None:
        """The `.splc` file of the finished run; None: what `splatcodec.compress` makes of the scene.

        Args:
            scene: what the run gives (`TrainResult.gaussians`).
            threads: worker threads; the bytes do not depend on it.
            progress: called with (stage, share done).
        """
        return None
