"""Decoding a still scene: the whole flow on one page.

container -> PARM -> SceneParameters
          -> which levels and tiles are wanted -> TILE and SHC chunks of each, as units
          -> TILE -> rANS -> octree, classes, sizes, shapes, opacity, colour; SHC -> SH components -> Gaussians
          -> COLD, COLS -> side arrays
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..bitstream.container import ChunkEntry, Container
from ..errors import FormatError, ParameterError, SplatCodecError
from ..gaussians import Gaussians, num_sh_coefficients
from ..limits import DEFAULT_LIMITS, Limits
from ..stages.parameters import SceneParameters
from ..stages.tile import MAX_TILE, NEUTRAL, Look, decode_layer, decode_sh, decode_tile_streams, prefix_look
from ..stages.transform import decompose_covariance, logits

__all__ = ["LossyBlocks", "Selection", "decode_lossy", "lossy_blocks"]

Progress = Callable[[str, float], None]
_LAYER_TYPES = ("SHC1", "SHC2", "SHC3")


@dataclass(frozen=True)
class Selection:
    """Which part of a scene to decode. What is given in several ways must hold in all of them.

    Attributes:
        level: levels 1 to this one, and the thumbnail of tiles that have more; 0 = the thumbnail alone, where there is
            one; None = all.
        tiles: numbers of the tiles; None = all.
        region: lowest and highest corner, world units: only tiles whose box meets it, only Gaussians whose means are
            in it.
        max_gaussians: the longest beginning of the file, in whole chunks, with at most so many Gaussians; the
            thumbnail counts too, of all tiles that it does not reach the end of.
        sh_layers: layers of SH components, 0..3; None = all.
        keep_going: leave out damaged chunks (and say so in `damage`) instead of failing.
    """

    level: int | None = None
    tiles: Sequence[int] | None = None
    region: tuple[Sequence[float], Sequence[float]] | None = None
    max_gaussians: int | None = None
    sh_layers: int | None = None
    keep_going: bool = False

    def __post_init__(self) -> None:
        if self.level is not None and self.level < 0:
            raise ParameterError(f"level {self.level}, expected 0 or more", field="level")
        if self.max_gaussians is not None and self.max_gaussians < 1:
            raise ParameterError(f"at most {self.max_gaussians} Gaussians, expected 1 or more", field="max_gaussians")
        if self.sh_layers is not None and not 0 <= self.sh_layers <= 3:
            raise ParameterError(f"{self.sh_layers} SH layers, expected 0 to 3", field="sh_layers")
        if self.region is not None:
            corners = np.asarray(self.region, np.float64)
            if corners.shape != (2, 3) or np.isnan(corners).any() or (corners[0] > corners[1]).any():
                raise ParameterError("the region is not a lowest and a highest corner", field="region")

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.level is None and self.tiles is None and self.region is None and self.max_gaussians is None


class ChunkLike(Protocol):
    """What a Chunk and a ChunkEntry have in common."""

    @property
    def type(self) -> str: ...
    @property
    def level(self) -> int: ...
    @property
    def tile(self) -> int: ...
    @property
    def count(self) -> int: ...


C = TypeVar("C", bound=ChunkLike)


@dataclass
class Unit(Generic[C]):
    """The chunks of one level of one tile; None where a layer of SH components is absent."""

    tile: C
    layers: list[C | None]


def group_units(chunks: Iterable[C]) -> list[Unit[C]]:
    """TILE chunks in their order, each with its SHC chunks.

    Raises:
        FormatError: two chunks for the same thing, or an SHC without its TILE or with another count.
    """
    units: dict[tuple[int, int], Unit[C]] = {}
    listed = [chunk for chunk in chunks if chunk.type == "TILE" or chunk.type in _LAYER_TYPES]
    for chunk in listed:
        key = chunk.level, chunk.tile
        if chunk.type == "TILE":
            if key in units:
                raise FormatError("two chunks for the same level and tile", chunk=chunk_label(chunk))
            units[key] = Unit(chunk, [None, None, None])
    for chunk in listed:
        if chunk.type != "TILE":
            unit = units.get((chunk.level, chunk.tile))
            layer = _LAYER_TYPES.index(chunk.type)
            if unit is None or unit.layers[layer] is not None or unit.tile.count != chunk.count:
                raise FormatError("SH components that do not belong to a tile", chunk=chunk_label(chunk))
            unit.layers[layer] = chunk
    return list(units.values())


def chunk_label(chunk: ChunkLike) -> str:
    """How messages name a chunk, such as `TILE[1/3]` (level, tile)."""
    return f"{chunk.type}[{chunk.level}/{chunk.tile}]"


def worker_count(threads: int | None) -> int:
    """Number of threads to use: given, or one a core."""
    return max(1, threads if threads else os.cpu_count() or 1)


def check_counts(container: Container, entries: Sequence[ChunkEntry], limits: Limits) -> int:
    """Number of Gaussians of TILE or COLS chunks, checked against the header and the limits before allocating.

    Level 0, merged Gaussians of a lossy scene, is not counted.
    """
    total = merged = 0
    for entry in entries:
        if not 1 <= entry.count <= MAX_TILE or entry.count > 8 * entry.length:
            raise FormatError(
                f"{entry.count} Gaussians in {entry.length} bytes",
                file=container.name,
                chunk=entry.label,
                offset=entry.offset,
            )
        if entry.type == "TILE" and entry.level == 0:
            merged += entry.count
        else:
            total += entry.count
    if total != container.num_gaussians:
        raise FormatError(
            f"chunks hold {total} Gaussians, the header says {container.num_gaussians}", file=container.name, offset=24
        )
    limits.check_gaussians(max(total, merged), file=container.name)
    return total


def read_units(container: Container, limits: Limits) -> list[Unit[ChunkEntry]]:
    """The levels of tiles of a lossy scene in file order, level 0 included, checked."""
    try:
        units = group_units(container.chunks)
    except SplatCodecError as error:
        raise error.locate(file=container.name) from None
    check_counts(container, [unit.tile for unit in units], limits)
    return units


def tile_boxes(container: Container) -> npt.NDArray[np.float32] | None:
    """(T, 2, 3) lowest and highest corners of the tiles; None where the file has none.

    Raises:
        FormatError: the chunk is damaged.
    """
    entries = container.of_type("TBOX")
    if not entries:
        return None
    payload = container.read(container.one("TBOX"))
    if len(payload) != 24 * entries[0].count:
        raise FormatError(
            f"{len(payload)} bytes for {entries[0].count} boxes", file=container.name, chunk="TBOX",
            offset=entries[0].offset,
        )  # fmt: skip
    return np.frombuffer(payload, "<f4").reshape(-1, 2, 3).astype(np.float32)


def choose_units(container: Container, units: list[Unit[ChunkEntry]], selection: Selection) -> list[Unit[ChunkEntry]]:
    """The units that a selection asks for, in file order.

    Raises:
        ParameterError: it asks for levels or tiles that are not there, or for too few Gaussians.
    """
    levels = sorted({unit.tile.level for unit in units})
    wanted = units
    if selection.tiles is not None:
        known = {unit.tile.tile for unit in units}
        missing = [tile for tile in selection.tiles if tile not in known]
        if missing:
            raise ParameterError(f"there is no tile {missing[0]}, the file has {len(known)}", file=container.name)
        wanted = [unit for unit in wanted if unit.tile.tile in set(selection.tiles)]
    if selection.region is not None:
        boxes = tile_boxes(container)
        if boxes is not None:
            low, high = np.asarray(selection.region, np.float64)
            meets = ((boxes[:, 0] <= high) & (boxes[:, 1] >= low)).all(1)
            wanted = [unit for unit in wanted if unit.tile.tile >= len(meets) or meets[unit.tile.tile]]
    if selection.level == 0:
        if 0 not in levels and units:
            raise ParameterError("the file has no thumbnail (level 0)", file=container.name, field="level")
        return [unit for unit in wanted if unit.tile.level == 0]
    if selection.level is not None:
        wanted = [unit for unit in wanted if unit.tile.level <= selection.level]
    if selection.max_gaussians is not None:
        wanted = _fitting(container, wanted, selection.max_gaussians)
    whole = whole_tiles(units, wanted)
    return [unit for unit in wanted if unit.tile.level or unit.tile.tile not in whole]


def whole_tiles(units: Sequence[Unit[C]], chosen: Sequence[Unit[C]]) -> set[int]:
    """Tiles whose highest level of `units` is among `chosen`: they need no thumbnail."""
    highest: dict[int, int] = {}
    for unit in units:
        highest[unit.tile.tile] = max(unit.tile.level, highest.get(unit.tile.tile, 0))
    return {unit.tile.tile for unit in chosen if 0 < unit.tile.level == highest[unit.tile.tile]}


def _fitting(container: Container, units: list[Unit[ChunkEntry]], most: int) -> list[Unit[ChunkEntry]]:
    """The longest beginning with at most `most` Gaussians, thumbnails of tiles it does not hold whole included."""
    thumbnails = {unit.tile.tile: unit.tile.count for unit in units if unit.tile.level == 0}
    highest = {unit.tile.tile: unit.tile.level for unit in sorted(units, key=lambda unit: unit.tile.level)}
    total = sum(thumbnails.values())
    best = len(thumbnails) if total <= most else 0
    start = sum(unit.tile.level == 0 for unit in units)
    for k, unit in enumerate(units[start:], start + 1):
        total += unit.tile.count
        if unit.tile.level == highest[unit.tile.tile]:
            total -= thumbnails.pop(unit.tile.tile, 0)
        if total <= most:
            best = k
        elif not thumbnails:
            break
    if not best and units:
        least = min(sum(unit.tile.count for unit in units[:start]) or total, units[0].tile.count)
        raise ParameterError(
            f"{most} Gaussians are fewer than the file's first chunk has", file=container.name, field="max_gaussians",
            hint=f"ask for {least} or more",
        )  # fmt: skip
    return units[:best]


def read_parameters(container: Container) -> SceneParameters:
    """The PARM chunk."""
    entry = container.one("PARM")
    try:
        return SceneParameters.from_bytes(container.read(entry))
    except SplatCodecError as error:
        raise _locate(error, container, entry) from None


@dataclass(frozen=True)
class _Chosen:
    """What a selection asks for: units in file order, layers of SH components, and how prefixes look.

    Attributes:
        rows_of: first row of each (level, tile) in the whole scene.
        looks: of tiles that are not whole, those of levels 1 and up, and of level 0.
    """

    parameters: SceneParameters
    units: list[Unit[ChunkEntry]]
    layers: int
    rows_of: dict[tuple[int, int], int]
    looks: dict[int, tuple[Look, Look]]

    @property
    def total(self) -> int:
        """Number of Gaussians of all units."""
        return sum(unit.tile.count for unit in self.units)

    def look(self, unit: Unit[ChunkEntry]) -> Look:
        """Grow and gain of a unit."""
        return self.looks.get(unit.tile.tile, (NEUTRAL, NEUTRAL))[unit.tile.level == 0]


def _choose(container: Container, selection: Selection, limits: Limits) -> _Chosen:
    parameters = read_parameters(container)
    every = read_units(container, limits)
    for unit in every:
        for entry in unit.layers[parameters.sh_degree :]:
            if entry:
                raise FormatError(
                    f"a layer of SH components in a scene of SH degree {parameters.sh_degree}",
                    file=container.name, chunk=entry.label, offset=entry.offset,
                )  # fmt: skip
    rows_of, at = {}, 0
    for unit in every:
        if unit.tile.level:
            rows_of[unit.tile.level, unit.tile.tile] = at
            at += unit.tile.count
    if selection.everything:
        units = [unit for unit in every if unit.tile.level]
        if not selection.keep_going:  # boxes and thumbnails are not needed, but a damaged file is damaged
            tile_boxes(container)
            for unit in every:
                for entry in [unit.tile, *unit.layers] if unit.tile.level == 0 else ():
                    if entry:
                        container.check(entry)
    else:
        units = choose_units(container, every, selection)
    layers = len(parameters.layers())
    layers = layers if selection.sh_layers is None else min(layers, selection.sh_layers)
    rest = num_sh_coefficients(parameters.sh_degree) - 1
    total = sum(unit.tile.count for unit in units)
    limits.check_bytes(total * 4 * (14 + 3 * rest), "the scene", file=container.name)
    whole = whole_tiles(every, units)
    top = {unit.tile.tile: unit for unit in sorted(units, key=lambda unit: unit.tile.level)}
    looks = {}
    for tile, unit in top.items():
        if unit.tile.level and tile not in whole:
            looks[tile] = _guarded(container, unit.tile, prefix_look)
    return _Chosen(parameters, units, layers, rows_of, looks)


def decode_lossy(
    container: Container,
    selection: Selection = Selection(),
    *,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
    damage: list[str] | None = None,
) -> tuple[Gaussians, npt.NDArray[np.int64]]:
    """Gaussians of a lossy scene, without side arrays and metadata.

    Args:
        selection: which of them; all by default.
        threads: chunks decoded at once; the result does not depend on it.
        progress: called with (stage, share done 0..1).
        damage: gets a line for each chunk left out, if the selection says to keep going.

    Returns:
        the Gaussians, and the (n,) int64 row that each has in the whole scene, -1 for merged ones of level 0.

    Raises:
        SplatCodecError: the file is damaged or breaks the limits; names file, chunk and byte.
        ParameterError: the selection asks for what is not there.
    """
    chosen = _choose(container, selection, limits)
    parameters, units, rows_of = chosen.parameters, chosen.units, chosen.rows_of
    scene = BlankScene([unit.tile.count for unit in units], parameters.sh_degree)
    left_out: list[tuple[int, str]] = []

    def read(entry: ChunkEntry) -> bytes | None:
        try:
            return container.read(entry)
        except SplatCodecError as error:
            if not selection.keep_going:
                raise
            left_out.append((entry.offset, f"{entry.label}: {error}"))
            return None

    def work(k: int) -> None:
        unit, contents = units[k], loaded.pop(k)
        entries = [unit.tile, *unit.layers]
        if contents[0] is None:
            scene.leave_out(k)
            return
        try:
            scene.decode(k, parameters, contents[0], contents[1:], chosen.look(unit), pool)
        except SplatCodecError as error:
            which = entries[getattr(error, "layer", 0)] or unit.tile
            located = _locate(error, container, which)
            if not selection.keep_going:
                raise located from None
            left_out.append((which.offset, f"{which.label}: {located}"))
            scene.leave_out(k)

    loaded: dict[int, list[bytes | None]] = {}
    workers = worker_count(threads)
    with ThreadPoolExecutor(workers) as pool:
        done = 0
        for first in range(0, len(units), 2 * workers):
            batch = range(first, min(first + 2 * workers, len(units)))
            for k in batch:
                wanted = [units[k].tile, *units[k].layers[: chosen.layers]]
                loaded[k] = [read(entry) if entry else None for entry in wanted]
            for _ in pool.map(work, batch):
                done += 1
                if progress:
                    progress("decode", done / len(units))
    if damage is not None:
        damage.extend(text for _, text in sorted(left_out))
    gaussians = scene.gaussians()
    if selection.everything and not left_out:
        return gaussians, np.arange(chosen.total)
    spans = [(rows_of.get((unit.tile.level, unit.tile.tile), -1), unit.tile.count) for unit in units]
    parts = [np.arange(a, a + n) if a >= 0 else np.full(n, -1) for a, n in spans]
    rows = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    inside = scene.complete()
    if selection.region is not None:
        low, high = np.asarray(selection.region, np.float64)
        inside &= ((gaussians.means >= low) & (gaussians.means <= high)).all(1)
    return gaussians.selected(inside), rows[inside]


@dataclass(frozen=True)
class LossyBlocks:
    """A lossy scene, or a part of it, decoded chunk by chunk.

    Attributes:
        num_gaussians, sh_degree: of all of it. rows: its Gaussians, a unit at a time, in the order of `decode_lossy`.
    """

    num_gaussians: int
    sh_degree: int
    rows: Callable[[], Iterator[Gaussians]]


def lossy_blocks(
    container: Container,
    selection: Selection = Selection(),
    *,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> LossyBlocks | None:
    """`decode_lossy` with no more than a few chunks in memory.

    Args: as for `decode_lossy`.

    Returns:
        None where the number of Gaussians shows only when all are decoded: of a region, or past damage.

    Raises:
        SplatCodecError: as `decode_lossy`, here or while rows are read.
    """
    if selection.region is not None or selection.keep_going:
        return None
    chosen = _choose(container, selection, limits)
    workers = worker_count(threads)

    def work(unit: Unit[ChunkEntry], contents: list[bytes | None]) -> Gaussians:
        scene = BlankScene([unit.tile.count], chosen.parameters.sh_degree)
        assert contents[0] is not None
        try:
            scene.decode(0, chosen.parameters, contents[0], contents[1:], chosen.look(unit))
        except SplatCodecError as error:
            entry = [unit.tile, *unit.layers][getattr(error, "layer", 0)] or unit.tile
            raise _locate(error, container, entry) from None
        return scene.gaussians()

    def rows() -> Iterator[Gaussians]:
        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[Future[Gaussians]] = deque()
            done = 0
            for unit in chosen.units:
                entries = [unit.tile, *unit.layers[: chosen.layers]]
                # Read here, as a file has one position.
                waiting.append(pool.submit(work, unit, [container.read(entry) if entry else None for entry in entries]))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
                    done += 1
                    if progress:
                        progress("decode", done / len(chosen.units))
            while waiting:
                yield waiting.popleft().result()
            if progress:
                progress("decode", 1.0)

    return LossyBlocks(chosen.total, chosen.parameters.sh_degree, rows)


def _guarded(container: Container, entry: ChunkEntry, look: Callable[[bytes], tuple[Look, Look]]) -> tuple[Look, Look]:
    """The looks of a TILE chunk; neutral ones if it is damaged, which decoding it will say."""
    try:
        return look(container.read(entry))
    except SplatCodecError:
        return NEUTRAL, NEUTRAL


_WHOLE = 4096  # Gaussians that are not worth being shared out


def run_together(tasks: Sequence[Callable[[], None]], pool: ThreadPoolExecutor | None) -> None:
    """Run tasks, those that another thread of the pool is free for there; it never waits for one that has not begun.

    So a pool may run tasks that run tasks: where all its threads have work of their own, each does its parts itself.

    Raises:
        SplatCodecError: that of the last task that failed, once all are done.
    """
    futures = [pool.submit(task) for task in tasks[1:]] if pool else []
    errors: dict[int, BaseException] = {}
    for k in (0, *range(len(tasks) - 1, 0, -1)):
        if k == 0 or not pool or futures[k - 1].cancel():
            try:
                tasks[k]()
            except SplatCodecError as error:
                errors[k] = error
    for k, future in enumerate(futures, 1):
        failure = None if future.cancelled() else future.exception()
        if failure:
            errors[k] = failure
    if errors:
        raise errors[max(errors)]


class BlankScene:
    """Arrays of a scene that chunks are decoded into, so that nothing is copied twice.

    Args:
        counts: Gaussians of each unit. sh_degree: 0..3.
    """

    def __init__(self, counts: Sequence[int], sh_degree: int) -> None:
        self._starts = np.cumsum([0, *counts])
        total = int(self._starts[-1])
        self._means, self._quats, self._scales = (np.empty((total, width), np.float32) for width in (3, 4, 3))
        self._opacities, self._sh0 = np.empty(total, np.float32), np.empty((total, 1, 3), np.float32)
        self._shN = np.empty((total, num_sh_coefficients(sh_degree) - 1, 3), np.float32)
        self._missing: list[int] = []

    def decode(
        self,
        k: int,
        parameters: SceneParameters,
        payload: bytes,
        layers: Sequence[bytes | None],
        look: Look = NEUTRAL,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        """Decode a TILE and its SHC chunks as unit k; several threads may decode at once.

        Args:
            look: grow and gain of the prefix that the unit is shown in.
            pool: threads that may help, this one among them.

        Raises:
            FormatError: damaged; its attribute `layer` is 0 for the TILE, 1 to 3 for an SHC.
        """
        rows = slice(int(self._starts[k]), int(self._starts[k + 1]))
        count = rows.stop - rows.start
        tile = decode_tile_streams(parameters, payload, count)
        streams: list[npt.NDArray[np.int32] | None] = [None] * len(parameters.layers())

        def layer(k: int, content: bytes) -> None:
            try:
                streams[k] = decode_layer(parameters, parameters.layers()[k], content, tile)
            except SplatCodecError as error:
                error.layer = k + 1  # type: ignore[attr-defined]
                raise

        def axes() -> None:
            shown = tile.reconstruct(parameters).as_prefix(*look)
            decompose_covariance(shown.covariances, shown.smallest, self._quats[rows], self._scales[rows])
            logits(shown.alphas, self._opacities[rows])
            self._means[rows], self._sh0[rows] = shown.means, shown.sh0

        def harmonics(part: slice) -> None:
            parts = [None if stream is None else stream[part] for stream in streams]
            decode_sh(parameters, parts, part.stop - part.start, self._shN[rows][part])

        present = [(k, content) for k, content in enumerate(layers) if content is not None]
        # The longest first: layers grow.
        run_together([*(partial(layer, *at) for at in reversed(present)), axes], pool)
        half = count // 2 if pool and count > _WHOLE else count
        run_together(
            [partial(harmonics, slice(*part)) for part in ((0, half), (half, count)) if part[0] < part[1]], pool
        )

    def leave_out(self, k: int) -> None:
        """Unit k could not be decoded."""
        rows = slice(int(self._starts[k]), int(self._starts[k + 1]))
        for array in (self._means, self._quats, self._scales, self._opacities, self._sh0, self._shN):
            array[rows] = 0.0
        self._missing.append(k)

    def complete(self) -> npt.NDArray[np.bool_]:
        """(n,) whether each Gaussian was decoded."""
        inside = np.ones(int(self._starts[-1]), bool)
        for k in self._missing:
            inside[self._starts[k] : self._starts[k + 1]] = False
        return inside

    def gaussians(self) -> Gaussians:
        """The scene, once every tile has been put."""
        return Gaussians(self._means, self._quats, self._scales, self._opacities, self._sh0, self._shN)


def _locate(error: SplatCodecError, container: Container, entry: ChunkEntry) -> SplatCodecError:
    """Offsets inside a chunk become offsets in the file."""
    if error.chunk is None:
        error.offset = entry.offset + (error.offset or 0)
    return error.locate(file=container.name, chunk=entry.label)
