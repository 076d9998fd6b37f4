"""The container: round trips, every kind of damage, features and versions."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec.bitstream.container import (
    MINOR,
    Chunk,
    Container,
    Feature,
    read_varint,
    write_container,
    write_varint,
)
from splatcodec.errors import ChecksumError, FormatError, SplatCodecError, TruncatedError, UnsupportedError


def make(chunks: list[Chunk], features: tuple[Feature, ...] = (Feature("lossy-1"),), count: int = 0) -> bytes:
    file = io.BytesIO()
    assert write_container(file, chunks, num_gaussians=count, features=features) == len(file.getvalue())
    return file.getvalue()


def reseal(data: bytes) -> bytes:
    """Repair header and table checksums after a change to the table."""
    (length,) = struct.unpack_from("<Q", data, 16)
    toc = data[40 : 40 + length]
    head = data[:32] + struct.pack("<I", zlib.crc32(toc))
    return head + struct.pack("<I", zlib.crc32(head)) + data[40:]


chunk_lists = st.lists(
    st.builds(
        Chunk,
        st.sampled_from(["META", "PARM", "TILE", "COLD"]),
        st.binary(max_size=40),
        st.booleans(),
        st.integers(0, 300),
        st.integers(0, 1 << 20),
        st.integers(0, 65536),
    ),
    max_size=12,
)


@given(chunk_lists, st.integers(0, 1 << 40))
def test_round_trip(chunks: list[Chunk], count: int) -> None:
    container = Container(io.BytesIO(make(chunks, count=count)))
    assert container.num_gaussians == count
    assert len(container.chunks) == len(chunks)
    for entry, chunk in zip(container.chunks, chunks):
        assert (entry.type, entry.critical, entry.level, entry.tile, entry.count) == (
            chunk.type,
            chunk.critical,
            chunk.level,
            chunk.tile,
            chunk.count,
        )
        assert container.read(entry) == chunk.payload
        container.check(entry, block_bytes=7)


@given(st.integers(0, (1 << 64) - 1))
def test_varint_round_trip(value: int) -> None:
    text = write_varint(value)
    assert read_varint(text, 0) == (value, len(text))


@pytest.mark.parametrize("text", [b"", b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x7f", b"\xff" * 11])
def test_bad_varint(text: bytes) -> None:
    with pytest.raises(FormatError):
        read_varint(text, 0)


SAMPLE = make(
    [Chunk("META", b"{}", critical=False), Chunk("PARM", b"abc"), Chunk("TILE", b"x" * 40, tile=3, count=5)], count=5
)


def read_all(data: bytes) -> None:
    container = Container(io.BytesIO(data), "sample")
    for entry in container.chunks:
        container.read(entry)


def test_every_prefix_and_every_flip_is_an_error() -> None:
    read_all(SAMPLE)
    for length in range(len(SAMPLE)):
        with pytest.raises((TruncatedError, FormatError)) as caught:
            read_all(SAMPLE[:length])
        assert caught.value.file == "sample"
        assert caught.value.offset is not None
    for at in range(len(SAMPLE)):
        for bit in range(8):
            damaged = bytearray(SAMPLE)
            damaged[at] ^= 1 << bit
            with pytest.raises(SplatCodecError):
                read_all(bytes(damaged))


def test_bytes_after_the_end_are_an_error() -> None:
    with pytest.raises(FormatError, match="after the end"):
        read_all(SAMPLE + b"\0")


@settings(max_examples=300)
@given(st.binary(max_size=120))
def test_any_table_is_read_or_refused(toc: bytes) -> None:
    head = b"SPLC" + struct.pack("<BBHQQQI", 0, MINOR, 0, 40 + len(toc), len(toc), 0, zlib.crc32(toc))
    data = head + struct.pack("<I", zlib.crc32(head)) + toc
    with contextlib.suppress(SplatCodecError):
        Container(io.BytesIO(data))


def test_unknown_required_feature_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="holograms-9"):
        read_all(make([], (Feature("holograms-9"),)))
    read_all(make([], (Feature("holograms-9", required=False),)))


def test_unknown_chunks() -> None:
    read_all(make([Chunk("XTRA", b"1", critical=False)]))
    with pytest.raises(UnsupportedError, match="XTRA"):
        read_all(make([Chunk("XTRA", b"1", critical=True)]))


def test_other_versions_are_refused() -> None:
    minor = bytearray(SAMPLE)
    minor[5] = 77
    with pytest.raises(UnsupportedError, match=r"version 0\.77"):
        read_all(reseal(bytes(minor)))
    major = bytearray(SAMPLE)
    major[4] = 9
    with pytest.raises(UnsupportedError, match="version 9"):
        read_all(reseal(bytes(major)))


def test_damaged_chunk_is_named() -> None:
    data = bytearray(SAMPLE)
    data[-1] ^= 1
    container = Container(io.BytesIO(bytes(data)), "scene.splc")
    with pytest.raises(ChecksumError, match=r"scene\.splc: chunk TILE\[0/3\]: byte \d+"):
        container.read(container.of_type("TILE")[0])
    assert container.read(container.one("PARM")) == b"abc"  # the rest is still good


def test_lengths_that_lie() -> None:
    toc = write_varint(0) + write_varint(1) + b"TILE\x01" + b"\0\0\x05" + write_varint(1 << 60) + bytes(4)
    head = b"SPLC" + struct.pack("<BBHQQQI", 0, MINOR, 0, 40 + len(toc), len(toc), 10**12, zlib.crc32(toc))
    with pytest.raises(FormatError):
        Container(io.BytesIO(head + struct.pack("<I", zlib.crc32(head)) + toc))
    toc = write_varint(0) + write_varint(1 << 50)
    head = b"SPLC" + struct.pack("<BBHQQQI", 0, MINOR, 0, 40 + len(toc), len(toc), 0, zlib.crc32(toc))
    with pytest.raises(FormatError, match="chunks in"):
        Container(io.BytesIO(head + struct.pack("<I", zlib.crc32(head)) + toc))
