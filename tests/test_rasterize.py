"""The differentiable rasterizer: pictures and gradients of the CPU kernels against the definition in plain torch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from splatcodec.errors import ParameterError  # noqa: E402
from splatcodec.gaussians import Gaussians  # noqa: E402
from splatcodec.render import cpu  # noqa: E402
from splatcodec.render.camera import Camera, look_at  # noqa: E402
from splatcodec.render.rasterize import rasterize  # noqa: E402
from splatcodec.render.reference import render_tensors  # noqa: E402

NAMES = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")


def random_attributes(count, num_rest=15, sigma=0.1, seed=1):
    rng = np.random.default_rng(seed)
    arrays = (
        rng.normal(size=(count, 3)) * 0.7,
        rng.normal(size=(count, 4)),
        np.log(sigma) + rng.normal(size=(count, 3)) * 0.7,
        rng.normal(size=count),
        rng.normal(size=(count, 1, 3)),
        0.3 * rng.normal(size=(count, num_rest, 3)),
    )
    return [torch.tensor(array, dtype=torch.float32) for array in arrays]


def front(width=45, height=37):
    return look_at((1, 0.5, -4), (0, 0, 0), width=width, height=height)


def drawn(attributes, camera, backend, *, weights, **options):
    """Outputs and gradients (attributes, then background) of a random linear loss of all outputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in attributes]
    background = torch.tensor([0.2, 0.5, 0.7], requires_grad=True)
    result = rasterize(*leaves, camera, background=background, with_depth=True, backend=backend, **options)
    outputs = (result.rgb, result.alpha, result.depth)
    loss = sum((output * weight).sum() for output, weight in zip(outputs, weights))
    loss.backward()
    return [output.detach() for output in outputs], [leaf.grad for leaf in leaves] + [background.grad], result.visible


def random_weights(camera, seed=3):
    rng = np.random.default_rng(seed)
    shapes = ((camera.height, camera.width, 3), (camera.height, camera.width), (camera.height, camera.width))
    return [torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in shapes]


def assert_close(actual, expected, share=2e-5):
    """Every entry within `share` of the largest."""
    if expected.numel():
        assert (actual - expected).abs().max() <= share * max(float(expected.abs().max()), 1e-6)


CLOSE_UP = Camera(
    look_at((0.1, 0.2, -0.3), (1, 0.3, 1)).viewmat, [[40, 0, 10], [0, 55, 30], [0, 0, 1]], 70, 37, near=0.02
)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize(
    ("num_rest", "sigma", "camera"),
    [(15, 0.1, front()), (8, 0.3, CLOSE_UP), (3, 0.01, front()), (0, 1.0, front(33, 16))],
    ids=["medium", "close-up", "sub-pixel", "large"],
)
def test_pictures_and_gradients_equal_the_definition(num_rest, sigma, camera, antialiased):
    attributes = random_attributes(120, num_rest, sigma)
    weights = random_weights(camera)
    actual, actual_gradients, visible = drawn(attributes, camera, "cpu", weights=weights, antialiased=antialiased)
    expected, expected_gradients, seen = drawn(
        attributes, camera, "reference", weights=weights, antialiased=antialiased
    )
    for a, b in zip(actual, expected):
        assert_close(a, b, 1e-5)
    for name, a, b in zip((*NAMES, "background"), actual_gradients, expected_gradients):
        assert a is not None, name
        assert_close(a, b)
    assert not (seen & ~visible).any()
    assert all(float(gradient.abs().max()) > 0 for gradient in expected_gradients if gradient.numel())


def test_gradients_equal_finite_differences():
    attributes = random_attributes(12, 8, 0.3, seed=5)
    camera = front(24, 20)
    weights = random_weights(camera)
    _, gradients, _ = drawn(attributes, camera, "cpu", weights=weights)

    def loss(changed):
        exact = [tensor.double() for tensor in changed]
        rgb, alpha, depth, _ = render_tensors(*exact, camera)
        rgb = rgb + (1 - alpha)[..., None] * torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
        return float(sum((o * w.double()).sum() for o, w in zip((rgb, alpha, depth), weights)))

    rng = np.random.default_rng(7)
    checked = 0
    for kind in range(6):
        flat = gradients[kind].flatten()
        for at in rng.choice(len(flat), min(8, len(flat)), replace=False):
            slopes = []
            for step in (1e-4, 2.5e-5):  # in double, so that a kept threshold shows no noise
                sides = []
                for sign in (1, -1):
                    changed = [tensor.double() for tensor in attributes]
                    changed[kind] = changed[kind].clone()
                    changed[kind].view(-1)[at] += sign * step
                    sides.append(loss(changed))
                slopes.append((sides[0] - sides[1]) / (2 * step))
            # Where a pixel crosses the alpha threshold between the steps there is no derivative to compare.
            if abs(slopes[0] - slopes[1]) > 1e-3 * max(1.0, abs(slopes[1])):
                continue
            assert float(flat[at]) == pytest.approx(slopes[1], rel=2e-3, abs=2e-3 * float(flat.abs().max()))
            checked += 1
    assert checked >= 30


def test_draws_what_the_renderer_draws_and_any_number_of_threads_gives_the_same():
    attributes = random_attributes(4000, 3, 0.05)
    camera = front(150, 101)
    scene = Gaussians(*[tensor.numpy() for tensor in attributes])
    expected = cpu.render(scene, camera, background=(0.2, 0.5, 0.7))
    results = [drawn(attributes, camera, "cpu", weights=random_weights(camera), num_threads=k) for k in (1, 2, 3)]
    assert np.array_equal(results[0][0][0].numpy(), expected.rgb)
    for outputs, gradients, _ in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs, results[0][0]))
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1]))


def test_layers_change_nothing(monkeypatch):
    from splatcodec.render import gradients as module

    attributes = random_attributes(800, 3, 0.2)
    weights = random_weights(front())
    expected = drawn(attributes, front(), "cpu", weights=weights)
    monkeypatch.setattr(module, "_MAX_ENTRIES", 500)
    actual = drawn(attributes, front(), "cpu", weights=weights)
    for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1])):
        assert_close(a, b, 1e-6)


def test_screen_gradients_are_added_up():
    attributes = random_attributes(60, 0, 0.2)
    camera = front(32, 32)
    absolute, signed = torch.zeros(60, 2), torch.zeros(60, 2)
    for _ in range(2):
        drawn(
            attributes,
            camera,
            "cpu",
            weights=random_weights(camera),
            screen_gradients=absolute,
            screen_gradients_signed=signed,
        )
    assert (absolute >= signed.abs() - 1e-3).all()
    assert absolute.sum() > signed.abs().sum() > 0


def test_signed_screen_gradients_are_derivatives_by_the_place_on_the_picture():
    # Moving the principal point moves all means on the picture by the same and changes nothing else. The Gaussians
    # cover the whole picture, so that no pixel crosses the alpha threshold.
    attributes = random_attributes(8, 0, 4.0)
    camera = front(32, 32)
    weights = random_weights(camera)[0]
    signed = torch.zeros(8, 2)
    result = rasterize(*[leaf.clone().requires_grad_() for leaf in attributes], camera, screen_gradients_signed=signed)
    assert result.depth is None
    (result.rgb * weights).sum().backward()
    exact = [tensor.double() for tensor in attributes]
    for axis in range(2):
        sides = []
        for step in (1e-3, -1e-3):
            K = camera.K.copy()
            K[axis, 2] += step
            moved = Camera(camera.viewmat, K, 32, 32)
            sides.append(float((render_tensors(*exact, moved)[0] * weights.double()).sum()))
        assert float(signed[:, axis].sum()) == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=1e-3)


@pytest.mark.parametrize("poison", ["nan", "inf", "zero quaternion", "huge", "behind", "tiny", "transparent"])
def test_poisoned_gaussians_change_nothing_else(poison):
    attributes = random_attributes(40, 3, 0.2)
    camera = front(40, 30)
    weights = random_weights(camera)
    _, clean, _ = drawn(attributes, camera, "cpu", weights=weights)
    bad = [torch.cat([tensor, tensor[:1]]) for tensor in attributes]
    if poison == "nan":
        bad[0][-1] = float("nan")
    elif poison == "inf":
        bad[4][-1] = float("inf")
    elif poison == "behind":
        bad[0][-1] = torch.tensor([2.0, 1.0, -9.0])
    elif poison == "transparent":
        bad[3][-1] = -30.0
    elif poison == "zero quaternion":
        bad[1][-1] = 0.0
    elif poison == "huge":
        bad[2][-1] = 1e30
    else:
        bad[2][-1] = -60.0
    outputs, gradients, visible = drawn(bad, camera, "cpu", weights=weights)
    assert all(torch.isfinite(tensor).all() for tensor in (*outputs, *gradients))
    if poison in ("nan", "inf", "behind", "transparent"):
        assert not visible[-1]
        for a, b in zip(gradients[:6], clean[:6]):
            assert torch.equal(a[:-1], b)
            assert not a[-1].any()
    else:
        expected, reference, _ = drawn(bad, camera, "reference", weights=weights)
        assert_close(outputs[0], expected[0], 1e-5)
        for name, a, b in zip(NAMES, gradients, reference):
            b = torch.nan_to_num(b)
            if poison == "huge" and name in ("means", "quats", "log_scales"):
                a, b = a[:-1], b[:-1]  # an even veil: the definition's own derivative overflows there
            assert_close(a, b, 1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_no_gaussians_and_one(count):
    attributes = random_attributes(count, 3, 0.3)
    camera = front(20, 20)
    outputs, gradients, visible = drawn(attributes, camera, "cpu", weights=random_weights(camera))
    expected, reference, _ = drawn(attributes, camera, "reference", weights=random_weights(camera))
    assert visible.shape == (count,)
    assert all(a.shape == b.shape for a, b in zip(gradients, attributes))
    for a, b in zip((*outputs, *gradients), (*expected, *reference)):
        assert_close(a, b)


def test_bad_arguments_are_refused():
    attributes = random_attributes(3, 0)
    with pytest.raises(ParameterError, match="shapes"):
        rasterize(attributes[0][:2], *attributes[1:], front())
    with pytest.raises(ParameterError, match="backend"):
        rasterize(*attributes, front(), backend="vulkan")
    with pytest.raises(ParameterError, match="pose"):
        rasterize(*attributes, front(), viewmat=torch.eye(4))


def test_pose_gradients_of_the_definition():
    attributes = random_attributes(20, 3, 0.3)
    camera = front(20, 20)
    pose = torch.tensor(camera.viewmat, requires_grad=True)
    rasterize(*attributes, camera, backend="reference", viewmat=pose).rgb.sum().backward()
    assert torch.isfinite(pose.grad).all()
    assert pose.grad[:3].abs().max() > 0
