"""Encoding a still scene with learned parts: the whole flow on one page.

Gaussians and parts -> the scene with neutral values where a part stands in -> importance over the encoder's views
                    -> steps of what is left -> tiles as of any scene -> parts in the order of the tiles
                    -> decode, render, compare -> finer or coarser steps, until the PSNR is met -> file
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..bitstream.container import Chunk, Feature, write_container
from ..bitstream.metadata import metadata_chunk
from ..gaussians import Gaussians
from ..metrics.psnr import covered_psnr_db
from ..preprocess.plan import LossyOptions, Plan, Tuning, make_plan
from ..preprocess.view_weights import ViewWeights
from ..render.camera import encoder_cameras
from ..render.contribution import contributions
from ..render.cpu import render
from .decoder import worker_count
from .encoder import EncodedTiles, LevelPlan, decode_encoded, encode_tiles
from .learned import LearnedParts

__all__ = ["encode_learned"]

Progress = Callable[[str, float], None]

_IMPORTANCE_VIEWS, _IMPORTANCE_PX, _IMPORTANCE_SEED = 64, 256, 0
_CHECK_VIEWS, _CHECK_PX, _CHECK_SEED = 10, 320, 1
_TRIALS, _TOLERANCE_DB, _DB_PER_OCTAVE = 4, 0.3, -5.5
# Where sizes are not in the streams, the geometry class says how large a Gaussian is; opacities have that class, too.
_MOST_CLASSES = 6
_OPACITY_STEP = 6
_OCTAVES_OF_LOG = 1.0 / np.log(2.0)
_BOX_SIGMAS = 3.0
_NOTHING = 1e-3  # coefficients that are no Gaussian's own


def encode_learned(
    scene: Gaussians,
    parts: LearnedParts,
    *,
    wanted_psnr_db: float,
    threads: int | None = None,
    progress: Progress | None = None,
) -> bytes:
    """The `.splc` file of a scene and its learned parts.

    Args:
        scene: N cleaned Gaussians as they should look, parts applied.
        parts: of its Gaussians, in its order.
        wanted_psnr_db: covered PSNR over the encoder's views that what is not in the parts may cost.
        threads: worker threads; the bytes do not depend on it.
        progress: called with (stage, share done).
    """
    tell = progress or (lambda stage, share: None)
    base = _neutral(scene, parts)
    cameras = encoder_cameras(scene, num_views=_IMPORTANCE_VIEWS, size_px=_IMPORTANCE_PX, seed=_IMPORTANCE_SEED)
    seen_from = ViewWeights(cameras, len(scene)) if base.shN.any() else None
    measured = contributions(
        scene, cameras, equalize=True, num_threads=threads, on_view=seen_from.add if seen_from else None,
        progress=lambda done, count: tell("importance", done / count),
    )  # fmt: skip
    checks = encoder_cameras(scene, num_views=_CHECK_VIEWS, size_px=_CHECK_PX, seed=_CHECK_SEED)
    originals = [render(scene, camera) for camera in checks]
    # Each of about 12 numbers a Gaussian adds K^2 / 12 of squared error.
    error = 10.0 ** (-wanted_psnr_db / 10.0)
    pixels, active = float(measured.sum_weight.sum()), float((measured.hits > 0).sum())
    slope = float(np.log2(0.6 * np.sqrt(max(3.0 * error * max(pixels, 1.0), 1e-30) / max(active, 1.0))))
    best: tuple[float, EncodedTiles, LearnedParts] | None = None
    tried: list[tuple[float, float]] = []
    with ThreadPoolExecutor(worker_count(threads)) as pool:
        for trial in range(_TRIALS):
            tell("coding", trial / _TRIALS)
            plan = make_plan(scene, measured, 2.0**slope, LossyOptions(prune=False), Tuning(), seen_from)
            if any(part.attribute == "scales" for part in parts.vectors):
                plan = _by_size(plan, scene, base)
            encoded = encode_tiles(base, plan, LevelPlan(np.arange(len(scene)), levels=False), pool)
            ordered = parts.selected(encoded.order)
            if not len(scene):
                best = 0.0, encoded, ordered
                break
            decoded = ordered.applied(decode_encoded(encoded, pool)).replaced(metadata=scene.metadata)
            psnr = float(np.mean([covered_psnr_db(a, render(decoded, c)) for a, c in zip(originals, checks)]))
            if best is None or abs(psnr - wanted_psnr_db) < best[0]:
                best = abs(psnr - wanted_psnr_db), encoded, ordered
            if best[0] < _TOLERANCE_DB:
                break
            tried.append((slope, psnr))
            gradient = _DB_PER_OCTAVE
            if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
                gradient = min((tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0]), -2.0)
            slope += float(np.clip((wanted_psnr_db - psnr) / gradient, -4.0, 4.0))
    assert best is not None
    tell("coding", 1.0)
    return _written(scene, base, best[1], best[2])


def _neutral(scene: Gaussians, parts: LearnedParts) -> Gaussians:
    """The scene with the same values for all Gaussians where parts have theirs."""
    changed: dict[str, npt.NDArray[np.float32]] = {}
    for part in parts.vectors:
        if part.attribute == "scales":
            typical = float(np.clip(np.median(scene.scales), -40, 40)) if len(scene) else 0.0
            changed["scales"] = np.full_like(scene.scales, typical)
        elif part.attribute == "quats":
            changed["quats"] = np.tile(np.array([1, 0, 0, 0], np.float32), (len(scene), 1))
        else:
            rows = slice(None) if part.rows is None else part.rows
            for name in ("sh0", "shN"):
                changed[name] = getattr(scene, name).copy()
                changed[name][rows] = 0.0
    if parts.field is not None:
        found = parts.field.colours(scene.means)
        for name, own in (("sh0", scene.sh0 - found[:, :1]), ("shN", scene.shN - found[:, 1:])):
            # The field is evaluated in another precision where scenes are trained.
            changed[name] = (own if np.abs(own).max(initial=0.0) > _NOTHING else np.zeros_like(own)).astype(np.float32)
    return scene.replaced(extras={}, **changed)


def _by_size(plan: Plan, scene: Gaussians, base: Gaussians) -> Plan:
    """A plan for a scene whose sizes are all the same: the class makes positions as fine as true sizes would."""
    octaves = plan.classes[:, 0] + _OCTAVES_OF_LOG * scene.scales.astype(np.float64).mean(1)
    least = float(np.quantile(octaves, 0.02)) if len(octaves) else 0.0
    classes = plan.classes.copy()
    classes[:, 0] = np.clip(np.floor(octaves - least), 0, _MOST_CLASSES)
    if not base.sh0.any() and not base.shN.any():
        classes[:, 1] = 0
    size = float(_OCTAVES_OF_LOG * base.scales[0, 0]) if len(scene) else 0.0
    steps = replace(
        plan.steps,
        precision=int(np.clip(plan.steps.precision + round(1024 * (least - size)), -(1 << 20), 1 << 20)),
        opacity=_OPACITY_STEP,
        blur=0.0,
    )
    return replace(plan, classes=classes, steps=steps)


def _written(scene: Gaussians, base: Gaussians, encoded: EncodedTiles, parts: LearnedParts) -> bytes:
    dark = not base.shN.any()
    chunks: list[Chunk] = [metadata_chunk(scene.metadata)]
    at = 0
    boxes = []
    for chunk in encoded.chunks:
        if chunk.type == "TILE":
            boxes.append((chunk.tile, _box(scene.selected(encoded.order[at : at + chunk.count]))))
            at += chunk.count
    for chunk in encoded.chunks:
        if chunk.type == "TBOX":
            payload = np.array([box for _, box in sorted(boxes, key=lambda item: item[0])], "<f4").tobytes()
            chunk = replace(chunk, payload=payload)
            chunks.append(chunk)
        elif not (dark and chunk.type.startswith("SHC")):
            chunks.append(chunk)
    chunks += parts.chunks()
    file = io.BytesIO()
    features = [Feature("lossy-1"), *parts.features()]
    write_container(file, chunks, num_gaussians=len(encoded.order), features=features)
    return file.getvalue()


def _box(scene: Gaussians) -> npt.NDArray[np.float32]:
    means = scene.means.astype(np.float64)
    reach = _BOX_SIGMAS * np.exp(np.minimum(scene.scales.max(1), 80.0).astype(np.float64))[:, None]
    found = np.stack([(means - reach).min(0), (means + reach).max(0)])
    return np.clip(found, -3e38, 3e38).astype(np.float32)
