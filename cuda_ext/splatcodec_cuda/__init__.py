"""The compiled CUDA kernels of splatcodec; `splatcodec.render.cuda` finds and calls them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["library_path"]


def library_path() -> Path:
    """Where the shared library is."""
    return Path(__file__).with_name("libsplatcodec_cuda.so")
