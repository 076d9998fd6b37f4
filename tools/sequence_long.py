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


def now_mb() -> float:
    """Memory that this process holds now, MB; only Linux tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2.0**20
    except OSError:
        return float("nan")


def main() -> int:
    """Encode, then seek."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--frames", type=int, default=18_000)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--effort", type=int, default=1)
    parser.add_argument("--seeks", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end the clip early after so long")
    args = parser.parse_args()
    moving = MovingScene(sample_scene(args.count).with_sh_degree(0), 60)
    memory: list[float] = []
    given = 0
    clock, used = time.perf_counter(), time.process_time()

    def frames() -> Iterator[Gaussians]:
        nonlocal given
        for given in range(1, args.frames + 1):
            elapsed = time.perf_counter() - clock
            if elapsed > 60.0 * args.minutes:
                given -= 1
                return
            there = (given - 1) % 118
            yield moving.frame(there if there < 60 else 118 - there)
            if elapsed >= 60.0 * len(memory):
                memory.append(now_mb())
                cpu = time.process_time() - used
                print(
                    f"{elapsed / 60:.1f} min, frame {given}: {memory[-1]:.0f} MB now, {peak_mb():.0f} MB at most, "
                    f"{1e3 * cpu / given:.0f} CPU ms a frame",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    report = api.compress_sequence(frames(), args.output, fps=30, effort=args.effort, overwrite=True)
    seconds, spent, peak = time.perf_counter() - clock, time.process_time() - used, peak_mb()
    times, costs = [], []
    with api.open_moving(args.output) as scene:
        scene.frame(0)
        for number in np.random.default_rng(0).integers(0, given, args.seeks):
            clock, cost = time.perf_counter(), time.process_time()
            scene.frame(int(number))
            times.append(time.perf_counter() - clock)
            costs.append(time.process_time() - cost)
    facts = {
        "frames": given, "num_gaussians": args.count, "encode_s": seconds, "encode_cpu_s": spent,
        "cpu_ms_per_frame": 1e3 * spent / max(given, 1), "peak_mb": peak, "mb_by_minute": memory,
        "size_bytes": report.size_bytes, "bytes_per_frame": report.bytes_per_frame,
        "seek_ms_median": 1e3 * float(np.median(times)), "seek_ms_worst": 1e3 * max(times),
        "seek_cpu_ms_median": 1e3 * float(np.median(costs)), "seek_cpu_ms_worst": 1e3 * max(costs),
        "seconds": report.seconds,
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
