"""Attribute streams: integer prediction from decoded neighbours, context choice, tokens (SPEC.md, section 3.5).

A scene's attributes are S streams of integers in base units, coded one stream after the other. A Gaussian's class c
makes its step 2**c base units: the residual r is coded, the value is prediction + (r << c). Predictions are integer
combinations of what is already decoded: the same attribute of near Gaussians, other attributes of this one. The
context of a residual is how large residuals were nearby, in units of its own step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.bits import read_bits, write_bits
from ..entropy.rans import PROB_BITS, PROB_SCALE, RANS_LOW, pack_interval
from ..entropy.tables import ALPHABET, DIRECT, token_bits, token_of, value_of

__all__ = [
    "COEFFICIENT_BITS",
    "CONTEXT_CELLS",
    "FEATURE_DEPTH",
    "FEATURE_MEAN",
    "FEATURE_NEAREST",
    "FEATURE_OWN",
    "MAX_CLASS",
    "Predictor",
    "decode_stream",
    "emit_stream",
    "feature_column",
    "histogram_stream",
    "quantize_stream",
]

COEFFICIENT_BITS = 12  # predictor coefficients are in units of 1/4096
VALUE_LIMIT = 1 << 28
MAX_CLASS = 15
FEATURE_MEAN, FEATURE_NEAREST, FEATURE_OWN, FEATURE_DEPTH = 0, 1, 2, 3
DEPTH_SHIFT = 8
# Context modes: which two or three magnitudes choose the table, and how many cells that gives.
CONTEXT_CLASS_NEAR, CONTEXT_NEAR_OWN, CONTEXT_CLASS_OWN, CONTEXT_SCALE_NEAR_OWN = 0, 1, 2, 3
CONTEXT_CELLS = (128, 128, 128, 512)


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


@njit(cache=True, inline="always")
def magnitude_level(x, levels):
    """0..levels-1, exact below 4, then two levels an octave."""
    if x < 4:
        return min(x, levels - 1)
    n = 0
    while x >> n:
        n += 1
    return min(2 * n - 2 + ((x >> (n - 2)) & 1), levels - 1)


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
def _context(i, mode, scale, c, own_terms, near_row, own_row, older_row, neighbors):
    """Context cell of residual i; `own_terms` is how many of the two rows before count."""
    near = np.int64(0)
    if mode != CONTEXT_CLASS_OWN and i > 0:
        near = (
            np.int64(near_row[neighbors[i, 0]])
            + near_row[neighbors[i, 1]]
            + near_row[neighbors[i, 2]]
            + near_row[neighbors[i, 3]]
        ) >> c
    own = np.int64(0)
    if mode != CONTEXT_CLASS_NEAR and own_terms > 0:
        own = np.int64(own_row[i])
        if own_terms > 1:
            own += older_row[i]
        own = (own << 1) >> c
    if mode == CONTEXT_CLASS_NEAR:
        return (min(c, 7) << 4) | magnitude_level(near, 16)
    if mode == CONTEXT_NEAR_OWN:
        return (magnitude_level(near, 16) << 3) | magnitude_level(own, 8)
    if mode == CONTEXT_CLASS_OWN:
        return (min(c, 7) << 4) | magnitude_level(own, 16)
    return (
        (magnitude_level(np.int64(scale) >> c, 16) << 5)
        | (magnitude_level(near, 8) << 2)
        | (magnitude_level(own, 8) >> 1)
    )


@njit(cache=True, nogil=True)
def quantize_stream(
    stream, targets, classes, values, magnitudes, residuals, neighbors, depths, bias, kinds, sources, coefficients
):
    """Quantize one stream in a closed loop.

    Args:
        stream: row of `values`, `magnitudes` and `residuals` to fill.
        targets: (n,) float64 wanted values in base units.
        classes: (n,) int32 step exponents.
        values, magnitudes, residuals: (S, n) int32.
        neighbors: (n, 4) int32. depths: (n,) int32.
        bias, kinds, sources, coefficients: the Predictor's fields.
    """
    n = len(targets)
    base, column = np.empty(n, np.int64), np.empty(n, np.int64)
    mean, nearest = prepare(stream, values, neighbors, depths, bias, kinds, sources, coefficients, base, column)
    row, magnitude, residual = values[stream], magnitudes[stream], residuals[stream]
    for i in range(n):
        prediction = predict(i, base, mean, nearest, row, neighbors)
        c = np.int64(classes[i])
        r = np.int64(np.rint((targets[i] - prediction) / (np.int64(1) << c)))
        limit = np.int64(1 << 27) >> c
        r = min(max(r, -limit), limit)
        row[i] = min(max(prediction + (r << c), -VALUE_LIMIT), VALUE_LIMIT)
        residual[i] = r
        magnitude[i] = abs(r) << c


@njit(cache=True, nogil=True)
def histogram_stream(stream, group, mode, scale, classes, magnitudes, residuals, neighbors, histogram):
    """Add the tokens of a stream to (cells, ALPHABET) int64 `histogram`; returns the number of raw bits."""
    raw = 0
    own_terms = min(stream - group, 2)
    near_row, own_row, older_row = magnitudes[stream], magnitudes[max(stream - 1, 0)], magnitudes[max(stream - 2, 0)]
    for i in range(len(classes)):
        cell = _context(i, mode, scale, np.int64(classes[i]), own_terms, near_row, own_row, older_row, neighbors)
        token, bits, _ = token_of(np.int64(residuals[stream, i]))
        histogram[cell, token] += 1
        raw += bits
    return raw


@njit(cache=True, nogil=True)
def emit_stream(
    stream,
    group,
    mode,
    scale,
    classes,
    magnitudes,
    residuals,
    neighbors,
    context_map,
    freq,
    start,
    intervals,
    count,
    raw,
    position,
):
    """Append the stream's intervals and raw bits; returns (count, position)."""
    own_terms = min(stream - group, 2)
    near_row, own_row, older_row = magnitudes[stream], magnitudes[max(stream - 1, 0)], magnitudes[max(stream - 2, 0)]
    for i in range(len(classes)):
        cell = _context(i, mode, scale, np.int64(classes[i]), own_terms, near_row, own_row, older_row, neighbors)
        table = context_map[cell]
        token, bits, rest = token_of(np.int64(residuals[stream, i]))
        intervals[count] = pack_interval(freq[table, token], start[table, token])
        count += 1
        if bits:
            position = write_bits(raw, position, np.uint64(rest), bits)
    return count, position


@njit(cache=True, nogil=True)
def decode_stream(
    stream,
    group,
    mode,
    scale,
    classes,
    values,
    magnitudes,
    neighbors,
    depths,
    bias,
    kinds,
    sources,
    coefficients,
    context_map,
    lookup,
    freq,
    start,
    states,
    words,
    cursor,
    raw,
    position,
):
    """Decode one stream into row `stream` of `values` and `magnitudes`; returns the raw bit position.

    `context_map` entries must be valid tables; values stay within +-2**28 whatever the stream holds.
    """
    n = len(classes)
    base, column = np.empty(n, np.int64), np.empty(n, np.int64)
    mean, nearest = prepare(stream, values, neighbors, depths, bias, kinds, sources, coefficients, base, column)
    own_terms = min(stream - group, 2)
    near_row, own_row, older_row = magnitudes[stream], magnitudes[max(stream - 1, 0)], magnitudes[max(stream - 2, 0)]
    row = values[stream]
    # `decode_token` with the cursor in registers: this loop is where decoding spends its time.
    mask = len(states) - 1
    source = words if len(words) > 0 else np.zeros(1, np.uint16)
    coded, at, last = cursor[1], cursor[0], len(source) - 1
    for i in range(n):
        c = np.int64(classes[i])
        prediction = predict(i, base, mean, nearest, row, neighbors)
        table = context_map[_context(i, mode, scale, c, own_terms, near_row, own_row, older_row, neighbors)]
        state = states[coded & mask]
        slot = state & np.uint64(PROB_SCALE - 1)
        token = np.int64(lookup[table, slot])
        state = np.uint64(freq[table, token]) * (state >> np.uint64(PROB_BITS)) + slot - np.uint64(start[table, token])
        # No branch: whether a word is needed is a coin toss to the processor.
        need = np.uint64(state < np.uint64(RANS_LOW))
        state = (state << (need << np.uint64(4))) | (np.uint64(source[min(at, last)]) * need)
        at += np.int64(need)
        states[coded & mask] = state
        coded += 1
        rest = np.int64(0)
        if token >= DIRECT:
            bits = token_bits(token)
            rest = np.int64(read_bits(raw, position, bits))
            position += bits
        limit = np.int64(1 << 27) >> c
        r = min(max(value_of(token, rest), -limit), limit)
        row[i] = min(max(prediction + (r << c), -VALUE_LIMIT), VALUE_LIMIT)
        near_row[i] = abs(r) << c
    cursor[1], cursor[0] = coded, at
    if at > len(words):
        cursor[2] = 1
    return position


assert ALPHABET == 128
