"""`.ksplat`: random records of every level against a plain decoder, the vectors, buckets, refusals."""

from __future__ import annotations

import struct
from pathlib import Path

import format_writers as writers
import numpy as np
import pytest

from splatcodec import formats
from splatcodec.errors import FormatError, LimitExceededError, SplatCodecWarning, TruncatedError, UnsupportedError
from splatcodec.gaussians import SH_C0, Gaussians
from splatcodec.limits import Limits

VECTORS = Path(__file__).parents[2] / "shared" / "formats" / "vectors"


@pytest.fixture
def rng():
    return np.random.default_rng(17)


def _records(rng: np.random.Generator, count: int, level: int, degree: int) -> np.ndarray:
    records = np.zeros(count, writers.ksplat_record(level, degree))
    records["mean"] = rng.integers(0, 65535, (count, 3)) if level else rng.normal(size=(count, 3))
    records["scale"] = np.exp(rng.normal(-3, 2, (count, 3)))
    records["quat"] = rng.normal(size=(count, 4))
    records["rgba"] = rng.integers(0, 256, (count, 4))
    if degree:
        records["sh"] = (
            rng.integers(0, 256, records["sh"].shape) if level == 2 else rng.normal(size=records["sh"].shape)
        )
    return records


def _decode(record: np.void, level: int, degree: int, center: np.ndarray, low: float, high: float) -> dict:
    """One Gaussian by the description, in plain numbers."""
    mean = [float(v) for v in record["mean"]]
    if level:
        mean = [(v - 32767) * (5.0 / 2 / 32767) + c for v, c in zip(mean, center)]
    alpha = min(max(record["rgba"][3] / 255, 1e-6), 1 - 1e-6)
    facts = {
        "means": mean,
        "scales": [np.log(np.float32(v)) for v in record["scale"]],
        "quats": list(record["quat"]),
        "sh0": [(c / 255 - 0.5) / SH_C0 for c in record["rgba"][:3]],
        "opacities": [np.log(alpha / (1 - alpha))],
    }
    values = [float(v) for v in record["sh"]] if degree else []
    if level == 2:
        values = [low + v / 255 * (high - low) for v in values]
    shN, at = [], 0
    for band in range(1, degree + 1):
        width = 2 * band + 1
        channels = [values[at + c * width : at + (c + 1) * width] for c in range(3)]
        shN += [channel[m] for m in range(width) for channel in channels]
        at += 3 * width
    return facts | {"shN": shN}


def _read(tmp_path: Path, content: bytes, **kwargs) -> Gaussians:
    path = tmp_path / "scene.ksplat"
    path.write_bytes(content)
    return formats.read(path, **kwargs)


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("degree", range(3))
@pytest.mark.parametrize("sh_range", [(0.0, 0.0), (-0.25, 2.0)])
def test_random_records(tmp_path, rng, level, degree, sh_range):
    """Two sections, the second with another degree; full and partly filled buckets of 4."""
    low, high = sh_range if sh_range[1] else (-1.5, 1.5)
    sections, expected = [], []
    for section_degree in (degree, 0):
        records = _records(rng, 13, level, section_degree)
        centers = rng.normal(0, 9, (5, 3)).astype("f4") if level else np.empty((0, 3))
        shape = (2, [3, 1, 1]) if level else (0, [])
        sections.append(writers.ksplat_section(level, section_degree, records, centers, *shape, bucket=4))
        of_bucket = [0] * 4 + [1] * 4 + [2] * 3 + [3, 4]
        for record, bucket in zip(records, of_bucket):
            center = centers[bucket] if level else np.zeros(3)
            expected.append(_decode(record, level, section_degree, center, low, high))
    scene = _read(tmp_path, writers.ksplat_bytes(level, sections, 26, sh_range, spare=1))
    assert formats.detect(tmp_path / "scene.ksplat").name == "ksplat"
    assert (len(scene), scene.sh_degree, scene.metadata) == (26, degree, {"ksplat": {"level": level}})
    for i, facts in enumerate(expected):
        for name, values in facts.items():
            have = getattr(scene, name)[i].ravel()
            wanted = np.zeros(have.shape)
            wanted[: len(values)] = values
            np.testing.assert_allclose(have, wanted, rtol=1e-5, atol=2e-5, err_msg=name)


def test_scales_of_zero_are_flat(tmp_path, rng):
    records = _records(rng, 2, 0, 0)
    records["scale"] = [[0, 1, 2], [-1, 1, 1]]
    section = writers.ksplat_section(0, 0, records, np.empty((0, 3)), 0, [])
    scales = _read(tmp_path, writers.ksplat_bytes(0, [section], 2)).scales
    np.testing.assert_allclose(scales[0], [-np.inf, 0, np.log(2)])
    assert np.isnan(scales[1, 0])


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the format vectors are not part of the repository")
@pytest.mark.parametrize("level", [1, 2])
def test_vectors(level):
    scene = formats.read(VECTORS / f"one_l{level}.ksplat")
    np.testing.assert_allclose(scene.means, [[1.5, -2.25, 0.125]], atol=5 / 65534)
    np.testing.assert_allclose(scene.scales, [[-3, -4.5, -6.25]], atol=5e-4)
    np.testing.assert_allclose(scene.quats, [[0.8, 0.2, -0.4, 0.4]], atol=5e-4)
    np.testing.assert_allclose(scene.shN[0].T.ravel(), np.arange(1, 10) / 10, atol=5e-4 if level == 1 else 3 / 255)
    np.testing.assert_allclose(scene.alphas(), 1 / (1 + np.exp(-2)), atol=1 / 255)


def _header(content: bytes, at: int, layout: str, *values) -> bytes:
    changed = bytearray(content)
    struct.pack_into(layout, changed, at, *values)
    return bytes(changed)


@pytest.mark.parametrize(
    ("at", "layout", "value", "error", "message"),
    [
        (0, "<B", 1, UnsupportedError, "version 1.1"),
        (1, "<B", 0, UnsupportedError, "version 0.0"),
        (20, "<H", 3, UnsupportedError, "level 3"),
        (8, "<I", 2, FormatError, "2 of 1 sections"),
        (4, "<I", 1 << 30, FormatError, "sections"),
        (12, "<I", 1, FormatError, "9 of 1 Gaussians"),
        (16, "<I", 8, FormatError, "9 Gaussians in the sections, 8 in the header"),
        (36, "<f", float("nan"), FormatError, "harmonics from nan"),
        (4096, "<I", 10, FormatError, "10 of 9 Gaussians"),
        (4096 + 8, "<I", 0, FormatError, "buckets of 0 Gaussians"),
        (4096 + 12, "<I", 1, FormatError, "full and"),
        (4096 + 16, "<f", float("inf"), FormatError, "buckets of size inf"),
        (4096 + 16, "<f", -5.0, FormatError, "buckets of size -5"),
        (4096 + 20, "<H", 16, FormatError, "bucket centres of 16 bytes"),
        (4096 + 32, "<I", 3, FormatError, "3 full and 2 other buckets of 3"),
        (4096 + 40, "<H", 3, FormatError, "SH degree 3"),
        (4096 + 4, "<I", 1 << 31, TruncatedError, "the section ends at byte"),
        (5120, "<I", 2, FormatError, "buckets for 8 of 9"),
    ],
)
def test_lies(tmp_path, rng, at, layout, value, error, message):
    centers = rng.normal(size=(3, 3))
    section = writers.ksplat_section(1, 1, _records(rng, 9, 1, 1), centers, 1, [3, 2], bucket=4)
    content = writers.ksplat_bytes(1, [section], 9)
    assert len(_read(tmp_path, content)) == 9
    with pytest.raises(error, match=message):
        _read(tmp_path, _header(content, at, layout, value), format="ksplat")
    with pytest.raises(FormatError, match="bytes after the last section"):
        _read(tmp_path, content + b"x")


def test_limits(tmp_path, rng):
    section = writers.ksplat_section(0, 0, _records(rng, 9, 0, 0), np.empty((0, 3)), 0, [])
    content = writers.ksplat_bytes(0, [section], 9)
    for limits in (Limits(max_gaussians=8), Limits(max_array_bytes=9 * 56 - 1)):
        with pytest.raises(LimitExceededError):
            _read(tmp_path, content, limits=limits)


def test_a_wide_scene_keeps_its_precision(tmp_path, rng):
    """A few far Gaussians get buckets of their own instead of coarser steps for all."""
    means = rng.uniform(-1, 1, (60_000, 3))
    means[:40] = rng.uniform(-5000, 5000, (40, 3))
    scene = Gaussians(
        means=means,
        quats=rng.normal(size=(60_000, 4)),
        scales=np.full((60_000, 3), -5),
        opacities=np.zeros(60_000),
        sh0=np.zeros((60_000, 1, 3)),
        extras={"row": np.arange(60_000)},
    )
    path = tmp_path / "a.ksplat"
    with pytest.warns(SplatCodecWarning):
        formats.write(scene, path)
    again = formats.read(path)
    bound = formats.formats()["ksplat"].error_bounds(scene, formats.WriteOptions()).means
    assert bound < 2e-5
    for axis in range(3):
        np.testing.assert_allclose(
            np.sort(again.means[:, axis]), np.sort(scene.means[:, axis]), atol=1.1 * bound + 1e-3
        )
        near = np.abs(np.sort(again.means[:, axis]) - np.sort(scene.means[:, axis]))[100:-100]
        assert near.max() <= 1.01 * bound
    assert path.stat().st_size < 60_000 * 24 + 5120 + 16 * 600
