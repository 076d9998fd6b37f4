"""What a file format is to the rest of splatcodec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ParameterError
from ..gaussians import MAX_SH_DEGREE, Gaussians
from ..limits import Limits

__all__ = ["BLOCK_ROWS", "DEFAULT_OPTIONS", "HEAD_BYTES", "Blocks", "ErrorBounds", "Format", "WriteOptions"]

# How much of a file's beginning `Format.sniff` is shown.
HEAD_BYTES = 1 << 16
# Rows of a block of `Blocks`: 15 MB at SH degree 3, and whole chunks of the formats that have chunks.
BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class WriteOptions:
    """What a user asks of a writer.

    Attributes:
        quality: 0..100 on the scale of `compress`; None: the format's usual precision, every Gaussian kept.
        version: which of `Format.versions`; None: the one that most readers know.
        threads: worker threads; None: one a core. The bytes written do not depend on it.
        progress: called with (stage, share done 0..1).

    Raises:
        ParameterError: a value out of range.
    """

    quality: float | None = None
    version: int | None = None
    threads: int | None = None
    progress: Callable[[str, float], None] | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise ParameterError(f"quality {self.quality}, expected 0 to 100", field="quality")
        if self.threads is not None and self.threads < 1:
            raise ParameterError(f"{self.threads} threads", field="threads")


DEFAULT_OPTIONS = WriteOptions()


@dataclass(frozen=True)
class ErrorBounds:
    """How far at most a value comes back from what it was, absolutely, if it lies in the format's range.

    Attributes:
        means: world units.
        scales: of the natural log.
        alphas: of the opacity 0..1, after the sigmoid.
        colours: of the display colour, 0.5 + C0 sh0.
        quats: of a component of the unit quaternion, its sign (of all four) chosen to fit. Axes of an ellipsoid may be
            exchanged and reversed, scales with them; the bounds are those after that.
        shN: of a coefficient.
        max_sh_degree: bands above it do not come back.
    """

    means: float = 0.0
    scales: float = 0.0
    alphas: float = 0.0
    colours: float = 0.0
    quats: float = 0.0
    shN: float = 0.0
    max_sh_degree: int = MAX_SH_DEGREE


@dataclass(frozen=True)
class Blocks:
    """A scene that need not be in memory: read a block of rows at a time.

    Attributes:
        num_gaussians: of all blocks together. sh_degree: of every block.
        rows: the blocks from the first, each time it is called anew; together they are the scene that `Format.read`
            gives, in its order, but that a block without any normal but zero has none. They have no metadata.
        extras: dtype and further dimensions of side arrays that every block has, in their order.
        metadata: of the scene.
    """

    num_gaussians: int
    sh_degree: int
    rows: Callable[[], Iterator[Gaussians]]
    extras: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def head(self) -> Gaussians:
        """The scene without its rows."""
        extras = {name: np.empty((0, *shape), dtype) for name, (dtype, shape) in self.extras.items()}
        return Gaussians.empty(self.sh_degree).replaced(extras=extras, metadata=self.metadata)


@dataclass(frozen=True)
class Format:
    """One file format; a module of this package offers it as `FORMAT`.

    Attributes:
        name: short name, as in `read(path, format=name)`.
        title: name for people.
        suffixes: lower-case endings of file names, the usual one first; none for a format that is only a folder.
        read: (path, limits) -> Gaussians, raw as in `Gaussians`. Raises only SplatCodecError, and OSError while
            reading, which `splatcodec.formats.read` translates.
        write: (gaussians, file, options) -> None, or further losses that show only while writing, such as what a
            quality leaves out; None where the format is no single file or can only be read. The file can be written to
            and sought in; it becomes the target only when `write` returns.
        sniff: (head, path) -> whether the first bytes (`HEAD_BYTES` at most; none for a directory) are this format's.
            Of one file at most one format may say yes.
        has_magic: whether every file of the format can be sniffed. If not, the suffix decides.
        write_path: (gaussians, folder, options) -> None or further losses, of formats that are also, or only, a folder
            of files: fills `folder`, which exists, is empty, and becomes the target only when `write_path` returns.
            Called instead of `write` when the target is a folder (see `splatcodec.formats.write`).
        index_name: lower-case name of the file in that folder that stands for it, such as "meta.json".
        losses: (gaussians, options) -> sentences, each naming something of *this* scene that the file will not hold:
            extras, SH bands, metadata, values out of range, precision, Gaussians left out. Empty only if `read` would
            give back every value. None: nothing is ever lost.
        error_bounds: (gaussians, options) -> how exactly values come back without a quality; None: exactly, as float32.
        versions: what `WriteOptions.version` may be; the first is the default. Empty: there is only one.
        takes_quality: whether `WriteOptions.quality` means something.
        open_blocks: (path, limits) -> the same scene as `read` gives, block by block while the context lasts; None
            where the format (or, raising UnsupportedError, this file) needs the whole scene in memory.
        write_blocks: (blocks, file, options) -> all losses, those of `losses` included: the same bytes as `write`
            makes of the whole scene, in less memory. None where that is not to be had; never called with a quality.
        write_path_blocks: (blocks, folder, options) -> the same for `write_path`.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Limits], Gaussians]
    write: Callable[[Gaussians, BinaryIO, WriteOptions], list[str] | None] | None
    sniff: Callable[[bytes, Path], bool]
    has_magic: bool = True
    write_path: Callable[[Gaussians, Path, WriteOptions], list[str] | None] | None = None
    index_name: str | None = None
    losses: Callable[[Gaussians, WriteOptions], list[str]] | None = None
    error_bounds: Callable[[Gaussians, WriteOptions], ErrorBounds] | None = None
    versions: tuple[int, ...] = ()
    takes_quality: bool = False
    open_blocks: Callable[[Path, Limits], AbstractContextManager[Blocks]] | None = None
    write_blocks: Callable[[Blocks, BinaryIO, WriteOptions], list[str]] | None = None
    write_path_blocks: Callable[[Blocks, Path, WriteOptions], list[str]] | None = None

    @property
    def can_write(self) -> bool:
        """Whether the format can be written at all."""
        return self.write is not None or self.write_path is not None
