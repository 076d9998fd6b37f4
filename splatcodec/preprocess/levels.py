"""Which Gaussians come first: nested levels of detail, and how a scene of its first levels is shown (techniques D).

Removal errors do not add, so the order is found by taking Gaussians away in rounds, the errors measured again after
each. What is left of a scene then has holes; one factor on the standard deviations and one on the opacities of the
whole prefix close them, and the thumbnail below it, with two factors of its own, stands for what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians
from ..metrics.psnr import covered_psnr_db
from ..render.camera import Camera
from ..render.contribution import Contributions, contributions
from ..render.cpu import render
from ..render.rendering import Rendering

__all__ = [
    "UNDER_LOOK",
    "best_look",
    "best_prefix_looks",
    "display_ranks",
    "joined",
    "level_shares",
    "scaled",
    "thumbnail_count",
]

_ROUNDS = (0.55, 0.35, 0.22, 0.14)  # share of the Gaussians left after each
_GROW = (0, 140, 270, 440)  # 1/1024 octaves: 1, 1.1, 1.2, 1.35
_SHRINK = (0, -160, -330, -530)  # of a thumbnail: 1, 0.9, 0.8, 0.7
_GAIN = (1024, 1331, 1800, 2400)
# Of a prefix over a thumbnail, and of the thumbnail: what is tried, and where to begin.
_OVER_GROW, _OVER_GAIN = (-150, 0, 140, 270, 440), (700, 1024, 1331, 1800)
_UNDER_GROW, _UNDER_GAIN = (-500, -330, -160, 0), (200, 350, 512, 700, 1024)
_OVER_START = (1, 1, 2, 2)
UNDER_LOOK = (-160, 512)  # how a thumbnail looks below a prefix, about
_LEAST_GAUSSIANS = 2048  # fewer are one level, without a thumbnail


def level_shares(count: int, sh_degree: int) -> tuple[float, ...]:
    """Share of all `count` coded Gaussians that levels 1, 1 to 2, ... hold; 0 and 1 are about a quarter of a file.

    >>> level_shares(1000, 3), level_shares(50_000, 3), level_shares(50_000, 0), level_shares(10**6, 3)
    ((1.0,), (0.14, 1.0), (0.18, 1.0), (0.05, 0.2, 1.0))
    """
    if count < _LEAST_GAUSSIANS:
        return (1.0,)
    if count < 200_000:
        return (0.14 if sh_degree else 0.18, 1.0)
    if count < 3_000_000:
        return (0.05, 0.2, 1.0)
    return (0.012, 0.05, 0.2, 1.0)


def thumbnail_count(count: int, sh_degree: int) -> int:
    """Merged Gaussians of level 0 for `count` coded ones: 2 to 5 % of the file, less where that is much."""
    if count < _LEAST_GAUSSIANS:
        return 0
    wanted = (0.06 if sh_degree else 0.02) * count
    most = 12_000
    # Above the most, another one for every 50 wanted: each tile needs a few.
    wanted = wanted if wanted <= most else most + (wanted - most) * 0.02
    # In steps of a tenth, so that trials with a few Gaussians more or less share one thumbnail.
    return int(1.1 ** round(np.log(wanted) / np.log(1.1)))


def display_ranks(
    gaussians: Gaussians, measured: Contributions, cameras: Sequence[Camera], under: Gaussians | None = None
) -> npt.NDArray[np.int64]:
    """(N,) place of every Gaussian in the order in which they are shown, 0 first.

    Args:
        gaussians: cleaned scene. measured: its contributions.
        cameras: views for measuring again what is left; none = trust `measured` all the way.
        under: merged Gaussians that are shown with what is left.
    """
    n = len(gaussians)
    ranks = np.empty(n, np.int64)
    rows = np.arange(n)
    score = _score(measured, gaussians.sh_degree)
    for share in _ROUNDS if cameras and n >= _LEAST_GAUSSIANS else ():
        order = np.argsort(-score, kind="stable")
        left = int(share * n)
        ranks[rows[order[left:]]] = np.arange(left, len(rows))
        rows = np.sort(rows[order[:left]])
        shown = gaussians.selected(rows)
        shown = shown if under is None else joined(shown, under)
        score = _score(contributions(shown, cameras, equalize=True), gaussians.sh_degree)[: len(rows)]
    ranks[rows[np.argsort(-score, kind="stable")]] = np.arange(len(rows))
    return ranks


def _score(measured: Contributions, sh_degree: int) -> npt.NDArray[np.float64]:
    """Between what a Gaussian covers and what its removal does: either alone leaves holes or wrong colours.

    More of the removal error makes better prefixes, and where there is no SH costs more bits: Gaussians that cover
    alike are coded alike.
    """
    share = 0.75 if sh_degree else 0.25
    return np.asarray(measured.removal_error**share * measured.sum_weight2 ** (1.0 - share))


def scaled(gaussians: Gaussians, grow: int, gain: int) -> Gaussians:
    """Standard deviations times 2**(grow / 1024), opacities times gain / 1024 (SPEC.md, section 3.10)."""
    if grow == 0 and gain == 1024:
        return gaussians
    alphas = np.clip(gaussians.alphas().astype(np.float64) * (gain / 1024.0), 1e-6, 4095.0 / 4096.0)
    return gaussians.replaced(
        scales=gaussians.scales + np.float32(grow / 1024.0 * np.log(2.0)),
        opacities=np.log(alphas / (1.0 - alphas)).astype(np.float32),
    )


def best_look(
    part: Gaussians, cameras: Sequence[Camera], originals: Sequence[Rendering], *, shrink: bool = False
) -> tuple[int, int]:
    """The (grow, gain) with which a part of the scene looks most like all of it, by mean covered PSNR.

    Args:
        cameras, originals: views and what the whole scene looks like from them.
        shrink: try to make smaller instead of larger (merged Gaussians are too large rather than too small).
    """

    def quality(grow: int, gain: int) -> float:
        shown = scaled(part, grow, gain)
        return float(np.mean([covered_psnr_db(a, render(shown, c)) for a, c in zip(originals, cameras)]))

    steps = _SHRINK if shrink else _GROW
    best = (quality(0, 1024), 0, 1024)
    for grow in steps[1:]:
        tried = (quality(grow, 1024), grow, 1024)
        if tried[0] <= best[0]:
            break
        best = tried
    for gain in _GAIN[1:]:
        tried = (quality(best[1], gain), best[1], gain)
        if tried[0] <= best[0]:
            break
        best = tried
    return best[1], best[2]


def best_prefix_looks(
    part: Gaussians, thumbnail: Gaussians, cameras: Sequence[Camera], originals: Sequence[Rendering]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The (grow, gain) of a part of the scene, and of the thumbnail shown with it, that look most like all of it.

    Args:
        part: levels 1 to some level. cameras, originals: as for `best_look`.
    """
    grids = (_OVER_GROW, _OVER_GAIN, _UNDER_GROW, _UNDER_GAIN)
    tried: dict[tuple[int, ...], float] = {}

    def quality(at: tuple[int, ...]) -> float:
        if at not in tried:
            grow, gain, under_grow, under_gain = (grid[k] for grid, k in zip(grids, at))
            shown = joined(scaled(part, grow, gain), scaled(thumbnail, under_grow, under_gain))
            psnrs = [covered_psnr_db(a, render(shown, c)) for a, c in zip(originals, cameras)]
            tried[at] = float(np.mean(psnrs))
        return tried[at]

    best: tuple[int, ...] = _OVER_START
    before: tuple[int, ...] = ()
    while best != before:  # one number after the other, until none can be bettered
        before = best
        for k in (3, 0, 1, 2):
            for step in (-1, 1):
                while 0 <= best[k] + step < len(grids[k]):
                    there = (*best[:k], best[k] + step, *best[k + 1 :])
                    if quality(there) <= quality(best):
                        break
                    best = there
    grow, gain, under_grow, under_gain = (grid[k] for grid, k in zip(grids, best))
    return (grow, gain), (under_grow, under_gain)


def joined(a: Gaussians, b: Gaussians) -> Gaussians:
    """Rows of a, then of b; the metadata of a, no extras."""
    return Gaussians(
        np.concatenate([a.means, b.means]),
        np.concatenate([a.quats, b.quats]),
        np.concatenate([a.scales, b.scales]),
        np.concatenate([a.opacities, b.opacities]),
        np.concatenate([a.sh0, b.sh0]),
        np.concatenate([a.shN, b.shN]),
        metadata=a.metadata,
    )
