"""PNG files as bytes, for pictures and reports."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

__all__ = ["png_bytes"]


def png_bytes(rgb: npt.NDArray[np.floating]) -> bytes:
    """An 8-bit PNG of (H, W, 3) display values, clamped to 0..1."""
    from PIL import Image

    values = np.clip(np.nan_to_num(np.asarray(rgb), nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    file = io.BytesIO()
    Image.fromarray((values * 255.0 + 0.5).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()
