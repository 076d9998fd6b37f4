"""Pictures as PNG files, and pictures beside one another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from ..files import PathLike, atomic_write
from .rendering import Rendering

__all__ = ["save_png", "side_by_side"]

ERROR_GAIN = 8.0


def save_png(path: PathLike, rgb: npt.NDArray[np.floating], *, overwrite: bool = True) -> None:
    """Write a picture as an 8-bit PNG; the file appears whole or not at all.

    Args:
        path: where.
        rgb: (H, W, 3) display values, clamped to 0..1 and rounded; stored as they are (no gamma is applied).
        overwrite: replace an existing file.

    Raises:
        ParameterError: `rgb` is not a picture, or the file may not be written there.
        SplatCodecError: the system failed to write it.
    """
    from PIL import Image

    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise ParameterError(f"a picture must have the shape (H, W, 3), not {rgb.shape}", field="rgb")
    values = np.clip(np.nan_to_num(rgb, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    with atomic_write(path, overwrite=overwrite) as file:
        Image.fromarray((values * 255.0 + 0.5).astype(np.uint8)).save(file, format="PNG")


def side_by_side(
    reference: Rendering | npt.NDArray[np.float32], decoded: Rendering | npt.NDArray[np.float32], *, gap_px: int = 4
) -> npt.NDArray[np.float32]:
    """Original, decoded and their difference (absolute, times 8, clamped) from left to right.

    Args:
        reference, decoded: pictures of the same size, (H, W, 3) display values or Renderings (shown on black).
        gap_px: width of the grey bars between the panels.

    Returns:
        (H, 3 W + 2 gap_px, 3) float32, 0..1.

    Raises:
        ParameterError: the sizes differ.
    """
    panels = [
        np.clip(picture.over(0.0) if isinstance(picture, Rendering) else np.asarray(picture, np.float32), 0.0, 1.0)
        for picture in (reference, decoded)
    ]
    if panels[0].shape != panels[1].shape or panels[0].ndim != 3:
        raise ParameterError(f"pictures of shapes {panels[0].shape} and {panels[1].shape} cannot be compared")
    error = np.minimum(np.abs(panels[0] - panels[1]) * np.float32(ERROR_GAIN), np.float32(1.0))
    gap = np.full((panels[0].shape[0], gap_px, 3), 0.5, np.float32)
    return np.concatenate([panels[0], gap, panels[1], gap, error], axis=1)
