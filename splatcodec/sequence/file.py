"""The file of a moving scene: a head, groups of frames and an index, each a container (bitstreams/SPEC.md, section 7).

Groups are appended as they come; the index is written last. A file without one, because recording stopped or the file
was cut off, is read by walking from header to header.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO

from ..bitstream.container import (
    HEADER_BYTES,
    MAGIC,
    SEQUENCE_FEATURE,
    Chunk,
    Container,
    Feature,
    read_varint,
    write_container,
    write_varint,
)
from ..errors import FormatError, ParameterError, SplatCodecError, TruncatedError
from ..files import PathLike, open_for_reading
from ..version import __version__

__all__ = [
    "MAX_GROUP_FRAMES",
    "MOTION",
    "VIDEO",
    "GroupChunks",
    "GroupEntry",
    "GroupHead",
    "SequenceFile",
    "SequenceWriter",
    "is_sequence",
    "rate_of",
]

MAX_GROUP_FRAMES = 256
_HEAD = struct.Struct("<III")
_GROUP = struct.Struct("<QIIIB3x")
_TAIL = struct.Struct("<Q4s")
_END = b"SEND"
_MAX_RATE = (1 << 31) - 1
_SEARCH_BYTES = 1 << 20
MOTION, VIDEO = 0, 1
_FEATURE_OF = {MOTION: "temporal-1", VIDEO: "video-1"}


def rate_of(fps: Fraction | float | str) -> Fraction:
    """Frames a second as a fraction: 30, 29.97 (which is 30000/1001), "24000/1001".

    Raises:
        ParameterError: not a number above 0, or too large.

    >>> rate_of(29.97)
    Fraction(30000, 1001)
    """
    try:
        rate = Fraction(fps)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise ParameterError(f"{fps!r} frames a second", field="fps", hint="such as 30 or 30000/1001") from None
    if rate.denominator != 1 and isinstance(fps, float | str):
        near = Fraction(round(rate * 1001 / 1000) * 1000, 1001)  # what television calls 29.97
        rate = near if abs(near - rate) < Fraction(1, 200) else rate.limit_denominator(100_000)
    if not rate > 0 or max(rate.numerator, rate.denominator) > _MAX_RATE:
        raise ParameterError(f"{fps!r} frames a second", field="fps")
    return rate


@dataclass(frozen=True)
class GroupHead:
    """What `GRPH` says of a group.

    Attributes:
        first_frame, num_frames: which frames it has.
        number: of the group, from 0.
        scene: number of the group whose scene it uses.
        coding: MOTION or VIDEO.
    """

    first_frame: int
    num_frames: int
    number: int
    scene: int
    coding: int

    def to_bytes(self) -> bytes:
        """The GRPH chunk."""
        return _GROUP.pack(self.first_frame, self.num_frames, self.number, self.scene, self.coding)

    @classmethod
    def read(cls, container: Container) -> GroupHead:
        """The GRPH chunk of a group's container.

        Raises:
            FormatError: there is none, or it is damaged.
        """
        entry = container.one("GRPH")
        payload = container.read(entry, 1 << 10)
        if len(payload) != _GROUP.size:
            raise FormatError(f"{len(payload)} bytes", file=container.name, chunk="GRPH", offset=entry.offset)
        head = cls(*_GROUP.unpack(payload))
        feature = _FEATURE_OF.get(head.coding)
        ok = 1 <= head.num_frames <= MAX_GROUP_FRAMES and head.scene <= head.number and head.first_frame < 1 << 62
        if not ok or feature is None or not container.has_feature(feature):
            raise FormatError(
                "the head of the group is damaged", file=container.name, chunk="GRPH", offset=entry.offset
            )
        return head


@dataclass(frozen=True)
class GroupChunks:
    """A group to write.

    Attributes:
        chunks: in file order, without GRPH.
        num_frames: its frames.
        coding: MOTION or VIDEO.
        num_gaussians: of its own scene.
        uses: number of the group whose scene it uses; None = its own.
        features: required ones beside those of the coding.
    """

    chunks: list[Chunk]
    num_frames: int
    coding: int = MOTION
    num_gaussians: int = 0
    uses: int | None = None
    features: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the group's container."""
        return self.write(io.BytesIO(), 0, 0)

    def write(self, file: BinaryIO, first_frame: int, number: int) -> int:
        """Write the group's container; returns its bytes, which do not depend on the numbers.

        Args:
            first_frame: number of its first frame. number: of the group.
        """
        scene = number if self.uses is None else self.uses
        head = GroupHead(first_frame, self.num_frames, number, scene, self.coding)
        names = (SEQUENCE_FEATURE, _FEATURE_OF[self.coding], *self.features)
        return write_container(
            file,
            [Chunk("GRPH", head.to_bytes()), *self.chunks],
            num_gaussians=self.num_gaussians,
            features=[Feature(name) for name in names],
        )


@dataclass(frozen=True)
class GroupEntry:
    """Where a group is.

    Attributes:
        number, first_frame, num_frames, scene: as in `GroupHead`.
        offset, length: bytes in the file.
    """

    number: int
    first_frame: int
    num_frames: int
    scene: int
    offset: int
    length: int

    @property
    def frames(self) -> range:
        """Numbers of its frames."""
        return range(self.first_frame, self.first_frame + self.num_frames)

    def __str__(self) -> str:
        return f"group {self.number} (frames {self.first_frame} to {self.first_frame + self.num_frames - 1})"


class _Shared:
    """A file that several containers read; closing one of them leaves it open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def read(self, count: int = -1) -> bytes:
        return self._file.read(count)

    def close(self) -> None:
        pass


def _container(file: BinaryIO, name: str, base: int) -> Container:
    return Container(_Shared(file), name, base=base)  # type: ignore[arg-type]


class SequenceWriter:
    """Writes a sequence group by group; memory does not grow with its length but for the index.

    Args:
        file: binary file to write to, at its start.
        fps: frames a second.
        metadata: facts about all frames (META).
    """

    def __init__(self, file: BinaryIO, fps: Fraction | float | str, metadata: Mapping[str, Any] | None = None) -> None:
        rate = rate_of(fps)
        facts = {"generator": f"splatcodec {__version__}", **(metadata or {})}
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        chunks = [
            Chunk("SEQH", _HEAD.pack(rate.numerator, rate.denominator, 0)),
            Chunk("META", text.encode(), critical=False),
        ]
        self._file = file
        self._groups: list[tuple[int, int, int]] = []
        self.next_frame = 0
        self.size_bytes = write_container(file, chunks, num_gaussians=0, features=[Feature(SEQUENCE_FEATURE)])

    @classmethod
    def resume(cls, file: BinaryIO) -> SequenceWriter:
        """Go on writing a sequence; `file` must be open for reading and writing.

        What stands behind the last whole group (the index, or a group that was cut off) is written over.

        Raises:
            FormatError: it is no sequence, or has gaps.
        """
        existing = SequenceFile(file)
        if existing.gaps:
            raise FormatError(f"the sequence has a gap: {existing.gaps[0]}")
        writer = cls.__new__(cls)
        writer._file = file
        writer._groups = [(g.length, g.num_frames, g.number - g.scene) for g in existing.groups]
        writer.next_frame = existing.num_frames
        writer.size_bytes = (
            existing.groups[-1].offset + existing.groups[-1].length if existing.groups else existing.head
        )
        file.seek(writer.size_bytes)
        file.truncate()
        return writer

    @property
    def num_groups(self) -> int:
        """Groups written so far."""
        return len(self._groups)

    def add(self, group: GroupChunks) -> int:
        """Append a group; returns its bytes."""
        number = self.num_groups
        scene = number if group.uses is None else group.uses
        if not 1 <= group.num_frames <= MAX_GROUP_FRAMES or not 0 <= scene <= number:
            raise ParameterError(f"a group of {group.num_frames} frames that uses the scene of group {scene}")
        payload = io.BytesIO()
        length = group.write(payload, self.next_frame, number)
        self._file.write(payload.getbuffer())
        self._groups.append((length, group.num_frames, number - scene))
        self.next_frame += group.num_frames
        self.size_bytes += length
        return length

    def finish(self) -> int:
        """Write the index; returns the bytes of the whole file."""
        body = bytearray(write_varint(len(self._groups)))
        for numbers in self._groups:
            for number in numbers:
                body += write_varint(number)
        chunk = Chunk("SIDX", bytes(body) + bytes(_TAIL.size))
        length = write_container(io.BytesIO(), [chunk], num_gaussians=0, features=[Feature(SEQUENCE_FEATURE)])
        chunk = Chunk("SIDX", bytes(body) + _TAIL.pack(length, _END))
        self.size_bytes += write_container(self._file, [chunk], num_gaussians=0, features=[Feature(SEQUENCE_FEATURE)])
        return self.size_bytes


@dataclass
class _Found:
    """What reading an index or walking through the file gave."""

    groups: list[GroupEntry] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    complete: bool = True


class SequenceFile:
    """An open sequence: its head and where its groups are.

    Args:
        file: binary file, kept open by the caller.
        name: for messages.

    Attributes:
        rate: frames a second.
        container: the head's container.
        groups: whole groups in order.
        complete: whether the file has its index; otherwise it was cut off, or is still being written.
        gaps: a line for each stretch of bytes that is no group.
        head: bytes of the head container.

    Raises:
        FormatError: no sequence, or its head is damaged.
    """

    def __init__(self, file: BinaryIO, name: str = "<bytes>") -> None:
        self.name = name
        self._file = file
        self.container = _container(file, name, 0)
        entry = self.container.one("SEQH")
        payload = self.container.read(entry, 1 << 10)
        place: dict[str, Any] = {"file": name, "chunk": "SEQH", "offset": entry.offset}
        if len(payload) != _HEAD.size:
            raise FormatError(f"{len(payload)} bytes", **place)
        numerator, denominator, _ = _HEAD.unpack(payload)
        if not 1 <= numerator <= _MAX_RATE or not 1 <= denominator <= _MAX_RATE:
            raise FormatError(f"{numerator}/{denominator} frames a second", **place)
        self.rate = Fraction(numerator, denominator)
        self.head = self.container.length
        self.size_bytes = file.seek(0, os.SEEK_END)
        found = self._from_index() or self._from_headers()
        self.groups, self.gaps, self.complete = found.groups, found.gaps, found.complete

    @classmethod
    def open(cls, path: PathLike) -> SequenceFile:
        """Open a file on disk.

        Raises:
            ParameterError: it cannot be opened.
            FormatError: as above.
        """
        file = open_for_reading(path)
        try:
            return cls(file, os.fspath(path))
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def num_frames(self) -> int:
        """Frames up to the end of the last group, gaps included."""
        return self.groups[-1].frames.stop if self.groups else 0

    def group_of(self, frame: int) -> GroupEntry | None:
        """The group that has a frame; None in a gap."""
        low, high = 0, len(self.groups)
        while low < high:
            middle = (low + high) // 2
            if self.groups[middle].frames.stop <= frame:
                low = middle + 1
            else:
                high = middle
        found = self.groups[low] if low < len(self.groups) else None
        return found if found and frame in found.frames else None

    def numbered(self, number: int) -> GroupEntry:
        """The group of a number.

        Raises:
            FormatError: it is in a gap.
        """
        for guess in (number, *range(len(self.groups))):  # without gaps it is where its number says
            if guess < len(self.groups) and self.groups[guess].number == number:
                return self.groups[guess]
        raise FormatError(f"group {number} is missing", file=self.name)

    def read_group(self, entry: GroupEntry) -> tuple[Container, GroupHead]:
        """A group's container and head, checked.

        Raises:
            FormatError: damaged.
        """
        container = _container(self._file, self.name, entry.offset)
        head = GroupHead.read(container)
        same = (entry.number, entry.first_frame, entry.num_frames, entry.scene) == (
            head.number, head.first_frame, head.num_frames, head.scene,
        )  # fmt: skip
        if not same or container.length != entry.length:
            raise FormatError("the group is not the one that the index names", file=self.name, offset=entry.offset)
        return container, head

    def read_bytes(self, offset: int, length: int) -> bytes:
        """Bytes of the file as they are.

        Raises:
            TruncatedError: the file ends before.
        """
        self._file.seek(offset)
        content = self._file.read(length)
        if len(content) < length:
            raise TruncatedError(f"{length} bytes wanted, {len(content)} there", file=self.name, offset=offset)
        return content

    def _from_index(self) -> _Found | None:
        """What the index says; None where there is no whole one."""
        end = self.size_bytes
        if end < self.head + HEADER_BYTES + _TAIL.size:
            return None
        self._file.seek(end - _TAIL.size)
        length, mark = _TAIL.unpack(self._file.read(_TAIL.size))
        if mark != _END or not HEADER_BYTES < length <= end - self.head:
            return None
        try:
            container = _container(self._file, self.name, end - length)
            payload = container.read(container.one("SIDX"))
            count, at = read_varint(payload, 0)
            if count > len(payload) // 3:
                return None
            found, offset, first = _Found(), self.head, 0
            for number in range(count):
                size, at = read_varint(payload, at)
                frames, at = read_varint(payload, at)
                back, at = read_varint(payload, at)
                if not 1 <= frames <= MAX_GROUP_FRAMES or back > number or size < HEADER_BYTES:
                    return None
                found.groups.append(GroupEntry(number, first, frames, number - back, offset, size))
                offset, first = offset + size, first + frames
        except SplatCodecError:
            return None
        return found if offset == end - length and at + _TAIL.size == len(payload) else None

    def _from_headers(self) -> _Found:
        """What walking from header to header finds."""
        found = _Found(complete=False)
        at = self.head
        gap_from: int | None = None
        while at < self.size_bytes:
            try:
                container = _container(self._file, self.name, at)
                if container.of_type("SIDX"):
                    break
                head = GroupHead.read(container)
                if found.groups and (head.number <= found.groups[-1].number or head.first_frame < self._end_of(found)):
                    raise FormatError("groups are out of order", file=self.name, offset=at)
            except SplatCodecError:  # cut off, or damaged: whatever follows may still be whole
                gap_from = at if gap_from is None else gap_from
                at = self._next_magic(at + 1)
                continue
            if gap_from is not None:
                found.gaps.append(f"bytes {gap_from} to {at - 1} are damaged")
                gap_from = None
            found.groups.append(
                GroupEntry(head.number, head.first_frame, head.num_frames, head.scene, at, container.length)
            )
            at += container.length
        return found

    @staticmethod
    def _end_of(found: _Found) -> int:
        return found.groups[-1].frames.stop

    def _next_magic(self, at: int) -> int:
        """Where the next header may begin; the end of the file if nowhere."""
        while at < self.size_bytes:
            self._file.seek(at)
            block = self._file.read(_SEARCH_BYTES)
            if len(block) < len(MAGIC):
                break
            found = block.find(MAGIC)
            if found >= 0:
                return at + found
            at += len(block) - len(MAGIC) + 1
        return self.size_bytes


def is_sequence(container: Container) -> bool:
    """Whether a container is the head of a sequence."""
    return bool(container.of_type("SEQH"))
