"""How good a scene is on views it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..gaussians import Gaussians
from ..metrics.psnr import psnr_db
from ..metrics.ssim import image_ssim
from ..render.rasterize import rasterize
from .datasets import Dataset, View
from .splats import RAW, splats_from_gaussians

__all__ = ["Evaluation", "draw_views", "evaluate"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures over whole pictures with 8-bit photographs as the truth.

    Attributes:
        psnr_db: mean over the views of each view's PSNR, as the papers have it.
        ssim: mean over the views.
        views: `name`, `psnr_db` and `ssim` of each view.
    """

    psnr_db: float
    ssim: float
    views: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"psnr_db": self.psnr_db, "ssim": self.ssim, "views": self.views}


def draw_views(
    gaussians: Gaussians,
    views: Sequence[View],
    background: tuple[float, float, float],
    *,
    device: torch.device | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Pictures (H, W, 3) of the views, clamped to 0..1."""
    splats = splats_from_gaussians(gaussians, device or torch.device("cpu"))
    pictures = []
    with torch.no_grad():
        behind = torch.tensor(background, dtype=torch.float32, device=splats.device)
        for view in views:
            drawn = rasterize(
                *(splats[name] for name in RAW),  # type: ignore[arg-type]
                camera=view.camera,
                background=behind,
                antialiased=bool(gaussians.metadata.get("antialiased", False)),
                backend=backend,
                num_threads=num_threads,
            )  # type: ignore[call-arg, misc]
            pictures.append(drawn.rgb.clamp(0.0, 1.0).cpu().numpy())
    return pictures


def evaluate(
    gaussians: Gaussians,
    dataset: Dataset,
    views: Sequence[View],
    *,
    device: torch.device | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation | None:
    """PSNR and SSIM of a scene on some views; None where there are none."""
    found = []
    for k, view in enumerate(views):
        (picture,) = draw_views(
            gaussians, [view], dataset.background, device=device, backend=backend, num_threads=num_threads
        )
        truth = dataset.picture(view).astype(np.float32) / np.float32(255.0)
        error = float(((picture - truth).astype(np.float64) ** 2).mean())
        ssim = image_ssim(picture, truth, num_threads=num_threads)
        found.append({"name": view.name, "psnr_db": psnr_db(error), "ssim": ssim})
        if progress:
            progress(k + 1, len(views))
    if not found:
        return None
    return Evaluation(
        float(np.mean([view["psnr_db"] for view in found])), float(np.mean([view["ssim"] for view in found])), found
    )
