import math

import numpy as np
import pytest

from splatcodec.errors import ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.render import contribution
from splatcodec.render.camera import encoder_cameras, look_at
from splatcodec.render.color_operator import ColorOperator, view_directions
from splatcodec.render.contribution import contributions, restoration
from splatcodec.render.cpu import render
from splatcodec.render.projection import project
from splatcodec.render.sh import sh_basis

GREY = (0.5, 0.5, 0.5)


def random_scene(count, *, sh_degree=0, sigma=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=rng.normal(size=(count, 3)),
        quats=rng.normal(size=(count, 4)),
        scales=math.log(sigma) + 0.6 * rng.normal(size=(count, 3)),
        opacities=1.5 * rng.normal(size=count),
        sh0=rng.normal(size=(count, 1, 3)),
        shN=0.2 * rng.normal(size=(count, (sh_degree + 1) ** 2 - 1, 3)),
    )


def blending_weights(scene, camera):
    """(N, H, W): the weight of each Gaussian at each pixel, one column of the colour operator at a time."""
    operator = ColorOperator(scene, camera)
    return np.array([operator.splat(np.outer(row, np.ones(3)))[..., 0] for row in np.eye(len(scene))], np.float64)


def test_weights_and_hits():
    scene = random_scene(40)
    cameras = encoder_cameras(scene, num_views=3, size_px=50)
    result = contributions(scene, cameras)
    weights = np.stack([blending_weights(scene, camera) for camera in cameras], axis=1)
    assert np.allclose(result.max_weight, weights.max(axis=(1, 2, 3)), atol=1e-6)
    assert np.allclose(result.sum_weight, weights.sum(axis=(1, 2, 3)), rtol=1e-5)
    assert np.allclose(result.sum_weight2, (weights**2).sum(axis=(1, 2, 3)), rtol=1e-5)
    assert np.array_equal(result.hits, (weights > 0).sum(axis=(1, 2, 3)))
    assert result.s_colour is result.sum_weight2
    assert result.num_views == 3


def test_removal_error_is_what_removal_costs():
    scene = random_scene(40, sh_degree=1)
    cameras = encoder_cameras(scene, num_views=2, size_px=50)
    result = contributions(scene, cameras)
    whole = [render(scene, camera, background=GREY).rgb for camera in cameras]
    for index in range(len(scene)):
        rest = scene.selected(np.arange(len(scene)) != index)
        cost = sum(
            float(((render(rest, camera, background=GREY).rgb - picture).astype(np.float64) ** 2).sum())
            for camera, picture in zip(cameras, whole)
        )
        assert result.removal_error[index] == pytest.approx(cost, rel=1e-3, abs=1e-7)


def test_restoration_is_what_drawing_again_mends():
    scene = random_scene(40, sh_degree=1)
    kept = np.arange(40) % 3 > 0
    cameras = encoder_cameras(scene, num_views=2, size_px=50)
    found = restoration(scene, kept, cameras)
    assert np.array_equal(found, restoration(scene, kept, cameras, num_threads=3))
    assert not found[kept].any()

    def error(drawn, camera, whole):
        picture = render(scene.selected(drawn), camera, background=GREY).rgb
        covered = np.mean(whole.alpha > 0.05)
        return float(((picture - whole.rgb).astype(np.float64) ** 2).sum()) / covered

    wholes = [render(scene, camera, background=GREY) for camera in cameras]
    for index in np.flatnonzero(~kept):
        back = kept.copy()
        back[index] = True
        mended = sum(error(kept, c, w) - error(back, c, w) for c, w in zip(cameras, wholes))
        assert found[index] == pytest.approx(mended, rel=2e-3, abs=1e-5)


def test_what_two_in_one_place_hide_is_missed_once_both_are_gone():
    twins = random_scene(1)
    twins = twins.selected(np.zeros(2, np.int64)).replaced(opacities=np.full(2, 4.0, np.float32))
    cameras = encoder_cameras(twins, num_views=4, size_px=50)
    alone = contributions(twins, cameras, equalize=True).removal_error
    missed = restoration(twins, np.zeros(2, np.bool_), cameras)
    assert (missed > 5 * alone).all()  # at their rims they hide less


def test_sensitivities_follow_their_definition():
    scene = random_scene(25, seed=4)
    camera = encoder_cameras(scene, num_views=1, size_px=50)[0]
    result = contributions(scene, [camera])
    projection = project(scene, camera)
    weights = blending_weights(scene, camera)
    picture = render(scene, camera, background=GREY).rgb.astype(np.float64)
    y, x = np.mgrid[:50, :50] + 0.5
    so_far = np.zeros_like(picture)
    transmittance = np.ones((50, 50))
    for rank, index in enumerate(projection.ids):
        record = projection.records[rank].astype(np.float64)
        dx, dy = x - record[0], y - record[1]
        m = (record[2] * dx + record[3] * dy) ** 2 + (record[4] * dy) ** 2
        w = weights[index][..., None]
        alpha = (weights[index] / transmittance)[..., None]
        so_far += w * projection.colours[rank]
        change = w * projection.colours[rank] - alpha / (1 - alpha) * (picture - so_far)
        energy = (change**2).sum(axis=2)
        transmittance *= 1 - alpha[..., 0]
        rho = float(projection.rhos[rank])
        assert result.s_logalpha[index] == pytest.approx(energy.sum(), rel=1e-4, abs=1e-9)
        assert result.s_position[index] == pytest.approx((energy * m).sum() * rho, rel=1e-4, abs=1e-9)
        assert result.s_cov[index] == pytest.approx((energy * m * m).sum() * rho**2 / 4, rel=1e-4, abs=1e-9)


def test_share_that_is_not_blur():
    camera = look_at((0, 0, -4), (0, 0, 0), width=64, height=64)
    for sigma in (1e-4, 0.01, 0.1, 1.0):
        scene = random_scene(1).replaced(means=np.zeros((1, 3)), scales=np.full((1, 3), math.log(sigma)))
        variance = (camera.focal_px[0] * sigma / 4) ** 2
        assert project(scene, camera).rhos[0] == pytest.approx(variance / (variance + 0.3), rel=1e-4, abs=1e-6)


def test_finest_pixel_size():
    scene = random_scene(1).replaced(means=np.zeros((1, 3)))
    cameras = [look_at((0, 0, -distance), (0, 0, 0), width=64, height=64) for distance in (4.0, 3.0, 5.0)]
    away = look_at((0, 0, -1), (0, 0, -2), width=64, height=64)
    result = contributions(scene, [*cameras, away])
    assert result.pixel_size[0] == pytest.approx(3.0 / cameras[0].focal_px[0])
    unseen = contributions(scene, [away])
    assert unseen.pixel_size[0] == np.inf
    assert unseen.hits[0] == unseen.max_weight[0] == unseen.sum_weight[0] == 0


def test_any_number_of_threads_and_layers_gives_the_same_sums(monkeypatch):
    scene = random_scene(9000, sigma=0.05)
    cameras = encoder_cameras(scene, num_views=2, size_px=120)
    first = contributions(scene, cameras, num_threads=1)

    def assert_same(other):
        for name in ("max_weight", "sum_weight", "sum_weight2", "hits", "s_logalpha", "s_position", "s_cov"):
            assert np.array_equal(getattr(first, name), getattr(other, name)), name

    assert_same(contributions(scene, cameras, num_threads=2))
    assert_same(contributions(scene, cameras, num_threads=5))
    monkeypatch.setattr(contribution, "_MAX_ENTRIES", 3000)
    assert_same(contributions(scene, cameras, num_threads=2))


def test_odd_scenes_and_progress():
    seen = []
    camera = look_at((0, 0, -4), (0, 0, 0), width=20, height=20)
    result = contributions(Gaussians.empty(), [camera] * 2, progress=lambda done, count: seen.append((done, count)))
    assert result.max_weight.shape == (0,)
    assert seen == [(1, 2), (2, 2)]
    scene = random_scene(6)
    poisoned = scene.replaced(
        means=np.where(np.arange(6)[:, None] == 1, np.nan, scene.means),
        scales=np.where(np.arange(6)[:, None] == 2, 1e4, scene.scales),
        quats=np.where(np.arange(6)[:, None] == 3, 0, scene.quats),
        sh0=np.where(np.arange(6)[:, None, None] == 4, 3e38, scene.sh0),
    )
    result = contributions(poisoned, [camera])
    for name in ("max_weight", "sum_weight", "sum_weight2", "s_logalpha", "s_position", "s_cov"):
        assert np.isfinite(getattr(result, name)).all()
    assert result.hits[1] == 0
    assert contributions(scene, []).hits.sum() == 0


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_gather_is_the_transpose_of_splat(count):
    scene = random_scene(count, sigma=0.08)
    camera = encoder_cameras(scene, num_views=1, size_px=70)[0]
    operator = ColorOperator(scene, camera)
    rng = np.random.default_rng(1)
    colors, picture = rng.normal(size=(count, 3)), rng.normal(size=(70, 70, 3))
    forward = np.vdot(operator.splat(colors).astype(np.float64), picture)
    backward = np.vdot(colors, operator.gather(picture).astype(np.float64))
    scale = np.linalg.norm(operator.splat(colors)) * np.linalg.norm(picture)
    assert forward == pytest.approx(backward, abs=1e-6 * scale)


def test_splat_draws_the_picture():
    scene = random_scene(2000, sh_degree=2, sigma=0.08)
    camera = encoder_cameras(scene, num_views=1, size_px=70)[0]
    picture = render(scene, camera)
    basis = sh_basis(2, view_directions(scene.means, camera))
    coefficients = np.concatenate([scene.sh0, scene.shN], axis=1)
    colors = np.maximum(0.5 + np.einsum("nk,nkc->nc", basis, coefficients), 0)
    for threads in (1, 2, 5):
        operator = ColorOperator(scene, camera, num_threads=threads)
        assert np.allclose(operator.splat(colors), picture.rgb, atol=1e-5)
        assert np.array_equal(operator.alpha, picture.alpha)
        if threads == 1:
            first = operator.gather(picture.rgb)
        assert np.array_equal(operator.gather(picture.rgb), first)
    weights = contributions(scene, [camera])
    ones = operator.gather(np.ones((70, 70, 3)))
    assert np.allclose(ones, weights.sum_weight[:, None], rtol=1e-5, atol=1e-6)


def test_operator_refuses_wrong_shapes():
    scene = random_scene(5)
    operator = ColorOperator(scene, look_at((0, 0, -4), (0, 0, 0), width=20, height=10))
    with pytest.raises(ParameterError):
        operator.splat(np.zeros((4, 3)))
    with pytest.raises(ParameterError):
        operator.gather(np.zeros((20, 10, 3)))
