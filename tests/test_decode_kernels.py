"""Kernels that decode faster give what the general ones give, whatever the stream holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from splatcodec.entropy.adaptive import new_models
from splatcodec.entropy.bits import read_bits
from splatcodec.entropy.rans import RANS_LOW, ReadState, rans_encode, start_decoding
from splatcodec.entropy.tables import ALPHABET, build_tables, decode_token, quantize_weights, token_bits, value_of
from splatcodec.errors import FormatError
from splatcodec.stages.octree import OCTREE_MODELS, decode_octree, encode_octree
from splatcodec.stages.streams import (
    BIAS,
    CONTEXT_SCALE_NEAR_OWN,
    FEATURE_DEPTH,
    FEATURE_MEAN,
    FEATURE_NEAREST,
    FEATURE_OWN,
    VALUE_LIMIT,
    context_cell,
    decode_base_rows,
    decode_layer_rows,
    decode_rows,
    next_state,
    point_of,
    predict_row,
)
from splatcodec.stages.transform import decompose_covariance, position_bits
from splatcodec.static.decoder import run_together


def dice_stream(rng: np.random.Generator, words: int) -> ReadState:
    states = rng.integers(RANS_LOW, 1 << 32, 8).astype(np.uint64)
    return ReadState(states, rng.integers(0, 1 << 16, words).astype(np.uint16))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("words", [0, 300, 100_000])
def test_layers_decode_as_any_streams_do(seed, words):
    rng = np.random.default_rng(seed)
    n, width, num_tables = 400, (9, 15, 21)[seed % 3], 7
    weights = np.zeros((5, width, width))
    for kind, reach in ((FEATURE_MEAN, 4096), (FEATURE_NEAREST, 2048)):
        weights[kind, range(width), range(width)] = rng.integers(-reach, reach, width)
    weights[BIAS, 0], weights[FEATURE_DEPTH, 0] = rng.integers(-9999, 9999, (2, width))
    shape = rng.choice([0.3, 0.9, 0.995], num_tables)[:, None]
    histograms = rng.uniform(0, 1, (num_tables, ALPHABET)) * shape ** np.arange(ALPHABET)
    histograms[0] = np.arange(ALPHABET) == 3  # one token only
    tables = build_tables(np.stack([quantize_weights(h * 1e4) for h in histograms]))
    maps = rng.integers(0, num_tables, (width, 1024)).astype(np.uint8)
    trellis = ((5, 2), (0, 0), (int(rng.integers(256)), int(rng.integers(256))))[seed % 3]
    scales = rng.choice([0, 1, 5, 300, 1 << 20], width)
    own_terms = np.minimum(np.arange(width) % (width if seed % 2 else 4), 2)
    colors = rng.integers(0, 16, n).astype(np.int32)
    before = np.maximum(np.arange(n)[:, None] - rng.integers(1, 17, (n, 4)), 0)
    neighbors = before.astype(np.int32)
    raw = rng.integers(0, 256, 5000).astype(np.uint8)
    results = []
    for fast in (True, False):
        stream = dice_stream(np.random.default_rng(seed), words)
        values = np.empty((n, width), np.int32)
        rows = values, colors, neighbors, colors, weights
        coded = maps, *trellis, tables.buckets, tables.intervals, stream.states, stream.words, stream.cursor, raw, 0
        if fast:
            position = decode_layer_rows(*rows, scales, own_terms, *coded)
        else:
            position = decode_rows(*rows, np.full(width, CONTEXT_SCALE_NEAR_OWN), scales, own_terms, *coded)
        results.append((values, position, stream.states, stream.cursor))
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def read_base_rows(model, neighbors, depths, trellis, tables, stream, raw, exponent, size_step, precision):
    """Base streams as SPEC.md words them; (values, plain bits, their numbers, position), or None at a bad class."""
    n, width, position = len(depths), len(model["modes"]), 0
    values, magnitudes = np.zeros((n, width), np.int64), np.zeros((n, width), np.int64)
    extra, extra_bits = np.zeros((n, 3), np.int64), np.zeros((n, 3), np.int64)
    states = np.zeros(width, np.int64)
    for i in range(n):
        near = neighbors[i]
        for s in range(width):
            c = 0 if s < 2 else values[i, 0 if s < 9 else 1]
            sums = values[near].sum(0) if i else np.zeros(width, np.int64)
            of_near = magnitudes[near, s].sum() if i else 0
            arguments = model["bias"], model["begin"], model["kinds"], model["sources"], model["coefficients"]
            prediction = predict_row.py_func(i, s, *arguments, sums, values, near[0], np.int64(depths[i]))
            own = magnitudes[i, s - min(model["own_terms"][s], s) : s].sum()
            q = states[s] & 1
            cell = context_cell.py_func(model["modes"][s], model["scales"][s], c, of_near, own << 1, q)
            table = model["maps"][s, cell]
            arrays = stream.states, stream.words, stream.cursor
            token = decode_token(tables.lookup, tables.freq, tables.start, table, *arrays)
            rest, bits = 0, token_bits(token)
            rest = int(read_bits(raw, position, bits))
            position += bits
            r = int(np.clip(value_of(token, rest), -(1 << 27 >> c), 1 << 27 >> c))
            point = r
            if s >= 2:
                point, states[s] = point_of(r, q), next_state(states[s], r, *trellis)
            values[i, s] = np.clip(prediction + (point << c), -VALUE_LIMIT, VALUE_LIMIT)
            magnitudes[i, s] = abs(r) << c
            if s < 2 and not 0 <= values[i, s] <= 15:
                return None
        for axis in range(3):
            args = exponent, depths[i], values[i, 2 + axis], size_step, precision, values[i, 0]
            extra_bits[i, axis] = bits = position_bits(*args)
            extra[i, axis] = int(read_bits(raw, position, bits))
            position += bits
    return values, extra, extra_bits, position


@pytest.mark.parametrize("seed", range(12))
def test_base_streams_decode_as_the_specification_says(seed):
    rng = np.random.default_rng(seed)
    n, width, num_tables = 60, 12, 5
    kinds, sources, coefficients, begin = [], [], [], [0]
    for s in range(width):
        for kind, others in ((FEATURE_MEAN, s + 1), (FEATURE_NEAREST, s + 1), (FEATURE_OWN, s), (FEATURE_DEPTH, 1)):
            # Every other seed: as encoders choose them, the nearest one's own stream only.
            few = s < 2 or (seed % 2 and kind == FEATURE_NEAREST)
            for source in () if s < 2 and kind != FEATURE_MEAN else (s,) if few else range(others):
                if rng.random() < 0.5:
                    kinds.append(kind), sources.append(source), coefficients.append(rng.integers(-3000, 3000))
        begin.append(len(kinds))
    arrays = (np.array(a, np.int64) for a in (begin, kinds, sources, coefficients))
    model = dict(zip(("begin", "kinds", "sources", "coefficients"), arrays))
    if seed < 10:  # classes stay in range
        model["coefficients"][: begin[2]] = 0
    model["bias"] = np.where(np.arange(width) < 2, 7 << 12, rng.integers(-9999, 9999, width)).astype(np.int64)
    weights = np.zeros((5, width, width))
    weights[BIAS, 0] = model["bias"]
    for s in range(width):
        for f in range(begin[s], begin[s + 1]):
            weights[kinds[f], sources[f], s] += model["coefficients"][f]
    shape = np.array([0.3, 0.6, 0.9, 0.97, 0.99])[:, None]
    histograms = rng.uniform(0, 1, (num_tables, ALPHABET)) * shape ** np.arange(ALPHABET)
    histograms[0, 14:] = 0.0
    tables = build_tables(np.stack([quantize_weights(h * 1e4) for h in histograms]))
    model["maps"] = rng.integers(0, num_tables, (width, 1024)).astype(np.uint8)
    model["maps"][:2] = 0
    model["modes"] = rng.integers(0, 4, width) if seed % 3 else np.zeros(width, np.int64)
    model["scales"] = rng.choice([0, 1, 5, 300, 1 << 20], width)
    model["own_terms"] = np.array([0, 0, 0, 1, 2, 0, 1, 2, 0, 0, 1, 2])
    trellis = ((5, 2), (0, 0), (3, 1))[seed % 3]
    depths = rng.integers(0, 22, n).astype(np.int32)
    neighbors = np.maximum(np.arange(n)[:, None] - rng.integers(1, 17, (n, 4)), 0).astype(np.int32)
    neighbors[0] = -1
    raw = rng.integers(0, 256, 30000).astype(np.uint8)
    position_args = 12, 64, -2000
    stream = dice_stream(np.random.default_rng(seed), 5000)
    expected = read_base_rows(model, neighbors, depths, trellis, tables, stream, raw, *position_args)
    again = dice_stream(np.random.default_rng(seed), 5000)
    values, extra, extra_bits = np.empty((n, width), np.int32), np.empty((n, 3), np.int64), np.empty((n, 3), np.int64)
    position = decode_base_rows(
        values, neighbors, depths, weights, model["modes"], model["scales"], model["own_terms"], model["maps"],
        *trellis, tables.buckets, tables.intervals, again.states, again.words, again.cursor, raw, 0,
        *position_args, extra, extra_bits,
    )  # fmt: skip
    if expected is None:
        assert position == -1
        return
    for got, wanted in zip((values, extra, extra_bits, position), expected):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(again.states, stream.states)
    np.testing.assert_array_equal(again.cursor, stream.cursor)


@pytest.mark.parametrize("seed", range(6))
def test_octrees_come_back_and_stay_in_step_with_the_encoder(seed):
    rng = np.random.default_rng(seed)
    n = (1, 2, 50, 3000, 3000, 3000)[seed]
    codes = np.sort(rng.integers(0, 1 << (63 if seed % 2 else 20), n).astype(np.uint64))
    stop = rng.integers(0, 22, n).astype(np.int32)
    intervals = np.empty(400 * n + 1000, np.uint32)
    depths, counts = np.empty(n, np.int32), np.empty(n, np.int32)
    count, leaves = encode_octree(codes, stop, new_models(OCTREE_MODELS), intervals, 0, depths, counts)
    stream = start_decoding(rans_encode(intervals[:count], 8), 8)
    xyz, again, sizes = np.empty((n, 3), np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    models = new_models(OCTREE_MODELS)
    assert decode_octree(n, models, stream.states, stream.words, stream.cursor, xyz, again, sizes) == leaves
    stream.finish()
    np.testing.assert_array_equal(again[:leaves], depths[:leaves])
    np.testing.assert_array_equal(sizes[:leaves], counts[:leaves])


@pytest.mark.parametrize("count", [1, 31, 32, 33, 500])
def test_covariances_decompose_alone_as_together(count):
    """Lanes do not touch each other: whatever stands beside a Gaussian, it is the same to the bit."""
    rng = np.random.default_rng(count)
    half = rng.normal(size=(count, 3, 3)) * np.exp(rng.normal(0, 3, (count, 1, 3)))
    full = half @ half.transpose(0, 2, 1)
    full[::7] = np.eye(3) * 4  # diagonal from the start
    covariances = full[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    quats, scales = np.empty((count, 4), np.float32), np.empty((count, 3), np.float32)
    decompose_covariance(covariances, 1e-9, quats, scales)
    for i in range(count):
        quat, scale = np.empty((1, 4), np.float32), np.empty((1, 3), np.float32)
        decompose_covariance(covariances[i : i + 1], 1e-9, quat, scale)
        np.testing.assert_array_equal(quat[0], quats[i])
        np.testing.assert_array_equal(scale[0], scales[i])
    w, x, y, z = quats.astype(float).T
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    again = (turn * np.exp(2.0 * scales)[:, None]) @ turn.transpose(0, 2, 1)
    size = np.trace(full, axis1=1, axis2=2)
    assert (np.abs(again - full).max(axis=(1, 2)) / size).max() < 1e-5


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_tasks_of_a_pools_own_tasks_all_run_and_the_last_failure_is_raised(threads):
    done = []

    def task(k):
        if k in (1, 3):
            raise FormatError(f"task {k}", offset=k)
        done.append(k)

    def all_tasks(pool):
        with pytest.raises(FormatError) as caught:
            run_together([partial(task, k) for k in range(6)], pool)
        return caught.value.offset

    if threads is None:
        offsets = [all_tasks(None)]
    else:
        with ThreadPoolExecutor(threads) as pool:  # as many outer tasks as threads, and more: none waits for ever
            offsets = [f.result(60) for f in [pool.submit(all_tasks, pool) for _ in range(2 * threads)]]
    assert set(offsets) == {3}
    assert sorted(done) == sorted([0, 2, 4, 5] * len(offsets))
