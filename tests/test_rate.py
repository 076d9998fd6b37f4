"""The encoder in the loop of training: estimated bits against the file's, their gradient, and training with both."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_training import assert_same_scene, blob_scene, ring, run, write_blender  # noqa: E402

import splatcodec  # noqa: E402
from splatcodec import api  # noqa: E402
from splatcodec.errors import ParameterError, SplatCodecError  # noqa: E402
from splatcodec.preprocess.plan import LossyOptions, Tuning, make_plan  # noqa: E402
from splatcodec.preprocess.view_weights import ViewWeights  # noqa: E402
from splatcodec.render.camera import encoder_cameras  # noqa: E402
from splatcodec.render.contribution import contributions  # noqa: E402
from splatcodec.sample import sample_scene  # noqa: E402
from splatcodec.stages.transform import covariance_factors  # noqa: E402
from splatcodec.static.encoder import LevelPlan, encode_tiles  # noqa: E402
from splatcodec.training.datasets import read_dataset  # noqa: E402
from splatcodec.training.from_scene import compress_by_method  # noqa: E402
from splatcodec.training.rate import RateModel, _count_stream, _factors, geometry_noise  # noqa: E402
from splatcodec.training.settings import TrainSettings  # noqa: E402
from splatcodec.training.trainer import Trainer  # noqa: E402


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture(scope="module")
def planned():
    """A scene with harmonics, and the encoder's plan of it."""
    scene = sample_scene(1500, seed=5)
    cameras = encoder_cameras(scene, num_views=8, size_px=96)
    seen_from = ViewWeights(cameras, len(scene))
    measured = contributions(scene, cameras, equalize=True, on_view=seen_from.add)
    return scene, make_plan(scene, measured, 2e-2, LossyOptions(prune=False), Tuning(), seen_from)


def tensors(scene, learn=False):
    names = {"means": "means", "quats": "quats", "log_scales": "scales", "opacity_logits": "opacities"}
    found = {a: torch.from_numpy(getattr(scene, b).copy()) for a, b in {**names, "sh0": "sh0", "shN": "shN"}.items()}
    return {name: value.requires_grad_() if learn else value for name, value in found.items()}


def written(scene, plan, pool):
    encoded = encode_tiles(scene, plan, LevelPlan(np.arange(len(scene)), levels=False), pool)
    return api.pack_tiles(encoded, scene.metadata)


def test_estimated_bits_are_those_of_the_file(planned, pool):
    scene, plan = planned
    model = RateModel.fit(scene, plan, pool)
    size = 8 * len(written(scene, plan, pool))
    found = model.estimate(tensors(scene))
    assert float(found.rate_est_bits) == pytest.approx(size, rel=0.01)
    per_gaussian = float((found.gaussian_bits + found.sh_bits).double().sum())
    assert per_gaussian + model.fixed_bits == pytest.approx(float(found.rate_est_bits), rel=1e-4)


def test_the_estimate_holds_for_values_that_have_moved_on(planned, pool):
    scene, plan = planned
    model = RateModel.fit(scene, plan, pool)
    random = np.random.default_rng(1)
    moved = scene.replaced(
        scales=scene.scales + random.normal(0, 0.05, scene.scales.shape).astype(np.float32),
        opacities=scene.opacities + random.normal(0, 0.1, scene.opacities.shape).astype(np.float32),
        sh0=scene.sh0 + random.normal(0, 0.03, scene.sh0.shape).astype(np.float32),
        shN=0.9 * scene.shN,
    )
    size = 8 * len(written(moved, plan, pool))
    assert float(model.estimate(tensors(moved)).rate_est_bits) == pytest.approx(size, rel=0.08)


def test_what_it_decodes_to_is_what_the_file_decodes_to(planned, pool, tmp_path):
    scene, plan = planned
    encoded = encode_tiles(scene, plan, LevelPlan(np.arange(len(scene)), levels=False), pool)
    path = tmp_path / "a.splc"
    path.write_bytes(api.pack_tiles(encoded, scene.metadata))
    decoded = splatcodec.read(path)
    found = RateModel.fit(scene, plan, pool).estimate(tensors(scene))
    order = torch.from_numpy(encoded.order)
    np.testing.assert_allclose(found.sh0[order], decoded.sh0, atol=1e-5)
    np.testing.assert_allclose(found.shN[order], decoded.shN, atol=1e-5)
    np.testing.assert_allclose(found.opacity_logits[order], decoded.opacities, atol=1e-3)


def test_going_down_the_gradient_makes_the_file_smaller(planned, pool):
    scene, plan = planned
    model = RateModel.fit(scene, plan, pool)
    values = tensors(scene, learn=True)
    names = ("log_scales", "opacity_logits", "sh0", "shN")
    optimizer = torch.optim.Adam([values[name] for name in names], lr=0.02)
    first = None
    for _ in range(6):
        optimizer.zero_grad()
        bits = model.estimate(values).rate_est_bits
        bits.backward()
        optimizer.step()
        first = float(bits.detach()) if first is None else first
    changed = {"log_scales": "scales", "opacity_logits": "opacities", "sh0": "sh0", "shN": "shN"}
    smaller = scene.replaced(**{changed[name]: values[name].detach().numpy() for name in names})
    assert 8 * len(written(smaller, plan, pool)) < 0.97 * first
    assert values["quats"].grad is not None


def test_slopes_are_those_of_the_expected_bits():
    """A stream of three Gaussians, of which the last two are predicted by half the mean of those before."""
    cost = np.abs(np.arange(-512, 513, dtype=np.float32))[None] ** 1.5  # bits of a residual, one table
    neighbors = np.array([[-1] * 4, [0] * 4, [1, 0, 1, 0]], np.int32)
    kinds, sources, half = (np.array([k], np.int64) for k in (0, 3, 2048))
    classes = np.array([0, 2, 1], np.int32)
    targets = np.array([5.2, -30.9, 17.4], np.float32)

    def expected_bits(x):  # a residual rounded after two dithers of a step each
        dithers = (np.arange(64) + 0.5) / 64 - 0.5
        return float(np.mean(np.interp(x + dithers, np.arange(-512, 513), cost[0])))

    values = np.array([5, -29, 18], np.int32)
    predictions = np.array([0.0, 0.5 * 5, 0.5 * -12.0])
    residuals = np.rint((targets - predictions) / 2.0 ** (classes + 1)).astype(np.int32)
    values = np.rint(predictions + residuals * 2.0 ** (classes + 1)).astype(np.int32)
    predictions = values - residuals * 2.0 ** (classes + 1)
    bits, slopes = np.zeros(3, np.float32), np.zeros((4, 3), np.float32)
    _count_stream(
        3, np.zeros(3, np.uint8), cost, classes, targets, values, residuals, neighbors, kinds, sources, half, True,
        bits, slopes,
    )  # fmt: skip
    np.testing.assert_allclose(bits, np.abs(residuals) ** 1.5, rtol=1e-6)

    def total(moved):
        shift = moved - targets
        mean = [0.0, shift[0], 0.5 * (shift[0] + shift[1])]
        wanted = (moved - predictions - 0.5 * np.array(mean)) / 2.0 ** (classes + 1)
        return sum(expected_bits(x) for x in wanted)

    for i in range(3):
        step = np.zeros(3)
        step[i] = 0.01
        difference = (total(targets + step) - total(targets - step)) / 0.02
        assert slopes[3, i] == pytest.approx(difference, rel=0.02, abs=0.01)
    assert not slopes[:3].any()


@pytest.mark.parametrize("blur", [0.0, 0.01])
def test_factors_are_the_encoders(blur):
    scene = sample_scene(500, seed=2)
    roots, shape = covariance_factors(scene.normalized_quats(), scene.scales, blur)
    found, off = _factors(torch.from_numpy(scene.quats), torch.from_numpy(scene.scales), blur)
    np.testing.assert_allclose(found, roots, rtol=1e-5)
    np.testing.assert_allclose(off, shape, rtol=1e-4, atol=1e-4)


def test_noise_is_as_large_as_steps_say():
    scene = sample_scene(2000, seed=1)
    values = tensors(scene)
    none = geometry_noise(values, torch.zeros(2000), 0.0, torch.Generator().manual_seed(0))
    for name in ("means", "quats", "log_scales"):
        torch.testing.assert_close(none[name], values[name])
    noisy = geometry_noise(values, torch.full((2000,), 0.1), 0.0, torch.Generator().manual_seed(0))
    grown = noisy["log_scales"] - values["log_scales"]
    assert float(grown.abs().max()) <= 0.0501
    assert float(grown.std()) == pytest.approx(0.1 / 12**0.5, rel=0.05)
    moved = (noisy["means"] - values["means"]).norm(dim=1)
    assert bool((moved <= 0.0501 * 3**0.5 * values["log_scales"].exp().amax(dim=1)).all())
    assert float(moved.min()) > 0


def test_levels_are_counted_as_the_encoder_codes_them(pool):
    scene = sample_scene(2300, seed=3)
    measured = contributions(scene, encoder_cameras(scene, num_views=4, size_px=64), equalize=True)
    plan = make_plan(scene, measured, 2e-2, LossyOptions(prune=False), Tuning())
    thumbnail = scene.selected(slice(0, 90))
    levels = LevelPlan(np.arange(len(scene))[::-1].copy(), lambda count, level: thumbnail.selected(slice(0, count)))
    encoded = encode_tiles(scene, plan, levels, pool)
    assert len(encoded.level_counts) == 3
    model = RateModel.fit(scene, plan, pool, levels)
    found = model.estimate(tensors(scene))
    size = 8 * len(api.pack_tiles(encoded, scene.metadata))
    assert float(found.rate_est_bits) == pytest.approx(size, rel=0.015)
    # The same bases and predictors again: the same values, whatever happened to the colours.
    again = encode_tiles(scene.replaced(sh0=scene.sh0 + 0.01), plan, levels, pool, like=encoded.parameters)
    for a, b in zip(again.parameters.models, encoded.parameters.models):
        assert a.predictor is b.predictor
    np.testing.assert_array_equal(again.parameters.color_basis, encoded.parameters.color_basis)


# --- training ---


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return read_dataset(write_blender(tmp_path_factory.mktemp("set"), blob_scene(), ring(8, 24), ring(2, 24)))


def trained(dataset, **changes):
    chosen = {"method": "rd", "iterations": 60, "max_gaussians": 300, "sh_degree": 1, "threads": 2} | changes
    trainer = Trainer(dataset, TrainSettings(**chosen), evaluations=0)
    result = trainer.run()
    return trainer.method, result, trainer.method.compressed(result.gaussians)


def decoded(payload, tmp_path):
    path = tmp_path / "scene.splc"
    path.write_bytes(payload)
    return splatcodec.read(path)


@pytest.mark.parametrize("sh_degree", [0, 1])
def test_rd_writes_the_file_whose_size_it_saw(dataset, tmp_path, sh_degree):
    method, result, payload = trained(dataset, sh_degree=sh_degree, max_gaussians=1500, lmbda=1e-5)
    assert float(method.found.rate_est_bits.detach()) == pytest.approx(8 * len(payload), rel=0.03)
    scene = decoded(payload, tmp_path)
    assert len(scene) == len(result.gaussians)
    assert scene.sh_degree == sh_degree
    # It decodes to what training would draw next: the same steps, predictors and rounding.
    drawn = method.coder.model.estimate(tensors(result.gaussians))
    for name in ("sh0", "shN") if sh_degree else ("sh0",):
        expected, read = (np.sort(getattr(a, name).reshape(len(scene), -1), axis=0) for a in (drawn, scene))
        np.testing.assert_allclose(read, expected, atol=1e-4)


def test_a_dearer_bit_gives_a_smaller_file(dataset):
    _, few, small = trained(dataset, lmbda=3e-3)
    _, many, large = trained(dataset, lmbda=3e-5)
    assert len(few.gaussians) < len(many.gaussians)
    assert len(small) < 0.7 * len(large)


def test_when_nothing_is_worth_its_bits_the_run_stops(dataset):
    with pytest.raises(SplatCodecError, match="worth its bits"):
        trained(dataset, lmbda=1e4)


def test_a_handful_of_gaussians_is_enough(dataset, tmp_path):
    _, result, payload = trained(dataset, max_gaussians=5, lmbda=1e-5)
    assert 1 <= len(result.gaussians) <= 5
    assert len(decoded(payload, tmp_path)) == len(result.gaussians)


def test_harmonics_that_every_mask_leaves_out_cost_next_to_nothing(dataset, tmp_path):
    chosen = {"method": "rd", "iterations": 60, "max_gaussians": 300, "sh_degree": 1, "threads": 2, "lmbda": 1e-5}
    trainer = Trainer(dataset, TrainSettings(**chosen), evaluations=0)
    with torch.no_grad():
        trainer.splats["sh_mask"].fill_(-30.0)
    result = trainer.run()
    scene = decoded(trainer.method.compressed(result.gaussians), tmp_path)
    assert len(scene) == len(result.gaussians) > 1
    assert scene.sh_degree == 1
    assert not scene.shN.any()


def test_a_run_too_short_for_the_encoder_says_so(dataset):
    with pytest.raises(ParameterError, match="more iterations"):
        trained(dataset, iterations=1)


@pytest.mark.parametrize("stop_at", [45, 59])  # with geometry free, and with geometry as it decodes
def test_an_interrupted_run_ends_like_an_uninterrupted_one(dataset, tmp_path, stop_at):
    settings = {"method": "rd", "iterations": 60, "max_gaussians": 300}
    whole = run(dataset, **settings)

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.iteration == stop_at:
            raise Killed

    chosen = TrainSettings(sh_degree=1, threads=2, **settings)
    trainer = Trainer(dataset, chosen, checkpoint=tmp_path / "run.checkpoint", progress=kill, evaluations=0)
    with pytest.raises(Killed):
        trainer.run()
    trainer.save()
    assert_same_scene(run(dataset, tmp_path / "run.checkpoint", resume=True, **settings).gaussians, whole.gaussians)


def test_the_command_writes_the_methods_own_file(tmp_path):
    folder = write_blender(tmp_path / "set", blob_scene(), ring(6, 24), ring(2, 24))
    out = tmp_path / "a.splc"
    command = [sys.executable, "-m", "splatcodec", "train", str(folder), str(out), "--method", "rd"]
    refused = subprocess.run([*command, "--quality", "50"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "decides the quality" in refused.stderr
    more = ["--iterations", "50", "--max-gaussians", "200", "--lmbda", "0.001", "--json"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["size_bytes"] == out.stat().st_size
    assert facts["settings"]["lmbda"] == 0.001
    assert len(splatcodec.read(out)) >= 1


def test_a_finished_scene_is_compressed_without_photographs(tmp_path):
    scene = blob_scene(80)
    options = {"iterations": 40, "views": 8, "size_px": 32, "threads": 2}
    fine, coarse = (compress_by_method(scene, "rd", settings={"lmbda": value}, **options) for value in (1e-5, 1e-3))
    assert len(coarse) < len(fine)
    assert 1 <= len(decoded(coarse, tmp_path)) <= len(decoded(fine, tmp_path)) <= 80
