"""The `.splc` container: header, table of contents and checksummed chunks (bitstreams/SPEC.md, section 1).

Needs only the standard library and numpy; knows nothing of what the chunks mean.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import (
    ChecksumError,
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecError,
    TruncatedError,
    UnsupportedError,
)
from ..files import open_for_reading

__all__ = [
    "KNOWN_FEATURES",
    "MAGIC",
    "SEQUENCE_FEATURE",
    "Chunk",
    "ChunkEntry",
    "Container",
    "Feature",
    "read_varint",
    "write_container",
    "write_varint",
]

MAGIC = b"SPLC"
MAJOR, MINOR = 0, 3
HEADER_BYTES = 40
MAX_TOC_BYTES = 1 << 26
_MIN_ENTRY_BYTES = 13
_MAX_FEATURES = 256
SEQUENCE_FEATURE = "sequence-1"
KNOWN_FEATURES = frozenset(
    {"lossy-1", "lossless-1", "extras-1", "mixing-1", "native-1", "stored-1", SEQUENCE_FEATURE, "temporal-1", "video-1"}
    | {"vector-1", "neural-1"}
)
KNOWN_CHUNKS = frozenset(
    {"META", "PARM", "TBOX", "TILE", "SHC1", "SHC2", "SHC3", "PLYH", "NATV", "FILE", "COLD", "COLS"}
    | {"SEQH", "GRPH", "SIDX", "MOTN", "TRAJ", "VGRP", "VECQ", "NCOL"}
)
_NUMBERED = frozenset({"TILE", "SHC1", "SHC2", "SHC3", "COLS", "TRAJ"})


def write_varint(value: int) -> bytes:
    """Unsigned LEB128.

    >>> write_varint(300).hex()
    'ac02'
    """
    if value < 0:
        raise ParameterError(f"varint of a negative number {value}")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(buffer: bytes | memoryview, position: int) -> tuple[int, int]:
    """(value, next position) of the varint at `position`.

    Raises:
        TruncatedError: the buffer ends inside it.
        FormatError: longer than 64 bits, or not in its shortest form.
    """
    value = 0
    for k in range(10):
        if position + k >= len(buffer):
            raise TruncatedError("a varint is cut off", offset=position)
        byte = buffer[position + k]
        value |= (byte & 0x7F) << (7 * k)
        if not byte & 0x80:
            if (k and byte == 0) or value >= 1 << 64:
                raise FormatError("a varint is not in its shortest form", offset=position)
            return value, position + k + 1
    raise FormatError("a varint is longer than 10 bytes", offset=position)


@dataclass(frozen=True)
class Feature:
    """A coding tool or property that the file uses, by name; `required` ones must be known to read it."""

    name: str
    required: bool = True


@dataclass(frozen=True)
class Chunk:
    """A chunk to write. `count` is the number of Gaussians (or rows) it holds."""

    type: str
    payload: bytes
    critical: bool = True
    level: int = 0
    tile: int = 0
    count: int = 0


@dataclass(frozen=True)
class ChunkEntry:
    """One line of the table of contents; `offset` counts from the start of the file."""

    type: str
    critical: bool
    level: int
    tile: int
    count: int
    offset: int
    length: int
    crc32: int

    @property
    def label(self) -> str:
        """How messages name the chunk, such as `TILE[0/3]` (level, tile)."""
        return f"{self.type}[{self.level}/{self.tile}]" if self.type in _NUMBERED else self.type


def write_container(file: BinaryIO, chunks: Sequence[Chunk], *, num_gaussians: int, features: Iterable[Feature]) -> int:
    """Write a whole file and return its length in bytes.

    Args:
        file: binary file, at its start.
        chunks: in file order.
        num_gaussians: Gaussians of the decoded scene.
        features: what the file needs.
    """
    if not 0 <= num_gaussians < 1 << 64:
        raise ParameterError(f"{num_gaussians} Gaussians do not fit the header")
    listed = list(features)
    toc = bytearray(write_varint(len(listed)))
    for feature in listed:
        name = feature.name.encode("ascii")
        toc += bytes([int(feature.required)]) + write_varint(len(name)) + name
    toc += write_varint(len(chunks))
    for chunk in chunks:
        toc += chunk.type.encode("ascii") + bytes([int(chunk.critical)])
        for number in (chunk.level, chunk.tile, chunk.count, len(chunk.payload)):
            toc += write_varint(number)
        toc += struct.pack("<I", zlib.crc32(chunk.payload))
    length = HEADER_BYTES + len(toc) + sum(len(chunk.payload) for chunk in chunks)
    head = MAGIC + struct.pack("<BBHQQQI", MAJOR, MINOR, 0, length, len(toc), num_gaussians, zlib.crc32(toc))
    file.write(head + struct.pack("<I", zlib.crc32(head)) + toc)
    for chunk in chunks:
        file.write(chunk.payload)
    return length


class Container:
    """An open `.splc` file: header and table of contents are read and checked, chunks are read on demand.

    Attributes:
        name: file name for messages.
        version: (major, minor).
        num_gaussians: Gaussians of the decoded scene.
        features: tuple of Feature.
        chunks: tuple of ChunkEntry in file order.
        length: bytes of the whole file, or of the container where it is one of several (SPEC.md, section 7).
        base: where the container begins in the file.
    """

    def __init__(self, file: BinaryIO, name: str = "<bytes>", *, base: int = 0) -> None:
        self.name = name
        self.base = base
        self._file = file
        try:
            self._read_head()
        except SplatCodecError as error:
            file.close()
            raise error.locate(file=name) from None
        except BaseException:
            file.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Container:
        """Open a file on disk.

        Raises:
            ParameterError: the path cannot be opened.
            SplatCodecError: header or table of contents are damaged, too new or cut off.
        """
        return cls(open_for_reading(path), str(path))

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _exactly(self, offset: int, count: int, what: str) -> bytes:
        try:
            self._file.seek(offset)
            data = self._file.read(count)
        except OSError as error:
            raise SplatCodecError(f"cannot read: {error.strerror}", offset=offset) from None
        if len(data) < count:
            raise TruncatedError(f"the file ends inside {what}", offset=offset + len(data))
        return data

    def _read_head(self) -> None:
        base = self.base
        actual = self._file.seek(0, os.SEEK_END) - base
        if actual <= 0:
            raise TruncatedError("the file is empty" if base == 0 else "the file ends here", offset=base)
        head = self._exactly(base, min(HEADER_BYTES, actual), "the header")
        if head[:4] != MAGIC[: len(head[:4])]:
            raise FormatError("not a .splc file (bad magic)", offset=base)
        if len(head) < HEADER_BYTES:
            raise TruncatedError("the file ends inside the header", offset=base + actual)
        major, minor, _, length, toc_length, num_gaussians, toc_crc = struct.unpack("<BBHQQQI", head[4:36])
        if struct.unpack("<I", head[36:])[0] != zlib.crc32(head[:36]):
            raise ChecksumError("the header's checksum does not match", offset=base + 36)
        if (major, minor) != (MAJOR, MINOR):
            # Minor versions become readable once the format is no longer a draft (major version 1).
            raise UnsupportedError(f"format version {major}.{minor}, this build reads {MAJOR}.{MINOR}", offset=base + 4)
        if actual < length:
            raise TruncatedError(f"the file has {actual} bytes, its header says {length}", offset=base + actual)
        if toc_length > min(MAX_TOC_BYTES, length - HEADER_BYTES):
            raise FormatError(f"table of contents of {toc_length} bytes", offset=base + 16)
        toc = self._exactly(base + HEADER_BYTES, toc_length, "the table of contents")
        if zlib.crc32(toc) != toc_crc:
            raise ChecksumError("the checksum of the table of contents does not match", offset=base + 32)
        self.version = (major, minor)
        self.num_gaussians = num_gaussians
        self.length = length
        try:
            self._read_toc(toc)
        except SplatCodecError as error:
            if error.offset is not None and error.chunk is None:
                error.offset += base + HEADER_BYTES
            raise error.locate(chunk="table of contents", offset=base + HEADER_BYTES) from None
        if actual > length and not self.has_feature(SEQUENCE_FEATURE):
            raise FormatError(f"{actual - length} bytes after the end of the file", offset=base + length)

    def _read_toc(self, toc: bytes) -> None:
        num_features, at = read_varint(toc, 0)
        if num_features > _MAX_FEATURES:
            raise FormatError(f"{num_features} features", offset=0)
        features = []
        for _ in range(num_features):
            if at >= len(toc):
                raise TruncatedError("the list of features is cut off", offset=at)
            required = bool(toc[at] & 1)
            size, start = read_varint(toc, at + 1)
            name = toc[start : start + size]
            if not 1 <= size <= 64 or len(name) < size or not name.isascii() or not name.decode().isprintable():
                raise FormatError("a feature name is damaged", offset=at)
            features.append(Feature(name.decode(), required))
            at = start + size
        unknown = [f.name for f in features if f.required and f.name not in KNOWN_FEATURES]
        if unknown:
            raise UnsupportedError(
                f"the file needs {', '.join(unknown)}, which this version does not know", hint="update splatcodec"
            )
        count, at = read_varint(toc, at)
        if count > (len(toc) - at) // _MIN_ENTRY_BYTES:
            raise FormatError(f"{count} chunks in {len(toc) - at} bytes of table", offset=at)
        offset = self.base + HEADER_BYTES + len(toc)
        end = self.base + self.length
        chunks = []
        for _ in range(count):
            name_bytes = toc[at : at + 4]
            if len(toc) < at + 5 or not name_bytes.isalnum() or not name_bytes.isascii():
                raise FormatError("an entry is damaged", offset=at)
            critical = bool(toc[at + 4] & 1)
            at += 5
            numbers = []
            for _ in range(4):
                number, at = read_varint(toc, at)
                numbers.append(number)
            if len(toc) < at + 4:
                raise TruncatedError("an entry is cut off", offset=at)
            level, tile, rows, size = numbers
            (crc,) = struct.unpack_from("<I", toc, at)
            at += 4
            kind = name_bytes.decode()
            if critical and kind not in KNOWN_CHUNKS:
                raise UnsupportedError(f"unknown critical chunk {kind!r}", chunk=kind, offset=offset)
            if offset + size > end:
                raise FormatError(f"chunk {kind} reaches beyond the end of the file", offset=at)
            chunks.append(ChunkEntry(kind, critical, level, tile, rows, offset, size, crc))
            offset += size
        if at != len(toc):
            raise FormatError(f"{len(toc) - at} bytes left in the table of contents", offset=at)
        if offset != end:
            raise FormatError(f"chunks end at byte {offset}, the file at {end}", offset=at)
        self.features = tuple(features)
        self.chunks = tuple(chunks)

    def has_feature(self, name: str) -> bool:
        """Whether the file lists the feature."""
        return any(feature.name == name for feature in self.features)

    def of_type(self, kind: str) -> list[ChunkEntry]:
        """Entries of one chunk type in file order."""
        return [entry for entry in self.chunks if entry.type == kind]

    def one(self, kind: str) -> ChunkEntry:
        """The only entry of a type.

        Raises:
            FormatError: none or several.
        """
        found = self.of_type(kind)
        if len(found) != 1:
            raise FormatError(f"{len(found)} {kind} chunks, expected one", file=self.name, chunk=kind)
        return found[0]

    def read(self, entry: ChunkEntry, max_bytes: int | None = None) -> bytes:
        """The bytes of a chunk, checked.

        Raises:
            ChecksumError: the bytes are damaged.
            LimitExceededError: longer than `max_bytes`.
        """
        if max_bytes is not None and entry.length > max_bytes:
            raise LimitExceededError(
                f"{entry.length} bytes, at most {max_bytes} allowed", file=self.name, chunk=entry.label
            )
        try:
            payload = self._exactly(entry.offset, entry.length, f"chunk {entry.label}")
        except SplatCodecError as error:
            raise error.locate(file=self.name, chunk=entry.label) from None
        if zlib.crc32(payload) != entry.crc32:
            raise ChecksumError("checksum does not match", file=self.name, chunk=entry.label, offset=entry.offset)
        return payload

    def check(self, entry: ChunkEntry, block_bytes: int = 1 << 20) -> None:
        """Check the checksum of a chunk without holding all of it.

        Raises:
            ChecksumError: the bytes are damaged.
        """
        crc, at = 0, entry.offset
        while at < entry.offset + entry.length:
            block = self._exactly(at, min(block_bytes, entry.offset + entry.length - at), f"chunk {entry.label}")
            crc = zlib.crc32(block, crc)
            at += len(block)
        if crc != entry.crc32:
            raise ChecksumError("checksum does not match", file=self.name, chunk=entry.label, offset=entry.offset)
