"""A file of another format kept as it is, where its numbers as columns would take more bytes (SPEC.md, section 1.7).

file -> FILE, and back
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bitstream.container import Chunk, Container
from ..errors import FormatError, SplatCodecError, TruncatedError, UnsupportedError
from ..files import PathLike, atomic_write
from ..formats import formats
from ..formats import read as read_format
from ..formats._native import NativeFormat, by_code
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from .lossless import HashingFile

__all__ = ["FEATURE", "decode_gaussians", "file_chunk", "format_name", "is_smaller", "write_file"]

FEATURE = "stored-1"
_ENTRY_BYTES = 16  # about, of the table of contents


def is_smaller(file_bytes: int, chunks: Sequence[Chunk]) -> bool:
    """Whether a file of so many bytes is smaller than the chunks of its columns."""
    return file_bytes + 1 + _ENTRY_BYTES < sum(len(chunk.payload) + _ENTRY_BYTES for chunk in chunks)


def file_chunk(path: PathLike, native: NativeFormat) -> Chunk:
    """The FILE chunk of a file, or of a SOG folder as the bundle that holds its files."""
    if os.path.isdir(path):
        from ..formats._sog_read import META
        from ..formats.sog import write_bundle

        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
        names.sort(key=lambda name: name != META)
        bundle = io.BytesIO()
        write_bundle(bundle, {name: (Path(path) / name).read_bytes() for name in names})
        return Chunk("FILE", bytes([native.code]) + bundle.getvalue())
    return Chunk("FILE", bytes([native.code]) + Path(path).read_bytes())


def _file_of(container: Container) -> tuple[NativeFormat, memoryview]:
    """The format, and the bytes of the file."""
    entry = container.one("FILE")
    payload = container.read(entry)
    try:
        if not payload:
            raise TruncatedError("the chunk is empty", offset=entry.offset)
        native = by_code(payload[0])
        if native is None:
            raise UnsupportedError(f"kept format number {payload[0]} is not known", offset=entry.offset)
    except SplatCodecError as error:
        raise error.locate(file=container.name, chunk="FILE") from None
    return native, memoryview(payload)[1:]


def format_name(container: Container) -> str:
    """Name of the format of the file."""
    return _file_of(container)[0].name


def decode_gaussians(container: Container, metadata: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """The Gaussians of the file.

    Raises:
        SplatCodecError: damaged, or not as many as the header says.
    """
    native, content = _file_of(container)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scene{formats()[native.name].suffixes[0]}"
        path.write_bytes(content)
        try:
            scene = read_format(path, format=native.name, limits=limits)
            if len(scene) != container.num_gaussians:
                raise FormatError(f"{len(scene)} Gaussians, the header says {container.num_gaussians}")
        except SplatCodecError as error:
            error.file = error.chunk = error.offset = None  # of a file that is gone
            raise error.locate(file=container.name, chunk="FILE") from None
    return replace(scene, metadata={**scene.metadata, **metadata})


def write_file(container: Container, metadata: Mapping[str, Any], path: PathLike, overwrite: bool) -> dict[str, Any]:
    """Write the file; returns what `native.write_file` does."""
    _, content = _file_of(container)
    with atomic_write(path, overwrite) as file:
        hashed = HashingFile(file)
        hashed.write(bytes(content))
    source = metadata.get("source")
    known = source.get("sha256") if isinstance(source, dict) else None
    found = hashed.digest.hexdigest()
    same = None if known is None else known == found
    return {
        "identical": same,
        "identical_content": None if same is None else same,
        "differs": ["the content of the file"] if same is False else [],
        "sha256": found,
    }
