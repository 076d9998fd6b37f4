#!/usr/bin/env python3
"""What levels of detail give and cost: the picture after every chunk group of the file, and bytes beside one level.

    python tools/levels_bench.py donut banana --out .cache/levels          # results.json, files, a table
    python tools/levels_bench.py bouquet-million --views 4 --size-px 384   # large scenes: fewer views, a second each
    python tools/levels_bench.py --write-docs .cache/levels                # docs/levels.md
    python tools/levels_bench.py bouquet-dithered --tile                   # how fast one tile decodes, on the terminal

A scene is a 3DGS PLY: a path, or the name of one in `.cache/scenes` (tools/peers.py --scenes). Each is compressed at
default settings; the same plan (slope, classes) is written in one level without a thumbnail too, so that the difference
in bytes is what levels, their chunks and checksums cost. Pictures: PSNR over covered pixels of the evaluation views.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import splatcodec
from splatcodec.bitstream.container import Container
from splatcodec.gaussians import Gaussians
from splatcodec.limits import DEFAULT_LIMITS
from splatcodec.metrics.psnr import covered_psnr_db
from splatcodec.render.camera import Camera, evaluation_cameras
from splatcodec.render.cpu import render
from splatcodec.render.rendering import Rendering
from splatcodec.stages.tile import MAX_TILE
from splatcodec.static import encoder
from splatcodec.static.decoder import (
    BlankScene,
    Selection,
    decode_lossy,
    read_parameters,
    read_units,
    worker_count,
)

ROOT = Path(__file__).resolve().parent.parent


def scene_path(name: str) -> Path:
    """A path as given, or a scene of the cache."""
    path = Path(name)
    return path if path.suffix else ROOT / ".cache" / "scenes" / f"{name}.ply"


def encode_both(scene: Gaussians) -> tuple[bytes, int, dict[str, float]]:
    """The file at default settings, the bytes of the same plan in one level, and seconds."""
    tried: list[tuple[Any, ...]] = []
    real_tiles = encoder.encode_tiles

    def note(gaussians: Gaussians, plan: Any, levels: Any, pool: Any) -> Any:
        encoded = real_tiles(gaussians, plan, levels, pool)
        tried.append((encoded, gaussians, plan, levels))
        return encoded

    start = time.perf_counter()
    with mock.patch.object(encoder, "encode_tiles", note):
        file = splatcodec.compress(scene)
    seconds = {"compress": time.perf_counter() - start}
    # The trial that was written is the one with the file's chunks.
    with splatcodec.open(file) as opened:
        sizes = [e.length for e in opened.container.of_type("TILE")]
    best = next(t for t in tried if [len(c.payload) for c in t[0].chunks if c.type == "TILE"] == sizes)
    with ThreadPoolExecutor() as pool:
        flat = real_tiles(best[1], best[2], replace(best[3], levels=False), pool)
    return file, len(file) - best[0].size_bytes + flat.size_bytes, seconds


def measure(name: str, num_views: int, size_px: int, out: Path) -> dict[str, Any]:
    """Everything about one scene, whose file goes to `out`."""
    scene = splatcodec.read(scene_path(name))
    file, flat, seconds = encode_both(scene)
    (out / f"{Path(name).stem}.splc").write_bytes(file)
    cameras = evaluation_cameras(scene, num_views=num_views, size_px=size_px)
    originals = [render(scene.cleaned()[0], camera) for camera in cameras]
    rows = []
    with Container(io.BytesIO(file)) as container:
        ends: dict[tuple[int, int], int] = {}
        for entry in container.chunks:
            layer = 0 if entry.type == "TILE" else int(entry.type[3]) if entry.type.startswith("SHC") else None
            if layer is not None:
                ends[entry.level, layer] = entry.offset + entry.length
        top = max(level for level, _ in ends)
        for (level, layer), end in sorted(ends.items()):
            # A prefix has all layers of the levels below, and this many of its last.
            part = prefix(container, level, layer)
            rows.append(
                {"level": level, "sh_layers": layer, "share": end / len(file), **look(scene, part, cameras, originals)}
            )
            rows[-1]["num_gaussians"] = len(part)
    return {
        "scene": name,
        "num_gaussians": len(scene),
        "sh_degree": scene.sh_degree,
        "size_bytes": len(file),
        "flat_bytes": flat,
        "cost": len(file) / flat - 1,
        "levels": top,
        "prefixes": rows,
        "seconds": seconds,
    }


def prefix(container: Container, level: int, layer: int) -> Gaussians:
    """What is shown when level `level` is there with `layer` of its layers of SH components, and all before it."""
    last, rows = decode_lossy(container, Selection(level=level, sh_layers=layer))
    full, _ = decode_lossy(container, Selection(level=level))
    count = sum(e.count for e in container.of_type("TILE") if 0 < e.level < level)
    before = (rows < count) & ((rows >= 0) | (level > 0))  # the thumbnail is among what came before
    shN = last.shN.copy()
    shN[before] = full.shN[before]
    return last.replaced(shN=shN)


def look(scene: Gaussians, part: Gaussians, cameras: list[Camera], originals: list[Rendering]) -> dict[str, float]:
    """PSNR over covered pixels and how much of the scene's coverage is there."""
    part = part.replaced(metadata=scene.metadata)
    shown = [render(part, camera) for camera in cameras]
    psnrs = [covered_psnr_db(a, b) for a, b in zip(originals, shown)]
    ratios = [float(b.alpha.sum() / a.alpha.sum()) for a, b in zip(originals, shown) if a.alpha.any()]
    return {
        "psnr_db": float(np.mean(psnrs)),
        "worst_psnr_db": float(np.min(psnrs)),
        "alpha_low": float(np.min(ratios)),
        "alpha_high": float(np.max(ratios)),
    }


def time_tile(name: str, repeats: int = 41) -> str:
    """Milliseconds of decoding one tile that is as large as tiles get: processor and clock, one thread and all."""
    scene = splatcodec.read(scene_path(name))
    rows = np.sort(np.random.default_rng(0).permutation(len(scene))[:MAX_TILE])
    file = splatcodec.compress(scene.selected(rows), effort=1, levels=False)
    lines = []
    with Container(io.BytesIO(file)) as container:
        parameters, (unit,) = read_parameters(container), read_units(container, DEFAULT_LIMITS)
        contents = [container.read(entry) if entry else None for entry in [unit.tile, *unit.layers]]
        assert contents[0] is not None
        for threads in (1, worker_count(None)):
            spent = []
            with ThreadPoolExecutor(threads) as pool:
                for _ in range(repeats + 1):
                    before = time.process_time(), time.perf_counter()
                    blank = BlankScene([unit.tile.count], parameters.sh_degree)
                    blank.decode(0, parameters, contents[0], contents[1:], pool=pool if threads > 1 else None)
                    spent.append((time.process_time() - before[0], time.perf_counter() - before[1]))
            (cpu, clock), fastest = 1e3 * np.median(spent[1:], 0), 1e3 * np.min(spent, 0)[1]
            lines.append(
                f"{name}: a tile of {unit.tile.count:,} Gaussians, SH {scene.sh_degree}, threads {threads}:"
                f" {cpu:.1f} processor ms, {clock:.1f} ms by the clock, {fastest:.1f} at best"
            )
    return "\n".join(lines)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| scene | Gaussians | file, kB | cost of levels | prefix | share of file | Gaussians shown | PSNR, dB |"
        " worst view | coverage |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        for k, p in enumerate(r["prefixes"]):
            name = "thumbnail" if p["level"] == 0 else f"level {p['level']}"
            name += f", SH layers {p['sh_layers']}" if r["sh_degree"] else ""
            head = [r["scene"], f"{r['num_gaussians']:,}", f"{r['size_bytes'] / 1000:.0f}", f"{100 * r['cost']:.1f} %"]
            cells = head if k == 0 else ["", "", "", ""]
            cells += [name, f"{100 * p['share']:.1f} %", f"{p['num_gaussians']:,}", f"{p['psnr_db']:.1f}"]
            cells += [f"{p['worst_psnr_db']:.1f}", f"{p['alpha_low']:.2f} to {p['alpha_high']:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at_share(result: dict[str, Any], share: float) -> dict[str, Any] | None:
    """The best prefix within a share of the file."""
    fitting = [p for p in result["prefixes"] if p["share"] <= share]
    return max(fitting, key=lambda p: p["psnr_db"], default=None)


def summary(results: list[dict[str, Any]]) -> str:
    """What 5 % and a quarter of each file show."""
    lines = ["| scene | within 5 % | within 25 % |", "|---|---|---|"]
    for r in results:
        cells = [r["scene"]]
        for share in (0.05, 0.25):
            p = at_share(r, share)
            cells.append(f"{p['psnr_db']:.1f} dB at {100 * p['share']:.1f} %" if p else "nothing yet")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_docs(results: list[dict[str, Any]], commit: str) -> None:
    """docs/levels.md."""
    views, size_px = results[0]["views"], results[0]["size_px"]
    others = "".join(
        f" ({r['scene']}: {r['views']} at {r['size_px']} px)"
        for r in results
        if (r["views"], r["size_px"]) != (views, size_px)
    )
    text = f"""# Levels of detail: what a part of a file shows, and what levels cost

Made by `tools/levels_bench.py` at commit {commit}. A file is read in order: after each group of chunks the scene is
drawn from what is there, over {views} evaluation views at {size_px} px{others}. "SH layers 2" = the first two of three
layers of the level's SH components have arrived. Coverage: the sum of alpha over a view, beside the whole scene's. The
cost of levels is beside the same scene and precision written in one level, without a thumbnail.

{summary(results)}

{table(results)}
"""
    (ROOT / "docs" / "levels.md").write_text(text)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "levels")
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--tile", action="store_true", help="only time one tile of each scene")
    parser.add_argument("--write-docs", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if arguments.tile:
        for name in arguments.scenes:
            print(time_tile(name), flush=True)
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    out = arguments.write_docs or arguments.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    results: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    if arguments.write_docs:
        write_docs(results, results[0]["commit"] if results else commit)
        return
    for name in arguments.scenes:
        result = measure(name, arguments.views, arguments.size_px, out)
        result |= {"views": arguments.views, "size_px": arguments.size_px}
        result |= {"commit": commit, "date": datetime.date.today().isoformat()}
        results = [r for r in results if r["scene"] != name] + [result]
        path.write_text(json.dumps(results, indent=1))
        print(table([result]), flush=True)
    print(summary(results))


if __name__ == "__main__":
    sys.exit(main())
