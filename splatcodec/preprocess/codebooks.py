"""Codebooks for (residual) vector quantization: weighted k-means, stage by stage, and nearest entries."""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ..errors import ParameterError
from ..stages.vector_quantize import MAX_ENTRIES, MAX_STAGES

__all__ = ["entries_for", "fit_codebooks", "nearest", "residual_labels"]

Floats = npt.NDArray[np.float32]
_ROWS_AN_ENTRY = 32


def entries_for(num_gaussians: int, most: int, rows_an_entry: int = _ROWS_AN_ENTRY) -> int:
    """How many entries pay for themselves: a power of two, one for every 32 Gaussians, 1 to `most`.

    >>> entries_for(10_000, 64), entries_for(300, 64), entries_for(3, 64)
    (64, 8, 1)
    """
    wanted = max(1, num_gaussians // rows_an_entry)
    return int(min(most, 1 << (wanted.bit_length() - 1)))


@njit(cache=True, nogil=True)
def _nearest(values, entries, labels):
    for n in range(len(values)):
        best, least = 0, np.inf
        for c in range(len(entries)):
            total = 0.0
            for d in range(values.shape[1]):
                gap = values[n, d] - entries[c, d]
                total += gap * gap
            if total < least:
                best, least = c, total
        labels[n] = best


def nearest(values: Floats, entries: Floats) -> npt.NDArray[np.int32]:
    """(N,) number of the entry (C, D) that is nearest to each value (N, D); of equal ones the first."""
    labels = np.empty(len(values), np.int32)
    _nearest(np.ascontiguousarray(values, np.float32), np.ascontiguousarray(entries, np.float32), labels)
    return labels


def residual_labels(values: Floats, codebooks: Floats) -> npt.NDArray[np.int32]:
    """(N, S) labels of values (N, D) in codebooks (S, C, D): each stage takes what is nearest to what is left."""
    left = np.array(values, np.float32)
    labels = np.empty((len(left), len(codebooks)), np.int32)
    for stage, entries in enumerate(codebooks):
        labels[:, stage] = nearest(left, entries)
        left -= entries[labels[:, stage]]
    return labels


def _clusters(
    values: Floats, weights: npt.NDArray[np.float64], count: int, rounds: int, random: np.random.Generator
) -> Floats:
    """(count, D) centres by Lloyd's rounds from random rows; an empty cluster moves to the worst row."""
    chance = weights / weights.sum()
    start = random.choice(len(values), count, replace=False, p=chance if np.count_nonzero(chance) >= count else None)
    centres = values[np.sort(start)].astype(np.float32)
    for _ in range(rounds):
        labels = nearest(values, centres)
        mass = np.bincount(labels, weights, count)
        sums = np.stack([np.bincount(labels, weights * values[:, d], count) for d in range(values.shape[1])], 1)
        full = mass > 0
        centres[full] = (sums[full] / mass[full, None]).astype(np.float32)
        empty = np.flatnonzero(~full)
        if len(empty):
            errors = weights * ((values - centres[labels]) ** 2).sum(1)
            centres[empty] = values[np.argsort(-errors, kind="stable")[: len(empty)]]
    return centres


def fit_codebooks(
    values: npt.NDArray[np.floating],
    stages: int,
    entries: int,
    *,
    weights: npt.NDArray[np.floating] | None = None,
    rounds: int = 10,
    seed: int = 0,
) -> Floats:
    """Codebooks (S, C, D) whose sums of one entry a stage are near the values (N, D).

    Args:
        values: finite.
        stages: S, 1..8. entries: C, at least 1; fewer than asked for where there are not as many values.
        weights: (N,) how much each row counts, above 0; None = all the same.
        rounds: of Lloyd's algorithm, a stage.
        seed: of the rows that clusters begin from.

    Raises:
        ParameterError: no values, or numbers out of range.
    """
    values = np.ascontiguousarray(values, np.float32)
    if not 1 <= stages <= MAX_STAGES or not 1 <= entries <= MAX_ENTRIES:
        raise ParameterError(f"{stages} stages of {entries} entries", hint=f"1 to {MAX_STAGES} of 1 to {MAX_ENTRIES}")
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise ParameterError("there are no finite values to make a codebook of")
    mass = np.ones(len(values)) if weights is None else np.maximum(np.asarray(weights, np.float64), 1e-12)
    count = min(entries, len(values))
    random = np.random.default_rng([0x565143, seed])
    left, books = values.copy(), []
    for _ in range(stages):
        centres = _clusters(left, mass, count, rounds, random)
        books.append(centres)
        left -= centres[nearest(left, centres)]
    return np.stack(books)
