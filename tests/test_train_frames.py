"""Training a moving scene frame by frame: it follows the motion, and its losses make frames alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splatcodec.errors import ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.psnr import covered_psnr_db
from splatcodec.render.camera import evaluation_cameras
from splatcodec.render.cpu import render
from splatcodec.training.frames import FrameSettings, MotionField, residual_entropy, train_frames


def scene(shift: float = 0.0) -> Gaussians:
    rng = np.random.default_rng(5)
    count = 120
    means = rng.normal(0, 0.5, (count, 3))
    means[: count // 2, 0] += shift - 1.0
    means[count // 2 :, 0] += 1.0
    return Gaussians(
        means, np.tile([1.0, 0, 0, 0], (count, 1)), np.full((count, 3), np.log(0.12)), np.full(count, 2.0),
        rng.normal(0, 1, (count, 1, 3)), np.zeros((count, 0, 3)),
    )  # fmt: skip


def views(frame: Gaussians, cameras: list) -> list:
    return [(camera, torch.from_numpy(render(frame, camera).rgb.copy())) for camera in cameras]


def test_motion_is_followed_and_rows_stay_who_they_are() -> None:
    cameras = evaluation_cameras(scene(), num_views=6, size_px=48, seed=2)
    truth = [scene(0.06 * k) for k in range(3)]
    settings = FrameSettings(key_steps=0, motion_steps=60, tune_steps=40)
    frames = list(train_frames((views(frame, cameras) for frame in truth), truth[0], settings, num_threads=1))
    assert [len(frame) for frame in frames] == [120] * 3
    assert all((frame.extras["id"] == np.arange(120)).all() for frame in frames)
    moved = (frames[2].means - frames[0].means)[:, 0]
    assert np.median(moved[:60]) == pytest.approx(0.12, abs=0.03)
    assert abs(np.median(moved[60:])) < 0.02
    held_out = evaluation_cameras(truth[2], num_views=3, size_px=64, seed=9)

    def psnr(frame: Gaussians) -> float:
        return float(np.mean([covered_psnr_db(render(truth[2], c), render(frame, c)) for c in held_out]))

    assert psnr(frames[2]) > psnr(truth[0]) + 4
    again = list(train_frames((views(frame, cameras) for frame in truth), truth[0], settings, num_threads=2))
    np.testing.assert_array_equal(again[2].means, frames[2].means)


def test_losses_make_frames_alike() -> None:
    cameras = evaluation_cameras(scene(), num_views=4, size_px=32, seed=2)
    rng = np.random.default_rng(1)
    noisy = [scene().replaced(sh0=scene().sh0 + rng.normal(0, 0.3, (120, 1, 3)).astype(np.float32)) for _ in range(2)]
    change = []
    for weight in (0.0, 0.05):
        settings = FrameSettings(
            key_steps=0, motion=False, tune_steps=30, entropy_weight=weight, temporal_weight=weight
        )
        frames = list(train_frames((views(frame, cameras) for frame in noisy), scene(), settings, num_threads=1))
        change.append(float(np.abs(frames[1].scales - frames[0].scales).mean()))
    assert change[1] < 0.5 * change[0]


def test_entropy_is_that_of_rounded_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    for deviation in (0.0, 1.0, 8.0):
        residuals = torch.randn((20_000, 2), generator=generator) * deviation
        bits = float(residual_entropy(residuals, torch.rand(residuals.shape, generator=generator) - 0.5))
        _, counts = np.unique(np.rint(residuals.numpy()[:, 0]), return_counts=True)
        share = counts / counts.sum()
        # Noise in place of rounding adds up to a third of a bit where steps are as large as the deviation.
        assert bits == pytest.approx(float(-(share * np.log2(share)).sum()), abs=0.65), deviation
    leaf = torch.ones((50, 3), requires_grad=True)
    residual_entropy(leaf * torch.arange(50)[:, None], torch.zeros(50, 3)).backward()
    assert torch.isfinite(leaf.grad).all()
    assert leaf.grad.abs().sum() > 0


def test_a_field_of_zeros_moves_nothing_and_borders_go_on() -> None:
    field = MotionField(torch.zeros(3), torch.ones(3), (2, 4))
    points = torch.tensor([[0.5, 0.5, 0.5], [3.0, -1.0, 0.2]])
    assert not field(points).any()
    with torch.no_grad():
        field.grids[0][0, 0] = 0.25
    torch.testing.assert_close(field(points), torch.tensor([[0.25, 0, 0], [0.25, 0, 0]]))


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ParameterError, match="no pictures"):
        list(train_frames([[]], scene()))
    with pytest.raises(ParameterError, match="start from"):
        list(train_frames([[]], Gaussians.empty(0)))
    with pytest.raises(ParameterError, match="0 or more"):
        FrameSettings(tune_steps=-1)
