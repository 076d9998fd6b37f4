"""Lossless recompression of other formats' files: their own numbers as columns (SPEC.md, section 1.6).

file -> head -> NATV
     -> columns of its integers and floats -> stages.lossless -> COLD, COLS
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bitstream.container import Chunk, Container, read_varint, write_varint
from ..errors import FormatError, SplatCodecError, SplatCodecWarning, TruncatedError, UnsupportedError
from ..files import PathLike, atomic_write
from ..formats import detect
from ..formats import read as read_format
from ..formats._native import NativeFormat, NativeScene, by_code, by_name
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from .lossless import HashingFile, column_chunks, read_columns

__all__ = ["FEATURE", "NativeSource", "decode_gaussians", "format_name", "take_apart", "write_file"]

FEATURE = "native-1"
# What a zlib stream can expand to at most, and room for short ones.
_MAX_EXPANSION, _SLACK_BYTES = 1100, 64

Progress = Callable[[str, float], None]


class NativeSource:
    """A file to recompress.

    Attributes:
        native: how its format is taken apart. scene: the parts. notes: what was done, for people.
        size_bytes: of the file, or of all files of a folder.
        content_sha256: of what is inside the file, uncompressed; None if the order was changed.
    """

    def __init__(self, native: NativeFormat, scene: NativeScene, content: bytes, size_bytes: int) -> None:
        self.native = native
        self.scene = scene
        self.size_bytes = size_bytes
        self.notes: list[str] = []
        self.content_sha256: str | None = hashlib.sha256(content).hexdigest()

    def reorder(self) -> None:
        """Sort the Gaussians so that they take fewer bytes."""
        self.scene = self.native.reordered(self.scene)
        self.content_sha256 = None
        self.notes.append("Gaussians sorted: every value comes back, in another order")

    def chunks(self, threads: int | None, progress: Progress | None) -> list[Chunk]:
        """The NATV, COLD and COLS chunks."""
        if progress:
            progress("lossless", 0.0)
        head = self.scene.head
        start = bytes([self.native.code]) + write_varint(len(head))
        boxes = None if self.native.boxes is None else self.native.boxes(head, len(self.scene))
        columns = column_chunks(self.scene.columns, threads, mixing=True, boxes=boxes)
        if self.scene.palette:
            columns += column_chunks(self.scene.palette, threads, mixing=True, level=1)
        chunks = [Chunk("NATV", start + zlib.compress(head, 9)), *columns]
        if progress:
            progress("lossless", 1.0)
        return chunks


def _size_of(path: PathLike) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())


def take_apart(path: PathLike, limits: Limits, notes: list[str]) -> NativeSource | None:
    """The parts of a file, if its format is known and they give every byte of its content back.

    Args:
        notes: gets a line if the format is known but not this file.

    Raises:
        SplatCodecError: the file is damaged.
    """
    native = by_name(detect(path).name)
    if native is None:
        return None
    with warnings.catch_warnings():  # nothing is dropped here, whatever the reader has to leave out
        warnings.simplefilter("ignore", SplatCodecWarning)
        read_format(path, format=native.name, limits=limits)
    try:
        scene, content = native.unpack(Path(path))
        if native.content(scene) == content:
            return NativeSource(native, scene, content, _size_of(path))
        reason = "it has values that its format's usual form does not"
    except SplatCodecError as error:
        reason = error.message
    notes.append(f"not recompressed in the integers of the format: {reason}")
    return None


def _native_of(container: Container) -> tuple[NativeFormat, bytes]:
    """The format, and the unpacked head."""
    entry = container.one("NATV")
    try:
        payload = container.read(entry)
        if not payload:
            raise TruncatedError("the chunk is empty", offset=0)
        native = by_code(payload[0])
        if native is None:
            raise UnsupportedError(f"recompressed format number {payload[0]} is not known", offset=0)
        length, at = read_varint(payload, 1)
        if length > _MAX_EXPANSION * len(payload) + _SLACK_BYTES:
            raise FormatError(f"a head of {length} bytes in {len(payload)}", offset=1)
        inflate = zlib.decompressobj()
        try:
            head = inflate.decompress(payload[at:], length + 1)
        except zlib.error as error:
            raise FormatError(f"the head is damaged: {error}", offset=at) from None
        if len(head) < length:
            raise TruncatedError("the head is cut off", offset=at)
        if len(head) > length or not inflate.eof or inflate.unused_data:
            raise FormatError("the head is longer than it says", offset=at)
        return native, head
    except SplatCodecError as error:
        if error.chunk is None:
            error.offset = entry.offset + (error.offset or 0)
        raise error.locate(file=container.name, chunk="NATV") from None


def format_name(container: Container) -> str:
    """Name of the format that a file was recompressed from."""
    return _native_of(container)[0].name


def _decode(container: Container, limits: Limits, threads: int | None) -> tuple[NativeFormat, NativeScene]:
    native, head = _native_of(container)
    limits.check_gaussians(container.num_gaussians, file=container.name)
    try:
        boxes = None if native.boxes is None else native.boxes(head, container.num_gaussians)
    except SplatCodecError as error:
        error.offset = None  # of a file that is not there
        raise error.locate(file=container.name, chunk="NATV") from None
    columns = read_columns(container, limits, threads, boxes)
    has_palette = any(entry.level == 1 for entry in container.of_type("COLD"))
    palette = read_columns(container, limits, threads, level=1) if has_palette else {}
    return native, NativeScene(head, columns, palette)


def decode_gaussians(
    container: Container,
    metadata: Mapping[str, Any],
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Gaussians:
    """The Gaussians that the recompressed file holds, as its format's reader gives them.

    Raises:
        SplatCodecError: damaged, or the columns are not those of the format.
    """
    native, scene = _decode(container, limits, threads)
    try:
        gaussians = native.gaussians(scene, limits)
    except SplatCodecError as error:
        error.offset = None  # of a file that is not there
        raise error.locate(file=container.name, chunk="NATV") from None
    if progress:
        progress("decode", 1.0)
    return replace(gaussians, metadata={**gaussians.metadata, **metadata})


def write_file(
    container: Container,
    metadata: Mapping[str, Any],
    path: PathLike,
    overwrite: bool,
    limits: Limits,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write the file that was recompressed and say whether it is the same.

    Returns:
        `identical`: whether it is the source byte for byte; `identical_content`: whether what is in it uncompressed is;
        each True, False, or None where the source's checksum is not in the file; `differs`: what does; `sha256`.
    """
    native, scene = _decode(container, limits, threads)
    try:
        content = hashlib.sha256(native.content(scene)).hexdigest()
        with atomic_write(path, overwrite) as file:
            hashed = HashingFile(file)
            native.write(scene, hashed, threads)  # type: ignore[arg-type]
    except SplatCodecError as error:
        raise error.locate(file=container.name) from None
    if progress:
        progress("decode", 1.0)
    source = metadata.get("source")
    known = source if isinstance(source, dict) else {}
    found = {"sha256": hashed.digest.hexdigest(), "content_sha256": content}
    same = {name: None if known.get(name) is None else known[name] == value for name, value in found.items()}
    differs = []
    if same["content_sha256"] is False:
        differs.append("the content of the file")
    elif same["sha256"] is False:
        differs.append("how the file is compressed: every value in it is the same")
    elif same["content_sha256"] is None:
        differs.append("the source's checksum is not known (reordered)")
    return {
        "identical": same["sha256"],
        "identical_content": same["content_sha256"],
        "differs": differs,
        "sha256": found["sha256"],
    }
