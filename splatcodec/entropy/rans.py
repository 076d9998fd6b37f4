"""Interleaved rANS over integer tables: 32-bit states, 16-bit words, 12-bit probabilities.

Every symbol is coded as an interval [start, start + freq) of 0..4095. The encoder lists the intervals in decoding
order (static tables and adaptive bits alike), then codes the list backwards; symbol k uses state k mod S. The decoder
reads words forwards. See bitstreams/SPEC.md, section "rANS"; Duda 2013 (arXiv:1311.2540), Giesen 2014
(arXiv:1402.3392) for interleaving.

The kernels here are the inner loops of every stream, so they work on plain arrays: `states` (S,) uint64 with values
below 2**32, `words` uint16, and `cursor` int64 [next word, symbol count, error flag].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ..errors import FormatError, ParameterError, TruncatedError

__all__ = [
    "PROB_BITS",
    "PROB_SCALE",
    "RANS_LOW",
    "ReadState",
    "decode_advance",
    "decode_slot",
    "pack_interval",
    "rans_encode",
    "start_decoding",
]

PROB_BITS = 12
PROB_SCALE = 1 << PROB_BITS
RANS_LOW = 1 << 16  # states live in [2**16, 2**32) between symbols
DEFAULT_STATES = 8
_MAX_STATES = 32


@njit(cache=True)
def pack_interval(freq, start):
    """One interval as a uint32: freq (1..4096) in the high half, start (0..4095) in the low half."""
    return np.uint32((np.uint32(freq) << np.uint32(16)) | np.uint32(start))


@njit(cache=True)
def _encode_kernel(intervals, num_states, words, states):
    for s in range(num_states):
        states[s] = RANS_LOW
    written = len(words)
    for k in range(len(intervals) - 1, -1, -1):
        packed = np.uint64(intervals[k])
        freq = packed >> np.uint64(16)
        start = packed & np.uint64(0xFFFF)
        s = k & (num_states - 1)
        x = states[s]
        if x >= freq << np.uint64(20):
            written -= 1
            words[written] = np.uint16(x & np.uint64(0xFFFF))
            x >>= np.uint64(16)
        states[s] = ((x // freq) << np.uint64(PROB_BITS)) + x % freq + start
    return written


def rans_encode(intervals: npt.NDArray[np.uint32], num_states: int = DEFAULT_STATES) -> bytes:
    """Code a list of intervals.

    Args:
        intervals: (n,) uint32 from `pack_interval`, in decoding order; freq must not be 0.
        num_states: number S of interleaved states, a power of two from 1 to 32.

    Returns:
        S little-endian uint32 states, then the 16-bit words in the order the decoder reads them.

    Raises:
        ParameterError: `num_states` is not a power of two in range.
    """
    if num_states not in (1, 2, 4, 8, 16, 32):
        raise ParameterError(f"{num_states} rANS states, expected a power of two from 1 to {_MAX_STATES}")
    words = np.empty(len(intervals) + 1, np.uint16)
    states = np.empty(num_states, np.uint64)
    first = _encode_kernel(np.ascontiguousarray(intervals, np.uint32), num_states, words, states)
    return states.astype("<u4").tobytes() + words[first:].astype("<u2").tobytes()


class ReadState:
    """The decoder's position in one rANS stream, as arrays for the kernels.

    Attributes:
        states: (S,) uint64.
        words: (n,) uint16.
        cursor: (3,) int64: next word, number of symbols decoded, 1 if reading ran past the last word.
    """

    def __init__(self, states: npt.NDArray[np.uint64], words: npt.NDArray[np.uint16]) -> None:
        self.states = states
        self.words = words
        self.cursor = np.zeros(3, np.int64)

    def finish(self) -> None:
        """Check that the stream ends exactly here.

        Raises:
            FormatError: words are missing or left over, or a state is not back at its start value.
        """
        if self.cursor[2]:
            raise TruncatedError("rANS stream ends before its last symbol")
        if self.cursor[0] != len(self.words) or (self.states != RANS_LOW).any():
            raise FormatError("rANS stream does not end where its symbols do")


def start_decoding(buffer: bytes | memoryview, num_states: int) -> ReadState:
    """Read the states of a stream written by `rans_encode`.

    Raises:
        TruncatedError: fewer bytes than the states need.
        FormatError: an odd length or a state out of range.
    """
    if len(buffer) < 4 * num_states:
        raise TruncatedError(f"{len(buffer)} bytes of rANS stream, {4 * num_states} needed for its states")
    if (len(buffer) - 4 * num_states) % 2:
        raise FormatError("rANS stream has an odd number of bytes")
    states = np.frombuffer(buffer, "<u4", num_states).astype(np.uint64)
    if (states < RANS_LOW).any():
        raise FormatError("rANS state out of range")
    return ReadState(states, np.frombuffer(buffer, "<u2", offset=4 * num_states).astype(np.uint16))


@njit(cache=True)
def decode_slot(states, cursor):
    """The slot 0..4095 of the next symbol; `decode_advance` must follow."""
    return states[cursor[1] & (len(states) - 1)] & np.uint64(PROB_SCALE - 1)


@njit(cache=True)
def decode_advance(states, words, cursor, slot, freq, start):
    """Consume the symbol with interval [start, start + freq) that holds `slot`."""
    s = cursor[1] & (len(states) - 1)
    x = np.uint64(freq) * (states[s] >> np.uint64(PROB_BITS)) + slot - np.uint64(start)
    position = cursor[0]
    if position < len(words):
        # No branch: whether a word is needed is a coin toss to the processor.
        need = np.uint64(x < np.uint64(RANS_LOW))
        x = (x << (need << np.uint64(4))) | (np.uint64(words[position]) * need)
        cursor[0] = position + np.int64(need)
    elif x < np.uint64(RANS_LOW):
        x = np.uint64(RANS_LOW)
        cursor[2] = 1
        cursor[0] = position + 1
    states[s] = x
    cursor[1] += 1
