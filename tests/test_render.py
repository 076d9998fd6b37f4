import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec.errors import ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.render import cpu
from splatcodec.render.camera import Camera, evaluation_cameras, look_at
from splatcodec.render.compositing import untile
from splatcodec.render.images import save_png, side_by_side
from splatcodec.render.projection import project
from splatcodec.render.rendering import Rendering
from splatcodec.render.sh import sh_basis

DATA = Path(__file__).parents[2] / "shared" / "data" / "static"

# Away from the thresholds both renderers agree to float32 rounding (worst seen 8e-6). Where an alpha lies within
# rounding of 1/255, or a transmittance of 1e-4, one of them may draw a Gaussian that the other does not: that shows as
# at most a 1/255 share of one colour, in very few pixels.
TOLERANCE = 2e-5
BAND_TOLERANCE = 0.02
BAND_SHARE = 2e-3


def random_scene(count, *, sh_degree=0, sigma=0.1, spread=0.7, seed=0):
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=rng.normal(size=(count, 3)),
        quats=rng.normal(size=(count, 4)),
        scales=math.log(sigma) + spread * rng.normal(size=(count, 3)),
        opacities=2 * rng.normal(size=count),
        sh0=rng.normal(size=(count, 1, 3)),
        shN=0.2 * rng.normal(size=(count, (sh_degree + 1) ** 2 - 1, 3)),
    )


def one_gaussian(mean=(0, 0, 0), sigma=0.1, opacity=0.0, rgb=(1.0, 0.5, 0.25), quat=(1, 0, 0, 0)):
    return Gaussians(
        means=np.array([mean]),
        quats=np.array([quat]),
        scales=np.log(np.broadcast_to(np.asarray(sigma, np.float64), (1, 3))),
        opacities=np.array([opacity]),
        sh0=(np.array([[rgb]]) - 0.5) / 0.28209479177387814,
    )


def front_camera(size=33, distance=4.0, **options):
    return look_at((0, 0, -distance), (0, 0, 0), width=size, height=size, **options)


def assert_same_picture(actual, expected):
    difference = np.abs(actual.rgb - expected.rgb).max(axis=2)
    difference = np.maximum(difference, np.abs(actual.alpha - expected.alpha))
    assert difference.max() < BAND_TOLERANCE
    assert (difference > TOLERANCE).mean() <= BAND_SHARE


def test_importing_the_package_loads_no_compiler():
    code = (
        "import sys, splatcodec, splatcodec.render, splatcodec.metrics, splatcodec.render.camera,"
        " splatcodec.render.images; print([m for m in ('numba', 'torch', 'PIL', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize(
    ("count", "sh_degree", "sigma", "spread"),
    [(200, 3, 0.1, 0.7), (300, 2, 0.3, 0.5), (300, 1, 0.003, 1.0), (60, 0, 1.0, 2.5)],
    ids=["medium", "large", "sub-pixel", "needles"],
)
def test_equals_the_definition(count, sh_degree, sigma, spread, antialiased):
    pytest.importorskip("torch")
    from splatcodec.render import reference

    scene = random_scene(count, sh_degree=sh_degree, sigma=sigma, spread=spread)
    for camera in evaluation_cameras(scene, num_views=3, size_px=61):
        expected = reference.render(scene, camera, background=(0.2, 0.4, 0.6), antialiased=antialiased)
        actual = cpu.render(scene, camera, background=(0.2, 0.4, 0.6), antialiased=antialiased)
        assert expected.alpha.max() > 0.01
        assert_same_picture(actual, expected)


def test_equals_the_definition_close_up_and_off_centre():
    pytest.importorskip("torch")
    from splatcodec.render import reference

    scene = random_scene(150, sh_degree=3, sigma=0.05, spread=1.2)
    # In the middle of the scene: Gaussians behind, beside and very near the camera; a picture that is no multiple of
    # the tile size, an off-centre principal point and two focal lengths.
    viewmat = look_at((0.1, 0.2, -0.3), (1, 0.3, 1)).viewmat
    camera = Camera(viewmat, [[40, 0, 10], [0, 55, 30], [0, 0, 1]], 70, 37, near=0.02)
    assert_same_picture(cpu.render(scene, camera), reference.render(scene, camera))


def test_one_gaussian_by_hand():
    camera = front_camera()
    focal, opacity, sigma = camera.focal_px[0], 0.6, 0.2
    scene = one_gaussian(sigma=sigma, opacity=math.log(opacity / (1 - opacity)))
    picture = cpu.render(scene, camera)
    variance = (focal * sigma / 4.0) ** 2 + 0.3
    for y, x in ((16, 16), (16, 19), (20, 13)):
        squared = ((x - 16) ** 2 + (y - 16) ** 2) / variance
        alpha = opacity * math.exp(-0.5 * squared)
        assert picture.alpha[y, x] == pytest.approx(alpha, rel=1e-5)
        assert np.allclose(picture.rgb[y, x], alpha * np.array([1, 0.5, 0.25]), rtol=1e-5)
    # Drawn out to where alpha reaches 1/255, and no further.
    radius = math.sqrt(2 * variance * math.log(255 * opacity))
    y, x = np.mgrid[:33, :33]
    assert np.array_equal(picture.alpha > 0, np.hypot(x - 16, y - 16) <= radius)


def test_opacity_is_limited_and_pixels_end():
    camera = front_camera(5)
    opaque = one_gaussian(sigma=3.0, opacity=30.0, rgb=(1, 1, 1))
    assert cpu.render(opaque, camera).alpha[2, 2] == pytest.approx(0.99)
    # The second opaque Gaussian would bring the transmittance to 1e-4 exactly, the third below: it is not drawn.
    colours = np.eye(3)
    scene = Gaussians(
        means=[[0, 0, 0], [0, 0, 0.5], [0, 0, 1]],
        quats=np.ones((3, 4)),
        scales=np.full((3, 3), 1.0),
        opacities=[3.0, 30.0, 30.0],
        sh0=(colours[:, None] - 0.5) / 0.28209479177387814,
    )
    picture = cpu.render(scene, camera)
    first = 1 / (1 + math.exp(-3.0))
    assert picture.rgb[2, 2] == pytest.approx([first, (1 - first) * 0.99, 0], rel=1e-5)
    assert picture.alpha[2, 2] == pytest.approx(1 - (1 - first) * 0.01)


def test_nearer_gaussians_hide_further_ones_whatever_their_order():
    near, far = one_gaussian((0, 0, -1), 0.5, 2.0, (1, 0, 0)), one_gaussian((0, 0, 1), 0.5, 2.0, (0, 1, 0))
    pictures = []
    for pair in ((near, far), (far, near)):
        arrays = {
            name: np.concatenate([getattr(scene, name) for scene in pair])
            for name in ("means", "quats", "scales", "opacities", "sh0")
        }
        pictures.append(cpu.render(Gaussians(**arrays), front_camera()))
    assert np.array_equal(pictures[0].rgb, pictures[1].rgb)
    assert pictures[0].rgb[16, 16, 0] > 5 * pictures[0].rgb[16, 16, 1]


def test_harmonics_are_orthonormal_and_signed_as_in_3dgs():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(200_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    basis = sh_basis(3, directions).astype(np.float64)
    assert np.allclose(4 * math.pi * basis.T @ basis / len(basis), np.eye(16), atol=0.02)
    axes = sh_basis(1, np.eye(3))
    c1 = math.sqrt(3 / (4 * math.pi))
    assert np.allclose(axes[:, 1:], [[0, 0, -c1], [-c1, 0, 0], [0, c1, 0]])
    torch = pytest.importorskip("torch")
    from splatcodec.render import reference

    expected = reference.sh_basis(3, torch.from_numpy(directions[:1000])).numpy()
    assert np.allclose(basis[:1000], expected, atol=1e-6)
    with pytest.raises(ParameterError):
        sh_basis(4, directions)


def test_colour_follows_the_direction_of_view():
    scene = random_scene(30, sh_degree=3, seed=3)
    for camera in evaluation_cameras(scene, num_views=3):
        projection = project(scene, camera)
        offsets = scene.means.astype(np.float64) - camera.center
        basis = sh_basis(3, offsets / np.linalg.norm(offsets, axis=1, keepdims=True))
        coefficients = np.concatenate([scene.sh0, scene.shN], axis=1)
        expected = np.maximum(0.5 + np.einsum("nk,nkc->nc", basis, coefficients), 0)
        assert np.allclose(projection.colours, expected[projection.ids], atol=1e-5)


def test_any_number_of_threads_and_layers_gives_the_same_picture():
    scene = random_scene(20_000, sh_degree=1, sigma=0.05, spread=1.0)
    camera = evaluation_cameras(scene, num_views=1, size_px=150)[0]
    first = cpu.render(scene, camera, num_threads=1)
    for threads in (2, 3, 7):
        again = cpu.render(scene, camera, num_threads=threads)
        assert np.array_equal(first.rgb, again.rgb)
        assert np.array_equal(first.alpha, again.alpha)
    projection = project(scene, camera)
    for max_entries in (1, 5000):
        if max_entries == 1:  # a layer for every Gaussian: fewer of them
            small = scene.selected(slice(0, 50))
            projection, first = project(small, camera), cpu.render(small, camera)
        states = cpu.composite(projection, 2, max_entries=max_entries)
        rgb, alpha = np.empty_like(first.rgb), np.empty_like(first.alpha)
        untile(states, projection.tiles_x, np.zeros(3, np.float32), rgb, alpha)
        assert np.array_equal(rgb, first.rgb)
        assert np.array_equal(alpha, first.alpha)
        projection, first = project(scene, camera), cpu.render(scene, camera)


def test_needles_reach_every_tile_they_touch():
    rng = np.random.default_rng(5)
    camera = front_camera(200)
    y, x = np.mgrid[:200, :200] + 0.5
    for _ in range(20):
        quat = rng.normal(size=4)
        scene = one_gaussian(rng.uniform(-1, 1, 3), (0.002, 0.6, 0.01), 1.0, quat=quat)
        picture = cpu.render(scene, camera)
        record = project(scene, camera).records[0].astype(np.float64)
        dx, dy = x - record[0], y - record[1]
        m = (record[2] * dx + record[3] * dy) ** 2 + (record[4] * dy) ** 2
        alpha = np.minimum(0.99, record[5] * np.exp(-0.5 * m))
        sure = np.abs(alpha * 255 - 1) > 1e-3
        alpha[alpha < 1 / 255] = 0
        assert np.allclose(picture.alpha[sure], alpha[sure], atol=2e-4)
        assert np.array_equal(picture.alpha[sure] > 0, alpha[sure] > 0)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_world_scale_does_not_matter(scale):
    scene = random_scene(500, sh_degree=2, sigma=0.1)
    scaled = scene.replaced(means=scene.means * np.float32(scale), scales=scene.scales + math.log(scale))
    for a, b in zip(*(evaluation_cameras(s, num_views=4, size_px=64) for s in (scene, scaled))):
        error = cpu.render(scene, a).rgb - cpu.render(scaled, b).rgb
        assert np.sqrt((error**2).mean()) < 1e-3
        assert np.median(np.abs(error)) < 1e-5


def test_a_far_origin_does_not_matter():
    scene = random_scene(500, sigma=0.1)
    scene = scene.replaced(means=np.round(scene.means * 64) / 64)
    moved = scene.replaced(means=scene.means + np.float32(131072.0))
    for a, b in zip(*(evaluation_cameras(s, num_views=4, size_px=64) for s in (scene, moved))):
        assert np.abs(cpu.render(scene, a).rgb - cpu.render(moved, b).rgb).max() < 1e-4


def test_background_is_added_behind():
    scene = random_scene(100)
    camera = front_camera(40)
    black, white = cpu.render(scene, camera), cpu.render(scene, camera, background=(1, 1, 1))
    assert np.allclose(white.rgb, black.rgb + (1 - black.alpha)[..., None], atol=1e-6)
    assert np.allclose(black.over(1.0), white.rgb, atol=1e-6)
    assert np.allclose(white.over((0.0, 0.0, 0.0)), black.rgb, atol=1e-6)
    assert black.over(0.0) is black.rgb


def test_antialiasing_is_taken_from_the_scene():
    scene = random_scene(100, sigma=0.01)
    tagged = scene.replaced(metadata={"antialiased": True})
    camera = front_camera(40)
    expected = cpu.render(scene, camera, antialiased=True).rgb
    assert np.array_equal(cpu.render(tagged, camera).rgb, expected)
    assert not np.array_equal(cpu.render(scene, camera).rgb, expected)
    assert np.array_equal(cpu.render(tagged, camera, antialiased=False).rgb, cpu.render(scene, camera).rgb)


def test_what_is_not_in_front_is_not_drawn():
    camera = front_camera(20, near=0.5)
    for z in (-3.5 - 1e-6, -4.0, -5.0):
        assert not cpu.render(one_gaussian((0, 0, z), 0.3, 5.0), camera).alpha.any()
    assert cpu.render(one_gaussian((0, 0, -3.49), 0.3, 5.0), camera).alpha.any()


def test_no_gaussians_and_one():
    camera = front_camera(20)
    empty = cpu.render(Gaussians.empty(3), camera, background=(0.25, 0.5, 1))
    assert np.array_equal(empty.rgb, np.broadcast_to(np.float32([0.25, 0.5, 1]), (20, 20, 3)))
    assert not empty.alpha.any()
    torch = pytest.importorskip("torch")
    from splatcodec.render import reference

    assert torch is not None
    assert np.array_equal(reference.render(Gaussians.empty(3), camera, background=(0.25, 0.5, 1)).rgb, empty.rgb)
    tiny = look_at((0, 0, -4), (0, 0, 0), width=1, height=1)
    assert_same_picture(cpu.render(one_gaussian(), tiny), reference.render(one_gaussian(), tiny))


def test_zero_quaternion_is_the_identity():
    camera = front_camera()
    sigma = (0.5, 0.1, 0.2)
    expected = cpu.render(one_gaussian(sigma=sigma), camera).rgb
    for quat in ((0, 0, 0, 0), (1e30, 0, 0, 0), (1e-40, 0, 0, 0)):
        assert np.allclose(cpu.render(one_gaussian(sigma=sigma, quat=quat), camera).rgb, expected, atol=1e-6)


def test_huge_gaussians_are_an_even_veil():
    camera = front_camera(40)
    for log_scale in (30.0, 80.0, 1e4, 3e38):
        scene = one_gaussian(rgb=(1, 1, 1)).replaced(scales=np.full((1, 3), log_scale))
        picture = cpu.render(scene, camera)
        assert np.allclose(picture.alpha, 0.5, atol=1e-5)
        assert np.allclose(picture.rgb, 0.5, atol=1e-5)


POISON = [0.0, -0.0, 1.0, -5.0, 90.0, -90.0, 1e4, -1e4, 1e30, -1e30, 3.4e38, 1e-40, np.nan, np.inf, -np.inf]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.data())
def test_poisoned_rows_never_spoil_the_picture(data):
    count = 4
    healthy = random_scene(count, sh_degree=1, sigma=0.3)
    arrays = {}
    for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
        array = getattr(healthy, name).copy()
        for _ in range(data.draw(st.integers(0, 4))):
            array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = data.draw(st.sampled_from(POISON))
        arrays[name] = array
    scene = Gaussians(**arrays)
    for cameras in (evaluation_cameras(scene, num_views=1, size_px=20), [front_camera(20)]):
        for antialiased in (False, True):
            picture = cpu.render(scene, cameras[0], antialiased=antialiased)
            assert np.isfinite(picture.rgb).all()
            assert (picture.rgb >= 0).all()
            assert ((picture.alpha >= 0) & (picture.alpha <= 1)).all()
    # Rows that are dropped by cleaning are not drawn either; those that it mends look the same.
    cleaned = scene.cleaned()[0]
    assert np.array_equal(cpu.render(cleaned, front_camera(20)).alpha, cpu.render(scene, front_camera(20)).alpha)


def test_pictures_of_absurd_size_are_refused():
    with pytest.raises(ParameterError):
        cpu.render(one_gaussian(), look_at((0, 0, -1), (0, 0, 0), width=1 << 17, height=1))


def test_the_definition_is_differentiable():
    torch = pytest.importorskip("torch")
    from splatcodec.render import reference

    scene = random_scene(3, sh_degree=2, sigma=0.8, spread=0.2, seed=2)
    scene = scene.replaced(sh0=scene.sh0 * 0.2 + 0.5)  # away from the clamp at black
    camera = front_camera(4)
    tensors = [
        torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for array in (scene.means, scene.quats, scene.scales, scene.opacities, scene.sh0, scene.shN)
    ]

    def picture(*arrays):
        return reference.render_tensors(*arrays, camera, antialiased=True)[:2]

    assert torch.autograd.gradcheck(picture, tensors, eps=1e-6, atol=1e-6)


def test_png_and_side_by_side(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    rgb = rng.random((6, 5, 3)).astype(np.float32)
    rgb[0, 0] = (-1.0, 2.0, np.nan)
    save_png(tmp_path / "a.png", rgb)
    with Image.open(tmp_path / "a.png") as image:
        stored = np.asarray(image)
    assert stored[0, 0].tolist() == [0, 255, 0]
    assert np.abs(stored[1:] / 255.0 - rgb[1:]).max() <= 0.5 / 255 + 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ParameterError):
        save_png(tmp_path / "missing" / "a.png", rgb)
    with pytest.raises(ParameterError):
        save_png(tmp_path / "b.png", rgb[..., 0])

    alpha = np.ones((6, 5), np.float32)
    a, b = np.full((6, 5, 3), 0.5, np.float32), np.full((6, 5, 3), 0.55, np.float32)
    sheet = side_by_side(Rendering(a, alpha), Rendering(b, alpha))
    assert sheet.shape == (6, 23, 3)
    assert np.allclose(sheet[:, :5], 0.5)
    assert np.allclose(sheet[:, -5:], 0.4, atol=1e-5)
    with pytest.raises(ParameterError):
        side_by_side(a, b[:5])


def read_ply(path):
    plyfile = pytest.importorskip("plyfile")
    vertex = plyfile.PlyData.read(str(path))["vertex"]

    def columns(*names):
        return np.stack([np.asarray(vertex[name], np.float32) for name in names], axis=1)

    return Gaussians(
        means=columns("x", "y", "z"),
        quats=columns(*(f"rot_{k}" for k in range(4))),
        scales=columns(*(f"scale_{k}" for k in range(3))),
        opacities=np.asarray(vertex["opacity"]),
        sh0=columns(*(f"f_dc_{k}" for k in range(3)))[:, None],
    )


@pytest.mark.skipif(not (DATA / "donut.ply").exists(), reason="third-party scene donut.ply is not here")
def test_a_real_scene():
    scene = read_ply(DATA / "donut.ply")
    cameras = evaluation_cameras(scene, num_views=8, size_px=64)
    for camera in cameras[:6]:
        picture = cpu.render(scene, camera)
        # An opaque object in the middle, nothing at the corners.
        assert 0.1 < picture.alpha.mean() < 0.7
        assert not picture.alpha[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        assert picture.alpha.max() > 0.99
        assert 0.3 < picture.rgb[picture.alpha > 0.95].mean() < 0.8
    pytest.importorskip("torch")
    from splatcodec.render import reference

    part = scene.selected(slice(None, None, 40))
    assert_same_picture(cpu.render(part, cameras[0]), reference.render(part, cameras[0]))
