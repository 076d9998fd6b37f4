"""splatcodec: compression of 3D Gaussian Splatting scenes."""

from .version import __version__

__all__ = ["__version__"]
