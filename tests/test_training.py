"""The trainer: its parts against their definitions, runs that learn, resume, split over processes, and go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_writers import blob_scene, ring, write_blender, write_transforms
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec import api
from splatcodec.cli.main import main
from splatcodec.errors import FormatError, LimitExceededError, ParameterError, SplatCodecError, UnknownIdError
from splatcodec.metrics.ssim import image_ssim
from splatcodec.render.rasterize import rasterize
from splatcodec.training import trainer as trainer_module
from splatcodec.training.checkpoint import read_checkpoint, write_checkpoint
from splatcodec.training.datasets import PointCloud, ReadOptions, read_dataset
from splatcodec.training.densify import strategies
from splatcodec.training.densify.base import (
    DensifyContext,
    PixelErrors,
    children_along_axis,
    reset_opacities,
    time_to_reset,
)
from splatcodec.training.densify.mcmc import relocated
from splatcodec.training.evaluation import evaluate
from splatcodec.training.losses import _photo_loss_torch, photo_loss
from splatcodec.training.methods import methods
from splatcodec.training.methods.plain import log_shape_factor
from splatcodec.training.optimizer import _adam_torch, adam_step
from splatcodec.training.report import html_report, report_facts
from splatcodec.training.schedules import exponential, growth, resolution_factor, sh_degree_at
from splatcodec.training.settings import TrainSettings
from splatcodec.training.splats import RAW, Splats, splats_from_gaussians, splats_from_points
from splatcodec.training.trainer import Interrupted, Trainer, default_budget

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blender(tmp_path_factory):
    """A small data set that can be learned in seconds."""
    return write_blender(tmp_path_factory.mktemp("set"), blob_scene(), ring(12, 40), ring(3, 40, height=2.5))


@pytest.fixture(scope="module")
def dataset(blender):
    return read_dataset(blender)


def run(dataset, checkpoint=None, resume=False, progress=None, evaluations=0, **changes):
    chosen = TrainSettings(**{"iterations": 40, "max_gaussians": 700, "sh_degree": 1, "threads": 2} | changes)
    trainer = Trainer(dataset, chosen, checkpoint=checkpoint, resume=resume, progress=progress, evaluations=evaluations)
    return trainer.run()


def assert_same_scene(a, b):
    for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# --- losses ---


@given(height=st.integers(1, 40), width=st.integers(1, 40), weight=st.floats(0, 1), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_photo_loss_is_its_definition(height, width, weight, seed):
    random = np.random.default_rng(seed)
    a = torch.from_numpy(random.uniform(-0.1, 1.1, (height, width, 3)).astype(np.float32)).requires_grad_()
    b = torch.from_numpy(random.uniform(0, 1, (height, width, 3)).astype(np.float32))
    terms = photo_loss(a, b, weight, num_threads=2)
    terms["total"].backward()
    wide = a.detach().double().requires_grad_()
    expected = _photo_loss_torch(wide, b.double(), weight)
    expected[0].backward()
    for name, value in zip(("total", "l1", "dssim"), expected, strict=True):
        assert float(terms[name].detach()) == pytest.approx(float(value.detach()), abs=2e-5)
    scale = float(wide.grad.abs().max())
    assert float((a.grad - wide.grad).abs().max()) <= 2e-4 * scale + 1e-9  # float32 sums; worst seen 4e-5
    ssim = image_ssim(a.detach().numpy().astype(np.float64), b.numpy().astype(np.float64))
    assert float(terms["dssim"]) == pytest.approx(1 - ssim, abs=2e-5)


def test_photo_loss_by_finite_differences():
    random = np.random.default_rng(0)
    a, b = (torch.from_numpy(random.uniform(0, 1, (9, 7, 3))) for _ in range(2))
    rgb = a.float().requires_grad_()
    photo_loss(rgb, b.float(), 0.5)["total"].backward()
    for at in [(0, 0, 0), (4, 3, 1), (8, 6, 2)]:
        values = []
        for step in (-1e-4, 1e-4):
            moved = a.clone()
            moved[at] += step
            values.append(float(_photo_loss_torch(moved, b, 0.5)[0]))
        assert float(rgb.grad[at]) == pytest.approx((values[1] - values[0]) / 2e-4, rel=1e-2, abs=1e-6)


def test_photo_loss_does_not_depend_on_threads():
    a, b = torch.rand(70, 50, 3), torch.rand(70, 50, 3)
    results = []
    for threads in (1, 3):
        rgb = a.clone().requires_grad_()
        loss = photo_loss(rgb, b, num_threads=threads)["total"]
        loss.backward()
        results.append((float(loss.detach()), rgb.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    with pytest.raises(ParameterError, match="cannot be compared"):
        photo_loss(a, b[:-1])


# --- optimizer and rows ---


def some_splats(count=50, sh_degree=1, seed=0):
    random = np.random.default_rng(seed)
    points = PointCloud(random.normal(size=(count, 3)).astype(np.float32), None, "test")
    return splats_from_points(points, random.uniform(size=(count, 3)), sh_degree, CPU)


def some_gradients(splats, seed):
    random = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(random.normal(size=tuple(value.shape)).astype(np.float32))
        for name, value in splats.params.items()
    }


RATES = dict.fromkeys(RAW, 0.01)


def test_adam_is_its_definition():
    fast, slow = some_splats(), some_splats()
    before = {name: value.detach().clone() for name, value in fast.params.items()}
    for step in range(5):
        visible = torch.from_numpy(np.random.default_rng(step).random(50) < 0.5)
        visible[:3] = False
        visible[3] = True
        assert adam_step(fast, some_gradients(fast, step), visible, RATES, num_threads=2) == 0
        assert _adam_torch(slow, some_gradients(slow, step), visible, RATES) == 0
    for name in RAW:
        torch.testing.assert_close(fast[name], slow[name], rtol=2e-5, atol=1e-7)
        assert torch.equal(fast[name][:3], before[name][:3])
        # The first step of Adam is the learning rate, whatever the gradient.
    assert int(fast.steps[3]) == 5
    assert int(fast.steps[0]) == 0
    one = some_splats()
    adam_step(one, some_gradients(one, 0), torch.ones(50, dtype=torch.bool), RATES)
    torch.testing.assert_close((one["means"] - before["means"]).abs(), torch.full((50, 3), 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("step", [adam_step, _adam_torch])
def test_rows_with_gradients_that_are_not_finite_are_left_alone(step):
    splats = some_splats()
    before = {name: value.detach().clone() for name, value in splats.params.items()}
    gradients = some_gradients(splats, 1)
    gradients["means"][4, 1] = float("nan")
    gradients["shN"][7, 2, 0] = float("inf")
    gradients["quats"][9, 0] = float("nan")  # not visible: not counted
    visible = torch.ones(50, dtype=torch.bool)
    visible[9] = False
    assert step(splats, gradients, visible, RATES) == 2
    for name in RAW:
        assert torch.isfinite(splats[name]).all()
        assert torch.equal(splats[name][[4, 7, 9]], before[name][[4, 7, 9]])
        assert not torch.equal(splats[name][5], before[name][5])


def test_bands_that_are_not_in_use_do_not_move():
    splats = some_splats(sh_degree=2)
    visible = torch.ones(50, dtype=torch.bool)
    adam_step(splats, some_gradients(splats, 1), visible, RATES, active={"shN": 9})
    assert (splats["shN"][:, :3] != 0).all()
    assert (splats["shN"][:, 3:] == 0).all()


def test_rows_stay_together():
    splats = some_splats()
    adam_step(splats, some_gradients(splats, 0), torch.ones(50, dtype=torch.bool), RATES)
    splats.add_stats("mark")[:] = torch.arange(50.0)
    moments = splats.moments["means"][0].clone()
    means = splats["means"].detach().clone()
    splats.keep(torch.tensor([5, 3, 40]))
    assert torch.equal(splats["means"], means[[5, 3, 40]])
    assert torch.equal(splats.moments["means"][0], moments[[5, 3, 40]])
    assert splats.stats["mark"].tolist() == [5, 3, 40]
    splats.append({name: value.detach()[:2] for name, value in splats.params.items()})
    assert (len(splats), splats.steps.tolist()) == (5, [1, 1, 1, 0, 0])
    assert splats.stats["mark"].tolist() == [5, 3, 40, 0, 0]
    assert all(value.requires_grad and value.is_leaf and len(value) == 5 for value in splats.params.values())
    splats.set_rows(torch.tensor([0]), {"means": torch.zeros(1, 3)})
    assert (splats["means"][0] == 0).all()
    assert (splats.moments["quats"][0][0] == 0).all()
    assert splats.steps[0] == 0
    again = Splats.from_columns(splats.columns(), CPU)
    for name, column in splats.columns().items():
        np.testing.assert_array_equal(again.columns()[name], column)


def test_points_in_one_place_and_lonely_points_have_usable_sizes():
    means = np.zeros((6, 3), np.float32)
    means[4:] = (1, 0, 0), (50, 0, 0)
    splats = splats_from_points(PointCloud(means, None, "test"), np.full((6, 3), 0.5), 0, CPU)
    sizes = splats["log_scales"].detach().exp()
    assert float(sizes.min()) > 1e-6
    assert float(sizes.max()) <= 5.0
    one = splats_from_points(PointCloud(means[:1], None, "test"), np.full((1, 3), 0.5), 0, CPU)
    assert torch.isfinite(one["log_scales"]).all()


# --- schedules ---


@given(progress=st.floats(0, 1), start=st.integers(1, 10_000), more=st.integers(0, 100_000), power=st.floats(0.1, 2))
def test_the_budget_curve_stays_within_its_ends(progress, start, more, power):
    allowed = growth(start, start + more, progress, power)
    assert start <= allowed <= start + more
    assert allowed <= growth(start, start + more, min(1.0, progress + 0.1), power)


def test_schedules_at_their_ends():
    assert exponential(0.1, 0.001, 0.0) == pytest.approx(0.1)
    assert exponential(0.1, 0.001, 1.0) == pytest.approx(0.001)
    assert [resolution_factor(p, 4, 0.4) for p in (0.0, 0.19, 0.21, 0.39, 0.4, 1.0)] == [4, 4, 2, 2, 1, 1]
    assert resolution_factor(0.0, 1, 0.5) == 1
    assert [sh_degree_at(p, 3, 0.0) for p in (0.0, 1.0)] == [3, 3]
    assert sh_degree_at(0.0, 3, 0.5) == 0


# --- densification ---


def context(splats, budget, seed=0, look=lambda count: []):
    return DensifyContext(4.0, budget, len(splats), np.random.default_rng(seed), look, lambda: 1000.0)


def test_strategies_are_found():
    assert set(strategies()) == {"adc", "errors", "mcmc", "none"}
    assert "plain" in methods()
    with pytest.raises(UnknownIdError, match=r"known: .*mcmc"):
        TrainerOf(strategy="mcm")


def TrainerOf(**changes):
    return Trainer(tiny_dataset(), TrainSettings(**changes))


_tiny = {}


def tiny_dataset():
    if "set" not in _tiny:
        import tempfile

        _tiny["folder"] = tempfile.TemporaryDirectory()
        folder = write_blender(Path(_tiny["folder"].name), blob_scene(), ring(3, 16), ring(2, 16))
        _tiny["set"] = read_dataset(folder)
    return _tiny["set"]


@pytest.mark.parametrize("name", ["adc", "errors", "mcmc"])
@given(seed=st.integers(0, 999), budget=st.integers(1, 200))
@settings(max_examples=15, deadline=None)
def test_budgets_hold(name, seed, budget):
    random = np.random.default_rng(seed)
    splats = some_splats(60, seed=seed)
    with torch.no_grad():
        splats["opacity_logits"].copy_(torch.from_numpy(random.normal(-3, 3, 60).astype(np.float32)))
    strategy = strategies()[name](context(splats, max(budget, 60), seed, lambda count: []))
    for step in range(4):
        absolute = torch.from_numpy(random.exponential(0.01, (len(splats), 2)).astype(np.float32))
        seen = torch.from_numpy(random.random(len(splats)) < 0.7)
        strategy.observe(splats, seen, absolute, None, (64, 64))
        if name == "errors":
            strategy._at_pixels = lambda splats, count: None  # no pictures here
        strategy.refine(splats, 0.1 + 0.1 * step)
        assert 0 < len(splats) <= max(budget, 60)
        assert all(torch.isfinite(value).all() for value in splats.params.values())
        assert len(splats.steps) == len(splats)


@pytest.mark.parametrize("room", [0, 1, 2, 3, 5, 20])
def test_the_budget_holds_where_pictures_ask_for_more_than_there_is_room(room):
    splats = some_splats(60)
    random = np.random.default_rng(0)
    camera = ring(1, 16)[0]
    pixels = (16, 16)
    picture = PixelErrors(
        random.random(pixels, np.float32),
        random.random((*pixels, 3), np.float32),
        np.ones(pixels, np.float32),
        np.full(pixels, 3.0, np.float32),
        camera,
    )
    strategy = strategies()["errors"](context(splats, 60 + room, 0, lambda count: [picture] * count))
    strategy.observe(splats, torch.ones(60, dtype=torch.bool), torch.ones(60, 2), None, pixels)
    strategy.refine(splats, strategy.stop - 1e-6)
    assert len(splats) == 60 + room


@pytest.mark.parametrize(("steps", "name", "resets"), [(1000, "errors", 2), (100, "errors", 0), (1000, "adc", 4)])
def test_opacities_are_reset_in_long_runs_only(steps, name, resets):
    splats = some_splats(5)
    known = DensifyContext(4.0, 5, 5, np.random.default_rng(0), lambda count: [], lambda: float(steps))
    strategy = strategies()[name](known)
    share = {"errors": 0.2, "adc": 0.1}[name]
    calls = np.arange(strategy.start, strategy.stop, strategy.interval)
    assert sum(time_to_reset(strategy, float(progress), share) for progress in calls) == resets
    with torch.no_grad():
        splats["opacity_logits"][:2] = torch.tensor([4.0, -8.0])
    reset_opacities(splats, 0.01)
    assert float(splats.alphas().max()) == pytest.approx(0.01, rel=1e-4)
    assert float(splats.alphas()[1]) < 0.001


def picture(splats, camera):
    with torch.no_grad():
        return rasterize(*(splats[name] for name in RAW), camera, background=torch.ones(3)).rgb


def test_halves_look_like_the_whole():
    scene = blob_scene(30)
    splats = splats_from_gaussians(scene, CPU)
    camera = ring(1, 48)[0]
    before = picture(splats, camera)
    first, second = children_along_axis(splats, torch.arange(30))
    splats.set_rows(torch.arange(30), first)
    splats.append(second)
    after = picture(splats, camera)
    gone = picture(splats_from_gaussians(scene.selected(slice(0, 15)), CPU), camera)
    # Halves are made a little too small, so that they show what they lack; half the scene gone is far worse.
    assert float(((after - before) ** 2).mean()) < 0.5 * float(((gone - before) ** 2).mean())
    assert len(splats) == 60


@given(alpha=st.floats(0.02, 0.99), copies=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_relocated_copies_are_as_opaque_as_one(alpha, copies):
    new, factor = relocated(torch.tensor([alpha]), torch.tensor([copies]))
    assert 1 - (1 - float(new)) ** copies == pytest.approx(alpha, rel=1e-4)
    assert 0.3 < float(factor) <= 1.0 + 1e-5  # those that are stacked are no wider than the one
    # The integral along a line through the stack is that of the one: the condition that the factor is chosen by.
    t = np.linspace(-12, 12, 4001)
    stacked = 1 - (1 - float(new) * np.exp(-0.5 * (t / float(factor)) ** 2)) ** copies
    assert stacked.sum() == pytest.approx((alpha * np.exp(-0.5 * t * t)).sum(), rel=1e-3)


def test_new_gaussians_come_where_pictures_are_wrong(dataset):
    """One spot of the photographs has another colour: that is where Gaussians are added."""
    chosen = TrainSettings(max_gaussians=300, sh_degree=0, coarse=1)
    scene = blob_scene(80)
    spot = scene.means[np.argmax(scene.means[:, 2])]
    broken = scene.sh0.copy()
    near = np.linalg.norm(scene.means - spot, axis=1) < 0.35
    broken[near] = 3.0
    start = splats_from_gaussians(scene.replaced(sh0=broken), CPU)
    right = write_blender(Path(tiny_dataset().folder).parent / "spot", scene, ring(8, 40), ring(1, 40))
    trainer = Trainer(read_dataset(right), chosen, start=start)
    trainer.share = 1.0
    new = trainer.strategy._at_pixels(trainer.splats, 60)
    assert 30 <= len(new["means"]) <= 60
    distances = np.linalg.norm(new["means"].numpy() - spot, axis=1)
    everywhere = np.linalg.norm(scene.means - spot, axis=1)
    assert np.median(distances) < 0.6 * np.median(everywhere)
    assert set(new) == set(trainer.splats.params)


# --- the shape option ---


def test_shapes_fold_into_scales_without_changing_the_picture(dataset):
    chosen = TrainSettings(iterations=30, max_gaussians=400, shape=True, sh_degree=0)
    trainer = Trainer(dataset, chosen)
    result = trainer.run()
    shape = trainer.splats["shape"].detach()
    assert float(shape.abs().max()) > 1e-3
    expected = trainer.splats["log_scales"].detach() + log_shape_factor(shape)
    np.testing.assert_allclose(result.gaussians.scales, expected.numpy(), rtol=1e-6)
    drawn = trainer.method.attributes(trainer.splats, 1.0)["log_scales"].detach().clone()
    trainer.method.fold(trainer.splats)
    torch.testing.assert_close(trainer.method.attributes(trainer.splats, 1.0)["log_scales"].detach(), drawn)
    assert float(trainer.splats["shape"].detach().abs().max()) == 0.0
    with torch.no_grad():
        trainer.splats["shape"][0] = -100.0  # a size of nearly nothing
    trainer.method.fold(trainer.splats)
    assert float(trainer.splats.alphas()[0]) < 0.005


# --- runs ---


@pytest.mark.parametrize("strategy", ["adc", "errors", "mcmc"])
def test_runs_learn_what_they_have_not_seen(dataset, strategy):
    start = run(dataset, iterations=1, strategy=strategy).evaluation.psnr_db
    result = run(dataset, iterations=100, max_gaussians=800, strategy=strategy, evaluations=2)
    assert result.evaluation.psnr_db > max(23.0, start + 5.0)
    assert len(result.gaussians) <= 800
    assert result.iterations == 100
    assert result.gaussians.metadata["background"] == [1.0, 1.0, 1.0]
    assert result.gaussians.metadata["up"] == [0.0, 0.0, 1.0]
    assert sum("test_psnr_db" in point for point in result.curve) == 2
    assert result.curve[-1]["iteration"] == 100


def test_antialiased_runs_say_so(dataset):
    result = run(dataset, iterations=60, antialiased=True)
    assert result.gaussians.metadata["antialiased"] is True
    assert evaluate(result.gaussians, dataset, dataset.test).psnr_db == pytest.approx(result.evaluation.psnr_db)


def test_evaluation_of_the_scene_itself(tmp_path):
    scene = blob_scene()
    dataset = read_dataset(write_transforms(tmp_path, scene, ring(9)))
    found = evaluate(scene, dataset, dataset.test)
    assert found.psnr_db > 50  # 8-bit photographs
    assert found.ssim > 0.999
    assert evaluate(scene, dataset, []) is None


@pytest.mark.parametrize("strategy", ["adc", "errors", "mcmc"])
def test_the_same_seed_gives_the_same_scene_for_any_threads(dataset, strategy):
    first = run(dataset, strategy=strategy, threads=1)
    assert_same_scene(first.gaussians, run(dataset, strategy=strategy, threads=2).gaussians)
    other = run(dataset, strategy=strategy, seed=1).gaussians
    assert len(other) != len(first.gaussians) or not np.array_equal(other.means, first.gaussians.means)


@pytest.mark.parametrize(("strategy", "shape"), [("adc", False), ("errors", True), ("mcmc", False)])
def test_interrupted_runs_resume_to_the_bit(dataset, tmp_path, strategy, shape):
    signum = signal.SIGTERM if strategy == "adc" else signal.SIGINT
    options = {"strategy": strategy, "shape": shape, "iterations": 36}
    whole = run(dataset, **options)
    checkpoint = tmp_path / "run.checkpoint"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(progress):
        if progress.iteration == 17:
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted, match="resume") as caught:
        run(dataset, checkpoint, progress=interrupt, **options)
    assert caught.value.signum == signum
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    seen = []
    resumed = run(dataset, checkpoint, resume=True, progress=lambda p: seen.append(p.iteration), **options)
    assert seen[0] == 18
    assert_same_scene(whole.gaussians, resumed.gaussians)
    assert whole.evaluation.psnr_db == resumed.evaluation.psnr_db
    assert [point["iteration"] for point in whole.curve] == [point["iteration"] for point in resumed.curve]
    assert whole.densified == resumed.densified
    # A run that is finished has nothing left to do, and gives the same once more.
    assert_same_scene(whole.gaussians, run(dataset, checkpoint, resume=True, **options).gaussians)


def test_minutes_end_a_run(dataset):
    began = time.monotonic()
    result = run(dataset, iterations=None, minutes=0.02)
    assert time.monotonic() - began < 20
    assert result.seconds >= 1.2
    assert result.iterations > 3
    assert run(dataset, iterations=5, minutes=10.0).iterations == 5


def test_moving_scenes_are_said_to_move(tmp_path):
    folder = write_blender(tmp_path, blob_scene(), ring(4, 16), ring(2, 16), times=lambda k: k / 4)
    result = run(read_dataset(folder), iterations=2)
    assert any("moves" in note for note in result.notes)


def test_default_budgets_follow_the_pictures(dataset):
    assert default_budget(dataset) == 2000  # 40 x 40 pixels would be 960
    assert Trainer(dataset, TrainSettings()).max_gaussians == 2000


# --- what goes wrong ---


def failing(monkeypatch, when, value):
    """Make the loss of some steps something else."""
    real = trainer_module.photo_loss
    calls = []

    def loss(*args, **options):
        calls.append(1)
        terms = real(*args, **options)
        if when(len(calls)):
            terms["total"] = terms["total"] * value
        return terms

    monkeypatch.setattr(trainer_module, "photo_loss", loss)


def test_single_steps_without_a_finite_loss_are_left_out(dataset, monkeypatch):
    failing(monkeypatch, lambda k: k in (5, 6, 20), float("nan"))
    result = run(dataset)
    assert any("not finite" in note for note in result.notes)
    assert np.isfinite(result.gaussians.means).all()
    assert result.evaluation.psnr_db > 15


def test_runs_that_no_longer_learn_end(dataset, monkeypatch):
    failing(monkeypatch, lambda k: k > 5, float("nan"))
    with pytest.raises(SplatCodecError, match="had no finite loss"):
        run(dataset)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_out_of_memory_is_said(dataset, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(trainer_module, "rasterize", fail)
    with pytest.raises(LimitExceededError, match=r"out of memory with .* Gaussians.*--max-gaussians"):
        run(dataset)


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 0}, {"minutes": 0.0}, {"minutes": float("nan")}, {"max_gaussians": 0}, {"seed": -1},
        {"sh_degree": 4}, {"coarse": 3}, {"means_rate": 0.0}, {"threads": 0}, {"dssim_weight": 1.5},
    ],
)  # fmt: skip
def test_settings_out_of_range(changes):
    with pytest.raises(ParameterError, match=next(iter(changes))):
        TrainSettings(**changes)


def test_runs_are_not_continued_with_other_settings_or_pictures(dataset, blender, tmp_path):
    checkpoint = tmp_path / "a.checkpoint"
    run(dataset, checkpoint, iterations=3)
    for changes, message in (({"seed": 7}, "seed: 0 there, 7 here"), ({"strategy": "adc"}, "strategy")):
        with pytest.raises(ParameterError, match=message):
            run(dataset, checkpoint, resume=True, **changes)
    with pytest.raises(ParameterError, match="other pictures"):
        run(read_dataset(blender, ReadOptions(downscale=2)), checkpoint, resume=True)
    with pytest.raises(ParameterError, match=r"no such file|No such file"):
        run(dataset, tmp_path / "nowhere", resume=True)


# --- checkpoints ---


def test_checkpoints_come_back(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 4), np.int64)}
    arrays |= {"c": np.array([True, False]), "d": np.float64([[np.nan, np.inf]])}
    write_checkpoint(tmp_path / "c", {"x": [1, {"y": 2.5}]}, arrays)
    state, back = read_checkpoint(tmp_path / "c")
    assert state == {"x": [1, {"y": 2.5}]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "c"
    write_checkpoint(path, {"x": 1}, {"a": np.arange(20, dtype=np.float32)})
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(FormatError, match=re.escape(str(path))):
            read_checkpoint(path)
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        try:  # a flipped bit in the state's numbers is a number, too
            state, arrays = read_checkpoint(path)
        except SplatCodecError:
            continue
        assert set(state) | set(arrays) != {"x", "a"} or at < len(content) - 80
    path.write_bytes(content + b"x")
    with pytest.raises(FormatError, match="after the end"):
        read_checkpoint(path)
    path.write_bytes(content.replace(b"[20]", b"[99]"))
    with pytest.raises(FormatError, match="ends too early"):
        read_checkpoint(path)
    path.write_bytes(content.replace(b"[20]", b"[2000000000000]").replace(b"\x00" * 7, b"\x00" * 7, 1))
    with pytest.raises(SplatCodecError):
        read_checkpoint(path)


def test_a_checkpoint_of_something_else_is_refused(dataset, tmp_path):
    path = tmp_path / "c"
    run(dataset, path, iterations=2)
    state, arrays = read_checkpoint(path)
    for change in ({"iteration": None}, {"random": {}}, {"fingerprint": {}}):
        broken = {**state, **change}
        broken.pop("order") if "iteration" in change else None
        write_checkpoint(path, broken, arrays)
        with pytest.raises(FormatError, match="does not hold a run"):
            run(dataset, path, resume=True, iterations=2)
    write_checkpoint(path, state, {name: array for name, array in arrays.items() if name != "params/quats"})
    with pytest.raises(FormatError, match="does not hold a run"):
        run(dataset, path, resume=True, iterations=2)


# --- the command ---


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_command_writes_scene_and_report(blender, tmp_path, capsys):
    out, page = tmp_path / "a.splc", tmp_path / "a.html"
    common = ("--iterations", 50, "--max-gaussians", 400, "--sh-degree", 0, "--threads", 2)
    assert call("train", blender, out, *common, "--report", page, "--json") == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    documented = set(re.findall(r"`([a-z_0-9]+)`", (ROOT / "docs" / "cli.md").read_text()))
    assert set(facts) | set(facts["dataset"]) | set(facts["test"]) <= documented
    assert facts["num_gaussians"] == len(api.read(out)) or facts["num_gaussians"] > 0
    assert facts["test"]["psnr_db"] > 20
    assert facts["test_of_file"]["psnr_db"] == pytest.approx(facts["test"]["psnr_db"], abs=3)
    assert facts["size_bytes"] == out.stat().st_size
    assert "12 train and 3 test views of 40 x 40" in said.err
    assert "5,000 random points in the box" in said.err
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert text.count("<svg") == 2
    assert "as compressed" in text
    assert not (tmp_path / "a.splc.checkpoint").exists()
    assert call("train", blender, tmp_path / "b.ply", *common) == 0
    assert "test views:" in capsys.readouterr().out
    assert len(api.read(tmp_path / "b.ply")) == facts["num_gaussians"]


def test_what_cannot_work_is_said_before_training(blender, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("it trained"))
    exists = tmp_path / "exists.ply"
    exists.write_bytes(b"")
    (tmp_path / "old.ply.checkpoint").write_bytes(b"not one")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ((blender, exists), "exists already|the file exists", 2),
        ((blender, tmp_path / "a.xyz"), "no format that can be written", 2),
        ((blender, tmp_path / "no" / "a.ply"), "no such folder to write to", 2),
        ((blender, tmp_path / "a.ply", "--report", exists), "the file exists", 2),
        ((blender, tmp_path / "a.ply", "--quality", 50), "--quality is of .splc files", 2),
        ((blender, tmp_path / "a.splc", "--quality", 150), "0 to 100", 2),
        ((blender, tmp_path / "old.ply"), "--resume goes on", 2),
        ((blender, tmp_path / "old.ply", "--resume"), "not a checkpoint", 3),
        ((blender, tmp_path / "a.ply", "--strategy", "x"), "unknown strategy", 2),
        ((blender, tmp_path / "a.ply", "--method", "x"), "unknown method", 2),
        ((blender, tmp_path / "a.ply", "--downscale", 30), "would become 1 x 1", 2),
        ((blender, tmp_path / "a.ply", "--minutes", -1), "minutes", 2),
        ((blender, tmp_path / "a.ply", "--checkpoint-every", 0), "checkpoint-every", 2),
        ((empty, tmp_path / "a.ply"), "no data set that is known", 2),
        ((tmp_path / "nowhere", tmp_path / "a.ply"), "no such folder", 2),
    ]
    for arguments, message, code in cases:
        assert call("train", *arguments) == code, arguments
        assert re.search(message, capsys.readouterr().err), arguments
    assert exists.read_bytes() == b""


def test_interrupting_the_command(blender, tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.ply"
    common = (blender, out, "--iterations", 40, "--max-gaussians", 500, "--sh-degree", 0, "--seed", 3)
    real = Trainer._after_step

    def interrupt(self):
        real(self)
        if self.iteration == 11:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_after_step", interrupt)
    assert call("train", *common) == 130
    assert "--resume continues it" in capsys.readouterr().err
    assert not out.exists()
    assert (tmp_path / "a.ply.checkpoint").is_file()
    monkeypatch.undo()
    assert call("train", *common, "--resume") == 0
    assert call("train", blender, tmp_path / "b.ply", *common[2:]) == 0
    assert out.read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert not (tmp_path / "a.ply.checkpoint").exists()
    assert call("train", *common, "--resume", "--overwrite") == 0
    assert "no checkpoint yet" in capsys.readouterr().err


def command(*arguments):
    return [sys.executable, "-m", "splatcodec", "train", *map(str, arguments)]


def test_a_killed_run_goes_on(blender, tmp_path):
    """SIGKILL at any moment: what the last checkpoint held is all that counts."""
    common = ("--iterations", 30, "--max-gaussians", 400, "--sh-degree", 0)
    out = tmp_path / "a.ply"
    process = subprocess.Popen(command(blender, out, *common, "--checkpoint-every", 0.001), stderr=subprocess.PIPE)
    checkpoint = tmp_path / "a.ply.checkpoint"
    deadline = time.monotonic() + 100
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert checkpoint.exists() or out.exists()
    done = subprocess.run(
        command(blender, out, *common, "--resume", "--overwrite"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert call("train", blender, tmp_path / "b.ply", *common) == 0
    assert out.read_bytes() == (tmp_path / "b.ply").read_bytes()


RANKS_SCRIPT = """
import sys
import numpy as np
from splatcodec.training.datasets import read_dataset
from splatcodec.training.ranks import Ranks
from splatcodec.training.settings import TrainSettings
from splatcodec.training.trainer import Trainer

data, out = sys.argv[1:]
chosen = TrainSettings(iterations=40, max_gaussians=800, sh_degree=1)
with Ranks() as ranks:
    trainer = Trainer(read_dataset(data), chosen, checkpoint=out + "checkpoint", ranks=ranks)
    result = trainer.run()
np.savez(f"{out}{ranks.rank}.npz", **trainer.splats.columns(), psnr=result.evaluation.psnr_db)
"""


def test_two_processes_share_a_run(blender, tmp_path, dataset):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS_SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launch, str(script), str(blender), f"{tmp_path}/rank"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [np.load(tmp_path / f"rank{k}.npz") for k in range(2)]
    assert set(ranks[0].files) == set(ranks[1].files)
    for name in ranks[0].files:
        np.testing.assert_array_equal(ranks[0][name], ranks[1][name], err_msg=name)
    # Two pictures a step: not the run of one process, and no worse.
    alone = run(dataset, iterations=40, max_gaussians=800)
    assert not np.array_equal(ranks[0]["params/means"][:50], alone.gaussians.means[:50])
    assert float(ranks[0]["psnr"]) > alone.evaluation.psnr_db - 0.5
    assert (tmp_path / "rankcheckpoint").is_file()


def test_report_of_a_run_without_test_views(blender):
    dataset = read_dataset(blender, ReadOptions(test_every=0))
    result = run(dataset, iterations=3)
    assert result.evaluation is None
    assert report_facts(result, dataset, TrainSettings())["test"] is None
    page = html_report(result, dataset, TrainSettings())
    assert "no test views" in page
    assert page.count("data:image/png;base64,") == 4


def test_nothing_to_train_on(dataset):
    import dataclasses

    with pytest.raises(ParameterError, match="no views to train on"):
        Trainer(dataclasses.replace(dataset, train=()), TrainSettings())


def test_lego_is_learned():
    folder = ROOT.parent / "shared" / "data" / "multiview" / "lego"
    if not folder.is_dir():
        pytest.skip("the data set lego is not here")
    dataset = read_dataset(folder, ReadOptions(downscale=8))
    result = run(dataset, iterations=250, max_gaussians=2000, sh_degree=1)
    assert result.evaluation.psnr_db > 20
