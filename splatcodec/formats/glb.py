"""glTF with KHR_gaussian_splatting: an attribute an accessor, all float32; or an SPZ file inside.

Read are binary files (GLB) and `.gltf` with buffers beside it or as data URIs, plain or compressed by meshopt; written
are binary files.

Gaussians are the points of a mesh primitive: POSITION and `KHR_gaussian_splatting:` ROTATION (x, y, z, w), SCALE
(linear), OPACITY (0..1) and SH_DEGREE_l_COEF_n. With KHR_gaussian_splatting_compression_spz_2, a draft, accessors are
empty and an SPZ file in a buffer view holds the values. glTF's frame is LUF (x left, y up, z front): `read` turns
Gaussians to RDF, the axes of trainers, and `write` turns them back; that only changes signs. Facts: KhronosGroup/glTF,
the pages of both extensions and the glTF 2.0 specification.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import os
import re
import struct
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import (
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from ..files import open_for_reading
from ..frames import convert_frame
from ..gaussians import MAX_SH_DEGREE, SH_C0, Gaussians, num_sh_coefficients, unit_quats
from ..limits import DEFAULT_LIMITS, Limits
from ..sh_rotation import turned_sh
from ..version import __version__
from . import spz
from ._losses import SCENE_FACTS, Tally, drawable, is_json, lost_extras, lost_gaussians, lost_metadata
from ._packing import alpha_bytes, row_blocks
from ._quality import reduced
from ._records import file_size
from .base import BLOCK_ROWS, DEFAULT_OPTIONS, Blocks, ErrorBounds, Format, WriteOptions

__all__ = ["FORMAT", "read", "write"]

_MAGIC = b"glTF"
_HEADER = struct.Struct("<4sII")
_CHUNK = struct.Struct("<I4s")
_EXTENSION = "KHR_gaussian_splatting"
_SPZ_EXTENSION = "KHR_gaussian_splatting_compression_spz_2"
# Earlier names of the same thing, found in files of CesiumJS' time before the second draft.
_SPZ_EXTENSIONS = (_SPZ_EXTENSION, "KHR_gaussian_splatting_compression_spz", "KHR_spz_gaussian_splats_compression")
_MESHOPT_EXTENSIONS = ("EXT_meshopt_compression", "KHR_meshopt_compression")
_UNDERSTOOD = (_EXTENSION, *_SPZ_EXTENSIONS, *_MESHOPT_EXTENSIONS, "KHR_mesh_quantization", "KHR_materials_unlit")
_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_TEXT_SUFFIX = ".gltf"
_FILE_FRAME = "LUF"
_OUR_FRAME = "RDF"
# (numpy type, what 1 is when normalized)
_COMPONENTS = {
    5120: ("i1", 127),
    5121: ("u1", 255),
    5122: ("<i2", 32767),
    5123: ("<u2", 65535),
    5126: ("<f4", 1),
}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_FLOAT, _SHORT, _BYTE = 5126, 5122, 5121
_POINTS = 0
_MAX_NODES = 1 << 16
# An accessor may serve two attributes, as the extension allows; more often only to make a small file large.
_MAX_SHARING = 2
# Alphas nearer to 0 and 1 than float32 tells would have infinite logits; those from bytes are clamped as elsewhere.
_FLOAT_ALPHA_MARGINS = (1e-10, 2.0**-24)
_INT_ALPHA_MARGINS = (1e-6, 1e-6)
_VERSIONS = (1, 2)
# What glTF says of a scene that does not say more: a quality is judged by pictures, which are taken upright.
_UPRIGHT: dict[str, Any] = {"up": [0.0, 1.0, 0.0]}

_Json = dict[str, Any]
_Floats = npt.NDArray[np.float64]


# ------------------------------------------------------------------------------------------------------------- JSON


def _value(parent: Any, name: str | int, kind: type, default: Any = None, *, place: str = "") -> Any:
    """`parent[name]` if it is a `kind`; `default`, unless that is None, if there is none.

    Raises:
        FormatError: it is missing or something else.
    """
    field = f"{place}.{name}" if place else str(name)
    try:
        value = parent[name] if isinstance(name, int) and name >= 0 else parent.get(name, default)
    except (AttributeError, IndexError, KeyError, TypeError):
        value = None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(min(max(value, -(10**30)), 10**30))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"is missing or no {kind.__name__}", chunk="JSON", field=field)
    if isinstance(value, int) and value < 0:
        raise FormatError(f"is {value}", chunk="JSON", field=field)
    return value


def _numbers(parent: _Json, name: str, default: list[float], place: str) -> list[float]:
    """`parent[name]` as finite numbers, as many as in `default`."""
    values = _value(parent, name, list, default, place=place)
    if len(values) != len(default):
        raise FormatError(f"has {len(values)} numbers, expected {len(default)}", chunk="JSON", field=f"{place}.{name}")
    numbers = [_value(values, i, float, place=f"{place}.{name}") for i in range(len(values))]
    if not np.isfinite(numbers).all():
        raise FormatError("is not finite", chunk="JSON", field=f"{place}.{name}")
    return numbers


# --------------------------------------------------------------------------------------------------------- reading


class _Buffer(Protocol):
    """Bytes that buffer views lie in."""

    @property
    def size_bytes(self) -> int: ...
    def read(self, start: int, size_bytes: int) -> bytes: ...


@dataclass(frozen=True)
class _Stored:
    """A buffer in an open file: the binary chunk, or a file beside."""

    handle: BinaryIO
    start: int
    size_bytes: int
    name: str

    def read(self, start: int, size_bytes: int) -> bytes:
        """Some of it; the place has been checked."""
        self.handle.seek(self.start + start)
        content = self.handle.read(size_bytes)
        if len(content) < size_bytes:
            raise TruncatedError("the file ends early", chunk=self.name, offset=self.start + start)
        return content


@dataclass(frozen=True)
class _InMemory:
    """A buffer from a data URI, or a decompressed buffer view."""

    content: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read(self, start: int, size_bytes: int) -> bytes:
        """Some of it."""
        return self.content[start : start + size_bytes]


@dataclass(frozen=True)
class _Attribute:
    """An accessor: where its values are.

    Attributes:
        start: byte in the buffer. stride: bytes from one to the next.
    """

    buffer: _Buffer
    count: int
    width: int
    dtype: np.dtype[Any]
    one: int
    start: int
    stride: int

    @property
    def size_bytes(self) -> int:
        return (self.count - 1) * self.stride + self.width * self.dtype.itemsize


class _File:
    """An open glTF file, binary or text, with its buffers.

    Args:
        path: where it is, for buffers beside it.
        stack: closes what is opened besides.
    """

    def __init__(self, handle: BinaryIO, limits: Limits, path: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = path.parent, stack
        self._buffers: dict[int, _Buffer] = {}
        self._bin: _Stored | None = None
        self._unpacked: dict[int, _InMemory] = {}
        self._used_bytes = self._held_bytes = 0
        head = handle.read(len(_MAGIC))
        handle.seek(0)
        if head == _MAGIC or path.suffix.lower() != _TEXT_SUFFIX:
            text, offset = self._binary(handle, limits), 20
        else:
            size_bytes, offset = file_size(handle), 0
            _check_json(size_bytes, limits)
            text = handle.read(size_bytes)
        try:
            self.json: _Json = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"is not JSON: {error}", chunk="JSON", offset=offset) from None
        if not isinstance(self.json, dict):
            raise FormatError("is not an object", chunk="JSON", offset=offset)

    def _binary(self, handle: BinaryIO, limits: Limits) -> bytes:
        """The JSON of a GLB file, whose chunks are checked."""
        size_bytes = file_size(handle)
        head = handle.read(_HEADER.size + _CHUNK.size)
        if len(head) < _HEADER.size + _CHUNK.size:
            raise TruncatedError("the file ends inside the header", chunk="header", offset=len(head))
        magic, version, length = _HEADER.unpack_from(head)
        if magic != _MAGIC:
            raise FormatError(f"bad magic {magic.hex(' ')}", chunk="header", offset=0)
        if version != 2:
            raise UnsupportedError(f"glTF version {version}, only 2 is known", chunk="header", offset=4)
        if length > size_bytes:
            raise TruncatedError(
                f"the header promises {length} bytes, the file has {size_bytes}", chunk="header", offset=size_bytes
            )
        if length < size_bytes:
            raise FormatError(f"{size_bytes - length} bytes after the end", chunk="header", offset=length)
        json_bytes, kind = _CHUNK.unpack_from(head, _HEADER.size)
        if kind != b"JSON":
            raise FormatError(f"the first chunk is {kind!r}, expected JSON", chunk="header", offset=16)
        _check_json(json_bytes, limits)
        text = handle.read(json_bytes)
        if len(text) < json_bytes:
            raise TruncatedError("the file ends early", chunk="JSON", offset=size_bytes)
        start = handle.tell()
        if size_bytes > start:
            head = handle.read(_CHUNK.size)
            if len(head) < _CHUNK.size:
                raise TruncatedError("the file ends inside a chunk's header", chunk="BIN", offset=size_bytes)
            bin_bytes, kind = _CHUNK.unpack(head)
            start += _CHUNK.size
            if kind != b"BIN\0":
                raise FormatError(f"the second chunk is {kind!r}, expected BIN", chunk="BIN", offset=start - 4)
            if start + bin_bytes > size_bytes:
                raise TruncatedError("the file ends early", chunk="BIN", offset=size_bytes)
            self._bin = _Stored(handle, start, bin_bytes, "BIN")
        return text

    def buffer(self, index: int) -> _Buffer:
        """A buffer: the binary chunk, a file beside this one, or a data URI."""
        if index not in self._buffers:
            place = f"buffers[{index}]"
            facts = _value(_value(self.json, "buffers", list, []), index, dict, place="buffers")
            if "uri" in facts:
                self._buffers[index] = self._linked(_value(facts, "uri", str, place=place), place)
                length = _value(facts, "byteLength", int, place=place)
                if self._buffers[index].size_bytes < length:
                    have = self._buffers[index].size_bytes
                    raise TruncatedError(f"has {have} bytes, expected {length}", chunk="JSON", field=place)
            elif index == 0 and self._bin is not None:
                self._buffers[index] = self._bin
            else:
                raise FormatError("has no content", chunk="JSON", field=place)
            self._held_bytes += self._buffers[index].size_bytes
        return self._buffers[index]

    def _linked(self, uri: str, place: str) -> _Buffer:
        """What a URI leads to; never anything outside the file's folder."""
        if match := _DATA_URI.match(uri):
            try:
                return _InMemory(base64.b64decode(uri[match.end() :], validate=True))
            except binascii.Error as error:
                raise FormatError(f"is no base64: {error}", chunk="JSON", field=f"{place}.uri") from None
        name = urllib.parse.unquote(uri)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
            raise UnsupportedError(f"the URI {name[:60]!r} is no file", chunk="JSON", field=f"{place}.uri")
        parts = re.split(r"[/\\]", name)
        folder = os.path.realpath(self._folder)
        wrong = ".." in parts or not parts[0] or "\0" in name
        target = "" if wrong else os.path.realpath(os.path.join(folder, *parts))  # behind links, too
        if not target.startswith(os.path.join(folder, "")):
            raise FormatError(f"{name[:60]!r} leads out of the folder", chunk="JSON", field=f"{place}.uri")
        try:
            handle = self._stack.enter_context(open_for_reading(target))
        except SplatCodecError as error:
            raise FormatError(f"{name[:60]!r}: {error.message}", chunk="JSON", field=f"{place}.uri") from None
        return _Stored(handle, 0, file_size(handle), name)

    def view(self, index: int) -> tuple[_Buffer, int, int, int]:
        """(buffer, start, length, stride or 0) of a buffer view."""
        view = _value(_value(self.json, "bufferViews", list), index, dict, place="bufferViews")
        place = f"bufferViews[{index}]"
        extensions = _value(view, "extensions", dict, {}, place=place)
        stride = _value(view, "byteStride", int, 0, place=place)
        packed = next((name for name in _MESHOPT_EXTENSIONS if name in extensions), None)
        if packed is not None:
            content = self._unpack(index, _value(extensions, packed, dict, place=place), f"{place}.{packed}")
            return content, 0, content.size_bytes, stride
        if extensions:
            names = ", ".join(map(str, extensions))
            raise UnsupportedError(f"compressed by {names[:80]}", chunk="JSON", field=place)
        return *self._range(view, place), stride

    def _range(self, view: _Json, place: str) -> tuple[_Buffer, int, int]:
        """(buffer, start, length) that an object states, checked."""
        buffer = self.buffer(_value(view, "buffer", int, place=place))
        start = _value(view, "byteOffset", int, 0, place=place)
        length = _value(view, "byteLength", int, place=place)
        if start + length > buffer.size_bytes:
            raise FormatError(f"ends at byte {start + length} of {buffer.size_bytes}", chunk="JSON", field=place)
        return buffer, start, length

    def _unpack(self, index: int, facts: _Json, place: str) -> _InMemory:
        """A buffer view that meshopt compressed."""
        if index not in self._unpacked:
            from ._meshopt import decode_attributes, unfiltered

            mode = _value(facts, "mode", str, place=place)
            if mode != "ATTRIBUTES":
                raise UnsupportedError(f"mode {mode[:40]!r}", chunk="JSON", field=place)
            count, stride = (_value(facts, name, int, place=place) for name in ("count", "byteStride"))
            buffer, start, length = self._range(facts, place)
            if not count:
                raise FormatError("has no values", chunk="JSON", field=place)
            try:
                content = decode_attributes(buffer.read(start, length), count, stride)
                content = unfiltered(content, _value(facts, "filter", str, "NONE", place=place))
            except SplatCodecError as error:
                error.locate(chunk=place)
                raise
            self._unpacked[index] = _InMemory(content.tobytes())
            self._held_bytes += content.nbytes
        return self._unpacked[index]

    def count_use(self, size_bytes: int) -> None:
        """Refuse files whose values are used so often that the scene would be far larger than the file."""
        self._used_bytes += size_bytes
        if self._used_bytes > _MAX_SHARING * self._held_bytes:
            raise FormatError("the same bytes are used for several attributes", chunk="JSON", field="accessors")

    def attribute(self, index: int, name: str) -> _Attribute:
        """The accessor of an attribute, checked."""
        accessor = _value(_value(self.json, "accessors", list), index, dict, place="accessors")
        place = f"accessors[{index}]"
        if "sparse" in accessor:
            raise UnsupportedError("sparse accessors are not supported", chunk="JSON", field=place)
        kind = _value(accessor, "type", str, place=place)
        component = _value(accessor, "componentType", int, place=place)
        if component not in _COMPONENTS or kind not in _WIDTHS:
            raise FormatError(f"{name} has type {kind} of {component}", chunk="JSON", field=place)
        code, one = _COMPONENTS[component]
        dtype, width = np.dtype(code), _WIDTHS[kind]
        normalized = bool(accessor.get("normalized", False))
        count = _value(accessor, "count", int, place=place)
        buffer, start, length, stride = self.view(_value(accessor, "bufferView", int, place=place))
        stride = stride or dtype.itemsize * width
        offset = _value(accessor, "byteOffset", int, 0, place=place)
        if count < 1:
            raise FormatError("has no values", chunk="JSON", field=place)
        if stride < dtype.itemsize * width:
            raise FormatError(f"{stride} bytes for each {kind}", chunk="JSON", field=place)
        attribute = _Attribute(buffer, count, width, dtype, one if normalized else 1, start + offset, stride)
        if offset + attribute.size_bytes > length:
            raise FormatError(f"{count} values end behind their buffer view", chunk="JSON", field=place)
        self.count_use(count * dtype.itemsize * width)
        return attribute


def _check_json(size_bytes: int, limits: Limits) -> None:
    if size_bytes > limits.max_json_bytes:
        raise LimitExceededError(f"{size_bytes} bytes, more than the limit of {limits.max_json_bytes}", chunk="JSON")


def _values(attribute: _Attribute, part: slice) -> npt.NDArray[np.float32]:
    """(n, width) of some rows; normalized integers become -1..1 or 0..1."""
    a = attribute
    out = np.empty((part.stop - part.start, a.width), np.float32)
    for rows in row_blocks(len(out)):
        count = rows.stop - rows.start
        span = (count - 1) * a.stride + a.width * a.dtype.itemsize
        raw = a.buffer.read(a.start + (part.start + rows.start) * a.stride, span)
        out[rows] = np.ndarray((count, a.width), a.dtype, raw, strides=(a.stride, a.dtype.itemsize))
        if a.one > 1:
            out[rows] /= np.float32(a.one)
            np.maximum(out[rows], np.float32(-1), out=out[rows])
    return out


def _transform(node: _Json, place: str) -> _Floats:
    """(4, 4) matrix of a node: to its parent's coordinates."""
    matrix = np.eye(4)
    if "matrix" in node:
        return np.array(_numbers(node, "matrix", np.eye(4).ravel().tolist(), place)).reshape(4, 4).T
    x, y, z, w = _numbers(node, "rotation", [0.0, 0.0, 0.0, 1.0], place)
    matrix[:3, :3] = _rotation(unit_quats(np.array([[w, x, y, z]], np.float32))[0].astype(np.float64))
    matrix[:3, :3] *= _numbers(node, "scale", [1.0, 1.0, 1.0], place)
    matrix[:3, 3] = _numbers(node, "translation", [0.0, 0.0, 0.0], place)
    return matrix


def _rotation(quat: _Floats) -> _Floats:
    w, x, y, z = quat
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _placed_meshes(root: _Json) -> Iterator[tuple[int, _Floats]]:
    """(mesh, world matrix) of every node of the scene shown, each node once."""
    nodes = _value(root, "nodes", list, [])
    scenes = _value(root, "scenes", list, [])
    if len(nodes) > _MAX_NODES:
        raise LimitExceededError(f"{len(nodes)} nodes, more than {_MAX_NODES}", chunk="JSON")
    if scenes:
        scene = _value(scenes, _value(root, "scene", int, 0), dict, place="scenes")
        roots = _value(scene, "nodes", list, [], place="scene")
    else:  # a library of nodes: those that are nobody's child
        children = {child for node in nodes if isinstance(node, dict) for child in _hashable(node.get("children"))}
        roots = [i for i in range(len(nodes)) if i not in children]
    pending = [(roots, i, np.eye(4)) for i in range(len(roots))][::-1]
    seen: set[int] = set()
    while pending:
        siblings, position, above = pending.pop()
        index = _value(siblings, position, int, place="nodes")
        place = f"nodes[{index}]"
        node = _value(nodes, index, dict, place="nodes")
        if index in seen:
            raise FormatError("has two parents, or is its own", chunk="JSON", field=place)
        seen.add(index)
        with np.errstate(over="ignore", invalid="ignore"):
            world = above @ _transform(node, place)
        if not np.isfinite(world).all():
            raise FormatError("is not finite", chunk="JSON", field=place)
        if "mesh" in node:
            yield _value(node, "mesh", int, place=place), world
        below = _value(node, "children", list, [], place=place)
        pending += [(below, i, world) for i in range(len(below))][::-1]


def _hashable(children: Any) -> list[int]:
    return [child for child in children if isinstance(child, int)] if isinstance(children, list) else []


def _splats(file: _File) -> Iterator[tuple[_Json, _Json, int | None, _Floats, str]]:
    """Of every primitive of Gaussians: primitive, extension, buffer view of an SPZ file, world matrix, place."""
    others = 0
    seen: set[int] = set()
    for index, world in _placed_meshes(file.json):
        mesh = _value(_value(file.json, "meshes", list), index, dict, place="meshes")
        primitives = _value(mesh, "primitives", list, place=f"meshes[{index}]")
        found = False
        for k in range(len(primitives)):
            place = f"meshes[{index}].primitives[{k}]"
            primitive = _value(primitives, k, dict, place=place)
            extensions = _value(primitive, "extensions", dict, {}, place=place)
            outer = next((extensions[name] for name in _SPZ_EXTENSIONS if name in extensions), None)
            if _EXTENSION not in extensions and outer is None:
                others += 1
                continue
            extension = _value(extensions, _EXTENSION, dict, {}, place=place)
            nested = _value(extension, "extensions", dict, {}, place=place)
            inner = next((nested[name] for name in _SPZ_EXTENSIONS if name in nested), outer)
            view = None if inner is None else _value(inner, "bufferView", int, place=place)
            if inner is None and nested:
                raise UnsupportedError(f"extension {', '.join(map(str, nested))}", chunk="JSON", field=place)
            found = True
            yield primitive, extension, view, world, place
        if found and index in seen:
            raise UnsupportedError("Gaussians drawn at two places", chunk="JSON", field=f"meshes[{index}]")
        seen.add(index)
    if others:
        warnings.warn(f"{others} primitives that are no Gaussians are left out", SplatCodecWarning, stacklevel=5)


@dataclass(frozen=True)
class _Plain:
    """The attributes of a primitive whose values are accessors."""

    found: Mapping[str, _Attribute]
    count: int
    sh_degree: int

    def rows(self, part: slice) -> Gaussians:
        """Some of the Gaussians, in the primitive's own coordinates."""
        rest = _sh_names(self.sh_degree)
        shN = np.empty((part.stop - part.start, len(rest), 3), np.float32)
        for k, name in enumerate(rest):
            shN[:, k] = _values(self.found[name], part)
        margins = _FLOAT_ALPHA_MARGINS if self.found["OPACITY"].dtype.kind == "f" else _INT_ALPHA_MARGINS
        scales = _values(self.found["SCALE"], part)
        # A scale of zero is a flat Gaussian (-inf); a negative one is nonsense and becomes NaN for `cleaned`.
        with np.errstate(divide="ignore", invalid="ignore"):
            np.log(scales, out=scales)
        return Gaussians(
            means=_values(self.found["POSITION"], part),
            quats=_values(self.found["ROTATION"], part)[:, [3, 0, 1, 2]],
            scales=scales,
            opacities=_logits(_values(self.found["OPACITY"], part)[:, 0], margins),
            sh0=_values(self.found["SH_DEGREE_0_COEF_0"], part)[:, None],
            shN=shN,
        )


def _plain(file: _File, primitive: _Json, limits: Limits, place: str) -> _Plain:
    """The attributes, checked."""
    attributes = _value(primitive, "attributes", dict, place=place)
    splat = {name.partition(":")[2]: name for name in attributes if name.startswith(f"{_EXTENSION}:")}
    needed = {
        "POSITION": "VEC3",
        "ROTATION": "VEC4",
        "SCALE": "VEC3",
        "OPACITY": "SCALAR",
        "SH_DEGREE_0_COEF_0": "VEC3",
    }
    degree = max((int(name[10]) for name in splat if name[:10] == "SH_DEGREE_" and name[10:11].isdecimal()), default=0)
    if degree > MAX_SH_DEGREE:
        raise UnsupportedError(f"SH degree {degree}", chunk="JSON", field=place)
    rest = _sh_names(degree)
    found: dict[str, _Attribute] = {}
    for name, kind in {**needed, **dict.fromkeys(rest, "VEC3")}.items():
        full = name if name == "POSITION" else splat.get(name, f"{_EXTENSION}:{name}")
        if full not in attributes:
            hint = "an early draft?" if name == "OPACITY" else None
            raise FormatError("is missing", chunk="JSON", field=f"{place}.attributes.{full}", hint=hint)
        attribute = file.attribute(_value(attributes, full, int, place=place), full)
        if attribute.width != _WIDTHS[kind]:
            raise FormatError(f"is no {kind}", chunk="JSON", field=f"{place}.attributes.{full}")
        found[name] = attribute
    count = found["POSITION"].count
    for name, attribute in found.items():
        if attribute.count != count:
            raise FormatError(f"{name} has {attribute.count} values, POSITION {count}", chunk="JSON", field=place)
    limits.check_gaussians(count, chunk="JSON")
    limits.check_bytes(count * 4 * (14 + 3 * len(rest)), "the scene")
    return _Plain(found, count, degree)


def _logits(alphas: npt.NDArray[np.float32], margins: tuple[float, float]) -> npt.NDArray[np.float32]:
    out = np.empty_like(alphas)
    for rows in row_blocks(len(alphas)):
        wide = np.clip(alphas[rows].astype(np.float64), margins[0], 1 - margins[1])
        out[rows] = np.log(wide) - np.log1p(-wide)
    return out


def _read_spz(file: _File, view: int, limits: Limits, place: str) -> Gaussians:
    buffer, start, length, _ = file.view(view)
    file.count_use(length)
    try:
        scene = spz.read_stream(io.BytesIO(buffer.read(start, length)), limits)
    except SplatCodecError as error:
        error.chunk = f"SPZ in {place}" if error.chunk is None else f"SPZ in {place}: {error.chunk}"
        raise
    # What frame the SPZ file itself may state is not asked: glTF says what it is.
    return scene.replaced(metadata={"antialiased": True} if scene.metadata["antialiased"] else {})


def _moved(scene: Gaussians, world: _Floats) -> Gaussians:
    """The scene under the transform of its node."""
    linear, offset = world[:3, :3], world[:3, 3]
    if (world == np.eye(4)).all():
        return scene
    u, sizes, vt = np.linalg.svd(linear)
    if not sizes[2] > 1e-6 * sizes[0]:
        raise UnsupportedError("a node makes the scene flat", chunk="JSON", field="nodes")
    turn = u @ vt
    means = np.empty_like(scene.means)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in row_blocks(len(means)):
            means[rows] = scene.means[rows].astype(np.float64) @ linear.T + offset
    if sizes[0] - sizes[2] <= 1e-5 * sizes[0]:
        # A mirrored ellipsoid is a rotated one: minus the mirroring.
        quat = _quat_of(turn * np.sign(np.linalg.det(turn)))
        quats = _product(quat, scene.quats)
        scales = scene.scales + np.float32(np.log(sizes.mean()))
    else:
        quats, scales = _stretched(scene, linear)
        if scene.sh_degree:
            warnings.warn(
                "a node stretches the scene unevenly: its harmonics are turned, not stretched",
                SplatCodecWarning,
                stacklevel=5,
            )
    return scene.replaced(means=means, quats=quats, scales=scales, shN=turned_sh(scene.shN, turn))


def _quat_of(matrix: _Floats) -> _Floats:
    """(4,) w, x, y, z of a rotation: the eigenvector of Bar-Itzhack's matrix."""
    m = matrix
    k = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    return np.asarray(np.linalg.eigh(k)[1][:, -1])


def _product(left: _Floats, quats: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`left` (4,) times each of `quats` (N, 4)."""
    w, x, y, z = left
    matrix = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    out = np.empty_like(quats)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in row_blocks(len(quats)):
            out[rows] = quats[rows].astype(np.float64) @ matrix.T
    return out


def _stretched(scene: Gaussians, linear: _Floats) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(quats, scales) of ellipsoids under any linear map."""
    quats, scales = np.empty_like(scene.quats), np.empty_like(scene.scales)
    for rows in row_blocks(len(scene), 1 << 12):
        w, x, y, z = scene.selected(rows).normalized_quats().astype(np.float64).T
        axes = _rotation(np.stack([w, x, y, z])).transpose(2, 0, 1)
        lengths = np.exp(np.clip(np.nan_to_num(scene.scales[rows].astype(np.float64), nan=0.0), -80, 80))
        u, sizes, _ = np.linalg.svd(linear @ axes * lengths[:, None])
        u *= np.sign(np.linalg.det(u))[:, None, None]
        quats[rows] = [_quat_of(matrix) for matrix in u]
        with np.errstate(divide="ignore"):
            scales[rows] = np.log(sizes)
    return quats, scales


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read the Gaussians of a glTF file: all primitives of the scene it shows, placed by their nodes, in RDF.

    Gaussians compressed by SPZ are as exact as that. `metadata` gets `frame`, and what a writer of splatcodec put into
    `asset.extras`. Primitives that are no Gaussians are left out with a SplatCodecWarning. Buffers may be data URIs or
    files in the folder of `path` or below it; nothing else is opened.

    Raises:
        FormatError: damaged, or without Gaussians; a buffer is missing or leads out of the folder; TruncatedError if
            a file ends early.
        UnsupportedError: another glTF version, kernel or compression; buffers that are no files; sparse accessors.
        LimitExceededError: more than `limits` allows.
    """
    with contextlib.ExitStack() as stack:
        file = _opened(path, limits, stack)
        parts = []
        total_bytes = total = 0
        for primitive, _, view, world, place in (splats := list(_checked_splats(file))):
            if view is None:
                plain = _plain(file, primitive, limits, place)
                part = plain.rows(slice(0, plain.count))
            else:
                part = _read_spz(file, view, limits, place)
            total += len(part)
            total_bytes += part.array_bytes
            limits.check_gaussians(total)
            limits.check_bytes(total_bytes, "the scene")
            parts.append(_moved(part, world))
    if not parts:
        raise FormatError("the scene of this file has no Gaussians (KHR_gaussian_splatting)", chunk="JSON")
    scene = _joined(parts, limits)
    return _turned(scene.replaced(metadata=_metadata(file, splats, parts[0].metadata)))


def _opened(path: Path, limits: Limits, stack: contextlib.ExitStack) -> _File:
    file = _File(stack.enter_context(open_for_reading(path)), limits, path, stack)
    for name in _value(file.json, "extensionsRequired", list, []):
        if name not in _UNDERSTOOD:
            raise UnsupportedError(f"the file needs extension {name}", chunk="JSON", field="extensionsRequired")
    return file


_Splat = tuple[_Json, _Json, int | None, _Floats, str]


def _checked_splats(file: _File) -> Iterator[_Splat]:
    """`_splats`, refusing those that are drawn in another way."""
    for primitive, extension, view, world, place in _splats(file):
        if _value(primitive, "mode", int, 4, place=place) != _POINTS:
            raise FormatError("Gaussians have to be points", chunk="JSON", field=f"{place}.mode")
        kernel = _value(extension, "kernel", str, "ellipse", place=place)
        if kernel != "ellipse":
            raise UnsupportedError(f"kernel {kernel!r}", chunk="JSON", field=place)
        yield primitive, extension, view, world, place


def _metadata(file: _File, splats: list[_Splat], inside: Mapping[str, Any]) -> dict[str, Any]:
    """Of the scene, in the file's frame."""
    metadata = {**_stated_metadata(file.json), **inside, "frame": _FILE_FRAME}
    if any(extension.get("colorSpace") == "lin_rec709_display" for _, extension, *_ in splats):
        metadata.setdefault("colour_space", "lin_rec709_display")
    return metadata


def _turned(scene: Gaussians) -> Gaussians:
    """The scene in our frame."""
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return convert_frame(scene, _OUR_FRAME)


@contextlib.contextmanager
def open_blocks(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Blocks]:
    """`read`, block by block; buffer views that are compressed are held.

    Raises:
        UnsupportedError: besides, several primitives, one that its node moves, or one that is compressed by SPZ.
    """
    with contextlib.ExitStack() as stack:
        file = _opened(path, limits, stack)
        splats = list(_checked_splats(file))
        if len(splats) != 1 or splats[0][2] is not None or (splats[0][3] != np.eye(4)).any():
            raise UnsupportedError("not one plain primitive, so it cannot be read in blocks", chunk="JSON")
        primitive, _, _, _, place = splats[0]
        plain = _plain(file, primitive, limits, place)
        metadata = _metadata(file, splats, {})
        frame = {"frame": _FILE_FRAME}

        def rows() -> Iterator[Gaussians]:
            for part in row_blocks(plain.count, BLOCK_ROWS):
                yield _turned(plain.rows(part).replaced(metadata=frame)).replaced(metadata={})

        head = _turned(Gaussians.empty().replaced(metadata=metadata))
        yield Blocks(plain.count, plain.sh_degree, rows, metadata=head.metadata)


def _joined(parts: list[Gaussians], limits: Limits) -> Gaussians:
    if len(parts) == 1:
        return parts[0]
    degree = max(part.sh_degree for part in parts)
    count = sum(len(part) for part in parts)
    limits.check_bytes(count * 4 * (14 + 3 * (num_sh_coefficients(degree) - 1)), "the scene")
    parts = [part.with_sh_degree(degree) for part in parts]
    names = ("means", "quats", "scales", "opacities", "sh0", "shN")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Gaussians(**arrays)


def _stated_metadata(root: _Json) -> dict[str, Any]:
    """What `write` put into the asset's extras; anything else is ignored."""
    asset = root.get("asset")
    extras = asset.get("extras") if isinstance(asset, dict) else None
    stated = extras.get("splatcodec") if isinstance(extras, dict) else None
    if not isinstance(stated, dict):
        return {}
    return {name: value for name, value in stated.items() if name in SCENE_FACTS and name != "frame"}


# --------------------------------------------------------------------------------------------------------- writing


class _Builder:
    """Collects buffer views of the binary chunk, and accessors.

    Attributes:
        arrays: content of views that is at hand.
        size_bytes: of all views.
    """

    def __init__(self) -> None:
        self.views: list[_Json] = []
        self.accessors: list[_Json] = []
        self.arrays: list[bytes] = []
        self.size_bytes = 0

    def view(self, size_bytes: int, **facts: Any) -> int:
        self.views.append({"buffer": 0, "byteOffset": self.size_bytes, "byteLength": size_bytes, **facts})
        self.size_bytes += -(-size_bytes // 4) * 4
        return len(self.views) - 1

    def accessor(self, count: int, row_bytes: int, component: int, kind: str, **facts: Any) -> int:
        view = self.view(count * row_bytes, target=34962)
        return self.empty_accessor(count, component, kind, bufferView=view, **facts)

    def empty_accessor(self, count: int, component: int, kind: str, **facts: Any) -> int:
        self.accessors.append({"componentType": component, "count": count, "type": kind, **facts})
        return len(self.accessors) - 1


def _version(options: WriteOptions) -> int:
    return _VERSIONS[0] if options.version is None else options.version


def _held(gaussians: Gaussians, options: WriteOptions) -> Gaussians:
    """What is written, in glTF's frame."""
    return _in_file_frame(drawable(gaussians, options))


def _in_file_frame(scene: Gaussians) -> Gaussians:
    frame = None if scene.metadata.get("frame") is not None else _OUR_FRAME
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return convert_frame(scene, _FILE_FRAME, from_frame=frame)


def _extras(metadata: Any) -> dict[str, Any]:
    """Metadata for the asset's extras."""
    facts = {name: metadata.get(name) for name in SCENE_FACTS if name != "frame"}
    return {name: value for name, value in facts.items() if value not in (None, []) and is_json(value)}


def write(gaussians: Gaussians, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """Write a GLB file with KHR_gaussian_splatting: version 1 plain, version 2 with an SPZ file (version 2) inside.

    A scene that does not state its frame is taken to be in RDF. With a quality, plain quaternions take 16 bits.

    Returns:
        What the quality leaves out.

    Raises:
        ParameterError: the scene is empty, or larger than 4 GiB.
    """
    scene = _held(gaussians, options)
    lost: list[str] = []
    if not len(scene):
        raise ParameterError("GLB cannot hold an empty scene")
    if _version(options) == 2:
        builder = _Builder()
        attributes = _build_spz(builder, scene, options, lost)
        _write_root(builder, attributes, scene.metadata, file, compressed=True)
        for content in builder.arrays:
            file.write(content + bytes(-len(content) % 4))
        return lost
    facts = scene.metadata
    scene, lost = reduced(scene.replaced(metadata={**_UPRIGHT, **facts}), options)
    coarse = options.quality is not None
    layout = _Layout(len(scene), scene.sh_degree, coarse, scene.means.min(axis=0), scene.means.max(axis=0))
    start = _write_root(layout.builder, layout.attributes, facts, file)
    for rows in row_blocks(len(scene)):
        layout.write(scene.selected(rows), rows.start, start, file)
    file.seek(start + layout.builder.size_bytes)
    return lost


def write_blocks(blocks: Blocks, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write` without a quality, from blocks, which are read twice; version 2 is written by `spz.write_blocks`.

    Raises:
        ParameterError: the scene is empty, or larger than 4 GiB.
    """
    head = _held(blocks.head(), options)
    stated = {"frame": blocks.metadata["frame"]} if blocks.metadata.get("frame") is not None else {}

    def held(block: Gaussians) -> Gaussians:
        return _held(block.replaced(metadata=stated), options).replaced(metadata={})

    low, high, count = np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32), 0
    for block in blocks.rows():
        means = held(block).means
        if len(means):
            low, high = np.minimum(low, means.min(axis=0)), np.maximum(high, means.max(axis=0))
            count += len(means)
    if not count:
        raise ParameterError("GLB cannot hold an empty scene")
    if _version(options) == 2:
        lost = _losses_of_frame(blocks.metadata) + lost_metadata(head, {"frame", *_extras(head.metadata)})

        def rows() -> Iterator[Gaussians]:
            for block in blocks.rows():  # which `spz` cleans, and tells so
                yield _in_file_frame(block.replaced(metadata=stated)).replaced(metadata={})

        builder = _Builder()
        inside = {name: head.metadata[name] for name in ("antialiased",) if name in head.metadata}
        turned = replace(blocks, rows=rows, metadata=inside)
        content = io.BytesIO()
        lost += spz.write_blocks(turned, content, _inner(options))
        attributes = _spz_attributes(builder, content.getvalue(), head.sh_degree, low, high)
        _write_root(builder, attributes, head.metadata, file, compressed=True)
        for part in builder.arrays:
            file.write(part + bytes(-len(part) % 4))
        return lost
    layout = _Layout(count, head.sh_degree, False, low, high)
    start = _write_root(layout.builder, layout.attributes, head.metadata, file)
    tally = Tally(lambda scene: _losses(scene.replaced(metadata=blocks.metadata), options))
    at = 0
    for block in blocks.rows():
        scene = held(tally.drawable(block))
        layout.write(scene, at, start, file)
        at += len(scene)
    file.seek(start + layout.builder.size_bytes)
    return tally.sentences()


def _write_root(
    builder: _Builder, attributes: dict[str, int], metadata: Any, file: BinaryIO, compressed: bool = False
) -> int:
    """Write everything up to the content of the binary chunk; returns where that begins."""
    extension: _Json = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    if metadata.get("colour_space") == "lin_rec709_display":
        extension["colorSpace"] = "lin_rec709_display"
    if compressed:
        extension["extensions"] = {_SPZ_EXTENSION: {"bufferView": 0}}
    else:
        extension |= {"sortingMethod": "cameraDistance", "projection": "perspective"}
    asset: _Json = {"version": "2.0", "generator": f"splatcodec {__version__}"}
    if extras := _extras(metadata):
        asset["extras"] = {"splatcodec": extras}
    primitive = {"attributes": attributes, "mode": _POINTS, "extensions": {_EXTENSION: extension}}
    names = [_EXTENSION, *([_SPZ_EXTENSION] if compressed else [])]
    root: _Json = {
        "asset": asset,
        "extensionsUsed": names,
        # Plain attributes can be drawn as points by anybody; compressed ones are nothing to who cannot read them.
        **({"extensionsRequired": names} if compressed else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": builder.size_bytes}],
        "bufferViews": builder.views,
        "accessors": builder.accessors,
    }
    text = json.dumps(root, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    length = _HEADER.size + 2 * _CHUNK.size + len(text) + builder.size_bytes
    if length >= 1 << 32:
        raise ParameterError(f"{length} bytes, but a GLB file ends at 4 GiB")
    file.write(_HEADER.pack(_MAGIC, 2, length))
    file.write(_CHUNK.pack(len(text), b"JSON"))
    file.write(text)
    file.write(_CHUNK.pack(builder.size_bytes, b"BIN\0"))
    return file.tell()


class _Layout:
    """Where each attribute of a plain file lies in its binary chunk.

    Args:
        coarse: quaternions in 16 bits.
        low, high: (3,) corners of the box of all positions.
    """

    def __init__(self, count: int, sh_degree: int, coarse: bool, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> None:
        self.builder, self.coarse = _Builder(), coarse
        accessor = self.builder.accessor
        self.attributes = {
            "POSITION": accessor(count, 12, _FLOAT, "VEC3", min=low.tolist(), max=high.tolist()),
            "COLOR_0": accessor(count, 4, _BYTE, "VEC4", normalized=True),
        }
        if coarse:
            rotation = accessor(count, 8, _SHORT, "VEC4", normalized=True)
        else:
            rotation = accessor(count, 16, _FLOAT, "VEC4")
        self.attributes[f"{_EXTENSION}:ROTATION"] = rotation
        for name in ("SCALE", "OPACITY", "SH_DEGREE_0_COEF_0", *_sh_names(sh_degree)):
            kind = "SCALAR" if name == "OPACITY" else "VEC3"
            self.attributes[f"{_EXTENSION}:{name}"] = accessor(count, 4 * _WIDTHS[kind], _FLOAT, kind)

    def write(self, scene: Gaussians, first: int, start: int, file: BinaryIO) -> None:
        """Write rows `first` and following of all attributes; the binary chunk begins at `start`."""
        for name, index in self.attributes.items():
            raw = np.ascontiguousarray(_column(scene, name.removeprefix(f"{_EXTENSION}:"), self.coarse)).tobytes()
            view = self.builder.views[self.builder.accessors[index]["bufferView"]]
            file.seek(start + view["byteOffset"] + first * (len(raw) // max(len(scene), 1)))
            file.write(raw)


def _column(scene: Gaussians, name: str, coarse: bool) -> npt.NDArray[Any]:
    """The values of an attribute as they are in the file."""
    values: npt.NDArray[Any]
    if name == "POSITION":
        values = scene.means
    elif name == "COLOR_0":
        rgba = np.empty((len(scene), 4), np.uint8)
        rgba[:, :3] = np.rint(np.clip(0.5 + SH_C0 * scene.sh0[:, 0], 0, 1) * 255)
        rgba[:, 3] = alpha_bytes(scene.opacities)
        return rgba
    elif name == "ROTATION":
        values = scene.normalized_quats()[:, [1, 2, 3, 0]]
        if coarse:
            return np.rint(values * 32767).astype("<i2")
    elif name == "SCALE":
        with np.errstate(over="ignore"):
            values = np.minimum(np.exp(scene.scales, dtype=np.float32), np.finfo(np.float32).max)
    elif name == "OPACITY":
        values = scene.alphas()
    elif name == "SH_DEGREE_0_COEF_0":
        values = scene.sh0[:, 0]
    else:
        values = scene.shN[:, _sh_names(scene.sh_degree).index(name)]
    return values.astype("<f4", copy=False)


def _sh_names(sh_degree: int) -> list[str]:
    return [f"SH_DEGREE_{band}_COEF_{n}" for band in range(1, sh_degree + 1) for n in range(2 * band + 1)]


def _build_spz(builder: _Builder, scene: Gaussians, options: WriteOptions, lost: list[str]) -> dict[str, int]:
    """Add an SPZ file and the attributes that stand for it; what it loses goes to `lost`."""
    content = io.BytesIO()
    lost += spz.write(scene.replaced(metadata=_inside(scene.metadata)), content, _inner(options))
    low, high = scene.means.min(axis=0), scene.means.max(axis=0)
    return _spz_attributes(builder, content.getvalue(), scene.sh_degree, low, high)


def _inside(metadata: Any) -> dict[str, Any]:
    """What the SPZ file holds, and what helps to look at the scene; glTF itself states the frame."""
    facts = {**_UPRIGHT, **metadata}
    return {name: facts[name] for name in ("antialiased", "up") if name in facts}


def _inner(options: WriteOptions) -> WriteOptions:
    return WriteOptions(quality=options.quality, version=2, threads=options.threads)


def _spz_attributes(
    builder: _Builder, raw: bytes, sh_degree: int, low: npt.NDArray[Any], high: npt.NDArray[Any]
) -> dict[str, int]:
    """The SPZ file as a buffer view, and the draft's attributes: colour and opacity together as COLOR_0."""
    builder.view(len(raw))
    builder.arrays.append(raw)
    count = spz.stated_count(raw)
    attributes = {
        "POSITION": builder.empty_accessor(count, _FLOAT, "VEC3", min=low.tolist(), max=high.tolist()),
        "COLOR_0": builder.empty_accessor(count, _BYTE, "VEC4", normalized=True),
        f"{_EXTENSION}:SCALE": builder.empty_accessor(count, _FLOAT, "VEC3"),
        f"{_EXTENSION}:ROTATION": builder.empty_accessor(count, _FLOAT, "VEC4"),
    }
    for name in _sh_names(sh_degree):
        attributes[f"{_EXTENSION}:{name}"] = builder.empty_accessor(count, _FLOAT, "VEC3")
    return attributes


def _losses_of_frame(metadata: Any) -> list[str]:
    if metadata.get("frame") is not None:
        return []
    return [f"the scene states no frame: taken to be in {_OUR_FRAME} and turned to glTF's"]


def _losses(gaussians: Gaussians, options: WriteOptions) -> list[str]:
    lost = [
        *lost_extras(gaussians),
        *lost_metadata(gaussians, {"frame", *_extras(gaussians.metadata)}),
        *lost_gaussians(gaussians, options),
        *_losses_of_frame(gaussians.metadata),
    ]
    if _version(options) == 2:
        bare = _held(gaussians, options).replaced(extras={}, metadata={})
        assert spz.FORMAT.losses is not None
        lost += spz.FORMAT.losses(bare, WriteOptions(quality=options.quality, version=2))
    elif options.quality is not None:
        lost.append("values rounded: quaternions to 16 bits")
    return lost


def _error_bounds(gaussians: Gaussians, options: WriteOptions) -> ErrorBounds:
    if _version(options) == 2:
        assert spz.FORMAT.error_bounds is not None
        return spz.FORMAT.error_bounds(gaussians, WriteOptions(version=2))
    return ErrorBounds()


def _sniff(head: bytes, path: Path) -> bool:
    return head[:4] == _MAGIC or (path.suffix.lower() == _TEXT_SUFFIX and head.lstrip()[:1] == b"{")


FORMAT = Format(
    name="glb",
    title="GLB (KHR_gaussian_splatting)",
    suffixes=(".glb",),
    read=read,
    write=write,
    sniff=_sniff,
    losses=_losses,
    error_bounds=_error_bounds,
    versions=_VERSIONS,
    takes_quality=True,
    open_blocks=open_blocks,
    write_blocks=write_blocks,
)
