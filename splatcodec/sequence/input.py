"""Frames of a moving scene from files: a folder of scenes, trajectories (.npz), Spacetime Gaussian PLYs.

Trajectories are documented in docs/sequences.md: a still scene whose positions and quaternions are polynomials and
Fourier sums of time and whose opacities have windows in time; arrays may also hold a value for each frame.
"""

from __future__ import annotations

import itertools
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, ParameterError, SplatCodecError, UnsupportedError
from ..files import PathLike, open_for_reading
from ..gaussians import SH_C0, Gaussians
from ..limits import DEFAULT_LIMITS, Limits

__all__ = ["FrameFolder", "Trajectories", "is_moving_source", "natural_key", "open_frames", "read_trajectories"]

_SCENE_SUFFIXES = (".ply", ".splat", ".spz", ".sog", ".ksplat", ".glb", ".splc")
_MOTION = re.compile(r"motion_(\d+)$")


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts frame_2 before frame_10.

    >>> sorted(["f10", "f9"], key=natural_key)
    ['f9', 'f10']
    """
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


@dataclass
class FrameFolder:
    """A folder with a scene a frame, in the order of the numbers in their names.

    Raises:
        ParameterError: there are none, or a number is missing between others.
    """

    path: Path
    limits: Limits = DEFAULT_LIMITS
    files: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            with os.scandir(self.path) as found:
                entries = sorted(found, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            raise ParameterError(f"cannot read: {error.strerror}", file=str(self.path)) from None
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(_SCENE_SUFFIXES) or (entry.is_dir() and _is_sog(Path(entry.path)))
        ]
        suffixes = {Path(name).suffix.lower() for name in names}
        if not names:
            raise ParameterError("the folder holds no scenes", file=str(self.path))
        if len(suffixes) > 1:
            raise ParameterError(
                f"the folder holds files of several kinds: {', '.join(sorted(suffixes))}", file=str(self.path)
            )
        self.files = [self.path / name for name in names]
        self._check_numbers(names)

    def _check_numbers(self, names: list[str]) -> None:
        """Names that differ in one number only must have all numbers between the first and the last."""
        found = [re.findall(r"\d+", Path(name).stem) for name in names]
        stems = {re.sub(r"\d+", "#", Path(name).stem) for name in names}
        if len(stems) != 1 or len(names) < 3 or not found[0]:
            return
        for k in range(len(found[0])):
            numbers = [int(numbers[k]) for numbers in found]
            if len(set(numbers)) < len(numbers):
                continue
            steps = sorted({b - a for a, b in itertools.pairwise(numbers)})
            missing = next((a + steps[0] for a, b in itertools.pairwise(numbers) if b - a != steps[0]), None)
            if missing is not None:
                raise ParameterError(
                    f"frame {missing} is missing between {numbers[0]} and {numbers[-1]}",
                    file=str(self.path),
                    hint="number the frames without gaps",
                )
            return

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        """The file of a frame, for messages."""
        return str(self.files[number])

    def __iter__(self) -> Iterator[Gaussians]:
        from .. import api

        for path in self.files:
            yield api.read(path, limits=self.limits)


def _is_sog(path: Path) -> bool:
    return (path / "meta.json").is_file()


@dataclass
class Trajectories:
    """A scene as functions of time.

    Attributes:
        arrays: see docs/sequences.md.
        times: (F,) float64, the time of each frame.
        source: for messages.
    """

    arrays: dict[str, npt.NDArray[Any]]
    times: npt.NDArray[np.float64]
    source: str = ""

    def __len__(self) -> int:
        return len(self.times)

    def name(self, number: int) -> str:
        """For messages."""
        return f"{self.source} frame {number}"

    def __iter__(self) -> Iterator[Gaussians]:
        for number in range(len(self.times)):
            yield self.frame(number)

    def frame(self, number: int) -> Gaussians:
        """The scene at a frame's time."""
        time = float(self.times[number])
        n = self._count

        def of(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64] | None:
            array = self.arrays.get(name)
            if array is None:
                return None
            if array.ndim == len(shape) + 2:
                array = array[number]
            return np.asarray(array, np.float64).reshape(n, *shape)

        means, quats = of("means", (3,)), of("quats", (4,))
        scales, opacities = of("scales", (3,)), of("opacities", ())
        assert means is not None
        quats = np.tile([1.0, 0.0, 0.0, 0.0], (n, 1)) if quats is None else quats
        scales = np.zeros((n, 3)) if scales is None else scales
        opacities = np.zeros(n) if opacities is None else opacities
        center = np.asarray(self.arrays.get("time_center", np.zeros(n)), np.float64)
        dt = time - center
        means = means + self._moved("position", dt, 3)
        quats = quats + self._moved("quat", dt, 4)
        width = self.arrays.get("time_scale")
        if width is not None:
            window = np.exp(-((dt / np.maximum(np.asarray(width, np.float64), 1e-9)) ** 2))
            alphas = np.clip(window / (1.0 + np.exp(-np.clip(opacities, -60, 60))), 1e-9, 1 - 1e-9)
            opacities = np.log(alphas / (1.0 - alphas))
        sh0, shN = self.arrays.get("sh0"), self.arrays.get("shN")
        color = np.zeros((n, 1, 3)) if sh0 is None else _at(sh0, number, n, 3)
        rest = None if shN is None else np.asarray(shN[number] if shN.ndim == 4 else shN)
        extras = {"id": np.asarray(self.arrays["id"], np.int64)} if "id" in self.arrays else {"id": np.arange(n)}
        return Gaussians(means, quats, scales, opacities, color, rest, extras=extras)  # type: ignore[arg-type]

    @property
    def _count(self) -> int:
        means = self.arrays["means"]
        return int(means.shape[-2])

    def _moved(self, what: str, dt: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
        """What polynomials and Fourier sums add; of the k-th coefficient (from 1) the power k, or k whole turns."""
        total = np.zeros((len(dt), width))
        for kind in ("polynomial", "sines", "cosines"):
            terms = self.arrays.get(f"{what}_{kind}")
            if terms is None:
                continue
            for k in range(terms.shape[2]):
                if kind == "polynomial":
                    factor = dt ** (k + 1)
                else:
                    wave = np.sin if kind == "sines" else np.cos
                    factor = wave(2.0 * np.pi * (k + 1) * dt)
                total += np.asarray(terms[:, :, k], np.float64) * factor[:, None]
        return total


def _at(array: npt.NDArray[Any], number: int, count: int, width: int) -> npt.NDArray[np.float64]:
    if array.size == count * width:
        return np.asarray(array, np.float64).reshape(count, 1, width)
    return np.asarray(array[number], np.float64).reshape(count, 1, width)


# Shapes after the number of frames, which may stand before any of the first group; N is the number of Gaussians.
_BY_FRAME: dict[str, tuple[Any, ...]] = {
    "means": ("N", 3), "quats": ("N", 4), "scales": ("N", 3), "opacities": ("N",), "sh0": ("N", 3),
    "shN": ("N", None, 3),
}  # fmt: skip
_FIXED: dict[str, tuple[Any, ...]] = {
    "position_polynomial": ("N", 3, None), "position_sines": ("N", 3, None), "position_cosines": ("N", 3, None),
    "quat_polynomial": ("N", 4, None), "quat_sines": ("N", 4, None), "quat_cosines": ("N", 4, None),
    "time_center": ("N",), "time_scale": ("N",), "id": ("N",),
}  # fmt: skip


def read_trajectories(path: PathLike, limits: Limits = DEFAULT_LIMITS) -> Trajectories:
    """Read an .npz of trajectories (docs/sequences.md).

    Raises:
        FormatError: an array is missing, or has another shape than it should.
    """
    name = os.fspath(path)
    try:
        with open_for_reading(path) as file, zipfile.ZipFile(file) as archive:
            limits.check_bytes(sum(entry.file_size for entry in archive.infolist()), "the arrays", file=name)
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
    except SplatCodecError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise FormatError(f"not an .npz of arrays: {error}", file=name) from None
    means = arrays.get("means")
    if means is None or means.ndim not in (2, 3) or means.shape[-1] != 3:
        raise FormatError("means must be (N, 3) or (frames, N, 3)", file=name, field="means")
    count = means.shape[-2]
    frames = {len(arrays["times"])} if "times" in arrays else set()
    for key, array in arrays.items():
        if key in ("times", "fps"):
            continue
        shape = _BY_FRAME.get(key) or _FIXED.get(key)
        if shape is None:
            raise FormatError(f"unknown array {key!r}", file=name, field=key)
        if array.dtype.kind not in "fiu":
            raise FormatError(f"{key} is not of numbers", file=name, field=key)
        own = array.shape
        if key == "sh0" and own[-2:] == (1, 3):
            own = (*own[:-2], 3)
        moving = key in _BY_FRAME and len(own) == len(shape) + 1
        checked = own[1:] if moving else own
        wanted = tuple(count if n == "N" else n for n in shape)
        if len(checked) != len(wanted) or any(w is not None and w != c for w, c in zip(wanted, checked)):
            raise FormatError(f"{key} has shape {array.shape}", file=name, field=key)
        if moving:
            frames.add(own[0])
    if len(frames) != 1:
        said = f"{sorted(frames)} frames" if frames else "no number of frames"
        raise FormatError(f"the arrays say {said}", file=name, hint="add `times`, one a frame")
    total = frames.pop()
    times = np.asarray(arrays.get("times", np.arange(total)), np.float64)
    if times.shape != (total,) or not np.isfinite(times).all():
        raise FormatError("times are not one number a frame", file=name, field="times")
    return Trajectories(arrays, times, name)


def _spacetime(path: Path, frames: int | None, limits: Limits) -> Trajectories:
    """Spacetime Gaussians (Li et al., 2023): cubic motion, linear turning, opacity windows; time 0..1 over the clip."""
    from ..formats.ply import read_table

    table = read_table(path, limits)
    columns = {key: np.asarray(values, np.float64) for key, values in table.columns.items()}
    name = str(path)
    if frames is None:
        raise ParameterError("a Spacetime Gaussian file does not say how many frames it has", file=name, hint="--count")
    if "f_dc_3" in columns or "f_t_0" in columns:
        raise UnsupportedError("colours of this file come from a neural network", file=name, hint="use the lite model")

    def stack(names: list[str]) -> npt.NDArray[np.float64]:
        lacking = [key for key in names if key not in columns]
        if lacking:
            raise FormatError(f"there is no {lacking[0]}", file=name, field=lacking[0])
        return np.stack([columns[key] for key in names], axis=-1)

    motion = stack([f"motion_{k}" for k in range(9)]).reshape(-1, 3, 3).transpose(0, 2, 1)
    arrays = {
        "means": stack(["x", "y", "z"]),
        "quats": stack([f"rot_{k}" for k in range(4)]),
        "scales": stack([f"scale_{k}" for k in range(3)]),
        "opacities": columns["opacity"] if "opacity" in columns else stack(["opacity"])[:, 0],
        "sh0": (stack([f"f_dc_{k}" for k in range(3)]) - 0.5) / SH_C0,
        "position_polynomial": motion,
        "quat_polynomial": stack([f"omega_{k}" for k in range(4)])[:, :, None],
        "time_center": stack(["trbf_center"])[:, 0],
        "time_scale": np.exp(np.clip(stack(["trbf_scale"])[:, 0], -60, 60)),
    }
    return Trajectories(arrays, np.arange(frames) / frames, name)


def is_moving_source(path: PathLike) -> bool:
    """Whether a path is frames and not one scene: a folder of scenes, an .npz, a PLY with motion."""
    where = Path(path)
    if where.is_dir():
        if _is_sog(where) or (where / "lod-meta.json").is_file():
            return False
        with os.scandir(where) as entries:
            return any(entry.name.lower().endswith(_SCENE_SUFFIXES) or _is_sog(Path(entry.path)) for entry in entries)
    return where.suffix.lower() == ".npz" or _has_motion(where)


def _has_motion(path: Path) -> bool:
    if path.suffix.lower() != ".ply" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(1 << 14)
    return b"property float motion_0" in head and b"trbf_center" in head


def open_frames(path: PathLike, *, count: int | None = None, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Frames of a source: something with a length, an iterator over Gaussians, and `name(number)`.

    Args:
        count: frames to take of a file that does not say how many there are.

    Raises:
        ParameterError: it is no moving scene.
        SplatCodecError: it cannot be read.
    """
    where = Path(path)
    if where.is_dir():
        return FrameFolder(where, limits)
    if where.suffix.lower() == ".npz":
        return read_trajectories(where, limits)
    if _has_motion(where):
        return _spacetime(where, count, limits)
    raise ParameterError("not frames of a moving scene", file=str(where), hint="a folder of scenes, or an .npz")
