"""A scene that is read in blocks, laid down in a file for writers that look at all of it more than once."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..gaussians import Gaussians

__all__ = ["folder_of", "on_disk"]

_ARRAYS = ("means", "quats", "scales", "opacities", "sh0", "shN")


def folder_of(file: BinaryIO) -> Path | None:
    """Where a file lies that is being written; None for one without a place."""
    name = getattr(file, "name", None)
    return Path(name).parent if isinstance(name, str) else None


@contextlib.contextmanager
def on_disk(
    blocks: Iterable[Gaussians], sh_degree: int, metadata: Mapping[str, Any], folder: Path | None
) -> Iterator[Gaussians]:
    """All rows of `blocks` as one scene, whose arrays are maps of files without a name; side arrays are left out.

    Maps, as the system takes their pages back where memory is short, and reads them again.

    Args:
        sh_degree: of every block. folder: where the files are made: of the size of the scene's arrays; None: where
            temporary files usually are.
    """
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(tempfile.TemporaryFile(dir=folder)) for name in _ARRAYS}
        count = 0
        for block in blocks:
            for name, file in files.items():
                file.write(getattr(block, name).data)
            count += len(block)
        if not count:
            yield Gaussians.empty(sh_degree).replaced(metadata=metadata)
            return
        empty = Gaussians.empty(sh_degree)
        arrays: dict[str, Any] = {}
        for name, file in files.items():
            shape = (count, *getattr(empty, name).shape[1:])
            file.flush()
            arrays[name] = np.memmap(file, np.float32, "r", shape=shape) if all(shape) else np.empty(shape, np.float32)
        yield Gaussians(**arrays, metadata=metadata)
