"""splatcodec: compression of 3D Gaussian Splatting scenes.

>>> import splatcodec
>>> callable(splatcodec.compress)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import (
        CompressReport,
        Scene,
        compress,
        compress_file,
        compress_sequence,
        decompress,
        decompress_file,
        open,
        read,
        verify,
        write,
    )
    from .errors import SplatCodecError, SplatCodecWarning
    from .gaussians import Gaussians

_EXPORTS = {
    "api": (
        "CompressReport",
        "Scene",
        "compress",
        "compress_file",
        "compress_sequence",
        "decompress",
        "decompress_file",
        "open",
        "read",
        "verify",
        "write",
    ),
    "errors": ("SplatCodecError", "SplatCodecWarning"),
    "gaussians": ("Gaussians",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [  # noqa: RUF022
    "__version__",
    "CompressReport",
    "Gaussians",
    "Scene",
    "SplatCodecError",
    "SplatCodecWarning",
    "compress",
    "compress_file",
    "compress_sequence",
    "decompress",
    "decompress_file",
    "open",
    "read",
    "verify",
    "write",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `splatcodec --help` and `--version` stay quick.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
