#!/usr/bin/env python3
"""What training frame by frame for the codec saves against training every frame by itself (docs/sequences.md).

    python tools/train_sequence.py                            # 12 cameras, 20 frames, 128 pixels, the synthetic scene
    python tools/train_sequence.py SCENE --frames 10 --json OUT.json

Pictures are drawn from the frames of tools/make_sequences.py without noise. Every way starts its first frame from the
same points: a sample of the Gaussians of that frame, as small grey balls. `independent` starts every frame so, with a
sample of its own; `warm` starts from the frame before and learns from pictures alone; `v3` is `training.frames`.
All are coded at the same quality by `compress_sequence`; PSNR is of decoded frames against the true pictures, from
cameras that nothing was trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_sequences import MovingScene

from splatcodec import api
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.psnr import covered_psnr_db
from splatcodec.render.camera import encoder_cameras, evaluation_cameras
from splatcodec.render.cpu import render
from splatcodec.sample import sample_scene
from splatcodec.training.frames import FrameSettings, train_frames


def points(frame: Gaussians, count: int, seed: int) -> Gaussians:
    """A sample of a frame's Gaussians as grey balls: what a reconstruction of its surface would give."""
    rng = np.random.default_rng(seed)
    weight = frame.alphas() * np.exp(2.0 * frame.scales).mean(1)
    rows = np.sort(rng.choice(len(frame), min(count, len(frame)), replace=False, p=weight / weight.sum()))
    some = frame.selected(rows)
    size = float(np.median(np.linalg.norm(np.ptp(some.means, axis=0)) / np.sqrt(len(some)) / 6.0))
    return Gaussians(
        some.means, np.tile([1.0, 0, 0, 0], (len(some), 1)), np.full((len(some), 3), np.log(size)),
        np.zeros(len(some)), np.zeros((len(some), 1, 3)), np.zeros((len(some), 0, 3)),
    )  # fmt: skip


def main() -> int:
    """Train, code, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", nargs="?", help="a still scene; the synthetic one if there is none")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=2500, help="Gaussians that are trained")
    parser.add_argument("--key-steps", type=int, default=400)
    parser.add_argument("--motion-steps", type=int, default=FrameSettings.motion_steps)
    parser.add_argument("--tune-steps", type=int, default=FrameSettings.tune_steps)
    parser.add_argument("--ways", nargs="+", default=["independent", "warm", "v3"])
    parser.add_argument("--quality", type=float, nargs="+", default=[30.0, 45.0])
    parser.add_argument("--profile", default="motion")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    still = api.read(args.scene) if args.scene else sample_scene(6000)
    moving = MovingScene(still.with_sh_degree(0), args.frames, None)
    truth = [moving.frame(k, drop_absent=True) for k in range(args.frames)]
    middle = truth[args.frames // 2]
    cameras = encoder_cameras(middle, num_views=2 * args.cameras, size_px=args.size, seed=3)[::2]
    held_out = evaluation_cameras(middle, num_views=6, size_px=args.size, seed=4)

    def pictures(number: int) -> list[Any]:
        return [(camera, torch.from_numpy(render(truth[number], camera).rgb.copy())) for camera in cameras]

    settings = FrameSettings(
        key_steps=args.key_steps, motion_steps=args.motion_steps, tune_steps=args.tune_steps, group=args.frames
    )

    def trained(way: str) -> Iterator[Gaussians]:
        if way == "independent":
            for k in range(args.frames):
                (frame,) = train_frames([pictures(k)], points(truth[k], args.count, k), replace(settings, seed=k))
                yield frame.replaced(extras={})  # nobody knows who is who
            return
        chosen = settings
        if way == "warm":
            steps = settings.motion_steps + settings.tune_steps
            chosen = replace(settings, entropy_weight=0.0, temporal_weight=0.0, motion=False, tune_steps=steps)
        yield from train_frames(map(pictures, range(args.frames)), points(truth[0], args.count, 0), chosen)

    results = []
    for way in args.ways:
        used = time.process_time()
        frames = list(trained(way))
        used = time.process_time() - used

        def psnr_db(found: list[Gaussians]) -> float:
            return float(
                np.mean([covered_psnr_db(render(t, c), render(f, c)) for t, f in zip(truth, found) for c in held_out])
            )

        base = {"way": way, "train_cpu_s": round(used, 1), "trained_psnr_db": round(psnr_db(frames), 2)}
        print(json.dumps(base), file=sys.stderr, flush=True)
        for quality in args.quality:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.splc"
                options: dict[str, Any] = {"quality": quality, "group": 1 if way == "independent" else args.frames}
                # Frames that do not correspond are coded one by one.
                profile = "motion" if way == "independent" else args.profile
                report = api.compress_sequence(frames, path, fps=30, profile=profile, **options)
                with api.open_moving(path) as scene:
                    decoded = list(scene)
            row = {**base, "quality": quality, "kb_per_frame": report.bytes_per_frame / 1e3}
            row["psnr_db"] = round(psnr_db(decoded), 2)
            results.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    text = json.dumps(results, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
