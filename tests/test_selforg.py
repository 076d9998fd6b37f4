"""Training in a grid: the neighbour loss, and what training with it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_training import assert_same_scene, blob_scene, ring, run, write_blender  # noqa: E402

from splatcodec.errors import SplatCodecError  # noqa: E402
from splatcodec.preprocess.self_organizing_grid import (  # noqa: E402
    Grid,
    grid_features,
    grid_width,
    neighbor_distance,
    sort_into_grid,
)
from splatcodec.sample import sample_scene  # noqa: E402
from splatcodec.training.datasets import read_dataset  # noqa: E402
from splatcodec.training.settings import TrainSettings  # noqa: E402
from splatcodec.training.smoothness import blurred_planes, neighbor_loss  # noqa: E402
from splatcodec.training.trainer import Trainer  # noqa: E402


@pytest.mark.parametrize(("count", "width"), [(1, 1), (7, 7), (20, 5), (23, 5)])
def test_blurred_planes_are_weighted_means_of_what_is_there(count, width):
    values = np.random.default_rng(0).normal(size=(count, 2))
    expected = np.empty_like(values)
    for k in range(count):
        y, x = divmod(k, width)
        near = [(i, i // width - y, i % width - x) for i in range(count)]
        near = [(i, np.exp(-(a * a + b * b) / 18.0)) for i, a, b in near if max(abs(a), abs(b)) <= 2]
        expected[k] = sum(w * values[i] for i, w in near) / sum(w for _, w in near)
    np.testing.assert_allclose(blurred_planes(torch.from_numpy(values), width), expected, rtol=1e-6, atol=1e-7)


def test_the_loss_is_zero_where_neighbours_are_equal_and_pulls_towards_them():
    assert float(neighbor_loss(torch.full((23, 3), 0.7), 5)) == pytest.approx(0.0, abs=1e-12)
    assert float(neighbor_loss(torch.zeros(0, 4), 5)) == 0.0
    values = torch.zeros(25, 1)
    values[12] = 0.5
    values.requires_grad_()
    loss = neighbor_loss(values, 5)
    loss.backward()
    assert float(values.grad[12]) > 0
    assert bool((values.grad[torch.arange(25) != 12] <= 0).all())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return read_dataset(write_blender(tmp_path_factory.mktemp("set"), blob_scene(), ring(8, 24), ring(2, 24)))


def grid_roughness(scene, name):
    values = getattr(scene, name).reshape(len(scene), -1)
    return neighbor_distance(values, Grid(np.arange(len(scene)), grid_width(len(scene))))


def test_training_in_a_grid_gives_smooth_planes(dataset):
    plain = run(dataset, iterations=80, max_gaussians=300)
    free = run(dataset, method="selforg", smoothness=0.0, iterations=80, max_gaussians=300)
    whole = 30_000 / 80  # what a run of so few steps gets is scaled down
    smooth = run(dataset, method="selforg", smoothness=whole, iterations=80, max_gaussians=300)
    assert smooth.evaluation.psnr_db > free.evaluation.psnr_db - 1.5
    assert grid_roughness(smooth.gaussians, "quats") < 0.9 * grid_roughness(free.gaussians, "quats")
    features = [grid_features(scene) for scene in (plain.gaussians, smooth.gaussians)]
    distances = [neighbor_distance(f, Grid(np.arange(len(f)), grid_width(len(f)))) for f in features]
    assert distances[1] < 0.8 * distances[0]


@pytest.mark.parametrize("sh_degree", [0, 1])
def test_few_gaussians_make_a_grid_too(dataset, sh_degree):
    result = run(dataset, method="selforg", iterations=40, max_gaussians=3, sh_degree=sh_degree)
    assert 1 <= len(result.gaussians) <= 3


def test_nothing_to_sort_is_an_error(dataset, monkeypatch):
    monkeypatch.setattr("splatcodec.training.methods.selforg.FAINT_OPACITY", 2.0)
    with pytest.raises(SplatCodecError, match="faint"):
        run(dataset, method="selforg", iterations=40)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(dataset, tmp_path):
    settings = {"method": "selforg", "iterations": 60, "max_gaussians": 300}
    whole = run(dataset, **settings)

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.iteration == 45:
            raise Killed

    chosen = TrainSettings(sh_degree=1, threads=2, **settings)
    trainer = Trainer(dataset, chosen, checkpoint=tmp_path / "run.checkpoint", progress=kill, evaluations=0)
    with pytest.raises(Killed):
        trainer.run()
    trainer.save()
    assert_same_scene(run(dataset, tmp_path / "run.checkpoint", resume=True, **settings).gaussians, whole.gaussians)


@pytest.mark.parametrize(("count", "sh_degree"), [(1, 0), (997, 3)])
def test_planes_of_the_comparator_hold_the_scene(monkeypatch, count, sh_degree):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    from grid_planes import decode_planes, encode_planes

    scene = sample_scene(1000, seed=1).selected(slice(0, count)).with_sh_degree(sh_degree)
    grid = sort_into_grid(grid_features(scene), num_threads=1)
    back, wanted = decode_planes(encode_planes(scene, grid)), scene.selected(grid.order)
    np.testing.assert_allclose(back.means, wanted.means, atol=np.abs(scene.means).max() * 2e-4)
    for name, levels in (("sh0", 256), ("opacities", 256), ("shN", 32)):
        values = getattr(wanted, name)
        step = np.ptp(values) / (levels - 1) if values.size else 0.0
        np.testing.assert_allclose(getattr(back, name), values, atol=0.51 * step + 1e-5)
