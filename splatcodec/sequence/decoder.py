"""Decoding a group of frames with motion: the whole flow on one page.

container -> PARM, TILE, SHC of the group's base (its own, or an earlier group's) -> Base           (static, stages)
          -> MOTN -> MotionParameters: shapes, nodes, tables
          -> TRAJ of each tile -> rANS -> nodes, lives, tracks, events -> MotionGroup
          -> frame f: base + shapes(f) * coefficients, then the node's motion -> Gaussians
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..bitstream.container import ChunkEntry, Container
from ..errors import FormatError, SplatCodecError
from ..gaussians import Gaussians, num_sh_coefficients
from ..limits import DEFAULT_LIMITS, Limits
from ..sh_rotation import sh_band_matrices
from ..stages.parameters import MATRIX_SCALE, SH_FIRST, SceneParameters, num_streams
from ..stages.tile import DecodedTile, decode_layer, decode_sh, decode_tile
from ..stages.transform import decompose_covariance, logits
from ..static.decoder import read_parameters, read_units
from ..static.learned import has_learned_parts
from .motion import (
    COLOR,
    OPACITY_TRACK,
    POSITION,
    SH,
    SIZE,
    TURN,
    MotionParameters,
    TileMotion,
    decode_trajectories,
    track_exponents,
)
from .motion_kernels import place_frame, sh_frame, tint_frame, turn_sh

__all__ = ["Base", "BaseTile", "MotionGroup", "decode_base", "decode_motion_group", "joined_base"]

Floats = npt.NDArray[np.float64]
T = TypeVar("T")
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class BaseTile:
    """A tile of a group's base, decoded: integers for tracks to add to, and the values of what rests.

    Attributes:
        number: of the tile. parameters: of the scene that it is of.
        coded: streams, neighbours, positions, colours.
        sh_streams: (n, 3 (K-1)) int32.
        quats, scales, opacities, shN: float32, as in Gaussians.
    """

    number: int
    parameters: SceneParameters
    coded: DecodedTile
    sh_streams: npt.NDArray[np.int32]
    quats: npt.NDArray[np.float32]
    scales: npt.NDArray[np.float32]
    opacities: npt.NDArray[np.float32]
    shN: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.opacities)

    @classmethod
    def of(
        cls, number: int, parameters: SceneParameters, tile: DecodedTile, layers: Sequence[npt.NDArray[np.int32] | None]
    ) -> BaseTile:
        """Everything that follows from the streams."""
        n = len(tile.means)
        quats, scales = np.empty((n, 4), np.float32), np.empty((n, 3), np.float32)
        decompose_covariance(tile.covariances, tile.smallest, quats, scales)
        opacities = np.empty(n, np.float32)
        logits(tile.alphas, opacities)
        shN = np.empty((n, num_sh_coefficients(parameters.sh_degree) - 1, 3), np.float32)
        decode_sh(parameters, layers, n, shN)
        streams = np.zeros((n, num_streams(parameters.sh_degree) - SH_FIRST), np.int32)
        for (first, last), layer in zip(parameters.layers(), layers):
            if layer is not None:
                streams[:, first - SH_FIRST : last - SH_FIRST] = layer
        return cls(number, parameters, tile, streams, quats, scales, opacities, shN)


@dataclass(frozen=True)
class Base:
    """A group's base: tiles in file order, those of a scene of an earlier group first.

    Attributes:
        sh_degree: of all of them.
    """

    sh_degree: int
    tiles: list[BaseTile]

    @property
    def num_gaussians(self) -> int:
        """Gaussians of all tiles."""
        return sum(len(tile) for tile in self.tiles)

    def gaussians(self) -> Gaussians:
        """The base as a still scene, in the order of its tiles."""
        if not self.tiles:
            return Gaussians.empty(self.sh_degree)
        return Gaussians(
            np.concatenate([tile.coded.means for tile in self.tiles]),
            np.concatenate([tile.quats for tile in self.tiles]),
            np.concatenate([tile.scales for tile in self.tiles]),
            np.concatenate([tile.opacities for tile in self.tiles]),
            np.concatenate([tile.coded.sh0 for tile in self.tiles]),
            np.concatenate([tile.shN for tile in self.tiles]),
        )


def _located(error: SplatCodecError, container: Container, entry: ChunkEntry) -> SplatCodecError:
    if error.chunk is None:
        error.offset = entry.offset + (error.offset or 0)
    return error.locate(file=container.name, chunk=entry.label)


def _chunk(container: Container, entry: ChunkEntry, decode: Callable[[bytes], T]) -> T:
    """`decode` of a chunk's bytes, with errors that name it."""
    payload = container.read(entry)
    try:
        return decode(payload)
    except SplatCodecError as error:
        raise _located(error, container, entry) from None


def decode_base(container: Container, pool: ThreadPoolExecutor, limits: Limits = DEFAULT_LIMITS) -> Base:
    """The scene in a group's container.

    Raises:
        FormatError: damaged, or with levels that a sequence cannot have.
    """
    if not container.has_feature("lossy-1"):
        raise FormatError("the group has no scene", file=container.name, offset=container.base)
    if has_learned_parts(container):
        raise FormatError("a group's scene has no learned parts", file=container.name, offset=container.base)
    parameters = read_parameters(container)
    units = read_units(container, limits)
    rest = 3 * (num_sh_coefficients(parameters.sh_degree) - 1)
    limits.check_bytes(container.num_gaussians * (14 * 4 + 12 * 4 + 13 * 8 + 2 * 4 * rest), "the base")
    for unit in units:
        extra = [layer for layer in unit.layers[parameters.sh_degree :] if layer]
        if unit.tile.level != 1 or extra:
            entry = extra[0] if extra else unit.tile
            raise FormatError(
                "the base of a group has one level and its own SH layers only",
                file=container.name, chunk=entry.label, offset=entry.offset,
            )  # fmt: skip
    contents = [[container.read(e) if e else None for e in (unit.tile, *unit.layers)] for unit in units]

    def decode(k: int) -> BaseTile:
        unit, payloads = units[k], contents[k]
        entry = unit.tile
        try:
            tile = decode_tile(parameters, payloads[0] or b"", unit.tile.count)
            layers: list[npt.NDArray[np.int32] | None] = []
            for bounds, chunk, payload in zip(parameters.layers(), unit.layers, payloads[1:]):
                entry = chunk or unit.tile
                layers.append(None if payload is None else decode_layer(parameters, bounds, payload, tile))
        except SplatCodecError as error:
            raise _located(error, container, entry) from None
        return BaseTile.of(unit.tile.tile, parameters, tile, layers)

    return Base(parameters.sh_degree, list(pool.map(decode, range(len(units)))))


def joined_base(earlier: Base, own: Base, container: Container) -> Base:
    """The base of a group that adds Gaussians to the scene of an earlier one.

    Raises:
        FormatError: their SH degrees differ.
    """
    if own.sh_degree != earlier.sh_degree:
        raise FormatError("the group's scene and the one it uses differ in SH degree", file=container.name)
    return Base(own.sh_degree, [*earlier.tiles, *own.tiles])


def decode_motion_group(
    container: Container, base: Base, num_frames: int, pool: ThreadPoolExecutor, limits: Limits = DEFAULT_LIMITS
) -> MotionGroup:
    """The motion in a group's container, of a base that may be another group's.

    Raises:
        FormatError: damaged, or the motion of another base.
    """
    degree = base.sh_degree
    parameters = _chunk(
        container, container.one("MOTN"), lambda payload: MotionParameters.from_bytes(payload, num_frames, degree)
    )
    entries = container.of_type("TRAJ")
    fits = [(entry.level, entry.tile, entry.count) for entry in entries]
    if fits != [(1, tile.number, len(tile)) for tile in base.tiles]:
        raise FormatError("the tiles of the motion are not those of the base", file=container.name, chunk="TRAJ")
    payloads = [container.read(entry) for entry in entries]
    parameters.table_set()

    def decode(k: int) -> TileMotion:
        tile = base.tiles[k]
        exponents = track_exponents(tile.coded.values, tile.parameters, parameters.position_bias)
        try:
            return decode_trajectories(parameters, payloads[k], exponents, tile.coded.neighbors, limits)
        except SplatCodecError as error:
            raise _located(error, container, entries[k]) from None

    return MotionGroup(base, parameters, list(pool.map(decode, range(len(entries)))))


@dataclass
class MotionGroup:
    """A group, decoded but for its frames.

    Attributes:
        base: its scene. parameters: of the motion. tiles: motion of the base's tiles.
    """

    base: Base
    parameters: MotionParameters
    tiles: list[TileMotion]
    _ranks: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _every: list[npt.NDArray[np.int64]] = field(default_factory=list)
    _lives: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        for tile, motion in zip(self.base.tiles, self.tiles):
            ranks = np.argsort(np.argsort(tile.scales, axis=1, kind="stable"), axis=1, kind="stable")
            self._ranks.append(np.ascontiguousarray(ranks.astype(np.uint8)))
            self._every.append(np.arange(len(tile)))
            whole = not motion.births.any() and bool((motion.deaths == self.parameters.num_frames).all())
            self._lives.append(whole)

    def rows(self, frame: int) -> list[npt.NDArray[np.int64]]:
        """Of each tile the Gaussians that are there in a frame."""
        return [
            every if whole else np.flatnonzero((motion.births <= frame) & (frame < motion.deaths))
            for every, whole, motion in zip(self._every, self._lives, self.tiles)
        ]

    def node_motion(self, frame: int) -> tuple[Floats, Floats, Floats, Floats]:
        """Of each node (number 0 is none) its matrix, unit quaternion, pivot, and pivot plus shift."""
        p = self.parameters
        count = len(p.pivots)
        matrices, quats = np.tile(np.eye(3), (count + 1, 1, 1)), np.zeros((count + 1, 4))
        quats[0, 0] = 1.0
        pivots, targets = np.zeros((count + 1, 3)), np.zeros((count + 1, 3))
        for k in range(count):
            w, x, y, z = (float(value) for value in p.turns[k, :, frame])
            norm = float(np.sqrt(w * w + x * x + y * y + z * z))
            w, x, y, z = w / norm, x / norm, y / norm, z / norm
            quats[k + 1] = w, x, y, z
            matrices[k + 1] = [
                [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
                [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
                [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
            ]
            pivots[k + 1] = p.pivots[k] * p.node_step
            targets[k + 1] = pivots[k + 1] + p.shifts[k, :, frame] * p.node_step
        return matrices, quats, pivots, targets

    def frame(
        self, number: int, pool: ThreadPoolExecutor | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Gaussians:
        """Frame `number` of the group, from 0."""
        p, degree = self.parameters, self.base.sh_degree
        rows = self.rows(number)
        starts = np.cumsum([0, *(len(r) for r in rows)])
        total = int(starts[-1])
        rest = num_sh_coefficients(degree) - 1
        means, quats, scales = (np.empty((total, width), np.float32) for width in (3, 4, 3))
        opacities, sh0 = np.empty(total, np.float32), np.empty((total, 1, 3), np.float32)
        shN = np.empty((total, rest, 3), np.float32)
        nodes = self.node_motion(number)
        turns = _sh_turns(nodes[0], degree) if rest and len(p.pivots) else None
        columns, shapes = p.columns, p.shapes

        def work(k: int) -> None:
            tile, motion, chosen = self.base.tiles[k], self.tiles[k], rows[k]
            scene = tile.parameters
            size_unit = scene.size_step / 1024.0 * _LN2
            color_basis, color_step = scene.color_basis / MATRIX_SCALE, float(np.float32(scene.color_step))
            sh_basis, sh_step = scene.sh_color_basis / MATRIX_SCALE, float(np.float32(scene.sh_step))
            bands_of = np.ascontiguousarray(scene.sh_band_basis.T / MATRIX_SCALE)
            out = slice(int(starts[k]), int(starts[k + 1]))
            place_frame(
                number, chosen, tile.coded.means, tile.quats, tile.scales, self._ranks[k], motion.masks, motion.nodes,
                motion.coefficients, columns, shapes[POSITION], p.position_step, shapes[TURN], p.turn_step,
                shapes[SIZE], size_unit, *nodes, means[out], quats[out], scales[out],
            )  # fmt: skip
            events = motion.event_starts, motion.event_frames, motion.event_tracks, motion.event_deltas
            tint_frame(
                number, chosen, tile.coded.values, tile.opacities, tile.coded.sh0, motion.masks, motion.coefficients,
                columns, shapes[OPACITY_TRACK], scene.opacity_step, shapes[COLOR], color_basis, color_step, *events,
                opacities[out], sh0[out],
            )  # fmt: skip
            if not rest:
                return
            if len(shapes[SH]) or len(motion.event_frames):
                sh_frame(
                    number, chosen, tile.sh_streams, tile.shN, motion.masks, motion.coefficients, columns, shapes[SH],
                    sh_basis, bands_of, sh_step, *events, shN[out],
                )  # fmt: skip
            else:
                shN[out] = tile.shN if len(chosen) == len(tile) else tile.shN[chosen]
            if turns is not None:
                turn_sh(chosen, motion.nodes, turns, shN[out])

        if pool is None or len(rows) < 2:
            for k in range(len(rows)):
                work(k)
        else:
            list(pool.map(work, range(len(rows))))
        return Gaussians(means, quats, scales, opacities, sh0, shN, metadata=metadata or {})


def _sh_turns(matrices: Floats, sh_degree: int) -> Floats:
    """(K + 1, B, B): what turns SH coefficients as each node turns."""
    size = num_sh_coefficients(sh_degree) - 1
    turns = np.zeros((len(matrices), size, size))
    for k, matrix in enumerate(matrices):
        at = 0
        for band in sh_band_matrices(matrix, sh_degree):
            turns[k, at : at + len(band), at : at + len(band)] = band
            at += len(band)
    return turns
