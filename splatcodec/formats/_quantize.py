"""Codebooks and symbols for bytes that an entropy coder packs afterwards: error and bits in proportion.

A codebook of 256 values is laid by the density of the values, then codes are chosen round by round, each at the price
that the round before shows (see `_sog_kernels`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..render.kernel import run_threaded
from . import _sog_kernels as kernels

__all__ = [
    "LEVELS",
    "SAMPLE",
    "Coded",
    "best_bytes",
    "best_colors",
    "blocks",
    "codebook_choices",
    "color_tables",
    "quantize_bytes",
    "quantize_colors",
    "sample_rows",
    "table_of",
]

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

LEVELS = 256
_BLOCK = 1 << 13
_GROUPS = 4096
# A symbol that was not chosen yet counts as this much of one, so that it can be chosen again.
_UNSEEN = 0.05
_FIRST_BITS = 6.0
# Levels that go where the error is; the rest is even between quantiles. Even ones suit WebP's subtraction of green, the
# others reach further out at the same fineness.
_OWN_LEVELS = (LEVELS, 112, 32)
_CORE = (0.002, 0.998)
# Tables and codebooks are learnt from this many rows; more do not change them.
SAMPLE = 8192


def blocks(count: int) -> list[tuple[int, int]]:
    """Ranges of rows that threads take one by one."""
    return [(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]


def sample_rows(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` of `count` rows, the same ones every time, ascending."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def table_of(counts: npt.ArrayLike) -> Floats:
    """Bits (256,) of each symbol, of how often it was chosen."""
    seen = np.asarray(counts, np.float64) + _UNSEEN
    return np.log2(seen.sum() / seen)


def color_tables(codes: Bytes, differences: bool) -> Floats:
    """Bits (3, 256) of the channels of colours (N, 3); of red and blue less green with `differences`."""
    green = codes[:, 1]
    channels = [codes[:, 0] - green, green, codes[:, 2] - green] if differences else list(codes.T)
    return np.stack([table_of(np.bincount(channel, minlength=LEVELS)) for channel in channels])


@dataclass(frozen=True)
class Coded:
    """Chosen codes and what they cost.

    Attributes:
        codes: (N, C) uint8.
        book: (256,) float64, ascending.
        bits: (C, 256) float64 tables after the last round.
        error: weighted squared error. rate_est_bits: of all codes, by the tables.
        differences: whether red and blue are counted less green.
    """

    codes: Bytes
    book: Floats
    bits: Floats
    error: float
    rate_est_bits: float
    differences: bool = False

    def cost(self, price: float) -> float:
        """Error and bits in one."""
        return self.error + price * self.rate_est_bits


def codebook_choices(values: Floats, weights: Floats) -> list[Floats]:
    """Codebooks (256,) worth trying for values (N,): the one of least error first, then ever more even ones.

    Args:
        values: finite. weights: (N,), positive: squared error counts this much.
    """
    if not len(values):
        return [np.zeros(LEVELS)]
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    if not values[-1] > values[0]:
        return [np.full(LEVELS, values[0])]
    centers, masses = _groups(values, weights)
    low, high = (float(values[int(share * (len(values) - 1))]) for share in _CORE)
    choices = []
    for own in _OWN_LEVELS:
        book = np.empty(own)
        kernels.split_cells(centers, masses, own, book)
        book = np.sort(np.concatenate([book, np.linspace(low, high, LEVELS - own)]))
        if own == LEVELS:
            kernels.lloyd(centers, masses, book, 40)
        choices.append(book)
    return [*choices, np.linspace(values[0], values[-1], LEVELS)]


def _groups(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Means and masses of at most `2 _GROUPS` runs of ascending values: as many by number as by range."""
    if len(values) <= 2 * _GROUPS:
        return values, weights
    by_number = np.arange(1, _GROUPS) * len(values) // _GROUPS
    by_range = np.searchsorted(values, np.linspace(values[0], values[-1], _GROUPS + 1)[1:-1])
    starts = np.unique(np.concatenate([[0], by_number, by_range]))
    starts = starts[starts < len(values)]
    masses = np.add.reduceat(weights, starts)
    return np.add.reduceat(weights * values, starts) / masses, masses


def _moved_book(codes: Bytes, values: npt.NDArray[np.floating], weights: Floats, book: Floats) -> Floats:
    """The book with every used value at the mean of what it stands for."""
    flat = codes.ravel()
    masses = np.bincount(flat, weights.ravel(), LEVELS)
    sums = np.bincount(flat, (weights * values).ravel(), LEVELS)
    moved = np.where(masses > 0, sums / np.where(masses > 0, masses, 1.0), book)
    # Unused values may now be out of order; they only have to stay between the used ones.
    used = np.flatnonzero(masses > 0)
    if len(used):
        moved = np.interp(np.arange(LEVELS), used, moved[used])
    return np.maximum.accumulate(moved)


def quantize_bytes(
    values: Floats,
    weights: Floats,
    price: float,
    book: Floats,
    *,
    rounds: int = 4,
    move: bool = True,
    bits: Floats | None = None,
    threads: int = 1,
) -> Coded:
    """Codes of values (N, C) in one codebook, each column with a table of its own.

    Args:
        weights: (N, C), positive. price: squared error worth one bit.
        book: (256,) ascending. move: improve it on the way.
        bits: (C, 256) tables to begin with.
    """
    columns = [np.ascontiguousarray(values[:, k]) for k in range(values.shape[1])]
    column_weights = [np.ascontiguousarray(weights[:, k]) for k in range(values.shape[1])]
    bits = np.full((len(columns), LEVELS), _FIRST_BITS) if bits is None else bits
    codes = [np.zeros(len(values), np.uint8) for _ in columns]
    for turn in range(rounds):
        tasks = [
            (start, stop, columns[k], column_weights[k], price, book, bits[k], codes[k])
            for k in range(len(columns))
            for start, stop in blocks(len(values))
        ]
        run_threaded(kernels.choose_bytes, tasks, threads)
        bits = np.stack([table_of(np.bincount(code, minlength=LEVELS)) for code in codes])
        if move and turn < rounds - 1:
            book = _moved_book(np.stack(codes, 1), values, weights, book)
    chosen = np.stack(codes, 1)
    error = float(sum((w * (book[c] - v) ** 2).sum() for c, v, w in zip(codes, columns, column_weights)))
    rate = float(sum(table[code].sum() for table, code in zip(bits, codes)))
    return Coded(chosen, book, bits, error, rate)


def quantize_colors(
    values: npt.NDArray[np.floating],
    weights: Floats,
    price: float,
    book: Floats,
    *,
    differences: bool,
    rounds: int = 4,
    move: bool = True,
    bits: Floats | None = None,
    threads: int = 1,
) -> Coded:
    """Codes of RGB values (N, 3) in one codebook; see `quantize_bytes`.

    Args:
        weights: (N,), positive.
        differences: count red and blue less green, as WebP does where it pays.
    """
    bits = np.full((3, LEVELS), _FIRST_BITS) if bits is None else bits
    codes = np.zeros((len(values), 3), np.uint8)
    wide = np.broadcast_to(weights[:, None], values.shape)
    for turn in range(rounds):
        tasks = [
            (start, stop, values, weights, price, book, bits, differences, codes) for start, stop in blocks(len(values))
        ]
        run_threaded(kernels.choose_colors, tasks, threads)
        bits = color_tables(codes, differences)
        if move and turn < rounds - 1:
            book = _moved_book(codes, values, wide, book)
    error = float((weights * ((book[codes] - values) ** 2).sum(1)).sum())
    green = codes[:, 1]
    base = green if differences else np.uint8(0)
    rate = float(bits[0][codes[:, 0] - base].sum() + bits[1][green].sum() + bits[2][codes[:, 2] - base].sum())
    return Coded(codes, book, bits, error, rate, differences)


def best_colors(values: npt.NDArray[np.floating], weights: Floats, price: float, *, threads: int = 1) -> Coded:
    """`quantize_colors` with the codebook, and differences or not, that cost least on a sample."""
    rows = sample_rows(len(values), SAMPLE)
    books = codebook_choices(np.asarray(values, np.float64).ravel(), np.repeat(weights, 3))
    trials = [
        quantize_colors(values[rows], weights[rows], price, book, differences=differences, threads=threads)
        for book in (books if price > 0 else books[:1])
        for differences in ((False, True) if price > 0 else (False,))
    ]
    best = min(trials, key=lambda trial: trial.cost(price))
    return quantize_colors(
        values, weights, price, best.book, differences=best.differences, bits=best.bits, rounds=1, threads=threads
    )


def best_bytes(values: Floats, weights: Floats, price: float, *, threads: int = 1) -> Coded:
    """`quantize_bytes` with the codebook that costs least, on a sample only."""
    rows = sample_rows(len(values), SAMPLE)
    books = codebook_choices(values.ravel(), weights.ravel())
    trials = [
        quantize_bytes(values[rows], weights[rows], price, book, threads=threads)
        for book in (books if price > 0 else books[:1])
    ]
    return min(trials, key=lambda trial: trial.cost(price))
