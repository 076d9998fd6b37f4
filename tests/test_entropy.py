"""Entropy coding: every coder gives back what it was given, refuses damage, and is as small as an independent one."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from splatcodec.entropy.adaptive import (
    GAMMA_MODELS,
    decode_bit,
    decode_gamma,
    encode_bit,
    encode_gamma,
    new_models,
)
from splatcodec.entropy.bits import (
    bit_length,
    finish_bits,
    pack_fixed,
    read_bits,
    unpack_fixed,
    write_bits,
)
from splatcodec.entropy.integers import IntegerReader, IntegerWriter
from splatcodec.entropy.rans import PROB_SCALE, rans_encode, start_decoding
from splatcodec.entropy.tables import (
    ALPHABET,
    MAX_VALUE_BITS,
    build_tables,
    cluster_contexts,
    decode_tables,
    decode_token,
    encode_tables,
    normalize_weights,
    quantize_weights,
    token_bits,
    token_of,
    value_of,
)
from splatcodec.errors import FormatError, ParameterError, TruncatedError

STATES = (1, 2, 4, 8, 16, 32)
seeds = st.integers(0, 2**32 - 1)


def random_weights(rng: np.random.Generator, num_tables: int) -> np.ndarray:
    """(T, ALPHABET) stored weights of every shape: flat, peaked, sparse, a single token."""
    rows = []
    for _ in range(num_tables):
        histogram = rng.integers(0, 1 << rng.integers(1, 20), ALPHABET).astype(float)
        histogram *= rng.random(ALPHABET) < rng.choice([0.02, 0.3, 1.0])
        histogram[rng.integers(ALPHABET)] += rng.choice([1.0, 1e6])
        rows.append(quantize_weights(histogram))
    return np.stack(rows)


def intervals_of(tables, which: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return tables.freq[which, tokens].astype(np.uint32) << 16 | tables.start[which, tokens]


@njit
def _decode_tokens(lookup, freq, start, which, states, words, cursor, tokens):
    for k in range(len(tokens)):
        tokens[k] = decode_token(lookup, freq, start, which[k], states, words, cursor)


def decode_tokens(buffer: bytes, tables, which: np.ndarray, num_states: int) -> np.ndarray:
    state = start_decoding(buffer, num_states)
    tokens = np.empty(len(which), np.int64)
    _decode_tokens(tables.lookup, tables.freq, tables.start, which, state.states, state.words, state.cursor, tokens)
    state.finish()
    return tokens


def random_stream(seed: int, count: int, num_states: int):
    """(tables, table of each token, tokens, their stream)."""
    rng = np.random.default_rng(seed)
    tables = build_tables(random_weights(rng, 5))
    which = rng.integers(0, 5, count)
    tokens = tables.lookup[which, rng.integers(0, PROB_SCALE, count)].astype(np.int64)
    return tables, which, tokens, rans_encode(intervals_of(tables, which, tokens), num_states)


# ---- rANS ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(seed=seeds, count=st.integers(0, 400), num_states=st.sampled_from(STATES))
def test_tokens_come_back(seed, count, num_states):
    tables, which, tokens, stream = random_stream(seed, count, num_states)
    assert np.array_equal(decode_tokens(stream, tables, which, num_states), tokens)


@pytest.mark.parametrize("num_states", [0, 3, 64, -1])
def test_number_of_states_is_checked(num_states):
    with pytest.raises(ParameterError):
        rans_encode(np.zeros(0, np.uint32), num_states)


@pytest.mark.parametrize("num_states", STATES)
def test_every_prefix_of_a_stream_is_refused(num_states):
    tables, which, _, stream = random_stream(7, 150, num_states)
    for length in range(len(stream)):
        with pytest.raises(FormatError):
            decode_tokens(stream[:length], tables, which, num_states)


@pytest.mark.parametrize("num_states", STATES)
def test_surplus_words_are_refused(num_states):
    tables, which, _, stream = random_stream(8, 150, num_states)
    with pytest.raises(FormatError):
        decode_tokens(stream + b"\0\0", tables, which, num_states)


def test_changed_bytes_are_noticed():
    """The states end where they began only by chance, so nearly every change is an error, and none is a crash."""
    tables, which, _, stream = random_stream(9, 300, 8)
    missed = 0
    for at in range(len(stream)):
        for bit in (1, 16, 128):
            damaged = bytearray(stream)
            damaged[at] ^= bit
            try:
                decode_tokens(bytes(damaged), tables, which, 8)
                missed += 1
            except FormatError:
                pass
    assert missed <= 0.01 * 3 * len(stream)


def test_states_out_of_range_are_refused():
    with pytest.raises(FormatError):
        start_decoding(b"\xff\xff\0\0", 1)
    with pytest.raises(TruncatedError):
        start_decoding(b"\xff\xff", 1)


@pytest.mark.parametrize("num_states", STATES)
@pytest.mark.parametrize("shape", ["laplace", "flat", "skewed"])
def test_size_is_that_of_an_independent_coder(num_states, shape):
    """Within 1 % of constriction's ANS coder with the same probabilities."""
    rng = np.random.default_rng(11)
    count = 100_000
    if shape == "laplace":
        tokens = np.minimum(np.abs(np.rint(rng.laplace(0, 9, count))), ALPHABET - 1).astype(np.int64)
    elif shape == "flat":
        tokens = rng.integers(0, ALPHABET, count)
    else:
        tokens = np.minimum(rng.geometric(0.8, count) - 1, ALPHABET - 1)
    tables = build_tables(quantize_weights(np.bincount(tokens, minlength=ALPHABET).astype(float))[None])
    which = np.zeros(count, np.int64)
    ours = rans_encode(intervals_of(tables, which, tokens), num_states)
    assert np.array_equal(decode_tokens(ours, tables, which, num_states), tokens)
    used = np.flatnonzero(tables.freq[0])
    model = constriction.stream.model.Categorical(tables.freq[0, used].astype(np.float64) / PROB_SCALE, perfect=False)
    theirs = constriction.stream.stack.AnsCoder()
    theirs.encode_reverse(np.searchsorted(used, tokens).astype(np.int32), model)
    assert len(ours) <= 1.01 * 4 * len(theirs.get_compressed())


# ---- Adaptive bits and integers ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(bits=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=200), num_states=st.sampled_from(STATES))
def test_adaptive_bits_come_back(bits, num_states):
    models, intervals, count = new_models(6), np.empty(len(bits), np.uint32), 0
    for index, bit in bits:
        count = encode_bit(models, index, bit, intervals, count)
    state = start_decoding(rans_encode(intervals[:count], num_states), num_states)
    models = new_models(6)
    for index, bit in bits:
        assert decode_bit(models, index, state.states, state.words, state.cursor) == bit
    state.finish()


def test_adaptive_bits_learn():
    """A bit that is one in twenty costs little more than its entropy."""
    rng = np.random.default_rng(1)
    bits = (rng.random(5000) < 0.05).astype(np.int64)
    models, intervals, count = new_models(1), np.empty(len(bits), np.uint32), 0
    for bit in bits:
        count = encode_bit(models, 0, bit, intervals, count)
    p = bits.mean()
    entropy_bytes = -len(bits) * (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8
    assert len(rans_encode(intervals, 1)) < 1.05 * entropy_bytes + 8


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**31 - 2)), max_size=60))
def test_exp_golomb_comes_back(values):
    models, intervals, count = new_models(GAMMA_MODELS), np.empty(70 * len(values), np.uint32), 0
    for value in values:
        count = encode_gamma(models, 0, value, intervals, count)
    state = start_decoding(rans_encode(intervals[:count], 1), 1)
    models = new_models(GAMMA_MODELS)
    for value in values:
        assert decode_gamma(models, 0, state.states, state.words, state.cursor) == value
    state.finish()


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.tuples(st.integers(0, 15), st.integers(-(2**29) + 1, 2**29 - 1)), max_size=50))
def test_integer_lists_come_back(values):
    writer = IntegerWriter()
    for kind, value in values:
        writer.add(kind, value)
    buffer = writer.finish()
    reader = IntegerReader(buffer)
    assert [reader.get(kind) for kind, _ in values] == [value for _, value in values]
    reader.finish()


def test_integers_out_of_range_are_refused():
    writer = IntegerWriter()
    writer.add(0, 100)
    with pytest.raises(FormatError):
        IntegerReader(writer.finish()).get(0, 0, 99)


# ---- Tokens and tables ---------------------------------------------------------------------------------------------


def test_all_small_values_are_tokens():
    for value in range(-5000, 5001):
        token, count, raw = token_of(value)
        assert 0 <= token < ALPHABET
        assert token_bits(token) == count
        assert value_of(token, raw) == value


@settings(deadline=None)
@given(st.integers(-(2**29) + 1, 2**29 - 1))
def test_all_values_are_tokens(value):
    token, count, raw = token_of(value)
    assert 0 <= token < ALPHABET
    assert count == token_bits(token) < MAX_VALUE_BITS
    assert 0 <= raw < 1 << count
    assert value_of(token, raw) == value


@settings(deadline=None, max_examples=40)
@given(seed=seeds, num_tables=st.integers(0, 12))
def test_tables_come_back(seed, num_tables):
    weights = random_weights(np.random.default_rng(seed), num_tables) if num_tables else np.zeros((0, ALPHABET), int)
    tables = decode_tables(encode_tables(weights), num_tables)
    expected = build_tables(weights)
    assert np.array_equal(tables.freq, expected.freq)
    assert np.array_equal(tables.start, expected.start)
    assert np.array_equal(tables.lookup, expected.lookup)
    assert (tables.freq.sum(1) == PROB_SCALE).all()
    assert np.array_equal(tables.freq > 0, weights > 0)


def test_damaged_tables_give_tables_or_an_error():
    weights = random_weights(np.random.default_rng(3), 4)
    stored = encode_tables(weights)
    for length in range(len(stored)):
        with pytest.raises(FormatError):
            decode_tables(stored[:length], 4)
    for at in range(len(stored)):
        damaged = bytearray(stored)
        damaged[at] ^= 0x41
        try:
            tables = decode_tables(bytes(damaged), 4)
        except FormatError:
            continue
        assert (tables.freq.sum(1) == PROB_SCALE).all()


def test_impossible_weights_are_refused():
    with pytest.raises(FormatError):
        normalize_weights(np.zeros(ALPHABET, np.int64))


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_quantized_weights_keep_every_token_and_cost_little(seed):
    rng = np.random.default_rng(seed)
    histogram = np.floor(rng.exponential(1.0, ALPHABET) ** 3 * 1000)
    histogram[0] += 1
    freq = normalize_weights(quantize_weights(histogram)).astype(float)
    assert (freq[histogram > 0] >= 1).all()
    p = histogram[histogram > 0] / histogram.sum()
    cost = -(p * np.log2(freq[histogram > 0] / PROB_SCALE)).sum()
    assert cost < -(p * np.log2(p)).sum() + 0.06


def test_contexts_alike_share_a_table():
    rng = np.random.default_rng(5)
    wide, narrow = np.zeros(ALPHABET), np.zeros(ALPHABET)
    wide[:40], narrow[:4] = 1 / 40, 1 / 4
    cells = [rng.multinomial(2000, p) for p in (wide, narrow, wide, np.zeros(ALPHABET) + narrow, wide)]
    cells.insert(2, np.zeros(ALPHABET, np.int64))
    context_map, counts = cluster_contexts(np.stack(cells))
    assert context_map.tolist() == [0, 1, 1, 0, 1, 0]
    assert np.array_equal(counts.sum(0), np.sum(cells, 0))
    assert len(counts) == 2


@settings(deadline=None, max_examples=20)
@given(seed=seeds, limit=st.integers(1, 6))
def test_clustering_keeps_counts_and_limits(seed, limit):
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 2000, (12, ALPHABET)) * (rng.random((12, ALPHABET)) < 0.3)
    context_map, counts = cluster_contexts(cells, limit)
    assert 1 <= len(counts) <= limit
    for table in range(len(counts)):
        assert np.array_equal(counts[table], cells[context_map == table].sum(0))


def test_no_tokens_make_one_table():
    context_map, counts = cluster_contexts(np.zeros((3, ALPHABET), np.int64))
    assert context_map.tolist() == [0, 0, 0]
    assert counts.shape == (1, ALPHABET)


# ---- Raw bits ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, 2**n - 1))), max_size=40))
def test_bits_come_back(items):
    total = sum(count for count, _ in items)
    buffer, position = np.zeros((total + 7) // 8, np.uint8), 0
    for count, value in items:
        position = write_bits(buffer, position, np.uint64(value), count)
    assert position == total
    text = "".join(f"{value:0{count}b}" for count, value in items if count)
    assert "".join(f"{byte:08b}" for byte in buffer)[:total] == text
    finish_bits(buffer, position)
    position = 0
    for count, value in items:
        assert int(read_bits(buffer, position, count)) == value
        position += count


@settings(deadline=None)
@given(width=st.integers(0, 32), values=st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_fixed_width_bits_come_back(width, values):
    array = np.array([value & ((1 << width) - 1) for value in values], np.uint32)
    packed = pack_fixed(array, width)
    assert len(packed) == (len(values) * width + 7) // 8
    assert np.array_equal(unpack_fixed(packed, width, len(values)), array)


def test_bits_past_the_end_are_zero_and_counted():
    buffer = np.full(3, 255, np.uint8)
    assert int(read_bits(buffer, 20, 10)) == 0b1111000000
    assert int(read_bits(buffer, 500, 64)) == 0
    assert write_bits(buffer, 20, np.uint64(0xFFFF), 16) == 36
    assert write_bits(np.zeros(0, np.uint8), 0, np.uint64(5), 3) == 3
    with pytest.raises(TruncatedError):
        finish_bits(buffer, 25)
    with pytest.raises(FormatError):
        finish_bits(buffer, 16)
    with pytest.raises(FormatError):
        finish_bits(buffer, 22)
    with pytest.raises(TruncatedError):
        unpack_fixed(b"\0", 9, 1)


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_bit_length(value):
    assert bit_length(value) == value.bit_length()
