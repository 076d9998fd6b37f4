"""Two moving scenes compared by what one sees of them: frame by frame, and by what changes from frame to frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..gaussians import Gaussians
from ..render.camera import Camera
from ..render.cpu import render
from ..render.rendering import Rendering
from .psnr import COVERED_ALPHA, covered_psnr_db, psnr_db

__all__ = ["MovingComparison", "compare_frames", "flicker_psnr_db"]


def flicker_psnr_db(reference: tuple[Rendering, Rendering], decoded: tuple[Rendering, Rendering]) -> float:
    """PSNR of what changes from one frame to the next, over pixels that any of the four pictures covers, in dB.

    Errors that stay where they are do not count; those that come and go, which one sees as flicker, do.
    """
    error = (reference[1].rgb - reference[0].rgb) - (decoded[1].rgb - decoded[0].rgb)
    covered = np.max([picture.alpha for picture in (*reference, *decoded)], axis=0) > COVERED_ALPHA
    if not covered.any():
        return psnr_db(0.0)
    return psnr_db(float((error[covered].astype(np.float64) ** 2).mean()))


@dataclass
class MovingComparison:
    """How near a decoded moving scene's pictures are to the original's.

    Attributes:
        frames: for each frame a dict of frame (number), psnr_db (mean over views), worst_view_db, and flicker_db
            (against the frame before, absent for the first).
    """

    frames: list[dict[str, float]] = field(default_factory=list)

    @property
    def psnr_db(self) -> float:
        """Mean over the frames, dB: the figure to quote."""
        return float(np.mean([frame["psnr_db"] for frame in self.frames])) if self.frames else 100.0

    @property
    def worst_frame(self) -> dict[str, float]:
        """The frame with the lowest psnr_db."""
        return min(self.frames, key=lambda frame: frame["psnr_db"])

    @property
    def flicker_db(self) -> float | None:
        """Mean PSNR of frame differences, dB; None with less than two frames."""
        found = [frame["flicker_db"] for frame in self.frames if "flicker_db" in frame]
        return float(np.mean(found)) if found else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "psnr_db": self.psnr_db,
            "worst_frame": dict(self.worst_frame),
            "flicker_db": self.flicker_db,
            "num_frames": len(self.frames),
            "frames": [dict(frame) for frame in self.frames],
        }


def compare_frames(
    pairs: Iterable[tuple[int, Gaussians, Gaussians]],
    cameras: Sequence[Camera],
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> MovingComparison:
    """Render both of each pair from the same cameras.

    Args:
        pairs: number of the frame, original, decoded; flicker is measured where numbers follow each other.
        progress: called with the number of frames done.
    """
    result = MovingComparison()
    before: list[tuple[Rendering, Rendering]] = []
    last = -2
    for number, reference, decoded in pairs:
        pictures = [
            (render(reference, camera, num_threads=num_threads), render(decoded, camera, num_threads=num_threads))
            for camera in cameras
        ]
        psnrs = [covered_psnr_db(a, b) for a, b in pictures]
        facts = {"frame": number, "psnr_db": float(np.mean(psnrs)), "worst_view_db": float(np.min(psnrs))}
        if number == last + 1:
            flickers = [flicker_psnr_db((a0, a1), (b0, b1)) for (a0, b0), (a1, b1) in zip(before, pictures)]
            facts["flicker_db"] = float(np.mean(flickers))
        result.frames.append(facts)
        before, last = pictures, number
        if progress:
            progress(len(result.frames))
    return result
