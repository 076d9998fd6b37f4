"""Lossless WebP, to the byte, through Pillow."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..errors import BackendUnavailableError, FormatError, SplatCodecError, TruncatedError, UnsupportedError

__all__ = ["decode_webp", "encode_webp", "webp_size"]

_PILLOW_LOCK = threading.Lock()


def encode_webp(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A lossless image of (H, W, 4) pixels; `exact`, or the RGB under alpha 0 would be rewritten."""
    from PIL import Image

    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels), "RGBA")
    image.save(file, "WEBP", lossless=True, exact=True, method=4, quality=75)
    return file.getvalue()


def webp_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height from a WebP header, before any decoder sees it; the layout is that of RFC 9649."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise FormatError("not a WebP image", chunk=name, offset=0)
    stated = 8 + int.from_bytes(content[4:8], "little")
    if stated > len(content):
        raise TruncatedError(f"the image needs {stated} bytes, there are {len(content)}", chunk=name)
    if stated + 1 < len(content):
        raise FormatError("there are bytes after the image", chunk=name, offset=stated)
    chunks: dict[bytes, int] = {}
    at = 12
    while at + 8 <= stated:
        chunks.setdefault(content[at : at + 4], at + 8)
        size_bytes = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size_bytes + size_bytes % 2
    if b"VP8 " in chunks:
        raise UnsupportedError("lossy WebP: the values in it are lost", chunk=name)
    if b"ANMF" in chunks or b"VP8L" not in chunks:
        raise FormatError("not one lossless WebP image", chunk=name)
    start = chunks[b"VP8L"]
    bits = int.from_bytes(content[start + 1 : start + 5], "little")
    size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if b"VP8X" in chunks:
        start = chunks[b"VP8X"]
        canvas = tuple(int.from_bytes(content[start + i : start + i + 3], "little") + 1 for i in (4, 7))
        if canvas != size:
            raise FormatError("the image does not fill its canvas", chunk=name)
    return size


def decode_webp(content: bytes, name: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(H, W, 4) pixels of a WebP image whose size has been checked."""
    from PIL import WebPImagePlugin

    if not getattr(WebPImagePlugin, "SUPPORTED", True):
        raise BackendUnavailableError("this Pillow was built without WebP", hint="pip install --upgrade pillow")
    try:
        # The plugin itself, not Image.open, so that no other decoder is tried.
        with _pillow_allows(size[0] * size[1]):
            opened = WebPImagePlugin.WebPImageFile(io.BytesIO(content))
        with opened as image:
            if image.size != size or getattr(image, "n_frames", 1) != 1:
                raise FormatError("the image is not the one its header describes", chunk=name)
            pixels = np.asarray(image.convert("RGBA"))
    except (SplatCodecError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds on damaged images
        raise FormatError(f"damaged WebP image: {error}", chunk=name) from None
    return pixels


@contextlib.contextmanager
def _pillow_allows(pixels: int) -> Iterator[None]:
    """Raise Pillow's limit on pixels, smaller than large scenes need, while an image whose size is checked is opened.

    The limit is the whole process's, so it is touched only where it must be, and never lowered.
    """
    from PIL import Image

    with _PILLOW_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and limit < pixels:
            Image.MAX_IMAGE_PIXELS = pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
