"""Two scenes compared by what one sees of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..gaussians import Gaussians
from ..render.camera import Camera, evaluation_cameras, world_up
from ..render.cpu import render
from ..render.rendering import Rendering
from .psnr import psnr_pair_db
from .ssim import ssim

__all__ = ["Comparison", "compare", "compare_renderings"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """How near a decoded scene's pictures are to the original's.

    Attributes:
        psnr_db: mean over the views of the PSNR over covered pixels, dB: the figure to quote.
        worst_psnr_db: the lowest of them, dB.
        full_psnr_db: mean over the views of the PSNR over whole pictures, dB.
        ssim: mean over the views.
        views: for each view a dict of psnr_db, full_psnr_db and ssim.
        worst_view: index of the view with the lowest psnr_db.
        cameras: the views.
        up_guessed: whether world up was a guess (see `render.camera.world_up`).
        dropped: Gaussians that cannot be drawn (NaN, infinite) and were left out, in the original and in the decoded
            scene.
    """

    psnr_db: float
    worst_psnr_db: float
    full_psnr_db: float
    ssim: float
    views: list[dict[str, float]]
    worst_view: int
    cameras: list[Camera]
    up_guessed: bool = False
    dropped: tuple[int, int] = (0, 0)

    @property
    def worst_camera(self) -> Camera:
        """The view with the lowest psnr_db."""
        return self.cameras[self.worst_view]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the cameras other than the worst one, as JSON-able values."""
        return {
            "psnr_db": self.psnr_db,
            "worst_psnr_db": self.worst_psnr_db,
            "full_psnr_db": self.full_psnr_db,
            "ssim": self.ssim,
            "worst_view": self.worst_view,
            "worst_camera": self.worst_camera.to_dict(),
            "views": [dict(view) for view in self.views],
            "num_views": len(self.views),
            "up_guessed": self.up_guessed,
            "dropped": {"reference": self.dropped[0], "decoded": self.dropped[1]},
        }


def compare_renderings(reference: Rendering, decoded: Rendering, *, num_threads: int | None = None) -> dict[str, float]:
    """psnr_db (covered pixels), full_psnr_db and ssim of one view.

    Raises:
        ParameterError: the pictures differ in size.
    """
    covered, full = psnr_pair_db(reference, decoded)
    return {"psnr_db": covered, "full_psnr_db": full, "ssim": ssim(reference, decoded, num_threads=num_threads)}


def compare(
    reference: Gaussians,
    decoded: Gaussians,
    *,
    num_views: int = 24,
    size_px: int = 512,
    seed: int = 0,
    up: npt.ArrayLike | None = None,
    cameras: Sequence[Camera] | None = None,
    antialiased: bool | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Render two scenes from the same evaluation views and compare the pictures.

    Args:
        reference: the original scene; the views are chosen from it.
        decoded: its copy, in the same frame.
        num_views, size_px, seed, up: as for `evaluation_cameras`.
        cameras: other views instead of those.
        antialiased: how both are drawn; None takes the reference's `metadata["antialiased"]`.
        num_threads: threads to use; the result does not depend on it.
        progress: called as progress(views done, views in all).

    Raises:
        ParameterError: no views, or the scenes are tagged with different frames.
    """
    frames = [scene.metadata.get("frame") for scene in (reference, decoded)]
    if None not in frames and frames[0] != frames[1]:
        raise ParameterError(
            f"the scenes are in different frames, {frames[0]} and {frames[1]}", hint="convert one of them first"
        )
    if cameras is None:
        cameras = evaluation_cameras(reference, num_views=num_views, size_px=size_px, seed=seed, up=up)
    if not cameras:
        raise ParameterError("nothing to compare: no views", field="num_views")
    if antialiased is None:
        antialiased = bool(reference.metadata.get("antialiased", False))
    (reference, first), (decoded, second) = reference.cleaned(), decoded.cleaned()
    views = []
    for camera in cameras:
        pictures = [
            render(scene, camera, antialiased=antialiased, num_threads=num_threads) for scene in (reference, decoded)
        ]
        views.append(compare_renderings(*pictures, num_threads=num_threads))
        if progress is not None:
            progress(len(views), len(cameras))
    psnrs = [view["psnr_db"] for view in views]
    worst_view = int(np.argmin(psnrs))
    return Comparison(
        psnr_db=float(np.mean(psnrs)),
        worst_psnr_db=psnrs[worst_view],
        full_psnr_db=float(np.mean([view["full_psnr_db"] for view in views])),
        ssim=float(np.mean([view["ssim"] for view in views])),
        views=views,
        worst_view=worst_view,
        cameras=list(cameras),
        up_guessed=world_up(reference, up)[1],
        dropped=(first.dropped, second.dropped),
    )
