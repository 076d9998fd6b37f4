"""`.splat` files of the antimatter15 viewer: 32 bytes a Gaussian, no header, no SH beyond degree 0.

A record is little endian: position (3 float32), linear scale (3 float32), red, green, blue and alpha (bytes of the
display colour), quaternion w, x, y, z (bytes, 128 + 128 q). Facts: antimatter15/splat `convert.py` and `main.js`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError, TruncatedError
from ..files import open_for_reading
from ..gaussians import SH_C0, Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ._losses import Tally, drawable, lost_bands, lost_extras, lost_gaussians, lost_metadata, out_of_range
from ._packing import alpha_bytes, logits_of_alpha_bytes, rounded, row_blocks
from ._quality import reduced
from ._records import file_size, read_blocks
from .base import BLOCK_ROWS, DEFAULT_OPTIONS, Blocks, ErrorBounds, Format, WriteOptions

__all__ = ["FORMAT", "RECORD", "display_order", "read", "read_stream", "write"]

RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])
_HALF_BYTE = 0.5 / 255
# Linear scales are float32, normal ones.
_MAX_LOG_SCALE = 87.0


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a `.splat` file; colours and quaternions are off by up to half a step of 1/255 and 1/128.

    Raises:
        TruncatedError: the size is zero or not a multiple of 32 bytes.
        LimitExceededError: more Gaussians than `limits` allows.
    """
    with open_for_reading(path) as handle:
        return read_stream(handle, limits)


def read_stream(handle: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """`read` for an open file, also one in memory."""
    return _read_rows(handle, _count(handle, limits))


def _count(handle: BinaryIO, limits: Limits) -> int:
    """Number of records, checked."""
    size_bytes = file_size(handle)
    count, rest = divmod(size_bytes, RECORD.itemsize)
    if rest or not count:
        raise TruncatedError(
            f"{size_bytes} bytes are not a whole number of records of {RECORD.itemsize} bytes",
            offset=size_bytes - rest,
        )
    limits.check_gaussians(count)
    limits.check_bytes(count * 14 * 4, "the scene")
    return count


def _read_rows(handle: BinaryIO, count: int) -> Gaussians:
    """The next `count` records."""
    means = np.empty((count, 3), np.float32)
    scales = np.empty((count, 3), np.float32)
    quats = np.empty((count, 4), np.float32)
    opacities = np.empty(count, np.float32)
    sh0 = np.empty((count, 1, 3), np.float32)
    sh0_table = ((np.arange(256) / 255 - 0.5) / SH_C0).astype(np.float32)
    quat_table = ((np.arange(256) - 128) / 128).astype(np.float32)
    for rows, block in read_blocks(handle, RECORD, count):
        means[rows] = block["mean"]
        # A scale of zero is a flat Gaussian (-inf); a negative one is nonsense and becomes NaN for `cleaned`.
        with np.errstate(divide="ignore", invalid="ignore"):
            np.log(block["scale"], out=scales[rows])
        rgba = block["rgba"]
        sh0[rows, 0] = sh0_table[rgba[:, :3]]
        opacities[rows] = logits_of_alpha_bytes(rgba[:, 3])
        quats[rows] = quat_table[block["quat"]]
    return Gaussians(means=means, quats=quats, scales=scales, opacities=opacities, sh0=sh0)


@contextlib.contextmanager
def open_blocks(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Blocks]:
    """`read`, block by block."""
    with open_for_reading(path) as handle:
        count = _count(handle, limits)

        def rows() -> Iterator[Gaussians]:
            for part in row_blocks(count, BLOCK_ROWS):
                handle.seek(part.start * RECORD.itemsize)
                yield _read_rows(handle, part.stop - part.start)

        yield Blocks(count, 0, rows)


def write(gaussians: Gaussians, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """Write a `.splat` file, the Gaussians that show most first, so that a download in progress shows them.

    Returns:
        What the quality leaves out.

    Raises:
        ParameterError: the scene is empty.
    """
    scene, lost = reduced(gaussians, options, 0, _copy)
    if not len(scene):
        raise ParameterError(".splat cannot hold an empty scene")
    _write(scene, file)
    return lost


def _copy(scene: Gaussians) -> Gaussians:
    """What a reader makes of `scene`."""
    file = io.BytesIO()
    _write(scene, file)
    file.seek(0)
    return read_stream(file)


def _write(scene: Gaussians, file: BinaryIO) -> None:
    records = _records(scene)
    order = _order_of(records)
    for rows in row_blocks(len(records)):
        file.write(records[order[rows]].view(np.uint8).data)


def write_blocks(blocks: Blocks, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write` without a quality, from blocks: 48 bytes a Gaussian are held for the order of the file.

    Raises:
        ParameterError: the scene is empty.
    """
    tally = Tally(lambda scene: _losses(scene.replaced(metadata=blocks.metadata), options))
    records = np.empty(blocks.num_gaussians, RECORD)
    count = 0
    for block in blocks.rows():
        scene = tally.drawable(block)
        records[count : count + len(scene)] = _records(scene)
        count += len(scene)
    if not count:
        raise ParameterError(".splat cannot hold an empty scene")
    order = _order_of(records[:count])
    for rows in row_blocks(count):
        file.write(records[order[rows]].view(np.uint8).data)
    return tally.sentences()


def _records(scene: Gaussians) -> npt.NDArray[np.void]:
    """The rows as they are in the file."""
    block = np.empty(len(scene), RECORD)
    for rows in row_blocks(len(scene)):
        part = scene.selected(rows)
        out = block[rows]
        out["mean"] = part.means
        out["scale"] = np.exp(np.minimum(part.scales.astype(np.float64), _MAX_LOG_SCALE))
        out["rgba"][:, :3] = rounded(part.sh0[:, 0], 255 * SH_C0, 127.5, 0, 255, np.uint8)
        out["rgba"][:, 3] = alpha_bytes(part.opacities)
        quats = part.normalized_quats()
        # A byte has no 128, which would be 1: so the largest component is the negative one.
        top = np.take_along_axis(quats, np.abs(quats).argmax(axis=1)[:, None], axis=1)
        out["quat"] = np.rint(quats * np.where(top > 0, np.float32(-128), np.float32(128)) + 128)
    return block


def display_order(
    x: npt.NDArray[Any], y: npt.NDArray[Any], z: npt.NDArray[Any], opacity: npt.NDArray[Any]
) -> npt.NDArray[np.intp]:
    """(N,) rows by volume times opacity, those that show most first; where that is equal, as they are.

    Args:
        x, y, z: (N,) linear scales as they are in the file. opacity: (N,) bytes.
    """
    with np.errstate(all="ignore"):
        keys = x.astype(np.float64) * y
        keys *= z
        keys *= opacity
    return np.argsort(np.negative(keys, out=keys), kind="stable")


def _order_of(records: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    """The order that viewers expect, by the values in the file, so that it can be found again from them."""
    scales = records["scale"]
    return display_order(scales[:, 0], scales[:, 1], scales[:, 2], records["rgba"][:, 3])


def _losses(gaussians: Gaussians, options: WriteOptions) -> list[str]:
    scene = drawable(gaussians, options)
    return [
        *lost_bands(scene, 0),
        *lost_extras(gaussians),
        *lost_metadata(gaussians, ()),
        *lost_gaussians(gaussians, options),
        *out_of_range("log scales", scene.scales, -_MAX_LOG_SCALE, _MAX_LOG_SCALE),
        *out_of_range("colours", 0.5 + SH_C0 * scene.sh0, -_HALF_BYTE, 1 + _HALF_BYTE),
        "values rounded: colours, opacities and quaternions to 8 bits; order changed",
    ]


def _error_bounds(gaussians: Gaussians, options: WriteOptions) -> ErrorBounds:
    # The four rounding errors of a quaternion also change its length, which is then made one.
    return ErrorBounds(scales=2e-6, alphas=_HALF_BYTE, colours=_HALF_BYTE, quats=1 / 128, max_sh_degree=0)


FORMAT = Format(
    name="splat",
    title=".splat (antimatter15)",
    suffixes=(".splat",),
    read=read,
    write=write,
    sniff=lambda head, path: False,
    has_magic=False,
    losses=_losses,
    error_bounds=_error_bounds,
    takes_quality=True,
    open_blocks=open_blocks,
    write_blocks=write_blocks,
)
