"""The registry of formats, the vectors of every format, real files, and writing that never leaves half a file."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import format_writers as writers
import numpy as np
import pytest

from splatcodec import formats
from splatcodec.errors import (
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecError,
    TruncatedError,
    UnknownIdError,
    UnsupportedError,
)
from splatcodec.files import atomic_write, read_bytes
from splatcodec.gaussians import SH_C0, Gaussians
from splatcodec.limits import Limits

DATA = Path(__file__).parent / "data"
STATIC = Path(__file__).parents[2] / "shared" / "data" / "static"
needs_static = pytest.mark.skipif(not STATIC.is_dir(), reason="the real scenes are not part of the repository")


# -------------------------------------------------------------------------------------------------------- registry


def test_every_module_is_registered_under_its_own_name():
    folder = Path(formats.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")} - {"base"}
    assert {name.replace("-", "_") for name in formats.formats()} == modules
    for name, fmt in formats.formats().items():
        assert fmt.name == name
        assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in fmt.suffixes)


def test_import_is_cheap():
    code = (
        "import sys, splatcodec.formats as f; f.formats();"
        "print([m for m in ('PIL', 'zstandard', 'plyfile', 'numba', 'torch', 'zipfile') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


DETECTED = {
    "t5.ply": "ply",
    "t5.compressed.ply": "compressed-ply",
    "t5.sog": "sog",
    "one.sog": "sog",
    "t5_v3.spz": "spz",
    "t5_v4.spz": "spz",
    "one_v2.spz": "spz",
    "one_v3.spz": "spz",
    "one_v4.spz": "spz",
    "one.splat": "splat",
}


@pytest.mark.parametrize(("name", "expected"), DETECTED.items())
def test_detect(name, expected):
    assert formats.detect(DATA / name).name == expected


@pytest.mark.parametrize("name", [name for name in DETECTED if not name.endswith(".splat")])
@pytest.mark.parametrize("suffix", [".ply", ".spz", ".sog", ".splat", ".bin", ""])
def test_magic_wins_over_suffix(tmp_path, name, suffix):
    path = tmp_path / f"scene{suffix}"
    shutil.copy(DATA / name, path)
    assert formats.detect(path).name == DETECTED[name]
    assert formats.read(path).num_gaussians in (1, 5)


def test_suffix_that_contradicts_the_content(tmp_path):
    path = tmp_path / "scene.ply"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(FormatError, match=r"suffix \.ply says 3DGS PLY, but the first bytes \(89 50 4e 47") as caught:
        formats.read(path)
    assert caught.value.file == str(path)


def test_unknown_content_and_suffix(tmp_path):
    path = tmp_path / "scene.xyz"
    path.write_bytes(b"1 2 3\n")
    with pytest.raises(FormatError, match="known suffixes"):
        formats.read(path)


@pytest.mark.parametrize("name", ["a.ply", "a.spz", "a.sog", "a.splat", "a.compressed.ply", "a"])
def test_empty_file(tmp_path, name):
    path = tmp_path / name
    path.touch()
    with pytest.raises(TruncatedError, match="empty"):
        formats.read(path)
    for fmt in formats.formats():
        with pytest.raises(FormatError):
            formats.read(path, format=fmt)


@pytest.mark.parametrize("fmt", [None, *sorted(DETECTED.values())])
def test_path_problems(tmp_path, fmt):
    (tmp_path / "file").write_bytes(b"x")
    for path in [tmp_path / "none.ply", tmp_path / "file" / "x.ply", "a\0b", "", tmp_path / ("x" * 300)]:
        with pytest.raises(SplatCodecError) as caught:
            formats.read(path, format=fmt)
        assert isinstance(caught.value, ParameterError | FormatError)
    with pytest.raises(SplatCodecError):
        formats.read(tmp_path, format=fmt)
    with pytest.raises(ParameterError):
        formats.read(5, format=fmt)


def test_special_files_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.ply")
    for fmt in [None, *formats.formats()]:
        with pytest.raises(ParameterError, match="not a regular file"):
            formats.read(tmp_path / "pipe.ply", format=fmt)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission(tmp_path):
    path = tmp_path / "a.ply"
    shutil.copy(DATA / "t5.ply", path)
    path.chmod(0)
    with pytest.raises(ParameterError, match="Permission denied"):
        formats.read(path)
    tmp_path.chmod(0o500)
    with pytest.raises(ParameterError, match="Permission denied"):
        formats.write(Gaussians.empty(), tmp_path / "b.ply")
    tmp_path.chmod(0o700)


def test_permission_errors_are_translated(monkeypatch):
    # As root no file is unreadable, so the system's answer is made up.
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ParameterError, match="Permission denied"):
        formats.read(DATA / "t5.ply", format="ply")


def test_unknown_format_names(tmp_path, monkeypatch):
    with pytest.raises(UnknownIdError, match="known: ply"):
        formats.read(DATA / "t5.ply", format="plly")
    with pytest.raises(UnknownIdError, match=r"\.ply"):
        formats.write(Gaussians.empty(), tmp_path / "a.obj")
    read_only = replace(formats.formats()["ply"], name="read-only", suffixes=(".ro",), write=None)
    monkeypatch.setattr(formats, "formats", lambda: {"read-only": read_only})
    with pytest.raises(UnsupportedError, match="can be read but not written"):
        formats.write(Gaussians.empty(), tmp_path / "a.ro")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", DETECTED)
def test_limits(name):
    with pytest.raises(LimitExceededError):
        formats.read(DATA / name, limits=Limits(max_gaussians=0))
    with pytest.raises(LimitExceededError):
        formats.read(DATA / name, limits=Limits(max_array_bytes=10))
    formats.read(DATA / name, limits=Limits(max_gaussians=5, max_array_bytes=4000))


def test_running_out_of_memory_is_a_limit(monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("splatcodec.formats._records.np.empty", fail)
    with pytest.raises(LimitExceededError, match="memory"):
        formats.read(DATA / "t5.ply")


# --------------------------------------------------------------------------------------------------------- vectors


def _matched(scene: Gaussians, reference: Gaussians) -> Gaussians:
    """`scene` in the order of `reference`: formats sort."""
    keys = [np.concatenate([g.means, g.scales, g.opacities[:, None]], axis=1) for g in (reference, scene)]
    distance = np.abs(keys[0][:, None] - keys[1][None]).sum(axis=2)
    order = distance.argmin(axis=1)
    assert sorted(order) == list(range(len(reference)))
    return scene.selected(order)


def _quat_error(scene: Gaussians, reference: Gaussians) -> float:
    a, b = scene.normalized_quats(), reference.normalized_quats()
    b *= np.sign((a * b).sum(axis=1, keepdims=True))
    return float(np.abs(a - b).max())


def _largest(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - b).max())


# Largest error of each attribute. Positions of the two formats that state ranges are compared in their own terms.
# SH of the vectors was rounded to buckets of 8/128 (SPZ) and 8/256 (compressed PLY) or to a palette of 4 (SOG).
T5_BOUNDS = {
    "t5.compressed.ply": {"scales": 4.5 / 1023, "sh0": 0.5 / 255 / SH_C0, "quats": 1 / 1023, "shN": 0.032},
    "t5.sog": {"scales": 0, "sh0": 0.025, "quats": 0.012, "shN": 0.1},
    "t5_v3.spz": {"scales": 1 / 32, "sh0": 0.5 / 255 / 0.15, "quats": 0.002, "shN": 4.5 / 128},
    "t5_v4.spz": {"scales": 1 / 32, "sh0": 0.5 / 255 / 0.15, "quats": 0.002, "shN": 4.5 / 128},
}


@pytest.mark.parametrize("name", T5_BOUNDS)
def test_t5(name):
    reference = formats.read(DATA / "t5.ply")
    scene = _matched(formats.read(DATA / name), reference)
    bounds = T5_BOUNDS[name]
    rounding = 1e-5
    assert _largest(scene.scales, reference.scales) <= bounds["scales"] + rounding
    assert _largest(scene.sh0, reference.sh0) <= bounds["sh0"] + rounding
    assert _largest(scene.shN, reference.shN) <= bounds["shN"] + rounding
    assert _largest(scene.alphas(), reference.alphas()) <= (1 if name.endswith("sog") else 0.5) / 255 + rounding
    assert _quat_error(scene, reference) <= bounds["quats"] + rounding
    error = np.abs(scene.means - reference.means)
    if name.endswith(".spz"):
        assert error.max() <= 2**-13
    elif name.endswith(".sog"):
        # A whole step, as the writer truncates, of the logarithm.
        extent = np.array([3.9318 + 2.4424, 1.0987 + 4.1109, 4.6152 + 1.3863])
        assert (error <= 1.01 * extent / 65535 * (np.abs(reference.means) + 1)).all()
    else:
        extent = np.array([60.5 / 2047, 62 / 1023, 103 / 2047])
        assert (error <= 0.501 * extent).all()


def test_t5_ply_values():
    scene = formats.read(DATA / "t5.ply")
    assert (scene.num_gaussians, scene.sh_degree, scene.extras, scene.metadata) == (5, 1, {}, {})
    np.testing.assert_array_equal(scene.means[2], np.array([-10.5, 0.25, 100], np.float32))
    np.testing.assert_array_equal(scene.quats[3], np.array([-0.2, 0.3, 0.8, -0.4], np.float32))
    np.testing.assert_array_equal(scene.opacities, [0, 2, -3, 5, -1])


ONE_MEANS = [1.5, -2.25, 0.125]
ONE_SCALES = [-3, -4.5, -6.25]
ONE_QUAT = [0.8, 0.2, -0.4, 0.4]
ONE_SH0 = [1, -0.5, 0.25]


@pytest.mark.parametrize("name", ["one_v2.spz", "one_v3.spz", "one_v4.spz"])
def test_one_spz(name):
    scene = formats.read(DATA / name)
    np.testing.assert_array_equal(scene.means, [ONE_MEANS])
    np.testing.assert_array_equal(scene.scales, [ONE_SCALES])
    np.testing.assert_allclose(scene.sh0[0, 0], [1.0065, -0.5098, 0.2484], atol=1e-4)
    np.testing.assert_allclose(scene.opacities, [2.0149], atol=1e-4)
    quat = [0.79998, 0.2, -0.39608, 0.40392] if "v2" in name else [0.79993, 0.20065, -0.39991, 0.39991]
    np.testing.assert_allclose(scene.quats[0], quat, atol=1e-5)
    # Channel-major in the description, RGB innermost here.
    expected = [0.125, 0.1875, 0.3125, 0.375, 0.5, 0.625, 0.6875, 0.8125, 0.875]
    np.testing.assert_array_equal(scene.shN[0].T.ravel(), expected)
    assert scene.metadata == {
        "antialiased": False,
        "spz": {"version": int(name[5]), "fractional_bits": 12, "antialiased": False},
    }


def test_one_splat():
    scene = formats.read(DATA / "one.splat")
    assert scene.sh_degree == 0
    np.testing.assert_array_equal(scene.means, [ONE_MEANS])
    np.testing.assert_allclose(scene.scales, [ONE_SCALES], atol=1e-6)
    assert _largest(scene.sh0[0, 0], ONE_SH0) <= 1 / 255 / SH_C0  # the writer truncates
    assert _largest(scene.alphas(), 1 / (1 + np.exp(-2))) <= 1 / 255
    np.testing.assert_allclose(scene.quats[0], ONE_QUAT, atol=0.5 / 128 + 0.003)


def test_one_sog():
    scene = formats.read(DATA / "one.sog")
    np.testing.assert_allclose(scene.means, [ONE_MEANS], atol=2e-4)
    np.testing.assert_allclose(scene.scales, [ONE_SCALES], atol=0.03)
    np.testing.assert_allclose(scene.sh0[0, 0], ONE_SH0, atol=0.01)
    np.testing.assert_allclose(scene.quats[0], ONE_QUAT, atol=0.004)
    np.testing.assert_allclose(scene.shN[0].T.ravel(), np.arange(1, 10) / 10, atol=0.005)


def test_splat_edges(tmp_path):
    record = np.zeros(3, np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)]))
    record["scale"] = [[0, 1, 2], [1, 1, -1], [1, np.inf, np.nan]]
    record["rgba"][:, 3] = [0, 255, 128]
    record["quat"] = 128
    path = tmp_path / "a.SPLAT"
    path.write_bytes(record.tobytes())
    scene = formats.read(path)
    np.testing.assert_allclose(scene.scales[0], [-np.inf, 0, np.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(scene.scales), [[0, 0, 0], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(scene.alphas(), [1e-6, 1 - 1e-6, 128 / 255], atol=1e-7)
    np.testing.assert_array_equal(scene.quats, 0)
    path.write_bytes(record.tobytes() + b"x")
    with pytest.raises(TruncatedError, match="whole number of records"):
        formats.read(path)


@needs_static
@pytest.mark.parametrize(
    ("name", "count", "degree", "fmt"),
    [
        ("donut.ply", 45_624, 0, "ply"),
        ("banana.ply", 11_458, 3, "ply"),
        ("leica.ply", 8_192, 3, "ply"),
        ("dog-8bit.ply", 24_988, 0, "ply"),
        ("bouquet.spz", 116_549, 3, "spz"),
        ("playbot", 250_000, 2, "sog"),
        ("playbot/meta.json", 250_000, 2, "sog"),
        ("angel.sog", 71_359, 0, "sog"),
        ("plant.splat", 14_007, 0, "splat"),
        ("lifted-photo.sog", 360_196, 0, "sog"),
    ],
)
def test_real_files(name, count, degree, fmt):
    assert formats.detect(STATIC / name).name == fmt
    scene = formats.read(STATIC / name)
    assert (scene.num_gaussians, scene.sh_degree) == (count, degree)
    assert np.isfinite(scene.means).all()
    assert np.isfinite(scene.quats).all()
    assert (scene.scales < 3).all()
    assert 0.2 < scene.alphas().mean() <= 1
    if fmt != "ply":
        np.testing.assert_allclose(np.linalg.norm(scene.quats, axis=1), 1, atol=0.02)


# --------------------------------------------------------------------------------------------------------- writing


def test_write_then_read(tmp_path):
    scene = formats.read(DATA / "t5.ply")
    path = tmp_path / "a.ply"
    formats.write(scene, path)
    with pytest.raises(ParameterError, match=r"exists already.*--overwrite"):
        formats.write(scene, path)
    formats.write(scene.selected(slice(0, 2)), path, overwrite=True)
    assert formats.read(path).num_gaussians == 2
    formats.write(scene, str(tmp_path / "b.bin"), format="ply")
    assert formats.read(tmp_path / "b.bin").num_gaussians == 5
    assert sorted(os.listdir(tmp_path)) == ["a.ply", "b.bin"]


def test_atomic_write_keeps_modes_and_follows_links(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    umask = os.umask(0o027)
    try:
        with atomic_write(target) as file:
            file.write(b"1")
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        target.chmod(0o604)
        link.symlink_to(target)
        with atomic_write(link, overwrite=True) as file:
            file.write(b"2")
    finally:
        os.umask(umask)
    assert link.is_symlink()
    assert target.read_bytes() == b"2"
    assert stat.S_IMODE(target.stat().st_mode) == 0o604


@pytest.mark.parametrize("overwrite", [False, True])
def test_atomic_write_path_problems(tmp_path, overwrite):
    (tmp_path / "file").touch()
    bad = [tmp_path, tmp_path / "none" / "x", tmp_path / "file" / "x", tmp_path / ("x" * 300), "a\0b", "", "/dev/null"]
    for path in bad:
        with pytest.raises(ParameterError), atomic_write(path, overwrite):
            pass
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["os.fsync", "os.link", "os.replace", "os.open"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_disk_full(tmp_path, monkeypatch, failing, overwrite):
    path = tmp_path / "a.ply"
    if overwrite:
        path.write_bytes(b"old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"splatcodec.files.{failing}", full)
    if failing == "os.link":  # a file system without hard links is no failure
        formats.write(Gaussians.empty(), path, overwrite=overwrite)
        assert os.listdir(tmp_path) == ["a.ply"]
        return
    if failing == "os.replace" and not overwrite:
        monkeypatch.setattr("splatcodec.files.os.link", full)
    with pytest.raises(SplatCodecError, match="No space left") as caught:
        formats.write(Gaussians.empty(), path, overwrite=overwrite)
    assert type(caught.value) is SplatCodecError
    assert caught.value.file == str(path)
    assert os.listdir(tmp_path) == (["a.ply"] if overwrite else [])
    assert not overwrite or path.read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_disk_full_while_writing(tmp_path, monkeypatch):
    # The real device that is always full, behind the temporary file's name: the write and the close both fail.
    real = os.open
    monkeypatch.setattr("splatcodec.files.os.open", lambda path, flags, mode=0: real("/dev/full", os.O_WRONLY))
    with pytest.raises(SplatCodecError, match="No space left"), atomic_write(tmp_path / "a") as file:
        file.write(bytes(1 << 20))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UnsupportedError])
def test_failure_of_the_writer_leaves_nothing(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_write(path, overwrite=True) as file:
            file.write(b"new")
            raise error("stop")

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == b"old"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(ParameterError, match="exists already"), atomic_write(path):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a"]


def test_read_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(LimitExceededError):
        read_bytes(path, 4)
    with pytest.raises(ParameterError, match="No such file"):
        read_bytes(tmp_path / "b", 4)


def test_sog_folder_and_directories(tmp_path):
    files = writers.random_sog(np.random.default_rng(1), 20, 1)
    folder = writers.write_folder(tmp_path / "scene", files)
    for path in (folder, folder / "meta.json", str(folder)):
        assert formats.detect(path).name == "sog"
        assert formats.read(path).num_gaussians == 20
    (tmp_path / "empty.ply").mkdir()
    with pytest.raises(ParameterError, match=r"directory.*meta\.json"):
        formats.read(tmp_path / "empty.ply")
    with pytest.raises(FormatError, match=r"no meta\.json"):
        formats.read(tmp_path / "empty.ply", format="sog")
    with pytest.raises(ParameterError, match="is a directory"):
        formats.read(folder, format="ply")
