"""COLMAP reconstructions: sparse/0 (or sparse, or the folder itself) with cameras, images and points3D, binary or text,
and the pictures in images or images_N.

The layout of the files is that of COLMAP's documentation ("Output format"). Test views are every 8th of the sorted
names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import FormatError, LimitExceededError, ParameterError, SplatCodecError, TruncatedError, UnsupportedError
from ...files import read_bytes
from ._lens import Lens
from .base import Dataset, DatasetKind, PointCloud, ReadOptions, Shot, as_float32, build_dataset, hold_out

__all__ = ["KIND", "Model", "read_model", "reprojection_errors_px"]

# Number in binary files, name, parameters; the names of those that are read say how the parameters are ordered.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3, "f cx cy"),
    1: ("PINHOLE", 4, "fx fy cx cy"),
    2: ("SIMPLE_RADIAL", 4, "f cx cy k1"),
    3: ("RADIAL", 5, "f cx cy k1 k2"),
    4: ("OPENCV", 8, "fx fy cx cy k1 k2 p1 p2"),
    5: ("OPENCV_FISHEYE", 8, None),
    6: ("FULL_OPENCV", 12, None),
    7: ("FOV", 5, None),
    8: ("SIMPLE_RADIAL_FISHEYE", 4, None),
    9: ("RADIAL_FISHEYE", 5, None),
    10: ("THIN_PRISM_FISHEYE", 12, None),
}
_NUMBERS = {name: number for number, (name, _, _) in _MODELS.items()}
_MAX_FILE_BYTES = 1 << 34
_MAX_NAME_BYTES = 4096
# Half the points of a reconstruction lie further than this share of the picture's diagonal from where they were seen:
# the poses are not those of these points.
_MAX_ERROR_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Image:
    """One registered image.

    Attributes:
        name: path within the folder of pictures.
        camera_id: its camera.
        viewmat: (4, 4) float64, world to camera.
        pixels: (M, 2) float64, where points were seen.
        point_ids: (M,) int64, which; -1: none.
    """

    name: str
    camera_id: int
    viewmat: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.float64]
    point_ids: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Model:
    """A reconstruction: cameras by number, images, points."""

    folder: Path
    cameras: dict[int, Lens]
    images: list[Image]
    point_ids: npt.NDArray[np.int64]
    means: npt.NDArray[np.float64]
    colours: npt.NDArray[np.float32]


class _Reader:
    """Numbers one after the other from the bytes of a file; what is missing is a TruncatedError with its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = read_bytes(path, _MAX_FILE_BYTES)
        self.at = 0

    def take(self, layout: str) -> tuple[float, ...]:
        size_bytes = struct.calcsize(layout)
        self._need(size_bytes)
        values = struct.unpack_from(layout, self.content, self.at)
        self.at += size_bytes
        return values

    def array(self, dtype: npt.DTypeLike, count: int) -> npt.NDArray[np.void]:
        kind = np.dtype(dtype)
        self._need(count * kind.itemsize)
        values = np.frombuffer(self.content, kind, count, self.at)
        self.at += count * kind.itemsize
        return values

    def count(self, least_bytes: int, what: str) -> int:
        """A number of things of at least so many bytes each; checked against what is left of the file."""
        at = self.at
        (count,) = self.take("<Q")
        if count * least_bytes > len(self.content) - self.at:
            raise TruncatedError(f"{count} {what} do not fit in the rest of the file", file=str(self.path), offset=at)
        return int(count)

    def name(self) -> str:
        end = self.content.find(b"\0", self.at, self.at + _MAX_NAME_BYTES)
        if end < 0:
            raise TruncatedError("a name without an end", file=str(self.path), offset=self.at)
        text = self.content[self.at : end].decode("utf-8", "surrogateescape")
        self.at = end + 1
        return text

    def end(self) -> None:
        if self.at != len(self.content):
            raise FormatError(f"{len(self.content) - self.at} bytes after the end", file=str(self.path), offset=self.at)

    def fail(self, message: str) -> FormatError:
        return FormatError(message, file=str(self.path), offset=self.at)

    def _need(self, size_bytes: int) -> None:
        if self.at + size_bytes > len(self.content):
            raise TruncatedError("the file ends too early", file=str(self.path), offset=self.at)


def _lens_of(model: str, width: float, height: float, values: npt.NDArray[np.float64]) -> Lens:
    names = _MODELS[_NUMBERS[model]][2]
    if names is None:
        known = ", ".join(name for name, _, order in _MODELS.values() if order)
        raise UnsupportedError(f"the camera model {model}", hint=f"undistort first; read are {known}")
    by_name = dict(zip(names.split(), values.tolist(), strict=True))
    if "f" in by_name:
        by_name["fx"] = by_name["fy"] = by_name.pop("f")
    lens = Lens(int(width), int(height), **by_name)
    lens.check()
    return lens


def _viewmat(quat: npt.NDArray[np.float64], shift: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(all="ignore"):
        norm = float(np.linalg.norm(quat))
    if not np.isfinite(norm) or not 0.5 < norm < 2.0 or not np.isfinite(shift).all():
        raise FormatError("a pose that is no rotation and shift")
    w, x, y, z = quat / norm
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = shift
    return matrix


def _binary_cameras(path: Path) -> dict[int, Lens]:
    reader = _Reader(path)
    cameras: dict[int, Lens] = {}
    for _ in range(reader.count(24, "cameras")):
        at = reader.at
        number, model, width, height = reader.take("<IiQQ")
        if model not in _MODELS:
            raise UnsupportedError(f"the camera model number {model}", file=str(path), offset=at)
        name, num_values, _ = _MODELS[int(model)]
        values = np.array(reader.take(f"<{num_values}d"))
        try:
            lens = _lens_of(name, width, height, values)
        except SplatCodecError as error:
            raise error.locate(file=str(path), offset=at) from None
        if number in cameras:
            raise FormatError(f"camera {number} is there twice", file=str(path), offset=at)
        cameras[int(number)] = lens
    reader.end()
    return cameras


def _binary_images(path: Path) -> Iterator[Image]:
    reader = _Reader(path)
    for _ in range(reader.count(73, "images")):
        at = reader.at
        reader.take("<I")
        numbers = np.array(reader.take("<7d"))
        (camera_id,) = reader.take("<I")
        name = reader.name()
        try:
            viewmat = _viewmat(numbers[:4], numbers[4:])
        except SplatCodecError as error:
            raise error.locate(file=str(path), offset=at) from None
        seen = reader.array([("xy", "<f8", 2), ("id", "<i8")], reader.count(24, "observations"))
        yield Image(name, int(camera_id), viewmat, seen["xy"], seen["id"])
    reader.end()


def _binary_points(
    path: Path, options: ReadOptions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    reader = _Reader(path)
    count = reader.count(51, "points")
    options.limits.check_gaussians(count, file=str(path))
    ids, means = np.empty(count, np.int64), np.empty((count, 3))
    colours = np.empty((count, 3), np.float32)
    for k in range(count):
        ids[k], *means[k], red, green, blue, _ = reader.take("<qdddBBBd")
        colours[k] = red, green, blue
        reader.array("<i8", reader.count(8, "track elements"))
    reader.end()
    return ids, means, colours / np.float32(255.0)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of a text file without comments; blank lines stay, as they mean something in images.txt."""
    try:
        text = read_bytes(path, _MAX_FILE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8 text", file=str(path), offset=error.start) from None
    return [(k, line) for k, line in enumerate(text.splitlines(), 1) if not line.lstrip().startswith("#")]


def _numbers(words: list[str], path: Path, line: int) -> npt.NDArray[np.float64]:
    try:
        return np.array([float(word) for word in words])
    except ValueError:
        raise FormatError(f"line {line}: not numbers", file=str(path)) from None


def _text_cameras(path: Path) -> dict[int, Lens]:
    cameras: dict[int, Lens] = {}
    for line, text in _lines(path):
        words = text.split()
        if not words:
            continue
        if len(words) < 4:
            raise FormatError(f"line {line}: not a camera", file=str(path))
        if words[1] not in _NUMBERS:
            raise UnsupportedError(f"line {line}: the camera model {words[1][:40]!r}", file=str(path))
        values = _numbers([words[0], *words[2:]], path, line)
        if len(values) - 3 != _MODELS[_NUMBERS[words[1]]][1] or not np.isfinite(values[:3]).all():
            raise FormatError(f"line {line}: {len(values) - 3} parameters for {words[1]}", file=str(path))
        try:
            cameras[int(values[0])] = _lens_of(words[1], values[1], values[2], values[3:])
        except SplatCodecError as error:
            error.message = f"line {line}: {error.message}"
            raise error.locate(file=str(path)) from None
    return cameras


def _text_images(path: Path) -> Iterator[Image]:
    lines = _lines(path)
    while lines and not lines[0][1].strip():
        lines.pop(0)
    # Two lines an image; the second may be empty, and at the end of the file it may be missing.
    for at in range(0, len(lines), 2):
        line, text = lines[at]
        words = text.split(maxsplit=9)
        if not words and at + 1 >= len(lines):
            break
        if len(words) != 10:
            raise FormatError(f"line {line}: not an image", file=str(path))
        numbers = _numbers(words[:9], path, line)
        try:
            viewmat = _viewmat(numbers[1:5], numbers[5:8])
        except SplatCodecError as error:
            error.message = f"line {line}: {error.message}"
            raise error.locate(file=str(path)) from None
        seen_words = lines[at + 1][1].split() if at + 1 < len(lines) else []
        if len(seen_words) % 3:
            raise FormatError(f"line {line + 1}: not observations of points", file=str(path))
        seen = _numbers(seen_words, path, line + 1).reshape(-1, 3)
        if not np.isfinite(numbers[8]) or not np.isfinite(seen[:, 2]).all():
            raise FormatError(f"line {line}: numbers that are not finite", file=str(path))
        yield Image(words[9].strip(), int(numbers[8]), viewmat, seen[:, :2], seen[:, 2].astype(np.int64))


def _text_points(
    path: Path, options: ReadOptions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    rows = []
    for line, text in _lines(path):
        words = text.split(maxsplit=8)
        if not words:
            continue
        if len(words) < 8:
            raise FormatError(f"line {line}: not a point", file=str(path))
        rows.append(_numbers(words[:7], path, line))
        options.limits.check_gaussians(len(rows), file=str(path))
    values = np.array(rows).reshape(-1, 7)
    if not np.isfinite(values[:, 0]).all():
        raise FormatError("points without a number", file=str(path))
    return values[:, 0].astype(np.int64), values[:, 1:4], as_float32(values[:, 4:] / 255.0).clip(0.0, 1.0)


def _model_folder(folder: Path) -> Path | None:
    for name in ("sparse/0", "sparse", "."):
        for suffix in (".bin", ".txt"):
            if (folder / name / f"cameras{suffix}").is_file() and (folder / name / f"images{suffix}").is_file():
                return folder / name
    return None


def read_model(folder: Path, options: ReadOptions) -> Model:
    """The reconstruction in a folder with cameras, images and points3D; binary files win over text.

    Raises:
        FormatError, UnsupportedError, LimitExceededError: what is wrong, with file and byte or line.
    """
    binary = (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file()
    suffix = ".bin" if binary else ".txt"
    cameras = (_binary_cameras if binary else _text_cameras)(folder / f"cameras{suffix}")
    images = list((_binary_images if binary else _text_images)(folder / f"images{suffix}"))
    points = folder / f"points3D{suffix}"
    ids, means, colours = np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((0, 3), np.float32)
    if points.is_file():
        ids, means, colours = (_binary_points if binary else _text_points)(points, options)
    for image in images:
        if image.camera_id not in cameras:
            raise FormatError(
                f"the image {image.name!r} is of camera {image.camera_id}, which is not there",
                file=str(folder / f"images{suffix}"),
            )
    return Model(folder, cameras, images, ids, means, colours)


def reprojection_errors_px(model: Model, image: Image) -> npt.NDArray[np.float64]:
    """How far from where they were seen an image's points project, in pixels of its camera; behind it: infinite."""
    order = np.argsort(model.point_ids, kind="stable")
    known = image.point_ids >= 0
    at = np.searchsorted(model.point_ids, image.point_ids[known], sorter=order).clip(0, max(len(order) - 1, 0))
    if not len(order):
        return np.zeros(0)
    rows = order[at]
    found = model.point_ids[rows] == image.point_ids[known]
    lens = model.cameras[image.camera_id]
    with np.errstate(all="ignore"):
        local = model.means[rows[found]] @ image.viewmat[:3, :3].T + image.viewmat[:3, 3]
        x, y = lens.distort(local[:, 0] / local[:, 2], local[:, 1] / local[:, 2])
        offsets = np.stack([x * lens.fx + lens.cx, y * lens.fy + lens.cy], axis=1) - image.pixels[known][found]
        errors = np.linalg.norm(offsets, axis=1)
    return np.where((local[:, 2] > 0) & np.isfinite(errors), errors, np.inf)


def _check_poses(model: Model) -> None:
    for image in model.images:
        errors = reprojection_errors_px(model, image)
        lens = model.cameras[image.camera_id]
        limit_px = _MAX_ERROR_SHARE * float(np.hypot(lens.width, lens.height))
        if len(errors) >= 8 and float(np.median(errors)) > limit_px:
            raise FormatError(
                f"the pose of {image.name!r} does not match the points: half of them are more than {limit_px:.0f} "
                "pixels from where it saw them",
                file=str(model.folder),
            )


def _picture_folder(folder: Path, options: ReadOptions) -> Path:
    if options.images is not None:
        if not (folder / options.images).is_dir():
            raise ParameterError("no such folder of pictures", file=str(folder / options.images))
        return folder / options.images
    if (folder / "images").is_dir():
        return folder / "images"
    numbered = [(int(match[1]), path) for path in folder.glob("images_*") if (match := _of_number(path))]
    if not numbered:
        raise FormatError("there is no folder of pictures (images or images_N)", file=str(folder))
    return min(numbered)[1]


def _of_number(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"images_([0-9]{1,3})", path.name) if path.is_dir() else None


def _read(folder: Path, options: ReadOptions) -> Dataset:
    where = _model_folder(folder)
    if where is None:
        raise ParameterError("no COLMAP reconstruction: cameras and images, .bin or .txt", file=str(folder))
    model = read_model(where, options)
    pictures = _picture_folder(folder, options)
    _check_poses(model)
    shots = []
    for image in model.images:
        name = Path(image.name)
        if not image.name or "\0" in image.name or name.is_absolute() or ".." in name.parts:
            raise FormatError(f"{image.name[:80]!r} is not the name of a picture", file=str(where))
        path = pictures / name
        if not path.is_file() and path.suffix:  # shrunk copies may be of another format
            path = next((other for s in (".jpg", ".png", ".JPG") if (other := path.with_suffix(s)).is_file()), path)
        shots.append(Shot(image.name, path, image.viewmat, model.cameras[image.camera_id], None, str(where)))
    notes = [f"pictures from {pictures.name}"] if pictures.name != "images" else []
    unposed = _unposed(pictures, shots)
    if unposed:
        notes.append(f"{unposed} pictures without a pose are not used")
    train, test = hold_out(shots, options.test_every)
    points = PointCloud(as_float32(model.means), model.colours, str(where / "points3D"))
    return build_dataset("colmap", folder, train, test, points, options, notes=notes)


def _unposed(pictures: Path, shots: list[Shot]) -> int:
    used = {shot.path for shot in shots}
    files = [path for path in pictures.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if len(files) > 1 << 20:
        raise LimitExceededError(f"{len(files)} pictures", file=str(pictures))
    return sum(path not in used for path in files)


KIND = DatasetKind(
    name="colmap",
    title="COLMAP",
    matches=lambda folder: _model_folder(folder) is not None,
    read=_read,
    looks_for="sparse/0/cameras.bin or .txt",
    rank=2,
)
