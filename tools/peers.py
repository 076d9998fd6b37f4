#!/usr/bin/env python3
"""Peers' files for the benchmarks: install other people's encoders, run each once per input, keep what they wrote.

    python tools/peers.py --install                      # npm and PyPI packages, into .cache/peers/
    python tools/peers.py --scenes                       # the benchmark scenes as PLY, into .cache/scenes/
    python tools/peers.py --encode spz-v4,sog A.ply B.ply
    python tools/peers.py --available
    python tools/peers.py --table                        # what is in the cache

| peer | encoder | file |
|---|---|---|
| `spz-v3`, `spz-v4` | @playcanvas/splat-transform (npm), default settings | gzip SPZ, zstd SPZ |
| `sog` | the same, `-g cpu` (no GPU): minutes to hours with higher harmonics above 100,000 Gaussians | bundled SOG v2 |
| `compressed-ply` | the same | PlayCanvas compressed PLY |
| `gsply-spz-v3`, `gsply-compressed-ply` | gsply (PyPI): no format of its own; its SPZ keeps 8 bits of SH | |
| `gsplat-png` | gsplat's `PngCompression`: named, never run (see `GSPLAT_WHY_NOT`) | |

Nothing third-party is part of this repository: all of it lives in the git-ignored `.cache/`. An encoder that is not
installed is said and skipped. A file is encoded once per (input bytes, peer, encoder version):
`.cache/peers/<first 16 hex digits of the input's sha256>/<peer>-<version>.<ext>`, with a `.json` of the same stem
beside it: sizes, hashes, options and `wall_s`, the seconds of the whole cold process (start, reading the PLY, encoding
and writing). The machine's load at that moment is recorded too: `wall_s` is a hint, not a benchmark of speed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement

from splatcodec.errors import (
    BackendUnavailableError,
    FormatError,
    ParameterError,
    SplatCodecError,
    UnknownIdError,
)

__all__ = ["PEERS", "Peer", "available", "cached", "encode", "install", "prepare_scenes", "why_not"]

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "peers"
SCENES = ROOT / ".cache" / "scenes"
DATA = ROOT.parent / "shared" / "data"

SPLAT_TRANSFORM_VERSION = "3.7.0"
NODE_VERSION = "22.23.3"  # splat-transform needs Node 22; npm carries the binary as a package per platform
GSPLY_VERSION = "0.4.6"
SPZ_VERSION = "0.2.2"  # Niantic's and Adobe's C++ library as WebAssembly: for tools/format_speed.py

NODE_DIR = CACHE / "node"
GSPLY_DIR = CACHE / "gsply"

INSTALL_TIMEOUT_S = 900.0
GSPLAT_WHY_NOT = (
    "not run: its sort needs PLAS, which is not on PyPI, and its harmonics codebook needs torchpq's CUDA k-means"
)

GSPLY_SCRIPT = """
import sys
import gsply
kind, source, target = sys.argv[1:]
scene = gsply.plyread(source)
if kind == "compressed-ply":
    gsply.plywrite(target, scene, compressed=True)
else:
    gsply.write_spz(target, scene, version=3)
"""


@dataclass(frozen=True)
class Peer:
    """One encoder with one setting.

    Args:
        name: as given to `encode`.
        tool: the package that does the work.
        version: of that package, exactly.
        extension: of the file, with the dot.
        options: what is passed to the tool beside input and output.
        timeout_s: an encoder that takes longer is killed.
    """

    name: str
    tool: str
    version: str
    extension: str
    options: tuple[str, ...] = ()
    timeout_s: float = 1800.0


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("spz-v3", "splat-transform", SPLAT_TRANSFORM_VERSION, ".spz", ("--spz-version", "3")),
        Peer("spz-v4", "splat-transform", SPLAT_TRANSFORM_VERSION, ".spz", ("--spz-version", "4")),
        Peer("sog", "splat-transform", SPLAT_TRANSFORM_VERSION, ".sog", timeout_s=8 * 3600.0),
        Peer("compressed-ply", "splat-transform", SPLAT_TRANSFORM_VERSION, ".compressed.ply"),
        Peer("gsply-spz-v3", "gsply", GSPLY_VERSION, ".spz", ("spz-v3",)),
        Peer("gsply-compressed-ply", "gsply", GSPLY_VERSION, ".compressed.ply", ("compressed-ply",)),
        Peer("gsplat-png", "gsplat", "none", ".zip"),
    )
}


# --- running things ---------------------------------------------------------------------------------------------------


def _run(command: Sequence[str | Path], *, timeout_s: float, what: str, cwd: Path | None = None) -> None:
    """Run a command to its end, or kill it and everything it started when `timeout_s` has passed.

    Raises:
        BackendUnavailableError: the program does not exist.
        SplatCodecError: it failed or took too long; the message has the end of its output.
    """
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise BackendUnavailableError(f"{what}: cannot start {Path(command[0]).name}: {error.strerror}") from error
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except BaseException as error:  # an interrupt, too, must not leave an encoder behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise SplatCodecError(f"{what}: killed after {timeout_s:.0f} s") from error
        raise
    if process.returncode != 0:
        lines = [line.strip() for line in output.splitlines()]
        tail = " | ".join(line for line in lines if line and not line.startswith("at "))[-600:]  # no stack frames
        raise SplatCodecError(f"{what}: exit status {process.returncode}: {tail or 'no output'}")


def _node_package() -> str:
    """Name of the npm package that holds the Node binary for this platform."""
    system = {"linux": "linux", "darwin": "darwin"}.get(sys.platform)
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine().lower())
    if system is None or machine is None:
        raise BackendUnavailableError(f"no Node package known for {sys.platform} on {platform.machine()}")
    prefix = "node-bin" if (system, machine) == ("darwin", "arm64") else "node"
    return f"{prefix}-{system}-{machine}"


def _node() -> Path:
    return NODE_DIR / "node_modules" / _node_package() / "bin" / "node"


def _splat_transform_cli() -> Path:
    return NODE_DIR / "node_modules" / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"


def _gsply_python() -> Path:
    return GSPLY_DIR / "bin" / "python"


def _tool_why_not(tool: str) -> str | None:
    """Why a tool cannot be used, or None."""
    hint = "not installed: python tools/peers.py --install"
    if tool == "splat-transform":
        manifest = _splat_transform_cli().parent.parent / "package.json"
        try:
            version = json.loads(manifest.read_text())["version"]
            node = _node()
        except (OSError, ValueError, KeyError):
            return hint
        except BackendUnavailableError as error:
            return error.message
        if version != SPLAT_TRANSFORM_VERSION:
            return (
                f"version {version} is installed, {SPLAT_TRANSFORM_VERSION} is wanted: python tools/peers.py --install"
            )
        return None if node.is_file() else hint
    if tool == "gsply":
        found = list(GSPLY_DIR.glob(f"lib/python*/site-packages/gsply-{GSPLY_VERSION}.dist-info"))
        return None if found and _gsply_python().exists() else hint
    return GSPLAT_WHY_NOT


def _peer(name: str) -> Peer:
    if name not in PEERS:
        raise UnknownIdError.of("peer", name, PEERS)
    return PEERS[name]


def why_not(peer: str) -> str | None:
    """Say why a peer cannot encode here; None when it can."""
    return _tool_why_not(_peer(peer).tool)


def available() -> dict[str, str | None]:
    """Map every peer to the version of its encoder, or to None where it is not installed (`why_not` says more)."""
    return {name: (peer.version if _tool_why_not(peer.tool) is None else None) for name, peer in PEERS.items()}


def install(log: Callable[[str], None] = print) -> dict[str, str | None]:
    """Install the encoders under `.cache/peers/` with npm and pip; one that fails is said and skipped.

    Returns:
        `available()` afterwards.
    """
    for tool, step in (("splat-transform", _install_splat_transform), ("gsply", _install_gsply)):
        if _tool_why_not(tool) is None:
            log(f"{tool}: already installed")
            continue
        try:
            step()
            problem = _tool_why_not(tool)
        except SplatCodecError as error:
            problem = str(error)
        log(f"{tool}: {'installed' if problem is None else problem}")
    log(f"gsplat-png: {GSPLAT_WHY_NOT}")
    return available()


def _install_splat_transform() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise BackendUnavailableError(
            "npm was not found", hint="install any Node.js that brings npm, and run this again"
        )
    NODE_DIR.mkdir(parents=True, exist_ok=True)
    (NODE_DIR / "package.json").write_text('{"private": true}\n')
    packages = [
        f"@playcanvas/splat-transform@{SPLAT_TRANSFORM_VERSION}",
        f"@adobe/spz@{SPZ_VERSION}",
        f"{_node_package()}@{NODE_VERSION}",
    ]
    # No install scripts: the platform's Node package needs none, and webgpu's only matters on macOS with a GPU.
    flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"]
    _run([npm, "install", *flags, *packages], timeout_s=INSTALL_TIMEOUT_S, what="npm install", cwd=NODE_DIR)


def _install_gsply() -> None:
    # --clear: what an interrupted run left half made is thrown away.
    _run(
        [sys.executable, "-m", "venv", "--clear", GSPLY_DIR],
        timeout_s=INSTALL_TIMEOUT_S,
        what="python -m venv",
    )
    _run(
        [_gsply_python(), "-m", "pip", "install", "--quiet", f"gsply=={GSPLY_VERSION}"],
        timeout_s=INSTALL_TIMEOUT_S,
        what="pip install gsply",
    )


# --- encoding ---------------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold an advisory lock, so that two processes asking for the same file do not both encode it."""
    deadline = time.monotonic() + timeout_s
    with path.open("a") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    message = f"another process has been making it for {timeout_s:.0f} s"
                    raise SplatCodecError(message, file=path.name) from error
                time.sleep(0.5)
        yield


def _splat_transform(arguments: Sequence[str | Path], *, timeout_s: float, what: str) -> None:
    _run([_node(), _splat_transform_cli(), "-q", "-w", *arguments], timeout_s=timeout_s, what=what)


def cached(peer: str, ply: Path) -> Path | None:
    """Path of the file that a peer wrote for this PLY before, whether or not the peer is installed now; or None.

    Raises:
        UnknownIdError: no such peer.
    """
    spec = _peer(peer)
    stem = CACHE / _sha256(Path(ply))[:16] / f"{spec.name}-{spec.version}"
    target = stem.with_name(stem.name + spec.extension)
    return target if target.is_file() and stem.with_name(f"{stem.name}.json").is_file() else None


def encode(peer: str, ply: Path) -> Path:
    """Encode a 3DGS PLY with a peer, or find the file it wrote before.

    Args:
        peer: one of `PEERS`.
        ply: the scene.

    Returns:
        Path of the peer's file in the cache; a `.json` of the same stem is beside it.

    Raises:
        UnknownIdError: no such peer.
        ParameterError: `ply` is not a file.
        BackendUnavailableError: the peer is not installed and the file is not in the cache.
        SplatCodecError: the encoder failed or took too long.
    """
    spec = _peer(peer)
    ply = Path(ply)
    if not ply.is_file():
        raise ParameterError("no such file", file=str(ply))
    digest = _sha256(ply)
    folder = CACHE / digest[:16]
    stem = f"{spec.name}-{spec.version}"
    target = folder / f"{stem}{spec.extension}"
    record = folder / f"{stem}.json"
    if target.is_file() and record.is_file():
        return target
    problem = _tool_why_not(spec.tool)
    if problem is not None:
        raise BackendUnavailableError(f"peer {peer}: {problem}")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{stem}.lock", spec.timeout_s), tempfile.TemporaryDirectory(dir=folder) as scratch:
        if target.is_file() and record.is_file():
            return target
        made = Path(scratch) / f"out{spec.extension}"
        load = os.getloadavg()[0]
        start = time.perf_counter()
        what = f"{peer} of {ply.name}"
        if spec.tool == "gsply":
            command: list[str | Path] = [_gsply_python(), "-c", GSPLY_SCRIPT, *spec.options, ply, made]
            _run(command, timeout_s=spec.timeout_s, what=what)
        else:
            _splat_transform(["-g", "cpu", ply, made, *spec.options], timeout_s=spec.timeout_s, what=what)
        wall_s = time.perf_counter() - start
        if not made.is_file() or made.stat().st_size == 0:
            raise SplatCodecError(f"{what}: the encoder reported success but wrote nothing")
        if _sha256(ply) != digest:
            raise SplatCodecError("the input changed while it was being encoded", file=str(ply))
        size = made.stat().st_size
        num_gaussians = _num_gaussians(ply)
        entry = {
            "peer": spec.name,
            "tool": spec.tool,
            "tool_version": spec.version,
            "node_version": NODE_VERSION if spec.tool == "splat-transform" else None,
            "options": list(spec.options),
            "input_name": ply.name,
            "input_sha256": digest,
            "input_size_bytes": ply.stat().st_size,
            "num_gaussians": num_gaussians,
            "size_bytes": size,
            "bits_per_gaussian": round(8 * size / max(num_gaussians, 1), 3),
            "sha256": _sha256(made),
            "wall_s": round(wall_s, 3),
            "wall_covers": "whole cold process: start, read PLY, encode, write",
            "load_1min_at_start": round(load, 2),
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
            "cpus": os.cpu_count(),
        }
        made.replace(target)
        _write_text(record, json.dumps(entry, indent=1) + "\n")
    return target


def _write_text(path: Path, text: str) -> None:
    """Write a small file at once or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


def _num_gaussians(ply: Path) -> int:
    """Vertex count from a PLY header."""
    with ply.open("rb") as stream:
        for _ in range(1000):
            words = stream.readline(4096).split()
            if words[:2] == [b"element", b"vertex"] and len(words) == 3 and words[2].isdigit():
                return int(words[2])
            if not words or words[0] == b"end_header":
                break
    raise FormatError("the PLY header has no vertex element", file=str(ply))


# --- scenes -----------------------------------------------------------------------------------------------------------

RAW = ("donut", "banana", "leica")
PACKED = {
    "bouquet": "bouquet.spz",
    "playbot": "playbot/meta.json",
    "angel": "angel.sog",
    "plant": "plant.splat",
    "lifted-photo": "lifted-photo.sog",
}
DITHERED = ("bouquet", "playbot", "angel")
SCENE_TIMEOUT_S = 900.0

MOVED_BY = (60_000.0, -48_000.0, 64_000.0)  # 100,000 units long; float32 steps of 1/256 unit there
SHELL_GAUSSIANS = 1_000
SHELL_RATIO = 100.0  # shell's radius over the object's
SHELL_SEED = 20_240
MILLION = 1_000_000
MILLION_SEED = 9


def _vertices(path: Path) -> NDArray[np.void]:
    """A PLY's vertex table as a structured array that may be changed."""
    return np.array(PlyData.read(str(path), mmap=False)["vertex"].data)


def _write_ply(path: Path, vertices: NDArray[np.void]) -> None:
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(path))


def _box(vertices: NDArray[np.void]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper corner of the box between the 5th and 95th percentile of the means."""
    means = np.stack([vertices[axis] for axis in "xyz"], 1).astype(np.float64)
    low, high = np.percentile(means, [5.0, 95.0], axis=0)
    return low, high


def scaled(vertices: NDArray[np.void], factor: float) -> NDArray[np.void]:
    """The same scene at another world scale: means times `factor`, log scales plus its logarithm."""
    out = vertices.copy()
    for axis in "xyz":
        out[axis] = (vertices[axis].astype(np.float64) * factor).astype(out.dtype[axis])
    for name in ("scale_0", "scale_1", "scale_2"):
        out[name] = (vertices[name].astype(np.float64) + math.log(factor)).astype(out.dtype[name])
    return out


def moved(vertices: NDArray[np.void], offset: Sequence[float]) -> NDArray[np.void]:
    """The same scene elsewhere. The means stay float32, so a small object far out lands on a visible lattice."""
    out = vertices.copy()
    for axis, shift in zip("xyz", offset, strict=True):
        out[axis] = (vertices[axis].astype(np.float64) + shift).astype(out.dtype[axis])
    return out


def in_shell(vertices: NDArray[np.void], count: int = SHELL_GAUSSIANS, seed: int = SHELL_SEED) -> NDArray[np.void]:
    """Append a background: `count` flat Gaussians facing the scene, at 100 times its radius.

    The radius of the scene is half the diagonal of its 5 to 95 % box. Sizes are such that the shell just covers its
    sphere; the colours run from ground to sky with noise, and higher harmonics, where the scene has any, are small.
    """
    rng = np.random.default_rng(seed)
    low, high = _box(vertices)
    radius = SHELL_RATIO * float(np.linalg.norm(high - low)) / 2
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    distance = radius * rng.lognormal(0.0, 0.1, count)
    means = (low + high) / 2 + direction * distance[:, None]

    spacing = np.sqrt(4 * math.pi / count) * distance  # side of the patch of sphere that each one has to itself
    tangential = 0.6 * spacing[:, None] * rng.lognormal(0.0, 0.3, (count, 2))
    radial = 0.05 * spacing[:, None] * rng.lognormal(0.0, 0.3, (count, 1))
    log_scales = np.log(np.concatenate([tangential, radial], 1))

    # The shortest rotation from +z to the direction: (1 + d.z, z x d), then a spin about the local z axis.
    facing = np.stack([1 + direction[:, 2], -direction[:, 1], direction[:, 0], np.zeros(count)], 1)
    facing[facing[:, 0] < 1e-6] = (0.0, 1.0, 0.0, 0.0)
    facing /= np.linalg.norm(facing, axis=1, keepdims=True)
    half = rng.uniform(0, math.pi, count)
    c, s = np.cos(half)[:, None], np.sin(half)[:, None]
    w, x, y, z = np.split(facing, 4, axis=1)
    quats = np.concatenate([w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s], 1)

    height = (direction[:, 1:2] + 1) / 2
    ground, sky = np.array([0.35, 0.30, 0.22]), np.array([0.45, 0.62, 0.85])
    rgb = np.clip(ground + (sky - ground) * height + rng.normal(0, 0.06, (count, 3)), 0.02, 0.98)
    alpha = rng.uniform(0.6, 0.99, count)

    far = np.zeros(count, vertices.dtype)
    values: dict[str, NDArray[np.float64]] = {"opacity": np.log(alpha / (1 - alpha))}
    for i in range(3):
        values["xyz"[i]] = means[:, i]
        values[f"scale_{i}"] = log_scales[:, i]
        values[f"f_dc_{i}"] = (rgb[:, i] - 0.5) / 0.28209479177387814
    for i in range(4):
        values[f"rot_{i}"] = quats[:, i]
    for name in sorted(n for n in vertices.dtype.names or () if n.startswith("f_rest_")):
        values[name] = rng.normal(0, 0.03, count)
    for name, column in values.items():
        far[name] = column.astype(far.dtype[name])
    return np.concatenate([vertices, far])


def tiled(tiles: Sequence[NDArray[np.void]], total: int, seed: int = MILLION_SEED) -> NDArray[np.void]:
    """Set nine tiles on a 3x3 grid in the xz plane, one 5 to 95 % box apart, and drop a random few down to `total`."""
    low, high = _box(tiles[0])
    step = high - low
    placed = [moved(tile, (step[0] * (i % 3 - 1), 0.0, step[2] * (i // 3 - 1))) for i, tile in enumerate(tiles)]
    everything = np.concatenate(placed)
    if len(everything) < total:
        raise ParameterError(f"nine tiles hold {len(everything)} Gaussians, fewer than {total}")
    keep = np.random.default_rng(seed).permutation(len(everything))[:total]
    return everything[np.sort(keep)]


def prepare_scenes(folder: Path = SCENES, data: Path = DATA, *, log: Callable[[str], None] = print) -> dict[str, Path]:
    """Make the benchmark scenes as PLY files; those already there are kept.

    - raw ones are copied: donut, banana, leica;
    - packed ones are converted by splat-transform: bouquet, playbot, angel, plant, lifted-photo;
    - `<name>-dithered` of bouquet, playbot, angel by the data folder's dither.py, so that they behave like raw ones;
    - of each raw one: `-x0.001` and `-x1000` (world scale), `-moved` (by 100,000 units: in float32, whose steps there
      are 1/256 unit, so that an object of 0.2 units keeps some 50 positions an axis; the rounded scene *is* the
      original that codecs are judged on), `-shell` (a background at 100 times its size);
    - `bouquet-million`: nine differently dithered bouquets on a grid, exactly 1,000,000 Gaussians: for speed and
      memory; its rates flatter codecs that match long repeats (below the noise, the tiles are the same).

    Returns:
        Name to path of every scene that is there afterwards; one that cannot be made is said and left out.
        `scenes.json` in the folder has counts, sizes and hashes.
    """
    folder, data = Path(folder), Path(data)
    folder.mkdir(parents=True, exist_ok=True)
    static = data / "static"

    def path(name: str) -> Path:
        return folder / f"{name}.ply"

    def convert(source: Path, out: Path) -> None:
        problem = _tool_why_not("splat-transform")
        if problem is not None:
            raise BackendUnavailableError(f"splat-transform: {problem}")
        _splat_transform(
            ["-g", "cpu", source, out], timeout_s=SCENE_TIMEOUT_S, what=f"splat-transform of {source.name}"
        )

    def dither(source: Path, out: Path, seed: int = 1) -> None:
        command: list[str | Path] = [sys.executable, data / "dither.py", source, out, str(seed)]
        _run(command, timeout_s=SCENE_TIMEOUT_S, what=f"dither.py of {source.name}")

    def million(source: Path, out: Path) -> None:
        tiles = []
        for seed in range(1, 10):
            tile = out.with_name(f"tile-{seed}.ply")
            dither(source, tile, seed)
            tiles.append(_vertices(tile))
        _write_ply(out, tiled(tiles, MILLION))

    def variant(change: Callable[[NDArray[np.void]], NDArray[np.void]]) -> Callable[[Path, Path], None]:
        return lambda source, out: _write_ply(out, change(_vertices(source)))

    jobs: list[tuple[str, Path, Callable[[Path, Path], object]]] = []
    jobs += [(name, static / f"{name}.ply", shutil.copyfile) for name in RAW]
    jobs += [(name, static / file, convert) for name, file in PACKED.items()]
    jobs += [(f"{name}-dithered", path(name), dither) for name in DITHERED]
    for name in RAW:
        jobs += [
            (f"{name}-x0.001", path(name), variant(lambda v: scaled(v, 0.001))),
            (f"{name}-x1000", path(name), variant(lambda v: scaled(v, 1000.0))),
            (f"{name}-moved", path(name), variant(lambda v: moved(v, MOVED_BY))),
            (f"{name}-shell", path(name), variant(in_shell)),
        ]
    jobs += [("bouquet-million", path("bouquet"), million)]

    scenes: dict[str, Path] = {}
    for name, source, make in jobs:
        target = path(name)
        if target.is_file():
            scenes[name] = target
            continue
        if not source.is_file():
            log(f"{name}: skipped, {source.name} is not there")
            continue
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / target.name
                make(source, made)
                made.replace(target)
        except SplatCodecError as error:
            log(f"{name}: skipped, {error}")
            continue
        scenes[name] = target
        log(f"{name}: made, {_num_gaussians(target):,} Gaussians, {target.stat().st_size:,} bytes")
    facts = {
        name: {"num_gaussians": _num_gaussians(p), "size_bytes": p.stat().st_size, "sha256": _sha256(p)}
        for name, p in scenes.items()
    }
    _write_text(folder / "scenes.json", json.dumps(facts, indent=1) + "\n")
    return scenes


# --- command line -----------------------------------------------------------------------------------------------------


def _table() -> list[str]:
    """Markdown lines: every file in the cache."""
    rows = []
    for record in sorted(CACHE.glob("*/*.json")):
        if len(record.parent.name) != 16:
            continue
        entry = json.loads(record.read_text())
        extension = PEERS[entry["peer"]].extension if entry.get("peer") in PEERS else ""
        file = record.with_name(record.stem + extension).relative_to(ROOT)
        rows.append((entry["input_name"], entry["peer"], entry["size_bytes"], entry["bits_per_gaussian"],
                     entry["wall_s"], file))  # fmt: skip
    lines = ["| scene | peer | bytes | bits/Gaussian | wall s | file |", "|---|---|---|---|---|---|"]
    return lines + [
        f"| {s} | {p} | {size:,} | {bits} | {wall} | {file} |" for s, p, size, bits, wall, file in sorted(rows)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 when an encoder failed (one that is not installed is only said)."""
    parser = argparse.ArgumentParser(description="Install peers' encoders, make the benchmark scenes, encode them.")
    parser.add_argument("--install", action="store_true", help="install the encoders under .cache/peers/")
    parser.add_argument("--available", action="store_true", help="say which peers can encode here")
    parser.add_argument("--scenes", action="store_true", help="make the benchmark scenes under .cache/scenes/")
    parser.add_argument("--data", type=Path, default=DATA, help="data folder (default: ../shared/data)")
    parser.add_argument("--encode", metavar="PEERS", help="comma-separated peers to encode the given PLY files with")
    parser.add_argument("--table", action="store_true", help="print what is in the cache")
    parser.add_argument("ply", nargs="*", type=Path, help="PLY files for --encode")
    args = parser.parse_args(argv)
    if not (args.install or args.available or args.scenes or args.encode or args.table):
        parser.error("nothing to do: give --install, --available, --scenes, --encode or --table")
    if bool(args.encode) != bool(args.ply):
        parser.error("--encode PEERS and PLY files go together")

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    failures = 0
    try:
        names = args.encode.split(",") if args.encode else []
        for name in names:
            _peer(name)
        if args.install:
            install(note)
        if args.available:
            for name, version in available().items():
                print(f"{name}: {version or why_not(name)}")
        if args.scenes:
            prepare_scenes(data=args.data, log=note)
        for ply in args.ply:
            for name in names:
                try:
                    made = encode(name, ply)
                    print(f"{ply.name} {name} {made.stat().st_size} {made.relative_to(ROOT)}", flush=True)
                except BackendUnavailableError as error:
                    note(f"skipped {ply.name}: {error}")
                except SplatCodecError as error:
                    note(f"failed: {error}")
                    failures += 1
        if args.table:
            print("\n".join(_table()))
    except SplatCodecError as error:
        note(f"error: {error}")
        return 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
