"""compact3dgs and lightgaussian: their parts alone, runs, files, resumed runs, and what can be wrong with the input."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_training import assert_same_scene, blob_scene, ring, write_blender  # noqa: E402

from splatcodec import api  # noqa: E402
from splatcodec.cli.main import main  # noqa: E402
from splatcodec.errors import ParameterError, SplatCodecError, UnknownIdError  # noqa: E402
from splatcodec.gaussians import Gaussians  # noqa: E402
from splatcodec.metrics.psnr import covered_psnr_db  # noqa: E402
from splatcodec.preprocess.significance import global_significance  # noqa: E402
from splatcodec.render.camera import evaluation_cameras  # noqa: E402
from splatcodec.render.cpu import render  # noqa: E402
from splatcodec.stages.neural_color import ColourField, GridShape  # noqa: E402
from splatcodec.training.colour_field import TrainedField, grid_for  # noqa: E402
from splatcodec.training.datasets import read_dataset  # noqa: E402
from splatcodec.training.distillation import SceneTeacher, pseudo_view, truncate  # noqa: E402
from splatcodec.training.from_scene import compress_by_method, dataset_of_scene  # noqa: E402
from splatcodec.training.methods import lightgaussian  # noqa: E402
from splatcodec.training.residual_vq import ResidualQuantizer  # noqa: E402
from splatcodec.training.settings import TrainSettings  # noqa: E402
from splatcodec.training.shared import SharedParameters  # noqa: E402
from splatcodec.training.splats import RAW, splats_from_gaussians  # noqa: E402
from splatcodec.training.trainer import Trainer  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("compact3dgs", "lightgaussian")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return read_dataset(write_blender(tmp_path_factory.mktemp("set"), blob_scene(), ring(8, 24), ring(2, 24)))


@pytest.fixture
def small_codebooks(monkeypatch):
    """LightGaussian's codebook even for few Gaussians."""
    monkeypatch.setattr(lightgaussian, "_LEAST_CODEBOOK_ROWS", 1)


def trainer_of(dataset, checkpoint=None, resume=False, progress=None, **changes):
    chosen = TrainSettings(**{"iterations": 60, "max_gaussians": 500, "sh_degree": 1, "threads": 1} | changes)
    return Trainer(dataset, chosen, checkpoint=checkpoint, resume=resume, progress=progress, evaluations=0)


# --- parts ---


def test_shared_parameters_are_adam_and_come_back():
    start = torch.randn(4, 3)
    shared = SharedParameters()
    shared.add("a", start)
    other = start.clone().requires_grad_()
    adam = torch.optim.Adam([other], lr=0.1, betas=(0.9, 0.99), eps=1e-15)
    for _ in range(5):
        gradient = torch.randn(4, 3)
        assert shared.step({"a": gradient}, {"a": 0.1})
        other.grad = gradient.clone()
        adam.step()
    assert torch.allclose(shared["a"], other, atol=1e-5)
    before = shared["a"].detach().clone()
    assert not shared.step({"a": torch.full((4, 3), torch.nan)}, {"a": 0.1})
    assert torch.equal(shared["a"], before)
    shared.constants["b"] = torch.ones(2)
    back = SharedParameters()
    back.restore(shared.columns(), torch.device("cpu"))
    for both in (shared, back):
        both.step({"a": torch.ones(4, 3)}, {"a": 0.1})
    assert torch.equal(shared["a"], back["a"])
    assert torch.equal(back.constants["b"], torch.ones(2))


def test_quantizing_passes_gradients_and_moves_codebooks_to_the_values():
    values = torch.randn(300, 3, requires_grad=True)
    vq = ResidualQuantizer.fitted(values, stages=2, entries=8)
    vq.codebooks = (vq.codebooks + 0.1).requires_grad_()
    drawn, labels, loss = vq(values)
    weight = torch.randn(300, 3)
    (drawn * weight).sum().backward()
    assert torch.allclose(values.grad, weight)
    chosen = sum(vq.integers()[k][labels[:, k]] for k in range(2)) * vq.step
    np.testing.assert_allclose(drawn.detach().numpy(), chosen, atol=1e-6)
    before = float(loss.detach())
    for _ in range(30):
        _, _, loss = vq(values)
        (gradient,) = torch.autograd.grad(loss, vq.codebooks)
        vq.codebooks = (vq.codebooks - 0.5 * gradient).detach().requires_grad_()
    assert float(vq(values)[2].detach()) < before
    few, _, _ = ResidualQuantizer.fitted(values[:3], stages=6, entries=64)(values[:3])
    assert torch.allclose(few, values[:3], atol=0.01)
    with pytest.raises(ParameterError):
        ResidualQuantizer(torch.zeros(2, 0, 3))


def test_a_field_draws_what_its_file_holds():
    shape = GridShape(4, 2, 7, 4, 1.5, (0.0, 0.0, 0.0), 1.0)
    params = {name: v.requires_grad_() for name, v in TrainedField.start(shape, 2, width=8).items()}
    with torch.no_grad():
        params["table"] += torch.randn(params["table"].shape)
    field = TrainedField(shape, params)
    means = torch.randn(200, 3)
    sh0, shN = field.colours(means, rounded=True)
    assert (sh0.shape, shN.shape) == ((200, 1, 3), (200, 8, 3))
    exact = field.quantized(means.numpy())
    back = ColourField.from_bytes(exact.to_bytes(), 9).colours(means.numpy())
    np.testing.assert_allclose(torch.cat([sh0, shN], 1).detach().numpy(), back, atol=2e-5)
    assert (exact.table == 0).sum() > (field.quantized().table == 0).sum()  # what no Gaussian reads
    # Gradients of the table, by one thread, by more, and by plain torch.
    found = []
    for threads in (1, 3):
        field.num_threads = threads
        colours = torch.cat(field.colours(means), 1)
        found.append(torch.autograd.grad((colours * torch.arange(27.0).reshape(9, 3)).sum(), params["table"])[0])
    assert torch.equal(found[0], found[1])
    at = int(found[0].abs().sum(1).argmax())
    values = []
    for change in (-1e-2, 1e-2):
        with torch.no_grad():
            params["table"][at, 0] += change
            values.append(float((torch.cat(field.colours(means), 1) * torch.arange(27.0).reshape(9, 3)).sum()))
            params["table"][at, 0] -= change
    assert (values[1] - values[0]) / 2e-2 == pytest.approx(float(found[0][at, 0]), rel=0.05, abs=0.5)


def test_a_field_learns_the_colours_of_a_scene():
    means = torch.rand(400, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    smooth = torch.sin(3 * means)[:, None, :]
    sh0, shN = smooth * 0.5, smooth * torch.linspace(-0.3, 0.3, 3)[:, None]
    weights = torch.ones(400)
    weights[200:] = 0
    shape = grid_for(400, (0, 0, 0), 1.0)
    for base in (sh0, None):
        params = {name: value.requires_grad_() for name, value in TrainedField.start(shape, 1, width=16).items()}
        field = TrainedField(shape, params)
        before = field.params["weights 0"]
        with torch.no_grad():  # as where a finished run asks for its scene
            field.learn(means, base, shN, weights)
            drawn0, drawnN = field.colours(means)
        assert field.params["weights 0"] is before
        assert before.grad is None
        for drawn, wanted in ((drawn0, base), (drawnN, shN)):
            if wanted is None:
                assert not drawn.any()
            else:
                assert float((drawn - wanted)[:200].square().mean() / wanted[:200].square().mean()) < 0.05
    start = before.detach().clone()
    field.learn(means[:0], None, shN[:0], weights[:0])
    field.learn(means, None, shN[:, :0], weights)
    assert torch.equal(field.params["weights 0"], start)


def test_fields_grow_with_the_scene():
    sizes = [sum(grid_for(n, (0, 0, 0), 1.0).entries()) for n in (0, 1, 1000, 30_000, 1_000_000)]
    assert sizes == sorted(sizes)
    assert sizes[3] / 30_000 < 10
    assert sizes[4] / 1_000_000 < 10


def test_pseudo_views_and_truncation():
    camera = ring(3, 24)[1]
    moved = pseudo_view(camera, 0.1, np.random.default_rng(0))
    assert np.array_equal(moved.viewmat[:3, :3], camera.viewmat[:3, :3])

    def centre(c):
        return -c.viewmat[:3, :3].T @ c.viewmat[:3, 3]

    assert 0.01 < np.linalg.norm(centre(moved) - centre(camera)) < 0.6
    scene = blob_scene().with_sh_degree(0)
    shN = np.random.default_rng(0).normal(0, 0.2, (len(scene), 8, 3))
    splats = splats_from_gaussians(scene.replaced(shN=shN), torch.device("cpu"))
    degree = splats.sh_degree
    teacher = SceneTeacher({name: splats[name].detach() for name in RAW}, (1.0, 1.0, 1.0))
    picture = teacher.picture(camera)
    assert picture.shape == (camera.height, camera.width, 3)
    truncate(splats, 0)
    assert splats.sh_degree == 0 < degree
    assert splats.moments["shN"][0].shape == splats["shN"].shape
    assert torch.equal(teacher.picture(camera), picture)
    # Bands that stay take over what cameras see of the others; where none looks nothing changes.
    cameras = ring(8, 24)
    errors = []
    for seen_from in ((), cameras):
        student = splats_from_gaussians(scene.replaced(shN=shN), torch.device("cpu"))
        truncate(student, 1, seen_from)
        drawn = SceneTeacher({name: student[name].detach() for name in RAW}, (1.0, 1.0, 1.0))
        errors.append(sum(float((drawn.picture(c) - teacher.picture(c)).square().mean()) for c in cameras))
    assert errors[1] < 0.7 * errors[0]
    turned = np.diag([-1.0, 1.0, -1.0, 1.0]) @ cameras[0].viewmat
    student = splats_from_gaussians(scene.replaced(shN=shN), torch.device("cpu"))
    truncate(student, 1, [replace(cameras[0], viewmat=turned)])
    assert np.array_equal(student["sh0"].detach().numpy(), scene.sh0)


# --- runs ---


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_in_a_file_that_is_the_scene(dataset, method, small_codebooks):
    trainer = trainer_of(dataset, method=method, iterations=120, sh_degree=3, mask_weight=2e-3)
    result = trainer.run()
    payload = trainer.method.compressed(result.gaussians)
    decoded = api.decompress(payload)
    assert len(decoded) == len(result.gaussians)
    assert decoded.sh_degree == (3 if method == "compact3dgs" else 2)
    with api.open(payload) as opened:
        names = {feature.name for feature in opened.container.features}
        lengths = {}
        for entry in opened.container.chunks:
            lengths[entry.type] = lengths.get(entry.type, 0) + entry.length
    assert names == ({"lossy-1", "vector-1", "neural-1"} if method == "compact3dgs" else {"lossy-1", "vector-1"})
    # What the file decodes to looks like what was trained.
    from splatcodec.training.evaluation import evaluate

    of_file = evaluate(decoded, dataset, dataset.test)
    assert of_file.psnr_db > result.evaluation.psnr_db - 0.5
    if method == "compact3dgs":
        assert np.allclose(np.sort(decoded.scales, 0), np.sort(result.gaussians.scales, 0), atol=1e-5)
    assert np.abs(np.sort(decoded.means, 0) - np.sort(result.gaussians.means, 0)).max() < 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [58])  # the field has taken over and codebooks are in use by then
def test_an_interrupted_run_ends_like_an_uninterrupted_one(dataset, tmp_path, method, stop, small_codebooks):
    settings = {"method": method, "sh_degree": 3}
    whole_run = trainer_of(dataset, **settings)
    whole = whole_run.run()

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.iteration == stop:
            raise Killed

    trainer = trainer_of(dataset, tmp_path / "run.checkpoint", progress=kill, **settings)
    with pytest.raises(Killed):
        trainer.run()
    trainer.save()
    resumed = trainer_of(dataset, tmp_path / "run.checkpoint", resume=True, **settings)
    again = resumed.run()
    assert_same_scene(again.gaussians, whole.gaussians)
    assert resumed.method.compressed(again.gaussians) == whole_run.method.compressed(whole.gaussians)


def test_compact3dgs_is_plain_training_until_the_field_takes_over(dataset):
    """Benchmarks continue plain training's state; a mask that is not drawn yet must not be pressed."""

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.iteration == 36:
            raise Stop

    runs = [trainer_of(dataset, method=method, progress=stop, mask_weight=1e3) for method in ("plain", "compact3dgs")]
    for trainer in runs:
        with pytest.raises(Stop):
            trainer.run()
    plain, ours = runs
    for name, value in plain.splats.params.items():
        assert torch.equal(value, ours.splats[name])
    assert not ours.splats["mask"].any()
    assert not ours.method.distilled
    ours.method.attributes(ours.splats, 0.6)
    assert ours.method.distilled


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("budget", "sh_degree", "iterations"), [(3, 0, 40), (1, 1, 40), (200, 0, 3)])
def test_tiny_scenes_and_runs(dataset, method, budget, sh_degree, iterations):
    """Fewer Gaussians than a codebook has entries, no harmonics, hardly a step."""
    trainer = trainer_of(
        dataset, method=method, max_gaussians=budget, sh_degree=sh_degree, iterations=iterations, prune=0.9
    )
    result = trainer.run()
    decoded = api.decompress(trainer.method.compressed(result.gaussians))
    assert 1 <= len(decoded) <= budget
    assert decoded.sh_degree == sh_degree


def test_a_mask_that_removes_everything_is_an_error(dataset):
    with pytest.raises(SplatCodecError, match="removed every Gaussian"):
        trainer_of(dataset, method="compact3dgs", mask_weight=1e6, iterations=600, max_gaussians=50).run()


def test_the_example_of_the_docs_runs(capsys):
    text = (ROOT / "docs" / "training.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ResidualQuantizer" in block]
    exec(compile(code, "docs/training.md", "exec"), {})
    assert "1000 Gaussians stay" in capsys.readouterr().out


# --- finished scenes ---


def ball(count=400, sh_degree=2, seed=0):
    """Overlapping Gaussians on a sphere, coloured by place."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(count, 3))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return Gaussians(
        means=means,
        quats=rng.normal(size=(count, 4)),
        scales=np.log(0.12) + 0.4 * rng.normal(size=(count, 3)),
        opacities=rng.normal(size=count) + 1.0,
        sh0=np.sin(3 * means)[:, None, :],
        shN=0.02 * rng.normal(size=(count, (sh_degree + 1) ** 2 - 1, 3)),
        metadata={"up": [0.0, 0.0, 1.0], "background": [1.0, 1.0, 1.0]},
    )


def test_a_finished_scene_is_pruned_and_recovers(tmp_path):
    scene = ball()
    cameras = evaluation_cameras(scene, num_views=6, size_px=64)

    def quality(other):
        return float(np.mean([covered_psnr_db(render(scene, c), render(other, c)) for c in cameras]))

    report = api.CompressReport()
    found = {}
    for iterations in (1, 120):
        payload = compress_by_method(
            scene, "lightgaussian", iterations=iterations, views=24, size_px=64, threads=1, report=report,
            settings={"prune": 0.3},
        )  # fmt: skip
        found[iterations] = api.decompress(payload)
    assert report.size_bytes == len(payload)
    assert report.num_coded == len(found[120]) == 280
    assert any("pruned by significance" in note for note in report.notes)
    assert found[120].metadata["background"] == [1.0, 1.0, 1.0]
    keep = np.argsort(
        -global_significance(scene, [view.camera for view in dataset_of_scene(scene, views=24, size_px=64).train])
    )
    pruned = scene.selected(np.sort(keep[:280]))
    assert quality(found[120]) > quality(found[1]) + 0.5
    assert quality(found[1]) > quality(pruned) - 1.0  # what coding costs
    # Methods that leave the file to the encoder take its options.
    payload = compress_by_method(scene, "masked", iterations=2, views=3, size_px=32, threads=1, quality=30, effort=1)
    assert len(api.decompress(payload)) > 0


def test_finished_scenes_that_cannot_be_learned_from():
    with pytest.raises(ParameterError, match="no Gaussians"):
        compress_by_method(Gaussians.empty(1))
    with pytest.raises(ParameterError, match="itself"):
        compress_by_method(ball(5), "lightgaussian", quality=50)
    with pytest.raises(UnknownIdError, match="lightgaussian"):
        compress_by_method(ball(5), "lightgausian")
    one = compress_by_method(ball(1, 0), "lightgaussian", iterations=3, views=2, size_px=32, threads=1)
    assert len(api.decompress(one)) == 1


def test_compress_by_method_from_the_command_line(tmp_path, capsys):
    path, out = tmp_path / "ball.ply", tmp_path / "small.splc"
    api.write(ball(60, 1), path)
    command = ["compress", str(path), str(out), "--method", "lightgaussian"]
    done = subprocess.run(
        [sys.executable, "-m", "splatcodec", *command, "--iterations", "4", "--threads", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pruned by significance" in done.stdout + done.stderr
    assert len(api.read(out)) == 48
    for options in (
        [*command, "--overwrite", "--quality", "50"],
        [*command, "--overwrite", "--lossless"],
        [*command, "--overwrite", "--compact"],
        command,  # the file exists
        [*command[:3], "--iterations", "4", "--overwrite"],
        [*command[:3], "--method", "none", "--overwrite"],
    ):
        assert main(options) == 2, options
        assert capsys.readouterr().err.strip()
    assert len(api.read(out)) == 48
