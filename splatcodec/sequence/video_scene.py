"""Gaussians of a group of frames as planes of integers, and back: what `video_planes` codes of a moving scene.

    frames (one count, one order) -> importance -> Gaussians kept, steps -> grid -> covariance forms
           -> planes: position, turn, scales, alpha, colour, harmonics -> video_planes

Turns are modified Rodrigues parameters of the unit quaternion, v / (1 + w): three numbers, smooth up to a full turn,
and a quaternion again by + * / only.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, LimitExceededError, ParameterError, TruncatedError
from ..gaussians import Gaussians, num_sh_coefficients, unit_quats
from ..limits import DEFAULT_LIMITS, Limits
from ..metrics.psnr import covered_psnr_db
from ..preprocess.plan import LossyOptions, Plan, Tuning, make_plan
from ..preprocess.self_organizing_grid import (
    Grid,
    curve_grid,
    grid_features,
    grid_width,
    nearest_covariances,
    smooth_covariances,
    sort_into_grid,
)
from ..render.camera import encoder_cameras
from ..render.contribution import Contributions, contributions
from ..render.cpu import render
from ..render.kernel import kernel, run_threaded
from .video_planes import GroupReader, PlaneOptions, VideoGroup, VideoOptions, encode_group, encode_group_to_error
from .video_stream import Pixels

__all__ = [
    "HEAD_BYTES",
    "SLOPES",
    "SceneGroup",
    "SceneGroupReader",
    "SceneOptions",
    "encode_scene_group",
    "encode_scene_to_psnr",
    "measured_contributions",
]

_HEAD = struct.Struct("<BBH3d6f")
#: Of a group; its planes follow.
HEAD_BYTES = _HEAD.size
_VERSION = 1
_MAX_POSITION = 1 << 22
_LOGIT_LIMIT = 1e-6
_PIECES_A_THREAD = 4  # of a frame: what belongs to one stays in a core's cache
_GEOMETRY, _COLOR, _PLACE, _TURN = "geometry steps", "colour steps", "position steps", "turn steps"
_ALPHA_LEVELS = 1020
_ALPHA_SHIFT = 1
#: What a coarser video may cost, dB.
QP_LOSS_DB = 0.1
#: Of `SceneOptions.slope`.
SLOPES = (1e-6, 100.0)


@dataclass(frozen=True)
class SceneOptions:
    """How a group of frames is coded.

    Attributes:
        slope: squared error of pictures that a bit may cost, as a root (see `preprocess.plan`); less is better and
            larger. `encode_scene_group` can search it.
        appearance: what scales, opacities and base colours become: "video" tiles, or "auto", what is smaller.
        grid: "sort" (self-organizing) or "curve" (Morton, fast).
        prune: leave out Gaussians that show less than they cost.
        codec, effort, fps: of the video.
        qp: of the video; None = the coarsest that costs at most `QP_LOSS_DB` of rendered PSNR. That takes seconds, so a
            long scene takes the QP of its first group for the others.
        num_views: encoder's views a measured frame, of 256 pixels.
        seed: of views and grid.
    """

    slope: float = 0.15
    appearance: str = "video"
    grid: str = "sort"
    prune: bool = True
    codec: str = "h264"
    qp: int | None = None
    effort: int = 1
    fps: Fraction = Fraction(30)
    num_views: int = 8
    seed: int = 0


@dataclass(frozen=True)
class SceneGroup:
    """A coded group of frames.

    Attributes:
        payload: the bytes. rows: (M,) which Gaussians of the frames were coded, in coded order.
        planes: what became of each plane.
    """

    payload: bytes
    rows: npt.NDArray[np.int64]
    planes: VideoGroup


def measured_contributions(frames: Sequence[Gaussians], options: SceneOptions) -> Contributions:
    """What Gaussians contribute to pictures of the first, the middle and the last frame, summed."""
    total: Contributions | None = None
    for number in sorted({0, len(frames) // 2, len(frames) - 1}):
        frame = frames[number]
        cameras = encoder_cameras(frame, num_views=options.num_views, size_px=256, seed=options.seed)
        found = contributions(frame, cameras)
        if total is None:
            total = found
            continue
        total = replace(
            total,
            max_weight=np.maximum(total.max_weight, found.max_weight),
            sum_weight=total.sum_weight + found.sum_weight,
            sum_weight2=total.sum_weight2 + found.sum_weight2,
            hits=total.hits + found.hits,
            s_logalpha=total.s_logalpha + found.s_logalpha,
            s_position=total.s_position + found.s_position,
            s_cov=total.s_cov + found.s_cov,
            pixel_size=np.minimum(total.pixel_size, found.pixel_size),
            num_views=total.num_views + found.num_views,
        )
    assert total is not None
    return total


def _aligned(frames: Sequence[Gaussians], grid: Grid) -> list[Gaussians]:
    """Frames with covariances described smoothly in the grid and in time, quaternions with w > 0 half-way."""
    middle = len(frames) // 2
    out: list[Gaussians] = [frames[0]] * len(frames)
    out[middle] = smooth_covariances(frames[middle], grid)
    sign = np.where(out[middle].quats[:, :1] < 0, np.float32(-1), np.float32(1))
    out[middle] = out[middle].replaced(quats=out[middle].quats * sign)
    for number in [*range(middle + 1, len(frames)), *range(middle - 1, -1, -1)]:
        near = out[number - 1 if number > middle else number + 1]
        out[number] = nearest_covariances(frames[number], near.quats, near.scales, scale_weight=1.0)
    return out


def _grid_of(frames: Sequence[Gaussians], options: SceneOptions) -> Grid:
    count = len(frames[0])
    width = grid_width(count, 16) if count >= 256 else grid_width(count)
    if options.grid == "curve":
        return curve_grid(frames[len(frames) // 2].means, width=width)
    if options.grid != "sort":
        raise ParameterError(f"no grid {options.grid!r}", hint="known: sort, curve")
    ends = [frames[0], frames[-1]]
    # Positions at both ends: Gaussians that move alike then lie together.
    features = [grid_features(frame, {"means": 1.4, "sh0": 0.7, "scales": 0.8}) for frame in ends]
    joined = np.concatenate([features[0], features[1][:, :3]], axis=1)
    return sort_into_grid(joined, width=width, seed=options.seed, improvement_break=1e-3)


def _exponents(wanted: npt.NDArray[np.float64], unit: float) -> npt.NDArray[np.int64]:
    return np.clip(np.floor(np.log2(np.maximum(wanted, 1e-300) / unit) + 0.5), 0, 15).astype(np.int64)


def encode_scene_group(
    frames: Sequence[Gaussians],
    options: SceneOptions | None = None,
    *,
    measured: Contributions | None = None,
    grid_for: Callable[[Sequence[Gaussians]], Grid] | None = None,
) -> SceneGroup:
    """Code a group of frames of one count, row i the same Gaussian in all.

    Args:
        frames: cleaned scenes, at most 256.
        options: see `SceneOptions`.
        measured: contributions of the Gaussians if they are known.
        grid_for: another way to a grid of the Gaussians that are kept.

    Returns:
        a SceneGroup.

    Raises:
        ParameterError: no frames, none or too many Gaussians, counts or SH degrees that change, values not finite.
    """
    options = options or SceneOptions()
    if not frames or not len(frames[0]):
        raise ParameterError("a group of video planes needs a frame and a Gaussian")
    for number, frame in enumerate(frames):
        if len(frame) != len(frames[0]) or frame.sh_degree != frames[0].sh_degree:
            raise ParameterError(
                f"frame {number} has {len(frame)} Gaussians of SH degree {frame.sh_degree}, the first "
                f"{len(frames[0])} of {frames[0].sh_degree}"
            )
        if frame.cleaned()[1]:
            raise ParameterError(f"frame {number}: {frame.cleaned()[1]}", hint="use Gaussians.cleaned()")
    measured = measured_contributions(frames, options) if measured is None else measured
    lossy = LossyOptions(prune=options.prune)
    plan = make_plan(frames[len(frames) // 2], measured, options.slope, lossy, Tuning())
    kept = plan.kept
    chosen = [frame.selected(kept) for frame in frames]
    grid = _grid_of(chosen, options) if grid_for is None else grid_for(chosen)
    aligned = [frame.selected(grid.order) for frame in _aligned(chosen, grid)]
    rows = kept[grid.order]
    head, planes, settings = _planes(aligned, plan, plan.classes[rows], options.appearance)
    video = VideoOptions(
        planes=settings, codec=options.codec, qp=options.qp or 12, effort=options.effort, fps=options.fps
    )
    if options.qp is not None:
        coded = encode_group(planes, grid.width, video)
    else:
        judge = _Judge(frames, options.seed)

        def error(payload: bytes) -> float:
            return -judge.psnr_db(SceneGroupReader(head + payload))

        coded = encode_group_to_error(planes, grid.width, video, error, QP_LOSS_DB)
    return SceneGroup(head + coded.payload, rows, coded)


def encode_scene_to_psnr(
    frames: Sequence[Gaussians],
    wanted_db: float,
    options: SceneOptions | None = None,
    *,
    measured: Contributions | None = None,
    trials: int = 5,
    tolerance_db: float = 0.25,
) -> tuple[SceneGroup, SceneOptions, float]:
    """As `encode_scene_group`, with the slope at which pictures have a PSNR.

    Args:
        wanted_db: mean covered PSNR over the encoder's own views.
        options: where the search starts; the options returned serve the groups that follow.
        trials: most slopes tried.

    Returns:
        the group nearest to the PSNR of those tried, its options, its PSNR.
    """
    options = options or SceneOptions()
    measured = measured_contributions(frames, options) if measured is None else measured
    judge = _Judge(frames, options.seed)
    tried: list[tuple[float, float, SceneGroup, SceneOptions]] = []
    slope = options.slope
    for _ in range(max(trials, 1)):
        options = replace(options, slope=float(np.clip(slope, *SLOPES)))
        group = encode_scene_group(frames, options, measured=measured)
        options = replace(options, qp=group.planes.qp)  # nearly the same at every slope
        tried.append((judge.psnr_db(SceneGroupReader(group.payload)), math.log2(options.slope), group, options))
        tried.sort(key=lambda entry: entry[0])
        below = [entry for entry in tried if entry[0] <= wanted_db]
        above = [entry for entry in tried if entry[0] > wanted_db]
        nearest = min(tried, key=lambda entry: abs(entry[0] - wanted_db))
        if abs(nearest[0] - wanted_db) <= tolerance_db:
            break
        if below and above:
            (low, at_low, *_), (high, at_high, *_) = below[-1], above[0]
            share = float(np.clip((wanted_db - low) / (high - low), 0.1, 0.9))
            slope = 2.0 ** (at_low + share * (at_high - at_low))
        else:  # about 4 dB an octave
            slope = 2.0 ** (nearest[1] + float(np.clip((nearest[0] - wanted_db) / 4.0, -4, 4)))
    return nearest[2], nearest[3], nearest[0]


def _planes(
    frames: Sequence[Gaussians], plan: Plan, classes: npt.NDArray[np.int32], appearance: str
) -> tuple[bytes, dict[str, npt.NDArray[np.int64]], dict[str, PlaneOptions]]:
    """Integers of all attributes, how each plane is coded, and the head that says what the integers mean."""
    if appearance not in ("video", "auto"):
        raise ParameterError(f"no appearance {appearance!r}", hint="known: video, auto")
    steps = plan.steps
    size_step = steps.size / 1024.0 * math.log(2.0)
    means = np.stack([frame.means for frame in frames]).astype(np.float64)
    quats = np.stack([unit_quats(frame.quats) for frame in frames]).astype(np.float64)
    scales = np.stack([frame.scales for frame in frames]).astype(np.float64)
    alphas = np.stack([frame.alphas() for frame in frames]).astype(np.float64)
    geometry, color = classes[:, 0].astype(np.int64), classes[:, 1].astype(np.int64)
    relative = size_step * np.exp2(geometry)  # error wanted, in standard deviations
    # What is thinner than the encoder's finest view can tell needs no finer steps.
    squared = np.exp(2.0 * scales.mean(0)) + steps.blur**2
    place = relative / np.sqrt((1.0 / squared).mean(1))
    largest, least = squared.max(1), squared.min(1)
    # Turning by t changes the covariance, in units of itself, by t times this.
    anisotropy = (largest - least) / np.sqrt(largest * least)
    turn = np.minimum(relative / np.maximum(anisotropy, 1e-3), 0.5) / 4.0  # parameters are a quarter of the angle
    low, high = means.min((0, 1)), means.max((0, 1))
    origin = (low + high) / 2
    extent = float((high - low).max())
    unit = max(float(np.quantile(place, 0.01)), extent / _MAX_POSITION, 1e-30)
    turn_unit = float(np.float32(max(float(np.quantile(turn, 0.01)), 2.0**-18)))
    scale_unit = float(np.float32(size_step))
    color_unit, sh_unit = float(np.float32(steps.color)), float(np.float32(steps.sh))
    parameters = quats[..., 1:] / np.maximum(1.0 + quats[..., :1], 0.05)
    floor = max(math.log(steps.blur) - 2.0, -40.0) if steps.blur > 0 else -40.0
    head = _HEAD.pack(
        _VERSION, frames[0].sh_degree, 0, *origin, unit, scale_unit, turn_unit, 1.0 / _ALPHA_LEVELS, color_unit, sh_unit
    )
    unit = float(np.float32(unit))

    def whole(values: npt.NDArray[np.float64], step: float) -> npt.NDArray[np.int64]:
        return np.rint(np.clip(values / step, -(1 << 23), 1 << 23)).astype(np.int64)

    planes: dict[str, npt.NDArray[np.int64]] = {_GEOMETRY: geometry, _COLOR: color}
    settings = {
        _GEOMETRY: PlaneOptions("still"),
        _COLOR: PlaneOptions("still", references=(_GEOMETRY,)),
    }
    names = [f"scale {k}" for k in range(3)]
    for k, name in enumerate(names):
        planes[name] = whole(np.maximum(scales[..., k], floor), scale_unit)
        settings[name] = PlaneOptions(appearance, track="scale", steps=_GEOMETRY, denoise=True)
    planes[_PLACE] = _exponents(place, unit)
    settings[_PLACE] = PlaneOptions("still", references=(_GEOMETRY, *names))
    planes[_TURN] = _exponents(turn, turn_unit)
    settings[_TURN] = PlaneOptions("still", references=(_GEOMETRY, *names))
    for k in range(3):
        name = f"position {k}"
        planes[name] = whole(means[..., k] - origin[k], unit)
        settings[name] = PlaneOptions("path", track="position", steps=_PLACE, max_functions=12, denoise=True)
    for k in range(3):
        name = f"turn {k}"
        planes[name] = whole(parameters[..., k], turn_unit)
        settings[name] = PlaneOptions("path", track="turn", steps=_TURN, max_functions=12, denoise=True)
    planes["alpha"] = whole(alphas, 1.0 / _ALPHA_LEVELS)
    settings["alpha"] = PlaneOptions(appearance, shift=_ALPHA_SHIFT, steps=_GEOMETRY, denoise=True)
    for k in (1, 0, 2):
        name = f"colour {k}"
        planes[name] = whole(np.stack([frame.sh0[:, 0, k] for frame in frames]).astype(np.float64), color_unit)
        settings[name] = PlaneOptions(appearance, track="colour", steps=_COLOR, denoise=True)
    for basis in range(num_sh_coefficients(frames[0].sh_degree) - 1):
        for k in (1, 0, 2):
            name = f"harmonic {basis} {k}"
            values = np.stack([frame.shN[:, basis, k] for frame in frames]).astype(np.float64)
            planes[name] = whole(values, sh_unit)
            settings[name] = PlaneOptions(track=f"harmonic {basis}", steps=_COLOR, denoise=True)
    return head, planes, settings


@kernel
def _floats(values, origin, unit, out):
    """origin (K,) + unit * values (K, N), to (N, K) float32."""
    for k in range(len(values)):
        for i in range(len(out)):
            out[i, k] = np.float32(origin[k] + values[k, i] * unit)


@kernel
def _quats(values, unit, out):
    """Unit quaternions (N, 4) of modified Rodrigues parameters, unit * values (3, N)."""
    for i in range(len(out)):
        x, y, z = values[0, i] * unit, values[1, i] * unit, values[2, i] * unit
        square = x * x + y * y + z * z
        scale = 2.0 / (1.0 + square)
        out[i, 0] = (1.0 - square) / (1.0 + square)
        out[i, 1], out[i, 2], out[i, 3] = scale * x, scale * y, scale * z


def _logits(values: npt.NDArray[np.int32], unit: float) -> npt.NDArray[np.float32]:
    alphas = np.clip(values * unit, _LOGIT_LIMIT, 1.0 - _LOGIT_LIMIT)
    return np.log(alphas / (1.0 - alphas)).astype(np.float32)


@dataclass
class _Part:
    """An array of Gaussians.

    Attributes:
        planes: numbers of its planes. columns: of the array.
        convert: called with (P, N) values of the planes and (N, columns) of the array.
        rests: whether it is the same in all frames. known: its values then, after the first.
    """

    planes: list[int]
    columns: int
    convert: Callable[..., None]
    rests: bool
    known: npt.NDArray[np.float32] | None = None


class SceneGroupReader:
    """A group of frames, decoded one by one.

    Args:
        payload: from `encode_scene_group`. limits: what may be allocated.
        metadata: of the scene, given to every frame.

    Attributes:
        num_frames, num_gaussians, sh_degree: of the group. planes: its planes of integers.

    Raises:
        FormatError: damaged. LimitExceededError: larger than allowed.
    """

    def __init__(
        self, payload: bytes | memoryview, limits: Limits = DEFAULT_LIMITS, metadata: Mapping[str, Any] | None = None
    ) -> None:
        data = bytes(payload)
        if len(data) < _HEAD.size:
            raise TruncatedError(f"{len(data)} bytes are no group of frames", offset=0)
        version, degree, _, *numbers = _HEAD.unpack_from(data)
        if version != _VERSION or degree > 3:
            raise FormatError(f"version {version} of a group of frames, SH degree {degree}", offset=0)
        origin, units = numbers[:3], numbers[3:]
        if not all(abs(value) < 1e38 for value in origin) or not all(0 < unit < 1e30 for unit in units):
            raise FormatError("an origin or unit of the group is out of range", offset=4)
        self.sh_degree, self._origin, self._units = degree, origin, units
        self._limits, self._metadata = limits, dict(metadata or {})
        try:
            self.planes = GroupReader(memoryview(data)[_HEAD.size :], limits)
        except (FormatError, LimitExceededError) as error:
            if error.offset is not None:
                error.offset += _HEAD.size
            raise
        self.num_frames, self.num_gaussians = self.planes.num_frames, self.planes.count
        missing = sorted(set(self._names()) - set(self.planes.names))
        if missing:
            raise FormatError(f"the group has no plane {missing[0]!r}")

    def _names(self) -> list[str]:
        names = [f"{what} {k}" for what in ("position", "turn", "scale", "colour") for k in range(3)] + ["alpha"]
        rest = num_sh_coefficients(self.sh_degree) - 1
        return names + [f"harmonic {basis} {k}" for basis in range(rest) for k in range(3)]

    def _parts(self) -> list[_Part]:
        """Of the arrays of Gaussians, in order."""
        unit, scale_unit, turn_unit, alpha_unit, color_unit, sh_unit = self._units
        rest = num_sh_coefficients(self.sh_degree) - 1
        origin, zeros = np.array(self._origin, np.float64), np.zeros(3 * max(rest, 1))
        number_of = {name: k for k, name in enumerate(self.planes.names)}
        alpha = self.planes.planes[number_of["alpha"]]
        low, logits = alpha.low, None
        if alpha.high - alpha.low < 1 << 16:  # as a rule there are 1,021: no logarithm for each Gaussian
            logits = _logits(np.arange(alpha.low, alpha.high + 1, dtype=np.int32), alpha_unit)

        def opacities(values: npt.NDArray[np.int32], out: npt.NDArray[np.float32]) -> None:
            out[:, 0] = _logits(values[0], alpha_unit) if logits is None else logits[values[0] - low]

        def part(names: Sequence[str], columns: int, convert: Callable[..., None]) -> _Part:
            numbers = [number_of[name] for name in names]
            return _Part(numbers, columns, convert, all(map(self.planes.rests, numbers)))

        harmonics = [f"harmonic {basis} {k}" for basis in range(rest) for k in range(3)]
        return [
            part([f"position {k}" for k in range(3)], 3, lambda values, out: _floats(values, origin, unit, out)),
            part([f"turn {k}" for k in range(3)], 4, lambda values, out: _quats(values, turn_unit, out)),
            part([f"scale {k}" for k in range(3)], 3, lambda values, out: _floats(values, zeros, scale_unit, out)),
            part(["alpha"], 1, opacities),
            part([f"colour {k}" for k in range(3)], 3, lambda values, out: _floats(values, zeros, color_unit, out)),
            part(harmonics, 3 * rest, lambda values, out: _floats(values, zeros, sh_unit, out)),
        ]

    def _fill(
        self,
        parts: Sequence[_Part],
        number: int,
        picture: Pixels,
        arrays: Sequence[npt.NDArray[np.float32]],
        first: int,
        last: int,
    ) -> None:
        """Gaussians first .. last - 1 of a frame."""
        for part, array in zip(parts, arrays):
            if part.known is not None:
                array[first:last] = part.known[first:last]
                continue
            values = np.empty((len(part.planes), last - first), np.int32)
            for k, row in zip(part.planes, values):
                self.planes.fill(k, number, picture, first, row)
            part.convert(values, array[first:last])

    def frames(self, *, num_threads: int = 2) -> Iterator[Gaussians]:
        """The frames in order.

        Raises:
            FormatError: the video is damaged.
        """
        count, width = self.num_gaussians, self.planes.width
        parts = self._parts()
        num_pieces = _PIECES_A_THREAD * max(num_threads, 1)
        rows = np.unique(np.linspace(0, -(-count // width), num_pieces + 1).astype(np.int64))
        bounds = [min(int(row) * width, count) for row in rows]
        pictures = self.planes.pictures(num_threads=num_threads, limits=self._limits)
        for number, picture in enumerate(pictures):
            arrays = [np.empty((count, part.columns), np.float32) for part in parts]
            pieces = [(parts, number, picture, arrays, *piece) for piece in pairwise(bounds)]
            run_threaded(self._fill, pieces, num_threads)
            if not number:
                for part, array in zip(parts, arrays):
                    part.known = array.copy() if part.rests else None
            means, quats, scales, opacities, sh0, shN = arrays
            yield Gaussians(
                means=means,
                quats=quats,
                scales=scales,
                opacities=opacities[:, 0],
                sh0=sh0[:, None],
                shN=shN.reshape(count, shN.shape[1] // 3, 3),
                metadata=self._metadata,
            )


class _Judge:
    """Rendered PSNR of a group, the original's pictures kept."""

    def __init__(self, frames: Sequence[Gaussians], seed: int, *, num_views: int = 3, size_px: int = 224) -> None:
        self.numbers = sorted({round(k * (len(frames) - 1) / 3) for k in range(4)})
        self.views = []
        for number in self.numbers:
            cameras = encoder_cameras(frames[number], num_views=num_views, size_px=size_px, seed=seed + 1)
            self.views.append([(camera, render(frames[number], camera)) for camera in cameras])

    def psnr_db(self, reader: SceneGroupReader) -> float:
        """Mean over views and some of the frames, dB."""
        found = []
        for number, frame in enumerate(reader.frames()):
            if number in self.numbers:
                views = self.views[self.numbers.index(number)]
                found += [covered_psnr_db(picture, render(frame, camera)) for camera, picture in views]
        return float(np.mean(found))
