"""Other people's splat files to and from `Gaussians`: one module a format, found without a list.

>>> sorted(formats())
['compressed-ply', 'glb', 'ksplat', 'ply', 'sog', 'sog-stream', 'splat', 'spz']
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from ..errors import (
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecError,
    SplatCodecWarning,
    TruncatedError,
    UnknownIdError,
    UnsupportedError,
)
from ..files import PathLike, atomic_folder, atomic_write, open_for_reading, os_error
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from .base import DEFAULT_OPTIONS, HEAD_BYTES, Blocks, ErrorBounds, Format, WriteOptions

__all__ = [
    "Blocks",
    "ErrorBounds",
    "Format",
    "WriteOptions",
    "detect",
    "formats",
    "open_blocks",
    "read",
    "write",
    "write_blocks",
    "writes_blocks",
]

_SEPARATORS = (os.sep, os.altsep) if os.altsep else (os.sep,)


@functools.cache
def formats() -> Mapping[str, Format]:
    """Every format by name: the `FORMAT` of each module here whose name has no leading underscore."""
    found: dict[str, Format] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_") or module.name == "base":
            continue
        fmt = importlib.import_module(f"{__name__}.{module.name}").FORMAT
        assert isinstance(fmt, Format), module.name
        assert fmt.name not in found, fmt.name
        found[fmt.name] = fmt
    return MappingProxyType(found)


def _named(name: str) -> Format:
    known = formats()
    if name not in known:
        raise UnknownIdError.of("format", name, known)
    return known[name]


def _of_suffix(path: Path) -> tuple[Format, str] | None:
    """The format with the longest suffix that `path` ends in, and that suffix."""
    name = path.name.lower()
    ends = [(fmt, suffix) for fmt in formats().values() for suffix in fmt.suffixes if name.endswith(suffix)]
    return max(ends, key=lambda end: len(end[1]), default=None)


def format_of_target(path: PathLike) -> str | None:
    """Name of the format that `write` would choose for a file by its suffix, or None."""
    named = _of_suffix(_as_path(path))
    return None if named is None else named[0].name


def _as_path(path: PathLike) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise ParameterError(f"{path!r} is not a path") from None


def detect(path: PathLike) -> Format:
    """The format of a file (or of a SOG folder): by its first bytes, else by its suffix.

    Args:
        path: an existing file, or a folder that holds a SOG `meta.json`.

    Raises:
        FormatError: the content is no known format, whatever the suffix says.
        ParameterError: there is no such file, it may not be read, or it is a directory without a scene.
    """
    where = _as_path(path)
    if os.path.isdir(where):
        for fmt in formats().values():
            if fmt.sniff(b"", where):
                return fmt
        raise ParameterError("is a directory without a scene", file=str(path), hint="a SOG folder holds meta.json")
    with open_for_reading(where) as handle:
        try:
            head = handle.read(HEAD_BYTES)
        except OSError as error:
            raise os_error(error, where, "read") from None
    for fmt in formats().values():
        if fmt.sniff(head, where):
            return fmt
    named = _of_suffix(where)
    if not head:
        raise TruncatedError("the file is empty", file=str(path), offset=0)
    if named is None:
        known = ", ".join(suffix for fmt in formats().values() for suffix in fmt.suffixes)
        raise FormatError(
            f"neither the first bytes ({_printed(head)}) nor the suffix are those of a known format",
            file=str(path),
            offset=0,
            hint=f"known suffixes: {known}",
        )
    fmt, suffix = named
    if fmt.has_magic:
        raise FormatError(
            f"the suffix {suffix} says {fmt.title}, but the first bytes ({_printed(head)}) are not those of that "
            "or any other known format",
            file=str(path),
            offset=0,
        )
    return fmt


def _printed(head: bytes) -> str:
    return head[:8].hex(" ")


def read(path: PathLike, *, format: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a scene.

    Args:
        path: a file, or the folder or `meta.json` of an unbundled SOG.
        format: name of its format; None finds out (see `detect`).
        limits: what may be allocated.

    Returns:
        The Gaussians, raw, in the file's own frame and order. Values that the file cannot hold exactly are as its
        format rounds them; nothing is cleaned (see `Gaussians.cleaned`).

    Raises:
        FormatError: the file is damaged or not of this format; TruncatedError if it ends early.
        UnsupportedError: a version or feature that this build cannot read.
        LimitExceededError: the scene is larger than `limits` allows.
        ParameterError: the path is wrong; UnknownIdError: the format name is.
    """
    where = _as_path(path)
    fmt = detect(where) if format is None else _named(format)
    try:
        return fmt.read(where, limits)
    except SplatCodecError as error:
        error.locate(file=str(path))
        raise
    except OSError as error:
        raise os_error(error, path, "read") from None
    except MemoryError:
        raise LimitExceededError("there is not enough memory for this scene", file=str(path)) from None


def write(
    gaussians: Gaussians,
    path: PathLike,
    *,
    format: str | None = None,
    overwrite: bool = False,
    options: WriteOptions = DEFAULT_OPTIONS,
) -> list[str]:
    """Write a scene, whole or not at all (see `splatcodec.files.atomic_write` and `atomic_folder`).

    The target is a folder if the last part of `path` is the index name of a format that can be one ("meta.json": then
    the folder is the one around it), if `path` ends with a separator, or if it is an existing directory; in the last
    two cases `format` must be given. Else it is one file.

    Args:
        gaussians: the scene.
        path: where to.
        format: name of the format; None goes by the last part of `path`.
        overwrite: replace an existing file, or the files of those names in an existing folder.
        options: how.

    Returns:
        What the file does not hold of the scene, a sentence each. Each is a SplatCodecWarning, too.

    Raises:
        UnknownIdError: no format of that name or suffix.
        UnsupportedError: the format can only be read, or not be written in that version.
        ParameterError: the file exists, cannot be made, the scene does not fit the format, or an option means nothing
            to it.
        SplatCodecError: the disk is full, or the system failed in another way.
    """
    fmt, _ = _target_of(path, format)

    def fill_file(handle: BinaryIO) -> list[str]:
        assert fmt.write is not None
        losses = fmt.losses(gaussians, options) if fmt.losses is not None else []
        return [*losses, *(fmt.write(gaussians, handle, options) or ())]

    def fill_folder(folder: Path) -> list[str]:
        assert fmt.write_path is not None
        losses = fmt.losses(gaussians, options) if fmt.losses is not None else []
        return [*losses, *(fmt.write_path(gaussians, folder, options) or ())]

    return _written(path, format, overwrite, options, fill_file, fill_folder)


def _target_of(path: PathLike, format: str | None) -> tuple[Format, Path | None]:
    where = _as_path(path)
    return _target(where, is_folder=os.fspath(path).endswith(_SEPARATORS) or os.path.isdir(where), format=format)


def _written(
    path: PathLike,
    format: str | None,
    overwrite: bool,
    options: WriteOptions,
    fill_file: Callable[[BinaryIO], list[str]],
    fill_folder: Callable[[Path], list[str]],
) -> list[str]:
    """Let a target be filled, which appears whole or not at all, and warn of the losses that filling it tells."""
    where, text = _as_path(path), os.fspath(path)
    fmt, folder = _target_of(path, format)
    _check_options(fmt, options, text)
    try:
        # Refused before the work, not after it; looked at again when the file takes its name.
        index = None if folder is None or fmt.index_name is None else folder / fmt.index_name
        if not overwrite and os.path.lexists(index or where):
            raise ParameterError("the file exists already", file=text, hint="--overwrite replaces it")
        if folder is not None:
            with atomic_folder(folder, overwrite, last=fmt.index_name) as temporary:
                losses = fill_folder(Path(temporary))
        else:
            with atomic_write(where, overwrite) as handle:
                losses = fill_file(handle)
    except SplatCodecError as error:
        error.locate(file=text)
        raise
    except OSError as error:
        raise os_error(error, path, "write") from None
    except MemoryError:
        raise LimitExceededError("there is not enough memory to write this scene", file=text) from None
    for loss in losses:
        warnings.warn(f"{fmt.title}: {loss}", SplatCodecWarning, stacklevel=3)
    return losses


@contextlib.contextmanager
def open_blocks(
    path: PathLike, *, format: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Blocks | None]:
    """A scene to be read block by block, in less memory than `read` takes; errors are those of `read`.

    Yields:
        The scene, readable while the context lasts; None where the format or this file needs to be read whole.
    """
    where = _as_path(path)
    fmt = detect(where) if format is None else _named(format)
    with contextlib.ExitStack() as stack:
        try:
            blocks = None
            if fmt.open_blocks is not None:
                with contextlib.suppress(UnsupportedError):
                    blocks = stack.enter_context(fmt.open_blocks(where, limits))
            if blocks is not None:
                blocks = replace(blocks, rows=_located(blocks.rows, path))
        except SplatCodecError as error:
            error.locate(file=str(path))
            raise
        except OSError as error:
            raise os_error(error, path, "read") from None
        yield blocks


def _located(rows: Callable[[], Iterator[Gaussians]], path: PathLike) -> Callable[[], Iterator[Gaussians]]:
    """The same blocks, with errors that name the file."""

    def located() -> Iterator[Gaussians]:
        try:
            yield from rows()
        except SplatCodecError as error:
            error.locate(file=str(path))
            raise
        except OSError as error:
            raise os_error(error, path, "read") from None

    return located


def writes_blocks(path: PathLike, *, format: str | None = None, options: WriteOptions = DEFAULT_OPTIONS) -> bool:
    """Whether `write_blocks` can write this target: of a format that can, without a quality."""
    fmt, folder = _target_of(path, format)
    return (fmt.write_blocks if folder is None else fmt.write_path_blocks) is not None and options.quality is None


def write_blocks(
    blocks: Blocks,
    path: PathLike,
    *,
    format: str | None = None,
    overwrite: bool = False,
    options: WriteOptions = DEFAULT_OPTIONS,
) -> list[str]:
    """`write` for a scene that is read block by block; the same bytes, the same losses, the same errors.

    Raises:
        UnsupportedError: the target needs the whole scene (see `writes_blocks`).
    """
    fmt, _ = _target_of(path, format)
    if not writes_blocks(path, format=format, options=options):
        raise UnsupportedError(f"{fmt.title} cannot be written in blocks so", file=os.fspath(path))

    def fill_file(handle: BinaryIO) -> list[str]:
        assert fmt.write_blocks is not None
        return fmt.write_blocks(blocks, handle, options)

    def fill_folder(folder: Path) -> list[str]:
        assert fmt.write_path_blocks is not None
        return fmt.write_path_blocks(blocks, folder, options)

    return _written(path, format, overwrite, options, fill_file, fill_folder)


def _target(where: Path, is_folder: bool, format: str | None) -> tuple[Format, Path | None]:
    """The format to write, and the folder if the target is one."""
    text = os.fspath(where)
    if format is not None:
        fmt = _named(format)
    else:
        by_index = [fmt for fmt in formats().values() if fmt.write_path and fmt.index_name == where.name.lower()]
        by_suffix = _of_suffix(where)
        if by_index:
            fmt = by_index[0]
        elif is_folder:
            names = [fmt.name for fmt in formats().values() if fmt.write_path is not None]
            raise ParameterError("is a folder", file=text, hint=f"name its format: {', '.join(names) or 'none can be'}")
        elif by_suffix is not None:
            fmt = by_suffix[0]
        else:
            known = [suffix for fmt in formats().values() if fmt.can_write for suffix in fmt.suffixes]
            if where.suffix != ".splc":  # which `splatcodec.write` and `convert` know, and ask here for all others
                known.append(".splc")
            raise UnknownIdError.of("suffix", "".join(where.suffixes) or where.name, known, file=text)
    if not fmt.can_write:
        raise UnsupportedError(f"{fmt.title} can be read but not written", file=text)
    if fmt.write_path is not None:
        if where.name.lower() == fmt.index_name and not is_folder:
            return fmt, where.parent
        if is_folder:
            return fmt, where
        if fmt.write is None:
            raise ParameterError(f"{fmt.title} is a folder", file=text, hint=f"{text}{os.sep} or {fmt.index_name}")
    elif is_folder:
        raise ParameterError(f"is a folder, but {fmt.title} is one file", file=text)
    return fmt, None


def _check_options(fmt: Format, options: WriteOptions, file: str) -> None:
    if options.version is not None and options.version not in fmt.versions:
        known = ", ".join(str(version) for version in sorted(fmt.versions)) or "it has none"
        raise UnsupportedError(
            f"version {options.version} of {fmt.title} cannot be written", file=file, field="version", hint=known
        )
    if options.quality is not None and not fmt.takes_quality:
        raise ParameterError(f"{fmt.title} has one quality only", file=file, field="quality")
