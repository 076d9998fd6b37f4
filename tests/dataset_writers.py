"""Small data sets of every kind, written as other tools write them, with pictures drawn by our own renderer."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splatcodec.gaussians import Gaussians
from splatcodec.render.camera import Camera, look_at
from splatcodec.render.cpu import render

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def blob_scene(count: int = 60, seed: int = 5) -> Gaussians:
    """A few soft, coloured Gaussians within a radius of about 1."""
    random = np.random.default_rng(seed)
    return Gaussians(
        means=random.normal(0.0, 0.4, (count, 3)),
        quats=random.normal(size=(count, 4)),
        scales=np.log(random.uniform(0.08, 0.25, (count, 3))),
        opacities=random.uniform(0.0, 4.0, count),
        sh0=random.uniform(-1.5, 1.5, (count, 1, 3)),
    )


def ring(count: int, size_px: int = 32, radius: float = 4.0, height: float = 1.5, z_up: bool = True) -> list[Camera]:
    """Cameras on a circle, looking at the middle."""
    cameras = []
    for k in range(count):
        angle = 2 * np.pi * k / count
        across = radius * np.cos(angle), radius * np.sin(angle)
        place = (*across, height) if z_up else (across[0], -height, across[1])
        up = (0, 0, 1) if z_up else (0, -1, 0)
        cameras.append(look_at(place, (0, 0, 0), up, width=size_px, height=size_px, fov_deg=40))
    return cameras


def rgba(scene: Gaussians, camera: Camera) -> np.ndarray:
    """(H, W, 4) uint8 with straight alpha."""
    picture = render(scene, camera)
    alpha = picture.alpha[..., None]
    rgb = np.clip(picture.rgb / np.maximum(alpha, 1e-6), 0, 1)
    return (np.concatenate([rgb, alpha], axis=-1) * 255 + 0.5).astype(np.uint8)


def rgb(scene: Gaussians, camera: Camera) -> np.ndarray:
    """(H, W, 3) uint8 on black."""
    return (np.clip(render(scene, camera).rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def opengl_pose(camera: Camera) -> list[list[float]]:
    """The camera-to-world matrix in OpenGL axes, as JSON files have it."""
    return (np.linalg.inv(camera.viewmat) @ OPENGL).tolist()


def write_blender(
    folder: Path,
    scene: Gaussians,
    train: Sequence[Camera],
    test: Sequence[Camera],
    times: Callable[..., Any] | None = None,
) -> Path:
    """NeRF-synthetic: RGBA pictures, names without suffix; `times(k)` makes it D-NeRF."""
    for name, cameras in (("train", train), ("test", test)):
        frames = []
        for k, camera in enumerate(cameras):
            save(rgba(scene, camera), folder / name / f"r_{k}.png")
            frame: dict[str, Any] = {"file_path": f"./{name}/r_{k}", "transform_matrix": opengl_pose(camera)}
            if times is not None:
                frame["time"] = times(k)
            frames.append(frame)
        angle = 2 * np.arctan(0.5 * train[0].width / train[0].focal_px[0])
        header = {"camera_angle_x": float(angle), "frames": frames}
        (folder / f"transforms_{name}.json").write_text(json.dumps(header))
    return folder


def write_transforms(folder: Path, scene: Gaussians, cameras: Sequence[Camera], **header: Any) -> Path:
    """instant-ngp: one file, intrinsics at the top; `header` adds to it or replaces."""
    frames = []
    for k, camera in enumerate(cameras):
        save(rgb(scene, camera), folder / "images" / f"{k:04}.png")
        frames.append({"file_path": f"images/{k:04}.png", "transform_matrix": opengl_pose(camera)})
    (fx, fy), (cx, cy) = cameras[0].focal_px, cameras[0].principal_point_px
    facts = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": cameras[0].width, "h": cameras[0].height}
    (folder / "transforms.json").write_text(json.dumps(facts | {"frames": frames} | header))
    return folder


def quat_of(rotation: np.ndarray) -> np.ndarray:
    """w, x, y, z of a rotation matrix: the eigenvector of the largest eigenvalue of its quaternion form."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    form = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    return np.linalg.eigh(form)[1][:, -1]


def write_colmap(
    folder: Path,
    scene: Gaussians,
    cameras: Sequence[Camera],
    *,
    binary: bool = True,
    model: tuple[int, str, Sequence[float]] | None = None,
    images: str = "images",
    shrink: int = 1,
    where: str = "sparse/0",
) -> Path:
    """COLMAP: the scene's centres are its points, each seen by every camera that it projects into."""
    sparse = folder / where
    sparse.mkdir(parents=True, exist_ok=True)
    first = cameras[0]
    number, name, values = model or (1, "PINHOLE", [*first.focal_px, *first.principal_point_px])
    size = first.width, first.height
    colours = np.clip((0.5 + 0.28209479 * scene.sh0[:, 0]) * 255, 0, 255).astype(int)
    records = []
    for k, camera in enumerate(cameras):
        picture = Image.fromarray(rgb(scene, camera))
        picture = picture.resize((camera.width // shrink, camera.height // shrink), Image.Resampling.BOX)
        save(np.asarray(picture), folder / images / f"photo {k:03}.png")
        local = scene.means @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
        pixels = (local @ camera.K.T)[:, :2] / local[:, 2:]
        ids = np.where((pixels > 0).all(1) & (pixels < size).all(1), np.arange(len(pixels)) + 1, -1)
        records.append(
            (k + 1, quat_of(camera.viewmat[:3, :3]), camera.viewmat[:3, 3], f"photo {k:03}.png", pixels, ids)
        )
    if binary:
        content = struct.pack("<QIiQQ", 1, 1, number, *size) + struct.pack(f"<{len(values)}d", *values)
        (sparse / "cameras.bin").write_bytes(content)
        content = struct.pack("<Q", len(records))
        for k, quat, shift, file, pixels, ids in records:
            content += struct.pack("<I7dI", k, *quat, *shift, 1) + file.encode() + b"\0" + struct.pack("<Q", len(ids))
            content += b"".join(struct.pack("<2dq", *xy, point) for xy, point in zip(pixels, ids))
        (sparse / "images.bin").write_bytes(content)
        content = struct.pack("<Q", len(scene.means))
        for k, (mean, colour) in enumerate(zip(scene.means, colours)):
            content += struct.pack("<q3d3Bd", k + 1, *mean, *colour, 0.5) + struct.pack("<Q2i", 1, 1, k)
        (sparse / "points3D.bin").write_bytes(content)
    else:
        lines = ["# comment", f"1 {name} {size[0]} {size[1]} " + " ".join(map(repr, map(float, values)))]
        (sparse / "cameras.txt").write_text("\n".join(lines) + "\n")
        lines = ["# comment"]
        for k, quat, shift, file, pixels, ids in records:
            lines.append(" ".join([str(k), *map(repr, map(float, [*quat, *shift])), "1", file]))
            lines.append(" ".join(f"{float(x)!r} {float(y)!r} {point}" for (x, y), point in zip(pixels, ids)))
        (sparse / "images.txt").write_text("\n".join(lines) + "\n")
        lines = ["# comment"]
        for k, (mean, colour) in enumerate(zip(scene.means, colours)):
            lines.append(" ".join([str(k + 1), *map(repr, map(float, mean)), *map(str, colour), "0.5", "1", str(k)]))
        (sparse / "points3D.txt").write_text("\n".join(lines) + "\n")
    return folder
