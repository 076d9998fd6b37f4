"""Every error that splatcodec raises on purpose.

Errors are sorted by who has to act: the file is bad (`FormatError`), the file is fine but too new or too large
(`UnsupportedError`, `LimitExceededError`), the caller passed nonsense (`ParameterError`), or something is not
installed (`BackendUnavailableError`). Each one can say where: file, chunk, byte offset and field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendUnavailableError",
    "ChecksumError",
    "FormatError",
    "LimitExceededError",
    "ParameterError",
    "SplatCodecError",
    "SplatCodecWarning",
    "TruncatedError",
    "UnknownIdError",
    "UnsupportedError",
]


class SplatCodecWarning(UserWarning):
    """Something was dropped, clamped or assumed; the message says what and how much."""


class SplatCodecError(Exception):
    """Base of all errors raised by splatcodec.

    Args:
        message: what is wrong, in one sentence.
        file: path or name of the input.
        chunk: name of the chunk, stream or element inside the file.
        offset: byte offset in the file where the problem was found.
        field: name of the field.
        hint: what to try.

    The location may be filled in later, by a caller that knows more, with `locate`.

    >>> str(FormatError("bad magic", file="a.splc", offset=0))
    'a.splc: byte 0: bad magic'
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        chunk: str | None = None,
        offset: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.chunk = chunk
        self.offset = offset
        self.field = field
        self.hint = hint

    def locate(
        self, *, file: str | None = None, chunk: str | None = None, offset: int | None = None
    ) -> SplatCodecError:
        """Fill in the parts of the location that are still unknown and return self."""
        if self.file is None:
            self.file = file
        if self.chunk is None:
            self.chunk = chunk
        if self.offset is None:
            self.offset = offset
        return self

    def __str__(self) -> str:
        where = []
        if self.file is not None:
            where.append(str(self.file))
        if self.chunk is not None:
            where.append(f"chunk {self.chunk}")
        if self.offset is not None:
            where.append(f"byte {self.offset}")
        if self.field is not None:
            where.append(f"field {self.field}")
        text = ": ".join([*where, self.message])
        return f"{text} ({self.hint})" if self.hint else text


class FormatError(SplatCodecError, ValueError):
    """The bytes do not follow the format they claim to be."""


class TruncatedError(FormatError):
    """The file ends before its own header says it does."""


class ChecksumError(FormatError):
    """A stored checksum does not match the bytes."""


class UnsupportedError(SplatCodecError):
    """The file is well formed but needs a version or feature this build does not have."""


class LimitExceededError(SplatCodecError):
    """Decoding would need more memory or more Gaussians than `limits` allows."""


class ParameterError(SplatCodecError, ValueError):
    """The caller passed an argument that cannot be right."""


class UnknownIdError(SplatCodecError, LookupError):
    """A name (format, profile, method) that is not registered; the message lists near ones."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], **location: str | None) -> UnknownIdError:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3) or names
        return cls(f"unknown {kind} {name!r}", hint="known: " + ", ".join(near), **location)  # type: ignore[arg-type]


class BackendUnavailableError(SplatCodecError):
    """An optional package or device is missing; the message says how to get it."""
