"""What changes while a run goes on, as functions of its progress 0..1, so that a run of any length is the same run."""

from __future__ import annotations

import math

__all__ = ["exponential", "growth", "pace", "resolution_factor", "rounds", "sh_degree_at", "stride"]


def exponential(start: float, end: float, progress: float) -> float:
    """From `start` to `end`, by the same factor in every step.

    >>> exponential(1.0, 0.01, 0.5)
    0.1
    """
    return round(start * math.exp(progress * math.log(end / start)), 15)


def growth(start: int, end: int, progress: float, power: float) -> int:
    """How many Gaussians there may be: start + (t^a - 1) / (100^a - 1) (end - start), t = 100 progress.

    The budget curve of Turbo-GS (2024); a power below 1 grows early.

    >>> growth(1000, 5000, 0.0, 0.5), growth(1000, 5000, 1.0, 0.5)
    (1000, 5000)
    """
    t = max(1.0, 100.0 * min(progress, 1.0))
    return start + round((t**power - 1.0) / (100.0**power - 1.0) * (end - start))


def pace(iterations: int) -> float:
    """How much faster a run of so many steps has to learn than one of 30,000: the fourth root, 1 to 2.

    >>> round(pace(2500), 2), pace(100), pace(100_000)
    (1.86, 2.0, 1.0)
    """
    return min(2.0, max(1.0, (30_000 / iterations) ** 0.25))


def stride(larger_side_px: int) -> float:
    """How much further positions may move a step in small pictures, whose pixels are large: the square root, 1 to 2.

    >>> stride(200), stride(1600)
    (2.0, 1.0)
    """
    return min(2.0, max(1.0, (800 / larger_side_px) ** 0.5))


def rounds(progress: float, start: float, every: float) -> int:
    """How many are due of what is done at `start` and then every so often.

    >>> [rounds(p, 0.6, 0.1) for p in (0.59, 0.6, 0.7, 0.75)]
    [0, 1, 2, 2]
    """
    return int((progress - start) / every + 1e-9) + 1 if progress >= start else 0


def sh_degree_at(progress: float, sh_degree: int, warm_up: float) -> int:
    """Bands in use: one more after every equal part of the share `warm_up` of the run.

    >>> [sh_degree_at(p, 3, 0.3) for p in (0.0, 0.11, 0.25, 0.3)]
    [0, 1, 2, 3]
    """
    if warm_up <= 0 or progress >= warm_up:
        return sh_degree
    return min(sh_degree, int(progress / warm_up * sh_degree + 1e-9))


def resolution_factor(progress: float, coarse: float, until: float) -> float:
    """How much smaller the pictures are: from `coarse` down to 1 at the share `until` of the run, by powers of 2."""
    factor = 1.0
    if progress < until:
        levels = max(0, round(math.log2(coarse)))
        left = levels - int(progress / until * levels)
        factor = float(2**left)
    return factor
