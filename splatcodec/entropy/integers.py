"""Short lists of integers of several kinds, coded with adaptive bits: parameters, context maps, matrices.

Every integer is written under a kind (0..15), which has adaptive models of its own; signed values are zigzagged.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ..errors import FormatError
from .adaptive import GAMMA_MODELS, decode_gamma, encode_gamma, new_models
from .rans import rans_encode, start_decoding

__all__ = ["MAX_INTEGER", "IntegerReader", "IntegerWriter"]

NUM_KINDS = 16
MAX_INTEGER = 1 << 29  # all are smaller in size


@njit(cache=True, nogil=True)
def _decode_list(models, base, low, high, states, words, cursor, values):
    """Fill `values`; returns whether all are in [low, high] and the stream is whole."""
    for k in range(len(values)):
        zigzag = decode_gamma(models, base, states, words, cursor)
        value = -((zigzag + 1) >> 1) if zigzag & 1 else zigzag >> 1
        if zigzag < 0 or cursor[2] or value < low or value > high:
            return False
        values[k] = value
    return True


class IntegerWriter:
    """Collects integers and codes them as one rANS stream with one state."""

    def __init__(self) -> None:
        self._kinds: list[int] = []
        self._values: list[int] = []

    def add(self, kind: int, *values: int) -> None:
        """Append signed integers, |value| < 2**29."""
        for value in values:
            assert abs(int(value)) < MAX_INTEGER
            self._kinds.append(kind)
            self._values.append(int(value))

    def finish(self) -> bytes:
        """The coded list."""
        models = new_models(NUM_KINDS * GAMMA_MODELS)
        intervals = np.empty(64 * len(self._values) + 1, np.uint32)
        count = 0
        for kind, value in zip(self._kinds, self._values):
            zigzag = 2 * value if value >= 0 else -2 * value - 1
            count = encode_gamma(models, kind * GAMMA_MODELS, zigzag, intervals, count)
        return rans_encode(intervals[:count], 1)


class IntegerReader:
    """Reads what `IntegerWriter` wrote, in the same order and under the same kinds."""

    def __init__(self, buffer: bytes | memoryview) -> None:
        self._state = start_decoding(buffer, 1)
        self._models = new_models(NUM_KINDS * GAMMA_MODELS)

    def get(self, kind: int, low: int = -MAX_INTEGER, high: int = MAX_INTEGER, what: str = "parameter") -> int:
        """The next integer.

        Raises:
            FormatError: it is not in [low, high], or the stream is damaged.
        """
        state = self._state
        zigzag = decode_gamma(self._models, kind * GAMMA_MODELS, state.states, state.words, state.cursor)
        value = -((zigzag + 1) >> 1) if zigzag & 1 else zigzag >> 1
        if zigzag < 0 or state.cursor[2] or not low <= value <= high:
            raise FormatError(f"{what} is out of range", field=what)
        return int(value)

    def array(self, kind: int, count: int, low: int, high: int, what: str) -> npt.NDArray[np.int64]:
        """The next `count` integers."""
        values = np.empty(count, np.int64)
        state = self._state
        if not _decode_list(
            self._models, kind * GAMMA_MODELS, low, high, state.states, state.words, state.cursor, values
        ):
            raise FormatError(f"{what} is out of range", field=what)
        return values

    def finish(self) -> None:
        """Check that nothing is left."""
        self._state.finish()
