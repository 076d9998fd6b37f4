"""Mixed columns: integers of few bits as binary decisions whose probabilities several models agree on (SPEC.md, 4.5).

A value is coded as its difference from the prediction. Seven adaptive models look at each decision in different
contexts; their opinions are added in the logistic domain with weights that learn whom to trust (Mahoney's PAQ family,
"Adaptive weighing of context models", 2005). All arithmetic on probabilities is on integers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.bits import read_bits, write_bits
from ..entropy.rans import PROB_SCALE, decode_advance, decode_slot, pack_interval
from .lossless_kernels import _POWER_MIN, ACTIVITY_LIMIT, POWERS, RESIDUAL_LIMIT, _expect, _level
from .mixing import STRETCH, squash

__all__ = ["MAX_DECISIONS", "NO_CLASS", "MixedColumn", "Mixer", "decode_mixed", "encode_mixed", "new_mixer"]

INPUTS = 7
NODES = 64
LEVELS = 24
VALUES = 256  # contexts of the second input: where the values begin that a decision is about
NARROW = 8  # bits of a column all of whose decisions are mixed
RATE_LIMIT = 254
MAX_LENGTH = 33  # bits of a difference
MAX_DECISIONS = 2 + MAX_LENGTH + 2 + NARROW  # of one value
NO_CLASS = 3  # what a column that is not mixed is taken for
_CONTEXTS = (LEVELS, 96, VALUES, 81, 49, 49)  # of one column; the last input's contexts are shared by all
_SHARED = 4 * LEVELS
_START = np.array([sum(_CONTEXTS[:k]) for k in range(len(_CONTEXTS))], np.int64)
_COLUMN = sum(_CONTEXTS)
_WEIGHT = 9000  # at the start, of 65536; two of them are added
# Steps of an adaptive bit as in entropy/adaptive.py, but slower in the long run.
STEPS = np.array([65536 // (2 * n + 3) for n in range(RATE_LIMIT + 1)], np.int32)
# What a model that has seen n decisions is worth, of 256.
TRUST = np.array([256 * (2 * n + 1) // (2 * n + 3) for n in range(RATE_LIMIT + 1)], np.int32)


class MixedColumn(NamedTuple):
    """What the kernels need of a mixed column beside its ColumnModel.

    Attributes:
        number: of the column among the mixed ones. quantum: predictions >> this are 0..255.
    """

    number: int
    quantum: int


class Mixer(NamedTuple):
    """Models and weights of one group of columns in a block.

    Attributes:
        models: (contexts * NODES, 2) int32: probability of a one in 1/65536, decisions seen.
        by_column: (columns * NODES, INPUTS) int32 in 1/65536. by_level: (LEVELS * NODES, INPUTS).
        shared: first context that all columns share.
    """

    models: npt.NDArray[np.int32]
    by_column: npt.NDArray[np.int32]
    by_level: npt.NDArray[np.int32]
    shared: int


def new_mixer(columns: int) -> Mixer:
    """Models and weights at their start."""
    models = np.zeros(((columns * _COLUMN + _SHARED) * NODES, 2), np.int32)
    models[:, 0] = 1 << 15
    return Mixer(
        models,
        np.full((columns * NODES, INPUTS), _WEIGHT, np.int32),
        np.full((LEVELS * NODES, INPUTS), _WEIGHT, np.int32),
        columns * _COLUMN,
    )


@njit(cache=True, nogil=True)
def _class(x, c):
    """0..6: large negative, negative, small negative, about zero, and the same upwards, in steps of 2**c."""
    m = abs(x) >> c
    level = 0 if m == 0 else (1 if m < 2 else (2 if m < 4 else 3))
    return 3 - level if x < 0 else 3 + level


@njit(cache=True, nogil=True)
def _wide_class(x, c):
    """`_class` with one step more: 0..8."""
    m = abs(x) >> c
    level = 0 if m == 0 else (1 if m < 2 else (2 if m < 3 else (3 if m < 6 else 4)))
    return 4 - level if x < 0 else 4 + level


@njit(cache=True, nogil=True)
def _contexts(i, model, column, mu, level, keys, links, before, partner, third, mixer, rows):
    """(prediction, c): the whole number nearest to mu, and log2 of what is small beside the expected difference."""
    whole = np.floor(mu + 0.5)
    predicted = np.int64(min(max(whole, 0.0), np.float64((np.int64(1) << model.width) - 1)))
    part = np.int64(min(max((mu - whole + 0.5) * 8.0, 0.0), 7.0))
    c = min(max(model.unit + (level >> 1) - 7, 0), 40)
    first = links.near[i, 0]
    second = links.near[i, 1]
    nearest = np.int64(keys[first - 1]) - predicted if first else np.int64(0)
    other = np.int64(keys[second - 1]) - predicted if second else np.int64(0)
    start = column.number * _COLUMN
    rows[0] = start + _START[0] + level
    rows[1] = start + _START[1] + part * 12 + (level >> 1)
    rows[2] = 0  # see `_begin`
    rows[3] = start + _START[3] + _wide_class(nearest, c) * 9 + _wide_class(other, c)
    rows[4] = start + _START[4] + np.int64(before[i]) * 7 + np.int64(partner[i])
    rows[5] = start + _START[5] + np.int64(partner[i]) * 7 + np.int64(third[i])
    rows[6] = mixer.shared + (part >> 1) * LEVELS + level
    for k in range(INPUTS):
        rows[k] *= NODES
    return predicted, c


@njit(cache=True, nogil=True)
def _begin(column, value, rows):
    """Set the context of the input that knows where the values begin that the next decision is about."""
    place = min(max(value >> column.quantum, 0), VALUES - 1)
    rows[2] = (column.number * _COLUMN + _START[2] + place) * NODES


@njit(cache=True, nogil=True)
def _learn_mixed(i, model, key, offset, step, mu, mean, rows, activity):
    """`_learn` for a key in a box."""
    x = np.float64(np.int64(key))
    rows.values[i + 1] = np.float32(offset + step * x - model.centre)
    rows.means[i] = np.float32(mean)
    residual = min(abs(x - mu) * step * POWERS[-model.unit - _POWER_MIN], RESIDUAL_LIMIT)
    rows.residuals[i + 1] = np.float32(residual)
    activity[i] += (min(residual, ACTIVITY_LIMIT) - activity[i]) * 0.125


@njit(cache=True, nogil=True)
def _probability(node, number, level, rows, mixer, inputs):
    """Mixed probability of a one, 1..4095; fills `inputs` (INPUTS,) with the stretched opinions."""
    a = mixer.by_column[number * NODES + node]
    b = mixer.by_level[level * NODES + node]
    total = np.int64(0)
    for k in range(INPUTS):
        model = mixer.models[rows[k] + node]
        inputs[k] = (STRETCH[model[0] >> 4] * TRUST[model[1]]) >> 8
        total += (np.int64(a[k]) + np.int64(b[k])) * np.int64(inputs[k])
    return min(max(squash(total >> 16), 1), PROB_SCALE - 1)


@njit(cache=True, nogil=True)
def _update(node, number, level, rows, mixer, inputs, p, bit):
    error = (np.int64(bit) << 12) - np.int64(p)
    a = mixer.by_column[number * NODES + node]
    b = mixer.by_level[level * NODES + node]
    target = np.int64(65535) if bit else np.int64(0)
    for k in range(INPUTS):
        change = (np.int64(inputs[k]) * error + (1 << 12)) >> 13
        a[k] = min(max(a[k] + change, -(1 << 20)), 1 << 20)
        b[k] = min(max(b[k] + change, -(1 << 20)), 1 << 20)
        model = mixer.models[rows[k] + node]
        n = model[1]
        model[0] += np.int32(((target - np.int64(model[0])) * np.int64(STEPS[n])) >> 15)
        if n < RATE_LIMIT:
            model[1] = n + 1


@njit(cache=True, nogil=True)
def _put(node, bit, number, level, rows, mixer, inputs, intervals, count):
    p = _probability(node, number, level, rows, mixer, inputs)
    intervals[count] = pack_interval(p, 0) if bit else pack_interval(PROB_SCALE - p, p)
    _update(node, number, level, rows, mixer, inputs, p, bit)
    return count + 1


@njit(cache=True, nogil=True)
def _get(node, number, level, rows, mixer, inputs, states, words, cursor):
    p = _probability(node, number, level, rows, mixer, inputs)
    slot = decode_slot(states, cursor)
    bit = 1 if slot < np.uint64(p) else 0
    if bit:
        decode_advance(states, words, cursor, slot, p, 0)
    else:
        decode_advance(states, words, cursor, slot, PROB_SCALE - p, p)
    _update(node, number, level, rows, mixer, inputs, p, bit)
    return bit


@njit(cache=True, nogil=True)
def encode_mixed(
    model,
    column,
    keys,
    base,
    offset,
    step,
    links,
    state,
    rows,
    classes,
    before,
    partner,
    third,
    mixer,
    intervals,
    count,
    raw,
):
    """Append the decisions of one column of a block to `intervals`.

    Args:
        model, column: ColumnModel and MixedColumn.
        keys: (n,) uint64, the values.
        base, links, state, rows: as in `encode_column`.
        offset, step: (n,) float64, what predictions see of a key is offset + step * key.
        classes: (n,) uint8 out, classes of this column's differences; before, partner, third: of other columns.
        mixer: Mixer.
        intervals: uint32, MAX_DECISIONS for each value. count: intervals so far.
        raw: uint8 out, zeros.

    Returns:
        (intervals, raw bits) so far.
    """
    position = 0
    contexts, inputs = np.zeros(INPUTS, np.int64), np.zeros(INPUTS, np.int32)
    number = column.number
    for i in range(len(keys)):
        mu, expected, mean = _expect(i, model, base, links, rows, state.activity)
        mu = (mu - offset[i]) / step[i]
        level = _level(expected / step[i])
        predicted, c = _contexts(i, model, column, mu, level, keys, links, before, partner, third, mixer, contexts)
        r = np.int64(keys[i]) - predicted
        classes[i] = _class(r, c)
        _begin(column, predicted, contexts)
        count = _put(0, 1 if r == 0 else 0, number, level, contexts, mixer, inputs, intervals, count)
        if r != 0:
            count = _put(1, 1 if r < 0 else 0, number, level, contexts, mixer, inputs, intervals, count)
            m = abs(r)
            side = np.int64(-1) if r < 0 else np.int64(1)
            length = 1
            while m >> length:
                length += 1
            for k in range(1, length + 1):
                if k < MAX_LENGTH:
                    bit = 1 if k == length else 0
                    node = 1 + min(k, 24)
                    _begin(column, predicted + side * (np.int64(1) << (k - 1)), contexts)
                    count = _put(node, bit, number, level, contexts, mixer, inputs, intervals, count)
            if length > 1:
                node = 23 + 3 * min(length, 12)
                upper = (m >> (length - 2)) & 1
                _begin(column, predicted + side * (np.int64(1) << (length - 1)), contexts)
                count = _put(node, upper, number, level, contexts, mixer, inputs, intervals, count)
                if length > 2:
                    lower = (m >> (length - 3)) & 1
                    _begin(column, predicted + side * ((m >> (length - 2)) << (length - 2)), contexts)
                    count = _put(node + 1 + upper, lower, number, level, contexts, mixer, inputs, intervals, count)
            if length > 3 and model.width <= NARROW:
                for k in range(length - 4, -1, -1):
                    _begin(column, predicted + side * ((m >> (k + 1)) << (k + 1)), contexts)
                    bit = (m >> k) & 1
                    count = _put(11 + k, bit, number, level, contexts, mixer, inputs, intervals, count)
            elif length > 3:
                position = write_bits(raw, position, np.uint64(m & ((np.int64(1) << (length - 3)) - 1)), length - 3)
        _learn_mixed(i, model, keys[i], offset[i], step[i], mu, mean, rows, state.activity)
        state.marks[i] = 0
    return count, position


@njit(cache=True, nogil=True)
def decode_mixed(
    model,
    column,
    keys,
    base,
    offset,
    step,
    links,
    state,
    rows,
    classes,
    before,
    partner,
    third,
    mixer,
    states,
    words,
    cursor,
    raw,
):
    """Inverse of `encode_mixed`: fills `keys`; returns the number of raw bits, or -1 if a value is impossible."""
    position = 0
    contexts, inputs = np.zeros(INPUTS, np.int64), np.zeros(INPUTS, np.int32)
    number = column.number
    for i in range(len(keys)):
        mu, expected, mean = _expect(i, model, base, links, rows, state.activity)
        mu = (mu - offset[i]) / step[i]
        level = _level(expected / step[i])
        predicted, c = _contexts(i, model, column, mu, level, keys, links, before, partner, third, mixer, contexts)
        r = np.int64(0)
        _begin(column, predicted, contexts)
        if not _get(0, number, level, contexts, mixer, inputs, states, words, cursor):
            negative = _get(1, number, level, contexts, mixer, inputs, states, words, cursor)
            side = np.int64(-1) if negative else np.int64(1)
            length = 1
            while length < MAX_LENGTH:
                _begin(column, predicted + side * (np.int64(1) << (length - 1)), contexts)
                if _get(1 + min(length, 24), number, level, contexts, mixer, inputs, states, words, cursor):
                    break
                length += 1
            if length > model.width:
                return -1
            r = np.int64(1)
            if length > 1:
                node = 23 + 3 * min(length, 12)
                _begin(column, predicted + side * (np.int64(1) << (length - 1)), contexts)
                upper = _get(node, number, level, contexts, mixer, inputs, states, words, cursor)
                r = (r << 1) | upper
                if length > 2:
                    _begin(column, predicted + side * (r << (length - 2)), contexts)
                    lower = _get(node + 1 + upper, number, level, contexts, mixer, inputs, states, words, cursor)
                    r = (r << 1) | lower
            if length > 3 and model.width <= NARROW:
                for k in range(length - 4, -1, -1):
                    _begin(column, predicted + side * (r << (k + 1)), contexts)
                    r = (r << 1) | _get(11 + k, number, level, contexts, mixer, inputs, states, words, cursor)
            elif length > 3:
                r = (r << (length - 3)) | np.int64(read_bits(raw, position, length - 3))
                position += length - 3
            if negative:
                r = -r
        classes[i] = _class(r, c)
        if predicted + r < 0 or (predicted + r) >> model.width:
            return -1
        keys[i] = np.uint64(predicted + r)
        _learn_mixed(i, model, keys[i], offset[i], step[i], mu, mean, rows, state.activity)
        state.marks[i] = 0
    return position
