"""Tile kernels of the CPU renderer: blending front to back, and the statistics and adjoints that follow the same path.

A tile's state is planes of 256 float32, one value a pixel: transmittance T and then red, green, blue. T is kept
negative once a pixel is finished (or outside of the picture): the next factor then never passes the threshold, so the
innermost loops need no branches and compile to vector instructions.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math

import numpy as np

from .constants import ALPHA_MAX, ALPHA_MIN, TILE_PX, TRANSMITTANCE_MIN
from .kernel import kernel
from .projection import BLUE, CUT, GREEN, L11, L21, L22, MX, MY, OPACITY, RED

__all__ = ["PLANE", "PLANES", "STATE", "composite_tiles", "init_tiles", "untile"]

PLANE = TILE_PX * TILE_PX
PLANES = 4
STATE = PLANES * PLANE

_ALPHA_MIN = np.float32(ALPHA_MIN)
_ALPHA_MAX = np.float32(ALPHA_MAX)
_T_MIN = np.float32(TRANSMITTANCE_MIN)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
# exp(-t) on 0..1.5 within 2e-8 (relative), least maximum error; the fourth power then covers 0..6.
_E0, _E1, _E2, _E3 = (
    np.float32(0.999999981),
    np.float32(-0.999998608),
    np.float32(0.499982611),
    np.float32(-0.166581173),
)
_E4, _E5 = np.float32(0.0414544614), np.float32(-0.00803892285)
_E6, _E7 = np.float32(0.00115336386), np.float32(-0.0000922692178)
_EIGHTH = np.float32(0.125)
_M_MAX = np.float32(12.0)  # exp(-6) is below ALPHA_MIN
_P1, _P2, _P3 = np.uint64(PLANE), np.uint64(2 * PLANE), np.uint64(3 * PLANE)
# Every so many Gaussians a tile is asked whether all its pixels are finished.
_CHECK_EVERY = 8


@kernel
def _alpha(m, opacity):
    """opacity * exp(-m / 2), at most ALPHA_MAX, or 0 where that is below ALPHA_MIN."""
    t = min(m, _M_MAX) * _EIGHTH
    e = _E0 + t * (_E1 + t * (_E2 + t * (_E3 + t * (_E4 + t * (_E5 + t * (_E6 + t * _E7))))))
    e = e * e
    alpha = min(_ALPHA_MAX, opacity * (e * e))
    return alpha if alpha >= _ALPHA_MIN else _ZERO


@kernel
def _rows_of(record, tile_y):
    """First and one-past-last pixel row of the tile (0..16) that the ellipse reaches."""
    reach = math.sqrt(record[CUT]) / record[L22] + 0.01
    top = record[MY] - tile_y - reach - 0.5
    bottom = record[MY] - tile_y + reach - 0.5
    return math.ceil(min(max(top, 0.0), 16.0)), math.floor(min(max(bottom, -1.0), 15.0)) + 1


@kernel
def init_tiles(state, width, height, tiles_x):
    """Fill (tiles * planes * 256,) state: T = 1 inside of the picture, finished outside, black."""
    for tile in range(len(state) // STATE):
        tile_x, tile_y = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
        base = tile * STATE
        for i in range(STATE):
            state[base + i] = 0.0
        for y in range(TILE_PX):
            for x in range(TILE_PX):
                inside = tile_x + x < width and tile_y + y < height
                state[base + y * TILE_PX + x] = 1.0 if inside else -1.0


@kernel
def _all_finished(state, base):
    live = 0
    for i in range(PLANE):
        live += 1 if state[base + i] > _ZERO else 0
    return live == 0


@kernel
def composite_tiles(first_tile, last_tile, tiles_x, records, starts, entries, state, finished):
    """Blend the listed Gaussians into `state`, tile by tile; set `finished` where no pixel is left."""
    for tile in range(first_tile, last_tile):
        tile_x, tile_y = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
        base = tile * STATE
        for k in range(starts[tile], starts[tile + 1]):
            record = records[entries[k]]
            first, last = _rows_of(record, tile_y)
            l11, l21, l22, opacity = record[L11], record[L21], record[L22], record[OPACITY]
            red, green, blue = record[RED], record[GREEN], record[BLUE]
            left = np.float32(tile_x) + _HALF - record[MX]
            for row in range(first, last):
                dy = np.float32(tile_y + row) + _HALF - record[MY]
                skew = l21 * dy
                vv = (l22 * dy) * (l22 * dy)
                at = base + row * TILE_PX
                for x in range(TILE_PX):
                    u = l11 * (left + np.float32(np.int32(x))) + skew
                    alpha = _alpha(u * u + vv, opacity)
                    i = np.uint64(at + x)  # unsigned: no test for negative indices, so the loop becomes vectors
                    t = state[i]
                    after = t * (_ONE - alpha)
                    drawn = after >= _T_MIN
                    w = alpha * t if drawn else _ZERO
                    state[i] = after if drawn else -abs(t)
                    state[i + _P1] += w * red
                    state[i + _P2] += w * green
                    state[i + _P3] += w * blue
            if k % _CHECK_EVERY == 0 and _all_finished(state, base):
                break
        finished[tile] = _all_finished(state, base)


@kernel
def untile(state, tiles_x, background, rgb, alpha):
    """Write tile state as a picture over `background`: rgb (H, W, 3) and alpha (H, W) float32."""
    height, width = alpha.shape
    for y in range(height):
        for x in range(width):
            tile = (y // TILE_PX) * tiles_x + x // TILE_PX
            at = tile * STATE + (y % TILE_PX) * TILE_PX + x % TILE_PX
            t = abs(state[at])
            alpha[y, x] = _ONE - t
            for channel in range(3):
                rgb[y, x, channel] = state[at + (channel + 1) * PLANE] + t * background[channel]
