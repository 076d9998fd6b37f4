"""One tile of a lossy scene: from quantizer targets to bytes and back (bitstreams/SPEC.md, section 3.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.adaptive import new_models
from ..entropy.bits import read_bits, write_bits
from ..entropy.rans import PROB_BITS, PROB_SCALE, rans_encode, start_decoding
from ..errors import FormatError, TruncatedError
from ..gaussians import Gaussians, num_sh_coefficients
from .mixing import MixerState, mix_decode_stream, mix_encode_stream
from .neighbors import NUM_NEIGHBORS, find_neighbors, leaf_centers
from .octree import MAX_DEPTH, OCTREE_MODELS, decode_octree, encode_octree
from .parameters import (
    COLOR_CLASS,
    COLOR_FIRST,
    GEOMETRY_CLASS,
    GROUPS,
    MATRIX_SCALE,
    OPACITY,
    SH_FIRST,
    SHAPE_FIRST,
    SIZE_FIRST,
    SceneParameters,
    num_streams,
    stream_group,
)
from .streams import MAX_CLASS, decode_stream, emit_stream
from .transform import decode_covariance, decode_opacity, decompose_covariance, position_bits

__all__ = [
    "MAX_TILE",
    "DecodedTile",
    "TileGrid",
    "TileTree",
    "decode_tile",
    "emit_tile",
    "morton_codes",
    "plant_tree",
    "stream_classes",
]

MAX_TILE = 1 << 16
_HEAD = struct.Struct("<BBhfdddI")
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TileGrid:
    """The cube of a tile: [origin, origin + 2**exponent) on each axis, and the blur its covariances carry."""

    origin: tuple[float, float, float]
    exponent: int
    blur: float

    @classmethod
    def around(cls, means: npt.NDArray[np.float32], blur: float) -> TileGrid:
        """The smallest cube with a power-of-two edge that holds (n, 3) `means`, n >= 1."""
        low = means.min(0).astype(np.float64)
        extent = float((means.max(0).astype(np.float64) - low).max())
        # An edge just above the extent keeps the far side inside the half-open cube.
        exponent = int(np.clip(np.floor(np.log2(extent)) + 1, -1000, 1000)) if extent > 0 else -40
        return cls((float(low[0]), float(low[1]), float(low[2])), exponent, float(np.float32(blur)))


@njit(cache=True, nogil=True)
def morton_codes(means, origin, scale, codes):
    """(n,) uint64 Morton codes, MAX_DEPTH bits an axis, of (n, 3) means times `scale` (cells a unit)."""
    top = np.int64((1 << MAX_DEPTH) - 1)
    for i in range(len(codes)):
        code = np.uint64(0)
        for axis in range(3):
            cell = np.int64((np.float64(means[i, axis]) - origin[axis]) * scale)
            v = np.uint64(min(max(cell, np.int64(0)), top))
            v = (v | (v << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
            v = (v | (v << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
            v = (v | (v << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
            v = (v | (v << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
            v = (v | (v << np.uint64(2))) & np.uint64(0x1249249249249249)
            code |= v << np.uint64(axis)
        codes[i] = code


@dataclass
class TileTree:
    """The octree of a tile, encoded, with what the streams need of it.

    Attributes:
        intervals: (m,) uint32 of the coded octree.
        cells: (n, 3) int32 leaf cell of every Gaussian at its leaf's depth.
        depths: (n,) int32. neighbors: (n, 4) int32.
    """

    intervals: npt.NDArray[np.uint32]
    cells: Ints
    depths: Ints
    neighbors: Ints


def plant_tree(codes: npt.NDArray[np.uint64], stop_depths: Ints) -> TileTree:
    """Code the octree of Gaussians sorted by Morton code and find their neighbours.

    Args:
        codes: (n,) ascending uint64. stop_depths: (n,) int32 from the precision wanted.
    """
    n = len(codes)
    models = new_models(OCTREE_MODELS)
    # At most MAX_DEPTH + 1 cells a Gaussian, each with a stop bit and 7 or 8 children, and one count a leaf.
    room = int(np.minimum(stop_depths.astype(np.int64) + 2, MAX_DEPTH + 1).sum()) * 9 + 64 * n + 64
    intervals = np.empty(room, np.uint32)
    leaf_depths, leaf_counts = np.empty(n, np.int32), np.empty(n, np.int32)
    count, leaves = encode_octree(codes, stop_depths, models, intervals, 0, leaf_depths, leaf_counts)
    leaf_depths, leaf_counts = leaf_depths[:leaves], leaf_counts[:leaves]
    depths = np.repeat(leaf_depths, leaf_counts)
    cells = np.stack([_compact(codes >> np.uint64(axis)) for axis in range(3)], 1)
    cells >>= (MAX_DEPTH - depths).astype(np.int64)[:, None]
    centers = ((cells << 1 | 1) << (MAX_DEPTH - depths).astype(np.int64)[:, None]).astype(np.int32)
    neighbors = np.empty((n, NUM_NEIGHBORS), np.int32)
    find_neighbors(centers, neighbors)
    return TileTree(intervals[:count].copy(), cells.astype(np.int32), depths, neighbors)


def _compact(v: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Every third bit of v, packed: the inverse of one axis of `morton_codes`."""
    v = v & np.uint64(0x1249249249249249)
    for shift, mask in (
        (2, 0x10C30C30C30C30C3),
        (4, 0x100F00F00F00F00F),
        (8, 0x1F0000FF0000FF),
        (16, 0x1F00000000FFFF),
        (32, 0x1FFFFF),
    ):
        v = (v | (v >> np.uint64(shift))) & np.uint64(mask)
    return v.astype(np.int64)


@njit(cache=True, nogil=True)
def _emit_positions(cells, depths, values, fractions, exponent, size_step, precision, lower, shape, raw, position):
    """Plain bits of all positions; each axis makes up for the errors of the axes before it (SPEC.md, section 3.6).

    `fractions` (n, 3) float64: position in its leaf, 0..1. `shape` (n, 3): L21, L31, L32. `lower` is unused storage
    for the errors, (3,) float64.
    """
    for i in range(len(depths)):
        for axis in range(3):
            want = fractions[i, axis]
            if axis == 1:
                want += shape[i, 0] * lower[0]
            elif axis == 2:
                want += shape[i, 1] * lower[0] + shape[i, 2] * lower[1]
            bits = position_bits(
                exponent, np.int64(depths[i]), np.int64(values[SIZE_FIRST + axis, i]), size_step, precision,
                np.int64(values[GEOMETRY_CLASS, i]),
            )  # fmt: skip
            steps = np.int64(1) << bits
            q = min(max(np.int64(np.floor(want * steps)), 0), steps - 1)
            got = (q + 0.5) / steps
            error = got - fractions[i, axis]
            # `lower` holds L^-1 times the error so far.
            if axis == 1:
                error -= shape[i, 0] * lower[0]
            lower[axis] = error
            if bits:
                position = write_bits(raw, position, np.uint64(q), bits)
    return position


@njit(cache=True, nogil=True)
def _decode_positions(
    leaf_xyz, leaf_depths, leaf_counts, values, exponent, size_step, precision, origin, raw, position, means
):
    at = 0
    for leaf in range(len(leaf_depths)):
        depth = np.int64(leaf_depths[leaf])
        edge = np.ldexp(1.0, exponent - depth)
        for _ in range(leaf_counts[leaf]):
            for axis in range(3):
                bits = position_bits(
                    exponent, depth, np.int64(values[SIZE_FIRST + axis, at]), size_step, precision,
                    np.int64(values[GEOMETRY_CLASS, at]),
                )  # fmt: skip
                q = np.int64(0)
                if bits:
                    q = np.int64(read_bits(raw, position, bits))
                    position += bits
                inside = (q + 0.5) / np.float64(np.int64(1) << bits)
                means[at, axis] = origin[axis] + (leaf_xyz[leaf, axis] + inside) * edge
            at += 1
    return position


def emit_tile(
    parameters: SceneParameters,
    grid: TileGrid,
    tree: TileTree,
    values: Ints,
    magnitudes: Ints,
    residuals: Ints,
    fractions: Floats,
    shape: Floats,
    mixing: bool = False,
    num_states: int = 8,
) -> tuple[bytes, npt.NDArray[np.float64]]:
    """The TILE chunk of quantized streams, and what its bits were spent on.

    Args:
        values, magnitudes, residuals: (S, n) int32 from `quantize_stream`.
        fractions: (n, 3) float64 position of every Gaussian in its leaf, 0..1.
        shape: (n, 3) float64 L21, L31, L32 of the coded covariance.
        mixing: code the streams by context mixing instead of tables.

    Returns:
        the chunk, and (S + 2,) bits: octree, each stream, plain position bits.
    """
    n = values.shape[1]
    spent = np.zeros(values.shape[0] + 2)
    tables = parameters.table_set()
    room = (
        int(np.minimum(2 * np.abs(residuals).max(axis=1, initial=0), 31).sum()) + len(residuals)
        if mixing
        else len(values)
    )
    intervals = np.empty(len(tree.intervals) + n * room, np.uint32)
    count = len(tree.intervals)
    intervals[:count] = tree.intervals
    spent[0] = _code_length_bits(tree.intervals)
    raw = np.zeros(n * (4 * values.shape[0] + 12) + 16, np.uint8)
    position = 0
    state = MixerState() if mixing else None
    deltas = np.where(residuals < 0, -magnitudes, magnitudes) if mixing else magnitudes
    for stream, model in enumerate(parameters.models):
        before = count, position
        group, classes = stream_group(stream), stream_classes(stream, values)
        if state is not None:
            count, position = mix_encode_stream(
                stream, group, GROUPS.index(group), model.scale, classes, deltas, residuals, tree.neighbors,
                state.models, state.weights, intervals, count, raw, position,
            )  # fmt: skip
        else:
            count, position = emit_stream(
                stream, group, model.mode, model.scale, classes, magnitudes, residuals, tree.neighbors,
                model.context_map, tables.freq, tables.start, intervals, count, raw, position,
            )  # fmt: skip
        spent[stream + 1] = _code_length_bits(intervals[before[0] : count]) + position - before[1]
    before = count, position
    position = _emit_positions(
        tree.cells, tree.depths, values, fractions, grid.exponent, parameters.size_step, parameters.precision,
        np.zeros(3), shape, raw, position,
    )  # fmt: skip
    spent[-1] = position - before[1]
    coded = rans_encode(intervals[:count], num_states)
    head = _HEAD.pack(num_states.bit_length() - 1, int(mixing), grid.exponent, grid.blur, *grid.origin, len(coded))
    payload = head + coded + raw[: (position + 7) // 8].tobytes()
    return payload + bytes(max(0, (n + 7) // 8 - len(payload))), spent


def _code_length_bits(intervals: npt.NDArray[np.uint32]) -> float:
    """Ideal length of coded intervals; rANS comes within a few bytes of it."""
    frequencies = np.bincount(intervals >> np.uint32(16), minlength=PROB_SCALE + 1)[1:]
    return float(frequencies @ (PROB_BITS - np.log2(np.arange(1, PROB_SCALE + 1))))


def stream_classes(stream: int, values: Ints) -> Ints:
    """(n,) int32 step exponents of a stream: its class, or 0 for the classes themselves."""
    if stream in (GEOMETRY_CLASS, COLOR_CLASS):
        return np.zeros(values.shape[1], np.int32)
    return values[GEOMETRY_CLASS if stream < COLOR_FIRST else COLOR_CLASS]


@dataclass(frozen=True)
class DecodedTile:
    """A tile as integers and exact reconstructions.

    Attributes:
        values: (S, n) int32 streams.
        means: (n, 3) float32 world units.
        covariances: (n, 6) float64 xx, xy, xz, yy, yz, zz.
        opacities: (n,) float32 logits.
        sh0: (n, 1, 3) float32. shN: (n, K-1, 3) float32.
        smallest: standard deviation below which axes are cut off, world units.
    """

    values: Ints
    means: npt.NDArray[np.float32]
    covariances: Floats
    opacities: npt.NDArray[np.float32]
    sh0: npt.NDArray[np.float32]
    shN: npt.NDArray[np.float32]
    smallest: float

    def gaussians(self) -> Gaussians:
        """Quaternions and scales instead of covariances."""
        n = len(self.means)
        quats, scales = np.empty((n, 4), np.float32), np.empty((n, 3), np.float32)
        decompose_covariance(self.covariances, self.smallest, quats, scales)
        return Gaussians(self.means, quats, scales, self.opacities, self.sh0, self.shN)


def decode_tile(parameters: SceneParameters, payload: bytes, count: int) -> DecodedTile:
    """Decode a TILE chunk of `count` Gaussians.

    Raises:
        FormatError: the bytes are damaged; offsets count from the start of the chunk.
    """
    if not 1 <= count <= MAX_TILE or count > 8 * len(payload):
        raise FormatError(f"{count} Gaussians in a tile of {len(payload)} bytes", offset=0)
    if len(payload) < _HEAD.size:
        raise TruncatedError("the tile's header is cut off", offset=len(payload))
    log_states, flags, exponent, blur, ox, oy, oz, length = _HEAD.unpack_from(payload)
    finite = all(abs(o) < 1e38 for o in (ox, oy, oz))
    if log_states > 5 or abs(exponent) > 1000 or not 0 <= blur < 1e30 or not finite:
        raise FormatError("the tile's header is damaged", offset=0)
    if flags > 1:
        raise FormatError(f"the tile asks for coding tools {flags} that do not exist", offset=1)
    if length > len(payload) - _HEAD.size:
        raise TruncatedError("the tile's rANS stream is cut off", offset=_HEAD.size)
    state = start_decoding(memoryview(payload)[_HEAD.size : _HEAD.size + length], 1 << log_states)
    raw = np.frombuffer(payload, np.uint8, offset=_HEAD.size + length)
    leaf_xyz, leaf_depths, leaf_counts = (np.empty((count, 3), np.int32), *(np.empty(count, np.int32) for _ in "12"))
    leaves = decode_octree(
        count, new_models(OCTREE_MODELS), state.states, state.words, state.cursor, leaf_xyz, leaf_depths, leaf_counts
    )
    if leaves < 0:
        raise FormatError("the tile's octree is damaged", offset=_HEAD.size)
    leaf_xyz, leaf_depths, leaf_counts = leaf_xyz[:leaves], leaf_depths[:leaves], leaf_counts[:leaves]
    centers, depths = np.empty((count, 3), np.int32), np.empty(count, np.int32)
    leaf_centers(leaf_xyz, leaf_depths, leaf_counts, centers, depths)
    neighbors = np.empty((count, NUM_NEIGHBORS), np.int32)
    find_neighbors(centers, neighbors)
    streams = num_streams(parameters.sh_degree)
    values, magnitudes = np.zeros((streams, count), np.int32), np.zeros((streams, count), np.int32)
    tables = parameters.table_set()
    position = 0
    state_of_mix = MixerState() if flags & 1 else None
    for stream, model in enumerate(parameters.models):
        p = model.predictor
        group, classes = stream_group(stream), stream_classes(stream, values)
        if state_of_mix is not None:
            position = mix_decode_stream(
                stream, group, GROUPS.index(group), model.scale, classes, values, magnitudes, neighbors, depths,
                p.bias, p.kinds, p.sources, p.coefficients, state_of_mix.models, state_of_mix.weights,
                state.states, state.words, state.cursor, raw, position,
            )  # fmt: skip
        else:
            position = decode_stream(
                stream, group, model.mode, model.scale, classes, values, magnitudes, neighbors, depths,
                p.bias, p.kinds, p.sources, p.coefficients, model.context_map, tables.lookup, tables.freq,
                tables.start, state.states, state.words, state.cursor, raw, position,
            )  # fmt: skip
        if stream <= COLOR_CLASS and (values[stream].min() < 0 or values[stream].max() > MAX_CLASS):
            raise FormatError("a class is out of range", offset=_HEAD.size)
    means = np.empty((count, 3), np.float32)
    with np.errstate(over="ignore"):
        position = _decode_positions(
            leaf_xyz, leaf_depths, leaf_counts, values, exponent, parameters.size_step, parameters.precision,
            np.array([ox, oy, oz]), raw, position, means,
        )  # fmt: skip
    state.finish()
    if position > 8 * len(raw):
        raise TruncatedError("the tile's plain bits are cut off", offset=len(payload))
    covariances = np.empty((count, 6))
    decode_covariance(
        values, SIZE_FIRST, parameters.size_step, float(np.float32(parameters.shape_step)), float(blur), covariances
    )
    opacities = np.empty(count, np.float32)
    decode_opacity(values, OPACITY, parameters.opacity_step, opacities)
    sh0 = np.empty((count, 1, 3), np.float32)
    _decode_color(values, parameters.color_basis / MATRIX_SCALE, float(np.float32(parameters.color_step)), sh0)
    shN = np.empty((count, num_sh_coefficients(parameters.sh_degree) - 1, 3), np.float32)
    _decode_sh(
        values, parameters.sh_color_basis / MATRIX_SCALE, parameters.sh_band_basis / MATRIX_SCALE,
        float(np.float32(parameters.sh_step)), shN,
    )  # fmt: skip
    return DecodedTile(values, means, covariances, opacities, sh0, shN, max(float(blur) / 16.0, 1e-30))


@njit(cache=True, nogil=True)
def _decode_color(values, basis, step, sh0):
    for i in range(len(sh0)):
        a = values[COLOR_FIRST, i] * step
        b = values[COLOR_FIRST + 1, i] * step
        c = values[COLOR_FIRST + 2, i] * step
        for channel in range(3):
            sh0[i, 0, channel] = basis[channel, 0] * a + basis[channel, 1] * b + basis[channel, 2] * c


@njit(cache=True, nogil=True)
def _decode_sh(values, color_basis, band_basis, step, shN):
    bands = band_basis.shape[0]
    mixed = np.zeros((bands, 3))
    for i in range(len(shN)):
        mixed[:, :] = 0.0
        for k in range(bands):
            for component in range(3):
                v = values[SH_FIRST + 3 * k + component, i]
                if v:
                    x = v * step
                    for band in range(bands):
                        mixed[band, component] += band_basis[band, k] * x
        for band in range(bands):
            a, b, c = mixed[band, 0], mixed[band, 1], mixed[band, 2]
            for channel in range(3):
                shN[i, band, channel] = (
                    color_basis[channel, 0] * a + color_basis[channel, 1] * b + color_basis[channel, 2] * c
                )


assert SHAPE_FIRST == SIZE_FIRST + 3
