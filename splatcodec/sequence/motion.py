"""Motion of a group: shapes, nodes and tracks as bytes, and back (bitstreams/SPEC.md, sections 7.4 to 7.6).

A Gaussian has tracks of attributes; a track is a few coefficients of functions of time ("shapes") that the whole group
shares. What rests has no tracks, which costs a small part of a bit. The kernels here see Gaussians in the base's coding
order, so that near ones predict each other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..entropy.adaptive import new_models
from ..entropy.integers import MAX_INTEGER, IntegerReader, IntegerWriter
from ..entropy.rans import rans_encode, start_decoding
from ..entropy.tables import TableSet, build_tables, decode_tables, encode_tables
from ..errors import FormatError, TruncatedError
from ..gaussians import num_sh_coefficients
from ..limits import DEFAULT_LIMITS, Limits
from ..stages.parameters import COLOR_CLASS, GEOMETRY_CLASS, SIZE_FIRST, SceneParameters
from .motion_kernels import CELLS, MODELS, TRACKS, decode_motion, emit_motion

__all__ = [
    "COLOR",
    "OPACITY_TRACK",
    "POSITION",
    "SH",
    "SHAPE_ONE",
    "SIZE",
    "TRACKS",
    "TURN",
    "MotionParameters",
    "TileMotion",
    "decode_trajectories",
    "encode_trajectories",
    "track_components",
    "track_exponents",
]

POSITION, TURN, SIZE, OPACITY_TRACK, COLOR, SH = range(TRACKS)
SHAPE_ONE = 4096
MAX_NODES = 255
MAX_SHAPES = 64
MAX_BIAS = 1 << 20
_FIXED = struct.Struct("<HBxifff6BHI")
_TRAJ = struct.Struct("<B3xII")
_K_SHAPE, _K_PIVOT, _K_TURN, _K_SHIFT, _K_WEIGHT, _K_MAP = range(6)
_MAX_SHAPE, _MAX_TURN, _MAX_SHIFT, _MAX_WEIGHT = 1 << 17, 1 << 18, 1 << 28, 8192
Ints = npt.NDArray[np.int64]


def track_components(sh_degree: int) -> tuple[int, ...]:
    """Components of the six tracks."""
    return 3, 3, 3, 1, 3, 3 * (num_sh_coefficients(sh_degree) - 1)


@dataclass
class MotionParameters:
    """What the tiles of a group share.

    Attributes:
        num_frames: F.
        sh_degree: of the base.
        shapes: of each track (J_t, F) int64 in 1/4096.
        pivots: (K, 3) int64. turns: (K, 4, F) int64, w x y z in 1/65536. shifts: (K, 3, F) int64.
        position_step, turn_step: world units and half-angle tangents a base unit; float32 values.
        node_step: world units of pivots and shifts; a float32 value.
        position_bias: added to the step exponent of positions.
        has_events: whether there are any.
        weights: (S,) int64 weight of each shape's prediction, in 1/4096.
        maps: (S, 32) uint8 context maps.
        table_weights: (T, ALPHABET), to be written; `tables` of what was read.
    """

    num_frames: int
    sh_degree: int
    shapes: list[Ints]
    pivots: Ints
    turns: Ints
    shifts: Ints
    position_step: float
    turn_step: float
    node_step: float
    position_bias: int
    has_events: bool
    weights: Ints
    maps: npt.NDArray[np.uint8]
    table_weights: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    tables: TableSet | None = None

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(6,) shapes of each track."""
        return np.array([len(shapes) for shapes in self.shapes], np.int64)

    @property
    def components(self) -> npt.NDArray[np.int64]:
        """(6,) components of each track."""
        return np.array(track_components(self.sh_degree), np.int64)

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """(7,) first coefficient column of each track; the last is their number."""
        return np.concatenate([[0], np.cumsum(self.counts * self.components)]).astype(np.int64)

    def table_set(self) -> TableSet:
        """The tables for the kernels, built once."""
        if self.tables is None:
            self.tables = build_tables(self.table_weights)
        return self.tables

    def to_bytes(self) -> bytes:
        """The MOTN chunk."""
        out = IntegerWriter()
        for shapes in self.shapes:
            for shape in shapes:
                out.add(_K_SHAPE, *_second_differences(shape, 0))
        for pivot, turn, shift in zip(self.pivots, self.turns, self.shifts):
            out.add(_K_PIVOT, *pivot)
            for k in range(4):
                out.add(_K_TURN, *_second_differences(turn[k], 65536 if k == 0 else 0))
            for k in range(3):
                out.add(_K_SHIFT, *_second_differences(shift[k], 0))
        out.add(_K_WEIGHT, *self.weights)
        out.add(_K_MAP, *np.diff(self.maps.astype(np.int64).ravel(), prepend=0))
        integers = out.finish()
        fixed = _FIXED.pack(
            len(self.pivots), int(self.has_events), self.position_bias, self.position_step, self.turn_step,
            self.node_step, *(int(n) for n in self.counts), len(self.table_weights), len(integers),
        )  # fmt: skip
        return fixed + integers + encode_tables(self.table_weights)

    @classmethod
    def from_bytes(cls, buffer: bytes, num_frames: int, sh_degree: int) -> MotionParameters:
        """Read a MOTN chunk.

        Raises:
            FormatError: the bytes are damaged.
        """
        if len(buffer) < _FIXED.size:
            raise TruncatedError(f"{len(buffer)} bytes, at least {_FIXED.size} expected")
        nodes, events, bias, position_step, turn_step, node_step, *rest = _FIXED.unpack_from(buffer)
        counts, num_tables, length = rest[:6], rest[6], rest[7]
        steps_ok = all(0 < step < 1e30 for step in (position_step, turn_step, node_step))
        if nodes > MAX_NODES or events > 1 or abs(bias) > MAX_BIAS or not steps_ok or not 1 <= num_tables <= 256:
            raise FormatError("a parameter of the motion is out of range", offset=0)
        if max(counts) > num_frames or sum(counts) > MAX_SHAPES or (counts[SH] and not sh_degree):
            raise FormatError("the number of shapes is out of range", offset=20)
        if length > len(buffer) - _FIXED.size:
            raise TruncatedError("the parameters of the motion are cut off", offset=28)
        reader = IntegerReader(memoryview(buffer)[_FIXED.size : _FIXED.size + length])
        shapes = [_sums(reader, _K_SHAPE, int(n), num_frames, 0, _MAX_SHAPE, "shape") for n in counts]
        pivots = np.zeros((nodes, 3), np.int64)
        turns, shifts = np.zeros((nodes, 4, num_frames), np.int64), np.zeros((nodes, 3, num_frames), np.int64)
        for k in range(nodes):
            pivots[k] = reader.array(_K_PIVOT, 3, -_MAX_SHIFT, _MAX_SHIFT, "pivot")
            turns[k, :1] = _sums(reader, _K_TURN, 1, num_frames, 65536, _MAX_TURN, "turn of a node")
            turns[k, 1:] = _sums(reader, _K_TURN, 3, num_frames, 0, _MAX_TURN, "turn of a node")
            shifts[k] = _sums(reader, _K_SHIFT, 3, num_frames, 0, _MAX_SHIFT, "shift of a node")
        if nodes and not turns.any(axis=1).all():
            raise FormatError("a node has a quaternion of zeros", field="turn of a node")
        total = sum(counts)
        weights = reader.array(_K_WEIGHT, total, 0, _MAX_WEIGHT, "weight of a prediction")
        cells = np.cumsum(reader.array(_K_MAP, CELLS * total, -256, 256, "context map"))
        if total and (cells.min() < 0 or cells.max() >= num_tables):
            raise FormatError("a context map names a table that does not exist", field="context map")
        reader.finish()
        tables = decode_tables(memoryview(buffer)[_FIXED.size + length :], num_tables)
        maps = cells.astype(np.uint8).reshape(total, CELLS)
        return cls(
            num_frames, sh_degree, shapes, pivots, turns, shifts, position_step, turn_step, node_step, bias,
            bool(events), weights, maps, tables=tables,
        )  # fmt: skip


def _second_differences(values: Ints, start: int) -> Ints:
    return np.diff(np.concatenate([[start, start], values]), n=2)


def _sums(reader: IntegerReader, kind: int, rows: int, count: int, start: int, limit: int, what: str) -> Ints:
    """The inverse of `_second_differences` for some rows of `count`, each value held to be at most `limit` in size."""
    differences = reader.array(kind, rows * count, -MAX_INTEGER, MAX_INTEGER, what).reshape(rows, count)
    values = start + np.cumsum(np.cumsum(differences, axis=1), axis=1)
    if values.size and int(np.abs(values).max()) > limit:
        raise FormatError(f"{what} is out of range", field=what)
    return values


def track_exponents(values: npt.NDArray[np.int32], parameters: SceneParameters, bias: int) -> npt.NDArray[np.int32]:
    """(n, 6) step exponents of the tracks, from the base's streams.

    Args:
        values: (n, >= 12) int32 base streams.
    """
    exponents = np.empty((len(values), TRACKS), np.int32)
    geometry = values[:, GEOMETRY_CLASS]
    sizes = values[:, SIZE_FIRST : SIZE_FIRST + 3].astype(np.int64).sum(1) * parameters.size_step
    exponents[:, POSITION] = np.clip(sizes // 3072 + geometry + bias, 0, 20)
    exponents[:, TURN] = geometry
    # Two base units are a step: the base's quantizers have points at every second one.
    exponents[:, SIZE] = exponents[:, OPACITY_TRACK] = geometry + 1
    exponents[:, COLOR] = exponents[:, SH] = values[:, COLOR_CLASS] + 1
    return exponents


@dataclass
class TileMotion:
    """Motion of the Gaussians of a tile.

    Attributes:
        nodes: (n,) int32, 0 = none. masks: (n,) int32, bit t = has track t.
        births, deaths: (n,) int32: there in frames births <= f < deaths.
        coefficients: (n, C) int32 in base units.
        event_starts: (n + 1,) int64: events of Gaussian i are event_starts[i] .. event_starts[i + 1] - 1 of the next.
        event_frames, event_tracks: (E,) int32. event_deltas: (E, W) int32 base units, components of the track first.
    """

    nodes: npt.NDArray[np.int32]
    masks: npt.NDArray[np.int32]
    births: npt.NDArray[np.int32]
    deaths: npt.NDArray[np.int32]
    coefficients: npt.NDArray[np.int32]
    event_starts: npt.NDArray[np.int64]
    event_frames: npt.NDArray[np.int32]
    event_tracks: npt.NDArray[np.int32]
    event_deltas: npt.NDArray[np.int32]

    @classmethod
    def still(cls, count: int, parameters: MotionParameters, num_events: int = 0) -> TileMotion:
        """Gaussians that rest, with room for events."""
        width = int(max(parameters.components[OPACITY_TRACK:]))
        return cls(
            np.zeros(count, np.int32),
            np.zeros(count, np.int32),
            np.zeros(count, np.int32),
            np.full(count, parameters.num_frames, np.int32),
            np.zeros((count, int(parameters.columns[-1])), np.int32),
            np.zeros(count + 1, np.int64),
            np.zeros(num_events, np.int32),
            np.zeros(num_events, np.int32),
            np.zeros((num_events, width if num_events else 0), np.int32),
        )


def encode_trajectories(
    parameters: MotionParameters,
    motion: TileMotion,
    magnitudes: npt.NDArray[np.int32],
    residuals: npt.NDArray[np.int32],
    exponents: npt.NDArray[np.int32],
    neighbors: npt.NDArray[np.int32],
) -> tuple[bytes, npt.NDArray[np.float64]]:
    """The TRAJ chunk of a tile.

    Args:
        magnitudes, residuals: (n, C) int32 from the closed loop.
        exponents: (n, 6) of `track_exponents`. neighbors: (n, 4) of the base's tile.

    Returns:
        the chunk, and (10,) bits: nodes, lives, events, which tracks, each of the six tracks.
    """
    n = len(motion.nodes)
    counts, components = parameters.counts, parameters.components
    has = (motion.masks[:, None] >> np.arange(TRACKS)) & 1
    coded = int((has * (counts * components)).sum())
    width = motion.event_deltas.shape[1]
    room = n * 220 + coded + len(motion.event_frames) * (64 * (width + 3)) + 64
    intervals = np.empty(room, np.uint32)
    raw = np.zeros(4 * coded + 16, np.uint8)
    spent = np.zeros(4 + TRACKS)
    tables = parameters.table_set()
    count, position = emit_motion(
        parameters.num_frames, len(parameters.pivots), parameters.has_events, counts, components, parameters.columns,
        parameters.maps, tables.freq, tables.start, neighbors, exponents, motion.nodes, motion.masks, motion.births,
        motion.deaths, magnitudes, residuals, motion.event_starts, motion.event_frames, motion.event_tracks,
        motion.event_deltas, new_models(MODELS), intervals, raw, spent,
    )  # fmt: skip
    states = 8 if count >= 1 << 14 else 4 if count >= 1 << 12 else 1
    stream = rans_encode(intervals[:count], states)
    head = _TRAJ.pack(states.bit_length() - 1, len(motion.event_frames), len(stream))
    payload = head + stream + raw[: (position + 7) // 8].tobytes()
    return payload + bytes(max(0, (len(motion.event_frames) + 7) // 8 - len(payload))), spent


def decode_trajectories(
    parameters: MotionParameters,
    payload: bytes,
    exponents: npt.NDArray[np.int32],
    neighbors: npt.NDArray[np.int32],
    limits: Limits = DEFAULT_LIMITS,
) -> TileMotion:
    """Decode a TRAJ chunk.

    Args:
        exponents: (n, 6) of `track_exponents`. neighbors: (n, 4) of the base's tile.

    Raises:
        FormatError: the bytes are damaged; offsets count from the start of the chunk.
        LimitExceededError: the coefficients need more memory than allowed.
    """
    if len(payload) < _TRAJ.size:
        raise TruncatedError("the chunk's header is cut off", offset=len(payload))
    log_states, num_events, length = _TRAJ.unpack_from(payload)
    if log_states > 5 or num_events > 8 * len(payload) or (num_events and not parameters.has_events):
        raise FormatError("the chunk's header is damaged", offset=0)
    if length > len(payload) - _TRAJ.size:
        raise TruncatedError("the chunk's rANS stream is cut off", offset=_TRAJ.size)
    n = len(neighbors)
    width = int(max(parameters.components[OPACITY_TRACK:]))
    limits.check_bytes(8 * n * int(parameters.columns[-1]) + 4 * num_events * (width + 2), "the motion of a tile")
    state = start_decoding(memoryview(payload)[_TRAJ.size : _TRAJ.size + length], 1 << log_states)
    raw = np.frombuffer(payload, np.uint8, offset=_TRAJ.size + length)
    motion = TileMotion.still(n, parameters, num_events)
    tables = parameters.table_set()
    position = decode_motion(
        parameters.num_frames, len(parameters.pivots), parameters.has_events, parameters.counts,
        parameters.components, parameters.columns, parameters.weights, parameters.maps, tables.buckets,
        tables.intervals, neighbors, exponents, motion.nodes, motion.masks, motion.births, motion.deaths,
        motion.coefficients, motion.event_starts, motion.event_frames, motion.event_tracks, motion.event_deltas,
        new_models(MODELS), state.states, state.words, state.cursor, raw,
    )  # fmt: skip
    if position < 0:
        raise FormatError("the motion of a Gaussian is out of range", offset=_TRAJ.size)
    state.finish()
    if position > 8 * len(raw):
        raise TruncatedError("the plain bits are cut off")
    return motion
