"""Lossless coding of columns of numbers, such as the properties of a 3DGS PLY (bitstreams/SPEC.md, section 4).

A file is a description (chunk `COLD`) and blocks of rows (chunks `COLS`), each of which decodes alone. Positions are
coded in file order; all other columns in the Morton order of the block's own positions, which the decoder can sort
out again, so near Gaussians predict each other and yet no permutation is stored. A value is predicted by a linear
combination of the same column in near rows and of other columns in its row. Which multiple of a step it lies in,
counted from the prediction, is a token of a static rANS table; the step follows the expected residual, so all columns
look alike to the tables. What is left below the step is noise and goes into the file as raw bits.

    columns -> keys -> [predict from near rows and other columns] -> tokens (rANS) + raw bits -> block
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, LimitExceededError, ParameterError, SplatCodecError
from ..limits import DEFAULT_LIMITS, Limits
from .lossless_blocks import MAX_EXPANSION, decode_block, in_parallel, model_block, pack_block, spatial_order
from .lossless_boxes import Boxes
from .lossless_fit import fit_plan
from .lossless_plan import MAX_COLUMNS, MAX_NAME_BYTES, ColumnSpec, read_plan, write_plan

__all__ = [
    "BLOCK_ROWS",
    "ColumnSpec",
    "block_counts",
    "decode_columns",
    "encode_columns",
    "read_specs",
    "spatial_order",
]

BLOCK_ROWS = 65536  # most rows of a block


def block_counts(num_rows: int, block_rows: int = BLOCK_ROWS) -> list[int]:
    """Rows of each block: `block_rows`, the last one fewer."""
    return [min(block_rows, num_rows - first) for first in range(0, num_rows, block_rows)]


def encode_columns(
    columns: Mapping[str, npt.NDArray[Any]],
    block_rows: int = BLOCK_ROWS,
    threads: int | None = None,
    mixing: bool = False,
    boxes: Boxes | None = None,
) -> tuple[bytes, list[bytes]]:
    """Code columns so that every bit of every value comes back, NaN payloads and -0.0 included.

    Args:
        columns: (n,) arrays by name, dtype f4, f8, u1 to u8 or i1 to i8, of either byte order; strided ones are
            fine. Columns called x, y, z give the order in which the others are coded.
        block_rows: rows of a block, 1 to 65,536.
        threads: blocks coded at a time; None = one a core. The bytes do not depend on it.
        mixing: code integers by context mixing: smaller and slower.
        boxes: what mixed columns count their steps from; the decoder needs the same.

    Returns:
        description (chunk `COLD`) and blocks (chunks `COLS`, with the rows of `block_counts`).

    Raises:
        ParameterError: a dtype, a shape or `block_rows` is not supported.
    """
    if not 1 <= block_rows <= BLOCK_ROWS:
        raise ParameterError(f"{block_rows} rows in a block, expected 1 to {BLOCK_ROWS}")
    specs, arrays = _check_columns(columns)
    counts = block_counts(len(arrays[0]) if arrays else 0, block_rows)
    fit = fit_plan(specs, arrays, counts, threads, mixing, boxes)

    def encode(k: int) -> bytes:
        block = fit.sample.pop(k, None)
        if block is None:
            rows = slice(k * block_rows, k * block_rows + counts[k])
            here = None if boxes is None else boxes.rows(rows.start, rows.stop)
            block = model_block(fit.plan, [array[rows] for array in arrays], fit.allowed, fit.find_twins, here)
        return pack_block(fit.plan, block)

    return write_plan(fit.plan, fit.weights), in_parallel(encode, len(counts), threads)


def _check_columns(columns: Mapping[str, npt.NDArray[Any]]) -> tuple[tuple[ColumnSpec, ...], list[npt.NDArray[Any]]]:
    if len(columns) > MAX_COLUMNS:
        raise ParameterError(f"{len(columns)} columns, at most {MAX_COLUMNS} supported")
    arrays = [np.asarray(values) for values in columns.values()]
    specs = []
    for name, array in zip(columns, arrays):
        kind, size = array.dtype.kind, array.dtype.itemsize
        if array.ndim != 1 or len(array) != len(arrays[0]):
            raise ParameterError(f"column has shape {array.shape}, expected {arrays[0].shape[:1]}", field=name)
        if kind not in "uif" or (kind == "f" and size not in (4, 8)):
            raise ParameterError(f"columns of dtype {array.dtype} are not supported", field=name)
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ParameterError(f"a column name is longer than {MAX_NAME_BYTES} bytes", field=name[:40])
        specs.append(ColumnSpec(name, array.dtype))
    return tuple(specs), arrays


def read_specs(description: bytes | memoryview) -> list[ColumnSpec]:
    """Names and dtypes of the columns, in file order.

    Raises:
        FormatError: the description is damaged.
    """
    return list(read_plan(description).specs)


def decode_columns(
    description: bytes | memoryview,
    blocks: Sequence[bytes | memoryview],
    counts: Sequence[int],
    threads: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    names: Sequence[str] | None = None,
    boxes: Boxes | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Inverse of `encode_columns`; some of the blocks give those rows.

    Args:
        description, blocks: bytes from `encode_columns`.
        counts: rows of each block.
        threads: blocks decoded at a time; None = one a core.
        limits: what may be allocated.
        names: what errors call each block; None = "block 0", "block 1" ...
        boxes: as the encoder had them.

    Raises:
        FormatError: the bytes are damaged; an error in a block has its name as `chunk`.
        LimitExceededError: the columns would be larger than `limits` or out of proportion to the bytes.
    """
    plan = read_plan(description)
    if len(blocks) != len(counts):
        raise ParameterError(f"{len(blocks)} blocks but {len(counts)} counts")
    called = names or [f"block {k}" for k in range(len(blocks))]
    for k, (block, count) in enumerate(zip(blocks, counts)):
        if not 1 <= count <= BLOCK_ROWS:
            raise FormatError(f"{count} rows, expected 1 to {BLOCK_ROWS}", chunk=called[k])
        if count * plan.row_bytes > MAX_EXPANSION * len(block):
            raise LimitExceededError(
                f"{len(block)} bytes claim {count} rows of {plan.row_bytes} bytes", chunk=called[k]
            )
    total = sum(counts)
    limits.check_bytes(total * plan.row_bytes, f"{total} rows of columns")
    if boxes is not None:
        boxes.check(total)
    out = [np.empty(total, spec.dtype) for spec in plan.specs]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def decode(k: int) -> None:
        try:
            here = None if boxes is None else boxes.rows(int(first[k]), int(first[k + 1]))
            decode_block(plan, blocks[k], [array[first[k] : first[k + 1]] for array in out], here)
        except SplatCodecError as error:
            raise error.locate(chunk=called[k]) from None

    in_parallel(decode, len(blocks), threads)
    return {spec.name: array for spec, array in zip(plan.specs, out)}
