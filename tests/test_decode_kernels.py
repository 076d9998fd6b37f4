"""Kernels that decode faster give what the general ones give, whatever the stream holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from splatcodec.entropy.adaptive import new_models
from splatcodec.entropy.rans import RANS_LOW, ReadState, rans_encode, start_decoding
from splatcodec.entropy.tables import ALPHABET, build_tables, quantize_weights
from splatcodec.errors import FormatError
from splatcodec.stages.octree import OCTREE_MODELS, decode_octree, encode_octree
from splatcodec.stages.streams import (
    BIAS,
    CONTEXT_SCALE_NEAR_OWN,
    FEATURE_DEPTH,
    FEATURE_MEAN,
    FEATURE_NEAREST,
    decode_layer_rows,
    decode_rows,
)
from splatcodec.stages.transform import decompose_covariance
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
    plain = np.zeros((0, 3), np.int64)
    results = []
    for fast in (True, False):
        stream = dice_stream(np.random.default_rng(seed), words)
        values = np.empty((n, width), np.int32)
        rows = values, colors, neighbors, colors, weights
        coded = maps, *trellis, tables.buckets, tables.intervals, stream.states, stream.words, stream.cursor, raw, 0
        if fast:
            position = decode_layer_rows(*rows, scales, own_terms, *coded)
        else:
            modes = np.full(width, CONTEXT_SCALE_NEAR_OWN)
            position = decode_rows(12, *rows, True, modes, scales, own_terms, *coded, 0, 1, 0, plain, plain)
        results.append((values, position, stream.states, stream.cursor))
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


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
