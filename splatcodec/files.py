"""Opening, reading and atomically writing files, with every failure told as one SplatCodecError."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO

from .errors import LimitExceededError, ParameterError, SplatCodecError, TruncatedError

__all__ = ["PathLike", "atomic_folder", "atomic_write", "open_for_reading", "os_error", "read_bytes"]

PathLike = str | os.PathLike[str]

# These say that the path is wrong, so the caller can mend it; anything else is the machine's trouble.
_PATH_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


def os_error(error: OSError, path: PathLike, doing: str) -> SplatCodecError:
    """The SplatCodecError for `error`: ParameterError when the path is at fault, else SplatCodecError.

    >>> str(os_error(FileNotFoundError(2, "No such file or directory"), "a.ply", "read"))
    'a.ply: cannot read: No such file or directory'
    """
    kind = ParameterError if error.errno in _PATH_ERRNOS else SplatCodecError
    return kind(f"cannot {doing}: {error.strerror or error}", file=_shown(path))


def _shown(path: PathLike) -> str:
    try:
        return os.fspath(path)
    except TypeError:
        return repr(path)


def _checked(path: PathLike) -> str:
    """`path` as text, or a ParameterError where no file can have that name."""
    try:
        text = os.fsdecode(os.fspath(path))
    except TypeError:
        raise ParameterError(f"{path!r} is not a path") from None
    if not text or "\0" in text:
        raise ParameterError(f"{text!r} is not a path")
    return text


def open_for_reading(path: PathLike) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises:
        ParameterError: there is no such file, it is a directory or another special file, or it may not be read.
        SplatCodecError: the system failed in another way.
    """
    name = _checked(path)
    try:
        # Looked at before it is opened: opening a pipe would wait for a writer for ever.
        mode = os.stat(name).st_mode
        if stat.S_ISDIR(mode):
            raise ParameterError("is a directory, not a file", file=name)
        if not stat.S_ISREG(mode):
            raise ParameterError("is not a regular file", file=name)
        return open(name, "rb")
    except OSError as error:
        raise os_error(error, name, "read") from None


def read_bytes(path: PathLike, limit_bytes: int) -> bytes:
    """The whole file, if it has at most `limit_bytes` bytes.

    Raises:
        LimitExceededError: the file is longer.
        ParameterError, SplatCodecError: as `open_for_reading`.
    """
    with open_for_reading(path) as handle:
        try:
            size_bytes = os.fstat(handle.fileno()).st_size
            if size_bytes > limit_bytes:
                raise LimitExceededError(f"{size_bytes} bytes, more than the limit of {limit_bytes}", file=_shown(path))
            content = handle.read(size_bytes)
        except OSError as error:
            raise os_error(error, path, "read") from None
    if len(content) < size_bytes:
        raise TruncatedError("the file shrank while it was read", file=_shown(path), offset=len(content))
    return content


@contextlib.contextmanager
def atomic_write(path: PathLike, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write to; it appears under `path`, whole, only when the block ends without an error.

    The bytes go to a temporary file beside the target, reach the disk (fsync) and take the target's name in one step.
    After any failure the temporary file is gone and an existing target is as it was. A symbolic link is followed.

    Args:
        path: where the file shall be.
        overwrite: replace an existing file.

    Raises:
        ParameterError: the target exists and `overwrite` is false, is not a regular file, or its folder cannot be
            written.
        SplatCodecError: the disk is full, or the system failed in another way.
    """
    name = _checked(path)
    target = os.path.realpath(name)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise os_error(error, name, "write") from None
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise ParameterError("is a directory, not a file", file=name)
        if not stat.S_ISREG(mode):
            raise ParameterError("is not a regular file", file=name)
        if not overwrite:
            raise _exists(name)
    temporary = os.path.join(os.path.dirname(target), f".splatcodec-{secrets.token_hex(8)}.tmp")
    try:
        # 0o666 less the umask, as any new file; the temporary-file modules make theirs private.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise os_error(error, name, "write") from None
    handle: BinaryIO | None = None
    try:
        handle = open(descriptor, "wb")  # noqa: SIM115
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
        handle.close()
        if mode is not None:
            with contextlib.suppress(OSError):
                os.chmod(temporary, stat.S_IMODE(mode))
        _rename(temporary, target, name, overwrite)
    except BaseException as error:
        if handle is None:
            os.close(descriptor)
        else:
            with contextlib.suppress(OSError, ValueError):
                handle.close()  # flushes, so it may meet the same full disk again
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise os_error(error, name, "write") from None
        raise
    _sync_folder(os.path.dirname(target))


@contextlib.contextmanager
def atomic_folder(path: PathLike, overwrite: bool = False, last: str | None = None) -> Iterator[str]:
    """A new folder to fill with files; what is in it appears under `path` only when the block ends without an error.

    A target that does not exist, or is an empty folder, appears whole in one step. In a folder with content the new
    files replace those of the same names, one by one, `last` after all others; nothing else in it is touched.

    Args:
        path: the folder.
        overwrite: replace existing files.
        last: name of the file that the others hang from; a reader that finds it finds the others.

    Raises:
        ParameterError: `last` (or any of the new files) exists and `overwrite` is false, the target is no folder, or
            the folder around it cannot be written.
        SplatCodecError: the disk is full, or the system failed in another way.
    """
    name = _checked(path)
    target = os.path.realpath(name)
    temporary = os.path.join(os.path.dirname(target), f".splatcodec-{secrets.token_hex(8)}.tmp")
    try:
        exists = os.path.lexists(target)
        if exists and not os.path.isdir(target):
            raise ParameterError("is a file, not a folder", file=name)
        if last is not None and not overwrite and os.path.lexists(os.path.join(target, last)):
            raise _exists(os.path.join(name, last))
        os.mkdir(temporary)
    except OSError as error:
        raise os_error(error, name, "write") from None
    try:
        yield temporary
        paths = [os.path.join(folder, file) for folder, _, names in os.walk(temporary) for file in names]
        files = [os.path.relpath(path, temporary) for path in paths]
        files.sort(key=lambda file: (file == last, file))
        for file in files:
            _sync_file(os.path.join(temporary, file))
        if not exists or not os.listdir(target):
            os.rename(temporary, target)  # an empty folder may be replaced so
        else:
            _move_into(temporary, target, files, name, overwrite)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise os_error(error, name, "write") from None
        raise
    shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(os.path.dirname(target))


def _move_into(temporary: str, target: str, files: list[str], name: str, overwrite: bool) -> None:
    for file in files:
        there = os.path.join(target, file)
        if os.path.isdir(there) or (not overwrite and os.path.lexists(there)):
            raise _exists(os.path.join(name, file))
    for file in files:
        there = os.path.join(target, file)
        os.makedirs(os.path.dirname(there), exist_ok=True)
        os.replace(os.path.join(temporary, file), there)
    _sync_folder(target)


def _sync_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(name: str) -> ParameterError:
    return ParameterError("the file exists already", file=name, hint="--overwrite replaces it")


def _rename(temporary: str, target: str, name: str, overwrite: bool) -> None:
    if not overwrite:
        # A hard link fails where the target exists, so a file that appeared meanwhile is not lost.
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise _exists(name) from None
        except OSError:  # no hard links on this file system
            if os.path.lexists(target):
                raise _exists(name) from None
        else:
            os.unlink(temporary)
            return
    os.replace(temporary, target)


def _sync_folder(folder: str) -> None:
    """Make the new name durable; some systems cannot, and the content is safe without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
