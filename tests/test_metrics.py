import json
import math

import numpy as np
import pytest

from splatcodec.errors import ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.bd_rate import bd_rate, rate_at_psnr
from splatcodec.metrics.compare import compare
from splatcodec.metrics.psnr import covered_psnr_db, full_psnr_db, psnr_db
from splatcodec.metrics.ssim import image_ssim, ssim
from splatcodec.render.camera import look_at
from splatcodec.render.rendering import Rendering


def rendering(rgb, alpha):
    """A picture of colour `rgb` (not premultiplied), (H, W, 3) or one colour, with coverage `alpha` (H, W)."""
    alpha = np.asarray(alpha, np.float32)
    rgb = np.broadcast_to(np.asarray(rgb, np.float32), (*alpha.shape, 3))
    return Rendering(rgb * alpha[..., None], alpha)


def random_scene(count, seed=0):
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=rng.normal(size=(count, 3)),
        quats=rng.normal(size=(count, 4)),
        scales=-2 + 0.5 * rng.normal(size=(count, 3)),
        opacities=2 * rng.normal(size=count),
        sh0=rng.normal(size=(count, 1, 3)),
    )


def test_psnr_counts_covered_pixels_only():
    alpha = np.zeros((8, 8))
    alpha[:4, :4] = 1
    a, b = rendering(0.5, alpha), rendering(0.6, alpha)
    assert covered_psnr_db(a, b) == pytest.approx(20, abs=1e-4)
    assert full_psnr_db(a, b) == pytest.approx(20 + 10 * math.log10(4), abs=1e-4)


def test_paint_outside_the_silhouette_costs():
    alpha = np.zeros((8, 8))
    alpha[:4] = 1
    more = alpha.copy()
    more[4] = 0.06
    a, b = rendering(0.5, alpha), rendering(0.5, more)
    # 8 of 40 covered pixels are wrong by 0.06 * 0.5 on either background.
    assert covered_psnr_db(a, b) == pytest.approx(psnr_db(0.03**2 * 8 / 40), abs=1e-3)
    assert covered_psnr_db(b, a) == covered_psnr_db(a, b)
    more[4] = 0.04  # not covered: only the whole picture shows it
    b = rendering(0.5, more)
    assert covered_psnr_db(a, b) == 100
    assert full_psnr_db(a, b) == pytest.approx(psnr_db(0.02**2 * 8 / 64), abs=1e-3)


def test_the_worse_background_counts():
    whole, half = rendering(0.0, np.ones((4, 4))), rendering(0.0, np.full((4, 4), 0.5))
    # The same on black; on white black paint of half the coverage is grey.
    assert covered_psnr_db(whole, half) == pytest.approx(psnr_db(0.25), abs=1e-6)
    white, lesser = rendering(1.0, np.ones((4, 4))), rendering(1.0, np.full((4, 4), 0.5))
    assert covered_psnr_db(white, lesser) == pytest.approx(psnr_db(0.25), abs=1e-6)
    assert ssim(whole, half) < 0.5
    assert ssim(white, lesser) < 0.9


def test_pictures_are_clamped_and_capped():
    alpha = np.ones((4, 4))
    assert covered_psnr_db(rendering(1.0, alpha), rendering(7.0, alpha)) == 100
    assert covered_psnr_db(rendering(0.5, alpha), rendering(0.5 + 1e-6, alpha)) == 100
    assert covered_psnr_db(rendering(0.5, 0 * alpha), rendering(0.5, 0 * alpha)) == 100
    assert full_psnr_db(rendering(0.5, 0 * alpha), rendering(0.5, 0 * alpha)) == 100
    assert covered_psnr_db(rendering(0.0, alpha), rendering(1.0, alpha)) == 0


def test_pictures_of_different_size_are_refused():
    a, b = rendering(0.5, np.ones((4, 4))), rendering(0.5, np.ones((4, 5)))
    for metric in (covered_psnr_db, full_psnr_db, ssim):
        with pytest.raises(ParameterError):
            metric(a, b)


def naive_ssim(a, b):
    offsets = np.arange(-5, 6)
    window = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    total = 0.0
    height, width, channels = a.shape
    for c in range(channels):
        p, q = np.pad(a[..., c], 5), np.pad(b[..., c], 5)
        for y in range(height):
            for x in range(width):
                u, v = p[y : y + 11, x : x + 11], q[y : y + 11, x : x + 11]
                mu, nu = (window * u).sum(), (window * v).sum()
                var_u, var_v = (window * u * u).sum() - mu**2, (window * v * v).sum() - nu**2
                cov = (window * u * v).sum() - mu * nu
                total += (2 * mu * nu + 1e-4) * (2 * cov + 9e-4) / ((mu**2 + nu**2 + 1e-4) * (var_u + var_v + 9e-4))
    return total / a.size


def test_ssim_follows_its_definition():
    rng = np.random.default_rng(0)
    for shape in ((17, 40, 3), (3, 5, 1)):
        a = rng.random(shape)
        b = np.clip(a + 0.1 * rng.normal(size=shape), 0, 1)
        assert image_ssim(a, b) == pytest.approx(naive_ssim(a, b), rel=1e-12)
        assert image_ssim(a, b, num_threads=1) == image_ssim(a, b, num_threads=4)
        assert image_ssim(a, b) == image_ssim(b, a)
        assert image_ssim(a, a) == 1
    assert image_ssim(a[..., 0], b[..., 0]) == image_ssim(a, b)
    for bad in ((a, b[:2]), (a[:0], b[:0]), (a[0, 0], b[0, 0])):
        with pytest.raises(ParameterError):
            image_ssim(*bad)


def test_bd_rate_of_scaled_and_equal_curves():
    rates, psnrs = [100, 180, 400, 1000], [30.0, 34, 38.5, 41]
    assert bd_rate(rates, psnrs, rates, psnrs) == 0
    assert bd_rate(rates, psnrs, [rate * 1.25 for rate in rates], psnrs) == pytest.approx(25)
    # Order does not matter, and swapping the curves inverts the ratio.
    other = [90, 200, 350, 900], [29.0, 35, 38, 42]
    one_way, back = bd_rate(rates, psnrs, *other), bd_rate(*other, rates, psnrs)
    assert (1 + one_way / 100) * (1 + back / 100) == pytest.approx(1)
    assert bd_rate(rates[::-1], psnrs[::-1], *other) == one_way


def test_bd_rate_interpolates_as_scipy_does():
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = np.random.default_rng(2)
    for points in (2, 3, 4, 7):
        curves = []
        for _ in range(2):
            psnr = np.sort([*rng.uniform((30, 42), (33, 45)), *rng.uniform(33, 42, points - 2)])
            curves.append((np.exp(np.sort(rng.normal(size=points)) + rng.normal(size=points) * 0.1), psnr))
        low, high = max(psnr[0] for _, psnr in curves), min(psnr[-1] for _, psnr in curves)
        integrals = []
        for rate, psnr in curves:
            if points == 2:
                spline = interpolate.make_interp_spline(psnr, np.log(rate), k=1)
            else:
                spline = interpolate.PchipInterpolator(psnr, np.log(rate))
            integrals.append(float(spline.integrate(low, high)))
            at = 0.5 * (low + high)
            assert rate_at_psnr(rate, psnr, at) == pytest.approx(math.exp(float(spline(at))))
        expected = 100 * math.expm1((integrals[1] - integrals[0]) / (high - low))
        assert bd_rate(*curves[0], *curves[1]) == pytest.approx(expected)


def test_curves_that_are_none_are_refused():
    for curve in (([1], [30]), ([1, 2], [30, 30]), ([1, 0], [30, 31]), ([1, 2], [30, np.nan]), ([1, 2], [30])):
        with pytest.raises(ParameterError):
            bd_rate([1, 2], [30, 40], *curve)
    with pytest.raises(ParameterError):
        bd_rate([1, 2], [30, 40], [1, 2], [40, 50])
    for target in (29.9, 40.1):
        with pytest.raises(ParameterError):
            rate_at_psnr([1, 2], [30, 40], target)
    assert rate_at_psnr([1, 2], [30, 40], 40) == pytest.approx(2)


def test_compare_a_scene_with_itself_and_with_a_worse_one():
    scene = random_scene(300)
    seen = []
    same = compare(scene, scene, num_views=4, size_px=48, progress=lambda done, count: seen.append((done, count)))
    assert same.psnr_db == same.worst_psnr_db == same.full_psnr_db == 100
    assert same.ssim == 1
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rng = np.random.default_rng(1)
    results = []
    for noise in (0.05, 0.2):
        worse = scene.replaced(sh0=scene.sh0 + noise * rng.normal(size=scene.sh0.shape))
        results.append(compare(scene, worse, num_views=4, size_px=48))
    assert 100 > results[0].psnr_db > results[1].psnr_db > 10
    result = results[1]
    psnrs = [view["psnr_db"] for view in result.views]
    assert result.psnr_db == pytest.approx(np.mean(psnrs))
    assert result.worst_psnr_db == min(psnrs) == psnrs[result.worst_view]
    assert result.worst_camera is result.cameras[result.worst_view]
    assert result.up_guessed
    described = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert described["psnr_db"] == result.psnr_db
    assert described["num_views"] == len(described["views"]) == 4
    assert set(described["views"][0]) == {"psnr_db", "full_psnr_db", "ssim"}


def test_compare_survives_rows_that_cannot_be_drawn():
    scene = random_scene(100)
    spoiled = scene.replaced(means=np.where(np.arange(100)[:, None] < 3, np.nan, scene.means))
    result = compare(spoiled, spoiled, num_views=2, size_px=32)
    assert result.psnr_db == 100
    assert result.dropped == (3, 3)
    json.dumps(result.to_dict(), allow_nan=False)
    empty = Gaussians.empty()
    assert compare(empty, empty, num_views=2, size_px=32).psnr_db == 100
    assert compare(scene, empty, num_views=2, size_px=32).psnr_db < 30


def test_compare_draws_both_scenes_as_the_reference_was_trained():
    scene = random_scene(100)
    fine = scene.replaced(scales=scene.scales - 3, metadata={"antialiased": True, "up": [0, 0, 1]})
    bare = fine.replaced(metadata={})
    result = compare(fine, bare, num_views=2, size_px=32)
    assert result.psnr_db == 100
    assert not result.up_guessed
    # Another way to draw gives other pictures, and so another distance to a worse copy.
    worse = bare.replaced(sh0=bare.sh0 + 0.3)
    drawn = [compare(fine, worse, num_views=2, size_px=32, antialiased=flag).psnr_db for flag in (None, True, False)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_compare_refuses_what_cannot_be_compared():
    scene = random_scene(10)
    with pytest.raises(ParameterError):
        compare(scene, scene, num_views=0)
    with pytest.raises(ParameterError, match="frames"):
        compare(scene.replaced(metadata={"frame": "RDF"}), scene.replaced(metadata={"frame": "RUB"}), num_views=1)
    camera = look_at((0, 0, -5), (0, 0, 0), width=24, height=16)
    assert compare(scene, scene, cameras=[camera]).cameras == [camera]
