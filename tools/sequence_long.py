#!/usr/bin/env python3
"""A long moving scene from an iterator: memory of the encoder, size, and how fast one seeks. Not for CI.

    python tools/sequence_long.py OUT.splc                       # 10 minutes at 30 fps of 20,000 Gaussians: hours
    python tools/sequence_long.py OUT.splc --frames 300          # the same, shorter: memory is that of any length

The frames are those of tools/make_sequences.py on the synthetic scene, back and forth; nothing but OUT is written.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from make_sequences import MovingScene

from splatcodec import api
from splatcodec.gaussians import Gaussians
from splatcodec.sample import sample_scene


def peak_mb() -> float:
    """Most memory that this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def main() -> int:
    """Encode, then seek."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--frames", type=int, default=18_000)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--effort", type=int, default=1)
    parser.add_argument("--seeks", type=int, default=50)
    args = parser.parse_args()
    moving = MovingScene(sample_scene(args.count).with_sh_degree(0), 60)
    peaks: list[float] = []

    def frames() -> Iterator[Gaussians]:
        for number in range(args.frames):
            there = number % 118
            yield moving.frame(there if there < 60 else 118 - there)
            if number % 30 == 0:
                peaks.append(peak_mb())
                print(f"frame {number}: {peaks[-1]:.0f} MB", file=sys.stderr, flush=True)

    clock, used = time.perf_counter(), time.process_time()
    report = api.compress_sequence(frames(), args.output, fps=30, effort=args.effort, overwrite=True)
    seconds, used = time.perf_counter() - clock, time.process_time() - used
    times, costs = [], []
    with api.open_moving(args.output) as scene:
        scene.frame(0)
        for number in np.random.default_rng(0).integers(0, args.frames, args.seeks):
            clock, cost = time.perf_counter(), time.process_time()
            scene.frame(int(number))
            times.append(time.perf_counter() - clock)
            costs.append(time.process_time() - cost)
    facts = {
        "frames": args.frames, "num_gaussians": args.count, "encode_s": seconds, "encode_cpu_s": used,
        "hours_for_18000_frames": seconds / args.frames * 18_000 / 3600, "peak_mb": peaks[-1],
        "peak_mb_by_30_frames": peaks, "size_bytes": report.size_bytes, "bytes_per_frame": report.bytes_per_frame,
        "seek_ms_median": 1e3 * float(np.median(times)), "seek_ms_worst": 1e3 * max(times),
        "seek_cpu_ms_median": 1e3 * float(np.median(costs)), "seconds": report.seconds,
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
