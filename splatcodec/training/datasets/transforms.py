"""Sets of instant-ngp and nerfstudio: one transforms.json with OpenCV lens distortion, which is taken out at load.

Test views are those the file names (`test_filenames`, else `val_filenames`), else every 8th. nerfstudio's
`ply_file_path` gives points; instant-ngp has none.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ...errors import FormatError, LimitExceededError, ParameterError
from ...files import read_bytes
from ...formats._json import JsonObject
from ._transforms import find_picture, read_json, read_shots
from .base import Dataset, DatasetKind, PointCloud, ReadOptions, Shot, as_float32, build_dataset, hold_out

__all__ = ["KIND"]

_FILE = "transforms.json"
_MAX_PLY_BYTES = 1 << 32


def _read(folder: Path, options: ReadOptions) -> Dataset:
    path = folder / _FILE
    header = read_json(path, options)
    shots = read_shots(path, header, options)
    if options.images is not None:
        raise ParameterError("this data set says itself where its pictures are", file=str(path), field="images")
    train, test = _split(path, header, shots, options)
    points = None
    if "ply_file_path" in header:
        points = _read_ply(folder / header.text("ply_file_path"), options)
    return build_dataset("transforms", folder, train, test, points, options)


def _split(path: Path, header: JsonObject, shots: list[Shot], options: ReadOptions) -> tuple[list[Shot], list[Shot]]:
    if options.test_every is not None:
        return hold_out(shots, options.test_every)
    key = next((key for key in ("test_filenames", "val_filenames") if header.get(key)), None)
    if key is None:
        return hold_out(shots, None)
    sets = {}
    for name in (key, "train_filenames"):
        names = header.list(name) if name in header else []
        sets[name] = {find_picture(path.parent, str(entry)) for entry in names}
        unknown = sets[name] - {shot.path for shot in shots}
        if unknown:
            raise FormatError(f"no frame is of {sorted(map(str, unknown))[0]}", file=str(path), field=name)
    ordered = sorted(shots, key=lambda shot: shot.name)
    test = [shot for shot in ordered if shot.path in sets[key]]
    listed = sets["train_filenames"]
    both = sets[key] & listed
    if both:
        raise FormatError(f"{sorted(map(str, both))[0]} is a train and a test view", file=str(path), field=key)
    return [shot for shot in ordered if (shot.path in listed if listed else shot.path not in sets[key])], test


def _read_ply(path: Path, options: ReadOptions) -> PointCloud:
    """Points with x, y, z and, where it has them, red, green, blue of 0 to 255."""
    from plyfile import PlyData

    if not path.is_file():
        raise ParameterError("no such file, though the data set names it for its points", file=str(path))
    content = io.BytesIO(read_bytes(path, _MAX_PLY_BYTES))
    try:
        vertices = PlyData.read(content)["vertex"]
        options.limits.check_gaussians(vertices.count, file=str(path))
        means = as_float32(np.stack([vertices[axis] for axis in "xyz"], axis=1))
        names = {prop.name for prop in vertices.properties}
        colours = None
        if {"red", "green", "blue"} <= names:
            colours = np.stack([vertices[name] for name in ("red", "green", "blue")], axis=1)
            colours = as_float32(np.asarray(colours, np.float64) / 255.0).clip(0.0, 1.0)
    except (LimitExceededError, MemoryError):
        raise
    except Exception as error:  # plyfile raises many kinds on damaged files
        raise FormatError(f"not a PLY of points: {error}", file=str(path)) from None
    return PointCloud(means, colours, str(path))


KIND = DatasetKind(
    name="transforms",
    title="instant-ngp, nerfstudio",
    matches=lambda folder: (folder / _FILE).is_file(),
    read=_read,
    looks_for=_FILE,
    rank=1,
)
