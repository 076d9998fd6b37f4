"""The Python API: what goes in, what comes out, what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import splatcodec
from splatcodec import api
from splatcodec.bitstream.container import Chunk, Container, Feature, write_container
from splatcodec.errors import FormatError, ParameterError, SplatCodecError, UnknownIdError
from splatcodec.gaussians import Gaussians
from splatcodec.preprocess.plan import LossyOptions
from splatcodec.sample import sample_scene

ROOT = Path(__file__).resolve().parent.parent
ARRAYS = ("means", "quats", "scales", "opacities", "sh0", "shN")
EXTRAS = {"label": np.arange(300, dtype=np.int32), "normal": np.linspace(0, 1, 900, dtype=np.float32).reshape(300, 3)}


def same(a: Gaussians, b: Gaussians) -> bool:
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ARRAYS)


@pytest.fixture(scope="module")
def lossy(small_scene) -> bytes:
    return api.compress(small_scene, quality=70, effort=1)


@pytest.fixture(scope="module")
def lossless(small_scene) -> bytes:
    return api.compress(small_scene, lossless=True)


# --- lossy ---


def test_lossy_round_trip(small_scene, lossy):
    decoded = api.decompress(lossy)
    assert 0 < decoded.num_gaussians <= small_scene.num_gaussians
    assert decoded.sh_degree == small_scene.sh_degree
    assert all(np.isfinite(getattr(decoded, name)).all() for name in ARRAYS)
    assert decoded.metadata["up"] == small_scene.metadata["up"]
    # Every decoded Gaussian is near one of the original's.
    distances = np.linalg.norm(decoded.means[:, None] - small_scene.means[None], axis=2).min(1)
    sizes = np.exp(decoded.scales.max(1))
    assert (distances < sizes).mean() > 0.95


def test_better_is_larger(small_scene):
    sizes = [len(api.compress(small_scene, quality=quality, effort=1)) for quality in (10, 50, 90)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.7 * sizes[-1]


@pytest.mark.parametrize("share", [0.4, 0.8])
def test_target_size_is_not_exceeded(share):
    scene = sample_scene(3000)
    full = len(api.compress(scene, quality=80, effort=1))
    target = int(share * full)
    size = len(api.compress(scene, target_size=target, effort=1))
    assert 0.9 * target <= size <= target


def test_target_that_cannot_be_met_is_refused(small_scene):
    with pytest.raises(ParameterError):
        api.compress(small_scene, target_size=50, effort=1)


def test_options_as_an_object_are_the_same(small_scene, lossy):
    assert api.compress(small_scene, options=LossyOptions(quality=70, effort=1)) == lossy
    with pytest.raises(ParameterError, match="not both"):
        api.compress(small_scene, options=LossyOptions(), quality=3)


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_and_scene_do_not_depend_on_threads(small_scene, lossy, lossless, threads):
    assert api.compress(small_scene, quality=70, effort=1, threads=threads) == lossy
    assert api.compress(small_scene, lossless=True, threads=threads) == lossless
    assert same(api.decompress(lossy, threads=threads), api.decompress(lossy))
    assert same(api.decompress(lossless, threads=threads), api.decompress(lossless))


def test_extras_stay_with_their_gaussians(small_scene):
    # The label says which row it was; colours show whether it still is that row.
    scene = small_scene.replaced(extras=EXTRAS)
    decoded = api.decompress(api.compress(scene, quality=90, effort=1, prune=False))
    assert set(decoded.extras) == set(EXTRAS)
    rows = decoded.extras["label"]
    assert sorted(rows) == list(range(300))
    assert decoded.extras["normal"].tobytes() == EXTRAS["normal"][rows].tobytes()
    moved = np.linalg.norm(decoded.means - scene.means[rows], axis=1)
    assert (moved < np.exp(scene.scales[rows].max(1))).all()
    assert np.corrcoef(decoded.sh0[:, 0, 0], scene.sh0[rows][:, 0, 0])[0, 1] > 0.9


def test_extras_can_be_left_out(small_scene):
    scene, report = small_scene.replaced(extras=EXTRAS), api.CompressReport()
    assert not api.decompress(api.compress(scene, extras=False, effort=1, report=report)).extras
    assert any("label" in note for note in report.notes)
    assert not api.decompress(api.compress(scene, lossless=True, extras=False)).extras


def test_what_cannot_be_drawn_is_dropped_and_said(small_scene):
    means, opacities = small_scene.means.copy(), small_scene.opacities.copy()
    means[:7] = np.nan
    opacities[10] = np.inf
    report = api.CompressReport()
    payload = api.compress(small_scene.replaced(means=means, opacities=opacities), effort=1, report=report)
    assert api.decompress(payload).num_gaussians <= 293
    assert any("7 with non-finite values dropped" in note for note in report.notes)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("lossless", [False, True])
def test_tiny_scenes(count, degree, lossless):
    scene = sample_scene(count)
    scene = scene.replaced(shN=scene.shN[:, : (degree + 1) ** 2 - 1])
    options = {"lossless": True} if lossless else {"effort": 1, "prune": False}
    decoded = api.decompress(api.compress(scene, **options))
    assert (decoded.num_gaussians, decoded.sh_degree) == (count, degree)
    assert not lossless or same(decoded, scene)


# --- lossless ---


def test_lossless_arrays(small_scene, lossless):
    decoded = api.decompress(lossless)
    assert same(decoded, small_scene)
    assert decoded.metadata["up"] == small_scene.metadata["up"]


def test_lossless_special_values(small_scene):
    patterns = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 1, 0x7F7FFFFF], np.uint32)
    changed = {}
    for name in ARRAYS:
        flat = getattr(small_scene, name).copy().reshape(-1)
        flat[5:12] = patterns.view(np.float32)
        changed[name] = flat.reshape(getattr(small_scene, name).shape)
    scene = small_scene.replaced(**changed)
    assert same(api.decompress(api.compress(scene, lossless=True)), scene)


def test_lossless_reordered_is_a_permutation(small_scene):
    scene = small_scene.replaced(extras=EXTRAS)
    decoded = api.decompress(api.compress(scene, lossless=True, reorder=True))
    rows = decoded.extras["label"]
    assert sorted(rows) == list(range(300))
    assert same(decoded, scene.selected(rows))


def test_lossless_extras_keep_their_types(small_scene):
    types = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
    extras = {f"column_{name}": np.arange(300).astype(name) for name in types}
    decoded = api.decompress(api.compress(small_scene.replaced(extras=extras), lossless=True))
    assert {name: array.dtype for name, array in decoded.extras.items()} == {n: a.dtype for n, a in extras.items()}
    assert all(decoded.extras[name].tobytes() == extras[name].tobytes() for name in extras)


def test_lossless_file_gives_the_file_back(small_files, tmp_path):
    facts = api.decompress_file(small_files["lossless"], tmp_path / "back.ply")
    assert facts["identical"] is True
    assert facts["num_gaussians"] == 300
    assert facts["size_bytes"] == (tmp_path / "back.ply").stat().st_size
    assert (tmp_path / "back.ply").read_bytes() == small_files["ply"].read_bytes()
    with api.open(small_files["lossless"]) as scene:
        source = scene.metadata["source"]
    assert source["sha256"] == hashlib.sha256(small_files["ply"].read_bytes()).hexdigest()


def test_lossless_is_smaller_than_the_arrays(small_scene, lossless):
    assert len(lossless) < 0.95 * small_scene.array_bytes


# --- files, formats, reports ---


def test_report(small_scene, small_files, tmp_path):
    report = api.compress_file(small_files["ply"], tmp_path / "a.splc", effort=1)
    assert report.size_bytes == (tmp_path / "a.splc").stat().st_size
    assert report.input_bytes == small_files["ply"].stat().st_size
    assert report.num_gaussians == 300
    assert report.num_coded == api.read(tmp_path / "a.splc").num_gaussians
    assert report.bits_per_gaussian == 8 * report.size_bytes / 300
    assert sum(report.rate_bits.values()) <= 8 * report.size_bytes
    assert sum(report.rate_bits.values()) > 0.8 * 8 * report.size_bytes
    assert json.loads(json.dumps(report.to_dict()))["size_bytes"] == report.size_bytes


def test_progress_is_a_share(small_scene, lossy):
    seen: list[tuple[str, float]] = []
    api.compress(small_scene, effort=1, progress=lambda stage, share: seen.append((stage, share)))
    api.compress(small_scene, lossless=True, progress=lambda stage, share: seen.append((stage, share)))
    api.decompress(lossy, progress=lambda stage, share: seen.append((stage, share)))
    assert seen
    assert all(isinstance(stage, str) and 0 <= share <= 1 for stage, share in seen)


def test_open_reads_no_more_than_it_must(small_files, lossy):
    with api.open(small_files["lossy"]) as scene:
        assert (scene.num_gaussians, scene.lossless) == (scene.container.num_gaussians, False)
        assert scene.metadata["generator"].startswith("splatcodec ")
        assert scene.read().num_gaussians == scene.num_gaussians
    with api.open(lossy) as scene:
        assert scene.read().num_gaussians > 0


def test_verify(small_files):
    facts = api.verify(small_files["lossless"], full=True)
    assert (facts["num_gaussians"], facts["features"], facts["decoded"]) == (300, ["lossless-1"], True)


def test_read_and_write_by_suffix(small_scene, tmp_path):
    api.write(small_scene, tmp_path / "a.ply")
    api.write(small_scene, tmp_path / "a.splc", lossless=True)
    assert same(api.read(tmp_path / "a.ply"), small_scene)
    assert same(api.read(tmp_path / "a.splc"), small_scene)
    (tmp_path / "b.ply").write_bytes((tmp_path / "a.splc").read_bytes())
    assert same(api.read(tmp_path / "b.ply"), small_scene), "bytes decide, not the suffix"
    with pytest.raises(ParameterError):
        api.write(small_scene, tmp_path / "a.ply")
    with pytest.raises(ParameterError):
        api.write(small_scene, tmp_path / "c.ply", quality=3)
    with pytest.raises(UnknownIdError):
        api.write(small_scene, tmp_path / "c.docx")


@pytest.mark.parametrize(
    "arguments",
    [
        {"quality": -1},
        {"quality": 101},
        {"quality": float("nan")},
        {"target_psnr": 500},
        {"target_size": 0},
        {"target_psnr": 40, "target_size": 1000},
        {"effort": 0},
        {"effort": 10},
        {"nonsense": 1},
        {"reorder": True},
        {"lossless": True, "quality": 50},
        {"lossless": True, "options": LossyOptions()},
    ],
)
def test_arguments_that_cannot_be_right(small_scene, arguments):
    with pytest.raises(ParameterError):
        api.compress(small_scene, **arguments)


def test_not_a_splc_file(tmp_path):
    for content in (b"", b"S", b"SPLC", b"ply\n", bytes(100)):
        with pytest.raises(FormatError):
            api.decompress(content)
    (tmp_path / "a.splc").write_bytes(b"ply\nformat ascii 1.0\n")
    with pytest.raises(FormatError, match="magic"):
        api.read(tmp_path / "a.splc")
    with pytest.raises(SplatCodecError, match=r"a\.splc"):
        api.verify(tmp_path / "a.splc")


def test_nothing_is_written_after_an_error(small_files, tmp_path):
    broken = bytearray(small_files["lossy"].read_bytes())
    broken[-1] ^= 1
    (tmp_path / "broken.splc").write_bytes(broken)
    with pytest.raises(FormatError):
        api.decompress_file(tmp_path / "broken.splc", tmp_path / "out.ply")
    with pytest.raises(FormatError):
        api.compress_file(tmp_path / "broken.splc", tmp_path / "out.splc")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.splc"]


def test_package_exports(small_scene):
    for name in splatcodec.__all__:
        assert getattr(splatcodec, name) is not None
    assert splatcodec.Gaussians is Gaussians
    with pytest.raises(AttributeError):
        _ = splatcodec.nonsense
    assert isinstance(splatcodec.decompress(splatcodec.compress(small_scene, lossless=True)), Gaussians)


def test_sample_scene():
    scene = sample_scene(2000, seed=5)
    assert same(scene, sample_scene(2000, seed=5))
    assert not same(scene, sample_scene(2000, seed=6))
    assert not scene.cleaned()[1], "nothing in it needs cleaning"
    norms = np.linalg.norm(scene.quats, axis=1)
    assert norms.std() > 0.1, "quaternions are not normalised, as in trained scenes"
    assert 0.4 < (scene.alphas() > 0.9).mean() < 0.7
    assert 0.03 < (scene.alphas() < 0.05).mean() < 0.3
    bands = [np.abs(scene.shN[:, first:last]).mean() for first, last in ((0, 3), (3, 8), (8, 15))]
    assert bands == sorted(bands, reverse=True)
    ratio = np.sort(scene.scales, axis=1)
    assert np.median(ratio[:, 1] - ratio[:, 0]) > np.log(2), "splats are flat"
    with pytest.raises(ParameterError):
        sample_scene(-1)


def test_python_in_the_readme_runs(small_files, tmp_path, monkeypatch, capsys):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code) == 1
    shutil.copy(small_files["ply"], tmp_path / "scene.ply")
    for k in range(11):
        (tmp_path / "frames").mkdir(exist_ok=True)
        shutil.copy(small_files["ply"], tmp_path / "frames" / f"{k}.ply")
    monkeypatch.chdir(tmp_path)
    exec(compile(code[0], "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_bytes_like_sources(lossy):
    assert same(api.decompress(bytearray(lossy)), api.decompress(lossy))
    with api.open(io.BytesIO(lossy).getvalue()) as scene:
        assert scene.num_gaussians > 0


def test_damaged_lossless_block_is_named_with_its_place(small_files, tmp_path):
    """A checksum proves nothing about intent: a resealed file with half a block names that block and its offset."""
    with api.open(small_files["lossless"]) as scene:
        container = scene.container
        chunks = [Chunk(e.type, container.read(e), e.critical, e.level, e.tile, e.count) for e in container.chunks]
        count = container.num_gaussians
    cut = [replace(c, payload=c.payload[: len(c.payload) // 2]) if c.type == "COLS" else c for c in chunks]
    path = tmp_path / "cut.splc"
    with path.open("wb") as file:
        write_container(file, cut, num_gaussians=count, features=[Feature("lossless-1")])
    with pytest.raises(SplatCodecError) as caught:
        api.decompress(path)
    with Container.open(path) as container:
        entry = container.one("COLS")
    assert caught.value.chunk == entry.label
    assert entry.offset <= caught.value.offset < entry.offset + entry.length + 1
    assert caught.value.file == str(path)
