"""What the JSON files of Blender, instant-ngp, nerfstudio and D-NeRF sets have in common: frames with camera-to-world
matrices in OpenGL axes (x right, y up, z backward)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import FormatError, SplatCodecError, UnsupportedError
from ...files import read_bytes
from ...formats._json import JsonObject, parse_object
from ._lens import Lens
from ._pictures import picture_size
from .base import ReadOptions, Shot

__all__ = ["find_picture", "read_json", "read_shots"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")
_MAX_FRAMES = 1 << 20
_UNSUPPORTED_MODELS = ("OPENCV_FISHEYE", "FISHEYE", "EQUIRECTANGULAR", "OMNIDIRECTIONALSTEREO_L", "FISHEYE624")


def read_json(path: Path, options: ReadOptions) -> JsonObject:
    """The object in a JSON file.

    Raises:
        FormatError, LimitExceededError, ParameterError: no file, too long, or not JSON.
    """
    try:
        return parse_object(read_bytes(path, options.limits.max_json_bytes), path.name)
    except SplatCodecError as error:
        raise error.locate(file=str(path)) from None


def find_picture(folder: Path, name: str) -> Path:
    """The file that `name` means: itself, or with a usual suffix; the first guess where there is none."""
    exact = folder / name
    if exact.suffix.lower() in _SUFFIXES and exact.is_file():
        return exact
    guesses = [exact.with_name(exact.name + suffix) for suffix in _SUFFIXES]
    return next((guess for guess in guesses if guess.is_file()), exact if exact.suffix else guesses[0])


def read_shots(path: Path, header: JsonObject, options: ReadOptions) -> list[Shot]:
    """The frames of a transforms file.

    Intrinsics stand in the frame or at the top: `fl_x`, `fl_y`, `cx`, `cy`, `w`, `h`, `k1`..., or `camera_angle_x`.
    What is missing follows from the picture: its size, a principal point in the middle, square pixels.

    Raises:
        FormatError, UnsupportedError: the file is wrong, or uses a lens that is not known.
    """
    file = str(path)
    try:
        frames = header.objects("frames")
        if len(frames) > _MAX_FRAMES:
            raise FormatError(f"{len(frames)} frames, more than {_MAX_FRAMES}", field="frames")
        return [_shot(path, header, frame, options) for frame in frames]
    except SplatCodecError as error:
        raise error.locate(file=file) from None


def _shot(path: Path, header: JsonObject, frame: JsonObject, options: ReadOptions) -> Shot:
    name = frame.text("file_path")
    if not name or "\0" in name:
        frame.fail(f"{name[:80]!r} is not the path of a file", "file_path")
    picture = find_picture(path.parent, name)
    time = frame.number("time") if "time" in frame else None
    lens = _lens(header, frame, picture, options)
    return Shot(name.removeprefix("./"), picture, _viewmat(frame), lens, time, str(path))


def _viewmat(frame: JsonObject) -> npt.NDArray[np.float64]:
    rows = frame.list("transform_matrix")
    if len(rows) not in (3, 4) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        frame.fail("is not a 4 x 4 matrix", "transform_matrix")
    matrix = np.eye(4)
    for k, row in enumerate(rows):
        for j, value in enumerate(row):
            if type(value) not in (int, float) or not -1e9 < value < 1e9:
                frame.fail(f"{str(value)[:40]!r} is not a number that a pose may have", f"transform_matrix[{k}][{j}]")
            matrix[k, j] = value
    if len(rows) == 4 and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
        frame.fail("its last row is not 0 0 0 1", "transform_matrix")
    rotation = matrix[:3, :3] * (1.0, -1.0, -1.0)  # OpenGL's camera axes to OpenCV's
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        frame.fail("is not a rigid motion", "transform_matrix")
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ matrix[:3, 3]
    return viewmat


def _lens(header: JsonObject, frame: JsonObject, picture: Path, options: ReadOptions) -> Lens:
    def member(key: str) -> float | None:
        for place in (frame, header):
            if key in place:
                return place.number(key)
        return None

    def text(key: str) -> Any:
        return frame.get(key) if key in frame else header.get(key)

    model = text("camera_model")
    if model in _UNSUPPORTED_MODELS or text("is_fisheye") is True:
        raise UnsupportedError(f"the camera model {model or 'fisheye'}", field="camera_model", hint="undistort first")
    if member("k4"):
        raise UnsupportedError("the lens distortion k4", field="k4", hint="undistort first")
    w, h = member("w"), member("h")
    if w is None or h is None:
        if not picture.is_file():  # said as one of the missing ones, later
            w, h = w or 1.0, h or 1.0
        else:
            w, h, _ = picture_size(picture, options.limits)
    if not (w >= 1 and h >= 1 and w == int(w) and h == int(h)):
        raise FormatError(f"a picture of {w:g} x {h:g} pixels", field="w")
    fx, fy = member("fl_x"), member("fl_y")
    for key, side in (("camera_angle_x", w), ("camera_angle_y", h)):
        angle = member(key)
        if angle is None:
            continue
        if not 0 < angle < math.pi:
            raise FormatError(f"an angle of view of {angle:g} radians", field=key)
        focal = 0.5 * side / math.tan(0.5 * angle)
        if key == "camera_angle_x" and fx is None:
            fx = focal
        elif key == "camera_angle_y" and fy is None and fx is None:
            fy = focal
    if fx is None and fy is None:
        raise FormatError("no focal length: neither fl_x nor camera_angle_x", field="fl_x")
    fx = fx if fx is not None else fy
    fy = fy if fy is not None else fx
    assert fx is not None
    assert fy is not None
    cx, cy = member("cx"), member("cy")
    lens = Lens(
        int(w), int(h), fx, fy, 0.5 * w if cx is None else cx, 0.5 * h if cy is None else cy,
        *(member(key) or 0.0 for key in ("k1", "k2", "p1", "p2", "k3")),
    )  # fmt: skip
    lens.check()
    return lens
