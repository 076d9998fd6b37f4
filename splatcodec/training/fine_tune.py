"""Fitting Gaussians to the pictures of another scene: the teacher is a finished scene, no photographs are needed.

Steps are taken in units in which a change of one shows about equally everywhere: positions and rotations along the
Gaussian's own axes, all attributes over their sensitivity. What is left of the problem is then well conditioned, and
one learning rate serves all attributes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..gaussians import Gaussians
from ..render.camera import Camera
from ..render.cpu import render
from ..render.rasterize import rasterize

__all__ = ["ATTRIBUTES", "Coder", "FineTuneOptions", "Teacher", "fine_tune"]

#: From the attributes, by the names of `ATTRIBUTES`, to what a decoder would make of them, differentiable straight
#: through, and what their bits add to the loss.
Coder = Callable[[dict[str, torch.Tensor]], tuple[dict[str, torch.Tensor], torch.Tensor]]

#: Names of the attributes that can be fitted.
ATTRIBUTES = ("means", "quats", "scales", "opacities", "sh0", "shN")

_COVERED_ALPHA = 0.05  # as in metrics.psnr
_BETAS = (0.8, 0.95)
_MAX_TURN_RAD = 0.2
# Gradients are divided by their own size and by this share of the mean size of the attribute's: what hardly shows, or
# shows from few views, hardly moves.
_FLOOR = 1.0
# Harmonics have many coefficients and are seen from few directions: fast steps fit the views at hand and no others.
_RATES = {"shN": 0.1}


@dataclass(frozen=True)
class Teacher:
    """Pictures of the original from many views, kept as float16.

    Attributes:
        cameras: the views.
        pictures: (H, W, 4) float16 each: red, green, blue on black, and coverage.
    """

    cameras: list[Camera]
    pictures: list[npt.NDArray[np.float16]]

    @classmethod
    def of(
        cls, gaussians: Gaussians, cameras: Sequence[Camera], progress: Callable[[int, int], None] | None = None
    ) -> Teacher:
        """Render the original from all views."""
        pictures = []
        for k, camera in enumerate(cameras):
            drawn = render(gaussians, camera)
            pictures.append(np.concatenate([drawn.rgb, drawn.alpha[..., None]], 2).astype(np.float16))
            if progress:
                progress(k + 1, len(cameras))
        return cls(list(cameras), pictures)


@dataclass(frozen=True)
class FineTuneOptions:
    """How a fit goes.

    Attributes:
        iterations: steps, one view each.
        learning_rate: of the first step, in units of an attribute's step; falls to a twentieth along a cosine.
        attributes: which may change, of `ATTRIBUTES`.
        noise: uniform noise added to every attribute that may change, as a share of its step: what quantization will
            do, so that no two Gaussians come to rely on each other's exact values.
        seed: of the order of views, and of the noise.
    """

    iterations: int = 300
    learning_rate: float = 0.1
    noise: float = 0.0
    attributes: tuple[str, ...] = ATTRIBUTES
    seed: int = 0


class _Parameters:
    """Raw attributes with the changes that a unit of each parameter makes."""

    def __init__(self, gaussians: Gaussians, steps: npt.NDArray[np.floating], names: Sequence[str]) -> None:
        arrays = (
            gaussians.means,
            gaussians.quats,
            gaussians.scales,
            gaussians.opacities,
            gaussians.sh0,
            gaussians.shN,
        )
        self.tensors = {name: torch.from_numpy(array.copy()) for name, array in zip(ATTRIBUTES, arrays)}
        quats = self.tensors["quats"]
        norm = quats.norm(dim=1, keepdim=True)
        quats.copy_(torch.where(norm > 0, quats / norm.clamp(min=1e-30), torch.tensor([1.0, 0.0, 0.0, 0.0])))
        geometry, color = torch.from_numpy(np.asarray(steps, np.float32)).unbind(1)
        sigmas = self.tensors["scales"].clamp(max=80.0).exp()
        axes = _axes(quats)
        # A little blur, about the pixel's: along flat axes steps are not as small as the axis.
        floor = sigmas.amax(dim=1, keepdim=True) * 1e-2
        self.position_basis = axes * (sigmas.maximum(floor) * geometry[:, None])[:, None, :]
        w, x, y, z = quats.unbind(1)
        turns = torch.stack(
            [torch.stack([-x, w, z, -y], 1), torch.stack([-y, -z, w, x], 1), torch.stack([-z, y, -x, w], 1)], 2
        )
        angles = []
        for i, j in ((1, 2), (2, 0), (0, 1)):
            ratio = self.tensors["scales"][:, i] - self.tensors["scales"][:, j]
            # A small turn mixes two axes by (r - 1/r) of it.
            angles.append(geometry / (2.0 * torch.sinh(ratio.abs().clamp(max=10.0))).clamp(min=1e-3))
        angle = torch.stack(angles, 1).clamp(max=_MAX_TURN_RAD)
        self.turn_basis = 0.5 * turns * angle[:, None, :]
        self.units = {
            "scales": geometry[:, None],
            "opacities": geometry / (1.0 - torch.sigmoid(self.tensors["opacities"])).clamp(min=0.02),
            "sh0": (color / 0.28209479177387814)[:, None, None],
            "shN": (color / 0.28209479177387814)[:, None, None],
        }
        self.names = [name for name in names if self.tensors[name].numel()]

    def noisy(self, share: float, generator: torch.Generator) -> list[torch.Tensor]:
        """All attributes, ready to be differentiated; those that may change with noise of `share` of a step."""
        result = []
        for name in ATTRIBUTES:
            tensor = self.tensors[name]
            if name in self.names:
                if share:
                    shape = (*tensor.shape[:1], 3) if name == "quats" else tensor.shape
                    noise = (torch.rand(shape, generator=generator) - 0.5) * share
                    tensor = tensor + self.change(name, noise)
                tensor = tensor.detach().requires_grad_()
            result.append(tensor)
        return result

    def local_gradient(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """Loss gradient by a unit change of the parameters of attribute `name`."""
        if name == "means":
            return torch.einsum("nij,ni->nj", self.position_basis, gradient)
        if name == "quats":
            return torch.einsum("nij,ni->nj", self.turn_basis, gradient)
        return gradient * self.units[name]

    def change(self, name: str, parameters: torch.Tensor) -> torch.Tensor:
        """What attribute `name` changes by where its parameters change by `parameters`."""
        if name == "means":
            return torch.einsum("nij,nj->ni", self.position_basis, parameters)
        if name == "quats":
            return torch.einsum("nij,nj->ni", self.turn_basis, parameters)
        return parameters * self.units[name]

    def move(self, name: str, parameters: torch.Tensor) -> None:
        """Change attribute `name`; quaternions stay at unit length."""
        tensor = self.tensors[name]
        tensor += self.change(name, parameters)
        if name == "quats":
            tensor /= tensor.norm(dim=1, keepdim=True)

    def gaussians(self, like: Gaussians) -> Gaussians:
        arrays = {name: self.tensors[name].numpy() for name in self.names}
        return like.replaced(**arrays)


def _axes(quats: torch.Tensor) -> torch.Tensor:
    from ..render.reference import rotation_matrices

    return rotation_matrices(quats)


class _Adam:
    """Adam (Kingma and Ba, 2015) on local parameters."""

    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}
        self.second: dict[str, torch.Tensor] = {}
        self.count = 0

    def step(self, parameters: _Parameters, gradients: dict[str, torch.Tensor], learning_rate: float) -> None:
        self.count += 1
        bias1, bias2 = 1 - _BETAS[0] ** self.count, 1 - _BETAS[1] ** self.count
        for name in parameters.names:
            gradient = parameters.local_gradient(name, gradients[name])
            if name not in self.first:
                self.first[name], self.second[name] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            first = self.first[name].lerp_(gradient, 1 - _BETAS[0])
            second = self.second[name].lerp_(gradient.square(), 1 - _BETAS[1])
            floor = _FLOOR * second.mean().sqrt() + 1e-30
            rate = learning_rate * _RATES.get(name, 1.0)
            parameters.move(name, -rate * (first / bias1) / ((second / bias2).sqrt() + floor))


class _ViewOrder:
    """Every view once a round, and as many again by how far off they were when last seen: no view is left behind."""

    def __init__(self, count: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.errors = np.full(count, np.inf)
        self.queue: list[int] = []

    def next(self) -> int:
        if not self.queue:
            count = len(self.errors)
            self.queue = self.random.permutation(count).tolist()
            if np.isfinite(self.errors).all() and self.errors.sum() > 0:
                extra = self.random.choice(count, count, p=self.errors / self.errors.sum())
                self.queue = self.random.permutation(np.concatenate([self.queue, extra])).tolist()
        return self.queue.pop()


def picture_loss(rgb: torch.Tensor, alpha: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error over the covered pixels, the mean of black and white backgrounds."""
    covered = (wanted[..., 3] > _COVERED_ALPHA).sum().clamp(min=1)
    error = rgb - wanted[..., :3]
    veil = (wanted[..., 3] - alpha)[..., None]
    return (error.square().sum() + (error + veil).square().sum()) / (6.0 * covered)


def fine_tune(
    student: Gaussians,
    teacher: Teacher,
    steps: npt.NDArray[np.floating],
    options: FineTuneOptions | None = None,
    *,
    coder: Coder | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Gaussians:
    """Fit the student's attributes to the teacher's pictures.

    Args:
        student: N Gaussians to begin with.
        teacher: what they shall look like.
        steps: (N, 2): the geometry step (in standard deviations and log units) and the colour step (display units) of
            each Gaussian, as the encoder would quantize it; equal importance is assumed.
        options: how long, how fast and what.
        coder: what quantization does to the attributes, and costs.
        progress: called with (iteration, iterations, covered PSNR of the view in dB).
    """
    with _one_thread():
        return _fine_tune(student, teacher, steps, options or FineTuneOptions(), coder, progress)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The tensors here are small: threads that wait for one another cost more than they do, above all beside others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fine_tune(
    student: Gaussians,
    teacher: Teacher,
    steps: npt.NDArray[np.floating],
    options: FineTuneOptions,
    coder: Coder | None,
    progress: Callable[[int, int, float], None] | None,
) -> Gaussians:
    if not student.num_gaussians or not teacher.cameras or options.iterations < 1:
        return student
    parameters = _Parameters(student, steps, options.attributes)
    optimizer = _Adam()
    generator = torch.Generator().manual_seed(options.seed)
    antialiased = bool(student.metadata.get("antialiased", False))
    views = _ViewOrder(len(teacher.cameras), options.seed)
    for k in range(options.iterations):
        view = views.next()
        wanted = torch.from_numpy(teacher.pictures[view].astype(np.float32))
        leaves = parameters.noisy(options.noise, generator)
        seen, cost = dict(zip(ATTRIBUTES, leaves)), torch.tensor(0.0)
        if coder:
            seen, cost = coder(seen)
        means, quats, scales, opacities, sh0, shN = (seen[name] for name in ATTRIBUTES)
        drawn = rasterize(means, quats, scales, opacities, sh0, shN, teacher.cameras[view], antialiased=antialiased)
        loss = picture_loss(drawn.rgb, drawn.alpha, wanted)
        (loss + cost).backward()
        views.errors[view] = loss.item()
        gradients = {name: leaf.grad for name, leaf in zip(ATTRIBUTES, leaves) if leaf.grad is not None}
        fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * k / options.iterations))
        optimizer.step(parameters, gradients, options.learning_rate * fall)
        if progress:
            progress(k + 1, options.iterations, -10 * math.log10(max(loss.item(), 1e-12)))
    return parameters.gaussians(student)
