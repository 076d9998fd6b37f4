"""How fast other people's formats are read and written: ours in process, beside splat-transform as a whole process.

    python tools/format_speed.py SCENE.ply --out results.json [--repeats 5]

Figures are medians after a warm-up. Rates are bytes of float arrays a second. Peers, where tools/peers.py --install has
put them: gsply reads in a warm process, so does the C++ library of SPZ, as the WebAssembly of its npm package;
splat-transform, which reads lazily, converts to PLY as a process, less its start; beside it ours for the same, warm.
Its own time for unpacking every value ("done in", with -N) is given, too. Where other work is going on processor
seconds say more: they are in the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import splatcodec
from splatcodec import formats

FORMATS = ("scene.ply", "scene.compressed.ply", "scene.splat", "scene.spz", "scene.glb", "scene.ksplat", "scene.sog")
PEERS = ("gsply_read_s", "spz_library_read_s", "peer_unpack_s", "to_ply_s", "peer_to_ply_s")
LIBRARY_SCRIPT = """
import { readFileSync } from "node:fs";
const [, , module, path, repeats] = process.argv;
const spz = await (await import(module)).default();
const bytes = readFileSync(path), wall = [], cpu = [];
for (let k = 0; k < repeats; k++) {
  const clock = performance.now(), used = process.cpuUsage();
  const cloud = spz.loadSpzFromBuffer(bytes, { to: spz.CoordinateSystem.UNSPECIFIED });
  if (!cloud.numPoints || !cloud.positions.length) throw new Error("nothing read");
  const more = process.cpuUsage(used);
  wall.push(performance.now() - clock);
  cpu.push((more.user + more.system) / 1000);
}
const median = (list) => list.slice(1).sort((a, b) => a - b)[(list.length - 1) >> 1] / 1000;
console.log(median(wall), median(cpu));
"""
PEER_FOLDER = Path(".cache/peers")
PEER = PEER_FOLDER / "node/node_modules/@playcanvas/splat-transform/bin/cli.mjs"


def median_s(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = [], []
    function()
    for _ in range(repeats):
        clock, processor = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - clock)
        cpu.append(time.process_time() - processor)
    return statistics.median(wall), statistics.median(cpu)


def gsply_s(path: str, repeats: int) -> tuple[float, float] | None:
    """Wall and processor seconds of gsply for reading a PLY or an SPZ; None where it is absent or does not read it."""
    code = (
        "import gsply, statistics, sys, time\n"
        "path, times, used = sys.argv[1], [], []\n"
        "read = gsply.read_spz if path.endswith('.spz') else gsply.plyread\n"
        f"for _ in range({repeats + 1}):\n"
        "    clock, cpu = time.perf_counter(), time.process_time(); read(path)\n"
        "    times.append(time.perf_counter() - clock); used.append(time.process_time() - cpu)\n"
        "print(statistics.median(times[1:]), statistics.median(used[1:]))\n"
    )
    try:
        done = subprocess.run([PEER_FOLDER / "gsply/bin/python", "-c", code, path], capture_output=True, text=True)
        wall, cpu = map(float, done.stdout.split())
        return wall, cpu
    except (OSError, ValueError):
        return None


def library_s(path: str, repeats: int) -> tuple[float, float] | None:
    """Wall and processor seconds of the SPZ library for reading a file in memory; None where it is absent."""
    package = PEER_FOLDER / "node/node_modules/@adobe/spz/dist/spz.js"
    if not package.exists():
        return None
    done = subprocess.run(
        ["node", "--input-type=module", "-", str(package.resolve()), path, str(repeats + 1)],
        input=LIBRARY_SCRIPT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
        return None
    wall, cpu = map(float, done.stdout.splitlines()[-1].split())  # the library says what it reads
    return wall, cpu


def unpacked_s(path: str, repeats: int) -> float | None:
    """Seconds that splat-transform says it takes to read and unpack a file."""
    if not PEER.exists():
        return None
    told = []
    for _ in range(repeats):
        done = subprocess.run(["node", str(PEER), path, "-N", "null", "--no-tty"], capture_output=True, text=True)
        found = re.search(r"done in ([0-9.]+)s", done.stdout + done.stderr)
        if found is None:
            return None
        told.append(float(found[1]))
    return statistics.median(told)


def peer_s(arguments: list[str], repeats: int) -> float | None:
    """Seconds of a splat-transform process; None where it is absent or fails."""
    if not PEER.exists():
        return None
    times = []
    for _ in range(repeats):
        clock = time.perf_counter()
        if subprocess.run(["node", str(PEER), *arguments], capture_output=True).returncode:
            return None
        times.append(time.perf_counter() - clock)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", nargs="*", default=FORMATS)
    args = parser.parse_args()
    scene = splatcodec.read(args.scene)
    megabytes = scene.array_bytes / 1e6
    started = peer_s(["--version"], args.repeats)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "converted.ply")
        for name in args.formats:
            path = os.path.join(folder, name)
            write = median_s(lambda path=path: formats.write(scene, path, overwrite=True), args.repeats)
            read = median_s(lambda path=path: splatcodec.read(path), args.repeats)
            ours = median_s(
                lambda path=path: formats.write(splatcodec.read(path), target, overwrite=True), args.repeats
            )
            theirs = peer_s([path, target, "-w"], args.repeats)
            gsply = gsply_s(path, args.repeats)
            library = library_s(path, args.repeats) if name.endswith(".spz") else None
            row = {
                "format": name.partition(".")[2],
                "bytes": os.path.getsize(path),
                "write_s": write[0],
                "write_cpu_s": write[1],
                "write_mb_s": megabytes / write[0],
                "read_s": read[0],
                "read_cpu_s": read[1],
                "read_mb_s": megabytes / read[0],
                "gsply_read_s": gsply[0] if gsply else None,
                "gsply_read_cpu_s": gsply[1] if gsply else None,
                "spz_library_read_s": library[0] if library else None,
                "spz_library_read_cpu_s": library[1] if library else None,
                "peer_unpack_s": unpacked_s(path, args.repeats),
                "to_ply_s": ours[0],
                "peer_to_ply_s": None if theirs is None or started is None else max(theirs - started, 0.0),
            }
            rows.append(row)
            peers = ["-" if row[key] is None else f"{row[key]:.3f}" for key in PEERS]
            print(
                f"| {row['format']} | {row['bytes'] / 1e6:.1f} | {write[0]:.2f} | {row['write_mb_s']:,.0f} "
                f"| {read[0]:.3f} | {row['read_mb_s']:,.0f} | {' | '.join(peers)} |",
                flush=True,
            )
    facts = {"scene": args.scene.stem, "gaussians": len(scene), "megabytes": megabytes, "peer_start_s": started}
    args.out.write_text(json.dumps({**facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
