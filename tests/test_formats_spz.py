"""SPZ: random packed arrays of every version against a plain decoder, extensions, containers and refusals."""

from __future__ import annotations

import gzip
import struct
import warnings
from pathlib import Path

import format_writers as writers
import numpy as np
import pytest
import zstandard

from splatcodec import formats
from splatcodec.errors import (
    ChecksumError,
    FormatError,
    LimitExceededError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from splatcodec.gaussians import Gaussians

DATA = Path(__file__).parent / "data"


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def _read(tmp_path: Path, content: bytes) -> Gaussians:
    path = tmp_path / "scene.spz"
    path.write_bytes(content)
    return formats.read(path, format="spz")


def _file(rng: np.random.Generator, version: int, count: int = 3, degree: int = 1, **kwargs) -> bytes:
    streams = writers.random_spz_streams(rng, version, count, degree)
    if version == 4:
        return writers.spz_4(count, degree, streams, **kwargs)
    return writers.spz_gzip(version, count, degree, streams, **kwargs)


def _decode(version: int, streams: dict[str, bytes], i: int, bits: int, degree: int) -> dict[str, list[float]]:
    """Gaussian i by the description, in plain numbers."""
    if version == 1:
        means = list(struct.unpack_from("<3e", streams["positions"], 6 * i))
    else:
        parts = [streams["positions"][9 * i + 3 * axis :][:3] for axis in range(3)]
        means = [int.from_bytes(part, "little", signed=True) / 2**bits for part in parts]
    if version < 3:
        x, y, z = (byte / 127.5 - 1 for byte in streams["rotations"][3 * i : 3 * i + 3])
        quat = [max(0, 1 - x * x - y * y - z * z) ** 0.5, x, y, z]
    else:
        word = int.from_bytes(streams["rotations"][4 * i : 4 * i + 4], "little")
        kept = []
        for shift in (20, 10, 0):
            field = word >> shift & 1023
            kept.append((-1 if field & 512 else 1) * (field & 511) / 511 * 0.5**0.5)
        kept.insert(word >> 30, max(0, 1 - sum(c * c for c in kept)) ** 0.5)
        quat = [kept[3], *kept[:3]]
    alpha = min(max(streams["alphas"][i] / 255, 1e-6), 1 - 1e-6)
    per_channel = (degree + 1) ** 2 - 1
    sh = [(byte - 128) / 128 for byte in streams["sh"][3 * per_channel * i : 3 * per_channel * (i + 1)]]
    return {
        "means": means,
        "quats": quat,
        "scales": [byte / 16 - 10 for byte in streams["scales"][3 * i : 3 * i + 3]],
        "sh0": [(byte / 255 - 0.5) / 0.15 for byte in streams["colors"][3 * i : 3 * i + 3]],
        "opacities": [np.log(alpha / (1 - alpha))],
        "shN": sh[:45],
    }


@pytest.mark.parametrize("version", [1, 2, 3, 4])
@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("bits", [0, 12, 24])
def test_random_arrays(tmp_path, rng, version, degree, bits):
    count = 50
    streams = writers.random_spz_streams(rng, version, count, degree)
    streams["alphas"] = b"\x00\xff" + streams["alphas"][2:]
    if version == 4:
        content = writers.spz_4(count, degree, streams, bits=bits, flags=1)
    else:
        content = writers.spz_gzip(version, count, degree, streams, bits=bits, flags=1)
    if degree == 4:
        with pytest.warns(SplatCodecWarning, match="degree 4"):
            scene = _read(tmp_path, content)
    else:
        scene = _read(tmp_path, content)
    assert (scene.num_gaussians, scene.sh_degree) == (count, min(degree, 3))
    assert scene.metadata["antialiased"] is True
    assert scene.metadata["spz"] == {"version": version, "fractional_bits": bits, "antialiased": True}
    assert "frame" not in scene.metadata
    for i in range(count):
        for name, expected in _decode(version, streams, i, bits, degree).items():
            np.testing.assert_allclose(getattr(scene, name)[i].ravel(), expected, atol=1e-5, rtol=1e-4, err_msg=name)


def test_many_blocks(tmp_path, rng):
    count = 150_001
    streams = writers.random_spz_streams(rng, 3, count, 0)
    scene = _read(tmp_path, writers.spz_gzip(3, count, 0, streams))
    for i in (0, 32_767, 32_768, 131_072, count - 1):
        for name, expected in _decode(3, streams, i, 12, 0).items():
            np.testing.assert_allclose(getattr(scene, name)[i].ravel(), expected, atol=1e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_without_gzip(tmp_path, rng, version):
    streams = writers.random_spz_streams(rng, version, 9, 2)
    plain = writers.spz_raw(version, 9, 2, streams)
    path = tmp_path / "scene.bin"
    path.write_bytes(plain)
    assert formats.detect(path).name == "spz"
    np.testing.assert_array_equal(formats.read(path).quats, _read(tmp_path, gzip.compress(plain)).quats)
    for cut in range(0, len(plain), 7):
        with pytest.raises(FormatError):
            _read(tmp_path, plain[:cut])
    with pytest.raises(FormatError, match="bytes after the last array"):
        _read(tmp_path, plain + b"x")


def test_empty_scene(tmp_path, rng):
    assert _read(tmp_path, _file(rng, 3, 0)).num_gaussians == 0
    with pytest.raises(FormatError, match="0 Gaussians"):  # as the reference reader of version 4
        _read(tmp_path, _file(rng, 4, 0))


@pytest.mark.parametrize("version", [2, 3, 4])
def test_extensions(tmp_path, rng, version):
    def read(records: bytes, flags: int = 2) -> Gaussians:
        return _read(tmp_path, _file(rng, version, flags=flags, extensions=records))

    frame = writers.spz_extension(0xADBE0003, struct.pack("<I", 6))
    orbit = writers.spz_extension(0xADBE0002, struct.pack("<3f", -0.5, 1.5, 2))
    sh_bits = writers.spz_extension(0xADBE0001, b"\x05\x04")
    metadata = read(frame + sh_bits + orbit).metadata
    assert metadata["frame"] == "RDF"
    assert metadata["camera"] == {
        "safe_orbit_elevation_min": -0.5,
        "safe_orbit_elevation_max": 1.5,
        "safe_orbit_radius_min": 2.0,
    }
    for code, name in [(1, "LDB"), (4, "RUB"), (16, "RFU")]:
        assert read(writers.spz_extension(0xADBE0003, struct.pack("<I", code))).metadata["frame"] == name
    assert "frame" not in read(writers.spz_extension(0xADBE0003, bytes(4))).metadata
    assert "frame" not in read(b"").metadata
    with pytest.warns(SplatCodecWarning, match="unknown SPZ extension 0x12340001"):
        assert read(writers.spz_extension(0x12340001, b"abc") + frame).metadata["frame"] == "RDF"
    with pytest.warns(SplatCodecWarning, match="not finite"):
        assert "camera" not in read(writers.spz_extension(0xADBE0002, struct.pack("<3f", 0, 1, np.inf))).metadata
    for bad, message in [
        (frame[:-1], "cut short"),
        (frame[:7], "cut short"),
        (writers.spz_extension(0xADBE0003, struct.pack("<I", 17)), "unknown coordinate system"),
        (writers.spz_extension(0xADBE0003, b"\x06"), "unknown coordinate system"),
        (writers.spz_extension(0xADBE0002, b"\x06"), "a safe orbit of 1 bytes"),
    ]:
        with pytest.raises(FormatError, match=message) as caught:
            read(bad)
        assert caught.value.chunk == "extensions"
    with pytest.raises(FormatError):
        read(frame, flags=0)


def test_unknown_flags(tmp_path, rng):
    with pytest.warns(SplatCodecWarning, match="unknown SPZ flags 0x80"):
        _read(tmp_path, _file(rng, 3, flags=0x81))


def test_refused_headers(tmp_path, rng):
    good = writers.spz_raw(3, 3, 1, writers.random_spz_streams(rng, 3, 3, 1))
    for at, value, kind, message in [
        (0, b"X", FormatError, "bad magic"),
        (4, b"\x05", UnsupportedError, "version 5"),
        (4, b"\x00", UnsupportedError, "version 0"),
        (12, b"\x05", FormatError, "SH degree 5"),
        (13, b"\x19", FormatError, "25 fractional bits"),
    ]:
        content = gzip.compress(good[:at] + value + good[at + 1 :])
        with pytest.raises(kind, match=message) as caught:
            _read(tmp_path, content)
        assert caught.value.offset == at
    with pytest.raises(FormatError, match="version 4 inside gzip"):
        _read(tmp_path, gzip.compress(_file(rng, 4)))


def test_gzip_damage(tmp_path, rng):
    good = _file(rng, 3)
    with pytest.raises(ChecksumError, match="data check"):
        _read(tmp_path, good[:-8] + bytes([good[-8] ^ 1]) + good[-7:])
    with pytest.raises(ChecksumError, match="length check"):
        _read(tmp_path, good[:-1] + b"\x01")
    with pytest.raises(FormatError, match="bytes after the gzip stream"):
        _read(tmp_path, good + b"\0")
    with pytest.raises(FormatError, match="bytes after the gzip stream"):
        _read(tmp_path, good + good)
    with pytest.raises(TruncatedError, match="cut short"):
        _read(tmp_path, good[:-1])
    short = writers.spz_raw(3, 3, 1, writers.random_spz_streams(rng, 3, 3, 1))[:-1]
    with pytest.raises(TruncatedError, match="chunk sh"):
        _read(tmp_path, gzip.compress(short))
    with pytest.raises(TruncatedError, match="chunk positions"):
        _read(tmp_path, gzip.compress(short[:20]))


def test_version_4_damage(tmp_path, rng):
    good = _file(rng, 4)
    for at, value, message in [
        (15, b"\x05", "5 streams, expected 6"),
        (16, b"\x1f", "table of contents is said to be at byte 31"),
        (16, b"\x21", "table of contents is said to be at byte 33"),
        (40, b"\x05", "5 bytes, expected 27"),
    ]:
        with pytest.raises(FormatError, match=message):
            _read(tmp_path, good[:at] + value + good[at + 1 :])
    with pytest.raises(FormatError, match="bytes after the last stream"):
        _read(tmp_path, good + b"x")
    with pytest.raises(TruncatedError, match="the streams end at"):
        _read(tmp_path, good[:-1])
    with pytest.raises(TruncatedError, match="table of contents"):
        _read(tmp_path, good[:100])


def test_version_4_frames(tmp_path, rng):
    streams = writers.random_spz_streams(rng, 4, 100, 0)
    colors = streams["colors"]
    unstated = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
    good = unstated.compress(colors)

    def read(frame: bytes) -> Gaussians:
        return _read(tmp_path, writers.spz_4(100, 0, streams, frames={"colors": frame}))

    np.testing.assert_allclose(read(good).sh0[0, 0, 0], (colors[0] / 255 - 0.5) / 0.15, rtol=1e-6)
    for frame, message in [
        (unstated.compress(colors + b"x"), "zstd"),
        (unstated.compress(colors[:-1]), "holds 299 bytes, expected 300"),
        (zstandard.compress(colors + b"x"), "does not hold 300 bytes"),
        (good + b"x", "zstd"),
        (good + good, "zstd"),
        (good[:-5], "zstd"),
        (b"", "zstd"),
        (bytes(30), "zstd"),
    ]:
        with pytest.raises(FormatError, match=message) as caught:
            read(frame)
        assert caught.value.chunk == "colors"
        assert caught.value.offset > 32
    with pytest.raises(ChecksumError):
        read(good[:-1] + bytes([good[-1] ^ 1]))


def test_too_many_extension_bytes(tmp_path, rng):
    for version in (3, 4):
        with pytest.raises(LimitExceededError, match="extensions"):
            _read(tmp_path, _file(rng, version, flags=2, extensions=bytes((1 << 20) + 1)))


def test_vector_bytes():
    """The inflated bytes of the version 3 vector, as documented."""
    expected = "4e475350030000000100000001" + "0c0000" + "001800" + "00dcff" + "000200"
    expected += "e1" + "a66c89" + "70583c" + "21851cc9" + "90b0d898c0e8a8d0f0"
    assert gzip.decompress((DATA / "one_v3.spz").read_bytes()).hex() == expected


# --------------------------------------------------------------------------------------------------------- writing


def _write(scene: Gaussians, path: Path, **options) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        formats.write(scene, path, options=formats.WriteOptions(**options))
    return path.read_bytes()


def _half_up(value: float) -> int:
    return int(np.floor(float(value) + 0.5))


def _one() -> Gaussians:
    """The splat that the vectors were made of."""
    rest = np.arange(1, 10, dtype=np.float32).reshape(3, 3) / 10  # channel-major
    return Gaussians(
        means=[[1.5, -2.25, 0.125]],
        quats=[[0.8, 0.2, -0.4, 0.4]],
        scales=[[-3, -4.5, -6.25]],
        opacities=[2],
        sh0=[[[1, -0.5, 0.25]]],
        shN=rest.T[None],
    )


def test_written_bytes_are_those_of_the_vector(tmp_path):
    content = _write(_one(), tmp_path / "a.spz", version=3)
    assert gzip.decompress(content) == gzip.decompress((DATA / "one_v3.spz").read_bytes())
    assert content[4:8] == bytes(4), "no time, so that a scene has one file"


def test_version_2_names_axes_so_that_w_is_exact(tmp_path, rng):
    quats = np.concatenate([np.eye(4), rng.normal(size=(500, 4)) * [0.01, 1, 1, 1]])
    count = len(quats)
    scene = Gaussians(
        means=np.arange(count)[:, None] * [1.0, 0, 0],
        quats=quats,
        scales=rng.uniform(-5, -1, (count, 3)),
        opacities=np.zeros(count),
        sh0=np.zeros((count, 1, 3)),
    )
    _write(scene, tmp_path / "a.spz", version=2)
    again = formats.read(tmp_path / "a.spz")
    again = again.selected(np.argsort(again.means[:, 0]))
    assert again.quats[:, 0].min() > 0.84
    have, wanted = (_covariances(g) for g in (again, scene))
    # 1/16 of a log scale and less than a hundredth of a turn.
    size = np.abs(wanted).max(axis=(1, 2), keepdims=True)
    assert np.abs((have - wanted) / size).max() < 0.09


def _covariances(scene: Gaussians) -> np.ndarray:
    w, x, y, z = scene.normalized_quats().astype(float).T
    axes = (
        np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        ).transpose(2, 0, 1)
        * np.exp(scene.scales.astype(float))[:, None]
    )
    return axes @ axes.transpose(0, 2, 1)


def test_written_version_4(tmp_path):
    content = _write(_one(), tmp_path / "a.spz", version=4)
    expected = (DATA / "one_v4.spz").read_bytes()
    assert content[:32] == expected[:32]
    arrays = gzip.decompress((DATA / "one_v3.spz").read_bytes())[16:]
    at, streams = 32 + 6 * 16, b""
    for i in range(6):
        size_bytes, raw_bytes = struct.unpack_from("<QQ", content, 32 + 16 * i)
        frame = content[at : at + size_bytes]
        assert zstandard.frame_content_size(frame) == raw_bytes, "the reference reader asks for it"
        streams += zstandard.decompress(frame)
        at += size_bytes
    assert (at, streams) == (len(content), arrays)


def test_written_codes_by_the_description(tmp_path, rng):
    """Version 3, value by value, from the file's own bytes."""
    count = 200
    scene = Gaussians(
        means=np.arange(count)[:, None] * [1.0, -0.5, 0.25] + rng.uniform(0, 0.2, (count, 3)),
        quats=rng.normal(size=(count, 4)),
        scales=rng.uniform(-11, 7, (count, 3)),
        opacities=rng.normal(0, 4, count),
        sh0=rng.normal(0, 2, (count, 1, 3)),
        shN=rng.normal(0, 0.5, (count, 15, 3)),
    )
    raw = gzip.decompress(_write(scene, tmp_path / "a.spz", version=3))
    sizes = writers.spz_stream_sizes(3, count, 3)
    assert len(raw) == 16 + sum(sizes.values())
    starts = dict(zip(sizes, np.cumsum([16, *list(sizes.values())[:-1]])))
    x = [int.from_bytes(raw[starts["positions"] + 9 * i :][:3], "little", signed=True) for i in range(count)]
    order = np.argsort(x)  # which is that of the scene
    for row, i in enumerate(order):
        for axis in range(3):
            at = starts["positions"] + 9 * i + 3 * axis
            assert int.from_bytes(raw[at : at + 3], "little", signed=True) == _half_up(
                float(scene.means[row, axis]) * 4096
            )
            colour = raw[starts["colors"] + 3 * i + axis]
            assert colour == min(max(_half_up(255 * (0.15 * float(scene.sh0[row, 0, axis]) + 0.5)), 0), 255)
            size = raw[starts["scales"] + 3 * i + axis]
            assert size == min(max(_half_up((float(scene.scales[row, axis]) + 10) * 16), 0), 255)
            for k in range(15):
                bucket = 8 if k < 3 else 16
                value = float(scene.shN[row, k, axis])
                wanted = min(max(round(value * 128 / bucket) * bucket + 128, 0), 255)
                assert raw[starts["sh"] + 45 * i + 3 * k + axis] == wanted
        assert abs(raw[starts["alphas"] + i] - 255 / (1 + np.exp(-float(scene.opacities[row])))) <= 0.5


def test_scenes_too_large_get_fewer_fractional_bits(tmp_path):
    for reach, bits in [(2047, 12), (2050, 11), (500_000, 4), (8e6, 0)]:
        scene = _one().replaced(means=[[reach, -reach, 0]])
        assert formats.formats()["spz"].losses(scene, formats.WriteOptions())[-1].startswith("values rounded")
        path = tmp_path / f"{bits}.spz"
        _write(scene, path)
        again = formats.read(path)
        assert again.metadata["spz"]["fractional_bits"] == bits
        np.testing.assert_allclose(again.means, scene.means, atol=0.5 / 2**bits)
    beyond = _one().replaced(means=[[1e9, 0, 0]])
    losses = formats.formats()["spz"].losses(beyond, formats.WriteOptions())
    assert any("positions of 1 Gaussians clamped" in loss for loss in losses)


def test_what_extensions_hold_is_written(tmp_path):
    orbit = {"safe_orbit_elevation_min": -1.0, "safe_orbit_elevation_max": 0.5, "safe_orbit_radius_min": 2.0}
    facts = {"frame": "RUB", "antialiased": True, "camera": orbit}
    scene = _one().replaced(metadata=facts)
    _write(scene, tmp_path / "4.spz", version=4)
    again = formats.read(tmp_path / "4.spz").metadata
    assert {name: again[name] for name in facts} == facts
    _write(_one(), tmp_path / "b.spz", version=4)
    assert "frame" not in formats.read(tmp_path / "b.spz").metadata, "what is not known is not stated"
    for version in (2, 3):
        # Bytes behind the arrays would keep other readers from opening the file.
        raw = gzip.decompress(_write(scene, tmp_path / f"{version}.spz", version=version))
        assert len(raw) == 16 + sum(writers.spz_stream_sizes(version, 1, 1).values())
        losses = formats.formats()["spz"].losses(scene, formats.WriteOptions(version=version))
        assert "metadata dropped: frame, camera" in losses
