#!/usr/bin/env python3
"""SOG files written here beside those of splat-transform: bytes, pictures, seconds.

    python tools/peers.py --install && python tools/peers.py --scenes     # once
    python tools/sog_bench.py banana donut leica angel-dithered --out .cache/sog_bench
    python tools/sog_bench.py bouquet-dithered --out .cache/sog_bench     # theirs takes over 20 minutes: left out
    python tools/sog_bench.py --palette banana                            # the palette's clusters beside scikit-learn's

A scene is a 3DGS PLY: a path, or a name in `.cache/scenes`. `OUT/sog.json` grows by scenes and is printed as a table.

- **Pictures**: covered PSNR over the 24 evaluation views of `metrics.compare`, both files read by our reader.
- **Ours**: the default, and `--quality` at several values; bytes at their PSNR are interpolated between those (log
  bytes over dB). The ratio is over the bytes of their file, as `tools/peers.py` keeps it.
- **Seconds to write**: the whole cold process of each, compiled kernels cached: `splatcodec convert` here, and
  `splat-transform -g cpu` measured again with `--time-theirs`, else as recorded when their file was made.
- **Seconds to read**: ours in process, median; theirs as the tool tells ("done in", without the start of node), with
  `-N`, so that every value is unpacked.
- **Read by them**: their tool turns our file into a PLY; the largest difference to what our reader makes of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # peers lies beside this file

import peers

import splatcodec
from splatcodec import formats
from splatcodec.errors import BackendUnavailableError, SplatCodecError, SplatCodecWarning
from splatcodec.formats import WriteOptions
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.compare import compare_renderings
from splatcodec.render.camera import evaluation_cameras
from splatcodec.render.cpu import render

ROOT = Path(__file__).resolve().parent.parent
QUALITIES = (40.0, 55.0, 70.0, 85.0, 100.0)
THEIRS_TIMEOUT_S = 3600.0


class Judge:
    """Covered PSNR over the evaluation views, the original's pictures kept."""

    def __init__(self, scene: Gaussians, num_views: int) -> None:
        self.cameras = evaluation_cameras(scene, num_views=num_views)
        self.pictures = [render(scene, camera) for camera in self.cameras]
        self.metadata = scene.metadata

    def __call__(self, copy: Gaussians) -> dict[str, float]:
        copy = copy.cleaned()[0].replaced(metadata=self.metadata)
        found = [
            compare_renderings(picture, render(copy, camera)) for picture, camera in zip(self.pictures, self.cameras)
        ]
        psnrs = [view["psnr_db"] for view in found]
        return {
            "psnr_db": round(float(np.mean(psnrs)), 3),
            "worst_psnr_db": round(min(psnrs), 3),
            "ssim": round(float(np.mean([view["ssim"] for view in found])), 5),
        }


def _theirs(arguments: list[str | Path], timeout_s: float) -> tuple[float, str]:
    """Run splat-transform; seconds of the whole process, and what it said."""
    command = [str(part) for part in (peers._node(), peers._splat_transform_cli(), "-w", "--no-tty", *arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
    return time.perf_counter() - started, done.stdout + done.stderr


def _told_s(output: str) -> float | None:
    found = re.search(r"done in ([0-9.]+)s", output)
    return float(found[1]) if found else None


def _write(scene: Gaussians, path: Path, quality: float | None) -> float:
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        formats.write(scene, path, overwrite=True, options=WriteOptions(quality=quality))
    return time.perf_counter() - started


def _cold_s(ply: Path, target: Path) -> float:
    """Seconds of the whole `splatcodec convert`."""
    command = [sys.executable, "-m", "splatcodec", "convert", str(ply), str(target), "--overwrite", "--quiet"]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=THEIRS_TIMEOUT_S)
    return time.perf_counter() - started


def _read_s(path: Path, repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        formats.read(path)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _at(points: list[dict[str, Any]], psnr_db: float) -> float | None:
    """Bytes at a PSNR, log bytes interpolated over dB; None outside of what was measured."""
    points = sorted(points, key=lambda point: point["psnr_db"])
    x, y = [point["psnr_db"] for point in points], np.log([point["size_bytes"] for point in points])
    return float(np.exp(np.interp(psnr_db, x, y))) if x[0] <= psnr_db <= x[-1] else None


def measure(ply: Path, *, num_views: int, time_theirs: bool, log: Any) -> dict[str, Any]:
    """Everything about one scene."""
    scene = splatcodec.read(ply).cleaned()[0]
    judge = Judge(scene, num_views)
    row: dict[str, Any] = {
        "scene": ply.stem,
        "num_gaussians": len(scene),
        "sh_degree": scene.sh_degree,
        "date": datetime.date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 1),
    }
    can_run = peers.why_not("sog") is None
    with tempfile.TemporaryDirectory() as scratch:
        ours: list[dict[str, Any]] = []
        for quality in (None, *QUALITIES):
            path = Path(scratch) / "ours.sog"
            seconds = _write(scene, path, quality)
            copy = formats.read(path)
            point = {
                "quality": quality,
                "size_bytes": path.stat().st_size,
                "num_coded": len(copy),
                "write_s": round(seconds, 2),
                **judge(copy),
            }
            ours.append(point)
            log(f"{ply.stem}: ours {quality}: {point['size_bytes']:,} bytes, {point['psnr_db']:.2f} dB")
            if quality is None:
                row["our_read_s"] = round(_read_s(path), 4)
                if can_run:
                    _, output = _theirs([path, "-N", "null"], 120)
                    row["their_read_of_ours_s"] = _told_s(output)
                    _theirs(["-q", path, Path(scratch) / "back.ply"], 300)
                    back = formats.read(Path(scratch) / "back.ply")
                    names = ("means", "quats", "scales", "opacities", "sh0", "shN")
                    row["difference_read_by_them"] = max(
                        float(np.abs(getattr(back, name) - getattr(copy, name)).max(initial=0.0)) for name in names
                    )
        row["ours"] = ours
        row["our_cold_s"] = round(_cold_s(ply, Path(scratch) / "cold.sog"), 2)
        theirs = peers.cached("sog", ply)
        if theirs is not None:
            copy = formats.read(theirs)
            record = json.loads(theirs.with_suffix(".json").read_text())
            row["theirs"] = {"size_bytes": theirs.stat().st_size, "recorded_s": record["wall_s"], **judge(copy)}
            row["our_read_of_theirs_s"] = round(_read_s(theirs), 4)
            if can_run:
                row["their_read_s"] = _told_s(_theirs([theirs, "-N", "null"], 120)[1])
            at = _at(ours, row["theirs"]["psnr_db"])
            row["ratio_at_their_psnr"] = None if at is None else round(at / row["theirs"]["size_bytes"], 4)
        if time_theirs and can_run:
            try:
                seconds, _ = _theirs(["-g", "cpu", ply, Path(scratch) / "theirs.sog"], THEIRS_TIMEOUT_S)
                row["their_cold_s"] = round(seconds, 2)
            except subprocess.TimeoutExpired:
                row["their_cold_s_more_than"] = THEIRS_TIMEOUT_S
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines."""
    lines = [
        "| scene | Gaussians, SH | theirs: bytes | dB | ours: bytes | dB | ours over theirs at their dB "
        "| write s, theirs | ours | read ms, theirs | ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def shown(value: Any, spec: str) -> str:
        return "-" if value is None else format(value, spec)

    for row in rows:
        theirs = row.get("theirs", {})
        usual = row["ours"][0]
        their_s = row.get("their_cold_s") or theirs.get("recorded_s")
        their_read = row.get("their_read_s")
        cells = [
            row["scene"],
            f"{row['num_gaussians']:,}, {row['sh_degree']}",
            shown(theirs.get("size_bytes"), ","),
            shown(theirs.get("psnr_db"), ".2f"),
            format(usual["size_bytes"], ","),
            format(usual["psnr_db"], ".2f"),
            shown(row.get("ratio_at_their_psnr"), ".3f"),
            shown(their_s, ".1f") if "their_cold_s_more_than" not in row else f"> {row['their_cold_s_more_than']:.0f}",
            format(row["our_cold_s"], ".1f"),
            shown(None if their_read is None else 1000 * their_read, ".0f"),
            format(1000 * row.get("our_read_of_theirs_s", row["our_read_s"]), ".0f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def palette(ply: Path) -> Iterator[str]:
    """Our clusters beside scikit-learn's at the same number of entries: seconds and weighted squared error."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    from splatcodec.formats import _sog_encode as encode
    from splatcodec.formats._kmeans import fit_palette
    from splatcodec.render.kernel import default_num_threads

    scene = splatcodec.read(ply).cleaned()[0]
    threads = default_num_threads()
    plan, _ = encode.make_plan(scene, None, threads, lambda stage, share: None)
    rows = scene.shN.reshape(len(scene), -1)
    yield "| price | entries | clusters by | seconds | error |"
    yield "|---|---|---|---|---|"
    weights = plan.sensitivities.color + 1e-6 * plan.sensitivities.color.mean()

    def some(places: Any) -> tuple[np.ndarray, np.ndarray]:
        return rows[places], weights[places]

    for factor in (1.0, 64.0, 512.0):
        price = factor * plan.price
        fit_palette(some, 500, price, threads=threads)  # compiled before the clock starts
        started = time.perf_counter()
        ours = fit_palette(some, len(rows), price, threads=threads)
        seconds = time.perf_counter() - started

        def error(labels: np.ndarray, count: int) -> float:
            masses = np.bincount(labels, weights, count)
            sums = np.stack([np.bincount(labels, weights * column, count) for column in rows.T], 1)
            means = sums / np.maximum(masses, 1e-300)[:, None]
            return float((weights[:, None] * (rows - means[labels]) ** 2).sum())

        count = len(ours.codes)
        begin = f"| {price:.2g} | {count} | "
        yield (f"{begin}tree and neighbours | {seconds:.2f} | {error(ours.labels, count):.4g} |")
        kinds = []
        if count * len(rows) < 10**8:
            kinds.append(("KMeans, 10 rounds", KMeans(count, n_init=1, max_iter=10, init="random", random_state=0)))
        if count <= 4096:  # minutes, else
            kinds.append(("MiniBatchKMeans", MiniBatchKMeans(count, n_init=1, max_iter=10, random_state=0)))
        for name, method in kinds:
            started = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                labels = method.fit_predict(rows, sample_weight=weights)
            seconds = time.perf_counter() - started
            yield (f"{begin}{name} | {seconds:.2f} | {error(labels, count):.4g} |")


def main() -> int:
    """Command line; returns 0, or 1 when a scene is missing or fails."""
    parser = argparse.ArgumentParser(description="SOG files written here beside those of splat-transform.")
    parser.add_argument("scenes", nargs="*", help="PLY files, or names in .cache/scenes")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "sog_bench", help="folder of sog.json")
    parser.add_argument("--views", type=int, default=24, help="evaluation views (default: 24)")
    parser.add_argument("--time-theirs", action="store_true", help="run splat-transform again for its seconds")
    parser.add_argument("--palette", metavar="SCENE", help="compare ways to cluster harmonics instead")
    args = parser.parse_args()

    def found(name: str) -> Path:
        path = Path(name) if name.endswith(".ply") else peers.SCENES / f"{name}.ply"
        if not path.is_file():
            raise BackendUnavailableError(f"{path.name} is not there", hint="python tools/peers.py --scenes")
        return path

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if args.palette:
            for line in palette(found(args.palette)):
                print(line, flush=True)
            return 0
        args.out.mkdir(parents=True, exist_ok=True)
        record = args.out / "sog.json"
        rows = {row["scene"]: row for row in json.loads(record.read_text())} if record.is_file() else {}
        for name in args.scenes:
            row = measure(found(name), num_views=args.views, time_theirs=args.time_theirs, log=log)
            rows[row["scene"]] = row
            record.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
        print("\n".join(table(list(rows.values()))))
    except SplatCodecError as error:
        log(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
