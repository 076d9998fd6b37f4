"""One chunk of a lossy scene: from quantizer targets to bytes and back (bitstreams/SPEC.md, sections 3.2 and 3.8)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.adaptive import new_models
from ..entropy.rans import PROB_BITS, PROB_SCALE, ReadState, rans_encode, start_decoding
from ..errors import FormatError, TruncatedError
from ..gaussians import Gaussians
from .mixing import MixerState, mix_decode_rows, mix_encode_rows
from .neighbors import NUM_NEIGHBORS, find_neighbors, leaf_centers
from .octree import MAX_DEPTH, OCTREE_MODELS, decode_octree, encode_octree
from .parameters import (
    COLOR_CLASS,
    COLOR_FIRST,
    GEOMETRY_CLASS,
    MATRIX_SCALE,
    OPACITY,
    SH_FIRST,
    SHAPE_FIRST,
    SIZE_FIRST,
    SceneParameters,
    stream_group,
)
from .streams import RowModel, choose_tables, decode_base_rows, decode_layer_rows, decode_rows, emit_rows
from .transform import decode_alpha, decode_covariance, decompose_covariance, exp2_fixed, logits, position_bits

__all__ = [
    "GAIN_ONE",
    "MAX_TILE",
    "NEUTRAL",
    "DecodedTile",
    "Look",
    "TileGrid",
    "TileStreams",
    "TileTree",
    "decode_layer",
    "decode_sh",
    "decode_tile",
    "decode_tile_streams",
    "emit_layer",
    "emit_tile",
    "morton_codes",
    "num_states",
    "plant_tree",
    "prefix_look",
    "set_prefix_look",
    "stream_classes",
]

MAX_TILE = 1 << 16
GAIN_ONE = 1024
Look = tuple[int, int]  # grow and gain (SPEC.md, section 3.10)
NEUTRAL: Look = (0, GAIN_ONE)
_HEAD = struct.Struct("<BBhffffhHhHI")
_LAYER_HEAD = struct.Struct("<BBHI")
_LOOK = struct.Struct("<hHhH")
_LOOK_AT = 20
_MAX_GROW = 8192
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TileGrid:
    """The cube of a chunk, [origin, origin + 2**exponent) on each axis, and the blur that its covariances carry."""

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
def _quantize_positions(cells, depths, values, fractions, exponent, size_step, precision, shape, plain, plain_bits):
    """Plain bits of all positions; each axis makes up for the errors of the axes before it (SPEC.md, section 3.6).

    `values` (S, n) streams. `fractions` (n, 3) float64: position in its leaf, 0..1. `shape` (n, 3): L21, L31, L32.
    `plain`, `plain_bits`: (n, 3) uint32 and uint8 out.
    """
    lower = np.zeros(3)  # L^-1 times the error so far
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
            if axis == 1:
                error -= shape[i, 0] * lower[0]
            lower[axis] = error
            plain[i, axis] = q
            plain_bits[i, axis] = bits


@njit(cache=True, nogil=True)
def _place(leaf_xyz, leaf_depths, leaf_counts, plain, plain_bits, exponent, origin, means):
    """World positions from leaves and the plain bits inside them."""
    at = 0
    for leaf in range(len(leaf_depths)):
        edge = np.ldexp(1.0, exponent - np.int64(leaf_depths[leaf]))
        for _ in range(leaf_counts[leaf]):
            for axis in range(3):
                inside = (plain[at, axis] + 0.5) / np.float64(np.int64(1) << plain_bits[at, axis])
                means[at, axis] = origin[axis] + (leaf_xyz[leaf, axis] + inside) * edge
            at += 1


def _emit_streams(
    parameters: SceneParameters,
    tree: TileTree,
    first: int,
    last: int,
    head: Ints,
    magnitudes: Ints,
    residuals: Ints,
    before: npt.NDArray[np.uint32],
    plain: npt.NDArray[np.uint32],
    plain_bits: npt.NDArray[np.uint8],
    mixing: bool,
    num_states: int,
) -> tuple[bytes, bytes, Floats]:
    """Code streams first .. last - 1, whose intervals follow `before`.

    Args:
        head: (>= 12, n) int32 values of the base streams. magnitudes, residuals: (S, n) int32 of all streams.
        plain, plain_bits: (n, E) bits after each Gaussian's own.

    Returns:
        the rANS stream, the plain bits, and (last - first + 1,) bits by stream and of `plain`.
    """
    n, width = residuals.shape[1], last - first
    rows = np.ascontiguousarray(residuals[first:last].T)
    model = parameters.row_model(first, last)
    room = width
    if mixing:
        # 31 decisions at most, two a bit of the residual and some more.
        room = int(np.minimum(2 * _bit_lengths(np.abs(residuals[first:last]).max(axis=1, initial=0)) + 3, 31).sum())
    intervals = np.empty(len(before) + n * room, np.uint32)
    count = len(before)
    intervals[:count] = before
    raw = np.zeros(n * (4 * width + 12) + 16, np.uint8)
    spent = np.zeros(width + 1)
    if mixing:
        exponents = np.stack([stream_classes(s, head) for s in range(first, last)], 1).astype(np.uint8)
        state = MixerState()
        count, position = mix_encode_rows(
            first, rows, exponents, tree.neighbors, model.scales, model.own_terms, model.ranks, *parameters.trellis,
            plain, plain_bits,
            state.models, state.weights, intervals, count, raw, 0, spent,
        )  # fmt: skip
    else:
        tables = np.empty((width, n), np.uint8)
        for s, row in zip(range(first, last), tables):
            m = parameters.models[s]
            classes = stream_classes(s, head)
            trellis = parameters.trellis_of(s)
            choose_tables(
                s, stream_group(s), m.mode, m.scale, classes, magnitudes, residuals, tree.neighbors, m.context_map,
                *trellis, row,
            )  # fmt: skip
        table_set = parameters.table_set()
        count, position = emit_rows(
            rows, np.ascontiguousarray(tables.T), table_set.freq, table_set.start, plain, plain_bits,
            intervals, count, raw, 0, spent,
        )  # fmt: skip
    return rans_encode(intervals[:count], num_states), raw[: (position + 7) // 8].tobytes(), spent


def _bit_lengths(x: Ints) -> npt.NDArray[np.int64]:
    return np.ceil(np.log2(x.astype(np.float64) + 1.0)).astype(np.int64)


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
) -> tuple[bytes, Floats]:
    """The TILE chunk of quantized streams, and what its bits were spent on.

    Args:
        values: (>= 12, n) int32 from `quantize_stream`. magnitudes, residuals: (>= 12, n) int32.
        fractions: (n, 3) float64 position of every Gaussian in its leaf, 0..1.
        shape: (n, 3) float64 L21, L31, L32 of the coded covariance.
        mixing: code the streams by context mixing instead of tables.

    Returns:
        the chunk, and (14,) bits: octree, each base stream, positions.
    """
    n = values.shape[1]
    plain, plain_bits = np.empty((n, 3), np.uint32), np.empty((n, 3), np.uint8)
    _quantize_positions(
        tree.cells, tree.depths, values, fractions, grid.exponent, parameters.size_step, parameters.precision,
        shape, plain, plain_bits,
    )  # fmt: skip
    states = num_states(n)
    coded, raw, spent = _emit_streams(
        parameters, tree, 0, SH_FIRST, values, magnitudes, residuals, tree.intervals, plain, plain_bits, mixing, states
    )
    head = _HEAD.pack(
        states.bit_length() - 1, int(mixing), grid.exponent, grid.blur, *grid.origin, *NEUTRAL, *NEUTRAL, len(coded)
    )
    payload = head + coded + raw
    return payload + bytes(max(0, (n + 7) // 8 - len(payload))), np.concatenate(
        [[_code_length_bits(tree.intervals)], spent]
    )


def emit_layer(
    parameters: SceneParameters,
    tree: TileTree,
    layer: tuple[int, int],
    head: Ints,
    magnitudes: Ints,
    residuals: Ints,
    mixing: bool = False,
) -> tuple[bytes, float]:
    """An SHC chunk, and its bits.

    Args:
        layer: first and last stream (exclusive).
        head: (>= 12, n) int32 values of the base streams. magnitudes, residuals: (S, n) int32.
    """
    n = residuals.shape[1]
    states = num_states(n)
    nothing = np.zeros((n, 0), np.uint32), np.zeros((n, 0), np.uint8)
    before = np.zeros(0, np.uint32)
    coded, raw, spent = _emit_streams(
        parameters, tree, *layer, head, magnitudes, residuals, before, *nothing, mixing, states
    )
    return _LAYER_HEAD.pack(states.bit_length() - 1, int(mixing), 0, len(coded)) + coded + raw, float(spent.sum())


def num_states(n: int) -> int:
    """Interleaved rANS states: eight decode fastest, and cost 32 bytes."""
    return 8 if n >= 2048 else 4 if n >= 512 else 1


def set_prefix_look(payload: bytes, own: Look, under: Look) -> bytes:
    """A TILE chunk that says how its level and those below look without higher ones (SPEC.md, section 3.10).

    Args:
        own: 1/1024 octaves of standard deviation, and 1/1024 of opacity, of levels 1 to this one.
        under: the same of level 0.
    """
    return payload[:_LOOK_AT] + _LOOK.pack(*own, *under) + payload[_LOOK_AT + _LOOK.size :]


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
    """A TILE chunk as integers and exact reconstructions.

    Attributes:
        values: (n, 12) int32 base streams.
        neighbors: (n, 4) int32.
        means: (n, 3) float32 world units.
        covariances: (n, 6) float64 xx, xy, xz, yy, yz, zz.
        alphas: (n,) float64 opacities after the sigmoid.
        sh0: (n, 1, 3) float32.
        smallest: standard deviation below which axes are cut off, world units.
        own, under: how levels 1 to this one, and level 0, look in a prefix that ends with this level; not applied.
    """

    values: Ints
    neighbors: Ints
    means: npt.NDArray[np.float32]
    covariances: Floats
    alphas: Floats
    sh0: npt.NDArray[np.float32]
    smallest: float
    own: Look = NEUTRAL
    under: Look = NEUTRAL

    def as_prefix(self, grow: int, gain: int) -> DecodedTile:
        """The same as it looks in a prefix of the levels that says so."""
        if grow == 0 and gain == GAIN_ONE:
            return self
        covariances = self.covariances * exp2_fixed(2 * grow)
        alphas = np.minimum(self.alphas * (gain / GAIN_ONE), 4095.0 / 4096.0)
        return replace(self, covariances=covariances, alphas=alphas)

    def gaussians(self, shN: npt.NDArray[np.float32] | None = None) -> Gaussians:
        """Quaternions, scales and logits instead of covariances and opacities."""
        n = len(self.means)
        quats, scales = np.empty((n, 4), np.float32), np.empty((n, 3), np.float32)
        decompose_covariance(self.covariances, self.smallest, quats, scales)
        opacities = np.empty(n, np.float32)
        logits(self.alphas, opacities)
        rest = np.zeros((n, 0, 3), np.float32) if shN is None else shN
        return Gaussians(self.means, quats, scales, opacities, self.sh0, rest)


def _start(
    payload: bytes, head: int, log_states: int, flags: int, length: int
) -> tuple[ReadState, npt.NDArray[np.uint8]]:
    """The rANS stream and the plain bits of a chunk."""
    if log_states > 5:
        raise FormatError("the chunk's header is damaged", offset=0)
    if flags > 1:
        raise FormatError(f"the chunk asks for coding tools {flags} that do not exist", offset=1)
    if length > len(payload) - head:
        raise TruncatedError("the chunk's rANS stream is cut off", offset=head)
    state = start_decoding(memoryview(payload)[head : head + length], 1 << log_states)
    return state, np.frombuffer(payload, np.uint8, offset=head + length)


def _decode_streams(
    parameters: SceneParameters,
    model: RowModel,
    mixing: bool,
    state: ReadState,
    raw: npt.NDArray[np.uint8],
    values: Ints,
    colors: Ints,
    neighbors: Ints,
    depths: Ints,
    exponent: int,
    plain: npt.NDArray[np.int64],
    plain_bits: npt.NDArray[np.int64],
) -> None:
    """Fill `values` (n, W), and the plain bits of positions if these are the base streams."""
    trellis = parameters.trellis
    stream = state.states, state.words, state.cursor, raw, 0
    position_args = exponent, parameters.size_step, parameters.precision, plain, plain_bits
    if mixing:
        mixer = MixerState()
        position = mix_decode_rows(
            model.first, values, colors, neighbors, depths, model.bias, model.begin, model.kinds, model.sources,
            model.coefficients, model.scales, model.own_terms, model.ranks, *trellis, mixer.models, mixer.weights,
            *stream, *position_args,
        )  # fmt: skip
    else:
        tables = parameters.table_set()
        contexts = model.scales, model.own_terms, model.maps, *trellis, tables.buckets, tables.intervals
        if model.first == 0:
            position = decode_base_rows(
                values, neighbors, depths, model.weights, model.modes, *contexts, *stream, *position_args
            )
        elif model.is_usual_layer:
            position = decode_layer_rows(values, colors, neighbors, depths, model.weights, *contexts, *stream)
        else:
            position = decode_rows(values, colors, neighbors, depths, model.weights, model.modes, *contexts, *stream)
    if position < 0:
        raise FormatError("a class is out of range")
    state.finish()
    if position > 8 * len(raw):
        raise TruncatedError("the plain bits are cut off")


def prefix_look(payload: bytes) -> tuple[Look, Look]:
    """How levels 1 to that of a TILE chunk, and level 0, look without higher ones.

    Raises:
        FormatError: the header is cut off or out of range.
    """
    if len(payload) < _HEAD.size:
        raise TruncatedError("the tile's header is cut off", offset=len(payload))
    grow, gain, under_grow, under_gain = _LOOK.unpack_from(payload, _LOOK_AT)
    if max(abs(grow), abs(under_grow)) > _MAX_GROW or gain == 0 or under_gain == 0:
        raise FormatError("the tile's header is damaged", offset=_LOOK_AT)
    return (grow, gain), (under_grow, under_gain)


_NO_BITS = np.zeros((0, 3), np.int64)


@dataclass(frozen=True)
class TileStreams:
    """A TILE chunk as integers: all that its SHC chunks wait for.

    Attributes:
        values: (n, 12) int32 base streams.
        neighbors: (n, 4) int32.
        own, under: as in DecodedTile.
    """

    values: Ints
    neighbors: Ints
    own: Look
    under: Look
    _leaves: tuple[Ints, Ints, Ints]
    _plain: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    _grid: TileGrid

    def reconstruct(self, parameters: SceneParameters) -> DecodedTile:
        """What the integers stand for."""
        values, blur = self.values, self._grid.blur
        count = len(values)
        means = np.empty((count, 3), np.float32)
        with np.errstate(over="ignore"):
            _place(*self._leaves, *self._plain, self._grid.exponent, np.array(self._grid.origin), means)
        covariances = np.empty((count, 6))
        shape_step = float(np.float32(parameters.shape_step))
        decode_covariance(values, SIZE_FIRST, parameters.size_step, shape_step, blur, covariances)
        alphas = np.empty(count)
        decode_alpha(values, OPACITY, parameters.opacity_step, alphas)
        sh0 = np.empty((count, 1, 3), np.float32)
        _decode_color(values, parameters.color_basis / MATRIX_SCALE, float(np.float32(parameters.color_step)), sh0)
        smallest = max(blur / 16.0, 1e-30)
        return DecodedTile(values, self.neighbors, means, covariances, alphas, sh0, smallest, self.own, self.under)


def decode_tile(parameters: SceneParameters, payload: bytes, count: int) -> DecodedTile:
    """Decode a TILE chunk of `count` Gaussians.

    Raises:
        FormatError: the bytes are damaged; offsets count from the start of the chunk.
    """
    return decode_tile_streams(parameters, payload, count).reconstruct(parameters)


def decode_tile_streams(parameters: SceneParameters, payload: bytes, count: int) -> TileStreams:
    """The integers of a TILE chunk of `count` Gaussians.

    Raises:
        FormatError: the bytes are damaged; offsets count from the start of the chunk.
    """
    if not 1 <= count <= MAX_TILE or count > 8 * len(payload):
        raise FormatError(f"{count} Gaussians in a tile of {len(payload)} bytes", offset=0)
    if len(payload) < _HEAD.size:
        raise TruncatedError("the tile's header is cut off", offset=len(payload))
    log_states, flags, exponent, blur, ox, oy, oz, *_, length = _HEAD.unpack_from(payload)
    own, under = prefix_look(payload)
    finite = all(abs(o) < 1e38 for o in (ox, oy, oz))
    if abs(exponent) > 1000 or not 0 <= blur < 1e30 or not finite:
        raise FormatError("the tile's header is damaged", offset=0)
    state, raw = _start(payload, _HEAD.size, log_states, flags, length)
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
    values = np.empty((count, SH_FIRST), np.int32)
    plain, plain_bits = np.empty((count, 3), np.int64), np.empty((count, 3), np.int64)
    _decode_streams(
        parameters, parameters.row_model(0, SH_FIRST), bool(flags), state, raw, values, depths, neighbors, depths,
        exponent, plain, plain_bits,
    )  # fmt: skip
    leaves_of = leaf_xyz, leaf_depths, leaf_counts
    return TileStreams(
        values, neighbors, own, under, leaves_of, (plain, plain_bits), TileGrid((ox, oy, oz), exponent, blur)
    )


def decode_layer(
    parameters: SceneParameters, layer: tuple[int, int], payload: bytes, tile: DecodedTile | TileStreams
) -> Ints:
    """Decode an SHC chunk.

    Args:
        layer: first and last stream (exclusive). tile: the TILE of the same level and tile.

    Returns:
        (n, last - first) int32 streams.

    Raises:
        FormatError: the bytes are damaged; offsets count from the start of the chunk.
    """
    if len(payload) < _LAYER_HEAD.size:
        raise TruncatedError("the layer's header is cut off", offset=len(payload))
    log_states, flags, _, length = _LAYER_HEAD.unpack_from(payload)
    state, raw = _start(payload, _LAYER_HEAD.size, log_states, flags, length)
    values = np.empty((len(tile.values), layer[1] - layer[0]), np.int32)
    colors = np.ascontiguousarray(tile.values[:, COLOR_CLASS])
    _decode_streams(
        parameters, parameters.row_model(*layer), bool(flags), state, raw, values, colors, tile.neighbors, colors,
        0, _NO_BITS, _NO_BITS,
    )  # fmt: skip
    return values


def decode_sh(
    parameters: SceneParameters, layers: Sequence[Ints | None], count: int, shN: npt.NDArray[np.float32]
) -> None:
    """SH coefficients from the streams of their layers, None where a layer is absent, into (n, K-1, 3) `shN`."""
    bounds = parameters.layers()
    if all(layer is None for layer in layers):
        shN[:] = 0.0
        return
    nothing = np.zeros((0, 0), np.int32)
    present = [nothing if layer is None else layer for layer in layers]
    present += [nothing] * (3 - len(present))
    firsts = [(first - SH_FIRST) // 3 for first, _ in bounds] + [0] * (3 - len(bounds))
    _decode_sh(
        present[0], present[1], present[2], np.array(firsts), parameters.sh_color_basis / MATRIX_SCALE,
        np.ascontiguousarray(parameters.sh_band_basis.T / MATRIX_SCALE), float(np.float32(parameters.sh_step)), shN,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _decode_color(values, basis, step, sh0):
    for i in range(len(sh0)):
        a = values[i, COLOR_FIRST] * step
        b = values[i, COLOR_FIRST + 1] * step
        c = values[i, COLOR_FIRST + 2] * step
        for channel in range(3):
            sh0[i, 0, channel] = basis[channel, 0] * a + basis[channel, 1] * b + basis[channel, 2] * c


_SH_LANES = 32  # Gaussians whose SH coefficients are put together at once


@njit(cache=True, nogil=True, error_model="numpy")
def _decode_sh(layer1, layer2, layer3, firsts, color_basis, bands_of, step, shN):
    """Coefficients from the three layers, without rows where one is absent; `firsts` are their first components.

    `bands_of` (K-1, K-1): row k is component k. Inner loops run along Gaussians, so that they vectorise, and four
    components go into a sum before it is stored; those added to fill the last four are 0 times 0.
    """
    bands = bands_of.shape[0]
    filled = (bands + 3) // 4 * 4
    weights = np.zeros((bands, filled))
    weights[:, :bands] = bands_of.T
    components, mixed = np.zeros((3 * filled, _SH_LANES)), np.zeros((3, _SH_LANES))
    for begin in range(0, len(shN), _SH_LANES):
        count = min(_SH_LANES, len(shN) - begin)
        for layer, first in ((layer1, firsts[0]), (layer2, firsts[1]), (layer3, firsts[2])):
            if len(layer):
                for i in range(count):
                    row = layer[begin + i]
                    for k in range(len(row)):
                        components[3 * first + k, i] = row[k] * step
        for band in range(bands):
            w = weights[band]
            for channel in range(3):
                total = mixed[channel]
                for i in range(_SH_LANES):
                    total[i] = 0.0
                for k in range(0, filled, 4):
                    at = 3 * k + channel
                    a, b, c, d = components[at], components[at + 3], components[at + 6], components[at + 9]
                    wa, wb, wc, wd = w[k], w[k + 1], w[k + 2], w[k + 3]
                    for i in range(_SH_LANES):
                        total[i] = (((total[i] + wa * a[i]) + wb * b[i]) + wc * c[i]) + wd * d[i]
            a, b, c = mixed[0], mixed[1], mixed[2]
            for channel in range(3):
                x, y, z = color_basis[channel, 0], color_basis[channel, 1], color_basis[channel, 2]
                for i in range(count):
                    shN[begin + i, band, channel] = x * a[i] + y * b[i] + z * c[i]


assert SHAPE_FIRST == SIZE_FIRST + 3
