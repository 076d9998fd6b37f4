"""A palette of vectors for spherical harmonics: weighted clusters, as many as pay for their bytes.

A tree of two-way splits along principal axes is grown once and pruned to what is cheapest in error and bits; a few
rounds of moving rows to cheaper neighbouring entries (Lloyd's, with a list of neighbours instead of a search through
all) then make good for the splits' straight borders. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..render.kernel import run_threaded
from . import _sog_kernels as kernels
from ._quantize import SAMPLE, Coded, best_colors, blocks, quantize_colors, sample_rows

__all__ = ["Palette", "fit_palette"]

Floats = npt.NDArray[np.float64]

_NEIGHBORS = 24
_NEIGHBOR_ROUNDS = 4
_SINGLE_BITS = 3.0
# An entry costs at least about this much: a cluster with less to gain is not split further.
_LEAST_ENTRY_BITS = 8.0
_PRICINGS = 2


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
    rows: npt.NDArray[np.float32],
    weights: Floats,
    price: float,
    *,
    max_entries: int = 65536,
    rounds: int = 8,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Palette:
    """Find entries, their codes and labels for SH coefficients.

    Args:
        rows: (N, D) float32, D a multiple of 3, colour innermost; finite; N at least 1.
        weights: (N,) float64, positive: squared error counts this much.
        price: squared error worth one bit.
        max_entries: most entries.
        rounds: of moving rows between entries.

    Returns:
        Palette with at most `max_entries` entries, each of them used.
    """
    tell = progress or (lambda share: None)
    count, size = rows.shape
    entries = _Entries(rows, weights, price, threads)
    # Along principal axes distances grow fast, so that most comparisons end early.
    sample = sample_rows(count, SAMPLE)
    moment = (rows[sample] * weights[sample, None].astype(np.float32)).T @ rows[sample]
    basis = np.ascontiguousarray(np.linalg.eigh(moment.astype(np.float64))[1][:, ::-1].astype(np.float32))
    turned = np.ascontiguousarray(rows @ basis)
    members = np.arange(count)
    nodes = np.empty((2 * count, 3), np.int64)
    num_nodes = kernels.grow_tree(turned, weights, _LEAST_ENTRY_BITS * price, members, nodes)
    nodes = nodes[:num_nodes].copy()
    tell(0.3)
    errors, rates, best = np.empty(num_nodes), np.empty(num_nodes), np.empty(num_nodes)
    labels = np.empty(count, np.int32)
    for turn in range(_PRICINGS):
        shared = (rows, weights, members, nodes, price, entries.book, entries.bits, entries.differences, _SINGLE_BITS)
        tasks = [(start, stop, *shared, errors, rates) for start, stop in _node_blocks(nodes)]
        run_threaded(kernels.price_tree, tasks, threads)
        num_entries = _label(members, nodes, errors, rates, price, max_entries, best, labels)
        means, masses = np.zeros((num_entries, size)), np.zeros(num_entries)
        counts = np.zeros(num_entries, np.int64)
        kernels.sum_clusters(rows, weights, labels, means, masses, counts)
        entries.learn(means, masses)
        tell(0.3 + 0.4 * (turn + 1) / _PRICINGS)
    neighbors = None
    for turn in range(rounds):
        if len(means) == 1:
            break
        values = np.ascontiguousarray(means.astype(np.float32) @ basis)
        if neighbors is None:
            neighbors = np.empty((len(values), min(_NEIGHBORS, len(values) - 1)), np.int32)
            kernels.nearest_neighbors(values, _NEIGHBOR_ROUNDS, neighbors, np.empty(neighbors.shape, np.float32))
        label_bits = np.where(counts == 1, 2 * _SINGLE_BITS, np.log2(count / np.maximum(counts, 0.5)))
        changes = np.zeros(count, bool)
        moves = [
            (*block, turned, weights, values, neighbors, price, label_bits, labels, changes) for block in blocks(count)
        ]
        run_threaded(kernels.assign_labels, moves, threads)
        used = np.bincount(labels, minlength=len(means)) > 0
        if not used.all():
            labels = (np.cumsum(used) - 1).astype(np.int32)[labels]
            means, neighbors = means[used], None
            masses, counts = np.zeros(len(means)), np.zeros(len(means), np.int64)
        kernels.sum_clusters(rows, weights, labels, means, masses, counts)
        tell(0.7 + 0.2 * (turn + 1) / rounds)
    entries.learn(means, masses)
    return Palette(entries.code(means, masses), entries.book, labels, masses)


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
