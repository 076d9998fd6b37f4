"""Context mixing for attribute streams: slower than tables, smaller (SPEC.md, section 3.7; `--effort 9`).

Residuals become binary decisions. Six adaptive models look at each decision in different contexts; their opinions are
added in the logistic domain with weights that learn which model to trust (Mahoney's PAQ family, "Adaptive weighing of
context models", 2005). All arithmetic is on integers, so encoder and decoder agree everywhere. The same machine says
how far table coding is from an ideal adaptive code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.adaptive import STEPS
from ..entropy.bits import read_bits, write_bits
from ..entropy.rans import PROB_SCALE, decode_advance, decode_slot, pack_interval
from .streams import VALUE_LIMIT, magnitude_level, predict, prepare

__all__ = ["MixerState", "mix_decode_stream", "mix_encode_stream"]

_INPUTS = 6
_NODES = 96
_GROUPS = 7
_MAX_STREAMS = 57
_LIMIT = len(STEPS) - 1
_MAX_LENGTH = 27
# 4096 / (1 + exp(-x)) at x = -8, -7.5 ... 8, rounded: the logistic function in 33 integers.
SQUASH = np.array(
    [1, 2, 4, 6, 10, 17, 27, 45, 74, 120, 194, 311, 488, 747, 1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785, 3902,
     3976, 4022, 4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095], np.int32,
)  # fmt: skip
# First row of each input's models, in units of one context (_NODES models).
_FIRST = np.cumsum(
    [0, _MAX_STREAMS * 8, _MAX_STREAMS * 16, _GROUPS * 128, _GROUPS * 512, _MAX_STREAMS * 56, _MAX_STREAMS * 49]
).astype(np.int64)


@njit(cache=True)
def squash(x):
    """Probability of a one, 1..4095 of 4096, at the logistic argument x / 256, |x| <= 2047; linear between entries."""
    x = min(max(x, -2047), 2047) + 2048
    low = x >> 7
    part = x & 127
    return (SQUASH[low] * (128 - part) + SQUASH[low + 1] * part + 64) >> 7


def _stretch_table() -> npt.NDArray[np.int32]:
    """The inverse of `squash` for 0..4095: the smallest x whose probability is at least p."""
    table = np.zeros(4096, np.int32)
    at = 0
    for x in range(-2047, 2048):
        p = squash.py_func(x)
        while at <= p and at < 4096:
            table[at] = x
            at += 1
    table[at:] = 2047
    return table


STRETCH = _stretch_table()


class MixerState:
    """All models and weights of one tile, at their start.

    Attributes:
        models: (contexts * 96, 2) int32: probability of a one in 1/65536, bits seen.
        weights: (7 * 96, 6) int32 in 1/65536.
    """

    def __init__(self) -> None:
        self.models = np.zeros((int(_FIRST[-1]) * _NODES, 2), np.int32)
        self.models[:, 0] = 1 << 15
        self.weights = np.full((_GROUPS * _NODES, _INPUTS), 14000, np.int32)


@njit(cache=True, inline="always")
def _signed_level(x, c):
    """0..6: large negative, negative, small negative, zero, and the same upwards, in steps of 2**c."""
    m = abs(x) >> c
    if m == 0:
        return 3
    level = 1 if m < 2 else (2 if m < 5 else 3)
    return 3 - level if x < 0 else 3 + level


@njit(cache=True)
def _contexts(i, stream, group, rank, scale, c, deltas, neighbors, rows):
    """First model of each input's context for residual i of `stream`, into `rows` (6,) int64."""
    near, drift, nearest = np.int64(0), np.int64(0), np.int64(0)
    if i > 0:
        for k in range(4):
            d = np.int64(deltas[stream, neighbors[i, k]])
            near += abs(d)
            drift += d
        nearest = np.int64(deltas[stream, neighbors[i, 0]])
    before = np.int64(deltas[stream - 1, i]) if stream > group else np.int64(0)
    older = np.int64(deltas[stream - 2, i]) if stream > group + 1 else np.int64(0)
    level = magnitude_level(near >> c, 16)
    own = magnitude_level(((abs(before) + abs(older)) << 1) >> c, 8)
    size = magnitude_level(np.int64(scale) >> c, 16) if scale else min(c, 15)
    rows[0] = _FIRST[0] + stream * 8 + min(c, 7)
    rows[1] = _FIRST[1] + stream * 16 + level
    rows[2] = _FIRST[2] + rank * 128 + (level << 3) + own
    rows[3] = _FIRST[3] + rank * 512 + (size << 5) + (min(level >> 1, 7) << 2) + (own >> 1)
    rows[4] = _FIRST[4] + stream * 56 + _signed_level(drift, c) * 8 + min(c, 7)
    rows[5] = _FIRST[5] + stream * 49 + _signed_level(nearest, c) * 7 + _signed_level(before, c)
    for k in range(_INPUTS):
        rows[k] *= _NODES


@njit(cache=True)
def _probability(node, rank, rows, models, weights, inputs):
    """Mixed probability of a one, 1..4095; fills `inputs` (6,) with the stretched opinions."""
    w = weights[rank * _NODES + node]
    total = np.int64(0)
    for k in range(_INPUTS):
        inputs[k] = STRETCH[models[rows[k] + node, 0] >> 4]
        total += np.int64(w[k]) * inputs[k]
    return min(max(squash(total >> 16), 1), PROB_SCALE - 1)


@njit(cache=True)
def _learn(node, rank, rows, models, weights, inputs, p, bit):
    error = ((bit << 12) - p) * 4
    w = weights[rank * _NODES + node]
    target = np.int64(65535) if bit else np.int64(0)
    for k in range(_INPUTS):
        w[k] = min(max(w[k] + ((np.int64(inputs[k]) * error + (1 << 13)) >> 14), -(1 << 20)), 1 << 20)
        model = models[rows[k] + node]
        n = model[1]
        model[0] += np.int32(((target - np.int64(model[0])) * np.int64(STEPS[n])) >> 15)
        if n < _LIMIT:
            model[1] = n + 1


@njit(cache=True)
def _put(node, bit, rank, rows, models, weights, inputs, intervals, count):
    p = _probability(node, rank, rows, models, weights, inputs)
    intervals[count] = pack_interval(p, 0) if bit else pack_interval(PROB_SCALE - p, p)
    _learn(node, rank, rows, models, weights, inputs, p, bit)
    return count + 1


@njit(cache=True)
def _get(node, rank, rows, models, weights, inputs, states, words, cursor):
    p = _probability(node, rank, rows, models, weights, inputs)
    slot = decode_slot(states, cursor)
    bit = 1 if slot < np.uint64(p) else 0
    if bit:
        decode_advance(states, words, cursor, slot, p, 0)
    else:
        decode_advance(states, words, cursor, slot, PROB_SCALE - p, p)
    _learn(node, rank, rows, models, weights, inputs, p, bit)
    return bit


@njit(cache=True, nogil=True)
def mix_encode_stream(
    stream, group, rank, scale, classes, deltas, residuals, neighbors, models, weights, intervals, count, raw, position
):
    """Append the decisions of one stream.

    Args:
        stream: its row. group: first stream of its group; rank: number of that group, 0..6.
        scale: expected 4 * |residual| in base units, 0 where unknown.
        classes: (n,) int32. deltas: (S, n) int32, residual << class, of this and earlier streams.
        residuals: (S, n) int32. neighbors: (n, 4) int32.
        models, weights: of the MixerState.
        intervals, count, raw, position: as in `emit_stream`; at most 31 intervals a residual.

    Returns:
        (count, position).
    """
    rows, inputs = np.zeros(_INPUTS, np.int64), np.zeros(_INPUTS, np.int32)
    for i in range(len(classes)):
        _contexts(i, stream, group, rank, scale, np.int64(classes[i]), deltas, neighbors, rows)
        r = np.int64(residuals[stream, i])
        count = _put(0, 1 if r == 0 else 0, rank, rows, models, weights, inputs, intervals, count)
        if r == 0:
            continue
        count = _put(1, 1 if r < 0 else 0, rank, rows, models, weights, inputs, intervals, count)
        m = abs(r)
        n = 1
        while m >> n:
            n += 1
        for k in range(1, n + 1):
            if k < _MAX_LENGTH:
                count = _put(1 + k, 1 if k == n else 0, rank, rows, models, weights, inputs, intervals, count)
        if n > 1:
            first = (m >> (n - 2)) & 1
            node = 32 + 3 * min(n, 20)
            count = _put(node, first, rank, rows, models, weights, inputs, intervals, count)
            if n > 2:
                second = (m >> (n - 3)) & 1
                count = _put(node + 1 + first, second, rank, rows, models, weights, inputs, intervals, count)
        if n > 3:
            position = write_bits(raw, position, np.uint64(m & ((1 << (n - 3)) - 1)), n - 3)
    return count, position


@njit(cache=True, nogil=True)
def mix_decode_stream(
    stream, group, rank, scale, classes, values, deltas, neighbors, depths, bias, kinds, sources, coefficients,
    models, weights, states, words, cursor, raw, position,
):  # fmt: skip
    """Decode one stream into row `stream` of `values` and `deltas`; returns the raw bit position."""
    length = len(classes)
    base, column = np.empty(length, np.int64), np.empty(length, np.int64)
    mean, nearest = prepare(stream, values, neighbors, depths, bias, kinds, sources, coefficients, base, column)
    rows, inputs = np.zeros(_INPUTS, np.int64), np.zeros(_INPUTS, np.int32)
    row, delta = values[stream], deltas[stream]
    for i in range(length):
        c = np.int64(classes[i])
        prediction = predict(i, base, mean, nearest, row, neighbors)
        _contexts(i, stream, group, rank, scale, c, deltas, neighbors, rows)
        r = np.int64(0)
        if not _get(0, rank, rows, models, weights, inputs, states, words, cursor):
            negative = _get(1, rank, rows, models, weights, inputs, states, words, cursor)
            n = 1
            while n < _MAX_LENGTH and not _get(1 + n, rank, rows, models, weights, inputs, states, words, cursor):
                n += 1
            r = np.int64(1)
            if n > 1:
                node = 32 + 3 * min(n, 20)
                first = _get(node, rank, rows, models, weights, inputs, states, words, cursor)
                r = (r << 1) | first
                if n > 2:
                    second = _get(node + 1 + first, rank, rows, models, weights, inputs, states, words, cursor)
                    r = (r << 1) | second
            if n > 3:
                r = (r << (n - 3)) | np.int64(read_bits(raw, position, n - 3))
                position += n - 3
            if negative:
                r = -r
        limit = np.int64(1 << 27) >> c
        r = min(max(r, -limit), limit)
        row[i] = min(max(prediction + (r << c), -VALUE_LIMIT), VALUE_LIMIT)
        delta[i] = r << c
    return position
