"""Refinement and compaction: smaller files of finished scenes, fitted to the original's own pictures."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import splatcodec  # noqa: E402
from splatcodec.errors import ParameterError  # noqa: E402
from splatcodec.gaussians import Gaussians  # noqa: E402
from splatcodec.metrics.psnr import covered_psnr_db  # noqa: E402
from splatcodec.render.camera import encoder_cameras, evaluation_cameras  # noqa: E402
from splatcodec.render.cpu import render  # noqa: E402
from splatcodec.training.fine_tune import FineTuneOptions, Teacher, fine_tune  # noqa: E402
from splatcodec.training.refine import RefineOptions, compress_refined  # noqa: E402


def ball(count=1500, sh_degree=1, seed=0):
    """Overlapping Gaussians on a sphere, coloured by place: many of them are superfluous."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(count, 3))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    rest = (sh_degree + 1) ** 2 - 1
    return Gaussians(
        means=means,
        quats=rng.normal(size=(count, 4)),
        scales=np.log(0.08) + 0.4 * rng.normal(size=(count, 3)),
        opacities=rng.normal(size=count) + 0.5,
        sh0=np.sin(3 * means)[:, None, :] + 0.1 * rng.normal(size=(count, 1, 3)),
        shN=0.1 * rng.normal(size=(count, rest, 3)),
    )


def quality_db(original, other, size_px=96, num_views=8):
    cameras = evaluation_cameras(original, num_views=num_views, size_px=size_px)
    return float(np.mean([covered_psnr_db(render(original, c), render(other, c)) for c in cameras]))


def test_fitting_brings_a_disturbed_scene_back():
    scene = ball(600)
    rng = np.random.default_rng(1)
    disturbed = scene.replaced(
        means=scene.means + rng.normal(size=scene.means.shape).astype(np.float32) * 0.005,
        scales=scene.scales + rng.normal(size=scene.scales.shape).astype(np.float32) * 0.1,
        opacities=scene.opacities + rng.normal(size=len(scene)).astype(np.float32) * 0.2,
        sh0=scene.sh0 + rng.normal(size=scene.sh0.shape).astype(np.float32) * 0.1,
    )
    teacher = Teacher.of(scene, encoder_cameras(scene, num_views=24, size_px=96, seed=4))
    steps = np.full((len(scene), 2), 0.1)
    before = quality_db(scene, disturbed)
    seen = []
    fitted = fine_tune(disturbed, teacher, steps, FineTuneOptions(80), progress=lambda *state: seen.append(state))
    assert quality_db(scene, fitted) > before + 2.0  # on views that it was not fitted to
    assert [state[0] for state in seen] == list(range(1, 81))
    assert np.allclose(np.linalg.norm(fitted.quats, axis=1), 1.0, atol=1e-5)
    # The same again to the bit, and what may not change does not.
    again = fine_tune(disturbed, teacher, steps, FineTuneOptions(80))
    assert np.array_equal(again.means, fitted.means)
    colours = fine_tune(disturbed, teacher, steps, FineTuneOptions(10, attributes=("sh0", "shN")))
    assert np.array_equal(colours.means, disturbed.means)
    assert np.array_equal(colours.scales, disturbed.scales)
    assert not np.array_equal(colours.sh0, disturbed.sh0)


def test_nothing_to_fit_changes_nothing():
    scene = ball(5)
    teacher = Teacher.of(scene, [])
    assert fine_tune(scene, teacher, np.ones((5, 2))) is scene
    empty = Gaussians.empty(1)
    teacher = Teacher.of(scene, encoder_cameras(scene, num_views=1, size_px=16))
    assert len(fine_tune(empty, teacher, np.ones((0, 2)))) == 0


@pytest.fixture(scope="module")
def scene():
    return ball()


@pytest.fixture(scope="module")
def plain(scene):
    return splatcodec.compress(scene, target_psnr=38, effort=2)


@pytest.mark.parametrize("compact", [0, 4], ids=["refine", "compact"])
def test_smaller_at_the_same_quality(scene, plain, compact):
    options = RefineOptions(150, compact, views=24, size_px=112)
    report = splatcodec.CompressReport()
    stages = set()
    payload = compress_refined(
        scene, options, target_psnr=38, effort=2, report=report, progress=lambda stage, share: stages.add(stage)
    )
    with splatcodec.open(payload) as file:
        decoded = file.read()
    with splatcodec.open(plain) as file:
        reference = file.read()
    loss_db = quality_db(scene, reference) - quality_db(scene, decoded)
    # On views that neither used; a dB is worth at most 6 % of the bytes at these rates.
    assert len(payload) * 1.06**loss_db < (0.93 if compact else 0.96) * len(plain)
    assert any(stage.startswith("fitting") for stage in stages)
    assert report.seconds["refinement"] > 0
    if compact:
        assert report.num_coded < 0.9 * len(reference)
    else:
        assert payload == compress_refined(scene, options, target_psnr=38, effort=2, threads=1)


def test_side_arrays_follow_the_gaussians_that_stay(scene):
    tagged = scene.replaced(extras={"label": np.arange(len(scene), dtype=np.int32)})
    payload = compress_refined(tagged, RefineOptions(10, 4, views=4, size_px=48), quality=40, effort=1)
    with splatcodec.open(payload) as file:
        decoded = file.read()
    labels = decoded.extras["label"]
    assert len(labels) == len(decoded) < len(scene)
    assert len(np.unique(labels)) == len(labels)
    distance = np.linalg.norm(decoded.means - scene.means[labels], axis=1)
    assert np.median(distance) < 0.05


def test_a_target_size_is_kept(scene, plain):
    size = len(plain) // 2
    payload = compress_refined(scene, RefineOptions(16, views=6, size_px=64), target_size=size, effort=1)
    assert 0.9 * size < len(payload) <= size


def test_bad_arguments_are_refused(scene):
    with pytest.raises(ParameterError, match="lossless"):
        compress_refined(scene, lossless=True)
    with pytest.raises(ParameterError, match="iterations"):
        RefineOptions(0)
    with pytest.raises(ParameterError, match="pixels"):
        RefineOptions(views=0)


@pytest.mark.parametrize("count", [0, 1])
def test_scenes_of_nothing_and_of_one(count):
    payload = compress_refined(ball(count), RefineOptions(4, 4, views=2, size_px=32), effort=1)
    with splatcodec.open(payload) as file:
        assert len(file.read()) == count


def test_the_command(tmp_path, scene):
    splatcodec.write(scene, tmp_path / "scene.ply")
    command = [sys.executable, "-m", "splatcodec", "compress", "scene.ply", "scene.splc", "--effort", "1"]
    run = subprocess.run([*command, "--refine", "5", "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["seconds"]["refinement"] > 0
    run = subprocess.run(
        [*command, "--refine", "5", "--lossless", "--overwrite"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "--refine" in run.stderr
    run = subprocess.run([*command, "--refine", "0", "--overwrite"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
