"""A colour field in training: a contracted multi-resolution hash grid and a small network give the harmonics.

After Lee et al. ("Compact 3D Gaussian Representation for Radiance Field", 2024), but for the view direction: theirs
goes into the network, here the network gives coefficients of spherical harmonics, which is the same for every renderer
and decoder (docs/design/learned_parts.md). Positions get no gradient through the grid, as there. Usable alone:
`grid_for` says how large, `TrainedField.start` makes parameters, `colours` draws them, `quantized` is what the file
holds.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..gaussians import SH_C0
from ..render.kernel import kernel, run_threaded
from ..stages.neural_color import ColourField, GridShape, corners

__all__ = ["TrainedField", "grid_for", "width_for"]

_GROWTH = 1.447
_BASE_RESOLUTION = 16
_MOST_LEVELS = 16
_ROWS_PER_TASK = 2048
_START = 1e-4  # entries begin uniform in -this..this


def grid_for(num_gaussians: int, centre: npt.ArrayLike, radius: float, features: int = 2) -> GridShape:
    """The grid for a scene of so many Gaussians: its size follows their number.

    A table has a power of two of entries, 1/4 to 1/2 of the Gaussians, 2^8 to 2^19; the finest level has about
    4 sqrt(N) cells on an axis, as many Gaussians of a surface are that far apart. The paper's 16 levels of 2^19 entries
    are what 1.4 million Gaussians get.

    >>> grid_for(1_400_000, (0, 0, 0), 1.0).levels, grid_for(1_400_000, (0, 0, 0), 1.0).log2_entries
    (16, 19)
    >>> grid_for(10_000, (0, 0, 0), 1.0).levels, grid_for(10_000, (0, 0, 0), 1.0).log2_entries
    (10, 12)
    """
    log2 = min(max(math.ceil(math.log2(max(num_gaussians, 1))) - 2, 8), 19)
    finest = max(4.0 * math.sqrt(max(num_gaussians, 1)), _BASE_RESOLUTION)
    levels = min(1 + math.ceil(math.log(finest / _BASE_RESOLUTION) / math.log(_GROWTH)), _MOST_LEVELS)
    x, y, z = (float(np.float32(value)) for value in np.asarray(centre, np.float64))
    return GridShape(
        levels, features, log2, _BASE_RESOLUTION, float(np.float32(_GROWTH)), (x, y, z), float(np.float32(radius))
    )


def width_for(num_gaussians: int) -> int:
    """Width of the hidden layers: 64 from 12,800 Gaussians on, fewer below: 16, 32.

    >>> width_for(100_000), width_for(5_000), width_for(10)
    (64, 32, 16)
    """
    return min(max(1 << max(0, math.ceil(math.log2(max(num_gaussians, 1) / 200)) if num_gaussians else 0), 16), 64)


@kernel
def _gather(first, last, index, weight, table, out):
    """out[n, level, f] of rows first..last."""
    for n in range(first, last):
        for level in range(index.shape[1]):
            for f in range(table.shape[1]):
                total = np.float32(0.0)
                for corner in range(8):
                    total += weight[n, level, corner] * table[index[n, level, corner], f]
                out[n, level, f] = total


@kernel
def _scatter(level, index, weight, gradient, out):
    """Adds up the gradients of the entries of one level."""
    for n in range(len(index)):
        for corner in range(8):
            at, w = index[n, level, corner], weight[n, level, corner]
            for f in range(out.shape[1]):
                out[at, f] += w * gradient[n, level, f]


class _Features(torch.autograd.Function):
    """Table (E, F) -> (N, L, F): interpolated entries; the gradient of the table only."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, threads: int) -> torch.Tensor:
        ctx.save_for_backward(index, weight)
        ctx.shape, ctx.threads = table.shape, threads
        if table.device.type != "cpu":
            return (table[index] * weight[..., None]).sum(2)
        out = torch.empty((*index.shape[:2], table.shape[1]), dtype=table.dtype)
        arrays = (index.numpy(), weight.numpy(), table.detach().contiguous().numpy(), out.numpy())
        blocks = [(k, min(k + _ROWS_PER_TASK, len(index))) for k in range(0, len(index), _ROWS_PER_TASK)]
        run_threaded(_gather, [(*block, *arrays) for block in blocks], threads)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        index, weight = ctx.saved_tensors
        (gradient,) = gradients
        out = gradient.new_zeros(ctx.shape)
        if gradient.device.type != "cpu":
            terms = weight[..., None] * gradient[:, :, None, :]
            return out.index_add_(0, index.reshape(-1), terms.reshape(-1, ctx.shape[1])), None, None, None
        arrays = (index.numpy(), weight.numpy(), gradient.contiguous().numpy(), out.numpy())
        # A level is one task, so that sums do not depend on the number of threads.
        run_threaded(_scatter, [(level, *arrays) for level in range(index.shape[1])], ctx.threads)
        return out, None, None, None


class TrainedField:
    """The field's parameters, in a mapping that an optimizer may own: `table`, `weights 0`, `biases 0`, ...

    Args:
        shape: of the grid.
        params: as `start` makes them; looked up at every call, so that they may be replaced.
        num_threads: of the CPU; no result depends on it.
        table_step, layer_step: what table entries and weights are rounded to once `rounded` is asked for.
    """

    def __init__(
        self,
        shape: GridShape,
        params: Mapping[str, torch.Tensor],
        *,
        num_threads: int = 1,
        table_step: float = 1 / 64,
        layer_step: float = 1 / 256,
    ) -> None:
        self.shape, self.params, self.num_threads = shape, params, num_threads
        self.table_step, self.layer_step = float(np.float32(table_step)), float(np.float32(layer_step))

    @staticmethod
    def start(
        shape: GridShape, sh_degree: int, *, width: int = 64, hidden: int = 2, grey: float = 0.0, seed: int = 0
    ) -> dict[str, torch.Tensor]:
        """Parameters to begin with: entries near 0, weights by Kaiming's rule, everything `grey` in display units."""
        generator = torch.Generator().manual_seed(seed)
        count = sum(shape.entries())
        sizes = [shape.levels * shape.features, *[width] * hidden, 3 * (sh_degree + 1) ** 2]
        params = {"table": (torch.rand((count, shape.features), generator=generator) * 2 - 1) * _START}
        for layer, (a, b) in enumerate(itertools.pairwise(sizes)):
            bound = math.sqrt((6.0 if layer < hidden else 1.0) / a)
            params[f"weights {layer}"] = (torch.rand((b, a), generator=generator) * 2 - 1) * bound
            params[f"biases {layer}"] = torch.zeros(b)
        params[f"biases {hidden}"][:3] = grey / SH_C0
        return params

    @property
    def num_layers(self) -> int:
        """Hidden layers and one."""
        return sum(name.startswith("weights ") for name in self.params)

    def colours(self, means: torch.Tensor, *, rounded: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """sh0 (N, 1, 3) and shN (N, K - 1, 3) at means (N, 3), differentiable in the parameters.

        Args:
            means: world units; no gradient.
            rounded: with all parameters rounded to steps, as the file holds them; the gradient passes unchanged.
        """
        index, weight = (torch.from_numpy(a) for a in corners(means.detach().cpu().numpy(), self.shape))
        index, weight = index.to(means.device), weight.to(torch.float32).to(means.device)

        def param(name: str, step: float) -> torch.Tensor:
            value = self.params[name]
            return value + (torch.round(value / step) * step - value).detach() if rounded else value

        x = _Features.apply(param("table", self.table_step), index, weight, self.num_threads)
        x = x.reshape(len(means), -1)
        for layer in range(self.num_layers):
            if layer:
                x = torch.relu(x)
            weights = param(f"weights {layer}", self.layer_step)
            x = torch.nn.functional.linear(x, weights, param(f"biases {layer}", self.layer_step))
        x = x.reshape(len(means), -1, 3)
        return x[:, :1], x[:, 1:]

    def learn(
        self,
        means: torch.Tensor,
        sh0: torch.Tensor | None,
        shN: torch.Tensor,
        weights: torch.Tensor,
        *,
        steps: int = 300,
        rate: float = 0.01,
    ) -> None:
        """Fit `params` to colours, by weighted least squares: for a scene that was learned without a field.

        Args:
            means: (N, 3) world units.
            sh0: (N, 1, 3); None: the field's base colours become 0.
            shN: (N, K - 1, 3).
            weights: (N,) what each row counts.
            steps, rate: of Adam over all rows; the rate falls to 0 along a cosine.
        """
        steps = steps if len(means) and (sh0 is not None or shN.numel()) else 0
        adam = torch.optim.Adam(self.params.values(), lr=rate, betas=(0.9, 0.99), eps=1e-15)
        share = (weights / weights.sum().clamp(min=1e-12))[:, None, None]
        for step in range(steps):
            adam.param_groups[0]["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            with torch.enable_grad():
                drawn0, drawnN = self.colours(means)
                loss = (share * (drawnN - shN).square()).sum()
                if sh0 is not None:
                    loss = loss + (share * (drawn0 - sh0).square()).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        for value in self.params.values():
            value.grad = None
        if sh0 is None:
            with torch.no_grad():
                for name in ("weights", "biases"):
                    self.params[f"{name} {self.num_layers - 1}"][:3] = 0.0

    def quantized(self, means: npt.NDArray[np.float32] | None = None) -> ColourField:
        """What the file holds.

        Args:
            means: (N, 3) of all Gaussians: entries that none of them reads become 0; None = keep them.
        """

        def integers(name: str, step: float) -> npt.NDArray[np.int32]:
            value = self.params[name].detach().cpu().numpy().astype(np.float64) / step
            return np.clip(np.rint(value), -(1 << 20), 1 << 20).astype(np.int32)

        table = integers("table", self.table_step)
        if means is not None:
            index, weight = corners(means, self.shape)
            read = np.zeros(len(table), bool)
            read[index[weight > 0]] = True
            table[~read] = 0
        layers = range(self.num_layers)
        return ColourField(
            self.shape,
            table,
            np.full(self.shape.levels, self.table_step, np.float32),
            [integers(f"weights {layer}", self.layer_step) for layer in layers],
            [integers(f"biases {layer}", self.layer_step) for layer in layers],
            np.full(len(layers), self.layer_step, np.float32),
        )
