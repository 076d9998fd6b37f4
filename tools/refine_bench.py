"""What refinement and compaction save: files at the same covered PSNR, on views that the encoder never saw.

    python tools/refine_bench.py SCENE... --out results.json [--psnr 43] [--steps 400] [--write-docs]

The plain encoder at effort 7, which fits colours in closed form, is coded at three qualities around the one wanted: its
curve says how many bytes it needs for what refinement reached.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

import splatcodec
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.psnr import covered_psnr_db
from splatcodec.render.camera import evaluation_cameras
from splatcodec.render.cpu import render
from splatcodec.training.refine import RefineOptions, compress_refined

DOCS = Path(__file__).resolve().parent.parent / "docs" / "refinement.md"
MARK = "<!-- table -->"


def quality(original: Gaussians, pictures: list, payload: bytes) -> tuple[float, float]:
    """Mean and worst covered PSNR over the evaluation views."""
    with splatcodec.open(payload) as file:
        decoded = file.read().replaced(metadata=original.metadata)
    cameras = evaluation_cameras(original)
    values = [covered_psnr_db(picture, render(decoded, camera)) for picture, camera in zip(pictures, cameras)]
    return float(np.mean(values)), float(min(values))


def measure(path: Path, psnr_db: float, steps: int) -> dict:
    original = splatcodec.read(path).cleaned()[0]
    pictures = [render(original, camera) for camera in evaluation_cameras(original)]
    rows = []

    def add(name: str, payload: bytes, seconds: float, report: splatcodec.CompressReport) -> None:
        mean, worst = quality(original, pictures, payload)
        rows.append(
            {"name": name, "bytes": len(payload), "mean_db": mean, "worst_db": worst, "seconds": seconds}
            | {"coded": report.num_coded}
        )
        print(path.stem, rows[-1], flush=True)

    for target in (psnr_db - 2, psnr_db, psnr_db + 2):
        clock, report = time.perf_counter(), splatcodec.CompressReport()
        payload = splatcodec.compress(original, target_psnr=target, effort=7, report=report)
        add("plain", payload, time.perf_counter() - clock, report)
    for name, compact in (("refine", 0), ("compact", True)):
        clock, report = time.perf_counter(), splatcodec.CompressReport()
        options = RefineOptions(steps, compact)
        payload = compress_refined(original, options, target_psnr=psnr_db, effort=7, report=report)
        add(name, payload, time.perf_counter() - clock, report)
    curve = sorted(rows[:3], key=lambda row: row["mean_db"])
    x, sizes = [row["mean_db"] for row in curve], np.log([row["bytes"] for row in curve])
    for row in rows[3:]:
        row["ratio"] = row["bytes"] / float(np.exp(np.interp(row["mean_db"], x, sizes)))
        row["worst_change_db"] = row["worst_db"] - float(np.interp(row["mean_db"], x, [r["worst_db"] for r in curve]))
    return {"scene": path.stem, "gaussians": len(original), "psnr_db": psnr_db, "steps": steps, "rows": rows}


def table(results: list[dict]) -> str:
    lines = [
        "| scene | | bytes | mean dB | worst dB | Gaussians | bytes over plain's at that mean | worst view | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result["rows"]:
            ratio = f"{row['ratio']:.3f}" if "ratio" in row else ""
            change = f"{row['worst_change_db']:+.1f} dB" if "ratio" in row else ""
            lines.append(
                f"| {result['scene']} | {row['name']} | {row['bytes']:,} | {row['mean_db']:.2f} "
                f"| {row['worst_db']:.2f} | {row['coded']:,} | {ratio} | {change} | {row['seconds']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON; scenes measured before are kept")
    parser.add_argument("--psnr", type=float, default=43.0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/refinement.md")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    for path in args.scenes:
        results = [r for r in results if r["scene"] != path.stem] + [measure(path, args.psnr, args.steps)]
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1))
        os.replace(temporary, args.out)
    print(table(results))
    if args.write_docs:
        before, _, after = DOCS.read_text().partition(MARK)
        rest = after.partition("\n\n")[2].partition("\n\n")[2]
        DOCS.write_text(f"{before}{MARK}\n\n{table(results)}\n\n{rest}")


if __name__ == "__main__":
    main()
