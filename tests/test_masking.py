"""Learned masks: what they draw, what they learn, and what training does with them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from test_training import assert_same_scene, blob_scene, ring, run, write_blender  # noqa: E402

from splatcodec.errors import SplatCodecError  # noqa: E402
from splatcodec.training.datasets import read_dataset  # noqa: E402
from splatcodec.training.masking import kept_rows, mask_loss, masked  # noqa: E402
from splatcodec.training.methods.masked import Masked  # noqa: E402
from splatcodec.training.settings import TrainSettings  # noqa: E402
from splatcodec.training.splats import splats_from_gaussians  # noqa: E402
from splatcodec.training.trainer import Trainer  # noqa: E402


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return read_dataset(write_blender(tmp_path_factory.mktemp("set"), blob_scene(), ring(8, 24), ring(2, 24)))


def test_a_mask_changes_nothing_until_it_closes():
    attributes = {
        "means": torch.zeros(3, 3),
        "log_scales": torch.tensor([[-1.0, 0.5, 2.0]] * 3),
        "opacity_logits": torch.tensor([-2.0, 0.0, 3.0]),
    }
    mask = torch.tensor([[0.0], [-5.0], [-7.0]])  # sigmoids 0.73, 0.018 and 0.0025
    result = masked(attributes, mask)
    assert kept_rows(mask).tolist() == [True, True, False]
    assert torch.allclose(result["log_scales"], attributes["log_scales"])
    assert torch.allclose(result["opacity_logits"][:2], attributes["opacity_logits"][:2])
    assert float(torch.sigmoid(result["opacity_logits"][2])) < 1e-6
    assert result["means"] is attributes["means"]


def test_gradients_pass_the_threshold_as_those_of_the_products():
    logits = torch.tensor([-1.0, 0.3])
    scales = torch.randn(2, 3)
    mask = torch.tensor([[0.2], [-1.0]], requires_grad=True)
    result = masked({"log_scales": scales, "opacity_logits": logits}, mask)
    loss = (result["log_scales"].exp().sum(1) + 2.0 * torch.sigmoid(result["opacity_logits"])).sum()
    (gradient,) = torch.autograd.grad(loss, mask)
    # By M in s M and o M, times the slope of the sigmoid.
    soft = torch.sigmoid(mask.detach() + 1.0)
    expected = (scales.exp().sum(1) + 2.0 * torch.sigmoid(logits))[:, None] * soft * (1 - soft)
    assert torch.allclose(gradient, expected, rtol=1e-5)
    assert float(mask_loss(mask.detach())) == pytest.approx(float(soft.mean()))
    assert float(mask_loss(torch.zeros(0, 1))) == 0.0


def test_a_mask_removes_gaussians_that_are_not_needed(dataset):
    free = run(dataset, method="masked", mask_weight=0.0, iterations=600, max_gaussians=400)
    pressed = run(dataset, method="masked", mask_weight=0.02, iterations=600, max_gaussians=400)
    assert len(pressed.gaussians) < 0.8 * len(free.gaussians)
    assert pressed.evaluation.psnr_db > free.evaluation.psnr_db - 3.0


def test_a_mask_that_removes_everything_is_an_error(dataset):
    with pytest.raises(SplatCodecError, match="removed every Gaussian"):
        run(dataset, method="masked", mask_weight=1e6, iterations=600, max_gaussians=100)


def test_a_mask_that_closes_between_two_removals_is_an_error():
    """The run may end before the next removal: the scene would be empty."""
    method = Masked(TrainSettings(method="masked", iterations=100))
    splats = method.prepare(splats_from_gaussians(blob_scene(), torch.device("cpu")))
    method.after_step(splats, 0.985)
    with torch.no_grad():
        splats["mask"].fill_(-9.0)
    with pytest.raises(SplatCodecError, match="removed every Gaussian"):
        method.after_step(splats, 0.99)


@pytest.mark.parametrize(("budget", "sh_degree"), [(1, 0), (3, 1)])
def test_few_gaussians_can_be_masked(dataset, budget, sh_degree):
    result = run(dataset, method="masked", iterations=30, max_gaussians=budget, sh_degree=sh_degree)
    assert 1 <= len(result.gaussians) <= budget


def test_an_interrupted_run_ends_like_an_uninterrupted_one(dataset, tmp_path):
    settings = {"method": "masked", "mask_weight": 0.05, "iterations": 60}
    whole = run(dataset, **settings)

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.iteration == 31:
            raise Killed

    chosen = TrainSettings(max_gaussians=700, sh_degree=1, threads=2, **settings)
    trainer = Trainer(dataset, chosen, checkpoint=tmp_path / "run.checkpoint", progress=kill, evaluations=0)
    with pytest.raises(Killed):
        trainer.run()
    trainer.save()
    assert_same_scene(run(dataset, tmp_path / "run.checkpoint", resume=True, **settings).gaussians, whole.gaussians)
