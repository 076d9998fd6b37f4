"""Training methods on a finished scene: its own pictures take the place of photographs.

The scene is drawn from many views (none of those that importance, quality checks, levels or evaluations use) on grey,
where neither black nor white Gaussians are invisible; a run of the method starts from it, without densification.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import api
from ..errors import ParameterError
from ..files import PathLike
from ..gaussians import Gaussians
from ..render.camera import encoder_cameras
from ..render.cpu import render
from .datasets import Dataset, PointCloud, View
from .datasets._lens import Lens
from .datasets._pictures import PictureCache, PictureSource
from .methods import method_named
from .settings import TrainSettings
from .splats import splats_from_gaussians
from .trainer import Progress, Trainer

__all__ = ["SceneDataset", "compress_by_method", "dataset_of_scene"]

_SEED = 4  # as of refinement: views that nothing else uses
_GREY = (0.5, 0.5, 0.5)
# A finished scene has little way to go: positions as LightGaussian recommends, others at a part of the usual rates.
_MEANS_RATE, _MEANS_RATE_END = 5e-6, 1.6e-6
_SLOWER, _RATES_END = 0.25, 0.05


@dataclass(frozen=True, eq=False)
class SceneDataset(Dataset):
    """Views of a scene.

    Attributes:
        pictures: (H, W, 3) uint8 by name of the view.
    """

    pictures: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def picture(self, view: View, factor: float = 1.0) -> npt.NDArray[np.uint8]:
        """The pixels of a view, (H, W, 3) uint8, at full size only."""
        assert factor == 1.0
        return self.pictures[view.name]


def dataset_of_scene(
    gaussians: Gaussians,
    *,
    views: int = 64,
    size_px: int = 384,
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> SceneDataset:
    """The scene's own pictures as a data set without test views.

    Args:
        gaussians: at least one that can be drawn.
        views: how many. size_px: their larger side.
        threads: no pixel depends on it.
        progress: called with (stage, share done).
    """
    cameras = encoder_cameras(gaussians, num_views=views, size_px=size_px, seed=_SEED)
    pictures, train = {}, []
    for k, camera in enumerate(cameras):
        drawn = render(gaussians, camera, num_threads=threads)
        rgb = drawn.rgb + (1.0 - drawn.alpha[..., None]) * np.float32(_GREY[0])
        name = f"view {k}"
        pictures[name] = np.rint(np.clip(rgb, 0.0, 1.0) * 255).astype(np.uint8)
        size = camera.width, camera.height
        lens = Lens(*size, camera.K[0, 0], camera.K[1, 1], camera.K[0, 2], camera.K[1, 2])
        train.append(View(name, camera, PictureSource(Path(name), size, lens, lens, None)))
        if progress:
            progress("original's pictures", (k + 1) / len(cameras))
    centres = np.array([-c.viewmat[:3, :3].T @ c.viewmat[:3, 3] for c in cameras])
    extent = 1.1 * float(np.linalg.norm(centres - centres.mean(0), axis=1).max()) or 1.0
    up = np.asarray(gaussians.metadata.get("up", (0.0, -1.0, 0.0)), np.float64)
    points = PointCloud(gaussians.means, None, "the scene")
    return SceneDataset(
        Path("."), "scene", tuple(train), (), points, _GREY, up, extent, (), PictureCache(0), pictures
    )  # fmt: skip


def compress_by_method(
    source: Gaussians | PathLike,
    method: str = "lightgaussian",
    *,
    iterations: int = 600,
    views: int = 64,
    size_px: int = 384,
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    report: api.CompressReport | None = None,
    settings: Mapping[str, Any] | None = None,
    **lossy: Any,
) -> bytes:
    """Compress a finished scene with a training method, without photographs: smaller, much slower.

    Args:
        source: as for `splatcodec.compress`.
        method: name of a training method.
        iterations: steps, one view each.
        views: how many views the scene is drawn from. size_px: their larger side.
        threads: the bytes do not depend on it.
        progress: called with (stage, share done 0..1).
        report: filled in if given.
        settings: further fields of `TrainSettings`, such as prune and mask_weight.
        lossy: fields of `LossyOptions`, for methods that leave the file to the encoder.

    Returns:
        The file's bytes.

    Raises:
        ParameterError: no Gaussian can be drawn, a value out of range, options that the method does not take.
        UnknownIdError: there is no such method.
        SplatCodecError: the source cannot be read, or nothing can be learned from it.
    """
    if method_named(method).makes_file and lossy:
        raise ParameterError(f"the method {method} decides the quality of the file itself", field=next(iter(lossy)))
    report = report if report is not None else api.CompressReport()
    started = time.perf_counter()
    scene = source if isinstance(source, Gaussians) else api.read(source)
    report.input_bytes = scene.array_bytes if isinstance(source, Gaussians) else _size_bytes(source)
    report.num_gaussians = scene.num_gaussians
    cleaned, cleaning = scene.cleaned()
    if cleaning:
        report.notes.append(str(cleaning))
    if not len(cleaned):
        raise ParameterError("the scene has no Gaussians to learn from")
    if cleaned.extras:
        report.notes.append(f"side arrays dropped: {', '.join(cleaned.extras)}")
        cleaned = cleaned.replaced(extras={})
    slower = {
        name: _SLOWER * getattr(TrainSettings, name)
        for name in ("scales_rate", "quats_rate", "opacities_rate", "sh0_rate", "shN_rate")
    }
    chosen = TrainSettings(
        **{
            "iterations": iterations, "max_gaussians": len(cleaned), "method": method, "strategy": "none",
            "sh_degree": cleaned.sh_degree, "sh_warm_up": 0.0, "coarse": 1, "threads": threads,
            "antialiased": bool(cleaned.metadata.get("antialiased", False)),
            "means_rate": _MEANS_RATE, "means_rate_end": _MEANS_RATE_END, "rates_end": _RATES_END,
            **slower, **(settings or {}),
        }
    )  # fmt: skip

    def tell(now: Progress) -> None:
        if progress:
            progress(f"{method}, {now.psnr_db:.2f} dB", now.share)

    dataset = dataset_of_scene(cleaned, views=views, size_px=size_px, threads=threads, progress=progress)
    start = splats_from_gaussians(cleaned, torch.device("cpu"))
    trainer = Trainer(dataset, chosen, evaluations=0, start=start, progress=tell, say=report.notes.append)
    result = trainer.run()
    small = result.gaussians.replaced(metadata=dict(cleaned.metadata))
    report.seconds["training"] = time.perf_counter() - started
    payload = trainer.method.compressed(small, threads=threads, progress=progress)
    if payload is None:
        inner = api.CompressReport()
        payload = api.compress(small, threads=threads, progress=progress, report=inner, **lossy)
        report.rate_bits.update(inner.rate_bits)
        report.notes += inner.notes
    with api.open(payload) as opened:
        report.num_coded = opened.num_gaussians
    report.size_bytes = len(payload)
    report.seconds["total"] = time.perf_counter() - started
    return payload


def _size_bytes(path: PathLike) -> int:
    where = Path(path)
    files = [where] if where.is_file() else [p for p in where.iterdir() if p.is_file()]
    return sum(p.stat().st_size for p in files)
