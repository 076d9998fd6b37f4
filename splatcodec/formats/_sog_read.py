"""Reading SOG: where its parts lie, and what their pixels mean. Versions 1 and 2.

Gaussian i is pixel i of every texture, row by row. Version 2 looks scales and colours up in codebooks, version 1 lerps
between stated ends. SH of degree 1 to 3 are rows of a palette, picked by a label a Gaussian. Facts: the SOG page of
playcanvas/developer-site, playcanvas/splat-transform `read-sog.ts`, `read-sog-v1.ts` and `write-sog.ts`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import (
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
from ._json import JsonObject, parse_object
from ._losses import FILE_FACTS
from ._packing import logits_of_alpha_bytes, lookup, quats_of_smallest_three
from ._webp import decode_webp, webp_size

if TYPE_CHECKING:
    import zipfile

__all__ = [
    "MAX_LOG_POSITION",
    "META",
    "METADATA_KEY",
    "ZIP_MAGIC",
    "Files",
    "PackedScene",
    "Source",
    "is_plain_name",
    "metadata_of",
    "opened",
    "read_head",
    "read_scene",
    "stated_degree",
]

META = "meta.json"
# Where our writer keeps what it knows of the scene; other readers ignore unknown keys.
METADATA_KEY = "splatcodec"
ZIP_MAGIC = b"PK\x03\x04"
# No separators, so nothing outside the folder or bundle can be meant; and nothing that is not text (lone surrogates).
_PLAIN_NAME = re.compile(r"[^/\\:\0\ud800-\udfff]{1,255}")
_PALETTE_COLUMNS = 64
_MAX_PALETTE = 65536
_CODEBOOK = 256
# Positions are sign(n) (exp(|n|) - 1); beyond this no float32 holds them.
MAX_LOG_POSITION = 88.0
# Textures may be larger than the scene needs, but not by any amount: writers round up, some to powers of two.
_SLACK_FACTOR = 4
_SLACK_PIXELS = 1 << 20
# WebP packs equal pixels into nothing, so the size of a file does not bound its pixels. Real scenes need bytes for each
# Gaussian; this many Gaussians a byte is what the other formats' compressors can reach at most.
_MAX_GAUSSIANS_PER_BYTE = 1024


# ------------------------------------------------------------------------------------------------------ containers


class Source(Protocol):
    """Where the named parts of a scene are."""

    size_bytes: int

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The part `name`, if it has at most `limit_bytes` bytes."""


class Folder:
    """A folder of files."""

    def __init__(self, folder: Path, meta_name: str = META) -> None:
        self._folder = folder
        self._meta_name = meta_name
        self.size_bytes = 0
        with contextlib.suppress(OSError):
            self.size_bytes = sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file())

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The part `name`, if it has at most `limit_bytes` bytes."""
        path = self._folder / (self._meta_name if name == META else name)
        if not os.path.lexists(path):
            raise FormatError(f"there is no {name} in the folder", chunk=name)
        try:
            return read_bytes(path, limit_bytes)
        except SplatCodecError as error:
            error.locate(chunk=name)
            raise


class Files:
    """Files in memory, by name."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self.size_bytes = sum(map(len, files.values()))

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The part `name`."""
        return self._files[name]


class Bundle:
    """A ZIP archive."""

    def __init__(self, archive: zipfile.ZipFile, size_bytes: int) -> None:
        self._archive = archive
        self.size_bytes = size_bytes
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.filename in self._entries:
                raise FormatError("two entries have this name", chunk=info.filename)
            self._entries[info.filename] = info

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The part `name`, if it has at most `limit_bytes` bytes."""
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
def opened(path: Path) -> Iterator[Source]:
    """The source of a folder, of the folder around a `meta.json`, or of a bundle."""
    import zipfile

    if os.path.isdir(path):
        yield Folder(path)
        return
    with open_for_reading(path) as handle:
        head = handle.read(4)
        if head != ZIP_MAGIC:
            if head.lstrip()[:1] == b"{" or path.name == META:
                yield Folder(path.parent, path.name)
                return
            raise FormatError(f"neither a ZIP nor a {META}: begins with {head.hex(' ')}", offset=0)
        size_bytes = handle.seek(0, 2)
        with _zip_errors(None, size_bytes):
            archive = zipfile.ZipFile(handle)
        with archive:
            yield Bundle(archive, size_bytes)


# -------------------------------------------------------------------------------------------------------- textures


def is_plain_name(name: Any) -> bool:
    """Whether a value is the name of a file beside the one that has it."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None and name not in (".", "..")


def _files(group: JsonObject, count: int) -> list[str]:
    names = group.list("files")
    if len(names) != count:
        group.fail(f"has {len(names)} names, expected {count}", "files")
    for name in names:
        if not is_plain_name(name):
            group.fail(f"{str(name)[:80]!r} is not a plain file name", "files")
    return names


class _Textures:
    """Reads textures of a scene of `count` Gaussians."""

    def __init__(self, source: Source, count: int, limits: Limits) -> None:
        self._source = source
        self.count = count
        self._limits = limits

    def image(self, name: str, need_pixels: int) -> npt.NDArray[np.uint8]:
        """(H, W, 4) pixels, at least `need_pixels` and not absurdly more."""
        max_pixels = min(_SLACK_FACTOR * need_pixels + _SLACK_PIXELS, self._limits.max_image_pixels)
        # Lossless WebP never needs more than the pixels do, but for some tables.
        content = self._source.read(name, 4 * max_pixels + (1 << 20))
        size = webp_size(content, name)
        pixels = size[0] * size[1]
        if pixels < need_pixels:
            raise FormatError(f"{size[0]} x {size[1]} pixels, {need_pixels} are needed", chunk=name)
        if pixels > max_pixels:
            raise LimitExceededError(
                f"{size[0]} x {size[1]} pixels, more than the {max_pixels} allowed where {need_pixels} are needed",
                chunk=name,
            )
        return decode_webp(content, name, size)

    def pixels(self, name: str) -> npt.NDArray[np.uint8]:
        """(N, 4) pixel of each Gaussian."""
        return self.image(name, max(1, self.count)).reshape(-1, 4)[: self.count]


# ---------------------------------------------------------------------------------------------------------- values


class PackedScene:
    """A SOG scene as its textures have it: 20 bytes a Gaussian, and the palette. Errors are those of `read_scene`.

    Attributes:
        num_gaussians, sh_degree, metadata: of the scene.
    """

    def __init__(self, source: Source, limits: Limits, count: int | None = None) -> None:
        meta, version, self.num_gaussians = read_head(source, limits, count)
        textures = _Textures(source, self.num_gaussians, limits)
        self._means = _Means(meta, textures)
        (name,) = _files(meta.object("quats"), 1)
        self._quats = textures.pixels(name)
        scale_group, colour_group = meta.object("scales"), meta.object("sh0")
        if version == 1:
            self._scale_tables = _lerp_tables(scale_group, 3)
            *self._colour_tables, opacities = _lerp_tables(colour_group, 4)
            self._opacity_table: npt.NDArray[np.float64] | None = opacities
        else:
            self._scale_tables = [scale_group.numbers("codebook", _CODEBOOK)] * 3
            self._colour_tables = [colour_group.numbers("codebook", _CODEBOOK)] * 3
            self._opacity_table = None
        self._scales = textures.pixels(_files(scale_group, 1)[0])
        self._colours = textures.pixels(_files(colour_group, 1)[0])
        self._palette, self._labels = _palette(meta, textures, version)
        self.sh_degree = math.isqrt(self._palette.shape[1] + 1) - 1
        self.metadata = metadata_of(meta, version)

    def rows(self, rows: slice) -> Gaussians:
        """Some Gaussians, without metadata."""
        quats, scales, colours = self._quats[rows], self._scales[rows], self._colours[rows]
        out_scales, sh0 = np.empty((len(scales), 3), np.float32), np.empty((len(scales), 1, 3), np.float32)
        for channel in range(3):
            out_scales[:, channel] = lookup(scales[:, channel], self._scale_tables[channel])
            sh0[:, 0, channel] = lookup(colours[:, channel], self._colour_tables[channel])
        alphas, table = colours[:, 3], self._opacity_table
        return Gaussians(
            means=self._means.rows(rows),
            quats=_unpacked_quats(quats),
            scales=out_scales,
            opacities=logits_of_alpha_bytes(alphas) if table is None else lookup(alphas, table),
            sh0=sh0,
            shN=np.take(self._palette, self._labels[rows], axis=0),
        )


class _Means:
    """Positions as 16-bit logarithms; both versions."""

    def __init__(self, meta: JsonObject, textures: _Textures) -> None:
        means = meta.object("means")
        self._low, high = means.numbers("mins", 3), means.numbers("maxs", 3)
        for values, field in ((self._low, "means.mins"), (high, "means.maxs")):
            if np.abs(values).max() > MAX_LOG_POSITION:
                meta.fail(f"{values.tolist()} are no logarithms of positions", field)
        self._extent = np.where(high == self._low, 1.0, high - self._low)
        low_name, high_name = _files(means, 2)
        self._codes = textures.pixels(high_name)[:, :3].astype(np.uint16) << 8
        self._codes |= textures.pixels(low_name)[:, :3]
        # The exponential of each code once, or of each Gaussian, whichever are fewer.
        every_code = np.arange(65536, dtype=np.uint16)
        self._tables = (
            [self._values(every_code, axis).astype(np.float32) for axis in range(3)]
            if len(self._codes) > len(every_code)
            else None
        )

    def _values(self, codes: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float64]:
        n = self._low[axis] + self._extent[axis] * (codes / 65535)
        return np.asarray(np.sign(n) * np.expm1(np.abs(n)))

    def rows(self, rows: slice) -> npt.NDArray[np.float32]:
        codes = self._codes[rows]
        out = np.empty(codes.shape, np.float32)
        for axis in range(3):
            own = codes[:, axis]
            out[:, axis] = self._values(own, axis) if self._tables is None else lookup(own, self._tables[axis])
        return out


def _unpacked_quats(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N, 4) unit quaternions w, x, y, z; both versions."""
    quats = np.empty((len(pixels), 4), np.float32)
    table = (np.arange(256) / 255 * 2 - 1) * np.sqrt(0.5)
    step = 1 << 15
    for start in range(0, len(pixels), step):
        block, out = pixels[start : start + step], quats[start : start + step]
        quats_of_smallest_three(block[:, 3].astype(np.int16) - 252, lookup(block[:, :3], table), out)
        out[block[:, 3] < 252] = (1, 0, 0, 0)
    return quats


def _lerp_tables(group: JsonObject, channels: int) -> list[npt.NDArray[np.float64]]:
    """Version 1: the value of each byte, for each channel."""
    low, high = group.numbers("mins", channels), group.numbers("maxs", channels)
    return [a + (b - a) * (np.arange(256) / 255) for a, b in zip(low, high)]


def _palette(
    meta: JsonObject, textures: _Textures, version: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
    """(M, K - 1, 3) SH coefficients, and (N,) which of them each Gaussian has; one of nothing where there are none."""
    if "shN" not in meta:
        return np.empty((1, 0, 3), np.float32), np.zeros(textures.count, np.uint16)
    group = meta.object("shN")
    centroids_name, labels_name = _files(group, 2)
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
    return palette, np.asarray(labels, np.uint16)


def read_head(source: Source, limits: Limits, count: int | None = None) -> tuple[JsonObject, int, int]:
    """`meta.json`, its version, and the number of Gaussians; `count` is what that must be, where it is known."""
    meta = parse_object(source.read(META, limits.max_json_bytes), META)
    version = meta.integer("version", 0, 1 << 31) if "version" in meta else 1
    if version not in (1, 2):
        raise UnsupportedError(f"SOG version {version}, only 1 and 2 are known", chunk=META, field="version")
    stated = _count(meta, version)
    if count is not None and stated != count:
        raise FormatError(f"{stated} Gaussians, where {count} are expected", chunk=META, field="count")
    limits.check_gaussians(stated, chunk=META)
    if stated > source.size_bytes * _MAX_GAUSSIANS_PER_BYTE:
        raise LimitExceededError(
            f"{stated} Gaussians cannot be in {source.size_bytes} bytes", chunk=META, field="count"
        )
    limits.check_bytes(stated * 4 * (14 + (45 if "shN" in meta else 0)), "the scene")
    return meta, version, stated


def stated_degree(meta: JsonObject, version: int) -> int | None:
    """SH degree, or None where only textures tell."""
    if "shN" not in meta:
        return 0
    return meta.object("shN").integer("bands", 1, 3) if version == 2 else None


def read_scene(source: Source, limits: Limits = DEFAULT_LIMITS, *, count: int | None = None) -> Gaussians:
    """The scene that the parts in `source` describe; see `splatcodec.formats.sog.read`.

    Args:
        count: how many Gaussians there must be, where that is known from elsewhere.
    """
    scene = PackedScene(source, limits, count)
    return scene.rows(slice(None)).replaced(metadata=scene.metadata)


def _count(meta: JsonObject, version: int) -> int:
    if version == 2:
        return meta.integer("count", 0, 1 << 62)
    shape = meta.object("means").get("shape")
    if not isinstance(shape, list) or not shape or not isinstance(shape[0], int) or isinstance(shape[0], bool):
        meta.fail("is not a list that begins with the number of Gaussians", "means.shape")
    if not 0 <= shape[0] < 1 << 62:
        meta.fail(f"is {str(shape[0])[:40]} Gaussians", "means.shape")
    return shape[0]


def metadata_of(meta: JsonObject, version: int) -> dict[str, Any]:
    """What `meta.json` says of the scene."""
    sog: dict[str, Any] = {"version": version}
    metadata: dict[str, Any] = {"sog": sog}
    facts = meta.get(METADATA_KEY)
    if isinstance(facts, dict):
        metadata = {name: value for name, value in facts.items() if name not in FILE_FACTS} | metadata
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
