#!/usr/bin/env python3
"""KB a frame and covered PSNR of moving scenes, and how fast they are coded, beside per-frame files and V3's layout.

    python tools/sequence_bench.py SCENE [SCENE ...] --json docs/sequences.json     # 60 frames each, noise of 45 dB
    python tools/sequence_bench.py SCENE --noise-db 38 --only motion spz            # the harder set, some codecs
    python tools/sequence_bench.py FOLDER --noise-db 0                              # a folder of frames, as they are

The profile video is measured at the first two qualities only, which are the ones that its peer reaches.

The frames are those of tools/make_sequences.py. All codecs see the same frames and are judged by the same pictures:
PSNR over covered pixels, mean over views of every so-manieth frame. Per-frame files hold only what is there in a
frame (absent Gaussians are dropped for them); they are written for the judged frames, and their mean size counts.
At equal PSNR our bytes are interpolated (log bytes over dB) on our own curve at the peer's PSNR. Speeds are frames a
second of processor time, all threads counted together.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from make_sequences import MovingScene

from splatcodec import api
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.psnr import covered_psnr_db
from splatcodec.render.camera import Camera, evaluation_cameras
from splatcodec.render.cpu import render
from splatcodec.render.rendering import Rendering
from splatcodec.sequence.input import open_frames

__all__ = ["Judge", "at_psnr", "measure"]

_QUALITIES = (35.0, 50.0, 65.0, 80.0)


class FolderScene:
    """The frames of a folder, as `MovingScene` gives them."""

    def __init__(self, path: Path, num_frames: int) -> None:
        self._frames = list(islice(open_frames(path), num_frames))
        self.num_frames = len(self._frames)

    def frame(self, number: int, *, drop_absent: bool = False) -> Gaussians:
        """Frame `number`; nothing in it is absent."""
        del drop_absent
        return self._frames[number]

    def frames(self) -> Iterator[Gaussians]:
        """All of them."""
        return iter(self._frames)


Moving = MovingScene | FolderScene


class Judge:
    """Pictures of the original's frames, and the PSNR of others beside them."""

    def __init__(self, moving: Moving, every: int, views: int, size_px: int) -> None:
        self.numbers = list(range(0, moving.num_frames, every))
        middle = moving.frame(moving.num_frames // 2, drop_absent=True)
        self.cameras: list[Camera] = evaluation_cameras(middle, num_views=views, size_px=size_px)
        self._pictures: dict[int, list[Rendering]] = {
            k: [render(moving.frame(k, drop_absent=True), camera) for camera in self.cameras] for k in self.numbers
        }

    def psnr_db(self, frames: Iterator[tuple[int, Gaussians]]) -> tuple[float, float]:
        """Mean over frames and views, and the worst frame's mean."""
        found = []
        for number, frame in frames:
            pictures = self._pictures[number]
            found.append(np.mean([covered_psnr_db(a, render(frame, c)) for a, c in zip(pictures, self.cameras)]))
        return float(np.mean(found)), float(np.min(found))


def _ours(moving: Moving, judge: Judge, quality: float, profile: str, folder: Path, group: int) -> dict[str, Any]:
    path = folder / "moving.splc"
    frames = list(moving.frames())
    clock = time.process_time()
    report = api.compress_sequence(frames, path, quality=quality, profile=profile, group=group, overwrite=True)
    encoding = time.process_time() - clock
    with api.open_moving(path) as scene:
        for _ in scene.frames(0, 2):  # compiled, and not counted
            pass
    with api.open_moving(path) as scene:
        clock = time.process_time()
        for _ in scene.frames():
            pass
        decoding = time.process_time() - clock
        psnr, worst = judge.psnr_db((k, scene.frame(k)) for k in judge.numbers)
    return {
        "codec": f"splatcodec {profile}", "setting": f"quality {quality:g}",
        "kb_per_frame": report.bytes_per_frame / 1e3,
        "psnr_db": psnr, "worst_frame_db": worst, "encode_fps": moving.num_frames / encoding,
        "decode_fps": moving.num_frames / decoding,
    }  # fmt: skip


def _files(moving: Moving, judge: Judge, suffix: str, folder: Path, every: int = 1) -> dict[str, Any]:
    sizes, decoded, writing, reading = [], [], 0.0, 0.0
    for k in judge.numbers[::every]:
        frame = moving.frame(k, drop_absent=True)
        path = folder / f"frame{suffix}"
        clock = time.process_time()
        api.write(frame, path, overwrite=True)
        writing += time.process_time() - clock
        sizes.append(path.stat().st_size)
        clock = time.process_time()
        decoded.append((k, api.read(path)))
        reading += time.process_time() - clock
    psnr, worst = judge.psnr_db(iter(decoded))
    return {
        "codec": f"{suffix[1:].upper()} a frame", "setting": f"{len(sizes)} frames",
        "kb_per_frame": np.mean(sizes) / 1e3,
        "psnr_db": psnr, "worst_frame_db": worst,
        "encode_fps": len(sizes) / writing, "decode_fps": len(sizes) / reading,
    }  # fmt: skip


def _v3(moving: Moving, judge: Judge, qp: int) -> dict[str, Any]:
    import v3_layout

    total, decoded = 0, []
    clock = time.process_time()
    for at in range(0, moving.num_frames, v3_layout.GROUP_FRAMES):
        frames = [moving.frame(k) for k in range(at, min(at + v3_layout.GROUP_FRAMES, moving.num_frames))]
        group = v3_layout.encode_group(frames, qp=qp)
        total += group.size_bytes
        decoded += [(at + k, frame) for k, frame in enumerate(group.frames) if at + k in judge.numbers]
    seconds = time.process_time() - clock
    psnr, worst = judge.psnr_db(iter(decoded))
    return {
        "codec": "V3 layout", "setting": f"QP {qp}", "kb_per_frame": total / moving.num_frames / 1e3, "psnr_db": psnr,
        "worst_frame_db": worst, "encode_fps": moving.num_frames / seconds, "decode_fps": None,
    }  # fmt: skip


def at_psnr(curve: list[dict[str, Any]], psnr_db: float) -> float | None:
    """KB a frame of a curve at a PSNR, by log bytes over dB; None outside of it (a dB beyond its ends is taken)."""
    points = sorted((point["psnr_db"], math.log(point["kb_per_frame"])) for point in curve)
    if not points or not points[0][0] - 1.0 <= psnr_db <= points[-1][0] + 1.0:
        return None
    return float(math.exp(np.interp(psnr_db, [p for p, _ in points], [k for _, k in points])))


def measure(path: Path, args: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """All codecs on one scene."""
    name = path.stem
    moving: Moving
    if path.is_dir():
        moving = FolderScene(path, args.frames)
        scene = moving.frame(0)
    else:
        scene = api.read(path)
        moving = MovingScene(scene, args.frames, args.noise_db or None)
    judge = Judge(moving, args.every, args.views, args.size)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        tell(f"{name}: {row['codec']} {row['setting']}: {row['kb_per_frame']:.1f} KB a frame, {row['psnr_db']:.2f} dB "
             f"(worst frame {row['worst_frame_db']:.2f}), encode {row['encode_fps']:.2f}, "
             f"decode {row['decode_fps'] or float('nan'):.1f} frames a second")  # fmt: skip

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "motion" in args.only:
            for quality in args.quality:
                add(_ours(moving, judge, quality, "motion", folder, args.group))
        if "video" in args.only:
            for quality in args.quality[:2]:
                add(_ours(moving, judge, quality, "video", folder, args.group))
        if "spz" in args.only:
            add(_files(moving, judge, ".spz", folder))
        if "sog" in args.only:
            add(_files(moving, judge, ".sog", folder, every=max(1, len(judge.numbers) // 3)))
        if "v3" in args.only:
            add(_v3(moving, judge, 25))
    for profile in ("motion", "video"):
        curve = [row for row in rows if row["codec"] == f"splatcodec {profile}"]
        for row in rows:
            if not row["codec"].startswith("splatcodec"):
                ours = at_psnr(curve, row["psnr_db"])
                row[f"{profile}_over_it"] = ours / row["kb_per_frame"] if ours else None
    return {
        "scene": name, "num_gaussians": len(scene), "sh_degree": scene.sh_degree, "frames": moving.num_frames,
        "noise_db": args.noise_db, "judged_frames": judge.numbers, "views": args.views, "size_px": args.size,
        "rows": rows,
    }  # fmt: skip


def table(results: list[dict[str, Any]]) -> str:
    """As Markdown."""
    heads = (
        "scene, noise", "codec", "KB a frame", "PSNR dB", "worst frame", "encode", "decode", "motion over it",
        "video over it",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for result in results:
        for row in result["rows"]:
            ours = row["codec"].startswith("splatcodec")
            shares = [row.get(f"{profile}_over_it") for profile in ("motion", "video")]
            told = " | ".join("" if ours else f"{share:.4f}" if share else "-" for share in shares)
            decode = f"{row['decode_fps']:.1f}" if row["decode_fps"] else "-"
            lines.append(
                f"| {result['scene']}, {result['noise_db']:g} dB | {row['codec']}, {row['setting']} | "
                f"{row['kb_per_frame']:.1f} | {row['psnr_db']:.2f} | {row['worst_frame_db']:.2f} | "
                f"{row['encode_fps']:.2f} | {decode} | {told} |"
            )
    return "\n".join(lines)


def _title(result: dict[str, Any]) -> str:
    noise = f", noise of {result['noise_db']:g} dB" if result["noise_db"] else ""
    return f"{result['scene']}{noise}: {result['num_gaussians']:,} Gaussians, SH degree {result['sh_degree']}"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """KB a frame and PSNR of all results as SVG, a panel each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {"splatcodec motion": "#0b62c4", "splatcodec video": "#0f766e", "SPZ a frame": "#c2410c",
              "SOG a frame": "#7c3aed", "V3 layout": "#a16207"}  # fmt: skip
    style = {"svg.fonttype": "none", "svg.hashsalt": "sequences", "font.family": "sans-serif", "font.size": 9}
    with plt.rc_context(style):
        size = 7.6, 2.7 * len(results)
        figure, panels = plt.subplots(len(results), 1, figsize=size, layout="constrained", squeeze=False)
        for result, axes in zip(results, panels[:, 0]):
            for codec, color in colors.items():
                rows = sorted(
                    (r for r in result["rows"] if r["codec"] == codec), key=lambda r: float(r["kb_per_frame"])
                )
                if rows:
                    ours = codec.startswith("splatcodec")
                    kilobytes, db = [r["kb_per_frame"] for r in rows], [r["psnr_db"] for r in rows]
                    axes.plot(kilobytes, db, "o-" if ours else "D", color=color, markersize=5, label=codec)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("KB a frame")
            axes.set_ylabel("covered PSNR, dB")
            axes.set_title(_title(result), loc="left")
            axes.grid(True, color="#d0d7de", linewidth=0.6)
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", type=Path, help="none: only print what --json holds")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--group", type=int, default=30)
    parser.add_argument("--noise-db", type=float, default=45.0)
    parser.add_argument("--quality", type=float, nargs="+", default=list(_QUALITIES))
    parser.add_argument("--every", type=int, default=7, help="judge every so-manieth frame")
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--only", nargs="+", default=["motion", "video", "spz", "sog", "v3"])
    parser.add_argument("--json", type=Path, help="add the results to this file")
    parser.add_argument("--plot", type=Path, help="curves of all results as SVG")
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    for path in args.scenes:
        found = measure(path, args, lambda text: print(text, file=sys.stderr, flush=True))
        same = [r for r in results if (r["scene"], r["noise_db"]) == (found["scene"], found["noise_db"])]
        results = [r for r in results if r not in same] + [found]
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    if args.plot:
        plot(results, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
