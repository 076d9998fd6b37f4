"""The CUDA rasterizer. Its kernels run here on an emulated device (cuda_ext/csrc/emulate.h), in float and in double,
and with `-m gpu` on a real one; the compiler's own checks run where nvcc is."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from splatcodec.errors import BackendUnavailableError, LimitExceededError, ParameterError  # noqa: E402
from splatcodec.gaussians import Gaussians  # noqa: E402
from splatcodec.render import constants  # noqa: E402
from splatcodec.render import cuda as cuda_module  # noqa: E402
from splatcodec.render.camera import Camera, encoder_cameras, evaluation_cameras, look_at  # noqa: E402
from splatcodec.render.contribution import Contributions, contributions  # noqa: E402
from splatcodec.render.cuda import (  # noqa: E402
    STATISTICS,
    KernelLibrary,
    contributions_cuda,
    load_library,
    rasterize_cuda,
)
from splatcodec.render.rasterize import rasterize  # noqa: E402
from splatcodec.render.reference import render_tensors  # noqa: E402

EXTENSION = Path(__file__).resolve().parents[1] / "cuda_ext"
NAMES = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN", "background", "viewmat")

# In double the kernels and autograd through the definition agree to rounding: worst seen 1e-13 of the largest gradient.
# In float: pictures within 2e-6, gradients within 1e-5, quats and scales of Gaussians over the whole picture 3e-5.
DOUBLE_SHARE = 1e-10
FLOAT_PICTURE = 2e-5
FLOAT_SHARE = {"medium": 5e-5, "close-up": 2e-4, "sub-pixel": 5e-5, "needles": 2e-4, "opaque": 2e-4, "veils": 2e-4}
# A float may fall on the other side of a threshold (1/255 of alpha, 1e-4 of transmittance) than a double. On the device
# whose exp is another than the CPU's this concerns at most this share of all values, by at most that much.
BAND_SHARE = 0.01
BAND_SIZE = 0.05


def building_module():
    spec = importlib.util.spec_from_file_location("building", EXTENSION / "splatcodec_cuda" / "building.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kernels compiled for the emulated device."""
    compiler = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C++ compiler for the emulated CUDA device")
    output = tmp_path_factory.mktemp("cuda") / "emulated.so"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    result = subprocess.run(
        [compiler, *options, str(EXTENSION / "csrc" / "host.cpp"), "-o", str(output)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture(scope="session")
def exact(emulated_file: Path) -> KernelLibrary:
    """The kernels in double."""
    return KernelLibrary(emulated_file, suffix="f64", device_type="cpu")


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def library(request: pytest.FixtureRequest) -> Iterator[KernelLibrary]:
    """The kernels in float, emulated and on a device."""
    if request.param == "emulated":
        yield KernelLibrary(request.getfixturevalue("emulated_file"), device_type="cpu")
        return
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield load_library()


def random_attributes(count, num_rest=15, sigma=0.1, spread=0.7, seed=1):
    rng = np.random.default_rng(seed)
    arrays = (
        rng.normal(size=(count, 3)) * 0.7,
        rng.normal(size=(count, 4)),
        np.log(sigma) + spread * rng.normal(size=(count, 3)),
        1.5 * rng.normal(size=count),
        rng.normal(size=(count, 1, 3)),
        0.3 * rng.normal(size=(count, num_rest, 3)),
    )
    return [torch.tensor(array, dtype=torch.float32) for array in arrays]


def front(width=45, height=37):
    return look_at((1, 0.5, -4), (0, 0, 0), width=width, height=height)


def opaque(attributes):
    """The same with opacities of 0.6 to 1: alphas are clamped, pixels end early."""
    return [*attributes[:3], attributes[3] + 4.0, *attributes[4:]]


CLOSE_UP = Camera(
    look_at((0.1, 0.2, -0.3), (1, 0.3, 1)).viewmat, [[40, 0, 10], [0, 55, 30], [0, 0, 1]], 70, 37, near=0.02
)
SCENES = {
    "medium": (random_attributes(120), front()),
    "close-up": (random_attributes(120, 8, 0.3, seed=2), CLOSE_UP),
    "sub-pixel": (random_attributes(150, 3, 0.003, 1.0, seed=3), front(64, 48)),
    "needles": (random_attributes(60, 0, 1.0, 2.5, seed=4), front()),
    "opaque": (opaque(random_attributes(150, 3, 0.2, seed=15)), front()),
    "veils": (random_attributes(80, 15, 3.0, 0.5, seed=5), front(33, 16)),
}


def weights_of(camera, seed=3):
    rng = np.random.default_rng(seed)
    shapes = ((camera.height, camera.width, 3), (camera.height, camera.width), (camera.height, camera.width))
    return [torch.tensor(rng.normal(size=shape)) for shape in shapes]


def leaves_of(attributes, camera, dtype, device):
    """Attributes, background and pose, all to be differentiated by."""
    given = [*attributes, torch.tensor([0.2, 0.5, 0.7]), torch.tensor(np.array(camera.viewmat))]
    types = [dtype] * 7 + [torch.float64]
    return [tensor.detach().clone().to(device, kind).requires_grad_() for tensor, kind in zip(given, types)]


def by_kernels(library, attributes, camera, *, weights=None, **options):
    """Outputs, gradients by everything, and what was visible."""
    leaves = leaves_of(attributes, camera, library.dtype, library.device_type)
    *six, background, viewmat = leaves
    result = rasterize_cuda(
        *six, camera, background=background, viewmat=viewmat, with_depth=True, library=library, **options
    )
    outputs = [result.rgb, result.alpha, result.depth]
    weights = weights_of(camera) if weights is None else weights
    sum((output * weight.to(output)).sum() for output, weight in zip(outputs, weights)).backward()
    return [output.detach().cpu() for output in outputs], [leaf.grad.cpu() for leaf in leaves], result.visible.cpu()


def by_definition(attributes, camera, antialiased=False):
    """The same from the definition, in double."""
    leaves = leaves_of(attributes, camera, torch.float64, "cpu")
    *six, background, viewmat = leaves
    rgb, alpha, depth, seen = render_tensors(*six, camera, antialiased=antialiased, viewmat=viewmat)
    outputs = [rgb + (1 - alpha)[..., None] * background, alpha, depth]
    sum((output * weight).sum() for output, weight in zip(outputs, weights_of(camera))).backward()
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return [output.detach() for output in outputs], gradients, seen


def assert_close(actual, expected, share, *, band=False, name=""):
    """Every entry within `share` of the largest; with `band` a few may be further off."""
    if not expected.numel():
        return
    largest = max(float(expected.abs().max()), 1e-6)
    off = (actual.double() - expected.double()).abs() / largest
    if band:
        assert float((off > share).double().mean()) <= BAND_SHARE, name
        assert off.max() <= BAND_SIZE, name
    else:
        assert off.max() <= share, (name, float(off.max()))


def test_constants_are_those_of_the_definition(exact):
    assert exact.constants() == [
        constants.ALPHA_MIN,
        constants.ALPHA_MAX,
        constants.TRANSMITTANCE_MIN,
        constants.LOW_PASS_PX2,
        constants.LOG_SCALE_MAX,
        constants.COLOUR_MAX,
        constants.TILE_PX,
    ]


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_in_double_pictures_and_gradients_equal_the_definition(exact, scene, antialiased):
    attributes, camera = SCENES[scene]
    outputs, gradients, visible = by_kernels(exact, attributes, camera, antialiased=antialiased)
    expected, expected_gradients, seen = by_definition(attributes, camera, antialiased)
    for a, b in zip(outputs, expected):
        assert_close(a, b, DOUBLE_SHARE)
    for name, a, b in zip(NAMES, gradients, expected_gradients):
        assert_close(a, b, DOUBLE_SHARE, name=name)
        assert not b.numel() or float(b.abs().max()) > 0, name
    assert seen.any()
    assert not (seen & ~visible).any()


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_in_float_pictures_and_gradients_equal_the_definition(library, scene, antialiased):
    attributes, camera = SCENES[scene]
    outputs, gradients, _ = by_kernels(library, attributes, camera, antialiased=antialiased)
    expected, expected_gradients, _ = by_definition(attributes, camera, antialiased)
    band = library.device_type == "cuda"
    for a, b in zip(outputs, expected):
        assert_close(a, b, FLOAT_PICTURE, band=band)
    for name, a, b in zip(NAMES, gradients, expected_gradients):
        assert_close(a, b, FLOAT_SHARE[scene], band=band, name=name)


@pytest.mark.parametrize("antialiased", [False, True])
def test_gradients_equal_finite_differences(exact, antialiased):
    attributes, camera = random_attributes(40, 15, 0.2, seed=6), front()
    *_, gradients, _ = by_kernels(exact, attributes, camera, antialiased=antialiased)
    leaves = [leaf.detach() for leaf in leaves_of(attributes, camera, torch.float64, "cpu")]
    weights = weights_of(camera)

    def loss(values):
        *six, background, viewmat = values
        result = rasterize_cuda(
            *six,
            camera,
            background=background,
            viewmat=viewmat,
            with_depth=True,
            antialiased=antialiased,
            library=exact,
        )
        return sum(float((o * w).sum()) for o, w in zip((result.rgb, result.alpha, result.depth), weights))

    rng = np.random.default_rng(8)
    for kind, name in enumerate(NAMES):
        checked = 0
        for _ in range(4):
            direction = torch.tensor(rng.normal(size=tuple(leaves[kind].shape)))
            if name == "viewmat":
                # Along rigid motions: the definition takes the rotation's transpose for its inverse.
                turn = torch.tensor(np.cross(np.eye(3), rng.normal(size=3))) @ leaves[kind][:3, :3]
                direction[:3, :3], direction[3] = turn, 0
            slopes = []
            for step in (1e-6, 2.5e-7):
                sides = []
                for sign in (1, -1):
                    changed = list(leaves)
                    changed[kind] = leaves[kind] + sign * step * direction
                    sides.append(loss(changed))
                slopes.append((sides[0] - sides[1]) / (2 * step))
            # Where a pixel crosses the alpha threshold between the steps there is no derivative to compare.
            if abs(slopes[0] - slopes[1]) < 1e-4 * abs(slopes[1]):
                expected = float((gradients[kind] * direction).sum())
                assert slopes[0] == pytest.approx(expected, rel=2e-4), name
                checked += 1
        assert checked >= 2, name


def test_a_picture_does_not_depend_on_the_order_of_threads(exact, library):
    # Each launch on the emulated device runs its threads in another random order.
    attributes, camera = SCENES["medium"]
    for kernels, share in ((library, 1e-5), (exact, 1e-12)):
        first, second = (by_kernels(kernels, attributes, camera) for _ in range(2))
        for a, b in zip(first[0], second[0]):
            assert torch.equal(a, b)
        for name, a, b in zip(NAMES, first[1], second[1]):
            assert_close(a, b, share, name=name)


def test_long_lists_and_wide_gaussians(library):
    # More than two batches of 256 in one tile; Gaussians over more rows of tiles than a warp has lanes.
    camera = Camera(np.eye(4), [[20, 0, 8], [0, 20, 270], [0, 0, 1]], 17, 541)
    rng = np.random.default_rng(9)
    attributes = random_attributes(700, 0, 0.02, 0.3, seed=9)
    attributes[0] = torch.tensor(
        np.stack([0.2 * rng.normal(size=700), rng.normal(size=700), rng.uniform(2, 3, 700)], 1), dtype=torch.float32
    )
    attributes[2][:6] = math.log(20.0)  # over the whole height
    attributes[2][6:20] = torch.tensor([-3.0, 3.0, -3.0])  # long and thin
    attributes[3][:] = -3.5
    outputs, gradients, visible = by_kernels(library, attributes, camera)
    expected, expected_gradients, _ = by_definition(attributes, camera)
    band = library.device_type == "cuda"
    assert visible.sum() > 600
    for a, b in zip(outputs, expected):
        assert_close(a, b, 5e-5, band=band)
    for name, a, b in zip(NAMES, gradients, expected_gradients):
        # One sum over 10,000 pixels of rounding errors.
        assert_close(a, b, 2e-3 if name in ("quats", "log_scales") else 3e-4, band=band, name=name)


def test_equal_depths_are_drawn_by_index(library):
    camera = Camera(np.eye(4), [[50, 0, 16], [0, 50, 16], [0, 0, 1]], 32, 32)
    attributes = random_attributes(40, 0, 0.3, seed=10)
    attributes[0][:, 2] = 3.0
    outputs, *_ = by_kernels(library, attributes, camera)
    expected, *_ = by_definition(attributes, camera)
    assert_close(outputs[0], expected[0], FLOAT_PICTURE, band=library.device_type == "cuda")


def test_a_scene_far_from_the_origin_keeps_its_pixels(library):
    center = torch.tensor([40000.0, -30000.0, 20000.0])
    attributes = random_attributes(100, 3, 0.2, seed=11)
    attributes[0] = attributes[0] * 2 + center
    target = center.double().numpy()
    camera = look_at(target + np.array([1, 0.5, -8]), target, width=48, height=40)
    six = [tensor.to(library.device_type) for tensor in attributes]
    result = rasterize_cuda(*six, camera, library=library)
    expected, *_ = render_tensors(*(tensor.double() for tensor in attributes), camera)
    assert float(expected.max()) > 0.5
    assert_close(result.rgb.cpu(), expected, FLOAT_PICTURE, band=library.device_type == "cuda")


def poisoned():
    """A scene in which every third row cannot be drawn, each for another reason; and which rows are sound."""
    attributes = random_attributes(60, 8, 0.2, seed=12)
    means, quats, log_scales, logits, sh0, shN = attributes
    nan, inf = math.nan, math.inf
    sound = torch.ones(60, dtype=torch.bool)
    damage = [
        (means, (0,), nan), (means, (1,), inf), (means, (2,), -inf), (means, (0,), 1e30), (means, (2,), 3e38),
        (quats, (0,), nan), (quats, (2,), inf), (log_scales, (0,), nan), (log_scales, (1,), inf),
        (logits, (), nan), (logits, (), -inf), (logits, (), -100.0),
        (sh0, (0, 1), nan), (sh0, (0, 2), inf), (shN, (3, 0), nan), (shN, (7, 2), -inf),
    ]  # fmt: skip
    for k, (tensor, where, value) in enumerate(damage):
        tensor[(3 * k, *where)] = value
        sound[3 * k] = False
    return attributes, sound


@pytest.mark.parametrize("antialiased", [False, True])
def test_rows_that_cannot_be_drawn_are_left_out(library, antialiased):
    attributes, sound = poisoned()
    # Drawn, if barely: no rotation, no width, absurd widths, absurd opacity, behind and at the camera.
    attributes[1][1] = 0.0
    attributes[1][2] = 1e-30
    attributes[1][4] = 1e30
    attributes[2][5] = -math.inf
    attributes[2][7, 1] = -200.0
    attributes[3][8] = math.inf
    attributes[0][10] = torch.tensor([1.0, 0.5, -4.0])  # at the camera
    attributes[0][11] = torch.tensor([1.0, 0.5, -9.0])  # behind it
    attributes[4][13] = 1e9  # a colour above the limit
    attributes[2][14] = torch.tensor([20.0, -3.0, -3.0])  # a needle from here to the horizon
    attributes[3][14] = -1.0
    attributes[2][16] = 300.0  # everywhere
    attributes[3][16] = -3.0
    attributes[2][17] = torch.tensor([30.0, 40.0, 88.0])
    attributes[3][17] = -3.0
    camera = front()
    outputs, gradients, visible = by_kernels(library, attributes, camera, antialiased=antialiased)
    kept = [tensor[sound].double() for tensor in attributes]
    kept[3].clamp_(max=80.0)
    rgb, alpha, depth, _ = render_tensors(*kept, camera, antialiased=antialiased)
    rgb = rgb + (1 - alpha)[..., None] * torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    band = library.device_type == "cuda"
    # Relative to the pixel: one colour is a million.
    off = (outputs[0] - rgb).abs() / rgb.abs().clamp(min=1)
    assert float((off > 1e-4).double().mean()) <= (BAND_SHARE if band else 0)
    assert_close(outputs[1], alpha, 1e-4, band=band)
    assert_close(outputs[2], depth, 1e-4, band=band)
    assert not visible[~sound].any()
    for name, gradient in zip(NAMES[:6], gradients):
        assert torch.isfinite(gradient).all(), name
        assert not gradient[~sound].any(), name
        assert not gradient[[10, 11]].any(), name
    assert not gradients[1][1].any()  # a zero quaternion is the identity, whatever is near it
    assert not gradients[2][16].any()  # clamped
    assert gradients[0][20].any()
    assert torch.isfinite(gradients[6]).all()
    assert torch.isfinite(gradients[7]).all()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("num_rest", [0, 3, 8, 15])
def test_scenes_of_none_and_of_one(library, count, num_rest):
    attributes, camera = random_attributes(count, num_rest, 0.3), front(16, 16)
    outputs, gradients, visible = by_kernels(library, attributes, camera)
    expected, expected_gradients, _ = by_definition(attributes, camera)
    for a, b in zip([*outputs, *gradients], [*expected, *expected_gradients]):
        assert a.shape == b.shape
        assert_close(a, b, 1e-5)
    assert visible.sum() == count
    assert count or torch.equal(outputs[0][3, 5], torch.tensor([0.2, 0.5, 0.7]))


def test_nothing_in_view(library):
    attributes = random_attributes(20, 0)
    attributes[0][:, 2] = -50.0
    outputs, gradients, visible = by_kernels(library, attributes, front(20, 20))
    assert not visible.any()
    assert not outputs[1].any()
    assert not any(gradient.any() for gradient in gradients[:6])


def test_outputs_without_a_loss_and_the_choice_of_outputs(library):
    attributes, camera = SCENES["medium"]
    leaves = [tensor.clone().to(library.device_type).requires_grad_() for tensor in attributes]
    picture = rasterize_cuda(*leaves, camera, library=library)
    assert picture.depth is None
    picture.alpha.sum().backward()  # no loss of the colours
    assert leaves[4].grad is not None
    assert not leaves[4].grad.any()
    assert leaves[3].grad.any()
    again = [tensor.detach().clone().requires_grad_() for tensor in leaves]
    with torch.no_grad():
        silent = rasterize_cuda(*again, camera, library=library)
    assert torch.equal(silent.rgb, picture.rgb)
    assert not silent.rgb.requires_grad


def test_screen_gradients_are_those_of_the_cpu(library):
    attributes, camera = SCENES["medium"]
    weights = [weight.float() for weight in weights_of(camera)]
    sums = {}
    for backend in ("cpu", "kernels"):
        device = library.device_type if backend == "kernels" else "cpu"
        leaves = [tensor.clone().to(device).requires_grad_() for tensor in attributes]
        absolute, signed = (torch.ones((len(leaves[0]), 2), device=device) for _ in range(2))
        options = {"screen_gradients": absolute, "screen_gradients_signed": signed, "with_depth": True}
        if backend == "cpu":
            result = rasterize(*leaves, camera, backend="cpu", **options)
        else:
            result = rasterize_cuda(*leaves, camera, library=library, **options)
        outputs = (result.rgb, result.alpha, result.depth)
        sum((o * w.to(o)).sum() for o, w in zip(outputs, weights)).backward()
        sums[backend] = (absolute.cpu(), signed.cpu())
    band = library.device_type == "cuda"
    for a, b in zip(sums["kernels"], sums["cpu"]):
        assert_close(a, b, 1e-4, band=band)
    absolute, signed = sums["kernels"]
    assert (absolute - 1 >= (signed - 1).abs() * (1 - 1e-4) - 1e-6).all()
    assert (absolute > 1.01).any()


def scene_of(attributes):
    return Gaussians(*(tensor.numpy() for tensor in attributes))


@pytest.mark.parametrize(("antialiased", "equalize"), [(False, False), (True, True)])
def test_contributions_are_those_of_the_cpu(library, antialiased, equalize):
    scene = scene_of(random_attributes(150, 3, 0.15, seed=13))
    scene = replace(scene, means=np.where(np.arange(150)[:, None] == 7, np.nan, scene.means))
    cameras = evaluation_cameras(scene, num_views=3, size_px=40)
    options = {"antialiased": antialiased, "equalize": equalize}
    expected = contributions(scene, cameras, **options)
    actual = contributions_cuda(scene, cameras, library=library, **options)
    assert isinstance(actual, Contributions)
    assert actual.num_views == 3
    assert expected.hits.max() > 50
    band = library.device_type == "cuda"
    for name in ("max_weight", "sum_weight", "sum_weight2", "s_logalpha", "s_position", "s_cov"):
        a, b = getattr(actual, name), getattr(expected, name)
        assert a.dtype == b.dtype
        assert_close(torch.from_numpy(a), torch.from_numpy(b), 1e-4, band=band, name=name)
    assert np.abs(actual.hits - expected.hits).max() <= (5 if band else 0)
    assert actual.hits[7] == 0
    seen = (expected.hits > 5) & (actual.hits > 5)
    assert np.allclose(actual.pixel_size[seen], expected.pixel_size[seen], rtol=1e-6)
    assert np.isinf(actual.pixel_size[actual.hits == 0]).all()


def test_statistics_come_with_the_picture(library):
    attributes, camera = SCENES["medium"]
    six = [tensor.to(library.device_type) for tensor in attributes]
    statistics = torch.zeros((120, STATISTICS), device=library.device_type)
    with torch.no_grad():
        plain = rasterize_cuda(*six, camera, library=library)
        counted = rasterize_cuda(*six, camera, library=library, statistics=statistics)
        rasterize_cuda(*six, camera, library=library, statistics=statistics)
    assert torch.equal(plain.rgb, counted.rgb)
    expected = contributions(scene_of(attributes), [camera, camera])
    sums = statistics.cpu().double().numpy()
    band = library.device_type == "cuda"
    for column, values in enumerate((expected.sum_weight, expected.sum_weight2, expected.max_weight, expected.hits)):
        assert_close(torch.from_numpy(sums[:, column]), torch.from_numpy(values.astype(float)), 1e-4, band=band)
    assert not sums[:, 4:].any()


def test_the_rasterizer_dispatches_to_the_kernels(library, monkeypatch):
    monkeypatch.setattr(cuda_module, "_loaded", library)
    if library.device_type == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    attributes, camera = SCENES["medium"]
    six = [tensor.to(library.device_type) for tensor in attributes]
    viewmat = torch.tensor(np.array(camera.viewmat), dtype=torch.float32, requires_grad=True)
    result = rasterize(*six, camera, backend="cuda", viewmat=viewmat, with_depth=True)
    expected = rasterize(*attributes, camera, backend="cpu", with_depth=True)
    band = library.device_type == "cuda"
    for name in ("rgb", "alpha", "depth"):
        assert_close(getattr(result, name).detach().cpu(), getattr(expected, name), FLOAT_PICTURE, band=band)
    assert torch.equal(result.visible.cpu(), expected.visible)
    result.rgb.sum().backward()
    assert viewmat.grad is not None
    assert viewmat.grad.any()


def test_a_pose_is_found_by_descent(exact):
    attributes, camera = random_attributes(40, 0, 0.3, seed=14), front(24, 16)
    wide = [tensor.double() for tensor in attributes]
    target = rasterize_cuda(*wide, camera, library=exact).rgb
    start = torch.tensor(np.array(camera.viewmat))
    start[:3, 3] += torch.tensor([0.03, -0.025, 0.02], dtype=torch.float64)
    viewmat = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([viewmat], lr=0.006)
    errors = []
    for _ in range(24):
        optimizer.zero_grad()
        loss = (rasterize_cuda(*wide, camera, viewmat=viewmat, library=exact).rgb - target).square().mean()
        loss.backward()
        viewmat.grad[:, :3] = 0  # the position alone
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.05 * errors[0]
    assert float((viewmat.detach() - torch.tensor(np.array(camera.viewmat)))[:3, 3].abs().max()) < 0.01


def test_arguments_that_do_not_fit_are_refused(exact):
    attributes, camera = random_attributes(5, 0), front(16, 16)
    wide = [tensor.double() for tensor in attributes]
    for name, tensor in (
        ("screen_gradients", torch.zeros((4, 2), dtype=torch.float64)),
        ("screen_gradients_signed", torch.zeros((5, 2), dtype=torch.float32)),
        ("statistics", torch.zeros((STATISTICS, 5), dtype=torch.float64).T),
        ("viewmat", torch.eye(3)),
        ("viewmat", torch.full((4, 4), math.nan)),
    ):
        with pytest.raises(ParameterError) as caught:
            rasterize_cuda(*wide, camera, library=exact, **{name: tensor})
        assert caught.value.field == name
    with pytest.raises(ParameterError, match="one cpu device"):
        rasterize_cuda(*wide[:5], wide[5].to("meta"), camera, library=exact)
    with pytest.raises(ParameterError, match="65536"):
        rasterize_cuda(*wide, Camera(np.eye(4), np.eye(3), 70000, 2), library=exact)


def test_a_view_that_does_not_fit_the_memory_is_a_clear_error(exact, monkeypatch):
    attributes, camera = SCENES["medium"]
    real = torch.empty

    def small_memory(shape, **options):
        if options.get("dtype") == torch.uint8 and shape[0] > 100_000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(shape, **options)

    monkeypatch.setattr(cuda_module.torch, "empty", small_memory)
    big = [tensor.double().repeat(30, *[1] * (tensor.ndim - 1)) for tensor in attributes]
    with pytest.raises(LimitExceededError, match=r"needs \d+ \(tile, Gaussian\) entries"):
        rasterize_cuda(*big, camera, library=exact)


def test_without_a_device_or_kernels_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_module, "_loaded", None)
    attributes, camera = random_attributes(2, 0), front(16, 16)
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailableError, match="needs a CUDA device"):
            rasterize(*attributes, camera, backend="cuda")
        assert not cuda_module.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_module, "_capability", lambda: 90)
    # A file that is not there, or no library.
    for content in (None, b"not a library"):
        path = tmp_path / "named.so"
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setenv("SPLATCODEC_CUDA_LIBRARY", str(path))
        with pytest.raises(BackendUnavailableError, match=r"cannot be loaded.*build cuda_ext again"):
            load_library()
    monkeypatch.delenv("SPLATCODEC_CUDA_LIBRARY")
    # Installed without cuda_ext, and not a checkout.
    monkeypatch.setattr(cuda_module, "__file__", str(tmp_path / "splatcodec" / "render" / "cuda.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"not installed .pip install \./cuda_ext"):
        load_library()
    # A checkout, but no compiler.
    monkeypatch.setattr(cuda_module, "__file__", str(EXTENSION.parent / "splatcodec" / "render" / "cuda.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    with pytest.raises(BackendUnavailableError, match=r"no nvcc"):
        load_library()


def test_kernels_of_another_version_are_refused(tmp_path):
    compiler = shutil.which("g++") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, output = tmp_path / "old.cpp", tmp_path / "old.so"
    source.write_text('extern "C" int sc_abi_version() { return 7000; }\n')
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(output)], check=True)
    with pytest.raises(BackendUnavailableError, match="version 7000"):
        KernelLibrary(output)


def test_the_emulated_device_notices_a_barrier_that_not_all_reach(tmp_path, emulated_file):
    # The tests above are worth as much as the emulation is.
    source, output = tmp_path / "bad.cpp", tmp_path / "bad.so"
    source.write_text(
        '#include "platform.h"\n'
        "__global__ void uneven(int* out) { if (threadIdx.x < 8) __syncthreads(); out[threadIdx.x] = 1; }\n"
        "__global__ void racing(int* out) {\n"
        "    __shared__ int shared[64];\n"
        "    shared[threadIdx.x] = threadIdx.x;\n"
        "    out[threadIdx.x] = shared[(threadIdx.x + 1) % 64];\n"
        "    shared[threadIdx.x] = -1;\n"
        "}\n"
        'extern "C" int run_uneven(int* out) { SC_LAUNCH(uneven, 1, 32, nullptr, out); return sc::launch_error(); }\n'
        'extern "C" int run_racing(int* out) { SC_LAUNCH(racing, 1, 64, nullptr, out); return sc::launch_error(); }\n'
    )
    compiler = next(found for name in ("g++", "clang++", "c++") if (found := shutil.which(name)))
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{EXTENSION / 'csrc'}"]
    subprocess.run([compiler, *options, str(source), "-o", str(output)], check=True)
    kernels = ctypes.CDLL(str(output))
    out = np.zeros(64, np.int32)
    assert kernels.run_uneven(out.ctypes.data_as(ctypes.c_void_p)) == 999001
    assert kernels.run_racing(out.ctypes.data_as(ctypes.c_void_p)) == 0
    assert not np.array_equal(out, (np.arange(64) + 1) % 64)  # the missing barrier shows


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The library as nvcc makes it for the oldest and the newest device, warnings as errors; what ptxas said."""
    building = building_module()
    nvcc = building.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc to compile the CUDA kernels")
    known = building.nvcc_architectures(nvcc)
    output = tmp_path_factory.mktemp("nvcc") / building.LIBRARY_NAME
    strict = ["-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", "-Xptxas=-v"]
    said = building.compile_library(
        EXTENSION / "csrc",
        output,
        nvcc=nvcc,
        architectures=[number for number in (75, 90) if number in known],
        options=strict,
    )
    return output, said


def test_kernels_compile_without_warnings_and_spills(compiled):
    _, said = compiled
    kernels = re.findall(
        r"Compiling entry function '(\S+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores",
        said,
        re.DOTALL,
    )
    own = [kernel for kernel in kernels if kernel[0].startswith("_ZN2sc")]
    assert len(own) >= 15
    assert {kernel[1] for kernel in own} <= {"sm_75", "sm_90"}
    for name, target, stack, spills in own:
        assert (int(stack), int(spills)) == (0, 0), (name, target)


def test_compiled_and_emulated_kernels_have_the_same_functions(compiled, exact):
    library = KernelLibrary(compiled[0])  # finds all functions, checks the version
    assert library.constants() == exact.constants()
    assert library.project_threads == exact.project_threads
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailableError, match="CUDA device 0 cannot be used"):
            library.on(torch.device("cuda", 0))


def test_kernels_are_compiled_from_a_checkout_once(tmp_path, monkeypatch):
    building = building_module()
    if building.find_nvcc() is None:
        pytest.skip("no nvcc to compile the CUDA kernels")
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_module, "_loaded", None)
    monkeypatch.setattr(cuda_module, "_capability", lambda: 121)  # newer than any: PTX of the newest known
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = subprocess.run

    def quick(command, **options):
        if "-shared" in command:
            calls.append(command)
            Path(command[command.index("-o") + 1]).write_bytes(b"not really")
            return subprocess.CompletedProcess(command, 0, "", "")
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", quick)
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match="cannot be loaded"):  # as far as it goes without a device
            load_library()
    assert len(calls) == 1
    newest = max(number for number in building.nvcc_architectures(building.find_nvcc()) if number <= 121)
    assert f"-gencode=arch=compute_{newest},code=compute_{newest}" in calls[0]
    assert [path.name for path in tmp_path.rglob("*.so")] == [building.LIBRARY_NAME]


def test_the_gpu_check_says_what_could_not_be_run(tmp_path):
    output = tmp_path / "check.json"
    stages = ("environment", "tests", "memcheck", "racecheck", "timings", "training")
    result = subprocess.run(
        [str(EXTENSION.parent / "tools" / "gpu_check.sh"), str(output), "--stages", *stages],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 3, result.stdout + result.stderr
    report = json.loads(output.read_text())["stages"]
    assert report["environment"]["status"] == "passed"
    assert report["environment"]["torch"] == torch.__version__
    assert report["build"]["status"] == "not run: not asked for"
    for name in stages[1:]:
        assert report[name]["status"] == "not run: no CUDA device"
        assert f"{name}: not run: no CUDA device" in result.stdout


def test_the_gpu_check_survives_stages_that_fail(tmp_path, monkeypatch):
    import gpu_check

    def broken(context, limit_s):
        raise RuntimeError("nothing works")

    functions = {
        "environment": lambda context, limit_s: context.update(device=True) or {"status": "passed"},
        "build": lambda context, limit_s: context.update(library="x") or {"status": "passed"},
        "tests": broken,
        "memcheck": lambda context, limit_s: gpu_check.run(["sh", "-c", "echo said; sleep 60 & sleep 60"], 1),
        "racecheck": lambda context, limit_s: gpu_check.run(["/no/such/program"], 1) | {"status": "failed: missing"},
        "timings": lambda context, limit_s: {"status": "passed"},
        "training": lambda context, limit_s: {"status": "passed"},
    }
    monkeypatch.setattr(gpu_check, "STAGE_FUNCTIONS", functions)
    output = tmp_path / "check.json"
    gpu_check.check({}, gpu_check.STAGES, output)
    stages = json.loads(output.read_text())["stages"]
    assert stages["tests"]["status"] == "failed: RuntimeError: nothing works"
    assert stages["memcheck"]["status"] == "failed: out of time"
    assert stages["memcheck"]["said"] == "said\n"
    assert stages["memcheck"]["seconds"] < 30  # it does not wait for the children
    assert stages["racecheck"]["exit_code"] == 127
    assert stages["training"]["status"] == "passed"


def test_the_gpu_check_times_and_makes_pictures(tmp_path, library, monkeypatch):
    import gpu_check

    from splatcodec.sample import sample_scene
    from splatcodec.training.datasets import ReadOptions, read_dataset

    device = library.device_type
    results = gpu_check.time_scenes([50, 100], 48, 32, device, 2, library)
    for row, count in zip(results["scenes"], (50, 100)):
        assert row["gaussians"] == count
        assert 0 < row["visible"] <= count
        assert row["mean_alpha"] > 0.02
        assert row["ours"]["forward_backward_ms"] > row["ours"]["forward_ms"] > 0
    gpu_check.write_data_set(tmp_path, 200, 9, 24, device, library)
    # A result is found whatever else is printed, before it or after it.
    echo = [sys.executable, "-c", "import sys; print('{'); print(sys.argv[-1]); print('=== 0 errors')"]
    monkeypatch.setattr(gpu_check, "_RESULT", "--result=")
    outcome = gpu_check.worker("small", 30, '--result={"a": "' + 9000 * "x" + '"}', prefix=[*echo, "--"])
    assert outcome["result"] == {"a": 9000 * "x"}
    assert outcome["said"].splitlines() == ["{", "=== 0 errors"]
    dataset = read_dataset(str(tmp_path), ReadOptions())
    assert (dataset.kind, len(dataset.train), len(dataset.test)) == ("blender", 7, 2)
    # The poses belong to the pictures.
    view, expected = dataset.test[1], encoder_cameras(sample_scene(200), num_views=9, size_px=24)[8]
    assert np.allclose(view.camera.viewmat[:3, :3], expected.viewmat[:3, :3], atol=1e-6)
    assert view.camera.focal_px == pytest.approx(expected.focal_px)
