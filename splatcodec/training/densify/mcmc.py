"""Gaussians as samples: those that died are put where others are, and noise keeps all of them looking around.

After Kheradmand et al. ("3D Gaussian Splatting as Markov Chain Monte Carlo", 2024): relocation keeps the picture, new
ones come in steps of 5 % up to the budget, opacity and size cost a little, so that what is not needed dies.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch

from ...render.reference import rotation_matrices
from ..splats import Splats
from .base import Strategy, logit

__all__ = ["STRATEGY", "relocated"]

_DEAD = 0.005
_GROWTH = 1.05
_OPACITY_COST = 0.01
_SIZE_COST = 0.01
_NOISE = 5e5
_MAX_COPIES = 51


@functools.cache
def _binomials() -> npt.NDArray[np.float64]:
    return np.array([[math.comb(n, k) if k <= n else 0 for k in range(_MAX_COPIES)] for n in range(_MAX_COPIES)], float)


def relocated(alphas: torch.Tensor, copies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Opacity of each of `copies` equal Gaussians in one place, and the factor of their sizes, that look like one.

    Args:
        alphas: (M,) opacities 0..1.
        copies: (M,) int64, 1 to 51.

    Returns:
        (M,) opacities and (M,) factors.
    """
    count = copies.clamp(1, _MAX_COPIES)
    wide = alphas.double().clamp(1e-6, 1 - 1e-6)
    new = 1 - (1 - wide) ** (1 / count.double())
    k = torch.arange(_MAX_COPIES, device=alphas.device)
    # sum over i < n and k <= i of C(i, k) (-1)^k / sqrt(k + 1) new^(k + 1)
    terms = torch.where(k % 2 == 0, 1.0, -1.0) / torch.sqrt(k + 1.0) * new[:, None] ** (k + 1)
    upto = torch.from_numpy(_binomials().cumsum(axis=0)).to(alphas.device)
    return new.float(), (wide / (terms * upto[count - 1]).sum(dim=1)).float()


class MarkovChain(Strategy):
    """MCMC with a budget."""

    name = "mcmc"
    start, stop, interval = 0.02, 0.8, 0.005

    def refine(self, splats: Splats, progress: float) -> dict[str, int]:
        """Move the dead to the living, and add some."""
        alphas = splats.alphas()
        dead = torch.nonzero(alphas <= _DEAD)[:, 0]
        alive = torch.nonzero(alphas > _DEAD)[:, 0]
        if not len(alive):
            return {"relocated": 0, "added": 0}
        if len(dead):
            self._copy(splats, alive, len(dead), dead)
        target = min(self.context.max_gaussians, math.ceil(_GROWTH * len(splats)))
        added = max(0, target - len(splats))
        if added:
            self._copy(splats, torch.arange(len(splats), device=splats.device), added, None)
        return {"relocated": len(dead), "added": added}

    def _copy(self, splats: Splats, candidates: torch.Tensor, count: int, onto: torch.Tensor | None) -> None:
        """Make `count` copies of candidates, chosen by opacity, in the rows `onto` or in new ones."""
        alphas = splats.alphas()[candidates]
        weights = alphas.double().cpu().numpy()
        chosen = self.context.random.choice(len(candidates), count, p=weights / weights.sum())
        unique, inverse_counts = np.unique(chosen, return_counts=True)
        parents = candidates[torch.from_numpy(unique).to(splats.device)]
        copies = torch.from_numpy(inverse_counts).to(splats.device) + 1
        new_alphas, factors = relocated(splats.alphas()[parents], copies)
        changed = {name: value.detach()[parents] for name, value in splats.params.items()}
        changed["opacity_logits"] = logit(new_alphas.clamp(min=_DEAD))
        changed["log_scales"] = changed["log_scales"] + factors.log()[:, None]
        splats.set_rows(parents, changed)
        sources = candidates[torch.from_numpy(chosen).to(splats.device)]
        rows = {name: value.detach()[sources] for name, value in splats.params.items()}
        if onto is None:
            splats.append(rows)
        else:
            splats.set_rows(onto, rows)

    def penalties(self, attributes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What being opaque and being large cost."""
        return {
            "opacity": _OPACITY_COST * torch.sigmoid(attributes["opacity_logits"]).mean(),
            "size": _SIZE_COST * attributes["log_scales"].exp().mean(),
        }

    def after_step(self, splats: Splats, progress: float, means_rate: float) -> None:
        """Noise in the shape of each Gaussian, on those that are nearly transparent."""
        with torch.no_grad():
            noise = self.context.random.standard_normal((len(splats), 3), np.float32)
            factor = rotation_matrices(splats["quats"]) * splats["log_scales"].exp()[:, None, :]
            covariance = factor @ factor.transpose(1, 2)
            faint = torch.sigmoid(-100.0 * (splats.alphas() - _DEAD))[:, None]
            step = torch.from_numpy(noise).to(splats.device) * faint * (_NOISE * means_rate)
            splats["means"].add_((covariance @ step[:, :, None])[:, :, 0])


STRATEGY = MarkovChain
