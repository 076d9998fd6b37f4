"""Everything that decides how a run goes, in one place."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ParameterError
from ..gaussians import MAX_SH_DEGREE

__all__ = ["DEFAULT_ITERATIONS", "TrainSettings"]

DEFAULT_ITERATIONS = 7000


@dataclass(frozen=True)
class TrainSettings:
    """How a scene is trained.

    Attributes:
        iterations: steps; None: `DEFAULT_ITERATIONS`, or as many as fit into `minutes`.
        minutes: the run ends after so many; schedules follow whichever of the two limits is nearer.
        max_gaussians: the budget; None: from the size of the pictures.
        seed: of everything random.
        method: name of the training method.
        strategy: name of the densification strategy.
        sh_degree: highest SH degree.
        sh_warm_up: share of the run over which the bands come in.
        mask_weight: of the mask's loss, for the methods that learn one.
        lmbda: what a bit costs, in loss times pixels of a picture, for the methods that know the rate.
        own_colours: with a colour field, every Gaussian has a base colour of its own beside the field's.
        prune: share of the Gaussians that goes at once, for methods that prune.
        smoothness: of the neighbour loss in runs of 30,000 steps, for the methods that keep a grid.
        shape: learn GES's shape beside the scale.
        antialiased: opacities make up for the low-pass blur; the scene says so.
        dssim_weight: of 1 - SSIM in the loss; the rest is L1.
        coarse: pictures are at first shrunk by this factor, a power of 2.
        coarse_until: share of the run after which they are at full size.
        means_rate, means_rate_end: learning rates of positions at the start and the end, times the scene's extent.
        scales_rate, quats_rate, opacities_rate, sh0_rate, shN_rate: the other learning rates. All are those of a run of
            30,000 steps over large pictures; `schedules.pace` fits them to others.
        rates_end: of the other learning rates so much is left at the end of the run, by an exponential fall.
        backend: of the rasterizer.
        threads: of the CPU; None: all cores. No result depends on it.

    Raises:
        ParameterError: a value out of range.
    """

    iterations: int | None = None
    minutes: float | None = None
    max_gaussians: int | None = None
    seed: int = 0
    method: str = "plain"
    strategy: str = "errors"
    sh_degree: int = 3
    sh_warm_up: float = 0.3
    mask_weight: float = 5e-4
    lmbda: float = 3e-4
    own_colours: bool = True
    prune: float = 0.2
    smoothness: float = 1.0
    shape: bool = False
    antialiased: bool = False
    dssim_weight: float = 0.2
    coarse: int = 2
    coarse_until: float = 0.25
    means_rate: float = 1.6e-4
    means_rate_end: float = 1.6e-6
    scales_rate: float = 0.005
    quats_rate: float = 0.001
    opacities_rate: float = 0.05
    sh0_rate: float = 0.0025
    shN_rate: float = 0.00025
    rates_end: float = 1.0
    backend: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "iterations": self.iterations is None or self.iterations >= 1,
            "minutes": self.minutes is None or 0 < self.minutes < math.inf,
            "max_gaussians": self.max_gaussians is None or self.max_gaussians >= 1,
            "seed": self.seed >= 0,
            "sh_degree": 0 <= self.sh_degree <= MAX_SH_DEGREE,
            "sh_warm_up": 0 <= self.sh_warm_up <= 1,
            "mask_weight": 0 <= self.mask_weight < math.inf,
            "lmbda": 0 < self.lmbda < math.inf,
            "prune": 0 <= self.prune < 1,
            "smoothness": 0 <= self.smoothness < math.inf,
            "rates_end": 0 < self.rates_end <= 1,
            "dssim_weight": 0 <= self.dssim_weight <= 1,
            "coarse": self.coarse in (1, 2, 4, 8, 16),
            "coarse_until": 0 <= self.coarse_until <= 1,
            "threads": self.threads is None or self.threads >= 1,
        }
        rates = ("means_rate", "means_rate_end", "scales_rate", "quats_rate", "opacities_rate", "sh0_rate", "shN_rate")
        checks |= {name: 0 < getattr(self, name) < math.inf for name in rates}
        for name, fine in checks.items():
            if not fine:
                raise ParameterError(f"{getattr(self, name)} is out of range", field=name)

    @property
    def max_iterations(self) -> int | None:
        """Steps after which the run ends in any case; None: only the time decides."""
        if self.iterations is None and self.minutes is None:
            return DEFAULT_ITERATIONS
        return self.iterations

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
