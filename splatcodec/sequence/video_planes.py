"""A group of frames as planes: what rests once, what moves smoothly as functions of time, the rest as one video.

Every attribute is a plane of integers for each frame, a cell of a grid for each Gaussian (self-organizing or Morton).
The value of cell i of a plane in frame f is

    still[i] + sum_k functions[f, k] * coefficients[k, i] + multiplier * (luma[f, i] - 128)

with any of the three left out. Stills and coefficients are coded by tables (`video_columns`); functions of time are
shared by the planes of a track, such as x, y and z; the lumas of all planes that need them are tiles of one picture a
frame, one H.264 stream a group (`video_stream`). So a Gaussian at rest costs nothing in a frame, and a player needs one
hardware decoder and a few multiplications.

    planes -> still, functions, deviations -> columns, atlas -> rANS, H.264 -> payload (bitstreams/SPEC.md)
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..bitstream.container import read_varint, write_varint
from ..errors import ChecksumError, FormatError, LimitExceededError, ParameterError, TruncatedError
from ..limits import DEFAULT_LIMITS, Limits
from ..render.kernel import kernel
from .video_columns import MAX_EXPONENT, MAX_VALUES_A_BYTE, ColumnPlan, decode_columns, encode_columns
from .video_stream import CODECS, MAX_SAMPLES, MAX_SIDE, Pixels, VideoStream, decode_video, encode_video

__all__ = [
    "MAX_FRAMES",
    "GroupReader",
    "PlaneOptions",
    "VideoGroup",
    "VideoOptions",
    "decode_group",
    "encode_group",
    "encode_group_to_error",
    "video_of",
]

MAX_FRAMES = 256
MAX_PLANES = 255
MAX_FUNCTIONS = 32
MAX_CELLS = 1 << 24
_VALUE_LIMIT = 1 << 24
_FUNCTION_BITS = 14  # functions are integers in 1/16384; their mean square over the frames is about 1
_VERSION = 1
_HAS_STILL, _HAS_TILE = 1, 2
# A function is kept if its share of the error, were it left out, exceeds this part of a squared step.
_LEAST_ENERGY = 0.004
# What functions leave above noise (squared steps a sample) before a plane goes to the video.
_MOST_LEFT = 0.05
# Noise of finitely many samples is not quite the same in all directions; more than so much of a squared step in a
# sample is not noise to whoever chose the step.
_NOISE_EDGE = 1.3
_FINEST_QP, _COARSEST_QP = 8, 36
_MOST_NOISE = 0.25

Integers = npt.NDArray[np.int64]
_BLANK = np.zeros((1, 1), np.uint8)
_NO_FUNCTIONS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class PlaneOptions:
    """How a plane is coded.

    Attributes:
        coding: "auto" chooses by what the values do; "still" takes their mean; "path" functions of time; "video" the
            difference to the mean as a tile; "direct" 8-bit values as a tile, nothing else.
        track: planes of the same name share functions of time and predict each other.
        shift: stills and coefficients have steps of 2^shift; the video's step is about the same, as far as 8 bits go.
        steps: name of an earlier plane at rest whose values, 0..15, are how many octaves coarser each cell's steps are.
        references: up to two earlier planes with stills that also predict this one's.
        max_functions: most functions of time.
        denoise: take what is the same in all directions of time for noise that need not come back, however large its
            share of a step. Otherwise steps are kept to.
    """

    coding: str = "auto"
    track: str = ""
    shift: int = 0
    steps: str = ""
    references: tuple[str, ...] = ()
    max_functions: int = 8
    denoise: bool = False


@dataclass(frozen=True)
class VideoOptions:
    """How a group is coded.

    Attributes:
        planes: by name; those not named have the defaults of `PlaneOptions`, a track of their own.
        codec: of the video: "h264", "hevc", "av1".
        qp: of the video, 1..51 in H.264's scale.
        effort: 0..2, of the video encoder.
        fps: frames a second.
        dead_zone: how much of a step residuals are drawn to 0, 0..0.49.
    """

    planes: Mapping[str, PlaneOptions] = field(default_factory=dict)
    codec: str = "h264"
    qp: int = 20
    effort: int = 1
    fps: Fraction = Fraction(30)
    dead_zone: float = 0.12


@dataclass(frozen=True)
class VideoGroup:
    """A coded group.

    Attributes:
        payload: the bytes. sizes: about how many bytes each plane takes, with "video" for the stream.
        codings: by plane what it became: "still", "path 3", "video", "path 2 + video", "direct".
        stream: the video, or None. qp: of the video.
    """

    payload: bytes
    sizes: dict[str, float]
    codings: dict[str, str]
    stream: VideoStream | None
    qp: int


@dataclass(frozen=True)
class _Plane:
    """What the payload says of a plane."""

    name: str
    low: int
    high: int
    still: bool
    functions: int  # index of the set of functions, -1 for none
    multiplier: int  # of the tile, 0 for none


def _rows(count: int, width: int) -> int:
    return -(-count // width)


@dataclass(frozen=True)
class _Atlas:
    """Where the tiles of a picture lie."""

    width: int  # cells of a grid row
    count: int
    tiles: int
    across: int

    @property
    def tile_width(self) -> int:
        return -(-self.width // 16) * 16

    @property
    def tile_height(self) -> int:
        return -(-_rows(self.count, self.width) // 16) * 16

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        return self.across * self.tile_width, -(-self.tiles // self.across) * self.tile_height

    @classmethod
    def fitting(cls, width: int, count: int, tiles: int) -> _Atlas:
        """The nearest to a square of all that hardware decodes."""
        best = None
        for across in range(1, tiles + 1):
            atlas = cls(width, count, tiles, across)
            w, h = atlas.size
            cost = (w * h, max(w, h))
            if max(w, h) <= MAX_SIDE and w * h <= MAX_SAMPLES and (best is None or cost < best[0]):
                best = cost, atlas
        if best is None:
            raise ParameterError(
                f"{tiles} planes of {count} cells do not fit a video picture of {MAX_SIDE} by {MAX_SIDE} and "
                f"{MAX_SAMPLES} samples",
                hint="fewer planes as video, or fewer Gaussians a group",
            )
        return best[1]

    def tile(self, number: int) -> tuple[slice, slice]:
        """Rows and columns of a tile in the picture."""
        y, x = number // self.across * self.tile_height, number % self.across * self.tile_width
        return slice(y, y + self.tile_height), slice(x, x + self.tile_width)

    def cells(self) -> npt.NDArray[np.int64]:
        """(tile_height, tile_width): which cell a pixel shows; border cells are repeated outwards."""
        rows = _rows(self.count, self.width)
        y = np.minimum(np.arange(self.tile_height), rows - 1)[:, None]
        x = np.minimum(np.arange(self.tile_width), self.width - 1)[None]
        cells = y * self.width + x
        above = np.maximum(cells - self.width, 0)
        return np.minimum(np.where(cells < self.count, cells, above), self.count - 1)


# --- encoder ----------------------------------------------------------------------------------------------------------


def _checked(planes: Mapping[str, npt.ArrayLike], width: int) -> dict[str, Integers]:
    arrays = {}
    shape: tuple[int, ...] | None = None
    for name, values in planes.items():
        array = np.asarray(values)
        if array.dtype.kind not in "ui" or array.ndim not in (1, 2):
            raise ParameterError(f"plane {name!r}: {array.dtype} of shape {array.shape}, expected (F, N) integers")
        if array.ndim == 1:
            array = array[None]  # rests
        if shape is None or shape[0] == 1:
            shape = (len(array), *(shape or array.shape)[1:])
        if array.shape not in (shape, (1, *shape[1:])):
            raise ParameterError(f"plane {name!r} has shape {array.shape}, the one before {shape}")
        wide = array.astype(np.int64)
        if wide.size and int(np.abs(wide).max()) >= _VALUE_LIMIT:
            raise ParameterError(f"plane {name!r}: values must be below {_VALUE_LIMIT}", field=name)
        if not 0 < len(name) <= 64 or not name.isascii():
            raise ParameterError(f"plane name {name!r}: expected 1 to 64 ASCII characters")
        arrays[name] = wide
    if shape is None or not 0 < shape[0] <= MAX_FRAMES or not 0 < shape[1] <= MAX_CELLS or len(arrays) > MAX_PLANES:
        raise ParameterError(
            f"{len(arrays)} planes of shape {shape}: expected 1 to {MAX_PLANES} of 1 to {MAX_FRAMES} frames and 1 to "
            f"{MAX_CELLS} cells"
        )
    if width < 1 or width > shape[1]:
        raise ParameterError(f"a grid of {shape[1]} cells cannot have a width of {width}", field="width")
    return arrays


def _time_functions(
    deviations: Sequence[npt.NDArray[np.float64]],
    weights: npt.NDArray[np.float64] | None,
    step: float,
    most: int,
    denoise: bool,
) -> tuple[npt.NDArray[np.int64], float]:
    """Functions of time that best describe the planes of a track (principal components over the frames).

    Args:
        deviations: (F, N) from the mean, of each plane. weights: (N,) or None. step: size of a step.
        most: most functions wanted. denoise: see `PlaneOptions`.

    Returns:
        (F, K) integers in 1/16384, the strongest first; and what they leave above noise, in squared steps a sample.
    """
    frames = len(deviations[0])
    gram = np.zeros((frames, frames))
    for values in deviations:
        gram += (values if weights is None else values * weights) @ values.T
    samples = sum(values.shape[1] for values in deviations)
    energies, vectors = np.linalg.eigh(gram / (samples * frames * step * step))
    energies, vectors = energies[::-1].astype(np.float64), vectors[:, ::-1].astype(np.float64)
    # Noise is the same in all directions of time: what the weaker half of them has.
    noise = _NOISE_EDGE * float(np.median(energies[: frames - 1])) if frames > 4 else 0.0
    if not denoise:
        noise = min(noise, _MOST_NOISE / frames)
    wanted = int(np.count_nonzero(energies > noise + _LEAST_ENERGY))
    kept = min(wanted, most, frames - 1)
    left = float(np.maximum(energies[kept:frames] - noise, 0.0).sum())
    chosen = vectors[:, :kept] * math.sqrt(frames)
    # The sign of a component is free; files shall not depend on it.
    chosen[:, chosen[np.abs(chosen).argmax(0), np.arange(kept)] < 0] *= -1.0
    return np.rint(chosen * (1 << _FUNCTION_BITS)).astype(np.int64), left


def _coefficients(functions: Integers, deviation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K, N) least-squares coefficients of (F, N) deviations."""
    basis = functions / float(1 << _FUNCTION_BITS)
    return np.linalg.solve(basis.T @ basis, basis.T @ deviation).astype(np.float64)


def encode_group(
    planes: Mapping[str, npt.ArrayLike],
    width: int,
    options: VideoOptions | None = None,
) -> VideoGroup:
    """Code the planes of a group of frames.

    Args:
        planes: by name (F, N) integers below 2^24 in size (8 or 16 bits usually), cells in the order of the grid;
            (N,) for what rests.
        width: cells of a row of the grid; the last row may be short.
        options: see `VideoOptions`.

    Returns:
        a VideoGroup; `decode_group` of its payload gives the planes, near the original by their steps and the QP.

    Raises:
        ParameterError: planes or options that cannot be coded.
        BackendUnavailableError: the video encoder is not there.
    """
    return _Prepared(planes, width, options or VideoOptions()).coded()


def encode_group_to_error(
    planes: Mapping[str, npt.ArrayLike],
    width: int,
    options: VideoOptions | None,
    error: Callable[[bytes], float],
    more_error: float,
) -> VideoGroup:
    """As `encode_group`, with the largest QP whose error is at most `more_error` above that of a very fine video.

    Args:
        error: of a payload, such as what a renderer shows of it, in any unit; it should grow with QP.
        more_error: in that unit.
    """
    prepared = _Prepared(planes, width, options or VideoOptions())
    best = prepared.coded(_FINEST_QP)
    if best.stream is None:
        return best
    most = error(best.payload) + more_error
    low, high = _FINEST_QP, _COARSEST_QP + 1
    while high - low > 1:
        middle = (low + high) // 2
        group = prepared.coded(middle)
        if error(group.payload) <= most:
            low, best = middle, group
        else:
            high = middle
    return best


class _Prepared:
    """A group coded but for its video, so that QPs can be tried."""

    def __init__(self, planes: Mapping[str, npt.ArrayLike], width: int, options: VideoOptions) -> None:
        self.options, self.width = options, width
        arrays = _checked(planes, width)
        self.frames, self.count = max(values.shape for values in arrays.values())
        for name in options.planes:
            if name not in arrays:
                raise ParameterError(f"options for a plane {name!r} that is not there")
        settings = {name: options.planes.get(name, PlaneOptions(track=name)) for name in arrays}
        for name, setting in settings.items():
            if setting.coding not in ("auto", "still", "path", "video", "direct"):
                raise ParameterError(f"plane {name!r}: no coding {setting.coding!r}")
            if not 0 <= setting.shift <= MAX_EXPONENT or not 0 <= setting.max_functions <= MAX_FUNCTIONS:
                raise ParameterError(f"plane {name!r}: shift or number of functions out of range")
            for other in (setting.steps, *setting.references):
                if other and list(arrays).index(name) <= list(arrays).index(other):
                    raise ParameterError(f"plane {name!r} comes before {other!r}, which it needs")
            if setting.steps and (len(arrays[setting.steps]) > 1 or arrays[setting.steps].max() > MAX_EXPONENT):
                raise ParameterError(f"plane {setting.steps!r} does not hold exponents of 0 to {MAX_EXPONENT}")
        self.order = list(arrays)
        self.functions: list[Integers] = []
        self._choose(arrays, settings)
        self._code_columns(arrays, settings)

    def _choose(self, arrays: dict[str, Integers], settings: dict[str, PlaneOptions]) -> None:
        """What each plane is made of."""
        self.set_of: dict[str, int] = {}
        self.tiled: dict[str, bool] = {}
        self.stills: dict[str, npt.NDArray[np.float64]] = {}
        tracks: dict[str, list[str]] = {}
        for name, setting in settings.items():
            tracks.setdefault(setting.track or name, []).append(name)
        for members in tracks.values():
            moving = []
            for name in members:
                setting = settings[name]
                self.set_of[name], self.tiled[name] = -1, setting.coding in ("video", "direct")
                if setting.coding == "direct":
                    continue
                self.stills[name] = arrays[name].mean(0)
                if self.tiled[name]:
                    self.stills[name] = self._start(arrays, name, setting)
                if setting.coding in ("auto", "path") and (arrays[name] != arrays[name][0]).any():
                    moving.append(name)
            if not moving:
                continue
            first = settings[moving[0]]
            weights = np.ldexp(1.0, -2 * arrays[first.steps][0]) if first.steps else None
            deviations = [arrays[name] - self.stills[name] for name in moving]
            functions, left = _time_functions(deviations, weights, 2.0**first.shift, first.max_functions, first.denoise)
            if first.coding == "auto" and left > _MOST_LEFT:
                # Not a few functions' worth of motion: the video has it all.
                for name in moving:
                    self.tiled[name] = True
                    self.stills[name] = self._start(arrays, name, settings[name])
            elif functions.shape[1]:
                self.functions.append(functions)
                for name in moving:
                    self.set_of[name] = len(self.functions) - 1
        self.tracks = tracks

    def _start(self, arrays: dict[str, Integers], name: str, setting: PlaneOptions) -> npt.NDArray[np.float64]:
        """The still of a plane with a tile: the first frame, less noise: the mean of the frames that are about like it.

        The first picture of the video is then blank, and changes cost when they happen.
        """
        values, step = arrays[name], np.float64(2.0**setting.shift)
        if setting.steps:
            step = np.ldexp(step, arrays[setting.steps][0])
        alike = np.abs(values - values[0]) <= step
        return (values * alike).sum(0) / alike.sum(0)

    def _code_columns(self, arrays: dict[str, Integers], settings: dict[str, PlaneOptions]) -> None:
        columns: list[npt.NDArray[np.float64]] = []
        plans: list[ColumnPlan] = []
        owners: list[str] = []
        still_at: dict[str, int] = {}
        previous: dict[str, list[str]] = {}
        dead = self.options.dead_zone
        for name in self.order:
            setting = settings[name]
            if name not in self.stills:
                continue
            earlier = previous.setdefault(setting.track or name, [])
            plan = ColumnPlan((), setting.shift, still_at[setting.steps] if setting.steps else None, dead)
            references = tuple(still_at[other] for other in (*earlier[-2:][::-1], *setting.references))
            still_at[name] = len(columns)
            columns.append(np.rint(self.stills[name]))
            plans.append(replace(plan, references=references, dead_zone=dead / 2))
            owners.append(name)
            if self.set_of[name] >= 0:
                functions = self.functions[self.set_of[name]]
                found = np.rint(_coefficients(functions, arrays[name] - self.stills[name]))
                alike = [other for other in earlier if self.set_of[other] == self.set_of[name]]
                for k in range(functions.shape[1]):
                    own = (still_at[name], *(still_at[other] + 1 + k for other in alike[-1:]))
                    columns.append(found[k])
                    plans.append(replace(plan, references=own))
                    owners.append(name)
            earlier.append(name)
        self.sizes: dict[str, float] = dict.fromkeys(self.order, 0.0)
        self.column_bytes = b""
        if columns:
            self.column_bytes, _, shares = encode_columns(np.stack(columns), self.width, plans)
            for name, share in zip(owners, shares):
                self.sizes[name] += float(share)
        # Tiles have the difference to the still as it was: they shall not make good for its steps, which were chosen.
        self.multipliers: dict[str, int] = {}
        self.bounds: dict[str, tuple[int, int]] = {}
        tiles = [name for name in self.order if self.tiled[name]]
        self.atlas = _Atlas.fitting(self.width, self.count, len(tiles)) if tiles else None
        self.pictures = None
        if self.atlas is not None:
            width, height = self.atlas.size
            self.pictures = np.full((self.frames, height, width), 128, np.uint8)
            cells = self.atlas.cells()
            self.residuals: dict[str, Integers] = {}
            for name in tiles:
                base = np.rint(self.stills[name]).astype(np.int64) if name in self.stills else np.int64(128)
                self.residuals[name] = arrays[name] - base
            for number, name in enumerate(tiles):
                rest = self.residuals[name]
                largest = int(np.abs(rest).max(initial=0))
                if settings[name].coding == "direct":
                    if int(arrays[name].min()) < 0 or int(arrays[name].max()) > 255:
                        raise ParameterError(f"plane {name!r}: direct video takes values of 0 to 255")
                    multiplier = 1
                else:
                    # A step of the video, in lumas, is about 2^((qp - 4) / 6): it should be worth one of the plane.
                    wanted = round(2.0 ** (settings[name].shift - (self.options.qp - 4) / 6))
                    multiplier = max(-(-largest // 127), wanted, 1)
                self.multipliers[name] = multiplier
                luma = np.clip((rest + multiplier // 2) // multiplier + 128, 0, 255).astype(np.uint8)
                rows, across = self.atlas.tile(number)
                self.pictures[:, rows, across] = luma[:, cells]
        for name in self.order:
            self.bounds[name] = int(arrays[name].min()), int(arrays[name].max())

    def coded(self, qp: int | None = None) -> VideoGroup:
        """The group with its video at a QP."""
        qp = self.options.qp if qp is None else qp
        stream = None
        if self.pictures is not None:
            stream = encode_video(
                self.pictures, codec=self.options.codec, qp=qp, fps=self.options.fps, effort=self.options.effort
            )
        out = bytearray([_VERSION])
        for number in (self.frames, self.count, self.width, len(self.functions)):
            out += write_varint(number)
        for functions in self.functions:
            out += bytes([functions.shape[1]]) + functions.astype("<i4").tobytes()
        out += write_varint(len(self.order))
        codings = {}
        for name in self.order:
            encoded = name.encode()
            still, tile, used = name in self.stills, self.tiled[name], self.set_of[name]
            low, high = self.bounds[name]
            out += bytes([len(encoded)]) + encoded + struct.pack("<ii", low, high)
            out += bytes([_HAS_STILL * still | _HAS_TILE * tile, used + 1])
            if tile:
                out += write_varint(self.multipliers[name])
            path = [f"path {self.functions[used].shape[1]}"] if used >= 0 else []
            codings[name] = " + ".join(path + ["video" if still else "direct"] * tile) or "still"
        out += write_varint(len(self.column_bytes)) + self.column_bytes
        sizes = dict(self.sizes)
        if stream is None or self.atlas is None:
            out += b"\0"
        else:
            out += bytes([CODECS[stream.codec]]) + write_varint(self.atlas.across)
            for text in (stream.codec_string.encode(), stream.description):
                out += write_varint(len(text)) + text
            out += b"".join(write_varint(len(packet)) for packet in stream.packets)
            out += b"".join(stream.packets)
            sizes["video"] = float(stream.size_bytes)
        out += struct.pack("<I", zlib.crc32(out))
        return VideoGroup(bytes(out), sizes, codings, stream, qp)


# --- decoder ----------------------------------------------------------------------------------------------------------


@kernel
def _combine(out, first, still, functions, coefficients, luma, width, multiplier, low, high):
    """Values of some rows of a plane in one frame.

    Sums of functions are whole numbers below 2^53: float64, of which vector units multiply more at once, is exact.

    Args:
        out: (M,) int32. first: the cell that is out[0], at the start of a row.
        still: (N,) int32 or empty (128). functions: (K,) int64. coefficients: (K, N) int32.
        luma: the tile's pixels or empty. width: of a row of the grid.
    """
    sums = np.empty(width, np.float64)
    for at in range(first, first + len(out), width):
        m = min(first + len(out) - at, width)
        to = at - first
        if len(still):
            for x in range(m):
                out[to + x] = still[at + x]
        else:
            out[to : to + m] = 128
        if len(functions):
            sums[:m] = float(1 << (_FUNCTION_BITS - 1))
            for k in range(0, len(functions), 4):  # four at a time: sums are read and written less often
                there = min(len(functions) - k, 4)
                f0, c0 = float(functions[k]), coefficients[k, at : at + m]
                f1, c1 = (float(functions[k + 1]), coefficients[k + 1, at : at + m]) if there > 1 else (0.0, c0)
                f2, c2 = (float(functions[k + 2]), coefficients[k + 2, at : at + m]) if there > 2 else (0.0, c0)
                f3, c3 = (float(functions[k + 3]), coefficients[k + 3, at : at + m]) if there > 3 else (0.0, c0)
                for x in range(m):
                    sums[x] += f0 * c0[x] + f1 * c1[x] + f2 * c2[x] + f3 * c3[x]
        y = at // width
        for x in range(m):
            v = np.int64(out[to + x])
            if len(functions):
                v += np.int64(sums[x]) >> np.int64(_FUNCTION_BITS)
            if multiplier:
                v += multiplier * (np.int64(luma[y, x]) - 128)
            out[to + x] = min(max(v, low), high)


class _Cursor:
    """A payload, read from its start; every read is checked."""

    def __init__(self, data: bytes, end: int) -> None:
        self.data, self.end, self.at = data, end, 0

    def take(self, length: int) -> bytes:
        if length < 0 or length > self.end - self.at:
            raise TruncatedError(f"{length} bytes wanted, {self.end - self.at} there", offset=self.at)
        self.at += length
        return self.data[self.at - length : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int, what: str, least: int = 0) -> int:
        value, after = read_varint(self.data, self.at)
        if after > self.end:
            raise TruncatedError("a number is cut off", offset=self.at)
        if not least <= value <= most:
            raise FormatError(f"{value} {what}, expected {least} to {most}", offset=self.at)
        self.at = after
        return value


class GroupReader:
    """A group, decoded but for its frames: stills and coefficients are there, the video is not yet looked at.

    Args:
        payload: from `encode_group`.
        limits: what may be allocated; checked before anything is.
        columns: decode stills and coefficients; without them there are no frames, only what is said about them.

    Attributes:
        num_frames, count, width: of the group and its grid.
        names: of the planes, in order.
        stream: the video, or None.

    Raises:
        FormatError: damaged. LimitExceededError: larger than allowed.
    """

    def __init__(self, payload: bytes | memoryview, limits: Limits = DEFAULT_LIMITS, *, columns: bool = True) -> None:
        data = bytes(payload)
        self._columns = columns
        if len(data) < 8:
            raise TruncatedError(f"{len(data)} bytes are no group of video planes", offset=0)
        if struct.unpack_from("<I", data, len(data) - 4)[0] != zlib.crc32(data[:-4]):
            raise ChecksumError("the checksum of the group does not match", offset=len(data) - 4)
        cursor = _Cursor(data, len(data) - 4)
        try:
            self._read(cursor, limits)
        except (FormatError, LimitExceededError) as error:
            raise error.locate(offset=cursor.at) from None

    def _read(self, cursor: _Cursor, limits: Limits) -> None:
        version = cursor.byte()
        if version != _VERSION:
            raise FormatError(f"version {version} of video planes, expected {_VERSION}", offset=0)
        self.num_frames = cursor.varint(MAX_FRAMES, "frames", 1)
        self.count = cursor.varint(MAX_CELLS, "cells", 1)
        limits.check_gaussians(self.count)
        self.width = cursor.varint(self.count, "cells in a row", 1)
        self.functions = []
        for _ in range(cursor.varint(MAX_PLANES, "sets of functions")):
            number = cursor.byte()
            if not 0 < number <= MAX_FUNCTIONS:
                raise FormatError(f"{number} functions in a set, expected 1 to {MAX_FUNCTIONS}")
            raw = cursor.take(4 * number * self.num_frames)
            functions = np.frombuffer(raw, "<i4").reshape(self.num_frames, number).astype(np.int64)
            if np.abs(functions).max() > 1 << 20:
                raise FormatError("a function of time is out of range")
            self.functions.append(functions)
        self.planes: list[_Plane] = []
        for _ in range(cursor.varint(MAX_PLANES, "planes", 1)):
            self.planes.append(self._read_plane(cursor))
        self.names = [plane.name for plane in self.planes]
        if len(set(self.names)) != len(self.names):
            raise FormatError("two planes have the same name")
        columns = [
            plane.still + (self.functions[plane.functions].shape[1] if plane.functions >= 0 else 0)
            for plane in self.planes
        ]
        total = sum(columns)
        limits.check_bytes(self.count * (12 * total + 32 + 4 * len(self.planes)), "the group")
        column_bytes = cursor.take(cursor.varint(1 << 40, "bytes of planes"))
        if column_bytes and total * self.count > MAX_VALUES_A_BYTE * len(column_bytes):
            raise FormatError(f"{total * self.count} values in {len(column_bytes)} bytes")
        if bool(total) != bool(column_bytes):
            raise FormatError("stills are announced and missing, or the other way round")
        values = np.zeros((0 if self._columns else total, self.count if self._columns else 0), np.int32)
        if total and self._columns:
            values = decode_columns(column_bytes, total, self.count, self.width)
        starts = np.cumsum([0, *columns])
        self._stills, self._coefficients = [], []
        none = np.zeros(0, np.int32)
        for plane, start, stop in zip(self.planes, starts[:-1], starts[1:]):
            self._stills.append(values[start] if plane.still else none)
            self._coefficients.append(values[start + plane.still : stop])
        tiled = np.array([plane.multiplier > 0 for plane in self.planes])
        self._tiles = [int(tile) for tile in np.cumsum(tiled) - 1]  # of planes that have one
        self._read_video(cursor)
        if cursor.at != cursor.end:
            raise FormatError(f"{cursor.end - cursor.at} bytes are left over behind the group")

    def _read_plane(self, cursor: _Cursor) -> _Plane:
        raw = cursor.take(cursor.byte())
        if not 0 < len(raw) <= 64 or not raw.isascii():
            raise FormatError("a plane's name is not 1 to 64 ASCII characters")
        low, high = struct.unpack("<ii", cursor.take(8))
        if low > high or low <= -_VALUE_LIMIT or high >= _VALUE_LIMIT:
            raise FormatError(f"a plane from {low} to {high}")
        flags, functions = cursor.byte(), cursor.byte() - 1
        if flags & ~(_HAS_STILL | _HAS_TILE) or functions >= len(self.functions) or not flags:
            raise FormatError(f"plane {raw.decode()!r}: impossible flags {flags} or functions {functions}")
        if functions >= 0 and not flags & _HAS_STILL:
            raise FormatError(f"plane {raw.decode()!r} has functions and no still")
        multiplier = cursor.varint(1 << 20, "as multiplier", 1) if flags & _HAS_TILE else 0
        return _Plane(raw.decode(), low, high, bool(flags & _HAS_STILL), functions, multiplier)

    def _read_video(self, cursor: _Cursor) -> None:
        tiles = sum(plane.multiplier > 0 for plane in self.planes)
        codec = cursor.byte()
        names = {number: name for name, number in CODECS.items()}
        if codec and codec not in names:
            raise FormatError(f"video codec {codec} is not known")
        if bool(codec) != bool(tiles):
            raise FormatError("tiles without a video, or a video without tiles")
        self.stream: VideoStream | None = None
        self._atlas: _Atlas | None = None
        if not codec:
            return
        across = cursor.varint(tiles, "tiles in a row", 1)
        self._atlas = _Atlas(self.width, self.count, tiles, across)
        width, height = self._atlas.size
        if max(width, height) > MAX_SIDE or width * height > MAX_SAMPLES:
            raise LimitExceededError(f"a video of {width} x {height}")
        name = cursor.take(cursor.varint(64, "bytes of codec string"))
        if not name.isascii():
            raise FormatError("the codec string is not ASCII")
        description = cursor.take(cursor.varint(1 << 16, "bytes of description"))
        lengths = [cursor.varint(1 << 32, "bytes in a packet", 1) for _ in range(self.num_frames)]
        packets = [cursor.take(length) for length in lengths]
        keys = [True] + [False] * (self.num_frames - 1)
        self.stream = VideoStream(names[codec], name.decode(), width, height, description, packets, keys)

    def rests(self, k: int) -> bool:
        """Whether plane k is the same in all frames."""
        return not self.planes[k].multiplier and self.planes[k].functions < 0

    def pictures(self, *, num_threads: int = 2, limits: Limits = DEFAULT_LIMITS) -> Iterator[Pixels]:
        """For each frame the picture that `fill` takes, good until the next is asked for.

        Raises:
            FormatError: the video is damaged.
        """
        if self.stream is None:
            for _ in range(self.num_frames):
                yield _BLANK
            return
        pictures = decode_video(self.stream, num_threads=num_threads, limits=limits)
        for _ in range(self.num_frames):
            yield next(pictures)
        for _ in pictures:  # nothing may come, and what follows the last picture is checked
            raise FormatError("the video has too many pictures")

    def fill(self, k: int, number: int, picture: Pixels, first: int, out: npt.NDArray[np.int32]) -> None:
        """Values of plane k in frame `number` for len(out) cells from `first`, which begins a row of the grid."""
        plane = self.planes[k]
        luma = picture[self._atlas.tile(self._tiles[k])] if plane.multiplier and self._atlas is not None else _BLANK
        functions = _NO_FUNCTIONS if plane.functions < 0 else self.functions[plane.functions][number]
        _combine(
            out, first, self._stills[k], functions, self._coefficients[k], luma, self.width, plane.multiplier,
            plane.low, plane.high,
        )  # fmt: skip

    def frames(
        self, *, num_threads: int = 2, limits: Limits = DEFAULT_LIMITS
    ) -> Iterator[dict[str, npt.NDArray[np.int32]]]:
        """The planes of one frame after another: by name (N,) int32, read-only. What rests is one array.

        Raises:
            FormatError: the video is damaged.
        """
        resting: dict[str, npt.NDArray[np.int32]] = {}
        for number, picture in enumerate(self.pictures(num_threads=num_threads, limits=limits)):
            out = {}
            for k, plane in enumerate(self.planes):
                if plane.name in resting:
                    out[plane.name] = resting[plane.name]
                    continue
                values = np.empty(self.count, np.int32)
                self.fill(k, number, picture, 0, values)
                values.flags.writeable = False
                if self.rests(k):
                    resting[plane.name] = values
                out[plane.name] = values
            yield out


def video_of(payload: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> VideoStream | None:
    """The video in a group, which is not decoded; None where the group has none.

    Raises:
        FormatError: truncated or damaged. LimitExceededError: larger than `limits` allows.
    """
    return GroupReader(payload, limits, columns=False).stream


def decode_group(
    payload: bytes | memoryview, limits: Limits = DEFAULT_LIMITS, *, num_threads: int = 2
) -> dict[str, npt.NDArray[np.int32]]:
    """All frames of a group: by name (F, N) int32, in the order of the grid.

    `GroupReader.frames` gives them one by one, in less memory.

    Raises:
        FormatError: truncated or damaged. LimitExceededError: larger than `limits` allows.
        BackendUnavailableError: the video decoder is not there.
    """
    reader = GroupReader(payload, limits)
    limits.check_bytes(4 * reader.num_frames * reader.count * len(reader.names), "the group's frames")
    planes = {name: np.empty((reader.num_frames, reader.count), np.int32) for name in reader.names}
    for number, frame in enumerate(reader.frames(num_threads=num_threads, limits=limits)):
        for name, values in frame.items():
            planes[name][number] = values
    return planes
