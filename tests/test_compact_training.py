"""compact3dgs and lightgaussian: their parts alone, runs, files, resumed runs, and what can be wrong with the input."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_training import assert_same_scene, blob_scene, ring, write_blender  # noqa: E402

from splatcodec import api  # noqa: E402
from splatcodec.errors import ParameterError, SplatCodecError  # noqa: E402
from splatcodec.stages.neural_color import ColourField, GridShape  # noqa: E402
from splatcodec.training.colour_field import TrainedField, grid_for  # noqa: E402
from splatcodec.training.datasets import read_dataset  # noqa: E402
from splatcodec.training.distillation import SceneTeacher, pseudo_view, truncate  # noqa: E402
from splatcodec.training.residual_vq import ResidualQuantizer  # noqa: E402
from splatcodec.training.settings import TrainSettings  # noqa: E402
from splatcodec.training.shared import SharedParameters  # noqa: E402
from splatcodec.training.splats import RAW, splats_from_gaussians  # noqa: E402
from splatcodec.training.trainer import Trainer  # noqa: E402

METHODS = ("compact3dgs", "lightgaussian")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return read_dataset(write_blender(tmp_path_factory.mktemp("set"), blob_scene(), ring(8, 24), ring(2, 24)))


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


# --- runs ---


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_in_a_file_that_is_the_scene(dataset, method):
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
@pytest.mark.parametrize("stop", [57])  # codebooks are in use by then
def test_an_interrupted_run_ends_like_an_uninterrupted_one(dataset, tmp_path, method, stop):
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
