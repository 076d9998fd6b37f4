"""Buffer views of glTF compressed by EXT_meshopt_compression or KHR_meshopt_compression: attribute streams and filters.

An attribute stream codes every byte of an element apart, as differences to the element before, in groups of 16 that
state how many bits each difference has. Versions 0 and 1 are read. Facts: KhronosGroup/glTF, the pages of both
extensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from ..errors import FormatError, UnsupportedError

__all__ = ["FILTERS", "decode_attributes", "unfiltered"]

_GROUP = 16
_MAX_BLOCK = 256
_BLOCK_BYTES = 8192
_VERSION_0, _VERSION_1 = 0xA0, 0xA1
# Smallest distance from the last group to the end of the stream.
_LEAST_TAIL = {_VERSION_0: 32, _VERSION_1: 24}
_BYTES, _SHORTS, _WORDS = 0, 1, 2
FILTERS = ("NONE", "QUATERNION", "EXPONENTIAL", "COLOR")


def decode_attributes(stream: bytes, count: int, stride: int) -> npt.NDArray[np.uint8]:
    """(count, stride) bytes of an attribute stream.

    Args:
        count: number of elements, 1 or more. stride: bytes of one, a multiple of 4 up to 256.

    Raises:
        FormatError: damaged; nothing is allocated that the stream cannot hold.
        UnsupportedError: a later version.
    """
    if stride % 4 or not 4 <= stride <= 256:
        raise FormatError(f"elements of {stride} bytes, expected a multiple of 4 up to 256")
    version = stream[0] if stream else 0
    if version not in _LEAST_TAIL:
        if version & 0xF0 == 0xA0:
            raise UnsupportedError(f"version {version & 0xF} of the attribute stream")
        raise FormatError("is no attribute stream")
    block = min(_BLOCK_BYTES // stride & ~(_GROUP - 1), _MAX_BLOCK)
    channels = stride // 4 if version == _VERSION_1 else 0
    tail = max(_LEAST_TAIL[version], stride + channels)
    # Every block states something of every byte, at least how its groups are coded.
    least = -(-count // block) * (channels or stride) + 1 + tail
    if len(stream) < least:
        raise FormatError(f"{count} elements need {least} bytes at least, the stream has {len(stream)}")
    data = np.frombuffer(stream, np.uint8)
    ends = data[len(data) - stride - channels :]
    modes = ends[stride:] if channels else np.zeros(stride // 4, np.uint8)
    if ((modes & 15) > _WORDS).any() or ((modes & 15 < _WORDS) & (modes >> 4 > 0)).any():
        raise FormatError("has an unknown way to tell differences")
    out = np.empty((count, stride), np.uint8)
    used = _decode(data[: len(data) - tail], version == _VERSION_1, block, modes, ends[:stride], out)
    if used != len(data) - tail:
        raise FormatError("does not end where its elements do")
    return out


@njit(cache=True)
def _decode(data: Any, second: bool, block: int, modes: Any, baseline: Any, out: Any) -> int:
    """Decode all elements; returns how many bytes they took, or -1 if the data end before."""
    count, stride = out.shape
    at = 1
    deltas = np.empty((stride, block), np.uint8)
    last = baseline.copy()
    for start in range(0, count, block):
        elements = min(block, count - start)
        groups = (elements + _GROUP - 1) // _GROUP
        control = at
        if second:
            at += stride // 4
            if at > len(data):
                return -1
        for k in range(stride):
            mode = (data[control + k // 4] >> (k % 4 * 2)) & 3 if second else 1
            if mode == 2:
                deltas[k, : groups * _GROUP] = 0
                continue
            if mode == 3:
                if at + elements > len(data):
                    return -1
                deltas[k, :elements] = data[at : at + elements]
                at += elements
                continue
            header = at
            at += (groups + 3) // 4
            if at > len(data):
                return -1
            for g in range(groups):
                code = (data[header + g // 4] >> (g % 4 * 2)) & 3
                # Bits of a difference: 0 1 2 4, 1 2 4 8, or in version 0: 0 2 4 8.
                if second:
                    code += mode
                    bits = 0 if code == 0 else 1 << (code - 1)
                else:
                    bits = 0 if code == 0 else 1 << code
                at = _decode_group(data, at, bits, deltas[k, g * _GROUP : (g + 1) * _GROUP])
                if at < 0:
                    return -1
        for channel in range(stride // 4):
            k = channel * 4
            mode = modes[channel] & 15
            turn = np.uint32(modes[channel] >> 4)
            for i in range(elements):
                if mode == _BYTES:
                    for b in range(k, k + 4):
                        v = deltas[b, i]
                        last[b] += np.uint8(v >> 1) ^ np.uint8(0 - (v & 1))
                elif mode == _SHORTS:
                    for b in range(k, k + 4, 2):
                        w = np.uint32(deltas[b, i]) | np.uint32(deltas[b + 1, i]) << np.uint32(8)
                        v = np.uint32(last[b]) | np.uint32(last[b + 1]) << np.uint32(8)
                        v += w >> np.uint32(1) ^ (np.uint32(0) - (w & np.uint32(1)))
                        last[b] = np.uint8(v & np.uint32(255))
                        last[b + 1] = np.uint8(v >> np.uint32(8) & np.uint32(255))
                else:
                    w = np.uint32(0)
                    for b in range(4):
                        w |= np.uint32(deltas[k + b, i]) << np.uint32(8 * b)
                    w = w << turn | w >> (np.uint32(32) - turn & np.uint32(31))
                    for b in range(4):
                        last[k + b] ^= np.uint8(w >> np.uint32(8 * b) & np.uint32(255))
                out[start + i, k : k + 4] = last[k : k + 4]
    return at


@njit(cache=True)
def _decode_group(data: Any, at: int, bits: int, out: Any) -> int:
    """Decode 16 differences of so many bits; returns the place behind them, or -1."""
    if bits == 0:
        out[:] = 0
        return at
    if at + 2 * bits > len(data):
        return -1
    if bits == 8:
        out[:] = data[at : at + _GROUP]
        return at + _GROUP
    sentinel = (1 << bits) - 1
    each = 8 // bits
    more = at + 2 * bits
    for i in range(_GROUP):
        byte = data[at + i // each]
        # Of one bit the lowest comes first, of several the highest.
        shift = i % each if bits == 1 else 8 - bits * (i % each + 1)
        value = (byte >> shift) & sentinel
        if value == sentinel:
            if more >= len(data):
                return -1
            value = data[more]
            more += 1
        out[i] = value
    return more


def unfiltered(content: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    """What a filter (one of `FILTERS`) makes of decoded elements (count, stride); same shape.

    Raises:
        FormatError: the filter is not for elements of that size.
        UnsupportedError: another filter; "OCTAHEDRAL" is for normals, which Gaussians have not.
    """
    stride = content.shape[1]
    if name == "NONE":
        return content
    if name not in FILTERS:
        raise UnsupportedError(f"filter {name!r}")
    if name == "EXPONENTIAL":
        words = content.view("<i4")
        exponents = np.clip(words >> 24, -100, 100)
        return np.ldexp(((words << 8) >> 8).astype(np.float64), exponents).astype("<f4").view(np.uint8)
    if stride not in (8,) if name == "QUATERNION" else stride not in (4, 8):
        raise FormatError(f"filter {name!r} on elements of {stride} bytes")
    return _quaternions(content) if name == "QUATERNION" else _colors(content)


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """To whole numbers, halves away from zero."""
    return np.trunc(values + np.copysign(0.5, values))


def _quaternions(content: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    words = content.view("<i2").astype(np.int64)
    one = (words[:, 3] | 3).astype(np.float64)[:, None]
    kept = words[:, :3] / np.where(one == 0, 1, one) * np.sqrt(0.5)
    largest = np.sqrt(np.maximum(0, 1 - (kept * kept).sum(axis=1, keepdims=True)))
    turned = _rounded(np.concatenate([largest, kept], axis=1) * 32767)
    columns = ((words[:, 3] & 3)[:, None] + np.arange(4)) % 4
    out = np.empty((len(content), 4), "<i2")
    np.put_along_axis(out, columns, np.clip(turned, -32768, 32767).astype("<i2"), axis=1)
    return out.view(np.uint8)


def _colors(content: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    short = content.shape[1] == 8
    words = content.view("<i2" if short else "i1").astype(np.int64)
    limit = 65535 if short else 255
    alpha = words[:, 3] & limit
    full = (1 << np.frexp(alpha.astype(np.float64))[1].astype(np.int64)) - 1
    luma, orange, green = words[:, 0] & limit, words[:, 1], words[:, 2]
    alpha &= full >> 1
    alpha = alpha << 1 | alpha & 1
    channels = np.stack([luma + orange - green, luma + green, luma - orange - green, alpha], axis=1)
    scaled = _rounded(channels * (limit / np.maximum(full, 1).astype(np.float64))[:, None])
    return np.clip(scaled, 0, limit).astype("<u2" if short else "u1").view(np.uint8)
