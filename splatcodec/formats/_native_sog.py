"""SOG as columns: the bytes of the textures, Gaussian by Gaussian, and the palette as a second table."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..bitstream.container import read_varint, write_varint
from ..errors import FormatError, TruncatedError
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ._json import JsonObject, parse_object
from ._native import NativeFormat, NativeScene
from ._native_columns import AXES, check_columns, sorted_in_space
from ._sog_read import META, Bundle, Files, _count, _files, opened, read_scene
from ._webp import decode_webp, encode_webp, webp_size

__all__ = ["NATIVE"]

Pixels = npt.NDArray[np.uint8]
_SIZE = struct.Struct("<II")
_PALETTE_COLUMNS = 64
_MAX_SIDE = 1 << 14
# Textures of Gaussians and the columns that their four channels are; None: usually one value throughout.
_TEXTURES: dict[str, tuple[str | None, ...]] = {
    "quats": ("rot_0", "rot_1", "rot_2", "rot_index"),
    "scales": ("scale_0", "scale_1", "scale_2", None),
    "sh0": ("f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
}
_LABEL = "label"


class _Names:
    """Names of the textures; `all` in the order of SPEC.md."""

    def __init__(self, meta: JsonObject) -> None:
        self.low, self.high = _files(meta.object("means"), 2)
        self.others = {key: _files(meta.object(key), 1)[0] for key in _TEXTURES}
        self.palette: str | None = None
        self.labels: str | None = None
        if "shN" in meta:
            self.palette, self.labels = _files(meta.object("shN"), 2)
        named = [self.low, self.high, *self.others.values(), self.palette, self.labels]
        self.all: list[str] = [name for name in named if name is not None]
        if len(set(self.all)) != len(self.all) or META in self.all:
            raise FormatError("two textures have one name", chunk=META)


def _described(meta: bytes) -> tuple[int, _Names]:
    """Number of Gaussians, and names."""
    description = parse_object(meta, META)
    version = description.integer("version", 0, 1 << 31) if "version" in description else 1
    return _count(description, version), _Names(description)


def _image(content: bytes, name: str) -> Pixels:
    return decode_webp(content, name, webp_size(content, name))


# ---- Taking apart --------------------------------------------------------------------------------------------------


def _leftover(image: Pixels, count: int, channels: list[int]) -> bytes:
    """What columns do not say of an image: its size, its other channels, and the pixels behind the last Gaussian."""
    height, width = image.shape[:2]
    pixels = image.reshape(-1, 4)
    out = [_SIZE.pack(width, height)]
    for channel in channels:
        plane = pixels[:count, channel]
        same = len(plane) > 0 and bool((plane == plane[0]).all())
        out.append(bytes([1, plane[0]]) if same else b"\0" + plane.tobytes())
    return b"".join([*out, pixels[count:].tobytes()])


def _content_of(meta: bytes, images: list[Pixels]) -> bytes:
    parts = [meta]
    for image in images:
        parts += [_SIZE.pack(image.shape[1], image.shape[0]), image.tobytes()]
    return b"".join(parts)


def _unpack(path: Path) -> tuple[NativeScene, bytes]:
    with opened(path) as source:
        meta = source.read(META, DEFAULT_LIMITS.max_json_bytes)
        count, names = _described(meta)
        if isinstance(source, Bundle) and set(source._entries) != {META, *names.all}:
            raise FormatError("there are further files in the ZIP")
        images = {name: _image(source.read(name, DEFAULT_LIMITS.max_array_bytes), name) for name in names.all}
    columns: dict[str, npt.NDArray[Any]] = {}
    rest = []
    low, high = (images[name].reshape(-1, 4)[:count] for name in (names.low, names.high))
    for k, axis in enumerate(AXES):
        columns[axis] = low[:, k] | high[:, k].astype(np.uint16) << np.uint16(8)
    rest += [_leftover(images[name], count, [3]) for name in (names.low, names.high)]
    for key, channels in _TEXTURES.items():
        image = images[names.others[key]]
        for k, name in enumerate(channels):
            if name is not None:
                columns[name] = np.ascontiguousarray(image.reshape(-1, 4)[:count, k])
        rest.append(_leftover(image, count, [k for k, name in enumerate(channels) if name is None]))
    palette: dict[str, npt.NDArray[Any]] = {}
    if names.palette is not None and names.labels is not None:
        image = images[names.palette]
        if image.shape[1] % _PALETTE_COLUMNS:
            raise FormatError("a palette of an odd width", chunk=names.palette)
        entries = image.reshape(-1, image.shape[1] // _PALETTE_COLUMNS, 4)
        palette = {
            f"f_rest_{channel * entries.shape[1] + k}": np.ascontiguousarray(entries[:, k, channel])
            for channel in range(3)
            for k in range(entries.shape[1])
        }
        rest.append(_leftover(image, image.shape[0] * image.shape[1], [3]))
        pixels = images[names.labels].reshape(-1, 4)[:count].astype(np.uint16)
        columns[_LABEL] = pixels[:, 0] | pixels[:, 1] << np.uint16(8)
        rest.append(_leftover(images[names.labels], count, [2, 3]))
    head = b"".join([write_varint(len(meta)), meta, *rest])
    return NativeScene(head, columns, palette), _content_of(meta, [images[name] for name in names.all])


# ---- Putting together ----------------------------------------------------------------------------------------------


class _Rest:
    """Reads what `_leftover` wrote."""

    def __init__(self, head: bytes, at: int) -> None:
        self.head, self.at = head, at

    def take(self, size_bytes: int) -> bytes:
        if size_bytes > len(self.head) - self.at:
            raise TruncatedError("the head is cut off", chunk="NATV")
        self.at += size_bytes
        return self.head[self.at - size_bytes : self.at]

    def image(self, count: int | None, channels: list[int]) -> tuple[Pixels, int]:
        """An image without the columns, and how many of its pixels are in columns; `count` None: all."""
        width, height = _SIZE.unpack(self.take(_SIZE.size))
        if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
            raise FormatError(f"an image of {width} x {height} pixels", chunk="NATV")
        inside = width * height if count is None else count
        # Pixels that are not in columns are in the head, so an image cannot be much larger than both.
        if inside > width * height or 4 * (width * height - inside) > len(self.head) - self.at:
            raise FormatError(f"an image of {width} x {height} pixels for {inside}", chunk="NATV")
        DEFAULT_LIMITS.check_bytes(4 * width * height, "an image")
        pixels = np.empty((width * height, 4), np.uint8)
        for channel in channels:
            same = self.take(1)[0]
            if same > 1:
                raise FormatError("the head is damaged", chunk="NATV")
            values = self.take(1) if same else self.take(inside)
            pixels[:inside, channel] = np.frombuffer(values, np.uint8)
        pixels[inside:] = np.frombuffer(self.take(4 * (width * height - inside)), np.uint8).reshape(-1, 4)
        return pixels.reshape(height, width, 4), inside


def _images(scene: NativeScene) -> tuple[bytes, dict[str, Pixels]]:
    """`meta.json`, and the textures by name."""
    length, at = read_varint(scene.head, 0)
    rest = _Rest(scene.head, at)
    meta = rest.take(length)
    count, names = _described(meta)
    wanted: list[tuple[str, npt.DTypeLike]] = [(axis, "u2") for axis in AXES]
    wanted += [(name, "u1") for channels in _TEXTURES.values() for name in channels if name is not None]
    wanted += [(_LABEL, "u2")] if names.labels is not None else []
    check_columns(scene.columns, wanted)
    if count != len(scene):
        raise FormatError("the head is not that of the columns", chunk="NATV")
    columns, images = scene.columns, {}
    for name, shift in ((names.low, 0), (names.high, 8)):
        images[name], _ = rest.image(count, [3])
        for k, axis in enumerate(AXES):
            images[name].reshape(-1, 4)[:count, k] = columns[axis] >> np.uint16(shift) & np.uint16(255)
    for key, channels in _TEXTURES.items():
        image, _ = rest.image(count, [k for k, name in enumerate(channels) if name is None])
        for k, column in enumerate(channels):
            if column is not None:
                image.reshape(-1, 4)[:count, k] = columns[column]
        images[names.others[key]] = image
    if names.palette is not None and names.labels is not None:
        entries = len(next(iter(scene.palette.values()), ()))
        wide, odd = divmod(len(scene.palette), 3)
        check_columns(scene.palette, [(f"f_rest_{k}", "u1") for k in range(3 * wide)])
        if odd or not wide:
            raise FormatError("a palette without columns", chunk="COLD")
        image, inside = rest.image(entries * wide, [3])
        if image.shape[1] != wide * _PALETTE_COLUMNS or inside != image.shape[0] * image.shape[1]:
            raise FormatError("the palette is not that of its texture", chunk="NATV")
        for k, values in enumerate(scene.palette.values()):
            image.reshape(-1, wide, 4)[:, k % wide, k // wide] = values
        images[names.palette] = image
        labels, _ = rest.image(count, [2, 3])
        labels.reshape(-1, 4)[:count, 0] = columns[_LABEL] & np.uint16(255)
        labels.reshape(-1, 4)[:count, 1] = columns[_LABEL] >> np.uint16(8)
        images[names.labels] = labels
    elif scene.palette:
        raise FormatError("a palette that no label picks from", chunk="COLD")
    if rest.at != len(scene.head):
        raise FormatError("the head is longer than it says", chunk="NATV")
    return meta, {name: images[name] for name in names.all}


def _content(scene: NativeScene) -> bytes:
    meta, images = _images(scene)
    return _content_of(meta, list(images.values()))


def _write(scene: NativeScene, file: BinaryIO, threads: int | None) -> None:
    from .sog import write_bundle

    meta, images = _images(scene)
    archive = io.BytesIO()
    write_bundle(archive, {name: encode_webp(image) for name, image in images.items()} | {META: meta})
    file.write(archive.getvalue())


def _gaussians(scene: NativeScene, limits: Limits) -> Gaussians:
    meta, images = _images(scene)
    return read_scene(Files({META: meta} | {name: _quick(image) for name, image in images.items()}), limits)


def _quick(pixels: Pixels) -> bytes:
    """A WebP image that is gone in a moment."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "WEBP", lossless=True, exact=True, method=0, quality=0)
    return file.getvalue()


NATIVE = NativeFormat(5, "sog", False, _unpack, _content, _write, _gaussians, sorted_in_space)
