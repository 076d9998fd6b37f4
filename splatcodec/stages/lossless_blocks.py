"""One block of rows of lossless columns: from values to bytes and back (bitstreams/SPEC.md, section 4.3).

Encoder and decoder walk through the columns in coding order with the same `BlockState`, which holds all that a
prediction may use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..bitstream.container import read_varint, write_varint
from ..entropy.adaptive import new_models
from ..entropy.bits import finish_bits
from ..entropy.rans import DEFAULT_STATES, rans_encode, start_decoding
from ..errors import FormatError, TruncatedError
from .lossless_boxes import Boxes
from .lossless_kernels import (
    FLOAT_LIMIT,
    MAX_RAW_BITS,
    NUM_NEAR,
    TWIN_MODELS,
    ColumnRows,
    RowLinks,
    RowState,
    Tables,
    add_feature,
    decode_column,
    decode_twins,
    encode_column,
    encode_twins,
    find_nearest,
    interleave,
    list_intervals,
    sphere_base,
)
from .lossless_mixing import MAX_DECISIONS, NO_CLASS, MixedColumn, decode_mixed, encode_mixed, new_mixer
from .lossless_plan import CONSTANT, COPY, DICTIONARY, MEAN, WEIGHT_BITS, ColumnPlan, Plan

__all__ = [
    "MAX_EXPANSION",
    "BlockState",
    "Keys",
    "ModelledBlock",
    "block_keys",
    "decode_block",
    "file_links",
    "finite_positions",
    "in_parallel",
    "model_block",
    "pack_block",
    "spatial_links",
    "spatial_order",
]

MAX_EXPANSION = 2048  # most decoded bytes for a byte of a block

Keys = npt.NDArray[np.uint64]
T = TypeVar("T")


def in_parallel(work: Callable[[int], T], count: int, threads: int | None) -> list[T]:
    """[work(0), ..., work(count - 1)], on some threads."""
    workers = min(threads or os.cpu_count() or 1, count)
    if workers <= 1:
        return [work(k) for k in range(count)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(count)))


# ---- Rows ----------------------------------------------------------------------------------------------------------


def finite_positions(columns: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """(3, n) float64 coordinates, 0 where a value is not finite or too large to square."""
    with np.errstate(invalid="ignore"):
        positions = np.stack([np.asarray(column, np.float64) for column in columns])
        positions[~(np.abs(positions) <= FLOAT_LIMIT)] = 0.0
    return positions


def spatial_order(x: npt.NDArray[Any], y: npt.NDArray[Any], z: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """(n,) rows in Morton order of their positions; files of rows in this order are smaller.

    Args:
        x, y, z: (n,) coordinates of any real dtype.
    """
    return _morton_order(finite_positions([x, y, z]))


def _morton_order(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    codes = np.empty(positions.shape[1], np.int64)
    if len(codes):
        interleave(positions, codes)
    return np.argsort(codes, kind="stable")


def file_links(rows: int) -> RowLinks:
    """Near rows in file order: the NUM_NEAR rows before."""
    slots = np.arange(rows)[:, None] - np.arange(NUM_NEAR)
    count = np.maximum(np.minimum(np.arange(rows), NUM_NEAR), 1)[:, None]
    weight = np.where(slots > 0, np.float32(1) / count.astype(np.float32), np.float32(0)).astype(np.float32)
    return RowLinks(np.maximum(slots, 0).astype(np.int32), weight, np.full(rows, -1, np.int32))


def spatial_links(positions: npt.NDArray[np.float64]) -> RowLinks:
    """Near rows by distance, for (3, n) finite positions in coding order."""
    rows = positions.shape[1]
    near = np.zeros((rows, NUM_NEAR), np.int32)
    weight = np.zeros((rows, NUM_NEAR), np.float32)
    find_nearest(positions, near, weight)
    return RowLinks(near, weight, np.full(rows, -1, np.int32))


def new_rows(rows: int) -> ColumnRows:
    """Room for what later rows and columns see of a column."""
    return ColumnRows(np.zeros(rows + 1, np.float32), np.zeros(rows, np.float32), np.zeros(rows + 1, np.float32))


class BlockState:
    """What is known of a block while its columns are coded one after the other; encoder and decoder alike.

    Attributes:
        order: (n,) row of the block that each coded row is, for the columns that come next; None is file order.
        links: near rows and twins, in that order.
    """

    def __init__(self, plan: Plan, rows: int, boxes: Boxes | None = None) -> None:
        self.plan = plan
        self.boxes = boxes
        self.rows = rows
        self.order: npt.NDArray[np.int64] | None = None
        self.links = file_links(rows)
        self.state = self._fresh_state()
        referenced: set[int] = set().union(*(column.references for column in plan.columns))
        self._kept = {index: new_rows(rows) for index in referenced}
        self._scratch = new_rows(rows)
        self._zeros, self._ones = np.zeros(rows), np.ones(rows)
        self._no_classes = np.full(rows, NO_CLASS, np.uint8)
        self._start_group(0, plan.num_positions)

    def _fresh_state(self) -> RowState:
        return RowState(np.ones(self.rows), np.zeros(self.rows, np.uint8))

    def _start_group(self, start: int, stop: int) -> None:
        """Fresh models for the mixed columns of a group that shares a row order."""
        mixed = [index for index in range(start, stop) if self.plan.columns[index].mixed]
        self._numbers = {index: number for number, index in enumerate(mixed)}
        self._classes = {index: np.empty(self.rows, np.uint8) for index in mixed}
        self._mixer = new_mixer(len(mixed))

    def leave_positions(self) -> None:
        """Go on with the columns after the positions."""
        self._start_group(self.plan.num_positions, len(self.plan.columns))

    def frame_of(self, column: ColumnPlan) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(n,) offset and step of a mixed column, in coding order."""
        name = self.plan.spec_of(column).name
        if self.boxes is None or column.mode == DICTIONARY or not self.boxes.has(name):
            return self._zeros, self._ones
        offset, step = self.boxes.frame(name)
        return (offset, step) if self.order is None else (offset[self.order], step[self.order])

    def mixed_terms(self, index: int) -> tuple[Any, ...]:
        """The arguments of `encode_mixed` between `rows` and `intervals`, and the column's own."""
        partner = self.plan.columns[index].partner
        third = self.plan.columns[partner].partner if partner >= 0 else -1
        return (
            self._classes[index],
            *(self._classes.get(other, self._no_classes) for other in (index - 1, partner, third)),
            self._mixer,
        )

    def mixed_column(self, index: int, width: int) -> MixedColumn:
        """What the kernels for mixed columns need."""
        return MixedColumn(self._numbers[index], max(width - 8, 0))

    def enter_spatial_order(self, columns: Sequence[npt.NDArray[Any]]) -> None:
        """Go on in Morton order of the positions, given all columns in file order."""
        xyz = [(self.plan.spec_of(column).name, columns[column.source]) for column in self.plan.columns[:3]]
        if self.boxes is not None:
            xyz = [(name, self.boxes.position(name, values)) for name, values in xyz]
        positions = finite_positions([values for _, values in xyz])
        self.order = _morton_order(positions)
        self.links = spatial_links(positions[:, self.order])
        self.state = self._fresh_state()

    def rows_of(self, index: int) -> ColumnRows:
        """Where column `index` leaves what it knows."""
        return self._kept.get(index, self._scratch)

    def base_of(self, column: ColumnPlan) -> npt.NDArray[np.float64]:
        """(n,) float64, the part of a prediction that comes from other columns of the row."""
        if column.sphere:
            base = np.ones(self.rows)
            for other in column.sphere:
                sphere_base(base, self._kept[other].values[1:])
            return np.sqrt(np.maximum(base, 0.0))
        bias = column.bias * 2.0 ** (column.spread - WEIGHT_BITS)
        base = np.full(self.rows, float(column.centre) + bias)
        for feature in column.features:
            spread = self.plan.columns[feature.column].spread
            weight = feature.weight * 2.0 ** (column.spread - spread - WEIGHT_BITS)
            kept = self._kept[feature.column]
            add_feature(base, weight, kept.means if feature.kind == MEAN else kept.values[1:])
        return base


# ---- Encoding ------------------------------------------------------------------------------------------------------


@dataclass
class ModelledBlock:
    """A block as tokens, before entropy coding.

    Attributes:
        rows: number of rows.
        twin: (n,) int32 twins in coding order.
        tokens, cells: (n,) uint8 and uint16 for each modelled column; of a mixed one (0,).
        mixed: intervals of each modelled column; (0,) uint32 but for mixed ones.
        raw: raw bits of each modelled column.
    """

    rows: int
    twin: npt.NDArray[np.int32]
    tokens: list[npt.NDArray[np.uint8]]
    cells: list[npt.NDArray[np.uint16]]
    mixed: list[npt.NDArray[np.uint32]]
    raw: list[bytes]


def block_keys(plan: Plan, column: ColumnPlan, values: npt.NDArray[Any]) -> Keys:
    """(n,) uint64 keys to code for some rows of a column: shifted bits, or dictionary indices."""
    spec = plan.spec_of(column)
    keys = spec.to_keys(values)
    if column.mode == DICTIONARY:
        ordered = spec.to_sorted(plan.dictionaries[column.value])
        return np.searchsorted(ordered, spec.to_sorted(keys)).astype(np.uint64)
    return keys >> np.uint64(column.shift)


def model_block(
    plan: Plan,
    columns: Sequence[npt.NDArray[Any]],
    allowed: npt.NDArray[np.bool_],
    find_twins: Callable[[Sequence[Keys]], npt.NDArray[np.int32]] | None = None,
    boxes: Boxes | None = None,
) -> ModelledBlock:
    """Turn a block into tokens.

    Args:
        plan: how; its tables are not used.
        columns: (n,) values of this block's rows, in file order of columns.
        allowed: (cells, ALPHABET) bool, tokens that the tables can code.
        find_twins: chooses twins from the keys of the columns they are for.
        boxes: of this block's rows.
    """
    block = BlockState(plan, len(columns[0]), boxes)
    out = ModelledBlock(block.rows, block.links.twin, [], [], [], [])
    raw = np.zeros((block.rows * MAX_RAW_BITS + 7) // 8, np.uint8)
    prepared: dict[int, Keys] = {}
    for index, column in enumerate(plan.columns):
        if index == plan.num_positions:
            block.leave_positions()
            if plan.spatial:
                block.enter_spatial_order(columns)
            if find_twins is not None:
                for later in range(index, len(plan.columns)):
                    if plan.columns[later].is_modelled:
                        prepared[later] = _ordered_keys(block, plan.columns[later], columns)
                out.twin = find_twins(list(prepared.values()))
                block.links = block.links._replace(twin=out.twin)
        if not column.is_modelled:
            continue
        keys = prepared.pop(index) if index in prepared else _ordered_keys(block, column, columns)
        model = plan.model_of(column)
        terms: Any = (block.links, block.state, block.rows_of(index))
        tokens, cells, intervals = np.empty(0, np.uint8), np.empty(0, np.uint16), np.empty(0, np.uint32)
        if column.mixed:
            own = block.mixed_column(index, model.width)
            scratch = np.empty(block.rows * MAX_DECISIONS, np.uint32)
            terms = (block.base_of(column), *block.frame_of(column), *terms, *block.mixed_terms(index))
            terms = (model, own, keys, *terms, scratch, 0, raw)
            count, used = encode_mixed(*terms)
            intervals = scratch[:count].copy()
        else:
            tokens, cells = np.empty(block.rows, np.uint8), np.empty(block.rows, np.uint16)
            terms = (model, keys, block.base_of(column), *terms, allowed, tokens, cells, raw)
            used = encode_column(*terms)
        size = (used + 7) // 8
        out.mixed.append(intervals)
        out.tokens.append(tokens)
        out.cells.append(cells)
        out.raw.append(raw[:size].tobytes())
        raw[:size] = 0
    return out


def _ordered_keys(block: BlockState, column: ColumnPlan, columns: Sequence[npt.NDArray[Any]]) -> Keys:
    keys = block_keys(block.plan, column, columns[column.source])
    return keys if block.order is None else keys[block.order]


def pack_block(plan: Plan, block: ModelledBlock) -> bytes:
    """Entropy code a block's tokens and add its raw bits."""
    total = sum(len(tokens) + len(mixed) for tokens, mixed in zip(block.tokens, block.mixed))
    intervals = np.empty(total + (192 * block.rows + 64) * plan.twins, np.uint32)
    count = encode_twins(block.twin, new_models(TWIN_MODELS), intervals) if plan.twins else 0
    for tokens, cells, mixed in zip(block.tokens, block.cells, block.mixed):
        intervals[count : count + len(mixed)] = mixed
        count += len(mixed)
        count = list_intervals(tokens, cells, plan.context_map, plan.tables.freq, plan.tables.start, intervals, count)
    stream = rans_encode(intervals[:count], DEFAULT_STATES)
    packed = b"".join([write_varint(len(stream)), stream, *block.raw])
    return packed.ljust(-(-block.rows * plan.row_bytes // MAX_EXPANSION), b"\0")


# ---- Decoding ------------------------------------------------------------------------------------------------------


class _BlockReader:
    """The two streams of a block."""

    def __init__(self, plan: Plan, buffer: bytes | memoryview) -> None:
        view = memoryview(buffer)
        length, position = read_varint(view, 0)
        if length > len(view) - position:
            raise TruncatedError("the rANS stream of a block is cut off", offset=position)
        self.rans = start_decoding(view[position : position + length], DEFAULT_STATES)
        self.raw = np.frombuffer(view[position + length :], np.uint8)
        self.tables = Tables(
            plan.context_map,
            plan.tables.lookup,
            plan.tables.freq,
            plan.tables.start,
            self.rans.states,
            np.append(self.rans.words, np.uint16(0)),
            self.rans.cursor,
        )

    def twins(self, rows: int) -> npt.NDArray[np.int32]:
        """The block's list of twins."""
        twin = np.full(rows, -1, np.int32)
        rans = self.rans
        if not decode_twins(twin, new_models(TWIN_MODELS), rans.states, rans.words, rans.cursor):
            raise FormatError("damaged list of twins")
        return twin

    def column(self, plan: Plan, index: int, block: BlockState) -> Keys:
        """(n,) uint64 keys of the next column, in coding order."""
        column = plan.columns[index]
        keys = np.empty(block.rows, np.uint64)
        model = plan.model_of(column)
        terms: Any = (block.links, block.state, block.rows_of(index))
        if column.mixed:
            own = block.mixed_column(index, model.width)
            terms = (block.base_of(column), *block.frame_of(column), *terms, *block.mixed_terms(index))
            terms = (model, own, keys, *terms, self.rans.states, self.rans.words, self.rans.cursor, self.raw)
            used = decode_mixed(*terms)
        else:
            terms = (model, keys, block.base_of(column), *terms, self.tables, self.raw)
            used = decode_column(*terms)
        name = plan.spec_of(column).name
        if used < 0 or self.rans.cursor[0] > len(self.rans.words):
            raise FormatError("damaged values", field=name)
        size = (used + 7) // 8
        finish_bits(self.raw[:size], used)
        self.raw = self.raw[size:]
        return keys

    def finish(self) -> None:
        """Check that both streams end here, but for zeros."""
        self.rans.finish()
        if self.raw.any():
            raise FormatError("a block has bytes after its last column")


def decode_block(
    plan: Plan, buffer: bytes | memoryview, out: Sequence[npt.NDArray[Any]], boxes: Boxes | None = None
) -> None:
    """Decode one block into (n,) views of the output columns, in file order.

    Raises:
        FormatError: the bytes are damaged.
    """
    reader = _BlockReader(plan, buffer)
    block = BlockState(plan, len(out[0]) if out else 0, boxes)
    twin = reader.twins(block.rows) if plan.twins else block.links.twin
    for index, column in enumerate(plan.columns):
        if index == plan.num_positions:
            block.leave_positions()
            if plan.spatial:
                block.enter_spatial_order(out)
            block.links = block.links._replace(twin=twin)
        spec = plan.spec_of(column)
        target = out[column.source]
        if column.mode == CONSTANT:
            target[:] = spec.from_keys(np.array([column.value], np.uint64))
        elif column.mode == COPY:
            other = plan.columns[column.value]
            target[:] = spec.from_keys(plan.spec_of(other).to_keys(out[other.source]))
        else:
            values = _values_of(plan, column, reader.column(plan, index, block))
            if block.order is None:
                target[:] = values
            else:
                target[block.order] = values
    reader.finish()


def _values_of(plan: Plan, column: ColumnPlan, keys: Keys) -> npt.NDArray[Any]:
    """Values of coded keys."""
    spec = plan.spec_of(column)
    if column.mode == DICTIONARY:
        dictionary = plan.dictionaries[column.value]
        if (keys >= len(dictionary)).any():
            raise FormatError("a value is not in its dictionary", field=spec.name)
        return spec.from_keys(dictionary[keys.astype(np.int64)])
    return spec.from_keys(keys << np.uint64(column.shift))
