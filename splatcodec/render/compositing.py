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
from .projection import CUT, L11, L21, L22, MX, MY, OPACITY

__all__ = [
    "CONTRIBUTION_STATE",
    "GRADIENT_STATE",
    "GRADIENT_SUMS",
    "PARTIALS",
    "PICTURE_STATE",
    "RESTORATION_STATE",
    "add_partials",
    "composite_tiles",
    "contribute_tiles",
    "differentiate_tiles",
    "finish_statistics",
    "gather_tiles",
    "init_contributions",
    "init_gradients",
    "init_restoration",
    "init_tiles",
    "restore_tiles",
    "tile_picture",
    "untile",
]

# Pixels of a tile.
PLANE = TILE_PX * TILE_PX
# Planes of a picture's state: T, red, green, blue; while contributions are measured also the finished picture.
PICTURE_STATE = 4 * PLANE
CONTRIBUTION_STATE = 7 * PLANE
# While restoration is measured also what the picture lacks.
RESTORATION_STATE = 10 * PLANE
# What `contribute_tiles` writes for every (tile, Gaussian): sum w, sum w^2, max w, hits, then with g = |alpha e|^2
# sum g, sum g m, sum g m^2.
PARTIALS = 7
# Planes of the backward pass: T, the loss that is still to come (S), its gradients by red, green, blue and depth.
GRADIENT_STATE = 6 * PLANE
# What `differentiate_tiles` writes for every (tile, Gaussian), with h = alpha dL/dalpha and (u, v) the pixel's whitened
# offset: sums of w g (red, green, blue, depth), h, h u, h u u, h v, h u v, h v v, and of |dL/d mean| (x, y).
GRADIENT_SUMS = 12

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
_P4, _P5, _P6 = np.uint64(4 * PLANE), np.uint64(5 * PLANE), np.uint64(6 * PLANE)
_P7, _P8, _P9 = np.uint64(7 * PLANE), np.uint64(8 * PLANE), np.uint64(9 * PLANE)
_A1, _A2, _A3 = np.uint64(TILE_PX), np.uint64(2 * TILE_PX), np.uint64(3 * TILE_PX)
_A4, _A5, _A6 = np.uint64(4 * TILE_PX), np.uint64(5 * TILE_PX), np.uint64(6 * TILE_PX)
_A7, _A8, _A9 = np.uint64(7 * TILE_PX), np.uint64(8 * TILE_PX), np.uint64(9 * TILE_PX)
_A10, _A11 = np.uint64(10 * TILE_PX), np.uint64(11 * TILE_PX)
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
    """Fill (tiles, 4 * 256) state: T = 1 inside of the picture, finished outside, black."""
    for tile in range(len(state)):
        tile_x, tile_y = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
        state[tile] = 0.0
        for y in range(TILE_PX):
            for x in range(TILE_PX):
                inside = tile_x + x < width and tile_y + y < height
                state[tile, y * TILE_PX + x] = 1.0 if inside else -1.0


@kernel
def tile_picture(picture, tiles_x, state):
    """Write a picture (H, W, 3) into the colour planes of state."""
    height, width, _ = picture.shape
    for y in range(height):
        for x in range(width):
            tile = (y // TILE_PX) * tiles_x + x // TILE_PX
            at = (y % TILE_PX) * TILE_PX + x % TILE_PX
            for channel in range(3):
                state[tile, at + (channel + 1) * PLANE] = picture[y, x, channel]


@kernel
def untile(state, tiles_x, background, rgb, alpha):
    """Write state as a picture over `background`: rgb (H, W, 3) and alpha (H, W) float32."""
    height, width = alpha.shape
    for y in range(height):
        for x in range(width):
            tile = (y // TILE_PX) * tiles_x + x // TILE_PX
            at = (y % TILE_PX) * TILE_PX + x % TILE_PX
            t = abs(state[tile, at])
            alpha[y, x] = _ONE - t
            for channel in range(3):
                rgb[y, x, channel] = state[tile, at + (channel + 1) * PLANE] + t * background[channel]


@kernel
def _all_finished(state):
    live = 0
    for i in range(PLANE):
        live += 1 if state[i] > _ZERO else 0
    return live == 0


@kernel
def composite_tiles(first_tile, last_tile, tiles_x, records, colours, starts, entries, states, finished):
    """Blend the listed Gaussians into `states` (tiles, 4 * 256); set `finished` where no pixel is left."""
    for tile in range(first_tile, last_tile):
        tile_x, tile_y = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
        state = states[tile]
        for k in range(starts[tile], starts[tile + 1]):
            rank = entries[k]
            record = records[rank]
            first, last = _rows_of(record, tile_y)
            l11, l21, l22, opacity = record[L11], record[L21], record[L22], record[OPACITY]
            red, green, blue = colours[rank, 0], colours[rank, 1], colours[rank, 2]
            left = np.float32(tile_x) + _HALF - record[MX]
            for row in range(first, last):
                dy = np.float32(tile_y + row) + _HALF - record[MY]
                skew = l21 * dy
                vv = (l22 * dy) * (l22 * dy)
                for x in range(TILE_PX):
                    u = l11 * (left + np.float32(np.int32(x))) + skew
                    alpha = _alpha(u * u + vv, opacity)
                    # Unsigned: no test for negative indices, so that the loop becomes vector instructions.
                    i = np.uint64(row * TILE_PX + x)
                    t = state[i]
                    after = t * (_ONE - alpha)
                    drawn = after >= _T_MIN
                    w = alpha * t if drawn else _ZERO
                    state[i] = after if drawn else -abs(t)
                    state[i + _P1] += w * red
                    state[i + _P2] += w * green
                    state[i + _P3] += w * blue
            if k % _CHECK_EVERY == 0 and _all_finished(state):
                break
        finished[tile] = _all_finished(state)


@kernel
def init_contributions(pictures, background, width, height, tiles_x, states):
    """Fill (tiles, 7 * 256) states for `contribute_tiles`: blank, and the finished pictures over grey `background`."""
    init_tiles(states, width, height, tiles_x)
    for tile in range(len(states)):
        for i in range(PLANE):
            behind = abs(pictures[tile, i]) * background
            for plane in range(1, 4):
                states[tile, (plane + 3) * PLANE + i] = pictures[tile, plane * PLANE + i] + behind


@kernel
def contribute_tiles(first_tile, last_tile, tiles_x, records, colours, starts, entries, states, finished, partials):
    """As `composite_tiles`, and for every entry write its statistics over the tile to `partials` (E, PARTIALS)."""
    # One sum for each pixel column, in float32, then all columns in order: the same numbers on any machine.
    columns = np.empty(PARTIALS * TILE_PX, np.float32)
    for tile in range(first_tile, last_tile):
        tile_x, tile_y = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
        state = states[tile]
        done = _all_finished(state)
        for k in range(starts[tile], starts[tile + 1]):
            if done:
                partials[k] = 0.0
                continue
            rank = entries[k]
            record = records[rank]
            first, last = _rows_of(record, tile_y)
            l11, l21, l22, opacity = record[L11], record[L21], record[L22], record[OPACITY]
            red, green, blue = colours[rank, 0], colours[rank, 1], colours[rank, 2]
            left = np.float32(tile_x) + _HALF - record[MX]
            columns[:] = _ZERO
            for row in range(first, last):
                dy = np.float32(tile_y + row) + _HALF - record[MY]
                skew = l21 * dy
                vv = (l22 * dy) * (l22 * dy)
                for x in range(TILE_PX):
                    u = l11 * (left + np.float32(np.int32(x))) + skew
                    m = u * u + vv
                    alpha = _alpha(m, opacity)
                    i = np.uint64(row * TILE_PX + x)
                    t = state[i]
                    after = t * (_ONE - alpha)
                    drawn = after >= _T_MIN
                    alpha = alpha if drawn else _ZERO
                    w = alpha * abs(t)
                    state[i] = after if drawn else -abs(t)
                    r, g, b = w * red, w * green, w * blue
                    so_far_r, so_far_g, so_far_b = state[i + _P1] + r, state[i + _P2] + g, state[i + _P3] + b
                    state[i + _P1], state[i + _P2], state[i + _P3] = so_far_r, so_far_g, so_far_b
                    # alpha e = what the picture loses if this Gaussian goes: its own light, less what it hid.
                    share = alpha / (_ONE - alpha)
                    r -= share * (state[i + _P4] - so_far_r)
                    g -= share * (state[i + _P5] - so_far_g)
                    b -= share * (state[i + _P6] - so_far_b)
                    loss = r * r + g * g + b * b
                    far = loss * m
                    c = np.uint64(x)
                    columns[c] += w
                    columns[c + _A1] += w * w
                    columns[c + _A2] = max(columns[c + _A2], w)
                    columns[c + _A3] += _ONE if alpha > _ZERO else _ZERO
                    columns[c + _A4] += loss
                    columns[c + _A5] += far
                    columns[c + _A6] += far * m
            for kind in range(PARTIALS):
                total = _ZERO
                for x in range(TILE_PX):
                    value = columns[kind * TILE_PX + x]
                    total = max(total, value) if kind == 2 else total + value
                partials[k, kind] = total
            if k % _CHECK_EVERY == 0:
                done = _all_finished(state)
        finished[tile] = _all_finished(state)


@kernel
def init_restoration(wanted, pictures, background, width, height, tiles_x, states):
    """Fill (tiles, 10 * 256) states for `restore_tiles`: as `init_contributions`, and `wanted` less `pictures`."""
    init_contributions(pictures, background, width, height, tiles_x, states)
    for tile in range(len(states)):
        for i in range(PLANE):
            more = (abs(wanted[tile, i]) - abs(pictures[tile, i])) * background
            for plane in range(1, 4):
                lack = wanted[tile, plane * PLANE + i] - pictures[tile, plane * PLANE + i]
                states[tile, (plane + 6) * PLANE + i] = lack + more


@kernel
def restore_tiles(
    first_tile, last_tile, tiles_x, records, colours, absent, starts, entries, states, finished, partials
):
    """As `composite_tiles` of all but the `absent` (V,); for these write what drawing each would mend (E, 1).

    With d the change of the picture by drawing it alone and r what the picture lacks: the sum of |r|^2 - |r - d|^2.
    """
    columns = np.empty(TILE_PX, np.float32)
    for tile in range(first_tile, last_tile):
        tile_x, tile_y = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
        state = states[tile]
        done = _all_finished(state)
        for k in range(starts[tile], starts[tile + 1]):
            partials[k] = 0.0
            if done:
                continue
            rank = entries[k]
            record = records[rank]
            first, last = _rows_of(record, tile_y)
            l11, l21, l22, opacity = record[L11], record[L21], record[L22], record[OPACITY]
            red, green, blue = colours[rank, 0], colours[rank, 1], colours[rank, 2]
            left = np.float32(tile_x) + _HALF - record[MX]
            columns[:] = _ZERO
            for row in range(first, last):
                dy = np.float32(tile_y + row) + _HALF - record[MY]
                skew = l21 * dy
                vv = (l22 * dy) * (l22 * dy)
                if absent[rank]:
                    for x in range(TILE_PX):
                        u = l11 * (left + np.float32(np.int32(x))) + skew
                        alpha = _alpha(u * u + vv, opacity)
                        i = np.uint64(row * TILE_PX + x)
                        t = state[i]
                        alpha = alpha if t * (_ONE - alpha) >= _T_MIN else _ZERO
                        w = alpha * abs(t)
                        # Its own light, less what it would hide.
                        r = w * red - alpha * (state[i + _P4] - state[i + _P1])
                        g = w * green - alpha * (state[i + _P5] - state[i + _P2])
                        b = w * blue - alpha * (state[i + _P6] - state[i + _P3])
                        columns[np.uint64(x)] += (
                            r * (state[i + _P7] + state[i + _P7] - r)
                            + g * (state[i + _P8] + state[i + _P8] - g)
                            + b * (state[i + _P9] + state[i + _P9] - b)
                        )
                else:
                    for x in range(TILE_PX):
                        u = l11 * (left + np.float32(np.int32(x))) + skew
                        alpha = _alpha(u * u + vv, opacity)
                        i = np.uint64(row * TILE_PX + x)
                        t = state[i]
                        after = t * (_ONE - alpha)
                        drawn = after >= _T_MIN
                        w = alpha * t if drawn else _ZERO
                        state[i] = after if drawn else -abs(t)
                        state[i + _P1] += w * red
                        state[i + _P2] += w * green
                        state[i + _P3] += w * blue
            if absent[rank]:
                total = _ZERO
                for x in range(TILE_PX):
                    total += columns[x]
                partials[k, 0] = total
            if k % _CHECK_EVERY == 0:
                done = _all_finished(state)
        finished[tile] = _all_finished(state)


@kernel
def gather_tiles(first_tile, last_tile, tiles_x, records, starts, entries, states, finished, partials):
    """For every entry write the sum over the tile of w times the state's colour planes to `partials` (E, 3)."""
    columns = np.empty(3 * TILE_PX, np.float32)
    for tile in range(first_tile, last_tile):
        tile_x, tile_y = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
        state = states[tile]
        done = _all_finished(state)
        for k in range(starts[tile], starts[tile + 1]):
            if done:
                partials[k] = 0.0
                continue
            record = records[entries[k]]
            first, last = _rows_of(record, tile_y)
            l11, l21, l22, opacity = record[L11], record[L21], record[L22], record[OPACITY]
            left = np.float32(tile_x) + _HALF - record[MX]
            columns[:] = _ZERO
            for row in range(first, last):
                dy = np.float32(tile_y + row) + _HALF - record[MY]
                skew = l21 * dy
                vv = (l22 * dy) * (l22 * dy)
                for x in range(TILE_PX):
                    u = l11 * (left + np.float32(np.int32(x))) + skew
                    alpha = _alpha(u * u + vv, opacity)
                    i = np.uint64(row * TILE_PX + x)
                    t = state[i]
                    after = t * (_ONE - alpha)
                    drawn = after >= _T_MIN
                    w = alpha * t if drawn else _ZERO
                    state[i] = after if drawn else -abs(t)
                    c = np.uint64(x)
                    columns[c] += w * state[i + _P1]
                    columns[c + _A1] += w * state[i + _P2]
                    columns[c + _A2] += w * state[i + _P3]
            for channel in range(3):
                total = _ZERO
                for x in range(TILE_PX):
                    total += columns[channel * TILE_PX + x]
                partials[k, channel] = total
            if k % _CHECK_EVERY == 0:
                done = _all_finished(state)
        finished[tile] = _all_finished(state)


@kernel
def init_gradients(pictures, depths, background, rgb, alpha, depth, width, height, tiles_x, states):
    """Fill (tiles, 6 * 256) states for `differentiate_tiles` from the finished picture and the loss gradients.

    Args:
        pictures: (tiles, 4 * 256) states after blending the colours.
        depths: the same after blending (z, 0, 0), or (0, ...) where depth has no gradient.
        background: (3,) float32.
        rgb, alpha, depth: (H, W, 3), (H, W) and (H, W) float32 loss gradients; depth may be empty.

    Returns:
        (3,) float64, the loss gradient by the background.
    """
    init_tiles(states, width, height, tiles_x)
    behind = np.zeros(3)
    with_depth = len(depths) > 0
    for y in range(height):
        for x in range(width):
            tile = (y // TILE_PX) * tiles_x + x // TILE_PX
            at = (y % TILE_PX) * TILE_PX + x % TILE_PX
            left = abs(pictures[tile, at])
            total = -left * alpha[y, x]
            for channel in range(3):
                g = rgb[y, x, channel]
                states[tile, (channel + 2) * PLANE + at] = g
                total += g * (pictures[tile, (channel + 1) * PLANE + at] + left * background[channel])
                behind[channel] += np.float64(g) * np.float64(left)
            if with_depth:
                states[tile, 5 * PLANE + at] = depth[y, x]
                total += depth[y, x] * depths[tile, PLANE + at]
            states[tile, PLANE + at] = total
    return behind


@kernel
def differentiate_tiles(first_tile, last_tile, tiles_x, records, colours, zs, starts, entries, states, finished, sums):
    """Walk front to back once more; for every entry write the loss gradients over the tile to `sums` (E, 12).

    With q = dL/dw what a Gaussian adds to the loss for each unit of its weight w = alpha T, and S the sum of w q over
    all behind it and the background, dL/dalpha = T q - S / (1 - alpha): S starts as the whole picture and shrinks.
    """
    columns = np.empty(GRADIENT_SUMS * TILE_PX, np.float32)
    for tile in range(first_tile, last_tile):
        tile_x, tile_y = (tile % tiles_x) * TILE_PX, (tile // tiles_x) * TILE_PX
        state = states[tile]
        done = _all_finished(state)
        for k in range(starts[tile], starts[tile + 1]):
            if done:
                sums[k] = 0.0
                continue
            rank = entries[k]
            record = records[rank]
            first, last = _rows_of(record, tile_y)
            l11, l21, l22, opacity = record[L11], record[L21], record[L22], record[OPACITY]
            red, green, blue, z = colours[rank, 0], colours[rank, 1], colours[rank, 2], zs[rank]
            left = np.float32(tile_x) + _HALF - record[MX]
            columns[:] = _ZERO
            for row in range(first, last):
                dy = np.float32(tile_y + row) + _HALF - record[MY]
                skew = l21 * dy
                v = l22 * dy
                vv = v * v
                by_v = l22 * v
                for x in range(TILE_PX):
                    u = l11 * (left + np.float32(np.int32(x))) + skew
                    alpha = _alpha(u * u + vv, opacity)
                    i = np.uint64(row * TILE_PX + x)
                    t = state[i]
                    after = t * (_ONE - alpha)
                    drawn = after >= _T_MIN
                    alpha = alpha if drawn else _ZERO
                    t = abs(t)
                    state[i] = after if drawn else -t
                    w = alpha * t
                    g_red, g_green, g_blue, g_z = state[i + _P2], state[i + _P3], state[i + _P4], state[i + _P5]
                    q = red * g_red + green * g_green + blue * g_blue + z * g_z
                    behind = state[i + _P1] - w * q
                    state[i + _P1] = behind
                    h = w * q - alpha * behind / (_ONE - alpha)
                    # Where alpha is held at its limit, it does not follow the Gaussian's shape or opacity.
                    h = h if alpha < _ALPHA_MAX else _ZERO
                    hu, hv = h * u, h * v
                    c = np.uint64(x)
                    columns[c] += w * g_red
                    columns[c + _A1] += w * g_green
                    columns[c + _A2] += w * g_blue
                    columns[c + _A3] += w * g_z
                    columns[c + _A4] += h
                    columns[c + _A5] += hu
                    columns[c + _A6] += hu * u
                    columns[c + _A7] += hv
                    columns[c + _A8] += hv * u
                    columns[c + _A9] += hv * v
                    columns[c + _A10] += abs(hu * l11)
                    columns[c + _A11] += abs(hu * l21 + h * by_v)
            for kind in range(GRADIENT_SUMS):
                total = _ZERO
                for x in range(TILE_PX):
                    total += columns[kind * TILE_PX + x]
                sums[k, kind] = total
            if k % _CHECK_EVERY == 0:
                done = _all_finished(state)
        finished[tile] = _all_finished(state)


@kernel
def add_partials(first_rank, last_rank, entries, partials, maximum, sums):
    """Add the partials of each rank in first..last to `sums` (V, kinds) float64, tile after tile.

    Column `maximum` is the largest instead of the sum (none if negative).
    """
    for k in range(len(entries)):
        rank = entries[k]
        if rank < first_rank or rank >= last_rank:
            continue
        for kind in range(sums.shape[1]):
            value = np.float64(partials[k, kind])
            if kind == maximum:
                sums[rank, kind] = max(sums[rank, kind], value)
            else:
                sums[rank, kind] += value


@kernel
def finish_statistics(first_rank, last_rank, ids, sums, rhos, depths, focal_px, totals, hits, pixel_sizes):
    """Add one view's sums (V, PARTIALS) to the scene's totals (N, 6), hits (N,) and finest pixels (N,)."""
    for rank in range(first_rank, last_rank):
        if not sums[rank, 3] > 0.0:
            continue
        i = ids[rank]
        rho = np.float64(rhos[rank])
        totals[i, 0] = max(totals[i, 0], sums[rank, 2])
        totals[i, 1] += sums[rank, 0]
        totals[i, 2] += sums[rank, 1]
        totals[i, 3] += sums[rank, 4]
        totals[i, 4] += sums[rank, 5] * rho
        totals[i, 5] += sums[rank, 6] * rho * rho / 4.0
        hits[i] += np.int64(sums[rank, 3])
        pixel_sizes[i] = min(pixel_sizes[i], np.float64(depths[rank]) / focal_px)
