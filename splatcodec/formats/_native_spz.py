"""SPZ files as columns: positions as integers, rotations component by component, bytes as they are."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..gaussians import Gaussians, num_sh_coefficients
from ..limits import DEFAULT_LIMITS, Limits
from . import spz
from ._deflate import write_gzip, zstd_frames
from ._native import NativeFormat, NativeScene
from ._native_columns import AXES, check_columns, from_halves, sorted_in_space, to_halves

__all__ = ["NATIVE"]

_PLAIN, _GZIP, _ZSTD = 0, 1, 2  # containers, the first byte of a head
_MAX_HEAD_BYTES = 1 << 21


def _layout(header: Any) -> list[tuple[str, npt.DTypeLike]]:
    rotation: list[tuple[str, npt.DTypeLike]] = [("rot_index", "u1")] if header.version > 2 else []
    rotation += [(f"rot_{k}", "i2" if header.version > 2 else "u1") for k in range(3)]
    return [
        *((axis, "f4" if header.version == 1 else "i4") for axis in AXES),
        ("opacity", "u1"),
        *((f"f_dc_{k}", "u1") for k in range(3)),
        *((f"scale_{k}", "u1") for k in range(3)),
        *rotation,
        *((f"f_rest_{k}", "u1") for k in range(3 * (num_sh_coefficients(header.sh_degree) - 1))),
    ]


def _unpack(path: Path) -> tuple[NativeScene, bytes]:
    data = path.read_bytes()
    if data[:8] == spz._MAGIC_4:
        header = spz._parse_header(data, DEFAULT_LIMITS)
        head, at = data[: header.toc_offset], header.toc_offset
        places = [spz._TOC_ENTRY.unpack_from(data, at + 16 * k) for k in range(header.num_streams)]
        at += 16 * header.num_streams
        parts = []
        for packed, raw in places:
            parts.append(spz._unzstd(data[at : at + packed], raw).tobytes())
            at += packed
        scene = _taken_apart(bytes([_ZSTD]) + head, header, b"".join(parts))
    else:
        container = _GZIP if data[:2] == spz._GZIP_MAGIC else _PLAIN
        data = zlib.decompress(data, 31) if container == _GZIP else data
        header = spz._parse_header(data, DEFAULT_LIMITS)
        end = spz._HEADER.size + sum(header.stream_bytes().values())
        head = bytes([container]) + data[: spz._HEADER.size] + data[end:]
        scene = _taken_apart(head, header, data[spz._HEADER.size : end])
    return scene, (scene.head[1:] + b"".join(parts) if scene.head[0] == _ZSTD else data)


def _taken_apart(head: bytes, header: Any, arrays: bytes) -> NativeScene:
    streams = {name: np.empty((header.count, 0), np.uint8) for name in spz._STREAM_NAMES}
    at = 0
    for name, size_bytes in header.stream_bytes().items():
        streams[name] = np.frombuffer(arrays, np.uint8, size_bytes, at).reshape(header.count, -1)
        at += size_bytes
    columns: list[npt.NDArray[Any]] = []
    if header.version == 1:
        columns += list(from_halves(streams["positions"].copy().view("<f2").reshape(header.count, -1)).T)
    else:
        words = np.zeros((header.count, 3, 4), np.uint8)
        words[:, :, 1:] = streams["positions"].reshape(header.count, 3, 3)
        columns += list((words.view("<i4")[:, :, 0] >> 8).T)
    columns += list(streams["alphas"].reshape(header.count, 1).T)
    columns += list(streams["colors"].reshape(header.count, 3).T)
    columns += list(streams["scales"].reshape(header.count, 3).T)
    if header.version > 2:
        packed = streams["rotations"].copy().view("<u4").reshape(-1)
        columns.append((packed >> np.uint32(30)).astype(np.uint8))
        for shift in (20, 10, 0):
            field = (packed >> np.uint32(shift) & np.uint32(1023)).astype(np.int16)
            columns.append((field & 511) ^ -(field >> 9))
    else:
        columns += list(streams["rotations"].reshape(header.count, 3).T)
    width = 3 * (num_sh_coefficients(header.sh_degree) - 1)
    sh = streams["sh"].reshape(header.count, -1, 3) if header.count else np.empty((0, width // 3, 3), np.uint8)
    columns += list(sh.transpose(2, 1, 0).reshape(width, header.count))
    layout = _layout(header)
    return NativeScene(
        head, {name: np.ascontiguousarray(values).astype(dtype) for (name, dtype), values in zip(layout, columns)}
    )


def _parts(scene: NativeScene) -> tuple[int, Any, bytes, bytes, list[bytes]]:
    """Container, header, its bytes, the extensions and the streams of a scene."""
    if len(scene.head) > _MAX_HEAD_BYTES or len(scene.head) < 1 + spz._HEADER.size or scene.head[0] > _ZSTD:
        raise FormatError("impossible head of an SPZ file", chunk="NATV")
    container, content = scene.head[0], scene.head[1:]
    header = spz._parse_header(content, DEFAULT_LIMITS)
    if (header.version == 4) != (container == _ZSTD) or header.count != len(scene):
        raise FormatError("the head is not that of the columns", chunk="NATV")
    layout = _layout(header)
    check_columns(scene.columns, layout)
    if len(content) > spz._HEADER.size and container != _ZSTD and not header.flags & spz._FLAG_EXTENSIONS:
        raise FormatError("there are bytes after the last array", chunk="NATV")
    size = spz._HEADER_4.size if container == _ZSTD else spz._HEADER.size
    if container == _ZSTD and header.toc_offset != len(content):
        raise FormatError("the head is not that of the columns", chunk="NATV")
    values = [scene.columns[name] for name, _ in layout]
    count = header.count
    if header.version == 1:
        positions = np.stack([to_halves(v) for v in values[:3]], axis=1).view(np.uint8)
    else:
        fixed = np.stack(values[:3], axis=1).astype("<i4")
        positions = fixed.view(np.uint8).reshape(count, 3, 4)[:, :, :3]
    streams = [positions, values[3], np.stack(values[4:7], 1), np.stack(values[7:10], 1)]
    at = 13
    if header.version > 2:
        packed = values[10].astype("<u4") << np.uint32(30)
        for column, shift in zip(values[11:14], (20, 10, 0)):
            sign = column < 0
            field = ((column ^ -sign.astype(np.int16)) & 511).astype(np.uint32) | sign.astype(np.uint32) << np.uint32(9)
            packed |= field << np.uint32(shift)
        streams.append(packed)
        at = 14
    else:
        streams.append(np.stack(values[10:13], 1))
    if len(values) > at:
        sh = np.stack(values[at:]).reshape(3, (len(values) - at) // 3, count)
        streams.append(sh.transpose(2, 1, 0))
    raw = [stream.tobytes() for stream in streams if stream.size]
    return container, header, content[:size], content[size:], raw


def _content(scene: NativeScene) -> bytes:
    container, _, head, extensions, streams = _parts(scene)
    parts = [head, extensions, *streams] if container == _ZSTD else [head, *streams, extensions]
    return b"".join(parts)


def _write(scene: NativeScene, file: BinaryIO, threads: int | None) -> None:
    container, _, head, extensions, streams = _parts(scene)
    if container == _PLAIN:
        file.write(b"".join([head, *streams, extensions]))
    elif container == _GZIP:
        write_gzip(file, [head, *streams, extensions] if extensions else [head, *streams], threads)
    else:
        _write_streams(file, head, extensions, streams, zstd_frames(streams, threads))


def _write_streams(file: BinaryIO, head: bytes, extensions: bytes, streams: list[bytes], frames: list[bytes]) -> None:
    file.write(head + extensions)
    file.write(b"".join(spz._TOC_ENTRY.pack(len(frame), len(raw)) for frame, raw in zip(frames, streams)))
    for frame in frames:
        file.write(frame)


def _gaussians(scene: NativeScene, limits: Limits) -> Gaussians:
    container, _, head, extensions, streams = _parts(scene)
    file = io.BytesIO()
    if container == _ZSTD:
        import zstandard

        quick = zstandard.ZstdCompressor(level=1)
        _write_streams(file, head, extensions, streams, [quick.compress(stream) for stream in streams])
    else:
        file.write(b"".join([head, *streams, extensions]))
    file.seek(0)
    return spz.read_stream(file, limits)


NATIVE = NativeFormat(2, "spz", False, _unpack, _content, _write, _gaussians, sorted_in_space)
