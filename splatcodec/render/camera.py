"""Cameras, and the choice of views a scene is judged by.

Poses are chosen with + - * / sqrt and rounded sines only, so that a scene and a seed give the same cameras everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import Gaussians

__all__ = [
    "DEFAULT_UP",
    "Camera",
    "SceneExtent",
    "check_cameras",
    "encoder_cameras",
    "evaluation_cameras",
    "look_at",
    "scene_extent",
    "world_up",
]

#: Up in the frame that most trainers write (x right, y down, z forward), used where nothing says otherwise.
DEFAULT_UP = (0.0, -1.0, 0.0)
FIELD_OF_VIEW_DEG = 50.0
_TAN_25_DEG = 0.4663076581549986
_SIN_25_DEG = 0.42261826174069944

# Different first words of the seed keep the evaluation views and the encoder's own views apart.
_EVALUATION_STREAM = 0x45564C
_ENCODER_STREAM = 0x454E43
_CHECK_STREAM = 0x43484B

# The extent is estimated from at most this many Gaussians (every k-th), blots from fewer.
_MAX_EXTENT_SAMPLE = 1 << 19
_MAX_BLOT_SAMPLE = 1 << 14
# Background: Gaussians further from the centre than this many median radii ...
_OUTSIDE_RADII = 6.0
# ... and at least this many of them, or this share of all: a few stray Gaussians are not a background.
_OUTSIDE_COUNT = 16
_OUTSIDE_SHARE = 1.0 / 2000.0
# A view is a blot if half of what it sees is wider than this share of the picture (one standard deviation).
_BLOT_SHARE = 1.0 / 20.0
_MAX_ATTEMPTS = 8
_NEAR_SHARE = 0.01

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera in OpenCV axes: x right, y down, z forward; pixel centres at half integers.

    Args:
        viewmat: (4, 4) float64, world to camera, a rigid motion.
        K: (3, 3) float64, intrinsics in pixels, without skew.
        width: picture width in pixels.
        height: picture height in pixels.
        near: Gaussians whose centre is not further than this in front of the camera are not drawn; world units.

    Raises:
        ParameterError: wrong shapes, non-finite values, an empty picture, or focal lengths or `near` not positive.
    """

    viewmat: npt.NDArray[np.float64]
    K: npt.NDArray[np.float64]
    width: int
    height: int
    near: float = 0.01

    def __post_init__(self) -> None:
        for name, shape in (("viewmat", (4, 4)), ("K", (3, 3))):
            matrix = np.array(getattr(self, name), np.float64)
            if matrix.shape != shape or not np.isfinite(matrix).all():
                raise ParameterError(f"{name} must be {shape[0]}x{shape[1]} finite numbers", field=name)
            matrix.flags.writeable = False
            object.__setattr__(self, name, matrix)
        object.__setattr__(self, "width", int(self.width))
        object.__setattr__(self, "height", int(self.height))
        object.__setattr__(self, "near", float(self.near))
        if self.width < 1 or self.height < 1:
            raise ParameterError(f"picture of {self.width} x {self.height} pixels")
        if not (self.K[0, 0] > 0 and self.K[1, 1] > 0 and 0 < self.near < math.inf):
            raise ParameterError("focal lengths and near must be positive")

    @property
    def focal_px(self) -> tuple[float, float]:
        """Focal lengths fx, fy in pixels."""
        return float(self.K[0, 0]), float(self.K[1, 1])

    @property
    def principal_point_px(self) -> tuple[float, float]:
        """Principal point cx, cy in pixels."""
        return float(self.K[0, 2]), float(self.K[1, 2])

    @property
    def center(self) -> Vector:
        """(3,) float64: the camera's position in the world."""
        r, t = self.viewmat[:3, :3], self.viewmat[:3, 3]
        # Cramer's rule, so that a slightly rounded rotation still gives the point that maps to the origin.
        columns = (r[:, 0], r[:, 1], r[:, 2])
        det = _dot(columns[0], _cross(columns[1], columns[2]))
        return np.array([-_dot(t, _cross(columns[(k + 1) % 3], columns[(k + 2) % 3])) / det for k in range(3)])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description; `Camera(**description)` makes the camera again."""
        return {
            "viewmat": self.viewmat.tolist(),
            "K": self.K.tolist(),
            "width": self.width,
            "height": self.height,
            "near": self.near,
        }


def _dot(a: Vector, b: Vector) -> float:
    return float(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def _cross(a: Vector, b: Vector) -> Vector:
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _normalized(a: Vector) -> Vector:
    """`a` at unit length, or zero if it has none; safe for very long and very short vectors."""
    largest = float(np.abs(a).max())
    if not 0 < largest < math.inf:
        return np.zeros(3)
    a = a / largest
    return a / math.sqrt(_dot(a, a))


def _perpendicular(a: Vector) -> Vector:
    """A unit vector at right angles to the unit vector `a`."""
    axis = np.zeros(3)
    axis[int(np.argmin(np.abs(a)))] = 1.0
    return _normalized(_cross(a, axis))


def look_at(
    position: npt.ArrayLike,
    target: npt.ArrayLike,
    up: npt.ArrayLike = DEFAULT_UP,
    *,
    width: int = 512,
    height: int = 512,
    fov_deg: float = FIELD_OF_VIEW_DEG,
    near: float = 0.01,
) -> Camera:
    """A camera at `position` that sees `target` in the middle of its picture.

    Args:
        position: (3,) world units.
        target: (3,) world units; where it equals `position` the camera looks along world z.
        up: (3,) direction that points up in the picture; any other is taken if it is zero or along the view.
        fov_deg: field of view over the larger side of the picture, degrees, 0 to 180 exclusive.

    Raises:
        ParameterError: as `Camera`.

    >>> camera = look_at((0, 0, -2), (0, 0, 0), width=64, height=64)
    >>> camera.viewmat[:3, 3].tolist()
    [0.0, 0.0, 2.0]
    """
    if not 0 < fov_deg < 180:
        raise ParameterError(f"field of view of {fov_deg} degrees", field="fov_deg")
    eye = np.asarray(position, np.float64)
    forward = _normalized(np.asarray(target, np.float64) - eye)
    if not forward.any():
        forward = np.array([0.0, 0.0, 1.0])
    up_direction = _normalized(np.asarray(up, np.float64))
    right = _cross(forward, up_direction)
    right = _normalized(right) if _dot(right, right) > 1e-8 else _perpendicular(forward)
    down = _cross(forward, right)
    viewmat = np.eye(4)
    for row, axis in enumerate((right, down, forward)):
        viewmat[row, :3] = axis
        viewmat[row, 3] = -_dot(axis, eye) + 0.0
    tangent = _TAN_25_DEG if fov_deg == FIELD_OF_VIEW_DEG else math.tan(math.radians(fov_deg) / 2)
    focal = 0.5 * max(width, height) / tangent
    K = np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])
    return Camera(viewmat, K, width, height, near)


def world_up(gaussians: Gaussians, up: npt.ArrayLike | None = None) -> tuple[Vector, bool]:
    """The scene's up direction, (3,) float64 of unit length, and whether it is only a guess.

    A given `up` wins over the scene's `metadata["up"]`; without either it is `DEFAULT_UP`, a guess.

    Raises:
        ParameterError: a given or stored `up` is not a direction.
    """
    value = gaussians.metadata.get("up") if up is None else up
    if value is None:
        return np.array(DEFAULT_UP), True
    try:
        vector = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        vector = np.zeros(0)
    if vector.shape != (3,) or not np.isfinite(vector).all() or not vector.any():
        raise ParameterError(f"up must be 3 numbers, not all zero, not {value!r}", field="up")
    return _normalized(vector), False


@dataclass(frozen=True, eq=False)
class SceneExtent:
    """Where a scene is.

    Attributes:
        center: (3,) float64, middle of the opacity-weighted 5 to 95 % box of all but the background, world units.
        half_size: (3,) float64, half the box's sides, world units.
        radius: half the box's diagonal, world units; never zero.
        median_radius: opacity-weighted median distance from the median position, world units.
        outside: (M, 3) float64, unit directions from the centre to background Gaussians (further than six median
            radii from the median position); empty where the scene has no background.
    """

    center: Vector
    half_size: Vector
    radius: float
    median_radius: float
    outside: npt.NDArray[np.float64]


def _weighted_quantiles(values: npt.NDArray[Any], weights: Vector, shares: Sequence[float]) -> list[float]:
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    index = np.searchsorted(cumulative, np.asarray(shares) * cumulative[-1])
    return [float(values[order[min(int(k), len(order) - 1)]]) for k in index]


def _every(count: int, limit: int) -> slice:
    return slice(None, None, max(1, -(-count // limit)))


def scene_extent(gaussians: Gaussians) -> SceneExtent:
    """Box, radius and background of a scene; an empty scene has radius 1 at the origin. Unusable rows are ignored."""
    scene = gaussians.cleaned()[0]
    if not len(scene):
        return SceneExtent(np.zeros(3), np.zeros(3), 1.0, 0.0, np.zeros((0, 3)))
    scene = scene.selected(_every(len(scene), _MAX_EXTENT_SAMPLE))
    weights = scene.alphas().astype(np.float64)
    if not weights.sum() > 0:
        weights = np.ones(len(scene))
    # Robust first: medians do not feel a background. What lies far outside is then not part of the box.
    middle = [_weighted_quantiles(scene.means[:, axis], weights, (0.5,))[0] for axis in range(3)]
    distances = _distances(scene.means, np.array(middle))
    median_radius = _weighted_quantiles(distances, weights, (0.5,))[0]
    far = (distances > _OUTSIDE_RADII * median_radius) & (distances > 0)
    if np.count_nonzero(far) < max(_OUTSIDE_COUNT, _OUTSIDE_SHARE * len(scene)) or not weights[~far].any():
        far[:] = False
    low_high = [_weighted_quantiles(scene.means[~far, axis], weights[~far], (0.05, 0.95)) for axis in range(3)]
    low, high = np.array(low_high).T
    center, half_size = 0.5 * (low + high), 0.5 * (high - low)
    # A single Gaussian has no box: its own size counts then. The last term is what float32 positions can resolve.
    log_size = _weighted_quantiles(scene.scales.max(axis=1), weights, (0.5,))[0]
    radius = max(
        math.sqrt(_dot(half_size, half_size)),
        3.0 * _rounded(math.exp(min(log_size, 80.0))),
        1e-7 * float(np.abs(center).max()),
    )
    if not radius > 1e-30:
        radius = 1.0
    outside = (scene.means[far].astype(np.float64) - center) / _distances(scene.means[far], center)[:, None]
    return SceneExtent(center, half_size, radius, median_radius, outside)


def _distances(means: npt.NDArray[np.float32], center: Vector) -> Vector:
    offsets = means.astype(np.float64) - center
    return np.asarray(np.sqrt(offsets[:, 0] ** 2 + offsets[:, 1] ** 2 + offsets[:, 2] ** 2))


def _rounded(value: float) -> float:
    """`value` at float32 precision: takes the last-digit differences of maths libraries away."""
    return float(np.float32(value))


class _ViewChooser:
    """Proposes views of one scene from one stream of random numbers and replaces blots."""

    def __init__(self, gaussians: Gaussians, stream: int, seed: int, size_px: int, up: npt.ArrayLike | None) -> None:
        if size_px < 1:
            raise ParameterError(f"pictures of {size_px} pixels", field="size_px")
        if seed < 0:
            raise ParameterError(f"seed {seed}, expected 0 or more", field="seed")
        scene = gaussians.cleaned()[0]
        self.extent = scene_extent(scene)
        self.up = world_up(gaussians, up)[0]
        self.east = _perpendicular(self.up)
        self.north = _cross(self.up, self.east)
        self.size_px = size_px
        self.stream = (stream, seed)
        self.distance = self.extent.radius / _SIN_25_DEG  # the whole sphere around the box is in the picture
        sample = scene.selected(_every(len(scene), _MAX_BLOT_SAMPLE))
        self.offsets = sample.means.astype(np.float64) - self.extent.center
        # The width of a surface element: the geometric mean of the two larger axes.
        log_sizes = (
            np.sort(sample.scales, axis=1)[:, 1:].astype(np.float64).mean(axis=1) if len(sample) else np.zeros(0)
        )
        self.sizes = np.exp(np.minimum(log_sizes, 80.0)).astype(np.float32)
        self.weights = sample.alphas().astype(np.float64)
        # A background looks the same from everywhere inside: its size says nothing about standing too near.
        far = _distances(sample.means, self.extent.center) > _OUTSIDE_RADII * self.extent.median_radius
        self.judged = ~far if len(self.extent.outside) else np.ones(len(sample), np.bool_)

    def random(self, *key: int) -> np.random.Generator:
        """Every view has its own numbers, so that replacing one does not move the others."""
        return np.random.default_rng([*self.stream, *key])

    def direction(self, turns: float, sine: float) -> Vector:
        """Unit vector at `turns` (0..1) around the up axis and elevation asin(`sine`)."""
        angle = 2.0 * math.pi * turns
        across = math.sqrt(max(0.0, 1.0 - sine * sine))
        east, north = round(math.cos(angle), 9), round(math.sin(angle), 9)
        return across * (east * self.east + north * self.north) + sine * self.up

    def camera(self, offset: Vector, target_offset: Vector) -> Camera:
        center = self.extent.center
        return look_at(
            center + offset,
            center + target_offset,
            self.up,
            width=self.size_px,
            height=self.size_px,
            near=_NEAR_SHARE * self.extent.radius,
        )

    def sees_too_little(self, offset: Vector, target_offset: Vector) -> bool:
        """Whether the view is empty, or its median projected Gaussian (of all but the background) is a blot."""
        if not len(self.sizes):
            return False
        forward = _normalized(target_offset - offset)
        local = self.offsets - offset
        depth = local[:, 0] * forward[0] + local[:, 1] * forward[1] + local[:, 2] * forward[2]
        squared = local[:, 0] ** 2 + local[:, 1] ** 2 + local[:, 2] ** 2
        # Within the cone through the middle of the picture's sides.
        seen = (depth > _NEAR_SHARE * self.extent.radius) & (squared <= depth * depth * (1.0 + _TAN_25_DEG**2))
        seen &= self.weights > 0
        if not seen.any():
            return True
        seen &= self.judged
        if not seen.any():
            return False
        with np.errstate(over="ignore"):
            share = self.sizes[seen] / (depth[seen] * (2.0 * _TAN_25_DEG))
        return _weighted_quantiles(share, self.weights[seen], (0.5,))[0] > _BLOT_SHARE

    def around(
        self, turns: float, sine: float, factor: float, aim: float, sines: tuple[float, float], *key: int
    ) -> Camera:
        """A view from outside looking in, from `factor` times the distance at which everything is in the picture.

        `aim` is how far from the centre the camera may look, as a share of the box. If the view is a blot, others
        from further and further away are tried; a scene that is coarse from everywhere keeps its first view.
        """
        rng = self.random(*key)
        first = None
        for attempt in range(_MAX_ATTEMPTS):
            offset = factor * self.distance * self.direction(turns, sine)
            target = aim * self.extent.half_size * (2.0 * rng.random(3) - 1.0)
            first = first or (offset, target)
            if not self.sees_too_little(offset, target):
                return self.camera(offset, target)
            turns = rng.random()
            sine = sines[0] + (sines[1] - sines[0]) * rng.random()
            if attempt % 2:
                factor = factor * 1.25
        assert first is not None
        return self.camera(*first)

    def outward(self, share: float, reach: tuple[float, float], *key: int) -> Camera | None:
        """A view from just outside the box towards the background; `share` (0..1) picks the direction."""
        rng = self.random(*key)
        outside = self.extent.outside
        east = outside[:, 0] * self.east[0] + outside[:, 1] * self.east[1] + outside[:, 2] * self.east[2]
        north = outside[:, 0] * self.north[0] + outside[:, 1] * self.north[1] + outside[:, 2] * self.north[2]
        # Background directions in order around the up axis: grows with the angle, needs no trigonometry.
        east = east / np.maximum(np.abs(east) + np.abs(north), 1e-30)
        turn = np.where(north >= 0, 1.0 - east, 3.0 + east)
        order = np.argsort(turn.astype(np.float32), kind="stable")
        for attempt in range(_MAX_ATTEMPTS):
            pick = outside[order[min(int(share * len(order)), len(order) - 1)]]
            side = _normalized(pick + 0.5 * (2.0 * rng.random(3) - 1.0))
            offset = (
                (reach[0] + (reach[1] - reach[0]) * rng.random()) * (1.0 + 0.25 * attempt) * self.extent.radius * side
            )
            target = offset + self.extent.radius * pick
            if not self.sees_too_little(offset, target):
                return self.camera(offset, target)
            share = rng.random()
        return None


def evaluation_cameras(
    gaussians: Gaussians,
    *,
    num_views: int = 24,
    size_px: int = 512,
    seed: int = 0,
    up: npt.ArrayLike | None = None,
) -> list[Camera]:
    """The views that a scene and its decoded copy are compared by, always taken from the original scene.

    Square pictures of 50 degrees. Half of the views stand around the opacity-weighted 5 to 95 % box and look in, a
    quarter do so from half that distance, a quarter look outward at the background where the scene has one (Gaussians
    further than six median radii) and stand around otherwise. A view that sees nothing, or whose median projected
    Gaussian is a blot (it stands nearer than a training camera could have), is replaced.

    Args:
        gaussians: the scene, at any world scale and origin; rows that cannot be drawn are ignored.
        num_views: how many cameras, 24 for published figures.
        size_px: width and height of the pictures.
        seed: other seeds give other views.
        up: (3,) world up; `metadata["up"]` or a guess (see `world_up`) where it is not given.

    Returns:
        `num_views` cameras: those around, then the near ones, then the outward ones.

    Raises:
        ParameterError: a negative count or seed, an empty picture or an `up` that is no direction.
    """
    return _comparison_cameras(_EVALUATION_STREAM, gaussians, num_views, size_px, seed, up)


def check_cameras(
    gaussians: Gaussians,
    *,
    num_views: int = 12,
    size_px: int = 512,
    seed: int = 0,
    up: npt.ArrayLike | None = None,
) -> list[Camera]:
    """Views that an encoder judges its own trials by: placed as `evaluation_cameras`, and never one of them.

    Args and errors are those of `evaluation_cameras`; the random numbers are others for every seed.
    """
    return _comparison_cameras(_CHECK_STREAM, gaussians, num_views, size_px, seed, up)


def _comparison_cameras(
    stream: int, gaussians: Gaussians, num_views: int, size_px: int, seed: int, up: npt.ArrayLike | None
) -> list[Camera]:
    if num_views < 0:
        raise ParameterError(f"{num_views} views", field="num_views")
    views = _ViewChooser(gaussians, stream, seed, size_px, up)
    num_near = num_outward = num_views // 4
    if not len(views.extent.outside):
        num_outward = 0
    num_around = num_views - num_near - num_outward
    phases = views.random(0).random(5)
    sines = (-0.2, 0.7)
    cameras = []
    for group, count, factor, aim in ((1, num_around, 1.0, 0.0), (2, num_near, 0.5, 0.4)):
        for index in range(count):
            turns = (index + phases[2 * group - 2]) / count
            sine = sines[0] + (sines[1] - sines[0]) * ((index * 0.6180339887498949 + phases[2 * group - 1]) % 1.0)
            cameras.append(views.around(turns, sine, factor, aim, sines, group, index))
    for index in range(num_outward):
        share = (index + phases[4]) / num_outward
        camera = views.outward(share, (1.0, 1.5), 3, index)
        cameras.append(camera or views.around(share, 0.2, 1.0, 0.0, sines, 4, index))
    return cameras


def encoder_cameras(
    gaussians: Gaussians,
    *,
    num_views: int = 24,
    size_px: int = 512,
    seed: int = 0,
    up: npt.ArrayLike | None = None,
) -> list[Camera]:
    """The encoder's own views: importance, refinement and rate control use these, never the evaluation views.

    Further up and further down than the evaluation views, at distances from nearly touching to far, and looking outward
    in every fourth view where the scene has a background. Near, far and outward views alternate, so that any leading
    part of the list is a fair sample of it.

    Args and errors are those of `evaluation_cameras`; the random numbers are others for every seed.
    """
    if num_views < 0:
        raise ParameterError(f"{num_views} views", field="num_views")
    views = _ViewChooser(gaussians, _ENCODER_STREAM, seed, size_px, up)
    phases = views.random(0).random(3)
    sines = (-0.7, 0.95)
    cameras = []
    for index in range(num_views):
        share = (index * 0.6180339887498949 + phases[0]) % 1.0
        camera = None
        if index % 4 == 2 and len(views.extent.outside):
            camera = views.outward(share, (0.9, 1.8), 1, index)
        if camera is None:
            sine = sines[0] + (sines[1] - sines[0]) * ((index * 0.7548776662466927 + phases[1]) % 1.0)
            spread = (index * 0.5698402909980532 + phases[2]) % 1.0
            factor, aim = (0.45 + 0.25 * spread, 0.6) if index % 2 else (0.8 + 0.5 * spread, 0.2)
            camera = views.around(share, sine, factor, aim, sines, 2, index)
        cameras.append(camera)
    return cameras
