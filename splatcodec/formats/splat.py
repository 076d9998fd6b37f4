"""`.splat` files of the antimatter15 viewer: 32 bytes a Gaussian, no header, no SH beyond degree 0.

A record is little endian: position (3 float32), linear scale (3 float32), red, green, blue and alpha (bytes of the
display colour), quaternion w, x, y, z (bytes, 128 + 128 q). Facts: antimatter15/splat `convert.py` and `main.js`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import TruncatedError
from ..files import open_for_reading
from ..gaussians import SH_C0, Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ._packing import logits_of_alpha_bytes
from ._records import file_size, read_blocks
from .base import Format

__all__ = ["FORMAT", "read"]

_RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a `.splat` file; colours and quaternions are off by up to half a step of 1/255 and 1/128.

    Raises:
        TruncatedError: the size is zero or not a multiple of 32 bytes.
        LimitExceededError: more Gaussians than `limits` allows.
    """
    with open_for_reading(path) as handle:
        size_bytes = file_size(handle)
        count, rest = divmod(size_bytes, _RECORD.itemsize)
        if rest or not count:
            raise TruncatedError(
                f"{size_bytes} bytes are not a whole number of records of {_RECORD.itemsize} bytes",
                offset=size_bytes - rest,
            )
        limits.check_gaussians(count)
        limits.check_bytes(count * 14 * 4, "the scene")
        means = np.empty((count, 3), np.float32)
        scales = np.empty((count, 3), np.float32)
        quats = np.empty((count, 4), np.float32)
        opacities = np.empty(count, np.float32)
        sh0 = np.empty((count, 1, 3), np.float32)
        sh0_table = ((np.arange(256) / 255 - 0.5) / SH_C0).astype(np.float32)
        quat_table = ((np.arange(256) - 128) / 128).astype(np.float32)
        for rows, block in read_blocks(handle, _RECORD, count):
            means[rows] = block["mean"]
            # A scale of zero is a flat Gaussian (-inf); a negative one is nonsense and becomes NaN for `cleaned`.
            with np.errstate(divide="ignore", invalid="ignore"):
                np.log(block["scale"], out=scales[rows])
            rgba = block["rgba"]
            sh0[rows, 0] = sh0_table[rgba[:, :3]]
            opacities[rows] = logits_of_alpha_bytes(rgba[:, 3])
            quats[rows] = quat_table[block["quat"]]
    return Gaussians(means=means, quats=quats, scales=scales, opacities=opacities, sh0=sh0)


FORMAT = Format(
    name="splat",
    title=".splat (antimatter15)",
    suffixes=(".splat",),
    read=read,
    write=None,
    sniff=lambda head, path: False,
    has_magic=False,
)
