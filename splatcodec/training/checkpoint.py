"""Checkpoints: arrays by name and a JSON header in one file, written whole or not at all, nothing in it ever executed.

Layout: 8 bytes magic, 8 bytes length of the header (little endian), the header (JSON, UTF-8: `version`, `state`, and
`arrays`, a list of name, dtype, shape and CRC-32), then the arrays' bytes in that order, C-contiguous, little endian.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ChecksumError, FormatError, LimitExceededError, SplatCodecError, TruncatedError, UnsupportedError
from ..files import PathLike, atomic_write, open_for_reading, os_error
from ..limits import DEFAULT_LIMITS, Limits

__all__ = ["read_checkpoint", "write_checkpoint"]

_MAGIC = b"SPLCTRN\n"
_VERSION = 1
_DTYPES = {"<f4", "<f8", "<i4", "<i8", "|u1", "|b1"}


def write_checkpoint(path: PathLike, state: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Replace the checkpoint at `path` in one step.

    Args:
        path: the file.
        state: JSON-able.
        arrays: by name; float, integer or bool.

    Raises:
        ParameterError, SplatCodecError: the file cannot be written.
    """
    listed = []
    contents = []
    for name, array in arrays.items():
        content = np.ascontiguousarray(array)
        content = content.astype(content.dtype.newbyteorder("<"), copy=False)
        assert content.dtype.str in _DTYPES, (name, content.dtype)
        contents.append(content.reshape(-1).view(np.uint8).data)
        listed.append([name, content.dtype.str, list(array.shape), zlib.crc32(contents[-1])])
    header = json.dumps({"version": _VERSION, "state": state, "arrays": listed}, allow_nan=False).encode()
    with atomic_write(path, overwrite=True) as file:
        file.write(_MAGIC + struct.pack("<Q", len(header)) + header)
        for bytes_ in contents:
            file.write(bytes_)


def read_checkpoint(
    path: PathLike, limits: Limits = DEFAULT_LIMITS
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """State and arrays of a checkpoint.

    Raises:
        FormatError: not a checkpoint, or damaged (TruncatedError, ChecksumError).
        UnsupportedError: of another version.
        LimitExceededError: it asks for more memory than is allowed.
        ParameterError: there is no such file.
    """
    try:
        with open_for_reading(path) as file:
            head = file.read(16)
            if head[:8] != _MAGIC:
                raise FormatError("not a checkpoint of a training run", offset=0)
            if len(head) < 16:
                raise TruncatedError("the file ends in its header", offset=len(head))
            (length,) = struct.unpack("<Q", head[8:])
            if length > limits.max_json_bytes:
                raise LimitExceededError(f"a header of {length} bytes", offset=8)
            text = file.read(length)
            if len(text) < length:
                raise TruncatedError("the file ends in its header", offset=16 + len(text))
            state, listed = _parse(text)
            arrays = {}
            at = 16 + length
            limits.check_bytes(sum(_size_bytes(dtype, shape) for _, dtype, shape, _ in listed), "the checkpoint")
            for name, dtype, shape, crc in listed:
                size_bytes = _size_bytes(dtype, shape)
                content = file.read(size_bytes)
                if len(content) < size_bytes:
                    raise TruncatedError("the file ends too early", chunk=name, offset=at + len(content))
                if zlib.crc32(content) != crc:
                    raise ChecksumError("the checksum does not match", chunk=name, offset=at)
                arrays[name] = np.frombuffer(content, np.dtype(dtype)).reshape(shape)
                at += size_bytes
            if file.read(1):
                raise FormatError("there are bytes after the end", offset=at)
    except SplatCodecError as error:
        raise error.locate(file=str(path)) from None
    except OSError as error:
        raise os_error(error, path, "read") from None
    return state, arrays


def _size_bytes(dtype: str, shape: list[int]) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _parse(text: bytes) -> tuple[dict[str, Any], list[tuple[str, str, list[int], int]]]:
    try:
        header = json.loads(text.decode())
        version, state = header["version"], header["state"]
        if version != _VERSION:
            raise UnsupportedError(f"a checkpoint of version {version}, this build knows {_VERSION}")
        listed = []
        for name, dtype, shape, crc in header["arrays"]:
            if dtype not in _DTYPES or not isinstance(name, str) or not isinstance(crc, int):
                raise ValueError
            if not all(type(n) is int and 0 <= n < 1 << 40 for n in shape) or len(shape) > 4:
                raise ValueError
            listed.append((name, dtype, list(shape), crc))
        if not isinstance(state, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError("the header is damaged", offset=16) from None
    return state, listed
