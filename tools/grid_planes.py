"""A scene as lossless WebP planes of a sorted grid: what an image coder makes of it, for comparison only.

Planes as the papers have them (Self-Organizing Gaussian Grids, KISS-GS): positions as signed logarithms in two planes
of eight bits each, log scales, quaternions (100 levels), opacities and base colours in eight bits, harmonics in five;
each channel between its own smallest and largest value. The grid is nearly square, its last row is filled up.
"""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import numpy.typing as npt

from splatcodec.formats._webp import decode_webp, encode_webp, webp_size
from splatcodec.gaussians import Gaussians
from splatcodec.preprocess.self_organizing_grid import Grid, smooth_covariances

LEVELS = {"scales": 256, "quats": 100, "opacities": 256, "sh0": 256, "shN": 32}


def encode_planes(gaussians: Gaussians, grid: Grid) -> bytes:
    """All planes in one file, behind a JSON header of ranges."""
    scene = smooth_covariances(gaussians, grid).selected(grid.order)
    means = np.sign(scene.means) * np.log1p(np.abs(scene.means.astype(np.float64)))
    columns = {"means": _levels(means, 1 << 16)}
    for name, levels in LEVELS.items():
        values = getattr(scene, name)
        columns[name] = _levels(values.reshape(len(values), -1).astype(np.float64), levels)
    planes = []
    ranges = {}
    for name, (codes, low, high) in columns.items():
        ranges[name] = [low.tolist(), high.tolist()]
        parts = [codes & 255, codes >> 8] if name == "means" else [codes]
        for part in parts:
            planes += [part[:, k : k + 3] for k in range(0, part.shape[1], 3)]
    images = [encode_webp(_picture(plane, grid)) for plane in planes]
    head = json.dumps({"count": len(scene), "width": grid.width, "ranges": ranges}).encode()
    file = io.BytesIO()
    for part in (head, *images):
        file.write(struct.pack("<I", len(part)) + part)
    return file.getvalue()


def decode_planes(payload: bytes) -> Gaussians:
    """The scene in grid order."""
    parts, at = [], 0
    while at < len(payload):
        (size,) = struct.unpack_from("<I", payload, at)
        parts.append(payload[at + 4 : at + 4 + size])
        at += 4 + size
    head = json.loads(parts[0])
    count = head["count"]
    planes = []
    for content in parts[1:]:
        pixels = decode_webp(content, "plane", webp_size(content, "plane"))
        planes.append(pixels.reshape(-1, 4)[:count, :3].astype(np.int64))
    values = {}
    for name, levels in {"means": 1 << 16, **LEVELS}.items():
        low, high = (np.array(bound) for bound in head["ranges"][name])
        pictures = -(-len(low) // 3)
        codes = np.concatenate([planes.pop(0) for _ in range(pictures)] or [np.zeros((count, 0))], 1)[:, : len(low)]
        if name == "means":
            codes = codes + 256 * np.concatenate([planes.pop(0) for _ in range(pictures)], 1)[:, : len(low)]
        values[name] = low + codes / (levels - 1) * (high - low)
    logs = values["means"]
    return Gaussians(
        np.sign(logs) * np.expm1(np.abs(logs)),
        values["quats"],
        values["scales"],
        values["opacities"][:, 0],
        values["sh0"][:, None],
        values["shN"].reshape(count, -1, 3),
    )


def _levels(values: npt.NDArray[np.float64], levels: int) -> tuple[npt.NDArray[np.int64], np.ndarray, np.ndarray]:
    low, high = values.min(0), values.max(0)
    extent = np.where(high > low, high - low, 1.0)
    return np.rint((values - low) / extent * (levels - 1)).astype(np.int64), low, high


def _picture(plane: npt.NDArray[np.int64], grid: Grid) -> npt.NDArray[np.uint8]:
    """(H, W, 4) pixels; a plane of fewer than three channels is grey, the short row goes on with its last pixel."""
    pixels = np.full((grid.height * grid.width, 4), 255, np.uint8)
    wide = plane if plane.shape[1] == 3 else np.repeat(plane[:, :1], 3, 1)
    pixels[: len(wide), :3] = wide
    pixels[len(wide) :, :3] = wide[-1:]
    return pixels.reshape(grid.height, grid.width, 4)
