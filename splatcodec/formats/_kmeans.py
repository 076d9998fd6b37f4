"""A palette of vectors for spherical harmonics: weighted clusters, as many as pay for their bytes.

A tree of two-way splits along principal axes is grown once and pruned to what is cheapest in error and bits; a few
rounds of moving rows to cheaper neighbouring entries (Lloyd's, with a list of neighbours instead of a search through
all) then make good for the splits' straight borders. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..render.kernel import run_threaded
from . import _sog_kernels as kernels
from ._packing import row_blocks
from ._quantize import SAMPLE, Coded, best_colors, blocks, quantize_colors, sample_rows

__all__ = ["Palette", "fit_palette"]

Floats = npt.NDArray[np.float64]

_NEIGHBORS = 24
_NEIGHBOR_ROUNDS = 4
_SINGLE_BITS = 3.0
# An entry costs at least about this much: a cluster with less to gain is not split further.
_LEAST_ENTRY_BITS = 8.0
_PRICINGS = 2
# Entries are found from this many rows at most; all are read in blocks of so many.
_MOST_FITTED = 1 << 19
_ROWS = 1 << 15
# How often all rows are read then.
_NAMINGS = 3


@dataclass(frozen=True)
class Palette:
    """Entries and who uses them.

    Attributes:
        codes: (M, C, 3) uint8 into `book`. book: (256,) float64, ascending.
        labels: (N,) int32 entry of each row. masses: (M,) weight of all rows of each entry.
    """

    codes: npt.NDArray[np.uint8]
    book: Floats
    labels: npt.NDArray[np.int32]
    masses: Floats

    @property
    def entries(self) -> npt.NDArray[np.float32]:
        """(M, C, 3) float32 values."""
        return self.book.astype(np.float32)[self.codes]


class _Entries:
    """Entries being fitted: codebook, tables and codes."""

    def __init__(self, rows: npt.NDArray[np.float32], weights: Floats, price: float, threads: int) -> None:
        self.price = price
        self.threads = threads
        self.size = rows.shape[1] // 3
        sample = sample_rows(len(rows), 4 * SAMPLE // self.size)
        colors = rows[sample].reshape(-1, 3).astype(np.float64)
        best = best_colors(colors, np.repeat(weights[sample], self.size), price, threads=threads)
        self.book, self.bits, self.differences = best.book, best.bits, best.differences

    def learn(self, means: Floats, masses: Floats) -> None:
        """Fit codebook and tables to entries (M, D)."""
        sample = sample_rows(len(means), 4 * SAMPLE // self.size)
        coded = self._coded(means[sample], masses[sample], rounds=3)
        self.book, self.bits = coded.book, coded.bits

    def code(self, means: Floats, masses: Floats) -> npt.NDArray[np.uint8]:
        """Codes (M, C, 3) of entries (M, D)."""
        return self._coded(means, masses, rounds=1).codes.reshape(len(means), self.size, 3)

    def _coded(self, means: Floats, masses: Floats, rounds: int) -> Coded:
        return quantize_colors(
            means.reshape(-1, 3),
            np.repeat(masses, self.size),
            self.price,
            self.book,
            differences=self.differences,
            rounds=rounds,
            bits=self.bits,
            threads=self.threads,
        )


def fit_palette(
    rows_of: Callable[[Any], tuple[npt.NDArray[np.float32], Floats]],
    count: int,
    price: float,
    *,
    max_entries: int = 65536,
    rounds: int = 8,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Palette:
    """Find entries, their codes and labels for SH coefficients.

    Of many rows a part finds the entries, all then name them, block by block.

    Args:
        rows_of: indices or a slice -> (n, D) float32 rows, D a multiple of 3, colour innermost, finite; and (n,)
            float64, positive: squared error counts this much. Rows of indices are written over.
        count: N, at least 1.
        price: squared error worth one bit.
        max_entries: most entries.
        rounds: of moving rows between entries.

    Returns:
        Palette with at most `max_entries` entries, each of them used.
    """
    tell = progress or (lambda share: None)
    fitted = sample_rows(count, _MOST_FITTED)
    share = count / len(fitted)
    rows, weights = rows_of(fitted)
    weights = weights * share  # each stands for as many
    entries = _Entries(rows, weights, price, threads)
    # Along principal axes distances grow fast, so that most comparisons end early.
    sample = sample_rows(len(rows), SAMPLE)
    moment = (rows[sample] * weights[sample, None].astype(np.float32)).T @ rows[sample]
    basis = np.linalg.eigh(moment.astype(np.float64))[1][:, ::-1]
    fit = _fit(rows, weights, share, basis, entries, max_entries, rounds, lambda share: tell(0.8 * share))
    if len(fitted) < count:
        del rows, weights
        fit = _named_by_all(rows_of, count, basis, fit, entries)
    entries.learn(fit.means, fit.masses)
    return Palette(entries.code(fit.means, fit.masses), entries.book, fit.labels, fit.masses)


def _turn(rows: npt.NDArray[np.float32], basis: Floats) -> None:
    """Multiply rows by a basis where they lie: of all that is held here they are the largest."""
    narrow = np.ascontiguousarray(basis, np.float32)
    for part in row_blocks(len(rows)):
        rows[part] = rows[part] @ narrow


@dataclass
class _Clusters:
    """Entries before they are coded: (M, D) means, (M,) masses, (N,) labels."""

    means: Floats
    masses: Floats
    labels: npt.NDArray[np.int32]


def _fit(
    rows: npt.NDArray[np.float32],
    weights: Floats,
    share: float,
    basis: Floats,
    entries: _Entries,
    max_entries: int,
    rounds: int,
    tell: Callable[[float], None],
) -> _Clusters:
    count, size = rows.shape
    price, threads = entries.price, entries.threads
    members = np.arange(count)
    nodes = np.empty((2 * count, 3), np.int64)
    _turn(rows, basis)
    num_nodes = kernels.grow_tree(rows, weights, _LEAST_ENTRY_BITS * price, members, nodes)
    _turn(rows, basis.T)
    nodes = nodes[:num_nodes].copy()
    tell(0.3)
    errors, rates, best = np.empty(num_nodes), np.empty(num_nodes), np.empty(num_nodes)
    labels = np.empty(count, np.int32)
    for turn in range(_PRICINGS):
        books = (entries.book, entries.bits, entries.differences)
        shared = (rows, weights, members, nodes, price, *books, _SINGLE_BITS, share, errors, rates)
        tasks = [(start, stop, *shared) for start, stop in _node_blocks(nodes)]
        run_threaded(kernels.price_tree, tasks, threads)
        num_entries = _label(members, nodes, errors, rates, price, max_entries, best, labels)
        means, masses = np.zeros((num_entries, size)), np.zeros(num_entries)
        counts = np.zeros(num_entries, np.int64)
        kernels.sum_clusters(rows, weights, labels, means, masses, counts)
        entries.learn(means, masses)
        tell(0.3 + 0.4 * (turn + 1) / _PRICINGS)
    del members, nodes, errors, rates, best
    _turn(rows, basis)
    means = means @ basis
    neighbors = None
    for turn in range(rounds):
        if len(means) == 1:
            break
        values = means.astype(np.float32)
        if neighbors is None:
            neighbors = _neighbors(values)
        _move(rows, weights, values, neighbors, price, share * _label_bits(counts), labels, threads)
        used = np.bincount(labels, minlength=len(means)) > 0
        if not used.all():
            labels = (np.cumsum(used) - 1).astype(np.int32)[labels]
            means, neighbors = means[used], None
            masses, counts = np.zeros(len(means)), np.zeros(len(means), np.int64)
        kernels.sum_clusters(rows, weights, labels, means, masses, counts)
        tell(0.7 + 0.3 * (turn + 1) / rounds)
    return _Clusters(means @ basis.T, masses, labels)


def _neighbors(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    neighbors = np.empty((len(values), min(_NEIGHBORS, len(values) - 1)), np.int32)
    kernels.nearest_neighbors(values, _NEIGHBOR_ROUNDS, neighbors, np.empty(neighbors.shape, np.float32))
    return neighbors


def _label_bits(counts: npt.NDArray[np.int64]) -> Floats:
    return np.where(counts == 1, 2 * _SINGLE_BITS, np.log2(counts.sum() / np.maximum(counts, 0.5)))


def _move(
    turned: npt.NDArray[np.float32],
    weights: Floats,
    values: npt.NDArray[np.float32],
    neighbors: npt.NDArray[np.int32],
    price: float,
    label_bits: Floats,
    labels: npt.NDArray[np.int32],
    threads: int,
) -> None:
    """Give each row the cheapest of its entry and that one's neighbours."""
    changes = np.zeros(len(turned), bool)
    shared = (turned, weights, values, neighbors, price, label_bits, labels, changes)
    run_threaded(kernels.assign_labels, [(*block, *shared) for block in blocks(len(turned))], threads)


def _named_by_all(
    rows_of: Callable[[Any], tuple[npt.NDArray[np.float32], Floats]],
    count: int,
    basis: Floats,
    fit: _Clusters,
    entries: _Entries,
) -> _Clusters:
    """The same entries, named by all rows: down a tree of the entries, then to neighbours while that is cheaper."""
    size = fit.means.shape[1]
    label_bits = _label_bits(np.bincount(fit.labels, minlength=len(fit.means)))
    narrow = np.ascontiguousarray(basis, np.float32)
    values = (fit.means @ basis).astype(np.float32)
    members = np.arange(len(values))
    nodes = np.empty((2 * len(values), 3), np.int64)
    nodes = nodes[: kernels.grow_tree(values, fit.masses, 0.0, members, nodes)].copy()
    centers = np.empty((len(nodes), size), np.float32)
    kernels.node_means(values, fit.masses, members, nodes, centers)
    neighbors = _neighbors(values) if len(values) > 1 else None
    labels = np.full(count, -1, np.int32)
    for turn in range(_NAMINGS):
        sums, masses = np.zeros((len(values), size)), np.zeros(len(values))
        for part in row_blocks(count, _ROWS):
            rows, weights = rows_of(part)
            rows, here = rows @ narrow, labels[part]
            if turn == 0:
                tasks = [(*block, rows, members, nodes, centers, here) for block in blocks(len(rows))]
                run_threaded(kernels.descend, tasks, entries.threads)
            if neighbors is not None:
                _move(rows, weights, values, neighbors, entries.price, label_bits, here, entries.threads)
            kernels.add_to_clusters(rows, weights, here, sums, masses)
        # Entries move to where all of their rows are; the next turn may find nearer ones.
        used = masses > 0
        means = sums / np.where(used, masses, 1.0)[:, None]
        values = np.where(used[:, None], means, values).astype(np.float32)
        label_bits = _label_bits(np.bincount(labels, minlength=len(values)))
    labels = (np.cumsum(used) - 1).astype(np.int32)[labels]
    return _Clusters(means[used] @ basis.T, masses[used], labels)


def _node_blocks(nodes: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of nodes with about as many members each."""
    work = np.cumsum(nodes[:, 1] - nodes[:, 0] + 8)
    cuts = np.searchsorted(work, np.arange(1, 32) * work[-1] / 32)
    edges = np.unique(np.concatenate([[0], cuts, [len(nodes)]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist()))


def _label(
    members: npt.NDArray[np.int64],
    nodes: npt.NDArray[np.int64],
    errors: Floats,
    rates: Floats,
    price: float,
    max_entries: int,
    best: Floats,
    labels: npt.NDArray[np.int32],
) -> int:
    """Prune the tree; where that leaves too many entries, at the lowest price that leaves few enough."""

    def leaves(price: float) -> int:
        return int(kernels.label_leaves(members, nodes, len(nodes), errors + price * rates, best, labels))

    count = leaves(price)
    if count <= max_entries:
        return count
    low = high = price
    while count > max_entries:
        low, high = high, high * 2 + 1e-30
        count = leaves(high)
    for _ in range(12):
        middle = np.sqrt(low * high)
        count = leaves(middle)
        low, high = (low, middle) if count <= max_entries else (middle, high)
    return leaves(high)
