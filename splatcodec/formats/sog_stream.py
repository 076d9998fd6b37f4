"""Streamed SOG: `lod-meta.json`, a tree of regions with levels of detail, and a SOG folder for every chunk of a level.

A leaf of the tree has, for each level, a run of Gaussians in one chunk: level 0 is the finest, all levels show the same
region, exactly one is drawn. Chunks are plain SOG folders (`sog`); an optional environment is always drawn. Facts: the
streamed-SOG page of playcanvas/developer-site, playcanvas/splat-transform `read-lod.ts` and `write-lod.ts`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import FormatError, ParameterError, SplatCodecError, UnsupportedError
from ..files import read_bytes
from ..gaussians import Gaussians, num_sh_coefficients
from ..limits import DEFAULT_LIMITS, Limits
from ._json import JsonObject, parse_object
from ._losses import FILE_FACTS, drawable
from ._packing import row_blocks
from ._sog_read import (
    METADATA_KEY,
    PackedScene,
    Source,
    is_plain_name,
    metadata_of,
    opened,
    read_head,
    read_scene,
    stated_degree,
)
from .base import BLOCK_ROWS, DEFAULT_OPTIONS, Blocks, ErrorBounds, Format, WriteOptions
from .sog import losses, spilled

__all__ = ["FORMAT", "INDEX", "MAX_LEVELS", "read", "read_level", "write"]

INDEX = "lod-meta.json"
MAX_LEVELS = 64
_MAX_COUNT = 1 << 40
# A chunk's name is a path below the folder of the index.
_MAX_PARTS = 8
# Chunks that are held while a scene is read in blocks, and how often on average one may be read again for that.
_CHUNKS_HELD = 2
_MOST_CHANGES = 4

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Run:
    """`count` Gaussians of a chunk, from `offset` on."""

    file: int
    offset: int
    count: int


@dataclass(frozen=True)
class _Index:
    """What `lod-meta.json` says.

    Attributes:
        names: of the chunks, as paths in parts. environment: likewise, None where there is none.
        num_levels: 1 or more.
        leaves: runs by level.
        sizes: Gaussians in each chunk, which its runs fill without a gap.
        metadata: of the scene.
    """

    names: list[tuple[str, ...]]
    environment: tuple[str, ...] | None
    num_levels: int
    leaves: list[dict[int, _Run]]
    sizes: list[int]
    metadata: Mapping[str, Any]


def _chunk_name(text: Any, meta: JsonObject, key: str) -> tuple[str, ...]:
    """The parts of a chunk's path, none of which leads out of the folder."""
    parts = tuple(text.split("/")) if isinstance(text, str) else ()
    if not 0 < len(parts) <= _MAX_PARTS or not all(map(is_plain_name, parts)):
        meta.fail(f"{str(text)[:80]!r} is not a path below this folder", key)
    return parts


def _parse(text: bytes) -> _Index:
    meta = parse_object(text, INDEX)
    version = meta.integer("version", 0, 1 << 31) if "version" in meta else 1
    if version != 1:
        raise UnsupportedError(f"streamed SOG version {version}, only 1 is known", chunk=INDEX, field="version")
    num_levels = meta.integer("lodLevels", 1, MAX_LEVELS)
    names = [_chunk_name(name, meta, f"filenames[{i}]") for i, name in enumerate(meta.list("filenames"))]
    environment = _chunk_name(meta.get("environment"), meta, "environment") if "environment" in meta else None
    leaves = []
    nodes = [meta.object("tree")]
    while nodes:
        node = nodes.pop()
        if "children" in node:
            children = node.objects("children")
            if len(children) != 2:
                node.fail(f"has {len(children)} nodes, expected 2", "children")
            nodes += reversed(children)
        else:
            leaves.append(_runs(node, num_levels, len(names)))
    index = _Index(names, environment, num_levels, leaves, _sizes(leaves, len(names)), _facts(meta))
    if "counts" in meta:
        stated = meta.list("counts")
        held = [sum(leaf[level].count for leaf in leaves if level in leaf) for level in range(num_levels)]
        if stated != held:
            meta.fail(f"is {str(stated)[:80]}, but the tree has {str(held)[:80]}", "counts")
    return index


def _runs(node: JsonObject, num_levels: int, num_files: int) -> dict[int, _Run]:
    lods = node.object("lods")
    runs = {}
    for level in range(num_levels):
        if str(level) not in lods:
            continue
        entry = lods.object(str(level))
        run = _Run(
            entry.integer("file", 0, num_files - 1),
            entry.integer("offset", 0, _MAX_COUNT),
            entry.integer("count", 0, _MAX_COUNT),
        )
        if run.count:
            runs[level] = run
    return runs


def _sizes(leaves: list[dict[int, _Run]], num_files: int) -> list[int]:
    """Gaussians of each chunk; its runs must follow one another, so that none is drawn twice."""
    ends = [0] * num_files
    runs = sorted((run for leaf in leaves for run in leaf.values()), key=lambda run: (run.file, run.offset))
    for run in runs:
        if run.offset != ends[run.file]:
            raise FormatError(
                f"a run of chunk {run.file} begins at {run.offset}, the one before ends at {ends[run.file]}",
                chunk=INDEX,
                field="tree",
            )
        ends[run.file] += run.count
    return ends


def _facts(meta: JsonObject) -> dict[str, Any]:
    facts = meta.get(METADATA_KEY)
    known = {name: value for name, value in facts.items() if name not in FILE_FACTS} if isinstance(facts, dict) else {}
    asset = meta.get("asset")
    generator = asset.get("generator") if isinstance(asset, dict) else None
    return known | {"sog": {"version": 2} | ({"generator": generator} if isinstance(generator, str) else {})}


def _nearest_level(leaf: dict[int, _Run], level: int) -> int | None:
    """The level to draw of a leaf that may lack some: the next finer one, else the next coarser."""
    finer = [k for k in leaf if k <= level]
    return max(finer) if finer else min(leaf, default=None)


def _index_path(path: Path) -> Path:
    return path / INDEX if os.path.isdir(path) else path


def read_level(path: Path, level: int = 0, limits: Limits = DEFAULT_LIMITS, *, environment: bool = True) -> Gaussians:
    """Read one level of a streamed SOG: its chunks, put together.

    Args:
        path: the folder, or the `lod-meta.json` in it.
        level: 0 is the finest. A region without this level gives the next finer one.
        environment: with what is drawn around the scene at every level, if there is any.

    Returns:
        The Gaussians, in the order of the tree's leaves. `metadata` has `lod`: `level`, `levels`, and `counts`.

    Raises:
        ParameterError: there is no such level.
        FormatError: damaged, or its counts contradict each other; the chunk is a file's path below the folder.
        LimitExceededError: more than `limits` allows.
    """
    where = _index_path(path)
    index = _parse(read_bytes(where, limits.max_json_bytes))
    if not 0 <= level < index.num_levels:
        raise ParameterError(f"level {level}, the scene has 0 to {index.num_levels - 1}", field="level")
    runs: dict[int, list[tuple[int, _Run]]] = {}
    total = 0
    for run in _runs_of(index, level, limits):
        runs.setdefault(run.file, []).append((total, run))
        total += run.count
    parts: list[tuple[int, Gaussians]] = []
    for file, wanted in runs.items():
        chunk = _read_chunk(where.parent, index.names[file], index.sizes[file], limits)
        parts += [(start, chunk.selected(slice(run.offset, run.offset + run.count))) for start, run in wanted]
        limits.check_bytes(sum(part.array_bytes for _, part in parts), "the scene", chunk=INDEX)
    if environment and index.environment is not None:
        around = _read_chunk(where.parent, index.environment, None, limits)
        limits.check_gaussians(total + len(around), chunk=INDEX)
        parts.append((total, around))
    return _joined([part for _, part in sorted(parts, key=lambda part: part[0])], _level_metadata(index, level))


def _runs_of(index: _Index, level: int, limits: Limits) -> list[_Run]:
    """What is drawn at a level, in the order of the leaves."""
    runs, total = [], 0
    for leaf in index.leaves:
        chosen = _nearest_level(leaf, level)
        if chosen is None:
            continue
        runs.append(leaf[chosen])
        total += leaf[chosen].count
        if total > limits.max_gaussians:
            break
    limits.check_gaussians(total, chunk=INDEX)
    return runs


def _level_metadata(index: _Index, level: int) -> dict[str, Any]:
    counts = [sum(leaf[k].count for leaf in index.leaves if k in leaf) for k in range(index.num_levels)]
    return {**index.metadata, "lod": {"level": level, "levels": index.num_levels, "counts": counts}}


@contextlib.contextmanager
def open_blocks(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Blocks]:
    """`read`, block by block: the textures of two chunks are held.

    Raises:
        UnsupportedError: chunks of version 1, or regions that take turns among chunks.
    """
    where = _index_path(path)
    index = _parse(read_bytes(where, limits.max_json_bytes))
    runs = _runs_of(index, 0, limits)
    chunks: dict[int | None, tuple[tuple[str, ...], int | None]] = {
        run.file: (index.names[run.file], index.sizes[run.file]) for run in runs
    }
    if index.environment is not None:
        chunks[None] = index.environment, None
    degree, total, stated = 0, sum(run.count for run in runs), []
    around = 0
    for number, (name, size) in chunks.items():
        meta, version, count = _in_chunk(where.parent, name, lambda source: read_head(source, limits, size))  # noqa: B023
        here = stated_degree(meta, version)
        if here is None:
            raise UnsupportedError("only its textures tell the SH degree of version 1")
        degree = max(degree, here)
        if number is None:
            around = count
        facts = metadata_of(meta, version)
        stated += [facts["antialiased"]] if "antialiased" in facts else []
    limits.check_gaussians(total + around, chunk=INDEX)
    changes = sum(a.file != b.file for a, b in itertools.pairwise(runs))
    if changes > _MOST_CHANGES * len(chunks):
        raise UnsupportedError("its regions take turns among chunks")

    def rows() -> Iterator[Gaussians]:
        @functools.lru_cache(maxsize=_CHUNKS_HELD)
        def chunk(number: int | None) -> PackedScene:
            name, size = chunks[number]
            return _in_chunk(where.parent, name, lambda source: PackedScene(source, limits, size))

        def some(number: int | None, offset: int, count: int) -> Iterator[Gaussians]:
            for part in row_blocks(count, BLOCK_ROWS):
                block = chunk(number).rows(slice(offset + part.start, offset + part.stop))
                yield block.with_sh_degree(degree)

        for run in runs:
            yield from some(run.file, run.offset, run.count)
        if index.environment is not None:
            yield from some(None, 0, around)

    metadata = _level_metadata(index, 0)
    yield Blocks(total + around, degree, rows, metadata={**metadata, **({"antialiased": stated[0]} if stated else {})})


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read the finest level of a streamed SOG; see `read_level`."""
    return read_level(path, 0, limits)


def _read_chunk(folder: Path, name: tuple[str, ...], size: int | None, limits: Limits) -> Gaussians:
    """The Gaussians of a chunk, `size` of them unless that is not known."""
    return _in_chunk(folder, name, lambda source: read_scene(source, limits, count=size))


def _in_chunk(folder: Path, name: tuple[str, ...], act: Callable[[Source], _T]) -> _T:
    """What `act` makes of a chunk."""
    text = "/".join(name)
    path = folder.joinpath(*name)
    if not os.path.lexists(path):
        raise FormatError(f"there is no {text}", chunk=text)
    try:
        with opened(path) as source:
            return act(source)
    except SplatCodecError as error:
        error.chunk = "/".join([*name[:-1], error.chunk]) if error.chunk else text
        raise


def _joined(parts: list[Gaussians], metadata: dict[str, Any]) -> Gaussians:
    """One scene of several; harmonics that a part has not got are zero."""
    degree = max((part.sh_degree for part in parts), default=0)
    size = num_sh_coefficients(degree) - 1
    arrays: dict[str, Any] = {}
    for name in ("means", "quats", "scales", "opacities", "sh0"):
        whole = [getattr(part, name) for part in parts]
        arrays[name] = np.concatenate(whole) if whole else getattr(Gaussians.empty(), name)
    shN = np.zeros((len(arrays["means"]), size, 3), np.float32)
    start = 0
    for part in parts:
        shN[start : start + len(part), : part.shN.shape[1]] = part.shN
        start += len(part)
    stated = [part.metadata["antialiased"] for part in parts if "antialiased" in part.metadata]
    if stated:
        metadata = {**metadata, "antialiased": stated[0]}
    return Gaussians(**arrays, shN=shN, metadata=metadata)


def write(gaussians: Gaussians, folder: Path, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """Write levels, chunks and `lod-meta.json` into a folder.

    Returns:
        What the quality left out.

    Raises:
        ParameterError: an empty scene.
    """
    from ._sog_stream_write import write_stream

    scene = drawable(gaussians, options)
    if not len(scene):
        raise ParameterError("an empty scene cannot be streamed", hint="write .sog")
    dropped = write_stream(scene, folder, options)
    if not dropped:
        return []
    return [f"{dropped} Gaussians that hardly show left out, as quality {options.quality:g} allows"]


def write_blocks(blocks: Blocks, folder: Path, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write` without a quality, from blocks, which are laid down in a file in the folder first."""
    with spilled(blocks, folder, options) as (scene, told):
        write(scene, folder, options)
    return told


def _error_bounds(gaussians: Gaussians, options: WriteOptions) -> ErrorBounds:
    from ._sog_stream_write import largest_errors

    return largest_errors(drawable(gaussians, options), options)


def _sniff(head: bytes, path: Path) -> bool:
    if not head:
        # Of a folder that has both, the plain scene is read.
        return os.path.isfile(path / INDEX) and not os.path.isfile(path / "meta.json")
    return path.name == INDEX


FORMAT = Format(
    name="sog-stream",
    title="Streamed SOG",
    suffixes=(),
    read=read,
    write=None,
    sniff=_sniff,
    write_path=write,
    index_name=INDEX,
    losses=losses,
    error_bounds=_error_bounds,
    takes_quality=True,
    open_blocks=open_blocks,
    write_path_blocks=write_blocks,
)
