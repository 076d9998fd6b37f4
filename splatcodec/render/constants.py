"""The numbers that define a picture: shared by every renderer, so that they can be compared with one another."""

from __future__ import annotations

__all__ = [
    "ALPHA_MAX",
    "ALPHA_MIN",
    "COLOUR_MAX",
    "FRUSTUM_MARGIN",
    "LOG_SCALE_MAX",
    "LOW_PASS_PX2",
    "TILE_PX",
    "TRANSMITTANCE_MIN",
]

#: A contribution fainter than this is not drawn.
ALPHA_MIN = 1.0 / 255.0
#: No Gaussian is more opaque than this at a pixel.
ALPHA_MAX = 0.99
#: A pixel is finished before a Gaussian that would take its transmittance below this.
TRANSMITTANCE_MIN = 1e-4
#: Added to both diagonal entries of the 2-D covariance: every Gaussian is at least about half a pixel wide.
LOW_PASS_PX2 = 0.3
#: x/z and y/z are clamped to the picture's edge plus this share of tan(fov/2) where the projection is linearised.
FRUSTUM_MARGIN = 0.3
#: Side of the screen tiles of the fast renderers. Does not change the picture.
TILE_PX = 16
#: Log scales above this are drawn as if they were this: an even veil at any distance.
LOG_SCALE_MAX = 80.0
#: Colours above this are drawn as if they were this, so that no picture holds infinities.
COLOUR_MAX = 1e6
