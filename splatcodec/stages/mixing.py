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
from ..entropy.rans import PROB_BITS, PROB_SCALE, decode_advance, decode_slot, pack_interval
from .streams import MAX_CLASS, VALUE_LIMIT, magnitude_level, next_state, point_of, predict_row, read_position

__all__ = ["MixerState", "mix_decode_rows", "mix_encode_rows"]

_INPUTS = 6
_NODES = 96
_GROUPS = 9
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
    [0, _MAX_STREAMS * 16, _MAX_STREAMS * 32, _GROUPS * 256, _GROUPS * 1024, _MAX_STREAMS * 56, _MAX_STREAMS * 49]
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
    """All models and weights of one chunk, at their start.

    Attributes:
        models: (contexts * 96, 2) int32: probability of a one in 1/65536, bits seen.
        weights: (9 * 96, 6) int32 in 1/65536.
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
def _contexts(i, s, stream, own_terms, rank, scale, c, quantizer, deltas, neighbors, rows):
    """First model of each input's context for residual i of column s, the stream `stream`, into `rows` (6,) int64."""
    near, drift, nearest = np.int64(0), np.int64(0), np.int64(0)
    if i > 0:
        for k in range(4):
            d = np.int64(deltas[neighbors[i, k], s])
            near += abs(d)
            drift += d
        nearest = np.int64(deltas[neighbors[i, 0], s])
    before = np.int64(deltas[i, s - 1]) if own_terms > 0 else np.int64(0)
    older = np.int64(deltas[i, s - 2]) if own_terms > 1 else np.int64(0)
    level = magnitude_level(near >> c, 16)
    own = magnitude_level(((abs(before) + abs(older)) << 1) >> c, 8)
    size = magnitude_level(np.int64(scale) >> c, 16) if scale else min(c, 15)
    rows[0] = _FIRST[0] + stream * 16 + (quantizer << 3) + min(c, 7)
    rows[1] = _FIRST[1] + stream * 32 + (quantizer << 4) + level
    rows[2] = _FIRST[2] + rank * 256 + (quantizer << 7) + (level << 3) + own
    rows[3] = _FIRST[3] + rank * 1024 + (quantizer << 9) + (size << 5) + (min(level >> 1, 7) << 2) + (own >> 1)
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
def mix_encode_rows(
    first, residuals, exponents, neighbors, scales, own_terms, ranks, feedback, taps, extra, extra_bits, models,
    weights, intervals, count, raw, position, spent,
):  # fmt: skip
    """Append the decisions of a chunk, Gaussian by Gaussian; returns (count, position).

    Args:
        first: number of the first stream.
        residuals, exponents: (n, W) int32 and uint8 residuals and their step exponents. neighbors: (n, 4) int32.
        scales, own_terms, ranks: of the RowModel. feedback, taps: of the trellis.
        extra, extra_bits: plain bits after each Gaussian's own, as in `emit_rows`.
        models, weights: of the MixerState.
        intervals, count, raw, position, spent: as in `emit_rows`; at most 31 intervals a residual.
    """
    n, width = residuals.shape
    deltas = np.zeros((n, width), np.int32)
    trellis = np.zeros(width, np.int64)
    rows, inputs = np.zeros(_INPUTS, np.int64), np.zeros(_INPUTS, np.int32)
    for i in range(n):
        for s in range(width):
            begun, plain = count, position
            c = np.int64(exponents[i, s])
            rank = ranks[s]
            quantizer = trellis[s] & 1
            _contexts(i, s, first + s, own_terms[s], rank, scales[s], c, quantizer, deltas, neighbors, rows)
            r = np.int64(residuals[i, s])
            if first or s >= 2:
                trellis[s] = next_state(trellis[s], r, feedback, taps)
            deltas[i, s] = r << c
            count = _put(0, 1 if r == 0 else 0, rank, rows, models, weights, inputs, intervals, count)
            if r != 0:
                count = _put(1, 1 if r < 0 else 0, rank, rows, models, weights, inputs, intervals, count)
                m = abs(r)
                length = 1
                while m >> length:
                    length += 1
                for k in range(1, length + 1):
                    if k < _MAX_LENGTH:
                        bit = 1 if k == length else 0
                        count = _put(1 + k, bit, rank, rows, models, weights, inputs, intervals, count)
                if length > 1:
                    upper = (m >> (length - 2)) & 1
                    node = 32 + 3 * min(length, 20)
                    count = _put(node, upper, rank, rows, models, weights, inputs, intervals, count)
                    if length > 2:
                        lower = (m >> (length - 3)) & 1
                        count = _put(node + 1 + upper, lower, rank, rows, models, weights, inputs, intervals, count)
                if length > 3:
                    position = write_bits(raw, position, np.uint64(m & ((1 << (length - 3)) - 1)), length - 3)
            spent[s] += position - plain
            for k in range(begun, count):
                spent[s] += PROB_BITS - np.log2(np.float64(intervals[k] >> np.uint32(16)))
        for k in range(extra.shape[1]):
            bits = np.int64(extra_bits[i, k])
            if bits:
                position = write_bits(raw, position, np.uint64(extra[i, k]), bits)
                spent[-1] += bits
    return count, position


@njit(cache=True, nogil=True)
def mix_decode_rows(
    first, values, colors, neighbors, depths,
    bias, begin, kinds, sources, coefficients, scales, own_terms, ranks, feedback, taps,
    models, weights, states, words, cursor, raw, position,
    exponent, size_step, precision, extra, extra_bits,
):  # fmt: skip
    """`decode_rows` for streams coded by context mixing."""
    n, width = values.shape
    deltas = np.zeros((n, width), np.int32)
    sums = np.zeros(width, np.int32)
    trellis = np.zeros(width, np.int64)
    rows, inputs = np.zeros(_INPUTS, np.int64), np.zeros(_INPUTS, np.int32)
    for i in range(n):
        for s in range(width):
            sums[s] = 0
            if i > 0:
                for k in range(4):
                    sums[s] += values[neighbors[i, k], s]
        depth = np.int64(depths[i])
        for s in range(width):
            if first:
                c = np.int64(colors[i])
            else:
                c = np.int64(0) if s < 2 else np.int64(values[i, 0 if s < 9 else 1])
            rank = ranks[s]
            prediction = predict_row(
                i, s, bias, begin, kinds, sources, coefficients, sums, values, neighbors[i, 0], depth
            )
            quantizer = trellis[s] & 1
            _contexts(i, s, first + s, own_terms[s], rank, scales[s], c, quantizer, deltas, neighbors, rows)
            r = np.int64(0)
            if not _get(0, rank, rows, models, weights, inputs, states, words, cursor):
                negative = _get(1, rank, rows, models, weights, inputs, states, words, cursor)
                length = 1
                while length < _MAX_LENGTH and not _get(
                    1 + length, rank, rows, models, weights, inputs, states, words, cursor
                ):
                    length += 1
                r = np.int64(1)
                if length > 1:
                    node = 32 + 3 * min(length, 20)
                    upper = _get(node, rank, rows, models, weights, inputs, states, words, cursor)
                    r = (r << 1) | upper
                    if length > 2:
                        lower = _get(node + 1 + upper, rank, rows, models, weights, inputs, states, words, cursor)
                        r = (r << 1) | lower
                if length > 3:
                    r = (r << (length - 3)) | np.int64(read_bits(raw, position, length - 3))
                    position += length - 3
                if negative:
                    r = -r
            limit = np.int64(1 << 27) >> c
            r = min(max(r, -limit), limit)
            point = r
            if first or s >= 2:
                point = point_of(r, quantizer)
                trellis[s] = next_state(trellis[s], r, feedback, taps)
            values[i, s] = min(max(prediction + (point << c), -VALUE_LIMIT), VALUE_LIMIT)
            deltas[i, s] = r << c
            if first == 0 and s < 2 and (values[i, s] < 0 or values[i, s] > MAX_CLASS):
                return -1
        if first == 0:
            position = read_position(i, values, depth, exponent, size_step, precision, raw, position, extra, extra_bits)
    return position
