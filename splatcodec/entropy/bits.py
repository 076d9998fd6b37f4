"""Raw bits: a most-significant-bit-first bit string in a uint8 array.

Bit 0 of the string is the top bit of byte 0. A position counts bits. Neither kernel ever touches memory outside the
buffer: bits written past its end are lost, bits read past its end are 0, and positions go on counting, so that one
comparison of the last position with 8 * len(buffer) tells whether the buffer was long enough.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ..errors import FormatError, TruncatedError

__all__ = [
    "bit_length",
    "finish_bits",
    "pack_fixed",
    "read_bits",
    "read_fixed",
    "unpack_fixed",
    "write_bits",
    "write_fixed",
]


@njit(cache=True)
def bit_length(value):
    """Number of bits of 0 <= value < 2**63, 0 for 0; without branches, which would be hard to predict."""
    v = np.int64(value)
    n = np.int64(v > 0xFFFFFFFF) << 5
    v >>= n
    k = np.int64(v > 0xFFFF) << 4
    v >>= k
    n += k
    k = np.int64(v > 0xFF) << 3
    v >>= k
    n += k
    k = np.int64(v > 0xF) << 2
    v >>= k
    n += k
    k = np.int64(v > 3) << 1
    v >>= k
    return n + k + np.int64(v > 1) + np.int64(v > 0)


@njit(cache=True)
def write_bits(buffer, position, value, count):
    """Write the low `count` (0..64) bits of `value`, highest first, and return the position after them.

    Args:
        buffer: (n,) uint8; the bits to be written must still be 0.
        position: int64, where to write.
        value: uint64; bits above `count` are ignored.
        count: int64, number of bits.
    """
    v = np.uint64(value)
    left = np.int64(count)
    end = np.int64(position) + left
    while left > 0:
        at = end - left
        room = 8 - (at & 7)
        take = min(room, left)
        part = (v >> np.uint64(left - take)) & np.uint64((1 << take) - 1)
        if at >> 3 < len(buffer):
            buffer[at >> 3] |= np.uint8(part << np.uint64(room - take))
        left -= take
    return end


@njit(cache=True)
def read_bits(buffer, position, count):
    """The `count` (0..64) bits at `position` as a uint64, highest first; the caller adds `count` to the position."""
    at = np.uint64(position)
    byte = at >> np.uint64(3)
    if count <= 56 and byte + np.uint64(8) <= np.uint64(len(buffer)):  # one word holds them all: the usual case
        if count == 0:
            return np.uint64(0)
        word = np.uint64(0)
        for k in range(8):
            word |= np.uint64(buffer[byte + np.uint64(k)]) << np.uint64(56 - 8 * k)
        return (word << (at & np.uint64(7))) >> np.uint64(64 - count)
    return _read_bits_slowly(buffer, np.int64(position), np.int64(count))


@njit(cache=True)
def _read_bits_slowly(buffer, at, left):
    value = np.uint64(0)
    while left > 0:
        room = 8 - (at & 7)
        take = min(room, left)
        byte = np.uint64(buffer[at >> 3]) if at >> 3 < len(buffer) else np.uint64(0)
        part = (byte >> np.uint64(room - take)) & np.uint64((1 << take) - 1)
        value = (value << np.uint64(take)) | part
        at += take
        left -= take
    return value


@njit(cache=True)
def write_fixed(values, width, buffer):
    """Write the low `width` (0..32) bits of each of (n,) `values` (any integer dtype) from the start of `buffer`.

    The same bits as `write_bits` n times, several times as fast. `buffer` is a uint8 array of at least
    ceil(n * width / 8) bytes; returns that number.
    """
    size = (len(values) * np.int64(width) + 7) >> 3
    if len(buffer) < size:
        return size
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    pending = np.uint64(0)
    held = np.int64(0)
    out = 0
    for k in range(len(values)):
        pending = (pending << np.uint64(width)) | (np.uint64(values[k]) & mask)
        held += width
        while held >= 8:
            held -= 8
            buffer[out] = np.uint8((pending >> np.uint64(held)) & np.uint64(255))
            out += 1
    if held:
        buffer[out] = np.uint8((pending << np.uint64(8 - held)) & np.uint64(255))
    return size


@njit(cache=True)
def read_fixed(buffer, width, values):
    """Inverse of `write_fixed`: fills (n,) `values` and returns the bytes used; missing bytes read as 0."""
    size = (len(values) * np.int64(width) + 7) >> 3
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    pending = np.uint64(0)
    held = np.int64(0)
    at = 0
    for k in range(len(values)):
        while held < width:
            byte = np.uint64(buffer[at]) if at < len(buffer) else np.uint64(0)
            pending = (pending << np.uint64(8)) | byte
            at += 1
            held += 8
        held -= width
        values[k] = (pending >> np.uint64(held)) & mask
    return size


def pack_fixed(values: npt.NDArray[np.integer], width: int) -> bytes:
    """The low `width` (0..32) bits of each value, back to back; the last byte is filled with zeros."""
    buffer = np.empty((len(values) * width + 7) // 8, np.uint8)
    write_fixed(values, width, buffer)
    return buffer.tobytes()


def unpack_fixed(buffer: bytes | memoryview, width: int, count: int) -> npt.NDArray[np.uint32]:
    """Inverse of `pack_fixed`: (count,) uint32.

    Raises:
        FormatError: the buffer is not exactly as long as the values need, or its last bits are not 0.
    """
    raw = np.frombuffer(buffer, np.uint8)
    finish_bits(raw, count * width)
    values = np.empty(count, np.uint32)
    read_fixed(raw, width, values)
    return values


def finish_bits(buffer: npt.NDArray[np.uint8], position: int) -> None:
    """Check that a bit string ends at `position`, but for zeros that fill its last byte.

    Raises:
        TruncatedError: it is shorter.
        FormatError: it is longer, or the bits that fill its last byte are not 0.
    """
    if position > 8 * len(buffer):
        raise TruncatedError(f"{len(buffer)} bytes of raw bits, {(position + 7) // 8} needed")
    if (position + 7) // 8 != len(buffer):
        raise FormatError("raw bits are left over")
    if position & 7 and int(buffer[-1]) & ((1 << (8 - (position & 7))) - 1):
        raise FormatError("the bits that fill the last byte are not 0")
