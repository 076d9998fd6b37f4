#!/usr/bin/env python3
"""GLB files with SPZ inside, as CesiumJS decodes and draws them, beside what this package makes of them.

    npm install --prefix DIR cesium && npm install --prefix tests/js      # once
    python tools/cesium_check.py --cesium DIR/node_modules/cesium SCENE.ply [SCENE.spz ...] [--out FOLDER]

CesiumJS draws `KHR_gaussian_splatting_compression_spz_2`. Each scene is written as GLB version 2 and opened in a
headless Chromium as the content of a 3D Tiles set, as Cesium has it. Compared are

- every attribute that Cesium decoded with what `splatcodec.read` gives: the largest difference of positions (over the
  extent), log scales, axes of rotations, opacities and colours (in steps of 1/255) and harmonics;
- pictures of Cesium's with the CPU renderer's (covered PSNR). Cesium draws Gaussians by rules of its own, so these are
  alike and no more; wrong axes, orders or harmonics would show at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import splatcodec
from splatcodec import formats
from splatcodec.errors import SplatCodecWarning
from splatcodec.formats import WriteOptions
from splatcodec.gaussians import SH_C0, Gaussians
from splatcodec.metrics.psnr import psnr_pair_db
from splatcodec.render.camera import Camera, evaluation_cameras
from splatcodec.render.cpu import render
from splatcodec.render.rendering import Rendering

EXTENSIONS = ["KHR_gaussian_splatting", "KHR_gaussian_splatting_compression_spz_2"]
PREFIX = "KHR_gaussian_splatting:"
# From right, down, front: to glTF's left, up, front, and with glTF's y up turned to z up, as 3D Tiles does.
TO_GLTF = np.diag([-1.0, -1.0, 1.0])
TO_TILES = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ TO_GLTF
TIMEOUT_S = 1800.0


def tileset(scene: Gaussians) -> dict[str, Any]:
    """A tile that holds all of the scene."""
    low, high = scene.means.min(0) - 1.0, scene.means.max(0) + 1.0
    center, half = TO_TILES @ ((low + high) / 2), float((high - low).max())
    box = [*center.tolist(), half, 0, 0, 0, half, 0, 0, 0, half]
    inside = {"extensionsUsed": EXTENSIONS, "extensionsRequired": EXTENSIONS}
    return {
        "asset": {"version": "1.1"},
        "extensionsUsed": ["3DTILES_content_gltf"],
        "extensionsRequired": ["3DTILES_content_gltf"],
        "extensions": {"3DTILES_content_gltf": inside},
        "geometricError": 1e6,
        "root": {
            "boundingVolume": {"box": box},
            "geometricError": 0,
            "refine": "REPLACE",
            "content": {"uri": "scene.glb"},
        },
    }


def view_of(camera: Camera) -> dict[str, Any]:
    """A camera in Cesium's world."""
    rotation, shift = camera.viewmat[:3, :3], camera.viewmat[:3, 3]
    return {
        "position": (TO_TILES @ (-rotation.T @ shift)).tolist(),
        "direction": (TO_TILES @ rotation[2]).tolist(),
        "up": (TO_TILES @ -rotation[1]).tolist(),
        "width": camera.width,
        "height": camera.height,
        "fovy": float(2 * np.arctan(camera.height / 2 / camera.K[1, 1])),
        "near": camera.near,
        "far": 1e5,
    }


def matrices(quats: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(N, 3, 3) rotations of quaternions w, x, y, z."""
    quats = quats.astype(np.float64)
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def differences(folder: Path, scene: Gaussians) -> dict[str, float]:
    """How far what Cesium decoded is from `scene`, in RDF; the largest of each kind."""
    facts = json.loads((folder / "values.json").read_text())
    found = {}
    for entry in facts["attributes"]:
        kind = {"Float32Array": "<f4", "Uint8Array": "u1"}[entry["kind"]]
        values = np.frombuffer((folder / entry["file"]).read_bytes(), kind)
        found[entry["name"].removeprefix(PREFIX)] = values.reshape(len(scene), -1)
    extent = float(np.ptp(scene.means, axis=0).max())
    rotated = TO_GLTF @ matrices(scene.quats)
    # An axis of an ellipsoid may point either way: what both make of it is R diag(s) R^T.
    theirs = matrices(found["ROTATION"][:, [3, 0, 1, 2]])
    alphas = 1 / (1 + np.exp(-scene.opacities.astype(np.float64)))
    colors = np.clip(0.5 + SH_C0 * scene.sh0[:, 0].astype(np.float64), 0, 1)
    out = {
        "num_gaussians": len(scene),
        "position_over_extent": float(np.abs(found["POSITION"] - scene.means @ TO_GLTF).max()) / extent,
        "log_scale": float(np.abs(np.log(found["SCALE"].astype(np.float64)) - scene.scales).max()),
        "rotation_axes": float(np.abs(1 - np.abs((theirs * rotated).sum(1))).max()),
        "opacity_255ths": float(np.abs(found["COLOR_0"][:, 3] - 255 * alphas).max()),
        "color_255ths": float(np.abs(found["COLOR_0"][:, :3] - 255 * colors).max()),
    }
    names = [f"SH_DEGREE_{band}_COEF_{n}" for band in range(1, scene.sh_degree + 1) for n in range(2 * band + 1)]
    if names:
        turned = splatcodec.frames.convert_frame(scene, "LUF", from_frame="RDF").shN
        out["harmonics"] = float(max(np.abs(found[name] - turned[:, k]).max() for k, name in enumerate(names)))
    return out


def check(scene: Gaussians, cesium: Path, folder: Path, num_views: int) -> dict[str, Any]:
    """Write, let Cesium read and draw, compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        formats.write(scene, folder / "scene.glb", options=WriteOptions(version=2))
    copy = formats.read(folder / "scene.glb")
    cameras = evaluation_cameras(copy, num_views=num_views, size_px=384)
    (folder / "tileset.json").write_text(json.dumps(tileset(copy)))
    (folder / "views.json").write_text(json.dumps([view_of(camera) for camera in cameras]))
    node = shutil.which("node") or "node"
    script = Path(__file__).with_suffix(".mjs")
    subprocess.run([node, str(script), str(cesium), str(folder)], check=True, timeout=TIMEOUT_S)
    row: dict[str, Any] = {"cesium": json.loads((folder / "values.json").read_text())["version"]}
    row |= differences(folder, copy)
    psnrs = []
    for k, camera in enumerate(cameras):
        ours = render(copy, camera)
        drawn = np.asarray(Image.open(folder / f"view-{k}.png").convert("RGB")).astype(np.float32) / 255
        # Over black; what our picture covers is what counts.
        psnrs.append(psnr_pair_db(ours, Rendering(drawn, ours.alpha))[0])
        both = np.hstack([np.clip(ours.rgb, 0, 1), drawn])
        Image.fromarray(np.rint(255 * both).astype(np.uint8)).save(folder / f"both-{k}.png")
    row["psnr_db"] = [round(float(value), 2) for value in psnrs]
    return row


def main() -> int:
    """Command line; returns 0."""
    parser = argparse.ArgumentParser(description="GLB files with SPZ inside, as CesiumJS reads and draws them.")
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--cesium", type=Path, required=True, help="folder of the npm package")
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder to keep files and pictures in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for path in args.scenes:
            folder = (args.out or Path(scratch)) / path.stem
            folder.mkdir(parents=True)
            scene = splatcodec.read(path).cleaned()[0]
            print(json.dumps({"scene": path.stem, **check(scene, args.cesium, folder, args.views)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
