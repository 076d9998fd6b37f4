"""No densification: for scenes that have their Gaussians already."""

from __future__ import annotations

from .base import Strategy

__all__ = ["STRATEGY"]


class Fixed(Strategy):
    """Gaussians are neither added nor removed, but by the method."""

    name = "none"
    start = stop = interval = 1.0


STRATEGY = Fixed
