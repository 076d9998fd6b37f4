"""What a densification strategy is to the trainer, and the steps that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...render.reference import rotation_matrices
from ..splats import Splats

__all__ = [
    "DensifyContext",
    "PixelErrors",
    "Strategy",
    "children_along_axis",
    "logit",
    "reset_opacities",
    "screen_norm",
    "time_to_reset",
]


@dataclass(frozen=True, eq=False)
class PixelErrors:
    """One train picture, and how wrong it is.

    Attributes:
        errors: (H, W) float32, mean absolute difference of the channels.
        target: (H, W, 3) float32, the photograph.
        alpha: (H, W) float32, coverage.
        depth: (H, W) float32, blended depth, not divided by alpha; world units.
        camera: from where.
    """

    errors: npt.NDArray[np.float32]
    target: npt.NDArray[np.float32]
    alpha: npt.NDArray[np.float32]
    depth: npt.NDArray[np.float32]
    camera: Any


@dataclass(frozen=True, eq=False)
class DensifyContext:
    """What a strategy may know of the run. Everything in it is the same on all ranks.

    Attributes:
        extent: size of the scene as the cameras go round it, world units.
        max_gaussians: the budget.
        start_count: how many Gaussians the run began with.
        random: the run's own random numbers; a strategy draws the same ones on every rank.
        look: number of views -> that many train pictures with their errors.
        steps: how many steps the whole run will have, as far as is known.
    """

    extent: float
    max_gaussians: int
    start_count: int
    random: np.random.Generator
    look: Callable[[int], Sequence[PixelErrors]]
    steps: Callable[[], float]


class Strategy:
    """Decides where Gaussians are added and taken away. A strategy has no state but `Splats.stats`.

    Attributes:
        name: as in `--strategy`.
        wants_absolute: whether statistics need sums of absolute screen gradients.
        wants_signed: whether they need plain sums.
        start, stop: shares of the run between which `refine` is called.
        interval: share of the run between two calls, on average.
    """

    name = ""
    wants_absolute = False
    wants_signed = False
    start = 0.02
    stop = 0.6
    interval = 0.01

    def __init__(self, context: DensifyContext) -> None:
        self.context = context

    def observe(
        self,
        splats: Splats,
        visible: torch.Tensor,
        absolute: torch.Tensor | None,
        signed: torch.Tensor | None,
        size_px: tuple[int, int],
    ) -> None:
        """Learn from one backward pass: screen gradients (N, 2) per pixel, of a picture of `size_px`."""

    def refine(self, splats: Splats, progress: float) -> dict[str, int]:
        """Add and remove; returns counts for the report."""
        return {}

    def penalties(self, attributes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Further terms of the loss, by name."""
        return {}

    def after_step(self, splats: Splats, progress: float, means_rate: float) -> None:
        """Called after every step of the optimizer."""


def logit(value: torch.Tensor | float) -> torch.Tensor:
    """The inverse of the sigmoid, away from 0 and 1."""
    return torch.logit(torch.as_tensor(value), eps=1e-6)


def time_to_reset(strategy: Strategy, progress: float, share: float, least_steps: int = 60) -> bool:
    """Whether opacities are reset now: once in every `share` of the run, not near the end, and not in short runs.

    It takes about 60 steps until an opacity is back; `least_steps` of the run must lie between two resets.
    """
    if share * strategy.context.steps() < least_steps:
        return False
    # `refine` is called once for every interval: by its number, so that no reset is missed or comes twice.
    number = int((progress - strategy.start) / strategy.interval + 1e-9)
    now = strategy.start + number * strategy.interval
    crossed = int(now / share + 1e-9) > int((now - strategy.interval) / share + 1e-9)
    return crossed and progress + 2 * strategy.interval < strategy.stop


def reset_opacities(splats: Splats, at_most: float) -> None:
    """Make everything faint: what pictures need comes back within some steps, the rest is pruned then."""
    with torch.no_grad():
        splats["opacity_logits"].clamp_(max=float(logit(at_most)))
    for moment in splats.moments["opacity_logits"]:
        moment.zero_()


def screen_norm(gradients: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
    """(N,) lengths of screen gradients (N, 2) where the picture is 2 wide and high, as 3DGS's thresholds have it."""
    width, height = size_px
    scale = torch.tensor([0.5 * width, 0.5 * height], device=gradients.device)
    return (gradients * scale).norm(dim=1)


def children_along_axis(
    splats: Splats,
    rows: torch.Tensor,
    *,
    shift: float = 0.5,
    longest: float = 0.55,
    others: float = 0.85,
    fade: float = 0.6,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two halves for each of `rows`: moved apart along the longest axis, shorter along it, a little thinner.

    Cutting along the longest axis leaves less of a gap or an overlap than two samples of the parent do, and needs no
    random numbers.

    Args:
        splats: the parents.
        rows: (M,) which.
        shift: how far each half moves, in standard deviations of the axis.
        longest, others: factors of the sizes.
        fade: factor of the opacity.

    Returns:
        Parameters of the first and of the second halves.
    """
    params = {name: value.detach()[rows] for name, value in splats.params.items()}
    axis = params["log_scales"].argmax(dim=1)
    at = torch.arange(len(rows), device=axis.device)
    turned = rotation_matrices(params["quats"])
    offset = turned[at, :, axis] * params["log_scales"][at, axis].exp()[:, None] * shift
    log_scales = params["log_scales"] + float(np.log(others))
    log_scales[at, axis] += float(np.log(longest / others))
    alphas = torch.sigmoid(params["opacity_logits"]) * fade
    params = params | {"log_scales": log_scales, "opacity_logits": logit(alphas)}
    halves = [params | {"means": params["means"] + sign * offset} for sign in (-1.0, 1.0)]
    return halves[0], halves[1]
