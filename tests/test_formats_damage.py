"""Damaged and hostile files of every format: Gaussians or one SplatCodecError, in memory proportional to the file."""

from __future__ import annotations

import contextlib
import gzip
import os
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import format_writers as writers
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splatcodec import formats
from splatcodec.errors import FormatError, LimitExceededError, SplatCodecError, SplatCodecWarning, TruncatedError
from splatcodec.formats import ply
from splatcodec.gaussians import Gaussians

DATA = Path(__file__).parent / "data"
VECTORS = [
    "t5.ply",
    "t5.compressed.ply",
    "t5_v3.spz",
    "t5_v4.spz",
    "one_v2.spz",
    "one_v3.spz",
    "one_v4.spz",
    "one.splat",
    "t5.sog",
    "one.sog",
]
MB = 1 << 20


def _outcome(path: Path, fmt: str | None = None) -> Gaussians | SplatCodecError:
    """What reading gives; any other exception, or another warning than ours, fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        try:
            return formats.read(path, format=fmt)
        except SplatCodecError as error:
            result = error
    assert result.file == str(path)
    assert str(result).startswith(str(path))
    return result


def _positions(content: bytes) -> list[int]:
    """Every byte, but only some of a SOG's long lists of numbers, which a checksum guards as one."""
    start = content.find(b'{"version"') + 16 if content.startswith(b"PK") else len(content)
    end = content.rfind(b"}", 0, content.find(b"PK", start) if start < len(content) else None)
    return [at for at in range(len(content)) if not start < at < end or at % 32 == 0]


def _patch(path: Path, at: int, byte: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes([byte]))


@pytest.mark.parametrize("name", VECTORS)
def test_every_prefix_is_refused(tmp_path, name):
    content = (DATA / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content)
    fmt = formats.detect(path).name
    for size_bytes in reversed(_positions(content)):
        os.truncate(path, size_bytes)
        # Detected while the magic is whole; named from the beginning.
        for chosen in (None, fmt) if size_bytes < 64 else (fmt,):
            assert isinstance(_outcome(path, chosen), FormatError), size_bytes


@pytest.mark.parametrize("name", VECTORS)
def test_every_byte_flipped(tmp_path, name):
    content = (DATA / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content)
    fmt = formats.detect(path).name
    for at in _positions(content):
        for mask in (1 << at % 8, 0xFF) if len(content) < 1000 else (1 << at % 8,):
            _patch(path, at, content[at] ^ mask)
            result = _outcome(path, fmt)
            assert isinstance(result, SplatCodecError) or len(result) < 300
        _patch(path, at, content[at])
    assert len(formats.read(path)) in (1, 5)


@pytest.mark.parametrize("format", ["binary_big_endian", "ascii"])
def test_other_ply_damage(tmp_path, format):
    columns = writers.splat_columns(np.random.default_rng(3), 2) | {"label": np.array([1, 2], "u1")}
    more = ("element face 1", "property list uchar short i")
    content = writers.ply_bytes(
        columns, format, "\r\n", more_header=more, tail=b"1 2\r\n" if format == "ascii" else b"\x01ab"
    )
    path = tmp_path / "a.ply"
    for at in range(0, len(content), 2):
        path.write_bytes(content[:at])
        assert isinstance(_outcome(path, "ply"), FormatError), at
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        _outcome(path, "ply")
        with contextlib.suppress(SplatCodecError):
            ply.read_table(path)


@pytest.mark.parametrize("version", [1, 2])
def test_sog_folder_damage(tmp_path, version):
    # In a folder nothing has a checksum, so the damage reaches the JSON and image decoders.
    files = writers.random_sog(np.random.default_rng(3), 5, 1, version)
    folder = writers.write_folder(tmp_path / "scene", files)
    for name, content in files.items():
        for at in range(0, len(content), max(1, len(content) // 35)):
            (folder / name).write_bytes(content[:at])
            assert isinstance(_outcome(folder), FormatError), (name, at)
            (folder / name).write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
            _outcome(folder)
        (folder / name).write_bytes(content)
    assert len(formats.read(folder)) == 5


SEEDS = [name for name in VECTORS if (DATA / name).stat().st_size < 10_000]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_splices(tmp_path, data):
    """Pieces of the vectors and random bytes, under any name and any format."""
    content = (DATA / data.draw(st.sampled_from(SEEDS))).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(at, min(len(content), at + 40)))
        content = content[:at] + data.draw(st.binary(max_size=40)) + content[end:]
    path = tmp_path / data.draw(st.sampled_from(["a.ply", "a.spz", "a.sog", "a.splat", "a"]))
    path.write_bytes(content)
    _outcome(path, data.draw(st.sampled_from([None, *formats.formats()])))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 3))
def test_damage_inside_gzip(tmp_path, noise, where):
    streams = writers.random_spz_streams(np.random.default_rng(1), 3, 2, 1)
    raw = writers.spz_raw(3, 2, 1, streams, flags=2, extensions=bytes(12))
    at = [0, 4, 16, len(raw) - 12][where]
    path = tmp_path / "a.spz"
    path.write_bytes(gzip.compress(raw[:at] + noise + raw[at + len(noise) // 2 :]))
    _outcome(path)


# ----------------------------------------------------------------------------------------------------------- bombs


def _costs(path: Path, fmt: str | None = None) -> tuple[Gaussians | SplatCodecError, int, float]:
    """What reading gives, the peak of memory in bytes, and seconds."""
    started = time.perf_counter()
    _outcome(path, fmt)
    seconds = time.perf_counter() - started
    tracemalloc.start()  # slow, and imports and caches do not count: hence the second time
    try:
        return _outcome(path, fmt), tracemalloc.get_traced_memory()[1], seconds
    finally:
        tracemalloc.stop()


def _assert_cheap(path: Path, kind: type[SplatCodecError], fmt: str | None = None, peak_bytes: int = 6 * MB) -> None:
    result, peak, seconds = _costs(path, fmt)
    assert isinstance(result, kind), result
    assert peak < peak_bytes
    assert seconds < 5


def _gzip_zeros(prefix: bytes, size_bytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(prefix)]
    parts += [packer.compress(bytes(MB)) for _ in range(size_bytes // MB)]
    return b"".join([*parts, packer.flush()])


def _spz_header(version: int, count: int, degree: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, 12, flags, 0)


@pytest.mark.parametrize("flags", [0, 2])
def test_gzip_bomb_behind_a_small_scene(tmp_path, flags):
    path = tmp_path / "a.spz"
    path.write_bytes(_gzip_zeros(_spz_header(3, 5, flags=flags), 100 * MB))
    _assert_cheap(path, SplatCodecError)


@pytest.mark.parametrize("count", [10_000, 10**8, 2**32 - 1])
def test_spz_lying_count(tmp_path, count):
    path = tmp_path / "a.spz"
    for content in (
        gzip.compress(_spz_header(3, count, 3) + bytes(100)),
        _spz_header(2, count, 3) + bytes(100),
        _spz_header(4, count, 3)[:15] + b"\x06" + struct.pack("<I12x", 32) + bytes(200),
    ):
        path.write_bytes(content)
        _assert_cheap(path, SplatCodecError)


def test_zstd_bombs(tmp_path):
    streams = writers.random_spz_streams(np.random.default_rng(0), 4, 100, 0)
    zeros = bytes(100 * MB)
    path = tmp_path / "a.spz"
    for frame in (
        zstandard.compress(zeros),
        zstandard.ZstdCompressor(write_content_size=False).compress(zeros),
        # A window of 2 GB, stated in a frame header without content size.
        bytes.fromhex("28b52ffd00a8") + zstandard.compress(bytes(300))[7:],
    ):
        path.write_bytes(writers.spz_4(100, 0, streams, frames={"colors": frame}))
        _assert_cheap(path, FormatError)
    # The table of contents lies about the size.
    content = bytearray(writers.spz_4(100, 0, streams))
    content[40:48] = struct.pack("<Q", 2**63)
    path.write_bytes(content)
    _assert_cheap(path, FormatError)


@pytest.mark.parametrize("entry", ["meta.json", "means_l.webp", "quats.webp"])
def test_zip_bomb(tmp_path, entry):
    files = writers.random_sog(np.random.default_rng(0), 9, 0)
    path = tmp_path / "a.sog"
    bomb = files[entry].ljust(100 * MB, b" ")
    content = writers.zip_bytes(files | {entry: bomb}, zipfile.ZIP_DEFLATED)
    path.write_bytes(content)
    assert len(content) < MB
    _assert_cheap(path, LimitExceededError)
    # The same with a directory that lies about the size.
    path.write_bytes(content.replace(struct.pack("<I", 100 * MB), struct.pack("<I", 1000)))
    _assert_cheap(path, FormatError)


def test_sog_lying_counts_and_sizes(tmp_path):
    files = writers.random_sog(np.random.default_rng(0), 9, 1)
    for count in (10**6, 10**8, 10**12, 10**30):
        meta = files["meta.json"].replace(b'"count": 9', b'"count": %d' % count)
        folder = writers.write_folder(tmp_path / "a", files | {"meta.json": meta})
        _assert_cheap(folder, SplatCodecError)
    # An image of 16384 x 16384 pixels by its header.
    huge = bytearray(files["means_u.webp"])
    huge[21:25] = b"\xff\xff\xff\x0f"
    folder = writers.write_folder(tmp_path / "a", files | {"means_u.webp": bytes(huge)})
    _assert_cheap(folder, LimitExceededError)
    # Deep and long JSON.
    for text in (b"[" * MB, b'{"means":' + b"[1," * MB, b"[" + b"0," * MB + b"0]"):
        folder = writers.write_folder(tmp_path / "a", files | {"meta.json": text})
        _assert_cheap(folder, FormatError, peak_bytes=40 * MB)


@pytest.mark.parametrize("count", [10**5, 10**12, 10**18, 10**30])
@pytest.mark.parametrize("format", ["binary_little_endian", "ascii"])
def test_ply_lying_counts(tmp_path, count, format):
    columns = writers.splat_columns(np.random.default_rng(0), 2)
    more = ("element face 0", "property list uchar int i", "element plain 0", "property int a", "element none 0")
    good = writers.ply_bytes(columns, format, more_header=more)
    path = tmp_path / "a.ply"
    for element in (b"vertex 2", b"face 0", b"plain 0"):
        path.write_bytes(good.replace(element, element[:-1] + b"%d" % count))
        _assert_cheap(path, SplatCodecError)
    path.write_bytes(good.replace(b"none 0", b"none 10000000000"))
    with pytest.warns(SplatCodecWarning, match="none"):
        assert len(formats.read(path)) == 2


def test_compressed_ply_lying_counts(tmp_path):
    good = (DATA / "t5.compressed.ply").read_bytes()
    path = tmp_path / "a.ply"
    for count in (10**5, 10**8, 10**12):
        lie = good.replace(b"vertex 5", b"vertex %d" % count).replace(b"sh 5", b"sh %d" % count)
        path.write_bytes(lie.replace(b"chunk 1", b"chunk %d" % -(-count // 256)))
        _assert_cheap(path, SplatCodecError, "compressed-ply")


def test_header_bombs(tmp_path):
    path = tmp_path / "a.ply"
    for lines in (
        b"".join(b"element e%d 9\n" % i for i in range(9_000)),
        b"element vertex 1\n" + b"".join(b"property char e%d\n" % i for i in range(9_000)),
        b"comment " + b"x" * 10 * MB,
        b"comment\n" * 20_000,
        b"\n" * 100_000,
    ):
        path.write_bytes(b"ply\nformat binary_little_endian 1.0\n" + lines + b"end_header\n")
        _assert_cheap(path, SplatCodecError, peak_bytes=20 * MB)


def test_long_lists_are_walked_once(tmp_path):
    columns = writers.splat_columns(np.random.default_rng(0), 1)
    rows = 50_000
    more = (f"element face {rows}", "property list uchar uchar i")
    content = writers.ply_bytes(columns, more_header=more, tail=bytes(rows))
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    result, peak, seconds = _costs(path)
    assert len(result) == 1
    assert peak < 2 * MB
    assert seconds < 5
    path.write_bytes(content[:-1])
    _assert_cheap(path, TruncatedError)


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    columns = writers.splat_columns(np.random.default_rng(0), 2000)
    path = tmp_path / "a.ply"
    path.write_bytes(writers.ply_bytes(columns))
    size_bytes = path.stat().st_size
    monkeypatch.setattr("splatcodec.formats.ply.file_size", lambda handle: size_bytes + 10**6)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TruncatedError, match="ends early"):
        formats.read(path)
