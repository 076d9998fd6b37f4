"""Colours from a multi-resolution hash grid and a small network: evaluation, and the chunk that holds them.

After Lee et al. ("Compact 3D Gaussian Representation for Radiance Field", 2024) and Mueller et al. ("Instant Neural
Graphics Primitives", 2022). The network gives the harmonics of a Gaussian from its place, so that a decoder runs it
once a Gaussian and has an ordinary scene (SPEC.md, section 8.2; docs/design/learned_parts.md).
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.adaptive import GAMMA_MODELS, decode_gamma, encode_gamma, new_models
from ..entropy.rans import rans_encode, start_decoding
from ..errors import FormatError, TruncatedError

__all__ = ["ColourField", "GridShape", "corners", "features"]

_HEAD = struct.Struct("<BBBBHHf3ffI")
_STATES = 8
_MAX_NUMBER = 1 << 20
_MAX_NUMBERS_A_BYTE = 1024
_MAX_RESOLUTION = 1 << 20
_LIMIT = 10_000.0


@dataclass(frozen=True)
class GridShape:
    """The grid and where it lies.

    Attributes:
        levels: 1..16. features: of an entry, 1..4. log2_entries: of the largest table, 4..22.
        resolution: cells on an axis at level 0, 1..4096. growth: of the resolution from level to level, 1..4.
        centre, radius: a ball in world units that half of the grid is for; the other half is for all the rest.
    """

    levels: int
    features: int
    log2_entries: int
    resolution: int
    growth: float
    centre: tuple[float, float, float]
    radius: float

    def resolutions(self) -> list[int]:
        """Cells on an axis, by level."""
        found, r = [], float(self.resolution)
        for _ in range(self.levels):
            found.append(min(math.floor(r), _MAX_RESOLUTION))
            r = r * self.growth
        return found

    def entries(self) -> list[int]:
        """Entries of each table."""
        return [min((r + 1) ** 3, 1 << self.log2_entries) for r in self.resolutions()]


@njit(cache=True, nogil=True)
def _corners(means, centre, radius, resolutions, entries, starts, index, weight):
    for n in range(len(means)):
        d0 = (np.float64(means[n, 0]) - centre[0]) / radius
        d1 = (np.float64(means[n, 1]) - centre[1]) / radius
        d2 = (np.float64(means[n, 2]) - centre[2]) / radius
        length = np.sqrt(d0 * d0 + d1 * d1 + d2 * d2)
        if length > 1.0:
            scale = (2.0 - 1.0 / length) / length
            d0, d1, d2 = d0 * scale, d1 * scale, d2 * scale
        u0 = min(max(d0 * 0.25 + 0.5, 0.0), 1.0)
        u1 = min(max(d1 * 0.25 + 0.5, 0.0), 1.0)
        u2 = min(max(d2 * 0.25 + 0.5, 0.0), 1.0)
        for level in range(len(resolutions)):
            r = resolutions[level]
            x, y, z = u0 * r, u1 * r, u2 * r
            i, j, k = min(np.int64(x), r - 1), min(np.int64(y), r - 1), min(np.int64(z), r - 1)
            t0, t1, t2 = x - i, y - j, z - k
            side = np.float64(r + 1)
            dense = side * side * side <= np.float64(entries[level])
            for corner in range(8):
                b0, b1, b2 = corner & 1, (corner >> 1) & 1, corner >> 2
                w = t0 if b0 else 1.0 - t0
                w = w * (t1 if b1 else 1.0 - t1)
                w = w * (t2 if b2 else 1.0 - t2)
                a, b, c = i + b0, j + b1, k + b2
                if dense:
                    at = a + (r + 1) * (b + (r + 1) * c)
                else:
                    h = np.uint32(a) ^ np.uint32(np.uint32(b) * np.uint32(2654435761))
                    h = h ^ np.uint32(np.uint32(c) * np.uint32(805459861))
                    at = np.int64(h & np.uint32(entries[level] - 1))
                index[n, level, corner] = starts[level] + at
                weight[n, level, corner] = w


def corners(means: npt.NDArray[np.float32], shape: GridShape) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Which entries (of all tables, one after the other) a place reads, and how much each counts: (N, L, 8) each."""
    index = np.empty((len(means), shape.levels, 8), np.int64)
    weight = np.empty(index.shape)
    entries = np.array(shape.entries(), np.int64)
    starts = np.concatenate([[0], np.cumsum(entries)[:-1]])
    _corners(
        np.ascontiguousarray(means), np.array(shape.centre), float(shape.radius),
        np.array(shape.resolutions(), np.int64), entries, starts, index, weight,
    )  # fmt: skip
    return index, weight


@njit(cache=True, nogil=True)
def features(index, weight, table, out):
    """out (N, L, F) = sums over the corners of weight times `table` (E, F), of any float dtype."""
    for n in range(len(index)):
        for level in range(index.shape[1]):
            for f in range(table.shape[1]):
                total = 0.0
                for corner in range(8):
                    total += weight[n, level, corner] * table[index[n, level, corner], f]
                out[n, level, f] = total


@njit(cache=True, nogil=True)
def _network(inputs, weights, biases, sizes, steps, out):
    """Layer by layer; `weights` and `biases` are those of all layers in a row."""
    widest = 0
    for size in sizes:
        widest = max(widest, size)
    now, then = np.empty(widest), np.empty(widest)
    for n in range(len(inputs)):
        for i in range(sizes[0]):
            now[i] = inputs[n, i]
        at, bias_at = 0, 0
        for layer in range(len(steps)):
            for o in range(sizes[layer + 1]):
                total = biases[bias_at]
                bias_at += 1
                for i in range(sizes[layer]):
                    total += weights[at] * now[i]
                    at += 1
                value = total * steps[layer]
                then[o] = value if layer == len(steps) - 1 else max(value, 0.0)
            for o in range(sizes[layer + 1]):
                now[o] = then[o]
        for o in range(sizes[-1]):
            out[n, o] = min(max(now[o], -_LIMIT), _LIMIT)


@dataclass(frozen=True, eq=False)
class ColourField:
    """What an NCOL chunk holds: integers in steps.

    Attributes:
        shape: of the grid.
        table: (E, F) int32, the tables of all levels one after the other. table_steps: (L,) float32.
        weights: of each layer (outputs, inputs) int32. biases: (outputs,) int32. layer_steps: float32 each.
    """

    shape: GridShape
    table: npt.NDArray[np.int32]
    table_steps: npt.NDArray[np.float32]
    weights: Sequence[npt.NDArray[np.int32]]
    biases: Sequence[npt.NDArray[np.int32]]
    layer_steps: npt.NDArray[np.float32]

    @property
    def num_coefficients(self) -> int:
        """SH coefficients a channel, sh0 counted."""
        return len(self.biases[-1]) // 3

    def colours(self, means: npt.NDArray[np.float32], block: int = 1 << 14) -> npt.NDArray[np.float64]:
        """(N, K, 3) coefficients of Gaussians at `means` (N, 3), exactly as every decoder has them."""
        sizes = np.array([self.weights[0].shape[1], *(len(bias) for bias in self.biases)], np.int64)
        weights = np.concatenate([w.reshape(-1) for w in self.weights]).astype(np.float64)
        biases = np.concatenate(self.biases).astype(np.float64)
        table, steps = self.table.astype(np.float64), self.table_steps.astype(np.float64)
        out = np.empty((len(means), int(sizes[-1])))
        for first in range(0, len(means), block):
            index, weight = corners(means[first : first + block], self.shape)
            found = np.empty((len(index), self.shape.levels, self.shape.features))
            features(index, weight, table, found)
            found *= steps[:, None]
            rows = out[first : first + block]
            _network(
                found.reshape(len(index), sizes[0]), weights, biases, sizes, self.layer_steps.astype(np.float64), rows
            )
        return out.reshape(len(means), self.num_coefficients, 3)

    def to_bytes(self) -> bytes:
        """The chunk."""
        shape, hidden = self.shape, len(self.weights) - 1
        numbers, kinds = self._listed()
        assert np.abs(numbers).max(initial=0) <= _MAX_NUMBER
        every = np.concatenate([self.table.reshape(-1).astype(np.int64), numbers])
        # A number of L bits beside the sign is 2 L + 3 decisions at most.
        intervals = np.empty(int((2 * np.ceil(np.log2(np.abs(every) + 1.0)) + 3).sum()) + 1, np.uint32)
        models = new_models(_num_models(shape.levels, hidden))
        count = _encode(models, self.table.reshape(-1), _level_ends(shape), shape.features, numbers, kinds, intervals)
        stream = rans_encode(intervals[:count], _STATES)
        width = len(self.biases[0]) if hidden else 1
        head = _HEAD.pack(
            shape.levels, shape.features, shape.log2_entries, hidden, width, shape.resolution, shape.growth,
            *shape.centre, shape.radius, len(stream),
        )  # fmt: skip
        payload = head + self.table_steps.astype("<f4").tobytes() + self.layer_steps.astype("<f4").tobytes() + stream
        return payload.ljust(-(-self.table.size // _MAX_NUMBERS_A_BYTE), b"\0")

    def _listed(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of the layers in the order of the stream, and what kind each is."""
        numbers, kinds = [], []
        layers = len(self.weights)
        for layer, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True)):
            numbers.append(np.concatenate([biases[:, None], weights], axis=1).reshape(-1).astype(np.int64))
            kind = np.full((len(biases), 1 + weights.shape[1]), layer)
            kind[:, 0] = layers + layer
            kinds.append(kind.reshape(-1))
        return np.concatenate(numbers), np.concatenate(kinds) + 3 * self.shape.levels

    @classmethod
    def from_bytes(cls, payload: bytes, num_coefficients: int) -> ColourField:
        """Read a chunk of a scene with so many SH coefficients a channel, sh0 counted.

        Raises:
            FormatError: damaged; the offset is that in the chunk.
        """
        if len(payload) < _HEAD.size:
            raise TruncatedError("the head of the colour field is cut off", offset=len(payload))
        levels, features_, log2, hidden, width, resolution, growth, *place, length = _HEAD.unpack_from(payload)
        *centre, radius = place
        checks = (
            (0, "levels", 1 <= levels <= 16),
            (1, "features", 1 <= features_ <= 4),
            (2, "entries", 4 <= log2 <= 22),
            (3, "hidden layers", hidden <= 3),
            (4, "width", 1 <= width <= 128),
            (6, "resolution", 1 <= resolution <= 4096),
            (8, "growth", 1.0 <= growth <= 4.0),
            (12, "centre", all(abs(value) < 1e30 for value in centre)),
            (24, "radius", 1e-30 < radius < 1e30),
        )
        for offset, what, fine in checks:
            if not fine:
                raise FormatError(f"the colour field's {what} is out of range", offset=offset)
        shape = GridShape(levels, features_, log2, resolution, growth, (centre[0], centre[1], centre[2]), radius)
        total = sum(shape.entries())
        if total * features_ > _MAX_NUMBERS_A_BYTE * len(payload):
            raise FormatError(f"tables of {total * features_} numbers in {len(payload)} bytes", offset=0)
        start = _HEAD.size + 4 * (levels + hidden + 1)
        if start + length > len(payload):
            raise TruncatedError("the colour field is cut off", offset=len(payload))
        steps = np.frombuffer(payload, "<f4", levels + hidden + 1, _HEAD.size).astype(np.float32)
        if not ((steps > 0) & (steps < 1000)).all():
            raise FormatError("a step of the colour field is out of range", offset=_HEAD.size)
        sizes = [levels * features_, *[width] * hidden, 3 * num_coefficients]
        field = cls(
            shape,
            np.zeros((total, features_), np.int32),
            steps[:levels],
            [np.zeros((b, a), np.int32) for a, b in itertools.pairwise(sizes)],
            [np.zeros(b, np.int32) for b in sizes[1:]],
            steps[levels:],
        )
        numbers, kinds = field._listed()
        try:
            state = start_decoding(memoryview(payload)[start : start + length], _STATES)
            table = field.table.reshape(-1)
            models = new_models(_num_models(levels, hidden))
            ends = _level_ends(shape)
            if not _decode(models, table, ends, features_, numbers, kinds, state.states, state.words, state.cursor):
                raise FormatError("a number of the colour field is out of range")
            state.finish()
        except FormatError as error:
            error.offset = start
            raise
        at = 0
        for weights, biases in zip(field.weights, field.biases, strict=True):
            part = numbers[at : at + weights.size + len(biases)].reshape(len(biases), -1)
            biases[:], weights[:] = part[:, 0], part[:, 1:]
            at += part.size
        return field


def _num_models(levels: int, hidden: int) -> int:
    return GAMMA_MODELS * (3 * levels + 2 * (hidden + 1))


def _level_ends(shape: GridShape) -> npt.NDArray[np.int64]:
    """Where the numbers of each table end."""
    return np.cumsum(np.array(shape.entries(), np.int64)) * shape.features


@njit(cache=True)
def _encode(models, table, ends, width, numbers, kinds, intervals):
    count = 0
    level, first = 0, 0
    for k in range(len(table)):
        if k == ends[level]:
            level, first = level + 1, k
        before = abs(np.int64(table[k - width])) if k - width >= first else 0
        v = np.int64(table[k])
        zigzag = 2 * v if v >= 0 else -2 * v - 1
        count = encode_gamma(models, 64 * (3 * level + min(before, 2)), zigzag, intervals, count)
    for k in range(len(numbers)):
        v = numbers[k]
        zigzag = 2 * v if v >= 0 else -2 * v - 1
        count = encode_gamma(models, 64 * kinds[k], zigzag, intervals, count)
    return count


@njit(cache=True)
def _decode(models, table, ends, width, numbers, kinds, states, words, cursor):
    level, first = 0, 0
    for k in range(len(table)):
        if k == ends[level]:
            level, first = level + 1, k
        before = abs(np.int64(table[k - width])) if k - width >= first else 0
        zigzag = decode_gamma(models, 64 * (3 * level + min(before, 2)), states, words, cursor)
        v = -((zigzag + 1) >> 1) if zigzag & 1 else zigzag >> 1
        if zigzag < 0 or abs(v) > _MAX_NUMBER or cursor[2]:
            return False
        table[k] = v
    for k in range(len(numbers)):
        zigzag = decode_gamma(models, 64 * kinds[k], states, words, cursor)
        v = -((zigzag + 1) >> 1) if zigzag & 1 else zigzag >> 1
        if zigzag < 0 or abs(v) > _MAX_NUMBER or cursor[2]:
            return False
        numbers[k] = v
    return True
