"""Training a moving scene frame by frame, so that it codes well: motion first, then attributes near the last frame's.

After V3 (Wang et al., "V^3: Viewing Volumetric Videos on Mobiles via Streamable 2D Dynamic Gaussians", 2024): the first
frame of a group is trained as a still scene; every other one starts from the one before, whose Gaussians a field of
motion carries to where the new pictures want them (positions only), and whose attributes are then fine-tuned with two
more terms in the loss, the entropy of the residuals and their size. All frames of a group have the same Gaussians in
the same order, so a codec finds small residuals.

Different from the paper: the field is a pyramid of dense grids of shifts, not a hash grid with a perceptron, which
takes fewer steps for scenes of some thousands of Gaussians on a CPU; residuals are measured in steps of 1/255 of the
attribute's range in the key frame, not of the residuals' own range, so that smaller residuals have less entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ParameterError
from ..gaussians import Gaussians
from ..render.camera import Camera
from ..render.kernel import default_num_threads
from ..render.rasterize import rasterize
from .losses import photo_loss
from .optimizer import adam_step
from .splats import RAW, Splats, splats_from_gaussians

__all__ = ["FrameSettings", "MotionField", "residual_entropy", "train_frames"]

Views = Sequence[tuple[Camera, torch.Tensor]]
_LEVELS = 255.0
_LEAST_DEVIATION = 0.05  # of residuals, in levels: below it they are all 0 once rounded
_OF_RESIDUALS = ("quats", "log_scales", "opacity_logits", "sh0", "shN")


@dataclass(frozen=True)
class FrameSettings:
    """How frames are trained.

    Attributes:
        key_steps: pictures that the first frame of a group learns from, one a step. motion_steps, tune_steps: of every
            other frame, for the field of motion and for all attributes.
        group: frames a group; a new one begins with the Gaussians of the frame before, trained as a key frame.
        entropy_weight, temporal_weight: of the two terms (lambda_e, lambda_t in the paper: 1e-4 and 1e-3 for sums over
            attributes); 0 leaves one out.
        motion: whether there is a field of motion.
        dssim_weight: of 1 - SSIM in the loss of pictures.
        means_rate: learning rate of positions, of the scene's extent; fine-tuning uses a tenth of it.
        field_rate: learning rate of the field at first, of the scene's extent.
        seed: of the order of pictures and the noise of rounding.
    """

    key_steps: int = 600
    motion_steps: int = 60
    tune_steps: int = 120
    group: int = 20
    entropy_weight: float = 1e-4
    temporal_weight: float = 1e-3
    motion: bool = True
    dssim_weight: float = 0.2
    means_rate: float = 1e-3
    field_rate: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.key_steps, self.motion_steps, self.tune_steps) < 0 or self.group < 1:
            raise ParameterError("steps must be 0 or more, and a group at least one frame")
        if min(self.entropy_weight, self.temporal_weight) < 0:
            raise ParameterError("weights of losses must be 0 or more")
        if not 0 <= self.dssim_weight <= 1 or min(self.means_rate, self.field_rate) <= 0:
            raise ParameterError("rates must be above 0 and the weight of SSIM from 0 to 1")


class MotionField(torch.nn.Module):
    """Shifts of points: a sum of dense grids, coarse to fine, each read with trilinear weights.

    Args:
        low, high: (3,) corners of the box that has motion; points outside have that of its border.
        sizes: cells of each grid along every axis.
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor, sizes: Sequence[int] = (2, 4, 8, 16)) -> None:
        super().__init__()
        self._low, self._span = low, torch.clamp(high - low, min=1e-9)
        self.grids = torch.nn.ParameterList([torch.zeros(1, 3, size, size, size) for size in sizes])

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """(N, 3) shifts of (N, 3) points, world units."""
        where = (2.0 * (points - self._low) / self._span - 1.0).reshape(1, -1, 1, 1, 3)
        total = torch.zeros_like(points)
        for grid in self.grids:
            found = torch.nn.functional.grid_sample(grid, where, padding_mode="border", align_corners=True)
            total = total + found.reshape(3, -1).T
        return total


def residual_entropy(residuals: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Bits a value of residuals in steps, each column as a normal distribution of its own mean and deviation.

    Args:
        residuals: (N, C) in steps, differentiable. noise: (N, C) from -0.5 to 0.5, in place of rounding.
    """
    q = residuals + noise
    mean = q.mean(0)
    deviation = torch.sqrt(((q - mean) ** 2).mean(0) + _LEAST_DEVIATION**2)
    root = deviation * 2.0**0.5
    chance = 0.5 * (torch.erf((q + 0.5 - mean) / root) - torch.erf((q - 0.5 - mean) / root))
    return -torch.log2(torch.clamp(chance, min=1e-9)).mean()


class _Run:
    """What stays the same from frame to frame."""

    def __init__(self, settings: FrameSettings, threads: int) -> None:
        self.settings, self.threads = settings, threads
        self.random = np.random.default_rng(settings.seed)
        self.noise = torch.Generator().manual_seed(settings.seed)

    def rates(self, extent: float, share: float = 1.0) -> dict[str, float]:
        """Learning rates of 3DGS, positions by the extent; `share` of them."""
        rates = {
            "means": self.settings.means_rate * extent, "quats": 1e-3, "log_scales": 5e-3, "opacity_logits": 2e-2,
            "sh0": 2.5e-3, "shN": 2.5e-3 / 20,
        }  # fmt: skip
        return {name: rate * share for name, rate in rates.items()}

    def order(self, views: Views, steps: int) -> Iterator[tuple[Camera, torch.Tensor]]:
        """All views in a new order, again and again."""
        left: list[int] = []
        for _ in range(steps):
            left = left or list(self.random.permutation(len(views)))
            yield views[left.pop()]

    def loss(self, attributes: Mapping[str, torch.Tensor], camera: Camera, target: torch.Tensor) -> torch.Tensor:
        """Of one picture."""
        means, quats, log_scales, opacity_logits, sh0, shN = (attributes[name] for name in RAW)
        drawn = rasterize(
            means, quats, log_scales, opacity_logits, sh0, shN, camera, backend="auto", num_threads=self.threads
        )
        self.visible = drawn.visible
        return photo_loss(drawn.rgb, target, self.settings.dssim_weight, num_threads=self.threads)["total"]

    def step(self, splats: Splats, loss: torch.Tensor, rates: dict[str, float], all_rows: bool) -> None:
        """One step of all attributes."""
        names = [name for name in RAW if splats[name].numel()]
        gradients = dict(zip(names, torch.autograd.grad(loss, [splats[name] for name in names])))
        visible = torch.ones(len(splats), dtype=torch.bool) if all_rows else self.visible
        adam_step(splats, gradients, visible, rates, num_threads=self.threads)

    def key(self, splats: Splats, views: Views, extent: float) -> None:
        """Train a frame as a still scene."""
        steps = self.settings.key_steps
        for k, (camera, target) in enumerate(self.order(views, steps)):
            share = 0.1 ** (k / max(steps, 1))  # to a tenth
            self.step(splats, self.loss(splats.params, camera, target), self.rates(extent, share), False)

    def move(self, splats: Splats, views: Views, extent: float) -> None:
        """Carry positions to where the next frame's pictures want them."""
        start = splats["means"].detach().clone()
        field = MotionField(start.amin(0), start.amax(0))
        optimizer = torch.optim.Adam(field.parameters(), lr=self.settings.field_rate * extent, betas=(0.9, 0.99))
        attributes = {name: splats[name].detach() for name in RAW}
        steps = max(self.settings.motion_steps, 1)
        for k, (camera, target) in enumerate(self.order(views, self.settings.motion_steps)):
            for group in optimizer.param_groups:
                group["lr"] = self.settings.field_rate * extent * 0.1 ** (k / steps)  # to a tenth
            attributes["means"] = start + field(start)
            optimizer.zero_grad()
            self.loss(attributes, camera, target).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            splats["means"].copy_(start + field(start))

    def tune(self, splats: Splats, before: Mapping[str, torch.Tensor], ranges: Mapping[str, torch.Tensor],
             views: Views, extent: float) -> None:  # fmt: skip
        """Fine-tune all attributes, those of the frame before being near."""
        settings = self.settings
        carried = splats["means"].detach().clone()
        rates = self.rates(extent, 0.5) | {"means": 0.1 * settings.means_rate * extent}
        for camera, target in self.order(views, settings.tune_steps):
            loss = self.loss(splats.params, camera, target)
            for name in _OF_RESIDUALS:
                if not splats[name].numel():
                    continue
                residual = (splats[name] - before[name]).reshape(len(splats), -1) / ranges[name] * _LEVELS
                if settings.entropy_weight:
                    noise = torch.rand(residual.shape, generator=self.noise) - 0.5
                    loss = loss + settings.entropy_weight * residual_entropy(residual, noise)
                if settings.temporal_weight:
                    loss = loss + settings.temporal_weight * residual.abs().mean() / _LEVELS
            if settings.temporal_weight:  # of positions to where the field carried them
                loss = loss + settings.temporal_weight * (splats["means"] - carried).abs().mean() / extent * _LEVELS
            self.step(splats, loss, rates, settings.entropy_weight + settings.temporal_weight > 0)


def train_frames(
    frames: Iterable[Views],
    start: Gaussians,
    settings: FrameSettings | None = None,
    *,
    num_threads: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Iterator[Gaussians]:
    """Train one frame after the other; each is given out when it is done.

    Args:
        frames: of each frame its pictures: cameras, and (H, W, 3) float32 of 0..1. Only one frame's are held.
        start: what the first frame begins with, such as points of its surface.
        settings: see `FrameSettings`.
        num_threads: on the CPU; the result does not depend on it.
        progress: called with the number of the frame and the mean loss of its pictures.

    Yields:
        Gaussians, the same rows in every frame; a side array `id` says so.

    Raises:
        ParameterError: a frame without pictures, or nothing to start from.
    """
    settings = settings or FrameSettings()
    run = _Run(settings, default_num_threads() if num_threads is None else num_threads)
    splats = splats_from_gaussians(start, torch.device("cpu"))
    if not len(splats):
        raise ParameterError("no Gaussian to start from")
    ranges: dict[str, torch.Tensor] = {}
    for number, views in enumerate(frames):
        if not views:
            raise ParameterError(f"frame {number} has no pictures")
        means = splats["means"].detach()
        extent = float((means.quantile(0.95, dim=0) - means.quantile(0.05, dim=0)).norm()) or 1.0
        if number % settings.group == 0:
            run.key(splats, views, extent)
            ranges = {
                name: torch.clamp(flat.amax(0) - flat.amin(0), min=1e-6)
                for name in _OF_RESIDUALS
                if (flat := splats[name].detach().reshape(len(splats), -1)).numel()
            }
        else:
            before = {name: splats[name].detach().clone() for name in RAW}
            splats = Splats(splats.params)  # the optimizer forgets the frame before
            if settings.motion:
                run.move(splats, views, extent)
            run.tune(splats, before, ranges, views, extent)
        if progress:
            with torch.no_grad():
                progress(number, float(np.mean([float(run.loss(splats.params, *view)) for view in views])))
        # The parameters go on changing: a frame has a copy.
        frame = splats.raw_gaussians({name: splats[name].detach().clone() for name in RAW})
        yield frame.replaced(extras={"id": np.arange(len(frame))})
