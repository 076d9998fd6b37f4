"""What every registered format owes, found without a list: bounds it states, losses it names, damage it survives."""

from __future__ import annotations

import errno
import itertools
import os
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from splatcodec import formats
from splatcodec.errors import ParameterError, SplatCodecError, SplatCodecWarning, UnsupportedError
from splatcodec.formats import ErrorBounds, WriteOptions
from splatcodec.formats._losses import FILE_FACTS
from splatcodec.gaussians import SH_C0, Gaussians, unit_quats
from splatcodec.limits import Limits

FORMATS = formats.formats()
WRITTEN = [(name, version) for name, fmt in FORMATS.items() if fmt.can_write for version in fmt.versions or (None,)]
VECTORS = Path(__file__).parents[2] / "shared" / "formats" / "vectors"
LIMITS = Limits(max_gaussians=1 << 18, max_array_bytes=32 << 20, max_image_pixels=1 << 20)
MB = 1 << 20
every_format = pytest.mark.parametrize(("name", "version"), WRITTEN)


def target(folder: Path, name: str) -> Path:
    """Where a file of the format goes; for one that is only a folder, its index."""
    fmt = FORMATS[name]
    if fmt.write is None:
        return folder / "scene" / str(fmt.index_name)
    return folder / f"scene{fmt.suffixes[0]}"


def written(gaussians: Gaussians, path: Path, name: str, overwrite: bool = False, **options) -> list[str]:
    """Write and return the losses; each must have been a warning, too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = formats.write(gaussians, path, format=name, overwrite=overwrite, options=WriteOptions(**options))
    assert [str(w.message) for w in caught] == [f"{FORMATS[name].title}: {loss}" for loss in losses]
    assert all(issubclass(w.category, SplatCodecWarning) for w in caught)
    return losses


def read_quietly(path: Path, name: str | None = None, limits: Limits = LIMITS) -> Gaussians:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        return formats.read(path, format=name, limits=limits)


def grid_scene(count: int, degree: int = 3, seed: int = 5) -> Gaussians:
    """Gaussians far enough apart to be told by their positions, all values where every format has room."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(count ** (1 / 3)))
    cells = np.stack(np.unravel_index(rng.permutation(side**3)[:count], (side,) * 3), axis=1)
    shN = rng.uniform(-0.9, 0.9, (count, (degree + 1) ** 2 - 1, 3)) * np.exp(rng.normal(-2, 1, (count, 1, 1))).clip(
        0, 1
    )
    return Gaussians(
        means=cells * 1.5 - 4 + rng.uniform(-0.3, 0.3, (count, 3)),
        quats=rng.normal(size=(count, 4)) * np.exp(rng.normal(size=(count, 1))),
        scales=rng.uniform(-8, 1, (count, 3)),
        opacities=rng.uniform(-5, 5, count),
        sh0=rng.uniform(-1.7, 1.7, (count, 1, 3)),
        shN=shN,
    )


def matched(scene: Gaussians, reference: Gaussians) -> Gaussians:
    """`scene` in the order of `reference`."""
    distance = np.abs(reference.means[:, None].astype(float) - scene.means[None]).sum(axis=2)
    order = distance.argmin(axis=1)
    assert sorted(order) == list(range(len(reference)))
    return scene.selected(order)


def same_axes(scene: Gaussians, reference: Gaussians) -> Gaussians:
    """`scene` with the axes of each ellipsoid named, of all 24 ways, as is nearest to `reference`."""
    turns = np.array([q for q in itertools.product((-1, 0, 1), repeat=4) if sum(map(abs, q)) in (1, 2, 4)], float)
    turns /= np.linalg.norm(turns, axis=1, keepdims=True)
    wanted, have = (unit_quats(g.quats).astype(float) for g in (reference, scene))
    w, x, y, z = have[:, None, :].transpose(2, 0, 1)
    a, b, c, d = turns.T[:, None]
    products = np.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ],
        axis=-1,
    )  # (N, turns, 4)
    best = (products * wanted[:, None]).sum(axis=2).argmax(axis=1)
    quats = np.take_along_axis(products, best[:, None, None], axis=1)[:, 0]
    a, b, c, d = turns[best].T
    # Column j of the turn's matrix: where its new axis j lies among the old ones.
    matrix = np.array(
        [
            [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
        ]
    )
    old = np.abs(matrix).argmax(axis=0).T
    return scene.replaced(quats=quats, scales=np.take_along_axis(scene.scales, old, axis=1))


def largest_errors(scene: Gaussians, reference: Gaussians) -> ErrorBounds:
    """What became of the values, in the terms of the bounds."""
    scene = same_axes(scene, reference)
    a, b = unit_quats(reference.quats).astype(float), unit_quats(scene.quats).astype(float)
    quats = np.minimum(np.abs(a - b).max(axis=1), np.abs(a + b).max(axis=1))
    common = min(scene.shN.shape[1], reference.shN.shape[1])

    def error(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.abs(x.astype(float) - y).max(initial=0.0))

    return ErrorBounds(
        means=error(scene.means, reference.means),
        scales=error(scene.scales, reference.scales),
        alphas=error(scene.alphas(), reference.alphas()),
        colours=SH_C0 * error(scene.sh0, reference.sh0),
        quats=float(quats.max(initial=0.0)),
        shN=error(scene.shN[:, :common], reference.shN[:, :common]),
        max_sh_degree=scene.sh_degree,
    )


# --------------------------------------------------------------------------------------------------- what comes back


@every_format
@pytest.mark.parametrize("degree", range(4))
def test_round_trip_within_the_stated_bounds(tmp_path, name, version, degree):
    scene = grid_scene(300, degree)
    fmt = FORMATS[name]
    path = target(tmp_path, name)
    options = WriteOptions(version=version)
    losses = written(scene, path, name, version=version)
    assert formats.detect(path).name == name
    again = read_quietly(path)
    assert len(again) == len(scene)
    errors = largest_errors(matched(again, scene), scene)
    bounds = ErrorBounds() if fmt.error_bounds is None else fmt.error_bounds(scene, options)
    for attribute in ("means", "scales", "alphas", "colours", "quats", "shN"):
        # What float32 arithmetic may add.
        slack = 2e-6 * (10 if attribute == "means" else 1)
        assert getattr(errors, attribute) <= getattr(bounds, attribute) * (1 + 1e-4) + slack, attribute
    assert errors.max_sh_degree == min(degree, bounds.max_sh_degree)
    if degree > bounds.max_sh_degree:
        assert any("harmonics" in loss for loss in losses)
    if bounds != ErrorBounds():
        assert losses, "a format that rounds says so"


@every_format
def test_bounds_are_not_idle(tmp_path, name, version):
    """A bound ten times the error seen would hide a mistake."""
    fmt = FORMATS[name]
    if fmt.error_bounds is None:
        return
    scene = grid_scene(300)
    path = target(tmp_path, name)
    written(scene, path, name, version=version)
    errors = largest_errors(matched(read_quietly(path), scene), scene)
    bounds = fmt.error_bounds(scene, WriteOptions(version=version))
    for attribute in ("means", "scales", "alphas", "colours", "quats"):
        assert getattr(bounds, attribute) <= 10 * getattr(errors, attribute) + 1e-6, attribute


@every_format
@pytest.mark.parametrize("degree", [0, 3])
def test_one_gaussian_and_none(tmp_path, name, version, degree):
    for count in (1, 0):
        path = target(tmp_path / str(count), name)
        path.parent.mkdir(parents=True, exist_ok=FORMATS[name].write is not None)
        if FORMATS[name].write is None:
            path.parent.rmdir()
        refused = None
        try:
            written(grid_scene(1, degree).selected(slice(0, count)), path, name, version=version)
        except ParameterError as error:
            refused = str(error)
        if refused is None:
            assert len(read_quietly(path)) == count
        else:
            assert (count, path.exists()) == (0, False)
            assert "empty scene" in refused


HUGE = 3e38


@every_format
def test_huge_values_come_back_or_are_named(tmp_path, name, version):
    scene = grid_scene(40)
    means, scales, opacities = scene.means.copy(), scene.scales.copy(), scene.opacities.copy()
    means[0], means[1, 2] = HUGE, -HUGE
    scales[2], scales[3, 1], scales[4] = 80, -80, -HUGE
    opacities[5], opacities[6], opacities[7], opacities[8] = HUGE, -HUGE, np.inf, -np.inf
    sh0, shN, quats = scene.sh0.copy(), scene.shN.copy(), scene.quats.copy()
    sh0[9], shN[10], quats[11], quats[12], quats[13] = 1e9, -1e9, HUGE, 1e-38, 0
    scene = scene.replaced(means=means, scales=scales, opacities=opacities, sh0=sh0, shN=shN, quats=quats)
    path = target(tmp_path, name)
    try:
        losses = written(scene, path, name, version=version)
    except ParameterError:
        assert not path.exists()
        return
    again = read_quietly(path)
    for attribute in ("means", "quats", "sh0", "shN"):
        assert np.isfinite(getattr(again, attribute)).all(), attribute
    assert len(again) == 40
    if FORMATS[name].error_bounds is not None:
        for what in ("harmonics", "colours"):
            values = (again.shN if what == "harmonics" else again.sh0).astype(float)
            # Within 1 % of 1e9, or said.
            assert np.abs(values).max(initial=0.0) > 0.99e9 or any(what in loss for loss in losses), what


@every_format
def test_what_cannot_be_drawn_is_named(tmp_path, name, version):
    scene = grid_scene(20)
    means = scene.means.copy()
    means[3, 0], means[5, 1] = np.nan, np.inf
    path = target(tmp_path, name)
    losses = written(scene.replaced(means=means), path, name, version=version)
    again = read_quietly(path)
    assert len(again) == 20 or any("2 with non-finite values dropped" in loss for loss in losses)
    assert len(again) in (18, 20)


@every_format
def test_side_arrays_and_metadata_come_back_or_are_named(tmp_path, name, version):
    facts = {
        "frame": "RDF",
        "antialiased": True,
        "up": [0.0, -1.0, 0.0],
        "background": [0.1, 0.2, 0.3],
        "camera": {"position": [1.0, 2.0, 3.0]},
        "unit_m": 0.5,
        "colour_space": "srgb",
        "comments": ["made by hand"],
        "something_else": 5,
    }
    scene = grid_scene(20).replaced(extras={"label": np.arange(20, dtype=np.int32)}, metadata=facts)
    path = target(tmp_path, name)
    losses = written(scene, path, name, version=version)
    again = read_quietly(path)
    if "label" in again.extras:
        order = np.argsort(again.extras["label"])
        np.testing.assert_allclose(again.means[order], scene.means, atol=0.01)
    else:
        assert any("label" in loss for loss in losses)
    for fact, value in facts.items():
        held = again.metadata.get(fact)
        # A format may keep other facts as comments.
        held = held[:1] if fact == "comments" and held else held
        assert held == value or any(fact in loss for loss in losses), fact
    assert set(again.metadata) <= set(facts) | FILE_FACTS


@every_format
def test_no_loss_is_named_of_what_comes_back(tmp_path, name, version):
    losses = written(grid_scene(20, 0), target(tmp_path, name), name, version=version)
    words = ("dropped", "clamped", "left out", "replaced")
    assert not [loss for loss in losses if any(word in loss for word in words)]


# ----------------------------------------------------------------------------------------------------------- options


@every_format
def test_bytes_depend_on_the_scene_alone(tmp_path, name, version):
    scene = grid_scene(500)
    contents = []
    for folder, threads in [("a", 1), ("b", 3)]:
        path = target(tmp_path / folder, name)
        path.parent.mkdir(parents=True)
        if FORMATS[name].write is None:
            path.parent.rmdir()
        written(scene, path, name, version=version, threads=threads)
        contents.append(dict(_files(tmp_path / folder)))
    assert contents[0] == contents[1]


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


@every_format
def test_quality_is_a_scale_or_refused(tmp_path, name, version):
    scene = grid_scene(400)
    scene = scene.replaced(opacities=np.where(np.arange(400) % 8 == 0, np.float32(-9), scene.opacities))
    sizes = []
    for quality in (10.0, 60.0, 95.0):
        path = target(tmp_path / str(quality), name)
        path.parent.mkdir(parents=True)
        if FORMATS[name].write is None:
            path.parent.rmdir()
        if not FORMATS[name].takes_quality:
            with pytest.raises(ParameterError, match="one quality only"):
                written(scene, path, name, version=version, quality=quality)
            continue
        losses = written(scene, path, name, version=version, quality=quality)
        assert any("50 Gaussians too faint to show" in loss for loss in losses)
        assert 0 < len(read_quietly(path)) <= 350
        sizes.append(sum(len(content) for _, content in _files(tmp_path / str(quality))))
    # Where the format can do no better, a higher quality changes little.
    assert all(worse <= 1.02 * better for worse, better in itertools.pairwise(sizes))
    assert not sizes or sizes[0] < sizes[-1]


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.can_write])
def test_unknown_versions_are_refused(tmp_path, name):
    with pytest.raises(UnsupportedError, match="version 77"):
        written(grid_scene(2), target(tmp_path, name), name, version=77)
    assert list(tmp_path.iterdir()) == []


def test_options_out_of_range():
    for options in ({"quality": -1}, {"quality": 100.5}, {"quality": float("nan")}, {"threads": 0}):
        with pytest.raises(ParameterError):
            WriteOptions(**options)


# ------------------------------------------------------------------------------------------------------------ damage


@every_format
def test_writing_is_atomic(tmp_path, monkeypatch, name, version):
    path = target(tmp_path, name)
    written(grid_scene(9), path, name, version=version)
    before = dict(_files(tmp_path))
    with pytest.raises(ParameterError, match="exists already"):
        written(grid_scene(8), path, name, version=version)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("splatcodec.files.os.fsync", full)
        with pytest.raises(SplatCodecError, match="No space left"):
            written(grid_scene(8), path, name, overwrite=True, version=version)
    assert dict(_files(tmp_path)) == before
    written(grid_scene(8), path, name, overwrite=True, version=version)
    assert len(read_quietly(path)) == 8
    assert len(os.listdir(tmp_path)) == 1


def _outcome(path: Path, name: str) -> Gaussians | SplatCodecError:
    """What reading gives, in bounded memory; another exception, or another warning, fails the test."""
    tracemalloc.start()
    try:
        return read_quietly(path, name)
    except SplatCodecError as error:
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 128 * MB


@every_format
def test_truncated(tmp_path, name, version):
    path = target(tmp_path, name)
    written(grid_scene(12), path, name, version=version)
    folder = path.parent if FORMATS[name].write is None else tmp_path
    for file, content in _files(folder):
        cuts = set(np.linspace(0, len(content) - 1, 60).astype(int)) | set(range(min(40, len(content))))
        for cut in sorted(cuts):
            (folder / file).write_bytes(content[:cut])
            result = _outcome(path, name)
            # Where the size of the file is its only header, a shorter one may be whole.
            whole = isinstance(result, Gaussians) and not FORMATS[name].has_magic and len(result) < 12
            assert whole or isinstance(result, SplatCodecError), (file, cut)
        (folder / file).write_bytes(content)
    assert len(read_quietly(path)) == 12


@every_format
def test_mutated(tmp_path, name, version):
    path = target(tmp_path, name)
    written(grid_scene(12), path, name, version=version)
    folder = path.parent if FORMATS[name].write is None else tmp_path
    rng = np.random.default_rng(8)
    for file, content in _files(folder):
        for round_ in range(150):
            damaged = bytearray(content)
            # The beginning, where the counts are, more often than the rest.
            reach = 128 if round_ % 3 else len(content)
            for at in rng.integers(0, min(reach, len(content)), rng.integers(1, 4)):
                damaged[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ (1 << rng.integers(8))])
            (folder / file).write_bytes(damaged)
            result = _outcome(path, name)
            assert isinstance(result, SplatCodecError) or len(result) < 1 << 18
        (folder / file).write_bytes(content)
    assert len(read_quietly(path)) == 12


# ----------------------------------------------------------------------------------------------------------- vectors


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the format vectors are not part of the repository")
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_vectors_survive_every_format_that_holds_them(tmp_path, name):
    """Each vector of each format, written in this format and read again, is what it was within the bounds."""
    fmt = FORMATS[name]
    suffixes = tuple(suffix for known in FORMATS.values() for suffix in known.suffixes)
    vectors = [path for path in sorted(VECTORS.iterdir()) if path.name.endswith(suffixes)]
    assert vectors
    for vector in vectors:
        scene = read_quietly(vector)
        assert len(scene) in (1, 5)
        if not fmt.can_write:
            continue
        path = target(tmp_path / vector.name, name)
        path.parent.mkdir(parents=True)
        if fmt.write is None:
            path.parent.rmdir()
        written(scene, path, name)
        again = read_quietly(path)
        assert len(again) == len(scene)
