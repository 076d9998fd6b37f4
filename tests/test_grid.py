"""The self-organizing grid: smooth, complete, the same for any number of threads; covariance forms keep ellipsoids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from grid_bench import reference_sort
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec.errors import BackendUnavailableError, ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.preprocess import self_organizing_grid as module
from splatcodec.preprocess.self_organizing_grid import (
    Grid,
    curve_grid,
    grid_features,
    grid_width,
    nearest_covariances,
    neighbor_distance,
    smooth_covariances,
    sort_into_grid,
)
from splatcodec.sample import sample_scene


def covariances(scene: Gaussians) -> npt.NDArray[np.float64]:
    w, x, y, z = scene.normalized_quats().astype(np.float64).T
    turns = np.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        axis=-1,
    ).reshape(-1, 3, 3)  # fmt: skip
    return np.einsum("nij,nj,nkj->nik", turns, np.exp(2 * scene.scales.astype(np.float64)), turns)


@given(count=st.integers(0, 400), width=st.integers(1, 40), dims=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_any_count_and_width_gives_an_order(count: int, width: int, dims: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(count, dims))
    grid = sort_into_grid(features, width=width, seed=seed, improvement_break=1e-2)
    assert np.array_equal(np.sort(grid.order), np.arange(count))
    assert grid.height * grid.width >= count > (grid.height - 1) * grid.width or count == 0
    along = curve_grid(features[:, :1].repeat(3, 1), width=width)
    assert np.array_equal(np.sort(along.order), np.arange(count))


def test_as_smooth_as_the_float64_reference() -> None:
    features = grid_features(sample_scene(1024))
    ours = np.mean([neighbor_distance(features, sort_into_grid(features, seed=seed)) for seed in range(4)])
    plain = np.mean([neighbor_distance(features, reference_sort(features, seed=seed)) for seed in range(2)])
    assert ours <= 1.02 * plain
    order = curve_grid(features[:, :3])
    assert ours < 0.75 * neighbor_distance(features, order)
    assert neighbor_distance(features, order) < 0.9 * neighbor_distance(features, Grid(np.arange(1024), 32))


def test_threads_do_not_change_the_grid_and_seeds_do() -> None:
    features = np.random.default_rng(0).normal(size=(7001, 4))
    first = sort_into_grid(features, num_threads=1, improvement_break=1e-2)
    assert np.array_equal(first.order, sort_into_grid(features, num_threads=3, improvement_break=1e-2).order)
    assert not np.array_equal(first.order, sort_into_grid(features, seed=1, improvement_break=1e-2).order)


def test_a_start_is_kept_where_it_is_good() -> None:
    features = grid_features(sample_scene(2000))
    first = sort_into_grid(features)
    again = sort_into_grid(features, start=first.order, start_radius=1)
    assert np.mean(first.order == again.order) > 0.7
    assert neighbor_distance(features, again) < 1.01 * neighbor_distance(features, first)


def test_a_smooth_plane_is_found_again() -> None:
    y, x = np.mgrid[:24, :24].reshape(2, -1)
    shuffled = np.random.default_rng(3).permutation(24 * 24)
    features = np.stack([x, y], 1)[shuffled].astype(float)
    assert neighbor_distance(features, sort_into_grid(features)) < 1.6  # 1 is a perfect grid, 12 a random one


def test_torch_finds_as_smooth_a_grid() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    features = grid_features(sample_scene(900))
    ours = neighbor_distance(features, sort_into_grid(features, width=31))
    grid = sort_into_grid(features, width=31, device="cpu")
    assert np.array_equal(np.sort(grid.order), np.arange(900))
    assert neighbor_distance(features, grid) < 1.03 * ours
    with pytest.raises(BackendUnavailableError):
        sort_into_grid(features, device="no-such-device")


@pytest.mark.parametrize(("count", "width", "radius"), [(103, 10, 1), (103, 10, 4), (96, 12, 40), (7, 7, 2), (5, 9, 1)])
def test_blur_is_the_mean_of_the_cells_in_the_window(count: int, width: int, radius: int) -> None:
    values = np.random.default_rng(count).normal(size=(count, 2)).astype(np.float32)
    width = min(width, count)
    blurred = module._blurred(values, width, radius, 2)
    at = np.arange(count)
    for k in range(count):
        near = (abs(at // width - k // width) <= radius) & (abs(at % width - k % width) <= radius)
        np.testing.assert_allclose(blurred[k], values[near].mean(0), rtol=1e-5, atol=1e-6)


def test_covariance_forms_are_smoother_and_describe_the_same_ellipsoids() -> None:
    scene = sample_scene(1500)
    grid = sort_into_grid(grid_features(scene))
    smooth = smooth_covariances(scene, grid)
    np.testing.assert_allclose(covariances(smooth), covariances(scene), rtol=1e-3, atol=1e-9)
    for name in ("means", "sh0", "opacities"):
        np.testing.assert_array_equal(getattr(smooth, name), getattr(scene, name))

    def roughness(of: Gaussians) -> float:
        return neighbor_distance(np.concatenate([of.normalized_quats(), of.scales], 1), grid)

    assert roughness(smooth) < 0.9 * roughness(scene)
    # A further frame follows: turned a little, described anew at random, it comes back as a small change.
    random = np.random.default_rng(0)
    forms = random.integers(0, 24, len(scene))
    turns, axes = module._forms()
    other = smooth.replaced(
        quats=-_product(smooth.quats, turns[forms]), scales=np.take_along_axis(smooth.scales, axes[forms], 1)
    )
    back = nearest_covariances(other, smooth.quats, smooth.scales)
    np.testing.assert_allclose(back.quats, smooth.quats, atol=2e-3)
    np.testing.assert_allclose(back.scales, smooth.scales, atol=2e-3)


def _product(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    (w, x, y, z), (s, i, j, k) = a.T, b.T
    return np.stack(
        [w * s - x * i - y * j - z * k, w * i + x * s + y * k - z * j, w * j - x * k + y * s + z * i,
         w * k + x * j - y * i + z * s], 1
    )  # fmt: skip


def test_scales_weights_and_names() -> None:
    scene = sample_scene(50)
    assert grid_features(scene).shape == (50, 9)
    assert grid_features(scene, {"means": 2, "quats": 1, "shN": 0.5, "opacities": 1}).shape == (50, 8 + 45)
    np.testing.assert_allclose(grid_features(scene, {"means": 2}), 2 * grid_features(scene, {"means": 1}), rtol=1e-6)
    assert grid_features(scene.with_sh_degree(0), {"means": 1, "shN": 1}).shape == (50, 3)
    assert grid_width(10_000) == 100
    assert grid_width(10_001) == 101
    assert grid_width(3, 16) == 16


def test_bad_input_is_refused() -> None:
    scene = sample_scene(20)
    nan = scene.replaced(means=np.full((20, 3), np.nan, np.float32))
    for wrong in (
        lambda: grid_features(scene, {"mean": 1.0}),
        lambda: grid_features(scene, {"means": -1.0}),
        lambda: grid_features(scene, {"means": 0.0}),
        lambda: grid_features(nan),
        lambda: sort_into_grid(np.full((4, 2), np.inf)),
        lambda: sort_into_grid(np.zeros(4)),
        lambda: sort_into_grid(np.zeros((4, 1)), width=0),
        lambda: sort_into_grid(np.zeros((4, 1)), start=[0, 1, 2, 2]),
        lambda: curve_grid(nan.means),
        lambda: smooth_covariances(scene, Grid(np.arange(19), 4)),
        lambda: nearest_covariances(scene, scene.quats[1:], scene.scales[1:]),
        lambda: grid_width(-1),
    ):
        with pytest.raises(ParameterError):
            wrong()
    empty = Gaussians.empty()
    grid = sort_into_grid(grid_features(empty))
    assert len(smooth_covariances(empty, grid)) == 0
    assert neighbor_distance(grid_features(empty), grid) == 0.0
    # All alike: nothing to sort, nothing to divide by.
    same = scene.selected(np.zeros(30, np.int64))
    assert neighbor_distance(grid_features(same), sort_into_grid(grid_features(same))) == 0.0
