"""A permutation that is nearly sorted as small integers, one a row (bitstreams/SPEC.md, section 1.6).

The inversions of row k are how many of the rows 0..k-1 come after it: all 0 if nothing changed places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from ..errors import FormatError

__all__ = ["inversions_of", "places_of"]


def inversions_of(places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Inversions (n,) of rows that are at `places` (n,), each of 0..n-1 once.

    >>> inversions_of(np.array([1, 0, 2, 4, 3])).tolist()
    [0, 1, 0, 0, 1]
    """
    counts = np.zeros(len(places), np.uint32)
    _count(np.ascontiguousarray(places, np.int64), counts)
    return counts


def places_of(inversions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Inverse of `inversions_of`.

    Raises:
        FormatError: row k has more than k inversions.

    >>> places_of(np.array([0, 1, 0, 0, 1])).tolist()
    [1, 0, 2, 4, 3]
    """
    if np.any(inversions > np.arange(len(inversions))):
        raise FormatError("a row comes before more rows than there are")
    places = np.empty(len(inversions), np.int64)
    _place(np.ascontiguousarray(inversions, np.int64), places)
    return places


# Both with a Fenwick tree: sums over 1..i, and the largest i whose sum is below a number, in log n steps.


@njit(cache=True, nogil=True)
def _count(places: Any, counts: Any) -> None:  # pragma: no cover
    n = len(places)
    tree = np.zeros(n + 1, np.int64)
    for k in range(n):
        after, i = k, places[k] + 1
        while i > 0:
            after -= tree[i]
            i -= i & -i
        counts[k] = after
        i = places[k] + 1
        while i <= n:
            tree[i] += 1
            i += i & -i


@njit(cache=True, nogil=True)
def _place(inversions: Any, places: Any) -> None:  # pragma: no cover
    n = len(inversions)
    tree = np.empty(n + 1, np.int64)  # of the places that are free
    top = 1
    for i in range(1, n + 1):
        tree[i] = i & -i
        if i & -i > top:
            top = i & -i
    for k in range(n - 1, -1, -1):
        # All later rows have their places; of the k + 1 free ones this row's has `inversions` behind it.
        before, place, step = k - inversions[k], 0, top
        while step > 0:
            if place + step <= n and tree[place + step] <= before:
                place += step
                before -= tree[place]
            step >>= 1
        places[k] = place
        i = place + 1
        while i <= n:
            tree[i] -= 1
            i += i & -i
