"""What a file format is to the rest of splatcodec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..gaussians import Gaussians
from ..limits import Limits

__all__ = ["HEAD_BYTES", "Format"]

# How much of a file's beginning `Format.sniff` is shown.
HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Format:
    """One file format; a module of this package offers it as `FORMAT`.

    Attributes:
        name: short name, as in `read(path, format=name)`.
        title: name for people.
        suffixes: lower-case endings of file names, the usual one first.
        read: (path, limits) -> Gaussians, raw as in `Gaussians`. Raises only SplatCodecError, and OSError while
            reading, which `splatcodec.formats.read` translates.
        write: (gaussians, file) -> None; None where the format can only be read.
        sniff: (head, path) -> whether the first bytes (`HEAD_BYTES` at most; none for a directory) are this format's.
            Of one file at most one format may say yes.
        has_magic: whether every file of the format can be sniffed. If not, the suffix decides.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Limits], Gaussians]
    write: Callable[[Gaussians, BinaryIO], None] | None
    sniff: Callable[[bytes, Path], bool]
    has_magic: bool = True
