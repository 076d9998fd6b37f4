"""What a data set is to the trainer: views with cameras, pictures loaded when they are asked for, and points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import FormatError, LimitExceededError, ParameterError, SplatCodecError
from ...limits import DEFAULT_LIMITS, Limits
from ...render.camera import Camera
from ._lens import Lens
from ._pictures import PictureCache, PictureSource, picture_size

__all__ = [
    "BLACK",
    "WHITE",
    "Dataset",
    "DatasetKind",
    "PointCloud",
    "ReadOptions",
    "Shot",
    "View",
    "as_float32",
    "build_dataset",
    "hold_out",
    "random_points",
]

BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
#: How many points a scene starts from where the data set has none.
NUM_RANDOM_POINTS = 5000
#: A side of the random box is this share of the median distance from the cameras to what they look at.
_BOX_SHARE = 0.65
_NEAR_SHARE = 0.01
_MIN_SIDE_PX = 4
_MAX_SIDE_PX = 1 << 16
# Sides that were rounded up or down by a shrinking tool.
_ROUNDING_PX = 2.0
_MAX_VIEWS = 1 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How a data set is to be read.

    Attributes:
        downscale: pictures are shrunk by this factor, by an area filter; 1 or more.
        size_px: largest side that a picture may have, instead of `downscale`.
        images: name of the folder with the pictures, where a data set has several (COLMAP).
        test_every: every how many of the sorted names are test views, where the data set does not say itself (the
            first and then every 8th, as the papers have it); 0: no test views at all.
        background: what is behind transparent pixels, 0..1; None: white for Blender sets, else black.
        cache_bytes: most bytes of decoded pictures that are kept.
        seed: of the random points.
        limits: what may be allocated.

    Raises:
        ParameterError: a value out of range, or both `downscale` and `size_px`.
    """

    downscale: float = 1.0
    size_px: int | None = None
    images: str | None = None
    test_every: int | None = None
    background: tuple[float, float, float] | None = None
    cache_bytes: int = 1 << 30
    seed: int = 0
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if not 1.0 <= self.downscale < math.inf:
            raise ParameterError(f"pictures shrunk by {self.downscale}", field="downscale", hint="1 or more")
        if self.size_px is not None and self.size_px < _MIN_SIDE_PX:
            raise ParameterError(f"pictures of {self.size_px} pixels", field="size_px", hint=f"{_MIN_SIDE_PX} or more")
        if self.size_px is not None and self.downscale != 1.0:
            raise ParameterError("downscale and size_px exclude each other", field="size_px")
        if self.test_every is not None and (self.test_every < 0 or self.test_every == 1):
            raise ParameterError(
                f"every {self.test_every}th view a test view", field="test_every", hint="0, or 2 or more"
            )
        if self.background is not None and not all(0.0 <= value <= 1.0 for value in self.background):
            raise ParameterError(f"background {self.background}", field="background", hint="0 to 1")
        if self.cache_bytes < 0 or self.seed < 0:
            raise ParameterError("cache_bytes and seed must be 0 or more")


@dataclass(frozen=True, eq=False)
class Shot:
    """One photograph as a data set's files describe it.

    Attributes:
        name: what messages, sorting and test lists call it.
        path: the picture file.
        viewmat: (4, 4) float64, world to camera, OpenCV axes.
        lens: the camera that took it; its size may differ from the picture's, the ratio of its sides may not.
        time: 0..1 in a scene that moves, else None.
        file: the file that describes it, for messages.
    """

    name: str
    path: Path
    viewmat: npt.NDArray[np.float64]
    lens: Lens
    time: float | None
    file: str


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points that a scene starts from.

    Attributes:
        means: (M, 3) float32, world units.
        colours: (M, 3) float32, 0..1; None: unknown.
        source: where they are from, for people.
    """

    means: npt.NDArray[np.float32]
    colours: npt.NDArray[np.float32] | None
    source: str


@dataclass(frozen=True, eq=False)
class View:
    """One picture and the camera that sees it, at the size it is used in and without lens distortion.

    Attributes:
        name: the photograph's.
        camera: a pinhole camera of the picture's size.
        picture: how the pixels come from the file.
        time: 0..1 in a scene that moves, else None.
    """

    name: str
    camera: Camera
    picture: PictureSource
    time: float | None = None

    def resized(self, factor: float) -> Camera:
        """The camera of a picture `factor` times smaller (1 or more); its sides are rounded, at least 1 pixel."""
        if factor == 1.0:
            return self.camera
        width = max(1, round(self.camera.width / factor))
        height = max(1, round(self.camera.height / factor))
        scale = np.diag([width / self.camera.width, height / self.camera.height, 1.0])
        return replace(self.camera, K=scale @ self.camera.K, width=width, height=height)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Photographs of one scene with poses.

    Attributes:
        folder: where it is.
        kind: name of the kind of data set.
        train: views to learn from, at least one.
        test: views that are only looked at.
        points: where the scene starts.
        background: what is behind transparent pixels, and behind the scene.
        up: (3,) float64, unit vector.
        extent: 1.1 times the largest distance of a train camera from their mean position, world units.
        notes: what was assumed or left out, sentences.
    """

    folder: Path
    kind: str
    train: Sequence[View]
    test: Sequence[View]
    points: PointCloud
    background: tuple[float, float, float]
    up: npt.NDArray[np.float64]
    extent: float
    notes: Sequence[str]
    _cache: PictureCache = field(repr=False)

    def picture(self, view: View, factor: float = 1.0) -> npt.NDArray[np.uint8]:
        """The pixels of a view, (H, W, 3) uint8, read only: those of `view.resized(factor)`.

        Raises:
            FormatError, ParameterError: the file changed since the data set was read, or is damaged.
        """
        camera = view.resized(factor)
        return self._cache.get(view.picture, camera.width, camera.height)

    def scene_metadata(self, antialiased: bool) -> dict[str, Any]:
        """What a player should know of a scene that was trained on this."""
        up = [round(float(value), 6) for value in self.up]
        return {"up": up, "background": list(self.background), "antialiased": antialiased}

    @property
    def moves(self) -> bool:
        """Whether views show different times."""
        return len({view.time for view in (*self.train, *self.test)}) > 1


@dataclass(frozen=True)
class DatasetKind:
    """One kind of data set; a module of this package offers it as `KIND`.

    Attributes:
        name: short name.
        title: name for people.
        matches: folder -> whether it holds such a set, judged by the names in it. Of one folder several may say yes;
            `rank` decides.
        read: (folder, options) -> Dataset. Raises SplatCodecError only.
        looks_for: what `matches` looks for, for messages.
        rank: lower is asked first.
    """

    name: str
    title: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Dataset]
    looks_for: str
    rank: int = 0


def hold_out(shots: Sequence[Shot], test_every: int | None) -> tuple[list[Shot], list[Shot]]:
    """Train and test shots: of the names in order the first and every `test_every`th (8) after it are for testing."""
    ordered = sorted(shots, key=lambda shot: shot.name)
    every = 8 if test_every is None else test_every
    if every == 0:
        return ordered, []
    return [s for k, s in enumerate(ordered) if k % every], ordered[::every]


def random_points(
    low: npt.ArrayLike, high: npt.ArrayLike, seed: int, count: int = NUM_RANDOM_POINTS
) -> tuple[npt.NDArray[np.float32], str]:
    """`count` points in a box, evenly spread by chance, and a sentence that says so."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    means = np.random.default_rng([0x505453, seed]).uniform(low, high, (count, 3)).astype(np.float32)
    corners = " to ".join("(" + ", ".join(f"{value:.4g}" for value in corner) + ")" for corner in (low, high))
    return means, f"{count:,} random points in the box {corners}"


def build_dataset(
    kind: str,
    folder: Path,
    train: Sequence[Shot],
    test: Sequence[Shot],
    points: PointCloud | None,
    options: ReadOptions,
    *,
    background: tuple[float, float, float] = BLACK,
    box: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    up: npt.ArrayLike | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Check everything that can be checked without decoding a picture, and make the data set.

    Args:
        kind, folder, train, test, points: what was read.
        options: what was asked for.
        background: the kind's own, where `options` names none.
        box: lowest and highest corner for random points; None: around what the cameras look at.
        up: the kind's own up direction; None: the mean of the cameras'.
        notes: what the reader has to say.

    Raises:
        FormatError: no train or test views, a picture twice, a missing picture, one whose sides do not have the ratio
            of its camera's, a pose that is not rigid, points in one place.
        LimitExceededError: pictures that are too large, or too many points.
        ParameterError: pictures would become too small.
    """
    source = (train or test)[0].file if (train or test) else str(folder)
    _check_counts(train, test, options, source)
    _check_pictures_exist([*train, *test], folder)
    centers = np.array([_center(shot.viewmat) for shot in train])
    spread = 1.1 * float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())
    focus, distance = _focus(train, centers)
    extent = spread if spread > 1e-9 * max(1.0, float(np.abs(centers).max())) else distance
    behind = options.background if options.background is not None else background
    views = [[_located(shot, options, behind, _NEAR_SHARE * extent) for shot in shots] for shots in (train, test)]
    said = list(notes)
    cloud = _usable_points(points, options.limits, said)
    if cloud is None:
        if box is None:
            half = _BOX_SHARE * distance
            box = focus - half, focus + half
        means, sentence = random_points(box[0], box[1], options.seed)
        cloud = PointCloud(means, None, sentence)
        said.append(f"no points in the data set: {sentence}")
    if up is None:
        up = -np.mean([shot.viewmat[1, :3] for shot in train], axis=0)  # a camera's y axis points down
    up = np.asarray(up, np.float64)
    length = float(np.linalg.norm(up))
    up = up / length if length > 1e-6 else np.array([0.0, -1.0, 0.0])
    cache = PictureCache(options.cache_bytes)
    return Dataset(folder, kind, tuple(views[0]), tuple(views[1]), cloud, behind, up, extent, tuple(said), cache)


def _check_counts(train: Sequence[Shot], test: Sequence[Shot], options: ReadOptions, source: str) -> None:
    if len(train) + len(test) > _MAX_VIEWS:
        raise LimitExceededError(f"{len(train) + len(test)} views, more than {_MAX_VIEWS}", file=source)
    if not train:
        raise FormatError("there are no views to train on", file=source)
    if not test and options.test_every != 0:
        raise FormatError("there are no test views", file=source, hint="--test-every 0 trains without any")
    for shots in (train, test):
        seen: dict[Path, Shot] = {}
        for shot in shots:
            key = Path(str(shot.path))
            if key in seen and seen[key].time == shot.time:
                raise FormatError(f"the picture {shot.name!r} has two poses", file=shot.file)
            seen[key] = shot
    for shot in (*train, *test):
        rotation = shot.viewmat[:3, :3]
        if not np.isfinite(shot.viewmat).all():
            raise FormatError(f"the pose of {shot.name!r} is not finite", file=shot.file)
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
            raise FormatError(f"the pose of {shot.name!r} is not a rigid motion", file=shot.file)


def _check_pictures_exist(shots: Sequence[Shot], folder: Path) -> None:
    missing = [shot for shot in shots if not shot.path.is_file()]
    if not missing:
        return
    first = missing[0]
    raise FormatError(
        f"{len(missing)} of {len(shots)} pictures are missing, the first is {first.name!r} (looked for {first.path})",
        file=first.file,
    )


def _center(viewmat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(-viewmat[:3, :3].T @ viewmat[:3, 3])


def _focus(shots: Sequence[Shot], centers: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """The point nearest to all optical axes, and the median distance of the cameras from it.

    Where the axes do not meet (parallel, or one camera), or meet behind the cameras, a point in front of them.
    """
    axes = np.array([shot.viewmat[2, :3] for shot in shots])
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    spread = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())
    fallback = spread if spread > 0 else 1.0
    normal = across.sum(axis=0)
    values = np.linalg.eigvalsh(normal)
    if values[0] > 1e-3 * len(shots):
        focus = np.linalg.solve(normal, (across @ centers[:, :, None]).sum(axis=0)[:, 0])
        depths = ((focus - centers) * axes).sum(axis=1)
        distance = float(np.median(np.linalg.norm(focus - centers, axis=1)))
        if np.median(depths) > 0 and distance > 1e-6 * fallback:
            return focus, distance
    return centers.mean(axis=0) + fallback * axes.mean(axis=0), fallback


def _located(shot: Shot, options: ReadOptions, background: tuple[float, float, float], near: float) -> View:
    try:
        return _view(shot, options, background, near)
    except SplatCodecError as error:
        raise error.locate(file=shot.file) from None


def _view(shot: Shot, options: ReadOptions, background: tuple[float, float, float], near: float) -> View:
    width, height, has_alpha = picture_size(shot.path, options.limits)
    lens = _fitted(shot, width, height)
    straight = lens.undistorted()
    factor = options.downscale
    if options.size_px is not None:
        factor = max(1.0, max(straight.width, straight.height) / options.size_px)
    shrunk = max(1, round(straight.width / factor)), max(1, round(straight.height / factor))
    if min(shrunk) < _MIN_SIDE_PX:
        raise ParameterError(
            f"the picture {shot.name!r} of {width} x {height} pixels would become {shrunk[0]} x {shrunk[1]}",
            file=str(shot.path),
            hint="shrink less",
        )
    final = straight.scaled(*shrunk)
    left, _, right = np.linalg.svd(shot.viewmat[:3, :3])
    viewmat = shot.viewmat.copy()
    viewmat[:3, :3] = left @ right  # the nearest rotation: files round
    camera = Camera(viewmat, final.K, final.width, final.height, near=max(near, 1e-9))
    picture = PictureSource(shot.path, (width, height), lens, straight, background if has_alpha else None)
    return View(shot.name, camera, picture, shot.time)


def _fitted(shot: Shot, width: int, height: int) -> Lens:
    """The shot's lens for a picture of another size with sides of the same ratio."""
    lens = shot.lens
    if max(lens.width, lens.height) > _MAX_SIDE_PX:
        raise LimitExceededError(
            f"{shot.name!r}: the camera has {lens.width} x {lens.height} pixels, more than {_MAX_SIDE_PX} a side",
            file=shot.file,
        )
    if (lens.width, lens.height) == (width, height):
        return lens
    factor = math.sqrt((lens.width / width) * (lens.height / height))
    if abs(lens.width / factor - width) > _ROUNDING_PX or abs(lens.height / factor - height) > _ROUNDING_PX:
        raise FormatError(
            f"the picture {shot.name!r} is {width} x {height} pixels, its camera {lens.width} x {lens.height}: "
            "they do not belong together",
            file=str(shot.path),
        )
    return lens.scaled(width, height)


def _usable_points(points: PointCloud | None, limits: Limits, said: list[str]) -> PointCloud | None:
    """The finite points; None where there are none to begin with.

    Raises:
        FormatError: there are points, but none usable, or all in one place.
    """
    if points is None or not len(points.means):
        return None
    limits.check_gaussians(len(points.means), file=points.source)
    finite = np.isfinite(points.means).all(axis=1)
    if points.colours is not None:
        finite &= np.isfinite(points.colours).all(axis=1)
    if not finite.all():
        said.append(f"{points.source}: {np.count_nonzero(~finite):,} points that are not finite were left out")
    means = points.means[finite]
    if not len(means):
        raise FormatError("none of the points is finite", file=points.source)
    size = float(np.ptp(means.astype(np.float64), axis=0).max())
    if not size > 1e-6 * max(1e-30, float(np.abs(means).max())):
        raise FormatError(f"all {len(means):,} points lie in one place", file=points.source)
    return PointCloud(means, None if points.colours is None else points.colours[finite], points.source)


def as_float32(values: Any) -> npt.NDArray[np.float32]:
    """`values` as float32; what is too large becomes infinite, and is then left out."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)
