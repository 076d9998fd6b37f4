"""Attribute streams: integer prediction from decoded neighbours, context choice, tokens (SPEC.md, section 3.5).

A scene's attributes are S streams of integers in base units, coded Gaussian by Gaussian. (An encoder may quantize them
stream by stream: a value depends on earlier Gaussians, and on earlier streams of its own.) A Gaussian's class c makes
its step 2**c base units: the index r is coded, the value is prediction + (point << c). Predictions are integer
combinations of what is already decoded: the same attribute of near Gaussians, other attributes of this one. The
context of an index is how large indices were nearby, in units of its own step, and its quantizer.

Quantization is dependent, or trellis-coded: of two quantizers with points at the even and at the odd steps, a state
machine that follows the parities of a stream's indices says which one comes next (Marcellin and Fischer, "Trellis coded
quantization of memoryless and Gauss-Markov sources", 1990; the form with two quantizers and 0 in both is that of
Versatile Video Coding). An encoder that looks for the best path packs points more densely than any one quantizer does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.bits import read_bits, write_bits
from ..entropy.rans import PROB_BITS, PROB_SCALE, RANS_LOW, pack_interval
from ..entropy.tables import ALPHABET, BUCKET_BITS, DIRECT, token_bits, token_of, value_of
from .transform import position_bits

__all__ = [
    "COEFFICIENT_BITS",
    "CONTEXT_CELLS",
    "FEATURE_DEPTH",
    "FEATURE_MEAN",
    "FEATURE_NEAREST",
    "FEATURE_OWN",
    "MAX_CLASS",
    "Predictor",
    "RowModel",
    "choose_tables",
    "decode_base_rows",
    "decode_layer_rows",
    "decode_rows",
    "emit_rows",
    "feature_column",
    "histogram_stream",
    "next_state",
    "point_of",
    "quantize_stream",
    "round_stream",
]

COEFFICIENT_BITS = 12  # predictor coefficients are in units of 1/4096
VALUE_LIMIT = 1 << 28
MAX_CLASS = 15
FEATURE_MEAN, FEATURE_NEAREST, FEATURE_OWN, FEATURE_DEPTH = 0, 1, 2, 3
DEPTH_SHIFT = 8
# Context modes: which two or three magnitudes choose the table, and how many cells that gives.
CONTEXT_CLASS_NEAR, CONTEXT_NEAR_OWN, CONTEXT_CLASS_OWN, CONTEXT_SCALE_NEAR_OWN = 0, 1, 2, 3
CONTEXT_CELLS = (256, 256, 256, 1024)
BIAS = 4  # after the kinds of features, in RowModel.weights
SIZE_STREAM = 2  # after the classes; streams 2 to 4 are sizes, which say how many bits a position has
COLOR_STREAM = 9  # from here on steps follow the colour class
RING_MASK = 31  # magnitudes are kept of the last 32 Gaussians; neighbours are among the last 16


@dataclass(frozen=True)
class Predictor:
    """One stream's integer predictor: (bias + sum coefficient * feature + 2048) >> 12.

    Attributes:
        bias: in 1/4096 base units.
        kinds, sources: (F,) int64, feature kind and the stream it reads.
        coefficients: (F,) int64, in 1/4096.
    """

    bias: int = 0
    kinds: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sources: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    coefficients: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def _level_table() -> npt.NDArray[np.uint8]:
    """Level of 0..255: exact below 4, then two levels an octave; what is larger has the level of 255."""
    levels = np.zeros(256, np.uint8)
    for x in range(256):
        n = x.bit_length()
        levels[x] = x if x < 4 else 2 * n - 2 + ((x >> (n - 2)) & 1)
    return levels


_LEVELS = _level_table()


@njit(cache=True, inline="always")
def magnitude_level(x, levels):
    """0..levels-1 of x >= 0, levels at most 16: exact below 4, then two levels an octave."""
    return min(np.int64(_LEVELS[min(x, np.int64(255))]), np.int64(levels - 1))


@njit(cache=True, inline="always")
def _mean(row, neighbors, i):
    """Mean of a stream over the four neighbours of Gaussian i >= 1, rounded down."""
    return (np.int64(row[neighbors[i, 0]]) + row[neighbors[i, 1]] + row[neighbors[i, 2]] + row[neighbors[i, 3]]) >> 2


@njit(cache=True, nogil=True)
def feature_column(kind, source, values, neighbors, depths, column):
    """(n,) int64 of one feature of every Gaussian; its own stream's values must be complete."""
    row = values[source]
    n = len(column)
    if kind == FEATURE_OWN:
        for i in range(n):
            column[i] = row[i]
    elif kind == FEATURE_DEPTH:
        for i in range(n):
            column[i] = np.int64(depths[i]) << DEPTH_SHIFT
    else:
        column[0] = 0
        for i in range(1, n):
            column[i] = row[neighbors[i, 0]] if kind == FEATURE_NEAREST else _mean(row, neighbors, i)


@njit(cache=True, nogil=True)
def prepare(stream, values, neighbors, depths, bias, kinds, sources, coefficients, base, column):
    """Sum of all features but the stream's own neighbours into `base` (n,); returns the coefficients of those two.

    Features of earlier streams do not wait for this one, so that they are added in loops of their own.
    """
    start = np.int64(bias) + (np.int64(1) << (COEFFICIENT_BITS - 1))
    for i in range(len(base)):
        base[i] = start
    mean, nearest = np.int64(0), np.int64(0)
    for f in range(len(kinds)):
        if sources[f] == stream and kinds[f] == FEATURE_MEAN:
            mean += coefficients[f]
        elif sources[f] == stream and kinds[f] == FEATURE_NEAREST:
            nearest += coefficients[f]
        else:
            feature_column(kinds[f], sources[f], values, neighbors, depths, column)
            for i in range(len(base)):
                base[i] += coefficients[f] * column[i]
    return mean, nearest


@njit(cache=True, inline="always")
def predict(i, base, mean, nearest, row, neighbors):
    total = base[i]
    if i > 0:
        if mean != 0:
            total += mean * _mean(row, neighbors, i)
        if nearest != 0:
            total += nearest * np.int64(row[neighbors[i, 0]])
    total >>= COEFFICIENT_BITS
    return min(max(total, -VALUE_LIMIT), VALUE_LIMIT)


@njit(cache=True, inline="always")
def context_cell(mode, scale, c, near, own, quantizer):
    """Context cell of a residual with step exponent c.

    Args:
        near: sum of the magnitudes of the four neighbours. own: twice that of the one or two streams before.
        quantizer: 0 or 1.
    """
    near >>= c
    own >>= c
    if mode == CONTEXT_CLASS_NEAR:
        return (quantizer << 7) | (min(c, 7) << 4) | magnitude_level(near, 16)
    if mode == CONTEXT_NEAR_OWN:
        return (quantizer << 7) | (magnitude_level(near, 16) << 3) | magnitude_level(own, 8)
    if mode == CONTEXT_CLASS_OWN:
        return (quantizer << 7) | (min(c, 7) << 4) | magnitude_level(own, 16)
    return (
        (quantizer << 9)
        | (magnitude_level(scale >> c, 16) << 5)
        | (magnitude_level(near, 8) << 2)
        | (magnitude_level(own, 8) >> 1)
    )


@njit(cache=True, inline="always")
def _cell(i, mode, scale, c, own_terms, near_row, own_row, older_row, neighbors, quantizer):
    """`context_cell` of residual i from whole streams of magnitudes; `own_terms` of the two streams before count."""
    near, own = np.int64(0), np.int64(0)
    if i > 0:
        for k in range(4):
            near += near_row[neighbors[i, k]]
    if own_terms > 0:
        own += own_row[i]
    if own_terms > 1:
        own += older_row[i]
    return context_cell(mode, np.int64(scale), c, near, own << 1, quantizer)


@njit(cache=True, nogil=True)
def round_stream(stream, targets, values, magnitudes, residuals, neighbors, depths, bias, kinds, sources, coefficients):
    """Code a stream of classes as it is.

    Args:
        stream: row of `values`, `magnitudes` and `residuals` to fill.
        targets: (n,) float32 integers.
        values, magnitudes, residuals: (S, n) int32.
        neighbors: (n, 4) int32. depths: (n,) int32.
        bias, kinds, sources, coefficients: the Predictor's fields.
    """
    n = len(targets)
    base, column = np.empty(n, np.int64), np.empty(n, np.int64)
    mean, nearest = prepare(stream, values, neighbors, depths, bias, kinds, sources, coefficients, base, column)
    row = values[stream]
    for i in range(n):
        prediction = predict(i, base, mean, nearest, row, neighbors)
        row[i] = np.int64(np.rint(targets[i]))
        residuals[stream, i] = row[i] - prediction
        magnitudes[stream, i] = abs(row[i] - prediction)


@njit(cache=True, inline="always")
def point_of(index, quantizer):
    """The point of an index, in steps: an even number in quantizer 0; in quantizer 1 an odd one, or 0."""
    return (index << 1) - quantizer * (np.int64(index > 0) - np.int64(index < 0))


@njit(cache=True, inline="always")
def next_state(state, index, feedback, taps):
    """State of the trellis after `index`; its lowest bit says the next quantizer."""
    return (state >> 1) ^ ((state & 1) * feedback) ^ ((index & 1) * taps)


@njit(cache=True, nogil=True)
def quantize_stream(
    stream, targets, classes, values, magnitudes, residuals, neighbors, depths, bias, kinds, sources, coefficients,
    feedback, taps,
):  # fmt: skip
    """Quantize one stream in a closed loop, along the path through the trellis with the least squared error in steps.

    A Viterbi search in which each survivor predicts from its own last values (per-survivor processing). Bits are left
    out of account on purpose: what pulls residuals to zero makes errors of Gaussians that overlap add up.

    Args:
        stream: row of `values`, `magnitudes` and `residuals` to fill.
        targets: (n,) float32 wanted values in base units.
        classes: (n,) int32 step exponents.
        values, magnitudes, residuals: (S, n) int32.
        neighbors: (n, 4) int32. depths: (n,) int32.
        bias, kinds, sources, coefficients: the Predictor's fields.
        feedback, taps: of the trellis, 0..255; both 0 = one quantizer.
    """
    n = len(targets)
    base, column = np.empty(n, np.int64), np.empty(n, np.int64)
    mean, nearest = prepare(stream, values, neighbors, depths, bias, kinds, sources, coefficients, base, column)
    num_states = 1
    while num_states <= max(feedback, taps):
        num_states <<= 1
    # Two branches leave each state, by the parity of the index, and two meet in each, as either feedback or taps reach
    # the highest bit; a branch is 2 * state + parity.
    meet, count = np.zeros((num_states, 2), np.int64), np.zeros(num_states, np.int64)
    for branch in range(2 * num_states):
        to = next_state(np.int64(branch >> 1), np.int64(branch & 1), feedback, taps)
        meet[to, count[to]] = branch
        count[to] += 1
    cost = np.full(num_states, np.inf)
    cost[0] = 0.0
    costs = np.empty(2 * num_states)
    taken, reached = np.empty(2 * num_states, np.int32), np.empty(2 * num_states, np.int32)
    # Values of the last 16 Gaussians, as each survivor has them.
    past, pasts = np.zeros((num_states, 16), np.int32), np.zeros((num_states, 16), np.int32)
    indices, parents = np.empty((n, num_states), np.int32), np.empty((n, num_states), np.uint8)
    for i in range(n):
        e = np.int64(classes[i])
        per_step = 1.0 / np.float64(np.int64(1) << e)
        furthest = np.float64((np.int64(1 << 27) >> e) - 4)
        target = np.float64(targets[i])
        a, b, c, d = neighbors[i, 0] & 15, neighbors[i, 1] & 15, neighbors[i, 2] & 15, neighbors[i, 3] & 15
        for state in range(num_states):
            total = base[i]
            if i > 0:
                last = past[state]
                total += mean * ((np.int64(last[a]) + last[b] + last[c] + last[d]) >> 2)
                total += nearest * np.int64(last[a])
            prediction = min(max(total >> COEFFICIENT_BITS, -VALUE_LIMIT), VALUE_LIMIT)
            want = (target - prediction) * per_step
            size = min(abs(want), furthest)
            sign = np.int64(1) if want >= 0.0 else np.int64(-1)
            quantizer = np.int64(state & 1)
            # The nearest point of the quantizer and the one on the other side: one has an even index, one an odd one.
            middle = 0.5 * (size + quantizer)
            near = np.int64(np.floor(middle + 0.5))
            other = near + (np.int64(1) if middle > near else np.int64(-1))
            even, odd = (other, near) if near & 1 else (near, other)
            if quantizer == 1 and even == 2 and size < 1.5:
                even = np.int64(0)  # nearer than its place among the odd points says
            for parity in range(2):
                index = odd if parity else even
                point = (index << 1) - (quantizer & np.int64(index > 0))
                error = size - point
                costs[2 * state + parity] = cost[state] + error * error
                taken[2 * state + parity] = sign * index
                reached[2 * state + parity] = prediction + ((sign * point) << e)
        for to in range(num_states):
            one, two = meet[to, 0], meet[to, 1]
            branch = two if costs[two] < costs[one] else one
            cost[to] = costs[branch]
            indices[i, to] = taken[branch]
            parents[i, to] = branch >> 1
            pasts[to] = past[branch >> 1]
            pasts[to, i & 15] = reached[branch]
        least = cost.min()
        for state in range(num_states):
            cost[state] -= least
        past, pasts = pasts, past
    place = np.argmin(cost)
    row, magnitude, residual = values[stream], magnitudes[stream], residuals[stream]
    for i in range(n - 1, -1, -1):
        residual[i] = indices[i, place]
        place = np.int64(parents[i, place])
    now = np.int64(0)
    for i in range(n):
        index, e = np.int64(residual[i]), np.int64(classes[i])
        prediction = predict(i, base, mean, nearest, row, neighbors)
        row[i] = min(max(prediction + (point_of(index, now & 1) << e), -VALUE_LIMIT), VALUE_LIMIT)
        magnitude[i] = abs(index) << e
        now = next_state(now, index, feedback, taps)


@njit(cache=True, nogil=True)
def histogram_stream(stream, group, mode, scale, classes, magnitudes, residuals, neighbors, feedback, taps, histogram):
    """Add the tokens of a stream to (cells, ALPHABET) int64 `histogram`; returns the number of raw bits."""
    raw = 0
    state = np.int64(0)
    own_terms = min(stream - group, 2)
    near_row, own_row, older_row = magnitudes[stream], magnitudes[max(stream - 1, 0)], magnitudes[max(stream - 2, 0)]
    for i in range(len(classes)):
        c = np.int64(classes[i])
        cell = _cell(i, mode, scale, c, own_terms, near_row, own_row, older_row, neighbors, state & 1)
        r = np.int64(residuals[stream, i])
        state = next_state(state, r, feedback, taps)
        token, bits, _ = token_of(r)
        histogram[cell, token] += 1
        raw += bits
    return raw


@njit(cache=True, nogil=True)
def choose_tables(
    stream, group, mode, scale, classes, magnitudes, residuals, neighbors, context_map, feedback, taps, tables
):
    """The table (n,) uint8 that each residual of a stream is coded with."""
    state = np.int64(0)
    own_terms = min(stream - group, 2)
    near_row, own_row, older_row = magnitudes[stream], magnitudes[max(stream - 1, 0)], magnitudes[max(stream - 2, 0)]
    for i in range(len(classes)):
        c = np.int64(classes[i])
        cell = _cell(i, mode, scale, c, own_terms, near_row, own_row, older_row, neighbors, state & 1)
        tables[i] = context_map[cell]
        state = next_state(state, np.int64(residuals[stream, i]), feedback, taps)


@njit(cache=True, nogil=True)
def emit_rows(residuals, tables, freq, start, extra, extra_bits, intervals, count, raw, position, spent):
    """Append the intervals and raw bits of a chunk, Gaussian by Gaussian; returns (count, position).

    Args:
        residuals: (n, W) int32. tables: (n, W) uint8. freq, start: of the table set.
        extra, extra_bits: (n, E) uint32 and uint8: plain bits after each Gaussian's own.
        spent: (W + 1,) float64: bits by stream, then the extra ones, are added.
    """
    for i in range(residuals.shape[0]):
        for s in range(residuals.shape[1]):
            token, bits, rest = token_of(np.int64(residuals[i, s]))
            table = tables[i, s]
            intervals[count] = pack_interval(freq[table, token], start[table, token])
            count += 1
            spent[s] += PROB_BITS - np.log2(np.float64(freq[table, token])) + bits
            if bits:
                position = write_bits(raw, position, np.uint64(rest), bits)
        for k in range(extra.shape[1]):
            bits = np.int64(extra_bits[i, k])
            if bits:
                position = write_bits(raw, position, np.uint64(extra[i, k]), bits)
                spent[-1] += bits
    return count, position


@dataclass(frozen=True)
class RowModel:
    """Predictors and contexts of the W streams of a chunk, as arrays for the kernels that go Gaussian by Gaussian.

    Attributes:
        first: number of the first stream.
        bias: (W,) int64, with the half that rounding adds.
        begin: (W + 1,) int64: features of stream w are begin[w] .. begin[w + 1] - 1 of the next three.
        kinds, sources, coefficients: (F,) int64; sources count from the first stream.
        weights: (5, W, W) float64, the same as matrices, [feature, source, stream]: neighbours' mean, nearest, own,
            then in row 0 of the others depth and bias. Sums stay below 2**53, so that float64 is exact. Streams of
            layers read no stream but themselves.
        modes, scales, own_terms: (W,) int64: context mode, its scale, how many streams before are in the group.
        ranks: (W,) int64 number of the group.
        maps: (W, 1024) uint8 context maps.
    """

    first: int
    bias: npt.NDArray[np.int64]
    begin: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    coefficients: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    modes: npt.NDArray[np.int64]
    scales: npt.NDArray[np.int64]
    own_terms: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    maps: npt.NDArray[np.uint8]

    @property
    def is_usual_layer(self) -> bool:
        """Whether `decode_layer_rows` decodes it."""
        usual = bool((self.modes == CONTEXT_SCALE_NEAR_OWN).all())
        return self.first > 0 and usual and len(self.modes) <= _LAYER_LANES


@njit(cache=True, inline="always")
def predict_row(i, s, bias, begin, kinds, sources, coefficients, sums, values, nearest, depth):
    """Prediction of stream s of Gaussian i whose streams before s are decoded."""
    total = bias[s]
    for f in range(begin[s], begin[s + 1]):
        source = sources[f]
        kind = kinds[f]
        if kind == FEATURE_MEAN:
            total += coefficients[f] * (np.int64(sums[source]) >> 2)
        elif kind == FEATURE_OWN:
            total += coefficients[f] * np.int64(values[i, source])
        elif kind == FEATURE_DEPTH:
            total += coefficients[f] * (depth << DEPTH_SHIFT)
        elif i > 0:
            total += coefficients[f] * np.int64(values[nearest, source])
    total >>= COEFFICIENT_BITS
    return min(max(total, -VALUE_LIMIT), VALUE_LIMIT)


# Streams that the base has room for here: so many that loops over them are not unrolled, which would keep them from
# vectorising. Each is a block of this many numbers in `row`: sums of magnitudes near, states of the trellis.
_BASE_LANES = 32
_NEAR, _STATE = 0, _BASE_LANES


@njit(cache=True, nogil=True)
def decode_base_rows(
    values, neighbors, depths, weights, modes, scales, own_terms, maps, feedback, taps,
    buckets, table_intervals, states, words, cursor, raw, position,
    exponent, size_step, precision, extra, extra_bits,
):  # fmt: skip
    """Decode the base streams of a chunk, Gaussian by Gaussian.

    Args:
        values: (n, W) int32 out. neighbors: (n, 4) int32. depths: (n,) int32.
        weights ... maps: of the RowModel; entries of maps must be valid tables. feedback, taps: of the trellis.
        buckets, table_intervals: of the table set. states, words, cursor: of the rANS stream.
        raw, position: plain bits.
        exponent, size_step, precision: for positions. extra, extra_bits: (n, 3) int64 out, plain bits of positions.

    Returns:
        the position after the last plain bit, or -1 if a class is out of range. Values stay within +-2**28 whatever the
        stream holds.
    """
    n, width = values.shape
    feedback, taps = np.int64(feedback), np.int64(taps)
    # Of the last Gaussians, in one row each: values, then magnitudes. What no Gaussian has been in is 0.
    ring = np.zeros((RING_MASK + 1, 2 * _BASE_LANES), np.int32)
    row = np.zeros(2 * _BASE_LANES, np.int32)
    total, mean = np.zeros(_BASE_LANES), np.zeros(_BASE_LANES)
    means, nearest = np.zeros((_BASE_LANES, _BASE_LANES)), np.zeros((_BASE_LANES, _BASE_LANES))
    bias, slope, alone = np.zeros(_BASE_LANES), np.zeros(_BASE_LANES), np.zeros(_BASE_LANES)
    means[:width, :width], nearest[:width, :width] = weights[FEATURE_MEAN], weights[FEATURE_NEAREST]
    bias[:width], slope[:width] = weights[BIAS, 0], weights[FEATURE_DEPTH, 0]
    # What predictions have from streams of the same Gaussian waits for these, so it is added in integers, which are
    # quicker there and back: features of stream s are begin[s] .. begin[s + 1] - 1.
    begin = np.zeros(width + 1, np.int64)
    sources, coefficients = np.zeros(width * width, np.uint64), np.zeros(width * width, np.int64)
    for s in range(width):
        alone[s] = nearest[s, s]
        nearest[s, s] = 0.0
        count = begin[s]
        for t in range(s):
            if weights[FEATURE_OWN, t, s] != 0.0:
                sources[count], coefficients[count] = t, np.int64(weights[FEATURE_OWN, t, s])
                count += 1
        begin[s + 1] = count
    only_own_nearest = not nearest.any()
    flat_maps, flat_buckets, flat_intervals = maps.ravel(), buckets.ravel(), table_intervals.ravel()
    mask = np.uint64(len(states) - 1)
    source = words if len(words) > 0 else np.zeros(1, np.uint16)
    coded, at, last = np.uint64(cursor[1]), cursor[0], len(source) - 1
    one = np.uint64(1)
    # The rANS cursor is in registers: this loop is where decoding spends its time.
    for i in range(n):
        # Gaussian 0 has neighbours -1, whose row of the ring is still empty.
        a, b = ring[neighbors[i, 0] & RING_MASK], ring[neighbors[i, 1] & RING_MASK]
        c, d = ring[neighbors[i, 2] & RING_MASK], ring[neighbors[i, 3] & RING_MASK]
        depth = np.int64(depths[i])
        x = np.float64(depth << DEPTH_SHIFT)
        for s in range(_BASE_LANES):
            mean[s] = np.float64((a[s] + b[s] + c[s] + d[s]) >> np.int32(2))
        for s in range(_BASE_LANES):
            m = s + _BASE_LANES
            row[_NEAR + s] = a[m] + b[m] + c[m] + d[m]
        for s in range(_BASE_LANES):
            total[s] = (bias[s] + slope[s] * x) + alone[s] * np.float64(a[s])
        for k in range(0, width, 4):
            w, x, y, z = mean[k], mean[k + 1], mean[k + 2], mean[k + 3]
            of_w, of_x, of_y, of_z = means[k], means[k + 1], means[k + 2], means[k + 3]
            for s in range(_BASE_LANES):
                total[s] += (of_w[s] * w + of_x[s] * x) + (of_y[s] * y + of_z[s] * z)
        if not only_own_nearest:
            for k in range(width):
                x, of_x = np.float64(a[k]), nearest[k]
                for s in range(_BASE_LANES):
                    total[s] += of_x[s] * x
        now = ring[i & RING_MASK]
        e = color = np.int64(0)
        for s in range(width):
            if s == SIZE_STREAM:  # the classes are there
                e, color = np.int64(now[0]), np.int64(now[1])
                if min(e, color) < 0 or max(e, color) > MAX_CLASS:
                    return -1
            elif s == COLOR_STREAM:
                e = color
            prediction = np.int64(total[s])
            for f in range(begin[s], begin[s + 1]):
                prediction += coefficients[f] * np.int64(now[sources[f]])
            prediction = min(max(prediction >> COEFFICIENT_BITS, np.int64(-VALUE_LIMIT)), np.int64(VALUE_LIMIT))
            near, state_of = np.int64(row[_NEAR + s]), np.int64(row[_STATE + s])
            quantizer = state_of & 1
            if modes[s] == CONTEXT_CLASS_NEAR:
                level = np.int64(_LEVELS[np.uint64(min(near >> e, np.int64(255)))])
                cell = (quantizer << 7) | (min(e, np.int64(7)) << 4) | level
            else:
                own = np.int64(0)
                if own_terms[s] > 0:
                    own = np.int64(now[_BASE_LANES + s - 1])
                    if own_terms[s] > 1:
                        own += np.int64(now[_BASE_LANES + s - 2])
                cell = context_cell(modes[s], scales[s], e, near, own << 1, quantizer)
            table = np.uint64(flat_maps[np.uint64(s * maps.shape[1] + cell)]) * np.uint64(ALPHABET)
            lane = coded & mask
            state = states[lane]
            slot = state & np.uint64(PROB_SCALE - 1)
            token = np.uint64(flat_buckets[table + (slot >> np.uint64(BUCKET_BITS))])
            interval = np.uint64(flat_intervals[table + token])
            while slot - (interval & np.uint64(0xFFFF)) >= interval >> np.uint64(16):
                token += one
                interval = np.uint64(flat_intervals[table + token])
            state = (
                (interval >> np.uint64(16)) * (state >> np.uint64(PROB_BITS)) + slot - (interval & np.uint64(0xFFFF))
            )
            # No branch: whether a word is needed is a coin toss to the processor.
            need = np.uint64(state < np.uint64(RANS_LOW))
            state = (state << (need << np.uint64(4))) | (np.uint64(source[np.uint64(min(at, last))]) * need)
            at += np.int64(need)
            states[lane] = state
            coded += one
            if token < np.uint64(DIRECT):
                r = np.int64((token + one) >> one)
            else:
                bits = token_bits(np.int64(token))
                rest = np.int64(read_bits(raw, position, bits))
                position += bits
                r = min(abs(value_of(np.int64(token), rest)), np.int64(1 << 27) >> e)
                token = np.uint64(rest & 1)  # the lowest bit says the sign
            sign = -np.int64(token & one)
            point = r
            if s >= SIZE_STREAM:
                point = (r << 1) - (quantizer & np.int64(r != 0))  # as `point_of`
                row[_STATE + s] = next_state(state_of, r, feedback, taps)
            value = prediction + (((point ^ sign) - sign) << e)
            now[s] = min(max(value, np.int64(-VALUE_LIMIT)), np.int64(VALUE_LIMIT))
            now[_BASE_LANES + s] = r << e
        for s in range(width):
            values[i, s] = now[s]
        position = read_position(i, values, depth, exponent, size_step, precision, raw, position, extra, extra_bits)
    cursor[1], cursor[0] = np.int64(coded), at
    if at > len(words):
        cursor[2] = 1
    return position


@njit(cache=True, nogil=True)
def decode_rows(
    values, colors, neighbors, depths, weights, modes, scales, own_terms, maps, feedback, taps,
    buckets, table_intervals, states, words, cursor, raw, position,
):  # fmt: skip
    """Decode the streams of a layer, Gaussian by Gaussian, whatever their context modes.

    Args: as `decode_base_rows`, and
        colors: (n,) int32 colour classes.
    """
    n, width = values.shape
    magnitudes = np.zeros((RING_MASK + 1, width), np.int32)
    trellis = np.zeros(width, np.int64)
    mask = len(states) - 1
    source = words if len(words) > 0 else np.zeros(1, np.uint16)
    coded, at, last = cursor[1], cursor[0], len(source) - 1
    for i in range(n):
        a, b, c, d = neighbors[i, 0], neighbors[i, 1], neighbors[i, 2], neighbors[i, 3]
        depth, e = np.int64(depths[i]), np.int64(colors[i])
        limit = np.int64(1 << 27) >> e
        for s in range(width):
            total = weights[BIAS, 0, s] + weights[FEATURE_DEPTH, 0, s] * np.float64(depth << DEPTH_SHIFT)
            near = own = np.int64(0)
            if i > 0:
                mean = (np.int64(values[a, s]) + values[b, s] + values[c, s] + values[d, s]) >> 2
                total += weights[FEATURE_MEAN, s, s] * np.float64(mean)
                total += weights[FEATURE_NEAREST, s, s] * np.float64(values[a, s])
                near += magnitudes[a & RING_MASK, s] + magnitudes[b & RING_MASK, s]
                near += magnitudes[c & RING_MASK, s] + magnitudes[d & RING_MASK, s]
            if own_terms[s] > 0:
                own += magnitudes[i & RING_MASK, s - 1]
            if own_terms[s] > 1:
                own += magnitudes[i & RING_MASK, s - 2]
            quantizer = trellis[s] & 1
            cell = context_cell(modes[s], scales[s], e, near, own << 1, quantizer)
            table = maps[s, cell]
            state = states[coded & mask]
            slot = state & np.uint64(PROB_SCALE - 1)
            token = np.int64(buckets[table, slot >> np.uint64(BUCKET_BITS)])
            interval = np.uint64(table_intervals[table, token])
            while slot - (interval & np.uint64(0xFFFF)) >= interval >> np.uint64(16):
                token += 1
                interval = np.uint64(table_intervals[table, token])
            state = (
                (interval >> np.uint64(16)) * (state >> np.uint64(PROB_BITS)) + slot - (interval & np.uint64(0xFFFF))
            )
            need = np.uint64(state < np.uint64(RANS_LOW))
            states[coded & mask] = (state << (need << np.uint64(4))) | (np.uint64(source[min(at, last)]) * need)
            at += np.int64(need)
            coded += 1
            rest = np.int64(0)
            if token >= DIRECT:
                bits = token_bits(token)
                rest = np.int64(read_bits(raw, position, bits))
                position += bits
            r = min(max(value_of(token, rest), -limit), limit)
            scaled = np.floor(total * (1.0 / (1 << COEFFICIENT_BITS)))
            prediction = np.int64(min(max(scaled, -float(VALUE_LIMIT)), float(VALUE_LIMIT)))
            values[i, s] = min(max(prediction + (point_of(r, quantizer) << e), -VALUE_LIMIT), VALUE_LIMIT)
            magnitudes[i & RING_MASK, s] = abs(r) << e
            trellis[s] = next_state(trellis[s], r, feedback, taps)
    cursor[1], cursor[0] = coded, at
    if at > len(words):
        cursor[2] = 1
    return position


# Streams that a layer may have here, and where each block of as many numbers of a row begins, after the predictions.
_LAYER_LANES = 24
_CELLS, _TRELLIS, _INDICES = (k * _LAYER_LANES for k in (1, 2, 3))


@njit(cache=True, nogil=True)
def decode_layer_rows(
    values, colors, neighbors, depths, weights, scales, own_terms, maps, feedback, taps,
    buckets, table_intervals, states, words, cursor, raw, position,
):  # fmt: skip
    """`decode_rows` of a layer in its usual form, context mode 3 throughout; the same values, faster.

    Within a row the next context waits for the token before, so that way is kept short: the level of a stream's own
    magnitudes comes from the sizes of the last two residuals alone, as all steps of a row are one. What does not wait
    is done before and after, in loops over _LAYER_LANES streams, filled up with zeros: they vectorise without rest.
    """
    n, width = values.shape
    feedback, taps = np.int32(feedback), np.int32(taps)
    # Of the last Gaussians, in one row each: values, then magnitudes. What no Gaussian has been in is 0.
    ring = np.zeros((RING_MASK + 1, 2 * _LAYER_LANES), np.int32)
    row = np.zeros(4 * _LAYER_LANES, np.int32)  # predictions; see _CELLS
    means, nearest = np.zeros(_LAYER_LANES), np.zeros(_LAYER_LANES)
    bias, slope = np.zeros(_LAYER_LANES), np.zeros(_LAYER_LANES)
    # Of each class and stream where its cells begin.
    bases = np.zeros((MAX_CLASS + 1, _LAYER_LANES), np.int32)
    for s in range(width):
        means[s], nearest[s] = weights[FEATURE_MEAN, s, s], weights[FEATURE_NEAREST, s, s]
        bias[s], slope[s] = weights[BIAS, 0, s], weights[FEATURE_DEPTH, 0, s]
        for c in range(MAX_CLASS + 1):
            bases[c, s] = s * maps.shape[1] + (magnitude_level(scales[s] >> c, 16) << 5)
    flat_maps, flat_buckets, flat_intervals = maps.ravel(), buckets.ravel(), table_intervals.ravel()
    mask = np.uint64(len(states) - 1)
    source = words if len(words) > 0 else np.zeros(1, np.uint16)
    coded, at, last = np.uint64(cursor[1]), cursor[0], len(source) - 1
    one, two = np.uint64(1), np.uint64(2)
    for i in range(n):
        # Gaussian 0 has neighbours -1, whose row of the ring is still empty.
        a, b = ring[neighbors[i, 0] & RING_MASK], ring[neighbors[i, 1] & RING_MASK]
        c, d = ring[neighbors[i, 2] & RING_MASK], ring[neighbors[i, 3] & RING_MASK]
        e = np.int64(colors[i])
        shift = np.int32(e)
        base = bases[e]
        depth = np.float64(np.int64(depths[i]) << DEPTH_SHIFT)
        for s in range(_LAYER_LANES):
            mean = np.float64((a[s] + b[s] + c[s] + d[s]) >> np.int32(2))
            total = (bias[s] + slope[s] * depth) + (means[s] * mean + nearest[s] * np.float64(a[s]))
            scaled = np.floor(total * (1.0 / (1 << COEFFICIENT_BITS)))
            row[s] = np.int32(min(max(scaled, -float(VALUE_LIMIT)), float(VALUE_LIMIT)))
        # Levels by comparing instead of a table.
        for s in range(_LAYER_LANES):
            m = s + _LAYER_LANES
            near = (a[m] + b[m] + c[m] + d[m]) >> shift
            level = np.int32(near > 0) + np.int32(near > 1) + np.int32(near > 2) + np.int32(near > 3)
            level += np.int32(near > 5) + np.int32(near > 7) + np.int32(near > 11)
            row[_CELLS + s] = base[s] + (level << np.int32(2)) + ((row[_TRELLIS + s] & np.int32(1)) << np.int32(9))
        limit = np.int64(1 << 27) >> e
        before = older = np.uint64(0)
        for s in range(width):
            if own_terms[s] == 0:
                before = older = np.uint64(0)
            # Levels 0 1 2 2 3 3 ... of the sum of both sizes.
            own = (_OWN_LEVELS >> (two * (before + older))) & np.uint64(3)
            table = np.uint64(flat_maps[np.uint64(np.uint32(row[_CELLS + s])) + own]) * np.uint64(ALPHABET)
            lane = coded & mask
            state = states[lane]
            slot = state & np.uint64(PROB_SCALE - 1)
            token = np.uint64(flat_buckets[table + (slot >> np.uint64(BUCKET_BITS))])
            interval = np.uint64(flat_intervals[table + token])
            while slot - (interval & np.uint64(0xFFFF)) >= interval >> np.uint64(16):
                token += one
                interval = np.uint64(flat_intervals[table + token])
            state = (
                (interval >> np.uint64(16)) * (state >> np.uint64(PROB_BITS)) + slot - (interval & np.uint64(0xFFFF))
            )
            need = np.uint64(state < np.uint64(RANS_LOW))
            state = (state << (need << np.uint64(4))) | (np.uint64(source[min(at, last)]) * need)
            at += np.int64(need)
            states[lane] = state
            coded += one
            older = before
            if token < np.uint64(DIRECT):
                size = (token + one) >> one
                r = np.int64(size)
                before = min(size, np.uint64(4))
            else:
                bits = token_bits(np.int64(token))
                rest = np.int64(read_bits(raw, position, bits))
                position += bits
                r = abs(value_of(np.int64(token), rest))
                token = np.uint64(rest & 1)  # the lowest bit says the sign
                before = np.uint64(4)
            sign = np.int64(token & one)  # without a branch: it is a coin toss to the processor
            row[_INDICES + s] = (min(r, limit) ^ -sign) + sign
        now = ring[i & RING_MASK]
        for s in range(_LAYER_LANES):
            index = row[_INDICES + s]
            r = abs(index)
            state = row[_TRELLIS + s]
            quantizer = state & np.int32(1)
            row[_TRELLIS + s] = (state >> np.int32(1)) ^ (quantizer * feedback) ^ ((r & np.int32(1)) * taps)
            point = (r << np.int32(1)) - (quantizer & np.int32(r != 0))  # as `point_of`
            point = -point if index < 0 else point
            value = row[s] + (point << shift)
            now[s] = min(max(value, np.int32(-VALUE_LIMIT)), np.int32(VALUE_LIMIT))
            now[_LAYER_LANES + s] = r << shift
        for s in range(width):
            values[i, s] = now[s]
    cursor[1], cursor[0] = np.int64(coded), at
    if at > len(words):
        cursor[2] = 1
    return position


# Two bits for each sum 0..8 of two sizes of at most 4.
_OWN_LEVELS = np.uint64(sum(min(u.bit_length(), 3) << 2 * u for u in range(9)))


@njit(cache=True, inline="always")
def read_position(i, values, depth, exponent, size_step, precision, raw, position, extra, extra_bits):
    """The plain bits of a position, after its Gaussian's own; returns the position in `raw` after them."""
    row = values[i]
    c = np.int64(row[0])
    x = position_bits(exponent, depth, np.int64(row[SIZE_STREAM]), size_step, precision, c)
    y = position_bits(exponent, depth, np.int64(row[SIZE_STREAM + 1]), size_step, precision, c)
    z = position_bits(exponent, depth, np.int64(row[SIZE_STREAM + 2]), size_step, precision, c)
    extra_bits[i, 0], extra_bits[i, 1], extra_bits[i, 2] = x, y, z
    byte = np.uint64(position) >> np.uint64(3)
    if x + y + z <= 56 and byte + np.uint64(8) <= np.uint64(len(raw)):  # one word holds them all: the usual case
        word = np.uint64(0)
        for k in range(8):
            word |= np.uint64(raw[byte + np.uint64(k)]) << np.uint64(56 - 8 * k)
        word <<= np.uint64(position) & np.uint64(7)
        # In two steps, as a shift by 64 is not one to 0.
        extra[i, 0] = word >> np.uint64(1) >> np.uint64(63 - x)
        word <<= np.uint64(x)
        extra[i, 1] = word >> np.uint64(1) >> np.uint64(63 - y)
        word <<= np.uint64(y)
        extra[i, 2] = word >> np.uint64(1) >> np.uint64(63 - z)
        return position + x + y + z
    for axis in range(3):
        bits = extra_bits[i, axis]
        extra[i, axis] = np.int64(read_bits(raw, position, bits))
        position += bits
    return position


# A table's buckets take as much room as its intervals have entries.
assert ALPHABET == 128 == PROB_SCALE >> BUCKET_BITS
