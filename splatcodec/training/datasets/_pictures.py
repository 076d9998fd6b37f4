"""Pictures from files: size checks before decoding, lens distortion taken out, shrinking by area, a bounded cache."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ...errors import FormatError, LimitExceededError, SplatCodecError, UnsupportedError
from ...files import open_for_reading
from ...limits import Limits
from ._lens import Lens

__all__ = ["PictureCache", "PictureSource", "load_picture", "picture_size", "shrink"]

# Only these decoders are tried, whatever the suffix says.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "MPO")
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class PictureSource:
    """How the pixels of a view come from a file.

    Attributes:
        path: the picture file.
        size: its width and height when the data set was read.
        lens: the lens that took it, at that size.
        straight: the lens without distortion; equal to `lens` where there is none.
        background: what goes behind transparent pixels; None: the picture has none.
    """

    path: Path
    size: tuple[int, int]
    lens: Lens
    straight: Lens
    background: tuple[float, float, float] | None


def _open(file: BinaryIO, path: Path) -> Any:
    """A Pillow image whose pixels are not decoded yet."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Pillow only warns about pictures that unpack to gigabytes; here they are refused.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise LimitExceededError(f"the picture is too large: {error}", file=str(path)) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged pictures
        raise FormatError(f"not a picture that can be read: {error}", file=str(path)) from None


def picture_size(path: Path, limits: Limits) -> tuple[int, int, bool]:
    """Width, height and whether there is transparency, from the header alone. EXIF orientation is not applied.

    Raises:
        FormatError: not a picture.
        UnsupportedError: more than 8 bits a channel.
        LimitExceededError: more pixels than are allowed.
        ParameterError: the file cannot be read.
    """
    with open_for_reading(path) as file, _open(file, path) as image:
        width, height = image.size
        if width * height > limits.max_image_pixels:
            raise LimitExceededError(
                f"{width} x {height} pixels, more than the limit of {limits.max_image_pixels}", file=str(path)
            )
        if image.mode in _WIDE_MODES:
            raise UnsupportedError(f"pixels of the kind {image.mode}, only 8 bits a channel are read", file=str(path))
        return width, height, _has_alpha(image)


def _has_alpha(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _decode(source: PictureSource) -> npt.NDArray[np.float32]:
    """(H, W, 3) float32, 0..255, over the background."""
    with open_for_reading(source.path) as file, _open(file, source.path) as image:
        if image.size != source.size:
            raise FormatError(
                f"the picture is now {image.size[0]} x {image.size[1]} pixels, not {source.size[0]} x {source.size[1]}",
                file=str(source.path),
            )
        try:
            pixels = np.asarray(image.convert("RGBA" if source.background is not None else "RGB"), np.float32)
        except (SplatCodecError, MemoryError):
            raise
        except Exception as error:
            raise FormatError(f"damaged picture: {error}", file=str(source.path)) from None
    if source.background is None:
        return pixels
    alpha = pixels[..., 3:] / np.float32(255.0)
    behind = np.float32(255.0) * np.asarray(source.background, np.float32)
    return np.asarray(pixels[..., :3] * alpha + behind * (np.float32(1.0) - alpha), np.float32)


def _straightened(pixels: npt.NDArray[np.float32], lens: Lens, straight: Lens) -> npt.NDArray[np.float32]:
    """Sample the picture of `lens` as `straight` would have taken it, bilinearly."""
    x = (np.arange(straight.width) + 0.5 - straight.cx) / straight.fx
    y = (np.arange(straight.height) + 0.5 - straight.cy) / straight.fy
    bent_x, bent_y = lens.distort(*np.meshgrid(x, y))
    # Pixel centres are at half integers; at the edges the outermost pixel goes on.
    across = np.clip(bent_x * lens.fx + lens.cx - 0.5, 0.0, lens.width - 1.0)
    down = np.clip(bent_y * lens.fy + lens.cy - 0.5, 0.0, lens.height - 1.0)
    left = np.minimum(across.astype(np.int64), max(lens.width - 2, 0))
    top = np.minimum(down.astype(np.int64), max(lens.height - 2, 0))
    u, v = (across - left).astype(np.float32)[..., None], (down - top).astype(np.float32)[..., None]
    right, bottom = np.minimum(left + 1, lens.width - 1), np.minimum(top + 1, lens.height - 1)
    upper = pixels[top, left] * (1 - u) + pixels[top, right] * u
    lower = pixels[bottom, left] * (1 - u) + pixels[bottom, right] * u
    return np.asarray(upper * (1 - v) + lower * v, np.float32)


def shrink(pixels: npt.NDArray[np.floating[Any]], width: int, height: int) -> npt.NDArray[np.float32]:
    """(H, W, C) as (height, width, C) float32, neither side larger: every new pixel is the mean of the area it covers.

    >>> shrink(np.array([[[0.0], [3.0], [6.0]]]), 2, 1)[..., 0].tolist()
    [[1.0, 5.0]]
    """
    result = np.asarray(pixels)
    for axis, count in ((0, height), (1, width)):
        have = result.shape[axis]
        if have == count:
            continue
        # The integral of the row up to any place, by interpolation of its sums; float64, as sums grow long.
        sums = np.concatenate([np.zeros_like(result.take([0], axis)), result], axis=axis).cumsum(axis, np.float64)
        places = np.arange(count + 1) * (have / count)
        below = np.minimum(places.astype(np.int64), have - 1)
        share = (places - below).reshape([-1 if k == axis else 1 for k in range(3)])
        integral = sums.take(below, axis) * (1 - share) + sums.take(below + 1, axis) * share
        result = np.diff(integral, axis=axis) * (count / have)
    return np.asarray(result, np.float32)


def load_picture(source: PictureSource, width: int, height: int) -> npt.NDArray[np.uint8]:
    """The picture of a view, (height, width, 3) uint8, from its file.

    Raises:
        FormatError: the file is damaged, or not the one that was there when the data set was read.
    """
    pixels = _decode(source)
    if source.straight != source.lens:
        pixels = _straightened(pixels, source.lens, source.straight)
    shrunk = shrink(pixels, width, height)
    return np.asarray(np.clip(shrunk + np.float32(0.5), 0.0, 255.0), np.uint8)


class PictureCache:
    """Decoded pictures, those used last, up to so many bytes; may be used from several threads."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._pictures: OrderedDict[tuple[PictureSource, int, int], npt.NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: PictureSource, width: int, height: int) -> npt.NDArray[np.uint8]:
        """`load_picture`, or what it gave before."""
        key = (source, width, height)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        picture = load_picture(source, width, height)
        picture.flags.writeable = False
        with self._lock:
            if key not in self._pictures and picture.nbytes <= self.limit_bytes:
                self._pictures[key] = picture
                self.size_bytes += picture.nbytes
                while self.size_bytes > self.limit_bytes:
                    _, dropped = self._pictures.popitem(last=False)
                    self.size_bytes -= dropped.nbytes
        return picture
