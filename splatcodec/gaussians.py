"""Gaussians: the validated arrays of one scene, in the raw form that trainers keep.

Scales are natural logs, opacities are logits, quaternions are w, x, y, z and need not be normalised, colour is
spherical-harmonics coefficients with display colour = 0.5 + C0 * sh0. The coordinate frame is a tag, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ParameterError

__all__ = ["MAX_SH_DEGREE", "SH_C0", "CleanReport", "Gaussians", "num_sh_coefficients", "unit_quats"]

SH_C0 = 0.28209479177387814
MAX_SH_DEGREE = 3
# Logits beyond this are opaque (or empty) to any float32 renderer; infinite ones are clamped to it.
_MAX_LOGIT = 40.0
# A scale below exp(-40) is a point on every screen; -inf (a flat splat's missing axis) is clamped to it.
_MIN_LOG_SCALE = -40.0


def num_sh_coefficients(sh_degree: int) -> int:
    """Number K of SH basis functions up to and including `sh_degree`: (sh_degree + 1)**2."""
    return (sh_degree + 1) ** 2


@dataclass(frozen=True)
class CleanReport:
    """What `Gaussians.cleaned` changed, as counts of Gaussians.

    Attributes:
        dropped: rows with NaN, infinite positions or colours, +inf scales or infinite quaternions.
        clamped_opacities: infinite logits set to +-40.
        clamped_scales: log scales below -40 (usually -inf) set to -40.
        replaced_quats: zero quaternions replaced by the identity.
    """

    dropped: int = 0
    clamped_opacities: int = 0
    clamped_scales: int = 0
    replaced_quats: int = 0

    def __bool__(self) -> bool:
        return bool(self.dropped or self.clamped_opacities or self.clamped_scales or self.replaced_quats)

    def __str__(self) -> str:
        parts = [
            (self.dropped, "with non-finite values dropped"),
            (self.clamped_opacities, "infinite opacities clamped"),
            (self.clamped_scales, "vanishing scales clamped"),
            (self.replaced_quats, "zero quaternions replaced by the identity"),
        ]
        return "; ".join(f"{count} {what}" for count, what in parts if count) or "nothing changed"


def _as_array(name: str, value: Any, shape: tuple[int | None, ...]) -> npt.NDArray[np.float32]:
    """Convert to a C-contiguous float32 array of `shape` (None = any length); torch tensors are accepted."""
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu().numpy()
    try:
        with np.errstate(over="ignore"):  # a double beyond float32 becomes inf, which `cleaned` then reports
            array = np.ascontiguousarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{name} cannot be read as a float32 array: {error}") from None
    if array.ndim != len(shape) or any(want is not None and have != want for have, want in zip(array.shape, shape)):
        wanted = ", ".join("N" if n is None else str(n) for n in shape)
        raise ParameterError(f"{name} has shape {array.shape}, expected ({wanted})", field=name)
    return array


@dataclass(frozen=True, eq=False)
class Gaussians:
    """The arrays of one scene. Shapes and dtypes are checked and converted when it is made.

    Args:
        means: (N, 3) float32, world units.
        quats: (N, 4) float32, w, x, y, z, any norm (zero allowed, see `cleaned`).
        scales: (N, 3) float32, natural log of the standard deviation (-inf allowed).
        opacities: (N,) float32, logit (+-inf allowed).
        sh0: (N, 1, 3) float32, SH coefficient of degree 0, per channel.
        shN: (N, K - 1, 3) float32, SH coefficients of degree 1 to 3, RGB innermost; K = (sh_degree + 1)**2.
            None means degree 0.
        extras: further per-Gaussian values by name: arrays of any numeric dtype with N rows.
        metadata: JSON-able facts about the scene, by name. Known names: `frame` (such as "RDF"), `antialiased`
            (bool), `up` (3 numbers), `background` (3 numbers, 0..1), `camera` (object), `unit_m` (metres a unit),
            `colour_space`, `comments` (list of text).

    Raises:
        ParameterError: a shape or dtype does not fit, or the number of SH coefficients is not 0, 3, 8 or 15.

    >>> g = Gaussians.empty(sh_degree=1)
    >>> g.num_gaussians, g.sh_degree, g.shN.shape
    (0, 1, (0, 3, 3))
    """

    means: npt.NDArray[np.float32]
    quats: npt.NDArray[np.float32]
    scales: npt.NDArray[np.float32]
    opacities: npt.NDArray[np.float32]
    sh0: npt.NDArray[np.float32]
    shN: npt.NDArray[np.float32] = None  # type: ignore[assignment]
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        means = _as_array("means", self.means, (None, 3))
        n = len(means)
        arrays = {
            "means": means,
            "quats": _as_array("quats", self.quats, (n, 4)),
            "scales": _as_array("scales", self.scales, (n, 3)),
            "opacities": _as_array("opacities", self.opacities, (n,)),
            "sh0": _as_array("sh0", self.sh0, (n, 1, 3)),
            "shN": _as_array("shN", np.zeros((n, 0, 3)) if self.shN is None else self.shN, (n, None, 3)),
        }
        if arrays["shN"].shape[1] not in (0, 3, 8, 15):
            raise ParameterError(f"shN has {arrays['shN'].shape[1]} coefficients, expected 0, 3, 8 or 15", field="shN")
        extras = {}
        for name, value in self.extras.items():
            array = np.ascontiguousarray(value)
            if array.ndim < 1 or len(array) != n or array.dtype.kind not in "fiu":
                raise ParameterError(
                    f"extra {name!r} has shape {array.shape} and dtype {array.dtype}, expected {n} rows of numbers"
                )
            extras[name] = array
        for name, value in arrays.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "extras", extras)
        object.__setattr__(self, "metadata", dict(self.metadata))

    @classmethod
    def empty(cls, sh_degree: int = 0) -> Gaussians:
        """A scene of no Gaussians."""
        return cls(
            means=np.zeros((0, 3), np.float32),
            quats=np.zeros((0, 4), np.float32),
            scales=np.zeros((0, 3), np.float32),
            opacities=np.zeros(0, np.float32),
            sh0=np.zeros((0, 1, 3), np.float32),
            shN=np.zeros((0, num_sh_coefficients(sh_degree) - 1, 3), np.float32),
        )

    def __len__(self) -> int:
        return len(self.means)

    @property
    def num_gaussians(self) -> int:
        """Number N of Gaussians."""
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """Highest SH degree, 0 to 3."""
        return {0: 0, 3: 1, 8: 2, 15: 3}[self.shN.shape[1]]

    @property
    def array_bytes(self) -> int:
        """Bytes of the float arrays, without extras."""
        return 4 * self.num_gaussians * (14 + 3 * self.shN.shape[1])

    def replaced(self, **changes: Any) -> Gaussians:
        """A copy with some arrays replaced; checked again."""
        return replace(self, **changes)

    def selected(self, index: npt.NDArray[Any] | slice) -> Gaussians:
        """The Gaussians at `index` (integers, booleans or a slice), in that order, with their extras."""
        return replace(
            self,
            means=self.means[index],
            quats=self.quats[index],
            scales=self.scales[index],
            opacities=self.opacities[index],
            sh0=self.sh0[index],
            shN=self.shN[index],
            extras={name: value[index] for name, value in self.extras.items()},
        )

    def with_sh_degree(self, sh_degree: int) -> Gaussians:
        """A copy with bands above `sh_degree` dropped, or missing bands filled with zeros.

        Raises:
            ParameterError: `sh_degree` is not in 0..3.
        """
        if not 0 <= sh_degree <= MAX_SH_DEGREE:
            raise ParameterError(f"SH degree {sh_degree}, expected 0 to {MAX_SH_DEGREE}")
        want = num_sh_coefficients(sh_degree) - 1
        have = self.shN.shape[1]
        if want == have:
            return self
        shN = np.zeros((self.num_gaussians, want, 3), np.float32)
        shN[:, : min(want, have)] = self.shN[:, :want]
        return replace(self, shN=shN)

    def normalized_quats(self) -> npt.NDArray[np.float32]:
        """(N, 4) unit quaternions; zero quaternions give the identity, as renderers treat them."""
        return unit_quats(self.quats)

    def alphas(self) -> npt.NDArray[np.float32]:
        """(N,) opacities after the sigmoid, 0..1."""
        x = self.opacities.astype(np.float64)
        with np.errstate(over="ignore"):
            return (1.0 / (1.0 + np.exp(-x))).astype(np.float32)

    def cleaned(self) -> tuple[Gaussians, CleanReport]:
        """Make every value finite, as a renderer would see it, and count what changed.

        Rows that cannot be drawn (NaN anywhere, infinite position, colour or quaternion, +inf scale) are dropped;
        infinite opacities, vanishing scales and zero quaternions are replaced by what they mean.
        """
        finite = np.isfinite(self.means).all(1) & np.isfinite(self.quats).all(1)
        finite &= np.isfinite(self.sh0).all((1, 2)) & np.isfinite(self.shN).all((1, 2))
        finite &= ~np.isnan(self.opacities) & (self.scales < np.inf).all(1)
        dropped = int(len(finite) - finite.sum())
        scene = self.selected(finite) if dropped else self
        infinite = np.isinf(scene.opacities)
        tiny = (scene.scales < _MIN_LOG_SCALE).any(1)
        zero = (scene.quats == 0).all(1)
        report = CleanReport(dropped, int(infinite.sum()), int(tiny.sum()), int(zero.sum()))
        if not report:
            return self, report
        quats = scene.quats.copy()
        quats[zero] = (1.0, 0.0, 0.0, 0.0)
        opacities = np.where(infinite, np.sign(scene.opacities) * np.float32(_MAX_LOGIT), scene.opacities)
        scales = np.maximum(scene.scales, np.float32(_MIN_LOG_SCALE))
        return replace(scene, quats=quats, opacities=opacities, scales=scales), report


def unit_quats(quats: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(N, 4) quaternions of norm one; zero ones give the identity."""
    wide = quats.astype(np.float64)
    # Scale by the largest component first so that neither huge nor tiny values lose the norm.
    largest = np.abs(wide).max(axis=1, initial=0.0, keepdims=True)
    wide /= np.where(largest > 0, largest, 1.0)
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    wide /= np.where(norm > 0, norm, 1.0)
    wide[largest[:, 0] == 0] = (1.0, 0.0, 0.0, 0.0)
    return wide.astype(np.float32)
