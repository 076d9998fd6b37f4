import json
import math

import numpy as np
import pytest

from splatcodec.errors import ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.render.camera import (
    DEFAULT_UP,
    Camera,
    check_cameras,
    encoder_cameras,
    evaluation_cameras,
    look_at,
    scene_extent,
    world_up,
)


def ball(count=600, *, sigma=0.01, seed=0, metadata=None, opacity=2.0):
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=rng.normal(size=(count, 3)) * (1.0, 0.8, 0.6),
        quats=rng.normal(size=(count, 4)),
        scales=np.full((count, 3), math.log(sigma)),
        opacities=np.full(count, opacity),
        sh0=rng.normal(size=(count, 1, 3)),
        metadata=metadata or {},
    )


def with_shell(scene, count=1000, factor=100.0, seed=1, sigma=3.0):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Gaussians(
        means=np.concatenate([scene.means, factor * directions]),
        quats=np.concatenate([scene.quats, np.ones((count, 4))]),
        scales=np.concatenate([scene.scales, np.full((count, 3), math.log(sigma))]),
        opacities=np.concatenate([scene.opacities, np.full(count, 2.0)]),
        sh0=np.concatenate([scene.sh0, np.zeros((count, 1, 3))]),
    )


def forward(camera):
    return camera.viewmat[2, :3]


def pose(camera, extent):
    return np.concatenate([(camera.center - extent.center) / extent.radius, camera.viewmat[:3, :3].reshape(-1)])


def test_look_at_puts_the_target_in_the_middle_and_up_up():
    camera = look_at((1.0, 2.0, 3.0), (-2.0, 0.5, 4.0), (0.0, 0.0, 1.0), width=80, height=60, fov_deg=40)
    local = camera.viewmat @ (-2.0, 0.5, 4.0, 1.0)
    assert np.allclose(local[:2], 0, atol=1e-12)
    assert local[2] == pytest.approx(math.dist((1, 2, 3), (-2, 0.5, 4)))
    above = camera.viewmat @ (-2.0, 0.5, 4.1, 1.0)
    assert above[1] < 0  # y points down
    rotation = camera.viewmat[:3, :3]
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert np.allclose(camera.center, (1, 2, 3))
    assert math.degrees(2 * math.atan(40 / camera.focal_px[0])) == pytest.approx(40)
    assert camera.principal_point_px == (40, 30)


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, 0), (0, 0, -5e300)])
def test_look_at_survives_a_useless_up_and_a_useless_target(up):
    for target in ((0, 0, 1), (0, 0, 0)):
        camera = look_at((0, 0, 0), target, up)
        rotation = camera.viewmat[:3, :3]
        assert np.allclose(rotation @ rotation.T, np.eye(3))


def test_default_field_of_view_constants():
    camera = look_at((0, 0, -1), (0, 0, 0), width=512, height=512)
    assert camera.focal_px[0] == pytest.approx(256 / math.tan(math.radians(25)), rel=1e-14)


def test_camera_refuses_nonsense_and_survives_json():
    camera = look_at((0, 0, -1), (0, 0, 0), width=7, height=5, near=0.25)
    again = Camera(**json.loads(json.dumps(camera.to_dict())))
    assert np.array_equal(again.viewmat, camera.viewmat)
    assert (again.width, again.height, again.near) == (7, 5, 0.25)
    for bad in (
        {"viewmat": np.eye(3)},
        {"viewmat": np.full((4, 4), np.nan)},
        {"K": np.zeros((3, 3))},
        {"width": 0},
        {"near": 0.0},
    ):
        with pytest.raises(ParameterError):
            Camera(**{**camera.to_dict(), **bad})
    with pytest.raises(ParameterError):
        look_at((0, 0, 0), (0, 0, 1), fov_deg=180)


def test_evaluation_views_stand_around_and_at_half_the_distance():
    scene = ball()
    extent = scene_extent(scene)
    cameras = evaluation_cameras(scene)
    assert len(cameras) == 24
    distances = [np.linalg.norm(camera.center - extent.center) for camera in cameras]
    outer = extent.radius / math.sin(math.radians(25))
    # Without a background, 18 views stand around and 6 are near.
    assert np.allclose(distances[:18], outer)
    assert np.allclose(distances[18:], outer / 2)
    for camera in cameras:
        assert (camera.width, camera.height) == (512, 512)
        assert forward(camera) @ (extent.center - camera.center) > 0
        assert camera.viewmat[1, :3] @ np.array(DEFAULT_UP) < 0  # picture's down is not up
        assert camera.near == pytest.approx(0.01 * extent.radius)
    # All the way around: no gap of more than 30 degrees in the turn around the up axis.
    turns = sorted(math.atan2(*(camera.center - extent.center)[[0, 2]]) for camera in cameras[:18])
    assert max(np.diff([*turns, turns[0] + 2 * math.pi])) < math.radians(30)


@pytest.mark.parametrize("sigma", [0.3, 3.0, 30.0])
def test_a_background_is_looked_at_from_inside(sigma):
    scene = with_shell(ball(9000), sigma=sigma)
    extent = scene_extent(scene)
    assert len(extent.outside) == 1000
    assert extent.radius < 3
    cameras = evaluation_cameras(scene)
    outward = [forward(c) @ (c.center - extent.center) > 0 for c in cameras]
    assert outward == [False] * 18 + [True] * 6
    assert all(np.linalg.norm(c.center - extent.center) < 10 * extent.radius for c in cameras)
    # The six look in different directions.
    directions = np.array([forward(c) for c in cameras[18:]])
    assert (directions @ directions.T - 2 * np.eye(6)).max() < 0.99
    encoder = [forward(c) @ (c.center - extent.center) > 0 for c in encoder_cameras(scene, num_views=16)]
    assert sum(encoder) == 4


def test_a_few_strays_are_not_a_background():
    scene = with_shell(ball(), count=10)
    assert len(scene_extent(scene).outside) == 0


def test_blots_are_replaced_by_views_from_further_away():
    # From the full distance half of the Gaussians are 3.5 % of the picture wide, from half the distance 7 %.
    sigma = 0.18
    fine, coarse = ball(sigma=sigma / 100), ball(sigma=sigma)
    extent = scene_extent(coarse)
    distance = extent.radius / math.sin(math.radians(25))

    def near_distances(scene):
        return [np.linalg.norm(c.center - extent.center) / distance for c in evaluation_cameras(scene)[18:]]

    assert np.allclose(near_distances(fine), 0.5)
    assert min(near_distances(coarse)) > 0.55


@pytest.mark.parametrize("make", [evaluation_cameras, encoder_cameras, check_cameras])
def test_cameras_are_deterministic_and_depend_on_the_seed(make):
    scene = ball()
    extent = scene_extent(scene)
    first, again, other = (
        np.array([pose(c, extent) for c in make(scene, num_views=9, size_px=32, seed=seed)]) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert np.abs(first - other).max(axis=1).min() > 1e-3


@pytest.mark.parametrize(
    "scene",
    [ball(), with_shell(ball(9000)), ball(1), Gaussians.empty()],
    ids=["ball", "shell", "one", "empty"],
)
def test_the_encoder_never_sees_an_evaluation_view(scene):
    extent = scene_extent(scene)
    for seed in range(4):
        judged = np.array([pose(c, extent) for c in evaluation_cameras(scene, size_px=32, seed=seed)])
        for encoder_seed in range(4):
            cameras = encoder_cameras(scene, num_views=48, size_px=32, seed=encoder_seed)
            cameras += check_cameras(scene, num_views=24, size_px=32, seed=encoder_seed)
            own = np.array([pose(c, extent) for c in cameras])
            assert np.abs(judged[:, None] - own[None]).max(axis=2).min() > 1e-4


def test_encoder_views_are_near_and_far():
    scene = ball()
    extent = scene_extent(scene)
    distances = [np.linalg.norm(c.center - extent.center) for c in encoder_cameras(scene, num_views=16)]
    outer = extent.radius / math.sin(math.radians(25))
    assert min(distances) < 0.7 * outer
    assert max(distances) > outer
    assert min(distances) > extent.radius


@pytest.mark.parametrize("make", [evaluation_cameras, encoder_cameras])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_world_scale_does_not_matter(make, scale):
    scene = with_shell(ball(9000))
    scaled = scene.replaced(means=scene.means * np.float32(scale), scales=scene.scales + math.log(scale))
    for a, b in zip(make(scene, num_views=12), make(scaled, num_views=12)):
        assert np.allclose(a.viewmat[:3, :3], b.viewmat[:3, :3], atol=1e-5)
        assert np.allclose(a.center * scale, b.center, rtol=1e-5, atol=1e-5 * scale)
        assert b.near == pytest.approx(a.near * scale, rel=1e-5)


def test_world_origin_does_not_matter():
    scene = ball()
    # Multiples of 1/64 stay exact in float32 beside an offset of 2^17.
    scene = scene.replaced(means=np.round(scene.means * 64) / 64)
    shift = np.array([131072.0, -131072.0, 65536.0])
    moved = scene.replaced(means=scene.means + shift)
    for a, b in zip(evaluation_cameras(scene), evaluation_cameras(moved)):
        assert np.allclose(a.viewmat[:3, :3], b.viewmat[:3, :3], atol=1e-9)
        assert np.allclose(a.center + shift, b.center, atol=1e-6)


def poisoned():
    scene = ball(40)
    yield "empty", Gaussians.empty(sh_degree=3)
    yield "one", ball(1)
    yield "all rows NaN", scene.replaced(means=np.full((40, 3), np.nan))
    yield "one point", scene.replaced(means=np.ones((40, 3)))
    yield "points at the origin", scene.replaced(means=np.zeros((40, 3)), scales=np.full((40, 3), -np.inf))
    yield "transparent", scene.replaced(opacities=np.full(40, -np.inf))
    yield "huge", scene.replaced(scales=np.full((40, 3), 1e4))
    yield "far apart", scene.replaced(means=scene.means * np.float32(1e30))
    yield "a line", scene.replaced(means=scene.means * (1, 0, 0))


@pytest.mark.parametrize(("name", "scene"), list(poisoned()), ids=lambda value: value if isinstance(value, str) else "")
def test_odd_scenes_still_get_valid_cameras(name, scene):
    for camera in evaluation_cameras(scene, size_px=16) + encoder_cameras(scene, num_views=8, size_px=16):
        rotation = camera.viewmat[:3, :3]
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert 0 < camera.near < np.inf


def test_up_is_given_stored_or_a_guess():
    scene = ball(metadata={"up": [0, 0, 2]})
    assert world_up(ball())[1]
    assert np.array_equal(world_up(scene)[0], (0, 0, 1))
    assert not world_up(scene)[1]
    assert np.array_equal(world_up(scene, (1, 0, 0))[0], (1, 0, 0))
    for camera in evaluation_cameras(scene):
        assert camera.viewmat[1, 2] < 0
    for bad in ((0, 0, 0), (1, 2), "up", (np.nan, 0, 1)):
        with pytest.raises(ParameterError):
            world_up(scene, bad)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 24, 100])
def test_any_number_of_views(count):
    assert len(evaluation_cameras(ball(), num_views=count)) == count
    assert len(encoder_cameras(ball(), num_views=count)) == count


def test_bad_arguments():
    for options in ({"num_views": -1}, {"size_px": 0}, {"seed": -1}):
        with pytest.raises(ParameterError):
            evaluation_cameras(ball(), **options)
        with pytest.raises(ParameterError):
            encoder_cameras(ball(), **options)
