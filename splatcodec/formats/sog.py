"""SOG: splats as lossless WebP textures with a JSON description, in a folder or bundled in a ZIP.

Versions 1 and 2 are read (`_sog_read`), version 2 is written (`_sog_encode`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ._losses import Tally, drawable, is_json, lost_extras, lost_gaussians, lost_metadata, out_of_range
from ._packing import row_blocks
from ._sog_read import MAX_LOG_POSITION, META, ZIP_MAGIC, PackedScene, opened, read_scene
from ._spill import folder_of, on_disk
from .base import BLOCK_ROWS, DEFAULT_OPTIONS, Blocks, ErrorBounds, Format, WriteOptions

__all__ = ["FORMAT", "read", "spilled", "write", "write_folder"]

_MAX_POSITION = float(np.expm1(MAX_LOG_POSITION))
# Whatever the day, the same bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Gaussians:
    """Read a SOG scene: a bundle, a folder, or the `meta.json` in a folder.

    Positions are off by up to half a step of 1/65535 of the logarithmic range (a whole one from writers that truncate),
    quaternion components by 1/361, alpha by 1/255; scales and colours are as near as the codebooks have them.
    `metadata` gets `antialiased` where stated, `sog` (version, and generator where stated), and what this package's
    writer kept of the scene's own.

    Raises:
        FormatError: damaged; the chunk is the texture's or `meta.json`'s name. TruncatedError, ChecksumError likewise.
        UnsupportedError: a later version, or lossy or encrypted textures.
        LimitExceededError: more than `limits` allows, or textures far larger than the scene needs.
    """
    with opened(path) as source:
        return read_scene(source, limits)


@contextlib.contextmanager
def open_blocks(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[Blocks]:
    """`read`, block by block, from the textures: 20 bytes a Gaussian."""
    with opened(path) as source:
        scene = PackedScene(source, limits)

    def rows() -> Iterator[Gaussians]:
        return (scene.rows(part) for part in row_blocks(scene.num_gaussians, BLOCK_ROWS))

    yield Blocks(scene.num_gaussians, scene.sh_degree, rows, metadata=scene.metadata)


def _files(gaussians: Gaussians, options: WriteOptions) -> tuple[dict[str, bytes], list[str]]:
    from ._sog_encode import encode_sog

    scene = drawable(gaussians, options)
    metadata = {name: value for name, value in scene.metadata.items() if is_json(value)}
    files, dropped = encode_sog(
        scene.replaced(metadata=metadata),
        quality=options.quality,
        threads=options.threads,
        progress=options.progress,
    )
    if not dropped:
        return files, []
    return files, [f"{dropped} Gaussians that hardly show left out, as quality {options.quality:g} allows"]


def write(gaussians: Gaussians, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """Write one bundled file.

    Returns:
        What the quality left out.
    """
    files, losses = _files(gaussians, options)
    write_bundle(file, files)
    return losses


def write_blocks(blocks: Blocks, file: BinaryIO, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write` without a quality, from blocks, which are laid down in a file beside the target first."""
    with spilled(blocks, folder_of(file), options) as (scene, told):
        write_bundle(file, _files(scene, options)[0])
    return told


def write_folder_blocks(blocks: Blocks, folder: Path, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """`write_folder` from blocks; see `write_blocks`."""
    with spilled(blocks, folder, options) as (scene, told):
        _write_files(folder, _files(scene, options)[0])
    return told


@contextlib.contextmanager
def spilled(blocks: Blocks, folder: Path | None, options: WriteOptions) -> Iterator[tuple[Gaussians, list[str]]]:
    """The drawable part of a scene, and what is lost of it."""
    tally = Tally(lambda scene: losses(scene.replaced(metadata=blocks.metadata), options))
    rows = (tally.drawable(block) for block in blocks.rows())
    with on_disk(rows, blocks.sh_degree, blocks.metadata, folder) as scene:
        yield scene, tally.sentences()


def write_bundle(file: BinaryIO, files: Mapping[str, bytes]) -> None:
    """Write files by name as one ZIP."""
    import zipfile  # slow to load, and most programs read and write other formats

    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            # Textures are packed already. Every reader known inflates.
            method = zipfile.ZIP_DEFLATED if name == META else zipfile.ZIP_STORED
            info = zipfile.ZipInfo(name, _ZIP_DATE)
            info.compress_type = method
            archive.writestr(info, content, compresslevel=9)


def write_folder(gaussians: Gaussians, folder: Path, options: WriteOptions = DEFAULT_OPTIONS) -> list[str]:
    """Write `meta.json` and its textures into a folder; else as `write`."""
    files, losses = _files(gaussians, options)
    _write_files(folder, files)
    return losses


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def losses(gaussians: Gaussians, options: WriteOptions) -> list[str]:
    """What a SOG will not hold of the scene; see `Format.losses`."""
    scene = drawable(gaussians, options)
    kept = [name for name, value in scene.metadata.items() if is_json(value)]
    usual = "values rounded by how much they show; axes of ellipsoids renamed; order changed"
    return [
        *lost_extras(gaussians),
        *lost_metadata(gaussians, kept),
        *lost_gaussians(gaussians, options),
        *out_of_range("positions", scene.means, -_MAX_POSITION, _MAX_POSITION),
        *([usual] if options.quality is None else ()),
    ]


def _error_bounds(gaussians: Gaussians, options: WriteOptions) -> ErrorBounds:
    from ._sog_encode import largest_errors

    return largest_errors(drawable(gaussians, options), options.threads)


def _sniff(head: bytes, path: Path) -> bool:
    if not head:
        return os.path.isfile(path / META)
    return head.startswith(ZIP_MAGIC) or path.name == META


FORMAT = Format(
    name="sog",
    title="SOG",
    suffixes=(".sog",),
    read=read,
    write=write,
    sniff=_sniff,
    write_path=write_folder,
    index_name=META,
    losses=losses,
    error_bounds=_error_bounds,
    takes_quality=True,
    open_blocks=open_blocks,
    write_blocks=write_blocks,
    write_path_blocks=write_folder_blocks,
)
