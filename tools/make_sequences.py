#!/usr/bin/env python3
"""Moving scenes for tests and benchmarks, made from a still one: the same frames for a seed everywhere.

    python tools/make_sequences.py SCENE OUT_FOLDER                     # 60 frames, noise of 45 dB
    python tools/make_sequences.py SCENE OUT_FOLDER --noise-db 38       # the harder set
    python tools/make_sequences.py - OUT_FOLDER --frames 12             # of the synthetic scene, no data needed

Along the longest axis of the scene a third of the Gaussians rests, a third bends like a branch in the wind, and a third
is three rigid parts that turn and travel. Every frame has fresh noise in every attribute, scaled so that two
consecutive frames of the resting part differ by the PSNR asked for, as separately trained frames would. 10 % of the
Gaussians appear or vanish, each over a few frames, and colours drift slowly all over the scene.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splatcodec import api
from splatcodec.gaussians import Gaussians, unit_quats
from splatcodec.metrics.psnr import covered_psnr_db
from splatcodec.render.camera import encoder_cameras
from splatcodec.render.cpu import render
from splatcodec.sample import sample_scene
from splatcodec.sh_rotation import turned_sh
from splatcodec.stages.transform import rotation_matrices

__all__ = ["MovingScene"]

Floats = npt.NDArray[np.float64]
_FADE_FRAMES = 4
_GONE = np.float32(-14.0)  # logit of what is not there, where the count shall stay the same
_FEWEST_ALPHA = 1.0 / 255.0
_DRIFT = 0.06
_NOISE = {"means": 1.0, "quats": 0.4, "scales": 0.7, "opacities": 0.7, "sh0": 0.25, "shN": 0.12}


def product(a: Floats, b: Floats) -> Floats:
    """Products of quaternions, w x y z, of any shapes that fit each other."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def about(axis: Floats, angle: npt.ArrayLike) -> Floats:
    """Quaternions of turns by `angle` radians about a unit axis."""
    half = 0.5 * np.asarray(angle, np.float64)
    return np.concatenate([np.cos(half)[..., None], np.sin(half)[..., None] * axis], axis=-1)


@dataclass
class MovingScene:
    """A still scene and what happens to it.

    Args:
        scene: the still scene, cleaned.
        num_frames: how many frames.
        noise_db: PSNR between consecutive frames of the resting part; None = no noise.
        seed: another seed gives other noise and other times, not other motions.
    """

    scene: Gaussians
    num_frames: int = 60
    noise_db: float | None = 45.0
    seed: int = 1

    def __post_init__(self) -> None:
        self.scene = self.scene.cleaned()[0].replaced(extras={})
        self.scene = self.scene.replaced(quats=unit_quats(self.scene.quats))
        rng = np.random.default_rng(self.seed)
        means = self.scene.means.astype(np.float64)
        n = len(means)
        low, high = np.quantile(means, [0.05, 0.95], axis=0)
        order = np.argsort(high - low)[::-1]
        self._axis, self._across, self._up = (int(k) for k in order)
        self._extent = float((high - low).max())
        rank = np.argsort(np.argsort(means[:, self._axis], kind="stable"), kind="stable") / max(n, 1)
        self.part = np.where(rank < 1 / 3, 0, np.where(rank < 2 / 3, 1, 2))  # rests, bends, rigid
        cut = np.quantile(means[self.part == 2, self._across], [1 / 3, 2 / 3]) if (self.part == 2).any() else [0, 0]
        self.part[self.part == 2] += np.searchsorted(cut, means[self.part == 2, self._across])
        # When each Gaussian is there: a twentieth appears, a twentieth vanishes.
        chance = rng.random(n)
        when = rng.integers(1, max(self.num_frames - 1, 2), n)
        self.first = np.where(chance < 0.05, when, -1000)
        self.last = np.where(chance > 0.95, when, 1_000_000)
        self._phase = means / self._extent @ rng.normal(size=3) * 2.0
        self._tint = rng.normal(size=3) * _DRIFT
        self._noise = 0.0
        if self.noise_db is not None:
            self._noise = self._calibrated(self.noise_db)

    def presence(self, frame: int) -> Floats:
        """(N,) share of its opacity that each Gaussian has in a frame."""
        begun = np.clip((frame - self.first + 1) / _FADE_FRAMES, 0.0, 1.0)
        return np.minimum(begun, np.clip((self.last - frame) / _FADE_FRAMES, 0.0, 1.0))

    def frame(self, number: int, *, drop_absent: bool = False) -> Gaussians:
        """One frame; rows are the still scene's, unless those that are not there are dropped."""
        moved = self.motion(number)
        moved = self._noisy(moved, np.random.default_rng([self.seed, number]))
        presence = self.presence(number)
        alphas = moved.alphas().astype(np.float64) * presence
        with np.errstate(divide="ignore"):
            logits = np.log(alphas / np.maximum(1.0 - alphas, 1e-9))
        opacities = np.where(presence < 1.0, np.maximum(logits, _GONE), moved.opacities).astype(np.float32)
        moved = moved.replaced(opacities=opacities)
        return moved.selected(alphas >= _FEWEST_ALPHA) if drop_absent else moved

    def frames(self, *, drop_absent: bool = False) -> Iterator[Gaussians]:
        """All frames in order."""
        for number in range(self.num_frames):
            yield self.frame(number, drop_absent=drop_absent)

    def motion(self, number: int) -> Gaussians:
        """One frame without noise, and with everything there."""
        time = number / 60.0
        scene = self.scene
        means, quats, shN = scene.means.astype(np.float64), scene.quats.astype(np.float64), scene.shN.copy()
        unit = np.eye(3)
        bends = self.part == 1
        if bends.any():
            along = means[bends, self._axis]
            start = along.min()
            share = (along - start) / max(float(np.ptp(along)), 1e-9)
            angle = 0.35 * np.sin(2 * np.pi * time) * share**2
            turn = about(unit[self._up], angle)
            hinge = np.zeros(3)
            hinge[self._axis] = start
            hinge[self._across] = np.median(means[bends, self._across])
            hinge[self._up] = np.median(means[bends, self._up])
            means[bends] = hinge + np.einsum("nij,nj->ni", rotation_matrices(turn), means[bends] - hinge)
            quats[bends] = product(turn, quats[bends])
        for k in range(3):
            rows = self.part == 2 + k
            if not rows.any():
                continue
            centre = means[rows].mean(0)
            axis = unit[(self._axis + k) % 3] + 0.3 * unit[self._up]
            turn = about(axis / np.linalg.norm(axis), (1.2, -0.8, 0.5)[k] * np.pi * time * (1 + 0.2 * np.sin(5 * time)))
            travel = self._extent * np.array([0.15 * time, 0.1 * np.sin(3 * time + k), 0.05 * (np.cos(4 * time) - 1)])
            matrix = rotation_matrices(turn[None])[0]
            means[rows] = centre + (means[rows] - centre) @ matrix.T + travel
            quats[rows] = product(turn[None], quats[rows])
            if scene.sh_degree:
                shN[rows] = turned_sh(shN[rows], matrix)
        drift = np.sin(2 * np.pi * 0.7 * time + self._phase)[:, None] * self._tint
        sh0 = scene.sh0 + drift[:, None, :].astype(np.float32)
        return scene.replaced(
            means=means.astype(np.float32), quats=quats.astype(np.float32), sh0=sh0.astype(np.float32), shN=shN
        )

    def _noisy(self, scene: Gaussians, rng: np.random.Generator, amount: float | None = None) -> Gaussians:
        amount = self._noise if amount is None else amount
        if not amount:
            return scene
        size = np.exp(np.minimum(scene.scales, 80.0).astype(np.float64)).mean(1)[:, None]
        changed = {}
        for name, share in _NOISE.items():
            values = getattr(scene, name)
            noise = rng.normal(size=values.shape) * share * amount
            changed[name] = (values + (noise * size if name == "means" else noise)).astype(np.float32)
        return scene.replaced(**changed)

    def _calibrated(self, wanted_db: float) -> float:
        """The amount of noise at which two frames of the resting part differ by so much."""
        rest = self.scene.selected(self.part == 0)
        if not len(rest):
            return 0.0
        cameras = encoder_cameras(rest, num_views=4, size_px=256, seed=9)
        amount = 0.03
        for _ in range(4):
            a, b = (self._noisy(rest, np.random.default_rng([7, k]), amount) for k in range(2))
            psnr = float(np.mean([covered_psnr_db(render(a, camera), render(b, camera)) for camera in cameras]))
            amount *= 10.0 ** ((psnr - wanted_db) / 20.0)
        return amount


def main() -> int:
    """Write the frames as PLY files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a still scene; - for the synthetic one")
    parser.add_argument("output", type=Path, help="folder for frame_0000.ply ...")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument(
        "--noise-db", type=float, default=45.0, help="45 (default), 38 for the harder set, 0 = no noise"
    )
    parser.add_argument("--count", type=int, default=3000, help="Gaussians of the synthetic scene")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--drop-absent", action="store_true", help="leave out what is not there: counts change")
    args = parser.parse_args()
    scene = sample_scene(args.count) if args.scene == "-" else api.read(args.scene)
    moving = MovingScene(scene, args.frames, args.noise_db or None, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(moving.frames(drop_absent=args.drop_absent)):
        api.write(frame, args.output / f"frame_{k:04}.ply", overwrite=True)
    print(f"{args.output}: {args.frames} frames", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
