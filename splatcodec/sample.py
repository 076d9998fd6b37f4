"""A synthetic scene for demonstrations and tests: no download, no licence, the same for a seed everywhere.

It has the statistics of trained scenes where they matter to a codec: textured surfaces covered by flat, anisotropic
Gaussians of log-normal size, needles, mostly opaque splats with a tail of faint ones, SH that fades with the band and
is correlated over colour and neighbours, quaternions of any length, a few floaters and a far background shell. It is
not a trained scene: no figure measured on it says how well scenes compress.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import ParameterError
from .gaussians import SH_C0, Gaussians

__all__ = ["sample_scene"]

Floats = npt.NDArray[np.float64]

_GROUND_HALF = 3.0
_TORUS_RADII = (0.9, 0.28)
_SPHERE_RADIUS = 0.55
_BOX_HALF = (0.45, 0.6, 0.35)
_SHELL_RADIUS = 40.0
# Standard deviation of SH coefficients by band, and how much of it neighbours share.
_BAND_SIGMA = (0.09, 0.05, 0.03)
_SMOOTH_SHARE = 0.8
_LIGHT = np.array([0.4, -0.8, -0.45])


@dataclass(frozen=True)
class _Surface:
    """Points of one surface with what a splat there looks like.

    Attributes:
        points, normals: (N, 3), y down.
        colours: (N, 3) 0..1 before shading.
        spacing: typical distance between neighbours.
    """

    points: Floats
    normals: Floats
    colours: Floats
    spacing: float


def sample_scene(num_gaussians: int = 100_000, seed: int = 1) -> Gaussians:
    """Make the synthetic scene.

    Args:
        num_gaussians: how many, 0 or more; the objects share them in fixed proportions.
        seed: other seeds give other random numbers, not other objects.

    Returns:
        Gaussians of SH degree 3 in the axes of trainers (x right, y down, z forward), in random order.

    Raises:
        ParameterError: a negative number of Gaussians.

    >>> scene = sample_scene(1000)
    >>> scene.num_gaussians, scene.sh_degree
    (1000, 3)
    """
    if num_gaussians < 0:
        raise ParameterError(f"{num_gaussians} Gaussians", field="num_gaussians")
    rng = np.random.default_rng(seed)
    makers = (_ground, _torus, _sphere, _box, _shell, _floaters)
    shares = np.array([0.30, 0.27, 0.18, 0.18, 0.067, 0.003])
    ends = np.rint(np.cumsum(shares) * num_gaussians).astype(int)
    counts = np.diff(ends, prepend=0)
    surfaces = [maker(int(count), rng) for maker, count in zip(makers, counts, strict=True)]
    points, normals, colours = (
        np.concatenate([getattr(surface, name) for surface in surfaces]) for name in ("points", "normals", "colours")
    )
    spacing = np.concatenate([np.full(len(surface.points), surface.spacing) for surface in surfaces])
    shading = 0.55 + 0.45 * np.clip(normals @ (_LIGHT / np.linalg.norm(_LIGHT)), -0.3, 1.0)
    colours = colours * shading[:, None] + rng.normal(0.0, 0.03, (num_gaussians, 3))
    depth = rng.normal(0.0, 0.1, num_gaussians) * spacing
    arrays = {
        "means": points + normals * depth[:, None],
        "quats": _quats(normals, rng),
        "scales": _log_scales(spacing, rng),
        "opacities": _logits(num_gaussians, rng),
        "sh0": ((colours - 0.5) / SH_C0)[:, None],
        "shN": _sh_rest(points, rng),
    }
    order = rng.permutation(num_gaussians)
    return Gaussians(
        **{name: array[order].astype(np.float32) for name, array in arrays.items()},
        metadata={"up": [0.0, -1.0, 0.0], "comments": [f"synthetic sample scene, seed {seed}"]},
    )


def _ground(count: int, rng: np.random.Generator) -> _Surface:
    x, z = rng.uniform(-_GROUND_HALF, _GROUND_HALF, (2, count))
    points = np.stack([x, 0.03 * np.sin(3.0 * x) * np.cos(2.0 * z), z], axis=1)
    checker = (np.floor(2.0 * x) + np.floor(2.0 * z)) % 2
    colours = np.where(checker[:, None] > 0, [0.75, 0.72, 0.66], [0.33, 0.42, 0.35])
    spacing = 2.0 * _GROUND_HALF / np.sqrt(max(count, 1))
    return _Surface(points, np.tile([0.0, -1.0, 0.0], (count, 1)), colours, spacing)


def _torus(count: int, rng: np.random.Generator) -> _Surface:
    large, small = _TORUS_RADII
    around, across = rng.uniform(0.0, 2.0 * np.pi, (2, count))
    ring = np.stack([np.cos(around), np.zeros(count), np.sin(around)], axis=1)
    normals = np.cos(across)[:, None] * ring - np.sin(across)[:, None] * [0.0, 1.0, 0.0]
    points = [0.0, -0.75, 0.0] + large * ring + small * normals
    stripe = 0.5 + 0.5 * np.tanh(6.0 * np.sin(9.0 * around + 2.0 * across))
    colours = stripe[:, None] * [0.9, 0.45, 0.2] + (1.0 - stripe[:, None]) * [0.95, 0.85, 0.6]
    return _Surface(points, normals, colours, 2.0 * np.pi * np.sqrt(large * small / max(count, 1)))


def _sphere(count: int, rng: np.random.Generator) -> _Surface:
    normals = _directions(count, rng)
    points = [1.5, -_SPHERE_RADIUS, 0.9] + _SPHERE_RADIUS * normals
    marble = 0.5 + 0.5 * np.sin(12.0 * normals[:, 1] + 5.0 * np.sin(6.0 * normals[:, 0] + 4.0 * normals[:, 2]))
    colours = marble[:, None] * [0.25, 0.45, 0.85] + (1.0 - marble[:, None]) * [0.9, 0.92, 0.95]
    return _Surface(points, normals, colours, _SPHERE_RADIUS * np.sqrt(4.0 * np.pi / max(count, 1)))


def _box(count: int, rng: np.random.Generator) -> _Surface:
    half = np.array(_BOX_HALF)
    face = rng.integers(0, 6, count)
    rows, axis, side = np.arange(count), face % 3, np.where(face < 3, 1.0, -1.0)
    unit = rng.uniform(-1.0, 1.0, (count, 3))
    unit[rows, axis] = side
    normals = np.zeros((count, 3))
    normals[rows, axis] = side
    points = [-1.6, -half[1], 0.7] + unit * half
    grain = 0.5 + 0.5 * np.sin(40.0 * unit[:, 1] + 6.0 * np.sin(5.0 * unit[:, 0] + 3.0 * unit[:, 2]))
    colours = grain[:, None] * [0.55, 0.33, 0.18] + (1.0 - grain[:, None]) * [0.75, 0.52, 0.3]
    area = 8.0 * (half[0] * half[1] + half[1] * half[2] + half[0] * half[2])
    return _Surface(points, normals, colours, np.sqrt(area / max(count, 1)))


def _shell(count: int, rng: np.random.Generator) -> _Surface:
    outward = _directions(count, rng)
    points = _SHELL_RADIUS * outward * rng.uniform(0.9, 1.2, (count, 1))
    height = (0.5 - 0.5 * outward[:, 1])[:, None]
    colours = height * [0.45, 0.65, 0.95] + (1.0 - height) * [0.85, 0.85, 0.8]
    return _Surface(points, -outward, colours, _SHELL_RADIUS * np.sqrt(4.0 * np.pi / max(count, 1)))


def _floaters(count: int, rng: np.random.Generator) -> _Surface:
    points = rng.uniform([-2.5, -2.5, -2.5], [2.5, -0.2, 2.5], (count, 3))
    return _Surface(points, _directions(count, rng), rng.uniform(0.2, 0.9, (count, 3)), 0.05)


def _directions(count: int, rng: np.random.Generator) -> Floats:
    vectors = rng.normal(size=(count, 3))
    lengths: Floats = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def _log_scales(spacing: Floats, rng: np.random.Generator) -> Floats:
    """Log-normal discs along the surface, thin across it, one in eight drawn out to a needle; z is the normal axis."""
    count = len(spacing)
    logs: Floats = np.log(spacing)[:, None] + rng.normal([-0.5, -0.5, -2.2], [0.45, 0.45, 0.7], (count, 3))
    logs += rng.normal(0.0, 0.35, (count, 1))
    needle = rng.random(count) < 0.125
    logs[needle] += [1.2, -0.8, 0.0]
    return logs


def _quats(normals: Floats, rng: np.random.Generator) -> Floats:
    """Rotations that turn z to the normal, spun around it and tilted a little; of any length and sign."""
    count = len(normals)
    # The shortest rotation from z to n is (1 + z.n, z x n); where n = -z it is half a turn around x.
    w, x, y = 1.0 + normals[:, 2], -normals[:, 1], normals[:, 0]
    x = np.where(w < 1e-6, 1.0, x)
    turn = np.stack([w, x, y, np.zeros(count)], axis=1)
    half = rng.uniform(0.0, np.pi, count)
    spin = np.stack([np.cos(half), np.zeros(count), np.zeros(count), np.sin(half)], axis=1)
    tilt = np.concatenate([np.ones((count, 1)), rng.normal(0.0, 0.05, (count, 3))], axis=1)
    product = _quat_product(_quat_product(turn, tilt), spin)
    product /= np.linalg.norm(product, axis=1, keepdims=True)
    length: Floats = np.exp(rng.normal(0.0, 0.3, (count, 1))) * np.where(rng.random((count, 1)) < 0.1, -1.0, 1.0)
    return product * length


def _quat_product(a: Floats, b: Floats) -> Floats:
    aw, ax, ay, az = a.T
    bw, bx, by, bz = b.T
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=1,
    )


def _logits(count: int, rng: np.random.Generator) -> Floats:
    """Mostly near-opaque, some half transparent, a tail of faint ones as trainers leave them (alpha above 1/200)."""
    kind = rng.random(count)
    center = np.where(kind < 0.6, 4.0, np.where(kind < 0.85, 0.5, -3.0))
    spread = np.where(kind < 0.6, 1.5, 1.3)
    return np.maximum(center + spread * rng.normal(size=count), -5.2)


def _sh_rest(points: Floats, rng: np.random.Generator) -> Floats:
    """Coefficients of degree 1 to 3: smooth over space, mostly grey, weaker with the band, with noise on top."""
    count = len(points)
    sigma = np.repeat(_BAND_SIGMA, (3, 5, 7))
    field = _smooth_field(points, len(sigma), rng)
    chroma = rng.normal(0.0, 0.25, (len(sigma), 3))
    smooth: Floats = field[:, :, None] * (1.0 + chroma)
    noise = rng.normal(size=(count, len(sigma), 1)) + 0.4 * rng.normal(size=(count, len(sigma), 3))
    rest: Floats = sigma[:, None] * (_SMOOTH_SHARE * smooth + np.sqrt(1.0 - _SMOOTH_SHARE**2) * noise)
    return rest


def _smooth_field(points: Floats, channels: int, rng: np.random.Generator, waves: int = 3) -> Floats:
    """(N, channels): sums of sinusoids of unit variance."""
    directions = rng.normal(0.0, 1.5, (3, channels * waves))
    phases = rng.uniform(0.0, 2.0 * np.pi, channels * waves)
    field: Floats = np.sin(points @ directions + phases).reshape(len(points), channels, waves)
    total: Floats = field.sum(axis=2) * np.sqrt(2.0 / waves)
    return total
