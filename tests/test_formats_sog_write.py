"""Writing SOG: that choices are the cheapest ones, that files hold what was asked, and that others can read them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splatcodec import formats
from splatcodec.errors import SplatCodecWarning
from splatcodec.formats import WriteOptions, _kmeans, _quantize, _sog_encode
from splatcodec.formats import _sog_kernels as kernels
from splatcodec.formats._webp import decode_webp, encode_webp, webp_size
from splatcodec.gaussians import SH_C0, Gaussians, unit_quats
from splatcodec.metrics.compare import compare
from splatcodec.sample import sample_scene

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture(scope="module")
def scene() -> Gaussians:
    return sample_scene(1500)


def save(gaussians: Gaussians, path: Path, **options) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        return formats.write(gaussians, path, overwrite=True, options=WriteOptions(**options))


def passed_through(gaussians: Gaussians, tmp_path: Path, **options) -> Gaussians:
    save(gaussians, tmp_path / "scene.sog", **options)
    return formats.read(tmp_path / "scene.sog")


def nearest(copy: Gaussians, scene: Gaussians) -> np.ndarray:
    """For each Gaussian of the copy, the row of the scene with the nearest position and colour."""
    one = np.concatenate([copy.means, 0.1 * copy.sh0[:, 0]], 1).astype(float)
    two = np.concatenate([scene.means, 0.1 * scene.sh0[:, 0]], 1).astype(float)
    return np.square(one[:, None] - two[None]).sum(2).argmin(1)


def covariances(gaussians: Gaussians) -> np.ndarray:
    turned = _sog_encode.rotations(unit_quats(gaussians.quats).astype(float))
    half = turned * np.exp(gaussians.scales.astype(float))[:, None]
    return half @ half.transpose(0, 2, 1)


# ------------------------------------------------------------------------------------------------------ what is held


@pytest.mark.parametrize("degree", range(4))
def test_usual_precision(tmp_path, scene, degree):
    scene = scene.with_sh_degree(degree)
    copy = passed_through(scene, tmp_path)
    assert (len(copy), copy.sh_degree) == (len(scene), degree)
    assert compare(scene, copy, num_views=6, size_px=160).psnr_db > 48
    rows = nearest(copy, scene)
    assert len(np.unique(rows)) == len(scene)
    original = scene.selected(rows)
    assert np.abs(copy.alphas() - original.alphas()).max() < 0.06
    assert np.abs(copy.sh0 - original.sh0).max() * SH_C0 < 0.1
    moved = np.abs(copy.means - original.means).max(1) / np.exp(original.scales.max(1))
    assert moved.max() < 0.3
    # Axes may have other names, but ellipsoids are the same.
    size = np.trace(covariances(original), axis1=1, axis2=2)
    apart = np.abs(covariances(copy) - covariances(original)).max((1, 2)) / size
    assert np.quantile(apart, 0.99) < 0.1
    assert apart.max() < 0.3


@pytest.mark.parametrize("quality", [40.0, 70.0])
def test_quality_is_met(tmp_path, scene, quality):
    copy = passed_through(scene, tmp_path, quality=quality)
    found = compare(scene, copy, num_views=12, size_px=192).psnr_db
    assert found == pytest.approx(25 + 0.3 * quality, abs=2.0)


def test_what_a_quality_leaves_out_is_said(tmp_path, scene):
    losses = save(scene, tmp_path / "scene.sog", quality=30)
    kept = len(formats.read(tmp_path / "scene.sog"))
    assert kept < len(scene)
    left_out = [int(loss.split()[0]) for loss in losses if "left out" in loss]
    assert sum(left_out) == len(scene) - kept


def test_bundle_and_folder(tmp_path, scene):
    save(scene, tmp_path / "scene.sog")
    save(scene, tmp_path / "folder" / "meta.json")
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        assert archive.namelist()[0] == "meta.json"
        for info in archive.infolist():
            assert archive.read(info) == (tmp_path / "folder" / info.filename).read_bytes()
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert (info.compress_type == zipfile.ZIP_STORED) == info.filename.endswith(".webp")
        meta = json.loads(archive.read("meta.json"))
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == sorted(archive.namelist())
    assert meta["version"] == 2
    assert meta["count"] == len(scene)
    assert meta["means"]["files"] == ["means_l.webp", "means_u.webp"]
    assert meta["shN"]["files"] == ["shN_centroids.webp", "shN_labels.webp"]
    assert meta["shN"]["bands"] == scene.sh_degree
    for group in ("scales", "sh0", "shN"):
        assert len(meta[group]["codebook"]) == 256
        assert meta[group]["codebook"] == sorted(meta[group]["codebook"])
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        images = {n: Image.open(io.BytesIO(archive.read(n))) for n in archive.namelist() if n.endswith(".webp")}
    assert images["shN_centroids.webp"].width == 960
    assert {images[n].size for n in images if n != "shN_centroids.webp"} == {images["quats.webp"].size}
    assert images["quats.webp"].width % 4 == 0


def test_metadata_comes_back(tmp_path, scene):
    facts = {"antialiased": True, "up": [0.0, 1.0, 0.0], "comments": ["a"], "sog": {"version": 1}, "spz": {}}
    few = scene.selected(slice(0, 20))
    copy = passed_through(few.replaced(metadata=facts), tmp_path)
    assert {k: copy.metadata[k] for k in ("antialiased", "up", "comments")} == {
        k: facts[k] for k in ("antialiased", "up", "comments")
    }
    assert copy.metadata["sog"]["version"] == 2
    assert "spz" not in copy.metadata
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        meta = json.loads(archive.read("meta.json"))
    assert (meta["model"], meta["antialias"]) == ("antialiased", True)
    losses = save(few.replaced(metadata={"odd": float("nan")}), tmp_path / "b.sog")
    assert "metadata dropped: odd" in losses


# --------------------------------------------------------------------------------------------------------- odd scenes


def test_no_gaussians(tmp_path):
    for degree in (0, 3):
        assert len(passed_through(Gaussians.empty(degree), tmp_path)) == 0


@pytest.mark.parametrize("degree", [0, 2])
def test_one_gaussian_is_exact_to_the_format(tmp_path, rng, degree):
    scene = Gaussians(
        means=[[1.0, -2.0, 300.0]], quats=[[2.0, -0.3, 0.5, 1.0]], scales=[[-3.0, -4.0, 1.0]], opacities=[1.0],
        sh0=rng.normal(size=(1, 1, 3)), shN=rng.normal(size=(1, (degree + 1) ** 2 - 1, 3)),
    )  # fmt: skip
    copy = passed_through(scene, tmp_path)
    quats, scales = _sog_encode.nearest_axes(copy, scene)
    np.testing.assert_allclose(copy.means, scene.means, rtol=1e-6)
    np.testing.assert_allclose(quats, unit_quats(scene.quats), atol=0.01)
    np.testing.assert_allclose(scales, scene.scales, atol=1e-4)
    np.testing.assert_allclose(copy.alphas(), scene.alphas(), atol=0.002)
    np.testing.assert_allclose(copy.sh0, scene.sh0, atol=1e-3)
    np.testing.assert_allclose(copy.shN, scene.shN, atol=1e-3)


def test_equal_gaussians(tmp_path, scene):
    copy = passed_through(scene.selected(np.zeros(70, int)), tmp_path)
    assert len(copy) == 70
    for name in ("means", "quats", "scales", "sh0", "shN", "opacities"):
        assert np.ptp(getattr(copy, name), axis=0).max() == 0, name


def test_outliers_do_not_cost_the_others(tmp_path, scene):
    """One value far away must not take the levels of a codebook from those where the rest are."""
    sh0, scales, shN = scene.sh0.copy(), scene.scales.copy(), scene.shN.copy()
    sh0[3], scales[5, 0], shN[7, 2] = 1e6, -200.0, -1e5
    copy = passed_through(scene.replaced(sh0=sh0, scales=scales, shN=shN), tmp_path)
    rest = np.ones(len(scene), bool)
    rest[[3, 5, 7]] = False
    rows = nearest(copy, scene.replaced(sh0=sh0))
    kept = rest[rows]
    assert np.abs(copy.sh0[kept] - scene.sh0[rows[kept]]).max() * SH_C0 < 0.1
    _, renamed = _sog_encode.nearest_axes(copy.selected(kept), scene.selected(rows[kept]))
    assert np.quantile(np.abs(renamed - scene.scales[rows[kept]]), 0.95) < 0.2
    assert copy.sh0.max() == pytest.approx(1e6, rel=0.01)


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e30])
def test_any_extent(tmp_path, scene, scale):
    large = scene.replaced(means=scene.means * np.float32(scale), scales=scene.scales + np.float32(np.log(scale)))
    copy = passed_through(large, tmp_path)
    assert len(copy) == len(scene)
    assert np.isfinite(copy.means).all()
    if scale > 1:  # the logarithm's steps, in parts of the range
        extent = np.ptp(large.means.astype(float))
        assert np.abs(np.sort(copy.means[:, 0]) - np.sort(large.means[:, 0])).max() < 0.01 * extent


def test_what_cannot_be_drawn_is_named(tmp_path, scene):
    means, opacities, scales = scene.means.copy(), scene.opacities.copy(), scene.scales.copy()
    means[0], means[1, 1], opacities[2], scales[3, 0], opacities[4] = np.nan, np.inf, np.nan, -np.inf, np.inf
    means[5, 2] = 3e38
    losses = save(scene.replaced(means=means, opacities=opacities, scales=scales), tmp_path / "scene.sog")
    text = " ".join(losses)
    assert "3 with non-finite values dropped" in text
    assert "1 infinite opacities clamped" in text
    assert "1 vanishing scales clamped" in text
    assert "positions of 1 Gaussians clamped" in text
    copy = formats.read(tmp_path / "scene.sog")
    assert len(copy) == len(scene) - 3
    for name in ("means", "quats", "scales", "sh0", "shN", "opacities"):
        assert np.isfinite(getattr(copy, name)).all(), name


def test_colours_survive_under_alpha_0(rng):
    pixels = rng.integers(0, 256, (16, 20, 4), np.uint8)
    pixels[::2, :, 3] = 0
    content = encode_webp(pixels)
    assert webp_size(content, "x") == (20, 16)
    np.testing.assert_array_equal(decode_webp(content, "x", (20, 16)), pixels)


# ------------------------------------------------------------------------------------------------ choices are cheapest


def tables(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.exponential(6.0, (rows, 256))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 3), st.booleans())
def test_bytes_are_the_cheapest(seed, log_price, repeated):
    rng = np.random.default_rng(seed)
    book = np.sort(rng.normal(size=256))
    if repeated:
        book[100:] = book[100]
    values, weights = rng.normal(size=50) * 1.5, rng.exponential(1.0, 50)
    bits, price = tables(rng, 1)[0], 10.0**log_price
    codes = np.zeros(50, np.uint8)
    kernels.choose_bytes(0, 50, values, weights, price, book, bits, codes)
    costs = weights[:, None] * (values[:, None] - book) ** 2 + price * bits
    np.testing.assert_allclose(costs[np.arange(50), codes], costs.min(1), rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 1))
def test_colors_are_the_cheapest(seed, log_price):
    rng = np.random.default_rng(seed)
    book, price = np.linspace(-2, 2, 256), 10.0**log_price
    values, weights = rng.normal(size=(12, 1)) + 0.2 * rng.normal(size=(12, 3)), rng.exponential(1.0, 12)
    bits = tables(rng, 3)
    codes = np.zeros((12, 3), np.uint8)

    def cost(i: int, codes: np.ndarray, differences: bool) -> float:
        r, g, b = codes.astype(int)
        base = g if differences else 0
        error = weights[i] * ((values[i] - book[[r, g, b]]) ** 2).sum()
        return float(error + price * (bits[0, (r - base) % 256] + bits[1, g] + bits[2, (b - base) % 256]))

    kernels.choose_colors(0, 12, values, weights, price, book, bits, False, codes)
    for i in range(12):
        best = [np.argmin(weights[i] * (values[i, k] - book) ** 2 + price * bits[k]) for k in range(3)]
        assert cost(i, codes[i], False) == pytest.approx(cost(i, np.array(best), False))
    kernels.choose_colors(0, 12, values, weights, price, book, bits, True, codes)
    for i in range(12):
        # The best of all reds and blues, and of the greens near to the one that is cheapest alone.
        alone = np.argmin(weights[i] * (values[i, 1] - book) ** 2 + price * bits[1])
        least = np.inf
        for green in range(max(alone - 2, 0), min(alone + 3, 256)):
            channels = [
                np.argmin(weights[i] * (values[i, k] - book) ** 2 + price * bits[k][(np.arange(256) - green) % 256])
                for k in (0, 2)
            ]
            least = min(least, cost(i, np.array([channels[0], green, channels[1]]), True))
        assert cost(i, codes[i], True) == pytest.approx(least)


def test_positions_without_a_price_are_the_nearest(rng):
    values = rng.uniform(0, 65535, (400, 3))
    values[:3] = [[0, 0, 0], [65535, 65535, 65535], [65534.6, 0.4, 255.5]]
    forms = np.zeros((400, 6))
    forms[:, [0, 3, 5]] = rng.exponential(1.0, (400, 3)) + 1e-6
    codes, errors = np.zeros((400, 3), np.uint16), np.zeros(400)
    bits = np.full((3, 256), 8.0)
    kernels.choose_positions(0, 400, values, forms, 0.0, bits, 1.0, codes, errors)
    assert np.abs(codes - values).max() <= 0.5
    np.testing.assert_allclose(errors, (forms[:, [0, 3, 5]] * (codes - values) ** 2).sum(1), rtol=1e-9)
    # With a price, fewer low bytes are used, and errors are as told.
    kernels.choose_positions(0, 400, values, forms, 50.0, tables(rng, 3), 1.0, codes, errors)
    np.testing.assert_allclose(errors, (forms[:, [0, 3, 5]] * (codes - values) ** 2).sum(1), rtol=1e-9)
    assert np.abs(codes - values).max() > 1


def test_errors_of_positions_make_good_for_each_other(rng):
    """With axes that work together, codes chosen one after another beat independent ones."""
    values = rng.uniform(1000, 60000, (2000, 3))
    axis = np.array([1.0, 2.0, -1.5])
    form = np.outer(axis, axis) + 0.02 * np.eye(3)
    forms = np.tile(form[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]], (2000, 1))
    codes, errors = np.zeros((2000, 3), np.uint16), np.zeros(2000)
    kernels.choose_positions(0, 2000, values, forms, 0.0, np.full((3, 256), 8.0), 0.0, codes, errors)

    def error(codes: np.ndarray) -> float:
        missed = codes - values
        return float(np.einsum("na,ab,nb->", missed, form, missed))

    assert error(codes) == pytest.approx(errors.sum(), rel=1e-9)
    assert error(codes) < 0.8 * error(np.rint(values))


def choose_rotations(quats: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quaternions as they are decoded, and the order of axes."""
    count = len(quats)
    ones, bits = np.ones(count), np.full((3, 256), 8.0)
    turns, axes = _sog_encode._turns()
    codes, orders, errors = np.zeros((count, 3), np.uint8), np.zeros((count, 3), np.int64), np.zeros(count)
    kernels.choose_rotations(
        0, count, quats, scales, np.exp(2 * scales), ones, np.ones((count, 3)), 0.6, 1e4, 0.0, turns, axes, bits,
        np.linspace(-8, 2, 256), bits, codes, orders, errors,
    )  # fmt: skip
    kept = (codes / 127.5 - 1) * np.sqrt(0.5)
    largest = np.sqrt(1 - (kept**2).sum(1))
    return np.concatenate([largest[:, None], kept], 1), orders


def test_rotations_keep_the_ellipsoid(rng):
    quats = unit_quats(rng.normal(size=(500, 4)).astype(np.float32)).astype(float)
    quats[:4] = np.eye(4)
    quats[4:6] = [[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]]
    quats[6] = [0.5**0.5, 0, 0, -(0.5**0.5)]
    scales = rng.uniform(-4, 0, (500, 3))
    found, orders = choose_rotations(quats, scales)
    assert (found[:, :1] >= np.abs(found[:, 1:]) - 0.03).all()
    assert (np.sort(orders, 1) == [0, 1, 2]).all()
    ones = np.ones(500)
    base = Gaussians(np.zeros((500, 3)), quats, scales, ones, np.zeros((500, 1, 3)))
    copy = base.replaced(quats=found, scales=np.take_along_axis(scales, orders, 1).astype(np.float32))
    # Half a step of each component turns by at most 0.0048 to either side, most where a long axis sweeps.
    half = np.exp(-scales)[:, :, None] * _sog_encode.rotations(quats).transpose(0, 2, 1)
    white = half @ covariances(copy) @ half.transpose(0, 2, 1) - np.eye(3)
    ratio = np.exp(np.ptp(scales, axis=1))
    assert (np.abs(white).max((1, 2)) < 0.012 * ratio + (0.012 * ratio) ** 2).all()
    quats_again, scales_again = _sog_encode.nearest_axes(copy, base)
    np.testing.assert_allclose(scales_again, scales, atol=1e-6)
    # A turn that shows little may be larger, so that those that show can be smaller.
    assert np.quantile(np.abs(quats_again - quats).max(1), 0.95) < 0.01


def test_turns_are_the_24_of_a_cube():
    turns, axes = _sog_encode._turns()
    matrices = np.rint(_sog_encode.rotations(turns)).astype(int)
    assert len(np.unique(matrices.reshape(24, 9), axis=0)) == 24
    np.testing.assert_allclose(_sog_encode.rotations(turns), matrices, atol=1e-12)
    for matrix, axis in zip(matrices, axes):
        assert [abs(matrix[axis[k], k]) for k in range(3)] == [1, 1, 1]


# ----------------------------------------------------------------------------------------------- codebooks, palettes


def test_few_values_are_held_exactly(rng):
    values = rng.choice(rng.normal(size=200), 5000)
    book = _quantize.codebook_choices(values, np.ones(5000))[0]
    assert np.abs(values[:, None] - book).min(1).max() < 1e-12


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 300, 20_000]), st.booleans())
def test_codebooks_ascend_and_span(seed, count, heavy):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(1.5, count) if heavy else rng.normal(size=count)
    weights = rng.exponential(1.0, count) + 1e-9
    choices = _quantize.codebook_choices(values, weights)
    for book in choices:
        assert book.shape == (256,)
        assert (np.diff(book) >= 0).all()
    errors = [(weights * np.abs(values[:, None] - book).min(1) ** 2).sum() for book in choices]
    assert errors[0] <= min(errors) * 1.001 + 1e-12
    if count == 20_000 and not heavy:
        # The best fixed-rate quantizer of a normal distribution: sqrt(3) pi / 2 of the distortion at high rate.
        assert errors[0] / weights.sum() < 1.15 * np.sqrt(3) * np.pi / 2 / 256**2


def fit_palette(rows: np.ndarray, weights: np.ndarray, price: float, **options) -> _kmeans.Palette:
    return _kmeans.fit_palette(lambda places: (rows[places], weights[places]), len(rows), price, **options)


def test_palette_of_few_rows_is_exact(rng):
    entries = rng.normal(size=(40, 9)).astype(np.float32)
    labels = rng.integers(0, 40, 600)
    palette = fit_palette(entries[labels], np.ones(600), 1e-7)
    assert len(palette.codes) == 40
    assert np.abs(palette.entries.reshape(40, 9)[palette.labels] - entries[labels]).max() < 0.03


@pytest.mark.parametrize("price", [1e-6, 1e-3, 0.1, 100.0])
@pytest.mark.parametrize("size", [9, 45])
def test_palette_entries_pay(rng, price, size):
    rows = (rng.normal(size=(900, size)) * rng.exponential(0.3, (900, 1))).astype(np.float32)
    weights = rng.exponential(1.0, 900)
    palette = fit_palette(rows, weights, price)
    used = np.bincount(palette.labels, minlength=len(palette.codes))
    assert len(used) == len(palette.codes)
    assert (used > 0).all()
    assert palette.codes.shape[1:] == (size // 3, 3)
    missed = (palette.entries[palette.labels].reshape(900, size) - rows) ** 2
    if price == 1e-6:
        assert len(used) > 600
    if price == 100.0:
        assert len(used) == 1
    # No worse than one entry for all.
    alone = ((rows - np.average(rows, axis=0, weights=weights)) ** 2 * weights[:, None]).sum()
    assert (missed * weights[:, None]).sum() <= alone * 1.01


def test_palette_has_at_most_as_many_entries_as_asked(rng):
    rows = rng.normal(size=(700, 9)).astype(np.float32)
    for most in (1, 64, 333):
        palette = fit_palette(rows, np.ones(700), 1e-9, max_entries=most)
        assert len(palette.codes) <= most
        assert len(palette.codes) > 0.9 * most


def test_palette_of_many_rows(rng, monkeypatch):
    """Entries found from a part of the rows serve all about as well, whatever the blocks."""
    rows = (rng.normal(size=(60, 24))[rng.integers(0, 60, 3000)] + 0.1 * rng.normal(size=(3000, 24))).astype(np.float32)
    weights = rng.exponential(1.0, 3000) + 0.01

    def error(palette: _kmeans.Palette) -> float:
        assert palette.labels.min() == 0
        assert (np.bincount(palette.labels) > 0).all()
        assert len(np.unique(palette.labels)) == len(palette.codes) == len(palette.masses)
        missed = palette.entries[palette.labels].reshape(rows.shape) - rows
        return float((weights[:, None] * missed**2).sum())

    whole = fit_palette(rows, weights, 0.01)
    monkeypatch.setattr(_kmeans, "_MOST_FITTED", 1500)
    monkeypatch.setattr(_kmeans, "_ROWS", 700)
    part = fit_palette(rows, weights, 0.01)
    np.testing.assert_allclose(part.masses.sum(), weights.sum())
    assert error(part) < 1.5 * error(whole) + 0.01 * float((weights[:, None] * rows**2).sum())
    monkeypatch.setattr(_kmeans, "_ROWS", 333)
    np.testing.assert_array_equal(part.labels, fit_palette(rows, weights, 0.01).labels)
    # One entry for all, and rows that are all the same.
    assert len(fit_palette(rows, weights, 1e9).codes) == 1
    assert len(fit_palette(np.ones_like(rows), weights, 1e-9).codes) == 1


def test_palette_is_about_as_good_as_k_means(rng):
    from sklearn.cluster import KMeans

    centers = rng.normal(size=(60, 12))
    rows = (centers[rng.integers(0, 60, 1500)] + 0.4 * rng.normal(size=(1500, 12))).astype(np.float32)
    palette = fit_palette(rows, np.ones(1500), 0.5)
    count = len(palette.codes)
    # Entries are rounded as far as the price lets them: it is the clusters that are compared.
    members = np.eye(count)[palette.labels]
    ours = ((rows - members @ (members.T @ rows / members.sum(0)[:, None])) ** 2).sum()
    theirs = KMeans(count, n_init=1, max_iter=10, random_state=0).fit(rows).inertia_
    assert 40 < count < 400
    assert ours < 1.12 * theirs


def test_most_near_neighbors_are_the_nearest(rng):
    rows = rng.normal(size=(1200, 6)).astype(np.float32)
    rows = rows[np.argsort(rows[:, 0])]
    neighbors, distances = np.empty((1200, 12), np.int32), np.empty((1200, 12), np.float32)
    kernels.nearest_neighbors(rows, 4, neighbors, distances)
    true = np.square(rows[:, None] - rows[None]).sum(2)
    np.fill_diagonal(true, np.inf)
    best = np.argsort(true, 1)[:, :12]
    found = np.mean([len(set(a) & set(b)) for a, b in zip(neighbors, best)]) / 12
    assert found > 0.85
    np.testing.assert_allclose(distances, np.take_along_axis(true, neighbors.astype(int), 1), rtol=1e-4)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert all(len(set(row)) == 12 for row in neighbors.tolist())


# ---------------------------------------------------------------------------------------------------------- by others


def test_splat_transform_reads_the_same(tmp_path, scene):
    import peers

    problem = peers.why_not("sog")
    if problem is not None:
        pytest.skip(f"splat-transform: {problem}")
    for degree, antialiased in ((0, True), (1, None), (3, None)):
        facts = {} if antialiased is None else {"antialiased": antialiased}
        copy = passed_through(scene.with_sh_degree(degree).replaced(metadata=facts), tmp_path)
        command = [peers._node(), peers._splat_transform_cli(), "-q", "-w", tmp_path / "scene.sog", tmp_path / "a.ply"]
        subprocess.run([str(part) for part in command], check=True, timeout=60, capture_output=True)
        theirs = formats.read(tmp_path / "a.ply")
        for name in ("means", "scales", "opacities", "sh0", "shN"):
            np.testing.assert_array_equal(getattr(theirs, name), getattr(copy, name), err_msg=name)
        np.testing.assert_allclose(theirs.quats, copy.quats, atol=1e-6)


def test_bench_measures_a_scene(tmp_path, scene, monkeypatch):
    import sog_bench

    points = [{"psnr_db": db, "size_bytes": size} for db, size in ((50.0, 4000), (40.0, 1000), (45.0, 2000))]
    assert sog_bench._at(points, 47.5) == pytest.approx(np.sqrt(2000 * 4000))
    assert sog_bench._at(points, 50.1) is None
    formats.write(scene.selected(slice(0, 300)), tmp_path / "a.ply")
    monkeypatch.setattr(sog_bench, "QUALITIES", (50.0,))
    row = sog_bench.measure(tmp_path / "a.ply", num_views=2, time_theirs=False, log=lambda text: None)
    assert [point["quality"] for point in row["ours"]] == [None, 50.0]
    assert row["ours"][0]["psnr_db"] > row["ours"][1]["psnr_db"] > 20
    assert row["our_cold_s"] > 0
    assert row.get("difference_read_by_them", 0) < 1e-5
    lines = sog_bench.table([row])
    assert len({line.count("|") for line in lines}) == 1
