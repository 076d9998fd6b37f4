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
from ..entropy.rans import pack_interval
from ..entropy.tables import ALPHABET, decode_token, token_bits, token_of, value_of

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
def _magnitude_level(x, levels):
    """0..levels-1, exact below 4, then two levels an octave."""
    if x < 4:
        return min(x, levels - 1)
    n = 0
    while x >> n:
        n += 1
    return min(2 * n - 2 + ((x >> (n - 2)) & 1), levels - 1)


@njit(cache=True)
def _feature(i, kind, source, values, neighbors, depths):
    if kind == FEATURE_OWN:
        return np.int64(values[source, i])
    if kind == FEATURE_DEPTH:
        return np.int64(depths[i]) << DEPTH_SHIFT
    if i == 0:
        return np.int64(0)
    if kind == FEATURE_NEAREST:
        return np.int64(values[source, neighbors[i, 0]])
    total = np.int64(0)
    for k in range(4):
        total += values[source, neighbors[i, k]]
    return total >> 2


@njit(cache=True)
def _predict(i, values, neighbors, depths, bias, kinds, sources, coefficients):
    total = np.int64(bias) + (np.int64(1) << (COEFFICIENT_BITS - 1))
    for f in range(len(kinds)):
        total += coefficients[f] * _feature(i, kinds[f], sources[f], values, neighbors, depths)
    return min(max(total >> COEFFICIENT_BITS, -VALUE_LIMIT), VALUE_LIMIT)


@njit(cache=True)
def _context(i, stream, group, mode, scale, cls, magnitudes, neighbors):
    """Context cell of residual i of `stream`; `group` is the first stream whose residuals count as its own."""
    near = np.int64(0)
    if mode != CONTEXT_CLASS_OWN and i > 0:
        for k in range(4):
            near += magnitudes[stream, neighbors[i, k]]
        near >>= cls
    own = np.int64(0)
    if mode != CONTEXT_CLASS_NEAR:
        if stream > group:
            own += magnitudes[stream - 1, i]
        if stream > group + 1:
            own += magnitudes[stream - 2, i]
        own = (own << 1) >> cls
    if mode == CONTEXT_CLASS_NEAR:
        return (min(cls, 7) << 4) | _magnitude_level(near, 16)
    if mode == CONTEXT_NEAR_OWN:
        return (_magnitude_level(near, 16) << 3) | _magnitude_level(own, 8)
    if mode == CONTEXT_CLASS_OWN:
        return (min(cls, 7) << 4) | _magnitude_level(own, 16)
    return (
        (_magnitude_level(np.int64(scale) >> cls, 16) << 5)
        | (_magnitude_level(near, 8) << 2)
        | (_magnitude_level(own, 8) >> 1)
    )


@njit(cache=True, nogil=True)
def feature_matrix(values, neighbors, depths, kinds, sources, matrix):
    """(n, F) float64 features of every Gaussian, for fitting predictors."""
    for i in range(matrix.shape[0]):
        for f in range(len(kinds)):
            matrix[i, f] = _feature(i, kinds[f], sources[f], values, neighbors, depths)


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
    for i in range(len(targets)):
        prediction = _predict(i, values, neighbors, depths, bias, kinds, sources, coefficients)
        c = classes[i]
        r = np.int64(np.rint((targets[i] - prediction) / (np.int64(1) << c)))
        limit = np.int64(1 << 27) >> c
        r = min(max(r, -limit), limit)
        values[stream, i] = min(max(prediction + (r << c), -VALUE_LIMIT), VALUE_LIMIT)
        residuals[stream, i] = r
        magnitudes[stream, i] = abs(r) << c


@njit(cache=True, nogil=True)
def histogram_stream(stream, group, mode, scale, classes, magnitudes, residuals, neighbors, histogram):
    """Add the tokens of a stream to (cells, ALPHABET) int64 `histogram`; returns the number of raw bits."""
    raw = 0
    for i in range(len(classes)):
        cell = _context(i, stream, group, mode, scale, classes[i], magnitudes, neighbors)
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
    for i in range(len(classes)):
        cell = _context(i, stream, group, mode, scale, classes[i], magnitudes, neighbors)
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
    for i in range(len(classes)):
        c = classes[i]
        prediction = _predict(i, values, neighbors, depths, bias, kinds, sources, coefficients)
        table = context_map[_context(i, stream, group, mode, scale, c, magnitudes, neighbors)]
        token = decode_token(lookup, freq, start, table, states, words, cursor)
        bits = token_bits(token)
        rest = np.int64(0)
        if bits:
            rest = np.int64(read_bits(raw, position, bits))
            position += bits
        limit = np.int64(1 << 27) >> c
        r = min(max(value_of(token, rest), -limit), limit)
        values[stream, i] = min(max(prediction + (r << c), -VALUE_LIMIT), VALUE_LIMIT)
        magnitudes[stream, i] = abs(r) << c
    return position


assert ALPHABET == 128
