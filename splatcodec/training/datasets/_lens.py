"""Lenses: intrinsics with the polynomial distortion of OpenCV and COLMAP, and the pinhole camera without it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...errors import FormatError

__all__ = ["Lens"]

_EDGE_SAMPLES = 64
_ITERATIONS = 50
# Undistorted pictures keep the pixel size at the centre, but become no larger than this many times the original.
_MAX_GROWTH = 1.5
_MIN_KEPT = 0.25


@dataclass(frozen=True)
class Lens:
    """Intrinsics in pixels (pixel centres at half integers), with x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6) + tangential.

    Attributes:
        width, height: picture size in pixels.
        fx, fy, cx, cy: focal lengths and principal point, pixels.
        k1, k2, k3: radial distortion.
        p1, p2: tangential distortion, as OpenCV has them.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0

    def check(self) -> None:
        """Raise FormatError if no camera can be like this."""
        if self.width < 1 or self.height < 1:
            raise FormatError(f"a camera of {self.width} x {self.height} pixels")
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not all(math.isfinite(value) for value in numbers) or not (self.fx > 0 and self.fy > 0):
            raise FormatError("a camera whose focal lengths are not positive, or whose numbers are not finite")
        if max(self.fx, self.fy) > 1e9 or max(abs(self.cx), abs(self.cy)) > 1e9:
            raise FormatError("a camera whose intrinsics are absurdly large")

    @property
    def distortion(self) -> tuple[float, float, float, float, float]:
        """k1, k2, p1, p2, k3."""
        return self.k1, self.k2, self.p1, self.p2, self.k3

    @property
    def distorts(self) -> bool:
        """Whether there is any distortion."""
        return any(self.distortion)

    @property
    def K(self) -> npt.NDArray[np.float64]:
        """(3, 3) float64 intrinsics."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def scaled(self, width: int, height: int) -> Lens:
        """The same lens in a picture of another size."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy
        )

    def distort(
        self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Directions x/z, y/z as the lens bends them (any shape)."""
        r2 = x * x + y * y
        radial = 1.0 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        xy = x * y
        return (
            x * radial + 2.0 * self.p1 * xy + self.p2 * (r2 + 2.0 * x * x),
            y * radial + self.p1 * (r2 + 2.0 * y * y) + 2.0 * self.p2 * xy,
        )

    def undistort(
        self, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The inverse of `distort`, by fixed-point iteration.

        Raises:
            FormatError: the iteration does not arrive: the lens folds the picture over.
        """
        x, y = u.copy(), v.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(_ITERATIONS):
                bent_x, bent_y = self.distort(x, y)
                x, y = x + (u - bent_x), y + (v - bent_y)
            bent_x, bent_y = self.distort(x, y)
            error = np.maximum(np.abs(bent_x - u) * self.fx, np.abs(bent_y - v) * self.fy)
        if not (error < 0.5).all():
            raise FormatError(f"lens distortion {self.distortion} cannot be taken out of the whole picture")
        return x, y

    def undistorted(self) -> Lens:
        """A lens without distortion, of the same focal lengths, whose picture lies within this one's everywhere.

        Raises:
            FormatError: hardly anything of the picture would be left.
        """
        if not self.distorts:
            return self
        along_x = np.linspace(0.0, self.width, _EDGE_SAMPLES)
        along_y = np.linspace(0.0, self.height, _EDGE_SAMPLES)
        edges = {}
        for name, px, py in (
            ("left", np.zeros(_EDGE_SAMPLES), along_y),
            ("right", np.full(_EDGE_SAMPLES, float(self.width)), along_y),
            ("top", along_x, np.zeros(_EDGE_SAMPLES)),
            ("bottom", along_x, np.full(_EDGE_SAMPLES, float(self.height))),
        ):
            edges[name] = self.undistort((px - self.cx) / self.fx, (py - self.cy) / self.fy)
        left, right = edges["left"][0].max() * self.fx, edges["right"][0].min() * self.fx
        top, bottom = edges["top"][1].max() * self.fy, edges["bottom"][1].min() * self.fy
        width, height = math.floor(right - left + 1e-6), math.floor(bottom - top + 1e-6)
        width, height = min(width, int(_MAX_GROWTH * self.width)), min(height, int(_MAX_GROWTH * self.height))
        if width < _MIN_KEPT * self.width or height < _MIN_KEPT * self.height:
            raise FormatError(f"lens distortion {self.distortion} leaves {width} x {height} pixels of the picture")
        # Centred on what there is, so that growth that was cut is cut on both sides.
        spare_x, spare_y = 0.5 * (right - left - width), 0.5 * (bottom - top - height)
        return Lens(width, height, self.fx, self.fy, -(left + spare_x), -(top + spare_y))
