"""Adaptive binary models inside the rANS stream, for data too small or too varied to pay for tables.

A model is two numbers in an int32 array: the probability of a one in 1/65536 and the number of bits seen. The
probability moves towards each coded bit by 1 / (count + 1.5) at first and by 1/about RATE_LIMIT in the long run
(Krichevsky-Trofimov start, exponential forgetting later). All arithmetic is integer: see bitstreams/SPEC.md,
section "Adaptive bits".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from .rans import PROB_SCALE, decode_advance, decode_slot, pack_interval

GAMMA_MODELS = 64  # models used by one `encode_gamma` base

__all__ = ["GAMMA_MODELS", "decode_bit", "decode_gamma", "encode_bit", "encode_gamma", "new_models"]

RATE_LIMIT = 96
# 32768 / (n + 1.5), rounded down: the step towards the coded bit after n bits. Products stay below 2**31.
STEPS = np.array([65536 // (2 * n + 3) for n in range(RATE_LIMIT + 1)], np.int32)


def new_models(count: int) -> npt.NDArray[np.int32]:
    """(count, 2) int32 models at their start: probability one half, nothing seen."""
    models = np.zeros((count, 2), np.int32)
    models[:, 0] = 1 << 15
    return models


@njit(cache=True)
def _probability(model):
    p = model[0] >> 4
    return min(max(p, 1), PROB_SCALE - 1)


@njit(cache=True)
def _update(model, bit):
    n = model[1]
    target = np.int64(65535) if bit else np.int64(0)
    model[0] += np.int32(((target - np.int64(model[0])) * np.int64(STEPS[n])) >> np.int64(15))
    if n < RATE_LIMIT:
        model[1] = n + 1


@njit(cache=True)
def encode_bit(models, index, bit, intervals, count):
    """Append the interval of `bit` under model `index` to `intervals` at `count`; returns count + 1.

    A one takes the low part of the range.
    """
    model = models[index]
    p = _probability(model)
    if bit:
        intervals[count] = pack_interval(p, 0)
    else:
        intervals[count] = pack_interval(PROB_SCALE - p, p)
    _update(model, bit)
    return count + 1


@njit(cache=True)
def decode_bit(models, index, states, words, cursor):
    """Decode one bit under model `index`."""
    at = np.uint64(index)
    value, n = np.int64(models[at, 0]), np.int64(models[at, 1])
    p = np.int64(min(max(value >> 4, np.int64(1)), np.int64(PROB_SCALE - 1)))
    slot = decode_slot(states, cursor)
    bit = np.int64(slot < np.uint64(p))
    if bit:
        decode_advance(states, words, cursor, slot, p, 0)
    else:
        decode_advance(states, words, cursor, slot, PROB_SCALE - p, p)
    target = np.int64(65535) if bit else np.int64(0)
    models[at, 0] = np.int32(value + (((target - value) * np.int64(STEPS[n])) >> np.int64(15)))
    models[at, 1] = np.int32(min(n + 1, np.int64(RATE_LIMIT)))
    return bit


@njit(cache=True)
def encode_gamma(models, base, value, intervals, count):
    """Code a value >= 0 as adaptive Exp-Golomb: its bit length in unary, then the bits below the top one.

    Uses GAMMA_MODELS models from `base`: 32 for the length, 32 for the bit under the top one, by length.
    """
    v = value + 1
    length = 0
    while v >> (length + 1):
        length += 1
    for k in range(length):
        count = encode_bit(models, base + min(k, 31), 1, intervals, count)
    count = encode_bit(models, base + min(length, 31), 0, intervals, count)
    for k in range(length - 1, -1, -1):
        bit = (v >> k) & 1
        if k == length - 1:
            count = encode_bit(models, base + 32 + min(length, 31), bit, intervals, count)
        else:
            intervals[count] = pack_interval(PROB_SCALE // 2, 0 if bit else PROB_SCALE // 2)
            count += 1
    return count


@njit(cache=True)
def decode_gamma(models, base, states, words, cursor):
    """Inverse of `encode_gamma`; -1 if the value would not fit 31 bits (a damaged stream)."""
    length = 0
    while decode_bit(models, base + min(length, 31), states, words, cursor):
        length += 1
        if length > 30:
            return -1
    v = 1
    for k in range(length - 1, -1, -1):
        if k == length - 1:
            bit = decode_bit(models, base + 32 + min(length, 31), states, words, cursor)
        else:
            slot = decode_slot(states, cursor)
            half = PROB_SCALE // 2
            bit = 1 if slot < np.uint64(half) else 0
            decode_advance(states, words, cursor, slot, half, 0 if bit else half)
        v = (v << 1) | bit
    return v - 1
