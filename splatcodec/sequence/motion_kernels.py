"""Kernels of motion: the closed loop, coding and decoding of tracks, and frames from them (SPEC.md, 7.6 and 7.7)."""

# mypy: disable-error-code="no-untyped-def, operator"

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ..entropy.adaptive import decode_bit, decode_gamma, encode_bit, encode_gamma
from ..entropy.bits import read_bits, write_bits
from ..entropy.rans import PROB_BITS, PROB_SCALE, RANS_LOW, pack_interval
from ..entropy.tables import BUCKET_BITS, token_bits, token_of, value_of
from ..stages.streams import magnitude_level
from ..stages.transform import exp2_fixed

__all__ = [
    "CELLS",
    "MODELS",
    "TRACKS",
    "decode_motion",
    "emit_motion",
    "place_frame",
    "quantize_tracks",
    "sh_frame",
    "tint_frame",
    "turn_sh",
]

TRACKS = 6
CELLS = 32
MODELS = 696
_NODE, _TRACK, _LIFE, _BIRTH, _DEATH, _EVENT, _EVENTS, _WAIT, _KIND, _DELTA = (
    8, 72, 168, 176, 240, 304, 312, 376, 440, 504,
)  # fmt: skip
_LIMIT = 1 << 24
_NONE_NEAR = 7
_FIRST_EVENT_TRACK = 3
_ONE = 4096.0


@njit(cache=True, inline="always")
def _own_level(own):
    """0..3 of a sum of two residuals' magnitudes."""
    return 0 if own == 0 else (1 if own < 3 else (2 if own < 7 else 3))


@njit(cache=True, inline="always")
def _counted(i, track, neighbors, masks, nodes, near):
    """Neighbours of Gaussian i that have the track and its node, into `near` (4,); returns how many."""
    count = 0
    if i > 0:
        for k in range(4):
            j = neighbors[i, k]
            if (masks[j] >> track) & 1 and nodes[j] == nodes[i]:
                near[count] = j
                count += 1
    return count


@njit(cache=True, inline="always")
def _share(total, count):
    """total // count for a count of 1 to 4, without dividing."""
    return total >> (count >> 1) if count != 3 else total // 3


@njit(cache=True, inline="always")
def _prediction(near, count, column, weight, values):
    if count == 0:
        return np.int64(0)
    total = np.int64(0)
    for k in range(count):
        total += values[near[k], column]
    return (weight * (total // count) + 2048) >> 12


@njit(cache=True, inline="always")
def _near_level(near, count, column, e, magnitudes):
    if count == 0:
        return np.int64(_NONE_NEAR)
    total = np.int64(0)
    for k in range(count):
        total += magnitudes[near[k], column]
    return magnitude_level(((total << 2) // count) >> e, _NONE_NEAR)


@njit(cache=True, nogil=True)
def quantize_tracks(
    counts, components, columns, weights, neighbors, exponents, nodes, masks, targets, dead, values, magnitudes,
    residuals, histogram,
):  # fmt: skip
    """Quantize the coefficients of a tile in a closed loop, and count the tokens.

    Args:
        counts, components, columns, weights: of the MotionParameters.
        neighbors: (n, 4). exponents: (n, 6). nodes, masks: (n,).
        targets: (n, C) float64 wanted coefficients in base units.
        dead: (n, 6) residuals below this share of a step become 0.
        values, magnitudes, residuals: (n, C) int32 out.
        histogram: (S * 32, ALPHABET) int64; tokens are added.
    """
    near = np.zeros(4, np.int64)
    for i in range(len(masks)):
        stream = 0
        for track in range(TRACKS):
            if not (masks[i] >> track) & 1:
                stream += counts[track]
                continue
            e = np.int64(exponents[i, track])
            count = _counted(i, track, neighbors, masks, nodes, near)
            before, older = np.int64(0), np.int64(0)
            limit = np.int64(_LIMIT) >> e
            for j in range(counts[track]):
                for c in range(components[track]):
                    column = columns[track] + j * components[track] + c
                    p = _prediction(near, count, column, weights[stream], values)
                    want = (targets[i, column] - p) / (np.int64(1) << e)
                    r = np.int64(np.rint(want)) if abs(want) >= dead[i, track] else np.int64(0)
                    r = min(max(r, -limit), limit)
                    level = _near_level(near, count, column, e, magnitudes)
                    token, _, _ = token_of(r)
                    histogram[CELLS * stream + (level << 2) + _own_level(before + older), token] += 1
                    older, before = before, abs(r)
                    values[i, column] = min(max(p + (r << e), -_LIMIT), _LIMIT)
                    residuals[i, column] = r
                    magnitudes[i, column] = min(abs(r), _LIMIT) << e
                stream += 1


@njit(cache=True)
def _zigzag(value):
    return (value << 1) if value >= 0 else ((-value) << 1) - 1


@njit(cache=True, inline="always")
def _agreement(i, neighbors, marks):
    """How many of Gaussian i's neighbours are marked."""
    total = 0
    if i > 0:
        for k in range(4):
            total += marks[neighbors[i, k]]
    return total


@njit(cache=True)
def _bits_since(intervals, begun, count):
    bits = 0.0
    for k in range(begun, count):
        bits += PROB_BITS - math.log2(np.float64(intervals[k] >> np.uint32(16)))
    return bits


@njit(cache=True, nogil=True)
def emit_motion(
    frames, num_nodes, has_events, counts, components, columns, maps, freq, start, neighbors, exponents, nodes, masks,
    births, deaths, magnitudes, residuals, event_starts, event_frames, event_tracks, event_deltas, models, intervals,
    raw, spent,
):  # fmt: skip
    """Intervals and raw bits of a tile's motion; returns (intervals, raw bits)."""
    n = len(nodes)
    near = np.zeros(4, np.int64)
    partial, eventful = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    count, position = 0, 0
    for i in range(n):
        begun = count
        if num_nodes > 0:
            agree, likely = 0, 0
            if i > 0:
                likely = nodes[neighbors[i, 0]]
                for k in range(4):
                    agree += 1 if nodes[neighbors[i, k]] == likely else 0
            same = 1 if nodes[i] == likely else 0
            count = encode_bit(models, agree, same, intervals, count)
            if not same:
                count = encode_gamma(models, _NODE, np.int64(nodes[i]), intervals, count)
        spent[0] += _bits_since(intervals, begun, count)
        begun = count
        for track in range(TRACKS):
            if counts[track] == 0:
                continue
            agree, first = 0, 0
            if i > 0:
                first = (masks[neighbors[i, 0]] >> track) & 1
                for k in range(4):
                    agree += (masks[neighbors[i, k]] >> track) & 1
            bit = (masks[i] >> track) & 1
            count = encode_bit(models, _TRACK + 16 * track + 2 * agree + first, bit, intervals, count)
        spent[3] += _bits_since(intervals, begun, count)
        begun = count
        partial[i] = 1 if births[i] > 0 or deaths[i] < frames else 0
        count = encode_bit(models, _LIFE + _agreement(i, neighbors, partial), partial[i], intervals, count)
        if partial[i]:
            count = encode_gamma(models, _BIRTH, np.int64(births[i]), intervals, count)
            count = encode_gamma(models, _DEATH, np.int64(frames - deaths[i]), intervals, count)
        spent[1] += _bits_since(intervals, begun, count)
        begun = count
        if has_events:
            first, last = event_starts[i], event_starts[i + 1]
            eventful[i] = 1 if last > first else 0
            count = encode_bit(models, _EVENT + _agreement(i, neighbors, eventful), eventful[i], intervals, count)
            if last > first:
                count = encode_gamma(models, _EVENTS, last - first - 1, intervals, count)
                previous = 0
                for k in range(first, last):
                    count = encode_gamma(models, _WAIT, np.int64(event_frames[k]) - previous, intervals, count)
                    previous = event_frames[k]
                    track = event_tracks[k]
                    kind = track - _FIRST_EVENT_TRACK
                    count = encode_gamma(models, _KIND, np.int64(kind), intervals, count)
                    for c in range(components[track]):
                        value = np.int64(event_deltas[k, c]) >> np.int64(exponents[i, track])
                        count = encode_gamma(models, _DELTA + 64 * kind, _zigzag(value), intervals, count)
        spent[2] += _bits_since(intervals, begun, count)
        stream = 0
        for track in range(TRACKS):
            if not (masks[i] >> track) & 1:
                stream += counts[track]
                continue
            begun = count
            e = np.int64(exponents[i, track])
            neighbours = _counted(i, track, neighbors, masks, nodes, near)
            before, older = np.int64(0), np.int64(0)
            for j in range(counts[track]):
                for c in range(components[track]):
                    column = columns[track] + j * components[track] + c
                    level = _near_level(near, neighbours, column, e, magnitudes)
                    table = maps[stream, (level << 2) + _own_level(before + older)]
                    r = np.int64(residuals[i, column])
                    token, bits, rest = token_of(r)
                    intervals[count] = pack_interval(freq[table, token], start[table, token])
                    count += 1
                    if bits:
                        position = write_bits(raw, position, np.uint64(rest), bits)
                        spent[4 + track] += bits
                    older, before = before, abs(r)
                stream += 1
            spent[4 + track] += _bits_since(intervals, begun, count)
    return count, position


@njit(cache=True, nogil=True)
def decode_motion(
    frames, num_nodes, has_events, counts, components, columns, weights, maps, buckets, intervals, neighbors,
    exponents, nodes, masks, births, deaths, values, event_starts, event_frames, event_tracks, event_deltas, models,
    states, words, cursor, raw,
):  # fmt: skip
    """Inverse of `emit_motion`; returns the raw bits used, or -1 if a value is out of range."""
    n = len(nodes)
    near = np.zeros(4, np.int64)
    partial, eventful = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    magnitudes = np.zeros(values.shape, np.int32)
    position, events = np.int64(0), np.int64(0)
    mask_of_states = len(states) - 1
    for i in range(n):
        if num_nodes > 0:
            agree, likely = 0, 0
            if i > 0:
                likely = nodes[neighbors[i, 0]]
                for k in range(4):
                    agree += 1 if nodes[neighbors[i, k]] == likely else 0
            if decode_bit(models, agree, states, words, cursor):
                nodes[i] = likely
            else:
                node = decode_gamma(models, _NODE, states, words, cursor)
                if node < 0 or node > num_nodes:
                    return np.int64(-1)
                nodes[i] = node
        mask = 0
        for track in range(TRACKS):
            if counts[track] == 0:
                continue
            agree, first = 0, 0
            if i > 0:
                first = (masks[neighbors[i, 0]] >> track) & 1
                for k in range(4):
                    agree += (masks[neighbors[i, k]] >> track) & 1
            mask |= decode_bit(models, _TRACK + 16 * track + 2 * agree + first, states, words, cursor) << track
        masks[i] = mask
        partial[i] = decode_bit(models, _LIFE + _agreement(i, neighbors, partial), states, words, cursor)
        if partial[i]:
            birth = decode_gamma(models, _BIRTH, states, words, cursor)
            rest = decode_gamma(models, _DEATH, states, words, cursor)
            if birth < 0 or rest < 0 or rest > frames or birth > frames - rest:
                return np.int64(-1)
            births[i] = birth
            deaths[i] = frames - rest
        if has_events:
            event_starts[i] = events
            eventful[i] = decode_bit(models, _EVENT + _agreement(i, neighbors, eventful), states, words, cursor)
            if eventful[i]:
                more = decode_gamma(models, _EVENTS, states, words, cursor)
                if more < 0 or events + more + 1 > len(event_frames):
                    return np.int64(-1)
                frame = np.int64(0)
                for _ in range(more + 1):
                    gap = decode_gamma(models, _WAIT, states, words, cursor)
                    kind = decode_gamma(models, _KIND, states, words, cursor)
                    frame += gap
                    if gap < 0 or kind < 0 or frame < 1 or frame >= frames or kind > TRACKS - 1 - _FIRST_EVENT_TRACK:
                        return np.int64(-1)
                    track = kind + _FIRST_EVENT_TRACK
                    event_frames[events] = frame
                    event_tracks[events] = track
                    for c in range(components[track]):
                        code = decode_gamma(models, _DELTA + 64 * kind, states, words, cursor)
                        value = -((code + 1) >> 1) if code & 1 else code >> 1
                        value <<= np.int64(exponents[i, track])
                        if code < 0 or abs(value) > _LIMIT:
                            return np.int64(-1)
                        event_deltas[events, c] = value
                    events += 1
        stream = 0
        word, symbol = cursor[0], cursor[1]
        for track in range(TRACKS):
            if not (mask >> track) & 1:
                stream += counts[track]
                continue
            e = np.int64(exponents[i, track])
            neighbours = _counted(i, track, neighbors, masks, nodes, near)
            first, second, third, fourth = near[0], near[1], near[2], near[3]  # as many as there are count
            before, older = np.int64(0), np.int64(0)
            column = columns[track]
            for _ in range(counts[track]):
                weight, of_cell = weights[stream], maps[stream]
                for _ in range(components[track]):
                    p, level = np.int64(0), np.int64(_NONE_NEAR)
                    if neighbours:
                        p = np.int64(values[first, column])
                        level = np.int64(magnitudes[first, column])
                        if neighbours > 1:
                            p += values[second, column]
                            level += magnitudes[second, column]
                        if neighbours > 2:
                            p += values[third, column]
                            level += magnitudes[third, column]
                        if neighbours > 3:
                            p += values[fourth, column]
                            level += magnitudes[fourth, column]
                        p = (weight * _share(p, neighbours) + 2048) >> 12
                        level = magnitude_level(_share(level << 2, neighbours) >> e, _NONE_NEAR)
                    table = of_cell[(level << 2) + _own_level(before + older)]
                    lane = symbol & mask_of_states
                    state = states[lane]
                    slot = state & np.uint64(PROB_SCALE - 1)
                    token = np.int64(buckets[table, slot >> np.uint64(BUCKET_BITS)])
                    interval = np.uint64(intervals[table, token])
                    while slot >= (interval >> np.uint64(16)) + (interval & np.uint64(0xFFFF)):
                        token += 1
                        interval = np.uint64(intervals[table, token])
                    state = (
                        (interval >> np.uint64(16)) * (state >> np.uint64(PROB_BITS))
                        + slot
                        - (interval & np.uint64(0xFFFF))
                    )
                    if word < len(words):
                        # No branch: whether a word is needed is a coin toss to the processor.
                        need = np.uint64(state < np.uint64(RANS_LOW))
                        state = (state << (need << np.uint64(4))) | (np.uint64(words[word]) * need)
                        word += np.int64(need)
                    elif state < np.uint64(RANS_LOW):
                        state = np.uint64(RANS_LOW)
                        cursor[2] = 1
                        word += 1
                    states[lane] = state
                    symbol += 1
                    rest = np.int64(0)
                    bits = np.int64(token_bits(token))
                    if bits:
                        rest = np.int64(read_bits(raw, position, bits))
                        position += bits
                    r = np.int64(value_of(token, rest))
                    values[i, column] = min(max(p + (r << e), -_LIMIT), _LIMIT)
                    magnitudes[i, column] = min(abs(r), _LIMIT) << e
                    older, before = before, abs(r)
                    column += 1
                stream += 1
        cursor[0], cursor[1] = word, symbol
        if cursor[2]:
            return np.int64(-1)
    if has_events:
        event_starts[n] = events
        if events != len(event_frames):
            return np.int64(-1)
    return position


@njit(cache=True, inline="always")
def _track_value(i, column, components, count, shapes, frame, values):
    """D of one component, in 1/4096 units, without events."""
    total = np.int64(0)
    for j in range(count):
        total += shapes[j, frame] * np.int64(values[i, column + j * components])
    return total


@njit(cache=True, nogil=True)
def place_frame(
    frame, rows, base_means, base_quats, base_scales, axis_ranks, masks, nodes, values, columns,
    position_shapes, position_step, turn_shapes, turn_step, size_shapes, size_unit,
    node_matrices, node_quats, node_pivots, node_targets, means, quats, scales,
):  # fmt: skip
    """Positions, quaternions and scales of a frame.

    Args:
        rows: (m,) int64 Gaussians of the tile that are there, in order.
        base_means, base_quats, base_scales: (n, 3), (n, 4), (n, 3) float32. axis_ranks: (n, 3) uint8: which size
            component an axis has.
        node_matrices: (K + 1, 3, 3) float64. node_quats: (K + 1, 4) float64, unit. node_pivots, node_targets:
            (K + 1, 3) float64: pivot, and pivot plus shift. Node 0 is none.
        means, quats, scales: (m, ...) float32 out.
    """
    d = np.zeros(3)
    for k in range(len(rows)):
        i = rows[k]
        mask = masks[i]
        node = nodes[i]
        if mask & 1:
            for axis in range(3):
                value = _track_value(i, columns[0] + axis, 3, len(position_shapes), position_shapes, frame, values)
                d[axis] = np.float64(base_means[i, axis]) + (value / _ONE) * position_step
        else:
            for axis in range(3):
                d[axis] = np.float64(base_means[i, axis])
        if node:
            x = d[0] - node_pivots[node, 0]
            y = d[1] - node_pivots[node, 1]
            z = d[2] - node_pivots[node, 2]
            for axis in range(3):
                m = node_matrices[node, axis]
                means[k, axis] = (m[0] * x + m[1] * y + m[2] * z) + node_targets[node, axis]
        else:
            for axis in range(3):
                means[k, axis] = d[axis]
        w, x, y, z = (
            np.float64(base_quats[i, 0]), np.float64(base_quats[i, 1]), np.float64(base_quats[i, 2]),
            np.float64(base_quats[i, 3]),
        )  # fmt: skip
        if mask & 2:
            tx = _track_value(i, columns[1], 3, len(turn_shapes), turn_shapes, frame, values) / _ONE * turn_step
            ty = _track_value(i, columns[1] + 1, 3, len(turn_shapes), turn_shapes, frame, values) / _ONE * turn_step
            tz = _track_value(i, columns[1] + 2, 3, len(turn_shapes), turn_shapes, frame, values) / _ONE * turn_step
            norm = 1.0 / math.sqrt(1.0 + tx * tx + ty * ty + tz * tz)
            w, x, y, z = (
                norm * (w - tx * x - ty * y - tz * z),
                norm * (x + tx * w + ty * z - tz * y),
                norm * (y - tx * z + ty * w + tz * x),
                norm * (z + tx * y - ty * x + tz * w),
            )
        if node:
            a, b, c, e = node_quats[node, 0], node_quats[node, 1], node_quats[node, 2], node_quats[node, 3]
            w, x, y, z = (
                a * w - b * x - c * y - e * z,
                a * x + b * w + c * z - e * y,
                a * y - b * z + c * w + e * x,
                a * z + b * y - c * x + e * w,
            )
        quats[k, 0], quats[k, 1], quats[k, 2], quats[k, 3] = w, x, y, z
        if mask & 4:
            for axis in range(3):
                column = columns[2] + axis_ranks[i, axis]
                value = _track_value(i, column, 3, len(size_shapes), size_shapes, frame, values)
                scales[k, axis] = np.float64(base_scales[i, axis]) + (value / _ONE) * size_unit
        else:
            for axis in range(3):
                scales[k, axis] = base_scales[i, axis]


@njit(cache=True, inline="always")
def _events_of(i, track, component, frame, event_starts, event_frames, event_tracks, event_deltas):
    total = np.int64(0)
    for k in range(event_starts[i], event_starts[i + 1]):
        if event_tracks[k] == track and event_frames[k] <= frame:
            total += event_deltas[k, component]
    return total << 12


@njit(cache=True, nogil=True)
def tint_frame(
    frame, rows, base_values, base_opacities, base_sh0, masks, values, columns, opacity_shapes, opacity_step,
    color_shapes, color_basis, color_step, event_starts, event_frames, event_tracks, event_deltas, opacities, sh0,
):  # fmt: skip
    """Opacities and colours of a frame.

    Args:
        base_values: (n, >= 12) int32 streams. base_opacities: (n,) float32 logits. base_sh0: (n, 1, 3) float32.
        color_basis: (3, 3) float64.
        opacities, sh0: (m,) and (m, 1, 3) float32 out.
    """
    v = np.zeros(3)
    for k in range(len(rows)):
        i = rows[k]
        mask = masks[i]
        eventful = event_starts[i + 1] > event_starts[i]
        if mask & 8 or eventful:
            d = _track_value(i, columns[3], 1, len(opacity_shapes), opacity_shapes, frame, values) if mask & 8 else 0
            if eventful:
                d += _events_of(i, 3, 0, frame, event_starts, event_frames, event_tracks, event_deltas)
            level = max(np.int64(base_values[i, 8]) + ((d + 2048) >> 12), np.int64(0))
            alpha = exp2_fixed(-level * opacity_step)
            alpha = min(max(alpha, 1.0 / 4096.0), 4095.0 / 4096.0)
            opacities[k] = math.log(alpha / (1.0 - alpha))
        else:
            opacities[k] = base_opacities[i]
        if mask & 16 or eventful:
            for c in range(3):
                d = np.int64(0)
                if mask & 16:
                    d = _track_value(i, columns[4] + c, 3, len(color_shapes), color_shapes, frame, values)
                if eventful:
                    d += _events_of(i, 4, c, frame, event_starts, event_frames, event_tracks, event_deltas)
                v[c] = (base_values[i, 9 + c] + d / _ONE) * color_step
            for channel in range(3):
                basis = color_basis[channel]
                sh0[k, 0, channel] = basis[0] * v[0] + basis[1] * v[1] + basis[2] * v[2]
        else:
            for channel in range(3):
                sh0[k, 0, channel] = base_sh0[i, 0, channel]


@njit(cache=True, nogil=True)
def sh_frame(
    frame, rows, base_streams, base_shN, masks, values, columns, shapes, color_basis, bands_of, step,
    event_starts, event_frames, event_tracks, event_deltas, shN,
):  # fmt: skip
    """SH coefficients of a frame before nodes turn them.

    Args:
        base_streams: (n, 3 (K-1)) int32. base_shN: (n, K-1, 3) float32. bands_of: (K-1, K-1), row k is component k.
        shN: (m, K-1, 3) float32 out.
    """
    bands = bands_of.shape[0]
    mixed = np.zeros((3, bands))
    for k in range(len(rows)):
        i = rows[k]
        eventful = event_starts[i + 1] > event_starts[i]
        if not (masks[i] & 32 or eventful):
            shN[k] = base_shN[i]
            continue
        mixed[:, :] = 0.0
        for component in range(bands):
            for c in range(3):
                d = np.int64(0)
                at = 3 * component + c
                if masks[i] & 32:
                    d = _track_value(i, columns[5] + at, 3 * bands, len(shapes), shapes, frame, values)
                if eventful:
                    d += _events_of(i, 5, at, frame, event_starts, event_frames, event_tracks, event_deltas)
                x = (base_streams[i, at] + d / _ONE) * step
                if x != 0.0:
                    for band in range(bands):
                        mixed[c, band] += bands_of[component, band] * x
        for band in range(bands):
            for channel in range(3):
                basis = color_basis[channel]
                shN[k, band, channel] = (
                    basis[0] * mixed[0, band] + basis[1] * mixed[1, band] + basis[2] * mixed[2, band]
                )


@njit(cache=True, nogil=True)
def turn_sh(rows, nodes, matrices, shN):
    """Turn SH coefficients (m, K-1, 3) in place.

    Args:
        rows: (m,) int64. nodes: (n,) int32. matrices: (K + 1, B, B) float64, block diagonal with bands of 3, 5 and 7.
    """
    bands = shN.shape[1]
    old = np.zeros((bands, 3))
    for k in range(len(rows)):
        node = nodes[rows[k]]
        if node == 0:
            continue
        for band in range(bands):
            for channel in range(3):
                old[band, channel] = shN[k, band, channel]
        first = 0
        for degree in range(1, 4):
            last = first + 2 * degree + 1
            if last > bands:
                break
            for a in range(first, last):
                red, green, blue = 0.0, 0.0, 0.0
                for b in range(first, last):
                    m = matrices[node, a, b]
                    red += m * old[b, 0]
                    green += m * old[b, 1]
                    blue += m * old[b, 2]
                shN[k, a, 0], shN[k, a, 1], shN[k, a, 2] = red, green, blue
            first = last
