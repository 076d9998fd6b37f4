"""Limits that keep a hostile file from asking for memory out of proportion to its size."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import LimitExceededError

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """What a reader may allocate.

    Attributes:
        max_gaussians: most Gaussians in one scene.
        max_array_bytes: most bytes of decoded arrays in one scene.
        max_json_bytes: most bytes of JSON text (metadata, manifests) that are parsed.
        max_header_bytes: most bytes of a PLY header.
        max_image_pixels: most pixels of one texture (SOG).
    """

    max_gaussians: int = 1 << 28
    max_array_bytes: int = 1 << 37
    max_json_bytes: int = 16 << 20
    max_header_bytes: int = 1 << 20
    max_image_pixels: int = 1 << 28

    def check_gaussians(self, count: int, *, file: str | None = None, chunk: str | None = None) -> None:
        """Raise LimitExceededError if a scene of `count` Gaussians is not allowed."""
        if count > self.max_gaussians:
            raise LimitExceededError(
                f"{count} Gaussians, more than the limit of {self.max_gaussians}", file=file, chunk=chunk
            )

    def check_bytes(self, size_bytes: int, what: str, *, file: str | None = None, chunk: str | None = None) -> None:
        """Raise LimitExceededError if `size_bytes` of decoded arrays are not allowed."""
        if size_bytes > self.max_array_bytes:
            raise LimitExceededError(
                f"{what} needs {size_bytes} bytes, more than the limit of {self.max_array_bytes}",
                file=file,
                chunk=chunk,
            )


DEFAULT_LIMITS = Limits()
