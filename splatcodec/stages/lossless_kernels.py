"""Inner loops of the lossless column coder: neighbours, prediction, and one value to one token and raw bits.

The exact rules are in bitstreams/SPEC.md, section 4; names here follow it. Encoder and decoder share every function
that a value's prediction depends on. All floating point is float64 with + - * / and sqrt in the order written, and
float32 only as a storage format, so any IEEE 754 machine gives the same bits.

Values of a block are numbered in coding order. `values`, `residuals` have one slot more than rows: slot 0 stands for
"no such row", slot i + 1 for row i.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.adaptive import GAMMA_MODELS, decode_gamma, encode_gamma
from ..entropy.bits import bit_length, read_bits, write_bits
from ..entropy.rans import PROB_BITS, PROB_SCALE, RANS_LOW, pack_interval

__all__ = [
    "CLASSES",
    "ESCAPE",
    "FLOAT_LIMIT",
    "MAX_RAW_BITS",
    "NUM_NEAR",
    "TWIN",
    "TWIN_MODELS",
    "ColumnModel",
    "ColumnRows",
    "RowLinks",
    "RowState",
    "Tables",
    "add_feature",
    "decode_column",
    "decode_twins",
    "encode_column",
    "encode_twins",
    "find_nearest",
    "find_previous",
    "interleave",
    "list_intervals",
    "near_means",
    "sphere_base",
    "vote_twins",
]

NUM_NEAR = 4
WINDOW = 32
DISTANCE_FLOOR = 0.5  # of the nearest row's squared distance, added to each before it is inverted
FLOAT_LIMIT = 1e18  # larger magnitudes predict nothing: sums and products of smaller ones cannot overflow

SPECIAL, ESCAPE, TWIN, FIRST = 0, 1, 2, 3  # tokens; from FIRST: 62 magnitude classes of d >= 0, 62 of d < 0
SIDE = 62
DIRECT = 16
CLASSES = 9  # context classes of one family of columns
LEVEL_UNIT = 64  # levels count half octaves of expected residual from 1 / LEVEL_UNIT of the column's unit
MAX_LEVEL_VALUE = 4095
STEP_SHIFT = 8  # the step is between 1/4 and 1/8 of the expected residual
MAX_ZEROS = 15
MAX_RAW_BITS = 13 + MAX_ZEROS + 1 + 64 + 1  # of one value
RESIDUAL_LIMIT = 64.0
ACTIVITY_LIMIT = 8.0
SPHERE_FLOOR = 2.0**-12
MARK_SPECIAL, MARK_TWIN = 1, 2
_CELL_LIMIT = 2.0**61

_POWER_MIN = -1074
POWERS = np.array([2.0**e for e in range(_POWER_MIN, 1024)])  # POWERS[e + 1074] = 2**e, exact
# Level of v = 1..4095: twice the position of the top bit, plus the bit under it.
LEVELS = np.zeros(MAX_LEVEL_VALUE + 1, np.int64)
for _v in range(2, MAX_LEVEL_VALUE + 1):
    LEVELS[_v] = 2 * _v.bit_length() - 2 + (_v >> (_v.bit_length() - 2) & 1)


class ColumnModel(NamedTuple):
    """How one column is predicted and coded; see SPEC.md section 4.2 for each field."""

    is_float: bool
    mantissa: int
    bias: int
    width: int
    special: np.uint64
    centre: float
    unit: int
    mean_weight: float
    near_weight: float
    scale_near: float
    scale_activity: float
    scale_const: float
    sphere: bool
    first_cell: int


class RowLinks(NamedTuple):
    """Which earlier rows predict a row.

    Attributes:
        near: (n, NUM_NEAR) int32 slots, nearest first; 0 = none.
        weight: (n, NUM_NEAR) float32, of each in the mean.
        twin: (n,) int32 row that many values are equal to, or -1.
    """

    near: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    twin: npt.NDArray[np.int32]


class RowState(NamedTuple):
    """What the columns coded so far say about each row.

    Attributes:
        activity: (n,) float64, running mean of residuals in units.
        marks: (n,) uint8, MARK_SPECIAL and MARK_TWIN if the last column's value was the special one or the twin's.
    """

    activity: npt.NDArray[np.float64]
    marks: npt.NDArray[np.uint8]


class ColumnRows(NamedTuple):
    """One column's values as predictions see them.

    Attributes:
        values: (n + 1,) float32, value minus centre, 0 where it is not finite; slot 0 is 0.
        means: (n,) float32, weighted mean of the near rows' values.
        residuals: (n + 1,) float32, absolute residual in units; slot 0 is 0.
    """

    values: npt.NDArray[np.float32]
    means: npt.NDArray[np.float32]
    residuals: npt.NDArray[np.float32]


class Tables(NamedTuple):
    """Entropy tables (entropy/tables.py), the context map, and the rANS stream being read.

    `words` has a zero after the last word of the stream, so that there is always one to read.
    """

    context_map: npt.NDArray[np.uint8]
    lookup: npt.NDArray[np.uint8]
    freq: npt.NDArray[np.uint16]
    start: npt.NDArray[np.uint16]
    states: npt.NDArray[np.uint64]
    words: npt.NDArray[np.uint16]
    cursor: npt.NDArray[np.int64]


# ---- Rows: spatial order, near rows, twins -------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def interleave(positions, codes):
    """Morton codes of rows: 17 bits an axis of a cube around the block.

    Args:
        positions: (3, n) float64, finite.
        codes: (n,) int64 out; x in bits 0, 3, 6, ...
    """
    rows = positions.shape[1]
    extent = 0.0
    low = np.zeros(3)
    for axis in range(3):
        lowest = highest = positions[axis, 0]
        for i in range(rows):
            lowest = min(lowest, positions[axis, i])
            highest = max(highest, positions[axis, i])
        low[axis] = lowest
        extent = max(extent, highest - lowest)
    scale = 131071.0 / extent if extent > 0.0 else 0.0
    if not scale < np.inf:
        scale = 0.0
    for i in range(rows):
        code = np.int64(0)
        for axis in range(3):
            q = np.int64((positions[axis, i] - low[axis]) * scale)
            q = (q | (q << 32)) & 0x1F00000000FFFF
            q = (q | (q << 16)) & 0x1F0000FF0000FF
            q = (q | (q << 8)) & 0x100F00F00F00F00F
            q = (q | (q << 4)) & 0x10C30C30C30C30C3
            q = (q | (q << 2)) & 0x1249249249249249
            code |= q << axis
        codes[i] = code


@njit(cache=True, nogil=True)
def find_nearest(positions, near, weight):
    """The NUM_NEAR nearest of the WINDOW rows before each row, and their weights.

    Args:
        positions: (3, n) float64, finite, in coding order.
        near: (n, NUM_NEAR) int32 out, slots, nearest first; of equal distances the later row comes first.
        weight: (n, NUM_NEAR) float32 out, 1 / (squared distance + half the smallest one), scaled to a sum of 1.
    """
    best = np.zeros(NUM_NEAR)
    for i in range(positions.shape[1]):
        found = 0
        x, y, z = positions[0, i], positions[1, i], positions[2, i]
        for j in range(i - 1, max(i - WINDOW, 0) - 1, -1):
            dx, dy, dz = x - positions[0, j], y - positions[1, j], z - positions[2, j]
            distance = dx * dx + dy * dy + dz * dz
            if found == NUM_NEAR:
                if not distance < best[NUM_NEAR - 1]:
                    continue
                at = NUM_NEAR - 1
            else:
                at = found
                found += 1
            while at > 0 and distance < best[at - 1]:
                best[at] = best[at - 1]
                near[i, at] = near[i, at - 1]
                at -= 1
            best[at] = distance
            near[i, at] = j + 1
        floor = DISTANCE_FLOOR * best[0] + 1e-300
        total = 0.0
        for k in range(found):
            best[k] = 1.0 / (best[k] + floor)
            total += best[k]
        for k in range(NUM_NEAR):
            if k < found:
                weight[i, k] = np.float32(best[k] / total)
            else:
                near[i, k] = 0
                weight[i, k] = 0.0


@njit(cache=True, nogil=True)
def find_previous(keys, skip, table, previous):
    """For each row the last earlier row with the same key, or -1.

    Args:
        keys: (n,) uint64.
        skip: uint64, a key that is not looked up.
        table: (power of two > n,) int32 scratch.
        previous: (n,) int32 out.
    """
    table[:] = -1
    mask = len(table) - 1
    for i in range(len(keys)):
        previous[i] = -1
        key = keys[i]
        if key == skip:
            continue
        at = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & mask
        while table[at] >= 0 and keys[table[at]] != key:
            at = (at + 1) & mask
        previous[i] = table[at]
        table[at] = i


@njit(cache=True, nogil=True)
def vote_twins(previous, twin, votes):
    """Majority vote over columns: call with each column's `find_previous`; `twin` (n,) int32 starts at -1."""
    for i in range(len(twin)):
        p = previous[i]
        if p < 0:
            continue
        if twin[i] == p:
            votes[i] += 1
        elif votes[i] == 0:
            twin[i] = p
            votes[i] = 1
        else:
            votes[i] -= 1


TWIN_MODELS = 3 * GAMMA_MODELS


@njit(cache=True, nogil=True)
def encode_twins(twin, models, intervals):
    """List the rows that have a twin: their number, then for each the rows skipped and the distance back."""
    total = 0
    for i in range(len(twin)):
        if twin[i] >= 0:
            total += 1
    count = encode_gamma(models, 0, total, intervals, 0)
    next_row = 0
    for i in range(len(twin)):
        if twin[i] >= 0:
            count = encode_gamma(models, GAMMA_MODELS, i - next_row, intervals, count)
            count = encode_gamma(models, 2 * GAMMA_MODELS, i - twin[i] - 1, intervals, count)
            next_row = i + 1
    return count


@njit(cache=True, nogil=True)
def decode_twins(twin, models, states, words, cursor):
    """Inverse of `encode_twins`; `twin` (n,) int32 starts at -1. False if the list is impossible."""
    total = decode_gamma(models, 0, states, words, cursor)
    row = 0
    for _ in range(total):
        skipped = decode_gamma(models, GAMMA_MODELS, states, words, cursor)
        back = decode_gamma(models, 2 * GAMMA_MODELS, states, words, cursor)
        if skipped < 0 or back < 0 or row + skipped >= len(twin) or cursor[2]:
            return False
        row += skipped
        if row - 1 - back < 0:
            return False
        twin[row] = row - 1 - back
        row += 1
    return total >= 0


# ---- Prediction ----------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def add_feature(base, weight, source):
    """base += weight * source; (n,) float64, float64, (n,) float32."""
    for i in range(len(base)):
        base[i] += weight * np.float64(source[i])


@njit(cache=True, nogil=True)
def sphere_base(base, source):
    """base -= source * source; (n,) float64, (n,) float32."""
    for i in range(len(base)):
        v = np.float64(source[i])
        base[i] -= v * v


@njit(cache=True, nogil=True)
def near_means(values, links, means):
    """Weighted means of the near rows' values, as in `ColumnRows`."""
    for i in range(len(means)):
        mean = 0.0
        for k in range(NUM_NEAR):
            mean += np.float64(links.weight[i, k]) * np.float64(values[links.near[i, k]])
        means[i] = np.float32(mean)


@njit(cache=True, nogil=True)
def _level(expected):
    """Half octaves of an expected residual in units: 0 for 1 / LEVEL_UNIT and less."""
    v = np.int64(min(expected * LEVEL_UNIT, np.float64(MAX_LEVEL_VALUE)))
    return LEVELS[max(v, np.int64(1))]


@njit(cache=True, nogil=True)
def _expect(i, model, base, links, rows, activity):
    """(prediction, expected residual in units, mean of the near rows) of row i."""
    mean = 0.0
    residual = 0.0
    for k in range(NUM_NEAR):
        slot = links.near[i, k]
        weight = np.float64(links.weight[i, k])
        mean += weight * np.float64(rows.values[slot])
        residual += weight * np.float64(rows.residuals[slot])
    nearest = np.float64(rows.values[links.near[i, 0]])
    mu = base[i] + model.mean_weight * mean + model.near_weight * nearest
    expected = model.scale_near * residual + model.scale_activity * activity[i] + model.scale_const
    return mu, expected, mean


@njit(cache=True, nogil=True)
def _predict(i, model, base, links, rows, activity):
    """(prediction, level, mean of the near rows) of row i."""
    mu, expected, mean = _expect(i, model, base, links, rows, activity)
    return mu, _level(expected), mean


@njit(cache=True, nogil=True)
def _step_and_class(model, level, twin, mark):
    """(exponent of the step, context class)."""
    free = model.unit + (level >> 1) - STEP_SHIFT
    step = free if model.is_float else min(max(free, 0), 63)
    if twin >= 0:
        return step, 7 + (1 if mark & MARK_TWIN else 0)
    if mark & MARK_SPECIAL:
        return step, 6
    if model.is_float or free >= 0:
        return step, level & 1
    return step, 1 + min(-free, 4)


@njit(cache=True, nogil=True)
def _predicted_cell(model, mu, step):
    """(cell of the prediction, exponent of the step); the step grows to what the float format can tell apart."""
    if not model.is_float:
        scaled = np.floor(mu * POWERS[-step - _POWER_MIN])
        return np.int64(min(max(scaled, -_CELL_LIMIT), _CELL_LIMIT)), step
    magnitude = abs(mu) * POWERS[-step - _POWER_MIN]
    limit = POWERS[model.mantissa + 1 - _POWER_MIN]
    while magnitude >= limit:
        magnitude *= 0.5
        step += 1
    cell = np.int64(magnitude)
    return cell ^ -np.int64(mu < 0.0), step


@njit(cache=True, nogil=True)
def _learn(i, model, x, mu, mean, rows, activity):
    """Store what later rows and columns predict from: value, mean and residual of row i."""
    rows.values[i + 1] = np.float32(x - model.centre)
    rows.means[i] = np.float32(mean)
    if model.sphere:
        return
    residual = min(abs(x - mu) * POWERS[-model.unit - _POWER_MIN], RESIDUAL_LIMIT)
    rows.residuals[i + 1] = np.float32(residual)
    activity[i] += (min(residual, ACTIVITY_LIMIT) - activity[i]) * 0.125


# ---- Values, cells and tokens --------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _split(model, u):
    """(negative, significand, exponent, finite) of a float's bits: value = significand * 2**exponent."""
    mantissa = model.mantissa
    field = np.int64(u >> np.uint64(mantissa)) & (2 * model.bias + 1)
    significand = np.int64(u & ((np.uint64(1) << np.uint64(mantissa)) - np.uint64(1)))
    if field:
        significand |= np.int64(1) << mantissa
    negative = np.int64(u >> np.uint64(model.width - 1)) & 1
    return negative, significand, max(field, 1) - model.bias - mantissa, field != 2 * model.bias + 1


@njit(cache=True, nogil=True)
def _value(model, u):
    """The number that predictions see: 0 for what is not finite or beyond FLOAT_LIMIT."""
    if not model.is_float:
        return np.float64(np.int64(u))
    negative, significand, exponent, finite = _split(model, u)
    if not finite:
        return 0.0
    x = np.float64((significand ^ -negative) + negative) * POWERS[exponent - _POWER_MIN]
    return x if abs(x) <= FLOAT_LIMIT else 0.0


@njit(cache=True, nogil=True)
def _to_cell(model, u, step):
    """(ok, cell, raw bits, number of raw bits): which multiple of the step, and what is left below it."""
    if not model.is_float:
        mask = (np.uint64(1) << np.uint64(step)) - np.uint64(1)
        return True, np.int64(u) >> step, u & mask, step
    negative, significand, exponent, finite = _split(model, u)
    below = step - exponent
    cell = np.int64(0)
    raw = np.uint64(0)
    count = 0
    ok = finite and significand != 0 and below >= -8
    if ok and below <= 0:
        cell = significand << -below
    elif ok and below <= model.mantissa and significand >> below:
        cell = significand >> below
        raw = np.uint64(significand & ((np.int64(1) << below) - 1))
        count = below
    elif ok:  # below one step: zeros down to the top bit of the significand, then the significand
        length = bit_length(significand)
        ok = below - length <= MAX_ZEROS and below <= 64
        raw = np.uint64(significand)
        count = below
    return ok, cell ^ -negative, raw, count


@njit(cache=True, nogil=True)
def _from_cell(model, cell, step, raw, position):
    """(bits of the value, next position in the raw bits), -1 for a position if no such value exists."""
    if not model.is_float:
        u = (np.uint64(cell) << np.uint64(step)) | read_bits(raw, position, step)
        return u, position + step
    negative = np.int64(cell < 0)
    magnitude = cell ^ -negative
    lowest = 1 - model.bias - model.mantissa
    if magnitude == 0:
        zeros = 0
        while read_bits(raw, position, 1) == 0:
            zeros += 1
            position += 1
            if zeros > MAX_ZEROS:
                return np.uint64(0), -1
        top = step - 1 - zeros
        exponent = max(top - model.mantissa, lowest)
        if top < exponent:
            return np.uint64(0), -1
        count = top - exponent + 1
        significand = np.int64(read_bits(raw, position, count))
        position += count
    else:
        top = step + bit_length(magnitude) - 1
        exponent = max(top - model.mantissa, lowest)
        below = step - exponent
        if below >= 0:
            significand = (magnitude << below) | np.int64(read_bits(raw, position, below))
            position += below
        else:
            significand = magnitude >> -below if below > -63 else np.int64(0)
    field = np.int64(0)
    if significand >> model.mantissa:
        field = exponent + model.bias + model.mantissa
        if field > 2 * model.bias:
            return np.uint64(0), -1
    u = np.uint64(significand) & ((np.uint64(1) << np.uint64(model.mantissa)) - np.uint64(1))
    u |= np.uint64(field) << np.uint64(model.mantissa)
    u |= np.uint64(negative) << np.uint64(model.width - 1)
    return u, position


@njit(cache=True, nogil=True)
def _token(difference):
    """(token, raw bits, number of raw bits); token -1 if the difference has none."""
    negative = np.int64(difference < 0)
    magnitude = difference ^ -negative
    kind = magnitude
    count = 0
    if magnitude >= DIRECT:
        length = bit_length(magnitude)
        count = length - 3
        kind = DIRECT + 4 * (length - 5) + ((magnitude >> count) & 3)
        if kind >= SIDE:
            return -1, np.int64(0), 0
    return FIRST + kind + SIDE * negative, magnitude & ((np.int64(1) << count) - 1), count


@njit(cache=True, nogil=True)
def _difference(token, raw, position):
    """(difference, next position) of a token of at least FIRST."""
    kind = token - FIRST
    negative = np.int64(kind >= SIDE)
    kind -= SIDE * negative
    magnitude = kind
    if kind >= DIRECT:
        count = ((kind - DIRECT) >> 2) + 2
        magnitude = ((4 | (kind & 3)) << count) | np.int64(read_bits(raw, position, count))
        position += count
    return magnitude ^ -negative, position


# ---- Columns -------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def encode_column(model, bits, base, links, state, rows, allowed, tokens, cells, raw):
    """Turn one column of a block into tokens, context cells and raw bits.

    Args:
        model: ColumnModel.
        bits: (n,) uint64, the values.
        base: (n,) float64, the part of the prediction that comes from other columns.
        links, state, rows: RowLinks, RowState and ColumnRows; the last two are updated.
        allowed: (cells, ALPHABET) bool, tokens that the tables can code.
        tokens: (n,) uint8 out.
        cells: (n,) uint16 out, context cell of each token.
        raw: uint8 out, zeros, at least n * MAX_RAW_BITS bits.

    Returns:
        Number of raw bits.
    """
    position = 0
    for i in range(len(bits)):
        u = bits[i]
        x = _value(model, u)
        if model.sphere:
            negative = u >> np.uint64(model.width - 1)
            position = write_bits(raw, position, negative, 1)
            mu = -base[i] if negative else base[i]
            level, mean = _level(1.0 / max(base[i], SPHERE_FLOOR)), 0.0
        else:
            mu, level, mean = _predict(i, model, base, links, rows, state.activity)
        twin = links.twin[i]
        mark = state.marks[i]
        step, kind = _step_and_class(model, level, twin, mark)
        context = model.first_cell + kind
        is_special = u == model.special
        is_twin = twin >= 0 and u == bits[max(twin, 0)]
        token = ESCAPE
        if is_twin and allowed[context, TWIN]:
            token = TWIN
        elif is_special and allowed[context, SPECIAL]:
            token = SPECIAL
        else:
            predicted, step = _predicted_cell(model, mu, step)
            ok, cell, low, count = _to_cell(model, u, step)
            if ok:
                found, middle, middle_count = _token(cell - predicted)
                if found >= 0 and allowed[context, found]:
                    token = found
                    position = write_bits(raw, position, np.uint64(middle), middle_count)
                    position = write_bits(raw, position, low, count)
            if token == ESCAPE:
                position = write_bits(raw, position, u, model.width)
        tokens[i] = token
        cells[i] = context
        _learn(i, model, x, mu, mean, rows, state.activity)
        state.marks[i] = (MARK_SPECIAL if is_special else 0) | (MARK_TWIN if is_twin else 0)
    return position


@njit(cache=True, nogil=True)
def _next_token(tables, table):
    """`entropy.tables.decode_token` without branches, in a fifth of its time; reading on past the end is harmless."""
    cursor = tables.cursor
    s = cursor[1] & (len(tables.states) - 1)
    x = tables.states[s]
    slot = x & np.uint64(PROB_SCALE - 1)
    token = np.int64(tables.lookup[table, slot])
    x = (
        np.uint64(tables.freq[table, token]) * (x >> np.uint64(PROB_BITS))
        + slot
        - np.uint64(tables.start[table, token])
    )
    low = np.int64(x < np.uint64(RANS_LOW))
    word = np.uint64(tables.words[min(cursor[0], len(tables.words) - 1)])
    tables.states[s] = (x << np.uint64(16)) | word if low else x
    cursor[0] += low
    cursor[1] += 1
    return token


@njit(cache=True, nogil=True)
def decode_column(model, bits, base, links, state, rows, tables, raw):
    """Inverse of `encode_column`: fills `bits`; `tables` is a Tables.

    Returns:
        Number of raw bits, or -1 if a value is impossible.
    """
    position = 0
    for i in range(len(bits)):
        if model.sphere:
            negative = read_bits(raw, position, 1)
            position += 1
            mu = -base[i] if negative else base[i]
            level, mean = _level(1.0 / max(base[i], SPHERE_FLOOR)), 0.0
        else:
            mu, level, mean = _predict(i, model, base, links, rows, state.activity)
        twin = links.twin[i]
        step, kind = _step_and_class(model, level, twin, state.marks[i])
        table = np.int64(tables.context_map[model.first_cell + kind])
        token = _next_token(tables, table)
        if token == TWIN:
            if twin < 0:
                return -1
            u = bits[twin]
        elif token == SPECIAL:
            u = model.special
        elif token == ESCAPE:
            u = read_bits(raw, position, model.width)
            position += model.width
        else:
            predicted, step = _predicted_cell(model, mu, step)
            difference, position = _difference(token, raw, position)
            u, position = _from_cell(model, predicted + difference, step, raw, position)
            if position < 0:
                return -1
        bits[i] = u
        _learn(i, model, _value(model, u), mu, mean, rows, state.activity)
        is_twin = twin >= 0 and u == bits[max(twin, 0)]
        state.marks[i] = (MARK_SPECIAL if u == model.special else 0) | (MARK_TWIN if is_twin else 0)
    return position


@njit(cache=True, nogil=True)
def list_intervals(tokens, cells, context_map, freq, start, intervals, count):
    """Append the rANS intervals of (n,) tokens to `intervals` at `count`; returns the new count."""
    for i in range(len(tokens)):
        table = context_map[cells[i]]
        token = tokens[i]
        intervals[count + i] = pack_interval(freq[table, token], start[table, token])
    return count + len(tokens)
