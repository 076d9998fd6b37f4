"""Exit codes of the command line, and which error ends with which."""

from __future__ import annotations

from enum import IntEnum

from ..errors import (
    BackendUnavailableError,
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecError,
    UnknownIdError,
    UnsupportedError,
)

__all__ = ["ExitCode", "exit_code"]


class ExitCode(IntEnum):
    """What the process returns (docs/cli.md)."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    BAD_FILE = 3
    UNSUPPORTED = 4
    LIMIT = 5
    BACKEND = 6
    CHECK_FAILED = 7
    INTERRUPTED = 130
    TERMINATED = 143


_OF_ERROR: tuple[tuple[type[SplatCodecError], ExitCode], ...] = (
    (ParameterError, ExitCode.USAGE),
    (UnknownIdError, ExitCode.USAGE),
    (FormatError, ExitCode.BAD_FILE),
    (UnsupportedError, ExitCode.UNSUPPORTED),
    (LimitExceededError, ExitCode.LIMIT),
    (BackendUnavailableError, ExitCode.BACKEND),
)


def exit_code(error: SplatCodecError) -> ExitCode:
    """The exit code of an error; the machine's own troubles (a full disk) are INTERNAL.

    >>> exit_code(FormatError("bad magic")).name
    'BAD_FILE'
    """
    return next((code for kind, code in _OF_ERROR if isinstance(error, kind)), ExitCode.INTERNAL)
