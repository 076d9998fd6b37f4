"""Integer planes over a grid, coded by tables: what a group of video frames holds once and not frame by frame.

A plane is a value for every cell of the grid, rows top to bottom. Each is predicted from the cells left and above it
and from planes before it, with coefficients fitted to the plane; what is left becomes tokens (SPEC, section 2.3) whose
tables follow from how large the residuals around were. A plane of exponents e may give each cell of later planes a
step of 2^e.

    planes -> prediction, residual / 2^e -> tokens, raw bits -> context map, tables -> rANS
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from ..bitstream.container import read_varint, write_varint
from ..entropy.bits import finish_bits, read_bits, write_bits
from ..entropy.rans import PROB_BITS, PROB_SCALE, RANS_LOW, pack_interval, rans_encode, start_decoding
from ..entropy.tables import (
    ALPHABET,
    build_tables,
    cluster_contexts,
    decode_tables,
    encode_tables,
    quantize_weights,
    token_bits,
    token_of,
    value_of,
)
from ..errors import FormatError, ParameterError, TruncatedError

__all__ = ["MAX_EXPONENT", "MAX_VALUES_A_BYTE", "ColumnPlan", "decode_columns", "encode_columns"]

MAX_EXPONENT = 15
MAX_REFERENCES = 4
NUM_CONTEXTS = 64
#: Most values that a byte of columns may stand for: all that are alike would take no bytes.
MAX_VALUES_A_BYTE = 24_000
_STATES = 8
_LIMIT = 1 << 26  # values and residuals beyond this are damage
_MAX_TABLES_OF_PLANE = 6
_MAX_TABLES = 48
_COEFFICIENT_BITS = 12
_FEATURES = 4 + 3 * MAX_REFERENCES + 1


@dataclass(frozen=True)
class ColumnPlan:
    """How one plane is coded.

    Attributes:
        references: earlier planes that it is predicted from, at most four.
        shift: cells have steps of 2^shift, times 2^exponent where there is a plane of exponents; 0..15.
        steps: the earlier plane with the exponents of each cell, 0..15; None = there is none.
        dead_zone: share of a step around 0 by which residuals are drawn to 0 (the encoder's choice): 0 = nearest.
    """

    references: tuple[int, ...] = ()
    shift: int = 0
    steps: int | None = None
    dead_zone: float = 0.0


@njit(cache=True, nogil=True)
def _gather(plane, at, x, y, width, features, first):
    """Cells left, above, above left and above right of `at` in `plane`, four features; 0 for the first cell."""
    if y == 0:
        w = plane[at - 1] if x > 0 else 0
        features[first], features[first + 1], features[first + 2], features[first + 3] = w, w, w, w
        return
    n = plane[at - width]
    features[first] = plane[at - 1] if x > 0 else n
    features[first + 1] = n
    features[first + 2] = plane[at - width - 1] if x > 0 else n
    features[first + 3] = plane[at - width + 1] if x + 1 < width else n


@njit(cache=True, nogil=True)
def _features(planes, p, at, x, y, width, references, features):
    """Everything that cell `at` of plane p may be predicted from; the last feature is the constant 1."""
    _gather(planes[p], at, x, y, width, features, 0)
    used = 4
    for k in range(len(references)):
        r = planes[references[k]]
        features[used] = r[at]
        features[used + 1] = r[at - 1] if x > 0 else (r[at - width] if y > 0 else 0)
        features[used + 2] = r[at - width] if y > 0 else (r[at - 1] if x > 0 else 0)
        used += 3
    features[used] = 1
    return used + 1


@njit(cache=True, nogil=True)
def _level(x):
    """0..15: small numbers themselves, larger ones by their octave and its half."""
    if x < 4:
        return x
    b = 0
    while x >> b:
        b += 1
    return min(2 * b - 2 + ((x >> (b - 2)) & 1), 15)


@njit(cache=True, nogil=True)
def _context(sizes, p, at, x, y, width, e):
    """Context 0..63 from the sizes of residuals around and of the plane before at the same cell."""
    near = 0
    if y > 0:
        n = sizes[p & 1, at - width]
        near += 2 * n
        near += sizes[p & 1, at - width + 1] if x + 1 < width else n
        near += 2 * sizes[p & 1, at - 1] if x > 0 else 2 * n
    elif x > 0:
        near += 5 * sizes[p & 1, at - 1]
    own = sizes[(p & 1) ^ 1, at] >> e
    return 4 * _level(near >> e) + (0 if own == 0 else 1 if own < 2 else 2 if own < 6 else 3)


@njit(cache=True, nogil=True)
def _normal_equations(planes, p, width, references, matrix, right):
    """Sums of feature * feature and feature * value over the cells of plane p."""
    features = np.zeros(_FEATURES, np.int64)
    for at in range(planes.shape[1]):
        n = _features(planes, p, at, at % width, at // width, width, references, features)
        v = float(planes[p, at])
        for j in range(n):
            f = float(features[j])
            for k in range(j + 1):
                matrix[j, k] += f * features[k]
            right[j] += f * v


@njit(cache=True, nogil=True)
def _predict(coefficients, features, n):
    total = np.int64(1 << (_COEFFICIENT_BITS - 1))
    for k in range(n):
        total += np.int64(coefficients[k]) * features[k]
    return min(max(total >> _COEFFICIENT_BITS, -_LIMIT), _LIMIT)


@njit(cache=True, nogil=True)
def _residuals(planes, p, width, references, coefficients, steps, shift, dead, sizes, contexts, residuals):
    """Quantize plane p in place, as the decoder will see it."""
    features = np.zeros(_FEATURES, np.int64)
    for at in range(planes.shape[1]):
        x, y = at % width, at // width
        e = min(shift + min(max(planes[steps, at], 0), MAX_EXPONENT), MAX_EXPONENT) if steps >= 0 else shift
        n = _features(planes, p, at, x, y, width, references, features)
        prediction = _predict(coefficients, features, n)
        difference = planes[p, at] - prediction
        size = abs(difference)
        if e:
            step = 1 << e
            r = np.int64((size + (0.5 - dead) * step) / step)
        else:
            r = size
        residuals[at] = r if difference >= 0 else -r
        contexts[at] = _context(sizes, p, at, x, y, width, e)
        sizes[p & 1, at] = r << e
        planes[p, at] = prediction + ((r << e) if difference >= 0 else -(r << e))


@njit(cache=True, nogil=True)
def _count(contexts, residuals, histogram):
    for k in range(len(residuals)):
        token, _, _ = token_of(residuals[k])
        histogram[contexts[k], token] += 1


@njit(cache=True, nogil=True)
def _emit(contexts, residuals, table_of, freq, start, intervals, count, raw, at):
    for k in range(len(residuals)):
        token, bits, value = token_of(residuals[k])
        t = table_of[contexts[k]]
        intervals[count] = pack_interval(freq[t, token], start[t, token])
        count += 1
        at = write_bits(raw, at, np.uint64(value), bits)
    return count, at


@njit(cache=True, nogil=True)
def _row_sums(planes, p, y, width, references, coefficients, sums):
    """What the row above and other planes say of row y of plane p, times their coefficients.

    All are whole numbers below 2^53, so float64, of which vector units multiply more at once, has no rounding. The cell
    on the left, which is not decoded yet, is left out but in the first column, where others stand for it.
    """
    own, first, above = planes[p], y * width, (y - 1) * width
    m = min(width, planes.shape[1] - first)
    for x in range(m):
        sums[x] = float((1 << (_COEFFICIENT_BITS - 1)) + coefficients[len(coefficients) - 1])
    for k in range(len(references)):
        r = planes[references[k]]
        at = 4 + 3 * k
        here, left, over = float(coefficients[at]), float(coefficients[at + 1]), float(coefficients[at + 2])
        if y > 0:
            sums[0] += here * r[first] + (left + over) * r[above]
            for x in range(1, m):
                sums[x] += here * r[first + x] + left * r[first + x - 1] + over * r[above + x]
        else:
            sums[0] += here * r[first]
            for x in range(1, m):
                sums[x] += here * r[first + x] + (left + over) * r[first + x - 1]
    if y == 0:
        return
    w, n = float(coefficients[0]), float(coefficients[1])
    nw, ne = float(coefficients[2]), float(coefficients[3])
    last = width - 1  # nothing is above it on the right
    sums[0] += (w + n + nw) * own[above] + ne * own[above + (1 if last else 0)]
    for x in range(1, min(m, last)):
        sums[x] += n * own[above + x] + nw * own[above + x - 1] + ne * own[above + x + 1]
    if 0 < last < m:
        sums[last] += (n + ne) * own[above + last] + nw * own[above + last - 1]


@njit(cache=True, nogil=True)
def _row_contexts(planes, sizes, p, y, width, steps, shift, exponents, near, small):
    """Of row y of plane p the exponents, what the row above adds to contexts, and what the plane before says.

    `near` lacks the cell on the left but in the first column.
    """
    first, above = y * width, (y - 1) * width
    m = min(width, planes.shape[1] - first)
    now, before = sizes[p & 1], sizes[(p & 1) ^ 1]
    for x in range(m):
        e = np.int32(shift)
        if steps >= 0:
            e = np.int32(min(shift + min(max(planes[steps, first + x], 0), MAX_EXPONENT), MAX_EXPONENT))
        exponents[x] = e
        size = before[first + x] >> e
        small[x] = (1 if size > 0 else 0) + (1 if size > 1 else 0) + (1 if size > 5 else 0)
    if y == 0:
        near[:m] = 0
        return
    for x in range(m):
        near[x] = 2 * now[above + x] + now[above + min(x + 1, width - 1)]
    near[0] += 2 * now[above]


@njit(cache=True, nogil=True)
def _decode_plane(
    planes, p, width, references, coefficients, steps, shift, sizes, levels, table_of, lookup, freq, start, states,
    words, cursor, raw, bit,
):  # fmt: skip
    """Plane p, in place; returns the raw bits used."""
    own, now = planes[p], sizes[p & 1]
    count, num_words, mask = planes.shape[1], len(words), len(states) - 1
    sums = np.empty(width, np.float64)
    exponents, near, small = np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.int32)
    position, symbol, short = cursor[0], cursor[1], cursor[2]
    limit = np.int64(_LIMIT)
    for y in range((count + width - 1) // width):
        first = y * width
        _row_sums(planes, p, y, width, references, coefficients, sums)
        _row_contexts(planes, sizes, p, y, width, steps, shift, exponents, near, small)
        # In the first row the cell on the left stands for those above.
        weight = np.int64(
            coefficients[0] if y else coefficients[0] + coefficients[1] + coefficients[2] + coefficients[3]
        )
        factor = 2 if y else 5
        left, size = np.int64(0), np.int64(0)
        for x in range(min(width, count - first)):
            e = np.int64(exponents[x])
            prediction = (np.int64(sums[x]) + weight * left) >> np.int64(_COEFFICIENT_BITS)
            prediction = min(max(prediction, -limit), limit)
            around = (np.int64(near[x]) + factor * size) >> e
            table = table_of[4 * levels[min(around, 255)] + small[x]]
            s = symbol & mask
            state = states[s]
            slot = state & np.uint64(PROB_SCALE - 1)
            token = np.int64(lookup[table, slot])
            state = (
                np.uint64(freq[table, token]) * (state >> np.uint64(PROB_BITS)) + slot - np.uint64(start[table, token])
            )
            if position < num_words:
                # No branch: whether a word is needed is a coin toss to the processor.
                need = np.uint64(state < np.uint64(RANS_LOW))
                state = (state << (need << np.uint64(4))) | (np.uint64(words[position]) * need)
                position += np.int64(need)
            elif state < np.uint64(RANS_LOW):
                state = np.uint64(RANS_LOW)
                short = np.int64(1)
                position += 1
            states[s] = state
            symbol += 1
            bits = np.int64(token_bits(token))
            r = value_of(token, np.int64(read_bits(raw, bit, bits)) if bits else np.int64(0))
            bit += bits
            r = min(max(r, -(_LIMIT >> e)), _LIMIT >> e)
            size = abs(r) << e
            left = min(max(prediction + (r << e), -2 * limit), 2 * limit)
            now[first + x] = size
            own[first + x] = left
    cursor[0], cursor[1], cursor[2] = position, symbol, short
    return bit


def _fit(planes: npt.NDArray[np.int64], p: int, width: int, references: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Least-squares coefficients in 1/4096."""
    matrix, right = np.zeros((_FEATURES, _FEATURES)), np.zeros(_FEATURES)
    _normal_equations(planes, p, width, references, matrix, right)
    n = 4 + 3 * len(references) + 1
    full = matrix[:n, :n] + np.tril(matrix[:n, :n], -1).T
    # A little weight on small coefficients settles planes that say the same.
    full[np.diag_indices(n)] += 1e-6 * max(float(np.trace(full)) / n, 1.0) + 1e-3
    solution = np.linalg.solve(full, right[:n])
    coefficients = np.rint(np.clip(solution, -64, 64) * (1 << _COEFFICIENT_BITS)).astype(np.int64)
    coefficients[-1] = int(np.rint(np.clip(solution[-1], -(1 << 14), 1 << 14) * (1 << _COEFFICIENT_BITS)))
    return coefficients


def _signed(value: int) -> bytes:
    return write_varint(2 * value if value >= 0 else -2 * value - 1)


def encode_columns(
    planes: npt.ArrayLike, width: int, plans: Sequence[ColumnPlan]
) -> tuple[bytes, npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Code planes.

    Args:
        planes: (P, N) integers, below 2^25 in size.
        width: cells of a row of the grid.
        plans: one for each plane.

    Returns:
        the bytes; the (P, N) values that they decode to (off by up to half a step, more with a dead zone); and (P,)
        about how many bytes each plane takes.

    Raises:
        ParameterError: a value too large, or plans that do not fit.
    """
    work = np.array(planes, np.int64)
    if work.ndim != 2 or len(plans) != len(work) or width < 1:
        raise ParameterError(f"planes of shape {work.shape} for {len(plans)} plans, width {width}")
    if work.size and int(np.abs(work).max()) >= _LIMIT // 2:
        raise ParameterError(f"a value of {int(np.abs(work).max())} is too large to code", field="planes")
    count = work.shape[1]
    head = bytearray()
    contexts = np.zeros(work.shape, np.uint8)
    residuals = np.zeros(work.shape, np.int64)
    sizes = np.zeros((2, count), np.int64)
    histograms = np.zeros((len(work), NUM_CONTEXTS, ALPHABET), np.int64)
    for p, plan in enumerate(plans):
        references = np.array(plan.references, np.int64)
        if len(references) > MAX_REFERENCES or not all(max(p - 256, 0) <= r < p for r in plan.references):
            raise ParameterError(f"plane {p} cannot be predicted from planes {plan.references}")
        if plan.steps is not None and not max(p - 255, 0) <= plan.steps < p:
            raise ParameterError(f"plane {p} cannot have the steps of plane {plan.steps}")
        if not 0 <= plan.shift <= MAX_EXPONENT or not 0 <= plan.dead_zone < 0.5:
            raise ParameterError(f"plane {p}: shift {plan.shift}, dead zone {plan.dead_zone}")
        coefficients = _fit(work, p, width, references)
        steps = -1 if plan.steps is None else plan.steps
        head += bytes([len(references) | plan.shift << 4, 0 if steps < 0 else p - steps])
        head += bytes(p - 1 - r for r in plan.references)
        head += b"".join(_signed(int(c)) for c in coefficients)
        _residuals(
            work, p, width, references, coefficients, steps, plan.shift, plan.dead_zone, sizes, contexts[p],
            residuals[p],
        )  # fmt: skip
        _count(contexts[p], residuals[p], histograms[p])
    if residuals.size and int(np.abs(residuals).max()) >= _LIMIT:
        raise ParameterError("a residual is too large to code", field="planes")
    maps: list[npt.NDArray[np.int64]] = []
    rows: list[npt.NDArray[np.int64]] = []
    for p in range(len(work)):
        of_context, counts = cluster_contexts(histograms[p], _MAX_TABLES_OF_PLANE)
        maps.append(of_context.astype(np.int64) + sum(len(r) for r in rows))
        rows.append(counts)
    cells = np.concatenate(rows) if rows else np.zeros((0, ALPHABET), np.int64)
    owner, merged = cluster_contexts(cells, _MAX_TABLES) if len(cells) else (np.zeros(0, np.uint8), cells)
    weights = np.stack([quantize_weights(row.astype(np.float64)) for row in merged]) if len(merged) else merged
    tables = build_tables(weights)
    intervals = np.empty(work.size, np.uint32)
    raw = np.zeros(4 * work.size + 8, np.uint8)
    symbols, bit = 0, 0
    shares = np.zeros(len(work))
    lengths = (
        12.0 - np.log2(np.maximum(tables.freq.astype(np.float64), 1.0)) if len(tables) else np.zeros((0, ALPHABET))
    )
    for p in range(len(work)):
        table_of = owner[maps[p]]
        head += _run_lengths(table_of)
        before = bit
        symbols, bit = _emit(
            contexts[p], residuals[p], table_of, tables.freq, tables.start, intervals, symbols, raw, bit
        )
        shares[p] = (float((histograms[p] * lengths[table_of]).sum()) + bit - before) / 8
    stored = encode_tables(weights) if len(weights) else b""
    coded = rans_encode(intervals[:symbols], _STATES)
    parts = [bytes(head), stored, coded, raw[: (bit + 7) // 8].tobytes()]
    out = write_varint(len(weights)) + b"".join(write_varint(len(part)) for part in parts) + b"".join(parts)
    # So that a reader can refuse a few bytes that ask for gigabytes.
    return out.ljust(-(-work.size // MAX_VALUES_A_BYTE), b"\0"), work, shares


def _run_lengths(table_of: npt.NDArray[np.integer]) -> bytes:
    """A context map as pairs of table and how many contexts in a row have it."""
    out, at = bytearray(), 0
    while at < len(table_of):
        stop = at
        while stop < len(table_of) and table_of[stop] == table_of[at]:
            stop += 1
        out += bytes([int(table_of[at]), stop - at])
        at = stop
    return bytes(out)


class _Head:
    """The head of a set of columns, read byte by byte."""

    def __init__(self, buffer: bytes) -> None:
        self.buffer, self.at = buffer, 0

    def byte(self) -> int:
        if self.at >= len(self.buffer):
            raise TruncatedError("the head of a set of planes ends early", offset=self.at)
        self.at += 1
        return self.buffer[self.at - 1]

    def signed(self) -> int:
        value, self.at = read_varint(self.buffer, self.at)
        return value >> 1 if not value & 1 else -(value >> 1) - 1


def decode_columns(buffer: bytes | memoryview, num_planes: int, count: int, width: int) -> npt.NDArray[np.int32]:
    """Inverse of `encode_columns`: (P, N) int32.

    The caller has checked that P * N values may be allocated.

    Raises:
        FormatError: damaged.
    """
    data = bytes(buffer)
    num_tables, at = read_varint(data, 0)
    lengths = []
    for _ in range(4):
        length, at = read_varint(data, at)
        lengths.append(length)
    if sum(lengths) > len(data) - at or any(data[at + sum(lengths) :]):
        raise TruncatedError(f"{len(data) - at} bytes of planes, {sum(lengths)} announced", offset=at)
    parts = []
    for length in lengths:
        parts.append(data[at : at + length])
        at += length
    if num_tables > 256 or (num_planes and count and not num_tables):
        raise FormatError(f"{num_tables} tables for {num_planes} planes")
    head = _Head(parts[0])
    plans: list[tuple[npt.NDArray[np.int64], int, int, npt.NDArray[np.int64]]] = []
    for p in range(num_planes):
        flags, back = head.byte(), head.byte()
        if (flags & 15) > MAX_REFERENCES:
            raise FormatError(f"plane {p}: impossible flags {flags}", offset=head.at)
        references = np.array([p - 1 - head.byte() for _ in range(flags & 15)], np.int64)
        if (references < 0).any() or back > p:
            raise FormatError(f"plane {p} is predicted from a plane that does not exist", offset=head.at)
        numbers = [head.signed() for _ in range(4 + 3 * len(references) + 1)]
        # So that sums stay below 2^53, which a decoder in JavaScript needs.
        if max(map(abs, numbers[:-1])) > 1 << 20 or abs(numbers[-1]) > 1 << 27:
            raise FormatError(f"plane {p}: impossible coefficients", offset=head.at)
        plans.append((references, flags >> 4, p - back if back else -1, np.array(numbers, np.int64)))
    maps = np.zeros((num_planes, NUM_CONTEXTS), np.uint8)
    for p in range(num_planes):
        filled = 0
        while filled < NUM_CONTEXTS:
            table, length = head.byte(), head.byte()
            if table >= max(num_tables, 1) or not 0 < length <= NUM_CONTEXTS - filled:
                raise FormatError(f"plane {p}: impossible context map", offset=head.at)
            maps[p, filled : filled + length] = table
            filled += length
    if head.at != len(head.buffer):
        raise FormatError("bytes are left over in the head of a set of planes", offset=head.at)
    planes = np.zeros((num_planes, count), np.int32)
    if not planes.size:
        return planes
    tables = decode_tables(parts[1], num_tables)
    state = start_decoding(parts[2], _STATES)
    raw = np.frombuffer(parts[3], np.uint8)
    sizes = np.zeros((2, count), np.int32)
    levels = np.array([_level(size) for size in range(256)], np.uint8)  # larger ones are all of level 15
    bit = 0
    for p, (references, shift, steps, coefficients) in enumerate(plans):
        bit = _decode_plane(
            planes, p, width, references, coefficients, steps, shift, sizes, levels, maps[p], tables.lookup,
            tables.freq, tables.start, state.states, state.words, state.cursor, raw, bit,
        )  # fmt: skip
        if state.cursor[2] or bit > 8 * len(raw):
            raise TruncatedError(f"plane {p} ends early")
    state.finish()
    finish_bits(raw, bit)
    return planes
