"""SOG: splats as lossless WebP textures with a JSON description, in a folder or bundled in a ZIP. Versions 1 and 2.

Gaussian i is pixel i of every texture, row by row. Version 2 looks scales and colours up in codebooks, version 1 lerps
between stated ends. SH of degree 1 to 3 are rows of a palette, picked by a label a Gaussian. Facts: the SOG page of
playcanvas/developer-site, playcanvas/splat-transform `read-sog.ts`, `read-sog-v1.ts` and `write-sog.ts`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from ..errors import (
    BackendUnavailableError,
    ChecksumError,
    FormatError,
    LimitExceededError,
    SplatCodecError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from ..files import open_for_reading, read_bytes
from ..gaussians import Gaussians, num_sh_coefficients
from ..limits import DEFAULT_LIMITS, Limits
from ._packing import logits_of_alpha_bytes, lookup, quats_of_smallest_three
from .base import Format

if TYPE_CHECKING:
    import zipfile

__all__ = ["FORMAT", "read"]

_META = "meta.json"
_ZIP_MAGIC = b"PK\x03\x04"
# No separators, so nothing outside the folder or bundle can be meant; and nothing that is not text (lone surrogates).
_PLAIN_NAME = re.compile(r"[^/\\:\0\ud800-\udfff]{1,255}")
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_PALETTE_COLUMNS = 64
_MAX_PALETTE = 65536
_CODEBOOK = 256
# Positions are sign(n) (exp(|n|) - 1); beyond this no float32 holds them.
_MAX_LOG_POSITION = 88.0
# Textures may be larger than the scene needs, but not by any amount: writers round up, some to powers of two.
_SLACK_FACTOR = 4
_SLACK_PIXELS = 1 << 20
# WebP packs equal pixels into nothing, so the size of a file does not bound its pixels. Real scenes need bytes for each
# Gaussian; this many Gaussians a byte is what the other formats' compressors can reach at most.
_MAX_GAUSSIANS_PER_BYTE = 1024
_PILLOW_LOCK = threading.Lock()


# ------------------------------------------------------------------------------------------------------ containers


class _Source(Protocol):
    """Where the named parts of a scene are."""

    size_bytes: int

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The part `name`, if it has at most `limit_bytes` bytes."""


class _Folder:
    def __init__(self, folder: Path, meta_name: str = _META) -> None:
        self._folder = folder
        self._meta_name = meta_name
        self.size_bytes = 0
        with contextlib.suppress(OSError):
            self.size_bytes = sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file())

    def read(self, name: str, limit_bytes: int) -> bytes:
        path = self._folder / (self._meta_name if name == _META else name)
        if not os.path.lexists(path):
            raise FormatError(f"there is no {name} in the folder", chunk=name)
        try:
            return read_bytes(path, limit_bytes)
        except SplatCodecError as error:
            error.locate(chunk=name)
            raise


class _Bundle:
    def __init__(self, archive: zipfile.ZipFile, size_bytes: int) -> None:
        self._archive = archive
        self.size_bytes = size_bytes
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.filename in self._entries:
                raise FormatError("two entries have this name", chunk=info.filename)
            self._entries[info.filename] = info

    def read(self, name: str, limit_bytes: int) -> bytes:
        info = self._entries.get(name)
        if info is None:
            raise FormatError(f"there is no {name} in the ZIP", chunk=name)
        if info.compress_type not in (0, 8):
            raise UnsupportedError(f"ZIP compression method {info.compress_type}", chunk=name)
        if info.flag_bits & 1:
            raise UnsupportedError("the ZIP entry is encrypted", chunk=name)
        if info.file_size > limit_bytes:
            raise LimitExceededError(f"{info.file_size} bytes, more than the limit of {limit_bytes}", chunk=name)
        with _zip_errors(name, info.header_offset), self._archive.open(info) as entry:
            content = entry.read(info.file_size + 1)
        if len(content) != info.file_size:
            raise TruncatedError(
                f"{len(content)} bytes, expected {info.file_size}", chunk=name, offset=info.header_offset
            )
        return content


@contextlib.contextmanager
def _zip_errors(chunk: str | None, offset: int | None) -> Iterator[None]:
    """Turn whatever zipfile raises on damaged archives into a FormatError."""
    import struct
    import zipfile
    import zlib

    try:
        yield
    except SplatCodecError:
        raise
    except zipfile.BadZipFile as error:
        if "not a zip file" in str(error):  # it begins like one, so its end is missing
            raise TruncatedError("the ZIP has no directory at its end", chunk=chunk, offset=offset) from None
        kind = ChecksumError if "CRC" in str(error) else FormatError
        raise kind(f"ZIP: {error}", chunk=chunk, offset=offset) from None
    except EOFError:
        raise TruncatedError("the ZIP entry is cut short", chunk=chunk, offset=offset) from None
    except (NotImplementedError, RuntimeError) as error:
        raise UnsupportedError(f"ZIP: {error}", chunk=chunk, offset=offset) from None
    except (zlib.error, struct.error, ValueError, OverflowError, LookupError, AttributeError, OSError) as error:
        raise FormatError(f"ZIP: {error}", chunk=chunk, offset=offset) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    """The source of a folder, of the folder around a `meta.json`, or of a bundle."""
    import zipfile

    if os.path.isdir(path):
        yield _Folder(path)
        return
    with open_for_reading(path) as handle:
        head = handle.read(4)
        if head != _ZIP_MAGIC:
            if head.lstrip()[:1] == b"{" or path.name == _META:
                yield _Folder(path.parent, path.name)
                return
            raise FormatError(f"neither a ZIP nor a {_META}: begins with {head.hex(' ')}", offset=0)
        size_bytes = handle.seek(0, 2)
        with _zip_errors(None, size_bytes):
            archive = zipfile.ZipFile(handle)
        with archive:
            yield _Bundle(archive, size_bytes)


# ------------------------------------------------------------------------------------------------------------ JSON


def _fail(message: str, field: str) -> NoReturn:
    raise FormatError(message, chunk=_META, field=field)


class _Json:
    """A JSON object whose members are checked as they are taken out."""

    def __init__(self, members: dict[str, Any], where: str = "") -> None:
        self._members = members
        self._where = where

    def __contains__(self, key: str) -> bool:
        return self._members.get(key) is not None

    def get(self, key: str) -> Any:
        return self._members.get(key)

    def _take(self, key: str, kind: type, what: str) -> Any:
        value = self._members.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            _fail(f"is not {what}", self._where + key)
        return value

    def object(self, key: str) -> _Json:
        return _Json(self._take(key, dict, "an object"), f"{self._where}{key}.")

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._take(key, int, "a whole number")
        if not low <= value <= high:
            _fail(f"is {str(value)[:40]}, expected {low} to {high}", self._where + key)
        return int(value)

    def number(self, key: str) -> float:
        value = self._members.get(key)
        if not _is_number(value):
            _fail(f"{str(value)[:40]!r} is not a finite number", self._where + key)
        return float(value)

    def numbers(self, key: str, count: int) -> npt.NDArray[np.float64]:
        values = self._take(key, list, "a list")
        if len(values) != count:
            _fail(f"has {len(values)} numbers, expected {count}", self._where + key)
        for i, value in enumerate(values):
            if not _is_number(value):
                _fail(f"{str(value)[:40]!r} is not a finite number", f"{self._where}{key}[{i}]")
        return np.array(values, np.float64)

    def files(self, count: int) -> list[str]:
        names = self._take("files", list, "a list")
        if len(names) != count:
            _fail(f"has {len(names)} names, expected {count}", f"{self._where}files")
        for name in names:
            if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or name in (".", ".."):
                _fail(f"{str(name)[:80]!r} is not a plain file name", f"{self._where}files")
        return names


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a number that float32 can hold; True and False are none."""
    # Compared as Python numbers, so that integers of any length are safe; infinity is larger than the bound.
    return type(value) in (int, float) and -_MAX_FLOAT32 <= value <= _MAX_FLOAT32


def _parse_meta(text: bytes) -> _Json:
    def not_json(name: str) -> NoReturn:
        _fail(f"{name} is not JSON", "")

    try:
        members = json.loads(text.decode("utf-8-sig"), parse_constant=not_json)
    except RecursionError:
        raise FormatError("nested too deeply", chunk=_META) from None
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8", chunk=_META, offset=error.start) from None
    except json.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error.msg}", chunk=_META, offset=error.pos) from None
    except ValueError as error:  # numbers of thousands of digits
        raise FormatError(f"not JSON: {error}", chunk=_META) from None
    if not isinstance(members, dict):
        raise FormatError("not a JSON object", chunk=_META)
    return _Json(members)


# -------------------------------------------------------------------------------------------------------- textures


def _webp_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height from a WebP header, before any decoder sees it; the layout is that of RFC 9649."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise FormatError("not a WebP image", chunk=name, offset=0)
    stated = 8 + int.from_bytes(content[4:8], "little")
    if stated > len(content):
        raise TruncatedError(f"the image needs {stated} bytes, there are {len(content)}", chunk=name)
    if stated + 1 < len(content):
        raise FormatError("there are bytes after the image", chunk=name, offset=stated)
    chunks: dict[bytes, int] = {}
    at = 12
    while at + 8 <= stated:
        chunks.setdefault(content[at : at + 4], at + 8)
        size_bytes = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size_bytes + size_bytes % 2
    if b"VP8 " in chunks:
        raise UnsupportedError("lossy WebP: the values in it are lost", chunk=name)
    if b"ANMF" in chunks or b"VP8L" not in chunks:
        raise FormatError("not one lossless WebP image", chunk=name)
    start = chunks[b"VP8L"]
    bits = int.from_bytes(content[start + 1 : start + 5], "little")
    size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if b"VP8X" in chunks:
        start = chunks[b"VP8X"]
        canvas = tuple(int.from_bytes(content[start + i : start + i + 3], "little") + 1 for i in (4, 7))
        if canvas != size:
            raise FormatError("the image does not fill its canvas", chunk=name)
    return size


def _decode_webp(content: bytes, name: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(H, W, 4) pixels of a WebP image whose size has been checked."""
    import io

    from PIL import WebPImagePlugin

    if not getattr(WebPImagePlugin, "SUPPORTED", True):
        raise BackendUnavailableError("this Pillow was built without WebP", hint="pip install --upgrade pillow")
    try:
        # The plugin itself, not Image.open, so that no other decoder is tried.
        with _pillow_allows(size[0] * size[1]):
            opened = WebPImagePlugin.WebPImageFile(io.BytesIO(content))
        with opened as image:
            if image.size != size or getattr(image, "n_frames", 1) != 1:
                raise FormatError("the image is not the one its header describes", chunk=name)
            pixels = np.asarray(image.convert("RGBA"))
    except (SplatCodecError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds on damaged images
        raise FormatError(f"damaged WebP image: {error}", chunk=name) from None
    return pixels


@contextlib.contextmanager
def _pillow_allows(pixels: int) -> Iterator[None]:
    """Raise Pillow's limit on pixels, smaller than large scenes need, while an image whose size is checked is opened.

    The limit is the whole process's, so it is touched only where it must be, and never lowered.
    """
    from PIL import Image

    with _PILLOW_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and limit < pixels:
            Image.MAX_IMAGE_PIXELS = pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


class _Textures:
    """Reads textures of a scene of `count` Gaussians."""

    def __init__(self, source: _Source, count: int, limits: Limits) -> None:
        self._source = source
        self._count = count
        self._limits = limits

    def image(self, name: str, need_pixels: int) -> npt.NDArray[np.uint8]:
        """(H, W, 4) pixels, at least `need_pixels` and not absurdly more."""
        max_pixels = min(_SLACK_FACTOR * need_pixels + _SLACK_PIXELS, self._limits.max_image_pixels)
        # Lossless WebP never needs more than the pixels do, but for some tables.
        content = self._source.read(name, 4 * max_pixels + (1 << 20))
        size = _webp_size(content, name)
        pixels = size[0] * size[1]
        if pixels < need_pixels:
            raise FormatError(f"{size[0]} x {size[1]} pixels, {need_pixels} are needed", chunk=name)
        if pixels > max_pixels:
            raise LimitExceededError(
                f"{size[0]} x {size[1]} pixels, more than the {max_pixels} allowed where {need_pixels} are needed",
                chunk=name,
            )
        return _decode_webp(content, name, size)

    def pixels(self, name: str) -> npt.NDArray[np.uint8]:
        """(N, 4) pixel of each Gaussian."""
        return self.image(name, max(1, self._count)).reshape(-1, 4)[: self._count]


# ---------------------------------------------------------------------------------------------------------- values


def _means(meta: _Json, textures: _Textures) -> npt.NDArray[np.float32]:
    """(N, 3) positions from the 16-bit logarithmic ones; both versions."""
    means = meta.object("means")
    low, high = means.numbers("mins", 3), means.numbers("maxs", 3)
    for values, field in ((low, "means.mins"), (high, "means.maxs")):
        if np.abs(values).max() > _MAX_LOG_POSITION:
            _fail(f"{values.tolist()} are no logarithms of positions", field)
    extent = np.where(high == low, 1.0, high - low)
    low_name, high_name = means.files(2)
    codes = textures.pixels(high_name)[:, :3].astype(np.uint16) << 8
    codes |= textures.pixels(low_name)[:, :3]
    out = np.empty(codes.shape, np.float32)
    every_code = np.arange(65536, dtype=np.uint16)
    for axis in range(3):
        # The exponential of each code once, or of each Gaussian, whichever are fewer.
        chosen = every_code if len(codes) > len(every_code) else codes[:, axis]
        n = low[axis] + extent[axis] * (chosen / 65535)
        values = np.sign(n) * np.expm1(np.abs(n))
        out[:, axis] = lookup(codes[:, axis], values) if chosen is every_code else values
    return out


def _quats(meta: _Json, textures: _Textures) -> npt.NDArray[np.float32]:
    """(N, 4) unit quaternions w, x, y, z; both versions."""
    (name,) = meta.object("quats").files(1)
    pixels = textures.pixels(name)
    quats = np.empty((len(pixels), 4), np.float32)
    table = (np.arange(256) / 255 * 2 - 1) * np.sqrt(0.5)
    step = 1 << 15
    for start in range(0, len(pixels), step):
        block, out = pixels[start : start + step], quats[start : start + step]
        quats_of_smallest_three(block[:, 3].astype(np.int16) - 252, lookup(block[:, :3], table), out)
        out[block[:, 3] < 252] = (1, 0, 0, 0)
    return quats


def _lerp_tables(group: _Json, channels: int) -> list[npt.NDArray[np.float64]]:
    """Version 1: the value of each byte, for each channel."""
    low, high = group.numbers("mins", channels), group.numbers("maxs", channels)
    return [a + (b - a) * (np.arange(256) / 255) for a, b in zip(low, high)]


def _sh_rest(meta: _Json, textures: _Textures, version: int) -> npt.NDArray[np.float32] | None:
    """(N, K - 1, 3) SH coefficients from palette and labels, if there are any."""
    if "shN" not in meta:
        return None
    group = meta.object("shN")
    centroids_name, labels_name = group.files(2)
    if version == 1:
        low, high = group.number("mins"), group.number("maxs")
        table = low + (high - low) * (np.arange(256) / 255)
        palette_size, need_pixels = 1, 1
    else:
        table = group.numbers("codebook", _CODEBOOK)
        palette_size = group.integer("count", 1, _MAX_PALETTE)
        coefficients = num_sh_coefficients(group.integer("bands", 1, 3)) - 1
        rows = -(-palette_size // _PALETTE_COLUMNS)
        need_pixels = rows * _PALETTE_COLUMNS * coefficients
    image = textures.image(centroids_name, need_pixels)
    height, width = image.shape[:2]
    if version == 1:
        # Version 1 states neither bands nor size; the texture's width tells the one, its height the other.
        coefficients, odd = divmod(width, _PALETTE_COLUMNS)
        if odd or coefficients not in (3, 8, 15):
            raise FormatError(f"{width} pixels wide, expected 192, 512 or 960", chunk=centroids_name)
        palette_size = min(height * _PALETTE_COLUMNS, _MAX_PALETTE)
    elif width != _PALETTE_COLUMNS * coefficients:
        raise FormatError(f"{width} pixels wide, expected {_PALETTE_COLUMNS * coefficients}", chunk=centroids_name)
    entries = image[..., :3].reshape(height * _PALETTE_COLUMNS, coefficients, 3)[:palette_size]
    palette = lookup(entries, table)
    codes = textures.pixels(labels_name)
    labels = codes[:, 0] | codes[:, 1].astype(np.uint16) << 8
    if len(labels) and labels.max() >= palette_size:
        raise FormatError(f"label {labels.max()} in a palette of {palette_size}", chunk=labels_name)
    return np.take(palette, labels, axis=0)


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a SOG scene: a bundle, a folder, or the `meta.json` in a folder.

    Positions are off by up to half a step of 1/65535 of the logarithmic range (a whole one from writers that truncate),
    quaternion components by 1/361, alpha by 1/255; scales and colours are as near as the codebooks have them.
    `metadata` gets `antialiased` where stated, and `sog` (version, and generator where stated).

    Raises:
        FormatError: damaged; the chunk is the texture's or `meta.json`'s name. TruncatedError, ChecksumError likewise.
        UnsupportedError: a later version, or lossy or encrypted textures.
        LimitExceededError: more than `limits` allows, or textures far larger than the scene needs.
    """
    with _opened(path) as source:
        meta = _parse_meta(source.read(_META, limits.max_json_bytes))
        version = meta.integer("version", 0, 1 << 31) if "version" in meta else 1
        if version not in (1, 2):
            raise UnsupportedError(f"SOG version {version}, only 1 and 2 are known", chunk=_META, field="version")
        count = _count(meta, version)
        limits.check_gaussians(count, chunk=_META)
        if count > source.size_bytes * _MAX_GAUSSIANS_PER_BYTE:
            raise LimitExceededError(
                f"{count} Gaussians cannot be in {source.size_bytes} bytes", chunk=_META, field="count"
            )
        limits.check_bytes(count * 4 * (14 + (45 if "shN" in meta else 0)), "the scene")
        textures = _Textures(source, count, limits)
        means = _means(meta, textures)
        quats = _quats(meta, textures)
        scales = np.empty((count, 3), np.float32)
        sh0 = np.empty((count, 1, 3), np.float32)
        scale_group, colour_group = meta.object("scales"), meta.object("sh0")
        if version == 1:
            scale_tables = _lerp_tables(scale_group, 3)
            *colour_tables, opacity_table = _lerp_tables(colour_group, 4)
        else:
            scale_tables = [scale_group.numbers("codebook", _CODEBOOK)] * 3
            colour_tables = [colour_group.numbers("codebook", _CODEBOOK)] * 3
            opacity_table = None
        for out, group, tables in ((scales, scale_group, scale_tables), (sh0[:, 0], colour_group, colour_tables)):
            pixels = textures.pixels(group.files(1)[0])
            for channel in range(3):
                out[:, channel] = lookup(pixels[:, channel], tables[channel])
        # The last texture read is that of colours, whose alpha is the opacity.
        alphas = pixels[:, 3]
        opacities = logits_of_alpha_bytes(alphas) if opacity_table is None else lookup(alphas, opacity_table)
        shN = _sh_rest(meta, textures, version)
    return Gaussians(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        sh0=sh0,
        shN=shN,  # type: ignore[arg-type]
        metadata=_metadata(meta, version),
    )


def _count(meta: _Json, version: int) -> int:
    if version == 2:
        return meta.integer("count", 0, 1 << 62)
    shape = meta.object("means").get("shape")
    if not isinstance(shape, list) or not shape or not isinstance(shape[0], int) or isinstance(shape[0], bool):
        _fail("is not a list that begins with the number of Gaussians", "means.shape")
    if not 0 <= shape[0] < 1 << 62:
        _fail(f"is {str(shape[0])[:40]} Gaussians", "means.shape")
    return shape[0]


def _metadata(meta: _Json, version: int) -> dict[str, Any]:
    sog: dict[str, Any] = {"version": version}
    metadata: dict[str, Any] = {"sog": sog}
    asset = meta.get("asset")
    if isinstance(asset, dict) and isinstance(asset.get("generator"), str):
        sog["generator"] = asset["generator"]
    model, antialias = meta.get("model"), meta.get("antialias")
    if isinstance(model, str):
        metadata["antialiased"] = model == "antialiased"
        if model not in ("antialiased", "2dgs", "default"):
            warnings.warn(f"unknown SOG model {model[:40]!r} ignored", SplatCodecWarning, stacklevel=4)
    elif isinstance(antialias, bool):
        metadata["antialiased"] = antialias
    return metadata


def _sniff(head: bytes, path: Path) -> bool:
    if not head:
        return os.path.isfile(path / _META)
    return head.startswith(_ZIP_MAGIC) or path.name == _META


FORMAT = Format(name="sog", title="SOG", suffixes=(".sog",), read=read, write=None, sniff=_sniff)
