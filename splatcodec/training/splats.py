"""Splats in training: parameters, the optimizer's moments and statistics, all with one row a Gaussian.

Densification adds and removes rows of all of them at once, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..gaussians import SH_C0, Gaussians, num_sh_coefficients
from .datasets import PointCloud

__all__ = ["RAW", "Splats", "splats_from_gaussians", "splats_from_points"]

#: The attributes that every rasterizer takes, in its order.
RAW = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
_FIELDS = {"log_scales": "scales", "opacity_logits": "opacities"}
_START_OPACITY = 0.1


class Splats:
    """Parameters by name, all float32 with N rows, and what belongs to the rows.

    Args:
        params: raw attributes as in `Gaussians` (names of `RAW`) and further ones of a method.

    Attributes:
        params: leaves of the graph.
        moments: name -> first and second moment of the gradient, shaped as the parameter.
        steps: (N,) int64, how often a row was optimised.
        stats: float32 columns of the densification strategy, by name; new rows have zeros.
    """

    def __init__(self, params: Mapping[str, torch.Tensor]) -> None:
        self.params = {name: value.detach().contiguous().requires_grad_() for name, value in params.items()}
        self.moments = {
            name: (torch.zeros_like(value).detach(), torch.zeros_like(value).detach())
            for name, value in self.params.items()
        }
        self.steps = torch.zeros(len(self), dtype=torch.int64, device=self.device)
        self.stats: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.params["means"])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.params[name]

    def to(self, device: torch.device) -> Splats:
        """These, if they are there, else new ones there, which the optimizer has not seen yet."""
        if self.device == device:
            return self
        return Splats({name: value.detach().to(device) for name, value in self.params.items()})

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.params["means"].device

    @property
    def sh_degree(self) -> int:
        """Highest SH degree there is room for."""
        return {0: 0, 3: 1, 8: 2, 15: 3}[self.params["shN"].shape[1]]

    def alphas(self) -> torch.Tensor:
        """(N,) opacities 0..1, no gradient."""
        return torch.sigmoid(self.params["opacity_logits"].detach())

    def add_stats(self, name: str, width: int | None = None) -> torch.Tensor:
        """The column `name` of the statistics, (N,) or (N, width), made of zeros if it is not there."""
        if name not in self.stats:
            shape = (len(self),) if width is None else (len(self), width)
            self.stats[name] = torch.zeros(shape, dtype=torch.float32, device=self.device)
        return self.stats[name]

    def clear_stats(self) -> None:
        """Set all statistics to zero."""
        for column in self.stats.values():
            column.zero_()

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the rows at `rows` (integers or booleans), in that order."""
        self._change(lambda column: column[rows])

    def append(self, params: Mapping[str, torch.Tensor]) -> None:
        """Add rows; the optimizer has not seen them yet."""
        count = len(params["means"])

        def grown(column: torch.Tensor) -> torch.Tensor:
            return torch.cat([column, column.new_zeros((count, *column.shape[1:]))])

        values = {name: torch.cat([value.detach(), params[name]]) for name, value in self.params.items()}
        self._change(grown)
        self.params = {name: value.contiguous().requires_grad_() for name, value in values.items()}

    def set_rows(self, rows: torch.Tensor, params: Mapping[str, torch.Tensor]) -> None:
        """Replace parameters of rows; the optimizer forgets what it knew of them."""
        with torch.no_grad():
            for name, value in params.items():
                self.params[name][rows] = value
            for first, second in self.moments.values():
                first[rows] = 0
                second[rows] = 0
            self.steps[rows] = 0

    def _change(self, function: Any) -> None:
        self.params = {n: function(v.detach()).contiguous().requires_grad_() for n, v in self.params.items()}
        self.moments = {n: (function(a).contiguous(), function(b).contiguous()) for n, (a, b) in self.moments.items()}
        self.steps = function(self.steps).contiguous()
        self.stats = {name: function(column).contiguous() for name, column in self.stats.items()}

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Everything as arrays by name, for checkpoints."""
        arrays = {f"params/{name}": value.detach() for name, value in self.params.items()}
        for name, (first, second) in self.moments.items():
            arrays |= {f"first/{name}": first, f"second/{name}": second}
        arrays |= {f"stats/{name}": column for name, column in self.stats.items()} | {"steps": self.steps}
        return {name: value.cpu().numpy() for name, value in arrays.items()}

    @classmethod
    def from_columns(cls, arrays: Mapping[str, npt.NDArray[Any]], device: torch.device) -> Splats:
        """The inverse of `columns`."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            names = [name for name in arrays if name.startswith(prefix)]
            return {name[len(prefix) :]: torch.from_numpy(arrays[name].copy()).to(device) for name in names}

        splats = cls(part("params/"))
        first, second = part("first/"), part("second/")
        splats.moments = {name: (first[name], second[name]) for name in splats.params}
        splats.steps = torch.from_numpy(arrays["steps"].copy()).to(device)
        splats.stats = part("stats/")
        return splats

    def raw_gaussians(self, attributes: Mapping[str, torch.Tensor] | None = None, **metadata: Any) -> Gaussians:
        """A scene of the raw attributes (or of `attributes` that a method made of them)."""
        values = self.params if attributes is None else attributes
        arrays = {_FIELDS.get(name, name): values[name].detach().cpu().numpy() for name in RAW}
        return Gaussians(**arrays, metadata=metadata)  # type: ignore[arg-type]


def splats_from_gaussians(gaussians: Gaussians, device: torch.device) -> Splats:
    """Start from a scene; rows that cannot be drawn are dropped."""
    scene = gaussians.cleaned()[0]
    arrays = {name: getattr(scene, _FIELDS.get(name, name)) for name in RAW}
    return Splats({name: torch.from_numpy(value.copy()).to(device) for name, value in arrays.items()})


def splats_from_points(
    points: PointCloud,
    colours: npt.NDArray[np.floating[Any]],
    sh_degree: int,
    device: torch.device,
) -> Splats:
    """One round Gaussian a point, as wide as the mean distance to its 3 nearest neighbours, 10 % opaque.

    Args:
        points: where.
        colours: (M, 3) display colours, 0..1.
        sh_degree: highest degree of the zero coefficients.
        device: where to train.
    """
    from scipy.spatial import cKDTree

    means = points.means.astype(np.float64)
    count = len(means)
    neighbours = min(4, count)
    distances = np.asarray(cKDTree(means).query(means, k=neighbours)[0]).reshape(count, neighbours)[:, 1:]
    typical = float(np.ptp(means, axis=0).max()) or 1.0
    if not distances.size:
        distances = np.full((count, 1), 0.1 * typical)
    # Points in the same place would be infinitely small; lonely ones would cover everything.
    sizes = np.clip(np.sqrt((distances**2).mean(axis=1)), 1e-6 * typical, 0.1 * typical)
    params = {
        "means": means,
        "quats": np.tile([1.0, 0.0, 0.0, 0.0], (count, 1)),
        "log_scales": np.log(sizes)[:, None].repeat(3, axis=1),
        "opacity_logits": np.full(count, np.log(_START_OPACITY / (1 - _START_OPACITY))),
        "sh0": ((colours - 0.5) / SH_C0)[:, None, :],
        "shN": np.zeros((count, num_sh_coefficients(sh_degree) - 1, 3)),
    }
    return Splats({name: torch.from_numpy(value.astype(np.float32)).to(device) for name, value in params.items()})
