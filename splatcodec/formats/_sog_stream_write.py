"""Writing streamed SOG: levels by decimation, a tree of regions, chunks of a level each.

Each level has a quarter of the Gaussians of the one before, so that all of them together cost a third more than the
scene alone. Levels are made by `edits.decimate` with what rendering tells of importance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..gaussians import Gaussians, unit_quats
from ..render.kernel import default_num_threads
from ..version import __version__
from . import _sog_encode as encode
from ._losses import FILE_FACTS, is_json
from ._sog_read import METADATA_KEY, Files, read_scene
from .base import ErrorBounds, WriteOptions

__all__ = ["largest_errors", "write_stream"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

INDEX = "lod-meta.json"
_LEVEL_SHARE = 0.25
_LEAST_IN_LEVEL = 2048
_MAX_LEVELS = 6
# A region is what is drawn at one level, a chunk what is loaded at once.
_LEAF_GAUSSIANS = 1 << 15
_LEAF_EXTENT = 16.0
_LEAST_IN_LEAF = 1 << 13
_CHUNK_GAUSSIANS = 1 << 17
# What a bound must hold of an ellipsoid, in standard deviations.
_SIGMAS = 3.0
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
# Errors of a coarser level are hidden by its own: a bit may be worth this much more at each.
_LEVEL_PRICE = 64.0


@dataclass(frozen=True)
class _Level:
    """One level: its Gaussians, and how they are coded (rows are all of them, in no order)."""

    scene: Gaussians
    plan: encode.Plan


@dataclass(frozen=True)
class _Chunk:
    """Gaussians of a level in the order of the chunk."""

    level: int
    rows: Rows


def _levels(gaussians: Gaussians, options: WriteOptions, threads: int) -> list[_Level]:
    from ..edits.decimate import decimate

    tell = options.progress or (lambda stage, share: None)
    plan, _ = encode.make_plan(gaussians, options.quality, threads, tell)
    scene = gaussians
    if len(plan.rows) < len(gaussians):
        rows = np.sort(plan.rows)
        scene = gaussians.selected(rows)
        plan = encode.Plan(plan.sensitivities.selected(rows), plan.price, np.arange(len(rows)), plan.tuning)
    levels = [_Level(scene, plan)]
    while len(levels) < _MAX_LEVELS and _LEVEL_SHARE * len(levels[-1].scene) >= _LEAST_IN_LEVEL:
        last = levels[-1]
        sensed = last.plan.sensitivities
        fewer = decimate(
            last.scene, round(_LEVEL_SHARE * len(last.scene)), importance=np.sqrt(sensed.color * sensed.removal)
        )
        # Without the caution of the finest level: nobody looks at this one from near.
        tuning = encode.Tuning()
        measured = encode.measure(fewer, tuning, threads, tell)
        price = _LEVEL_PRICE * last.plan.price
        levels.append(_Level(fewer, encode.Plan(measured, price, np.arange(len(fewer)), tuning)))
    return levels


def _bounds(gaussians: Gaussians) -> tuple[Floats, Floats]:
    """(N, 3) lower and upper corners of boxes around the ellipsoids."""
    turned = encode.rotations(unit_quats(gaussians.quats).astype(np.float64))
    deviations = np.exp(np.clip(gaussians.scales.astype(np.float64), -100, 88))
    reach = _SIGMAS * np.sqrt(np.einsum("nak,nk->na", turned**2, deviations**2))
    means = gaussians.means.astype(np.float64)
    return means - reach, means + reach


class _Tree:
    """The regions, found by halving the box of the centres of all levels along its longest side."""

    def __init__(self, levels: list[_Level]) -> None:
        self.centers = np.concatenate([level.scene.means for level in levels]).astype(np.float64)
        self.level_of = np.repeat(np.arange(len(levels)), [len(level.scene) for level in levels])
        firsts = np.concatenate([[0], np.cumsum([len(level.scene) for level in levels])])
        self.row_of = np.arange(len(self.centers)) - firsts[self.level_of]
        boxes = [_bounds(level.scene) for level in levels]
        self.lows, self.highs = (np.concatenate([box[k] for box in boxes]) for k in range(2))
        self.leaves: list[Rows] = []
        self.json = self._node(np.arange(len(self.centers)))

    def _node(self, members: Rows) -> dict[str, Any]:
        bound = {
            "min": [_short(value) for value in self.lows[members].min(0)],
            "max": [_short(value) for value in self.highs[members].max(0)],
        }
        extent = np.ptp(self.centers[members], axis=0)
        large = len(members) > _LEAF_GAUSSIANS or (extent.max() > _LEAF_EXTENT and len(members) > _LEAST_IN_LEAF)
        if not large or not extent.max() > 0:
            self.leaves.append(members)
            return {"bound": bound, "lods": {}}
        along = self.centers[members, np.argmax(extent)]
        order = np.argsort(along, kind="stable")
        half = len(members) // 2
        # Depth is the logarithm of the count, so recursion is safe.
        return {"bound": bound, "children": [self._node(members[order[:half]]), self._node(members[order[half:]])]}

    def leaf_nodes(self) -> list[dict[str, Any]]:
        """The leaves' JSON, in the order of `leaves`."""
        found, nodes = [], [self.json]
        while nodes:
            node = nodes.pop()
            if "lods" in node:
                found.append(node)
            else:
                nodes += reversed(node["children"])
        return found


def _short(value: float) -> float:
    """With 7 digits, as others write it."""
    return float(f"{min(max(value, -_MAX_FLOAT32), _MAX_FLOAT32):.7g}")


def _layout(levels: list[_Level]) -> tuple[dict[str, Any], list[_Chunk]]:
    """The tree with its runs, and the chunks in the order of `filenames`."""
    tree = _Tree(levels)
    chunks: list[_Chunk] = []
    open_chunk: dict[int, int] = {}
    for members, node in zip(tree.leaves, tree.leaf_nodes()):
        for level in range(len(levels)):
            rows = tree.row_of[members[tree.level_of[members] == level]]
            if not len(rows):
                continue
            rows = rows[encode.file_order(levels[level].scene.means[rows])]
            number = open_chunk.get(level)
            if number is None or len(chunks[number].rows) + len(rows) > _CHUNK_GAUSSIANS:
                number = open_chunk[level] = len(chunks)
                chunks.append(_Chunk(level, rows[:0]))
            offset = len(chunks[number].rows)
            chunks[number] = _Chunk(level, np.concatenate([chunks[number].rows, rows]))
            node["lods"][str(level)] = {"file": number, "offset": offset, "count": len(rows)}
    return tree.json, chunks


def _files(level: _Level, chunk: _Chunk, threads: int, metadata: dict[str, Any]) -> dict[str, bytes]:
    plan = level.plan
    textures = encode.choose(
        level.scene.replaced(metadata=metadata),
        plan.sensitivities,
        chunk.rows,
        plan.price,
        plan.tuning,
        threads,
        lambda share: None,
    )
    return encode.pack(textures, threads)


def write_stream(gaussians: Gaussians, folder: Path, options: WriteOptions) -> int:
    """Write a cleaned scene of at least one Gaussian; see `sog_stream.write`.

    Returns:
        How many Gaussians the quality left out.
    """
    threads = options.threads or default_num_threads()
    tell = options.progress or (lambda stage, share: None)
    levels = _levels(gaussians, options, threads)
    tree, chunks = _layout(levels)
    known = {name: value for name, value in gaussians.metadata.items() if is_json(value) and name not in FILE_FACTS}
    antialiased = {"antialiased": known.pop("antialiased")} if "antialiased" in known else {}
    numbers = [0] * len(levels)
    names = []
    for done, chunk in enumerate(chunks):
        name = f"{chunk.level}_{numbers[chunk.level]}"
        numbers[chunk.level] += 1
        names.append(f"{name}/meta.json")
        (folder / name).mkdir()
        for file, content in _files(levels[chunk.level], chunk, threads, antialiased).items():
            (folder / name / file).write_bytes(content)
        tell("chunks", (done + 1) / len(chunks))
    counts = [len(level.scene) for level in levels]
    meta: dict[str, Any] = {
        "version": 1,
        "asset": {"generator": f"splatcodec {__version__}"},
        "count": sum(counts),
        "counts": counts,
        "lodLevels": len(levels),
        "lodErrors": False,
        "filenames": names,
        "tree": tree,
    }
    if known:
        meta[METADATA_KEY] = known
    (folder / INDEX).write_text(json.dumps(meta, separators=(",", ":")))
    return len(gaussians) - counts[0]


def largest_errors(gaussians: Gaussians, options: WriteOptions) -> ErrorBounds:
    """How far values of the finest level are off; see `_sog_encode.largest_errors`."""
    if not len(gaussians):
        return ErrorBounds()
    threads = options.threads or default_num_threads()
    levels = _levels(gaussians, options, threads)
    errors = [
        encode.errors_between(
            read_scene(Files(_files(levels[0], chunk, threads, {}))), levels[0].scene.selected(chunk.rows)
        )
        for chunk in _layout(levels)[1]
        if chunk.level == 0
    ]
    return reduce(encode.larger_errors, errors)
