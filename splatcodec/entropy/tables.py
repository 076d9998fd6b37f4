"""Tokens, and the integer tables and context maps they are coded with.

A signed value becomes a token and a few raw bits: zigzag, then values below 16 directly, larger ones by their bit
length and the two bits under the top one (as in JPEG XL's hybrid integers). A table gives each token a frequency,
4096 in all. A context map says which table a context cell uses; the encoder chooses it by merging cells whose
histograms are alike until tables cost more than they save.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from ..errors import FormatError
from .adaptive import GAMMA_MODELS, decode_bit, decode_gamma, encode_bit, encode_gamma, new_models
from .rans import PROB_SCALE, decode_advance, decode_slot, pack_interval, rans_encode, start_decoding

__all__ = [
    "ALPHABET",
    "BUCKET_BITS",
    "TableSet",
    "build_tables",
    "cluster_contexts",
    "decode_tables",
    "decode_token",
    "encode_tables",
    "normalize_weights",
    "quantize_weights",
    "token_bits",
    "token_of",
]

ALPHABET = 128
DIRECT = 16
MAX_VALUE_BITS = 30
BUCKET_BITS = 5  # of `TableSet.buckets`: 32 slots
_MANTISSA = 2  # bits under the top bit kept of a table weight


@njit(cache=True)
def _bit_length(u):
    n = 0
    while u >> n:
        n += 1
    return n


@njit(cache=True)
def token_of(value):
    """(token, number of raw bits, raw bits) of a signed value, |value| < 2**29."""
    u = (value << 1) if value >= 0 else ((-value) << 1) - 1
    if u < DIRECT:
        return u, 0, 0
    n = _bit_length(u) - 1
    raw = n - 2
    return DIRECT + ((n - 4) << 2) + ((u >> raw) & 3), raw, u & ((1 << raw) - 1)


@njit(cache=True)
def token_bits(token):
    """Number of raw bits that follow `token`."""
    return 0 if token < DIRECT else ((token - DIRECT) >> 2) + 2


@njit(cache=True)
def value_of(token, raw):
    """The signed value of a token and its raw bits."""
    if token < DIRECT:
        u = token
    else:
        u = ((4 | ((token - DIRECT) & 3)) << (((token - DIRECT) >> 2) + 2)) | raw
    return -((u + 1) >> 1) if u & 1 else u >> 1


@dataclass(frozen=True)
class TableSet:
    """T tables, ready for the kernels.

    Attributes:
        freq: (T, ALPHABET) uint16, each row sums to 4096.
        start: (T, ALPHABET) uint16, exclusive running sums of `freq`.
        lookup: (T, 4096) uint8, token of each slot.
        buckets: (T, 128) uint8, token of the first of each 32 slots.
        intervals: (T, ALPHABET) uint32, `freq` in the high half, `start` in the low one. With the buckets they are a
            hundredth of `lookup`, which the processor's caches do not hold.
    """

    freq: npt.NDArray[np.uint16]
    start: npt.NDArray[np.uint16]
    lookup: npt.NDArray[np.uint8]
    buckets: npt.NDArray[np.uint8]
    intervals: npt.NDArray[np.uint32]

    @classmethod
    def from_freq(cls, freq: npt.NDArray[np.uint16]) -> TableSet:
        """Derive `start` and `lookup` from rows that sum to 4096."""
        freq = np.ascontiguousarray(freq, np.uint16)
        start = (np.cumsum(freq, axis=1, dtype=np.int64) - freq).astype(np.uint16)
        tokens = np.tile(np.arange(ALPHABET, dtype=np.uint8), len(freq))
        lookup = np.repeat(tokens, freq.ravel()).reshape(len(freq), PROB_SCALE)
        intervals = freq.astype(np.uint32) << np.uint32(16) | start
        return cls(freq, start, lookup, np.ascontiguousarray(lookup[:, :: 1 << BUCKET_BITS]), intervals)

    def __len__(self) -> int:
        return len(self.freq)


def quantize_weights(histogram: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Table weights that `encode_tables` can store: frequencies of 4096 cut to three significant bits.

    Args:
        histogram: (ALPHABET,) counts >= 0; every token that occurs keeps a weight of at least 1.
    """
    total = histogram.sum()
    if total <= 0:
        weights = np.zeros(len(histogram), np.int64)
        weights[0] = 1
        return weights
    scaled = histogram * (PROB_SCALE / total)
    weights = np.where(histogram > 0, np.maximum(1, np.rint(scaled)), 0).astype(np.int64)
    drop = np.maximum(np.floor(np.log2(np.maximum(weights, 1))).astype(np.int64) - _MANTISSA, 0)
    half = np.where(drop > 0, np.int64(1) << np.maximum(drop - 1, 0), 0)
    return np.minimum(((weights + half) >> drop) << drop, PROB_SCALE)


def normalize_weights(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Frequencies that sum to 4096 of (..., ALPHABET) weights, as SPEC.md section "Tables" defines them.

    Raises:
        FormatError: all weights of a table are 0, or its largest cannot absorb the rounding.
    """
    total = weights.sum(-1, keepdims=True)
    if (total <= 0).any():
        raise FormatError("a table has no tokens")
    freq = np.where(weights > 0, np.maximum(1, weights * PROB_SCALE // total), 0)
    largest = np.argmax(weights, axis=-1)[..., None]
    left = PROB_SCALE - freq.sum(-1, keepdims=True) + np.take_along_axis(freq, largest, -1)
    if (left < 1).any():
        raise FormatError("a table's weights cannot be normalised")
    np.put_along_axis(freq, largest, left, -1)
    return freq.astype(np.uint16)


@njit(cache=True)
def _encode_tables_kernel(weights, models, intervals):
    zero_base, exponent_base, length_base = 0, 8, 8 + 4 * GAMMA_MODELS
    count = 0
    for t in range(len(weights)):
        last = 0
        for a in range(weights.shape[1]):
            if weights[t, a]:
                last = a
        count = encode_gamma(models, length_base, last, intervals, count)
        previous = 8
        was_zero = 0
        for a in range(last + 1):
            w = weights[t, a]
            if a < last:
                count = encode_bit(models, zero_base + was_zero + 2 * min(a >> 3, 3), 1 if w else 0, intervals, count)
            if w == 0:
                was_zero = 1
                continue
            was_zero = 0
            exponent = _bit_length(w) - 1
            delta = exponent - previous
            zigzag = 2 * delta if delta >= 0 else -2 * delta - 1
            count = encode_gamma(models, exponent_base + GAMMA_MODELS * min(a >> 2, 3), zigzag, intervals, count)
            for k in range(exponent - 1, max(exponent - 1 - _MANTISSA, -1), -1):
                bit = (w >> k) & 1
                intervals[count] = pack_interval(PROB_SCALE // 2, 0 if bit else PROB_SCALE // 2)
                count += 1
            previous = exponent
    return count


@njit(cache=True)
def _decode_tables_kernel(weights, models, states, words, cursor):
    zero_base, exponent_base, length_base = 0, 8, 8 + 4 * GAMMA_MODELS
    half = PROB_SCALE // 2
    for t in range(len(weights)):
        last = decode_gamma(models, length_base, states, words, cursor)
        if last < 0 or last >= weights.shape[1]:
            return 1
        previous = 8
        was_zero = 0
        for a in range(last + 1):
            if a < last and not decode_bit(models, zero_base + was_zero + 2 * min(a >> 3, 3), states, words, cursor):
                was_zero = 1
                continue
            was_zero = 0
            zigzag = decode_gamma(models, exponent_base + GAMMA_MODELS * min(a >> 2, 3), states, words, cursor)
            if zigzag < 0:
                return 1
            exponent = previous + ((zigzag >> 1) if not zigzag & 1 else -((zigzag + 1) >> 1))
            if exponent < 0 or exponent > 12:
                return 1
            w = 1 << exponent
            for k in range(exponent - 1, max(exponent - 1 - _MANTISSA, -1), -1):
                slot = decode_slot(states, cursor)
                bit = 1 if slot < np.uint64(half) else 0
                decode_advance(states, words, cursor, slot, half, 0 if bit else half)
                w |= bit << k
            weights[t, a] = w
            previous = exponent
        if cursor[2]:
            return 1
    return 0


_TABLE_MODELS = 8 + 5 * GAMMA_MODELS


def encode_tables(weights: npt.NDArray[np.int64]) -> bytes:
    """Store (T, ALPHABET) weights from `quantize_weights`; one rANS state."""
    intervals = np.empty(len(weights) * ALPHABET * 40 + 64, np.uint32)
    count = _encode_tables_kernel(np.ascontiguousarray(weights), new_models(_TABLE_MODELS), intervals)
    return rans_encode(intervals[:count], 1)


def decode_tables(buffer: bytes | memoryview, count: int) -> TableSet:
    """Read `count` tables written by `encode_tables`.

    Raises:
        FormatError: the bytes are damaged, or a table's weights are impossible.
    """
    state = start_decoding(buffer, 1)
    weights = np.zeros((count, ALPHABET), np.int64)
    if _decode_tables_kernel(weights, new_models(_TABLE_MODELS), state.states, state.words, state.cursor):
        raise FormatError("damaged table description")
    state.finish()
    return build_tables(weights)


def build_tables(weights: npt.NDArray[np.int64]) -> TableSet:
    """The tables that a decoder makes of (T, ALPHABET) stored weights."""
    if len(weights) == 0:
        return TableSet.from_freq(np.zeros((0, ALPHABET), np.uint16))
    return TableSet.from_freq(normalize_weights(weights))


@njit(cache=True)
def decode_token(lookup, freq, start, table, states, words, cursor):
    """Decode one token with the given table."""
    slot = decode_slot(states, cursor)
    token = np.int64(lookup[table, slot])
    decode_advance(states, words, cursor, slot, freq[table, token], start[table, token])
    return token


@njit(cache=True)
def _table_cost_bits(histogram):
    """Code length of the symbols of one histogram plus an estimate of what its table costs."""
    total = 0.0
    for a in range(len(histogram)):
        total += histogram[a]
    if total == 0.0:
        return 0.0
    bits = 7.0
    for a in range(len(histogram)):
        h = histogram[a]
        if h > 0:
            bits += 4.6 + h * np.log2(total / h)
    return bits


@njit(cache=True)
def _cluster_kernel(histograms, owner, max_tables):
    cells, alphabet = histograms.shape
    cost = np.zeros(cells)
    alive = np.zeros(cells, np.bool_)
    for c in range(cells):
        owner[c] = c
        cost[c] = _table_cost_bits(histograms[c])
        alive[c] = cost[c] > 0
    gain = np.full((cells, cells), -np.inf)
    merged = np.empty(alphabet)
    for a in range(cells):
        if alive[a]:
            for b in range(a + 1, cells):
                if alive[b]:
                    merged[:] = histograms[a] + histograms[b]
                    gain[a, b] = cost[a] + cost[b] - _table_cost_bits(merged)
    left = alive.sum()
    while left > 1:
        best = -np.inf
        pick_a = pick_b = 0
        for a in range(cells):
            if alive[a]:
                for b in range(a + 1, cells):
                    if alive[b] and gain[a, b] > best:
                        best, pick_a, pick_b = gain[a, b], a, b
        if best <= 0 and left <= max_tables:
            break
        histograms[pick_a] += histograms[pick_b]
        cost[pick_a] = _table_cost_bits(histograms[pick_a])
        alive[pick_b] = False
        left -= 1
        for c in range(cells):
            if owner[c] == pick_b:
                owner[c] = pick_a
            if alive[c] and c != pick_a:
                merged[:] = histograms[pick_a] + histograms[c]
                value = cost[pick_a] + cost[c] - _table_cost_bits(merged)
                if c < pick_a:
                    gain[c, pick_a] = value
                else:
                    gain[pick_a, c] = value


def cluster_contexts(
    histograms: npt.NDArray[np.int64], max_tables: int = 64
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Merge context cells into tables.

    Args:
        histograms: (cells, ALPHABET) token counts.
        max_tables: most tables allowed.

    Returns:
        context map (cells,) uint8 with the table of each cell (cells that never occur repeat the cell before), and
        the (T, ALPHABET) int64 counts of each table; T >= 1.
    """
    work = histograms.astype(np.float64)
    used = int(np.max(np.nonzero(histograms.sum(0))[0], initial=0)) + 1
    owner = np.zeros(len(work), np.int64)
    _cluster_kernel(np.ascontiguousarray(work[:, :used]), owner, max_tables)
    occurs = histograms.sum(1) > 0
    names: dict[int, int] = {}
    context_map = np.zeros(len(work), np.uint8)
    for c in range(len(work)):
        if occurs[c]:
            context_map[c] = names.setdefault(int(owner[c]), len(names))
        elif c:
            context_map[c] = context_map[c - 1]
    counts = np.zeros((max(len(names), 1), histograms.shape[1]), np.int64)
    np.add.at(counts, context_map[occurs].astype(np.int64), histograms[occurs])
    return context_map, counts
